"""Overlap-tiling in plain Keras ops: the same one in validation, prediction and an export."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from tf_autoctx.models.layers import Tensor

Function = Callable[[Tensor], Tensor]


def count(size: Sequence[int], tile: int, overlap: int) -> int:
    """How many tiles `tiled` runs on a volume of spatial `size` (integers)."""
    return math.prod(_layout(int(n), tile, overlap)[0] for n in size)


def tiled(
    function: Function, x: Tensor, tile: int | Sequence[int], overlap: int | Sequence[int]
) -> Tensor:
    """Runs `function` on overlapping tiles of x, one at a time, and blends by smooth ramps.

    Along an axis of more than `tile` voxels, tiles of one size are spread evenly; they start at
    multiples of 8 voxels, where the poolings of a network that sees the whole volume start too.
    Beyond the high end they see edge values. A shorter axis is left as it is, so a volume within
    one tile gets exactly the output of `function`.

    Args:
      function: (batch, depth, height, width, channels) of any spatial size -> same size with
        `classes` channels.
      x: (batch, depth, height, width, channels); sizes may be unknown in a graph, channels may not.
      tile: largest edge of a tile in voxels, a multiple of 8; one number, or one an axis.
      overlap: voxels that neighbours share, a multiple of 8 and at most half a tile; likewise.

    Returns:
      (batch, depth, height, width, classes).

    Raises:
      ValueError: `tile` or `overlap` out of range.
    """
    x = ops.convert_to_tensor(x)
    # Traced, not run: loops must know the channels and the type of what they carry before the first
    # tile.
    spec = _Traced(function).compute_output_spec(
        keras.KerasTensor((*4 * (None,), x.shape[4]), x.dtype)
    )
    # Loop in loop, depth outermost: only one axis' overlaps are ever held for more than a slab of
    # the volume.
    run = function
    tiles, overlaps = ((n,) * 3 if isinstance(n, int) else tuple(n) for n in (tile, overlap))
    for axis in (3, 2, 1):
        run = _along(axis, run, tiles[axis - 1], overlaps[axis - 1], spec)
    return run(x)


class _Traced(keras.Operation):
    """A function whose output's shape and type Keras can work out."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.call = function


def _layout(n: Any, tile: int, overlap: int) -> tuple[Any, Any, Any]:
    """How tiles lie along an axis of n voxels (integer or tensor).

    Returns (number of tiles, voxels from a tile to the next, voxels shared). Every tile has stride
    + shared voxels; a single tile has all n and shares none.
    """
    if tile % 8 or overlap % 8 or not 0 <= overlap <= tile // 2 or tile < 8:
        raise ValueError(
            f"tile={tile}, overlap={overlap}: expected multiples of 8 and an overlap of at most "
            "half a tile."
        )
    larger: Callable[..., Any] = max if isinstance(n, int) else ops.maximum
    number = larger(-(-(n - overlap) // (tile - overlap)), 1)
    several = 1 - larger(2 - number, 0)
    shared, step = several * overlap, 1 + several * 7
    # At least `shared`: no voxel is in more than two tiles.
    stride = larger(-(-(n - shared) // (number * step)) * step, shared)
    return number, stride, shared


def _along(
    axis: int, function: Function, tile: int, overlap: int, spec: keras.KerasTensor
) -> Function:
    """`function` of the whole x from `function` of tiles along one axis of it.

    `spec` is what it returns.
    """

    def cut(x: Tensor, start: Any, stop: Any) -> Tensor:
        return x[(*axis * (slice(None),), slice(start, stop))]

    def whole(x: Tensor) -> Tensor:
        size = ops.shape(x)
        n = size[axis]
        number, stride, shared = _layout(n, tile, overlap)
        # 3 t^2 - 2 t^3: adds up to 1 with its mirror image, and a tile's outermost voxels, which
        # miss most of what is around them, hardly count.
        t = ops.divide(ops.arange(shared, dtype="float32") + 0.5, shared)
        ramp = ops.cast(t * t * (3 - 2 * t), spec.dtype)
        ramp = ops.reshape(ramp, [shared if i == axis else 1 for i in range(5)])

        def step(last: Tensor, i: Tensor) -> tuple[Tensor, Tensor]:
            voxels = ops.minimum(i * stride + ops.arange(stride + shared), n - 1)
            y = function(ops.take(x, voxels, axis=axis))
            # The first tile has no neighbour below: full weight.
            rise = ops.where(i > 0, ramp, ops.ones_like(ramp))
            blended = cut(y, 0, shared) * rise + cut(last, stride - shared, stride) * (1 - rise)
            # Carried and collected must be of one shape: all but the first `shared` voxels, though
            # the next tile needs the last `shared` only.
            return cut(y, shared, stride + shared), ops.concatenate(
                [blended, cut(y, shared, stride)], axis=axis
            )

        # `scan` waits for a tile before it starts the next (unroll=1 is TensorFlow's
        # parallel_iterations=1), where `map` and `while_loop` would hold ten tiles' activations at
        # once in a graph.
        start = ops.zeros((*size[:axis], stride, *size[axis + 1 : 4], spec.shape[4]), spec.dtype)
        last, blocks = ops.scan(step, start, ops.arange(number), unroll=1)
        blocks = ops.reshape(
            ops.moveaxis(blocks, 0, axis),
            (*size[:axis], number * stride, *size[axis + 1 : 4], spec.shape[4]),
        )
        # Cut before they are joined: each copy is as large as the volume.
        rest = cut(last, stride - shared, n - (number - 1) * stride - shared)
        return ops.concatenate([cut(blocks, 0, n), rest], axis=axis)

    return whole
