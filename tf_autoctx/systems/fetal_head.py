"""Whole fetal head in 3D ultrasound: USegNet-DS-HAS-Ctx (Yang et al. 2019, "Hybrid Attention for Automatic
Segmentation of Whole Fetal Head in Prenatal Ultrasound Volumes").

Level k of the auto-context cascade sees the volume joined with the head probability of level k - 1, on the same grid
(section 2.5). Everything that changes voxel values is here, in Keras ops: training, prediction and the exported graph
run the very same functions.
"""

import dataclasses

import numpy as np
from keras import ops

from tf_autoctx import models
from tf_autoctx.errors import UserError
from tf_autoctx.models import layers
from tf_autoctx.models.usegnet import VARIANTS
from tf_autoctx.systems import tiling

NAME = "fetal_head"
STRUCTURE = "head"
# What a client should know of the export beside dtypes and shapes.
SERVED = {
    "image": {
        "range": None,
        "units": "raw intensities; each volume is scaled by its own smallest and largest",
        "rule": "any size; the volume's own grid",
    },
    "label": {"range": [0, 1], "meaning": "1 where the head's probability is above 0.5"},
    "probability": {"range": [0, 1], "meaning": "of the head"},
}

# Rows of tables 1 and 2 that are a way of running a network rather than a network of their own.
WAYS = {
    "USegNet-DS-HAS-Ctx": ("USegNet-DS-HAS", "volume"),
    "p-USegNet": ("USegNet", "patches"),
    "2D-USegNet": ("USegNet", "slices"),
}

# Flag values by name; the command line wins. "paper" holds every constant of the paper and of the authors' code.
PRESETS = {
    "demo": {
        "base_filters": 16,
        "patch_size": 32,
        "steps": 900,
        "samples_per_epoch": 180,
        "validation_fraction": 0.1,
        "learning_rate": 1e-3,
        "learning_rate_decay": "polynomial",
        # A phantom's probe is always above the head: mirrored shadows would only have to be unlearnt.
        "flips": False,
        "erase_probability": 0.3,
    },
    "standard": {
        "steps": 2000,
        "samples_per_epoch": 250,
        "learning_rate": 1e-3,
        "learning_rate_decay": "polynomial",
        "erase_probability": 0.3,
        "intensity_jitter": 0.1,
    },
    "paper": {
        "variant": "USegNet-DS-HAS-Ctx",
        "level": 2,
        "join": "sum",
        "scale": 0.4,
        "normalization": "instance",
        "attention_kernel": "paper",
        "initializer": "paper",
        "base_filters": 32,
        "patch_size": 64,
        "batch_size": 1,
        "steps": 30 * 2112,
        "samples_per_epoch": 2112,
        "learning_rate": 1e-5,
        "learning_rate_decay": "constant",
        "beta_1": 0.5,
        "l2": 0.0,
        "flips": True,
        # 600 volumes of flips and half-turns became 2112 by erasing, so 1512 of 2112 are erased.
        "erase_probability": 1512 / 2112,
        "shift": 0,
        "intensity_jitter": 0.0,
        "patience": 0,
        "phantom_size": [388, 258, 440],
        "phantom_cases": [50, 50],
    },
}


@dataclasses.dataclass(frozen=True)
class FetalHead:
    """The system's configuration, one field a flag of the same name, and how a volume is segmented.

    Attributes:
      variant: a row of tables 1 and 2: of `models.usegnet`, or "USegNet-DS-HAS-Ctx" (the same network as
        "USegNet-DS-HAS"; levels make the context), "p-USegNet" (patches of the original grid) or "2D-USegNet" (its
        slices).
      join: "sum" of volume and probability (paper) or "concat" as channels.
      scale: factor on every axis from the original grid to the network's; "p-" and "2D-" work on the original grid.
      patch_size: edge of a "p-USegNet" patch in voxels, a multiple of 8.
      base_filters, normalization, initializer, attention_kernel: see `models.usegnet`.

    Raises:
      ValueError: a value out of range (the message names the field).
    """

    variant: str = "USegNet-DS-HAS-Ctx"
    join: str = "sum"
    scale: float = 0.4
    patch_size: int = 64
    base_filters: int = 32
    normalization: str = "instance"
    initializer: str = "he"
    attention_kernel: str = "paper"

    def __post_init__(self):
        if self.variant not in (*VARIANTS, *WAYS):
            raise ValueError(
                f"variant={self.variant!r}: expected one of {', '.join((*VARIANTS, *WAYS))}."
            )
        if self.join not in ("sum", "concat"):
            raise ValueError(f"join={self.join!r}: expected 'sum' or 'concat'.")
        if not 0 < self.scale <= 1:
            raise ValueError(f"scale={self.scale}: expected a factor in (0, 1].")
        if self.patch_size < 8 or self.patch_size % 8:
            raise ValueError(f"patch_size={self.patch_size}: expected a positive multiple of 8.")

    @property
    def view(self):
        """What one pass of the network sees: the "volume", "patches" or "slices" of it."""
        return WAYS.get(self.variant, (self.variant, "volume"))[1]

    @property
    def same_grid(self):
        """Whether the network works on the original grid."""
        return self.view != "volume" or self.scale == 1

    def network(self):
        """A new network of one level, under the current Keras dtype policy."""
        channels = 2 if self.join == "concat" else 1
        spatial = (None, None) if self.view == "slices" else (None, None, None)
        return models.usegnet(
            (*spatial, channels),
            WAYS.get(self.variant, (self.variant,))[0],
            base_filters=self.base_filters,
            attention_kernel=self.attention_kernel,
            normalization=self.normalization,
            initializer=self.initializer,
        )

    def network_size(self, size):
        """Spatial size on the network's grid of a volume of spatial `size` (integers or integer tensors)."""
        # Float32 for both, or a known and an unknown size could round differently.
        return tuple(
            (
                max(1, int(np.float32(n) * np.float32(self.scale) + np.float32(0.5)))
                if isinstance(n, int)
                else ops.maximum(1, ops.cast(ops.cast(n, "float32") * self.scale + 0.5, "int32"))
            )
            for n in size
        )

    def preprocess(self, image):
        """Intensities scaled to [0, 1] by the volume's own range, shrunk with anti-aliasing (section 3.1).

        Args:
          image: raw voxels (batch, depth, height, width, 1) float32. A constant volume becomes 0.

        Returns:
          (batch, *network_size, 1) float32.
        """
        low, high = (
            ops.min(image, axis=(1, 2, 3, 4), keepdims=True),
            ops.max(image, axis=(1, 2, 3, 4), keepdims=True),
        )
        image = (image - low) / ops.where(high > low, high - low, ops.ones_like(low))
        return (
            image
            if self.same_grid
            else layers.resize_linear(image, self.network_size(ops.shape(image)[1:4]))
        )

    def preprocess_label(self, label):
        """Label (batch, depth, height, width, 1) shrunk to the network's grid, nearest neighbour."""
        return (
            label
            if self.same_grid
            else layers.resize_nearest(label, self.network_size(ops.shape(label)[1:4]))
        )

    def postprocess(self, probability, size):
        """Probability linearly resampled to the original grid, and the label: where it is above 0.5.

        Args:
          probability: (batch, depth, height, width, 1) float32.
          size: spatial size of the original grid.

        Returns:
          {"probability": (batch, *size, 1) float32, "label": (batch, *size, 1) uint8}.
        """
        if not self.same_grid:
            probability = layers.resize_linear(probability, size)
        return {"probability": probability, "label": ops.cast(probability > 0.5, "uint8")}

    def joined(self, image, context):
        """Input of a level: J(X, Y), equation 5. Both (batch, *spatial, 1)."""
        return image + context if self.join == "sum" else ops.concatenate([image, context], axis=-1)

    def probability(self, network, image, context):
        """One level: head probability on the network's grid.

        Args:
          network: a model of `self.network()`.
          image, context: preprocessed volume and the last level's probability (zeros for level 1), (batch, depth,
            height, width, 1) float32.

        Returns:
          (batch, depth, height, width, 1) float32.
        """

        def head(x):
            return ops.softmax(network(x, training=False)["logits"], axis=-1)[..., 1:]

        x = self.joined(image, context)
        if self.view == "patches":
            # Half a patch, rounded down to whole pooling cells; the paper's 64 is shared by exactly half.
            return tiling.tiled(head, x, self.patch_size, self.patch_size // 16 * 8)
        if self.view == "slices":
            shape = ops.shape(x)
            slices = ops.map(lambda image: head(image[None])[0], ops.reshape(x, (-1, *shape[2:])))
            return ops.reshape(slices, (*shape[:4], 1))
        return head(x)

    def cascade(self, networks, image):
        """What every level answers on the original grid, level 1 first: a list of `postprocess`.

        Args:
          networks: one model a level.
          image: raw voxels (batch, depth, height, width, 1) float32.
        """
        size, x = ops.shape(image)[1:4], self.preprocess(image)
        context, answers = ops.zeros_like(x), []
        for network in networks:
            context = self.probability(network, x, context)
            answers.append(self.postprocess(context, size))
        return answers

    def segment(self, networks, image):
        """The last level's answer of `cascade`: what is served."""
        return self.cascade(networks, image)[-1]

    def training_shape(self, size):
        """Spatial shape of what one training pass sees of a volume of spatial `size` on the network's grid.

        Raises:
          UserError: a patch of more than half the volume's edge: no patch network any more.
        """
        if self.view == "patches" and 2 * self.patch_size > min(size):
            raise UserError(
                f"--patch_size={self.patch_size}: a training volume has {tuple(size)} voxels; expected at most half of each axis."
            )
        return {
            "volume": tuple(size),
            "patches": (self.patch_size,) * 3,
            "slices": tuple(size[1:]),
        }[self.view]

    def training_view(self, sample, random_patch):
        """What one training pass sees of a sample: all of it, a random patch or a random slice.

        Args:
          sample: {name: (depth, height, width, 1)}.
          random_patch: (sample, size) -> sample, cut at a random place; None in a size keeps an axis.
        """
        if self.view == "patches":
            return random_patch(sample, (self.patch_size,) * 3)
        if self.view == "slices":
            return {
                name: tensor[0] for name, tensor in random_patch(sample, (1, None, None)).items()
            }
        return sample
