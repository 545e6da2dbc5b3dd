"""Arrays of a case on disk, of which a part is read without the rest, and in memory.

An array on disk is a folder in the format of zarr 3: a description in JSON and one file of chunks,
each compressed and with its CRC-32C. Chunks of 0 alone take no place.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tf_autoctx.files import replacing

CUBES = (32, 32, 32)  # chunks of a volume of which patches are read
DAMAGED = ("damaged file <", "> of a case")  # before and after its path
EXHAUSTED = "RESOURCE_EXHAUSTED"  # in what tensorstore raises
BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
CHECKSUM = {"name": "crc32c"}
# Quick to read: a patch of a CT takes 1 ms more than uncompressed, and a fifth of the place.
COMPRESSION = {"name": "zstd", "configuration": {"level": 1}}
# Of the distance of the 1st and the 99th percentile of a volume, which no outlier widens: no change
# that shows (a screen has 256 grey levels).
UNSEEN = 1e-3


def write(path: str | os.PathLike[str], array: Any, chunk: Sequence[int | None] = ()) -> None:
    """Writes an array; it is there whole or not at all.

    A volume in float32 is rounded to float16 where that moves no voxel by more than `UNSEEN`: half
    of it is read.

    Args:
      path: of its folder.
      array: of one axis or more, none of them empty; 4 make it a volume.
      chunk: edges of a chunk along the first axes, as far as there are some; None, and axes that it
        does not name: whole.
    """
    array = _half(np.asarray(array))
    wanted = itertools.chain(chunk, itertools.repeat(None))
    edges = [min(edge or n, n) for n, edge in zip(array.shape, wanted)]
    inner = {
        "chunk_shape": edges,
        "codecs": [BYTES, COMPRESSION, CHECKSUM],
        "index_codecs": [BYTES, CHECKSUM],
    }
    file = {"chunk_shape": [-(-n // edge) * edge for n, edge in zip(array.shape, edges)]}
    metadata = {
        "shape": array.shape,
        "data_type": array.dtype.name,
        "fill_value": 0,
        "chunk_grid": {"name": "regular", "configuration": file},
        "codecs": [{"name": "sharding_indexed", "configuration": inner}],
    }
    with replacing(path) as partial:
        partial.mkdir()
        try:
            # Of 0 alone it would have no file of chunks, and one that is lost would read as 0.
            stored = _open(partial, metadata, store_data_equal_to_fill_value=not array.any())
            stored.write(array).result()
        except ValueError as error:
            if EXHAUSTED not in str(error):
                raise
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error


def _half(array: np.ndarray) -> np.ndarray:
    """A volume in float16, where nothing that shows is lost."""
    if array.ndim != 4 or array.dtype != np.float32:
        return array
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    low, high = np.percentile(array, (1, 99))
    return half if np.abs(half - array).max() <= UNSEEN * (high - low) else array


def _open(path: pathlib.Path, metadata: dict[str, Any] | None = None, **settings: Any) -> Any:
    """An array on disk as tensorstore has it; `metadata`: a new one."""
    import tensorstore  # for training and online rendering alone

    # What `replacing` puts in place at once need not be on the disk before.
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}, **settings}
    spec |= {"metadata": metadata, "context": {"file_io_sync": False}} if metadata else {}
    return tensorstore.open(spec, create=bool(metadata), open=not metadata).result()


class Stored:
    """An array of `write`, which every method reads, in graphs and outside.

    TensorFlow has no operation that reads at a place of a file. Python's lock is free while
    tensorstore works: samples are read side by side.

    Args:
      path: a string or a string tensor.
      spec: dtype to read as, and shape as far as it is known.

    Raises:
      tf.errors.OpError: with the path between `DAMAGED`: it is missing, or what is read of it is
        not what was written.
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
        """A box of voxels (*size, channels), all of them inside; its own chunks are read.

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
        def read(path: Any, *values: np.ndarray) -> np.ndarray:
            with _opened(path) as stored:
                return reader(stored, *values).astype(dtype.as_numpy_dtype, copy=False)

        return tf.numpy_function(read, [self._path, *arguments], dtype, stateful=False)


@contextlib.contextmanager
def _opened(path: Any) -> Iterator[Any]:
    """The array of a path: bytes, or as an array outside graphs."""
    folder = pathlib.Path(os.fsdecode(np.asarray(path).item()))
    try:
        stored = _open(folder)
        os.stat(folder.joinpath("c", *"0" * stored.rank))  # or it would read as 0
        yield stored
    except (OSError, ValueError, RuntimeError) as error:
        if EXHAUSTED in str(error):  # memory, or files that may be open: the array may be whole
            raise
        raise tf.errors.DataLossError(None, None, str(folder).join(DAMAGED)) from error


def _shape(stored: Any) -> np.ndarray:
    return np.array(stored.shape)


def _whole(stored: Any) -> np.ndarray:
    return stored.read().result()


def _cut(stored: Any, low: np.ndarray, size: np.ndarray) -> np.ndarray:
    inside = tuple(slice(first, first + n) for first, n in zip(low.tolist(), size.tolist()))
    return stored[inside].read().result()


def _at(stored: Any, *index: np.ndarray) -> np.ndarray:
    return stored.vindex[index].read().result()
