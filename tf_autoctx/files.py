"""Files that appear whole or not at all, their digests, JSON, and folders that one process writes
at a time."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import platform
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from typing import Any

from absl import logging

from tf_autoctx import errors
from tf_autoctx.errors import UserError

LOCK = ".lock"
# Names of `temporary`, and of what TensorFlow writes before it is a checkpoint.
LEFT_OVER = re.compile(
    r"\.[0-9a-f]{32}-.*|step-[0-9]+_temp|step-[0-9]+\..*\.tempstate.*|checkpoint\.tmp.*", re.DOTALL
)
TAIL = 60  # bytes of a name that a temporary name keeps: some file systems allow 255 in all

_held: dict[pathlib.Path, int] = {}  # {folder: descriptor of its lock} of this process
_made: set[pathlib.Path] = set()  # those of them that `own` made
_process = os.getpid()  # a copy of this process, as `fork` makes them, holds nothing


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], keep: bool = False) -> Iterator[pathlib.Path]:
    """Yields a temporary name that takes the place of `path` once the block has succeeded.

    Makes the folder. The temporary name begins with a dot and keeps the suffix, by which libraries
    choose a format. What the block wrote, file or folder, goes away if it fails, or with `keep` if
    another process was quicker; a process that is killed leaves it behind, see `own`.

    Raises:
      UserError: the folder cannot be written, the path is too long, or the disk is full.
    """
    path = pathlib.Path(path)
    partial = temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            path.lstat()  # a name that is too long is known before anything is written
        yield partial
        if partial.is_dir() and path.is_dir() and not keep:
            shutil.rmtree(path)
        try:
            os.replace(partial, path)
        except OSError:
            if not (keep and path.is_dir() and any(path.iterdir())):
                raise
    except OSError as error:
        told = errors.reason(error, "a folder that can be written, with disk space")
        raise UserError(f"{path}: {told}.") from error
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(partial) if partial.is_dir() else partial.unlink()


def temporary(path: pathlib.Path) -> pathlib.Path:
    """A new name beside a path: hidden, of the same suffix, and one that `own` sweeps."""
    tail = os.fsencode(path.name)[-TAIL:].decode(errors="ignore")
    return path.with_name(f".{uuid.uuid4().hex}-{tail}")


def own(folder: str | os.PathLike[str], began: float | None = None) -> None:
    """Makes a folder this process's own, until the command ends (see `owning`) or the process does.

    What killed processes have left in it and below is swept, but for folders below that are
    another process's own.

    Args:
      folder: is made, unless it is there; it goes again if nothing is written.
      began: what is younger than this time stays: processes that work together may have begun.

    Raises:
      UserError: it is another process's own, or cannot be written.
    """
    folder = pathlib.Path(folder).absolute()
    if folder in _held:
        return
    try:
        if not folder.exists():
            folder.mkdir(parents=True, exist_ok=True)
            _made.add(folder)
        _held[folder] = _locked(folder)
        _sweep(folder, time.time() if began is None else began)
    except OSError as error:
        told = errors.reason(error, "a folder that can be written")
        raise UserError(f"{folder}: {told}.") from error


def digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 (hex) of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: str | os.PathLike[str], expected: str) -> Any:
    """What a JSON file says.

    Args:
      path: of it.
      expected: what else it ought to be, for the message.

    Raises:
      UserError: it is no JSON, is nested too deeply, or has a key twice.
      OSError: it cannot be read.
    """
    try:
        return json.loads(pathlib.Path(path).read_bytes(), object_pairs_hook=_each_once)
    except RecursionError:
        reason = "nested too deeply"
    except ValueError as error:
        reason = str(error)
    raise UserError(f"{path}: is not JSON ({reason}); expected {expected}.")


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, unless it has a key twice, of which Python would take the last."""
    known = dict(pairs)
    if len(known) < len(pairs):
        keys = [key for key, _ in pairs]
        doubled = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"it has the key {doubled!r} twice")
    return known


@contextlib.contextmanager
def locked(path: str | os.PathLike[str]) -> Iterator[int]:
    """The descriptor of a file that is this process's alone until the block ends; another one waits
    for it. The file is made if it is missing.

    Raises:
      UserError: it cannot be written.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        told = errors.reason(error, "a file that can be written")
        raise UserError(f"{path}: {told}.") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        logging.warning("%s: cannot be locked (%s).", path, error)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def owning() -> Iterator[None]:
    """Folders that become this process's own meanwhile are free again at the end."""
    before = set(_held)
    try:
        yield
    finally:
        for folder in _held.keys() - before:
            _free(folder)


def _locked(folder: pathlib.Path) -> int:
    """The descriptor of the lock of a folder, a file that names who holds it.

    A file, not the folder itself: that would not be locked for other machines that share it.
    """
    path = folder / LOCK
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 200).decode(errors="replace").strip()
            os.close(descriptor)
            raise UserError(
                f"{folder}: another process ({holder or 'unknown'}) is at work in it; expected one "
                "at a time. Wait for it, or name another folder."
            ) from None
        except OSError as error:
            logging.warning("%s: cannot be locked (%s); use it for one process.", folder, error)
            return descriptor
        try:
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                break
        except FileNotFoundError:  # whoever held it has removed it since
            pass
        os.close(descriptor)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()} on {platform.node()}\n".encode(), 0)
    return descriptor


def _free(folder: pathlib.Path) -> None:
    with contextlib.suppress(OSError):
        (folder / LOCK).unlink()  # before another process may hold it
    os.close(_held.pop(folder))
    if folder in _made:
        _made.remove(folder)
        with contextlib.suppress(OSError):
            folder.rmdir()  # where nothing came of it


def _sweep(folder: pathlib.Path, began: float) -> None:
    """Removes what killed processes have left, see `own`."""
    for path, folders, names in os.walk(folder):
        if LOCK in names and pathlib.Path(path) != folder:
            folders.clear()
            continue
        left_over = [name for name in (*folders, *names) if LEFT_OVER.fullmatch(name)]
        for file in (pathlib.Path(path, name) for name in left_over):
            if file.lstat().st_mtime < began:
                shutil.rmtree(file) if file.is_dir() and not file.is_symlink() else file.unlink()
        folders[:] = [name for name in folders if name not in left_over]


@atexit.register
def _free_all() -> None:
    for folder in list(_held) if os.getpid() == _process else ():
        _free(folder)
