"""Scores of a segmentation against its ground truth: overlap, boundary distances, volume, and statistics over cases.

Overlap and distances follow Yang et al. 2019, section 3.1, equations 6-8. The paper's Adb divides by the object's size;
its reported values are only possible with the number of surface points, which is the definition here.
"""

import numpy as np
from scipy import ndimage, spatial, stats


def dice(prediction, truth):
    """Dice similarity coefficient 2 |E and G| / (|E| + |G|) of masks of equal shape, in [0, 1]; 1 if both empty."""
    prediction, truth = _masks(prediction, truth)
    size = np.count_nonzero(prediction) + np.count_nonzero(truth)
    return 2 * np.count_nonzero(prediction & truth) / size if size else 1.0


def mean_dice(prediction, truth):
    """Mean DSC in [0, 1] of the classes from 1 that the truth has, of integer arrays of equal shape."""
    return float(np.mean([dice(prediction == k, truth == k) for k in np.setdiff1d(truth, 0)]))


def surface(mask):
    """Boundary voxels of a bool mask, same shape: object voxels with a background 6-neighbour (4-neighbour in 2D).

    Outside the array is background, and an inner cavity has a surface too.
    """
    return mask & ~ndimage.binary_erosion(mask)


def surface_distances(prediction, truth, spacing=None):
    """Distance from every boundary voxel of one mask to the nearest boundary voxel of the other.

    Args:
      prediction, truth: non-empty masks of equal shape, (z, y, x) or (y, x); non-zero is object.
      spacing: distance between voxel centres per axis of the array, in mm; None measures in pixels.

    Returns:
      (to_truth, to_prediction): one distance per boundary voxel of the prediction and of the truth.

    Raises:
      ValueError: shapes differ, spacing does not have one value per axis, or a mask is empty.
    """
    prediction, truth = _masks(prediction, truth, spacing)
    if not (prediction.any() and truth.any()):
        raise ValueError("an empty mask has no boundary to measure a distance to.")

    # Only the box around both objects matters: outside it everything is background, as it is outside the array.
    union = prediction | truth
    box = []
    for axis in range(union.ndim):
        filled = np.flatnonzero(
            union.any(axis=tuple(other for other in range(union.ndim) if other != axis))
        )
        box.append(slice(filled[0], filled[-1] + 1))

    scale = np.ones(truth.ndim) if spacing is None else np.asarray(spacing, float)

    # A tree over the boundaries is an order of magnitude faster than distance transforms of the volume; boundary
    # voxels lie on a grid, so balancing the tree costs more than it saves.
    points = [np.argwhere(surface(mask[tuple(box)])) * scale for mask in (prediction, truth)]
    trees = [spatial.KDTree(p, balanced_tree=False, compact_nodes=False) for p in points]
    return trees[1].query(points[0], workers=-1)[0], trees[0].query(points[1], workers=-1)[0]


def compare(prediction, truth, spacing=None):
    """All scores of one segmentation E against its ground truth G (Yang et al. 2019, section 3.1, equations 6-8).

    Args:
      prediction, truth: masks of equal shape, (z, y, x) or (y, x); non-zero is object.
      spacing: mm per axis in the ARRAY's order, (z, y, x) or (y, x); None measures in pixels.

    Returns:
      Dict of floats: DSC_percent, Conf_percent, Jacc_percent, precision_percent, recall_percent, Adb_mm, Hdb_mm,
      Hdb95_mm, volume_mL, truth_volume_mL, volume_error_percent. A name always tells its unit: 2D masks have area_mm2,
      truth_area_mm2 and area_error_percent instead of volumes, and without spacing mm, mL and mm2 become pixel.

      Both masks empty: overlap 100 %, distances 0, volume error 0. One empty: overlap, precision and recall 0, Conf
      -inf, distances inf; the volume error is 100 % without prediction and inf without truth.

    Raises:
      ValueError: shapes differ, are not 2D or 3D, or spacing does not have one value per axis.
    """
    prediction, truth = _masks(prediction, truth, spacing)
    size, true_size = np.count_nonzero(prediction), np.count_nonzero(truth)
    both = np.count_nonzero(prediction & truth)
    if size and true_size:
        to_truth, to_prediction = surface_distances(prediction, truth, spacing)
        adb = (to_truth.mean() + to_prediction.mean()) / 2
        hdb = max(to_truth.max(), to_prediction.max())
        hdb95 = max(np.percentile(to_truth, 95), np.percentile(to_prediction, 95))
    else:
        adb = hdb = hdb95 = 0.0 if size == true_size else np.inf

    def ratio(part, whole):
        return (
            part / whole if whole else float(size == true_size)
        )  # 0/0 is perfect only if both masks are empty

    dsc = ratio(2 * both, size + true_size)
    length = "pixel" if spacing is None else "mm"
    extent, unit = ("volume", "mL") if truth.ndim == 3 else ("area", "mm2")
    unit = "pixel" if spacing is None else unit
    voxel = 1.0 if spacing is None else np.prod(spacing) / (1000 if unit == "mL" else 1)
    error = abs(size - true_size) / true_size if true_size else (np.inf if size else 0.0)
    scores = {
        "DSC_percent": 100 * dsc,
        "Conf_percent": 100 * (3 * dsc - 2) / dsc if dsc else -np.inf,
        "Jacc_percent": 100 * ratio(both, size + true_size - both),
        "precision_percent": 100 * ratio(both, size),
        "recall_percent": 100 * ratio(both, true_size),
        f"Adb_{length}": adb,
        f"Hdb_{length}": hdb,
        f"Hdb95_{length}": hdb95,
        f"{extent}_{unit}": size * voxel,
        f"truth_{extent}_{unit}": true_size * voxel,
        f"{extent}_error_percent": 100 * error,
    }
    return {name: float(value) for name, value in scores.items()}


def summarize(values, seed=0):
    """Mean, SD (ddof 1), range and bootstrap 95 % confidence interval of the mean (percentile, 10,000 resamples).

    Only finite values count: `n` says how many there are. What cannot be computed from so few is NaN.

    Args:
      values: one metric over cases, (cases,).
      seed: of the resampling.

    Returns:
      {"mean", "sd", "min", "max", "ci_low", "ci_high", "n"}.
    """
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    if not len(values):
        return {**dict.fromkeys(("mean", "sd", "min", "max", "ci_low", "ci_high"), np.nan), "n": 0}
    draws = np.random.default_rng(seed).integers(len(values), size=(10_000, len(values)))
    low, high = np.percentile(values[draws].mean(axis=1), (2.5, 97.5))
    return {
        "mean": float(values.mean()),
        "sd": float(values.std(ddof=1)) if len(values) > 1 else np.nan,
        "min": float(values.min()),
        "max": float(values.max()),
        "ci_low": float(low),
        "ci_high": float(high),
        "n": len(values),
    }


def paired(a, b):
    """Compares two methods on the same cases by the Wilcoxon signed-rank test; pairs that are not finite are left out.

    Args:
      a, b: one metric of each method, (cases,), in the same order of cases.

    Returns:
      {"mean_difference" of a - b, its bootstrap 95 % interval "ci_low" and "ci_high", two-sided "p", "n" pairs}.
      Pairs that are all equal have p = 1; without a pair everything is NaN.

    Raises:
      ValueError: a and b differ in length.
    """
    a, b = _pairs(a, b)
    difference = summarize(a - b)
    p = float(stats.wilcoxon(a, b).pvalue) if np.any(a != b) else 1.0
    return {
        "mean_difference": difference["mean"],
        "ci_low": difference["ci_low"],
        "ci_high": difference["ci_high"],
        "p": p if difference["n"] else np.nan,
        "n": difference["n"],
    }


def holm(p_values):
    """p values corrected for the number of tests by the step-down procedure of Holm 1979.

    The k-th smallest of m is multiplied by m - k + 1, but is never below a smaller one's, nor above 1.

    Args:
      p_values: (tests,). NaN, a test that could not be made, stays and does not count.

    Returns:
      (tests,) float.
    """
    p = np.asarray(p_values, float)
    corrected, rank = (
        np.full_like(p, np.nan),
        np.argsort(p)[: np.count_nonzero(~np.isnan(p))],
    )  # NaN come last
    corrected[rank] = np.minimum(1, np.maximum.accumulate(p[rank] * np.arange(len(rank), 0, -1)))
    return corrected


def agreement(measured, truth):
    """Agreement of a measurement with its reference over a test set; pairs that are not finite are left out.

    Args:
      measured, truth: for example volumes in mL, (cases,), in the same order of cases.

    Returns:
      {"pearson_r", its two-sided "p", Bland-Altman "bias" of measured - truth, its limits "limit_low" and "limit_high"
      at bias -+ 1.96 SD (ddof 1), "n" pairs}. NaN where there are too few pairs or a side is constant.

    Raises:
      ValueError: the two differ in length.
    """
    measured, truth = _pairs(measured, truth)
    difference = summarize(measured - truth)
    r = p = np.nan
    if len(truth) > 1 and np.ptp(measured) and np.ptp(truth):
        r, p = stats.pearsonr(measured, truth)
    return {
        "pearson_r": float(r),
        "p": float(p),
        "bias": difference["mean"],
        "limit_low": difference["mean"] - 1.96 * difference["sd"],
        "limit_high": difference["mean"] + 1.96 * difference["sd"],
        "n": difference["n"],
    }


def repeatability(values, groups):
    """Spread of repeated measurements: the SD (ddof 1) within every group, and the mean and range of those SDs.

    Args:
      values: finite measurements, for example volumes in mL, (scans,).
      groups: what was measured, for example the patient, (scans,). A group of one scan has no SD and is left out.

    Returns:
      {"sd": {group: SD}, "mean", "min", "max"}; the last three are NaN without a repeated scan.

    Raises:
      ValueError: values and groups differ in length.
    """
    members = {}
    for value, group in zip(values, groups, strict=True):
        members.setdefault(group, []).append(value)
    sd = {group: float(np.std(scans, ddof=1)) for group, scans in members.items() if len(scans) > 1}
    spread = list(sd.values()) or [np.nan]
    return {"sd": sd, "mean": float(np.mean(spread)), "min": min(spread), "max": max(spread)}


def _masks(prediction, truth, spacing=None):
    prediction, truth = np.asarray(prediction) != 0, np.asarray(truth) != 0
    if prediction.shape != truth.shape or truth.ndim not in (2, 3):
        raise ValueError(
            f"masks need one 2D or 3D shape; prediction is {prediction.shape}, truth is {truth.shape}."
        )
    if spacing is not None and len(spacing) != truth.ndim:
        raise ValueError(
            f"spacing {tuple(spacing)} needs one value per axis of masks of shape {truth.shape}."
        )
    return prediction, truth


def _pairs(a, b):
    a, b = np.asarray(a, float), np.asarray(b, float)
    if a.shape != b.shape:
        raise ValueError(
            f"pairs need two series of equal length, not shapes {a.shape} and {b.shape}."
        )
    finite = np.isfinite(a) & np.isfinite(b)
    return a[finite], b[finite]
