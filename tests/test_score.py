"""The score command: a row a structure, by names of others; files that cannot be scored."""

import csv
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import PIL.Image
import pytest
import SimpleITK as sitk

from tf_autoctx.commands import score as score_command
from tf_autoctx.commands import structure_names
from tf_autoctx.commands.compare import command as compare
from tf_autoctx.commands.report import command as report
from tf_autoctx.data import datasets, images
from tf_autoctx.report import tables

ROOT = pathlib.Path(__file__).parents[1]
PAROTIDS = {1: "left parotid", 2: "right parotid"}


def save(path, label, spacing=(1.0, 1.0, 1.0)):
    """Writes a label; `spacing` is (z, y, x) in mm, which a PNG has not."""
    image = sitk.GetImageFromArray(label)
    if label.ndim == 3:
        image.SetSpacing(spacing[::-1])
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))


def cube(at, value=1, label=None):
    """A cube of 4 x 4 x 4 voxels at x = `at`, in a label of 8 x 10 x 12."""
    label = np.zeros((8, 10, 12), np.uint8) if label is None else label.copy()
    label[2:6, 3:7, at : at + 4] = value
    return label


@pytest.fixture
def folders(tmp_path):
    """Case a: both structures where they should be. Case b: left and right are swapped."""
    truth = cube(7, 2, cube(1, 1))
    save(tmp_path / "ours" / "a.nii.gz", truth)
    save(tmp_path / "ours" / "b.nrrd", cube(7, 1, cube(1, 2)))
    save(tmp_path / "labels" / "a.mha", truth)
    save(tmp_path / "labels" / "b.nii.gz", truth)
    return tmp_path


def test_the_surface_dice_at_a_tolerance(folders, capsys):
    save(folders / "ours" / "a.nii.gz", cube(7, 2, cube(2, 1)))  # 1 moved by a voxel of 1 mm
    (folders / "ours" / "b.nrrd").unlink()
    (folders / "labels" / "b.nii.gz").unlink()
    for tolerance, moved in ((0.5, 100 * 72 / 112), (1, 100)):
        score_command.command.perform(words(folders, f"--surface_tolerance={tolerance}"))
        rows = tables.read(folders / "output")
        assert [row["NSD_percent"] for row in rows] == pytest.approx([moved, 100])
        assert "NSD" in capsys.readouterr().out


def words(folders, *flags):
    folders = [f"--{name}={folders / name}" for name in ("labels", "output")] + [
        f"--predictions={folders / 'ours'}"
    ]
    return [*folders, "--workers=1", *flags]


def score(folders, *flags):
    """Rows of the tables that the command writes, by method, case and structure."""
    score_command.command.perform(words(folders, *flags))
    rows = tables.read(folders / "output")
    return {(row["method"], row["case"], row["structure"]): row for row in rows}


def dice(folders, *flags):
    """{(case, structure): DSC in percent} of the first method."""
    rows = score(folders, *flags).items()
    return {key[1:]: row["DSC_percent"] for key, row in rows if key[0] == "ours"}


def refused(folders, capsys, *flags):
    """What the command says as it exits with code 1."""
    with pytest.raises(SystemExit, match="1"):
        score_command.command.perform(words(folders, *flags))
    return capsys.readouterr().err


def listed(folders, name="failed.csv"):
    with open(folders / "output" / name, newline="") as file:
        return list(csv.DictReader(file))


def test_left_and_right_exchanged_show(folders, capsys):
    """Merged, the swap scores 100 %; by structure, 0 %, and 6 voxels of 1 mm apart."""
    rows = score(folders, "--names=1:left parotid,2:right parotid")
    assert [(case, name) for _, case, name in rows] == [
        ("a", "left parotid"),
        ("b", "left parotid"),
        ("a", "right parotid"),
        ("b", "right parotid"),
    ]
    for (_, case, _), row in rows.items():
        assert row["DSC_percent"] == (100 if case == "a" else 0)
        assert row["Hdb_mm"] == (0 if case == "a" else 6)
        assert row["volume_mL"] == row["truth_volume_mL"] == pytest.approx(0.064)
    assert "50.00 ± 70.71" in capsys.readouterr().out
    merged = dice(folders, "--merge", "--names=1:left parotid,2:right parotid")
    assert merged == {("a", "object"): 100, ("b", "object"): 100}


def test_scores_by_hand(tmp_path):
    """Of 64 voxels at 1 x 1 x 2 mm, shifted by two along x: half overlaps, 4 mm apart."""
    save(tmp_path / "ours" / "a.nii.gz", cube(4), spacing=(1.0, 1.0, 2.0))
    save(tmp_path / "labels" / "a.nii.gz", cube(2), spacing=(1.0, 1.0, 2.0))
    (row,) = score(tmp_path).values()
    assert (row["structure"], row["system"], row["group"]) == ("label 1", "", "")
    assert [row[name] for name in ("DSC_percent", "Hdb_mm", "volume_mL")] == pytest.approx(
        [50, 4, 0.128]
    )
    summary = json.loads((tmp_path / "output" / "summary.json").read_text())
    assert summary["methods"]["ours"]["label 1"]["metrics"]["DSC_percent"]["mean"] == 50


def test_structures_that_one_of_the_two_lacks(tmp_path):
    """Case a misses 2 and makes up 3; neither has 4, but case b has."""
    save(tmp_path / "ours" / "a.nii.gz", cube(7, 3, cube(1, 1)))
    save(tmp_path / "labels" / "a.nii.gz", cube(7, 2, cube(1, 1)))
    for folder in ("ours", "labels"):
        save(tmp_path / folder / "b.nii.gz", cube(1, 4))
    rows = score(tmp_path)
    assert [(case, name) for _, case, name in rows] == [
        ("a", "label 1"),
        ("a", "label 2"),
        ("a", "label 3"),
        ("b", "label 4"),
    ]
    summary = json.loads((tmp_path / "output" / "summary.json").read_text())["methods"]["ours"]
    counts = {name: (cell["n_missed"], cell["n_false"]) for name, cell in summary.items()}
    assert counts == {
        "label 1": (0, 0),
        "label 2": (1, 0),
        "label 3": (0, 1),
        "label 4": (0, 0),
    }
    assert np.isnan(rows["ours", "a", "label 3"]["DSC_percent"])


def test_values_of_the_foreground(folders, capsys):
    assert dice(folders, "--foreground=2") == {("a", "label 2"): 100, ("b", "label 2"): 0}
    assert dice(folders, "--foreground=1,2", "--merge") == {
        ("a", "object"): 100,
        ("b", "object"): 100,
    }
    assert "no voxel has a value of --foreground=7" in refused(folders, capsys, "--foreground=7")
    assert "expected integers" in refused(folders, capsys, "--foreground=head")


CARD = {"system": "multi_organ", "labels": {"1": "liver", "2": "spleen"}, "data_fingerprint": "x"}
NNUNET = {"labels": {"background": 0, "liver": 1, "spleen": 2}}
DECATHLON = {"labels": {"0": "background", "1": "liver", "2": "spleen"}}


@pytest.mark.parametrize(
    "place, told, system",
    [
        ("run/config.json", CARD, "multi_organ"),
        ("run/model_card.json", CARD, "multi_organ"),
        ("run/assets.extra/model_card.json", CARD, "multi_organ"),
        ("run/10/assets.extra/model_card.json", CARD, "multi_organ"),
        ("run/dataset.json", NNUNET, ""),
        ("run/dataset.json", DECATHLON, ""),
        ("labels/dataset.json", NNUNET, ""),
        ("dataset.json", NNUNET, ""),
        ("ours/model_card.json", CARD, "multi_organ"),
        ("config.json", CARD, "multi_organ"),
        ("ours/dataset.json", NNUNET, ""),
    ],
)
def test_names_stand_in_a_file(place, told, system, tmp_path):
    """That of --names, or one that lies beside labels or predictions."""
    for folder in ("run/9", "ours", "labels"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).write_text(json.dumps(told))
    if place.startswith("run"):
        names = structure_names.given(str(tmp_path / "run"))
        assert names == structure_names.given(str(tmp_path / place))
    else:
        names = structure_names.beside(tmp_path / "labels", tmp_path / "ours")
    assert names == structure_names.StructureNames(
        str(tmp_path / place), {1: "liver", 2: "spleen"}, system
    )


def test_names_beside_the_labels_come_first(folders, capsys):
    (folders / "labels" / "dataset.json").write_text(json.dumps(NNUNET))
    (folders / "ours" / "model_card.json").write_text(
        json.dumps(CARD | {"labels": {"1": "lung", "2": "heart"}})
    )
    (folders / "config.json").write_text("{}")  # somebody else's
    rows = score(folders)
    assert {(name, row["system"]) for (_, _, name), row in rows.items()} == {
        ("liver", "multi_organ"),
        ("spleen", "multi_organ"),
    }
    told = f"names of structures: {folders / 'labels' / 'dataset.json'}"
    assert told in capsys.readouterr().out.splitlines()


def test_the_regions_of_the_model_win(folders, capsys):
    """The data set has a name for each label value, and knows none of --regions of a run."""
    told = {"labels": {"background": 0, "rim": 1, "whole": 2, "ignore": 9}}
    (folders / "labels" / "dataset.json").write_text(json.dumps(told))
    of_run = CARD | {"labels": {"1": "whole", "2": "core"}}
    of_run["regions"] = {"whole": [1, 2], "core": [2]}
    (folders / "ours" / "model_card.json").write_text(json.dumps(of_run))
    truth = cube(7, 9, cube(4, 2, cube(1, 1)))  # 2 within the truth of 3 values
    save(folders / "labels" / "a.mha", truth)
    save(folders / "ours" / "a.nii.gz", cube(5, 2, cube(1, 1)))
    (folders / "ours" / "b.nrrd").unlink()
    (folders / "labels" / "b.nii.gz").unlink()
    rows = {name: row["DSC_percent"] for (_, _, name), row in score(folders).items()}
    # Along x, 9 is at 7 to 10; predicted 1 at 1 to 4, 2 at 5 to 8. Truth 1 at 1 to 3, 2 at 4 to 6.
    assert rows == {
        "whole": pytest.approx(100 * 2 * 6 / (6 + 6)),
        "core": pytest.approx(100 * 2 * 2 / (2 + 3)),
    }
    told = f"names of structures: {folders / 'ours' / 'model_card.json'}"
    assert told in capsys.readouterr().out.splitlines()
    # Those that the data set tells itself must agree.
    agreed = {"labels": {"background": 0, "whole": [1, 2], "core": [2]}}
    agreed["regions_class_order"] = [2, 2]
    (folders / "labels" / "dataset.json").write_text(json.dumps(agreed))
    with pytest.raises(SystemExit):
        score(folders)
    assert "dataset.json: " in capsys.readouterr().err


def test_a_value_of_two_names_is_told_of(folders, capsys, caplog):
    (folders / "labels" / "dataset.json").write_text(json.dumps(NNUNET))
    score(folders)
    assert "it is scored as" not in caplog.text
    other = CARD | {"labels": {"1": "Liver", "2": "stomach"}}
    (folders / "ours" / "model_card.json").write_text(json.dumps(other))
    score(folders)
    assert "model_card.json: 2 is stomach, but spleen in " in caplog.text
    assert "1 is" not in caplog.text


def test_names_that_contradict_each_other_are_refused(folders, capsys):
    (folders / "labels" / "dataset.json").write_text(json.dumps(NNUNET))
    exchanged = CARD | {"labels": {"1": "spleen", "2": "liver"}}
    (folders / "ours" / "model_card.json").write_text(json.dumps(exchanged))
    with pytest.raises(SystemExit):
        score(folders)
    told = "model_card.json: liver is 2, but 1 in "
    assert told in capsys.readouterr().err
    assert {name for _, _, name in score(folders, "--names=1:liver,2:spleen")} == {
        "liver",
        "spleen",
    }


@pytest.mark.parametrize(
    "labels, told",
    [
        ({"whole": [1, 2], "core": 2}, "model_card.json: core is 1, but 2 in "),
        ({"rim": 3, "ignore": 2}, "2 is liver, but voxels to be ignored in another file"),
    ],
)
def test_contradictions_of_other_kinds_are_refused(folders, capsys, labels, told):
    """Regions against plain labels, and a structure that another file says to ignore."""
    described = {"labels": {"background": 0} | labels, "regions_class_order": [1, 2]}
    if "ignore" in labels:
        described.pop("regions_class_order")
        (folders / "ours" / "dataset.json").write_text(json.dumps(described))
        described = {"labels": {"background": 0, "core": 1, "liver": 2}}
    (folders / "labels" / "dataset.json").write_text(json.dumps(described))
    of_model = CARD | {"labels": {"1": "core", "2": "liver"}}
    (folders / "ours" / "model_card.json").write_text(json.dumps(of_model))
    with pytest.raises(SystemExit):
        score(folders)
    assert told in capsys.readouterr().err


def test_a_value_without_a_name_is_scored_and_said(folders, caplog):
    assert {name for _, name in dice(folders, "--names=1:liver")} == {"liver", "label 2"}
    assert "names names no label 2, which occurs and is scored as label 2" in caplog.text
    caplog.clear()
    assert {name for _, name in dice(folders, "--names=1:liver", "--foreground=1")} == {"liver"}
    assert not caplog.text


@pytest.mark.parametrize(
    "names, told",
    [
        ("1:liver,2", "--names=1:liver,2: expected value:name"),
        ("1:liver,1:spleen", "expected value:name, each value once"),
        ("1:liver,2:liver", "expected names that differ"),
        ("1:liver,2:", "expected value:name"),
        ("nowhere", "nowhere: no such file or directory; expected dataset.json"),
        (".", "holds neither model_card.json nor config.json nor dataset.json"),
        ("regions.json", "regions.json: has the regions_class_order [1] for the regions"),
        ("list.json", "list.json: names no labels"),
        ("text.json", "text.json: is not JSON (Extra data"),
        ("nested.json", "nested.json: is not JSON (nested too deeply); expected label values and"),
    ],
)
def test_names_that_are_none(names, told, folders, capsys, monkeypatch):
    monkeypatch.chdir(folders)
    regions = {"labels": {"background": 0, "whole": [1, 2], "core": [2]}}
    regions["regions_class_order"] = [1]
    (folders / "regions.json").write_text(json.dumps(regions))
    (folders / "list.json").write_text('{"labels": ["liver"]}')
    (folders / "text.json").write_text("1:liver")
    (folders / "nested.json").write_text("[" * 200_000)
    assert told in refused(folders, capsys, f"--names={names}")


def test_a_data_set_that_names_no_labels_beside_them_asks_for_names(folders, capsys):
    labels = {"labels": {"background": 0, "whole": "1+2"}}
    (folders / "labels" / "dataset.json").write_text(json.dumps(labels))
    assert "or --names such as 1:liver,2:spleen" in refused(folders, capsys)


def test_ignored_voxels_do_not_count(tmp_path):
    """Of liver 1, the two voxels of each row that nobody outlined (3) were predicted, too."""
    truth, prediction = cube(2), cube(2)
    truth[2:6, 3:7, 6:8] = 3
    prediction[2:6, 3:7, 6:8] = 1
    save(tmp_path / "labels" / "a.nii.gz", truth)
    save(tmp_path / "ours" / "a.nii.gz", prediction)
    (tmp_path / "dataset.json").write_text('{"labels": {"background": 0, "liver": 1, "ignore": 3}}')
    assert dice(tmp_path) == {("a", "liver"): 100}
    assert dice(tmp_path, "--foreground=1") == {("a", "liver"): 100}
    assert dice(tmp_path, "--merge") == {("a", "liver"): 100}


def test_results_in_folders_below(tmp_path):
    """As predict writes them for TotalSegmentator's layout, with what it writes beside labels."""
    for patient, at in (("s0000", 2), ("s0001", 4)):
        save(tmp_path / "ours" / patient / "ct.nii.gz", cube(at))
        save(tmp_path / "labels" / patient / "ct.nii.gz", cube(2))
        for beside in ("masks/liver", "probabilities/liver", "iterations"):
            save(tmp_path / "ours" / beside / patient / "ct.nii.gz", cube(5))
        save(tmp_path / "ours" / "strips" / patient / "ct.png", cube(5)[0])
    assert dice(tmp_path) == {("s0000", "label 1"): 100, ("s0001", "label 1"): 50}


def test_a_run_and_the_scores_of_its_results_are_equal(tmp_path, capsys):
    """In every structure, metric and case: one that is missed, one that is made up, nested files
    of another orientation, as predict writes them."""
    from tf_autoctx.systems.shared import evaluation

    labels = {1: "left parotid", 2: "right parotid", 3: "mandible"}
    truths = {"s0000": cube(7, 2, cube(1, 1)), "s0001": cube(7, 2, cube(1, 3)), "s0002": cube(3)}
    predicted = {"s0000": cube(6, 2, cube(1, 1)), "s0001": cube(1, 3), "s0002": cube(7, 2, cube(2))}
    listed = ["image,label,split"]
    for name, truth in truths.items():
        for kind, voxels in (("images", truth + np.random.rand(8, 10, 12)), ("labels", truth)):
            image = sitk.GetImageFromArray(voxels.astype(np.float32))
            image.SetSpacing((0.9, 1.1, 2.5))
            image.SetDirection(np.diag([-1.0, -1.0, 1.0]).ravel())
            path = tmp_path / kind / name / "ct.nii.gz"
            path.parent.mkdir(parents=True)
            sitk.WriteImage(image, str(path))
        listed.append(f"images/{name}/ct.nii.gz,labels/{name}/ct.nii.gz,test")
    (tmp_path / "cases.csv").write_text("\n".join(listed) + "\n")
    data = datasets.load(tmp_path / "cases.csv", seed=0, training=False)
    order = iter(predicted)

    def evaluator(voxels, spacing):
        turned = images.read(tmp_path / "images" / (name := next(order)) / "ct.nii.gz")
        own = sitk.GetImageFromArray(predicted[name])
        own.CopyInformation(sitk.ReadImage(str(tmp_path / "images" / name / "ct.nii.gz")))
        label = images.Image.of("x", own).array
        path = tmp_path / "ours" / name / "ct.nii.gz"
        path.parent.mkdir(parents=True)
        images.write(path, turned.like(label))
        return {"level 1": {"label": label}}

    scoring = evaluation.Scoring("multi_organ", labels)
    read = lambda case: datasets.read_case(case, merge=False)  # noqa: E731
    evaluation.evaluate(data.test, read, evaluator, scoring, tmp_path / "run" / "evaluation")
    facts = {"system": "multi_organ", "labels": labels, "data_fingerprint": "x"}
    (tmp_path / "run" / "config.json").write_text(json.dumps(facts))
    score(tmp_path, f"--names={tmp_path / 'run'}")

    def about(folder):
        return {
            (row["case"], row["structure"]): row | {"method": "", "group": ""}
            for row in tables.read(folder)
        }

    run, ours = about(tmp_path / "run" / "evaluation"), about(tmp_path / "output")
    assert run.keys() == ours.keys() and len(run) == 6
    for key, row in run.items():
        assert row.keys() == ours[key].keys()
        for name, value in row.items():
            same = value == ours[key][name] or (np.isnan(value) and np.isnan(ours[key][name]))
            assert same, (key, name, value, ours[key][name])
    both = f"--evaluations={tmp_path / 'run' / 'evaluation'},{tmp_path / 'output'}"
    capsys.readouterr()
    compare.perform([both, f"--output={tmp_path / 'compared'}"])
    with open(tmp_path / "compared" / "comparison.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert {line["structure"] for line in lines} == set(labels.values())
    assert {float(line["mean_difference"]) for line in lines} == {0}
    assert "not in all" not in capsys.readouterr().out


def test_images_without_spacing_are_measured_in_pixels(tmp_path, capsys):
    for folder, at in (("ours", 3), ("labels", 1)):
        label = np.zeros((8, 8), np.uint8)
        label[2:6, at : at + 4] = 1
        save(tmp_path / folder / "a.png", label)
    (row,) = score(tmp_path).values()
    assert row["Hdb_pixel"] == 2 and row["area_pixel"] == 16
    assert "Hdb (pixel)" in capsys.readouterr().out


@pytest.mark.parametrize("flags", [(), ("--names=1:head",), ("--merge",), ("--names=255:head",)])
def test_a_mask_of_255_is_that_of_1(flags, tmp_path):
    """As predict writes PNG images, against truth of ones."""
    label = np.zeros((8, 8), np.uint8)
    label[2:6, 2:6] = 1
    save(tmp_path / "ours" / "a.png", 255 * label)
    save(tmp_path / "labels" / "a.png", label)
    (value,) = dice(tmp_path, *flags).values()
    assert value == 100


def test_255_among_other_values_is_a_value(tmp_path, capsys):
    """In case b it stands alone: a mask's object or a structure?"""
    for folder in ("ours", "labels"):
        save(tmp_path / folder / "a.nii.gz", cube(7, 255, cube(1, 1)))
    assert dice(tmp_path) == {("a", "label 1"): 100, ("a", "label 255"): 100}
    for folder in ("ours", "labels"):
        save(tmp_path / folder / "b.nii.gz", cube(7, 255))
    assert "255 is the object of masks in some files" in refused(tmp_path, capsys)
    scores = dice(tmp_path, "--names=1:liver,255:bone")
    assert set(scores) == {("a", "liver"), ("a", "bone"), ("b", "bone")}


def test_pictures_of_grey_levels_are_no_labels(tmp_path, capsys):
    """A mask with smooth edges; label values in 2D are named or asked for."""
    label = np.zeros((8, 8), np.uint8)
    label[2:6, 2:6], label[2:6, 6] = 255, 100
    for folder in ("ours", "labels"):
        save(tmp_path / folder / "a.png", label)
    refused(tmp_path, capsys)
    (failure,) = listed(tmp_path)
    assert "a.png: has the label values 100, 255, which nobody named" in failure["reason"]
    assert set(dice(tmp_path, "--names=100:rim,255:head").values()) == {100}
    assert set(dice(tmp_path, "--foreground=100,255").values()) == {100}


def test_a_colour_is_none_of_several_structures(tmp_path, capsys):
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[2:6, 2:6] = 0, 128, 0
    for folder in ("ours", "labels"):
        (tmp_path / folder).mkdir()
        PIL.Image.fromarray(pixels).save(tmp_path / folder / "a.png")
    assert set(dice(tmp_path).values()) == {100}
    refused(tmp_path, capsys, "--names=1:skull,2:brain")
    (failure,) = listed(tmp_path)
    assert "a.png: has the colour (0, 128, 0), which may be any of several" in failure["reason"]


def test_an_image_in_place_of_a_prediction(folders, capsys):
    image = np.random.default_rng(0).integers(0, 3000, (16, 20, 24)).astype(np.int16)
    for folder in ("ours", "labels"):
        save(folders / folder / "c.nii.gz", image if folder == "ours" else 0 * image + (image > 9))
    error = refused(folders, capsys)
    assert "ours/c.nii.gz: has 27" in error and "label values; expected a label image of" in error


def test_probabilities_are_no_labels(folders, capsys):
    save(folders / "ours" / "a.nii.gz", (0.4 * cube(1)).astype(np.float32))
    assert "ours/a.nii.gz: has the label values [0.4]; expected whole numbers" in refused(
        folders, capsys
    )
    assert [row["case"] for row in listed(folders, "cases.csv")] == ["b", "b"]


def test_post_processing_is_scored_side_by_side(tmp_path, capsys):
    """Two structures of 64 voxels; in case a, one has a cavity of one voxel and three far away."""
    label = cube(7, 2, cube(2, 1))
    damaged = label.copy()
    damaged[3, 4, 3], damaged[0, 0, :3] = 0, 1
    for folder, voxels in (("ours", damaged), ("labels", label)):
        save(tmp_path / folder / "a.nrrd", voxels)
        save(tmp_path / folder / "b.nrrd", label)
    rows = score(tmp_path, "--largest_component", "--fill_holes", "--foreground=1")
    assert {(method, case): row["DSC_percent"] for (method, case, _), row in rows.items()} == {
        ("ours", "a"): pytest.approx(100 * 2 * 63 / (66 + 64)),
        ("ours", "b"): 100,
        ("ours, largest component, fill holes", "a"): 100,
        ("ours, largest component, fill holes", "b"): 100,
    }
    # Half of 100 - 96.92.
    assert (
        "ours, largest component, fill holes against ours: DSC +1.54 %" in capsys.readouterr().out
    )


def test_a_case_that_cannot_be_scored_is_listed_and_the_rest_scored(folders, capsys):
    save(folders / "ours" / "a.nii.gz", cube(1), spacing=(2.0, 1.0, 1.0))
    save(folders / "labels" / "c.nii.gz", cube(1))
    (folders / "ours" / "c.nii.gz").write_bytes(b"no image")
    with pytest.raises(SystemExit, match="1"):
        score_command.command.perform(words(folders))
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert len(lines) == 3 and all(line.startswith("error: ") for line in lines)
    assert "ours/a.nii.gz: spacing (1.0, 1.0, 2.0) mm does not match" in lines[0]
    assert "ours/c.nii.gz: " in lines[1]
    assert "output/failed.csv: 2 of 3 cases are not scored; " in lines[2]
    assert "3/3" in out and "50.00" not in out
    assert {row["case"] for row in listed(folders, "cases.csv")} == {"b"}
    assert [(row["case"], row["reason"]) for row in listed(folders)] == [
        (case, line.removeprefix("error: ")) for case, line in zip("ac", lines)
    ]
    for name in "ac":
        (folders / "ours" / f"{name}.nii.gz").unlink()
        next((folders / "labels").glob(f"{name}.*")).unlink()
    assert len(score(folders)) == 2 and listed(folders) == []


def test_where_all_cases_fail_no_table_of_before_is_left(folders, capsys):
    score(folders)
    assert (folders / "output" / "scores.csv").exists()
    for path in (folders / "ours").iterdir():
        path.write_bytes(b"no image")
    assert "2 of 2 cases are not scored" in refused(folders, capsys)
    assert [path.name for path in (folders / "output").iterdir()] == ["failed.csv"]
    assert len(listed(folders)) == 2


def test_a_process_that_ends_is_one_failed_case(folders, capsys, monkeypatch):
    """Whatever kills it: ITK does on some damaged files, the system for lack of memory."""
    monkeypatch.setattr(score_command, "score", dying)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests'}")
    with pytest.raises(SystemExit, match="1"):
        score_command.command.perform(words(folders))
    err = capsys.readouterr().err
    assert "1 of 2 cases are not scored" in err and "ours/a.nii.gz" in err
    assert {row["case"] for row in listed(folders, "cases.csv")} == {"b"}
    assert [row["case"] for row in listed(folders)] == ["a"]


REAL = score_command.score


def dying(prediction, label, *rest):
    if pathlib.Path(prediction).name == "a.nii.gz":
        os.kill(os.getpid(), signal.SIGKILL)
    return REAL(prediction, label, *rest)


def children(pid):
    path = pathlib.Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()]


@pytest.mark.skipif(not pathlib.Path("/proc/self/task").exists(), reason="asks Linux who lives")
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_their_parent(end, folders):
    for number in range(300):
        for folder in ("ours", "labels"):
            save(folders / folder / f"c{number}.nii.gz", cube(1))
    command = [sys.executable, "eval/score.py", *words(folders), "--workers=2"]
    command.remove("--workers=1")
    environment = {"PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE)
    parent.stdout.readline()  # one case is scored
    workers = children(parent.pid)
    parent.send_signal(end)
    parent.wait()
    parent.stdout.close()
    assert len(workers) == 2
    until = time.monotonic() + 10
    while any(pathlib.Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < until, "workers of a killed command go on"
        time.sleep(0.1)


def test_a_name_that_a_spreadsheet_would_run(tmp_path):
    for folder in ("ours", "labels"):
        save(tmp_path / folder / "=1+1.nii.gz", cube(1))
    assert list(score(tmp_path, "--names=1:@liver")) == [("ours", "=1+1", "@liver")]
    (row,) = listed(tmp_path, "cases.csv")
    assert (row["case"], row["structure"]) == ("'=1+1", "'@liver")


@pytest.mark.parametrize(
    "damage, told",
    [
        (lambda f: (f / "ours" / "b.nrrd").unlink(), "labels/b.nii.gz: no image of the same name"),
        (lambda f: (f / "labels" / "a.mha").unlink(), "ours/a.nii.gz: no image of the same name"),
        (lambda f: (f / "output").write_text(""), "output"),
    ],
)
def test_bad_input_is_one_sentence(damage, told, folders, capsys):
    damage(folders)
    error = refused(folders, capsys)
    assert told in error and error.count("\n") == 1
    assert not (folders / "output" / "scores.csv").exists()


def test_nothing_to_score(tmp_path, capsys):
    for folder in ("ours", "labels"):
        save(tmp_path / folder / "a.nii.gz", 0 * cube(1))
    assert "every voxel is background" in refused(tmp_path, capsys)


def test_typed_names():
    names = structure_names.given(" 1: left kidney ,2:b:c, 7:ignore")
    assert names.labels == {1: "left kidney", 2: "b:c"} and names.ignored == 7
    assert (names.of(2), names.of(3), names.single) == ("b:c", "label 3", None)


def test_the_uncertainty_beside_predictions_of_one_structure(tmp_path, capsys):
    """It goes with the DSC, is in the table, and the report takes it from there."""
    for number, name in enumerate("abcd"):
        truth = cube(1, 1)
        save(tmp_path / "labels" / f"{name}.nii.gz", truth)
        save(tmp_path / "ours" / f"{name}.nii.gz", np.roll(truth, number, axis=0))
    for kind in ("labels", "ours"):
        (tmp_path / kind / "below").mkdir()
        file = tmp_path / kind / "c.nii.gz"
        file.rename(tmp_path / kind / "below" / file.name)
    lines = ["image,uncertainty", "a,0.125", "b,0.25", "below/c,0.5", "d,nan"]
    table = tmp_path / "ours" / "uncertainty.csv"
    table.write_text("\n".join(lines) + "\n")
    rows = score(tmp_path, "--fill_holes")
    unsure = [row.get("uncertainty_percent") for row in rows.values()]
    assert unsure[:3] == [12.5, 25, 50] and np.isnan(unsure[3:4]).all()
    assert not any(
        "uncertainty_percent" in row for row in score(tmp_path, "--foreground=1").values()
    )
    capsys.readouterr()
    score(tmp_path, "--fill_holes")
    assert "uncertainty and DSC: Spearman's rho -1.00, p = 0.3333, n = 3" in capsys.readouterr().out
    page = tmp_path / "report.html"
    report.perform([f"--evaluations={tmp_path / 'output'}", f"--output={page}"])
    assert "Spearman rho with DSC" in page.read_text("utf-8")
    # Of several structures it is of all of them together.
    save(tmp_path / "labels" / "a.nii.gz", cube(7, 2, cube(1, 1)))
    assert not any("uncertainty_percent" in row for row in score(tmp_path).values())
    table.write_text("image,uncertainty\na,much\n")
    save(tmp_path / "labels" / "a.nii.gz", cube(1, 1))
    assert "uncertainty.csv: " in refused(tmp_path, capsys)
