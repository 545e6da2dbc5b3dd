"""Evaluation of a run whose export takes the mean of images and their mirror images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tf_autoctx.systems.shared.system import Evaluator, Predictor, segmented


class Mirrored:
    """An evaluator with one method more, the last, which is served.

    Args:
      evaluator: of the networks as they are.
      predictor: what the last of its methods runs, on mirror images too.
      labels: {label value: name} of the structures.
    """

    def __init__(
        self, evaluator: Evaluator, predictor: Predictor, labels: Mapping[int, str]
    ) -> None:
        self._evaluator, self._predictor, self._labels = evaluator, predictor, labels

    def __call__(
        self, voxels: np.ndarray, spacing: Sequence[float] | None
    ) -> dict[str, dict[str, Any]]:
        segmentations = self._evaluator(voxels, spacing)
        name = f"{list(segmentations)[-1]}, mirrored"
        dimensions = np.ndim(segmentations[list(segmentations)[-1]]["label"])
        mirrored = segmented(self._predictor, voxels, spacing, dimensions, self._labels)
        return {**segmentations, name: mirrored}
