"""USegNet and its variants: the segmentors of the whole fetal head system (Yang et al. 2019)."""

from __future__ import annotations

import functools
from collections.abc import Callable

import keras

from tf_autoctx.models import layers
from tf_autoctx.models.options import (
    ATTENTION_KERNELS,
    ATTENTION_NORMS,
    PLAIN_DECODERS,
    VARIANTS,
)
from tf_autoctx.models.rematerialization import ends_block

# (channels in units of `base_filters`, kernel) of each stage, full size first (section 2.3; widths
# of the authors' code).
ENCODER = ((1, 3), (2, 3), (2, 5))
BOTTOM = (2, 5)
DECODER = ((1, 3), (2, 5), (2, 5))


def usegnet(
    input_shape: layers.Shape = (None, None, None, 1),
    variant: str = "USegNet-DS-HAS",
    *,
    base_filters: int = 32,
    attention_kernel: str = "paper",
    attention_norm: str = "none",
    plain_decoder: str = "conv",
    normalization: str = "instance",
    initializer: str = "he",
    bias: bool = False,
) -> keras.Model:
    """Whole fetal head segmentor with hybrid attention (Yang et al. 2019, 2.3-2.4, figure 2a).

    Any spatial size works: the image is padded at its high ends to a multiple of 8 inside, and the
    outputs are cropped.

    Args:
      input_shape: (depth, height, width, channels), or (height, width, channels) for the 2D network
        of table 1; None leaves an axis free.
      variant: a row of tables 1 and 2, see `options.VARIANTS`.
      base_filters: channels of the first stage; the paper has 32, all others follow.
      attention_kernel: "paper" (3 in every module) or "code" (5 in SAM 1, UAM 1 and UAM 2, as the
        authors published).
      attention_norm: which convolutions of the attention modules normalization and ReLU follow:
        "none", as the authors published, the last ("output"), or "every" one, as in section 2.3.
      plain_decoder: what stands at a scale without a UAM: "conv", normalization and ReLU, of which
        the paper has no word, or "bare", nothing.
      normalization: "instance" (statistics of the volume, as the authors ran it) or "batch".
      initializer: "he" or "paper" (truncated normal of SD 0.001, bias 0.01).
      bias: whether convolutions have a bias before a normalization, see `options.BIAS`.

    Returns:
      Functional model: image (batch, *spatial, channels) -> dict of float32 logits with 2 channels:
      "logits" at the same size and, where the variant is deeply supervised, "logits_half" and
      "logits_quarter" at ceil(size / 2) and / 4.

    Raises:
      ValueError: unknown variant, attention kernel or norm, plain decoder, normalization or
        initializer (the message lists the known ones).
    """
    for name, value, known in (
        ("variant", variant, VARIANTS),
        ("attention_kernel", attention_kernel, ATTENTION_KERNELS),
        ("attention_norm", attention_norm, ATTENTION_NORMS),
        ("plain_decoder", plain_decoder, PLAIN_DECODERS),
    ):
        if value not in known:
            raise ValueError(f"{name}={value!r}: expected one of {', '.join(known)}.")
    block = layers.Block(normalization, initializer, bias)
    image = keras.Input(input_shape, name="image")
    x = layers.PadToMultiple(8)(image)
    features = _encoder(x, base_filters, block)
    attend = functools.partial(
        attention_module,
        block=block,
        norm=attention_norm,
        filters=2 * base_filters,
        inner=base_filters,
    )
    kernels, is_bare = ATTENTION_KERNELS[attention_kernel], plain_decoder == "bare"
    x, supervised = _decoder(features, variant, kernels, attend, block, is_bare)

    # Heads; float32 under mixed precision too, for the softmax
    def head(x: layers.Tensor, stride: int, name: str) -> layers.Tensor:
        place = f"{name}_head"
        logits = layers.conv(x, 2, 1, initializer, linear=True, dtype="float32", name=place)
        return layers.CropLike(stride, name=name, dtype="float32")([logits, image])

    outputs = {"logits": head(x, 1, "logits")}
    if VARIANTS[variant].deep_supervision:
        outputs["logits_half"] = head(supervised[1], 2, "logits_half")
        outputs["logits_quarter"] = head(supervised[0], 4, "logits_quarter")
    return keras.Model(image, outputs, name=variant)


def _encoder(x: layers.Tensor, base_filters: int, block: layers.Block) -> list[layers.Tensor]:
    """Features of each stage, full size first, and of the bottom last."""
    features: list[layers.Tensor] = []
    for stage, (units, kernel) in enumerate((*ENCODER, BOTTOM), start=1):
        x = layers.max_pool(x) if features else x
        x = block.conv(x, units * base_filters, kernel, f"encoder_{stage}_1")
        x = block.conv(x, units * base_filters, kernel, f"encoder_{stage}_2")
        features.append(ends_block(x))
    return features


def _decoder(
    features: list[layers.Tensor],
    variant: str,
    kernels: dict[str, dict[int, int]],
    attend: Callable[..., layers.Tensor],
    block: layers.Block,
    is_bare: bool,
) -> tuple[layers.Tensor, list[layers.Tensor]]:
    """Features at full size, and what the side branches hang on, deepest scale first."""
    parts, base_filters = VARIANTS[variant], features[0].shape[-1]
    *features, x = features
    supervised = []
    for scale in (1, 2, 3):
        stage = 3 - scale
        units, kernel = DECODER[stage]
        x = ends_block(block.deconv(x, units * base_filters, kernel, f"decoder_{scale}_up"))
        if scale in parts.skips:
            skip = features[stage]
            if scale in parts.sam:
                skip = attend(skip, kernels["sam"][scale], name=f"sam_{scale}")
            x = keras.layers.Concatenate()([x, skip])
        if scale in parts.uam:
            x = attend(x, kernels["uam"][scale], name=f"uam_{scale}")
            supervised.append(x)
        else:
            # Table 2's note: without the UAM, the side branch hangs on the concatenation itself.
            supervised.append(x)
            if not is_bare:
                filters = 2 * base_filters
                x = block.conv(x, filters, ENCODER[stage][1], f"decoder_{scale}")
                x = ends_block(x)
    return x, supervised


def attention_module(
    x: layers.Tensor,
    kernel: int,
    block: layers.Block,
    norm: str = "none",
    *,
    filters: int = 64,
    inner: int = 32,
    name: str = "attention",
) -> layers.Tensor:
    """Attention module (Yang et al. 2019, section 2.4, equations 3-4, figure 3).

    P = 1x1x1 conv of x; W = two convs on P; A = softmax of W over the channels of each voxel; the
    output is a conv of concat(P, P * A).

    Args:
      x: feature map (batch, *spatial, channels).
      kernel: edge of the weight and output convolutions; the paper has 3.
      block: how convolutions are initialized, and those of `norm` normalized.
      norm: which of them normalization and ReLU follow, see `options.ATTENTION_NORMS`.
      filters: channels of the output; the paper has 64.
      inner: channels of P, W and A; the paper has 32.
      name: which those of its convolutions begin with.

    Returns:
      Feature map (batch, *spatial, filters).
    """

    def conv(x: layers.Tensor, filters: int, kernel: int, part: str) -> layers.Tensor:
        if part in ATTENTION_NORMS[norm]:
            return block.conv(x, filters, kernel, f"{name}_{part}")
        initializer, place = block.initializer, f"{name}_{part}"
        return layers.conv(x, filters, kernel, initializer, linear=True, name=place)

    p = ends_block(conv(x, inner, 1, "p"))
    w = conv(conv(p, inner, kernel, "w_1"), inner, kernel, "w_2")
    attention = keras.layers.Softmax(axis=-1)(w)
    t = keras.layers.Multiply()([p, attention])
    # In one block with all before, most of that would wait for the last convolution's kernel.
    joined = ends_block(keras.layers.Concatenate()([p, t]))
    return ends_block(conv(joined, filters, kernel, "out"))
