"""How the toy system segments a volume, and how it is trained."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tf_autoctx import losses, metrics
from tf_autoctx.data import augment, datasets
from tf_autoctx.data.configuration import Augmentation
from tf_autoctx.data.phantoms import folder as phantom_folder
from tf_autoctx.metrics import Metric
from tf_autoctx.models import layers
from tf_autoctx.systems.shared import stages
from tf_autoctx.systems.shared.averaging import Estimate
from tf_autoctx.systems.shared.session import Session
from tf_autoctx.systems.shared.stage import AdamStage
from tf_autoctx.systems.shared.system import Networks, Served, Size, System
from tf_autoctx.training.runs import Run
from toy_system.configuration import DECLARATION

Tensor = Any  # of whichever backend


class ToySystem(System):
    """Bright objects by one network."""

    declaration = DECLARATION
    # What a client should know of the export beside dtypes and shapes.
    served: ClassVar[Served] = {
        "image": {"units": "raw intensities", "rule": "any size; the volume's own grid"},
        "label": {"range": [0, 1], "meaning": "1 where the object is"},
        "probability": {"range": [0, 1], "meaning": "of the object"},
    }
    structure = "object"
    measurements = (
        Metric("reach", ("mm",), "neither"),  # neither higher nor lower is better: the truth has it
        Metric("reach_error", ("mm",), "lower", ("table",)),
    )

    # What a user hands in

    @classmethod
    def write_phantoms(cls, folder: pathlib.Path, values: Mapping[str, Any]) -> pathlib.Path:
        about = {"name": "balls", "description": "a bright ball each", "modality": {"0": "none"}}
        balls = phantom_folder.Phantoms(
            make=ball,
            prefix="ball",
            about=about,
            labels={1: "object"},
            size=values["phantom_size"],
            cases=values["phantom_cases"],
            seed=values["seed"],
        )
        return phantom_folder.write(folder, balls)

    # Segmentation, in Keras ops alone

    def network(self) -> keras.Model:
        """A new network, under the current Keras dtype policy."""
        image = keras.Input((None, None, None, 1), name="image")
        block = layers.Block("instance", "he")
        x = block.conv(image, self.configuration.base_filters, 3, "block_1")
        x = block.conv(x, self.configuration.base_filters, 3, "block_2")
        logits = keras.layers.Conv3D(2, 1, dtype="float32", name="logits")(x)
        return keras.Model(image, logits, name="toy")

    def preprocess(self, image: Tensor) -> Tensor:
        """Raw voxels (batch, depth, height, width, 1) of mean 0 and SD 1."""
        axes = (1, 2, 3, 4)
        mean, variance = ops.moments(image, axes=axes, keepdims=True)
        return (image - mean) * ops.rsqrt(variance + 1e-6)

    def estimate(self, networks: Networks, image: Tensor) -> Estimate:
        logits = networks["network"](self.preprocess(image), training=False)
        return {"probability": ops.softmax(logits, axis=-1)[..., 1:]}

    def decide(self, estimate: Estimate, size: Size) -> dict[str, Tensor]:
        probability = estimate["probability"]
        label = ops.cast(probability > self.configuration.threshold, "uint8")
        return {"label": label, "probability": probability}

    def measure(
        self, mask: np.ndarray, truth: np.ndarray, spacing: Sequence[float]
    ) -> dict[str, float]:
        measured, true = (reach(voxels, spacing) for voxels in (mask, truth))
        error = abs(measured - true)
        return {"reach_mm": measured, "truth_reach_mm": true, "reach_error_mm": error}

    # Training

    def prepare(self, case: datasets.Case, voxels: Tensor, label: Tensor) -> dict[str, Tensor]:
        return {"image": self.preprocess(voxels)[0], "label": label[0]}

    def train(self, session: Session) -> Networks:
        return {"network": stages.train_network(ToyStage(self, session), session)}

    def finished(self, run: Run) -> Networks:
        return {"network": stages.load(run.folder / ToyStage.name / "model.keras")}

    # Export

    def new_networks(self, names: Sequence[str]) -> Networks:
        return {name: self.network() for name in names}


class ToyStage(AdamStage):
    """The one network, trained on whole volumes."""

    name = "segmentor"
    columns = ("image", "label")

    def __init__(self, system: ToySystem, session: Session) -> None:
        self.seed, self._system = session.settings.seed, system
        self._augmentation = session.configured(Augmentation)
        self._loss = losses.DiceLoss()

    def build(self) -> Networks:
        return {"network": self._system.network()}

    def losses(self, networks: Networks, batch: Mapping[str, Tensor]) -> Tensor:
        return self._loss(batch["label"], networks["network"](batch["image"], training=True))

    def augment(self, sample: dict[str, Tensor], seed: Tensor) -> dict[str, Tensor]:
        return augment.augmented(sample, seed, self._augmentation)

    def graph(self, networks: Networks) -> Callable[[Tensor], Tensor]:
        @tf.function(input_signature=[tf.TensorSpec((None, None, None, None, 1))])
        def logits(image: Tensor) -> Tensor:
            return networks["network"](image, training=False)

        return logits

    def score(self, graph: Callable[[Tensor], Tensor], sample: dict[str, Tensor]) -> float:
        prediction = np.argmax(graph(sample["image"][None])[0], axis=-1)
        return metrics.dice(prediction, sample["label"][..., 0])


def reach(mask: np.ndarray, spacing: Sequence[float]) -> float:
    """Length along z in mm, of nothing 0."""
    slices = np.flatnonzero(mask.any(axis=(1, 2)))
    return float(np.ptp(slices) + 1) * spacing[0] if len(slices) else 0.0


def ball(
    size: Sequence[int], seed: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    """Image, label and spacing of one phantom."""
    rng = np.random.default_rng(seed)
    centre = rng.uniform(0.35, 0.65, 3) * size
    distance = np.linalg.norm(np.indices(size).T - centre, axis=-1).T
    label = (distance < rng.uniform(0.2, 0.3) * min(size)).astype(np.uint8)
    image = np.rint(100 + 60 * label + rng.normal(0, 30, size)).astype(np.int16)
    return image, label, (1.0, 1.0, 1.0)
