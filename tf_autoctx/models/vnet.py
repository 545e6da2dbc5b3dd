"""VNet, which the embryo system runs three times (Milletari et al. 2016; Xu et al. 2020)."""

from __future__ import annotations

import keras
from keras import ops

from tf_autoctx.models import layers
from tf_autoctx.models.options import PAPER_VNET, VNetOptions
from tf_autoctx.models.rematerialization import ends_block


def vnet(
    input_shape: layers.Shape = (None, None, None, 1),
    outputs: int = 3,
    options: VNetOptions = PAPER_VNET,
    name: str = "vnet",
) -> keras.Model:
    """VNet (Milletari et al. 2016, section 2, figure 2), with normalization.

    Residual stages of 1, 2, 3, 3, 3 convolutions on the way down and 3, 3, 2, 1 on the way up. Up
    there, a stage has the width of its concatenated input: 256, 128, 64 and 32 channels. Any
    spatial size works: the image is padded at its high ends to a multiple of 2^(depth - 1) inside,
    and the output is cropped.

    Args:
      input_shape: (depth, height, width, channels); None leaves an axis free.
      outputs: channels of the output.
      options: what it is made of.
      name: of the model.

    Returns:
      Functional model: image (batch, depth, height, width, channels) -> float32 logits (batch,
        depth, height, width, outputs).

    Raises:
      ValueError: depth below 1; unknown normalization or initializer (the message lists the known
        ones).
    """
    depth, normalization, initializer = options.depth, options.normalization, options.initializer
    if depth < 1:
        raise ValueError(f"depth={depth}: expected at least 1 resolution.")
    convolutions = [min(resolution + 1, 3) for resolution in range(depth)]
    image = keras.Input(input_shape, name="image")
    x = layers.PadToMultiple(2 ** (depth - 1))(image)

    # Compression
    skips = []
    for resolution in range(depth):
        filters, place = options.base_filters * 2**resolution, f"down_{resolution + 1}"
        if resolution:
            # Sizes are even here and so never below the kernel: this one needs no bfloat16 guard.
            arguments = {**layers.initializers(initializer), "use_bias": options.bias}
            x = keras.layers.Conv3D(filters, 2, strides=2, name=f"{place}_in", **arguments)(x)
            x = ends_block(_activated(x, normalization, f"{place}_in"))
        x = _stage(x, filters, convolutions[resolution], options, place)
        skips.append(x)

    # Decompression
    for resolution in reversed(range(depth - 1)):
        skip, place = skips[resolution], f"up_{resolution + 1}"
        arguments = {"use_bias": options.bias, "name": f"{place}_in"}
        x = layers.deconv(x, skip.shape[-1], 2, initializer, **arguments)
        x = ends_block(_activated(x, normalization, f"{place}_in"))
        x = keras.layers.Concatenate()([x, skip])
        x = _stage(x, x.shape[-1], convolutions[resolution], options, place)

    # Head; float32 under mixed precision too, for the softmax or sigmoid
    logits = layers.conv(x, outputs, 1, initializer, linear=True, dtype="float32", name="head")
    return keras.Model(image, layers.CropLike(dtype="float32")([logits, image]), name=name)


def _stage(
    x: layers.Tensor, filters: int, convolutions: int, options: VNetOptions, name: str
) -> layers.Tensor:
    """Conv, normalization, PReLU, `convolutions` times; the input is added before the last PReLU.

    Names of its layers begin with `name`.

    Milletari et al. repeat their one input channel to the width of the first stage. Here a 1x1x1
    convolution takes the input to another width, which is the same with learned weights and fits
    any number of channels.
    """
    kernel, initializer = options.kernel, options.initializer
    stage_input = x
    if x.shape[-1] != filters:
        stage_input = layers.conv(x, filters, 1, initializer, linear=True, name=f"{name}_input")
    for number in range(1, convolutions + 1):
        place = f"{name}_{number}"
        x = layers.conv(x, filters, kernel, initializer, use_bias=options.bias, name=place)
        added = stage_input if number == convolutions else None
        x = _activated(x, options.normalization, place, added)
    return ends_block(x)


def _activated(
    x: layers.Tensor, normalization: str, name: str, added: layers.Tensor | None = None
) -> layers.Tensor:
    """Normalization, what is to be added, PReLU with one slope per channel, so that sizes stay
    free; 0.25 at first (He et al. 2015). Names of its layers begin with `name`."""
    x = layers.normalize(x, normalization, f"{name}_norm")
    x = x if added is None else keras.layers.Add()([x, added])
    slopes = keras.initializers.Constant(0.25)
    return PReLU(alpha_initializer=slopes, shared_axes=(1, 2, 3), name=f"{name}_prelu")(x)


@keras.saving.register_keras_serializable("tf_autoctx")
class PReLU(keras.layers.PReLU):
    """PReLU that keeps x and a mask for the gradient, computed by rows of voxels.

    Keras' own keeps relu(x) and relu(-x), 1 GB each for 16 channels of 256^3 voxels, and its pair
    of ReLUs makes an optimizer of TensorFlow 2.21's graphs fail now and then ("remapper failed").
    A slope repeated over a row of voxels is multiplied nearly twice as fast as over 16 channels.
    """

    def call(self, x: layers.Tensor) -> layers.Tensor:
        shape = ops.shape(x)
        rows = ops.reshape(x, (-1, shape[-2] * shape[-1]))
        slopes = ops.tile(ops.reshape(self.alpha, (-1,)), (shape[-2],))
        return ops.reshape(ops.where(rows > 0, rows, slopes * rows), shape)
