"""Evaluations as one HTML page without network: tables, charts, and a viewer of every case."""

from __future__ import annotations

import base64
import dataclasses
import functools
import io
import itertools
import json
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from PIL import Image
from plotly.subplots import make_subplots

from tf_autoctx import metrics
from tf_autoctx.errors import UserError
from tf_autoctx.files import read_json
from tf_autoctx.report import (
    calibration,
    elements,
    figures,
    histories,
    repeatability,
    repeated,
    tables,
    views,
)
from tf_autoctx.report.tables import Row

# Of the last method of each evaluation, then of the others; without a yellow or green other than
# those of `figures.picture`.
COLOURS = (figures.PREDICTION, *(figures.PALETTE[i] for i in (1, 6, 5, 0, 4)))
JPEG_QUALITY = 60
LOW = 50.0  # DSC in percent, below which cases are counted
LOWEST = 3  # cases that a line names
UNSURE = "uncertainty_percent"  # a column of rows of methods that give probabilities


@dataclasses.dataclass(frozen=True)
class EvaluatedRun:
    """An evaluation and what lies around it.

    Attributes:
      name: of the run folder that it is in; of its own folder where that is not called evaluation.
      folder: path.
      prefix: of its methods' names, which tells them from those of other evaluations.
      rows: of `tables`.
      config: config.json of the run; empty without a run.
      histories: {stage: {column of history.csv: values}} of the run.
      curves: of `calibration`; empty where no method gives probabilities.
    """

    name: str
    folder: pathlib.Path
    prefix: str
    rows: list[Row]
    config: dict[str, Any]
    histories: dict[str, histories.History]
    curves: calibration.Curves

    @property
    def methods(self) -> list[str]:
        """Names of its methods, in the order of the rows."""
        return list(dict.fromkeys(row["method"] for row in self.rows))


@dataclasses.dataclass(frozen=True)
class Results:
    """What the page is about.

    Attributes:
      runs: the evaluations.
      subjects: see `repeatability.of_rows`.
    """

    runs: Sequence[EvaluatedRun]
    subjects: Mapping[str, str] | None = None

    @functools.cached_property
    def rows(self) -> list[Row]:
        """Rows of all evaluations."""
        return [row for run in self.runs for row in run.rows]

    @functools.cached_property
    def unsure(self) -> list[Row]:
        """The rows that tell how sure they are."""
        return [row for row in self.rows if UNSURE in row]

    @functools.cached_property
    def curves(self) -> calibration.Curves:
        """Those of all evaluations."""
        return {key: bins for run in self.runs for key, bins in run.curves.items()}

    @functools.cached_property
    def structures(self) -> list[str]:
        """Their names."""
        return list(dict.fromkeys(row["structure"] for row in self.rows))

    @functools.cached_property
    def cases(self) -> list[str]:
        """Their names; the place of a case is the number of its view."""
        return list(dict.fromkeys(row["case"] for row in self.rows))

    @functools.cached_property
    def shown(self) -> list[str]:
        """The last method of every evaluation, which is shown unless the reader chooses others."""
        return [run.methods[-1] for run in self.runs]

    @functools.cached_property
    def colours(self) -> dict[str, str]:
        """{method: colour}."""
        methods = [method for run in self.runs for method in run.methods]
        others = [method for method in methods if method not in self.shown]
        colours = dict(zip(self.shown + others, itertools.cycle(COLOURS)))
        return {method: colours[method] for method in methods}

    @functools.cached_property
    def repeated(self) -> list[repeatability.Series]:
        """Measurements of subjects with several cases."""
        return repeatability.of_rows(self.rows, self.subjects)

    @functools.cached_property
    def summary(self) -> dict[str, Any]:
        """See `tables.summarize`; every method is compared with the one before it, and the last
        ones of the evaluations.

        Raises:
          UserError: see `repeated.test_of`.
        """
        compared = [([run], list(zip(run.methods[1:], run.methods))) for run in self.runs]
        compared += [
            ([old, new], [(new.methods[-1], old.methods[-1])])
            for old, new in itertools.pairwise(self.runs)
        ]
        paired = []
        for runs, pairs in compared:
            if pairs:
                test = repeated.test_of({str(run.folder): run.rows for run in runs})
                paired += tables.paired([row for run in runs for row in run.rows], pairs, test)
        return tables.summarize(self.rows, []) | {"paired": paired}

    def chosen(self, method: str, structure: str) -> list[Row]:
        """The rows of a method and structure that have the size of the first row."""
        size = metrics.size_of(self.rows[0]).name
        return [
            row
            for row in self.rows
            if (row["method"], row["structure"]) == (method, structure) and size in row
        ]


def write(
    path: str | pathlib.Path,
    folders: Sequence[str | pathlib.Path],
    channel: int = 0,
    subjects: str | None = None,
) -> str:
    """Writes the page.

    Args:
      path: of the HTML file, which appears whole or not at all.
      folders: of evaluations, several of the same cases: each with scores.csv and, where they are
        there, views/ and, in the run folder above, config.json and history.csv of its stages.
      channel: of the images of the first evaluation, which is shown.
      subjects: CSV file, see `repeatability.subjects_of`, in place of the groups of the cases.

    Returns:
      How measurements repeat, in plain words; "" where no group has several cases.

    Raises:
      UserError: a file is missing or holds something else; `subjects` names no case; evaluations
        have one name, no case or structure in common, or other truths; the page cannot be written.
    """
    runs = [_load(pathlib.Path(folder), several=len(folders) > 1) for folder in folders]
    known = None
    if subjects is not None:
        known = repeatability.subjects_of(subjects)
        _require_named(runs, subjects, known)
    listed = ",".join(map(str, folders))
    if len({run.name for run in runs}) < len(runs):
        raise UserError(f"{listed}: expected evaluations of runs of different names.")
    if not set.intersection(*({row["case"] for row in run.rows} for run in runs)):
        raise UserError(f"{listed}: no case in common; expected evaluations of the same cases.")
    results = Results(runs, known)
    cases = {name: _packed_case(name, results, channel) for name in results.cases}
    tables.require_same_truth({str(run.folder): run.rows for run in runs})
    drawn: list[go.Figure] = []
    sections = _sections(results, cases, drawn)
    title = "Evaluation of " + ", ".join(run.name for run in runs)
    elements.write(path, title, sections, drawn, list(cases.values()))
    return repeatability.text(results.repeated) if results.repeated else ""


# What lies in a folder


def _load(folder: pathlib.Path, several: bool) -> EvaluatedRun:
    """The evaluation in a folder.

    Args:
      folder: path.
      several: whether the page is of several, so that methods' names need that of their run.

    Raises:
      UserError: a file is missing or holds something else.
    """
    rows, run = tables.read(folder), folder.resolve().parent
    if not rows:
        raise UserError(
            f"{folder / 'scores.csv'}: holds no case; expected the results of an evaluation."
        )
    name = run.name if folder.resolve().name == "evaluation" else folder.resolve().name
    prefix = f"{name}: " if several else ""
    rows = [row | {"method": prefix + row["method"]} for row in rows]
    config = _config(run / "config.json") if (run / "config.json").exists() else {}
    files = sorted(run.glob("*/history.csv")) if config else []
    of_stages = {file.parent.name: histories.read(file) for file in files}
    curves = {(prefix + m, name): bins for (m, name), bins in calibration.read(folder).items()}
    return EvaluatedRun(name, folder, prefix, rows, config, of_stages, curves)


def _require_named(runs: Sequence[EvaluatedRun], path: str, subjects: Mapping[str, str]) -> None:
    """Raises a `UserError` for a run that has none of the cases of the subjects in a file."""
    for run in runs:
        if not {row["case"] for row in run.rows} & set(subjects):
            raise UserError(
                f"{path}: names none of the cases of {run.folder}, such as "
                f"{run.rows[0]['case']}; expected their names."
            )


def _config(file: pathlib.Path) -> dict[str, Any]:
    """What config.json of a run folder says.

    Raises:
      UserError: it is none of ours.
    """
    try:
        config = read_json(file, "JSON with system, flags and data_fingerprint")
        config["system"], config["flags"], config["data_fingerprint"]
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{file}: not a run's configuration; expected JSON with system, flags and "
            "data_fingerprint."
        ) from error
    return config


# Sections of the page


def _sections(
    results: Results, cases: Mapping[str, dict[str, Any] | None], drawn: list[go.Figure]
) -> dict[str, str]:
    """{heading: HTML}; `drawn` gets the charts in them."""
    charts = functools.partial(elements.charts, drawn)
    agreement = [_agreement_chart(results, structure) for structure in results.structures]
    unsure = [_uncertainty_chart(results, name) for name in results.structures if results.unsure]
    sections = {
        "Results": _results(results),
        "Cases": _cases(results, cases),
        "Uncertainty": _uncertainty(results, cases) + charts(unsure, "wide"),
        "Agreement": _agreement(results) + charts(agreement, "wide"),
        "Repeatability": repeatability.section(results.repeated, drawn, results.colours),
        "Distributions": _distributions(results)
        + charts(_boxes(results), "wide" if len(results.structures) > 1 else ""),
        "Training": charts(_curves(results)),
        "Configuration": _configuration(results),
    }
    return {name: body for name, body in sections.items() if body}


def _results(results: Results) -> str:
    """The headline table: mean, SD and confidence interval of every method and structure.

    Below, how methods compare.
    """
    summary = results.summary
    headings, colours = tables.headings(results.rows), results.colours
    lines = []
    for method, structures in summary["methods"].items():
        for structure, cell in structures.items():
            counts = [
                elements.number(cell[count], digits=0) for count in ("n", "n_missed", "n_false")
            ]
            spreads = [tables.spread(cell["metrics"][name]) for name in headings]
            means = [f"<td>{mean}<small>{interval}</small></td>" for mean, interval in spreads]
            lines.append(
                elements.line(
                    [
                        elements.words(method, colours[method]),
                        elements.words(structure),
                        *counts,
                        *means,
                    ]
                )
            )
    table = elements.table(
        ["method", "structure"], ["n", "missed", "false", *headings.values()], lines
    )
    return table + elements.notes([*tables.NOTES, *tables.comparisons(summary)])


def _cases(results: Results, cases: Mapping[str, dict[str, Any] | None]) -> str:
    """A line per case and structure, first that with the lowest DSC of the last method."""
    names, last = tables.headings(results.rows), results.shown[-1]
    by_case: dict[tuple[str, str], dict[str, Row]] = {}
    for row in results.rows:
        by_case.setdefault((row["case"], row["structure"]), {})[row["method"]] = row
    columns = [("DSC_percent", method) for method in results.colours]
    columns += [(name, last) for name in names if name != "DSC_percent"]
    decisive = columns.index(("DSC_percent", last))
    values = {
        key: [scores.get(method, {}).get(name, math.nan) for name, method in columns]
        for key, scores in by_case.items()
    }

    def order(key: tuple[str, str]) -> float:
        return np.nan_to_num(values[key][decisive], nan=np.inf)

    lines = [_case_line(cases, *key, values[key]) for key in sorted(values, key=order)]
    headings = [f"{names[name]}\n{method}" for name, method in columns]
    sortable = f'class="sortable" data-sorted="{2 + decisive}"'
    table = elements.table(["case", "structure"], headings, lines, sortable)
    note = (
        f"Sorted by the DSC of {last}. A click on a heading sorts by it; a click on a case shows "
        "it, if it has a view."
    )
    return f'<div class="scroll">{table}</div>{elements.notes([note])}'


def _case_line(
    cases: Mapping[str, dict[str, Any] | None],
    case: str,
    structure: str,
    values: Iterable[float],
) -> str:
    """The line of a structure of a case, which a click opens if it has a view."""
    attributes, view = "", cases[case]
    if view:
        number = list(cases).index(case)
        attributes = f'data-view="{number}" data-structure="{_number_in(view, structure)}"'
    words = [elements.words(case, button=bool(view)), elements.words(structure)]
    return elements.line([*words, *map(elements.number, values)], attributes)


def _number_in(view: Mapping[str, Any], structure: str) -> int:
    """Number of a structure in a view, from 1; 0, which stands for all, where it shows none such:
    scores of label images may name more than the run that the view is of."""
    names = list(view["structures"])
    return names.index(structure) + 1 if structure in names else 0


def _uncertainty(results: Results, cases: Mapping[str, dict[str, Any] | None]) -> str:
    """A line per method and structure: how right it is to be sure. Below, the cases of the last
    method, first those in which it is least sure of what it segmented."""
    if not results.unsure:
        return ""
    lines = []
    for method, structure in dict.fromkeys((r["method"], r["structure"]) for r in results.unsure):
        bins = results.curves.get((method, structure))
        error = math.nan if bins is None else metrics.calibration_error(bins)
        rows = _unsure(results, method, structure)
        uncertainty, dice = ([row[name] for row in rows] for name in (UNSURE, "DSC_percent"))
        correlation = metrics.rank_correlation(uncertainty, dice)
        cells = [
            elements.number(error),
            elements.number(metrics.summarize(uncertainty)["mean"]),
            elements.number(correlation["rho"]),
            elements.number(correlation["p"], digits=4),
            elements.number(correlation["n"], digits=0),
        ]
        words = elements.words(method, results.colours[method]), elements.words(structure)
        lines.append(elements.line([*words, *cells]))
    headings = ["ECE (%)", "mean uncertainty (%)", "Spearman rho with DSC", "p", "n"]
    notes = [
        "ECE: expected calibration error, over the voxels in boxes around the structure, of all "
        "cases together",
        "uncertainty: mean entropy of the voxels that are predicted to be the structure; rho below "
        "0: where it is high, the DSC is low; p of permutations, over n cases where both are known",
    ]
    table = elements.table(["method", "structure"], headings, lines) + elements.notes(notes)
    return table + _least_sure(results, cases)


def _least_sure(results: Results, cases: Mapping[str, dict[str, Any] | None]) -> str:
    last = results.unsure[-1]["method"]

    def order(row: Row) -> float:
        return -np.nan_to_num(row[UNSURE], nan=np.inf)

    rows = sorted((row for row in results.unsure if row["method"] == last), key=order)
    lines = [
        _case_line(cases, row["case"], row["structure"], (row[UNSURE], row["DSC_percent"]))
        for row in rows
    ]
    columns = [f"{metrics.column(name).title}\n{last}" for name in (UNSURE, "DSC_percent")]
    table = elements.table(["case", "structure"], columns, lines)
    note = f"First those that {last} found nothing in, then those in which it is least sure."
    return f'<h3>Look at these first</h3><div class="scroll">{table}</div>{elements.notes([note])}'


def _unsure(results: Results, method: str, structure: str) -> list[Row]:
    """The rows of a method and structure that tell how sure they are."""
    names = method, structure
    return [row for row in results.unsure if (row["method"], row["structure"]) == names]


def _uncertainty_chart(results: Results, structure: str) -> go.Figure:
    """Reliability curve of one structure, and its uncertainty beside the DSC.

    Methods that are not shown wait in the legend.
    """
    titles = [f"{structure}: calibration", f"{structure}: uncertainty and DSC"]
    figure = make_subplots(1, 2, subplot_titles=titles)
    grey = {"color": figures.GREY, "width": 1}
    line = {"mode": "lines", "line": grey, "showlegend": False, "hoverinfo": "skip"}
    figure.add_scatter(x=[0, 1], y=[0, 1], **line, row=1, col=1)
    for method, colour in results.colours.items():
        if not (rows := _unsure(results, method, structure)):
            continue
        visible = True if method in results.shown else "legendonly"
        look: dict[str, Any] = {"name": method, "legendgroup": method, "visible": visible}
        look |= {"marker": {"color": colour, "size": 8}}
        bins = results.curves.get((method, structure))
        if bins is not None:
            x, y = metrics.reliability_curve(bins).tolist()
            figure.add_scatter(x=x, y=y, **look, mode="lines+markers", row=1, col=1)
        both = {"x": [row[UNSURE] for row in rows], "y": [row["DSC_percent"] for row in rows]}
        points = {"mode": "markers", "showlegend": bins is None} | _told(rows, results.cases)
        figure.add_scatter(**both, **look, **points, row=1, col=2)
    figure.update_xaxes(title="probability", range=[0, 1], col=1)
    figure.update_yaxes(title="share that is the structure", range=[0, 1], col=1)
    figure.update_xaxes(title=metrics.column(UNSURE).title, col=2)
    figure.update_yaxes(title=metrics.column("DSC_percent").title, col=2)
    return figure.update_layout(elements.LAYOUT)


def _agreement(results: Results) -> str:
    """A line per method and structure: how sizes agree with the truth's."""
    size, colours = metrics.size_of(results.rows[0]), results.colours
    lines = []
    both = dict.fromkeys((row["method"], row["structure"]) for row in results.rows)
    for method, structure in both:
        chosen = results.chosen(method, structure)
        values = [row[size.name] for row in chosen]
        agreement = metrics.agreement(values, [row[size.truth] for row in chosen])
        cells = [
            elements.number(agreement["n"], digits=0),
            *(elements.number(agreement[name], digits=4) for name in ("pearson_r", "p")),
            *(elements.number(agreement[name]) for name in ("bias", "limit_low", "limit_high")),
        ]
        lines.append(
            elements.line(
                [elements.words(method, colours[method]), elements.words(structure), *cells]
            )
        )
    headings = [
        "n",
        "Pearson r",
        "p",
        f"bias of the {size.title}",
        "lower limit",
        "upper limit",
    ]
    notes = ["Bland-Altman: bias of prediction - truth and its limits of agreement at 1.96 SD"]
    return elements.table(["method", "structure"], headings, lines) + elements.notes(notes)


def _agreement_chart(results: Results, structure: str) -> go.Figure:
    """Correlation and Bland-Altman plot of one structure.

    Methods that are not shown wait in the legend.
    """
    size = metrics.size_of(results.rows[0])
    figure = make_subplots(
        1, 2, subplot_titles=[f"{structure}: correlation", f"{structure}: Bland-Altman"]
    )
    chosen = {method: results.chosen(method, structure) for method in results.colours}
    every = [row for rows in chosen.values() for row in rows]
    sizes = [row[name] for row in every for name in (size.name, size.truth)]
    ends = [0, max(sizes, default=1)]
    line = {"x": ends, "mode": "lines", "showlegend": False}
    grey = {"color": figures.GREY, "width": 1}
    figure.add_scatter(y=ends, **line, line=grey, hoverinfo="skip", row=1, col=1)
    for method, colour in results.colours.items():
        own, truth = (
            np.array([row[name] for row in chosen[method]]) for name in (size.name, size.truth)
        )
        visible = True if method in results.shown else "legendonly"
        look = {"legendgroup": method, "visible": visible}
        points = {"name": method, "mode": "markers", "marker": {"color": colour, "size": 8}}
        points |= look | _told(chosen[method], results.cases)
        figure.add_scatter(x=truth, y=own, **points, row=1, col=1)
        bland_altman = {"x": (own + truth) / 2, "y": own - truth, "showlegend": False}
        figure.add_scatter(**bland_altman, **points, row=1, col=2)
        agreement = metrics.agreement(own, truth)
        for name, dash in ("bias", "solid"), ("limit_low", "dot"), ("limit_high", "dot"):
            style = {"color": colour, "dash": dash, "width": 1}
            told = f"{name.replace('_', ' ')} of {method}"
            level = {"y": [agreement[name]] * 2, "name": told, "line": style}
            figure.add_scatter(**level, **line, **look, row=1, col=2)
    figure.update_xaxes(title=f"truth: {size.title}", col=1)
    figure.update_yaxes(title=f"prediction: {size.title}", col=1)
    figure.update_xaxes(title=f"mean of both: {size.title}", col=2)
    figure.update_yaxes(title="prediction - truth", col=2)
    return figure.update_layout(elements.LAYOUT)


def _distributions(results: Results) -> str:
    """A line per method and structure, first that with the lowest quartile: where the DSC of the
    cases lie, which one mean does not tell apart from two kinds of cases."""
    found = []
    for method, structure in dict.fromkeys((r["method"], r["structure"]) for r in results.rows):
        chosen = [r for r in results.rows if (r["method"], r["structure"]) == (method, structure)]
        scored = {row["case"]: row.get("DSC_percent", math.nan) for row in chosen}
        scored = {case: dsc for case, dsc in scored.items() if math.isfinite(dsc)}
        found.append((metrics.distribution([*scored.values()], LOW), method, structure, scored))
    found.sort(key=lambda each: np.nan_to_num(each[0]["lower_quartile"], nan=np.inf))
    quartiles = {"min": "lowest", "lower_quartile": "25 %", "median": "median"}
    quartiles |= {"upper_quartile": "75 %", "max": "highest"}
    lines = []
    for told, method, structure, scored in found:
        lowest = sorted(scored.items(), key=lambda each: each[1])[:LOWEST]
        colour = results.colours[method]
        cells = [elements.words(method, colour), elements.words(structure)]
        cells.append(elements.strip(scored.values(), colour))
        cells.append(elements.words(", ".join(f"{case} {dsc:.1f}" for case, dsc in lowest)))
        cells += [elements.number(told[name]) for name in quartiles]
        cells += [elements.number(told[name], digits=0) for name in ("n_below", "n")]
        lines.append(elements.line(cells))
    words = ["method", "structure", "DSC (%), a dot per case", "lowest cases"]
    table = elements.table(words, [*quartiles.values(), f"below {LOW:g} %", "n"], lines)
    note = (
        "Mean and SD tell little where some cases succeed and others fail: the dots then lie in "
        "two groups. First stands the structure with the lowest quartile."
    )
    return f'<div class="scroll">{table}</div>{elements.notes([note])}'


def _boxes(results: Results) -> list[go.Figure]:
    """A box plot per metric, a box per structure and method, with every case as a point."""
    rows, boxes = results.rows, []
    for name, title in tables.headings(rows, metrics.shown("charts")).items():
        figure = go.Figure(layout=elements.LAYOUT).update_layout(title=title, boxmode="group")
        figure.update_xaxes(categoryarray=results.structures)
        for method, colour in results.colours.items():
            chosen = [
                row
                for row in rows
                if row["method"] == method and math.isfinite(row.get(name, math.nan))
            ]
            values = {"x": [row["structure"] for row in chosen], "y": [row[name] for row in chosen]}
            points = {"boxpoints": "all", "jitter": 0.4, "pointpos": 0}
            points |= _told(chosen, results.cases)
            figure.add_box(**values, **points, name=method, marker_color=colour)
        boxes.append(figure)
    return boxes


def _curves(results: Results) -> list[go.Figure]:
    """Loss and validation DSC of every stage, epoch by epoch.

    A stage that is a method too has its colour.
    """
    if not any(run.histories for run in results.runs):
        return []
    known = {method.replace("_", " "): colour for method, colour in results.colours.items()}
    others = [colour for colour in figures.PALETTE if colour not in known.values()]
    curves = []
    for name, title in ("loss", "loss"), ("val_DSC", "validation DSC"):
        figure = go.Figure(layout=elements.LAYOUT)
        figure.update_layout(title=title, xaxis_title="epoch", colorway=others)
        for run in results.runs:
            for stage, history in run.histories.items():
                values = history.get(name, [])
                colour = known.get((run.prefix + stage).replace("_", " "))
                line = {"x": np.arange(1, len(values) + 1), "y": values, "line_color": colour}
                figure.add_scatter(**line, name=run.prefix + stage.replace("_", " "))
        curves.append(figure)
    return curves


def _configuration(results: Results) -> str:
    """config.json of every run side by side: flags, versions, seed, revision.

    What differs is marked.
    """
    facts = [_facts(run.config) for run in results.runs]
    lines = []
    for name in dict.fromkeys(name for fact in facts for name in fact):
        values = [json.dumps(fact[name]) if name in fact else "" for fact in facts]
        differs = 'class="differs"' if len(set(values)) > 1 else ""
        lines.append(elements.line([elements.words(word) for word in (name, *values)], differs))
    if not lines:
        return ""
    table = elements.table(["", *(run.name for run in results.runs)], [], lines)
    return f"<details><summary>Flags, versions, seed and revision</summary>{table}</details>"


def _facts(config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json without nesting, its flags last."""
    facts = {name: value for name, value in config.items() if name not in ("flags", "versions")}
    facts |= {f"{name} version": value for name, value in config.get("versions", {}).items()}
    return facts | {f"--{name}": value for name, value in config.get("flags", {}).items()}


def _told(rows: Sequence[Row], cases: Sequence[str]) -> dict[str, Any]:
    """What the points of a chart say on hover, and the number of the view that a click opens."""
    text = [row["case"] for row in rows]
    return {
        "text": text,
        "customdata": [cases.index(case) for case in text],
        "hovertemplate": "%{text}: %{y:.2f}",
    }


# Views


def _packed_case(name: str, results: Results, channel: int) -> dict[str, Any] | None:
    """What report.js shows of a case, of its image one channel; None where no evaluation has a view
    of it.

    Raises:
      UserError: a view cannot be read, or two show other cases.
    """
    files = [(run, run.folder / "views" / f"{name}.npz") for run in results.runs]
    files = [(run, file) for run, file in files if file.exists()]
    if not files:
        return None
    first_file = files[0][1]
    loaded = [(run, file, views.read(file, channel * (file == first_file))) for run, file in files]
    first = loaded[0][2]
    methods: list[dict[str, Any]] = []
    distances = [np.nan]
    for run, file, view in loaded:
        if any(
            not np.array_equal(view[key], first[key]) for key in ("truth", "spacing", "structures")
        ):
            raise UserError(
                f"{file}: has another truth than {first_file}; expected evaluations of the same "
                "cases."
            )
        if not {run.prefix + method for method in view["methods"]} <= set(run.methods):
            raise UserError(
                f"{file}: has other methods than scores.csv; give the training command again, "
                "which evaluates."
            )
        for number, method in enumerate(view["methods"]):
            packed, far = _packed_method(view, number)
            method = run.prefix + method
            colour = results.colours[method]
            shown = method in results.shown
            methods.append({"name": method, "colour": colour, "shown": shown, **packed})
            distances += far
    return {
        "name": name,
        "image": _jpeg(first["image"]),
        "shape": first["truth"].shape,
        "size": first["size"].tolist(),
        "spacing": first["spacing"].tolist(),
        "structures": first["structures"].tolist(),
        "truth": {"colour": figures.TRUTH, "label": elements.packed(first["truth"])},
        "methods": methods,
        # Colours end where all but a few specks lie.
        "farthest": None
        if np.isnan(distances).all()
        else float(np.nanpercentile(distances, 98)) or 1.0,
        "scores": _scores([row for row in results.rows if row["case"] == name]),
    }


def _packed_method(view: views.View, number: int) -> tuple[dict[str, Any], list[float]]:
    """What report.js shows of a method's prediction, and the distances on its surfaces."""
    truth, label, spacing = view["truth"], view["labels"][number], view["spacing"]
    ks = range(1, len(view["structures"]) + 1) if len(truth) > 1 else ()
    surfaces = [views.surface(label == k, truth == k, spacing) for k in ks]
    probability = None
    if "probabilities" in view:
        probability = elements.packed(_coarse(view["probabilities"][number]))
    packed = {
        "label": elements.packed(label),
        "probability": probability,
        "surfaces": [surface and _packed_surface(surface) for surface in surfaces],
    }
    return packed, [far for surface in surfaces if surface for far in surface["distances"]]


def _jpeg(image: np.ndarray) -> str:
    """Base64 of a volume (z, y, x) as a JPEG, slice below slice."""
    file = io.BytesIO()
    Image.fromarray(image.reshape(-1, image.shape[2])).save(file, "JPEG", quality=JPEG_QUALITY)
    return base64.b64encode(file.getvalue()).decode()


def _coarse(probability: np.ndarray) -> np.ndarray:
    """Probabilities from 0 to 255 in 32 steps, which compress well."""
    return np.rint(np.rint(probability / 255 * 31) / 31 * 255).astype(np.uint8)


def _packed_surface(surface: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """A surface as columns of numbers, which are multiples of a unit."""
    packed: dict[str, Any] = {
        "faces": elements.packed(surface["faces"].T.astype(np.uint16)),
        "distances": None,
    }
    for name in "vertices", "distances":
        values = surface[name].T
        if not np.isnan(values).any():
            unit = values.max() / 65535 or 1.0
            packed[name] = {
                "unit": unit,
                "data": elements.packed(np.rint(values / unit).astype(np.uint16)),
            }
    return packed


def _scores(rows: Sequence[Row]) -> str:
    """The main scores of a case, a column per method."""
    methods, lines = list(dict.fromkeys(row["method"] for row in rows)), []
    for structure in dict.fromkeys(row["structure"] for row in rows):
        scores = {row["method"]: row for row in rows if row["structure"] == structure}
        lines.append(elements.line([elements.words(structure)]))
        for name, title in tables.headings(rows, metrics.shown("charts")).items():
            values = [scores.get(method, {}).get(name, math.nan) for method in methods]
            lines.append(elements.line([elements.words(title), *map(elements.number, values)]))
    return elements.table([""], methods, lines)
