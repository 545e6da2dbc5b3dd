"""What a backend of Keras does better than Keras' own operations.

The one place of this room that asks which backend runs, and that imports one: within functions, so
that the others need not have it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras

Tensor = Any

# Parts of a volume whose statistics are taken apart: sums of millions of voxels lose too much.
PARTS = 64


def has_replicas() -> bool:
    """Whether several replicas may train: with TensorFlow alone."""
    return keras.backend.backend() == "tensorflow"


def written_once(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function makes of its arguments, tensors and plain numbers.

    Within a graph of TensorFlow it becomes a function of its own, which all graphs call that give
    it tensors of the same types and shapes, and the same numbers: to write it anew for each takes
    Python longer than all else of a small volume. Grappler puts it into its callers when these run.
    """
    if keras.backend.backend() != "tensorflow":
        return function(*arguments)
    import tensorflow as tf

    return function(*arguments) if tf.executing_eagerly() else _graph(function)(*arguments)


@functools.cache
def _graph(function: Callable[..., Any]) -> Any:
    import tensorflow as tf

    return tf.function(function, autograph=False)


def gradients_together(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """The tensors, whose gradients go on when all of them are there.

    TensorFlow runs the gradients of a block's kernels when it likes, and keeps what these are made
    of while it takes the gradient of the next block. XLA orders operations by itself.
    """
    if keras.backend.backend() != "tensorflow":
        return tensors
    import tensorflow as tf

    @tf.custom_gradient
    def same(*tensors: Tensor) -> Any:
        def gradient(*of_tensors: Tensor) -> list[Tensor]:
            return tf.tuple(list(of_tensors))

        return [tf.identity(x) for x in tensors], gradient

    return same(*tensors)


def instance_normalization(x: Tensor, gamma: Tensor, beta: Tensor, epsilon: float) -> Tensor | None:
    """Each channel of each sample by its own mean and variance.

    In Keras that is a chain of operations, each of which passes over the volume. TensorFlow has one
    that takes the statistics of a channel over all samples; those of a batch become channels of one
    here, which moves nothing in memory where there is one. The graph is one for CPUs and GPUs.

    Args:
      x: (batch, *spatial, channels), of two spatial axes or more.
      gamma, beta: (channels,) float32.
      epsilon: is added to the variance.

    Returns:
      The same shape and type; None where the backend has no such operation for the type.
    """
    if not _is_fused(x):
        return None
    import tensorflow as tf

    scale, offset = tf.convert_to_tensor(gamma), tf.convert_to_tensor(beta)
    shape, channels = tf.shape(x), x.shape[-1]
    if x.shape[0] == 1:
        y, *_ = _normalized(tf.reshape(x, [1, 1, -1, channels]), scale, offset, epsilon)
        y = tf.reshape(y, shape)
    else:
        rank, batch = len(x.shape), shape[0]
        side_by_side = tf.transpose(x, [*range(1, rank - 1), 0, rank - 1])
        voxels = tf.reshape(side_by_side, [1, 1, -1, batch * channels])
        y, *_ = _normalized(voxels, tf.tile(scale, [batch]), tf.tile(offset, [batch]), epsilon)
        y = tf.reshape(y, tf.shape(side_by_side))
        y = tf.transpose(y, [rank - 2, *range(rank - 2), rank - 1])
    y.set_shape(x.shape)
    return y


def batch_normalization(
    x: Tensor, gamma: Tensor, beta: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Each channel by its mean and variance over the batch, of one replica.

    Args:
      x, gamma, beta, epsilon: as those of `instance_normalization`.

    Returns:
      (the same shape and type, mean (channels,) float32, variance likewise), the last two without a
      gradient; None as there, and where several replicas share their statistics.
    """
    if not _is_fused(x):
        return None
    import tensorflow as tf

    if tf.distribute.get_strategy().num_replicas_in_sync > 1:
        return None
    scale, offset = tf.convert_to_tensor(gamma), tf.convert_to_tensor(beta)
    voxels = tf.reshape(x, [1, 1, -1, x.shape[-1]])
    y, mean, variance = _normalized(voxels, scale, offset, epsilon)
    y = tf.reshape(y, tf.shape(x))
    y.set_shape(x.shape)
    return y, mean, variance


def normalization_by(
    mean: Tensor, variance: Tensor, x: Tensor, gamma: Tensor, beta: Tensor, epsilon: float
) -> Tensor | None:
    """Each channel by a given mean and variance.

    In Keras that is two passes over the volume, in float32: in bfloat16 two more, from and to it.

    Args:
      mean, variance, gamma, beta: (channels,) float32.
      x: (batch, *spatial, channels).
      epsilon: is added to the variance.

    Returns:
      As `instance_normalization`.
    """
    if not _is_fused(x):
        return None
    import tensorflow as tf

    voxels = tf.reshape(x, [1, 1, -1, x.shape[-1]])
    scale, offset = tf.convert_to_tensor(gamma), tf.convert_to_tensor(beta)
    y = tf.reshape(_by(mean, variance, voxels, scale, offset, epsilon), tf.shape(x))
    y.set_shape(x.shape)
    return y


def _is_fused(x: Tensor) -> bool:
    """Whether the backend normalizes a tensor in one operation."""
    return keras.backend.backend() == "tensorflow" and x.dtype != "float64"


def _normalized(
    x: Tensor, scale: Tensor, offset: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(Normalized voxels (1, 1, voxels, channels), and the mean and variance of `_statistics` by
    which they are); all else is (channels,).

    TensorFlow's operation adds up a channel voxel by voxel on CPUs: of 4 million voxels, what it
    makes by itself is off by a hundredth, Keras' own by a thousandth.

    The gradient knows that the statistics follow from x.
    """
    import tensorflow as tf

    mean, variance = _statistics(tf.stop_gradient(x))

    @tf.custom_gradient
    def normalized(x: Tensor, scale: Tensor, offset: Tensor) -> Any:
        y = _by(mean, variance, x, scale, offset, epsilon)

        def gradient(of_y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            of_x, of_scale, of_offset = _gradient(of_y, x, scale, mean, variance, epsilon)
            # What x does through its mean and variance
            share = scale * tf.math.rsqrt(variance + epsilon) / tf.cast(tf.shape(x)[2], scale.dtype)
            through = _by(mean, variance, x, share * of_scale, share * of_offset, epsilon)
            return of_x - through, of_scale, of_offset

        return y, gradient

    return normalized(x, scale, offset), mean, variance


def _by(
    mean: Tensor, variance: Tensor, x: Tensor, scale: Tensor, offset: Tensor, epsilon: float
) -> Tensor:
    """Voxels (1, 1, voxels, channels) normalized by given statistics; all else is (channels,)."""
    import tensorflow as tf

    return tf.raw_ops.FusedBatchNormV3(
        x=x,
        scale=scale,
        offset=offset,
        mean=mean,
        variance=variance,
        epsilon=epsilon,
        is_training=False,
    ).y


def _gradient(
    of_y: Tensor, x: Tensor, scale: Tensor, mean: Tensor, variance: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the arguments x, scale and offset of `_by`.

    The operation's own gradient with `is_training` would have those through mean and variance too,
    but is given the variance on a CPU and an inverted standard deviation on a GPU. Sums are taken
    of `_parts`, as in `_statistics`.
    """
    import tensorflow as tf

    parts, channels = _parts(x)
    side_by_side = [1, 1, -1, parts * channels]
    gradients = tf.raw_ops.FusedBatchNormGradV3(
        y_backprop=tf.reshape(of_y, side_by_side),
        x=tf.reshape(x, side_by_side),
        scale=tf.tile(scale, [parts]),
        reserve_space_1=tf.tile(mean, [parts]),
        reserve_space_2=tf.tile(variance, [parts]),
        reserve_space_3=tf.zeros([0]),
        epsilon=epsilon,
        is_training=False,
    )
    of_scale, of_offset = (
        tf.reduce_sum(tf.reshape(sums, [-1, channels]), axis=0)
        for sums in (gradients.scale_backprop, gradients.offset_backprop)
    )
    return tf.reshape(gradients.x_backprop, tf.shape(x)), of_scale, of_offset


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (channels,) float32 of voxels (1, 1, voxels, channels).

    Those of `_parts`, joined. Of what the operation returns, mean and variance of the batch mean
    the same on every device; its reserve spaces do not.
    """
    import tensorflow as tf

    parts, channels = _parts(x)
    any_weights, none = tf.ones([parts * channels]), tf.zeros([0])
    of_parts = tf.raw_ops.FusedBatchNormV3(
        x=tf.reshape(x, [1, 1, -1, parts * channels]),
        scale=any_weights,
        offset=any_weights,
        mean=none,
        variance=none,
    )
    means = tf.reshape(of_parts.batch_mean, [-1, channels])
    # Divided by one voxel less, which of a single one may be no number.
    unbiased = tf.reshape(of_parts.batch_variance, [-1, channels])
    voxels = tf.cast(tf.shape(x)[2] // parts, unbiased.dtype)
    variances = tf.math.multiply_no_nan(unbiased, (voxels - 1) / voxels)
    mean = tf.reduce_mean(means, axis=0)
    return mean, tf.reduce_mean(variances + tf.square(means - mean), axis=0)


def _parts(x: Tensor) -> tuple[Tensor, Any]:
    """Into how many parts the voxels (1, 1, voxels, channels) are taken apart, and the channels.

    Voxels side by side are channels of their own, as far as the number of voxels can be divided by
    powers of two, up to `PARTS`.
    """
    import tensorflow as tf

    voxels = tf.shape(x)[2]
    parts = tf.minimum(tf.bitwise.bitwise_and(voxels, -voxels), PARTS)
    return parts, x.shape[-1] or tf.shape(x)[-1]
