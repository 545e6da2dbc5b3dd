"""The embryo system: what it does to a volume, and how its stages follow each other."""

import types

import numpy as np
import pytest
import tensorflow as tf
from keras import ops
from scipy import ndimage

from tf_autoctx import errors, metrics
from tf_autoctx.data import augment, pipeline
from tf_autoctx.systems import embryo, refinement, stages
from tf_autoctx.systems.embryo import Embryo
from tf_autoctx.training import devices, loop

LABELS = {2: "body", 5: "ventricle"}
STILL = augment.RigidMotion(rotation=0.0, shift=0, flips=False)


def system(**fields):
    tiny = {
        "low_size": 8,
        "body_box": 16,
        "ventricle_box": 8,
        "base_filters": 2,
        "depth": 2,
        "kernel": 3,
    }
    return Embryo(LABELS, **{**tiny, **fields})


def raw(*size, seed=0):
    """A raw volume with structure, (1, *size, 1)."""
    noise = np.random.default_rng(seed).normal(size=size)
    return (100 + 300 * ndimage.gaussian_filter(noise, 1.5)).astype(np.float32)[None, ..., None]


def settings(**fields):
    given = {
        "seed": 3,
        "steps": 2,
        "samples_per_epoch": 2,
        "checkpoint_steps": 100,
        "batch_size": 1,
        "patience": 0,
    }
    return loop.Settings(
        **{
            **given,
            "learning_rate": 1e-2,
            "learning_rate_decay": "constant",
            "beta_1": 0.9,
            **fields,
        }
    )


def cases(folder, one, sizes=((18, 20, 22), (18, 20, 22), (15, 21, 17))):
    """Cached files of volumes with a body that is a box and a ventricle inside it."""
    files = []
    for number, size in enumerate(sizes):
        label = np.zeros((1, *size, 1), np.uint8)
        label[:, 3:12, 4:13, 5:15] = 2
        label[:, 5:8, 6:9, 7:10] = 5
        tensors = refinement.prepared(one)(None, raw(*size, seed=number) + 100 * label, label)
        entry = {}
        for name, tensor in {**tensors, "spacing": np.array([0.1, 0.1, 0.1], np.float32)}.items():
            path = folder / "cache" / str(number) / name
            pipeline.store(path, tensor)
            entry[name] = str(path)
        files.append(entry)
    return files


def train(stage, one, files, run, validation=(), **fields):
    strategy = devices.strategy("single")
    return refinement.train(
        stage, one, files, list(validation), run, strategy, settings(**fields), STILL
    )


def weights(network, name):
    return [weight.numpy() for weight in network.get_layer(name).weights]


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a, b))


# What is done to a volume


def test_preprocessing_does_not_know_the_gain():
    one, volume = system(), raw(9, 10, 11)
    image = np.array(one.preprocess(volume))
    np.testing.assert_allclose(np.mean(image**2), 1, rtol=1e-4)
    np.testing.assert_allclose(image, volume / np.sqrt(np.mean(volume**2)), rtol=1e-4)
    np.testing.assert_allclose(one.preprocess(7 * volume), image, rtol=1e-4)
    assert not np.any(one.preprocess(0 * volume))
    two = one.preprocess(np.concatenate([volume, 3 * volume]))
    np.testing.assert_allclose(two[0], two[1], rtol=1e-4)


def test_classes_are_above_a_half_and_the_ventricle_wins():
    probability = np.array([[0.2, 0.3], [0.6, 0.5], [0.4, 0.51], [0.9, 0.8]], np.float32)[
        None, None, None
    ]
    np.testing.assert_array_equal(system().classes(probability)[0, 0, 0, :, 0], [0, 1, 2, 2])


def test_cached_labels_are_classes():
    label = np.array([0, 2, 5, 1], np.uint8).reshape(1, 1, 1, 4, 1)
    found = refinement.prepared(system())(None, raw(1, 1, 4), label)["label"]
    np.testing.assert_array_equal(found[..., 0].ravel(), [0, 1, 2, 0])
    assert found.dtype == np.uint8 and found.shape == (1, 1, 4, 1)


def test_low_label_takes_the_voxel_in_the_middle():
    label = np.arange(24, dtype=np.uint8).reshape(1, 24, 1, 1, 1)
    low = np.array(system().low_label(label))
    assert low.shape == (1, 8, 8, 8, 1)
    np.testing.assert_array_equal(low[0, :, 0, 0, 0], np.arange(1, 24, 3))


@pytest.mark.parametrize("stage", embryo.STAGES)
@pytest.mark.parametrize("size", [(18, 20, 22), (7, 33, 5)])
def test_answers_of_every_stage_are_on_the_original_grid(stage, size):
    one = system()
    network, volume = one.network(stage), raw(*size)
    answer = {name: np.array(tensor) for name, tensor in one.segment(network, volume).items()}
    assert answer["probability"].shape == (1, *size, 2)
    if stage != "initial":
        body, ventricle = np.moveaxis(answer["probability"] > 0.5, -1, 0)
        np.testing.assert_array_equal(
            answer["label"][..., 0], np.where(ventricle, 5, np.where(body, 2, 0))
        )
    np.testing.assert_array_equal(answer["body"], answer["label"] == 2)
    np.testing.assert_array_equal(answer["ventricle"], answer["label"] == 5)
    assert {name: tensor.dtype for name, tensor in answer.items()} == {
        "label": np.uint8,
        "body": np.uint8,
        "ventricle": np.uint8,
        "probability": np.float32,
    }


def test_the_initial_answer_is_vnet_1_s():
    one, volume = system(), raw(16, 16, 16)
    whole, initial = one.network("refine"), one.network("initial")
    initial.get_layer("vnet_1").set_weights(whole.get_layer("vnet_1").get_weights())
    image = one.preprocess(volume)
    np.testing.assert_allclose(initial(image)["initial"], whole(image)["initial"], atol=1e-6)
    upsampled, classes = one.answer(initial, image)
    softmax = np.array(whole(image)["initial"])[0]
    expected = ndimage.zoom(softmax, (2, 2, 2, 1), order=1, mode="nearest", grid_mode=True)
    np.testing.assert_allclose(upsampled[0], expected[..., 1:], atol=1e-5)
    np.testing.assert_array_equal(classes[0, ..., 0], np.argmax(expected, axis=-1))
    assert np.any(
        (expected.max(axis=-1) < 0.5) & (np.argmax(expected, axis=-1) > 0)
    )  # no threshold


@pytest.mark.parametrize(
    "fields, sentence",
    [
        ({"low_size": 4}, "low_size=4: expected at least 8 voxels"),
        ({"body_box": 7}, "body_box=7"),
        ({"ventricle_box": 0}, "ventricle_box=0"),
    ],
)
def test_values_out_of_range_are_named(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        system(**fields)


@pytest.mark.parametrize("labels", [{}, {1: "body"}, {1: "a", 2: "b", 3: "c"}, {1: "a", 300: "b"}])
def test_two_structures_are_expected(labels):
    with pytest.raises(ValueError, match="labels=.*expected two values from 1 to 255"):
        Embryo(labels)


# How it learns


def test_stages_follow_each_other(tmp_path):
    """Each starts from the networks before, `refine` leaves VNet I alone, and what is finished is not trained again."""
    one, run = system(), tmp_path / "run"
    files = cases(tmp_path, one)
    initial = train("initial", one, files, run)
    refined = train("refine", one, files, run)
    assert same(weights(initial, "vnet_1"), weights(refined, "vnet_1"))
    whole = train("end_to_end", one, files, run)
    for name in ("vnet_1", "vnet_2", "vnet_3"):
        assert not same(weights(refined, name), weights(whole, name))
    assert same(
        weights(train("end_to_end", one, files, run, steps=50), "vnet_1"), weights(whole, "vnet_1")
    )
    assert refinement.finished(run) == list(embryo.STAGES)

    # Without a step it would be the network before: each stage starts there.
    still = tmp_path / "still"
    (still / "refine").mkdir(parents=True)
    refined.save(still / "refine" / "model.keras")
    rested = train("end_to_end", one, files, still, learning_rate=0.0)
    for name in ("vnet_1", "vnet_2", "vnet_3"):
        assert same(weights(refined, name), weights(rested, name))


@pytest.mark.parametrize("stage, before", [("refine", "initial"), ("end_to_end", "refine")])
def test_a_stage_needs_the_one_before(tmp_path, stage, before):
    one = system()
    with pytest.raises(
        errors.UserError,
        match=f"{before}/model.keras: this stage is not finished; run --stage={before}",
    ):
        train(stage, one, cases(tmp_path, one), tmp_path / "run")
    with pytest.raises(errors.UserError, match="no stage is finished"):
        refinement.finished(tmp_path / "run")


@pytest.mark.parametrize("stage", embryo.STAGES)
def test_losses_of_a_stage(tmp_path, monkeypatch, stage):
    """Against the formula: mean over three classes at low size, or the sum of both objects on the original grid."""
    one, made = system(), []
    files = cases(tmp_path, one)
    below = one.network("refine")
    monkeypatch.setattr(stages, "finished", lambda path: None if path.name == stage else below)
    monkeypatch.setattr(stages, "train", lambda *arguments, **_: made.extend(arguments))
    train(stage, one, files, tmp_path / "run")
    build, sample_losses = made[1], made[2]
    network, sample = build(), pipeline.sample(files[0])
    answer = {
        name: np.array(p)[0] for name, p in network(sample["image"][None], training=True).items()
    }
    label = sample["label"].numpy()[..., 0]

    def dice(p, truth):
        return 2 * np.sum(p * truth) / (np.sum(p**2) + np.sum(truth))

    if stage == "initial":
        low = np.array(one.low_label(label[None, ..., None]))[0, ..., 0]
        expected = -np.mean([dice(answer["initial"][..., k], low == k) for k in range(3)])
    else:
        expected = -dice(answer["body"][..., 0], label == 1) - dice(
            answer["ventricle"][..., 0], label == 2
        )
    batch = {name: tensor[None] for name, tensor in sample.items()}
    np.testing.assert_allclose(sample_losses(network, batch), [expected], rtol=1e-4)
    names = {
        "initial": ["vnet_1"],
        "refine": ["vnet_2", "vnet_3"],
        "end_to_end": ["vnet_1", "vnet_2", "vnet_3"],
    }[stage]
    expected = {id(weight) for name in names for weight in network.get_layer(name).weights}
    assert {id(weight) for weight in network.trainable_variables} == expected


@pytest.mark.parametrize("stage, reached", [("refine", False), ("end_to_end", True)])
def test_the_gradient_of_the_refinement_reaches_vnet_1_only_end_to_end(tmp_path, stage, reached):
    one = system()
    sample, network = pipeline.sample(cases(tmp_path, one)[0]), one.network(stage)
    with tf.GradientTape() as tape:
        answer = network(sample["image"][None], training=True)
        loss = -tf.reduce_sum(answer["body"] * tf.cast(sample["label"] == 1, tf.float32))
    kernels = [
        w.value for w in network.get_layer("vnet_1").trainable_weights if w.path.endswith("kernel")
    ]
    gradients = tape.gradient(loss, kernels)
    if reached:
        assert all(float(ops.max(ops.abs(gradient))) > 0 for gradient in gradients)
    else:
        assert all(gradient is None for gradient in gradients)


def test_validation_is_the_mean_dice_of_both_objects(tmp_path, monkeypatch):
    one = system()
    files = cases(tmp_path, one)
    label = pipeline.stored(files[0]["label"], "label").numpy()[..., 0]
    moved = np.roll(label, 1, axis=0)
    answer = {"body": moved == 1, "ventricle": moved == 2}
    network = lambda image, training: {
        name: ops.cast(mask[None, ..., None], "float32") for name, mask in answer.items()
    }
    scores = []
    monkeypatch.setattr(
        stages, "finished", lambda path: None if path.name == "refine" else types.SimpleNamespace()
    )
    monkeypatch.setattr(stages, "train", lambda *arguments, **_: scores.append(arguments[6]))
    train("refine", one, files, tmp_path / "run")
    expected = np.mean([metrics.dice(moved == k, label == k) for k in (1, 2)])
    assert (
        scores[0](network)(pipeline.sample(files[0])) == pytest.approx(expected)
        and 0.5 < expected < 0.95
    )


def test_exchanged_label_values_are_refused_and_a_missing_one_is_named(tmp_path, caplog):
    one = system()
    files = cases(tmp_path, one)
    refinement.check_structures(one, files)
    assert not caplog.text
    for entry in files:
        label = pipeline.stored(entry["label"], "label").numpy()
        pipeline.store(entry["label"], np.where(label > 0, 3 - label, 0).astype(np.uint8))
    with pytest.raises(
        errors.UserError, match="--foreground: the ventricle, 5, has more voxels than the body, 2;"
    ):
        refinement.check_structures(one, files)
    for entry in files:
        pipeline.store(entry["label"], np.minimum(pipeline.stored(entry["label"], "label"), 1))
    refinement.check_structures(one, files)
    assert "No training case has ventricle (label 5)" in caplog.text


def test_volumes_of_several_sizes_need_batches_of_one(tmp_path):
    one = system()
    with pytest.raises(
        errors.UserError, match="--batch_size=2: training images have different sizes"
    ):
        train("initial", one, cases(tmp_path, one), tmp_path / "run", batch_size=2)


def test_a_trained_cascade_moves_with_the_volume(tmp_path):
    """A bright box in noise, learnt in a few steps: its answer on a shifted volume is the shifted answer."""
    one = system(low_size=16, body_box=24, ventricle_box=16, base_filters=4)
    rng, size = np.random.default_rng(0), (32, 32, 32)

    def scene(corner):
        z, y, x = corner
        label = np.zeros((1, *size, 1), np.uint8)
        label[:, z : z + 12, y : y + 12, x : x + 12] = 2
        label[:, z + 3 : z + 8, y + 3 : y + 8, x + 3 : x + 8] = 5
        level = np.select([label == 2, label == 5], [150, 40], 40).astype(np.float32)
        return level + rng.normal(0, 8, level.shape).astype(np.float32), label

    files = []
    for number in range(8):
        volume, label = scene(rng.integers(1, 19, 3))
        entry = {"spacing": str(tmp_path / str(number) / "spacing")}
        pipeline.store(entry["spacing"], np.ones(3, np.float32))
        for name, tensor in refinement.prepared(one)(None, volume, label).items():
            entry[name] = str(tmp_path / str(number) / name)
            pipeline.store(entry[name], tensor)
        files.append(entry)
    for stage in ("initial", "refine"):
        network = train(stage, one, files, tmp_path / "run", steps=60, samples_per_epoch=60)
    volume, label = scene((6, 8, 7))
    shifted = np.roll(volume, (3, -5, 8), axis=(1, 2, 3))
    here, there = (np.array(one.segment(network, x)["label"])[0, ..., 0] for x in (volume, shifted))
    assert metrics.dice(here == 2, label[0, ..., 0] == 2) > 0.8
    for value in LABELS:
        assert (
            metrics.dice(np.roll(here == value, (3, -5, 8), axis=(0, 1, 2)), there == value) > 0.97
        )
    # At the border: the box is padded there.
    volume, label = scene((0, 20, 0))
    assert (
        metrics.dice(
            np.array(one.segment(network, volume)["label"])[0, ..., 0] > 0, label[0, ..., 0] > 0
        )
        > 0.8
    )
