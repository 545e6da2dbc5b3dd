"""Made-up images with an exactly known truth, where no patient data are at hand.

Arrays are (z, y, x) or (y, x). A folder of phantoms is a Medical Segmentation Decathlon task; a
case's number is part of its seed, so no test case repeats a training case.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tf_autoctx.data.phantoms import folder
from tf_autoctx.data.phantoms.abdomens import LABELS as ABDOMEN_LABELS
from tf_autoctx.data.phantoms.abdomens import abdomen
from tf_autoctx.data.phantoms.embryos import LABELS as EMBRYO_LABELS
from tf_autoctx.data.phantoms.embryos import embryo
from tf_autoctx.data.phantoms.fetal_heads import FETAL_HEAD_VIEW, fetal_head
from tf_autoctx.data.phantoms.fetal_heads_2d import FAR, NEAR, SOURCE, fetal_head_2d
from tf_autoctx.data.phantoms.pieces import ellipsoid, smooth_field, speckle
from tf_autoctx.data.phantoms.scanner import ANOTHER, Scanner, another_scanner

__all__ = [
    "ABDOMEN_LABELS",
    "ANOTHER",
    "EMBRYO_LABELS",
    "FAR",
    "FETAL_HEAD_VIEW",
    "HEADS_2D",
    "NEAR",
    "SOURCE",
    "Scanner",
    "abdomen",
    "another_scanner",
    "ellipsoid",
    "embryo",
    "fetal_head",
    "fetal_head_2d",
    "smooth_field",
    "speckle",
    "write_abdomens",
    "write_embryos",
    "write_fetal_heads",
    "write_fetal_heads_2d",
]

Directory = str | os.PathLike[str]
Case = tuple[np.ndarray, np.ndarray, tuple[float, ...]]  # image, label, spacing in mm


def write_fetal_heads(
    directory: Directory,
    size: Sequence[int] = (97, 64, 110),
    cases: tuple[int, int] = (50, 50),
    seed: int = 0,
    scans: int = 1,
) -> Path:
    """Writes a folder of `fetal_head` volumes, `head_000.nii.gz` and on, unless it is there.

    Args:
      directory: folder to make; its parents are made too.
      size: voxels along (z, y, x).
      cases: number of (training, test) heads; the paper has 50 and 50.
      seed: integer.
      scans: volumes of each test head, along as many directions, 1 to 3; the scans of a head are a
        group.

    Returns:
      A `Path` that `datasets.load` takes: the folder, or for several scans its `cases.csv`, which
      has the groups.

    Raises:
      UserError: the folder exists and holds something else.
    """
    train, test = cases

    def head_and_scan(number: int) -> tuple[int, int | None]:
        head, scan = divmod(number - train, scans)
        return (number, None) if number < train or scans == 1 else (train + head, scan)

    def group(number: int) -> str:
        return f"fetus {head_and_scan(number)[0]:03d}"

    def make(size: Sequence[int], seed: tuple[int, int]) -> Case:
        head, scan = head_and_scan(seed[1])
        image, label, spacing = fetal_head(size, (seed[0], head), scan)
        return np.rint(image).astype(np.uint8), label, spacing

    about = {
        "name": "fetal head phantoms",
        "description": "made-up 3D ultrasound of the whole fetal head, exact truth",
        "modality": {"0": "US"},
    }
    heads = folder.Phantoms(
        make=make,
        prefix="head",
        about=about,
        labels={1: "head"},
        size=size,
        cases=(train, test * scans),
        seed=seed,
        further={"scans": scans} if scans > 1 else {},
        group=group if scans > 1 else None,
    )
    written = folder.write(directory, heads)
    return written / "cases.csv" if scans > 1 else written


def write_abdomens(
    directory: Directory,
    size: Sequence[int] = (112, 128, 176),
    spacing: float = 1.5,
    cases: tuple[int, int] = (40, 10),
    seed: int = 0,
) -> Path:
    """Writes a folder of `abdomen` volumes, `abdomen_000.nii.gz` and on, unless it is there.

    Args:
      directory: folder to make; its parents are made too.
      size: voxels along (z, y, x).
      spacing: mm per voxel, along every axis.
      cases: number of (training, test) cases.
      seed: integer.

    Returns:
      The folder, a `Path`.

    Raises:
      UserError: the folder exists and holds something else.
    """
    about = {
        "name": "abdomen phantoms",
        "description": "made-up CT of the abdomen in the portal venous phase, exact truth",
        "modality": {"0": "CT"},
    }

    def make(size: Sequence[int], seed: tuple[int, int]) -> Case:
        return abdomen(size, float(spacing), seed)

    abdomens = folder.Phantoms(
        make=make,
        prefix="abdomen",
        about=about,
        labels=dict(enumerate(ABDOMEN_LABELS, 1)),
        size=size,
        cases=cases,
        seed=seed,
        further={"spacing": float(spacing)},
    )
    return folder.write(directory, abdomens)


def write_embryos(
    directory: Directory,
    size: Sequence[int] = (72, 88, 72),
    spacing: float = 0.125,
    cases: tuple[int, int] = (40, 10),
    seed: int = 0,
) -> Path:
    """Writes a folder of `embryo` volumes, `embryo_000.nii.gz` and on, unless it is there.

    Args:
      directory: folder to make; its parents are made too.
      size: most voxels along (z, y, x). Every case draws its own number along each axis, down to
        150/210, 161/281 and 81/282 of these, as in the paper; seed and number of the case decide.
      spacing: mm per voxel, along every axis.
      cases: number of (training, test) cases; the paper has 185 and 46.
      seed: integer.

    Returns:
      The folder, a `Path`.

    Raises:
      UserError: the folder exists and holds something else.
    """
    lowest = (150 / 210, 161 / 281, 81 / 282)

    def make(size: Sequence[int], seed: tuple[int, int]) -> Case:
        rng = np.random.default_rng((*seed, 1))  # not the embryo's own
        own = [int(rng.integers(math.ceil(n * low), n + 1)) for n, low in zip(size, lowest)]
        image, label, edges = embryo(own, float(spacing), seed)
        return np.rint(image).astype(np.uint8), label, edges

    about = {
        "name": "embryo phantoms",
        "description": "made-up high-frequency ultrasound of mouse embryos in utero, exact truth",
        "modality": {"0": "US"},
    }
    embryos = folder.Phantoms(
        make=make,
        prefix="embryo",
        about=about,
        labels=dict(enumerate(EMBRYO_LABELS, 1)),
        size=size,
        cases=cases,
        seed=seed,
        further={"spacing": float(spacing)},
    )
    return folder.write(directory, embryos)


# {scanner: (name of folder and files, number of its heads, knobs)}; the targets have the same heads
HEADS_2D = {
    "source": ("source", 1, SOURCE),
    "near": ("near", 2, NEAR),
    "far": ("target", 2, FAR),
}


def write_fetal_heads_2d(
    directory: Directory,
    scanner: str,
    size: Sequence[int] = (320, 320),
    cases: Sequence[int] = (100, 20),
    seed: int = 0,
) -> Path:
    """Writes a folder of `fetal_head_2d` images, `source_000.png` and on, unless it is there.

    The head's label value is 255.

    Args:
      directory: gets the folder, of the name that the scanner has in `HEADS_2D`.
      scanner: one of `HEADS_2D`; the source has its own heads, the others have the same ones.
      size: pixels along (y, x).
      cases: number of (training, test) cases.
      seed: integer.

    Returns:
      The folder, a `Path`.

    Raises:
      UserError: the folder exists and holds something else.
    """
    (name, number, knobs), (train, test) = HEADS_2D[scanner], cases

    def make(size: Sequence[int], seed: tuple[int, int]) -> Case:
        image, label, spacing = fetal_head_2d(size, (*seed, number), knobs)
        return image, 255 * label, spacing

    about = {
        "name": f"2D fetal head phantoms, {name}",
        "description": "made-up 2D ultrasound of the fetal head's standard plane, exact truth",
        "modality": {"0": "US"},
        "file_ending": ".png",
    }
    images = folder.Phantoms(
        make=make,
        prefix=name,
        about=about,
        labels={255: "head"},
        size=size,
        cases=(train, test),
        seed=seed,
        further={"scanner": dataclasses.asdict(knobs)},
    )
    return folder.write(Path(directory) / name, images)
