"""Reliability curves of an evaluation, and the file that they lie in."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from tf_autoctx import metrics, spreadsheets
from tf_autoctx.errors import UserError

Curves = Mapping[tuple[str, str], np.ndarray]  # {(method, structure): `metrics.reliability`}

FILE = "calibration.csv"
COUNTS = ("voxels", "probability", "truth")  # in each bin, as in `metrics.reliability`
COLUMNS = ("method", "structure", "bin", *COUNTS)  # bins from 1


def joined(several: Iterable[Curves]) -> Curves:
    """The curves of all cases of several evaluations."""
    total: dict[tuple[str, str], np.ndarray] = {}
    for curves in several:
        for key, bins in curves.items():
            total[key] = total[key] + bins if key in total else bins
    return total


def lines(curves: Curves) -> list[dict[str, Any]]:
    """{column: value} of each line of the file."""
    return [
        {"method": method, "structure": structure, "bin": number, **dict(zip(COUNTS, counts))}
        for (method, structure), bins in curves.items()
        for number, counts in enumerate(bins.tolist(), start=1)
    ]


def read(directory: str | pathlib.Path) -> Curves:
    """The curves of an evaluation in a folder; empty where there are none.

    Raises:
      UserError: the file holds something else.
    """
    path = pathlib.Path(directory) / FILE
    curves: dict[tuple[str, str], np.ndarray] = {}
    bins = range(1, metrics.BINS + 1)
    for line in spreadsheets.read(path, COLUMNS) if path.exists() else ():
        counts = curves.setdefault(
            (line["method"], line["structure"]), np.zeros((metrics.BINS, len(COUNTS)))
        )
        try:
            counts[bins.index(int(line["bin"]))] = [float(line[name]) for name in COUNTS]
        except ValueError as error:
            told = f"expected numbers, in bins from 1 to {metrics.BINS}"
            raise UserError(f"{path}: {error}; {told}.") from None
    return curves
