"""Prediction of folders: folders below, formats, what is there already, what goes wrong.

The model is a threshold.
"""

import csv
import json
import time

import helpers
import numpy as np
import pytest
import running
import SimpleITK as sitk
import tensorflow as tf

from tf_autoctx import configuration, export, metrics
from tf_autoctx.commands import client
from tf_autoctx.commands import predict as predict_command
from tf_autoctx.data import images
from tf_autoctx.systems.shared import origins, results

MHA = ("--output_format=mha",)


@pytest.fixture(scope="module")
def predict(tmp_path_factory):
    """Runs the command with flags; the model says where a voxel is above 100."""
    directory = tmp_path_factory.mktemp("model")

    def segment(image):
        return {
            "label": tf.cast(image > 100, tf.uint8),
            "probability": tf.cast(image > 100, tf.float32),
        }

    card = {"system": "fetal_head", "labels": {1: "head"}}
    export.write(directory, export.Exported({"serving_default": segment}, {}, card))

    def run(source, output, *arguments):
        where = (f"--model={directory}", f"--input={source}", f"--output={output}")
        running.call("predict", *where, *arguments)

    return run


@pytest.fixture
def refused(predict, capsys):
    """Runs the command, which ends in one sentence: that, and all that it printed to stderr."""

    def run(told, *arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            predict(*arguments)
        error = capsys.readouterr().err
        last = error.splitlines()[-1]
        assert ended.value.code == 1 and last.startswith("error: ") and told in last
        return error

    return run


@pytest.fixture
def scans(tmp_path):
    """Folder with one/a.mha, two/a.nrrd and b.nii.gz."""
    for seed, name in enumerate(("one/a.mha", "two/a.nrrd", "b.nii.gz")):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        voxels = np.random.default_rng(seed).integers(0, 200, (5, 6, 7)).astype(np.uint8)
        images.write(tmp_path / "in" / name, sitk.GetImageFromArray(voxels))
    return tmp_path / "in"


def files(folder):
    """Results in a folder and below; hidden files are no results."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("[!.]*.*"))


def test_results_lie_in_the_same_folders(predict, scans):
    predict(scans, scans / "out", "--output_format=mha", "--masks")
    names = ["b.mha", "one/a.mha", "two/a.mha"]
    assert files(scans / "out") == sorted([*names, *(f"masks/{name}" for name in names)])
    for name, source in (
        ("one/a.mha", "one/a.mha"),
        ("two/a.mha", "two/a.nrrd"),
        ("b.mha", "b.nii.gz"),
    ):
        expected = images.read(scans / source).array > 100
        np.testing.assert_array_equal(images.read(scans / "out" / name).array, expected)
        np.testing.assert_array_equal(images.read(scans / "out" / "masks" / name).array, expected)


def test_resume_writes_what_is_missing_and_nothing_else(predict, refused, scans, capsys):
    out = scans / "out"  # among the images, whose results are no images
    predict(scans, out, "--probabilities")
    by_hand = sitk.ReadImage(out / "one" / "a.nii.gz") * 0
    images.write(out / "one" / "a.nii.gz", by_hand)
    (out / "probabilities" / "one" / "a.nii.gz").unlink()
    (out / "b.nii.gz").unlink()
    stamp = (out / "two" / "a.nii.gz").stat().st_mtime_ns
    refused("is there already; give --resume", scans, out, "--probabilities")
    assert not (out / "b.nii.gz").exists()
    predict(scans, out, "--probabilities", "--resume")
    assert "1 of 3 images are done already" in capsys.readouterr().out
    assert len(files(out)) == 6 and (out / "two" / "a.nii.gz").stat().st_mtime_ns == stamp
    assert not images.read(out / "one" / "a.nii.gz").array.any()
    assert images.read(out / "probabilities" / "one" / "a.nii.gz").array.any()
    predict(scans, out, "--overwrite")
    assert images.read(out / "one" / "a.nii.gz").array.any()


def test_a_bad_image_does_not_stop_the_others(refused, scans, tmp_path):
    (scans / "one" / "a.mha").write_bytes(b"ObjectType = Image")
    error = refused("1 of 3 images failed; --resume", scans, tmp_path / "out")
    assert files(tmp_path / "out") == ["b.nii.gz", "two/a.nii.gz"]
    assert "one/a.mha: cut off or damaged" in error


def test_errors_are_told_in_the_order_of_the_images(refused, scans, tmp_path, monkeypatch):
    """A result that cannot be written is the fault of one image, and no result is noted."""
    helpers.in_other_processes(monkeypatch, "refuse_at", "out/b.nii.gz")
    (scans / "one" / "a.mha").write_bytes(b"ObjectType = Image")
    error = refused("2 of 3 images failed; --resume", scans, tmp_path / "out")
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert "b.nii.gz: refused" in lines[0] and "one/a.mha: cut off" in lines[1]
    assert files(tmp_path / "out") == ["two/a.nii.gz"]
    noted = (tmp_path / "out" / ".made_from").read_text().splitlines()
    assert [json.loads(line)["results"] for line in noted] == [["two/a.nii.gz"]]


def test_images_are_read_and_written_by_other_processes(predict, scans, tmp_path, monkeypatch):
    for name in ("_load", "write", "rounded"):
        monkeypatch.delattr(images, name)
    predict(scans, tmp_path / "out", "--probabilities", "--masks")
    assert len(files(tmp_path / "out")) == 9


def test_a_process_that_ends_as_it_writes_is_told_with_the_result(
    refused, scans, tmp_path, monkeypatch
):
    helpers.in_other_processes(monkeypatch, "end_at", "out/one/a")
    out = tmp_path / "out"
    error = refused("1 of 3 images failed; --resume", scans, out, "--masks")
    assert (
        f"error: {out}/one/a.nii.gz: ended the process that wrote it, for lack of memory perhaps; "
        "expected enough memory and disk space for it.\n"
    ) in error
    assert len(files(out)) == 5 and "masks/one/a.nii.gz" in files(out)


def test_what_is_written_is_noted_before_the_next_image_is_done(
    predict, scans, tmp_path, monkeypatch, capsys
):
    """A kill in the midst of the third image leaves two, which another model makes anew."""
    out, segment, images_seen = tmp_path / "out", results.Results.segmented, []

    def noted():
        lines = (out / ".made_from").read_text().splitlines() if images_seen[1:] else ()
        return [name for line in lines for name in json.loads(line)["results"]]

    def stopped(self, path, *arguments):
        images_seen.append(path)
        until = time.monotonic() + 20
        while len(images_seen) == 3:
            if len(noted()) == 4:
                raise KeyboardInterrupt
            assert time.monotonic() < until
            time.sleep(0.01)
        return segment(self, path, *arguments)

    with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, SystemExit)):
        patch.setattr(results.Results, "segmented", stopped)
        predict(scans, out, "--probabilities")
    assert len(images_seen) == 3 and sorted(noted()) == files(out)
    capsys.readouterr()
    predict(scans, out, "--probabilities", "--resume")
    assert "2 of 3 images are done already" in capsys.readouterr().out
    monkeypatch.setattr(origins, "of_model", lambda *_: "another")
    predict(scans, out, "--probabilities", "--resume")
    assert "0 of 3 images are done already" in capsys.readouterr().out


def test_labels_and_masks_are_always_compressed(refused, scans, tmp_path):
    refused("--nocompressed: labels and", scans, tmp_path / "out", "--masks", "--nocompressed")
    assert not (tmp_path / "out").exists()


def test_both_ways_to_predict_say_alike_what_a_written_probability_is():
    ours, clients = (
        configuration.rules(kind)["probabilities"].help
        for kind in (predict_command.Prediction, client.Client)
    )
    assert ours == clients and "rounded" in ours


def test_probabilities_that_are_not_compressed(predict, scans, tmp_path):
    for name in ("packed", "plain"):
        wish = "--compressed" if name == "packed" else "--nocompressed"
        predict(scans / "b.nii.gz", tmp_path / name, "--probabilities", wish)
    assert files(tmp_path / "packed") == ["b.nii.gz", "probabilities/b.nii.gz"]
    assert files(tmp_path / "plain") == ["b.nii.gz", "probabilities/b.nii"]
    packed, plain = (
        images.read(tmp_path / name).array
        for name in ("packed/probabilities/b.nii.gz", "plain/probabilities/b.nii")
    )
    np.testing.assert_array_equal(packed, images.rounded(plain))
    predict(scans / "b.nii.gz", tmp_path / "mha", "--probabilities", "--nocompressed", *MHA)
    assert b"CompressedData = False" in (tmp_path / "mha/probabilities/b.mha").read_bytes()


def test_written_probabilities_are_rounded(tmp_path, scans):
    """To ten bits, such that they are above a half where the label is 1."""

    def segment(image):
        probability = tf.sigmoid((image - 100) / 30)
        return {"label": tf.cast(probability > 0.5, tf.uint8), "probability": probability}

    card = {"system": "fetal_head", "labels": {1: "head"}, "orientation": images.ORIENTATION}
    export.write(tmp_path / "m", export.Exported({"serving_default": segment}, {}, card))
    where = (f"--model={tmp_path / 'm'}", f"--input={scans / 'b.nii.gz'}")
    running.call("predict", *where, f"--output={tmp_path / 'out'}", "--probabilities")
    voxels = images.read(scans / "b.nii.gz").array.astype(np.float32)
    label, probability = (
        images.read(tmp_path / "out" / name).array
        for name in ("b.nii.gz", "probabilities/b.nii.gz")
    )
    exact = 1 / (1 + np.exp((100 - voxels) / 30))
    np.testing.assert_allclose(probability, exact, rtol=1 / 2040)
    assert not np.any(probability.view(np.uint32) & 0x1FFF) and np.any(probability != exact)
    np.testing.assert_array_equal(probability > 0.5, label)
    plain = ("--probabilities", "--nocompressed", "--overwrite")
    running.call("predict", *where, f"--output={tmp_path / 'out'}", *plain)
    exactly = images.read(tmp_path / "out" / "probabilities" / "b.nii").array
    np.testing.assert_allclose(exactly, exact, rtol=1e-5)
    assert np.any(exactly != probability)


@pytest.mark.parametrize(
    "arguments, output, told",
    [
        (["--resume", "--overwrite"], "out", "expected one of them"),
        (["--output_format=png"], "out", "cannot hold the grid of a volume"),
        ([], "in", "is the folder of the input images"),
        (["--masks"], "out", "is a result of both"),
    ],
)
def test_mistakes(refused, scans, tmp_path, arguments, output, told):
    if arguments == ["--masks"]:
        (scans / "masks" / "one").mkdir(parents=True)
        (scans / "masks" / "one" / "a.mha").write_bytes((scans / "one" / "a.mha").read_bytes())
    refused(told, scans, tmp_path / output, *arguments)
    assert not (tmp_path / "out").exists()


def measured(folder):
    with open(folder / "measurements.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_what_is_measured_of_every_structure(tmp_path, caplog, capsys):
    """A disc of 20 mm radius in pixels of 0.5 mm, and a frame without mm."""
    y, x = np.indices((120, 120)) - 60
    disc = np.where(y**2 + x**2 <= 40**2, 200, 0).astype(np.uint8)

    def bright(image):
        return {"label": tf.cast(image > 100, tf.uint8)}

    card = {"system": "renderer", "labels": {1: "head"}, "precision": "float32"}
    model = export.Exported({"serving_default": bright}, {}, card, export.IMAGE)
    export.write(tmp_path / "model", model)
    (tmp_path / "in" / "below").mkdir(parents=True)
    image = sitk.GetImageFromArray(disc)
    image.SetSpacing((0.5, 0.5))
    sitk.WriteImage(image, str(tmp_path / "in" / "below" / "disc.mha"))
    images.write(tmp_path / "in" / "frame.png", sitk.GetImageFromArray(disc))
    words = (f"--model={tmp_path / 'model'}", f"--input={tmp_path / 'in'}", "--measurements")
    running.call("predict", *words, f"--output={tmp_path / 'out'}")
    with_mm, frame = measured(tmp_path / "out")
    assert (with_mm["image"], frame["image"]) == ("below/disc", "frame")
    assert float(with_mm["area_mm2"]) == pytest.approx(np.pi * 20**2, rel=0.01)
    assert float(with_mm["BPD_mm"]) == pytest.approx(40, abs=0.7)
    assert float(with_mm["HC_mm"]) == pytest.approx(2 * np.pi * 20, rel=0.02)
    assert float(frame["area_pixel"]) == pytest.approx(np.pi * 40**2, rel=0.01)
    assert frame["BPD_mm"] == "" and frame["structure"] == "head"
    assert "frame: its file gives no mm" in caplog.text and "disc: its" not in caplog.text
    # The mm of a frame may be given; they are not in place of a file's own.
    given = (*words, f"--output={tmp_path / 'mm'}", "--spacing=0.25,0.5")
    (tmp_path / "in" / "below" / "disc.mha").rename(tmp_path / "disc.mha")
    running.call("predict", *given)
    (in_mm,) = measured(tmp_path / "mm")
    assert float(in_mm["area_mm2"]) == pytest.approx(np.pi * 20 * 10, rel=0.01)
    assert float(in_mm["OFD_mm"]) == pytest.approx(40, abs=0.7)
    for flags, told in (
        ((f"--input={tmp_path / 'disc.mha'}",), "has a spacing of its own, 0.5 x 0.5 mm"),
        (("--spacing=1,1,1",), "--spacing=1.0,1.0,1.0: expected two numbers of mm"),
        (("--spacing=0,1",), "--spacing=0,1: expected numbers of mm above 0"),
    ):
        with pytest.raises(SystemExit):
            running.call("predict", *given, *flags, "--overwrite")
        assert told in capsys.readouterr().err
    (tmp_path / "disc.mha").rename(tmp_path / "in" / "below" / "disc.mha")
    # What is missing comes back, and an image that is gone with its table is gone.
    (tmp_path / "out" / "measurements" / "below" / "disc.csv").unlink()
    running.call("predict", *words, f"--output={tmp_path / 'out'}", "--resume")
    assert measured(tmp_path / "out") == [with_mm, frame]


def test_volumes_are_in_millilitres():
    mask = np.zeros((4, 5, 6))
    mask[1:3, 1:3, 1:4] = 1
    assert metrics.extent_of(mask, (2, 0.5, 10)) == {"volume_mL": pytest.approx(12 * 10 / 1000)}
    assert metrics.extent_of(mask) == {"volume_pixel": 12}
    assert metrics.extent_of(mask[1], (0.5, 2)) == {"area_mm2": 6}
