"""Work on files in processes of their own: one that a file ends takes nothing else down.

ITK aborts the interpreter on some damaged files, and the system ends a process that asks for more
memory than there is. Here the process that did so is replaced, and its file is one error. The
processes end with the one that started them, however that ends.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import importlib
import logging as standard
import os
import pathlib
import pickle
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from multiprocessing import connection
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

from absl import logging
from absl.logging import converter

from tf_autoctx import errors
from tf_autoctx.errors import UserError

K = TypeVar("K", bound=Hashable)
Function = Callable[..., Any]

# A program of its own rather than a copy of this one, whose threads would not survive it, and
# rather than one that runs the user's script once more, as `multiprocessing` does.
PROGRAM = "import sys; sys.path[:] = {path!r}; from tf_autoctx.data import isolation; {start}"
SIGNALS: dict[int, str] = {
    signal.SIGABRT: "where a library gave up",
    signal.SIGSEGV: "where a library read beyond its memory",
    signal.SIGBUS: "where a library read beyond its memory",
    signal.SIGFPE: "where a library divided by zero",
    signal.SIGKILL: "for lack of memory perhaps",
}


def cpus() -> int:
    """CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Pool:
    """Processes that work on files, one at a time each.

    They start when there is work for them, and end with the `with` block:

      with isolation.Pool() as pool:
          for name, outcome in pool.map(images.read, ((name, (path,)) for name, path in ...)):

    Args:
      workers: how many there may be; by default one per CPU.
      verb: what they do with files, in the past tense, for messages.
      expected: what they need for that, likewise.

    Attributes:
      workers: how many.
    """

    def __init__(
        self,
        workers: int | None = None,
        verb: str = "read",
        expected: str = "an intact file that fits in memory",
    ) -> None:
        self.workers, self._words = workers or cpus(), (verb, expected)
        self._idle: list[_Worker] = []
        self._busy: dict[_Worker, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for worker in [*self._idle, *self._busy]:
            worker.kill()
        self._idle, self._busy = [], {}

    def start(self, module: str) -> None:
        """Starts a process before its first task, which imports a module meanwhile."""
        self._idle.append(_Worker(self._words, module))

    def map(
        self, function: Function, tasks: Iterable[tuple[K, Sequence[Any]]]
    ) -> Iterator[tuple[K, Any | UserError]]:
        """Calls a function for each task.

        Results come as they are done, and no process is more than one ahead of what is taken.
        Warnings of the function are logged here.

        Args:
          function: of a module; what it takes and returns is pickled.
          tasks: (name, arguments), one by one: the next is made while the processes are at work.

        Yields:
          (name, what the function returns, or the `UserError` that it raised or that names the
          files, those among the arguments, whose process ended).

        Raises:
          Exception: whatever else the function raises.
        """
        done: collections.deque[tuple[K, Any]] = collections.deque()
        for name, arguments in tasks:
            while len(self._busy) == self.workers:
                done.extend(self._done())
            self._begin(name, function, tuple(arguments))
            del arguments  # they may be large, and making the next takes its time
            while done and len(self._busy) == self.workers:  # all are at work: time to tell
                yield done.popleft()
        while done or self._busy:
            yield from done or self._done()
            done.clear()

    def _begin(self, name: Any, function: Function, arguments: tuple[Any, ...]) -> None:
        self._idle = [worker for worker in self._idle if worker.runs]  # memory may have ended one
        worker = self._idle.pop() if self._idle else _Worker(self._words)
        worker.send(function, arguments)
        self._busy[worker] = name, _files(arguments)  # what else they are may be large

    def _done(self) -> list[tuple[Any, Any]]:
        """Waits for the next outcomes, or ends, of processes: (name, outcome) of each."""
        ready = connection.wait([worker.connection for worker in self._busy])
        outcomes = []
        for worker in [worker for worker in self._busy if worker.connection in ready]:
            name, files = self._busy.pop(worker)
            outcome = worker.outcome(files)
            if not worker.ended:
                self._idle.append(worker)
            if isinstance(outcome, _Fault):
                raise outcome.error
            outcomes.append((name, outcome))
        return outcomes


class _Fault(NamedTuple):
    """What is not the user's mistake."""

    error: BaseException


class _Message(NamedTuple):
    """What a process sends back."""

    outcome: Any  # a result, a `UserError` or a `_Fault`
    warnings: list[tuple[int, str]]  # (level of absl, text)


class _Parcel(NamedTuple):
    """What goes from one process to another.

    Attributes:
      parts: its pickle, and the memory of large arrays in it as it is, without a copy.
      thing: what it is, which keeps that memory: an array may lie in an image of a library.
    """

    parts: list[bytes | bytearray | memoryview]
    thing: Any = None


class _Worker:
    """A process and the connection to it."""

    def __init__(self, words: tuple[str, str], module: str = "") -> None:
        ours, theirs = socket.socketpair()
        numbers = f"{theirs.fileno()}, {os.getpid()}, {logging.get_verbosity()}"
        start = f"isolation.work({numbers}, {module!r})"
        program = PROGRAM.format(path=sys.path, start=start)
        self._process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        self.connection = connection.Connection(ours.detach())
        self.ended, self._began, self._words = False, False, words

    @property
    def runs(self) -> bool:
        return self._process.poll() is None

    def send(self, function: Function, arguments: tuple[Any, ...]) -> None:
        parcel = _packed((function, arguments))
        with contextlib.suppress(OSError):  # it has ended; `outcome` says so
            _send(self.connection, parcel)

    def outcome(self, files: str) -> Any:
        """What came back of a task on files, once the connection is ready.

        Raises:
          RuntimeError: the process did not even start.
        """
        try:
            if not self._began:
                self._began = self.connection.recv()
            message = _unpacked(_receive(self.connection))
        except (EOFError, OSError):
            return self._end(files)
        for level, text in message.warnings:
            logging.log(level, "%s", text)
        return message.outcome

    def _end(self, files: str) -> UserError:
        """The error of a process that is no more."""
        self.ended, code = True, self._process.wait()
        self.connection.close()
        if not self._began:
            raise RuntimeError(f"a process for files did not start (exit code {code})")
        verb, expected = self._words
        return UserError(
            f"{files}: ended the process that {verb} it, "
            f"{SIGNALS.get(-code, f'exit code {code}')}; expected {expected}."
        )

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self.connection.close()


def work(descriptor: int, parent: int, verbosity: int, module: str) -> None:
    """What the process does: tasks from a connection, until it closes.

    Args:
      descriptor: of the connection.
      parent: process that it ends with.
      verbosity: of absl.
      module: is imported before the first task; empty: none.
    """
    _end_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says what happens
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):  # where memory ends, this process goes first
        pathlib.Path("/proc/self/oom_score_adj").write_text("1000")
    with open(os.devnull, "wb") as nowhere:  # what libraries say when they give up
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    logging.set_verbosity(verbosity)
    tasks = connection.Connection(descriptor)
    tasks.send(True)
    if module:
        importlib.import_module(module)
    while True:
        try:
            task = _receive(tasks)
        except (EOFError, OSError):
            return
        _send(tasks, _done(task))


def _end_with(parent: int) -> None:
    """Ends this process when its parent is no more, even in the midst of a library's function."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _packed(thing: Any) -> _Parcel:
    buffers: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(thing, pickle.HIGHEST_PROTOCOL, buffer_callback=buffers.append)
    return _Parcel([pickled, *(buffer.raw() for buffer in buffers)], thing)


def _unpacked(parcel: _Parcel) -> Any:
    pickled, *buffers = parcel.parts
    return pickle.loads(pickled, buffers=buffers)


def _send(to: connection.Connection, parcel: _Parcel) -> None:
    to.send([memoryview(part).nbytes for part in parcel.parts])
    for part in parcel.parts:
        to.send_bytes(part)


def _receive(of: connection.Connection) -> _Parcel:
    parts = [bytearray(size) for size in of.recv()]
    for part in parts:
        of.recv_bytes_into(part)
    return _Parcel([*parts])


def _done(task: _Parcel) -> _Parcel:
    """The message that answers a task."""
    warnings: list[tuple[int, str]] = []
    with _recorded(warnings):
        outcome = _outcome(task)
    try:
        return _packed(_Message(outcome, warnings))
    except Exception as error:  # a result, or an error, that no pickle holds
        fault = RuntimeError(f"{type(error).__name__}: {error}; of {outcome!r:.500}")
        return _packed(_Message(_Fault(fault), warnings))


def _outcome(task: _Parcel) -> Any:
    arguments: tuple[Any, ...] = ()
    try:
        function, arguments = _unpacked(task)
        return function(*arguments)
    except MemoryError:
        return UserError(
            f"{_files(arguments)}: needs more memory than there is; expected a smaller image."
        )
    except Exception as error:
        told = errors.sentence(error)
        if told is None:
            return _Fault(error)
        # Of a field, the name stands in backquotes, which a command turns into its flag.
        if isinstance(error, errors.FieldError):
            return UserError(f"`{error.field}`{str(error)[len(error.field) :]}")
        return UserError(str(error) if isinstance(error, UserError) else told)


def _files(arguments: Sequence[Any]) -> str:
    """The files among the arguments of a task, for messages."""
    paths = [os.fsencode(value) for value in arguments if isinstance(value, str | os.PathLike)]
    return ", ".join(path.decode(errors="backslashreplace") for path in paths)


@contextlib.contextmanager
def _recorded(warnings: list[tuple[int, str]]) -> Iterator[None]:
    """Adds what absl logs in the block to `warnings`."""

    class Recorder(standard.Handler):
        def emit(self, record: standard.LogRecord) -> None:
            level = converter.standard_to_absl(record.levelno)
            warnings.append((level, record.getMessage()))

    logger, recorder = logging.get_absl_logger(), Recorder()
    logger.addHandler(recorder)
    try:
        yield
    finally:
        logger.removeHandler(recorder)
