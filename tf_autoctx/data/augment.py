"""Random changes of a training sample in stateless TensorFlow ops: the same seed gives the same sample, always.

A sample is a dict of (*spatial, channels) tensors on one grid: "image", "label" and, where a system has one, "context"
(the last level's probability). What moves voxels moves all of them; what changes intensities changes the image alone.
"""

import dataclasses

import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What happens to a sample on the fly, one field a flag of the same name.

    Attributes:
      flips: mirror each axis with probability 1/2.
      shift: largest translation along an axis, in voxels of the network's grid.
      intensity_jitter: half width of the range of factors on the intensities.
      erase_probability: share of samples with a box erased.
    """

    flips: bool
    shift: int
    intensity_jitter: float
    erase_probability: float

    def __call__(self, sample, seed):
        """Augmented sample; the same `seed` (2 integers) gives the same sample."""
        seeds = tf.unstack(tf.random.experimental.stateless_split(seed, 4))
        if self.flips:
            sample = flips(sample, seeds[0])
        if self.shift:
            sample = shift(sample, seeds[1], self.shift)
        if self.intensity_jitter:
            sample = intensity_jitter(sample, seeds[2], self.intensity_jitter)
        if self.erase_probability:
            sample = random_erasing(sample, seeds[3], self.erase_probability)
        return sample


def flips(sample, seed):
    """Mirrors each spatial axis with probability 1/2.

    Flips and half-turns about three axes (Yang et al. 2019, section 2.1) have an orbit of 8: these.
    """
    image = sample["image"]
    axes = [axis for axis in range(image.shape.rank - 1)]
    heads = tf.random.stateless_uniform([len(axes)], seed) < 0.5
    for axis in axes:
        sample = {k: tf.where(heads[axis], tf.reverse(v, [axis]), v) for k, v in sample.items()}
    return sample


def shift(sample, seed, voxels):
    """Moves the sample by up to `voxels` voxels along each axis; edge values fill what comes in."""
    rank = sample["image"].shape.rank - 1
    offsets = tf.random.stateless_uniform([rank], seed, -voxels, voxels + 1, tf.int32)
    for axis in range(rank):
        size = tf.shape(sample["image"])[axis]
        index = tf.clip_by_value(tf.range(size) + offsets[axis], 0, size - 1)
        sample = {k: tf.gather(v, index, axis=axis) for k, v in sample.items()}
    return sample


def intensity_jitter(sample, seed, amount):
    """Scales the image by a factor in 1 +- amount and adds an offset in +- amount / 2."""
    factor, offset = tf.unstack(tf.random.stateless_uniform([2], seed, -amount, amount))
    return {**sample, "image": sample["image"] * (1 + factor) + offset / 2}


def random_erasing(sample, seed, probability, area=(0.02, 0.4), aspect=0.3):
    """Sets a random box around the object to 0 in the image, like a shadow (Zhong et al. 2017; Yang et al. 2019, 2.1).

    The box takes `area` of the object's bounding box, its edges in ratios of `aspect` to 1 / `aspect`, its centre
    anywhere in that bounding box. A sample without an object stays as it is.

    Args:
      probability: share of samples that are erased.
    """
    image, label = sample["image"], sample["label"][..., 0] > 0
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
