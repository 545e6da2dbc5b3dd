"""Voxels that a data set says to ignore: no stage of any system learns from them, no score counts
them. Networks are made-up functions that differ there alone."""

import dataclasses
import json

import numpy as np
import pytest
import SimpleITK as sitk
import tensorflow as tf
from held import held

from tf_autoctx.data import datasets, labels, pipeline
from tf_autoctx.data.augment import random_erasing
from tf_autoctx.data.configuration import Augmentation
from tf_autoctx.systems.embryo import sliding_windows_training
from tf_autoctx.systems.embryo import training as embryo_training
from tf_autoctx.systems.embryo.configuration import Embryo, SlidingWindows
from tf_autoctx.systems.embryo.system import EmbryoSystem
from tf_autoctx.systems.fetal_head.configuration import FetalHead
from tf_autoctx.systems.fetal_head.system import FetalHeadSystem
from tf_autoctx.systems.fetal_head.training import LevelStage
from tf_autoctx.systems.multi_organ.configuration import MultiOrgan
from tf_autoctx.systems.multi_organ.system import MultiOrganSystem
from tf_autoctx.systems.multi_organ.training import PyramidStage
from tf_autoctx.systems.renderer import terms
from tf_autoctx.systems.renderer.configuration import Objective, Renderer
from tf_autoctx.systems.renderer.system import RendererSystem
from tf_autoctx.systems.renderer.training import SelfPlayStage
from tf_autoctx.systems.shared import evaluation
from tf_autoctx.systems.shared.session import Session
from tf_autoctx.training import runs
from tf_autoctx.training.configuration import Settings

IGNORED = labels.IGNORED
SETTINGS = Settings(
    steps=1, samples_per_epoch=1, learning_rate=1e-2, learning_rate_decay="constant", batch_size=1
)
PARTS = (
    Augmentation(),
    Objective(dice_weight=10.0, update_order="shared"),
)
VALUES = {name: value for part in PARTS for name, value in dataclasses.asdict(part).items()}


def label_of(*values, size=(8, 8, 8)):
    """(1, *size, 1): slabs of the values, then a corner to be ignored in all of them."""
    label = np.zeros((1, *size, 1), np.uint8)
    for number, value in enumerate(values, start=1):
        label[:, :, 2 * number : 2 * number + 2] = value
    return np.where(corner(label.shape), IGNORED, label).astype(np.uint8)


def corner(shape):
    out = np.zeros(shape, bool)
    out[:, :4] = True
    return out


def session(folder, system, label, ignored):
    image = np.random.default_rng(0).normal(0, 100, label.shape).astype(np.float32)
    tensors = {**system.prepare(None, image, label), "spacing": np.ones(label.ndim - 2, np.float32)}
    entry = {}
    for name, tensor in tensors.items():
        pipeline.store(folder / "a" / name, tensor)
        entry[name] = str(folder / "a" / name)
    entry["context"] = ""
    run = runs.Run(folder, {})
    strategy = tf.distribute.get_strategy()
    return Session(run, VALUES, strategy, SETTINGS, [entry] * 2, [], ignored), tensors


def drawn(shape, seed):
    """What a network says: the same for every seed, but for the corner."""
    values, others = (np.random.default_rng(k).normal(0, 3, shape) for k in (0, seed))
    return np.where(corner(shape), others, values).astype(np.float32)


def fetal_head(folder, ignored):
    system = FetalHeadSystem(FetalHead(variant="USegNet", scale=1.0), {1: "head"})
    opened, tensors = session(folder, system, label_of(1), ignored)
    stage = LevelStage(1, system.cascade, opened)
    batch = dict.fromkeys(("image", "context"), tensors["image"][None])
    batch["label"] = tensors["label"][None]
    sample = {**tensors, "context": tensors["image"]}

    def loss(seed):
        logits = drawn((1, 8, 8, 8, 2), seed)
        return stage.losses({"network": lambda x, training: {"logits": logits}}, batch)

    def score(seed):
        return stage.score(lambda image, context: tf.constant(drawn((1, 8, 8, 8, 1), seed)), sample)

    return loss, score


def multi_organ(folder, ignored):
    configuration = MultiOrgan("end_to_end", 1, downsampling=(1,), patch_size=8, tile_size=16)
    system = MultiOrganSystem(configuration, {2: "liver", 5: "pancreas"})
    opened, tensors = session(folder, system, label_of(2, 5), ignored)
    assert np.unique(tensors["label"]).tolist() == [0, 1, 2, IGNORED]  # classes, as of the network
    stage = PyramidStage(1, None, system.pyramid, opened)
    batch = {"image_1": tensors["image_1"][None], "label_1": tensors["label"][None]}
    sample = {**tensors, "label": tf.constant(tensors["label"])}

    def loss(seed):
        logits = drawn((1, 8, 8, 8, 3), seed)
        return stage.losses({"network": lambda x, training: {"level_1": logits}}, batch)

    def score(seed):
        classes = np.argmax(drawn((1, 8, 8, 8, 3), seed)[0], axis=-1).astype(np.uint8)
        return stage.score(lambda images, size: tf.constant(classes), sample)

    return loss, score


def embryo(kind):
    def of_stage(folder, ignored):
        system = EmbryoSystem(Embryo(low_size=8, body_box=8, ventricle_box=8), {5: "b", 2: "v"})
        opened, tensors = session(folder, system, label_of(5, 2), ignored)
        assert np.unique(tensors["label"]).tolist() == [0, 1, 2, IGNORED]
        system.check_cases(opened.training, [])
        stage = object.__new__(kind)  # without the network of the stage before
        vars(stage).update(_refinement=system.refinement, _ignored=opened.ignored)
        stage._dice = embryo_training.losses.SquaredDiceLoss()
        batch = {"image": tensors["image"][None], "label": tf.constant(tensors["label"][None])}
        sample = {**tensors, "label": tf.constant(tensors["label"])}

        def loss(seed):
            p = tf.sigmoid(drawn((1, 8, 8, 8, 3), seed))
            out = {"initial": p, "body": p[..., :1], "ventricle": p[..., 1:2]}
            return stage.losses({"network": lambda x, training: out}, batch)

        def score(seed):
            classes = np.clip(np.rint(drawn((1, 8, 8, 8, 1), seed)), 0, 2).astype(np.uint8)
            return stage.score(lambda image: (None, tf.constant(classes)), sample)

        return loss, score

    return of_stage


def peer(folder, ignored):
    system = EmbryoSystem(Embryo(low_size=8, body_box=8, ventricle_box=8), {5: "b", 2: "v"})
    opened, tensors = session(folder, system, label_of(5, 2), ignored)
    options = SlidingWindows(
        window=16, base_filters=2, depth=1, kernel=3, normalization="instance", initializer="he"
    )
    stage = sliding_windows_training.BodyStage(options, opened)
    batch = {"image": tensors["image"][None], "label": tf.constant(tensors["label"][None])}
    sample = {**tensors, "label": tf.constant(tensors["label"])}

    def loss(seed):
        return stage.losses({"network": lambda x, training: drawn((1, 8, 8, 8, 1), seed)}, batch)

    def score(seed):
        whole = np.zeros((16, 16, 16, 1), np.float32)  # of the window, which is larger
        whole[:8, :8, :8] = drawn((1, 8, 8, 8, 1), seed)[0]
        label = np.zeros((16, 16, 16, 1), np.uint8)
        label[:8, :8, :8] = tensors["label"]
        return stage.score(lambda *_: (tf.constant(whole), tf.constant(label)), sample)

    return loss, score


def renderer(folder, ignored):
    system = RendererSystem(Renderer("Orig-S2T", size=8), {1: "head"})
    opened, tensors = session(folder, system, label_of(1, size=(8, 8)), ignored)
    stage = SelfPlayStage(system.rendering, opened)
    batch = {"image": tensors["image2d"][None], "label": tensors["label2d"][None]}

    def loss(seed):
        logits = tf.constant(drawn((1, 8, 8, 2), seed))
        out = dict.fromkeys(("logits", "aux1", "aux2"), logits)
        networks = {"segmentor": lambda x, training: out}
        outputs = terms.Outputs(networks, batch, True, ignored=stage._ignored)
        return outputs.losses("segmentation", stage._objective)

    def score(seed):
        return stage.score(
            lambda image: {"probability": tf.constant(drawn((1, 8, 8, 1), seed))}, tensors
        )

    return loss, score


SYSTEMS = {
    "fetal_head": fetal_head,
    "multi_organ": multi_organ,
    "embryo, initial": embryo(embryo_training.InitialStage),
    "embryo, refine": embryo(embryo_training.RefineStage),
    "sliding windows": peer,
    "renderer": renderer,
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_stage_neither_learns_from_ignored_voxels_nor_is_scored_there(tmp_path, name):
    loss, score = SYSTEMS[name](tmp_path, IGNORED)
    assert 0 < score(1) < 1 and score(1) == score(2)
    np.testing.assert_allclose(loss(1), loss(2), rtol=1e-6)
    careless, _ = SYSTEMS[name](tmp_path, None)  # it is the session that says so
    assert not np.allclose(loss(1), careless(1), rtol=1e-3)


def test_the_renderers_updates_leave_them_out(tmp_path, monkeypatch):
    """The loss that is lowered is the one above."""
    seen = []

    class Outputs(terms.Outputs):
        def __init__(self, *arguments, **options):
            seen.append(options["ignored"])
            super().__init__(*arguments, **options)

    monkeypatch.setattr(terms, "Outputs", Outputs)
    system = RendererSystem(
        Renderer("Orig-S2T", size=16, base_filters=2, initializer="he"), {1: "head"}
    )
    opened, tensors = session(tmp_path, system, label_of(1, size=(16, 16)), IGNORED)
    stage = SelfPlayStage(system.rendering, opened)
    networks = stage.build()
    _, step = stage.updates(networks, SETTINGS)
    loss = step({"image": tensors["image2d"][None], "label": tensors["label2d"][None], "real": {}})
    assert set(seen) == {IGNORED} and np.isfinite(loss["loss"])


def test_what_discriminators_see_as_real_has_no_ignored_pixels(tmp_path):
    system = RendererSystem(Renderer("S2T", size=8), {1: "head"})
    opened, tensors = session(tmp_path, system, label_of(1, size=(8, 8)), IGNORED)
    opened = dataclasses.replace(opened, training=opened.training * 3)
    stage = SelfPlayStage(system.rendering, opened)
    sample = {**tensors, "others": (tensors,) * stage.others}
    seed = tf.constant([0, 0])
    real = stage.augment(stage.read(held(sample), seed), seed)["real"]
    assert np.unique(real["d_struct"]).tolist() == [0, 1]
    assert np.unique(real["d_pair"][..., 1]).tolist() == [0, 1]


def test_shadows_lie_around_the_object_alone():
    label = np.zeros((20, 20, 1), np.uint8)
    label[10:14, 10:14], label[:2] = 1, IGNORED
    sample = {"image": tf.ones((20, 20, 1)), "label": tf.constant(label)}
    plain = {**sample, "label": tf.constant(np.where(label == 1, 1, 0).astype(np.uint8))}
    for number in range(5):
        seed = tf.constant([number, 7])
        expected = random_erasing(plain, seed, 1.0)["image"]
        np.testing.assert_array_equal(random_erasing(sample, seed, 1.0)["image"], expected)


def test_an_evaluation_counts_nothing_there(tmp_path):
    """A prediction of 32 voxels, of which 16 hit a truth of 16 and 16 lie where it is ignored."""
    voxels = np.zeros((4, 8, 8), np.uint8)
    voxels[1:3, 2:4, 2:6] = 1
    voxels[1:3, 5:7, 2:6] = 2
    known = {"background": 0, "liver": 1, "ignore": 2}
    for kind, name, x in (
        ("imagesTr", "a_0000", np.arange(256, dtype=np.float32).reshape(4, 8, 8)),
        ("labelsTr", "a", voxels),
    ):
        (tmp_path / kind).mkdir()
        image = sitk.GetImageFromArray(x)
        sitk.WriteImage(image, str(tmp_path / kind / f"{name}.nii.gz"))
    (tmp_path / "dataset.json").write_text(
        json.dumps({"channel_names": {"0": "US"}, "labels": known, "file_ending": ".nii.gz"})
    )
    data = datasets.load(tmp_path, 0, 0)
    read = FetalHeadSystem(FetalHead(), {1: "head"}).reader(None, data.labels)
    assert read.ignored == IGNORED

    def evaluator(image, spacing):
        return {"m": {"label": (voxels > 0).astype(np.uint8), "probability": {"head": voxels / 2}}}

    scoring = evaluation.Scoring("fetal_head", {1: "head"})
    (row,) = evaluation.evaluate(data.train, read, evaluator, scoring, tmp_path / "evaluation")
    assert row["DSC_percent"] == 100 and row["Hdb_mm"] == 0
    assert row["truth_volume_mL"] == row["volume_mL"] == pytest.approx(0.016)


def test_another_label_to_ignore_is_another_data_set(tmp_path):
    case = datasets.Case("a", str(tmp_path / "a.txt"), None, "a")
    (tmp_path / "a.txt").write_text("scan")
    plain, ignoring = (
        datasets.fingerprint(datasets.Dataset("set", (case,), (), (), known))
        for known in ({1: "liver"}, {1: "liver", 2: "ignore"})
    )
    assert plain != ignoring
