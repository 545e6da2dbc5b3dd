"""The mean over networks and mirror images, and its uncertainty, by hand."""

import helpers
import numpy as np
import pytest
import tensorflow as tf

from tf_autoctx.systems.shared import averaging


def sums(image):
    """Sums of all voxels up to here along each axis: no two mirror images have the same."""
    return {"a": tf.cumsum(image, axis=1), "b": tf.cumsum(image, axis=2)[..., :1]}


def line(*values):
    """(1, 1, x, 1)"""
    return np.array(values, np.float32)[None, None, :, None]


def test_the_mean_of_several_estimates():
    image = helpers.noise(2, 3, 4, 1)
    of_three = averaging.mean([sums, lambda x: sums(2 * x), lambda x: sums(-6 * x)], image)
    for name, x in sums(image).items():
        np.testing.assert_allclose(of_three[name], -x, atol=1e-5)
    # One alone stays as it is, to the last bit.
    for name, x in averaging.mean([sums], image).items():
        np.testing.assert_array_equal(x, sums(image)[name])


def test_the_mean_of_an_image_and_its_mirror_images_by_hand():
    # [1, 3, 6, 10] and, of 4, 3, 2, 1, [4, 7, 9, 10] mirrored back
    mean = averaging.mean([sums], line(1, 2, 3, 4), [1])
    np.testing.assert_allclose(mean["b"], line(5.5, 6, 6.5, 7))
    np.testing.assert_allclose(mean["a"], line(1, 2, 3, 4))


@pytest.mark.parametrize("mirrors", [(0,), (1, 2), (0, 1, 2)])
@pytest.mark.parametrize("known", [True, False])
def test_every_combination_of_axes_is_mirrored(mirrors, known):
    """In a graph, of a size that it knows or not, on another grid than the image's."""

    def coarse(image):
        return {"a": tf.cumsum(tf.cumsum(image[:, ::2, ::2, ::2], axis=1), axis=3)}

    image = helpers.noise(2, 4, 6, 2, 1)
    expected, number = 0, 0
    for which in np.ndindex(*(2,) * len(mirrors)):
        axes = [axis + 1 for axis, is_turned in zip(mirrors, which) if is_turned]
        expected = expected + np.flip(coarse(np.flip(image, axes))["a"].numpy(), axes)
        number += 1
    spec = tf.TensorSpec(image.shape if known else [None] * 4 + [1])
    graph = tf.function(
        lambda x: averaging.mean([coarse, coarse], x, mirrors), [spec], autograph=False
    )
    np.testing.assert_allclose(graph(image)["a"], expected / number, rtol=1e-4, atol=1e-5)
    assert number == 2 ** len(mirrors)


def test_a_graph_holds_the_networks_once_for_all_mirror_images():
    def estimate(image):
        return {"a": tf.math.lgamma(image)}

    graph = tf.function(
        lambda x: averaging.mean([estimate], x, [0, 1]),
        [tf.TensorSpec((None, None, None, 1))],
        autograph=False,
    ).get_concrete_function()
    definition = graph.graph.as_graph_def()
    nodes = [*definition.node, *(n for f in definition.library.function for n in f.node_def)]
    assert sum(node.op == "Lgamma" for node in nodes) == 1


def test_estimates_are_made_one_after_the_other():
    """TensorFlow runs whatever does not wait at once, in the memory of all."""

    def first(image):
        return {"a": tf.cos(image)}

    def second(image):
        return {"a": tf.sin(image)}

    with tf.Graph().as_default() as graph:
        averaging.mean([first, second], tf.ones((1, 2, 2, 1)))
    (late,) = (op for op in graph.get_operations() if op.type == "Sin")
    before, known = [late], set()
    while before:
        op = before.pop()
        known.add(op.type)
        before += [*(x.op for x in op.inputs), *op.control_inputs]
    assert "Cos" in known


@pytest.mark.parametrize(
    "probability, structures, expected",
    [
        ([0.5], 1, 1),
        ([0], 1, 0),
        ([1], 1, 0),
        ([0.25], 1, 0.25 * 2 + 0.75 * np.log2(4 / 3)),
        ([0.5, 0.5], 1, 1),  # with a background
        ([0.25, 0.25, 0.25, 0.25], 3, 1),
        ([0.5, 0, 0.5, 0], 3, 0.5),
        ([0, 0, 1, 0], 3, 0),
        # Each structure is there or not.
        ([0.5, 0], 2, 1),
        ([1, 1], 2, 0),
        ([0, 0.25], 2, 0.25 * 2 + 0.75 * np.log2(4 / 3)),
        # Beyond 0 and 1 by rounding.
        ([1 + 1e-6], 1, 0),
        ([-1e-6], 1, 0),
    ],
)
def test_uncertainty_by_hand(probability, structures, expected):
    voxels = np.tile(np.array(probability, np.float32), (1, 2, 3, 1))
    answer = averaging.uncertainty(voxels, structures)
    assert answer.shape == (1, 2, 3, 1) and answer.dtype == "float32"
    np.testing.assert_allclose(answer, expected, atol=1e-4)
    assert np.min(answer) >= 0 and np.max(answer) <= 1
