import itertools
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from helpers import noise

from tf_autoctx.data import arrays, pipeline
from tf_autoctx.errors import UserError

SIZE = (9, 7, 10)


def written(path, array, chunk=()):
    """The array of a file."""
    arrays.write(path, array, chunk)
    return arrays.Stored(str(path), tf.TensorSpec([None] * (array.ndim - 1) + [1], array.dtype))


def boxes(count):
    """So many random boxes inside `SIZE`: their first corners and their edges."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        low = rng.integers(0, SIZE)
        yield low, rng.integers(1, np.subtract(SIZE, low) + 1)


@pytest.mark.parametrize("chunk", [(), (4, 4, 4), (1,), (2, None, 3), (20, 3)])
@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_parts_of_a_file_are_those_of_the_array(tmp_path, chunk, dtype):
    volume = (100 * np.abs(noise(*SIZE, 1))).astype(dtype)
    of_file, of_memory = written(tmp_path / "a", volume, chunk), arrays.Held(tf.constant(volume))
    index = [np.random.default_rng(1).integers(0, n, (5, 4), np.int32) for n in SIZE]
    for array in (of_file, of_memory):
        assert array.shape().numpy().tolist() == [*SIZE, 1]
        np.testing.assert_array_equal(array.whole(), volume)
        for low, size in boxes(30):
            inside = tuple(slice(first, first + n) for first, n in zip(low, size))
            np.testing.assert_array_equal(array.cut(low, size), volume[inside])
        np.testing.assert_array_equal(array.at(list(map(tf.constant, index))), volume[tuple(index)])


def test_a_graph_and_threads_of_a_pipeline_read_the_same(tmp_path):
    volume = noise(*SIZE, 1)
    array, corners = written(tmp_path / "a", volume, (4, 4, 4)), [low for low, _ in boxes(40)]
    cut = tf.function(lambda low: array.cut(low, [1, 1, 1]))
    assert cut.get_concrete_function(corners[0]).output_shapes.as_list() == [None, None, None, 1]
    data = tf.data.Dataset.from_tensor_slices(corners).map(cut, num_parallel_calls=4)
    for voxel, corner in zip(data, corners, strict=True):
        assert float(tf.squeeze(voxel)) == volume[(*corner, 0)]


def test_chunks_that_are_equal_are_stored_once(tmp_path):
    volume = np.zeros((32, 32, 32, 1), np.float32)
    volume[9, 9, 9] = volume[25, 25, 25] = 1.5
    array = written(tmp_path / "a", volume, (8, 8, 8))
    assert (tmp_path / "a").stat().st_size < 2 * 8**3 * 4 + 64 * 4 + 200
    np.testing.assert_array_equal(array.whole(), volume)


def test_a_part_reads_its_own_chunks_alone(tmp_path):
    """So it does not notice what is damaged elsewhere, and each part has its own checksum."""
    volume, path = noise(8, 8, 8, 1), tmp_path / "a"
    array = written(path, volume, (4, 4, 4))
    content = path.read_bytes()
    start = len(content) - volume.nbytes
    for damaged, place in enumerate(itertools.product((0, 4), repeat=3)):
        at = start + damaged * 4**3 * 4 + 7
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        for corner in itertools.product((0, 4), repeat=3):
            reads = (
                lambda corner=corner: array.cut(corner, (4, 3, 2)),
                lambda corner=corner: array.at([tf.constant([n, n + 3]) for n in corner]),
            )
            for read in reads:
                if corner == place:
                    with pytest.raises(tf.errors.OpError, match="damaged file <"):
                        read()
                else:
                    read()


def test_damage_anywhere_is_named(tmp_path):
    """A byte that is changed, a file that is cut short or gone."""
    path = tmp_path / "case_1" / "label"
    pipeline.store(path, np.arange(18, dtype=np.uint8).reshape(2, 3, 3, 1), (2, 2, 2))
    content = path.read_bytes()
    assert len(content) < 400
    for at in range(len(content)):
        for damaged in (content[:at], content[:at] + bytes([content[at] ^ 16]) + content[at + 1 :]):
            path.write_bytes(damaged)
            with pytest.raises(UserError, match="missing, cut short or damaged") as told:
                pipeline.stored(str(path), "label")
            assert str(path) in str(told.value) and f"folder {path.parent} " in str(told.value)
    path.unlink()
    for read in (pipeline.stored, pipeline.size):
        with pytest.raises(UserError, match="missing, cut short or damaged"):
            read(str(path), "label")


def test_the_size_is_read_without_the_voxels(tmp_path):
    path = tmp_path / "image"
    pipeline.store(path, noise(*SIZE, 1))
    path.write_bytes(path.read_bytes()[:-100])
    assert pipeline.size(str(path), "image") == SIZE


def test_a_path_may_have_any_name(tmp_path):
    path = pathlib.Path(tmp_path / "Köpfe <1>" / "image")
    pipeline.store(path, noise(2, 3, 4, 1))
    assert pipeline.stored(str(path), "image").shape == (2, 3, 4, 1)
    path.write_bytes(b"")
    with pytest.raises(UserError) as told:
        pipeline.stored(str(path), "image")
    assert str(told.value).startswith(f"{path}: ")
