"""The sliding-window peer of the embryo cascade: the benchmark of Xu et al. 2020, table 1 (after
Qiu et al. 2018).

A localiser looks through a window at every place of the volume; where it is surest, a small VNet
segments the ventricle. Another one segments the body in overlapping windows. All see volumes that
`Refinement.preprocess` prepared.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tf_autoctx.data import pipeline
from tf_autoctx.models import tiling
from tf_autoctx.models.localiser import folded, localiser
from tf_autoctx.models.vnet import vnet
from tf_autoctx.systems.embryo.configuration import METHOD, SlidingWindows
from tf_autoctx.systems.embryo.segmentation import Refinement
from tf_autoctx.systems.shared.stage import Networks, Tensor

CLASSES = {"body": 1, "ventricle": 2}  # of `EmbryoSystem.prepare`


# Networks


def new_localiser(peer: SlidingWindows) -> keras.Model:
    """A new localiser, under the current Keras dtype policy."""
    return localiser(peer.window, initializer=peer.initializer, bias=peer.bias)


def new_vnet(peer: SlidingWindows, name: str) -> keras.Model:
    """A new small VNet of one output, likewise."""
    return vnet(outputs=1, options=peer.vnet, name=name)


def new_networks(peer: SlidingWindows) -> Networks:
    """{"localiser", "ventricle", "body": new network}."""
    return {
        "localiser": new_localiser(peer),
        "ventricle": new_vnet(peer, "ventricle"),
        "body": new_vnet(peer, "body"),
    }


# Windows


def corners(size: Sequence[int], window: int, stride: int) -> np.ndarray:
    """Low corners (number, 3) int32 of all windows that a volume of spatial `size` holds, the last
    axis fastest.

    An axis of less than a window has one, at 0. Up to stride - 1 voxels at a high end are in no
    window.
    """
    axes = [np.arange(0, max(n - window, 0) + 1, stride) for n in size]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3).astype(np.int32)


def cut(volume: Tensor, corner: Tensor, window: int) -> Tensor:
    """(window, window, window, channels) of a volume (depth, height, width, channels), from its low
    corner."""
    return tf.slice(volume, tf.concat([corner, [0]], 0), (*(window,) * 3, volume.shape[-1]))


def padded(volume: Tensor, window: int) -> Tensor:
    """A volume (depth, height, width, channels) with zeros at its high ends where it is smaller
    than the window."""
    missing = tf.maximum(window - tf.shape(volume)[:3], 0)
    return tf.pad(volume, [*([0, n] for n in tf.unstack(missing)), [0, 0]])


def extent(mask: Tensor) -> tuple[Tensor, Tensor]:
    """First and last index, (3,) int32 each, of a bool mask (depth, height, width); an empty one
    counts as full."""
    covered = [
        tf.cast(tf.reduce_any(mask, [a for a in range(3) if a != axis]), tf.int32)
        for axis in range(3)
    ]
    first = tf.stack([tf.argmax(line, output_type=tf.int32) for line in covered])
    after = tf.stack([tf.argmax(line[::-1], output_type=tf.int32) for line in covered])
    return first, tf.shape(mask) - 1 - after


def holding(mask: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Lowest and highest corner, (3,) int32 each, of the windows in the volume that hold all of a
    mask.

    Along an axis where it is larger than the window, those of the windows that hold nothing else.

    Args:
      mask: (depth, height, width) bool, no axis below the window; an empty one allows any window.
      window: edge.
    """
    first, last = extent(mask)
    ends = last + 1 - window, first
    low, high = (tf.clip_by_value(end, 0, tf.shape(mask) - window) for end in ends)
    return tf.minimum(low, high), tf.maximum(low, high)


def inside(mask: Tensor, window: int, corners_: Tensor) -> Tensor:
    """(number,) bool: whether each window (corners (number, 3)) holds all of a mask that is not
    empty."""
    first, last = extent(mask)
    held = tf.reduce_all((corners_ <= first) & (last < corners_ + window), axis=-1)
    return held & tf.reduce_any(mask)


# Segmentation


class Localised(NamedTuple):
    """Where the ventricle is.

    Attributes:
      corner: low corner (3,) of the best window.
      seconds: that the search took.
      evaluated: how many windows were evaluated.
      total: how many windows the volume has.
    """

    corner: np.ndarray
    seconds: float
    evaluated: int
    total: int

    def extrapolated(self, seconds: float) -> float:
        """What a pass that took `seconds` in all would have taken with all windows evaluated."""
        return seconds + self.seconds * (self.total / self.evaluated - 1)


class Search:
    """The search for the window that most surely holds the ventricle.

    Args:
      network: windows (batch, window, window, window, 1) -> logits (batch, 1).
      window, stride: see `SlidingWindows`.
      window_batch: windows in one pass of the network.
    """

    def __init__(
        self, network: Callable[..., Tensor], window: int, stride: int, window_batch: int
    ) -> None:
        self._window, self._stride, self._window_batch = window, stride, window_batch

        corners_spec = tf.TensorSpec((None, 3), tf.int32)

        @tf.function(input_signature=[pipeline.KINDS["image"], corners_spec], autograph=False)
        def logits(image: Tensor, corners_: Tensor) -> Tensor:
            def window_at(corner: Tensor) -> Tensor:
                return cut(image, corner, window)

            spec = tf.TensorSpec((window, window, window, 1), tf.float32)
            windows = tf.map_fn(window_at, corners_, fn_output_signature=spec)
            return network(windows, training=False)[:, 0]

        self._logits = logits

    def __call__(self, image: Tensor, fraction: float = 1.0) -> Localised:
        """Looks through the windows of a volume.

        Args:
          image: (depth, height, width, 1) float32, preprocessed, no axis below the window.
          fraction: of the windows that are evaluated, evenly spread, one at least.

        Returns:
          The best of them; the first of equals.
        """
        begin = time.perf_counter()
        every = corners(image.shape[:3], self._window, self._stride)
        number = max(1, round(fraction * len(every)))
        chosen = every[np.linspace(0, len(every) - 1, number).round().astype(int)]
        logits = [
            self._logits(image, chosen[i : i + self._window_batch]).numpy()
            for i in range(0, number, self._window_batch)
        ]
        corner = chosen[np.argmax(np.concatenate(logits))]
        return Localised(corner, time.perf_counter() - begin, number, len(every))


def probability(network: keras.Model, window: int | None = None) -> Callable[[Tensor], Tensor]:
    """image (depth, height, width, 1) -> probability of the same shape, float32, in a graph.

    Args:
      network: one of the small VNets.
      window: edge of the windows that it sees, which overlap by half; None: it sees the whole
        image.
    """

    def of_batch(x: Tensor) -> Tensor:
        return ops.sigmoid(network(x, training=False))

    @tf.function(input_signature=[pipeline.KINDS["image"]], autograph=False)
    def of_image(image: Tensor) -> Tensor:
        x = image[None]
        return (tiling.tiled(of_batch, x, window, window // 2) if window else of_batch(x))[0]

    return of_image


class WindowedSegmentation:
    """The peer's segmentation of a volume.

    Args:
      refinement: of the run beside it, for the preprocessing and the classes.
      peer: its configuration.
      networks: {"localiser", "ventricle", "body": network}.
      window_batch: windows in one pass of the localiser.
    """

    def __init__(
        self, refinement: Refinement, peer: SlidingWindows, networks: Networks, window_batch: int
    ) -> None:
        self._values, window = np.array([0, *refinement.labels], np.uint8), peer.window
        self._search = Search(folded(networks["localiser"]), window, peer.stride, window_batch)
        # A graph each: in one, TensorFlow would run both networks at once, in the memory of both.
        self._ventricle = probability(networks["ventricle"])
        self._body = probability(networks["body"], window)
        image, triple = pipeline.KINDS["image"], tf.TensorSpec([3], tf.int32)

        @tf.function(input_signature=[tf.TensorSpec((None, None, None))], autograph=False)
        def prepared(voxels: Tensor) -> Tensor:
            return padded(refinement.preprocess(voxels[None, ..., None])[0], window)

        @tf.function(input_signature=[image, triple], autograph=False)
        def cut_out(image: Tensor, corner: Tensor) -> Tensor:
            return cut(image, corner, window)

        @tf.function(input_signature=[image, image, triple, triple], autograph=False)
        def joined(body: Tensor, ventricle: Tensor, corner: Tensor, size: Tensor) -> Tensor:
            after = tf.shape(body)[:3] - corner - window
            paddings = tf.concat([tf.stack([corner, after], axis=1), [[0, 0]]], axis=0)
            both = tf.concat([body, tf.pad(ventricle, paddings)], axis=-1)
            return tf.slice(refinement.classes(both[None])[0, ..., 0], [0, 0, 0], size)

        self._prepared, self._cut_out, self._joined = prepared, cut_out, joined

    def __call__(self, voxels: np.ndarray, fraction: float = 1.0) -> tuple[Tensor, Localised]:
        """Segments a raw volume.

        Args:
          voxels: (depth, height, width) float32.
          fraction: of the localiser's windows that are evaluated.

        Returns:
          (classes (depth, height, width) uint8 as `Refinement.classes`, where the ventricle is).
        """
        image = self._prepared(voxels)
        localised = self._search(image, fraction)
        corner = localised.corner
        ventricle = self._ventricle(self._cut_out(image, corner))
        return self._joined(self._body(image), ventricle, corner, voxels.shape), localised

    def methods(
        self, voxels: np.ndarray, spacing: Sequence[float] | None
    ) -> dict[str, dict[str, Any]]:
        """An `Evaluator`: {the peer's method: {"label": label values}}, all windows."""
        classes, _ = self(voxels)
        return {METHOD: {"label": self._values[classes.numpy()]}}
