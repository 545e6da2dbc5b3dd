"""How the multi-organ system segments a CT (Roth et al. 2018, "A Multi-scale Pyramid of 3D Fully
Convolutional Networks for Abdominal Multi-organ Segmentation").

Level s sees the whole volume shrunk by its factor, together with the class probabilities of the
level before (section 2.2). Everything that changes voxel values is here, in Keras ops: training,
prediction and the exported graph run the very same functions.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from tf_autoctx.data.regions import by_value, composition, parsed
from tf_autoctx.models import layers, tiling
from tf_autoctx.models.unet3d import pyramid
from tf_autoctx.systems.multi_organ.configuration import OF_IMAGE, MultiOrgan

Tensor = Any
Size = Sequence[Any]  # spatial size, integers or integer tensors
UNet = Callable[[Tensor], Tensor]  # input of a level -> logits

# A level's image stands beside class probabilities of 0 to 1: tissues must differ as much as those
# do, or the first convolution hardly sees the image.
HU_PER_UNIT = 100.0


class Pyramid:
    """Levels of one U-Net structure, each of which sees the class probabilities of the one before.

    Attributes:
      configuration: what the networks are and which grids they see.
      values: label value of each class, background first: the channels of the network, unless
        these are regions.
      channels: of a volume.
      regions: {value: the label values of its voxels} of each channel of the network; empty where
        channels are classes.

    Raises:
      ValueError: labels beyond what a uint8 label can hold, or none.
    """

    def __init__(
        self, configuration: MultiOrgan, labels: Mapping[int, str], channels: int = 1
    ) -> None:
        """Takes {label value: name} of the structures, background left out."""
        if not labels or not all(0 < value < 256 for value in labels):
            raise ValueError(
                f"labels={dict(labels)}: expected label values from 1 to 255 and their names."
            )
        self.configuration, self.channels = configuration, channels
        self.regions = by_value(parsed(configuration.regions))
        if self.regions and list(self.regions) != list(labels):
            raise ValueError(f"labels={dict(labels)}: expected those of {configuration.regions}.")
        learnt: Collection[int] = set().union(*self.regions.values()) or labels
        self.values = (0, *sorted(learnt))

    @property
    def class_regions(self) -> dict[int, tuple[int, ...]]:
        """`regions` of indices of classes in place of label values, counted from 1."""
        return {
            number: tuple(map(self.values.index, values))
            for number, values in enumerate(self.regions.values(), start=1)
        }

    # The networks

    def network(
        self, levels: int | None = None, size: Sequence[int | None] = (None, None, None)
    ) -> keras.Model:
        """A new pyramid of the first `levels` levels (None: all), under the current Keras dtype
        policy; all of them see the same spatial `size`, None: any."""
        chosen = self.configuration
        return pyramid(
            chosen.scales[:levels],
            len(self.regions or self.values),
            regions=bool(self.regions),
            input_shape=tuple(size),
            channels=self.channels,
            end_to_end=chosen.mode == "end_to_end",
            base_filters=chosen.base_filters,
            depth=chosen.resolutions,
            normalization=chosen.normalization,
            initializer=chosen.initializer,
            bias=chosen.bias,
        )

    def unets(self, network: keras.Model) -> list[UNet]:
        """The U-Nets of a pyramid of this system, level 1 first, each a function from its input to
        logits."""
        levels = range(1, len(network.outputs) + 1)
        return [_inference(network.get_layer(f"level_{level}")) for level in levels]

    # Before the networks

    def grid_size(self, size: Size, scale: int) -> tuple[Any, ...]:
        """Spatial size of a level's grid for a volume of spatial `size`."""

        def shrunk(n: Any) -> Any:
            rounded = (2 * n + scale) // (2 * scale)
            return max(1, rounded) if isinstance(n, int) else ops.maximum(1, rounded)

        return tuple(map(shrunk, size))

    def last_grid_size(self, size: Size) -> tuple[Any, ...]:
        """`grid_size` of the last level."""
        return self.grid_size(size, self.configuration.scales[-1])

    def preprocess(self, image: Tensor, scale: int) -> Tensor:
        """The CT window in hundreds of HU from its lower end, 0 for air, or each channel less its
        mean, by its standard deviation; shrunk to a level's grid with anti-aliasing.

        Args:
          image: (batch, depth, height, width, channels) float32, HU of which one window is that of
            all channels, or any.
          scale: one of the configuration's `scales`.

        Returns:
          (batch, *grid_size, channels) float32.
        """
        if self.configuration.intensities == OF_IMAGE:
            image = _standardized(image)
        else:
            low, high = self.configuration.window_low, self.configuration.window_high
            image = (ops.clip(image, low, high) - low) / HU_PER_UNIT
        return layers.resize_linear(image, self.grid_size(ops.shape(image)[1:4], scale))

    def classes(self, label: Tensor) -> Tensor:
        """Label values (any shape, integer) as class indices of the network, uint8; other values
        are background."""
        table = np.zeros(256, np.uint8)
        table[list(self.values)] = np.arange(len(self.values))
        return ops.take(ops.convert_to_tensor(table), ops.cast(label, "int32"))

    # The cascade

    def probabilities(self, unets: Sequence[UNet], images: Sequence[Tensor]) -> list[Tensor]:
        """Class probabilities, or those of each region, of every level on its own grid.

        Args:
          unets: one function per level, see `unets`.
          images: the volume as each level sees it, see `preprocess`.

        Returns:
          List of (batch, *grid_size, classes) float32, level 1 first.
        """
        tile, overlap = self.configuration.tile_size, self.configuration.overlap
        levels: list[Tensor] = []
        for unet, x in zip(unets, images):
            if levels:
                context = layers.resize_linear(levels[-1], ops.shape(x)[1:4])
                x = ops.concatenate([x, context], axis=-1)
            levels.append(tiling.tiled(_probability(unet, bool(self.regions)), x, tile, overlap))
        return levels

    def cascade(self, unets: Sequence[UNet], image: Tensor) -> list[Tensor]:
        """`probabilities` of a raw volume: HU (batch, depth, height, width, channels) float32."""
        images = [self.preprocess(image, scale) for scale in self.configuration.scales]
        return self.probabilities(unets, images)

    def tiles(self, size: Sequence[int]) -> int:
        """Number of tiles of all levels together for a volume of spatial `size`."""
        tile, overlap = self.configuration.tile_size, self.configuration.overlap
        grids = (self.grid_size(size, scale) for scale in self.configuration.scales)
        return sum(tiling.count(grid, tile, overlap) for grid in grids)

    # After the networks

    def label(self, probability: Tensor, size: Size) -> Tensor:
        """Label values on the original grid: the class of the largest probability, linearly
        resampled, or what `regions.composition` has for the regions above 0.5.

        One slice at a time, as all classes of a large CT on its own grid would fill the memory.

        Args:
          probability: (batch, depth, height, width, classes) float32 on a level's grid.
          size: spatial size of the original grid.

        Returns:
          (batch, *size, 1) uint8.
        """
        old = ops.shape(probability)[1]
        factor = ops.cast(old, "float32") / ops.cast(size[0], "float32")

        def label_of_slice(z: Tensor) -> Tensor:
            # Two slices weigh in; a product with the matrix of all weights would read all of them
            # for every slice.
            at = ops.clip(
                (ops.cast(z, "float32") + 0.5) * factor - 0.5, 0.0, ops.cast(old - 1, "float32")
            )
            low = ops.cast(ops.floor(at), "int32")
            low_part = ops.take(probability, low, axis=1)
            high_part = ops.take(probability, ops.minimum(low + 1, old - 1), axis=1)
            part = at - ops.cast(low, "float32")
            p = layers.resize_linear(low_part * (1 - part) + high_part * part, size[1:])
            return self._decided(p)[..., None]

        return ops.moveaxis(ops.map(label_of_slice, ops.arange(size[0])), 0, 1)

    def _decided(self, probability: Tensor) -> Tensor:
        """Label values (...) uint8 of probabilities (..., classes or regions)."""
        at, values = ops.argmax(probability, axis=-1), np.array(self.values, np.uint8)
        if self.regions:
            bits = np.array([2**k for k in range(len(self.regions))], np.int32)
            at = ops.sum(ops.cast(probability > 0.5, "int32") * bits, axis=-1)
            values = np.array(composition(self.regions), np.uint8)
        return ops.take(ops.convert_to_tensor(values), at)

    def postprocess(self, probability: Tensor, size: Size) -> dict[str, Tensor]:
        """What is served for a raw volume; arguments as for `label`.

        Returns:
          {"label": (batch, *size, 1) uint8, label values; "probability": (batch, *size, classes)
          float32, background first, or (batch, *size, regions)}.
        """
        return {
            "label": self.label(probability, size),
            "probability": layers.resize_linear(probability, size),
        }


def _standardized(image: Tensor) -> Tensor:
    """Mean 0 and standard deviation 1 of each channel of a volume; one of a single value is 0."""
    low, high = (f(image, axis=(1, 2, 3), keepdims=True) for f in (ops.min, ops.max))
    image = image - ops.mean(image, axis=(1, 2, 3), keepdims=True)
    square = ops.mean(ops.square(image), axis=(1, 2, 3), keepdims=True)
    # Not by the square, which rounding keeps above 0 where all voxels are the same.
    return image * ops.where(high > low, ops.rsqrt(square), ops.zeros_like(square))


def _inference(unet: Callable[..., Tensor]) -> UNet:
    """A U-Net with its moving averages."""

    def logits(x: Tensor) -> Tensor:
        return unet(x, training=False)

    return logits


def _probability(unet: UNet, regions: bool) -> UNet:
    """Class probabilities from a U-Net, or those of each region."""

    def probability(x: Tensor) -> Tensor:
        return ops.sigmoid(unet(x)) if regions else ops.softmax(unet(x), axis=-1)

    return probability
