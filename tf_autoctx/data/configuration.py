"""Which data a run learns from, and how samples are changed at random. No TensorFlow in here."""

from __future__ import annotations

import dataclasses

from tf_autoctx.configuration import check, field
from tf_autoctx.errors import FieldError, UserError


@dataclasses.dataclass(frozen=True)
class Data:
    """Data: which images and labels there are."""

    data_dir: str = field(
        "",
        "Your data: a Decathlon or nnU-Net folder, a folder with images/ and labels/, or a CSV "
        "file of image,label,split[,group,series]. Empty: phantoms are made.",
        may_change=True,
    )
    foreground: tuple[int, ...] | None = field(
        None,
        "Label values that make up the object or objects, such as 1,2. By default every value but "
        "0.",
        least=1,
    )
    validation_fraction: float = field(
        0.2,
        "Share of the training cases that nothing is learnt from: after every epoch the networks "
        "are scored on them, and most systems keep the best ones. With 0 all cases are learnt from "
        "and the last networks are kept. Data that name their validation cases keep to them.",
        least=0.0,
        most=0.9,
    )
    folds: int | None = field(
        None,
        "Parts that all cases but the test cases are divided into, each of about as many cases and "
        "of whole groups (a patient, say); with fold, the number of one of them.",
        least=2,
    )
    fold: int | None = field(
        None,
        "Part of folds, counted from 1, that nothing is learnt from and that is scored at the end "
        "in place of the test cases; of the other parts, validation_fraction validates.",
        least=1,
    )

    def __post_init__(self) -> None:
        check(self)
        if (self.folds is None) != (self.fold is None):
            raise UserError(
                "`folds` and `fold`: one of them alone says nothing; expected both, such as "
                "`folds=5` `fold=1`, or neither."
            )
        if self.folds and self.fold and self.fold > self.folds:
            raise FieldError(
                "fold", self.fold, f"expected a number from 1 to {self.folds}, the `folds`."
            )


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Augmentation: random changes of a sample.

    On the network's grid, by `augment.augmented`.
    """

    flips: bool = field(True, "Mirror each axis with probability 1/2.")
    shift: int = field(0, "Largest random translation, in voxels of the network's grid.", least=0)
    intensity_jitter: float = field(
        0.0, "Half the width of the range of random factors on intensities.", least=0.0, most=1.0
    )
    erase_probability: float = field(
        0.0, "Share of samples with a box erased near the object.", least=0.0, most=1.0
    )

    def __post_init__(self) -> None:
        check(self)


@dataclasses.dataclass(frozen=True)
class Deformation:
    """Augmentation: random translation, rotation and elastic deformation of a sample.

    By `augment.deformed`.
    """

    shift: int = field(4, "Largest random translation, in voxels of the last level.", least=0)
    rotation: float = field(
        10.0, "Largest random angle about each axis, in degrees.", least=0.0, most=180.0
    )
    elastic: float = field(
        4.0,
        "SD of the displacements of the B-spline's control points, in voxels of the last level.",
        least=0.0,
    )
    elastic_spacing: int = field(
        32, "Voxels of the last level between two B-spline control points.", least=1
    )

    def __post_init__(self) -> None:
        check(self)


@dataclasses.dataclass(frozen=True)
class RigidMotion:
    """Augmentation: random rotation, translation and flips of a sample.

    By `augment.moved`.
    """

    rotation: float = field(
        180.0, "Largest random angle about each axis, in degrees.", least=0.0, most=180.0
    )
    shift: int = field(30, "Largest random translation along an axis, in voxels.", least=0)
    flips: bool = field(True, "Mirror each axis with probability 1/2.")

    def __post_init__(self) -> None:
        check(self)
