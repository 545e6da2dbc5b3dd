"""DICOM: the series of a folder, and volumes of their slices.

A volume is made of every slice of a series, or of none: what is amiss with one is said. Slices must
tell where they lie, at different places, evenly spaced along their normal. Each is scaled by its
own slope and intercept, to float32.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Collection, Sequence

import numpy as np
import SimpleITK as sitk

from tf_autoctx.data import dicom_files, integrity, libraries
from tf_autoctx.data.dicom_files import File, Values
from tf_autoctx.data.headers import SHEAR, Header, shown
from tf_autoctx.errors import UserError

UNEVEN = 0.1  # how far steps between slices may differ, of a step
SHOWN = 20  # series that a sentence lists at most
PLANAR, CENTIMETRES = 1, 3  # of an ultrasound region: format and unit


@dataclasses.dataclass(frozen=True)
class Series:
    """A DICOM series in a folder.

    Attributes:
      uid: its SeriesInstanceUID; "" where the files have none.
      number: in the list of the folder's series, from 1.
      description: such as "Thorax 1.0 B30f".
      modality: such as "CT".
      files: its images, sorted by name.
      faulty: files of it, or of the folder, that cannot be read.
    """

    uid: str
    number: int
    description: str
    modality: str
    files: tuple[File, ...]
    faulty: tuple[File, ...] = ()

    def __str__(self) -> str:
        count = sum(file.frames for file in self.files)
        about = [part for part in (self.modality, self.description) if part]
        told = ", ".join([*about, f"{count} slice{'s' * (count != 1)}"])
        told = "".join(letter if letter.isprintable() else "?" for letter in told)
        return f"{self.number}: {self.uid} ({told})"


def series_in(folder: str | pathlib.Path) -> dict[str, Series]:
    """The image series of a folder, of which headers alone are read.

    Every file counts that begins as DICOM does, whatever its name; files with a leading dot do not,
    nor do DICOM files of no image, such as reports.

    Returns:
      {UID: series}, in the order of their SeriesNumber.

    Raises:
      OSError: a file cannot be opened.
    """
    groups: dict[str, list[File]] = {}
    faulty = []
    for path in sorted(pathlib.Path(folder).iterdir()):
        dicom = path.is_file() and (path.suffix.lower() == ".dcm" or dicom_files.is_dicom(path))
        if path.name.startswith(".") or not dicom:
            continue
        file = dicom_files.read(path)
        if file.text(0x00020002) == dicom_files.DIRECTORY:
            continue
        if file.fault and not file.text(dicom_files.SERIES):
            faulty.append(file)
        else:
            groups.setdefault(file.text(dicom_files.SERIES), []).append(file)
    images = {uid: files for uid, files in groups.items() if any(f.is_image for f in files)}
    if not images and faulty:
        images = {"": []}
    series = {}
    for number, uid in enumerate(sorted(images, key=lambda uid: _order(uid, images[uid])), 1):
        files = images[uid]
        whole = tuple(file for file in files if not _fault(file))
        broken = [dataclasses.replace(f, fault=_fault(f)) for f in files if _fault(f)]
        description, modality = (
            next((file.text(tag) for file in files if file.text(tag)), "")
            for tag in (dicom_files.DESCRIPTION, dicom_files.MODALITY)
        )
        series[uid] = Series(uid, number, description, modality, whole, (*broken, *faulty))
    return series


def _order(uid: str, files: Sequence[File]) -> tuple[float, str]:
    numbers = [number for file in files for number in file.numbers(dicom_files.NUMBER)[:1]]
    return min(numbers, default=np.inf), uid


def _fault(file: File) -> str:
    """Why a file of an image series is none of its images."""
    return file.fault or ("" if file.is_image and file.pixels else "has no pixels")


def chosen(folder: pathlib.Path, series: str | int | None) -> Series:
    """The series of a folder that is wanted, see `images.read`.

    Raises:
      UserError: there is none, or several and none is chosen; the sentence lists them. A number
        chooses where there are several.
    """
    known = series_in(folder)
    wanted = "" if series is None else str(series)
    if not known:
        raise UserError(f"{folder}: holds 0 DICOM series; expected one series or an image file.")
    if len(known) == 1 and (not wanted or wanted.isdecimal()):
        return next(iter(known.values()))
    for candidate in known.values():
        if wanted and wanted in (candidate.uid, str(candidate.number)):
            return candidate
    if not wanted and len(slices := scattered(known.values())) == len(known):
        raise UserError(f"{folder}: holds {_alone(slices)}.")
    listed = "; ".join(str(candidate) for candidate in list(known.values())[:SHOWN])
    more = f"; and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
    if wanted:
        raise UserError(
            f"{folder}: has no series {wanted}, but {listed}{more}; expected the UID or number of "
            "one of them."
        )
    raise UserError(
        f"{folder}: holds {len(known)} DICOM series, {listed}{more}; choose one by its UID or "
        "number (`series`; of a data set, the column series of a CSV file)."
    )


def read_folder(folder: pathlib.Path, series: str | int | None) -> tuple[sitk.Image, Header]:
    """The volume of a series; of one file alone, its image.

    Raises:
      UserError: see `images.read`.
    """
    picked = chosen(folder, series)
    if picked.faulty:
        broken = picked.faulty[0]
        others = len(picked.faulty) - 1
        more = f" (and {others} more)" if others else ""
        raise UserError(
            f"{broken.path}: {broken.fault}{more}; expected every slice of the series in {folder} "
            "whole."
        )
    remarks = (f"takes the series {picked}",) if series else ()
    if len(picked.files) == 1:
        image, header = read_file(picked.files[0].path)
        return image, dataclasses.replace(header, remarks=(*header.remarks, *remarks))
    many = [file for file in picked.files if file.frames > 1]
    if many:
        raise UserError(
            f"{folder}: {many[0].path.name} has {many[0].frames} frames and is one of "
            f"{len(picked.files)} files of a series; expected one such file or one slice a file."
        )
    slices = [Slice.of(file, file.path.name, [file.values]) for file in picked.files]
    slices, geometry = _stacked(folder, slices)
    told: set[str] = set()
    voxels = np.stack([_pixels(piece.file, told) for piece in slices])
    return geometry.image(voxels), Header(remarks=remarks)


def read_file(path: pathlib.Path) -> tuple[sitk.Image, Header]:
    """The image of one file: a slice or a picture, or a volume of frames in float32.

    Raises:
      UserError: see `images.read`.
    """
    _require_whole(path)
    file = dicom_files.read(path)
    _require_plain_values(file)
    if file.frames > 1:
        return _of_frames(file)
    reader = _reader(path)
    with libraries.heard(path):
        image = reader.Execute()
    turned = "its high values are meant to be dark (MONOCHROME1), so they are turned round"
    remarks = (turned,) if file.is_turned_round else ()
    pixel, why = _pixel_size(file)
    step = [mm for tag in (dicom_files.BETWEEN, dicom_files.THICKNESS) for mm in file.numbers(tag)]
    step = [mm for mm in step if mm > 0][:1]
    placed = all(file.numbers(tag) for tag in (dicom_files.POSITION, dicom_files.ORIENTATION))
    unknown = why or ("" if step else "it states no thickness of its slice")
    unknown = unknown or ("" if placed else "it states no position and orientation")
    if pixel:
        edges = (*pixel, *(step or [1.0])) if image.GetDimension() == 3 else pixel
        image.SetSpacing(edges)
    return image, Header(unknown, flat_unknown=why, remarks=remarks, directed=placed)


def scattered(known: Collection[Series]) -> list[File]:
    """Slices of a patient that are each a series of its own, as anonymisers with random UIDs leave
    them; none unless there are several places."""
    alone = [s.files[0] for s in known if len(s.files) == 1 and s.files[0].is_slice]
    patients, places = (
        {file.text(tag) for file in alone} for tag in (dicom_files.PATIENT, dicom_files.POSITION)
    )
    return alone if len(places) > 1 and len(patients) == 1 else []


def _alone(slices: Collection[File]) -> str:
    return (
        f"{len(slices)} DICOM files of one slice, each a series of its own; expected one "
        "SeriesInstanceUID for the slices of a volume"
    )


def require_whole_volume(path: pathlib.Path) -> None:
    """Raises a `UserError` where a file is one of several slices in its folder."""
    known = series_in(path.parent)
    uid = dicom_files.read(path).text(dicom_files.SERIES)
    count = len(known[uid].files) if uid in known else 1
    if uid and count > 1:
        raise UserError(
            f"{path}: is one of {count} slices of a DICOM series; expected a volume, give its "
            f"folder, {path.parent}."
        )
    slices = scattered(known.values())
    if path.name in [file.path.name for file in slices]:
        raise UserError(f"{path}: is one of {_alone(slices)}.")


# Geometry


@dataclasses.dataclass(frozen=True)
class Slice:
    """A slice and where it lies.

    Attributes:
      file: of its pixels.
      name: for messages.
      frame: which image of the file.
      position: (x, y, z) mm of its first pixel.
      axes: directions of a row and of a column, (2, 3).
      pixel: edges along a row and along a column, mm.
      size: columns and rows.
    """

    file: File
    name: str
    frame: int
    position: np.ndarray
    axes: np.ndarray
    pixel: np.ndarray
    size: tuple[float, float]

    @classmethod
    def of(cls, file: File, name: str, places: Sequence[Values], frame: int = 0) -> Slice:
        """A slice from the first of some groups of values that has each.

        Raises:
          UserError: it does not tell where it lies or how large its pixels are.
        """
        _require_plain_values(file)

        def numbers(tag: int, count: int, what: str) -> np.ndarray:
            for values in places:
                found = file.numbers(tag, values)
                if len(found) == count and np.all(np.isfinite(found)):
                    return np.array(found)
            raise UserError(
                f"{file.path}: {name} tells no {what}; expected that of every slice of a volume."
            )

        position = numbers(dicom_files.POSITION, 3, "position (ImagePositionPatient)")
        axes = numbers(dicom_files.ORIENTATION, 6, "orientation (ImageOrientationPatient)")
        pixel = numbers(dicom_files.SPACING, 2, "spacing (PixelSpacing)")[::-1]
        if not np.all(pixel > 0):
            raise UserError(
                f"{file.path}: {name} has pixels of {shown(pixel)} mm; expected lengths."
            )
        size = tuple(file.stored(tag, "H") for tag in (dicom_files.COLUMNS, dicom_files.ROWS))
        return cls(file, name, frame, position, axes.reshape(2, 3), pixel, (size[0], size[1]))

    @property
    def normal(self) -> np.ndarray:
        """Of the slice, of length 1."""
        normal = np.cross(*self.axes)
        return normal / np.linalg.norm(normal)


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Of a volume, as SimpleITK takes it."""

    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]

    def image(self, voxels: np.ndarray) -> sitk.Image:
        """A volume of voxels (z, y, x)."""
        image = sitk.GetImageFromArray(voxels)
        image.SetSpacing(self.spacing)
        image.SetOrigin(self.origin)
        image.SetDirection(self.direction)
        return image


def _stacked(where: pathlib.Path, slices: Sequence[Slice]) -> tuple[list[Slice], Geometry]:
    """Slices in the order of their places along the normal, and the geometry of their volume.

    Raises:
      UserError: they are of several sizes or orientations, lie at one place, unevenly, or not
        along their normal.
    """
    first = slices[0]
    _require_axes(where, first)
    for other in slices[1:]:
        for what, ours, theirs, tolerance in (
            ("size", first.size, other.size, 0),
            ("pixels", first.pixel / first.pixel, other.pixel / first.pixel, SHEAR),
            ("orientation", first.axes.ravel(), other.axes.ravel(), SHEAR),
        ):
            if not np.allclose(ours, theirs, 0, tolerance):
                raise UserError(
                    f"{where}: {other.name} is of another {what} than {first.name} in one series; "
                    "expected slices of one volume."
                )
    normal = first.normal
    heights = np.array([float(piece.position @ normal) for piece in slices])
    order = np.argsort(heights, kind="stable")
    slices, heights = [slices[k] for k in order], heights[order]
    _require_even(where, slices, heights)
    step = float(heights[-1] - heights[0]) / (len(slices) - 1)
    _require_upright(where, slices, heights)
    x = slices[0].axes[0] / np.linalg.norm(slices[0].axes[0])
    direction = np.stack([x, np.cross(normal, x), normal], axis=1)
    spacing = (*slices[0].pixel, step)
    return slices, Geometry(
        tuple(map(float, spacing)),
        tuple(map(float, slices[0].position)),
        tuple(map(float, direction.ravel())),
    )


def _require_axes(where: pathlib.Path, piece: Slice) -> None:
    lengths = np.linalg.norm(piece.axes, axis=1)
    if np.any(np.abs(lengths - 1) > SHEAR) or abs(piece.axes[0] @ piece.axes[1]) > SHEAR:
        raise UserError(
            f"{where}: {piece.name} has the axes {shown(piece.axes.ravel())}; expected two of "
            "length 1 at right angles."
        )


def _require_even(where: pathlib.Path, slices: Sequence[Slice], heights: np.ndarray) -> None:
    """Raises a `UserError` for slices at one place, or unevenly spaced ones, in order."""
    steps = np.diff(heights)
    typical = float(np.median(steps))
    near = int(np.argmin(steps))
    if steps[near] <= max(1e-4, 1e-3 * typical):
        raise UserError(
            f"{where}: {slices[near].name} and {slices[near + 1].name} lie at one place; expected "
            "one volume, each slice at a place of its own."
        )
    if np.ptp(steps) > UNEVEN * typical:
        wide = int(np.argmax(steps))
        raise UserError(
            f"{where}: slices {steps.min():.4g} to {steps.max():.4g} mm apart; expected even "
            f"steps, none missing (the widest lies between {slices[wide].name} and "
            f"{slices[wide + 1].name})."
        )


def _require_upright(where: pathlib.Path, slices: Sequence[Slice], heights: np.ndarray) -> None:
    """Raises a `UserError` where slices do not lie along their normal, as of a tilted gantry."""
    positions = np.array([piece.position for piece in slices])
    moved = positions - positions[0]
    aside = np.linalg.norm(moved - np.outer(heights - heights[0], slices[0].normal), axis=1)
    allowed = np.maximum(SHEAR * (heights - heights[0]), UNEVEN * slices[0].pixel.min())
    if np.any(aside > allowed):
        worst = int(np.argmax(aside - allowed))
        raise UserError(
            f"{where}: {slices[worst].name} lies {aside[worst]:.4g} mm beside the normal of the "
            f"first slice, {slices[0].name} (a tilted gantry?); expected slices along it, resample "
            "the series."
        )


# Pixels


def _pixels(file: File, told: set[str]) -> np.ndarray:
    """Of one slice, (y, x) float32."""
    _require_whole(file.path)
    reader = _reader(file.path)
    try:
        with libraries.heard(file.path, told=told):
            reader.ReadImageInformation()
            values = reader.GetNumberOfComponents()
            if values == 1:
                reader.SetOutputPixelType(sitk.sitkFloat32)
            image = reader.Execute()
    except RuntimeError:
        syntax = file.text(dicom_files.SYNTAX)
        raise UserError(
            f"{file.path}: its pixels cannot be read (transfer syntax {syntax}); expected an "
            "intact file of a common syntax."
        ) from None
    if values > 1:
        raise UserError(f"{file.path}: holds colour; expected one (grey) value per voxel.")
    voxels = sitk.GetArrayFromImage(image)
    voxels = voxels.reshape(voxels.shape[-2:])
    return _as_stored(file, voxels) if file.is_turned_round else voxels


def _as_stored(file: File, voxels: np.ndarray) -> np.ndarray:
    """What a slice measures (HU), where GDCM has turned its values round before it scaled them."""
    slope, intercept = (
        (file.numbers(tag) or [default])[0]
        for tag, default in ((dicom_files.SLOPE, 1.0), (dicom_files.INTERCEPT, 0.0))
    )
    signed = file.stored(dicom_files.SIGNED, "H") == 1
    largest = -1 if signed else 2 ** file.stored(dicom_files.BITS, "H") - 1
    return np.float32(slope * largest + 2 * intercept) - voxels


def _require_whole(path: pathlib.Path) -> None:
    """`integrity.check` of a DICOM file of any name."""
    integrity.claims.require_name(path)
    integrity.CHECKS["DICOM"](path)


def _reader(path: pathlib.Path) -> sitk.ImageFileReader:
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")  # whatever the file's name
    reader.SetFileName(str(path))
    return reader


def _require_plain_values(file: File) -> None:
    """Raises a `UserError` for values that pass through a table, which ITK leaves out, and for
    bits, of which it makes other bytes."""
    if file.stored(dicom_files.ALLOCATED, "H") == 1:
        raise UserError(
            f"{file.path}: has one bit a voxel, as DICOM segmentation objects have; expected an "
            "image or a label of bytes, such as NIfTI."
        )
    if file.items(dicom_files.TABLE):
        raise UserError(
            f"{file.path}: its values pass through a table (ModalityLUTSequence); expected a slope "
            "and an intercept, convert it."
        )


def _of_frames(file: File) -> tuple[sitk.Image, Header]:
    """The volume of a file of many frames."""
    if file.is_turned_round:
        raise UserError(
            f"{file.path}: its values are stored for the opposite grey scale (MONOCHROME1); "
            "expected MONOCHROME2, convert it."
        )
    reader = _reader(file.path)
    with libraries.heard(file.path):
        image = reader.Execute()
    if image.GetNumberOfComponentsPerPixel() > 1 or image.GetDimension() != 3:
        why = _pixel_size(file)[1]
        return image, Header("its frames are pictures", flat_unknown=why, directed=False)
    voxels = sitk.GetArrayFromImage(image).astype(np.float32)
    shared = file.items(dicom_files.SHARED)[:1]
    frames = file.items(dicom_files.EACH)
    if len(frames) != len(voxels):
        frames = _by_offsets(file, len(voxels))
    if not frames:
        return image, Header("its frames tell no positions")
    slices = []
    for number, frame in enumerate(frames):
        places = [_flat(file, group) for group in (frame, *shared)]
        slices.append(Slice.of(file, f"frame {number + 1}", [*places, file.values], number))
    scales = {_scale(file, [frame, *shared]) for frame in frames}
    if len(scales) > 1:
        raise UserError(
            f"{file.path}: its frames have {len(scales)} slopes or intercepts; expected one of "
            "each, or one slice a file."
        )
    slices, geometry = _stacked(file.path, slices)
    return geometry.image(voxels[[piece.frame for piece in slices]]), Header()


def _flat(file: File, group: Values) -> Values:
    """The values of a frame's functional groups that say where it lies."""
    flat: Values = dict(group)
    for tag in (dicom_files.PLANE_POSITION, dicom_files.PLANE_ORIENTATION, dicom_files.MEASURES):
        for item in file.items(tag, group):
            flat |= item
    return flat


def _scale(file: File, groups: Sequence[Values]) -> tuple[float, ...]:
    for group in groups:
        for item in file.items(dicom_files.TRANSFORM, group):
            return (
                *file.numbers(dicom_files.SLOPE, item),
                *file.numbers(dicom_files.INTERCEPT, item),
            )
    return ()


def _by_offsets(file: File, count: int) -> list[Values]:
    """Groups of frames whose file states one position and a step, or the offset of each."""
    position, axes = (file.numbers(t) for t in (dicom_files.POSITION, dicom_files.ORIENTATION))
    offsets = file.numbers(dicom_files.OFFSETS)
    step = [mm for mm in file.numbers(dicom_files.BETWEEN) if mm > 0]
    if not offsets and step:
        offsets = [step[0] * number for number in range(count)]
    if len(position) != 3 or len(axes) != 6 or len(offsets) != count:
        return []
    normal = np.cross(axes[:3], axes[3:])
    if abs(offsets[0]) > 1e-6 and np.isclose(offsets[0], position[2]):
        offsets = [offset - offsets[0] for offset in offsets]  # places, not steps
    places = [np.array(position) + offset * normal for offset in offsets]
    return [
        {dicom_files.POSITION: "\\".join(map(repr, map(float, place))).encode()} for place in places
    ]


def _pixel_size(file: File) -> tuple[tuple[float, float] | None, str]:
    """((along a row, along a column) mm, ""), or (None, why they are unknown)."""
    spacing = [mm for mm in file.numbers(dicom_files.SPACING) if np.isfinite(mm) and mm > 0]
    if len(spacing) == 2:
        return (spacing[1], spacing[0]), ""
    measured = {
        (
            round(10 * abs(file.stored(dicom_files.DELTA_X, "d", region)), 9),
            round(10 * abs(file.stored(dicom_files.DELTA_Y, "d", region)), 9),
        )
        for region in file.items(dicom_files.REGIONS)
        if file.stored(dicom_files.FORMAT, "H", region) == PLANAR
        and file.stored(dicom_files.UNITS_X, "H", region) == CENTIMETRES
        and file.stored(dicom_files.UNITS_Y, "H", region) == CENTIMETRES
    }
    if len(measured) > 1:
        return None, "its ultrasound regions are calibrated differently"
    for pixel in measured:
        if min(pixel) > 0:
            return pixel, ""
    if file.numbers(dicom_files.DETECTOR):
        return None, "ImagerPixelSpacing is that of the detector, and there is no PixelSpacing"
    return None, "it has no PixelSpacing"
