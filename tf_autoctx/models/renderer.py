"""Networks of online adversarial rendering in 2D (Yang et al. 2018, figure 3).

Renderer, segmentor and discriminator. Widths are those of the authors' code; convolutions are 3x3
and deconvolutions 4x4, with batch norm and ReLU.
"""

from __future__ import annotations

from collections.abc import Callable

import keras

from tf_autoctx.models import layers
from tf_autoctx.models.options import HEADS
from tf_autoctx.models.rematerialization import ends_block

Place = Callable[[layers.Tensor, int, str], layers.Tensor]  # (x, filters, name) -> feature map


def renderer(
    size: int | None = None,
    *,
    base_filters: int = 32,
    initializer: str = "truncated_normal",
    bias: bool = False,
) -> keras.Model:
    """Gives an image the look of another corpus (section 2.1, figure 3a).

    A light U-Net with one side branch.

    Args:
      size: edge of the images in pixels; None for images of any size, which are padded inside to a
        multiple of 4.
      base_filters: channels of the first stage; the authors have 32, all others follow.
      initializer: see `layers.initializers`.
      bias: whether convolutions have a bias before a normalization, see `options.BIAS`.

    Returns:
      Functional model: image (batch, height, width, 1) -> {"rendered", "aux": (batch, height,
        width, 1) float32}.

    Raises:
      ValueError: unknown initializer (the message lists the known ones).
    """
    block, deblock = _blocks(initializer, bias)
    f = base_filters
    image = keras.Input((size, size, 1), name="image")
    x = layers.PadToMultiple(4)(image)

    # Encoder
    whole = block(block(x, f, "encoder_1_1"), f, "encoder_1_2")
    half = block(layers.max_pool(whole), 2 * f, "encoder_2_1")
    half = block(half, 2 * f, "encoder_2_2")
    x = block(layers.max_pool(half), 4 * f, "encoder_3")

    # Decoder
    x = keras.layers.Concatenate()([deblock(x, 4 * f, "decoder_2_up"), half])
    half = block(x, 2 * f, "decoder_2")
    x = keras.layers.Concatenate()([deblock(half, 2 * f, "decoder_1_up"), whole])
    x = block(x, f, "decoder_1")

    # Heads; float32 under mixed precision too, for the losses
    x = layers.conv(x, 1, 1, initializer, linear=True, dtype="float32", name="rendered_head")
    aux = layers.conv(half, f // 2 or 1, 1, initializer, linear=True, name="aux_head")
    aux = layers.deconv(aux, 1, 4, initializer, linear=True, dtype="float32", name="aux_up")
    return keras.Model(image, _at_size_of(image, {"rendered": x, "aux": aux}), name="renderer")


def segmentor2d(
    size: int | None = None,
    *,
    base_filters: int = 32,
    initializer: str = "truncated_normal",
    bias: bool = False,
) -> keras.Model:
    """Segments a rendered image (section 2.1, figure 3b): a U-Net with two side branches.

    Args:
      size: edge of the images in pixels; None for images of any size, which are padded inside to a
        multiple of 8.
      base_filters, initializer, bias: as in `renderer`.

    Returns:
      Functional model: image (batch, height, width, 1) -> {"logits", "aux1" (from 1/4 of the size),
        "aux2" (from half): (batch, height, width, 2) float32}.

    Raises:
      ValueError: unknown initializer (the message lists the known ones).
    """
    block, deblock = _blocks(initializer, bias)
    f = base_filters
    image = keras.Input((size, size, 1), name="image")
    x = layers.PadToMultiple(8)(image)

    # Encoder
    whole = block(x, f, "encoder_1")
    half = block(layers.max_pool(whole), 2 * f, "encoder_2")
    quarter = block(layers.max_pool(half), 4 * f, "encoder_3_1")
    quarter = block(quarter, 4 * f, "encoder_3_2")
    x = block(layers.max_pool(quarter), 8 * f, "encoder_4")

    # Decoder
    x = keras.layers.Concatenate()([deblock(x, 8 * f, "decoder_3_up"), quarter])
    quarter = block(x, 4 * f, "decoder_3")
    x = keras.layers.Concatenate()([deblock(quarter, 4 * f, "decoder_2_up"), half])
    half = block(x, 2 * f, "decoder_2")
    x = keras.layers.Concatenate()([deblock(half, 2 * f, "decoder_1_up"), whole])
    x = block(x, f, "decoder_1")

    # Heads
    x = layers.conv(x, 2, 1, initializer, linear=True, dtype="float32", name="logits_head")
    aux1 = layers.conv(quarter, 2, 1, initializer, linear=True, name="aux1_head")
    aux1 = layers.deconv(aux1, 2, 4, initializer, linear=True, name="aux1_up_1")
    aux1 = layers.deconv(aux1, 2, 4, initializer, linear=True, dtype="float32", name="aux1_up_2")
    aux2 = layers.conv(half, 2, 1, initializer, linear=True, name="aux2_head")
    aux2 = layers.deconv(aux2, 2, 4, initializer, linear=True, dtype="float32", name="aux2_up")
    return keras.Model(
        image, _at_size_of(image, {"logits": x, "aux1": aux1, "aux2": aux2}), name="segmentor"
    )


def discriminator(
    channels: int,
    size: int | None = None,
    *,
    head: str = "scaled",
    base_filters: int = 32,
    initializer: str = "truncated_normal",
    bias: bool = False,
    name: str | None = None,
) -> keras.Model:
    """Tells real from fake (section 2.1, figure 3c).

    Four convolutions at full resolution and one linear unit.

    Args:
      channels: 1 for an image or a map, 2 for a pair of both.
      size: edge of the images in pixels; None for images of any size, with the head "pool" alone.
      head: "flatten", the authors' unit on all n features (6.5 million at 320 pixels); "scaled",
        the same on features divided by sqrt(n) (the equalized learning rate of Karras et al. 2018):
        Adam moves every weight by the learning rate, so that the unit of "flatten" makes steps as
        long as there are pixels; or "pool", a unit on the features' mean over the image.
      base_filters, initializer, bias: as in `renderer`.
      name: of the model.

    Returns:
      Functional model: (batch, height, width, channels) -> float32 logits (batch, 1), positive for
        real.

    Raises:
      ValueError: unknown head or initializer (the message lists the known ones), or a head other
        than "pool" without a size.
    """
    if head not in HEADS:
        raise ValueError(f"head={head!r}: expected one of {', '.join(HEADS)}.")
    if head != "pool" and size is None:
        raise ValueError(
            f"head={head!r} with size=None: expected the size of the images, or the head 'pool'."
        )
    block, _ = _blocks(initializer, bias)
    x = image = keras.Input((size, size, channels), name="image")
    for number, units in enumerate((1, 1, 2, 2), start=1):
        x = block(x, units * base_filters, f"block_{number}")
    x = keras.layers.GlobalAveragePooling2D()(x) if head == "pool" else keras.layers.Flatten()(x)
    if head == "scaled":
        x = keras.layers.Rescaling(x.shape[-1] ** -0.5, dtype="float32")(x)
    arguments = layers.initializers(initializer, unit=True)
    logits = keras.layers.Dense(1, **arguments, dtype="float32", name="head")(x)
    return keras.Model(image, logits, name=name)


def _blocks(initializer: str, bias: bool) -> tuple[Place, Place]:
    """Convolution and deconvolution with batch norm and ReLU, each a block."""
    common = layers.Block("batch", initializer, bias)

    def block(x: layers.Tensor, filters: int, name: str) -> layers.Tensor:
        return ends_block(common.conv(x, filters, 3, name))

    def deblock(x: layers.Tensor, filters: int, name: str) -> layers.Tensor:
        return ends_block(common.deconv(x, filters, 4, name))

    return block, deblock


def _at_size_of(
    image: keras.KerasTensor, outputs: dict[str, layers.Tensor]
) -> dict[str, layers.Tensor]:
    """The outputs by name, without what the image was padded with."""
    return {
        name: layers.CropLike(name=name, dtype="float32")([x, image]) for name, x in outputs.items()
    }
