"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import uuid
from collections.abc import Iterator

from tf_autoctx.errors import UserError


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], keep: bool = False) -> Iterator[pathlib.Path]:
    """Yields a temporary name that takes the place of `path` once the block has succeeded.

    Makes the folder. The temporary name begins with a dot and keeps the suffix, by which libraries
    choose a format. What the block wrote, file or folder, goes away if it fails, or with `keep` if
    another process was quicker; a process that is killed leaves it behind.

    Raises:
      UserError: the folder cannot be written, or the disk is full.
    """
    path = pathlib.Path(path)
    partial = path.with_name(f".{uuid.uuid4().hex}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        if partial.is_dir() and path.is_dir() and not keep:
            shutil.rmtree(path)
        try:
            os.replace(partial, path)
        except OSError:
            if not (keep and path.is_dir() and any(path.iterdir())):
                raise
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(
            f"{path}: {reason}; expected a folder that can be written, with disk space."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(partial) if partial.is_dir() else partial.unlink()
