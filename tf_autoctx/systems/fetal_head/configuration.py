"""What can be chosen of the fetal head system. No Keras in this module."""

from __future__ import annotations

import dataclasses

from tf_autoctx.configuration import check, field
from tf_autoctx.data.configuration import Augmentation, Resampling
from tf_autoctx.data.segment_codes import FETAL_HEAD
from tf_autoctx.errors import FieldError
from tf_autoctx.models.options import (
    ATTENTION_KERNELS,
    ATTENTION_NORMS,
    BIAS,
    INITIALIZERS,
    NORMALIZATIONS,
    PLAIN_DECODERS,
    SIDE_LABELS,
    VARIANTS,
)
from tf_autoctx.systems.fetal_head.presets import PRESETS
from tf_autoctx.systems.shared import patches
from tf_autoctx.systems.shared.declaration import Declaration

# Rows of tables 1 and 2 that are a way of running a network rather than a network of their own.
WAYS = {
    "USegNet-DS-HAS-Ctx": ("USegNet-DS-HAS", "volume"),
    "p-USegNet": ("USegNet", "patches"),
    "2D-USegNet": ("USegNet", "slices"),
}


@dataclasses.dataclass(frozen=True)
class FetalHead:
    """System: the network, its levels, and the grid that it sees.

    Raises:
      FieldError: a value out of range.
    """

    level: int | None = field(
        None,
        "Auto-context levels to train. By default 2 for -Ctx, 1 for other variants.",
        least=1,
        may_change=True,
    )
    variant: str = field(
        "USegNet-DS-HAS-Ctx",
        "Row of the paper's tables 1 and 2: a network, or a way of running one.",
        choices=(*VARIANTS, *WAYS),
    )
    join: str = field(
        "sum",
        "How a level sees the last one's probability: added to the volume, or beside it.",
        choices=("sum", "concat"),
    )
    scale: float | None = field(
        None,
        "Factor on every axis from the original grid to the network's; p- and 2D- work on the "
        "original grid. By default 0.4, or 1 where spacing is given.",
        least=0.01,
        most=1.0,
    )
    patch_size: int = field(
        64, "Edge of a p-USegNet patch in voxels, a multiple of 8.", multiple=8, least=8
    )
    patch: str = field(
        patches.WHOLE,
        "Edges (z,y,x) in voxels of the network's grid, multiples of 8, of random patches that are "
        "learnt from, a third of them about the head, and of the tiles that volumes are segmented "
        "in. auto plans them from the training cases and the free memory; none: whole volumes.",
        before=patches.WHOLE,
    )
    base_filters: int = field(32, "Channels of the first stage; all others follow.", least=1)
    normalization: str = field(
        "instance",
        "What features are normalized by: statistics of the volume at hand (instance), or moving "
        "averages (batch).",
        choices=NORMALIZATIONS,
    )
    initializer: str = field(
        "he", "How convolutions are initialized.", choices=INITIALIZERS, training_only=True
    )
    bias: bool = field(False, BIAS, before=True)
    attention_kernel: str = field(
        "paper",
        "Kernels of the attention modules: 3 everywhere, or as in the authors' code.",
        choices=tuple(ATTENTION_KERNELS),
    )
    attention_norm: str = field(
        "none",
        "Convolutions of the attention modules that normalization and ReLU follow: none, as in the "
        "authors' code, the last (output), or every one, as the paper says.",
        choices=tuple(ATTENTION_NORMS),
        before="none",
    )
    plain_decoder: str = field(
        "conv",
        "What stands at a scale without a UAM: a convolution with normalization and ReLU, or "
        "nothing (bare).",
        choices=PLAIN_DECODERS,
        before="conv",
    )
    side_labels: str = field(
        "corner",
        "Label of a side branch's voxel, a cell of several: that of its first voxel (corner), of "
        "most of it (majority), or the share of each class (soft).",
        choices=SIDE_LABELS,
        training_only=True,
        before="corner",
    )
    warm_start: bool = field(
        False,
        "Start every level from the weights of the level before, and not from new ones.",
        training_only=True,
        before=False,
    )
    context: str = field(
        "cached",
        "The map that a level learns with: the last level's of the whole volume as it is (cached), "
        "or of what random changes have made of it, computed at every step (augmented).",
        choices=("cached", "augmented"),
        training_only=True,
        before="cached",
    )
    context_dropout: float = field(
        0.0,
        "Share of the samples that a level sees without the last level's map.",
        least=0.0,
        most=1.0,
        training_only=True,
        before=0.0,
    )
    l2: float = field(
        0.0,
        "Weight of the sum of squared kernels in the loss, lambda of equation 2.",
        least=0.0,
        training_only=True,
    )

    def __post_init__(self) -> None:
        check(self)
        patches.edges(self.patch)
        if self.patch != patches.WHOLE and self._way != "volume":
            raise FieldError(
                "patch",
                self.patch,
                f"{self.variant} sees {self._way} of its own; expected another `variant`, or "
                f"{patches.WHOLE}.",
            )

    @property
    def levels(self) -> int:
        """Levels to train: `level`, or as many as the variant has."""
        return self.level or (2 if self.variant.endswith("-Ctx") else 1)

    @property
    def network(self) -> str:
        """The variant of `models.usegnet` that a level runs."""
        return WAYS.get(self.variant, (self.variant, ""))[0]

    @property
    def idle(self) -> list[str]:
        """Names of the fields that are not as by default, and act on nothing that the variant and
        its levels have."""
        parts = VARIANTS[self.network]
        acts = {
            **dict.fromkeys(("attention_kernel", "attention_norm"), bool(parts.sam or parts.uam)),
            "plain_decoder": any(scale not in parts.uam for scale in (1, 2, 3)),
            "side_labels": parts.deep_supervision,
            **dict.fromkeys(("warm_start", "context", "context_dropout"), self.levels > 1),
        }
        default = {field.name: field.default for field in dataclasses.fields(self)}
        return [name for name in acts if not acts[name] and getattr(self, name) != default[name]]

    @property
    def _way(self) -> str:
        """What the variant's own passes see."""
        return WAYS.get(self.variant, (self.variant, "volume"))[1]

    @property
    def edges(self) -> tuple[int, ...] | None:
        """Of a patch, (z, y, x) in voxels of the network's grid; None: there are none."""
        return (self.patch_size,) * 3 if self._way == "patches" else patches.edges(self.patch)

    @property
    def view(self) -> str:
        """What one pass of the network sees: the "volume", "patches" or "slices" of it."""
        return "patches" if self.edges else self._way

    @property
    def factor(self) -> float:
        """On every axis from the original grid to the network's (section 3.1)."""
        return 0.4 if self.scale is None else self.scale

    @property
    def same_grid(self) -> bool:
        """Whether the network works on the original grid."""
        return self._way != "volume" or self.factor == 1


@dataclasses.dataclass(frozen=True)
class Phantoms:
    """Phantoms: made-up ultrasound volumes, where data_dir is empty."""

    phantom_size: tuple[int, int, int] = field(
        (97, 64, 110), "Voxels of a phantom along z, y, x.", length=3, least=8
    )
    phantom_cases: tuple[int, int] = field(
        (100, 10), "Phantoms to train on and to hold out.", length=2, least=1
    )
    phantom_scans: int = field(
        1,
        "Scans of a phantom that is held out, each along another direction.",
        least=1,
        most=3,
        may_change=True,  # the fingerprint of the data tells
    )

    def __post_init__(self) -> None:
        check(self)


DECLARATION = Declaration(
    name="fetal_head",
    dimensions=3,
    configuration=FetalHead,
    training=(Augmentation, Resampling),
    phantoms=Phantoms,
    presets=PRESETS,
    measurement="tf_autoctx.biometry:head",
    implementation="tf_autoctx.systems.fetal_head.system:FetalHeadSystem",
    channels=True,
    segment_codes={"head": FETAL_HEAD},
)
