"""Image files: reading, writing and geometry, all through SimpleITK.

Arrays are (z, y, x) or (y, x), spacing is in mm. Volumes are brought to one orientation when they
are read, and back to their file's own when results are written.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import shutil
import warnings
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import PIL.Image
import SimpleITK as sitk
from absl import logging

from tf_autoctx.data import (
    dicom,
    dicom_files,
    headers,
    image_files,
    integrity,
    libraries,
    nifti,
)
from tf_autoctx.errors import UserError
from tf_autoctx.files import temporary

Path = str | os.PathLike[str]

# The axes of volumes in memory: x grows to the left, y to the back (posterior), z to the head
# (superior), as in DICOM.
ORIENTATION = "LPS"
# Marks an image whose millimetres are unknown, for `write`.
NO_MILLIMETRES = "tf_autoctx_no_millimetres"
# Bits of the mantissa of float32 that `rounded` leaves out.
MANTISSA_LEFT = 13
# What was said of files already.
_told: set[tuple[Path, str]] = set()
AXES = {"L": 0, "R": 0, "P": 1, "A": 1, "S": 2, "I": 2}  # axis of `ORIENTATION`

SUFFIXES = (
    ".nii.gz",
    ".nii",
    ".nrrd",
    ".nhdr",
    ".mha",
    ".mhd",
    ".png",
    ".jpg",
    ".jpeg",
    ".tif",
    ".tiff",
    ".dcm",
)
FLOATS = (sitk.sitkFloat32, sitk.sitkFloat64, sitk.sitkVectorFloat32, sitk.sitkVectorFloat64)
COMPLEX = (sitk.sitkComplexFloat32, sitk.sitkComplexFloat64)
# Lossless and in one file, so that one rename puts the whole image in place.
WRITABLE = (".nii.gz", ".nii", ".nrrd", ".mha", ".png", ".tif", ".tiff")
ORIENTATION_OF_EXIF = 0x0112
PIXELS_ONLY = (".png", ".jpg", ".jpeg", ".tif", ".tiff")


@dataclasses.dataclass(frozen=True)
class Grid:
    """Where voxels lie, as SimpleITK says it, (x, y[, z]): what two files of one grid share."""

    size: tuple[int, ...]
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]

    @classmethod
    def of(cls, image: sitk.Image) -> Grid:
        """That of an image."""
        return cls(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())


@dataclasses.dataclass(frozen=True)
class Frame:
    """An image without its voxels: all that its results need of it.

    Attributes:
      shape: of its array, (z, y, x) or (y, x).
      orientation, millimetres, grid: see `Image`.
    """

    shape: tuple[int, ...]
    orientation: str | None
    millimetres: tuple[float, ...] | None
    grid: Grid

    def like(self, array: np.ndarray) -> sitk.Image:
        """An image of other voxels, in the orientation and on the grid of the file.

        Args:
          array: (z, y, x) or (y, x) as `Image.array`; the values of a voxel, where there are
            several, are its last axis.

        Raises:
          ValueError: it has another shape.
        """
        vectors = array.ndim == len(self.shape) + 1
        if array.shape[: array.ndim - vectors] != self.shape:
            raise ValueError(f"array has shape {array.shape}, the image {self.shape}")
        if self.orientation is not None:
            array = _turned_back(array, self.orientation)
        elif len(self.grid.size) == 3:  # a picture that is a volume of one slice
            array = array[None]
        image = sitk.GetImageFromArray(
            array.astype(np.uint8) if array.dtype == bool else array, isVector=vectors
        )
        image.SetSpacing(self.grid.spacing)
        image.SetOrigin(self.grid.origin)
        image.SetDirection(self.grid.direction)
        if self.millimetres is None:
            image.SetMetaData(NO_MILLIMETRES, "")
        return image


@dataclasses.dataclass(frozen=True)
class Image:
    """An image as it was read: a volume in `ORIENTATION`, a 2D image as it is.

    Attributes:
      path: of its file or folder.
      image: its voxels and geometry; the axes of a volume are exchanged and turned round such that
        they grow to the left, to the back and to the head as nearly as may be, no voxel is
        resampled.
      orientation: the file's own, such as "RAS"; None in 2D.
      millimetres: edges of a voxel in array order, (z, y, x) or (y, x); None where the header does
        not tell them, which it always does of a volume.
      grid: the file's own.
      directed: whether the header states where the axes point.
    """

    path: pathlib.Path
    image: sitk.Image
    orientation: str | None
    millimetres: tuple[float, ...] | None
    grid: Grid
    directed: bool = True

    @classmethod
    def of(
        cls,
        path: Path,
        image: sitk.Image,
        millimetres: Sequence[float] | None = None,
        directed: bool = True,
    ) -> Image:
        """An image as `read` returns it.

        Args:
          path: for messages.
          image: on its file's own grid.
          millimetres: (x, y[, z]) where they are known; None: unknown.
          directed: see `Image`.
        """
        path, grid = pathlib.Path(path), Grid.of(image)
        if image.GetDimension() == 2:
            known = tuple(millimetres[1::-1]) if millimetres else None
            return cls(path, image, None, known, grid, directed)
        code = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(grid.direction)
        turned = sitk.DICOMOrient(image, ORIENTATION)
        known = turned.GetSpacing()[::-1] if millimetres else None
        return cls(path, turned, code, known, grid, directed)

    @property
    def array(self) -> np.ndarray:
        """The voxels as a new array, (z, y, x) or (y, x), and the values of a voxel last, where
        there are several."""
        return sitk.GetArrayFromImage(self.image)

    @property
    def spacing(self) -> tuple[float, ...]:
        """`millimetres`, or ones: pixels."""
        return self.millimetres or (1.0,) * self.dimensions

    @property
    def dimensions(self) -> int:
        """Two or three."""
        return self.image.GetDimension()

    @property
    def frame(self) -> Frame:
        """What its results need of it."""
        shape = tuple(self.image.GetSize()[::-1])
        return Frame(shape, self.orientation, self.millimetres, self.grid)

    def like(self, array: np.ndarray) -> sitk.Image:
        """See `Frame.like`."""
        return self.frame.like(array)


def _is_same(voxels: np.ndarray, others: np.ndarray) -> bool:
    """Whether voxels are the same, NaN and all: first bit by bit, which is a few times as fast."""
    if voxels.dtype == others.dtype and voxels.dtype.itemsize in (1, 2, 4, 8):
        bits = f"u{voxels.dtype.itemsize}"
        if np.array_equal(voxels.view(bits), others.view(bits)):
            return True
    return np.array_equal(voxels, others, equal_nan=True)


def rounded(probability: np.ndarray) -> np.ndarray:
    """A probability of 10 bits behind the point of its mantissa, 3 digits, in place of 23: the
    others are hardly of use, and do not compress.

    Args:
      probability: float32, finite. What is above 0.5 stays above it, and what is below, below.
    """
    bits = np.ascontiguousarray(probability, np.float32).view(np.uint32)
    half, step = np.float32(0.5).view(np.uint32), np.uint32(1 << MANTISSA_LEFT)
    nearest = bits + step // 2
    nearest &= ~(step - 1)
    at_half = nearest == half  # few, if any
    nearest[at_half & (bits > half)] += step
    nearest[at_half & (bits < half)] -= step
    return nearest.view(np.float32)


def _turned_back(array: np.ndarray, orientation: str) -> np.ndarray:
    """Voxels (z, y, x, ...) in `ORIENTATION` as they lie in a file of another orientation."""
    axes = [AXES[letter] for letter in orientation]  # of the file's x, y and z: ours
    order = [2 - axis for axis in reversed(axes)]
    array = array.transpose(*order, *range(3, array.ndim))
    return array[tuple(slice(None, None, -1 if c in "RAI" else 1) for c in reversed(orientation))]


def read(
    path: Path, series: str | int | None = None, colour: bool = False, fourth: bool = False
) -> Image:
    """Reads an image of one value per voxel: a volume, brought to `ORIENTATION`, or a 2D image.

    Args:
      path: an image file, or a folder that holds DICOM slices.
      series: which series of such a folder: its UID or its number in the list, from 1; None: the
        only one.
      colour: whether a voxel may have several values.
      fourth: whether there may be a fourth axis, along which the values of a voxel lie then.

    Returns:
      Image of the file's pixel type (float32 of DICOM); every voxel is finite in float32.

    Raises:
      UserError: missing, unreadable or damaged file, no or several series in the folder, slices
        missing or uneven, four axes unless `fourth`, no voxels, NaN, infinite, immense or complex
        voxels, several values a voxel, unless `colour`; a volume whose header does not tell its
        spacing, or whose axes are not at right angles.
    """
    path = pathlib.Path(path)
    image, header = _load(path, series, 4 if fourth else 3)
    if image.GetDimension() == 4:
        image = _without_fourth_axis(path, image)
    values = image.GetNumberOfComponentsPerPixel()
    if values > 1 and not colour:
        kind = image.GetPixelIDTypeAsString()
        raise UserError(
            f"{path}: has {values} values per voxel ({kind}); expected one (grey, not colour)."
        )
    flat = image.GetDimension() == 2
    is_slice = path.is_file() and image.GetSize()[2:] == (1,) and dicom_files.is_dicom(path)
    if is_slice:
        dicom.require_whole_volume(path)
    if not flat and values == 1 and (is_slice or path.is_dir()):
        image = sitk.Cast(image, sitk.sitkFloat32)
    if not flat and header.unknown:
        raise _of_unknown_spacing(path, header)
    known = None if flat and header.flat_unknown else image.GetSpacing()
    return Image.of(path, image, known, header.directed)


def read_2d(
    path: Path,
    grey_levels: bool = False,
    series: str | int | None = None,
    colour: bool = False,
) -> Image:
    """Reads an image of two dimensions, or a volume of one slice, as a single DICOM image is.

    Args:
      path: as for `read`. Of colour, the luminance is taken (ITU-R BT.601).
      grey_levels: whether pixels outside 0..255, or none above 1, are taken from their own range to
        0..255, with a warning.
      series: as for `read`.
      colour: whether pixels may have several values, and keep them.

    Returns:
      Image of one value a pixel, unless `colour`.

    Raises:
      UserError: see `read`; a volume of several slices; pixels of other than one value, RGB or
        RGBA.
    """
    path = pathlib.Path(path)
    raw, header = _load(path, series)
    image = raw[:, :, 0] if raw.GetDimension() == 3 and raw.GetSize()[2] == 1 else raw
    require_dimensions(path, image, 2)
    if header.flat_unknown and not path.name.lower().endswith(PIXELS_ONLY):
        _tell(path, f"{header.flat_unknown}; lengths are in pixels")
    image = image if colour else _grey(path, image)
    low, high = (float(extreme(sitk.GetArrayViewFromImage(image))) for extreme in (np.min, np.max))
    if grey_levels and image.GetPixelID() != sitk.sitkUInt8 and not (low >= 0 and 1 < high <= 255):
        logging.warning("%s: pixels of %g to %g are taken to 0 to 255.", path, low, high)
        image = sitk.RescaleIntensity(sitk.Cast(image, sitk.sitkFloat32), 0.0, 255.0)
    known = None if header.flat_unknown else image.GetSpacing()[::-1]
    return Image(path, image, None, known, Grid.of(raw), header.directed)


def read_raw(
    path: Path, dimensions: int, series: str | int | None = None, channels: int = 1
) -> Image:
    """A raw image as a model of so many dimensions and channels takes it.

    Args:
      path: a file or a DICOM folder, or several, see `image_files`.
      dimensions: 2 or 3.
      series: see `read`.
      channels: how many values a voxel has: those of one file, its fourth axis, or one of each
        file. Whatever else a file has is refused: a fourth axis may as well be time.

    Raises:
      UserError: it cannot be read, or has other dimensions or another number of channels; channels
        that do not lie on one grid.
    """
    files = image_files.channels(path)
    if dimensions == 2:
        if channels > 1 or len(files) > 1:
            _require_channels(path, max(channels, len(files)), 1)
        return read_2d(path, grey_levels=True, series=series)
    if len(files) not in (1, channels):
        _require_channels(path, len(files), channels)
    in_one = channels > 1 and len(files) == 1
    parts = [read(file, series, colour=in_one, fourth=in_one) for file in files]
    for part in parts:
        require_dimensions(part.path, part, 3)
    image = parts[0] if len(parts) == 1 else _together(pathlib.Path(path), parts)
    _require_channels(path, image.image.GetNumberOfComponentsPerPixel(), channels)
    return image


def _require_channels(path: Path, count: int, channels: int) -> None:
    """Raises a `UserError` unless there are so many channels."""
    if count != channels:
        expected = "one"
        if channels > 1:
            last = f"case_{channels - 1:04d}.nii.gz"
            expected = f"{channels}, in one file or in one each (case_0000.nii.gz to {last})"
        raise UserError(f"{path}: has {count} channel{'s' * (count > 1)}; expected {expected}.")


def _together(path: pathlib.Path, channels: Sequence[Image]) -> Image:
    """The image of several channels, which has the file's grid of the first.

    Raises:
      UserError: their voxels do not lie at the same places.
    """
    first, *others = channels
    for other in others:
        require_same_grid(other, first, "channel", "first channel")
    planes = [channel.image for channel in channels]
    if len({plane.GetPixelID() for plane in planes}) > 1:
        planes = [sitk.Cast(plane, sitk.sitkFloat32) for plane in planes]
    for plane in planes[1:]:
        plane.CopyInformation(planes[0])  # rounded headers differ in their last digits
    return dataclasses.replace(first, path=path, image=sitk.Compose(planes))


def _without_fourth_axis(path: pathlib.Path, image: sitk.Image) -> sitk.Image:
    """A volume whose voxels have the values that lay along a fourth axis.

    Raises:
      UserError: they had several already.
    """
    if image.GetNumberOfComponentsPerPixel() > 1:
        raise UserError(
            f"{path}: has four dimensions, and {image.GetNumberOfComponentsPerPixel()} values per "
            "voxel; expected one of the two."
        )
    *size, count = image.GetSize()
    collapse = sitk.ExtractImageFilter.DIRECTIONCOLLAPSETOSUBMATRIX
    planes = [sitk.Extract(image, [*size, 0], [0, 0, 0, k], collapse) for k in range(count)]
    return planes[0] if count == 1 else sitk.Compose(planes)


def batch(voxels: np.ndarray, dimensions: int) -> np.ndarray:
    """Raw voxels (*spatial) or (*spatial, channels) as models take them: (1, *spatial, channels)
    float32."""
    channels = voxels if voxels.ndim > dimensions else voxels[..., None]
    return channels[None].astype(np.float32, copy=False)


def _grey(path: pathlib.Path, image: sitk.Image) -> sitk.Image:
    """The luminance of a colour image; others stay as they are.

    Raises:
      UserError: pixels of other than one value, grey with transparency, RGB or RGBA.
    """
    channels, kind = image.GetNumberOfComponentsPerPixel(), image.GetPixelID()
    if channels == 1:
        return image
    if channels > 4 or (channels == 2 and not path.name.lower().endswith(PIXELS_ONLY)):
        raise UserError(
            f"{path}: has {channels} values per pixel; expected one (grey), three (RGB) or "
            "four (RGBA)."
        )
    values = [sitk.VectorIndexSelectionCast(image, k) for k in range(channels)]
    if channels in (2, 4) and np.ptp(sitk.GetArrayViewFromImage(values[-1])):
        logging.warning("%s: its transparency is left out.", path)
    if channels == 2:
        return values[0]
    red, green, blue = (sitk.Cast(value, sitk.sitkFloat32) for value in values[:3])
    image = 0.299 * red + 0.587 * green + 0.114 * blue
    return sitk.Cast(sitk.Round(image), sitk.sitkUInt8) if kind == sitk.sitkVectorUInt8 else image


def write(path: Path, image: sitk.Image, compressed: bool = True) -> None:
    """Writes `image` to `path`, compressed where the format can, unless told otherwise.

    The file appears whole or not at all. Where `Image.like` made the image and its millimetres are
    unknown, the file tells none, as far as its format can be silent.

    Raises:
      UserError: a suffix outside `WRITABLE`, a folder that is missing or read-only, no disk space,
        or an image that the format cannot hold (a volume in a PNG).
    """
    path = pathlib.Path(path)
    if not path.name.lower().endswith(WRITABLE):
        raise UserError(
            f"{path}: cannot write this format; expected a name that ends in {', '.join(WRITABLE)}."
        )
    if path.name.lower().endswith(PIXELS_ONLY) and image.GetSize()[2:] == (1,):
        image = image[:, :, 0]  # of a volume of one slice
    unknown = image.HasMetaDataKey(NO_MILLIMETRES)
    if unknown:
        image = sitk.Image(image)
        image.EraseMetaData(NO_MILLIMETRES)
    # The suffix tells SimpleITK the format.
    partial = temporary(path)
    try:
        with libraries.heard(path):
            sitk.WriteImage(image, str(partial), useCompression=compressed)
            if unknown:
                headers.forget_spacing(partial)
            # ITK's NIfTI writer reports success on a full disk and its PNG writer keeps one slice,
            # so look.
            written = sitk.ReadImage(str(partial))
        voxels, wanted = map(sitk.GetArrayViewFromImage, (written, image))
        if not _is_same(voxels, wanted):
            raise RuntimeError
        os.replace(partial, path)
    except (OSError, RuntimeError, UserError):
        if not path.parent.is_dir():
            raise UserError(
                f"{path}: cannot be written, there is no folder {path.parent}; create it first."
            ) from None
        free = shutil.disk_usage(path.parent).free / 1e6
        raise UserError(
            f"{path}: could not be written whole ({image.GetDimension()}D, "
            f"{image.GetPixelIDTypeAsString()}; {free:.0f} MB free); expected disk space, a "
            "writable folder and a format that holds such an image."
        ) from None
    finally:
        partial.unlink(missing_ok=True)


def require_own_files(results: Mapping[str, Iterable[pathlib.Path]]) -> None:
    """Checks that no result takes another's place.

    Args:
      results: {path of an image: paths of its results}.

    Raises:
      UserError: a result would replace an image, or is that of two images.
    """
    sources = {file.resolve() for path in results for file in image_files.channels(path)}
    owners: dict[pathlib.Path, str] = {}
    for path, files in results.items():
        for file in files:
            if file.resolve() in sources:
                raise UserError(
                    f"{file}: is an input image and would be replaced by its result; expected "
                    "another folder for the results."
                )
            if owners.setdefault(file, path) != path:
                raise UserError(
                    f"{file}: is a result of both {owners[file]} and {path}; rename one of them."
                )


def require_dimensions(path: Path, image: sitk.Image | Image, dimensions: int) -> None:
    """Raises a `UserError` unless the image has 2 or 3 `dimensions`."""
    if isinstance(image, Image):
        image = image.image
    if image.GetDimension() != dimensions:
        raise UserError(
            f"{path}: has {image.GetDimension()} dimensions, {image.GetSize()}; "
            f"expected {dimensions}."
        )


def require_same_grid(
    label: Image, image: Image, what: str = "label", whose: str = "image"
) -> None:
    """Raises a `UserError` unless the voxels of a label, or of a channel, lie where those of its
    image do.

    The files may be of different orientations. Where the millimetres of either are unknown, sizes
    count, and directions that both state. The tolerances forgive a header rounded to float32 or to
    a few decimals, and no shift that a label would show: spacing and direction may add up to half a
    voxel over 500 voxels (1e-3), the origin may be off by a tenth of a voxel.

    Args:
      label, image: whose grids are compared.
      what, whose: what they are, for the message.
    """
    theirs, ours = Grid.of(label.image), Grid.of(image.image)
    tenth = 0.1 * min(ours.spacing)
    # (property, unit, of the label, of the image, relative and absolute tolerance)
    checks = [
        ("size", "voxels", theirs.size, ours.size, 0, 0),
        ("spacing", "mm", theirs.spacing, ours.spacing, 1e-3, 0),
        ("origin", "mm", theirs.origin, ours.origin, 0, tenth),
        ("direction", "(cosines)", theirs.direction, ours.direction, 0, headers.SHEAR),
    ]
    if None in (label.millimetres, image.millimetres):
        kept = ("size", "direction") if label.directed and image.directed else ("size",)
        checks = [check for check in checks if check[0] in kept]
    for name, unit, actual, expected, rtol, atol in checks:
        same = len(actual) == len(expected) and np.allclose(actual, expected, rtol, atol)
        if not same:
            actual, expected = (
                tuple(round(value, 4) for value in values) for values in (actual, expected)
            )
            raise UserError(
                f"{label.path}: {name} {actual} {unit} does not match {expected} of its {whose} "
                f"{image.path}; resample the {what} or fix the file."
            )


def _load(
    path: pathlib.Path, series: str | int | None, axes: int = 3
) -> tuple[sitk.Image, headers.Header]:
    """An image of so many axes at most, as it lies in its file, in mm where its header tells them.

    Raises:
      UserError: see `read`.
    """
    try:
        image, header = _of_its_format(path, series, axes)
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror or error}; expected an image file or a DICOM folder."
        ) from None
    except RuntimeError:  # all that SimpleITK raises
        raise UserError(
            f"{path}: not a readable image; expected an intact {', '.join(SUFFIXES)} file."
        ) from None
    for remark in header.remarks:
        _tell(path, remark)
    if header.factor != 1:
        image.SetSpacing([header.factor * edge for edge in image.GetSpacing()])
        image.SetOrigin([header.factor * place for place in image.GetOrigin()])
    if image.GetPixelID() in COMPLEX:
        raise UserError(
            f"{path}: has complex voxels; expected real numbers, save the magnitude of each."
        )
    geometry = (*image.GetSpacing(), *image.GetOrigin(), *image.GetDirection())
    if not np.all(np.isfinite(geometry)):
        raise UserError(f"{path}: its geometry is not finite; expected numbers.")
    if image.GetPixelID() in FLOATS:
        require_finite(path, sitk.GetArrayViewFromImage(image))
    return image, header


def _of_unknown_spacing(path: pathlib.Path, header: headers.Header) -> UserError:
    return UserError(
        f"{path}: the spacing is unknown: {header.unknown}; expected that of every axis in mm."
    )


def _tell(path: pathlib.Path, remark: str) -> None:
    """Warns of a file, once; where it is of a unit, once for all files."""
    key = ("", remark) if headers.UNITLESS in remark else (path, remark)
    if key not in _told:
        logging.warning("%s: %s.", path, remark)
    _told.add(key)


def _of_its_format(
    path: pathlib.Path, series: str | int | None, axes: int
) -> tuple[sitk.Image, headers.Header]:
    if path.is_dir():
        return dicom.read_folder(path, series)
    integrity.claims.require_file(path)
    path.open("rb").close()  # a missing or forbidden file says so itself
    name = path.name.lower()
    if name.endswith(headers.NIFTI):
        return nifti.read(path, axes), headers.read(path)
    if name.endswith(".dcm") or (not name.endswith(SUFFIXES) and dicom_files.is_dicom(path)):
        return dicom.read_file(path)
    integrity.check(path)
    header = headers.read(path)
    try:
        return _read_file(path, axes), header
    except RuntimeError:  # ITK takes no axes of 0 mm
        if header.unknown and not name.endswith(PIXELS_ONLY):
            raise _of_unknown_spacing(path, header) from None
        raise


def _read_file(path: pathlib.Path, axes: int) -> sitk.Image:
    if path.name.lower().endswith(PIXELS_ONLY):
        _require_upright(path)
        if (pixels := _with_transparency(path)) is not None:
            return sitk.GetImageFromArray(pixels, isVector=True)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    with libraries.heard(path):
        reader.ReadImageInformation()
        _require_voxels(path, reader, axes)
        return reader.Execute()


def _require_upright(path: pathlib.Path) -> None:
    """Raises a `UserError` for a picture that viewers turn, and SimpleITK does not or in part, and
    for one of several that follow each other."""
    try:
        with warnings.catch_warnings(), PIL.Image.open(path) as picture:
            warnings.simplefilter("ignore")
            turned = picture.getexif().get(ORIENTATION_OF_EXIF, 1)
            moves = getattr(picture, "is_animated", False) and picture.format != "TIFF"
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError):
        return
    if turned != 1:
        raise UserError(
            f"{path}: is stored turned (orientation {turned} of EXIF); expected rows from top to "
            "bottom, save it upright."
        )
    if moves:
        raise UserError(f"{path}: is an animation; expected one picture.")


def _with_transparency(path: pathlib.Path) -> np.ndarray | None:
    """Grey and transparency (y, x, 2) of a picture that has both, which ITK cannot read or reads as
    grey pixels twice as many; None of any other.

    Raises:
      UserError: 16 bits each, which Pillow cannot read.
    """
    try:
        with warnings.catch_warnings(), PIL.Image.open(path) as picture:
            warnings.simplefilter("ignore")
            if picture.mode != "LA":
                return None
            if path.name.lower().endswith(".png"):
                deep = path.read_bytes()[24] > 8  # bits of a sample
            else:
                deep = max(picture.tag_v2.get(258, (8,))) > 8  # type: ignore[attr-defined]
            if not deep:
                return np.asarray(picture)
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError):
        return None
    raise UserError(
        f"{path}: is grey of over 8 bits with transparency; expected one without transparency."
    )


def _require_voxels(path: pathlib.Path, reader: sitk.ImageFileReader, axes: int) -> None:
    size = reader.GetSize()
    if 0 in size:
        raise UserError(
            f"{path}: has size {size}, no voxels; expected at least one along each axis."
        )
    headers.require_axes(path, size, axes)


def require_finite(path: Path, voxels: np.ndarray) -> np.ndarray:
    """The voxels as float32, of which models compute; a NaN's label would be background.

    Raises:
      UserError: some are NaN, infinite or beyond float32.
    """
    with np.errstate(over="ignore"):
        numbers = np.asarray(voxels, np.float32)
    bad = numbers.size - np.count_nonzero(np.isfinite(numbers))
    if bad:
        raise UserError(
            f"{path}: {bad} of {numbers.size} voxels are NaN, infinite or beyond "
            f"{np.finfo(np.float32).max:.2g}; expected finite numbers."
        )
    return numbers
