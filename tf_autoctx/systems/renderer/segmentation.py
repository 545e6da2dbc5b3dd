"""How the renderer system segments an image (Yang et al. 2018, "Generalizing Deep Models for
Ultrasound Image Segmentation").

An image of a scanner that was never learnt is rendered until it looks like the source corpus to
three discriminators, and then segmented. Everything that changes pixel values is here, in Keras
ops: training, prediction and the exported graph run the very same functions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops

from tf_autoctx.models import layers
from tf_autoctx.models.renderer import discriminator, renderer, segmentor2d
from tf_autoctx.systems.renderer.configuration import DISCRIMINATORS, Renderer

Tensor = Any  # of whichever backend
Networks = Mapping[str, keras.Model]  # by name


class Rendering:
    """Renderer and segmentor, one after the other, with the discriminators that they learn from.

    Attributes:
      configuration: what the networks are and which size they see.
    """

    def __init__(self, configuration: Renderer) -> None:
        self.configuration = configuration

    def networks(self) -> dict[str, keras.Model]:
        """{name: new network} of the variant, under the current Keras dtype policy."""
        chosen = self.configuration
        common: dict[str, Any] = {
            "size": chosen.size or None,
            "base_filters": chosen.base_filters,
            "initializer": chosen.initializer,
            "bias": chosen.bias,
        }
        networks = {"renderer": renderer(**common)} if chosen.renders else {}
        networks["segmentor"] = segmentor2d(**common)
        for name in chosen.discriminators:
            channels, head = DISCRIMINATORS[name], chosen.discriminator_head
            networks[name] = discriminator(channels, head=head, name=name, **common)
        return networks

    def preprocess(self, image: Tensor) -> Tensor:
        """Grey levels from 0 to 255 as the networks see them, resized with anti-aliasing.

        Args:
          image: (batch, height, width, 1).

        Returns:
          (batch, size, size, 1) float32, from 0 to 1.
        """
        size = self.configuration.size
        image = ops.cast(image, "float32") / 255
        return layers.resize_linear(image, (size, size)) if size else image

    def preprocess_label(self, label: Tensor) -> Tensor:
        """Label (batch, height, width, 1) at the size of `preprocess`, nearest neighbour."""
        size = self.configuration.size
        return layers.resize_nearest(label, (size, size)) if size else label

    def outputs(self, networks: Networks, image: Tensor) -> dict[str, Tensor]:
        """What the networks make of preprocessed images, with moving statistics in batch norm.

        Args:
          networks: "segmentor" and, where the variant has it, "renderer" are run.
          image: (batch, height, width, 1) float32.

        Returns:
          {"rendered", "probability": (batch, height, width, 1) float32}; without a renderer, the
          image is "rendered".
        """
        rendered = image
        if self.configuration.renders:
            rendered = networks["renderer"](image, training=False)["rendered"]
        logits = networks["segmentor"](rendered, training=False)["logits"]
        return {"rendered": rendered, "probability": ops.softmax(logits, axis=-1)[..., 1:]}

    def postprocess(self, outputs: Mapping[str, Tensor], size: Sequence[Any]) -> dict[str, Tensor]:
        """`outputs` on the original grid, in its grey levels.

        Args:
          outputs: {"rendered", "probability": (batch, height, width, 1) float32}.
          size: spatial size of the original images.

        Returns:
          {"rendered": (batch, *size, 1) float32, mostly from 0 to 255, "probability": (batch,
          *size, 1) float32, "label": (batch, *size, 1) uint8, where it is above 0.5}.
        """
        if self.configuration.size:
            outputs = {name: layers.resize_linear(x, size) for name, x in outputs.items()}
        rendered, probability = 255 * outputs["rendered"], outputs["probability"]
        return {
            "rendered": rendered,
            "probability": probability,
            "label": ops.cast(probability > 0.5, "uint8"),
        }
