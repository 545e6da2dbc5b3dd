"""Warnings of images that are unlike what a model was trained on."""

from __future__ import annotations

import pathlib
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from absl import logging

from tf_autoctx.data import pipeline
from tf_autoctx.systems.shared.caching import Files


def spacing_range(files: Files) -> list[list[float]]:
    """[(z, y, x) smallest, (z, y, x) largest] spacing in mm of cached cases."""
    spacings = np.stack([pipeline.stored(entry["spacing"], "spacing") for entry in files])
    spacings = spacings.astype(np.float64)
    return [np.round(spacings.min(0), 4).tolist(), np.round(spacings.max(0), 4).tolist()]


def warn_of_missing(labels: Mapping[int, str], present: Collection[int]) -> None:
    """Warns of the structures, {label value: name}, whose value no training case has."""
    for value, name in labels.items():
        if value not in present:
            logging.warning("No training case has %s (label %d): it cannot be learnt.", name, value)


def warn_of_spacing(
    path: str | pathlib.Path,
    spacing: Sequence[float] | None,
    trained: Sequence[Sequence[float]],
) -> None:
    """Warns of a volume whose spacing (z, y, x) is off that of all training cases by over 20 %.

    Args:
      path: of the volume, for the message.
      spacing: in mm.
      trained: smallest and largest spacing of the training cases; empty where it does not matter.
    """
    if not trained or spacing is None:
        return
    smallest, largest = trained
    near = all(0.8 * low <= mm <= 1.2 * high for mm, low, high in zip(spacing, smallest, largest))
    if not near:
        logging.warning(
            "%s: voxels of %s mm (z, y, x); the model was trained on %s to %s mm and knows voxels, "
            "not mm. Resample it.",
            path,
            *(" x ".join(f"{mm:.4g}" for mm in edges) for edges in (spacing, *trained)),
        )
