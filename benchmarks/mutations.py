"""Whether the tests notice deliberate faults, each made alone in a copy of the tree.

  python benchmarks/mutations.py
  python benchmarks/mutations.py --only="first context for every level" --jobs=1

The faults are those of mutations.toml: a text that occurs once in a file, what stands there
instead, and the tests that should notice. These must pass as things are. Then each fault is made,
its tests are run, and a line tells which of them noticed. The exit code is 1 where none did.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import os
import pathlib
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence

from tf_autoctx.commands.command_line import Command, Given
from tf_autoctx.configuration import check, field
from tf_autoctx.errors import FieldError, UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent
LIST = pathlib.Path(__file__).with_suffix(".toml")
LEFT_OUT = (".*", "__pycache__", "runs", "build", "dist", "*.egg-info")  # of the copy
PYTEST = ("-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--durations=0")


@dataclasses.dataclass(frozen=True)
class Mutations:
    """Benchmark: the faults, and how their tests are run"""

    only: str = field("", "Name of the only fault to make; by default all are made.")
    jobs: int = field(2, "Faults that are tried at a time, each in a copy of its own.", least=1)
    timeout: float = field(
        900.0, "Seconds after which a fault counts as noticed, as its tests hang.", least=1
    )

    def __post_init__(self) -> None:
        check(self)


@dataclasses.dataclass(frozen=True)
class Mutation:
    """A deliberate fault.

    Attributes:
      name: what is wrong then.
      file: its path in the tree.
      text, replacement: what stands there once, and what stands there instead.
      tests: that should notice: files, or "file::test".
    """

    name: str
    file: str
    text: str
    replacement: str
    tests: tuple[str, ...]

    def mistakes(self, root: pathlib.Path) -> Iterator[str]:
        """What of a tree does not fit, in words."""
        path = root / self.file
        times = path.read_text("utf-8").count(self.text) if path.is_file() else 0
        if times != 1 or self.text == self.replacement:
            yield f"{self.name}: its text occurs {times} times in {self.file}; expected once."
        for test in self.tests:
            file, _, function = test.partition("::")
            held = (root / file).read_text("utf-8") if (root / file).is_file() else ""
            if not held or (function and f"def {function}(" not in held):
                yield f"{self.name}: there is no test {test}."

    def made(self, root: pathlib.Path) -> str:
        """Makes the fault in a tree, and returns the text of its file as it was."""
        path = root / self.file
        before = path.read_text("utf-8")
        path.write_text(before.replace(self.text, self.replacement), "utf-8")
        return before


def listed(path: pathlib.Path = LIST) -> list[Mutation]:
    """The faults of a list."""
    entries = tomllib.loads(path.read_text("utf-8"))["fault"]
    return [Mutation(**{**entry, "tests": tuple(entry["tests"])}) for entry in entries]


def copied(root: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """A copy of a tree, without what it is not made of."""
    return shutil.copytree(root, folder, ignore=shutil.ignore_patterns(*LEFT_OUT))


def tried(tree: pathlib.Path, tests: Sequence[str], timeout: float) -> tuple[int | None, str]:
    """Runs tests in a copy: pytest's exit code, None where they took too long; what it printed."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(tree),
        "PYTHONDONTWRITEBYTECODE": "1",  # a fault may be as long as what it replaces
    }
    process = subprocess.Popen(
        [sys.executable, *PYTEST, *tests],
        cwd=tree,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # all that the tests start ends with them
    )
    try:
        output, _ = process.communicate(timeout=timeout)
        return process.returncode, output.decode(errors="replace")
    except subprocess.TimeoutExpired:
        return None, ""
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def verdict(tree: pathlib.Path, mutation: Mutation, timeout: float) -> tuple[bool, str]:
    """Whether the tests notice a fault, which is taken back, and a line that tells so.

    A fault with which nothing can be run at all, as after a mistake in its own text, is noticed by
    everything and tells nothing: it counts as not noticed.
    """
    begin, before = time.monotonic(), mutation.made(tree)
    try:
        code, output = tried(tree, mutation.tests, timeout)
    finally:
        (tree / mutation.file).write_text(before, "utf-8")
    failed = re.findall(r"^FAILED (\S+)", output, re.MULTILINE)
    seconds = f"{time.monotonic() - begin:.0f} s"
    if failed or code is None:
        by = f"by {failed[0]}" if failed else "(hangs)"
        return True, f"noticed: {mutation.name} {by}, {seconds}"
    told = "NOT NOTICED"
    if code:
        last = (output.strip().splitlines() or ["nothing"])[-1]
        told += f", the tests cannot be run (exit code {code}, {last})"
    return False, f"{told}: {mutation.name}, {seconds}"


def by_file(mutations: Sequence[Mutation]) -> list[list[str]]:
    """The tests of faults, those of one file together, each once."""
    groups: dict[str, dict[str, None]] = collections.defaultdict(dict)
    for test in sorted({test for mutation in mutations for test in mutation.tests}):
        groups[test.partition("::")[0]][test] = None
    return [[file] if file in tests else list(tests) for file, tests in groups.items()]


def chosen_of(mutations: Sequence[Mutation], only: str) -> list[Mutation]:
    """All, or the one of a name.

    Raises:
      FieldError: there is none of that name.
      UserError: one does not fit the tree.
    """
    wanted = [mutation for mutation in mutations if only in ("", mutation.name)]
    if not wanted:
        names = ", ".join(mutation.name for mutation in mutations)
        raise FieldError("only", only, f"no fault of that name; expected one of {names}.")
    if mistakes := [mistake for mutation in wanted for mistake in mutation.mistakes(ROOT)]:
        raise UserError("\n".join(mistakes))
    return sorted(wanted, key=lambda mutation: mutation.tests)


def main(given: Given) -> None:
    """Runs the benchmark."""
    chosen = given.configured(Mutations)
    mutations, begin = chosen_of(listed(), chosen.only), time.monotonic()
    trees: queue.SimpleQueue[pathlib.Path] = queue.SimpleQueue()

    def unchanged(tests: Sequence[str]) -> str:
        tree = trees.get()
        code, output = tried(tree, tests, chosen.timeout)
        trees.put(tree)
        return (
            ""
            if code == 0
            else f"{' '.join(tests)}: exit code {code} as things are\n{output[-3000:]}"
        )

    def with_fault(mutation: Mutation) -> bool:
        tree = trees.get()
        is_noticed, line = verdict(tree, mutation, chosen.timeout)
        trees.put(tree)
        print(line, flush=True)
        return is_noticed

    with (
        tempfile.TemporaryDirectory() as folder,
        concurrent.futures.ThreadPoolExecutor(chosen.jobs) as pool,
    ):
        for number in range(chosen.jobs):
            trees.put(copied(ROOT, pathlib.Path(folder, str(number))))
        if failures := "".join(pool.map(unchanged, by_file(mutations))):
            raise UserError(failures)
        noticed = sum(pool.map(with_fault, mutations))
    minutes = (time.monotonic() - begin) / 60
    print(f"{noticed} of {len(mutations)} faults are noticed, in {minutes:.0f} minutes")
    sys.exit(noticed < len(mutations))


command = Command(main, (Mutations,), __doc__)

if __name__ == "__main__":
    command()
