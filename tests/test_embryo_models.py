import helpers
import keras
import numpy as np
import pytest
import running
import tensorflow as tf
from helpers import in_order, noise
from scipy import ndimage, special

from tf_autoctx import export, losses
from tf_autoctx.models import layers
from tf_autoctx.models.embryo import embryo
from tf_autoctx.models.loc_con import BoxCorner, Crop, ResizeLike, ResizeToCube, Uncrop
from tf_autoctx.models.options import VNetOptions
from tf_autoctx.models.vnet import vnet
from tf_autoctx.training.loop import FusedAdam


def randomize(model):
    return helpers.randomize(model, low=0.1)


# VNet.


def test_parameters_of_the_papers_width():
    # A convolution comes with a scale, shift and slope of each channel.
    def conv(kernel, old, new):
        return kernel**3 * old * new + 3 * new

    image = conv(5, 1, 16) + 1 * 16 + 16  # and a 1x1x1 convolution to the width of the first stage
    down = [2 * conv(5, 32, 32), 3 * conv(5, 64, 64), 3 * conv(5, 128, 128), 3 * conv(5, 256, 256)]
    strided = [conv(2, 16, 32), conv(2, 32, 64), conv(2, 64, 128), conv(2, 128, 256)]
    deconvs = [conv(2, 256, 128), conv(2, 256, 64), conv(2, 128, 32), conv(2, 64, 16)]
    up = [3 * conv(5, 256, 256), 3 * conv(5, 128, 128), 2 * conv(5, 64, 64), conv(5, 32, 32)]
    by_hand = image + sum(down) + sum(strided) + sum(deconvs) + sum(up) + 32 * 3 + 3
    model = vnet((160, 160, 160, 1))
    assert model.count_params() == by_hand == 65_178_835
    assert model.output_shape == (None, 160, 160, 160, 3)


def bias(layer):
    """Of a convolution; one before a normalization has none."""
    return layer.bias.value if layer.use_bias else 0.0


SMALL = VNetOptions(base_filters=2, depth=4, kernel=3)


@pytest.fixture(scope="module")
def small():
    """A VNet of 2 filters, 4 resolutions, kernel 3, 3 input channels, random norms and slopes."""
    keras.utils.set_random_seed(0)
    return randomize(vnet((None, None, None, 3), 4, SMALL))


def written_out(model, x, without=()):
    """The VNet in bare TensorFlow ops with the weights of `model`, for sizes of multiples of 8.

    without: parts to leave out, of "residual 0" to "residual 6", "skip 0" to "skip 2" and "deconv
      0" to "deconv 2" in
    the order of the data.
    """

    convs, deconvs = in_order(model, "Conv3D"), in_order(model, "Conv3DTranspose")
    norms, slopes, stages = (
        in_order(model, "InstanceNormalization"),
        in_order(model, "PReLU"),
        iter(range(7)),
    )

    def part(name, x):
        return tf.zeros_like(x) if name in without else x

    def conv(x, kernel, stride=1):
        layer = next(convs)
        assert layer.kernel_size == (kernel,) * 3
        return tf.nn.conv3d(x, layer.kernel.value, [1, *[stride] * 3, 1], "SAME") + bias(layer)

    def normed(x):
        layer, (mean, variance) = next(norms), tf.nn.moments(x, [1, 2, 3], keepdims=True)
        return (x - mean) / tf.sqrt(variance + 1e-5) * layer.gamma.value + layer.beta.value

    def prelu(x):
        return tf.where(x > 0, x, x * next(slopes).alpha.value)

    def stage(x, convolutions):
        residual = conv(x, 1) if x.shape[-1] == 3 else x
        for _ in range(convolutions - 1):
            x = prelu(normed(conv(x, 3)))
        return prelu(normed(conv(x, 3)) + part(f"residual {next(stages)}", residual))

    def up(x):
        layer = next(deconvs)
        size = [x.shape[0], *(2 * n for n in x.shape[1:4]), layer.filters]
        x = tf.nn.conv3d_transpose(x, layer.kernel.value, size, [1, 2, 2, 2, 1], "SAME")
        return prelu(normed(x))

    skips = [stage(x, 1)]
    for convolutions in (2, 3, 3):
        skips.append(stage(prelu(normed(conv(skips[-1], 2, 2))), convolutions))
    x = skips.pop()
    for number, convolutions in enumerate((3, 2, 1)):
        x = tf.concat([part(f"deconv {number}", up(x)), part(f"skip {number}", skips.pop())], -1)
        x = stage(x, convolutions)
    x = conv(x, 1)
    assert not any(next(rest, None) for rest in (convs, deconvs, norms, slopes, stages))
    return x


def test_the_network_is_the_one_of_the_paper(small):
    x = noise(2, 8, 24, 16, 3)
    answer, expected = small(x), written_out(small, x)
    assert answer.shape == (2, 8, 24, 16, 4)
    np.testing.assert_allclose(answer, expected, atol=1e-4 * np.abs(expected).max())


PARTS = [
    f"{part} {n}"
    for part, count in (("residual", 7), ("skip", 3), ("deconv", 3))
    for n in range(count)
]


def test_every_skip_and_residual_changes_the_answer(small):
    x = noise(1, 16, 16, 16, 3)
    expected = np.array(small(x))
    for part in PARTS:
        changed = written_out(small, x, without=(part,))
        assert np.mean(np.abs(changed - expected)) > 0.01 * np.std(expected), part


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_every_input_channel_and_weight_changes_the_answer(channels):
    keras.utils.set_random_seed(0)
    model, x = (
        vnet((None, None, None, channels), options=VNetOptions(2, 3, 3)),
        noise(1, 8, 8, 12, channels),
    )
    x = tf.constant(x)
    weights = [weight for weight in model.trainable_weights if not weight.path.endswith("/bias")]
    with tf.GradientTape() as tape:
        tape.watch(x)
        total = tf.reduce_sum(tf.square(model(x)))
    *gradients, of_image = tape.gradient(total, [*(weight.value for weight in weights), x])
    for weight, gradient in zip(weights, gradients):
        pairs = np.abs(gradient).max(axis=tuple(range(max(len(gradient.shape) - 2, 0))))
        assert pairs.min() > 1e-6 * pairs.max() > 1e-9, weight.path
    assert np.abs(of_image).reshape(-1, channels).mean(axis=0).min() > 1e-4


@pytest.mark.parametrize("size", [(1, 1, 1), (9, 17, 7), (2, 8, 1)])
def test_any_size_works(small, size):
    x, missing = noise(2, *size, 3), [-n % 8 for n in size]
    answer = small(x)
    assert answer.shape == (2, *size, 4)
    padded = np.pad(x, [(0, 0), *((0, n) for n in missing), (0, 0)], mode="edge")
    expected = written_out(small, padded)[:, : size[0], : size[1], : size[2]]
    np.testing.assert_allclose(answer, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("normalization, independent", [("instance", True), ("batch", False)])
def test_samples_of_a_batch_in_training(normalization, independent):
    keras.utils.set_random_seed(0)
    model = vnet(options=VNetOptions(1, 3, 3, normalization))
    a, b = noise(1, 8, 8, 8, 1), 5 + 3 * noise(1, 8, 8, 8, 1, seed=1)
    alone, together = (model(x, training=True)[:1] for x in (a, np.concatenate([a, b])))
    assert np.allclose(alone, together, atol=1e-4) == independent


def test_one_resolution_is_one_stage():
    # An image of the stage's width is added as it is: one convolution of kernel 5, a norm, a slope,
    # a head of 2.
    assert (
        vnet((None, None, None, 4), 2, VNetOptions(base_filters=4, depth=1)).count_params()
        == 125 * 16 + 2 * 4 + 4 + 4 * 2 + 2
    )


def test_options_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="depth=0: expected at least 1"):
        vnet(options=VNetOptions(depth=0))
    with pytest.raises(ValueError, match=r"normalization='layer'.*'instance' or 'batch'"):
        vnet(options=VNetOptions(normalization="layer"))
    with pytest.raises(ValueError, match=r"initializer='zeros'.*he, paper"):
        embryo(vnets=VNetOptions(initializer="zeros"))
    with pytest.raises(ValueError, match="ventricle_box=0: expected at least 1"):
        embryo(ventricle_box=0)


@pytest.mark.parametrize("size", [(16, 9, 16), (3, 1, 2)])
def test_mixed_bfloat16_is_near_float32_with_its_gradients(small, size, bfloat16):
    model, x = (
        vnet((None, None, None, 3), 4, SMALL),
        tf.constant(noise(2, *size, 3)),
    )
    model.set_weights(small.get_weights())
    assert all(weight.dtype == "float32" for weight in model.weights)
    assert any(layer.compute_dtype == "bfloat16" for layer in model.layers)
    answers, gradients = [], []
    for network in (small, model):
        kernels = [
            weight.value for weight in network.trainable_weights if weight.path.endswith("/kernel")
        ]
        with tf.GradientTape() as tape:
            answers.append(network(x))
            total = tf.reduce_mean(answers[-1] * noise(2, *size, 4, seed=1))
        gradients.append(tape.gradient(total, kernels))

    def error(found, expected):
        return np.sqrt(np.mean((found - expected) ** 2))

    assert answers[1].dtype == "float32"
    assert error(*answers) < 0.1 * np.std(answers[0])
    # Stray memory would be far off; where a single voxel is normalized, both are 0 or nearly so.
    for expected, found in zip(*gradients):
        assert error(found, expected) <= 0.3 * np.std(expected) + 1e-6


# Resampling.


@pytest.mark.parametrize(
    "old, new", [((5, 7, 6), (10, 21, 9)), ((3, 4, 9), (3, 7, 11)), ((8, 8, 8), (15, 8, 10))]
)
def test_upsampling_equals_scipy(old, new):
    x = noise(2, *old, 3)
    factors = (1, *(n / o for n, o in zip(new, old)), 1)
    expected = ndimage.zoom(x, factors, order=1, mode="nearest", grid_mode=True, prefilter=False)
    np.testing.assert_allclose(ResizeLike()([x, np.zeros((2, *new, 1))]), expected, atol=1e-5)


@pytest.mark.parametrize("free", [True, False])
def test_any_aspect_becomes_a_cube(free):
    image = keras.Input((None, None, None, 2) if free else (24, 8, 5, 2))
    cube = ResizeToCube(8)(image)
    assert cube.shape == (None, 8, 8, 8, 2)
    x = noise(1, 24, 8, 5, 2)
    answer = keras.Model(image, cube)(x)
    # Shrunk threefold by the triangle 1 2 3 2 1, as it was, and enlarged.
    inner = (x[:, :-4] + 2 * x[:, 1:-3] + 3 * x[:, 2:-2] + 2 * x[:, 3:-1] + x[:, 4:])[:, 2::3] / 9
    expected = ndimage.zoom(
        inner, (1, 1, 1, 8 / 5, 1), order=1, mode="nearest", grid_mode=True, prefilter=False
    )
    np.testing.assert_allclose(answer[:, 1:-1], expected, atol=1e-5)


# Where the box is.


def corner_of(probability, index, box):
    return np.array(BoxCorner(index, box)(np.asarray(probability, np.float32)))


def maps(p):
    """Background and object: where `p` (*spatial) is above 1/2, the object is the most probable."""
    return np.stack([1 - p, p], axis=-1)[None].astype(np.float32)


def box_about(centroid, box):
    """The corner of the nearest box; `centroid` in voxel indices."""
    return np.floor(np.array(centroid) + 0.5 - box / 2 + 0.5 + 1e-3)


@pytest.mark.parametrize("box", [1, 4, 7, 30])
@pytest.mark.parametrize("seed", range(3))
def test_the_box_is_about_the_centre_of_mass(seed, box):
    rng = np.random.default_rng(seed)
    logits = ndimage.gaussian_filter(
        rng.normal(0, 1, (2, *rng.integers(5, 30, 3), 3)), (0, 2, 2, 2, 0)
    )
    probability = special.softmax(20 * logits, axis=-1)
    for index in range(3):
        own = np.where(np.argmax(probability, axis=-1) == index, probability[..., index], 0)
        expected = [box_about(ndimage.center_of_mass(sample), box) for sample in own]
        corner = corner_of(probability, index, box)
        assert corner.dtype == np.int32
        np.testing.assert_array_equal(corner, expected)


@pytest.mark.parametrize("edge", [1, 2, 5])
@pytest.mark.parametrize("box", [6, 7])
def test_a_moved_map_moves_the_box_as_far(edge, box):
    rng = np.random.default_rng(edge)
    symmetrical = np.full((edge, edge, edge), 0.7)
    for object_ in (symmetrical, rng.uniform(0.51, 1, (edge, edge + 1, edge + 2))):
        p = np.zeros((40, 45, 50))
        p[tuple(slice(0, n) for n in object_.shape)] = object_
        start = corner_of(maps(p), 1, box)
        for shift in rng.integers(0, 33, (6, 3)):
            moved = corner_of(maps(np.roll(p, shift, axis=(0, 1, 2))), 1, box)
            np.testing.assert_array_equal(moved - start, [shift])


def test_rounding_noise_never_moves_the_box_of_a_symmetrical_object():
    # An odd object in an even box lies midway between two voxels: the higher one is taken.
    for seed in range(20):
        p = np.zeros((33, 40, 37))
        p[10:15, 20:29, 3:30] = 0.7
        p = p * (1 + 1e-5 * np.random.default_rng(seed).normal(size=p.shape))
        np.testing.assert_array_equal(
            corner_of(maps(p), 1, 16), [[12 + 1 - 8, 24 + 1 - 8, 16 + 1 - 8]]
        )


@pytest.mark.parametrize("box", [8, 9])
@pytest.mark.parametrize("size", [(20, 11, 16), (5, 5, 6)])
def test_an_empty_map_puts_the_box_at_the_centre_of_the_volume(size, box):
    corner = corner_of(np.zeros((1, *size, 3)), 1, box)
    np.testing.assert_array_equal(corner, [box_about([(n - 1) / 2 for n in size], box)])
    # So does a map without any preference.
    np.testing.assert_array_equal(corner_of(np.full((1, *size, 3), 1 / 3), 2, box), corner)


def test_an_object_in_a_corner_of_the_volume_is_in_the_box():
    p = np.zeros((20, 24, 18))
    p[:6, -5:, :3] = 0.9
    ((z, y, x),) = corner_of(maps(p), 1, 8)
    assert (z, y, x) == (-1, 18, -2)
    cut = np.array(
        Crop(8)([p[None, ..., None].astype(np.float32), np.array([[z, y, x]], np.int32)])
    )
    assert cut.sum() == pytest.approx(p.sum())


def test_the_softmax_floor_elsewhere_does_not_drag_the_centre():
    p = np.full((40, 40, 40), 0.05)
    p[4:8, 30:34, 10:14] = 0.6
    np.testing.assert_array_equal(corner_of(maps(p), 1, 4), [[4, 30, 10]])
    # All voxels would have it near the middle: 64 of weight 0.6 against 63 936 of 0.05.
    centroid = np.array(ndimage.center_of_mass(p))
    assert np.all(np.abs(centroid - 19.5) < 0.5)
    # They decide where the object is nowhere the most probable class.
    p[4:8, 30:34, 10:14] = 0.4
    p[30:, :, :] = 0
    np.testing.assert_array_equal(
        corner_of(maps(p), 1, 4), [box_about(ndimage.center_of_mass(p), 4)]
    )


def test_every_sample_has_its_own_fall_back():
    p = np.zeros((3, 12, 12, 12, 2), np.float32)
    p[0, 1:3, 1:3, 1:3, 1] = 0.9
    p[1, ..., 0], p[1, 7:9, 2:4, 9:11, 1] = 1, 0.3
    np.testing.assert_array_equal(corner_of(p, 1, 2), [[1, 1, 1], [7, 2, 9], [5, 5, 5]])


# Crop and back.


def sliced(x, corner, box):
    """The same by slices of padded NumPy arrays."""
    far = box + max(x.shape[1:4]) + int(np.abs(corner).max())
    padded = np.pad(x, [(0, 0), (far, far), (far, far), (far, far), (0, 0)])
    at = corner + far
    return np.stack([v[z : z + box, y : y + box, w : w + box] for v, (z, y, w) in zip(padded, at)])


CORNERS = [
    ([[1, 2, 3], [0, 0, 0]], 4),  # inside
    ([[-2, 5, 7], [7, -3, 5]], 5),  # beyond a border
    ([[-3, -2, -4], [-1, -5, -2]], 16),  # larger than the volume
    ([[20, 0, 0], [0, -9, 0]], 6),  # the first outside altogether, and so the second
    ([[3, 3, 3], [8, 9, 10]], 1),
]


@pytest.mark.parametrize("corner, box", CORNERS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_crop_is_a_slice_padded_with_zeros(corner, box, dtype):
    x, corner = np.array(tf.cast(noise(2, 9, 10, 11, 3), dtype)), np.array(corner, np.int32)
    answer = Crop(box, dtype=dtype)([x, corner])
    assert answer.dtype == dtype and answer.shape == (2, box, box, box, 3)
    np.testing.assert_array_equal(answer, sliced(x, corner, box))


@pytest.mark.parametrize("corner, box", CORNERS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_uncrop_puts_the_crop_back_and_zeros_elsewhere(corner, box, dtype):
    x, corner = np.array(tf.cast(noise(2, 9, 10, 11, 3), dtype)), np.array(corner, np.int32)
    inside = np.zeros((2, 9, 10, 11, 1), bool)
    for i, low in enumerate(corner):
        inside[(i, *(slice(max(n, 0), max(n + box, 0)) for n in low))] = True
    back = Uncrop(dtype=dtype)([Crop(box, dtype=dtype)([x, corner]), corner, x[..., :1]])
    assert back.dtype == dtype
    np.testing.assert_array_equal(back, np.where(inside, x, 0))


@pytest.mark.parametrize("corner, box", CORNERS)
def test_gradients_of_crop_and_uncrop_are_each_other(corner, box):
    x, corner = tf.constant(noise(2, 9, 10, 11, 3)), np.array(corner, np.int32)
    y = tf.constant(noise(2, box, box, box, 3, seed=1))
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([x, y])
        cut, back = (
            tf.reduce_sum(Crop(box)([x, corner]) * y),
            tf.reduce_sum(Uncrop()([y, corner, x]) * x),
        )
    np.testing.assert_array_equal(tape.gradient(cut, x), Uncrop()([y, corner, x]))
    np.testing.assert_array_equal(tape.gradient(back, y), Crop(box)([x, corner]))


@pytest.mark.parametrize("free", [True, False])
def test_symbolic_shapes_and_types_are_the_real_ones(free):
    size = (None, None, None) if free else (9, 10, 11)
    image, probability = keras.Input((*size, 1)), keras.Input((*size, 3))
    corner = BoxCorner(1, 4)(probability)
    cut = Crop(4)([image, corner])
    back = Uncrop()([cut, corner, image])
    assert [(t.shape, t.dtype) for t in (corner, cut, back)] == [
        ((None, 3), "int32"),
        ((None, 4, 4, 4, 1), "float32"),
        ((None, *size, 1), "float32"),
    ]
    answers = keras.Model([image, probability], [corner, cut, back])(
        [noise(2, 9, 10, 11, 1), noise(2, 9, 10, 11, 3)]
    )
    assert [(tuple(t.shape), t.dtype) for t in answers] == [
        ((2, 3), tf.int32),
        ((2, 4, 4, 4, 1), tf.float32),
        ((2, 9, 10, 11, 1), tf.float32),
    ]


# The whole.

TINY = {
    "low_size": 8,
    "body_box": 12,
    "ventricle_box": 6,
    "vnets": VNetOptions(base_filters=1, depth=2, kernel=3),
}


@pytest.fixture(scope="module")
def tiny():
    """The embryo's network at 8^3, 12^3 and 6^3 voxels with random norms and slopes."""
    keras.utils.set_random_seed(0)
    return randomize(embryo(**TINY))


def scene(*centres, size=(16, 18, 20), seed=0):
    """Images, one per centre: a dark body of radius 6, a bright ventricle of radius 2 in it."""
    grid = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), axis=-1)
    far = np.stack([np.linalg.norm(grid - centre, axis=-1) for centre in centres])[..., None]
    label = np.where(far < 2.2, 2, np.where(far < 6, 1, 0))
    return (np.array([0, 1, 3], np.float32)[label] + 0.2 * noise(*label.shape, seed=seed)).astype(
        np.float32
    ), label


def test_the_papers_sizes_by_default():
    model = embryo(vnets=TINY["vnets"])
    assert {name: tensor.shape for name, tensor in model.output.items()} == {
        "initial": (None, 160, 160, 160, 3),
        "body": (None, None, None, None, 1),
        "ventricle": (None, None, None, None, 1),
    }
    networks = [model.get_layer(f"vnet_{number}") for number in (1, 2, 3)]
    assert [(network.input_shape[-1], network.output_shape[-1]) for network in networks] == [
        (1, 3),
        (2, 1),
        (2, 1),
    ]
    boxes = {layer.box for layer in model.layers if isinstance(layer, (BoxCorner, Crop))}
    assert boxes == {256, 160}
    assert model.count_params() == sum(network.count_params() for network in networks)


@pytest.mark.parametrize("size", [(16, 18, 20), (7, 13, 5), (1, 1, 1)])
def test_the_whole_written_out(tiny, size):
    x = noise(2, *size, 1)
    answers = tiny(x)
    low = layers.resize_linear(x, (8, 8, 8))
    initial = special.softmax(tiny.get_layer("vnet_1")(low), axis=-1)
    np.testing.assert_allclose(answers["initial"], initial, atol=1e-5)
    context = np.array(layers.resize_linear(initial, size))
    for index, name, network, box in ((1, "body", "vnet_2", 12), (2, "ventricle", "vnet_3", 6)):
        corner = corner_of(context, index, box)
        joined = np.concatenate([x, context[..., index : index + 1]], axis=-1)
        p = special.expit(tiny.get_layer(network)(sliced(joined, corner, box)))
        # Back on the grid: the box's voxel i is the volume's corner + i.
        expected = sliced(p, -corner, max(size))[:, : size[0], : size[1], : size[2]]
        assert answers[name].dtype == "float32"
        np.testing.assert_allclose(answers[name], expected, atol=1e-4)


@pytest.mark.parametrize("auto_context", [True, False])
def test_auto_context_is_the_second_channel(auto_context):
    keras.utils.set_random_seed(0)
    model = randomize(embryo(auto_context=auto_context, **TINY))
    inputs = [model.get_layer(name).input_shape[-1] for name in ("vnet_2", "vnet_3")]
    assert inputs == ([2, 2] if auto_context else [1, 1])
    # Two constant maps: both leave the boxes in the middle.
    image, _ = scene((7, 8, 9))
    head = [
        layer for layer in model.get_layer("vnet_1").layers if isinstance(layer, layers.Conv3D)
    ][-1]
    head.bias.assign([0, 0, 0])
    head.kernel.assign(0 * head.kernel)
    before = model(image)
    head.bias.assign([1, 1, 0])
    after = model(image)
    assert np.abs(after["initial"] - before["initial"]).max() > 0.05
    for name in ("body", "ventricle"):
        changed = np.abs(after[name] - before[name]).max()
        assert changed > 1e-3 if auto_context else changed == 0


@pytest.mark.parametrize("channel", [0, 1])
def test_every_channel_changes_the_refined_answer(tiny, channel):
    x = noise(1, 6, 6, 6, 2)
    other = x.copy()
    other[..., channel] = noise(1, 6, 6, 6, seed=5)
    for network in ("vnet_2", "vnet_3"):
        assert np.abs(tiny.get_layer(network)(x) - tiny.get_layer(network)(other)).max() > 0.05


def test_every_sample_has_its_own_boxes(tiny):
    image, _ = scene((5, 6, 12), (11, 12, 5))
    together, alone = tiny(image), [tiny(image[i : i + 1]) for i in range(2)]
    for name, answer in together.items():
        np.testing.assert_allclose(
            answer, np.concatenate([single[name] for single in alone]), atol=1e-5
        )
    # A sigmoid is never 0: voxels at 0 are outside the box.
    boxes = np.array(together["ventricle"]) > 0
    assert boxes[0].any() and boxes[1].any() and np.any(boxes[0] != boxes[1])


@pytest.mark.parametrize("end_to_end", [True, False])
def test_refined_losses_teach_vnet_1_end_to_end_only(end_to_end):
    keras.utils.set_random_seed(0)
    model, (image, label) = embryo(end_to_end=end_to_end, **TINY), scene((7, 8, 9))
    first, others = (
        [w for n in numbers for w in model.get_layer(f"vnet_{n}").weights]
        for numbers in ((1,), (2, 3))
    )
    loss = losses.SquaredDiceLoss()
    for name, truth in (("body", label > 0), ("ventricle", label > 1)):
        with tf.GradientTape() as tape:
            value = tf.reduce_sum(loss(truth, model(image, training=True)[name]))
        gradients = tape.gradient(value, [weight.value for weight in (*first, *others)])
        of_first, of_others = gradients[: len(first)], gradients[len(first) :]
        assert any(gradient is not None and np.abs(gradient).max() > 0 for gradient in of_others)
        if end_to_end:
            kernels = [
                np.abs(g).max() for g, w in zip(of_first, first) if w.path.endswith("/kernel")
            ]
            assert len(kernels) == 7 and min(kernels) > 0
        else:
            assert all(gradient is None or not np.any(gradient) for gradient in of_first)


def test_a_few_steps_of_adam_learn_an_embryo():
    keras.utils.set_random_seed(1)
    vnets = VNetOptions(base_filters=2, depth=2, kernel=3)
    model = embryo(low_size=8, body_box=16, ventricle_box=12, vnets=vnets)
    image, label = scene((7, 8, 9), (9, 9, 8))
    small = np.array(layers.resize_nearest(label, (8, 8, 8)))
    truth = {"initial": np.eye(3)[small[..., 0]], "body": label > 0, "ventricle": label > 1}
    adam, loss, values = FusedAdam(1e-2), losses.SquaredDiceLoss(), []
    variables = [variable.value for variable in model.trainable_variables]

    @tf.function(autograph=False)
    def step():
        with tf.GradientTape() as tape:
            answers = model(image, training=True)
            by_name = {
                name: tf.reduce_mean(loss(truth[name], answer)) for name, answer in answers.items()
            }
            value = sum(by_name.values())
        return tape.gradient(value, variables), by_name

    for _ in range(12):
        gradients, by_name = step()
        adam.apply(gradients, model.trainable_variables)
        values.append({name: float(value) for name, value in by_name.items()})
    # -1 is perfect.
    for name in truth:
        assert values[-1][name] < values[0][name] - 0.1, values


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"end_to_end": False},
        {"auto_context": False, "vnets": VNetOptions(1, 2, 3, normalization="batch")},
    ],
)
def test_a_saved_model_answers_the_same(options, tmp_path):
    keras.utils.set_random_seed(0)
    model, x = embryo(**TINY | options), noise(2, 9, 16, 13, 1)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", compile=False)
    expected, answers = model(x, training=False), loaded(x, training=False)
    assert answers.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(answers[name], expected[name])
    cut = noise(1, 6, 6, 6, loaded.get_layer("vnet_3").input_shape[-1])
    np.testing.assert_array_equal(loaded.get_layer("vnet_3")(cut), model.get_layer("vnet_3")(cut))


def test_mixed_bfloat16_answers_float32_probabilities(tiny, bfloat16):
    model, (image, _) = embryo(**TINY), scene((7, 8, 9))
    model.set_weights(tiny.get_weights())
    assert any(layer.compute_dtype == "bfloat16" for layer in model.get_layer("vnet_3").layers)
    expected = tiny(image)
    for name, answer in model(image).items():
        assert answer.dtype == "float32"
        # Same boxes, so that the difference is the networks'.
        np.testing.assert_array_equal(np.array(answer) > 0, np.array(expected[name]) > 0)
        assert np.sqrt(np.mean((answer - expected[name]) ** 2)) < 0.1 * np.std(expected[name])


def test_a_served_model_answers_as_in_this_process(tiny, tmp_path):
    function = {"serving_default": lambda image: tiny(image, training=False)}
    export.write(tmp_path, export.Exported(function, {"tiny": tiny}, card={}))
    x = noise(2, 9, 16, 13, 1)
    expected, answers = tiny(x, training=False), running.served(tmp_path / "1", x)
    assert answers.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(answers[name], expected[name], atol=1e-5)
