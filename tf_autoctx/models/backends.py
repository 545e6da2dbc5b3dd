"""What a backend of Keras does better than Keras' own operations.

The one place of this room that asks which backend runs, and that imports one: within functions, so
that the others need not have it.
"""

from __future__ import annotations

from typing import Any

import keras

Tensor = Any

# Parts of a volume whose statistics are taken apart: sums of millions of voxels lose too much.
PARTS = 64


def has_replicas() -> bool:
    """Whether several replicas may train: with TensorFlow alone."""
    return keras.backend.backend() == "tensorflow"


def instance_normalization(x: Tensor, gamma: Tensor, beta: Tensor, epsilon: float) -> Tensor | None:
    """Each channel of each sample by its own mean and variance.

    In Keras that is a chain of operations, each of which passes over the volume. TensorFlow has one
    that takes the statistics of a channel over all samples; those of a batch become channels of one
    here, which moves nothing in memory where there is one.

    Args:
      x: (batch, *spatial, channels), of two spatial axes or more.
      gamma, beta: (channels,) float32.
      epsilon: is added to the variance.

    Returns:
      The same shape and type; None where the backend has no such operation for the type.
    """
    if keras.backend.backend() != "tensorflow" or x.dtype == "float64":
        return None
    import tensorflow as tf

    scale, offset = tf.convert_to_tensor(gamma), tf.convert_to_tensor(beta)
    normalize = _by_a_gpu if tf.config.list_physical_devices("GPU") else _by_a_cpu
    shape, channels = tf.shape(x), x.shape[-1]
    if x.shape[0] == 1:
        y = normalize(tf.reshape(x, [1, 1, -1, channels]), scale, offset, epsilon)
        y = tf.reshape(y, shape)
    else:
        rank, batch = len(x.shape), shape[0]
        side_by_side = tf.transpose(x, [*range(1, rank - 1), 0, rank - 1])
        voxels = tf.reshape(side_by_side, [1, 1, -1, batch * channels])
        y = normalize(voxels, tf.tile(scale, [batch]), tf.tile(offset, [batch]), epsilon)
        y = tf.reshape(y, tf.shape(side_by_side))
        y = tf.transpose(y, [rank - 2, *range(rank - 2), rank - 1])
    y.set_shape(x.shape)
    return y


def _by_a_gpu(x: Tensor, scale: Tensor, offset: Tensor, epsilon: float) -> Tensor:
    """Normalized voxels (1, 1, voxels, channels); scale and offset are (channels,)."""
    import tensorflow as tf

    none = tf.zeros([0])
    return tf.raw_ops.FusedBatchNormV3(
        x=x, scale=scale, offset=offset, mean=none, variance=none, epsilon=epsilon
    ).y


def _by_a_cpu(x: Tensor, scale: Tensor, offset: Tensor, epsilon: float) -> Tensor:
    """The same by `_statistics`, as the operation of a CPU adds up a channel voxel by voxel: of 4
    million voxels, what it makes is off by a hundredth, Keras' own by a thousandth.

    The gradient knows that they follow from x.
    """
    import tensorflow as tf

    @tf.custom_gradient
    def normalized(x: Tensor, scale: Tensor, offset: Tensor) -> Any:
        mean, variance = _statistics(x)
        y = tf.raw_ops.FusedBatchNormV3(
            x=x,
            scale=scale,
            offset=offset,
            mean=mean,
            variance=variance,
            epsilon=epsilon,
            is_training=False,
        ).y

        def gradient(of_y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            gradients = tf.raw_ops.FusedBatchNormGradV3(
                y_backprop=of_y,
                x=x,
                scale=scale,
                reserve_space_1=mean,
                reserve_space_2=variance,
                reserve_space_3=tf.zeros([0]),
                epsilon=epsilon,
            )
            return gradients.x_backprop, gradients.scale_backprop, gradients.offset_backprop

        return y, gradient

    return normalized(x, scale, offset)


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (channels,) float32 of voxels (1, 1, voxels, channels).

    Voxels side by side are channels of their own, as far as the number of voxels can be divided by
    powers of two; the statistics of these are joined.
    """
    import tensorflow as tf

    channels = x.shape[-1] or tf.shape(x)[-1]
    voxels = tf.size(x) // channels
    parts = tf.minimum(tf.bitwise.bitwise_and(voxels, -voxels), PARTS)
    any_weights, none = tf.ones([parts * channels]), tf.zeros([0])
    of_parts = tf.raw_ops.FusedBatchNormV3(
        x=tf.reshape(x, [1, 1, -1, parts * channels]),
        scale=any_weights,
        offset=any_weights,
        mean=none,
        variance=none,
    )
    # On a CPU these are mean and variance; `batch_variance` is divided by one voxel less.
    kept = of_parts.reserve_space_1, of_parts.reserve_space_2
    means, variances = (tf.reshape(values, [-1, channels]) for values in kept)
    mean = tf.reduce_mean(means, axis=0)
    return mean, tf.reduce_mean(variances + tf.square(means - mean), axis=0)
