r"""Compares evaluations on the cases that they have in common, by paired tests of every metric.

  autoctx-compare --evaluations=runs/a/evaluation,runs/b/evaluation --output=runs/a_against_b
  autoctx-compare --evaluations='runs/a_*/evaluation,runs/b_*/evaluation' --output=runs/a_against_b

Any folder that a training run, autoctx-score or a table wrote a scores.csv into is an evaluation;
that of a table holds several runs where its summary.json says so. With * or ? in its name it is of
one method that was trained several times, from other seeds or on other folds, in run folders whose
config.json says so. Runs pair by seed and fold, and five pairs or more are tested over runs, fewer
over the cases of all of them, which says nothing of other trainings.

Every method of one is compared with every method of those before it: mean difference, its bootstrap
95 % interval, p (Wilcoxon over cases, paired t over runs), and Holm's p, corrected for all tests of
the table. Methods of the same name get that of their run before it. Writes comparison.csv and
table.txt and prints the table.
"""

from __future__ import annotations

import collections
import dataclasses
import glob
import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tf_autoctx import configuration, errors, files, native, spreadsheets
from tf_autoctx.commands import command_line
from tf_autoctx.configuration import field

if TYPE_CHECKING:
    from tf_autoctx.report.tables import Row, Test

SHOWN = 10  # names in a note
Evaluations = dict[str, list["Row"]]  # {folder, or pattern of folders: rows of `report.tables`}


@dataclasses.dataclass(frozen=True)
class Compare:
    """What is compared"""

    evaluations: tuple[str, ...] = field(
        ...,
        "Folders that hold a scores.csv, two or more; one with * or ? in its name is all that it "
        "matches, of one method that was trained several times.",
    )
    output: str = field(..., "Folder for comparison.csv and table.txt.")

    def __post_init__(self) -> None:
        configuration.check(self)
        if len(self.evaluations) < 2:
            message = "expected at least two folders."
            raise errors.FieldError("evaluations", self.evaluations, message)


def load(folders: Sequence[str]) -> tuple[Evaluations, Test | None]:
    """Evaluations, in which no method is in two folders, and the test between them if there are
    patterns.

    Raises:
      UserError: no scores.csv; two folders of the same name have a method of the same name; a
        pattern that matches nothing, or runs that are not of one method.
    """
    from tf_autoctx.report import tables
    from tf_autoctx.systems.shared import scored_runs

    test: Test | None = None
    if any(map(_is_pattern, folders)):
        evaluations, test = _of_runs(folders)
    else:
        evaluations = {folder: tables.read(folder) for folder in folders}
    scored_runs.declare_metrics(row for rows in evaluations.values() for row in rows)
    having = collections.Counter(
        name for rows in evaluations.values() for name in {row["method"] for row in rows}
    )
    for folder, rows in evaluations.items():
        for row in rows:
            if having[row["method"]] > 1:
                row["method"] = f"{_run(folder)}, {row['method']}"
    names = [name for rows in evaluations.values() for name in {row["method"] for row in rows}]
    if len(evaluations) < len(folders) or len(set(names)) < len(names):
        message = "expected folders of runs with different names."
        raise errors.FieldError("evaluations", tuple(folders), message)
    return evaluations, test


def _is_pattern(folder: str) -> bool:
    return not pathlib.Path(folder).exists() and glob.has_magic(folder)


def _run(folder: str) -> str:
    """What a run is called before its methods."""
    if _is_pattern(folder):
        return folder.removesuffix("/evaluation")
    path = pathlib.Path(folder).resolve()
    return path.parent.name if path.name == "evaluation" else path.name


def _of_runs(folders: Sequence[str]) -> tuple[Evaluations, Test]:
    """Evaluations of one or more runs each, and the test over runs.

    Raises:
      UserError: see `load`; two that have no seed and fold in common.
    """
    from tf_autoctx.report import repeated

    with native.without_noise():
        from tf_autoctx.systems.shared import folds, scored_runs

    evaluations: Evaluations = {}
    names: dict[str, list[str]] = {}
    runs = []
    for folder in folders:
        matching = [folder] if pathlib.Path(folder).exists() else sorted(glob.glob(folder))
        if not matching:
            raise errors.UserError(f"{folder}: matches no folder; expected evaluations of runs.")
        evaluations[folder], made = folds.of_one_method([pathlib.Path(path) for path in matching])
        names[folder] = [scored_runs.name_of(run) for run in made]
        runs += made
    for (old, before), (new, after) in itertools.combinations(names.items(), 2):
        if not set(before) & set(after):
            raise errors.UserError(
                f"{old}, {new}: have {'; '.join(before)} and {'; '.join(after)}; expected runs of "
                "the same seeds and folds."
            )
    rows = [row for scored in evaluations.values() for row in scored]
    return evaluations, repeated.over_runs(rows, scored_runs.overlap_of(runs))


def compare(evaluations: Evaluations, test: Test | None) -> list[dict[str, Any]]:
    """Tests of every pair of methods from two folders, structure and metric.

    Args:
      evaluations: in which no method is in two folders.
      test: between them; None: `repeated.test_of` two folders.

    Returns:
      A list of dicts: "method", "against", "structure", "metric", those of the test, and "p_holm",
      corrected for all of them.

    Raises:
      UserError: two folders have no case or no structure in common, or other ground truth for one;
        see `repeated.test_of`.
    """
    from tf_autoctx import metrics
    from tf_autoctx.report import repeated, tables

    paired: list[dict[str, Any]] = []
    for old, new in itertools.combinations(evaluations, 2):
        two = {name: evaluations[name] for name in (old, new)}
        tables.require_same_truth(two)
        pairs = itertools.product(*(dict.fromkeys(r["method"] for r in two[x]) for x in (new, old)))
        rows = [row for scored in two.values() for row in scored]
        paired += tables.paired(rows, [*pairs], test or repeated.test_of(two))
    lines = [
        {key: pair[key] for key in ("method", "against", "structure")} | {"metric": name, **tested}
        for pair in paired
        for name, tested in pair["metrics"].items()
        if tested["n"] and metrics.column(name).is_score
    ]
    corrected = metrics.holm([line["p"] for line in lines])
    return [line | {"p_holm": float(p)} for line, p in zip(lines, corrected)]


def left_out(evaluations: Evaluations) -> list[str]:
    """Sentences on the structures and cases that not every evaluation has."""
    told = []
    for kind in ("structure", "case"):
        having = {
            folder: list(dict.fromkeys(row[kind] for row in rows))
            for folder, rows in evaluations.items()
        }
        shared = set.intersection(*map(set, having.values()))
        for folder, names in having.items():
            if lonely := [name for name in names if name not in shared]:
                more = f" and {len(lonely) - SHOWN} more" if len(lonely) > SHOWN else ""
                told.append(f"{kind}s not in all, in {folder}: {', '.join(lonely[:SHOWN])}{more}")
    return told


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """The same as plain text, a block per pair of methods and structure."""
    from tf_autoctx.report import tables

    blocks: dict[str, list[list[str]]] = {}
    for line in lines:
        title = "{method} against {against}, {structure}".format_map(line)
        p = [tables.p_value(line[name]) for name in ("p", "p_holm")]
        words = [f"  {line['metric']}", tables.counted(line), *tables.change(line, 3), *p]
        blocks.setdefault(title, []).append(words)
    text = [["", "over", "difference", "95 % interval", "p", "p (Holm)"]]
    for title, block in blocks.items():
        text += [[title], *block]
    notes = (
        "difference: mean over the runs or cases of both where both values are finite, and its "
        "bootstrap 95 % interval",
        *tables.TEST_NOTES,
    )
    return "\n".join([tables.aligned(text), *notes])


def main(given: command_line.Given) -> None:
    """Runs the command."""

    settings = given.configured(Compare)
    output = pathlib.Path(settings.output)
    evaluations, test = load(settings.evaluations)
    lines = compare(evaluations, test)
    files.own(output)
    text = "\n".join([table(lines), *left_out(evaluations)])
    spreadsheets.write(output / "comparison.csv", lines, list(lines[0]))
    with files.replacing(output / "table.txt") as path:
        path.write_text(text + "\n", encoding="utf-8")
    print(text)


command = command_line.Command(main, (Compare,), __doc__)
