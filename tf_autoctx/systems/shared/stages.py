"""From a stage to its finished networks in a folder of their own."""

from __future__ import annotations

import json
import pathlib
import zipfile
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_autoctx.data import pipeline
from tf_autoctx.errors import FieldError, UserError
from tf_autoctx.files import replacing
from tf_autoctx.models.rematerialization import rematerialize
from tf_autoctx.report import figures
from tf_autoctx.systems.shared import cleaning, initial, precision
from tf_autoctx.systems.shared.caching import Files
from tf_autoctx.systems.shared.session import Session
from tf_autoctx.systems.shared.stage import Networks, Stage, digest
from tf_autoctx.training import checkpoints, devices, loop

NETWORK = "model.keras"
RECORD = "tf_autoctx.json"  # in the archive of a network, beside what Keras has there


def train(stage: Stage, session: Session) -> Networks:
    """Trains the networks of a stage, or goes on with them.

    The stage's folder gets what `loop.fit` writes, and history.png.

    Returns:
      The finished networks in float32, best or last weights.

    Raises:
      FieldError: patience without a validation case.
      UserError: see `loop.fit`.
    """
    settings = session.settings
    if settings.patience and not session.validation:
        raise FieldError(
            "patience",
            settings.patience,
            "there is no validation case; expected `validation_fraction` above 0.",
        )
    stage.begin(session)
    task = _StageTask(stage, session)
    folder = session.folder / stage.name
    try:
        history = loop.fit(task, folder, session.strategy, settings, stage.made_on)
    except tf.errors.OpError as error:
        raise pipeline.fault(error) or error from None
    figures.history(folder / "history.png", history, folder.name.replace("_", " "))

    with devices.policy("float32"):
        finished = stage.build()
    for name, network in finished.items():
        network.set_weights(task.networks[name].get_weights())
    return finished


def train_network(stage: Stage, session: Session) -> keras.Model:
    """The network of a stage that trains one: finished before, or trained and kept in model.keras.

    Raises:
      UserError: see `train`; a model.keras that cannot be read.
    """
    path = session.folder / stage.name / NETWORK
    if is_finished(stage, session, [path]):
        return load(path)
    (network,) = train(stage, session).values()
    save(path, network, stage, session)
    return network


def is_finished(stage: Stage, session: Session, files: Iterable[pathlib.Path]) -> bool:
    """Whether the networks of a stage are there, trained for all steps, and on what the stage
    starts from now.

    Networks that were taken over from another run, or are of an earlier release, are finished.

    Args:
      stage: whose networks they are.
      session: of the run.
      files: of its networks.
    """
    if not all(path.exists() for path in files):
        return False
    trained_here = (session.folder / stage.name / "last").exists()
    if session.run.facts.get("initial_from") and stage.made_on is None and not trained_here:
        return True
    return all(_is_of(_recorded(path), stage, session) for path in files)


def _is_of(record: dict[str, Any], stage: Stage, session: Session) -> bool:
    """Whether a network of a record is one that the stage would come to now."""
    if record.get("steps", session.settings.steps) < session.settings.steps:
        return False
    before = record.get("made_on")
    return None in (before, stage.made_on) or before == stage.made_on


def save(path: pathlib.Path, network: keras.Model, stage: Stage, session: Session) -> None:
    """Writes a finished network of a stage, with a record of how it was made."""
    record = _record(stage, session) | {"digest": digest(network.get_weights())}
    precision.forget(session.folder)
    cleaning.forget(session.folder)
    with replacing(path) as partial:
        network.save(partial)
        with zipfile.ZipFile(partial, "a") as archive:
            archive.writestr(RECORD, json.dumps(record))


def _record(stage: Stage, session: Session) -> dict[str, Any]:
    return {"steps": session.settings.steps, "made_on": stage.made_on}


def _recorded(path: pathlib.Path) -> dict[str, Any]:
    """The record in the file of a finished network; empty where there is none."""
    if not path.exists():
        return {}
    try:
        with zipfile.ZipFile(path) as archive:
            return dict(json.loads(archive.read(RECORD))) if RECORD in archive.namelist() else {}
    except Exception as error:
        raise _unreadable(path, type(error).__name__) from error


def recorded_digest(path: pathlib.Path) -> str | None:
    """`digest` of the weights in the file of a finished network; None in an earlier release's.

    Raises:
      UserError: it cannot be read.
    """
    return _recorded(path).get("digest")


def is_made_on(path: pathlib.Path, below: pathlib.Path) -> bool:
    """Whether the finished network of a stage was trained on that of a stage before, which is not
    known of an earlier release's.

    Raises:
      UserError: one of them cannot be read.
    """
    before, now = _recorded(path).get("made_on"), recorded_digest(below)
    return None in (before, now) or before == now


class _StageTask:
    """A stage as the loop trains it: a `loop.Task`."""

    def __init__(self, stage: Stage, session: Session) -> None:
        self._stage, self._session = stage, session
        folder = session.folder / stage.name
        keras.utils.set_random_seed(stage.seed)
        with session.strategy.scope():
            self.networks = stage.build()
            if session.values.get(initial.FLAG) and not checkpoints.goes_on(folder, stage.made_on):
                initial.start(stage, self.networks, session)
            if session.values.get("rematerialize"):
                for network in self.networks.values():
                    rematerialize(network)
            self.optimizers, self._step = stage.updates(self.networks, session.settings)
        self._graph = stage.graph(self.networks)
        self._augments = devices.augments()
        self.keeps_last = stage.keeps_last
        self.validates = bool(session.validation) and self._graph is not None
        self.later = session.later(stage.name)

    def augmented(self, batch: loop.Batch) -> loop.Batch:
        return pipeline.augmented(batch, self._stage.augment) if self._augments else batch

    def step(self, batch: loop.Batch) -> dict[str, tf.Tensor]:
        return self._step(batch)

    def batches(self, first_step: int, context: tf.distribute.InputContext) -> tf.data.Dataset:
        stage, session = self._stage, self._session
        order = pipeline.Order(
            seed=stage.seed,
            first_step=first_step,
            steps=session.settings.steps,
            batch_size=session.settings.batch_size,
            replicas=context.num_replicas_in_sync,
            worker=context.input_pipeline_id,
            workers=context.num_input_pipelines,
            others=stage.others,
        )
        files = {name: [entry[name] for entry in session.training] for name in stage.columns}
        augment = None if self._augments else stage.augment
        return pipeline.training(files, stage.read, order, augment, session.channels)

    def validate(self) -> loop.Logs:
        assert self._graph is not None
        channels = self._session.channels
        samples = (
            pipeline.sample({name: entry[name] for name in self._stage.columns}, channels)
            for entry in self._session.validation
        )
        scores = [self._stage.score(self._graph, sample) for sample in samples]
        return {"DSC": float(np.mean(scores))}


def finished(folder: pathlib.Path) -> keras.Model | None:
    """The network of a stage that is finished, else None.

    Raises:
      UserError: it cannot be read.
    """
    path = folder / NETWORK
    return load(path) if path.exists() else None


def load(path: pathlib.Path) -> keras.Model:
    """A stage's finished network.

    Raises:
      UserError: the stage is not finished, or its file is damaged.
    """
    if not path.exists():
        raise UserError(
            f"{path}: this stage is not finished; run the training command with the same flags to "
            "go on."
        )
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip():
                raise zipfile.BadZipFile
        network = keras.models.load_model(path, compile=False)
    except Exception as error:  # Keras' reader raises whatever comes next
        raise _unreadable(path, type(error).__name__) from error
    if not all(np.isfinite(array).all() for array in network.get_weights()):
        raise _unreadable(path, "weights that are not finite")
    return network


def _unreadable(path: pathlib.Path, reason: str) -> UserError:
    return UserError(
        f"{path}: not a network that can be read ({reason}); delete it and train again, which "
        "makes it anew from the stage's checkpoints."
    )


def sizes(files: Files, name: str) -> list[tuple[int, ...]]:
    """Spatial size of a cached tensor of every case."""
    return [pipeline.size(entry[name], name) for entry in files]
