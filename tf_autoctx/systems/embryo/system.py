"""The embryo system as all others see it."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import tensorflow as tf

from tf_autoctx.configuration import earlier
from tf_autoctx.data import datasets, pipeline
from tf_autoctx.data.configuration import Resampling
from tf_autoctx.data.labels import IGNORED
from tf_autoctx.errors import FieldError, UserError
from tf_autoctx.models import layers
from tf_autoctx.systems.embryo import training
from tf_autoctx.systems.embryo.configuration import DECLARATION, Embryo
from tf_autoctx.systems.embryo.segmentation import Refinement
from tf_autoctx.systems.shared import checks, seen
from tf_autoctx.systems.shared.averaging import Estimate
from tf_autoctx.systems.shared.caching import Files
from tf_autoctx.systems.shared.session import Session
from tf_autoctx.systems.shared.system import (
    Evaluator,
    Networks,
    Predictor,
    Reader,
    Segmentations,
    Served,
    Size,
    System,
    Tensor,
    segmented,
)
from tf_autoctx.training import runs
from tf_autoctx.training.runs import Making, Run

# What a VNet I that is taken over must agree in.
OF_VNET_1 = ("low_size", "base_filters", "depth", "kernel", "normalization", "bias", "spacing")


class EmbryoSystem(System):
    """Auto-context refinement of body and ventricle (Xu et al. 2020)."""

    declaration = DECLARATION
    # What a client should know of the export beside dtypes and shapes.
    served: ClassVar[Served] = {
        "image": {
            "range": None,
            "units": "raw intensities, 0 in fluid; each volume is divided by its own root mean "
            "square",
            "rule": "any size; the volume's own grid",
        },
        "label": {
            "range": [0, 255],
            "meaning": "value of the structure, see labels; 0: background",
        },
        "body": {"range": [0, 1], "meaning": "1 where the body is"},
        "ventricle": {"range": [0, 1], "meaning": "1 where the ventricle is"},
        "probability": {"range": [0, 1], "meaning": "of the body, then of the ventricle"},
    }

    def __init__(self, configuration: Embryo, labels: Mapping[int, str], channels: int = 1) -> None:
        super().__init__(configuration, labels, channels)
        self.refinement = Refinement(configuration, labels, channels)

    # What a user hands in

    @classmethod
    def implied(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Nothing; refuses a last stage that would train nothing new."""
        if values["stage"] == "end_to_end" and not values["auto_context"]:
            raise UserError(
                "`stage=end_to_end` `noauto_context`: no gradient reaches VNet I; expected "
                "auto-context."
            )
        return {}

    @classmethod
    def write_phantoms(cls, folder: pathlib.Path, values: Mapping[str, Any]) -> pathlib.Path:
        from tf_autoctx.data import phantoms

        names = ("phantom_size", "phantom_spacing", "phantom_cases", "seed")
        return phantoms.write_embryos(folder, *(values[name] for name in names))

    @classmethod
    def structures(
        cls, cases: datasets.Dataset, foreground: Sequence[int] | None
    ) -> dict[int, str]:
        """{label value: name} of the body and of the ventricle, in the order of `foreground`.

        Raises:
          UserError: see `System.structures`; other than two values.
        """
        named = super().structures(cases, foreground)
        labels = {value: named[value] for value in foreground or named}
        if len(labels) != 2:
            raise UserError(
                f"`foreground`: labels are {labels}; expected the body's value and then the "
                "ventricle's."
            )
        return labels

    def check_run(self, making: Making) -> None:
        """Refuses a run to take VNet I from that does not fit.

        Raises:
          UserError: no run; one that is unfinished, or of another system, other data or another
            VNet I.
        """
        source = making.flags["initial_from"]
        if not source:
            return
        run = runs.load(source)
        if run.system != making.system or run.fingerprint != making.fingerprint:
            raise FieldError(
                "initial_from",
                source,
                "a run of another system or other data; expected those of this run.",
            )
        flags = {**earlier([Embryo, Resampling]), **run.flags}
        for name in OF_VNET_1:
            before, now = flags.get(name), making.flags[name]
            if before != now:
                raise FieldError(
                    "initial_from",
                    source,
                    f"made with `{name}={before}`, now {now}; expected the same.",
                )
        file = training.initial_file(source)
        if not file.exists():
            raise UserError(
                f"{file}: this stage is not finished; finish it, or leave `initial_from` out."
            )

    def check_cases(self, training: Files, validation: Files) -> None:
        """Warns of a structure that no training case has.

        Raises:
          UserError: the ventricles are larger than the bodies: the two label values are exchanged.
        """
        counts = np.zeros(3, int)
        for entry in training:
            label = pipeline.stored(entry["label"], "label").numpy()
            counts += np.bincount(label.ravel(), minlength=3)[:3]
        present = [value for value, count in zip(self.labels, counts[1:]) if count]
        checks.warn_of_missing(self.labels, present)
        if counts[2] > counts[1] > 0:
            body, ventricle = self.labels
            raise UserError(
                f"`foreground`: the ventricle, {ventricle}, has more voxels than the body, {body}; "
                "expected the body's value and then the ventricle's."
            )

    # Training

    def prepare(self, case: datasets.Case, voxels: Tensor, label: Tensor) -> dict[str, Tensor]:
        """The preprocessed image, and the label as classes 0, 1 (body), 2 (ventricle); what is to
        be ignored stays that."""
        classes = sum(
            (label == value).astype(np.uint8) * k for k, value in enumerate(self.labels, start=1)
        )
        if IGNORED not in self.labels:
            classes = np.where(label == IGNORED, label, classes)
        return {"image": self.refinement.preprocess(tf.constant(voxels))[0], "label": classes[0]}

    def train(self, session: Session) -> Networks:
        return training.train(self.refinement, session)

    def finished(self, run: Run) -> Networks:
        return training.finished(run)

    def starting(self, networks: Networks) -> Networks:
        """That of the last stage, whose VNets have all been trained."""
        return self.served_networks(networks)

    # Segmentation

    def estimate(self, networks: Networks, image: Tensor) -> Estimate:
        """The outputs of the last stage that is finished, see `Refinement.outputs`."""
        (network,) = networks.values()
        return self.refinement.outputs(network, self.refinement.preprocess(image))

    def decide(self, estimate: Estimate, size: Size) -> dict[str, Tensor]:
        """See `Refinement.postprocess`."""
        if self.grid and "refined" in estimate:
            estimate = {"refined": layers.resize_linear(estimate["refined"], size)}
        return self.refinement.postprocess(estimate, size)

    def relabelled(self, outputs: Mapping[str, Tensor], label: Tensor) -> dict[str, Tensor]:
        """See `System.relabelled`; body and ventricle are masks of the label."""
        return {**outputs, "label": label, **self.refinement.masks(label)}

    def evaluator(self, networks: Networks) -> Evaluator:
        """Every stage's segmentation of a raw volume.

        A graph each: in one, TensorFlow would run several at once, in several times the memory.
        """
        graphs = {stage: self.graphs({stage: network}) for stage, network in networks.items()}

        def segment(voxels: np.ndarray, spacing: Sequence[float] | None) -> Segmentations:
            return {
                stage: segmented(graph, voxels, spacing, 3, self.labels)
                for stage, graph in graphs.items()
            }

        return segment

    def predictor(
        self,
        run: Run,
        options: Mapping[str, Any],
        precision: str = "float32",
        mirrors: Sequence[int] = (),
    ) -> Predictor:
        """See `System.predictor`; the last finished stage alone is read."""
        return self.graphs(self.in_precision(training.last_finished(run), precision), mirrors)

    # Export

    def served_networks(self, networks: Networks) -> Networks:
        """That of the last finished stage."""
        stage, network = list(networks.items())[-1]
        return {stage: network}

    def new_networks(self, names: Sequence[str]) -> Networks:
        return {stage: self.refinement.network(stage) for stage in names}


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """A run of the embryo system, and the very cases that it was trained on.

    Attributes:
      run: its folder.
      system: made of its configuration.
      cases: its data set.
      read: reads a case.
    """

    run: Run
    system: EmbryoSystem
    cases: datasets.Dataset
    read: Reader

    @classmethod
    def load(cls, folder: str | pathlib.Path) -> Self:
        """The run of a folder.

        Raises:
          UserError: no run of this system; its config.json lacks something; its data are gone or
            have changed.
        """
        run = runs.load_of(folder, DECLARATION.name)
        system = EmbryoSystem.of_run(run)
        cases = seen.cases_of(run)
        return cls(run, system, cases, system.reader(None, cases.labels))
