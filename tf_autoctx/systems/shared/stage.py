"""The interface of a stage: how one network, or a set that learns together, is trained."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from typing import Any

import keras

from tf_autoctx.training import loop
from tf_autoctx.training.configuration import Settings

Tensor = Any
Networks = dict[str, keras.Model]
Sample = dict[str, Any]  # of tensors without a batch axis
Graph = Callable[..., Any]
Step = Callable[[loop.Batch], dict[str, Tensor]]
Optimizers = dict[str, keras.optimizers.Optimizer]


class Stage(abc.ABC):
    """The view of one replica on a training; `stages.train` does all the rest.

    Attributes:
      name: of the stage's folder in the run folder.
      seed: of the first weights, the order of samples and their changes.
      columns: names of the cached tensors that it reads of a case.
      others: further cases that come with each sample, see `pipeline.training`.
      keeps_last: whether the last weights are kept in place of the best.
      made_on: a digest of the networks of other stages that it starts from or looks through, see
        `stages.digest`: where it is another than before, the stage is trained anew. None: of none.
    """

    name: str
    seed: int
    columns: tuple[str, ...]
    others: int = 0
    keeps_last: bool = False
    made_on: str | None = None

    @abc.abstractmethod
    def build(self) -> Networks:
        """New networks under the current dtype policy; called in the strategy's scope, and once
        more for the finished networks in float32."""

    @abc.abstractmethod
    def losses(self, networks: Networks, batch: Mapping[str, Tensor]) -> Tensor:
        """(batch,) float32, the loss of each sample in training; on a replica, in a graph."""

    def augment(self, sample: Sample, seed: Tensor) -> Sample:
        """What one pass sees of a case, with random changes that follow from `seed` (2,); in the
        input pipeline."""
        return sample

    @abc.abstractmethod
    def graph(self, networks: Networks) -> Graph:
        """The networks as validation runs them, as a graph that is traced once."""

    @abc.abstractmethod
    def score(self, graph: Graph, sample: Sample) -> float:
        """DSC in [0, 1] of a validation case, by a graph of `graph`."""

    def updates(self, networks: Networks, settings: Settings) -> tuple[Optimizers, Step]:
        """The optimizers, and one step of a replica; in the strategy's scope.

        Here one Adam lowers `losses` over all trainable variables; a stage of several losses or
        optimizers has its own.
        """
        variables = [v for network in networks.values() for v in network.trainable_variables]
        optimizer = loop.adam(settings, variables)

        def step(batch: loop.Batch) -> dict[str, Tensor]:
            def losses() -> Tensor:
                return self.losses(networks, batch)

            return loop.minimize({"loss": loop.Term(optimizer, variables, losses)})

        return {"adam": optimizer}, step
