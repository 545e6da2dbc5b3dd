"""`--loss`: what each system is learnt by, and what its losses come to by hand."""

import dataclasses

import numpy as np
import pytest
from made_up_stages import SETTINGS, SYSTEMS, VALUES, label_of, session

from tf_autoctx import losses
from tf_autoctx.errors import FieldError
from tf_autoctx.systems.renderer.configuration import Renderer
from tf_autoctx.systems.renderer.system import RendererSystem
from tf_autoctx.systems.renderer.training import SelfPlayStage
from tf_autoctx.training.configuration import LOSSES

# Two voxels: class 1 with p = 3/4, class 0 with p = 1/2.
LABEL = np.array([[[1], [0]]])
LOGITS = np.log(np.float32([[[1, 3], [2, 2]]]))
DICE = (2 * 0.5 / (0.75 + 1) + 2 * 0.75 / (1.25 + 1)) / 2
ENTROPY = (np.log(4 / 3) + np.log(2)) / 2

PAPER = {
    "fetal_head": "cross_entropy",
    "multi_organ": "dice",
    "embryo, initial": "dice",
    "embryo, refine": "dice",
    "sliding windows": "dice",
    "renderer": "dice_cross_entropy",
}


@pytest.mark.parametrize(
    "terms, expected",
    [
        (("dice",), -DICE),
        (("cross_entropy",), ENTROPY),
        (losses.TERMS, ENTROPY - DICE),
    ],
)
def test_classes_by_hand(terms, expected):
    np.testing.assert_allclose(losses.ClassLoss(terms)(LABEL, LOGITS), [expected], atol=1e-5)
    both = {"logits": LOGITS, "logits_half": LOGITS[:, :1]}  # of the first voxel
    half = losses.ClassLoss(terms)(LABEL[:, :1], LOGITS[:, :1])
    supervised = losses.DeepSupervisedLoss(terms)(LABEL, both)
    np.testing.assert_allclose(supervised, expected + np.array(half), atol=1e-5)


def test_probabilities_by_hand():
    # p = 3/4 where the object is, 1/2 where it is not.
    truth, p = LABEL, np.float32([[[0.75], [0.5]]])
    dice = 2 * 0.75 / (0.5625 + 0.25 + 1)
    for terms, expected in (
        (("dice",), -dice),
        (("cross_entropy",), ENTROPY),
        (losses.TERMS, ENTROPY - dice),
    ):
        loss = losses.ProbabilityLoss(terms)(truth, p)
        np.testing.assert_allclose(loss, [expected], atol=1e-5)
    outside = losses.ProbabilityLoss(losses.TERMS)(truth, np.float32([[[0], [1]]]))
    assert np.isfinite(outside).all()  # wrong beyond doubt


def test_regions_by_hand():
    # p = 3/4 where the region is, 1/2 where it is not.
    logits = np.log(np.float32([[[3], [1]]]))
    dice = 2 * 0.75 / (1.25 + 1)
    for terms, expected in (
        (("dice",), -dice),
        (("cross_entropy",), ENTROPY),
        (losses.TERMS, ENTROPY - dice),
    ):
        loss = losses.RegionLoss(((1,),), terms)(LABEL, logits)
        np.testing.assert_allclose(loss, [expected], atol=1e-5)


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_system_is_learnt_by_what_is_asked_for(tmp_path, name):
    def lowered(loss):
        settings = dataclasses.replace(SETTINGS, loss=loss)
        return np.array(SYSTEMS[name](tmp_path / loss, None, settings)[0](1))

    values = {loss: lowered(loss) for loss in LOSSES}
    np.testing.assert_array_equal(lowered("paper"), values[PAPER[name]])
    assert values["dice"] < 0 < values["cross_entropy"]
    both = values["dice"] + values["cross_entropy"]
    np.testing.assert_allclose(values["dice_cross_entropy"], both, rtol=1e-5)


def test_the_renderers_updates_lower_it(tmp_path):
    """A step of the dice loss and of the cross entropy, from the same weights."""
    first = {}
    for loss in LOSSES:
        settings = dataclasses.replace(SETTINGS, loss=loss)
        system = RendererSystem(
            Renderer("Orig-S2T", size=16, base_filters=2, initializer="he"), {1: "head"}
        )
        label = label_of(1, size=(16, 16))
        opened, tensors = session(tmp_path / loss, system, label, 255, settings)
        stage = SelfPlayStage(system.rendering, opened)
        networks = stage.build()
        for variable in networks["segmentor"].variables:
            variable.assign(np.full(variable.shape, 0.1))
        _, step = stage.updates(networks, settings)
        batch = {"image": tensors["image2d"][None], "label": tensors["label2d"][None]}
        first[loss] = float(step({**batch, "real": {}})["loss"])
    both = first["dice"] + first["cross_entropy"]
    assert first["dice"] < 0 < first["cross_entropy"]
    np.testing.assert_allclose(first["dice_cross_entropy"], both, rtol=1e-4)


def test_the_published_loss_is_a_whole_of_its_own():
    published = {**VALUES, "appearance_strength": 0, "segmentation_loss": "published"}
    assert RendererSystem.implied({**published, "loss": "paper"}) == {}
    with pytest.raises(FieldError, match=r"loss.*published.*expected paper"):
        RendererSystem.implied({**published, "loss": "dice"})
