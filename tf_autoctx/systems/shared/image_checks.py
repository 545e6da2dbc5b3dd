"""What is said of a raw image that a model is about to segment; `predict` and the client say it.

Neither Keras nor TensorFlow is imported: a client has no need of them.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from tf_autoctx.data import images
from tf_autoctx.errors import UserError
from tf_autoctx.systems.shared.declaration import Declaration

Path = str | pathlib.Path


def warn_of_unlike(
    path: Path,
    voxels: np.ndarray,
    spacing: Sequence[float] | None,
    declaration: Declaration | None,
    trained: Sequence[Sequence[float]],
) -> None:
    """Warns of an image that is unlike those that a model was trained on.

    Args:
      path: of the image, for the messages.
      voxels: raw, (depth, height, width), of several channels (depth, height, width, channels), or
        (height, width).
      spacing: in mm; None: unknown.
      declaration: of the model's system; None: it is not installed here.
      trained: see `warn_of_spacing`.
    """
    warn_of_spacing(path, spacing, trained)
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


def warn_of_spacing(
    path: Path, spacing: Sequence[float] | None, trained: Sequence[Sequence[float]]
) -> None:
    """Warns of a volume whose spacing (z, y, x) is off that of all training cases by over 20 %.

    Args:
      path: of the volume, for the message.
      spacing: in mm; None: unknown.
      trained: smallest and largest spacing of the training cases; empty where it does not matter.
    """
    if not trained or spacing is None:
        return
    smallest, largest = trained
    near = all(0.8 * low <= mm <= 1.2 * high for mm, low, high in zip(spacing, smallest, largest))
    if not near:
        logging.warning(
            "%s: voxels of %s mm (z, y, x); the model was trained on %s to %s mm and knows voxels, "
            "not mm. Resample it, or train with `spacing=auto`.",
            path,
            *(" x ".join(f"{mm:.4g}" for mm in edges) for edges in (spacing, *trained)),
        )


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
