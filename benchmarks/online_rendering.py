"""Time of one iteration of online rendering, with the networks' evaluations shared and without.

  python benchmarks/online_rendering.py                                  # 320x320, a batch of 2, the paper's widths
  python benchmarks/online_rendering.py --precision=mixed_bfloat16
  python benchmarks/online_rendering.py --size=64 --base_filters=4 --rounds=2

The paper took about 10 s on a TITAN Xp. "summed" has one optimizer for renderer and segmentor, "shared" one a term;
"one by one" makes the updates of "shared" with an evaluation of the networks for each, "published" those of the authors'
code. Rounds alternate; medians are printed. Weights and images are random: time does not depend on them.
"""

import statistics
import time

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

from tf_autoctx.systems import renderer, self_play
from tf_autoctx.training import loop

FLAGS = flags.FLAGS
flags.DEFINE_integer("size", 320, "Edge of the images in pixels.", 8)
flags.DEFINE_integer("base_filters", 32, "Channels of the first stage.", 1)
flags.DEFINE_integer("rounds", 5, "Iterations that are timed, after one to warm up.", 1)
flags.DEFINE_enum("precision", "float32", ["float32", "mixed_bfloat16"], "Of all networks.")
flags.DEFINE_bool(
    "training", False, "Time an iteration of self-play training in place of online rendering."
)


def main(_):
    keras.config.set_dtype_policy(FLAGS.precision)
    online = not FLAGS.training
    system = renderer.Renderer(size=FLAGS.size, base_filters=FLAGS.base_filters)
    settings = loop.Settings(
        seed=0,
        steps=1,
        samples_per_epoch=1,
        checkpoint_steps=1,
        batch_size=2,
        learning_rate=1e-4,
        learning_rate_decay="constant",
        beta_1=0.5,
        patience=0,
    )
    rng = np.random.default_rng(0)
    draw = lambda channels: tf.constant(
        rng.uniform(0, 1, (2, FLAGS.size, FLAGS.size, channels)).astype(np.float32)
    )
    batch = {
        "image": draw(1),
        "real": {name: draw(channels) for name, channels in renderer.DISCRIMINATORS.items()},
    }
    if not online:
        batch["label"] = tf.cast(draw(1) > 0.5, tf.uint8)
    orders = {
        name: self_play.Objective(1.0, 1.0, 100.0, name, generator_updates=2)
        for name in self_play.ORDERS
    }
    plans = {
        name: self_play.groups(renderer.VARIANTS["S2T"], order, online)
        for name, order in orders.items()
    }
    plans["one by one"] = [[term] for group in plans["shared"] for term in group]
    networks, steps = system.networks(), {}
    for name, plan in plans.items():
        _, step = self_play.updates(
            networks, plan, orders.get(name, orders["shared"]), settings, online
        )
        steps[name] = tf.function(step)
        steps[name](batch)
    seconds = {name: [] for name in plans}
    for _ in range(FLAGS.rounds):
        for name, step in steps.items():
            begin = time.perf_counter()
            float(step(batch)["loss"])
            seconds[name].append(time.perf_counter() - begin)
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    print(
        f"{'online' if online else 'training'}, {FLAGS.precision}, {FLAGS.size}x{FLAGS.size}, a batch of 2"
    )
    for name, plan in plans.items():
        ratio = medians[name] / medians["summed"]
        print(
            f"{name}: {sum(map(len, plan))} terms in {medians[name]:.2f} s, {ratio:.2f} times summed"
        )


if __name__ == "__main__":
    app.run(main)
