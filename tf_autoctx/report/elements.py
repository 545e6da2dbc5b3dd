"""What the HTML pages are made of: cells, tables, charts, and the file that needs no network.

Names come from files and flags, so all of them are escaped here.
"""

from __future__ import annotations

import base64
import functools
import html
import json
import math
import pathlib
import string
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from tf_autoctx.files import replacing

PARTS = pathlib.Path(__file__).parent / "html"
LAYOUT = {
    "template": "plotly_dark",
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    "margin": {"l": 60, "r": 20, "t": 50, "b": 50},
    "hovermode": "closest",
    "showlegend": True,
}


def words(text: object, colour: str | None = None, button: bool = False) -> str:
    """A cell of words."""
    text = html.escape(str(text))
    shown = f"<button>{text}</button>" if button else text
    swatch = f'<i class="swatch" style="background:{colour}"></i>' if colour else ""
    return f'<td class="text" data-value="{text}">{swatch}{shown}</td>'


def number(value: float, digits: int = 2) -> str:
    """A cell that sorts as a number in JavaScript; NaN is empty there."""
    if math.isnan(value):
        return '<td data-value="">–</td>'
    if math.isinf(value):
        return f'<td data-value="{"-" * (value < 0)}Infinity">{"−" * (value < 0)}∞</td>'
    return f'<td data-value="{value}">{value:.{digits}f}</td>'


def strip(percent: Iterable[float], colour: str) -> str:
    """A cell with a dot for each value from 0 to 100, and ticks at 0, 50 and 100."""
    dots = "".join(f'<circle cx="{2 * value + 5:.1f}" cy="9" r="4"/>' for value in percent)
    ticks = '<path d="M5 9H205M5 4V14M105 4V14M205 4V14"/>'
    drawn = f'{ticks}<g fill="{colour}">{dots}</g>'
    return f'<td class="text"><svg class="strip" width="210" height="18">{drawn}</svg></td>'


def line(cells: Iterable[str], attributes: str = "") -> str:
    """A line of a table."""
    return f"<tr {attributes}>{''.join(cells)}</tr>"


def table(
    words: Sequence[str], numbers: Sequence[str], lines: Sequence[str], attributes: str = ""
) -> str:
    """A table of the headings of its columns of words and of numbers.

    What follows a line break in a heading is small print.
    """
    head = ""
    for kind, headings in ("text", words), ("", numbers):
        for heading in headings:
            first, *rest = (html.escape(part) for part in heading.split("\n"))
            small = "".join(f"<small>{part}</small>" for part in rest)
            head += f'<th class="{kind}">{first}{small}</th>'
    return (
        f"<table {attributes}><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    )


def notes(sentences: Iterable[str]) -> str:
    """Small print, a paragraph a sentence."""
    return "".join(f'<p class="note">{html.escape(sentence)}</p>' for sentence in sentences)


def charts(drawn: list[go.Figure], new: Sequence[go.Figure], kind: str = "") -> str:
    """The places of new charts, which join those that are drawn; "wide" ones take a whole row."""
    numbers = range(len(drawn), len(drawn) + len(new))
    drawn.extend(new)
    places = "".join(f'<div class="chart {kind}" data-figure="{n}"></div>' for n in numbers)
    return f'<div class="charts">{places}</div>' if new else ""


def packed(data: bytes | np.ndarray) -> str:
    """Base64 of compressed bytes, or of an array's."""
    return base64.b64encode(zlib.compress(bytes(data), 9)).decode()


def write(
    path: str | pathlib.Path,
    title: str,
    sections: Mapping[str, str],
    drawn: Sequence[go.Figure],
    views: Sequence[Mapping[str, Any] | None] = (),
) -> None:
    """Writes a page.

    Args:
      path: of the HTML file, which appears whole or not at all.
      title: of the page.
      sections: {heading: HTML}.
      drawn: the charts that have a place in them.
      views: what the viewer shows of every case; None: nothing.

    Raises:
      UserError: the file cannot be written.
    """
    page = string.Template((PARTS / "template.html").read_text(encoding="utf-8")).substitute(
        title=html.escape(title),
        css=(PARTS / "report.css").read_text(encoding="utf-8"),
        navigation="".join(f'<a href="#{name.lower()}">{name}</a>' for name in sections),
        sections="\n".join(
            f'<section id="{name.lower()}"><h2>{name}</h2>{body}</section>'
            for name, body in sections.items()
        ),
        figures=_json("[" + ",".join(figure.to_json() for figure in drawn) + "]"),
        views="\n".join(
            f'<script type="application/json" id="view-{number}">{_json(json.dumps(view))}</script>'
            for number, view in enumerate(views)
            if view
        ),
        plotly=_plotly(),
        js=(PARTS / "report.js").read_text(encoding="utf-8"),
    )
    with replacing(path) as partial:
        partial.write_text(page, encoding="utf-8")


@functools.cache
def _plotly() -> str:
    """plotly.js, which every page holds; to pack it takes longer than all else."""
    return packed(get_plotlyjs().encode())


def _json(text: str) -> str:
    """JSON in a script element, which no name within it can end."""
    return text.replace("<", "\\u003c")
