"""The package from Python: what `import tf_autoctx` has, and that it is lazy."""

import subprocess
import sys

import helpers
import numpy as np
import pytest
import tensorflow as tf

import tf_autoctx
from tf_autoctx import errors, export


def test_the_import_is_lazy():
    modules = helpers.modules_after("import tf_autoctx; tf_autoctx.load, tf_autoctx.score")
    assert "tf_autoctx" in modules
    assert not {"keras", "tensorflow", "numpy", "SimpleITK", "matplotlib"} & modules


def test_metrics_need_no_keras_and_models_do():
    modules = helpers.modules_after("import tf_autoctx; tf_autoctx.metrics.dice")
    assert "tf_autoctx.metrics" in modules and not {"keras", "tensorflow"} & modules
    code = "import tf_autoctx; tf_autoctx.models.usegnet.usegnet; tf_autoctx.losses.l2"
    assert {"tf_autoctx.models.usegnet", "keras"} <= helpers.modules_after(code)


def test_names():
    for name in tf_autoctx.__all__:
        assert getattr(tf_autoctx, name)
    with pytest.raises(AttributeError, match="module 'tf_autoctx' has no attribute 'nonsense'"):
        tf_autoctx.nonsense
    assert tf_autoctx.__version__.count(".") == 2


def test_quiet_start():
    """What TensorFlow's C++ side reports goes nowhere, unless the user says otherwise."""
    code = "import os, tf_autoctx; print(os.environ['TF_CPP_MIN_LOG_LEVEL'])"
    for given, shown in (({}, "2"), ({"TF_CPP_MIN_LOG_LEVEL": "0"}, "0")):
        command = [sys.executable, "-c", code]
        path = ":".join(filter(None, sys.path))
        done = subprocess.run(
            command, check=True, capture_output=True, text=True, env={"PYTHONPATH": path, **given}
        )
        assert done.stdout.strip() == shown


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory):
    """Folder of versions of a toy: above 100 is head."""

    def segment(image):
        probability = tf.sigmoid((image - 100) / 10)
        return {"label": tf.cast(image > 100, tf.uint8), "probability": probability}

    directory = tmp_path_factory.mktemp("model")
    card = {"system": "fetal_head", "labels": {1: "head"}, "spacing": [[1, 1, 1], [1, 1, 1]]}
    card["orientation"] = "LPS"
    export.write(directory, export.Exported({"serving_default": segment}, {}, card))
    return directory


def test_load_and_call(saved_model, caplog):
    model = tf_autoctx.load(saved_model)
    assert (model.labels, model.dimensions, model.iterations) == ({1: "head"}, 3, 0)
    voxels = np.random.default_rng(0).integers(0, 200, (5, 6, 7))
    result = model(voxels, (1, 1, 1))
    assert set(result) == {"label"} and result["label"].dtype == np.uint8
    np.testing.assert_array_equal(result["label"], voxels > 100)
    assert not caplog.text
    result = model(voxels, (1, 1, 2), "a.nii.gz", probabilities=True)
    assert "a.nii.gz: voxels of 1 x 1 x 2 mm" in caplog.text
    expected = 1 / (1 + np.exp((100 - voxels) / 10))
    np.testing.assert_allclose(result["probability"]["head"], expected, atol=1e-5)
    scores = tf_autoctx.score(result["label"], voxels > 100, (1, 1, 1), model.labels)
    assert scores["head"]["DSC_percent"] == 100


def test_what_cannot_be_loaded(saved_model, tmp_path):
    neither = (
        "neither config.json nor saved_model.pb; expected a run folder, a SavedModel folder or one"
    )
    with pytest.raises(errors.UserError, match=neither):
        tf_autoctx.load(tmp_path)
    with pytest.raises(errors.FieldError, match=r"^tile_size=32: .* is a SavedModel, in"):
        tf_autoctx.load(saved_model, tile_size=32)
    tf_autoctx.load(saved_model, tile_size=None)


def test_score_by_hand():
    """Two of three voxels overlap, 2 mm apart along x."""
    truth = np.zeros((3, 4, 8), np.uint8)
    truth[1, 1, 1:4] = 3
    truth[2, 3, 7] = 5
    prediction = np.roll(truth, 1, axis=2) * (truth != 5)
    prediction[prediction == 5] = 0
    scores = tf_autoctx.score(prediction, truth, (1.0, 1.0, 2.0), {3: "liver", 7: "spleen"})
    assert set(scores) == {"liver"}  # nobody has a spleen
    liver = scores["liver"]
    assert liver["DSC_percent"] == pytest.approx(200 / 3)
    assert liver["Jacc_percent"] == pytest.approx(50) and liver["Hdb_mm"] == 2
    assert liver["volume_mL"] == liver["truth_volume_mL"] == pytest.approx(3 * 2 / 1000)
    unnamed = tf_autoctx.score(prediction, truth)
    assert set(unnamed) == {"label 3", "label 5"} and unnamed["label 3"]["Hdb_pixel"] == 1
    assert unnamed["label 5"]["DSC_percent"] == 0
    assert tf_autoctx.score(0 * truth, 0 * truth) == {}


def test_score_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(2, 4\)|shape"):
        tf_autoctx.score(np.ones((2, 3), int), np.ones((2, 4), int))
    with pytest.raises(ValueError, match="spacing"):
        tf_autoctx.score(np.ones((2, 3), int), np.ones((2, 3), int), (1.0, 1.0, 1.0))
