"""What the network families share: blocks, the attention module, and resampling. Two- or three-dimensional by input
rank."""

import keras
from keras import ops

INITIALIZERS = {
    # He et al. 2015: learns sooner in small budgets.
    "he": {"kernel_initializer": "he_normal", "bias_initializer": "zeros"},
    # Yang et al. 2019, section 3.1, with the values of the authors' code.
    "paper": {
        "kernel_initializer": keras.initializers.TruncatedNormal(stddev=0.001),
        "bias_initializer": keras.initializers.Constant(0.01),
    },
    # Yang et al. 2018, the authors' code.
    "truncated_normal": {
        "kernel_initializer": keras.initializers.TruncatedNormal(stddev=0.01),
        "bias_initializer": "zeros",
    },
}


def initializers(name):
    """Arguments of a convolution for an initializer of `INITIALIZERS`; every layer gets its own copy.

    Raises:
      ValueError: unknown name (the message lists the known ones).
    """
    if name not in INITIALIZERS:
        raise ValueError(f"initializer={name!r}: expected one of {', '.join(INITIALIZERS)}.")
    return {
        role: keras.initializers.get(value).clone() for role, value in INITIALIZERS[name].items()
    }


def rank(x):
    """Spatial axes of a channels-last tensor: 2 or 3."""
    return len(x.shape) - 2


def conv(x, filters, kernel, initializer, **arguments):
    """`same` convolution in 2D or 3D."""
    layer = {2: keras.layers.Conv2D, 3: Conv3D}[rank(x)]
    return layer(filters, kernel, padding="same", **initializers(initializer), **arguments)(x)


def deconv(x, filters, kernel, initializer, **arguments):
    """Transposed convolution of stride 2 in 2D or 3D: doubles every spatial axis."""
    layer = {2: keras.layers.Conv2DTranspose, 3: Conv3DTranspose}[rank(x)]
    return layer(
        filters, kernel, strides=2, padding="same", **initializers(initializer), **arguments
    )(x)


def max_pool(x):
    """2x max pooling in 2D or 3D."""
    return {2: keras.layers.MaxPooling2D, 3: keras.layers.MaxPooling3D}[rank(x)](2)(x)


def normalize(x, normalization):
    """Batch norm's place in a block.

    "instance" takes the statistics of the volume at hand, in training and at test time, as the authors of the fetal
    head system ran their batch norm at batch 1; "batch" takes those of the batch over all replicas and keeps moving
    averages (momentum 0.9) for test time.

    Raises:
      ValueError: another normalization.
    """
    if normalization == "instance":
        return keras.layers.GroupNormalization(groups=-1, epsilon=1e-5)(x)
    if normalization == "batch":
        # Replicas with averages of their own would drift apart; other backends than TensorFlow have one anyway.
        synchronized = keras.backend.backend() == "tensorflow"
        return keras.layers.BatchNormalization(
            momentum=0.9, epsilon=1e-5, synchronized=synchronized
        )(x)
    raise ValueError(f"normalization={normalization!r}: expected 'instance' or 'batch'.")


def conv_block(x, filters, kernel, normalization, initializer):
    """Conv, normalization, ReLU."""
    return keras.layers.ReLU()(normalize(conv(x, filters, kernel, initializer), normalization))


def deconv_block(x, filters, kernel, normalization, initializer):
    """Deconv of stride 2, normalization, ReLU."""
    return keras.layers.ReLU()(normalize(deconv(x, filters, kernel, initializer), normalization))


def attention_module(x, kernel, initializer, *, filters=64, inner=32):
    """Attention module (Yang et al. 2019, section 2.4, equations 3-4, figure 3); no normalization, no ReLU inside.

    P = 1x1x1 conv of x; W = two convs on P; A = softmax of W over the channels of each voxel; the answer is a conv of
    concat(P, P * A).

    Args:
      x: feature map (batch, *spatial, channels).
      kernel: edge of the weight and output convolutions; the paper has 3.
      filters: channels of the answer; the paper has 64.
      inner: channels of P, W and A; the paper has 32.

    Returns:
      Feature map (batch, *spatial, filters).
    """
    p = conv(x, inner, 1, initializer)
    w = conv(conv(p, inner, kernel, initializer), inner, kernel, initializer)
    attention = keras.layers.Softmax(axis=-1)(w)
    t = keras.layers.Multiply()([p, attention])
    return conv(keras.layers.Concatenate()([p, t]), filters, kernel, initializer)


def _at_least(x, size):
    """x with zeros at the high end of every spatial axis that is shorter than `size` voxels."""
    missing = [[0, ops.maximum(size - n, 0)] for n in ops.shape(x)[1:-1]]
    return ops.pad(x, [[0, 0], *missing, [0, 0]])


@keras.saving.register_keras_serializable("tf_autoctx")
class Conv3D(keras.layers.Conv3D):
    """`same` convolution of stride 1 whose bfloat16 gradient can be trusted.

    On CPUs, TensorFlow 2.21 fills the bfloat16 gradient of a kernel with stray memory where the input is smaller than
    the kernel. Zeros at the high end are what `same` padding puts there anyway, so enlarging such an input changes no
    answer.
    """

    def call(self, x):
        if self.compute_dtype != "bfloat16" or self.kernel_size[0] == 1:
            return super().call(x)
        depth, height, width = ops.shape(x)[1:-1]
        return super().call(_at_least(x, self.kernel_size[0]))[:, :depth, :height, :width]


@keras.saving.register_keras_serializable("tf_autoctx")
class Conv3DTranspose(keras.layers.Conv3DTranspose):
    """`same` deconvolution of stride 2, guarded as `Conv3D`: its output must not be smaller than the kernel."""

    def call(self, x):
        if self.compute_dtype != "bfloat16":
            return super().call(x)
        depth, height, width = ops.shape(x)[1:-1]
        return super().call(_at_least(x, (self.kernel_size[0] + 1) // 2))[
            :, : 2 * depth, : 2 * height, : 2 * width
        ]


@keras.saving.register_keras_serializable("tf_autoctx")
class PadToMultiple(keras.layers.Layer):
    """Pads every spatial axis at its high end with edge values up to a multiple of `multiple`."""

    def __init__(self, multiple, **kwargs):
        super().__init__(**kwargs)
        self.multiple = multiple

    def call(self, x):
        for axis in range(1, len(x.shape) - 1):
            if x.shape[axis] is not None and x.shape[axis] % self.multiple == 0:
                continue
            size = ops.shape(x)[axis]
            padded = (size + self.multiple - 1) // self.multiple * self.multiple
            x = ops.take(x, ops.minimum(ops.arange(padded), size - 1), axis=axis)
        return x

    def compute_output_shape(self, shape):
        up = lambda size: None if size is None else -(-size // self.multiple) * self.multiple
        return (shape[0], *map(up, shape[1:-1]), shape[-1])

    def get_config(self):
        return {**super().get_config(), "multiple": self.multiple}


@keras.saving.register_keras_serializable("tf_autoctx")
class CropLike(keras.layers.Layer):
    """Crops (x, reference) to x[:ceil(reference / stride)] on every spatial axis: undoes `PadToMultiple` at that
    scale."""

    def __init__(self, stride=1, **kwargs):
        super().__init__(**kwargs)
        self.stride = stride

    def call(self, inputs):
        x, reference = inputs
        size = [-(-n // self.stride) for n in ops.shape(reference)[1:-1]]
        return x[(slice(None), *(slice(0, n) for n in size))]

    def compute_output_shape(self, shapes):
        shape, reference = shapes
        down = lambda size: None if size is None else -(-size // self.stride)
        return (shape[0], *map(down, reference[1:-1]), shape[-1])

    def get_config(self):
        return {**super().get_config(), "stride": self.stride}


@keras.saving.register_keras_serializable("tf_autoctx")
class ResampleAboutCentre(keras.layers.Layer):
    """Resamples (x, reference) to x on the reference's grid, whose voxels are `factor` times finer, linearly.

    Both grids have one centre: x is upsampled and cropped (or continued by its edge values) in one step.
    """

    def __init__(self, factor, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, inputs):
        x, reference = inputs
        for axis in range(1, len(x.shape) - 1):
            old, new = ops.shape(x)[axis], ops.shape(reference)[axis]
            from_centre = (_positions(new) - ops.cast(new, "float32") / 2) / self.factor
            at = ops.clip(
                from_centre + ops.cast(old, "float32") / 2, 0.5, ops.cast(old, "float32") - 0.5
            )
            x = _weighted(x, axis, 1.0 - ops.abs(at[:, None] - _positions(old)))
        return x

    def compute_output_shape(self, shapes):
        shape, reference = shapes
        return (shape[0], *reference[1:-1], shape[-1])

    def get_config(self):
        return {**super().get_config(), "factor": self.factor}


def resize_linear(x, size):
    """Linear resampling of every spatial axis; shrinking is anti-aliased by a triangle filter widened by the factor.

    Axes are aligned at their outer edges (voxel i covers [i, i + 1)), values beyond an edge do not weigh in. Each axis
    is one matrix product with a small (new, old) matrix, so sizes may be tensors and any Keras backend can run it.

    Args:
      x: (batch, *spatial, channels) float.
      size: new spatial sizes, integers or scalar integer tensors.

    Returns:
      (batch, *size, channels), same dtype.
    """
    for axis, new in enumerate(size, start=1):
        old = ops.shape(x)[axis]
        if isinstance(new, int) and isinstance(old, int) and new == old:
            continue
        factor = ops.cast(old, "float32") / ops.cast(new, "float32")
        distance = ops.abs(_positions(new)[:, None] * factor - _positions(old))
        x = _weighted(x, axis, 1.0 - distance / ops.maximum(factor, 1.0))
    return x


def _positions(size):
    """Centres of the voxels of an axis, in voxels from its edge: 0.5, 1.5, ..."""
    return ops.cast(ops.arange(size), "float32") + 0.5


def _weighted(x, axis, weights):
    """x with an axis replaced by weighted means of its voxels; weights (new, old) below 0 count as 0."""
    weights = ops.maximum(weights, 0.0)
    weights = ops.cast(weights / ops.sum(weights, axis=1, keepdims=True), x.dtype)
    return ops.moveaxis(ops.tensordot(weights, x, axes=[[1], [axis]]), 0, axis)


def resize_nearest(x, size):
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
