"""The grid of millimetres on which networks see volumes of any spacing."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from keras import ops

from tf_autoctx.errors import FieldError, UserError
from tf_autoctx.models import layers
from tf_autoctx.systems.shared.image_checks import by

Tensor = Any
Size = Sequence[Any]  # spatial size, integers or integer tensors

# Of images (batch, *spatial, channels) on a grid, and of the spatial size that they have on their
# own, on which what it returns lies.
OnGrid = Callable[[Tensor, Size], Any]

MOST_VOXELS = 2**31  # of a volume on the grid: no graph takes more
FEWEST = 2  # along each axis: a volume of one slice is none
DIGITS = 4  # of mm that a median is rounded to


@dataclasses.dataclass(frozen=True)
class Grid:
    """Voxels of the same edges, whatever those of a volume are.

    A volume keeps its extent: its edges on the grid are those of `spacing` up to half a voxel of
    the whole axis (as in nnU-Net, Isensee et al. 2021).

    Attributes:
      spacing: (z, y, x), mm.
    """

    spacing: tuple[float, ...]

    def __str__(self) -> str:
        return f"{by(self.spacing)} mm"

    def size(self, size: Size, spacing: Tensor) -> tuple[Tensor, ...]:
        """Voxels on the grid of a volume of spatial `size` and `spacing` (z, y, x), mm."""
        spacing = ops.convert_to_tensor(spacing, "float32")
        return tuple(
            ops.maximum(
                1, ops.cast(ops.floor(ops.cast(n, "float32") * spacing[k] / mm + 0.5), "int32")
            )
            for k, (n, mm) in enumerate(zip(size, self.spacing))
        )

    def image(self, image: Tensor, spacing: Tensor) -> Tensor:
        """Images (batch, *spatial, channels) float32 of one spacing on the grid, linear, shrunk
        with anti-aliasing."""
        return layers.resize_linear(image, self.size(ops.shape(image)[1:-1], spacing))

    def label(self, label: Tensor, spacing: Tensor) -> Tensor:
        """Labels (batch, *spatial, 1) likewise, nearest neighbour."""
        return layers.resize_nearest(label, self.size(ops.shape(label)[1:-1], spacing))

    def resampling(self, function: OnGrid) -> Callable[[Tensor, Tensor], Any]:
        """A function of images on the grid as one of images of any spacing (z, y, x), mm."""

        def of_spacing(image: Tensor, spacing: Tensor) -> Any:
            size = ops.shape(image)[1:-1]
            lengths = [
                tf.cast(n, tf.float64) * tf.cast(spacing[k], tf.float64) / mm
                for k, (n, mm) in enumerate(zip(size, self.spacing))
            ]
            many = f"spacing: makes more than {MOST_VOXELS:.2g} voxels of {self}; expected mm."
            few = f"spacing: makes an axis of fewer than {FEWEST} voxels of {self}; expected mm."
            checks = [
                tf.debugging.Assert(tf.reduce_prod(tf.stack(lengths)) <= MOST_VOXELS, [many]),
                tf.debugging.Assert(tf.reduce_min(self.size(size, spacing)) >= FEWEST, [few]),
            ]
            with tf.control_dependencies(checks):
                image = tf.identity(image)
            return function(self.image(image, spacing), size)

        return of_spacing

    def required(
        self, name: object, size: Sequence[int], spacing: Sequence[float] | None
    ) -> np.ndarray:
        """The spacing of a volume that is to be resampled, float32.

        Args:
          name: of the volume, for messages.
          size: voxels along its axes.
          spacing: (z, y, x), mm; None: unknown.

        Raises:
          UserError: unknown, or none that voxels can have; more voxels on the grid than fit, or
            fewer than two along an axis.
        """
        expected = f"expected mm, as this model sees voxels of {self} (z, y, x)"
        if spacing is None:
            raise UserError(f"{name}: its spacing is unknown; {expected}.")
        mm = np.asarray(spacing, np.float64)
        if mm.shape != (len(self.spacing),) or not (np.isfinite(mm) & (mm > 0)).all():
            raise UserError(f"{name}: has a spacing of {spacing}; {expected}.")
        lengths = [n * of / to for n, of, to in zip(size, mm, self.spacing)]
        told = ""
        if (voxels := math.prod(lengths)) > MOST_VOXELS:
            told = f"{voxels:.2g} voxels of {self}, more than {MOST_VOXELS:.2g}"
        if min(lengths) < FEWEST - 0.5:
            told = f"an axis of {min(lengths):.2g} voxels of {self}, fewer than {FEWEST}"
        if told:
            raise UserError(
                f"{name}: its spacing of {by(mm.tolist())} mm makes {told}; expected the right "
                "spacing, in mm."
            )
        return mm.astype(np.float32)


class Graph:
    """A function of images on a grid as one graph for images of any size, which come one by one.

    Args:
      function: of images, and of their size before they were brought to the grid.
      spec: of the images.
      grid: that they are brought to; None: they stay as they are.
    """

    def __init__(self, function: OnGrid, spec: tf.TensorSpec, grid: Grid | None) -> None:
        def of_image(image: Tensor) -> Any:
            return function(image, ops.shape(image)[1:-1])

        self._grid = grid
        alone = tf.TensorSpec((1, *spec.shape[1:]), spec.dtype)
        edges = tf.TensorSpec((spec.shape.rank - 2,), tf.float32)
        called, signature = (
            (grid.resampling(function), [alone, edges]) if grid else (of_image, [alone])
        )
        self._graph = tf.function(called, input_signature=signature, autograph=False)

    def __call__(self, image: np.ndarray, spacing: Sequence[float] | None = None) -> Any:
        """Calls it with an image (1, *spatial, channels) of a spacing (z, y, x), mm.

        Raises:
          UserError: see `Grid.required`.
        """
        if self._grid is None:
            return self._graph(image)
        return self._graph(image, self._grid.required("volume", image.shape[1:-1], spacing))


def of_facts(spacing: Sequence[float] | None) -> Grid | None:
    """The grid of a run's config.json or of a model card; None: networks see volumes as they are.

    Raises:
      ValueError: edges that no voxels have.
    """
    if spacing is None:
        return None
    edges = tuple(float(mm) for mm in spacing)
    if not edges or not all(math.isfinite(mm) and mm > 0 for mm in edges):
        raise ValueError(f"grid={spacing}")
    return Grid(edges)


def median(spacings: Sequence[Sequence[float]]) -> Grid:
    """The grid of the median of several spacings (z, y, x), mm, along each axis.

    Raises:
      FieldError: there are none.
    """
    if not spacings:
        raise FieldError("spacing", "auto", "no case could be read; expected one to train on.")
    edges = np.median(np.asarray(spacings, np.float64), axis=0)
    return Grid(tuple(float(f"{mm:.{DIGITS}g}") for mm in edges))
