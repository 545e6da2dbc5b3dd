"""Makes docs/results_tables.md, and the first table of docs/results.md, of docs/results/*.csv."""

from __future__ import annotations

import csv
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import harness
import numpy as np
import pages
from results_tables import MOST_HOURS, REAL_ROWS, RUNS, SMALL, TABLES, Row, Table

from tf_autoctx import metrics
from tf_autoctx.files import replacing
from tf_autoctx.report import repeated, tables

DOCS = pathlib.Path(__file__).resolve().parent.parent / "docs"
SCORES = DOCS / "results"
ABOUT = ("method", "run", "case", "structure")  # columns of a file of scores, before the metrics
HEAD = f"""# Tables of results

Made by `make results` of the scores of every run, `docs/results/*.csv`; what they mean is on
[results.md](results.md), how methods are tested on [statistics.md](statistics.md). Rows are of
several trainings, of other seeds or on other folds: SD over the means of runs first, then over
cases. Hours are estimated, of two quiet cores: all that are for {SMALL} take {{hours:.1f}} of the
{MOST_HOURS:.0f} hours that they may. In brackets: where the runs that a table shares are not there.

    make results DATA_DIR=my_data                     # all tables that are for {SMALL}
    make results TABLE=fetal-head-wide                # one, also of those for a larger machine
    make results TABLE=hippocampus DATA_DIR=my_data   # one of real data: my_data/hippocampus
    make results TABLE=smoke-organs FRESH=again       # made anew in runs/results_again, compared
    make results TABLE=organs JOBS=2                  # two trainings at a time, of a thread each
    make results TABLE=organs JOBS=0                  # of the runs that are finished so far

A table goes on where it was stopped; what is finished is read. USegNet-DS-HAS is the first level of
-Ctx: of the same seed and steps they are one network to the last digit, and trained once. Tables of
minutes (`smoke-...`) learn next to nothing: they show that a table that is made twice is the same
to the last digit.
`benchmarks/results_tables.py` is where all are declared:

"""


def read(name: str, scores: pathlib.Path = SCORES) -> list[tables.Row]:
    """The rows of a table, of its file of scores; none where it has not been made."""
    path, rows = scores / f"{name}.csv", []
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            method, run, case, structure = (line.pop(name) for name in ABOUT)
            about = {"method": method, "case": f"{run}/{case}", "structure": structure}
            rows.append({**about, **{name: float(value) for name, value in line.items()}})
    return rows


def averages(rows: Sequence[tables.Row], method: str) -> dict[str, float]:
    """{case: DSC in percent} of a method, of several structures their mean."""
    of_case: dict[str, list[float]] = {}
    for row in rows:
        if row["method"] == method and math.isfinite(row["DSC_percent"]):
            of_case.setdefault(row["case"], []).append(row["DSC_percent"])
    return {case: float(np.mean(values)) for case, values in of_case.items()}


def by_run(values: Mapping[str, float]) -> dict[str, float]:
    """{run: mean over its cases} of {"run/case": value}."""
    of_run: dict[str, list[float]] = {}
    for case, value in values.items():
        of_run.setdefault(case.partition("/")[0], []).append(value)
    return {run: float(np.mean(of)) for run, of in of_run.items()}


def spread(values: Sequence[float]) -> str:
    """ "mean ± SD" of numbers."""
    return tables.spread(metrics.summarize(list(values)))[0]


def methods_of(table: Table, rows: Sequence[tables.Row]) -> list[str]:
    """Those that a table has, in its order."""
    there = list(dict.fromkeys(row["method"] for row in rows))
    return [method for method in table.methods or there if method in there]


def scored(table: Table, rows: Sequence[tables.Row]) -> str:
    """A line for each method: DSC over runs, then every column over cases."""
    structures = list(dict.fromkeys(row["structure"] for row in rows))
    columns: dict[str, tuple[str, str]] = {  # {heading: (structure, column)}
        f"{name} DSC %": (name, "DSC_percent") for name in structures
    }
    if len(structures) == 1:
        named = tables.headings(rows, table.columns)
        columns = {
            title.replace("(", "").replace(")", ""): (structures[0], name)
            for name, title in named.items()
        }
    lines = []
    for method in methods_of(table, rows):
        own = [row for row in rows if row["method"] == method]
        means = by_run(averages(rows, method))
        cells = [
            spread([row[name] for row in own if row["structure"] == structure])
            for structure, name in columns.values()
        ]
        lines.append([method, str(len(means)), spread(list(means.values())), *cells])
    return pages.table(["", "runs", "DSC %, over runs", *columns], lines)


def tested(table: Table, rows: Sequence[tables.Row]) -> str:
    """A line for each pair of methods that is there."""
    overlap = 1 / (table.folds - 1) if table.folds else 0.0
    there, test = methods_of(table, rows), repeated.over_runs(rows, overlap)
    pairs = [(new, old) for new, old in table.pairs if {new, old} <= {*there}]
    results = [test(averages(rows, new), averages(rows, old)) for new, old in pairs]
    lines = []
    for (new, old), result, holm in zip(
        pairs, results, metrics.holm([result["p"] for result in results])
    ):
        difference, interval = tables.change(result)
        p = f"{tables.p_value(result['p'])} ({tables.p_value(holm)})"
        lines.append(
            [f"{new} against {old}", tables.counted(result), f"{difference} {interval}", p]
        )
    return pages.table(["", "over", "DSC %", "p (Holm)"], lines)


def each_run(table: Table, rows: Sequence[tables.Row]) -> str:
    """A line for each method: the mean DSC of every run."""
    means = {method: by_run(averages(rows, method)) for method in methods_of(table, rows)}
    runs = list(dict.fromkeys(run for of_method in means.values() for run in of_method))
    lines = [
        [method, *(f"{of[run]:.2f}" if run in of else pages.DASH for run in runs)]
        for method, of in means.items()
    ]
    return pages.table(["mean DSC %", *runs], lines)


def commands(table: Table) -> str:
    """The command lines of a table, as a block of code."""
    places = {"data": "$DATA_DIR", "runs": "runs/results"}
    lines = []
    for number, step in enumerate(table.steps):
        output = f"runs/results/tables/{table.name}/{number}"
        words, line = step.words.format_map({**places, "output": output}).split(), "    python"
        for word in words:
            if len(line) + len(word) > 120:
                lines.append(line + " \\")
                line = "       "
            line += f" {word}"
        lines.append(line)
    return "\n".join(lines)


def listed(scores: pathlib.Path) -> str:
    """A line for each table: what it is, takes and needs."""
    lines = [
        [
            f"`{table.name}`",
            table.title,
            f"{table.hours:g}"
            + (f" ({table.alone:g} without `{table.shares}`)" if table.shares else ""),
            table.machine,
            f"`{table.data}`" if table.data else "phantoms",
            "below" if (scores / f"{table.name}.csv").exists() else "not run yet",
        ]
        for table in TABLES.values()
    ]
    return pages.table(["TABLE", "", "hours", "machine", "data", "scores"], lines)


def section(table: Table, rows: Sequence[tables.Row], made: Mapping[str, Any]) -> str:
    """What the page has of a table that was made.

    Args:
      table: declared.
      rows: its scores.
      made: of `harness.write_record`.
    """
    machine = made["machine"]
    jobs = f" JOBS={made['jobs']}" if made.get("jobs", 1) > 1 else ""
    told = (
        f"`make results TABLE={table.name}{jobs}`, {made['made'][:10]}, kept at commit "
        f"{machine['revision']}, {machine['processor']}, {machine['cores']} cores:"
    )
    parts: list[Callable[[Table, Sequence[tables.Row]], str]] = [scored, each_run]
    parts += [tested] * bool(table.pairs)
    made_of = [part(table, rows) for part in parts]
    return "\n\n".join([f"## {table.title}", told, commands(table), *made_of])


def page(scores: pathlib.Path = SCORES) -> str:
    """docs/results_tables.md."""
    hours = sum(table.hours for table in TABLES.values() if table.machine == SMALL)
    record = harness.read_record(scores / "made.json")
    sections = [
        section(table, rows, record[table.name])
        for table in TABLES.values()
        if (rows := read(table.name, scores))
    ]
    return HEAD.format(hours=hours) + "\n\n".join([listed(scores), *sections]) + "\n"


def _line(row: Row, scores: pathlib.Path) -> list[str]:
    """Cells of a row of real data: of the scores that are there, else of the runs of before."""
    rows = read(row.table, scores) if row.table else []
    if of_run := by_run(averages(rows, row.of_table)):
        return [row.data, row.method, spread(list(of_run.values())), f"{len(of_run)} of {RUNS}"]
    if not row.earlier:
        return [row.data, row.method, pages.DASH, f"0 of {RUNS}"]
    runs, told = f"{len(row.earlier)} of {RUNS} ({row.runs})", spread(row.earlier)
    if len(row.earlier) > 1:  # of means that were rounded
        told = f"{np.mean(row.earlier):.1f} ± {np.std(row.earlier, ddof=1):.1f}"
    return [row.data, row.method, told, runs]


def real(scores: pathlib.Path = SCORES) -> str:
    """The table that docs/results.md begins with."""
    lines = [_line(row, scores) for row in REAL_ROWS]
    return pages.table(["data", "method", "mean DSC %", "runs"], lines)


def write() -> None:
    """Writes both pages."""
    with replacing(DOCS / "results_tables.md") as partial:
        partial.write_text(page(), "utf-8")
    pages.write(DOCS / "results.md", {"real": real()})
