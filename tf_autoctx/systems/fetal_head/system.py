"""The fetal head system as all others see it."""

from __future__ import annotations

import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf
from absl import logging

from tf_autoctx import biometry
from tf_autoctx.data import datasets
from tf_autoctx.data.configuration import AS_THEY_ARE
from tf_autoctx.errors import FieldError, UserError
from tf_autoctx.models import layers, memory
from tf_autoctx.models.usegnet import ENCODER
from tf_autoctx.systems.fetal_head import training
from tf_autoctx.systems.fetal_head.configuration import DECLARATION, FetalHead
from tf_autoctx.systems.fetal_head.segmentation import Cascade
from tf_autoctx.systems.shared import initial, patches, places, planning, stages
from tf_autoctx.systems.shared.averaging import Estimate
from tf_autoctx.systems.shared.caching import Files
from tf_autoctx.systems.shared.session import Session
from tf_autoctx.systems.shared.system import (
    Evaluator,
    Networks,
    Segmentations,
    Served,
    Size,
    System,
    Tensor,
)
from tf_autoctx.training.runs import Making, Run

DEPTH = len(ENCODER) + 1


class FetalHeadSystem(System):
    """USegNet-DS-HAS-Ctx and all rows of the paper's tables (Yang et al. 2019)."""

    declaration = DECLARATION
    # What a client should know of the export beside dtypes and shapes.
    served: ClassVar[Served] = {
        "image": {
            "range": None,
            "units": "raw intensities; each volume is scaled by its own smallest and largest, each "
            "channel by its own",
            "rule": "any size; the volume's own grid",
        },
        "label": {"range": [0, 1], "meaning": "1 where the head's probability is above 0.5"},
        "probability": {"range": [0, 1], "meaning": "of the head"},
    }
    structure = "head"
    measurements = biometry.METRICS

    def __init__(self, configuration: Any, labels: Mapping[int, str], channels: int = 1) -> None:
        super().__init__(configuration, labels, channels)
        self.cascade = Cascade(configuration, channels)

    # What a user hands in

    @classmethod
    def implied(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        chosen = FetalHead(level=values["level"], variant=values["variant"], scale=values["scale"])
        own_grid = chosen.scale is None and values["spacing"] != AS_THEY_ARE
        return {"level": chosen.levels, "scale": 1.0 if own_grid else chosen.factor}

    @classmethod
    def write_phantoms(cls, folder: pathlib.Path, values: Mapping[str, Any]) -> pathlib.Path:
        from tf_autoctx.data import phantoms

        names = ("phantom_size", "phantom_cases", "seed", "phantom_scans")
        return phantoms.write_fetal_heads(folder, *(values[name] for name in names))

    def check_run(self, making: Making) -> None:
        """Refuses two first weights of one level; warns of flags that change nothing.

        Raises:
          FieldError: warm_start beside initial_weights.
        """
        if names := self.configuration.idle:
            chosen = self.configuration.variant, self.configuration.levels
            told = "%s: nothing of %s with `level=%d` depends on it."
            logging.warning(told, ", ".join(f"`{name}`" for name in names), *chosen)
        if self.configuration.warm_start and making.flags.get(initial.FLAG):
            told = f"`{initial.FLAG}` gives every level its first weights; expected one of the two."
            raise FieldError("warm_start", True, told)

    # Training

    def planned(self, cases: planning.Cases) -> planning.Plan:
        """The patch, or none; the depth is the paper's."""
        cost = memory.cost(self.cascade.network(memory.SIZE), cases.rematerialize)
        cases = cases.on(self.cascade.network_size)
        edges, reason = planning.whole_or_patch(cases, cost)
        coarsest = planning.coarsest_grid(edges or cases.median, DEPTH)
        depth = (
            f"depth: {DEPTH} resolutions, as attention modules and side branches have their places "
            f"in the paper's; the coarsest grid has {coarsest} voxels."
        )
        flags = {patches.FLAG: patches.told(edges) if edges else patches.WHOLE}
        return planning.Plan(flags, [reason, depth])

    def prepare(self, case: datasets.Case, voxels: Tensor, label: Tensor) -> dict[str, Tensor]:
        """Image and label on the network's grid.

        Raises:
          UserError: the object is lost at the network's scale.
        """
        label = self.cascade.preprocess_label(tf.constant(label))
        if not tf.reduce_any(label == 1):
            scale = self.configuration.factor
            raise UserError(
                f"{case.label}: the object vanishes at `scale={scale}`; use a larger scale."
            )
        return {"image": self.cascade.preprocess(tf.constant(voxels))[0], "label": label[0]}

    @property
    def chunk(self) -> tuple[int | None, ...]:
        return training.chunk(self.cascade)

    def train(self, session: Session) -> Networks:
        files = [*map(_without_context, (session.training, session.validation))]
        if self.cascade.share:
            files = [places.with_places(part, [1], session.settings.seed) for part in files]
        return training.train(self.cascade, session.with_files(*files))

    def finished(self, run: Run) -> Networks:
        """The finished levels, level 1 first, with a warning where one is missing, or was trained
        on another level before it.

        Raises:
          UserError: see `System.finished`.
        """
        names = [f"level_{level}" for level in range(1, run.flags["level"] + 1)]
        files = {name: run.folder / name / "model.keras" for name in names}
        missing = [name for name, file in files.items() if not file.exists()]
        done = names[: max(1, names.index(missing[0]))] if missing else names
        for below, name in itertools.pairwise(done):
            if not stages.is_made_on(files[name], files[below]):
                told = "%s: %s was trained on another %s than the one that is there; train again."
                logging.warning(told, run.folder, name, below)
                done = done[: done.index(name)]
                break
        networks = {name: stages.load(files[name]) for name in done}
        if len(done) < len(names):
            logging.warning(
                "%s: %d of %d levels are finished; these are used.",
                run.folder,
                len(done),
                len(names),
            )
        return networks

    # Segmentation

    def estimate(self, networks: Networks, image: Tensor) -> Estimate:
        """The last level's probability, (batch, depth, height, width, 1) on the network's grid."""
        return {"probability": self.cascade.probabilities(networks.values(), image)[-1]}

    def decide(self, estimate: Estimate, size: Size) -> dict[str, Tensor]:
        """See `Cascade.postprocess`."""
        probability = estimate["probability"]
        if self.grid and self.cascade.configuration.same_grid:
            probability = layers.resize_linear(probability, size)
        return self.cascade.postprocess(probability, size)

    def mirrors(self, flags: Mapping[str, Any]) -> tuple[int, ...]:
        """See `System.mirrors`; slices were never mirrored across."""
        axes = super().mirrors(flags)
        return axes[1:] if self.configuration.view == "slices" else axes

    def evaluator(self, networks: Networks) -> Evaluator:
        """See `System.evaluator`; a method a level, all in one graph."""

        def levels(image: Tensor, size: Size) -> Segmentations:
            probabilities = self.cascade.probabilities(networks.values(), image)
            outputs = [self.decide({"probability": p}, size) for p in probabilities]
            return {
                f"level {level}": {
                    "label": output["label"][0, ..., 0],
                    "probability": {self.structure: output["probability"][0, ..., 0]},
                }
                for level, output in enumerate(outputs, start=1)
            }

        return self.graph_of_images(levels)

    def measure(
        self, mask: np.ndarray, truth: np.ndarray, spacing: Sequence[float]
    ) -> dict[str, float]:
        return biometry.compare(mask, truth, spacing)

    # Export

    def new_networks(self, names: Sequence[str]) -> Networks:
        return {name: self.cascade.network() for name in names}


def _without_context(files: Files) -> Files:
    """The files as level 1 sees them."""
    return [{**entry, "context": ""} for entry in files]
