"""Scores a folder of label images against the ground truth of the same file names.

  python eval/score.py --predictions=runs/demo/predictions --labels=data/labels --output=scores
  python eval/score.py --predictions=ours --labels=labels --output=scores --fill_holes

The second scores the predictions as they are and with their holes filled, side by side. Several
cases are scored at a time. Writes scores.csv (a line per method, case and metric; the column system
stays empty), cases.csv and summary.json into the output folder and prints the table. A case that
cannot be scored is left out and listed, with its reason, in failed.csv, and the exit code is 1.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import pathlib
from collections.abc import Mapping, Sequence
from concurrent import futures
from concurrent.futures import process
from typing import Any

from tf_autoctx import configuration, errors
from tf_autoctx.commands import command_line
from tf_autoctx.configuration import field


@dataclasses.dataclass(frozen=True)
class Score:
    """What is scored, and how"""

    predictions: str = field(..., "Folder of label images to score.")
    labels: str = field(..., "Folder of ground-truth label images with the same names.")
    output: str = field(..., "Folder for scores.csv, cases.csv, summary.json and failed.csv.")
    foreground: tuple[int, ...] | None = field(
        None,
        "Label values that make up the object, such as 1,2. Default: every one but 0.",
        least=1,
    )
    largest_component: bool = field(False, "Also score the largest component of every label value.")
    fill_holes: bool = field(False, "Also score the predictions with their holes filled.")
    workers: int | None = field(
        None, "Cases that are scored at a time. Default: one a CPU.", least=1
    )

    def __post_init__(self) -> None:
        configuration.check(self)

    @property
    def steps(self) -> dict[str, bool]:
        """Arguments of `postprocessing.postprocess`; empty for predictions as they are alone."""
        steps = {"largest_component": self.largest_component, "fill_holes": self.fill_holes}
        return {name: wanted for name, wanted in steps.items() if wanted}

    @property
    def methods(self) -> list[str]:
        """Names of what is scored, in the order of `score`."""
        name = pathlib.Path(self.predictions).resolve().name
        return [name, ", ".join([name, *self.steps]).replace("_", " ")] if self.steps else [name]


def score(
    prediction_path: str,
    label_path: str,
    foreground: Sequence[int] | None,
    steps: Mapping[str, bool],
) -> list[dict[str, float]]:
    """`metrics.compare` of two files: of the prediction as it is, and post-processed.

    It runs in a process of its own.

    Args:
      prediction_path, label_path: of label images.
      foreground: label values that make up the object, or None.
      steps: arguments of `postprocessing.postprocess`; without them nothing is post-processed.

    Raises:
      UserError: a file cannot be read; the two do not lie on the same grid.
    """
    import numpy as np

    from tf_autoctx import metrics, postprocessing
    from tf_autoctx.data import images

    image, label = images.read(prediction_path), images.read(label_path)
    images.require_same_grid(prediction_path, image, label_path, label)
    prediction, truth = images.array(image), images.array(label)
    if foreground:
        prediction, truth = (
            np.where(np.isin(voxels, foreground), voxels, 0) for voxels in (prediction, truth)
        )
    predictions = [prediction]
    if steps:
        predictions.append(postprocessing.postprocess(prediction, **steps))
    spacing = images.millimetres(label_path, label)
    return [metrics.compare(prediction, truth, spacing) for prediction in predictions]


def pairs(settings: Score) -> dict[str, tuple[str, str]]:
    """{name of a case: (path of the prediction, path of the label)}.

    Raises:
      UserError: a folder cannot be read, or holds a file that the other does not.
    """
    from tf_autoctx.data import images

    predictions, labels = images.find(settings.predictions), images.find(settings.labels)
    lonely = [path for name, path in predictions.items() if name not in labels]
    lonely += [path for name, path in labels.items() if name not in predictions]
    if lonely:
        raise errors.UserError(
            f"{', '.join(lonely)}: no image of the same name in the other folder; match the two."
        )
    return {name: (path, labels[name]) for name, path in predictions.items()}


def score_all(
    cases: Mapping[str, tuple[str, str]], settings: Score
) -> tuple[dict[str, list[dict[str, float]]], dict[str, str]]:
    """Scores several cases at a time.

    Args:
      cases: see `pairs`.
      settings: of the command.

    Returns:
      ({case: its scores, see `score`}, {case that cannot be scored: reason}).

    Raises:
      UserError: a worker was killed.
    """
    scored, failed = {}, {}
    # New processes rather than copies of this one: the threads of SimpleITK and NumPy do not
    # survive a fork.
    context = multiprocessing.get_context("spawn")
    with futures.ProcessPoolExecutor(settings.workers, context) as pool:
        jobs = {
            pool.submit(score, *paths, settings.foreground, settings.steps): name
            for name, paths in cases.items()
        }
        for number, job in enumerate(futures.as_completed(jobs), start=1):
            name = jobs[job]
            try:
                scored[name] = job.result()
                told = f"DSC {scored[name][-1]['DSC_percent']:.2f} %"
            except errors.UserError as error:
                failed[name], told = str(error), "not scored"
            except process.BrokenProcessPool:
                raise errors.UserError(
                    "--workers: a worker was killed, for lack of memory perhaps; give fewer."
                ) from None
            print(f"{number}/{len(jobs)} {name}: {told}", flush=True)
    return scored, failed


def rows_of(
    scored: Mapping[str, list[dict[str, float]]], settings: Score, cases: Sequence[str]
) -> list[dict[str, Any]]:
    """Rows of `report.tables`, in the order of the cases.

    Raises:
      UserError: no label image has a value of the foreground.
    """
    from tf_autoctx import metrics

    rows = [
        {
            "system": "",
            "method": method,
            "case": name,
            "group": "",
            "structure": "object",
            **scored[name][number],
        }
        for number, method in enumerate(settings.methods)
        for name in cases
        if name in scored
    ]
    if rows and settings.foreground:
        sizes = [row[metrics.size_of(row).truth] for row in rows]
        if not any(sizes):
            values = ",".join(map(str, settings.foreground))
            raise errors.UserError(
                f"{settings.labels}: no voxel has a value of --foreground={values}; name one that "
                "occurs."
            )
    return rows


def main(given: command_line.Given) -> None:
    """Runs the command."""
    from tf_autoctx.report import tables

    settings = given.configured(Score)
    cases, output = pairs(settings), pathlib.Path(settings.output)
    scored, failed = score_all(cases, settings)
    if rows := rows_of(scored, settings, list(cases)):
        tables.write(output, rows)
        print("\n" + tables.table(rows))
    reasons = [{"case": name, "reason": reason} for name, reason in sorted(failed.items())]
    tables.write_csv(output / "failed.csv", reasons, ("case", "reason"))
    if failed:
        reason = next(iter(failed.values()))
        raise errors.UserError(
            f"{output / 'failed.csv'}: {len(failed)} of {len(cases)} cases are not scored; {reason}"
        )


command = command_line.Command(main, (Score,), __doc__)
