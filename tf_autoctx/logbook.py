"""What a command says, kept in log.txt of the run folder that it works in."""

from __future__ import annotations

import contextlib
import logging as standard
import pathlib
import re
import shlex
import sys
import traceback
from collections.abc import Iterator, Sequence
from logging import handlers
from typing import Any, TextIO

from absl import logging

from tf_autoctx.version import __version__

FILE = "log.txt"
DRAWN = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x08")  # colours, and the way back to redraw a line


class Logbook:
    """Lines with their times; in memory until there is a folder to keep them in."""

    def __init__(self) -> None:
        self._logger = standard.Logger("log.txt")
        self._memory = handlers.MemoryHandler(sys.maxsize, sys.maxsize, flushOnClose=False)
        self._logger.addHandler(self._memory)

    def note(self, line: str) -> None:
        """Adds a line; of one that was drawn again and again the last state."""
        self._logger.info("%s", DRAWN.sub("", line.rstrip("\r").rpartition("\r")[2]).rstrip())

    def keep_in(self, folder: pathlib.Path) -> None:
        """Appends all lines, those so far and those to come, to log.txt of a folder."""
        file = _File(folder / FILE, encoding="utf-8", errors="backslashreplace")
        file.setFormatter(standard.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        self._memory.setTarget(file)
        self._memory.flush()
        self._logger.handlers = [file]

    def close(self) -> None:
        """Nothing is kept any more."""
        for handler in self._logger.handlers:
            handler.close()


class _File(standard.FileHandler):
    def handleError(self, record: standard.LogRecord) -> None:
        """A full disk: what is saved there says so, and stops."""


class _Copied:
    """A stream whose whole lines go to a logbook, too."""

    def __init__(self, stream: TextIO, book: Logbook) -> None:
        self._stream, self._book, self._line = stream, book, ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        *whole, self._line = (self._line + text).split("\n")
        for line in whole:
            self._book.note(line)
        return self._stream.write(text)

    def writelines(self, lines: Sequence[str]) -> None:
        self.write("".join(lines))


class _Warnings(standard.Handler):
    """What absl logs goes to a logbook, too."""

    def __init__(self, book: Logbook) -> None:
        super().__init__()
        self._book = book

    def emit(self, record: standard.LogRecord) -> None:
        self._book.note(f"{record.levelname.lower()}: {record.getMessage()}")


_open: list[Logbook] = []  # of the commands of this process, the inmost last


def keep_in(folder: pathlib.Path) -> None:
    """Keeps what the present command has said and will say in log.txt of a folder."""
    if _open:
        _open[-1].keep_in(folder)


@contextlib.contextmanager
def recording(command: str, arguments: Sequence[str]) -> Iterator[None]:
    """Records what is printed and logged in the block, and an error that ends it, for `keep_in`.

    What libraries in C++ write is not among it.

    Args:
      command: its name.
      arguments: words of its command line.
    """
    book = Logbook()
    book.note(f"$ {shlex.join([command, *arguments])}  # tf_autoctx {__version__}")
    handler, logger = _Warnings(book), logging.get_absl_logger()
    streams = (_Copied(stream, book) if stream else stream for stream in (sys.stdout, sys.stderr))
    output, errors = streams
    logger.addHandler(handler)
    _open.append(book)
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            yield
    except Exception:
        for line in traceback.format_exc().splitlines():
            book.note(line)
        raise
    except KeyboardInterrupt:
        book.note("interrupted")
        raise
    finally:
        _open.remove(book)
        logger.removeHandler(handler)
        book.close()
