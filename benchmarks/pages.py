"""Pages whose tables are made of files of results: numbers in words, tables between marks."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence

from tf_autoctx.errors import UserError
from tf_autoctx.files import replacing

DASH = "–"  # nobody has measured it


def seconds(value: float | None) -> str:
    """To three digits."""
    if value is None:
        return DASH
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def ratio(above: float | None, below: float | None) -> str:
    """Of two times."""
    return f"{above / below:.2f}" if above and below else DASH


def percent(part: float | None, whole: float | None) -> str:
    """Share of two times."""
    return f"{100 * part / whole:.0f} %" if part and whole else DASH


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def filled(page: str, tables: Mapping[str, str]) -> str:
    """A page with tables between their marks.

    Raises:
      UserError: a mark is missing, or one names no table.
    """
    pattern = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
    names = [match[2] for match in pattern.finditer(page)]
    if sorted(names) != sorted(tables):
        expected = ", ".join(tables)
        raise UserError(f"the page has the tables {', '.join(names)}; expected {expected}.")
    return pattern.sub(lambda match: f"{match[1]}\n{tables[match[2]]}\n\n{match[3]}", page)


def write(path: pathlib.Path, tables: Mapping[str, str]) -> None:
    """Writes a page anew with tables between their marks; what is around them stays.

    Raises:
      UserError: see `filled`.
    """
    text = filled(path.read_text("utf-8"), tables)
    with replacing(path) as partial:
        partial.write_text(text, "utf-8")
