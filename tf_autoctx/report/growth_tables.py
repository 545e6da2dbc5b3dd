"""What growth charts say of visits, as lines of tables."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any, SupportsFloat

from tf_autoctx import growth, metrics
from tf_autoctx.growth import Reference
from tf_autoctx.report import tables
from tf_autoctx.report.visits import AGE, Visit

Line = dict[str, Any]

CENTILES = ("measurement", AGE, *(f"centile_{percent}" for percent in growth.CENTILES))
Z_SCORES = (
    *("case", "subject", AGE, "measurement", "value", "z", "centile"),
    *("subject_in_chart", "note"),
)
CHANGES = (
    *("subject", "measurement", "case_before", "case_after", "weeks_before", "weeks_after"),
    *("value_before", "value_after", "change", "change_per_week"),
    *("z_before", "z_after", "z_change"),
)
FITS = ("measurement", "subjects", "weeks", "mean", "SD", "W", "p", "<10th (%)", ">90th (%)")
FIT_NOTES = (
    f"x: age in weeks / {growth.UNIT}; mean and SD of ln y are those of the natural logarithm",
    "W, p: test of Shapiro and Wilk of the z-scores of the chart's own subjects; p below 0.05: "
    "they are not normal, and the outer centiles are off",
    "<10th, >90th: how many of them lie below the 10th and above the 90th centile; 10 % in each "
    "case of a chart that fits",
)


def title(measurement: str) -> str:
    """What stands beside a measurement, such as "volume (mL)"."""
    return metrics.column(measurement).title


def points(visits: Iterable[Visit], measurement: str) -> dict[str, tuple[list[float], list[float]]]:
    """{subject: (ages in weeks, values)}, where it was measured."""
    found: dict[str, tuple[list[float], list[float]]] = {}
    for visit in visits:
        if measurement in visit.values:
            ages, values = found.setdefault(visit.subject, ([], []))
            ages.append(visit.age)
            values.append(visit.values[measurement])
    return found


def fits(reference: Reference) -> list[list[str]]:
    """How every chart was fitted: a line of `FITS` each, as words."""
    lines = []
    for name, chart in reference.charts.items():
        y = "ln y = " if chart.log else ""
        counts = [f"{chart.below_10:.1f}", f"{chart.above_90:.1f}"]
        test = [f"{chart.shapiro_w:.4f}", tables.p_value(chart.shapiro_p)]
        weeks = "{:g} to {:g}".format(*chart.ages)
        curves = [f"{y}{chart.mean}", str(chart.sd)]
        lines.append([name, str(chart.subjects), weeks, *curves, *test, *counts])
    return lines


def centiles(reference: Reference) -> list[Line]:
    """The centiles of every chart at its whole weeks, and at its first and last age."""
    lines = []
    for name, chart in reference.charts.items():
        first, last = chart.ages
        for age in sorted({first, *map(float, range(math.ceil(first), math.ceil(last))), last}):
            values = [chart.centile(age, percent) for percent in growth.CENTILES]
            lines.append(dict(zip(CENTILES, (name, age, *map(_rounded, values)))))
    return lines


def z_scores(reference: Reference, visits: Sequence[Visit]) -> list[Line]:
    """A line for each chart and visit. Where there is no z-score, a note says why."""
    lines = []
    for name, chart in reference.charts.items():
        outside = "outside of the chart's {:g} to {:g} weeks".format(*chart.ages)
        for visit in visits:
            value = visit.values.get(name, math.nan)
            z = _rounded(chart.z(visit.age, value))
            note = "not measured" if math.isnan(value) else ""
            if not note and math.isnan(z):
                note = outside
            known = "yes" if reference.holds(visit.subject) else "no"
            about = (visit.case, visit.subject, visit.age, name, value)
            cells = (*about, z, _rounded(100 * growth.NORMAL.cdf(z)), known, note)
            lines.append(dict(zip(Z_SCORES, cells)))
    return lines


def changes(lines: Iterable[Line]) -> list[Line]:
    """A line for each measurement and pair of following visits of a subject, of `z_scores`."""
    of: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        if math.isfinite(line["value"]):
            of.setdefault((line["subject"], line["measurement"]), []).append(line)
    found = []
    for (subject, name), visits in of.items():
        for before, after in itertools.pairwise(visits):
            change, weeks = (after[column] - before[column] for column in ("value", AGE))
            both = [side[column] for column in ("case", AGE, "value") for side in (before, after)]
            z = [side["z"] for side in (before, after)]
            changed = map(_rounded, (change, change / weeks, *z, z[1] - z[0]))
            found.append(dict(zip(CHANGES, (subject, name, *both, *changed))))
    return found


def _rounded(value: SupportsFloat) -> float:
    """To six digits, more than anything here is known to."""
    return float(f"{float(value):.6g}")
