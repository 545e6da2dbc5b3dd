"""A SavedModel that TensorFlow's C++ loader, and so TensorFlow Serving, can run."""

import json
import pathlib

import keras
import tensorflow as tf

from tf_autoctx.files import replacing

# A volume or a 2D image of any size; the name is that of the signatures' input.
VOLUME = tf.TensorSpec((None, None, None, None, 1), tf.float32, name="image")
IMAGE = tf.TensorSpec((None, None, None, 1), tf.float32, name="image")
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
        archive.add_endpoint(signature, function, input_signature=[spec])
    with replacing(directory) as partial:
        try:
            archive.write_out(str(partial), verbose=False)
        except tf.errors.OpError as error:
            raise OSError(f"the SavedModel could not be written ({type(error).__name__})") from error
        (partial / CARD).parent.mkdir()
        (partial / CARD).write_text(json.dumps(card, indent=1) + "\n")
