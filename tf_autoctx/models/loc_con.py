"""Localisation and auto-context (Xu et al. 2020): a box about an object, cut from image and map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from tf_autoctx.models import layers


def loc_con(
    image: layers.Tensor,
    probability: layers.Tensor,
    index: int,
    box: int,
    auto_context: bool = True,
) -> tuple[layers.Tensor, layers.Tensor]:
    """Loc-Con module of one object, from an upsampled map (section 2.2, figure 3, steps 2 and 3).

    Step 1, the upsampling, is `ResizeLike`: one call serves all objects.

    Args:
      image: symbolic (batch, depth, height, width, channels).
      probability: symbolic (batch, depth, height, width, classes), on the image's grid.
      index: class of the object.
      box: edge of the box in voxels.
      auto_context: whether the object's map goes along; without it the map only places the box.

    Returns:
      (input of the object's network: (batch, box, box, box, channels + 1), image and map, or the
      image alone without auto-context; low corner of the box, (batch, 3) int32).
    """
    corner = BoxCorner(index, box, dtype="float32")(probability)
    crop = Crop(box, dtype="float32")
    x = crop([image, corner])
    if auto_context:
        x = keras.layers.Concatenate(dtype="float32")(
            [x, crop([probability[..., index : index + 1], corner])]
        )
    return x, corner


@keras.saving.register_keras_serializable("tf_autoctx")
class ResizeToCube(keras.layers.Layer):
    """Resizes (batch, *spatial, channels) to `edge` voxels on every spatial axis.

    See `layers.resize_linear`.
    """

    def __init__(self, edge: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.edge = edge

    def call(self, x: layers.Tensor) -> layers.Tensor:
        return layers.resize_linear(x, [self.edge] * layers.rank(x))

    def compute_output_shape(self, shape: layers.Shape) -> layers.Shape:
        return (shape[0], *(self.edge for _ in shape[1:-1]), shape[-1])

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "edge": self.edge}


@keras.saving.register_keras_serializable("tf_autoctx")
class ResizeLike(keras.layers.Layer):
    """Resizes (x, reference) to x on the reference's spatial sizes, see `layers.resize_linear`."""

    def call(self, inputs: Sequence[layers.Tensor]) -> layers.Tensor:
        x, reference = inputs
        return layers.resize_linear(x, ops.shape(reference)[1:-1])

    def compute_output_shape(self, shapes: Sequence[layers.Shape]) -> layers.Shape:
        shape, reference = shapes
        return (shape[0], *reference[1:-1], shape[-1])


@keras.saving.register_keras_serializable("tf_autoctx")
class BoxCorner(keras.layers.Layer):
    """Low corner of the box whose centre is nearest to an object's centroid.

    A voxel weighs its probability of the object where the object is the most probable class: the
    softmax floor of the whole background would drag the centroid of a small object to the middle.
    Where the object is nowhere the most probable class every voxel weighs in, and without any
    probability the box is at the centre of the volume.

    call: probability (batch, depth, height, width, classes) -> (batch, 3) int32, below 0 where the
    box begins outside the volume. Integers are constants for the gradient.
    """

    def __init__(self, index: int, box: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.index, self.box = index, box

    def call(self, probability: layers.Tensor) -> layers.Tensor:
        p = probability[..., self.index]
        weights = ops.where(p >= ops.max(probability, axis=-1), p, 0.0)
        weights = ops.where(ops.sum(weights, axis=(1, 2, 3), keepdims=True) > 0, weights, p)
        over_width, over_height = ops.sum(weights, axis=3), ops.sum(weights, axis=2)
        # Axis after axis: a float32 that adds up a whole slice voxel by voxel rounds too much away.
        margins = [
            ops.sum(over_width, axis=2),
            ops.sum(over_width, axis=1),
            ops.sum(over_height, axis=1),
        ]
        # The nearest whole voxel; a symmetrical object lies midway between two, where rounding
        # noise must not decide.
        low = ops.stack([_centroid(margin) for margin in margins], axis=-1) - self.box / 2
        return ops.cast(ops.floor(low + 0.5 + 1e-3), "int32")

    def compute_output_shape(self, shape: layers.Shape) -> layers.Shape:
        return (shape[0], 3)

    def compute_output_spec(self, probability: layers.Tensor) -> keras.KerasTensor:
        return keras.KerasTensor(self.compute_output_shape(probability.shape), dtype="int32")

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "index": self.index, "box": self.box}


def _centroid(margin: layers.Tensor) -> layers.Tensor:
    """Centroid of weights (batch, size) in voxels from the low edge; the middle if all are 0.

    Voxel i is at i + 1/2.
    """
    size, total = ops.shape(margin)[1], ops.sum(margin, axis=1)
    moment = ops.sum(margin * (ops.cast(ops.arange(size), "float32") + 0.5), axis=1)
    return ops.where(
        total > 0, moment / ops.where(total > 0, total, 1.0), ops.cast(size, "float32") / 2
    )


@keras.saving.register_keras_serializable("tf_autoctx")
class Crop(keras.layers.Layer):
    """Cuts a cube of `box` voxels out of every sample, zeros where it leaves the volume.

    call: x (batch, depth, height, width, channels) and low corners (batch, 3) int32 -> (batch, box,
    box, box, channels), same dtype: the very voxels, on any backend and in any precision.
    """

    def __init__(self, box: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.box = box

    def call(self, inputs: Sequence[layers.Tensor]) -> layers.Tensor:
        x, corner = inputs
        return _window(x, corner, (self.box,) * 3)

    def compute_output_shape(self, shapes: Sequence[layers.Shape]) -> layers.Shape:
        shape, _ = shapes
        return (shape[0], self.box, self.box, self.box, shape[-1])

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "box": self.box}


@keras.saving.register_keras_serializable("tf_autoctx")
class Uncrop(keras.layers.Layer):
    """Puts what `Crop` cut out back on the reference's grid, zeros outside the box.

    call: x (batch, box, box, box, channels), low corners (batch, 3) int32, reference (batch, depth,
    height, width, any) -> (batch, depth, height, width, channels), same dtype.
    """

    def call(self, inputs: Sequence[layers.Tensor]) -> layers.Tensor:
        x, corner, reference = inputs
        return _window(x, -corner, ops.shape(reference)[1:4])

    def compute_output_shape(self, shapes: Sequence[layers.Shape]) -> layers.Shape:
        shape, _, reference = shapes
        return (shape[0], *reference[1:-1], shape[-1])


def _window(x: layers.Tensor, start: layers.Tensor, size: Sequence[Any]) -> layers.Tensor:
    """Voxels start, start + 1, ... along each axis of every sample, zeros outside.

    Args:
      x: (batch, depth, height, width, channels).
      start: (batch, 3) int32, may be below 0.
      size: 3 integers or scalar integer tensors.

    Returns:
      (batch, *size, channels), same dtype.
    """
    for axis, new in enumerate(size, start=1):
        shape = ops.shape(x)
        old, rest = shape[axis], shape[axis + 1 :]
        at = start[:, axis - 1, None] + ops.arange(new, dtype="int32")  # (batch, new)
        inside = ops.cast((at >= 0) & (at < old), x.dtype)
        # All before the axis as one, so that each sample has its own place along it.
        before = math.prod(shape[1:axis])
        rows = ops.reshape(ops.arange(shape[0] * before) * old, (shape[0], before, 1))
        index = ops.reshape(rows + ops.clip(at, 0, old - 1)[:, None], (-1,))
        # The leading axis of 1: TensorFlow's gradient along the first axis is a sparse one.
        flat = ops.reshape(x, (1, shape[0] * before * old, *rest))
        x = ops.reshape(ops.take(flat, index, axis=1), (*shape[:axis], new, *rest))
        x = x * ops.reshape(inside, (shape[0], *(axis - 1) * (1,), new, *(4 - axis) * (1,)))
    return x
