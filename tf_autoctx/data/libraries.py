"""SimpleITK's readers and writers, with what they and the C libraries below them say."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator

import SimpleITK as sitk

from tf_autoctx.data.integrity import spoken

Path = str | os.PathLike[str]

# ITK's NIfTI reader accepts sheared axes where a user sets this.
PERMISSIVE = "ITK_NIFTI_SFORM_PERMISSIVE"

# Lines of TensorFlow, absl and their like from other threads, which are passed on.
OTHERS = re.compile(r"[IWEF]\d{4} |\d{4}-\d\d-\d\d |WARNING:absl")
SPEAKER = re.compile(r"^\w+ \(0x[0-9a-f]+\): ")  # ITK's object
# Where ITK's source says it, and what `headers` judges.
LEFT_OUT = re.compile(r"(WARNING|ERROR): In .*, line \d+$|.* in sform$|.*non-orthogonal sform$")


@contextlib.contextmanager
def heard(path: Path, permissive: bool = False, told: set[str] | None = None) -> Iterator[None]:
    """Reads or writes in the block, one thread at a time.

    Args:
      path: of the file, for messages.
      permissive: whether ITK shall read a NIfTI file whose axes are sheared; the user's environment
        does not count.
      told: sentences that are not told again; those that are told are added.

    Raises:
      UserError: a sentence tells of damage. Other sentences become warnings. Where the block fails
        by itself, its own exception says so.
    """
    with spoken.listening() as words, _environment(permissive), _warnings():
        yield
    told = set() if told is None else told
    lines = []
    for word in words:
        line = SPEAKER.sub("", word)
        if OTHERS.match(line):
            print(line, file=sys.stderr)
        elif not LEFT_OUT.match(line) and line not in told:
            lines.append(line)
    told.update(lines)
    spoken.require_whole(path, lines)


@contextlib.contextmanager
def _warnings() -> Iterator[None]:
    """ITK's warnings are on."""
    before = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(True)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(before)


@contextlib.contextmanager
def _environment(permissive: bool) -> Iterator[None]:
    """`PERMISSIVE` as it is wanted, whatever the user has set."""
    before = os.environ.pop(PERMISSIVE, None)
    if permissive:
        os.environ[PERMISSIVE] = "1"
    try:
        yield
    finally:
        os.environ.pop(PERMISSIVE, None)
        if before is not None:
            os.environ[PERMISSIVE] = before
