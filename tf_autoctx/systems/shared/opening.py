"""How a training run begins and ends, whatever the system."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import shutil
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tf_autoctx import configuration, files, logbook
from tf_autoctx.data import datasets, images, regions
from tf_autoctx.data.configuration import MEDIAN, Data, Resampling
from tf_autoctx.data.phantoms import folder as phantom_folder
from tf_autoctx.errors import Faults, FieldError, UserError
from tf_autoctx.report import page
from tf_autoctx.systems.shared import (
    caching,
    checks,
    cleaning,
    evaluation,
    grid,
    initial,
    patches,
    precision,
    reading,
)
from tf_autoctx.systems.shared.caching import Files
from tf_autoctx.systems.shared.declaration import Declaration
from tf_autoctx.systems.shared.evaluation import Scoring
from tf_autoctx.systems.shared.exporting import export_run
from tf_autoctx.systems.shared.grid import Grid
from tf_autoctx.systems.shared.image_checks import Trained
from tf_autoctx.systems.shared.mirrored import Mirrored
from tf_autoctx.systems.shared.planning import Cases, Extent, Plan
from tf_autoctx.systems.shared.scored_runs import TRAINING_CASES
from tf_autoctx.systems.shared.seen import Seen
from tf_autoctx.systems.shared.session import Session
from tf_autoctx.systems.shared.system import Evaluator, Networks, Reader, System
from tf_autoctx.training import cluster, devices, runs
from tf_autoctx.training.configuration import POLICIES, Settings
from tf_autoctx.training.runs import Making


@dataclasses.dataclass(frozen=True)
class Opened:
    """A run that is open: its system, what its stages share, and the cases that are held out, or
    that validate."""

    system: System
    session: Session
    held_out: list[datasets.Case]
    read: Reader
    validation: Sequence[datasets.Case] = ()

    def train(self) -> Networks:
        """Trains all stages, or goes on with them: the finished networks in float32."""
        return self.system.train(self.session)

    def finish(self, networks: Networks) -> None:
        """Decides the post-processing, scores the held-out cases on their original grid, exports,
        and writes the report: the chief does. Other workers wait for it: should it fail they fail
        too, and all are started again together."""
        if devices.is_chief(self.session.strategy):
            self._finish(networks)
        cluster.wait_for_all(self.session.strategy)

    def _finish(self, networks: Networks) -> None:
        system, session, run = self.system, self.session, runs.load(self.session.folder)
        measure = system.measure if system.measurements else None
        trained, tolerance = Trained.of_facts(run.facts), session.values["surface_tolerance"]
        how = trained, system.window, measure, tolerance
        scoring = Scoring(run.system, system.labels, *how, system.regions)
        folder = session.folder / "evaluation"
        evaluator = system.evaluator(networks)
        decision = self._decided(evaluator)
        evaluator = compared = self._compared(evaluator, networks)
        mirrors = system.required_mirrors(session.values) if session.values["mirrors"] else ()
        if mirrors:
            evaluator = Mirrored(evaluator, system.graphs(networks, mirrors), system.labels)
        if decision:  # also where nothing is kept: folds and seeds are joined method by method
            dimensions = system.declaration.dimensions
            evaluator = cleaning.CleanedToo(evaluator, decision.cleaning, dimensions)
        evaluation.evaluate(self.held_out, self.read, evaluator, scoring, folder)
        if isinstance(compared, precision.Compared):
            precision.note(session.folder, compared.least)
        export_run(system, run, networks, session.values["export_precision"], mirrors)
        report = session.folder / "report.html"
        page.write(report, [folder])
        print(f"{report}: tables, charts and a viewer of every case, for a browser")
        if not session.values["keep_cache"]:
            caching.forget(session.folder)

    def _decided(self, evaluator: Evaluator) -> cleaning.Decision | None:
        """What the validation cases decide of the post-processing, which is recorded; None: it is
        not asked for, or there are none; or structures are regions, of which a label shows one a
        voxel and not all."""
        folder, system = self.session.folder, self.system
        cleaning.forget(folder)
        if self.session.values[cleaning.FLAG] != cleaning.AUTO:
            return None
        if system.regions:
            print(f"{folder}: no post-processing, as the structures are regions")
            return None
        how = system.labels, system.declaration.dimensions
        decision = cleaning.decide(self.validation, self.read, evaluator, *how)
        cleaning.note(folder, decision)
        print(f"{folder}: {decision.words()}")
        return decision if decision.cases else None

    def _compared(self, evaluator: Evaluator, networks: Networks) -> Evaluator:
        """The evaluator; of a run that was trained in bfloat16, one of both precisions."""
        system = self.system
        low = self.session.values["precision"] == POLICIES[precision.LOW]
        if not (low and system.predicts_as_evaluated):
            return evaluator
        served = system.in_precision(system.served_networks(networks), precision.LOW)
        return precision.Compared(evaluator, system.graphs(served), system.labels, system.regions)


def open_training(
    declaration: Declaration,
    values: Mapping[str, Any],
    changeable: frozenset[str],
    growing: frozenset[str],
    earlier: Mapping[str, Any],
) -> Opened:
    """Sets devices, precision and seeds, checks all flags and cases, fills the run's cache, and
    then opens the run folder: it binds nothing before something can be trained in it.

    Args:
      declaration: of the system.
      values: {flag: value}, presets filled in.
      changeable: names of the flags with which a run goes on whatever their value.
      growing: names of those with which it goes on where they are larger than before.
      earlier: {flag: value} of runs that were made before there was the flag.

    Raises:
      UserError: flags that contradict each other, bad data, a folder of another run or of another
        process.
    """
    began = time.time()
    kind: type[System] = declaration.load()
    folder = pathlib.Path(values["work_dir"])
    begins = not runs.is_trained(folder)
    values = _checked(declaration, folder, values)
    settings = configuration.configured(Settings, values)
    strategy = devices.strategy(values["strategy"])
    cluster.require_alike(strategy, _started_with(declaration, values))
    is_chief = devices.is_chief(strategy)
    if is_chief:
        files.own(folder, began)
        devices.warn_of_unseen_gpu()
    values["precision"] = devices.set_up(values["precision"], values["seed"])

    source = values["data_dir"] or _phantoms(kind, folder, values)
    cases = datasets.of_flags(source, values)
    system = _made(declaration, source, cases, values)
    fingerprint, of_all_folds, scans = datasets.fingerprints(cases)
    found = {"data": f"data {fingerprint[:12]}", "precision": f"`precision={values['precision']}`"}
    cluster.require_alike(strategy, found)
    making = Making(declaration.name, values, fingerprint, changeable, growing, earlier)
    system.check_run(making)
    runs.check(folder, making)
    weights: initial.Weights | None = None
    seen: Seen = {}
    if begins:  # before anything is read or made
        if values[initial.FLAG]:
            weights = initial.load(values[initial.FLAG], declaration.name)
        scored = [case.name for case in evaluation.scored(cases)]
        seen = initial.seen(weights, fingerprint, scans, scored)
    elif declaration.dimensions == 3:
        checks.require_stored_so(folder, runs.load(folder).facts, cases)

    read = system.reader(values["foreground"], cases.labels)
    isolated = bool(values["data_dir"])  # our own phantoms are whole
    # The flags of a plan become those of `making`, too.
    system, plan = _settled(system, _known(cases, values), read, values, weights, strategy)
    if weights:
        initial.compare_inputs(weights, cases.channels, system.grid, values)
    cache = caching.directory(folder, system, read.foreground, fingerprint)
    if is_chief:
        caching.forget_others(folder, cache)
    held_out, training, validation = _read_all(cases, cache, read, system, isolated)
    system.check_cases(training, validation)

    facts = {**_facts(system, training), **_facts_of_cases(cases, values)}
    told = {
        "cases_fingerprint": of_all_folds if values["folds"] else None,
        "seen": seen or None,
        "plan": dataclasses.asdict(plan) if plan else None,
    }
    facts |= {name: fact for name, fact in told.items() if fact is not None}
    run = runs.open_run(folder, making, is_chief).note(**facts)
    session = Session(run, values, strategy, settings, training, validation, read.ignored)
    if is_chief:
        logbook.keep_in(folder)
        print(_resolved(session, len(held_out)))
    return Opened(system, session, held_out, read, cases.validation)


def _checked(
    declaration: Declaration, folder: pathlib.Path, values: Mapping[str, Any]
) -> dict[str, Any]:
    """The flags with all that follows from them, and from what was left to a run that goes on: its
    plan and precision.

    Raises:
      FieldError: a value out of range, or flags that contradict each other.
    """
    values = dict(values)
    if runs.is_trained(folder):
        run = runs.load(folder)
        values |= patches.planned_before(run.facts, values)
        values["precision"] = run.precision(values["precision"])
    values |= declaration.load().implied(values)
    for kind in (declaration.configuration, Settings, Data, *declaration.training):
        configuration.configured(kind, values)
    return values


def _started_with(declaration: Declaration, values: Mapping[str, Any]) -> dict[str, str]:
    """What all workers of a training must have in common, see `cluster.require_alike`: all flags
    but `data_dir`, which may be a copy on each machine, and is told by its fingerprint."""
    folder = pathlib.Path(values["work_dir"]).resolve()
    told = {name: value for name, value in values.items() if name != "data_dir"}
    flags = {name: f"`{name}={value}`" for name, value in (told | {"work_dir": folder}).items()}
    return {"system": f"the system {declaration.name}", **flags}


def _made(
    declaration: Declaration,
    source: str | pathlib.Path,
    cases: datasets.Dataset,
    values: dict[str, Any],
) -> System:
    """The system for the structures and channels of a data set; regions that it tells become those
    of the flag where there are none.

    Raises:
      UserError: structures, channels, regions or mirrors that do not go together.
    """
    kind: type[System] = declaration.load()
    checks.require_channels(declaration, source, cases)
    if told := checks.told_regions(declaration, source, cases):
        values[regions.FLAG] = values[regions.FLAG] or told
    chosen: Any = configuration.configured(declaration.configuration, values)
    labels = checks.structures(kind, _known(cases, values), values)
    system = kind.made(chosen, labels, len(cases.channels))
    if values["mirrors"]:
        system.required_mirrors(values)
    return system


def _known(cases: datasets.Dataset, values: Mapping[str, Any]) -> datasets.Dataset:
    """The cases that tell what there is to segment: where folds or seeds divide them all that any
    run trains on, or they would be no ensemble and no method with several runs."""
    if not (values["folds"] or values["test_fraction"]):
        return cases
    return dataclasses.replace(cases, train=cases.train + cases.validation + cases.test)


def _settled(
    system: System,
    cases: datasets.Dataset,
    read: Reader,
    values: dict[str, Any],
    weights: initial.Weights | None,
    strategy: tf.distribute.Strategy,
) -> tuple[System, Plan | None]:
    """The system on the grid of its cases and by the flags that a plan comes to, which `values`
    get; the plan, where there is one.

    Raises:
      FieldError: see `_grid` and `_plan`.
    """
    declaration = system.declaration
    plans, resampling = values.get(patches.FLAG) == patches.AUTO, values.get("spacing") == MEDIAN
    extents = _extents(cases, read, bool(values["data_dir"])) if plans or resampling else []
    if Resampling in declaration.training:
        system.grid = _grid(configuration.configured(Resampling, values), extents)
    if not plans:
        return system, None
    kept = initial.depth(weights, declaration.configuration, values)
    plan = _plan(_configured_anew(system, values | kept), extents, values, strategy)
    plan = plan.keeping(kept, values[initial.FLAG])
    values |= plan.flags
    return _configured_anew(system, values), plan


def _facts_of_cases(cases: datasets.Dataset, values: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json says of the channels, and of test cases that the seed has drawn."""
    facts: dict[str, Any] = {}
    if len(cases.channels) > 1:
        facts["channels"] = cases.channels
    if values["test_fraction"]:
        facts["test_cases"] = [case.name for case in cases.test]
        facts[TRAINING_CASES] = len({*cases.train, *cases.validation})
    return facts


def _facts(system: System, training: Files) -> dict[str, Any]:
    """What config.json says of the structures and of the voxels that are learnt from."""
    facts = {"labels": system.labels, **regions.facts(system.regions, system.labels)}
    if system.declaration.dimensions == 3:
        facts |= {"spacing": checks.spacing_range(training), "orientation": images.ORIENTATION}
    if system.grid:
        facts |= {"grid": system.grid.spacing, "extent": checks.extent_range(training)}
    return facts


def _phantoms(kind: type[System], folder: pathlib.Path, values: Mapping[str, Any]) -> pathlib.Path:
    """The run's own phantoms; those of other flags give way where nothing was trained on them."""
    own = folder / "phantoms"
    try:
        return kind.write_phantoms(own, values)
    except UserError:
        if runs.is_trained(folder) or not phantom_folder.is_made(own):
            raise
        shutil.rmtree(own)
        return kind.write_phantoms(own, values)


def _extents(cases: datasets.Dataset, read: Reader, isolated: bool) -> list[Extent]:
    """Voxels and spacing of every training case that can be read, on its own grid; what its voxels
    are is told later, when they are learnt from."""
    read = dataclasses.replace(read, any_voxels=True)
    outcomes = (outcome for _, outcome in reading.each(cases.train, read, isolated))
    pairs = (pair for pair in outcomes if not isinstance(pair, UserError))
    return [(label.shape, image.spacing) for image, label in pairs]


def _grid(chosen: Resampling, extents: Sequence[Extent]) -> Grid | None:
    """The grid that networks are to see volumes on; for `auto` that of the training cases.

    Raises:
      FieldError: there are none.
    """
    if chosen.spacing != MEDIAN:
        return Grid(chosen.edges) if chosen.edges else None
    return grid.median([spacing for _, spacing in extents])


def _plan(
    system: System,
    extents: Sequence[Extent],
    values: Mapping[str, Any],
    strategy: tf.distribute.Strategy,
) -> Plan:
    """What the flags come to that are left to a plan.

    Raises:
      FieldError: there is nothing to plan from; see `System.planned`.
    """
    free, flag = devices.free_memory(), (patches.FLAG, patches.AUTO)
    if not extents:
        raise FieldError(*flag, "no case could be read; expected one to train on.")
    if free is None:
        raise FieldError(*flag, "how much memory is free cannot be told here; expected edges.")
    if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        raise FieldError(*flag, "several workers may have different memory; expected edges.")
    spacing = tuple(float(mm) for mm in np.median([mm for _, mm in extents], axis=0))
    sizes = tuple(tuple(size) for size, _ in extents)
    if on_grid := system.grid:
        sizes = tuple(tuple(int(n) for n in on_grid.size(size, mm)) for size, mm in extents)
        spacing = on_grid.spacing
    settings = values["batch_size"], values["rematerialize"]
    return system.planned(Cases(sizes, spacing, free, *settings))


def _read_all(
    cases: datasets.Dataset,
    cache: pathlib.Path,
    read: Reader,
    system: System,
    isolated: bool,
) -> tuple[list[datasets.Case], Files, Files]:
    """The held-out cases, and the prepared ones that train and validate.

    Raises:
      UserError: all faults of all cases together.
    """
    faults = Faults()
    training, validation = (
        caching.cached(part, cache, read, system, faults, isolated)
        for part in (cases.train, cases.validation)
    )
    held_out = evaluation.held_out(cases, read, faults, isolated)
    faults.require_none("faults in the cases")
    return held_out, training, validation


def _configured_anew(system: System, values: Mapping[str, Any]) -> System:
    """The same system by other flags."""
    chosen: Any = configuration.configured(system.declaration.configuration, values)
    other = type(system).made(chosen, system.labels, system.channels)
    other.grid = system.grid
    return other


def _resolved(session: Session, held_out: int) -> str:
    """What a training is about to do, in words."""
    settings, replicas = session.settings, session.strategy.num_replicas_in_sync
    epoch = math.ceil(settings.samples_per_epoch / (settings.batch_size * replicas))
    epochs = math.ceil(settings.steps / epoch)
    folds = session.values["folds"]
    fold = f": fold {session.values['fold']} of {folds}" if folds else ""
    if session.values["test_fraction"]:
        fold = f": drawn by seed {session.values['seed']}"
    facts = session.run.facts
    plan = "".join(f"\n{reason}" for reason in facts.get("plan", {}).get("reasons", ()))
    if facts.get("grid"):
        plan += checks.told_grid(facts["grid"], facts["extent"])
    several = f", channels {', '.join(session.run.channels)}" if session.channels > 1 else ""
    return (
        f"{session.folder}: on {devices.described(session.strategy)}, precision "
        f"{session.values['precision']}, batch {settings.batch_size} x {replicas} "
        f"replica{'s' * (replicas > 1)}\n"
        f"cases: {len(session.training)} to train, {len(session.validation)} to validate, "
        f"{held_out} held out{fold}{several}\n"
        f"steps: {settings.steps} for each level or stage without its own, in {epochs} "
        f"epoch{'s' * (epochs > 1)} of {epoch}; learning rate {settings.learning_rate:g}, "
        f"{settings.learning_rate_decay}{plan}"
    )
