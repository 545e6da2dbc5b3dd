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
        time.sleep(1.05)  # one step a round

    return Ready(step)


def environment():
    return Ready(lambda: float(os.environ["MADE_UP"]))


def broken():
    raise ValueError("this side is broken")


def dying():
    os._exit(3)


def burn(seconds):
    """So many CPU seconds."""
    begin = time.process_time()
    while time.process_time() - begin < seconds:
        pass


def pid_and(x):
    return os.getpid(), x
