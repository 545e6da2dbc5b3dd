"""What can be chosen of the renderer system. No Keras in this module."""

from __future__ import annotations

import dataclasses

from tf_autoctx.configuration import check, field, optional
from tf_autoctx.data.configuration import Augmentation
from tf_autoctx.data.segment_codes import FETAL_HEAD
from tf_autoctx.errors import FieldError
from tf_autoctx.models.options import BIAS, HEADS, LINEAR_INITIALIZERS
from tf_autoctx.systems.renderer.presets import PRESETS
from tf_autoctx.systems.shared.declaration import Declaration

DISCRIMINATORS = {"d_app": 1, "d_struct": 1, "d_pair": 2}  # {name: channels}

# Rows of table 1 and the networks that they have. Orig-T2T is Orig-S2T, trained on the target.
VARIANTS = {
    "S2T": ("renderer", "segmentor", "d_app", "d_struct", "d_pair"),
    "S2T-p": ("renderer", "segmentor", "d_app", "d_struct"),
    "S2T-sp": ("renderer", "segmentor", "d_app"),
    "Orig-S2T": ("segmentor",),
    "Orig-T2T": ("segmentor",),
}

ORDERS = ("summed", "shared", "published")

# How the segmentor's loss is computed, see `losses`.
SEGMENTATION_LOSSES = ("hybrid", "published")

# Of online rendering (section 3).
ITERATIONS = 25

# Which iteration of online rendering is kept, and how the image beside it is mirrored.
KEEPING = ("agreement", "last")
MIRRORS = ("left_right", "either")

# The scanner of the phantoms' target, see `phantoms.HEADS_2D`.
TARGETS = ("near", "far")


@dataclasses.dataclass(frozen=True)
class Renderer:
    """System: the networks, and the size of the images that they see.

    Raises:
      FieldError: a value out of range, or images of any size with a head that needs one.
    """

    variant: str = field("S2T", "Row of the paper's table 1.", choices=tuple(VARIANTS))
    size: int = field(
        320,
        "Edge in pixels that images are resized to; 0 keeps each at its own size, with "
        "discriminator_head=pool alone.",
        least=0,
    )
    base_filters: int = field(32, "Channels of the first stage; all others follow.", least=1)
    discriminator_head: str = field(
        "scaled",
        "What a discriminator decides by: a linear unit on all features, scaled or as they are "
        "(flatten), or on their mean (pool), which takes images of any size.",
        choices=HEADS,
    )
    initializer: str = field(
        "truncated_normal",
        "How convolutions and linear units are initialized; authors: the linear ones with an SD of "
        "0.02, the others as truncated_normal.",
        choices=LINEAR_INITIALIZERS,
        training_only=True,
    )
    bias: bool = field(False, BIAS, before=True)

    def __post_init__(self) -> None:
        check(self)
        if 0 < self.size < 8:
            message = "expected at least 8 pixels, or 0 for images at their own size."
            raise FieldError("size", self.size, message)
        if not self.size and self.discriminator_head != "pool" and self.discriminators:
            message = (
                "images of any size need `discriminator_head=pool`; expected a size or that head."
            )
            raise FieldError("size", self.size, message)

    @property
    def networks(self) -> tuple[str, ...]:
        """Names of the networks that the variant has."""
        return VARIANTS[self.variant]

    @property
    def discriminators(self) -> tuple[str, ...]:
        """Names of the discriminators that the variant has."""
        return tuple(name for name in self.networks if name in DISCRIMINATORS)

    @property
    def renders(self) -> bool:
        """Whether the variant has a renderer."""
        return "renderer" in self.networks


@dataclasses.dataclass(frozen=True)
class Objective:
    """Objective: how the terms of the loss are weighted, and in what order they update."""

    rendering_weight: float = field(
        1.0, "Weight of the rendered image's distance, alpha 0 of equation 1.", least=0.0
    )
    rendering_aux_weight: float = field(
        1.0, "Weight of the side branch's distance, alpha 1 of equation 1.", least=0.0
    )
    app_weight: float = field(
        1.0, "Weight of what the renderer pays for D_app.", least=0.0, before=1.0
    )
    struct_weight: float = field(
        1.0, "Weight of what renderer and segmentor pay for D_struct.", least=0.0, before=1.0
    )
    pair_weight: float = field(
        1.0, "Weight of what renderer and segmentor pay for D_pair.", least=0.0, before=1.0
    )
    adversarial_mean: bool = field(
        False, "Divide these three by the number of discriminators.", before=False
    )
    dice_weight: float = field(
        100.0,
        "Weight of the segmentor's Dice terms beside its cross entropy, which has the weight 1.",
        least=0.0,
    )
    segmentation_loss: str = field(
        "hybrid",
        "hybrid: of every sample, from probabilities; published: as in the authors' code, over the "
        "batch, with Dice terms from logits that are as many times smaller as a batch has pixels.",
        choices=SEGMENTATION_LOSSES,
        before="hybrid",
    )
    mismatched_pairs: bool = field(
        False,
        "Show D_pair also real images with the mask of another one, as fakes.",
        before=False,
    )
    update_order: str = field(
        "summed",
        "summed: one step for the sum of all terms of renderer and segmentor (equation 5); shared: "
        "one for each term, at the same weights; published: term after term, each at the weights "
        "that the one before left, as often as in the authors' code.",
        choices=ORDERS,
    )
    generator_updates: int = field(
        2,
        "Updates of renderer and segmentor per update of the discriminators; the order published "
        "has its own.",
        least=1,
    )

    def __post_init__(self) -> None:
        check(self)


@dataclasses.dataclass(frozen=True)
class Appearance:
    """Appearance: all changes of grey levels at once, by `augment.appearance`."""

    appearance_strength: float = field(
        0.0,
        "How strongly brightness, contrast, gamma, noise, blur and gain along the depth are "
        "changed at random; 0: not at all, 1: beyond what scanners differ by. Real images of the "
        "discriminators stay as they are. In place of intensity_jitter, gamma, blur, "
        "low_resolution and noise.",
        least=0.0,
        most=1.0,
        before=0.0,
    )

    def __post_init__(self) -> None:
        check(self)


@dataclasses.dataclass(frozen=True)
class Online:
    """Online rendering: how every image of another scanner is rendered from the trained weights."""

    online_discriminator_rate: float = field(
        1e-3,
        "Learning rate of the discriminators online; that of all others is 1e-4.",
        least=0.0,
        may_change=True,
        before=1e-4,
    )
    online_segmentor_step: float = field(
        0.3,
        "Learning rate of the segmentor online, relative to the renderer's; 0 keeps it as it is.",
        least=0.0,
        may_change=True,
        before=1.0,
    )
    online_averaging: float = field(
        0.8,
        "Decay of the exponential average of renderer and segmentor over the iterations, by which "
        "the image is rendered and segmented; 0: by their weights as they are.",
        least=0.0,
        most=0.9999,
        may_change=True,
        before=0.0,
    )
    online_patience: int = field(
        3,
        "After so many iterations without a better agreement of the mask with that of the mirror "
        "image, renderer and segmentor go back to the weights that had the best one, while the "
        "discriminators learn on; 0: never.",
        least=0,
        may_change=True,
        before=0,
    )
    online_rendering_weight: float = field(
        1.0, "Factor on the weights of L_rend online.", least=0.0, may_change=True, before=1.0
    )
    online_app_weight: float = field(
        1.0, "Factor on app_weight online.", least=0.0, may_change=True, before=1.0
    )
    online_struct_weight: float = field(
        1.0, "Factor on struct_weight online.", least=0.0, may_change=True, before=1.0
    )
    online_pair_weight: float = field(
        1.0, "Factor on pair_weight online.", least=0.0, may_change=True, before=1.0
    )
    online_adversarial_mean: bool = field(
        False,
        "Divide the adversarial terms online by the number of discriminators, if adversarial_mean "
        "does not so anyway.",
        may_change=True,
        before=False,
    )
    online_mirror: str = field(
        "left_right",
        "The image beside it in the batch of 2: its mirror image left to right, or either that or "
        "the one top to bottom, at random, as in the authors' code.",
        choices=MIRRORS,
        may_change=True,
        before="left_right",
    )
    online_keep: str = field(
        "agreement",
        "Which iteration is kept: the one whose mask agrees best with that of the mirror image, or "
        "the last.",
        choices=KEEPING,
        may_change=True,
        before="agreement",
    )

    def __post_init__(self) -> None:
        check(self)

    def objective(self, trained: Objective) -> Objective:
        """The objective online of a run that was trained with this one."""
        return dataclasses.replace(
            trained,
            rendering_weight=self.online_rendering_weight * trained.rendering_weight,
            rendering_aux_weight=self.online_rendering_weight * trained.rendering_aux_weight,
            app_weight=self.online_app_weight * trained.app_weight,
            struct_weight=self.online_struct_weight * trained.struct_weight,
            pair_weight=self.online_pair_weight * trained.pair_weight,
            adversarial_mean=self.online_adversarial_mean or trained.adversarial_mean,
        )


@dataclasses.dataclass(frozen=True)
class Phantoms:
    """Phantoms: made-up images of two scanners, where data_dir is empty."""

    phantom_size: tuple[int, ...] = field(
        (96, 96), "Pixels of a phantom along y, x.", length=2, least=8
    )
    phantom_cases: tuple[int, ...] = field(
        (100, 20), "Phantoms of each scanner to train on and to hold out.", length=2, least=1
    )
    phantom_target: str = field(
        "near",
        "The other scanner: near, as two scanners of one clinic, or far, a stress test.",
        choices=TARGETS,
        may_change=True,  # variants that are trained on it are bound by their data
        before="far",
    )

    def __post_init__(self) -> None:
        check(self)


@dataclasses.dataclass(frozen=True)
class Iterations:
    """How many iterations online, and by which random numbers."""

    iterations: int | None = field(
        None,
        f"Iterations of online rendering; 0: none. By default {ITERATIONS} where the variant has a "
        "renderer.",
        least=0,
    )
    online_seed: int | None = field(
        None,
        "Seed of the source images that online rendering draws. By default 0.",
        least=0,
    )

    def __post_init__(self) -> None:
        check(self)


OnlineOptions = optional(
    "OnlineOptions",
    __name__,
    "Online rendering: options of prediction by a run folder of the renderer system.",
    Iterations,
    Online,
)
DECLARATION = Declaration(
    name="renderer",
    dimensions=2,
    configuration=Renderer,
    training=(Objective, Augmentation, Appearance, Online),
    phantoms=Phantoms,
    presets=PRESETS,
    measurement="tf_autoctx.biometry:head",
    implementation="tf_autoctx.systems.renderer.system:RendererSystem",
    prediction=OnlineOptions,
    aliases={"corpus": "data_dir"},
    segment_codes={"head": FETAL_HEAD},
)
