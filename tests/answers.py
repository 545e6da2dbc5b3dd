"""What networks and losses answer on tiny images, in plain Keras: the same on every backend.

All modules that should be plain Keras are imported; the networks of two systems, whose layers are
most of all, are run.

As a program, `python answers.py FILE` writes the answers of the backend that KERAS_BACKEND names,
in an interpreter in which TensorFlow cannot be imported.
"""

import importlib
import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "benchmarks"))
import tasks


def answers():
    """{name: array} of segmentations and of losses, from random weights."""
    from keras import ops

    from tf_autoctx import losses, models

    assert all(getattr(models, name) for name in models.__all__)
    for name in tasks.TASKS:
        importlib.import_module(f"tf_autoctx.systems.{name}.segmentation")
    found = gradients()
    for task in (tasks.FetalHeadTask(tiny=True, levels=1), tasks.EmbryoTask(tiny=True)):
        output = compiled(task.infer, task.networks(), task.image())
        for part in ("label", "probability"):
            found[f"{task.name}, {part}"] = np.asarray(output[part])
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 8, 9, 3)).astype(np.float32)
    labels = rng.integers(0, 3, (2, 8, 9, 1)).astype(np.uint8)
    both = {"logits": logits, "aux1": logits[::-1].copy(), "aux2": -logits}
    found |= {
        "cross entropy": losses.DeepSupervisedLoss()(labels, {"logits": logits}),
        "dice": losses.DiceLoss()(labels, logits),
        "squared dice": losses.SquaredDiceLoss()(labels == 1, ops.sigmoid(logits)),
        "hybrid": losses.HybridLoss()(labels, both),
        "generator": losses.generator_adversarial(logits[:, 0, 0, :1]),
        "discriminator": losses.discriminator_adversarial(logits[:, 0, 0, :1], logits[:, 1, 1, :1]),
    }
    return {name: np.asarray(value) for name, value in found.items()}


def gradients():
    """{name: array} of a VNet whose blocks are computed again: gradients, moved averages."""
    import keras
    from keras import ops

    from tf_autoctx.models import options, rematerialization, vnet

    small = options.VNetOptions(base_filters=2, depth=2, kernel=3, normalization="batch")
    network, rng = vnet.vnet((8, 8, 8, 1), 2, small), np.random.default_rng(0)
    network.set_weights([rng.uniform(0.5, 1.5, w.shape) for w in network.weights])
    rematerialization.rematerialize(network)
    x = rng.normal(size=(1, 8, 8, 8, 1)).astype(np.float32)
    if keras.backend.backend() == "jax":
        import jax

        def loss(trained, others):
            y, others = network.stateless_call(trained, others, x, training=True)
            return ops.sum(ops.sin(y)), others

        variables = network.trainable_variables, network.non_trainable_variables
        values = ([variable.value for variable in of] for of in variables)
        found, others = jax.jit(jax.grad(loss, has_aux=True))(*values)
    else:
        import tensorflow as tf

        with tf.GradientTape() as tape:
            total = ops.sum(ops.sin(network(x, training=True)))
        found = tape.gradient(total, [v.value for v in network.trainable_variables])
        others = network.non_trainable_variables
    joined = {"gradients": found, "moved averages": others}
    return {name: np.concatenate([np.ravel(v) for v in of]) for name, of in joined.items()}


def compiled(infer, networks, image):
    """A segmentation as one program, whose pieces would take longer to make one by one."""
    import keras

    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(lambda x: infer(networks, x))(image)
    return infer(networks, image)


class NoTensorFlow:
    """Refuses to find TensorFlow."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == "tensorflow":
            raise ImportError(f"{name} is not installed")


if __name__ == "__main__":
    sys.meta_path.insert(0, NoTensorFlow)
    np.savez(sys.argv[1], **answers())
    assert not [name for name in sys.modules if name.startswith("tensorflow")]
