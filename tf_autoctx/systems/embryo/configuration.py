"""What can be chosen of the embryo system and of its peer. No Keras in this module."""

from __future__ import annotations

import dataclasses

from tf_autoctx.configuration import check, field
from tf_autoctx.data.configuration import Augmentation, Resampling
from tf_autoctx.data.segment_codes import anatomical
from tf_autoctx.models.options import BIAS, INITIALIZERS, NORMALIZATIONS, VNetOptions
from tf_autoctx.systems.embryo.presets import PRESETS
from tf_autoctx.systems.shared.declaration import Declaration

# Sections 2.1, 2.3 and 2.4: each stage starts from the networks of the one before.
STAGES = ("initial", "refine", "end_to_end")


@dataclasses.dataclass(frozen=True)
class Embryo:
    """System: the three VNets and what each of them sees.

    Raises:
      FieldError: a value out of range.
    """

    low_size: int = field(
        160, "Edge of the cube that VNet I sees the whole volume in, in voxels.", least=8
    )
    body_box: int = field(256, "Edge of VNet II's box in voxels of the original grid.", least=8)
    ventricle_box: int = field(
        160, "Edge of VNet III's box in voxels of the original grid.", least=8
    )
    auto_context: bool = field(
        True, "Whether VNets II and III see the probability of VNet I beside the image."
    )
    base_filters: int = field(16, "Channels of the first stage of a VNet.", least=1)
    depth: int = field(5, "Resolutions of a VNet.", least=1)
    kernel: int = field(5, "Edge of the convolution kernels.", least=1)
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

    def __post_init__(self) -> None:
        check(self)

    @property
    def vnet(self) -> VNetOptions:
        """What each of the three VNets is made of."""
        return _vnet(self)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Stages: which of them are trained, and from where.

    Raises:
      FieldError: a value out of range.
    """

    stage: str = field(
        "all",
        "What to train; each stage starts from the one before.",
        choices=(*STAGES, "all"),
        may_change=True,
    )
    initial_from: str = field(
        "",
        "Run folder whose initial stage is taken over, so that none is trained here.",
        may_change=True,
    )
    initial_factor: int = field(
        1, "How many times `steps` the stage initial has; the others have one.", least=1, before=1
    )
    end_to_end_learning_rate: float = field(
        1e-3, "Learning rate of Adam at the start of the stage end_to_end.", least=0.0
    )

    def __post_init__(self) -> None:
        check(self)

    def stages(self, auto_context: bool) -> tuple[str, ...]:
        """The stages that are wanted, in their order."""
        if self.stage != "all":
            return (self.stage,)
        # Without a map beside the image no gradient reaches VNet I: there is nothing to train end
        # to end.
        return STAGES if auto_context else STAGES[:2]


@dataclasses.dataclass(frozen=True)
class Phantoms:
    """Phantoms: made-up ultrasound volumes, where data_dir is empty."""

    phantom_spacing: float = field(0.125, "Edge of a phantom's voxels in mm.", least=0.01)
    phantom_size: tuple[int, ...] = field(
        (72, 88, 72), "Voxels of the largest phantom along z, y, x.", length=3, least=8
    )
    phantom_cases: tuple[int, ...] = field(
        (40, 10), "Phantoms to train on and to hold out.", length=2, least=1
    )

    def __post_init__(self) -> None:
        check(self)


DECLARATION = Declaration(
    name="embryo",
    dimensions=3,
    configuration=Embryo,
    training=(Schedule, Augmentation, Resampling),
    phantoms=Phantoms,
    presets=PRESETS,
    implementation="tf_autoctx.systems.embryo.system:EmbryoSystem",
    channels=True,
    segment_codes={
        "body": anatomical("57991002", "Entire embryo"),
        "ventricle": anatomical("35764002", "Brain ventricle"),
    },
)

# The peer

SLIDING_WINDOWS = "sliding_windows"  # the system in the config.json of its runs
METHOD = "sliding windows"  # in its scores


@dataclasses.dataclass(frozen=True, kw_only=True)
class Windows:
    """Windows: what the peer looks through.

    Raises:
      FieldError: a value out of range.
    """

    window: int = field(
        64, "Edge of the windows in voxels; 64 are 3.2 mm in the paper.", multiple=16, least=16
    )
    stride: int = field(3, "Voxels from one window of the localiser to the next.", least=1)

    def __post_init__(self) -> None:
        check(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlidingWindows(Windows):
    """The peer: its windows and its two small VNets, see `models.vnet`.

    Raises:
      FieldError: a value out of range.
    """

    base_filters: int = field(..., "Channels of the first stage of a VNet.", least=1)
    depth: int = field(..., "Resolutions of a VNet.", least=1)
    kernel: int = field(..., "Edge of the convolution kernels.", least=1)
    normalization: str = field(
        ..., "What features of the VNets are normalized by.", choices=NORMALIZATIONS
    )
    initializer: str = field(..., "How all convolutions are initialized.", choices=INITIALIZERS)
    bias: bool = field(False, BIAS, before=True)

    @property
    def vnet(self) -> VNetOptions:
        """What each of its VNets is made of."""
        return _vnet(self)


def _vnet(chosen: Embryo | SlidingWindows) -> VNetOptions:
    """The fields of a configuration that a VNet is made of."""
    names = [field.name for field in dataclasses.fields(VNetOptions)]
    return VNetOptions(**{name: getattr(chosen, name) for name in names})


def beside(embryo: Embryo, windows: Windows) -> SlidingWindows:
    """The peer that goes with a cascade: its VNets at half their width."""
    return SlidingWindows(
        window=windows.window,
        stride=windows.stride,
        **dataclasses.asdict(embryo.vnet) | {"base_filters": max(1, embryo.base_filters // 2)},
    )
