"""Scores of a segmentation against its ground truth, and what they are.

Overlap, boundary distances, volume, and statistics over cases. `METRICS` says once what each metric
is; tables, figures and the page read it there. A system adds what it measures itself by `register`.

Overlap and distances follow Yang et al. 2019, section 3.1, equations 6-8. The paper's Adb divides
by the object's size; its reported values are only possible with the number of surface points, which
is the definition here.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Direction = Literal["higher", "lower", "neither"]
Place = Literal["table", "charts", "measurements"]
TITLES = {"percent": "%"}  # of units; others are called what their column says
BINS = 10  # of probabilities, see `reliability`

# {value of a structure: the label values of its voxels} of structures of several, which may lie in
# each other or overlap.
Regions = Mapping[int, Collection[int]]
NO_REGIONS: Regions = types.MappingProxyType({})  # each structure is one label value


@dataclasses.dataclass(frozen=True)
class Metric:
    """What a metric is: a row of `METRICS`.

    Attributes:
      name: without its unit.
      units: those that it comes in; in the order in which `size_of` looks for them.
      better: whether "higher" or "lower" values are better; "neither" is that of a measurement such
        as a volume; None where nothing was declared.
      shown: "table": among the columns of the printed table; "charts": among the box plots and the
        scores of a case on the page; "measurements": in the table of errors of biometry.
      is_size: whether it is how much of a structure there is, 0 for nothing.
      in_truth: whether the truth has it too, of one that is "neither".
    """

    name: str
    units: tuple[str, ...]
    better: Direction | None
    shown: tuple[Place, ...] = ()
    is_size: bool = False
    in_truth: bool = True


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of results: a metric in one of its units, of the prediction or of the truth.

    Attributes:
      name: on disk, such as DSC_percent or truth_volume_mL.
      metric: its row of `METRICS`.
      unit: one of the metric's, or "".
      of_truth: whether it is the truth's.
    """

    name: str
    metric: Metric
    unit: str
    of_truth: bool = False

    @property
    def title(self) -> str:
        """What stands above it, such as "volume error (%)"."""
        name = f"{'truth ' * self.of_truth}{self.metric.name}".replace("_", " ")
        return f"{name} ({TITLES.get(self.unit, self.unit)})" if self.unit else name

    @property
    def truth(self) -> str:
        """Name of the column of the truth's value; "" if this is no measurement of a prediction."""
        measures = self.metric.better == "neither" and self.metric.in_truth
        return f"truth_{self.name}" if measures and not self.of_truth else ""

    @property
    def is_score(self) -> bool:
        """Whether methods can be compared by it: a volume is no better for being larger."""
        return self.metric.better != "neither"


METRICS = {
    metric.name: metric
    for metric in (
        Metric("DSC", ("percent",), "higher", ("table", "charts")),
        Metric("Conf", ("percent",), "higher", ("table",)),
        Metric("Jacc", ("percent",), "higher", ("table",)),
        Metric("precision", ("percent",), "higher"),
        Metric("recall", ("percent",), "higher"),
        Metric("Adb", ("mm", "pixel"), "lower", ("table", "charts")),
        Metric("Hdb", ("mm", "pixel"), "lower", ("table", "charts")),
        Metric("Hdb95", ("mm", "pixel"), "lower"),
        Metric("NSD", ("percent",), "higher", ("table", "charts")),
        Metric("volume", ("mL", "pixel"), "neither", is_size=True),
        Metric("volume_error", ("percent",), "lower", ("table", "charts")),
        # Pixels first: in 2D some cases of an evaluation may have them alone.
        Metric("area", ("pixel", "mm2"), "neither", is_size=True),
        Metric("area_error", ("percent",), "lower", ("table", "charts")),
        Metric("BPD", ("mm",), "neither"),
        Metric("BPD_error", ("mm",), "lower", ("measurements",)),
        Metric("OFD", ("mm",), "neither"),
        Metric("OFD_error", ("mm",), "lower", ("measurements",)),
        Metric("HC", ("mm",), "neither"),
        Metric("HC_error", ("mm",), "lower", ("measurements",)),
        Metric("uncertainty", ("percent",), "neither", in_truth=False),
        Metric("ECE", ("percent",), "lower"),
    )
}


def register(*declared: Metric) -> None:
    """Adds metrics to `METRICS` for as long as the program runs.

    Raises:
      ValueError: one of the same name is declared in another way.
    """
    for metric in declared:
        before = METRICS.setdefault(metric.name, metric)
        if before != metric:
            raise ValueError(f"{metric}: declared before as {before}; expected another name.")


def columns(metric: Metric) -> dict[str, Column]:
    """{name on disk: column} of a metric: one per unit, and of a measurement the truth's too."""
    named = {}
    for unit in metric.units:
        column = Column(f"{metric.name}_{unit}", metric, unit)
        named[column.name] = column
        if column.truth:
            named[column.truth] = Column(column.truth, metric, unit, of_truth=True)
    return named


def column(name: str) -> Column:
    """The column of that name on disk; one that no metric declares is a metric without a unit."""
    for metric in METRICS.values():
        if name in (named := columns(metric)):
            return named[name]
    return Column(name, Metric(name, (), None), "")


def shown(place: Place) -> tuple[str, ...]:
    """Names of the metrics that are shown in a place, see `Metric`."""
    return tuple(metric.name for metric in METRICS.values() if place in metric.shown)


def size_of(row: dict[str, Any]) -> Column:
    """The column of a row that is the size of the structure.

    Raises:
      KeyError: it has none.
    """
    for metric in METRICS.values():
        for name, size in columns(metric).items() if metric.is_size else ():
            if name in row and not size.of_truth:
                return size
    raise KeyError("size")


def dice(prediction: npt.ArrayLike, truth: npt.ArrayLike) -> float:
    """Dice similarity coefficient 2 |E and G| / (|E| + |G|) of masks of equal shape.

    In [0, 1]; 1 if both are empty.
    """
    mask, true_mask = _masks(prediction, truth)
    size = np.count_nonzero(mask) + np.count_nonzero(true_mask)
    return 2 * np.count_nonzero(mask & true_mask) / size if size else 1.0


def mask_of(label: np.ndarray, value: int, regions: Regions = NO_REGIONS) -> np.ndarray:
    """The voxels of a structure, bool: those of its label value, or of a region those of any of its
    values.

    Args:
      label: integers of any shape.
      value: of the structure.
      regions: those among the structures.
    """
    return np.isin(label, list(regions[value])) if value in regions else label == value


def mean_dice(prediction: np.ndarray, truth: np.ndarray, regions: Regions = NO_REGIONS) -> float:
    """Mean DSC in [0, 1] of the classes from 1 that the truth has, or where there are regions, of
    those that it has.

    Args:
      prediction, truth: integer arrays of equal shape.
      regions: of these classes.
    """
    pairs = (
        [mask_of(label, value, regions) for label in (prediction, truth)]
        for value in regions or np.setdiff1d(truth, 0)
    )
    return float(np.mean([dice(*pair) for pair in pairs if pair[1].any() or not regions]))


def surface(mask: np.ndarray) -> np.ndarray:
    """Boundary voxels of a bool mask, same shape: object voxels with a background neighbour.

    Neighbours share a face (in 2D, an edge). Outside the array is background, and an inner cavity
    has a surface too.
    """
    from scipy import ndimage

    return mask & ~ndimage.binary_erosion(mask)


def box_around(mask: np.ndarray, margin: float = 0.0) -> tuple[slice, ...]:
    """The box around what is true in a bool mask, which is not empty.

    Args:
      mask: of any shape.
      margin: by which part of its edges the box is wider on each side, rounded up to voxels, as far
        as the mask reaches.
    """
    box = []
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        filled = np.flatnonzero(mask.any(axis=others))
        first, end = int(filled[0]), int(filled[-1]) + 1
        wider = math.ceil(margin * (end - first))
        box.append(slice(max(first - wider, 0), end + wider))
    return tuple(box)


def surface_distances(
    prediction: npt.ArrayLike, truth: npt.ArrayLike, spacing: Sequence[float] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Distance from every boundary voxel of one mask to the nearest boundary voxel of the other.

    Args:
      prediction, truth: non-empty masks of equal shape, (z, y, x) or (y, x); non-zero is object.
      spacing: distance between voxel centres per axis of the array, in mm; None measures in pixels.
        Axes of length 1 do not count: a volume of one slice is measured as an image.

    Returns:
      (to_truth, to_prediction): one distance per boundary voxel of the prediction, of the truth.

    Raises:
      ValueError: shapes differ, spacing does not have one value per axis, or a mask is empty.
    """
    from scipy import spatial

    prediction, truth = _masks(prediction, truth, spacing)
    if not (prediction.any() and truth.any()):
        raise ValueError("an empty mask has no boundary to measure a distance to.")

    # Along an axis of one voxel there is no outside: a slice's boundary is its outline.
    axes = [axis for axis, size in enumerate(truth.shape) if size > 1] or [0]
    shape = tuple(truth.shape[axis] for axis in axes)
    prediction, truth = prediction.reshape(shape), truth.reshape(shape)
    spacing = spacing if spacing is None else [spacing[axis] for axis in axes]

    # Only the box around both objects matters: outside it everything is background, as it is
    # outside the array.
    box = box_around(prediction | truth)
    scale = np.ones(truth.ndim) if spacing is None else np.asarray(spacing, float)

    # A tree over the boundaries is an order of magnitude faster than distance transforms of the
    # volume; boundary voxels lie on a grid, so balancing the tree costs more than it saves.
    points = [np.argwhere(surface(mask[box])) * scale for mask in (prediction, truth)]
    trees = [spatial.KDTree(p, balanced_tree=False, compact_nodes=False) for p in points]
    return trees[1].query(points[0], workers=-1)[0], trees[0].query(points[1], workers=-1)[0]


def compare(
    prediction: npt.ArrayLike,
    truth: npt.ArrayLike,
    spacing: Sequence[float] | None = None,
    tolerance: float | None = None,
) -> dict[str, float]:
    """All scores of a segmentation E against its ground truth G.

    Yang et al. 2019, section 3.1, equations 6-8.

    Args:
      prediction, truth: masks of equal shape, (z, y, x) or (y, x); non-zero is object.
      spacing: mm per axis in the ARRAY's order, (z, y, x) or (y, x); None measures in pixels.
      tolerance: mm; with a spacing it adds NSD_percent, the surface Dice: the share of all boundary
        voxels of both masks that lie at most so far from the other's boundary (after Nikolov et al.
        2021, who weigh them by area).

    Returns:
      {column: value}: DSC_percent, Conf_percent, Jacc_percent, precision_percent, recall_percent,
      Adb_mm, Hdb_mm, Hdb95_mm, volume_mL, truth_volume_mL, volume_error_percent. A name always
      tells its unit: 2D masks have area_mm2, truth_area_mm2 and area_error_percent instead of
      volumes, and without spacing mm, mL and mm2 become pixel.

      Both masks empty: overlap 100 %, distances 0, volume error 0. One empty: overlap, precision
      and recall 0, Conf -inf, distances inf; the volume error is 100 % without prediction and inf
      without truth.

    Raises:
      ValueError: shapes differ, are not 2D or 3D, or spacing does not have one value per axis.
    """
    prediction, truth = _masks(prediction, truth, spacing)
    distances = _distances(prediction, truth, spacing)
    size, true_size = int(np.count_nonzero(prediction)), int(np.count_nonzero(truth))
    both = int(np.count_nonzero(prediction & truth))

    def ratio(part: int, whole: int) -> float:
        # 0/0 is perfect only if both masks are empty.
        return part / whole if whole else float(size == true_size)

    dsc = ratio(2 * both, size + true_size)
    length = "pixel" if spacing is None else "mm"
    measured, true = extent_of(prediction, spacing), extent_of(truth, spacing)
    extent = "volume" if truth.ndim == 3 else "area"
    error = abs(size - true_size) / true_size if true_size else (np.inf if size else 0.0)
    scores = {
        "DSC_percent": 100 * dsc,
        "Conf_percent": 100 * (3 * dsc - 2) / dsc if dsc else -np.inf,
        "Jacc_percent": 100 * ratio(both, size + true_size - both),
        "precision_percent": 100 * ratio(both, size),
        "recall_percent": 100 * ratio(both, true_size),
        f"Adb_{length}": sum(of_one.mean() for of_one in distances) / 2,
        f"Hdb_{length}": max(of_one.max() for of_one in distances),
        f"Hdb95_{length}": max(
            np.percentile(of_one, 95) if np.isfinite(of_one).all() else np.inf
            for of_one in distances
        ),
        **measured,
        **{f"truth_{name}": value for name, value in true.items()},
        f"{extent}_error_percent": 100 * error,
    }
    if tolerance is not None and spacing is not None:
        # A distance that is the tolerance up to rounding counts.
        near = np.concatenate(distances) <= tolerance * (1 + 1e-9)
        scores["NSD_percent"] = 100 * near.mean()
    return {name: float(value) for name, value in scores.items()}


def extent_of(mask: npt.ArrayLike, spacing: Sequence[float] | None = None) -> dict[str, float]:
    """The volume or area of a mask (z, y, x) or (y, x): {"volume_mL"}, {"area_mm2"}, or in pixels
    without a spacing (mm, in the array's order) {"volume_pixel"}, {"area_pixel"}."""
    array = np.asarray(mask)
    extent, unit = ("volume", "mL") if array.ndim == 3 else ("area", "mm2")
    voxel = 1.0 if spacing is None else float(np.prod(spacing)) / (1000 if unit == "mL" else 1)
    name = f"{extent}_{'pixel' if spacing is None else unit}"
    return {name: np.count_nonzero(array) * voxel}


def _distances(
    prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float] | None
) -> tuple[np.ndarray, np.ndarray]:
    """`surface_distances` of bool masks; one each where one or both are empty."""
    if not (prediction.any() and truth.any()):
        distance = np.array([0.0 if prediction.any() == truth.any() else np.inf])
        return distance, distance
    return surface_distances(prediction, truth, spacing)


def summarize(values: npt.ArrayLike, seed: int = 0) -> dict[str, float]:
    """Mean, SD (ddof 1), range and bootstrap 95 % confidence interval of the mean.

    The interval is that of percentiles of 10,000 resamples. Only finite values count: `n` says how
    many there are. What cannot be computed from so few is NaN.

    Args:
      values: one metric over cases, (cases,).
      seed: of the resampling.

    Returns:
      {"mean", "sd", "min", "max", "ci_low", "ci_high", "n"}.
    """
    cases = np.asarray(values, float)
    cases = cases[np.isfinite(cases)]
    if not len(cases):
        return {**dict.fromkeys(("mean", "sd", "min", "max", "ci_low", "ci_high"), np.nan), "n": 0}
    draws = np.random.default_rng(seed).integers(len(cases), size=(10_000, len(cases)))
    low, high = np.percentile(cases[draws].mean(axis=1), (2.5, 97.5))
    return {
        "mean": float(cases.mean()),
        "sd": float(cases.std(ddof=1)) if len(cases) > 1 else np.nan,
        "min": float(cases.min()),
        "max": float(cases.max()),
        "ci_low": float(low),
        "ci_high": float(high),
        "n": len(cases),
    }


def paired(a: npt.ArrayLike, b: npt.ArrayLike) -> dict[str, float]:
    """Compares two methods on the same cases by the Wilcoxon signed-rank test.

    Pairs that are not finite are left out.

    Args:
      a, b: one metric of each method, (cases,), in the same order of cases.

    Returns:
      {"mean_difference" of a - b, its bootstrap 95 % interval "ci_low" and "ci_high", two-sided
      "p", "n" pairs}. Pairs that are all equal have p = 1; without a pair everything is NaN.

    Raises:
      ValueError: a and b differ in length.
    """
    from scipy import stats

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


FEWEST_RUNS = 5  # that a p value over runs is told of


def paired_runs(
    differences: Sequence[Mapping[str, float]], shared: bool, overlap: float = 0.0, seed: int = 0
) -> dict[str, float]:
    """Compares two methods that were trained several times, from other seeds or on other folds.

    The unit is the run: scores of images by the same networks are not independent. p is that of a
    paired t test of the runs' means; the interval that of percentiles of 10,000 resamples of runs
    and, crossed with them, of images.

    Args:
      differences: of each pair of runs, {image: one method's score less the other's}, finite, of
        one image or more.
      shared: whether an image of one name is the same in all runs that have it, and therefore
        resampled for all of them at once; else every run has its own images.
      overlap: images tested for each one learnt from, where the trainings share images as those of
        folds do. Such runs vary together, so that the variance of their mean is not 1 / n but
        1 / n + overlap of that of a run (Nadeau and Bengio 2003). 0: they share none.
      seed: of the resampling.

    Returns:
      {"mean_difference", "ci_low", "ci_high", "p", "n" pairs of runs}. p is NaN for fewer than
      `FEWEST_RUNS`, the interval for fewer than two, everything without a pair.
    """
    from scipy import special

    n = len(differences)
    means = np.array([np.mean(list(of_run.values())) for of_run in differences])
    result = dict.fromkeys(("mean_difference", "ci_low", "ci_high", "p"), np.nan)
    if n:
        result["mean_difference"] = float(means.mean())
    if n > 1:
        low, high = np.nanpercentile(_resampled(differences, shared, seed), (2.5, 97.5))
        result |= {"ci_low": float(low), "ci_high": float(high)}
    if n >= FEWEST_RUNS:
        deviation = np.sqrt(means.var(ddof=1) / n * (1 + n * overlap))
        mean = abs(means.mean())
        t = mean / deviation if np.ptp(means) else mean and np.inf  # runs that all differ alike
        result["p"] = float(2 * special.stdtr(n - 1, -t))
    return {**result, "n": n}


def _resampled(runs: Sequence[Mapping[str, float]], shared: bool, seed: int) -> np.ndarray:
    """Means of 10,000 resamples of runs and of the images in each."""
    rng, resamples = np.random.default_rng(seed), 10_000
    drawn = rng.integers(len(runs), size=(resamples, len(runs)))
    if shared:
        names = list(dict.fromkeys(name for of_run in runs for name in of_run))
        images = rng.integers(len(names), size=(resamples, len(names)))
        values = np.array([[of_run.get(name, np.nan) for name in names] for of_run in runs])
        of_runs = np.stack([_means(of_run[images]) for of_run in values], axis=1)
        return _means(np.take_along_axis(of_runs, drawn, axis=1))
    means = np.zeros((resamples, len(runs)))
    for place, number in np.ndindex(len(runs), len(runs)):
        here, values = np.flatnonzero(drawn[:, place] == number), np.array([*runs[number].values()])
        own = rng.integers(len(values), size=(len(here), len(values)))
        means[here, place] = values[own].mean(axis=1)
    return means.mean(axis=1)


def _means(values: np.ndarray) -> np.ndarray:
    """Mean of every line of (lines, values) without its NaN; NaN where there is nothing else."""
    there = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(there, values, 0).sum(axis=1) / there.sum(axis=1)


def holm(p_values: npt.ArrayLike) -> np.ndarray:
    """p values corrected for the number of tests by the step-down procedure of Holm 1979.

    The k-th smallest of m is multiplied by m - k + 1, but is never below a smaller one's, nor above
    1.

    Args:
      p_values: (tests,). NaN, a test that could not be made, stays and does not count.

    Returns:
      (tests,) float.
    """
    p = np.asarray(p_values, float)
    corrected = np.full_like(p, np.nan)
    rank = np.argsort(p)[: np.count_nonzero(~np.isnan(p))]  # NaN come last
    corrected[rank] = np.minimum(1, np.maximum.accumulate(p[rank] * np.arange(len(rank), 0, -1)))
    return corrected


def agreement(measured: npt.ArrayLike, truth: npt.ArrayLike) -> dict[str, float]:
    """Agreement of a measurement with its reference over a test set.

    Pairs that are not finite are left out.

    Args:
      measured, truth: for example volumes in mL, (cases,), in the same order of cases.

    Returns:
      {"pearson_r", its two-sided "p", Bland-Altman "bias" of measured - truth, its limits
      "limit_low" and "limit_high" at bias -+ 1.96 SD (ddof 1), "n" pairs}. NaN where there are too
      few pairs or a side is constant.

    Raises:
      ValueError: the two differ in length.
    """
    from scipy import stats

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


def rank_correlation(a: npt.ArrayLike, b: npt.ArrayLike) -> dict[str, float]:
    """Spearman's correlation, of the ranks of two series; pairs that are not finite are left out.

    Args:
      a, b: for example a score and an uncertainty, (cases,), in the same order of cases.

    Returns:
      {"rho", its two-sided "p" of 9999 permutations, or of all where these are fewer, "n" pairs}.
      NaN for fewer than three pairs and where a side is constant.

    Raises:
      ValueError: the two differ in length.
    """
    from scipy import stats

    first, second = (stats.rankdata(side) for side in _pairs(a, b))

    def together(ranks: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.sum(ranks * second, axis=axis)

    rho = p = np.nan
    if len(first) > 2 and np.ptp(first) and np.ptp(second):
        rho = np.corrcoef(first, second)[0, 1]
        # That of a t distribution is 0 where three cases happen to be in order.
        pairings = {"permutation_type": "pairings", "n_resamples": 9999, "random_state": 0}
        p = stats.permutation_test((first,), together, vectorized=True, **pairings).pvalue
    return {"rho": float(rho), "p": float(p), "n": len(first)}


def reliability(probability: npt.ArrayLike, truth: npt.ArrayLike) -> np.ndarray:
    """How often what has a probability is true, in `BINS` equal bins of the probability.

    Args:
      probability: from 0 to 1, of any shape.
      truth: of the same shape; non-zero is true.

    Returns:
      (BINS, 3) float64: how many there are in each bin, the sum of their probabilities, and how
      many of them are true. The bins of several arrays together are the sum of theirs.

    Raises:
      ValueError: shapes differ.
    """
    values, is_true = np.asarray(probability, float), np.asarray(truth) != 0
    if values.shape != is_true.shape:
        raise ValueError(
            f"probability is {values.shape}, truth {is_true.shape}; expected one shape."
        )
    # A probability of 1 belongs to the last bin.
    bins = np.clip((values.ravel() * BINS).astype(int), 0, BINS - 1)
    weights = np.ones(bins.size), values.ravel(), is_true.ravel()
    return np.stack([np.bincount(bins, weight, BINS) for weight in weights], axis=1)


def reliability_curve(bins: np.ndarray) -> np.ndarray:
    """Of a `reliability` the mean probability, and the share that is true, of each bin that has
    something: (2, points)."""
    filled = bins[bins[:, 0] > 0]
    return filled[:, 1:].T / filled[:, 0]


def calibration_error(bins: np.ndarray) -> float:
    """The expected calibration error in percent: the distance of the curve of a `reliability` from
    the diagonal, the mean over all that was counted (Guo et al. 2017, equation 3). NaN for nothing.
    """
    count, probability, true = bins.T
    return float(100 * np.abs(true - probability).sum() / count.sum()) if count.any() else np.nan


def distribution(values: npt.ArrayLike, limit: float) -> dict[str, float]:
    """Quartiles of one metric over cases, which show two kinds of cases where a mean does not.

    Args:
      values: (cases,); only finite ones count.
      limit: below which cases are counted.

    Returns:
      {"min", "lower_quartile", "median", "upper_quartile", "max"}, NaN without a case, by linear
      interpolation, and {"n", "n_below"} cases.
    """
    cases = np.asarray(values, float)
    cases = cases[np.isfinite(cases)]
    names = ("min", "lower_quartile", "median", "upper_quartile", "max")
    found = np.percentile(cases, (0, 25, 50, 75, 100)) if len(cases) else [np.nan] * len(names)
    below = int(np.count_nonzero(cases < limit))
    return {**dict(zip(names, map(float, found))), "n": len(cases), "n_below": below}


def repeatability(values: Sequence[float], groups: Sequence[Hashable]) -> dict[str, Any]:
    """Spread of repeated measurements, which needs no truth: within every group and over all.

    Bland and Altman 1996 (BMJ 313, 744 and 41), and Shrout and Fleiss 1979, ICC(1,1).

    Args:
      values: finite measurements, for example volumes in mL, (scans,).
      groups: what was measured, for example the patient, (scans,). A group of one scan has no SD
        and is left out.

    Returns:
      {"sd": {group: SD (ddof 1)}, their "mean", "min", "max",
      "within_sd": root of the mean variance within a group, weighted by its degrees of freedom,
      "coefficient": of repeatability, 1.96 sqrt(2) within_sd, which 95 % of the differences between
      two scans of a group stay below, "cv_percent": root mean square of SD / mean of the groups,
      "icc": share of the variance that is between groups, one-way; "n": groups, "scans": of them}.
      All but the last two are NaN without a repeated scan; the ICC needs two groups.

    Raises:
      ValueError: values and groups differ in length.
    """
    members: dict[Hashable, list[float]] = {}
    for value, group in zip(values, groups, strict=True):
        members.setdefault(group, []).append(value)
    repeated = {group: scans for group, scans in members.items() if len(scans) > 1}
    sd = {group: float(np.std(scans, ddof=1)) for group, scans in repeated.items()}
    spread = list(sd.values()) or [np.nan]
    counts = np.array([len(scans) for scans in repeated.values()])
    means = np.array([np.mean(scans) for scans in repeated.values()])
    n, scans, within_sd, cv, icc = len(counts), int(counts.sum()), np.nan, np.nan, np.nan
    if n:
        within = float((counts - 1) @ np.square(spread)) / (scans - n)
        within_sd = within**0.5
        with np.errstate(divide="ignore", invalid="ignore"):
            cv = 100 * np.sqrt(np.mean(np.square(spread / means)))
    if n > 1:
        between = counts @ np.square(means - counts @ means / scans) / (n - 1)
        size = (scans - counts @ counts / scans) / (n - 1)  # of a group, were they alike
        total = between + (size - 1) * within
        icc = (between - within) / total if total else np.nan
    return {
        "sd": sd,
        "mean": float(np.mean(spread)),
        "min": min(spread),
        "max": max(spread),
        "within_sd": within_sd,
        "coefficient": 1.96 * 2**0.5 * within_sd,
        "cv_percent": float(cv),
        "icc": float(icc),
        "n": n,
        "scans": scans,
    }


def _masks(
    prediction: npt.ArrayLike, truth: npt.ArrayLike, spacing: Sequence[float] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Both as bool arrays.

    Raises:
      ValueError: shapes differ, are not 2D or 3D, or do not fit the spacing.
    """
    mask, true_mask = np.asarray(prediction) != 0, np.asarray(truth) != 0
    if mask.shape != true_mask.shape or mask.ndim not in (2, 3):
        raise ValueError(
            "masks need one 2D or 3D shape; "
            f"prediction is {mask.shape}, truth is {true_mask.shape}."
        )
    if spacing is not None and len(spacing) != mask.ndim:
        raise ValueError(
            f"spacing {tuple(spacing)} needs one value per axis of masks of shape {mask.shape}."
        )
    return mask, true_mask


def _pairs(a: npt.ArrayLike, b: npt.ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Both as arrays, without the pairs that are not finite."""
    first, second = np.asarray(a, float), np.asarray(b, float)
    if first.shape != second.shape:
        raise ValueError(
            f"pairs need two series of equal length, not shapes {first.shape} and {second.shape}."
        )
    finite = np.isfinite(first) & np.isfinite(second)
    return first[finite], second[finite]
