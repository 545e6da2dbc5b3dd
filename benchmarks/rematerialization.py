"""How much memory a training step takes with --rematerialize, and without.

  python benchmarks/rematerialization.py
  python benchmarks/rematerialization.py --systems=embryo --base_filters=8

The fetal head's network sees a volume of the paper at its scale, the embryo's cascade one of half
the paper's edges; voxels are noise. Each step runs in a process of its own on the CPU; what is told
is by how much its resident memory grows, the largest it was during the steps. Both begin with the
same weights: their losses after the last step are told, too.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import multiprocessing
import pathlib
import re
import time
from typing import Any

from tf_autoctx.commands.command_line import Command, Given
from tf_autoctx.configuration import check, field

SIZES = {"fetal_head": (155, 103, 176), "embryo": (105, 141, 141)}
EMBRYO: dict[str, Any] = {"low_size": 80, "body_box": 128, "ventricle_box": 80}


@dataclasses.dataclass(frozen=True)
class Rematerialization:
    """Benchmark: the networks."""

    systems: tuple[str, ...] = field(tuple(SIZES), "Of fetal_head and embryo.")
    base_filters: int = field(16, "Channels of the first stage of a network.", least=1)
    precision: str = field(
        "float32", "Dtype policy of Keras.", choices=("float32", "mixed_bfloat16")
    )
    steps: int = field(2, "Steps.", least=1)

    def __post_init__(self) -> None:
        check(self)


@dataclasses.dataclass(frozen=True)
class Taken:
    """What steps took: bytes, seconds of the last one, and its loss."""

    memory: int
    seconds: float
    loss: float


def resident(peak: bool = False) -> int:
    """Bytes of this process in memory; the most since `forget_peak`."""
    told = pathlib.Path("/proc/self/status").read_text()
    (kib,) = re.findall(rf"^{'VmHWM' if peak else 'VmRSS'}:\s+(\d+) kB", told, re.M)
    return 1024 * int(kib)


def forget_peak() -> None:
    """Lets the largest resident memory be the present one (Linux)."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")


def stage_of(system: str, chosen: Rematerialization) -> Any:
    """A stage of a system that is trained from nothing."""
    import tensorflow as tf

    from tf_autoctx.data.configuration import Augmentation
    from tf_autoctx.systems.embryo.configuration import Embryo
    from tf_autoctx.systems.embryo.segmentation import Refinement
    from tf_autoctx.systems.embryo.training import EndToEndStage
    from tf_autoctx.systems.fetal_head.configuration import FetalHead
    from tf_autoctx.systems.fetal_head.segmentation import Cascade
    from tf_autoctx.systems.fetal_head.training import LevelStage
    from tf_autoctx.systems.shared.session import Session
    from tf_autoctx.training.configuration import Settings
    from tf_autoctx.training.runs import Run

    class FromNothing(EndToEndStage):
        def _before(self, folder: pathlib.Path, stage: str) -> dict[str, list[Any]]:
            return {}

    settings = Settings(
        steps=chosen.steps,
        samples_per_epoch=1,
        learning_rate=1e-3,
        learning_rate_decay="constant",
    )
    run, strategy = Run(pathlib.Path("."), {}), tf.distribute.get_strategy()
    session = Session(run, vars(Augmentation()), strategy, settings, [], [])
    if system == "fetal_head":
        head = FetalHead(base_filters=chosen.base_filters)
        return LevelStage(1, Cascade(head), session), settings
    embryo = Embryo(base_filters=chosen.base_filters, **EMBRYO)
    return FromNothing(Refinement(embryo, {1: "body", 2: "ventricle"}), session), settings


def taken(system: str, chosen: Rematerialization, rematerialized: bool) -> Taken:
    """What a few steps take in this process, which has trained nothing yet."""
    import keras
    import numpy as np
    import tensorflow as tf

    from tf_autoctx.models.rematerialization import rematerialize

    keras.config.set_dtype_policy(chosen.precision)
    keras.utils.set_random_seed(1)
    stage, settings = stage_of(system, chosen)
    networks = stage.build()
    if rematerialized:
        for network in networks.values():
            rematerialize(network)
    _, step = stage.updates(networks, settings)
    rng, shape = np.random.default_rng(1), (1, *SIZES[system], 1)
    batch = {
        "image": tf.constant(rng.random(shape, np.float32)),
        "label": tf.constant(rng.integers(0, 2 if system == "fetal_head" else 3, shape, np.uint8)),
        "context": tf.zeros(shape),
    }
    train = tf.function(step, autograph=False).get_concrete_function(batch)
    before = resident()
    forget_peak()
    for _ in range(chosen.steps):
        begin = time.perf_counter()
        loss = float(train(batch)["loss"])
    return Taken(resident(peak=True) - before, time.perf_counter() - begin, loss)


def main(given: Given) -> None:
    """Runs the benchmark."""
    chosen = given.configured(Rematerialization)
    for system in chosen.systems:
        size = " x ".join(map(str, SIZES[system]))
        print(f"{system}: {size} voxels, {chosen.base_filters} filters, {chosen.precision}")
        memory = []
        for rematerialized in (False, True):
            fresh = multiprocessing.get_context("spawn")
            measure = functools.partial(taken, system, chosen, rematerialized)
            with concurrent.futures.ProcessPoolExecutor(1, fresh) as pool:
                took = pool.submit(measure).result()
            memory.append(took.memory)
            print(
                f"  --{'' if rematerialized else 'no'}rematerialize: "
                f"{took.memory / 2**30:.2f} GiB, {took.seconds:.1f} s a step, loss {took.loss:.6f}",
                flush=True,
            )
        print(f"  {100 * (1 - memory[1] / memory[0]):.0f} % less memory", flush=True)


command = Command(main, (Rematerialization,), __doc__)

if __name__ == "__main__":
    command()
