"""Held-out cases on their original grid: scores, the table, a picture and a view a case."""

import keras
import numpy as np
from absl import logging

from tf_autoctx import metrics, plots, report, views
from tf_autoctx.data import images
from tf_autoctx.errors import UserError
from tf_autoctx.systems import caching


def held_out(cases, read):
    """The cases to score: test cases with a label; where there is none, the validation cases, with a warning.

    Each is read once, so that a bad file is known before training and not after it.

    Args:
      cases: `datasets.Dataset`.
      read: `datasets.Case` -> (sitk.Image, labels or None), as `datasets.read_case` does.

    Raises:
      UserError: there are neither; whatever `read` raises.
    """
    test = [case for case in cases.test if case.label]
    if len(test) < len(cases.test):
        logging.warning(
            "%d of %d test images have no label and are not scored.",
            len(cases.test) - len(test),
            len(cases.test),
        )
    if not test and cases.validation:
        logging.warning(
            "No test case has a label: the validation cases, which chose the checkpoints, are scored instead."
        )
        test = list(cases.validation)
    if not test:
        raise UserError(
            f"{cases.name}: neither a test case with a label nor a validation case; expected one to score."
        )
    for case in test:
        read(case)
    return test


def scores(prediction, truth, spacing, structures, measure=None):
    """Scores of every structure of a case: a list of {"structure", **`metrics.compare`, **`measure`}.

    A structure that the truth lacks has no overlap and no distance: a 100 % for finding nothing would flatter the mean,
    a 0 % for a stray voxel would weigh as much as an organ that was missed. Where nothing was predicted either, it has
    no scores at all. Where something was, its volume stays, everything else is NaN, and `report` counts it as false.

    Args:
      prediction, truth: integer labels of equal shape, (depth, height, width) or (height, width).
      spacing: (z, y, x) or (y, x) in mm; None measures in pixels.
      structures: {name: label value}.
      measure: further scores of (mask, true mask, spacing), as `biometry.compare` gives them; only where there are mm.
    """
    found = []
    for name, value in structures.items():
        mask, true_mask = prediction == value, truth == value
        if true_mask.any() or mask.any():
            score = metrics.compare(mask, true_mask, spacing)
            if measure and spacing is not None:
                score |= measure(mask, true_mask, spacing)
            if not true_mask.any():
                sizes = ("volume_mL", "area_mm2", "area_pixel")
                score = {
                    key: number if key.endswith(sizes) else np.nan for key, number in score.items()
                }
            found.append({"structure": name, **score})
    return found


def evaluate(
    system,
    cases,
    segment,
    directory,
    structures,
    read,
    trained=(),
    window=(-np.inf, np.inf),
    measure=None,
):
    """Scores methods on cases and prints the table.

    Writes the tables of `report.write`, a picture a case (last method), and in views/ what `html_report` shows of it.

    What is measured is drawn too, for the cases that have the structure: agreement of the last method with the truth,
    and where groups have several scans, the spread of their volumes or areas (Yang et al. 2019, figures 8 and 9).

    Args:
      system: name of the system, the same in every row.
      cases: `datasets.Case`s with labels.
      segment: raw voxels (depth, height, width), or pixels (height, width), float32 -> {method: {"label": integer
        labels likewise, and where there is one "probability": {structure: 0 to 1, on any grid over the same extent}}}.
      directory: of the evaluation.
      structures: {name: label value}. A structure that a case's truth lacks is left out, see `scores`.
      read: `datasets.Case` -> (sitk.Image, labels), as `datasets.read_case` does.
      trained: spacing of the training cases, see `caching.warn_of_spacing`; empty where it does not matter.
      window: range of intensities that the pictures show.
      measure: see `scores`, for a system of one structure; None draws nothing.

    Returns:
      Rows of `report`: method by method, structure by structure, case by case.

    Raises:
      UserError: whatever `read` raises; the folder cannot be written.
    """
    methods, progress = {}, keras.utils.Progbar(len(cases), unit_name="case")
    for case in cases:
        image, truth = read(case)
        voxels, spacing = (
            images.array(image).astype(np.float32),
            images.millimetres(case.image, image),
        )
        caching.warn_of_spacing(case.image, spacing, trained)
        answers = segment(voxels)
        for method, answer in answers.items():
            prediction = np.asarray(answer["label"])
            for score in scores(prediction, truth, spacing, structures, measure):
                row = {
                    "system": system,
                    "method": method,
                    "case": case.name,
                    "group": case.group,
                    **score,
                }
                methods.setdefault(method, []).append(row)
        shown = np.clip(voxels, *window)
        plots.picture(
            directory / f"{case.name}.png", shown, prediction, truth, spacing, case.name, structures
        )
        view = views.of(shown, truth, answers, spacing, structures)
        views.write(directory / "views" / f"{case.name}.npz", view)
        progress.add(1)
    order = list(structures)
    rows = [
        row
        for found in methods.values()
        for row in sorted(found, key=lambda row: order.index(row["structure"]))
    ]
    report.write(rows, directory)
    print(report.table(rows) if len(structures) == 1 else report.dice_table(rows))
    if measure:
        draw_measurements(methods, directory)
    return rows


def draw_measurements(methods, directory):
    """Prints the errors in mm of {method: rows} and draws agreement and repeatability, see `evaluate`."""
    rows = [row for scored in methods.values() for row in scored]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    if errors := [name.removesuffix("_mm") for name in columns if name.endswith("_error_mm")]:
        print("\n" + report.table(rows, errors))
    last = list(methods)[-1]
    for name in (name for name in columns if f"truth_{name}" in columns):
        # Every method has a row for every case that has the structure.
        found = {
            m: [row for row in scored if row.get(f"truth_{name}", 0) > 0]
            for m, scored in methods.items()
        }
        truth, groups = ([row[key] for row in found[last]] for key in (f"truth_{name}", "group"))
        values = {m: [row[name] for row in scored] for m, scored in found.items()}
        title = "{0[0]} ({0[2]})".format(name.rpartition("_"))
        if np.count_nonzero(np.isfinite(values[last])) > 1:
            plots.agreement(
                directory / f"agreement_{name}.png", values[last], truth, f"{title}, {last}"
            )
        if name.startswith(("volume", "area")) and len(set(groups)) < len(groups):
            path = directory / f"repeatability_{name}.png"
            plots.repeatability(
                path, {"truth": truth, **values}, groups, f"{title} of repeated scans"
            )
