import csv
import functools
import json

import numpy as np
import pytest
import SimpleITK as sitk

from tf_autoctx import errors, report
from tf_autoctx.data import datasets
from tf_autoctx.systems import evaluation

STRUCTURES = {"liver": 3, "spleen": 1}


def volume(**cubes):
    """Labels of 12 x 16 x 24 voxels with cubes of 4 voxels at x of the value after the underscore: v_3=10."""
    label = np.zeros((12, 16, 24), np.uint8)
    for name, at in cubes.items():
        label[4:8, 6:10, at : at + 4] = int(name[2:])
    return label


def case(folder, name, label):
    """A `datasets.Case` of voxels of 1 x 1 x 2 mm; its image is the label, so that a test can segment it."""
    for kind, voxels in (("image", label.astype(np.float32)), ("label", label)):
        image = sitk.GetImageFromArray(voxels)
        image.SetSpacing((1.0, 1.0, 2.0))
        sitk.WriteImage(image, str(folder / f"{name}_{kind}.nii.gz"))
    return datasets.Case(name, str(folder / f"{name}_image.nii.gz"), str(folder / f"{name}_label.nii.gz"), f"of {name}")


def shifted(voxels):
    """Two methods: a shift of two voxels, that is Dice 50 %, and the truth with a liver that is always there."""
    labels = voxels.astype(int)
    return {"level 1": {"label": np.roll(labels, 2, axis=2)}, "level 2": {"label": np.maximum(labels, volume(v_3=16))}}


read = functools.partial(datasets.read_case, merge=False)


def test_several_structures(tmp_path, capsys):
    cases = [case(tmp_path, "a", volume(v_1=2)), case(tmp_path, "b", volume(v_1=2, v_3=16))]
    rows = evaluation.evaluate(cases, shifted, tmp_path / "evaluation", STRUCTURES, read, [])
    scores = [(row["method"], row["structure"], row["case"], row["DSC_percent"]) for row in rows]
    assert scores == [
        ("level 1", "liver", "b", 50),  # case a has no liver and none was found: no row
        ("level 1", "spleen", "a", 50),
        ("level 1", "spleen", "b", 50),
        ("level 2", "liver", "a", pytest.approx(np.nan, nan_ok=True)),  # has none, but one was found
        ("level 2", "liver", "b", 100),
        ("level 2", "spleen", "a", 100),
        ("level 2", "spleen", "b", 100),
    ]
    assert rows[0]["group"] == "of b" and rows[0]["Hdb_mm"] == 2 and rows[0]["volume_mL"] == pytest.approx(0.128)
    false = rows[3]
    assert false["volume_mL"] == pytest.approx(0.128) and false["truth_volume_mL"] == 0
    assert all(np.isnan(value) for name, value in false.items() if name.endswith(("_percent", "_mm")))

    text = capsys.readouterr().out
    assert report.dice_table(rows) in text
    assert [line.split()[1:] for line in text.splitlines() if "  false" in line] == [["0", "0"], ["1", "0"]]
    files = {path.name for path in (tmp_path / "evaluation").iterdir()}
    assert files == {"cases.csv", "summary.json", "a.png", "b.png", "views"}
    summary = json.loads((tmp_path / "evaluation" / "summary.json").read_text())["methods"]["level 2"]["liver"]
    assert summary["n_false"] == 1 and summary["metrics"]["DSC_percent"]["mean"] == 100
    with open(tmp_path / "evaluation" / "cases.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 7


def test_one_structure(tmp_path, capsys):
    cases = [case(tmp_path, "a", volume(v_3=2)), case(tmp_path, "b", volume(v_1=2, v_3=16))]
    segment = lambda voxels: {"level 1": {"label": np.roll(voxels, 1, axis=2) > 0}}
    read = functools.partial(datasets.read_case, foreground=[1, 3])
    rows = evaluation.evaluate(cases, segment, tmp_path / "evaluation", {"head": 1}, read, [])
    assert [row["DSC_percent"] for row in rows] == pytest.approx([75, 75])
    assert report.table(rows) in capsys.readouterr().out


def test_an_organ_that_was_missed_counts_as_0():
    (liver,) = evaluation.scores(volume(), volume(v_3=2), (1, 1, 1), STRUCTURES)
    assert liver["structure"] == "liver" and liver["DSC_percent"] == 0 and liver["Hdb_mm"] == np.inf


def test_held_out(tmp_path, caplog):
    a, b, c = (case(tmp_path, name, volume(v_3=2)) for name in "abc")
    bare = datasets.Case("bare", a.image, None, "bare")
    assert evaluation.held_out(datasets.Dataset("d", (a,), (b,), (bare, c), {}), read) == [c]
    assert "1 of 2 test images have no label" in caplog.text
    assert evaluation.held_out(datasets.Dataset("d", (a,), (b,), (), {}), read) == [b]
    assert "the validation cases, which chose the checkpoints" in caplog.text
    with pytest.raises(errors.UserError, match="d: neither a test case with a label nor a validation case"):
        evaluation.held_out(datasets.Dataset("d", (a,), (), (), {}), read)
    with pytest.raises(errors.UserError, match="expected one of \\[0, 1\\]"):
        evaluation.held_out(datasets.Dataset("d", (a,), (b,), (c,), {}), functools.partial(read, labels={1: "spleen"}))
