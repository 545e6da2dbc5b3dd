"""An auto-context cascade trained level after level, for any system with the methods of `FetalHead`."""

import pathlib
import shutil
import zipfile

import keras
import numpy as np
import tensorflow as tf

from tf_autoctx import losses, metrics, report
from tf_autoctx.data import datasets, images, pipeline
from tf_autoctx.errors import UserError
from tf_autoctx.files import replacing
from tf_autoctx.training import loop


def cached(cases, system, directory, foreground, labels):
    """Preprocesses cases once: network-grid image and label of each in a folder of its own.

    Args:
      cases: `datasets.Case`s with labels.
      system: has `preprocess` and `preprocess_label`.
      directory: of the cache; what is there already is kept.
      foreground, labels: see `datasets.read_case`.

    Returns:
      [{"image": path, "label": path, "context": ""}], one a case.

    Raises:
      UserError: see `datasets.read_case`; the object is lost at the network's scale.
    """
    files, progress = [], keras.utils.Progbar(len(cases), unit_name="case")
    for case in cases:
        folder = pathlib.Path(directory) / case.name
        entry = {"image": str(folder / "image"), "label": str(folder / "label"), "context": ""}
        if not all(pathlib.Path(entry[kind]).exists() for kind in ("image", "label")):
            image, label = datasets.read_case(case, foreground, labels)
            label = system.preprocess_label(tf.constant(label[None, ..., None]))[0]
            if not tf.reduce_any(label > 0):
                raise UserError(f"{case.label}: the object vanishes at --scale={system.scale}; use a larger scale.")
            pipeline.store(
                entry["image"], system.preprocess(tf.constant(images.array(image)[None, ..., None], tf.float32))[0]
            )
            pipeline.store(entry["label"], label)
        files.append(entry)
        progress.add(1)
    return files


def with_context(files, system, network, directory):
    """The same files with a level's probability as context, computed once by its finished network into `directory`."""
    run = _probability(system, network)
    progress, answers = keras.utils.Progbar(len(files), unit_name="case"), []
    for entry in files:
        path = pathlib.Path(directory) / pathlib.Path(entry["image"]).parent.name
        if not path.exists():
            drawn = pipeline.sample(entry)
            pipeline.store(path, run(drawn["image"][None], drawn["context"][None])[0])
        answers.append({**entry, "context": str(path)})
        progress.add(1)
    return answers


def train(level, system, training, validation, directory, strategy, settings, augmentation, l2):
    """Trains one level, or goes on with it, or finds it finished.

    Args:
      level: 1 is the first.
      system: has `network`, `joined`, `probability`, `training_shape` and `training_view`.
      training, validation: files of the cases, with the last level's context; validation may be empty.
      directory: of the level; gets model.keras (the network alone, float32, best weights) once the level is finished.
      strategy: `tf.distribute` strategy.
      settings: `loop.Settings`.
      augmentation: `augment.Augmentation`.
      l2: lambda of equation 2.

    Returns:
      The finished network in float32.

    Raises:
      UserError: see `loop.fit`; samples that do not stack to a batch; a model.keras that cannot be read.
    """
    finished = pathlib.Path(directory) / "model.keras"
    if finished.exists():
        return load(finished)
    if settings.patience and not validation:
        raise UserError(
            f"--patience={settings.patience}: there is no validation case; expected --validation_fraction above 0."
        )
    sizes = [tuple(pipeline.stored(entry["image"], "image").shape[:3]) for entry in training]
    shapes = {system.training_shape(size) for size in sizes}
    pipeline.require_one_shape(shapes, settings.batch_size)
    # Each level has its own seed, so that it does not matter which levels were trained in the same process.
    seed = settings.seed * 1000 + level
    keras.utils.set_random_seed(seed)
    with strategy.scope():
        network = system.network()
        optimizer = loop.adam(settings, network.trainable_variables)
    if strategy.num_replicas_in_sync > 1 and network.non_trainable_variables:
        raise UserError(
            f"--normalization=batch: {strategy.num_replicas_in_sync} replicas would keep different moving averages; expected "
            "--normalization=instance or one replica."
        )
    loss = losses.DeepSupervisedCrossEntropy()

    def step(batch):
        x = system.joined(batch["image"], batch["context"])

        def sample_losses():
            fit = loss(batch["label"], network(x, training=True))
            return fit + l2 * losses.l2(network) if l2 else fit

        return {"loss": loop.minimize(optimizer, network.trainable_variables, sample_losses)}

    columns = {kind: [entry[kind] for entry in training] for kind in training[0]}

    # Sizes that are known let XLA compile the step on a GPU.
    shape = shapes.pop() if len(shapes) == 1 else [None] * len(next(iter(shapes)))

    def prepared(sample, seed):
        sample = system.training_view(sample, lambda whole, size: pipeline.random_patch(whole, seed, size))
        return {name: tf.ensure_shape(tensor, [*shape, 1]) for name, tensor in augmentation(sample, seed).items()}

    def batches(first_step, context):
        return pipeline.training(
            columns,
            prepared,
            seed=seed,
            first_step=first_step,
            steps=settings.steps,
            batch_size=settings.batch_size,
            replicas=context.num_replicas_in_sync,
            worker=context.input_pipeline_id,
            workers=context.num_input_pipelines,
        )

    run = _probability(system, network)

    def validate():
        scores = []
        for entry in validation:
            drawn = pipeline.sample(entry)
            answer = run(drawn["image"][None], drawn["context"][None])[0] > 0.5
            scores.append(metrics.dice(answer[..., 0].numpy(), drawn["label"][..., 0].numpy()))
        return {"DSC": float(np.mean(scores))}

    stage = loop.Stage(
        networks={"network": network},
        optimizers={"adam": optimizer},
        step=step,
        batches=batches,
        validate=validate if validation else None,
    )
    shutil.rmtree(pathlib.Path(directory) / "probability", ignore_errors=True)  # of an earlier training of this level
    history = loop.fit(stage, directory, strategy, settings)
    report.history(pathlib.Path(directory) / "history.png", history, f"level {level}")

    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")
    answer = system.network()
    keras.config.set_dtype_policy(policy)
    answer.set_weights(network.get_weights())
    with replacing(finished) as path:
        answer.save(path)
    return answer


def load(path):
    """A level's finished network.

    Raises:
      UserError: no file, or a damaged one.
    """
    try:
        return keras.models.load_model(path, compile=False)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path}: not a network that can be read ({type(error).__name__}); delete it and train again, which makes it anew "
            "from the level's checkpoints."
        ) from error


def _probability(system, network):
    """`system.probability` of one network as a graph for any size."""
    volume = tf.TensorSpec((None, None, None, None, 1))
    return tf.function(
        lambda image, context: system.probability(network, image, context), input_signature=[volume, volume]
    )
