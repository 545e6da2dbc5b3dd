"""Held-out cases on their original grid: scores, the table, a picture and a view per case."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from absl import logging

from tf_autoctx import metrics, progress
from tf_autoctx.data import datasets
from tf_autoctx.data.labels import left_out
from tf_autoctx.errors import Faults, UserError
from tf_autoctx.report import calibration, figures, tables, views
from tf_autoctx.systems.shared import confidence, reading
from tf_autoctx.systems.shared.image_checks import Trained
from tf_autoctx.systems.shared.reading import Read
from tf_autoctx.systems.shared.system import Evaluator

Row = dict[str, Any]


class Measure(Protocol):
    """Scores of a structure beside those of `metrics.compare`, where there are mm."""

    def __call__(
        self, mask: np.ndarray, truth: np.ndarray, spacing: Sequence[float], /
    ) -> dict[str, float]:
        """{metric: value}, each a row of `metrics.METRICS`."""


@dataclasses.dataclass(frozen=True)
class Scoring:
    """How the segmentations of a system are scored and shown.

    Attributes:
      system: its name, the same in every row.
      labels: {label value: name} of the structures. One that a case's truth lacks is left out, see
        `tables.scores`.
      trained: how large the volumes of the training were.
      window: range of intensities that the pictures show.
      measure: further scores, for a system of one structure; None draws nothing.
      tolerance: of the surface Dice, mm, see `metrics.compare`; None: there is none.
      regions: those among the structures, see `metrics.mask_of`.
    """

    system: str
    labels: Mapping[int, str]
    trained: Trained = dataclasses.field(default_factory=Trained)
    window: tuple[float, float] = (-np.inf, np.inf)
    measure: Measure | None = None
    tolerance: float | None = None
    regions: metrics.Regions = dataclasses.field(default_factory=dict)


def scored(cases: datasets.Dataset) -> list[datasets.Case]:
    """The test cases with a label; where there is none, the validation cases."""
    return [case for case in cases.test if case.label] or list(cases.validation)


def held_out(
    cases: datasets.Dataset, read: Read, faults: Faults | None = None, isolated: bool = False
) -> list[datasets.Case]:
    """The cases to score, see `scored`, with a warning where they are the validation cases.

    Each is read once, so that a bad file is known before training and not after it.

    Args:
      cases: of which some are held out.
      read: reads a case.
      faults: takes those of the cases.
      isolated: see `reading.each`.

    Raises:
      UserError: there are neither; whatever `read` raises, unless `faults` takes it.
    """
    unlabelled = len([case for case in cases.test if not case.label])
    if unlabelled:
        logging.warning(
            "%d of %d test images have no label and are not scored.", unlabelled, len(cases.test)
        )
    if unlabelled == len(cases.test) and cases.validation:
        logging.warning(
            "No test case has a label: the validation cases, which chose the checkpoints, are "
            "scored instead."
        )
    test = scored(cases)
    if not test:
        raise UserError(
            f"{cases.name}: neither a test case with a label nor a validation case; expected one "
            "to score."
        )
    for _, outcome in reading.each(test, read, isolated, kept=False):
        with faults.collecting() if faults else contextlib.nullcontext():
            if isinstance(outcome, UserError):
                raise outcome
    return test


def evaluate(
    cases: Sequence[datasets.Case],
    read: Read,
    evaluator: Evaluator,
    scoring: Scoring,
    directory: pathlib.Path,
) -> list[Row]:
    """Scores methods on cases and prints the table.

    Writes the tables of `tables.write`, a picture per case (first channel, last method), and in
    views/ what the report's page shows of it. Methods that give probabilities are told how sure
    they are, and how right they are to be, see `confidence`; that of the last is drawn.

    What is measured is drawn too, for the cases that have the structure: agreement of the last
    method with the truth, and where groups have several scans, the spread of their volumes or areas
    (Yang et al. 2019, figures 8 and 9).

    Args:
      cases: with labels.
      read: see `system.Reader`.
      evaluator: segments them.
      scoring: what is scored.
      directory: of the evaluation.

    Returns:
      Rows of `report.tables`: method by method, structure by structure, case by case.

    Raises:
      UserError: whatever `read` raises; the folder cannot be written.
    """
    by_method: dict[str, list[Row]] = {}
    curves: calibration.Curves = {}
    bar = progress.bar(len(cases), "case", "scored")
    for case in cases:
        scored, of_case = _case(case, read, evaluator, scoring, directory)
        for method, rows in scored.items():
            by_method.setdefault(method, []).extend(rows)
        curves = calibration.joined([curves, of_case])
        bar.add(1)
    order = list(scoring.labels.values())
    rows = [
        row
        for of_method in by_method.values()
        for row in sorted(of_method, key=lambda row: order.index(row["structure"]))
    ]
    tables.write(directory, rows, curves=curves)
    draw_calibration(directory, rows, curves)
    print(tables.table(rows) if len(order) == 1 else tables.dice_table(rows))
    if scoring.measure:
        draw_measurements(directory, by_method)
    return rows


def _case(
    case: datasets.Case,
    read: Read,
    evaluator: Evaluator,
    scoring: Scoring,
    directory: pathlib.Path,
) -> tuple[dict[str, list[Row]], calibration.Curves]:
    """{method: rows} of a case, and its curves; writes its picture and its view."""
    image, label = read(case)
    voxels = image.array.astype(np.float32)
    spacing = image.millimetres
    scoring.trained.warn(case.image, label.shape, spacing)
    segmentations, truth = _counted(evaluator(voxels, spacing), label, scoring.labels)
    counted = left_out(np.ones(label.shape, bool), label, scoring.labels)[0]
    structures = scoring.labels, scoring.regions
    rows: dict[str, list[Row]] = {}
    curves: dict[tuple[str, str], np.ndarray] = {}
    for method, segmentation in segmentations.items():
        prediction = np.asarray(segmentation["label"])
        how = scoring.labels, scoring.measure, scoring.tolerance, scoring.regions
        scored = tables.scores(prediction, truth, spacing, *how)
        sure = confidence.of_case(segmentation, truth, counted, *structures)
        about = {"system": scoring.system, "method": method, "case": case.name}
        rows[method] = [
            {**about, "group": case.group, **score, **confidence.scores(sure, score["structure"])}
            for score in scored
        ]
        curves |= {(method, name): c.bins for name, c in sure.items() if c.bins is not None}
    shown = np.clip(voxels, *scoring.window)
    path = directory / f"{case.name}.png"
    first = shown if shown.ndim == truth.ndim else shown[..., 0]
    figures.picture(path, first, prediction, truth, spacing, case.name, *structures)
    view = views.of(shown, truth, segmentations, spacing, *structures)
    views.write(directory / "views" / f"{case.name}.npz", view)
    return rows, curves


def _counted(
    segmentations: dict[str, dict[str, Any]], truth: np.ndarray, structures: Collection[int]
) -> tuple[dict[str, dict[str, Any]], np.ndarray]:
    """Segmentations and truth with background where the truth is to be ignored."""
    counted = {
        method: {
            **segmentation,
            "label": left_out(np.asarray(segmentation["label"]), truth, structures)[0],
        }
        for method, segmentation in segmentations.items()
    }
    return counted, left_out(truth, truth, structures)[1]


def draw_calibration(
    directory: pathlib.Path, rows: Sequence[Row], curves: calibration.Curves
) -> None:
    """Draws the curves of the last method of some rows, where it has any."""
    path, structures = directory / "calibration.png", dict.fromkeys(r["structure"] for r in rows)
    method = rows[-1]["method"] if rows else ""
    drawn = {name: curves[method, name] for name in structures if (method, name) in curves}
    path.unlink(missing_ok=True)
    if drawn:
        figures.calibration(path, drawn, f"Calibration, {method}")


def draw_measurements(directory: pathlib.Path, by_method: Mapping[str, list[Row]]) -> None:
    """Prints the errors in mm of {method: rows}, and draws what `evaluate` says."""
    rows = [row for scored in by_method.values() for row in scored]
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: metrics.column(name) for name in names}
    measured = metrics.shown("measurements")
    if errors := [c.metric.name for c in columns.values() if c.metric.name in measured]:
        print("\n" + tables.table(rows, errors))
    last = list(by_method)[-1]
    for name, column in columns.items():
        if column.truth not in columns:
            continue
        # Every method has a row for every case that has the structure.
        scored = {
            method: [row for row in of_method if row.get(column.truth, 0) > 0]
            for method, of_method in by_method.items()
        }
        truth, groups = ([row[key] for row in scored[last]] for key in (column.truth, "group"))
        values = {method: [row[name] for row in of_method] for method, of_method in scored.items()}
        if np.count_nonzero(np.isfinite(values[last])) > 1:
            path = directory / f"agreement_{name}.png"
            figures.agreement(path, values[last], truth, f"{column.title}, {last}")
        if column.metric.is_size and len(set(groups)) < len(groups):
            path = directory / f"repeatability_{name}.png"
            spread = {"truth": truth, **values}
            figures.repeatability(path, spread, groups, f"{column.title} of repeated scans")
