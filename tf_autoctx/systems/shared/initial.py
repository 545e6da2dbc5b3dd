"""The weights that a training starts from where another model has them: `--initial_weights`."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from absl import logging

from tf_autoctx import configuration, export, shipped
from tf_autoctx.data import regions
from tf_autoctx.data.datasets import Scans
from tf_autoctx.errors import FieldError
from tf_autoctx.models import layers
from tf_autoctx.systems.shared import registry
from tf_autoctx.systems.shared.grid import Grid
from tf_autoctx.systems.shared.image_checks import by
from tf_autoctx.systems.shared.seen import FACT, UNTOLD, Seen, after, require_new
from tf_autoctx.systems.shared.session import Session
from tf_autoctx.systems.shared.stage import Networks, Stage, digest
from tf_autoctx.training import runs

FLAG = "initial_weights"
HEAD = "head"  # the names of layers whose channels are the structures end so
LEAST = 0.05  # share of the weights of a network that fits where it is a like one
Arrays = dict[str, np.ndarray]  # by the names of `layers.named_weights`


@dataclasses.dataclass(frozen=True)
class Weights:
    """The weights of another model.

    Attributes:
      path: of the model, for messages.
      networks: {name of a network, in the order in which they run: its weights}.
      facts: config.json of the run or card of the SavedModel.
      flags: of the training.
    """

    path: pathlib.Path
    networks: Mapping[str, Arrays]
    facts: Mapping[str, Any]
    flags: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """Of all weights, see `stage.digest`."""
        return digest(array for arrays in self.networks.values() for array in arrays.values())

    def of(self, network: str, stage: str, alone: bool) -> tuple[str, Arrays]:
        """Name and weights of what a network of a stage starts from: the network of its name, else
        of its stage's, else, where it is `alone` in its stage, the last one; "", {}: of none."""
        names = [name for name in (network, stage) if name in self.networks]
        names += list(self.networks)[-1:] if alone else []
        return (names[0], self.networks[names[0]]) if names else ("", {})


def load(path: str | pathlib.Path, system: str) -> Weights:
    """The weights of a run folder, of a SavedModel or the newest of its versions, or of a model of
    `shipped`.

    Raises:
      FieldError: neither, or a model of another system.
      UserError: nothing is finished, or it cannot be read.
    """
    path = shipped.resolved(path)
    if (path / "config.json").exists():
        run = runs.load(path)
        _require(path, run.system, system)
        return Weights(path, _of_run(run), run.facts, run.flags)
    version = path if (path / export.GRAPH).exists() else export.newest(path)
    if version is None:
        expected = f"expected a run folder, a SavedModel or one of {', '.join(shipped.names())}."
        raise FieldError(FLAG, path, f"neither config.json nor saved_model.pb; {expected}")
    card = export.read_card(version)
    _require(version, str(card.get("system")), system)
    if "runs" in card:
        told = f"an ensemble of {len(card['runs'])} runs; expected one of its run folders."
        raise FieldError(FLAG, version, told)
    return Weights(version, export.read_weights(version), card, card.get("config") or {})


def compare_inputs(
    weights: Weights, channels: Sequence[str], grid: Grid | None, flags: Mapping[str, Any]
) -> None:
    """Warns where a model saw its images in another way than a training is about to.

    Args:
      weights: of the model.
      channels: names of those of the images.
      grid: that they are brought to; None: they stay as they are.
      flags: of the training.

    Raises:
      FieldError: it saw the same channels in another order.
    """
    theirs, ours = list(weights.facts.get("channels") or channels[:1]), list(channels)
    if theirs != ours and sorted(theirs) == sorted(ours):
        told = f"has the channels {', '.join(theirs)}, and the data {', '.join(ours)}"
        raise FieldError(FLAG, weights.path, f"{told}; expected the same order.")
    edges = weights.facts.get("grid")
    pairs = {
        "channels": (", ".join(theirs), ", ".join(ours)),
        "voxels": (f"{by(edges)} mm" if edges else "any mm", str(grid) if grid else "any mm"),
    }
    for name in ("scale", "intensities"):
        if weights.flags.get(name) is not None:  # else it is of before there was the flag
            pairs[name] = weights.flags[name], flags[name]
    for name, (before, now) in pairs.items():
        if before != now:
            logging.warning(
                "%s: its networks saw images of %s %s, and now %s; its weights are taken as they "
                "are.",
                *(weights.path, name, before, now),
            )


def seen(weights: Weights | None, fingerprint: str, scans: Scans, scored: Collection[str]) -> Seen:
    """What the weights of a training on such scans will have seen.

    Where the weights that it starts from do not tell, as those of earlier releases, or stem from
    such, a warning is given.

    Args:
      weights: that it starts from; None: new ones.
      fingerprint: of its data.
      scans: see `datasets.fingerprints`.
      scored: names of its cases that are scored.

    Raises:
      FieldError: see `seen.require_new`.
    """
    if weights is None:
        return after(scans)
    before: Seen = weights.facts.get(FACT) or {}
    same = weights.facts.get("data_fingerprint") == fingerprint  # the same splits of the same cases
    if not before and not same:
        before = {UNTOLD: [str(weights.path)]}
    require_new((FLAG, weights.path), before, scans, scored)
    for path in before.get(UNTOLD, ()):
        logging.warning(
            "%s: does not tell which cases its weights have learnt from; where cases that are "
            "scored here are among them, the scores flatter.",
            path,
        )
    return after(scans, before)


def depth(weights: Weights | None, kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """{"depth": that of the networks that a training starts from}, where its own is left to a plan,
    or layers of other resolutions would not fit; `kind` is the system's configuration."""
    if weights is None or values.get("depth", 0) is not None:
        return {}
    source: Any = configuration.configured(kind, weights.flags)
    return {"depth": source.depth}


def _require(path: pathlib.Path, system: str, expected: str) -> None:
    if system != expected:
        raise FieldError(FLAG, path, f"a model of {system!r}; expected one of {expected!r}.")


def _of_run(run: runs.Run) -> dict[str, Arrays]:
    """Weights of a run's networks by the names that layers have now: those of earlier releases had
    others, in the same order."""
    system = registry.find(run.system, str(run.folder)).load().of_run(run)
    finished = system.starting(system.finished(run))
    renamed = system.new_networks(list(finished))
    for name, network in renamed.items():
        network.set_weights(finished[name].get_weights())
    return {name: _arrays(network) for name, network in renamed.items()}


def _arrays(network: keras.Model) -> Arrays:
    return {name: np.array(weight) for name, weight in layers.named_weights(network).items()}


def start(stage: Stage, networks: Networks, session: Session) -> None:
    """Gives the new networks of a stage the weights of the model of the flag that fit by name and
    shape, but for what the stage takes over from the stages before, and for the head where it
    stands for other structures; prints it, and notes it in config.json.

    Raises:
      FieldError: hardly any fits.
      UserError: see `load`; other weights than those that the stages before started from.
    """
    weights = load(session.values[FLAG], session.run.system)
    unlike = () if _same_classes(weights, session) else (HEAD,)
    taken = {}
    for name, network in networks.items():
        source, arrays = weights.of(name, stage.name, alone=len(networks) == 1)
        kept = {key: array for key, array in arrays.items() if not _layer(key).endswith(unlike)}
        taken[name] = {"from": source, **_taken(kept, network, stage.taken_over)}
    _require_like(taken, networks, weights, stage, session)
    for name, of_network in taken.items():
        new = ", ".join(of_network["new"]) or "none"
        told = "is new"
        if of_network["taken"]:
            told = (
                f"starts from {weights.path}, {of_network['from']}: {len(of_network['taken'])} "
                f"weights; new: {new}"
            )
        print(f"{session.folder / stage.name}: {name} {told}")
    run = dataclasses.replace(runs.load(session.folder), writes=session.run.writes)
    facts = run.facts.get(FLAG, {})
    run.note(**{f"{FLAG}_digest": weights.digest}).updated(FLAG, facts | {stage.name: taken})


def _layer(weight: str) -> str:
    """Name of the layer of a weight, without those of the networks that it is in."""
    return weight.split("/")[-2]


def _same_classes(weights: Weights, session: Session) -> bool:
    """Whether the outputs stand for the same structures in the same order; of one structure there
    is one order."""
    (before, theirs), (now, ours) = (
        (regions.FLAG in facts, [name.casefold() for name in facts["labels"].values()])
        for facts in (weights.facts, session.run.facts)
    )
    return before == now and (theirs == ours or len(theirs) == len(ours) == 1)


def _require_like(
    taken: Mapping[str, Mapping[str, Any]],
    networks: Networks,
    weights: Weights,
    stage: Stage,
    session: Session,
) -> None:
    """Raises a `FieldError` where hardly anything is taken: such a training starts anew."""
    shares = []
    for name, network in networks.items():
        sizes = {key: math.prod(w.shape) for key, w in layers.named_weights(network).items()}
        fits, new = (sum(sizes[key] for key in taken[name][kind]) for kind in ("taken", "new"))
        shares += [fits / (fits + new)] if fits + new else []
    if not shares or max(shares) >= LEAST:
        return
    values, kind = session.values, registry.find(session.run.system, FLAG).configuration
    flags = [
        f"`{field.name}` is {weights.flags[field.name]} there, {values[field.name]} here"
        for field in dataclasses.fields(kind)
        if weights.flags.get(field.name, values[field.name]) != values[field.name]
    ]
    told = (
        f"{100 * max(shares):.2g} % of the weights of {stage.name} fit by name and shape; expected "
        "a like network"
    )
    raise FieldError(FLAG, values[FLAG], "; ".join([told, *flags]) + ".")


def _taken(arrays: Arrays, network: keras.Model, left_out: tuple[str, ...]) -> dict[str, Any]:
    """Sets what fits: {"taken", "new": names of the weights that were set, and of the others}."""
    told: dict[str, list[str]] = {"taken": [], "new": []}
    for name, variable in layers.named_weights(network).items():
        if name.split("/")[0] in left_out:
            continue
        fits = name in arrays and arrays[name].shape == tuple(variable.shape)
        told["taken" if fits else "new"].append(name)
        if fits:
            variable.assign(arrays[name])
    return told
