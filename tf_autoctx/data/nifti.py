"""NIfTI files, also those that ITK does not read: version 2, and a name that belies the packing."""

from __future__ import annotations

import math
import pathlib
import shutil
import struct
import tempfile

import SimpleITK as sitk

from tf_autoctx.data import headers, integrity, libraries
from tf_autoctx.errors import UserError

# NIfTI-2's fields in the order of NIfTI-1's: (format of both, offset in version 1, in version 2).
FIELDS = [
    ("B", 39, 524, "B"),  # dim_info
    ("8h", 40, 16, "8q"),  # dim
    ("3f", 56, 80, "3d"),  # intent_p1 to p3
    ("h", 68, 504, "i"),  # intent_code
    ("h", 70, 12, "h"),  # datatype
    ("h", 72, 14, "h"),  # bitpix
    ("h", 74, 224, "q"),  # slice_start
    ("8f", 76, 104, "8d"),  # pixdim
    ("2f", 112, 176, "2d"),  # scl_slope, scl_inter
    ("h", 120, 232, "q"),  # slice_end
    ("B", 122, 496, "i"),  # slice_code
    ("B", 123, 500, "i"),  # xyzt_units
    ("2f", 124, 192, "2d"),  # cal_max, cal_min
    ("2f", 132, 208, "2d"),  # slice_duration, toffset
    ("2h", 252, 344, "2i"),  # qform_code, sform_code
    ("6f", 256, 352, "6d"),  # quaternion, qoffset
    ("12f", 280, 400, "12d"),  # sform
]
START = 352  # of the voxels, bytes


def read(path: pathlib.Path) -> sitk.Image:
    """The image of a NIfTI file, of any number of values a voxel.

    Raises:
      UserError: see `integrity.check`; sheared axes, no voxels, over three dimensions.
      RuntimeError: it cannot be read.
    """
    header = headers.nifti(path)
    if header.version == 1:
        integrity.check(path)
        if not headers.is_packed(path) or path.name.lower().endswith(".gz"):
            return _read(path, path, header)
    with tempfile.TemporaryDirectory() as folder:
        plain = pathlib.Path(folder) / "a.nii"
        _write_plain(path, plain, header)
        try:
            integrity.check(plain)
        except UserError as error:
            raise UserError(str(error).replace(str(plain), str(path))) from None
        return _read(path, plain, header)


def _read(path: pathlib.Path, readable: pathlib.Path, header: headers.Nifti) -> sitk.Image:
    """What ITK reads of a file, of which `path` is the user's."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(readable))
    sheared = header.sform > 0 and header.qform <= 0
    if sheared and headers.shear(header.matrix[:, :3]) > headers.SHEAR:
        raise UserError(
            f"{path}: the axes are sheared; expected axes at right angles, resample it."
        )
    with libraries.heard(path, permissive=sheared):
        reader.ReadImageInformation()
        size = reader.GetSize()
        if 0 in size:
            raise UserError(
                f"{path}: has size {size}, no voxels; expected at least one along each axis."
            )
        if len(size) > 3:
            raise UserError(
                f"{path}: has {len(size)} dimensions, size {size}; expected two or three."
            )
        return reader.Execute()


def _write_plain(path: pathlib.Path, plain: pathlib.Path, header: headers.Nifti) -> None:
    """Writes a NIfTI file as one of version 1 that is not packed.

    Raises:
      UserError: an axis is longer than version 1 can say.
    """
    with headers.unpacked(path) as file, plain.open("wb") as written:
        if header.version == 1:
            shutil.copyfileobj(file, written)
            return
        raw, new = file.read(540), bytearray(START)
        try:
            for form, at, before, theirs in FIELDS:
                values = struct.unpack_from(header.order + theirs, raw, before)
                struct.pack_into(header.order + form, new, at, *values)
        except struct.error:
            raise UserError(
                f"{path}: is NIfTI-2 of size {header.dim[1:4]}; expected up to 32767 voxels along "
                "an axis."
            ) from None
        struct.pack_into(f"{header.order}i", new, 0, 348)
        struct.pack_into(f"{header.order}f", new, 108, START)
        new[344:348] = b"n+1\0"
        written.write(new)
        file.seek(header.offset)
        left = abs(math.prod(header.dim[1 : 1 + header.dim[0]])) * header.bits // 8
        while left > 0 and (piece := file.read(min(left, 1 << 20))):
            written.write(piece)
            left -= len(piece)
