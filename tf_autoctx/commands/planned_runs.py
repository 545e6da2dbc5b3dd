"""Runs that a table needs, trained by processes of their own where they are missing."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tf_autoctx import progress


@dataclasses.dataclass(frozen=True, eq=False)
class PlannedRun:
    """A run of a table, finished or not.

    Attributes:
      method: its row.
      folder: of the run.
      flags: {flag: value} that set it apart.
    """

    method: str
    folder: pathlib.Path
    flags: Mapping[str, Any]

    @property
    def is_finished(self) -> bool:
        """Whether it has scores, which tables need, and an export, with which a training ends."""
        written = "evaluation/scores.csv", "saved_model/1"
        return all((self.folder / name).exists() for name in written)


@dataclasses.dataclass(frozen=True)
class Trainings:
    """Trains runs, some at a time.

    Attributes:
      module: whose command trains one.
      words: flags that all of them have, as on a command line.
      jobs: trainings at a time, of one thread each if there are several.
    """

    module: str
    words: Sequence[str]
    jobs: int

    def start(self, run: PlannedRun) -> subprocess.Popen[bytes] | None:
        """A process that trains a run, or goes on with it; None where one is at it already.

        Its log, training.log of the run folder, is locked for as long as it lives, also after the
        end of this program.
        """
        run.folder.mkdir(parents=True, exist_ok=True)
        own = [f"--{name}={value}" for name, value in run.flags.items()]
        command = [sys.executable, "-m", self.module, *self.words, *own, f"--work_dir={run.folder}"]
        threads = {"TF_NUM_INTRAOP_THREADS": "1"} if self.jobs > 1 else {}
        with open(run.folder / "training.log", "a", encoding="utf-8") as log:
            try:
                fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the process inherits it
            except BlockingIOError:
                return None
            return subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | threads
            )

    def train(self, missing: Sequence[PlannedRun]) -> dict[PlannedRun, str]:
        """Trains runs: {run: why it is not finished}."""
        if not self.jobs:
            return dict.fromkeys(missing, "is not finished")
        # So that the trainings end as well.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
        waiting, failed = list(missing), {}
        running: dict[PlannedRun, subprocess.Popen[bytes]] = {}
        bar = progress.bar(len(missing), "run", "trained")
        try:
            while waiting or running:
                while waiting and len(running) < self.jobs:
                    run = waiting.pop(0)
                    process = self.start(run)
                    if process:
                        running[run] = process
                    else:
                        failed[run] = "is being trained by another process"
                time.sleep(0.2)
                for run in [run for run, process in running.items() if process.poll() is not None]:
                    if code := running.pop(run).returncode:
                        failed[run] = _told(run, code)
                    bar.add(1)
        finally:
            for process in running.values():
                process.terminate()
                process.wait()
        return failed


def _told(run: PlannedRun, code: int) -> str:
    """Why a training failed: the last line of its log, if that says so."""
    log = run.folder / "training.log"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    last = lines[-1] if lines else ""
    return last if last.startswith("error: ") else f"ended with exit code {code}, see its log"
