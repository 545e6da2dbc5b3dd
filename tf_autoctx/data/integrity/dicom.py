"""Single DICOM files."""

from __future__ import annotations

import io
import os
import pathlib
import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from tf_autoctx.data.dicom_files import (
    ALLOCATED,
    BIG,
    COLUMNS,
    DEFLATED,
    FRAMES,
    IMPLICIT,
    ITEM,
    ITEM_END,
    LONG,
    MODALITY,
    PHOTOMETRIC,
    PIXELS,
    ROWS,
    SAMPLES,
    SEQUENCE_END,
    SHORT,
    SYNTAX,
    UNDEFINED,
)
from tf_autoctx.data.integrity import claims, spoken
from tf_autoctx.errors import UserError

ODD = (b"\0\0", b"??", b"  ", b"OX")  # what some writers put for an unknown kind
KEPT = (SYNTAX, MODALITY, FRAMES, SAMPLES, ROWS, COLUMNS, ALLOCATED, PHOTOMETRIC)
NATIVE = (IMPLICIT, "1.2.840.10008.1.2.1", BIG, DEFLATED)
RUN_LENGTHS = "1.2.840.10008.1.2.5"  # each frame is one fragment
JPEG = "1.2.840.10008.1.2.4."  # JPEG, JPEG-LS and JPEG 2000, up to .93
LIBJPEG = ("50", "51", "57", "70")  # what libjpeg decodes, whose damage is only said
RATIO = 1 << 16  # JPEG 2000 and run lengths


class _Element(NamedTuple):
    tag: int
    length: int
    place: int  # of its value


class _Pixels(NamedTuple):
    element: _Element
    frames: list[tuple[int, int]]  # (place, length) of each fragment but the table


def check(path: pathlib.Path) -> None:
    """See `integrity.check`: every element ends in the file, and all frames are there."""
    with path.open("rb") as opened:
        file: BinaryIO = opened
        values, pixels = _read(path, file)
        syntax = values.get(SYNTAX, b"").decode("latin-1") or IMPLICIT
        if syntax == DEFLATED:
            file = _inflated(path, file)
            values, pixels = _read(path, file)
        if pixels is None:
            kind = values.get(MODALITY, b"").decode("latin-1").strip("\0 ")
            raise UserError(f"{path}: holds no pixels (modality {kind!r}); expected an image.")
        _require_pixels(path, file, values, pixels, syntax)
    if syntax.startswith(JPEG) and syntax.removeprefix(JPEG) in LIBJPEG:
        spoken.decode(path)


def _inflated(path: pathlib.Path, file: BinaryIO) -> BinaryIO:
    """The elements of a deflated file from where it stands, which `_read` leaves behind the first.

    Raises:
      UserError: damaged, or more than there is memory.
    """
    plain = io.BytesIO()
    for piece in claims.unpacked(path, claims.pieces(file), claims.DEFLATE):
        plain.write(piece)
        claims.require_room(path, (plain.tell(),), 1, plain.tell(), 1)
    return plain


def _require_pixels(
    path: pathlib.Path, file: BinaryIO, values: dict[int, bytes], pixels: _Pixels, syntax: str
) -> None:
    """Raises a `UserError` unless the frames of the header are there."""
    order = ">" if syntax == BIG else "<"
    rows, columns, samples, bits = (
        _number(values.get(tag, b""), order, default)
        for tag, default in ((ROWS, 0), (COLUMNS, 0), (SAMPLES, 1), (ALLOCATED, 0))
    )
    text = values.get(FRAMES, b"1").decode("latin-1").strip("\0 ") or "1"
    frames = int(text) if text.isdecimal() else 0
    if pixels.element.tag != PIXELS[0]:
        bits = 32 if pixels.element.tag == PIXELS[1] else 64
    if bits not in (1, 8, 16, 32, 64) or samples not in (1, 3, 4):
        raise claims.damaged(path, f"its pixels are {samples} values of {bits} bits")
    halved = values.get(PHOTOMETRIC, b"").startswith((b"YBR_FULL_422", b"YBR_PARTIAL_422"))
    values_each = 2 if halved and syntax in NATIVE else samples
    size = (columns, rows, frames) if frames != 1 else (columns, rows)
    if pixels.element.length != UNDEFINED:
        stored, ratio = pixels.element.length, 1
    else:
        stored, ratio = sum(length for _, length in pixels.frames), RATIO
    promised = claims.require_room(path, size, values_each * bits / 8, stored, ratio)
    if ratio == 1:
        claims.require_no_rest(path, stored - promised - promised % 2, promised)
    if syntax == RUN_LENGTHS and len(pixels.frames) != frames:
        raise claims.damaged(path, f"{len(pixels.frames)} of {frames} frames are there")
    if pixels.element.length == UNDEFINED and _is_jpeg(syntax):
        begun = ended = 0
        for place, length in pixels.frames:
            file.seek(place)
            begun += file.read(2) in (b"\xff\xd8", b"\xff\x4f")
            file.seek(place + max(length - 16, 0))
            ended += file.read(min(length, 16)).rstrip(b"\0").endswith(b"\xff\xd9")
        if begun != frames or ended != frames:
            raise claims.damaged(path, f"{min(begun, ended)} of {frames} frames are whole")


def _is_jpeg(syntax: str) -> bool:
    last = syntax.removeprefix(JPEG)
    return syntax.startswith(JPEG) and last.isdecimal() and int(last) < 100


def _number(value: bytes, order: str, default: int) -> int:
    return struct.unpack_from(f"{order}H", value)[0] if len(value) >= 2 else default


def _read(path: pathlib.Path, file: BinaryIO) -> tuple[dict[int, bytes], _Pixels | None]:
    """({tag: value} of those that are needed, the pixels).

    Raises:
      UserError: an element goes beyond the end of the file.
    """
    values: dict[int, bytes] = {}
    pixels = None
    for element in _elements(path, file, values):
        if element.tag in KEPT and element.length < 1024:
            file.seek(element.place)
            values[element.tag] = file.read(element.length).rstrip(b"\0")
            if element.tag in (SAMPLES, ROWS, COLUMNS, ALLOCATED):
                values[element.tag] = values[element.tag].ljust(2, b"\0")
        elif element.tag in PIXELS:
            frames = _fragments(path, file, element) if element.length == UNDEFINED else []
            pixels = _Pixels(element, frames)
    return values, pixels


def _elements(path: pathlib.Path, file: BinaryIO, values: dict[int, bytes]) -> Iterator[_Element]:
    """The elements outside of sequences; between two, `values` must get the transfer syntax."""
    end = file.seek(0, os.SEEK_END)
    file.seek(128)
    position = 132 if file.read(4) == b"DICM" else 0
    nested: list[bool] = []  # of each open sequence or item: whether it is implicit
    explicit, order = True, "<"
    meta = True
    while position < end:
        file.seek(position)
        head = file.read(12)
        if len(head) < 8:
            if not head.strip(b"\0"):
                return  # padding
            raise claims.damaged(path, "an element of its header ends too soon")
        if meta and struct.unpack_from("<H", head)[0] != 2:
            meta = False
            syntax = values.get(SYNTAX, b"").decode("latin-1")
            if syntax == DEFLATED:
                file.seek(position)
                return
            order = ">" if syntax == BIG else "<"
            explicit = syntax != IMPLICIT and head[4:6] in (*LONG, *SHORT)
        group, number = struct.unpack_from(f"{order}2H", head)
        tag = group << 16 | number
        implicit = not explicit or (nested[-1] if nested else False)
        length, width, kind = _length(head, order, implicit, tag)
        if kind and kind not in (*LONG, *SHORT, *ODD):
            # GDCM would allocate what it takes for a length.
            raise claims.damaged(path, f"element ({group:04x},{number:04x}) is of no known kind")
        position += width
        if tag in (ITEM_END, SEQUENCE_END):
            if nested:
                nested.pop()
            continue
        if length == UNDEFINED and tag not in PIXELS:
            nested.append(implicit or kind == b"UN")
            continue
        if tag in PIXELS and length == UNDEFINED and nested:
            position = _after(path, file, position)  # of an icon
            continue
        if length != UNDEFINED and position + length > end:
            raise claims.damaged(path, f"element ({group:04x},{number:04x}) ends too soon")
        if not nested:
            yield _Element(tag, length, position)
        position = _after(path, file, position) if length == UNDEFINED else position + length


def _length(head: bytes, order: str, implicit: bool, tag: int) -> tuple[int, int, bytes]:
    """(length of a value, bytes before it, its kind)."""
    kind = head[4:6]
    if implicit or tag >> 16 == 0xFFFE:
        return struct.unpack_from(f"{order}I", head, 4)[0], 8, b""
    if kind in LONG:
        return struct.unpack_from(f"{order}I", head.ljust(12, b"\xff"), 8)[0], 12, kind
    return struct.unpack_from(f"{order}H", head, 6)[0], 8, kind


def _fragments(path: pathlib.Path, file: BinaryIO, element: _Element) -> list[tuple[int, int]]:
    """(place, length) of the fragments of packed pixels, without the table before them."""
    return list(_items(path, file, element.place))[1:-1]


def _after(path: pathlib.Path, file: BinaryIO, place: int) -> int:
    """Where the fragments that begin at a place end."""
    return list(_items(path, file, place))[-1][0]


def _items(path: pathlib.Path, file: BinaryIO, place: int) -> Iterator[tuple[int, int]]:
    """(place, length) of each item, and of the end at last.

    Raises:
      UserError: the file ends first.
    """
    end = file.seek(0, os.SEEK_END)
    while True:
        file.seek(place)
        group, number, length = struct.unpack("<2HI", file.read(8).ljust(8, b"\0"))
        place += 8
        if group << 16 | number == SEQUENCE_END:
            yield place, 0
            return
        if group << 16 | number != ITEM or place + length > end:
            raise claims.damaged(path, "its packed pixels end too soon")
        yield place, length
        place += length
