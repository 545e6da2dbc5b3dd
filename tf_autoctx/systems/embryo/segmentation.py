"""How the embryo system segments a volume (Xu et al. 2020, "Deep Mouse: An End-to-end Auto-context
Refinement Framework for Brain Ventricle & Body Segmentation in Embryonic Mice Ultrasound Volumes").

Three VNets are joined by localisation-auto-context modules: VNet I sees the whole volume at low
resolution; VNets II and III see the original resolution in a box around what VNet I segmented,
together with its probability there. Everything that changes voxel values is here, in Keras ops:
training, prediction and the exported graph run the very same functions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops

from tf_autoctx.models import layers
from tf_autoctx.models.embryo import embryo
from tf_autoctx.systems.embryo.configuration import Embryo

Tensor = Any  # of whatever backend
Size = Sequence[Any]  # spatial size, integers or integer tensors


class Refinement:
    """An initial segmentation of the whole volume, refined in a box around each structure.

    Attributes:
      configuration: what the networks are and what they see.
      labels: {label value: name} of the body and of the ventricle, in this order.
      channels: of a volume.

    Raises:
      ValueError: other than two label values from 1 to 255.
    """

    def __init__(self, configuration: Embryo, labels: Mapping[int, str], channels: int = 1) -> None:
        if len(labels) != 2 or not all(0 < value < 256 for value in labels):
            raise ValueError(
                f"labels={labels}: expected two values from 1 to 255, the body's and the "
                "ventricle's."
            )
        self.configuration, self.labels = configuration, dict(labels)
        self.channels = channels

    def network(self, stage: str) -> keras.Model:
        """A new network of a stage of `STAGES`, under the current Keras dtype policy: VNet I, or
        the whole cascade."""
        chosen = self.configuration
        whole = embryo(
            low_size=chosen.low_size,
            body_box=chosen.body_box,
            ventricle_box=chosen.ventricle_box,
            channels=self.channels,
            auto_context=chosen.auto_context,
            end_to_end=stage == "end_to_end",
            vnets=chosen.vnet,
        )
        if stage == "initial":
            return keras.Model(whole.input, {"initial": whole.output["initial"]}, name="initial")
        return whole

    def preprocess(self, image: Tensor) -> Tensor:
        """Intensities divided by the volume's root mean square, of each channel by its own: fluid
        stays near 0, whatever the scanner's gain.

        Args:
          image: raw voxels (batch, depth, height, width, channels) float32. An empty volume stays
            0.

        Returns:
          The same shape, float32.
        """
        square = ops.mean(ops.square(image), axis=(1, 2, 3), keepdims=True)
        return image * ops.rsqrt(ops.where(square > 0, square, ops.ones_like(square)))

    def low_label(self, label: Tensor) -> Tensor:
        """Class indices (batch, depth, height, width, 1) on VNet I's grid, nearest neighbour."""
        return layers.resize_nearest(label, (self.configuration.low_size,) * 3)

    def prediction(self, network: keras.Model, image: Tensor) -> tuple[Tensor, Tensor]:
        """`classified` outputs for a preprocessed volume (batch, depth, height, width,
        channels)."""
        return self.classified(self.outputs(network, image), ops.shape(image)[1:4])

    def outputs(self, network: keras.Model, image: Tensor) -> dict[str, Tensor]:
        """What a network makes of a preprocessed volume.

        Args:
          network: of any stage.
          image: (batch, depth, height, width, channels).

        Returns:
          {"refined": probability of body and ventricle, by VNets II and III (batch, depth, height,
          width, 2) float32}; of the initial stage {"initial": that of the three classes, by VNet I
          (batch, low_size, low_size, low_size, 3)}.
        """
        outputs = network(image, training=False)
        if "body" not in outputs:
            return {"initial": outputs["initial"]}
        refined = ops.concatenate([outputs["body"], outputs["ventricle"]], axis=-1)
        return {"refined": refined}

    def classified(self, outputs: Mapping[str, Tensor], size: Size) -> tuple[Tensor, Tensor]:
        """Probability and class of every voxel on the original grid, of spatial `size`.

        Args:
          outputs: of `outputs`.

        Returns:
          (probability of body and ventricle (batch, *size, 2) float32, classes (batch, *size, 1)
          uint8): `classes` of VNets II and III, or the most probable class of VNet I.
        """
        if "refined" in outputs:
            return outputs["refined"], self.classes(outputs["refined"])
        probability = layers.resize_linear(outputs["initial"], size)
        return probability[..., 1:], ops.cast(ops.argmax(probability, axis=-1)[..., None], "uint8")

    def classes(self, probability: Tensor) -> Tensor:
        """0, 1 (body) or 2 (ventricle) of each voxel: above 0.5, and the ventricle where both are,
        as it lies inside.

        Args:
          probability: (batch, depth, height, width, 2).

        Returns:
          (batch, depth, height, width, 1) uint8.
        """
        body, ventricle = ops.split(probability > 0.5, 2, axis=-1)
        return ops.cast(ops.where(ventricle, 2, ops.cast(body, "int32")), "uint8")

    def postprocess(self, outputs: Mapping[str, Tensor], size: Size) -> dict[str, Tensor]:
        """What is served for a raw volume; arguments as for `classified`.

        Returns:
          {"label": (batch, *size, 1) uint8, label values of both; "body", "ventricle": likewise, 1
          where it is; "probability": (batch, *size, 2) float32, body and ventricle}.
        """
        probability, classes = self.classified(outputs, size)
        values = ops.convert_to_tensor([0, *self.labels], "uint8")
        label = ops.take(values, ops.cast(classes, "int32"))
        return {"label": label, **self.masks(label), "probability": probability}

    def masks(self, label: Tensor) -> dict[str, Tensor]:
        """{"body", "ventricle": 1 where it is} of a label of both, uint8."""
        named = zip(("body", "ventricle"), self.labels)
        return {name: ops.cast(label == value, "uint8") for name, value in named}
