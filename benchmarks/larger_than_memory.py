"""Whether a CT training whose cache is larger than memory takes as long as one whose cache fits.

  systemd-run --scope -p MemoryMax=3G -p MemorySwapMax=0 python benchmarks/larger_than_memory.py

Cases are made of noise in $TMPDIR, which must be on a disk, as the training would have cached them.
The same network takes steps on a few of them and on all in turn, and a line tells how long a step
took and how much the disk was asked for.
"""

from __future__ import annotations

import dataclasses
import pathlib
import statistics
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tf_autoctx.commands.command_line import Command, Given
from tf_autoctx.configuration import check, field
from tf_autoctx.data import arrays, pipeline, subvolumes
from tf_autoctx.data.configuration import Augmentation
from tf_autoctx.systems.multi_organ import training
from tf_autoctx.systems.multi_organ.configuration import MultiOrgan
from tf_autoctx.systems.multi_organ.presets import DEFORMATION
from tf_autoctx.systems.multi_organ.segmentation import Pyramid
from tf_autoctx.systems.shared.session import Session
from tf_autoctx.training.configuration import Settings
from tf_autoctx.training.runs import Run

LABELS = {1: "liver", 2: "spleen"}


@dataclasses.dataclass(frozen=True)
class Larger:
    """Benchmark: the cases and the network."""

    cases: int = field(64, "All cases.", least=2)
    fitting: int = field(4, "Cases that fit into memory.", least=2)
    size: tuple[int, ...] = field((384, 384, 384), "Voxels of a CT along z, y, x.", length=3)
    base_filters: int = field(8, "Channels of the first convolution.", least=1)
    patch_size: int = field(64, "Edge of a subvolume.", multiple=8, least=16)
    steps: int = field(10, "Steps of a round.", least=1)
    rounds: int = field(5, "Rounds of both.", least=1)

    def __post_init__(self) -> None:
        check(self)


def cached(folder: pathlib.Path, chosen: Larger, pyramid: Pyramid) -> list[dict[str, str]]:
    """Cases in a folder, no chunk of 0 alone."""
    files = []
    for number in range(chosen.cases):
        rng = np.random.default_rng(number)
        label = rng.integers(1, 3, (*chosen.size, 1), np.uint8)
        tensors = {
            "label": label,
            "places": subvolumes.places(label[..., 0], LABELS, rng),
            "spacing": np.ones(3, np.float32),
        }
        for level, scale in enumerate(pyramid.configuration.scales, start=1):
            grid = [-(-edge // scale) for edge in chosen.size]
            tensors[f"image_{level}"] = 4 * rng.random((*grid, 1), np.float32)
        for name, tensor in tensors.items():
            chunk = arrays.CUBES if name not in ("places", "spacing") else ()
            pipeline.store(folder / str(number) / name, tensor, chunk)
        files.append({name: str(folder / str(number) / name) for name in tensors})
    return files


def from_disk() -> float:
    """MB that this process has had the disk read so far."""
    told = dict(line.split(": ") for line in pathlib.Path("/proc/self/io").read_text().splitlines())
    return int(told["read_bytes"]) / 1e6


def batches(stage: training.PyramidStage, files: list[dict[str, str]]) -> Iterator[Any]:
    """Endless batches of a training on these cases."""
    columns = {name: [entry[name] for entry in files] for name in stage.columns}
    order = pipeline.Order(seed=1, steps=10**6)
    return iter(pipeline.training(columns, stage.read, order, stage.augment))


def main(given: Given) -> None:
    """Runs the benchmark."""
    chosen = given.configured(Larger)
    configuration = MultiOrgan(base_filters=chosen.base_filters, patch_size=chosen.patch_size)
    pyramid = Pyramid(configuration, LABELS)
    settings = Settings(
        seed=1, steps=1, samples_per_epoch=1, learning_rate=1e-3, learning_rate_decay="constant"
    )
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        files = cached(pathlib.Path(folder), chosen, pyramid)
        size = sum(path.stat().st_size for path in pathlib.Path(folder).rglob("*"))
        print(f"{len(files)} cases, {size / 1e9:.2f} GB: {time.perf_counter() - begin:.0f} s")
        run, strategy = Run(pathlib.Path(folder), {}), tf.distribute.get_strategy()
        session = Session(run, vars(Augmentation(**DEFORMATION)), strategy, settings, files, [])
        stage = training.PyramidStage(configuration.levels, None, pyramid, session)
        _, step = stage.updates(stage.build(), settings)
        train = tf.function(step, autograph=False)
        sets = {"fits": batches(stage, files[: chosen.fitting]), "larger": batches(stage, files)}
        took: dict[str, list[float]] = {name: [] for name in sets}
        for number in range(chosen.rounds + 1):  # the first traces, and reads what fits
            for name, data in sets.items():
                begin, before = time.perf_counter(), from_disk()
                for _ in range(chosen.steps):
                    train(next(data))
                took[name].append((time.perf_counter() - begin) / chosen.steps)
                read = (from_disk() - before) / chosen.steps
                if number:
                    print(f"{name}: {took[name][-1]:.3f} s a step, {read:.1f} MB from the disk")
        fits, larger = (statistics.median(took[name][1:]) for name in sets)
        print(f"A step takes {larger / fits:.2f} times as long on cases larger than memory.")


command = Command(main, (Larger,), __doc__)

if __name__ == "__main__":
    command()
