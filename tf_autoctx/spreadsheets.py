"""CSV files that no spreadsheet runs, where cells that it would take for formulas are escaped, and
those that users bring."""

from __future__ import annotations

import csv
import io
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

from tf_autoctx.errors import UserError
from tf_autoctx.files import replacing

# Where a spreadsheet takes a cell for a formula: at its beginning, and after what an import, or the
# settings of another country, take for the end of a cell. Spaces and quotes may stand before the
# sign, which some settings know in full width.
_STARTS = r"(?:^|(?<=[;\t\r\n]))"
_FORMULA = r"(?='*[ \"\u00a0\u3000]*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20])"
_TO_ESCAPE, _ESCAPED = re.compile(_STARTS + _FORMULA), re.compile(f"{_STARTS}'{_FORMULA}")
_NUMBER = re.compile(
    r"[+-]?(?:inf|nan|(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)", re.ASCII | re.IGNORECASE
)
_DELIMITERS = ",;\t|"


def write(
    path: str | pathlib.Path, lines: Iterable[Mapping[str, Any]], columns: Sequence[str]
) -> None:
    """Writes {column: value} of every line as a CSV file, whole or not at all.

    Words that a spreadsheet would run are `escaped`.

    Raises:
      UserError: the file cannot be written.
    """
    with replacing(path) as partial:
        write_lines(partial, lines, columns)


def read(path: str | pathlib.Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The lines of a file of `write`, {column: cell}, unescaped.

    Args:
      path: of the file.
      columns: that it must have, with a cell in each line.

    Raises:
      UserError: it has not, or cannot be read.
    """
    expected = f"expected the columns {','.join(columns)} (delete it)"
    try:
        with open(path, newline="", encoding="utf-8") as file:
            table = csv.DictReader(file, restkey="")
            lines = [{k: unescaped(x) for k, x in line.items()} for line in table]
            known = set(table.fieldnames or ())
    except (OSError, ValueError, TypeError, csv.Error):
        raise UserError(f"{path}: cannot be read; {expected}.") from None
    if not known.issuperset(columns):
        raise UserError(f"{path}: has the columns {','.join(sorted(known))}; {expected}.")
    return lines


def table(path: pathlib.Path, expected: str) -> tuple[list[str], list[tuple[str, dict[str, str]]]]:
    """The columns of a user's CSV file, and (where it stands, {column: cell}) of every row that
    holds something.

    Columns are in small letters, blanks around cells go, escapes are undone. Any delimiter of
    spreadsheets will do, and a first line that names it.

    Args:
      path: of the file.
      expected: what it ought to be, for the message.

    Raises:
      UserError: it is not there or no CSV file, has a column twice, or a row with a cell too many.
    """
    lines = list(io.StringIO(_text(path, expected), newline=""))
    skipped = 0
    while lines and (not lines[0].strip() or lines[0].lower().startswith("sep=")):  # of Excel
        del lines[0]
        skipped += 1
    header = lines[0] if lines else ""
    reader = csv.reader(lines, delimiter=max(_DELIMITERS, key=header.count))
    try:
        columns = [word.strip().casefold() for word in next(reader, [])]
        rows = []
        for row in reader:
            where = f"{path}, line {reader.line_num + skipped}"
            cells = [unescaped(cell.strip()) for cell in row]
            if any(cells[len(columns) :]):
                raise UserError(
                    f"{where}: has {len(cells)} values; expected {len(columns)}, those of "
                    f"{columns}."
                )
            if any(cells):
                rows.append((where, dict(zip(columns, cells))))
    except csv.Error as error:
        raise UserError(f"{path}: {error}; expected {expected}.") from None
    doubled = [column for column in columns if column and columns.count(column) > 1]
    if doubled:
        raise UserError(f"{path}: has the column {doubled[0]!r} twice; expected it once.")
    return columns, rows


def _text(path: pathlib.Path, expected: str) -> str:
    """A text file, in UTF-8 or, with a byte order mark, UTF-16."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected {expected}.")
    raw = path.read_bytes()
    encoding = "utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise UserError(f"{path}: is not a text file; expected {expected}.")
    return text


def escaped(text: str) -> str:
    """A cell with an apostrophe before what a spreadsheet would take for a formula; a number stays.

    Names of files, methods and structures come from others, and =HYPERLINK(...) sends what stands
    beside it to whoever made it up.
    """
    return text if _NUMBER.fullmatch(text) else _TO_ESCAPE.sub("'", text)


def unescaped(text: str) -> str:
    """The inverse of `escaped`."""
    return _ESCAPED.sub("", text)


def write_lines(
    path: pathlib.Path, lines: Iterable[Mapping[str, Any]], columns: Sequence[str]
) -> None:
    """`write` to a path that takes its place later."""
    # A file's name that is no text has no letters in UTF-8.
    with open(path, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        table = csv.DictWriter(_UnixLines(file), columns)
        table.writeheader()
        for line in lines:
            cells = line.items()
            table.writerow({k: escaped(x) if isinstance(x, str) else x for k, x in cells})


class _UnixLines:
    """Takes the lines of a `csv.writer`, which quotes a name with a carriage return only where that
    ends its lines."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, line: str) -> int:
        return self._file.write(line.removesuffix("\r\n") + "\n")
