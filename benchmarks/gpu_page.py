"""Puts the results of `gpu.py` into the tables of docs/gpu.md.

  python benchmarks/gpu_page.py

A table stands between two marks that name it; what is written around it stays. What was not reached
is named, and a number that nobody has measured is a dash.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import harness
from gpu import ENTRIES, KINDS, PRECISIONS
from pages import DASH, ratio, seconds, table, write
from tasks import TASKS

from tf_autoctx.commands.command_line import Command, Given
from tf_autoctx.configuration import check, field
from tf_autoctx.errors import UserError

Record = Mapping[str, Any]
TITLES = {
    ("fetal_head", "inference"): "fetal head: a volume of 388x258x440, two levels",
    ("fetal_head", "training"): "fetal head: a step of a level on 155x103x176",
    ("multi_organ", "inference"): "organs: a CT of 600x512x512",
    ("multi_organ", "training"): "organs: a step on 3 x 64x64x64, both levels",
    ("embryo", "inference"): "embryo: a volume of 210x281x282",
    ("embryo", "training"): "embryo: a step end to end on 210x281x282",
    ("renderer", "inference"): "renderer: an iteration online, 2 x 320x320",
    ("renderer", "training"): "renderer: an iteration of self-play, 2 x 320x320",
}
TF32 = {True: "on", False: "off", None: ""}


@dataclasses.dataclass(frozen=True)
class Page:
    """Page: where the results are, and where they go"""

    results: str = field("docs/gpu.json", "File that `gpu.py` wrote.")
    page: str = field("docs/gpu.md", "Page whose tables are written anew.")

    def __post_init__(self) -> None:
        check(self)


def speed(record: Record) -> str:
    """A line for each system, kind and precision."""
    entries = record.get("entries", {})
    lines = []
    for kind in KINDS:
        for system in TASKS:
            for precision in PRECISIONS:
                of = {
                    (entry.framework, entry.way): entries.get(entry.name, {})
                    for entry in ENTRIES
                    if (entry.system, entry.kind, entry.precision) == (system, kind, precision)
                }
                lines.append(_line(system, kind, precision, of))
    head = ["", "precision", "TF32", "JAX, s", "GiB", "PyTorch, s", "GiB", "PyTorch / JAX"]
    return table(head, lines)


def _line(
    system: str, kind: str, precision: str, of: Mapping[tuple[str, str], Mapping[str, Any]]
) -> list[str]:
    jax = of[("jax", "")]
    peers = [told for (framework, _), told in of.items() if framework == "torch"]
    measured = [told for told in peers if "seconds" in told]
    best = min(measured, key=lambda told: told["seconds"]) if measured else {}
    tf32 = None if precision == "bfloat16" else precision == "tf32"
    times = [told.get("seconds") for told in (jax, best)]
    title = TITLES[system, kind]
    shown = [title, precision.replace("tf32", "float32"), TF32[tf32]]
    shown += [seconds(times[0]), _gib(jax), seconds(times[1]), _gib(best)]
    return [*shown, ratio(times[1], times[0])]


def _gib(told: Mapping[str, Any]) -> str:
    peak = told.get("peak_gib")
    return f"{peak:.1f}" if peak else DASH


def agreement(record: Record) -> str:
    """How far answers are apart, and how long programs take to be ready."""
    lines = [
        [
            name,
            f"{told['difference']:.1e}" if "difference" in told else DASH,
            told.get("difference_from", ""),
            f"{told['seconds_to_ready']:.0f}",
        ]
        for name, told in record.get("entries", {}).items()
        if "seconds" in told
    ]
    head = ["entry", "answer off by at most", "from that of", "s until it is ready"]
    return table(head, lines or [[DASH] * 4])


def missing(record: Record) -> str:
    """What failed, and what was not reached."""
    entries = record.get("entries", {})
    failed = [f"- {n}: {told['failed']}" for n, told in entries.items() if "failed" in told]
    left = record.get("not_reached", [entry.name for entry in ENTRIES])
    return "\n".join([*failed, *(f"- {name}: not reached" for name in left)]) or "Nothing."


def conditions(record: Record) -> str:
    """On what it was measured."""
    told = record.get("machine")
    if not told:
        return "Nothing has been measured yet."
    versions = ", ".join(f"{name} {version}" for name, version in told["versions"].items())
    return f"{told['gpu'] or 'no GPU'}; Python {told['python']}, {versions}; {told['revision']}."


TABLES: dict[str, Callable[[Record], str]] = {
    "conditions": conditions,
    "speed": speed,
    "agreement": agreement,
    "missing": missing,
}


def main(given: Given) -> None:
    """Writes the page.

    Raises:
      UserError: results of tiny networks, a damaged file, or a page without marks.
    """
    chosen = given.configured(Page)
    record = harness.read_record(pathlib.Path(chosen.results))
    if record.get("tiny"):
        raise UserError(f"{chosen.results}: is of tiny networks; expected the papers' sizes.")
    write(pathlib.Path(chosen.page), {name: make(record) for name, make in TABLES.items()})


command = Command(main, (Page,), __doc__)

if __name__ == "__main__":
    command()
