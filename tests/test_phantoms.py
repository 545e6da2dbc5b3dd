import json

import numpy as np
import pytest
from helpers import dice, shadowed
from scipy import ndimage

from tf_autoctx.data import datasets, images, phantoms
from tf_autoctx.errors import UserError

SMALL = (49, 32, 55)  # 3 mm voxels


def millilitres(label, spacing):
    return label.sum() * np.prod(spacing) / 1000


def best_threshold_dice(image, head):
    """The classical way at its best, with the threshold that suits the truth.

    Median filter, threshold, largest piece, holes filled.
    """
    smooth = ndimage.median_filter(image, 3)
    best = 0
    for threshold in np.linspace(smooth.min(), smooth.max(), 66)[1:-1]:
        for mask in (smooth > threshold, smooth <= threshold):
            pieces, _ = ndimage.label(mask)
            largest = pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:])
            best = max(best, dice(ndimage.binary_fill_holes(largest), head))
    return best


def test_ellipsoid_distance_is_in_mm_along_its_turned_axes():
    axes = np.array(
        ((0, 1, 0), (0, 0, 1), (1, 0, 0))
    )  # first radius along y, second along x, third along z
    points = np.array(((5, 5 + 12, 5), (5, 5, 5 + 18), (5 + 31, 5, 5), (5, 5, 5)), np.float32).T
    np.testing.assert_allclose(
        phantoms.ellipsoid(points, (5, 5, 5), (10, 20, 30), axes), (2, -2, 1, -10), atol=1e-4
    )


def test_speckle_is_rayleigh_and_wider_across_the_beam():
    echo = phantoms.speckle(
        np.random.default_rng(0), np.full((60, 60, 60), 3, np.float32), (1, 2, 3)
    )
    magnitude = np.abs(echo)[4:-4, 8:-8, 12:-12]
    assert np.sqrt((magnitude**2).mean()) == pytest.approx(3, rel=0.04)
    assert magnitude.mean() / magnitude.std() == pytest.approx(
        1.91, abs=0.05
    )  # Rayleigh: sqrt(pi / (4 - pi))
    along = np.corrcoef(magnitude[:-2].ravel(), magnitude[2:].ravel())[0, 1]
    across = np.corrcoef(magnitude[..., :-2].ravel(), magnitude[..., 2:].ravel())[0, 1]
    assert along < 0.3 < 0.6 < across


def test_smooth_field_is_one_function_at_any_size():
    fine, coarse = (
        phantoms.smooth_field(np.random.default_rng(3), shape)
        for shape in ((60, 90, 30), (20, 30, 10))
    )
    np.testing.assert_allclose(fine[1::3, 1::3, 1::3], coarse, atol=1e-5)
    assert fine.mean() == pytest.approx(0, abs=1e-4) and 0.5 < fine.std() < 2


def test_seed_decides_everything():
    first, again, other = (phantoms.fetal_head(SMALL, seed) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert dice(first[1] > 0, other[1] > 0) < 0.95
    assert np.abs(first[0] - other[0]).mean() > 5


@pytest.mark.parametrize("seed", range(6))
def test_truth_is_one_head_of_20_to_31_weeks(seed):
    image, label, spacing = phantoms.fetal_head(SMALL, seed)
    assert (
        image.dtype == np.float32
        and label.dtype == np.uint8
        and image.shape == label.shape == SMALL
    )
    assert image.min() == 0 and 200 < image.max() <= 255
    np.testing.assert_allclose(np.multiply(SMALL, spacing), (147.44, 98.04, 167.2))
    assert ndimage.label(label)[1] == 1
    assert 80 < millilitres(label, spacing) < 480
    assert label.sum() == label[1:-1, 1:-1, 1:-1].sum()  # not cut by the field of view


def test_size_changes_the_sampling_not_the_head():
    small, demo = phantoms.fetal_head(SMALL, 7), phantoms.fetal_head(seed=7)
    assert millilitres(*small[1:]) == pytest.approx(millilitres(*demo[1:]), rel=0.02)
    zoomed = ndimage.zoom(demo[0], np.divide(SMALL, demo[0].shape), order=1)
    assert np.corrcoef(zoomed.ravel(), small[0].ravel())[0, 1] > 0.8


@pytest.mark.parametrize("seed", range(4))
def test_no_single_threshold_finds_the_head(seed):
    image, label, _ = phantoms.fetal_head((65, 43, 73), seed)
    assert best_threshold_dice(image, label > 0) < 0.8


def test_baseline_finds_a_head_that_a_threshold_can_find():
    _, label, _ = phantoms.fetal_head(SMALL, 0)
    assert (
        best_threshold_dice(100.0 * label, label > 0) > 0.9
    )  # so its failure above is the phantom's doing


def test_shadow_hides_part_of_the_head_but_not_of_the_truth():
    hidden = []
    for seed in range(8):
        image, label, _ = phantoms.fetal_head(SMALL, seed)
        hidden.append((image[label > 0] < 25).mean())
    assert max(hidden) > 0.15 and max(hidden) < 0.7 and np.mean(hidden) > 0.05


def test_folder_is_a_decathlon_task(tmp_path):
    folder = phantoms.write_fetal_heads(tmp_path / "new" / "heads", SMALL, (2, 1), seed=4)
    task = json.loads((folder / "dataset.json").read_text())
    assert task["labels"] == {"0": "background", "1": "head"}
    assert [entry["image"] for entry in task["training"]] == [
        f"./imagesTr/head_00{n}.nii.gz" for n in (0, 1)
    ]
    assert task["test"] == ["./imagesTs/head_002.nii.gz"]
    heads = []
    for entry in (
        *task["training"],
        {"image": task["test"][0], "label": "./labelsTs/head_002.nii.gz"},
    ):
        image, label = images.read(folder / entry["image"]), images.read(folder / entry["label"])
        assert image.spacing == pytest.approx((3.00898, 3.06375, 3.04), abs=1e-4) == label.spacing
        heads.append((image.array, label.array))
    expected = phantoms.fetal_head(SMALL, (4, 2))  # the test case's own seed
    np.testing.assert_array_equal(heads[2][1], expected[1])
    assert np.abs(heads[2][0] - expected[0]).max() <= 0.5
    assert all(dice(heads[2][1] > 0, heads[n][1] > 0) < 0.95 for n in (0, 1))
    assert [path.name for path in folder.parent.iterdir()] == ["heads"]


def test_folder_is_reused_or_refused(tmp_path, monkeypatch):
    folder = phantoms.write_fetal_heads(tmp_path / "heads", SMALL, (1, 0), seed=4)
    monkeypatch.setattr(phantoms, "fetal_head", lambda *_: pytest.fail("made again"))
    assert phantoms.write_fetal_heads(folder, SMALL, (1, 0), seed=4) == folder
    with pytest.raises(UserError, match=r"heads: .*'seed': 4.*'seed': 5"):
        phantoms.write_fetal_heads(folder, SMALL, (1, 0), seed=5)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("precious")
    with pytest.raises(UserError, match="mine: holds other files"):
        phantoms.write_fetal_heads(tmp_path / "mine", SMALL, (1, 0), seed=4)
    assert (tmp_path / "mine" / "notes.txt").read_text() == "precious"


def test_interrupted_writing_leaves_nothing(tmp_path, monkeypatch):
    make, made = phantoms.fetal_head, []

    def interrupted(size, seed, direction):
        assert not (
            tmp_path / "heads"
        ).exists()  # so even a kill that cleans nothing up leaves no finished folder
        if made:
            raise KeyboardInterrupt
        made.append(seed)
        return make(size, seed)

    monkeypatch.setattr(phantoms, "fetal_head", interrupted)
    with pytest.raises(KeyboardInterrupt):
        phantoms.write_fetal_heads(tmp_path / "heads", SMALL, (2, 1), seed=4)
    assert made and not list(tmp_path.iterdir())
    monkeypatch.undo()
    assert (
        phantoms.write_fetal_heads(tmp_path / "heads", SMALL, (1, 0), seed=4) / "dataset.json"
    ).exists()


def test_scans_of_one_head_share_its_size_and_are_a_group(tmp_path):
    source = phantoms.write_fetal_heads(tmp_path / "heads", SMALL, (1, 2), seed=4, scans=3)
    assert phantoms.write_fetal_heads(tmp_path / "heads", SMALL, (1, 2), seed=4, scans=3) == source
    cases = datasets.load(source, seed=0, validation_fraction=0)
    assert [case.group for case in cases.train] == ["fetus 000"]
    assert [case.group for case in cases.test] == ["fetus 001"] * 3 + ["fetus 002"] * 3
    scans = [datasets.read_case(case) for case in cases.test]
    sizes = [millilitres(label, image.spacing) for image, label in scans]
    assert (
        np.ptp(sizes[:3]) < 0.02 * sizes[0]
        and np.ptp(sizes[3:]) < 0.02 * sizes[3]
        and sizes[0] != sizes[3]
    )
    for first, second in ((0, 1), (1, 2), (0, 2)):  # another pose, another picture
        assert dice(scans[first][1] > 0, scans[second][1] > 0) < 0.97
        assert np.abs(scans[first][0].array - scans[second][0].array.astype(float)).mean() > 5
    np.testing.assert_array_equal(scans[4][1], phantoms.fetal_head(SMALL, (4, 2), 1)[1])
    with pytest.raises(UserError, match="heads: holds phantoms"):
        phantoms.write_fetal_heads(tmp_path / "heads", SMALL, (1, 6), seed=4)


def test_no_phantom_shadows_a_module():
    assert not shadowed(phantoms)
