"""An open training run: its folder, devices, settings and cases, which all its stages share."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, TypeVar

import tensorflow as tf

from tf_autoctx import configuration
from tf_autoctx.systems.shared.caching import Files
from tf_autoctx.training.configuration import Settings
from tf_autoctx.training.runs import Run

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Session:
    """What the stages of a training run share.

    Attributes:
      run: its folder.
      values: {flag: value}.
      strategy: `tf.distribute` strategy.
      settings: how long and how fast.
      training, validation: {name: path} of each prepared case; validation may be empty.
      ignored: label of voxels that are left out of losses and scores; None: the data set has none.
      costs: {stage: its time, relative to those of the others}, in the order of training.
    """

    run: Run
    values: Mapping[str, Any]
    strategy: tf.distribute.Strategy
    settings: Settings
    training: Files
    validation: Files
    ignored: int | None = None
    costs: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def folder(self) -> pathlib.Path:
        """Of the run."""
        return self.run.folder

    @property
    def channels(self) -> int:
        """Of every image."""
        return len(self.run.channels)

    def configured(self, kind: type[T]) -> T:
        """An instance of a configuration from the flags."""
        return configuration.configured(kind, self.values)

    def later(self, stage: str) -> float:
        """What the stages after one take, in steps of it."""
        names = list(self.costs)
        after = names[names.index(stage) + 1 :] if stage in names else []
        ratio = sum(self.costs[name] / self.costs[stage] for name in after)
        return ratio * self.settings.steps

    def with_costs(self, costs: Mapping[str, float]) -> Session:
        """The same with the costs of its stages."""
        return dataclasses.replace(self, costs=costs)

    def with_settings(self, **changes: Any) -> Session:
        """The same with other settings."""
        return dataclasses.replace(self, settings=dataclasses.replace(self.settings, **changes))

    def with_files(self, training: Files, validation: Files) -> Session:
        """The same with other files of the cases."""
        return dataclasses.replace(self, training=training, validation=validation)
