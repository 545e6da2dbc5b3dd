"""What the network families share: blocks, guarded convolutions, padding and resampling.

Two- or three-dimensional by the rank of the input.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from tf_autoctx.models import backends
from tf_autoctx.models.options import LINEAR_INITIALIZERS

Tensor = Any  # of whichever backend, or symbolic
Shape = tuple[int | None, ...]  # None: a free axis

_ARGUMENTS = {
    # He et al. 2015: learns sooner in small budgets.
    "he": {"kernel_initializer": "he_normal", "bias_initializer": "zeros"},
    # Yang et al. 2019, section 3.1, with the values of the authors' code.
    "paper": {
        "kernel_initializer": keras.initializers.TruncatedNormal(stddev=0.001),
        "bias_initializer": keras.initializers.Constant(0.01),
    },
    # Yang et al. 2018, the convolutions of the authors' code.
    "truncated_normal": {
        "kernel_initializer": keras.initializers.TruncatedNormal(stddev=0.01),
        "bias_initializer": "zeros",
    },
}
_ARGUMENTS["authors"] = _ARGUMENTS["truncated_normal"]
# He's gain of 2 makes up for the half that a ReLU takes away; what has none behind it has gain 1.
_LINEAR = _ARGUMENTS | {
    "he": {"kernel_initializer": "lecun_normal", "bias_initializer": "zeros"},
}
_UNITS = _LINEAR | {
    # Yang et al. 2018, the authors' code.
    "authors": {
        "kernel_initializer": keras.initializers.RandomNormal(stddev=0.02),
        "bias_initializer": "zeros",
    }
}


def initializers(
    name: str, linear: bool = False, unit: bool = False
) -> dict[str, keras.initializers.Initializer]:
    """Arguments of a layer for one of `LINEAR_INITIALIZERS`; every layer gets its own copy.

    Args:
      name: of the initializer.
      linear: whether no ReLU follows on the layer: "he" then keeps the variance of what it sees,
        by a gain of 1 in place of 2.
      unit: whether it is a dense linear unit, which "authors" has values of its own for.

    Raises:
      ValueError: unknown name (the message lists the known ones).
    """
    if name not in LINEAR_INITIALIZERS:
        raise ValueError(f"initializer={name!r}: expected one of {', '.join(LINEAR_INITIALIZERS)}.")
    arguments = (_UNITS if unit else _LINEAR if linear else _ARGUMENTS)[name]
    return {role: keras.initializers.get(value).clone() for role, value in arguments.items()}


def rank(x: Tensor) -> int:
    """Spatial axes of a channels-last tensor: 2 or 3."""
    return len(x.shape) - 2


def conv(
    x: Tensor, filters: int, kernel: int, initializer: str, linear: bool = False, **others: Any
) -> Tensor:
    """`same` convolution in 2D or 3D; `linear`: see `initializers`."""
    layer = {2: keras.layers.Conv2D, 3: Conv3D}[rank(x)]
    arguments = initializers(initializer, linear) | others
    return layer(filters, kernel, padding="same", **arguments)(x)


def deconv(
    x: Tensor, filters: int, kernel: int, initializer: str, linear: bool = False, **others: Any
) -> Tensor:
    """Transposed convolution of stride 2 in 2D or 3D: doubles every spatial axis; `linear`: see
    `initializers`."""
    layer = {2: keras.layers.Conv2DTranspose, 3: Conv3DTranspose}[rank(x)]
    arguments = initializers(initializer, linear) | others
    return layer(filters, kernel, strides=2, padding="same", **arguments)(x)


def max_pool(x: Tensor) -> Tensor:
    """2x max pooling in 2D or 3D."""
    return {2: keras.layers.MaxPooling2D, 3: keras.layers.MaxPooling3D}[rank(x)](2)(x)


def normalize(x: Tensor, normalization: str, name: str | None = None) -> Tensor:
    """Batch norm's place in a block.

    "instance" takes the statistics of the volume at hand, in training and at test time, as the
    authors of the fetal head system ran their batch norm at batch 1; "batch" takes those of the
    batch over all replicas and keeps moving averages (momentum 0.9) for test time.

    Raises:
      ValueError: another normalization.
    """
    if normalization == "instance":
        return InstanceNormalization(epsilon=1e-5, name=name)(x)
    if normalization == "batch":
        # Replicas with averages of their own would drift apart.
        synchronized = backends.has_replicas()
        return BatchNormalization(momentum=0.9, epsilon=1e-5, synchronized=synchronized, name=name)(
            x
        )
    raise ValueError(f"normalization={normalization!r}: expected 'instance' or 'batch'.")


@dataclasses.dataclass(frozen=True)
class Block:
    """What the blocks of a network have in common.

    Layers with weights have fixed names, by which another network takes their weights over: the
    convolution that of its block, the normalization the same with _norm.

    Attributes:
      normalization: see `normalize`.
      initializer: see `initializers`.
      bias: whether convolutions have a bias before a normalization, see `options.BIAS`.
    """

    normalization: str
    initializer: str
    bias: bool = False

    def conv(self, x: Tensor, filters: int, kernel: int, name: str) -> Tensor:
        """Conv, normalization, ReLU."""
        x = conv(x, filters, kernel, self.initializer, use_bias=self.bias, name=name)
        return keras.layers.ReLU()(normalize(x, self.normalization, f"{name}_norm"))

    def deconv(self, x: Tensor, filters: int, kernel: int, name: str) -> Tensor:
        """Deconv of stride 2, normalization, ReLU."""
        x = deconv(x, filters, kernel, self.initializer, use_bias=self.bias, name=name)
        return keras.layers.ReLU()(normalize(x, self.normalization, f"{name}_norm"))


@keras.saving.register_keras_serializable("tf_autoctx")
class InstanceNormalization(keras.layers.GroupNormalization):
    """Group normalization of one channel a group, as one operation where the backend has one.

    Statistics and weights are float32 in any precision. Of the arguments of group normalization,
    `groups`, `axis`, `center` and `scale` are fixed.
    """

    FIXED = types.MappingProxyType({"groups": -1, "axis": -1, "center": True, "scale": True})

    def __init__(self, epsilon: float = 1e-5, **kwargs: Any) -> None:
        super().__init__(epsilon=epsilon, **self.FIXED, **kwargs)

    def call(self, x: Tensor) -> Tensor:
        y = backends.instance_normalization(x, self.gamma, self.beta, self.epsilon)
        return super().call(x) if y is None else ops.cast(y, self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        return {name: value for name, value in config.items() if name not in self.FIXED}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> InstanceNormalization:
        """Also of what was saved when the fixed arguments were in it."""
        return super().from_config({k: v for k, v in config.items() if k not in cls.FIXED})


@keras.saving.register_keras_serializable("tf_autoctx")
class BatchNormalization(keras.layers.BatchNormalization):
    """Batch normalization as one operation where the backend has one, by the batch of one replica
    and by moving averages."""

    def call(self, x: Tensor, training: bool | None = None, mask: Tensor | None = None) -> Tensor:
        y = None if mask is not None else self._fused(x, bool(training and self.trainable))
        return super().call(x, training, mask) if y is None else ops.cast(y, self.compute_dtype)

    def _fused(self, x: Tensor, learns: bool) -> Tensor | None:
        """None where the backend has no such operation."""
        averages, weights = (self.moving_mean, self.moving_variance), (self.gamma, self.beta)
        if not learns:
            return backends.normalization_by(*averages, x, *weights, self.epsilon)
        normalized = backends.batch_normalization(x, *weights, self.epsilon)
        if normalized is None:
            return None
        y, *of_batch = normalized
        for average, value in zip(averages, of_batch):
            average.assign(self.momentum * average + (1 - self.momentum) * value)
        return y


def named_weights(network: keras.Model, prefix: str = "") -> dict[str, keras.Variable]:
    """{LAYER/WEIGHT, or NETWORK/LAYER/WEIGHT of a network within: variable}, in the order of
    `network.weights`."""
    named: dict[str, keras.Variable] = {}
    for layer in network.layers:
        if isinstance(layer, keras.Model):
            named |= named_weights(layer, f"{prefix}{layer.name}/")
        else:
            named |= {f"{prefix}{layer.name}/{w.name}": w for w in layer.weights}
    return named


def _is_at_least(x: Tensor, size: int) -> bool:
    """Whether every spatial axis is known to have `size` voxels or more."""
    return size == 1 or all(n is not None and n >= size for n in x.shape[1:-1])


def _at_least(x: Tensor, size: int) -> Tensor:
    """x with zeros at the high end of every spatial axis that is shorter than `size` voxels."""
    missing = [[0, _above_zero(size - n)] for n in ops.shape(x)[1:-1]]
    # A tensor, as TensorFlow 2.21 fuses padding by a number with what comes next, and fails where a
    # gradient asks for the shape in between ("remapper failed").
    zero = ops.zeros((), x.dtype)
    return ops.pad(x, [[0, 0], *missing, [0, 0]], constant_values=zero)


def _above_zero(n: Any) -> Any:
    """n, or 0 where it is below; an integer where n is one, as JAX pads by integers alone."""
    return max(n, 0) if isinstance(n, int) else ops.maximum(n, 0)


@keras.saving.register_keras_serializable("tf_autoctx")
class Conv3D(keras.layers.Conv3D):
    """`same` convolution of stride 1 whose bfloat16 gradient can be trusted.

    On CPUs, TensorFlow 2.21 fills the bfloat16 gradient of a kernel with stray memory where the
    input is smaller than the kernel. Zeros at the high end are what `same` padding puts there
    anyway, so enlarging such an input changes no output. An input that is known to be large enough
    stays as it is.

    So does every one where `training` is False, as the guard makes a graph of free axes more than
    twice as large: take no gradient of a kernel from such a pass in bfloat16.
    """

    def call(self, x: Tensor, training: bool | None = None) -> Tensor:
        kernel = self.kernel_size[0]
        if self.compute_dtype != "bfloat16" or training is False or _is_at_least(x, kernel):
            return super().call(x)
        depth, height, width = ops.shape(x)[1:-1]
        return super().call(_at_least(x, kernel))[:, :depth, :height, :width]


@keras.saving.register_keras_serializable("tf_autoctx")
class Conv3DTranspose(keras.layers.Conv3DTranspose):
    """`same` deconvolution of stride 2, guarded as `Conv3D`.

    Its output must not be smaller than the kernel.
    """

    def call(self, x: Tensor, training: bool | None = None) -> Tensor:
        least = (self.kernel_size[0] + 1) // 2
        if self.compute_dtype != "bfloat16" or training is False or _is_at_least(x, least):
            return super().call(x)
        depth, height, width = ops.shape(x)[1:-1]
        return super().call(_at_least(x, least))[:, : 2 * depth, : 2 * height, : 2 * width]


@keras.saving.register_keras_serializable("tf_autoctx")
class PadToMultiple(keras.layers.Layer):
    """Pads every spatial axis at its high end with edge values up to a multiple of `multiple`."""

    def __init__(self, multiple: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.multiple = multiple

    def call(self, x: Tensor) -> Tensor:
        for axis in range(1, len(x.shape) - 1):
            if x.shape[axis] is not None and x.shape[axis] % self.multiple == 0:
                continue
            size = ops.shape(x)[axis]
            padded = (size + self.multiple - 1) // self.multiple * self.multiple
            x = ops.take(x, ops.minimum(ops.arange(padded), size - 1), axis=axis)
        return x

    def compute_output_shape(self, shape: Shape) -> Shape:
        padded = [n if n is None else -(-n // self.multiple) * self.multiple for n in shape[1:-1]]
        return (shape[0], *padded, shape[-1])

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "multiple": self.multiple}


@keras.saving.register_keras_serializable("tf_autoctx")
class CropLike(keras.layers.Layer):
    """Crops (x, reference) to x[:ceil(reference / stride)] on every spatial axis.

    This undoes `PadToMultiple` at that scale.
    """

    def __init__(self, stride: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.stride = stride

    def call(self, inputs: Sequence[Tensor]) -> Tensor:
        x, reference = inputs
        size = [-(-n // self.stride) for n in ops.shape(reference)[1:-1]]
        return x[(slice(None), *(slice(0, n) for n in size))]

    def compute_output_shape(self, shapes: Sequence[Shape]) -> Shape:
        shape, reference = shapes
        cropped = [n if n is None else -(-n // self.stride) for n in reference[1:-1]]
        return (shape[0], *cropped, shape[-1])

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "stride": self.stride}


def resize_linear(x: Tensor, size: Sequence[Any]) -> Tensor:
    """Linear resampling of every spatial axis.

    Shrinking is anti-aliased by a triangle filter widened by the factor. Axes are aligned at their
    outer edges (voxel i covers [i, i + 1)), values beyond an edge do not weigh in.

    Args:
      x: (batch, *spatial, channels) float.
      size: new spatial sizes, integers or scalar integer tensors.

    Returns:
      (batch, *size, channels), same dtype.
    """
    return backends.written_once(_resize_linear, x, tuple(size))


def _resize_linear(x: Tensor, size: Sequence[Any]) -> Tensor:
    shape = ops.shape(x)  # once, as each call makes an operation of every axis
    for axis, new in enumerate(size, start=1):
        old = shape[axis]
        if isinstance(new, int) and isinstance(old, int) and new == old:
            continue
        factor = ops.cast(old, "float32") / ops.cast(new, "float32")
        reach = ops.maximum(factor, 1.0)
        x = interpolated(x, axis, positions(new) * factor, reach, _within(reach, old, new))
    return x


def _within(reach: Tensor, old: Any, new: Any) -> Any:
    """How many voxels may lie within reach of a place; an integer where the sizes are."""
    if isinstance(old, int) and isinstance(new, int):
        return math.ceil(2 * max(old / new, 1.0))
    return ops.cast(ops.ceil(2 * reach), "int32")


def positions(size: Any) -> Tensor:
    """Centres of the voxels of an axis, in voxels from its edge: 0.5, 1.5, ..."""
    return ops.cast(ops.arange(size), "float32") + 0.5


def interpolated(x: Tensor, axis: int, at: Tensor, reach: Any = 1.0, neighbours: Any = 2) -> Tensor:
    """x with an axis replaced by weighted means of its voxels, by a triangle about each place.

    Sums of products of whole arrays, one neighbour after the other, and no matrix product: GPUs
    round the factors of those to 10 bits (TensorFloat-32), weights and voxels alike. They are
    added up in float32 at least.

    Args:
      x: (batch, *spatial, channels) float.
      axis: of the spatial ones.
      at: (new,) float32 places, in voxels from the edge of the axis.
      reach: distance in voxels at which a voxel no longer weighs in.
      neighbours: how many voxels may lie within reach, an integer or a scalar integer tensor.

    Returns:
      x with `new` voxels along the axis, same dtype.
    """
    old = ops.shape(x)[axis]
    first = ops.cast(ops.ceil(at - 0.5 - reach), "int32")
    whole = ops.sum(ops.relu(1.0 - ops.abs(at[:, None] - positions(old)) / reach), axis=1)
    exact = keras.backend.result_type(x.dtype, "float32")
    beside = [-1 if i == axis else 1 for i in range(len(x.shape))]

    def with_neighbour(k: Any, total: Any) -> Tensor:
        voxel = first + k
        weights = ops.relu(1.0 - ops.abs(at - ops.cast(voxel, "float32") - 0.5) / reach) / whole
        weights = ops.where((voxel >= 0) & (voxel < old), weights, 0.0)
        values = ops.cast(ops.take(x, ops.clip(voxel, 0, old - 1), axis=axis), exact)
        return total + ops.reshape(ops.cast(weights, exact), beside) * values

    total = with_neighbour(0, 0.0)
    if not isinstance(neighbours, int):
        return ops.cast(ops.fori_loop(1, neighbours, with_neighbour, total), x.dtype)
    for k in range(1, neighbours):
        total = with_neighbour(k, total)
    return ops.cast(total, x.dtype)


def resize_nearest(x: Tensor, size: Sequence[Any]) -> Tensor:
    """Nearest-neighbour resampling of every spatial axis, aligned as `resize_linear`; for labels.

    Args:
      x: (batch, *spatial, channels) of any dtype.
      size: new spatial sizes, integers or scalar integer tensors.

    Returns:
      (batch, *size, channels), same dtype.
    """
    for axis, new in enumerate(size, start=1):
        old = ops.shape(x)[axis]
        # floor((i + 1/2) old / new) in integers: no rounding at .5.
        index = ((2 * ops.arange(new) + 1) * old) // (2 * new)
        x = ops.take(x, index, axis=axis)
    return x
