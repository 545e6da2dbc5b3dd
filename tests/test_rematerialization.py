"""Blocks of networks that are computed again for the gradient: what comes out is the same."""

import json
import os
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
import running
import tensorflow as tf
from helpers import noise, randomize

from tf_autoctx.models import embryo, localiser, memory, renderer, unet3d, usegnet, vnet
from tf_autoctx.models.options import VNetOptions
from tf_autoctx.models.rematerialization import ends_block, parts, rematerialize
from tf_autoctx.systems.fetal_head.configuration import FetalHead
from tf_autoctx.systems.fetal_head.system import FetalHeadSystem
from tf_autoctx.systems.shared.planning import Cases
from tf_autoctx.training import runs

SMALL = VNetOptions(base_filters=2, depth=3, kernel=3, normalization="batch")
BOXES = {"low_size": 8, "body_box": 8, "ventricle_box": 8}
NETWORKS = {
    "fetal head": lambda: usegnet.usegnet(base_filters=2, normalization="batch"),
    "without UAM": lambda: usegnet.usegnet(variant="USegNet-DS-SAM", base_filters=2),
    "slices": lambda: usegnet.usegnet((None, None, 1), "USegNet", base_filters=2),
    "embryo": lambda: embryo.embryo(**BOXES, vnets=SMALL),
    "VNet": lambda: vnet.vnet(options=SMALL),
    "organs": lambda: unet3d.pyramid((2, 1), 3, base_filters=2, depth=3),
    "renderer": lambda: renderer.renderer(base_filters=2),
    "segmentor": lambda: renderer.segmentor2d(base_filters=2),
    "discriminator": lambda: renderer.discriminator(2, 16, base_filters=2),
    "localiser": lambda: localiser.localiser(16, filters=2),
}
CONVOLUTIONS = {"Conv2D", "Conv3D"}


def step(network):
    """What a training step makes of a network: its gradients, and its other variables after it.

    Returns:
      (gradients, variables that are not trained, number of convolutions in the graph).
    """
    variables = network.trainable_variables
    shapes = [(2, *(n or 9 for n in x.shape[1:])) for x in network.inputs]
    x = {i.name: noise(*shape, seed=k) for k, (i, shape) in enumerate(zip(network.inputs, shapes))}
    spec = [{i.name: tf.TensorSpec([None, *i.shape[1:]]) for i in network.inputs}]

    @tf.function(input_signature=spec, autograph=False)
    def gradients(x):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            for variable in variables:
                tape.watch(variable.value)
            y = network(x if len(x) > 1 else next(iter(x.values())), training=True)
            # Each voxel and channel weighs something else
            loss = sum(tf.reduce_sum(tf.math.sin(1 + 3 * part)) for part in tf.nest.flatten(y))
        return tape.gradient(loss, [variable.value for variable in variables])

    found = [gradient.numpy() for gradient in gradients(x)]
    graph = gradients.get_concrete_function().graph.as_graph_def()
    nodes = [*graph.node, *(node for f in graph.library.function for node in f.node_def)]
    rest = [variable.numpy() for variable in network.non_trainable_variables]
    return found, rest, sum(node.op in CONVOLUTIONS for node in nodes)


def both(make):
    """`step` of a network, and of the same one that computes its blocks again."""
    plain, again = randomize(make()), randomize(make())
    rematerialize(again)
    before = [variable.numpy() for variable in again.non_trainable_variables]
    return step(plain), step(again), before


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_the_same(name):
    (plain, rest, count), (again, rest_again, count_again), before = both(NETWORKS[name])
    assert len(plain) == len(again) and max(np.abs(gradient).max() for gradient in plain) > 1e-3
    for one, other in zip(plain, again):
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-5 * np.abs(one).max())
    # Averages moved, and once
    for old, one, other in zip(before, rest, rest_again):
        np.testing.assert_allclose(other, one, rtol=1e-6, atol=1e-7)
        assert np.abs(one - old).max() > 1e-4
    # All are computed twice, but for the heads and the last ones before them
    assert 1.3 * count < count_again < 2.5 * count


@pytest.mark.usefixtures("bfloat16")
def test_gradients_are_the_same_in_bfloat16():
    """Weights of the normalizations are float32, which bfloat16 would round."""
    (plain, *_), (again, *_), _ = both(NETWORKS["fetal head"])
    for one, other in zip(plain, again):
        np.testing.assert_array_equal(other, one)


def test_blocks_are_whole():
    """Convolutions of each block of the fetal head, by the name of the last one: a stage's two, a
    deconvolution, or of an attention module the first, the two of its weights and the last."""
    *blocks, last = parts(usegnet.usegnet(base_filters=2))
    assert all(block.is_block for block in blocks) and not last.is_block
    counts = {}
    for block in blocks:
        names = [layer.name for layer in block.model.layers if "Conv" in type(layer).__name__]
        counts[names[-1]] = len(names)
    stages = {f"encoder_{stage}_2": 2 for stage in (1, 2, 3, 4)}
    modules = [f"{kind}_{scale}" for kind in ("sam", "uam") for scale in (1, 2, 3)]
    for module in modules:
        stages |= {f"{module}_p": 1, f"{module}_w_2": 2, f"{module}_out": 1}
    assert counts == stages | {f"decoder_{scale}_up": 1 for scale in (1, 2, 3)}


def test_both_passes_drop_the_same_and_the_seed_moves_once():
    """y = w x / 0.5 where x is not dropped: the sum's gradient is the sum over w."""

    def make():
        x = image = keras.Input((64, 1))
        x = keras.layers.Dense(1, use_bias=False)(x)
        x = ends_block(keras.layers.Dropout(0.5, seed=3)(x))
        return keras.Model(image, x)

    def run(network):
        @tf.function(autograph=False)
        def drawn(x):
            with tf.GradientTape() as tape:
                y = network(x, training=True)
            (weight,) = network.trainable_variables
            return y, tape.gradient(y, weight.value)

        weight = network.trainable_variables[0]
        weight.assign([[4.0]])
        found = [drawn(tf.ones((1, 64, 1))) for _ in range(2)]
        for y, gradient in found:
            assert 0 < np.sum(y == 0) < 64
            np.testing.assert_allclose(gradient, [[np.sum(y) / 4]])
        return [y.numpy() for y, _ in found]

    plain, again = make(), make()
    rematerialize(again)
    first, second = run(again)
    assert np.any(first != second)
    np.testing.assert_array_equal([first, second], run(plain))


def test_what_is_not_trained_is_computed_once():
    network = usegnet.usegnet(base_filters=2)
    x = noise(1, 8, 8, 8, 1)
    before = network(x)["logits"]
    rematerialize(network)
    np.testing.assert_array_equal(network(x)["logits"], before)
    graph = tf.function(lambda x: network(x, training=False)).get_concrete_function(x).graph
    names = [layer for layer in network.layers if "Conv3D" in type(layer).__name__]
    assert sum(node.op.startswith("Conv3D") for node in graph.as_graph_def().node) == len(names)


def test_the_file_is_the_same(tmp_path):
    network = NETWORKS["embryo"]()
    network.save(tmp_path / "before.keras")
    rematerialize(network)
    network.save(tmp_path / "after.keras")
    told = [
        json.loads(zipfile.ZipFile(tmp_path / f"{name}.keras").read("config.json"))
        for name in ("before", "after")
    ]
    assert told[0] == told[1]
    loaded = keras.models.load_model(tmp_path / "after.keras")
    assert [v.path for v in loaded.variables] == [v.path for v in network.variables]
    x = noise(1, 12, 10, 9, 1)
    for name, part in network(x).items():
        np.testing.assert_array_equal(loaded(x)[name], part)


# Replicas and memory, where TensorFlow optimizes its graphs: in processes of their own

PROCESS = """
import pathlib, re, sys
import numpy as np
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from helpers import noise, randomize
from tf_autoctx.models.rematerialization import rematerialize
from tf_autoctx.models.usegnet import usegnet

def graph(network, strategy):
    variables = network.trainable_variables
    def gradients(x):
        with tf.GradientTape() as tape:
            y = network(x, training=True)
            loss = sum(tf.reduce_sum(tf.math.sin(part)) for part in y.values())
        found = tape.gradient(loss, [v.value for v in variables])
        return tf.distribute.get_replica_context().all_reduce("SUM", found)
    return tf.function(lambda x: strategy.run(gradients, args=(x,)), autograph=False)
"""

REPLICAS = """
two, found = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]), []
x = next(iter(two.distribute_datasets_from_function(
    lambda context: tf.data.Dataset.from_tensors(noise(1, 8, 8, 8, 1)).repeat()
)))
for again in (True, False):
    with two.scope():
        network = randomize(usegnet(base_filters=2, normalization="batch"))
    if again:
        rematerialize(network)
    gradients = [two.experimental_local_results(part)[1] for part in graph(network, two)(x)]
    found.append([*gradients, *(v.numpy() for v in network.non_trainable_variables)])
for one, other in zip(*found):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * np.abs(one).max() + 1e-6)
"""

MEMORY = """
def resident(which):
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(rf"{which}:\\s+(\\d+)", status)[1])

x = tf.constant(noise(1, 64, 64, 64, 1))
network = usegnet((64, 64, 64, 1), base_filters=8)
if AGAIN:
    rematerialize(network)
train = graph(network, tf.distribute.get_strategy()).get_concrete_function(x)
before = resident("VmRSS")
pathlib.Path("/proc/self/clear_refs").write_text("5")
train(x)
print("KIB", resident("VmHWM") - before)
"""


def printed(program):
    path = os.pathsep.join([str(running.ROOT), str(running.ROOT / "tests")])
    environment = {**os.environ, "PYTHONPATH": path, "TF_NUM_INTEROP_THREADS": "1"}
    words = [sys.executable, "-c", PROCESS + program]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_replicas_agree():
    printed(REPLICAS)


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
def test_memory_is_less():
    """Each in a process of its own: TensorFlow keeps what it has once had."""
    plain, again = (
        int(printed(f"AGAIN = {again}\n{MEMORY}").split()[-1]) for again in (False, True)
    )
    assert again < 0.8 * plain, (again, plain)


# The flag

TINY = {
    "fetal_head": ("--phantom_size=12,10,14", "--level=1", "--normalization=batch"),
    "multi_organ": ("--patch_size=16", "--levels=1", "--depth=2", "--phantom_size=24,24,24"),
    "embryo": (
        "--phantom_size=16,16,16",
        "--low_size=8",
        "--body_box=8",
        "--ventricle_box=8",
        "--depth=2",
        "--kernel=3",
        "--stage=initial",
    ),
    "renderer": ("--size=16", "--variant=Orig-S2T", "--batch_size=1", "--phantom_size=24,24"),
}
COMMON = ("--base_filters=1", "--precision=float32", "--samples_per_epoch=2", "--patience=0")


@pytest.fixture
def remats(monkeypatch):
    """Blocks that are computed again, as they are written into graphs."""
    found, remat = [], keras.remat
    monkeypatch.setattr(keras, "remat", lambda block: (found.append(block), remat(block))[1])
    return found


def networks(folder):
    """{path below a run folder: network} of the finished ones."""
    files = sorted(folder.rglob("*.keras"))
    return {str(file.relative_to(folder)): keras.models.load_model(file) for file in files}


def test_a_training_goes_on_with_it(tmp_path, remats):
    folders = [tmp_path / name for name in ("plain", "again")]
    arguments = (*TINY["fetal_head"], *COMMON, "--phantom_cases=2,1", "--validation_fraction=0.0")
    with running.unfinished():
        for folder in folders:
            running.train("fetal_head", f"--work_dir={folder}", *arguments, "--steps=1")
        assert not remats
        running.train("fetal_head", f"--work_dir={folders[0]}", *arguments, "--steps=3")
        assert not remats
        more = ("--steps=3", "--rematerialize")
        running.train("fetal_head", f"--work_dir={folders[1]}", *arguments, *more)
        assert len(remats) == len(parts(usegnet.usegnet(base_filters=1))) - 1
    assert runs.load(folders[1]).flags["rematerialize"] is True
    assert runs.load(folders[0]).flags["rematerialize"] is False
    (plain,), (again,) = (networks(folder).values() for folder in folders)
    for one, other in zip(plain.weights, again.weights, strict=True):
        assert one.path == other.path
        np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("system", [name for name in TINY if name != "fetal_head"])
def test_every_training_has_it(system, tmp_path, remats):
    arguments = (*TINY[system], *COMMON, "--phantom_cases=5,1", "--steps=1", "--rematerialize")
    with running.unfinished():
        running.train(system, f"--work_dir={tmp_path}", *arguments)
    assert remats and networks(tmp_path)


# The plan


def test_the_cost_by_hand():
    """Kept: image, blocks of 2 and 4 channels and the head. Within the larger block: 2, 4, 4."""
    image = keras.Input((*memory.SIZE, 1))
    x = ends_block(keras.layers.Conv3D(2, 3, padding="same")(image))
    x = keras.layers.Conv3D(4, 3, padding="same")(x)
    x = ends_block(keras.layers.ReLU()(x))
    network = keras.Model(image, keras.layers.Conv3D(3, 1)(x))
    cost, plain = memory.cost(network, True), memory.cost(network)
    assert cost.voxel == memory.FACTOR * 4 * (1 + 2 + 4 + 3 + (2 + 4 + 4))
    assert plain.voxel == memory.FACTOR * 4 * (1 + 2 + 4 + 4 + 3)
    assert cost.weights == plain.weights
    outer = keras.Input((*memory.SIZE, 1))
    within = memory.cost(keras.Model(outer, network(outer)), True)
    assert within.voxel == cost.voxel + memory.FACTOR * 4


def test_a_plan_knows_that_less_is_needed():
    system = FetalHeadSystem(FetalHead(patch="auto", scale=1.0, base_filters=8), {1: "head"})
    edges = []
    for again in (False, True):
        cases = Cases(((128, 128, 128),), (1, 1, 1), 2**30, 1, again)
        flags = system.planned(cases).flags
        edges.append([int(edge) for edge in flags["patch"].split(",")])
    assert np.prod(edges[1]) > 1.2 * np.prod(edges[0])
