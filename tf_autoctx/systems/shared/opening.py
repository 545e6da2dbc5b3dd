"""How a training run begins and ends, whatever the system."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from tf_autoctx import configuration
from tf_autoctx.data import datasets
from tf_autoctx.systems.shared import caching, checks, evaluation
from tf_autoctx.systems.shared.declaration import Declaration
from tf_autoctx.systems.shared.evaluation import Scoring
from tf_autoctx.systems.shared.exporting import export_run
from tf_autoctx.systems.shared.session import Session
from tf_autoctx.systems.shared.system import Networks, Reader, System
from tf_autoctx.training import devices, runs
from tf_autoctx.training.configuration import Settings
from tf_autoctx.training.runs import Making


@dataclasses.dataclass(frozen=True)
class Opened:
    """A run that is open: its system, what its stages share, and the cases that are held out."""

    system: System
    session: Session
    held_out: list[datasets.Case]
    read: Reader

    def train(self) -> Networks:
        """Trains all stages, or goes on with them: the finished networks in float32."""
        return self.system.train(self.session)

    def finish(self, networks: Networks) -> None:
        """Scores the held-out cases on their original grid, and exports; the chief does."""
        if not devices.is_chief(self.session.strategy):
            return
        system, session, run = self.system, self.session, runs.load(self.session.folder)
        scoring = Scoring(
            run.system, system.labels, run.spacing, system.window, type(system).measure
        )
        folder = session.folder / "evaluation"
        evaluation.evaluate(self.held_out, self.read, system.evaluator(networks), scoring, folder)
        export_run(system, run, networks, session.values["export_precision"])


def open_training(
    declaration: Declaration, values: Mapping[str, Any], changeable: frozenset[str]
) -> Opened:
    """Sets devices, precision and seeds, loads the cases, opens the run folder and fills its cache.

    Args:
      declaration: of the system.
      values: {flag: value}, presets filled in.
      changeable: names of the flags with which a run goes on whatever their value.

    Raises:
      UserError: flags that contradict each other, bad data, a folder of another run.
    """
    kind: type[System] = declaration.load()
    values = dict(values)
    values |= kind.implied(values)
    chosen: Any = configuration.configured(declaration.configuration, values)
    strategy = devices.strategy(values["strategy"])
    values["precision"] = devices.set_up(values["precision"], values["seed"])
    folder = pathlib.Path(values["work_dir"])

    source = values["data_dir"] or kind.write_phantoms(folder / "phantoms", values)
    cases = datasets.load(source, values["seed"], values["validation_fraction"])
    labels = kind.structures(cases, values["foreground"])
    system = kind(chosen, labels)
    making = Making(declaration.name, values, datasets.fingerprint(cases), changeable)
    system.check_run(making)
    run = runs.open_run(folder, making).note(labels=labels)

    read = system.reader(values["foreground"], cases.labels)
    held_out = evaluation.held_out(cases, read)
    training, validation = (
        caching.cached(part, folder / "cache", read, system)
        for part in (cases.train, cases.validation)
    )
    system.check_cases(training, validation)
    if declaration.dimensions == 3:
        run = run.note(spacing=checks.spacing_range(training))
    settings = configuration.configured(Settings, values)
    session = Session(run, values, strategy, settings, training, validation)
    return Opened(system, session, held_out, read)
