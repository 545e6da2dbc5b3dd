"""How far measurements of one subject lie apart, with a truth or without (Yang et al. 2019,
section 3.2 and figure 9): volumes, diameters and circumferences of repeated scans."""

from __future__ import annotations

import dataclasses
import itertools
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from tf_autoctx import metrics, spreadsheets
from tf_autoctx.errors import UserError
from tf_autoctx.report import elements, figures, tables, visits

MEASURED = "measurements.csv"  # of predictions
TRUTH = "truth"  # in place of a method
SHOWN = 5  # names of scans in a message
HEADINGS = (
    *("measurement", "structure", "method", "subjects", "scans", "mean", "within-subject SD"),
    *("SD of a subject", "repeatability coefficient", "CV (%)", "ICC"),
)
NOTES = (
    "subjects: of --subjects, or else the groups of the cases, which holds where the cases of a "
    "group are repeated scans",
    "within-subject SD: root of the mean variance of a subject's scans; beside it the mean, "
    "smallest and largest SD of a subject",
    "repeatability coefficient: 1.96 sqrt(2) times the within-subject SD; two scans of a subject "
    "differ by less in 95 of 100",
    "CV: root mean square of SD / mean of a subject; ICC: share of the variance that is between "
    "subjects, ICC(1,1)",
)


@dataclasses.dataclass(frozen=True)
class Series:
    """A measurement of a structure by a method, of all scans in which it was found.

    Attributes:
      measurement: its column, such as volume_mL.
      structure, method: names.
      values: {scan: value above 0}, in the order of `subjects`.
      subjects: {scan: its subject}, of the scans of a subject the earlier one first.
    """

    measurement: str
    structure: str
    method: str
    values: Mapping[str, float]
    subjects: Mapping[str, str]

    @property
    def groups(self) -> dict[str, dict[str, float]]:
        """{subject of several scans: its values}."""
        found: dict[str, dict[str, float]] = {}
        for scan, value in self.values.items():
            found.setdefault(self.subjects[scan], {})[scan] = value
        return {subject: scans for subject, scans in found.items() if len(scans) > 1}

    @property
    def pairs(self) -> list[tuple[str, str, float, float]]:
        """(subject, scans in words, mean, later less earlier value) of every two scans of one."""
        return [
            (subject, f"{later} - {earlier}", (scans[later] + scans[earlier]) / 2, difference)
            for subject, scans in self.groups.items()
            for earlier, later in itertools.combinations(scans, 2)
            for difference in [scans[later] - scans[earlier]]
        ]

    def repeated(self) -> dict[str, float]:
        """`metrics.repeatability`, and the "mean_value" of the scans of subjects with several."""
        scans = [(subject, v) for subject, own in self.groups.items() for v in own.values()]
        subjects, values = [subject for subject, _ in scans], [value for _, value in scans]
        mean = float(np.mean(values)) if values else math.nan
        return {**metrics.repeatability(values, subjects), "mean_value": mean}


# What is measured


def is_measured(folder: pathlib.Path) -> bool:
    """Whether a folder holds the measurements of predictions, and no scores."""
    return (folder / MEASURED).exists() and not (folder / tables.FILES[0]).exists()


def subjects_of(path: str) -> dict[str, str]:
    """{scan: subject} of a CSV file with the columns case (or image) and subject.

    Raises:
      UserError: it cannot be read, is empty, lacks a column or a cell, or has a scan twice.
    """
    expected = "a CSV file with the columns case,subject, a line for each scan"
    columns, rows = spreadsheets.table(pathlib.Path(path), expected)
    if not rows:
        raise UserError(f"{path}: names no scan; expected {expected}.")
    case = next((column for column in visits.CASES if column in columns), None)
    if case is None or "subject" not in columns:
        raise UserError(f"{path}: has the columns {','.join(columns)}; expected {expected}.")
    known: dict[str, str] = {}
    for where, row in rows:
        scan, subject = row.get(case, ""), row.get("subject", "")
        if not scan or not subject:
            raise UserError(f"{where}: lacks {'its subject' if scan else case}; expected both.")
        if scan in known:
            raise UserError(f"{where}: has {scan} a second time; expected each scan once.")
        known[scan] = subject
    return known


def of_rows(rows: Iterable[tables.Row], subjects: Mapping[str, str] | None = None) -> list[Series]:
    """The measurements of an evaluation's rows and, last, of their truth.

    Args:
      rows: of `tables`.
      subjects: {scan: its subject}, of the scans of a subject the earlier one first; a scan of none
        is a subject of its own. None: a scan's subject is its group.
    """
    found: dict[tuple[str, str, str], dict[str, float]] = {}
    truths: dict[tuple[str, str, str], dict[str, float]] = {}
    known = dict(subjects or {})
    for row in rows:
        own = row["case"] if subjects else row["group"] or row["case"]
        known.setdefault(row["case"], own)
        for name in row:
            if truth := metrics.column(name).truth:
                key = name, row["structure"]
                found.setdefault((*key, row["method"]), {})[row["case"]] = row[name]
                truths.setdefault((*key, TRUTH), {})[row["case"]] = row[truth]
    return _series({**found, **truths}, known)


def of_measured(folders: Sequence[str | pathlib.Path], subjects: Mapping[str, str]) -> list[Series]:
    """The measurements of folders of predictions, whose names are their methods'.

    Args:
      folders: each with the measurements.csv of autoctx-predict --measurements.
      subjects: {scan: subject}, all of them measured; other scans are left out.

    Raises:
      UserError: a file cannot be read, has measurements in pixels, or lacks some of the scans.
    """
    found: dict[tuple[str, str, str], dict[str, float]] = {}
    for folder in map(pathlib.Path, folders):
        path = folder / MEASURED
        lines = spreadsheets.read(path, ("image", "structure"))
        names = [line["image"] for line in lines]
        if missing := [scan for scan in subjects if scan not in names]:
            more = ", ..." if len(missing) > SHOWN else ""
            raise UserError(
                f"{path}: lacks {len(missing)} of the {len(subjects)} scans of `subjects` "
                f"({', '.join(missing[:SHOWN])}{more}); expected all of them, by names such as "
                f"{names[0] if names else 'an image has'}."
            )
        for line in lines:
            if line["image"] in subjects:
                for name, value in _in_mm(path, line).items():
                    key = name, line["structure"], folder.resolve().name
                    found.setdefault(key, {})[line["image"]] = value
    return _series(found, subjects)


def _in_mm(path: pathlib.Path, line: Mapping[str, str]) -> dict[str, float]:
    """The measurements of a line that are in mm, mm2 or mL.

    Raises:
      UserError: a size is in pixels, or no number.
    """
    cells = {name: line[name] for name in visits.MEASUREMENTS if line.get(name)}
    if not cells:
        raise UserError(
            f"{path}: {line['image']} was measured in pixels, as its file gives no mm; expected "
            "mm, such as of autoctx-predict with `spacing`."
        )
    try:
        return {name: float(cell) for name, cell in cells.items()}
    except ValueError as error:
        raise UserError(f"{path}: {line['image']}: {error}; expected numbers.") from None


def _series(
    found: Mapping[tuple[str, str, str], Mapping[str, float]], subjects: Mapping[str, str]
) -> list[Series]:
    """The series that have a subject of several scans; what was not found is left out."""
    made = []
    for key, values in found.items():
        scans = [scan for scan in subjects if scan in values]
        measured = {scan: values[scan] for scan in scans if 0 < values[scan] < math.inf}
        made.append(Series(*key, measured, subjects))
    return [series for series in made if series.groups]


# What is told


def text(every: Sequence[Series]) -> str:
    """The table in plain words."""
    lines = [list(HEADINGS)]
    for series in every:
        told = series.repeated()
        lines.append(
            [
                *(series.measurement, series.structure, series.method),
                *(f"{told['n']}", f"{told['scans']}", f"{told['mean_value']:.2f}"),
                f"{told['within_sd']:.3f}",
                f"{told['mean']:.3f} ({told['min']:.3f} to {told['max']:.3f})",
                f"{told['coefficient']:.3f}",
                f"{told['cv_percent']:.2f}",
                "-" if math.isnan(told["icc"]) else f"{told['icc']:.4f}",
            ]
        )
    return "\n".join([tables.aligned(lines, words=3), *NOTES])


def section(every: Sequence[Series], drawn: list[go.Figure], colours: Mapping[str, str]) -> str:
    """HTML of the table, the charts, which join those that are drawn, and every subject; "" where
    no subject has several scans.

    Args:
      every: series.
      drawn: charts of the page.
      colours: {method: colour}.
    """
    if not every:
        return ""
    lines = []
    for series in every:
        told = series.repeated()
        words = [series.measurement, series.structure, series.method]
        cells = [elements.words(word) for word in words[:2]]
        cells.append(elements.words(series.method, colours.get(series.method, figures.TRUTH)))
        cells += [elements.number(told[name], digits=0) for name in ("n", "scans")]
        cells += [elements.number(told[name]) for name in ("mean_value", "within_sd")]
        spread = f"{told['mean']:.2f}<small>{told['min']:.2f} to {told['max']:.2f}</small>"
        cells.append(f"<td>{spread}</td>")
        cells += [elements.number(told[name]) for name in ("coefficient", "cv_percent")]
        lines.append(elements.line([*cells, elements.number(told["icc"], digits=4)]))
    table = elements.table(HEADINGS[:3], HEADINGS[3:], lines)
    both = dict.fromkeys((series.measurement, series.structure) for series in every)
    charts = [
        _chart([s for s in every if (s.measurement, s.structure) == key], colours) for key in both
    ]
    body = f'<div class="scroll">{table}</div>{elements.notes(NOTES)}'
    return body + elements.charts(drawn, charts, "wide") + _by_subject(every)


def _chart(several: Sequence[Series], colours: Mapping[str, str]) -> go.Figure:
    """Bland and Altman's plot of every two scans of a subject, and the values of each subject."""
    first = several[0]
    titles = [f"{first.structure}: Bland-Altman of two scans", f"{first.structure}: every subject"]
    figure = make_subplots(1, 2, subplot_titles=titles)
    for series in several:
        colour = colours.get(series.method, figures.TRUTH)
        visible = True if series.method != TRUTH else "legendonly"
        look = {"legendgroup": series.method, "visible": visible}
        subjects, scans, means, differences = zip(*series.pairs)
        points = {"mode": "markers", "marker": {"color": colour, "size": 8}, "name": series.method}
        words = [f"{subject}: {of}" for subject, of in zip(subjects, scans)]
        told = {"text": words, "hovertemplate": "%{text}: %{y:.2f}"}
        figure.add_scatter(x=means, y=differences, **points, **told, **look, row=1, col=1)
        limit, bias = series.repeated()["coefficient"], float(np.mean(differences))
        ends = [min(means), max(means)]
        levels = (bias, "mean", "solid"), (limit, "upper", "dot"), (-limit, "lower", "dot")
        for level, name, dash in levels:
            line = {"color": colour, "dash": dash, "width": 1}
            about = {"name": f"{name}, {series.method}", "showlegend": False, "mode": "lines"}
            figure.add_scatter(x=ends, y=[level] * 2, line=line, **about, **look, row=1, col=1)
        groups = series.groups
        spread = {
            "x": [subject for subject, own in groups.items() for _ in own],
            "y": [value for own in groups.values() for value in own.values()],
            "text": [scan for own in groups.values() for scan in own],
        }
        box = {"boxpoints": "all", "pointpos": 0, "jitter": 0.3, "marker_color": colour}
        about = {"name": series.method, "showlegend": False, "hovertemplate": "%{text}: %{y:.2f}"}
        figure.add_box(**spread, **box, **about, **look, row=1, col=2)
    figure.update_xaxes(title=f"mean of both: {first.measurement}", col=1)
    figure.update_yaxes(title="later - earlier scan", col=1)
    figure.update_yaxes(title=first.measurement, col=2)
    return figure.update_layout(elements.LAYOUT, boxmode="group")


def _by_subject(every: Sequence[Series]) -> str:
    """A line per subject and measurement, first where its scans lie farthest apart for its size."""
    found = [
        (float(np.std(values, ddof=1) / np.mean(values)), series, subject, values)
        for series in every
        for subject, scans in series.groups.items()
        for values in [list(scans.values())]
    ]
    lines = []
    for cv, series, subject, values in sorted(found, key=lambda each: -each[0]):
        words = subject, series.measurement, series.structure, series.method
        numbers = [float(np.mean(values)), float(np.std(values, ddof=1)), 100 * cv]
        cells = [*map(elements.words, words), elements.number(len(values), digits=0)]
        lines.append(elements.line([*cells, *map(elements.number, numbers)]))
    words = "subject", "measurement", "structure", "method"
    headings, sortable = ["scans", "mean", "SD", "CV (%)"], 'class="sortable" data-sorted="7"'
    return f'<div class="scroll">{elements.table(words, headings, lines, sortable)}</div>'


def write(
    path: str | pathlib.Path, folders: Sequence[str | pathlib.Path], subjects: str | None
) -> str:
    """Writes the page of predictions without truth, see `of_measured`.

    Args:
      path: of the HTML file.
      folders: of predictions.
      subjects: CSV file, see `subjects_of`.

    Returns:
      The table in plain words.

    Raises:
      UserError: see `of_measured`; there are no `subjects`, folders have one name, or no subject
        has several scans; the page cannot be written.
    """
    if subjects is None:
        raise UserError(
            f"`subjects`: {folders[0]} does not tell which scans are of one subject; expected a "
            "CSV file with case,subject."
        )
    methods = [pathlib.Path(folder).resolve().name for folder in folders]
    if len(set(methods)) < len(methods):
        raise UserError(f"{','.join(map(str, folders))}: expected folders of different names.")
    known = subjects_of(subjects)
    if not (every := of_measured(folders, known)):
        raise UserError(f"{subjects}: no subject has two scans; expected repeated scans.")
    drawn: list[go.Figure] = []
    colours = dict(zip(methods, itertools.cycle(figures.PALETTE[1:])))
    sections = {"Repeatability": section(every, drawn, colours)}
    elements.write(path, "Repeatability of " + ", ".join(methods), sections, drawn)
    return text(every)
