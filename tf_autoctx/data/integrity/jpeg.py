"""JPEG files."""

from __future__ import annotations

import pathlib
import struct

from tf_autoctx.data.integrity import claims, spoken

STARTS = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0))
SCAN, END = 0xDA, b"\xff\xd9"
ALONE = (0x01, *range(0xD0, 0xD9))  # markers without contents


def check(path: pathlib.Path) -> None:
    """See `integrity.check`: it has its end, and libjpeg has no word of damage."""
    data = path.read_bytes()
    position, size = 2, None
    while True:
        while data[position : position + 2] == b"\xff\xff":
            position += 1
        if len(data) < position + 4 or data[position] != 0xFF:
            raise claims.damaged(path, "its header ends too soon")
        marker = data[position + 1]
        if marker in ALONE:
            position += 2
            continue
        if marker in STARTS and len(data) >= position + 10:
            height, width, channels = struct.unpack_from(">2HB", data, position + 5)
            size = width, height
            # Deflate's ratio is beyond that of JPEG, which spends a bit or more on 64 values.
            claims.require_room(path, size, channels, len(data), claims.RATIO)
        position += 2 + int.from_bytes(data[position + 2 : position + 4])
        if marker == SCAN:
            break
    if size is None:
        raise claims.damaged(path, "its header has no size")
    if data.rfind(END) < position:
        raise claims.damaged(path, "it ends too soon")
    spoken.decode(path)
