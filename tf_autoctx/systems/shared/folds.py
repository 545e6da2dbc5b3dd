"""The scores of several runs of one training: of all folds of a data set, or of other seeds too."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from tf_autoctx import configuration
from tf_autoctx.data.configuration import Data
from tf_autoctx.errors import FieldError, UserError
from tf_autoctx.report import repeated, tables
from tf_autoctx.systems.shared import registry, scored_runs, seen
from tf_autoctx.systems.shared.declaration import Declaration
from tf_autoctx.training import runs
from tf_autoctx.training.configuration import Settings
from tf_autoctx.training.runs import Run

VIEWS = "evaluation/views/*.npz"  # of a run folder


def joined(folders: Sequence[str | pathlib.Path]) -> tuple[list[tables.Row], tables.Test]:
    """The evaluations of all folds: rows, method by method, structure by structure, case by case,
    and the test between methods.

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
        _require_alike(first, run, ("fold",))
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
    run_of = {
        row["case"]: scored_runs.name_of(run) for run in opened.values() for row in rows[run.folder]
    }
    every = _sorted([row for of_run in rows.values() for row in of_run], first)
    return every, repeated.over_runs(every, scored_runs.overlap_of([first]), run_of)


def of_one_method(folders: Sequence[pathlib.Path]) -> tuple[list[tables.Row], list[Run]]:
    """The evaluations of a method that was trained several times.

    Args:
      folders: in the run folders, each with a scores.csv.

    Returns:
      Their rows, `repeated.named`, and the runs.

    Raises:
      UserError: no evaluation of a run; runs that differ in more than seed and fold, or in neither.
    """
    made = [runs.load(folder.parent) for folder in folders]
    names: dict[str, Run] = {}
    for run in made:
        _require_alike(made[0], run, ("seed", "fold"))
        name = scored_runs.name_of(run)
        if (before := names.setdefault(name, run)) is not run:
            raise UserError(
                f"{run.folder}: is {name}, as {before.folder} is; expected another seed or fold."
            )
    rows = [
        repeated.named(name, row)
        for name, folder in zip(names, folders)
        for row in tables.read(folder)
    ]
    return rows, made


def _of_fold(folder: str | pathlib.Path) -> Run:
    run = runs.load(folder)
    if not (run.flags.get("folds") and run.facts.get("cases_fingerprint")):
        raise UserError(f"{folder}: a run of no fold; expected one that was made with `folds`.")
    return run


def _require_alike(first: Run, run: Run, but: Sequence[str]) -> None:
    """Raises a `UserError` where two runs are not of one training, but for some of its flags."""
    if run.system != first.system:
        told = f"a run of {run.system!r}, {first.folder} of {first.system!r}"
    elif other := _different(first, run, but):
        told = f"made with {', '.join(other)}, unlike {first.folder}"
    elif run.facts.get("cases_fingerprint") != first.facts.get("cases_fingerprint"):
        told = f"made of other cases than {first.folder}"
    elif run.labels != first.labels:
        told = f"has the labels {run.labels}, {first.folder} {first.labels}"
    else:
        return
    raise UserError(
        f"{run.folder}: {told}; expected runs that differ in {' and '.join(but)} alone."
    )


def _different(first: Run, run: Run, but: Sequence[str]) -> list[str]:
    """Flags of a run that another one of its system has not, in phrases such as "`scale` 0.4", but
    for some, and those that say where it was trained."""
    declaration: Declaration = registry.find(first.system, str(first.folder))
    kinds = (Data, Settings, declaration.configuration, *declaration.training)
    left_out = configuration.changeable(kinds) | set(but)
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
