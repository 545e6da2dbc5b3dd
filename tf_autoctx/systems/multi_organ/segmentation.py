"""Abdominal organs in CT: a multi-scale pyramid of 3D U-Nets with auto-context (Roth et al. 2018, "A Multi-scale
Pyramid of 3D Fully Convolutional Networks for Abdominal Multi-organ Segmentation").

Level s sees the whole volume shrunk by its factor, together with the class probabilities of the level before.
Everything that changes voxel values is here, in Keras ops: training, prediction and the exported graph run the very
same functions.
"""

import dataclasses
import functools
import math

import numpy as np
from keras import ops

from tf_autoctx import models
from tf_autoctx.models import layers
from tf_autoctx.systems import tiling

NAME = "multi_organ"
# A level's image stands beside class probabilities of 0 to 1: tissues must differ as much as those do, or the first
# convolution hardly sees the image.
HU_PER_UNIT = 100.0
MODES = ("end_to_end", "separate", "no_context")
# What a client should know of the export beside dtypes and shapes.
SERVED = {
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

# Flag values by name; the command line wins. "paper" holds every constant of the paper.
PRESETS = {
    "demo": {
        "base_filters": 8,
        # 72 mm at level 2: as much of the body's width as the paper's subvolumes show.
        "patch_size": 24,
        "batch_size": 3,
        "steps": 1500,
        "samples_per_epoch": 2250,
        "validation_fraction": 0.1,
        "learning_rate": 3e-3,
        "learning_rate_decay": "polynomial",
        "tile_size": 96,
    },
    "standard": {
        "batch_size": 3,
        "steps": 10_000,
        "samples_per_epoch": 1500,
        "learning_rate": 1e-3,
        "learning_rate_decay": "polynomial",
    },
    "paper": {
        "mode": "end_to_end",
        "levels": 2,  # of which the factors 4 and 2 follow
        "patch_size": 64,
        "base_filters": 32,
        "normalization": "batch",
        "batch_size": 3,
        "steps": 20_000,
        "samples_per_epoch": 1500,
        "validation_fraction": 0.0,
        "learning_rate": 1e-3,
        "learning_rate_decay": "constant",
        "patience": 0,
    },
}


@dataclasses.dataclass(frozen=True)
class MultiOrgan:
    """The system's configuration, one field a flag of the same name but for `labels`, and how a volume is segmented.

    Attributes:
      labels: {label value: name} of the structures, background left out.
      mode: "end_to_end" (the gradient of a level reaches all before it), "separate" (level after level, each frozen
        once it is finished) or "no_context" (the last level alone, without the map of another).
      downsampling: voxels of the original grid that a voxel of each level covers along an axis, coarsest level first.
      patch_size: edge of a training subvolume in voxels of its level, a multiple of 8.
      tile_size: largest edge of a tile in whole-volume inference, in voxels of its level, a multiple of 8; it bounds
        the memory.
      window_low, window_high: the CT window in HU; not given in the paper.
      base_filters, normalization, initializer: see `models.unet3d`.

    Raises:
      ValueError: a value out of range (the message names the field).
    """

    labels: dict[int, str]
    mode: str = "end_to_end"
    downsampling: tuple[int, ...] = (4, 2)
    patch_size: int = 64
    tile_size: int = 128
    window_low: float = -160.0
    window_high: float = 240.0
    base_filters: int = 32
    normalization: str = "batch"
    initializer: str = "he"

    def __post_init__(self):
        if not self.labels or not all(0 < value < 256 for value in self.labels):
            raise ValueError(
                f"labels={self.labels}: expected label values from 1 to 255 and their names."
            )
        if self.mode not in MODES:
            raise ValueError(f"mode={self.mode!r}: expected one of {', '.join(MODES)}.")
        factors = self.downsampling
        if not factors or factors[-1] < 1 or any(b >= a for a, b in zip(factors, factors[1:])):
            raise ValueError(
                f"downsampling={','.join(map(str, factors))}: expected factors that fall from level to level, such as 4,2."
            )
        if self.patch_size < 8 or self.patch_size % 8:
            raise ValueError(f"patch_size={self.patch_size}: expected a positive multiple of 8.")
        if self.tile_size < 16 or self.tile_size % 8:
            raise ValueError(
                f"tile_size={self.tile_size}: expected a multiple of 8 of at least 16."
            )
        if not -math.inf < self.window_low < self.window_high < math.inf:
            raise ValueError(
                f"window_low={self.window_low}: expected less than window_high={self.window_high}."
            )

    @property
    def scales(self):
        """The factors of the levels that there are: all of `downsampling`, or the last alone without context."""
        return tuple(self.downsampling[-1:] if self.mode == "no_context" else self.downsampling)

    @property
    def values(self):
        """Label value of each class of the network, background first."""
        return (0, *sorted(self.labels))

    @property
    def overlap(self):
        """Voxels that two tiles share, a multiple of 8: a quarter of a tile, but 16 where half a tile has as many."""
        return min(max(16, self.tile_size // 32 * 8), self.tile_size // 16 * 8)

    def network(self, levels=None):
        """A new pyramid of the first `levels` levels (None: all), under the current Keras dtype policy."""
        return models.pyramid(
            self.scales[:levels],
            len(self.values),
            end_to_end=self.mode == "end_to_end",
            base_filters=self.base_filters,
            normalization=self.normalization,
            initializer=self.initializer,
        )

    def unets(self, network):
        """The U-Nets of a pyramid of this system, level 1 first, each a function from its input to logits."""
        levels = range(1, len(network.outputs) + 1)
        return [
            functools.partial(network.get_layer(f"level_{level}"), training=False)
            for level in levels
        ]

    def grid_size(self, size, scale):
        """Spatial size of a level's grid for a volume of spatial `size` (integers or integer tensors)."""
        return tuple(
            (
                max(1, (2 * n + scale) // (2 * scale))
                if isinstance(n, int)
                else ops.maximum(1, (2 * n + scale) // (2 * scale))
            )
            for n in size
        )

    def preprocess(self, image, scale):
        """The CT window in hundreds of HU from its lower end, 0 for air, shrunk to a level's grid with anti-aliasing.

        Args:
          image: HU (batch, depth, height, width, 1) float32.
          scale: one of `scales`.

        Returns:
          (batch, *grid_size, 1) float32.
        """
        image = (ops.clip(image, self.window_low, self.window_high) - self.window_low) / HU_PER_UNIT
        return layers.resize_linear(image, self.grid_size(ops.shape(image)[1:4], scale))

    def classes(self, label):
        """Label values (any shape, integer) as class indices of the network, uint8; other values are background."""
        table = np.zeros(256, np.uint8)
        table[list(self.values)] = np.arange(len(self.values))
        return ops.take(ops.convert_to_tensor(table), ops.cast(label, "int32"))

    def probabilities(self, unets, images, progress=None):
        """Class probabilities of every level on its own grid.

        Args:
          unets: one function a level, see `unets`.
          images: the volume as each level sees it, see `preprocess`.
          progress: called after each tile, outside graphs.

        Returns:
          List of (batch, *grid_size, classes) float32, level 1 first.
        """
        answers = []
        for unet, x in zip(unets, images):
            if answers:
                x = ops.concatenate(
                    [x, layers.resize_linear(answers[-1], ops.shape(x)[1:4])], axis=-1
                )
            answers.append(
                tiling.tiled(
                    lambda tile, unet=unet: ops.softmax(unet(tile), axis=-1),
                    x,
                    self.tile_size,
                    self.overlap,
                    progress,
                )
            )
        return answers

    def tiles(self, size):
        """Number of tiles of all levels together for a volume of spatial `size` (integers)."""
        return sum(
            tiling.count(self.grid_size(size, scale), self.tile_size, self.overlap)
            for scale in self.scales
        )

    def label(self, probability, size):
        """Label values on the original grid: the class of the largest probability, linearly resampled.

        One slice at a time, as all classes of a large CT on its own grid would fill the memory.

        Args:
          probability: (batch, depth, height, width, classes) float32 on a level's grid.
          size: spatial size of the original grid.

        Returns:
          (batch, *size, 1) uint8.
        """
        old = ops.shape(probability)[1]
        factor = ops.cast(old, "float32") / ops.cast(size[0], "float32")

        def slice_(z):
            # Two slices weigh in; a product with the matrix of all weights would read all of them for every slice.
            at = ops.clip(
                (ops.cast(z, "float32") + 0.5) * factor - 0.5, 0.0, ops.cast(old - 1, "float32")
            )
            low = ops.cast(ops.floor(at), "int32")
            low_part = ops.take(probability, low, axis=1)
            high_part = ops.take(probability, ops.minimum(low + 1, old - 1), axis=1)
            part = at - ops.cast(low, "float32")
            p = layers.resize_linear(low_part * (1 - part) + high_part * part, size[1:])
            return ops.take(
                ops.convert_to_tensor(np.array(self.values, np.uint8)), ops.argmax(p, axis=-1)
            )[..., None]

        return ops.moveaxis(ops.map(slice_, ops.arange(size[0])), 0, 1)

    def cascade(self, unets, image, progress=None):
        """Class probabilities of every level on its own grid for a raw volume: HU (batch, depth, height, width, 1)."""
        return self.probabilities(
            unets, [self.preprocess(image, scale) for scale in self.scales], progress
        )

    def segment(self, unets, image, probability=False, progress=None):
        """What is served for a raw volume.

        Args:
          unets: see `unets`.
          image: HU (batch, depth, height, width, 1) float32.
          probability: whether to answer with the probabilities too.
          progress: see `probabilities`.

        Returns:
          {"label": (batch, depth, height, width, 1) uint8, label values; "probability": (batch, depth, height, width,
          classes) float32, background first}.
        """
        size, answer = ops.shape(image)[1:4], self.cascade(unets, image, progress)[-1]
        label = {"label": self.label(answer, size)}
        return label | {"probability": layers.resize_linear(answer, size)} if probability else label
