"""Puts the results of `speed.py` into the tables of docs/performance.md.

  python benchmarks/performance_page.py

A table stands between two marks that name it; what is written around it stays. A number that nobody
has measured is a dash.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import harness
from pages import DASH, percent, ratio, seconds, table, write
from speed_rows import ROWS

from tf_autoctx.commands.command_line import Command, Given
from tf_autoctx.configuration import check, field
from tf_autoctx.errors import UserError

Record = Mapping[str, Any]  # {row: result}
PRECISIONS = ("float32", "bfloat16")
SYSTEMS = {
    "fetal_head": "fetal head, a level, 64x48x72",
    "multi_organ": "organs, 3 x 64x64x64",
    "embryo": "embryo, end to end, 105x140x141",
    "renderer": "renderer, self-play, 2 x 320x320",
}
OTHER_OPERATIONS = 6  # that a profile names beside the convolutions


@dataclasses.dataclass(frozen=True)
class Page:
    """Page: where the results are, and where they go"""

    results: str = field("docs/performance.json", "File that `speed.py` wrote.")
    page: str = field("docs/performance.md", "Page whose tables are written anew.")

    def __post_init__(self) -> None:
        check(self)


# Numbers


def median(record: Record, row: str, side: str) -> float | None:
    """Seconds of a side; None: not measured."""
    told = record.get(row, {}).get("sides", {}).get(side, {})
    return told.get("median")


def best(record: Record, row: str, start: str, precision: str) -> tuple[str, float] | None:
    """(name, seconds) of the fastest of the sides whose name begins so, in a precision."""
    sides = record.get(row, {}).get("sides", {})
    of_peer = {
        name: side["median"]
        for name, side in sides.items()
        if name.startswith(start) and name.endswith(precision) and side["median"]
    }
    return min(of_peer.items(), key=lambda item: item[1]) if of_peer else None


# Tables


def networks(record: Record) -> str:
    """Networks of equal structure, and the convolutions' share."""
    lines = []
    for row, ours in (
        ("usegnet", "export"),
        ("usegnet-training", "step"),
        ("embryo", "export"),
        ("pyramid-1", "step"),
        ("pyramid-3", "step"),
    ):
        for precision in PRECISIONS:
            mine = median(record, row, f"{ours}, {precision}")
            peer = best(record, row, "PyTorch", precision)
            alone = median(record, row, f"convolutions alone, {precision}")
            told = f"{seconds(peer[1])} ({_way(peer[0])})" if peer else DASH
            faster = ratio(peer[1] if peer else None, mine)
            title = f"{ROWS[row].title}, {precision}"
            lines.append([title, seconds(mine), told, faster, percent(alone, mine)])
    head = ["s", "ours", "the same in PyTorch", "ratio", "convolutions alone, of ours"]
    return table(head, lines)


def _way(side: str) -> str:
    """How the best PyTorch ran: "PyTorch, compiled, float32" -> "compiled"."""
    return ", ".join(side.split(", ")[1:-1])


def peers(record: Record) -> str:
    """Other peers of the networks."""
    lines = []
    for row, ours, start in (
        ("usegnet", "export", "OpenVINO"),
        ("pyramid-1", "step", "MONAI's UNet"),
        ("pyramid-3", "step", "MONAI's UNet"),
        ("ct", "export", "MONAI's inferer"),
    ):
        for precision in PRECISIONS:
            mine = median(record, row, f"{ours}, {precision}")
            peer = best(record, row, start, precision)
            theirs = peer[1] if peer else None
            title = f"{ROWS[row].title}, {precision}"
            lines.append([title, seconds(mine), start, seconds(theirs), ratio(theirs, mine)])
    return table(["s", "ours", "peer", "its time", "ratio"], lines)


def prediction(record: Record) -> str:
    """A run folder against its export, in both precisions."""
    lines = []
    for row in ("usegnet", "usegnet-volume", "ct", "ct-whole", "embryo"):
        cells = [
            seconds(median(record, row, f"{kind}, {precision}"))
            for kind in ("export", "run folder")
            for precision in PRECISIONS
        ]
        memory = [
            record.get(row, {}).get("sides", {}).get(f"export, {precision}", {}).get("peak_gib")
            for precision in PRECISIONS
        ]
        told = " / ".join(DASH if gib is None else f"{gib:.1f}" for gib in memory)
        lines.append([ROWS[row].title, *cells, told])
    head = ["s", "export, float32", "bfloat16", "run folder, float32", "bfloat16"]
    return table([*head, "peak of the export's process, GiB"], lines)


def around(record: Record) -> str:
    """What is around the networks."""
    lines = []
    for row, own in (
        ("scoring", ["ours"]),
        ("scoring-command", ["eval/score.py"]),
        ("rigid-motion", ["ours"]),
        ("predict", None),
        ("cold-start", None),
    ):
        sides = record.get(row, {}).get("sides", {})
        for name in own or sides or [DASH]:
            mine = median(record, row, name)
            others = {} if own is None else {n: s["median"] for n, s in sides.items() if n != name}
            told = [f"{n} {seconds(s)} ({ratio(s, mine)})" for n, s in others.items()]
            title = ROWS[row].title if own else f"{ROWS[row].title}: {name}"
            lines.append([title, seconds(mine), ", ".join(told)])
    return table(["s", "ours", "peers (times ours)"], lines)


def rendering(record: Record) -> str:
    """Orders of the renderer's updates."""
    names = ("summed", "shared", "one by one", "published")
    lines = [
        [
            ROWS[row].title,
            precision,
            *(seconds(median(record, row, f"{name}, {precision}")) for name in names),
        ]
        for row in ("online", "self-play")
        for precision in PRECISIONS
    ]
    return table(["s an iteration", "", *names], lines)


def windows(record: Record) -> str:
    """The embryo cascade against sliding windows."""
    lines = []
    for precision in PRECISIONS:
        cascade = median(record, "embryo", f"export, {precision}")
        peer = median(record, "embryo-windows", f"sliding windows, {precision}")
        lines.append([precision, seconds(cascade), seconds(peer), ratio(peer, cascade)])
    return table(["s", "cascade", "sliding windows, extrapolated", "ratio"], lines)


def profiles(record: Record) -> str:
    """Where a training step's time goes."""
    lines = []
    for system, title in SYSTEMS.items():
        for precision in PRECISIONS:
            told = record.get("profiles", {}).get("profiles", {}).get(system, {}).get(precision)
            lines.append([title, precision, *(_profile(told) if told else [DASH, DASH])])
    return table(["training step", "", "convolutions", "the rest, largest first"], lines)


def _profile(told: Mapping[str, Any]) -> list[str]:
    operations = told["operations"]
    total = sum(operations.values())
    rest = {name: value for name, value in operations.items() if not name.startswith("Conv")}
    largest = sorted(rest.items(), key=lambda item: -item[1])[:OTHER_OPERATIONS]
    words = [f"{name} {100 * value / total:.0f} %" for name, value in largest]
    return [f"{100 * told['convolutions']:.0f} %", ", ".join(words)]


def conditions(record: Record) -> str:
    """When and where each row was measured, and what was left out of it."""
    lines = []
    for row in ROWS:
        result = record.get(row)
        if result is None:
            lines.append([f"`{row}`", "not measured", "", ""])
            continue
        rounds = f"{result.get('rounds', 1)} ({result['thrown_away']} thrown away)"
        told = "; ".join(f"{name}: {why}" for name, why in result["left_out"].items())
        made = f"{result['made'][:10]}, {result['machine']['revision']}"
        lines.append([f"`{row}`", made, rounds, told])
    machines = {_machine(result["machine"]) for result in record.values()}
    page = table(["row", "day, commit", "rounds that count", "left out"], lines)
    return page + "".join(f"\n\n{told}" for told in sorted(machines))


def _machine(told: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in told["versions"].items())
    extensions = ", ".join(told["extensions"])
    return (
        f"{told['processor']} ({extensions}), {told['cores']} cores, {told['memory_gib']} GiB; "
        f"Python {told['python']}, {versions}."
    )


TABLES: dict[str, Callable[[Record], str]] = {
    "networks": networks,
    "peers": peers,
    "prediction": prediction,
    "around": around,
    "rendering": rendering,
    "windows": windows,
    "profiles": profiles,
    "conditions": conditions,
}


def main(given: Given) -> None:
    """Writes the page.

    Raises:
      UserError: results of tiny networks, a damaged file, or a page without marks.
    """
    chosen = given.configured(Page)
    record = harness.read_record(pathlib.Path(chosen.results))
    for row, result in record.items():
        if result["tiny"]:
            raise UserError(f"{chosen.results}: {row} is of tiny networks; expected none.")
    write(pathlib.Path(chosen.page), {name: make(record) for name, make in TABLES.items()})


command = Command(main, (Page,), __doc__)

if __name__ == "__main__":
    command()
