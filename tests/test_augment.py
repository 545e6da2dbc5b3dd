import functools
import itertools

import numpy as np
import pytest
import tensorflow as tf
from helpers import grey, noise, seeds
from scipy import ndimage
from tensorflow.python.framework import kernels

from tf_autoctx.data import augment
from tf_autoctx.data.augment import augmented
from tf_autoctx.data.configuration import Augmentation, Deformation, RigidMotion


def counted(*spatial):
    """A sample whose every voxel says where it is, the same number in all tensors."""
    place = tf.reshape(tf.range(np.prod(spatial)), (*spatial, 1))
    image = tf.cast(place, tf.float32)
    return {"image": image, "label": tf.cast(place, tf.uint8), "context": image / 7}


def with_object(size, box):
    """A sample of ones with an object in `box` (slices)."""
    label = np.zeros((*size, 1), np.uint8)
    label[box] = 1
    return {
        "image": tf.ones((*size, 1)),
        "label": tf.constant(label),
        "context": tf.ones((*size, 1)),
    }


def equal(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def assert_together(sample):
    """What moved, moved in all tensors of `counted` alike."""
    np.testing.assert_array_equal(sample["label"], np.array(sample["image"]))
    np.testing.assert_allclose(np.array(sample["context"]) * 7, sample["image"], atol=1e-5)


EVERYTHING = Augmentation(flips=True, shift=2, intensity_jitter=0.2, erase_probability=0.5)
NOTHING = Augmentation(flips=False, shift=0, intensity_jitter=0.0, erase_probability=0.0)


def test_the_same_seed_gives_the_same_sample():
    sample = counted(4, 5, 6)
    for seed in seeds(10):
        first, again = (augmented(sample, seed, EVERYTHING) for _ in range(2))
        assert equal(first, again)
    images = [np.array(augmented(sample, seed, EVERYTHING)["image"]) for seed in seeds(10)]
    assert len({image.tobytes() for image in images}) == 10


def test_a_graph_gives_the_same_sample():
    sample = counted(4, 5, 6)
    graph = tf.function(functools.partial(augmented, augmentation=EVERYTHING))
    for seed in seeds(10):
        eager, traced = augmented(sample, seed, EVERYTHING), graph(sample, seed)
        for name in sample:
            np.testing.assert_allclose(eager[name], traced[name], atol=1e-5)


def test_every_part_can_be_turned_off():
    sample = counted(4, 5, 6)
    assert all(equal(augmented(sample, seed, NOTHING), sample) for seed in seeds(10))


@pytest.mark.parametrize("spatial", [(2, 3, 4), (3, 4)])
def test_flips_reach_all_mirror_images_alike(spatial):
    sample = counted(*spatial)
    orbit = {
        np.flip(np.array(sample["image"]), flipped).tobytes(): 0
        for count in range(len(spatial) + 1)
        for flipped in itertools.combinations(range(len(spatial)), count)
    }
    assert len(orbit) == 2 ** len(spatial)
    for seed in seeds(400):
        flipped = augment.flips(sample, seed)
        assert_together(flipped)
        orbit[np.array(flipped["image"]).tobytes()] += 1
    # 50 or 100 each in the mean, SD 6.6 or 8.7.
    share = 400 / len(orbit)
    assert all(0.5 * share < count < 1.5 * share for count in orbit.values())


def test_shift_by_hand():
    sample = {
        "image": tf.reshape(tf.range(5.0), (5, 1, 1)),
        "label": tf.reshape(tf.range(5), (5, 1, 1)),
    }
    found = set()
    for seed in seeds(100):
        moved = augment.shift(sample, seed, 2)
        np.testing.assert_array_equal(moved["image"], moved["label"])
        found.add(tuple(np.ravel(moved["image"]).astype(int)))
    assert found == {
        (0, 0, 0, 1, 2),
        (0, 0, 1, 2, 3),
        (0, 1, 2, 3, 4),
        (1, 2, 3, 4, 4),
        (2, 3, 4, 4, 4),
    }


def test_every_axis_shifts_by_itself_and_all_tensors_together():
    sample, offsets = counted(5, 5, 5), set()
    for seed in seeds(100):
        moved = augment.shift(sample, seed, 1)
        assert_together(moved)
        # The middle voxel, 62 = 2 * 25 + 2 * 5 + 2, shows where the sample went.
        offsets.add(np.unravel_index(int(moved["image"][2, 2, 2, 0]), (5, 5, 5)))
    assert offsets == set(itertools.product((1, 2, 3), repeat=3))


def test_intensity_jitter_touches_the_image_alone():
    sample, factors, additions = counted(2, 3, 4), [], []
    for seed in seeds(200):
        changed = augment.intensity_jitter(sample, seed, 0.2)
        assert equal({**changed, "image": sample["image"]}, sample)
        # A straight line over the values 0 .. 23.
        line = np.ravel(changed["image"])
        np.testing.assert_allclose(np.diff(line), line[1] - line[0], atol=1e-5)
        factors.append(line[1] - line[0])
        additions.append(line[0])
    assert 0.8 <= min(factors) < 0.81 and 1.19 < max(factors) <= 1.2
    assert -0.1 <= min(additions) < -0.095 and 0.095 < max(additions) <= 0.1
    assert abs(np.corrcoef(factors, additions)[0, 1]) < 0.2


ERASING = tf.function(augment.random_erasing)


def erased(sample, seed, probability=1.0):
    """Mask of what was set to 0 in an image of ones; nothing else may change."""
    answer = ERASING(sample, seed, probability)
    assert equal({**answer, "image": sample["image"]}, sample)
    image = np.array(answer["image"])
    assert set(np.unique(image)) <= {0, 1}
    return image[..., 0] == 0


@pytest.mark.parametrize(
    "size, box",
    [
        # Room for the longest edge around the object's bounding box: (0.4 / 0.3)^(1/2) and (0.4 /
        # 0.3^2)^(1/3) of it.
        ((96, 96), np.s_[28:68, 28:68]),
        ((56, 84, 56), np.s_[18:38, 27:57, 18:38]),
    ],
)
def test_the_erased_box_has_2_to_40_percent_of_the_objects(size, box):
    extent, sample, shares, hits = (
        np.array([edge.stop - edge.start for edge in box]),
        with_object(size, box),
        [],
        [],
    )
    for seed in seeds(150):
        mask = erased(sample, seed)
        voxels = np.argwhere(mask)
        low, high = voxels.min(axis=0), voxels.max(axis=0) + 1
        edges = high - low
        assert len(voxels) == np.prod(edges)  # a full box
        shares.append(np.prod(edges / extent))
        # A voxel is lost or won on every axis as the centres fall.
        assert np.prod((edges - 1) / extent) <= 0.4 and np.prod((edges + 1) / extent) >= 0.02
        assert np.max((edges - 1) / extent) / np.min((edges + 1) / extent) <= 1 / 0.3
        hits.append(((low + high) / 2 - [edge.start for edge in box]) / extent)
    # Shares are uniform in 2 .. 40 %, centres in the bounding box.
    assert np.mean(shares) == pytest.approx(0.21, abs=0.025)
    assert np.min(shares) < 0.05 and np.max(shares) > 0.36
    assert np.min(hits) >= -0.03 and np.max(hits) <= 1.03
    np.testing.assert_allclose(np.mean(hits, axis=0), 0.5, atol=0.08)


def test_the_box_of_a_small_object_stays_with_it():
    # One voxel in a corner: a box of at most 1.7 voxels around a centre within that voxel.
    sample = with_object((9, 9, 9), np.s_[8:, :1, 4:5])
    for seed in seeds(50):
        found = np.argwhere(erased(sample, seed))
        assert np.all(np.abs(found - [8, 0, 4]) <= 1)


@pytest.mark.parametrize("probability", [0.3, 1512 / 2112])
def test_the_share_of_erased_samples(probability):
    sample = with_object((20, 20), np.s_[2:18, 2:18])
    count = sum(erased(sample, seed, probability).any() for seed in seeds(400))
    assert count / 400 == pytest.approx(probability, abs=0.06)


@pytest.mark.parametrize(
    "probability, box", [(1.0, np.s_[:0, :0, :0]), (0.0, np.s_[2:5, 2:5, 2:5])]
)
def test_without_an_object_or_a_chance_nothing_is_erased(probability, box):
    sample = with_object((6, 6, 6), box)
    assert not any(erased(sample, seed, probability).any() for seed in seeds(50))


def test_no_part_of_the_augmentation_follows_another():
    # A coin for the flip, one for the erasing (of at most 32 of 80 voxels): four outcomes, 50 times
    # each, SD 6.1.
    both = Augmentation(flips=True, shift=0, intensity_jitter=0.0, erase_probability=0.5)
    sample = {
        "image": tf.constant([[1.0]] * 40 + [[2.0]] * 40),
        "label": tf.ones((80, 1), tf.uint8),
    }
    outcomes = []
    for seed in seeds(200):
        image = np.ravel(augmented(sample, seed, both)["image"])
        outcomes.append((2 in image[:40], 0 in image))
    for outcome in itertools.product((False, True), repeat=2):
        assert outcomes.count(outcome) == pytest.approx(50, abs=20)


# Rigid motion

MOVED = tf.function(augment.moved)


def origins(motion, size, spacing, seed):
    """Where each voxel comes from, (3, *size), NaN where that is not inside; and the labels.

    Every voxel's label is another one.
    """
    label = tf.reshape(tf.range(1, np.prod(size) + 1), (*size, 1))
    answers = [
        MOVED(
            {"image": tf.constant(axis[..., None], tf.float32), "label": label, "spacing": spacing},
            seed,
            motion,
        )
        for axis in np.meshgrid(*map(np.arange, size), indexing="ij")
    ]
    source = np.stack([answer["image"].numpy()[..., 0] for answer in answers])
    inside = np.all((source > 1e-3) & (source < np.reshape(size, (3, 1, 1, 1)) - 1.001), axis=0)
    return np.where(inside, source, np.nan), answers[0]["label"].numpy()[..., 0]


@pytest.mark.parametrize("seed", [1, 8, 11])
def test_rigid_motion_is_one_rigid_motion_in_mm_of_image_and_label(seed):
    size, spacing = (17, 21, 25), np.array([1.0, 0.5, 0.8], np.float32)
    motion = RigidMotion(rotation=180.0, shift=2, flips=True)
    source, label = origins(motion, size, spacing, tf.constant([7, seed]))
    voxels = (
        np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"))
        - np.reshape(size, (3, 1, 1, 1)) / 2
        + 0.5
    )
    inside = np.isfinite(source[0])
    assert inside.mean() > 0.1
    points = np.vstack([voxels[:, inside], np.ones(inside.sum())])
    affine, *_ = np.linalg.lstsq(points.T, source[:, inside].T, rcond=None)
    np.testing.assert_allclose(points.T @ affine, source[:, inside].T, atol=5e-3)
    turn = np.diag(spacing) @ affine[:3].T @ np.diag(1 / spacing)
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-3)
    assert np.abs(turn - np.eye(3)).max() > 0.05
    # Turned first and moved then: before it was turned back, the shift was within its bounds along
    # every axis.
    back = affine[3] - np.array(size) / 2 + 0.5
    assert np.abs(np.linalg.solve(affine[:3].T, back)).max() <= 2.01
    assert seed == 1 or np.abs(back).max() > 2.5
    # The label's voxel is the nearest to where the image comes from.
    nearest = np.floor(source[:, inside] + 0.5).astype(int)
    close = np.abs(source[:, inside] - np.floor(source[:, inside]) - 0.5).min(axis=0) > 0.01
    expected = 1 + np.ravel_multi_index(nearest, size)
    np.testing.assert_array_equal(label[inside][close], expected[close])


def test_rigid_motion_s_shift_is_bounded_and_flips_are_all_eight():
    size, spacing = (9, 10, 11), np.ones(3, np.float32)
    shift, flip = RigidMotion(0.0, 3, False), RigidMotion(0.0, 0, True)
    shifts = []
    for seed in range(12):
        source, _ = origins(shift, size, spacing, tf.constant([seed, 0]))
        voxels = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"))
        difference = (source - voxels)[:, np.isfinite(source[0])]
        np.testing.assert_allclose(
            difference, difference[:, :1] * np.ones_like(difference), atol=2e-3
        )
        shifts.append(difference[:, 0])
    assert 2 < np.abs(shifts).max() <= 3.001 and np.abs(np.mean(shifts)) < 1
    image = np.random.default_rng(0).normal(size=(4, 5, 6, 1)).astype(np.float32)
    sample = {
        "image": tf.constant(image),
        "label": tf.cast(image > 0, tf.uint8),
        "spacing": tf.ones(3),
    }
    found = set()
    for seed in range(60):
        flipped = MOVED(sample, tf.constant([seed, 1]), flip)
        axes = [
            axes
            for count in range(4)
            for axes in itertools.combinations(range(3), count)
            if np.allclose(flipped["image"], np.flip(image, axes), atol=1e-5)
        ]
        assert len(axes) == 1
        np.testing.assert_array_equal(flipped["label"], np.flip(sample["label"], axes[0]))
        found.add(axes[0])
    assert len(found) == 8


def test_no_rigid_motion_changes_nothing_and_the_outside_continues_the_edge_without_a_label():
    image = np.random.default_rng(0).uniform(1, 2, size=(6, 7, 8, 1)).astype(np.float32)
    sample = {
        "image": tf.constant(image),
        "label": tf.ones((6, 7, 8, 1), tf.uint8),
        "spacing": tf.ones(3),
    }
    still = augment.moved(sample, tf.constant([1, 2]), RigidMotion(0.0, 0, False))
    np.testing.assert_allclose(still["image"], image, atol=1e-5)
    np.testing.assert_array_equal(still["label"], sample["label"])
    assert still["label"].dtype == tf.uint8
    one, two, other = (
        augment.moved(sample, tf.constant([1, seed]), RigidMotion(90.0, 4, True))
        for seed in (2, 2, 3)
    )
    np.testing.assert_array_equal(one["image"], two["image"])
    assert np.any(one["image"] != other["image"])
    outside = one["label"].numpy() == 0
    assert 0 < outside.mean() < 1 and one["image"].numpy().min() >= 1
    depths = {**sample, "image": tf.range(6.0)[:, None, None, None] * image**0}
    far = augment.moved(depths, [1, 4], RigidMotion(0.0, 50, False))
    assert set(np.unique(far["image"])) <= {0.0, 5.0} and not np.any(far["label"])


# On an accelerator

LABEL = np.zeros((17, 35, 20, 1), np.uint8)
LABEL[4:9, 9:30, 5:14] = 1
# As a step has it on a GPU, which looks up no integers of 8 bits
SAMPLE = {"image": tf.constant(noise(17, 35, 20, 1)), "label": tf.cast(LABEL, tf.float32)}
CHANGES = {
    "augmented": functools.partial(augmented, augmentation=EVERYTHING),
    "moved": functools.partial(augment.moved, motion=RigidMotion(180.0, 3, True)),
}


def nodes(function, *arguments):
    """The operations of a graph, those of its loops and branches too."""
    graph = tf.function(function, autograph=False).get_concrete_function(*arguments).graph
    yield from graph.get_operations()
    for name in graph._functions:  # TensorFlow has no public way to them
        yield from graph._get_function(name).graph.get_operations()


def deformed(seed):
    spacing = tf.constant([1.0, 0.8, 1.3])
    return augment.deformed(Deformation(), [np.arange(-4, 5.0)], seed, 2, spacing)


@pytest.mark.parametrize("name", ["moved", "deformed"])
def test_places_are_no_matrix_products(name):
    """On a GPU those may be of TensorFloat-32, whose 10 bits move voxels."""
    sample = {**SAMPLE, "spacing": tf.ones(3)}
    graph = nodes(CHANGES["moved"], sample, (1, 2)) if name == "moved" else nodes(deformed, (1, 2))
    kinds = {node.type for node in graph}
    assert "AddV2" in kinds and not [kind for kind in kinds if "MatMul" in kind or kind == "Einsum"]


@pytest.mark.parametrize("name", CHANGES)
def test_a_gpu_leaves_no_voxels_to_the_host(name):
    """As it does where an operation has no kernel for it, or one of int32 in the host's memory."""
    registered, checked = kernels.get_all_registered_kernels().kernel, set()
    on_gpu = [kernel for kernel in registered if kernel.device_type in ("GPU", "DEFAULT")]
    if not any(kernel.op == "Conv3D" for kernel in on_gpu):
        pytest.skip("a TensorFlow without GPU kernels")
    sample = {**SAMPLE, "spacing": tf.ones(3)} if name == "moved" else SAMPLE
    for node in nodes(CHANGES[name], sample, (1, 2)):
        if not any((output.shape.rank or 0) >= 3 for output in node.outputs):
            continue  # places along an axis, numbers of blocks
        fitting = [
            kernel
            for kernel in on_gpu
            if kernel.op == node.type
            and all(
                node.get_attr(constraint.name).as_datatype_enum
                in constraint.allowed_values.list.type
                for constraint in kernel.constraint
            )
        ]
        outputs = {argument.name for argument in node.op_def.output_arg}
        assert any(not outputs & set(kernel.host_memory_arg) for kernel in fitting), node
        checked.add(node.type)
    assert checked >= {"Mul", "SelectV2", "GatherV2"}


# Appearance of 2D images.


def test_appearance_is_seeded_stays_in_range_and_grows_with_its_strength():
    image = tf.constant(grey(24, 20, 1))
    for seed in seeds(5):
        first, again = (augment.appearance(image, seed, 1.0) for _ in range(2))
        np.testing.assert_array_equal(first, again)
        assert first.shape == (24, 20, 1) and first.dtype == tf.float32
        assert np.min(first) >= 0 and np.max(first) <= 1
    assert len({augment.appearance(image, s, 1.0).numpy().tobytes() for s in seeds(5)}) == 5
    changes = [
        np.mean([np.abs(augment.appearance(image, s, strength) - image).mean() for s in seeds(20)])
        for strength in (0.0, 0.3, 1.0)
    ]
    assert changes[0] < 1e-6 and 0.01 < changes[1] < changes[2] / 2


def test_appearance_by_hand():
    """An even image, so that blur and contrast do nothing, at amounts that the seed gives."""
    seed = seeds(3)[1]
    parts = tf.unstack(tf.random.experimental.stateless_split(seed, 2))
    gain, _, brightness, exponent, _, noise = 0.1 * np.array(
        tf.random.stateless_uniform([6], parts[0], -1.0, 1.0)
    )
    depth = np.linspace(-1, 1, 9)[:, None, None]
    even = 0.5 * (1 + 0.5 * gain * depth) + 0.3 * brightness
    image = tf.fill((9, 300, 1), 0.5)
    shown = augment.appearance(image, seed, 0.1).numpy()
    # Contrast acts on the slope that the gain along the depth has made, blur hardly.
    np.testing.assert_allclose(shown[4].mean(), even[4, 0, 0] ** 2.5**exponent, atol=3e-3)
    assert shown.std(axis=1).mean() == pytest.approx(0.1 * abs(noise), rel=0.1)
    assert np.sign(shown[-1].mean() - shown[0].mean()) == np.sign(gain)


@pytest.mark.parametrize("sd", [0.0, 0.7, 1.5])
def test_blur_is_a_gaussian(sd):
    image = grey(13, 17, 1)
    expected = ndimage.gaussian_filter(image[..., 0], sd, mode="reflect", radius=5) if sd else image
    np.testing.assert_allclose(
        np.squeeze(augment._blurred(tf.constant(image), tf.constant(sd))),
        np.squeeze(expected),
        atol=1e-5,
    )


def test_appearance_moves_nothing():
    line = np.full((31, 31, 1), 0.2, np.float32)
    line[12:15] = 0.8
    for seed in seeds(8):
        rows = augment.appearance(tf.constant(line), seed, 1.0).numpy()[..., 0].mean(axis=1)
        assert abs(rows[5:22].argmax() + 5 - 13) <= 1
