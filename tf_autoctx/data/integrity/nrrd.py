"""NRRD files, .nrrd and .nhdr."""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO

from tf_autoctx.data.integrity import claims, detached
from tf_autoctx.errors import UserError

HEADER = 1 << 20  # the most bytes of a header
TYPES = {
    1: "signed char|int8|int8_t|uchar|unsigned char|uint8|uint8_t",
    2: "short|short int|signed short|signed short int|int16|int16_t|"
    "ushort|unsigned short|unsigned short int|uint16|uint16_t",
    4: "int|signed int|int32|int32_t|uint|unsigned int|uint32|uint32_t|float",
    8: "longlong|long long|long long int|signed long long|signed long long int|int64|int64_t|"
    "ulonglong|unsigned long long|unsigned long long int|uint64|uint64_t|double",
}
BYTES = {name: width for width, names in TYPES.items() for name in names.split("|")}
RAW, GZIP, TEXT, HEX = ("raw",), ("gz", "gzip"), ("txt", "text", "ascii"), ("hex",)


def check(path: pathlib.Path) -> None:
    """See `integrity.check`."""
    with path.open("rb") as file:
        fields, names, start = _header(path, file.read(HEADER))
    size = _sizes(path, fields)
    voxel = BYTES.get(fields.get("type", "").lower())
    encoding = fields.get("encoding", "").lower()
    if voxel is None:
        raise claims.damaged(path, f"its voxels are of type {fields.get('type')!r}")
    if encoding not in (*RAW, *GZIP, *TEXT, *HEX):
        raise UserError(f"{path}: has the encoding {encoding!r}; expected raw, gzip, text or hex.")
    sources = detached.files(path, names) if names is not None else [path]
    if size[-1] % len(sources) and size[0] % len(sources):
        raise claims.damaged(path, f"it names {len(sources)} data files for size {tuple(size)}")
    stored = sum(file.stat().st_size for file in sources) - start
    # Of text, a number may be a character and a blank.
    ratio = {**dict.fromkeys(GZIP, claims.RATIO), **dict.fromkeys(TEXT, voxel)}.get(encoding, 1)
    promised = claims.require_room(path, size, voxel, stored, ratio) // len(sources)
    skips = [_skip(path, fields, name) for name in ("line skip", "byte skip")]
    for source in sources:
        where = path if source == path else f"{path} ({source.name})"
        with source.open("rb") as file:
            file.seek(start)
            if encoding in TEXT:
                claims.require_numbers(where, file, promised // voxel)
            elif encoding in HEX:
                claims.require_voxels(where, _hexadecimal(file), promised)
            else:
                _require_bytes(where, file, encoding, skips, promised)


def voxel_files(path: pathlib.Path) -> list[pathlib.Path]:
    """The files of the voxels, which may be the file itself.

    Raises:
      UserError: the header does not tell, or one is missing.
    """
    with path.open("rb") as file:
        _, names, _ = _header(path, file.read(HEADER))
    return [path] if names is None else detached.files(path, names)


def _require_bytes(
    where: object, file: BinaryIO, encoding: str, skips: Sequence[int], promised: int
) -> None:
    """Raises a `UserError` unless so many bytes of voxels are stored, or packed, in a file.

    Behind a skip, the file may be that of several headers.
    """
    lines, skipped = skips
    for _ in range(lines):
        file.readline(HEADER)
    if encoding in GZIP:
        stream = claims.unpacked(where, claims.pieces(file), claims.GZIP)
        claims.require_voxels(where, stream, promised, max(skipped, 0), own=not any(skips))
        return
    left = os.fstat(file.fileno()).st_size - file.tell() - max(skipped, 0)
    if left < promised:
        raise claims.missing(where, max(left, 0), promised)
    if skipped >= 0:  # else the voxels end the file
        claims.require_no_rest(where, left - promised, promised, own=not any(skips))


def _header(path: pathlib.Path, data: bytes) -> tuple[dict[str, str], list[str] | None, int]:
    """({field: value}, names of the data files or None, where the voxels begin).

    A blank line ends the header; without one, the voxels lie in other files.
    """
    fields: dict[str, str] = {}
    names: list[str] | None = None
    listing, position = False, 0
    while position < len(data):
        end = data.find(b"\n", position)
        end = end if end >= 0 else len(data)
        line = data[position:end].decode(errors="surrogateescape").rstrip("\r")
        position = min(end + 1, len(data))
        if listing:
            names = [*(names or []), *([line.strip()] if line.strip() else [])]
            continue
        if not line.strip():
            if names is None:
                return fields, None, position
            break
        match = re.fullmatch(r"([^:=]+?)\s*:\s(.*)", line)
        if line.startswith(("#", "NRRD000")) or ":=" in line:
            continue
        if not match:
            raise claims.damaged(path, f"a line of its header is {line[:60]!r}")
        key, value = match[1].strip().lower(), match[2].strip()
        key = {"datafile": "data file", "lineskip": "line skip", "byteskip": "byte skip"}.get(
            key, key
        )
        if key in fields:
            raise claims.damaged(path, f"its header has {key!r} twice")
        fields[key] = value
        if key == "data file":
            listing = value.split()[:1] == ["LIST"]
            names = [] if listing else [value]
            if "%" in value and len(value.split()) > 3:
                names = detached.numbered(path, value.split())
    if names is None:
        raise claims.damaged(path, "its header does not end")
    return fields, names, 0


def _sizes(path: pathlib.Path, fields: Mapping[str, str]) -> list[int]:
    """Voxels along each axis."""
    try:
        dimension = int(fields["dimension"])
        size = [int(word) for word in fields["sizes"].split()]
    except (KeyError, ValueError):
        raise claims.damaged(path, "its header lacks 'dimension' or 'sizes'") from None
    if not 1 <= dimension <= 16 or len(size) != dimension:
        raise claims.damaged(path, f"its header has {len(size)} sizes for {dimension} dimensions")
    claims.require_size(path, size)
    return size


def _skip(path: pathlib.Path, fields: Mapping[str, str], name: str) -> int:
    try:
        return int(fields.get(name, "0"))
    except ValueError:
        raise claims.damaged(path, f"its header has {name} {fields[name]!r}") from None


def _hexadecimal(file: BinaryIO) -> Iterator[bytes]:
    """As many bytes as there are pairs of digits."""
    for piece in claims.pieces(file):
        yield bytes(len(re.findall(rb"[0-9a-fA-F]", piece)) // 2)
