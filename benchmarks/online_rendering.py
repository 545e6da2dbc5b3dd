"""Time of one iteration of online rendering, with the networks' outputs shared and without.

  python benchmarks/online_rendering.py                # 320x320, a batch of 2, the paper's widths
  python benchmarks/online_rendering.py --precision=mixed_bfloat16
  python benchmarks/online_rendering.py --size=64 --base_filters=4 --rounds=2

The paper took about 10 s on a TITAN Xp. "summed" has one optimizer for renderer and segmentor,
"shared" one a term; "one by one" makes the updates of "shared" with a run of the networks for each,
"published" those of the authors' code. Rounds alternate; medians are printed. Weights and images
are random: time does not depend on them.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from typing import TYPE_CHECKING, Any

from tf_autoctx import configuration
from tf_autoctx.commands.command_line import Command, Given
from tf_autoctx.configuration import field
from tf_autoctx.systems.renderer.configuration import DISCRIMINATORS, ORDERS, Objective, Renderer
from tf_autoctx.training.configuration import Settings

if TYPE_CHECKING:
    from tf_autoctx.systems.renderer.terms import Plan, Update

# An optimizer's; nothing is trained for long.
SETTINGS = Settings(
    steps=1,
    samples_per_epoch=1,
    batch_size=2,
    learning_rate=1e-4,
    learning_rate_decay="constant",
    beta_1=0.5,
)


@dataclasses.dataclass(frozen=True)
class Timing:
    """What is timed"""

    size: int = field(320, "Edge of the images in pixels.", least=8)
    base_filters: int = field(32, "Channels of the first stage.", least=1)
    rounds: int = field(5, "Iterations that are timed, after one to warm up.", least=1)
    precision: str = field(
        "float32", "Precision of all networks.", choices=("float32", "mixed_bfloat16")
    )
    training: bool = field(
        False, "Time an iteration of self-play training in place of online rendering."
    )

    def __post_init__(self) -> None:
        configuration.check(self)


def random_batch(timing: Timing) -> dict[str, Any]:
    """A batch of two, as `terms.Outputs` takes it."""
    import numpy as np
    import tensorflow as tf

    rng = np.random.default_rng(0)

    def draw(channels: int) -> tf.Tensor:
        shape = (2, timing.size, timing.size, channels)
        return tf.constant(rng.uniform(0, 1, shape).astype(np.float32))

    real = {name: draw(channels) for name, channels in DISCRIMINATORS.items()}
    batch = {"image": draw(1), "real": real}
    if timing.training:
        batch["label"] = tf.cast(draw(1) > 0.5, tf.uint8)
    return batch


def iterations(timing: Timing, batch: dict[str, Any]) -> tuple[dict[str, Plan], dict[str, Update]]:
    """The plans by name, and an iteration of each as a graph that is traced."""
    import tensorflow as tf

    from tf_autoctx.systems.renderer import terms
    from tf_autoctx.systems.renderer.segmentation import Rendering

    online = not timing.training
    networks = Rendering(Renderer(size=timing.size, base_filters=timing.base_filters)).networks()
    objectives = {name: Objective(update_order=name) for name in ORDERS}
    plans = {name: terms.groups(networks, order, online) for name, order in objectives.items()}
    plans["one by one"] = [[term] for group in plans["shared"] for term in group]
    steps = {}
    for name, plan in plans.items():
        objective = objectives.get(name, objectives["shared"])
        _, step = terms.updates(networks, plan, objective, SETTINGS, online)
        steps[name] = tf.function(step)
        steps[name](batch)
    return plans, steps


def main(given: Given) -> None:
    timing = given.configured(Timing)
    import keras

    keras.config.set_dtype_policy(timing.precision)
    batch = random_batch(timing)
    plans, steps = iterations(timing, batch)
    seconds: dict[str, list[float]] = {name: [] for name in plans}
    for _ in range(timing.rounds):
        for name, step in steps.items():
            begin = time.perf_counter()
            float(step(batch)["loss"])
            seconds[name].append(time.perf_counter() - begin)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    kind = "training" if timing.training else "online"
    print(f"{kind}, {timing.precision}, {timing.size}x{timing.size}, a batch of 2")
    for name, plan in plans.items():
        count, ratio = sum(map(len, plan)), medians[name] / medians["summed"]
        print(f"{name}: {count} terms in {medians[name]:.2f} s, {ratio:.2f} times summed")


command = Command(main, (Timing,), __doc__)

if __name__ == "__main__":
    command()
