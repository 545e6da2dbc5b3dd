"""Time and peak memory of one whole embryo through the cascade, and the time of the sliding windows beside it.

  python benchmarks/whole_embryo.py                              # 210x281x282 voxels and every width of the paper
  python benchmarks/whole_embryo.py --precision=mixed_bfloat16
  python benchmarks/whole_embryo.py --size=40,48,40 --low_size=32 --body_box=32 --ventricle_box=16 --base_filters=2 \
      --kernel=3 --window=16

The weights are random: time and memory do not depend on them. Tracing is not timed, and the windows warm up on a
volume of one window. The localiser's seconds are extrapolated from a share of its windows, those of the two VNets are
measured.
"""

import resource
import time

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

from tf_autoctx import export, flag_types
from tf_autoctx.systems import embryo, sliding_windows

FLAGS = flags.FLAGS
flag_types.define_integers(
    "size", [210, 281, 282], "Voxels of the volume along z, y, x.", length=3, least=8
)
flags.DEFINE_integer("low_size", 160, "Edge of the cube that VNet I sees the whole volume in.", 8)
flags.DEFINE_integer("body_box", 256, "Edge of VNet II's box in voxels.", 8)
flags.DEFINE_integer("ventricle_box", 160, "Edge of VNet III's box in voxels.", 8)
flags.DEFINE_integer("base_filters", 16, "Channels of the first stage of a VNet.", 1)
flags.DEFINE_integer("depth", 5, "Resolutions of a VNet.", 1)
flags.DEFINE_integer("kernel", 5, "Edge of the convolution kernels.", 1)
flag_types.define_edge("window", 64, "Edge of the sliding windows in voxels.", multiple=16)
flags.DEFINE_integer("stride", 3, "Voxels from one window of the localiser to the next.", 1)
flags.DEFINE_integer("window_batch", 32, "Windows in one pass of the localiser.", 1)
flags.DEFINE_float("fraction", 0.02, "Share of the localiser's windows that is timed.", 0.02, 1.0)
flags.DEFINE_enum("precision", "float32", ["float32", "mixed_bfloat16"], "Of both methods.")


def peak():
    return f"peak of the whole process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB"


def main(_):
    keras.config.set_dtype_policy(FLAGS.precision)
    system = embryo.Embryo(
        labels={1: "body", 2: "ventricle"},
        low_size=FLAGS.low_size,
        body_box=FLAGS.body_box,
        ventricle_box=FLAGS.ventricle_box,
        base_filters=FLAGS.base_filters,
        depth=FLAGS.depth,
        kernel=FLAGS.kernel,
    )
    voxels = np.random.default_rng(0).uniform(0, 255, FLAGS.size).astype(np.float32)
    print(f"{FLAGS.precision}, {FLAGS.size} voxels", flush=True)

    network = system.network("end_to_end")
    cascade = tf.function(
        lambda image: system.segment(network, image)["label"], input_signature=[export.VOLUME]
    )
    cascade.get_concrete_function()
    begin = time.perf_counter()
    label = cascade(tf.constant(voxels[None, ..., None])).numpy()
    of_cascade = time.perf_counter() - begin
    assert label.shape == (1, *FLAGS.size, 1)
    print(f"cascade: {of_cascade:.1f} s, {peak()}", flush=True)

    peer = sliding_windows.beside(system, FLAGS.window, FLAGS.stride)
    networks = {name: peer.network(name) for name in sliding_windows.NETWORKS}
    segment = sliding_windows.segmentor(system, peer, networks, FLAGS.window_batch)
    segment(voxels[tuple(slice(FLAGS.window) for _ in range(3))])
    begin = time.perf_counter()
    classes, found = segment(voxels, FLAGS.fraction)
    seconds = time.perf_counter() - begin
    assert classes.shape == label.shape[1:4]
    whole = found.extrapolated(seconds)
    share = 100 * found.evaluated / found.total
    print(
        f"localiser: {found.seconds:.1f} s for {found.evaluated} of {found.total} windows ({share:.1f} %)"
    )
    print(f"VNets for ventricle and body: {seconds - found.seconds:.1f} s")
    print(
        f"sliding windows, extrapolated: {whole:.0f} s, {whole / of_cascade:.1f} times the cascade; {peak()}"
    )


if __name__ == "__main__":
    app.run(main)
