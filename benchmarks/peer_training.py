r"""The peer of the tables of real data: MONAI's DynUNet, trained for as long as our own runs were.

  python benchmarks/peer_training.py --runs=runs/results/hippocampus --method=USegNet-DS-HAS-Ctx \
      --jobs=2 --output=runs/dynunet

For every run folder RUNS/METHOD_seed_SEED or RUNS/METHOD_seed_SEED_fold_FOLD, finished by
autoctx-fetal-head-tables or autoctx-multi-organ-tables, a DynUNet learns from the same cases for
the same seconds, those of all levels of the run together (seconds of a step times steps, of its
history.csv), and is scored on the same cases by our own metrics, on the images' own grid and
without post-processing. Reading the cases is no part of the seconds, as it is none of ours.

How it is set up stands in benchmarks/dynunet.py. Volumes are not resampled; a CT is clipped to the
window of the run, other images have mean 0 and SD 1. With --jobs=2 two trainings run at a time, of
a thread each, as our own do: give what they were given. With --jobs=0 nothing is trained.

Writes OUTPUT/RUN/scores.csv and training.json (seconds, steps, patch, threads) of each, and of all
together scores.csv, whose rows pair with those of our tables by run. A peer that is finished is
read; one that was stopped begins anew.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import harness
import numpy as np

from tf_autoctx import files, progress
from tf_autoctx.commands.command_line import Command, Given
from tf_autoctx.commands.planned_runs import Jobs, PlannedRun
from tf_autoctx.configuration import check, field
from tf_autoctx.data import datasets, images, labels
from tf_autoctx.errors import UserError
from tf_autoctx.report import histories, repeated, tables
from tf_autoctx.systems.shared import scored_runs, seen
from tf_autoctx.training import runs
from tf_autoctx.training.runs import Run

METHOD = "DynUNet"
SECONDS = "seconds_per_step"  # of history.csv
PACKAGES = ("torch", "monai")
HU_PER_UNIT = 100.0  # of a CT, as the multi-organ system has it
# Whether all label values are one object, of the systems whose runs have a peer.
MERGED = {"fetal_head": True, "multi_organ": False}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PeerTraining(Jobs):
    """Benchmark: whose peers are trained"""

    runs: str = field(..., "Folder of the run folders.")
    method: str = field(..., "Method whose runs have a peer: what their names begin with.")
    output: str = field(..., "Folder of the peers, and of the scores of all.")

    def __post_init__(self) -> None:
        check(self)


# A run, and what its peer has in common with it


@dataclasses.dataclass(frozen=True)
class Peer:
    """The peer of a finished run.

    Attributes:
      run: ours.
      folder: of the peer.
    """

    run: Run
    folder: pathlib.Path

    @property
    def is_finished(self) -> bool:
        """Whether it has scores."""
        return (self.folder / "scores.csv").exists()

    @property
    def shared(self) -> dict[str, Any]:
        """What it must have in common with the run, for training.json."""
        return {"data_fingerprint": self.run.fingerprint, "seconds": seconds_of(self.run)}

    def rows(self) -> list[tables.Row]:
        """Those of a finished peer, named as our tables name those of the run.

        Raises:
          UserError: it is the peer of another run.
        """
        told = files.read_json(self.folder / "training.json", "what a peer's training told")
        different = [name for name, value in self.shared.items() if told.get(name) != value]
        if different:
            raise UserError(
                f"{self.folder}: its training had other {', '.join(different)} than "
                f"{self.run.folder}; expected the peer of this run, delete the folder to train it."
            )
        name = scored_runs.name_of(self.run)
        return [repeated.named(name, row) for row in tables.read(self.folder)]


def seconds_of(run: Run) -> float:
    """What the steps of all levels of a run took, tracing in the first of them among it; what comes
    between levels and after the last is not.

    Raises:
      UserError: there is no history, or it is none of ours.
    """
    steps, samples, batch = (
        run.flags[name] for name in ("steps", "samples_per_epoch", "batch_size")
    )
    epoch_steps, total = math.ceil(samples / batch), 0.0
    for path in sorted(run.folder.glob("*/history.csv")):
        for epoch, seconds in enumerate(histories.read(path).get(SECONDS, [])):
            total += min(epoch_steps, steps - epoch * epoch_steps) * seconds
    if not total:
        raise UserError(
            f"{run.folder}: no history.csv tells what a level took; expected {SECONDS} of an epoch."
        )
    return total


def cases_of(run: Run) -> datasets.Dataset:
    """The cases of a run, if its peer can learn from them.

    Raises:
      UserError: their files are gone or have changed; a run of another system, or of what the peer
        is not set up for.
    """
    if run.system not in MERGED:
        expected = " or ".join(repr(name) for name in MERGED)
        raise UserError(f"{run.folder}: a run of {run.system!r}; expected one of {expected}.")
    cases = seen.cases_of(run)
    found = [name for name in ("grid", "regions") if run.facts.get(name)]
    found += ["voxels to be ignored"] * (labels.ignored(cases.labels) is not None)
    if found:
        raise UserError(
            f"{run.folder}: has {', '.join(found)}; expected a run on the images' own grid, of "
            "label values of every voxel."
        )
    return cases


def read(case: datasets.Case, run: Run, known: Mapping[int, str]) -> tuple[images.Image, Any]:
    """Image and label (z, y, x) of a case, as the run reads it.

    Raises:
      UserError: see `datasets.read_case`.
    """
    merged = MERGED[run.system]
    values = run.flags["foreground"] if merged else list(run.labels)
    return datasets.read_case(case, values, known, merge=merged)


def normalized(image: images.Image, run: Run) -> np.ndarray:
    """Voxels (channels, z, y, x) float32: those of a CT in hundreds of HU above the lower end of
    the run's window, others of mean 0 and SD 1."""
    voxels = np.moveaxis(images.batch(image.array, 3)[0], -1, 0)
    if run.flags.get("intensities") == "hu":
        low, high = run.flags["window_low"], run.flags["window_high"]
        voxels = (np.clip(voxels, low, high) - low) / HU_PER_UNIT
    else:
        axes = (1, 2, 3)
        voxels = (voxels - voxels.mean(axes, keepdims=True)) / voxels.std(axes, keepdims=True)
    return np.ascontiguousarray(voxels, np.float32)


# One peer, in a process of its own


def train(run_folder: str, folder: str, threads: int) -> None:
    """Trains the peer of a run and writes its scores, last of all.

    Args:
      run_folder: ours.
      folder: the peer's.
      threads: of PyTorch.
    """
    # MONAI would load it for TensorBoard: seconds, and threads that no process should fork from.
    sys.modules.setdefault("tensorflow", None)  # type: ignore[arg-type]
    peer = Peer(runs.load(run_folder), pathlib.Path(folder))
    with files.owning():
        files.own(folder)
        path = peer.folder / "training.log"
        with open(path, "a", encoding="utf-8") as log, contextlib.redirect_stdout(log):
            _train(peer, threads)


def _train(peer: Peer, threads: int) -> None:
    import dynunet

    run, cases = peer.run, cases_of(peer.run)
    values, learnt = [0, *sorted(run.labels)], {}
    for case in cases.train:
        image, label = read(case, run, cases.labels)
        classes = np.searchsorted(values, label)[None].astype(np.uint8)
        learnt[case.name] = {"image": normalized(image, run), "label": classes}
    seconds = peer.shared["seconds"]
    plan = dynunet.Plan(
        edges=dynunet.edges_for([case["label"].shape[1:] for case in learnt.values()]),
        channels=len(run.channels),
        classes=len(values),
        mirrored=len(run.labels) == 1,  # several may be told apart as left and right
        seconds=seconds,
        threads=threads,
        seed=run.flags["seed"],
    )
    bar = progress.bar(round(seconds), "second", "trained")
    made = dynunet.trained([*learnt.values()], plan, lambda so_far: bar.update(int(so_far)))
    told = {
        **dataclasses.asdict(plan),
        **peer.shared,
        "cases": [*learnt],
        "steps": made.steps,
        "seconds_per_step": seconds / made.steps,
        "parameters": sum(weights.numel() for weights in made.network.parameters()),
        "versions": {name: harness.version(name) for name in PACKAGES},
    }
    with files.replacing(peer.folder / "training.json") as path:
        path.write_text(json.dumps(told, indent=1) + "\n", "utf-8")
    tables.write(peer.folder, scores(run, cases, made, plan))


def scores(run: Run, cases: datasets.Dataset, made: Any, plan: Any) -> list[tables.Row]:
    """Rows of the cases that the run was scored on, by the metrics that scored it."""
    values = np.array([0, *sorted(run.labels)], np.uint8)
    names = {row["case"] for row in tables.read(run.folder / "evaluation")}
    scored = [case for case in (*cases.test, *cases.validation) if case.name in names]
    bar, rows = progress.bar(len(scored), "case", "scored"), []
    for case in scored:
        image, truth = read(case, run, cases.labels)
        found = values[made.segment(normalized(image, run), plan)]
        about = {"system": run.system, "method": METHOD, "case": case.name, "group": case.group}
        how = image.millimetres, run.labels, None, run.flags["surface_tolerance"]
        rows += [about | row for row in tables.scores(found, truth, *how)]
        bar.add(1)
    return rows


# All of them


def peers(chosen: PeerTraining) -> tuple[list[Peer], list[pathlib.Path]]:
    """Those of the finished runs of a method, and the folders of its other runs.

    Raises:
      UserError: there is no run of it; see `cases_of`.
    """
    folders = sorted(pathlib.Path(chosen.runs).glob(f"{chosen.method}_seed_*"))
    if not folders:
        raise UserError(
            f"{chosen.runs}: holds no folder {chosen.method}_seed_...; expected finished runs of "
            "`method`."
        )
    finished = [folder for folder in folders if PlannedRun(METHOD, folder, {}).is_finished]
    found = [Peer(runs.load(one), pathlib.Path(chosen.output) / one.name) for one in finished]
    for peer in found:
        cases_of(peer.run)
    return found, [folder for folder in folders if folder not in finished]


def train_all(missing: Sequence[Peer], jobs: int) -> dict[pathlib.Path, str]:
    """Trains peers, some at a time: {folder: why it is not trained}.

    Raises:
      UserError: PyTorch or MONAI is not there.
    """
    for name in PACKAGES:
        if harness.version(name) is None:
            raise UserError(f"{name} is not installed; run pip install -e '.[benchmarks]'.")
    threads = 1 if jobs > 1 else len(os.sched_getaffinity(0))
    bar, pool = progress.bar(len(missing), "peer", "trained"), ThreadPoolExecutor(jobs)
    reasons: dict[pathlib.Path, str] = {}

    def trained(peer: Peer) -> None:
        try:
            harness.called(train, str(peer.run.folder), str(peer.folder), threads)
        except harness.SideFailed as failed:
            reasons[peer.folder] = f"is not trained ({failed})"

    try:
        for _ in pool.map(trained, missing):
            bar.add(1)
    finally:
        pool.shutdown(cancel_futures=True)
    return reasons


def main(given: Given) -> None:
    """Runs the benchmark."""
    chosen = given.configured(PeerTraining)
    found, others = peers(chosen)
    missing = [peer for peer in found if not peer.is_finished]
    unfinished = dict.fromkeys((*others, *(peer.folder for peer in missing)), "is not finished")
    if missing and chosen.jobs:
        unfinished = dict.fromkeys(others, "is not finished") | train_all(missing, chosen.jobs)
    rows = [row for peer in found if peer.is_finished for row in peer.rows()]
    if rows:
        files.own(chosen.output)
        test = repeated.over_runs(rows, scored_runs.overlap_of(peer.run for peer in found))
        tables.write(chosen.output, rows, test=test)
        one = len({row["structure"] for row in rows}) == 1
        print(tables.table(rows) if one else tables.dice_table(rows))
    if unfinished:
        folder, reason = next(iter(unfinished.items()))
        raise UserError(
            f"{folder}: {reason}; {len(unfinished)} of the runs of {chosen.method} and their peers "
            "are not in the table."
        )


command = Command(main, (PeerTraining,), __doc__)


if __name__ == "__main__":
    command()
