"""Random changes of a sample in stateless TensorFlow ops: the same seed gives the same sample.

A sample is a dict of (*spatial, channels) tensors on one grid: "image", "label" and, where a system
has one, "context" (the last level's probability). What moves voxels moves all of them; what changes
intensities changes the image alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from tf_autoctx.data.arrays import Stored
from tf_autoctx.data.configuration import Augmentation, Deformation, RigidMotion
from tf_autoctx.data.labels import IGNORED

Sample = dict[str, tf.Tensor]

# Slices and rows that are resampled together: what they are made from lies close together too, in
# the processor's cache.
BLOCK = (8, 16)
# Of numbers of voxels: TensorFlow has the host compute what is int32 on a GPU.
INDEX = tf.uint32


def augmented(sample: Sample, seed: tf.Tensor, augmentation: Augmentation) -> Sample:
    """The sample after the changes that `augmentation` asks for, each drawn from the seed.

    Args:
      sample: "image", "label" and whatever else lies on their grid.
      seed: 2 integers.
      augmentation: which changes, and how large.
    """
    seeds = tf.unstack(tf.random.experimental.stateless_split(seed, 4))
    if augmentation.flips:
        sample = flips(sample, seeds[0])
    if augmentation.shift:
        sample = shift(sample, seeds[1], augmentation.shift)
    if augmentation.intensity_jitter:
        sample = intensity_jitter(sample, seeds[2], augmentation.intensity_jitter)
    if augmentation.erase_probability:
        sample = random_erasing(sample, seeds[3], augmentation.erase_probability)
    return sample


def flips(sample: Sample, seed: tf.Tensor) -> Sample:
    """Mirrors each spatial axis with probability 1/2.

    Flips and half-turns about three axes (Yang et al. 2019, section 2.1) have an orbit of 8: these.
    """
    image = sample["image"]
    axes = range(image.shape.rank - 1)
    heads = tf.random.stateless_uniform([len(axes)], seed) < 0.5
    for axis in axes:
        sample = {k: tf.where(heads[axis], tf.reverse(v, [axis]), v) for k, v in sample.items()}
    return sample


def shift(sample: Sample, seed: tf.Tensor, voxels: int) -> Sample:
    """Moves the sample by up to `voxels` along each axis; edge values fill what comes in."""
    rank = sample["image"].shape.rank - 1
    offsets = tf.random.stateless_uniform([rank], seed, -voxels, voxels + 1, tf.int32)
    for axis in range(rank):
        size = tf.shape(sample["image"])[axis]
        index = tf.clip_by_value(tf.range(size) + offsets[axis], 0, size - 1)
        sample = {k: tf.gather(v, index, axis=axis) for k, v in sample.items()}
    return sample


def intensity_jitter(sample: Sample, seed: tf.Tensor, amount: float) -> Sample:
    """Scales the image by a factor in 1 +- amount and adds an offset in +- amount / 2."""
    factor, offset = tf.unstack(tf.random.stateless_uniform([2], seed, -amount, amount))
    return {**sample, "image": sample["image"] * (1 + factor) + offset / 2}


def random_erasing(
    sample: Sample,
    seed: tf.Tensor,
    probability: float,
    area: tuple[float, float] = (0.02, 0.4),
    aspect: float = 0.3,
) -> Sample:
    """Sets a random box around the object to 0 in the image, like a shadow.

    The box takes `area` of the object's bounding box, its edges in ratios of `aspect` to 1 /
    `aspect`, its centre anywhere in that bounding box (Zhong et al. 2017; Yang et al. 2019, section
    2.1). A sample without an object stays as it is.

    Args:
      probability: share of samples that are erased.
    """
    image, label = sample["image"], sample["label"][..., 0]
    label = tf.logical_and(label > 0, label != IGNORED)
    rank = image.shape.rank - 1
    chance, share, *rest = tf.unstack(tf.random.stateless_uniform([2 + 2 * rank], seed))
    ratios, places = tf.stack(rest[:rank]), tf.stack(rest[rank:])
    # Edges relative to the bounding box: log-uniform, then brought to the wanted area.
    log_edges = (ratios - tf.reduce_mean(ratios)) * tf.math.log(1 / aspect)
    edges = tf.exp(log_edges) * (area[0] + share * (area[1] - area[0])) ** (1 / rank)
    keep = tf.logical_not(tf.logical_and(tf.reduce_any(label), chance < probability))
    for axis in range(rank):
        covered = tf.where(tf.reduce_any(label, axis=[a for a in range(rank) if a != axis]))[:, 0]
        first, last = tf.reduce_min(covered), tf.reduce_max(covered)
        extent = tf.cast(last - first + 1, tf.float32)
        centre = tf.cast(first, tf.float32) + places[axis] * extent
        voxel = tf.range(tf.cast(tf.shape(image)[axis], tf.float32)) + 0.5
        outside = tf.abs(voxel - centre) > edges[axis] * extent / 2
        shape = [-1 if a == axis else 1 for a in range(rank)]
        keep = tf.logical_or(keep, tf.reshape(outside, shape))
    return {**sample, "image": image * tf.cast(keep, image.dtype)[..., None]}


def appearance(image: tf.Tensor, seed: tf.Tensor, strength: float) -> tf.Tensor:
    """An image as a scanner with other settings might show it: nothing moves.

    Gain along the depth, contrast, brightness, gamma, blur and noise change one after the other,
    all of them in every image, each by an amount drawn evenly up to its largest.

    Args:
      image: (height, width, 1) float32, from 0 to 1, depth downwards.
      seed: 2 integers.
      strength: of the largest amounts; at 1 they are a half up and down for gain (at the first and
        the last row) and contrast, 0.3 for brightness, a factor of 2.5 for the exponent, 1.5 pixels
        for blur and 0.1 for noise.

    Returns:
      (height, width, 1) float32, from 0 to 1.
    """
    seeds = tf.unstack(tf.random.experimental.stateless_split(seed, 2))
    amounts = strength * tf.random.stateless_uniform([6], seeds[0], -1.0, 1.0)
    gain, contrast, brightness, exponent, blur, noise = tf.unstack(amounts)
    depth = tf.linspace(-1.0, 1.0, tf.shape(image)[0])[:, None, None]
    seen = image * (1 + 0.5 * gain * depth)
    mean = tf.reduce_mean(seen)
    seen = mean + (1 + 0.5 * contrast) * (seen - mean) + 0.3 * brightness
    seen = tf.clip_by_value(seen, 0.0, 1.0) ** 2.5**exponent
    seen = _blurred(seen, 1.5 * tf.abs(blur))
    seen += 0.1 * tf.abs(noise) * tf.random.stateless_normal(tf.shape(image), seeds[1])
    return tf.ensure_shape(tf.clip_by_value(seen, 0.0, 1.0), image.shape)


def _blurred(image: tf.Tensor, sd: tf.Tensor, reach: int = 5) -> tf.Tensor:
    """An image (height, width, 1) of at least `reach` pixels an edge, after a Gaussian of an SD in
    pixels that is cut off at `reach`; edges are mirrored."""
    offsets = tf.range(-reach, reach + 1, dtype=tf.float32)
    weights = tf.exp(-0.5 * (offsets / tf.maximum(sd, 1e-3)) ** 2)
    weights /= tf.reduce_sum(weights)
    padded = tf.pad(image, [[reach, reach], [reach, reach], [0, 0]], "SYMMETRIC")[None]
    for shape in ((-1, 1, 1, 1), (1, -1, 1, 1)):
        padded = tf.nn.conv2d(padded, tf.reshape(weights, shape), 1, "VALID")
    return padded[0]


def deformed(
    deformation: Deformation,
    grids: Sequence[np.ndarray],
    seed: tf.Tensor,
    unit: float,
    spacing: tf.Tensor,
) -> list[tf.Tensor]:
    """Where the points of grids land after one random deformation of space.

    A translation, a rotation and a displacement by a cubic B-spline of random control points (Roth
    et al. 2018, section 2.3; Cicek et al. 2016). The transform may be looked at through several
    grids of one centre, and is applied in one resampling each.

    Args:
      deformation: how large its parts are, in units.
      grids: 1D arrays, offsets from the centre in voxels; every grid is a cube of its offsets.
      seed: 2 integers.
      unit: voxels a unit.
      spacing: (3,) mm a voxel; a rotation is rigid in mm.

    Returns:
      One (n, n, n, 3) float32 tensor a grid: offsets from the centre after the transform, in
      voxels.
    """
    seeds = tf.unstack(tf.random.experimental.stateless_split(seed, 3))
    translation = tf.random.stateless_uniform([3], seeds[0], -1.0, 1.0) * deformation.shift * unit
    turn = _rotation(_angles(seeds[1], deformation.rotation)) * spacing / spacing[:, None]
    interval = deformation.elastic_spacing * unit
    reach = max(abs(offset) for grid in grids for offset in grid)
    intervals = max(1, math.ceil(2 * reach / interval))
    displacements = tf.random.stateless_normal([intervals + 3] * 3 + [3], seeds[2])
    points = displacements * deformation.elastic * unit
    landed = []
    for grid in grids:
        offsets = tf.constant(grid, tf.float32)
        at = [offsets[:, None, None], offsets[:, None], offsets]
        if deformation.elastic:
            weights = _cubic_b_spline(
                (offsets[:, None] + reach) / interval
                + 1.0
                - tf.range(intervals + 3, dtype=tf.float32)
            )
            bent = tf.unstack(_spline(weights, points), axis=-1)
            at = [offset + displacement for offset, displacement in zip(at, bent)]
        landed.append(tf.stack(_placed(turn, translation, at), axis=-1))
    return landed


def moved(sample: Sample, seed: tf.Tensor, motion: RigidMotion) -> Sample:
    """{"image", "label"} on their grid after a random rigid motion about its centre.

    Rotation, translation and flips in one resampling (Xu et al. 2020, section 3.1). What comes in
    from outside continues the image by its edge values and has no label: filled with 0, most of
    what a network learns from a flat volume would be black, and an unmoved volume strange to it.

    Args:
      sample: {"image": (depth, height, width, 1) float32, "label": likewise, integer, "spacing":
        (3,) mm}; the rotation is rigid in mm.
      seed: 2 integers.
      motion: how large its parts may be.
    """
    image, label, spacing = sample["image"], sample["label"], sample["spacing"]
    seeds = tf.unstack(tf.random.experimental.stateless_split(seed, 3))
    angles = _angles(seeds[0], motion.rotation)
    translation = tf.random.stateless_uniform([3], seeds[1], -1.0, 1.0) * motion.shift
    heads = tf.random.stateless_uniform([3], seeds[2]) < 0.5
    mirrored = tf.cast(heads, tf.float32) * float(motion.flips)
    # Where a voxel comes from: flipped back, moved back, turned back.
    turn = tf.transpose(_rotation(angles)) * spacing / spacing[:, None]
    centre = tf.cast(tf.shape(image)[:3] - 1, tf.float32) / 2

    def back(axis: int, voxels: tf.Tensor) -> tf.Tensor:
        offset = tf.cast(voxels, tf.float32) - centre[axis]
        return offset * (1 - 2 * mirrored[axis]) - translation[axis]

    def moved_block(z: tf.Tensor, y: tf.Tensor, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        offsets = back(0, z)[:, None, None], back(1, y)[:, None], back(2, x)
        at = _placed(turn, centre, offsets)
        inside = [tf.clip_by_value(a, 0, 2 * centre[axis]) for axis, a in enumerate(at)]
        return _linear(image, inside), _nearest(label, at)

    moved_image, moved_label = _in_blocks(moved_block, (image, label))
    return {"image": moved_image, "label": moved_label}


def _in_blocks(
    resampled: Callable[..., tuple[tf.Tensor, ...]], volumes: Sequence[tf.Tensor]
) -> list[tf.Tensor]:
    """Volumes on their grid, a block of slices and rows at a time: the points of all of it would
    take several times its memory.

    Args:
      resampled: voxels along z, y and x, int32 -> (z, y, x, channels) of each volume. It is asked
        for voxels beyond the ends, too.
      volumes: (depth, height, width, channels), of the shapes and dtypes that come out.
    """
    depth, height, width = tf.unstack(tf.shape(volumes[0])[:3])
    slices, rows = BLOCK
    below, across = -(-depth // slices), -(-height // rows)

    def block(number: tf.Tensor) -> tuple[tf.Tensor, ...]:
        z, y = number // across * slices, number % across * rows
        return resampled(z + tf.range(slices), y + tf.range(rows), tf.range(width))

    blocks = tf.map_fn(
        block,
        tf.range(below * across),
        fn_output_signature=tuple(volume.dtype for volume in volumes),
    )
    joined = []
    for volume, parts in zip(volumes, blocks):
        shape = (below, across, slices, rows, width, volume.shape[-1])
        whole = tf.reshape(
            tf.transpose(tf.reshape(parts, shape), (0, 2, 1, 3, 4, 5)),
            (below * slices, across * rows, width, volume.shape[-1]),
        )
        joined.append(tf.ensure_shape(whole[:depth, :height], volume.shape))
    return joined


def _angles(seed: tf.Tensor, degrees: float) -> tf.Tensor:
    """Three angles in radians, uniform up to so many degrees either way."""
    return tf.random.stateless_uniform([3], seed, -1.0, 1.0) * (degrees * math.pi / 180)


def _rotation(angles: tf.Tensor) -> tf.Tensor:
    """(3, 3) rotation by three angles (radians) about the three axes, one after the other."""
    turn = tf.eye(3)
    for axis, (cos, sin) in enumerate(zip(tf.unstack(tf.cos(angles)), tf.unstack(tf.sin(angles)))):
        a, b = [other for other in range(3) if other != axis]
        rows = tf.unstack(turn)
        rows[a], rows[b] = cos * rows[a] - sin * rows[b], sin * rows[a] + cos * rows[b]
        turn = tf.stack(rows)
    return turn


def _placed(turn: tf.Tensor, start: tf.Tensor, offsets: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """The three coordinates of points at offsets that a (3, 3) matrix turns about a start (3,).

    Written out, as in all that says where a voxel is: a matrix product on a GPU may round its
    factors to 10 bits (TensorFloat-32), which moves a point of a large volume by a part of a voxel.
    """
    z, y, x = offsets
    return [
        row[0] * z + place + row[1] * y + row[2] * x
        for row, place in zip(tf.unstack(turn), tf.unstack(start))
    ]


def _spline(weights: tf.Tensor, points: tf.Tensor) -> tf.Tensor:
    """A tensor product of splines: weights (n, k) and control points (k, k, k, channels) to
    (n, n, n, channels)."""
    for axis in reversed(range(3)):
        shape = [-1 if a == axis else 1 for a in range(4)]
        points = tf.add_n(
            [
                tf.reshape(weight, shape) * tf.expand_dims(point, axis)
                for weight, point in zip(tf.unstack(weights, axis=1), tf.unstack(points, axis=axis))
            ]
        )
    return points


def _cubic_b_spline(t: tf.Tensor) -> tf.Tensor:
    """The centred cubic B-spline, 2/3 at 0 and 0 from +-2 on."""
    t = tf.abs(t)
    return tf.where(t < 1, 2 / 3 - t**2 + t**3 / 2, tf.maximum(2 - t, 0) ** 3 / 6)


def sample_linear(volume: Stored, index: tf.Tensor) -> tf.Tensor:
    """Linear interpolation; 0 (which is air, after windowing) outside. Of the volume the box around
    the points is read.

    Args:
      volume: (depth, height, width, channels) float32.
      index: (..., 3) float32, voxel centres at whole numbers.

    Returns:
      (..., channels) float32.
    """
    covered: tf.Tensor = 1.0
    inside, lows, highs = [], [], []
    for at, edge in zip(tf.unstack(index, axis=-1), tf.unstack(volume.shape()[:3])):
        last = tf.cast(edge - 1, tf.float32)
        # Within a voxel of the volume its outermost voxels fade to 0.
        covered *= tf.clip_by_value(tf.minimum(at + 1, last + 1 - at), 0, 1)
        inside.append(tf.clip_by_value(at, 0, last))
        lows.append(tf.floor(tf.reduce_min(inside[-1])))
        highs.append(tf.minimum(tf.floor(tf.reduce_max(inside[-1])) + 1, last))
    low = tf.stack(lows)
    box = volume.cut(tf.cast(low, tf.int32), tf.cast(tf.stack(highs) - low + 1, tf.int32))
    return _linear(box, [at - low for at, low in zip(inside, lows)]) * covered[..., None]


def sample_nearest(volume: Stored, index: tf.Tensor) -> tf.Tensor:
    """The nearest voxels, 0 outside.

    Args: volume (depth, height, width, channels), index (..., 3). Returns (..., channels).
    """
    nearest, inside = _rounded(tf.unstack(index, axis=-1), volume.shape())
    values = volume.at([tf.cast(along, tf.int32) for along in nearest])
    return tf.where(inside[..., None], values, tf.zeros([], values.dtype))


def _linear(volume: tf.Tensor, at: Sequence[tf.Tensor]) -> tf.Tensor:
    """Linear interpolation at points inside a volume: (..., channels) at three coordinates
    (...)."""
    steps: list[tf.Tensor] = []
    starts, parts = [], []
    for coordinate, edge in zip(at, tf.unstack(tf.shape(volume)[:3])):
        # The last voxel is the end of the interval before it.
        low = tf.minimum(tf.floor(coordinate), tf.cast(tf.maximum(edge - 2, 0), tf.float32))
        starts.append(low)
        steps = [step * edge for step in steps] + [tf.minimum(edge - 1, 1)]
        parts.append((coordinate - low)[..., None])
    first = _flat(volume, starts)

    def between(axis: int, start: tf.Tensor) -> tf.Tensor:
        if axis == 3:
            return _voxels(volume, start)
        high = start + tf.cast(steps[axis], INDEX)
        low_part, high_part = between(axis + 1, start), between(axis + 1, high)
        return low_part * (1 - parts[axis]) + high_part * parts[axis]

    return between(0, first)


def _nearest(volume: tf.Tensor, at: Sequence[tf.Tensor]) -> tf.Tensor:
    """The nearest voxels (..., channels) at three coordinates (...), 0 outside."""
    nearest, inside = _rounded(at, tf.shape(volume))
    values = _voxels(volume, _flat(volume, nearest))
    return tf.where(inside[..., None], values, tf.zeros([], values.dtype))


def _rounded(at: Sequence[tf.Tensor], shape: tf.Tensor) -> tuple[list[tf.Tensor], tf.Tensor]:
    """Three coordinates of the nearest voxels of a volume, float32, and whether those are nearest
    of all."""
    inside: tf.Tensor = True
    index = []
    for coordinate, edge in zip(at, tf.unstack(shape[:3])):
        nearest = tf.floor(coordinate + 0.5)
        index.append(tf.clip_by_value(nearest, 0, tf.cast(edge - 1, tf.float32)))
        inside = tf.logical_and(inside, nearest == index[-1])
    return index, inside


def _flat(volume: tf.Tensor, index: Sequence[tf.Tensor]) -> tf.Tensor:
    """Numbers of voxels in C order, from whole numbers along three axes."""
    number: tf.Tensor = 0
    for along, edge in zip(index, tf.unstack(tf.shape(volume)[:3])):
        number = tf.cast(edge, INDEX) * number + tf.cast(along, INDEX)
    return number


def _voxels(volume: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
    """(..., channels) of voxels by their numbers; by three numbers each it would take several
    times as long."""
    return tf.gather(tf.reshape(volume, (-1, volume.shape[-1])), tf.bitcast(number, tf.int32))
