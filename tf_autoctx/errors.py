"""How a user's mistake reaches the user: one sentence, exit code 1, no traceback."""

from __future__ import annotations

import errno
import re

FIELD = re.compile(r"`([a-z0-9_]+(?:=[^`]*)?)`")


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
    in_the_way = FileExistsError | PermissionError | NotADirectoryError | IsADirectoryError
    if isinstance(error, in_the_way) and error.filename is not None and error.strerror is not None:
        reason = error.strerror.lower()
        return f"{error.filename}: {reason}; expected a path that can be read or written."
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = error.filename or "output folder"
        return f"{where}: no disk space is left; free some and run again to go on."
    return None
