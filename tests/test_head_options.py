"""Options of the fetal head system's networks and levels: what each of them changes, by hand."""

import dataclasses
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
import test_models
from helpers import noise, plain_networks, randomize
from test_order import differ, finish, flat, head_session

from tf_autoctx import losses
from tf_autoctx.data import pipeline
from tf_autoctx.data.configuration import Augmentation
from tf_autoctx.data.labels import IGNORED
from tf_autoctx.errors import FieldError
from tf_autoctx.models import layers, renderer, unet3d, usegnet, vnet
from tf_autoctx.models.options import VNetOptions
from tf_autoctx.report import figures
from tf_autoctx.systems.fetal_head import training
from tf_autoctx.systems.fetal_head.configuration import FetalHead
from tf_autoctx.systems.fetal_head.segmentation import Cascade
from tf_autoctx.systems.fetal_head.system import FetalHeadSystem
from tf_autoctx.systems.shared import stages
from tf_autoctx.training import runs

# Gains


def test_a_linear_convolution_keeps_the_variance_and_he_doubles_it():
    """1024 weights of each of 64 channels: the variance is within 5 %."""
    x = noise(1, 8, 8, 8, 1024)
    for linear, expected in (True, 1.0), (False, 2.0):
        keras.utils.set_random_seed(0)
        arguments = layers.initializers("he", linear)
        y = keras.layers.Conv3D(64, 1, **arguments)(x)
        assert np.var(y) == pytest.approx(expected, rel=0.05)


OF_HE = {
    "HAS": lambda: usegnet.usegnet(base_filters=2, initializer="he"),
    "HAS, normed": lambda: usegnet.usegnet(base_filters=2, attention_norm="output"),
    "U-Net": lambda: unet3d.unet3d((8, 8, 8, 1), 2, base_filters=2, depth=2, initializer="he"),
    "VNet": lambda: vnet.vnet((8, 8, 8, 1), 2, VNetOptions(base_filters=2, depth=2)),
    "renderer": lambda: renderer.renderer(base_filters=2, initializer="he"),
    "segmentor": lambda: renderer.segmentor2d(base_filters=2, initializer="he"),
}


@pytest.mark.parametrize("name", OF_HE)
def test_the_gain_is_2_where_a_normalization_and_a_relu_follow_and_else_1(name):
    network = OF_HE[name]()
    gains = set()
    for layer in network.layers:
        if not isinstance(layer, keras.layers.Layer) or "Conv" not in type(layer).__name__:
            continue
        (node, *_) = layer._outbound_nodes
        is_normed = "Normalization" in type(node.operation).__name__
        assert layer.kernel_initializer.scale == (2 if is_normed else 1), layer.name
        gains.add(layer.kernel_initializer.scale)
    assert gains == {1, 2}


def test_the_papers_initializers_know_no_gain():
    for name, sd in ("paper", 0.001), ("truncated_normal", 0.01), ("authors", 0.01):
        for linear in (True, False):
            assert layers.initializers(name, linear)["kernel_initializer"].stddev == sd
    assert layers.initializers("authors", unit=True)["kernel_initializer"].stddev == 0.02
    assert layers.initializers("he", unit=True)["kernel_initializer"].scale == 1


# What the attention modules are made of


@pytest.mark.parametrize(
    "norm, normed", [("none", ""), ("output", "out"), ("every", "p w_1 w_2 out")]
)
def test_an_attention_module_written_out(norm, normed):
    image = keras.Input((4, 6, 5, 3))
    block = layers.Block("instance", "he")
    y = usegnet.attention_module(image, 3, block, norm, filters=4, inner=2, name="am")
    network = randomize(keras.Model(image, y))

    def part(x, name):
        layer = network.get_layer(f"am_{name}")
        y = tf.nn.conv3d(x, layer.kernel.value, [1] * 5, "SAME")
        if name not in normed.split():
            return y + layer.bias.value
        assert not layer.use_bias
        scale = network.get_layer(f"am_{name}_norm")
        mean, variance = tf.nn.moments(y, [1, 2, 3], keepdims=True)
        y = (y - mean) / tf.sqrt(variance + 1e-5) * scale.gamma.value + scale.beta.value
        return tf.nn.relu(y)

    x = noise(2, 4, 6, 5, 3)
    p = part(x, "p")
    attention = tf.nn.softmax(part(part(p, "w_1"), "w_2"))
    expected = part(tf.concat([p, p * attention], -1), "out")
    np.testing.assert_allclose(network(x), expected, rtol=1e-3, atol=1e-4)
    kinds = [type(layer).__name__ for layer in network.layers]
    assert kinds.count("InstanceNormalization") == len(normed.split())


def test_the_norm_reaches_every_module_of_a_level():
    def norms(norm):
        cascade = Cascade(FetalHead(variant="USegNet-DS-HAS", base_filters=2, attention_norm=norm))
        names = [layer.name for layer in cascade.network().layers]
        return [name for name in names if name.endswith("_norm") and "am_" in name]

    modules = [f"{kind}_{scale}" for scale in (1, 2, 3) for kind in ("sam", "uam")]
    assert norms("none") == [] and norms("output") == [f"{name}_out_norm" for name in modules]
    assert len(norms("every")) == 24


# What stands where a UAM is missing

SIDE = test_models.SIDE
BARE = {
    # The second and third deconvolution see a concatenation of 128, the heads 128 and 64.
    "USegNet-DS": test_models.ENCODER
    + test_models.conv(5, 64, 64)
    + test_models.conv(5, 128, 64)
    + test_models.conv(3, 128, 32)
    + 2 * test_models.norm(64)
    + test_models.norm(32)
    + 2 * SIDE
    + test_models.conv(1, 64, 2),
    # Nothing is missing.
    "USegNet-DS-HAS": test_models.PARAMETERS["USegNet-DS-HAS"][0],
}


@pytest.mark.parametrize("variant", BARE)
def test_a_bare_decoder_has_nothing_in_place_of_a_uam(variant):
    network = usegnet.usegnet((32, 32, 32, 1), variant, plain_decoder="bare")
    assert network.count_params() == BARE[variant]
    assert not {"decoder_1", "decoder_2", "decoder_3"} & {layer.name for layer in network.layers}


def test_a_level_is_built_with_the_decoder_that_is_asked_for():
    sizes = {
        plain: Cascade(FetalHead(variant="USegNet", base_filters=2, plain_decoder=plain))
        .network()
        .count_params()
        for plain in ("conv", "bare")
    }
    assert sizes["bare"] < sizes["conv"]


@pytest.mark.parametrize("field", ["attention_norm", "plain_decoder"])
def test_an_unknown_part_is_named(field):
    with pytest.raises(ValueError, match=f"^{field}='x': expected one of "):
        usegnet.usegnet(**{field: "x"})


# Labels of side branches


def learnt(label, edge, **options):
    """Share of the head that the cross entropy of a side branch wants of each of its cells: of
    logits of 0, the gradient of the head's is (1/2 - share) / cells."""
    name = {2: "logits_half", 4: "logits_quarter"}[edge]
    size = [-(-n // edge) for n in label.shape[1:-1]]
    logits = tf.zeros([1, *size, 2])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = losses.DeepSupervisedLoss(**options)(label, {name: logits})
    return 0.5 - np.array(tape.gradient(loss, logits))[0, ..., 1] * np.prod(size)


@pytest.mark.parametrize(
    "how, half, quarter",
    [
        ("corner", [0, 1, 0, 1], [0, 0]),
        ("majority", [0, 1, 0, 1], [1, 0]),  # half of the first cell is not most of it
        ("soft", [0.5, 1, 0, 1], [0.75, 0.5]),  # the last voxel goes on beyond the end
    ],
)
def test_side_labels_of_seven_voxels(how, half, quarter):
    label = np.reshape([0, 1, 1, 1, 0, 0, 1], (1, 7, 1)).astype(np.uint8)
    np.testing.assert_allclose(learnt(label, 2, side_labels=how), half, atol=1e-6)
    np.testing.assert_allclose(learnt(label, 4, side_labels=how), quarter, atol=1e-6)


@pytest.mark.parametrize(
    "how, half, quarter",
    [
        ("corner", [0, 1, 0, 1], [0, 3, 2, 1]),
        ("majority", [0, 0, 0, 0], [0, -1, 0, 1]),
        ("soft", [0, 0, 0, 0], [0, 0, 0, 0]),
    ],
)
def test_how_far_side_labels_are_off_centre(how, half, quarter):
    """A slab of 12 voxels that begins at 8, 9, 10 and 11: half a voxel and one and a half off on
    average, or centred."""
    for edge, expected in (2, half), (4, quarter):
        off = []
        for first in range(8, 12):
            label = np.zeros((1, 32, 1), np.uint8)
            label[:, first : first + 12] = 1
            share = learnt(label, edge, side_labels=how)
            centres = edge * (np.arange(len(share)) + 0.5)
            off.append(np.average(centres, weights=np.round(share, 6)) - (first + 6))
        np.testing.assert_allclose(off, expected, atol=1e-4)


@pytest.mark.parametrize("ignored", [None, IGNORED])
@pytest.mark.parametrize("terms", [("cross_entropy",), ("dice",), losses.TERMS])
def test_a_soft_label_is_that_of_all_voxels_of_a_cell(terms, ignored):
    draw = np.random.default_rng(0)
    label = draw.choice([0, 1] if ignored is None else [0, 1, IGNORED], (2, 8, 4, 6, 1))
    label = label.astype(np.uint8)
    logits = draw.normal(0, 2, (2, 4, 2, 3, 2)).astype(np.float32)
    everywhere = logits
    for axis in (1, 2, 3):
        everywhere = np.repeat(everywhere, 2, axis=axis)
    expected = losses.ClassLoss(terms, ignored=ignored)(label, everywhere)
    how = {"ignored": ignored, "side_labels": "soft"}
    loss = losses.DeepSupervisedLoss(terms, **how)(label, {"logits_half": logits})
    np.testing.assert_allclose(loss, expected, rtol=1e-4)


def test_the_most_of_a_cell_is_that_of_the_voxels_that_count():
    """The first cell has one voxel that counts, the second none."""
    label = np.reshape([IGNORED, 1, IGNORED, IGNORED, 0, 0], (1, 6, 1)).astype(np.uint8)
    logits = tf.zeros([1, 3, 2])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        how = {"ignored": IGNORED, "side_labels": "majority"}
        loss = losses.DeepSupervisedLoss(**how)(label, {"logits_half": logits})
    gradient = np.array(tape.gradient(loss, logits))[0, :, 1]
    np.testing.assert_allclose(gradient, [-0.25, 0, 0.25], atol=1e-6)


def test_the_main_output_has_its_own_labels():
    label = np.reshape([0, 1, 1, 0], (1, 4, 1)).astype(np.uint8)
    logits = noise(1, 4, 2)
    values = [
        float(losses.DeepSupervisedLoss(side_labels=how)(label, {"logits": logits})[0])
        for how in ("corner", "majority", "soft")
    ]
    assert values[0] == values[1] == values[2]


# Levels


@pytest.fixture
def plain(monkeypatch):
    monkeypatch.setattr(figures, "history", lambda *_: None)
    with plain_networks():
        yield


def cascade(levels=2, **fields):
    return Cascade(
        FetalHead(level=levels, variant="USegNet-DS", base_filters=1, scale=1.0, **fields)
    )


def session(folder, rate=1e-2, **changes):
    """Two cases, three steps, with random changes."""
    opened = head_session(folder).with_settings(learning_rate=rate)
    return dataclasses.replace(opened, values=vars(Augmentation(**changes)))


def after(folder, system, *seeds, **how):
    """What the last level learns after finished ones of seeds."""
    for level, seed in enumerate(seeds, start=1):
        finish(folder / f"level_{level}", randomize(system.network(), seed))
    networks = training.train(system, session(folder, **how))
    return networks[f"level_{system.configuration.levels}"].get_weights()


def test_side_labels_reach_the_loss_of_a_level(tmp_path):
    values = {}
    for how in ("corner", "majority", "soft"):
        stage = training.LevelStage(1, cascade(side_labels=how), session(tmp_path / how))
        label = np.zeros((1, 8, 8, 8, 1), np.uint8)
        label[:, 1:6, 1:6, 1:6] = 1
        image = noise(1, 8, 8, 8, 1)
        batch = {"image": image, "label": label, "context": 0 * image}
        keras.utils.set_random_seed(0)
        values[how] = float(stage.losses(stage.build(), batch)[0])
    assert len(set(values.values())) == 3


def test_a_warm_level_starts_from_the_weights_of_the_level_before(tmp_path, plain):
    """At a rate at which it learns nothing."""
    warm, cold = cascade(warm_start=True), cascade()
    before = flat(randomize(warm.network(), 1).get_weights())
    started = flat(after(tmp_path / "warm", warm, 1, rate=1e-12))
    np.testing.assert_allclose(started, before, atol=1e-6)
    assert differ([before], after(tmp_path / "cold", cold, 1, rate=1e-12))


def test_a_warm_level_has_its_own_channel_for_the_context(tmp_path, plain):
    system = cascade(warm_start=True, join="concat")
    below = randomize(system.network(), 1)
    stage = training.LevelStage(2, system, session(tmp_path), [below])
    keras.utils.set_random_seed(5)
    own = system.network().get_weights()
    keras.utils.set_random_seed(5)
    (network,) = stage.build().values()
    kernel, bias = network.get_weights()
    theirs, their_bias = below.get_weights()
    np.testing.assert_array_equal(kernel[..., :1, :], theirs[..., :1, :])
    np.testing.assert_array_equal(kernel[..., 1:, :], own[0][..., 1:, :])
    np.testing.assert_array_equal(bias, their_bias)
    assert np.abs(theirs[..., 1:, :] - own[0][..., 1:, :]).min() > 0


def test_two_first_weights_of_a_level_are_refused():
    making = runs.Making("fetal_head", {"initial_weights": "runs/a"}, "data")
    FetalHeadSystem(FetalHead(), {1: "head"}).check_run(making)
    system = FetalHeadSystem(FetalHead(warm_start=True), {1: "head"})
    with pytest.raises(FieldError, match=r"^warm_start=True: `initial_weights` gives every level"):
        system.check_run(making)
    system.check_run(runs.Making("fetal_head", {"initial_weights": ""}, "data"))


@pytest.mark.parametrize("join, levels", [("sum", 2), ("concat", 3)])
def test_the_map_of_an_unchanged_sample_is_the_cached_one(tmp_path, plain, join, levels):
    """And that of a changed one is not."""
    seeds = range(1, levels)
    for changes, same in ({}, True), ({"shift": 2, "erase_probability": 1.0}, False):
        cached, augmented = (
            flat(
                after(
                    tmp_path / f"{how}_{same}",
                    cascade(levels, join=join, context=how),
                    *seeds,
                    **changes,
                )
            )
            for how in ("cached", "augmented")
        )
        assert np.allclose(cached, augmented, atol=1e-5) == same


def test_no_maps_of_training_cases_are_stored_where_they_are_computed(tmp_path, plain):
    opened = head_session(tmp_path)
    opened = opened.with_files(opened.training[:1], opened.training[1:])
    training.train(cascade(context="augmented"), opened)
    (map_,) = (tmp_path / "level_1" / "probability").iterdir()
    assert map_.name.startswith("case_1_")


def test_a_level_learns_nothing_from_a_context_that_is_always_dropped(tmp_path, plain):
    def learnt_after(seed, share, how):
        system = cascade(context_dropout=share, context=how)
        return after(tmp_path / f"{seed}_{share}_{how}", system, seed)

    for how in ("cached", "augmented"):
        assert not differ(learnt_after(1, 1.0, how), learnt_after(2, 1.0, how))
        assert differ(learnt_after(1, 0.0, how), learnt_after(2, 0.0, how))


def test_a_context_is_dropped_in_its_share_of_the_samples(tmp_path):
    sample = {"image": tf.zeros([8, 8, 8, 1]), "label": tf.zeros([8, 8, 8, 1], tf.uint8)}
    system = cascade(context_dropout=0.25)
    stage = training.LevelStage(2, system, session(tmp_path))
    seeds = [tf.constant([7, number], tf.int64) for number in range(400)]
    kept = [float(stage.augment(sample, seed)["kept"]) for seed in seeds]
    assert set(kept) == {0.0, 1.0}
    assert np.mean(kept) == pytest.approx(0.75, abs=0.07)  # 3 SD
    again = [float(stage.augment(sample, seed)["kept"]) for seed in seeds[:20]]
    assert again == kept[:20]
    batch = {name: tf.stack([tensor] * 4) for name, tensor in sample.items()}
    together = pipeline.augmented((batch, tf.stack(seeds[:4])), stage.augment)
    assert together["kept"].numpy().tolist() == kept[:4]
    first = training.LevelStage(1, system, session(tmp_path))
    assert "kept" not in first.augment(sample, seeds[0])


def test_each_sample_of_a_batch_keeps_or_loses_its_own_context(tmp_path):
    stage = training.LevelStage(2, cascade(context_dropout=0.5), session(tmp_path))
    seen = []

    def network(x, training):
        seen.append(np.array(x))
        return {"logits": tf.concat([x, x], -1)}

    context = noise(2, 8, 8, 8, 1)
    batch = {"image": 0 * context, "context": context, "label": np.zeros((2, 8, 8, 8, 1), np.uint8)}
    stage.losses({"network": network}, {**batch, "kept": tf.constant([0.0, 1.0])})
    np.testing.assert_array_equal(seen[0][0], 0 * context[0])
    np.testing.assert_array_equal(seen[0][1], context[1])


# Levels below that are not what they were


def test_a_level_is_trained_anew_after_another_level_1(tmp_path, plain):
    """Be it another file, or a new training where the folder was deleted."""
    system, folder = cascade(), tmp_path / "run"
    first = after(folder, system, 1)
    randomize(system.network(), 2).save(folder / "level_1" / stages.NETWORK)
    second = training.train(system, session(folder))["level_2"].get_weights()
    assert differ(first, second)
    np.testing.assert_array_equal(flat(second), flat(after(tmp_path / "other", system, 2)))
    shutil.rmtree(folder / "level_1")
    third = training.train(system, session(folder))
    whole = training.train(system, session(tmp_path / "whole"))
    for name in ("level_1", "level_2"):
        np.testing.assert_array_equal(
            flat(third[name].get_weights()), flat(whole[name].get_weights())
        )
    assert differ(second, third["level_2"].get_weights())


def test_a_level_that_is_there_stays_after_the_same_level_1(tmp_path, plain):
    system = cascade()
    training.train(system, session(tmp_path))
    before = (tmp_path / "level_2" / stages.NETWORK).stat().st_mtime_ns
    shutil.rmtree(tmp_path / "level_1")
    training.train(system, session(tmp_path))
    assert (tmp_path / "level_2" / stages.NETWORK).stat().st_mtime_ns == before


def test_a_level_after_another_level_1_is_not_used(tmp_path, plain, caplog):
    system = FetalHeadSystem(cascade().configuration, {1: "head"})
    for name, seed in ("a", 1), ("b", 2):
        opened = session(tmp_path / name).with_settings(seed=seed)
        training.train(system.cascade, opened)
    run = runs.Run(tmp_path / "a", {"flags": {"level": 2}})
    assert list(system.finished(run)) == ["level_1", "level_2"] and not caplog.records
    of_level_1 = [tmp_path / name / "level_1" / stages.NETWORK for name in "ab"]
    shutil.copy(of_level_1[1], of_level_1[0])
    assert list(system.finished(run)) == ["level_1"]
    told = "level_2 was trained on another level_1 than the one that is there; train again."
    assert told in caplog.text and "1 of 2 levels are finished" in caplog.text
