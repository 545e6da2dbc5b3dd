"""How long things take, beside peers and beside what the convolutions alone take, in quiet.

  python benchmarks/speed.py                                   # every row, about two hours
  python benchmarks/speed.py --rows=usegnet,usegnet-training
  python benchmarks/speed.py --rows=ct-whole --rounds=1

Sides take turns, each in a process of its own; a round in which other processes of the machine took
more than --most_others CPUs is thrown away and tried again. Each row is written into --output when
it is done, in place of its result of before; `performance_page.py` makes tables of that file. Peers
that are not installed are named and left out: pip install -e '.[benchmarks]' brings them. Networks
of equal structure are checked for equal parameters and, with the same weights, equal answers.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
import tempfile

import harness
from harness import Quiet
from speed_rows import ROWS

from tf_autoctx.commands.command_line import Command, Given
from tf_autoctx.configuration import check, field
from tf_autoctx.errors import FieldError


@dataclasses.dataclass(frozen=True)
class Speed:
    """Benchmark: what is timed, and when it counts

    Raises:
      FieldError: a row that there is not, or a value out of range.
    """

    rows: tuple[str, ...] = field(tuple(ROWS), "What is timed.")
    rounds: int | None = field(
        None, "Quiet rounds that are wanted; by default as many as the row is worth.", least=1
    )
    most_others: float = field(
        0.15,
        "CPUs that other processes may take during a side's part of a round that counts.",
        least=0.0,
    )
    output: str = field("docs/performance.json", "File of the results, which keeps other rows.")
    tiny: bool = field(
        False,
        "Networks of two channels on tiny images: whether the rows run, not how long they take.",
    )

    def __post_init__(self) -> None:
        check(self)
        for name in self.rows:
            if name not in ROWS:
                raise FieldError("rows", name, f"no row of that name; expected {', '.join(ROWS)}.")


def main(given: Given) -> None:
    """Runs the benchmark; the exit code is 1 where a row could not be measured."""
    chosen, failed = given.configured(Speed), False
    for name in chosen.rows:
        row = ROWS[name]
        quiet = Quiet(chosen.rounds or row.rounds, chosen.most_others)
        print(f"{name}: {row.title}{' (tiny)' * chosen.tiny}", flush=True)
        try:
            with tempfile.TemporaryDirectory() as folder:
                result = row.measured(pathlib.Path(folder), chosen.tiny, quiet)
        except (harness.SideFailed, RuntimeError) as error:
            print(f"  failed: {error}", file=sys.stderr)
            failed = True
            continue
        told = {"title": row.title, "tiny": chosen.tiny, **result}
        harness.write_record(pathlib.Path(chosen.output), name, told)
        print("\n".join(harness.lines(result)), flush=True)
    sys.exit(failed)


command = Command(main, (Speed,), __doc__)

if __name__ == "__main__":
    command()
