"""3D U-Net and the pyramid of them: the segmentors of the multi-organ system (Roth et al. 2018)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from tf_autoctx.models import backends, layers
from tf_autoctx.models.rematerialization import ends_block


def unet3d(
    input_shape: layers.Shape = (None, None, None, 1),
    classes: int = 8,
    *,
    base_filters: int = 32,
    depth: int = 4,
    normalization: str = "batch",
    initializer: str = "he",
    bias: bool = False,
    name: str = "unet3d",
) -> keras.Model:
    """3D U-Net of four resolutions (Cicek et al. 2016, as in Roth et al. 2018, section 2.1).

    Any spatial size works: the image is padded at its high ends to a multiple of 2^(depth - 1)
    inside, and the output is cropped. Convolutions are `same`, so that 64^3 voxels in are 64^3 out.

    Args:
      input_shape: (depth, height, width, channels); None leaves an axis free.
      classes: K, background included.
      base_filters: channels of the first convolution; the paper has 32, all others follow.
      depth: resolutions.
      normalization: "batch" (moving averages, so that the output of a tile does not depend on its
        size) or "instance".
      initializer: see `layers.initializers`.
      bias: whether convolutions have a bias before a normalization, see `options.BIAS`.
      name: of the model.

    Returns:
      Functional model: image (batch, depth, height, width, channels) -> float32 logits (batch,
        depth, height, width, classes).

    Raises:
      ValueError: unknown normalization or initializer (the message lists the known ones).
    """
    block = layers.Block(normalization, initializer, bias)
    image = keras.Input(input_shape, name="image")
    x = layers.PadToMultiple(2 ** (depth - 1))(image)

    # Analysis
    skips = []
    for resolution in range(depth):
        x = layers.max_pool(x) if resolution else x
        place = f"analysis_{resolution + 1}"
        x = block.conv(x, base_filters * 2**resolution, 3, f"{place}_1")
        x = block.conv(x, base_filters * 2 ** (resolution + 1), 3, f"{place}_2")
        skips.append(ends_block(x))

    # Synthesis
    for resolution in reversed(range(depth - 1)):
        skip, place = skips[resolution], f"synthesis_{resolution + 1}"
        x = layers.deconv(x, x.shape[-1], 2, initializer, linear=True, name=f"{place}_up")
        x = keras.layers.Concatenate()([x, skip])
        x = ends_block(block.conv(x, skip.shape[-1], 3, f"{place}_1"))
        x = ends_block(block.conv(x, skip.shape[-1], 3, f"{place}_2"))

    # Head; float32 under mixed precision too, for the softmax
    logits = layers.conv(x, classes, 1, initializer, linear=True, dtype="float32", name="head")
    return keras.Model(image, layers.CropLike(dtype="float32")([logits, image]), name=name)


def pyramid(
    downsampling: Sequence[float] = (4, 2),
    classes: int = 8,
    *,
    input_shape: layers.Shape = (None, None, None),
    channels: int = 1,
    end_to_end: bool = True,
    regions: bool = False,
    **arguments: Any,
) -> keras.Model:
    """Pyramid of 3D U-Nets with auto-context, one model (Roth et al. 2018, 2.2, figure 1).

    Level s sees its own image and, from the second level on, the class probabilities of the level
    before, resampled to its grid and concatenated as channels. The images of all levels share their
    centre.

    Args:
      downsampling: factor of every level, coarsest first; the paper has (4, 2). One level is a
        plain U-Net.
      classes: K, background included.
      input_shape: (depth, height, width) of every level's image; None leaves an axis free.
      channels: of every level's image.
      end_to_end: whether the gradient of a level flows through its context into the levels before.
      regions: whether classes are regions without a background, of which several may be at one
        voxel: context is then the sigmoid of the logits, not their softmax.
      **arguments: of `unet3d`.

    Returns:
      Functional model: {"image_1": (batch, depth, height, width, channels), ..., one per level} ->
        {"level_1": float32 logits (batch, depth, height, width, classes), ...};
        `get_layer("level_1")` is the U-Net of level 1.

    Raises:
      ValueError: no level, or factors that do not fall from level to level.
    """
    steps = itertools.pairwise(downsampling)
    if not downsampling or any(fine >= coarse for coarse, fine in steps):
        raise ValueError(
            f"downsampling={downsampling}: expected factors that fall from level to level, "
            "such as 4,2."
        )
    images, outputs = {}, {}
    logits = None  # of the level before
    for level, factor in enumerate(downsampling, start=1):
        shape = (*input_shape, channels)
        x = images[f"image_{level}"] = keras.Input(shape, name=f"image_{level}")
        if logits is not None:
            context = (
                keras.layers.Activation("sigmoid", dtype="float32")(logits)
                if regions
                else keras.layers.Softmax(dtype="float32")(logits)
            )
            if not end_to_end:
                context = ops.stop_gradient(context)
            finer = downsampling[level - 2] / factor
            context = ResampleAboutCentre(finer, dtype="float32")([context, x])
            x = keras.layers.Concatenate()([x, context])
        unet = unet3d((*input_shape, x.shape[-1]), classes, name=f"level_{level}", **arguments)
        logits = outputs[f"level_{level}"] = unet(x)
    return keras.Model(images, outputs, name="pyramid")


def _about_centre(x: layers.Tensor, size: Sequence[Any], factor: float) -> layers.Tensor:
    shape = ops.shape(x)
    for axis, new in enumerate(size, start=1):
        old = shape[axis]
        from_centre = (layers.positions(new) - ops.cast(new, "float32") / 2) / factor
        at = ops.clip(
            from_centre + ops.cast(old, "float32") / 2, 0.5, ops.cast(old, "float32") - 0.5
        )
        x = layers.interpolated(x, axis, at)
    return x


@keras.saving.register_keras_serializable("tf_autoctx")
class ResampleAboutCentre(keras.layers.Layer):
    """Resamples (x, reference) to x on the reference's grid, linearly.

    The reference's voxels are `factor` times finer. Both grids have one centre: x is upsampled and
    cropped (or continued by its edge values) in one step.
    """

    def __init__(self, factor: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, inputs: Sequence[layers.Tensor]) -> layers.Tensor:
        x, reference = inputs
        return backends.written_once(_about_centre, x, ops.shape(reference)[1:-1], self.factor)

    def compute_output_shape(self, shapes: Sequence[layers.Shape]) -> layers.Shape:
        shape, reference = shapes
        return (shape[0], *reference[1:-1], shape[-1])

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "factor": self.factor}
