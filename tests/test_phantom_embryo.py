import json

import numpy as np
import pytest
from helpers import dice
from scipy import ndimage

from tf_autoctx.data import datasets, images, phantoms
from tf_autoctx.data.phantoms import embryos, pieces
from tf_autoctx.errors import UserError

VIEW = np.array((9.0, 11.0, 9.0))  # mm
TINY, SMALL = ((36, 44, 36), 0.25), ((60, 73, 60), 0.15)  # voxels, mm
SEEDS = range(3)
SCENES = 24


@pytest.fixture(scope="module")
def cases():
    return [phantoms.embryo(*SMALL, seed) for seed in SEEDS]


@pytest.fixture(scope="module")
def scenes():
    return [embryos._draw(np.random.default_rng(seed), VIEW) for seed in range(SCENES)]


def positions(size, spacing):
    return pieces.grid(
        *((np.arange(n, dtype=np.float32) + 0.5) * np.float32(spacing) for n in size)
    )


def scan(scene, size, spacing):
    return embryos._scan(np.random.default_rng(0), scene, size, spacing)


def best_threshold_dice(image, mask):
    """Of all voxels darker than the one threshold that suits the truth."""
    return max(
        dice(image <= threshold, mask)
        for threshold in np.linspace(image.min(), image.max(), 66)[1:-1]
    )


def test_types_range_and_spacing():
    image, label, spacing = phantoms.embryo(*TINY, seed=0)
    assert (
        image.dtype == np.float32
        and label.dtype == np.uint8
        and image.shape == label.shape == TINY[0]
    )
    assert image.min() >= 0 and 200 < image.max() <= 255
    assert spacing == (0.25, 0.25, 0.25) and np.unique(label).tolist() == [0, 1, 2]
    assert phantoms.EMBRYO_LABELS == ("body", "ventricle")


def test_seed_decides_everything():
    first, again, other = (phantoms.embryo(*TINY, seed) for seed in ((3, 1), (3, 1), (3, 2)))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert dice(first[1] > 0, other[1] > 0) < 0.9
    assert np.abs(first[0] - other[0]).mean() > 10


@pytest.mark.parametrize("seed", SEEDS)
def test_shares_of_the_volume_are_the_papers(cases, seed):
    label = cases[seed][1]
    assert 0.05 < (label > 0).mean() < 0.18  # around 10 %
    assert 0.0015 < (label == 2).mean() < 0.0045  # under 0.5 %


@pytest.mark.parametrize("seed", SEEDS)
def test_truth_is_one_whole_embryo_around_one_ventricle(cases, seed):
    label = cases[seed][1]
    body, ventricle = label > 0, label == 2
    everywhere = np.ones((3, 3, 3))
    assert ndimage.label(body)[1] == 1 and ndimage.label(ventricle, everywhere)[1] == 1
    assert label[ndimage.binary_dilation(ventricle)].min() > 0  # nowhere next to the background
    assert body.sum() == body[1:-1, 1:-1, 1:-1].sum()  # not cut by the field of view
    assert ndimage.distance_transform_edt(ventricle).max() * SMALL[1] < 0.6  # thin, in mm


@pytest.mark.parametrize("seed", SEEDS)
def test_ventricle_is_in_the_head(cases, seed):
    pose = embryos._draw(np.random.default_rng(seed), np.multiply(*SMALL)).first
    inside = positions(*SMALL)[:, cases[seed][1] == 2]
    head = pose.embryo.in_head(pose.distances(inside)[0])
    assert np.minimum(*(embryos.ellipsoid(head, *part) for part in embryos.SKULL)).max() < 0


def test_embryo_fits_into_a_flat_view():
    for seed in range(3):
        label = phantoms.embryo((18, 40, 42), 0.25, seed)[1] > 0
        assert 0.05 < label.mean() < 0.18 and label.sum() == label[1:-1, 1:-1, 1:-1].sum()


@pytest.mark.parametrize("seed", SEEDS)
def test_ventricle_is_as_dark_as_the_fluid_around_the_body(cases, seed):
    image, label, _ = cases[seed]
    pose = embryos._draw(np.random.default_rng(seed), np.multiply(*SMALL)).first
    points = positions(*SMALL)
    fluid = image[(pose.sac(points) < -0.6) & (pose.distances(points)[1] > 0.4)]
    ventricle = image[ndimage.binary_erosion(label == 2)]
    assert ventricle.mean() < image[label == 1].mean() - 30
    assert (
        abs(np.median(ventricle) - np.median(fluid))
        < 40
        < np.median(image[label == 1]) - np.median(fluid)
    )
    assert best_threshold_dice(ndimage.median_filter(image, 3), label == 2) < 0.3


def test_same_anatomy_at_any_spacing():
    fine, coarse = (
        phantoms.embryo((64, 80, 64), 0.14, seed=5),
        phantoms.embryo((32, 40, 32), 0.28, seed=5),
    )
    again = coarse[1].repeat(2, 0).repeat(2, 1).repeat(2, 2)
    assert dice(fine[1] > 0, again > 0) > 0.9 and dice(fine[1] == 2, again == 2) > 0.6
    halves = fine[0].reshape(32, 2, 40, 2, 32, 2).mean((1, 3, 5))
    assert np.corrcoef(halves.ravel(), coarse[0].ravel())[0, 1] > 0.7


def test_some_mothers_breathe_and_some_embryos_have_company(scenes):
    breathing = [len(scene.jumps) > 0 for scene in scenes]
    company = [scene.second is not None for scene in scenes]
    assert 0.1 * SCENES < sum(breathing) < 0.55 * SCENES
    assert 0.1 * SCENES < sum(company) < 0.5 * SCENES
    for scene in scenes:
        assert (np.abs(scene.jumps[:, 2:]) <= 0.35).all() and (
            np.diff(scene.jumps[:, :2]) <= 0.6
        ).all()


def test_motion_shifts_slices_of_the_image_and_not_of_the_truth(scenes):
    size, spacing = TINY
    still = scenes[0]._replace(second=None, jumps=np.empty((0, 4)))
    breathing = still._replace(jumps=np.array(((5.0, 6.5, 2 * spacing, -3 * spacing),)))
    (before, label), (after, same_label) = scan(still, *TINY), scan(breathing, *TINY)
    np.testing.assert_array_equal(label, same_label)
    moved = np.abs(after - before).mean((0, 2)) > 3
    at = (np.arange(size[1]) + 0.5) * spacing
    assert moved[(at > 5) & (at < 6.5)].all() and not moved[(at < 4) | (at > 7.5)].any()

    slab = np.s_[4:-4, 22:24, 4:-4]  # well inside
    smooth = [ndimage.gaussian_filter(image, 1) for image in (before, after)]
    errors = {
        (dz, dx): np.abs(smooth[1][slab] - np.roll(smooth[0], (-dz, -dx), (0, 2))[slab]).mean()
        for dz in range(-4, 5)
        for dx in range(-4, 5)
    }
    assert min(errors, key=errors.get) == (2, -3)


def test_second_embryo_is_partial_seen_and_without_a_label(scenes):
    scene = next(scene for scene in scenes if scene.second)._replace(jumps=np.empty((0, 4)))
    (image, label), (alone, same_label) = (
        scan(scene, *TINY),
        scan(scene._replace(second=None), *TINY),
    )
    np.testing.assert_array_equal(label, same_label)
    second = scene.second.distances(positions(*TINY))[1] < 0
    assert embryos.SECOND_SHARE[0] / 2 < second.mean() < 2 * embryos.SECOND_SHARE[1]
    assert not (second & (label > 0)).any()
    inner = second[1:-1, 1:-1, 1:-1].sum()
    assert inner < second.sum()  # cut by a face
    assert np.abs(image - alone)[second].mean() > 2 * np.abs(image - alone)[label > 0].mean()


def test_folder_holds_cases_of_various_sizes(tmp_path, monkeypatch):
    most = (36, 44, 30)
    folder = phantoms.write_embryos(tmp_path / "embryos", most, 0.25, (4, 1), seed=4)
    task = json.loads((folder / "dataset.json").read_text())
    assert task["labels"] == {"0": "background", "1": "body", "2": "ventricle"} and task[
        "modality"
    ] == {"0": "US"}
    assert task["test"] == ["./imagesTs/embryo_004.nii.gz"]
    dataset = datasets.load(folder, seed=0)
    assert dataset.labels == {0: "background", 1: "body", 2: "ventricle"}
    cases = (*dataset.train, *dataset.validation, *dataset.test)
    assert len(cases) == 5

    shapes = set()
    for case in cases:
        image, label = datasets.read_case(case, labels=dataset.labels, merge=False)
        assert (
            image.spacing == (0.25, 0.25, 0.25)
            and image.image.GetPixelIDTypeAsString() == "8-bit unsigned integer"
        )
        assert np.unique(label).tolist() == [0, 1, 2]
        shapes.add(label.shape)
    assert len(shapes) == 5
    lowest = (150 / 210, 161 / 281, 81 / 282)
    assert all(
        low * n <= m <= n for shape in shapes for low, n, m in zip(lowest, most, shape, strict=True)
    )
    read = images.read(folder / "imagesTs" / "embryo_004.nii.gz").array
    expected = phantoms.embryo(read.shape, 0.25, (4, 4))[0]  # the test case's own seed
    np.testing.assert_array_equal(read, np.rint(expected))

    monkeypatch.setattr(phantoms, "embryo", lambda *_: pytest.fail("made again"))
    assert phantoms.write_embryos(folder, most, 0.25, (4, 1), seed=4) == folder
    with pytest.raises(UserError, match=r"embryos: .*'spacing': 0.25.*'spacing': 0.5"):
        phantoms.write_embryos(folder, most, 0.5, (4, 1), seed=4)
