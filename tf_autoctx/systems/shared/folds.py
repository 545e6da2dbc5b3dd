"""The scores of all folds of a data set together."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from tf_autoctx import configuration
from tf_autoctx.data.configuration import Data
from tf_autoctx.errors import FieldError, UserError
from tf_autoctx.report import tables
from tf_autoctx.systems.shared import registry, scored_runs, seen
from tf_autoctx.systems.shared.declaration import Declaration
from tf_autoctx.training import runs
from tf_autoctx.training.configuration import Settings
from tf_autoctx.training.runs import Run

VIEWS = "evaluation/views/*.npz"  # of a run folder


def joined(folders: Sequence[str | pathlib.Path]) -> list[tables.Row]:
    """The rows of the evaluations of all folds: method by method, structure by structure, case by
    case.

    Raises:
      UserError: a run of no fold; runs of other data or flags; a fold twice, or one that is
        missing; a run that is not scored.
    """
    opened = {int(run.flags["fold"]): run for run in map(_of_fold, folders)}
    if not opened:
        raise FieldError("runs", folders, "expected the run folders of all folds.")
    first = next(iter(opened.values()))
    count = first.flags["folds"]
    for run in opened.values():
        _require_alike(first, run)
    missing = sorted(set(range(1, count + 1)) - set(opened))
    if missing or len(opened) < len(folders):
        told = f"lacks {', '.join(map(str, missing))}" if missing else "has one of them twice"
        raise FieldError(
            "runs", folders, f"{told} of the {count} folds; expected each of them once."
        )
    rows = {run.folder: tables.read(run.folder / "evaluation") for run in opened.values()}
    scored_runs.declare_metrics(row for of_run in rows.values() for row in of_run)
    methods = {folder: list(_named(of_run, "method")) for folder, of_run in rows.items()}
    for folder, of_run in methods.items():
        if of_run != methods[first.folder]:
            raise UserError(
                f"{folder}: was scored by {', '.join(of_run)}, {first.folder} by "
                f"{', '.join(methods[first.folder])}; expected the same."
            )
    return _sorted([row for of_run in rows.values() for row in of_run], first)


def _of_fold(folder: str | pathlib.Path) -> Run:
    run = runs.load(folder)
    if not (run.flags.get("folds") and run.facts.get("cases_fingerprint")):
        raise UserError(f"{folder}: a run of no fold; expected one that was made with `folds`.")
    return run


def _require_alike(first: Run, run: Run) -> None:
    """Raises a `UserError` where two runs are no folds of one data set in one training."""
    if run.system != first.system:
        told = f"a run of {run.system!r}, {first.folder} of {first.system!r}"
    elif different := _differences(first, run):
        told = f"made with {', '.join(different)}, unlike {first.folder}"
    elif run.facts["cases_fingerprint"] != first.facts["cases_fingerprint"]:
        told = f"made of other cases than {first.folder}"
    elif run.labels != first.labels:
        told = f"has the labels {run.labels}, {first.folder} {first.labels}"
    else:
        return
    raise UserError(f"{run.folder}: {told}; expected folds of one data set in one training.")


def _differences(first: Run, run: Run) -> list[str]:
    """Flags of a run that another one has not, in phrases such as "`scale` 0.4", but for those that
    say which fold it is and where it was trained."""
    declaration: Declaration = registry.find(first.system, str(first.folder))
    kinds = (Data, Settings, declaration.configuration, *declaration.training)
    left_out = configuration.changeable(kinds) | {"fold"}
    names = [name for kind in kinds for name in configuration.rules(kind) if name not in left_out]
    earlier = configuration.earlier(kinds)
    flags: list[Mapping[str, Any]] = [{**earlier, **each.flags} for each in (first, run)]
    different = [name for name in names if flags[0].get(name) != flags[1].get(name)]
    starts = [each.get("initial_weights") for each in flags]
    if all(seen.FACT in each.facts for each in (first, run)):
        starts = [bool(start) for start in starts]  # any model that has not seen what is held out
    if starts[0] != starts[1]:
        different.append("initial_weights")
    return [f"`{name}` {flags[1].get(name)!r}" for name in different]


def _named(rows: Sequence[tables.Row], column: str) -> dict[str, None]:
    """What stands in a column, in the order of the rows."""
    return dict.fromkeys(row[column] for row in rows)


def _sorted(rows: list[tables.Row], first: Run) -> list[tables.Row]:
    methods, structures = list(_named(rows, "method")), list(first.labels.values())

    def order(row: tables.Row) -> tuple[int, int, str]:
        return methods.index(row["method"]), structures.index(row["structure"]), row["case"]

    return sorted(rows, key=order)
