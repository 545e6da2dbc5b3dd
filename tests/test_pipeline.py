import numpy as np
import pytest
import tensorflow as tf
from held import held

from tf_autoctx.data import pipeline
from tf_autoctx.errors import FieldError, sentence

CASES = 5


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files of five cases: a voxel of case k is k, k / 10 in its context; case 0 has no context."""
    folder, columns = tmp_path_factory.mktemp("cases"), {"image": [], "label": [], "context": []}
    for case in range(CASES):
        for kind, value in (("image", case), ("label", case), ("context", case / 10)):
            path = str(folder / f"{kind}_{case}")
            pipeline.store(path, tf.fill([2, 3, 4, 1], tf.cast(value, pipeline.KINDS[kind].dtype)))
            columns[kind].append(path)
    columns["context"][0] = ""
    return columns


def drawn(files, **settings):
    """[(cases, random seeds) of every batch], each batch a tuple of samples."""
    order = pipeline.Order(**{"seed": 7, "steps": 10, **settings})
    batches = pipeline.training(
        files,
        lambda case, seed: {**pipeline.whole(case), "seed": seed},
        order,
        lambda drawn, _: drawn,
    )
    return [
        tuple(
            (int(image), *map(int, seed))
            for image, seed in zip(batch["image"][:, 0, 0, 0, 0], batch["seed"])
        )
        for batch in batches.as_numpy_iterator()
    ]


def merged(batches):
    return [sample for batch in batches for sample in batch]


# Files.


@pytest.mark.parametrize(
    "kind, dtype", [("image", "float32"), ("label", "uint8"), ("context", "float32")]
)
def test_a_stored_tensor_comes_back(kind, dtype, tmp_path):
    tensor = tf.cast(tf.reshape(tf.range(24), (2, 3, 4, 1)), dtype)
    pipeline.store(str(tmp_path / "tensor"), tensor)
    for read in (pipeline.stored, tf.function(pipeline.stored)):
        answer = read(str(tmp_path / "tensor"), kind)
        assert answer.dtype == dtype
        np.testing.assert_array_equal(answer, tensor)
    assert [path.name for path in tmp_path.iterdir()] == ["tensor"]


def test_a_sample_without_a_context_has_zeros(files):
    for case in range(CASES):
        sample = pipeline.sample({kind: paths[case] for kind, paths in files.items()})
        assert sample.keys() == {"image", "label", "context"}
        np.testing.assert_array_equal(sample["image"], np.full((2, 3, 4, 1), case))
        np.testing.assert_array_equal(sample["label"], np.full((2, 3, 4, 1), case))
        np.testing.assert_allclose(sample["context"], np.full((2, 3, 4, 1), case / 10))


# Order.


def test_the_whole_of_a_case_has_that_of_its_others():
    zero, one, two = ({"image": float(value)} for value in range(3))
    sample = pipeline.whole(held({**zero, "others": (one, two)}))
    assert float(sample["image"]) == 0
    assert [float(case["image"]) for case in sample["others"]] == [1, 2]


def test_every_case_once_an_epoch_in_a_new_order(files):
    cases = [case for case, *_ in merged(drawn(files, steps=8 * CASES))]
    epochs = [tuple(cases[start : start + CASES]) for start in range(0, len(cases), CASES)]
    assert all(sorted(epoch) == list(range(CASES)) for epoch in epochs)
    assert len(set(epochs)) >= 6
    assert cases != [case for case, *_ in merged(drawn(files, steps=8 * CASES, seed=8))]


def test_every_sample_has_a_seed_of_its_own(files):
    assert [seed for _, *seed in merged(drawn(files, steps=12))] == [
        [7, number] for number in range(12)
    ]


@pytest.mark.parametrize("batch_size, replicas", [(1, 1), (3, 1), (2, 2)])
def test_a_resumed_run_sees_what_an_unbroken_run_sees(files, batch_size, replicas):
    settings = {"batch_size": batch_size, "replicas": replicas}
    whole = drawn(files, **settings)
    assert len(whole) == 10 * replicas and all(len(batch) == batch_size for batch in whole)
    assert drawn(files, first_step=3, **settings) == whole[3 * replicas :]
    assert drawn(files, first_step=10, **settings) == []


@pytest.mark.parametrize(
    "workers, replicas, batch_size", [(2, 2, 1), (2, 4, 1), (2, 4, 3), (3, 3, 2)]
)
def test_workers_together_see_what_one_sees(files, workers, replicas, batch_size):
    alone = drawn(files, batch_size=batch_size, replicas=replicas)
    settings = {"batch_size": batch_size, "replicas": replicas, "workers": workers}
    parts = [drawn(files, worker=worker, **settings) for worker in range(workers)]
    each = replicas // workers  # batches of a worker in a step
    together = [
        batch
        for step in range(10)
        for part in parts
        for batch in part[step * each : (step + 1) * each]
    ]
    assert together == alone
    # Or one replica with a batch as large as all of theirs.
    assert merged(alone) == merged(drawn(files, batch_size=batch_size * replicas))


def test_augmentation_changes_what_is_drawn(files):
    order = pipeline.Order(seed=7, steps=2, batch_size=2)
    batches = pipeline.training(
        files,
        lambda case, _: pipeline.whole(case),
        order,
        lambda sample, seed: {**sample, "image": 100 + sample["image"]},
    )
    for batch in batches:
        assert batch["image"].shape == (2, 2, 3, 4, 1)
        np.testing.assert_array_equal(batch["image"], 100 + np.float32(batch["label"]))


# Patches.


def place(*size):
    index = np.arange(np.prod(size)).reshape(*size, 1)
    return {"image": tf.constant(index, tf.float32), "label": tf.constant(index, tf.uint8)}


def test_a_patch_is_a_piece_of_the_volume_at_one_place():
    sample, corners = place(5, 6, 4), set()
    for number in range(150):
        cut = pipeline.random_patch(held(sample), (1, number), (3, 4, 4))
        assert cut["image"].shape == cut["label"].shape == (3, 4, 4, 1)
        z, y, x = np.unravel_index(int(cut["image"][0, 0, 0, 0]), (5, 6, 4))
        np.testing.assert_array_equal(
            cut["image"], sample["image"][z : z + 3, y : y + 4, x : x + 4]
        )
        np.testing.assert_array_equal(
            cut["label"], sample["label"][z : z + 3, y : y + 4, x : x + 4]
        )
        corners.add((z, y, x))
    assert corners == {(z, y, 0) for z in range(3) for y in range(3)}


def test_a_patch_is_the_same_for_the_same_seed():
    first, again = (
        pipeline.random_patch(held(place(9, 9, 2)), (1, 5), (2, 2, 2))["image"] for _ in range(2)
    )
    np.testing.assert_array_equal(first, again)


def test_none_keeps_an_axis():
    cut = pipeline.random_patch(held(place(5, 6, 4)), (1, 2), (1, None, None))["image"]
    assert cut.shape == (1, 6, 4, 1)
    np.testing.assert_array_equal(np.ravel(cut) - np.ravel(cut)[0], np.arange(24))


# Batches.


def test_one_shape():
    same, other = (4, 5, 6), (4, 5, 7)
    pipeline.require_one_shape([same, same], 2)
    pipeline.require_one_shape([same, other], 1)
    with pytest.raises(FieldError, match="batch_size=2: training images have") as error:
        pipeline.require_one_shape([same, other, same], 2)
    assert sentence(error.value).startswith("--batch_size=2: ")
    assert str(same) in str(error.value) and str(other) in str(error.value)
