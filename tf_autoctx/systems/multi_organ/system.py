"""The multi-organ system as all others see it."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf

from tf_autoctx import progress
from tf_autoctx.configuration import configured
from tf_autoctx.data import arrays, datasets
from tf_autoctx.data.labels import IGNORED
from tf_autoctx.models import memory
from tf_autoctx.progress import Progress
from tf_autoctx.systems.multi_organ import training
from tf_autoctx.systems.multi_organ.configuration import DECLARATION, OF_IMAGE, MultiOrgan
from tf_autoctx.systems.multi_organ.segmentation import Pyramid, UNet
from tf_autoctx.systems.shared import patches, places, planning, stages
from tf_autoctx.systems.shared.averaging import Estimate
from tf_autoctx.systems.shared.checks import warn_of_missing
from tf_autoctx.systems.shared.grid import Grid
from tf_autoctx.systems.shared.session import Session
from tf_autoctx.systems.shared.system import (
    Evaluator,
    GraphPredictor,
    Networks,
    Predictor,
    Segmentations,
    Served,
    Size,
    System,
    Tensor,
    Wanted,
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
            "meaning": "value of the most probable structure, see labels; 0: background; where "
            "there are regions, the value of the last one above 0.5",
        },
        "probability": {
            "range": [0, 1],
            "meaning": "of the background, then of each structure, label values ascending; where "
            "there are regions, of each of these, in the order of labels",
        },
    }
    large_probabilities = True

    def __init__(
        self, configuration: MultiOrgan, labels: Mapping[int, str], channels: int = 1
    ) -> None:
        self.pyramid = Pyramid(configuration, labels, channels)
        self.regions = self.pyramid.regions
        # In the order of the network's channels.
        ordered = labels if self.regions else dict(sorted(labels.items()))
        super().__init__(configuration, ordered, channels)
        if configuration.intensities == OF_IMAGE:
            self.any_voxels = True
        else:
            self.window = (configuration.window_low, configuration.window_high)

    # What a user hands in

    @classmethod
    def implied(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        chosen = configured(MultiOrgan, values)
        planned = chosen.patch == patches.AUTO
        depth = chosen.depth if planned else chosen.resolutions
        return {"downsampling": list(chosen.factors), "depth": depth}

    @classmethod
    def write_phantoms(cls, folder: pathlib.Path, values: Mapping[str, Any]) -> pathlib.Path:
        from tf_autoctx.data import phantoms

        names = ("phantom_size", "phantom_spacing", "phantom_cases", "seed")
        return phantoms.write_abdomens(folder, *(values[name] for name in names))

    # Training

    def planned(self, cases: planning.Cases) -> planning.Plan:
        """The patch on the last level's grid, and as many resolutions as suit it unless `depth`
        says how many."""
        cases = cases.on(self.pyramid.last_grid_size)
        cost = memory.cost(self.pyramid.network(size=memory.SIZE), cases.rematerialize)
        edges, reason = planning.patch(cases, cost)
        flags: dict[str, Any] = {patches.FLAG: patches.told(edges)}
        reasons = [reason]
        if self.configuration.depth is None:
            flags["depth"], reason = planning.depth(edges)
            reasons.append(reason)
        return planning.Plan(flags, reasons)

    def prepare(self, case: datasets.Case, voxels: Tensor, label: Tensor) -> dict[str, Tensor]:
        """Every level's image, and the label's classes; what is to be ignored stays that."""
        scales = enumerate(self.configuration.scales, start=1)
        levels = {f"image_{n}": self.pyramid.preprocess(voxels, scale)[0] for n, scale in scales}
        classes = self.pyramid.classes(label)[0]
        if IGNORED not in self.labels:
            classes = np.where(label[0] == IGNORED, label[0], classes)
        return {"label": classes, **levels}

    @property
    def chunk(self) -> tuple[int | None, ...]:
        return arrays.CUBES

    def train(self, session: Session) -> Networks:
        """See `System.train`; warns of structures that no training case has."""
        files = [
            places.with_places(files, range(1, len(self.pyramid.values)), session.settings.seed)
            for files in (session.training, session.validation)
        ]
        present = {*training.present(files[0], self.pyramid)}
        learnt = (v for v in self.labels if present & {*self.regions.get(v, (v,))})
        warn_of_missing(self.labels, list(learnt))
        return training.train(self.pyramid, session.with_files(*files))

    def finished(self, run: Run) -> Networks:
        name = training.stage_name(self.configuration)
        return {name: stages.load(run.folder / name / "model.keras")}

    # Segmentation

    def estimate(self, networks: Networks, image: Tensor) -> Estimate:
        """The last level's probabilities of all classes, (batch, depth, height, width, classes) on
        its own grid."""
        return {"probability": self.pyramid.cascade(self.unets(networks), image)[-1]}

    def decide(self, estimate: Estimate, size: Size) -> dict[str, Tensor]:
        """See `Pyramid.postprocess`."""
        return self.pyramid.postprocess(estimate["probability"], size)

    def evaluator(self, networks: Networks) -> Evaluator:
        """See `System.evaluator`; probabilities stay on the level's grid."""
        unets = self.unets(networks)

        def levels(image: Tensor, size: Size) -> Segmentations:
            probabilities = self.pyramid.cascade(unets, image)
            return {
                f"level {level}": {
                    "label": self.pyramid.label(probability, size)[0, ..., 0],
                    "probability": {
                        name: probability[0, ..., k - len(self.labels)]
                        for k, name in enumerate(self.labels.values())
                    },
                }
                for level, probability in enumerate(
                    probabilities, start=self.configuration.first_level
                )
            }

        return self.graph_of_images(levels)

    def predictor(
        self,
        run: Run,
        options: Mapping[str, Any],
        precision: str = "float32",
        mirrors: Sequence[int] = (),
    ) -> Predictor:
        chosen = dataclasses.replace(self.configuration, **options)
        networks = self.in_precision(self.finished(run), precision)
        how = mirrors, self.grid, self.channels
        return TilePredictor(chosen, self.labels, networks, *how)

    def unets(self, networks: Networks) -> list[UNet]:
        """See `Pyramid.unets`."""
        (network,) = networks.values()
        return self.pyramid.unets(network)

    # Export

    def new_networks(self, names: Sequence[str]) -> Networks:
        return {name: self.pyramid.network() for name in names}


class _Telling(MultiOrganSystem):
    """The system that calls `done` after each tile.

    Attributes:
      done: takes and returns nothing.
    """

    done: Callable[[], None]

    def unets(self, networks: Networks) -> list[UNet]:
        return [_telling(unet, self.done) for unet in super().unets(networks)]


class TilePredictor(GraphPredictor):
    """The functions of an export with a progress bar over the tiles, which is all that is outside
    their graphs: a `Predictor`.

    Args:
      configuration, labels: of the system.
      networks: of `System.finished`.
      mirrors: see `System.predictor`.
      grid: see `System.grid`.
      channels: of the images.
    """

    def __init__(
        self,
        configuration: MultiOrgan,
        labels: Mapping[int, str],
        networks: Networks,
        mirrors: Sequence[int] = (),
        grid: Grid | None = None,
        channels: int = 1,
    ) -> None:
        system = _Telling(configuration, labels, channels)
        system.done = self._tile_done
        self._pyramid, self._images, self._grid = system.pyramid, 2 ** len(mirrors), grid
        self._bar: Progress | None = None
        super().__init__(system.signatures([networks], mirrors), system.spec, grid)

    def __call__(
        self, image: np.ndarray, spacing: Sequence[float] | None, wanted: Wanted
    ) -> dict[str, Any]:
        tiles = self._images * self._pyramid.tiles(self._size(image.shape[1:4], spacing))
        several = tiles > len(self._pyramid.configuration.scales)
        shown = wanted.progress and several
        self._bar = progress.bar(tiles, "tile", "segmented") if shown else None
        return super().__call__(image, spacing, wanted)

    def _size(self, size: Size, spacing: Sequence[float] | None) -> Size:
        """Of what the networks see of an image."""
        if self._grid is None or spacing is None:
            return size
        return [int(n) for n in self._grid.size(size, spacing)]

    def _tile_done(self) -> None:
        if self._bar is not None:
            self._bar.add(1)


def _telling(unet: UNet, done: Callable[[], None]) -> UNet:
    """A U-Net that calls `done` after each tile, in a graph too."""

    def logits(x: Tensor) -> Tensor:
        y = unet(x)
        with tf.control_dependencies([y]):
            told = tf.numpy_function(done, [], [])
        with tf.control_dependencies([told]):
            return tf.identity(y)

    return logits
