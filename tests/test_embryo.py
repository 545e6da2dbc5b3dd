"""The embryo system: what it does to a volume, and how its stages follow each other."""

import numpy as np
import pytest
import tensorflow as tf
from keras import ops
from scipy import ndimage

from tf_autoctx import errors, metrics
from tf_autoctx.data import pipeline
from tf_autoctx.systems.embryo import training
from tf_autoctx.systems.embryo.configuration import STAGES, Embryo, Schedule
from tf_autoctx.systems.embryo.segmentation import Refinement
from tf_autoctx.systems.embryo.system import EmbryoSystem
from tf_autoctx.systems.shared.session import Session
from tf_autoctx.training import devices
from tf_autoctx.training.configuration import Settings
from tf_autoctx.training.runs import Run

LABELS = {2: "body", 5: "ventricle"}
STILL = {"rotation": 0.0, "shift": 0, "flips": False}


def system(**fields):
    tiny = {
        "low_size": 8,
        "body_box": 16,
        "ventricle_box": 8,
        "base_filters": 2,
        "depth": 1,
        "kernel": 3,
    }
    return EmbryoSystem(Embryo(**{**tiny, **fields}), LABELS)


def raw(*size, seed=0):
    """A raw volume with structure, (1, *size, 1)."""
    noise = np.random.default_rng(seed).normal(size=size)
    return (100 + 300 * ndimage.gaussian_filter(noise, 1.5)).astype(np.float32)[None, ..., None]


def store(folder, tensors):
    """Cached files of a case."""
    entry = {}
    for name, tensor in {**tensors, "spacing": np.array([0.1, 0.1, 0.1], np.float32)}.items():
        pipeline.store(folder / name, tensor)
        entry[name] = str(folder / name)
    return entry


def cases(folder, embryo, sizes=((18, 20, 22), (18, 20, 22), (15, 21, 17))):
    """Cached files of volumes with a body that is a box and a ventricle inside it."""
    files = []
    for number, size in enumerate(sizes):
        label = np.zeros((1, *size, 1), np.uint8)
        label[:, 3:12, 4:13, 5:15] = 2
        label[:, 5:8, 6:9, 7:10] = 5
        tensors = embryo.prepare(None, raw(*size, seed=number) + 100 * label, label)
        files.append(store(folder / "cache" / str(number), tensors))
    return files


def session(files, folder, stage="all", validation=(), **fields):
    """Of a run that is there already; every stage has the learning rate of the settings."""
    given = {
        "seed": 3,
        "steps": 2,
        "samples_per_epoch": 2,
        "learning_rate": 1e-2,
        "learning_rate_decay": "constant",
    }
    settings = Settings(**{**given, **fields})
    values = {
        **STILL,
        "stage": stage,
        "initial_from": "",
        "end_to_end_learning_rate": settings.learning_rate,
        "initial_factor": 1,
    }
    strategy = devices.strategy("single")
    return Session(Run(folder, {}), values, strategy, settings, files, list(validation))


def train(stage, embryo, files, folder, **fields):
    return embryo.train(session(files, folder, stage, **fields))[stage]


def finish(embryo, folder, stage):
    """A finished stage of random weights."""
    (folder / stage).mkdir(parents=True)
    embryo.refinement.network(stage).save(folder / stage / "model.keras")


def weights(network, name):
    return [weight.numpy() for weight in network.get_layer(name).weights]


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a, b))


# What is done to a volume


def test_preprocessing_does_not_know_the_gain():
    preprocess, volume = system().refinement.preprocess, raw(9, 10, 11)
    image = np.array(preprocess(volume))
    np.testing.assert_allclose(np.mean(image**2), 1, rtol=1e-4)
    np.testing.assert_allclose(image, volume / np.sqrt(np.mean(volume**2)), rtol=1e-4)
    np.testing.assert_allclose(preprocess(7 * volume), image, rtol=1e-4)
    assert not np.any(preprocess(0 * volume))
    two = preprocess(np.concatenate([volume, 3 * volume]))
    np.testing.assert_allclose(two[0], two[1], rtol=1e-4)


def test_classes_are_above_a_half_and_the_ventricle_wins():
    probability = np.array([[0.2, 0.3], [0.6, 0.5], [0.4, 0.51], [0.9, 0.8]], np.float32)[
        None, None, None
    ]
    classes = system().refinement.classes(probability)
    np.testing.assert_array_equal(classes[0, 0, 0, :, 0], [0, 1, 2, 2])


def test_cached_labels_are_classes():
    label = np.array([0, 2, 5, 1], np.uint8).reshape(1, 1, 1, 4, 1)
    classes = system().prepare(None, raw(1, 1, 4), label)["label"]
    np.testing.assert_array_equal(classes[..., 0].ravel(), [0, 1, 2, 0])
    assert classes.dtype == np.uint8 and classes.shape == (1, 1, 4, 1)


def test_low_label_takes_the_voxel_in_the_middle():
    label = np.arange(24, dtype=np.uint8).reshape(1, 24, 1, 1, 1)
    low = np.array(system().refinement.low_label(label))
    assert low.shape == (1, 8, 8, 8, 1)
    np.testing.assert_array_equal(low[0, :, 0, 0, 0], np.arange(1, 24, 3))


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("size", [(18, 20, 22), (7, 33, 5)])
def test_outputs_of_every_stage_are_on_the_original_grid(stage, size):
    embryo = system()
    outputs = embryo.segment(embryo.new_networks([stage]), raw(*size))
    answer = {name: np.array(tensor) for name, tensor in outputs.items()}
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


def test_the_initial_output_is_vnet_1_s():
    refinement, volume = system().refinement, raw(16, 16, 16)
    whole, initial = refinement.network("refine"), refinement.network("initial")
    initial.get_layer("vnet_1").set_weights(whole.get_layer("vnet_1").get_weights())
    image = refinement.preprocess(volume)
    np.testing.assert_allclose(initial(image)["initial"], whole(image)["initial"], atol=1e-6)
    upsampled, classes = refinement.prediction(initial, image)
    softmax = np.array(whole(image)["initial"])[0]
    expected = ndimage.zoom(softmax, (2, 2, 2, 1), order=1, mode="nearest", grid_mode=True)
    np.testing.assert_allclose(upsampled[0], expected[..., 1:], atol=1e-5)
    np.testing.assert_array_equal(classes[0, ..., 0], np.argmax(expected, axis=-1))
    unsure = (expected.max(axis=-1) < 0.5) & (np.argmax(expected, axis=-1) > 0)
    assert np.any(unsure)  # no threshold


@pytest.mark.parametrize(
    "fields, sentence",
    [
        ({"low_size": 4}, "low_size=4: expected a number of at least 8"),
        ({"body_box": 7}, "body_box=7"),
        ({"ventricle_box": 0}, "ventricle_box=0"),
    ],
)
def test_values_out_of_range_are_named(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        system(**fields)


@pytest.mark.parametrize("labels", [{}, {1: "body"}, {1: "a", 2: "b", 3: "c"}, {1: "a", 300: "b"}])
def test_two_structures_are_expected(labels):
    with pytest.raises(ValueError, match=r"labels=.*expected two values from 1 to 255"):
        Refinement(Embryo(), labels)


def test_stages_that_are_wanted():
    assert Schedule().stages(auto_context=True) == STAGES
    assert Schedule().stages(auto_context=False) == ("initial", "refine")
    assert Schedule(stage="refine").stages(auto_context=False) == ("refine",)


# How it learns


def test_stages_follow_each_other(tmp_path):
    """Each starts from the networks before, `refine` leaves VNet I alone, and what is finished is
    not trained again."""
    embryo, run = system(), tmp_path / "run"
    files = cases(tmp_path, embryo)
    initial = train("initial", embryo, files, run)
    refined = train("refine", embryo, files, run)
    assert same(weights(initial, "vnet_1"), weights(refined, "vnet_1"))
    whole = train("end_to_end", embryo, files, run)
    for name in ("vnet_1", "vnet_2", "vnet_3"):
        assert not same(weights(refined, name), weights(whole, name))
    again = train("end_to_end", embryo, files, run, steps=1)
    assert same(weights(again, "vnet_1"), weights(whole, "vnet_1"))
    assert list(embryo.finished(Run(run, {}))) == list(STAGES)

    # Each stage starts from the network before.
    stage = training.KINDS["end_to_end"](embryo.refinement, session(files, run))
    start = stage.build()["network"]
    for name in ("vnet_1", "vnet_2", "vnet_3"):
        assert same(weights(refined, name), weights(start, name))


@pytest.mark.parametrize("stage, before", [("refine", "initial"), ("end_to_end", "refine")])
def test_a_stage_needs_the_one_before(tmp_path, stage, before):
    embryo = system()
    told = f"{before}/model.keras: this stage is not finished; run `stage={before}`"
    with pytest.raises(errors.UserError, match=told):
        train(stage, embryo, cases(tmp_path, embryo), tmp_path / "run")
    with pytest.raises(errors.UserError, match="no stage is finished"):
        embryo.finished(Run(tmp_path / "run", {}))


@pytest.mark.parametrize("name", STAGES)
def test_losses_of_a_stage(tmp_path, name):
    """Against the formula: mean over three classes at low size, or the sum of both objects on the
    original grid."""
    embryo = system()
    files = cases(tmp_path, embryo)
    for before in STAGES[: STAGES.index(name)]:
        finish(embryo, tmp_path / "run", before)
    stage = training.KINDS[name](embryo.refinement, session(files, tmp_path / "run"))
    networks, sample = stage.build(), pipeline.sample(files[0])
    network = networks["network"]
    outputs = {
        name: np.array(p)[0] for name, p in network(sample["image"][None], training=True).items()
    }
    label = sample["label"].numpy()[..., 0]

    def dice(p, truth):
        return 2 * np.sum(p * truth) / (np.sum(p**2) + np.sum(truth))

    if name == "initial":
        low = np.array(embryo.refinement.low_label(label[None, ..., None]))[0, ..., 0]
        expected = -np.mean([dice(outputs["initial"][..., k], low == k) for k in range(3)])
    else:
        of_body = dice(outputs["body"][..., 0], label == 1)
        expected = -of_body - dice(outputs["ventricle"][..., 0], label == 2)
    batch = {name: tensor[None] for name, tensor in sample.items()}
    np.testing.assert_allclose(stage.losses(networks, batch), [expected], rtol=1e-4)
    learning = {
        "initial": ["vnet_1"],
        "refine": ["vnet_2", "vnet_3"],
        "end_to_end": ["vnet_1", "vnet_2", "vnet_3"],
    }[name]
    expected = {id(weight) for vnet in learning for weight in network.get_layer(vnet).weights}
    assert {id(weight) for weight in network.trainable_variables} == expected


@pytest.mark.parametrize("stage, reached", [("refine", False), ("end_to_end", True)])
def test_the_gradient_of_the_refinement_reaches_vnet_1_only_end_to_end(tmp_path, stage, reached):
    embryo = system()
    sample = pipeline.sample(cases(tmp_path, embryo)[0])
    network = embryo.refinement.network(stage)
    with tf.GradientTape() as tape:
        outputs = network(sample["image"][None], training=True)
        loss = -tf.reduce_sum(outputs["body"] * tf.cast(sample["label"] == 1, tf.float32))
    kernels = [
        w.value for w in network.get_layer("vnet_1").trainable_weights if w.path.endswith("kernel")
    ]
    gradients = tape.gradient(loss, kernels)
    if reached:
        assert all(float(ops.max(ops.abs(gradient))) > 0 for gradient in gradients)
    else:
        assert all(gradient is None for gradient in gradients)


def test_validation_is_the_mean_dice_of_both_objects(tmp_path):
    embryo = system()
    files = cases(tmp_path, embryo)
    label = pipeline.stored(files[0]["label"], "label").numpy()[..., 0]
    moved = np.roll(label, 1, axis=0)

    def network(image, training):
        masks = {"body": moved == 1, "ventricle": moved == 2}
        return {k: ops.cast(mask[None, ..., None], "float32") for k, mask in masks.items()}

    finish(embryo, tmp_path / "run", "initial")
    stage = training.RefineStage(embryo.refinement, session(files, tmp_path / "run"))
    score = stage.score(stage.graph({"network": network}), pipeline.sample(files[0]))
    expected = np.mean([metrics.dice(moved == k, label == k) for k in (1, 2)])
    assert score == pytest.approx(expected) and 0.5 < expected < 0.95


def test_exchanged_label_values_are_refused_and_a_missing_one_is_named(tmp_path, caplog):
    embryo = system()
    files = cases(tmp_path, embryo)
    embryo.check_cases(files, [])
    assert not caplog.text
    for entry in files:
        label = pipeline.stored(entry["label"], "label").numpy()
        pipeline.store(entry["label"], np.where(label > 0, 3 - label, 0).astype(np.uint8))
    told = "`foreground`: the ventricle, 5, has more voxels than the body, 2;"
    with pytest.raises(errors.UserError, match=told):
        embryo.check_cases(files, [])
    for entry in files:
        pipeline.store(entry["label"], np.minimum(pipeline.stored(entry["label"], "label"), 1))
    embryo.check_cases(files, [])
    assert "No training case has ventricle (label 5)" in caplog.text


def test_volumes_of_several_sizes_need_batches_of_one(tmp_path):
    embryo = system()
    told = "batch_size=2: training images have different sizes"
    with pytest.raises(errors.UserError, match=told):
        train("initial", embryo, cases(tmp_path, embryo), tmp_path / "run", batch_size=2)


def test_a_trained_cascade_moves_with_the_volume(tmp_path):
    """A bright box in noise, learnt in a few steps: its segmentation of a shifted volume is the
    shifted segmentation."""
    embryo = system(low_size=16, body_box=24, ventricle_box=16, base_filters=4, depth=2)
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
        tensors = embryo.prepare(None, *scene(rng.integers(1, 19, 3)))
        files.append(store(tmp_path / str(number), tensors))
    for stage in ("initial", "refine"):
        network = train(stage, embryo, files, tmp_path / "run", steps=60, samples_per_epoch=60)

    def segmented(volume):
        return np.array(embryo.segment({"refine": network}, volume)["label"])[0, ..., 0]

    volume, label = scene((6, 8, 7))
    here, there = segmented(volume), segmented(np.roll(volume, (3, -5, 8), axis=(1, 2, 3)))
    assert metrics.dice(here == 2, label[0, ..., 0] == 2) > 0.8
    for value in LABELS:
        back = np.roll(here == value, (3, -5, 8), axis=(0, 1, 2))
        assert metrics.dice(back, there == value) > 0.97
    # At the border: the box is padded there.
    volume, label = scene((0, 20, 0))
    assert metrics.dice(segmented(volume) > 0, label[0, ..., 0] > 0) > 0.8
