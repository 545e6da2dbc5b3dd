"""A corpus of 2D ultrasound as a made-up scanner would show it: a target corpus whose truth is known.

  python eval/another_scanner.py --data_dir=my_scanner --output=other_scanner
  python eval/renderer_tables.py --runs=runs/renderer --corpus=other_scanner/cases.csv --output=tables

Grey values change (gamma, time-gain curve, dynamic range, blur, speckle, see `tf_autoctx/data/phantoms/scanner.py`), geometry
does not. Writes images/ and labels/ (PNG) and cases.csv with the splits of the source.
"""

import csv
import pathlib
import zlib

import keras
import numpy as np
from absl import app, flags

from tf_autoctx import errors, files
from tf_autoctx.data import datasets, images, phantoms

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "data_dir", None, "Corpus with labels, in any form that train_renderer.py reads.", required=True
)
flags.DEFINE_string("output", None, "New folder.", required=True)
flags.DEFINE_integer("seed", 0, "Of speckle, noise and the scanner's setting for each image.", 0)


def main(_):
    found = datasets.load(FLAGS.data_dir, FLAGS.seed, validation_fraction=0, training=False)
    cases = [
        (split, case) for split in datasets.SPLITS for case in getattr(found, split) if case.label
    ]
    if pathlib.Path(FLAGS.output).exists():
        raise errors.UserError(
            f"--output={FLAGS.output}: is there already; expected the name of a new folder."
        )
    progress = keras.utils.Progbar(len(cases), unit_name="image")
    with files.replacing(FLAGS.output) as folder:
        for kind in ("images", "labels"):
            (folder / kind).mkdir(parents=True)
        rows = []
        for split, case in cases:
            image, label = datasets.read_case(case, labels=found.labels, dimensions=2)
            pixels = np.rint(images.array(image)).astype(np.uint8)
            seen = phantoms.another_scanner(pixels, (FLAGS.seed, zlib.crc32(case.name.encode())))
            row = {"image": f"images/{case.name}.png", "label": f"labels/{case.name}.png"}
            images.write(images.like(seen, image), folder / row["image"])
            images.write(images.like(255 * label, image), folder / row["label"])
            rows.append({**row, "split": split, "group": case.group})
            progress.add(1)
        with open(folder / "cases.csv", "w", newline="", encoding="utf-8") as file:
            lines = csv.DictWriter(file, ["image", "label", "split", "group"], lineterminator="\n")
            lines.writeheader()
            lines.writerows(rows)


if __name__ == "__main__":
    app.run(errors.in_one_sentence(main))
