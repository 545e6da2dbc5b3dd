"""Deformed cubes that are resampled as they are read: at several scales about one voxel of a
structure (Roth et al. 2018, 2.3), or at one anywhere in a volume."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import tensorflow as tf

from tf_autoctx.data import augment, pipeline
from tf_autoctx.data.arrays import Stored
from tf_autoctx.data.configuration import Augmentation

PLACES = 1000


def places(label: np.ndarray, values: Iterable[int], rng: np.random.Generator) -> np.ndarray:
    """Random voxels of every structure, at which subvolumes are centred.

    Args:
      label: (depth, height, width) integer.
      values: label values of the structures.
      rng: `np.random.Generator`.

    Returns:
      (structures, PLACES, 3) float32, voxel indices, drawn with replacement; NaN for a structure
      that is absent.
    """
    values = list(values)
    drawn = np.full((len(values), PLACES, 3), np.nan, np.float32)
    for row, value in zip(drawn, values):
        voxels = np.flatnonzero(label == value)
        if voxels.size:
            row[:] = np.transpose(np.unravel_index(rng.choice(voxels, PLACES), label.shape))
    return drawn


def draw(
    case: Mapping[str, Stored],
    seed: tf.Tensor,
    *,
    scales: Sequence[float],
    unit: float,
    size: Sequence[int],
    augmentation: Augmentation,
) -> augment.Sample:
    """Subvolumes of one case, one a scale, about a voxel of a structure drawn evenly.

    A voxel of that structure is at their centre after the deformation, too: they turn and bend
    about it, and are translated along the structure.

    Args:
      case: {"image_1": array (depth, height, width, channels) float32, the volume shrunk to the
        first scale, ..., "label": likewise (depth, height, width, 1) at full size, "places": see
        `places`, of one structure at least, "spacing": (3,) mm of a full-size voxel}. Of images and
        label what lies around the subvolumes is read.
      seed: 2 integers.
      scales: full-size voxels that a voxel of each scale covers along an axis.
      unit: the smallest scale that training ever sees: the deformation's unit.
      size: edges (z, y, x) of a subvolume in voxels of its scale.
      augmentation: see `augment.deformed`.

    Returns:
      {"image_1": (*size, channels) float32, "label_1": (*size, 1) uint8, ...}. Images are
      interpolated linearly and labels taken from the nearest full-size voxel, once; outside the
      volume both have what its edge has, as networks see it where they segment a volume.
    """
    seeds = tf.unstack(tf.random.experimental.stateless_split(seed, 4))
    place = pipeline.random_place(case["places"].whole(), seeds[:2])
    # The centre is a corner of voxels of the finest scale, so that an undeformed subvolume of it is
    # not interpolated.
    centre = tf.floor(place / unit) * unit
    if augmentation.shift:
        own = tf.random.fold_in(seed, augment.ALONG)
        centre += _along(case["label"], place, own, augmentation.shift * unit)

    steps = [np.arange(edge) + 0.5 - edge / 2 for edge in size]
    grids = [[scale * along for along in steps] for scale in scales]
    # Undeformed points of an even scale lie on the faces between full-size voxels: either side is
    # as near.
    side = tf.random.stateless_uniform([3], seeds[3], -1e-3, 1e-3)
    full = tf.cast(case["label"].shape()[:3], tf.float32)
    cut = {}
    turning = dataclasses.replace(augmentation, shift=0)
    middle = [np.zeros(1)] * 3
    *landed, moved = augment.deformed(
        turning, [*grids, middle], seeds[2], unit, case["spacing"].whole()
    )
    for level, offsets in enumerate(landed, start=1):
        at = centre + offsets - moved
        image = case[f"image_{level}"]
        shrunk = tf.cast(image.shape()[:3], tf.float32) / full
        cut[f"image_{level}"] = augment.sample_linear(image, at * shrunk - 0.5)
        at = at - 0.5 + side
        cut[f"label_{level}"] = augment.sample_nearest(case["label"], at, continued=True)
    return {
        name: tf.ensure_shape(tensor, (*size, tensor.shape[-1])) for name, tensor in cut.items()
    }


def _along(label: Stored, place: tf.Tensor, seed: tf.Tensor, most: float) -> tf.Tensor:
    """(3,) voxels: a random translation of up to `most` along each axis, or the largest of some
    eighths of it after which a voxel of the same structure is where the place (3,) was."""
    drawn = tf.random.stateless_uniform([3], seed, -most, most)
    steps = tf.linspace(1.0, 0.0, 9)[:, None] * drawn
    there = augment.sample_nearest(label, place + steps)[:, 0]
    return steps[tf.argmax(tf.cast(there == there[-1], tf.int32))]


def patch(
    case: Mapping[str, Stored],
    seed: tf.Tensor,
    size: Sequence[int],
    augmentation: Augmentation,
    share: float = 0.0,
) -> augment.Sample:
    """A deformed box at a random place of a volume, that of `pipeline.random_patch`.

    Args:
      case: {"image", "label" and whatever else lies on their grid: array (depth, height, width,
        channels), "spacing": (3,) mm a voxel}; for a `share`, "places" too.
      seed: 2 integers.
      size: edges along z, y and x; one beyond the volume's is all of an axis.
      augmentation: see `augment.deformed`.
      share: see `pipeline.random_corner`.

    Returns:
      {name: (*size, channels)} of all but "places" and "spacing". Labels are the nearest voxels, 0
      outside the volume; all else is linear, and continued there by its edge.
    """
    edges = tf.minimum(case["image"].shape()[:3], size)
    corner = pipeline.random_corner(case, edges, seed, share)
    last = tf.cast(edges - 1, tf.float32)
    offsets = [tf.range(n + 1) - n / 2 for n in tf.unstack(last)]
    own = tf.random.fold_in(seed, augment.PATCH)
    [landed] = augment.deformed(augmentation, [offsets], own, 1.0, case["spacing"].whole())
    at = tf.cast(corner, tf.float32) + last / 2 + landed
    cut = {}
    for name, array in case.items():
        if name.startswith("label"):
            cut[name] = augment.sample_nearest(array, at)
        elif name not in ("places", "spacing"):
            cut[name] = augment.sample_linear(array, at)
    return cut
