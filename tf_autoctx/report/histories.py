"""What the epochs of a training came to."""

from __future__ import annotations

import csv
import math
import pathlib

import numpy as np

from tf_autoctx.errors import UserError

History = dict[str, list[float]]  # {column: values, an epoch each}
VALIDATION = "val_DSC"  # from 0 to 1


def read(file: pathlib.Path) -> History:
    """The history.csv of a stage, "loss" and whatever it has beside; NaN where an epoch has none.

    Raises:
      UserError: it is none of ours.
    """
    try:
        with open(file, newline="", encoding="utf-8") as lines:
            epochs = list(csv.DictReader(lines))
        names = ["loss", *(name for name in epochs[0] if name not in ("epoch", "loss"))]
        return {
            name: [math.nan if epoch[name] == "NA" else float(epoch[name]) for epoch in epochs]
            for name in names
        }
    except (IndexError, KeyError, TypeError, ValueError, csv.Error):
        raise UserError(
            f"{file}: not the history of a training; expected a line per epoch with its loss."
        ) from None


def last_quarter(history: History) -> tuple[float, float]:
    """The best validation DSC in percent up to three quarters of the epochs, and up to the end: how
    far a training has converged. NaN where nothing was validated."""
    values = 100 * np.array(history.get(VALIDATION, [math.nan]))
    before = values[: max(1, 3 * len(values) // 4)]
    if np.isnan(before).all():
        return math.nan, math.nan
    return float(np.nanmax(before)), float(np.nanmax(values))
