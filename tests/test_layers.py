import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import noise
from scipy import ndimage

from tf_autoctx.models import layers


def line(values):
    """(batch, x, channels) of one sample and one channel."""
    return np.reshape(np.array(values, np.float32), (1, -1, 1))


# Resampling.


@pytest.mark.parametrize(
    "old, new",
    [
        # The new voxel centres lie at -1/4, 1/4, 3/4 and 5/4 of the old.
        ([0, 1], [0, 0.25, 0.75, 1]),
        # Old centres at distances 1/2 1/2 3/2 from the new ones, triangle of half width 2: weights
        # 3 3 1 over 7.
        ([7, 0, 0, 0], [3, 0]),
        ([0, 7, 0, 0], [3, 1]),
        # All of the line: distances 1 0 1 of a half width of 3, weights 2 3 2 over 7.
        ([7, 0, 14], [6]),
        ([5], [5, 5, 5]),
        ([1, 2, 4], [1, 2, 4]),
    ],
)
def test_resize_linear_by_hand(old, new):
    np.testing.assert_allclose(layers.resize_linear(line(old), (len(new),)), line(new), atol=1e-6)


@pytest.mark.parametrize("graph", [False, True])
def test_bfloat16_is_added_up_in_float32(graph):
    """Of 50 values about 200, in steps of 1 there, the mean is off by less than a step."""
    x = tf.cast(200 + 20 * noise(1, 50, 6), "bfloat16")

    def shrunk(x, size):
        answer = layers.resize_linear(x, (size,))
        assert answer.dtype == "bfloat16"
        return answer

    spec = [tf.TensorSpec([1, None, 6], tf.bfloat16), tf.TensorSpec([], tf.int32)]
    answer = (tf.function(shrunk, input_signature=spec) if graph else shrunk)(x, 1)
    exact = layers.resize_linear(tf.cast(x, "float32"), (1,))
    np.testing.assert_allclose(tf.cast(answer, "float32"), exact, atol=0.51)


SIZES = [((5, 7, 6), (10, 21, 9)), ((3, 4, 9), (3, 7, 11)), ((1, 6, 2), (4, 6, 5))]


@pytest.mark.parametrize("old, new", SIZES)
def test_enlarging_equals_scipy(old, new):
    x = noise(2, *old, 3)
    expected = ndimage.zoom(
        x,
        (1, *(n / o for n, o in zip(new, old)), 1),
        order=1,
        mode="nearest",
        grid_mode=True,
        prefilter=False,
    )
    np.testing.assert_allclose(layers.resize_linear(x, new), expected, atol=1e-5)


@pytest.mark.parametrize(
    "old, new",
    [
        ((39, 26), (16, 10)),
        ((20, 33), (10, 11)),
        ((17, 9), (3, 20)),
        ((10, 12), (25, 5)),
        ((6, 8), (1, 8)),
    ],
)
def test_shrinking_equals_tensorflows_antialiased_resize(old, new):
    x = noise(2, *old, 3)
    expected = tf.image.resize(x, new, method="bilinear", antialias=True)
    np.testing.assert_allclose(layers.resize_linear(x, new), expected, atol=1e-5)
    # In 3D, axis after axis: slices of a volume that is as deep as it was.
    volume = layers.resize_linear(x[None], (2, *new))[0]
    np.testing.assert_allclose(volume, expected, atol=1e-5)


@pytest.mark.parametrize("new", [(13, 8, 7), (4, 3, 2), (30, 9, 3), (1, 1, 1)])
def test_a_constant_volume_stays_constant(new):
    x = np.full((1, 13, 8, 7, 1), 37.5, np.float32)
    np.testing.assert_allclose(layers.resize_linear(x, new), np.full((1, *new, 1), 37.5), rtol=1e-6)


@pytest.mark.parametrize("resize", [layers.resize_linear, layers.resize_nearest])
@pytest.mark.parametrize("old, new", [*SIZES, ((39, 26, 44), (16, 10, 18)), ((6, 6, 6), (6, 6, 6))])
def test_sizes_known_in_the_graph_only(resize, old, new):
    x = noise(2, *old, 2)
    graph = tf.function(
        lambda x, size: resize(x, tf.unstack(size)),
        input_signature=[tf.TensorSpec([None, None, None, None, 2]), tf.TensorSpec([3], tf.int32)],
    )
    np.testing.assert_allclose(graph(x, np.array(new, np.int32)), resize(x, new), atol=1e-6)


def test_graphs_share_one_function_of_a_resampling():
    """To write it into each took most of the time that an export and a first prediction take."""
    spec = [tf.TensorSpec([None, None, None, None, 2]), tf.TensorSpec([3], tf.int32)]

    def written(times):
        def resized(x, size):
            for _ in range(times):
                x = layers.resize_linear(x, tf.unstack(size))
            return x

        graph = tf.function(resized, input_signature=spec).get_concrete_function().graph
        assert len(graph.get_operations()) < 10
        return {f.signature.name for f in graph.as_graph_def().library.function}

    once = written(1)
    assert once and once == written(1) == written(3)


@pytest.mark.parametrize(
    "old, new",
    [
        ([10, 20, 30], [10, 10, 20, 20, 30, 30]),
        ([10, 20, 30, 40, 50], [20, 40]),
        # Centres at 2/3, 2 and 10/3 of 4 voxels.
        ([10, 20, 30, 40], [10, 30, 40]),
        ([10, 20, 30], [20]),
    ],
)
def test_resize_nearest_by_hand(old, new):
    answer = layers.resize_nearest(np.reshape(np.array(old, np.uint8), (1, -1, 1)), (len(new),))
    assert answer.dtype == "uint8"
    np.testing.assert_array_equal(np.ravel(answer), new)


def test_resize_nearest_takes_every_axis_by_itself():
    x = np.arange(24, dtype=np.int32).reshape(1, 2, 3, 4, 1)
    answer = layers.resize_nearest(x, (4, 1, 2))
    np.testing.assert_array_equal(answer[..., 0], x[:, [0, 0, 1, 1]][:, :, [1]][:, :, :, [1, 3], 0])


# Padding and cropping.


@pytest.mark.parametrize("free", [True, False])
def test_pad_to_multiple_repeats_the_edge_at_the_high_end(free):
    image = keras.Input((None, None, 1) if free else (2, 3, 1))
    x = np.reshape([[1, 2, 3], [4, 5, 6]], (1, 2, 3, 1)).astype(np.float32)
    padded = keras.Model(image, layers.PadToMultiple(4)(image))(x)
    np.testing.assert_array_equal(
        padded[0, ..., 0], [[1, 2, 3, 3], [4, 5, 6, 6], [4, 5, 6, 6], [4, 5, 6, 6]]
    )


def test_pad_to_multiple_leaves_what_fits():
    x = noise(1, 8, 16, 4, 2)
    np.testing.assert_array_equal(layers.PadToMultiple(4)(x), x)
    assert layers.PadToMultiple(4).compute_output_shape((None, 8, 9, None, 1)) == (
        None,
        8,
        12,
        None,
        1,
    )


@pytest.mark.parametrize("free", [True, False])
@pytest.mark.parametrize("stride, size", [(1, (5, 9)), (2, (3, 5)), (4, (2, 3))])
def test_crop_like_keeps_the_low_end(free, stride, size):
    x, reference = noise(1, 8, 12, 2), noise(1, 5, 9, 1)
    inputs = [keras.Input((None, None, 2)), keras.Input((None, None, 1) if free else (5, 9, 1))]
    model = keras.Model(inputs, layers.CropLike(stride)(inputs))
    assert model.output_shape[1:] == ((None, None, 2) if free else (*size, 2))
    np.testing.assert_array_equal(model([x, reference]), x[:, : size[0], : size[1]])


# Instance normalization.


def normalized(x, gamma, beta):
    """By hand, in float64."""
    x = np.asarray(x, np.float64)
    axes = tuple(range(1, x.ndim - 1))
    mean, variance = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-5) * gamma + beta


def norm_of(channels, dtype="float32", spatial=3):
    layer = layers.InstanceNormalization(epsilon=1e-5, dtype=dtype)
    layer.build((None, *(None,) * spatial, channels))
    layer.set_weights([np.arange(1.0, channels + 1), np.arange(channels) - 0.5])
    return layer, (np.arange(1.0, channels + 1), np.arange(channels) - 0.5)


@pytest.mark.parametrize("size", [(1, 4, 5), (1, 3, 4, 5), (3, 4, 5), (3, 3, 4, 5), (2, 1, 1, 7)])
@pytest.mark.parametrize("backend", ["tensorflow", "another"])
def test_each_channel_of_each_sample_is_normalized_by_itself(size, backend, monkeypatch):
    monkeypatch.setattr(layers.keras.backend, "backend", lambda: backend)
    scale = np.arange(1, size[0] + 1, dtype=np.float32).reshape(-1, *[1] * len(size))
    x, (layer, weights) = scale * (10 + 3 * noise(*size, 2)), norm_of(2, spatial=len(size) - 1)
    np.testing.assert_allclose(layer(x), normalized(x, *weights), atol=1e-5)
    free = tf.function(layer.call, input_signature=[tf.TensorSpec([None] * len(size) + [2])])
    np.testing.assert_allclose(free(x), normalized(x, *weights), atol=1e-5)
    kinds = {node.op for node in free.get_concrete_function().graph.as_graph_def().node}
    assert ("FusedBatchNormV3" in kinds) == (backend == "tensorflow")


def test_large_volumes_are_normalized_as_exactly_as_small_ones():
    """A sum of 2 million float32 voxels loses 1e-3 of the variance, voxel by voxel."""
    x, (layer, weights) = 3 + noise(1, 128, 128, 128, 1), norm_of(1)
    np.testing.assert_allclose(layer(x), normalized(x, *weights), atol=5e-5)


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("batch", [1, 2])
def test_its_gradients_are_those_of_keras(batch, graph):
    x, weights = noise(batch, 4, 5, 3, 2), noise(batch, 4, 5, 3, 2, seed=1)
    ours, _ = norm_of(2)
    theirs = keras.layers.GroupNormalization(groups=-1, epsilon=1e-5)
    theirs.build(x.shape)
    theirs.set_weights(ours.get_weights())

    def gradients(layer):
        def of(image):
            with tf.GradientTape() as tape:
                tape.watch(image)
                loss = tf.reduce_sum(tf.square(layer(image)) * weights)
            return tape.gradient(loss, [image, layer.gamma.value, layer.beta.value])

        spec = [tf.TensorSpec([None] * 4 + [2])]
        return (tf.function(of, input_signature=spec) if graph else of)(tf.constant(x))

    for own, other in zip(gradients(ours), gradients(theirs)):
        np.testing.assert_allclose(own, other, rtol=1e-4, atol=1e-4)


def as_on_a_gpu(monkeypatch):
    """TensorFlow as if a GPU ran its operations: with `is_training`, that of the forward pass keeps
    an inverted standard deviation for its gradient, which takes it so; the variance of a single
    voxel is divided by 0."""
    forward, backward = tf.raw_ops.FusedBatchNormV3, tf.raw_ops.FusedBatchNormGradV3

    def of_forward(x, epsilon=1e-4, is_training=True, **given):
        outputs = forward(x=x, epsilon=epsilon, is_training=is_training, **given)
        if not is_training:
            return outputs
        inverted = tf.math.rsqrt(outputs.reserve_space_2 + epsilon)
        many = tf.size(x) > x.shape[-1]
        variance = tf.where(many, outputs.batch_variance, np.nan)
        return outputs._replace(batch_variance=variance, reserve_space_2=inverted)

    def of_backward(reserve_space_2, epsilon=1e-4, is_training=True, **given):
        if is_training:
            reserve_space_2 = 1 / tf.square(reserve_space_2) - epsilon
        return backward(
            reserve_space_2=reserve_space_2, epsilon=epsilon, is_training=is_training, **given
        )

    monkeypatch.setattr(tf.raw_ops, "FusedBatchNormV3", of_forward)
    monkeypatch.setattr(tf.raw_ops, "FusedBatchNormGradV3", of_backward)


@pytest.mark.parametrize("size", [(3, 4, 5), (8, 8, 1), (8, 16, 8), (1, 1, 1)])
def test_a_graph_made_for_a_cpu_is_right_on_a_gpu(size, monkeypatch):
    """An export is made on the one and runs on the other."""
    x, (layer, weights) = 10 + 3 * noise(1, *size, 2), norm_of(2)
    of_y = noise(1, *size, 2, seed=1)

    def answers():
        image = tf.constant(x)
        with tf.GradientTape() as tape:
            tape.watch(image)
            y = layer(image)
        wanted = [image, layer.gamma.value, layer.beta.value]
        return [y, *tape.gradient(y, wanted, output_gradients=of_y)]

    on_a_cpu = answers()
    np.testing.assert_allclose(on_a_cpu[0], normalized(x, *weights), atol=1e-5)
    as_on_a_gpu(monkeypatch)
    for here, there in zip(on_a_cpu, answers()):
        np.testing.assert_allclose(there, here, atol=1e-5)


def test_a_graph_does_not_ask_for_the_devices_of_its_machine(monkeypatch):
    layer, _ = norm_of(2)
    spec = [tf.TensorSpec([None] * 4 + [2])]

    def nodes():
        graph = tf.function(layer.call, input_signature=spec).get_concrete_function().graph
        return [(node.op, list(node.input)) for node in graph.as_graph_def().node]

    without = nodes()
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: ["a GPU"])
    assert nodes() == without


def test_statistics_of_bfloat16_are_float32():
    """The mean of values about 200, in steps of 1 there, is off by far less than a step."""
    x = tf.cast(200 + 2 * noise(1, 20, 20, 20, 1), "bfloat16")
    layer, weights = norm_of(1, "mixed_bfloat16")
    answer = layer(x)
    assert answer.dtype == "bfloat16" and layer.gamma.dtype == "float32"
    exact = normalized(tf.cast(x, "float32"), *weights)
    np.testing.assert_allclose(tf.cast(answer, "float32"), exact, rtol=0.01, atol=0.01)


def test_it_is_saved_and_read(tmp_path):
    image = keras.Input((4, 4, 2))
    model = keras.Model(image, layers.normalize(image, "instance"))
    model.save(tmp_path / "a.keras")
    again = keras.models.load_model(tmp_path / "a.keras")
    assert isinstance(again.layers[-1], layers.InstanceNormalization)
    x = noise(1, 4, 4, 2)
    np.testing.assert_array_equal(again(x), model(x))


def test_it_is_read_from_files_that_hold_what_is_fixed_now(tmp_path, monkeypatch):
    image = keras.Input((4, 4, 2))
    model = keras.Model(image, layers.InstanceNormalization(epsilon=1e-2)(image))
    with monkeypatch.context() as patch:
        patch.delattr(layers.InstanceNormalization, "get_config")
        assert {"groups", "axis", "scale"} <= set(model.layers[-1].get_config())
        model.save(tmp_path / "a.keras")
    again = keras.models.load_model(tmp_path / "a.keras")
    assert isinstance(again.layers[-1], layers.InstanceNormalization)
    x = noise(1, 4, 4, 2)
    np.testing.assert_array_equal(again(x), model(x))


@pytest.mark.parametrize("fixed", [{"groups": 2}, {"axis": 1}, {"center": False}, {"scale": False}])
def test_what_is_fixed_cannot_be_given(fixed):
    with pytest.raises(TypeError, match="multiple values"):
        layers.InstanceNormalization(**fixed)


# The bfloat16 guard.


def gradients(layer, x, weights):
    """(output, gradient of the kernel, of the input), float32, for a loss of random weights."""
    x = tf.cast(tf.constant(x), layer.compute_dtype)
    with tf.GradientTape() as tape:
        tape.watch(x)
        answer = layer(x)
        loss = tf.reduce_sum(tf.cast(answer, "float32") * weights)
    return [
        np.array(tf.cast(t, "float32"))
        for t in (answer, *tape.gradient(loss, [layer.kernel.value, x]))
    ]


@pytest.mark.parametrize(
    "kind, kernel, arguments",
    [("Conv3D", 5, {}), ("Conv3D", 3, {}), ("Conv3DTranspose", 5, {"strides": 2})],
)
@pytest.mark.parametrize("size", [(2, 3, 4), (1, 1, 1), (6, 1, 7), (6, 7, 8)])
def test_bfloat16_gradients_of_small_inputs_are_right(kind, kernel, arguments, size):
    guarded, parent = getattr(layers, kind), getattr(keras.layers, kind)

    def build(layer, dtype):
        return layer(8, kernel, padding="same", dtype=dtype, **arguments)

    x = noise(1, *size, 8)
    reference, layer = build(parent, "float32"), build(guarded, "mixed_bfloat16")
    answer = reference(x)
    layer.build(x.shape)
    layer.set_weights(reference.get_weights())
    weights = noise(*answer.shape, seed=1)
    expected = gradients(reference, x, weights)
    # The stray memory differs from call to call.
    for _ in range(10):
        for found, wanted in zip(gradients(layer, x, weights), expected):
            assert found.shape == wanted.shape
            np.testing.assert_allclose(found, wanted, atol=0.03 * np.abs(wanted).max())


def ops_of(layer, size, **arguments):
    """Kinds of operations in the graph of a layer for images of a size."""
    spec = tf.TensorSpec([1, *size, 4], layer.compute_dtype)
    graph = tf.function(lambda x: layer(x, **arguments)).get_concrete_function(spec).graph
    return {node.op for node in graph.as_graph_def().node}


@pytest.mark.parametrize("kind, arguments", [("Conv3D", {}), ("Conv3DTranspose", {"strides": 2})])
def test_the_guard_costs_nothing_where_it_is_not_needed(kind, arguments):
    layer = getattr(layers, kind)(3, 5, padding="same", dtype="mixed_bfloat16", **arguments)
    layer.build((1, None, None, None, 4))
    guarded, small, free = {"PadV2", "Pad"}, (4, 2, 9), (None,) * 3
    assert guarded & ops_of(layer, small) and guarded & ops_of(layer, free)
    assert "Pad" not in ops_of(layer, free, training=True)  # TensorFlow fuses that, and fails
    assert guarded & ops_of(layer, free, training=True)
    assert not (guarded | {"StridedSlice"}) & ops_of(layer, (5, 8, 9), training=True)
    assert not (guarded & ops_of(layer, free, training=False))
    # Nothing is smaller than a single voxel.
    layer = getattr(layers, kind)(3, 1, padding="same", dtype="mixed_bfloat16", **arguments)
    layer.build((1, None, None, None, 4))
    assert not (guarded & ops_of(layer, free, training=True))


@pytest.mark.parametrize("size", [(2, 3, 4), (6, 7, 8)])
@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("mixed_bfloat16", 0.02)])
def test_the_guard_changes_no_answer(size, dtype, tolerance):
    x = noise(2, *size, 4)
    for kind, arguments in (("Conv3D", {}), ("Conv3DTranspose", {"strides": 2})):
        pair = [
            getattr(room, kind)(3, 5, padding="same", dtype=dtype, **arguments)
            for room in (layers, keras.layers)
        ]
        for layer in pair:
            layer.build(x.shape)
        pair[1].set_weights(pair[0].get_weights())
        answers = [np.array(tf.cast(layer(x), "float32")) for layer in pair]
        np.testing.assert_allclose(
            answers[0], answers[1], atol=tolerance * np.abs(answers[1]).max()
        )


@pytest.mark.parametrize("shape", [(1, 5, 4, 3, 6), (2, 5, 4, 3, 6), (2, 7, 5, 6)])
@pytest.mark.parametrize("training, trainable", [(False, True), (True, False), (True, True)])
def test_batch_normalization_is_that_of_keras(shape, training, trainable):
    """Values, gradients and moving averages; where it is frozen these are used, and stay."""
    x, weights = noise(*shape), noise(*shape, seed=1)
    ours, theirs = (
        kind(momentum=0.9, epsilon=1e-5)
        for kind in (layers.BatchNormalization, keras.layers.BatchNormalization)
    )
    rng, outcomes = np.random.default_rng(2), []
    values = [rng.uniform(0.5, 2, shape[-1]) for _ in range(4)]
    for layer in (ours, theirs):
        layer.build(shape)
        layer.set_weights(values)
        layer.trainable = trainable
        moved = tf.constant(x)
        with tf.GradientTape() as tape:
            tape.watch(moved)
            y = layer(moved, training=training)
            total = tf.reduce_sum(y * weights)
        outcomes.append([y, tape.gradient(total, moved), *layer.get_weights()])
    for mine, expected in zip(*outcomes, strict=True):
        np.testing.assert_allclose(mine, expected, rtol=1e-4, atol=1e-5)
    kept = all(np.allclose(a, b) for a, b in zip(ours.get_weights(), values))
    assert kept == (not (training and trainable))


def test_batch_normalization_in_bfloat16_rounds_once(bfloat16):
    """Averages and weights stay float32: of large means and small deviations something is left."""
    layer = layers.BatchNormalization(epsilon=1e-5)
    x = tf.cast(100 + tf.random.normal((1, 8, 8, 8, 4), seed=3), tf.bfloat16)
    layer.build(x.shape)
    layer.set_weights([np.full(4, value) for value in (1.0, 0.5, 100.3, 1.0)])
    y = layer(x)
    assert y.dtype == "bfloat16"
    exact = tf.cast(x, tf.float32) - 100.3 + 0.5
    np.testing.assert_allclose(tf.cast(y, tf.float32), exact, rtol=1 / 128, atol=1e-3)
