"""Trains level 1 with two `multi_worker` processes on loopback, and with one process of twice the batch, and compares.

  python benchmarks/two_workers.py

Float32, no augmentation, so that both see the same samples. The two sum the gradient of two samples in another order, and
Adam's first steps turn a rounding of a gradient near 0 (a bias before a normalization, say) into a whole learning rate.
So we accept weights that differ by less than steps x learning rate, and what counts, the probabilities on a random
volume, by less than 1e-3.
"""

import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile

import keras
import numpy as np
from absl import app

import tf_autoctx.models  # noqa: F401, its layers must be known before a network is loaded

ROOT = pathlib.Path(__file__).resolve().parent.parent
STEPS, LEARNING_RATE = 10, 1e-3
SHORT_RUN = (
    f"--level=1 --phantom_size=32,24,40 --phantom_cases=5,2 --base_filters=4 --steps={STEPS} --samples_per_epoch=10 "
    f"--noflips --erase_probability=0 --precision=float32 --learning_rate={LEARNING_RATE} --learning_rate_decay=constant"
).split()


def start(work_dir, *more, **environment):
    command = [sys.executable, "train_fetal_head.py", f"--work_dir={work_dir}", *SHORT_RUN, *more]
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, **environment})


def main(_):
    with socket.socket() as first, socket.socket() as second:  # the system knows two free ports
        first.bind(("localhost", 0)), second.bind(("localhost", 0))
        cluster = {"worker": [f"localhost:{each.getsockname()[1]}" for each in (first, second)]}
    with tempfile.TemporaryDirectory() as directory:
        two, one = pathlib.Path(directory) / "two", pathlib.Path(directory) / "one"
        config = [
            json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})
            for index in range(2)
        ]
        workers = [start(two, "--strategy=multi_worker", TF_CONFIG=task) for task in config]
        assert [worker.wait() for worker in workers] == [0, 0]
        assert start(one, "--strategy=single", "--batch_size=2").wait() == 0
        networks = [keras.models.load_model(run / "level_1" / "model.keras") for run in (two, one)]
    a, b = (np.concatenate([np.ravel(w) for w in network.get_weights()]) for network in networks)
    volume = np.random.default_rng(0).random((1, 16, 16, 16, 1), np.float32)
    c, d = (np.asarray(keras.ops.softmax(network(volume)["logits"])) for network in networks)
    weights, answers = np.abs(a - b).max(), np.abs(c - d).max()
    print(
        f"largest difference: weights {weights:.1e} (the largest weight is {np.abs(a).max():.2f}), answers {answers:.1e}"
    )
    sys.exit(not (weights < STEPS * LEARNING_RATE and answers < 1e-3))


if __name__ == "__main__":
    app.run(main)
