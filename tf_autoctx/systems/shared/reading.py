"""How raw images and cases are read, here or in processes of their own without TensorFlow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tf_autoctx.data import datasets, images, isolation
from tf_autoctx.errors import UserError
from tf_autoctx.systems.shared.declaration import Declaration

Read = Callable[[datasets.Case], tuple[images.Image, np.ndarray]]
Arguments = tuple[Declaration, Sequence[int] | None, Mapping[int, str], bool]


def read_case(
    case: datasets.Case,
    declaration: Declaration,
    foreground: Sequence[int] | None,
    known: Mapping[int, str],
    merge: bool,
) -> tuple[images.Image, np.ndarray]:
    """Image and labels of a case, see `datasets.read_case`, with the system's own warnings.

    Raises:
      UserError: no label, or a file that cannot be learnt from.
    """
    image, label = datasets.read_case(case, foreground, known, declaration.dimensions, merge)
    if label is None:
        raise UserError(f"{case.image}: has no label; expected one to learn from or to score.")
    declaration.check_voxels(case.image, image.array)
    return image, label


def each(
    cases: Sequence[datasets.Case], read: Read, isolated: bool = False, kept: bool = True
) -> Iterator[tuple[datasets.Case, Any]]:
    """Reads cases.

    Args:
      cases: which.
      read: reads one.
      isolated: whether each is read in another process, several at a time, such that a file on
        which a library gives up is the fault of one case; of a `Reader`.
      kept: whether what is read is wanted, or only whether it can be.

    Yields:
      (case, what `read` returns, or its `UserError`), as they are done.
    """
    arguments = getattr(read, "arguments", None)
    if not (isolated and arguments and cases):
        for case in cases:
            try:
                yield case, read(case)
            except UserError as error:
                yield case, error
        return
    by_name = {case.name: case for case in cases}
    # The paths are for the message where the process ends.
    tasks = {
        name: (case.image, case.label or case.image, case, arguments, kept)
        for name, case in by_name.items()
    }
    with isolation.Pool() as pool:
        for name, outcome in pool.map(_read, tasks.items()):
            yield by_name[name], outcome


def _read(
    image: str, label: str, case: datasets.Case, arguments: Arguments, kept: bool
) -> tuple[images.Image, np.ndarray] | None:
    """`read_case` in another process."""
    pair = read_case(case, *arguments)
    return pair if kept else None
