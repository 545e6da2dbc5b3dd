"""How much memory the training of a network takes, from what it is made of."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import tree

from tf_autoctx.models import rematerialization

# Of a network whose cost is looked at: no resolution of it pads.
SIZE = (32, 32, 32)
# Every weight has a gradient and two moving averages of Adam, all of them float32.
BYTES_OF_WEIGHT = 16
# Memory of a step as a multiple of what all layers put out: measured, see docs/planning.md.
FACTOR = 1.5


@dataclasses.dataclass(frozen=True)
class Cost:
    """Memory of a training step.

    Attributes:
      weights: bytes, whatever a sample is.
      voxel: bytes a voxel of a sample.
    """

    weights: int
    voxel: float

    def of(self, size: Sequence[int], samples: int = 1) -> float:
        """Bytes of a step on so many samples of a spatial size."""
        return self.weights + self.voxel * samples * math.prod(size)


def cost(network: keras.Model, rematerialize: bool = False) -> Cost:
    """What a network costs that is made for samples of `SIZE`, by the dtypes that it computes in:
    what its layers put out is kept for the gradient, `FACTOR` times as much is needed.

    With `rematerialize` what its blocks put out is kept, and what is within the largest of them.
    """
    outputs = sum(_of_blocks(network)) if rematerialize else _of_layers(network)
    weights = sum(math.prod(weight.shape) for weight in network.trainable_weights)
    return Cost(BYTES_OF_WEIGHT * weights, FACTOR * outputs / math.prod(SIZE))


def _of_layers(network: keras.Model) -> int:
    """Bytes of what the layers of a network put out, and those of the networks within."""
    return sum(
        _of_layers(layer) if isinstance(layer, keras.Model) else _bytes(layer.output)
        for layer in network.layers
    )


def _of_blocks(network: keras.Model) -> tuple[int, int]:
    """Bytes of what is kept of a network whose blocks are computed again, and of the layers within
    the largest block."""
    kept, largest = _bytes(network.inputs), 0
    for part in rematerialization.parts(network):
        if part.is_block:
            kept, largest = kept + _bytes(part.outputs), max(largest, _of_layers(part.model))
            continue
        for layer in part.model.layers:
            if isinstance(layer, keras.Model):
                of_layer, within = _of_blocks(layer)
                kept, largest = kept + of_layer, max(largest, within)
            elif not isinstance(layer, keras.layers.InputLayer):
                kept += _bytes(layer.output)
    return kept, largest


def _bytes(tensors: Any) -> int:
    """Of one sample."""
    return sum(
        math.prod(x.shape[1:]) * (2 if x.dtype in ("bfloat16", "float16") else 4)
        for x in tree.flatten(tensors)
    )
