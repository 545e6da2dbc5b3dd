"""Networks, losses and segmentation are plain Keras: they run where TensorFlow is not, and no
matrix product is left in their geometry."""

import os
import subprocess
import sys

import answers
import numpy as np
import pytest
import running
import tensorflow as tf
from helpers import grey

from tf_autoctx.models import layers, unet3d
from tf_autoctx.models.loc_con import Crop, ResizeLike, ResizeToCube, Uncrop

# Machine code that is made sooner and runs slower
QUICKLY = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


def test_the_answers_are_those_of_jax_without_tensorflow(tmp_path):
    pytest.importorskip("jax")
    path = tmp_path / "answers.npz"
    environment = {
        **os.environ,
        "KERAS_BACKEND": "jax",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": QUICKLY,
        "PYTHONPATH": os.pathsep.join([str(running.ROOT), *sys.path]),
    }
    words = [sys.executable, answers.__file__, str(path)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    ours, jax = answers.answers(), np.load(path)
    assert set(ours) == set(jax.files)
    for name, value in ours.items():
        assert value.shape == jax[name].shape, name
        if name.endswith("label"):
            # A rounding may decide where two probabilities are equal.
            assert (value != jax[name]).mean() < 1e-3 and value.any(), name
        else:
            np.testing.assert_allclose(value, jax[name], rtol=1e-4, atol=1e-4, err_msg=name)


X = grey(2, 9, 10, 11, 2)
CORNER = np.array([[1, -2, 3], [0, 4, 2]], np.int32)
GEOMETRY = {
    "enlarge": lambda x: layers.resize_linear(x, (18, 17, 11)),
    "shrink": lambda x: layers.resize_linear(x, (4, 3, 5)),
    "cube": ResizeToCube(7),
    "like": lambda x: ResizeLike()([x, np.zeros((2, 12, 5, 11, 1), np.float32)]),
    "crop": lambda x: Crop(6)([x, CORNER]),
    "uncrop": lambda x: Uncrop()([x, CORNER, np.zeros((2, 20, 21, 22, 1), np.float32)]),
    "about the centre": lambda x: unet3d.ResampleAboutCentre(2.0)([x, x]),
}
PRODUCTS = {"MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3", "Einsum", "Conv2D", "Conv3D"}


@pytest.mark.parametrize("shape", [X.shape, (None, None, None, None, 2)], ids=["known", "unknown"])
@pytest.mark.parametrize("name", GEOMETRY)
def test_geometry_has_no_product_that_a_gpu_would_round(name, shape):
    """GPUs round the factors of a product to 10 bits; gradients are looked at too."""

    @tf.function(input_signature=[tf.TensorSpec(shape)])
    def moved(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = GEOMETRY[name](x)
        return y, tape.gradient(y, x)

    graph = moved.get_concrete_function().graph.as_graph_def()
    nodes = [*graph.node, *(node for f in graph.library.function for node in f.node_def)]
    assert not {node.op for node in nodes} & PRODUCTS
    y, gradient = moved(X)
    np.testing.assert_allclose(y, GEOMETRY[name](X), atol=1e-6)
    assert gradient.shape == X.shape and np.isfinite(gradient).all()
