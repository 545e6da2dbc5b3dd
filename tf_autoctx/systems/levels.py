"""An auto-context cascade trained level after level, for any system with the methods of `FetalHead`."""

import pathlib
import shutil

import keras
import tensorflow as tf

from tf_autoctx import losses, metrics
from tf_autoctx.data import pipeline
from tf_autoctx.errors import UserError
from tf_autoctx.systems import caching, stages
from tf_autoctx.systems.fetal_head import STRUCTURE


def cached(cases, system, directory, read):
    """Image and label of every case on the network's grid, prepared once.

    Args:
      cases, directory, read: see `caching.cached`.
      system: has `preprocess` and `preprocess_label`.

    Returns:
      [{"image": path, "label": path, "context": ""}], one a case.

    Raises:
      UserError: the object is lost at the network's scale.
    """

    def prepare(case, voxels, label):
        label = system.preprocess_label(tf.constant(label))
        if not tf.reduce_any(label > 0):
            raise UserError(
                f"{case.label}: the object vanishes at --scale={system.scale}; use a larger scale."
            )
        return {"image": system.preprocess(tf.constant(voxels))[0], "label": label[0]}

    files = caching.cached(cases, directory, read, prepare)
    return [{"image": entry["image"], "label": entry["label"], "context": ""} for entry in files]


def with_context(files, system, network, directory):
    """Image and label of `files` with a level's probability as context, computed once by its network into `directory`."""
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
      directory, strategy, settings: see `stages.train`.
      augmentation: `augment.Augmentation`.
      l2: lambda of equation 2.

    Returns:
      The finished network in float32.

    Raises:
      UserError: see `stages.train`; samples that do not stack to a batch; a model.keras that cannot be read.
    """
    if network := stages.finished(directory):
        return network
    directory = pathlib.Path(directory)
    shutil.rmtree(
        directory / "probability", ignore_errors=True
    )  # of an earlier training of this level
    sizes = [tuple(pipeline.stored(entry["image"], "image").shape[:3]) for entry in training]
    shapes = {system.training_shape(size) for size in sizes}
    pipeline.require_one_shape(shapes, settings.batch_size)
    # Each level has its own seed, so that it does not matter which levels were trained in the same process.
    seed = settings.seed * 1000 + level
    loss = losses.DeepSupervisedCrossEntropy()

    def sample_losses(network, batch):
        x = system.joined(batch["image"], batch["context"])
        fit = loss(batch["label"], network(x, training=True))
        return fit + l2 * losses.l2(network) if l2 else fit

    # Sizes that are known let XLA compile the step on a GPU.
    shape = shapes.pop() if len(shapes) == 1 else [None] * len(next(iter(shapes)))

    def prepared(sample, seed):
        sample = system.training_view(
            sample, lambda whole, size: pipeline.random_patch(whole, seed, size)
        )
        return {
            name: tf.ensure_shape(tensor, [*shape, 1])
            for name, tensor in augmentation(sample, seed).items()
        }

    def score(network):
        run = _probability(system, network)

        def dice(sample):
            answer = run(sample["image"][None], sample["context"][None])[0] > 0.5
            return metrics.dice(answer[..., 0].numpy(), sample["label"][..., 0].numpy())

        return dice

    return stages.train(
        directory,
        system.network,
        sample_losses,
        training,
        prepared,
        validation,
        score,
        seed=seed,
        strategy=strategy,
        settings=settings,
    )


def every_level(system, networks):
    """A `segment` of `evaluation.evaluate`: what the network of each level, level 1 first, answers on the original
    grid."""

    @tf.function(input_signature=[tf.TensorSpec((None, None, None))])
    def segment(voxels):
        answers = system.cascade(networks, voxels[None, ..., None])
        return {
            f"level {level}": {
                "label": answer["label"][0, ..., 0],
                "probability": {STRUCTURE: answer["probability"][0, ..., 0]},
            }
            for level, answer in enumerate(answers, start=1)
        }

    return segment


def _probability(system, network):
    """`system.probability` of one network as a graph for any size."""
    volume = tf.TensorSpec((None, None, None, None, 1))
    return tf.function(
        lambda image, context: system.probability(network, image, context),
        input_signature=[volume, volume],
    )
