"""What the results of a folder were made from, so that those of a changed image or another model
are known."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import pathlib
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from tf_autoctx import files
from tf_autoctx.data import image_files
from tf_autoctx.errors import UserError

NAME = (
    ".made_from"  # in the folder of the results: a line of JSON for an image, the last one counts
)

Kind = TypeVar("Kind")  # of a result


class Origins:
    """The record of a folder of results.

    Args:
      folder: of the results.
      model: whatever besides an image decides its results, see `of_model`.
      tables: folder of the record, where it is of a part; None: that of the results.

    Attributes:
      model: the same.
    """

    def __init__(
        self, folder: pathlib.Path, model: str, tables: pathlib.Path | None = None
    ) -> None:
        self._folder, self._path, self.model = folder, (tables or folder) / NAME, model
        self._lock = threading.Lock()  # clients note several at once
        self._records: dict[str, dict[str, Any]] = {}  # by result
        for line in self._lines():
            try:
                record = json.loads(line)
                self._records |= dict.fromkeys(record["results"], record)
            except (ValueError, TypeError, KeyError):  # cut short by a kill
                continue

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which notes and asks nothing: no lock goes there, and no records."""
        return {**self.__dict__, "_lock": None, "_records": {}}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__ |= {**state, "_lock": threading.Lock()}

    def _lines(self) -> list[str]:
        try:
            return self._path.read_text("utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return []

    def is_of(self, result: pathlib.Path, image: str | os.PathLike[str]) -> bool:
        """Whether a result was made from an image as it is now.

        Where nothing is recorded in the folder, as of earlier releases: whether it is younger than
        the image.
        """
        record = self._records.get(self._name(result))
        if record is None:  # of a kill before it was noted
            return not self._path.exists() and result.stat().st_mtime_ns >= _stamp(image)[1]
        if record.get("model") != self.model:
            return False
        # Files that were copied are other files of the same bytes.
        stamp = _stamp(image)
        return list(stamp) == record.get("stamp") or (
            stamp[0] == record.get("stamp", [None])[0]
            and image_files.digest(image) == record.get("sha256")
        )

    def was_changed(self, result: pathlib.Path) -> bool:
        """Whether a file is not as it was written; False where that is not recorded."""
        written = self._records.get(self._name(result), {}).get("written", {})
        digest = written.get(self._name(result))
        return digest is not None and digest != files.digest(result)

    @contextlib.contextmanager
    def noting(
        self,
        image: str | os.PathLike[str],
        results: Iterable[pathlib.Path],
        may_change: bool = False,
    ) -> Iterator[None]:
        """Records what results were made from, as soon as the block has written them.

        Args:
          image: path.
          results: files or folders.
          may_change: whether they are files that people correct, whose digests are kept.
        """
        results = [*results]
        names, stamp = [self._name(result) for result in results], _stamp(image)
        record: dict[str, Any] = {
            "results": names,
            "stamp": stamp,
            "sha256": _digest(os.fspath(image), stamp),
            "model": self.model,
        }
        yield
        if may_change:
            record["written"] = {self._name(result): files.digest(result) for result in results}
        with self._lock, open(self._path, "a", encoding="utf-8") as file:
            self._records |= dict.fromkeys(names, record)
            before = "" if all(line.endswith("}") for line in self._lines()[-1:]) else "\n"
            file.write(f"{before}{json.dumps(record)}\n")

    def _name(self, result: pathlib.Path) -> str:
        return result.relative_to(self._folder).as_posix()


def still_wanted(
    wanted: Mapping[str, Mapping[Kind, pathlib.Path]],
    origins: Origins,
    *,
    overwrite: bool,
    resume: bool,
) -> dict[str, dict[Kind, pathlib.Path]]:
    """The results that are to be made: all that are there are kept, replaced or in the way.

    Args:
      wanted: {image: its results}.
      origins: what results that are there were made from.
      overwrite: whether they are made anew.
      resume: whether they are kept, but for those of an image that has changed since, or of another
        model.

    Returns:
      {image: its results}, without images that have all of them.

    Raises:
      UserError: a result is there already, or is to be made anew although it was changed.
    """
    there = [file for files in wanted.values() for file in files.values() if file.exists()]
    if there and not overwrite and not resume:
        raise UserError(
            f"{there[0]}: is there already; give `resume` to go on with the others, `overwrite` to "
            "replace it, or another `output`."
        )
    kept = {
        file
        for path, files in wanted.items()
        for file in files.values()
        if not overwrite and file.exists() and origins.is_of(file, path)
    }
    changed = [
        file for file in there if not overwrite and file not in kept and origins.was_changed(file)
    ]
    if changed:
        raise UserError(
            f"{changed[0]}: was changed since it was written, by hand perhaps, and is of another "
            f"model or of an image that has changed ({len(changed)} of {len(there)} results are "
            "such); expected it to be moved away, or `overwrite`, which makes all anew."
        )
    if not overwrite and len(kept) < len(there):
        print(
            f"{len(there) - len(kept)} of {len(there)} results are of images that have changed "
            "since, or of another model: they are made anew"
        )
    left = {
        path: {key: file for key, file in files.items() if file not in kept}
        for path, files in wanted.items()
    }
    return {path: files for path, files in left.items() if files}


def of_model(model: str | os.PathLike[str], options: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of the files of a finished model, a run folder or a SavedModel, and of what was
    chosen for it."""
    folder = pathlib.Path(model)
    patterns = ["*.keras", "*/*.keras", "*.pb", "variables/*", "*/saved_model.pb", "*/variables/*"]
    patterns.append("postprocessing.json")
    parts = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    try:
        flags = files.read_json(folder / "config.json", "a run's configuration")["flags"]
    except (OSError, UserError, KeyError, TypeError):
        flags = {}
    told = [dict(options), flags, [(str(f.relative_to(folder)), files.digest(f)) for f in parts]]
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()


@functools.lru_cache(maxsize=16)
def _digest(image: str, stamp: tuple[int, int]) -> str:
    """SHA-256 (hex) of an image as of `stamp`: each of its results asks for it."""
    return image_files.digest(image)


def _stamp(image: str | os.PathLike[str]) -> tuple[int, int]:
    """Bytes of an image, and when it was last changed (ns)."""
    stats = [file.stat() for file in image_files.of(image)]
    return sum(s.st_size for s in stats), max((s.st_mtime_ns for s in stats), default=0)
