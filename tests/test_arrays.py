import functools
import itertools
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow as tf
from held import Held
from helpers import noise

from tf_autoctx.data import arrays, pipeline, subvolumes
from tf_autoctx.data.configuration import Augmentation
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
    volume = np.round(100 * np.abs(noise(*SIZE, 1))).astype(dtype)
    of_file, of_memory = written(tmp_path / "a", volume, chunk), Held(tf.constant(volume))
    index = [np.random.default_rng(1).integers(0, n, (5, 4), np.int32) for n in SIZE]
    for array in (of_file, of_memory):
        assert array.shape().numpy().tolist() == [*SIZE, 1]
        np.testing.assert_array_equal(array.whole(), volume)
        for low, size in boxes(30):
            inside = tuple(slice(first, first + n) for first, n in zip(low, size))
            np.testing.assert_array_equal(array.cut(low, size), volume[inside])
        np.testing.assert_array_equal(array.at(list(map(tf.constant, index))), volume[tuple(index)])


def test_a_graph_and_threads_of_a_pipeline_read_the_same(tmp_path):
    volume = np.round(100 * noise(*SIZE, 1))
    array, corners = written(tmp_path / "a", volume, (4, 4, 4)), [low for low, _ in boxes(40)]
    cut = tf.function(lambda low: array.cut(low, [1, 1, 1]))
    assert cut.get_concrete_function(corners[0]).output_shapes.as_list() == [None, None, None, 1]
    data = tf.data.Dataset.from_tensor_slices(corners).map(cut, num_parallel_calls=4)
    for voxel, corner in zip(data, corners, strict=True):
        assert float(tf.squeeze(voxel)) == volume[(*corner, 0)]


def chunks_of(path):
    """The file with the chunks of an array."""
    [file] = [file for file in (path / "c").rglob("*") if file.is_file()]
    return file


def test_chunks_of_zero_take_no_place(tmp_path):
    volume = np.zeros((32, 32, 32, 1), np.uint8)
    volume[9, 9, 9] = volume[25, 25, 25] = 3
    array = written(tmp_path / "a", volume, (8, 8, 8))
    assert chunks_of(tmp_path / "a").stat().st_size < 2 * (8**3 + 4) + 16 * 4**3 + 5
    np.testing.assert_array_equal(array.whole(), volume)


def test_a_part_reads_its_own_chunks_alone(tmp_path):
    """So it does not notice what is damaged elsewhere, and each part has its own checksum."""
    volume = (1 + np.arange(8**3) % 200).astype(np.uint8).reshape(8, 8, 8, 1)
    array = written(tmp_path / "a", volume, (4, 4, 4))
    file = chunks_of(tmp_path / "a")
    content = file.read_bytes()
    for place in itertools.product((0, 4), repeat=3):
        inside = tuple(slice(low, low + 4) for low in place)
        at = content.index(volume[inside].tobytes()) + 7
        file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
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


@pytest.mark.parametrize("label", [np.arange(18), np.zeros(18)])
def test_damage_is_named(tmp_path, label):
    """A byte of voxels or of their index that is changed, files that are cut short or gone."""
    path = tmp_path / "case_1" / "label"
    pipeline.store(path, label.astype(np.uint8).reshape(2, 3, 3, 1), (2, 2, 2))

    def require_named(*names):
        for name in names:
            with pytest.raises(UserError, match="missing, cut short or damaged") as told:
                getattr(pipeline, name)(str(path), "label")
            assert str(path) in str(told.value) and f"folder {path.parent} " in str(told.value)

    for file in (chunks_of(path), path / "zarr.json"):
        content = file.read_bytes()
        assert len(content) < 500
        for at in range(0, len(content), 5):
            file.write_bytes(content[:at])
            require_named("stored")
            if file.name != "zarr.json":
                file.write_bytes(content[:at] + bytes([content[at] ^ 16]) + content[at + 1 :])
                require_named("stored")
        file.unlink()
        require_named("stored", "size")
        file.write_bytes(content)
    np.testing.assert_array_equal(np.ravel(pipeline.stored(str(path), "label")), label)
    shutil.rmtree(path)
    require_named("stored", "size")


@pytest.mark.parametrize("error", [MemoryError("too large"), ValueError("RESOURCE_EXHAUSTED")])
def test_an_array_that_memory_is_short_for_is_not_called_damaged(tmp_path, monkeypatch, error):
    def read(stored):
        raise error

    pipeline.store(tmp_path / "label", np.zeros((2, 3, 3, 1), np.uint8))
    monkeypatch.setattr(arrays, "_whole", read)
    for stored in (pipeline.stored, tf.function(pipeline.stored)):
        with pytest.raises(Exception, match=str(error)) as told:
            stored(str(tmp_path / "label"), "label")
        assert pipeline.fault(told.value) is None and not isinstance(told.value, UserError)


def test_volumes_are_halved_where_it_does_not_show(tmp_path):
    """By half a thousandth of the largest value; what stands far from 0 is kept as it is."""
    path, volume = tmp_path / "a", np.linspace(0, 4, 8**3, dtype=np.float32).reshape(8, 8, 8, 1)
    moved = np.abs(written(path, volume).whole() - volume).max()
    assert 4 / 2**13 < moved <= 4 / 2**12 and chunks_of(path).stat().st_size < 2.2 * 8**3
    for far in (30 + volume, 1e5 * volume, np.where(volume == 4, np.nan, volume)):
        np.testing.assert_array_equal(written(path, far.astype(np.float32)).whole(), far)
    far = 30 + volume
    far[0, 0, 0] = 3000  # one voxel that widens the range, of metal perhaps
    np.testing.assert_array_equal(written(path, far).whole(), far)
    places = volume[0]  # not a volume
    np.testing.assert_array_equal(written(path, places).whole(), places)


def test_the_size_is_read_without_the_voxels(tmp_path):
    path = tmp_path / "image"
    pipeline.store(path, noise(*SIZE, 1))
    file = chunks_of(path)
    file.write_bytes(file.read_bytes()[:-100])
    assert pipeline.size(str(path), "image") == SIZE


def test_a_path_may_have_any_name(tmp_path):
    path = pathlib.Path(tmp_path / "Köpfe <1>" / "image")
    pipeline.store(path, noise(2, 3, 4, 1))
    assert pipeline.stored(str(path), "image").shape == (2, 3, 4, 1)
    chunks_of(path).write_bytes(b"")
    with pytest.raises(UserError) as told:
        pipeline.stored(str(path), "image")
    assert str(told.value).startswith(f"{path}: ")


# How much is read


def bytes_read(read):
    """By this process, whether the disk or memory had them."""
    counted = pathlib.Path("/proc/self/io")
    if not counted.exists():
        pytest.skip("an operating system that does not count what is read")

    def count():
        return int(counted.read_text().split()[1])

    read()  # imports, too
    before, again = count(), count()
    read()
    return count() - again - (again - before)


@pytest.mark.parametrize(
    "chunk, size, most",
    [
        (arrays.CUBES, (64, 64, 64), 27 * 32**3),  # three chunks an axis, as it lies across them
        ((1,), (1, None, None), 160**2),
        ((), (None, None, None), 160**3),
    ],
)
def test_a_patch_reads_its_own_chunks_of_a_volume(tmp_path, chunk, size, most):
    volume = np.random.default_rng(0).uniform(0, 1, (160, 160, 160, 1)).astype(np.float32)
    tensors = {"image": volume, "label": (1 + 255 * volume).astype(np.uint8)}
    for name, tensor in tensors.items():
        pipeline.store(tmp_path / name, tensor, chunk)
    case = pipeline.case({name: str(tmp_path / name) for name in tensors})
    counts = [
        bytes_read(lambda seed=seed: pipeline.random_patch(case, (1, seed), size))
        for seed in range(5)
    ]
    # 2 bytes a voxel of the image and 1 of the label; descriptions and indices beside them. Of
    # noise compression takes a tenth or so away.
    assert max(counts) <= 3 * most + 20000
    assert min(counts) >= 0.8 * 3 * np.prod([edge or 160 for edge in size])


def test_what_does_not_vary_takes_no_place(tmp_path):
    label = np.ones((64, 64, 64, 1), np.uint8)
    label[20:40] = 2
    arrays.write(tmp_path / "label", label, arrays.CUBES)
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 64**3 / 50


def test_subvolumes_read_what_lies_around_them(tmp_path):
    """Of a CT: a sixth of it."""
    label = np.zeros((192, 192, 192, 1), np.uint8)
    label[60:130, 60:130, 60:130] = 1 + np.arange(70)[:, None]
    tensors = {
        "image_1": np.linspace(0, 4, 96**3, dtype=np.float32).reshape(96, 96, 96, 1),
        "label": label,
        "places": np.full((1, subvolumes.PLACES, 3), 95, np.float32),
        "spacing": np.ones(3, np.float32),
    }
    for name, tensor in tensors.items():
        pipeline.store(tmp_path / name, tensor, arrays.CUBES)
    case = pipeline.case({name: str(tmp_path / name) for name in tensors})
    augmentation = Augmentation(shift=2, rotation=5.0, elastic=0.5, elastic_spacing=8)
    draw = functools.partial(
        subvolumes.draw, case, (1, 2), scales=[2], unit=2, size=(32,) * 3, augmentation=augmentation
    )
    assert bytes_read(draw) < (2 * 96**3 + 192**3) / 4
