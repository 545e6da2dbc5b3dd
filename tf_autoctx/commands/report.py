"""One HTML page of an evaluation, or of several on the same cases, with a viewer of every case.

  autoctx-report --evaluations=runs/fetal_head/evaluation --output=report.html
  autoctx-report --evaluations=runs/a/evaluation,runs/b/evaluation --output=report.html
  autoctx-report --evaluations=results --subjects=subjects.csv --output=repeatability.html

The second lays one over the other. The third is of repeated scans without labels: `results` has the
measurements.csv of the predict command, and the page says how the measurements of a subject repeat.
Of an evaluation it says so too, where groups have several cases or --subjects says which these are.

The page has tables, charts and the viewer, and needs no network and no other file. Any folder with
a scores.csv will do; trainings also leave what the viewer shows in views/, and curves and
configuration in the run folder above.
"""

from __future__ import annotations

import dataclasses
import pathlib

from tf_autoctx import configuration, errors
from tf_autoctx.commands import command_line
from tf_autoctx.configuration import field


@dataclasses.dataclass(frozen=True)
class Report:
    """What the page shows"""

    evaluations: tuple[str, ...] = field(
        ...,
        "Folders with scores.csv, of the same cases; or of predictions without truth, with "
        "measurements.csv.",
    )
    output: str = field(..., "HTML file to write.")
    channel: int = field(
        0, "Channel of the images to show, of those of the first evaluation.", least=0
    )
    subjects: str | None = field(
        None,
        "CSV file with the columns case,subject: the scans of a subject, whose measurements ought "
        "to be alike, the earlier one first. By default a subject is a group of the evaluation.",
    )

    def __post_init__(self) -> None:
        configuration.check(self)


def main(given: command_line.Given) -> None:
    """Runs the command."""
    from tf_autoctx.report import page, repeatability, tables
    from tf_autoctx.systems.shared import scored_runs

    settings = given.configured(Report)
    folders = [pathlib.Path(folder) for folder in settings.evaluations]
    measured = [folder for folder in folders if repeatability.is_measured(folder)]
    if measured and measured != folders:
        told = f"{measured[0]} has no scores, others have; expected one kind of them."
        raise errors.FieldError("evaluations", settings.evaluations, told)
    if measured:
        print(repeatability.write(settings.output, measured, settings.subjects))
        return
    for folder in folders:
        scored_runs.declare_metrics(tables.read(folder))
    told = page.write(settings.output, settings.evaluations, settings.channel, settings.subjects)
    if told:
        print(told)


command = command_line.Command(main, (Report,), __doc__)
