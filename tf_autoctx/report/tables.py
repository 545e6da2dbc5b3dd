"""Tables of results.

A row is a dict {"system", "method", "case", "group", "structure", **metrics}, one per case, method and structure, with
the scores of `metrics.compare`. On disk it is as many lines of one long table, which everything else comes from.
"""

import csv
import json
import math
import pathlib

import numpy as np

from tf_autoctx import metrics
from tf_autoctx.errors import UserError
from tf_autoctx.files import replacing

LABELS = ("system", "method", "case", "group", "structure")
SIZES = (
    "volume_mL",
    "volume_pixel",
    "area_pixel",
    "area_mm2",
)  # in 2D some cases have pixels alone
LONG = (*LABELS, "metric", "value")  # columns of the long table
COLUMNS = (
    "DSC",
    "Conf",
    "Jacc",
    "Adb",
    "Hdb",
    "volume_error",
    "area_error",
)  # of the printed table
NOTES = (  # below the printed table
    "mean ± SD over the cases where the value is finite; below it the 95 % confidence interval of the mean",
    "missed: truth without prediction; false: prediction without truth",
)


def write(rows, directory, pairs=None):
    """Writes the long table `scores.csv` (a line per row and metric, infinity as inf), and what comes from it:
    `cases.csv` (a line per row) and `summary.json` (of `summarize`, null where not finite).

    Each appears whole or not at all; the folder is created.

    Raises:
      ValueError: two rows have the same method, structure and case.
      UserError: the folder cannot be written.
    """
    summary = summarize(rows, pairs)
    directory = pathlib.Path(directory)
    long = [
        {label: row[label] for label in LABELS} | {"metric": metric, "value": value}
        for row in rows
        for metric, value in row.items()
        if metric not in LABELS
    ]
    for name, columns, lines in (
        ("scores.csv", LONG, long),
        ("cases.csv", (*LABELS, *_metric_names(rows)), rows),
    ):
        with (
            replacing(directory / name) as path,
            open(path, "w", newline="", encoding="utf-8") as file,
        ):
            table = csv.DictWriter(file, columns, lineterminator="\n")
            table.writeheader()
            table.writerows(lines)
    with replacing(directory / "summary.json") as path:
        text = json.dumps(_finite(summary), indent=2, ensure_ascii=False, allow_nan=False)
        path.write_text(text + "\n", encoding="utf-8")


def read(directory):
    """The rows of `scores.csv`, as `write` was given them.

    Raises:
      UserError: there is no such file in the folder, or it holds something else.
    """
    path = pathlib.Path(directory) / "scores.csv"
    try:
        with open(
            path, newline="", encoding="utf-8-sig"
        ) as file:  # spreadsheets write a mark at the beginning
            table = csv.DictReader(file)
            columns, lines = table.fieldnames or [], [(table.line_num, line) for line in table]
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file; give the command that evaluates again, which writes it."
        ) from None
    except (UnicodeDecodeError, csv.Error):
        raise UserError(
            f"{path}: is not a text file; expected the results of an evaluation."
        ) from None
    if set(columns) != set(LONG):
        raise UserError(
            f"{path}: has the columns {', '.join(columns)}; expected {', '.join(LONG)}."
        )
    rows = {}
    for number, line in lines:
        where = f"{path}, line {number}"
        if None in line or None in line.values():
            raise UserError(f"{where}: has not one value a column; expected {len(LONG)}.")
        metric, text = line.pop("metric"), line.pop("value")
        names = line["method"], line["case"], line["structure"]
        row, about = rows.setdefault(names, dict(line)), ", ".join(names)
        if row | line != row:
            raise UserError(
                f"{where}: {about} has another system or group than above; expected one."
            )
        if metric in row:
            raise UserError(f"{where}: {metric} of {about} a second time; expected one value.")
        try:
            row[metric] = float(text)
        except ValueError:
            raise UserError(
                f"{where}: {metric} of {about} is {text!r}; expected a number."
            ) from None
    for names, row in rows.items():
        try:
            _sizes(row), row["DSC_percent"]
        except KeyError as error:
            told = f"{', '.join(names)} has no {error.args[0]}"
            raise UserError(f"{path}: {told}; expected it among the metrics.") from None
    return list(rows.values())


def summarize(rows, pairs=None):
    """What the rows say together.

    Args:
      rows: see above.
      pairs: [(method, another to compare it with)]; None compares each method with the one before it.

    Returns:
      {"methods": {method: {structure: {"n" cases, "n_missed" (truth without prediction), "n_false" (prediction without
      truth), "metrics": {metric: `metrics.summarize`}}}},
      "paired": [{"method", "against", "structure", "metrics": {metric: `metrics.paired` on the
      cases of both}}]}, methods and structures in the order of the rows.

    Raises:
      ValueError: two rows have the same method, structure and case.
    """
    methods, names = _by_method(rows), _metric_names(rows)
    summary = {"methods": {}, "paired": []}
    for method, structures in methods.items():
        summary["methods"][method] = {}
        for structure, cases in structures.items():
            sizes = [_sizes(row) for row in cases.values()]
            summary["methods"][method][structure] = {
                "n": len(cases),
                "n_missed": sum(truth > 0 and size == 0 for size, truth in sizes),
                "n_false": _n_false(cases),
                "metrics": {
                    m: metrics.summarize([row[m] for row in cases.values() if m in row])
                    for m in names
                },
            }
    for after, before in pairs if pairs is not None else zip(list(methods)[1:], methods):
        for structure in methods[after]:
            new, old = methods[after][structure], methods[before].get(structure, {})
            both = [(new[case], old[case]) for case in new if case in old]
            tests = {}
            for m in names:
                values = [(a[m], b[m]) for a, b in both if m in a and m in b]
                tests[m] = metrics.paired([a for a, _ in values], [b for _, b in values])
            summary["paired"].append(
                {"method": after, "against": before, "structure": structure, "metrics": tests}
            )
    return summary


def table(rows, columns=COLUMNS, pairs=None):
    """The results as plain text: mean and SD per method, the confidence interval on the line below, and for every pair of
    methods a line that compares their DSC, if it is a column.

    Args:
      rows, pairs: see `summarize`.
      columns: metrics without their units; the default fits into 150 columns.

    Raises:
      ValueError: two rows have the same method, structure and case.
    """
    summary = summarize(rows, pairs)
    several = len({row["structure"] for row in rows}) > 1
    shown = headings(rows, columns)
    header = ["method", *["structure"] * several, "n", "missed", "false"]
    lines = [header + list(shown.values())]
    for method, structures in summary["methods"].items():
        for structure, cell in structures.items():
            values = [cell["metrics"][name] for name in shown]
            counts = [str(cell[count]) for count in ("n", "n_missed", "n_false")]
            means, intervals = zip(*map(spread, values))
            lines += [
                [method, *[structure] * several, *counts, *means],
                [*[""] * len(header), *intervals],
            ]

    text = aligned(lines, words=1 + several)
    return "\n".join([text, *NOTES, *(comparisons(summary) if "DSC" in columns else [])])


def headings(rows, columns=COLUMNS):
    """{metric: what stands above its column} of the rows' metrics, `columns` without their units."""
    found = [name for name in _metric_names(rows) if name.rpartition("_")[0] in columns]
    titles = ["{0[0]} ({0[2]})".format(name.rpartition("_")) for name in found]
    return dict(zip(found, (title.replace("_", " ").replace("percent", "%") for title in titles)))


def aligned(lines, words=1):
    """Lines of cells as plain text: the first between rules, the first `words` columns flush left, the others right."""
    widths = [max(map(len, column)) for column in zip(*lines)]
    text = []
    for line in lines:
        cells = [
            cell.ljust(w) if i < words else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(line, widths))
        ]
        text.append("  ".join(cells).rstrip())
    rule = "-" * max(map(len, text))
    return "\n".join([text[0], rule, *text[1:], rule])


def p_value(p):
    """A p value in four digits."""
    return "<0.0001" if p < 1e-4 else f"{p:.4f}"


def spread(values):
    """("mean ± SD", "[interval]") of a `metrics.summarize`; one case has a value but no spread, none has neither."""
    mean = ("-", "{mean:.2f}", "{mean:.2f} ± {sd:.2f}")[min(values["n"], 2)].format_map(values)
    return mean, "[{ci_low:.2f}, {ci_high:.2f}]".format_map(values) if values["n"] > 1 else ""


def comparisons(summary):
    """Sentences that compare the DSC of two methods, one for each of "paired" of a `summarize`."""
    several = len({name for structures in summary["methods"].values() for name in structures}) > 1
    text = []
    for pair in summary["paired"]:
        dsc = pair["metrics"]["DSC_percent"]
        where = f", {pair['structure']}" if several else ""
        if dsc["n"]:
            p = "p < 0.0001" if dsc["p"] < 1e-4 else f"p = {dsc['p']:.4f}"
            result = (
                "DSC {mean_difference:+.2f} % [{ci_low:+.2f}, {ci_high:+.2f}], ".format_map(dsc) + p
            )
            result += f" (Wilcoxon, {dsc['n']} pairs)"
        else:
            result = "no case in common"
        text.append(f"{pair['method']} against {pair['against']}{where}: {result}")
    return text


def dice_table(rows):
    """The Dice scores as plain text, a column per structure, within 150 columns for seven of them.

    A block per method has mean, SD, minimum and maximum in percent over the n cases where the score is finite, and how
    many times the structure was predicted where the truth has none. Avg. is the mean over the structures of a case, and
    its statistics are over cases. Below, every method is compared with every method before it on the cases of both
    (Wilcoxon signed-rank test), Avg. on the structures of both.

    Raises:
      ValueError: two rows have the same method, structure and case.
    """
    methods = _by_method(rows)
    structures = list(dict.fromkeys(row["structure"] for row in rows))
    dice = {  # {method: {structure: {case: percent}}}
        method: {
            name: {
                case: row["DSC_percent"]
                for case, row in found.get(name, {}).items()
                if _defined(row)
            }
            for name in structures
        }
        for method, found in methods.items()
    }

    # Lines of one word are headings.
    lines = [["Dice (%)", *structures, "Avg."]]
    for method, columns in dice.items():
        values = [metrics.summarize(list(cases.values())) for cases in _with_average(columns)]
        lines.append([method])
        for name in ("mean", "sd", "min", "max"):
            lines.append(
                [
                    name.replace("sd", "SD"),
                    *("-" if np.isnan(v[name]) else f"{v[name]:.2f}" for v in values),
                ]
            )
        lines.append(["n", *(str(v["n"]) for v in values)])
        lines.append(
            ["false", *(str(_n_false(methods[method].get(name, {}))) for name in structures), ""]
        )
    pairs = [(new, old) for i, new in enumerate(dice) for old in list(dice)[:i]]
    if pairs:
        lines.append(["Wilcoxon signed-rank test, two-sided"])
    for new, old in pairs:
        shared = {
            name: [case for case in dice[new][name] if case in dice[old][name]]
            for name in structures
        }
        sides = [
            _with_average(
                {
                    name: {case: dice[side][name][case] for case in shared[name]}
                    for name in structures
                }
            )
            for side in (new, old)
        ]
        tests = [metrics.paired(list(a.values()), list(b.values())) for a, b in zip(*sides)]
        average = (
            "Avg. {mean_difference:+.2f} % [{ci_low:+.2f}, {ci_high:+.2f}], {n} pairs".format_map(
                tests[-1]
            )
        )
        lines.append([f"{new} against {old}: {average if tests[-1]['n'] else 'no case in common'}"])
        lines.append(
            ["change", *(f"{t['mean_difference']:+.2f}" if t["n"] else "-" for t in tests)]
        )
        lines.append(
            [
                "p",
                *(
                    ("<0.0001" if t["p"] < 1e-4 else f"{t['p']:.4f}") if t["n"] else "-"
                    for t in tests
                ),
            ]
        )

    columns = list(zip(*(line for line in lines if len(line) > 1)))
    widths = [max(map(len, column)) for column in columns]
    widths[0] += 2  # the indent below a heading
    text = []
    for line in lines:
        first = line[0] if line is lines[0] or len(line) == 1 else f"  {line[0]}"
        cells = [word.rjust(width) for word, width in zip(line[1:], widths[1:])]
        text.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    rule = "-" * max(map(len, text))
    return "\n".join(
        [
            text[0],
            rule,
            *text[1:],
            rule,
            "n: cases whose truth has the structure; false: cases whose prediction has it and whose truth has not",
            "Avg.: mean over the structures of a case, then over cases; in brackets the 95 % interval of the change",
        ]
    )


def _by_method(rows):
    """{method: {structure: {case: row}}} in the order of the rows."""
    methods = {}
    for row in rows:
        cases = methods.setdefault(row["method"], {}).setdefault(row["structure"], {})
        if row["case"] in cases:
            raise ValueError(
                f"two rows for {row['method']}, {row['structure']}, {row['case']}; expected one."
            )
        cases[row["case"]] = row
    return methods


def _with_average(columns):
    """[{case: percent}] of every structure, and at the end of the mean over the structures that a case has."""
    scores = {}
    for cases in columns.values():
        for case, value in cases.items():
            scores.setdefault(case, []).append(value)
    return [*columns.values(), {case: float(np.mean(values)) for case, values in scores.items()}]


def _defined(row):
    return math.isfinite(row["DSC_percent"])


def _n_false(cases):
    """How many of the rows {case: row} are of a prediction without truth."""
    return sum(truth == 0 and size > 0 for size, truth in map(_sizes, cases.values()))


def _metric_names(rows):
    return [
        name for name in dict.fromkeys(name for row in rows for name in row) if name not in LABELS
    ]


def size_of(row):
    """Name of a row's size, one of `SIZES`; KeyError if it has none."""
    for name in SIZES:
        if name in row:
            return name
    raise KeyError("size")


def _sizes(row):
    """Size of the prediction and of the truth."""
    name = size_of(row)
    return row[name], row[f"truth_{name}"]


def _finite(value):
    """The same nested dicts and lists with None in place of every NaN and infinity."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
