"""Growth charts: the centiles of a measurement against age, and z-scores, by its mean and SD.

At every age the measurement, or its logarithm, is taken to be normal, and mean and SD are smooth
curves of age: Altman and Chitty 1994, "Charts of fetal size: 1. Methodology", Br J Obstet Gynaecol
101:29-34. The curves are fractional polynomials, as in Royston and Wright 1998, "How to construct
'normal ranges' for fetal variables", Ultrasound Obstet Gynecol 11:30-38. A chart is made of one
measurement of each subject.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import pathlib
import statistics
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tf_autoctx import files
from tf_autoctx.errors import UserError

if TYPE_CHECKING:
    from statsmodels.regression.linear_model import RegressionResults

POWERS = (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 3.0)  # Royston and Altman 1994
UNIT = 10  # weeks: ages are divided by it, so that no term is much larger than another
SIGNIFICANT = 0.05
CENTILES = (3, 10, 50, 90, 97)
NORMAL = statistics.NormalDist()
# The standard error of the 3rd and 97th centile at the middle of the ages, about
# sqrt((1 + 1.88^2 / 2) / n) SD, is 0.3 SD then.
LEAST_SUBJECTS, LEAST_AGES = 30, 5
KIND = "growth chart of tf_autoctx"  # in chart.json


@dataclasses.dataclass(frozen=True)
class Polynomial:
    """A fractional polynomial of age (Royston and Altman 1994, Applied Statistics 43:429-467).

    It is b0 + b1 x^p1 + b2 x^p2 of x = age / `UNIT`, where x^0 stands for ln x, and a power that is
    there twice is the second time multiplied by ln x.

    Attributes:
      powers: none, one or two of `POWERS`, ascending.
      coefficients: one more.
    """

    powers: tuple[float, ...]
    coefficients: tuple[float, ...]

    def __call__(self, age: npt.ArrayLike) -> np.ndarray:
        """Values at ages in weeks, of their shape."""
        return terms(age, self.powers) @ np.array(self.coefficients)

    def __str__(self) -> str:
        shown, before = f"{self.coefficients[0]:.5g}", None
        for power, coefficient in zip(self.powers, self.coefficients[1:]):
            x = f"x^{power:g}" if power else "ln x"
            twice = " ln x" if power == before else ""
            shown += f" {'-' if coefficient < 0 else '+'} {abs(coefficient):.5g} {x}{twice}"
            before = power
        return shown.replace("x^1", "x")


def terms(age: npt.ArrayLike, powers: tuple[float, ...]) -> np.ndarray:
    """1 and the powers of ages in weeks, see `Polynomial`: (..., 1 + powers)."""
    x = np.asarray(age, float) / UNIT
    columns = [np.ones_like(x)]
    for before, power in zip((None, *powers), powers):
        if power == before:
            columns.append(columns[-1] * np.log(x))
        else:
            columns.append(x**power if power else np.log(x))
    return np.stack(columns, axis=-1)


def polynomial(
    age: np.ndarray, values: np.ndarray, degree: int, weights: npt.ArrayLike = 1.0
) -> Polynomial:
    """The fractional polynomial of that degree at most which the values ask for.

    The best of each degree has the least deviance. The closed test of Royston and Sauerbrei (2008,
    Multivariable model-building, chapter 4) takes the first of constant, straight line, and lower
    degrees, than which the best of the highest degree is not significantly better.

    Args:
      age: weeks, (subjects,).
      values: (subjects,).
      degree: 1 or 2.
      weights: of the squares, (subjects,) or one.

    Raises:
      UserError: statsmodels is not installed.
    """
    try:
        from statsmodels.regression.linear_model import WLS
    except ImportError:
        raise UserError(
            "statsmodels, by which growth charts are fitted, is not installed; run "
            "pip install 'tf_autoctx[growth]'."
        ) from None
    from scipy import stats

    def fitted(powers: tuple[float, ...]) -> RegressionResults:
        return WLS(values, terms(age, powers), weights).fit()

    def best(count: int) -> tuple[float, ...]:
        candidates = itertools.combinations_with_replacement(POWERS, count)
        return max(candidates, key=lambda powers: fitted(powers).llf)

    highest = best(degree)
    # Each of the highest's powers costs two degrees of freedom, its coefficient and itself.
    simpler = {(): 2 * degree, (1.0,): 2 * degree - 1} | ({best(1): 2} if degree == 2 else {})
    for powers, freedom in simpler.items():
        deviance = 2 * (fitted(highest).llf - fitted(powers).llf)
        if stats.chi2.sf(deviance, freedom) >= SIGNIFICANT:
            return Polynomial(powers, tuple(fitted(powers).params.tolist()))
    return Polynomial(highest, tuple(fitted(highest).params.tolist()))


@dataclasses.dataclass(frozen=True)
class Chart:
    """How a measurement is distributed at every age.

    Attributes:
      mean, sd: of the measurement or, where `log`, of its natural logarithm.
      log: see `mean`.
      ages: weeks, the first and the last of the subjects, beyond which nothing is said.
      subjects: how many the chart is made of.
      shapiro_w, shapiro_p: test of Shapiro and Wilk of their z-scores, which ought to be normal.
      below_10, above_90: percent of them below the 10th and above the 90th centile.
    """

    mean: Polynomial
    sd: Polynomial
    log: bool
    ages: tuple[float, float]
    subjects: int
    shapiro_w: float = math.nan
    shapiro_p: float = math.nan
    below_10: float = math.nan
    above_90: float = math.nan

    def covers(self, age: npt.ArrayLike) -> np.ndarray:
        """Whether ages in weeks are among those of the chart."""
        return (np.asarray(age) >= self.ages[0]) & (np.asarray(age) <= self.ages[1])

    def z(self, age: npt.ArrayLike, values: npt.ArrayLike) -> np.ndarray:
        """(value - mean) / SD of positive values at ages in weeks; NaN outside of `ages`."""
        measured = np.log(values) if self.log else np.asarray(values, float)
        return np.where(self.covers(age), (measured - self.mean(age)) / self.sd(age), np.nan)

    def centile(self, age: npt.ArrayLike, percent: float) -> np.ndarray:
        """The value below which `percent` of the subjects of an age lie; NaN outside of `ages`."""
        value = self.mean(age) + NORMAL.inv_cdf(percent / 100) * self.sd(age)
        return np.where(self.covers(age), np.exp(value) if self.log else value, np.nan)


def fit(age: npt.ArrayLike, values: npt.ArrayLike, log: bool, about: str) -> Chart:
    """The chart of a measurement.

    The SD at an age is the mean absolute residual there times sqrt(pi / 2), which it is of a normal
    distribution: Altman 1993, "Construction of age-related reference centiles using absolute
    residuals", Statistics in Medicine 12:917-924. The mean is fitted again with the weights
    1 / SD^2, and the SD to its residuals.

    Args:
      age: weeks, (subjects,), one measurement of each subject.
      values: (subjects,), positive.
      log: whether the logarithm is normal.
      about: what is fitted, for messages.

    Raises:
      UserError: too few subjects or ages; no SD above 0 at every age; statsmodels is not installed.
    """
    from scipy import stats

    age = np.asarray(age, float)
    measured = np.log(values) if log else np.asarray(values, float)
    if len(age) < LEAST_SUBJECTS or len(np.unique(age)) < LEAST_AGES:
        raise UserError(
            f"{about}: {len(age)} subjects of {len(np.unique(age))} ages; expected at least "
            f"{LEAST_SUBJECTS} of {LEAST_AGES}, with which the 3rd centile has a standard error of "
            "0.3 SD (charts for use are made of hundreds), or leave it out by `measurements`."
        )
    weights = np.ones_like(age)
    for _ in range(2):
        with np.errstate(divide="ignore", invalid="ignore"):  # a curve through all of them
            mean = polynomial(age, measured, 2, weights)
            sd = polynomial(age, np.abs(measured - mean(age)) * math.sqrt(math.pi / 2), 1)
        spread = sd(age)
        youngest = float(age[spread.argmin()])
        if spread.min() <= 1e-6 * np.abs(measured).max():
            advice = "another measurement" if log else "its logarithm, see `log`"
            raise UserError(
                f"{about}: the SD at {youngest:g} weeks is {spread.min():.3g}; expected more than "
                f"0 at every age: more subjects there, or {advice}."
            )
        weights = spread**-2
    chart = Chart(mean, sd, log, (float(age.min()), float(age.max())), len(age))
    z = chart.z(age, values)
    w, p = stats.shapiro(z)
    outer = NORMAL.inv_cdf(0.9)
    return dataclasses.replace(
        chart,
        shapiro_w=float(w),
        shapiro_p=float(p),
        below_10=100 * float(np.mean(z < -outer)),
        above_90=100 * float(np.mean(z > outer)),
    )


# Charts of a set of subjects, in a file


@dataclasses.dataclass(frozen=True)
class Reference:
    """The charts of all measurements of a set of subjects.

    Attributes:
      charts: {measurement: its chart}.
      structure: that was measured.
      truth: whether in the true labels, not in predictions.
      marks: of the subjects, see `mark`.
    """

    charts: Mapping[str, Chart]
    structure: str
    truth: bool
    marks: Collection[str]

    def holds(self, subject: str) -> bool:
        """Whether the charts are made of this subject too."""
        return mark(subject) in self.marks


def mark(subject: str) -> str:
    """What a file of charts knows a subject by: the beginning of the SHA-256 of its name."""
    return hashlib.sha256(subject.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def write(path: str | pathlib.Path, reference: Reference) -> None:
    """Writes charts as JSON, whole or not at all.

    Raises:
      UserError: the file cannot be written.
    """
    content = {
        "kind": KIND,
        "age_unit": "weeks",
        "x": f"age / {UNIT}",
        "structure": reference.structure,
        "truth": reference.truth,
        "charts": {name: dataclasses.asdict(chart) for name, chart in reference.charts.items()},
        "marks": sorted(reference.marks),
    }
    with files.replacing(path) as partial:
        partial.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")


def read(path: str | pathlib.Path) -> Reference:
    """Charts that `write` wrote.

    Raises:
      UserError: it cannot be read, or holds something else.
    """
    expected = f"a {KIND}, as chart.json of an earlier output is"
    if not pathlib.Path(path).is_file():
        raise UserError(f"{path}: no such file; expected {expected}.")
    content = files.read_json(path, expected)
    try:
        if content["kind"] != KIND:
            raise ValueError
        charts = {str(name): _chart(chart) for name, chart in content["charts"].items()}
        structure, truth = str(content["structure"]), bool(content["truth"])
        return Reference(charts, structure, truth, frozenset(content["marks"]))
    except KeyError as error:
        raise UserError(f"{path}: lacks {error.args[0]!r}; expected {expected}.") from None
    except (AttributeError, TypeError, ValueError):
        raise UserError(f"{path}: holds something else; expected {expected}.") from None


def _chart(content: Mapping[str, Any]) -> Chart:
    """A chart of `read`; KeyError, TypeError or ValueError where it is none."""
    curves = {}
    for name in ("mean", "sd"):
        powers = tuple(map(float, content[name]["powers"]))
        coefficients = tuple(map(float, content[name]["coefficients"]))
        if not set(powers) <= set(POWERS) or len(coefficients) != 1 + len(powers):
            raise ValueError
        curves[name] = Polynomial(powers, coefficients)
    first, last = map(float, content["ages"])
    if not 0 < first <= last or not (curves["sd"]([first, last]) > 0).all():
        raise ValueError
    return Chart(**{**content, **curves, "ages": (first, last)})
