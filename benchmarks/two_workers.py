"""Trains level 1 with two `multi_worker` processes on loopback, and with one process of twice the batch, and compares.

  python benchmarks/two_workers.py

Float32, no augmentation, so that both see the same samples. The two sum the gradient of two samples in another order,
and Adam's first steps turn a rounding of a gradient near 0 into a whole learning rate: weights agree to a few of
these, answers to far less.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

import keras
import numpy as np
from absl import app

ROOT = pathlib.Path(__file__).resolve().parent.parent
SHORT_RUN = (
    "--level=1 --phantom_size=32,24,40 --phantom_cases=5,2 --base_filters=4 --steps=10 --samples_per_epoch=10 "
    "--noflips --erase_probability=0 --precision=float32 --learning_rate=1e-3 --learning_rate_decay=constant"
).split()


def start(work_dir, *more, **environment):
    command = [sys.executable, "train_fetal_head.py", f"--work_dir={work_dir}", *SHORT_RUN, *more]
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, **environment})


def main(_):
    cluster = {"worker": ["localhost:23451", "localhost:23452"]}
    with tempfile.TemporaryDirectory() as directory:
        two, one = pathlib.Path(directory) / "two", pathlib.Path(directory) / "one"
        config = [json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}}) for index in range(2)]
        workers = [start(two, "--strategy=multi_worker", TF_CONFIG=task) for task in config]
        assert [worker.wait() for worker in workers] == [0, 0]
        assert start(one, "--strategy=single", "--batch_size=2").wait() == 0
        networks = [keras.models.load_model(run / "level_1" / "model.keras") for run in (two, one)]
    a, b = (np.concatenate([np.ravel(w) for w in network.get_weights()]) for network in networks)
    volume = np.random.default_rng(0).random((1, 16, 16, 16, 1), np.float32)
    c, d = (np.asarray(keras.ops.softmax(network(volume)["logits"])) for network in networks)
    print(f"largest difference: weights {np.abs(a - b).max():.2e} (largest weight {np.abs(a).max():.2f}), ")
    print(f"probabilities on a random volume {np.abs(c - d).max():.2e}")


if __name__ == "__main__":
    app.run(main)
