"""USegNet and its variants: the segmentors of the whole fetal head system (Yang et al. 2019)."""

import keras

from tf_autoctx.models import layers

# (channels in units of `base_filters`, kernel) of each stage, full size first (section 2.3; widths of the authors'
# code).
ENCODER = ((1, 3), (2, 3), (2, 5))
BOTTOM = (2, 5)
DECODER = ((1, 3), (2, 5), (2, 5))

# A row of tables 1 and 2: where skips, attention and deep supervision sit. Scales count as in the paper: 1 is the
# deepest (quarter size), 3 the full size.
VARIANTS = {
    "3D-DeconvNet": {"skips": (), "sam": (), "uam": (), "deep_supervision": False},
    "USegNet": {"skips": (1, 2, 3), "sam": (), "uam": (), "deep_supervision": False},
    "USegNet-DS": {"skips": (1, 2, 3), "sam": (), "uam": (), "deep_supervision": True},
    "USegNet-DS-SAM-1": {"skips": (1, 2, 3), "sam": (1,), "uam": (), "deep_supervision": True},
    "USegNet-DS-SAM-12": {"skips": (1, 2, 3), "sam": (1, 2), "uam": (), "deep_supervision": True},
    "USegNet-DS-SAM": {"skips": (1, 2, 3), "sam": (1, 2, 3), "uam": (), "deep_supervision": True},
    "USegNet-DS-UAM-1": {"skips": (1, 2, 3), "sam": (), "uam": (1,), "deep_supervision": True},
    "USegNet-DS-UAM-12": {"skips": (1, 2, 3), "sam": (), "uam": (1, 2), "deep_supervision": True},
    "USegNet-DS-UAM": {"skips": (1, 2, 3), "sam": (), "uam": (1, 2, 3), "deep_supervision": True},
    "USegNet-DS-HAS": {
        "skips": (1, 2, 3),
        "sam": (1, 2, 3),
        "uam": (1, 2, 3),
        "deep_supervision": True,
    },
}

# Kernel of each attention module: the paper's 3 everywhere, or the authors' code.
ATTENTION_KERNELS = {
    "paper": {"sam": {1: 3, 2: 3, 3: 3}, "uam": {1: 3, 2: 3, 3: 3}},
    "code": {"sam": {1: 5, 2: 3, 3: 3}, "uam": {1: 5, 2: 5, 3: 3}},
}


def usegnet(
    input_shape=(None, None, None, 1),
    variant="USegNet-DS-HAS",
    *,
    base_filters=32,
    attention_kernel="paper",
    normalization="instance",
    initializer="he",
):
    """Whole fetal head segmentor with hybrid attention (Yang et al. 2019, sections 2.3-2.4, figure 2a).

    Any spatial size works: the image is padded at its high ends to a multiple of 8 inside, and the answers are cropped.

    Args:
      input_shape: (depth, height, width, channels), or (height, width, channels) for the 2D network of table 1; None
        leaves an axis free.
      variant: a row of tables 1 and 2, see `VARIANTS`.
      base_filters: channels of the first stage; the paper has 32, all others follow.
      attention_kernel: "paper" (3 in every module) or "code" (5 in SAM 1, UAM 1 and UAM 2, as the authors published).
      normalization: "instance" (statistics of the volume, as the authors ran it) or "batch".
      initializer: "he" or "paper" (truncated normal of SD 0.001, bias 0.01).

    Returns:
      Functional model: image (batch, *spatial, channels) -> dict of float32 logits with 2 channels: "logits" at the
        same
      size and, where the variant is deeply supervised, "logits_half" and "logits_quarter" at ceil(size / 2) and / 4.

    Raises:
      ValueError: unknown variant, attention kernel, normalization or initializer (the message lists the known ones).
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant={variant!r}: expected one of {', '.join(VARIANTS)}.")
    if attention_kernel not in ATTENTION_KERNELS:
        raise ValueError(
            f"attention_kernel={attention_kernel!r}: expected one of {', '.join(ATTENTION_KERNELS)}."
        )
    parts, kernels = VARIANTS[variant], ATTENTION_KERNELS[attention_kernel]
    block = {"normalization": normalization, "initializer": initializer}
    attention = {"initializer": initializer, "filters": 2 * base_filters, "inner": base_filters}

    image = keras.Input(input_shape, name="image")
    x = layers.PadToMultiple(8)(image)

    # Encoder
    features = []
    for units, kernel in ENCODER:
        x = layers.conv_block(x, units * base_filters, kernel, **block)
        x = layers.conv_block(x, units * base_filters, kernel, **block)
        features.append(x)
        x = layers.max_pool(x)
    units, kernel = BOTTOM
    x = layers.conv_block(x, units * base_filters, kernel, **block)
    x = layers.conv_block(x, units * base_filters, kernel, **block)

    # Decoder: deepest scale first
    supervised = []
    for scale in (1, 2, 3):
        stage = 3 - scale
        units, kernel = DECODER[stage]
        x = layers.deconv_block(x, units * base_filters, kernel, **block)
        if scale in parts["skips"]:
            skip = features[stage]
            if scale in parts["sam"]:
                skip = layers.attention_module(skip, kernels["sam"][scale], **attention)
            x = keras.layers.Concatenate()([x, skip])
        if scale in parts["uam"]:
            x = layers.attention_module(x, kernels["uam"][scale], **attention)
            supervised.append(x)
        else:
            # Table 2's note: without the UAM, the side branch hangs on the concatenation itself.
            supervised.append(x)
            x = layers.conv_block(x, 2 * base_filters, ENCODER[stage][1], **block)

    # Heads; float32 under mixed precision too, for the softmax
    def head(x, stride, name):
        logits = layers.conv(x, 2, 1, initializer, dtype="float32")
        return layers.CropLike(stride, name=name, dtype="float32")([logits, image])

    outputs = {"logits": head(x, 1, "logits")}
    if parts["deep_supervision"]:
        outputs["logits_half"] = head(supervised[1], 2, "logits_half")
        outputs["logits_quarter"] = head(supervised[0], 4, "logits_quarter")
    return keras.Model(image, outputs, name=variant)
