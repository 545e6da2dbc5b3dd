"""Timings that can be believed: sides in turn, each in a process of its own, rounds in quiet alone.

A side is something that is timed, such as our network or the same one in PyTorch. It lives in a
process of its own, so that no library's threads, memory or settings reach another's, and waits
there until it is asked for a round. Rounds go through the sides in turn, every second one in the
opposite order. Meanwhile `Meter` tells what all other processes of the machine took; a round in
which they took more than a little CPU is thrown away, and how many were is part of the result.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import importlib.metadata
import importlib.util
import json
import multiprocessing
import os
import pathlib
import platform
import re
import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from tf_autoctx.errors import UserError
from tf_autoctx.files import replacing

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROC = pathlib.Path("/proc")
OURS = ("tensorflow", "keras", "numpy", "scipy", "SimpleITK")
PEERS = ("torch", "monai", "openvino", "surface-distance", "jax")
# A round of a side lasts at least as long: the system counts CPU time in hundredths of a second.
LEAST_SECONDS = 1.0
TRIES = 4  # rounds that are tried for each that is wanted, before the machine counts as busy


# What others took


def busy_seconds() -> float:
    """CPU seconds that all processes of the machine took since it started, and the hypervisor's.

    Raises:
      UserError: no Linux.
    """
    try:
        first = (PROC / "stat").read_text().partition("\n")[0].split()[1:9]
    except OSError:
        raise UserError(f"{PROC / 'stat'}: cannot be read; expected Linux.") from None
    user, nice, system, _idle, _waiting, irq, softirq, stolen = map(int, first)
    return (user + nice + system + irq + softirq + stolen) / os.sysconf("SC_CLK_TCK")


def own_seconds(root: int | None = None) -> float:
    """CPU seconds of a process (None: this one) and of all its descendants, the ended ones too."""
    parents, seconds = {}, {}
    for folder in PROC.glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            # The name, in brackets, may hold anything.
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            parents[int(folder.name)] = int(fields[1])
            # Its own, and that of children that it has waited for.
            seconds[int(folder.name)] = sum(map(int, fields[11:15]))
    family = {root or os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    return sum(seconds.get(pid, 0) for pid in family) / os.sysconf("SC_CLK_TCK")


class Meter:
    """What other processes took between entering and leaving.

    Attributes:
      seconds: between the two.
      others: CPUs that all other processes took meanwhile, 1.0 for one core all the time.
    """

    seconds = others = 0.0

    def __enter__(self) -> Meter:
        self._begin = time.perf_counter(), busy_seconds() - own_seconds()
        return self

    def __exit__(self, *_: object) -> None:
        begin, foreign = self._begin
        self.seconds = time.perf_counter() - begin
        self.others = max(0.0, busy_seconds() - own_seconds() - foreign) / self.seconds


# Sides


@dataclasses.dataclass(frozen=True)
class Ready:
    """A side that is ready to be timed, in its own process.

    Attributes:
      step: what is timed; one that times itself returns seconds.
      answer: what it computes, to be compared with other sides'; None: nothing to compare.
      facts: what else is known, such as {"parameters": 9}.
    """

    step: Callable[[], float | None]
    answer: Callable[[], np.ndarray] | None = None
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Side:
    """What is timed.

    Attributes:
      name: of the side in its row.
      factory: a function of a module, called in the side's own process.
      arguments: of the factory.
      needs: distributions that must be installed, else the side is left out.
      environment: variables of the process, set before anything is imported.
    """

    name: str
    factory: Callable[..., Ready]
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    needs: tuple[str, ...] = ()
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def missing(self) -> list[str]:
        """Those of the distributions that are not installed."""
        return [name for name in self.needs if version(name) is None]


def version(distribution: str) -> str | None:
    """Of what is installed; None: it is not."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def peak_gib() -> float:
    """The most memory that this process, or one that it ran, had so far.

    Not `ru_maxrss` of this process, which begins with that of the one it was started by.
    """
    high = re.search(r"VmHWM:\s+(\d+) kB", (PROC / "self" / "status").read_text())
    own = int(high[1]) if high else 0
    return max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) / 2**20


def timed(step: Callable[[], float | None], least: float = LEAST_SECONDS) -> float:
    """Seconds of a step: the mean over as many as last `least` seconds."""
    begin, count, own = time.perf_counter(), 0, 0.0
    while True:
        seconds, count = step(), count + 1
        own += seconds or 0.0
        elapsed = time.perf_counter() - begin
        total = elapsed if seconds is None else own
        if total >= least or elapsed >= 10 * least:
            return total / count


def _serve(
    pipe: Connection, factory: Callable[..., Ready], arguments: Any, environment: Mapping[str, str]
) -> None:
    """A side's process: gets ready, warms up, and times rounds until it is told to end."""
    try:
        os.environ.update(environment)
        ready = factory(**arguments)
        ready.step()
        answer = ready.answer() if ready.answer else None
        pipe.send(("ready", dict(ready.facts), answer))
        while pipe.recv() == "round":
            pipe.send(("timed", timed(ready.step), peak_gib()))
    except EOFError:  # the benchmark has ended
        return
    except Exception as error:
        pipe.send(("failed", told(error), None))


class Worker:
    """The process of a side.

    Attributes:
      facts, answer: see `Ready`.
      peak: GiB of memory, the most so far.

    Raises:
      SideFailed: it cannot be made ready.
    """

    def __init__(self, side: Side) -> None:
        context = multiprocessing.get_context("spawn")
        self._name = side.name
        self._pipe, theirs = context.Pipe()
        given = (theirs, side.factory, dict(side.arguments), dict(side.environment))
        self._process = context.Process(target=_serve, args=given, daemon=False)
        self._process.start()
        theirs.close()
        self.peak = 0.0
        self.facts, self.answer = self._received()

    def round(self) -> float:
        """Seconds of a step.

        Raises:
          SideFailed: the process has ended.
        """
        with contextlib.suppress(BrokenPipeError):
            self._pipe.send("round")
        try:
            seconds, self.peak = self._received()
        except SideFailed as failed:
            raise SideFailed(f"{self._name}: {failed}") from None
        return float(seconds)

    def _received(self) -> tuple[Any, Any]:
        try:
            kind, first, second = self._pipe.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            raise SideFailed(f"its process ended, exit code {self._process.exitcode}") from None
        if kind == "failed":
            self._process.join()
            raise SideFailed(first)
        return first, second

    def close(self) -> None:
        """Ends the process."""
        with contextlib.suppress(OSError):
            self._pipe.send("end")
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def told(error: Exception) -> str:
    """An error in a line, prefixed by its type."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words}"[:300]


class SideFailed(Exception):
    """A side cannot be run; the message tells why."""


# Rows


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """How far a side's answer may be from that of the first side of the row that has one.

    Attributes:
      exact: of sides in float32.
      rounded: of sides whose name holds "bfloat16".
    """

    exact: float = 1e-3
    rounded: float = 0.2

    def of(self, name: str) -> float:
        """Of a side."""
        return self.rounded if "bfloat16" in name else self.exact


@dataclasses.dataclass(frozen=True)
class Quiet:
    """When a round counts.

    Attributes:
      rounds: that are wanted.
      most_others: CPUs that other processes may take during each side's part of it.
    """

    rounds: int
    most_others: float


def compared(sides: Sequence[Side], quiet: Quiet, tolerance: Tolerance) -> dict[str, Any]:
    """Times sides in turn.

    Args:
      sides: ours first.
      quiet: when a round counts.
      tolerance: of the answers.

    Returns:
      JSON-like: {"rounds": those that count, "thrown_away", "sides": {name: {"seconds": of each
      round, "median": or None, "peak_gib", "difference": from the first answer, and facts}},
      "left_out": {name: why}}.
    """
    left_out: dict[str, str] = {}
    workers: dict[str, Worker] = {}
    try:
        for side in sides:
            if side.missing:
                left_out[side.name] = f"{', '.join(side.missing)} is not installed"
                continue
            try:
                workers[side.name] = Worker(side)
            except SideFailed as error:
                left_out[side.name] = str(error)
        differences = _differences(workers, tolerance)
        for name, (_, told) in differences.items():
            if told:
                left_out[name] = told
                workers.pop(name).close()
        seconds, thrown = _alternated(workers, quiet)
        return {
            "rounds": len(next(iter(seconds.values()), [])),
            "thrown_away": thrown,
            "most_others": quiet.most_others,
            "sides": {
                name: {
                    "seconds": seconds[name],
                    "median": statistics.median(seconds[name]) if seconds[name] else None,
                    "peak_gib": round(worker.peak, 2),
                    **({"difference": differences[name][0]} if name in differences else {}),
                    **worker.facts,
                }
                for name, worker in workers.items()
            },
            "left_out": left_out,
        }
    finally:
        for worker in workers.values():
            worker.close()


def _differences(
    workers: Mapping[str, Worker], tolerance: Tolerance
) -> dict[str, tuple[float, str]]:
    """{side: (largest difference from the first answer, what is wrong)}; "" where nothing is."""
    answering = {name: worker for name, worker in workers.items() if worker.answer is not None}
    differences: dict[str, tuple[float, str]] = {}
    for name, worker in answering.items():
        first = next(iter(answering.values()))
        told, off = "", float("inf")
        if np.shape(worker.answer) == np.shape(first.answer):
            off = float(np.abs(np.asarray(worker.answer) - np.asarray(first.answer)).max())
        if not off <= tolerance.of(name):
            told = f"its answer is off by {off:.2g}; expected at most {tolerance.of(name)}"
        counts = worker.facts.get("parameters"), first.facts.get("parameters")
        if None not in counts and counts[0] != counts[1]:
            told = f"it has {counts[0]} parameters; expected {counts[1]}"
        differences[name] = off, told
    return differences


def _alternated(workers: Mapping[str, Worker], quiet: Quiet) -> tuple[dict[str, list[float]], int]:
    """Seconds of each side in the rounds that count, and how many were thrown away."""
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    count = thrown = 0
    while workers and count < quiet.rounds and count + thrown < TRIES * quiet.rounds:
        names = list(workers)[:: -1 if (count + thrown) % 2 else 1]
        this, noise = {}, 0.0
        for name in names:
            with Meter() as meter:
                this[name] = workers[name].round()
            noise = max(noise, meter.others)
        if noise > quiet.most_others:
            thrown += 1
            continue
        count += 1
        for name, value in this.items():
            seconds[name].append(value)
    return seconds, thrown


def called(function: Callable[..., Any], *arguments: Any, **environment: str) -> Any:
    """What a function returns in a process of its own, with some environment variables."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_call, args=(theirs, function, arguments, environment))
    process.start()
    theirs.close()
    try:
        kind, result = ours.recv()
    except EOFError:
        process.join()
        raise SideFailed(f"its process ended, exit code {process.exitcode}") from None
    finally:
        process.join()
    if kind == "failed":
        raise SideFailed(result)
    return result


def _call(
    pipe: Connection, function: Callable[..., Any], arguments: Any, environment: Mapping[str, str]
) -> None:
    try:
        os.environ.update(environment)
        pipe.send(("done", function(*arguments)))
    except Exception as error:
        pipe.send(("failed", told(error)))


# Records


def machine() -> dict[str, Any]:
    """What a timing depends on: processor, cores, memory, versions, and our revision."""
    cpu = re.search(r"model name\s*: (.*)", (PROC / "cpuinfo").read_text())
    flags = re.search(r"flags\s*: (.*)", (PROC / "cpuinfo").read_text())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    extensions = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
    return {
        "processor": cpu[1] if cpu else platform.machine(),
        "extensions": [name for name in extensions if flags and name in flags[1].split()],
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory, 1),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in (*OURS, *PEERS) if version(name)},
        "revision": revision(),
    }


def revision() -> str | None:
    """The commit that is checked out, with + where files differ from it; None: no repository."""
    words = ("git", "describe", "--always", "--dirty=+", "--exclude=*")
    try:
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() or None


def read_record(path: pathlib.Path) -> dict[str, Any]:
    """{row: result} of a file of results; empty where there is none.

    Raises:
      UserError: it is damaged.
    """
    if not path.exists():
        return {}
    try:
        record = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: is no JSON ({error}); delete it or take another name.") from None
    return dict(record)


def write_record(path: pathlib.Path, row: str, result: Mapping[str, Any]) -> None:
    """Puts a row's result into a file of results, in place of an earlier one."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    record = read_record(path) | {row: {"made": now, "machine": machine(), **result}}
    with replacing(path) as partial:
        partial.write_text(as_json(record), "utf-8")


def as_json(record: Mapping[str, Any]) -> str:
    """A file of results as text: an entry a line, long lists of numbers in one."""
    text = json.dumps(record, indent=1)
    return re.sub(r"\[\s+([-\d.,e\s]+?)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", text) + "\n"


def lines(result: Mapping[str, Any]) -> Iterator[str]:
    """A row's result in words, a line a side."""
    sides = result.get("sides", {})
    for system, by_precision in result.get("profiles", {}).items():
        for precision, profile in by_precision.items():
            yield f"  {system}, {precision}: {100 * profile['convolutions']:.0f} % convolutions"
    first = next((side["median"] for side in sides.values() if side["median"]), None)
    for name, side in sides.items():
        if side["median"] is None:
            yield f"  {name}: no quiet round"
            continue
        spread = f"{min(side['seconds']):.3f} to {max(side['seconds']):.3f}"
        ratio = f", {side['median'] / first:.2f} times the first" if first else ""
        yield f"  {name}: {side['median']:.3f} s ({spread}){ratio}, peak {side['peak_gib']} GiB"
    for name, why in result["left_out"].items():
        yield f"  {name}: left out, {why}"
    yield f"  {result.get('rounds', 1)} rounds count, {result['thrown_away']} thrown away"
