"""How sure a segmentation of a held-out case is, and how right it is to be."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tf_autoctx import metrics
from tf_autoctx.models import layers
from tf_autoctx.systems.shared import averaging

Tensor = Any

# By which part of its edges the box around a structure is wider, on each side. Within it, voxels
# are counted: far from a structure all are sure to be background, which would drown the others.
# The box is that of the truth, so that all methods are measured by the same voxels, and what is
# counted does not depend on what a method says.
MARGIN = 0.1


@dataclasses.dataclass(frozen=True)
class Confidence:
    """That of a method in one structure of a case.

    Attributes:
      uncertainty: mean of `averaging.uncertainty`, there or not, over the voxels that are predicted
        to be the structure, 0 to 1; NaN where there are none.
      bins: `metrics.reliability` in the box around the structure in the truth; None where the
        truth lacks it: it may be there and not be labelled.
    """

    uncertainty: float
    bins: np.ndarray | None


def of_case(
    segmentation: Mapping[str, Any],
    truth: np.ndarray,
    counted: np.ndarray,
    labels: Mapping[int, str],
    regions: metrics.Regions = metrics.NO_REGIONS,
) -> dict[str, Confidence]:
    """{structure: confidence} of a segmentation, of the structures that it or the truth has.

    Args:
      segmentation: of `system.Segmentations`, its label an array; without probabilities nothing
        comes of it. On another grid than the truth's they are resampled, one after the other.
      truth: integer labels of the label's shape.
      counted: bool, of the same shape: voxels that are not to be ignored.
      labels: {label value: name}.
      regions: those among them, see `metrics.mask_of`.
    """
    probabilities = segmentation.get("probability", {})
    told = {}
    for value, name in labels.items() if probabilities else ():
        both = segmentation["label"], truth
        mask, true_mask = (metrics.mask_of(label, value, regions) for label in both)
        if mask.any() or true_mask.any():
            probability = _on_grid(probabilities[name], truth.shape)
            told[name] = _confidence(probability, mask, true_mask, counted)
    return told


def _confidence(
    probability: np.ndarray, mask: np.ndarray, true_mask: np.ndarray, counted: np.ndarray
) -> Confidence:
    uncertainty, bins = math.nan, None
    if mask.any():
        of_voxels = averaging.uncertainty(probability[mask][None, :, None], 1)
        uncertainty = float(np.mean(of_voxels, dtype=np.float64))
    if true_mask.any():
        box = metrics.box_around(true_mask, MARGIN)
        inside = counted[box]
        bins = metrics.reliability(probability[box][inside], true_mask[box][inside])
    return Confidence(uncertainty, bins)


def scores(of_structures: Mapping[str, Confidence], structure: str) -> dict[str, float]:
    """Columns of a structure's row; none where there were no probabilities."""
    if structure not in of_structures:
        return {}
    confidence = of_structures[structure]
    bins = confidence.bins
    return {
        "uncertainty_percent": 100 * confidence.uncertainty,
        "ECE_percent": math.nan if bins is None else metrics.calibration_error(bins),
    }


def _on_grid(probability: Any, shape: Sequence[int]) -> np.ndarray:
    """A probability of any grid, (*spatial), on one of that shape."""
    voxels = np.asarray(probability, np.float32)
    if voxels.shape == tuple(shape):
        return voxels
    return np.asarray(_resampling(voxels.ndim)(voxels, np.array(shape, np.int32)))


@functools.cache
def _resampling(dimensions: int) -> Callable[[np.ndarray, np.ndarray], Tensor]:
    """(voxels, new size) -> voxels, linear, in a graph of so many dimensions."""
    spec = tf.TensorSpec([None] * dimensions), tf.TensorSpec([dimensions], tf.int32)

    @tf.function(input_signature=spec, autograph=False)
    def resampled(voxels: Tensor, size: Tensor) -> Tensor:
        return layers.resize_linear(voxels[None, ..., None], tf.unstack(size))[0, ..., 0]

    return resampled
