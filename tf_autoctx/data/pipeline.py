"""From cached cases to batches, in TensorFlow ops alone.

A case is decoded once into a folder of serialized tensors. The order of samples and every random
number follow from (seed, index of the sample) alone, so a run that resumes at step n sees what an
unbroken run sees there, and n workers together see what one sees with n times the batch.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tf_autoctx.errors import FieldError, UserError
from tf_autoctx.files import replacing

Sample = dict[str, Any]  # of tensors, and a tuple of samples under "others"

# Kinds of tensors of a case and their specs; a number after the kind ("image_2") is a level.
KINDS = {
    "image": tf.TensorSpec([None, None, None, 1], tf.float32),
    "label": tf.TensorSpec([None, None, None, 1], tf.uint8),
    "context": tf.TensorSpec([None, None, None, 1], tf.float32),
    "places": tf.TensorSpec([None, None, 3], tf.float32),
    "spacing": tf.TensorSpec([3], tf.float32),
    "image2d": tf.TensorSpec([None, None, 1], tf.float32),
    "label2d": tf.TensorSpec([None, None, 1], tf.uint8),
}
CHECKSUM = 8  # bytes behind a serialized tensor
DAMAGED = ("damaged file <", "> of a case")  # before and after its path


def store(path: str | pathlib.Path, tensor: Any) -> None:
    """Writes one tensor of a case to `path`, with its checksum behind it; a file is there whole or
    not at all."""
    serialized = tf.io.serialize_tensor(tensor)
    with replacing(path) as partial:
        partial.write_bytes(serialized.numpy() + _checksum(serialized).numpy().tobytes())


def _checksum(serialized: tf.Tensor) -> tf.Tensor:
    """`CHECKSUM` bytes, uint8."""
    return tf.fingerprint(serialized[None], method="farmhash64")[0]


@tf.autograph.experimental.do_not_convert
def stored(path: str | tf.Tensor, name: str) -> tf.Tensor:
    """The tensor of a name ("image", "image_2": see `KINDS`) at `path`, in eager or graph mode.

    Raises:
      UserError: the file is missing, or not what was written; in a graph a TensorFlow error, see
        `fault`.
    """
    try:
        spec, content = KINDS[name.split("_")[0]], tf.io.read_file(path)
        length = tf.maximum(tf.strings.length(content) - CHECKSUM, 0)
        serialized = tf.strings.substr(content, 0, length)
        checksum = tf.io.decode_raw(tf.strings.substr(content, length, CHECKSUM), tf.uint8)
        whole = tf.reduce_all(tf.equal(_padded(checksum), _checksum(serialized)))
        told = tf.strings.join([DAMAGED[0], path, DAMAGED[1]])
        with tf.control_dependencies([tf.debugging.Assert(whole, [told])]):
            serialized = tf.identity(serialized)
        return tf.ensure_shape(tf.io.parse_tensor(serialized, spec.dtype), spec.shape)
    except tf.errors.OpError as error:
        raise fault(error) or error from None


def _padded(checksum: tf.Tensor) -> tf.Tensor:
    """Of a file that is shorter than a checksum, as long as one."""
    return tf.concat([checksum, tf.zeros(CHECKSUM, tf.uint8)], 0)[:CHECKSUM]


def fault(error: Exception) -> UserError | None:
    """What to tell of a TensorFlow error by a file of `stored`; None where it is no such error."""
    told = str(error)
    if named := re.search(f"{DAMAGED[0]}(.*?){DAMAGED[1]}", told, re.DOTALL):
        path = pathlib.Path(named[1])
    elif "; No such file or directory" in told:
        before = told.partition("; No such file or directory")[0]
        path = pathlib.Path(before.rpartition(": ")[2].rpartition("}} ")[2])
    else:
        return None
    return UserError(
        f"{path}: missing, cut short or damaged; delete the folder {path.parent} and run the "
        "training again, which makes it anew."
    )


def sample(files: Mapping[str, tf.Tensor]) -> Sample:
    """One sample from {name: path}; a "context" of "" is zeros of the image's shape."""
    loaded: Sample = {name: stored(path, name) for name, path in files.items() if name != "context"}
    if "context" in files:
        context = tf.cond(
            files["context"] == "",
            functools.partial(tf.zeros_like, loaded["image"]),
            functools.partial(stored, files["context"], "context"),
        )
        loaded["context"] = tf.ensure_shape(context, KINDS["context"].shape)
    return loaded


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
    augment: Callable[[Sample, tf.Tensor], Any],
    order: Order,
) -> tf.data.Dataset:
    """Batches for a training.

    Args:
      files: {"image": [path, ...], "label": [...], ...}, one entry per case, see `sample`.
      augment: (sample, seed of shape (2,)) -> sample.
      order: which samples they have.

    Returns:
      tf.data.Dataset of dicts of (batch_size, *spatial, channels) tensors, one element per replica
      and step.
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

        def draw(place: tf.Tensor) -> Sample:
            return sample({kind: paths[shuffled[place]] for kind, paths in columns.items()})

        drawn = draw(place)
        if order.others:
            # The first place that is not in this step
            after = place // per_step * per_step + per_step
            away = tf.random.stateless_uniform(
                [order.others], own_seed, 0, cases - per_step, tf.int32
            )
            drawn["others"] = tuple(draw((after + away[i]) % cases) for i in range(order.others))
        return augment(drawn, own_seed)

    samples = tf.data.Dataset.from_tensor_slices(order.numbers()).map(
        prepare, num_parallel_calls=tf.data.AUTOTUNE
    )
    return samples.batch(order.batch_size, drop_remainder=True).prefetch(4)


def random_patch(
    sample: Mapping[str, tf.Tensor], seed: tf.Tensor, size: Sequence[int | None]
) -> dict[str, tf.Tensor]:
    """A patch of spatial `size` (3 integers) at a random place, the same in all tensors.

    None keeps an axis.
    """
    whole = tf.shape(sample["image"])[:3]
    edges = tf.stack([whole[axis] if edge is None else edge for axis, edge in enumerate(size)])
    corner = tf.random.stateless_uniform([3], seed, 0, tf.int32.max, tf.int32) % (whole - edges + 1)
    cut = {
        k: tf.slice(v, tf.concat([corner, [0]], 0), tf.concat([edges, [1]], 0))
        for k, v in sample.items()
    }
    return {k: tf.ensure_shape(v, [*size, 1]) for k, v in cut.items()}


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
