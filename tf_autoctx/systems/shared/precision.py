"""In which precision a finished run segments: what its own evaluation found of bfloat16.

Only runs that were trained in bfloat16 are evaluated in both.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Collection, Sequence

import numpy as np

from tf_autoctx import metrics
from tf_autoctx.data import images
from tf_autoctx.files import replacing
from tf_autoctx.systems.shared.system import Evaluator, Predictor, Wanted
from tf_autoctx.training import devices
from tf_autoctx.training.runs import Run

LOW = "bfloat16"
# Labels of two precisions are near enough where every structure of every case has at least this
# DSC: within 0.5 %.
NEAR = 0.995


class Compared:
    """An evaluator that segments in bfloat16 too, and tells how far the labels agree.

    Args:
      evaluator: in float32.
      low: what the last of its methods runs, in bfloat16.
      values: label values of the structures.
      regions: those among them, see `metrics.mask_of`.

    Attributes:
      least: smallest DSC of the two labels, of any structure of any image so far.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        low: Predictor,
        values: Collection[int],
        regions: metrics.Regions = metrics.NO_REGIONS,
    ) -> None:
        self._evaluator, self._low = evaluator, low
        self._values, self._regions = values, regions
        self.least = 1.0

    def __call__(
        self, voxels: np.ndarray, spacing: Sequence[float] | None
    ) -> dict[str, dict[str, object]]:
        segmentations = self._evaluator(voxels, spacing)
        served = np.asarray(list(segmentations.values())[-1]["label"])
        image = images.batch(voxels, served.ndim)
        output = self._low(image, spacing, Wanted())
        label = np.asarray(output["label"])[0, ..., 0]
        masks = (
            [metrics.mask_of(of_one, value, self._regions) for of_one in (served, label)]
            for value in self._values
        )
        self.least = min(self.least, *(metrics.dice(*pair) for pair in masks))
        return segmentations


def chosen(run: Run, precision: str) -> str:
    """The precision that a run segments in: the one that is asked for, or with "auto" bfloat16,
    where it is faster and its labels were near enough in the run's evaluation."""
    if precision != "auto":
        return precision
    try:
        least = float(json.loads(_record(run.folder).read_bytes())[LOW])
    except (OSError, ValueError, KeyError, TypeError):
        return "float32"
    return LOW if least >= NEAR and devices.bfloat16_is_faster() else "float32"


def note(folder: pathlib.Path, least: float) -> None:
    """Records the least agreement of the labels in a run folder."""
    with replacing(_record(folder)) as path:
        path.write_text(json.dumps({LOW: least}) + "\n")


def forget(folder: pathlib.Path) -> None:
    """Removes the record of a run folder, as one of its networks is another from now on."""
    _record(folder).unlink(missing_ok=True)


def _record(folder: pathlib.Path) -> pathlib.Path:
    return folder / "evaluation" / "precision.json"
