import csv
import dataclasses
import functools
import re
import shutil
import subprocess
import sys
import textwrap
import types

import keras
import numpy as np
import pytest
import running
import tensorflow as tf
from keras import ops
from scipy import ndimage
from test_tiling import seam, starts_and_edge

from tf_autoctx import errors, export, losses, metrics
from tf_autoctx.data import augment, pipeline, subvolumes
from tf_autoctx.models import layers
from tf_autoctx.systems import multi_organ, prediction, pyramids, stages, tiling
from tf_autoctx.systems.multi_organ import MultiOrgan
from tf_autoctx.training import loop, runs

LABELS = {5: "pancreas", 2: "liver"}
DEFORMATION = augment.Deformation(shift=1, rotation=10.0, elastic=1.0, elastic_spacing=8)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def raw(*size, seed=0):
    """A raw CT of HU, (1, *size, 1), with structure at all scales."""
    rng = np.random.default_rng(seed)
    x = sum(ndimage.gaussian_filter(rng.normal(0, 150 * sigma, size), sigma) for sigma in (0.5, 2))
    return x.astype(np.float32)[None, ..., None]


def system(mode="end_to_end", **fields):
    fields = {"downsampling": (2, 1), "base_filters": 1, "patch_size": 8, "tile_size": 16, **fields}
    return MultiOrgan(LABELS, mode, **fields)


def randomize(network, seed=0):
    """Norms, moving averages and biases that differ, and answers of all classes."""
    rng = np.random.default_rng(seed)
    for weight in network.weights:
        if weight.path.endswith(("gamma", "variance")):
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
        elif weight.path.endswith(("beta", "bias", "mean")):
            weight.assign(rng.normal(0, 0.3, weight.shape))
        else:
            weight.assign(rng.normal(0, np.sqrt(3 / np.prod(weight.shape[:-1])), weight.shape))
    images = {f"image_{level}": rng.uniform(0, 1, (1, 16, 16, 16, 1)) for level in (1, 2)}
    for name in ("level_1", "level_2"):
        head = [
            layer
            for layer in network.get_layer(name).layers
            if isinstance(layer, keras.layers.Conv3D)
        ][-1]
        head.bias.assign_sub(ops.mean(network(images, training=False)[name], axis=(0, 1, 2, 3)))
    return network


@pytest.fixture(scope="module")
def unets():
    """Functions of two levels, as graphs."""
    return pyramids.graphs(
        system(), randomize(system().network(), seed=2)
    )  # both levels' answers follow the image


@pytest.fixture(scope="module")
def other_unets():
    return pyramids.graphs(system(), randomize(system().network(), seed=1))


def graph(function, channels=1):
    """As a graph that knows no size."""
    return tf.function(
        function, input_signature=[tf.TensorSpec([None, None, None, None, channels])]
    )


# Before the network.


def test_the_window_in_hundreds_of_hu():
    x = np.reshape(np.array([-1024, -160, 40, 140, 240, 3000], np.float32), (1, 1, 1, 6, 1))
    np.testing.assert_allclose(np.ravel(system().preprocess(x, 1)), [0, 0, 2, 3, 4, 4], atol=1e-6)
    lung = system(window_low=-1000.0, window_high=0.0)
    np.testing.assert_allclose(np.ravel(lung.preprocess(x, 1)), [0, 8.4, 10, 10, 10, 10], atol=1e-6)


def test_a_level_sees_the_windowed_volume_shrunk():
    # Clipped to 0 4 0 4 before it is shrunk: weights 3 3 1 over 7 at either end.
    x = np.reshape(np.array([-1024, 3000, -1024, 3000], np.float32), (1, 1, 1, 4, 1))
    answer = system(downsampling=(4, 2)).preprocess(x, 2)
    assert answer.shape == (1, 1, 1, 2, 1)
    np.testing.assert_allclose(np.ravel(answer), [12 / 7, 16 / 7], atol=1e-6)


@pytest.mark.parametrize(
    "scale, size, expected",
    [
        (4, (512, 512, 461), (128, 128, 115)),  # 115.25
        (2, (5, 6, 7), (3, 3, 4)),  # 2.5 and 3.5 go up
        (4, (1, 2, 10), (1, 1, 3)),  # 0.25 is 1 voxel all the same, 0.5, 2.5
        (3, (1, 4, 5), (1, 1, 2)),  # 0.33, 1.33, 1.67
        (1, (1, 8, 9), (1, 8, 9)),
    ],
)
def test_grid_size(scale, size, expected):
    assert system().grid_size(size, scale) == expected


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 7, 16])
def test_known_and_unknown_sizes_round_alike(scale):
    sizes = np.arange(1, 1300)
    known = [system().grid_size((int(n),), scale)[0] for n in sizes]
    np.testing.assert_array_equal(known, np.maximum(1, np.floor(sizes / scale + 0.5)))
    np.testing.assert_array_equal(
        known, system().grid_size((tf.constant(sizes, tf.int32),), scale)[0]
    )


def test_preprocess_is_the_same_in_a_graph_of_any_size():
    for scale in (1, 2, 4):
        in_graph, x = graph(lambda x, scale=scale: system().preprocess(x, scale)), raw(11, 10, 17)
        eager = system().preprocess(x, scale)
        assert eager.shape == (1, *system().grid_size((11, 10, 17), scale), 1)
        np.testing.assert_allclose(in_graph(x), eager, atol=1e-6)


def test_classes_are_label_values_in_order():
    assert system().values == (0, 2, 5)
    label = np.array([[0, 1, 2], [3, 5, 255]], np.uint8)
    answer = system().classes(label)
    assert answer.dtype == "uint8"
    # What has no name is background.
    np.testing.assert_array_equal(answer, [[0, 0, 1], [0, 2, 0]])
    assert MultiOrgan({255: "body"}).classes(label)[1, 2] == 1


# After the network.


@pytest.mark.parametrize(
    "old, new",
    [
        ((5, 6, 7), (9, 13, 13)),
        ((3, 3, 3), (11, 12, 9)),
        ((1, 2, 5), (1, 3, 5)),
        ((4, 6, 5), (4, 6, 5)),
    ],
)
def test_labels_are_those_of_the_largest_probability(old, new):
    probability = np.array(ops.softmax(2 * noise(2, *old, 3)))
    fine = np.array(layers.resize_linear(probability, new))
    answer = np.array(system().label(probability, new))
    assert answer.shape == (2, *new, 1) and answer.dtype == "uint8"
    margin = np.diff(np.sort(fine, axis=-1)[..., -2:], axis=-1) > 1e-5
    assert margin.mean() > 0.99
    np.testing.assert_array_equal(
        answer[margin], np.array([0, 2, 5])[fine.argmax(axis=-1)][..., None][margin]
    )
    in_graph = tf.function(
        lambda p, size: system().label(p, tf.unstack(size)),
        input_signature=[tf.TensorSpec([None, None, None, None, 3]), tf.TensorSpec([3], tf.int32)],
    )
    np.testing.assert_array_equal(
        in_graph(probability, np.array(new, np.int32))[margin], answer[margin]
    )


# The cascade.


@pytest.mark.parametrize("size", [(16, 16, 16), (15, 9, 16), (1, 3, 5)])
def test_the_cascade_written_out(unets, size):
    # Both levels are one tile.
    x, half = raw(*size), tuple((n + 1) // 2 for n in size)
    answers = system().cascade(unets, x)
    image = np.clip((x + 160) / 100, 0, 4)  # in hundreds of HU
    first = np.array(ops.softmax(unets[0](layers.resize_linear(image, half))))
    context = ndimage.zoom(
        first,
        (1, *(n / h for n, h in zip(size, half)), 1),
        order=1,
        mode="nearest",
        grid_mode=True,
        prefilter=False,
    )
    second = np.array(ops.softmax(unets[1](np.concatenate([image, context], axis=-1))))
    assert first.shape == (1, *half, 3) and second.shape == (1, *size, 3)
    for answer, expected in zip(answers, (first, second), strict=True):
        np.testing.assert_allclose(answer, expected, atol=1e-4)
    found = system().segment(unets, x, probability=True)
    np.testing.assert_allclose(found["probability"], second, atol=1e-4)
    sure = np.sort(second, axis=-1)[..., -1] - np.sort(second, axis=-1)[..., -2] > 1e-3
    np.testing.assert_array_equal(
        found["label"][..., 0][sure], np.array([0, 2, 5])[second.argmax(axis=-1)][sure]
    )
    assert system().segment(unets, x).keys() == {"label"}


def test_the_answer_is_on_the_original_grid_where_the_last_level_is_not(unets):
    coarse, x = system(downsampling=(4, 2)), raw(19, 22, 13)
    answers, found = coarse.cascade(unets, x), coarse.segment(unets, x, probability=True)
    assert [answer.shape for answer in answers] == [(1, 5, 6, 3, 3), (1, 10, 11, 7, 3)]
    assert found["label"].shape == (1, 19, 22, 13, 1) and found["label"].dtype == "uint8"
    np.testing.assert_allclose(
        found["probability"], layers.resize_linear(answers[1], (19, 22, 13)), atol=1e-6
    )
    np.testing.assert_allclose(ops.sum(found["probability"], axis=-1), 1, atol=1e-5)
    assert set(np.unique(found["label"])) <= {0, 2, 5} and len(np.unique(found["label"])) > 1


def test_level_2_depends_on_level_1(unets, other_unets):
    x = raw(16, 13, 16)
    own, other = (
        np.array(system().cascade([one[0], unets[1]], x)[1]) for one in (unets, other_unets)
    )
    assert np.abs(own - other).max() > 0.01


def test_tiles(unets):
    x, steps = raw(30, 17, 16), []
    one, whole = system(tile_size=16), system(tile_size=32)
    # Level 1: 15 x 9 x 8, one tile. Level 2: tiles of 16 that share 8, so 3 along 30 and 2 along 17.
    assert (one.overlap, whole.overlap) == (8, 16) and (
        one.tiles((30, 17, 16)),
        whole.tiles((30, 17, 16)),
    ) == (7, 2)
    tiled = [np.array(answer) for answer in one.cascade(unets, x, lambda: steps.append(None))]
    assert len(steps) == 7
    untiled = [np.array(answer) for answer in whole.cascade(unets, x)]
    np.testing.assert_array_equal(tiled[0], untiled[0])
    assert tiled[1].shape == untiled[1].shape and np.any(tiled[1] != untiled[1])
    # The context is resampled as a whole, and the first 8 voxels of the first tile are no other tile's.
    joined = np.concatenate(
        [one.preprocess(x, 1), layers.resize_linear(tiled[0], (30, 17, 16))], axis=-1
    )
    corner = ops.softmax(unets[1](joined[:, :16, :16]))[:, :8, :8]
    np.testing.assert_allclose(tiled[1][:, :8, :8], corner, atol=1e-4)


@pytest.mark.parametrize(
    "tile_size, overlap", [(16, 8), (24, 8), (32, 16), (56, 16), (64, 16), (96, 24), (128, 32)]
)
def test_tiles_share_a_quarter_or_16_voxels(tile_size, overlap):
    assert system(tile_size=tile_size).overlap == overlap


def errors_at_tiles(answer, reference, tile, overlap):
    """Mean |answer - reference| within 2 voxels of a tile's border, of the middle of an overlap, and elsewhere."""
    error = np.abs(np.array(answer) - np.array(reference)).mean(axis=(0, 4))
    border, middle = np.zeros((2, *error.shape), bool)
    for axis, n in enumerate(error.shape):
        starts, edge = starts_and_edge(n, tile, overlap)
        assert len(starts) > 1
        borders = [*starts[1:], *(start + edge for start in starts[:-1])]
        for mask, places in (
            (border, borders),
            (middle, [start + overlap // 2 for start in starts[1:]]),
        ):
            for at in places:
                np.moveaxis(mask, axis, 0)[at - 2 : at + 2] = True
    return error[border].mean(), error[middle].mean(), error[~(border | middle)].mean()


@pytest.mark.parametrize("far", [1.0, 0.25])
def test_no_seams(far):
    """`far`: weight of what comes up from coarser resolutions, which see farther than an overlap."""
    one, size = system(base_filters=2, tile_size=32), (48, 56, 61)
    network = randomize(one.network())
    for weight in network.weights:
        if "transpose" in weight.path and weight.path.endswith("kernel"):
            weight.assign(far * weight)
    image = one.preprocess(raw(*size), 1)
    context = ops.softmax(ndimage.gaussian_filter(noise(1, *size, 3), (0, 2, 2, 2, 0)) * 30)
    for unet, x in zip(
        one.unets(network), (image, np.concatenate([image, context], axis=-1)), strict=True
    ):
        function = lambda x, unet=unet: ops.softmax(unet(x))
        reference = function(x)
        assert np.std(reference, axis=(0, 1, 2, 3)).max() > 0.1
        tiled = tiling.tiled(function, x, one.tile_size, one.overlap)
        at_border, in_middle, elsewhere = errors_at_tiles(
            tiled, reference, one.tile_size, one.overlap
        )
        assert 1e-3 < max(at_border, in_middle) < 2 * elsewhere
        # Tiles side by side have seams, and the measure sees them.
        side_by_side, elsewhere = seam(tiling.tiled(function, x, 32, 0), reference, 32, 0)
        assert side_by_side > 1.5 * elsewhere and side_by_side > 1.5 * at_border


def test_a_graph_of_any_size_answers_as_eager(unets):
    coarse = system(downsampling=(3, 2))
    served = tf.function(
        lambda image: coarse.segment(unets, image, probability=True),
        input_signature=[export.VOLUME],
    )
    for size in ((37, 21, 12), (7, 8, 1)):
        expected, found = coarse.segment(unets, raw(*size), probability=True), served(raw(*size))
        np.testing.assert_allclose(found["probability"], expected["probability"], atol=1e-4)
        top = np.sort(expected["probability"], axis=-1)
        sure = top[..., -1] - top[..., -2] > 1e-3
        assert sure.mean() > 0.9
        np.testing.assert_array_equal(found["label"][sure], expected["label"][sure])


def test_samples_of_a_batch_do_not_mix(unets):
    a, b = raw(20, 9, 12), raw(20, 9, 12, seed=1)
    together = system().segment(unets, np.concatenate([a, b]), probability=True)["probability"]
    for i, one in enumerate((a, b)):
        alone = system().segment(unets, one, probability=True)["probability"]
        np.testing.assert_allclose(together[i : i + 1], alone, atol=1e-4)


def test_without_context_there_is_one_level():
    alone, x = system("no_context", downsampling=(4, 2)), raw(16, 14, 12)
    network = alone.network()
    assert alone.scales == (2,) and system(downsampling=(4, 2)).scales == (4, 2)
    assert list(network.input) == ["image_1"] and network.input["image_1"].shape[-1] == 1
    assert alone.tiles((40, 16, 16)) == 2  # of level 2 alone
    answers = alone.cascade(alone.unets(network), x)
    expected = ops.softmax(network({"image_1": alone.preprocess(x, 2)}, training=False)["level_1"])
    assert len(answers) == 1
    np.testing.assert_allclose(answers[0], expected, atol=1e-5)
    assert alone.segment(alone.unets(network), x)["label"].shape == x.shape


def test_networks_of_the_first_levels():
    one = system("separate", downsampling=(8, 4, 2))
    assert [list(one.network(count).output) for count in (1, 2)] == [
        ["level_1"],
        ["level_1", "level_2"],
    ]
    assert len(one.unets(one.network(2))) == 2
    assert one.network(1).output["level_1"].shape[-1] == 3


# Configuration.


@pytest.mark.parametrize(
    "field, value",
    [
        ("labels", {}),
        ("labels", {0: "background"}),
        ("labels", {256: "liver"}),
        ("mode", "frozen"),
        ("downsampling", ()),
        ("downsampling", (2, 4)),
        ("downsampling", (2, 2)),
        ("downsampling", (2, 0)),
        ("patch_size", 0),
        ("patch_size", 60),
        ("patch_size", -8),
        ("tile_size", 8),
        ("tile_size", 100),
        ("window_low", 240.0),
        ("window_low", float("nan")),
        ("window_low", float("-inf")),
        ("normalization", "layer"),
        ("initializer", "zeros"),
    ],
)
def test_a_bad_configuration_names_its_field(field, value):
    with pytest.raises(ValueError, match=f"^{field}="):
        MultiOrgan(**{"labels": LABELS, "base_filters": 1, field: value}).network()


@pytest.mark.parametrize("preset", multi_organ.PRESETS)
def test_presets_are_configurations(preset):
    fields = {
        name: value
        for name, value in multi_organ.PRESETS[preset].items()
        if name in MultiOrgan.__dataclass_fields__
    }
    one = MultiOrgan(LABELS, **fields)
    assert len(one.scales) == multi_organ.PRESETS[preset].get("levels", 2)


# Training.


@pytest.mark.parametrize(
    "low, high, warns",
    [(-1000, 1500, False), (-200, 150, False), (0, 255, True), (-1000, 50, True), (24, 2000, True)],
)
def test_a_warning_unless_hu(caplog, low, high, warns):
    pyramids.warn_unless_hu("ct.nii.gz", np.linspace(low, high, 27).reshape(3, 3, 3))
    assert ("ct.nii.gz" in caplog.text and "HU" in caplog.text) == warns
    assert warns == bool(caplog.text)


def cases(folder, one, count=3, size=(24, 20, 16)):
    """Cached training cases: the liver and the pancreas are boxes of higher intensities; the pancreas is in case 1 only."""
    files = []
    for number in range(count):
        label = np.zeros(size, np.uint8)
        label[4:16, 4:14, 3:10] = 2
        if number == 1:
            label[18:21, 6:10, 8:12] = 5
        image = (60.0 * label + 20 * noise(*size, seed=number) - 100).astype(np.float32)
        tensors = {
            "label": one.classes(label[..., None]),
            "places": subvolumes.places(label, one.values[1:], np.random.default_rng(number)),
            "spacing": np.array([1, 1, 1], np.float32),
            **{
                f"image_{n}": one.preprocess(image[None, ..., None], s)[0]
                for n, s in enumerate(one.scales, start=1)
            },
        }
        for name, tensor in tensors.items():
            pipeline.store(folder / f"{number}_{name}", tensor)
        files.append({name: str(folder / f"{number}_{name}") for name in tensors})
    return files


def settings(**changes):
    values = {
        "seed": 1,
        "steps": 2,
        "samples_per_epoch": 6,
        "checkpoint_steps": 100,
        "batch_size": 3,
        "learning_rate": 0.01,
        "learning_rate_decay": "constant",
        "beta_1": 0.9,
        "patience": 0,
    }
    return loop.Settings(**{**values, **changes})


def test_a_warning_of_structures_that_no_case_has(tmp_path, caplog):
    files = cases(tmp_path, system("no_context"))
    pyramids.warn_of_missing(system(), files)
    assert not caplog.text
    pyramids.warn_of_missing(system(), [files[0], files[2]])
    assert "pancreas (label 5)" in caplog.text and "liver" not in caplog.text


def test_stages_have_the_names_of_their_last_level():
    three = (8, 4, 2)
    assert pyramids.stage(system(downsampling=three), 3) == "pyramid"
    assert [pyramids.stage(system("separate", downsampling=three), n) for n in (1, 2, 3)] == [
        "level_1",
        "level_2",
        "level_3",
    ]
    assert pyramids.stage(system("no_context", downsampling=three), 1) == "level_3"


def test_the_loss_of_level_2_alone_moves_level_1_end_to_end():
    keras.utils.set_random_seed(0)
    label = np.random.default_rng(0).integers(0, 3, (2, 8, 8, 8, 1))
    for mode in ("end_to_end", "separate"):
        network, adam = system(mode).network(), keras.optimizers.Adam(0.01)
        first = [
            weight
            for weight in network.get_layer("level_1").trainable_weights
            if weight.path.endswith("/kernel")
        ]
        before = [weight.numpy() for weight in first]
        images = {f"image_{n}": noise(2, 8, 8, 8, 1, seed=n) for n in (1, 2)}
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(
                losses.DiceLoss()(label, network(images, training=True)["level_2"])
            )
        gradients = tape.gradient(loss, [weight.value for weight in first])
        if mode == "separate":
            assert all(gradient is None for gradient in gradients)
            continue
        adam.apply(gradients, first)
        assert all(np.any(weight.numpy() != was) for weight, was in zip(first, before))


def test_the_loss_of_a_step_is_that_of_all_levels(tmp_path):
    downsampling, levels = (3, 2, 1), (1, 2, 3)
    one = system(downsampling=downsampling)
    files, once = cases(tmp_path, one), settings(steps=1)
    trained = pyramids.train(
        one, files, [], tmp_path / "run", tf.distribute.get_strategy(), once, DEFORMATION
    )
    [history] = csv.DictReader(open(tmp_path / "run" / "pyramid" / "history.csv"))

    # The first weights and the batch once more.
    seed = once.seed * 1000 + len(levels)
    keras.utils.set_random_seed(seed)
    network = one.network()
    draw = functools.partial(
        subvolumes.draw, scales=downsampling, unit=1, size=8, deformation=DEFORMATION
    )
    columns = {name: [entry[name] for entry in files] for name in files[0]}
    [batch] = pipeline.training(
        columns, draw, seed=seed, first_step=0, steps=1, batch_size=3, replicas=1
    )
    answers = network({f"image_{n}": batch[f"image_{n}"] for n in levels}, training=True)
    dice = [
        float(ops.mean(losses.DiceLoss()(batch[f"label_{n}"], answers[f"level_{n}"])))
        for n in levels
    ]
    assert max(dice) < -0.05  # none could be left out
    assert float(history["loss"]) == pytest.approx(sum(dice), rel=1e-4)

    # Every level has learnt, and every level answers.
    for n in levels:
        own, new = (model.get_layer(f"level_{n}").trainable_weights for model in (network, trained))
        assert any(np.any(a.numpy() != b.numpy()) for a, b in zip(own, new, strict=True))
    found = pyramids.every_level(one, trained)(raw(19, 16, 13)[0, ..., 0])
    assert list(found) == [f"level {n}" for n in levels]
    assert all(answer["label"].shape == (19, 16, 13) for answer in found.values())


@pytest.fixture(scope="module")
def separate(tmp_path_factory):
    """(system, cases, run folder, network) after training of two levels, one after the other."""
    folder, one = tmp_path_factory.mktemp("separate"), system("separate")
    files = cases(folder, one)
    single = tf.distribute.get_strategy()
    return (
        one,
        files,
        folder,
        pyramids.train(one, files, [], folder / "run", single, settings(), DEFORMATION),
    )


def test_separate_trains_level_after_level(separate):
    one, files, folder, network = separate
    first, both = (
        keras.models.load_model(folder / "run" / f"level_{n}" / "model.keras", compile=False)
        for n in (1, 2)
    )
    assert list(first.output) == ["level_1"] and list(both.output) == ["level_1", "level_2"]

    def weights(network, level):
        return {
            re.sub(r"_\d+(?=/)", "", w.path) + str(i): w.numpy()
            for i, w in enumerate(network.get_layer(level).weights)
        }

    # Level 1 was trained, then frozen to the bit, moving averages too; level 2 was trained on top.
    alone, below = weights(first, "level_1"), weights(both, "level_1")
    assert len(alone) == 14 * 6 + 3 * 2 + 2
    for a, b in zip(alone.values(), below.values(), strict=True):
        np.testing.assert_array_equal(a, b)
    for trained, level in ((first, "level_1"), (both, "level_2")):
        averages = [
            array for name, array in weights(trained, level).items() if "moving_mean" in name
        ]
        assert len(averages) == 14 and all(np.any(array) for array in averages)
    for name, array in weights(network, "level_2").items():
        np.testing.assert_array_equal(array, weights(both, "level_2")[name])
    for level in (1, 2):
        history = (folder / "run" / f"level_{level}" / "history.csv").read_text().splitlines()
        assert len(history) == 2
    # What is finished is not trained again.
    untouched = (folder / "run" / "level_2" / "model.keras").stat().st_mtime_ns
    again = pyramids.train(
        one, files, [], folder / "run", tf.distribute.get_strategy(), settings(), DEFORMATION
    )
    assert (folder / "run" / "level_2" / "model.keras").stat().st_mtime_ns == untouched
    assert all(
        np.array_equal(a, b)
        for a, b in zip(network.get_weights(), again.get_weights(), strict=True)
    )


def test_a_run_of_separate_levels_is_found(separate, tmp_path):
    one, _, folder, network = separate
    flags = {name: value for name, value in dataclasses.asdict(one).items() if name != "labels"}
    run = runs.open_run(tmp_path / "run", multi_organ.NAME, {"seed": 1, **flags}, "data")
    runs.note(run, labels=dict(sorted(LABELS.items())), spacing=[[1, 1, 1]] * 2)
    shutil.copytree(folder / "run" / "level_1", run / "level_1")
    with pytest.raises(errors.UserError, match="level_2/model.keras: this level is not finished"):
        prediction.segmentor(run)
    shutil.copytree(folder / "run" / "level_2", run / "level_2")
    segment, x = prediction.segmentor(run), raw(19, 18, 13)
    assert segment.labels == LABELS and segment.system == multi_organ.NAME
    found = segment(x[0, ..., 0], (1, 1, 1), probabilities=True)
    expected = one.segment(one.unets(network), x, probability=True)
    assert found["label"].shape == (19, 18, 13) and found["label"].dtype == np.uint8
    assert set(np.unique(found["label"])) <= {0, 2, 5}
    for k, name in enumerate(("liver", "pancreas"), start=1):
        np.testing.assert_allclose(
            found["probability"][name], expected["probability"][0, ..., k], atol=1e-5
        )


@pytest.mark.parametrize("downsampling", [(2, 1), (4, 2)])
def test_validation_is_the_mean_dice_of_the_last_level_on_the_original_grid(
    tmp_path, monkeypatch, downsampling
):
    one = system(downsampling=downsampling)
    files, classes = cases(tmp_path, one), np.arange(3, dtype=np.float32)
    # The first level finds nothing, the last one the class that is next to its image's value.
    nothing = lambda x, training: ops.repeat(0 * x, 3, axis=-1)
    nearest = lambda x, training: 100 * (2 * classes * x[..., :1] - classes**2)
    unets = {"level_1": nothing, "level_2": nearest}
    network = types.SimpleNamespace(outputs=[None] * 2, get_layer=unets.get, trainable_variables=[])
    answers = []
    for entry in files:
        image = (
            100 * pipeline.stored(entry["label"], "label").numpy()[None].astype(np.float32) - 160
        )
        for n, scale in enumerate(downsampling, start=1):
            pipeline.store(entry[f"image_{n}"], one.preprocess(image, scale)[0])
        answers.append(one.classes(one.segment(one.unets(network), image)["label"])[0].numpy())
        pipeline.store(entry["label"], answers[-1])
        assert downsampling != (2, 1) or np.array_equal(answers[-1], image[0] / 100 + 1.6)

    class Validated(Exception):
        pass

    def fit(stage, *_):
        raise Validated(stage.validate())

    monkeypatch.setattr(MultiOrgan, "network", lambda *_: network)
    monkeypatch.setattr(stages.loop, "adam", lambda *_: None)
    monkeypatch.setattr(stages.loop, "fit", fit)

    def dsc(*which):
        validation, strategy = [files[n] for n in which], tf.distribute.get_strategy()
        with pytest.raises(Validated) as found:
            pyramids.train(one, files, validation, tmp_path, strategy, settings(), DEFORMATION)
        return found.value.args[0]

    assert dsc(0) == dsc(0, 1, 2) == {"DSC": 1.0}
    # The truth of case 1 is moved by one voxel.
    answer, truth = answers[1][..., 0], np.roll(answers[1][..., 0], 1, axis=0)
    pipeline.store(files[1]["label"], truth[..., None])
    expected = np.mean([metrics.dice(answer == k, truth == k) for k in np.unique(truth) if k])
    assert 0.5 < expected < 0.95 and dsc(1)["DSC"] == pytest.approx(expected)
    if downsampling == (2, 1):
        assert expected == pytest.approx(
            (11 / 12 + 2 / 3) / 2
        )  # the liver has 12 slices, the pancreas 3
    assert dsc(0, 1, 2)["DSC"] == pytest.approx((2 + expected) / 3)
    # What the truth lacks does not count.
    pipeline.store(files[1]["label"], np.where(answers[1] == 2, 0, answers[1]).astype(np.uint8))
    assert dsc(1) == {"DSC": 1.0}


REPLICAS = textwrap.dedent("""
    import pathlib, sys
    import numpy as np, tensorflow as tf
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    sys.path.insert(0, "tests")
    from tf_autoctx.systems import pyramids
    from tf_autoctx.training import devices, loop
    import test_multi_organ as t

    strategy, fit, made = devices.strategy("mirrored"), loop.fit, []
    loop.fit = lambda stage, *arguments: made.append(stage) or fit(stage, *arguments)
    one, folder = t.system("separate"), pathlib.Path(sys.argv[1])
    settings = t.settings(batch_size=1, samples_per_epoch=4)
    pyramids.train(one, t.cases(folder, one), [], folder / "run", strategy, settings, t.DEFORMATION)
    for number, stage in enumerate(made, start=1):
        for variable in stage.networks["network"].weights:
            copies = [copy.numpy() for copy in strategy.experimental_local_results(variable.value)]
            same, finite = np.array_equal(*copies), np.all(np.isfinite(copies))
            start = 0.0 if variable.path.endswith("moving_mean") else 1.0
            print("WEIGHT", number, variable.path.split("/")[-1], same, finite, np.any(copies[0] != start))
    """)


def test_replicas_keep_the_same_moving_averages(tmp_path):
    command = [sys.executable, "-c", REPLICAS, str(tmp_path)]
    ended = subprocess.run(
        command, cwd=running.ROOT, capture_output=True, encoding="utf-8", timeout=300
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    weights = [line.split()[1:] for line in ended.stdout.splitlines() if line.startswith("WEIGHT ")]
    assert len(weights) == 3 * (14 * 6 + 3 * 2 + 2)  # of level 1, then of both
    assert all(same == finite == "True" for _, _, same, finite, _ in weights)
    for which in ("moving_mean", "moving_variance"):
        moved = [(stage, moved) for stage, name, _, _, moved in weights if name == which]
        assert moved == [("1", "True")] * 14 + [("2", "True")] * 28


def test_every_level_answers_on_the_original_grid():
    one, x = system(downsampling=(4, 2)), raw(19, 16, 13)
    network = randomize(one.network())
    found = pyramids.every_level(one, network)(x[0, ..., 0])
    assert list(found) == ["level 1", "level 2"]
    assert all(answer["label"].shape == (19, 16, 13) for answer in found.values())
    np.testing.assert_array_equal(
        found["level 2"]["label"], one.segment(one.unets(network), x)["label"][0, ..., 0]
    )
    alone = system("no_context", downsampling=(4, 2))
    assert list(pyramids.every_level(alone, alone.network())(x[0, ..., 0])) == ["level 2"]
