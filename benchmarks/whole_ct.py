"""Time and peak memory of one whole CT through the exported pyramid, raw volume in, label out, in a fresh process.

  python benchmarks/whole_ct.py                           # 600x512x512 voxels, full width, factors 4 and 2
  python benchmarks/whole_ct.py --base_filters=8 --tile_size=96

The weights are random: time and memory do not depend on them.
"""

import resource
import subprocess
import sys
import tempfile
import time

import numpy as np
import tensorflow as tf
from absl import app, flags

from tf_autoctx import export, flag_types
from tf_autoctx.systems import multi_organ

FLAGS = flags.FLAGS
flag_types.define_integers(
    "size", [600, 512, 512], "Voxels of the CT along z, y, x.", length=3, least=8
)
flag_types.define_integers("downsampling", [4, 2], "Factors of the levels.", least=1)
flags.DEFINE_integer("base_filters", 32, "Channels of the first convolution.")
flags.DEFINE_integer("tile_size", 128, "Edge of a tile.")
flags.DEFINE_string(
    "model",
    None,
    "An exported SavedModel to run; default: one is made, and run in another process.",
)


def main(_):
    if FLAGS.model:
        image = tf.constant(
            np.random.default_rng(0).normal(0, 200, (1, *FLAGS.size, 1)).astype(np.float32)
        )
        signature = tf.saved_model.load(FLAGS.model).signatures["serving_default"]
        begin = time.perf_counter()
        label = signature(image=image)["label"]
        seconds = time.perf_counter() - begin
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        assert label.shape == image.shape
        print(f"{FLAGS.size} voxels: {seconds:.0f} s, peak of the whole process {peak:.1f} GiB")
        return
    system = multi_organ.MultiOrgan(
        labels=dict(enumerate("abcdefg", start=1)),
        downsampling=tuple(FLAGS.downsampling),
        base_filters=FLAGS.base_filters,
        tile_size=FLAGS.tile_size,
    )
    network = system.network()
    unets = system.unets(network)
    with tempfile.TemporaryDirectory() as folder:
        functions = {"serving_default": lambda image: system.segment(unets, image)}
        model = export.saved_model(functions, [network], folder, {})
        size = ",".join(map(str, FLAGS.size))
        subprocess.run([sys.executable, __file__, f"--model={model}", f"--size={size}"], check=True)


if __name__ == "__main__":
    app.run(main)
