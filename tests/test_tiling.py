import threading
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import graph, noise
from keras import ops

from tf_autoctx.models import layers, tiling

SIZES = [(1, 1, 1), (1, 40, 1), (7, 8, 9), (16, 17, 15), (24, 25, 33), (12, 50, 20)]


def network(blocks, filters=4, kernel=3, classes=3):
    """A random network with a pooling after every block but the last; it pads and crops inside."""
    keras.utils.set_random_seed(1)
    image = keras.Input((None, None, None, 1))
    x = layers.PadToMultiple(8)(image)
    for block in range(blocks):
        if block:
            x = keras.layers.MaxPooling3D(2)(x)
        x = keras.layers.Conv3D(filters, kernel, padding="same")(x)
        x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    x = keras.layers.UpSampling3D(2 ** (blocks - 1))(x)
    logits = keras.layers.Conv3D(classes, 1)(layers.CropLike()([x, image]))
    return keras.Model(image, keras.layers.Softmax()(logits))


def starts_and_edge(n, tile, overlap):
    """Where tiles start and how many voxels they have, written out from the definition."""
    if n <= tile:
        return [0], n
    count = int(np.ceil((n - overlap) / (tile - overlap)))
    stride = max(int(np.ceil((n - overlap) / count / 8)) * 8, overlap)
    return [i * stride for i in range(count)], stride + overlap


@pytest.mark.parametrize("tile, overlap", [(8, 0), (16, 0), (16, 8), (24, 8)])
@pytest.mark.parametrize("size", SIZES)
def test_tiling_of_the_identity_is_the_identity(size, tile, overlap):
    x = noise(2, *size, 2)
    answer = tiling.tiled(lambda x: x, x, tile, overlap)
    assert answer.shape == x.shape
    np.testing.assert_allclose(answer, x, atol=1e-6)


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_tiling_of_the_identity_for_many_lengths(axis):
    for n in (*range(1, 9), *range(15, 60, 3), *range(22, 28)):
        x = np.moveaxis(noise(1, n, 1, 1, 1), 1, axis)
        np.testing.assert_allclose(tiling.tiled(lambda x: 2 * x, x, 24, 8), 2 * x, atol=1e-6)


def test_tiling_in_a_graph_of_any_size():
    tiled = graph(lambda x: tiling.tiled(lambda x: ops.concatenate([2 * x, -x], axis=-1), x, 16, 8))
    for size in SIZES:
        x = noise(2, *size, 1)
        np.testing.assert_allclose(tiled(x), np.concatenate([2 * x, -x], axis=-1), atol=1e-6)


def test_the_answers_channels_are_known_in_a_graph():
    shapes = []

    def function(x):
        return ops.concatenate([x, x, x], axis=-1)

    graph(lambda x: shapes.append(tiling.tiled(function, x, 16, 8).shape)).get_concrete_function()
    assert shapes[0][-1] == 3


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_an_answer_keeps_its_type(dtype):
    x = np.full((1, 40, 20, 1, 1), 3, np.float32)
    answer = tiling.tiled(lambda x: ops.cast(x, dtype), x, 16, 8)
    assert keras.backend.standardize_dtype(answer.dtype) == dtype
    np.testing.assert_allclose(ops.cast(answer, "float32"), x, rtol=0.01)


@pytest.mark.parametrize("size", [(1, 1, 1), (16, 16, 16), (13, 9, 16)])
def test_a_volume_within_one_tile_gets_exactly_the_untiled_answer(size):
    x, one = noise(2, *size, 1), network(blocks=3)
    np.testing.assert_array_equal(tiling.tiled(one, x, 16, 8), one(x))
    tiled, untiled = graph(lambda x: tiling.tiled(one, x, 16, 8)), graph(lambda x: one(x))
    np.testing.assert_array_equal(tiled(x), untiled(x))


@pytest.mark.parametrize("tile, overlap", [(16, 8), (64, 8), (64, 32), (24, 8)])
def test_layout(tile, overlap):
    for n in range(1, 300):
        starts, edge = starts_and_edge(n, tile, overlap)
        number, stride, shared = tiling._layout(n, tile, overlap)
        assert (number, stride + shared) == (len(starts), edge) and edge <= tile
        assert all(start % 8 == 0 for start in starts)
        # The last tile has voxels of its own, together they have all, and no voxel is in three.
        assert (
            starts[-1] + (overlap if number > 1 else 0) < n <= starts[-1] + edge
            and stride >= shared
        )
        dynamic = tiling._layout(tf.constant(n), tile, overlap)
        assert tuple(int(value) for value in dynamic) == (number, stride, shared)
        assert tiling.count(np.array([n, 1, n]), tile, overlap) == number**2


def test_tiles_are_cut_where_the_layout_says():
    x, seen = np.arange(45, dtype=np.float32).reshape(1, 45, 1, 1, 1), []

    def function(x):
        if not tf.is_symbolic_tensor(x):
            seen.append(np.ravel(x))
        return x

    tiling.tiled(function, x, 24, 8)
    # 37 voxels in 3 tiles: 12.3, so every 16 voxels; edge values after the last one.
    expected = [range(24), range(16, 40), [*range(32, 45), *11 * [44]]]
    assert len(seen) == 3 and all(np.array_equal(one, other) for one, other in zip(seen, expected))


@pytest.mark.parametrize("size", SIZES)
def test_count(size):
    expected, calls = tiling.count(size, 16, 8), []

    def function(x):
        calls.append(tf.is_symbolic_tensor(x))
        assert tf.is_symbolic_tensor(x) or max(x.shape[1:4]) <= 16
        return x

    tiling.tiled(function, noise(1, *size, 1), 16, 8)
    assert calls.count(False) == expected


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_neighbours_are_blended_by_a_ramp(axis):
    # Tiles at 0..23 and 16..39, whose largest values are 23 and 39; between them 3 t^2 - 2 t^3 at t
    # = 1/16, 3/16, ...
    x = np.moveaxis(np.arange(40, dtype=np.float32).reshape(1, 40, 1, 1, 1), 1, axis)
    answer = tiling.tiled(lambda x: ops.ones_like(x) * ops.max(x), x, 24, 8)
    assert answer.shape == x.shape
    t = np.arange(1, 17, 2) / 16
    np.testing.assert_allclose(
        np.ravel(answer), [23] * 16 + [*(23 + 16 * (3 * t**2 - 2 * t**3))] + [39] * 16, rtol=1e-6
    )


@pytest.mark.parametrize("wrap", [lambda f: f, tf.function])
def test_samples_of_a_batch_are_tiled_alike(wrap):
    one, x = network(blocks=3), noise(2, 30, 20, 9, 1)
    tiled = wrap(lambda x: tiling.tiled(one, x, 16, 8))
    for i in range(2):
        np.testing.assert_allclose(tiled(x)[i : i + 1], tiled(x[i : i + 1]), atol=1e-6)


def test_one_tile_at_a_time_in_a_graph():
    running, most, lock = [], [], threading.Lock()

    def enter(x):
        with lock:
            running.append(None)
            most.append(len(running))
        time.sleep(0.02)
        return x

    def leave(x):
        with lock:
            running.pop()
        return x

    def function(x):
        # Stateless, or TensorFlow would keep the calls in order by itself.
        y = tf.numpy_function(enter, [x], tf.float32, stateful=False)
        y = tf.numpy_function(leave, [y + 1], tf.float32, stateful=False)
        return ops.reshape(y, ops.shape(x))

    x = noise(1, 40, 40, 24, 1)
    np.testing.assert_allclose(
        graph(lambda x: tiling.tiled(function, x, 16, 8))(x), x + 1, atol=1e-6
    )
    assert len(most) == tiling.count((40, 40, 24), 16, 8) == 32
    assert max(most) == 1


def seam(answer, reference, tile, overlap):
    """Mean |answer - reference| within 2 voxels of a tile's border in the volume, and elsewhere."""
    border = np.zeros(answer.shape[1:4], bool)
    for axis, n in enumerate(border.shape):
        starts, edge = starts_and_edge(n, tile, overlap)
        for at in (*starts[1:], *(start + edge for start in starts[:-1])):
            np.moveaxis(border, axis, 0)[at - 2 : at + 2] = True
    error = np.abs(np.array(answer) - np.array(reference)).mean(axis=(0, 4))
    return error[border].mean(), error[~border].mean()


def test_no_seams():
    # A voxel's answer depends on up to 8 voxels to each side: half the overlap.
    x, one = noise(1, 80, 80, 80, 1), network(blocks=3)
    reference = one(x)
    at_border, elsewhere = seam(tiling.tiled(one, x, 32, 16), reference, 32, 16)
    assert 1e-3 < at_border < 2 * elsewhere
    # Tiles side by side have seams, and the measure sees them.
    at_border, elsewhere = seam(tiling.tiled(one, x, 40, 0), reference, 40, 0)
    assert at_border > 4 * elsewhere


def test_deep_inside_a_tile_the_answer_is_the_untiled_one():
    x, one = noise(1, 40, 40, 40, 1), network(blocks=3, kernel=1)
    # Kernels of one voxel: a tile's answer depends on its own pooling cells alone, and those agree.
    np.testing.assert_allclose(tiling.tiled(one, x, 24, 8), one(x), atol=1e-6)


@pytest.mark.parametrize("tile, overlap", [(20, 8), (16, 4), (16, 16), (0, 0), (16, -8)])
def test_a_bad_tile_is_refused(tile, overlap):
    with pytest.raises(ValueError, match=f"tile={tile}, overlap={overlap}"):
        tiling.tiled(lambda x: x, noise(1, 20, 20, 20, 1), tile, overlap)


def test_tiling_in_an_exported_model(tmp_path):
    one = network(blocks=3)
    archive = keras.export.ExportArchive()
    archive.track(one)
    volume = tf.TensorSpec((None, None, None, None, 1), tf.float32, name="image")

    def function(image):
        return {"answer": tiling.tiled(one, image, 16, 8)}

    archive.add_endpoint("serving_default", function, input_signature=[volume])
    archive.write_out(str(tmp_path / "1"), verbose=False)
    # Without this package, Keras or Python functions, as a server would run it.
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        meta = tf.compat.v1.saved_model.load(session, ["serve"], str(tmp_path / "1"))
        signature = meta.signature_def["serving_default"]
        names = signature.inputs["image"].name, signature.outputs["answer"].name
        answers = [session.run(names[1], {names[0]: noise(1, *size, 1)}) for size in SIZES]
        nodes = [node for function in meta.graph_def.library.function for node in function.node_def]
    for size, answer in zip(SIZES, answers):
        np.testing.assert_allclose(answer, tiling.tiled(one, noise(1, *size, 1), 16, 8), atol=1e-5)
    ops_used = {node.op for node in nodes}
    assert not [op for op in ops_used if op.startswith("Xla") or "PyFunc" in op]
    loops = [node for node in nodes if node.op in ("While", "StatelessWhile")]
    assert loops and all(node.attr["parallel_iterations"].i == 1 for node in loops)
