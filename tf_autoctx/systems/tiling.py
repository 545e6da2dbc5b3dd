"""Overlap-tiling in plain Keras ops, so that the same tiling runs in validation, in `predict.py` and in an export."""

from keras import ops


def tiled(function, x, tile):
    """Runs `function` on half-overlapping tiles of x and blends the answers by a triangle window.

    x is padded with edge values at its high ends until whole tiles fit. TensorFlow works on up to ten tiles at once.

    Args:
      function: (batch, tile, tile, tile, channels) -> (batch, tile, tile, tile, classes).
      x: (batch, depth, height, width, channels) of any size.
      tile: even edge of a tile in voxels.

    Returns:
      (batch, depth, height, width, classes).
    """
    size, half = ops.shape(x), tile // 2
    counts = []
    for axis in (1, 2, 3):
        count = ops.maximum((size[axis] + half - 1) // half - 1, 1)
        x = ops.take(x, ops.minimum(ops.arange((count + 1) * half), size[axis] - 1), axis=axis)
        counts.append(count)
    starts = ops.stack(ops.meshgrid(*(ops.arange(count) * half for count in counts), indexing="ij"), axis=-1)

    def answer(start):
        corner = ops.concatenate([ops.zeros(1, "int32"), start, ops.zeros(1, "int32")])
        return function(ops.slice(x, corner, (size[0], tile, tile, tile, x.shape[4])))

    y = ops.map(answer, ops.cast(ops.reshape(starts, (-1, 3)), "int32"))
    y = ops.reshape(y, (*counts, *ops.shape(y)[1:]))
    for axis in (1, 2, 3):
        y = _overlap_add(y, len(y.shape) - 5 + axis, half)
    return y[:, : size[1], : size[2], : size[3]]


def _overlap_add(y, axis, half):
    """Lays the tiles that axis 0 counts over each other along `axis`, half by half; axis 0 goes."""
    first, second = ops.split(y, 2, axis=axis)
    ramp = ops.reshape(
        (ops.arange(half, dtype=y.dtype) + 0.5) / half, [half if i == axis else 1 for i in range(len(y.shape))]
    )
    # The outermost halves have one tile alone: full weight there, where neighbours would add up to 1.
    alone = ops.zeros_like(first[:1])
    rising = ops.concatenate([first[:1], first[1:] * ramp, alone], axis=0)
    falling = ops.concatenate([alone, second[:-1] * (1 - ramp), second[-1:]], axis=0)
    blocks = ops.moveaxis(rising + falling, 0, axis - 1)
    shape = list(ops.shape(blocks))
    return ops.reshape(blocks, (*shape[: axis - 1], shape[axis - 1] * half, *shape[axis + 1 :]))
