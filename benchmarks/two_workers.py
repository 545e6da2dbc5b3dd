"""Trains level 1 with two `multi_worker` processes on loopback, and with one process of twice the
batch, and compares.

  python benchmarks/two_workers.py

Float32, no augmentation, so that both see the same samples. The two sum the gradient of two samples
in another order, and Adam's first steps turn a rounding of a gradient near 0 (a bias before a
normalization, say) into a whole learning rate. So we accept weights that differ by less than steps
x learning rate, and what counts, the probabilities on a random volume, by less than 1e-3.
"""

from __future__ import annotations

import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile

import keras
import numpy as np

from tf_autoctx.commands.command_line import Command, Given

# Registers the layers of the network, which must be known before it is loaded
from tf_autoctx.models import usegnet  # noqa: F401

ROOT = pathlib.Path(__file__).resolve().parent.parent
STEPS, LEARNING_RATE = 10, 1e-3
MOST_OFF = 1e-3  # in probability
SHORT_RUN = (
    f"--level=1 --phantom_size=32,24,40 --phantom_cases=5,2 --base_filters=4 --steps={STEPS} "
    "--samples_per_epoch=10 --noflips --erase_probability=0 --precision=float32 "
    f"--learning_rate={LEARNING_RATE} --learning_rate_decay=constant"
).split()


def start(folder: pathlib.Path, *flags: str, **environment: str) -> subprocess.Popen[bytes]:
    """Starts the short run with further flags and environment variables."""
    words = ["train_fetal_head.py", f"--work_dir={folder}", *SHORT_RUN, *flags]
    variables = {**os.environ, **environment}
    return subprocess.Popen([sys.executable, *words], cwd=ROOT, env=variables)


def tasks() -> list[str]:
    """TF_CONFIG of two workers at ports that are free."""
    with socket.socket() as first, socket.socket() as second:
        for each in (first, second):
            each.bind(("localhost", 0))
        workers = [f"localhost:{each.getsockname()[1]}" for each in (first, second)]
    return [
        json.dumps({"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}})
        for index in range(len(workers))
    ]


def trained(directory: pathlib.Path) -> list[keras.Model]:
    """The networks of two workers, and of one process."""
    two, single = directory / "two", directory / "single"
    workers = [start(two, "--strategy=multi_worker", TF_CONFIG=task) for task in tasks()]
    assert [worker.wait() for worker in workers] == [0, 0]
    assert start(single, "--strategy=single", "--batch_size=2").wait() == 0
    return [keras.models.load_model(run / "level_1" / "model.keras") for run in (two, single)]


def largest_difference(arrays: list[np.ndarray]) -> float:
    """Of two arrays."""
    first, second = arrays
    return float(np.abs(first - second).max())


def main(given: Given) -> None:
    """Runs the benchmark."""
    with tempfile.TemporaryDirectory() as directory:
        networks = trained(pathlib.Path(directory))
    weights = [np.concatenate([np.ravel(w) for w in net.get_weights()]) for net in networks]
    volume = np.random.default_rng(0).random((1, 16, 16, 16, 1), np.float32)
    outputs = [np.asarray(keras.ops.softmax(net(volume)["logits"])) for net in networks]
    off, probability_off = largest_difference(weights), largest_difference(outputs)
    largest = np.abs(weights[0]).max()
    print(
        f"largest difference: weights {off:.1e} (the largest weight is {largest:.2f}), "
        f"probabilities {probability_off:.1e}"
    )
    sys.exit(not (off < STEPS * LEARNING_RATE and probability_off < MOST_OFF))


command = Command(main, (), __doc__)

if __name__ == "__main__":
    command()
