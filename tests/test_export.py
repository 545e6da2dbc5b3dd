"""SavedModels: versions, bytes in and out, and what a server reads beside the graph."""

import dataclasses
import json
import pathlib
import sys

import cpp_loader
import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import prediction_log_pb2

from tf_autoctx import export
from tf_autoctx.errors import UserError
from tf_autoctx.systems.shared import prediction


@pytest.fixture(scope="module")
def network():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [keras.Input((None, None, None, 1)), keras.layers.Conv3D(2, 3, padding="same")]
    )


def functions(network):
    def segment(image):
        logits = network(image, training=False)
        return {"logits": logits, "label": tf.cast(logits[..., :1] > 0, tf.uint8)}

    def logits(image):
        return {"logits": network(image, training=False)}

    return {"serving_default": segment, "logits": logits}


def write(network, directory, **configuration):
    card = {"inputs": {"image": {"units": "HU"}}, "outputs": {"label": {"meaning": "of a test"}}}
    model = export.Exported(
        functions(network), {"network": network}, card, configuration=configuration
    )
    return export.write(directory, model)


@pytest.fixture(scope="module")
def version(network, tmp_path_factory):
    return write(network, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(version):
    loaded = cpp_loader.CppModel(version)
    yield loaded
    loaded.close()


def request(image, **changes):
    array = np.asarray(image)
    given = {
        "image_bytes": [array.tobytes()],
        "shape": np.array(array.shape, np.int32),
        "dtype": array.dtype.name,
    }
    return {
        name: value.encode() if isinstance(value, str) else value
        for name, value in (given | changes).items()
    }


@pytest.mark.parametrize("dtype", export.DTYPES)
def test_bytes_of_every_type_are_the_numbers_that_they_hold(model, network, dtype):
    info = np.iinfo(dtype) if np.dtype(dtype).kind in "iu" else np.finfo(np.float32)
    image = (
        np.random.default_rng(0)
        .uniform(max(info.min, -30_000), min(info.max, 30_000), (3, 4, 5))
        .astype(dtype)
    )
    answer = model("serving_bytes", request(image))
    expected = functions(network)["serving_default"](image[None, ..., None].astype(np.float32))
    assert set(answer) == {"logits_bytes", "label_bytes", "shape"}
    logits = np.frombuffer(answer["logits_bytes"][0], np.float32).reshape(3, 4, 5, 2)
    np.testing.assert_allclose(logits, expected["logits"][0], rtol=1e-5, atol=1e-3)
    assert answer["label_bytes"][0] == (logits[..., 0] > 0).astype(np.uint8).tobytes()
    np.testing.assert_array_equal(answer["shape"], [3, 4, 5])
    assert set(model("logits_bytes", request(image))) == {"logits_bytes", "shape"}


def bright_or_nan(image):
    """A toy whose probability overflows above 1e30."""
    probability = tf.square(image) * 0 + tf.sigmoid(image)
    return {"label": tf.cast(probability > 0.5, tf.uint8), "probability": probability}


@pytest.fixture(scope="module")
def unstable(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unstable")
    card = {
        "system": "multi_organ",
        "orientation": "LPS",
        "labels": {1: "b\u00f6dy"},
        "config": {"data_dir": "/home/anna/patients"},
    }
    model = export.Exported({"serving_default": bright_or_nan}, {}, card)
    loaded = cpp_loader.CppModel(export.write(folder, model))
    loaded.folder = folder
    yield loaded
    loaded.close()


@pytest.mark.parametrize(
    "value, told",
    [
        (
            np.nan,
            "image has 1 voxels that are NaN or infinite as float32; expected finite numbers.",
        ),
        (
            np.inf,
            "image has 1 voxels that are NaN or infinite as float32; expected finite numbers.",
        ),
        (1e39, "image has 1 voxels that are NaN or infinite as float32; expected finite numbers."),
        (
            1e30,
            "probability has 1 values that are NaN or infinite; expected an image such as those",
        ),
    ],
)
def test_a_nan_is_no_background(unstable, value, told):
    """Its label would be background, with success."""
    image = np.ones((2, 3, 4))
    assert unstable("serving_bytes", request(image))["label_bytes"] == [bytes([1] * 24)]
    image[1, 1, 1] = value
    with np.errstate(over="ignore"):
        plain = {"image": image[None, ..., None].astype(np.float32)}
    for signature, inputs in (("serving_bytes", request(image)), ("serving_default", plain)):
        with pytest.raises(RuntimeError) as refused:
            unstable(signature, inputs)
        assert f"assertion failed: [{told}" in str(refused.value)


@pytest.mark.parametrize(
    "value, told",
    [
        (np.nan, "scan.mha: 1 of 24 voxels are NaN, infinite or beyond 3.4e+38; expected finite"),
        (1e39, "scan.mha: 1 of 24 voxels are NaN, infinite or beyond 3.4e+38; expected finite"),
        (1e30, "scan.mha: probability has 1 values that are NaN or infinite; expected an image"),
    ],
)
def test_a_nan_is_no_background_for_predict(unstable, value, told):
    exported = prediction.load(unstable.folder)

    def of_run(image, spacing, wanted):
        return bright_or_nan(image)

    of_run.iterations = 0
    image = np.ones((2, 3, 4))
    for segmentor in (exported, dataclasses.replace(exported, predictor=of_run)):
        image[1, 1, 1] = 1
        assert segmentor(image, None, "scan.mha")["label"].all()
        image[1, 1, 1] = value
        with pytest.raises(UserError) as refused:
            segmentor(image, None, "scan.mha")
        assert str(refused.value).startswith(told)


def test_a_warning_of_an_image_that_shows_nothing(unstable, caplog):
    """Of a CT that is empty, that is all there is to say; of one of noise, that it is not in HU."""
    segmentor = prediction.load(unstable.folder)
    segmentor(np.full((2, 3, 4), 7), None, "scan.mha")
    assert caplog.messages == [
        "scan.mha: all voxels are 7, there is nothing to be seen in it; expected an image."
    ]
    caplog.clear()
    segmentor(np.arange(24).reshape(2, 3, 4), None, "scan.mha")
    assert len(caplog.messages) == 1 and "do not look like a CT in HU" in caplog.text


def test_the_card_is_served_but_for_the_flags(unstable):
    """As often as it is asked for: a server that batches wants an axis for that."""
    one, two = unstable("card", {"request": np.array([5, 6], np.int32)})["card"]
    assert one == two and b"anna" not in one
    card = json.loads(one)
    assert card["labels"] == {"1": "b\u00f6dy"} and len(card["fingerprint"]) == 64
    assert card["signatures"]["card"] == {"inputs": ["request"], "outputs": ["card"]}


def test_no_image_no_answer(model):
    answer = model("serving_bytes", request(np.zeros((3, 4, 5), np.uint8), image_bytes=[]))
    assert answer["label_bytes"].shape == answer["logits_bytes"].shape == (0,)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"dtype": "float16"}, "dtype is] [float16] [; expected one of uint8, int8, uint16"),
        (
            {"dtype": "int16"},
            "image_bytes holds] [60] [bytes; expected] [120] [for a shape of] [3 4 5]",
        ),
        ({"image_bytes": [b"\0" * 59]}, "image_bytes holds] [59] [bytes; expected] [60]"),
        ({"image_bytes": [b"\0" * 60, b""]}, "image_bytes holds] [0] [bytes; expected] [60]"),
        ({"shape": np.array([-3, -4, 5], np.int32)}, "for a shape of] [-3 -4 5]"),
        (
            {"shape": np.array([12, 5], np.int32)},
            "shape: expected 3 integers, or as many for each image, not] [12 5]",
        ),
        (
            {"shape": np.array(60, np.int32)},
            "shape: expected 3 integers, or as many for each image, not] [60]",
        ),
        ({"shape": np.array([[3, 4, 5]] * 2, np.int32)}, "shape: expected 3 integers"),
        ({"dtype": np.array([b"uint8", b"uint8"], object)}, "dtype: expected one string"),
    ],
)
def test_bytes_that_do_not_fit_are_refused(model, changes, words):
    with pytest.raises(RuntimeError) as refused:
        model("serving_bytes", request(np.zeros((3, 4, 5), np.uint8), **changes))
    assert words in str(refused.value)


def test_versions_only_grow_and_never_repeat_the_newest(network, tmp_path):
    assert export.newest(tmp_path / "none") is None
    assert write(network, tmp_path) == tmp_path / "1"
    stamp = (tmp_path / "1" / "saved_model.pb").stat().st_mtime_ns
    assert write(network, tmp_path) == tmp_path / "1"
    assert (tmp_path / "1" / "saved_model.pb").stat().st_mtime_ns == stamp
    assert write(network, tmp_path, precision="bfloat16") == tmp_path / "2"
    (tmp_path / "2").rename(tmp_path / "9")
    # The newest one is another, so this one must serve.
    assert write(network, tmp_path) == tmp_path / "10"
    other = keras.models.clone_model(network)
    other.set_weights([1 + weights for weights in network.get_weights()])
    assert write(other, tmp_path) == tmp_path / "11" == export.newest(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "10", "11", "9"]


def test_every_signature_is_traced_once(tmp_path):
    """Tracing is what an export's time goes to, and saving would do it again."""
    traced = []

    def function(image):
        traced.append(image.shape)
        return {"label": tf.cast(image > 0, tf.uint8)}

    export.write(tmp_path, export.Exported({"serving_default": function}, {}, {}))
    assert len(traced) == 1


def test_a_server_never_sees_half_a_model(network, tmp_path, monkeypatch):
    """Until it is whole the folder's name is no number; what fails goes away."""
    seen = []

    def fails(module, folder, signatures):
        pathlib.Path(folder).mkdir()
        seen.extend(path.name for path in tmp_path.iterdir())
        raise tf.errors.ResourceExhaustedError(None, None, "no space")

    monkeypatch.setattr(tf.saved_model, "save", fails)
    with pytest.raises(UserError, match="could not be written"):
        write(network, tmp_path)
    assert len(seen) == 1 and not seen[0][0].isdecimal() and not list(tmp_path.iterdir())


def test_the_card_describes_inputs_and_outputs(version):
    card = json.loads((version / export.CARD).read_text())
    axes = ["batch", "depth", "height", "width", "channel"]
    free = [None] * 4
    assert card["inputs"] == {
        "image": {"dtype": "float32", "shape": [*free, 1], "axes": axes, "units": "HU"}
    }
    assert card["outputs"] == {
        "logits": {"dtype": "float32", "shape": [*free, 2], "axes": axes},
        "label": {"dtype": "uint8", "shape": [*free, 1], "axes": axes, "meaning": "of a test"},
    }
    assert card["signatures"]["serving_bytes"] == {
        "inputs": ["image_bytes", "shape", "dtype"],
        "outputs": ["logits_bytes", "label_bytes", "shape"],
    }
    assert card["bytes"]["dtypes"] == list(export.DTYPES) and len(card["fingerprint"]) == 64


def test_warm_up_requests_run_every_signature(version, model):
    records = tf.data.TFRecordDataset(str(version / "assets.extra" / "tf_serving_warmup_requests"))
    called = []
    for record in records.as_numpy_iterator():
        request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
        called.append(request.model_spec.signature_name)
        assert model(
            called[-1], {name: tf.make_ndarray(value) for name, value in request.inputs.items()}
        )
    assert sorted(called) == sorted(model.signatures)


def test_without_the_extra_there_are_no_warm_up_requests_and_a_line_says_so(
    network, tmp_path, monkeypatch, caplog
):
    monkeypatch.setitem(sys.modules, "tensorflow_serving.apis", None)
    version = write(network, tmp_path)
    assert [path.name for path in (version / "assets.extra").iterdir()] == ["model_card.json"]
    assert "install tf_autoctx[serving]" in caplog.text


def test_a_folder_of_versions_stands_for_the_newest(network, tmp_path):
    for value in (1, 2):
        card = {"system": "fetal_head", "labels": {value: f"head {value}"}}
        model = export.Exported(functions(network), {"network": network}, card, configuration=value)
        export.write(tmp_path, model)
    assert prediction.load(tmp_path).labels == {2: "head 2"}
    assert prediction.load(tmp_path / "1").labels == {1: "head 1"}


def test_the_loader_says_what_tensorflow_says(version, model, tmp_path):
    image = np.zeros((1, 2, 2, 2, 1), np.float32)
    (tmp_path / "saved_model.pb").write_bytes((version / "saved_model.pb").read_bytes())
    without_variables = cpp_loader.CppModel(tmp_path)  # TensorFlow notices when it reads one
    with pytest.raises(RuntimeError, match="variable"):
        without_variables("serving_default", {"image": image})
    without_variables.close()
    (tmp_path / "saved_model.pb").write_bytes(
        saved_model_pb2.SavedModel(meta_graphs=[{}]).SerializeToString()
    )
    with pytest.raises(RuntimeError, match="serve"):
        cpp_loader.CppModel(tmp_path)
    with pytest.raises(RuntimeError, match="dtype is float64; expected float32"):
        model("serving_default", {"image": image.astype(np.float64)})
    with pytest.raises(KeyError, match="inputs are"):
        model("serving_default", {"volume": image})
