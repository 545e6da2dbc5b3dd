"""How much memory the training of a network takes, from what it is made of."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import keras
from keras import tree

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


def cost(network: keras.Model) -> Cost:
    """What a network costs that is made for samples of `SIZE`, by the dtypes that it computes in:
    what its layers put out is kept for the gradient, `FACTOR` times as much is needed."""
    outputs = sum(_bytes(tensor) for tensor in _outputs(network))
    weights = sum(math.prod(weight.shape) for weight in network.trainable_weights)
    return Cost(BYTES_OF_WEIGHT * weights, FACTOR * outputs / math.prod(SIZE))


def _outputs(network: keras.Model) -> Iterator[Any]:
    """What the layers of a network put out, and those of the networks within."""
    for layer in network.layers:
        if isinstance(layer, keras.Model):
            yield from _outputs(layer)
        else:
            yield from tree.flatten(layer.output)


def _bytes(tensor: keras.KerasTensor) -> int:
    """Of one sample."""
    return math.prod(tensor.shape[1:]) * (2 if tensor.dtype in ("bfloat16", "float16") else 4)
