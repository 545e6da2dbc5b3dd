"""Keras' callbacks in the training loop: early stopping, TensorBoard, and what is shown."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import time
from collections.abc import Sequence

import keras

from tf_autoctx import progress
from tf_autoctx.training.configuration import Settings

Logs = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a training is, in its run.

    Attributes:
      folder: of the stage.
      step: how many steps of it are done.
      epoch_steps: of an epoch.
      later: see `loop.Task`.
    """

    folder: pathlib.Path
    step: int
    epoch_steps: int
    later: float


class Callbacks:
    """Those that remember past epochs, and those that show the present one.

    Args:
      optimizer: whose learning rate is logged.
      settings: of the training.
      place: where it begins.
      shows: whether this process shows anything.
    """

    def __init__(
        self,
        optimizer: keras.optimizers.Optimizer,
        settings: Settings,
        place: Place,
        shows: bool,
    ) -> None:
        self._reported = _Reported(optimizer)
        remembering: list[keras.callbacks.Callback] = []
        if settings.patience:
            remembering.append(
                keras.callbacks.EarlyStopping("val_DSC", mode="max", patience=settings.patience)
            )
        live: list[keras.callbacks.Callback] = []
        if shows:
            place.folder.mkdir(parents=True, exist_ok=True)
            board = keras.callbacks.TensorBoard(place.folder / "tensorboard", write_graph=False)
            bars = [keras.callbacks.ProgbarLogger()] if progress.watched() else []
            live = [*bars, _TimeLeft(place, settings.steps), board]
        epochs = math.ceil(settings.steps / place.epoch_steps)
        params = {"verbose": 1, "epochs": epochs, "steps": place.epoch_steps}
        self.past = keras.callbacks.CallbackList(remembering, model=self._reported, **params)
        self.present = keras.callbacks.CallbackList(live, model=self._reported, **params)

    @property
    def stopped(self) -> bool:
        """Whether a callback ended the training."""
        return self._reported.stop_training

    def begin(self, history: Sequence[Logs], first: int) -> None:
        """Shows the epochs so far, from `first` on, to the callbacks that remember."""
        self.past.on_train_begin()
        for epoch, logs in enumerate(history[first:], first):
            self.past.on_epoch_end(epoch, logs)
        self.present.on_train_begin()

    def end(self) -> None:
        self.past.on_train_end()
        self.present.on_train_end()


class _Reported:
    """What Keras' callbacks take for the model: they read its optimizer and tell it to stop."""

    def __init__(self, optimizer: keras.optimizers.Optimizer) -> None:
        self.stop_training, self.optimizer = False, optimizer


class _TimeLeft(keras.callbacks.Callback):
    """A line now and then: where the training is, and the time that the run's trainings still take.

    Where an epoch has a bar, a line comes between two of them.
    """

    def __init__(self, place: Place, steps: int) -> None:
        super().__init__()
        self._place, self._steps, self._done = place, steps, place.step
        self._loss, self._score = "", ""
        self._began = self._told = self._first = time.monotonic()

    def on_train_begin(self, logs: Logs | None = None) -> None:
        self._began = self._told = time.monotonic()

    def on_train_batch_end(self, batch: int, logs: Logs) -> None:
        self._done, self._loss = self._done + 1, f", loss {logs['loss']:.4g}"
        if self._done == self._place.step + 1:
            self._first = time.monotonic()  # tracing takes longer than many steps
        elif not progress.watched():
            self._tell()

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        if "val_DSC" in logs:
            self._score = f", validation DSC {logs['val_DSC']:.4f}"
        self._tell()

    def on_train_end(self, logs: Logs | None = None) -> None:
        if self._done > self._place.step:
            taken = progress.duration(time.monotonic() - self._began)
            print(f"{self._where()}; trained in {taken}", flush=True)

    def _tell(self) -> None:
        """The line, unless there was one of late."""
        now, timed = time.monotonic(), self._done - self._place.step - 1
        if now - self._told < progress.EVERY or self._done == self._steps or not timed:
            return
        self._told = now
        a_step = (now - self._first) / timed
        left = progress.duration(a_step * (self._steps - self._done + self._place.later))
        print(f"{self._where()}; about {left} of training left", flush=True)

    def _where(self) -> str:
        name = self._place.folder.name
        return f"{name}: step {self._done} of {self._steps}{self._loss}{self._score}"
