"""The sliding-window peer of the embryo cascade: its windows, its training, and its command."""

import json
import re
import shutil

import keras
import numpy as np
import pytest
import running
import tensorflow as tf

from tf_autoctx import errors
from tf_autoctx.data import pipeline
from tf_autoctx.models.localiser import folded, localiser
from tf_autoctx.report import tables
from tf_autoctx.systems.embryo import sliding_windows, sliding_windows_training
from tf_autoctx.systems.embryo.configuration import Embryo, SlidingWindows
from tf_autoctx.systems.embryo.segmentation import Refinement
from tf_autoctx.systems.embryo.sliding_windows_training import (
    BodyStage,
    LocaliserStage,
    VentricleStage,
)
from tf_autoctx.systems.embryo.system import EmbryoSystem
from tf_autoctx.systems.shared import stages
from tf_autoctx.systems.shared.session import Session
from tf_autoctx.training import devices, runs
from tf_autoctx.training.configuration import Settings

PEER = SlidingWindows(
    window=16,
    stride=3,
    base_filters=2,
    depth=1,
    kernel=3,
    normalization="instance",
    initializer="he",
)
TINY = [
    "--low_size=8",
    "--body_box=16",
    "--ventricle_box=8",
    "--base_filters=4",
    "--depth=1",
    "--kernel=3",
    "--steps=3",
    "--samples_per_epoch=3",
    "--precision=float32",
    "--phantom_size=24,28,24",
    "--phantom_spacing=0.4",
    "--phantom_cases=2,1",
]


def stage(kind):
    """A stage of the peer whose volumes do not move."""
    settings = Settings(
        steps=1, samples_per_epoch=1, learning_rate=1e-2, learning_rate_decay="constant"
    )
    still = {"rotation": 0.0, "shift": 0, "flips": False}
    strategy = devices.strategy("single")
    return kind(PEER, Session(runs.Run("run", {}), still, strategy, settings, [], []))


def box(size, low, high):
    """Bool volume, true from low to high (exclusive)."""
    mask = np.zeros(size, bool)
    mask[tuple(slice(*ends) for ends in zip(low, high))] = True
    return mask


# Windows


def test_corners_by_hand():
    assert sliding_windows.corners((16, 19, 24), 16, 3).tolist() == [
        [0, 0, 0], [0, 0, 3], [0, 0, 6], [0, 3, 0], [0, 3, 3], [0, 3, 6]
    ]  # fmt: skip
    assert sliding_windows.corners((10, 16, 18), 16, 3).tolist() == [[0, 0, 0]]
    # (210 - 64) // 3 + 1 = 49, (281 - 64) // 3 + 1 = 73, (282 - 64) // 3 + 1 = 73: "hundreds of
    # thousands"
    assert len(sliding_windows.corners((210, 281, 282), 64, 3)) == 49 * 73 * 73


@pytest.mark.parametrize(
    "low, high", [((2, 5, 0), (6, 9, 4)), ((0, 1, 3), (8, 3, 10)), ((1, 0, 2), (2, 12, 3))]
)
def test_a_window_holds_a_mask_exactly_when_all_its_voxels_are_inside(low, high):
    size, window = (9, 12, 10), 8
    mask = box(size, low, high)
    mask[low] = mask[tuple(n - 1 for n in high)] = True
    every = sliding_windows.corners(size, window, 1)
    brute = np.array(
        [
            mask[z : z + window, y : y + window, x : x + window].sum() == mask.sum()
            for z, y, x in every
        ]
    )
    np.testing.assert_array_equal(sliding_windows.inside(tf.constant(mask), window, every), brute)
    first, last = (corner.numpy() for corner in sliding_windows.holding(tf.constant(mask), window))
    if brute.any():
        within = ((first <= every) & (every <= last)).all(axis=1)
        np.testing.assert_array_equal(within, brute)
    else:  # 12 voxels along y: only windows that see nothing but it there
        assert (first[1], last[1]) == (0, 4)


def test_no_window_holds_what_is_not_there():
    mask = tf.zeros((9, 12, 10), tf.bool)
    every = sliding_windows.corners(mask.shape, 8, 1)
    assert not sliding_windows.inside(mask, 8, every).numpy().any()
    low, high = sliding_windows.holding(mask, 8)
    assert low.numpy().tolist() == [0, 0, 0] and high.numpy().tolist() == [1, 4, 2]


def test_small_volumes_are_padded_with_zeros_at_the_high_end():
    volume = np.ones((6, 8, 9, 1), np.float32)
    padded = sliding_windows.padded(tf.constant(volume), 8).numpy()
    assert padded.shape == (8, 8, 9, 1) and padded.sum() == volume.sum() and (padded[:6] == 1).all()


def centre(windows, training):
    """A localiser made by hand: how bright the 4^3 voxels in the middle of a window are."""
    return tf.reduce_mean(windows[:, 6:10, 6:10, 6:10], axis=(1, 2, 3))


@pytest.mark.parametrize("window_batch", [1, 7, 1000])
def test_localise_finds_a_planted_object(window_batch):
    image = box((24, 28, 24), (9, 12, 6), (13, 16, 10)).astype(np.float32)[..., None]
    localised = sliding_windows.Search(centre, 16, 3, window_batch)(tf.constant(image))
    assert localised.corner.tolist() == [3, 6, 0]
    assert localised.evaluated == localised.total == 3 * 5 * 3 and localised.seconds > 0


def test_a_fraction_of_the_windows_is_evaluated_and_extrapolated():
    seen = []

    def network(windows, training):
        tf.py_function(lambda n: seen.append(int(n)), [tf.shape(windows)[0]], [])
        return centre(windows, training)

    search = sliding_windows.Search(network, 16, 1, 8)
    localised = search(tf.zeros((24, 24, 24, 1)), fraction=0.05)
    assert (localised.evaluated, localised.total) == (36, 9**3) and seen == [8, 8, 8, 8, 4]
    assert search(tf.zeros((24, 24, 24, 1)), fraction=1e-9).evaluated == 1
    # 10 s, 4 of them for 36 windows: 6 + 4 * 729 / 36
    assert localised._replace(seconds=4.0).extrapolated(10.0) == pytest.approx(87.0)


# Training


def sample(ventricle):
    """A case whose image tells how many ventricle voxels a window holds."""
    label = np.where(ventricle, 2, 1).astype(np.uint8)[..., None]
    return {
        "image": (label == 2).astype(np.float32),
        "label": label,
        "spacing": np.full(3, 0.1, np.float32),
    }


@pytest.mark.parametrize("size", [(24, 28, 30), (12, 28, 24)])
def test_half_of_the_localisers_windows_hold_the_ventricle(size):
    ventricle = box(size, (4, 12, 9), (10, 18, 15))
    augment = tf.function(stage(LocaliserStage).augment)
    drawn = [augment(sample(ventricle), tf.constant((0, seed))) for seed in range(10)]
    windows, targets = (np.stack([seen[name] for seen in drawn]) for name in ("windows", "target"))
    assert windows.shape == (10, 8, 16, 16, 16, 1)
    np.testing.assert_array_equal(targets, windows.sum(axis=(2, 3, 4, 5)) == ventricle.sum())
    assert targets[:, :4].all() and 0 < targets[:, 4:].mean() < 1
    assert len({window.tobytes() for window in windows.reshape(-1, 16**3)}) > 20


def test_crops_of_the_vnets():
    ventricle = box((24, 28, 30), (4, 17, 3), (10, 26, 9))
    for kind, least in ((VentricleStage, ventricle.sum()), (BodyStage, 0)):
        augment = tf.function(stage(kind).augment)
        drawn = [augment(sample(ventricle), tf.constant((0, seed))) for seed in range(20)]
        held = [int(seen["image"].numpy().sum()) for seen in drawn]
        assert min(held) >= least and drawn[0]["label"].shape == (16, 16, 16, 1)
        for seen in drawn:
            np.testing.assert_array_equal(seen["image"], seen["label"] == 2)
    assert len(set(held)) > 3 and min(held) < ventricle.sum()  # the body's are anywhere


@pytest.mark.parametrize("kind", sliding_windows_training.KINDS)
def test_the_loss_falls_on_a_fixed_batch(kind):
    keras.utils.set_random_seed(1)
    ventricle = box((24, 28, 24), (4, 17, 3), (10, 26, 9))
    of_stage = stage(kind)
    seen = of_stage.augment(sample(ventricle), (0, 1))
    batch = {key: tensor[None] for key, tensor in seen.items()}
    if kind is LocaliserStage:
        batch["target"] = tf.constant([[1.0, 1, 1, 1, 0, 0, 0, 0]])
    networks = of_stage.build()
    settings = Settings(
        steps=30, samples_per_epoch=1, learning_rate=1e-2, learning_rate_decay="constant"
    )
    _, step = of_stage.updates(networks, settings)
    assert of_stage.losses(networks, batch).shape == (1,)
    step = tf.function(step, autograph=False)
    losses = [float(step(batch)["loss"]) for _ in range(30)]
    assert losses[-1] < losses[0] - 0.1, losses


def test_cross_entropy_of_the_localiser_by_hand():
    def network(windows, training):
        return tf.constant([[0.0], [np.log(3)]])

    batch = {"windows": tf.zeros((1, 2, 16, 16, 16, 1)), "target": tf.constant([[1.0, 0.0]])}
    (loss,) = stage(LocaliserStage).losses({"network": network}, batch).numpy()
    assert loss == pytest.approx((-np.log(0.5) - np.log(0.25)) / 2)


def brighter(level):
    """A VNet made by hand: what is brighter than a level."""

    def network(x, training):
        return 20.0 * (x - level)

    return network


def test_validation_of_the_vnets():
    """The ventricle's sees one window in whose middle the ventricle is, the body's all windows."""
    ventricle = box((24, 28, 30), (4, 17, 3), (10, 26, 9))
    seen = sample(ventricle)
    seen["image"] = seen["image"] + box(ventricle.shape, (20, 0, 25), (24, 4, 29))[..., None]
    seen = {name: tf.constant(tensor) for name, tensor in seen.items()}

    def score(kind):
        of_stage = stage(kind)
        return of_stage.score(of_stage.graph({"network": brighter(0.5)}), seen)

    assert score(VentricleStage) == 1.0
    # What is bright is no body but 64 voxels of it.
    body, bright = ventricle.size - ventricle.sum(), ventricle.sum() + 64
    assert score(BodyStage) == pytest.approx(2 * 64 / (body + bright))


def test_the_localiser_is_not_validated_and_keeps_its_last_weights():
    session = Session(
        runs.Run("run", {}),
        {},
        devices.strategy("single"),
        Settings(
            steps=1,
            samples_per_epoch=1,
            learning_rate=1e-2,
            learning_rate_decay="constant",
            patience=3,
        ),
        [{"label": "a"}],
        [{"label": "b"}],
    )
    own = LocaliserStage.own_session(session)
    assert own.training == session.training and own.settings.patience == 0
    assert stage(LocaliserStage).graph({}) is None
    assert VentricleStage.own_session(session) is session


def test_folded_returns_the_same_without_batch_norm():
    keras.utils.set_random_seed(0)
    network = localiser(16)
    rng = np.random.default_rng(0)
    network.set_weights([w + rng.uniform(0.05, 0.2, w.shape) for w in network.get_weights()])
    plain = folded(network)
    assert not any(isinstance(layer, keras.layers.BatchNormalization) for layer in plain.layers)
    windows = rng.normal(size=(3, 16, 16, 16, 1)).astype(np.float32)
    expected = network(windows, training=False).numpy()
    assert expected.shape == (3, 1) and np.ptp(expected) > 0
    np.testing.assert_allclose(plain(windows, training=False), expected, rtol=1e-4)


def test_a_ventricle_larger_than_the_window_is_named(tmp_path, caplog):
    files = []
    for case, last in (("small", 20), ("large", 21)):
        folder = tmp_path / case
        label = sample(box((24, 28, 24), (4, 4, 4), (9, last, 9)))["label"]
        pipeline.store(folder / "label", label)
        files.append({"label": str(folder / "label"), "spacing": str(folder / "spacing")})
    sliding_windows_training.warn_of_large(16, files)
    assert [record.getMessage() for record in caplog.records] == [
        "large: the ventricle is [5, 17, 5] voxels; no window of 16 holds it."
    ]


@pytest.mark.parametrize(
    "fields, told", [({"window": 24}, "window=24"), ({"stride": 0}, "stride=0")]
)
def test_bad_fields_are_named(fields, told):
    with pytest.raises(ValueError, match=told):
        SlidingWindows(**{**vars(PEER), **fields})


# Inference


def test_segmentation_by_hand_made_networks(monkeypatch):
    """A volume flatter than the window, scaled to RMS 1; what was brighter than 10 is body, than 40
    ventricle."""
    monkeypatch.setattr(sliding_windows, "folded", lambda network: network)
    ventricle, body = (
        box((12, 28, 24), (6, 12, 6), (10, 16, 10)),
        box((12, 28, 24), (4, 4, 4), (12, 27, 20)),
    )
    stray = box((12, 28, 24), (0, 27, 22), (1, 28, 24))
    raw = (20.0 * body + 30.0 * ventricle + 50.0 * stray).astype(np.float32)
    rms = float(np.sqrt(np.mean(raw**2)))
    networks = {"localiser": centre, "body": brighter(10 / rms), "ventricle": brighter(40 / rms)}
    refinement = Refinement(Embryo(), {3: "body", 7: "ventricle"})
    segmentation = sliding_windows.WindowedSegmentation(refinement, PEER, networks, 8)
    classes, localised = segmentation(raw)
    # The padded axis has one window; what is as bright outside the best window is no ventricle.
    assert localised.corner.tolist() == [0, 6, 0] and localised.total == 1 * 5 * 3
    expected = np.where(ventricle, 2, (body | stray).astype(np.uint8))
    np.testing.assert_array_equal(classes, expected)
    assert classes.dtype == tf.uint8
    methods = segmentation.methods(raw, None)
    np.testing.assert_array_equal(
        methods["sliding windows"]["label"], np.array([0, 3, 7], np.uint8)[expected]
    )


# The command


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose first stage is trained, and whose second looks finished."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    with running.unexported():
        running.train("embryo", f"--work_dir={folder}", *TINY, "--stage=initial")
    refinement = EmbryoSystem.of_run(runs.load(folder)).refinement
    (folder / "refine").mkdir()
    refinement.network("refine").save(folder / "refine" / "model.keras")
    return folder


def train(*arguments):
    running.call("sliding_windows", *arguments)


def test_the_peer_is_trained_and_scored_on_the_runs_cases(run, tmp_path, monkeypatch):
    arguments = (f"--run={run}", f"--output={tmp_path}", "--window=16")
    train(*arguments)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["system"] == "sliding_windows"
    assert config["labels"] == {"1": "body", "2": "ventricle"}
    theirs = json.loads((run / "config.json").read_text())
    # Two stages of three steps, half of four filters.
    expected = {
        "window": 16,
        "stride": 3,
        "base_filters": 2,
        "steps": 6,
        "learning_rate": 0.01,
        "shift": 6,
    }
    assert {name: config["flags"][name] for name in expected} == expected
    assert config["data_fingerprint"] == theirs["data_fingerprint"]
    rows = tables.read(tmp_path / "evaluation")
    assert [(row["method"], row["case"], row["structure"]) for row in rows] == [
        ("sliding windows", "embryo_002", structure) for structure in ("body", "ventricle")
    ]

    # Again: what is finished is scored, not trained.
    monkeypatch.setattr(stages, "train", None)
    shutil.rmtree(tmp_path / "evaluation")
    train(*arguments)
    assert tables.read(tmp_path / "evaluation") == rows


def test_other_settings_need_another_folder(run, tmp_path, capsys, monkeypatch):
    def stop(*_):
        checkpoint = tmp_path / "localiser" / "last" / "step-1.index"
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.touch()
        raise errors.UserError("stopped in training")

    monkeypatch.setattr(sliding_windows_training, "train", stop)
    for steps, told in (
        (3, "stopped in training"),
        (4, "stopped in training"),  # more steps go on
        (2, "--steps 4 (now 2)"),
    ):
        with pytest.raises(SystemExit):
            train(f"--run={run}", f"--output={tmp_path}", "--window=16", f"--steps={steps}")
        assert told in capsys.readouterr().err


def edited(run, change):
    config = json.loads((run / "config.json").read_text())
    change(config)
    (run / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    "spoil, told",
    [
        (
            lambda run: edited(run, lambda c: c.update(system="fetal_head")),
            r"a run of 'fetal_head'; expected one of 'embr",
        ),
        (
            lambda run: edited(run, lambda c: c["flags"].pop("kernel")),
            r"config\.json: 'kernel' is missing or wrong",
        ),
        (
            lambda run: edited(run, lambda c: c.update(data_fingerprint="0")),
            "phantoms: other data than those of ",
        ),
        (lambda run: shutil.rmtree(run / "phantoms"), "phantoms: no such file or folder"),
        (
            lambda run: [shutil.rmtree(run / stage) for stage in ("initial", "refine")],
            "no stage is finished",
        ),
        (lambda run: (run / "config.json").unlink(), "no config.json"),
    ],
)
def test_bad_runs_are_one_sentence(run, tmp_path, capsys, spoil, told):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    spoil(copy)
    with pytest.raises(SystemExit) as ended:
        train(f"--run={copy}", f"--output={tmp_path / 'peer'}", "--window=16")
    assert ended.value.code == 1 and re.search(told, capsys.readouterr().err)
    assert not (tmp_path / "peer").exists()


def test_a_window_that_cannot_be_halved_is_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        train("--run=a", "--output=b", "--window=40")
    told = capsys.readouterr().err
    assert ended.value.code == 1 and "--window=40" in told and "a multiple of 16" in told
