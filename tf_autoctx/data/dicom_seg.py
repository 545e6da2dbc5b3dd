"""Segmentations as DICOM objects (SEG), by highdicom: segments on the slices of a series.

A plane of a label is the slice, or the frame, of its place; no voxel is turned or resampled. Planes
without any structure are left out; where nothing was segmented at all, they are all there. Every
object is a series of its own, with new UIDs, in the study and frame of reference of its source, of
whose patient it is. pydicom and highdicom are imported where they are needed.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import pathlib
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import SimpleITK as sitk

from tf_autoctx.data import dicom, dicom_files, image_files, images, segment_codes
from tf_autoctx.data.segment_codes import Code, Codes
from tf_autoctx.errors import FieldError, UserError
from tf_autoctx.files import replacing
from tf_autoctx.version import __version__

Path = str | os.PathLike[str]

FORMAT, SUFFIX = "dicom_seg", ".dcm"
MAKER = "tf_autoctx"
LEARNT = Code("123110", "DCM", "Artificial Intelligence")
UTF8 = "ISO_IR 192"
LONGEST = 64  # name of a segment
LATER = 1000  # is added to the number of the source's series, so that viewers list it behind
# What an object refers to
IDENTITY = (
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SOPClassUID",
    "SOPInstanceUID",
    "FrameOfReferenceUID",
)
# Of patient and study, which may be empty and must be there
PERSONAL = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
)


@dataclasses.dataclass(frozen=True)
class Segment:
    """A structure of a label.

    Attributes:
      name: of it.
      values: label values of its voxels.
      codes: what it is.

    Raises:
      UserError: a name that DICOM cannot hold.
    """

    name: str
    values: tuple[int, ...]
    codes: Codes

    def __post_init__(self) -> None:
        if not segment_codes.fits(self.name, LONGEST):
            raise UserError(
                f"`output_format={FORMAT}`: a structure is called {self.name!r}; expected at most "
                f"{LONGEST} letters without a backslash."
            )


@dataclasses.dataclass(frozen=True)
class Template:
    """What the objects of a model have in common.

    Attributes:
      system: name of the model's system.
      segments: which may overlap.
      series: of DICOM folders that hold several, see `images.read`.
    """

    system: str
    segments: tuple[Segment, ...]
    series: str | None = None


ANY = Template("", (Segment("any", (1,), Codes(segment_codes.ANATOMY)),))


def require_installed() -> None:
    """Raises a `FieldError` where the packages of the extra are missing."""
    for package in ("highdicom", "pydicom"):
        if importlib.util.find_spec(package) is None:
            raise FieldError(
                "output_format",
                FORMAT,
                f"{package} is not installed; run pip install 'tf_autoctx[dicom]', or choose "
                "another format.",
            )


def require_dicom(path: Path) -> None:
    """Raises a `UserError` for an image that is no DICOM, of which headers alone are looked at."""
    first = image_files.channels(path)[0]
    if first.is_file() and not dicom_files.is_dicom(first):
        raise UserError(
            f"{first}: is no DICOM file; expected one, or a DICOM folder, to which a segmentation "
            "refers, or another `output_format`."
        )


def read_raw(
    path: Path, dimensions: int, series: str | int | None = None, channels: int = 1
) -> images.Image:
    """`images.read_raw` of an image that a segmentation can refer to: an empty one is made of it.

    Raises:
      UserError: see `images.read_raw`; a header that lacks what an object needs, such as a frame of
        reference, or has what it cannot hold.
    """
    image = images.read_raw(path, dimensions, series, channels)
    try:
        with warnings.catch_warnings(action="ignore"):  # of values that are carried over
            source, places = _source(path, series)
            planes = (*image.grid.size, 1)[2]
            if len(places) != planes:
                raise UserError(
                    f"{path}: {len(places)} of {planes} frames tell a position of their own; "
                    "expected all of them for a DICOM segmentation, or another `output_format`."
                )
            empty = np.zeros((planes, source[0].Rows, source[0].Columns), np.uint8)
            _made(source, empty, ANY, "")
    except (AttributeError, LookupError, NotImplementedError, TypeError, ValueError) as error:
        reason = str(error).rstrip(".")
        raise UserError(
            f"{path}: no DICOM segmentation can refer to it ({reason}); expected another header, "
            "or another `output_format`."
        ) from error
    return image


def write(path: Path, label: sitk.Image, source: Path, template: Template, model: str) -> None:
    """Writes a label as a segmentation object, whole or not at all.

    Args:
      path: of the object.
      label: uint8, on its image's own grid, see `images.Frame.like`.
      source: its image, which `read_raw` has read; of several channels the first is referred to.
      template: what its segments are.
      model: digest of whatever made it, of at most 64 letters.

    Raises:
      UserError: it cannot be written.
    """
    planes = sitk.GetArrayFromImage(label)
    planes = planes.reshape(-1, *planes.shape[-2:])
    with warnings.catch_warnings(action="ignore"), replacing(path) as partial:
        headers, places = _source(source, template.series)
        pixels = _pixels(planes[places], template.segments)
        _made(headers, pixels, template, model).save_as(partial, enforce_file_format=True)


def _pixels(label: np.ndarray, segments: Sequence[Segment]) -> np.ndarray:
    """Numbers of segments, (plane, y, x) uint8; where they overlap (plane, y, x, segment) bool."""
    values = [value for segment in segments for value in segment.values]
    if len({*values}) < len(values):
        return np.stack([np.isin(label, segment.values) for segment in segments], axis=-1)
    numbers = np.zeros(256, np.uint8)
    for number, segment in enumerate(segments, 1):
        numbers[list(segment.values)] = number
    return numbers[label]


def _made(headers: list[Any], pixels: np.ndarray, template: Template, model: str) -> Any:
    """The object, a `highdicom.seg.Segmentation`, see `_source` and `_pixels`."""
    import highdicom
    from pydicom.sr.coding import Code as Concept

    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=f"{MAKER} {template.system}".strip(),
        family=Concept(*LEARNT),
        version=__version__,
        source=MAKER,
        parameters={"model": model},
    )
    described = []
    for number, segment in enumerate(template.segments, 1):
        item = highdicom.seg.SegmentDescription(
            number,
            segment.name,
            Concept(*segment.codes.category),
            Concept(*segment.codes.type),
            "AUTOMATIC",
            algorithm,
        )
        if segment.codes.modifier:
            modifier = highdicom.sr.CodedConcept(*segment.codes.modifier)
            (of_type,) = item.SegmentedPropertyTypeCodeSequence
            of_type.SegmentedPropertyTypeModifierCodeSequence = [modifier]
        described.append(item)
    return highdicom.seg.Segmentation(
        headers,
        pixels,
        "BINARY",
        described,
        series_instance_uid=highdicom.UID(),
        series_number=int(headers[0].get("SeriesNumber") or 0) + LATER,
        series_description=f"Segmentation by {MAKER} {template.system}".strip(),
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer=MAKER,
        manufacturer_model_name=template.system,
        software_versions=__version__,
        device_serial_number=model,
        content_label="SEGMENTATION",
        omit_empty_frames=bool(pixels.any()),
        specific_character_set=UTF8,
    )


def _source(path: Path, series: str | int | None) -> tuple[list[Any], np.ndarray]:
    """What highdicom is to know of a source.

    Returns:
      (headers, a `pydicom.Dataset` each, of every slice or of the one file of many frames; of each
      slice or frame the place of its plane in the volume, as `dicom` stacks them).

    Raises:
      UserError: a header without a UID.
      AttributeError, LookupError, TypeError, ValueError: one that lacks something else.
    """
    import pydicom

    first = pathlib.Path(image_files.channels(path)[0])
    files = [file.path for file in dicom.chosen(first, series).files] if first.is_dir() else [first]
    headers = [pydicom.dcmread(file, stop_before_pixels=True, force=True) for file in files]
    for file, header in zip(files, headers):
        for name in IDENTITY:
            if not header.get(name):
                raise UserError(
                    f"{file}: has no {name}; expected one, to which a DICOM segmentation refers, "
                    "or another `output_format`."
                )
    headers[0].decode()  # of whatever character set, as the object has its own
    for name in PERSONAL:
        if name not in headers[0]:
            setattr(headers[0], name, "")
    if "PerFrameFunctionalGroupsSequence" in headers[0]:
        return headers, _places_of_frames(headers[0])
    return headers, _places_of_slices(headers)


def _places_of_slices(headers: Sequence[Any]) -> np.ndarray:
    """Places of slices; their headers then say alike how they lie, as our reader takes them."""
    first = headers[0]
    if "ImagePositionPatient" not in first:
        return np.zeros(1, int)  # a picture
    axes = first.ImageOrientationPatient
    for header in headers:
        header.ImageOrientationPatient = axes
    if "SliceThickness" not in first:
        first.SliceThickness = None
    return _places(first, axes, [header.ImagePositionPatient for header in headers])


def _places_of_frames(header: Any) -> np.ndarray:
    """Places of the frames of a file; what each frame repeats then stands in the shared groups."""
    (shared,) = header.SharedFunctionalGroupsSequence
    frames = header.PerFrameFunctionalGroupsSequence
    for name in ("PlaneOrientationSequence", "PixelMeasuresSequence"):
        if name not in shared:
            setattr(shared, name, getattr(frames[0], name))
    axes = shared.PlaneOrientationSequence[0].ImageOrientationPatient
    positions = [frame.PlanePositionSequence[0].ImagePositionPatient for frame in frames]
    return _places(shared.PixelMeasuresSequence[0], axes, positions)


def _places(
    measures: Any, axes: Sequence[float], positions: Sequence[Sequence[float]]
) -> np.ndarray:
    """Places along the normal, from 0; `measures` then have their distance."""
    from pydicom.valuerep import format_number_as_ds

    normal = np.cross(np.array(axes[:3], float), np.array(axes[3:], float))
    heights = np.array(positions, float) @ normal
    if len(heights) > 1:
        step = float(np.ptp(heights) / np.linalg.norm(normal)) / (len(heights) - 1)
        measures.SpacingBetweenSlices = format_number_as_ds(step)
    return np.argsort(np.argsort(heights, kind="stable"), kind="stable")
