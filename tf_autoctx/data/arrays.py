"""Arrays of a case in files of chunks, of which a part is read without the rest, and in memory.

A file is a head and records, its numbers little-endian. The head is `HEAD` and the index: shape,
chunk and dtype as JSON; for each chunk, in C order, the number of its record (int32); and of each
record the CRC-32 (uint32). A record is a chunk, filled up with 0 at the far ends of the array.
Chunks that are equal share one, so that air and the inside of a structure take no place.

Records are read by Python, since TensorFlow has no operation that reads at a place of a file, and a
data set a record takes 200 times as long. Python's lock is free while the disk is waited for, while
voxels are copied and checksums taken: samples are read side by side.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
import tensorflow as tf

from tf_autoctx.files import replacing

MAGIC = b"chunks 1"
HEAD = struct.Struct("<8sIIII")  # MAGIC, bytes of JSON, chunks, records, CRC-32 of the index
CUBES = (32, 32, 32)  # chunks of a volume of which patches are read
DAMAGED = ("damaged file <", "> of a case")  # before and after its path


def write(path: str | os.PathLike[str], array: Any, chunk: Sequence[int | None] = ()) -> None:
    """Writes an array; a file is there whole or not at all.

    Args:
      path: of the file.
      array: of one axis or more, none of them empty.
      chunk: edges of a chunk along the first axes; None, and axes that it does not name: whole.
    """
    array = np.asarray(array)
    edges = [min(edge or n, n) for n, edge in itertools.zip_longest(array.shape, chunk)]
    numbers: dict[bytes, int] = {}
    table = [numbers.setdefault(block, len(numbers)) for block in _blocks(array, edges)]
    facts = {"shape": array.shape, "chunk": edges, "dtype": array.dtype.name}
    told = json.dumps(facts).encode()
    sums = [zlib.crc32(block) for block in numbers]
    index = told + np.array(table, "<i4").tobytes() + np.array(sums, "<u4").tobytes()
    with replacing(path) as partial, open(partial, "wb") as file:
        file.write(HEAD.pack(MAGIC, len(told), len(table), len(numbers), zlib.crc32(index)))
        file.write(index)
        file.writelines(numbers)


def _blocks(array: np.ndarray, edges: Sequence[int]) -> Iterator[bytes]:
    """The records of an array's chunks, one after the other."""
    for corner in itertools.product(*(range(0, n, edge) for n, edge in zip(array.shape, edges))):
        inside = array[tuple(slice(low, low + edge) for low, edge in zip(corner, edges))]
        ends = [(0, edge - n) for n, edge in zip(inside.shape, edges)]
        yield (np.pad(inside, ends) if np.any(ends) else inside).tobytes()


class Stored:
    """An array in a file of `write`, which every method reads, in graphs and outside.

    Args:
      path: of the file, a string or a string tensor.
      spec: dtype and shape as far as it is known.

    Raises:
      tf.errors.OpError: with the path between `DAMAGED`: the file is missing, or what is read of it
        is not what was written.
    """

    def __init__(self, path: str | tf.Tensor, spec: tf.TensorSpec) -> None:
        self._path, self._spec = path, spec

    def shape(self) -> tf.Tensor:
        """(rank,) int32."""
        return tf.ensure_shape(self._read(_shape, tf.int32), [self._spec.shape.rank])

    def whole(self) -> tf.Tensor:
        """All of it."""
        return tf.ensure_shape(self._read(_whole, self._spec.dtype), self._spec.shape)

    def cut(self, low: Any, size: Any) -> tf.Tensor:
        """A box of voxels (*size, channels), all of them inside.

        Args:
          low, size: of its first corner and its edges along all axes but the last, integers.
        """
        box = self._read(_cut, self._spec.dtype, tf.cast(low, tf.int32), tf.cast(size, tf.int32))
        return tf.ensure_shape(box, [None] * (self._spec.shape.rank - 1) + self._spec.shape[-1:])

    def at(self, index: Sequence[tf.Tensor]) -> tf.Tensor:
        """Voxels (..., channels), all of them inside; no chunk is read that has none of them.

        Args:
          index: of all axes but the last, int32 of one shape (...).
        """
        voxels = self._read(_at, self._spec.dtype, *index)
        return tf.ensure_shape(voxels, index[0].shape + self._spec.shape[-1:])

    def _read(self, reader: Any, dtype: tf.DType, *arguments: tf.Tensor) -> tf.Tensor:
        return tf.numpy_function(reader, [self._path, *arguments], dtype, stateful=False)


class Held:
    """An array in memory, read like one that is `Stored`."""

    def __init__(self, tensor: tf.Tensor) -> None:
        self._tensor = tensor

    def shape(self) -> tf.Tensor:
        """See `Stored.shape`."""
        return tf.shape(self._tensor)

    def whole(self) -> tf.Tensor:
        """See `Stored.whole`."""
        return self._tensor

    def cut(self, low: Any, size: Any) -> tf.Tensor:
        """See `Stored.cut`."""
        channels = self._tensor.shape[-1]
        return tf.slice(self._tensor, tf.concat([low, [0]], 0), tf.concat([size, [channels]], 0))

    def at(self, index: Sequence[tf.Tensor]) -> tf.Tensor:
        """See `Stored.at`."""
        return tf.gather_nd(self._tensor, tf.stack(index, axis=-1))


Array = Stored | Held


class _File:
    """An open file of `write`, its index read."""

    def __init__(self, file: BinaryIO) -> None:
        self._descriptor = file.fileno()
        magic, length, chunks, records, checksum = HEAD.unpack(self._bytes(0, HEAD.size))
        index = self._bytes(HEAD.size, length + 4 * (chunks + records))
        if magic != MAGIC or zlib.crc32(index) != checksum:
            raise ValueError("not the head of a file of chunks")
        facts = json.loads(index[:length])
        self.shape, self.edges = tuple(facts["shape"]), tuple(facts["chunk"])
        self.dtype = np.dtype(facts["dtype"])
        grid = [-(-n // edge) for n, edge in zip(self.shape, self.edges)]
        self.table = np.frombuffer(index, "<i4", chunks, length).reshape(grid)
        self._sums = np.frombuffer(index, "<u4", records, length + 4 * chunks)
        self._start = HEAD.size + len(index)
        self._records: dict[int, np.ndarray] = {}

    def record(self, number: int) -> np.ndarray:
        """A chunk by the number of its record; it is read once."""
        if number not in self._records:
            size = math.prod(self.edges) * self.dtype.itemsize
            content = self._bytes(self._start + number * size, size)
            if zlib.crc32(content) != self._sums[number]:
                raise ValueError(f"record {number} is not what was written")
            self._records[number] = np.frombuffer(content, self.dtype).reshape(self.edges)
        return self._records[number]

    def _bytes(self, start: int, count: int) -> bytearray:
        content, done = bytearray(count), 0
        with memoryview(content) as view:
            while done < count:  # a system call reads 2 GiB at most
                read = os.preadv(self._descriptor, [view[done:]], start + done)
                if not read:
                    raise ValueError("cut short")
                done += read
        return content


@contextlib.contextmanager
def _opened(path: Any) -> Iterator[_File]:
    """The file of a path: bytes, or as an array outside graphs."""
    name = os.fsdecode(np.asarray(path).item())
    try:
        with open(name, "rb", buffering=0) as file:
            yield _File(file)
    except (OSError, ValueError, struct.error, MemoryError) as error:
        raise tf.errors.DataLossError(None, None, name.join(DAMAGED)) from error


def _shape(path: Any) -> np.ndarray:
    with _opened(path) as file:
        return np.array(file.shape, np.int32)


def _whole(path: Any) -> np.ndarray:
    with _opened(path) as file:
        return _box(file, [0] * len(file.shape), file.shape)


def _cut(path: Any, low: np.ndarray, size: np.ndarray) -> np.ndarray:
    with _opened(path) as file:
        return _box(file, [*low.tolist(), 0], [*size.tolist(), file.shape[-1]])


def _box(file: _File, low: Sequence[int], size: Sequence[int]) -> np.ndarray:
    if file.table.size == 1 and tuple(size) == file.shape:
        return file.record(0)
    box = np.empty(size, file.dtype)
    touched = [
        range(first // edge, (first + n - 1) // edge + 1)
        for first, n, edge in zip(low, size, file.edges)
    ]
    for cell in itertools.product(*touched):
        # Where the chunk begins in the box
        begins = [number * edge - first for number, edge, first in zip(cell, file.edges, low)]
        inside = tuple(
            slice(max(begin, 0), min(begin + edge, n))
            for begin, edge, n in zip(begins, file.edges, size)
        )
        taken = tuple(
            slice(within.start - begin, within.stop - begin)
            for within, begin in zip(inside, begins)
        )
        box[inside] = file.record(int(file.table[cell]))[taken]
    return box


def _at(path: Any, *index: np.ndarray) -> np.ndarray:
    with _opened(path) as file:
        edges = file.edges[:-1]
        cells = tuple(along // edge for along, edge in zip(index, edges))
        within = tuple(along - cell * edge for along, cell, edge in zip(index, cells, edges))
        numbers = file.table[..., 0][cells]
        used = np.flatnonzero(np.bincount(numbers.ravel()))
        slots = np.zeros(used[-1] + 1, np.intp)
        slots[used] = np.arange(len(used))
        records = np.stack([file.record(int(number)) for number in used])
        return records[(slots[numbers], *within)]
