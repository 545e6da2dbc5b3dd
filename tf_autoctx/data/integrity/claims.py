"""What a header claims, held against the bytes of the file and the memory at hand."""

from __future__ import annotations

import contextlib
import math
import os
import pathlib
import resource
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO

from absl import logging

from tf_autoctx.errors import UserError

RATIO = 1032  # the most bytes that deflate makes of one
PIECE = 1 << 20
GZIP, ZLIB, DEFLATE = 31, 15, -15  # `wbits` of zlib


def damaged(path: object, reason: str) -> UserError:
    """The error of a file that lacks something or holds what cannot be."""
    return UserError(f"{path}: cut off or damaged, {reason}; expected an intact file.")


def missing(path: object, there: int, promised: int) -> UserError:
    """The error of a file that ends before its voxels do."""
    return UserError(
        f"{path}: cut off or damaged; expected {promised} bytes once unpacked, as its header says, "
        f"not {there}."
    )


def require_name(path: pathlib.Path) -> None:
    """Raises a `UserError` for a name that is not UTF-8, on which ITK aborts."""
    name = os.fsencode(path)
    try:
        name.decode()
    except UnicodeDecodeError:
        raise UserError(
            f"{name.decode(errors='backslashreplace')}: the name is not UTF-8; rename the file or "
            "its folder."
        ) from None


def require_file(path: pathlib.Path) -> None:
    """Raises a `UserError` for a pipe or a device, which may keep its reader waiting forever."""
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: is a pipe or a device; expected an image file.")


def require_size(path: object, size: Sequence[int]) -> None:
    """Raises a `UserError` for an axis without voxels."""
    if not size or min(size) < 1:
        raise UserError(
            f"{path}: has size {tuple(size)}, no voxels; expected at least one along each axis."
        )


def require_room(path: object, size: Sequence[int], voxel: float, stored: int, ratio: int) -> int:
    """Holds the voxels that a header promises against what is there.

    Args:
      path: for messages.
      size: voxels along each axis.
      voxel: bytes of a voxel, a fraction for bits.
      stored: bytes of the file that may hold voxels.
      ratio: the most bytes that one of them may become.

    Returns:
      The bytes of all voxels.

    Raises:
      UserError: more than the file can hold, or than there is memory.
    """
    require_size(path, size)
    promised = math.ceil(math.prod(size) * voxel)
    if promised > stored * ratio and ratio == 1:
        raise missing(path, max(stored, 0), promised)
    if promised > stored * ratio:
        raise UserError(
            f"{path}: cut off or damaged; its header has size {tuple(size)}, {promised} bytes, "
            f"expected no more than {stored} bytes of file can hold."
        )
    memory = memory_at_hand()
    if promised > memory:
        raise UserError(
            f"{path}: has size {tuple(size)}, {promised / 1e9:.3g} GB; expected no more than the "
            f"{memory / 1e9:.3g} GB of memory at hand."
        )
    return promised


def memory_at_hand() -> int:
    """Bytes that this process may still allocate: of the machine, the container and its limit."""
    page = os.sysconf("SC_PAGE_SIZE")
    rooms = [os.sysconf("SC_PHYS_PAGES") * page]
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
        rooms.append(next(int(x.split()[1]) << 10 for x in lines if x.startswith("MemAvailable")))
    group = pathlib.Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):  # "max": no limit
        limit = int((group / "memory.max").read_text())
        words = (group / "memory.stat").read_text().split()
        cached = int(words[words.index("inactive_file") + 1])
        rooms.append(limit - int((group / "memory.current").read_text()) + cached)
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    with contextlib.suppress(OSError):
        if limit != resource.RLIM_INFINITY:
            used = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * page
            rooms.append(limit - used)
    return max(min(rooms), 0)


def pieces(file: BinaryIO, count: int | None = None) -> Iterator[bytes]:
    """The next `count` bytes of a file, or all that follow, piece by piece."""
    left = math.inf if count is None else count
    while left > 0 and (piece := file.read(int(min(PIECE, left)))):
        left -= len(piece)
        yield piece


def unpacked(path: object, packed: Iterable[bytes], kind: int) -> Iterator[bytes]:
    """What deflate packed, piece by piece; checksums are checked.

    Args:
      path: for messages.
      packed: pieces.
      kind: GZIP, of one member or more, ZLIB or DEFLATE.

    Raises:
      UserError: damaged or cut off.
    """
    stream, begun = zlib.decompressobj(kind), False
    try:
        for piece in packed:
            while piece:
                if stream.eof:
                    if kind != GZIP or not piece.strip(b"\0"):
                        return  # padding, or what is no part of the stream
                    stream = zlib.decompressobj(kind)
                begun = True
                yield stream.decompress(piece, PIECE)
                piece = stream.unconsumed_tail or stream.unused_data
        while not stream.eof and (rest := stream.decompress(stream.unconsumed_tail, PIECE)):
            yield rest
    except zlib.error as error:
        raise damaged(path, f"what is packed cannot be unpacked ({error})") from None
    if not begun or not stream.eof:
        raise damaged(path, "what is packed ends too soon")


def require_voxels(
    path: object, stream: Iterable[bytes], promised: int, before: int = 0, own: bool = True
) -> None:
    """Counts the bytes of voxels; the rest of a stream that is much longer is not read.

    Args:
      path: for messages.
      stream: pieces.
      promised: bytes of voxels.
      before: bytes of something else before them.
      own: see `require_no_rest`.

    Raises:
      UserError: fewer than promised, or many more.
    """
    there = -before
    for piece in stream:
        there += len(piece)
        if there > promised + PIECE:
            break
    if there < promised:
        raise missing(path, max(there, 0), promised)
    require_no_rest(path, there - promised, promised, own)


def require_no_rest(path: object, rest: int, promised: int, own: bool = True) -> None:
    """Warns of bytes behind the voxels: the header may be wrong.

    Args:
      path: for messages.
      rest: how many.
      promised: bytes of voxels.
      own: whether the file is this image's alone, not one of several images with a header each.

    Raises:
      UserError: they are more than padding, a hundredth of the voxels.
    """
    if own and rest > promised // 100 + 16:
        raise damaged(path, f"it holds more than the {promised} bytes of voxels of its header")
    if rest > 0:
        logging.warning("%s: holds %d bytes behind its voxels; ignored.", path, rest)


def require_numbers(path: object, file: BinaryIO, promised: int) -> None:
    """Counts numbers that are written as text.

    Raises:
      UserError: fewer than promised.
    """
    there, inside = 0, False
    for piece in pieces(file):
        words = len(piece.split())
        # A number may go on in the next piece.
        there += words - (inside and not piece[:1].isspace() and words > 0)
        inside = not piece[-1:].isspace()
    if there < promised:
        raise UserError(
            f"{path}: cut off or damaged; expected {promised} numbers, as its header says, not "
            f"{there}."
        )
