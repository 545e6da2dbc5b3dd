"""Stages of all systems whose networks are made-up functions: what they lower, how they score."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tf_autoctx.data import labels, pipeline
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


def session(folder, system, label, ignored, settings=SETTINGS):
    image = np.random.default_rng(0).normal(0, 100, label.shape).astype(np.float32)
    tensors = {**system.prepare(None, image, label), "spacing": np.ones(label.ndim - 2, np.float32)}
    entry = {}
    for name, tensor in tensors.items():
        pipeline.store(folder / "a" / name, tensor)
        entry[name] = str(folder / "a" / name)
    entry["context"] = ""
    run = runs.Run(folder, {})
    strategy = tf.distribute.get_strategy()
    return Session(run, VALUES, strategy, settings, [entry] * 2, [], ignored), tensors


def drawn(shape, seed):
    """What a network says: the same for every seed, but for the corner."""
    values, others = (np.random.default_rng(k).normal(0, 3, shape) for k in (0, seed))
    return np.where(corner(shape), others, values).astype(np.float32)


def fetal_head(folder, ignored, settings=SETTINGS):
    system = FetalHeadSystem(FetalHead(variant="USegNet", scale=1.0), {1: "head"})
    opened, tensors = session(folder, system, label_of(1), ignored, settings)
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


def multi_organ(folder, ignored, settings=SETTINGS):
    configuration = MultiOrgan("end_to_end", 1, downsampling=(1,), patch_size=8, tile_size=16)
    system = MultiOrganSystem(configuration, {2: "liver", 5: "pancreas"})
    opened, tensors = session(folder, system, label_of(2, 5), ignored, settings)
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
    def of_stage(folder, ignored, settings=SETTINGS):
        system = EmbryoSystem(Embryo(low_size=8, body_box=8, ventricle_box=8), {5: "b", 2: "v"})
        opened, tensors = session(folder, system, label_of(5, 2), ignored, settings)
        assert np.unique(tensors["label"]).tolist() == [0, 1, 2, IGNORED]
        system.check_cases(opened.training, [])
        with pytest.MonkeyPatch().context() as patch:  # there is no stage before
            patch.setattr(kind, "_before", lambda *_: {})
            stage = kind(system.refinement, opened)
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


def peer(folder, ignored, settings=SETTINGS):
    system = EmbryoSystem(Embryo(low_size=8, body_box=8, ventricle_box=8), {5: "b", 2: "v"})
    opened, tensors = session(folder, system, label_of(5, 2), ignored, settings)
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


def renderer(folder, ignored, settings=SETTINGS):
    system = RendererSystem(Renderer("Orig-S2T", size=8), {1: "head"})
    opened, tensors = session(folder, system, label_of(1, size=(8, 8)), ignored, settings)
    stage = SelfPlayStage(system.rendering, opened)
    batch = {"image": tensors["image2d"][None], "label": tensors["label2d"][None]}

    def loss(seed):
        logits = tf.constant(drawn((1, 8, 8, 2), seed))
        out = dict.fromkeys(("logits", "aux1", "aux2"), logits)
        networks = {"segmentor": lambda x, training: out}
        parts = settings.terms(terms.losses.TERMS)
        outputs = terms.Outputs(networks, batch, True, ignored=stage._ignored, parts=parts)
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
