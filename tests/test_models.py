import ast
import pathlib
import pkgutil
import sys
import types

import helpers
import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import in_order, noise
from keras import ops

import tf_autoctx
from tf_autoctx import losses
from tf_autoctx.models import options
from tf_autoctx.models.options import VARIANTS
from tf_autoctx.models.usegnet import usegnet
from tf_autoctx.training.loop import FusedAdam

HAS = "USegNet-DS-HAS"


# Parameters and multiply-adds as the specification's table gives them, independent of the model
# code.


def conv(kernel, channels, filters):
    """Parameters of a 3D convolution."""
    return kernel**3 * channels * filters + filters


def norm(channels):
    """Scale and shift, and no bias of the convolution before."""
    return 2 * channels - channels


def attention(channels, weight_kernel=3):
    """1x1x1 to 32, two weight convolutions, one of the 64 channels of concat(P, T) to 64."""
    return conv(1, channels, 32) + 2 * conv(weight_kernel, 32, 32) + conv(weight_kernel, 64, 64)


# Two blocks of each encoder stage and of the bottom: 28 704 + 166 272 + 2 * 1 024 384.
ENCODER = (
    (conv(3, 1, 32) + norm(32) + conv(3, 32, 32) + norm(32))
    + (conv(3, 32, 64) + norm(64) + conv(3, 64, 64) + norm(64))
    + 4 * (conv(5, 64, 64) + norm(64))
)
# Two deconvolutions 64 to 64 of kernel 5, one 64 to 32 of kernel 3: 2 * 512 192 + 55 392.
DECONVS = 2 * (conv(5, 64, 64) + norm(64)) + conv(3, 64, 32) + norm(32)
BASE = ENCODER + DECONVS + conv(1, 64, 2)
# Plain decoders on the concatenations of 64 + 64, 64 + 64 and 32 + 32 channels; the third after a
# SAM, on 32 + 64.
PLAIN_1 = conv(5, 128, 64) + norm(64)
PLAIN_2 = conv(3, 128, 64) + norm(64)
PLAIN_3 = conv(3, 64, 64) + norm(64)
PLAIN_3_SAM = conv(3, 96, 64) + norm(64)
# Side heads hang on the 128 channels of the concatenation or on the 64 of the UAM.
SIDE, SIDE_UAM = conv(1, 128, 2), conv(1, 64, 2)

PARAMETERS = {
    # No skips: the decoders see 64, 64 and 32 channels.
    "3D-DeconvNet": (
        BASE + conv(5, 64, 64) + conv(3, 64, 64) + conv(3, 32, 64) + 3 * norm(64),
        4_001_314,
    ),
    "USegNet": (BASE + PLAIN_1 + PLAIN_2 + PLAIN_3, 4_679_202),
    "USegNet-DS": (BASE + PLAIN_1 + PLAIN_2 + PLAIN_3 + 2 * SIDE, 4_679_718),
    "USegNet-DS-SAM-1": (BASE + PLAIN_1 + PLAIN_2 + PLAIN_3 + 2 * SIDE + attention(64), 4_847_814),
    "USegNet-DS-SAM-12": (
        BASE + PLAIN_1 + PLAIN_2 + PLAIN_3 + 2 * SIDE + 2 * attention(64),
        5_015_910,
    ),
    "USegNet-DS-SAM": (
        BASE + PLAIN_1 + PLAIN_2 + PLAIN_3_SAM + 2 * SIDE + 2 * attention(64) + attention(32),
        5_238_278,
    ),
    "USegNet-DS-UAM-1": (BASE + attention(128) + PLAIN_2 + PLAIN_3 + SIDE_UAM + SIDE, 3_825_606),
    "USegNet-DS-UAM-12": (BASE + 2 * attention(128) + PLAIN_3 + 2 * SIDE_UAM, 3_774_310),
    "USegNet-DS-UAM": (BASE + 2 * attention(128) + attention(64) + 2 * SIDE_UAM, 3_831_686),
    "USegNet-DS-HAS": (
        BASE
        + 2 * attention(64)
        + attention(32)
        + 2 * attention(128)
        + attention(96)
        + 2 * SIDE_UAM,
        4_335_974,
    ),
}

# Multiply-adds per voxel of the image: half size weighs 1/8 and so on; a deconvolution counts where
# it starts.
CODER_WORK = (
    27 * (1 * 32 + 32 * 32)  # encoder 1: 28 512
    + 27 * (32 * 64 + 64 * 64) // 8  # encoder 2: 20 736
    + 2 * 125 * 64 * 64 // 64  # encoder 3: 16 000
    + 2 * 125 * 64 * 64 // 512  # bottom: 2 000
    + 125 * 64 * 64 // 512  # deconvolution from 1/8: 1 000
    + 125 * 64 * 64 // 64  # from 1/4: 8 000
    + 27 * 64 * 32 // 8  # from 1/2: 6 912
    + 64 * 2  # main head
)
AM = 2 * 27 * 32 * 32 + 27 * 64 * 64  # an attention module after its 1x1x1 convolution: 165 888
UAM_12_WORK = (128 * 32 + AM + 64 * 2) // 64 + (
    128 * 32 + AM + 64 * 2
) // 8  # with their side heads
WORK = {
    "USegNet-DS": CODER_WORK
    + (125 * 128 * 64 + 128 * 2) // 64
    + (27 * 128 * 64 + 128 * 2) // 8
    + 27 * 64 * 64,
    "USegNet-DS-UAM": CODER_WORK + UAM_12_WORK + 64 * 32 + AM,
    "USegNet-DS-HAS": CODER_WORK
    + ((64 * 32 + AM) // 64 + (64 * 32 + AM) // 8 + 32 * 32 + AM)  # SAM 1, 2, 3
    + UAM_12_WORK
    + (96 * 32 + AM),
}


def multiply_adds(model):
    """Of all convolutions of a model with fixed axes."""
    total = 0
    for layer in model.layers:
        if "Conv3D" in (kind := type(layer).__name__):
            passes = layer.input if "Transpose" in kind else layer.output
            total += np.prod(passes.shape[1:-1]) * np.prod(layer.kernel.shape)
    return int(total)


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_and_multiply_adds_are_those_of_the_table(variant):
    by_hand, known = PARAMETERS[variant]
    model = usegnet((64, 48, 72, 1), variant)
    assert model.count_params() == by_hand == known
    if variant in WORK:
        assert multiply_adds(model) == WORK[variant] * 64 * 48 * 72


def test_the_overhead_of_attention_is_the_papers():
    assert WORK["USegNet-DS"] < WORK["USegNet-DS-UAM"] < WORK["USegNet-DS-HAS"]
    assert 2 * WORK["USegNet-DS-HAS"] * 64 * 48 * 72 == pytest.approx(206e9, rel=0.005)


def test_parameters_of_the_2d_network():
    def conv(kernel, channels, filters):
        return kernel**2 * channels * filters + filters

    encoder = (
        conv(3, 1, 32) + conv(3, 32, 32) + conv(3, 32, 64) + conv(3, 64, 64) + 4 * conv(5, 64, 64)
    )
    deconvs = 2 * conv(5, 64, 64) + conv(3, 64, 32)
    decoder = conv(5, 128, 64) + conv(3, 128, 64) + conv(3, 64, 64) + conv(1, 64, 2)
    norms = (2 * norm(32) + 6 * norm(64)) + (2 * norm(64) + norm(32)) + 3 * norm(64)
    assert (
        usegnet((None, None, 1), "USegNet").count_params()
        == encoder + deconvs + decoder + norms
        == 1_014_754
    )


def test_parameters_with_the_attention_kernels_of_the_authors_code():
    # SAM 1 sees 64 channels, UAM 1 and UAM 2 see 128; their kernels grow from 3 to 5: + 602 112
    # each.
    extra = attention(64, 5) - attention(64) + 2 * (attention(128, 5) - attention(128))
    assert extra == 3 * (125 - 27) * (2 * 32 * 32 + 64 * 64) == 3 * 602_112
    assert usegnet(variant=HAS, attention_kernel="code").count_params() == 4_335_974 + extra


# What the network computes.


@pytest.fixture(scope="module")
def models():
    """{variant: a model of 4 filters with free axes}, all of two input channels, built once."""
    keras.utils.set_random_seed(0)
    return {
        variant: usegnet((None, None, None, 2), variant, base_filters=4) for variant in VARIANTS
    }


def bias(layer):
    """Of a convolution; one before a normalization has none."""
    return layer.bias.value if layer.use_bias else 0.0


def written_out(model, x, sam, uam, skips=(1, 2, 3)):
    """The specification's table in bare TensorFlow ops with the weights of `model`.

    For sizes of multiples of 8.
    """

    convs, deconvs, norms = (
        in_order(model, "Conv3D"),
        in_order(model, "Conv3DTranspose"),
        in_order(model, "InstanceNormalization"),
    )

    def conv(x):
        layer = next(convs)
        return tf.nn.conv3d(x, layer.kernel.value, [1] * 5, "SAME") + bias(layer)

    def deconv(x):
        layer = next(deconvs)
        size = [x.shape[0], *(2 * n for n in x.shape[1:4]), layer.filters]
        return tf.nn.conv3d_transpose(x, layer.kernel.value, size, [1, 2, 2, 2, 1], "SAME") + bias(
            layer
        )

    def normed(x):
        layer = next(norms)
        mean, variance = tf.nn.moments(x, [1, 2, 3], keepdims=True)
        return tf.nn.relu(
            (x - mean) / tf.sqrt(variance + 1e-5) * layer.gamma.value + layer.beta.value
        )

    def attend(x):
        p = conv(x)
        return conv(tf.concat([p, p * tf.nn.softmax(conv(conv(p)))], -1))

    features = []
    for _ in range(3):
        x = normed(conv(normed(conv(x))))
        features.append(x)
        x = tf.nn.max_pool3d(x, 2, 2, "VALID")
    x = normed(conv(normed(conv(x))))
    sides = []
    for scale in (1, 2, 3):
        x = normed(deconv(x))
        if scale in skips:
            skip = features[3 - scale]
            x = tf.concat([x, attend(skip) if scale in sam else skip], -1)
        sides.append(attend(x) if scale in uam else x)
        x = sides[-1] if scale in uam else normed(conv(x))
    outputs = {"logits": conv(x)}
    if "-DS" in model.name:
        outputs |= {"logits_half": conv(sides[1]), "logits_quarter": conv(sides[0])}
    return outputs


@pytest.mark.parametrize(
    "variant, parts",
    [
        ("3D-DeconvNet", {"sam": (), "uam": (), "skips": ()}),
        ("USegNet", {"sam": (), "uam": ()}),
        ("USegNet-DS", {"sam": (), "uam": ()}),
        ("USegNet-DS-SAM-12", {"sam": (1, 2), "uam": ()}),
        ("USegNet-DS-UAM-1", {"sam": (), "uam": (1,)}),
        ("USegNet-DS-HAS", {"sam": (1, 2, 3), "uam": (1, 2, 3)}),
    ],
)
def test_the_network_is_the_one_of_the_paper(models, variant, parts):
    x = noise(2, 16, 24, 16, 2)
    answer, expected = models[variant](x), written_out(models[variant], x, **parts)
    assert answer.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(answer[name], expected[name], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_channel_of_every_part_reaches_the_main_answer(models, variant):
    # No skip, SAM or UAM hangs loose: each is an input of some kernel, and every pair of its
    # channels has a gradient.
    model, x = models[variant], tf.constant(noise(1, 24, 24, 24, 2))
    weights = [weight for weight in model.trainable_weights if not weight.path.endswith("/bias")]
    with tf.GradientTape() as tape:
        tape.watch(x)
        total = tf.reduce_sum(tf.square(model(x)["logits"]))
    *gradients, of_image = tape.gradient(total, [*(weight.value for weight in weights), x])
    reached = {
        weight.path: gradient
        for weight, gradient in zip(weights, gradients)
        if gradient is not None
    }
    side_heads = {head(model, name).kernel.path for name in model.output if name != "logits"}
    assert {weight.path for weight in weights} - set(reached) == side_heads
    for path, gradient in reached.items():
        pairs = np.abs(gradient).max(axis=tuple(range(len(gradient.shape) - 2)))
        assert pairs.min() > 1e-6 * pairs.max() > 1e-9, path
    assert np.all(np.abs(of_image) > 0)


def head(model, name):
    """The 1x1x1 convolution in front of an answer."""
    return model.get_layer(name).input[0]._keras_history.operation


@pytest.mark.parametrize(
    "variant, attached",
    [("USegNet-DS", "concatenate"), ("USegNet-DS-UAM-1", "concatenate"), (HAS, "uam_2_out")],
)
def test_side_answers_hang_on_the_concatenation_or_on_the_uam(models, variant, attached):
    assert head(models[variant], "logits_half").input._keras_history.operation.name.startswith(
        attached
    )


def test_attention_is_a_softmax_over_the_channels_of_a_voxel(models):
    model = models[HAS]
    maps = [layer.output for layer in model.layers if isinstance(layer, keras.layers.Softmax)]
    assert len(maps) == 6
    answers = keras.Model(model.input, maps)(noise(1, 16, 16, 24, 2))
    # SAM 1, UAM 1 at 1/4, SAM 2, UAM 2 at 1/2, SAM 3, UAM 3 at full size.
    sizes = sorted(tuple(answer.shape[1:]) for answer in answers)
    assert sizes == 2 * [(4, 4, 6, 4)] + 2 * [(8, 8, 12, 4)] + 2 * [(16, 16, 24, 4)]
    for answer in answers:
        np.testing.assert_allclose(ops.sum(answer, axis=-1), 1.0, atol=1e-5)
        assert np.std(answer) > 0.01


# Sizes.


@pytest.mark.parametrize("free", [True, False])
@pytest.mark.parametrize(
    "size, half, quarter",
    [
        ((9, 17, 23), (5, 9, 12), (3, 5, 6)),
        ((1, 8, 30), (1, 4, 15), (1, 2, 8)),
        ((13, 22), (7, 11), (4, 6)),
    ],
)
def test_any_size_works(size, half, quarter, free):
    model = usegnet((*(None for _ in size), 1) if free else (*size, 1), base_filters=2)
    answer = model(noise(2, *size, 1))
    expected = {"logits": size, "logits_half": half, "logits_quarter": quarter}
    assert {name: tuple(logits.shape) for name, logits in answer.items()} == {
        name: (2, *spatial, 2) for name, spatial in expected.items()
    }
    assert all(np.all(np.isfinite(logits)) for logits in answer.values())
    for name, logits in model.output.items():
        assert logits.shape[1:-1] == (tuple(None for _ in size) if free else expected[name])


def test_an_odd_size_is_padded_with_edge_values_at_its_high_ends(models):
    x = noise(1, 9, 17, 23, 2)
    padded = models[HAS](np.pad(x, [(0, 0), (0, 7), (0, 7), (0, 1), (0, 0)], mode="edge"))
    answer = models[HAS](x)
    np.testing.assert_allclose(answer["logits"], padded["logits"][:, :9, :17, :23], atol=1e-5)
    np.testing.assert_allclose(
        answer["logits_half"], padded["logits_half"][:, :5, :9, :12], atol=1e-5
    )
    np.testing.assert_allclose(
        answer["logits_quarter"], padded["logits_quarter"][:, :3, :5, :6], atol=1e-5
    )


# Options.


@pytest.mark.parametrize("normalization, independent", [("instance", True), ("batch", False)])
def test_samples_of_a_batch_in_training(normalization, independent):
    model = usegnet(variant="USegNet", base_filters=2, normalization=normalization)
    a, b = noise(1, 16, 16, 16, 1), 5 + 3 * noise(1, 16, 16, 16, 1, seed=1)
    alone, together = (model(x, training=True)["logits"][:1] for x in (a, np.concatenate([a, b])))
    assert np.allclose(alone, together, atol=1e-4) == independent


def test_instance_normalization_has_no_second_mode(models):
    x = noise(1, 16, 16, 16, 2)
    np.testing.assert_array_equal(
        models[HAS](x, training=True)["logits"], models[HAS](x, training=False)["logits"]
    )
    assert not models[HAS].non_trainable_weights


def test_batch_normalization_moves_its_statistics_and_uses_them_at_test():
    model = usegnet(variant="USegNet", base_filters=2, normalization="batch")
    first = next(
        layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)
    )
    x = 3 + noise(1, 16, 16, 16, 1)
    before = model(x, training=False)["logits"]
    np.testing.assert_array_equal(first.moving_mean, [0, 0])
    model(x, training=True)
    # Momentum 0.9: one step takes a tenth of the way from 0 to the mean of the convolution's
    # answer.
    mean = ops.mean(keras.Model(model.input, first.input)(x), axis=(0, 1, 2, 3))
    np.testing.assert_allclose(first.moving_mean, 0.1 * np.array(mean), rtol=1e-3, atol=1e-6)
    assert not np.allclose(before, model(x, training=False)["logits"], atol=1e-3)


def test_the_papers_initializer():
    # A normal distribution cut at 2 SD has 0.88 of its SD.
    model = usegnet(initializer="paper", base_filters=8)
    kernels = np.concatenate(
        [np.ravel(w) for w in model.trainable_weights if w.path.endswith("/kernel")]
    )
    assert kernels.std() == pytest.approx(0.88e-3, rel=0.01)
    assert np.abs(kernels).max() <= 2e-3
    assert all(
        np.all(w.numpy() == np.float32(0.01))
        for w in model.trainable_weights
        if w.path.endswith("/bias")
    )


def test_he_initializer(models):
    kernels = [
        w
        for w in models["USegNet"].trainable_weights
        if w.path.endswith("/kernel") and w.shape[0] == 5
    ]
    normed = np.concatenate([np.ravel(w) * np.sqrt(125 * w.shape[-2] / 2) for w in kernels])
    assert normed.std() == pytest.approx(1, rel=0.05)
    assert not np.any(
        np.concatenate([w.numpy() for w in models["USegNet"].weights if w.path.endswith("/bias")])
    )


@pytest.mark.parametrize(
    "option, known",
    [
        ("variant", tuple(VARIANTS)),
        ("attention_kernel", ("paper", "code")),
        ("normalization", ("instance", "batch")),
        ("initializer", ("he", "paper")),
    ],
)
def test_an_unknown_option_lists_the_known_ones(option, known):
    with pytest.raises(ValueError, match=f"{option}='other'") as error:
        usegnet(**{option: "other"})
    assert all(name in str(error.value) for name in known)


# Life of a model.


@pytest.mark.parametrize("variant", ["3D-DeconvNet", HAS])
def test_a_saved_network_answers_the_same(models, variant, tmp_path):
    x = noise(1, 9, 17, 23, 2)
    models[variant].save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", compile=False)
    for name, logits in models[variant](x).items():
        np.testing.assert_array_equal(loaded(x)[name], logits)


def test_mixed_bfloat16_answers_float32_near_the_float32_network(models, bfloat16):
    model, x = usegnet((None, None, None, 2), base_filters=4), noise(1, 20, 24, 16, 2)
    model.set_weights(models[HAS].get_weights())
    assert all(weight.dtype == "float32" for weight in model.weights)
    for name, logits in model(x).items():
        expected = models[HAS](x)[name]
        assert logits.dtype == "float32"
        assert np.sqrt(np.mean((logits - expected) ** 2)) < 0.05 * np.std(expected)


def test_networks_and_losses_run_on_any_backend():
    package = pathlib.Path(tf_autoctx.__file__).parent
    sources = {*(package / "models").glob("*.py"), package / "losses.py"}
    sources.remove(package / "models" / "backends.py")  # of each backend, within functions
    assert len(sources) >= 4
    imported = set()
    for source in sources:
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Import):
                imported |= {name.name.split(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module.split(".")[0])
    assert imported - sys.stdlib_module_names == {"keras", "tf_autoctx"}


def test_every_submodule_is_a_module_also_after_all_are_imported():
    package = tf_autoctx.models
    assert not helpers.shadowed(package)
    names = {module.name for module in pkgutil.iter_modules(package.__path__)}
    assert set(package.__all__) == names - {"backends"} <= set(dir(package))
    assert all(isinstance(getattr(package, name), types.ModuleType) for name in package.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'other'"):
        package.other


def test_configurations_need_neither_keras_nor_tensorflow():
    light = {"tf_autoctx.models.options", "tf_autoctx.data.configuration"}
    modules = helpers.modules_after("\n".join(f"import {name}" for name in light))
    assert light <= modules and not {"keras", "tensorflow"} & modules


def test_the_package_imports_a_module_when_it_is_first_used():
    code = "import tf_autoctx.models as models"
    assert "keras" not in helpers.modules_after(code)
    modules = helpers.modules_after(f"{code}\nmodels.unet3d.pyramid")
    assert "keras" in modules and "tf_autoctx.models.usegnet" not in modules


@pytest.mark.parametrize("initializer", options.INITIALIZERS)
@pytest.mark.parametrize("normalization", options.NORMALIZATIONS)
def test_every_named_option_builds(initializer, normalization):
    assert usegnet(base_filters=1, initializer=initializer, normalization=normalization).weights


def test_a_few_steps_of_adam_learn_a_cube():
    keras.utils.set_random_seed(1)
    model, loss, adam = (
        usegnet(base_filters=4),
        losses.DeepSupervisedLoss(),
        FusedAdam(5e-3),
    )
    label = np.zeros((1, 16, 16, 16, 1), np.uint8)
    label[:, 4:12, 4:12, 4:12] = 1
    image = tf.constant(label + 0.3 * noise(*label.shape))
    variables = [variable.value for variable in model.trainable_variables]
    values = []
    for _ in range(8):
        with tf.GradientTape() as tape:
            value = tf.reduce_mean(loss(label, model(image, training=True)))
        adam.apply(tape.gradient(value, variables), model.trainable_variables)
        values.append(float(value))
    assert values[-1] < 0.6 * values[0]
