"""Mouse embryo body and brain ventricle in 3D high-frequency ultrasound: three VNets joined by localisation-auto-context
modules (Xu et al. 2020, "Deep Mouse: An End-to-end Auto-context Refinement Framework for Brain Ventricle & Body
Segmentation in Embryonic Mice Ultrasound Volumes").

VNet I sees the whole volume at low resolution; VNets II and III see the original resolution in a box around what it
found, together with its probability there.
"""

import dataclasses

import keras
from keras import ops

from tf_autoctx import models
from tf_autoctx.models import layers

NAME = "embryo"
# Section 2.3-2.4: each stage starts from the networks of the one before.
STAGES = ("initial", "refine", "end_to_end")
# What a client should know of the export beside dtypes and shapes.
SERVED = {
    "image": {
        "range": None,
        "units": "raw intensities, 0 in fluid; each volume is divided by its own root mean square",
        "rule": "any size; the volume's own grid",
    },
    "label": {"range": [0, 255], "meaning": "value of the structure, see labels; 0: background"},
    "body": {"range": [0, 1], "meaning": "1 where the body is"},
    "ventricle": {"range": [0, 1], "meaning": "1 where the ventricle is"},
    "probability": {"range": [0, 1], "meaning": "of the body, then of the ventricle"},
}

# Flag values by name; the command line wins. "paper" holds every constant of the paper.
PRESETS = {
    "demo": {
        "low_size": 32,
        "body_box": 64,
        "ventricle_box": 32,
        "base_filters": 8,
        "depth": 4,
        "kernel": 3,
        "steps": 600,
        "samples_per_epoch": 300,
        "validation_fraction": 0.1,
        "learning_rate": 1e-2,
        "learning_rate_decay": "polynomial",
        "shift": 6,
    },
    "standard": {
        "steps": 10_000,
        "samples_per_epoch": 500,
        "learning_rate": 1e-2,
        "learning_rate_decay": "polynomial",
    },
    "paper": {
        "low_size": 160,
        "body_box": 256,
        "ventricle_box": 160,
        "auto_context": True,
        "base_filters": 16,
        "depth": 5,
        "kernel": 5,
        "steps": 37_000,  # not given: 200 epochs of 185 volumes
        "samples_per_epoch": 185,
        "validation_fraction": 0.0,
        "batch_size": 1,
        "learning_rate": 1e-2,
        "end_to_end_learning_rate": 1e-3,
        "learning_rate_decay": "constant",
        "rotation": 180.0,
        "shift": 30,
        "flips": True,
        "patience": 0,
    },
}


@dataclasses.dataclass(frozen=True)
class Embryo:
    """The system's configuration, one field a flag of the same name but for `labels`, and how a volume is segmented.

    Attributes:
      labels: {label value: name} of the body and of the ventricle, in this order.
      low_size: edge of the cube that VNet I sees the whole volume in.
      body_box, ventricle_box: edges of the boxes in voxels of the original grid.
      auto_context: whether VNets II and III see VNet I's probability beside the image.
      base_filters, depth, kernel, normalization, initializer: see `models.vnet`.

    Raises:
      ValueError: a value out of range (the message names the field).
    """

    labels: dict[int, str]
    low_size: int = 160
    body_box: int = 256
    ventricle_box: int = 160
    auto_context: bool = True
    base_filters: int = 16
    depth: int = 5
    kernel: int = 5
    normalization: str = "instance"
    initializer: str = "he"

    def __post_init__(self):
        if len(self.labels) != 2 or not all(0 < value < 256 for value in self.labels):
            raise ValueError(
                f"labels={self.labels}: expected two values from 1 to 255, the body's and the ventricle's."
            )
        for name in ("low_size", "body_box", "ventricle_box"):
            if getattr(self, name) < 8:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 8 voxels.")

    def network(self, stage):
        """A new network of a stage of `STAGES`, under the current Keras dtype policy: VNet I, or the whole cascade."""
        whole = models.embryo(
            low_size=self.low_size,
            body_box=self.body_box,
            ventricle_box=self.ventricle_box,
            auto_context=self.auto_context,
            end_to_end=stage == "end_to_end",
            base_filters=self.base_filters,
            depth=self.depth,
            kernel=self.kernel,
            normalization=self.normalization,
            initializer=self.initializer,
        )
        if stage == "initial":
            return keras.Model(whole.input, {"initial": whole.output["initial"]}, name="initial")
        return whole

    def preprocess(self, image):
        """Intensities divided by the volume's root mean square: fluid stays near 0, whatever the scanner's gain.

        Args:
          image: raw voxels (batch, depth, height, width, 1) float32. An empty volume stays 0.

        Returns:
          The same shape, float32.
        """
        square = ops.mean(ops.square(image), axis=(1, 2, 3, 4), keepdims=True)
        return image * ops.rsqrt(ops.where(square > 0, square, ops.ones_like(square)))

    def low_label(self, label):
        """Class indices (batch, depth, height, width, 1) on VNet I's grid, nearest neighbour."""
        return layers.resize_nearest(label, (self.low_size,) * 3)

    def answer(self, network, image):
        """Probability and class of every voxel on the original grid.

        Args:
          network: of any stage.
          image: a preprocessed volume (batch, depth, height, width, 1).

        Returns:
          (probability of body and ventricle (batch, depth, height, width, 2) float32, classes (batch, depth, height,
          width, 1) uint8): `classes` of VNets II and III, or the most probable class of VNet I.
        """
        answer = network(image, training=False)
        if "body" in answer:
            probability = ops.concatenate([answer["body"], answer["ventricle"]], axis=-1)
            return probability, self.classes(probability)
        probability = layers.resize_linear(answer["initial"], ops.shape(image)[1:4])
        return probability[..., 1:], ops.cast(ops.argmax(probability, axis=-1)[..., None], "uint8")

    def classes(self, probability):
        """0, 1 (body) or 2 (ventricle) of each voxel: above 0.5, and the ventricle where both are, as it lies inside.

        Args: probability (batch, depth, height, width, 2). Returns (batch, depth, height, width, 1) uint8.
        """
        body, ventricle = ops.split(probability > 0.5, 2, axis=-1)
        return ops.cast(ops.where(ventricle, 2, ops.cast(body, "int32")), "uint8")

    def segment(self, network, image):
        """What is served for a raw volume.

        Args:
          network: of any stage.
          image: raw voxels (batch, depth, height, width, 1) float32.

        Returns:
          {"label": (batch, depth, height, width, 1) uint8, label values of both; "body", "ventricle": likewise, 1 where
          it is; "probability": (batch, depth, height, width, 2) float32, body and ventricle}.
        """
        probability, classes = self.answer(network, self.preprocess(image))
        values = ops.convert_to_tensor([0, *self.labels], "uint8")
        return {
            "label": ops.take(values, ops.cast(classes, "int32")),
            "body": ops.cast(classes == 1, "uint8"),
            "ventricle": ops.cast(classes == 2, "uint8"),
            "probability": probability,
        }
