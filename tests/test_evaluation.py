import csv
import dataclasses
import functools
import json

import numpy as np
import pytest
import SimpleITK as sitk

from tf_autoctx import biometry, errors, metrics
from tf_autoctx.data import datasets
from tf_autoctx.report import tables
from tf_autoctx.systems.shared import evaluation

STRUCTURES = {3: "liver", 1: "spleen"}


def volume(**cubes):
    """Labels of 12 x 16 x 24 voxels with cubes of 4 voxels: v_3=10 has one of value 3 at x = 10."""
    label = np.zeros((12, 16, 24), np.uint8)
    for name, at in cubes.items():
        label[4:8, 6:10, at : at + 4] = int(name[2:])
    return label


def case(folder, name, label):
    """A `datasets.Case` of voxels of 1 x 1 x 2 mm, whose image is the label."""
    for kind, voxels in (("image", label.astype(np.float32)), ("label", label)):
        image = sitk.GetImageFromArray(voxels)
        image.SetSpacing((1.0, 1.0, 2.0))
        sitk.WriteImage(image, str(folder / f"{name}_{kind}.nii.gz"))
    return datasets.Case(
        name,
        str(folder / f"{name}_image.nii.gz"),
        str(folder / f"{name}_label.nii.gz"),
        f"of {name}",
    )


def shifted(voxels, spacing):
    """Two methods: shifted by two voxels (Dice 50 %), and the truth with a liver in every case."""
    labels = voxels.astype(int)
    return {
        "level 1": {"label": np.roll(labels, 2, axis=2)},
        "level 2": {"label": np.maximum(labels, volume(v_3=16))},
    }


read = functools.partial(datasets.read_case, merge=False)


def test_several_structures(tmp_path, capsys):
    cases = [case(tmp_path, "a", volume(v_1=2)), case(tmp_path, "b", volume(v_1=2, v_3=16))]
    scoring = evaluation.Scoring("fetal_head", STRUCTURES)
    rows = evaluation.evaluate(cases, read, shifted, scoring, tmp_path / "evaluation")
    scores = [(row["method"], row["structure"], row["case"], row["DSC_percent"]) for row in rows]
    assert scores == [
        ("level 1", "liver", "b", 50),  # case a has no liver and none was found: no row
        ("level 1", "spleen", "a", 50),
        ("level 1", "spleen", "b", 50),
        # Case a has no liver, but one was found.
        ("level 2", "liver", "a", pytest.approx(np.nan, nan_ok=True)),
        ("level 2", "liver", "b", 100),
        ("level 2", "spleen", "a", 100),
        ("level 2", "spleen", "b", 100),
    ]
    assert (
        rows[0]["group"] == "of b"
        and rows[0]["Hdb_mm"] == 2
        and rows[0]["volume_mL"] == pytest.approx(0.128)
    )
    false = rows[3]
    assert false["volume_mL"] == pytest.approx(0.128) and false["truth_volume_mL"] == 0
    assert all(
        np.isnan(value) for name, value in false.items() if name.endswith(("_percent", "_mm"))
    )

    text = capsys.readouterr().out
    assert tables.dice_table(rows) in text
    assert [line.split()[1:] for line in text.splitlines() if "  false" in line] == [
        ["0", "0"],
        ["1", "0"],
    ]
    files = {path.name for path in (tmp_path / "evaluation").iterdir()}
    assert files == {"scores.csv", "cases.csv", "summary.json", "a.png", "b.png", "views"}
    summary = json.loads((tmp_path / "evaluation" / "summary.json").read_text())["methods"][
        "level 2"
    ]["liver"]
    assert summary["n_false"] == 1 and summary["metrics"]["DSC_percent"]["mean"] == 100
    with open(tmp_path / "evaluation" / "cases.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 7


def test_one_structure(tmp_path, capsys):
    cases = [case(tmp_path, "a", volume(v_3=2)), case(tmp_path, "b", volume(v_1=2, v_3=16))]

    def evaluator(voxels, spacing):
        return {"level 1": {"label": np.roll(voxels, 1, axis=2) > 0}}

    read = functools.partial(datasets.read_case, foreground=[1, 3])
    scoring = evaluation.Scoring("fetal_head", {1: "head"})
    rows = evaluation.evaluate(cases, read, evaluator, scoring, tmp_path / "evaluation")
    assert [row["DSC_percent"] for row in rows] == pytest.approx([75, 75])
    assert tables.table(rows) in capsys.readouterr().out


def disc(radius):
    """A volume of 2 x 64 x 64 voxels with a disc in the second slice."""
    y, x = np.ogrid[-31.5:32, -31.5:32]
    return np.stack([np.zeros((64, 64)), np.hypot(y, x) <= radius]).astype(np.uint8)


def test_what_is_measured_stands_beside_the_truth(tmp_path, capsys):
    """Heads of radius 20, 24 and 15 mm, the first two of one fetus.

    They are segmented 1 mm too large, 1 mm too large, and missed.
    """
    segmented = {20: 21, 24: 25, 15: 0}

    def evaluator(voxels, spacing):
        radius = round((voxels.sum() / np.pi) ** 0.5)
        return {"exact": {"label": voxels}, "level 2": {"label": disc(segmented[radius])}}

    cases = [case(tmp_path, f"c{radius}", disc(radius)) for radius in segmented]
    cases[:2] = (dataclasses.replace(scan, group="twice") for scan in cases[:2])
    folder = tmp_path / "evaluation"
    scoring = evaluation.Scoring("fetal_head", {1: "head"}, measure=biometry.compare)
    rows = evaluation.evaluate(cases, read, evaluator, scoring, folder)

    exact, (first, second, missed) = rows[:3], rows[3:]
    assert [row["HC_error_mm"] for row in exact] == [0, 0, 0]
    assert first["truth_BPD_mm"] == pytest.approx(40, abs=0.3) and first[
        "BPD_error_mm"
    ] == pytest.approx(2, abs=0.3)
    assert second["OFD_mm"] == pytest.approx(50, abs=0.3) and second[
        "HC_error_mm"
    ] == pytest.approx(2 * np.pi, abs=1)
    assert (
        missed["volume_mL"] == 0
        and np.isnan(missed["BPD_mm"])
        and missed["truth_BPD_mm"] == exact[2]["BPD_mm"] > 29
    )

    # The table of the scores is as it was, and what was written is read again.
    text = capsys.readouterr().out
    assert tables.table(rows) in text and "BPD error (mm)" not in tables.table(rows)
    errors_alone = tables.table(rows, ("BPD_error", "OFD_error", "HC_error"))
    assert errors_alone in text and "DSC" not in errors_alone
    again = tables.read(folder)
    assert again[0] == rows[0] and {row["system"] for row in again} == {"fetal_head"}
    assert tables.summarize(again)["methods"]["level 2"]["head"]["n_missed"] == 1
    names = {path.stem for path in folder.glob("*_m*.png")}
    assert names == {f"agreement_{name}" for name in ("volume_mL", "BPD_mm", "OFD_mm", "HC_mm")} | {
        "repeatability_volume_mL"
    }


def test_biometry_needs_millimetres():
    assert tables.scores(disc(9), disc(9), None, {1: "head"}, biometry.compare) == [
        {"structure": "head", **metrics.compare(disc(9), disc(9))}
    ]
    (false,) = tables.scores(disc(9), disc(0), (1, 1, 1), {1: "head"}, biometry.compare)
    assert false["volume_mL"] > 0 and np.isnan(false["BPD_mm"]) and np.isnan(false["HC_error_mm"])


def test_an_organ_that_was_missed_counts_as_0():
    (liver,) = tables.scores(volume(), volume(v_3=2), (1, 1, 1), STRUCTURES)
    assert liver["structure"] == "liver" and liver["DSC_percent"] == 0 and liver["Hdb_mm"] == np.inf


def test_held_out(tmp_path, caplog):
    a, b, c = (case(tmp_path, name, volume(v_3=2)) for name in "abc")
    bare = datasets.Case("bare", a.image, None, "bare")
    assert evaluation.held_out(datasets.Dataset("d", (a,), (b,), (bare, c), {}), read) == [c]
    assert "1 of 2 test images have no label" in caplog.text
    assert evaluation.held_out(datasets.Dataset("d", (a,), (b,), (), {}), read) == [b]
    assert "the validation cases, which chose the checkpoints" in caplog.text
    neither = "d: neither a test case with a label nor a validation case"
    with pytest.raises(errors.UserError, match=neither):
        evaluation.held_out(datasets.Dataset("d", (a,), (), (), {}), read)
    with pytest.raises(errors.UserError, match="expected one of \\[0, 1\\]"):
        evaluation.held_out(
            datasets.Dataset("d", (a,), (b,), (c,), {}),
            functools.partial(read, labels={1: "spleen"}),
        )
