"""Label images: one reader for training and scoring, and what voxels of no label mean.

Labels are whole numbers from 0, the background, in a format that keeps them. What is no label is
refused: probabilities, resampled or lossy labels, several colours.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from absl import logging

from tf_autoctx.data import dicom, dicom_files, images, segments
from tf_autoctx.data.integrity import recognition, tiff
from tf_autoctx.errors import UserError

Path = str | os.PathLike[str]

# Value of the voxels that are neither learnt from nor scored, wherever a label is read.
IGNORED = 255
IGNORE = "ignore"  # their name in a dataset.json (nnU-Net)

LARGEST = 65535  # label value
WHOLE = 1e-3  # how far a stored value may be off its whole number
MASKS = (1, 255)  # how the object of a mask is written
OUTLINE = 0.1  # from this share on, holes look like those of outlines

GREY_PNG, GREY_TIFF = 0, 1  # type of colour, photometric interpretation
LOSSY_TIFF = {6: "JPEG", 7: "JPEG", 33003: "JPEG 2000", 33005: "JPEG 2000", 34712: "JPEG 2000"}
LOSSY, TRANSFER_SYNTAX = 0x00282110, 0x00020010  # of DICOM
JPEG_OF_DICOM = "1.2.840.10008.1.2.4."
LOSSY_SYNTAXES = tuple(JPEG_OF_DICOM + kind for kind in ("50", "51", "81", "203"))


def ignored(known: Mapping[int, str]) -> int | None:
    """The label value of the voxels that are left out of loss and scores; None: there is none.

    Args:
      known: {label value: name} of a data set.

    Raises:
      UserError: a structure has the value that marks such voxels here.
    """
    values = [value for value, name in known.items() if value and name.casefold() == IGNORE]
    if not values:
        return None
    if len(values) > 1 or known.get(IGNORED, IGNORE).casefold() != IGNORE:
        raise UserError(
            f"labels {dict(known)}: expected one {IGNORE!r} label, and beside it no label of "
            f"{IGNORED}, which marks it."
        )
    return values[0]


def left_out(
    prediction: np.ndarray, truth: np.ndarray, structures: Collection[int] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """Prediction and truth with background in both where the truth is `IGNORED`.

    Args:
      prediction, truth: of equal shape.
      structures: label values; where one is that of `IGNORED`, nothing is left out.
    """
    out = truth == IGNORED
    if IGNORED in structures or not out.any():
        return prediction, truth
    zero = np.zeros((), prediction.dtype)
    return np.where(out, zero, prediction), np.where(out, np.zeros((), truth.dtype), truth)


def read(
    path: Path,
    dimensions: int | None,
    known: Mapping[int, str] | Collection[int] | None = None,
    foreground: Collection[int] | None = None,
    truth: bool = True,
    single: bool = True,
    names: Mapping[int, str] | None = None,
    of: images.Image | None = None,
) -> tuple[images.Image, np.ndarray]:
    """Reads a label image.

    - Whole numbers within 1e-3 are rounded.
    - Colours: black (or transparent) is the background, one other colour is the object, 1, where
      no more than one structure is known. Grey pixels that are stored as colours are their grey
      values.
    - Grey values of 2 or 4 bits are those that are stored, not stretched to 255.
    - Masks have their object as 1 or as 255. Where that is no known value, it is the value of the
      only structure that is known, if that is 1 or 255 too; 255 is 1 where nothing is known.
    - Voxels of the label that is called "ignore" are `IGNORED`.
    - Segments of 3D Slicer (.seg.nrrd) have the values of their names, see `segments.labelled`.

    Args:
      path: an image file or a DICOM folder.
      dimensions: of the image, 2 or 3; None takes either.
      known: {label value: name} or the label values alone; background may lack. None or empty: any,
        in 2D any one beside the background.
      foreground: values that the user names; where nothing is known, others may lie beside them.
      truth: whether it is a ground truth, which has some background, and whose outlines get a
        warning; a prediction may be whatever it is.
      single: whether there is one structure, as far as `known` tells, that a colour may stand for.
      names: {label value: name} of segments; None: `known`, where it has names.
      of: the image of the label, to whose grid segments are brought, see `segments.on_grid`.

    Returns:
      (image: its grid, whole numbers of its shape).

    Raises:
      UserError: see `images.read` and `segments`; a lossy format, several colours, fractions,
        negative or unknown values, no background, in 2D several values that nobody named.
    """
    require_lossless(path)
    image, voxels = _opened(path, dimensions)
    channels = image.image.GetNumberOfComponentsPerPixel()
    if segments.is_one(path):
        layers = whole(path, voxels if channels > 1 else voxels[..., None])
        named = names if names is not None else known if isinstance(known, Mapping) else None
        label = segments.labelled(path, layers, named or {})
        if of is not None:
            image, label = segments.on_grid(image, label, of)
    else:
        single = single and len({*(known or ())} - {0}) < 2
        label = whole(path, _without_colours(path, voxels, channels, single))
        label //= _stretch(path)
    label = _of_known_values(path, label, known or {}, foreground or ())
    if truth:
        if label.all():
            raise UserError(
                f"{path}: has no background, its values are {np.unique(label)[:5].tolist()}; "
                "expected 0 around the objects."
            )
        warn_of_outlines(path, label)
    return image, label


def whole(path: Path, voxels: np.ndarray) -> np.ndarray:
    """Values that are whole numbers from 0 to 65535, within 1e-3, as integers.

    Raises:
      UserError: others.
    """
    values = np.unique(voxels)
    rounded = np.rint(values)
    off = values[np.abs(values - rounded) > WHOLE]
    if off.size:
        raise UserError(
            f"{path}: has the label values {_shown(off)}; expected whole numbers, not "
            "probabilities or labels that were interpolated."
        )
    if rounded[0] < 0:
        raise UserError(
            f"{path}: has the label values {_shown(rounded[rounded < 0])}; expected values from 0."
        )
    if float(rounded[-1]) > LARGEST:
        raise UserError(
            f"{path}: has the label value {rounded[-1]:.0f}; expected values of up to {LARGEST}."
        )
    rounded_voxels = voxels if voxels.dtype.kind in "iub" else np.rint(voxels)
    return rounded_voxels.astype(np.uint8 if rounded[-1] <= IGNORED else np.int32)


def require_lossless(path: Path) -> None:
    """Raises a `UserError` for JPEG, whatever its suffix, TIFF with JPEG inside and lossy DICOM, a
    file or a series."""
    path = pathlib.Path(path)
    files = [path] if path.is_file() else []
    if path.is_dir():
        files = [file.path for file in dicom.chosen(path, None).files]
    for file in files:
        if kind := _lossy(file):
            raise UserError(
                f"{file}: {kind} changes label values; expected a lossless format such as PNG."
            )


def warn_of_outlines(path: Path, label: np.ndarray) -> None:
    """Warns of structures that look drawn as outlines, with how far filling would change them.

    A hole counts where it is background alone, enclosed in the plane of the last two axes.
    """
    from scipy import ndimage

    grown = {}
    for value, box in enumerate(ndimage.find_objects(label.astype(np.int32)), start=1):
        if box is None or (value == IGNORED):
            continue
        inside = label[box]
        mask = inside == value
        share = _enclosed(inside, mask) / np.count_nonzero(mask)
        if share > OUTLINE:
            grown[value] = share
    if grown:
        what = "area" if label.ndim == 2 else "volume"
        logging.warning(
            "%s: the label looks like an outline, not a filled mask; filling would change the %s "
            "by %s.",
            path,
            what,
            ", ".join(f"+{100 * share:.0f} % (label {value})" for value, share in grown.items()),
        )


def _enclosed(label: np.ndarray, mask: np.ndarray) -> int:
    """Number of background voxels that a mask encloses in planes of the last two axes."""
    from scipy import ndimage

    border = [(0, 0)] * (label.ndim - 2) + [(1, 1)] * 2
    label, outside = np.pad(label, border), ~np.pad(mask, border)
    plane = ndimage.generate_binary_structure(2, 1)
    if label.ndim == 3:
        plane = np.stack([np.zeros_like(plane), plane, np.zeros_like(plane)])
    parts, count = ndimage.label(outside, plane)
    hole = np.ones(count + 1, bool)
    hole[0] = False
    hole[parts[..., 0, 0].ravel()] = False
    hole[parts[outside & (label != 0)]] = False
    return int(np.count_nonzero(hole[parts]))


def _opened(path: Path, dimensions: int | None) -> tuple[images.Image, np.ndarray]:
    """The image, and its voxels of its shape or with a last axis of colours."""
    image = None if dimensions == 2 else images.read(path, colour=True)
    is_slice = image is not None and image.image.GetSize()[2:] == (1,)
    if image is None or (dimensions is None and is_slice and segments.is_one(path)):
        image = images.read_2d(path, colour=True)
    if image.dimensions == 2 and segments.is_one(path):
        # A picture has no mm, and Slicer makes a slice of 1 mm of it.
        image = dataclasses.replace(image, millimetres=None)
    images.require_dimensions(path, image, dimensions or image.dimensions)
    return image, image.array


def _without_colours(path: Path, voxels: np.ndarray, channels: int, single: bool) -> np.ndarray:
    """Grey values, or 1 for the one colour that there is beside black.

    Args:
      path: for messages.
      voxels: of the image's shape, with a last axis where there are several channels: grey and
        alpha, RGB or RGBA.
      channels: values of a voxel.
      single: whether a colour may stand for the only structure.
    """
    if channels == 1:
        return voxels
    if channels > 4:
        raise UserError(f"{path}: has {channels} values per voxel; expected one.")
    colours = voxels
    if channels in (2, 4):
        *_, alpha = np.moveaxis(voxels, -1, 0)
        colours = np.where(alpha[..., None] > 0, voxels[..., :-1], 0)
        if np.unique(alpha[alpha > 0]).size > 1:
            raise UserError(f"{path}: is transparent in part; expected a mask with sharp edges.")
    if not np.ptp(colours, axis=-1).any():
        return colours[..., 0]
    rows = np.unique(colours.reshape(-1, colours.shape[-1]), axis=0)
    rows = rows[rows.any(axis=1)]
    if len(rows) > 1:
        shown = ", ".join(str(tuple(row)) for row in rows[:3].tolist())
        raise UserError(
            f"{path}: has {len(rows)} colours beside black, such as {shown}; expected one, that of "
            "the object, or grey label values."
        )
    if not single:
        raise UserError(
            f"{path}: has the colour {tuple(rows[0].tolist())}, which may be any of several "
            "structures; expected grey label values."
        )
    return np.asarray(np.any(colours, axis=-1), np.uint8)


def _of_known_values(
    path: Path,
    label: np.ndarray,
    known: Mapping[int, str] | Collection[int],
    foreground: Collection[int],
) -> np.ndarray:
    """The label with `IGNORED` for "ignore" and a mask's object in its known value, see `read`."""
    out = ignored(known) if isinstance(known, Mapping) else None
    structures = sorted({*known} - {0, out})
    values = np.unique(label)
    objects = values[values > 0].tolist()
    if len(objects) == 1 and objects[0] not in {*structures, *foreground, out}:
        value = _mask_value(objects[0], structures)
        if value:
            return np.where(label > 0, value, 0).astype(np.uint8)
    expected = sorted({0, *known})
    if known and (unknown := np.setdiff1d(values, expected)).size:
        raise UserError(
            f"{path}: has the label values {_shown(unknown)}; expected one of {expected}."
        )
    if label.ndim == 2 and len(objects) > 1 and not known and not foreground:
        raise UserError(
            f"{path}: has the label values {_shown(values)}; expected two, those of a mask, or a "
            "data set that names its label values."
        )
    if out is None:
        return label
    label[label == out] = IGNORED
    return label.astype(np.uint8) if label.max() <= IGNORED else label


def _mask_value(value: int, structures: Sequence[int]) -> int | None:
    """The label value that a mask's value stands for: that of the only structure, or 1 where none
    is known; None where it stands for itself."""
    expected = structures[0] if len(structures) == 1 else None if structures else 1
    return expected if value in MASKS and expected in MASKS else None


def _lossy(path: pathlib.Path) -> str | None:
    """What has changed the values of a file; None: nothing that it tells."""
    if dicom_files.is_dicom(path):
        file = dicom_files.read(path)
        lossy = file.text(LOSSY) == "01" or file.text(TRANSFER_SYNTAX) in LOSSY_SYNTAXES
        return "lossy DICOM" if lossy else None
    with path.open("rb") as opened:
        if opened.read(3) == b"\xff\xd8\xff":
            return "JPEG"
    kinds = [LOSSY_TIFF.get(page.compression) for page in _tiff_pages(path)]
    return next(filter(None, kinds), None)


def _stretch(path: Path) -> int:
    """What libpng and libtiff multiply grey values of 2 and 4 bits by; 1 for all others."""
    path, bits = pathlib.Path(path), 8
    if path.is_dir():
        return 1
    with path.open("rb") as file:
        start = file.read(26)
    if start.startswith(b"\x89PNG") and start[25] == GREY_PNG:
        bits = start[24]
    for page in _tiff_pages(path)[:1]:
        if page.number(262, GREY_TIFF) == GREY_TIFF:
            bits = page.number(258, 1)
    return 255 // (2**bits - 1) if bits in (2, 4) else 1


def _tiff_pages(path: pathlib.Path) -> list[tiff.Page]:
    """None of a file of another format."""
    with path.open("rb") as file:
        is_tiff = recognition.BEGINNINGS.get(file.read(4)) == "TIFF"
        return list(tiff.directories(path, file)) if is_tiff else []


def _shown(values: np.ndarray) -> str:
    """At most five values, as a list."""
    more = ", ..." if len(values) > 5 else ""
    return f"[{', '.join(f'{value:g}' for value in values[:5].tolist())}{more}]"
