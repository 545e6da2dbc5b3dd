"""Fetal head in 2D ultrasound of a scanner that was never learnt: an image is rendered until it looks like the source
corpus to three discriminators, and then segmented (Yang et al. 2018, "Generalizing Deep Models for Ultrasound Image
Segmentation").
"""

import dataclasses

from keras import ops

from tf_autoctx import models
from tf_autoctx.models import layers
from tf_autoctx.models.renderer import HEADS

NAME = "renderer"
STRUCTURE = "head"
DISCRIMINATORS = {"d_app": 1, "d_struct": 1, "d_pair": 2}  # {name: channels}
# What a client should know of the export beside dtypes and shapes.
SERVED = {
    "image": {"range": [0, 255], "units": "grey levels", "rule": "any size; the image's own grid"},
    "rendered": {
        "range": None,
        "units": "grey levels, mostly from 0 to 255",
        "meaning": "image in the source's look",
    },
    "label": {"range": [0, 1], "meaning": "1 where the head's probability is above 0.5"},
    "probability": {"range": [0, 1], "meaning": "of the head"},
}

# Rows of table 1 and the networks that they have. Orig-T2T is Orig-S2T trained on the target corpus.
VARIANTS = {
    "S2T": ("renderer", "segmentor", "d_app", "d_struct", "d_pair"),
    "S2T-p": ("renderer", "segmentor", "d_app", "d_struct"),
    "S2T-sp": ("renderer", "segmentor", "d_app"),
    "Orig-S2T": ("segmentor",),
    "Orig-T2T": ("segmentor",),
}

# Flag values by name; the command line wins. "paper" holds every constant of the paper and of the authors' code.
PRESETS = {
    "demo": {
        "size": 96,
        "base_filters": 8,
        "steps": 600,
        "samples_per_epoch": 200,
        "batch_size": 2,
        "beta_1": 0.5,
        "learning_rate": 1e-3,
        "learning_rate_decay": "constant",
        "validation_fraction": 0.1,
        "dice_weight": 10.0,
    },
    "standard": {
        "steps": 6000,
        "samples_per_epoch": 1000,
        "batch_size": 2,
        "beta_1": 0.5,
        "learning_rate": 1e-3,
        "learning_rate_decay": "constant",
    },
    "paper": {
        "size": 320,
        "base_filters": 32,
        "discriminator_head": "flatten",
        "initializer": "truncated_normal",
        "steps": 6000,
        "samples_per_epoch": 900,
        "validation_fraction": 0.0,
        "batch_size": 2,
        "learning_rate": 1e-3,
        "learning_rate_decay": "constant",
        "beta_1": 0.5,
        "generator_updates": 2,
        "dice_weight": 100.0,
        "patience": 0,
    },
}


@dataclasses.dataclass(frozen=True)
class Renderer:
    """The system's configuration, one field a flag of the same name, and how an image is rendered and segmented.

    Attributes:
      variant: of `VARIANTS`.
      size: edge in pixels that images are resized to; 0 keeps each at its own size, with the head "pool" alone.
      base_filters, initializer: see `models.renderer`.
      discriminator_head: see `models.discriminator`.

    Raises:
      ValueError: a value out of range (the message names the field).
    """

    variant: str = "S2T"
    size: int = 320
    base_filters: int = 32
    discriminator_head: str = "scaled"
    initializer: str = "truncated_normal"

    def __post_init__(self):
        if self.variant not in VARIANTS:
            raise ValueError(f"variant={self.variant!r}: expected one of {', '.join(VARIANTS)}.")
        if self.discriminator_head not in HEADS:
            raise ValueError(
                f"discriminator_head={self.discriminator_head!r}: expected one of {', '.join(HEADS)}."
            )
        if self.size < 0 or 0 < self.size < 8:
            raise ValueError(
                f"size={self.size}: expected at least 8 pixels, or 0 for images at their own size."
            )
        if not self.size and self.discriminator_head != "pool" and self.discriminators:
            raise ValueError(
                "size=0: images of any size need discriminator_head=pool; expected a size or that head."
            )

    @property
    def discriminators(self):
        """Names of the discriminators that the variant has."""
        return [name for name in VARIANTS[self.variant] if name in DISCRIMINATORS]

    @property
    def renders(self):
        """Whether the variant has a renderer."""
        return "renderer" in VARIANTS[self.variant]

    def networks(self):
        """{name: new network} of the variant, under the current Keras dtype policy."""
        given = {
            "size": self.size or None,
            "base_filters": self.base_filters,
            "initializer": self.initializer,
        }
        made = {"renderer": models.renderer(**given)} if self.renders else {}
        made["segmentor"] = models.segmentor2d(**given)
        for name in self.discriminators:
            made[name] = models.discriminator(
                DISCRIMINATORS[name], head=self.discriminator_head, name=name, **given
            )
        return made

    def preprocess(self, image):
        """Grey levels (batch, height, width, 1) from 0 to 255 -> (batch, size, size, 1) float32 from 0 to 1."""
        image = ops.cast(image, "float32") / 255
        return layers.resize_linear(image, (self.size,) * 2) if self.size else image

    def preprocess_label(self, label):
        """Label (batch, height, width, 1) at the size of `preprocess`, nearest neighbour."""
        return layers.resize_nearest(label, (self.size,) * 2) if self.size else label

    def answer(self, networks, image):
        """What the networks make of preprocessed images.

        Args:
          networks: {name: network}; "segmentor" and, where the variant has it, "renderer" are run.
          image: (batch, height, width, 1) float32.

        Returns:
          {"rendered", "probability": (batch, height, width, 1) float32}; without a renderer, the image is "rendered".
        """
        rendered = (
            networks["renderer"](image, training=False)["rendered"] if self.renders else image
        )
        logits = networks["segmentor"](rendered, training=False)["logits"]
        return {"rendered": rendered, "probability": ops.softmax(logits, axis=-1)[..., 1:]}

    def postprocess(self, answer, size):
        """An `answer` on the original grid, in its grey levels.

        Args:
          answer: {"rendered", "probability": (batch, height, width, 1) float32}.
          size: spatial size of the original images.

        Returns:
          {"rendered": (batch, *size, 1) float32, mostly from 0 to 255, "probability": (batch, *size, 1) float32,
          "label": (batch, *size, 1) uint8, where it is above 0.5}.
        """
        if self.size:
            answer = {name: layers.resize_linear(x, size) for name, x in answer.items()}
        rendered, probability = 255 * answer["rendered"], answer["probability"]
        return {
            "rendered": rendered,
            "probability": probability,
            "label": ops.cast(probability > 0.5, "uint8"),
        }

    def segment(self, networks, image):
        """What is served: `postprocess` of the `answer` for raw images (batch, height, width, 1), grey levels."""
        return self.postprocess(
            self.answer(networks, self.preprocess(image)), ops.shape(image)[1:3]
        )
