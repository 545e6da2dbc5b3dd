"""Time of eval/score.py on 50 pairs of head masks at the size that the fetal head's network works at.

  python benchmarks/scoring.py

A head is an ellipsoid of its own size and place; the prediction is a little larger and shifted by two voxels.
"""

import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
import SimpleITK as sitk
from absl import app, flags

from tf_autoctx import flag_types
from tf_autoctx.data import images

FLAGS = flags.FLAGS
flags.DEFINE_integer("pairs", 50, "Predictions to score.", 1)
flag_types.define_integers(
    "size", [155, 103, 176], "Voxels of a mask along z, y, x.", length=3, least=16
)
flags.DEFINE_integer("workers", None, "As of eval/score.py.", 1)


def main(_):
    rng = np.random.default_rng(0)
    size = np.array(FLAGS.size)
    grid = np.stack(np.indices(FLAGS.size, np.float32), axis=-1)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(FLAGS.pairs):
            centre, radii = size * rng.uniform(0.45, 0.55, 3), size * rng.uniform(0.25, 0.4, 3)
            for kind, shift, factor in (("labels", 0, 1.0), ("predictions", 2, 1.03)):
                mask = (((grid - centre - shift) / (factor * radii)) ** 2).sum(axis=-1) <= 1
                path = pathlib.Path(folder) / kind / f"head_{number:03d}.nii.gz"
                path.parent.mkdir(exist_ok=True)
                image = sitk.GetImageFromArray(mask.astype(np.uint8))
                image.SetSpacing((0.95, 0.95, 0.95))
                images.write(image, path)
        command = [sys.executable, pathlib.Path(__file__).parents[1] / "eval" / "score.py"]
        command += [f"--{kind}={folder}/{kind}" for kind in ("predictions", "labels")] + [
            f"--output={folder}/scores"
        ]
        command += [f"--workers={FLAGS.workers}"] * bool(FLAGS.workers)
        begin = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - begin
    print(f"{FLAGS.pairs} pairs of {'x'.join(map(str, FLAGS.size))} voxels: {seconds:.1f} s")


if __name__ == "__main__":
    app.run(main)
