"""The files that an image consists of: slices in a folder, voxels beside their header."""

from __future__ import annotations

import os
import pathlib

from tf_autoctx import files
from tf_autoctx.data.integrity import metaimage, nrrd
from tf_autoctx.errors import UserError

# Whose voxels may lie in files of their own.
HEADERS = {
    ".mhd": metaimage.voxel_files,
    ".mha": metaimage.voxel_files,
    ".nhdr": nrrd.voxel_files,
    ".nrrd": nrrd.voxel_files,
}


def of(image: str | os.PathLike[str]) -> list[pathlib.Path]:
    """The files of an image, its header first.

    Of a header that cannot be read, or whose data are missing, it is the header alone: reading the
    image tells.
    """
    path = pathlib.Path(image)
    if path.is_dir():  # DICOM slices
        return sorted(file for file in path.iterdir() if file.is_file())
    try:
        voxels = HEADERS[path.suffix.lower()](path) if path.suffix.lower() in HEADERS else []
    except UserError:
        voxels = []
    return [path, *(file for file in voxels if file != path)]


def digest(image: str | os.PathLike[str] | None) -> str:
    """SHA-256 (hex) of every file of an image; "" of None."""
    return "" if image is None else " ".join(files.digest(file) for file in of(image))
