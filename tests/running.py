"""How tests run scripts and exports: as a user, or a server, does."""

import contextlib
import importlib
import pathlib
import subprocess
import sys

import keras
import tensorflow as tf
from absl import flags
from absl.testing import flagsaver

from tf_autoctx import errors

ROOT = pathlib.Path(__file__).resolve().parent.parent


TRAINING = ("train_fetal_head", "train_multi_organ", "train_embryo", "train_renderer")


def load(name):
    """A training script as a module. The scripts have flags of the same names, so only one is loaded at a time."""
    for other in TRAINING:
        sys.modules.pop(other, None)
        for flag in list(flags.FLAGS.get_flags_for_module(other)):
            delattr(flags.FLAGS, flag.name)
    return importlib.import_module(name)


def main(name, *arguments):
    """Runs a training script in this process; its flags and the dtype policy come back."""
    module = load(name)
    with unchanged():
        flags.FLAGS([name, *arguments])
        errors.in_one_sentence(module.main)([])


@contextlib.contextmanager
def unchanged():
    """Flags and the dtype policy come back."""
    policy = keras.config.dtype_policy()
    try:
        with flagsaver.flagsaver():
            yield
    finally:
        keras.config.set_dtype_policy(policy)


@contextlib.contextmanager
def evaluation(name):
    """A script of eval/ as a module; the flags that training scripts share are away meanwhile, and its own afterwards."""
    module = "tf_autoctx.training.flags"
    shared = list(flags.FLAGS.get_flags_for_module(module))
    for flag in shared:
        delattr(flags.FLAGS, flag.name)
    before = set(flags.FLAGS)
    yield importlib.import_module(f"eval.{name}")
    for flag in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, flag)
    for flag in shared:
        flags.FLAGS[flag.name] = flag
        flags.FLAGS.register_flag_by_module(module, flag)  # `delattr` forgot it there


def script(name, *arguments):
    """Runs a script in a process of its own."""
    command = [sys.executable, name, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", timeout=300)


def served(folder, volume, signature="serving_default"):
    """What the graph answers in a TensorFlow 1 session, which loads it as TensorFlow's C++ loader does."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        loaded = tf.compat.v1.saved_model.load(session, ["serve"], str(folder)).signature_def[signature]
        assert list(loaded.inputs) == ["image"]
        outputs = {name: info.name for name, info in loaded.outputs.items()}
        return session.run(outputs, {loaded.inputs["image"].name: volume})
