"""What ITK and the C libraries below it say while they read a file."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pathlib
import re
import sys
import tempfile
import threading
from collections.abc import Iterator

import SimpleITK as sitk
from absl import logging

from tf_autoctx.data.integrity import claims
from tf_autoctx.errors import UserError

DAMAGE = re.compile(
    r"premature end|corrupt jpeg data|read error|decoding error|not enough data|cannot read|"
    r"unexpected end|bad code|invalid code|bogus",
    re.IGNORECASE,
)
# What cameras leave behind the last row: libjpeg says that data are corrupt, but has them all.
BEHIND = re.compile(r"(\d+) extraneous bytes? before marker 0xd9")
MOST_BEHIND = 64
# Where ITK's source says it, and which of its objects.
SOURCE = re.compile(r"(WARNING|ERROR): In .*, line \d+$")
SPEAKER = re.compile(r"^\w+ \(0x[0-9a-f]+\): ")
LOSS = re.compile(r"data loss will occur", re.IGNORECASE)
_lock = threading.Lock()


class Words(list[str]):
    """Lines that were said, empty until the block of `listening` ends."""


@contextlib.contextmanager
def listening() -> Iterator[Words]:
    """Catches what C libraries print, one thread at a time.

    libjpeg's words go to standard output, those of libtiff and GDCM to standard error.

    Yields:
      The lines, once the block has ended.
    """
    words, library = Words(), ctypes.CDLL(None)
    with _lock, tempfile.TemporaryFile() as file:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(AttributeError, OSError, ValueError):  # none, or closed
                stream.flush()
        library.fflush(None)
        kept = [os.dup(number) for number in (1, 2)]
        for number in (1, 2):
            os.dup2(file.fileno(), number)
        try:
            yield words
        finally:
            library.fflush(None)
            for number, descriptor in zip((1, 2), kept):
                os.dup2(descriptor, number)
                os.close(descriptor)
            file.seek(0)
            lines = file.read().decode(errors="backslashreplace").splitlines()
            said = (SPEAKER.sub("", line.strip()) for line in lines if not SOURCE.match(line))
            words.extend(dict.fromkeys(line for line in said if line))


def require_whole(path: object, words: list[str], warn: bool = True) -> None:
    """Judges what was said: damage is an error.

    Args:
      path: for messages.
      words: lines.
      warn: whether everything else is a warning.

    Raises:
      UserError: known words of damage.
    """
    for line in words:
        behind = BEHIND.search(line)
        if DAMAGE.search(line) and not (behind and int(behind[1]) <= MOST_BEHIND):
            raise claims.damaged(path, f"its reader says {line.rstrip('.')!r}")
        if LOSS.search(line):
            raise UserError(
                f"{path}: would lose bits of its pixels in reading; expected grey or RGB pixels in "
                "strips, no tiles."
            )
        if warn:
            logging.warning("%s: its reader says %r.", path, line)


def decode(path: pathlib.Path) -> None:
    """Reads a file as the caller will, who also warns, for what is said meanwhile.

    Raises:
      UserError: it cannot be decoded, or known words of damage.
    """
    try:
        with listening() as words:
            sitk.ReadImage(str(path))
    except RuntimeError:
        said = next((line for line in words if DAMAGE.search(line)), "it cannot be decoded")
        raise claims.damaged(path, said.rstrip(".")) from None
    require_whole(path, words, warn=False)
