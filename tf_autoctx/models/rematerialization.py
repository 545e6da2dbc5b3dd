"""Checkpointed back-propagation: blocks of a network are computed again when their gradient is
taken, so that a training step keeps what goes from block to block and nothing within.

Chen et al. 2016, "Training deep nets with sublinear memory cost", reference [42] of Yang et al.
2019, who wish for it in their section 4. `keras.RematScope` does so layer by layer, which keeps
what goes from layer to layer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

import keras
from keras import ops, tree

from tf_autoctx.models import backends

Tensor = Any  # of whichever backend


class Part(NamedTuple):
    """A part of a network.

    Attributes:
      model: of the network's own layers.
      inputs, outputs: tensors of the network, with which it is called and which it computes.
      is_block: or what no block computes.
    """

    model: keras.Model
    inputs: list[keras.KerasTensor]
    outputs: list[keras.KerasTensor]
    is_block: bool


def ends_block(x: keras.KerasTensor) -> keras.KerasTensor:
    """The tensor, where one block of a network ends: all that leads to it from the ends before."""
    x.ends_block = True
    return x


def parts(network: keras.Model) -> list[Part]:
    """The blocks of a functional network, in the order in which they can be computed, and what
    comes after them, or all. Of one that has blocks, each layer is called once."""
    made = [(x, maker) for maker in network.operations for x in tree.flatten(maker.output)]
    ends = [x for x, _ in made if getattr(x, "ends_block", False)]
    if not ends:
        return [Part(network, network.inputs, network.outputs, False)]
    makers, known = {id(x): maker for x, maker in made}, {id(x) for x in network.inputs}
    # Keras 3.15 gives an input another history where a model is made of it and of tensors within.
    histories = [x._keras_history for x in network.inputs]
    found = []

    def add(outputs: list[keras.KerasTensor], is_block: bool) -> None:
        inputs = _needed(outputs, known, makers)
        found.append(Part(keras.Model(inputs, outputs), inputs, outputs, is_block))
        known.update(map(id, outputs))

    for end in ends:
        add([end], True)
    if rest := [x for x in network.outputs if id(x) not in known]:
        add(rest, False)
    for x, history in zip(network.inputs, histories):
        x._keras_history = history
    return found


def _needed(
    tensors: Iterable[keras.KerasTensor],
    known: Collection[int],
    makers: dict[int, keras.Operation],
) -> list[keras.KerasTensor]:
    """Those of the known tensors (by their ids) that others are made from, each once."""
    needed: dict[int, keras.KerasTensor] = {}
    for x in tensors:
        before = tree.flatten(makers[id(x)].input) if id(x) not in known else []
        found = _needed(before, known, makers) if before else [x]
        needed |= {id(x): x for x in found}
    return list(needed.values())


def rematerialize(network: keras.Model) -> None:
    """Lets the blocks of a network, and of those within, be computed again for the gradient.

    That is so where it is called with `training=True`. Layers, weights and what is saved stay as
    they are.
    """
    for layer in network.layers:
        if isinstance(layer, keras.Model):
            rematerialize(layer)
    found, plain = parts(network), network.call
    if not any(part.is_block for part in found):
        return
    computed = [_Again(part.model) if part.is_block else part.model for part in found]

    def call(inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        if not training:
            return plain(inputs, training=training, mask=mask)
        # Keras refuses arrays beside tensors
        given = map(ops.convert_to_tensor, tree.flatten(inputs))
        values = dict(zip(map(id, network.inputs), given))
        for part, compute in zip(found, computed):
            outputs = compute([values[id(x)] for x in part.inputs], training=True)
            values |= zip(map(id, part.outputs), tree.flatten(outputs))
        return tree.map_structure(lambda x: values[id(x)], network.output)

    network.call = call


class _Again(keras.layers.Layer):
    """A block of which nothing is kept but its inputs.

    It is a function of its inputs and variables alone: what its layers assign, such as moving
    averages, is assigned once, and what they draw is drawn alike in both passes. Without `autocast`
    the variables are handed over in their own type, whatever the network computes in.
    """

    def __init__(self, block: keras.Model) -> None:
        super().__init__(autocast=False)
        self._block, self.built = block, True

    def call(self, inputs: list[Tensor], training: bool) -> Tensor:
        variables = self._block.variables
        changed: list[keras.Variable] = []

        def pure(*values: Tensor) -> tuple[Tensor, list[Tensor]]:
            together = backends.gradients_together(values)
            before, x = together[: len(variables)], together[len(variables) :]
            with keras.StatelessScope(zip(variables, before)) as scope:
                y = self._block(list(x), training=training)
            after = [scope.get_current_value(variable) for variable in variables]
            changed[:] = [v for v, old, new in zip(variables, before, after) if new is not old]
            return y, [ops.stop_gradient(new) for old, new in zip(before, after) if new is not old]

        values = [ops.convert_to_tensor(variable.value) for variable in variables]
        y, assigned = keras.remat(pure)(*values, *inputs)
        for variable, value in zip(changed, assigned):
            variable.assign(value)
        return y
