"""PNG files."""

from __future__ import annotations

import pathlib
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from tf_autoctx.data.integrity import claims

CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by the type of colour
# Adam7: (first column, first row, step of columns, step of rows) of each pass.
PASSES = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)


def check(path: pathlib.Path) -> None:
    """See `integrity.check`: every chunk has its checksum, and the rows are all there."""
    with path.open("rb") as file:
        file.seek(8)
        kind, header = next(_chunks(path, file), (b"", b""))
        if kind != b"IHDR" or len(header) != 13:
            raise claims.damaged(path, "it does not begin with its header")
        width, height, depth, colour, _, _, interlaced = struct.unpack(">2I5B", header)
        if colour not in CHANNELS or depth not in (1, 2, 4, 8, 16) or interlaced > 1:
            raise claims.damaged(path, "its header is of no known kind")
        bits = CHANNELS[colour] * depth
        stored = path.stat().st_size
        claims.require_room(path, (width, height), bits / 8, stored, claims.RATIO)
        passes = PASSES if interlaced else ((0, 0, 1, 1),)
        rows = [
            ((width - x + dx - 1) // dx, (height - y + dy - 1) // dy) for x, y, dx, dy in passes
        ]
        promised = sum(height * (1 + (width * bits + 7) // 8) for width, height in rows if width)
        packed = (data for kind, data in _chunks(path, file) if kind == b"IDAT")
        claims.require_voxels(path, claims.unpacked(path, packed, claims.ZLIB), promised)
        for _ in _chunks(path, file):  # those behind the pixels
            pass


def _chunks(path: pathlib.Path, file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """(kind, contents) of the chunks to come, up to the last, IEND."""
    while True:
        length, kind = struct.unpack(">I4s", file.read(8).ljust(8, b"\0"))
        if kind == b"IEND":
            file.seek(-8, 1)
            if file.read(12) != b"\0\0\0\0IEND\xaeB`\x82":
                raise claims.damaged(path, "it ends too soon")
            file.seek(-12, 1)
            return
        if length > path.stat().st_size - file.tell() - 4:
            raise claims.damaged(path, "it ends too soon")
        data = file.read(length)
        if kind == b"\0\0\0\0" or file.read(4) != struct.pack(">I", zlib.crc32(kind + data)):
            raise claims.damaged(path, "a checksum is wrong")
        yield kind, data
