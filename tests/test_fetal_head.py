import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import graph, noise
from keras import ops

from tf_autoctx.data.configuration import Augmentation
from tf_autoctx.errors import UserError
from tf_autoctx.models import usegnet
from tf_autoctx.models.options import VARIANTS
from tf_autoctx.systems.fetal_head import training
from tf_autoctx.systems.fetal_head.configuration import WAYS, FetalHead
from tf_autoctx.systems.fetal_head.presets import PRESETS
from tf_autoctx.systems.fetal_head.segmentation import Cascade
from tf_autoctx.systems.fetal_head.system import FetalHeadSystem
from tf_autoctx.systems.shared.session import Session
from tf_autoctx.training import devices, runs
from tf_autoctx.training.configuration import Settings

ALL = (*VARIANTS, *WAYS)


def raw(*size, seed=0):
    """A raw volume of ultrasound-like values, (1, *size, 1)."""
    return np.random.default_rng(seed).integers(3, 250, (1, *size, 1)).astype(np.float32)


def configuration(variant="USegNet-DS-HAS", **fields):
    return FetalHead(**{"variant": variant, "base_filters": 2, "patch_size": 16, **fields})


def system(variant="USegNet-DS-HAS", **fields):
    return Cascade(configuration(variant, **fields))


def served(networks, x, configuration_=None):
    """What the system serves for a raw volume, by the networks of all levels."""
    whole = FetalHeadSystem(configuration_ or configuration(), {1: "head"})
    return whole.segment({f"level_{k}": n for k, n in enumerate(networks, start=1)}, x)


@pytest.fixture(scope="module")
def networks():
    """Three networks of the same structure and different weights."""
    keras.utils.set_random_seed(0)
    return [system().network() for _ in range(3)]


@pytest.fixture(scope="module")
def patch_network():
    keras.utils.set_random_seed(0)
    return system("p-USegNet").network()


# Before and after the network.


def test_intensities_are_scaled_by_the_volumes_own_range():
    x = np.stack(
        [np.reshape(values, (1, 2, 2, 1)) for values in ([-50, 0, 25, 150], [1, 1, 1, 3])]
    ).astype(np.float32)
    answer = system(scale=1.0).preprocess(x)
    np.testing.assert_allclose(
        np.reshape(answer, (2, 4)), [[0, 0.25, 0.375, 1], [0, 0, 0, 1]], atol=1e-6
    )


def test_a_constant_volume_becomes_0():
    x = np.full((2, 6, 5, 5, 1), 87, np.float32)
    x[1, 0] = 90
    answer = np.array(system().preprocess(x))
    np.testing.assert_array_equal(answer[0], np.zeros((2, 2, 2, 1)))
    assert answer[1].max() > 0 and np.all(np.isfinite(answer))


@pytest.mark.parametrize(
    "scale, size, expected",
    [
        (0.4, (388, 258, 440), (155, 103, 176)),  # 155.2, 103.2, 176.0
        (0.4, (1, 2, 4), (1, 1, 2)),  # 0.4 is 1 voxel all the same, 0.8, 1.6
        (0.5, (3, 5, 8), (2, 3, 4)),  # 1.5 and 2.5 go up
        (1.0, (7, 8, 9), (7, 8, 9)),
    ],
)
def test_network_size(scale, size, expected):
    assert system(scale=scale).network_size(size) == expected
    dynamic = tf.function(lambda size: system(scale=scale).network_size(tf.unstack(size)))(
        tf.constant(size)
    )
    assert tuple(int(n) for n in dynamic) == expected


@pytest.mark.parametrize("scale", [0.4, 0.37, 0.5, 0.65])
def test_known_and_unknown_sizes_round_alike(scale):
    sizes = np.arange(1, 600)
    known = [system(scale=scale).network_size((int(n),))[0] for n in sizes]
    np.testing.assert_array_equal(
        known, system(scale=scale).network_size((tf.constant(sizes, tf.int32),))[0]
    )


def test_preprocess_and_preprocess_label_meet_on_one_grid():
    label = np.zeros((1, 20, 13, 25, 1), np.uint8)
    label[:, 5:15] = 1
    small, image = (
        system().preprocess_label(label),
        system().preprocess(200 * label.astype(np.float32)),
    )
    assert small.shape == image.shape == (1, 8, 5, 10, 1) and small.dtype == "uint8"
    # Planes 1, 3, 6, 8, 11, 13, 16 and 18 of 20.
    np.testing.assert_array_equal(np.array(small)[0, :, 0, 0, 0], [0, 0, 1, 1, 1, 1, 0, 0])
    np.testing.assert_array_equal(np.round(image), small)


def test_preprocess_is_the_same_in_a_graph_of_any_size():
    x = raw(20, 13, 25)
    np.testing.assert_allclose(graph(system().preprocess)(x), system().preprocess(x), atol=1e-5)


def test_postprocess_thresholds_on_the_original_grid():
    def line(values, dtype):
        return np.reshape(np.array(values, dtype), (1, 1, 1, -1, 1))

    answer = system(scale=0.5).postprocess(line([0, 1, 0.5], np.float32), (1, 1, 6))
    # Between 0, 1 and 1/2 at quarters; 0.5 itself is background.
    np.testing.assert_allclose(
        answer["probability"], line([0, 0.25, 0.75, 0.875, 0.625, 0.5], np.float32), atol=1e-6
    )
    assert answer["label"].dtype == "uint8"
    np.testing.assert_array_equal(answer["label"], line([0, 0, 1, 1, 1, 0], np.uint8))


@pytest.mark.parametrize("variant", ["p-USegNet", "2D-USegNet"])
def test_patches_and_slices_are_of_the_original_grid(variant):
    x, label = raw(6, 7, 8), np.ones((1, 6, 7, 8, 1), np.uint8)
    assert system(variant).configuration.same_grid and not system().configuration.same_grid
    assert (
        system(variant).preprocess(x).shape
        == system(variant).preprocess_label(label).shape
        == (1, 6, 7, 8, 1)
    )


# Cascade.


def test_join_by_hand():
    image, context = (
        np.full((1, 2, 2, 2, 1), 0.7, np.float32),
        np.full((1, 2, 2, 2, 1), 0.5, np.float32),
    )
    np.testing.assert_allclose(system().joined(image, context), np.full((1, 2, 2, 2, 1), 1.2))
    channels = np.array(system(join="concat").joined(image, context))
    np.testing.assert_array_equal(channels[..., :1], image)
    np.testing.assert_array_equal(channels[..., 1:], context)
    assert system().network().input_shape == (None, None, None, None, 1)


@pytest.mark.parametrize(
    "variant, rank", [("USegNet-DS-HAS-Ctx", 3), ("p-USegNet", 3), ("2D-USegNet", 2)]
)
def test_a_concatenated_network_has_two_channels(variant, rank):
    one = system(variant, join="concat")
    network = one.network()
    assert network.input_shape == (None, *rank * (None,), 2)
    answer = one.levels([network, network], raw(10, 9, 20))
    assert answer[1]["probability"].shape == (1, 10, 9, 20, 1)


def test_the_cascade_written_out(networks):
    x = raw(20, 30, 25)
    image = np.array(system().preprocess(x))
    context = np.zeros_like(image)
    levels = system().levels(networks, x)
    assert len(levels) == 3
    for network, answer in zip(networks, levels):
        logits = np.array(network(image + context)["logits"], np.float64)
        context = (1 / (1 + np.exp(logits[..., :1] - logits[..., 1:]))).astype(np.float32)
        expected = system().postprocess(context, (20, 30, 25))["probability"]
        np.testing.assert_allclose(answer["probability"], expected, atol=1e-5)
        np.testing.assert_array_equal(answer["label"], np.array(answer["probability"]) > 0.5)


def test_level_2_depends_on_level_1(networks):
    x, (a, b, c) = raw(20, 30, 25), networks
    after_a, after_b = (
        np.array(system().levels([first, c], x)[1]["probability"]) for first in (a, b)
    )
    alone = np.array(system().levels([c], x)[0]["probability"])
    for one, other in ((after_a, after_b), (after_a, alone), (after_b, alone)):
        assert np.abs(one - other).max() > 1e-3
    np.testing.assert_array_equal(served([a, c], x)["probability"], after_a)


def test_the_cascade_is_the_same_in_a_graph_of_any_size(networks):
    whole = graph(lambda x: system().levels(networks, x)[-1]["probability"])
    for size in ((20, 30, 25), (17, 21, 40)):
        expected = served(networks, raw(*size))["probability"]
        np.testing.assert_allclose(whole(raw(*size)), expected, atol=1e-4)


@pytest.mark.parametrize("variant", ALL)
def test_every_row_of_the_tables_segments_a_raw_volume(variant):
    one = system(variant)
    answer = served([one.network()], raw(21, 18, 30), one.configuration)
    assert answer["probability"].shape == answer["label"].shape == (1, 21, 18, 30, 1)
    assert answer["probability"].dtype == "float32" and answer["label"].dtype == "uint8"
    probability = np.array(answer["probability"])
    assert 0 <= probability.min() < probability.max() <= 1
    assert set(np.unique(answer["label"])) <= {0, 1}


# Slices.


def test_slices_are_run_one_by_one():
    one, x = system("2D-USegNet"), noise(1, 5, 13, 10, 1)
    network, context = one.network(), noise(1, 5, 13, 10, 1, seed=1)
    answer = np.array(one.probability(network, x, context))
    assert answer.shape == x.shape
    for z in range(5):
        expected = ops.softmax(network(x[:, z] + context[:, z])["logits"])[..., 1:]
        np.testing.assert_allclose(answer[:, z], expected, atol=1e-6)


# Patches.


@pytest.mark.parametrize("size", [(16, 16, 16), (16, 9, 5)])
def test_a_volume_within_one_patch_is_not_tiled(patch_network, size):
    x = noise(1, *size, 1)
    expected = ops.softmax(patch_network(x)["logits"])[..., 1:]
    np.testing.assert_allclose(
        system("p-USegNet").probability(patch_network, x, np.zeros_like(x)), expected, atol=1e-6
    )


def test_patches_are_blended_over_half_of_them(patch_network):
    x = noise(1, 24, 16, 16, 1)
    low, high = (
        np.array(ops.softmax(patch_network(x[:, z : z + 16])["logits"])[..., 1:]) for z in (0, 8)
    )
    t = (np.arange(8, dtype=np.float32).reshape(1, 8, 1, 1, 1) + 0.5) / 8
    ramp = 3 * t**2 - 2 * t**3
    expected = np.concatenate(
        [low[:, :8], low[:, 8:] * (1 - ramp) + high[:, :8] * ramp, high[:, 8:]], axis=1
    )
    answer = system("p-USegNet").probability(patch_network, x, np.zeros_like(x))
    np.testing.assert_allclose(answer, expected, atol=1e-5)


# Training.


def test_a_level_that_is_finished_looks_at_no_image(tmp_path):
    """Sizes are read when a level is about to be trained; here the files are not even there."""
    cascade, files = system(), [{"image": "none", "label": "none", "context": ""}]
    (tmp_path / "level_1").mkdir()
    keras.utils.set_random_seed(1)
    network = cascade.network()
    network.save(tmp_path / "level_1" / "model.keras")
    settings = Settings(
        steps=1, samples_per_epoch=1, learning_rate=1e-3, learning_rate_decay="constant"
    )
    values = dataclasses.asdict(Augmentation())
    strategy = devices.strategy("single")
    session = Session(runs.Run(tmp_path, {}), values, strategy, settings, files, [])
    (finished,) = training.train(cascade, session).values()
    for mine, theirs in zip(finished.get_weights(), network.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    (tmp_path / "level_1" / "model.keras").unlink()
    with pytest.raises(UserError, match="none: missing"):
        training.train(cascade, session)


# Configuration.


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    "name, value",
    [("attention_kernel", "code"), ("attention_norm", "every"), ("plain_decoder", "bare")],
)
def test_what_is_idle_changes_no_network(variant, name, value):
    plain, changed = (
        usegnet.usegnet((None, None, 1), variant, base_filters=1, **options)
        for options in ({}, {name: value})
    )
    shapes = [[weight.shape for weight in model.weights] for model in (plain, changed)]
    is_idle = FetalHead(variant=variant, **{name: value}).idle == [name]
    assert is_idle == (shapes[0] == shapes[1])


@pytest.mark.parametrize(
    "options, first",  # so many of the options are idle
    [
        ({}, 0),
        ({"warm_start": True, "context": "augmented", "context_dropout": 0.5}, 0),
        ({"warm_start": True, "context": "augmented", "context_dropout": 0.5, "level": 1}, 3),
        ({"side_labels": "soft", "variant": "USegNet"}, 1),
        ({"side_labels": "soft", "variant": "USegNet-DS"}, 0),
    ],
)
def test_what_acts_on_nothing_is_idle(options, first):
    assert FetalHead(**options).idle == [*options][:first]


@pytest.mark.parametrize(
    "field, value",
    [
        ("variant", "UNet"),
        ("join", "product"),
        ("scale", 0),
        ("scale", 1.5),
        ("scale", float("nan")),
        ("patch_size", 0),
        ("patch_size", 60),
        ("patch_size", -8),
        ("normalization", "layer"),
        ("initializer", "zeros"),
        ("attention_kernel", "7"),
    ],
)
def test_a_bad_configuration_names_its_field(field, value):
    with pytest.raises(ValueError, match=f"^{field}="):
        Cascade(FetalHead(**{field: value})).network()


def test_training_patch():
    patches = [system(variant).training_patch() for variant in ("p-USegNet", "2D-USegNet")]
    assert patches == [(16, 16, 16), (1, None, None)]
    assert system().training_patch() == (None, None, None)


def test_volumes_lie_in_chunks_of_what_a_pass_sees():
    chunks = [training.chunk(system(variant)) for variant in ("p-USegNet", "2D-USegNet", "USegNet")]
    assert chunks == [(32, 32, 32), (1,), ()]


def test_training_shape():
    assert system().training_shape((20, 16, 30)) == (20, 16, 30)
    assert system("p-USegNet").training_shape((40, 32, 50)) == (16, 16, 16)
    assert system("2D-USegNet").training_shape((20, 16, 30)) == (16, 30)
    with pytest.raises(UserError, match=r"^patch_size=16"):
        system("p-USegNet").training_shape((40, 31, 50))


def test_no_preset_is_idle():
    names = {field.name for field in dataclasses.fields(FetalHead)}
    for preset in PRESETS.values():
        assert FetalHead(**{n: value for n, value in preset.items() if n in names}).idle == []


def test_a_training_warns_of_what_changes_nothing(caplog):
    chosen = FetalHead(variant="USegNet", warm_start=True, side_labels="soft")
    FetalHeadSystem(chosen, {1: "head"}).check_run(runs.Making("fetal_head", {}, "data"))
    (told,) = caplog.messages
    assert told == "`side_labels`, `warm_start`: nothing of USegNet with `level=1` depends on it."
    caplog.clear()
    FetalHeadSystem(FetalHead(), {1: "head"}).check_run(runs.Making("fetal_head", {}, "data"))
    assert not caplog.messages
