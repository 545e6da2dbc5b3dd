"""The sliding-window peer of the embryo cascade: the benchmark of Xu et al. 2020, table 1 (after Qiu et al. 2018).

A localiser looks through a window at every place of the volume; where it is surest, a small VNet segments the
ventricle. Another one segments the body in overlapping windows. All see volumes that `embryo.Embryo.preprocess`
prepared.
"""

import dataclasses
import pathlib
import time
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from absl import logging
from keras import ops

from tf_autoctx import losses, metrics, models
from tf_autoctx.data import pipeline
from tf_autoctx.errors import UserError
from tf_autoctx.models.localiser import folded
from tf_autoctx.systems import stages, tiling

NAME = "sliding_windows"
METHOD = "sliding windows"
NETWORKS = ("localiser", "ventricle", "body")
CLASSES = {"body": 1, "ventricle": 2}  # of `refinement.prepared`
SAMPLES = 8  # windows of one augmented volume that the localiser sees in a step


@dataclasses.dataclass(frozen=True)
class SlidingWindows:
    """The peer's configuration, one field a flag of the same name of the peer's script or of the embryo run.

    Attributes:
      window: edge of every window in voxels, a multiple of 16; the paper's source has 64.
      stride: voxels from one window of the localiser to the next.
      base_filters, depth, kernel, normalization, initializer: of the two small VNets, see `models.vnet`; the
        initializer is the localiser's too.

    Raises:
      ValueError: a value out of range (the message names the field).
    """

    window: int
    stride: int
    base_filters: int
    depth: int
    kernel: int
    normalization: str
    initializer: str

    def __post_init__(self):
        if self.window < 16 or self.window % 16:
            raise ValueError(f"window={self.window}: expected a multiple of 16 voxels.")
        if self.stride < 1:
            raise ValueError(f"stride={self.stride}: expected at least 1 voxel.")

    def network(self, name):
        """A new network of `NETWORKS`, under the current Keras dtype policy."""
        if name == "localiser":
            return models.localiser(self.window, initializer=self.initializer)
        return models.vnet(
            outputs=1,
            base_filters=self.base_filters,
            depth=self.depth,
            kernel=self.kernel,
            normalization=self.normalization,
            initializer=self.initializer,
            name=name,
        )


def beside(system, window, stride):
    """`SlidingWindows` that go with an `embryo.Embryo`: its VNets at half their width."""
    fields = {
        name: getattr(system, name) for name in ("depth", "kernel", "normalization", "initializer")
    }
    return SlidingWindows(
        window=window, stride=stride, base_filters=max(1, system.base_filters // 2), **fields
    )


# Windows


def corners(size, window, stride):
    """Low corners (number, 3) int32 of all windows that a volume of spatial `size` holds, the last axis fastest.

    An axis of less than a window has one, at 0. Up to stride - 1 voxels at a high end are in no window.
    """
    axes = [np.arange(0, max(n - window, 0) + 1, stride) for n in size]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3).astype(np.int32)


def cut(volume, corner, window):
    """(window, window, window, channels) of a volume (depth, height, width, channels), from its low corner."""
    return tf.slice(volume, tf.concat([corner, [0]], 0), (*(window,) * 3, volume.shape[-1]))


def padded(volume, window):
    """A volume (depth, height, width, channels) with zeros at its high ends where it is smaller than the window."""
    missing = tf.maximum(window - tf.shape(volume)[:3], 0)
    return tf.pad(volume, [*([0, n] for n in tf.unstack(missing)), [0, 0]])


def extent(mask):
    """First and last index, (3,) int32 each, of a bool mask (depth, height, width); an empty one counts as full."""
    covered = [
        tf.cast(tf.reduce_any(mask, [a for a in range(3) if a != axis]), tf.int32)
        for axis in range(3)
    ]
    first = tf.stack([tf.argmax(line, output_type=tf.int32) for line in covered])
    after = tf.stack([tf.argmax(line[::-1], output_type=tf.int32) for line in covered])
    return first, tf.shape(mask) - 1 - after


def holding(mask, window):
    """Lowest and highest corner, (3,) int32 each, of the windows in the volume that hold all of a mask.

    Along an axis where it is larger than the window, those of the windows that hold nothing else.

    Args: mask (depth, height, width) bool, no axis below the window; an empty one allows any window.
    """
    first, last = extent(mask)
    ends = last + 1 - window, first
    low, high = (tf.clip_by_value(end, 0, tf.shape(mask) - window) for end in ends)
    return tf.minimum(low, high), tf.maximum(low, high)


def inside(mask, window, corners_):
    """(number,) bool: whether each window (corners (number, 3)) holds all of a mask that is not empty."""
    first, last = extent(mask)
    held = tf.reduce_all((corners_ <= first) & (last < corners_ + window), axis=-1)
    return held & tf.reduce_any(mask)


# Training


def samples(name, window, motion):
    """A `prepare` of `stages.train`: what the network of a name of `NETWORKS` sees of one volume.

    Args:
      motion: `augment.RigidMotion` of the whole volume.

    Returns:
      (sample, seed) -> for the localiser {"windows": (SAMPLES, window, window, window, 1), "target": (SAMPLES,)
      float32, 1 where the window holds the whole ventricle}, which at least half of them do if any can; else {"image",
      "label": (window, window, window, 1)}, the ventricle's with all of it inside, the body's anywhere.
    """

    def prepare(sample, seed):
        seeds = tf.unstack(tf.random.experimental.stateless_split(seed, 2))
        moved = motion(sample, seeds[0])
        image, label = (padded(moved[key], window) for key in ("image", "label"))
        ventricle = label[..., 0] == CLASSES["ventricle"]
        number = SAMPLES if name == "localiser" else 1
        about = number // 2 if name == "localiser" else int(name == "ventricle")
        low, high = holding(ventricle, window)
        half = tf.range(number)[:, None] < about
        low = tf.where(half, low, 0)
        high = tf.where(half, high, tf.shape(ventricle) - window)
        drawn = low + tf.random.stateless_uniform(
            [number, 3], seeds[1], 0, tf.int32.max, tf.int32
        ) % (high - low + 1)
        if name == "localiser":
            windows = tf.stack([cut(image, corner, window) for corner in tf.unstack(drawn)])
            return {
                "windows": windows,
                "target": tf.cast(inside(ventricle, window, drawn), tf.float32),
            }
        return {"image": cut(image, drawn[0], window), "label": cut(label, drawn[0], window)}

    return prepare


def sample_losses(name, network, batch):
    """(batch,) float32: binary cross entropy of the localiser, Dice loss of a VNet, on batches of `samples`."""
    if name == "localiser":
        windows, target = batch["windows"], batch["target"]
        logits = network(ops.reshape(windows, (-1, *windows.shape[2:])), training=True)
        logits = ops.reshape(logits, ops.shape(target))
        return ops.mean(ops.softplus(logits) - target * logits, axis=-1)
    probability = ops.sigmoid(network(batch["image"], training=True))
    return losses.SquaredDiceLoss()(batch["label"] == CLASSES[name], probability)


def warn_of_large(window, training):
    """Warns of every training case whose ventricle is larger than the window."""
    for entry in training:
        first, last = extent(
            pipeline.stored(entry["label"], "label")[..., 0] == CLASSES["ventricle"]
        )
        edges = (last - first + 1).numpy().tolist()
        if max(edges) > window:
            case = pathlib.Path(entry["label"]).parent.name
            logging.warning(
                "%s: the ventricle is %s voxels; no window of %d holds it.", case, edges, window
            )


def train(name, peer, training, validation, run, strategy, settings, motion):
    """Trains one network of `NETWORKS`, or goes on with it, or finds it finished.

    The localiser ends with its last weights: its share of right answers would be 1 long before it is sure.

    Args:
      peer: `SlidingWindows`.
      training, validation: files of `caching.cached` with `refinement.prepared`; validation may be empty.
      run: folder of the peer, with a folder a network.
      strategy, settings: see `stages.train`; motion: `augment.RigidMotion`.

    Returns:
      The finished network in float32.

    Raises:
      UserError: see `stages.train`.
    """
    if network := stages.finished(pathlib.Path(run) / name):
        return network
    if name == "localiser":
        validation, settings = [], dataclasses.replace(settings, patience=0)

    def score(network):
        answer = probability(network, None if name == "ventricle" else peer.window)

        def dice(sample):
            image, truth = (padded(sample[key], peer.window) for key in ("image", "label"))
            truth = truth[..., 0] == CLASSES[name]
            if name == "ventricle":
                corner = tf.add(*holding(truth, peer.window)) // 2
                image, truth = (
                    cut(image, corner, peer.window),
                    cut(truth[..., None], corner, peer.window)[..., 0],
                )
            return metrics.dice(answer(image)[..., 0].numpy() > 0.5, truth.numpy())

        return dice

    return stages.train(
        pathlib.Path(run) / name,
        lambda: peer.network(name),
        lambda network, batch: sample_losses(name, network, batch),
        [{key: entry[key] for key in ("image", "label", "spacing")} for entry in training],
        samples(name, peer.window, motion),
        validation,
        score,
        seed=settings.seed * 1000 + 100 + NETWORKS.index(name),  # none of the cascade's
        strategy=strategy,
        settings=settings,
    )


def finished(run):
    """{name: network} of a peer's folder.

    Raises:
      UserError: a network is not finished or cannot be read.
    """
    networks = {name: stages.finished(pathlib.Path(run) / name) for name in NETWORKS}
    for name, network in networks.items():
        if network is None:
            raise UserError(
                f"{run}/{name}/model.keras: not finished; run eval/sliding_windows.py again to go on."
            )
    return networks


# Inference


class Localised(NamedTuple):
    """Where the ventricle is: the low corner (3,) of the best of `evaluated` of `total` windows, after `seconds`."""

    corner: np.ndarray
    seconds: float
    evaluated: int
    total: int

    def extrapolated(self, seconds):
        """What a pass that took `seconds` in all would have taken with all windows evaluated."""
        return seconds + self.seconds * (self.total / self.evaluated - 1)


def localiser(network, window, stride, window_batch):
    """Makes the search for the window that most surely holds the ventricle.

    Args:
      network: windows (batch, window, window, window, 1) -> logits (batch, 1).
      window_batch: windows in one pass of the network.

    Returns:
      localise(image, fraction=1.0) -> `Localised`: image (depth, height, width, 1) float32, preprocessed, no axis below
      the window; `fraction` of the windows are evaluated, evenly spread, one at least. The first of equals wins.
    """

    @tf.function(input_signature=[pipeline.KINDS["image"], tf.TensorSpec((None, 3), tf.int32)])
    def logits(image, corners_):
        windows = tf.map_fn(
            lambda corner: cut(image, corner, window),
            corners_,
            fn_output_signature=tf.TensorSpec((window, window, window, 1), tf.float32),
        )
        return network(windows, training=False)[:, 0]

    def localise(image, fraction=1.0):
        begin = time.perf_counter()
        every = corners(image.shape[:3], window, stride)
        number = max(1, round(fraction * len(every)))
        chosen = every[np.linspace(0, len(every) - 1, number).round().astype(int)]
        found = [
            logits(image, chosen[i : i + window_batch]).numpy()
            for i in range(0, number, window_batch)
        ]
        corner = chosen[np.argmax(np.concatenate(found))]
        return Localised(corner, time.perf_counter() - begin, number, len(every))

    return localise


def probability(network, window=None):
    """Makes image (depth, height, width, 1) -> probability of the same shape, float32, in a graph.

    Args:
      network: one of the small VNets.
      window: edge of the windows that it sees, which overlap by half; None: it sees the whole image.
    """

    def answer(x):
        return ops.sigmoid(network(x, training=False))

    @tf.function(input_signature=[pipeline.KINDS["image"]])
    def whole(image):
        x = image[None]
        return (tiling.tiled(answer, x, window, window // 2) if window else answer(x))[0]

    return whole


def segmentor(system, peer, networks, window_batch):
    """Makes the peer's segmentation of a volume.

    Args:
      system: `embryo.Embryo` of the run beside it; peer: `SlidingWindows`.
      networks: {name: network} of `NETWORKS`.
      window_batch: see `localiser`.

    Returns:
      segment(voxels, fraction=1.0) -> (classes (depth, height, width) uint8 as `embryo.Embryo.classes`, `Localised`):
      voxels (depth, height, width) float32, raw; `fraction` of the localiser's windows.
    """
    localise = localiser(folded(networks["localiser"]), peer.window, peer.stride, window_batch)
    ventricle_in, body_in = (
        probability(networks["ventricle"]),
        probability(networks["body"], peer.window),
    )

    def segment(voxels, fraction=1.0):
        image = padded(system.preprocess(tf.constant(voxels)[None, ..., None])[0], peer.window)
        found = localise(image, fraction)
        ventricle = ventricle_in(cut(image, found.corner, peer.window))
        after = image.shape[:3] - found.corner - peer.window
        ventricle = tf.pad(ventricle, [*zip(found.corner, after), (0, 0)])
        classes = system.classes(tf.concat([body_in(image), ventricle], -1)[None])[0, ..., 0]
        return classes[tuple(slice(n) for n in voxels.shape)], found

    return segment
