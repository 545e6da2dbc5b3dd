"""Several finished runs that become one model: they must compute alike."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging

from tf_autoctx import configuration
from tf_autoctx.errors import FieldError, UserError
from tf_autoctx.systems.shared import cleaning, registry, seen
from tf_autoctx.systems.shared.cleaning import Cleaning
from tf_autoctx.systems.shared.system import Networks, System
from tf_autoctx.training import runs
from tf_autoctx.training.runs import Run


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """Finished runs of one system.

    Attributes:
      system: of all of them.
      members: each run, with its networks of `System.finished`.
      mirrors: axes along which every training mirrored its images; see `System.mirrors`.
      cleaning: the steps of the post-processing that all of them keep.
    """

    system: System
    members: list[tuple[Run, Networks]]
    mirrors: tuple[int, ...]
    cleaning: Cleaning


def load(folders: Sequence[str | pathlib.Path], mirrors: bool = False) -> Ensemble:
    """The ensemble of several run folders.

    Args:
      folders: two or more.
      mirrors: whether it sees mirror images too.

    Raises:
      UserError: a run twice, or one that is not finished; runs that segment in different ways;
        folds of different data sets; mirrors of trainings that had none.
    """
    if len({pathlib.Path(folder).resolve() for folder in folders}) < max(2, len(folders)):
        raise FieldError("runs", folders, "expected two run folders or more, each once.")
    first, *others = opened = [runs.load(folder) for folder in folders]
    for run in others:
        _require_alike(first, run)
    _require_one_data_set(opened)
    kind: type[System] = registry.find(first.system, str(first.folder)).load()
    systems = [kind.of_run(run) for run in opened]
    axes = [system.required_mirrors(run.flags) for system, run in zip(systems, opened) if mirrors]
    if len(set(axes)) > 1:
        told = "the trainings of these runs mirrored different axes; expected the same."
        raise FieldError("mirrors", mirrors, told)
    _require_one_configuration(opened, systems)
    members = [(run, system.finished(run)) for system, run in zip(systems, opened)]
    for run, networks in members:
        names = [list(systems[0].served_networks(n)) for n in (members[0][1], networks)]
        _require_same(first, run, "networks", *(", ".join(of_run) for of_run in names))
    kept = cleaning.common([cleaning.of_run(run) for run in opened])
    return Ensemble(systems[0], members, axes[0] if mirrors else (), kept)


def _require_alike(first: Run, run: Run) -> None:
    _require_same(first, run, "system", first.system, run.system)
    # In their order, that of the channels.
    _require_same(first, run, "labels", *(_listed(each.labels) for each in (first, run)))
    _require_same(first, run, "channels", *(", ".join(each.channels) for each in (first, run)))
    for fact in ("orientation", "grid"):
        _require_same(first, run, fact, *(each.facts.get(fact) for each in (first, run)))


def _require_one_data_set(opened: Sequence[Run]) -> None:
    """Raises a `UserError` where folds are of different cases.

    Warns of a fold that is missing, of folds that were drawn in different ways, and of runs that
    have no training case in common.
    """
    first = opened[0]
    for run in opened[1:]:
        ours, theirs = (r.facts.get(seen.FACT, {}).get(seen.LEARNT, ()) for r in (first, run))
        of_one_set = _data_of(run) & _data_of(first)
        if ours and theirs and not of_one_set and set(ours).isdisjoint(theirs):
            logging.warning(
                "%s has no training case in common with %s: is it a model of the same task?",
                *(run.folder, first.folder),
            )
        # A structure of one name may be of other label values.
        values = [r.flags.get("foreground") for r in (first, run)]
        if of_one_set and None not in values:
            _require_same(first, run, "`foreground`", *values)
    folds = [run for run in opened if run.facts.get("cases_fingerprint")]
    for run in folds:
        if run.facts["cases_fingerprint"] != folds[0].facts["cases_fingerprint"]:
            raise UserError(
                f"{run.folder}: a fold of other cases than {folds[0].folder}; expected folds of "
                "one data set."
            )
    drawn = {(run.flags["folds"], run.flags["seed"]) for run in folds}
    if len(drawn) > 1:
        told = " and ".join(f"{count} folds of seed {seed}" for count, seed in sorted(drawn))
        logging.warning(
            "The model is the mean of folds that were drawn in different ways: %s.", told
        )
    if len(folds) < len(opened) or len(drawn) > 1:
        return
    ((count, _),) = drawn
    missing = sorted(set(range(1, count + 1)) - {run.flags["fold"] for run in folds})
    if missing:
        logging.warning(
            "The model is the mean of %d of %d folds, without %s.",
            *(count - len(missing), count, ", ".join(map(str, missing))),
        )


def _data_of(run: Run) -> set[str]:
    """Marks of the data set of a run, as it is split and however it is."""
    return {run.fingerprint, run.facts.get("cases_fingerprint", run.fingerprint)}


def _require_one_configuration(opened: Sequence[Run], systems: Sequence[System]) -> None:
    """Raises a `UserError` where a field differs that finished networks depend on."""
    known = configuration.rules(type(systems[0].configuration))
    for name in (name for name, rule in known.items() if not rule.training_only):
        values = [getattr(system.configuration, name) for system in systems]
        for run, value in zip(opened, values):
            _require_same(opened[0], run, f"`{name}`", values[0], value)


def _require_same(first: Run, run: Run, what: str, expected: Any, value: Any) -> None:
    if value != expected:
        raise UserError(
            f"{run.folder}: has the {what} {value}, {first.folder} {expected}; expected runs that "
            "segment in the same way."
        )


def _listed(labels: Mapping[int, str]) -> str:
    return ", ".join(f"{value} {name}" for value, name in labels.items())
