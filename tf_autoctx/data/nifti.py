"""NIfTI files, also those that ITK does not read: version 2, and a name that belies the packing."""

from __future__ import annotations

import math
import pathlib
import shutil
import struct
import tempfile

import numpy as np
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


def read(path: pathlib.Path, axes: int = 3) -> sitk.Image:
    """The image of a NIfTI file, of any number of values a voxel and of so many axes at most.

    Raises:
      UserError: see `integrity.check`; sheared axes, no voxels, more axes.
      RuntimeError: it cannot be read.
    """
    integrity.check(path)
    header = headers.nifti(path)
    _require_finite(path, header)
    readable = not headers.is_packed(path) or path.name.lower().endswith(".gz")
    if header.version == 1 and readable:
        return _read(path, path, header, axes)
    with tempfile.TemporaryDirectory() as folder:
        plain = pathlib.Path(folder) / "a.nii"
        _write_plain(path, plain, header)
        return _read(path, plain, header, axes)


def _require_finite(path: pathlib.Path, header: headers.Nifti) -> None:
    """Raises a `UserError` for voxels that are no numbers: ITK's reader puts 0 there."""
    if header.datatype not in (16, 64):  # float32, float64
        return
    edge, left, bad = header.bits // 8, math.prod(header.dim[1 : 1 + header.dim[0]]), 0
    count = left
    with headers.unpacked(path) as file:
        file.seek(header.offset)
        while left > 0 and (raw := file.read(edge * min(left, 1 << 20))):
            voxels = np.frombuffer(raw, f"{header.order}f{edge}", len(raw) // edge)
            bad += voxels.size - int(np.count_nonzero(np.isfinite(voxels)))
            left -= voxels.size
    if bad:
        raise UserError(
            f"{path}: {bad} of {count} voxels are NaN or infinite; expected finite numbers."
        )


def _read(
    path: pathlib.Path, readable: pathlib.Path, header: headers.Nifti, axes: int
) -> sitk.Image:
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
        headers.require_axes(path, size, axes)
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
