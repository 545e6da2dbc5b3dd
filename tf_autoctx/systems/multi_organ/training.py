"""How a multi-scale pyramid is trained on subvolumes: in one stage, or level after level
(section 2.2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_autoctx import losses, metrics
from tf_autoctx.data import augment, labels, pipeline, subvolumes
from tf_autoctx.data.configuration import Augmentation
from tf_autoctx.systems.multi_organ.configuration import MultiOrgan
from tf_autoctx.systems.multi_organ.segmentation import Pyramid
from tf_autoctx.systems.shared import stages
from tf_autoctx.systems.shared.caching import Files
from tf_autoctx.systems.shared.session import Session
from tf_autoctx.systems.shared.stage import AdamStage, Networks, Sample, Tensor, digest

# (images of all levels, (3,) size of the original grid) -> classes (depth, height, width) there.
Classes = Callable[[Sequence[Tensor], Tensor], Tensor]


class PyramidStage(AdamStage):
    """Trains the pyramid of the first levels; its name is that of `stage_name`.

    Args:
      count: of levels.
      below: the finished pyramid of the levels before the last, which stay as they are in it; None
        trains all levels.
      pyramid: what the levels are.
      session: whose files are of `places.with_places`.
    """

    def __init__(
        self, count: int, below: keras.Model | None, pyramid: Pyramid, session: Session
    ) -> None:
        self.name = stage_name(pyramid.configuration, count)
        # Each stage has its own seed, so that it does not matter which were trained in the same
        # process.
        self.seed = session.settings.seed * 1000 + count
        self._levels, self._below, self._pyramid = range(1, count + 1), below, pyramid
        if below is not None:
            self.made_on = digest(below.get_weights())
            self.taken_over = tuple(f"level_{level}" for level in self._levels[:-1])
        images = [f"image_{level}" for level in self._levels]
        self.columns = ("label", "places", "spacing", *images)
        self._learning = self._levels[-1:] if below else self._levels
        self._augmentation = session.configured(Augmentation)
        self._loss = _loss(pyramid, session)
        self._ignores = session.ignored is not None

    def build(self) -> Networks:
        network = self._pyramid.network(len(self._levels))
        if self._below is not None:
            for name in self.taken_over:
                unet = network.get_layer(name)
                unet.set_weights(self._below.get_layer(unet.name).get_weights())
                unet.trainable = False
        return {"network": network}

    def losses(self, networks: Networks, batch: Mapping[str, Tensor]) -> Tensor:
        images = {f"image_{level}": batch[f"image_{level}"] for level in self._levels}
        logits = networks["network"](images, training=True)
        return sum(
            self._loss(batch[f"label_{level}"], logits[f"level_{level}"])
            for level in self._learning
        )

    def read(self, case: pipeline.Case, seed: Tensor) -> Sample:
        """Deformed subvolumes of all levels about one voxel (section 2.3).

        They are resampled as they are read: what they are made from is many times as large.
        """
        configuration = self._pyramid.configuration
        return subvolumes.draw(
            case,
            seed,
            scales=configuration.scales[: len(self._levels)],
            unit=configuration.scales[-1],
            size=configuration.edges,
            augmentation=self._augmentation,
        )

    def augment(self, sample: Sample, seed: Tensor) -> Sample:
        """Other intensities, the same in all levels, and a box that is erased in all of them."""
        scales = self._pyramid.configuration.scales[: len(self._levels)]
        edges = {f"image_{n}": scale / scales[-1] for n, scale in enumerate(scales, start=1)}
        seen = {**sample, "label": sample[f"label_{len(scales)}"]}
        seen = augment.shown(seen, augment.own_seeds(seed), self._augmentation, edges)
        return {name: seen[name] for name in sample}

    def graph(self, networks: Networks) -> Classes:
        pyramid = self._pyramid
        unets = pyramid.unets(networks["network"])
        image = tf.TensorSpec((1, None, None, None, pyramid.channels))

        @tf.function(
            input_signature=[[image] * len(self._levels), tf.TensorSpec([3], tf.int32)],
            autograph=False,
        )
        def classes(images: Sequence[Tensor], size: Tensor) -> Tensor:
            last = pyramid.probabilities(unets, images)[-1]
            return pyramid.classes(pyramid.label(last, tf.unstack(size)))[0, ..., 0]

        return classes

    def score(self, graph: Classes, sample: Sample) -> float:
        """Mean DSC of the last level on the original grid, over the structures or regions of the
        case."""
        truth = sample["label"][..., 0].numpy()
        images = [sample[f"image_{level}"][None] for level in self._levels]
        prediction = graph(images, truth.shape).numpy()
        if self._ignores:
            prediction, truth = labels.left_out(prediction, truth)
        return metrics.mean_dice(prediction, truth, self._pyramid.class_regions)


def train(pyramid: Pyramid, session: Session) -> Networks:
    """Trains all levels at once or one after the other, as the mode says, or goes on with them.

    Args:
      pyramid: what the levels are.
      session: whose files are of `places.with_places`.

    Returns:
      {name of the last stage: finished pyramid of all levels, float32}.
    """
    configuration, network = pyramid.configuration, None
    last = len(configuration.scales)
    counts = range(1, last + 1) if configuration.mode == "separate" else [last]
    # Every level below runs, too.
    session = session.with_costs({stage_name(configuration, n): float(n) for n in counts})
    for count in counts:
        network = stages.train_network(PyramidStage(count, network, pyramid, session), session)
    return {stage_name(configuration, last): network}


def _loss(pyramid: Pyramid, session: Session) -> keras.losses.Loss:
    """Of one level: by default the Dice loss of equation 1, whose sums know no samples, or that of
    regions."""
    settings, epsilon = session.settings, pyramid.configuration.dice_epsilon
    dice: Any = {"epsilon": epsilon, "ignored": session.ignored, "batch_dice": True}
    if pyramid.regions:
        regions = tuple(pyramid.class_regions.values())
        return losses.RegionLoss(regions, settings.terms(losses.TERMS), **dice)
    return losses.ClassLoss(settings.terms(("dice",)), **dice)


def stage_name(configuration: MultiOrgan, count: int | None = None) -> str:
    """Name of the folder of the stage that ends with the first `count` levels (None: all)."""
    if configuration.mode == "end_to_end":
        return "pyramid"
    return f"level_{configuration.first_level - 1 + (count or len(configuration.scales))}"


def present(files: Files, pyramid: Pyramid) -> list[int]:
    """Label values of the structures that a case of `places.with_places` has."""
    places = np.stack([pipeline.stored(entry["places"], "places")[:, 0, 0] for entry in files])
    is_present = ~np.isnan(places).all(axis=0)
    return [value for value, there in zip(pyramid.values[1:], is_present) if there]
