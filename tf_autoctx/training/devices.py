"""Strategy, precision and seeds: what is set once, before the first model."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pathlib
import re
import subprocess
import timeit
from collections.abc import Iterator, Sequence

import keras
import tensorflow as tf
from absl import logging
from tensorflow.python.client import device_lib

from tf_autoctx.errors import FieldError
from tf_autoctx.training.cluster import tf_config

# A trial in bfloat16 takes at most so much of one in float32 where it is worth it.
FASTER = 0.8


def strategy(name: str) -> tf.distribute.Strategy:
    """The `tf.distribute` strategy of a name, see `RunOptions.strategy`.

    "auto" is "multi_worker" where there is a cluster (see `cluster.tf_config`, which becomes that
    of this process), "mirrored" where there is more than one GPU, else "single".

    Raises:
      UserError: "multi_worker" without a TF_CONFIG that names the cluster and this task, or whose
        port is taken; see `cluster.tf_config`.
    """
    told = tf_config() if name in ("auto", "multi_worker") else ""
    if told:
        os.environ["TF_CONFIG"] = told
    if name == "auto":
        several = not told and len(tf.config.list_logical_devices("GPU")) > 1
        name = "multi_worker" if told else "mirrored" if several else "single"
    if name == "multi_worker":
        try:
            json.loads(told)["task"]["index"]
            return tf.distribute.MultiWorkerMirroredStrategy()
        except (KeyError, TypeError, ValueError):
            raise FieldError(
                "strategy",
                name,
                f"TF_CONFIG is {told or 'not set'}; expected "
                '{"cluster": {"worker": ["host:port", ...]}, '
                '"task": {"type": "worker", "index": 0}}.',
            ) from None
        except tf.errors.UnknownError as error:
            raise FieldError(
                "strategy",
                name,
                f"{error.message} for TF_CONFIG {told}; expected a port of this worker that no "
                "other process has.",
            ) from None
    if name == "mirrored":
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    return tf.distribute.get_strategy()


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process writes the run folder: the first worker, or the only process."""
    return strategy.extended.should_checkpoint


def augments() -> bool:
    """Whether the device that trains makes the random changes of its batches, in the step.

    An accelerator does: a few CPU cores cannot keep up with it. On CPUs alone the input pipeline
    makes them, for the next batches beside a step: the same work, but a step leaves cores idle.
    """
    return any(device.device_type != "CPU" for device in tf.config.list_logical_devices())


@functools.cache
def bfloat16_is_faster() -> bool:
    """Whether bfloat16 is the faster precision here: of the first GPU (capability 8 on) or else, of
    a CPU that has it (AVX-512 BF16, AMX), by trial.

    What a CPU tells is not enough: a virtual machine without AMX may be slower in bfloat16. It
    decides where there are several workers, which must come to the same.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        return tf.config.experimental.get_device_details(gpus[0]).get(
            "compute_capability", (0, 0)
        ) >= (8, 0)
    try:
        told = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    has = re.search(r"\b(avx512_bf16|amx_bf16)\b", told) is not None
    if not has or os.environ.get("TF_CONFIG", "").strip():
        return has
    low, full = _convolution_seconds(("bfloat16", "float32"))
    return low < FASTER * full


def _convolution_seconds(dtypes: Sequence[str]) -> list[float]:
    """What a 3D convolution like those of the networks takes: the least of some trials in turn."""

    def trial(dtype: str) -> None:
        image, kernel = tf.ones((1, 24, 24, 24, 32), dtype), tf.ones((3, 3, 3, 32, 32), dtype)
        tf.nn.conv3d(image, kernel, (1, 1, 1, 1, 1), "SAME").numpy()

    rounds = [
        [timeit.timeit(functools.partial(trial, dtype), number=1) for dtype in dtypes]
        for _ in range(6)
    ]
    return [min(times) for times in zip(*rounds)]  # the first ones set primitives up


def set_up(precision: str, seed: int) -> str:
    """Sets the Keras dtype policy, seeds every generator, and returns the policy's name."""
    if precision == "auto":
        precision = "mixed_bfloat16" if bfloat16_is_faster() else "float32"
    if precision == "mixed_float16" and not tf.config.list_physical_devices("GPU"):
        logging.warning(
            "precision=mixed_float16 on a CPU, which computes it slower than float32 and no better "
            "than mixed_bfloat16: use it on a GPU."
        )
    keras.config.set_dtype_policy(precision)
    keras.utils.set_random_seed(seed)
    return precision


def free_memory(root: pathlib.Path = pathlib.Path("/")) -> int | None:
    """Bytes that a replica can take; None: unknown.

    Of the GPU that has least for TensorFlow; without one, what this machine has for a new process,
    and no more than the control group of its container may take.
    """
    if tf.config.list_physical_devices("GPU"):
        listed = device_lib.list_local_devices()
        return min(device.memory_limit for device in listed if device.device_type == "GPU")
    limits = []
    with contextlib.suppress(OSError):
        told = (root / "proc" / "meminfo").read_text()
        limits += [1024 * int(kib) for kib in re.findall(r"^MemAvailable: *(\d+) kB", told, re.M)]
    groups = root / "sys" / "fs" / "cgroup"
    for path in (groups / "memory.max", groups / "memory" / "memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # "max" where there is no limit
            limits.append(int(path.read_text()))
    return min(limits, default=None)


def described(strategy: tf.distribute.Strategy) -> str:
    """The devices that a strategy trains on, in words, such as "2 GPUs (NVIDIA H100)"."""
    gpus = tf.config.list_physical_devices("GPU")
    count = strategy.num_replicas_in_sync
    if not gpus:
        return "CPU" if count == 1 else f"{count} CPU devices"
    details = tf.config.experimental.get_device_details(gpus[0])
    name = details.get("device_name", "unknown")
    return f"{count} GPU{'s' * (count > 1)} ({name})"


def warn_of_unseen_gpu() -> None:
    """Warns of a GPU in this machine that TensorFlow does not see, unless it was hidden from it."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1", "NoDevFiles")
    if hidden or tf.config.list_physical_devices("GPU"):
        return
    if sign := sign_of_gpu():
        logging.warning(
            "%s, but TensorFlow sees no GPU and trains on the CPU, many times slower. Install "
            "TensorFlow with its CUDA libraries: pip install 'tensorflow[and-cuda]'. "
            "CUDA_VISIBLE_DEVICES=-1 says that the CPU is meant.",
            sign,
        )


def sign_of_gpu(root: pathlib.Path = pathlib.Path("/")) -> str | None:
    """What shows that this machine has an NVIDIA GPU; None where nothing does.

    The driver's device, its tool, or a PCI display controller (class 3) of the vendor: the driver
    may be missing too.
    """
    if any((root / "dev").glob("nvidia[0-9]*")):
        return "The NVIDIA driver shows a GPU"
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20)
        if listed.returncode == 0 and listed.stdout.startswith("GPU"):
            return f"nvidia-smi lists a GPU ({listed.stdout.splitlines()[0].split(' (')[0]})"
    for device in (root / "sys" / "bus" / "pci" / "devices").glob("*"):
        with contextlib.suppress(OSError):
            vendor, kind = ((device / name).read_text() for name in ("vendor", "class"))
            if vendor.startswith("0x10de") and kind.startswith("0x03"):
                return "This machine has an NVIDIA GPU"
    return None


@contextlib.contextmanager
def policy(name: str) -> Iterator[None]:
    """The Keras dtype policy `name` for the networks that are made meanwhile."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
