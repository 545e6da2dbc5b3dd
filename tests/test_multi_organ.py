import csv
import dataclasses
import functools
import itertools
import re
import shutil
import subprocess
import sys
import textwrap
import types
import zlib

import keras
import numpy as np
import pytest
import running
import tensorflow as tf
from held import held
from helpers import graph, noise
from keras import ops
from scipy import ndimage
from test_tiling import seam, starts_and_edge

from tf_autoctx import errors, export, losses, metrics
from tf_autoctx.configuration import rules
from tf_autoctx.data import pipeline, subvolumes
from tf_autoctx.data.configuration import Augmentation
from tf_autoctx.models import layers, tiling
from tf_autoctx.systems.multi_organ import training
from tf_autoctx.systems.multi_organ.configuration import DECLARATION, MultiOrgan
from tf_autoctx.systems.multi_organ.presets import PRESETS
from tf_autoctx.systems.multi_organ.segmentation import Pyramid
from tf_autoctx.systems.multi_organ.system import MultiOrganSystem, TilePredictor
from tf_autoctx.systems.shared import prediction
from tf_autoctx.systems.shared.grid import Grid
from tf_autoctx.systems.shared.places import with_places
from tf_autoctx.systems.shared.session import Session
from tf_autoctx.systems.shared.system import Wanted
from tf_autoctx.training import runs
from tf_autoctx.training.configuration import Settings

LABELS = {5: "pancreas", 2: "liver"}
AUGMENTATION = Augmentation(shift=1, rotation=10.0, elastic=1.0, elastic_spacing=8)


def raw(*size, seed=0):
    """A raw CT of HU, (1, *size, 1), with structure at all scales."""
    rng = np.random.default_rng(seed)
    x = sum(ndimage.gaussian_filter(rng.normal(0, 150 * sigma, size), sigma) for sigma in (0.5, 2))
    return x.astype(np.float32)[None, ..., None]


def configuration(mode="end_to_end", **fields):
    """What is tested is around the networks, and four resolutions take twice as long to trace."""
    tiny = {"downsampling": (2, 1), "base_filters": 1, "patch_size": 8, "tile_size": 16, "depth": 2}
    fields = tiny | fields
    return MultiOrgan(mode, len(fields["downsampling"]), **fields)


def pyramid(mode="end_to_end", **fields):
    return Pyramid(configuration(mode, **fields), LABELS)


def randomize(network, seed=0):
    """Norms, moving averages and biases that differ, and every class somewhere."""
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
        layers_of_level = network.get_layer(name).layers
        head = [layer for layer in layers_of_level if isinstance(layer, keras.layers.Conv3D)][-1]
        head.bias.assign_sub(ops.mean(network(images, training=False)[name], axis=(0, 1, 2, 3)))
    return network


def graphs(seed):
    """Functions of two levels, as graphs."""
    network = randomize(pyramid().network(), seed)
    options = {"reduce_retracing": True, "autograph": False}
    return [tf.function(unet, **options) for unet in pyramid().unets(network)]


def segment(of, unets, x):
    """What a pyramid serves for raw volumes."""
    return of.postprocess(of.cascade(unets, x)[-1], ops.shape(x)[1:4])


@pytest.fixture(scope="module")
def unets():
    """Both of them follow the image."""
    return graphs(seed=2)


@pytest.fixture(scope="module")
def other_unets():
    return graphs(seed=1)


# Before the network.


def test_the_window_in_hundreds_of_hu():
    x = np.reshape(np.array([-1024, -160, 40, 140, 240, 3000], np.float32), (1, 1, 1, 6, 1))
    np.testing.assert_allclose(np.ravel(pyramid().preprocess(x, 1)), [0, 0, 2, 3, 4, 4], atol=1e-6)
    lung = pyramid(window_low=-1000.0, window_high=0.0)
    np.testing.assert_allclose(np.ravel(lung.preprocess(x, 1)), [0, 8.4, 10, 10, 10, 10], atol=1e-6)


def test_each_channel_by_its_own_mean_and_standard_deviation():
    """1, 3, 5, 7 have the mean 4 and the standard deviation sqrt(5)."""
    x = np.stack([np.array([1, 3, 5, 7]), 1000 * np.array([7, 5, 3, 1]), np.ones(4)], axis=-1)
    x = x.reshape(1, 1, 1, 4, 3).astype(np.float32)
    of_image = Pyramid(MultiOrgan(intensities="image"), {1: "liver"}, 3)
    for value in 0.1, 1000.3, 65535.0:  # the mean of which is off by a rounding
        plain = np.full((1, 64, 64, 64, 1), value, np.float32)
        assert not np.array(of_image.preprocess(plain, 1)).any()
    seen = np.array(of_image.preprocess(x, 1))[0, 0, 0]
    expected = np.array([-3, -1, 1, 3]) / np.sqrt(5)
    np.testing.assert_allclose(seen.T, [expected, -expected, np.zeros(4)], atol=1e-6)


def test_any_voxels_are_seen_by_their_own_image(caplog):
    """No window is shown, and nothing said of HU."""
    labels = {1: "liver"}
    of_image = MultiOrganSystem(MultiOrgan(intensities="image"), labels)
    of_ct = MultiOrganSystem(MultiOrgan(), labels)
    assert of_image.any_voxels and not of_ct.any_voxels
    assert of_image.window == (-np.inf, np.inf) and of_ct.window == (-160, 240)
    voxels = np.arange(27.0).reshape(3, 3, 3)
    for system, warned in ((of_image, False), (of_ct, True)):
        declaration = system.reader(None, {}).arguments[0]
        declaration.check_voxels("mr.nii.gz", voxels)
        assert ("HU" in caplog.text) == warned
    assert "other images want a training with `intensities=image`" in caplog.text


def test_the_help_of_the_window_tells_what_the_network_sees():
    fields = rules(MultiOrgan)
    assert "this one as 4" in fields["window_high"].help and "as 0" in fields["window_low"].help
    assert (MultiOrgan().window_high - MultiOrgan().window_low) / 100 == 4


def test_a_level_sees_the_windowed_volume_shrunk():
    # Clipped to 0 4 0 4 before it is shrunk: weights 3 3 1 over 7 at either end.
    x = np.reshape(np.array([-1024, 3000, -1024, 3000], np.float32), (1, 1, 1, 4, 1))
    shrunk = pyramid(downsampling=(4, 2)).preprocess(x, 2)
    assert shrunk.shape == (1, 1, 1, 2, 1)
    np.testing.assert_allclose(np.ravel(shrunk), [12 / 7, 16 / 7], atol=1e-6)


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
    assert pyramid().grid_size(size, scale) == expected


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 7, 16])
def test_known_and_unknown_sizes_round_alike(scale):
    sizes = np.arange(1, 1300)
    known = [pyramid().grid_size((int(n),), scale)[0] for n in sizes]
    np.testing.assert_array_equal(known, np.maximum(1, np.floor(sizes / scale + 0.5)))
    np.testing.assert_array_equal(
        known, pyramid().grid_size((tf.constant(sizes, tf.int32),), scale)[0]
    )


def test_preprocess_is_the_same_in_a_graph_of_any_size():
    for scale in (1, 2, 4):
        in_graph, x = graph(functools.partial(pyramid().preprocess, scale=scale)), raw(11, 10, 17)
        eager = pyramid().preprocess(x, scale)
        assert eager.shape == (1, *pyramid().grid_size((11, 10, 17), scale), 1)
        np.testing.assert_allclose(in_graph(x), eager, atol=1e-6)


def test_classes_are_label_values_in_order():
    assert pyramid().values == (0, 2, 5)
    label = np.array([[0, 1, 2], [3, 5, 255]], np.uint8)
    classes = pyramid().classes(label)
    assert classes.dtype == "uint8"
    # What has no name is background.
    np.testing.assert_array_equal(classes, [[0, 0, 1], [0, 2, 0]])
    assert Pyramid(configuration(), {255: "body"}).classes(label)[1, 2] == 1


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
    label = np.array(pyramid().label(probability, new))
    assert label.shape == (2, *new, 1) and label.dtype == "uint8"
    margin = np.diff(np.sort(fine, axis=-1)[..., -2:], axis=-1) > 1e-5
    assert margin.mean() > 0.99
    np.testing.assert_array_equal(
        label[margin], np.array([0, 2, 5])[fine.argmax(axis=-1)][..., None][margin]
    )
    in_graph = tf.function(
        lambda p, size: pyramid().label(p, tf.unstack(size)),
        input_signature=[tf.TensorSpec([None, None, None, None, 3]), tf.TensorSpec([3], tf.int32)],
    )
    np.testing.assert_array_equal(
        in_graph(probability, np.array(new, np.int32))[margin], label[margin]
    )


# The cascade.


@pytest.mark.parametrize("size", [(16, 16, 16), (15, 9, 16), (1, 3, 5)])
def test_the_cascade_written_out(unets, size):
    # Both levels are one tile.
    x, half = raw(*size), tuple((n + 1) // 2 for n in size)
    levels = pyramid().cascade(unets, x)
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
    for level, expected in zip(levels, (first, second), strict=True):
        np.testing.assert_allclose(level, expected, atol=1e-4)
    output = segment(pyramid(), unets, x)
    np.testing.assert_allclose(output["probability"], second, atol=1e-4)
    sure = np.sort(second, axis=-1)[..., -1] - np.sort(second, axis=-1)[..., -2] > 1e-3
    np.testing.assert_array_equal(
        output["label"][..., 0][sure], np.array([0, 2, 5])[second.argmax(axis=-1)][sure]
    )


def test_the_output_is_on_the_original_grid_where_the_last_level_is_not(unets):
    coarse, x = pyramid(downsampling=(4, 2)), raw(19, 22, 13)
    levels, output = coarse.cascade(unets, x), segment(coarse, unets, x)
    assert [level.shape for level in levels] == [(1, 5, 6, 3, 3), (1, 10, 11, 7, 3)]
    assert output["label"].shape == (1, 19, 22, 13, 1) and output["label"].dtype == "uint8"
    np.testing.assert_allclose(
        output["probability"], layers.resize_linear(levels[1], (19, 22, 13)), atol=1e-6
    )
    np.testing.assert_allclose(ops.sum(output["probability"], axis=-1), 1, atol=1e-5)
    assert set(np.unique(output["label"])) <= {0, 2, 5} and len(np.unique(output["label"])) > 1


def test_level_2_depends_on_level_1(unets, other_unets):
    x = raw(16, 13, 16)
    own, other = (
        np.array(pyramid().cascade([first, unets[1]], x)[1]) for first in (unets[0], other_unets[0])
    )
    assert np.abs(own - other).max() > 0.01


def test_tiles(unets):
    x = raw(30, 17, 16)
    small, whole = pyramid(tile_size=16), pyramid(tile_size=32)
    # Level 1: 15 x 9 x 8, one tile. Level 2: tiles of 16 that share 8: 3 along 30, 2 along 17.
    assert (small.configuration.overlap, whole.configuration.overlap) == (8, 16)
    assert (small.tiles((30, 17, 16)), whole.tiles((30, 17, 16))) == (7, 2)
    tiled = [np.array(level) for level in small.cascade(unets, x)]
    untiled = [np.array(level) for level in whole.cascade(unets, x)]
    np.testing.assert_array_equal(tiled[0], untiled[0])
    assert tiled[1].shape == untiled[1].shape and np.any(tiled[1] != untiled[1])
    # The context is resampled as a whole, and the first 8 voxels of the first tile are no other's.
    joined = np.concatenate(
        [small.preprocess(x, 1), layers.resize_linear(tiled[0], (30, 17, 16))], axis=-1
    )
    corner = ops.softmax(unets[1](joined[:, :16, :16]))[:, :8, :8]
    np.testing.assert_allclose(tiled[1][:, :8, :8], corner, atol=1e-4)


@pytest.mark.parametrize(
    "tile_size, overlap", [(16, 8), (24, 8), (32, 16), (56, 16), (64, 16), (96, 24), (128, 32)]
)
def test_tiles_share_a_quarter_or_16_voxels(tile_size, overlap):
    assert configuration(tile_size=tile_size).overlap == overlap


def errors_at_tiles(tiled, reference, tile, overlap):
    """Mean |tiled - reference| within 2 voxels of a tile's border, of the middle of an overlap, and
    elsewhere."""
    error = np.abs(np.array(tiled) - np.array(reference)).mean(axis=(0, 4))
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
    """`far`: weight of coarser resolutions, which see farther than an overlap."""
    wide, size, tile = pyramid(base_filters=2, tile_size=32, depth=4), (48, 56, 61), 32
    overlap = wide.configuration.overlap
    network = randomize(wide.network())
    for weight in network.weights:
        if "transpose" in weight.path and weight.path.endswith("kernel"):
            weight.assign(far * weight)
    image = wide.preprocess(raw(*size), 1)
    context = ops.softmax(ndimage.gaussian_filter(noise(1, *size, 3, seed=3), (0, 2, 2, 2, 0)) * 30)
    inputs = (image, np.concatenate([image, context], axis=-1))
    for unet, x in zip(wide.unets(network), inputs, strict=True):

        def softmax(x, unet=unet):
            return ops.softmax(unet(x))

        reference = softmax(x)
        assert np.std(reference, axis=(0, 1, 2, 3)).max() > 0.1
        tiled = tiling.tiled(softmax, x, tile, overlap)
        at_border, in_middle, elsewhere = errors_at_tiles(tiled, reference, tile, overlap)
        assert 1e-3 < max(at_border, in_middle) < 2 * elsewhere
        # Tiles side by side have seams, and the measure sees them.
        side_by_side, elsewhere = seam(tiling.tiled(softmax, x, 32, 0), reference, 32, 0)
        assert side_by_side > 1.5 * elsewhere and side_by_side > 1.5 * at_border


def test_a_graph_of_any_size_does_as_eager(unets):
    coarse = pyramid(downsampling=(3, 2))
    served = tf.function(
        lambda image: segment(coarse, unets, image),
        input_signature=[export.VOLUME],
        autograph=False,
    )
    for size in ((37, 21, 12), (7, 8, 1)):
        expected, output = segment(coarse, unets, raw(*size)), served(raw(*size))
        np.testing.assert_allclose(output["probability"], expected["probability"], atol=1e-4)
        top = np.sort(expected["probability"], axis=-1)
        sure = top[..., -1] - top[..., -2] > 1e-3
        assert sure.mean() > 0.9
        np.testing.assert_array_equal(output["label"][sure], expected["label"][sure])


def test_samples_of_a_batch_do_not_mix(unets):
    pair = raw(20, 9, 12), raw(20, 9, 12, seed=1)
    together = segment(pyramid(), unets, np.concatenate(pair))["probability"]
    for i, x in enumerate(pair):
        alone = segment(pyramid(), unets, x)["probability"]
        np.testing.assert_allclose(together[i : i + 1], alone, atol=1e-4)


def test_without_context_there_is_one_level():
    alone, x = pyramid("no_context", downsampling=(4, 2)), raw(16, 14, 12)
    network, unets = alone.network(), alone.unets(alone.network())
    assert alone.configuration.scales == (2,) and alone.configuration.first_level == 2
    both = configuration(downsampling=(4, 2))
    assert both.scales == (4, 2) and both.first_level == 1
    assert list(network.input) == ["image_1"] and network.input["image_1"].shape[-1] == 1
    assert alone.tiles((40, 16, 16)) == 2  # of level 2 alone
    levels = alone.cascade(alone.unets(network), x)
    expected = ops.softmax(network({"image_1": alone.preprocess(x, 2)}, training=False)["level_1"])
    assert len(levels) == 1
    np.testing.assert_allclose(levels[0], expected, atol=1e-5)
    assert segment(alone, unets, x)["label"].shape == x.shape


def test_networks_of_the_first_levels():
    three = pyramid("separate", downsampling=(8, 4, 2))
    assert [list(three.network(count).output) for count in (1, 2)] == [
        ["level_1"],
        ["level_1", "level_2"],
    ]
    assert len(three.unets(three.network(2))) == 2
    assert three.network(1).output["level_1"].shape[-1] == 3


# Configuration.


@pytest.mark.parametrize(
    "field, value",
    [
        ("mode", "frozen"),
        ("levels", 0),
        ("downsampling", ()),
        ("downsampling", (2, 4)),
        ("downsampling", (2, 2)),
        ("downsampling", (2, 0)),
        ("downsampling", (2,)),
        ("patch_size", 0),
        ("patch_size", 60),
        ("patch_size", -8),
        ("tile_size", 8),
        ("tile_size", 100),
        ("window_low", 240.0),
        ("window_low", float("nan")),
        ("window_low", float("-inf")),
        ("base_filters", 0),
        ("normalization", "layer"),
        ("initializer", "zeros"),
    ],
)
def test_a_bad_configuration_names_its_field(field, value):
    with pytest.raises(errors.FieldError, match=f"^{field}=") as refused:
        MultiOrgan(**{field: value})
    assert refused.value.field == field


@pytest.mark.parametrize("labels", [{}, {0: "background"}, {256: "liver"}])
def test_labels_that_a_label_image_cannot_hold_are_refused(labels):
    with pytest.raises(ValueError, match=r"^labels="):
        MultiOrganSystem(MultiOrgan(), labels)


@pytest.mark.parametrize("levels, factors", [(1, (2,)), (2, (4, 2)), (3, (8, 4, 2))])
def test_factors_follow_from_the_number_of_levels(levels, factors):
    assert MultiOrgan(levels=levels).factors == factors
    values = dataclasses.asdict(MultiOrgan(levels=levels)) | {"seed": 0}
    assert MultiOrganSystem.implied(values) == {"downsampling": list(factors), "depth": 4}
    with pytest.raises(errors.FieldError, match=f"has 4 factors; expected `levels={levels}`"):
        MultiOrganSystem.implied(values | {"downsampling": [9, 7, 5, 3]})


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_configurations(preset):
    names = {field.name for field in dataclasses.fields(MultiOrgan)}
    chosen = MultiOrgan(**{k: v for k, v in PRESETS[preset].items() if k in names})
    assert len(chosen.scales) == PRESETS[preset].get("levels", 2)


def test_the_tile_size_alone_may_change():
    assert [name for name, rule in rules(MultiOrgan).items() if rule.may_change] == ["tile_size"]
    assert list(rules(DECLARATION.prediction)) == ["tile_size"]


# Training.


@pytest.mark.parametrize(
    "low, high, warns",
    [(-1000, 1500, False), (-200, 150, False), (0, 255, True), (-1000, 50, True), (24, 2000, True)],
)
def test_a_warning_unless_hu(caplog, low, high, warns):
    voxels = np.linspace(low, high, 27).reshape(3, 3, 3)
    DECLARATION.check_voxels("ct.nii.gz", voxels)
    assert ("ct.nii.gz" in caplog.text and "HU" in caplog.text) == warns
    assert warns == bool(caplog.text)


def cases(folder, of, count=3, size=(24, 20, 16)):
    """Cached training cases of a pyramid: the liver and the pancreas are boxes of higher
    intensities; the pancreas is in case 1 only."""
    files = []
    for number in range(count):
        label = np.zeros(size, np.uint8)
        label[4:16, 4:14, 3:10] = 2
        if number == 1:
            label[18:21, 6:10, 8:12] = 5
        image = (60.0 * label + 20 * noise(*size, seed=number) - 100).astype(np.float32)
        tensors = {
            "label": of.classes(label[..., None]),
            "places": subvolumes.places(label, of.values[1:], np.random.default_rng(number)),
            "spacing": np.array([1, 1, 1], np.float32),
            **{
                f"image_{n}": of.preprocess(image[None, ..., None], s)[0]
                for n, s in enumerate(of.configuration.scales, start=1)
            },
        }
        for name, tensor in tensors.items():
            pipeline.store(folder / f"case_{number}" / name, tensor)
        files.append({name: str(folder / f"case_{number}" / name) for name in tensors})
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
    return Settings(**{**values, **changes})


def session(folder, files, validation=(), strategy=None, **changes):
    """An open run in a folder."""
    strategy = strategy or tf.distribute.get_strategy()
    values = dataclasses.asdict(AUGMENTATION)
    run = runs.Run(folder, {})
    return Session(run, values, strategy, settings(**changes), files, list(validation))


def test_what_is_prepared_of_a_case():
    system = MultiOrganSystem(configuration(downsampling=(4, 2)), LABELS)
    x, label = raw(10, 12, 9), np.full((1, 10, 12, 9, 1), 5, np.uint8)
    tensors = system.prepare(None, x, label)
    assert sorted(tensors) == ["image_1", "image_2", "label"]
    assert np.all(tensors["label"] == 2) and tensors["label"].shape == (10, 12, 9, 1)
    for n, scale in ((1, 4), (2, 2)):
        np.testing.assert_array_equal(tensors[f"image_{n}"], system.pyramid.preprocess(x, scale)[0])


def test_places_are_drawn_once_from_the_seed_and_the_name_of_the_case(tmp_path):
    files = cases(tmp_path, pyramid())
    label = np.array([0, 2, 5])[pipeline.stored(files[1]["label"], "label")[..., 0]]
    rng = np.random.default_rng([7, zlib.crc32(b"case_1")])
    expected = subvolumes.places(label, [2, 5], rng)
    kept = pipeline.stored(files[1]["places"], "places").numpy()
    for entry in files:
        shutil.rmtree(tmp_path / entry.pop("places"))
    again = with_places(files, [1, 2], seed=7)
    np.testing.assert_array_equal(pipeline.stored(again[1]["places"], "places"), expected)
    assert not np.array_equal(kept, expected) and "places" not in files[1]
    # What is there stays, whatever the seed.
    assert with_places(files, [1, 2], seed=8) == again
    np.testing.assert_array_equal(pipeline.stored(again[1]["places"], "places"), expected)


def test_structures_that_no_case_has(tmp_path):
    files = cases(tmp_path, pyramid("no_context"))
    assert training.present(files, pyramid()) == [2, 5]
    assert training.present([files[0], files[2]], pyramid()) == [2]


def test_a_warning_of_structures_that_no_case_has(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(training, "train", lambda *_: {})
    system = MultiOrganSystem(configuration(), LABELS)
    files = cases(tmp_path, system.pyramid)
    system.train(session(tmp_path, files))
    assert not caplog.text
    system.train(session(tmp_path, [files[0], files[2]]))
    assert "pancreas (label 5)" in caplog.text and "liver" not in caplog.text


@pytest.mark.parametrize("level, place", [(1, 64), (2, 80)])
def test_a_subvolume_in_a_corner_is_what_is_segmented_there(level, place):
    """The last tile of a level, which reaches beyond the volume, and the subvolume about its
    middle; the labels there are those of the volume's last voxels."""
    of = pyramid(downsampling=(4, 2), tile_size=16)
    x, seen = raw(84, 84, 84), {1: [], 2: []}
    label = np.random.default_rng(0).integers(0, 3, (84, 84, 84, 1)).astype(np.uint8)
    images = [of.preprocess(x, scale) for scale in of.configuration.scales]

    def seeing(number):
        def unet(x):
            if not tf.is_symbolic_tensor(x):
                seen[number].append(np.array(x))
            return ops.repeat(0 * x[..., :1], 3, axis=-1)

        return unet

    of.probabilities([seeing(1), seeing(2)], images)
    case = {"label": label, "places": np.full((1, 1, 3), place, np.float32), "spacing": np.ones(3)}
    case |= {f"image_{n}": image[0] for n, image in enumerate(images, start=1)}
    case["spacing"] = case["spacing"].astype(np.float32)
    cut = subvolumes.draw(
        held(case), (1, 2), scales=(4, 2), unit=2, size=(16,) * 3, augmentation=Augmentation()
    )
    window = seen[level][-1][0, ..., :1]
    assert window.shape == (16,) * 3 + (1,) and not np.ptp(window[-3:], axis=0).any()  # beyond
    np.testing.assert_array_equal(cut[f"image_{level}"], window)
    ends = np.array(cut[f"label_{level}"])[-3:]
    assert not np.ptp(ends, axis=0).any() and set(np.unique(ends)) == {0, 1, 2}


@pytest.mark.parametrize("epsilon", [1e-5, 50.0])
def test_the_flag_of_the_dice_is_that_of_the_loss(tmp_path, epsilon):
    """Of classes and of regions, whose sums are over all samples of a step."""
    label = np.random.default_rng(0).integers(0, 3, (2, 8, 8, 8, 1)).astype(np.uint8)
    logits = noise(2, 8, 8, 8, 3)
    how = {"epsilon": epsilon, "batch_dice": True}
    run = session(tmp_path, cases(tmp_path, pyramid()))
    found = training._loss(pyramid(dice_epsilon=epsilon), run)(label, logits)
    np.testing.assert_array_equal(found, losses.ClassLoss(("dice",), **how)(label, logits))
    assert found[0] == found[1]
    of_regions = Pyramid(
        configuration(regions="both=2+5,core=5", dice_epsilon=epsilon), {2: "both", 5: "core"}
    )
    regions = tuple(of_regions.class_regions.values())
    found = training._loss(of_regions, run)(label, logits[..., :2])
    expected = losses.RegionLoss(regions, **how)(label, logits[..., :2])
    np.testing.assert_array_equal(found, expected)


def test_stages_have_the_names_of_their_last_level():
    three = (8, 4, 2)
    assert training.stage_name(configuration(downsampling=three)) == "pyramid"
    separate = configuration("separate", downsampling=three)
    names = [training.stage_name(separate, n) for n in (1, 2, 3)]
    assert names == ["level_1", "level_2", "level_3"]
    assert training.stage_name(separate) == "level_3"
    assert training.stage_name(configuration("no_context", downsampling=three)) == "level_3"
    assert training.stage_name(configuration("no_context", downsampling=three), 1) == "level_3"


def test_the_loss_of_level_2_alone_moves_level_1_end_to_end():
    keras.utils.set_random_seed(0)
    label = np.random.default_rng(0).integers(0, 3, (2, 8, 8, 8, 1))
    for mode in ("end_to_end", "separate"):
        network, adam = pyramid(mode).network(), keras.optimizers.Adam(0.01)
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
    three = pyramid(downsampling=downsampling)
    files = cases(tmp_path, three)
    networks = training.train(three, session(tmp_path / "run", files, steps=1))
    trained = networks["pyramid"]
    with open(tmp_path / "run" / "pyramid" / "history.csv") as file:
        [history] = csv.DictReader(file)

    # The first weights and the batch once more.
    seed = settings().seed * 1000 + len(levels)
    keras.utils.set_random_seed(seed)
    network = three.network()
    draw = functools.partial(
        subvolumes.draw, scales=downsampling, unit=1, size=(8, 8, 8), augmentation=AUGMENTATION
    )
    columns = {name: [entry[name] for entry in files] for name in files[0]}
    order = pipeline.Order(seed=seed, steps=1, batch_size=3)
    [(batch, _)] = pipeline.training(columns, draw, order)
    logits = network({f"image_{n}": batch[f"image_{n}"] for n in levels}, training=True)
    dice = [
        float(losses.DiceLoss(batch_dice=True)(batch[f"label_{n}"], logits[f"level_{n}"])[0])
        for n in levels
    ]
    assert max(dice) < -0.05  # none could be left out
    assert float(history["loss"]) == pytest.approx(sum(dice), rel=1e-4)

    # Every level has learnt, and every level segments.
    for n in levels:
        own, new = (model.get_layer(f"level_{n}").trainable_weights for model in (network, trained))
        assert any(np.any(a.numpy() != b.numpy()) for a, b in zip(own, new, strict=True))
    system = MultiOrganSystem(three.configuration, LABELS)
    segmentations = system.evaluator(networks)(raw(19, 16, 13)[0, ..., 0], None)
    assert list(segmentations) == [f"level {n}" for n in levels]
    assert all(output["label"].shape == (19, 16, 13) for output in segmentations.values())


@pytest.fixture(scope="module")
def separate(tmp_path_factory):
    """(pyramid, session, networks) after training of two levels, one after the other."""
    folder, both = tmp_path_factory.mktemp("separate"), pyramid("separate")
    run = session(folder / "run", cases(folder, both))
    return both, run, training.train(both, run)


def test_separate_trains_level_after_level(separate):
    both, run, networks = separate
    network, files = networks["level_2"], [run.folder / f"level_{n}" for n in (1, 2)]
    first, second = (keras.models.load_model(file / "model.keras", compile=False) for file in files)
    assert list(networks) == ["level_2"]
    assert list(first.output) == ["level_1"] and list(second.output) == ["level_1", "level_2"]

    def weights(network, level):
        return {
            re.sub(r"_\d+(?=/)", "", w.path) + str(i): w.numpy()
            for i, w in enumerate(network.get_layer(level).weights)
        }

    # Level 1 was trained, then frozen to the bit, moving averages too; level 2 was trained on top.
    alone, below = weights(first, "level_1"), weights(second, "level_1")
    assert len(alone) == 6 * 5 + 2 + 2
    for a, b in zip(alone.values(), below.values(), strict=True):
        np.testing.assert_array_equal(a, b)
    for trained, level in ((first, "level_1"), (second, "level_2")):
        averages = [
            array for name, array in weights(trained, level).items() if "moving_mean" in name
        ]
        assert len(averages) == 6 and all(np.any(array) for array in averages)
    for name, array in weights(network, "level_2").items():
        np.testing.assert_array_equal(array, weights(second, "level_2")[name])
    for file in files:
        assert len((file / "history.csv").read_text().splitlines()) == 2
    # What is finished is not trained again.
    untouched = (files[1] / "model.keras").stat().st_mtime_ns
    again = training.train(both, run)["level_2"]
    assert (files[1] / "model.keras").stat().st_mtime_ns == untouched
    assert all(
        np.array_equal(a, b)
        for a, b in zip(network.get_weights(), again.get_weights(), strict=True)
    )


def test_a_run_of_separate_levels_is_read(separate, tmp_path):
    both, trained, networks = separate
    flags = {"seed": 1, **dataclasses.asdict(both.configuration)}
    making = runs.Making("multi_organ", flags, "data")
    run = runs.open_run(tmp_path / "run", making)
    run.note(labels=dict(sorted(LABELS.items())), spacing=[[1, 1, 1]] * 2)
    shutil.copytree(trained.folder / "level_1", run.folder / "level_1")
    with pytest.raises(errors.UserError, match=r"level_2/model\.keras: this stage is not finished"):
        prediction.load(run.folder)
    shutil.copytree(trained.folder / "level_2", run.folder / "level_2")
    segmentor, x = prediction.load(run.folder), raw(19, 18, 13)
    assert segmentor.labels == LABELS and segmentor.declaration is DECLARATION
    output = segmentor(x[0, ..., 0], (1, 1, 1), probabilities=True)
    unets = both.unets(networks["level_2"])
    expected = segment(both, unets, x)
    assert output["label"].shape == (19, 18, 13) and output["label"].dtype == np.uint8
    assert set(np.unique(output["label"])) <= {0, 2, 5}
    for k, name in enumerate(("liver", "pancreas"), start=1):
        np.testing.assert_allclose(
            output["probability"][name], expected["probability"][0, ..., k], atol=1e-5
        )


@pytest.mark.parametrize("downsampling", [(2, 1), (4, 2)])
def test_validation_is_the_mean_dice_of_the_last_level_on_the_original_grid(tmp_path, downsampling):
    both = pyramid(downsampling=downsampling)
    files, classes = cases(tmp_path, both), np.arange(3, dtype=np.float32)

    # The first level finds nothing, the last one the class that is next to its image's value.
    def nothing(x, training):
        return ops.repeat(0 * x, 3, axis=-1)

    def nearest(x, training):
        return 100 * (2 * classes * x[..., :1] - classes**2)

    unets = {"level_1": nothing, "level_2": nearest}
    network = types.SimpleNamespace(outputs=[None] * 2, get_layer=unets.get)
    labels = []
    for entry in files:
        image = (
            100 * pipeline.stored(entry["label"], "label").numpy()[None].astype(np.float32) - 160
        )
        for n, scale in enumerate(downsampling, start=1):
            pipeline.store(entry[f"image_{n}"], both.preprocess(image, scale)[0])
        label = segment(both, both.unets(network), image)["label"]
        labels.append(both.classes(label)[0].numpy())
        pipeline.store(entry["label"], labels[-1])
        assert downsampling != (2, 1) or np.array_equal(labels[-1], image[0] / 100 + 1.6)
    stage = training.PyramidStage(2, None, both, session(tmp_path, files))
    graph_ = stage.graph({"network": network})

    def dsc(number):
        sample = pipeline.sample({name: files[number][name] for name in stage.columns})
        return stage.score(graph_, sample)

    assert [dsc(number) for number in range(3)] == [1, 1, 1]
    # The truth of case 1 is moved by one voxel.
    label, truth = labels[1][..., 0], np.roll(labels[1][..., 0], 1, axis=0)
    pipeline.store(files[1]["label"], truth[..., None])
    expected = np.mean([metrics.dice(label == k, truth == k) for k in np.unique(truth) if k])
    assert 0.5 < expected < 0.95 and dsc(1) == pytest.approx(expected)
    if downsampling == (2, 1):
        # The liver has 12 slices, the pancreas 3.
        assert expected == pytest.approx((11 / 12 + 2 / 3) / 2)
    # What the truth lacks does not count.
    pipeline.store(files[1]["label"], np.where(labels[1] == 2, 0, labels[1]).astype(np.uint8))
    assert dsc(1) == 1


REPLICAS = textwrap.dedent("""
    import pathlib, sys
    import numpy as np, tensorflow as tf
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    sys.path.insert(0, "tests")
    from tf_autoctx.systems.multi_organ import training
    from tf_autoctx.training import devices, loop
    import test_multi_organ as t

    strategy, fit, made = devices.strategy("mirrored"), loop.fit, []
    loop.fit = lambda task, *arguments: made.append(task) or fit(task, *arguments)
    both, folder = t.pyramid("separate"), pathlib.Path(sys.argv[1])
    run = t.session(
        folder / "run", t.cases(folder, both), strategy=strategy, batch_size=1, samples_per_epoch=4
    )
    training.train(both, run)
    for number, task in enumerate(made, start=1):
        for variable in task.networks["network"].weights:
            copies = [copy.numpy() for copy in strategy.experimental_local_results(variable.value)]
            same, finite = np.array_equal(*copies), np.all(np.isfinite(copies))
            start = 0.0 if variable.path.endswith("moving_mean") else 1.0
            name, moved = variable.path.split("/")[-1], np.any(copies[0] != start)
            print("WEIGHT", number, name, same, finite, moved)
    """)


def test_replicas_keep_the_same_moving_averages(tmp_path):
    command = [sys.executable, "-c", REPLICAS, str(tmp_path)]
    ended = subprocess.run(
        command, cwd=running.ROOT, capture_output=True, encoding="utf-8", timeout=300
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    weights = [line.split()[1:] for line in ended.stdout.splitlines() if line.startswith("WEIGHT ")]
    assert len(weights) == 3 * (6 * 5 + 2 + 2)  # of level 1, then of both
    assert all(same == finite == "True" for _, _, same, finite, _ in weights)
    for which in ("moving_mean", "moving_variance"):
        moved = [(stage, moved) for stage, name, _, _, moved in weights if name == which]
        assert moved == [("1", "True")] * 6 + [("2", "True")] * 12


# As others see it.


def test_every_level_is_evaluated_on_the_original_grid():
    system, x = MultiOrganSystem(configuration(downsampling=(4, 2)), LABELS), raw(19, 16, 13)
    networks = {"pyramid": randomize(system.pyramid.network())}
    levels = system.evaluator(networks)(x[0, ..., 0], None)
    assert list(levels) == ["level 1", "level 2"]
    assert all(output["label"].shape == (19, 16, 13) for output in levels.values())
    np.testing.assert_array_equal(
        levels["level 2"]["label"], system.segment(networks, x)["label"][0, ..., 0]
    )
    # Probabilities by the names of the structures, on the level's grid.
    unets = system.pyramid.unets(networks["pyramid"])
    for output, expected in zip(levels.values(), system.pyramid.cascade(unets, x), strict=True):
        assert list(output["probability"]) == ["liver", "pancreas"]
        for k, probability in enumerate(output["probability"].values(), start=1):
            np.testing.assert_allclose(probability, expected[0, ..., k], atol=1e-5)
    alone = MultiOrganSystem(configuration("no_context", downsampling=(4, 2)), LABELS)
    networks = alone.new_networks(["level_2"])
    assert list(alone.evaluator(networks)(x[0, ..., 0], None)) == ["level 2"]


def test_a_run_is_segmented_in_graphs_that_tell_of_every_tile(capsys, monkeypatch):
    monkeypatch.setattr("tf_autoctx.progress.watched", lambda: True)
    system, x = MultiOrganSystem(configuration(), LABELS), raw(30, 17, 16)
    networks = {"pyramid": randomize(system.pyramid.network())}
    predictor = TilePredictor(configuration(), LABELS, networks)
    expected = segment(system.pyramid, system.unets(networks), x)
    for probabilities, progress in itertools.product((False, True), repeat=2):
        output = predictor(x, None, Wanted(probabilities=probabilities, progress=progress))
        assert ("7/7" in capsys.readouterr().out) == progress
        np.testing.assert_array_equal(output["label"], expected["label"])
        assert ("probability" in output) == probabilities
    np.testing.assert_allclose(output["probability"], expected["probability"], atol=1e-5)
    predictor(raw(16, 16, 16), None, Wanted(progress=True))  # a tile a level
    assert not capsys.readouterr().out


def test_signatures_serve_the_label_and_the_probabilities():
    system, x = MultiOrganSystem(configuration(), LABELS), raw(9, 10, 11)
    networks = system.new_networks(["pyramid"])
    signatures = system.signatures([networks])
    assert list(signatures) == ["serving_default", "probabilities", "uncertainty"]
    assert signatures["serving_default"](x).keys() == {"label"}
    output = signatures["probabilities"](x)
    assert output["probability"].shape == (1, 9, 10, 11, 3)
    np.testing.assert_array_equal(output["label"], system.segment(networks, x)["label"])
    assert system.window == (-160, 240) and system.structure is None


def test_all_signatures_run_the_same_graph_of_the_networks(tmp_path):
    """An export holds each convolution once, however many signatures it has."""
    system = MultiOrganSystem(configuration("no_context"), LABELS)
    networks, mm = system.new_networks(["level_2"]), Grid((2.0, 1.0, 1.0))
    functions = system.signatures([networks])
    del functions["uncertainty"]
    spaced = export.Spaced({name: mm.resampling(f) for name, f in functions.items()}, mm.spacing)
    exported = export.Exported(functions, networks, {}, system.spec, spaced=spaced)
    version = export.write(tmp_path, exported)
    assert len(export.read_card(version)["signatures"]) == 9
    ops = [node.op for node in running.nodes(version)]
    kernels = [key for key in layers.named_weights(networks["level_2"]) if key.endswith("kernel")]
    assert ops.count("Conv3D") + ops.count("Conv3DBackpropInputV2") == len(kernels)
