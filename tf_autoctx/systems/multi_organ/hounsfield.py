"""Whether a CT is in Hounsfield units."""

from __future__ import annotations

import pathlib

import numpy as np
from absl import logging


def check_voxels(path: str | pathlib.Path, voxels: np.ndarray) -> None:
    """Warns of a CT whose range of intensities cannot be in Hounsfield units: air and fat are
    below 0, bone above 100."""
    low, high = voxels.min(), voxels.max()
    if low > -50 or high < 100:
        logging.warning(
            "%s: intensities from %g to %g do not look like a CT in HU, such as -1000 to 1500; "
            "other images want a training with `intensities=image`.",
            path,
            low,
            high,
        )
