"""Network families in plain Keras: each a function that returns a functional `keras.Model`. No TensorFlow in this
room."""

from tf_autoctx.models.unet3d import pyramid, unet3d
from tf_autoctx.models.usegnet import usegnet
