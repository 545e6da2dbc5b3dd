"""Methods that were trained several times, from other seeds or on other folds.

The images that one network scored share its luck: what is told apart here is told apart over runs.
Scores are {method: {seed: {case: DSC in percent}}}.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tf_autoctx import metrics
from tf_autoctx.errors import UserError
from tf_autoctx.files import read_json
from tf_autoctx.report import tables

Scores = Mapping[str, Mapping[int, Mapping[str, float]]]

NOTE = (
    "over runs: pairs by seed, interval by a bootstrap crossed over runs and images, p of a paired "
    "t test over runs, Holm: p corrected for all of these tests"
)


@dataclasses.dataclass(frozen=True)
class OverRuns:
    """A `tables.Test` between methods of several runs, which pair by their names, such as "seed 1".

    Over runs where a pair of methods has `metrics.FEWEST_RUNS` of them, else over cases.

    Attributes:
      run_of: {case: its run}.
      shared, overlap: see `metrics.paired_runs`.
    """

    run_of: Mapping[str, str]
    shared: bool
    overlap: float

    @property
    def facts(self) -> dict[str, Any]:
        """See `tables.Test`; what `test_of` reads."""
        return {"runs": {"overlap": self.overlap, "of_case": dict(self.run_of)}}

    def __call__(self, new: Mapping[str, float], old: Mapping[str, float]) -> dict[str, Any]:
        """{"unit": "runs", "runs": how many there are, **`metrics.paired_runs`}, or "cases" and
        `tables.over_cases`."""
        runs: dict[str, dict[str, float]] = {}
        for case in new:
            if case in old and math.isfinite(new[case]) and math.isfinite(old[case]):
                run = self.run_of[case]
                differences = runs.setdefault(run, {})
                differences[case.removeprefix(f"{run}/")] = new[case] - old[case]
        if len(runs) < metrics.FEWEST_RUNS:
            return {**tables.over_cases(new, old), "runs": len(runs)}
        test = metrics.paired_runs(list(runs.values()), self.shared, self.overlap)
        return {"unit": "runs", "runs": len(runs), **test}


def over_runs(
    rows: Sequence[tables.Row], overlap: float = 0.0, run_of: Mapping[str, str] | None = None
) -> OverRuns:
    """The test of a table of several runs.

    Args:
      rows: of all runs.
      overlap: see `metrics.paired_runs`.
      run_of: {case: its run}; None: of rows that are `named`.
    """
    if run_of is None:
        run_of = {row["case"]: row["case"].partition("/")[0] for row in rows}
    truths: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        run = run_of[row["case"]]
        name = row["case"].removeprefix(f"{run}/")
        size = row[metrics.size_of(row).truth]
        truths.setdefault((row["structure"], name), {})[run] = size
    several = [list(of_runs.values()) for of_runs in truths.values() if len(of_runs) > 1]
    # Made-up cases of another seed have the same names, but not the same truth.
    shared = bool(several) and all(np.allclose(sizes, sizes[0], 1e-3) for sizes in several)
    return OverRuns(run_of, shared, overlap)


def test_of(evaluations: Mapping[str, Sequence[tables.Row]]) -> OverRuns | None:
    """The test between methods of folders: over runs where one of them holds several, as its
    summary.json says; None where each is of one run.

    Args:
      evaluations: {folder: its rows}.

    Raises:
      UserError: a summary.json that is missing or holds something else; a case that is of other
        runs in another folder.
    """
    run_of: dict[str, str] = {}
    overlaps = []
    for folder, rows in evaluations.items():
        told = _runs_of(pathlib.Path(folder), rows)
        for case, run in told.get("of_case", {}).items():
            if (other := run_of.setdefault(case, run)) != run:
                raise UserError(
                    f"{folder}: {case} was scored by {run}, in another folder by {other}; expected "
                    "runs of the same seeds and folds."
                )
        overlaps += [told["overlap"]] if told else []
    if not overlaps:
        return None
    every = [row for rows in evaluations.values() for row in rows if row["case"] in run_of]
    return over_runs(every, max(overlaps), run_of)


def _runs_of(folder: pathlib.Path, rows: Sequence[tables.Row]) -> dict[str, Any]:
    """{"overlap", "of_case"} of a folder of several runs, see `OverRuns.facts`; else nothing."""
    file = folder / "summary.json"
    expected = "the summary of an evaluation, which stands beside its scores.csv"
    summary = read_json(file, expected) if file.exists() else {}
    told: dict[str, Any] = summary.get("runs", {}) if isinstance(summary, dict) else {}
    if told and not _tells(told, rows):
        raise UserError(f"{file}: `runs` does not tell all of its cases; expected {expected}.")
    several = next((row["case"] for row in rows if re.match(r"seed \d+.*/", row["case"])), None)
    if several and not told:
        raise UserError(
            f"{file}: does not tell which run scored which case, such as {several}; expected that "
            "of a table of several runs, so make the table again."
        )
    return told


def _tells(told: Any, rows: Sequence[tables.Row]) -> bool:
    """Whether "runs" of a summary.json is of `OverRuns.facts`, of all rows."""
    if not isinstance(told, dict) or not isinstance(told.get("overlap"), int | float):
        return False
    cases = told.get("of_case")
    return isinstance(cases, dict) and {row["case"] for row in rows} <= cases.keys()


def named(run: str, row: tables.Row) -> tables.Row:
    """The row in a table of several runs: its case is called "run/case", and its group likewise, as
    one scan by two networks is no repeated scan."""
    group = row["group"] or row["case"]
    return {**row, "case": f"{run}/{row['case']}", "group": f"{run}/{group}"}


def table(scores: Scores) -> str:
    """Mean DSC of every run as plain text, a column per seed, and their mean and SD over runs."""
    seeds = sorted({seed for of_method in scores.values() for seed in of_method})
    lines = [["DSC (%)", *(f"seed {seed}" for seed in seeds), "runs", "mean ± SD over runs"]]
    for method, of_method in scores.items():
        means = {seed: float(np.mean(list(cases.values()))) for seed, cases in of_method.items()}
        cells = [f"{means[seed]:.2f}" if seed in means else "-" for seed in seeds]
        spread, _ = tables.spread(metrics.summarize(list(means.values())))
        lines.append([method, *cells, str(len(means)), spread])
    return tables.aligned(lines)


def compare(
    scores: Scores, pairs: tables.Pairs, shared: bool, overlap: float = 0.0
) -> list[dict[str, Any]]:
    """[{"method", "against", **`metrics.paired_runs`, "p_holm": corrected for all of them}] of the
    pairs, on seeds and cases of both.

    Args:
      scores: see above.
      pairs: [(method, another to compare it with)].
      shared, overlap: see `metrics.paired_runs`.
    """
    tests: list[dict[str, Any]] = []
    for method, against in pairs:
        new, old = scores[method], scores[against]
        differences = [
            {case: new[seed][case] - old[seed][case] for case in new[seed] if case in old[seed]}
            for seed in new
            if seed in old
        ]
        test = metrics.paired_runs([of_run for of_run in differences if of_run], shared, overlap)
        tests.append({"method": method, "against": against, **test})
    corrected = metrics.holm([test["p"] for test in tests])
    return [test | {"p_holm": float(p)} for test, p in zip(tests, corrected)]


def sentences(tests: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence for each of `compare`."""
    return [f"{test['method']} against {test['against']}: {_result(test)}" for test in tests]


def _result(test: Mapping[str, Any]) -> str:
    runs = int(test["n"])
    if not runs:
        return "no seed in common"
    difference, interval = tables.change(test)
    if runs == 1:
        return f"DSC {difference} %, one run of each: no interval, no p"
    told = f"DSC {difference} % {interval}"
    if math.isnan(test["p"]):
        return f"{told}, {runs} runs of each: no p of fewer than {metrics.FEWEST_RUNS}"
    corrected = tables.p_value(test["p_holm"])
    return f"{told}, {tables.p_is(test['p'])}, Holm {corrected} ({runs} runs of each)"


def won_back(
    scores: Scores, methods: Sequence[str], worst: str, best: str, least: float = 10.0
) -> list[str]:
    """A sentence for each method: how much of what `worst` loses against `best` it wins back, of
    every seed where that is more than `least` points."""
    drops = {
        seed: (_mean(scores[worst][seed]), _mean(scores[best][seed]))
        for seed in scores[worst]
        if seed in scores[best]
    }
    told = []
    for method in methods:
        shares = [
            f"seed {seed} {100 * (_mean(scores[method][seed]) - low) / (high - low):.0f} %"
            for seed, (low, high) in sorted(drops.items())
            if high - low > least and seed in scores[method]
        ]
        text = ", ".join(shares) or "there are none"
        told.append(f"{method} wins back of drops above {least:g} points: {text}")
    return told


def _mean(cases: Mapping[str, float]) -> float:
    return float(np.mean(list(cases.values())))
