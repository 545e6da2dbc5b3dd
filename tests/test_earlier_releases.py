"""Runs of release 0.1.0, whose networks have biases before normalizations and Keras' own layers for
these, are read, exported and go on."""

import dataclasses
import functools
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import grey, noise, randomize
from test_precision import TINY, made

import tf_autoctx
from tf_autoctx import configuration
from tf_autoctx.commands import training as commands
from tf_autoctx.data.configuration import Augmentation
from tf_autoctx.errors import UserError
from tf_autoctx.models import layers, localiser
from tf_autoctx.systems.embryo.configuration import SlidingWindows
from tf_autoctx.systems.shared import registry, stages
from tf_autoctx.training import checkpoints, runs

# Flags of release 0.1.0: of all systems, and what each had beside these.
OF_ALL = """
    data_dir foreground validation_fraction work_dir preset strategy precision
    export_precision seed steps samples_per_epoch checkpoint_steps batch_size
    learning_rate learning_rate_decay beta_1 patience base_filters initializer
    phantom_size phantom_cases
"""
OF_SYSTEM = {
    "fetal_head": """
        level variant join scale patch_size normalization attention_kernel l2 flips shift
        intensity_jitter erase_probability phantom_scans
    """,
    "multi_organ": """
        mode levels downsampling patch_size tile_size window_low window_high normalization
        shift rotation elastic elastic_spacing phantom_spacing
    """,
    "embryo": """
        low_size body_box ventricle_box auto_context depth kernel normalization stage
        initial_from end_to_end_learning_rate rotation shift flips phantom_spacing
    """,
    "renderer": """
        variant size discriminator_head rendering_weight rendering_aux_weight dice_weight
        update_order generator_updates
    """,
}
KERAS_OWN = functools.partial(keras.layers.GroupNormalization, groups=-1)


@pytest.fixture
def earlier(tmp_path, monkeypatch):
    """(system, flags) -> run folder of 0.1.0."""

    def run(name, *flags):
        with monkeypatch.context() as patch:
            patch.setattr(layers, "InstanceNormalization", KERAS_OWN)
            folder = made(tmp_path / name, name, "--bias", *flags)
        facts = json.loads((folder / "config.json").read_text())
        del facts["flags"]["bias"]
        (folder / "config.json").write_text(json.dumps(facts))
        return folder

    return run


def network_of(folder, name):
    return stages.load(folder / f"{TINY[name][2]}.keras")


@pytest.mark.parametrize("name", TINY)
def test_a_flag_that_is_newer_tells_what_it_was_before(name):
    """Without that an earlier run cannot go on: its config.json lacks the flag."""
    kinds = commands.kinds(registry.find(name, "test"))
    defaults = {field.name: field.default for kind in kinds for field in dataclasses.fields(kind)}
    then = {*OF_ALL.split(), *OF_SYSTEM[name].split()}
    assert then <= defaults.keys()
    told = configuration.earlier(kinds)
    assert [n for n in defaults if n not in then | told.keys() and defaults[n] is not None] == []


@pytest.mark.parametrize("name", TINY)
def test_answers_of_a_run_are_what_they_were(earlier, name, monkeypatch):
    folder, image = earlier(name), 255 * grey(*TINY[name][-1])
    network = network_of(folder, name)
    kinds = {type(layer) for layer in _flat(network)}
    assert layers.InstanceNormalization not in kinds
    convolutions = [layer for layer in _flat(network) if "Conv" in type(layer).__name__]
    assert any(len(layer.get_weights()) == 2 for layer in convolutions)
    exact = tf_autoctx.load(folder, "float32")(image, probabilities=True)
    low = tf_autoctx.load(folder, "bfloat16")(image, probabilities=True)
    # The same weights in the networks of now
    run = runs.load(folder)
    system = registry.find(name, "test").load().of_run(run)
    assert system.configuration.bias
    (key,) = system.finished(run)
    networks = system.new_networks([key])
    networks[key].set_weights(network.get_weights())
    monkeypatch.setattr(type(system), "finished", lambda *_: networks)
    now = system.segment(networks, image[None, ..., None])
    for structure, probability in exact["probability"].items():
        assert 0 < np.abs(probability - low["probability"][structure]).mean() < 0.02
    np.testing.assert_array_equal(now["label"][0, ..., 0], exact["label"])
    if name != "multi_organ":
        probability = np.stack(list(exact["probability"].values()), axis=-1)
        np.testing.assert_allclose(now["probability"][0], probability, atol=1e-5)


def _flat(network):
    for layer in network.layers:
        yield from _flat(layer) if isinstance(layer, keras.Model) else [layer]


def test_a_run_goes_on_with_its_biases_alone(earlier):
    folder = earlier("fetal_head")
    declaration = registry.find("fetal_head", "test")
    kinds = commands.kinds(declaration)
    flags = {**runs.load(folder).flags, "bias": False}

    def making(bias):
        return runs.Making(
            "fetal_head", flags | {"bias": bias}, "data", earlier=configuration.earlier(kinds)
        )

    expected = {"bias": True, "initial_weights": "", "mirrors": False, "spacing": "none"}
    expected |= {"postprocessing": "none", "patch": "none", "loss": "paper", "keep_cache": True}
    expected |= {"attention_norm": "none", "plain_decoder": "conv", "side_labels": "corner"}
    expected |= {"warm_start": False, "context": "cached", "context_dropout": 0.0}
    expected |= {"rematerialize": False, "test_fraction": 0.0}
    off = configuration.earlier([Augmentation])
    assert configuration.earlier(kinds) == {**expected, **off}
    with pytest.raises(
        UserError, match=r"made with `bias` True \(now False\); give the same flags"
    ):
        runs.check(folder, making(False))
    assert runs.check(folder, making(True))


def test_a_checkpoint_goes_on_in_the_networks_of_now(tmp_path, monkeypatch):
    """Of networks and of an optimizer that has made a step."""

    def new():
        image = keras.Input((4, 4, 2))
        block = layers.Block("instance", "he", bias=True)
        network = keras.Model(image, block.conv(image, 2, 3, "conv"))
        optimizer = keras.optimizers.Adam(0.1)
        optimizer.build(network.trainable_variables)
        return network, optimizer

    with monkeypatch.context() as patch:
        patch.setattr(layers, "InstanceNormalization", KERAS_OWN)
        network, optimizer = new()
    randomize(network)
    optimizer.apply([tf.ones_like(v.value) for v in network.trainable_variables])
    checkpoints.Checkpoints(tmp_path, {"network": network}, {"adam": optimizer}).save({"step": 3})
    again, theirs = new()
    restored = checkpoints.Checkpoints(tmp_path, {"network": again}, {"adam": theirs}).restore()
    assert restored["step"] == 3
    pairs = zip([*network.weights, *optimizer.variables], [*again.weights, *theirs.variables])
    for before, now in pairs:
        np.testing.assert_array_equal(before.numpy(), now.numpy())
    x = noise(1, 4, 4, 2)
    np.testing.assert_allclose(again(x), network(x), atol=1e-5)


def test_the_peer_of_the_embryo_has_its_biases():
    flags = {"window": 16, "stride": 3, "base_filters": 2, "depth": 1, "kernel": 3}
    flags |= {"normalization": "instance", "initializer": "he"}
    peer = configuration.configured(SlidingWindows, flags)
    assert peer.bias and peer.vnet.bias and not SlidingWindows(**flags).bias


@pytest.mark.parametrize("bias", [True, False])
def test_a_localiser_is_folded_with_and_without_biases(bias):
    network = randomize(localiser.localiser(16, filters=2, bias=bias))
    x = noise(2, 16, 16, 16, 1)
    np.testing.assert_allclose(localiser.folded(network)(x), network(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", TINY)
def test_a_new_run_has_no_bias_before_a_normalization(tmp_path, name):
    network = network_of(made(tmp_path, name), name)
    normed = 0
    for layer in _flat(network):
        if isinstance(layer, keras.layers.GroupNormalization | keras.layers.BatchNormalization):
            before = layer.input._keras_history.operation
            assert not before.use_bias
            normed += 1
    assert normed
