"""How sure a segmentation is, and how right it is to be, by hand and through an evaluation."""

import csv

import numpy as np
import pytest
from test_evaluation import STRUCTURES, case, read, volume

from tf_autoctx import errors, metrics
from tf_autoctx.data.labels import IGNORED
from tf_autoctx.report import calibration, tables
from tf_autoctx.systems.shared import confidence, evaluation

QUARTER = 0.25 * 2 + 0.75 * np.log2(4 / 3)  # bits, of a probability of 1/4 or 3/4


def half(value, shape=(8, 10)):
    """An image whose left half is of a value."""
    image = np.zeros(shape, np.float32)
    image[..., : shape[-1] // 2] = value
    return image


def of_case(probability, truth=None, label=None, counted=None):
    """The confidence in a structure whose truth and prediction are the left half."""
    truth, label = (half(1) if x is None else x for x in (truth, label))
    counted = np.ones(truth.shape, bool) if counted is None else counted
    segmentation = {"label": label, "probability": {"head": probability}}
    return confidence.of_case(segmentation, truth, counted, {1: "head"})


def test_uncertainty_is_that_of_the_predicted_object():
    """Undecided in the background, which does not count."""
    sure = of_case(np.where(half(1), 0.75, 0.5))["head"]
    assert sure.uncertainty == pytest.approx(QUARTER)
    probability = np.where(half(1), 1.0, 0.5)
    probability[:4, :5] = 0.75  # half of the object
    assert of_case(probability)["head"].uncertainty == pytest.approx(QUARTER / 2)


def test_calibration_is_that_of_a_box_around_the_truth():
    """Of 8 x 10 pixels the box has 8 x 6, as it is one wider: the object's 40 at 0.75, and 8."""
    bins = of_case(np.where(half(1), 0.75, 0.25))["head"].bins
    np.testing.assert_allclose(bins[7], [40, 30, 40])
    np.testing.assert_allclose(bins[2], [8, 2, 0])
    assert bins[:, 0].sum() == 48
    assert metrics.calibration_error(bins) == pytest.approx(25)
    told = confidence.scores(of_case(np.where(half(1), 0.75, 0.25)), "head")
    assert told == pytest.approx({"uncertainty_percent": 100 * QUARTER, "ECE_percent": 25})


def test_what_is_to_be_ignored_does_not_count():
    counted = np.ones((8, 10), bool)
    counted[:2] = False
    bins = of_case(np.where(half(1), 0.75, 0.25), counted=counted)["head"].bins
    np.testing.assert_allclose(bins[[7, 2], 0], [30, 6])


def test_a_perfectly_calibrated_probability_has_no_error_and_a_sure_one_has():
    rng = np.random.default_rng(0)
    probability = rng.random((50, 50, 50))
    truth = (rng.random(probability.shape) < probability).astype(np.uint8)
    label = (probability > 0.5).astype(np.uint8)
    (calibrated,) = of_case(probability, truth, label).values()
    # Of what is above 1/2 three quarters are true.
    (sure,) = of_case(label.astype(np.float32), truth, label).values()
    assert metrics.calibration_error(calibrated.bins) < 1
    assert metrics.calibration_error(sure.bins) == pytest.approx(25, abs=1)
    assert sure.uncertainty == 0 and calibrated.uncertainty > 0.5


@pytest.mark.parametrize("shape", [(8, 20), (4, 6, 20)])
def test_a_probability_on_another_grid_is_resampled(shape):
    """Halves of 0.6 and 0.2, on a grid half as fine: between them 0.5 and 0.3 of two columns."""
    coarse = np.where(half(1, tuple(n // 2 for n in shape)), 0.6, 0.2)
    fine = np.where(half(1, shape), 0.6, 0.2)
    fine[..., 9], fine[..., 10] = 0.5, 0.3
    truth = half(1, shape)
    (told,), (same,) = (of_case(p, truth, truth).values() for p in (coarse, fine))
    assert told.uncertainty == pytest.approx(same.uncertainty, rel=1e-5)
    assert metrics.calibration_error(told.bins) == pytest.approx(
        metrics.calibration_error(same.bins), rel=1e-5
    )


def test_what_is_missed_or_false():
    nothing = np.zeros((8, 10))
    (missed,) = of_case(half(0.25), label=nothing).values()
    assert np.isnan(missed.uncertainty) and missed.bins[2, 0] == 40
    false = of_case(half(0.75), truth=nothing)
    assert false["head"].uncertainty == pytest.approx(QUARTER) and false["head"].bins is None
    assert np.isnan(confidence.scores(false, "head")["ECE_percent"])
    assert of_case(half(0.25), truth=nothing, label=nothing) == {}
    bare = {"label": half(1)}
    assert confidence.of_case(bare, half(1), half(1) > 0, {1: "head"}) == {}
    assert confidence.scores({}, "head") == {}


# Through an evaluation


def segment(voxels, spacing):
    """Two methods: one is as sure as it is right, the last is sure of everything; the liver's
    probability lies on a coarser grid."""
    labels = voxels.astype(int)
    labels[labels == IGNORED] = 3
    spleen, liver = ((labels == value).astype(np.float32) for value in (1, 3))
    coarse = liver.reshape(6, 2, 8, 2, 12, 2).mean(axis=(1, 3, 5))
    maps = {"spleen": spleen, "liver": coarse}
    return {
        "level 1": {"label": labels, "probability": {n: 0.75 * x for n, x in maps.items()}},
        "level 2": {"label": labels, "probability": maps},
    }


def test_an_evaluation_tells_of_every_method_structure_and_case(tmp_path):
    cases = [case(tmp_path, "a", volume(v_1=2)), case(tmp_path, "b", volume(v_1=2, v_3=16))]
    folder, scoring = tmp_path / "evaluation", evaluation.Scoring("fetal_head", STRUCTURES)
    rows = evaluation.evaluate(cases, read, segment, scoring, folder)
    told = {(row["method"], row["structure"], row["case"]): row for row in rows}
    assert len(told) == 6
    for (method, _, _), row in told.items():
        sure = method == "level 2"
        if row["structure"] == "spleen":
            assert row["uncertainty_percent"] == pytest.approx(0 if sure else 100 * QUARTER)
            # The object's 4^3 voxels of 6^3 are said to be there by 0.75.
            assert row["ECE_percent"] == pytest.approx(0 if sure else 25 * 64 / 216)
    again = {(row["method"], row["structure"], row["case"]): row for row in tables.read(folder)}
    for key, row in told.items():
        for name in ("uncertainty_percent", "ECE_percent"):
            assert again[key][name] == pytest.approx(row[name])
    curves = calibration.read(folder)
    assert curves["level 1", "spleen"][:, 0].sum() == 2 * 216  # of both cases
    assert curves["level 1", "liver"][:, 0].sum() == 216
    np.testing.assert_allclose(curves["level 1", "spleen"][7], [128, 96, 128])
    assert (folder / "calibration.png").stat().st_size > 1000
    with open(folder / "calibration.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 4 * metrics.BINS
    summary = tables.summarize(rows)["methods"]["level 2"]["spleen"]["metrics"]
    assert summary["ECE_percent"]["n"] == 2


def test_an_evaluation_leaves_out_what_is_to_be_ignored(tmp_path):
    """The liver is to be ignored: so are its voxels in the box around the spleen."""
    cases = [case(tmp_path, "a", volume(v_1=2, v_255=6))]
    scoring = evaluation.Scoring("fetal_head", {1: "spleen"})

    def reader(of):
        image, label = read(of)
        return image, np.where(label == 255, IGNORED, label)

    evaluation.evaluate(cases, reader, segment, scoring, tmp_path / "evaluation")
    curves = calibration.read(tmp_path / "evaluation")
    assert curves["level 2", "spleen"][:, 0].sum() == 216 - 4 * 4


def test_without_probabilities_nothing_is_told(tmp_path):
    cases = [case(tmp_path, "a", volume(v_1=2))]

    def bare(voxels, spacing):
        return {"level 1": {"label": voxels.astype(int)}}

    folder, scoring = tmp_path / "evaluation", evaluation.Scoring("fetal_head", {1: "spleen"})
    (row,) = evaluation.evaluate(cases, read, bare, scoring, folder)
    assert not {"uncertainty_percent", "ECE_percent"} & row.keys()
    assert not list(folder.glob("calibration*")) and calibration.read(folder) == {}


@pytest.mark.parametrize("line", ["m,s,11,1,1,1", "m,s,0,1,1,1", "m,s,one,1,1,1", "m,s,1,x,1,1"])
def test_a_broken_file_is_one_sentence(tmp_path, line):
    (tmp_path / "calibration.csv").write_text(f"{','.join(calibration.COLUMNS)}\n{line}\n")
    with pytest.raises(errors.UserError, match=r"calibration.csv: .*in bins from 1 to 10"):
        calibration.read(tmp_path)
