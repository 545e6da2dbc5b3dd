"""Whether an image file is whole, before a library of C or C++ sees it.

What a header promises must be there and decode: ITK fills in missing voxels without a word, or
aborts the interpreter. Claims are held against the size of the file and the memory at hand before
anything is allocated.
"""

from __future__ import annotations

import os
import pathlib

from tf_autoctx.data.integrity import (
    claims,
    dicom,
    jpeg,
    metaimage,
    nifti,
    nrrd,
    png,
    recognition,
    tiff,
)
from tf_autoctx.errors import UserError

CHECKS = {
    "NIfTI": nifti.check,
    "NRRD": nrrd.check,
    "MetaImage": metaimage.check,
    "PNG": png.check,
    "JPEG": jpeg.check,
    "TIFF": tiff.check,
    "DICOM": dicom.check,
}


def check(path: str | os.PathLike[str]) -> None:
    """Checks that a file is of a format that is read, is whole, and fits in memory.

    Of a folder, the name alone is checked. NaN counts as damage in NIfTI, where ITK reads it as 0.

    Raises:
      UserError: it is not; a name that is not UTF-8.
    """
    path = pathlib.Path(path)
    claims.require_name(path)
    if path.is_dir():
        return
    claims.require_file(path)
    try:
        CHECKS[recognition.of(path)](path)
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror or error}; expected an image file or a DICOM folder."
        ) from None
