"""What can be chosen of the toy system. No Keras in this module, so that `--help` is quick."""

from __future__ import annotations

import dataclasses
from typing import Any

from tf_autoctx.configuration import check, field
from tf_autoctx.data.configuration import Augmentation
from tf_autoctx.systems.shared.declaration import Declaration

PRESETS: dict[str, dict[str, Any]] = {
    "demo": {
        "steps": 200,
        "samples_per_epoch": 40,
        "learning_rate": 1e-2,
        "learning_rate_decay": "polynomial",
    },
    "standard": {
        "steps": 2000,
        "samples_per_epoch": 200,
        "learning_rate": 1e-3,
        "learning_rate_decay": "polynomial",
    },
    "paper": {
        "base_filters": 32,
        "steps": 20_000,
        "samples_per_epoch": 200,
        "learning_rate": 1e-3,
        "learning_rate_decay": "constant",
    },
}


@dataclasses.dataclass(frozen=True)
class Toy:
    """System: one network of two convolutions.

    Raises:
      FieldError: a value out of range.
    """

    base_filters: int = field(8, "Channels of the convolutions.", least=1)
    threshold: float = field(
        0.5,
        "Probability above which a voxel is the object's.",
        least=0.0,
        most=1.0,
        may_change=True,  # no weight depends on it: a run goes on with another value
    )

    def __post_init__(self) -> None:
        check(self)


@dataclasses.dataclass(frozen=True)
class Phantoms:
    """Phantoms: made-up volumes of a bright ball, where data_dir is empty."""

    phantom_size: tuple[int, ...] = field(
        (24, 24, 24), "Voxels of a phantom along z, y, x.", length=3, least=8
    )
    phantom_cases: tuple[int, ...] = field(
        (10, 3), "Phantoms to train on and to hold out.", length=2, least=1
    )

    def __post_init__(self) -> None:
        check(self)


DECLARATION = Declaration(
    name="toy",
    dimensions=3,
    configuration=Toy,
    training=(Augmentation,),
    phantoms=Phantoms,
    presets=PRESETS,
    implementation="toy_system.system:ToySystem",
)
