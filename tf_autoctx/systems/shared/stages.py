"""From a stage to its finished networks in a folder of their own."""

from __future__ import annotations

import pathlib
import zipfile

import keras
import numpy as np
import tensorflow as tf

from tf_autoctx.data import pipeline
from tf_autoctx.errors import FieldError, UserError
from tf_autoctx.files import replacing
from tf_autoctx.report import figures
from tf_autoctx.systems.shared.caching import Files
from tf_autoctx.systems.shared.session import Session
from tf_autoctx.systems.shared.stage import Networks, Stage
from tf_autoctx.training import devices, loop


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
    task = _StageTask(stage, session)
    folder = session.folder / stage.name
    history = loop.fit(task, folder, session.strategy, settings)
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
    path = session.folder / stage.name / "model.keras"
    if path.exists():
        return load(path)
    (network,) = train(stage, session).values()
    with replacing(path) as partial:
        network.save(partial)
    return network


class _StageTask:
    """A stage as the loop trains it: a `loop.Task`."""

    def __init__(self, stage: Stage, session: Session) -> None:
        self._stage, self._session = stage, session
        self.keeps_last, self.validates = stage.keeps_last, bool(session.validation)
        keras.utils.set_random_seed(stage.seed)
        with session.strategy.scope():
            self.networks = stage.build()
            self.optimizers, self._step = stage.updates(self.networks, session.settings)
        self._graph = stage.graph(self.networks)

    def step(self, batch: loop.Batch) -> dict[str, tf.Tensor]:
        return self._step(batch)

    def batches(self, first_step: int, context: tf.distribute.InputContext) -> tf.data.Dataset:
        stage, session = self._stage, self._session
        return pipeline.training(
            {name: [entry[name] for entry in session.training] for name in stage.columns},
            stage.augment,
            seed=stage.seed,
            first_step=first_step,
            steps=session.settings.steps,
            batch_size=session.settings.batch_size,
            replicas=context.num_replicas_in_sync,
            worker=context.input_pipeline_id,
            workers=context.num_input_pipelines,
            others=stage.others,
        )

    def validate(self) -> loop.Logs:
        samples = (
            pipeline.sample({name: entry[name] for name in self._stage.columns})
            for entry in self._session.validation
        )
        scores = [self._stage.score(self._graph, sample) for sample in samples]
        return {"DSC": float(np.mean(scores))}


def finished(folder: pathlib.Path) -> keras.Model | None:
    """The network of a stage that is finished, else None.

    Raises:
      UserError: it cannot be read.
    """
    path = folder / "model.keras"
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
        return keras.models.load_model(path, compile=False)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path}: not a network that can be read ({type(error).__name__}); delete it and train "
            "again, which makes it anew from the stage's checkpoints."
        ) from error


def sizes(files: Files, name: str) -> list[tuple[int, ...]]:
    """Spatial size of a cached tensor of every case."""
    return [tuple(pipeline.stored(entry[name], name).shape[:-1]) for entry in files]
