"""One stage of any system's training: from its losses and batches to a finished network in a folder of its own."""

import pathlib
import zipfile

import keras
import numpy as np

from tf_autoctx import plots
from tf_autoctx.data import pipeline
from tf_autoctx.errors import UserError
from tf_autoctx.files import replacing
from tf_autoctx.training import devices, loop


def train(directory, build, losses, files, prepare, validation, score, *, seed, strategy, settings):
    """Trains one network, or goes on with it.

    Args:
      directory: of the stage; gets model.keras (float32, best weights) once it is finished.
      build: () -> a new network under the current dtype policy.
      losses: (network, batch) -> (batch,) float32, the loss of each sample in training.
      score: network -> (sample of a validation case -> its DSC).
      files, prepare, validation, seed, strategy, settings: see `train_together`.

    Returns:
      The finished network in float32.

    Raises:
      UserError: see `train_together`.
    """

    def updates(networks):
        network = networks["network"]
        variables = network.trainable_variables
        optimizer = loop.adam(settings, variables)
        step = lambda batch: loop.minimize(
            {"loss": (optimizer, variables, lambda: losses(network, batch))}
        )
        return {"adam": optimizer}, step

    network = train_together(
        directory,
        lambda: {"network": build()},
        updates,
        files,
        prepare,
        validation,
        lambda networks: score(networks["network"]),
        seed=seed,
        strategy=strategy,
        settings=settings,
    )["network"]
    with replacing(pathlib.Path(directory) / "model.keras") as path:
        network.save(path)
    return network


def train_together(
    directory,
    build,
    updates,
    files,
    prepare,
    validation,
    score,
    *,
    seed,
    strategy,
    settings,
    others=0,
    keeps_last=False,
):
    """Trains the networks of a stage, or goes on with them.

    Args:
      directory: of the stage; gets what `loop.fit` writes, and history.png.
      build: () -> {name: new network} under the current dtype policy.
      updates: networks -> ({name: optimizer}, batch -> {name: scalar}), see `loop.Stage`.
      files: {name: path} of each training case, see `pipeline.sample`.
      prepare: (sample, seed of shape (2,)) -> sample: what one pass sees, with random changes.
      validation: {name: path} of each validation case; may be empty.
      score: networks -> (sample of a validation case -> its DSC).
      seed: of the first weights, the order of samples and their changes.
      strategy: `tf.distribute` strategy.
      settings: `loop.Settings`.
      others: see `pipeline.training`.
      keeps_last: see `loop.Stage`.

    Returns:
      {name: finished network in float32, best or last weights}.

    Raises:
      UserError: --patience without a validation case; see `loop.fit`.
    """
    if settings.patience and not validation:
        raise UserError(
            f"--patience={settings.patience}: there is no validation case; expected --validation_fraction above 0."
        )
    columns = {name: [entry[name] for entry in files] for name in files[0]}
    keras.utils.set_random_seed(seed)
    with strategy.scope():
        networks = build()
        optimizers, step = updates(networks)
    dice = score(networks)

    def validate():
        return {"DSC": float(np.mean([dice(pipeline.sample(entry)) for entry in validation]))}

    stage = loop.Stage(
        networks=networks,
        optimizers=optimizers,
        step=step,
        batches=lambda first_step, context: pipeline.training(
            columns,
            prepare,
            seed=seed,
            first_step=first_step,
            steps=settings.steps,
            batch_size=settings.batch_size,
            replicas=context.num_replicas_in_sync,
            worker=context.input_pipeline_id,
            workers=context.num_input_pipelines,
            others=others,
        ),
        validate=validate if validation else None,
        keeps_last=keeps_last,
    )
    directory = pathlib.Path(directory)
    history = loop.fit(stage, directory, strategy, settings)
    plots.history(directory / "history.png", history, directory.name.replace("_", " "))

    with devices.policy("float32"):
        answers = build()
    for name, answer in answers.items():
        answer.set_weights(networks[name].get_weights())
    return answers


def finished(directory):
    """The network of a stage that is finished, else None; a UserError where it cannot be read."""
    path = pathlib.Path(directory) / "model.keras"
    return load(path) if path.exists() else None


def load(path):
    """A stage's finished network.

    Raises:
      UserError: no file, or a damaged one.
    """
    try:
        return keras.models.load_model(path, compile=False)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path}: not a network that can be read ({type(error).__name__}); delete it and train again, which makes it anew "
            "from the stage's checkpoints."
        ) from error
