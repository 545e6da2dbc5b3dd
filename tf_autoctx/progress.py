"""How far long work is: a bar of Keras where somebody watches, elsewhere a line now and then."""

from __future__ import annotations

import sys
import time
from typing import Protocol

EVERY = 30.0  # seconds from one line to the next
SHORT = 1.0  # seconds; work that took no longer gets no line


class Progress(Protocol):
    """Shows how much of some work is done."""

    def add(self, n: int) -> None:
        """So much more is done."""

    def update(self, current: int) -> None:
        """So much is done in all."""


def watched() -> bool:
    """Whether standard output redraws a line: in a terminal or a notebook."""
    return "ipykernel" in sys.modules or (sys.stdout is not None and sys.stdout.isatty())


def bar(total: int, unit: str, done: str) -> Progress:
    """The progress of some work, which has not begun.

    Args:
      total: of what there is to do.
      unit: what that is, one of it, such as "case".
      done: what is done with it, in the past tense, such as "scored".
    """
    if watched():
        import keras

        return keras.utils.Progbar(total, unit_name=unit)
    return Lines(total, f"{unit}s {done}")


def duration(seconds: float) -> str:
    """A time to wait, such as "40 s", "9 min" or "1 h 20 min"."""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


class Lines:
    """`Progress` in lines: one every `EVERY` seconds, and one at the end.

    Args:
      total: of what there is to do.
      what: is done, such as "cases scored".
    """

    def __init__(self, total: int, what: str) -> None:
        self._total, self._what = total, what
        self._began = self._told = time.monotonic()
        self._done = self._before = 0

    def add(self, n: int) -> None:
        self.update(self._done + n)

    def update(self, current: int) -> None:
        now = time.monotonic()
        if not self._done and now - self._began < SHORT:
            self._before = current  # was there already: tells nothing of the time
        self._done = current
        taken = now - self._began
        if current >= self._total and taken >= SHORT:
            print(f"{current} of {self._total} {self._what} in {duration(taken)}", flush=True)
        elif current < self._total and now - self._told >= EVERY:
            self._told = now
            fresh = current - self._before
            left = taken / fresh * (self._total - current) if fresh else 0.0
            told = f", about {duration(left)} left" if fresh else ""
            print(f"{current} of {self._total} {self._what}{told}", flush=True)
