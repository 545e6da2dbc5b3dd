"""What a backend of Keras does better than Keras' own operations.

The one place of this room that asks which backend runs, and that imports one: within functions, so
that the others need not have it.
"""

from __future__ import annotations

from typing import Any

import keras

Tensor = Any


def has_replicas() -> bool:
    """Whether several replicas may train: with TensorFlow alone."""
    return keras.backend.backend() == "tensorflow"


def instance_normalization(x: Tensor, gamma: Tensor, beta: Tensor, epsilon: float) -> Tensor | None:
    """Each channel of each sample by its own mean and variance, in one operation.

    A chain of operations passes over the volume several times. TensorFlow has one that takes the
    statistics of a channel over all samples, which here are channels of one sample: of one, nothing
    moves in memory.

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

    shape, rank, channels = tf.shape(x), len(x.shape), x.shape[-1]
    batch, spatial = shape[0], [*range(1, rank - 1)]
    side_by_side = tf.transpose(x, [*spatial, 0, rank - 1])
    y = tf.raw_ops.FusedBatchNormV3(
        x=tf.reshape(side_by_side, [1, -1, shape[-2], batch * channels]),
        scale=tf.tile(tf.convert_to_tensor(gamma), [batch]),
        offset=tf.tile(tf.convert_to_tensor(beta), [batch]),
        mean=tf.zeros([0]),
        variance=tf.zeros([0]),
        epsilon=epsilon,
        is_training=True,
    ).y
    y = tf.transpose(tf.reshape(y, tf.shape(side_by_side)), [rank - 2, *range(rank - 2), rank - 1])
    return tf.ensure_shape(y, x.shape)
