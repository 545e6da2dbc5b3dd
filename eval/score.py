"""Scores a folder of label images against the ground truth of the same file names.

  python eval/score.py --predictions=runs/demo/predictions --labels=data/labels --output=runs/demo/scores

Writes cases.csv and summary.json into the output folder and prints the table.
"""

import pathlib

import numpy as np
from absl import app, flags

from tf_autoctx import errors, flag_types, metrics, report
from tf_autoctx.data import images

FLAGS = flags.FLAGS
flags.DEFINE_string("predictions", None, "Folder of label images to score.", required=True)
flags.DEFINE_string("labels", None, "Folder of ground-truth label images with the same names.", required=True)
flags.DEFINE_string("output", None, "Folder for cases.csv and summary.json.", required=True)
flag_types.define_integers(
    "foreground", None, "Label values that make up the object, such as 1,2. Default: every one but 0.", least=1
)


def mask(image):
    """Bool array of the object's voxels."""
    voxels = images.array(image)
    return np.isin(voxels, FLAGS.foreground) if FLAGS.foreground else voxels != 0


def score(prediction_path, label_path):
    """`metrics.compare` of two files; UserError unless they lie on the same grid."""
    prediction, label = images.read(prediction_path), images.read(label_path)
    images.require_same_grid(prediction_path, prediction, label_path, label)
    return metrics.compare(mask(prediction), mask(label), images.millimetres(label_path, label))


def main(_):
    predictions, labels = images.find(FLAGS.predictions), images.find(FLAGS.labels)
    files = [*predictions.items(), *labels.items()]
    lonely = [path for name, path in files if not (name in predictions and name in labels)]
    if lonely:
        raise errors.UserError(f"{', '.join(lonely)}: no image of the same name in the other folder; match the two.")
    method = pathlib.Path(FLAGS.predictions).resolve().name
    rows = []
    for name, path in predictions.items():
        row = {"method": method, "case": name, "group": "", "structure": "object", **score(path, labels[name])}
        rows.append(row)
        print(f"{len(rows)}/{len(predictions)} {name}: DSC {row['DSC_percent']:.2f} %", flush=True)
    if FLAGS.foreground and not any(row[key] for row in rows for key in row if key.startswith("truth_")):
        values = ",".join(map(str, FLAGS.foreground))
        raise errors.UserError(f"{FLAGS.labels}: no voxel has a value of --foreground={values}; name one that occurs.")
    report.write(rows, FLAGS.output)
    print("\n" + report.table(rows))


if __name__ == "__main__":
    app.run(errors.in_one_sentence(main))
