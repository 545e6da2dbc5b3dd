"""Tasks on JAX: Keras' networks as functions of their weights, compiled whole.

A function of a device's own arrays, compiled once for its shapes, is what is timed. `peak` is what
the compiled program needs: its arguments, results and temporaries.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import keras
import numpy as np
from tasks import LEARNING_RATE, Batch, Networks, RendererTask, Task, Term

State = dict[str, Any]  # of arrays


@dataclasses.dataclass
class Compiled:
    """A program that is ready to run.

    Attributes:
      run: waits for the device; returns what the program computes, as NumPy arrays.
      step: waits for the device, returns nothing.
      gib: memory of the program on the device.
    """

    run: Callable[[], Any]
    step: Callable[[], None]
    gib: float


def _needed(executable: Any) -> float:
    """GiB of a compiled program."""
    needed = executable.memory_analysis()
    parts = ("argument_size_in_bytes", "output_size_in_bytes", "temp_size_in_bytes")
    total = sum(getattr(needed, part) for part in parts) - needed.alias_size_in_bytes
    return float(total) / 2**30


def _variables(networks: Networks) -> list[Any]:
    """All that the networks have, each once."""
    return [variable for network in networks.values() for variable in network.variables]


def inference(task: Task, networks: Networks) -> Compiled:
    """A pass over a raw volume, which lies on the device."""
    variables = _variables(networks)

    def segment(values: Sequence[Any], image: Any) -> Any:
        with keras.StatelessScope(state_mapping=zip(variables, values)):
            return task.infer(networks, image)

    values = [variable.value for variable in variables]
    image = jax.device_put(task.image())
    executable = jax.jit(segment).lower(values, image).compile()

    def run() -> dict[str, np.ndarray]:
        return {name: np.asarray(x) for name, x in executable(values, image).items()}

    def step() -> None:
        jax.block_until_ready(executable(values, image))

    return Compiled(run, step, _needed(executable))


def update(
    task: Task, networks: Networks, passes: Sequence[Sequence[Term]] | None = None
) -> Compiled:
    """A training step: its losses, gradients and Adam; `run` returns the loss of each term.

    Args:
      task: whose batch is learnt from.
      networks: of the task; their weights stay as they are.
      passes: of the task, None: those of its training.
    """
    passes = task.passes if passes is None else passes
    variables = _variables(networks)
    position = {id(variable): number for number, variable in enumerate(variables)}
    names = {term.networks for group in passes for term in group}
    optimizers = {name: _optimizer(networks, name) for name in names}
    owned = {name: [position[id(v)] for v in _trainable(networks, name)] for name in optimizers}

    def losses(chosen: Sequence[Any], values: Sequence[Any], term: Term, batch: Batch) -> Any:
        merged = list(values)
        for number, value in zip(owned[term.networks], chosen):
            merged[number] = value
        with keras.StatelessScope(state_mapping=zip(variables, merged)) as scope:
            loss = term.loss(networks, batch).mean()
        # Moving averages, which the pass has changed
        return loss, [scope.get_current_value(variable) for variable in variables]

    def step(state: State, batch: Batch) -> tuple[State, list[Any]]:
        values, told = list(state["values"]), []
        states = dict(state["optimizers"])
        for group in passes:
            before: list[Any] = list(values)
            moved: dict[int, Any] = {}
            for number, term in enumerate(group):
                chosen = [before[n] for n in owned[term.networks]]
                of_term = jax.value_and_grad(losses, has_aux=True)
                (loss, after), gradients = of_term(chosen, before, term, batch)
                told.append(loss)
                if not number:  # the first term runs every network that has averages
                    values = [x if v.trainable else y for v, x, y in zip(variables, before, after)]
                key = "+".join(term.networks)
                chosen, states[key] = optimizers[term.networks].stateless_apply(
                    states[key], gradients, chosen
                )
                moved |= dict(zip(owned[term.networks], chosen))
            for number, value in moved.items():
                values[number] = value
        return {"values": values, "optimizers": states}, told

    def fresh() -> State:
        """Copies, as the program takes its state's memory for the next one."""
        state = {
            "values": [variable.value for variable in variables],
            "optimizers": {
                "+".join(name): [variable.value for variable in optimizer.variables]
                for name, optimizer in optimizers.items()
            },
        }
        return jax.tree.map(lambda x: x.copy(), state)

    batch = jax.device_put(task.batch())
    executable = jax.jit(step, donate_argnums=0).lower(fresh(), batch).compile()
    now = {"state": fresh()}

    def one() -> None:
        now["state"], told = executable(now["state"], batch)
        jax.block_until_ready((now["state"], told))

    def run() -> np.ndarray:
        _, told = executable(fresh(), batch)
        return np.array([float(x) for x in told])

    return Compiled(run, one, _needed(executable))


def _trainable(networks: Networks, names: Sequence[str]) -> list[Any]:
    return [variable for name in names for variable in networks[name].trainable_variables]


def _optimizer(networks: Networks, names: Sequence[str]) -> Any:
    optimizer = keras.optimizers.Adam(LEARNING_RATE)
    optimizer.build(_trainable(networks, names))
    return optimizer


def compiled(task: Task, kind: str) -> tuple[Compiled, int]:
    """A program of a kind (`gpu.KINDS`), and how many parameters its networks have."""
    networks = task.networks()
    if kind == "inference" and isinstance(task, RendererTask):
        program = update(task, networks, task.online)
    elif kind == "inference":
        program = inference(task, networks)
    else:
        networks = task.trained(networks)
        program = update(task, networks)
    weights = [v for network in networks.values() for v in network.trainable_variables]
    return program, int(sum(np.prod(weight.shape) for weight in weights))
