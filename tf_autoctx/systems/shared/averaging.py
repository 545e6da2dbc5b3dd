"""What several sets of networks make of an image and of its mirror images: the mean, and how unsure
it is."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf
from keras import ops

Tensor = Any
Estimate = Mapping[str, Tensor]  # of `System.estimate`
Estimator = Callable[[Tensor], Estimate]


def mean(estimators: Sequence[Estimator], image: Tensor, mirrors: Sequence[int] = ()) -> Estimate:
    """The mean of all estimates of images and of their mirror images, one after the other: it takes
    the memory of one.

    Args:
      estimators: images (batch, *spatial, channels) -> {name: (batch, *grid, channels) float32}.
      image: such images.
      mirrors: axes of them, the first spatial one is 0; images are mirrored along every
        combination of these, and the estimates are mirrored back.

    Returns:
      {name: (batch, *grid, channels) float32}.
    """
    total = _mirrored(estimators, image, mirrors) if mirrors else _sum(estimators, image)
    count = len(estimators) * 2 ** len(mirrors)
    return {name: x / count for name, x in total.items()} if count > 1 else total


def _sum(estimators: Sequence[Estimator], image: Tensor) -> Estimate:
    total: Estimate = {}
    for estimate in estimators:
        # TensorFlow would run all of them at once.
        with tf.control_dependencies(list(total.values())):
            image = tf.identity(image)
        added = estimate(image)
        total = {name: x + total[name] if total else x for name, x in added.items()}
    return total


def _mirrored(estimators: Sequence[Estimator], image: Tensor, mirrors: Sequence[int]) -> Estimate:
    """Sum over the estimates of images and of all their mirror images."""
    image = tf.convert_to_tensor(image)
    combinations = [*itertools.product([False, True], repeat=len(mirrors))]
    turned = tf.constant(combinations)
    spec = tf.TensorSpec(image.shape, image.dtype), tf.TensorSpec((len(mirrors),), tf.bool)

    # A graph of its own, which holds the networks once for all mirror images.
    @tf.function(input_signature=spec, autograph=False)
    def once(image: Tensor, which: Tensor) -> Estimate:
        def mirror(x: Tensor) -> Tensor:
            for number, axis in enumerate(mirrors):
                x = tf.where(which[number], tf.reverse(x, [axis + 1]), x)
            return x

        return {name: mirror(x) for name, x in _sum(estimators, mirror(image)).items()}

    def is_left(number: Tensor, total: Estimate) -> Tensor:
        return number < len(combinations)

    def added(number: Tensor, total: Estimate) -> tuple[Tensor, Estimate]:
        one_more = once(image, turned[number])
        return number + 1, {name: x + one_more[name] for name, x in total.items()}

    first = tf.constant(1), once(image, turned[0])
    return tf.while_loop(is_left, added, first, parallel_iterations=1)[1]


def uncertainty(probability: Tensor, structures: int) -> Tensor:
    """Entropy of a voxel's probabilities in bits, divided by its largest value: 0 is sure, 1 is
    undecided.

    Args:
      probability: (batch, *spatial, channels), the last channels those of the structures. With a
        background before them, they are classes of which one is there. Without, each structure is
        there or not: the entropy is the largest of theirs.
      structures: how many there are.

    Returns:
      (batch, *spatial, 1) float32 in [0, 1].
    """
    classes = probability.shape[-1]
    if classes > structures:
        entropy = ops.sum(_bits(probability), axis=-1, keepdims=True) / math.log2(classes)
    else:
        of_each = _bits(probability) + _bits(1 - probability)
        entropy = ops.max(of_each, axis=-1, keepdims=True)
    return ops.clip(entropy, 0.0, 1.0)


def _bits(p: Tensor) -> Tensor:
    """-p log2 p, which is 0 at 0, and beyond by rounding."""
    return -p * ops.log(ops.where(p > 0, p, 1.0)) / math.log(2)
