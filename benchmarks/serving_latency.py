"""Latency of the fetal head's network: the model that predict.py makes of a checkpoint, its export in float32 and in bfloat16.

  python benchmarks/serving_latency.py                                        # 64x48x72 voxels
  python benchmarks/serving_latency.py --size=155,103,176 --rounds=3          # the paper's volume: 2.6 TFLOP a pass

One level of USegNet-DS-HAS at the paper's widths with random weights; voxels are those of the network's own grid. Exports
run in TensorFlow's C++ loader, as in TensorFlow Serving. Rounds alternate after one to warm up; medians are printed.
"""

import pathlib
import statistics
import sys
import tempfile
import time

import numpy as np
import tensorflow as tf
from absl import app, flags

from tf_autoctx import export, flag_types
from tf_autoctx.systems import fetal_head, serving, stages
from tf_autoctx.training import devices

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests"))
import cpp_loader  # noqa: E402

FLAGS = flags.FLAGS
flag_types.define_integers("size", [64, 48, 72], "Voxels along z, y, x.", length=3, least=8)
flags.DEFINE_integer("base_filters", 32, "Channels of the first stage.", 1)
flags.DEFINE_integer("rounds", 9, "Passes that are timed, after one to warm up.", 1)


def main(_):
    system = fetal_head.FetalHead(scale=1.0, base_filters=FLAGS.base_filters)
    image = np.random.default_rng(0).uniform(0, 255, (1, *FLAGS.size, 1)).astype(np.float32)
    trained = system.network()
    with tempfile.TemporaryDirectory() as folder:
        folder, models = pathlib.Path(folder), {}
        trained.save(folder / "model.keras")
        network = stages.load(folder / "model.keras")
        checkpoint = tf.function(
            lambda image: system.segment([network], image), input_signature=[export.VOLUME]
        )
        models["checkpoint, float32"] = lambda: {
            name: x.numpy() for name, x in checkpoint(image).items()
        }
        for precision, policy in serving.POLICIES.items():
            with devices.policy(policy):
                served = system.network()
            served.set_weights(trained.get_weights())
            segment = lambda image, served=served: system.segment([served], image)
            version = export.saved_model(
                {"serving_default": segment}, [served], folder / precision, {}
            )
            model = cpp_loader.CppModel(version)
            models[f"export, {precision}"] = lambda model=model: model(
                "serving_default", {"image": image}
            )

        probability = {name: run()["probability"] for name, run in models.items()}
        seconds = {name: [] for name in models}
        for _ in range(FLAGS.rounds):
            for name, run in models.items():
                begin = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - begin)
    first = next(iter(models))
    print(f"{'x'.join(map(str, FLAGS.size))} voxels, medians of {FLAGS.rounds} rounds")
    for name, found in seconds.items():
        ratio = statistics.median(seconds["export, float32"]) / statistics.median(found)
        error = np.abs(probability[name] - probability[first]).max()
        print(
            f"{name}: {statistics.median(found):.3f} s, {ratio:.2f} times as fast as the float32 export, {error:.1e} off"
        )


if __name__ == "__main__":
    app.run(main)
