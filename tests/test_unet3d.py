import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import noise, randomize
from keras import ops
from scipy import ndimage

from tf_autoctx import losses
from tf_autoctx.models import layers
from tf_autoctx.models.unet3d import ResampleAboutCentre, pyramid, unet3d
from tf_autoctx.training.loop import FusedAdam


def convolutions(model):
    """Convolutions and deconvolutions in the order of the data, the head last."""
    kinds = (keras.layers.Conv3D, keras.layers.Conv3DTranspose)
    return [layer for layer in model.layers if isinstance(layer, kinds)]


@pytest.fixture(scope="module")
def unet():
    """A network of 2 filters, 2 input channels and 3 classes with random norms and averages."""
    keras.utils.set_random_seed(0)
    return randomize(unet3d((None, None, None, 2), 3, base_filters=2))


# One level, as the specification gives it.

# Widths of every convolution in order; "up" is a 2x2x2 deconvolution, which keeps the width.
ANALYSIS = [(1, 32), (32, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 512)]
SYNTHESIS = [
    *[("up", 512), (512 + 256, 256), (256, 256)],
    *[("up", 256), (256 + 128, 128), (128, 128)],
    *[("up", 128), (128 + 64, 64), (64, 64)],
]


def test_more_than_19_million_parameters():
    convs = [widths for widths in (*ANALYSIS, *SYNTHESIS) if widths[0] != "up"]
    deconvs = [width for up, width in SYNTHESIS if up == "up"]
    trainable = sum(27 * old * new + 2 * new for old, new in convs)
    trainable += sum(8 * width * width + width for width in deconvs) + 64 * 8 + 8
    averages = sum(2 * new for _, new in convs)
    network = unet3d((64, 64, 64, 1), classes=8)
    assert (
        sum(np.prod(weight.shape) for weight in network.trainable_weights)
        == trainable
        == 19_071_784
    )
    assert network.count_params() == trainable + averages == 19_076_456
    assert network.output_shape == (None, 64, 64, 64, 8)
    found = [
        ("up", layer.filters)
        if isinstance(layer, keras.layers.Conv3DTranspose)
        else tuple(layer.kernel.shape[3:])
        for layer in convolutions(network)
    ]
    assert found == [*ANALYSIS, *SYNTHESIS, (64, 8)]


def written_out(model, x):
    """The specification in bare TensorFlow ops with the weights of `model`.

    For sizes of multiples of 8.
    """
    convs = iter(convolutions(model))
    norms = iter(
        [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    )

    def conv(x):
        layer = next(convs)
        y = tf.nn.conv3d(x, layer.kernel.value, [1] * 5, "SAME")
        return y + layer.bias.value if layer.use_bias else y

    def up(x):
        layer = next(convs)
        assert layer.kernel_size == (2, 2, 2)
        size = [x.shape[0], *(2 * n for n in x.shape[1:4]), layer.filters]
        return (
            tf.nn.conv3d_transpose(x, layer.kernel.value, size, [1, 2, 2, 2, 1], "SAME")
            + layer.bias.value
        )

    def block(x):
        x, layer = conv(x), next(norms)
        scaled = (x - layer.moving_mean.value) / tf.sqrt(layer.moving_variance.value + 1e-5)
        return tf.nn.relu(scaled * layer.gamma.value + layer.beta.value)

    skips = []
    for _ in range(3):
        x = block(block(x))
        skips.append(x)
        x = tf.nn.max_pool3d(x, 2, 2, "VALID")
    x = block(block(x))
    for skip in reversed(skips):
        x = block(block(tf.concat([up(x), skip], -1)))
    return conv(x)


def test_the_network_is_the_one_of_the_paper(unet):
    x = noise(2, 8, 24, 16, 2)
    answer, expected = unet(x, training=False), written_out(unet, x)
    assert answer.shape == (2, 8, 24, 16, 3)
    np.testing.assert_allclose(answer, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("part", ["deconvolution", "skip"])
def test_every_skip_changes_the_answer(unet, number, part):
    x, before = noise(1, 16, 16, 16, 2), unet.get_weights()
    expected = np.array(unet(x, training=False))
    # 32 + 16 channels become 16, then 16 + 8, then 8 + 4.
    up, skip = [(32, 16), (16, 8), (8, 4)][number]
    joined = convolutions(unet)[8 + 3 * number + 1]
    kernel = joined.kernel.numpy()
    assert kernel.shape[3:] == (up + skip, skip)
    kernel[..., slice(up, None) if part == "skip" else slice(0, up), :] = 0
    joined.kernel.assign(kernel)
    changed = np.array(unet(x, training=False))
    unet.set_weights(before)
    assert np.mean(np.abs(changed - expected)) > 0.01 * np.std(expected)


@pytest.mark.parametrize("size", [(1, 1, 1), (9, 17, 7), (8, 5, 16)])
def test_any_size_works(unet, size):
    x, missing = noise(2, *size, 2), [-n % 8 for n in size]
    answer = unet(x, training=False)
    assert answer.shape == (2, *size, 3)
    padded = np.pad(x, [(0, 0), *((0, n) for n in missing), (0, 0)], mode="edge")
    expected = written_out(unet, padded)[:, : size[0], : size[1], : size[2]]
    np.testing.assert_allclose(answer, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("normalization, independent", [("instance", True), ("batch", False)])
def test_samples_of_a_batch_in_training(normalization, independent):
    keras.utils.set_random_seed(0)
    network = unet3d(classes=2, base_filters=1, normalization=normalization)
    a, b = noise(1, 16, 16, 16, 1), 5 + 3 * noise(1, 16, 16, 16, 1, seed=1)
    alone, together = (network(x, training=True)[:1] for x in (a, np.concatenate([a, b])))
    assert np.allclose(alone, together, atol=1e-4) == independent
    # Two averages for each of 8 + 6 normalizations: 1 2 2 4 4 8 8 16, then 8 8 4 4 2 2 channels.
    averages = sum(np.prod(weight.shape) for weight in network.non_trainable_weights)
    assert averages == (0 if independent else 2 * 73)


def test_an_unknown_option_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"normalization='layer'.*'instance' or 'batch'"):
        unet3d(normalization="layer")
    with pytest.raises(ValueError, match=r"initializer='zeros'.*he, paper"):
        pyramid(initializer="zeros")


# The context: the last level's answer on the next level's grid.


def about_centre(x, factor, size):
    """(batch, *spatial, channels) on a grid of `size` voxels, `factor` times finer, by SciPy."""
    axes = [
        (np.arange(new) + 0.5 - new / 2) / factor + old / 2 - 0.5
        for new, old in zip(size, x.shape[1:4])
    ]
    at = np.stack(np.meshgrid(*axes, indexing="ij"))
    maps = [
        [ndimage.map_coordinates(c, at, order=1, mode="nearest") for c in np.moveaxis(one, -1, 0)]
        for one in x
    ]
    return np.moveaxis(np.array(maps), 1, -1)


def resampled(x, factor, size):
    return np.array(ResampleAboutCentre(factor)([x, np.zeros((len(x), *size, 1), np.float32)]))


def test_a_context_twice_as_fine_is_cropped_to_its_centre():
    x = noise(2, 8, 6, 4, 3)
    zoomed = ndimage.zoom(x, (1, 2, 2, 2, 1), order=1, mode="nearest", grid_mode=True)
    np.testing.assert_allclose(resampled(x, 2, (8, 6, 4)), zoomed[:, 4:12, 3:9, 2:6], atol=1e-5)


def test_a_context_that_is_too_small_goes_on_with_its_edge_values():
    x = noise(1, 4, 6, 8, 2)
    zoomed = ndimage.zoom(x, (1, 2, 2, 2, 1), order=1, mode="nearest", grid_mode=True)
    expected = np.pad(zoomed, [(0, 0), (3, 3), (1, 1), (0, 0), (0, 0)], mode="edge")
    np.testing.assert_allclose(resampled(x, 2, (14, 14, 16)), expected, atol=1e-5)


def test_an_uncropped_context_is_what_inference_resamples():
    # Subvolumes and whole volumes see the previous level alike.
    x = noise(2, 5, 6, 8, 3)
    np.testing.assert_allclose(
        resampled(x, 2, (10, 12, 16)), layers.resize_linear(x, (10, 12, 16)), atol=1e-6
    )
    np.testing.assert_allclose(
        resampled(x[:, :4], 1.5, (6, 9, 12)), layers.resize_linear(x[:, :4], (6, 9, 12)), atol=1e-5
    )


@pytest.mark.parametrize("factor", [2.0, 1.5, 4.0, 1.0])
@pytest.mark.parametrize(
    "old, new", [((8, 8, 8), (8, 8, 8)), ((7, 8, 5), (8, 9, 11)), ((1, 2, 3), (6, 3, 3))]
)
def test_any_factor_and_size_about_one_centre(factor, old, new):
    x = noise(1, *old, 2)
    np.testing.assert_allclose(resampled(x, factor, new), about_centre(x, factor, new), atol=1e-5)
    unknown = tf.TensorSpec([None, None, None, None, 2])
    graph = tf.function(
        lambda x, like: ResampleAboutCentre(factor)([x, like]), input_signature=[unknown] * 2
    )
    np.testing.assert_allclose(
        graph(x, np.zeros((1, *new, 2), np.float32)), resampled(x, factor, new), atol=1e-5
    )


def test_the_context_is_where_the_image_is():
    # A map of a position: voxel centres of either grid, in full-size voxels from the common centre.
    coarse, fine = (scale * (np.arange(16, dtype=np.float32) + 0.5 - 8) for scale in (4, 2))
    x = np.broadcast_to(coarse[:, None, None, None], (1, 16, 16, 16, 1))
    answer = resampled(x, 4 / 2, (16, 16, 16))
    np.testing.assert_allclose(answer[0, :, 3, 5, 0], fine, atol=1e-5)


# The pyramid.


@pytest.fixture(scope="module")
def three_levels():
    """Factors (6, 4, 1), 3 classes, 1 filter; random norms and averages."""
    keras.utils.set_random_seed(0)
    return randomize(pyramid((6, 4, 1), 3, base_filters=1), seed=2)


def images(levels, *size, seed=0):
    return {
        f"image_{level}": noise(1, *size, 1, seed=seed + level) for level in range(1, levels + 1)
    }


@pytest.mark.parametrize("downsampling", [(1,), (4, 2), (3, 2), (8, 4, 2)])
def test_inputs_and_outputs_by_name(downsampling):
    model, levels = pyramid(downsampling, 3, base_filters=1), range(1, len(downsampling) + 1)
    assert list(model.input) == [f"image_{level}" for level in levels]
    assert list(model.output) == [f"level_{level}" for level in levels]
    assert all(image.shape == (None, None, None, None, 1) for image in model.input.values())
    assert all(logits.shape == (None, None, None, None, 3) for logits in model.output.values())
    # From the second level on the U-Net sees the image and all classes.
    unets = [model.get_layer(f"level_{level}") for level in levels]
    assert [unet.input_shape[-1] for unet in unets] == [1, 4, 4][: len(unets)]
    assert model.count_params() == sum(unet.count_params() for unet in unets)


def test_64_cubed_in_is_64_cubed_out_on_every_level():
    model = pyramid(classes=2, input_shape=(64, 64, 64), base_filters=1)
    assert {name: tensor.shape for name, tensor in model.output.items()} == dict.fromkeys(
        ("level_1", "level_2"), (None, 64, 64, 64, 2)
    )


def test_the_pyramid_written_out(three_levels):
    x = {
        name: image[:, : 16 - 5 * level, 2:, level:]
        for level, (name, image) in enumerate(images(3, 16, 16, 16).items())
    }
    answers, context = three_levels(x, training=False), None
    assert [x[f"image_{level}"].shape[1:4] for level in (1, 2, 3)] == [
        (16, 14, 16),
        (11, 14, 15),
        (6, 14, 14),
    ]
    for level, factor in ((1, None), (2, 6 / 4), (3, 4 / 1)):
        joined = image = x[f"image_{level}"]
        if level > 1:
            joined = np.concatenate(
                [image, about_centre(context, factor, image.shape[1:4])], axis=-1
            )
        logits = np.array(three_levels.get_layer(f"level_{level}")(joined, training=False))
        np.testing.assert_allclose(
            answers[f"level_{level}"], logits, atol=1e-4 * np.abs(logits).max()
        )
        context = np.array(ops.softmax(logits))


@pytest.mark.parametrize("changed", [1, 2, 3])
def test_an_image_changes_its_own_level_and_the_later_ones(three_levels, changed):
    x = images(3, 16, 16, 16)
    before = three_levels(x, training=False)
    after = three_levels({**x, f"image_{changed}": noise(1, 16, 16, 16, 1, seed=9)}, training=False)
    for level in (1, 2, 3):
        difference = np.abs(after[f"level_{level}"] - before[f"level_{level}"]).max()
        assert difference > 1e-3 if level >= changed else difference == 0


@pytest.mark.parametrize("end_to_end", [True, False])
def test_level_2_teaches_level_1_end_to_end_only(end_to_end):
    keras.utils.set_random_seed(0)
    model = pyramid((4, 2), 3, base_filters=1, end_to_end=end_to_end)
    label = np.random.default_rng(0).integers(0, 3, (1, 16, 16, 16, 1))
    first, second = (list(model.get_layer(f"level_{n}").trainable_weights) for n in (1, 2))
    with tf.GradientTape() as tape:
        answers = model(images(2, 16, 16, 16), training=True)
        loss = tf.reduce_sum(losses.DiceLoss()(label, answers["level_2"]))
    gradients = tape.gradient(loss, [w.value for w in (*first, *second)])
    of_first, of_second = gradients[: len(first)], gradients[len(first) :]
    assert all(gradient is not None for gradient in of_second)
    if end_to_end:
        kernels = [np.abs(g).max() for g, w in zip(of_first, first) if w.path.endswith("/kernel")]
        assert len(kernels) == 18 and min(kernels) > 0
    else:
        assert all(gradient is None or not np.any(gradient) for gradient in of_first)


@pytest.mark.parametrize("downsampling", [(2, 4), (4, 4), (), (4, 2, 3)])
def test_factors_that_do_not_fall_are_refused(downsampling):
    with pytest.raises(ValueError, match=r"downsampling=.*fall from level to level"):
        pyramid(downsampling)


# Life of a model.


@pytest.mark.parametrize("end_to_end", [True, False])
def test_a_saved_pyramid_answers_the_same(end_to_end, tmp_path):
    keras.utils.set_random_seed(0)
    model, x = (
        randomize(pyramid((3, 2), 3, base_filters=1, end_to_end=end_to_end)),
        images(2, 9, 16, 13),
    )
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", compile=False)
    expected = model(x, training=False)
    assert loaded.output.keys() == expected.keys()
    for name, logits in loaded(x, training=False).items():
        np.testing.assert_array_equal(logits, expected[name])
    unet, x = loaded.get_layer("level_2"), noise(1, 9, 16, 13, 4)
    np.testing.assert_array_equal(
        unet(x, training=False), model.get_layer("level_2")(x, training=False)
    )


def test_a_saved_unet_answers_the_same(unet, tmp_path):
    x = noise(1, 9, 17, 7, 2)
    unet.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", compile=False)
    np.testing.assert_array_equal(loaded(x, training=False), unet(x, training=False))


def test_mixed_bfloat16_answers_float32_near_the_float32_network(three_levels, bfloat16):
    model, x = pyramid((6, 4, 1), 3, base_filters=1), images(3, 16, 9, 16)
    model.set_weights(three_levels.get_weights())
    assert all(weight.dtype == "float32" for weight in model.weights)
    assert any(layer.compute_dtype == "bfloat16" for layer in model.get_layer("level_3").layers)
    expected = three_levels(x, training=False)
    for name, logits in model(x, training=False).items():
        assert logits.dtype == "float32"
        assert np.sqrt(np.mean((logits - expected[name]) ** 2)) < 0.05 * np.std(expected[name])


@pytest.mark.parametrize("network", ["unet3d", "pyramid"])
def test_a_few_steps_of_adam_learn_a_cube(network):
    keras.utils.set_random_seed(1)
    label = {
        "level_1": np.zeros((2, 16, 16, 16, 1), np.uint8),
        "level_2": np.zeros((2, 16, 16, 16, 1), np.uint8),
    }
    label["level_1"][:, 6:10, 6:10, 6:10] = 1
    label["level_2"][:, 4:12, 4:12, 4:12] = 1
    image = {
        name.replace("level", "image"): tf.constant(mask + 0.3 * noise(*mask.shape))
        for name, mask in label.items()
    }
    if network == "unet3d":
        model = unet3d(classes=2, base_filters=2)

        def answer():
            return {"level_2": model(image["image_2"], training=True)}
    else:
        model = pyramid((4, 2), 2, base_filters=2)

        def answer():
            return model(image, training=True)

    adam, loss, values = FusedAdam(3e-2), losses.DiceLoss(), []
    variables = [variable.value for variable in model.trainable_variables]
    for _ in range(8):
        with tf.GradientTape() as tape:
            value = sum(
                tf.reduce_mean(loss(label[name], logits)) for name, logits in answer().items()
            )
        adam.apply(tape.gradient(value, variables), model.trainable_variables)
        values.append(float(value) / (1 if network == "unet3d" else 2))
    # -1 is perfect.
    assert values[0] > -0.5 and values[-1] < values[0] - 0.12, values
