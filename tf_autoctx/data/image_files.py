"""The files that an image consists of: slices in a folder, voxels beside their header, channels.

An image is told by its path. Where its channels lie in files of their own it is told by theirs, in
their order, with commas between: "t1.nii.gz,t2.nii.gz".
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence

from tf_autoctx import files
from tf_autoctx.data.integrity import metaimage, nrrd
from tf_autoctx.errors import UserError

Path = str | os.PathLike[str]

BETWEEN = ","  # the paths of channels
# Whose voxels may lie in files of their own.
HEADERS = {
    ".mhd": metaimage.voxel_files,
    ".mha": metaimage.voxel_files,
    ".nhdr": nrrd.voxel_files,
    ".nrrd": nrrd.voxel_files,
}


def channels(image: Path) -> list[pathlib.Path]:
    """The files, or DICOM folders, that hold the channels of an image; one may hold all of them."""
    text = os.fspath(image)
    parts = [part.strip() for part in text.split(BETWEEN) if part.strip()]
    if len(parts) < 2 or os.path.exists(text):
        return [pathlib.Path(image)]
    return [pathlib.Path(part) for part in parts]


def joined(paths: Sequence[Path]) -> str:
    """The image whose channels lie in these files or folders, in this order.

    Raises:
      UserError: a path with a comma in it, of several.
    """
    texts = [os.fspath(path) for path in paths]
    for text in texts if len(texts) > 1 else ():
        if BETWEEN in text:
            raise UserError(
                f"{text}: has a comma in its path, which stands between the channels of an image; "
                "expected a path without one."
            )
    return BETWEEN.join(texts)


def of(image: Path) -> list[pathlib.Path]:
    """The files of an image, of each channel its header first.

    Of a header that cannot be read, or whose data are missing, it is the header alone: reading the
    image tells.
    """
    return [file for path in channels(image) for file in _of_path(path)]


def _of_path(path: pathlib.Path) -> list[pathlib.Path]:
    if path.is_dir():  # DICOM slices
        return sorted(file for file in path.iterdir() if file.is_file())
    try:
        voxels = HEADERS[path.suffix.lower()](path) if path.suffix.lower() in HEADERS else []
    except UserError:
        voxels = []
    return [path, *(file for file in voxels if file != path)]


def digest(image: Path | None) -> str:
    """SHA-256 (hex) of every file of an image; "" of None."""
    return "" if image is None else " ".join(digests(image))


def digests(image: Path) -> list[str]:
    """The same, of each channel that lies in a file or folder of its own."""
    return [" ".join(map(files.digest, _of_path(path))) for path in channels(image)]
