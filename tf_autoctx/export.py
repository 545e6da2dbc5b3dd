"""A SavedModel that TensorFlow's C++ loader, and so TensorFlow Serving, can run."""

import keras
import tensorflow as tf

from tf_autoctx.files import replacing


def saved_model(function, networks, directory):
    """Writes `function` as the signature `serving_default` of a SavedModel; the folder appears whole or not at all.

    Args:
      function: image (batch, depth, height, width, 1) float32 of any size, raw voxels -> {name: tensor}; the names
        become the signature's outputs. Its one argument must be called `image`: that is the name of the signature's
        input.
      networks: the Keras models that it runs.
      directory: of the version, such as `run/saved_model/1`.
    """
    archive = keras.export.ExportArchive()
    for network in networks:
        archive.track(network)
    volume = tf.TensorSpec((None, None, None, None, 1), tf.float32, name="image")
    archive.add_endpoint("serving_default", function, input_signature=[volume])
    with replacing(directory) as partial:
        try:
            archive.write_out(str(partial), verbose=False)
        except tf.errors.OpError as error:
            raise OSError(f"the SavedModel could not be written ({type(error).__name__})") from error
