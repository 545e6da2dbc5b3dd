"""predict.py on folders: folders below, formats, what is there already, what goes wrong. The model is a threshold."""

import numpy as np
import pytest
import running
import SimpleITK as sitk
import tensorflow as tf
from absl import flags
from absl.testing import flagsaver

from tf_autoctx import errors, export
from tf_autoctx.data import images


@pytest.fixture(scope="module")
def predict(tmp_path_factory):
    """Runs the script with flags; the model says where a voxel is above 100."""
    directory = tmp_path_factory.mktemp("model")

    def segment(image):
        return {
            "label": tf.cast(image > 100, tf.uint8),
            "probability": tf.cast(image > 100, tf.float32),
        }

    export.saved_model(
        {"serving_default": segment}, [], directory, {"system": "fetal_head", "labels": {1: "head"}}
    )
    with running.user_of_models("predict") as module:

        def run(source, output, *arguments):
            with flagsaver.flagsaver():
                flags.FLAGS(
                    [
                        "predict.py",
                        f"--model={directory}",
                        f"--input={source}",
                        f"--output={output}",
                        *arguments,
                    ]
                )
                module.main([])

        yield run


@pytest.fixture
def scans(tmp_path):
    """Folder with one/a.mha, two/a.nrrd and b.nii.gz."""
    for seed, name in enumerate(("one/a.mha", "two/a.nrrd", "b.nii.gz")):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        voxels = np.random.default_rng(seed).integers(0, 200, (5, 6, 7)).astype(np.uint8)
        images.write(sitk.GetImageFromArray(voxels), tmp_path / "in" / name)
    return tmp_path / "in"


def found(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))


def test_results_lie_in_the_same_folders(predict, scans):
    predict(scans, scans / "out", "--output_format=mha", "--masks")
    names = ["b.mha", "one/a.mha", "two/a.mha"]
    assert found(scans / "out") == sorted([*names, *(f"masks/{name}" for name in names)])
    for name, source in (
        ("one/a.mha", "one/a.mha"),
        ("two/a.mha", "two/a.nrrd"),
        ("b.mha", "b.nii.gz"),
    ):
        expected = images.array(images.read(scans / source)) > 100
        np.testing.assert_array_equal(images.array(images.read(scans / "out" / name)), expected)
        np.testing.assert_array_equal(
            images.array(images.read(scans / "out" / "masks" / name)), expected
        )


def test_resume_writes_what_is_missing_and_nothing_else(predict, scans, tmp_path, capsys):
    out = scans / "out"  # among the images, whose results are no images
    predict(scans, out, "--probabilities")
    by_hand = images.read(out / "one" / "a.nii.gz") * 0
    images.write(by_hand, out / "one" / "a.nii.gz")
    (out / "probabilities" / "one" / "a.nii.gz").unlink()
    (out / "b.nii.gz").unlink()
    stamp = (out / "two" / "a.nii.gz").stat().st_mtime_ns
    with pytest.raises(errors.UserError, match="is there already; give --resume"):
        predict(scans, out, "--probabilities")
    assert not (out / "b.nii.gz").exists()
    predict(scans, out, "--probabilities", "--resume")
    assert "1 of 3 images are done already" in capsys.readouterr().out
    assert len(found(out)) == 6 and (out / "two" / "a.nii.gz").stat().st_mtime_ns == stamp
    assert not images.array(images.read(out / "one" / "a.nii.gz")).any()
    assert images.array(images.read(out / "probabilities" / "one" / "a.nii.gz")).any()
    predict(scans, out, "--overwrite")
    assert images.array(images.read(out / "one" / "a.nii.gz")).any()


def test_a_bad_image_does_not_stop_the_others(predict, scans, tmp_path, capsys):
    (scans / "one" / "a.mha").write_bytes(b"ObjectType = Image")
    with pytest.raises(errors.UserError, match="1 of 3 images failed; --resume"):
        predict(scans, tmp_path / "out")
    assert found(tmp_path / "out") == ["b.nii.gz", "two/a.nii.gz"]
    assert "one/a.mha: not a readable image" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, output, told",
    [
        (["--resume", "--overwrite"], "out", "expected one of them"),
        (["--output_format=png"], "out", "cannot hold the grid of a volume"),
        ([], "in", "is the folder of the input images"),
        (["--masks"], "out", "is a result of both"),
    ],
)
def test_mistakes(predict, scans, tmp_path, arguments, output, told):
    if arguments == ["--masks"]:
        (scans / "masks" / "one").mkdir(parents=True)
        (scans / "masks" / "one" / "a.mha").write_bytes((scans / "one" / "a.mha").read_bytes())
    with pytest.raises(errors.UserError, match=told):
        predict(scans, tmp_path / output, *arguments)
    assert not (tmp_path / "out").exists()
