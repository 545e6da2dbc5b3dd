"""Runs that a table needs: read where they are finished, trained by processes of their own where
they are missing, gone on with where they were stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tf_autoctx import configuration, progress
from tf_autoctx.commands import training
from tf_autoctx.commands.command_line import Command, Given
from tf_autoctx.configuration import check, field
from tf_autoctx.errors import FieldError, UserError
from tf_autoctx.systems.shared.declaration import Declaration

if TYPE_CHECKING:
    from tf_autoctx.data import datasets

Flags = Mapping[str, Any]  # {flag: value}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Jobs:
    """Trainings: how many run beside each other."""

    jobs: int = field(
        1,
        "Trainings at a time, of one thread each if there are several; 0 trains nothing.",
        least=0,
    )

    def __post_init__(self) -> None:
        check(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seeds(Jobs):
    """Trainings: what is missing of a table, and how many run beside each other."""

    seeds: tuple[int, ...] | None = field(
        None,
        "Seeds of the runs: what is missing of them is trained in the one folder that runs then "
        "names, by the flags of the training. By default the runs are those that runs names.",
        least=0,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class PlannedRun:
    """A run of a table, finished or not.

    Attributes:
      method: its row.
      folder: of the run.
      flags: {flag: value} that set it apart.
      after: a run that it starts from.
    """

    method: str
    folder: pathlib.Path
    flags: Flags
    after: PlannedRun | None = None

    @property
    def is_finished(self) -> bool:
        """Whether it has scores, which tables need, and an export, with which a training ends."""
        written = "evaluation/scores.csv", "saved_model/1"
        return all((self.folder / name).exists() for name in written)


@dataclasses.dataclass(frozen=True)
class Trainings:
    """Trains runs, some at a time.

    Attributes:
      command: that trains one.
      given: flags that all of them have, if the command knows them.
      jobs: trainings at a time, of one thread each if there are several.
    """

    command: Command
    given: Given
    jobs: int

    def start(self, run: PlannedRun) -> subprocess.Popen[bytes] | None:
        """A process that trains a run, or goes on with it; None where one is at it already.

        Its log, training.log of the run folder, is locked for as long as it lives, also after the
        end of this program.
        """
        run.folder.mkdir(parents=True, exist_ok=True)
        flags = {**run.flags, "work_dir": str(run.folder)}
        words = self.command.serialized(Given(self.given | flags, self.given.typed | flags.keys()))
        module = self.command.main.__module__
        threads = {"TF_NUM_INTRAOP_THREADS": "1"} if self.jobs > 1 else {}
        with open(run.folder / "training.log", "a", encoding="utf-8") as log:
            try:
                fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the process inherits it
            except BlockingIOError:
                return None
            return subprocess.Popen(
                [sys.executable, "-m", module, *words],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | threads,
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
                for run in [run for run in waiting if run.after not in {*waiting, *running}]:
                    if len(running) == self.jobs:
                        break
                    waiting.remove(run)
                    process = self.start(run)
                    if process:
                        running[run] = process
                    else:
                        failed[run] = "is being trained by another process"
                time.sleep(0.2)
                for run in [run for run, process in running.items() if process.poll() is not None]:
                    code = running.pop(run).returncode
                    if code or not run.is_finished:
                        failed[run] = _told(run, code)
                    bar.add(1)
        finally:
            for process in running.values():
                process.terminate()
                process.wait()
        return failed

    @contextlib.contextmanager
    def finished(self, wanted: Sequence[PlannedRun]) -> Iterator[list[PlannedRun]]:
        """Those of the runs that are finished, once what is missing was trained; what could not be
        is told after the block, which makes the tables of the others.

        Raises:
          UserError: a run is not finished.
        """
        failed = self.train([run for run in wanted if not run.is_finished])
        done = [run for run in wanted if run not in failed]
        if not done:
            reason = failed[wanted[0]]
            raise UserError(f"{wanted[0].folder}: {reason}; expected a finished run to tabulate.")
        yield done
        for run, reason in failed.items():
            print(f"{run.folder}: {reason}")
        if failed:
            run, reason = next(iter(failed.items()))
            left_out = f"{len(failed)} of {len(wanted)} runs are not in the tables"
            raise UserError(f"{run.folder}: {reason}; {left_out}.")


def _told(run: PlannedRun, code: int) -> str:
    """Why a training failed: the last line of its log, if that says so."""
    log = run.folder / "training.log"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    last = lines[-1] if lines else ""
    return last if last.startswith("error: ") else f"ended with exit code {code}, see its log"


# What is planned


def require_some(flag: str, chosen: Sequence[str], known: Collection[str]) -> None:
    """Raises a `FieldError` for methods of a flag that are not known or given twice, and where
    there is none."""
    if not chosen or not set(chosen) <= set(known) or len(set(chosen)) < len(chosen):
        raise FieldError(flag, chosen, f"expected some of {', '.join(known)}, each once.")


def require_left(given: Given, names: Collection[str]) -> None:
    """Raises a `UserError` for a flag that the tables set, in which their runs differ."""
    for name in names:
        if name in given.typed:
            raise UserError(
                f"`{name}`: the tables set this flag; expected `seeds`, `runs` and methods alone."
            )


def parts(seeds: Sequence[int], given: Given) -> list[tuple[str, dict[str, int]]]:
    """[(name, {flag: value})] of the runs of a method: of every seed, and with `folds` alone of
    every fold too.

    Raises:
      FieldError: a seed that is given twice.
    """
    if len(set(seeds)) < len(seeds):
        raise FieldError("seeds", tuple(seeds), "one is given twice; expected each once.")
    folds = (
        range(1, given["folds"] + 1) if given["folds"] and not given["fold"] else [given["fold"]]
    )
    return [
        (f"seed_{seed}_fold_{fold}", {"seed": seed, "fold": fold})
        if fold
        else (f"seed_{seed}", {"seed": seed})
        for seed in seeds
        for fold in folds
    ]


def require_alike(
    run: PlannedRun, declaration: Declaration, values: Flags, cases: datasets.Dataset | None
) -> None:
    """Raises a `UserError` for a run folder of other flags or data, and for one of another system.

    Args:
      run: planned; there need be none yet.
      declaration: of the system.
      values: {flag: value} of all that have none in `run.flags`.
      cases: that it would be trained on; None: its own phantoms.
    """
    from tf_autoctx.data import datasets
    from tf_autoctx.systems.shared import patches
    from tf_autoctx.training import runs

    if not runs.is_trained(run.folder):
        return
    made = runs.load(run.folder)
    flags = {**values, **run.flags}
    flags["precision"] = made.precision(flags["precision"])
    flags |= patches.planned_before(made.facts, flags)
    flags |= declaration.load().implied(flags)
    kinds = training.kinds(declaration)
    # A run goes on with more levels; in a table it is another row.
    changeable = configuration.changeable(kinds) - {"level"}
    fingerprint = datasets.fingerprint(cases) if cases else made.fingerprint
    earlier = configuration.earlier(kinds)
    making = runs.Making(declaration.name, flags, fingerprint, changeable, earlier=earlier)
    if different := runs.differences(made, making):
        raise UserError(
            f"{run.folder}: this run folder was made with {', '.join(different)}; give the same "
            "flags, or another `runs`."
        )


@dataclasses.dataclass(frozen=True)
class Methods:
    """The methods of a table, whose runs its command reads, or trains where they are missing.

    Attributes:
      declaration: of the system.
      command: that trains a run.
      tables: configurations of the table's command, of which one has the field `runs`.
      flags: {method: {flag: value} that set it apart}, one that others start from before them.
      starting_from: {method: (flag, method whose run of the same seed and fold it names)}.
    """

    declaration: Declaration
    command: Command
    tables: tuple[type, ...]
    flags: Mapping[str, Flags]
    starting_from: Mapping[str, tuple[str, str]] = dataclasses.field(default_factory=dict)

    @property
    def of_trainings(self) -> tuple[type, ...]:
        """Configurations of the flags of a training, but for those that are the table's too."""
        own = {name for kind in self.tables for name in configuration.rules(kind)}
        return tuple(configuration.without(kind, own) for kind in training.kinds(self.declaration))

    @property
    def kinds(self) -> tuple[type, ...]:
        """Configurations of the table's command."""
        return (*self.tables, Seeds, *self.of_trainings)

    @contextlib.contextmanager
    def folders(self, given: Given, chosen: Sequence[str]) -> Iterator[list[str]]:
        """Folders of finished runs: those that `runs` names, or with `seeds` those of the methods
        that are chosen.

        Raises:
          UserError: flags of a training without `seeds`, or that the table sets; a run folder of
            other flags or data; a run that is not finished.
        """
        if given["seeds"] is None:
            for name in (name for kind in self.of_trainings for name in configuration.rules(kind)):
                if name in given.typed:
                    raise UserError(f"`{name}`: a flag of trainings; expected `seeds` beside it.")
            yield list(given["runs"])
            return
        wanted = self._planned(given, chosen)
        with Trainings(self.command, given, given["jobs"]).finished(wanted) as finished:
            yield [str(run.folder) for run in finished]

    def _planned(self, given: Given, chosen: Sequence[str]) -> list[PlannedRun]:
        """The runs that the flags ask for, seed by seed and fold by fold."""
        from tf_autoctx.data import datasets

        require_left(given, {"work_dir", *(name for of in self.flags.values() for name in of)})
        if len(given["runs"]) > 1:
            message = "expected one folder, for the runs of all `seeds`."
            raise FieldError("runs", given["runs"], message)
        values = training.filled(self.declaration, given)
        planned: list[PlannedRun] = []
        for name, part in parts(given["seeds"], given):
            source = values["data_dir"]
            runs: dict[str, PlannedRun] = {}
            cases = datasets.of_flags(source, values | part) if source else None
            for method in (method for method in self.flags if method in chosen):
                flag, first = self.starting_from.get(method, ("", ""))
                flags, after = {**self.flags[method], **part}, runs.get(first)
                if after:
                    flags[flag] = str(after.folder)
                folder = pathlib.Path(given["runs"][0]) / f"{method}_{name}"
                runs[method] = PlannedRun(method, folder, flags, after)
                require_alike(runs[method], self.declaration, values, cases)
            planned += runs.values()
        return planned
