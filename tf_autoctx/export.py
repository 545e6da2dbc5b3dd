"""A SavedModel that TensorFlow's C++ loader, and so TensorFlow Serving, can run; stock ops alone.

Every signature has a twin for clients that hold arrays rather than numbers in JSON: `serving_bytes`
beside `serving_default`, and NAME_bytes beside any other. It takes

  image_bytes: string (batch,), each an image's voxels as they lie in memory: little-endian, C
    order, no header.
  shape: int32, voxels along (depth, height, width), or (height, width), and the channels where the
    model takes several; one for all images, or one each: (batch, numbers of an image).
  dtype: string, of `DTYPES`; one for all images, or one each: (batch,). TensorFlow Serving's own
    batching and the row format of its REST interface know no input without a batch axis.

and returns OUTPUT_bytes, string (batch,), for every OUTPUT of its twin: the voxels likewise, in the
dtype that the card names, without the channel where there is one only; and `shape` as it was given.
Images go through one at a time, so those of a request may be of different sizes, and it takes the
memory of one.

Every signature refuses an image with a voxel that is no finite float32, and outputs that are not
finite: a NaN passes through a network without a word, and its label is background.

Where images may have any spacing, every signature NAME has another, NAME_spacing, and
`serving_spacing` beside `serving_default`, with twins for bytes, which take

  spacing: float32, mm along (depth, height, width); one for all images, or one each: (batch, 3).

The signature `card` returns what a client should know of the model: `request`, int32 (batch,), any
numbers, -> `card`, string (batch,), the JSON of `CARD` once for each. It has an input, with a batch
axis, since a server that batches runs no signature without one.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import math
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from tf_autoctx import files
from tf_autoctx.errors import UserError
from tf_autoctx.files import replacing
from tf_autoctx.models import backends, layers

# A volume or a 2D image of any size; the name is that of the signatures' input.
VOLUME = tf.TensorSpec((None, None, None, None, 1), tf.float32, name="image")
IMAGE = tf.TensorSpec((None, None, None, 1), tf.float32, name="image")
SPACING = tf.TensorSpec(None, tf.float32, name="spacing")  # mm
AXES = {
    5: ["batch", "depth", "height", "width", "channel"],
    4: ["batch", "height", "width", "channel"],
}
DTYPES = ("uint8", "int8", "uint16", "int16", "int32", "float32", "float64")
CARD = pathlib.PurePath("assets.extra") / "model_card.json"
GRAPH = "saved_model.pb"
WARM_UP = pathlib.PurePath("assets.extra") / "tf_serving_warmup_requests"
WARM_UP_EDGE = 32  # voxels along each axis of a warm-up request
CARD_SIGNATURE = "card"
# Of the card, what is not served: the flags, whose paths are no business of a client, digests,
# which cannot be in a graph that they are of, and the lists of the weights and of the images that
# they have seen, which are long.
UNSERVED = ("config", "files", "weights", "seen")
# What `write` puts around the functions; another number makes another version of the same weights.
FORMAT = 2


@dataclasses.dataclass(frozen=True)
class Spaced:
    """The functions of an export for images of any spacing.

    Attributes:
      functions: {signature: function} of the same names: an image (1, *spatial, channels) and its
        `spacing`, mm along its axes -> the same outputs.
      spacing: of a warm-up request, whose size the functions are to leave as it is.
    """

    functions: Mapping[str, Callable[[Any, Any], dict[str, Any]]]
    spacing: Sequence[float]


@dataclasses.dataclass(frozen=True)
class Exported:
    """What goes into a SavedModel.

    Attributes:
      functions: {signature: function}, "serving_default" among them: a raw image of `spec` ->
        {name: tensor}; the names become the signature's outputs. The argument must be called
        `image`.
      networks: {name: Keras model} that they run, with all their variables, which the card lists
        in their order under "weights": {network: {name of `layers.named_weights`: shape}}.
      card: JSON-like dict of what a client should know; becomes the file `CARD` and, but for
        `UNSERVED`, the signature `CARD_SIGNATURE`, with "fingerprint" (of weights and
        configuration) and "signatures"; "inputs" and "outputs" may describe these by name, and get
        dtype, shape and axes.
      spec: of the images, see `spec_of`.
      configuration: JSON-like, whatever besides the weights makes the functions what they are.
      spaced: the functions for images of any spacing; None: it is not asked for.
    """

    functions: Mapping[str, Callable[[Any], dict[str, Any]]]
    networks: Mapping[str, keras.Model]
    card: Mapping[str, Any]
    spec: tf.TensorSpec = VOLUME
    configuration: Any = None
    spaced: Spaced | None = None


def spec_of(dimensions: int, channels: int = 1) -> tf.TensorSpec:
    """Of images of 3 or 2 dimensions and so many channels: `VOLUME` or `IMAGE` with them."""
    one = VOLUME if dimensions == 3 else IMAGE
    return tf.TensorSpec((*one.shape[:-1], channels), one.dtype, one.name)


def write(directory: str | pathlib.Path, exported: Exported) -> pathlib.Path:
    """Writes a SavedModel as a new version, unless the newest one is the very same.

    The version is one more than the highest that is there, and its folder appears whole or not at
    all: until then its name is no number, which a server that watches the folder passes over.

    Weights stay variables. Frozen into the graph as constants they are not faster: USegNet-DS-HAS
    at the paper's widths on 32x24x40 voxels took 0.277 s of one core with variables and 0.279 s
    with constants, in bfloat16 0.152 and 0.151 s (medians of 9 alternating runs); and every
    signature would hold a copy.

    Args:
      directory: of all versions, such as `run/saved_model`.
      exported: the functions that become signatures, and what they run.

    Returns:
      Folder of the version.
    """
    networks = exported.networks
    fingerprint = _fingerprint(networks.values(), exported.configuration)
    last = newest(directory)
    if last and read_card(last).get("fingerprint") == fingerprint and damaged(last) is None:
        return last
    # keras.export.ExportArchive would trace every layer a second time, which no server calls.
    module = tf.Module()
    named = {name: layers.named_weights(network) for name, network in networks.items()}
    module.weights = [w.value for of_network in named.values() for w in of_network.values()]
    graphs, described = _graphs(exported)
    card = {**exported.card, **described, "fingerprint": fingerprint}
    card["weights"] = {
        name: {key: list(w.shape) for key, w in of_network.items()}
        for name, of_network in named.items()
    }
    graphs[CARD_SIGNATURE] = _served_card(card)
    highest = max((int(path.name) for path in versions(directory)), default=0)
    version = pathlib.Path(directory) / str(highest + 1)
    with replacing(version, keep=True) as partial:  # never in place of another process's version
        try:
            tf.saved_model.save(module, str(partial), signatures=graphs)
        except tf.errors.OpError as error:
            reason = type(error).__name__
            raise OSError(f"the SavedModel could not be written ({reason})") from error
        (partial / CARD).parent.mkdir()
        card["files"] = {
            str(file.relative_to(partial)): files.digest(file) for file in _files(partial)
        }
        (partial / CARD).write_text(json.dumps(card, indent=1) + "\n")
        _write_warm_up(partial / WARM_UP, exported)
    return version


def _graphs(exported: Exported) -> tuple[dict[str, Any], dict[str, Any]]:
    """{signature: graph}, those for bytes among them, and what the card says of them."""
    spec = exported.spec
    graphs: dict[str, Any] = {}
    signatures: dict[str, dict[str, list[str]]] = {}
    outputs: dict[str, Any] = {}
    of_spacing = exported.spaced.functions if exported.spaced else {}
    given: dict[str, Any] = {
        **exported.functions,
        **{spaced(name): _each(function, spec) for name, function in of_spacing.items()},
    }
    inputs = [spec, *([SPACING] if of_spacing else [])]
    for signature, function in given.items():
        taken = inputs if signature not in exported.functions else [spec]
        of_bytes_spec = [*_bytes_spec(), *taken[1:]]
        # Concrete, since saving would trace a tf.function once more.
        checked = tf.function(_checked(function), input_signature=taken, autograph=False)
        graph = checked.get_concrete_function()
        of_bytes = tf.function(
            _of_bytes(graph, spec), input_signature=of_bytes_spec, autograph=False
        )
        graphs |= {signature: graph, twin(signature): of_bytes.get_concrete_function()}
        output = graph.structured_outputs
        signatures[signature] = {
            "inputs": [tensor.name for tensor in taken],
            "outputs": list(output),
        }
        signatures[twin(signature)] = {
            "inputs": [tensor.name for tensor in of_bytes_spec],
            "outputs": [*(f"{name}_bytes" for name in output), "shape"],
        }
        outputs |= output
    signatures[CARD_SIGNATURE] = {"inputs": ["request"], "outputs": ["card"]}
    told, results = (exported.card.get(kind, {}) for kind in ("inputs", "outputs"))
    order = "little-endian, C order, axes as above but for batch and for a channel that is alone"
    described = {
        "inputs": {
            tensor.name: _described(tensor) | dict(told.get(tensor.name, {})) for tensor in inputs
        },
        "outputs": {
            name: _described(x) | dict(results.get(name, {})) for name, x in outputs.items()
        },
        "signatures": signatures,
        "bytes": {"dtypes": DTYPES, "order": order},
    }
    return graphs, described


def newest(directory: str | pathlib.Path) -> pathlib.Path | None:
    """The folder of the highest whole version in the folder of all versions; None where there is
    none. Versions above it that are not whole are told."""
    for version in reversed(versions(directory)):
        if (version / GRAPH).exists():
            return version
        logging.warning(
            "%s: no SavedModel, as %s is missing; the version before is taken. Delete the folder, "
            "since a server would try to load it.",
            version,
            GRAPH,
        )
    return None


def versions(directory: str | pathlib.Path) -> list[pathlib.Path]:
    """The folders of all versions, ascending, whole or not."""
    paths = [path for path in pathlib.Path(directory).glob("[0-9]*") if path.name.isdecimal()]
    return sorted(paths, key=lambda path: int(path.name))


def read_card(version: pathlib.Path) -> dict[str, Any]:
    """The card of a version; empty where it cannot be read."""
    try:
        card = files.read_json(version / CARD, "a model card")
    except (OSError, UserError):
        return {}
    return card if isinstance(card, dict) else {}


def damaged(version: pathlib.Path) -> pathlib.Path | None:
    """A file of a SavedModel that is not what was written, as its card tells; None: there is none,
    or the card is of an earlier release."""
    written = read_card(version).get("files")
    for name, sha256 in written.items() if isinstance(written, dict) else ():
        file = version / name
        if not file.exists() or files.digest(file) != sha256:
            return file
    return None


def require_whole(version: pathlib.Path) -> None:
    """Requires a SavedModel of which no file is `damaged`.

    Raises:
      UserError: one is.
    """
    if file := damaged(version):
        raise UserError(
            f"{file}: cut short, damaged or missing; delete the folder {version} and export it "
            "again, which the training command does when it is run again."
        )


def read_weights(version: pathlib.Path) -> dict[str, dict[str, np.ndarray]]:
    """{network: {name: array}} of the weights of a version, as its card lists them.

    Raises:
      UserError: see `require_whole`; the card lists none, as those of earlier releases.
    """
    require_whole(version)
    listed = read_card(version).get("weights")
    if not isinstance(listed, dict) or not listed:
        raise UserError(
            f"{version}: its card lists no weights, as it is of an earlier release; expected a run "
            "folder, or a SavedModel that is exported again, which the training command does when "
            "it is run again."
        )
    reader = tf.train.load_checkpoint(str(version / "variables" / "variables"))
    numbers = itertools.count()
    return {
        network: {
            key: reader.get_tensor(f"weights/{next(numbers)}/.ATTRIBUTES/VARIABLE_VALUE")
            for key in keys
        }
        for network, keys in listed.items()
    }


def _files(version: pathlib.Path) -> list[pathlib.Path]:
    """What a server needs of a SavedModel."""
    return [version / GRAPH, *sorted((version / "variables").iterdir())]


def _fingerprint(networks: Iterable[keras.Model], configuration: Any) -> str:
    digest = hashlib.sha256(json.dumps([FORMAT, configuration], sort_keys=True).encode())
    for network in networks:
        for weights in network.get_weights():
            digest.update(f"{weights.dtype}{weights.shape}".encode())
            digest.update(np.ascontiguousarray(weights).data)
    return digest.hexdigest()


def _each(
    function: Callable[[Any, Any], dict[str, Any]], spec: tf.TensorSpec
) -> Callable[[Any, Any], dict[str, Any]]:
    """A function of an image and its spacing for images of one size, each of its own spacing."""
    dimensions = spec.shape.rank - 2
    alone = tf.TensorSpec((1, *spec.shape[1:]), spec.dtype), tf.TensorSpec((dimensions,))
    once = tf.function(function, input_signature=alone, autograph=False).get_concrete_function()

    def of_images(image: tf.Tensor, spacing: tf.Tensor) -> dict[str, Any]:
        expected = f"spacing: expected {dimensions} numbers of mm above 0"
        edges = _one_each(spacing, (dimensions,), image, expected)
        possible = tf.reduce_all(tf.math.is_finite(edges) & (edges > 0))
        with tf.control_dependencies([tf.debugging.Assert(possible, [f"{expected}, not", edges])]):
            edges = tf.identity(edges)
        outputs = tf.map_fn(
            lambda one: {name: x[0] for name, x in once(one[0][None], one[1]).items()},
            (image, edges),
            fn_output_signature={
                name: tf.TensorSpec(x.shape[1:], x.dtype)
                for name, x in once.structured_outputs.items()
            },
            parallel_iterations=1,  # the memory of one image
        )
        return dict(outputs)

    return of_images


def _checked(function: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """The function, of images and with outputs that are finite; else its graph stops."""
    of_image = "voxels that are NaN or infinite as float32; expected finite numbers."
    of_output = "values that are NaN or infinite; expected an image such as those of the training."

    def checked(image: tf.Tensor, *spacing: tf.Tensor) -> dict[str, Any]:
        outputs = function(_finite("image", image, of_image), *spacing)
        return {
            name: _finite(name, x, of_output) if x.dtype.is_floating else x
            for name, x in outputs.items()
        }

    return checked


def _finite(name: str, x: tf.Tensor, told: str) -> tf.Tensor:
    """A tensor, where all its values are finite; else the graph stops and says how many are not.

    It costs one pass over the values, and a byte each while it lasts.
    """
    finite = tf.math.is_finite(x)

    def refuse() -> tf.Operation:
        count = tf.strings.as_string(tf.math.count_nonzero(~finite))
        return tf.debugging.Assert(False, [tf.strings.join([f"{name} has ", count, f" {told}"])])

    with tf.control_dependencies([tf.cond(tf.reduce_all(finite), tf.no_op, refuse)]):
        return tf.identity(x)


def _served_card(card: Mapping[str, Any]) -> Any:
    """The graph of `CARD_SIGNATURE`."""
    served = {key: value for key, value in card.items() if key not in UNSERVED}
    text = json.dumps(served)

    def card_of(request: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"card": tf.fill(tf.shape(request), text)}

    spec = tf.TensorSpec((None,), tf.int32, name="request")
    return tf.function(card_of, input_signature=[spec], autograph=False).get_concrete_function()


def _described(tensor: Any) -> dict[str, Any]:
    """What a card says of a signature's input or output; the axes that are free are null."""
    if tensor.shape.rank is None:
        return {"dtype": tensor.dtype.name}
    return {
        "dtype": tensor.dtype.name,
        "shape": list(tensor.shape),
        "axes": AXES[tensor.shape.rank],
    }


def _write_warm_up(path: pathlib.Path, exported: Exported) -> None:
    """A request for every signature, which TensorFlow Serving runs before it shows a version."""
    try:
        from tensorflow_serving.apis import predict_pb2, prediction_log_pb2
    except ImportError:
        logging.warning(
            "No warm-up requests for TensorFlow Serving: install tf_autoctx[serving] to have them "
            "written."
        )
        return
    spec, of_spacing = exported.spec, exported.spaced
    size = [WARM_UP_EDGE] * (spec.shape.rank - 2) + _channels(spec)
    image = np.random.default_rng(0).integers(0, 256, size, np.uint8)
    requests: dict[str, dict[str, Any]] = {}
    for signature in exported.functions:
        batch = np.reshape(image, (1, *size[: spec.shape.rank - 2], spec.shape[-1]))
        requests[signature] = {spec.name: batch.astype(np.float32)}
        # With a batch axis each: a server that batches would fail to load a model whose warm-up it
        # cannot batch.
        requests[twin(signature)] = {
            "image_bytes": [image.tobytes()],
            "shape": np.array([size], np.int32),
            "dtype": [image.dtype.name],
        }
    if of_spacing:
        edges = {"spacing": np.array([of_spacing.spacing], np.float32)}
        for signature in of_spacing.functions:
            requests[spaced(signature)] = requests[signature] | edges
            requests[twin(spaced(signature))] = requests[twin(signature)] | edges
    requests[CARD_SIGNATURE] = {"request": np.zeros([1], np.int32)}
    with tf.io.TFRecordWriter(str(path)) as file:
        for signature, inputs in requests.items():
            request = predict_pb2.PredictRequest()
            request.model_spec.signature_name = signature
            for name, value in inputs.items():
                request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
            log = prediction_log_pb2.PredictionLog(
                predict_log=prediction_log_pb2.PredictLog(request=request)
            )
            file.write(log.SerializeToString())


def twin(signature: str) -> str:
    """Name of the signature for bytes beside another."""
    return "serving_bytes" if signature == "serving_default" else f"{signature}_bytes"


def spaced(signature: str) -> str:
    """Name of the signature for images of any spacing beside another."""
    return "serving_spacing" if signature == "serving_default" else f"{signature}_spacing"


def _bytes_spec() -> list[tf.TensorSpec]:
    return [
        tf.TensorSpec((None,), tf.string, name="image_bytes"),
        tf.TensorSpec(None, tf.int32, name="shape"),
        tf.TensorSpec(None, tf.string, name="dtype"),
    ]


def _of_bytes(function: Any, spec: tf.TensorSpec) -> Callable[..., dict[str, tf.Tensor]]:
    """The twin for bytes of a concrete function of images of `spec`."""
    dimensions, channels = spec.shape.rank - 2, _channels(spec)
    numbers = dimensions + len(channels)

    def of_image(
        image_bytes: tf.Tensor, shape: tf.Tensor, dtype: tf.Tensor, *spacing: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        image = backends.written_once(_decoded, image_bytes, shape, dtype)
        if channels:
            fits = tf.equal(shape[-1], channels[0])
            told = ["image_bytes holds", shape[-1], f"channels; expected {channels[0]}."]
            with tf.control_dependencies([tf.debugging.Assert(fits, told)]):
                image = tf.identity(image)
            image.set_shape([None] * dimensions + channels)
        batch = image[None] if channels else image[None, ..., None]
        output = function(batch, *(edges[None] for edges in spacing))
        return {f"{name}_bytes": _raw(x) for name, x in output.items()}

    def of_images(
        image_bytes: tf.Tensor, shape: tf.Tensor, dtype: tf.Tensor, *spacing: tf.Tensor
    ) -> dict[str, Any]:
        expected = f"shape: expected {numbers} integers"
        shapes = _one_each(shape, (numbers,), image_bytes, expected)
        dtypes = _one_each(dtype, (), image_bytes, "dtype: expected one string")
        mm = f"spacing: expected {dimensions} numbers of mm above 0"
        edges = [_one_each(given, (dimensions,), image_bytes, mm) for given in spacing]
        names = [f"{name}_bytes" for name in function.structured_outputs]
        outputs = tf.map_fn(
            lambda image: of_image(*image),
            (image_bytes, shapes, dtypes, *edges),
            fn_output_signature=dict.fromkeys(names, tf.string),
            parallel_iterations=1,  # the memory of one image
        )
        return outputs | {"shape": tf.identity(shape)}

    return of_images


def _channels(spec: tf.TensorSpec) -> list[int]:
    """What the shape of an image has at its end: nothing where there is one channel."""
    return [spec.shape[-1]] if spec.shape[-1] > 1 else []


def _one_each(
    value: tf.Tensor, inner: tuple[int, ...], images: tf.Tensor, expected: str
) -> tf.Tensor:
    """A value of shape (*inner) for all images, or (batch, *inner) for each -> (batch, *inner)."""
    batch = tf.shape(images)[0]
    count = math.prod(inner)
    fits = tf.reduce_any(tf.equal(tf.size(value), [count, count * batch]))
    told = [f"{expected}, or as many for each image, not", value]
    with tf.control_dependencies([tf.debugging.Assert(fits, told)]):
        return tf.broadcast_to(tf.reshape(value, (-1, *inner)), (batch, *inner))


def _decoded(image_bytes: tf.Tensor, shape: tf.Tensor, dtype: tf.Tensor) -> tf.Tensor:
    """The image of raw bytes as float32 of `shape`; the graph stops where they do not fit."""
    known = tf.equal(dtype, DTYPES)
    expected = f"; expected one of {', '.join(DTYPES)}."
    with tf.control_dependencies(
        [tf.debugging.Assert(tf.reduce_any(known), ["dtype is", dtype, expected])]
    ):
        number = tf.argmax(known, output_type=tf.int32)
    size = tf.gather([tf.as_dtype(name).size for name in DTYPES], number)
    needed = tf.reduce_prod(tf.cast(shape, tf.int64)) * tf.cast(size, tf.int64)
    held = tf.strings.length(image_bytes)
    fits = tf.logical_and(tf.reduce_all(shape > 0), tf.equal(tf.cast(held, tf.int64), needed))
    told = ["image_bytes holds", held, "bytes; expected", needed, "for a shape of", shape]
    told += ["and the dtype", dtype]
    with tf.control_dependencies([tf.debugging.Assert(fits, told, summarize=3)]):
        image_bytes = tf.identity(image_bytes)

    def read_as(name: str) -> tf.Tensor:
        return tf.cast(tf.io.decode_raw(image_bytes, tf.as_dtype(name)), tf.float32)

    readers = [functools.partial(read_as, name) for name in DTYPES]
    return tf.reshape(tf.switch_case(number, readers), shape)


def _raw(x: tf.Tensor) -> tf.Tensor:
    """The values of a tensor as they lie in memory: a tensor is serialized with them at its end."""
    size = tf.size(x, tf.int64) * x.dtype.size
    return tf.strings.substr(tf.io.serialize_tensor(x), -size, size)
