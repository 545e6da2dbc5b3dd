"""How the fetal head system segments a volume (Yang et al. 2019, "Hybrid Attention for Automatic
Segmentation of Whole Fetal Head in Prenatal Ultrasound Volumes").

Level k of the auto-context cascade sees the volume joined with the head probability of level k - 1,
on the same grid (section 2.5). Everything that changes voxel values is here, in Keras ops:
training, prediction and the exported graph run the very same functions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from tf_autoctx.errors import FieldError
from tf_autoctx.models import layers, tiling
from tf_autoctx.models.usegnet import usegnet
from tf_autoctx.systems.fetal_head.configuration import FetalHead
from tf_autoctx.systems.shared.patches import WHOLE

ABOUT_HEAD = 1 / 3  # as nnU-Net, Isensee et al. 2021

Tensor = Any
Size = Sequence[Any]  # spatial size, integers or integer tensors


class Cascade:
    """Levels of one network structure, each of which sees the probability of the one before.

    Attributes:
      configuration: what the networks are and which grid they see.
      channels: of a volume.
    """

    def __init__(self, configuration: FetalHead, channels: int = 1) -> None:
        self.configuration, self.channels = configuration, channels

    def network(self, size: Sequence[int | None] = (None, None, None)) -> keras.Model:
        """A new network of one level, under the current Keras dtype policy, for volumes or patches
        of a spatial size, None: any; or for slices."""
        chosen = self.configuration
        channels = self.channels + (chosen.join == "concat")
        return usegnet(
            (*(size[1:] if chosen.view == "slices" else size), channels),
            chosen.network,
            base_filters=chosen.base_filters,
            attention_kernel=chosen.attention_kernel,
            attention_norm=chosen.attention_norm,
            plain_decoder=chosen.plain_decoder,
            normalization=chosen.normalization,
            initializer=chosen.initializer,
            bias=chosen.bias,
        )

    def network_size(self, size: Size) -> tuple[Any, ...]:
        """Spatial size on the network's grid of a volume of spatial `size`."""
        scale = self.configuration.factor

        def shrunk(n: Any) -> Any:
            # Float32 for both, or a known and an unknown size could round differently.
            if isinstance(n, int):
                return max(1, int(np.float32(n) * np.float32(scale) + np.float32(0.5)))
            return ops.maximum(1, ops.cast(ops.cast(n, "float32") * scale + 0.5, "int32"))

        return tuple(map(shrunk, size))

    def preprocess(self, image: Tensor) -> Tensor:
        """Intensities scaled to [0, 1] by the volume's own range, each channel by its own, shrunk
        with anti-aliasing (section 3.1).

        Args:
          image: raw voxels (batch, depth, height, width, channels) float32. A constant volume
            becomes 0.

        Returns:
          (batch, *network_size, channels) float32.
        """
        axes = (1, 2, 3)
        low, high = (
            ops.min(image, axis=axes, keepdims=True),
            ops.max(image, axis=axes, keepdims=True),
        )
        image = (image - low) / ops.where(high > low, high - low, ops.ones_like(low))
        if self.configuration.same_grid:
            return image
        return layers.resize_linear(image, self.network_size(ops.shape(image)[1:4]))

    def preprocess_label(self, label: Tensor) -> Tensor:
        """Label (batch, depth, height, width, 1) on the network's grid, nearest neighbour."""
        if self.configuration.same_grid:
            return label
        return layers.resize_nearest(label, self.network_size(ops.shape(label)[1:4]))

    def postprocess(self, probability: Tensor, size: Size) -> dict[str, Tensor]:
        """Probability linearly resampled to the original grid, and the label: where it is above
        0.5.

        Args:
          probability: (batch, depth, height, width, 1) float32.
          size: spatial size of the original grid.

        Returns:
          {"probability": (batch, *size, 1) float32, "label": (batch, *size, 1) uint8}.
        """
        if not self.configuration.same_grid:
            probability = layers.resize_linear(probability, size)
        return {"probability": probability, "label": ops.cast(probability > 0.5, "uint8")}

    def joined(self, image: Tensor, context: Tensor) -> Tensor:
        """Input of a level: J(X, Y), equation 5. A sum adds the context, (batch, *spatial, 1), to
        every channel of the image."""
        if self.configuration.join == "sum":
            return image + context
        return ops.concatenate([image, context], axis=-1)

    def head(self, network: keras.Model, x: Tensor) -> Tensor:
        """Probability of the head in one pass of a level: (batch, *spatial, 1) float32.

        Args:
          network: a model of `self.network()`.
          x: volumes, patches or slices of `joined`, (batch, *spatial, channels) float32.
        """
        return ops.softmax(network(x, training=False)["logits"], axis=-1)[..., 1:]

    def probability(self, network: keras.Model, image: Tensor, context: Tensor) -> Tensor:
        """One level: head probability on the network's grid.

        Args:
          network: a model of `self.network()`.
          image: preprocessed volume (batch, depth, height, width, channels) float32.
          context: the last level's probability (batch, depth, height, width, 1) float32; zeros for
            level 1.

        Returns:
          (batch, depth, height, width, 1) float32.
        """

        def head(x: Tensor) -> Tensor:
            return self.head(network, x)

        def head_of_slice(image: Tensor) -> Tensor:
            return head(image[None])[0]

        x = self.joined(image, context)
        if edges := self.configuration.edges:
            # Half a patch, rounded down to whole pooling cells; the paper's 64 is shared by exactly
            # half.
            return tiling.tiled(head, x, edges, [edge // 16 * 8 for edge in edges])
        if self.configuration.view == "slices":
            shape = ops.shape(x)
            slices = ops.map(head_of_slice, ops.reshape(x, (-1, *shape[2:])))
            return ops.reshape(slices, (*shape[:4], 1))
        return head(x)

    def probabilities(self, networks: Iterable[keras.Model], image: Tensor) -> list[Tensor]:
        """`probability` of every level on the network's grid, level 1 first.

        Args:
          networks: one model per level.
          image: raw voxels (batch, depth, height, width, channels) float32.
        """
        x = self.preprocess(image)
        levels = [ops.zeros_like(x[..., :1])]
        for network in networks:
            levels.append(self.probability(network, x, levels[-1]))
        return levels[1:]

    def levels(self, networks: Iterable[keras.Model], image: Tensor) -> list[dict[str, Tensor]]:
        """`postprocess` of every level on the original grid; arguments as for `probabilities`."""
        size = ops.shape(image)[1:4]
        return [self.postprocess(p, size) for p in self.probabilities(networks, image)]

    def training_shape(self, size: Sequence[int]) -> tuple[int, ...]:
        """Spatial shape of what one training pass sees of a volume of spatial `size` on the
        network's grid.

        Raises:
          FieldError: a patch of p-USegNet of more than half the volume's edge: no patch network any
            more.
        """
        chosen = self.configuration
        if chosen.view == "slices":
            return tuple(size[1:])
        if chosen.edges and chosen.patch == WHOLE and 2 * chosen.patch_size > min(size):
            raise FieldError(
                "patch_size",
                chosen.patch_size,
                f"a training volume has {tuple(size)} voxels; expected at most half of each axis.",
            )
        return tuple(map(min, chosen.edges, size)) if chosen.edges else tuple(size)

    def training_patch(self) -> tuple[int | None, ...]:
        """Edges of what one training pass sees of a volume, at a random place; None, and an edge
        beyond the volume's: all of an axis."""
        whole = (1 if self.configuration.view == "slices" else None, None, None)
        return self.configuration.edges or whole

    @property
    def share(self) -> float:
        """Of the training patches that are drawn about a voxel of the head; the paper's p-USegNet
        has none."""
        return 0.0 if self.configuration.patch == WHOLE else ABOUT_HEAD
