"""What ITK and the C libraries below it say while they read a file."""

from __future__ import annotations

import contextlib
import pathlib
import re
from collections.abc import Iterator

import SimpleITK as sitk
from absl import logging

from tf_autoctx import native
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


@contextlib.contextmanager
def listening() -> Iterator[list[str]]:
    """Catches what C libraries print, one thread at a time.

    libjpeg's words go to standard output, those of libtiff and GDCM to standard error.

    Yields:
      The lines, once the block has ended.
    """
    words: list[str] = []
    lines = native.Lines()
    try:
        with native.caught() as lines:
            yield words
    finally:
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
