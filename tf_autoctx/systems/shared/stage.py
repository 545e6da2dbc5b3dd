"""The interface of a stage: how one network, or a set that learns together, is trained."""

from __future__ import annotations

import abc
import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras
import numpy as np

from tf_autoctx.data import pipeline
from tf_autoctx.systems.shared.session import Session
from tf_autoctx.training import loop
from tf_autoctx.training.configuration import Settings

Tensor = Any
Networks = dict[str, keras.Model]
Sample = dict[str, Any]  # of tensors without a batch axis
Graph = Callable[..., Any]
Step = Callable[[loop.Batch], dict[str, Tensor]]
Optimizers = dict[str, keras.optimizers.Optimizer]


def digest(weights: Iterable[np.ndarray]) -> str:
    """SHA-256 (hex) of weights, for `Stage.made_on`."""
    total = hashlib.sha256()
    for array in weights:
        total.update(f"{array.dtype}{array.shape}".encode())
        total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()


class Stage(abc.ABC):
    """The view of one replica on a training; `stages.train` does all the rest.

    A stage says in `updates` how it learns; one of a single loss is an `AdamStage`. Where it has no
    `graph`, it is not validated and ends with its last weights.

    Attributes:
      name: of the stage's folder in the run folder.
      seed: of the first weights, the order of samples and their changes.
      columns: names of the cached tensors that it reads of a case.
      others: further cases that come with each sample, see `pipeline.Order`.
      keeps_last: whether the last weights are kept in place of the best.
      made_on: a `digest` of the networks of other stages that it starts from or looks through:
        where it is another than before, the stage is trained anew. None: of none.
      taken_over: names of the networks within its own that `build` gives the weights of stages
        before.
    """

    name: str
    seed: int
    columns: tuple[str, ...]
    others: int = 0
    keeps_last: bool = False
    made_on: str | None = None
    taken_over: tuple[str, ...] = ()

    def begin(self, session: Session) -> None:
        """Looks at the cases that the stage is about to be trained on, before its first `build`;
        one that is finished looks at none.

        Raises:
          FieldError: they do not do.
        """

    @abc.abstractmethod
    def build(self) -> Networks:
        """New networks under the current dtype policy; called in the strategy's scope, and once
        more for the finished networks in float32."""

    def read(self, case: pipeline.Case, seed: Tensor) -> Sample:
        """What one pass sees of a case, where that is a random part of it by `seed` (2,); in the
        input pipeline. Here it is all.

        Args:
          case: {name: array, of which nothing has been read}; under "others" a tuple of such cases.
          seed: the same one as for `augment`.
        """
        return pipeline.whole(case)

    def augment(self, sample: Sample, seed: Tensor) -> Sample:
        """The sample after random changes that follow from `seed` (2,).

        Where the training runs on an accelerator, they are made there, at the beginning of a step
        (labels are float32 meanwhile), else in the input pipeline: see `devices.augments`.
        """
        return sample

    def graph(self, networks: Networks) -> Graph | None:
        """The networks as validation runs them, as a graph that is traced once; None: the stage is
        not validated."""
        return None

    def score(self, graph: Graph, sample: Sample) -> float:
        """DSC in [0, 1] of a validation case, by a graph of `graph`."""
        return math.nan

    @abc.abstractmethod
    def updates(self, networks: Networks, settings: Settings) -> tuple[Optimizers, Step]:
        """The optimizers, and one step of a replica; in the strategy's scope."""


class AdamStage(Stage):
    """A stage of one loss, which one Adam lowers over all trainable variables."""

    @abc.abstractmethod
    def losses(self, networks: Networks, batch: Mapping[str, Tensor]) -> Tensor:
        """(batch,) float32, the loss of each sample in training; on a replica, in a graph."""

    def updates(self, networks: Networks, settings: Settings) -> tuple[Optimizers, Step]:
        variables = [v for network in networks.values() for v in network.trainable_variables]
        optimizer = loop.adam(settings, variables)

        def step(batch: loop.Batch) -> dict[str, Tensor]:
            def losses() -> Tensor:
                return self.losses(networks, batch)

            return loop.minimize({"loss": loop.Term(optimizer, variables, losses)})

        return {"adam": optimizer}, step
