"""Largest components and filled holes of labels as a graph of TensorFlow's stock operations.

The answers of `postprocessing.postprocess`, which is for programs without TensorFlow. A label is
looked at as runs of voxels along the last axis, of which there are far fewer than voxels, and for
the largest components all structures together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

Tensor = Any
VALUES = 256  # of a uint8


def postprocess(
    label: Tensor, largest_component: Sequence[int] = (), fill_holes: Sequence[int] = ()
) -> Tensor:
    """The largest component of some structures, and then holes of some filled, see
    `postprocessing.postprocess`.

    Args:
      label: (batch, *spatial, 1) uint8, 2 or 3 spatial axes of any size.
      largest_component: values of the structures of which the largest component alone is kept.
      fill_holes: values of those whose holes are filled.

    Returns:
      The same shape, uint8.
    """
    flat = label.shape.rank == 4

    def of_image(image: Tensor) -> Tensor:
        volume = image[None, ..., 0] if flat else image[..., 0]
        changed = _of_volume(volume, largest_component, fill_holes, flat)
        return changed[0, ..., None] if flat else changed[..., None]

    # Counting and joining in whole numbers is work for a CPU; beside a GPU there is one too.
    with tf.device("/CPU:0"):
        changed = tf.map_fn(of_image, label, parallel_iterations=1)
    changed.set_shape(label.shape)
    return changed


def _of_volume(
    volume: Tensor, largest_component: Sequence[int], fill_holes: Sequence[int], flat: bool
) -> Tensor:
    """`postprocess` of a volume (depth, height, width); one slice where it is `flat`."""
    low, size = _box(volume > 0)
    before = part = tf.slice(volume, low, size)
    if largest_component:
        part = _largest(part, largest_component)
    if fill_holes:
        part = _filled(part, fill_holes, flat)
    changes = tf.bitwise.bitwise_xor(before, part)
    return tf.bitwise.bitwise_xor(volume, _put_back(changes, low, tf.shape(volume)))


def _largest(label: Tensor, values: Sequence[int]) -> Tensor:
    """A label (depth, height, width) with the largest component of some values: the first of
    equals, all others become background."""
    run, root, begin = _components(label)
    voxels, runs = tf.size(label), tf.size(root)
    value = tf.cast(tf.gather(tf.reshape(label, [-1]), begin), tf.int32)
    length = tf.concat([begin[1:], [voxels]], axis=0) - begin
    size = tf.math.unsorted_segment_sum(length, root, runs)  # of a component, at its root
    largest = tf.math.unsorted_segment_max(size, value, VALUES)
    is_largest = tf.equal(size, tf.gather(largest, value))
    rivals = tf.where(is_largest, tf.range(runs), runs)
    first = tf.math.unsorted_segment_min(rivals, value, VALUES)
    is_meant = tf.constant(np.isin(np.arange(VALUES), values))
    kept = tf.equal(root, tf.gather(first, value)) | ~tf.gather(is_meant, value)
    return tf.where(tf.gather(kept, run), label, tf.zeros((), label.dtype))


def _filled(label: Tensor, values: Sequence[int], flat: bool) -> Tensor:
    """A label (depth, height, width) with the holes of some values filled; of structures inside
    each other, the smallest gets a hole, which is the inner one, and of equals the first."""
    around = [[0, 0] if flat else [1, 1], [1, 1], [1, 1]]
    within = slice(None) if flat else slice(1, -1)

    def with_holes(state: tuple[Tensor, Tensor], value: Tensor) -> tuple[Tensor, Tensor]:
        filled, smallest = state
        mask = tf.equal(label, value)
        low, size = _box(mask)
        # What surrounds the box is joined to its first voxel, which is none of the structure.
        inside = tf.pad(tf.slice(mask, low, size), around)
        run, root, _ = _components(tf.cast(inside, tf.uint8))
        hole = tf.gather(root > 0, run) & ~inside
        hole = _put_back(hole[within, 1:-1, 1:-1], low, tf.shape(label))
        extent = _count(mask) + _count(hole)
        new = hole & tf.equal(label, 0) & (extent < smallest)
        return tf.where(new, value, filled), tf.where(new, extent, smallest)

    start = label, tf.fill(tf.shape(label), tf.int32.max)
    structures = tf.constant(sorted(values), label.dtype)
    filled, _ = tf.foldl(with_holes, structures, start, parallel_iterations=1)
    return filled


def _components(label: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The components of all values of a label (depth, height, width), the background's too.

    A run is a line of voxels of one value along the last axis; runs are counted from 0 in the order
    of their first voxels. A component is the runs that are connected by faces of voxels.

    Returns:
      (the run of every voxel (depth, height, width), the first run of the component of every run,
      its root (runs,), the first voxel of every run (runs,)), int32.
    """
    begins = tf.concat(
        [tf.ones_like(label[..., :1], tf.bool), tf.not_equal(label[..., 1:], label[..., :-1])],
        axis=-1,
    )
    in_line = tf.reshape(begins, [-1])
    begin = tf.cast(tf.where(in_line)[:, 0], tf.int32)
    run = tf.reshape(tf.cumsum(tf.cast(in_line, tf.int32)) - 1, tf.shape(label))
    touching = [_touching(label, begins, run, axis) for axis in (0, 1)]
    a, b = (tf.concat([pairs[side] for pairs in touching], axis=0) for side in (0, 1))
    return run, _joined(a, b, tf.size(begin)), begin


def _touching(label: Tensor, begins: Tensor, run: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Pairs of runs of one value that are neighbours along one of the first two axes, each once:
    where both begin to lie side by side."""

    def sides(x: Tensor) -> tuple[Tensor, Tensor]:
        return (x[1:], x[:-1]) if axis == 0 else (x[:, 1:], x[:, :-1])

    first_begins, second_begins = sides(begins)
    touches = tf.equal(*sides(label)) & (first_begins | second_begins)
    first, second = (tf.boolean_mask(of_side, touches) for of_side in sides(run))
    return first, second


def _joined(a: Tensor, b: Tensor, count: Tensor) -> Tensor:
    """The lowest number that each of `count` numbers is connected to.

    Every number points at a lower one. Those that two connected ones point at are pointed at the
    lower of these two, and all are pointed at what theirs points at, until nothing moves (FastSV,
    Zhang et al. 2020, without its shortcuts): paths grow shorter by half.

    Args:
      a, b: (pairs,) int32 numbers that are connected.
      count: of the numbers.

    Returns:
      (count,) int32.
    """

    def is_left(root: Tensor, moves: Tensor) -> Tensor:
        return moves

    def nearer(root: Tensor, moves: Tensor) -> tuple[Tensor, Tensor]:
        next_one = tf.gather(root, root)
        low = tf.minimum(tf.gather(next_one, a), tf.gather(next_one, b))
        pointed_at = tf.concat([tf.gather(root, a), tf.gather(root, b)], axis=0)
        hooked = tf.math.unsorted_segment_min(tf.concat([low, low], axis=0), pointed_at, count)
        new = tf.minimum(next_one, hooked)
        return new, tf.reduce_any(tf.not_equal(new, root))

    start = tf.range(count), tf.constant(True)
    return tf.while_loop(is_left, nearer, start, parallel_iterations=1)[0]


def _box(mask: Tensor) -> tuple[Tensor, Tensor]:
    """The first voxel (3,) and the size (3,) of the box around what is true in a bool mask; of
    nothing, a box of one voxel."""
    low, high = [], []
    for axis in range(3):
        is_there = tf.reduce_any(mask, axis=[other for other in range(3) if other != axis])
        places, count = tf.range(tf.size(is_there)), tf.size(is_there)
        low.append(tf.reduce_min(tf.where(is_there, places, count - 1)))
        high.append(tf.maximum(tf.reduce_max(tf.where(is_there, places, 0)), low[-1]))
    first = tf.stack(low)
    return first, tf.stack(high) - first + 1


def _put_back(part: Tensor, low: Tensor, size: Tensor) -> Tensor:
    """A part of a volume in nothing of the volume's size, where it was cut out at `low`."""
    return tf.pad(part, tf.stack([low, size - low - tf.shape(part)], axis=1))


def _count(mask: Tensor) -> Tensor:
    return tf.math.count_nonzero(mask, dtype=tf.int32)
