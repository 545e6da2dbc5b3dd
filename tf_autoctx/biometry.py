"""Biometry of the fetal head from its mask: what a sonographer measures on a plane, by an ellipse.

The ellipse of the head's outline gives biparietal diameter, occipito-frontal diameter and head
circumference, as in van den Heuvel et al. 2018, "Automated measurement of fetal head circumference
using 2D ultrasound images", PLoS ONE.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tf_autoctx import metrics

MEASUREMENTS = ("BPD", "OFD", "HC")
METRICS = tuple(
    metrics.METRICS[name + ending] for name in MEASUREMENTS for ending in ("", "_error")
)


def head(mask: np.ndarray, spacing: Sequence[float]) -> dict[str, float]:
    """Biparietal and occipito-frontal diameter and circumference of a head, by an ellipse.

    The ellipse is fitted to the outer boundary (Halir and Flusser 1998, direct least squares). In
    3D that is the boundary of the section perpendicular to z with the largest area: a transverse
    one where z runs along the head.

    Args:
      mask: (z, y, x) or (y, x); non-zero is the head.
      spacing: mm per axis in the array's order.

    Returns:
      {"BPD_mm", "OFD_mm", "HC_mm"}: minor axis, major axis, perimeter. NaN where there is no
      ellipse: a section under three voxels wide, or none.

    Raises:
      ValueError: the mask is not 2D or 3D, or spacing does not have one value per axis.
    """
    from scipy import ndimage, special
    from skimage import measure

    mask = np.asarray(mask) != 0
    if mask.ndim not in (2, 3) or len(spacing) != mask.ndim:
        raise ValueError(
            f"mask {mask.shape} and spacing {tuple(spacing)} need two or three axes, the same."
        )
    section = mask[mask.sum(axis=(1, 2)).argmax()] if mask.ndim == 3 else mask
    section = ndimage.binary_fill_holes(section)
    ellipse = None
    if ndimage.binary_erosion(section).any():
        # Points half-way between centres inside and outside: the centres of boundary voxels lie
        # inside the boundary.
        outline = max(measure.find_contours(np.pad(section, 1).astype(float), 0.5), key=len)
        points = outline[1:] * spacing[-2:]  # the first point is the last one too
        with np.errstate(divide="ignore", invalid="ignore"):  # a circle has no angle
            ellipse = measure.EllipseModel.from_estimate(points)
    minor, major = 2 * np.sort(ellipse.axis_lengths) if ellipse else (np.nan, np.nan)
    perimeter = 2 * major * special.ellipe(1 - (minor / major) ** 2)
    return {"BPD_mm": float(minor), "OFD_mm": float(major), "HC_mm": float(perimeter)}


def compare(
    prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float]
) -> dict[str, float]:
    """`head` of a segmentation, of its ground truth, and the absolute error.

    Each mask is measured on its own largest section.

    Args:
      prediction, truth, spacing: see `head`.

    Returns:
      {"BPD_mm", "truth_BPD_mm", "BPD_error_mm"} and so on for OFD and HC; NaN where there is no
      ellipse.

    Raises:
      ValueError: see `head`.
    """
    measured, true = head(prediction, spacing), head(truth, spacing)
    scores: dict[str, float] = {}
    for name in MEASUREMENTS:
        value, true_value = measured[f"{name}_mm"], true[f"{name}_mm"]
        scores |= {
            f"{name}_mm": value,
            f"truth_{name}_mm": true_value,
            f"{name}_error_mm": abs(value - true_value),
        }
    return scores
