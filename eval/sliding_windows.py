"""The sliding-window peer of an embryo run (Xu et al. 2020, table 1, "Benchmark"), trained and scored on its cases.

  python eval/sliding_windows.py --run=runs/embryo --output=runs/sliding_windows
  python eval/sliding_windows.py --run=runs/embryo --output=runs/sliding_windows --window=32     # phantoms of 0.125 mm

A localiser, a small VNet for the ventricle and one for the body are trained one after the other; what is not a flag
here is as in the run. Where it was stopped, the same command goes on. eval/embryo_tables.py puts it beside the run.
"""

import dataclasses
import functools
import pathlib

import numpy as np
from absl import app, flags

from tf_autoctx import errors, flag_types
from tf_autoctx.data import augment, datasets
from tf_autoctx.systems import caching, evaluation, refinement, sliding_windows
from tf_autoctx.training import devices, loop, runs

FLAGS = flags.FLAGS
flags.DEFINE_string("run", None, "Run folder of train_embryo.py.", required=True)
flags.DEFINE_string("output", None, "Folder of the peer; what is there goes on.", required=True)
flag_types.define_edge(
    "window", 64, "Edge of the windows in voxels; 64 are 3.2 mm in the paper.", multiple=16
)
flags.DEFINE_integer("stride", 3, "Voxels from one window of the localiser to the next.", 1)
flags.DEFINE_integer(
    "steps", None, "Optimizer steps per network. Default: those of all finished stages together.", 1
)
flags.DEFINE_integer("window_batch", 32, "Windows in one pass of the localiser.", 1)


def main(_):
    config, system = refinement.run_of(FLAGS.run)
    cases = refinement.cases_of(FLAGS.run, config)
    given, labels = config["flags"], system.labels
    steps = FLAGS.steps or given["steps"] * len(refinement.finished(FLAGS.run))
    settings = dataclasses.replace(runs.configured(loop.Settings, given), steps=steps)
    motion = runs.configured(augment.RigidMotion, given)
    peer = sliding_windows.beside(system, FLAGS.window, FLAGS.stride)
    strategy = devices.strategy(given["strategy"])
    precision = devices.set_up(given["precision"], settings.seed)
    made_with = {
        "precision": precision,
        **{k: v for one in (peer, settings, motion) for k, v in vars(one).items()},
    }
    output = runs.open_run(
        FLAGS.output, sliding_windows.NAME, made_with, config["data_fingerprint"]
    )
    runs.note(output, labels=labels)

    # The run's own cache: the same volumes
    read = functools.partial(
        datasets.read_case, foreground=list(labels), labels=cases.labels, merge=False
    )
    held_out = evaluation.held_out(cases, read)
    training, validation = (
        caching.cached(part, pathlib.Path(FLAGS.run) / "cache", read, refinement.prepared(system))
        for part in (cases.train, cases.validation)
    )
    sliding_windows.warn_of_large(peer.window, training)
    networks = {
        name: sliding_windows.train(
            name, peer, training, validation, output, strategy, settings, motion
        )
        for name in sliding_windows.NETWORKS
    }

    # Held-out cases on their original grid, all windows
    if not devices.is_chief(strategy):
        return
    segment = sliding_windows.segmentor(system, peer, networks, FLAGS.window_batch)
    values = np.array([0, *labels], np.uint8)
    evaluation.evaluate(
        sliding_windows.NAME,
        held_out,
        lambda voxels: {sliding_windows.METHOD: {"label": values[segment(voxels)[0]]}},
        output / "evaluation",
        {name: value for value, name in labels.items()},
        read,
        config["spacing"],
    )


if __name__ == "__main__":
    app.run(errors.in_one_sentence(main))
