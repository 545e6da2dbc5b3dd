"""Voxels in files of their own, beside a header that names them."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from tf_autoctx.data.integrity import claims
from tf_autoctx.errors import UserError

MOST = 100_000


def numbered(path: pathlib.Path, words: Sequence[str]) -> list[str]:
    """File names of a pattern, `slice%03d.raw 1 20 1`: the pattern, first, last and step, or 1.

    Raises:
      UserError: they make no names.
    """
    try:
        first, last, step = (int(word) for word in [*words[1:4], "1"][:3])
        if not step or abs(last - first) > MOST * abs(step):
            raise ValueError
        return [words[0] % k for k in range(first, last + (1 if step > 0 else -1), step)]
    except (ValueError, TypeError):
        raise claims.damaged(path, f"{' '.join(words)!r} names no data files") from None


def files(path: pathlib.Path, names: Sequence[str]) -> list[pathlib.Path]:
    """The data files of a header.

    Raises:
      UserError: one is missing.
    """
    if not names:
        raise claims.damaged(path, "it names no data file")
    paths = [path.parent / name for name in names]
    for file in paths:
        if "\0" in str(file) or not file.is_file():
            raise UserError(
                f"{path}: its data file {file.name!r} is missing; expected it in {file.parent}."
            )
        claims.require_name(file)
    return paths
