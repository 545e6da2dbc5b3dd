"""Strategy, precision and seeds: what is set once, before the first model."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator

import keras
import tensorflow as tf

from tf_autoctx.errors import FieldError


def strategy(name: str) -> tf.distribute.Strategy:
    """The `tf.distribute` strategy of a name, see `RunOptions.strategy`.

    "auto" is "multi_worker" where TF_CONFIG names a cluster, "mirrored" where there is more than
    one GPU, else "single".

    Raises:
      UserError: "multi_worker" without a TF_CONFIG that names the cluster and this task.
    """
    if name == "auto":
        several = "TF_CONFIG" not in os.environ and len(tf.config.list_logical_devices("GPU")) > 1
        name = "mirrored" if several else "single"
        name = "multi_worker" if "TF_CONFIG" in os.environ else name
    if name == "multi_worker":
        cluster = os.environ.get("TF_CONFIG", "not set")
        try:
            json.loads(cluster)["task"]["index"]
            return tf.distribute.MultiWorkerMirroredStrategy()
        except (KeyError, TypeError, ValueError):
            raise FieldError(
                "strategy",
                name,
                f"TF_CONFIG is {cluster}; expected "
                '{"cluster": {"worker": ["host:port", ...]}, '
                '"task": {"type": "worker", "index": 0}}.',
            ) from None
    if name == "mirrored":
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    return tf.distribute.get_strategy()


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process writes the run folder: the first worker, or the only process."""
    return strategy.extended.should_checkpoint


def has_bfloat16() -> bool:
    """Whether the first GPU (capability 8 on) or else the CPU (AVX-512 BF16, AMX) has bfloat16."""
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        return tf.config.experimental.get_device_details(gpus[0]).get(
            "compute_capability", (0, 0)
        ) >= (8, 0)
    try:
        with open("/proc/cpuinfo") as file:
            return re.search(r"\b(avx512_bf16|amx_bf16)\b", file.read()) is not None
    except OSError:
        return False


def set_up(precision: str, seed: int) -> str:
    """Sets the Keras dtype policy, seeds every generator, and returns the policy's name."""
    if precision == "auto":
        precision = "mixed_bfloat16" if has_bfloat16() else "float32"
    keras.config.set_dtype_policy(precision)
    keras.utils.set_random_seed(seed)
    print(f"precision: {precision}")
    return precision


@contextlib.contextmanager
def policy(name: str) -> Iterator[None]:
    """The Keras dtype policy `name` for the networks that are made meanwhile."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
