"""NIfTI files of versions 1 and 2, gzipped or not, whatever their names say."""

from __future__ import annotations

import itertools
import pathlib
from collections.abc import Iterator

from tf_autoctx.data import headers
from tf_autoctx.data.integrity import claims
from tf_autoctx.data.integrity.recognition import GZIPPED

# {version: (bytes of the header, where its magic lies, magic)}
VERSIONS = {1: (348, 344, b"n+1\0"), 2: (540, 4, b"n+2\0")}
# {datatype: bits of a voxel}
BITS = {
    2: 8,
    4: 16,
    8: 32,
    16: 32,
    32: 64,
    64: 64,
    128: 24,
    256: 8,
    512: 16,
    768: 32,
    1024: 64,
    1280: 64,
    1536: 128,
    1792: 128,
    2048: 256,
    2304: 32,
}


def check(path: pathlib.Path) -> None:
    """See `integrity.check`."""
    with path.open("rb") as file:
        packed = file.read(2) == GZIPPED
        file.seek(0)
        pieces = claims.pieces(file)
        data = claims.unpacked(path, pieces, claims.GZIP) if packed else pieces
        start, data = _start(data)
        size, voxel, offset = _fields(path, start)
        stored, ratio = path.stat().st_size, claims.RATIO if packed else 1
        promised = claims.require_room(path, size, voxel, stored - (not packed) * offset, ratio)
        claims.require_voxels(path, data, promised, offset)


def _start(data: Iterator[bytes]) -> tuple[bytes, Iterator[bytes]]:
    """(the first bytes, all of them)."""
    taken = []
    for piece in data:
        taken.append(piece)
        if sum(map(len, taken)) >= VERSIONS[2][0]:
            break
    return b"".join(taken), itertools.chain(taken, data)


def _fields(path: pathlib.Path, start: bytes) -> tuple[list[int], float, int]:
    """(size, bytes of a voxel, where the voxels begin)."""
    header = headers.nifti(path)
    length, place, magic = VERSIONS[header.version]
    if start[place : place + 4] != magic:
        raise claims.damaged(path, "its header is not that of a NIfTI image in one file")
    if not 1 <= header.dim[0] <= 7:
        raise claims.damaged(path, f"its header has {header.dim[0]} dimensions")
    if BITS.get(header.datatype) != header.bits:
        what = f"type {header.datatype} with {header.bits} bits"
        raise claims.damaged(path, f"its voxels are of {what}")
    if not length <= header.offset < 1 << 40:
        raise claims.damaged(path, f"its voxels begin at byte {header.offset}")
    return list(header.dim[1 : header.dim[0] + 1]), header.bits / 8, header.offset
