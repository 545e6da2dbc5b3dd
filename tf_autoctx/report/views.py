"""What it takes to look at a case, on a grid that is small enough for many cases in one page.

Volumes lie as they are read, see `images.ORIENTATION`. A view is a dict of arrays:
  "image": grey values (z, y, x) uint8, of several channels (channels, z, y, x); a 2D image has one
    slice.
  "truth": (z, y, x) uint8: k for the k-th structure from 1, else 0; of several, which are regions,
    for the last.
  "labels": likewise of every method, (methods, z, y, x).
  "probabilities": of every structure, 0 to 255, (methods, structures, z, y, x) uint8; left out
    where there are none.
  "methods", "structures": their names.
  "spacing": (3,) mm from sample to sample, or pixels where mm are unknown.
  "size": (3,) voxels of the original, of which sample i shows voxel
    floor((i + 0.5) * voxels / samples).
"""

from __future__ import annotations

import pathlib
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tf_autoctx import metrics
from tf_autoctx.errors import FieldError, UserError
from tf_autoctx.files import replacing

View = dict[str, np.ndarray]

SAMPLES = {2: 400, 3: 80}  # along an axis at most, of images and of volumes
VERTICES = 2000  # of a surface, at most


def of(
    voxels: npt.ArrayLike,
    truth: npt.ArrayLike,
    predictions: Mapping[str, Mapping[str, Any]],
    spacing: Sequence[float] | None,
    structures: Mapping[int, str],
    regions: metrics.Regions = metrics.NO_REGIONS,
) -> View:
    """The view of a case: local means of image and probabilities, nearest labels.

    Probabilities on a coarser grid are interpolated.

    Args:
      voxels: grey values (depth, height, width) or (height, width), with an axis more where there
        are several channels; what lies outside the 0.5 and 99.5 percentiles is black or white.
      truth: integer labels of this shape, without channels.
      predictions: {method: {"label": likewise, "probability": {structure: 0 to 1, on any grid over
        the same extent}}}; the view has probabilities if every method has.
      spacing: mm per axis in the array's order; None for pixels.
      structures: {label value: name}, at most 255.
      regions: those among the structures, see `metrics.mask_of`.

    Returns:
      See above.

    Raises:
      ValueError: a label is not of the image's shape.
    """
    grey = np.asarray(voxels)
    labels = [np.asarray(truth), *(np.asarray(p["label"]) for p in predictions.values())]
    shape, axes = labels[0].shape, labels[0].ndim
    several = grey.ndim > axes
    if grey.shape[:axes] != shape or any(label.shape != shape for label in labels):
        raise ValueError(
            f"image {grey.shape} and labels {[label.shape for label in labels]} need one shape."
        )
    flat = (1,) * (3 - axes)
    size = flat + shape
    samples = tuple(min(n, SAMPLES[axes]) for n in size)
    how, millimetres = (samples, list(structures), regions), (1.0,) * axes
    if spacing is not None:
        millimetres = tuple(spacing)
    channels = [_grey(_mean(x, samples)) for x in (np.moveaxis(grey, -1, 0) if several else [grey])]
    view = {
        "image": np.stack(channels) if several else channels[0],
        "truth": _nearest(labels[0].reshape(size), *how),
        "labels": np.stack([_nearest(label.reshape(size), *how) for label in labels[1:]]),
        "methods": np.array(list(predictions)),
        "structures": np.array(list(structures.values())),
        "spacing": np.array(flat + millimetres) * size / samples,
        "size": np.array(size),
    }
    if all("probability" in prediction for prediction in predictions.values()):
        maps = [
            [_mean(prediction["probability"][name], samples) for name in structures.values()]
            for prediction in predictions.values()
        ]
        view["probabilities"] = np.rint(255 * np.array(maps)).astype(np.uint8)
    return view


def _grey(image: np.ndarray) -> np.ndarray:
    """Grey values 0 to 255 of an image, black and white at the 0.5 and 99.5 percentiles."""
    low, high = np.percentile(image, (0.5, 99.5))
    return np.rint(255 * np.clip((image - low) / (high - low or 1), 0, 1)).astype(np.uint8)


def _mean(array: npt.ArrayLike, samples: tuple[int, ...]) -> np.ndarray:
    """Local means (z, y, x) of an array of three axes, or two, on a grid of so many samples."""
    from skimage import transform

    values = np.asarray(array, np.float32)
    values = values.reshape((1,) * (3 - values.ndim) + values.shape)
    values = transform.resize_local_mean(
        values, np.minimum(values.shape, samples), preserve_range=True
    )
    return transform.resize(values, samples, order=1, mode="edge", preserve_range=True)


def _nearest(
    label: np.ndarray, samples: tuple[int, ...], values: Sequence[int], regions: metrics.Regions
) -> np.ndarray:
    """Labels (z, y, x) at so many samples: k for the k-th of the values, else 0."""
    at = (((np.arange(m) + 0.5) * n / m).astype(int) for m, n in zip(samples, label.shape))
    nearest, classes = label[np.ix_(*at)], np.zeros(samples, np.uint8)
    for k, value in enumerate(values, start=1):
        classes[metrics.mask_of(nearest, value, regions)] = k
    return classes


def write(path: str | pathlib.Path, view: View) -> None:
    """Writes a view as .npz, whole or not at all; the folder is created.

    Raises:
      UserError: the file cannot be written.
    """
    with replacing(path) as partial:
        np.savez_compressed(partial, **view)  # type: ignore[arg-type]


def read(path: str | pathlib.Path, channel: int = 0) -> View:
    """The view that `write` wrote, with one channel of its image.

    Raises:
      FieldError: it has no such channel.
      UserError: no such file, or it holds something else.
    """
    try:
        with np.load(path) as file:
            view = dict(file)
        if view["image"].ndim == 3:
            view["image"] = view["image"][None]
        channels, *sizes = view["image"].shape
        shape = tuple(sizes)
        if view["truth"].shape != shape or view["labels"].shape != (*view["methods"].shape, *shape):
            raise ValueError
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file; expected the view of a case of an evaluation."
        ) from None
    except (AttributeError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile):
        raise UserError(
            f"{path}: not the view of a case; run the evaluation again, which writes it."
        ) from None
    if channel >= channels:
        has = f"{path} has {channels} channel{'s' * (channels > 1)}"
        raise FieldError("channel", channel, f"{has}; expected 0 to {channels - 1}.")
    view["image"] = view["image"][channel]
    return view


def surface(
    mask: np.ndarray, truth: np.ndarray, spacing: Sequence[float] | np.ndarray
) -> dict[str, np.ndarray] | None:
    """The surface of a mask, and how far each vertex is from the nearest of the truth's surface.

    Args:
      mask, truth: bool (z, y, x) of equal shape.
      spacing: (z, y, x) in mm.

    Returns:
      {"vertices": (n, 3) of (z, y, x) in mm from the corner of voxel 0, n at most `VERTICES`,
      "faces": (m, 3) indices of vertices, "distances": (n,) in mm, NaN without truth}; None for an
      empty mask.
    """
    from scipy import spatial

    if not mask.any():
        return None
    vertices, faces = _mesh(mask)
    distances = np.full(len(vertices), np.nan)
    if truth.any():
        distances, _ = spatial.KDTree(_mesh(truth)[0] * spacing).query(vertices * spacing)

    # Where they are too many, those in a cell of so many voxels become their mean; a coarser mask
    # would be displaced.
    values = points = np.column_stack([vertices * spacing, distances])
    triangles, edge = faces, 1
    while len(points) > VERTICES:
        edge += 1
        cells = np.ravel_multi_index((vertices // edge).astype(int).T, np.array(mask.shape) + 1)
        _, cell = np.unique(cells, return_inverse=True)
        sums = np.stack([np.bincount(cell, column) for column in values.T], axis=1)
        points = sums / np.bincount(cell)[:, None]
        triangles = cell[faces]
    a, b, c = triangles.T
    whole = (a != b) & (b != c) & (c != a)
    return {"vertices": points[:, :3], "faces": triangles[whole], "distances": points[:, 3]}


def _mesh(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The surface of a mask: vertices (n, 3), in voxels from voxel 0's corner, and faces (m, 3)."""
    from skimage import measure

    vertices, faces, _, _ = measure.marching_cubes(np.pad(mask, 1), 0.5)
    return vertices - 0.5, faces
