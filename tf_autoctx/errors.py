"""How a user's mistake reaches the user: one sentence, exit code 1, no traceback."""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterator

FIELD = re.compile(r"`([a-z0-9_]+(?:=[^`]*)?)`")

# What to expect of a path that cannot be used, by the errno that the system gives.
EXPECTED = {
    errno.ENOSPC: "disk space; free some and run again to go on",
    errno.EDQUOT: "disk space; free some and run again to go on",
    errno.ENAMETOOLONG: "a shorter path",
    errno.EROFS: "a folder that can be written",
}


class UserError(Exception):
    """Bad input. The message is one sentence: the file or field, what is wrong, what was expected.

    Configuration fields stand in backquotes, such as `batch_size=1`; a command shows them as flags.
    """


class FieldError(UserError, ValueError):
    """A configuration field has a value that cannot be used; a command shows the field as its flag.

    Attributes:
      field: its name.
    """

    def __init__(self, field: str, value: object, message: str) -> None:
        shown = ",".join(map(str, value)) if isinstance(value, list | tuple) else value
        super().__init__(f"{field}={shown}: {message}")
        self.field = field


def sentence(error: BaseException) -> str | None:
    """What to tell the user of an exception; None where it is a fault of ours, not a mistake."""
    if isinstance(error, FieldError):
        return "--" + FIELD.sub(r"--\1", str(error))
    if isinstance(error, UserError):
        return FIELD.sub(r"--\1", str(error))
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = error.filename or "output folder"
        return f"{where}: no disk space is left; free some and run again to go on."
    is_missing = isinstance(error, FileNotFoundError)  # which we ought to have seen before
    named = isinstance(error, OSError) and error.filename is not None and not is_missing
    if isinstance(error, OSError) and named and error.strerror is not None:
        return f"{error.filename}: {reason(error, 'a path that can be read or written')}."
    return None


def reason(error: OSError, expected: str) -> str:
    """What the system says of a path, and what was expected: by `EXPECTED`, or else as given."""
    said = (error.strerror or str(error)).lower()
    return f"{said}; expected {EXPECTED.get(error.errno or 0, expected)}"


class Faults:
    """Mistakes that are told together, such as those of all files of a data set."""

    def __init__(self) -> None:
        self._errors: dict[str, UserError] = {}  # by what they say: each once

    @contextlib.contextmanager
    def collecting(self) -> Iterator[None]:
        """A mistake in the block is kept for later."""
        try:
            yield
        except UserError as error:
            self._errors.setdefault(str(error), error)

    def require_none(self, what: str, shown: int = 20) -> None:
        """Raises what has been kept: one alone as it is, or how many there are and the first.

        Args:
          what: what they are, such as "faults in the data".
          shown: how many are told.

        Raises:
          UserError: there is a mistake.
        """
        errors = list(self._errors.values())
        if len(errors) == 1:
            raise errors[0]
        if errors:
            told = "".join(f"\n  {sentence(error)}" for error in errors[:shown])
            more = f"\n  and {len(errors) - shown} more" if len(errors) > shown else ""
            raise UserError(f"{len(errors)} {what}; expected none:{told}{more}")
