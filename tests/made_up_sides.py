"""Sides for tests of the harness: functions of a module, which other processes can import."""

import os
import pathlib
import sys
import time

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "benchmarks"))
from harness import Ready


def constant(seconds, answer=None, parameters=None):
    """A step that says how long it took."""
    facts = {} if parameters is None else {"parameters": parameters}
    return Ready(lambda: float(seconds), answer and (lambda: np.array(answer)), facts)


def logging(path, name):
    """A step that writes its name."""

    def step():
        with open(path, "a") as file:
            file.write(f"{name}\n")
        return 10.0  # one step a round

    return Ready(step)


def environment():
    return Ready(lambda: float(os.environ["MADE_UP"]))


def broken():
    raise ValueError("this side is broken")


def dying():
    os._exit(3)


def dying_later():
    """Lives through its warm-up."""
    steps = iter([lambda: 1.0])
    return Ready(lambda: next(steps, dying)())


def alone(folder, precision):
    """A step that fails where a side of another precision lives."""
    (folder / f"{precision} {os.getpid()}").touch()
    for path in folder.iterdir():
        other, number = path.name.split()
        if other != precision and pathlib.Path(f"/proc/{number}").exists():
            raise ValueError(f"{other} lives")
    return Ready(lambda: 1.0)


def burn(seconds):
    """So many CPU seconds."""
    begin = time.process_time()
    while time.process_time() - begin < seconds:
        pass


def pid_and(x):
    return os.getpid(), x
