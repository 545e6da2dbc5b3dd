"""Measurements of cases and the ages of their subjects: what growth is seen by."""

from __future__ import annotations

import dataclasses
import itertools
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence

from tf_autoctx import spreadsheets
from tf_autoctx.errors import FieldError, UserError

# Columns of a table of cases that a chart can be made of: a size has its unit in its name.
MEASUREMENTS = ("volume_mL", "area_mm2", "BPD_mm", "OFD_mm", "HC_mm")
TABLES = ("cases.csv", "measurements.csv")  # of an evaluation, and of predictions
CASES = ("case", "image")  # what they call a case
AGE = "age_weeks"
SHOWN = 5  # names in a message

Row = tuple[str, dict[str, str]]  # where it stands in its file, and {column: cell}


@dataclasses.dataclass(frozen=True)
class Wanted:
    """Which rows and columns of a table are wanted.

    Attributes:
      structure: None: its only one. A table that names none has it.
      method: None: its last; likewise.
      truth: whether the true label's measurements, not the prediction's.
    """

    structure: str | None = None
    method: str | None = None
    truth: bool = False


@dataclasses.dataclass(frozen=True)
class Visit:
    """A case: a subject at an age.

    Attributes:
      case, subject: names.
      age: weeks.
      values: {measurement: value above 0}, of `MEASUREMENTS`; what was not found is not there.
    """

    case: str
    subject: str
    age: float
    values: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Visits:
    """The cases of a table whose age is known.

    Attributes:
      path: of the table.
      structure, method: of its rows; "" where the table names none.
      measurements: of `MEASUREMENTS`, those that it has.
      visits: by age.
      ageless: names of the cases without an age, which are left out.
    """

    path: pathlib.Path
    structure: str
    method: str
    measurements: Sequence[str]
    visits: Sequence[Visit]
    ageless: Sequence[str]

    @property
    def subjects(self) -> dict[str, list[Visit]]:
        """{subject: its visits by age}."""
        return _by_subject(self.visits)

    def measured(self, name: str) -> dict[str, list[Visit]]:
        """The same of the visits at which a measurement was taken."""
        return _by_subject(visit for visit in self.visits if name in visit.values)


def _by_subject(visits: Iterable[Visit]) -> dict[str, list[Visit]]:
    found: dict[str, list[Visit]] = {}
    for visit in visits:
        found.setdefault(visit.subject, []).append(visit)
    return found


def read(source: str, ages: str, wanted: Wanted) -> Visits:
    """The measured cases of a folder or CSV file, with their ages.

    Args:
      source: an evaluation, a folder of predictions with their measurements, or a CSV file with the
        columns `case` and some of `MEASUREMENTS`, and if wanted `structure`, `method`, `group`.
      ages: a CSV file with the columns `case`, `age_weeks` and, if wanted, `subject`: without, a
        case's subject is its group in the table, or else itself.
      wanted: of the table.

    Raises:
      FieldError: a structure or method that the table does not have, or a choice is missing.
      UserError: a file cannot be read, lacks a column, or has a case twice; a cell is no number; no
        case has an age; a subject has two cases of one age.
    """
    path = _table_of(pathlib.Path(source))
    columns, rows = spreadsheets.table(path, "a CSV file with a line for each case")
    case_column = next((column for column in CASES if column in columns), None)
    prefix = "truth_" if wanted.truth else ""
    measurements = [name for name in MEASUREMENTS if f"{prefix}{name}".casefold() in columns]
    if case_column is None or not measurements:
        raise UserError(
            f"{path}: has the columns {','.join(columns)}; expected case (or image) and, in mL or "
            f"mm, some of {','.join(prefix + name for name in MEASUREMENTS)}."
        )
    chosen, structure, method = _selected(rows, wanted, path)
    known = _ages(pathlib.Path(ages))
    visits, seen, ageless = [], set(), []
    for where, row in chosen:
        case = row.get(case_column, "")
        if case in seen:
            raise UserError(f"{where}: has {case} a second time; expected each case once.")
        seen.add(case)
        if case not in known:
            ageless.append(case)
            continue
        age, subject = known[case]
        found = {name: _number(where, row, f"{prefix}{name}") for name in measurements}
        values = {name: value for name, value in found.items() if 0 < value < math.inf}
        visits.append(Visit(case, subject or row.get("group", "") or case, age, values))
    if not visits:
        raise UserError(
            f"{ages}: names none of the {len(chosen)} cases of {path}, such as "
            f"{', '.join(ageless[:SHOWN])}; expected their names in the column case."
        )
    visits.sort(key=lambda visit: visit.age)
    result = Visits(path, structure, method, measurements, visits, ageless)
    for of_subject in result.subjects.values():
        _require_different_ages(of_subject, ages)
    return result


def _selected(
    rows: Sequence[Row], wanted: Wanted, path: pathlib.Path
) -> tuple[Sequence[Row], str, str]:
    """The rows of the structure and method that are wanted, and the names of these.

    Raises:
      FieldError: see `read`.
      UserError: there is no row.
    """
    if not rows:
        raise UserError(f"{path}: holds no case; expected a line for each.")
    chosen = []
    for column in ("structure", "method"):
        known = list(dict.fromkeys(row.get(column, "") for _, row in rows))
        name = getattr(wanted, column) if known != [""] else None
        if name is None and (column == "method" or len(known) == 1):
            name = known[-1]  # the last method of an evaluation is what the run serves
        if name not in known:
            told = ", ".join(word or "(no name)" for word in known)
            raise FieldError(column, name or "", f"{path} has {told}; expected one of these.")
        rows = [(where, row) for where, row in rows if row.get(column, "") == name]
        chosen.append(name)
    return rows, *chosen


def _require_different_ages(visits: Sequence[Visit], ages: str) -> None:
    for visit, following in itertools.pairwise(visits):
        if visit.age == following.age:
            raise UserError(
                f"{ages}: {visit.case} and {following.case} are of the subject {visit.subject} at "
                f"one age, {visit.age:g} weeks; expected one case a visit: leave one out."
            )


def _table_of(source: pathlib.Path) -> pathlib.Path:
    """The CSV file, or that of a folder."""
    if not source.is_dir():
        return source
    for path in (source / name for name in TABLES):
        if path.exists():
            return path
    raise UserError(
        f"{source}: holds no {' and no '.join(TABLES)}; expected an evaluation, or predictions "
        "that were written with --measurements."
    )


def _ages(path: pathlib.Path) -> dict[str, tuple[float, str]]:
    """{case: (weeks, subject)} of a CSV file; no subject is "".

    Raises:
      UserError: see `read`.
    """
    expected = f"a CSV file with the columns case,{AGE} and, if wanted, subject"
    columns, rows = spreadsheets.table(path, expected)
    if not {"case", AGE} <= set(columns):
        raise UserError(f"{path}: has the columns {','.join(columns)}; expected {expected}.")
    known: dict[str, tuple[float, str]] = {}
    for where, row in rows:
        case, age = row.get("case", ""), _number(where, row, AGE)
        if not 0 < age < math.inf:
            raise UserError(
                f"{where}: {AGE} is {row.get(AGE, '')!r}; expected weeks above 0, such as 24.29 "
                "for 24 weeks and 2 days."
            )
        if case in known:
            raise UserError(f"{where}: has {case} a second time; expected each case once.")
        known[case] = age, row.get("subject", "")
    return known


def _number(where: str, row: Mapping[str, str], column: str) -> float:
    """The number of a cell; NaN of an empty one."""
    text = row.get(column.casefold(), "")
    try:
        return float(text or "nan")
    except ValueError:
        raise UserError(
            f"{where}: {column} is {text!r}; expected a number such as 24.29."
        ) from None
