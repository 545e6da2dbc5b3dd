"""One HTML page of an evaluation, or of several on the same cases, with a viewer of every case.

  autoctx-report --evaluations=runs/fetal_head/evaluation --output=report.html
  autoctx-report --evaluations=runs/a/evaluation,runs/b/evaluation --output=report.html

The second lays one over the other. The page has tables, charts and the viewer, and needs no network
and no other file. Any folder with a scores.csv will do; trainings also leave what the viewer
shows in views/, and curves and configuration in the run folder above.
"""

from __future__ import annotations

import dataclasses

from tf_autoctx import configuration
from tf_autoctx.commands import command_line
from tf_autoctx.configuration import field


@dataclasses.dataclass(frozen=True)
class Report:
    """What the page shows"""

    evaluations: tuple[str, ...] = field(..., "Folders with scores.csv, of the same cases.")
    output: str = field(..., "HTML file to write.")
    channel: int = field(
        0, "Channel of the images to show, of those of the first evaluation.", least=0
    )

    def __post_init__(self) -> None:
        configuration.check(self)


def main(given: command_line.Given) -> None:
    """Runs the command."""
    from tf_autoctx.report import page, tables
    from tf_autoctx.systems.shared import scored_runs

    settings = given.configured(Report)
    for folder in settings.evaluations:
        scored_runs.declare_metrics(tables.read(folder))
    page.write(settings.output, settings.evaluations, settings.channel)


command = command_line.Command(main, (Report,), __doc__)
