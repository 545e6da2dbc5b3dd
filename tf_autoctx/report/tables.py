"""Tables of results.

A row is a dict {"system", "method", "case", "group", "structure", **metrics}, one per case, method
and structure, with the scores of `metrics.compare`. On disk it is as many lines of one long table,
which everything else comes from.
"""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import math
import pathlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tf_autoctx import metrics, spreadsheets
from tf_autoctx.errors import UserError
from tf_autoctx.files import replacing
from tf_autoctx.report import calibration

Row = dict[str, Any]
Pairs = Sequence[tuple[str, str]]  # of methods: one, and another to compare it with
Scores = dict[str, dict[str, float]]  # {structure: {case: DSC in percent}} of a method

LABELS = ("system", "method", "case", "group", "structure")
LONG = (*LABELS, "metric", "value")  # columns of the long table
FAILURES = ("case", "reason")  # columns of the table of failures
# The set of tables; the first, which `read` wants, takes its place last.
FILES = ("scores.csv", "cases.csv", "summary.json", calibration.FILE, "failed.csv")
NOTES = (  # below the printed table
    "mean ± SD over the cases where the value is finite; below it the 95 % confidence interval of "
    "the mean",
    "missed: truth without prediction; false: prediction without truth",
)
TESTS = {"cases": "Wilcoxon", "runs": "paired t"}  # {unit: test over it}
TEST_NOTES = (  # below tables of tests
    "p, two-sided: Wilcoxon's signed-rank test over cases, which says nothing of other trainings; "
    "paired t test over runs",
    "Holm: p corrected for all tests of the table",
)
DICE_NOTES = (  # below the table of Dice scores
    "n: cases whose truth has the structure; false: cases whose prediction has it and whose truth "
    "has not",
    "Avg.: mean over the structures of a case, then over cases; in brackets the 95 % interval of "
    "the change",
)


class Test(Protocol):
    """A paired test between two methods, where it is not `over_cases`."""

    @property
    def facts(self) -> dict[str, Any]:
        """{name in summary.json: what is needed to make the test again}."""

    def __call__(self, new: Mapping[str, float], old: Mapping[str, float]) -> dict[str, Any]:
        """{case: value} of two methods -> a dict of the names of `over_cases`."""


# The scores of a case


def scores(
    prediction: np.ndarray,
    truth: np.ndarray,
    spacing: Sequence[float] | None,
    labels: Mapping[int, str],
    measure: Callable[[np.ndarray, np.ndarray, Sequence[float]], dict[str, float]] | None = None,
    tolerance: float | None = None,
    regions: metrics.Regions = metrics.NO_REGIONS,
) -> list[Row]:
    """Scores of every structure of a case: {"structure", **`metrics.compare`, **`measure`} each.

    A structure that the truth lacks has no overlap and no distance: a 100 % for finding nothing
    would flatter the mean, a 0 % for a stray voxel would weigh as much as an organ that was missed.
    Where nothing was predicted either, it has no scores at all. Where something was, its volume
    stays, everything else is NaN, and the tables count it as false.

    Args:
      prediction, truth: integer labels of equal shape, (depth, height, width) or (height, width).
      spacing: (z, y, x) or (y, x) in mm; None measures in pixels.
      labels: {label value: name}.
      measure: (mask, true mask, spacing) -> further {metric: value}, where there is a spacing.
      tolerance: of the surface Dice, mm, see `metrics.compare`.
      regions: those among the structures, see `metrics.mask_of`.
    """
    rows = []
    for value, name in labels.items():
        mask, true_mask = (metrics.mask_of(label, value, regions) for label in (prediction, truth))
        if not true_mask.any() and not mask.any():
            continue
        score = metrics.compare(mask, true_mask, spacing, tolerance)
        if measure and spacing is not None:
            score |= measure(mask, true_mask, spacing)
        if not true_mask.any():
            score = {
                name: score[name] if metrics.column(name).metric.is_size else np.nan
                for name in score
            }
        rows.append({"structure": name, **score})
    return rows


# Files


def write(
    directory: str | pathlib.Path,
    rows: Sequence[Row],
    pairs: Pairs | None = None,
    failures: Mapping[str, str] | None = None,
    curves: calibration.Curves | None = None,
    test: Test | None = None,
) -> None:
    """Writes the rows of an evaluation into a folder, which is created.

    `scores.csv` is the long table (a line per row and metric, infinity as inf); from it come
    `cases.csv` (a line per row) and `summary.json` (of `summarize`, null where not finite, and the
    facts of the test). These, `calibration.csv` and `failed.csv` are replaced together: the old
    ones go before the first new one takes its place, so that none of them ever stands beside one of
    another evaluation. Where every case failed, there is `failed.csv` alone.

    Args:
      directory: path.
      rows, pairs, test: see `summarize`.
      failures: {case that is not among the rows: reason}; None: no `failed.csv`.
      curves: of `calibration`; None or empty: no `calibration.csv`.

    Raises:
      ValueError: two rows have the same method, structure and case.
      UserError: the folder cannot be written.
    """
    summary = _finite(summarize(rows, pairs, test)) | (test.facts if test else {})
    text = json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False)
    directory = pathlib.Path(directory)
    long = [
        {label: row[label] for label in LABELS} | {"metric": metric, "value": value}
        for row in rows
        for metric, value in row.items()
        if metric not in LABELS
    ]
    failed = [dict(zip(FAILURES, failure)) for failure in sorted((failures or {}).items())]
    names = [name for name in FILES[:3] if rows or failures is None]
    names += [calibration.FILE] * bool(curves) + ["failed.csv"] * (failures is not None)
    with contextlib.ExitStack() as places:
        # What is entered first takes its place last.
        new = {name: places.enter_context(replacing(directory / name)) for name in names}
        if failures is not None:
            spreadsheets.write_lines(new["failed.csv"], failed, FAILURES)
        if curves:
            columns = calibration.COLUMNS
            spreadsheets.write_lines(new[calibration.FILE], calibration.lines(curves), columns)
        if "scores.csv" in new:
            spreadsheets.write_lines(new["scores.csv"], long, LONG)
            spreadsheets.write_lines(new["cases.csv"], rows, (*LABELS, *_metric_names(rows)))
            new["summary.json"].write_text(text + "\n", "utf-8", "backslashreplace")
        for name in FILES:
            (directory / name).unlink(missing_ok=True)


def read(directory: str | pathlib.Path) -> list[Row]:
    """The rows of `scores.csv`, as `write` was given them, its escapes undone.

    Raises:
      UserError: there is no such file in the folder, or it holds something else.
    """
    path = pathlib.Path(directory) / "scores.csv"
    rows: dict[tuple[str, str, str], Row] = {}
    for number, line in _lines(path):
        where = f"{path}, line {number}"
        if None in line or None in line.values():
            raise UserError(f"{where}: has not one value per column; expected {len(LONG)}.")
        line = {column: spreadsheets.unescaped(cell) for column, cell in line.items()}
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


def _lines(path: pathlib.Path) -> list[tuple[int, dict[str, str]]]:
    """[(number of the line, {column: text})] of a long table."""
    try:
        # Spreadsheets write a mark at the beginning.
        with open(path, newline="", encoding="utf-8-sig") as file:
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
    return lines


# Evaluations side by side


def require_same_truth(evaluations: Mapping[str, Sequence[Row]]) -> None:
    """Checks that evaluations can be compared.

    Args:
      evaluations: {folder: rows}, two or more.

    Raises:
      UserError: two have no case or no structure in common, or other truths of a case.
    """
    for (old, before), (new, after) in itertools.combinations(evaluations.items(), 2):
        known, having = (
            {
                (row["structure"], row["case"]): row
                for row in rows
                if math.isfinite(row["DSC_percent"])
            }
            for rows in (before, after)
        )
        both = [key for key in known if key in having]
        if not both:
            raise UserError(f"{old}, {new}: {_nothing_in_common(before, after)}.")
        for key in both:
            _require_same_sizes((old, known[key]), (new, having[key]))


def _require_same_sizes(old: tuple[str, Row], new: tuple[str, Row]) -> None:
    """Raises a `UserError` where two rows (folder, row) are of other truths."""
    (before, known), (after, row) = old, new
    for name in known:
        if name not in row or not metrics.column(name).of_truth:
            continue
        if not np.isclose(known[name], row[name], 1e-3, equal_nan=True):
            raise UserError(
                f"{after}, {row['case']}, {row['structure']}: {name} is {row[name]:.6g}, in "
                f"{before} {known[name]:.6g}; expected evaluations against the same ground truth."
            )


def _nothing_in_common(before: Sequence[Row], after: Sequence[Row]) -> str:
    """What sets apart evaluations of other cases, or of structures of other names."""
    if not {row["case"] for row in before} & {row["case"] for row in after}:
        return "no case in common; expected evaluations of the same cases"
    names = [list(dict.fromkeys(row["structure"] for row in rows)) for rows in (before, after)]
    if set(names[0]) & set(names[1]):
        return "no structure of a case in common; expected evaluations of the same cases"
    old, new = (", ".join(of_rows) for of_rows in names)
    return (
        f"the structures are {old} and {new}; expected the same names, see `names` of the score "
        "command"
    )


# What the rows say together


def over_cases(new: Mapping[str, float], old: Mapping[str, float]) -> dict[str, Any]:
    """A test between two methods over the cases {case: value} of both, however many trainings they
    are of: {"unit": "cases", "runs": 1, **`metrics.paired`}."""
    both = [case for case in new if case in old]
    values = [[of[case] for case in both] for of in (new, old)]
    return {"unit": "cases", "runs": 1, **metrics.paired(*values)}


def summarize(
    rows: Sequence[Row], pairs: Pairs | None = None, test: Test | None = None
) -> dict[str, Any]:
    """What the rows say together.

    Args:
      rows: see above.
      pairs: [(method, another to compare it with)]; None compares each method with the one before
        it.
      test: by which they are compared; None: `over_cases`.

    Returns:
      {"methods": {method: {structure: {"n" cases, "n_missed" (truth without prediction), "n_false"
      (prediction without truth), "metrics": {metric: `metrics.summarize`}}}},
      "paired": [{"method", "against", "structure", "metrics": {metric: `over_cases`, or another
      test}}]}, methods and structures in the order of the rows.

    Raises:
      ValueError: two rows have the same method, structure and case.
    """
    methods, names = _by_method(rows), _metric_names(rows)
    if pairs is None:
        pairs = list(zip(list(methods)[1:], methods))
    return {
        "methods": {
            method: {
                structure: _summary(list(cases.values()), names)
                for structure, cases in structures.items()
            }
            for method, structures in methods.items()
        },
        "paired": paired(rows, pairs, test),
    }


def paired(rows: Sequence[Row], pairs: Pairs, test: Test | None = None) -> list[dict[str, Any]]:
    """What `summarize` says of pairs of methods."""
    methods, names = _by_method(rows), _metric_names(rows)
    return [
        {
            "method": after,
            "against": before,
            "structure": structure,
            "metrics": {
                name: (test or over_cases)(_values(cases, name), _values(others, name))
                for name in names
            },
        }
        for after, before in pairs
        for structure, cases in methods[after].items()
        for others in [methods[before].get(structure, {})]
    ]


def _summary(rows: Sequence[Row], names: Sequence[str]) -> dict[str, Any]:
    """What `summarize` says of the rows of one method and structure."""
    sizes = [_sizes(row) for row in rows]
    return {
        "n": len(rows),
        "n_missed": sum(truth > 0 and size == 0 for size, truth in sizes),
        "n_false": _n_false(rows),
        "metrics": {
            name: metrics.summarize([row[name] for row in rows if name in row]) for name in names
        },
    }


def _values(cases: Mapping[str, Row], name: str) -> dict[str, float]:
    """{case: a metric} of those of {case: row} that have it."""
    return {case: row[name] for case, row in cases.items() if name in row}


# As text


def headings(rows: Sequence[Row], columns: Collection[str] | None = None) -> dict[str, str]:
    """{column of the rows: what stands above it}; for `columns` see `table`."""
    columns = metrics.shown("table") if columns is None else columns
    known = [metrics.column(name) for name in _metric_names(rows)]
    return {
        column.name: column.title
        for column in known
        if column.metric.name in columns and not column.of_truth
    }


def table(
    rows: Sequence[Row],
    columns: Collection[str] | None = None,
    pairs: Pairs | None = None,
    test: Test | None = None,
) -> str:
    """The results as plain text.

    Mean and SD per method, the confidence interval on the line below, and for every pair of methods
    a line that compares their DSC, if it is a column.

    Args:
      rows, pairs, test: see `summarize`.
      columns: names of metrics; None: those that are shown in a table, which fit into 150 columns
        of text.

    Raises:
      ValueError: two rows have the same method, structure and case.
    """
    columns = metrics.shown("table") if columns is None else columns
    summary = summarize(rows, pairs, test)
    several = len({row["structure"] for row in rows}) > 1
    shown = headings(rows, columns)
    header = ["method", *["structure"] * several, "n", "missed", "false"]
    lines = [header + list(shown.values())]
    for method, structures in summary["methods"].items():
        for structure, cell in structures.items():
            spreads = [spread(cell["metrics"][name]) for name in shown]
            counts = [str(cell[count]) for count in ("n", "n_missed", "n_false")]
            means, intervals = zip(*spreads)
            lines += [
                [method, *[structure] * several, *counts, *means],
                [*[""] * len(header), *intervals],
            ]
    notes = [*NOTES, *(comparisons(summary) if "DSC" in columns else [])]
    return "\n".join([aligned(lines, words=1 + several), *notes])


def aligned(lines: Sequence[Sequence[str]], words: int = 1) -> str:
    """Lines of cells as plain text, the first between rules.

    Args:
      lines: each of as many cells as the first, or a heading of one cell, which is as wide as it
        likes.
      words: how many columns are flush left; the others are flush right.
    """
    whole = [line for line in lines if len(line) > 1]
    widths = [max(map(len, column)) for column in zip(*whole)]
    text = []
    for line in lines:
        cells = [
            cell.ljust(width) if number < words else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(line, widths))
        ]
        text.append("  ".join(cells).rstrip())
    rule = "-" * max(map(len, text))
    return "\n".join([text[0], rule, *text[1:], rule])


def p_value(p: float) -> str:
    """A p value in four digits."""
    return "<0.0001" if p < 1e-4 else f"{p:.4f}"


def p_is(p: float) -> str:
    """ "p = 0.0132" or "p < 0.0001" of a p value."""
    text = p_value(p)
    return f"p < {text[1:]}" if text.startswith("<") else f"p = {text}"


def spread(values: Mapping[str, float]) -> tuple[str, str]:
    """("mean ± SD", "[interval]") of a `metrics.summarize`.

    One case has a value but no spread, none has neither.
    """
    forms = ("-", "{mean:.2f}", "{mean:.2f} ± {sd:.2f}")
    mean = forms[min(int(values["n"]), 2)].format_map(values)
    interval = "[{ci_low:.2f}, {ci_high:.2f}]".format_map(values) if values["n"] > 1 else ""
    return mean, interval


def counted(test: Mapping[str, Any]) -> str:
    """What a test is over: "5 runs", "12 cases", or "36 cases of 3 runs"."""
    n, unit, runs = test["n"], test["unit"], test["runs"]
    of_runs = f" of {runs} runs" if unit == "cases" and runs > 1 else ""
    return f"{n} {unit[:-1] if n == 1 else unit}{of_runs}"


def change(test: Mapping[str, Any], decimals: int = 2) -> tuple[str, str]:
    """("+mean difference", "[interval]") of a test that has a pair."""
    values = [f"{test[name]:+.{decimals}f}" for name in ("mean_difference", "ci_low", "ci_high")]
    return values[0], f"[{values[1]}, {values[2]}]"


def comparisons(summary: Mapping[str, Any]) -> list[str]:
    """Sentences that compare the DSC of two methods, one for each of "paired" of a `summarize`."""
    several = len({name for structures in summary["methods"].values() for name in structures}) > 1
    text = []
    for pair in summary["paired"]:
        dsc = pair["metrics"]["DSC_percent"]
        where = f", {pair['structure']}" if several else ""
        result = "no case in common"
        if dsc["n"]:
            difference, interval = change(dsc)
            over = f"{TESTS[dsc['unit']]} over {counted(dsc)}"
            result = f"DSC {difference} % {interval}, {p_is(dsc['p'])} ({over})"
        text.append(f"{pair['method']} against {pair['against']}{where}: {result}")
    return text


# The table of Dice scores


def dice_table(rows: Sequence[Row], test: Test | None = None) -> str:
    """The Dice scores as plain text, a column per structure, within 150 columns for seven of them.

    A block per method has mean, SD, minimum and maximum in percent over the n cases where the score
    is finite, and how many times the structure was predicted where the truth has none. Avg. is the
    mean over the structures of a case, and its statistics are over cases. Below, every method is
    compared with every method before it on the cases of both, Avg. on the structures of both; p is
    corrected by Holm for all of these tests.

    Args:
      rows, test: see `summarize`.

    Raises:
      ValueError: two rows have the same method, structure and case.
    """
    methods = _by_method(rows)
    structures = list(dict.fromkeys(row["structure"] for row in rows))
    dice = {method: _dice(cases, structures) for method, cases in methods.items()}
    # The first column is as wide as its heading and the indent of what is below.
    lines = [["Dice (%)  ", *structures, "Avg."]]
    for method, scores in dice.items():
        false = [_n_false(methods[method].get(name, {}).values()) for name in structures]
        lines += [[method], *_dice_lines(scores, false)]
    pairs = [(new, old) for i, new in enumerate(dice) for old in list(dice)[:i]]
    tests = [_dice_tests(dice[new], dice[old], test) for new, old in pairs]
    corrected = metrics.holm([one["p"] for of_pair in tests for one in of_pair])
    by_pair = corrected.reshape(len(pairs), len(structures) + 1)
    for (new, old), of_pair, p in zip(pairs, tests, by_pair):
        lines += [[f"{new} against {old}: {_average(of_pair[-1])}"], *_dice_changes(of_pair, p)]
    notes = [*DICE_NOTES, *(TEST_NOTES if pairs else ())]
    return "\n".join([aligned(lines), *notes])


def _dice(cases: Mapping[str, Mapping[str, Row]], structures: Sequence[str]) -> Scores:
    """Scores of a method from its rows {structure: {case: row}}, where they are finite."""
    return {
        name: {
            case: row["DSC_percent"]
            for case, row in cases.get(name, {}).items()
            if math.isfinite(row["DSC_percent"])
        }
        for name in structures
    }


def _dice_lines(scores: Scores, false: Sequence[int]) -> list[list[str]]:
    """Lines of a method: statistics of every structure and of Avg., and the counts."""
    values = [metrics.summarize(list(cases.values())) for cases in _with_average(scores)]
    lines = [
        [title, *("-" if math.isnan(v[name]) else f"{v[name]:.2f}" for v in values)]
        for title, name in (("  mean", "mean"), ("  SD", "sd"), ("  min", "min"), ("  max", "max"))
    ]
    return [*lines, ["  n", *(str(v["n"]) for v in values)], ["  false", *map(str, false), ""]]


def _dice_tests(new: Scores, old: Scores, test: Test | None) -> list[dict[str, Any]]:
    """Tests of every structure and, last, of Avg.; p is NaN where one is over another unit."""
    shared = {name: [case for case in new[name] if case in old[name]] for name in new}
    sides = [
        _with_average({name: {case: side[name][case] for case in shared[name]} for name in side})
        for side in (new, old)
    ]
    tests = [(test or over_cases)(a, b) for a, b in zip(*sides)]
    unit = tests[-1]["unit"]  # the one that is told
    return [one if one["unit"] == unit else one | {"p": math.nan} for one in tests]


def _average(test: Mapping[str, Any]) -> str:
    """How the Avg. of two methods differs."""
    if not test["n"]:
        return "no case in common"
    difference, interval = change(test)
    return f"Avg. {difference} % {interval}, {TESTS[test['unit']]} over {counted(test)}"


def _dice_changes(tests: Sequence[Mapping[str, Any]], holm: npt.ArrayLike) -> list[list[str]]:
    """Lines of the change of every structure, its p and the corrected one."""
    own = [test["p"] for test in tests]
    return [
        ["  change", *(change(test)[0] if test["n"] else "-" for test in tests)],
        *(
            [name, *("-" if math.isnan(p) else p_value(p) for p in values)]
            for name, values in (("  p", own), ("  Holm", np.asarray(holm)))
        ),
    ]


def _with_average(scores: Scores) -> list[dict[str, float]]:
    """{case: percent} of every structure, and last of the mean over the structures of a case."""
    of_case: dict[str, list[float]] = {}
    for cases in scores.values():
        for case, value in cases.items():
            of_case.setdefault(case, []).append(value)
    return [*scores.values(), {case: float(np.mean(values)) for case, values in of_case.items()}]


# Rows


def _by_method(rows: Iterable[Row]) -> dict[str, dict[str, dict[str, Row]]]:
    """{method: {structure: {case: row}}} in the order of the rows."""
    methods: dict[str, dict[str, dict[str, Row]]] = {}
    for row in rows:
        cases = methods.setdefault(row["method"], {}).setdefault(row["structure"], {})
        if row["case"] in cases:
            raise ValueError(
                f"two rows for {row['method']}, {row['structure']}, {row['case']}; expected one."
            )
        cases[row["case"]] = row
    return methods


def _n_false(rows: Iterable[Row]) -> int:
    """How many of the rows are of a prediction without truth."""
    return sum(truth == 0 and size > 0 for size, truth in map(_sizes, rows))


def _metric_names(rows: Iterable[Row]) -> list[str]:
    names = dict.fromkeys(name for row in rows for name in row)
    return [name for name in names if name not in LABELS]


def _sizes(row: Row) -> tuple[float, float]:
    """Size of the prediction and of the truth."""
    size = metrics.size_of(row)
    return row[size.name], row[size.truth]


def _finite(value: Any) -> Any:
    """The same nested dicts and lists with None in place of every NaN and infinity."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
