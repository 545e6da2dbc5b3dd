"""The four systems as benchmarks run them: networks, made-up images, what is segmented and learnt.

Plain Keras, so that a task runs on TensorFlow, on JAX and, for its layers' sake, on PyTorch.
Weights are random and follow from their names alone: the same on every backend.
"""

from __future__ import annotations

import abc
import dataclasses
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from tf_autoctx.systems.embryo.configuration import Embryo
from tf_autoctx.systems.fetal_head.configuration import FetalHead
from tf_autoctx.systems.multi_organ.configuration import MultiOrgan
from tf_autoctx.systems.renderer.configuration import DISCRIMINATORS, Objective, Renderer

Tensor = Any  # of whichever backend
Networks = dict[str, Any]  # {name: keras.Model}
Batch = dict[str, Any]
LEARNING_RATE = 1e-4
ORGANS = dict(enumerate("abcdefg", start=1))  # seven structures, eight classes


def randomize(networks: Networks) -> Networks:
    """The networks with weights like those of trained ones: kernels of He's spread, scales, slopes
    and averages that differ by channel."""
    for name, network in networks.items():
        for number, weight in enumerate(network.weights):
            rng = np.random.default_rng([zlib.crc32(name.encode()), number])
            weight.assign(_drawn(rng, weight.path.rpartition("/")[2], tuple(weight.shape)))
    return networks


def _drawn(rng: np.random.Generator, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    if kind == "kernel":
        values = rng.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape)
    elif kind in ("gamma", "alpha", "moving_variance"):
        values = rng.uniform(0.5, 1.5, shape)
    else:
        values = rng.normal(0, 0.1, shape)
    return values.astype(np.float32)


def parameters(networks: Networks) -> int:
    """How many the networks learn."""
    weights = (w for network in networks.values() for w in network.trainable_weights)
    return int(sum(np.prod(weight.shape) for weight in weights))


@dataclasses.dataclass(frozen=True)
class Term:
    """A loss, and the networks that it updates.

    Attributes:
      networks: names of those whose trainable variables its optimizer has.
      loss: (networks, batch) -> (batch,) float32.
    """

    networks: tuple[str, ...]
    loss: Callable[[Networks, Batch], Tensor]


class Task(abc.ABC):
    """A system at the size of its paper, or a tiny one of the same structure.

    Attributes:
      name: of the system.
      unit: what a pass of `infer` or `update` is called.
      configuration: of the system.
      size: spatial size of the raw images of `infer`.
    """

    name: ClassVar[str]
    unit: ClassVar[str] = "volume"
    configuration: Any
    size: tuple[int, ...]

    @abc.abstractmethod
    def networks(self) -> Networks:
        """New networks with random weights, under the current dtype policy."""

    @abc.abstractmethod
    def infer(self, networks: Networks, image: Tensor) -> dict[str, Tensor]:
        """{"label", "probability"} of raw images (batch, *spatial, 1)."""

    @property
    @abc.abstractmethod
    def passes(self) -> list[list[Term]]:
        """A training step: in every pass all terms have their gradients at the same weights."""

    @abc.abstractmethod
    def batch(self) -> Batch:
        """What a training step sees, made up."""

    def image(self) -> np.ndarray:
        """Raw images (1, *spatial, 1) float32: smooth, so that a network's answer is no noise."""
        return smooth(self.size)[None, ..., None] * 255

    def trained(self, networks: Networks) -> Networks:
        """Those of the networks that a training step runs."""
        return networks


def smooth(size: Sequence[int]) -> np.ndarray:
    """Waves from 0 to 1 with a little noise, float32."""
    total = np.random.default_rng(0).uniform(0, 0.1, size)
    for axis, n in enumerate(size):
        wave = np.sin(np.linspace(0, 3 + axis, n)) ** 2
        total = total + wave.reshape([-1 if i == axis else 1 for i in range(len(size))])
    return (total / total.max()).astype(np.float32)


def blobs(size: Sequence[int], classes: int) -> np.ndarray:
    """Label (*size) uint8 of so many classes, each at a height of the waves of `smooth`."""
    edges = np.linspace(0, 1, classes + 1)[1:-1]
    return np.digitize(smooth(size), edges).astype(np.uint8)


class FetalHeadTask(Task):
    """Levels of USegNet-DS-HAS, and the training of one on a whole volume.

    Args:
      tiny: see `Task`.
      levels: that a volume goes through.
      on_grid: spatial size of a volume on the networks' own grid; None: a raw one of the paper's.
    """

    name = "fetal_head"

    def __init__(
        self, tiny: bool = False, levels: int = 2, on_grid: tuple[int, ...] | None = None
    ) -> None:
        scale, filters = 1.0 if on_grid else 0.4, 2 if tiny else 32
        self.configuration = FetalHead(level=levels, base_filters=filters, scale=scale)
        self.size = (40, 30, 45) if tiny else on_grid or (388, 258, 440)

    def _cascade(self) -> Any:
        from tf_autoctx.systems.fetal_head.segmentation import Cascade

        return Cascade(self.configuration)

    def networks(self) -> Networks:
        cascade = self._cascade()
        numbers = range(1, self.configuration.levels + 1)
        return randomize({f"level_{level}": cascade.network() for level in numbers})

    def trained(self, networks: Networks) -> Networks:
        return {"level_1": networks["level_1"]}

    def infer(self, networks: Networks, image: Tensor) -> dict[str, Tensor]:
        return self._cascade().levels(networks.values(), image)[-1]

    @property
    def passes(self) -> list[list[Term]]:
        from tf_autoctx import losses

        def loss(networks: Networks, batch: Batch) -> Tensor:
            x = self._cascade().joined(batch["image"], batch["context"])
            logits = networks["level_1"](x, training=True)
            return losses.DeepSupervisedLoss()(batch["label"], logits)

        return [[Term(("level_1",), loss)]]

    def batch(self) -> Batch:
        size = tuple(round(n * self.configuration.factor) for n in self.size)
        image = smooth(size)[None, ..., None]
        label = blobs(size, 2)[None, ..., None]
        return {"image": image, "label": label, "context": np.zeros_like(image)}


class MultiOrganTask(Task):
    """The pyramid of two 3D U-Nets on a whole CT, trained end to end on subvolumes.

    Args:
      tiny: see `Task`.
      batch_size: subvolumes in a step; the paper has three.
      size: of the CT along z, y, x.
    """

    name = "multi_organ"

    def __init__(
        self,
        tiny: bool = False,
        batch_size: int = 3,
        size: tuple[int, ...] = (600, 512, 512),
    ) -> None:
        chosen: dict[str, Any] = {"base_filters": 2, "tile_size": 16, "patch_size": 16}
        self.configuration = MultiOrgan(**chosen) if tiny else MultiOrgan()
        self.size = (48, 40, 44) if tiny else size
        self.batch_size = batch_size

    def _pyramid(self) -> Any:
        from tf_autoctx.systems.multi_organ.segmentation import Pyramid

        return Pyramid(self.configuration, ORGANS)

    def image(self) -> np.ndarray:
        return super().image() * 2 - 200  # HU

    def networks(self) -> Networks:
        return randomize({"pyramid": self._pyramid().network()})

    def infer(self, networks: Networks, image: Tensor) -> dict[str, Tensor]:
        pyramid = self._pyramid()
        last = pyramid.cascade(pyramid.unets(networks["pyramid"]), image)[-1]
        return {"label": pyramid.label(last, image.shape[1:4]), "probability": last}

    @property
    def passes(self) -> list[list[Term]]:
        from tf_autoctx import losses

        def loss(networks: Networks, batch: Batch) -> Tensor:
            levels = range(1, self.configuration.levels + 1)
            images = {f"image_{level}": batch[f"image_{level}"] for level in levels}
            logits = networks["pyramid"](images, training=True)
            dice = losses.DiceLoss()
            return sum(dice(batch[f"label_{n}"], logits[f"level_{n}"]) for n in levels)

        return [[Term(("pyramid",), loss)]]

    def batch(self) -> Batch:
        size = (self.configuration.patch_size,) * 3
        image = np.stack([4 * smooth(size)[..., None]] * self.batch_size)
        label = np.stack([blobs(size, 8)[..., None]] * self.batch_size)
        levels = range(1, self.configuration.levels + 1)
        return {f"image_{n}": image for n in levels} | {f"label_{n}": label for n in levels}


class EmbryoTask(Task):
    """Three VNets on a whole volume, trained end to end.

    Args:
      tiny: see `Task`.
      shrunk: by how much every edge is divided.
    """

    name = "embryo"

    def __init__(self, tiny: bool = False, shrunk: int = 1) -> None:
        if tiny:
            small: dict[str, Any] = {"low_size": 16, "body_box": 24, "ventricle_box": 16}
            self.configuration = Embryo(**small, base_filters=2, depth=2, kernel=3)
        else:
            edges: dict[str, Any] = {"low_size": 160, "body_box": 256, "ventricle_box": 160}
            self.configuration = Embryo(**{name: n // shrunk for name, n in edges.items()})
        whole = (24, 28, 30) if tiny else (210, 281, 282)
        self.size = tuple(n // shrunk for n in whole)

    def _refinement(self) -> Any:
        from tf_autoctx.systems.embryo.segmentation import Refinement

        return Refinement(self.configuration, {1: "body", 2: "ventricle"})

    def networks(self) -> Networks:
        return randomize({"embryo": self._refinement().network("end_to_end")})

    def infer(self, networks: Networks, image: Tensor) -> dict[str, Tensor]:
        refinement = self._refinement()
        outputs = refinement.outputs(networks["embryo"], refinement.preprocess(image))
        return refinement.postprocess(outputs, image.shape[1:4])

    @property
    def passes(self) -> list[list[Term]]:
        from tf_autoctx import losses

        def loss(networks: Networks, batch: Batch) -> Tensor:
            outputs = networks["embryo"](batch["image"], training=True)
            dice, label = losses.SquaredDiceLoss(), batch["label"]
            return dice(label == 1, outputs["body"]) + dice(label == 2, outputs["ventricle"])

        return [[Term(("embryo",), loss)]]

    def batch(self) -> Batch:
        image = smooth(self.size)[None, ..., None]
        return {"image": image, "label": blobs(self.size, 3)[None, ..., None]}


class RendererTask(Task):
    """S2T: an iteration online, and one of self-play, in the order "summed"."""

    name = "renderer"
    unit = "iteration"

    def __init__(self, tiny: bool = False) -> None:
        size, filters = (16, 2) if tiny else (320, 32)
        self.configuration = Renderer(size=size, base_filters=filters)
        self.size = (self.configuration.size,) * 2
        self.objective = Objective()

    def _rendering(self) -> Any:
        from tf_autoctx.systems.renderer.segmentation import Rendering

        return Rendering(self.configuration)

    def networks(self) -> Networks:
        return randomize(self._rendering().networks())

    def infer(self, networks: Networks, image: Tensor) -> dict[str, Tensor]:
        rendering = self._rendering()
        outputs = rendering.outputs(networks, rendering.preprocess(image))
        return rendering.postprocess(outputs, image.shape[1:3])

    @property
    def passes(self) -> list[list[Term]]:
        """Of self-play training."""
        return self._passes(training=True)

    @property
    def online(self) -> list[list[Term]]:
        """Of an iteration of online rendering, on images in place of a batch of the corpus."""
        return self._passes(training=False)

    def _passes(self, training: bool) -> list[list[Term]]:
        generators = Term(("renderer", "segmentor"), self._generators(training))
        judges = [Term((name,), self._judge(name, training)) for name in DISCRIMINATORS]
        others = [[generators]] * (self.objective.generator_updates - 1)
        return [*others, [generators, *judges]]

    def _generators(self, training: bool) -> Callable[[Networks, Batch], Tensor]:
        """The sum of the renderer's and the segmentor's terms (equation 5)."""
        from keras import ops

        from tf_autoctx import losses

        def loss(networks: Networks, batch: Batch) -> Tensor:
            rendered, logits, seen = fakes(networks, batch["image"], training)
            chosen = self.objective
            weights = {
                "rendered": chosen.rendering_weight,
                "aux": chosen.rendering_aux_weight,
            }
            total = sum(
                weight * ops.mean(ops.abs(batch["image"] - rendered[name]), axis=(1, 2, 3))
                for name, weight in weights.items()
            )
            if training:
                total = total + losses.HybridLoss(chosen.dice_weight)(batch["label"], logits)
            for name in DISCRIMINATORS:
                judged = networks[name](seen[name], training=training)
                total = total + losses.generator_adversarial(judged)
            return total

        return loss

    def _judge(self, name: str, training: bool) -> Callable[[Networks, Batch], Tensor]:
        """The loss of a discriminator."""
        from tf_autoctx import losses

        def loss(networks: Networks, batch: Batch) -> Tensor:
            _, _, seen = fakes(networks, batch["image"], training)
            fake = networks[name](seen[name], training=training)
            real = networks[name](batch["real"][name], training=training)
            return losses.discriminator_adversarial(real, fake)

        return loss

    def batch(self) -> Batch:
        image = np.stack([smooth(self.size)[..., None], smooth(self.size[::-1])[::-1, ..., None]])
        label = np.stack([blobs(self.size, 2)[..., None]] * 2)
        mask = label.astype(np.float32)
        real = {"d_app": image, "d_struct": mask, "d_pair": np.concatenate([image, mask], -1)}
        return {"image": image, "label": label, "real": real}


def fakes(
    networks: Networks, image: Tensor, training: bool
) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor], dict[str, Tensor]]:
    """What renderer and segmentor make of images, and what each discriminator sees of it."""
    from keras import ops

    rendered = networks["renderer"](image, training=training)
    logits = networks["segmentor"](rendered["rendered"], training=training)
    soft = ops.softmax(logits["logits"], axis=-1)[..., 1:]
    pair = ops.concatenate([rendered["rendered"], soft], axis=-1)
    return rendered, logits, {"d_app": rendered["rendered"], "d_struct": soft, "d_pair": pair}


TASKS: dict[str, Callable[..., Task]] = {
    kind.name: kind for kind in (FetalHeadTask, MultiOrganTask, EmbryoTask, RendererTask)
}
