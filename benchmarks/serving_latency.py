"""Latency of the fetal head's network: the model that predict.py makes of a checkpoint, and its
exports in float32 and in bfloat16.

  python benchmarks/serving_latency.py                                  # 64x48x72 voxels
  python benchmarks/serving_latency.py --size=155,103,176 --rounds=3    # the paper's volume

One level of USegNet-DS-HAS at the paper's widths with random weights; voxels are those of the
network's own grid (2.6 TFLOP a pass of the paper's volume). Exports run in TensorFlow's C++ loader,
as in TensorFlow Serving. Rounds alternate after one to warm up; medians are printed.
"""

from __future__ import annotations

import dataclasses
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np

from tf_autoctx import export
from tf_autoctx.commands.command_line import Command, Given
from tf_autoctx.configuration import check, field
from tf_autoctx.systems.fetal_head.configuration import FetalHead
from tf_autoctx.systems.fetal_head.system import FetalHeadSystem
from tf_autoctx.systems.shared import stages
from tf_autoctx.training import devices
from tf_autoctx.training.configuration import POLICIES

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests"))
import cpp_loader

LEVEL = "level_1"
CHECKPOINT, REFERENCE = "checkpoint, float32", "export, float32"
Model = Callable[[], dict[str, np.ndarray]]  # -> {"label", "probability"} of the benchmark's image


@dataclasses.dataclass(frozen=True)
class Latency:
    """Benchmark: the image, the network and the rounds"""

    size: tuple[int, ...] = field((64, 48, 72), "Voxels along z, y, x.", length=3, least=8)
    base_filters: int = field(32, "Channels of the first stage.", least=1)
    rounds: int = field(9, "Passes that are timed, after one to warm up.", least=1)

    def __post_init__(self) -> None:
        check(self)


def of_checkpoint(system: FetalHeadSystem, path: pathlib.Path, image: np.ndarray) -> Model:
    """What predict.py runs of a checkpoint."""
    predictor = system.graphs({LEVEL: stages.load(path)})

    def run() -> dict[str, np.ndarray]:
        output = predictor(image, probabilities=True, progress=False)
        return {name: x.numpy() for name, x in output.items()}

    return run


def of_export(version: pathlib.Path, image: np.ndarray) -> Model:
    """What TensorFlow Serving runs of an export."""
    model = cpp_loader.CppModel(version)

    def run() -> dict[str, np.ndarray]:
        return model("serving_default", {"image": image})

    return run


def models(chosen: Latency, folder: pathlib.Path) -> dict[str, Model]:
    """{name: model}, all with the same weights; their files are in a folder."""
    configuration = FetalHead(scale=1.0, base_filters=chosen.base_filters)
    system = FetalHeadSystem(configuration, {1: "head"})
    image = np.random.default_rng(0).uniform(0, 255, (1, *chosen.size, 1)).astype(np.float32)
    trained = system.new_networks([LEVEL])[LEVEL]
    trained.save(folder / "model.keras")
    by_name = {CHECKPOINT: of_checkpoint(system, folder / "model.keras", image)}
    for precision, policy in POLICIES.items():
        with devices.policy(policy):
            served = system.new_networks([LEVEL])
        served[LEVEL].set_weights(trained.get_weights())
        exported = export.Exported(system.signatures(served), [*served.values()], {})
        version = export.write(folder / precision, exported)
        by_name[f"export, {precision}"] = of_export(version, image)
    return by_name


def main(given: Given) -> None:
    """Runs the benchmark."""
    chosen = given.configured(Latency)
    with tempfile.TemporaryDirectory() as folder:
        runs = models(chosen, pathlib.Path(folder))
        probability = {name: run()["probability"] for name, run in runs.items()}
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(chosen.rounds):
            for name, run in runs.items():
                begin = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - begin)
    print(f"{'x'.join(map(str, chosen.size))} voxels, medians of {chosen.rounds} rounds")
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, median in medians.items():
        ratio = medians[REFERENCE] / median
        off = np.abs(probability[name] - probability[CHECKPOINT]).max()
        speed = f"{ratio:.2f} times as fast as the float32 export"
        print(f"{name}: {median:.3f} s, {speed}, {off:.1e} off")


command = Command(main, (Latency,), __doc__)

if __name__ == "__main__":
    command()
