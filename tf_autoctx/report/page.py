"""Evaluations as one HTML page that needs no network: tables, charts, and a viewer of every case."""

import base64
import csv
import dataclasses
import html
import io
import itertools
import json
import math
import pathlib
import string
import zlib

import numpy as np
import plotly.graph_objects as go
from PIL import Image
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

from tf_autoctx import metrics, plots, report, views
from tf_autoctx.errors import UserError
from tf_autoctx.files import replacing
from tf_autoctx.training import runs

PARTS = pathlib.Path(__file__).parent / "html"
# Of the last method of each evaluation, then of the others; without a yellow or green other than `plots.picture`'s.
COLOURS = (plots.PREDICTION, *(plots.PALETTE[i] for i in (1, 6, 5, 0, 4)))
BOXES = ("DSC", "Adb", "Hdb", "volume_error", "area_error")
JPEG_QUALITY = 60
LAYOUT = {
    "template": "plotly_dark",
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    "margin": {"l": 60, "r": 20, "t": 50, "b": 50},
    "hovermode": "closest",
    "showlegend": True,
}


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """An evaluation and what lies around it.

    Attributes:
      name: of the run folder that it is in; of its own folder where that is not called evaluation.
      folder: path.
      prefix: of its methods' names, which tells them from those of other evaluations.
      rows: of `report`.
      config: config.json of the run; empty without a run.
      histories: {stage: {column of history.csv: values}} of the run.
    """

    name: str
    folder: pathlib.Path
    prefix: str
    rows: list[dict]
    config: dict
    histories: dict[str, dict]

    @property
    def methods(self):
        """Names of its methods, in the order of the rows."""
        return list(dict.fromkeys(row["method"] for row in self.rows))


def write(path, folders):
    """Writes the page.

    Args:
      path: of the HTML file, which appears whole or not at all.
      folders: of evaluations, several of the same cases: each with scores.csv and, where they are there, views/ and, in
        the run folder above, config.json and history.csv of its stages.

    Raises:
      UserError: a file is missing or holds something else; evaluations have one name, no case in common, or other
        truths; the page cannot be written.
    """
    found = [_load(folder, several=len(folders) > 1) for folder in folders]
    if len({one.name for one in found}) < len(found):
        raise UserError(
            f"{','.join(map(str, folders))}: expected evaluations of runs of different names."
        )
    if not set.intersection(*({row["case"] for row in one.rows} for one in found)):
        raise UserError(
            f"{','.join(map(str, folders))}: no case in common; expected evaluations of the same cases."
        )

    rows = [row for one in found for row in one.rows]
    methods, lasts = (
        [method for one in found for method in one.methods],
        [one.methods[-1] for one in found],
    )
    others = [method for method in methods if method not in lasts]
    colours = dict(zip(lasts + others, itertools.cycle(COLOURS)))
    colours = {method: colours[method] for method in methods}
    pairs = [pair for one in found for pair in zip(one.methods[1:], one.methods)] + list(
        zip(lasts[1:], lasts)
    )
    cases = {
        name: _packed_case(name, found, rows, colours, lasts)
        for name in dict.fromkeys(r["case"] for r in rows)
    }

    figures, structures = [], list(dict.fromkeys(row["structure"] for row in rows))

    def charts(new, kind=""):
        numbers = range(len(figures), len(figures) + len(new))
        figures.extend(new)
        drawn = "".join(
            f'<div class="chart {kind}" data-figure="{number}"></div>' for number in numbers
        )
        return f'<div class="charts">{drawn}</div>' if new else ""

    sections = {
        "Results": _results(rows, pairs, colours),
        "Cases": _cases(rows, colours, lasts[-1], cases),
        "Agreement": _agreement(rows, colours)
        + charts(
            [
                _agreement_chart(rows, structure, colours, lasts, list(cases))
                for structure in structures
            ],
            "wide",
        ),
        "Distributions": charts(
            _boxes(rows, colours, list(cases)), "wide" if len(structures) > 1 else ""
        ),
        "Training": charts(_curves(found, colours)),
        "Configuration": _configuration(found),
    }
    sections = {name: body for name, body in sections.items() if body}
    page = string.Template((PARTS / "template.html").read_text(encoding="utf-8")).substitute(
        title=html.escape("Evaluation of " + ", ".join(one.name for one in found)),
        css=(PARTS / "report.css").read_text(encoding="utf-8"),
        navigation="".join(f'<a href="#{name.lower()}">{name}</a>' for name in sections),
        sections="\n".join(
            f'<section id="{name.lower()}"><h2>{name}</h2>{body}</section>'
            for name, body in sections.items()
        ),
        figures=_json("[" + ",".join(figure.to_json() for figure in figures) + "]"),
        views="\n".join(
            f'<script type="application/json" id="view-{number}">{_json(json.dumps(view))}</script>'
            for number, view in enumerate(cases.values())
            if view
        ),
        plotly=_packed(get_plotlyjs().encode()),
        js=(PARTS / "report.js").read_text(encoding="utf-8"),
    )
    with replacing(path) as partial:
        partial.write_text(page, encoding="utf-8")


def _load(folder, several):
    """`Evaluation` of a folder."""
    folder = pathlib.Path(folder)
    rows, run = report.read(folder), folder.resolve().parent
    if not rows:
        raise UserError(
            f"{folder / 'scores.csv'}: holds no case; expected the results of an evaluation."
        )
    name = run.name if folder.resolve().name == "evaluation" else folder.resolve().name
    prefix = f"{name}: " if several else ""
    rows = [row | {"method": prefix + row["method"]} for row in rows]
    config = runs.load_config(run) if (run / "config.json").exists() else {}
    histories = (
        {file.parent.name: _history(file) for file in sorted(run.glob("*/history.csv"))}
        if config
        else {}
    )
    return Evaluation(name, folder, prefix, rows, config, histories)


def _history(file):
    """{"loss", and where there was one "val_DSC": values, an epoch each} of a history.csv."""
    try:
        with open(file, newline="", encoding="utf-8") as lines:
            epochs = list(csv.DictReader(lines))
        names = [name for name in ("loss", "val_DSC") if name in epochs[0]]
        return {
            name: [math.nan if epoch[name] == "NA" else float(epoch[name]) for epoch in epochs]
            for name in names
        }
    except (IndexError, TypeError, ValueError, csv.Error):
        raise UserError(
            f"{file}: not the history of a training; expected a line an epoch with its loss."
        ) from None


# Sections of the page


def _results(rows, pairs, colours):
    """The headline table: mean, SD and confidence interval of every method and structure, and how methods compare."""
    summary, headings = report.summarize(rows, pairs), report.headings(rows)
    lines = []
    for method, structures in summary["methods"].items():
        for structure, cell in structures.items():
            counts = [_number(cell[count], digits=0) for count in ("n", "n_missed", "n_false")]
            spreads = [report.spread(cell["metrics"][name]) for name in headings]
            means = [f"<td>{mean}<small>{interval}</small></td>" for mean, interval in spreads]
            lines.append(
                _line([_words(method, colours[method]), _words(structure), *counts, *means])
            )
    table = _table(["method", "structure"], ["n", "missed", "false", *headings.values()], lines)
    return table + _notes([*report.NOTES, *report.comparisons(summary)])


def _cases(rows, methods, last, cases):
    """A line a case and structure, first that with the lowest DSC of the `last` method."""
    names, found = report.headings(rows), {}
    for row in rows:
        found.setdefault((row["case"], row["structure"]), {})[row["method"]] = row
    columns = [("DSC_percent", method) for method in methods]
    columns += [(name, last) for name in names if name != "DSC_percent"]
    decisive = columns.index(("DSC_percent", last))
    values = {
        key: [scores.get(m, {}).get(n, math.nan) for n, m in columns]
        for key, scores in found.items()
    }
    lines, numbers = [], {case: number for number, case in enumerate(cases)}
    for case, structure in sorted(
        values, key=lambda key: np.nan_to_num(values[key][decisive], nan=np.inf)
    ):
        attributes, view = "", cases[case]
        if view:
            attributes = f'data-view="{numbers[case]}" data-structure="{view["structures"].index(structure) + 1}"'
        cells = [
            _words(case, button=bool(view)),
            _words(structure),
            *map(_number, values[case, structure]),
        ]
        lines.append(_line(cells, attributes))
    headings = [f"{names[name]}\n{method}" for name, method in columns]
    sortable = f'class="sortable" data-sorted="{2 + decisive}"'
    notes = [
        f"Sorted by the DSC of {last}. A click on a heading sorts by it; a click on a case shows it, if it has a view."
    ]
    return (
        f'<div class="scroll">{_table(["case", "structure"], headings, lines, sortable)}</div>'
        + _notes(notes)
    )


def _agreement(rows, colours):
    """A line a method and structure: how its volumes, or areas, agree with the truth's and repeat within a group."""
    size, title = _size(rows)
    lines = []
    for method, structure in dict.fromkeys((row["method"], row["structure"]) for row in rows):
        chosen = _chosen(rows, method, structure)
        values = [row[size] for row in chosen]
        found = metrics.agreement(values, [row[f"truth_{size}"] for row in chosen])
        repeated = metrics.repeatability(values, [row["group"] or row["case"] for row in chosen])
        cells = [
            _number(found["n"], digits=0),
            *(_number(found[name], digits=4) for name in ("pearson_r", "p")),
        ]
        cells += map(
            _number, [found["bias"], found["limit_low"], found["limit_high"], repeated["mean"]]
        )
        lines.append(_line([_words(method, colours[method]), _words(structure), *cells]))
    headings = [
        "n",
        "Pearson r",
        "p",
        f"bias of the {title}",
        "lower limit",
        "upper limit",
        "SD within a group",
    ]
    notes = [
        "Bland-Altman: bias of prediction - truth and its limits of agreement at 1.96 SD",
        "SD within a group: mean over groups with several scans, such as a patient",
    ]
    return _table(["method", "structure"], headings, lines) + _notes(notes)


def _agreement_chart(rows, structure, colours, shown, cases):
    """Correlation and Bland-Altman plot of one structure; methods that are not `shown` wait in the legend."""
    size, title = _size(rows)
    figure = make_subplots(
        1, 2, subplot_titles=[f"{structure}: correlation", f"{structure}: Bland-Altman"]
    )
    chosen = {method: _chosen(rows, method, structure) for method in colours}
    ends = [
        0,
        max(
            row[name]
            for some in chosen.values()
            for row in some
            for name in (size, f"truth_{size}")
        ),
    ]
    line = {"x": ends, "mode": "lines", "showlegend": False}
    figure.add_scatter(
        y=ends, **line, line={"color": plots.GREY, "width": 1}, hoverinfo="skip", row=1, col=1
    )
    for method, colour in colours.items():
        found, truth = (
            np.array([row[name] for row in chosen[method]]) for name in (size, f"truth_{size}")
        )
        look = {"legendgroup": method, "visible": True if method in shown else "legendonly"}
        points = {"name": method, "mode": "markers", "marker": {"color": colour, "size": 8}} | look
        points |= _told(chosen[method], cases)
        figure.add_scatter(x=truth, y=found, **points, row=1, col=1)
        figure.add_scatter(
            x=(found + truth) / 2, y=found - truth, **points, showlegend=False, row=1, col=2
        )
        agreement = metrics.agreement(found, truth)
        for name, dash in ("bias", "solid"), ("limit_low", "dot"), ("limit_high", "dot"):
            style = {"color": colour, "dash": dash, "width": 1}
            told = f"{name.replace('_', ' ')} of {method}"
            figure.add_scatter(
                y=[agreement[name]] * 2, name=told, line=style, **line, **look, row=1, col=2
            )
    figure.update_xaxes(title=f"truth: {title}", col=1).update_yaxes(
        title=f"prediction: {title}", col=1
    )
    figure.update_xaxes(title=f"mean of both: {title}", col=2).update_yaxes(
        title="prediction - truth", col=2
    )
    return figure.update_layout(LAYOUT)


def _boxes(rows, colours, cases):
    """A box plot a metric, a box a structure and method, with every case as a point."""
    figures = []
    for name, title in report.headings(rows, BOXES).items():
        figure = go.Figure(layout=LAYOUT).update_layout(title=title, boxmode="group")
        figure.update_xaxes(categoryarray=list(dict.fromkeys(row["structure"] for row in rows)))
        for method, colour in colours.items():
            chosen = [
                row
                for row in rows
                if row["method"] == method and math.isfinite(row.get(name, math.nan))
            ]
            values = {"x": [row["structure"] for row in chosen], "y": [row[name] for row in chosen]}
            points = {"boxpoints": "all", "jitter": 0.4, "pointpos": 0, **_told(chosen, cases)}
            figure.add_box(**values, **points, name=method, marker_color=colour)
        figures.append(figure)
    return figures


def _curves(found, colours):
    """Loss and validation DSC of every stage, epoch by epoch; a stage that is a method too has its colour."""
    as_words = lambda name: name.replace("_", " ")
    figures, known = [], {as_words(method): colour for method, colour in colours.items()}
    others = [colour for colour in plots.PALETTE if colour not in known.values()]
    for name, title in ("loss", "loss"), ("val_DSC", "validation DSC"):
        figure = go.Figure(layout=LAYOUT).update_layout(
            title=title, xaxis_title="epoch", colorway=others
        )
        for one in found:
            for stage, history in one.histories.items():
                values, colour = history.get(name, []), known.get(as_words(one.prefix + stage))
                line = {"x": np.arange(1, len(values) + 1), "y": values, "line_color": colour}
                figure.add_scatter(**line, name=one.prefix + as_words(stage))
        figures.append(figure)
    return figures if any(one.histories for one in found) else []


def _configuration(found):
    """config.json of every run side by side: flags, versions, seed, revision; what differs is marked."""
    facts = []
    for one in found:
        config = {
            name: value for name, value in one.config.items() if name not in ("flags", "versions")
        }
        versions = {
            f"{name} version": value for name, value in one.config.get("versions", {}).items()
        }
        facts.append(
            config
            | versions
            | {f"--{name}": value for name, value in one.config.get("flags", {}).items()}
        )
    lines = []
    for name in dict.fromkeys(name for fact in facts for name in fact):
        values = [json.dumps(fact[name]) if name in fact else "" for fact in facts]
        lines.append(
            _line(map(_words, [name, *values]), 'class="differs"' if len(set(values)) > 1 else "")
        )
    table = _table(["", *(one.name for one in found)], [], lines)
    return (
        f"<details><summary>Flags, versions, seed and revision</summary>{table}</details>"
        if lines
        else ""
    )


def _size(rows):
    """(metric, its heading) of the volume, or of the area where cases are 2D."""
    name = report.size_of(rows[0])
    return name, report.headings(rows, [name.rpartition("_")[0]])[name]


def _chosen(rows, method, structure):
    size, _ = _size(rows)
    return [
        row
        for row in rows
        if (row["method"], row["structure"]) == (method, structure) and size in row
    ]


def _told(rows, cases):
    """What the points of a chart say on hover, and the number of the view that a click opens."""
    text = [row["case"] for row in rows]
    return {
        "text": text,
        "customdata": [cases.index(case) for case in text],
        "hovertemplate": "%{text}: %{y:.2f}",
    }


# HTML. Names come from files and flags, so all of them are escaped here.


def _words(text, colour=None, button=False):
    text = html.escape(str(text))
    shown = f"<button>{text}</button>" if button else text
    swatch = f'<i class="swatch" style="background:{colour}"></i>' if colour else ""
    return f'<td class="text" data-value="{text}">{swatch}{shown}</td>'


def _number(value, digits=2):
    """A cell that sorts as a number in JavaScript; NaN is empty there."""
    if math.isnan(value):
        return '<td data-value="">–</td>'
    if math.isinf(value):
        return f'<td data-value="{"-" * (value < 0)}Infinity">{"−" * (value < 0)}∞</td>'
    return f'<td data-value="{value}">{value:.{digits}f}</td>'


def _line(cells, attributes=""):
    return f"<tr {attributes}>{''.join(cells)}</tr>"


def _table(words, numbers, lines, attributes=""):
    """A table of the headings of its columns of words and of numbers; what follows a line break is small print."""
    head = ""
    for kind, headings in ("text", words), ("", numbers):
        for heading in headings:
            first, *rest = (html.escape(part) for part in heading.split("\n"))
            head += f'<th class="{kind}">{first}{"".join(f"<small>{part}</small>" for part in rest)}</th>'
    return (
        f"<table {attributes}><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    )


def _notes(sentences):
    return "".join(f'<p class="note">{html.escape(sentence)}</p>' for sentence in sentences)


def _json(text):
    """JSON in a script element, which no name within it can end."""
    return text.replace("<", "\\u003c")


# Views


def _packed_case(name, found, rows, colours, shown):
    """What report.js shows of a case; None where no evaluation has a view of it.

    Raises:
      UserError: a view cannot be read, or two show other cases.
    """
    files = [(one, one.folder / "views" / f"{name}.npz") for one in found]
    loaded = [(one, file, views.read(file)) for one, file in files if file.exists()]
    if not loaded:
        return None
    _, first_file, first = loaded[0]
    truth, spacing, structures = first["truth"], first["spacing"], first["structures"].tolist()
    methods, distances = [], [np.nan]
    for one, file, view in loaded:
        if any(
            not np.array_equal(view[key], first[key]) for key in ("truth", "spacing", "structures")
        ):
            raise UserError(
                f"{file}: has another truth than {first_file}; expected evaluations of the same cases."
            )
        names = [one.prefix + method for method in view["methods"]]
        if not set(names) <= set(one.methods):
            raise UserError(
                f"{file}: has other methods than scores.csv; give the training command again, which evaluates."
            )
        for i, (method, label) in enumerate(zip(names, view["labels"])):
            ks = range(1, len(structures) + 1) if len(truth) > 1 else ()
            surfaces = [views.surface(label == k, truth == k, spacing) for k in ks]
            distances += [
                distance for surface in surfaces if surface for distance in surface["distances"]
            ]
            methods.append(
                {
                    "name": method,
                    "colour": colours[method],
                    "shown": method in shown,
                    "label": _packed(label),
                    "probability": _packed(_coarse(view["probabilities"][i]))
                    if "probabilities" in view
                    else None,
                    "surfaces": [surface and _packed_surface(surface) for surface in surfaces],
                }
            )
    grey = io.BytesIO()  # slice below slice
    Image.fromarray(first["image"].reshape(-1, truth.shape[2])).save(
        grey, "JPEG", quality=JPEG_QUALITY
    )
    return {
        "name": name,
        "image": base64.b64encode(grey.getvalue()).decode(),
        "shape": truth.shape,
        "size": first["size"].tolist(),
        "spacing": spacing.tolist(),
        "structures": structures,
        "truth": {"colour": plots.TRUTH, "label": _packed(truth)},
        "methods": methods,
        # Colours end where all but a few specks lie.
        "farthest": None
        if np.isnan(distances).all()
        else float(np.nanpercentile(distances, 98)) or 1.0,
        "scores": _scores([row for row in rows if row["case"] == name]),
    }


def _coarse(probability):
    """Probabilities from 0 to 255 in 32 steps, which compress well."""
    return np.rint(np.rint(probability / 255 * 31) / 31 * 255).astype(np.uint8)


def _packed(data):
    """Base64 of compressed bytes, or of an array's."""
    return base64.b64encode(zlib.compress(bytes(data), 9)).decode()


def _packed_surface(surface):
    """A surface as columns of numbers, which are multiples of a unit."""
    packed = {"faces": _packed(surface["faces"].T.astype(np.uint16)), "distances": None}
    for name in "vertices", "distances":
        values = surface[name].T
        if not np.isnan(values).any():
            unit = values.max() / 65535 or 1.0
            packed[name] = {"unit": unit, "data": _packed(np.rint(values / unit).astype(np.uint16))}
    return packed


def _scores(rows):
    """The main scores of a case, a column a method."""
    names, lines = report.headings(rows, BOXES), []
    methods = list(dict.fromkeys(row["method"] for row in rows))
    for structure in dict.fromkeys(row["structure"] for row in rows):
        scores = {row["method"]: row for row in rows if row["structure"] == structure}
        lines.append(_line([_words(structure)]))
        for name, title in names.items():
            lines.append(
                _line(
                    [
                        _words(title),
                        *(
                            _number(scores.get(method, {}).get(name, math.nan))
                            for method in methods
                        ),
                    ]
                )
            )
    return _table([""], methods, lines)
