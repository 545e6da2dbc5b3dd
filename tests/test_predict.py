"""Prediction of folders: folders below, formats, what is there already, what goes wrong.

The model is a threshold.
"""

import numpy as np
import pytest
import running
import SimpleITK as sitk
import tensorflow as tf

from tf_autoctx import export
from tf_autoctx.data import images


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
    export.write(directory, export.Exported({"serving_default": segment}, [], card))

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
