"""Patches that are planned from cases and memory, and patches of the fetal head."""

import json

import keras
import numpy as np
import pytest
import running
import tensorflow as tf
import test_order
from held import held
from helpers import grey, noise, plain_unet3d, plain_usegnet, randomize, seeds
from keras import ops

from tf_autoctx import errors, export
from tf_autoctx.data import pipeline, subvolumes
from tf_autoctx.data.configuration import Augmentation
from tf_autoctx.models import memory, tiling, unet3d
from tf_autoctx.models.memory import Cost
from tf_autoctx.systems.fetal_head import segmentation, training
from tf_autoctx.systems.fetal_head.configuration import FetalHead
from tf_autoctx.systems.fetal_head.segmentation import Cascade
from tf_autoctx.systems.fetal_head.system import FetalHeadSystem
from tf_autoctx.systems.fetal_head.training import LevelStage
from tf_autoctx.systems.multi_organ.configuration import MultiOrgan
from tf_autoctx.systems.multi_organ.system import MultiOrganSystem
from tf_autoctx.systems.shared import (
    evaluation,
    opening,
    patches,
    planning,
    prediction,
    stages,
)
from tf_autoctx.systems.shared.planning import Cases
from tf_autoctx.systems.shared.system import Wanted
from tf_autoctx.training import devices, runs

MIB = 2**20
KIB_A_VOXEL = Cost(0, 1024.0)
STILL = Augmentation()

# The flag


def test_edges():
    assert patches.edges("64,48, 8") == (64, 48, 8)
    assert patches.edges("none") is patches.edges("auto") is None
    assert FetalHead(patch="16,8,24").edges == (16, 8, 24)
    assert FetalHead(variant="p-USegNet").edges == (64, 64, 64) and FetalHead().edges is None
    assert MultiOrgan(patch="16,8,24").edges == (16, 8, 24) and MultiOrgan().edges == (64,) * 3


@pytest.mark.parametrize("value", ["", "64", "64,64", "64,64,60", "64,64,0", "64,-8,64", "a,b,c"])
@pytest.mark.parametrize("kind", [FetalHead, MultiOrgan])
def test_edges_that_are_none(kind, value):
    with pytest.raises(errors.FieldError, match=f"^patch={value}: expected three multiples of 8"):
        kind(patch=value)


@pytest.mark.parametrize("variant", ["p-USegNet", "2D-USegNet"])
@pytest.mark.parametrize("value", ["auto", "8,8,8"])
def test_ways_of_running_have_patches_of_their_own(variant, value):
    with pytest.raises(errors.FieldError, match=f"^patch={value}: {variant} sees "):
        FetalHead(variant=variant, patch=value)


# The plan


@pytest.mark.parametrize(
    "voxels, expected",
    [
        (512, (8, 8, 8)),
        (1023, (8, 8, 8)),
        (1024, (8, 8, 16)),  # x first: 8 of 64 voxels is the smallest part
        (2048, (8, 16, 16)),  # then y, as 16 of 64 is 8 of 32 and y comes before x
        (4096, (8, 16, 32)),  # half of the volume along each axis, by way of x = 24
        (8192, (16, 16, 32)),
        (16384, (16, 24, 40)),  # 16 x 24 x 48 would be 18432
        (10**9, (16, 32, 64)),  # no more than there is
    ],
)
def test_a_patch_has_the_proportions_of_the_volume(voxels, expected):
    assert planning.grown((16, 32, 64), (16, 32, 64), voxels) == expected


@pytest.mark.parametrize(
    "median, most, voxels, expected",
    [
        ((5, 100, 100), (5, 100, 100), 32768, (8, 64, 64)),  # thin slabs: all of z
        ((40, 40, 40), (40, 40, 40), 10**6, (40, 40, 40)),
        ((41, 40, 40), (41, 40, 40), 10**6, (48, 40, 40)),  # up to a multiple of 8
        ((64, 64, 64), (16, 64, 64), 10**6, (16, 64, 64)),
    ],
)
def test_a_patch_ends_where_the_volume_does(median, most, voxels, expected):
    assert planning.grown(median, most, voxels) == expected


@pytest.mark.parametrize(
    "memory, budget", [(2 * MIB, MIB), (4 * MIB - 1, MIB), (4 * MIB, 2 * MIB), (9 * MIB, 4 * MIB)]
)
def test_half_of_the_memory_rounded_down_to_a_power_of_two(memory, budget):
    assert Cases(((8, 8, 8),), (1, 1, 1), memory).budget == budget


def test_volumes_that_fit_stay_whole():
    # 24 x 32 x 32 voxels of 1 KiB are 24 MiB, of 64 / 2.
    cases = Cases(((20, 30, 32), (24, 32, 32)), (1, 1, 1), 64 * MIB)
    edges, reason = planning.whole_or_patch(cases, KIB_A_VOXEL)
    assert edges is None
    assert reason.startswith("patch=none: whole volumes, as a step on the largest training case, ")
    assert "24 x 32 x 32 voxels, takes about 0.0234 GiB (0 GiB for weights and 1 KiB" in reason


def test_the_largest_volume_decides():
    # 40 x 32 x 32 are 40 MiB; the median is 24 x 32 x 32.
    cases = Cases(((24, 32, 32), (24, 32, 32), (40, 32, 32)), (3, 1, 1), 64 * MIB)
    edges, reason = planning.whole_or_patch(cases, KIB_A_VOXEL)
    assert edges == (24, 32, 32)
    assert reason.startswith("patch=24,32,32: 72 x 32 x 32 mm, about the proportions of the median")
    assert "24 x 32 x 32 voxels of 3 x 1 x 1 mm" in reason and "0.0312 GiB, half of the" in reason


def test_weights_and_samples_take_their_part():
    # 32 MiB: 16 for weights, and 8 for each of two samples, 8192 voxels.
    cases = Cases(((16, 32, 64),) * 2, (1, 1, 1), 64 * MIB, 2)
    assert planning.patch(cases, Cost(16 * MIB, 1024.0))[0] == (16, 16, 32)
    assert planning.whole_or_patch(cases, Cost(0, 512.0))[0] is None
    # Whole volumes of a batch have one shape, and no patch is larger than the smallest.
    cases = Cases(((16, 32, 64), (16, 30, 64)), (1, 1, 1), 64 * MIB, 2)
    assert planning.whole_or_patch(cases, Cost(0, 16.0))[0] == (16, 24, 64)


def test_too_little_memory_is_told():
    cases = Cases(((16, 32, 64),), (1, 1, 1), MIB // 2)
    with pytest.raises(errors.FieldError, match=r"^patch=auto: .*too little for a patch of 8 x 8"):
        planning.patch(cases, KIB_A_VOXEL)


@pytest.mark.parametrize(
    "edges, depth", [((8, 64, 64), 2), ((16, 24, 24), 3), ((32, 32, 40), 4), ((128,) * 3, 4)]
)
def test_depth(edges, depth):
    chosen, reason = planning.depth(edges)
    assert chosen == depth and reason.startswith(f"depth={depth}: ")


def test_cases_on_another_grid():
    cases = Cases(((10, 20, 30), (20, 20, 31)), (1, 2, 3), MIB)
    other = cases.on(lambda size: [n // 2 for n in size])
    # Medians of 15 and 7.5, rounded up, voxels along z, and of 30.5 and 15 along x
    assert other.sizes == ((5, 10, 15), (10, 10, 15)) and other.median == (8, 10, 15)
    np.testing.assert_allclose(other.spacing, (15 / 8, 4, 3 * 31 / 15))


def test_the_cost_of_a_network_by_hand():
    """32 x 32 x 32 voxels of 1 + 2 channels and an eighth of them of 2, in float32."""
    image = keras.Input((*memory.SIZE, 1))
    inner = keras.Input((*memory.SIZE, 1))
    x = keras.layers.Conv3D(2, 3, padding="same")(inner)
    network = keras.Model(image, keras.Model(inner, keras.layers.MaxPooling3D(2)(x))(image))
    cost = memory.cost(network)
    # Both inputs: that of the network within is counted, too.
    assert cost.voxel == memory.FACTOR * 4 * (1 + 1 + 2 + 2 / 8)
    assert cost.weights == 16 * (27 * 2 + 2)
    assert cost.of((8, 8, 8), 2) == cost.weights + 1024 * cost.voxel


def test_a_wider_deeper_and_finer_network_costs_more():
    def cost(**changes):
        return memory.cost(unet3d.pyramid((2, 1), 3, input_shape=memory.SIZE, **changes))

    narrow, wide = cost(base_filters=2, depth=3), cost(base_filters=4, depth=3)
    assert 1.7 < wide.voxel / narrow.voxel < 2
    deep = cost(base_filters=2, depth=4)
    assert narrow.voxel < deep.voxel < 1.1 * narrow.voxel and deep.weights > 3 * narrow.weights
    with devices.policy("mixed_bfloat16"):
        assert 0.5 < cost(base_filters=2, depth=3).voxel / narrow.voxel < 0.7


def test_free_memory(tmp_path):
    assert devices.free_memory(tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9 kB\nMemFree: 2 kB\nMemAvailable:  5 kB\n")
    assert devices.free_memory(tmp_path) == 5 * 1024
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    assert devices.free_memory(tmp_path) == 5 * 1024
    (group / "memory.max").write_text("4096\n")
    assert devices.free_memory(tmp_path) == 4096
    assert devices.free_memory() > MIB


def test_networks_of_other_depths():
    keras.utils.set_random_seed(0)
    x = noise(1, 16, 12, 8, 1)
    for depth in (2, 3, 4):
        network = unet3d.unet3d(classes=2, base_filters=1, depth=depth)
        assert network(x).shape == (1, 16, 12, 8, 2)
        names = [layer.name for layer in network.layers if layer.name.startswith("analysis")]
        assert f"analysis_{depth}_1" in names and f"analysis_{depth + 1}_1" not in names


# What a level sees of a volume


def a_case(size=(20, 24, 28), head=(15, 3, 20)):
    """Every voxel of image and context tells where it is; the head is one voxel."""
    where = np.arange(np.prod(size), dtype=np.float32).reshape(*size, 1)
    label = np.zeros((*size, 1), np.uint8)
    label[head] = 1
    places = subvolumes.places(label[..., 0], [1], np.random.default_rng(0))
    spacing = np.ones(3, np.float32)
    return {
        "image": where,
        "context": where.copy(),
        "label": label,
        "places": places,
        "spacing": spacing,
    }


@pytest.mark.parametrize("share, low, high", [(0.0, 0.0, 0.15), (1 / 3, 0.25, 0.5), (1.0, 1, 1)])
@pytest.mark.parametrize("deformed", [False, True])
def test_a_share_of_patches_is_about_the_head(share, low, high, deformed):
    case, size = held(a_case()), (8, 8, 16)

    @tf.function(input_signature=[tf.TensorSpec([2], tf.int64)], autograph=False)
    def patch(seed):
        if deformed:
            return subvolumes.patch(case, seed, size, STILL, share)
        return pipeline.random_patch(case, seed, size, share)

    seen = [patch(seed) for seed in seeds(100)]
    assert all(cut["label"].shape == (*size, 1) and len(cut) == 3 for cut in seen)
    # By chance 5 / 13 * 4 / 17 * 8 / 13 of them do, 6 %.
    assert low <= np.mean([np.any(cut["label"]) for cut in seen]) <= high
    if share == 1:
        (at,) = {tuple(np.argwhere(np.array(cut["label"]))[0][:3]) for cut in seen}
        assert at == (4, 3, 8)  # in the middle, but for the edge at y = 0
    assert len({float(cut["image"][0, 0, 0, 0]) for cut in seen}) > 50 or share == 1


@pytest.mark.parametrize("deformed", [False, True])
def test_an_edge_beyond_the_volume_is_all_of_an_axis(deformed):
    case, size = held(a_case()), (32, 8, 64)
    cut = (
        subvolumes.patch(case, (1, 2), size, STILL, 0.5)
        if deformed
        else pipeline.random_patch(case, (1, 2), size, 0.5)
    )
    assert cut["image"].shape == cut["label"].shape == (20, 8, 28, 1)
    np.testing.assert_array_equal(np.diff(np.array(cut["image"])[:, 0, 0, 0]), 24 * 28)


def test_a_mirrored_patch_of_all_of_an_axis_shows_all_of_it():
    case, axes = held(a_case()), set()
    for number in range(8):
        cut = subvolumes.patch(
            case, (1, number), (32, 8, 64), Augmentation(flips=True, rotation=1e-6)
        )
        image = np.array(cut["image"])[..., 0]
        z, _, x = np.unravel_index(np.round(image[:, 0, :]).astype(int), (20, 24, 28))
        assert set(z.ravel()) == set(range(20)) and set(x.ravel()) == set(range(28))
        axes.add((z[0, 0] > 0, x[0, 0] > 0))
    assert len(axes) > 2


def cascade(**fields):
    return Cascade(FetalHead(**{"base_filters": 2, "level": 2, "scale": 1.0, **fields}))


def a_stage(folder, level, **fields):
    """A stage whose cases are of `a_case`, and which was told their sizes."""
    session = test_order.head_session(folder)
    files = {"context": ""} if level == 1 else {}
    for name, tensor in a_case().items():
        if name not in files:
            pipeline.store(folder / "case_9" / name, tensor)
            files[name] = str(folder / "case_9" / name)
    session = session.with_files([files], [])
    (folder / "level_1").mkdir(exist_ok=True)
    stage = LevelStage(level, cascade(**fields), session)
    stage.begin(session)
    return stage


@pytest.mark.parametrize("rotation", [0.0, 20.0])
def test_level_2_sees_the_map_of_level_1_at_the_place_of_the_patch(tmp_path, rotation):
    stage = a_stage(tmp_path, 2, patch="8,8,16")
    stage._deforms_patches = rotation > 0
    stage._augmentation = Augmentation(rotation=rotation)
    assert stage.columns == ("image", "label", "context", "spacing", "places")
    case = a_case()
    moved = {**case, "context": np.roll(case["context"], 3, axis=1)}
    for number in range(5):
        seen, other = (stage.read(held(c), tf.constant([1, number])) for c in (case, moved))
        np.testing.assert_allclose(seen["context"], seen["image"], atol=0.01)
        assert seen["image"].shape == (8, 8, 16, 1) and "places" not in seen
        np.testing.assert_array_equal(other["image"], seen["image"])
        assert np.abs(other["context"] - seen["context"]).max() > 28


def test_whole_volumes_need_no_places(tmp_path):
    stage = a_stage(tmp_path, 1)
    assert "places" not in stage.columns
    assert stage.read(held(a_case()), tf.constant([1, 2]))["image"].shape == (20, 24, 28, 1)


def test_the_answer_of_level_2_follows_the_map():
    one = cascade(patch="8,16,16")
    network = randomize(one.network())
    image, context = grey(1, 16, 24, 20, 1), grey(1, 16, 24, 20, 1, seed=1)
    answer = np.array(one.probability(network, image, context))
    moved = np.array(one.probability(network, image, np.roll(context, 8, axis=2)))
    assert np.abs(answer - moved).max() > 1e-3
    # In tiles of the patch, which share half of its edges
    by_hand = tiling.tiled(
        lambda x: ops.softmax(network(x)["logits"])[..., 1:],
        image + context,
        (8, 16, 16),
        (0, 8, 8),
    )
    np.testing.assert_allclose(answer, by_hand, atol=1e-6)
    whole = np.array(cascade().probability(network, image, context))
    assert np.abs(answer - whole).max() > 1e-3


def test_tiles_of_other_edges_along_each_axis():
    x, seen = noise(1, 20, 40, 9, 1), []

    def function(x):
        if not tf.is_symbolic_tensor(x):
            seen.append(x.shape[1:4])
        return 2 * x

    np.testing.assert_allclose(tiling.tiled(function, x, (24, 24, 8), (8, 8, 0)), 2 * x, atol=1e-6)
    # All 20 along z, two of 24 along y, two of 8 along x
    assert seen == [(20, 24, 8)] * 4


# Trainings

TINY = {
    "fetal_head": ("--scale=1", "--phantom_size=24,16,28", "--level=2", "--learning_rate=0.01"),
    "multi_organ": (
        *("--downsampling=2,1", "--tile_size=16", "--phantom_size=24,28,40"),
        *("--phantom_spacing=6", "--batch_size=1"),
    ),
}
COMMON = (
    *("--base_filters=2", "--steps=2", "--samples_per_epoch=2", "--precision=float32"),
    *("--phantom_cases=3,1", "--learning_rate_decay=constant"),
)


def train(system, folder, *flags):
    running.train(system, f"--work_dir={folder}", *COMMON, *TINY[system], *flags)
    return folder


@pytest.fixture(scope="module")
def plain_networks():
    """What is tested from here on is around the networks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segmentation, "usegnet", plain_usegnet)
        patch.setattr(unet3d, "unet3d", plain_unet3d)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory, plain_networks):
    """A run of the fetal head in patches."""
    return train("fetal_head", tmp_path_factory.mktemp("runs") / "run", "--patch=8,16,16")


def test_patches_change_what_is_learnt(run, tmp_path):
    with running.unexported():
        whole = train("fetal_head", tmp_path / "whole")
    for level in ("level_1", "level_2"):
        one, other = (stages.load(f / level / "model.keras") for f in (run, whole))
        assert any(np.any(a != b) for a, b in zip(one.get_weights(), other.get_weights()))
    assert training.chunk(cascade(patch="8,16,16")) == (32, 32, 32) != training.chunk(cascade())
    assert json.loads((run / "config.json").read_text())["flags"]["patch"] == "8,16,16"
    with pytest.raises(SystemExit):
        train("fetal_head", run, "--patch=8,16,8")


def test_the_export_segments_in_the_same_tiles(run, tmp_path):
    image = np.random.default_rng(1).integers(0, 255, (2, 19, 24, 37)).astype(np.uint8)
    version = run / "saved_model" / "1"
    running.check_export(version, image, tmp_path)
    batch = image[:1, ..., None].astype(np.float32)
    expected = prediction.load(run).predictor(batch, None, Wanted(probabilities=True))
    answer = running.served(version, batch)
    np.testing.assert_allclose(answer["probability"], expected["probability"], atol=1e-5)
    # Levels by hand: tiles of 8 x 16 x 16, the second level with all of the first one's map.
    networks = [stages.load(run / f"level_{level}" / "model.keras") for level in (1, 2)]
    one = cascade(patch="8,16,16")
    x = one.preprocess(batch)
    levels = [np.zeros_like(batch)]
    for network in networks:
        levels.append(
            tiling.tiled(
                lambda x, network=network: ops.softmax(network(x)["logits"])[..., 1:],
                x + levels[-1],
                (8, 16, 16),
                (0, 8, 8),
            )
        )
    np.testing.assert_allclose(answer["probability"], levels[-1], atol=1e-5)


@pytest.fixture
def small(monkeypatch, plain_networks):
    """Every voxel costs 1 KiB, and of 8 MiB half may be taken: 4096 voxels."""
    monkeypatch.setattr(memory, "cost", lambda network, rematerialize: KIB_A_VOXEL)
    monkeypatch.setattr(devices, "free_memory", lambda: 8 * MIB)


PLANNED = {
    # 24 x 16 x 28: 16 of 24 would be 24 voxels next, which are 6144.
    "fetal_head": {"patch": "16,16,16"},
    # 24 x 28 x 40 voxels of level 2
    "multi_organ": {"patch": "16,16,16", "depth": 3},
}


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("system", TINY)
def test_a_training_is_planned_once(system, tmp_path, capsys, monkeypatch):
    folder = train(system, tmp_path / "run", "--patch=auto")
    told = capsys.readouterr().out
    facts = runs.load(folder).facts
    assert facts["plan"]["flags"] == PLANNED[system]
    assert facts["flags"].items() >= PLANNED[system].items()
    assert len(facts["plan"]["reasons"]) == 2
    assert all(f"\n{reason}\n" in told for reason in facts["plan"]["reasons"])
    assert "patch=16,16,16: " in told and "depth" in told
    card = export.read_card(folder / "saved_model" / "1")
    assert card["plan"] == facts["plan"] and card["config"]["patch"] == "16,16,16"
    assert card["config"].items() >= PLANNED[system].items()
    # It goes on as it was planned, whatever the memory is now; told so or not.
    monkeypatch.setattr(devices, "free_memory", lambda: 1024 * MIB)
    monkeypatch.setattr(evaluation, "evaluate", lambda *_, **__: None)
    monkeypatch.setattr(opening, "export_run", lambda *_, **__: None)
    monkeypatch.setattr(opening.page, "write", lambda *_: None)
    for patch in ("auto", "16,16,16"):
        train(system, folder, f"--patch={patch}")
        assert "patch=16,16,16: " in capsys.readouterr().out
        assert runs.load(folder).facts["plan"] == facts["plan"]
    with pytest.raises(SystemExit):
        train(system, folder, "--patch=none")
    assert "made with --patch '16,16,16' (now 'none')" in capsys.readouterr().err


@pytest.mark.usefixtures("small")
def test_the_depth_of_a_model_that_a_training_starts_from_is_kept(tmp_path, capsys):
    """3 would be planned, see above, and layers of 2 resolutions not fit."""
    with running.unfinished():
        first = train("multi_organ", tmp_path / "first", "--depth=2")
        given = ("--patch=auto", f"--initial_weights={first}")
        capsys.readouterr()
        folder = train("multi_organ", tmp_path / "run", *given)
        facts = runs.load(folder).facts
        assert facts["plan"]["flags"] == {"patch": "16,16,16", "depth": 2}
        assert facts["flags"]["depth"] == 2
        reason = f"depth=2: that of {first}, whose weights the training starts from."
        assert facts["plan"]["reasons"][1:] == [reason] and reason in capsys.readouterr().out
        train("multi_organ", folder, *given)  # goes on
        asked = train("multi_organ", tmp_path / "asked", *given, "--depth=3")
    assert runs.load(asked).flags["depth"] == 3


@pytest.mark.usefixtures("small")
def test_a_plan_is_of_the_grid_of_millimetres(tmp_path, capsys):
    """Phantoms of 24 x 16 x 28 voxels of 6 mm become half as large."""
    with running.unexported():
        train("fetal_head", tmp_path / "run", "--patch=auto", "--spacing=12,12,12")
    facts = runs.load(tmp_path / "run").facts
    assert facts["plan"]["flags"] == {"patch": "none"} and facts["flags"]["patch"] == "none"
    assert "patch=none: whole volumes, as a step on the largest" in capsys.readouterr().out


@pytest.mark.usefixtures("plain_networks")
def test_a_run_of_whole_volumes_is_not_planned_afterwards(tmp_path, capsys):
    with running.unexported():
        folder = train("fetal_head", tmp_path / "run", "--level=1")
        assert "plan" not in runs.load(folder).facts
        with pytest.raises(SystemExit):
            train("fetal_head", folder, "--level=1", "--patch=auto")
    assert "made with --patch 'none' (now 'auto')" in capsys.readouterr().err


def test_what_cannot_be_planned(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(devices, "free_memory", lambda: None)
    with pytest.raises(SystemExit):
        train("fetal_head", tmp_path / "run", "--patch=auto")
    assert "--patch=auto: how much memory is free cannot be told" in capsys.readouterr().err


def test_runs_from_before_had_whole_volumes_and_four_resolutions():
    flags = {name: getattr(FetalHead(), name) for name in vars(FetalHead()) if name != "patch"}
    before = runs.Run(None, {"flags": flags}).configured(FetalHead)
    assert before.edges is None and before.view == "volume"
    flags = {n: v for n, v in vars(MultiOrgan()).items() if n not in ("patch", "depth")}
    before = runs.Run(None, {"flags": flags}).configured(MultiOrgan)
    assert before.edges == (64, 64, 64) and before.depth == 4
    for kind in (FetalHeadSystem, MultiOrganSystem):
        assert kind.declaration.presets["paper"]["patch"] == "none"
