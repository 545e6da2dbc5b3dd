"""Every flag of the augmentation reaches the training of every system, and what it learns."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
import test_order
from held import held
from helpers import grey
from test_order import STAGE_OF, flat, gradients

from tf_autoctx.data import pipeline
from tf_autoctx.data.configuration import Augmentation
from tf_autoctx.systems.fetal_head.configuration import FetalHead
from tf_autoctx.systems.fetal_head.segmentation import Cascade
from tf_autoctx.systems.fetal_head.training import LevelStage
from tf_autoctx.systems.shared import registry

STILL = {**vars(Augmentation()), "appearance_strength": 0.0}
CHANGES = {
    "flips": True,
    "shift": 2,
    "rotation": 40.0,
    "scaling": 0.5,
    "elastic": 1.0,
    "intensity_jitter": 0.3,
    "gamma": 0.5,
    "blur": 1.0,
    "low_resolution": 2.0,
    "noise": 0.3,
    "erase_probability": 1.0,
}
# Flags that change how others change a sample
HOW = {"elastic_spacing": (4, {"elastic": 1.0}), "change_probability": (0.0, {"rotation": 40.0})}
STAGES = ("level", "pyramid", "initial", "refine", "peer's body", "self_play")
plain = test_order.plain


@pytest.fixture(scope="module")
def stage_of(tmp_path_factory):
    """(name, {flag: value}) -> a stage of that augmentation, its session and a case"""
    made = {}

    def of(name, **flags):
        if name not in made:
            made[name] = STAGE_OF[name](tmp_path_factory.mktemp("stage"))
        stage, session = made[name]
        stage.begin(session)
        changed = dataclasses.replace(session, values={**session.values, **STILL, **flags})
        stage._augmentation = changed.configured(Augmentation)
        if name == "self_play":
            stage._strength = 0.0
        sample = pipeline.sample({key: session.training[1][key] for key in stage.columns})
        if stage.others:
            others = [pipeline.sample(entry) for entry in session.training[2:]]
            sample["others"] = tuple(others[: stage.others])
        if name == "self_play":  # whose images are even
            sample["image2d"] = tf.constant(grey(*sample["image2d"].shape))
        return stage, changed, sample

    return of


def seen(stage, sample, number):
    seed = tf.constant([3, number], tf.int64)
    return stage.augment(stage.read(held(sample), seed), seed)


def differ(samples, others):
    """Whether any tensor of some samples is another."""
    pairs = zip(tf.nest.flatten(samples), tf.nest.flatten(others), strict=True)
    return any(np.any(np.array(a) != b) for a, b in pairs)


@pytest.mark.parametrize("flag", [*CHANGES, *HOW])
@pytest.mark.parametrize("name", [name for name in STAGES if name != "refine"])
def test_a_flag_changes_what_a_stage_sees(stage_of, name, flag):
    value, beside = HOW.get(flag, (CHANGES.get(flag), {}))
    sights = []
    for flags in ({**beside, flag: value}, beside):
        stage, _, sample = stage_of(name, **flags)
        sights.append([seen(stage, sample, number) for number in (2, 3)])
    assert differ(*sights)


@pytest.mark.parametrize("name", STAGES)
def test_a_changed_flag_changes_what_is_learnt(stage_of, name):
    learnt = []
    for flags in ({}, CHANGES):
        stage, session, sample = stage_of(name, **flags)
        learnt.append(flat(gradients(stage, sample, session.settings)))
    assert np.abs(learnt[0] - learnt[1]).max() > 1e-5


@pytest.mark.parametrize("name", ["fetal_head", "multi_organ", "embryo", "renderer"])
def test_every_system_has_the_same_flags_and_its_paper_names_them_all(name):
    declaration = registry.find(name, "test")
    assert Augmentation in declaration.training
    fields = {field.name for field in dataclasses.fields(Augmentation)}
    assert fields <= declaration.presets["paper"].keys() and fields == {*CHANGES, *HOW}
    of_papers = {
        "fetal_head": {"flips": True, "erase_probability": 1512 / 2112},
        "multi_organ": {"shift": 4, "rotation": 10.0, "elastic": 4.0, "elastic_spacing": 32},
        "embryo": {"rotation": 180.0, "shift": 30, "flips": True},
        "renderer": {},
    }
    paper = {field: declaration.presets["paper"][field] for field in fields}
    assert Augmentation(**paper) == Augmentation(**of_papers[name])


def test_patches_that_turn_show_what_lies_around_them(tmp_path):
    """Every voxel of the image says how far along x it is."""
    entry = {"context": ""}
    along = np.broadcast_to(np.arange(24, dtype=np.float32)[:, None], (24, 24, 24, 1))
    tensors = {"image": along, "label": np.ones((24, 24, 24, 1), np.uint8)}
    for name, tensor in {**tensors, "spacing": np.ones(3, np.float32)}.items():
        pipeline.store(tmp_path / name, tensor, (8, 8, 8)[: tensor.ndim - 1])
        entry[name] = str(tmp_path / name)
    cascade = Cascade(FetalHead(variant="p-USegNet", patch_size=8, base_filters=2))
    session = test_order.head_session(tmp_path)
    values = {**STILL, "rotation": 45.0, "intensity_jitter": 0.1}
    session = dataclasses.replace(session, values=values, training=[entry])
    stage = LevelStage(1, cascade, session)
    stage.begin(session)
    spans = []
    for number in range(8):
        seed = tf.constant([3, number], tf.int64)
        case = pipeline.case({name: entry[name] for name in stage.columns})
        patch = stage.read(case, seed)
        spans.append(float(np.ptp(patch["image"])))
        changed = stage.augment(patch, seed)
        assert changed.keys() == {"image", "label", "context"}
        assert all(tensor.shape == (8, 8, 8, 1) for tensor in changed.values())
        assert np.abs(changed["image"] - patch["image"]).max() > 1e-3
    assert max(spans) > 8
