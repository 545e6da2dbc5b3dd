import dataclasses
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
from tf_autoctx.data.configuration import Augmentation


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


COLOURS = {"intensity_jitter": 0.2, "gamma": 0.5, "blur": 1.0, "low_resolution": 2.0, "noise": 0.1}
EVERYTHING = Augmentation(flips=True, shift=2, **COLOURS, erase_probability=0.5)
MOTION = Augmentation(rotation=90.0, shift=4, flips=True)
BENT = Augmentation(rotation=20.0, scaling=0.3, elastic=1.0, elastic_spacing=6)
NOTHING = Augmentation()


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
            np.testing.assert_allclose(eager[name], traced[name], atol=1e-3)


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
        changed = augmented(sample, seed, Augmentation(intensity_jitter=0.2))
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


def voxels_of(size):
    """(3, *size), where each voxel is."""
    return np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"))


@pytest.mark.parametrize("seed", [1, 8, 11])
def test_rigid_motion_is_one_rigid_motion_in_mm_of_image_and_label(seed):
    size, spacing = (17, 21, 25), np.array([1.0, 0.5, 0.8], np.float32)
    motion = Augmentation(rotation=180.0, shift=2, flips=True)
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
    shift, flip = Augmentation(shift=3), Augmentation(flips=True)
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
    still = augment.moved(sample, tf.constant([1, 2]), Augmentation())
    np.testing.assert_allclose(still["image"], image, atol=1e-5)
    np.testing.assert_array_equal(still["label"], sample["label"])
    assert still["label"].dtype == tf.uint8
    one, two, other = (augment.moved(sample, tf.constant([1, seed]), MOTION) for seed in (2, 2, 3))
    np.testing.assert_array_equal(one["image"], two["image"])
    assert np.any(one["image"] != other["image"])
    outside = one["label"].numpy() == 0
    assert 0 < outside.mean() < 1 and one["image"].numpy().min() >= 1
    depths = {**sample, "image": tf.range(6.0)[:, None, None, None] * image**0}
    far = augment.moved(depths, [1, 4], Augmentation(shift=50))
    assert set(np.unique(far["image"])) <= {0.0, 5.0} and not np.any(far["label"])


# Size and elastic deformation


@pytest.mark.parametrize("seed", [1, 2, 4])
def test_a_change_of_size_is_one_factor_about_the_centre(seed):
    size, seed = (9, 14, 11), tf.constant([5, seed])
    scaling = Augmentation(scaling=1.0)  # from half to twice the size
    factor = float(augment._Parts(seed, scaling).size)
    assert 0.5 <= factor <= 2 and abs(factor - 1) > 0.05
    source, _ = origins(scaling, size, np.array([1.0, 0.5, 2.0], np.float32), seed)
    centre = (np.reshape(size, (3, 1, 1, 1)) - 1) / 2
    expected = centre + (voxels_of(size) - centre) / factor
    inside = np.isfinite(source)
    assert inside.mean() > 0.1
    np.testing.assert_allclose(source[inside], expected[inside], atol=1e-4)


def test_factors_of_size_are_as_often_up_as_down():
    logs = [
        float(tf.math.log(augment._Parts(seed, Augmentation(scaling=0.5)).size))
        for seed in seeds(200)
    ]
    assert -np.log(1.5) <= min(logs) < -0.35 and 0.35 < max(logs) <= np.log(1.5)
    assert np.mean(logs) == pytest.approx(0, abs=0.06)  # SD of the mean 0.017


def test_a_cube_twice_as_large_by_hand(monkeypatch):
    monkeypatch.setattr(tf.random, "stateless_uniform", lambda shape, *_, **__: tf.ones(shape))
    label = np.zeros((8, 8, 8, 1), np.uint8)
    label[3:5, 2:4, 3:5] = 1  # edges of 2 voxels; along y up to the centre of the volume
    sample = {"image": tf.constant(label, tf.float32), "label": tf.constant(label)}
    larger = augment.moved(sample, tf.constant([1, 2]), Augmentation(scaling=1.0))
    expected = np.zeros((8, 8, 8, 1))
    expected[2:6, 0:4, 2:6] = 1
    np.testing.assert_array_equal(larger["label"], expected)
    about, before = ([0, 0.25, 0.75, 1, 1, 0.75, 0.25, 0], [0.75, 1, 1, 0.75, 0.25, 0, 0, 0])
    shades = np.einsum("z,y,x->zyx", about, before, about)[..., None]
    np.testing.assert_allclose(larger["image"], shades, atol=1e-5)


def test_an_elastic_deformation_is_the_b_spline_of_its_control_points():
    size, seed = (9, 14, 11), tf.constant([5, 6])
    elastic = Augmentation(elastic=0.8, elastic_spacing=4)
    source, _ = origins(elastic, size, np.ones(3, np.float32), seed)
    counts = [int(np.ceil((n - 1) / 4)) + 3 for n in size]
    own = tf.random.fold_in(seed, augment.ELASTIC)
    points = 0.8 * np.array(tf.random.stateless_normal([*counts, 3], own))
    for axis, (n, count) in enumerate(zip(size, counts)):
        t = np.abs(np.arange(n)[:, None] / 4 + 1 - np.arange(count))
        weights = np.where(t < 1, 2 / 3 - t**2 + t**3 / 2, np.maximum(2 - t, 0) ** 3 / 6)
        points = np.moveaxis(np.tensordot(weights, points, (1, axis)), 0, axis)
    displacements = np.moveaxis(points, -1, 0)
    inside = np.isfinite(source)
    assert inside.mean() > 0.5 and np.abs(displacements).max() > 0.5
    np.testing.assert_allclose((source - voxels_of(size))[inside], displacements[inside], atol=1e-4)


def ball(*size):
    """A ball, or a disc, off the centre."""
    axes = np.ogrid[tuple(slice(n) for n in size)]
    inside = sum((axis - 0.45 * n) ** 2 for axis, n in zip(axes, size)) < (0.3 * min(size)) ** 2
    return np.where(inside, 1, 0)[..., None]


@pytest.mark.parametrize("size", [(20, 24, 22), (30, 34)])
def test_a_label_stays_with_its_image_and_context(size):
    motion = dataclasses.replace(BENT, shift=2, flips=True)
    label = ball(*size)
    sample = {
        "image": tf.constant(label, tf.float32),
        "label": tf.constant(label, tf.uint8),
        "context": tf.constant(0.5 * label, tf.float32),
        "spacing": tf.constant([1.0, 0.8, 1.2][-len(size) :]),
    }
    for seed in seeds(5):
        moved, again = (augmented(sample, seed, motion) for _ in range(2))
        assert equal(moved, again) and list(moved) == ["image", "label", "context"]
        inside, truth = np.array(moved["image"]) > 0.5, np.array(moved["label"]) == 1
        assert np.sum(inside != truth) < 0.1 * truth.sum() and truth.sum() > 100
        assert np.sum(truth != label) > 0.2 * label.sum()
        np.testing.assert_allclose(2 * moved["context"], moved["image"], atol=1e-5)
        assert all(moved[name].shape == sample[name].shape for name in moved)


def test_a_rotation_in_2d_is_rigid_in_mm():
    size, spacing = (21, 25), np.array([0.5, 0.8], np.float32)
    places = np.meshgrid(*map(np.arange, size), indexing="ij")
    turned = []
    for seed in seeds(5):
        source = [
            augmented(
                {"image": tf.constant(axis[..., None], tf.float32), "spacing": spacing},
                seed,
                Augmentation(rotation=40.0),
            )["image"].numpy()[..., 0]
            for axis in places
        ]
        inside = np.all([(s > 0) & (s < n - 1) for s, n in zip(source, size)], axis=0)
        points = np.stack([*(axis[inside] for axis in places), np.ones(inside.sum())], axis=1)
        affine, *_ = np.linalg.lstsq(points, np.stack(source)[:, inside].T, rcond=None)
        np.testing.assert_allclose(points @ affine, np.stack(source)[:, inside].T, atol=1e-3)
        turn = np.diag(spacing) @ affine[:2].T @ np.diag(1 / spacing)
        np.testing.assert_allclose(turn @ turn.T, np.eye(2), atol=1e-4)
        turned.append(np.degrees(np.arctan2(turn[1, 0], turn[0, 0])))
    assert 5 < np.max(np.abs(turned)) <= 40 and len(set(turned)) == 5


def test_a_slice_of_a_volume_turns_by_the_volume_s_spacing():
    image = tf.constant(grey(12, 14, 1))
    motion, seed = Augmentation(rotation=40.0, elastic=0.5, elastic_spacing=6), seeds(1)[0]
    by_slice, by_volume, other = (
        augmented({"image": image, "spacing": tf.constant(spacing)}, seed, motion)["image"]
        for spacing in ([0.5, 0.8], [3.0, 0.5, 0.8], [0.8, 0.5])
    )
    np.testing.assert_array_equal(by_slice, by_volume)
    assert np.abs(by_slice - other).max() > 0.01


@pytest.mark.parametrize("size", [(8, 9, 10), (11, 12)])
def test_channels_move_together_and_change_their_intensities_by_themselves(size):
    image, seed = grey(*size, 2), seeds(2)[1]
    motion = dataclasses.replace(BENT, shift=1, flips=True)
    both = augmented({"image": tf.constant(image)}, seed, motion)["image"]
    for channel in range(2):
        alone = augmented({"image": tf.constant(image[..., channel : channel + 1])}, seed, motion)
        np.testing.assert_allclose(both[..., channel : channel + 1], alone["image"], atol=1e-6)
    twice = tf.constant(np.repeat(image[..., :1], 2, axis=-1))
    for name in ("intensity_jitter", "gamma", "blur", "noise"):
        changed = augment.recoloured(twice, seed, Augmentation(**{name: COLOURS[name]}))
        assert np.abs(changed[..., 0] - changed[..., 1]).max() > 1e-3, name


# Intensities


def recoloured(image, seed, **changes):
    return np.array(augment.recoloured(tf.constant(image), seed, Augmentation(**changes)))


def test_gamma_by_hand():
    image = np.float32([10, 12.5, 15, 20]).reshape(4, 1, 1)
    squared = augment.with_gamma(tf.constant(image), 2.0)
    np.testing.assert_allclose(np.ravel(squared), [10, 10.625, 12.5, 20], rtol=1e-6)
    even = np.full((3, 3, 1), 7, np.float32)
    np.testing.assert_array_equal(augment.with_gamma(tf.constant(even), 0.5), even)


def test_exponents_are_as_often_above_1_as_below():
    image, exponents = np.float32([0, 0.5, 1]).reshape(3, 1, 1), []
    for seed in seeds(200):
        changed = recoloured(image, seed, gamma=1.0)
        np.testing.assert_array_equal(changed[[0, 2]], image[[0, 2]])
        exponents.append(-np.log2(changed[1, 0, 0]))
    assert 0.4999 < min(exponents) < 0.53 and 1.9 < max(exponents) < 2.0001
    assert np.mean(np.log2(exponents)) == pytest.approx(0, abs=0.15)


def test_noise_is_normal_with_an_sd_up_to_the_largest():
    image, deviations = np.full((16, 20, 20, 1), 3, np.float32), []
    for seed in seeds(100):
        noise_ = recoloured(image, seed, noise=0.5) - 3
        deviations.append(noise_.std())
        assert abs(noise_.mean()) < 5 * deviations[-1] / 80
        assert np.mean(np.abs(noise_) < noise_.std()) == pytest.approx(0.683, abs=0.03)
    assert 0 < min(deviations) < 0.03 and 0.47 < max(deviations) < 0.51
    assert np.mean(deviations) == pytest.approx(0.25, abs=0.05)


def test_blur_of_volumes_is_a_gaussian_a_channel():
    image = grey(9, 12, 4, 2)
    blurred = augment.blurred(tf.constant(image), tf.constant([0.6, 1.4]), 5)
    for channel, sd in enumerate((0.6, 1.4)):
        expected = ndimage.gaussian_filter(image[..., channel], sd, mode="reflect", radius=5)
        np.testing.assert_allclose(blurred[..., channel], expected, atol=1e-5)


def test_blur_is_drawn_up_to_the_largest():
    image, deviations = np.zeros((41, 1), np.float32), []
    image[20] = 1
    place = np.arange(41) - 20
    for seed in seeds(100):
        spread = recoloured(image, seed, blur=2.0)[:, 0]
        assert spread.sum() == pytest.approx(1, abs=1e-5)
        deviations.append(np.sqrt(np.sum(spread * place**2)))
    assert min(deviations) < 0.1 and 1.8 < max(deviations) <= 2


@pytest.mark.parametrize("edge", [1.0, 2.0, 2.5])
def test_coarser_voxels_are_means_with_lines_between_them(edge):
    line = grey(15)
    parts = int(10 * edge)  # tenths of voxels
    means = [part.mean() for part in np.split(np.repeat(line, 10), range(parts, 150, parts))]
    centres = edge * (np.arange(len(means)) + 0.5) - 0.5
    expected = np.interp(np.arange(15), centres, means)
    for shape in ((15, 1, 1, 1), (1, 1, 15, 1), (15, 1)):
        image = tf.constant(line.reshape(shape))
        answer = augment.coarser(image, tf.constant(edge), 3)
        np.testing.assert_allclose(np.ravel(answer), expected, atol=1e-5)
    if edge == 1:
        np.testing.assert_array_equal(np.ravel(answer), line)


def test_a_low_resolution_is_that_of_cubes():
    image = grey(8, 6, 4, 1)
    blocks = image.reshape(4, 2, 3, 2, 2, 2, 1).mean(axis=(1, 3, 5))
    answer = augment.coarser(tf.constant(image), tf.constant(2.0), 2)
    # A quarter of a coarse voxel from its centre; at the ends of the volume there is none beyond.
    np.testing.assert_allclose(answer[0, 0, 0], blocks[0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(answer[7, 5, 3], blocks[3, 2, 1], atol=1e-6)
    expected = 0.75 * blocks[0, 0, 0] + 0.25 * blocks[1, 0, 0]
    np.testing.assert_allclose(answer[1, 0, 0], expected, atol=1e-6)


def test_up_to_an_edge_of_1_and_by_no_share_nothing_changes():
    image, seed = grey(6, 7, 8, 1), seeds(1)[0]
    np.testing.assert_array_equal(recoloured(image, seed, low_resolution=1.0), image)
    never = {**COLOURS, "change_probability": 0.0}
    np.testing.assert_allclose(recoloured(image, seed, **never), image, atol=1e-6)
    still = {"rotation": 90.0, "scaling": 1.0, "elastic": 4.0, "change_probability": 0.0}
    moved = augmented({"image": tf.constant(image)}, seed, Augmentation(**still))
    np.testing.assert_allclose(moved["image"], image, atol=1e-5)


def test_every_change_is_made_in_its_share_of_samples_by_itself():
    image, changes = grey(5, 6, 1), {"rotation": 20.0, "scaling": 0.5, "elastic": 1.0, **COLOURS}
    made = []
    for name, value in changes.items():
        augmentation = Augmentation(**{name: value}, change_probability=0.3)
        changed = tf.function(
            functools.partial(augmented, {"image": tf.constant(image)}, augmentation=augmentation),
            autograph=False,
        )
        made.append([np.abs(changed(seed)["image"] - image).max() > 1e-5 for seed in seeds(100)])
    np.testing.assert_allclose(np.mean(made, axis=1), 0.3, atol=0.15)  # SD 0.046
    correlations = np.corrcoef(np.array(made, float)) - np.eye(len(made))
    assert np.abs(correlations).max() < 0.45


# On an accelerator

LABEL = np.zeros((17, 35, 20, 1), np.uint8)
LABEL[4:9, 9:30, 5:14] = 1
# As a step has it on a GPU, which looks up no integers of 8 bits
SAMPLE = {"image": tf.constant(noise(17, 35, 20, 1)), "label": tf.cast(LABEL, tf.float32)}
CHANGES = {
    "augmented": functools.partial(augmented, augmentation=EVERYTHING),
    "moved": functools.partial(
        augment.moved, augmentation=dataclasses.replace(BENT, shift=3, flips=True)
    ),
}


def nodes(function, *arguments):
    """The operations of a graph, those of its loops and branches too."""
    graph = tf.function(function, autograph=False).get_concrete_function(*arguments).graph
    yield from graph.get_operations()
    for name in graph._functions:  # TensorFlow has no public way to them
        yield from graph._get_function(name).graph.get_operations()


def deformed(seed):
    spacing = tf.constant([1.0, 0.8, 1.3])
    return augment.deformed(BENT, [[np.arange(-4, 5.0)] * 3], seed, 2, spacing)


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
        np.squeeze(augment.blurred(tf.constant(image), tf.constant(sd))),
        np.squeeze(expected),
        atol=1e-5,
    )


def test_appearance_moves_nothing():
    line = np.full((31, 31, 1), 0.2, np.float32)
    line[12:15] = 0.8
    for seed in seeds(8):
        rows = augment.appearance(tf.constant(line), seed, 1.0).numpy()[..., 0].mean(axis=1)
        assert abs(rows[5:22].argmax() + 5 - 13) <= 1
