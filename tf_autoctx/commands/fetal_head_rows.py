"""Tables 1 and 2 of the fetal head system from finished runs: rows, tests and times."""

from __future__ import annotations

import json
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tf_autoctx import files, metrics, spreadsheets
from tf_autoctx.commands.planned_runs import PlannedRun
from tf_autoctx.data import datasets
from tf_autoctx.files import replacing
from tf_autoctx.report import histories, repeated, tables
from tf_autoctx.systems.fetal_head.paper import COLUMNS, CONCAT, METHODS, PROPOSED, TABLES
from tf_autoctx.systems.fetal_head.system import FetalHeadSystem
from tf_autoctx.systems.shared import evaluation, prediction, scored_runs
from tf_autoctx.systems.shared.system import Reader
from tf_autoctx.training import runs

Row = dict[str, Any]
# {method: those compared with it; () for all others}: Holm's correction runs over one of these.
BASELINES: dict[str, tuple[str, ...]] = {
    "USegNet-DS": (),
    "USegNet": ("USegNet-DS-HAS-Ctx",),
    "USegNet-DS-HAS-Ctx" + CONCAT: ("USegNet-DS-HAS-Ctx",),
}


def write(output: pathlib.Path, finished: Sequence[PlannedRun], flags: Mapping[str, Any]) -> None:
    """Writes and prints the tables of finished runs, see `commands.fetal_head_tables`.

    Args:
      output: folder of the tables.
      finished: runs.
      flags: {flag: value} of the tables' command.
    """
    every = [row for run in finished for row in rows_of(run)]
    methods = [method for method in METHODS if method in {run.method for run in finished}]
    rows = [row for method in methods for row in every if row["method"] == method]
    levels = [row for row in every if row["method"] not in methods]
    times, size = seconds(finished)
    overlap = scored_runs.overlap_of(runs.load(run.folder) for run in finished)
    test = repeated.over_runs(every, overlap)
    lines, names = compared(rows, methods, test), tables.headings(rows, COLUMNS)
    by_seed = [
        {**row, "method": f"{row['method']}, {row['case'].partition('/')[0]}"} for row in rows
    ]

    blocks = [block(title, rows, paper, times) for title, paper in TABLES.items()]
    blocks += comparison_blocks(lines, names)
    for title, some in ("By seed", by_seed), ("Levels before the last", levels):
        blocks.append(block(title, some, dict.fromkeys((r["method"] for r in some), ()), {}))
    blocks.append(converged(finished, methods))
    text = "\n\n".join(
        [
            *(tables.aligned(block) for block in blocks if len(block) > 1),
            "\n".join(_notes(finished, flags, size)),
        ]
    )
    pairs = [(line["method"], line["against"]) for line in lines[:: len(names)]]
    files.own(output)
    tables.write(output, rows + levels, pairs, test=test)
    columns = list(lines[0]) if lines else ["method"]
    spreadsheets.write(output / "comparison.csv", lines, columns)
    for name, written in ("times.json", json.dumps(times, indent=1)), ("table.txt", text):
        with replacing(output / name) as path:
            path.write_text(written + "\n", encoding="utf-8")
    print(text)
    # Named before any test case was scored: the best on them would flatter.
    drawn = PROPOSED if PROPOSED in methods else methods[-1]
    print(f"agreement and repeatability of head volumes: {drawn}")
    evaluation.draw_measurements(output, {drawn: [row for row in rows if row["method"] == drawn]})


def _notes(
    finished: Sequence[PlannedRun], flags: Mapping[str, Any], size: tuple[int, ...]
) -> list[str]:
    """What stands below the tables."""
    seeds, precision = ", ".join(map(str, flags["seeds"])), finished[0].flags["precision"]
    folds = f" and {flags['folds']} folds" if flags["folds"] else ""
    budget = {"variant": "a variant, which its levels share", "level": "a level"}
    return [
        f"mean ± SD over the cases of the seeds {seeds}{folds}, where the value is finite; missed: "
        "truth without prediction",
        f"{flags['steps']} optimizer steps {budget[flags['steps_of']]}, trained in {precision}; "
        "paper: 50 test volumes",
        "s a volume: from raw voxels to the label in float32, here, median of 3 calls on one test "
        f"volume of {' x '.join(map(str, size))} voxels",
        "against: mean difference over the runs or cases of both, and in brackets p corrected by "
        "Holm for the methods of the block, score by score",
        tables.TEST_NOTES[0],
    ]


def rows_of(run: PlannedRun) -> list[Row]:
    """Rows of a finished run: its last level, and those before it under names of their own."""
    seed, last = scored_runs.name_of(runs.load(run.folder)), run.flags["level"]
    rows = []
    for row in tables.read(run.folder / "evaluation"):
        is_last = row["method"] == f"level {last}"
        method = run.method if is_last else f"{run.method}, {row['method']}"
        rows.append({**repeated.named(seed, row), "method": method})
    return rows


def seconds(finished: Sequence[PlannedRun]) -> tuple[dict[str, float], tuple[int, ...]]:
    """What a volume takes: the first test case of the first run, median of three calls after one
    to warm up.

    Returns:
      ({method: s}, (depth, height, width) of the volume).
    """
    of_run = {**runs.load(finished[0].folder).flags, **finished[0].flags}
    cases = datasets.of_flags(of_run["data_dir"], of_run)
    read = Reader(FetalHeadSystem, of_run["foreground"], cases.labels)
    case = evaluation.held_out(cases, read)[0]
    image, _ = read(case)
    voxels, spacing = image.array, image.spacing
    of_method: dict[str, float] = {}
    for run in {run.method: run for run in reversed(finished)}.values():
        segmentor, times = prediction.load(run.folder), []
        for _ in range(4):
            begin = time.perf_counter()
            segmentor(voxels, spacing, case.image)
            times.append(time.perf_counter() - begin)
        of_method[run.method] = float(np.median(times[1:]))
    return of_method, voxels.shape


def converged(finished: Sequence[PlannedRun], methods: Sequence[str]) -> list[list[str]]:
    """Lines of a table: what the last quarter of the epochs of the last level still gained on the
    validation cases, mean over the runs of a method; nothing without such cases."""
    lines = [["Validation DSC (%)", "runs", "best of 3/4 of the epochs", "of all", "gain"]]
    for method in methods:
        files = [
            run.folder / f"level_{run.flags['level']}" / "history.csv"
            for run in finished
            if run.method == method
        ]
        of_runs = [histories.last_quarter(histories.read(file)) for file in files if file.exists()]
        if of_runs and np.isfinite(of_runs).all():
            before, after = np.mean(of_runs, axis=0)
            values = f"{before:.2f}", f"{after:.2f}", f"{after - before:+.2f}"
            lines.append([method, str(len(of_runs)), *values])
    return lines


def compared(rows: list[Row], methods: Sequence[str], test: tables.Test) -> list[Row]:
    """Tests of the methods against the `BASELINES` among them.

    Returns:
      {"method", "against", "structure", "metric", those of the test, "p_holm"} each, corrected for
      the number of methods against one baseline.
    """
    names, lines = tables.headings(rows, COLUMNS), []
    for baseline, few in BASELINES.items():
        others = [method for method in few or methods if method in methods and method != baseline]
        if baseline not in methods or not others:
            continue
        pairs = [(method, baseline) for method in others]
        tests = tables.paired(rows, pairs, test)
        for name in names:
            corrected = metrics.holm([pair["metrics"][name]["p"] for pair in tests])
            for pair, p in zip(tests, corrected):
                about = {key: pair[key] for key in ("method", "against", "structure")}
                measured = pair["metrics"][name]
                lines.append({**about, "metric": name, **measured, "p_holm": float(p)})
    return lines


def block(
    title: str,
    rows: list[Row],
    paper: Mapping[str, Sequence[float]],
    times: Mapping[str, float],
) -> list[list[str]]:
    """Lines of a table: mean and SD of every method, the paper's values below, and where given
    seconds a volume.

    Args:
      title: of the table.
      rows: of `report.tables`.
      paper: {method: values of the paper, or ()}; others are left out.
      times: {method: seconds a volume}, or {}.
    """
    names, summary = tables.headings(rows, COLUMNS), tables.summarize(rows, [])["methods"]
    lines = [[title, "n", "missed", *names.values(), *["s a volume"] * bool(times)]]
    for method, values in paper.items():
        if method not in summary:
            continue
        cell = summary[method][FetalHeadSystem.structure]
        means = [tables.spread(cell["metrics"][name])[0] for name in names]
        lines.append([method, str(cell["n"]), str(cell["n_missed"]), *means])
        lines[-1] += [f"{times[method]:.3f}"] if times else []
        if values:
            words = [*map("{:.2f}".format, values[:3]), *map("{:g}".format, values[3:])]
            lines.append(["  paper", "50", "", *words, *[""] * (6 - len(words))])
    return lines


def comparison_blocks(lines: list[Row], names: Mapping[str, str]) -> list[list[list[str]]]:
    """Lines of a table for every baseline of `compared`: mean difference and Holm's p in brackets,
    metric by metric."""
    blocks: dict[str, dict[tuple[str, str], dict[str, str]]] = {}
    for line in lines:
        cells = blocks.setdefault(line["against"], {}).setdefault(
            (line["method"], tables.counted(line)), {}
        )
        told = f"{line['mean_difference']:+.3f} ({tables.p_value(line['p_holm'])})"
        cells[line["metric"]] = told if line["n"] else "-"
    return [
        [[f"against {baseline}", "over", *names.values()]]
        + [[*key, *(cells.get(name, "-") for name in names)] for key, cells in of_baseline.items()]
        for baseline, of_baseline in blocks.items()
    ]
