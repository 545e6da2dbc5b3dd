"""Held-out cases on their original grid: scores, the table, and a picture a case."""

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from tf_autoctx import metrics, report
from tf_autoctx.data import datasets, images
from tf_autoctx.errors import UserError


def held_out(cases, foreground, labels):
    """The cases to score: test cases with a label; where there is none, the validation cases, with a warning.

    Each is read once, so that a bad file is known before training and not after it.

    Raises:
      UserError: there are neither; see `datasets.read_case`.
    """
    test = [case for case in cases.test if case.label]
    if len(test) < len(cases.test):
        logging.warning(
            "%d of %d test images have no label and are not scored.", len(cases.test) - len(test), len(cases.test)
        )
    if not test and cases.validation:
        logging.warning(
            "No test case has a label: the validation cases, which chose the checkpoints, are scored instead."
        )
        test = list(cases.validation)
    if not test:
        raise UserError(f"{cases.name}: neither a test case with a label nor a validation case; expected one to score.")
    for case in test:
        datasets.read_case(case, foreground, labels)
    return test


def evaluate(cases, answers, directory, structure, foreground, labels):
    """Scores the levels of a cascade; writes cases.csv, summary.json and a picture a case; prints the table.

    Args:
      cases: `datasets.Case`s with labels.
      answers: raw voxels (1, depth, height, width, 1) -> list of {"label": (1, depth, height, width, 1)}, one a level.
      directory: of the evaluation.
      structure: name of the object, for the rows.
      foreground, labels: see `datasets.read_case`.

    Returns:
      Rows of `report`.
    """
    levels, progress = {}, keras.utils.Progbar(len(cases), unit_name="case")
    run = tf.function(answers, input_signature=[tf.TensorSpec((None, None, None, None, 1))])
    for case in cases:
        image, truth = datasets.read_case(case, foreground, labels)
        voxels, spacing = images.array(image).astype(np.float32), images.spacing(image)
        predictions = [answer["label"][0, ..., 0].numpy() for answer in run(voxels[None, ..., None])]
        for level, prediction in enumerate(predictions, start=1):
            about = {"method": f"level {level}", "case": case.name, "group": case.group, "structure": structure}
            levels.setdefault(level, []).append(about | metrics.compare(prediction, truth, spacing))
        report.picture(directory / f"{case.name}.png", voxels, predictions[-1], truth, spacing, case.name)
        progress.add(1)
    rows = [row for level in levels.values() for row in level]
    report.write(rows, directory)
    print(report.table(rows))
    return rows
