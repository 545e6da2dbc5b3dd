"""The one training loop, for any system and any strategy."""

from __future__ import annotations

import csv
import dataclasses
import math
import pathlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import keras
import numpy as np
import tensorflow as tf

from tf_autoctx.errors import UserError
from tf_autoctx.files import replacing
from tf_autoctx.training.callbacks import Callbacks, Place
from tf_autoctx.training.checkpoints import Checkpoints
from tf_autoctx.training.configuration import Settings
from tf_autoctx.training.devices import is_chief

Batch = Any  # nested tensors of one replica
Logs = dict[str, float]


class Task(Protocol):
    """What the loop trains: networks, their optimizers, and one step of one replica.

    Attributes:
      keeps_last: whether the last weights are kept in place of the best.
      validates: whether there is anything to validate on.
      later: what the rest of the run takes, in steps of this task; for the time that is left.
    """

    keeps_last: bool
    validates: bool
    later: float

    @property
    def networks(self) -> Mapping[str, keras.Model]:
        """{name: network}, all that is saved."""

    @property
    def optimizers(self) -> Mapping[str, keras.optimizers.Optimizer]:
        """{name: optimizer}, already built; the first one's learning rate is logged."""

    def augmented(self, batch: Batch) -> Batch:
        """A batch of `batches` as `step` sees it, on a replica, in a graph that XLA does not
        compile: its random numbers are others."""

    def step(self, batch: Batch) -> dict[str, tf.Tensor]:
        """Applies one replica's updates (see `minimize`), on a replica, in a graph.

        Returns:
          {name: scalar} to log, "loss" among them.
        """

    def batches(self, first_step: int, context: tf.distribute.InputContext) -> tf.data.Dataset:
        """Batches from a step on, one per replica and step; called once, in every process."""

    def validate(self) -> Logs:
        """Scores of the networks as they are, after an epoch; "DSC" picks the best checkpoint."""


@dataclasses.dataclass(frozen=True)
class Term:
    """A term of a loss and what it updates.

    Attributes:
      optimizer: a Keras optimizer; terms that share one have their sum taken.
      variables: what it updates.
      losses: () -> (batch,) float32, this replica's loss of each of its samples.
    """

    optimizer: keras.optimizers.Optimizer
    variables: list[Any]
    losses: Callable[[], tf.Tensor]


def minimize(terms: Mapping[str, Term]) -> dict[str, tf.Tensor]:
    """One update by each optimizer, all at the weights before, under any strategy and precision.

    Args:
      terms: {name: term}.

    Returns:
      {name: mean loss of this replica, scalar float32}.
    """
    means: dict[str, tf.Tensor] = {}
    sums: dict[int, tuple[Term, Any]] = {}  # by optimizer
    with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
        for variable in (variable for term in terms.values() for variable in term.variables):
            tape.watch(variable.value)
        for name, term in terms.items():
            means[name] = tf.reduce_mean(term.losses())
            # Keras sums the gradients of all replicas; a LossScaleOptimizer scales the loss.
            replicas = tf.distribute.get_strategy().num_replicas_in_sync
            scaled = term.optimizer.scale_loss(means[name] / replicas)
            _, before = sums.get(id(term.optimizer), (term, 0.0))
            sums[id(term.optimizer)] = term, before + scaled
    gradients = [
        tape.gradient(total, [variable.value for variable in term.variables])
        for term, total in sums.values()
    ]
    for (term, _), of_term in zip(sums.values(), gradients):
        term.optimizer.apply(of_term, term.variables)
    return means


def adam(
    settings: Settings, variables: list[Any], rates: Sequence[float] = ()
) -> keras.optimizers.Optimizer:
    """Adam with a constant or a linearly falling learning rate, built; float16 scales its loss.

    Args:
      settings: learning rate and momentum.
      variables: what it updates.
      rates: learning rate of each variable, relative to that of the settings; empty: 1.
    """
    falls = settings.learning_rate_decay == "polynomial"
    falling = Falling(settings.learning_rate, settings.steps) if falls else None
    optimizer = FusedAdam(falling or settings.learning_rate, beta_1=settings.beta_1)
    optimizer.falling = falling
    optimizer.rates = tuple(rates) if any(rate != 1 for rate in rates) else ()
    if keras.config.dtype_policy().name == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    optimizer.build(variables)
    return optimizer


class Falling(keras.optimizers.schedules.LearningRateSchedule):
    """Falls linearly to 0 at the last step.

    Attributes:
      learning_rate: at the first step.
      steps: number of the last step.
      first: number of the first step: where fewer steps have ended before.
    """

    def __init__(self, learning_rate: float, steps: int) -> None:
        self.learning_rate, self.steps, self.first = learning_rate, steps, 0

    def __call__(self, step: Any) -> Any:
        left = 1 - (tf.cast(step, tf.float32) - self.first) / (self.steps - self.first)
        return self.learning_rate * tf.clip_by_value(left, 0.0, 1.0)


class FusedAdam(keras.optimizers.Adam):
    """Adam by TensorFlow's one operation a variable in place of Keras' 35.

    Those take most of a small network's step and nearly all of its tracing.

    Attributes:
      rates: learning rate of each variable, relative to the common one; empty: 1.
      falling: its learning rate, where that falls.
    """

    rates: tuple[float, ...] = ()
    falling: Falling | None = None

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        index = self._get_variable_index(variable)
        if self.rates:
            learning_rate = learning_rate * self.rates[index]
        step = tf.cast(self.iterations.value + 1, variable.dtype)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].value.handle,
            v=self._velocities[index].value.handle,
            beta1_power=self.beta_1**step,
            beta2_power=self.beta_2**step,
            lr=tf.cast(learning_rate, variable.dtype),
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=self.epsilon,
            grad=gradient,
        )


def fit(
    task: Task,
    directory: pathlib.Path,
    strategy: tf.distribute.Strategy,
    settings: Settings,
    made_on: str | None = None,
) -> list[Logs]:
    """Trains a task for its steps, or goes on where a killed run stopped; its networks end with the
    best weights (or the last, where the task keeps those).

    An epoch is `samples_per_epoch` samples. After each the task is validated and everything is
    saved; in between a checkpoint is saved every `checkpoint_steps`. The history of all epochs is
    in the checkpoint: a resumed run writes it whole, and shows it again to the callbacks that
    remember something (early stopping), so that they are where they were. More steps than before
    go on from the last checkpoint; a learning rate that has fallen to 0 begins again.

    Args:
      task: made under `strategy.scope()`.
      directory: gets last/, best/ (checkpoints), history.csv and tensorboard/.
      strategy: `tf.distribute` strategy.
      settings: how long and how fast.
      made_on: what the task is built upon, see `Checkpoints`.

    Returns:
      History, a dict per epoch.

    Raises:
      UserError: the loss or a weight is no longer finite; no checkpoint can be read; other
        replicas than before.
    """
    return _Fit(task, directory, strategy, settings, made_on).run()


def write_history(path: pathlib.Path, history: Sequence[Logs]) -> None:
    """Writes a history as CSV, a line per epoch, whole or not at all."""
    columns = sorted({name for logs in history for name in logs})
    with replacing(path) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, ["epoch", *columns], restval="NA", lineterminator="\n")
        table.writeheader()
        table.writerows({"epoch": epoch, **logs} for epoch, logs in enumerate(history))


class _Fit:
    """One call of `fit`: where the training is, and what it reports to."""

    def __init__(
        self,
        task: Task,
        directory: pathlib.Path,
        strategy: tf.distribute.Strategy,
        settings: Settings,
        made_on: str | None,
    ) -> None:
        self.task, self.directory = task, directory
        self.strategy, self.settings = strategy, settings
        self.replicas = strategy.num_replicas_in_sync
        per_step = settings.batch_size * self.replicas
        self.epoch_steps = math.ceil(settings.samples_per_epoch / per_step)
        self.checkpoints = Checkpoints(
            directory, task.networks, task.optimizers, made_on, writes=is_chief(strategy)
        )
        self.first = 0  # step at which the learning rate begins to fall
        self.replayed = 0  # epoch from which on patience counts
        self.step, self.history, self.sums, self.summed = self._restored()
        for optimizer in task.optimizers.values():
            adam = getattr(optimizer, "inner_optimizer", optimizer)  # of one that scales the loss
            if isinstance(adam, FusedAdam) and adam.falling:
                adam.falling.first = self.first
        if is_chief(strategy):
            write_history(directory / "history.csv", self.history)
        first = next(iter(task.optimizers.values()))
        place = Place(directory, self.step, self.epoch_steps, task.later)
        self.callbacks = Callbacks(first, settings, place, is_chief(strategy))

    def _restored(self) -> tuple[int, list[Logs], Logs, int]:
        """Step, history, sums over the epoch so far and over how many steps they go: those of the
        newest checkpoint, or of a start."""
        state = self.checkpoints.restore()
        if state is None:
            return 0, [], {}, 0
        if state.get("replicas", self.replicas) != self.replicas:
            raise UserError(
                f"{self.directory}: this training began on {state['replicas']} replicas, now there "
                f"are {self.replicas}; expected as many as before, or another `work_dir`."
            )
        step, sums = state["step"], state["sums"]
        # Fewer steps than now, all done or ended by patience.
        ended = state.get("stopped", False) or step == state.get("steps")
        ended = ended and self.settings.steps > state.get("steps", step)
        self.first = step if ended else state.get("first", 0)
        self.replayed = len(state["history"]) if ended else state.get("replayed", 0)
        if ended:
            print(
                f"{self.directory}: goes on from step {step} to {self.settings.steps}; its "
                "learning rate begins again, and what is made on it is trained anew if its "
                "weights change"
            )
        # A last epoch that was cut short by the number of steps counts as one.
        return step, state["history"], sums, state.get("summed", step % self.epoch_steps)

    def run(self) -> list[Logs]:
        batches = iter(
            self.strategy.distribute_datasets_from_function(
                lambda context: self.task.batches(self.step, context)
            )
        )
        train = self._graph(batches.element_spec)
        self.callbacks.begin(self.history, self.replayed)
        while self.step < self.settings.steps and not self.callbacks.stopped:
            epoch = self.step // self.epoch_steps
            end = min((epoch + 1) * self.epoch_steps, self.settings.steps)
            self.callbacks.present.on_epoch_begin(epoch)
            while self.step < end:
                self._train_step(train, batches, epoch)
                if self.step % self.settings.checkpoint_steps == 0 and self.step < end:
                    self._save()
            self._end_epoch(epoch)
        self.callbacks.end()
        self._agreed(0.0)  # The chief has saved before any process reads.
        self.checkpoints.restore_best()
        return self.history

    def _graph(self, spec: Any) -> Callable[[Batch], dict[str, tf.Tensor]]:
        """A step of all replicas; one graph for all shapes, as tracing takes longer than steps."""
        # XLA pays on one GPU, and only where no new shape makes it compile again; it cannot reach
        # the variables of several replicas, and on CPUs its 3D convolutions are far slower.
        on_gpu = self.replicas == 1 and bool(tf.config.list_logical_devices("GPU"))

        def augmented_step(batch: Batch) -> dict[str, tf.Tensor]:
            seen, step = self.task.augmented(batch), self.task.step
            if on_gpu and all(tensor.shape.is_fully_defined() for tensor in tf.nest.flatten(seen)):
                step = tf.function(step, jit_compile=True, autograph=False)
            return step(seen)

        # autograph: nothing here is Python's control flow on tensors, and conversion takes a sixth
        # of the tracing.
        @tf.function(input_signature=[spec], autograph=False)
        def train(batch: Batch) -> dict[str, tf.Tensor]:
            logs = self.strategy.run(augmented_step, args=(batch,))
            return {
                name: self.strategy.reduce("MEAN", value, axis=None) for name, value in logs.items()
            }

        return train

    def _train_step(
        self, train: Callable[[Batch], dict[str, tf.Tensor]], batches: Any, epoch: int
    ) -> None:
        begin = time.perf_counter()
        batch = next(batches)
        waited = time.perf_counter() - begin
        logs = {name: float(value) for name, value in train(batch).items()}
        if not math.isfinite(logs["loss"]):
            raise self._diverged(f"the loss became {logs['loss']}", self.step + 1)
        logs |= {
            "seconds_per_step": time.perf_counter() - begin,
            "seconds_waiting_for_data": waited,
        }
        self.sums = {name: self.sums.get(name, 0.0) + value for name, value in logs.items()}
        self.step, self.summed = self.step + 1, self.summed + 1
        done = self.step - epoch * self.epoch_steps
        shown = {"loss": self.sums["loss"] / self.summed}
        self.callbacks.present.on_train_batch_end(done - 1, shown)

    def _end_epoch(self, epoch: int) -> None:
        """Validates, saves and reports."""
        logs = {name: value / self.summed for name, value in self.sums.items()}
        best = True
        if self.task.validates:
            scores = self.task.validate()
            logs |= {f"val_{name}": self._agreed(value) for name, value in scores.items()}
            best = self.task.keeps_last or all(
                logs["val_DSC"] > past["val_DSC"] for past in self.history
            )
        self.history, self.sums, self.summed = [*self.history, logs], {}, 0
        self.callbacks.past.on_epoch_end(epoch, logs)
        self._save(best)
        if is_chief(self.strategy):
            write_history(self.directory / "history.csv", self.history)
        self.callbacks.present.on_epoch_end(epoch, logs)

    def _save(self, best: bool = False) -> None:
        # A gradient that is not finite shows in the weights before it shows in a loss.
        weights: Iterable[np.ndarray] = (
            array for network in self.task.networks.values() for array in network.get_weights()
        )
        if not all(np.isfinite(array).all() for array in weights):
            raise self._diverged("a weight was no longer finite", self.step)
        state = {
            "step": self.step,
            "history": self.history,
            "sums": self.sums,
            "summed": self.summed,
            "steps": self.settings.steps,
            "first": self.first,
            "replayed": self.replayed,
            "stopped": self.callbacks.stopped,
            "replicas": self.replicas,
        }
        self.checkpoints.save(state, best=best)

    def _diverged(self, what: str, step: int) -> UserError:
        return UserError(
            f"{self.directory}: {what} at step {step}; the last good checkpoint is kept. Try a "
            "lower `learning_rate` or `precision=float32` in another `work_dir`."
        )

    def _agreed(self, value: float) -> float:
        """Mean over all processes: they must stop and choose alike, whatever their rounding."""
        return float(self._mean_of_replicas(tf.constant(value, tf.float64)))

    @tf.function(autograph=False)
    def _mean_of_replicas(self, value: tf.Tensor) -> tf.Tensor:
        of_replicas = self.strategy.run(tf.identity, args=(value,))
        return self.strategy.reduce("MEAN", of_replicas, axis=None)
