"""Joins the scores of all folds of a data set into one table, in which every case is once.

  autoctx-folds runs/fold_1 runs/fold_2 runs/fold_3 --output=runs/all_folds
  autoctx-report --evaluations=runs/all_folds --output=report.html

The runs are those of one training command with --folds=3 and --fold=1, 2 and 3, each scored on the
cases that it never saw. Writes scores.csv, cases.csv, summary.json and calibration.csv, and what
the report's page shows of every case, and prints the table with its intervals.
"""

from __future__ import annotations

import dataclasses
import pathlib
import shutil

from tf_autoctx import configuration, files, native
from tf_autoctx.commands.command_line import Command, Given
from tf_autoctx.configuration import field


@dataclasses.dataclass(frozen=True, kw_only=True)
class Folds:
    """Folds: whose scores are joined."""

    runs: tuple[str, ...] | None = field(
        None, "Finished run folders, one of each fold, separated by commas; or give them as words."
    )
    output: str = field(..., "Folder for the tables.")

    def __post_init__(self) -> None:
        configuration.check(self)


def main(given: Given) -> None:
    chosen = given.configured(Folds)
    from tf_autoctx.report import calibration, tables

    with native.without_noise():
        from tf_autoctx.systems.shared import evaluation, folds

    folders, output = chosen.runs or (), pathlib.Path(chosen.output)
    rows, test = folds.joined(folders)
    of_folds = [calibration.read(pathlib.Path(run) / "evaluation") for run in folders]
    # Of an earlier release's evaluation there are none.
    curves = calibration.joined(of_folds) if all(of_folds) else {}
    files.own(output)
    tables.write(output, rows, curves=curves, test=test)
    evaluation.draw_calibration(output, rows, curves)
    for view in (path for run in folders for path in pathlib.Path(run).glob(folds.VIEWS)):
        with files.replacing(output / "views" / view.name) as partial:
            shutil.copyfile(view, partial)
    several = len({row["structure"] for row in rows}) > 1
    print(tables.dice_table(rows, test) if several else tables.table(rows, test=test))


command = Command(main, (Folds,), __doc__, words="runs")
