"""Shapes and textures for any phantom. Positions are (z, y, x) in mm."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import ndimage


def ellipsoid(
    points: np.ndarray, centre: ArrayLike, radii: ArrayLike, rotation: np.ndarray | None = None
) -> np.ndarray:
    """Distance in mm to an ellipsoid's surface, to first order; negative inside.

    Args:
      points: (3, ...) positions.
      centre, radii: three numbers each, along the ellipsoid's own axes for the radii.
      rotation: (3, 3), rows are the ellipsoid's axes; None for the axes of `points`.
    """
    r = np.asarray(radii, np.float32)
    to_sphere = (np.eye(3) if rotation is None else rotation) / r[:, None]
    q = into_frame(points, centre, to_sphere)
    q *= q
    norm = np.sqrt(q.sum(0))
    slope = np.sqrt(np.tensordot(1 / r**2, q, 1))
    # No 0/0 at the centre
    return (norm - 1) * np.maximum(norm, 1e-6) / np.maximum(slope, 1e-6 / r.min())


def into_frame(points: np.ndarray, centre: ArrayLike, axes: ArrayLike) -> np.ndarray:
    """Coordinates (3, ...), float32, of points (3, ...) along the rows of axes (3, 3).

    Counted from a centre.
    """
    axes = np.asarray(axes, np.float32)
    offset = (axes @ np.asarray(centre, np.float32)).reshape(3, *[1] * (points.ndim - 1))
    return np.tensordot(axes, points, 1) - offset


def smooth_union(a: np.ndarray, b: np.ndarray, radius: float) -> np.ndarray:
    """Distance to the union of two bodies given theirs, the seam filled in over `radius` mm."""
    overlap = np.maximum(radius - np.abs(a - b), 0)
    return np.minimum(a, b) - overlap * overlap / (4 * radius)


def smooth_field(rng: np.random.Generator, shape: Sequence[int], waves: int = 4) -> np.ndarray:
    """Random float32 field of mean 0 and deviation about 1.

    A cosine series, the same function at any `shape`.
    """
    field = rng.normal(size=(waves,) * len(shape))
    field.flat[0] = 0  # the mean
    field /= np.sqrt((field**2).sum() / 2 ** len(shape))
    for n in shape:
        position = (np.arange(n) + 0.5) / n
        field = np.tensordot(field, np.cos(np.pi * np.outer(np.arange(waves), position)), (0, 0))
    return field.astype(np.float32)


def speckle(rng: np.random.Generator, amplitude: np.ndarray, psf: ArrayLike) -> np.ndarray:
    """Fully developed speckle: complex Gaussian scatterers seen through a point spread function.

    Args:
      rng: the scatterers are drawn from it.
      amplitude: float32 array, mean scatterer strength.
      psf: standard deviation of the Gaussian point spread function along each axis, in samples.

    Returns:
      Complex echo, same shape; its magnitude is Rayleigh distributed. Where the amplitude is flat
      its mean square is amplitude**2, for a psf of about a sample or more and away from the array's
      faces.
    """
    parts = [
        ndimage.gaussian_filter(
            amplitude * rng.standard_normal(amplitude.shape, np.float32), psf, truncate=2.5
        )
        for _ in range(2)
    ]
    # The blur averages noise away.
    gain = np.prod(np.sqrt(2 * np.sqrt(np.pi) * np.asarray(psf))) / np.sqrt(2)
    return (parts[0] + 1j * parts[1]) * np.float32(gain)


def grid(z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Positions (3, z, y, x) of the voxels of a grid, given the coordinates along each axis."""
    return np.stack(np.meshgrid(z, y, x, indexing="ij"))
