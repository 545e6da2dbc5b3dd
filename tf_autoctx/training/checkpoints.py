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

LAST, BEST = 2, 1  # checkpoints that are kept
STATE = "state/.ATTRIBUTES/py_state"  # where a checkpoint holds the loop's


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

    Args:
      directory: holds `last/` and `best/`.
      networks, optimizers: by name.
      made_on: what the training is built upon, such as a digest of the networks of earlier stages.
        Checkpoints that were made on something else are passed over, and removed. None: they may be
        of anything.
      writes: whether this process saves; all must be able to read.
    """

    def __init__(
        self,
        directory: str | pathlib.Path,
        networks: Mapping[str, keras.Model],
        optimizers: Mapping[str, keras.optimizers.Optimizer],
        made_on: str | None = None,
        *,
        writes: bool = True,
    ) -> None:
        self.directory, self._made_on = pathlib.Path(directory), made_on
        self._state, self._writes = _State({}), writes
        checkpoint = tf.train.Checkpoint(
            networks=tf.train.Checkpoint(**networks),
            optimizers=tf.train.Checkpoint(**optimizers),
            state=self._state,
        )
        self._checkpoint = checkpoint
        self._last = tf.train.CheckpointManager(
            checkpoint, str(self.directory / "last"), max_to_keep=LAST, checkpoint_name="step"
        )
        self._best = tf.train.CheckpointManager(
            checkpoint, str(self.directory / "best"), max_to_keep=BEST, checkpoint_name="step"
        )

    def save(self, state: dict[str, Any], *, best: bool = False) -> None:
        """Saves everything with `state` (JSON-like, with "step"); if `best`, as the best too."""
        if not self._writes:
            return
        self._state.value = state | {"made_on": self._made_on}
        # The best first: a process that is killed in between comes to this step, and to this
        # choice, once more.
        for manager in (self._best, self._last) if best else (self._last,):
            try:
                manager.save(checkpoint_number=state["step"])
            except tf.errors.OpError as error:
                kind = type(error).__name__
                raise UserError(
                    f"{manager.directory}: the checkpoint could not be written ({kind}); "
                    "expected a writable folder with disk space. Free some and run again to go "
                    "on from the last one."
                ) from error
            # TensorFlow's list of them does not know one that was written just before a kill.
            for path in _paths(manager)[: -(BEST if manager is self._best else LAST)]:
                _remove(path)

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
        paths = _paths(manager)
        damaged = 0
        for path in reversed(paths):
            # TensorFlow's reader raises whatever built-in exception is nearest for a damaged file.
            try:
                if _is_made_on(path, self._made_on):
                    self._checkpoint.restore(path).assert_existing_objects_matched()
                    return self._state.value
            except Exception as error:
                damaged += 1
                logging.warning(
                    "%s: this checkpoint is damaged (%s); going back to the one before.",
                    path,
                    type(error).__name__,
                )
            else:
                logging.warning(
                    "%s: what it was made on, such as the level before, has changed since; this "
                    "part is trained anew.",
                    path,
                )
                if self._writes:
                    _remove(path)
        if damaged:
            raise UserError(
                f"{manager.directory}: none of its {damaged} checkpoints can be read; delete the "
                f"folder {self.directory} to train this part again."
            )
        return None


def goes_on(directory: pathlib.Path, made_on: str | None) -> bool:
    """Whether a training in a folder begins with a checkpoint: one of those that are there is made
    on what it is built upon, or cannot be read, which `Checkpoints.restore` tells.

    Args:
      directory: holds `last/`.
      made_on: see `Checkpoints`.
    """
    for file in directory.glob("last/step-*.index"):
        try:
            if _is_made_on(str(file.with_suffix("")), made_on):
                return True
        except Exception:  # TensorFlow's reader raises whatever is nearest for a damaged file
            return True
    return False


def _is_made_on(path: str, made_on: str | None) -> bool:
    """Whether a checkpoint was made on what is named; None, on either side: it may be."""
    before = json.loads(tf.train.load_variable(path, STATE)).get("made_on")
    return None in (before, made_on) or before == made_on


def _paths(manager: tf.train.CheckpointManager) -> list[str]:
    """Of the checkpoints, oldest first: by the files themselves, not by TensorFlow's list of them,
    as another process may have written since, or cut it short."""
    files = pathlib.Path(manager.directory).glob("step-*.index")
    paths = [str(file.with_suffix("")) for file in files]
    numbers = {path: path.rpartition("-")[2] for path in paths}
    return sorted((p for p in paths if numbers[p].isdecimal()), key=lambda p: int(numbers[p]))


def _remove(path: str) -> None:
    """Removes a checkpoint, the file that makes it one first."""
    pathlib.Path(f"{path}.index").unlink(missing_ok=True)
    for file in pathlib.Path(path).parent.glob(f"{pathlib.Path(path).name}.data-*"):
        file.unlink(missing_ok=True)
