"""Localiser of the embryo system's sliding-window peer: is the whole ventricle in a window?"""

from __future__ import annotations

from typing import Any

import keras

from tf_autoctx.models import layers
from tf_autoctx.models.rematerialization import ends_block

STAGES = 5


def localiser(
    window: int = 64, *, filters: int = 16, initializer: str = "he", bias: bool = False
) -> keras.Model:
    """Classifier of windows (after Qiu et al. 2018, the benchmark of Xu et al. 2020, table 1).

    Five stages of 3x3x3 convolution, batch norm, ReLU and 2x pooling, then one linear unit. Without
    normalization, Adam at the cascade's rate of 1e-2 ends with the same logit for every window;
    statistics of the window would hide how bright it is.

    Args:
      window: edge of the window in voxels; an odd edge is padded when it is pooled, an edge of 1
        stays.
      filters: channels of every stage.
      initializer: see `layers.initializers`.
      bias: whether convolutions have a bias before their batch norm, see `options.BIAS`.

    Returns:
      Functional model: windows (batch, window, window, window, 1) -> float32 logits (batch, 1).

    Raises:
      ValueError: unknown initializer (the message lists the known ones).
    """
    image = keras.Input((window, window, window, 1), name="image")
    block, x = layers.Block("batch", initializer, bias), image
    for stage in range(1, STAGES + 1):
        x = block.conv(x, filters, 3, f"stage_{stage}")
        x = ends_block(keras.layers.MaxPooling3D(2, padding="same")(x))
    logit = keras.layers.Dense(1, dtype="float32", name="head")(keras.layers.Flatten()(x))
    return keras.Model(image, logit, name="localiser")


def folded(network: keras.Model) -> keras.Model:
    """A trained `localiser` without its batch norm: the same logits, 2 to 4 times as fast on a CPU.

    Scale and shift go into the kernel and the bias of the convolution before them.
    """
    x = image = keras.Input(network.input_shape[1:], name="image")
    weights: list[Any] = []  # arrays
    before: list[Any] = []  # those of the convolution: its kernel and, where it has one, its bias
    for layer in network.layers[1:]:
        if isinstance(layer, keras.layers.BatchNormalization):
            gamma, beta, mean, variance = layer.get_weights()
            scale = gamma / (variance + layer.epsilon) ** 0.5
            kernel, *bias = before
            weights += [kernel * scale, (sum(bias) - mean) * scale + beta]
        elif isinstance(layer, layers.Conv3D):
            x = layer.__class__.from_config({**layer.get_config(), "use_bias": True})(x)
            before = layer.get_weights()
        else:
            x = layer.__class__.from_config(layer.get_config())(x)
            weights += layer.get_weights()
    plain = keras.Model(image, x, name="localiser")
    plain.set_weights(weights)
    return plain
