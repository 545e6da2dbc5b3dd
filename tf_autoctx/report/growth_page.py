"""Growth charts as one HTML page without network: charts, their fit, z-scores and changes."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from tf_autoctx.growth import CENTILES, Chart, Reference
from tf_autoctx.report import elements, figures, growth_tables
from tf_autoctx.report.growth_tables import Line
from tf_autoctx.report.visits import AGE, Visit

REFERENCE, CURVE, LOOKED_AT = figures.GREY, figures.PALETTE[1], figures.PREDICTION


def write(
    path: str | pathlib.Path,
    reference: Reference,
    known: Sequence[Visit],
    visits: Sequence[Visit],
    z_scores: Sequence[Line],
    notes: Sequence[str],
) -> None:
    """Writes the page.

    Args:
      path: of the HTML file, which appears whole or not at all.
      reference: the charts.
      known: visits of their subjects that are shown too; empty where they are not known.
      visits: those that are looked at.
      z_scores: of them, see `growth_tables.z_scores`.
      notes: what else is to be said, sentences.

    Raises:
      UserError: the file cannot be written.
    """
    changes = growth_tables.changes(z_scores)
    drawn: list[go.Figure] = []
    charts = [_chart(name, reference.charts[name], known, visits) for name in reference.charts]
    sections = {
        "Charts": elements.charts(drawn, charts) + elements.notes(notes),
        "Fit": _fits(reference),
        "Z-scores": _z_scores(z_scores),
        "Changes": _changes(changes) if changes else "",
    }
    title = f"Growth of {reference.structure}" if reference.structure else "Growth"
    elements.write(path, title, {name: body for name, body in sections.items() if body}, drawn)


def _chart(name: str, chart: Chart, known: Sequence[Visit], visits: Sequence[Visit]) -> go.Figure:
    """The centiles of a measurement, the chart's subjects, and the visits that are looked at."""
    title = growth_tables.title(name)
    figure = go.Figure(layout=elements.LAYOUT)
    figure.update_layout(title=title, xaxis_title="age (weeks)", yaxis_title=title)
    own = growth_tables.points(known, name)
    if own:
        x, y = figures.joined(own)
        look = {"color": REFERENCE, "size": 4}
        figure.add_scatter(x=x, y=y, mode="markers", marker=look, name="of the chart")
    ages = np.linspace(*chart.ages, 100)
    for percent in CENTILES:
        line = {"color": CURVE, "width": 2 if percent == 50 else 1}
        told = {"name": f"centile {percent}", "showlegend": False, "hovertemplate": "%{y:.2f}"}
        y = chart.centile(ages, percent).tolist()
        figure.add_scatter(x=ages.tolist(), y=y, mode="lines", line=line, **told)
    looked_at = growth_tables.points(visits, name)
    x, y = figures.joined(looked_at)
    names = [subject for subject, (ages, _) in looked_at.items() for _ in (*ages, None)]
    look = {"mode": "lines+markers", "line": {"color": LOOKED_AT, "width": 1}, "name": "visits"}
    figure.add_scatter(x=x, y=y, **look, text=names, hovertemplate="%{text}: %{y:.2f}")
    return figure


def _fits(reference: Reference) -> str:
    lines = [elements.line(map(elements.words, cells)) for cells in growth_tables.fits(reference)]
    table = elements.table(growth_tables.FITS, [], lines)
    return table + elements.notes(growth_tables.FIT_NOTES)


def _z_scores(z_scores: Sequence[Line]) -> str:
    """A line for each, first the lowest z-score."""
    words = ["case", "subject", "measurement", "subject in chart", "note"]
    numbers = [AGE, "value", "z", "centile"]
    lines = []
    for line in sorted(z_scores, key=lambda line: np.nan_to_num(line["z"], nan=np.inf)):
        cells = [elements.words(line[name.replace(" ", "_")]) for name in words]
        cells += [elements.number(line[name]) for name in numbers]
        lines.append(elements.line(cells))
    sortable = f'class="sortable" data-sorted="{len(words) + numbers.index("z")}"'
    headings = [name.replace("_", " ") for name in numbers]
    table = elements.table(words, headings, lines, sortable)
    return f'<div class="scroll">{table}</div>'


def _changes(changes: Sequence[Line]) -> str:
    """A line for each, first the largest loss of z."""
    words = growth_tables.CHANGES[:4]
    numbers = growth_tables.CHANGES[4:]
    lines = []
    for line in sorted(changes, key=lambda line: np.nan_to_num(line["z_change"], nan=np.inf)):
        cells = [elements.words(line[name]) for name in words]
        lines.append(elements.line([*cells, *(elements.number(line[name]) for name in numbers)]))
    sortable = f'class="sortable" data-sorted="{len(words) + numbers.index("z_change")}"'
    headings, columns = ([name.replace("_", " ") for name in of] for of in (words, numbers))
    table = elements.table(headings, columns, lines, sortable)
    note = (
        "z change: a chart of one measurement a subject says how far apart two z-scores are, not "
        "how often such a change occurs."
    )
    return f'<div class="scroll">{table}</div>{elements.notes([note])}'
