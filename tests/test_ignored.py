"""Voxels that a data set says to ignore: no stage of any system learns from them, no score counts
them. Networks are made-up functions that differ there alone."""

import dataclasses
import json

import numpy as np
import pytest
import SimpleITK as sitk
import tensorflow as tf
from held import held
from made_up_stages import IGNORED, SETTINGS, SYSTEMS, label_of, session

from tf_autoctx.data import datasets
from tf_autoctx.data.augment import random_erasing
from tf_autoctx.systems.fetal_head.configuration import FetalHead
from tf_autoctx.systems.fetal_head.system import FetalHeadSystem
from tf_autoctx.systems.renderer import terms
from tf_autoctx.systems.renderer.configuration import Renderer
from tf_autoctx.systems.renderer.system import RendererSystem
from tf_autoctx.systems.renderer.training import SelfPlayStage
from tf_autoctx.systems.shared import evaluation


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
