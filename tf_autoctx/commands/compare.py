"""Compares evaluations on the cases that they have in common, by paired tests of every metric.

  autoctx-compare --evaluations=runs/a/evaluation,runs/b/evaluation --output=runs/a_against_b

Any folder that a training run, autoctx-score or a table wrote a scores.csv into is an evaluation.
Every method of one is compared with every method of those before it: mean difference, its bootstrap
95 % interval, Wilcoxon's p, and Holm's p, corrected for the number of metrics. Methods of the same
name get that of their run before it. Writes comparison.csv and table.txt and prints the table.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tf_autoctx import configuration, errors, files, spreadsheets
from tf_autoctx.commands import command_line
from tf_autoctx.configuration import field

if TYPE_CHECKING:
    from tf_autoctx.report.tables import Row

SHOWN = 10  # names in a note
Evaluations = dict[str, list["Row"]]  # {folder: rows of `report.tables`}


@dataclasses.dataclass(frozen=True)
class Compare:
    """What is compared"""

    evaluations: tuple[str, ...] = field(..., "Folders that hold a scores.csv, two or more.")
    output: str = field(..., "Folder for comparison.csv and table.txt.")

    def __post_init__(self) -> None:
        configuration.check(self)
        if len(self.evaluations) < 2:
            message = "expected at least two folders."
            raise errors.FieldError("evaluations", self.evaluations, message)


def load(folders: Sequence[str]) -> Evaluations:
    """Evaluations, in which no method is in two folders.

    Raises:
      UserError: no scores.csv; two folders of the same name have a method of the same name.
    """
    from tf_autoctx.report import tables
    from tf_autoctx.systems.shared import scored_runs

    evaluations = {folder: tables.read(folder) for folder in folders}
    scored_runs.declare_metrics(row for rows in evaluations.values() for row in rows)
    having = collections.Counter(
        name for rows in evaluations.values() for name in {row["method"] for row in rows}
    )
    for folder, rows in evaluations.items():
        path = pathlib.Path(folder).resolve()
        run = path.parent.name if path.name == "evaluation" else path.name
        for row in rows:
            if having[row["method"]] > 1:
                row["method"] = f"{run}, {row['method']}"
    names = [name for rows in evaluations.values() for name in {row["method"] for row in rows}]
    if len(evaluations) < len(folders) or len(set(names)) < len(names):
        message = "expected folders of runs with different names."
        raise errors.FieldError("evaluations", tuple(folders), message)
    return evaluations


def compare(evaluations: Evaluations) -> list[dict[str, Any]]:
    """Tests of every pair of methods from two folders, structure and metric.

    Returns:
      A list of dicts: "method", "against", "structure", "metric", `metrics.paired`, and "p_holm",
      corrected for the metrics of the same structure and pair.

    Raises:
      UserError: two folders have no case or no structure in common, or other ground truth for one.
    """
    from tf_autoctx import metrics
    from tf_autoctx.report import tables

    pairs: list[tuple[str, str]] = []
    for old, new in itertools.combinations(evaluations, 2):
        tables.require_same_truth({name: evaluations[name] for name in (old, new)})
        methods = [dict.fromkeys(row["method"] for row in evaluations[name]) for name in (new, old)]
        pairs += itertools.product(*methods)
    lines = []
    rows = [row for scored in evaluations.values() for row in scored]
    for pair in tables.summarize(rows, pairs)["paired"]:
        tests = pair.pop("metrics")
        names = [name for name in tests if tests[name]["n"] and metrics.column(name).is_score]
        corrected = metrics.holm([tests[name]["p"] for name in names])
        lines += [
            pair | {"metric": name, **tests[name], "p_holm": p} for name, p in zip(names, corrected)
        ]
    return lines


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
        words = [f"  {line['metric']}", str(line["n"]), *tables.change(line, decimals=3), *p]
        blocks.setdefault(title, []).append(words)
    text = [["", "n", "difference", "95 % interval", "p", "p (Holm)"]]
    for title, block in blocks.items():
        text += [[title], *block]
    notes = (
        "difference: mean over the n cases of both where both values are finite, and its "
        "bootstrap 95 % interval",
        "p: Wilcoxon signed-rank test, two-sided; Holm: corrected for the metrics of the block",
    )
    return "\n".join([tables.aligned(text), *notes])


def main(given: command_line.Given) -> None:
    """Runs the command."""

    settings = given.configured(Compare)
    output = pathlib.Path(settings.output)
    evaluations = load(settings.evaluations)
    lines = compare(evaluations)
    files.own(output)
    text = "\n".join([table(lines), *left_out(evaluations)])
    spreadsheets.write(output / "comparison.csv", lines, list(lines[0]))
    with files.replacing(output / "table.txt") as path:
        path.write_text(text + "\n", encoding="utf-8")
    print(text)


command = command_line.Command(main, (Compare,), __doc__)
