"""Our sides of the rows of `speed.py`: the package as users run it, on TensorFlow.

Each function is called in the side's own process and returns a `harness.Ready`. Nothing heavy is
imported before.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
import tempfile
import time
import types
from collections.abc import Callable
from typing import Any

import harness
import numpy as np
import tasks
from harness import Ready
from tasks import ORGANS, Task

from tf_autoctx.systems.shared.registry import declarations
from tf_autoctx.training.configuration import POLICIES

LABELS = {
    "fetal_head": {1: "head"},
    "multi_organ": ORGANS,
    "embryo": {1: "body", 2: "ventricle"},
    "renderer": {1: "head"},
}


def system_of(task: Task, precision: str) -> tuple[Any, dict[str, Any]]:
    """The system of a task, and its networks with the task's weights."""
    import keras

    keras.config.set_dtype_policy(POLICIES[precision])
    kind = declarations()[task.name].load()
    system = kind(task.configuration, LABELS[task.name])
    return system, task.networks()


# Inference


def exported(task: Task, precision: str) -> Ready:
    """The label of a raw image by an export, in TensorFlow's C++ loader as TensorFlow Serving."""
    from tf_autoctx import export

    sys.path.insert(0, str(harness.ROOT / "tests"))
    import cpp_loader

    system, networks = system_of(task, precision)
    functions = {"serving_default": system.signatures([networks])["serving_default"]}
    with tempfile.TemporaryDirectory() as folder:
        written = export.Exported(functions, networks, {}, system.spec)
        model = cpp_loader.CppModel(export.write(folder, written))
    image, last = task.image(), {}

    def step() -> None:
        last.update(model("serving_default", {"image": image}))

    def answer() -> np.ndarray:
        return last["probability"] if "probability" in last else last["label"] * 1.0

    facts = {"parameters": tasks.parameters(networks)}
    return Ready(step, answer if "fetal_head" in task.name else None, facts)


def run_folder(task: Task, precision: str) -> Ready:
    """What predict.py runs of a run folder, from raw voxels to the label in memory."""
    from tf_autoctx.systems.shared.system import Wanted

    system, networks = system_of(task, precision)
    system.finished = lambda run: networks
    predictor, image, last = system.predictor(None, {}), task.image(), {}

    def step() -> None:
        output = predictor(image, None, Wanted())
        last["label"] = np.asarray(output["label"])

    return Ready(step, None, {"parameters": tasks.parameters(networks)})


def inference_convolutions(task: Task, precision: str) -> Ready:
    """The convolutions of a pass over a raw image, each alone."""
    import convolutions
    import tensorflow as tf

    system, networks = system_of(task, precision)

    def segment(image: Any) -> Any:
        return system.segment(networks, image)

    spec = tf.TensorSpec(task.image().shape)
    graph = tf.function(segment, input_signature=[spec], autograph=False).get_concrete_function()
    counts = convolutions.listed(graph.graph)
    return Ready(convolutions.alone(counts), None, {"convolutions": sum(counts.values())})


# Training


def values(task: Task) -> dict[str, Any]:
    """{flag: default} of a system and its training, with the configuration of a task."""
    declaration = declarations()[task.name]
    defaults = {
        field.name: field.default
        for kind in declaration.training
        for field in dataclasses.fields(kind)
    }
    return defaults | dataclasses.asdict(task.configuration)


def stage_of(task: Task, system: Any) -> tuple[Any, Any]:
    """The stage that a training step of a task is of, and its settings."""
    import tensorflow as tf

    from tf_autoctx.systems.shared.session import Session
    from tf_autoctx.training.configuration import Settings

    settings = Settings(
        steps=1000,
        samples_per_epoch=1,
        learning_rate=tasks.LEARNING_RATE,
        learning_rate_decay="constant",
    )
    run: Any = types.SimpleNamespace(folder=pathlib.Path())  # nothing is kept
    session = Session(run, values(task), tf.distribute.get_strategy(), settings, [], [])
    return STAGES[task.name](system, session), settings


def _level(system: Any, session: Any) -> Any:
    from tf_autoctx.systems.fetal_head.training import LevelStage

    return LevelStage(1, system.cascade, session)


def _pyramid(system: Any, session: Any) -> Any:
    from tf_autoctx.systems.multi_organ.training import PyramidStage

    return PyramidStage(system.configuration.levels, None, system.pyramid, session)


def _cascade(system: Any, session: Any) -> Any:
    from tf_autoctx.systems.embryo.training import EndToEndStage

    class Fresh(EndToEndStage):
        """Takes no weights over."""

        def _before(self, folder: pathlib.Path, stage: str) -> dict[str, list[np.ndarray]]:
            return {}

    return Fresh(system.refinement, session)


def _self_play(system: Any, session: Any) -> Any:
    from tf_autoctx.systems.renderer.training import SelfPlayStage

    return SelfPlayStage(system.rendering, session)


STAGES: dict[str, Callable[[Any, Any], Any]] = {
    "fetal_head": _level,
    "multi_organ": _pyramid,
    "embryo": _cascade,
    "renderer": _self_play,
}


def _training_graph(task: Task, precision: str) -> tuple[Any, Any, dict[str, Any]]:
    """(one step of the training loop as a graph, its batch, networks)."""
    import tensorflow as tf

    system, networks = system_of(task, precision)
    stage, settings = stage_of(task, system)
    learning = stage.build()
    for network, weights in zip(learning.values(), task.trained(networks).values()):
        network.set_weights(weights.get_weights())
    _, step = stage.updates(learning, settings)
    batch = tf.nest.map_structure(tf.constant, task.batch())
    return tf.function(step, autograph=False), batch, learning


def training(task: Task, precision: str) -> Ready:
    """A step of training: the stage's losses, their gradients, and Adam's update."""
    graph, batch, networks = _training_graph(task, precision)
    told: list[float] = []

    def step() -> None:
        told.append(float(graph(batch)["loss"]))

    def answer() -> np.ndarray:
        return np.array(told[:1])  # of the weights as they were

    facts = {"parameters": tasks.parameters(networks)}
    return Ready(step, answer, facts)


def training_convolutions(task: Task, precision: str) -> Ready:
    """The convolutions of a training step and of its gradients, each alone."""
    import convolutions

    graph, batch, _ = _training_graph(task, precision)
    counts = convolutions.listed(graph.get_concrete_function(batch).graph)
    return Ready(convolutions.alone(counts), None, {"convolutions": sum(counts.values())})


def training_profile(task: Task, precision: str) -> dict[str, Any]:
    """{"seconds": of each operation a step, its own, "convolutions": their share}."""
    import convolutions
    import tensorflow as tf

    tf.config.threading.set_inter_op_parallelism_threads(1)  # one operation after another
    graph, batch, _ = _training_graph(task, precision)

    def step() -> float:
        return float(graph(batch)["loss"])

    step()
    seconds = convolutions.profiled(step)
    return {"operations": seconds, "convolutions": convolutions.convolution_share(seconds)}


# The embryo's peer


def sliding_windows(task: Task, precision: str, fraction: float, batch: int, window: int) -> Ready:
    """The localiser's windows and both window networks of the embryo system's peer.

    The seconds of the localiser are extrapolated from a share of its windows.
    """
    import keras

    from tf_autoctx.systems.embryo.configuration import Windows, beside
    from tf_autoctx.systems.embryo.segmentation import Refinement
    from tf_autoctx.systems.embryo.sliding_windows import WindowedSegmentation, new_networks

    keras.config.set_dtype_policy(POLICIES[precision])
    refinement = Refinement(task.configuration, LABELS["embryo"])
    peer = beside(task.configuration, Windows(window=window))
    segment = WindowedSegmentation(refinement, peer, new_networks(peer), batch)
    voxels = task.image()[0, ..., 0]
    segment(voxels[tuple(slice(peer.window) for _ in range(3))])  # one window: warms up

    def step() -> float:
        begin = time.perf_counter()
        _, localised = segment(voxels, fraction)
        return float(localised.extrapolated(time.perf_counter() - begin))

    return Ready(step, None, {"share_of_windows": fraction})


# Online rendering


def online(task: tasks.RendererTask, precision: str, order: str, learning: bool) -> Ready:
    """An iteration of online rendering, or of self-play, in an order of `ORDERS`.

    "one by one" makes the updates of "shared" with a run of the networks for each.
    """
    import keras
    import tensorflow as tf

    from tf_autoctx.systems.renderer import terms
    from tf_autoctx.systems.renderer.configuration import Objective
    from tf_autoctx.training.configuration import Settings

    keras.config.set_dtype_policy(POLICIES[precision])
    networks = task.networks()
    objective = Objective(update_order="shared" if order == "one by one" else order)
    plan = terms.groups(networks, objective, online=not learning)
    if order == "one by one":
        plan = [[term] for group in plan for term in group]
    settings = Settings(
        steps=1,
        samples_per_epoch=1,
        learning_rate=tasks.LEARNING_RATE,
        learning_rate_decay="constant",
        beta_1=0.5,
    )
    _, update = terms.updates(networks, plan, objective, settings, online=not learning)
    graph = tf.function(update, autograph=False)
    batch = tf.nest.map_structure(tf.constant, task.batch())

    def step() -> None:
        float(graph(batch)["loss"])

    return Ready(step, None, {"terms": sum(map(len, plan))})


# Around the networks


def rigid_motion(size: tuple[int, ...]) -> Ready:
    """A random motion of image and label, as training draws it."""
    import tensorflow as tf

    from tf_autoctx.data import augment
    from tf_autoctx.data.configuration import Augmentation

    motion = Augmentation(rotation=180.0, shift=30, flips=True)  # the paper's
    sample = {
        "image": tf.constant(tasks.smooth(size)[..., None]),
        "label": tf.constant(tasks.blobs(size, 3)[..., None]),
        "spacing": tf.constant([0.05, 0.05, 0.05]),  # mm
    }

    @tf.function
    def moved(number: Any) -> Any:
        return augment.moved(sample, tf.stack([number, number]), motion)

    numbers = iter(range(10**9))

    def step() -> None:
        moved(tf.constant(next(numbers), tf.int64))["image"].numpy()

    return Ready(step)


def scoring(size: tuple[int, ...], spacing: tuple[float, ...]) -> Ready:
    """DSC, average and Hausdorff distance of a pair, and all else that `metrics.compare` has."""
    from tf_autoctx import metrics

    prediction, truth = pair(size)

    def step() -> None:
        metrics.compare(prediction, truth, spacing)

    def answer() -> np.ndarray:
        scores = metrics.compare(prediction, truth, spacing)
        return np.array([scores["DSC_percent"] / 100, scores["Hdb_mm"]])

    return Ready(step, answer)


def pair(size: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Two ellipsoids, the first a little larger and shifted by two voxels: bool masks."""
    grid = [np.arange(n, dtype=np.float32) for n in size]
    masks = []
    for shift, factor in ((2, 1.03), (0, 1.0)):
        radii = [0.35 * n * factor for n in size]
        distances = [((x - n / 2 - shift) / r) ** 2 for x, n, r in zip(grid, size, radii)]
        z, y, x = np.ix_(*distances)
        masks.append(z + y + x <= 1)
    return masks[0], masks[1]
