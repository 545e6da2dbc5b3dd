"""Scores a folder of label images against the ground truth of the same file names, several at a time.

  python eval/score.py --predictions=runs/demo/predictions --labels=data/labels --output=runs/demo/scores
  python eval/score.py --predictions=results --labels=labels --output=scores --largest_component --fill_holes

The second scores the predictions as they are and post-processed, side by side. Writes scores.csv (a line per method,
case and metric; the column system stays empty), cases.csv and summary.json into the output folder and prints the table.
A case that cannot be scored is left out and listed, with its reason, in failed.csv, and the exit code is 1.
"""

import csv
import multiprocessing
import pathlib
from concurrent import futures
from concurrent.futures import process

import numpy as np
from absl import app, flags

from tf_autoctx import errors, files, flag_types, metrics, postprocessing, report
from tf_autoctx.data import images

FLAGS = flags.FLAGS
flags.DEFINE_string("predictions", None, "Folder of label images to score.", required=True)
flags.DEFINE_string(
    "labels", None, "Folder of ground-truth label images with the same names.", required=True
)
flags.DEFINE_string(
    "output", None, "Folder for scores.csv, cases.csv, summary.json and failed.csv.", required=True
)
flag_types.define_integers(
    "foreground",
    None,
    "Label values that make up the object, such as 1,2. Default: every one but 0.",
    least=1,
)
flags.DEFINE_bool(
    "largest_component", False, "Also score the largest component of every label value."
)
flags.DEFINE_bool("fill_holes", False, "Also score the predictions with their holes filled.")
flags.DEFINE_integer("workers", None, "Cases that are scored at a time. Default: one a CPU.", 1)


def score(prediction_path, label_path, foreground, steps):
    """`metrics.compare` of two files: a list of the prediction as it is and, if there are steps, post-processed.

    It runs in a process of its own, which knows no flags.

    Args:
      prediction_path, label_path: of label images.
      foreground: label values that make up the object, or None.
      steps: arguments of `postprocessing.postprocess`.

    Raises:
      UserError: a file cannot be read; the two do not lie on the same grid.
    """
    prediction, label = images.read(prediction_path), images.read(label_path)
    images.require_same_grid(prediction_path, prediction, label_path, label)
    answer, truth = images.array(prediction), images.array(label)
    if foreground:
        answer, truth = (
            np.where(np.isin(voxels, foreground), voxels, 0) for voxels in (answer, truth)
        )
    answers = [answer, postprocessing.postprocess(answer, **steps)] if steps else [answer]
    return [
        metrics.compare(answer, truth, images.millimetres(label_path, label)) for answer in answers
    ]


def main(_):
    predictions, labels = images.find(FLAGS.predictions), images.find(FLAGS.labels)
    lonely = [path for name, path in predictions.items() if name not in labels]
    lonely += [path for name, path in labels.items() if name not in predictions]
    if lonely:
        raise errors.UserError(
            f"{', '.join(lonely)}: no image of the same name in the other folder; match the two."
        )
    output, methods = pathlib.Path(FLAGS.output), [pathlib.Path(FLAGS.predictions).resolve().name]
    steps = {step: True for step in ("largest_component", "fill_holes") if FLAGS[step].value}
    if steps:
        methods.append(", ".join([*methods, *steps]).replace("_", " "))

    # New processes rather than copies of this one: the threads of SimpleITK and NumPy do not survive a fork.
    scored, failed = {}, {}
    with futures.ProcessPoolExecutor(FLAGS.workers, multiprocessing.get_context("spawn")) as pool:
        jobs = {
            pool.submit(score, predictions[name], labels[name], FLAGS.foreground, steps): name
            for name in predictions
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

    rows = [
        {
            "system": "",
            "method": method,
            "case": name,
            "group": "",
            "structure": "object",
            **scored[name][number],
        }
        for number, method in enumerate(methods)
        for name in predictions
        if name in scored
    ]
    if (
        rows
        and FLAGS.foreground
        and not any(row[key] for row in rows for key in row if key.startswith("truth_"))
    ):
        values = ",".join(map(str, FLAGS.foreground))
        raise errors.UserError(
            f"{FLAGS.labels}: no voxel has a value of --foreground={values}; name one that occurs."
        )
    if rows:
        report.write(rows, output)
        print("\n" + report.table(rows))
    with (
        files.replacing(output / "failed.csv") as path,
        open(path, "w", newline="", encoding="utf-8") as file,
    ):
        csv.writer(file, lineterminator="\n").writerows(
            [("case", "reason"), *sorted(failed.items())]
        )
    if failed:
        reason = next(iter(failed.values()))
        raise errors.UserError(
            f"{output / 'failed.csv'}: {len(failed)} of {len(jobs)} cases are not scored; {reason}"
        )


if __name__ == "__main__":
    app.run(errors.in_one_sentence(main))
