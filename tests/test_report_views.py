import numpy as np
import pytest

from tf_autoctx import errors
from tf_autoctx.report import views


def cube(at=5, shape=(20, 20, 24)):
    """A cube of 6 voxels that begins at z = 4, y = 5, x = `at`."""
    mask = np.zeros(shape, bool)
    mask[4:10, 5:11, at : at + 6] = True
    return mask


def segmented(label, **probability):
    """A method's segmentation, as `views.of` takes it."""
    return {"label": label} | ({"probability": probability} if probability else {})


def test_a_large_volume_is_reduced_and_keeps_its_extent():
    """Along z two voxels become one sample, with the label of the second.

    The mean of image pairs is a ramp.
    """
    voxels = np.broadcast_to(np.arange(160.0)[:, None, None], (160, 30, 120))
    odd = 3 * (np.arange(160) % 2)[:, None, None] * np.ones(voxels.shape, int)
    view = views.of(voxels, odd, {"ours": segmented(odd)}, (0.5, 1.0, 2.0), {3: "liver"})
    assert view["image"].shape == view["truth"].shape == (80, 30, 80) and view["labels"].shape == (
        1,
        80,
        30,
        80,
    )
    assert view["spacing"].tolist() == [1.0, 1.0, 3.0] and view["size"].tolist() == [160, 30, 120]
    assert np.all(view["truth"] == 1) and np.all(view["labels"] == 1)
    expected = np.clip(255 * (np.arange(80) - 0.4) / (79 - 0.8), 0, 255)  # between the percentiles
    np.testing.assert_allclose(view["image"][:, 0, 0], expected, atol=2)
    assert "probabilities" not in view


def test_an_image_is_one_slice():
    voxels = np.random.default_rng(0).normal(size=(500, 300))
    view = views.of(voxels, voxels > 0, {"ours": segmented(voxels > 1)}, None, {1: "head"})
    assert view["image"].shape == (1, 400, 300) and view["spacing"].tolist() == [1, 1.25, 1]
    np.testing.assert_array_equal(view["labels"][0, 0, 0], voxels[0] > 1)
    assert (view["image"].min(), view["image"].max()) == (0, 255)


def test_structures_are_counted_in_their_order():
    label = np.zeros((3, 4, 5), int)
    label[0], label[1], label[2] = 3, 1, 9
    view = views.of(label, label, {"ours": segmented(label)}, (1, 1, 1), {3: "liver", 1: "spleen"})
    assert view["truth"][:, 0, 0].tolist() == [1, 2, 0]
    assert view["structures"].tolist() == ["liver", "spleen"] and view["methods"].tolist() == [
        "ours"
    ]


def test_probabilities_may_lie_on_a_coarser_grid():
    """A step on half the grid: samples lie a quarter of a coarse voxel from its centre."""
    label = np.zeros((8, 8, 8), int)
    step = np.zeros((4, 4, 4), np.float32)
    step[2:] = 1
    predictions = {
        "a": segmented(label, liver=step, spleen=1 - step),
        "b": segmented(label, liver=step, spleen=step),
    }
    view = views.of(label, label, predictions, (1, 1, 1), {1: "spleen", 2: "liver"})
    assert view["probabilities"].shape == (2, 2, 8, 8, 8)
    assert view["probabilities"][0, 1, :, 4, 4].tolist() == [0, 0, 0, 64, 191, 255, 255, 255]
    np.testing.assert_allclose(view["probabilities"][0].sum(axis=0, dtype=int), 255, atol=1)
    del predictions["b"]["probability"]
    assert "probabilities" not in views.of(
        label, label, predictions, (1, 1, 1), {1: "spleen", 2: "liver"}
    )


def test_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"\(20, 20, 24\).*\(20, 20, 25\)"):
        views.of(
            cube(), cube(), {"ours": segmented(cube(shape=(20, 20, 25)))}, (1, 1, 1), {1: "head"}
        )


def test_read_is_the_inverse_of_write(tmp_path):
    view = views.of(
        1.0 * cube(),
        cube(),
        {"level 1": segmented(cube(7), head=1.0 * cube())},
        (1, 1, 2),
        {1: "head"},
    )
    views.write(tmp_path / "views" / "a.npz", view)
    again = views.read(tmp_path / "views" / "a.npz")
    assert list(again) == list(view)
    for name in view:
        np.testing.assert_array_equal(again[name], view[name])


@pytest.mark.parametrize("damage", [None, b"no view", b"", "other arrays", "half"])
def test_something_else_is_one_sentence(damage, tmp_path):
    path = tmp_path / "a.npz"
    if damage == "other arrays":
        np.savez(path, image=np.zeros((2, 2, 2)))
    elif damage == "half":
        views.write(
            path,
            views.of(1.0 * cube(), cube(), {"ours": segmented(cube())}, (1, 1, 1), {1: "head"}),
        )
        path.write_bytes(path.read_bytes()[:-200])
    elif damage is not None:
        path.write_bytes(damage)
    with pytest.raises(errors.UserError, match=r"a\.npz"):
        views.read(path)


def test_the_surface_lies_between_voxels():
    surface = views.surface(cube(), cube(), (2.0, 1.0, 0.5))
    low, high = surface["vertices"].min(axis=0), surface["vertices"].max(axis=0)
    assert low.tolist() == [8, 5, 2.5] and high.tolist() == [
        20,
        11,
        5.5,
    ]  # mm from the corner of the volume
    assert np.all(surface["distances"] == 0)
    assert set(surface["faces"].ravel()) == set(range(len(surface["vertices"])))


def test_distances_of_a_shifted_cube():
    """Shifted by one voxel of 1.5 mm: 1.5 mm in front and in the middle of the back.

    It is 0 where the sides overlap.
    """
    surface = views.surface(cube(at=6), cube(at=5), (1.0, 1.0, 1.5))
    x, distances = surface["vertices"][:, 2], surface["distances"]
    assert distances.max() == 1.5 and np.all(distances[x == 12 * 1.5] == 1.5)
    middle = (x == 6 * 1.5) & np.all(np.abs(surface["vertices"][:, :2] - (7, 8)) < 1, axis=1)
    assert middle.sum() == 4 and np.all(distances[middle] == 1.5)
    sides = (x > 7 * 1.5) & (x < 10 * 1.5)
    assert sides.any() and np.all(distances[sides] == 0)


def test_a_large_surface_is_simplified_in_place():
    """A ball of radius 30 voxels: few vertices, which stay in place and know their distance."""
    z, y, x = np.mgrid[:80, :80, :80] - 39.5
    ball = z**2 + y**2 + x**2 < 30**2
    surface = views.surface(ball, ball, (1, 1, 1))
    assert views.VERTICES / 3 < len(surface["vertices"]) <= views.VERTICES
    assert np.all(surface["distances"] == 0)
    radii = np.linalg.norm(surface["vertices"] - 40, axis=1)
    assert radii.mean() == pytest.approx(30, abs=0.3) and np.ptp(radii) < 2
    assert surface["faces"].max() == len(surface["vertices"]) - 1
    assert all(len(set(face)) == 3 for face in surface["faces"].tolist())
    noise = np.random.default_rng(0).random((40, 40, 40)) < 0.5
    assert len(views.surface(noise, ball[:40, :40, :40], (1, 1, 1))["vertices"]) <= views.VERTICES


def test_an_empty_mask_has_no_surface_and_without_truth_there_is_no_distance():
    assert views.surface(0 * cube() > 0, cube(), (1, 1, 1)) is None
    assert np.isnan(views.surface(cube(), 0 * cube() > 0, (1, 1, 1))["distances"]).all()
