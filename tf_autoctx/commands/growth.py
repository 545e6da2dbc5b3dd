r"""Growth charts of measured cases: centiles against age, z-scores, changes between visits.

  autoctx-growth --evaluation=runs/normal/evaluation --ages=normal_ages.csv --output=growth/normal
  autoctx-growth --evaluation=results --ages=ages.csv --reference=growth/normal/chart.json \
      --output=growth/new
  autoctx-growth --evaluation=new.csv --ages=ages.csv --reference=normal.csv --output=growth/new

The first fits a chart to all cases of an evaluation; the second and third say where other cases lie
on a chart that they are no part of. Cases are those of a folder that a training run, autoctx-score
or autoctx-predict --measurements wrote into, or of a CSV file with the columns case and some of
volume_mL, area_mm2, BPD_mm, OFD_mm and HC_mm. --ages is a CSV file with the columns case, age_weeks
(24.29 is 24 weeks and 2 days) and, if wanted, subject: cases of one subject are visits.

The chart is that of Altman and Chitty 1994: mean and SD are fractional polynomials of age, and the
z-scores are tested. It is made of one visit of each subject; of several, one is drawn by the
subject's name. Writes chart.json, centiles.csv (3, 10, 50, 90, 97 %), z_scores.csv, changes.csv,
charts/MEASUREMENT.png and report.html. Needs pip install 'tf_autoctx[growth]'.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

from tf_autoctx import configuration, errors, files, spreadsheets
from tf_autoctx.commands import command_line
from tf_autoctx.configuration import field
from tf_autoctx.report import visits

if TYPE_CHECKING:
    from tf_autoctx.growth import Reference
    from tf_autoctx.report.growth_tables import Line

SHOWN = 10  # names in a sentence
OUTER = 1.88  # z of the 97th centile


@dataclasses.dataclass(frozen=True, kw_only=True)
class Growth:
    """Which cases, and on which chart"""

    evaluation: str = field(..., "Folder or CSV file of the measured cases.")
    ages: str = field(..., "CSV file: case,age_weeks and, if wanted, subject.")
    reference: str | None = field(
        None,
        "Cases that the chart is fitted to, folder or CSV file, or chart.json of an earlier "
        "output. By default the cases themselves.",
    )
    reference_ages: str | None = field(
        None, "Ages of the cases of the reference. By default those of all are in one file."
    )
    structure: str | None = field(None, "Structure that was measured, where there are several.")
    method: str | None = field(None, "Method of an evaluation. By default its last.")
    truth: bool = field(False, "Take the measurements of the true labels, not of predictions.")
    measurements: tuple[str, ...] | None = field(
        None, "Columns to make charts of, such as volume_mL,HC_mm. By default all that there are."
    )
    log: tuple[str, ...] | None = field(
        None,
        "Measurements whose logarithm is fitted, such as volume_mL: where z-scores are not normal, "
        "or the spread grows with the size.",
    )
    output: str = field(..., "Folder for the charts and tables.")

    def __post_init__(self) -> None:
        configuration.check(self)
        is_chart = self.reference is not None and self.reference.endswith(".json")
        for name in ("reference_ages", "log"):
            value = getattr(self, name)
            if value is not None and is_chart:
                message = f"the charts of {self.reference} are fitted already; leave it out."
                raise errors.FieldError(name, value, message)
        if self.reference_ages is not None and self.reference is None:
            message = "expected `reference` with it, the cases that have these ages."
            raise errors.FieldError("reference_ages", self.reference_ages, message)


@dataclasses.dataclass(frozen=True)
class Fitted:
    """The charts, and what is known of their subjects.

    Attributes:
      reference: the charts.
      visits: that they are made of, of any measurement; empty where the charts were read.
      told: sentences about them.
    """

    reference: Reference
    visits: Sequence[visits.Visit]
    told: Sequence[str]


def fitted(settings: Growth, source: visits.Visits) -> Fitted:
    """Charts of the cases of a reference.

    Raises:
      FieldError: a measurement that the cases do not have.
      UserError: see `growth.fit`.
    """
    from tf_autoctx import growth

    known = source.path, source.measurements
    wanted = _among("measurements", settings.measurements, *known) or source.measurements
    logs = _among("log", settings.log, *known)
    charts: dict[str, growth.Chart] = {}
    made_of: dict[str, visits.Visit] = {}
    for name in wanted:
        drawn = [
            of[int(growth.mark(subject), 16) % len(of)]
            for subject, of in source.measured(name).items()
        ]
        ages, values = [visit.age for visit in drawn], [visit.values[name] for visit in drawn]
        charts[name] = growth.fit(ages, values, name in logs, f"{source.path}, {name}")
        made_of |= {visit.case: visit for visit in drawn}
    subjects = {visit.subject for visit in made_of.values()}
    marks = frozenset(map(growth.mark, subjects))
    reference = growth.Reference(charts, source.structure, settings.truth, marks)
    told = [f"charts: {len(subjects)} subjects of {_described(source)}"]
    several = sum(len(of) > 1 for of in source.subjects.values())
    if several:
        told.append(
            f"{several} of them have several visits, of which one is drawn: a chart is made of one "
            "measurement of each subject"
        )
    for name, chart in charts.items():
        if chart.shapiro_p < growth.SIGNIFICANT:
            advice = "no chart of this kind fits" if chart.log else f"try --log={name}"
            told.append(
                f"{name}: the z-scores of the charts' own subjects are not normal; {advice}"
            )
    return Fitted(reference, list(made_of.values()), told + _ageless(source))


def _among(
    flag: str, names: Sequence[str] | None, path: str | pathlib.Path, known: Collection[str]
) -> Sequence[str]:
    """The measurements of a flag, if a file has them."""
    if missing := [name for name in names or () if name not in known]:
        message = f"{path} has {', '.join(known)}, not {missing[0]}."
        raise errors.FieldError(flag, names, message)
    return names or ()


def earlier(settings: Growth, path: str) -> Fitted:
    """The charts of a chart.json.

    Raises:
      FieldError: a measurement that it does not have.
      UserError: see `growth.read`.
    """
    from tf_autoctx import growth

    reference = growth.read(path)
    charts = reference.charts
    wanted = _among("measurements", settings.measurements, path, charts) or charts
    chosen = {name: charts[name] for name in wanted}
    told = [f"charts: {len(reference.marks)} subjects of {path}"]
    return Fitted(dataclasses.replace(reference, charts=chosen), [], told)


def charts_for(settings: Growth, cases: visits.Visits) -> Fitted:
    """The charts that the cases are looked at on, of measurements that they have.

    Raises:
      FieldError: what is wanted of the cases is not there.
      UserError: charts are of another structure, or of no measurement that the cases have.
    """
    _among("measurements", settings.measurements, cases.path, cases.measurements)
    for name in ("structure", "method"):
        if (value := getattr(settings, name)) and not getattr(cases, name):
            message = f"{cases.path} has no column {name}; leave it out."
            raise errors.FieldError(name, value, message)
    if settings.reference is None:
        return fitted(settings, cases)
    if settings.reference.endswith(".json"):
        known = earlier(settings, settings.reference)
    else:
        ages = settings.reference_ages or settings.ages
        known = fitted(settings, visits.read(settings.reference, ages, _wanted(settings)))
    reference = known.reference
    both = {cases.structure, reference.structure} - {""}
    if len(both) > 1:
        raise errors.UserError(
            f"{settings.reference}: is of {reference.structure}, {cases.path} of "
            f"{cases.structure}; expected one structure."
        )
    charts = {
        name: reference.charts[name] for name in cases.measurements if name in reference.charts
    }
    if not charts:
        raise errors.UserError(
            f"{cases.path}: has {', '.join(cases.measurements)}, {settings.reference} "
            f"{', '.join(reference.charts)}; expected a measurement of both."
        )
    return dataclasses.replace(known, reference=dataclasses.replace(reference, charts=charts))


def _wanted(settings: Growth) -> visits.Wanted:
    return visits.Wanted(settings.structure, settings.method, settings.truth)


def _described(source: visits.Visits) -> str:
    """Where cases come from."""
    told = [word for word in (source.structure, source.method) if word]
    return f"{source.path}{' (' * bool(told)}{', '.join(told)}{')' * bool(told)}"


def _ageless(source: visits.Visits) -> list[str]:
    if not source.ageless:
        return []
    return [f"without an age, left out, of {source.path}: {_listed(source.ageless)}"]


def _listed(names: Iterable[str]) -> str:
    every = list(names)
    more = f" and {len(every) - SHOWN} more" if len(every) > SHOWN else ""
    return ", ".join(every[:SHOWN]) + more


def told_of(
    settings: Growth, cases: visits.Visits, known: Fitted, lines: Sequence[Line]
) -> list[str]:
    """Sentences about the charts, the cases, and what is special among their z-scores."""
    told = [*known.told]
    if settings.truth != known.reference.truth:
        sides = ["true labels" if truth else "predictions" for truth in (True, False)]
        chart, own = sides if known.reference.truth else sides[::-1]
        told.append(f"the charts are of {chart}, the cases of {own}: their bias is in the z-scores")
    if settings.reference is not None:
        told.append(f"cases: {len(cases.visits)} of {_described(cases)}")
        told += _ageless(cases)
    inside = [name for name in cases.subjects if known.reference.holds(name)]
    if inside:
        told.append(
            f"{len(inside)} of {len(cases.subjects)} subjects are in the charts themselves: their "
            "z-scores say how these fit, not how unusual a subject is"
        )
    for name in known.reference.charts:
        of = [line for line in lines if line["measurement"] == name]
        outer = sorted((line for line in of if abs(line["z"]) > OUTER), key=_nearness)
        if outer:
            shown = _listed(f"{line['case']} ({line['z']:+.2f})" for line in outer)
            told.append(f"{name} below the 3rd or above the 97th centile (z): {shown}")
        for note in dict.fromkeys(line["note"] for line in of if line["note"]):
            noted = [line["case"] for line in of if line["note"] == note]
            told.append(f"{name} {note}: {_listed(noted)}")
    return told


def _nearness(line: Line) -> float:
    """By which lines of z-scores are ordered, first the farthest from the mean."""
    return -abs(line["z"])


def main(given: command_line.Given) -> None:
    """Runs the command."""
    settings = given.configured(Growth)
    from tf_autoctx import growth
    from tf_autoctx.report import figures, growth_page, growth_tables, tables

    output = pathlib.Path(settings.output)
    cases = visits.read(settings.evaluation, settings.ages, _wanted(settings))
    known = charts_for(settings, cases)
    reference = known.reference
    lines = growth_tables.z_scores(reference, cases.visits)
    told = told_of(settings, cases, known, lines)
    files.own(output)
    growth.write(output / "chart.json", reference)
    centiles, changes = growth_tables.centiles(reference), growth_tables.changes(lines)
    spreadsheets.write(output / "centiles.csv", centiles, growth_tables.CENTILES)
    spreadsheets.write(output / "z_scores.csv", lines, growth_tables.Z_SCORES)
    spreadsheets.write(output / "changes.csv", changes, growth_tables.CHANGES)
    # Of subjects that are looked at anyway there is no second picture.
    beside = known.visits if settings.reference is not None else []
    with files.replacing(output / "charts") as partial:
        for name, chart in reference.charts.items():
            own, looked_at = (growth_tables.points(of, name) for of in (beside, cases.visits))
            title = growth_tables.title(name)
            figures.growth(partial / f"{name}.png", chart, own, looked_at, title)
    growth_page.write(output / "report.html", reference, beside, cases.visits, lines, told)
    print(tables.aligned([list(growth_tables.FITS), *growth_tables.fits(reference)]))
    print("\n".join([*growth_tables.FIT_NOTES, *told, f"{output / 'report.html'}"]))


command = command_line.Command(main, (Growth,), __doc__)
