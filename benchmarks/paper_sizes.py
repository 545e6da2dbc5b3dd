"""Whether the networks of the presets `paper` can be those of the papers, by their own seconds and
memory: arithmetic of a volume or image at the peak of the papers' cards, and memory of a step.

  python benchmarks/paper_sizes.py > sizes.txt

A paper's network needs at least the time that its convolutions take at the peak of its card, and no
more memory than the card has. What a step takes lies between what all layers put out, and 1.5 times
as much, which was measured here (docs/planning.md). Nothing is computed but sizes, in a minute.
"""

from __future__ import annotations

import dataclasses
import math
import os

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import keras

from tf_autoctx.models import memory
from tf_autoctx.models.localiser import localiser
from tf_autoctx.models.options import VNetOptions
from tf_autoctx.models.renderer import renderer, segmentor2d
from tf_autoctx.models.unet3d import unet3d
from tf_autoctx.models.usegnet import usegnet
from tf_autoctx.models.vnet import vnet
from tf_autoctx.report import tables

# Single precision at boost clock, TFLOP/s, and memory, GiB: NVIDIA's data sheets.
CARDS = {
    "TITAN X": (6.7, 12),
    "2 x P40": (23.5, 48),
    "P40": (11.8, 24),
    "P6000": (12.6, 24),
    "TITAN Xp": (12.1, 12),
}
HEAD = (155, 103, 176)  # 388 x 258 x 440 voxels, shrunk by 0.4
CT = (600, 512, 512)  # the paper's have 460 to 1177 slices


@dataclasses.dataclass(frozen=True)
class Size:
    """A row.

    Attributes:
      name: of what is computed.
      card: of `CARDS`.
      tflop: of a prediction.
      seconds: of a prediction in the paper, in words.
      bytes: of a training step, an upper bound; None: not in question.
    """

    name: str
    card: str
    tflop: float
    seconds: str
    bytes: float | None = None

    @property
    def cells(self) -> list[str]:
        """Of the table."""
        peak, room = CARDS[self.card]
        needed = "-"
        if self.bytes is not None:
            low, high = (self.bytes / factor / 2**30 for factor in (memory.FACTOR, 1))
            needed = f"{low:.1f} to {high:.1f} of {room}"
        tflop = f"{self.tflop:.3g}"
        return [self.name, self.card, tflop, f"{self.tflop / peak:.3f}", self.seconds, needed]


def tflop(network: keras.Model) -> float:
    """Multiplications and additions of the convolutions of a network of a fixed size, 10^12."""
    total = 0
    for layer in network.layers:
        if isinstance(layer, keras.Model):
            total += int(tflop(layer) * 1e12)
        elif hasattr(layer, "kernel") and len(layer.kernel.shape) > 2:
            # A transposed convolution multiplies at every place of its input.
            at = layer.input if "Transpose" in type(layer).__name__ else layer.output
            total += 2 * math.prod(layer.kernel.shape) * math.prod(at.shape[1:-1])
    return total / 1e12


def step(network: keras.Model, size: tuple[int, ...], samples: int = 1) -> float:
    """Bytes of a training step of a network that is made for `memory.SIZE`."""
    return memory.cost(network).of(size, samples)


def fetal_head() -> list[Size]:
    """Tables 1 and 2."""
    seconds = {"USegNet-DS": "0.78", "USegNet-DS-SAM": "1.11", "USegNet-DS-UAM": "0.88"}
    rows = []
    for variant in (*seconds, "USegNet-DS-HAS"):
        made = [usegnet((*size, 1), variant=variant) for size in (HEAD, memory.SIZE)]
        told = seconds.get(variant, "2 (both levels)")
        levels = 1 if variant in seconds else 2
        name = variant + "-Ctx" * (levels - 1)
        rows.append(Size(name, "TITAN X", levels * tflop(made[0]), told, step(made[1], HEAD)))
    return rows


def embryo(name: str, filters: int, kernel: int) -> list[Size]:
    """The cascade end to end, and two of its networks alone."""
    options = VNetOptions(filters, 5, kernel, "instance", "he", False)

    def networks(low: int, box: int, ventricle: int) -> list[keras.Model]:
        inputs = (((low,) * 3, 1, 3), ((box,) * 3, 2, 1), ((ventricle,) * 3, 2, 1))
        return [vnet((*size, channels), out, options) for size, channels, out in inputs]

    at_work, small = networks(160, 256, 160), networks(32, 32, 32)
    needed = [step(n, (edge,) * 3) for n, edge in zip(small, (160, 256, 160))]
    flops = [tflop(network) for network in at_work]
    return [
        Size(f"{name}: VNet I", "2 x P40", flops[0], "0.006", needed[0]),
        Size(f"{name}: VNet II", "P40", flops[1], "-", needed[1]),
        Size(f"{name}: end to end", "2 x P40", sum(flops), "0.09", sum(needed)),
    ]


def peer() -> list[Size]:
    """Windows of 64 voxels at every third of the largest volume."""
    windows = math.prod(1 + (edge - 64) // 3 for edge in (210, 281, 282))
    name = f"localiser, 16 filters, {windows} windows"
    return [Size(name, "2 x P40", windows * tflop(localiser(64)), "102.36 (with both FCNs)")]


def multi_organ() -> list[Size]:
    """A CT of 600 slices by both levels, without the overlap of tiles; a step has three subvolumes
    of both levels."""
    levels = [unet3d((*memory.SIZE, channels), 8) for channels in (1, 9)]
    voxels = [math.prod(CT) // 4**3, math.prod(CT) // 2**3]
    made = sum(tflop(n) * v / math.prod(memory.SIZE) for n, v in zip(levels, voxels))
    needed = sum(step(network, (64,) * 3, 3) for network in levels)
    return [Size("both levels, 512 x 512 x 600", "P6000", made, "a few minutes", needed)]


def rendering() -> list[Size]:
    """An online iteration: renderer and segmentor, forwards and backwards, on two images."""
    made = sum(tflop(n) for n in (renderer(320), segmentor2d(320)))
    return [Size("online iteration, generators", "TITAN Xp", 3 * 2 * made, "10")]


def main() -> None:
    rows = [*fetal_head(), *embryo("paper", 16, 5), *embryo("paper_small", 8, 3), *peer()]
    rows += [*multi_organ(), *rendering()]
    head = ["", "card", "TFLOP", "s at its peak", "s in the paper", "GiB of a step"]
    print(tables.aligned([head, *(row.cells for row in rows)], words=2))


if __name__ == "__main__":
    main()
