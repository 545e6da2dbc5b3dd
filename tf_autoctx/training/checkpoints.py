"""Checkpoints that a killed run goes on from."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf
from absl import logging

from tf_autoctx.errors import UserError


class _State(tf.train.experimental.PythonState):
    """A JSON value inside a checkpoint."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def serialize(self) -> str:
        return json.dumps(self.value)

    def deserialize(self, string: str) -> None:
        self.value = json.loads(string)


class Checkpoints:
    """The last two checkpoints of a stage and the best one: networks, optimizers, the loop's state.

    Attributes:
      directory: holds `last/` and `best/`.
    """

    def __init__(
        self,
        directory: str | pathlib.Path,
        networks: Mapping[str, keras.Model],
        optimizers: Mapping[str, keras.optimizers.Optimizer],
        *,
        writes: bool = True,
    ) -> None:
        """Only a process that `writes` saves; all must be able to read."""
        self.directory = pathlib.Path(directory)
        self._state, self._writes = _State({}), writes
        checkpoint = tf.train.Checkpoint(
            networks=tf.train.Checkpoint(**networks),
            optimizers=tf.train.Checkpoint(**optimizers),
            state=self._state,
        )
        self._checkpoint = checkpoint
        self._last = tf.train.CheckpointManager(
            checkpoint, str(self.directory / "last"), max_to_keep=2, checkpoint_name="step"
        )
        self._best = tf.train.CheckpointManager(
            checkpoint, str(self.directory / "best"), max_to_keep=1, checkpoint_name="step"
        )

    def save(self, state: dict[str, Any], *, best: bool = False) -> None:
        """Saves everything with `state` (JSON-like, with "step"); if `best`, as the best too."""
        self._state.value = state
        for manager in (self._best, self._last) if best else (self._last,):
            if self._writes:
                try:
                    manager.save(checkpoint_number=state["step"])
                except tf.errors.OpError as error:
                    kind = type(error).__name__
                    raise UserError(
                        f"{manager.directory}: the checkpoint could not be written ({kind}); "
                        "expected a writable folder with disk space. Free some and run again to go "
                        "on from the last one."
                    ) from error

    def restore(self) -> dict[str, Any] | None:
        """Restores the newest checkpoint that can be read: its state; None where there is none.

        Raises:
          UserError: there are checkpoints, and none can be read.
        """
        return self._restore(self._last)

    def restore_best(self) -> dict[str, Any] | None:
        """As `restore`, of the best checkpoint; of the newest where that is damaged, saying so."""
        try:
            return self._restore(self._best)
        except UserError as error:
            logging.warning("%s Going on with the newest checkpoint in its place.", error)
            return self.restore()

    def _restore(self, manager: tf.train.CheckpointManager) -> dict[str, Any] | None:
        # The files themselves, not TensorFlow's list of them: another process may have written
        # since, or cut it short.
        files = pathlib.Path(manager.directory).glob("step-*.index")
        paths = sorted(
            (str(file.with_suffix("")) for file in files),
            key=lambda path: int(path.rpartition("-")[2]),
        )
        for path in reversed(paths):
            # TensorFlow's reader raises whatever built-in exception is nearest for a damaged file.
            try:
                self._checkpoint.restore(path).assert_existing_objects_matched()
                return self._state.value
            except (
                tf.errors.OpError,
                IndexError,
                RuntimeError,
                ValueError,
                AssertionError,
            ) as error:
                logging.warning(
                    "%s: this checkpoint is damaged (%s); going back to the one before.",
                    path,
                    type(error).__name__,
                )
        if paths:
            raise UserError(
                f"{manager.directory}: none of its {len(paths)} checkpoints can be read; delete "
                f"the folder {self.directory} to train this part again."
            )
        return None
