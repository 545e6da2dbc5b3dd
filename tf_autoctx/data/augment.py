"""Random changes of a sample in stateless TensorFlow ops: the same seed gives the same sample.

A sample is a dict of (*spatial, channels) tensors on one grid, in 2D or 3D: "image", "label" and,
where a system has one, "context" (the last level's probability). What moves voxels moves all of
them; what changes intensities changes the image alone, each channel by itself.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tensorflow as tf

from tf_autoctx.data.arrays import Stored
from tf_autoctx.data.configuration import Augmentation
from tf_autoctx.data.labels import IGNORED

Sample = dict[str, tf.Tensor]
Bend = Callable[[Sequence[tf.Tensor]], list[tf.Tensor]]

# Slices and rows that are resampled together: what they are made from lies close together too, in
# the processor's cache.
BLOCK = (8, 16)
# Of numbers of voxels: TensorFlow has the host compute what is int32 on a GPU.
INDEX = tf.uint32
# What seeds are folded with, so that no change draws the numbers of another
INTENSITIES, PARTS, SIZE, ELASTIC, MIRRORS, PATCH = range(1, 7)
FAKES, REALS, ABOUT, CONTEXT, ALONG = range(7, 12)


def augmented(sample: Sample, seed: tf.Tensor, augmentation: Augmentation) -> Sample:
    """The sample after the changes that `augmentation` asks for, each drawn from the seed.

    Args:
      sample: "image", "label" and whatever else lies on their grid; besides "spacing", mm a voxel
        along its axes (of a slice of a volume, along the volume's), where that is known.
      seed: 2 integers.
      augmentation: which changes, and how large.

    Returns:
      The sample without "spacing".
    """
    seeds = tf.unstack(tf.random.experimental.stateless_split(seed, 4))
    # What is resampled draws from three of such seeds itself.
    intensities = tf.random.fold_in(seed, INTENSITIES) if augmentation.resamples else seeds[2]
    return shown(placed(sample, seed, augmentation), (intensities, seeds[3]), augmentation)


def placed(sample: Sample, seed: tf.Tensor, augmentation: Augmentation) -> Sample:
    """The part of `augmented` that moves voxels; images and labels may be missing, or have a number
    behind their names."""
    if augmentation.resamples:
        return moved(sample, seed, augmentation)
    sample = {name: tensor for name, tensor in sample.items() if name != "spacing"}
    seeds = tf.unstack(tf.random.experimental.stateless_split(seed, 4))
    if augmentation.flips:
        sample = flips(sample, seeds[0])
    if augmentation.shift:
        sample = shift(sample, seeds[1], augmentation.shift)
    return sample


def shown(
    sample: Sample,
    seeds: tuple[tf.Tensor, tf.Tensor],
    augmentation: Augmentation,
    edges: Mapping[str, float] | None = None,
) -> Sample:
    """The part of `augmented` that moves nothing: other intensities, and erasing.

    Args:
      sample: with "label" and the images.
      seeds: of intensities and of erasing, 2 integers each.
      augmentation: which changes, and how large.
      edges: {image: edge of its voxels, in those of the label}, of several views of one volume
        about one centre; they change by the same amounts. By default "image" alone, of 1.
    """
    edges = edges or {"image": 1.0}
    if augmentation.recolours:
        sample = sample | {
            name: recoloured(sample[name], seeds[0], augmentation, view)
            for view, name in enumerate(edges)
        }
    if augmentation.erase_probability:
        sample = random_erasing(sample, seeds[1], augmentation.erase_probability, edges=edges)
    return sample


def own_seeds(seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Those of `shown` for a sample that was moved as it was read, by the same seed."""
    own = tf.random.fold_in(seed, INTENSITIES)
    intensities, erasing = tf.unstack(tf.random.experimental.stateless_split(own, 2))
    return intensities, erasing


def flips(sample: Sample, seed: tf.Tensor) -> Sample:
    """Mirrors each spatial axis with probability 1/2.

    Flips and half-turns about three axes (Yang et al. 2019, section 2.1) have an orbit of 8: these.
    """
    axes = range(_rank(sample))
    heads = tf.random.stateless_uniform([len(axes)], seed) < 0.5
    for axis in axes:
        sample = {k: tf.where(heads[axis], tf.reverse(v, [axis]), v) for k, v in sample.items()}
    return sample


def shift(sample: Sample, seed: tf.Tensor, voxels: int) -> Sample:
    """Moves the sample by up to `voxels` along each axis; edge values fill what comes in."""
    rank, grid = _rank(sample), next(iter(sample.values()))
    offsets = tf.random.stateless_uniform([rank], seed, -voxels, voxels + 1, tf.int32)
    for axis in range(rank):
        size = tf.shape(grid)[axis]
        index = tf.clip_by_value(tf.range(size) + offsets[axis], 0, size - 1)
        sample = {k: tf.gather(v, index, axis=axis) for k, v in sample.items()}
    return sample


def _rank(sample: Sample) -> int:
    """How many axes the grid of a sample has."""
    return next(iter(sample.values())).shape.rank - 1


def recoloured(
    image: tf.Tensor, seed: tf.Tensor, augmentation: Augmentation, view: int = 0
) -> tf.Tensor:
    """An image of other intensities, each channel by amounts of its own.

    Brightness and contrast, gamma, blur, coarser voxels and noise change one after the other, those
    that `augmentation` asks for.

    Args:
      image: (*spatial, channels) float32.
      seed: 2 integers.
      augmentation: how large the changes are, and in what share of the images each is made.
      view: another number gives other noise.
    """
    channels, share = image.shape[-1], augmentation.change_probability
    seeds = [tf.random.fold_in(seed, number) for number in range(6)]
    amounts = functools.partial(_amounts, channels=channels, share=share)
    if augmentation.intensity_jitter:
        largest = augmentation.intensity_jitter
        drawn = tf.random.stateless_uniform([2, channels], seed, -largest, largest)
        factor, offset = tf.unstack(_made(seeds[0], share) * drawn)
        image = image * (1 + factor) + offset / 2
    if augmentation.gamma:
        image = with_gamma(image, (1 + augmentation.gamma) ** amounts(seeds[1]))
    if augmentation.blur:
        sd = augmentation.blur * tf.abs(amounts(seeds[2]))
        image = blurred(image, sd, math.ceil(3 * augmentation.blur))
    if augmentation.low_resolution > 1:
        edge = 1 + (augmentation.low_resolution - 1) * tf.abs(amounts(seeds[3], channels=1)[0])
        image = coarser(image, edge, math.ceil(augmentation.low_resolution))
    if augmentation.noise:
        sd = augmentation.noise * tf.abs(amounts(seeds[4]))
        own = tf.random.fold_in(seeds[5], view)
        image += sd * tf.random.stateless_normal(tf.shape(image), own)
    return image


def with_gamma(image: tf.Tensor, exponent: tf.Tensor) -> tf.Tensor:
    """An image (*spatial, channels) whose intensities, from 0 to 1 between the smallest and the
    largest of their channel, have an exponent, one number or one a channel."""
    axes = list(range(image.shape.rank - 1))
    low, high = tf.reduce_min(image, axes), tf.reduce_max(image, axes)
    extent = high - low
    share = (image - low) / tf.where(extent > 0, extent, tf.ones_like(extent))
    return low + extent * share**exponent


def coarser(image: tf.Tensor, edge: tf.Tensor, most: int) -> tf.Tensor:
    """An image as voxels of another edge have it: each is the mean of what it covers, and between
    their centres, on the image's grid, it is linear.

    Args:
      image: (*spatial, channels).
      edge: a number from 1 on, in voxels; what they cover begins at the first voxel.
      most: a whole number that it never exceeds.
    """
    for axis in range(image.shape.rank - 1):
        beside = [-1 if a == axis else 1 for a in range(image.shape.rank)]
        size = tf.shape(image)[axis]
        count = tf.cast(size, tf.float32)
        # Along the axis as many coarse voxels as voxels: those beyond the end cover nothing.
        numbers = tf.range(count)
        low, high = tf.minimum(numbers * edge, count), tf.minimum((numbers + 1) * edge, count)
        first, sums = tf.floor(low), []
        for step in range(most + 1):
            voxel = first + step
            covered = tf.minimum(high, voxel + 1) - tf.maximum(low, voxel)
            at = tf.minimum(tf.cast(voxel, tf.int32), size - 1)
            part = tf.reshape(tf.maximum(covered, 0), beside)
            sums.append(part * tf.gather(image, at, axis=axis))
        means = tf.add_n(sums) / tf.reshape(tf.maximum(high - low, 1e-6), beside)
        last = tf.reduce_sum(tf.cast(low < count - 1e-3, tf.float32)) - 1
        place = tf.clip_by_value((numbers + 0.5) / edge - 0.5, 0, last)
        below = tf.floor(place)
        ends = [
            tf.gather(means, tf.cast(tf.minimum(below + step, last), tf.int32), axis=axis)
            for step in (0, 1)
        ]
        share = tf.reshape(place - below, beside)
        image = ends[0] * (1 - share) + ends[1] * share
    return image


def _made(seed: tf.Tensor, share: float) -> tf.Tensor | float:
    """1 where a change is made, else 0."""
    if share >= 1:
        return 1.0
    return tf.cast(tf.random.stateless_uniform([], seed) < share, tf.float32)


def _amounts(seed: tf.Tensor, channels: int, share: float) -> tf.Tensor:
    """(channels,) evenly from -1 to 1; all of them 0 where the change is not made."""
    drawn = tf.random.stateless_uniform([channels], seed, -1.0, 1.0)
    return _made(tf.random.fold_in(seed, 0), share) * drawn


def random_erasing(
    sample: Sample,
    seed: tf.Tensor,
    probability: float,
    area: tuple[float, float] = (0.02, 0.4),
    aspect: float = 0.3,
    edges: Mapping[str, float] | None = None,
) -> Sample:
    """Sets a random box around the object to 0 in the image, like a shadow.

    The box takes `area` of the object's bounding box, its edges in ratios of `aspect` to 1 /
    `aspect`, its centre anywhere in that bounding box (Zhong et al. 2017; Yang et al. 2019, section
    2.1). A sample without an object stays as it is.

    Args:
      probability: share of samples that are erased.
      edges: see `shown`.
    """
    label = sample["label"][..., 0]
    label = tf.logical_and(label > 0, label != IGNORED)
    rank = label.shape.rank
    chance, share, *rest = tf.unstack(tf.random.stateless_uniform([2 + 2 * rank], seed))
    ratios, places = tf.stack(rest[:rank]), tf.stack(rest[rank:])
    # Edges relative to the bounding box: log-uniform, then brought to the wanted area.
    log_edges = (ratios - tf.reduce_mean(ratios)) * tf.math.log(1 / aspect)
    extents = tf.exp(log_edges) * (area[0] + share * (area[1] - area[0])) ** (1 / rank)
    kept = tf.logical_not(tf.logical_and(tf.reduce_any(label), chance < probability))
    centres, reaches = [], []
    for axis in range(rank):
        covered = tf.where(tf.reduce_any(label, axis=[a for a in range(rank) if a != axis]))[:, 0]
        first, last = tf.reduce_min(covered), tf.reduce_max(covered)
        extent = tf.cast(last - first + 1, tf.float32)
        centres.append(tf.cast(first, tf.float32) + places[axis] * extent)
        reaches.append(extents[axis] * extent / 2)
    erased = {}
    for name, edge in (edges or {"image": 1.0}).items():
        image, keep = sample[name], kept
        for axis in range(rank):
            size, of_label = (tf.cast(tf.shape(x)[axis], tf.float32) for x in (image, label))
            voxel = (tf.range(size) + (0.5 - size / 2)) * edge + of_label / 2
            outside = tf.abs(voxel - centres[axis]) > reaches[axis]
            shape = [-1 if a == axis else 1 for a in range(rank)]
            keep = tf.logical_or(keep, tf.reshape(outside, shape))
        erased[name] = image * tf.cast(keep, image.dtype)[..., None]
    return sample | erased


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
    seen = blurred(seen, 1.5 * tf.abs(blur))
    seen += 0.1 * tf.abs(noise) * tf.random.stateless_normal(tf.shape(image), seeds[1])
    return tf.ensure_shape(tf.clip_by_value(seen, 0.0, 1.0), image.shape)


def blurred(image: tf.Tensor, sd: tf.Tensor, reach: int = 5) -> tf.Tensor:
    """An image (*spatial, channels) after a Gaussian of an SD in voxels, one number or one a
    channel, that is cut off at `reach`; edges are mirrored."""
    offsets = tf.range(-reach, reach + 1, dtype=tf.float32)
    weights = tf.exp(-0.5 * (offsets[:, None] / tf.maximum(sd, 1e-3)) ** 2)
    weights /= tf.reduce_sum(weights, axis=0)
    for axis in range(image.shape.rank - 1):
        size = tf.shape(image)[axis]
        # Voxels on, and again the same way round
        index = tf.range(-reach, size + reach) % (2 * size)
        padded = tf.gather(image, tf.minimum(index, 2 * size - 1 - index), axis=axis)
        parts = []
        for start, weight in enumerate(tf.unstack(weights)):
            along = [slice(None)] * axis + [slice(start, start + size)]
            parts.append(weight * padded[tuple(along)])
        image = tf.add_n(parts)
    return image


def deformed(
    augmentation: Augmentation,
    grids: Sequence[Sequence[np.ndarray | tf.Tensor]],
    seed: tf.Tensor,
    unit: float,
    spacing: tf.Tensor,
) -> list[tf.Tensor]:
    """Where the points of grids land after one random deformation of space.

    A translation, a rotation and a displacement by a cubic B-spline of random control points (Roth
    et al. 2018, section 2.3; Cicek et al. 2016), a change of size and mirrors. The transform may be
    looked at through several grids of one centre, and is applied in one resampling each.

    Args:
      augmentation: how large its parts are, in units.
      grids: for each grid three 1D arrays, offsets from the centre along z, y and x in voxels.
      seed: 2 integers.
      unit: voxels a unit.
      spacing: (3,) mm a voxel; a rotation is rigid in mm.

    Returns:
      One (depth, height, width, 3) float32 tensor a grid: offsets from the centre after the
      transform, in voxels.
    """
    seeds = tf.unstack(tf.random.experimental.stateless_split(seed, 3))
    translation = tf.random.stateless_uniform([3], seeds[0], -1.0, 1.0) * augmentation.shift * unit
    parts = _Parts(seed, augmentation)
    angles = parts.turned * _angles(seeds[1], augmentation.rotation)
    turn = _rotation(angles) * spacing / spacing[:, None] / parts.size
    lines = [[tf.cast(along, tf.float32) for along in grid] for grid in grids]
    reach = [tf.reduce_max(tf.abs(tf.concat(axis, 0))) for axis in zip(*lines)]
    bend = _bend(augmentation, seeds[2], reach, unit, parts.bent)
    sides = tf.unstack(_sides(augmentation, tf.random.fold_in(seed, MIRRORS)))
    landed = []
    for offsets in lines:
        at = _crossed([side * along for side, along in zip(sides, offsets)], bend(offsets))
        landed.append(tf.stack(_placed(turn, translation, at), axis=-1))
    return landed


def moved(sample: Sample, seed: tf.Tensor, augmentation: Augmentation) -> Sample:
    """The sample after a random motion about the centre of its grid.

    Rotation, translation and flips (Xu et al. 2020, section 3.1), a change of size and an elastic
    deformation, in one resampling: labels nearest, all else linear. What comes in from outside
    continues the image by its edge values and has no label: filled with 0, most of what a network
    learns from a flat volume would be black, and an unmoved volume strange to it.

    Args:
      sample: see `placed`; by its "spacing" the rotation is rigid in mm.
      seed: 2 integers.
      augmentation: how large the parts of the motion may be.
    """
    grid = {name: tensor for name, tensor in sample.items() if name != "spacing"}
    spacing = sample.get("spacing", tf.ones([3]))
    flat = _rank(grid) == 2
    if flat:  # a volume of one slice, which turns and moves in its plane
        grid = {name: tensor[None] for name, tensor in grid.items()}
        spacing = tf.concat([[1.0], spacing[-2:]], axis=0)
    linear = [name for name in grid if not name.startswith("label")]
    labels = [name for name in grid if name.startswith("label")]
    volumes = [grid[name] for name in labels]
    if linear:
        volumes.append(tf.concat([grid[name] for name in linear], axis=-1))
    origin = _origin(tf.shape(volumes[0])[:3], spacing, seed, augmentation, flat)

    def moved_block(*voxels: tf.Tensor) -> tuple[tf.Tensor, ...]:
        at = origin(voxels)
        nearest = [_nearest(grid[name], at) for name in labels]
        return (*nearest, *(_linear(volume, at) for volume in volumes[len(labels) :]))

    resampled = _in_blocks(moved_block, volumes)
    if linear:
        channels = [grid[name].shape[-1] for name in linear]
        resampled[-1:] = tf.split(resampled[-1], channels, axis=-1)
    answer = dict(zip([*labels, *linear], resampled))
    return {name: answer[name][0] if flat else answer[name] for name in grid}


def _origin(
    shape: tf.Tensor, spacing: tf.Tensor, seed: tf.Tensor, augmentation: Augmentation, flat: bool
) -> Callable[[Sequence[tf.Tensor]], list[tf.Tensor]]:
    """Where voxels come from in one random motion: flipped back, bent, moved back, turned back.

    Args:
      shape: (3,) of the volume.
      spacing: (3,) mm a voxel.
      seed: 2 integers.
      augmentation: how large its parts may be.
      flat: whether nothing leaves its slice.

    Returns:
      Voxels along z, y and x, int32 -> their three coordinates (z, y, x) before.
    """
    seeds = tf.unstack(tf.random.experimental.stateless_split(seed, 3))
    parts = _Parts(seed, augmentation)
    angles = parts.turned * _angles(seeds[0], augmentation.rotation)
    translation = tf.random.stateless_uniform([3], seeds[1], -1.0, 1.0) * augmentation.shift
    bent = parts.bent
    if flat:
        in_plane = tf.constant([0.0, 1.0, 1.0])
        angles *= 1 - in_plane
        translation, bent = translation * in_plane, bent * in_plane
    turn = tf.transpose(_rotation(angles)) * spacing / spacing[:, None] / parts.size
    sides = _sides(augmentation, seeds[2])
    centre = tf.cast(shape - 1, tf.float32) / 2
    own = tf.random.fold_in(seed, ELASTIC)
    bend = _bend(augmentation, own, tf.unstack(centre), 1.0, bent)

    def origin(voxels: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        offsets = [tf.cast(along, tf.float32) - centre[axis] for axis, along in enumerate(voxels)]
        before = [offset * sides[axis] - translation[axis] for axis, offset in enumerate(offsets)]
        return _placed(turn, centre, _crossed(before, bend(offsets)))

    return origin


class _Parts:
    """Parts of a random motion.

    Attributes:
      turned, bent: 1 where it turns and bends, else 0.
      size: what it enlarges by.
    """

    def __init__(self, seed: tf.Tensor, augmentation: Augmentation) -> None:
        own, share = tf.random.fold_in(seed, PARTS), augmentation.change_probability
        self.turned, self.bent, sized = (_made(tf.random.fold_in(own, n), share) for n in range(3))
        self.size: tf.Tensor | float = 1.0
        if augmentation.scaling:
            drawn = tf.random.stateless_uniform([], tf.random.fold_in(seed, SIZE), -1.0, 1.0)
            self.size = (1 + augmentation.scaling) ** (sized * drawn)


def _sides(augmentation: Augmentation, seed: tf.Tensor) -> tf.Tensor:
    """(3,) -1 along the axes that are mirrored, else 1."""
    heads = tf.random.stateless_uniform([3], seed) < 0.5
    return 1 - 2 * (tf.cast(heads, tf.float32) * float(augmentation.flips))


def _bend(
    augmentation: Augmentation,
    seed: tf.Tensor,
    reach: Sequence[tf.Tensor | float],
    unit: float,
    bent: tf.Tensor | float,
) -> Bend:
    """A random elastic displacement, by a cubic B-spline.

    Args:
      augmentation: how large it is, in units.
      seed: 2 integers.
      reach: offsets from the centre along each axis that it reaches to.
      unit: voxels a unit.
      bent: factor on it, one number or one an axis.

    Returns:
      Offsets from the centre along z, y and x, in voxels -> three displacements (z, y, x).
    """
    if not augmentation.elastic:
        return _unbent
    interval = augmentation.elastic_spacing * unit
    counts = [
        tf.maximum(1, tf.cast(tf.math.ceil(2 * tf.cast(end, tf.float32) / interval), tf.int32))
        for end in reach
    ]
    drawn = tf.random.stateless_normal([*(count + 3 for count in counts), 3], seed)
    points = drawn * augmentation.elastic * unit * bent

    def bend(offsets: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        places = [(along + end) / interval + 1.0 for along, end in zip(offsets, reach)]
        return tf.unstack(_spline(places, points), axis=-1)

    return bend


def _unbent(offsets: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """No displacement."""
    return []


def _crossed(along: Sequence[tf.Tensor], displacements: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """The three coordinates of a grid's points from those of its axes, displaced where there are
    displacements."""
    z, y, x = along
    crossed = [z[:, None, None], y[:, None], x]
    if not displacements:
        return crossed
    return [offset + displacement for offset, displacement in zip(crossed, displacements)]


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
    slices, rows = min(BLOCK[0], volumes[0].shape[0] or BLOCK[0]), BLOCK[1]
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


def _spline(places: Sequence[tf.Tensor], points: tf.Tensor) -> tf.Tensor:
    """A tensor product of cubic B-splines.

    Args:
      places: (n,) along each of three axes, in intervals from the first control point.
      points: (k, k, k, channels), their values at the control points.

    Returns:
      (n, n, n, channels).
    """
    for axis in reversed(range(3)):
        shape = [-1 if a == axis else 1 for a in range(4)]
        first, last = tf.floor(places[axis]) - 1, tf.shape(points)[axis] - 1
        parts = []
        for step in range(4):  # no other control point reaches as far
            weight = tf.reshape(_cubic_b_spline(places[axis] - (first + step)), shape)
            number = tf.clip_by_value(tf.cast(first, tf.int32) + step, 0, last)
            parts.append(weight * tf.gather(points, number, axis=axis))
        points = tf.add_n(parts)
    return points


def _cubic_b_spline(t: tf.Tensor) -> tf.Tensor:
    """The centred cubic B-spline, 2/3 at 0 and 0 from +-2 on."""
    t = tf.abs(t)
    return tf.where(t < 1, 2 / 3 - t**2 + t**3 / 2, tf.maximum(2 - t, 0) ** 3 / 6)


def sample_linear(volume: Stored, index: tf.Tensor) -> tf.Tensor:
    """Linear interpolation; outside there is what the volume's edge has. Of the volume the box
    around the points is read.

    Args:
      volume: (depth, height, width, channels) float32.
      index: (..., 3) float32, voxel centres at whole numbers.

    Returns:
      (..., channels) float32.
    """
    inside, lows, highs = [], [], []
    for at, edge in zip(tf.unstack(index, axis=-1), tf.unstack(volume.shape()[:3])):
        last = tf.cast(edge - 1, tf.float32)
        inside.append(tf.clip_by_value(at, 0, last))
        lows.append(tf.floor(tf.reduce_min(inside[-1])))
        highs.append(tf.minimum(tf.floor(tf.reduce_max(inside[-1])) + 1, last))
    low = tf.stack(lows)
    box = volume.cut(tf.cast(low, tf.int32), tf.cast(tf.stack(highs) - low + 1, tf.int32))
    return _linear(box, [at - low for at, low in zip(inside, lows)])


def sample_nearest(volume: Stored, index: tf.Tensor, continued: bool = False) -> tf.Tensor:
    """The nearest voxels.

    Args:
      volume: (depth, height, width, channels).
      index: (..., 3) float32, voxel centres at whole numbers.
      continued: whether outside there is what the volume's edge has; else 0.

    Returns:
      (..., channels).
    """
    nearest, inside = _rounded(tf.unstack(index, axis=-1), volume.shape())
    values = volume.at([tf.cast(along, tf.int32) for along in nearest])
    if continued:
        return values
    return tf.where(inside[..., None], values, tf.zeros([], values.dtype))


def _linear(volume: tf.Tensor, at: Sequence[tf.Tensor]) -> tf.Tensor:
    """Linear interpolation at three coordinates (...): (..., channels); outside of the volume it
    has the values of its edge."""
    steps: list[tf.Tensor] = []
    starts, parts = [], []
    for along, edge in zip(at, tf.unstack(tf.shape(volume)[:3])):
        coordinate = tf.clip_by_value(along, 0, tf.cast(edge - 1, tf.float32))
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
