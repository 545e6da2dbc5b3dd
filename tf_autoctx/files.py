"""Files that appear whole or not at all."""

import contextlib
import os
import pathlib
import shutil
import uuid

from tf_autoctx.errors import UserError


@contextlib.contextmanager
def replacing(path, keep=False):
    """Yields a temporary name in the folder of `path`, made if need be, that replaces `path` once the block has
    succeeded.

    The temporary name keeps the suffix, by which libraries choose a format. What the block wrote, file or folder, goes
    away if it fails, or with `keep` if another process was quicker.

    Raises:
      UserError: the folder cannot be written, or the disk is full.
    """
    path = pathlib.Path(path)
    partial = path.with_name(f".{uuid.uuid4().hex}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        if keep and path.is_dir() and any(path.iterdir()):
            return
        if partial.is_dir() and path.is_dir():
            shutil.rmtree(path)
        os.replace(partial, path)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"{path}: {reason}; expected a folder that can be written, with disk space.") from error
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(partial) if partial.is_dir() else partial.unlink()
