"""What it takes to look at a case: image, truth and answers on a grid that is small enough for many cases in one page.

A view is a dict of arrays:
  "image": grey values (z, y, x) uint8; a 2D image has one slice.
  "truth": (z, y, x) uint8: k for the k-th structure from 1, else 0.
  "labels": likewise of every method, (methods, z, y, x).
  "probabilities": of every structure, 0 to 255, (methods, structures, z, y, x) uint8; left out where there are none.
  "methods", "structures": their names.
  "spacing": (3,) mm from sample to sample, or pixels where mm are unknown.
  "size": (3,) voxels of the original, of which sample i shows voxel floor((i + 0.5) * voxels / samples).
"""

import zipfile

import numpy as np
from scipy import spatial
from skimage import measure, transform

from tf_autoctx.errors import UserError
from tf_autoctx.files import replacing

SAMPLES = {2: 400, 3: 80}  # along an axis at most, of images and of volumes
VERTICES = 2000  # of a surface, at most


def of(voxels, truth, answers, spacing, structures):
    """The view of a case: local means of image and probabilities (coarser ones are interpolated), nearest labels.

    Args:
      voxels: grey values (depth, height, width) or (height, width); what lies outside the 0.5 and 99.5 percentiles is
        black or white.
      truth: integer labels of this shape.
      answers: {method: {"label": likewise, "probability": {structure: 0 to 1, on any grid over the same extent}}}; the
        view has probabilities if every method has.
      spacing: mm per axis in the array's order; None for pixels.
      structures: {name: label value}, at most 255.

    Returns:
      See above.

    Raises:
      ValueError: a label is not of the image's shape.
    """
    voxels = np.asarray(voxels)
    labels = [
        np.asarray(label) for label in (truth, *(answer["label"] for answer in answers.values()))
    ]
    if any(label.shape != voxels.shape for label in labels):
        raise ValueError(
            f"image {voxels.shape} and labels {[label.shape for label in labels]} need one shape."
        )
    flat = (1,) * (3 - voxels.ndim)
    size = flat + voxels.shape
    samples = tuple(min(n, SAMPLES[voxels.ndim]) for n in size)
    nearest = np.ix_(*(((np.arange(m) + 0.5) * n / m).astype(int) for m, n in zip(samples, size)))

    def mean(array):
        array = np.asarray(array, np.float32)
        array = array.reshape(flat + array.shape)
        array = transform.resize_local_mean(
            array, np.minimum(array.shape, samples), preserve_range=True
        )
        return transform.resize(array, samples, order=1, mode="edge", preserve_range=True)

    def classes(label):
        label, found = label.reshape(size)[nearest], np.zeros(samples, np.uint8)
        for k, value in enumerate(structures.values(), start=1):
            found[label == value] = k
        return found

    image = mean(voxels)
    low, high = np.percentile(image, (0.5, 99.5))
    view = {
        "image": np.rint(255 * np.clip((image - low) / (high - low or 1), 0, 1)).astype(np.uint8),
        "truth": classes(labels[0]),
        "labels": np.stack([classes(label) for label in labels[1:]]),
        "methods": np.array(list(answers)),
        "structures": np.array(list(structures)),
        "spacing": np.array(flat + tuple((1,) * voxels.ndim if spacing is None else spacing))
        * size
        / samples,
        "size": np.array(size),
    }
    if all("probability" in answer for answer in answers.values()):
        maps = [
            [mean(answer["probability"][name]) for name in structures]
            for answer in answers.values()
        ]
        view["probabilities"] = np.rint(255 * np.array(maps)).astype(np.uint8)
    return view


def write(path, view):
    """Writes a view as .npz, whole or not at all; the folder is created.

    Raises:
      UserError: the file cannot be written.
    """
    with replacing(path) as partial:
        np.savez_compressed(partial, **view)


def read(path):
    """The view that `write` wrote.

    Raises:
      UserError: no such file, or it holds something else.
    """
    try:
        with np.load(path) as file:
            view = dict(file)
        shape = view["image"].shape
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
    return view


def surface(mask, truth, spacing):
    """The surface of a mask, each vertex with its distance to the nearest vertex of the truth's surface.

    Args:
      mask, truth: bool (z, y, x) of equal shape.
      spacing: (z, y, x) in mm.

    Returns:
      {"vertices": (n, 3) of (z, y, x) in mm from the corner of voxel 0, n at most `VERTICES`, "faces": (m, 3) indices
      of vertices, "distances": (n,) in mm, NaN without truth}; None for an empty mask.
    """
    if not mask.any():
        return None
    vertices, faces = _mesh(mask)
    distances = np.full(len(vertices), np.nan)
    if truth.any():
        distances, _ = spatial.KDTree(_mesh(truth)[0] * spacing).query(vertices * spacing)

    # Where they are too many, those in a cell of so many voxels become their mean; a coarser mask would be displaced.
    values = points = np.column_stack([vertices * spacing, distances])
    triangles, edge = faces, 1
    while len(points) > VERTICES:
        edge += 1
        cells = np.ravel_multi_index((vertices // edge).astype(int).T, np.array(mask.shape) + 1)
        _, cell = np.unique(cells, return_inverse=True)
        points = (
            np.stack([np.bincount(cell, column) for column in values.T], axis=1)
            / np.bincount(cell)[:, None]
        )
        triangles = cell[faces]
    a, b, c = triangles.T
    whole = (a != b) & (b != c) & (c != a)
    return {"vertices": points[:, :3], "faces": triangles[whole], "distances": points[:, 3]}


def _mesh(mask):
    """Vertices (n, 3), in voxels from the corner of voxel 0, and faces (m, 3) of the surface of a mask."""
    vertices, faces, _, _ = measure.marching_cubes(np.pad(mask, 1), 0.5)
    return vertices - 0.5, faces
