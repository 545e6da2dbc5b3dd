import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from tf_autoctx import biometry, metrics


def ellipse(semi_axes, degrees, spacing, shape=(220, 200)):
    """Mask (y, x) of an ellipse in the middle, its first axis turned from x; lengths in mm."""
    y, x = ((np.arange(n) - n / 2 + 0.3) * mm for n, mm in zip(shape, spacing))
    angle, (a, b) = np.radians(degrees), semi_axes
    along, across = (
        x * np.cos(angle) + y[:, None] * np.sin(angle),
        y[:, None] * np.cos(angle) - x * np.sin(angle),
    )
    return (along / a) ** 2 + (across / b) ** 2 <= 1


# Circumferences by Gauss and Kummer's series, pi (a + b) (1 + h / 4 + h^2 / 64 + ...),
# h = ((a - b) / (a + b))^2.
@pytest.mark.parametrize("spacing", [(0.5, 0.5), (0.4, 0.7)])
@pytest.mark.parametrize("degrees", [0, 30, 90, 137])
@pytest.mark.parametrize(
    "semi_axes, circumference", [((40, 30), 221.035), ((30, 30), 188.496), ((31, 20), 162.09)]
)
def test_an_ellipse_of_known_axes(semi_axes, circumference, degrees, spacing):
    found = biometry.head(ellipse(semi_axes, degrees, spacing), spacing)
    # A boundary half a pixel off on either side, as by the centres of its pixels, would be 0.4 to
    # 0.7 mm.
    assert found["OFD_mm"] == pytest.approx(2 * semi_axes[0], abs=0.1)
    assert found["BPD_mm"] == pytest.approx(2 * semi_axes[1], abs=0.1)
    assert found["HC_mm"] == pytest.approx(circumference, abs=0.2)


def test_the_largest_section_of_an_ellipsoid():
    """A head of 50 x 70 mm across z, off the centre along it: the largest section is central."""
    spacing = (1.5, 0.7, 0.5)
    z, y, x = (np.arange(n) * mm for n, mm in zip((50, 130, 150), spacing))
    turned = Rotation.from_euler("z", 25, degrees=True).apply
    points = np.stack(np.meshgrid(x - 37, y - 45, z - 30, indexing="ij"), axis=-1).reshape(-1, 3)
    mask = (
        (((turned(points) / (35, 25, 28)) ** 2).sum(axis=1) <= 1).reshape(150, 130, 50).transpose()
    )
    found = biometry.head(mask, spacing)
    assert found["OFD_mm"] == pytest.approx(70, abs=0.2) and found["BPD_mm"] == pytest.approx(
        50, abs=0.2
    )
    assert found["HC_mm"] == pytest.approx(189.8, abs=0.4)  # pi 60 (1 + h / 4), h = 1 / 36


def test_the_outer_boundary_alone_is_measured():
    whole = ellipse((40, 30), 30, (0.5, 0.5))
    hollow = metrics.surface(whole)  # a wall of one voxel
    speck = whole.copy()
    speck[2:5, 2:5] = True
    assert (
        biometry.head(hollow, (0.5, 0.5))
        == biometry.head(whole, (0.5, 0.5))
        == biometry.head(speck, (0.5, 0.5))
    )


def test_a_head_that_the_image_cuts_off_has_a_boundary_there():
    found = biometry.head(np.ones((40, 40)), (1.0, 1.0))
    assert found["BPD_mm"] == pytest.approx(found["OFD_mm"]) and 40 < found["BPD_mm"] < 40 * 2**0.5


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "section", [np.zeros((9, 9)), np.eye(9), np.eye(9)[:1], np.eye(9)[4:5].repeat(2, axis=0)]
)
def test_what_has_no_ellipse_is_nan(section):
    for mask, spacing in ((section, (1, 1)), (np.pad(section[None], 2), (2, 1, 1))):
        assert all(np.isnan(value) for value in biometry.head(mask, spacing).values())


@pytest.mark.filterwarnings("error")
def test_columns_stand_beside_the_truth():
    spacing = (0.5, 0.5)
    found = biometry.compare(ellipse((42, 30), 0, spacing), ellipse((40, 31), 60, spacing), spacing)
    assert list(found) == [
        "BPD_mm", "truth_BPD_mm", "BPD_error_mm", "OFD_mm", "truth_OFD_mm", "OFD_error_mm",
        "HC_mm", "truth_HC_mm", "HC_error_mm",
    ]  # fmt: skip
    assert found["OFD_mm"] == pytest.approx(84, abs=0.1) and found["truth_OFD_mm"] == pytest.approx(
        80, abs=0.1
    )
    assert found["OFD_error_mm"] == pytest.approx(4, abs=0.2) and found[
        "BPD_error_mm"
    ] == pytest.approx(2, abs=0.2)
    missed = biometry.compare(np.zeros((220, 200)), ellipse((40, 30), 0, spacing), spacing)
    assert np.isnan(missed["HC_error_mm"]) and missed["truth_HC_mm"] == pytest.approx(
        221.035, abs=0.2
    )


@pytest.mark.parametrize("shape, spacing", [((9,), (1,)), ((9, 9), (1, 1, 1)), ((9, 9, 9), (1, 1))])
def test_a_spacing_that_does_not_fit_is_refused(shape, spacing):
    with pytest.raises(ValueError, match="same"):
        biometry.head(np.ones(shape), spacing)
