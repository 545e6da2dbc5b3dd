"""MetaImage files, .mha and .mhd."""

from __future__ import annotations

import math
import pathlib
import re
from collections.abc import Mapping, Sequence

from tf_autoctx.data.integrity import claims, detached
from tf_autoctx.errors import UserError

HEADER = 1 << 20  # the most bytes of a header
LINE = re.compile(r"\s*([A-Za-z0-9_.\-()\[\] ]+?)\s*[=:](.*)")
TYPES = {
    "MET_CHAR": 1,
    "MET_UCHAR": 1,
    "MET_SHORT": 2,
    "MET_USHORT": 2,
    "MET_INT": 4,
    "MET_UINT": 4,
    "MET_LONG": 4,
    "MET_ULONG": 4,
    "MET_LONG_LONG": 8,
    "MET_ULONG_LONG": 8,
    "MET_FLOAT": 4,
    "MET_DOUBLE": 8,
}
# {key: numbers that it has a dimension, 0: one}
NUMBERS = {
    "Offset": 1,
    "Position": 1,
    "Origin": 1,
    "ElementSpacing": 1,
    "ElementSize": 1,
    "CenterOfRotation": 1,
    "TransformMatrix": 2,
    "Orientation": 2,
    "Rotation": 2,
    "ID": 0,
    "ParentID": 0,
    "ElementMin": 0,
    "ElementMax": 0,
    "HeaderSize": 0,
    "CompressedDataSize": 0,
    "ElementNumberOfChannels": 0,
    "ElementToIntensityFunctionSlope": 0,
    "ElementToIntensityFunctionOffset": 0,
}
# {key: value that changes no voxel}; ITK leaves them out.
SCALING = {"ElementToIntensityFunctionSlope": 1, "ElementToIntensityFunctionOffset": 0}
TRUTH = ("BinaryData", "BinaryDataByteOrderMSB", "ElementByteOrderMSB", "CompressedData")


def check(path: pathlib.Path) -> None:
    """See `integrity.check`: each field of the header is what MetaIO takes, and the data are there.

    MetaIO writes beyond its arrays for fields that it does not expect, hence the strictness.
    """
    with path.open("rb") as file:
        lines, start = _header(path, file.read(HEADER))
    fields = _fields(path, lines)
    size = _numbers(path, fields, "DimSize", int)
    channels = _number(path, fields, "ElementNumberOfChannels", 1)
    kind = fields.get("ElementType", "")
    if kind not in TYPES or not 1 <= channels <= 1024:
        raise claims.damaged(path, f"its voxels are {channels} of type {kind!r}")
    sources, slices = _sources(path, fields, lines, size)
    if slices != 1 and slices != size[-1]:
        raise claims.damaged(path, f"it names {slices} data files for {size[-1]} slices")
    if _true(fields.get("BinaryData", "True")) is False:
        raise UserError(f"{path}: holds its voxels as text; expected BinaryData = True.")
    for key, plain in SCALING.items():
        if key in fields and _numbers(path, fields, key, float) != [plain]:
            raise UserError(
                f"{path}: has {key} = {fields[key]}, which readers leave out; expected {plain}, "
                "store the voxels scaled."
            )
    packed = _true(fields.get("CompressedData", "False")) is True
    local = sources == [path]
    if packed and local and "CompressedDataSize" not in fields:
        raise claims.damaged(path, "its header lacks CompressedDataSize")
    skip = start if local else _number(path, fields, "HeaderSize", 0)
    if skip < -1 or (packed and skip < 0):
        raise claims.damaged(path, f"its header has HeaderSize = {skip}")
    stored = sum(max(file.stat().st_size - max(skip, 0), 0) for file in sources)
    ratio = claims.RATIO if packed else 1
    promised = claims.require_room(path, size, TYPES[kind] * channels, stored, ratio) // slices
    for source in sources:
        where = path if local else f"{path} ({source.name})"
        if packed:
            count = _number(path, fields, "CompressedDataSize", 0)
            _require_packed(where, source, skip, count, promised)
            continue
        left = source.stat().st_size - max(skip, 0)
        if left < promised:
            raise claims.missing(where, max(left, 0), promised)
        if skip >= 0:  # else the voxels end the file
            claims.require_no_rest(where, left - promised, promised, own=local or not skip)


def voxel_files(path: pathlib.Path) -> list[pathlib.Path]:
    """The files of the voxels, which may be the file itself.

    Raises:
      UserError: the header does not tell, or one is missing.
    """
    with path.open("rb") as file:
        lines, _ = _header(path, file.read(HEADER))
    fields = _fields(path, lines)
    return _sources(path, fields, lines, _numbers(path, fields, "DimSize", int))[0]


def _require_packed(
    where: object, source: pathlib.Path, skip: int, count: int, promised: int
) -> None:
    """Raises a `UserError` unless so many bytes of voxels are packed behind a header."""
    left = source.stat().st_size - skip
    if count > left:
        raise claims.damaged(where, f"{left} of {count} packed bytes are there")
    with source.open("rb") as file:
        file.seek(skip)
        stream = claims.unpacked(where, claims.pieces(file, count or left), claims.ZLIB)
        claims.require_voxels(where, stream, promised)


def _header(path: pathlib.Path, start: bytes) -> tuple[list[tuple[str, str]], int]:
    """([(key, value)], where the voxels begin), up to ElementDataFile, the last of a header.

    Behind it are the names of a list of files.
    """
    lines, position = [], 0
    while (end := start.find(b"\n", position)) >= 0 or position < len(start):
        end = end if end >= 0 else len(start)
        text = start[position:end].decode("latin-1").rstrip("\r")
        position = min(end + 1, len(start))
        match = LINE.fullmatch(text)
        if text.strip() == "":
            continue
        if not match or (not text.isprintable() and "\t" not in text):
            raise claims.damaged(path, f"a line of its header is {text[:60]!r}")
        lines.append((match[1], match[2].strip()))
        if match[1] == "ElementDataFile":
            if match[2].strip().upper().startswith("LIST"):
                names = start[position:].decode(errors="surrogateescape").split("\n")
                lines += [("", name.strip()) for name in names if name.strip()]
            return lines, position
    raise claims.damaged(path, "its header does not end with ElementDataFile")


def _fields(path: pathlib.Path, lines: Sequence[tuple[str, str]]) -> dict[str, str]:
    """{key: value}, each of the kind that MetaIO takes.

    Raises:
      UserError: a key that occurs twice, a value that is none.
    """
    fields: dict[str, str] = {}
    known = (*NUMBERS, *TRUTH, "NDims", "DimSize", "ElementType", "ElementDataFile")
    for key, value in lines:
        if key in known and key in fields:
            raise claims.damaged(path, f"its header has {key} twice")
        fields[key] = value
    dimensions = _number(path, fields, "NDims", 0)
    if not 1 <= dimensions <= 4:
        raise claims.damaged(path, f"its header has {dimensions} dimensions")
    for key, power in {**NUMBERS, "DimSize": 1}.items():
        if key in fields or key == "DimSize":
            count = len(_numbers(path, fields, key, int if key == "DimSize" else float))
            if count != (dimensions**power if power else 1):
                raise claims.damaged(path, f"its header has {count} numbers for {key}")
    for key in TRUTH:
        if key in fields and _true(fields[key]) is None:
            raise claims.damaged(path, f"its header has {key} = {fields[key]!r}")
    kind = fields.get("ObjectType", "Image")
    if kind != "Image":
        raise UserError(f"{path}: holds a MetaImage {kind!r}; expected an image.")
    return fields


def _true(value: str) -> bool | None:
    return {"t": True, "1": True, "f": False, "0": False}.get(value[:1].lower())


def _numbers(path: pathlib.Path, fields: Mapping[str, str], key: str, kind: type) -> list:
    try:
        values = [kind(word) for word in fields[key].split()]
    except KeyError:
        raise claims.damaged(path, f"its header lacks {key}") from None
    except ValueError:
        raise claims.damaged(path, f"its header has {key} = {fields[key]!r}") from None
    if not all(math.isfinite(value) for value in values):
        raise claims.damaged(path, f"its header has {key} = {fields[key]!r}")
    return values


def _number(path: pathlib.Path, fields: Mapping[str, str], key: str, default: int) -> int:
    values = _numbers(path, fields, key, int) if key in fields else [default]
    if len(values) != 1:
        raise claims.damaged(path, f"its header has {key} = {fields[key]!r}")
    return values[0]


def _sources(
    path: pathlib.Path,
    fields: Mapping[str, str],
    lines: Sequence[tuple[str, str]],
    size: Sequence[int],
) -> tuple[list[pathlib.Path], int]:
    """(files of the voxels, into how many they are divided)."""
    named = fields["ElementDataFile"]
    if named.upper() == "LOCAL":
        return [path], 1
    if named.upper().startswith("LIST"):
        count = int(words[1]) if len(words := named.split()) > 1 and words[1].isdecimal() else 0
        if count not in (0, len(size) - 1):
            raise claims.damaged(path, f"its header has ElementDataFile = {named!r}")
        names = [name for key, name in lines if not key][: size[-1]]
        return detached.files(path, names), len(names)
    if "%" in named:
        names = detached.numbered(path, named.split())
        return detached.files(path, names), len(names)
    return detached.files(path, [named]), 1
