"""TIFF files and stacks."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
import re
import struct
from collections.abc import Iterator
from typing import BinaryIO

from tf_autoctx.data.integrity import claims, spoken
from tf_autoctx.errors import UserError

# {type of a value: (its letter of `struct`, bytes)}
TYPES = {1: "B", 2: "B", 3: "H", 4: "I", 6: "b", 7: "B", 8: "h", 9: "i", 13: "I", 16: "Q", 18: "Q"}
WIDE = {5: 8, 10: 8, 11: 4, 12: 8, 17: 8}  # bytes of the types that no size is of
PLAIN, YCBCR = 1, 6
WHITE_IS_ZERO = 0
# {SampleFormat: bits of a value that ITK reads as what they are}
BITS = {1: range(1, 33), 2: range(1, 33), 3: (32,)}
FAX = range(2, 5)
# {photometric interpretation: least values of a pixel}
COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 4: 1, 5: 4, YCBCR: 3, 8: 3}
RATIO = 4096  # the most bytes that LZW makes of one, rounded up
PAGES = 100_000


@dataclasses.dataclass(frozen=True)
class Page:
    """A directory: {tag: values}."""

    tags: dict[int, tuple[int, ...]]

    def number(self, tag: int, default: int) -> int:
        values = self.tags.get(tag, ())
        return values[0] if values else default

    @property
    def size(self) -> tuple[int, int]:
        return self.number(256, 0), self.number(257, 0)

    @property
    def bits(self) -> int:
        """Of a pixel."""
        return self.number(258, 1) * self.number(277, 1)

    @property
    def compression(self) -> int:
        return self.number(259, PLAIN)

    @property
    def kind(self) -> tuple[int, ...]:
        return (*self.size, self.bits, self.number(277, 1), self.number(339, 1))

    @property
    def simple(self) -> bool:
        """Whether it is grey or RGB, in strips, value by value, the first row at the top."""
        own = 324 not in self.tags and self.number(262, -1) in (0, 1, 2)
        own = own and self.number(258, 1) in (8, 16, 32)
        return own and self.number(284, 1) == 1 and self.number(274, 1) == 1

    @property
    def counts(self) -> bool:
        """Whether it is an image, not a thumbnail or a mask."""
        return not self.number(254, 0) & 5

    @property
    def rest(self) -> int:
        """Bytes of the strips or tiles beyond those of its size."""
        if self.compression != PLAIN or self.number(262, 1) == YCBCR:
            return 0
        stored = self.tags.get(325 if 324 in self.tags else 279, ())
        return max(sum(stored) - sum(length for _, length in self.parts()), 0)

    def parts(self) -> Iterator[tuple[int, int]]:
        """(offset, bytes) of every strip or tile."""
        offsets, lengths = ((324, 325), (273, 279))[324 not in self.tags]
        width, height = self.size
        planes = self.number(277, 1) if self.number(284, 1) == 2 else 1
        bits = self.bits // planes
        if 324 in self.tags:
            tile_width, tile_height = self.number(322, 0) or width, self.number(323, 0) or height
            across, down = -(-width // tile_width), -(-height // tile_height)
            sizes = [tile_height * (-(-tile_width * bits // 8))] * (across * down * planes)
        else:
            rows = min(self.number(278, height) or height, height)
            row = -(-width * bits // 8)
            count = -(-height // rows)
            sizes = ([rows * row] * (count - 1) + [(height - rows * (count - 1)) * row]) * planes
        places = self.tags.get(offsets, ())
        stored = self.tags.get(lengths, ())
        if self.compression != PLAIN or self.number(262, 1) == YCBCR:
            sizes = [*stored[: len(sizes)], *[0] * (len(sizes) - len(stored))]
        # A part without a place lies behind every file.
        yield from zip([*places, *[2**63] * (len(sizes) - len(places))], sizes)


def check(path: pathlib.Path) -> None:
    """See `integrity.check`: every page is there with all of its strips or tiles."""
    with path.open("rb") as file:
        pages = [page for page in directories(path, file) if page.counts]
    if not pages:
        raise claims.damaged(path, "it has no page")
    first, stored = pages[0], path.stat().st_size
    for number, page in enumerate(pages, start=1):
        if page.kind != first.kind:
            raise UserError(
                f"{path}: page {number} has {page.size[0]} x {page.size[1]} pixels of {page.bits} "
                f"bits, page 1 {first.size[0]} x {first.size[1]} of {first.bits}; expected pages "
                "that are alike."
            )
        _require_known_values(path, page)
    if first.number(277, 1) < COLOURS.get(first.number(262, -1), 2**16):
        raise claims.damaged(path, "its pixels are of no known colours")
    _require_count(path, first, len(pages))
    compressions = {page.compression for page in pages}
    ratio = 1 if compressions == {PLAIN} else RATIO
    if compressions & set(FAX):
        ratio = RATIO**2
    size = (*first.size, len(pages)) if len(pages) > 1 else first.size
    # Pages may share their pixels, with the same place in the file.
    shared = len(pages) if ratio == 1 else 1
    claims.require_room(path, size, first.bits / 8, stored * shared, ratio)
    rest = 0
    for number, page in enumerate(pages, start=1):
        rest += page.rest
        for offset, length in page.parts():
            if offset + length > stored or (not length and page.compression != PLAIN):
                raise claims.damaged(path, f"page {number} of {len(pages)} lacks pixels")
    claims.require_no_rest(path, rest, stored)
    # What ITK does not read itself goes through a reader of libtiff that may reduce it to 8 bits.
    if ratio > 1 or not first.simple:
        spoken.decode(path)


def _require_known_values(path: pathlib.Path, page: Page) -> None:
    """Raises a `UserError` for values that ITK takes for others without a word."""
    kind, bits = page.number(339, 1), page.number(258, 1)
    if bits not in BITS.get(kind, ()):
        raise UserError(
            f"{path}: its pixels have {bits} bits of SampleFormat {kind}; expected whole numbers "
            "of up to 32 bits or floats of 32."
        )
    if page.number(262, -1) == WHITE_IS_ZERO and bits > 1:
        raise UserError(
            f"{path}: its high values are meant to be dark (WhiteIsZero); expected BlackIsZero, "
            "convert it."
        )


def _require_count(path: pathlib.Path, first: Page, pages: int) -> None:
    """Raises a `UserError` where the description of ImageJ or tifffile has other pages."""
    text = bytes(value & 255 for value in first.tags.get(270, ())).rstrip(b"\0")
    described = pages
    if match := re.search(rb"^images=(\d+)", text, re.M) if text.startswith(b"ImageJ=") else None:
        described = int(match[1])
    elif text.startswith(b'{"shape":'):
        try:
            shape = json.loads(text)["shape"]
            described = math.prod(shape) // (math.prod(first.size) * first.number(277, 1) or 1)
        except (ValueError, TypeError):
            described = pages
    if described > pages:
        raise UserError(
            f"{path}: has {pages} of the {described} pages of its description; expected them all, "
            "each with its directory."
        )


def directories(path: pathlib.Path, file: BinaryIO) -> Iterator[Page]:
    """The directories of a file that is opened, one after the other.

    Raises:
      UserError: one lies outside the file or is led to twice.
    """
    file.seek(0)
    start = file.read(16)
    order = "<" if start[:2] == b"II" else ">"
    big = start[2:4] in (b"+\0", b"\0+")
    count, entry, pointer = ("Q", 20, "Q") if big else ("H", 12, "I")
    width = struct.calcsize(pointer)
    head = start.ljust(16, b"\0")
    position = struct.unpack_from(order + pointer, head, 8 if big else 4)[0]
    visited: set[int] = set()
    while position:
        if position in visited or len(visited) > PAGES:
            raise claims.damaged(path, "its directories lead in circles")
        visited.add(position)
        number = struct.unpack(order + count, _read(path, file, position, struct.calcsize(count)))[
            0
        ]
        if not 0 < number < 65536:
            raise claims.damaged(path, f"a directory has {number} entries")
        place = position + struct.calcsize(count)
        data = _read(path, file, place, number * entry + width)
        tags = {}
        for k in range(number):
            tag, values = _entry(path, file, data[k * entry : (k + 1) * entry], order, big)
            tags[tag] = values
        yield Page(tags)
        position = struct.unpack_from(order + pointer, data, number * entry)[0]


def _entry(
    path: pathlib.Path, file: BinaryIO, data: bytes, order: str, big: bool
) -> tuple[int, tuple[int, ...]]:
    """(tag, its whole numbers; none where it is of another type)."""
    pointer, inline = ("Q", 8) if big else ("I", 4)
    tag, kind, count = struct.unpack_from(f"{order}2H{pointer}", data)
    letter = TYPES.get(kind)
    width = struct.calcsize(f"{order}{letter}") if letter else WIDE.get(kind, 1)
    held = data[-inline:]
    if count * width > inline:
        place = struct.unpack(order + pointer, held)[0]
        # What no size depends on need not be read.
        if place + count * width > os.fstat(file.fileno()).st_size:
            raise claims.damaged(path, f"tag {tag} of a directory lies outside it")
        held = _read(path, file, place, count * width) if letter else b""
    if not letter:
        return tag, ()
    return tag, struct.unpack_from(f"{order}{count}{letter}", held)


def _read(path: pathlib.Path, file: BinaryIO, place: int, count: int) -> bytes:
    if place + count > os.fstat(file.fileno()).st_size:
        raise claims.damaged(path, "a directory of its pages lies outside it")
    file.seek(place)
    return file.read(count)
