"""Kills a short training run (SIGKILL) at random moments, lets it go on, and compares it with an unbroken one.

  python benchmarks/kill_and_resume.py --kills=10

Float32 on one device: the weights of every level and the scores of every case must be the same, bit for bit.
"""

import pathlib
import random
import subprocess
import sys
import tempfile
import time

import keras
import numpy as np
from absl import app, flags

import tf_autoctx.models  # noqa: F401, its layers must be known before a network is loaded

ROOT = pathlib.Path(__file__).resolve().parent.parent
SHORT_RUN = (
    "--level=2 --phantom_size=32,24,40 --phantom_cases=5,2 --base_filters=4 --steps=1000 --samples_per_epoch=50 "
    "--checkpoint_steps=7 --shift=1 --intensity_jitter=0.1 --precision=float32 --strategy=single"
).split()

FLAGS = flags.FLAGS
flags.DEFINE_integer("kills", 10, "How often the run is killed.", 1)
flags.DEFINE_integer("seed", 0, "Of the moments.")


def start(work_dir, *more):
    """Starts the short run; its output goes to work_dir.log."""
    command = [sys.executable, "train_fetal_head.py", f"--work_dir={work_dir}", *SHORT_RUN, *more]
    with open(f"{work_dir}.log", "a") as log:
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)


def results(work_dir):
    """Everything that must agree: weights of each level, history without its clock, scores."""
    work_dir = pathlib.Path(work_dir)
    networks = [
        keras.models.load_model(path) for path in sorted(work_dir.glob("level_*/model.keras"))
    ]
    weights = [w for network in networks for w in network.get_weights()]
    histories = [
        np.genfromtxt(path, delimiter=",", names=True)
        for path in sorted(work_dir.glob("level_*/history.csv"))
    ]
    weights += [history[name] for history in histories for name in ("epoch", "loss", "val_DSC")]
    return weights, (work_dir / "evaluation" / "scores.csv").read_text()


def kill_and_compare(directory, kills, seed, *more):
    """Runs the comparison in `directory`.

    Returns:
      (seconds from each start to its kill, whether weights, histories and scores are the same).
    """
    unbroken, broken = f"{directory}/unbroken", f"{directory}/broken"
    begin = time.time()
    assert start(unbroken, *more).wait() == 0, pathlib.Path(f"{unbroken}.log").read_text()
    whole = time.time() - begin
    draw, moments = random.Random(seed), []
    while len(moments) < kills:
        process = start(broken, *more)
        wait_for = draw.uniform(0.05, 0.15) * whole
        try:
            assert process.wait(wait_for) == 0, pathlib.Path(f"{broken}.log").read_text()
            sys.exit(
                f"The run finished after {len(moments)} kills, before the next one: expected {kills}; make it longer."
            )
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            moments.append(wait_for)
    assert start(broken, *more).wait() == 0, pathlib.Path(f"{broken}.log").read_text()
    (weights, scores), (again, scores_again) = results(unbroken), results(broken)
    same = len(weights) == len(again) and all(np.array_equal(a, b) for a, b in zip(weights, again))
    return moments, same and scores == scores_again


def main(_):
    with tempfile.TemporaryDirectory() as directory:
        moments, same = kill_and_compare(directory, FLAGS.kills, FLAGS.seed)
    print(
        f"killed {len(moments)} times, after {', '.join(f'{moment:.1f}' for moment in moments)} s; same result: {same}"
    )
    sys.exit(not same)


if __name__ == "__main__":
    app.run(main)
