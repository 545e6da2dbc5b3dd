"""How a multi-scale pyramid is trained on subvolumes: in one stage, or level after level."""

import zlib

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from tf_autoctx import losses, metrics
from tf_autoctx.data import datasets, images, pipeline, subvolumes
from tf_autoctx.systems import caching, stages


def prepared(system, seed):
    """A `prepare` of `caching.cached`: every level's image, the label's classes, and where subvolumes may be
    centred."""

    def prepare(case, voxels, label):
        rng = np.random.default_rng([seed, zlib.crc32(case.name.encode())])
        return {
            "label": system.classes(label)[0],
            "places": subvolumes.places(label[0, ..., 0], system.values[1:], rng),
            **{
                f"image_{level}": system.preprocess(voxels, s)[0]
                for level, s in enumerate(system.scales, start=1)
            },
        }

    return prepare


def read_ct(case, foreground, labels):
    """`datasets.read_case` with each label value an object of its own, and `warn_unless_hu`."""
    image, label = datasets.read_case(case, foreground, labels, merge=False)
    warn_unless_hu(case.image, images.array(image))
    return image, label


def warn_unless_hu(path, voxels):
    """Warns of a CT whose range of intensities cannot be in Hounsfield units: air and fat are below 0, bone above
    100."""
    low, high = voxels.min(), voxels.max()
    if low > -50 or high < 100:
        logging.warning(
            "%s: intensities from %g to %g do not look like a CT in HU, such as -1000 to 1500.",
            path,
            low,
            high,
        )


def warn_of_missing(system, training):
    """Warns of structures that no training case has."""
    places = np.stack([pipeline.stored(entry["places"], "places")[:, 0, 0] for entry in training])
    present = ~np.isnan(places).all(axis=0)
    caching.warn_of_missing(
        system.labels, [value for value, there in zip(system.values[1:], present) if there]
    )


def stage(system, count):
    """Name of the folder of the stage that ends with the first `count` levels."""
    left_out = len(system.downsampling) - len(system.scales)
    return "pyramid" if system.mode == "end_to_end" else f"level_{left_out + count}"


def train(system, training, validation, run, strategy, settings, deformation):
    """Trains the whole system as its mode says, or goes on with it, or finds it finished.

    Args:
      system: `multi_organ.MultiOrgan`.
      training, validation: files of `caching.cached`; validation may be empty.
      run: folder of the run, see `stage`.
      strategy, settings: see `stages.train`.
      deformation: `augment.Deformation`.

    Returns:
      The finished pyramid in float32.

    Raises:
      UserError: see `stages.train`; a model.keras that cannot be read.
    """
    network, last = None, len(system.scales)
    for count in range(1, last + 1) if system.mode == "separate" else [last]:
        network = stages.finished(run / stage(system, count)) or _stage(
            count, network, system, training, validation, run, strategy, settings, deformation
        )
    return network


def _stage(count, below, system, training, validation, run, strategy, settings, deformation):
    """Trains the pyramid of the first `count` levels; where there is a finished one `below`, its last level alone."""
    levels = range(1, count + 1)
    learning = levels[-1:] if below else levels
    names = ["label", "places", "spacing", *(f"image_{level}" for level in levels)]
    loss = losses.DiceLoss()

    def build():
        network = system.network(count)
        for level in levels[:-1] if below else []:
            unet = network.get_layer(f"level_{level}")
            unet.set_weights(below.get_layer(unet.name).get_weights())
            unet.trainable = False
        return network

    def sample_losses(network, batch):
        answers = network(
            {f"image_{level}": batch[f"image_{level}"] for level in levels}, training=True
        )
        return sum(loss(batch[f"label_{level}"], answers[f"level_{level}"]) for level in learning)

    def prepare(sample, seed):
        return subvolumes.draw(
            sample,
            seed,
            scales=system.scales[:count],
            unit=system.scales[-1],
            size=system.patch_size,
            deformation=deformation,
        )

    def score(network):
        unets = graphs(system, network)

        def dice_of(sample):
            answer = system.probabilities(
                unets, [sample[f"image_{level}"][None] for level in levels]
            )[-1]
            truth = sample["label"][..., 0].numpy()
            label = system.classes(system.label(answer, truth.shape))[0, ..., 0].numpy()
            return metrics.mean_dice(label, truth)

        return dice_of

    return stages.train(
        run / stage(system, count),
        build,
        sample_losses,
        [{name: path for name, path in entry.items() if name in names} for entry in training],
        prepare,
        validation,
        score,
        seed=settings.seed * 1000 + count,
        strategy=strategy,
        settings=settings,
    )


def graphs(system, network):
    """`system.unets`, each as a graph, which gives memory back as soon as it can; the tiles around it stay outside."""
    return [tf.function(unet, reduce_retracing=True) for unet in system.unets(network)]


def progress(system, size):
    """A progress bar over the tiles of a volume of spatial `size`, to be called after each; None for a tile a level."""
    tiles = system.tiles(size)
    if tiles > len(system.scales):
        bar = keras.utils.Progbar(tiles, unit_name="tile")
        return lambda: bar.add(1)
    return None


def every_level(system, network):
    """A `segment` of `evaluation.evaluate`: what each level answers; probabilities stay on the level's grid."""
    unets = graphs(system, network)
    first = len(system.downsampling) - len(system.scales) + 1

    def segment(voxels):
        answers = system.cascade(unets, tf.constant(voxels[None, ..., None]))
        return {
            f"level {level}": {
                "label": system.label(answer, voxels.shape)[0, ..., 0].numpy(),
                "probability": {
                    system.labels[value]: answer[0, ..., k]
                    for k, value in enumerate(system.values)
                    if value
                },
            }
            for level, answer in enumerate(answers, start=first)
        }

    return segment
