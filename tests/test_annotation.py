"""Correcting predictions: in which order, names and colours for viewers, and the way back from 3D
Slicer into training."""

import csv
import json

import numpy as np
import pytest
import running
import SimpleITK as sitk
import tensorflow as tf

from tf_autoctx import export
from tf_autoctx.data import datasets, images, labels, segments
from tf_autoctx.errors import UserError
from tf_autoctx.systems.shared import annotating, origins

KNOWN = {1: "liver", 3: "left kidney"}
NAMES = '"labels": {"background": 0, "liver": 1, "left kidney": 3}'
RANDOM = np.random.default_rng(0)


def label():
    """Two structures (z, y, x): 24 voxels of 1, 8 of 3."""
    voxels = np.zeros((5, 8, 9), np.uint8)
    voxels[1:3, 2:5, 3:7] = 1
    voxels[2:4, 6:8, 1:3] = 3
    return voxels


def image_of(array, direction=None):
    """An image of 0.5 x 0.75 x 2 mm, whose first voxel is not at 0."""
    image = sitk.GetImageFromArray(array)
    if array.ndim == 3:
        image.SetSpacing((0.5, 0.75, 2.0))
        image.SetOrigin((-7.0, 3.0, 20.0))
        image.SetDirection(direction or np.eye(3).ravel().tolist())
    return image


def scan(path, direction=None):
    voxels = RANDOM.normal(size=(5, 8, 9)).astype(np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image_of(voxels, direction), str(path))
    return images.read(path)


def by_slicer(path, layers, told, box=None, **fields):
    """A file as 3D Slicer saves it: segments (name, value, layer), of which it keeps a box."""
    layers = [image_of(layer) for layer in layers]
    if box is not None:
        layers = [layer[box] for layer in layers]
    image = layers[0] if len(layers) == 1 else sitk.Compose(layers)
    for number, (name, value, layer) in enumerate(told):
        of_segment = {"ID": f"Segment_{number + 1}", "Name": name, "Tags": "Status:inprogress|"}
        of_segment |= {"LabelValue": value, "Layer": layer}
        for key, text in of_segment.items():
            image.SetMetaData(f"Segment{number}_{key}", str(text))
    for name, text in fields.items():
        image.SetMetaData(name, text)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))
    return path


# Files of 3D Slicer


def test_fields_are_those_that_slicer_reads(tmp_path):
    path = tmp_path / "a.seg.nrrd"
    structures = annotating.segments({**KNOWN, 7: "spleen"})
    segments.write(path, image_of(label()), structures)
    header = path.read_bytes().partition(b"\n\n")[0].decode()
    assert "\nspace: left-posterior-superior\n" in header and "\ndimension: 3\n" in header
    told = dict(line.split(":=") for line in header.splitlines() if ":=" in line)
    expected = {
        "Segmentation_SourceRepresentation": "Binary labelmap",
        "Segmentation_MasterRepresentation": "Binary labelmap",
        "Segmentation_ReferenceImageExtentOffset": "0 0 0",
        "Segment0_ID": "Segment_1",
        "Segment0_Name": "liver",
        "Segment0_LabelValue": "1",
        "Segment0_Layer": "0",
        "Segment0_Extent": "3 6 2 4 1 2",
        "Segment0_Color": "0.901961 0.623529 0",
        "Segment1_Name": "left kidney",
        "Segment1_LabelValue": "3",
        "Segment1_Extent": "1 2 6 7 2 3",
        "Segment2_Extent": "0 -1 0 -1 0 -1",
    }
    assert {name: told.get(name) for name in expected} == expected
    image, voxels = labels.read(path, 3, KNOWN)
    np.testing.assert_array_equal(voxels, label())
    assert images.Grid.of(image.image) == images.Grid.of(image_of(label()))


def test_a_2d_label_is_a_slice_without_mm(tmp_path):
    path, flat = tmp_path / "a.seg.nrrd", label()[2]
    segments.write(path, image_of(flat), annotating.segments(KNOWN))
    assert sitk.ReadImage(str(path)).GetSize() == (9, 8, 1)
    for dimensions in (2, None):
        image, voxels = labels.read(path, dimensions, KNOWN)
        np.testing.assert_array_equal(voxels, flat)
        assert image.millimetres is None


def test_colours_of_many_structures_differ():
    colours = [annotating.colour(number) for number in range(60)]
    assert colours[:2] == [(230, 159, 0), (86, 180, 233)] and len(set(colours)) == 60


def test_segments_have_the_values_of_their_names(tmp_path):
    """Slicer numbers segments anew, in layers of their own, and saves the box that it needs."""
    wanted = label()
    layers = [(wanted == 3) * np.uint8(1), (wanted == 1) * np.uint8(2)]
    told = [("Left Kidney ", 1, 0), ("liver", 2, 1), ("empty", 9, 0)]
    box = (slice(1, 8), slice(2, None), slice(1, 4))
    path = by_slicer(tmp_path / "a.seg.nrrd", layers, told, box)
    image = scan(tmp_path / "a.nii.gz")
    outlined, voxels = labels.read(path, 3, KNOWN, of=image)
    np.testing.assert_array_equal(voxels, wanted)
    images.require_same_grid(outlined, image)
    # Without the image it stays as it is, and is refused beside it.
    outlined, voxels = labels.read(path, 3, KNOWN)
    np.testing.assert_array_equal(voxels, wanted[1:4, 2:, 1:8])
    with pytest.raises(UserError, match=r"a.seg.nrrd: size \(7, 6, 3\) voxels does not match"):
        images.require_same_grid(outlined, image)


def test_the_grid_is_found_whatever_the_orientation(tmp_path):
    """A scan stored as RAS, a segmentation of a box of it stored as LPS."""
    image = scan(tmp_path / "a.nii.gz", [-1, 0, 0, 0, -1, 0, 0, 0, 1])
    wanted = label()[:, ::-1, ::-1].copy()  # of the LPS image
    turned = sitk.DICOMOrient(sitk.ReadImage(str(tmp_path / "a.nii.gz")), "LPS")
    of_all = sitk.GetImageFromArray(wanted)
    of_all.CopyInformation(turned)
    segments.write(tmp_path / "a.seg.nrrd", of_all[1:, :, :4], annotating.segments(KNOWN))
    _, voxels = labels.read(tmp_path / "a.seg.nrrd", 3, KNOWN, of=image)
    np.testing.assert_array_equal(voxels, wanted)


def test_layers_of_old_files_are_segments_each(tmp_path):
    layers = [(label() == value) * np.uint8(1) for value in (3, 1)]
    image = sitk.Compose([image_of(layer) for layer in layers])
    image.SetMetaData("Segment0_Name", "left kidney")
    image.SetMetaData("Segment1_Name", "liver")
    sitk.WriteImage(image, str(tmp_path / "a.seg.nrrd"))
    _, voxels = labels.read(tmp_path / "a.seg.nrrd", 3, KNOWN)
    np.testing.assert_array_equal(voxels, label())


@pytest.mark.parametrize("name, warned", [("Segment_1", True), ("Liver", False)])
def test_the_only_structure_is_the_only_segment(tmp_path, caplog, name, warned):
    wanted = (label() == 1).astype(np.uint8)
    told = [(name, 5, 0), ("Background", 3, 0)]
    for count in (1, 2):
        voxels = 5 * wanted + (count == 2) * (label() == 3) * np.uint8(3)
        path = by_slicer(tmp_path / "a.seg.nrrd", [voxels], told[:count])
        _, voxels = labels.read(path, 3, {0: "background", 2: "liver"})
        np.testing.assert_array_equal(voxels, 2 * wanted)
    told = "a.seg.nrrd: its only segment is called Segment_1; it is taken for liver, the only"
    assert (told in caplog.text) is warned


def test_a_segment_called_background_is_no_structure(tmp_path):
    voxels = (label() == 1).astype(np.uint8)
    path = by_slicer(tmp_path / "a.seg.nrrd", [voxels], [("Background", 1, 0)])
    _, voxels = labels.read(path, 3, {2: "liver"})
    assert not voxels.any()


LIVER = [("liver", 1, 0)]
BOTH = [*LIVER, ("left kidney", 3, 0)]


@pytest.mark.parametrize(
    "layers, told, known, refusal",
    [
        ([label()], BOTH, {}, "has the segments liver, left kidney, and nothing tells their label"),
        ([label()], [], KNOWN, "names no segments; expected a segmentation that 3D Slicer saved"),
        (
            [label()],
            [*LIVER, ("Segment_2", 3, 0)],
            KNOWN,
            "has the segments Segment_2; expected some of liver, left kidney, the names of",
        ),
        ([label()], LIVER, KNOWN, r"has voxels of \[3\], the value of no segment; expected a seg"),
        (
            [label(), 2 * (label() == 1).astype(np.uint8)],
            [*BOTH, ("left kidney", 2, 1)],
            KNOWN,
            "the segments liver and left kidney overlap; expected each voxel in one of them",
        ),
        ([label()], [("liver", 1, 4)], KNOWN, "has the label value '1' in layer '4'; expected a w"),
        (
            [label()],
            [("liver", 0, 0)],
            {1: "liver"},
            "has the label value '0' in layer '0'; expect",
        ),
        ([label()[:1, :1, :1]], LIVER, KNOWN, "holds no voxels, as where 3D Slicer saves segment"),
    ],
)
def test_other_segmentations_are_refused(tmp_path, layers, told, known, refusal):
    path = by_slicer(tmp_path / "a.seg.nrrd", layers, told)
    with pytest.raises(UserError, match=f"a.seg.nrrd: .*{refusal}"):
        labels.read(path, 3, known)


def test_segments_outside_the_image_are_refused(tmp_path):
    image = scan(tmp_path / "a.nii.gz")
    moved = image_of(label())
    moved.SetOrigin((-7.0, 3.0, 20.0 + 2 * 2.0))  # two slices towards the head
    segments.write(tmp_path / "a.seg.nrrd", moved, annotating.segments(KNOWN))
    with pytest.raises(UserError, match=r"a.seg.nrrd: 4 voxels of its segments lie outside"):
        labels.read(tmp_path / "a.seg.nrrd", 3, KNOWN, of=image)


# What is learnt from


def corrected(folder):
    """Cases a and b that train, c that tests; b and c as Slicer saves them, numbered anew."""
    for name in ("Tr/a", "Tr/b", "Ts/c"):
        scan(folder / f"images{name}.nii.gz")
    (folder / "labelsTr").mkdir()
    sitk.WriteImage(image_of(label()), str(folder / "labelsTr" / "a.nii.gz"))
    renumbered = np.array([0, 2, 0, 1], np.uint8)[label()]
    told = [("left kidney", 1, 0), ("liver", 2, 0)]
    box = (slice(1, 8), slice(2, None), slice(1, 4))
    for name in ("Tr/b", "Ts/c"):
        by_slicer(folder / f"labels{name}.seg.nrrd", [renumbered], told, box)
    return folder


def test_corrected_files_are_learnt_from_under_the_names_of_a_dataset_json(tmp_path):
    (corrected(tmp_path) / "dataset.json").write_text(f"{{{NAMES}}}")
    cases = datasets.load(tmp_path, 0, 0.0)
    assert datasets.structures(cases) == KNOWN
    assert [case.name for case in cases.train] == ["a", "b"]
    assert [case.name for case in cases.test] == ["c"]
    for case in (*cases.train, *cases.test):
        _, learnt = datasets.read_case(case, None, cases.labels, merge=False)
        np.testing.assert_array_equal(learnt, label())


def test_segments_without_names_of_label_values_are_no_data_set(tmp_path):
    folder = corrected(tmp_path)
    for part in ("images", "labels"):
        (folder / f"{part}Tr").rename(folder / part)
    with pytest.raises(UserError, match=r"b.seg.nrrd: has the segments left kidney, liver, and no"):
        datasets.structures(datasets.load(tmp_path, 0, 0.0))


def test_a_dataset_json_of_names_alone_wants_files_of_the_same_names(tmp_path):
    (tmp_path / "dataset.json").write_text(f"{{{NAMES}}}")
    with pytest.raises(UserError, match="expected one of them, or imagesTr/ and labelsTr/ beside"):
        datasets.load(tmp_path, 0)
    (corrected(tmp_path) / "imagesTs" / "c.nii.gz").rename(tmp_path / "imagesTs" / "d.nii.gz")
    with pytest.raises(UserError, match="imagesTs/ and labelsTs/ do not both have c; expected f"):
        datasets.load(tmp_path, 0)


def test_predicted_segments_are_scored_against_corrected_ones(tmp_path):
    segments.write(tmp_path / "a.seg.nrrd", image_of(label()), annotating.segments(KNOWN))
    renumbered = np.array([0, 2, 0, 1], np.uint8)[label()]
    told = [("left kidney", 1, 0), ("liver", 2, 0)]
    by_slicer(tmp_path / "labels" / "a.seg.nrrd", [renumbered], told, (slice(0, 9),) * 3)
    folders = [f"--predictions={tmp_path / 'ours'}", f"--labels={tmp_path / 'labels'}"]
    (tmp_path / "ours").mkdir()
    (tmp_path / "a.seg.nrrd").rename(tmp_path / "ours" / "a.seg.nrrd")
    names = "--names=1:liver,3:left kidney"
    running.call("score", *folders, f"--output={tmp_path / 'scores'}", names)
    summary = json.loads((tmp_path / "scores" / "summary.json").read_text())
    (method,) = summary["methods"].values()
    assert {name: told["metrics"]["DSC_percent"]["mean"] for name, told in method.items()} == {
        "liver": 100,
        "left kidney": 100,
    }


def test_a_predicted_part_of_the_grid_is_scored_on_that_of_the_truth(tmp_path):
    """A prediction that Slicer has saved again, of the liver without its first slice."""
    voxels = np.where(label() == 3, 0, label())
    voxels[1] = 0
    box = (slice(1, 8), slice(2, None), slice(2, 4))
    by_slicer(tmp_path / "ours" / "a.seg.nrrd", [voxels], LIVER, box)
    (tmp_path / "labels").mkdir()
    sitk.WriteImage(image_of(label()), str(tmp_path / "labels" / "a.nii.gz"))
    folders = [f"--predictions={tmp_path / 'ours'}", f"--labels={tmp_path / 'labels'}"]
    names = "--names=1:liver,3:left kidney"
    running.call("score", *folders, f"--output={tmp_path / 'scores'}", names)
    summary = json.loads((tmp_path / "scores" / "summary.json").read_text())
    (method,) = summary["methods"].values()
    dice = method["liver"]["metrics"]["DSC_percent"]["mean"]
    assert dice == pytest.approx(100 * 2 * 12 / (12 + 24))


# The order


def model(folder, system="multi_organ", names=KNOWN, signature=export.VOLUME, **told):
    """Structures where an image is 1 or 3, as sure of them as its digits behind the point say."""

    def segment(image):
        label = tf.cast(image, tf.uint8)
        sure = image - tf.floor(image)
        each = [tf.where(label == value, sure, (1 - sure) / len(names)) for value in (0, *names)]
        probability = each[1:] if len(names) == 1 else each
        return {"label": label, "probability": tf.concat(probability, -1)}

    card = {"system": system, "labels": names, "orientation": "LPS"} | told
    export.write(folder, export.Exported({"serving_default": segment}, {}, card, signature))
    return folder


def entropy(sure):
    """Of three classes, the others alike, from 0 to 1."""
    p = np.array([sure, (1 - sure) / 2, (1 - sure) / 2])
    return float(-(p * np.log(p)).sum() / np.log(3))


def scene(of_liver, of_kidney, background=0.99):
    voxels = np.full((5, 8, 9), background, np.float32)
    if of_liver:
        voxels[1:3, 2:5, 3:7] = 1 + of_liver
    if of_kidney:
        voxels[2:4, 6:8, 1:3] = 3 + of_kidney
    return voxels


@pytest.fixture(scope="module")
def organs(tmp_path_factory):
    return model(tmp_path_factory.mktemp("model") / "organs")


@pytest.fixture
def scans(tmp_path):
    """sure, unsure of the kidney, without kidney, and nothing at all."""
    folder = tmp_path / "scans"
    folder.mkdir()
    scenes = {"sure": (0.9, 0.95), "unsure": (0.8, 0.5), "half": (0.7, 0), "none": (0, 0)}
    for name, sure in scenes.items():
        sitk.WriteImage(image_of(scene(*sure)), str(folder / f"{name}.nii.gz"))
    return folder


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


UNSURE = {
    "sure": (24 * entropy(0.9) + 8 * entropy(0.95)) / 32,
    "unsure": (24 * entropy(0.8) + 8 * entropy(0.5)) / 32,
    "half": entropy(0.7),
}


def test_the_order_and_what_makes_images_uncertain(organs, scans, tmp_path, capsys):
    output = tmp_path / "out"
    words = [f"--model={organs}", f"--input={scans}", f"--output={output}", "--uncertainty"]
    running.call("predict", *words, "--rank")
    table = rows(output / "rank.csv")
    assert [(row["order"], row["image"], row["file"]) for row in table] == [
        ("1", "none", "none.nii.gz"),
        ("2", "half", "half.nii.gz"),
        ("3", "unsure", "unsure.nii.gz"),
        ("4", "sure", "sure.nii.gz"),
    ]
    assert UNSURE["half"] > UNSURE["unsure"] > UNSURE["sure"]
    told = {row["image"]: float(row["uncertainty"]) for row in table}
    assert np.isnan(told.pop("none")) and told == pytest.approx(UNSURE, rel=1e-4)
    parts = [(row["least_sure_of"], row["slice"], row["not_found"]) for row in table]
    # Slices 2 and 3 have 12 voxels of liver each, slices 3 and 4 four of the kidney.
    assert parts == [
        ("", parts[0][1], "liver; left kidney"),
        ("liver", "2", "left kidney"),
        ("left kidney", "3", ""),
        ("liver", "3", ""),
    ]
    printed = capsys.readouterr().out
    assert "rank.csv: in which order to correct 4 images\n   1. none: nothing was segm" in printed
    assert "2. half: uncertainty 0.745, least sure of liver, slice 2, not found: left k" in printed
    # One that is there stays in the order, one that is missing comes back.
    (output / "rank" / "half.csv").unlink()
    (output / "rank.csv").unlink()
    running.call("predict", *words, "--rank", "--resume")
    assert rows(output / "rank.csv") == table
    assert [row["image"] for row in rows(output / "uncertainty.csv")] == [
        row["image"] for row in table
    ]


def test_the_tables_are_of_the_images_of_the_input(organs, scans, tmp_path, capsys):
    """Not of others whose results lie in the same folder; with --resume all of the input count.
    uncertainty.csv keeps them: an image that is done would not come back."""
    output = tmp_path / "out"
    words = [f"--model={organs}", f"--output={output}", "--uncertainty", "--rank", "--measurements"]
    tables = ("rank.csv", "measurements.csv", "uncertainty.csv")

    def told(*flags):
        running.call("predict", *words, *flags)
        return [sorted({row["image"] for row in rows(output / table)}) for table in tables]

    (scans / "half.nii.gz").rename(tmp_path / "half.nii.gz")
    assert told(f"--input={scans}") == [["none", "sure", "unsure"]] * 3
    of_all = ["half", "none", "sure", "unsure"]
    alone = f"--input={tmp_path / 'half.nii.gz'}"
    assert told(alone, "--overwrite") == [["half"], ["half"], of_all]
    assert "in which order to correct 1 image\n" in capsys.readouterr().out
    (tmp_path / "half.nii.gz").rename(scans / "half.nii.gz")
    assert told(f"--input={scans}", "--resume") == [of_all] * 3


def test_a_corrected_label_is_not_replaced_without_being_told(
    organs, scans, tmp_path, capsys, monkeypatch
):
    output, words = tmp_path / "out", [f"--model={organs}", f"--input={scans}", "--masks"]
    words += [f"--output={output}", "--output_format=nii.gz"]
    corrected, mask = output / "half.nii.gz", output / "masks" / "liver" / "half.nii.gz"

    def correct():
        sitk.WriteImage(sitk.ReadImage(str(corrected)) * 3, str(corrected))
        return corrected.read_bytes()

    running.call("predict", *words)
    by_hand = correct()
    running.call("predict", *words, "--resume")  # of the same model it stays
    assert corrected.read_bytes() == by_hand
    monkeypatch.setattr(origins, "of_model", lambda *_: "of round 2")
    stamp = mask.stat().st_mtime_ns
    with pytest.raises(SystemExit):
        running.call("predict", *words, "--resume")
    error = capsys.readouterr().err
    assert f"error: {corrected}: was changed since it was written, by hand perhaps, and is" in error
    assert "(1 of 12 results are such); expected it to be moved away, or --overwrite," in error
    assert corrected.read_bytes() == by_hand and mask.stat().st_mtime_ns == stamp
    corrected.rename(tmp_path / "half.nii.gz")
    running.call("predict", *words, "--resume")
    assert corrected.exists() and corrected.read_bytes() != by_hand
    correct()
    running.call("predict", *words, "--overwrite")
    assert corrected.read_bytes() != by_hand
    # A record of before knows no digest.
    record = output / origins.NAME
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    assert sum("written" in line for line in lines) == 3 * 4 and len(lines) == 3 * 12
    for line in lines:
        line.pop("written", None)
    record.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    correct()
    monkeypatch.setattr(origins, "of_model", lambda *_: "of round 3")
    running.call("predict", *words, "--resume")
    assert corrected.read_bytes() != by_hand


def test_slices_are_those_of_the_file(organs, tmp_path):
    """Stored from head to foot, the slice is counted from the head."""
    image = image_of(scene(0.7, 0), [1, 0, 0, 0, 1, 0, 0, 0, -1])
    sitk.WriteImage(image[:, :, 1:], str(tmp_path / "a.nii.gz"))
    words = [f"--model={organs}", f"--input={tmp_path / 'a.nii.gz'}", "--uncertainty", "--rank"]
    running.call("predict", *words, f"--output={tmp_path / 'out'}")
    (row,) = rows(tmp_path / "out" / "rank.csv")
    assert row["slice"] == "1"


def test_segmentations_of_slicer_with_the_order(organs, scans, tmp_path):
    output = tmp_path / "out"
    words = [f"--model={organs}", f"--input={scans}", f"--output={output}", "--uncertainty"]
    running.call("predict", *words, "--rank", "--output_format=seg_nrrd", "--probabilities")
    names = {path.relative_to(output).as_posix() for path in output.rglob("*half*")}
    assert names == {
        "half.seg.nrrd",
        "rank/half.csv",
        "uncertainty/half.nii.gz",
        "probabilities/liver/half.nii.gz",
        "probabilities/left kidney/half.nii.gz",
    }
    assert rows(output / "rank.csv")[1]["file"] == "half.seg.nrrd"
    _, voxels = labels.read(output / "unsure.seg.nrrd", 3, KNOWN)
    np.testing.assert_array_equal(voxels, label())
    described = (output / "itk_snap_labels.txt").read_text().splitlines()
    assert [line.split(maxsplit=7) for line in described if not line.startswith("#")] == [
        ["0", "0", "0", "0", "0", "0", "0", '"Clear Label"'],
        ["1", "230", "159", "0", "1", "1", "1", '"liver"'],
        ["3", "86", "180", "233", "1", "1", "1", '"left kidney"'],
    ]


def test_the_mask_of_a_picture_is_255_in_itk_snap_too(tmp_path):
    pictures = model(tmp_path / "model", "renderer", {1: "head"}, export.IMAGE)
    frame = np.full((8, 9), 200, np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(frame), str(tmp_path / "a.png"))
    annotating.write_descriptions(tmp_path / "a.txt", annotating.segments({1: "head"}), ["a.png"])
    annotating.write_descriptions(tmp_path / "b.txt", annotating.segments({1: "head"}), ["a.mha"])
    values = [
        [line.split()[0] for line in (tmp_path / name).read_text().splitlines() if line[0] != "#"]
        for name in ("a.txt", "b.txt")
    ]
    assert values == [["0", "1", "255"], ["0", "1"]]
    words = [f"--model={pictures}", f"--input={tmp_path / 'a.png'}", "--uncertainty", "--rank"]
    running.call("predict", *words, f"--output={tmp_path / 'out'}")
    (row,) = rows(tmp_path / "out" / "rank.csv")
    assert (row["file"], row["slice"]) == ("a.png", "")


@pytest.mark.parametrize(
    "words, refusal",
    [
        (["--rank"], "--rank: the order follows from how unsure the model is; expected --uncert"),
        (["--masks", "--output_format=seg_nrrd"], "of --output_format=seg_nrrd each structure is"),
    ],
)
def test_flags_that_do_not_go_together(organs, scans, tmp_path, capsys, words, refusal):
    where = [f"--model={organs}", f"--input={scans}", f"--output={tmp_path / 'out'}"]
    with pytest.raises(SystemExit):
        running.call("predict", *where, *words)
    assert refusal in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_regions_are_no_segments(scans, tmp_path, capsys):
    model(tmp_path / "model", regions={"liver": [1, 3], "left kidney": [3]})
    where = [f"--model={tmp_path / 'model'}", f"--input={scans}", f"--output={tmp_path / 'out'}"]
    with pytest.raises(SystemExit):
        running.call("predict", *where, "--output_format=seg_nrrd")
    assert "are regions, which overlap, and a segment has voxels of its own" in (
        capsys.readouterr().err
    )
