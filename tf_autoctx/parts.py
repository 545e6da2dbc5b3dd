"""Work that is taken apart for a job array: parts that run at the same time in one folder of
results, each with a lock and tables of its own, which the last one to end joins."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from tf_autoctx import files
from tf_autoctx.configuration import check, field
from tf_autoctx.errors import FieldError, UserError

K = TypeVar("K")
V = TypeVar("V")
LOCK = "state.lock"
STATE = "state.json"  # {"num_parts": ..., "ended": {part_id: what it was made from; null: begun}}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """Parts: a share of the cases, for job arrays."""

    num_parts: int | None = field(
        None,
        "Parts that the cases are dealt out to, each for a process of its own with the same output "
        "folder; all may run at the same time, and the last one to end joins their tables.",
        least=1,
    )
    part_id: int | None = field(None, "The part of this process, counted from 0.", least=0)

    def __post_init__(self) -> None:
        check(self)
        if (self.num_parts is None) != (self.part_id is None):
            raise UserError(
                "`num_parts` and `part_id`: one of them is given alone; expected both or neither."
            )
        if (self.part_id or 0) >= (self.num_parts or 1):
            told = f"expected a number below `num_parts={self.num_parts}`, counted from 0."
            raise FieldError("part_id", self.part_id, told)

    def of(self, cases: Mapping[K, V]) -> dict[K, V]:
        """The cases of this part, every `num_parts`-th in their order; all without parts."""
        return dict([*cases.items()][self.part_id :: self.num_parts])


class Output:
    """A folder of results: of this process alone, or of all parts together.

    Args:
      folder: path.
      work: what is done, such as "predict", in whose folder the parts have their tables.
      parts: of the work.

    Attributes:
      folder: the same.
      divided: whether there are parts.
      tables: folder of the tables of this process: of its part, else `folder`.
    """

    def __init__(self, folder: str | os.PathLike[str], work: str, parts: Parts) -> None:
        self.folder, self._parts = pathlib.Path(folder), parts
        self._shared = self.folder / f".{work}_parts"
        self.divided = parts.num_parts is not None
        self.tables = self._shared / str(parts.part_id) if self.divided else self.folder

    def begin(self) -> None:
        """Makes the folder this process's own, or its part of it.

        Raises:
          UserError: another process is at work in it, or it is of other parts.
        """
        if self._parts.num_parts is None:
            files.own(self.folder)
            self._require_same(self._known())
            return
        files.own(self.tables)
        with files.locked(self._shared / LOCK), files.owning():
            # Nobody has the whole folder; unfinished files of other parts are at work: they stay.
            files.own(self.folder, began=0)
            self._require_same(self._known())
            self._note(None)

    @contextlib.contextmanager
    def ended(self, made_from: Any) -> Iterator[list[pathlib.Path]]:
        """Notes that this process has ended, and yields the folders of all tables if it was the
        last: nothing else is at work in the folder until the block ends. Else there are none.

        Args:
          made_from: what must be alike in all parts if their tables are to be joined, for JSON.

        Raises:
          UserError: another process is at work in the folder.
        """
        if self._parts.num_parts is None:
            yield [self.folder]
            return
        told = json.dumps(made_from, sort_keys=True, default=str)
        own = hashlib.sha256(told.encode()).hexdigest()
        with files.locked(self._shared / LOCK), files.owning():
            self._note(own)
            ended = self._known()["ended"]
            left = [k for k in range(self._parts.num_parts) if not ended.get(str(k))]
            others = [k for k, made in ended.items() if made not in (own, None)]
            if left:
                print(f"{self._told()}; {len(left)} of {self._parts.num_parts} have not")
            elif others:
                listed = ", ".join(sorted(others, key=int))
                print(
                    f"{self._told()}; the tables are not joined: part {listed} was made with "
                    "another model, other flags or of other cases, and has to run again"
                )
            if left or others:
                yield []
                return
            files.own(self.folder)  # what killed parts have left is swept
            print(f"{self._told()}, the last of {self._parts.num_parts}: the tables are joined")
            yield [self._shared / str(k) for k in range(self._parts.num_parts)]

    def _told(self) -> str:
        return f"{self.folder}: part {self._parts.part_id} has ended"

    def _known(self) -> dict[str, Any]:
        """The state of the folder; empty where no part has begun.

        Raises:
          UserError: the file that tells it is damaged.
        """
        path = self._shared / STATE
        expected = "the state of parts: delete it, and run all of them again with the same flags"
        try:
            state = files.read_json(path, expected)
        except FileNotFoundError:
            return {}
        if not (isinstance(state, dict) and isinstance(state.get("ended"), dict)):
            raise UserError(f"{path}: is no object with `ended`; expected {expected}.")
        return state

    def _note(self, made_from: str | None) -> None:
        """Notes what this part is made from; None: it has only begun."""
        ended = self._known().get("ended", {}) | {str(self._parts.part_id): made_from}
        with files.replacing(self._shared / STATE) as path:
            path.write_text(json.dumps({"num_parts": self._parts.num_parts, "ended": ended}))

    def _require_same(self, state: Mapping[str, Any]) -> None:
        """Raises a `UserError` where the folder is of another number of parts."""
        known, given = state.get("num_parts"), self._parts.num_parts
        if state and known != given:
            wanted = given if given is not None else "not given"
            raise UserError(
                f"{self.folder}: holds the results of {known} parts, and `num_parts` is {wanted}; "
                f"expected `num_parts={known}`, or another `output`."
            )
