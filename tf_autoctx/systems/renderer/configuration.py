"""What can be chosen of the renderer system. No Keras in this module."""

from __future__ import annotations

import dataclasses

from tf_autoctx.configuration import check, field
from tf_autoctx.errors import FieldError
from tf_autoctx.models.options import BIAS, HEADS, INITIALIZERS
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

# Of online rendering (section 3).
ITERATIONS = 25


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
        "truncated_normal", "How convolutions are initialized.", choices=INITIALIZERS
    )
    bias: bool = field(False, BIAS, earlier=True)

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
    dice_weight: float = field(
        100.0, "Weight of the segmentor's Dice terms beside its cross entropy.", least=0.0
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
class Phantoms:
    """Phantoms: made-up images of two scanners, where data_dir is empty."""

    phantom_size: tuple[int, ...] = field(
        (96, 96), "Pixels of a phantom along y, x.", length=2, least=8
    )
    phantom_cases: tuple[int, ...] = field(
        (100, 20), "Phantoms of each scanner to train on and to hold out.", length=2, least=1
    )

    def __post_init__(self) -> None:
        check(self)


@dataclasses.dataclass(frozen=True)
class OnlineOptions:
    """Online rendering: options of prediction by a run folder of the renderer system."""

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


DECLARATION = Declaration(
    name="renderer",
    dimensions=2,
    configuration=Renderer,
    training=(Objective,),
    phantoms=Phantoms,
    presets=PRESETS,
    implementation="tf_autoctx.systems.renderer.system:RendererSystem",
    prediction=OnlineOptions,
    aliases={"corpus": "data_dir"},
)
