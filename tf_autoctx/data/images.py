"""Image files: reading, writing and geometry, all through SimpleITK.

Arrays are (z, y, x) or (y, x), spacing is in mm.
"""

from __future__ import annotations

import contextlib
import gzip
import math
import os
import pathlib
import shutil
import threading
import uuid
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import NoReturn

import numpy as np
import SimpleITK as sitk
from absl import logging

from tf_autoctx.errors import UserError

Path = str | os.PathLike[str]

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
# Lossless and in one file, so that one rename puts the whole image in place.
WRITABLE = (".nii.gz", ".nii", ".nrrd", ".mha", ".png", ".tif", ".tiff")
PIXELS_ONLY = (".png", ".jpg", ".jpeg", ".tif", ".tiff")

sitk.ProcessObject.SetGlobalWarningDisplay(False)
_stderr_lock = threading.Lock()


def read(path: Path, colour: bool = False) -> sitk.Image:
    """Reads one image of two or three dimensions.

    Args:
      path: an image file, or a folder that holds the slices of one DICOM series.
      colour: whether the pixels may have several values each.

    Returns:
      sitk.Image with the file's pixel type and geometry; every voxel is finite.

    Raises:
      UserError: missing, unreadable or cut-off file, no or several series in the folder, slices
        missing, 4D, no voxels, NaN or infinite voxels; colour or vector pixels, unless `colour`.
    """
    path = pathlib.Path(path)
    try:
        image = _read_series(path, colour) if path.is_dir() else _read_file(path, colour)
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror or error}; expected an image file or a DICOM folder."
        ) from None
    except RuntimeError as error:  # all that SimpleITK raises
        if "orthonormal" in str(error):
            raise UserError(
                f"{path}: the axes are sheared; expected axes at right angles, resample it."
            ) from None
        raise UserError(
            f"{path}: not a readable image; expected an intact {', '.join(SUFFIXES)} file."
        ) from None
    _require_finite(path, sitk.GetArrayViewFromImage(image))
    return image


def read_2d(path: Path, grey_levels: bool = False) -> sitk.Image:
    """Reads an image of two dimensions, or a volume of one slice, as a single DICOM image is.

    Args:
      path: as for `read`. Of colour, the luminance is taken (ITU-R BT.601).
      grey_levels: whether pixels outside 0..255, or none above 1, are taken from their own range to
        0..255, with a warning.

    Returns:
      sitk.Image of one value a pixel.

    Raises:
      UserError: see `read`; a volume of several slices; pixels of other than one value, RGB or
        RGBA.
    """
    image = read(path, colour=True)
    if image.GetDimension() == 3 and image.GetSize()[2] == 1:
        image = image[:, :, 0]
    require_dimensions(path, image, 2)
    channels, kind = image.GetNumberOfComponentsPerPixel(), image.GetPixelID()
    if channels in (3, 4):
        red, green, blue = (
            sitk.VectorIndexSelectionCast(image, k, sitk.sitkFloat32) for k in range(3)
        )
        image = 0.299 * red + 0.587 * green + 0.114 * blue
        if kind == sitk.sitkVectorUInt8:
            image = sitk.Cast(sitk.Round(image), sitk.sitkUInt8)
    elif channels > 1:
        raise UserError(
            f"{path}: has {channels} values per pixel; expected one (grey), three (RGB) or "
            "four (RGBA)."
        )
    low, high = (float(extreme(sitk.GetArrayViewFromImage(image))) for extreme in (np.min, np.max))
    if grey_levels and image.GetPixelID() != sitk.sitkUInt8 and not (low >= 0 and 1 < high <= 255):
        logging.warning("%s: pixels of %g to %g are taken to 0 to 255.", path, low, high)
        image = sitk.RescaleIntensity(sitk.Cast(image, sitk.sitkFloat32), 0.0, 255.0)
    return image


def write(path: Path, image: sitk.Image) -> None:
    """Writes `image` to `path`, compressed where the format can.

    The file appears whole or not at all.

    Raises:
      UserError: a suffix outside `WRITABLE`, a folder that is missing or read-only, no disk space,
        or an image that the format cannot hold (a volume in a PNG).
    """
    path = pathlib.Path(path)
    if not path.name.lower().endswith(WRITABLE):
        raise UserError(
            f"{path}: cannot write this format; expected a name that ends in {', '.join(WRITABLE)}."
        )
    # The suffix tells SimpleITK the format.
    partial = path.with_name(f".{uuid.uuid4().hex}-{path.name}")
    try:
        with _quiet():
            sitk.WriteImage(image, str(partial), useCompression=True)
            # ITK's NIfTI writer reports success on a full disk and its PNG writer keeps one slice,
            # so look.
            written = sitk.ReadImage(str(partial))
        if not np.array_equal(array(written), array(image), equal_nan=True):
            raise RuntimeError
        os.replace(partial, path)
    except (OSError, RuntimeError):
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


def array(image: sitk.Image) -> np.ndarray:
    """The voxels as a new array, (z, y, x) or (y, x)."""
    return sitk.GetArrayFromImage(image)


def spacing(image: sitk.Image) -> tuple[float, ...]:
    """The edges of a voxel in mm in array order, (z, y, x) or (y, x)."""
    return image.GetSpacing()[::-1]


def millimetres(path: Path, image: sitk.Image) -> tuple[float, ...] | None:
    """`spacing` of an image file; None for a 2D image in PNG, JPEG or TIFF, which have no mm."""
    flat = image.GetDimension() == 2 and pathlib.Path(path).name.lower().endswith(PIXELS_ONLY)
    return None if flat else spacing(image)


def like(array: np.ndarray, reference: sitk.Image) -> sitk.Image:
    """An image with the voxels of `array` on the grid of `reference`.

    The array is (z, y, x), or (z, y, x, values of a voxel).

    Raises:
      ValueError: the shapes differ.
    """
    shape = reference.GetSize()[::-1]
    vectors = array.ndim == len(shape) + 1
    if array.shape[: array.ndim - vectors] != shape:
        raise ValueError(f"array has shape {array.shape}, the reference image {shape}")
    image = sitk.GetImageFromArray(
        array.astype(np.uint8) if array.dtype == bool else array, isVector=vectors
    )
    image.CopyInformation(reference)
    return image


def stem(path: Path) -> str:
    """The file name without its image suffix: `a/case_1.nii.gz` -> `case_1`."""
    name = pathlib.Path(path).name
    for suffix in SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def find(
    directory: Path, series: bool = True, below: bool = False, without: Path | None = None
) -> dict[str, str]:
    """The images in a folder: {name: path}, sorted by name.

    Args:
      directory: path.
      series: whether the slices of one DICOM series, alone in a folder, are one image.
      below: whether images in folders below it count too, under names such as `patient_1/case_1`;
        links to folders are not followed.
      without: the folder of the results, which does not count where it lies below.

    Raises:
      UserError: the folder is missing or has no image, or is `without` itself; two files have the
        same name but for the suffix.
    """
    directory = pathlib.Path(directory)
    paths: dict[str, str] = {}
    skipped = pathlib.Path(without).resolve() if without else None
    if not directory.is_dir():
        raise UserError(f"{directory}: no such folder; expected a folder of images.")
    if skipped == directory.resolve():
        raise UserError(
            f"{without}: is the folder of the input images; expected another one for the results."
        )

    for walked, folders, names in os.walk(directory, onerror=_refuse_folder):
        # A leading dot marks our own unfinished files and what macOS leaves behind.
        folder, names = pathlib.Path(walked), [name for name in names if not name.startswith(".")]
        inner = [name for name in folders if not name.startswith(".")]
        folders[:] = [name for name in inner if (folder / name).resolve() != skipped]
        if not below:
            folders.clear()
        for file in _images_in(folder, names, series):
            name = _name(directory, file, whole=file == folder)
            if name in paths:
                raise UserError(
                    f"{file}: has the same name as {paths[name]}; expected one image of each name."
                )
            paths[name] = str(file)
    if not paths:
        raise UserError(
            f"{directory}: holds no image; expected files that end in {', '.join(SUFFIXES)}."
        )
    return dict(sorted(paths.items()))


def _refuse_folder(error: OSError) -> NoReturn:
    reason = (error.strerror or str(error)).lower()
    raise UserError(f"{error.filename}: {reason}; expected a folder that can be read.")


def _images_in(folder: pathlib.Path, names: list[str], series: bool) -> list[pathlib.Path]:
    """The image files among the names in a folder, or the folder where it is one DICOM series."""
    files = [folder / name for name in names if name.lower().endswith(SUFFIXES)]
    only_dicom = all(file.suffix.lower() == ".dcm" for file in files)  # also with no suffix at all
    if series and names and len(files) != 1 and only_dicom and len(_series(folder)) == 1:
        return [folder]
    return sorted(files)


def _name(directory: pathlib.Path, file: pathlib.Path, whole: bool) -> str:
    """Of an image below a directory; a folder's is whole, whatever follows its last dot."""
    if file == directory:
        return directory.resolve().name
    return (file.relative_to(directory).parent / (file.name if whole else stem(file))).as_posix()


def require_own_files(results: Mapping[str, Iterable[pathlib.Path]]) -> None:
    """Checks that no result takes another's place.

    Args:
      results: {path of an image: paths of its results}.

    Raises:
      UserError: a result would replace an image, or is that of two images.
    """
    sources = {pathlib.Path(path).resolve() for path in results}
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


def require_dimensions(path: Path, image: sitk.Image, dimensions: int) -> None:
    """Raises a `UserError` unless the image has 2 or 3 `dimensions`."""
    if image.GetDimension() != dimensions:
        raise UserError(
            f"{path}: has {image.GetDimension()} dimensions, {image.GetSize()}; "
            f"expected {dimensions}."
        )


def require_same_grid(
    label_path: Path, label: sitk.Image, image_path: Path, image: sitk.Image
) -> None:
    """Raises a `UserError` unless the two images lie on the same grid.

    Where either is a 2D image whose format has no millimetres, sizes alone count. The tolerances
    forgive a header rounded to float32 or to a few decimals, and no shift that a label would show:
    spacing and direction may add up to half a voxel over 500 voxels (1e-3), the origin may be off
    by a tenth of a voxel.
    """
    tenth = 0.1 * min(image.GetSpacing())
    # (what, unit, of the label, of the image, relative and absolute tolerance)
    checks = [
        ("size", "voxels", label.GetSize(), image.GetSize(), 0, 0),
        ("spacing", "mm", label.GetSpacing(), image.GetSpacing(), 1e-3, 0),
        ("origin", "mm", label.GetOrigin(), image.GetOrigin(), 0, tenth),
        ("direction", "(cosines)", label.GetDirection(), image.GetDirection(), 0, 1e-3),
    ]
    if None in (millimetres(label_path, label), millimetres(image_path, image)):
        checks = checks[:1]
    for what, unit, actual, expected, rtol, atol in checks:
        same = len(actual) == len(expected) and np.allclose(actual, expected, rtol, atol)
        if not same:
            actual, expected = (
                tuple(round(value, 4) for value in values) for values in (actual, expected)
            )
            raise UserError(
                f"{label_path}: {what} {actual} {unit} does not match {expected} of its image "
                f"{image_path}; resample the label or fix the file."
            )


def _read_file(path: pathlib.Path, colour: bool = False) -> sitk.Image:
    path.open("rb").close()  # a missing or forbidden file says so itself
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    with _quiet():
        reader.ReadImageInformation()
    size = reader.GetSize()
    if 0 in size:
        raise UserError(
            f"{path}: has size {size}, no voxels; expected at least one along each axis."
        )
    if reader.GetDimension() > 3:
        raise UserError(
            f"{path}: has {reader.GetDimension()} dimensions, size {size}; expected two or three."
        )
    if reader.GetNumberOfComponents() > 1 and not colour:
        kind = sitk.GetPixelIDValueAsString(reader.GetPixelID())
        raise UserError(
            f"{path}: has {reader.GetNumberOfComponents()} values per voxel ({kind}); expected one "
            "(grey, not colour)."
        )
    if path.name.lower().endswith((".nii", ".nii.gz")):
        _check_nifti(path, reader)
    with _quiet():
        return reader.Execute()


def _check_nifti(path: pathlib.Path, reader: sitk.ImageFileReader) -> None:
    """Raises a `UserError` for what ITK's NIfTI reader fills in without a word.

    It fills in missing voxels, and 0 for NaN and infinity.
    """
    bits, kind = int(reader.GetMetaData("bitpix")), int(reader.GetMetaData("datatype"))
    start, count = int(float(reader.GetMetaData("vox_offset"))), math.prod(reader.GetSize())
    try:
        with (gzip.open if path.name.lower().endswith(".gz") else open)(path, "rb") as file:
            header = int.from_bytes(file.read(4), "little")  # its own size
            order = "<" if header in (348, 540) else ">"
            file.seek(start)
            data = file.read(count * bits // 8)
    except (EOFError, gzip.BadGzipFile, zlib.error):
        data = b""
    if start < 348 or len(data) < count * bits // 8:  # a header has 348 bytes
        raise UserError(
            f"{path}: cut off or damaged; expected {start + count * bits // 8} bytes once unpacked."
        )
    if kind in (16, 64):  # float32, float64
        _require_finite(path, np.frombuffer(data, f"{order}f{bits // 8}"))


def _require_finite(path: Path, voxels: np.ndarray) -> None:
    bad = voxels.size - np.count_nonzero(np.isfinite(voxels))
    if bad:
        raise UserError(
            f"{path}: {bad} of {voxels.size} voxels are NaN or infinite; expected finite numbers."
        )


def _series(folder: Path) -> tuple[str, ...]:
    """Identifiers of the DICOM series in a folder."""
    with _quiet():
        return sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))


def _read_series(folder: pathlib.Path, colour: bool) -> sitk.Image:
    series = _series(folder)
    if len(series) != 1:
        raise UserError(
            f"{folder}: holds {len(series)} DICOM series; expected one series or an image file."
        )
    files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series[0])
    if len(files) == 1:
        return _read_file(pathlib.Path(files[0]), colour)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(files)
    reader.MetaDataDictionaryArrayUpdateOn()
    with _quiet():
        image = reader.Execute()
    # A rounded header may set this too; look closer.
    if image.HasMetaDataKey("ITK_non_uniform_sampling_deviation"):
        positions = [reader.GetMetaData(i, "0020|0032").split("\\") for i in range(len(files))]
        steps = np.linalg.norm(np.diff(np.asarray(positions, float), axis=0), axis=1)
        if np.ptp(steps) > 0.1 * np.median(steps):
            raise UserError(
                f"{folder}: slices {steps.min():.4g} to {steps.max():.4g} mm apart; expected even "
                "steps, none missing."
            )
    if image.GetNumberOfComponentsPerPixel() > 1:
        raise UserError(f"{folder}: holds colour slices; expected one (grey) value per voxel.")
    return image


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Discards what ITK's C libraries print to standard error, one thread at a time.

    The caller reports failures.
    """
    with _stderr_lock, open(os.devnull, "wb") as nowhere:
        stderr = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
