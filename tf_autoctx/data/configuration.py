"""Which data a run learns from, and how samples are changed at random. No TensorFlow in here."""

from __future__ import annotations

import dataclasses
import math

from tf_autoctx.configuration import check, field
from tf_autoctx.errors import FieldError, UserError


@dataclasses.dataclass(frozen=True)
class Data:
    """Data: which images and labels there are."""

    data_dir: str = field(
        "",
        "Your data: a Decathlon or nnU-Net folder, a folder with images/ and labels/, or a CSV "
        "file of image,label,split[,group,series], of several channels with image_NAME,image_NAME "
        "and so on in place of image. Empty: phantoms are made.",
        may_change=True,
    )
    foreground: tuple[int, ...] | None = field(
        None,
        "Label values that make up the object or objects, such as 1,2. By default every value but "
        "0.",
        least=1,
    )
    channels: int | None = field(
        None,
        "Channels of every image, where data_dir does not tell how many: a folder with images/, or "
        "a CSV file with the column image. By default one.",
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
    test_fraction: float = field(
        0.0,
        "Share of the training cases that nothing is learnt from and that are scored at the end, "
        "for data without test cases: whole groups (a patient, say), drawn by the seed, so that "
        "all methods of one seed have the same ones. Data that have test cases refuse it.",
        least=0.0,
        most=0.9,
        before=0.0,
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
        if self.test_fraction and self.folds:
            raise UserError(
                "`test_fraction` and `folds`: each says which cases are scored at the end; "
                "expected one of them."
            )
        if (self.folds is None) != (self.fold is None):
            raise UserError(
                "`folds` and `fold`: one of them alone says nothing; expected both, such as "
                "`folds=5` `fold=1`, or neither."
            )
        if self.folds and self.fold and self.fold > self.folds:
            raise FieldError(
                "fold", self.fold, f"expected a number from 1 to {self.folds}, the `folds`."
            )


AS_THEY_ARE, MEDIAN = "none", "auto"


@dataclasses.dataclass(frozen=True)
class Resampling:
    """Grid: the voxels that networks see."""

    spacing: str = field(
        AS_THEY_ARE,
        "Edges in mm (z,y,x) of the voxels that the networks see: volumes of any spacing are "
        "resampled to them on the way in, and results come back on their own grid. auto is the "
        "median of the training cases; none leaves volumes as they are, so that networks know "
        "voxels and not mm.",
        before=AS_THEY_ARE,
    )

    def __post_init__(self) -> None:
        check(self)
        if self.spacing not in (AS_THEY_ARE, MEDIAN) and self.edges is None:
            raise FieldError(
                "spacing",
                self.spacing,
                f"expected three numbers of mm above 0, such as 1,0.8,0.8 (z,y,x), {MEDIAN} or "
                f"{AS_THEY_ARE}.",
            )

    @property
    def edges(self) -> tuple[float, ...] | None:
        """The edges that are given, mm; None: there are none."""
        edges = edges_of(self.spacing)
        return edges if len(edges) == 3 else None


def edges_of(spacing: str) -> tuple[float, ...]:
    """Edges of voxels, mm, of a text such as 1,0.8,0.8; none where it is none."""
    try:
        edges = tuple(float(mm) for mm in spacing.split(","))
    except ValueError:
        return ()
    return edges if all(0 < mm < math.inf for mm in edges) else ()


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Augmentation: random changes of a sample, the same set in every training.

    By `augment.augmented`; where subvolumes are resampled as they are read, by `augment.deformed`
    and `augment.shown`. All of them are off here: what a system does by default is in its presets.
    Runs that were made before there was a field had it off.
    """

    flips: bool = field(False, "Mirror each axis with probability 1/2.", before=False)
    shift: int = field(
        0,
        "Largest random translation along an axis, in voxels of the network's grid, of several "
        "levels the last one's.",
        least=0,
        before=0,
    )
    rotation: float = field(
        0.0,
        "Largest random angle about each axis, in degrees; in 2D about the one there is.",
        least=0.0,
        most=180.0,
        before=0.0,
    )
    scaling: float = field(
        0.0,
        "Largest random change of size: factors lie between 1 / (1 + scaling) and 1 + scaling.",
        least=0.0,
        most=4.0,
        before=0.0,
    )
    elastic: float = field(
        0.0,
        "SD of the displacements of the control points of a random elastic deformation, a cubic "
        "B-spline, in voxels as of `shift`.",
        least=0.0,
        before=0.0,
    )
    elastic_spacing: int = field(
        32, "Voxels between two of these control points, as of `shift`.", least=1, before=32
    )
    intensity_jitter: float = field(
        0.0,
        "Brightness and contrast: largest random change of the factor 1 on intensities, and twice "
        "the largest offset that is added, in units of what the network sees.",
        least=0.0,
        most=1.0,
        before=0.0,
    )
    gamma: float = field(
        0.0,
        "Largest random change of the exponent on intensities between the image's smallest and "
        "largest: exponents lie between 1 / (1 + gamma) and 1 + gamma.",
        least=0.0,
        most=4.0,
        before=0.0,
    )
    blur: float = field(
        0.0, "Largest SD of a random Gaussian blur, in voxels.", least=0.0, most=16.0, before=0.0
    )
    low_resolution: float = field(
        0.0,
        "Largest edge, in voxels, of the coarser voxels that an image is brought to and back from; "
        "up to 1 it stays as it is.",
        least=0.0,
        most=16.0,
        before=0.0,
    )
    noise: float = field(
        0.0,
        "Largest SD of random noise, in units of what the network sees.",
        least=0.0,
        before=0.0,
    )
    change_probability: float = field(
        1.0,
        "Share of samples that rotation, scaling, elastic, intensity_jitter, gamma, blur, "
        "low_resolution and noise change, each drawn by itself.",
        least=0.0,
        most=1.0,
        before=1.0,
    )
    erase_probability: float = field(
        0.0, "Share of samples with a box erased near the object.", least=0.0, most=1.0, before=0.0
    )

    def __post_init__(self) -> None:
        check(self)

    @property
    def resamples(self) -> bool:
        """Whether voxels come to lie between others."""
        return self.rotation > 0 or self.scaling > 0 or self.elastic > 0

    @property
    def recolours(self) -> bool:
        """Whether intensities change."""
        amounts = self.intensity_jitter, self.gamma, self.blur, self.noise, self.low_resolution - 1
        return max(amounts) > 0
