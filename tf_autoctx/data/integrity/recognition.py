"""Which format a file has, by its first bytes."""

from __future__ import annotations

import pathlib
import re
import zlib

from tf_autoctx.data import dicom_files
from tf_autoctx.data.integrity import claims
from tf_autoctx.errors import UserError

# {ending of a name: formats that ITK reads under it}; any other name may be a DICOM file's.
PICTURES = ("PNG", "TIFF")
ENDINGS = {
    ".nii.gz": ("NIfTI",),
    ".nii": ("NIfTI",),
    ".nrrd": ("NRRD",),
    ".nhdr": ("NRRD",),
    ".mha": ("MetaImage",),
    ".mhd": ("MetaImage",),
    ".png": PICTURES,
    ".jpg": (*PICTURES, "JPEG"),
    ".jpeg": (*PICTURES, "JPEG"),
    ".tif": PICTURES,
    ".tiff": PICTURES,
    ".dcm": ("DICOM",),
}
GZIPPED = b"\x1f\x8b"
BEGINNINGS = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
    b"NRRD000": "NRRD",
}
# What people hand in by mistake.
OTHERS = {
    b"version https://git-lfs": "a Git LFS pointer, its image was not downloaded",
    b"/annex/objects": "a git-annex pointer, its image was not downloaded",
    b"PK\x03\x04": "a ZIP archive",
    b"BZh": "packed by bzip2",
    b"\xfd7zXZ": "packed by xz",
    b"(\xb5/\xfd": "packed by zstd",
    b"\x89HDF": "an HDF5 file",
    b"GIF8": "a GIF image",
    b"BM": "a BMP image",
    b"RIFF": "a WebP image or a film",
    b"%PDF": "a PDF document",
    b"\x93NUMPY": "a NumPy array",
    b"<": "a web page or XML",
    b"{": "JSON",
}


def of(path: pathlib.Path) -> str:
    """The format of a file, a value of `ENDINGS`.

    Raises:
      UserError: none that is read, or another than that of the name.
      OSError: the file cannot be opened.
    """
    name = path.name.lower()
    ending = next((ending for ending in ENDINGS if name.endswith(ending)), "")
    with path.open("rb") as file:
        start = file.read(4096)
    packed = start.startswith(GZIPPED)
    if packed:
        try:
            start = zlib.decompressobj(claims.GZIP).decompress(start, 4096)
        except zlib.error:
            start = b""
    kind = _by_contents(start)
    if kind is None and (ending.startswith(".nii") or packed):
        kind = _in_doubt(start)
    expected = ENDINGS.get(ending, ("DICOM",))
    if packed and not (kind == "NIfTI" and kind in expected):
        better = "a name that ends in .nii.gz" if kind == "NIfTI" else "an unpacked file"
        better = "an intact NIfTI file" if ending.startswith(".nii") and not kind else better
        raise UserError(f"{path}: is {_named(kind)}packed by gzip; expected {better}.")
    if kind in expected:
        return kind
    if kind:
        raise UserError(
            f"{path}: is {_article(kind)} {kind} file by its contents; expected "
            f"{' or '.join(expected)}, or a name that says what it is."
        )
    wanted = ending or ", ".join(ENDINGS)
    other = next((what for begin, what in OTHERS.items() if start.startswith(begin)), "")
    if other:
        raise UserError(f"{path}: is {other}; expected an intact {wanted} file.")
    empty = ", not an empty one" if not start and not packed else ""
    raise UserError(f"{path}: not a readable image; expected an intact {wanted} file{empty}.")


def _named(kind: str | None) -> str:
    return f"{_article(kind)} {kind} file " if kind else ""


def _article(kind: str) -> str:
    return "an" if kind == "NRRD" else "a"


def _by_contents(start: bytes) -> str | None:
    """The format that the first bytes name."""
    for beginning, kind in BEGINNINGS.items():
        if start.startswith(beginning):
            return kind
    if start[344:348] in (b"n+1\0", b"ni1\0") or start[4:8] in (b"n+2\0", b"ni2\0"):
        return "NIfTI"
    if dicom_files.begins(start):
        return "DICOM"
    if re.match(rb"\s*(ObjectType|Comment|NDims|DimSize|ElementType)\s*[=:]", start):
        return "MetaImage"
    return None


def _in_doubt(start: bytes) -> str | None:
    """NIfTI files that are too short to say so have the size of their header at least."""
    sizes = (b"\x5c\x01\0\0", b"\0\0\x01\x5c", b"\x1c\x02\0\0", b"\0\0\x02\x1c")
    return "NIfTI" if start[:4] in sizes else None
