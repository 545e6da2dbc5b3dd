"""What a DICOM file says of its image, without its pixels.

SimpleITK tells no sequences, reads whatever a file has lost as if it were there, and takes 1 mm
where a file is silent.
"""

from __future__ import annotations

import dataclasses
import math
import mmap
import os
import pathlib
import re
import struct
import zlib
from typing import Any

Values = dict[int, Any]  # {tag: bytes, or a list of values for a sequence}

UNDEFINED = 0xFFFFFFFF
LONG = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
SHORT = tuple(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
PIXELS = (0x7FE00010, 0x7FE00008, 0x7FE00009)  # whole numbers, float32, float64
IMPLICIT, BIG, DEFLATED = "1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"
DIRECTORY = b"1.2.840.10008.1.3.10"  # DICOMDIR, which lists files
LONGEST = 1 << 16  # bytes of a value that is kept

SYNTAX = 0x00020010
CLASS, MODALITY, DESCRIPTION = 0x00080016, 0x00080060, 0x0008103E
PATIENT = 0x00100020
THICKNESS, BETWEEN = 0x00180050, 0x00180088
DETECTOR, REGIONS = 0x00181164, 0x00186011
FORMAT, UNITS_X, UNITS_Y = 0x00186012, 0x00186024, 0x00186026
DELTA_X, DELTA_Y = 0x0018602C, 0x0018602E
SERIES, NUMBER, POSITION, ORIENTATION = 0x0020000E, 0x00200011, 0x00200032, 0x00200037
PLANE_POSITION, PLANE_ORIENTATION, MEASURES = 0x00209113, 0x00209116, 0x00289110
FRAMES, ROWS, COLUMNS, SPACING = 0x00280008, 0x00280010, 0x00280011, 0x00280030
SAMPLES, PHOTOMETRIC = 0x00280002, 0x00280004
ALLOCATED, BITS, SIGNED = 0x00280100, 0x00280101, 0x00280103
INTERCEPT, SLOPE = 0x00281052, 0x00281053
TABLE, TRANSFORM = 0x00283000, 0x00289145
OFFSETS = 0x3004000C
SHARED, EACH = 0x52009229, 0x52009230
# Sequences of what is read here; where kinds are implicit, only the tag says so.
SEQUENCES = (REGIONS, PLANE_POSITION, PLANE_ORIENTATION, MEASURES, TABLE, TRANSFORM, SHARED, EACH)


class _EndError(Exception):
    """The file ends within an element."""


@dataclasses.dataclass(frozen=True)
class File:
    """A DICOM file.

    Attributes:
      path: of it.
      values: {tag: bytes, or a list of such for a sequence}.
      order: of its numbers, for `struct`.
      fault: what is wrong with it; "" where it is whole as far as the pixels.
      pixels: whether it has some.
    """

    path: pathlib.Path
    values: Values = dataclasses.field(repr=False)
    order: str = "<"
    fault: str = ""
    pixels: bool = False

    def text(self, tag: int, values: Values | None = None) -> str:
        """A value of letters; "" where there is none."""
        value = (self.values if values is None else values).get(tag, b"")
        return value.decode("latin-1").strip("\0 ") if isinstance(value, bytes) else ""

    def numbers(self, tag: int, values: Values | None = None) -> list[float]:
        """Numbers that are written in letters; none where they are missing or are none."""
        try:
            return [float(part) for part in self.text(tag, values).split("\\")]
        except ValueError:
            return []

    def stored(self, tag: int, kind: str, values: Values | None = None) -> float:
        """A number that is stored in binary, of `struct`'s kind; NaN where there is none."""
        value = (self.values if values is None else values).get(tag, b"")
        if not isinstance(value, bytes) or len(value) < struct.calcsize(kind):
            return float("nan")
        return struct.unpack_from(self.order + kind, value)[0]

    def items(self, tag: int, values: Values | None = None) -> list[Values]:
        """The items of a sequence."""
        value = (self.values if values is None else values).get(tag, [])
        return value if isinstance(value, list) else []

    @property
    def frames(self) -> int:
        """How many images it holds."""
        number = (self.numbers(FRAMES) or [1.0])[0]
        return int(number) if math.isfinite(number) and number >= 1 else 1

    @property
    def is_turned_round(self) -> bool:
        """Whether its high values are dark; GDCM turns them round, so that they are as seen."""
        return self.text(PHOTOMETRIC) == "MONOCHROME1"

    @property
    def is_image(self) -> bool:
        """Whether it says so itself: it has rows."""
        return ROWS in self.values

    @property
    def is_slice(self) -> bool:
        """Whether it is one image that says where in a patient it lies."""
        return self.is_image and self.frames == 1 and len(self.numbers(POSITION)) == 3


def is_dicom(path: pathlib.Path) -> bool:
    """Whether a file begins as DICOM does, with or without its preamble."""
    try:
        with path.open("rb") as file:
            start = file.read(132)
    except OSError:
        return False
    return begins(start)


def begins(start: bytes) -> bool:
    """Whether these are the first bytes of DICOM, 132 or more: without its preamble, group 0002 or
    0008 comes first."""
    bare = rb"[\x02\x08]\0[\0-\xff]\0(UL|CS|UI|[\0-\xff]{2}\0\0)"
    return start[128:132] == b"DICM" or re.match(bare, start, re.DOTALL) is not None


def read(path: pathlib.Path) -> File:
    """A DICOM file up to its pixels.

    Raises:
      OSError: it cannot be opened.
    """
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return File(path, {}, fault="is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _read(path, data)


def _read(path: pathlib.Path, data: Any) -> File:
    start = 132 if data[128:132] == b"DICM" else 0
    if not start and not is_dicom(path):
        return File(path, {}, fault="is no DICOM file")
    values: Values = {}
    meta, fault, order = _Elements(data, "<", explicit=True), "", "<"
    try:
        at = meta.dataset(start, len(data), values, "meta")
        syntax = values.get(SYNTAX, b"").rstrip(b"\0 ").decode("latin-1")
        if syntax == DEFLATED:
            data, at = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data[at:]), 0
        order = ">" if syntax == BIG else "<"
        explicit = syntax != IMPLICIT and data[at + 4 : at + 6] in (*LONG, *SHORT)
        _Elements(data, order, explicit).dataset(at, len(data), values, "file")
    except (_EndError, struct.error):
        fault = "is cut off"
    except (zlib.error, RecursionError):  # sequences in sequences
        fault = "is damaged"
    return File(path, values, order, fault, pixels=any(tag in values for tag in PIXELS))


@dataclasses.dataclass(frozen=True)
class _Elements:
    """Reads elements, each into a dictionary by its tag."""

    data: Any
    order: str
    explicit: bool

    def dataset(self, at: int, end: int, values: Values, what: str) -> int:
        """Reads the elements of one part of a file.

        Args:
          at: where it begins.
          end: where it ends, or the file does where the part has an end of its own.
          values: {tag: value}, which is filled.
          what: "meta" (group 2 alone), "file" (up to the pixels), "item" or "open item".

        Returns:
          Where it ended.

        Raises:
          _EndError: the file ends first.
        """
        while at + 8 <= end:
            group, number, length = struct.unpack_from(f"{self.order}HHI", self.data, at)
            tag = group << 16 | number
            if what == "meta" and group != 2:
                return at
            if what == "open item" and tag == ITEM_END:
                return at + 8
            kind, at, length = self._length(tag, at, length)
            if tag in PIXELS and what == "file":
                values[tag] = b""
                return at
            if kind == b"SQ" or (tag in SEQUENCES and kind in (b"", b"UN")):
                values[tag], at = self._items(at, length)
            elif length == UNDEFINED and (tag in PIXELS or kind in (b"OB", b"OW")):
                at = self._fragments(at)
            elif length == UNDEFINED:  # a sequence of unknown kind is of implicit kinds
                values[tag], at = _Elements(self.data, "<", explicit=False)._items(at, length)
            elif at + length > end:
                raise _EndError
            else:
                values[tag] = bytes(self.data[at : at + min(length, LONGEST)])
                at += length
        if what == "open item" or self.data[at:end].strip(b"\0"):
            raise _EndError
        return at

    def _length(self, tag: int, at: int, length: int) -> tuple[bytes, int, int]:
        """(kind, where the value begins, its length) of an element at `at`."""
        if not self.explicit or tag >> 16 == 0xFFFE:
            return b"", at + 8, length
        kind = bytes(self.data[at + 4 : at + 6])
        if kind in LONG:
            return kind, at + 12, struct.unpack_from(f"{self.order}I", self.data, at + 8)[0]
        return kind, at + 8, struct.unpack_from(f"{self.order}H", self.data, at + 6)[0]

    def _items(self, at: int, length: int) -> tuple[list[Values], int]:
        """(items of a sequence, where it ends)."""
        end = len(self.data) if length == UNDEFINED else at + length
        if end > len(self.data):
            raise _EndError
        items: list[Values] = []
        while at < end:
            group, number, size = struct.unpack_from(f"{self.order}HHI", self.data, at)
            at += 8
            if group << 16 | number == SEQUENCE_END:
                return items, at
            if group << 16 | number != ITEM:
                raise _EndError
            values: Values = {}
            last = len(self.data) if size == UNDEFINED else at + size
            if last > end:
                raise _EndError
            at = self.dataset(at, last, values, "open item" if size == UNDEFINED else "item")
            items.append(values)
        if length == UNDEFINED:
            raise _EndError
        return items, at

    def _fragments(self, at: int) -> int:
        """Where packed pixels of an icon end."""
        while True:
            group, number, size = struct.unpack_from("<HHI", self.data, at)
            at += 8 + (size if group << 16 | number == ITEM else 0)
            if group << 16 | number == SEQUENCE_END:
                return at
            if group << 16 | number != ITEM or at > len(self.data):
                raise _EndError
