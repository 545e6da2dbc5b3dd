"""A SavedModel that TensorFlow's C++ loader, and so TensorFlow Serving, can run; stock ops alone.

Every signature has a twin for clients that hold arrays rather than numbers in JSON: `serving_bytes` beside
`serving_default`, and NAME_bytes beside any other. It takes

  image_bytes: string (batch,), each an image's voxels as they lie in memory: little-endian, C order, no header.
  shape: int32, voxels along (depth, height, width), or (height, width); one for all images, or one each: (batch, 3 or 2).
  dtype: string, of `DTYPES`; one for all images, or one each: (batch,). TensorFlow Serving's own batching and the row
    format of its REST interface know no input without a batch axis.

and answers OUTPUT_bytes, string (batch,), for every OUTPUT of its twin: the voxels likewise, in the dtype that the card
names, without the channel where there is one only; and `shape` as it was given. Images go through one at a time, so
those of a request may be of different sizes, and it takes the memory of one.
"""

import json
import pathlib

import keras
import tensorflow as tf

from tf_autoctx.files import replacing

# A volume or a 2D image of any size; the name is that of the signatures' input.
VOLUME = tf.TensorSpec((None, None, None, None, 1), tf.float32, name="image")
IMAGE = tf.TensorSpec((None, None, None, 1), tf.float32, name="image")
AXES = {5: ("batch", "depth", "height", "width", "channel"), 4: ("batch", "height", "width", "channel")}
DTYPES = ("uint8", "int8", "uint16", "int16", "int32", "float32", "float64")
CARD = pathlib.PurePath("assets.extra") / "model_card.json"


def saved_model(functions, networks, directory, card, spec=VOLUME):
    """Writes functions as the signatures of a SavedModel; the folder appears whole or not at all.

    Args:
      functions: {signature: function}, "serving_default" among them: a raw image of `spec` -> {name: tensor}; the names
        become the signature's outputs. The one argument must be called `image`.
      networks: the Keras models that they run.
      directory: of the version, such as `run/saved_model/1`.
      card: JSON-like dict of what a client should know; becomes the file `CARD`.
      spec: `VOLUME` or `IMAGE`.
    """
    archive = keras.export.ExportArchive()
    for network in networks:
        archive.track(network)
    for signature, function in functions.items():
        served = archive.add_endpoint(signature, function, input_signature=[spec])
        archive.add_endpoint(twin(signature), _of_bytes(served, spec), input_signature=_bytes_spec())
    with replacing(directory) as partial:
        try:
            archive.write_out(str(partial), verbose=False)
        except tf.errors.OpError as error:
            raise OSError(f"the SavedModel could not be written ({type(error).__name__})") from error
        (partial / CARD).parent.mkdir()
        (partial / CARD).write_text(json.dumps(card, indent=1) + "\n")


def twin(signature):
    """Name of the signature for bytes beside another."""
    return "serving_bytes" if signature == "serving_default" else f"{signature}_bytes"


def _bytes_spec():
    return [
        tf.TensorSpec((None,), tf.string, name="image_bytes"),
        tf.TensorSpec(None, tf.int32, name="shape"),
        tf.TensorSpec(None, tf.string, name="dtype"),
    ]


def _of_bytes(function, spec):
    """The twin for bytes of a function of images of `spec`."""
    dimensions = spec.shape.rank - 2

    def one(image_bytes, shape, dtype):
        answer = function(_decoded(image_bytes, shape, dtype)[None, ..., None])
        return {f"{name}_bytes": _raw(x) for name, x in answer.items()}

    def all_(image_bytes, shape, dtype):
        batch = tf.shape(image_bytes)[0]
        expected = f"; expected {dimensions} integers, or as many for each image."
        good = tf.logical_and(tf.rank(shape) >= 1, tf.equal(tf.shape(tf.reshape(shape, (1, -1)))[-1] % dimensions, 0))
        with tf.control_dependencies([tf.debugging.Assert(good, ["shape is", shape, expected])]):
            shapes = tf.broadcast_to(tf.reshape(shape, (-1, dimensions)), (batch, dimensions))
        dtypes = tf.broadcast_to(tf.reshape(dtype, (-1,)), (batch,))
        names = [f"{name}_bytes" for name in function.get_concrete_function().structured_outputs]
        answers = tf.map_fn(
            lambda given: one(*given),
            (image_bytes, shapes, dtypes),
            fn_output_signature=dict.fromkeys(names, tf.string),
            parallel_iterations=1,  # the memory of one image
        )
        return answers | {"shape": tf.identity(shape)}

    return all_


def _decoded(image_bytes, shape, dtype):
    """The image of raw bytes as float32 of `shape`; the graph stops where they do not fit."""
    known = tf.equal(dtype, DTYPES)
    expected = f"; expected one of {', '.join(DTYPES)}."
    with tf.control_dependencies([tf.debugging.Assert(tf.reduce_any(known), ["dtype is", dtype, expected])]):
        number = tf.argmax(known, output_type=tf.int32)
    size = tf.gather([tf.as_dtype(name).size for name in DTYPES], number)
    needed = tf.reduce_prod(tf.cast(shape, tf.int64)) * tf.cast(size, tf.int64)
    found = tf.strings.length(image_bytes)
    fits = tf.logical_and(tf.reduce_all(shape > 0), tf.equal(tf.cast(found, tf.int64), needed))
    told = ["image_bytes holds", found, "bytes; expected", needed, "for a shape of", shape, "and the dtype", dtype]
    with tf.control_dependencies([tf.debugging.Assert(fits, told, summarize=3)]):
        image_bytes = tf.identity(image_bytes)
    readers = [
        lambda name=name: tf.cast(tf.io.decode_raw(image_bytes, tf.as_dtype(name)), tf.float32) for name in DTYPES
    ]
    return tf.reshape(tf.switch_case(number, readers), tf.ensure_shape(shape, shape.shape))


def _raw(x):
    """The values of a tensor as they lie in memory: a tensor is serialized with them at its end."""
    size = tf.size(x, tf.int64) * x.dtype.size
    return tf.strings.substr(tf.io.serialize_tensor(x), -size, size)
