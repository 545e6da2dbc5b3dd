"""From cached cases to batches, in TensorFlow ops alone.

A case is decoded once into a folder of arrays, of which a pass reads what it sees. The order of
samples and every random number follow from (seed, index of the sample) alone, so a run that resumes
at step n sees what an unbroken run sees there, and n workers together see what one sees with n
times the batch.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tf_autoctx.data import arrays, augment
from tf_autoctx.data.arrays import Stored
from tf_autoctx.errors import FieldError, UserError

Case = Mapping[str, Any]  # of arrays, and a tuple of cases under "others"
Sample = dict[str, Any]  # of tensors

# Kinds of tensors of a case and their specs; a number after the kind ("image_2") is a level. Images
# of volumes may have several channels, see `spec`.
KINDS = {
    "image": tf.TensorSpec([None, None, None, 1], tf.float32),
    "label": tf.TensorSpec([None, None, None, 1], tf.uint8),
    "context": tf.TensorSpec([None, None, None, 1], tf.float32),
    "places": tf.TensorSpec([None, None, 3], tf.float32),
    "spacing": tf.TensorSpec([None], tf.float32),
    "extent": tf.TensorSpec([None], tf.float32),
    "pixel": tf.TensorSpec([2], tf.float32),
    "image2d": tf.TensorSpec([None, None, 1], tf.float32),
    "label2d": tf.TensorSpec([None, None, 1], tf.uint8),
}
LAYOUT = 4  # of cached files; those of another are made anew


def store(path: str | pathlib.Path, tensor: Any, chunk: Sequence[int | None] = ()) -> None:
    """Writes one tensor of a case to `path`, in chunks of which each has its checksum; see
    `arrays.write`."""
    arrays.write(path, tensor, chunk)


def stored(path: str | tf.Tensor, name: str, channels: int = 1) -> tf.Tensor:
    """The tensor of a name ("image", "image_2": see `spec`) at `path`, in eager or graph mode.

    Raises:
      UserError: the file is missing, or not what was written; in a graph a TensorFlow error, see
        `fault`.
    """
    try:
        return Stored(path, spec(name, channels)).whole()
    except tf.errors.OpError as error:
        raise fault(error) or error from None


def spec(name: str, channels: int = 1) -> tf.TensorSpec:
    """What a tensor of a name is, see `KINDS`; an image of so many channels."""
    kind = name.split("_")[0]
    if kind != "image":
        return KINDS[kind]
    return tf.TensorSpec([*KINDS[kind].shape[:-1], channels], KINDS[kind].dtype)


def size(path: str, name: str) -> tuple[int, ...]:
    """Spatial size of a stored tensor, of which nothing else is read.

    Raises:
      UserError: see `stored`.
    """
    try:
        return tuple(Stored(path, spec(name)).shape().numpy()[:-1].tolist())
    except tf.errors.OpError as error:
        raise fault(error) or error from None


def fault(error: Exception) -> UserError | None:
    """What to tell of a TensorFlow error by a file of `stored`; None where it is no such error."""
    begin, end = arrays.DAMAGED
    named = re.search(f"{begin}(.*?){end}", str(error), re.DOTALL)
    if not named:
        return None
    return damaged(pathlib.Path(named[1]))


def damaged(path: pathlib.Path) -> UserError:
    """What to tell of a file of a case that cannot be used."""
    return UserError(
        f"{path}: missing, cut short or damaged; delete the folder {path.parent} and run the "
        "training again, which makes it anew."
    )


def case(files: Mapping[str, Any], channels: int = 1) -> dict[str, Any]:
    """The arrays of {name: path}, of which nothing has been read, images of so many channels; a
    "context" of "" is 0, on the image's grid."""
    opened = {
        name: Stored(path, spec(name, channels))
        for name, path in files.items()
        if name != "context"
    }
    if "context" in files:
        opened["context"] = _Context(files["context"], opened["image"])
    return opened


class _Context(Stored):
    """The context of a case."""

    def __init__(self, path: str | tf.Tensor, image: Stored) -> None:
        super().__init__(path, spec("context"))
        self._is_zero, self._image = tf.equal(path, ""), image

    def shape(self) -> tf.Tensor:
        return tf.concat([self._image.shape()[:-1], [1]], 0)

    def whole(self) -> tf.Tensor:
        return self._or_zeros(super().whole, self.shape())

    def cut(self, low: Any, size: Any) -> tf.Tensor:
        return self._or_zeros(functools.partial(super().cut, low, size), tf.concat([size, [1]], 0))

    def _or_zeros(self, read: Callable[[], tf.Tensor], shape: tf.Tensor) -> tf.Tensor:
        context = tf.cond(self._is_zero, functools.partial(tf.zeros, shape), read)
        return tf.ensure_shape(context, self._spec.shape)


def whole(case: Case) -> Sample:
    """All of a case, and of those under "others"."""
    return {
        name: tuple(map(whole, array)) if isinstance(array, tuple) else array.whole()
        for name, array in case.items()
    }


def sample(files: Mapping[str, Any], channels: int = 1) -> Sample:
    """All of a case from {name: path}, see `case`."""
    return whole(case(files, channels))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Order:
    """Which samples the batches of a training have, and in what order.

    Every epoch is a new permutation of the cases; step n takes samples n * `per_step` and on. What
    does not fill a last step is left out of the epoch, so that all samples of a step are of
    different cases, as long as there are as many.

    Attributes:
      seed: integer.
      first_step, steps: the batches are those of the steps `first_step` .. `steps`.
      batch_size: samples per replica. Above 1, all samples must have one shape.
      replicas: replicas of all workers together.
      worker, workers: which part of the samples is this process's, of how many.
      others: further samples that come with each sample, under the key "others", a tuple: random
        samples of the cases that are not in this step.
    """

    seed: int
    first_step: int = 0
    steps: int
    batch_size: int = 1
    replicas: int = 1
    worker: int = 0
    workers: int = 1
    others: int = 0

    @property
    def per_step(self) -> int:
        """Samples of all replicas in a step."""
        return self.batch_size * self.replicas

    def numbers(self) -> np.ndarray:
        """(samples of this worker,) int64, counted from the first step of the training."""
        every = np.arange(self.first_step * self.per_step, self.steps * self.per_step)
        of_workers = every.reshape(-1, self.workers, self.per_step // self.workers)
        return of_workers[:, self.worker].ravel().astype(np.int64)


def training(
    files: Mapping[str, Sequence[str]],
    read: Callable[[Case, tf.Tensor], Sample],
    order: Order,
    augment: Callable[[Sample, tf.Tensor], Sample] | None = None,
    channels: int = 1,
) -> tf.data.Dataset:
    """Batches for a training.

    Args:
      files: {"image": [path, ...], "label": [...], ...}, one entry per case, see `case`.
      read: (case, seed of shape (2,)) -> what one pass sees of a case.
      order: which samples they have.
      augment: (sample, seed of shape (2,)) -> sample, the random changes; None: they are made
        later, by `augmented`.
      channels: of images.

    Returns:
      tf.data.Dataset of dicts of (batch_size, *spatial, channels) tensors, one element per replica
      and step; of pairs of such a dict and of seeds (batch_size, 2), where `augment` is None.
    """
    cases, per_step = len(next(iter(files.values()))), order.per_step
    per_epoch = cases // per_step * per_step or cases
    columns = {kind: tf.constant(paths) for kind, paths in files.items()}

    # Autograph takes longer than the tracing itself, and changes nothing.
    @tf.autograph.experimental.do_not_convert
    def prepare(number: tf.Tensor) -> Any:
        epoch, place = number // per_epoch, tf.cast(number % per_epoch, tf.int32)
        shuffled = tf.random.experimental.stateless_shuffle(tf.range(cases), [order.seed, epoch])
        own_seed = tf.stack([tf.constant(order.seed, tf.int64), number])

        def draw(place: tf.Tensor) -> dict[str, Any]:
            drawn = {kind: paths[shuffled[place]] for kind, paths in columns.items()}
            return case(drawn, channels)

        drawn = draw(place)
        if order.others:
            # The first place that is not in this step
            after = place // per_step * per_step + per_step
            away = tf.random.stateless_uniform(
                [order.others], own_seed, 0, cases - per_step, tf.int32
            )
            drawn["others"] = tuple(draw((after + away[i]) % cases) for i in range(order.others))
        seen = read(drawn, own_seed)
        return augment(seen, own_seed) if augment else (seen, own_seed)

    samples = tf.data.Dataset.from_tensor_slices(order.numbers()).map(
        prepare, num_parallel_calls=tf.data.AUTOTUNE
    )
    return samples.batch(order.batch_size, drop_remainder=True).prefetch(4)


def augmented(batch: tuple[Sample, tf.Tensor], augment: Callable[..., Sample]) -> Sample:
    """A batch of `training` after its random changes, the same as if they were made there.

    Args:
      batch: samples and seeds.
      augment: see `training`. It sees labels as float32: a GPU looks up no integers of 8 bits.
    """
    samples, seeds = batch
    labels = [name for name in samples if getattr(samples[name], "dtype", None) == tf.uint8]
    seen = samples | {name: tf.cast(samples[name], tf.float32) for name in labels}
    changed = [
        augment(tf.nest.map_structure(operator.itemgetter(number), seen), seed)
        for number, seed in enumerate(tf.unstack(seeds))
    ]
    stacked = tf.nest.map_structure(_stacked, *changed)
    return stacked | {name: tf.cast(stacked[name], tf.uint8) for name in labels if name in stacked}


def _stacked(*tensors: tf.Tensor) -> tf.Tensor:
    return tf.stack(tensors)


def random_patch(
    case: Case, seed: tf.Tensor, size: Sequence[int | None], share: float = 0.0
) -> Sample:
    """A patch at a random place, the same in all arrays but "places" and "spacing", of which there
    is none.

    Args:
      case: "image" and whatever else lies on its grid; for a `share`, "places" too.
      seed: 2 integers.
      size: edges along z, y and x; None, and an edge beyond the volume's, is all of an axis.
      share: see `random_corner`.
    """
    whole = tf.unstack(case["image"].shape()[:3])
    edges = tf.stack([tf.minimum(n if edge is None else edge, n) for edge, n in zip(size, whole)])
    corner = random_corner(case, edges, seed, share)
    return {
        name: array.cut(corner, edges)
        for name, array in case.items()
        if name not in ("places", "spacing")
    }


def random_corner(case: Case, edges: Any, seed: tf.Tensor, share: float = 0.0) -> tf.Tensor:
    """(3,) int32, first voxel of a box of such edges in a volume: anywhere, or, of this share of
    boxes, so that a voxel of a structure is in its middle, as far as the volume goes."""
    free = case["image"].shape()[:3] - edges
    corner = tf.random.stateless_uniform([3], seed, 0, tf.int32.max, tf.int32) % (free + 1)
    if not share:
        return corner
    own = tf.random.fold_in(seed, augment.ABOUT)
    seeds = tf.unstack(tf.random.experimental.stateless_split(own, 3))
    middle = tf.cast(random_place(case["places"].whole(), seeds[:2]), tf.int32)
    about = tf.clip_by_value(middle - edges // 2, 0, free)
    return tf.where(tf.random.stateless_uniform([], seeds[2]) < share, about, corner)


def random_place(places: tf.Tensor, seeds: Sequence[tf.Tensor]) -> tf.Tensor:
    """(3,) float32, one of the voxels of `subvolumes.places`, of a structure drawn evenly among
    those that are there; by two seeds."""
    present = tf.cast(tf.math.is_finite(places[:, 0, 0]), tf.float32)
    structure = tf.random.stateless_categorical(tf.math.log(present)[None], 1, seeds[0])[0, 0]
    place = tf.random.stateless_uniform([], seeds[1], 0, tf.shape(places)[1], tf.int32)
    return places[tf.cast(structure, tf.int32), place]


def require_one_shape(shapes: Iterable[tuple[int, ...]], batch_size: int) -> None:
    """Refuses a batch of samples that do not stack.

    Raises:
      FieldError: batch_size above 1 and more than one shape.
    """
    distinct = sorted(set(shapes))
    if batch_size > 1 and len(distinct) > 1:
        raise FieldError(
            "batch_size",
            batch_size,
            f"training images have different sizes, such as {distinct[0]} and {distinct[1]}; "
            "use `batch_size=1` (per replica) or images of one size.",
        )
