import itertools

import numpy as np
import pytest
import tensorflow as tf
from held import Held, held
from helpers import noise, seeds
from scipy import ndimage

from tf_autoctx.data import augment, pipeline, subvolumes
from tf_autoctx.data.configuration import Augmentation
from tf_autoctx.data.phantoms import abdomens
from tf_autoctx.models import layers
from tf_autoctx.models.unet3d import ResampleAboutCentre
from tf_autoctx.systems.multi_organ.presets import DEFORMATION

STILL = Augmentation()
EVERYTHING = Augmentation(shift=4, rotation=10.0, elastic=4.0, elastic_spacing=16)


def drawn(sample, seed, augmentation=STILL, scales=(1,), unit=None, size=8):
    """As numpy arrays without channels."""
    cut = subvolumes.draw(
        sample,
        seed,
        scales=scales,
        unit=unit or scales[-1],
        size=(size,) * 3,
        augmentation=augmentation,
    )
    assert all(tensor.shape == (size, size, size, 1) for tensor in cut.values())
    assert [tensor.dtype for tensor in cut.values()] == [tf.float32, tf.uint8] * len(scales)
    return {name: np.array(tensor)[..., 0] for name, tensor in cut.items()}


def case(image, label, scales=(1,), values=(1,), spacing=(1.0, 1.0, 1.0)):
    """A cached case of a full-size image and its label, both (depth, height, width)."""
    small = {
        f"image_{level}": layers.resize_linear(
            image[None, ..., None], [max(1, round(n / s)) for n in image.shape]
        )[0]
        for level, s in enumerate(scales, start=1)
    }
    return held(
        {
            **small,
            "label": label[..., None],
            "places": subvolumes.places(label, values, np.random.default_rng(0)),
            "spacing": np.array(spacing, np.float32),
        }
    )


def at_voxel(place, image, scales=(1,)):
    """A case whose subvolumes are centred on a voxel, the only 1 of a random label; that label."""
    label = np.random.default_rng(1).choice(np.array([0, 2, 3], np.uint8), image.shape)
    label[place] = 1
    return case(image, label, scales), label


# Places.


def test_places_are_random_voxels_of_each_structure():
    label = np.zeros((6, 5, 7), np.uint8)
    label[1:3, 2:4, 3:6] = 7
    label[5, 4, 6] = 2
    found = subvolumes.places(label, (2, 5, 7), np.random.default_rng(0))
    assert found.shape == (3, subvolumes.PLACES, 3) and found.dtype == np.float32
    np.testing.assert_array_equal(found[0], np.tile([5, 4, 6], (subvolumes.PLACES, 1)))
    assert np.all(np.isnan(found[1]))
    voxels = found[2].astype(int)
    np.testing.assert_array_equal(voxels, found[2])
    # All of the 12 voxels, 83 times each in the mean, SD 8.7.
    voxels, counts = np.unique(voxels, axis=0, return_counts=True)
    np.testing.assert_array_equal(voxels, np.argwhere(label == 7))
    assert counts.min() > 45 and counts.max() < 125


def test_the_same_generator_draws_the_same_places():
    label = np.random.default_rng(0).integers(0, 3, (9, 8, 7))
    a, b, c = (subvolumes.places(label, (1, 2), np.random.default_rng(seed)) for seed in (4, 4, 5))
    np.testing.assert_array_equal(a, b)
    assert np.any(a != c)


# Subvolumes that are not deformed.


@pytest.mark.parametrize("place", [(10, 9, 12), (0, 21, 1), (19, 0, 23)])
def test_the_finest_level_is_a_plain_crop_and_beyond_the_volume_its_edge(place):
    image = 5 + noise(20, 22, 24)
    sample, label = at_voxel(place, image)
    for seed in seeds(3):
        cut = drawn(sample, seed)
        around = tuple(slice(at + 8 - 4, at + 8 + 4) for at in place)
        np.testing.assert_array_equal(cut["image_1"], np.pad(image, 8, "edge")[around])
        np.testing.assert_array_equal(cut["label_1"], np.pad(label, 8, "edge")[around])
        assert cut["label_1"][4, 4, 4] == 1


def test_a_shrunk_finest_level_is_a_plain_crop_of_the_shrunk_volume():
    sample, _ = at_voxel((11, 14, 13), noise(24, 28, 32), scales=(4, 2))
    cut = drawn(sample, seeds(1)[0], scales=(4, 2))
    whole = sample["image_2"].whole()
    np.testing.assert_array_equal(cut["image_2"], whole[1:9, 3:11, 2:10, 0])


def test_labels_at_the_faces_between_voxels_come_from_either_side():
    # From (10, 14, 12) voxels of 2: every second voxel, the lower or the higher of the two nearest
    # along an axis.
    sample, label = at_voxel((11, 14, 13), noise(24, 28, 32), scales=(4, 2))
    sides = {
        (a, b, c): label[2 + a : 17 + a : 2, 6 + b : 21 + b : 2, 4 + c : 19 + c : 2]
        for a, b, c in itertools.product((0, 1), repeat=3)
    }
    found = []
    for seed in seeds(40):
        cut = drawn(sample, seed, scales=(4, 2))["label_2"]
        found += [side for side, expected in sides.items() if np.array_equal(cut, expected)]
    assert len(found) == 40 and np.all(np.abs(np.mean(found, axis=0) - 0.5) < 0.3)


@pytest.mark.parametrize(
    "size, scales", [((24, 28, 32), (4, 2)), ((21, 27, 30), (4, 2)), ((21, 26, 19), (3, 2, 1))]
)
def test_every_level_is_interpolated_about_the_same_centre(size, scales):
    # Sizes that are not multiples: the shrunk volume still covers all of the full one.
    place, image = (11, 14, 13), 5 + noise(*size)
    sample, label = at_voxel(place, image, scales)
    cut = drawn(sample, seeds(1)[0], scales=scales)
    for level, scale in enumerate(scales, start=1):
        steps = scale * (np.arange(8) - 3.5)
        at = [scales[-1] * (n // scales[-1]) + steps for n in place]
        shrunk = np.array(sample[f"image_{level}"].whole())[..., 0]
        index = [edge * small / full - 0.5 for edge, small, full in zip(at, shrunk.shape, size)]
        index = np.stack(np.meshgrid(*index, indexing="ij"))
        expected = ndimage.map_coordinates(shrunk, index, order=1, mode="nearest")
        np.testing.assert_allclose(cut[f"image_{level}"], expected, atol=1e-4)
        if scale % 2:
            around = np.ix_(*(np.floor(edge).astype(int) + 16 for edge in at))
            np.testing.assert_array_equal(cut[f"label_{level}"], np.pad(label, 16, "edge")[around])


def test_far_outside_the_volume_goes_on_as_it_ends():
    sample, _ = at_voxel((3, 3, 3), 5 + noise(6, 6, 6), scales=(4, 1))
    cut = drawn(sample, seeds(1)[0], scales=(4, 1))
    # Voxels of 4 at ..., -3, 1, 5, 9, ...: two of them are inside on every axis.
    for name in ("image_1", "label_1"):
        assert np.ptp(cut[name][3:5, 3:5, 3:5]) > 0
        for axis in range(3):
            for beyond in np.split(cut[name], (3, 5), axis)[::2]:
                assert not np.ptp(beyond, axis=axis).any()


# Where subvolumes are.


def test_structures_are_drawn_evenly_whatever_their_size():
    label = np.zeros((24, 24, 24), np.uint8)
    label[4:14, 4:14, 4:14] = 2
    label[20, 20, 4:14] = 4
    sample, graph = case(noise(24, 24, 24), label, values=(1, 2, 3, 4)), tf.function(drawn_label)
    centres = [int(graph(sample, seed)) for seed in seeds(400)]
    # 1000 and 10 voxels; two structures are absent. 200 each in the mean, SD 10.
    assert centres.count(2) + centres.count(4) == 400
    assert 150 < centres.count(2) < 250


def drawn_label(sample, seed):
    """The label at the centre."""
    cut = subvolumes.draw(sample, seed, scales=(1,), unit=1, size=(8, 8, 8), augmentation=STILL)
    return cut["label_1"][4, 4, 4, 0]


def test_all_voxels_of_a_structure_come_to_the_centre():
    label = np.zeros((8, 8, 8), np.uint8)
    label[2, 3:5, 4:6] = 1
    sample = case(np.arange(512, dtype=np.float32).reshape(8, 8, 8), label)
    graph = tf.function(
        lambda seed: subvolumes.draw(
            sample, seed, scales=(1,), unit=1, size=(8, 8, 8), augmentation=STILL
        )
    )
    centres = {int(graph(seed)["image_1"][4, 4, 4, 0]) for seed in seeds(60)}
    assert centres == set(np.flatnonzero(label))


# Deformed subvolumes.


def linear_case(scales, spacing=(1.0, 1.0, 1.0)):
    """An image linear in the position in full-size voxels, far larger than any subvolume."""
    z, y, x = np.meshgrid(*3 * [np.arange(96, dtype=np.float32) + 0.5], indexing="ij")
    label = np.zeros((96, 96, 96), np.uint8)
    label[48, 47, 49] = 1
    # Of a linear function, shrinking takes the values at the new centres, but at the edges.
    return case(z + 2 * y - 0.5 * x, label, scales, spacing=spacing)


@pytest.mark.parametrize(
    "scales, spacing", [((4, 2), (1, 1, 1)), ((3, 2), (2, 0.8, 0.8)), ((2, 1), (3, 1, 1))]
)
def test_levels_share_their_centre_and_their_deformation(scales, spacing):
    sample = linear_case(scales, spacing)
    still = drawn(sample, seeds(1)[0], scales=scales)["image_2"]
    for seed in seeds(5):
        cut = {
            name: x[None, ..., None] for name, x in drawn(sample, seed, EVERYTHING, scales).items()
        }
        context = ResampleAboutCentre(scales[0] / scales[1])([cut["image_1"], cut["image_2"]])
        # The deformation bends within a voxel of level 1 too: u'' h^2 / 8, here below a fifth of a
        # voxel.
        np.testing.assert_allclose(context, cut["image_2"], atol=0.25 * scales[-1])
        assert np.abs(cut["image_2"][0, ..., 0] - still).max() > scales[-1]


def test_image_and_label_move_together():
    ball = sum((axis - 15.5) ** 2 for axis in np.ogrid[:32, :32, :32]) < 9**2
    sample = case(ball.astype(np.float32), ball.astype(np.uint8))
    still = drawn(sample, seeds(1)[0], size=24)["label_1"]
    for seed in seeds(5):
        cut = drawn(sample, seed, EVERYTHING, size=24)
        inside, label = cut["image_1"] > 0.5, cut["label_1"] == 1
        assert label.sum() > 1000 and np.sum(inside != label) < 0.05 * label.sum()
        assert np.sum(still != label) > 0.2 * label.sum()


def test_the_same_seed_draws_the_same_subvolumes():
    rng = np.random.default_rng(0)
    sample = case(
        noise(20, 24, 28), rng.integers(0, 3, (20, 24, 28)).astype(np.uint8), (2, 1), (1, 2)
    )

    def draw(seed):
        return drawn(sample, seed, EVERYTHING, (2, 1))

    again, eager = draw(seeds(1)[0]), [draw(seed) for seed in seeds(4)]
    assert all(np.array_equal(again[name], eager[0][name]) for name in again)
    for a, b in itertools.combinations(eager, 2):
        assert all(np.any(a[name] != b[name]) for name in a)
    # In an input pipeline, as training draws them.
    in_a_map = tf.data.Dataset.from_tensor_slices(tf.stack(seeds(4))).map(
        lambda seed: subvolumes.draw(
            sample, seed, scales=(2, 1), unit=1, size=(8, 8, 8), augmentation=EVERYTHING
        )
    )
    for mapped, expected in zip(in_a_map.batch(4).get_single_element()["image_2"], eager):
        np.testing.assert_allclose(mapped[..., 0], expected["image_2"], atol=1e-3)


def test_the_drawn_structure_is_in_the_middle_of_what_is_deformed():
    """Its share of the central 2^3 voxels, of phantoms with the presets' deformation."""
    image, label, spacing = abdomens.abdomen((56, 64, 88), 3.0, seed=1)
    sample = case(image.astype(np.float32), label, (2, 1), range(1, 8), spacing)

    def share(augmentation):
        @tf.function
        def middle(seed):
            cut = subvolumes.draw(
                sample, seed, scales=(2, 1), unit=1, size=(8, 8, 8), augmentation=augmentation
            )
            seeds = tf.unstack(tf.random.experimental.stateless_split(seed, 4))
            place = tf.cast(pipeline.random_place(sample["places"].whole(), seeds[:2]), tf.int32)
            structure = sample["label"].at(tf.unstack(place))
            return tf.reduce_any(cut["label_2"][3:5, 3:5, 3:5, 0] == structure)

        return np.mean([bool(middle(seed)) for seed in seeds(200)])

    assert share(STILL) == 1 and share(Augmentation(**DEFORMATION)) > 0.97


def test_subvolumes_turn_and_bend_about_their_voxel():
    """Of an image that is linear in the position, the mean of the central 2^3 stays what it is."""
    sample = linear_case((2, 1))
    turned = Augmentation(rotation=10.0, elastic=4.0, elastic_spacing=16)
    still = drawn(sample, seeds(1)[0], scales=(2, 1))["image_2"]
    for seed in seeds(5):
        cut = drawn(sample, seed, turned, scales=(2, 1))["image_2"]
        assert cut[3:5, 3:5, 3:5].mean() == pytest.approx(still[3:5, 3:5, 3:5].mean(), abs=0.1)
        assert np.abs(cut - still).max() > 1


def test_a_translation_goes_as_far_as_the_structure():
    label = np.zeros((40, 40, 40), np.uint8)
    label[20, 20, :] = 1  # a thread along x, which leaves the volume
    label[:, 19] = 2
    sample = case(np.indices(label.shape)[2].astype(np.float32), label)
    found = set()
    for seed in seeds(60):
        along = np.array(subvolumes._along(sample["label"], tf.constant([20.0, 20, 37]), seed, 4.0))
        voxel = np.floor(np.array([20, 20, 37]) + along + 0.5).astype(int)
        assert np.all(np.abs(along) <= 4) and voxel[2] < 40 and label[tuple(voxel)] == 1
        found.add(int(voxel[2]))
    assert found >= {36, 37, 38, 39}
    # In the middle of a large structure it goes all the way.
    whole = held({"label": np.ones((40, 40, 40, 1), np.uint8)})["label"]
    far = [np.array(subvolumes._along(whole, tf.fill([3], 20.0), seed, 4.0)) for seed in seeds(60)]
    assert np.abs(far).max() > 3.8 and np.abs(far).mean() == pytest.approx(2, abs=0.3)


# The deformation.

GRID = np.arange(-12, 13, 4.0)


def moved(augmentation, seed, grid=GRID, unit=1, spacing=(1.0, 1.0, 1.0)):
    """(offsets before, offsets after), each (n, n, n, 3)."""
    before = np.stack(np.meshgrid(grid, grid, grid, indexing="ij"), axis=-1)
    spacing = tf.constant(spacing, tf.float32)
    return before, np.array(augment.deformed(augmentation, [[grid] * 3], seed, unit, spacing)[0])


def test_without_any_part_nothing_moves():
    before, after = moved(STILL, seeds(1)[0], spacing=(2.7, 0.7, 0.9))
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("unit", [1, 2])
def test_shift_is_one_translation(unit):
    offsets = []
    for seed in seeds(100):
        before, after = moved(Augmentation(shift=3), seed, unit=unit)
        offsets.append((after - before)[0, 0, 0])
        np.testing.assert_allclose(
            after - before, np.broadcast_to(offsets[-1], before.shape), atol=1e-5
        )
    offsets = np.array(offsets)
    assert np.all(np.abs(offsets) <= 3 * unit) and np.all(np.abs(offsets).max(axis=0) > 2.8 * unit)
    # Uniform: SD of the mean of 100 is 0.17 units. Every axis by itself.
    np.testing.assert_allclose(offsets.mean(axis=0), 0, atol=0.7 * unit)
    assert np.abs(np.corrcoef(offsets.T) - np.eye(3)).max() < 0.35


def test_rotation_is_rigid_in_mm():
    spacing, angles = np.array([2.5, 0.8, 1.1]), []
    augmentation = Augmentation(rotation=20.0)
    for seed in seeds(100):
        before, after = (
            x.reshape(-1, 3) * spacing for x in moved(augmentation, seed, spacing=spacing)
        )
        # The rotation is what takes three independent points (mm) to where they landed.
        turn = np.linalg.lstsq(before, after, rcond=None)[0].T
        np.testing.assert_allclose(before @ turn.T, after, atol=1e-3)
        np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-5)
        assert np.linalg.det(turn) == pytest.approx(1, abs=1e-5)
        # R = R_2 R_1 R_0 by angles about the axes 0, 1, 2.
        angles.append(
            np.degrees(
                [
                    np.arctan2(turn[2, 1], turn[2, 2]),
                    np.arcsin(turn[2, 0]),
                    np.arctan2(turn[1, 0], turn[0, 0]),
                ]
            )
        )
    angles = np.array(angles)
    assert np.all(np.abs(angles) <= 20.01) and np.all(np.abs(angles).max(axis=0) > 18)
    np.testing.assert_allclose(angles.mean(axis=0), 0, atol=4.7)  # SD of the mean 1.15
    assert np.abs(np.corrcoef(angles.T) - np.eye(3)).max() < 0.35


def test_rotation_keeps_distances_in_mm():
    spacing = np.array([5.0, 0.7, 0.9])
    for seed in seeds(5):
        before, after = moved(Augmentation(shift=5, rotation=30.0), seed, spacing=spacing)
        pairs = [np.linalg.norm((x[0, 0, 0] - x[-1, -2, -3]) * spacing) for x in (before, after)]
        assert pairs[0] == pytest.approx(pairs[1], rel=1e-5)


@pytest.mark.parametrize("unit", [1, 2])
def test_elastic_displacements_have_the_spread_of_the_b_spline(unit):
    # Offsets at control points, a quarter of the way and midway between them, in intervals of 16
    # units.
    grid = 16.0 * unit * np.array([-1, -0.75, -0.5, 0, 0.5, 1])
    augmentation = Augmentation(elastic=4.0, elastic_spacing=16)
    graph = tf.function(
        lambda seed: augment.deformed(augmentation, [[grid] * 3], seed, unit, tf.ones(3))[0]
    )
    before = np.stack(np.meshgrid(grid, grid, grid, indexing="ij"), axis=-1)
    displacements = np.array([np.array(graph(seed)) - before for seed in seeds(600)])

    def weight(part):
        """Sum of the squared weights of the control points, `part` of the way between two."""
        t = np.abs(part - np.arange(-1, 3))
        return np.sum(np.where(t < 1, 2 / 3 - t**2 + t**3 / 2, np.maximum(2 - t, 0) ** 3 / 6) ** 2)

    at, between, midway = weight(0), weight(0.25), weight(0.5)
    assert at == pytest.approx(1 / 2) and midway == pytest.approx(2 * (23**2 + 1) / 48**2)
    expected = np.array([at, between, midway, at, midway, at])
    expected = np.einsum("a,b,c->abc", expected, expected, expected) * (4 * unit) ** 2
    # 600 draws of 3 components: a variance is known to 3.3 % (SD), the largest of 216 errors to
    # about 11 %.
    variance = np.mean(displacements**2, axis=(0, 4))
    np.testing.assert_allclose(variance, expected, rtol=0.16)
    assert np.mean(variance / expected) == pytest.approx(1, abs=0.03)
    np.testing.assert_allclose(displacements.mean(axis=0), 0, atol=0.35 * unit)


def test_elastic_displacements_are_smooth():
    grid = np.arange(-31.5, 32)
    before, after = moved(Augmentation(elastic=4.0), seeds(1)[0], grid)
    displacement = after - before
    assert displacement.std() > 0.5
    for axis in range(3):
        assert np.abs(np.diff(displacement, axis=axis)).max() < 1
        # Second derivatives are weighted by 1, -2, 1 of normal numbers of SD 4 over 32^2.
        assert np.abs(np.diff(displacement, n=2, axis=axis)).max() < 4 * 4.5 * 4 / 32**2
    # No folding: the deformation keeps the order of voxels.
    assert np.all(np.diff(after[..., 0], axis=0) > 0)


@pytest.mark.parametrize("unit", [1, 2])
def test_one_transform_through_two_grids(unit):
    fine, coarse = np.arange(-8, 9, 1.0), np.arange(-16, 17, 4.0)
    for seed in seeds(3):
        spacing = tf.constant([2.0, 1.0, 0.7])
        seen = augment.deformed(EVERYTHING, [[coarse] * 3, [fine] * 3], seed, unit, spacing)
        assert [tuple(grid.shape) for grid in seen] == [(9, 9, 9, 3), (17, 17, 17, 3)]
        common = np.array(seen[0])[2:7, 2:7, 2:7]  # -8, -4, 0, 4, 8
        np.testing.assert_allclose(common, np.array(seen[1])[::4, ::4, ::4], atol=1e-4)


@pytest.mark.parametrize("flipped", itertools.product((1, -1), repeat=3))
def test_a_cube_is_mirrored_along_every_axis_by_itself(flipped):
    landed = [moved(Augmentation(flips=True), seed) for seed in seeds(60)]
    assert any(np.array_equal(after, flipped * before) for before, after in landed)


def test_scaling_is_one_factor_about_the_centre():
    factors = []
    for seed in seeds(50):
        before, after = moved(Augmentation(scaling=0.5), seed, spacing=(2.7, 0.7, 0.9))
        factors.append(before[0, 0, 0, 0] / after[0, 0, 0, 0])
        np.testing.assert_allclose(after * factors[-1], before, rtol=1e-5)
    assert 1 / 1.5 <= min(factors) < 0.75 and 1.35 < max(factors) <= 1.5001


# A patch anywhere.


def a_volume():
    label = np.random.default_rng(0).integers(0, 3, (14, 15, 16, 1)).astype(np.uint8)
    volume = {"image": noise(14, 15, 16, 1), "context": noise(14, 15, 16, 1, seed=1)}
    return held(volume | {"label": label, "spacing": np.array([1.0, 0.5, 2.0], np.float32)})


def test_a_patch_that_is_not_deformed_is_cut():
    case = a_volume()
    volumes = {name: case[name] for name in ("image", "context", "label")}
    for seed in seeds(5):
        patch = subvolumes.patch(case, seed, (8, 8, 8), STILL)
        plain = pipeline.random_patch(volumes, seed, (8, 8, 8))
        assert patch.keys() == plain.keys()
        for name, tensor in plain.items():
            np.testing.assert_array_equal(patch[name], tensor)


def test_a_deformed_patch_shows_what_lies_around_it_and_beyond_the_volume_its_edge():
    case = a_volume()
    places = np.stack(np.meshgrid(*map(np.arange, (14, 15, 16)), indexing="ij"), axis=-1)
    case |= held({"image": places.astype(np.float32), "label": np.ones((14, 15, 16, 1), np.uint8)})
    farthest, beyond = [], 0
    for seed in seeds(10):
        patch = subvolumes.patch(case, seed, (8, 8, 8), Augmentation(rotation=45.0, shift=3))
        again = subvolumes.patch(case, seed, (8, 8, 8), Augmentation(rotation=45.0, shift=3))
        assert all(np.array_equal(patch[name], again[name]) for name in patch)
        assert patch["image"].shape == (8, 8, 8, 3) and patch["label"].dtype == tf.uint8
        place = np.array(patch["image"])
        assert np.all(place >= 0) and np.all(place <= [13, 14, 15])
        ends = np.any((place == 0) | (place == [13, 14, 15]), axis=-1)
        assert np.all(ends[np.array(patch["label"])[..., 0] == 0])
        beyond += np.sum(np.array(patch["label"]) == 0)
        farthest.append(np.ptp(place.reshape(-1, 3), axis=0).max())
    assert max(farthest) > 8 and beyond > 0


def test_levels_are_changed_alike_but_for_their_noise():
    """Both see an even image, and the box of their erased object at one place."""
    label = np.zeros((8, 8, 8, 1), np.uint8)
    label[2:6, 2:6, 2:6] = 1
    ones = tf.ones((8, 8, 8, 1))
    sample = {"image_1": ones, "image_2": ones, "label": tf.constant(label)}
    edges = {"image_1": 2.0, "image_2": 1.0}
    changes = {"intensity_jitter": 0.5, "erase_probability": 1.0}
    for seed in seeds(10):
        shown = augment.shown(sample, augment.own_seeds(seed), Augmentation(**changes), edges)
        coarse, fine = (np.array(shown[name])[..., 0] for name in edges)
        assert coarse.max() == fine.max() != 1
        for axis in range(3):
            others = tuple(a for a in range(3) if a != axis)
            middles = [np.flatnonzero((x == 0).any(axis=others)) - 3.5 for x in (coarse, fine)]
            if all(map(len, middles)):
                assert abs(2 * middles[0].mean() - middles[1].mean()) <= 1.5
    noisy = augment.shown(sample, augment.own_seeds(seed), Augmentation(noise=0.5), edges)
    deviations = [float(tf.math.reduce_std(noisy[name])) for name in edges]
    assert deviations[0] == pytest.approx(deviations[1], rel=0.1)
    assert np.abs(noisy["image_1"] - noisy["image_2"]).max() > 0.1 * deviations[0]


# Resampling.


@pytest.mark.parametrize(
    "kind, continued, order, mode",
    [
        ("linear", {}, 1, "nearest"),
        ("nearest", {}, 0, "grid-constant"),
        ("nearest", {"continued": True}, 0, "nearest"),
    ],
)
def test_sampling_equals_scipy(kind, continued, order, mode):
    volume, rng = 5 + noise(5, 6, 7, 2), np.random.default_rng(1)
    volume = volume if kind == "linear" else rng.integers(1, 255, volume.shape).astype(np.uint8)
    index = rng.uniform(-3, 10, (4, 300, 3)).astype(np.float32)
    sampled = getattr(augment, f"sample_{kind}")
    answer = sampled(Held(tf.constant(volume)), tf.constant(index), **continued)
    assert answer.shape == (4, 300, 2) and answer.dtype == volume.dtype
    for channel in range(2):
        expected = ndimage.map_coordinates(
            volume[..., channel],
            np.moveaxis(index, -1, 0),
            order=order,
            mode=mode,
            cval=0,
        )
        np.testing.assert_allclose(answer[..., channel], expected, atol=1e-4)


def test_sampling_by_hand():
    line = Held(tf.reshape(tf.constant([8.0, 4.0, 6.0]), (1, 1, 3, 1)))
    index = np.zeros((8, 3), np.float32)
    index[:, 2] = [-1, -0.5, 0, 0.25, 1, 1.5, 2.5, 3]
    np.testing.assert_allclose(
        np.ravel(augment.sample_linear(line, index)), [8, 8, 8, 7, 4, 5, 6, 6]
    )
    index[:, 2] = [-1, -0.51, -0.49, 0.49, 0.51, 2.49, 2.51, 1e6]
    np.testing.assert_array_equal(
        np.ravel(augment.sample_nearest(line, index)), [0, 0, 8, 8, 4, 6, 0, 0]
    )
    np.testing.assert_array_equal(
        np.ravel(augment.sample_nearest(line, index, continued=True)), [8, 8, 8, 8, 4, 6, 6, 6]
    )
