"""How the sliding-window peer is trained: its localiser, the ventricle's VNet and the body's, one
after the other, on the cases of the embryo run beside it."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from typing import ClassVar

import tensorflow as tf
from absl import logging
from keras import ops

from tf_autoctx import losses, metrics
from tf_autoctx.data import augment, labels, pipeline
from tf_autoctx.data.configuration import Augmentation
from tf_autoctx.errors import UserError
from tf_autoctx.systems.embryo.configuration import SlidingWindows
from tf_autoctx.systems.embryo.sliding_windows import (
    CLASSES,
    cut,
    extent,
    holding,
    inside,
    new_localiser,
    new_vnet,
    padded,
    probability,
)
from tf_autoctx.systems.shared import stages
from tf_autoctx.systems.shared.caching import Files, case_of
from tf_autoctx.systems.shared.session import Session
from tf_autoctx.systems.shared.stage import AdamStage, Networks, Sample, Tensor
from tf_autoctx.training.runs import Run

# image, label -> probability and label of what is validated of them
Graph = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class PeerStage(AdamStage):
    """One network of the peer, which sees windows of a volume that moves as a whole.

    Args:
      peer: what its networks are.
      session: of its run.

    Attributes:
      number: of the stage, for its seed.
      windows: that one pass sees of a volume.
      held: how many of them hold the whole ventricle, if any can; the others lie anywhere.
    """

    columns = ("image", "label", "spacing")
    number: ClassVar[int]
    windows: ClassVar[int] = 1
    held: ClassVar[int] = 0

    def __init__(self, peer: SlidingWindows, session: Session) -> None:
        self._peer, self._augmentation = peer, session.configured(Augmentation)
        self._ignored = session.ignored
        self._loss = losses.ProbabilityLoss(session.settings.terms(("dice",)))
        self.seed = session.settings.seed * 1000 + 100 + self.number  # none of the cascade's

    @classmethod
    def own_session(cls, session: Session) -> Session:
        """The session with the settings of this stage."""
        return session

    def augment(self, sample: Sample, seed: Tensor) -> Sample:
        window = self._peer.window
        seeds = tf.unstack(tf.random.experimental.stateless_split(seed, 2))
        changed = augment.augmented(sample, seeds[0], self._augmentation)
        image, label = (padded(changed[name], window) for name in ("image", "label"))
        ventricle = label[..., 0] == CLASSES["ventricle"]
        low, high = holding(ventricle, window)
        hold = tf.range(self.windows)[:, None] < self.held
        low = tf.where(hold, low, 0)
        high = tf.where(hold, high, tf.shape(ventricle) - window)
        drawn = low + tf.random.stateless_uniform(
            [self.windows, 3], seeds[1], 0, tf.int32.max, tf.int32
        ) % (high - low + 1)
        return self.seen(image, label, drawn)

    @abc.abstractmethod
    def seen(self, image: Tensor, label: Tensor, corners: Tensor) -> Sample:
        """What one pass sees of a volume.

        Args:
          image, label: (depth, height, width, 1), no axis below the window.
          corners: (windows, 3) int32.
        """


class LocaliserStage(PeerStage):
    """The localiser; half of its windows hold the whole ventricle, if any can.

    It is not validated: its share of right decisions would be 1 long before it is sure.
    """

    name = "localiser"
    number = 0
    windows = 8
    held = 4

    @classmethod
    def own_session(cls, session: Session) -> Session:
        return session.with_settings(patience=0)

    def build(self) -> Networks:
        return {"network": new_localiser(self._peer)}

    def seen(self, image: Tensor, label: Tensor, corners: Tensor) -> Sample:
        """{"windows": (windows, window, window, window, 1), "target": (windows,) float32, 1 where
        the window holds the whole ventricle}."""
        window = self._peer.window
        windows = tf.stack([cut(image, corner, window) for corner in tf.unstack(corners)])
        ventricle = label[..., 0] == CLASSES["ventricle"]
        target = tf.cast(inside(ventricle, window, corners), tf.float32)
        return {"windows": windows, "target": target}

    def losses(self, networks: Networks, batch: Mapping[str, Tensor]) -> Tensor:
        """Binary cross entropy, the mean over the windows of a volume."""
        windows, target = batch["windows"], batch["target"]
        stacked = ops.reshape(windows, (-1, *windows.shape[2:]))
        logits = ops.reshape(networks["network"](stacked, training=True), ops.shape(target))
        return ops.mean(ops.softplus(logits) - target * logits, axis=-1)


class VNetStage(PeerStage):
    """A small VNet, which segments the structure of its name in one window."""

    def build(self) -> Networks:
        return {"network": new_vnet(self._peer, self.name)}

    def seen(self, image: Tensor, label: Tensor, corners: Tensor) -> Sample:
        """{"image", "label": (window, window, window, 1)}."""
        window = self._peer.window
        return {"image": cut(image, corners[0], window), "label": cut(label, corners[0], window)}

    def losses(self, networks: Networks, batch: Mapping[str, Tensor]) -> Tensor:
        """By default the Dice loss."""
        output = ops.sigmoid(networks["network"](batch["image"], training=True))
        output = losses.counted(output, batch["label"], self._ignored)
        return self._loss(batch["label"] == CLASSES[self.name], output)

    def graph(self, networks: Networks) -> Graph:
        segmented = self.segmented(networks)

        spec = [pipeline.KINDS[name] for name in ("image", "label")]

        @tf.function(input_signature=spec, autograph=False)
        def validated(image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
            image, label = self.validated(*(padded(x, self._peer.window) for x in (image, label)))
            return segmented(image), label

        return validated

    def score(self, graph: Graph, sample: Sample) -> float:
        probability, label = (x.numpy() for x in graph(sample["image"], sample["label"]))
        output, label = labels.left_out(probability > 0.5, label)
        return metrics.dice(output[..., 0], label[..., 0] == CLASSES[self.name])

    @abc.abstractmethod
    def segmented(self, networks: Networks) -> Callable[[Tensor], Tensor]:
        """How an image is segmented, see `sliding_windows.probability`."""

    def validated(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """What is validated of a volume (depth, height, width, 1): all of it."""
        return image, label


class VentricleStage(VNetStage):
    """The ventricle's VNet, in windows that hold the whole ventricle, if any can."""

    name = "ventricle"
    number = 1
    held = 1

    def segmented(self, networks: Networks) -> Callable[[Tensor], Tensor]:
        return probability(networks["network"])

    def validated(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """The window in whose middle the ventricle is."""
        window = self._peer.window
        corner = tf.add(*holding(label[..., 0] == CLASSES[self.name], window)) // 2
        return cut(image, corner, window), cut(label, corner, window)


class BodyStage(VNetStage):
    """The body's VNet, in windows anywhere."""

    name = "body"
    number = 2

    def segmented(self, networks: Networks) -> Callable[[Tensor], Tensor]:
        return probability(networks["network"], self._peer.window)


KINDS: tuple[type[PeerStage], ...] = (LocaliserStage, VentricleStage, BodyStage)


def train(peer: SlidingWindows, session: Session) -> Networks:
    """Trains the peer's networks one after the other, or goes on with them.

    Returns:
      {"localiser", "ventricle", "body": finished network in float32}.

    Raises:
      UserError: see `stages.train`.
    """
    networks: Networks = {}
    session = session.with_costs({kind.name: 1.0 for kind in KINDS})
    for kind in KINDS:
        of_stage = kind.own_session(session)
        networks[kind.name] = stages.train_network(kind(peer, of_stage), of_stage)
    return networks


def finished(run: Run) -> Networks:
    """{"localiser", "ventricle", "body": network} of a peer's run.

    Raises:
      UserError: a network is not finished or cannot be read.
    """
    networks: Networks = {}
    for kind in KINDS:
        network = stages.finished(run.folder / kind.name)
        if network is None:
            raise UserError(
                f"{run.folder}/{kind.name}/model.keras: not finished; run autoctx-sliding-windows "
                "again to go on."
            )
        networks[kind.name] = network
    return networks


def warn_of_large(window: int, training: Files) -> None:
    """Warns of every training case whose ventricle is larger than the window."""
    for entry in training:
        label = pipeline.stored(entry["label"], "label")[..., 0]
        first, last = extent(label == CLASSES["ventricle"])
        edges = (last - first + 1).numpy().tolist()
        if max(edges) > window:
            case = case_of(entry)
            logging.warning(
                "%s: the ventricle is %s voxels; no window of %d holds it.", case, edges, window
            )
