"""The renderer system as all others see it."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf

from tf_autoctx import biometry
from tf_autoctx.configuration import configured
from tf_autoctx.data import datasets
from tf_autoctx.data.configuration import Augmentation
from tf_autoctx.errors import FieldError
from tf_autoctx.systems.renderer import online, training
from tf_autoctx.systems.renderer.configuration import DECLARATION, ITERATIONS, Phantoms
from tf_autoctx.systems.renderer.segmentation import Rendering
from tf_autoctx.systems.shared.averaging import Estimate
from tf_autoctx.systems.shared.session import Session
from tf_autoctx.systems.shared.system import (
    Evaluator,
    Networks,
    Predictor,
    Segmentations,
    Served,
    Size,
    System,
    Tensor,
)
from tf_autoctx.training import devices
from tf_autoctx.training.configuration import PAPER, POLICIES
from tf_autoctx.training.runs import Run

SERVED = ("renderer", "segmentor")  # the networks of the export, as far as the variant has them


class RendererSystem(System):
    """S2T and all rows of the paper's table (Yang et al. 2018)."""

    declaration = DECLARATION
    # What a client should know of the export beside dtypes and shapes.
    served: ClassVar[Served] = {
        "image": {
            "range": [0, 255],
            "units": "grey levels",
            "rule": "any size; the image's own grid",
        },
        "rendered": {
            "range": None,
            "units": "grey levels, mostly from 0 to 255",
            "meaning": "image in the source's look",
        },
        "label": {"range": [0, 1], "meaning": "1 where the head's probability is above 0.5"},
        "probability": {"range": [0, 1], "meaning": "of the head"},
    }
    structure = "head"
    measurements = biometry.METRICS

    def __init__(self, configuration: Any, labels: Mapping[int, str]) -> None:
        super().__init__(configuration, labels)
        self.rendering = Rendering(configuration)

    # What a user hands in

    @classmethod
    def implied(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Nothing; refuses two losses, and changes of grey levels that are asked for twice."""
        if values["loss"] != PAPER and values["segmentation_loss"] == "published":
            raise FieldError(
                "loss",
                values["loss"],
                f"the published `segmentation_loss` is a whole of its own; expected {PAPER}.",
            )
        strength = values["appearance_strength"]
        if strength and configured(Augmentation, values).recolours:
            raise FieldError(
                "appearance_strength",
                strength,
                "changes all that intensity_jitter, gamma, blur, low_resolution and noise do; "
                "expected 0 beside one of them.",
            )
        return {}

    @classmethod
    def write_phantoms(cls, folder: pathlib.Path, values: Mapping[str, Any]) -> pathlib.Path:
        from tf_autoctx.data import phantoms

        chosen = configured(Phantoms, values)
        source, other = (
            phantoms.write_fetal_heads_2d(
                folder, scanner, chosen.phantom_size, chosen.phantom_cases, values["seed"]
            )
            for scanner in ("source", chosen.phantom_target)
        )
        return other if values["variant"] == "Orig-T2T" else source

    # Training

    def prepare(self, case: datasets.Case, voxels: Tensor, label: Tensor) -> dict[str, Tensor]:
        """Image and label at the size of training; edges of their pixels, in those of before."""
        image = self.rendering.preprocess(tf.constant(voxels))[0]
        return {
            "image2d": image,
            "label2d": self.rendering.preprocess_label(tf.constant(label))[0],
            "pixel": np.divide(tuple(voxels.shape[1:3]), tuple(image.shape[:2])).astype(np.float32),
        }

    def train(self, session: Session) -> Networks:
        return training.train(self.rendering, session)

    def finished(self, run: Run) -> Networks:
        return training.finished(run.folder, self.configuration)

    # Segmentation

    def estimate(self, networks: Networks, image: Tensor) -> Estimate:
        """Images rendered by the trained weights as they are, and their probability, see
        `Rendering.outputs`."""
        return self.rendering.outputs(networks, self.rendering.preprocess(image))

    def decide(self, estimate: Estimate, size: Size) -> dict[str, Tensor]:
        """See `Rendering.postprocess`."""
        return self.rendering.postprocess(estimate, size)

    def evaluator(self, networks: Networks) -> Evaluator:
        def segment(image: Tensor, size: Size) -> Segmentations:
            output = self.decide(self.estimate(networks, image), size)
            return {
                self.configuration.variant: {
                    "label": output["label"][0, ..., 0],
                    "probability": {self.structure: output["probability"][0, ..., 0]},
                }
            }

        return self.graph_of_images(segment)

    def predictor(
        self,
        run: Run,
        options: Mapping[str, Any],
        precision: str = "float32",
        mirrors: Sequence[int] = (),
    ) -> Predictor:
        """The run as `predict` uses it: with online rendering, unless there are 0 iterations.

        Args:
          run: its folder.
          options: {name: value} of `Iterations` and `Online` that the user gives.
          precision: see `System.in_precision`.
          mirrors: see `System.predictor`.

        Raises:
          UserError: the run is not finished; iterations without a renderer, or with `mirrors`.
        """
        iterations = options.get("iterations", ITERATIONS if self.configuration.renders else 0)
        if not iterations:
            served = training.finished(run.folder, self.configuration, SERVED)
            return self.graphs(self.in_precision(served, precision), mirrors)
        if mirrors:
            told = "online rendering has a mirror image of its own; expected `iterations=0`."
            raise FieldError("mirrors", True, told)
        seed = options.get("online_seed", 0)
        with devices.policy(POLICIES[precision]):
            return online.OnlinePredictor(self.rendering, run, iterations, seed, options)

    @property
    def predicts_as_evaluated(self) -> bool:
        return not self.configuration.renders  # online rendering is a matter of prediction

    def measure(
        self, mask: np.ndarray, truth: np.ndarray, spacing: Sequence[float]
    ) -> dict[str, float]:
        return biometry.compare(mask, truth, spacing)

    # Export

    def served_networks(self, networks: Networks) -> Networks:
        return {name: networks[name] for name in SERVED if name in networks}

    def new_networks(self, names: Sequence[str]) -> Networks:
        networks = self.rendering.networks()
        return {name: networks[name] for name in names}
