"""Kills a short training run (SIGKILL) at random moments, lets it go on, and compares it with an
unbroken one.

  python benchmarks/kill_and_resume.py --kills=10

Float32 on one device: the weights of every level and the scores of every case must be the same, bit
for bit.
"""

from __future__ import annotations

import dataclasses
import pathlib
import random
import subprocess
import sys
import tempfile
import time

import keras
import numpy as np

from tf_autoctx.commands.command_line import Command, Given
from tf_autoctx.configuration import check, field

# Registers the layers of the network, which must be known before it is loaded
from tf_autoctx.models import usegnet  # noqa: F401

ROOT = pathlib.Path(__file__).resolve().parent.parent
SHORT_RUN = [
    "--level=2",
    "--phantom_size=32,24,40",
    "--phantom_cases=5,2",
    "--base_filters=4",
    "--samples_per_epoch=50",
    "--checkpoint_steps=7",
    "--shift=1",
    "--intensity_jitter=0.1",
    "--precision=float32",
    "--strategy=single",
]


@dataclasses.dataclass(frozen=True)
class Kills:
    """Benchmark: the run, and how it is killed"""

    kills: int = field(10, "How often the run is killed.", least=1)
    seed: int = field(0, "Of the moments.")
    steps: int = field(1000, "Steps of training per level.", least=1)

    def __post_init__(self) -> None:
        check(self)


def start(folder: pathlib.Path, steps: int) -> subprocess.Popen[bytes]:
    """Starts the short run, or goes on with it; its output goes to FOLDER.log."""
    flags = [f"--work_dir={folder}", f"--steps={steps}", *SHORT_RUN]
    with log(folder).open("a") as file:
        return subprocess.Popen(
            [sys.executable, "train_fetal_head.py", *flags], cwd=ROOT, stdout=file, stderr=file
        )


def log(folder: pathlib.Path) -> pathlib.Path:
    """Where the output of a run goes."""
    return folder.with_suffix(".log")


def results(folder: pathlib.Path) -> tuple[list[np.ndarray], str]:
    """All that must agree: weights of each level and the history without its clock, and scores."""
    arrays: list[np.ndarray] = []
    for path in sorted(folder.glob("level_*/model.keras")):
        arrays += keras.models.load_model(path).get_weights()
    for path in sorted(folder.glob("level_*/history.csv")):
        history = np.genfromtxt(path, delimiter=",", names=True)
        arrays += [history[name] for name in ("epoch", "loss", "val_DSC")]
    return arrays, (folder / "evaluation" / "scores.csv").read_text()


def kill_and_compare(directory: pathlib.Path, chosen: Kills) -> tuple[list[float], bool]:
    """Runs the comparison in `directory`.

    Returns:
      (seconds from each start to its kill, whether weights, histories and scores are the same).
    """
    unbroken, broken = directory / "unbroken", directory / "broken"
    begin = time.perf_counter()
    finish(unbroken, chosen.steps)
    whole = time.perf_counter() - begin
    draw = random.Random(chosen.seed)
    moments: list[float] = []
    while len(moments) < chosen.kills:
        process = start(broken, chosen.steps)
        moment = draw.uniform(0.05, 0.15) * whole
        try:
            assert process.wait(moment) == 0, log(broken).read_text()
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            moments.append(moment)
        else:
            sys.exit(
                f"The run finished after {len(moments)} kills, before the next one: expected "
                f"{chosen.kills}; make it longer."
            )
    finish(broken, chosen.steps)
    (arrays, scores), (others, other_scores) = results(unbroken), results(broken)
    same = len(arrays) == len(others) and all(map(np.array_equal, arrays, others))
    return moments, same and scores == other_scores


def finish(folder: pathlib.Path, steps: int) -> None:
    """Runs the short run to its end."""
    assert start(folder, steps).wait() == 0, log(folder).read_text()


def main(given: Given) -> None:
    """Runs the benchmark."""
    chosen = given.configured(Kills)
    with tempfile.TemporaryDirectory() as directory:
        moments, same = kill_and_compare(pathlib.Path(directory), chosen)
    seconds = ", ".join(f"{moment:.1f}" for moment in moments)
    print(f"killed {len(moments)} times, after {seconds} s; same result: {same}")
    sys.exit(not same)


command = Command(main, (Kills,), __doc__)

if __name__ == "__main__":
    command()
