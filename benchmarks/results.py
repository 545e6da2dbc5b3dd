"""Makes the tables of docs/results_tables.md: trains what is missing, keeps every run's scores.

  python benchmarks/results.py                                # all that are for two cores
  python benchmarks/results.py --tables=hippocampus --data_dir=my_data --jobs=2
  python benchmarks/results.py --tables=smoke-organs --fresh=again  # once more, from the beginning
  python benchmarks/results.py --nomake                       # the pages alone, of the scores

Tables are declared in benchmarks/results_tables.py, with their hours. Run folders lie in
runs/results, tables in runs/results/tables/NAME, and what was stopped goes on when the same command
is given again. The scores of all runs become docs/results/NAME.csv, of which the pages are made;
where some of a table's runs could not be finished, those of the others, unless that file has more.
With --jobs=0 nothing is trained: a table is made of the runs that are finished so far.
With --fresh=WORD everything is made anew in runs/results_WORD and compared with these scores, which
stay.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import pathlib
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence

import harness
import results_page
from results_page import ABOUT, SCORES
from results_tables import SMALL, TABLES, Step, Table

from tf_autoctx import metrics
from tf_autoctx.commands import planned_runs
from tf_autoctx.commands.command_line import Command, Given
from tf_autoctx.configuration import check, field
from tf_autoctx.errors import UserError
from tf_autoctx.files import replacing
from tf_autoctx.report import tables

ROOT = pathlib.Path(__file__).resolve().parent.parent


@dataclasses.dataclass(frozen=True, kw_only=True)
class Results(planned_runs.Jobs):
    """Results: which tables, and where"""

    tables: tuple[str, ...] | None = field(
        None, f"Tables, some of {', '.join(TABLES)}. By default all that are for {SMALL}."
    )
    make: bool = field(True, "Make the tables, and not the pages alone.")
    data_dir: str = field("", "Folder of the real data: hippocampus/, head_neck_ct/ and so on.")
    fresh: str = field("", "Word for a folder of runs in which everything is made anew.")

    def __post_init__(self) -> None:
        check(self)
        if self.tables is not None:
            planned_runs.require_some("tables", self.tables, TABLES)

    @property
    def runs(self) -> pathlib.Path:
        """Folder of all runs."""
        return pathlib.Path("runs") / ("results" + f"_{self.fresh}" * bool(self.fresh))

    def data_of(self, table: Table) -> pathlib.Path:
        """Folder of the real data of a table."""
        return pathlib.Path(self.data_dir) / table.data

    def lacks(self, table: Table) -> bool:
        """Whether a table needs real data that are not there."""
        return bool(table.data) and not (self.data_dir and self.data_of(table).is_dir())


def words(step: Step, places: Mapping[str, str], jobs: int) -> list[str]:
    """The command line of a step, its script first."""
    script, *flags = (word.format_map(places) for word in step.words.split())
    return [script, *([f"--jobs={jobs}"] if step.trains else []), *flags]


def made(table: Table, settings: Results) -> tuple[list[tables.Row], int]:
    """The rows of a table, once its commands have run, and how many of these failed.

    Raises:
      UserError: its data are not there.
    """
    if settings.lacks(table):
        missing = f"there is no folder {settings.data_of(table)}"
        found = missing if settings.data_dir else "it is not given"
        raise UserError(
            f"`data_dir`: {found}; the table {table.name} needs one with {table.data}/ in it."
        )
    rows: list[tables.Row] = []
    failed = 0
    for number, step in enumerate(table.steps):
        output = settings.runs / "tables" / table.name / str(number)
        places = {"data": settings.data_dir, "runs": str(settings.runs), "output": str(output)}
        if step.makes and pathlib.Path(step.makes.format_map(places)).exists():
            continue
        line = words(step, places, settings.jobs)
        print(shlex.join(["python", *line]), flush=True)
        (output / "scores.csv").unlink(missing_ok=True)  # of an earlier call
        code = subprocess.run([sys.executable, ROOT / line[0], *line[1:]]).returncode
        failed += bool(code)
        if code and not step.reads:  # the next ones need what it makes
            break
        if step.reads and (output / "scores.csv").exists():
            for row in tables.read(output):
                method = table.called.get(row["method"], row["method"])
                method = f"{method}, {step.label}" if step.label else method
                if not table.methods or method in table.methods:
                    rows.append({**row, "method": method})
    return rows, failed


def as_csv(table: Table, rows: Sequence[tables.Row]) -> str:
    """docs/results/NAME.csv: the scores of every run, case and structure in the digits of float32,
    sorted as the table is."""
    names = [*tables.headings(rows, table.columns)]
    size = metrics.size_of(rows[0])
    order = table.methods or tuple(dict.fromkeys(row["method"] for row in rows))
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow([*ABOUT, *names, size.name, size.truth])
    for row in sorted(rows, key=lambda row: order.index(row["method"])):
        run, slash, case = row["case"].rpartition("/")
        about = [row["method"], run if slash else "seed 0", case, row["structure"]]
        values = [row.get(name, math.nan) for name in (*names, size.name, size.truth)]
        lines.writerow([*about, *(f"{value:.9g}" for value in values)])
    return text.getvalue()


def lines_of(text: str) -> dict[tuple[str, ...], dict[str, str]]:
    """{(method, run, case, structure): line} of a file of scores."""
    lines = csv.DictReader(io.StringIO(text))
    return {tuple(line[name] for name in ABOUT): line for line in lines}


def told(table: Table, new: str, old: str) -> str:
    """How the scores of a table that was made anew differ from those of before."""
    after, before = lines_of(new), lines_of(old)
    if new == old:
        return f"{table.name}: all {len(after)} lines of scores are the same to the last digit."
    if after.keys() != before.keys():
        alone = len(after.keys() ^ before.keys())
        return f"{table.name}: {alone} lines of scores are in one of the two alone."
    differences = [
        abs(float(after[key]["DSC_percent"]) - float(line["DSC_percent"]))
        for key, line in before.items()
    ]
    largest = max((one for one in differences if math.isfinite(one)), default=math.nan)
    changed = sum(after[key] != line for key, line in before.items())
    return (
        f"{table.name}: {changed} of {len(after)} lines of scores differ, the DSC by {largest:.4g} "
        "points at most."
    )


def keep(table: Table, text: str, jobs: int) -> None:
    """Writes the scores of a table, and by what they were made, unless they or more are there.

    Args:
      table: declared.
      text: of its file of scores.
      jobs: trainings at a time; 0: as many as in the last record.
    """
    path = SCORES / f"{table.name}.csv"
    before = path.read_text("utf-8") if path.exists() else ""
    if before == text or lines_of(text).keys() < lines_of(before).keys():
        return
    with replacing(path) as partial:
        partial.write_text(text, "utf-8")
    record = SCORES / "made.json"
    jobs = jobs or harness.read_record(record).get(table.name, {}).get("jobs", 1)
    harness.write_record(record, table.name, {"jobs": jobs})


def chosen(settings: Results) -> list[Table]:
    """The tables that are asked for; of all of them, those whose data there may be."""
    if settings.tables is not None:
        return [TABLES[name] for name in settings.tables]
    listed = []
    for table in (table for table in TABLES.values() if table.machine == SMALL):
        if settings.lacks(table):
            print(f"{table.name}: left out, as it needs --data_dir with {table.data}/ in it")
        else:
            listed.append(table)
    return listed


def make(table: Table, settings: Results) -> str:
    """Makes a table and keeps its scores, or compares them: what is wrong with it, or nothing."""
    rows, failed = made(table, settings)
    path, commands = SCORES / f"{table.name}.csv", len(table.steps)
    wrong = f"{table.name}: {failed} of {commands} commands failed, see above" if failed else ""
    if not rows:
        return wrong
    text = as_csv(table, rows)
    if settings.fresh and path.exists():
        before = path.read_text("utf-8")
        print(told(table, text, before), flush=True)
        return wrong or f"{table.name}: made twice and not the same, see above" * (text != before)
    keep(table, text, settings.jobs)
    return wrong


def main(given: Given) -> None:
    settings = given.configured(Results)
    try:
        wrong = [make(table, settings) for table in (chosen(settings) if settings.make else ())]
    finally:
        results_page.write()
    if any(wrong):
        raise UserError(f"{'; '.join(filter(None, wrong))}.")


command = Command(main, (Results,), __doc__)


if __name__ == "__main__":
    command()
