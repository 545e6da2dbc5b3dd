"""Finished runs and their scores, to stand side by side in a table."""

from __future__ import annotations

import collections
import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tf_autoctx import metrics
from tf_autoctx.errors import UserError
from tf_autoctx.report import tables
from tf_autoctx.systems.shared import registry
from tf_autoctx.training import runs
from tf_autoctx.training.runs import Run

TRAINING_CASES = "training_cases"  # how many train or validate, a fact of runs with `test_cases`


@dataclasses.dataclass(frozen=True)
class ScoredRun:
    """A finished run, its mode, such as "end_to_end", and the rows of its evaluation."""

    run: Run
    mode: str
    rows: list[dict[str, Any]]

    @property
    def folder(self) -> pathlib.Path:
        """Of the run."""
        return self.run.folder

    @property
    def name(self) -> str:
        """By which it pairs with the runs of other modes."""
        return name_of(self.run)


def name_of(run: Run) -> str:
    """What tells a run of a method from its others, such as "seed 1" or "seed 1, fold 2".

    Raises:
      UserError: config.json does not tell.
    """
    try:
        seed, fold = run.flags["seed"], run.flags.get("fold")
    except KeyError as error:
        raise run.broken(error) from None
    return f"seed {seed}" + (f", fold {fold}" if fold else "")


def overlap_of(made: Iterable[Run]) -> float:
    """Cases that a run tests for each that it learns from, or that validates, where runs divide one
    data set: the most of some runs; 0 where none of them is of a fold or of test cases drawn by the
    seed. See `metrics.paired_runs`."""
    return max(map(_tested_for_each, made), default=0.0)


def _tested_for_each(run: Run) -> float:
    """`overlap_of` a run; whole groups are drawn, so that its flag may say less than its cases."""
    share, tested = run.flags.get("test_fraction", 0.0), run.facts.get("test_cases")
    if folds := run.flags.get("folds"):
        return 1 / (folds - 1)
    if tested and TRAINING_CASES in run.facts:
        return len(tested) / run.facts[TRAINING_CASES]
    return share / (1 - share)


def load(
    folder: str | pathlib.Path, system: str, mode_of: Callable[[dict[str, Any]], str]
) -> ScoredRun:
    """The scored run of a folder.

    Args:
      folder: path.
      system: name of the system that it must be of.
      mode_of: {flag: value} -> its mode.

    Raises:
      UserError: no finished run of the system.
    """
    run = runs.load_of(folder, system)
    try:
        mode = mode_of(run.flags)
        run.flags["seed"], run.labels
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder}/config.json: {error} is missing or wrong; expected the flags and labels of "
            "a finished run."
        ) from None
    rows = tables.read(run.folder / "evaluation")
    if not rows:
        raise UserError(
            f"{folder}/evaluation/scores.csv: holds no case; expected the results of a finished "
            "run."
        )
    return ScoredRun(run, mode, rows)


def declare_metrics(rows: Iterable[tables.Row]) -> None:
    """Loads the systems, as far as they are installed, whose rows have a metric that nothing has
    declared so far: a system declares its own."""
    unknown = {
        row["system"]
        for row in rows
        for name in row.keys() - set(tables.LABELS)
        if metrics.column(name).metric.better is None
    }
    for name, declaration in registry.declarations().items() if unknown else ():
        if name in unknown:
            declaration.load()


def in_order(
    scored: Iterable[ScoredRun], modes: Iterable[str]
) -> tuple[list[ScoredRun], list[str]]:
    """Runs in the order of their modes, and for each the prefix that makes its case names unique,
    such as "seed 1".

    Args:
      scored: runs.
      modes: all modes, in the table's order.

    Raises:
      UserError: two runs have the same mode, seed and data, or runs have other labels.
    """
    order = list(modes)
    ordered = sorted(scored, key=lambda run: order.index(run.mode))
    known: dict[tuple[str, str, str], ScoredRun] = {}
    for run in ordered:
        first = known.setdefault((run.mode, run.name, run.run.fingerprint), run)
        if first is not run:
            raise UserError(
                f"{run.folder}: has the mode, seed and data of {first.folder}, so that "
                f"{run.mode!r} would count cases twice; give one of the two."
            )
        if run.run.labels != ordered[0].run.labels:
            raise UserError(
                f"{run.folder}: has the labels {run.run.labels}, {ordered[0].folder} "
                f"{ordered[0].run.labels}; expected the same."
            )
    return ordered, _prefixes(ordered)


def _prefixes(scored: Sequence[ScoredRun]) -> list[str]:
    sets = collections.Counter(name for name, _ in {(r.name, r.run.fingerprint) for r in scored})
    return [run.name + f", data {run.run.fingerprint[:8]}" * (sets[run.name] > 1) for run in scored]
