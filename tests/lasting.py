"""Processes of `isolation.Pool` that wait for the next pool of these tests.

One takes a second to start, a command starts two or more, and hundreds of tests run commands. A
process is taken again where a new one would begin in the same circumstances, and nothing that the
package does in one stays behind.
"""

import contextlib
import os
import sys
import threading

import pytest
from absl import logging

from tf_autoctx.data import isolation

KEPT = 4
START, END = isolation._Worker, isolation.Pool.__exit__
_waiting = []  # workers, the longest waiting first


def _circumstances():
    """All that a process takes over from this one."""
    environment = {name: v for name, v in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
    return isolation.PROGRAM, [*sys.path], environment, os.getcwd(), logging.get_verbosity()


def _start(words, module=""):
    now = _circumstances()
    for worker in [worker for worker in _waiting if worker.circumstances == now]:
        _waiting.remove(worker)
        if worker.runs:
            worker._words = words
            return worker
    worker = START(words, module)
    # It ends with the thread that started it.
    of_main = threading.current_thread() is threading.main_thread()
    worker.circumstances = now if of_main else None
    return worker


def _end(pool, *_):
    for worker in pool._busy:
        worker.kill()
    for worker in pool._idle:
        _waiting.append(worker) if worker.circumstances else worker.kill()
    pool._idle, pool._busy = [], {}
    while len(_waiting) > KEPT:
        _waiting.pop(0).kill()


@contextlib.contextmanager
def processes():
    """Pools leave their idle processes to each other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(isolation, "_Worker", _start)
        patch.setattr(isolation.Pool, "__exit__", _end)
        yield
    while _waiting:
        _waiting.pop().kill()


@contextlib.contextmanager
def no_processes():
    """Pools start and end their processes themselves, as they do in the package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(isolation, "_Worker", START)
        patch.setattr(isolation.Pool, "__exit__", END)
        yield
