"""What can be chosen of the multi-organ system. No Keras in this module."""

from __future__ import annotations

import dataclasses
import itertools

from tf_autoctx.configuration import check, field
from tf_autoctx.data.configuration import Augmentation, Resampling
from tf_autoctx.data.regions import parsed
from tf_autoctx.errors import FieldError
from tf_autoctx.models.options import BIAS, INITIALIZERS, NORMALIZATIONS
from tf_autoctx.systems.multi_organ.presets import PRESETS
from tf_autoctx.systems.shared import patches
from tf_autoctx.systems.shared.declaration import Declaration

# How the levels learn: the gradient of a level reaches all before it; level after level, each
# frozen once it is finished; or the last level alone, without the map of another.
MODES = ("end_to_end", "separate", "no_context")
HU, OF_IMAGE = "hu", "image"  # what networks see of voxels


@dataclasses.dataclass(frozen=True)
class MultiOrgan:
    """System: the levels of the pyramid, how they learn, and the CT window.

    Raises:
      FieldError: a value out of range, or values that contradict each other.
    """

    mode: str = field(
        "end_to_end",
        "How the levels learn: all together, one after the other, or the last alone.",
        choices=MODES,
    )
    levels: int = field(2, "Levels of the pyramid, S.", least=1)
    downsampling: tuple[int, ...] | None = field(
        None,
        "Voxels of the original grid in a voxel of each level, along an axis. By default "
        "2^S, ..., 4, 2.",
        least=1,
    )
    patch_size: int = field(
        64,
        "Edge of a training subvolume in voxels of its level, a multiple of 8.",
        multiple=8,
        least=8,
    )
    patch: str = field(
        patches.WHOLE,
        "Edges (z,y,x) of a training subvolume in voxels of its level, multiples of 8. auto plans "
        "them, and the depth, from the training cases and the free memory; none: cubes of "
        "patch_size.",
        training_only=True,
        before=patches.WHOLE,
    )
    tile_size: int = field(
        128,
        "Largest edge of an inference tile in voxels of its level, a multiple of 8; it bounds the "
        "memory.",
        multiple=8,
        least=16,
        may_change=True,
    )
    intensities: str = field(
        HU,
        "What networks see of voxels: the CT window (hu), or each channel of an image less its "
        "mean, by its standard deviation (image), as suits MR.",
        choices=(HU, OF_IMAGE),
        before=HU,
    )
    # The paper does not say which window it has.
    window_low: float = field(
        -160.0, "Lower end of the CT window in HU; the network sees it, and all below, as 0."
    )
    window_high: float = field(
        240.0,
        "Upper end of the CT window in HU; the network sees hundreds of HU above the lower end, so "
        "this one as 4 where that is -160.",
    )
    base_filters: int = field(32, "Channels of the first convolution; all others follow.", least=1)
    depth: int | None = field(
        None,
        "Resolutions of a U-Net. By default 4; where the patch is planned, as many of them as "
        "leave 4 voxels an edge of the coarsest grid.",
        least=2,
        most=4,
        before=4,
    )
    normalization: str = field(
        "batch",
        "What features are normalized by: moving averages (batch), or statistics of the tile at "
        "hand (instance).",
        choices=NORMALIZATIONS,
    )
    initializer: str = field(
        "he", "How convolutions are initialized.", choices=INITIALIZERS, training_only=True
    )
    bias: bool = field(False, BIAS, before=True)
    dice_epsilon: float = field(
        1e-5,
        "What is added above and below in the Dice of a class, in voxels of a level: one that a "
        "batch lacks counts as half right where so many voxels are found of it.",
        least=1e-7,
        training_only=True,
        before=1e-5,
    )
    regions: str = field(
        "",
        "Structures that are sets of label values, such as whole=1+2+3,core=2+3: they may lie in "
        "each other, and the network tells of each whether it is there. A voxel's label is the "
        "first value of the last region that it is in. By default those of the data set's "
        "dataset.json, or each label value is a structure.",
        before="",
    )

    def __post_init__(self) -> None:
        check(self)
        parsed(self.regions)
        patches.edges(self.patch)
        factors = self.factors
        if any(fine >= coarse for coarse, fine in itertools.pairwise(factors)):
            raise FieldError(
                "downsampling",
                factors,
                "expected factors that fall from level to level, such as 4,2.",
            )
        if len(factors) != self.levels:
            raise FieldError(
                "downsampling",
                factors,
                f"has {len(factors)} factors; expected `levels={self.levels}`.",
            )
        if self.window_low >= self.window_high:
            raise FieldError(
                "window_low",
                self.window_low,
                f"expected less than `window_high={self.window_high}`.",
            )

    @property
    def edges(self) -> tuple[int, ...]:
        """Of a training subvolume, (z, y, x) in voxels of its level."""
        return patches.edges(self.patch) or (self.patch_size,) * 3

    @property
    def resolutions(self) -> int:
        """`depth`, or what it is by default: the paper's."""
        return self.depth or 4

    @property
    def factors(self) -> tuple[int, ...]:
        """`downsampling`, or what it is by default: a factor for each level, coarsest first."""
        return self.downsampling or tuple(2**level for level in range(self.levels, 0, -1))

    @property
    def scales(self) -> tuple[int, ...]:
        """The factors of the levels that are there: all, or the last alone without context."""
        return self.factors[-1:] if self.mode == "no_context" else self.factors

    @property
    def first_level(self) -> int:
        """Number of the first level that is there."""
        return len(self.factors) - len(self.scales) + 1

    @property
    def overlap(self) -> int:
        """Voxels that two tiles share, a multiple of 8.

        A quarter of a tile, but 16 where half a tile has as many.
        """
        return min(max(16, self.tile_size // 32 * 8), self.tile_size // 16 * 8)


@dataclasses.dataclass(frozen=True)
class Phantoms:
    """Phantoms: made-up abdominal CTs, where data_dir is empty."""

    phantom_spacing: float = field(1.5, "Edge of a phantom's voxels in mm.", least=0.1)
    phantom_size: tuple[int, ...] = field(
        (112, 128, 176), "Voxels of a phantom along z, y, x.", length=3, least=8
    )
    phantom_cases: tuple[int, ...] = field(
        (24, 8), "Phantoms to train on and to hold out.", length=2, least=1
    )

    def __post_init__(self) -> None:
        check(self)


@dataclasses.dataclass(frozen=True)
class TileOptions:
    """Tiles: how much memory a run folder of the multi-organ system takes in prediction."""

    tile_size: int | None = field(
        None,
        "Largest edge of a tile in voxels of its level, for run folders of the multi-organ system; "
        "smaller tiles take less memory. By default as the run was trained.",
        multiple=8,
        least=16,
    )

    def __post_init__(self) -> None:
        check(self)


DECLARATION = Declaration(
    name="multi_organ",
    dimensions=3,
    configuration=MultiOrgan,
    training=(Augmentation, Resampling),
    phantoms=Phantoms,
    presets=PRESETS,
    implementation="tf_autoctx.systems.multi_organ.system:MultiOrganSystem",
    channels=True,
    regions=True,
    prediction=TileOptions,
    voxel_check="tf_autoctx.systems.multi_organ.hounsfield:check_voxels",
)
