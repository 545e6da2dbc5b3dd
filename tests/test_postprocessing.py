import numpy as np

from tf_autoctx.postprocessing import postprocess


def label(text):
    return np.array([[int(digit) for digit in line] for line in text.split()], np.uint8)


PARTS = label("1100200 1100020 0010000 0000111 2220111")  # diagonal neighbours are apart


def test_nothing_by_default():
    found = postprocess(PARTS)
    np.testing.assert_array_equal(found, PARTS)
    assert found is not PARTS


def test_the_largest_component_of_every_structure():
    found = postprocess(PARTS, largest_component=True)
    np.testing.assert_array_equal(found, label("0000000 0000000 0000000 0000111 2220111"))
    assert found.dtype == np.uint8


def test_components_of_a_volume():
    """Three voxels of 1 above join the four in the corner: seven against six."""
    above = label("1110000 0000000 0000000 0000000 0000000")
    found = postprocess(np.stack([above, PARTS]), largest_component=True)
    np.testing.assert_array_equal(found, [above, label("1100000 1100000 0000000 0000000 2220000")])


def test_holes():
    """Both holes of the ring of 1 are filled, also where a corner alone closes it.

    Open water at the border is not.
    """
    before = label("0111110 1000101 1010111 1111110 0000010 0001100")
    expected = label("0111110 1111111 1111111 1111110 0000010 0001100")
    np.testing.assert_array_equal(postprocess(before, fill_holes=True), expected)


def test_the_inner_structure_gets_the_hole():
    """A ring of 1 around a ring of 2, in either numbering: its own hole, and what lies between."""
    before = label("1111111 1000001 1022201 1020201 1022201 1000001 1111111")
    expected = label("1111111 1111111 1122211 1122211 1122211 1111111 1111111")
    np.testing.assert_array_equal(postprocess(before, fill_holes=True), expected)
    swap = np.array([0, 2, 1], np.uint8)
    np.testing.assert_array_equal(postprocess(swap[before], fill_holes=True), swap[expected])


def test_a_cavity_of_a_volume_is_a_hole_and_a_tunnel_is_none():
    ball = np.ones((5, 5, 5), np.int16)
    ball[2, 2, 2] = 0
    tunnel = ball.copy()
    tunnel[:, 2, 2] = 0
    assert postprocess(7 * ball, fill_holes=True).sum() == 7 * 125
    np.testing.assert_array_equal(postprocess(tunnel, fill_holes=True), tunnel)


def test_a_part_that_goes_leaves_a_hole_to_fill():
    before = label("1111000 1021000 1111000 0000022")
    expected = label("1111000 1111000 1111000 0000022")
    np.testing.assert_array_equal(
        postprocess(before, largest_component=True, fill_holes=True), expected
    )
