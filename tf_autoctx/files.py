"""Files that appear whole or not at all."""

import contextlib
import os
import pathlib
import shutil
import uuid

from tf_autoctx.errors import UserError


@contextlib.contextmanager
def replacing(path, keep=False):
    """Yields a temporary name beside `path` that replaces it once the block has succeeded; makes the folder.

    The temporary name begins with a dot and keeps the suffix, by which libraries choose a format. What the block wrote,
    file or folder, goes away if it fails, or with `keep` if another process was quicker; a process that is killed leaves
    it behind.

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
