"""How long the four systems take on one GPU, on JAX and in PyTorch; TensorFlow is not needed.

  KERAS_BACKEND=jax python benchmarks/gpu.py                      # ends within 8 minutes
  python benchmarks/gpu.py --deadline=1200 --entry=300
  python benchmarks/gpu.py --tiny --deadline=300                  # anywhere: whether it runs

Entries are measured in the order of `ENTRIES`, the most wanted first, each in a process of its own;
each is written into --output as soon as it is there, and what was not reached is named there.
`gpu_page.py` makes docs/gpu.md of that file. "tf32" is float32 whose convolutions may run through
TensorFloat-32 products, "float32" is float32 without: every entry says which it is. The geometry
(crops, boxes, resampling) never does.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import pathlib
import platform
import statistics
import subprocess
from multiprocessing.connection import Connection
from time import monotonic, perf_counter
from typing import Any

import harness
import numpy as np
from tasks import TASKS

from tf_autoctx.commands.command_line import Command, Given
from tf_autoctx.configuration import check, field
from tf_autoctx.files import replacing

FRAMEWORKS = ("jax", "torch")
KINDS = ("inference", "training")
PRECISIONS = ("bfloat16", "tf32", "float32")
ENOUGH_SECONDS, ENOUGH_RUNS = 3.0, 20  # of an entry, whichever is there first
RESERVE = 5.0  # seconds before the deadline in which processes end


@dataclasses.dataclass(frozen=True)
class Entry:
    """What is measured.

    Attributes:
      system: of `tasks.TASKS`.
      kind: "inference" (of the renderer: an iteration online) or "training" (a step).
      precision: of `PRECISIONS`.
      framework: "jax" or "torch".
      way: of PyTorch: "channels last", or "compiled" (by torch.compile as well).
    """

    system: str
    kind: str
    precision: str
    framework: str
    way: str = ""

    @property
    def name(self) -> str:
        """In words that differ from entry to entry."""
        parts = (self.system, self.kind, self.precision, self.framework, self.way)
        return ", ".join(filter(None, parts))

    @property
    def tf32(self) -> bool | None:
        """Whether TensorFloat-32 was on; None: the products are bfloat16's."""
        return None if self.precision == "bfloat16" else self.precision == "tf32"


def _entries() -> tuple[Entry, ...]:
    """Each system in bfloat16 and in float32 with TF32, PyTorch beside it; then what takes longest
    to make ready or is wanted least: torch.compile, and float32 without TF32."""
    wanted = [(system, kind) for kind in KINDS for system in TASKS]

    def beside(precision: str) -> list[Entry]:
        return [
            Entry(system, kind, precision, framework, way)
            for system, kind in wanted
            for framework, way in (("jax", ""), ("torch", "channels last"))
        ]

    compiled = [Entry(*task, "bfloat16", "torch", "compiled") for task in wanted]
    return (*beside("bfloat16"), *beside("tf32"), *compiled, *beside("float32"))


ENTRIES = _entries()


@dataclasses.dataclass(frozen=True)
class Gpu:
    """Benchmark: what is measured, and until when"""

    systems: tuple[str, ...] = field(tuple(TASKS), "Systems, the first ones first.")
    deadline: float = field(480.0, "Seconds after which the benchmark ends.", least=10.0)
    entry: float = field(
        90.0, "Seconds after which an entry is given up, its compilation included.", least=5.0
    )
    output: str = field("docs/gpu.json", "File of the results, written anew.")
    tiny: bool = field(
        False,
        "Networks of two channels on tiny images: whether everything runs, on any machine.",
    )

    def __post_init__(self) -> None:
        check(self)


# In the process of an entry


def _serve(pipe: Connection, framework: str) -> None:
    """Imports what a framework needs, waits for an entry, and measures it."""
    os.environ["KERAS_BACKEND"] = framework
    # As much memory as is needed, so that PyTorch's processes find some.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    try:
        if framework == "jax":
            import in_jax  # noqa: F401
        else:
            import torch_tasks  # noqa: F401
        while (given := pipe.recv()) is not None:
            entry, tiny = given
            measure = _measured_on_jax if entry.framework == "jax" else _measured_in_pytorch
            pipe.send(("done", measure(entry, tiny)))
    except EOFError:
        return
    except Exception as error:
        pipe.send(("failed", harness.told(error)))


def _timed(step: Any) -> list[float]:
    """Seconds of each of several steps, after one to warm up."""
    step()
    runs: list[float] = []
    while len(runs) < 3 or (sum(runs) < ENOUGH_SECONDS and len(runs) < ENOUGH_RUNS):
        begin = perf_counter()
        step()
        runs.append(perf_counter() - begin)
    return runs


def _result(step: Any, answer: Any, parameters: int, ready: float) -> dict[str, Any]:
    """What is kept of an entry."""
    runs = _timed(step)
    if isinstance(answer, dict):
        every = (0, *[slice(None, None, 8)] * (answer["probability"].ndim - 2))
        answer = np.asarray(answer["probability"][every], np.float32).ravel()
    return {
        "seconds": statistics.median(runs),
        "runs": runs,
        "seconds_to_ready": ready,
        "parameters": parameters,
        "answer": [float(x) for x in np.ravel(answer)[:4000]],
    }


def _measured_on_jax(entry: Entry, tiny: bool) -> dict[str, Any]:
    import in_jax
    import jax
    import keras

    begin = perf_counter()
    keras.config.set_dtype_policy("mixed_bfloat16" if entry.precision == "bfloat16" else "float32")
    # The default lets XLA run float32 convolutions and products through TF32 on a GPU.
    strict = "highest" if entry.precision == "float32" else None
    with jax.default_matmul_precision(strict):
        program, parameters = in_jax.compiled(TASKS[entry.system](tiny), entry.kind)
        answer = program.run()
    told = _result(program.step, answer, parameters, perf_counter() - begin)
    device = jax.devices()[0]
    peak = (device.memory_stats() or {}).get("peak_bytes_in_use")
    return told | {
        "device": device.device_kind,
        "peak_gib": peak / 2**30 if peak else None,
        "program_gib": program.gib,
        "version": jax.__version__,
    }


def _measured_in_pytorch(entry: Entry, tiny: bool) -> dict[str, Any]:
    import torch
    import torch_tasks

    begin = perf_counter()
    on_gpu = torch.cuda.is_available()
    torch.backends.cudnn.allow_tf32 = entry.precision == "tf32"  # the convolutions
    torch.backends.cuda.matmul.allow_tf32 = False  # the geometry
    torch.backends.cudnn.benchmark = True
    way = torch_tasks.Way(
        device="cuda" if on_gpu else "cpu",
        bfloat16=entry.precision == "bfloat16",
        channels_last=True,
        compiled=entry.way == "compiled",
    )
    program = torch_tasks.program(TASKS[entry.system](tiny), entry.kind, way)
    answer = program.run()
    told = _result(program.step, answer, program.parameters, perf_counter() - begin)
    return told | {
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None,
        "version": torch.__version__,
    }


# The benchmark


class Waiting:
    """A process that has imported a framework, or is about to, and waits for an entry."""

    def __init__(self, framework: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, framework), daemon=True)
        self._process.start()
        theirs.close()

    def measured(self, entry: Entry, tiny: bool, limit: float) -> dict[str, Any]:
        """The result of an entry, or {"failed": why}; the process has ended then."""
        try:
            self._pipe.send((entry, tiny))
            if not self._pipe.poll(max(0.0, limit)):
                return {"failed": f"not done in {limit:.0f} s"}
            kind, told = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(5)
            return {"failed": f"its process ended, exit code {self._process.exitcode}"}
        finally:
            self.close()
        return told if kind == "done" else {"failed": told}

    def close(self) -> None:
        """Ends the process."""
        if self._process.is_alive():
            self._process.kill()
        self._process.join()


def differences(results: dict[str, dict[str, Any]]) -> None:
    """Puts into every result how far its answer is from JAX's of the same task in float32 without
    TF32, or in the highest precision that was reached, as `difference` and `difference_from`."""
    for name, told in results.items():
        system, kind = name.split(", ")[:2]
        for precision in reversed(PRECISIONS):
            first = f"{system}, {kind}, {precision}, jax"
            wanted = results.get(first, {}).get("answer")
            if wanted and len(wanted) == len(told.get("answer", [])):
                told["difference_from"] = first
                told["difference"] = float(np.abs(np.subtract(told["answer"], wanted)).max())
                break


def machine() -> dict[str, Any]:
    """The GPU by its driver, where there is one, and the software."""
    words = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        gpu = subprocess.run(words, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        gpu = ""
    return {
        "gpu": gpu.partition("\n")[0] or None,
        "python": platform.python_version(),
        "versions": {
            name: harness.version(name)
            for name in ("jax", "jaxlib", "keras", "torch", "numpy")
            if harness.version(name)
        },
        "revision": harness.revision(),
    }


def write(path: pathlib.Path, tiny: bool, results: dict[str, Any], waiting: list[Entry]) -> None:
    """Writes what there is by now, and the names of what is still to be measured."""
    differences(results)
    shown = {
        name: {key: value for key, value in told.items() if key != "answer"}
        for name, told in results.items()
    }
    record = {
        "machine": machine(),
        "tiny": tiny,
        "entries": shown,
        "not_reached": [entry.name for entry in waiting],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_text(harness.as_json(record), "utf-8")


def main(given: Given) -> None:
    """Runs the benchmark."""
    chosen = given.configured(Gpu)
    end = monotonic() + chosen.deadline - RESERVE
    path, results = pathlib.Path(chosen.output), {}
    installed = [name for name in FRAMEWORKS if harness.version(name)]
    for missing in set(FRAMEWORKS) - set(installed):
        print(f"{missing} is not installed: its entries are left out")
    left = [e for e in ENTRIES if e.system in chosen.systems and e.framework in installed]
    # The next ones import while one is measured.
    ready = [(entry, Waiting(entry.framework)) for entry in left[:2]]
    while ready and monotonic() < end:
        entry, process = ready.pop(0)
        if len(left) > 2:
            ready.append((left[2], Waiting(left[2].framework)))
        left.pop(0)
        limit = min(chosen.entry, end - monotonic())
        told = process.measured(entry, chosen.tiny, limit)
        results[entry.name] = dataclasses.asdict(entry) | {"tf32": entry.tf32} | told
        write(path, chosen.tiny, results, left)
        shown = f"{told['seconds']:.4g} s" if "seconds" in told else told["failed"]
        print(f"{entry.name}: {shown}", flush=True)
    for _, process in ready:
        process.close()
    for entry in left:
        print(f"not reached: {entry.name}")


command = Command(main, (Gpu,), __doc__)

if __name__ == "__main__":
    command()
