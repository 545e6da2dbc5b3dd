"""The multi-organ system as all others see it."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import keras
import numpy as np
import tensorflow as tf

from tf_autoctx.configuration import configured
from tf_autoctx.data import arrays, datasets, phantoms
from tf_autoctx.data.labels import IGNORED
from tf_autoctx.systems.multi_organ import training
from tf_autoctx.systems.multi_organ.configuration import DECLARATION, MultiOrgan
from tf_autoctx.systems.multi_organ.segmentation import Progress, Pyramid, UNet
from tf_autoctx.systems.shared import stages
from tf_autoctx.systems.shared.checks import warn_of_missing
from tf_autoctx.systems.shared.session import Session
from tf_autoctx.systems.shared.system import (
    Networks,
    Predictor,
    Segmentations,
    Served,
    System,
    Tensor,
)
from tf_autoctx.training.runs import Run


class MultiOrganSystem(System):
    """The pyramid of 3D U-Nets and its two baselines (Roth et al. 2018).

    Its networks are one: {name of the last stage: pyramid of all levels}.
    """

    declaration = DECLARATION
    # What a client should know of the export beside dtypes and shapes.
    served: ClassVar[Served] = {
        "image": {
            "range": [-1024, 3071],
            "units": "HU",
            "rule": "any size; the CT's own grid",
        },
        "label": {
            "range": [0, 255],
            "meaning": "value of the most probable structure, see labels; 0: background",
        },
        "probability": {
            "range": [0, 1],
            "meaning": "of the background, then of each structure, label values ascending",
        },
    }

    def __init__(self, configuration: MultiOrgan, labels: Mapping[int, str]) -> None:
        # In the order of the network's channels.
        super().__init__(configuration, dict(sorted(labels.items())))
        self.pyramid = Pyramid(configuration, labels)
        self.window = (configuration.window_low, configuration.window_high)

    # What a user hands in

    @classmethod
    def implied(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        chosen = configured(MultiOrgan, values)
        return {"downsampling": list(chosen.factors)}

    @classmethod
    def write_phantoms(cls, folder: pathlib.Path, values: Mapping[str, Any]) -> pathlib.Path:
        names = ("phantom_size", "phantom_spacing", "phantom_cases", "seed")
        return phantoms.write_abdomens(folder, *(values[name] for name in names))

    # Training

    def prepare(self, case: datasets.Case, voxels: Tensor, label: Tensor) -> dict[str, Tensor]:
        """Every level's image, and the label's classes; what is to be ignored stays that."""
        scales = enumerate(self.configuration.scales, start=1)
        images = {f"image_{n}": self.pyramid.preprocess(voxels, scale)[0] for n, scale in scales}
        classes = self.pyramid.classes(label)[0]
        if IGNORED not in self.labels:
            classes = np.where(label[0] == IGNORED, label[0], classes)
        return {"label": classes, **images}

    @property
    def chunk(self) -> tuple[int | None, ...]:
        return arrays.CUBES

    def train(self, session: Session) -> Networks:
        """See `System.train`; warns of structures that no training case has."""
        files = [
            training.with_places(files, self.pyramid, session.settings.seed)
            for files in (session.training, session.validation)
        ]
        warn_of_missing(self.labels, training.present(files[0], self.pyramid))
        return training.train(self.pyramid, session.with_files(*files))

    def finished(self, run: Run) -> Networks:
        name = training.stage_name(self.configuration)
        return {name: stages.load(run.folder / name / "model.keras")}

    # Segmentation

    def segment(self, networks: Networks, image: Tensor) -> dict[str, Tensor]:
        return self.pyramid.segment(self._unets(networks), image)

    def evaluator(self, networks: Networks) -> Callable[[np.ndarray], Segmentations]:
        """See `System.evaluator`; probabilities stay on the level's grid."""
        (network,) = networks.values()
        unets = training.graphs(self.pyramid, network)

        def segment(voxels: np.ndarray) -> Segmentations:
            levels = self.pyramid.cascade(unets, tf.constant(voxels[None, ..., None]))
            return {
                f"level {level}": {
                    "label": self.pyramid.label(probability, voxels.shape)[0, ..., 0].numpy(),
                    "probability": {
                        name: probability[0, ..., k]
                        for k, name in enumerate(self.labels.values(), start=1)
                    },
                }
                for level, probability in enumerate(levels, start=self.configuration.first_level)
            }

        return segment

    def predictor(self, run: Run, options: Mapping[str, Any]) -> Predictor:
        changed = dataclasses.replace(self.configuration, **options)
        (network,) = self.finished(run).values()
        return TilePredictor(Pyramid(changed, self.labels), network)

    def _unets(self, networks: Networks) -> list[UNet]:
        (network,) = networks.values()
        return self.pyramid.unets(network)

    # Export

    def new_networks(self, names: Sequence[str]) -> Networks:
        return {name: self.pyramid.network() for name in names}

    def signatures(self, networks: Networks) -> dict[str, Callable[[Tensor], dict[str, Tensor]]]:
        """The label alone, and with the probabilities of all classes, which are much larger."""
        unets = self._unets(networks)

        def serving_default(image: Tensor) -> dict[str, Tensor]:
            return self.pyramid.segment(unets, image)

        def probabilities(image: Tensor) -> dict[str, Tensor]:
            return self.pyramid.segment(unets, image, probability=True)

        return {"serving_default": serving_default, "probabilities": probabilities}


class TilePredictor:
    """A pyramid whose tiles run one by one outside a graph, with a progress bar: a `Predictor`."""

    iterations = 0

    def __init__(self, pyramid: Pyramid, network: keras.Model) -> None:
        self._pyramid, self._unets = pyramid, training.graphs(pyramid, network)

    def __call__(self, image: np.ndarray, probabilities: bool, progress: bool) -> dict[str, Any]:
        bar = self._bar(image.shape[1:4]) if progress else None
        return self._pyramid.segment(self._unets, tf.constant(image), probabilities, bar)

    def _bar(self, size: Sequence[int]) -> Progress | None:
        """A progress bar over the tiles of a volume, to be called after each; None for a tile a
        level."""
        tiles = self._pyramid.tiles(size)
        if tiles <= len(self._pyramid.configuration.scales):
            return None
        bar = keras.utils.Progbar(tiles, unit_name="tile")

        def tile_done() -> None:
            bar.add(1)

        return tile_done
