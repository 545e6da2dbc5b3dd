"""What is said of the cases that a model is trained on."""

from __future__ import annotations

from collections.abc import Collection, Mapping

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
