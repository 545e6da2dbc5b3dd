"""Evaluation of a run whose export takes the mean of images and their mirror images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tf_autoctx.data import images
from tf_autoctx.systems.shared.evaluation import Evaluator
from tf_autoctx.systems.shared.system import Predictor, segmented


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

    def __call__(self, voxels: np.ndarray) -> dict[str, dict[str, Any]]:
        segmentations = self._evaluator(voxels)
        last = list(segmentations)[-1]
        image = images.batch(voxels, np.ndim(segmentations[last]["label"]))
        output = self._predictor(image, probabilities=True, progress=False)
        name = f"{last}, mirrored"
        return {**segmentations, name: segmented(output, self._labels)}
