"""Network families in plain Keras: each a function that returns a functional `keras.Model`. No TensorFlow in this
room."""

from tf_autoctx.models.embryo import embryo
from tf_autoctx.models.loc_con import loc_con
from tf_autoctx.models.localiser import localiser
from tf_autoctx.models.renderer import discriminator, renderer, segmentor2d
from tf_autoctx.models.unet3d import pyramid, unet3d
from tf_autoctx.models.usegnet import usegnet
from tf_autoctx.models.vnet import vnet
