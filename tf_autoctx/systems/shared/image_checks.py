"""What is said of a raw image that a model is about to segment; `predict` and the client say it.

Neither Keras nor TensorFlow is imported: a client has no need of them.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from absl import logging

from tf_autoctx.data import images
from tf_autoctx.errors import UserError
from tf_autoctx.systems.shared.declaration import Declaration

Path = str | pathlib.Path
Ranges = Sequence[Sequence[float]]  # [(z, y, x) smallest, (z, y, x) largest], mm; or empty
FAR = 3  # times the extent of all training cases


@dataclasses.dataclass(frozen=True)
class Trained:
    """How large the volumes were that a model was trained on; empty if unknown.

    Attributes:
      spacing: of their voxels; empty also where networks see millimetres: any other will do.
      extent: of the whole volumes, where networks see millimetres.
    """

    spacing: Ranges = ()
    extent: Ranges = ()

    @classmethod
    def of_facts(cls, facts: Mapping[str, Any]) -> Self:
        """By a run's config.json or a model card.

        Raises:
          TypeError, ValueError: it tells none.
        """
        name = "extent" if facts.get("grid") else "spacing"
        told = [[float(mm) for mm in edges] for edges in facts.get(name) or []]
        if told and [len(edges) for edges in told] != [3, 3]:
            raise ValueError(name)
        return cls(**{name: told})

    def warn(self, path: Path, size: Sequence[int], spacing: Sequence[float] | None) -> None:
        """Warns of a volume whose spacing is off that of all training cases by over 20 %, or whose
        extent by over `FAR` times.

        Args:
          path: of the volume, for the message.
          size: voxels along its axes.
          spacing: (z, y, x) in mm; None: unknown.
        """
        if spacing is None:
            return
        if self.spacing and not _within(spacing, self.spacing, 0.8, 1.2):
            logging.warning(
                "%s: voxels of %s mm (z, y, x); the model was trained on %s to %s mm and knows "
                "voxels, not mm. Resample it, or train with `spacing=auto`.",
                path,
                *map(by, (spacing, *self.spacing)),
            )
        extent = [n * mm for n, mm in zip(size, spacing)]
        if self.extent and not _within(extent, self.extent, 1 / FAR, FAR):
            logging.warning(
                "%s: is %s mm large (z, y, x); the model was trained on %s to %s mm. Is its "
                "spacing in mm?",
                path,
                *map(by, (extent, *self.extent)),
            )


def _within(lengths: Sequence[float], ranges: Ranges, least: float, most: float) -> bool:
    smallest, largest = ranges
    return all(
        least * low <= mm <= most * high for mm, low, high in zip(lengths, smallest, largest)
    )


def by(lengths: Sequence[float]) -> str:
    """Lengths in words, such as "1 x 0.5 x 0.5"."""
    return " x ".join(f"{mm:.4g}" for mm in lengths)


def warn_of_unlike(
    path: Path,
    voxels: np.ndarray,
    spacing: Sequence[float] | None,
    declaration: Declaration | None,
    trained: Trained,
) -> None:
    """Warns of an image that is unlike those that a model was trained on.

    Args:
      path: of the image, for the messages.
      voxels: raw, (depth, height, width), of several channels (depth, height, width, channels), or
        (height, width).
      spacing: in mm; None: unknown.
      declaration: of the model's system; None: it is not installed here.
      trained: what those measured.
    """
    trained.warn(path, voxels.shape, spacing)
    channels = np.moveaxis(voxels, -1, 0) if voxels.ndim == 4 else voxels[None]
    empty = [k for k, of in enumerate(channels) if of.size and (of == of.flat[0]).all()]
    for number in empty:
        logging.warning(
            "%s: all voxels%s are %g, there is nothing to be seen in it; expected an image.",
            path,
            f" of channel {number}" if voxels.ndim == 4 else "",
            channels[number].flat[0],
        )
    if not empty and declaration is not None:
        declaration.check_voxels(path, voxels)


def warn_of_orientation(where: Path, facts: Mapping[str, Any], dimensions: int) -> None:
    """Warns of a model of volumes that was made before these were brought to one orientation.

    Args:
      where: its folder, for messages.
      facts: its config.json or model card.
      dimensions: of its images.

    Raises:
      UserError: it expects another orientation.
    """
    stated = facts.get("orientation", "")
    if dimensions == 3 and not stated:
        logging.warning(
            "%s: made before volumes were brought to %s, it knows its training files as they were "
            "stored; where those were not %s, train it again.",
            where,
            images.ORIENTATION,
            images.ORIENTATION,
        )
    elif dimensions == 3 and stated != images.ORIENTATION:
        raise UserError(
            f"{where}: a model of volumes in the orientation {stated!r}; expected "
            f"{images.ORIENTATION}."
        )
