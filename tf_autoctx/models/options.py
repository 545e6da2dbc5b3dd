"""Names of what the networks can be built with, for configurations: no Keras in this module."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

# Of convolutions, see `layers.initializers`.
INITIALIZERS = ("he", "paper", "truncated_normal")
# Of the renderer system, whose discriminators end in a linear unit.
LINEAR_INITIALIZERS = (*INITIALIZERS, "authors")

# See `layers.normalize`.
NORMALIZATIONS = ("instance", "batch")

# Help of configurations.
BIAS = (
    "Whether convolutions have a bias before a normalization, which takes it away again. Runs of "
    "release 0.1.0 have it, and go on with it."
)

# What a discriminator decides from, see `renderer.discriminator`.
HEADS = ("scaled", "flatten", "pool")


@dataclasses.dataclass(frozen=True)
class VNetOptions:
    """What a VNet is made of; the defaults are the embryo paper's.

    Attributes:
      base_filters: channels of the first stage; every resolution doubles them.
      depth: resolutions.
      kernel: edge of the convolutions in a stage.
      normalization: "instance" (statistics of the volume, for batches of 1) or "batch".
      initializer: see `layers.initializers`.
      bias: whether convolutions have a bias before a normalization, see `BIAS`.
    """

    base_filters: int = 16
    depth: int = 5
    kernel: int = 5
    normalization: str = "instance"
    initializer: str = "he"
    bias: bool = False


PAPER_VNET = VNetOptions()


class Parts(NamedTuple):
    """Where a USegNet has skips, attention modules and deep supervision.

    Scales count as in the paper: 1 is the deepest (quarter size), 3 the full size.

    Attributes:
      skips: scales with a skip connection.
      sam, uam: scales with an attention module on the skip, and on the upsampled features.
      deep_supervision: whether there are side branches at half and a quarter of the size.
    """

    skips: tuple[int, ...] = (1, 2, 3)
    sam: tuple[int, ...] = ()
    uam: tuple[int, ...] = ()
    deep_supervision: bool = True


# Rows of tables 1 and 2 (Yang et al. 2019), see `usegnet.usegnet`.
VARIANTS = {
    "3D-DeconvNet": Parts(skips=(), deep_supervision=False),
    "USegNet": Parts(deep_supervision=False),
    "USegNet-DS": Parts(),
    "USegNet-DS-SAM-1": Parts(sam=(1,)),
    "USegNet-DS-SAM-12": Parts(sam=(1, 2)),
    "USegNet-DS-SAM": Parts(sam=(1, 2, 3)),
    "USegNet-DS-UAM-1": Parts(uam=(1,)),
    "USegNet-DS-UAM-12": Parts(uam=(1, 2)),
    "USegNet-DS-UAM": Parts(uam=(1, 2, 3)),
    "USegNet-DS-HAS": Parts(sam=(1, 2, 3), uam=(1, 2, 3)),
}

# Kernel of USegNet's attention modules by scale: the paper's 3 everywhere, or the authors' code.
ATTENTION_KERNELS = {
    "paper": {"sam": {1: 3, 2: 3, 3: 3}, "uam": {1: 3, 2: 3, 3: 3}},
    "code": {"sam": {1: 5, 2: 3, 3: 3}, "uam": {1: 5, 2: 5, 3: 3}},
}
# Convolutions of an attention module that normalization and ReLU follow: of none, as in the
# authors' code, of the last, or of each, as section 2.3 has it.
ATTENTION_NORMS = {"none": (), "output": ("out",), "every": ("p", "w_1", "w_2", "out")}
# What stands at a scale without a UAM: convolution, normalization and ReLU, or nothing.
PLAIN_DECODERS = ("conv", "bare")
# What a side branch of USegNet learns of a cell, see `losses.DeepSupervisedLoss`.
SIDE_LABELS = ("corner", "majority", "soft")
