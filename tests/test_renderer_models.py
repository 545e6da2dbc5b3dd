"""Renderer, segmentor, discriminators: widths of the specification, skips, branches, any size."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import grey

from tf_autoctx import losses
from tf_autoctx.models.renderer import discriminator, renderer, segmentor2d
from tf_autoctx.training.loop import FusedAdam

BUILT = {
    "renderer": lambda size=None: renderer(size, base_filters=2, initializer="he"),
    "segmentor": lambda size=None: segmentor2d(size, base_filters=2, initializer="he"),
    "pool": lambda size=None: discriminator(2, size, head="pool", base_filters=2, initializer="he"),
    "scaled": lambda size=16: discriminator(2, size, base_filters=2, initializer="he"),
}


def widths(model):
    """(kind, edge of the kernel, channels in, channels out) of every convolution, sorted.

    Channels of deconvolutions are in the data's order.
    """
    found = []
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2DTranspose):
            found.append(
                ("up", layer.kernel.shape[0], layer.kernel.shape[3], layer.kernel.shape[2])
            )
        elif isinstance(layer, keras.layers.Conv2D):
            found.append(("conv", layer.kernel.shape[0], *layer.kernel.shape[2:]))
    return sorted(found)


def test_widths_are_the_specification():
    assert widths(renderer(32)) == sorted(
        [
            ("conv", 3, 1, 32),
            ("conv", 3, 32, 32),
            ("conv", 3, 32, 64),
            ("conv", 3, 64, 64),
            ("conv", 3, 64, 128),
        ]
        + [
            ("up", 4, 128, 128),
            ("conv", 3, 192, 64),
            ("up", 4, 64, 64),
            ("conv", 3, 96, 32),
            ("conv", 1, 32, 1),
        ]
        + [("conv", 1, 64, 16), ("up", 4, 16, 1)]
    )
    assert widths(segmentor2d(32)) == sorted(
        [
            ("conv", 3, 1, 32),
            ("conv", 3, 32, 64),
            ("conv", 3, 64, 128),
            ("conv", 3, 128, 128),
            ("conv", 3, 128, 256),
        ]
        + [("up", 4, 256, 256), ("conv", 3, 384, 128), ("up", 4, 128, 128), ("conv", 3, 192, 64)]
        + [("up", 4, 64, 64), ("conv", 3, 96, 32), ("conv", 1, 32, 2)]
        + [
            ("conv", 1, 128, 2),
            ("up", 4, 2, 2),
            ("up", 4, 2, 2),
            ("conv", 1, 64, 2),
            ("up", 4, 2, 2),
        ]
    )
    pair = discriminator(2, 320, head="flatten")
    assert widths(pair) == [
        ("conv", 3, 2, 32),
        ("conv", 3, 32, 32),
        ("conv", 3, 32, 64),
        ("conv", 3, 64, 64),
    ]
    assert pair.layers[-1].kernel.shape == (320 * 320 * 64, 1)
    assert discriminator(1, head="pool").layers[-1].kernel.shape == (64, 1)


def test_batch_norm_and_initializer_of_the_authors():
    network = segmentor2d(16)
    norms = [
        layer for layer in network.layers if isinstance(layer, keras.layers.BatchNormalization)
    ]
    assert len(norms) == 11 and {(norm.momentum, norm.epsilon) for norm in norms} == {(0.9, 1e-5)}
    kernels = np.concatenate(
        [w.numpy().ravel() for w in network.trainable_weights if w.path.endswith("kernel")]
    )
    # A normal of SD 0.01 cut at two of them has an SD of 0.0088; Keras makes up for the cut.
    assert np.std(kernels) == pytest.approx(0.01, rel=0.15) and np.abs(kernels).max() < 0.0231


@pytest.mark.parametrize("size", [(16, 16), (13, 22), (7, 9)])
@pytest.mark.parametrize("name", ["renderer", "segmentor", "pool"])
def test_any_size(name, size):
    answer = BUILT[name]()(grey(2, *size, 2 if name == "pool" else 1))
    if name == "pool":
        assert answer.shape == (2, 1)
    else:
        channels = 1 if name == "renderer" else 2
        assert {tuple(x.shape) for x in answer.values()} == {(2, *size, channels)}
        assert {x.dtype for x in answer.values()} == {tf.float32}


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: discriminator(1, 16, head="mean"),
            "head='mean': expected one of scaled, flatten, pool",
        ),
        (
            lambda: discriminator(1),
            "head='scaled' with size=None: expected the size of the images, or the head 'pool'",
        ),
        (lambda: discriminator(1, head="flatten"), "head='flatten' with size=None"),
        (lambda: renderer(initializer="zeros"), "expected one of he, paper, truncated_normal"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("name", ["renderer", "segmentor"])
def test_every_skip_and_branch_changes_the_answer(name):
    """A scaled feature map before each concatenation changes the main output.

    Each side branch hears its own layers.
    """
    keras.utils.set_random_seed(0)
    network, image = BUILT[name](16), grey(1, 16, 16, 1)
    concatenations = [
        layer for layer in network.layers if isinstance(layer, keras.layers.Concatenate)
    ]
    assert len(concatenations) == {"renderer": 2, "segmentor": 3}[name]
    inputs = [tensor for layer in concatenations for tensor in layer.input]
    main = "rendered" if name == "renderer" else "logits"
    probe = keras.Model(network.input, [network.output[main], *inputs])
    with tf.GradientTape() as tape:
        x = tf.constant(image)
        tape.watch(x)
        answer, *features = probe(x)
        target = tf.reduce_sum(answer)
    for gradient in tape.gradient(target, features):
        assert np.abs(gradient).max() > 0


def test_each_answer_depends_on_its_own_weights():
    network = BUILT["segmentor"](16)
    image = tf.constant(grey(1, 16, 16, 1))
    heard = {}
    for name in ("logits", "aux1", "aux2"):
        with tf.GradientTape() as tape:
            target = tf.reduce_sum(network(image)[name])
        gradients = tape.gradient(target, [w.value for w in network.trainable_weights])
        heard[name] = {
            w.path for w, g in zip(network.trainable_weights, gradients) if g is not None
        }
    assert (
        heard["aux1"] - heard["logits"]
        and heard["aux2"] - heard["logits"]
        and heard["logits"] - heard["aux2"]
    )
    assert len(heard["aux2"] - heard["logits"]) == 4 and len(heard["aux1"] - heard["logits"]) == 6


def test_the_pair_discriminator_sees_both():
    network, pair = BUILT["scaled"](), grey(1, 16, 16, 2)
    before = float(network(pair)[0, 0])
    for channel in (0, 1):
        other = pair.copy()
        other[..., channel] = grey(1, 16, 16, seed=1)
        assert float(network(other)[0, 0]) != before


def test_the_scaled_head_is_the_authors_on_features_divided_by_the_root_of_their_number():
    scaled, authors = (
        discriminator(2, 16, head=head, base_filters=2, initializer="he")
        for head in ("scaled", "flatten")
    )
    *others, kernel, bias = scaled.get_weights()
    authors.set_weights([*others, kernel / np.sqrt(16 * 16 * 4), bias])
    assert kernel.shape == (16 * 16 * 4, 1)
    image = grey(3, 16, 16, 2)
    np.testing.assert_allclose(scaled(image), authors(image), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("initializer, sd", [("authors", 0.02), ("truncated_normal", 0.0088)])
def test_the_authors_linear_unit_has_its_own_initializer(initializer, sd):
    network = discriminator(2, 64, head="flatten", base_filters=2, initializer=initializer)
    assert np.std(network.layers[-1].kernel.numpy()) == pytest.approx(sd, rel=0.03)
    assert np.abs(network.layers[1].kernel.numpy()).max() < 0.0231  # convolutions are cut


def test_answers_are_float32_and_losses_fall_on_a_fixed_batch(bfloat16):
    keras.utils.set_random_seed(0)
    network = segmentor2d(16, base_filters=4, initializer="he")
    image, label = tf.constant(grey(2, 16, 16, 1)), np.zeros((2, 16, 16, 1), np.uint8)
    label[:, 4:12, 5:13] = 1
    optimizer, loss = FusedAdam(1e-2), losses.HybridLoss(1.0)
    weights = network.trainable_weights
    optimizer.build(weights)

    @tf.function(autograph=False)
    def step():
        with tf.GradientTape() as tape:
            answer = network(image, training=True)
            value = tf.reduce_mean(loss(label, answer))
        optimizer.apply(tape.gradient(value, [w.value for w in weights]), weights)
        return value, answer["logits"].dtype == tf.float32

    seen = [step() for _ in range(30)]
    assert all(right for _, right in seen)
    assert float(seen[-1][0]) < float(seen[0][0]) - 1


@pytest.mark.parametrize("name", list(BUILT))
def test_saved_and_loaded(name, tmp_path):
    network = BUILT[name](16)
    network.save(tmp_path / "model.keras")
    image = grey(1, 16, 16, network.input_shape[-1])
    for a, b in zip(
        tf.nest.flatten(network(image)),
        tf.nest.flatten(keras.models.load_model(tmp_path / "model.keras")(image)),
    ):
        np.testing.assert_array_equal(a, b)
