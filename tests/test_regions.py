"""Regions: sets of label values that lie in each other or overlap, by hand and from outside."""

import csv
import json
import shutil

import numpy as np
import pytest
import running
import SimpleITK as sitk
from helpers import dice, noise, plain_unet3d, randomize

import tf_autoctx
from tf_autoctx import configuration, errors, export, losses, metrics
from tf_autoctx.data import datasets, images, regions
from tf_autoctx.models import unet3d
from tf_autoctx.report import figures, tables, views
from tf_autoctx.systems.multi_organ.configuration import MultiOrgan
from tf_autoctx.systems.multi_organ.segmentation import Pyramid
from tf_autoctx.systems.multi_organ.system import MultiOrganSystem
from tf_autoctx.systems.shared import cleaning, confidence, prediction, stages
from tf_autoctx.training import runs

NESTED = {1: (1, 2, 3), 2: (2, 3), 3: (3,)}  # a tumour, its core, and what enhances in it
NNUNET = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "whole": [1, 2], "core": [2]},
    "regions_class_order": [1, 2],
    "numTraining": 3,
    "file_ending": ".nii.gz",
}
TINY = (
    "--base_filters=2",
    "--patch_size=8",
    "--tile_size=16",
    "--levels=1",
    "--downsampling=1",
    "--batch_size=2",
    "--steps=2",
    "--samples_per_epoch=4",
    "--precision=float32",
)


# What is told


def test_a_flag_names_regions_in_their_order():
    made = regions.parsed("whole=1+2+3,core=3+2")
    assert made == (regions.Region("whole", (1, 2, 3)), regions.Region("core", (3, 2)))
    assert regions.by_value(made) == {1: (1, 2, 3), 3: (3, 2)}
    assert regions.written(made) == "whole=1+2+3,core=3+2" and regions.parsed("") == ()
    told = regions.facts(regions.by_value(made), {1: "whole", 3: "core"})
    assert told == {"regions": {"whole": [1, 2, 3], "core": [3, 2]}}
    assert regions.of_facts(json.loads(json.dumps(told))) == regions.by_value(made)
    assert regions.facts({}, {1: "liver"}) == {} == regions.of_facts({})


@pytest.mark.parametrize(
    "text, told",
    [
        ("whole", "expected name=value\\+value, such as"),
        ("=1+2", "expected name=value"),
        ("whole=1+2,", "expected name=value"),
        ("whole=1;2", "expected name=value"),
        ("whole=1+-2", "expected name=value"),
        ("whole=1+2,whole=2", "expected names that differ"),
        ("a/b=1", "expected names that differ and may be names of folders"),
        ("whole=1+2,left=1", "first one that is first in no other"),
        ("whole=1+2+1", "expected each value of a region once"),
        ("whole=0+1", "expected label values from 1 to 254"),
        ("whole=1+255", "expected label values from 1 to 254"),
        (",".join(f"r{n}={n}" for n in range(1, 14)), "are 13; expected 12 at most"),
    ],
)
def test_what_names_no_regions_is_one_sentence(text, told):
    with pytest.raises(errors.FieldError, match=f"^regions=.*{told}"):
        MultiOrgan(regions=text)


def of_data_set(**changes):
    return datasets.regions_in("dataset.json", NNUNET | changes)


def test_a_dataset_json_names_regions_and_what_each_is_written_as():
    assert regions.written(of_data_set()) == "whole=1+2,core=2"
    named = {"background": 0, "kidney": [1, 2, 3], "masses": [2, 3], "tumour": 2, "ignore": 4}
    of_kidneys = of_data_set(labels=named, regions_class_order=[1, 3, 2])
    assert regions.written(of_kidneys) == "kidney=1+2+3,masses=3+2,tumour=2"
    without = {"labels": {"background": 0, "whole": [2, 1], "core": [1]}}
    assert regions.written(datasets.regions_in("d", without)) == "whole=2+1,core=1"
    assert of_data_set(labels={"background": 0, "liver": 1}) == ()
    assert of_data_set(labels={"1": "liver"}) == ()


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"regions_class_order": [1]}, "has the regions_class_order"),
        ({"regions_class_order": [1, 1]}, "expected a value of each"),
        ({"regions_class_order": 1}, "expected a value of each"),
        ({"labels": {"background": 0, "whole": [], "core": [2]}}, "expected a value of each"),
        ({"labels": {"background": 0, "a,b": [1], "core": [2]}}, "expected name=value"),
        ({"labels": {"background": 0, "a": [1.5], "b": [2]}}, "expected "),
    ],
)
def test_a_dataset_json_of_no_regions_is_one_sentence(changes, told):
    with pytest.raises(errors.UserError, match=rf"^dataset\.json: .*{told}"):
        of_data_set(**changes)


# The label


@pytest.mark.parametrize(
    "of, there, value",
    [
        (NESTED, "", 0),
        (NESTED, "1", 1),
        (NESTED, "12", 2),
        (NESTED, "123", 3),
        # No value has these: that of the last one is written.
        (NESTED, "2", 2),
        (NESTED, "13", 3),
        # nnU-Net's kidney, masses and tumour of the KiTS challenge
        ({1: (1, 2, 3), 3: (3, 2), 2: (2,)}, "13", 3),
        ({1: (1, 2, 3), 3: (3, 2), 2: (2,)}, "132", 2),
        # Two that share value 3
        ({1: (1, 3), 2: (2, 3)}, "1", 1),
        ({1: (1, 3), 2: (2, 3)}, "2", 2),
        ({1: (1, 3), 2: (2, 3)}, "12", 3),
        # Apart: what is in both is written as the last.
        ({1: (1,), 2: (2,)}, "12", 2),
        ({2: (2,), 1: (1,)}, "12", 1),
    ],
)
def test_the_label_of_every_combination_by_hand(of, there, value):
    at = sum(2**k for k, first in enumerate(of) if str(first) in there)
    assert regions.composition(of)[at] == value


@pytest.mark.parametrize("of", [NESTED, {1: (1, 3), 2: (2, 3)}, {3: (3, 1, 2), 1: (1,), 2: (2,)}])
def test_a_label_of_true_regions_tells_all_of_them(of):
    for value in {value for values in of.values() for value in values}:
        at = sum(2**k for k, values in enumerate(of.values()) if value in values)
        composed = regions.composition(of)[at]
        for values in of.values():
            assert (composed in values) == (value in values)


def pyramid(text, **fields):
    fields = {"downsampling": (2, 1), "base_filters": 1, "tile_size": 16, **fields}
    chosen = MultiOrgan(levels=len(fields["downsampling"]), regions=text, **fields)
    return Pyramid(chosen, {r.values[0]: r.name for r in regions.parsed(text)})


def test_the_label_is_that_of_the_regions_above_a_half():
    """Of whole and core: neither, whole, both, core alone."""
    p = np.array([[0.5, 0.2], [0.51, 0.5], [0.9, 0.6], [0.1, 0.8]], np.float32)
    voxels = p.reshape(1, 1, 2, 2, 2)
    served = pyramid("whole=1+2,core=2").postprocess(voxels, (1, 2, 2))
    assert served["label"].dtype == "uint8"
    np.testing.assert_array_equal(np.ravel(served["label"]), [0, 1, 2, 2])
    np.testing.assert_allclose(served["probability"], voxels, atol=1e-6)


def test_their_order_decides_where_regions_exclude_each_other():
    p = np.full((1, 1, 1, 1, 2), 0.9, np.float32)
    last = [pyramid(text).label(p, (1, 1, 1)) for text in ("a=1,b=2", "b=2,a=1")]
    assert [int(np.ravel(label)[0]) for label in last] == [2, 1]


def test_labels_are_learnt_as_classes_of_all_values():
    of = pyramid("whole=1+2+7,core=7+2")
    assert of.values == (0, 1, 2, 7) and of.class_regions == {1: (1, 2, 3), 2: (3, 2)}
    np.testing.assert_array_equal(of.classes(np.array([0, 1, 2, 3, 7])), [0, 1, 2, 0, 3])
    outputs = of.network().output
    assert {name: x.shape[-1] for name, x in outputs.items()} == {"level_1": 2, "level_2": 2}
    with pytest.raises(ValueError, match=r"^labels="):
        Pyramid(of.configuration, {1: "whole", 2: "core"})


def test_level_2_sees_sigmoid_maps():
    of, x = pyramid("whole=1+2,core=2"), 100 * noise(1, 8, 8, 8, 1)
    network = randomize(of.network())
    fields = {f"image_{n}": of.preprocess(x, scale) for n, scale in ((1, 2), (2, 1))}
    logits = {name: np.array(y) for name, y in network(fields).items()}
    first, second = (1 / (1 + np.exp(-logits[f"level_{n}"])) for n in (1, 2))
    levels = of.cascade(of.unets(network), x)
    np.testing.assert_allclose(levels[0], first, atol=1e-5)
    # As in training, but that each level sees the whole volume.
    np.testing.assert_allclose(levels[1], second, atol=1e-4)
    assert np.abs(np.sum(levels[1], axis=-1) - 1).max() > 0.1


# The loss and the scores


def test_the_loss_by_hand():
    """Two voxels, of the whole alone and of the core. Whole: 3/4 at both; core: 1/2 and 1/4."""
    label = np.array([1, 2], np.uint8).reshape(1, 2, 1)
    logits = np.log([[3, 1], [3, 1 / 3]]).astype(np.float32).reshape(1, 2, 2)
    entropy = np.mean([-np.log([3 / 4, 3 / 4]), -np.log([1 / 2, 1 / 4])])
    of_whole, of_core = 2 * 1.5 / (1.5 + 2), 2 * 0.25 / (0.75 + 1)
    loss = losses.RegionLoss(((1, 2), (2,)))(label, logits)
    assert loss.shape == (1,)
    np.testing.assert_allclose(loss, entropy - (of_whole + of_core) / 2, rtol=1e-4)
    # Another voxel, which is to be ignored, and a sample beside it
    more = np.concatenate([label, np.full((1, 1, 1), 255, np.uint8)], axis=1)
    told = np.concatenate([logits, np.full((1, 1, 2), 4, np.float32)], axis=1)
    pair = np.concatenate([more, np.zeros_like(more)]), np.concatenate([told, told])
    both = losses.RegionLoss(((1, 2), (2,)), ignored=255)(*pair)
    np.testing.assert_allclose(both[0], loss[0], rtol=1e-5)
    assert both[1] > both[0]


def test_a_loss_of_regions_that_are_right_or_absent_is_lowest():
    label = np.array([0, 1], np.uint8).reshape(1, 2, 1)
    sure = np.array([[-30, -30], [30, -30]], np.float32).reshape(1, 2, 2)
    np.testing.assert_allclose(losses.RegionLoss(((1, 2), (2,)))(label, sure), -1, atol=1e-5)
    assert np.isfinite(losses.RegionLoss(((1, 2), (2,)))(label, -30 * sure)).all()


def test_a_region_is_scored_on_all_its_values():
    truth, prediction = np.array([[[0, 1, 2, 3, 3, 1]], [[1, 1, 3, 3, 0, 0]]])
    np.testing.assert_array_equal(metrics.mask_of(truth, 2, NESTED), [[0, 0, 1, 1, 1, 0]])
    np.testing.assert_array_equal(metrics.mask_of(truth, 2), [[0, 0, 1, 0, 0, 0]])
    of_each = [2 * 3 / (4 + 5), 2 * 2 / (2 + 3), 2 * 1 / (2 + 2)]
    assert metrics.mean_dice(prediction, truth, NESTED) == pytest.approx(np.mean(of_each))
    assert metrics.mean_dice(prediction, truth) == pytest.approx(np.mean([1 / 2, 0, 1 / 2]))
    # The truth lacks the innermost.
    assert metrics.mean_dice(np.array([[1, 3]]), np.array([[1, 2]]), NESTED) == 1
    names = {1: "whole", 2: "core", 3: "enhancing"}
    rows = tables.scores(prediction, truth, None, names, regions=NESTED)
    assert [row["structure"] for row in rows] == list(names.values())
    assert [row["DSC_percent"] / 100 for row in rows] == pytest.approx(of_each)
    told = tf_autoctx.score(prediction, truth, labels=names, regions=NESTED)
    assert [row["DSC_percent"] / 100 for row in told.values()] == pytest.approx(of_each)


def test_confidence_is_that_of_the_region():
    """The whole is said to be there by 3/4, in the core too, where its label is the core's."""
    truth = np.zeros((8, 10), np.uint8)
    truth[:, :5], truth[:, :2] = 1, 2
    probability = np.where(truth > 0, 0.75, 0.25).astype(np.float32)
    segmentation = {"label": truth, "probability": {"whole": probability, "core": probability}}
    every, names = np.ones(truth.shape, bool), {1: "whole", 2: "core"}
    told = confidence.of_case(segmentation, truth, every, names, {1: (1, 2), 2: (2,)})
    np.testing.assert_allclose(told["whole"].bins[7], [40, 30, 40])
    np.testing.assert_allclose(told["core"].bins[7], [24, 18, 16])  # a column wider than the core


def test_a_view_shows_the_last_region_and_a_picture_all(tmp_path):
    label = np.zeros((4, 6, 8), np.uint8)
    label[1:3, 1:5, 1:7], label[1:3, 2:4, 2:6] = 1, 3  # 3 is in both
    names, of = {1: "a", 2: "b"}, {1: (1, 3), 2: (2, 3)}
    view = views.of(noise(4, 6, 8), label, {"ours": {"label": label}}, None, names, of)
    np.testing.assert_array_equal(view["truth"], np.where(label == 3, 2, label))
    path = tmp_path / "a.png"
    figures.picture(path, noise(4, 6, 8), label, label, None, "case", names, of)
    assert path.stat().st_size > 1000


# From outside


def write(path, voxels):
    path.parent.mkdir(parents=True, exist_ok=True)
    volume = sitk.GetImageFromArray(voxels)
    volume.SetSpacing((1.0, 1.5, 2.0))
    images.write(path, volume)


def outlined():
    """A label: the whole, 1, and its core, 2."""
    label = np.zeros((12, 14, 16), np.uint8)
    label[2:10, 2:12, 2:13] = 1
    label[4:8, 4:9, 4:10] = 2
    return label


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """nnU-Net's layout: three training cases and a test case."""
    folder = tmp_path_factory.mktemp("data")
    for case in range(4):
        end, label = "Ts" if case == 3 else "Tr", outlined()
        voxels = np.rint(50 * noise(*label.shape, seed=case) + 60 * label).astype(np.int16)
        write(folder / f"images{end}" / f"c{case}_0000.nii.gz", voxels)
        write(folder / f"labels{end}" / f"c{case}.nii.gz", label)
    (folder / "dataset.json").write_text(json.dumps(NNUNET))
    return folder


@pytest.fixture(scope="module", autouse=True)
def small_networks():
    """What is tested is around the networks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unet3d, "unet3d", plain_unet3d)
        yield


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A finished run on these, with weights by which both regions are somewhere, and its export."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        trained = stages.save

        def save(path, network, *arguments):
            centred(network)
            trained(path, network, *arguments)

        patch.setattr(stages, "save", save)
        running.train("multi_organ", f"--work_dir={folder}", f"--data_dir={data}", *TINY)
    return folder


def centred(network, seed=0):
    """Weights of a pyramid by which every region is somewhere, and nowhere sure."""
    randomize(network, seed)
    image = {"image_1": 1.8 + noise(1, 12, 14, 16, 1) / 2}
    head = network.get_layer("level_1").get_layer("head")
    head.bias.assign_sub(np.mean(network(image)["level_1"], axis=(0, 1, 2, 3)))


@pytest.fixture(scope="module")
def segment(run):
    return prediction.load(run)


def scan():
    return 60 * noise(12, 14, 16, seed=9)


def test_a_run_tells_its_regions(run, segment, caplog):
    config = json.loads((run / "config.json").read_text())
    assert config["flags"]["regions"] == "whole=1+2,core=2"
    assert config["labels"] == {"1": "whole", "2": "core"}
    assert config["regions"] == {"whole": [1, 2], "core": [2]}
    card = export.read_card(run / "saved_model" / "1")
    assert card["labels"] == config["labels"] and card["regions"] == config["regions"]
    assert card["outputs"]["probability"]["shape"][-1] == 2
    assert segment.regions == {1: (1, 2), 2: (2,)}
    of_own = runs.load(run)
    assert of_own.flags["postprocessing"] == "auto"  # of which nothing is decided, nor missed
    assert cleaning.record(of_own) is None and "postprocessing" not in caplog.text
    assert prediction.load(run / "saved_model").regions == segment.regions
    assert runs.load(run).labels == segment.labels == {1: "whole", 2: "core"}


def test_a_run_is_scored_a_region(run, data, segment):
    case = images.read_raw(data / "imagesTs" / "c3_0000.nii.gz", 3)
    label, truth = segment(case.array, case.millimetres)["label"], outlined()
    with open(run / "evaluation" / "cases.csv") as file:
        rows = {row["structure"]: row for row in csv.DictReader(file) if row["method"] == "level 1"}
    assert list(rows) == ["whole", "core"]
    for name, mask, true_mask in (
        ("whole", label > 0, truth > 0),
        ("core", label == 2, truth == 2),
    ):
        assert 0 < mask.sum() < mask.size
        assert float(rows[name]["DSC_percent"]) == pytest.approx(100 * dice(mask, true_mask))
        assert 0 < float(rows[name]["ECE_percent"]) < 100
        volume = true_mask.sum() * 3 / 1000
        assert float(rows[name]["truth_volume_mL"]) == pytest.approx(volume)


def test_each_region_has_a_sigmoid_and_the_label_is_composed(segment):
    told = segment(scan(), (2.0, 1.5, 1.0), probabilities=True)
    whole, core = (told["probability"][name] for name in ("whole", "core"))
    composed = np.where(core > 0.5, 2, np.where(whole > 0.5, 1, 0))
    np.testing.assert_array_equal(told["label"], composed)
    assert set(np.unique(composed)) == {0, 1, 2}
    assert np.abs(whole + core - 1).max() > 0.05


def test_the_export_answers_as_the_run(run, segment):
    volume = scan()
    mine = segment(volume, (2.0, 1.5, 1.0), probabilities=True)
    image = {"image": volume[None, ..., None]}
    theirs = running.served(run / "saved_model" / "1", image["image"], "probabilities")
    assert theirs["probability"].shape == (1, *volume.shape, 2)
    for k, name in enumerate(("whole", "core")):
        p = mine["probability"][name]
        np.testing.assert_allclose(theirs["probability"][0, ..., k], p, atol=1e-4)
    sure = np.all(np.abs(theirs["probability"][0] - 0.5) > 2e-4, axis=-1)
    assert sure.mean() > 0.9
    np.testing.assert_array_equal(theirs["label"][0, ..., 0][sure], mine["label"][sure])


def test_the_export_is_what_a_server_needs(run, tmp_path):
    scans = np.random.default_rng(5).integers(0, 256, (2, 12, 13, 11)).astype(np.uint8)
    running.check_export(run / "saved_model" / "1", scans, tmp_path)


def test_what_predict_writes_is_a_region_and_is_scored_so(run, data, tmp_path):
    out = tmp_path / "results"
    words = ("--masks", "--probabilities", "--measurements")
    running.call(
        "predict", f"--model={run}", f"--input={data / 'imagesTs'}", f"--output={out}", *words
    )
    label = images.read(out / "c3.nii.gz").array
    for name, mask in (("whole", label > 0), ("core", label == 2)):
        written = images.read(out / "masks" / name / "c3.nii.gz").array
        np.testing.assert_array_equal(written, mask)
        assert (out / "probabilities" / name / "c3.nii.gz").exists()
    with open(out / "measurements.csv") as file:
        volumes = {row["structure"]: float(row["volume_mL"]) for row in csv.DictReader(file)}
    assert volumes == pytest.approx(
        {"whole": (label > 0).sum() * 3 / 1000, "core": (label == 2).sum() * 3 / 1000}
    )
    truths = f"--labels={data / 'labelsTs'}"
    running.call("score", f"--predictions={out}", truths, f"--output={tmp_path / 'scores'}")
    ours = {row["structure"]: row["DSC_percent"] for row in tables.read(tmp_path / "scores")}
    theirs = tables.read(run / "evaluation")
    assert ours == pytest.approx(
        {row["structure"]: row["DSC_percent"] for row in theirs if row["method"] == "level 1"}
    )
    merged = ("--merge", f"--output={tmp_path / 'merged'}")
    running.call("score", f"--predictions={out}", truths, *merged)
    (whole,) = tables.read(tmp_path / "merged")
    assert whole["DSC_percent"] == pytest.approx(ours["whole"])


def test_an_ensemble_takes_the_mean_of_the_maps(run, segment, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(run, other)
    network = stages.load(other / "pyramid" / "model.keras")
    centred(network, seed=3)
    network.save(other / "pyramid" / "model.keras")
    running.call("ensemble", str(run), str(other), f"--output={tmp_path / 'model'}")
    models = segment, prediction.load(other), prediction.load(tmp_path / "model")
    *both, mean = [of(scan(), (2.0, 1.5, 1.0), probabilities=True) for of in models]
    for name in ("whole", "core"):
        first, second = (told["probability"][name] for told in both)
        assert np.abs(first - second).mean() > 0.01
        np.testing.assert_allclose(mean["probability"][name], (first + second) / 2, atol=1e-5)
    whole, core = (mean["probability"][name] > 0.5 for name in ("whole", "core"))
    np.testing.assert_array_equal(mean["label"], np.where(core, 2, np.where(whole, 1, 0)))


def test_the_same_regions_go_on_and_others_are_refused(run, data, capsys):
    words = (f"--work_dir={run}", f"--data_dir={data}", *TINY)
    with running.unexported():
        running.train("multi_organ", *words, "--regions=whole=1+2,core=2")
    capsys.readouterr()
    with pytest.raises(SystemExit):
        running.train("multi_organ", *words, "--regions=core=2,whole=1+2")
    assert "--regions 'whole=1+2,core=2' (now 'core=2,whole=1+2')" in capsys.readouterr().err


def test_tables_of_other_data_refuse_runs_of_regions(run, data, tmp_path, capsys):
    words = (f"--runs={run}", f"--output={tmp_path / 'tables'}")
    with pytest.raises(SystemExit):
        running.call("multi_organ_tables", *words, f"--other_data={data}")
    assert f"{run}: its structures are regions (whole, core); expected" in capsys.readouterr().err
    running.call("multi_organ_tables", *words)
    assert {row["structure"] for row in tables.read(tmp_path / "tables")} == {"whole", "core"}


# Refusals


@pytest.mark.parametrize(
    "words, told",
    [
        (["--regions=whole=1+2", "--foreground=1"], "--foreground=1: the --regions name their"),
        (["--regions=whole=1+9"], "--regions=whole=1+9: no label is [9]; expected some of [1, 2]"),
        (["--regions=whole"], "--regions=whole: expected name=value+value"),
    ],
)
def test_flags_that_contradict_the_labels_are_one_sentence(data, tmp_path, capsys, words, told):
    with pytest.raises(SystemExit) as ended:
        running.train("multi_organ", f"--work_dir={tmp_path}", f"--data_dir={data}", *words)
    assert ended.value.code == 1 and told in capsys.readouterr().err
    assert not (tmp_path / "config.json").exists()


@pytest.mark.parametrize("system", ["fetal_head", "embryo", "renderer"])
def test_other_systems_take_no_regions(system, data, tmp_path, capsys):
    with pytest.raises(SystemExit):
        running.train(system, f"--work_dir={tmp_path}", f"--data_dir={data}")
    told = f"{data}: its labels are regions (whole, core); expected one value for each label, as"
    assert f"{told} {system} takes no regions." in capsys.readouterr().err


def test_regions_among_label_values_are_chosen_by_the_flag(data):
    """Of a data set of plain label values; what is of no region is background."""
    cases = datasets.load(data, 0)
    assert cases.labels == {0: "background", 1: "label 1", 2: "label 2"}
    of = MultiOrganSystem(MultiOrgan(regions="core=2"), {2: "core"})
    read = of.reader(None, cases.labels)
    assert read.foreground == [2]
    _, label = read(cases.test[0])
    np.testing.assert_array_equal(label, np.where(outlined() == 2, 2, 0))
    prepared = of.prepare(cases.test[0], scan()[None, ..., None], label[None, ..., None])
    np.testing.assert_array_equal(prepared["label"][..., 0], outlined() == 2)


@pytest.mark.parametrize(
    "words, told",
    [
        (["--foreground=1"], "--foreground=1: the structures of "),
        (["--largest_component"], "--largest_component=True: the structures of "),
        (["--fill_holes"], "--fill_holes=True: the structures of "),
        ([], "a.nii.gz: has the label values [5], which no region of "),
    ],
)
def test_scores_of_regions_ask_for_their_values(tmp_path, capsys, words, told):
    label = outlined()
    write(tmp_path / "labels" / "a.nii.gz", label)
    label[5, 5, 5] = 2 if words else 5
    write(tmp_path / "ours" / "a.nii.gz", label)
    (tmp_path / "dataset.json").write_text(json.dumps(NNUNET))
    folders = [f"--predictions={tmp_path / 'ours'}", f"--labels={tmp_path / 'labels'}"]
    with pytest.raises(SystemExit):
        running.call("score", *folders, f"--output={tmp_path / 'scores'}", *words)
    assert told in capsys.readouterr().err


def test_a_run_of_before_there_were_regions_has_none():
    assert configuration.earlier([MultiOrgan])["regions"] == ""
    assert MultiOrganSystem(MultiOrgan(), {5: "pancreas", 2: "liver"}).regions == {}
