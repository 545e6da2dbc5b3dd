"""What the header of an image file says of its voxels' size and orientation.

ITK puts 1 mm where a header is silent, so the headers are read here.
"""

from __future__ import annotations

import dataclasses
import gzip
import math
import pathlib
import re
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import SimpleITK as sitk

from tf_autoctx.errors import UserError

NIFTI = (".nii", ".nii.gz")
MILLIMETRES = {  # {name of a unit: mm}
    "m": 1000.0,
    "cm": 10.0,
    "mm": 1.0,
    "um": 1e-3,
    "\u00b5m": 1e-3,
    "\u03bcm": 1e-3,
    "nm": 1e-6,
    "micron": 1e-3,
    "microns": 1e-3,
    "meter": 1000.0,
    "centimeter": 10.0,
    "millimeter": 1.0,
    "micrometer": 1e-3,
    "in": 25.4,
    "inch": 25.4,
}
# Names of NRRD spaces in which ITK knows left and right; of others it takes the axes as they are.
SPACES = (
    "left-posterior-superior",
    "right-anterior-superior",
    "left-anterior-superior",
    "lps",
    "ras",
    "las",
)
# Rounded headers: angles between axes are off by no more than this (cosine). Labels may be turned
# against their image by as much, see `images.require_same_grid`.
SHEAR = 1e-3
TAKEN = "x is taken to grow to the left, y to the back, z to the head"
UNITLESS = "the header names no unit of length (said once for all files)"
MATRICES = ("transformmatrix", "rotation", "orientation")  # of the axes of a MetaImage
CONTRADICTION = 1e-2  # of two spacings in one header, relative


@dataclasses.dataclass(frozen=True)
class Header:
    """What a header says.

    Attributes:
      unknown: why the spacing of a volume is unknown; "" where it is known.
      factor: mm of what ITK takes for 1 mm.
      flat_unknown: why that of a 2D image is, which counts as known only in a unit that is named.
      remarks: sentences that a user should read, without the file's name.
      directed: whether it states where the axes point.
    """

    unknown: str = ""
    factor: float = 1.0
    flat_unknown: str = ""
    remarks: tuple[str, ...] = ()
    directed: bool = True


def read(path: pathlib.Path) -> Header:
    """What the header of a file says, by the file's name; of a format without mm, nothing.

    Raises:
      UserError: contradictory sizes, or a geometry that is no numbers.
    """
    name = path.name.lower()
    if name.endswith(NIFTI):
        header = nifti(path)
        directed = header.sform > 0 or header.qform > 0
        return dataclasses.replace(_of_nifti(path, header), directed=directed)
    reason = "the format has no mm"
    try:
        if name.endswith((".nrrd", ".nhdr")):
            fields = _fields(path, ":")
            return dataclasses.replace(_of_nrrd(fields), directed="space directions" in fields)
        if name.endswith((".mha", ".mhd")):
            fields = _fields(path, "=")
            directed = any(name in fields for name in MATRICES)
            return dataclasses.replace(_of_meta(fields), directed=directed)
    except ValueError:
        reason = "its spacing is written in no numbers"
    return Header(reason, flat_unknown=reason, directed=False)


def require_axes(path: pathlib.Path, size: Sequence[int], axes: int) -> None:
    """Raises a `UserError` for an image of over three axes, or four where a fourth is taken."""
    if len(size) > axes:
        expected = "two or three" if axes == 3 else "three, or four with the channels last"
        raise UserError(
            f"{path}: has {len(size)} dimensions, size {tuple(size)}; expected {expected}."
        )


def forget_spacing(path: pathlib.Path) -> None:
    """Makes a file tell no spacing in mm, as its source told none: ITK writes 1 mm then."""
    name = path.name.lower()
    if name.endswith(NIFTI):
        with unpacked(path) as file:
            raw = bytearray(file.read())
        raw[FIELDS[1]["units"][0]] = 0
        path.write_bytes(gzip.compress(raw, mtime=0) if is_packed(path) else raw)
    elif name.endswith(".mha"):
        head, found, rest = path.read_bytes().partition(b"\nElementSpacing =")
        path.write_bytes(head + found.replace(b"ElementSpacing", b"Comment") + rest)


# NIfTI


@dataclasses.dataclass(frozen=True)
class Nifti:
    """A NIfTI header, of version 1 or 2.

    Attributes:
      version: 1 or 2.
      order: "<" or ">", of `struct`.
      dim, pixdim: 8 values each.
      datatype, bits: of a voxel.
      offset: of the voxels, bytes.
      units: code of the length's unit: 0 (none), 1 (m), 2 (mm) or 3 (um); others are unknown.
      qform, sform: codes.
      quaternion: b, c and d of the qform.
      matrix: rows of sform (3, 4).
    """

    version: int
    order: str
    dim: tuple[int, ...]
    pixdim: tuple[float, ...]
    datatype: int
    bits: int
    offset: int
    units: int
    qform: int
    sform: int
    quaternion: tuple[float, ...]
    matrix: np.ndarray

    @property
    def rotation(self) -> np.ndarray:
        """Of the qform, (3, 3): columns are the directions of the axes to right, front and head."""
        b, c, d = self.quaternion
        a = math.sqrt(max(0.0, 1 - b * b - c * c - d * d))
        rotation = np.array(
            [
                [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
                [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
                [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - c * c - b * b],
            ]
        )
        return rotation * [1, 1, -1 if self.pixdim[0] < 0 else 1]


# {version: {field: (offset, format of struct)}}
FIELDS = {
    1: {
        "dim": (40, "8h"),
        "pixdim": (76, "8f"),
        "datatype": (70, "h"),
        "bits": (72, "h"),
        "offset": (108, "f"),
        "units": (123, "B"),
        "qform": (252, "h"),
        "sform": (254, "h"),
        "quaternion": (256, "3f"),
        "matrix": (280, "12f"),
    },
    2: {
        "dim": (16, "8q"),
        "pixdim": (104, "8d"),
        "datatype": (12, "h"),
        "bits": (14, "h"),
        "offset": (168, "q"),
        "units": (500, "i"),
        "qform": (344, "i"),
        "sform": (348, "i"),
        "quaternion": (352, "3d"),
        "matrix": (400, "12d"),
    },
}
SIZES = {348: 1, 540: 2}  # {bytes of the header, its first field: version}


def is_packed(path: pathlib.Path) -> bool:
    """Whether a file is gzipped, whatever its name."""
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def unpacked(path: pathlib.Path) -> Any:
    """A file opened for reading bytes, unpacked where it is gzipped."""
    return gzip.open(path, "rb") if is_packed(path) else path.open("rb")


def nifti(path: pathlib.Path) -> Nifti:
    """The header of a NIfTI file.

    Raises:
      UserError: none.
    """
    try:
        with unpacked(path) as file:
            raw = file.read(540)
    except (EOFError, OSError, gzip.BadGzipFile):
        raw = b""
    for order in "<>":
        size = struct.unpack(f"{order}i", raw[:4])[0] if len(raw) >= 4 else 0
        if size in SIZES and len(raw) >= size:
            break
    else:
        raise UserError(f"{path}: not a readable image; expected an intact NIfTI file.")
    version = SIZES[size]
    values: dict[str, Any] = {
        name: struct.unpack_from(order + form, raw, at)
        for name, (at, form) in FIELDS[version].items()
    }
    single = ("datatype", "bits", "units", "qform", "sform")
    values |= {name: values[name][0] for name in single}
    (offset,) = values["offset"]
    values["offset"] = int(offset) if math.isfinite(offset) else 0
    values["units"] &= 7  # the rest is that of time
    values["matrix"] = np.reshape(values["matrix"], (3, 4)).astype(float)
    return Nifti(version, order, **values)


def shear(matrix: np.ndarray) -> float:
    """How far three axes, the columns of (3, 3), are from right angles: the largest cosine."""
    lengths = np.linalg.norm(matrix, axis=0)
    if not np.all(np.isfinite(lengths)) or not lengths.all():
        return math.inf
    cosines = matrix.T @ matrix / np.outer(lengths, lengths)
    return float(np.abs(cosines - np.eye(3)).max())


def _of_nifti(path: pathlib.Path, header: Nifti) -> Header:
    axes = max(2, min(3, header.dim[0]))
    pixdim = header.pixdim[1 : 1 + axes]
    remarks = []
    if header.sform > 0 and not np.all(np.isfinite(header.matrix)):
        raise UserError(f"{path}: the sform is not finite; expected a matrix of numbers.")
    if not all(math.isfinite(mm) and mm > 0 for mm in pixdim):
        flat = all(math.isfinite(mm) and mm > 0 for mm in pixdim[:2])
        told = f"pixdim is {shown(pixdim)}"
        return Header(told, flat_unknown="" if flat and header.units else told)
    if header.sform > 0:
        lengths = np.linalg.norm(header.matrix[:, :axes], axis=0)
        off = float(np.max(np.abs(lengths / pixdim - 1)))
        if axes == 3 and off > CONTRADICTION:
            told = f"pixdim is {shown(pixdim)}, but the sform's axes are {shown(lengths)} long"
            return Header(told, flat_unknown=told)
        if axes == 3 and header.qform > 0:
            remarks += _disagreement(header)
    elif header.qform <= 0 and axes == 3:
        remarks.append(f"the header states no orientation (qform and sform codes of 0); {TAKEN}")
    if header.units == 0:
        if axes == 3 and header.dim[3] > 1:
            remarks.append(f"{UNITLESS}; mm are taken")
        return Header("", flat_unknown=UNITLESS, remarks=tuple(remarks))
    if header.units > 3:
        told = f"the unit of length is {header.units}, which NIfTI does not know"
        return Header(told, flat_unknown=told)
    return Header(remarks=tuple(remarks))  # ITK converts m and um


def _disagreement(header: Nifti) -> list[str]:
    """A remark where the two geometries of a header are not one; ITK takes the sform unless it is
    sheared."""
    axes = header.matrix[:, :3]
    if shear(axes) > SHEAR:
        return ["the sform is sheared; the qform is taken"]
    ours, theirs = (_orientation(matrix) for matrix in (axes, header.rotation))
    if ours == theirs:
        return []
    return [f"the sform says {ours}, the qform {theirs}; the sform is taken"]


def _orientation(axes: np.ndarray) -> str:
    """Where axes, the columns of (3, 3) to right, front and head, point: such as "RAS"."""
    direction = np.diag([-1, -1, 1]) @ axes / np.linalg.norm(axes, axis=0)
    return sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(
        [float(cosine) for cosine in direction.ravel()]
    )


def shown(values: Sequence[float] | np.ndarray) -> str:
    """Numbers for a message."""
    return f"({', '.join(f'{value:.5g}' for value in values)})"


# NRRD and MetaImage, whose headers are text


def _fields(path: pathlib.Path, sign: str) -> dict[str, str]:
    """{field in small letters: value} of a text header, which an empty line or the voxels end."""
    with path.open("rb") as file:
        text = file.read(1 << 16).decode("latin-1")
    fields: dict[str, str] = {}
    for line in re.split(r"\r?\n", text):
        if not line.strip() and sign == ":":
            break
        name, _, value = line.partition(sign)
        fields.setdefault(name.strip().lower(), value.lstrip("=").strip())
        if name.strip().lower() == "elementdatafile":
            break
    return fields


def _units(text: str) -> list[float | None]:
    """mm of the units in quotes."""
    named = (name.strip().lower() for name in re.findall(r'"([^"]*)"', text))
    return [MILLIMETRES.get(name) for name in named]


def _of_nrrd(fields: dict[str, str]) -> Header:
    kinds = fields.get("kinds", "").lower().split()
    values = sum(kind not in ("domain", "space", "time", "???", "none") for kind in kinds)
    axes = int(fields.get("dimension") or 0) - values
    directions = re.findall(r"none|\([^)]*\)", fields.get("space directions", ""))
    vectors = [v.strip("()").split(",") for v in directions if v != "none"]
    spacings = [text for text in fields.get("spacings", "").split() if text.lower() != "nan"]
    if vectors:
        lengths = [math.hypot(*map(float, vector)) for vector in vectors]
    else:
        lengths = [abs(float(text)) for text in spacings]
    if len(lengths) != axes or not all(math.isfinite(mm) and mm > 0 for mm in lengths):
        told = (
            "the header has neither `space directions` nor `spacings`"
            if not lengths
            else (f"the axes are {shown(lengths)} long")
        )
        return Header(told, flat_unknown=told)
    named = fields.get("space units") if vectors else fields.get("units")
    space, remarks = fields.get("space", "").lower(), []
    if len(lengths) == 3 and not space.startswith(SPACES):
        remarks.append(f"the header states no orientation (space {space or 'is missing'}); {TAKEN}")
    if not named:
        # Spaces named after a patient are of mm in all that writes them.
        told = "" if space.startswith(SPACES) else UNITLESS
        if told and len(lengths) == 3:
            remarks.append(f"{UNITLESS}; mm are taken")
        return Header("", flat_unknown=told, remarks=tuple(remarks))
    factors = set(_units(named)[: len(lengths)])
    if len(factors) != 1 or None in factors:
        told = f"the units of length are {named}"
        return Header(told, flat_unknown=told)
    (factor,) = factors
    return Header(factor=factor or 1.0, remarks=tuple(remarks))


def _of_meta(fields: dict[str, str]) -> Header:
    stated = (fields.get("elementspacing") or fields.get("elementsize") or "").split()
    lengths = [float(text) for text in stated]
    if not lengths or not all(math.isfinite(mm) and mm > 0 for mm in lengths):
        told = f"ElementSpacing is {shown(lengths)}" if lengths else "it has no ElementSpacing"
        return Header(told, flat_unknown=told)
    remarks = []
    if not any(name in fields for name in MATRICES) and len(lengths) == 3:
        remarks.append(f"the header states no orientation (no TransformMatrix); {TAKEN}")
    unit = fields.get("distanceunits", "mm").lower()
    if unit not in MILLIMETRES:
        told = f"DistanceUnits is {unit}"
        return Header(told, flat_unknown=told)
    return Header(factor=MILLIMETRES[unit], remarks=tuple(remarks))
