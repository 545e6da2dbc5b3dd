"""The one training loop, for any system and any strategy."""

import dataclasses
import math
import pathlib
import time
import types
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from tf_autoctx.errors import UserError
from tf_autoctx.training.checkpoints import Checkpoints
from tf_autoctx.training.devices import is_chief


@dataclasses.dataclass(frozen=True)
class Settings:
    """The flags of the same names, see `flags.py`."""

    seed: int
    steps: int
    samples_per_epoch: int
    checkpoint_steps: int
    batch_size: int
    learning_rate: float
    learning_rate_decay: str
    beta_1: float
    patience: int


@dataclasses.dataclass
class Stage:
    """What a system hands to the loop.

    Attributes:
      networks: {name: keras.Model}, all that is saved.
      optimizers: {name: optimizer}, already built; the first one's learning rate is logged.
      step: batch -> {name: scalar}; runs on a replica, applies its updates (see `minimize`) and returns what to log,
        "loss" among it.
      batches: (first_step, input context of `tf.distribute`) -> tf.data.Dataset of batches, one a replica and step.
      validate: () -> {"DSC": ..., ...}, or None; the DSC chooses the best checkpoint.
      keeps_last: whether the last checkpoint is kept in its place.
    """

    networks: dict[str, keras.Model]
    optimizers: dict[str, keras.optimizers.Optimizer]
    step: Callable
    batches: Callable
    validate: Callable | None
    keeps_last: bool = False


def minimize(terms):
    """One update by each of some optimizers, all at the weights before, under any strategy and precision.

    Args:
      terms: {name: (optimizer, variables, losses)}: a Keras optimizer (a `LossScaleOptimizer` scales the loss), the list
        of variables that it updates, and () -> (batch,) float32, this replica's loss of each of its samples. Of terms
        that share an optimizer, it takes the sum.

    Returns:
      {name: mean loss of this replica, scalar float32}.
    """
    means, sums = {}, {}  # by term, by optimizer
    with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
        for variable in (variable for _, variables, _ in terms.values() for variable in variables):
            tape.watch(variable.value)
        for name, (optimizer, variables, losses) in terms.items():
            means[name] = tf.reduce_mean(losses())
            # Keras sums the gradients of all replicas.
            scaled = optimizer.scale_loss(
                means[name] / tf.distribute.get_strategy().num_replicas_in_sync
            )
            _, _, before = sums.get(id(optimizer), (None, None, 0.0))
            sums[id(optimizer)] = optimizer, variables, before + scaled
    updates = [
        (optimizer, tape.gradient(scaled, [variable.value for variable in variables]), variables)
        for optimizer, variables, scaled in sums.values()
    ]
    for optimizer, gradients, variables in updates:
        optimizer.apply(gradients, variables)
    return means


def adam(settings, variables):
    """Adam with a constant or a linearly falling learning rate, built, with loss scaling under mixed float16."""
    learning_rate = settings.learning_rate
    if settings.learning_rate_decay == "polynomial":
        learning_rate = keras.optimizers.schedules.PolynomialDecay(
            learning_rate, settings.steps, end_learning_rate=0.0
        )
    optimizer = FusedAdam(learning_rate, beta_1=settings.beta_1)
    if keras.config.dtype_policy().name == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    optimizer.build(variables)
    return optimizer


class FusedAdam(keras.optimizers.Adam):
    """Adam by TensorFlow's one operation a variable in place of Keras' 35, which take most of a small network's step
    and nearly all of its tracing."""

    def update_step(self, gradient, variable, learning_rate):
        index, step = (
            self._get_variable_index(variable),
            tf.cast(self.iterations.value + 1, variable.dtype),
        )
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


def fit(stage, directory, strategy, settings):
    """Trains a stage for its steps, or goes on where a killed run stopped; its networks end with the best weights
    (or the last, where the stage keeps those).

    An epoch is `samples_per_epoch` samples. After each the stage is validated and everything is saved; in between a
    checkpoint is saved every `checkpoint_steps`. The history of all epochs is in the checkpoint: a resumed run shows
    it again to the callbacks that remember something (CSV log, early stopping), so that they are where they were.

    Args:
      stage: a `Stage`, made under `strategy.scope()`.
      directory: gets last/, best/ (checkpoints), history.csv and tensorboard/.
      strategy: `tf.distribute` strategy.
      settings: `Settings`.

    Returns:
      History, a list of dicts, one an epoch.

    Raises:
      UserError: the loss or a weight is no longer finite; no checkpoint can be read; other replicas than before.
    """
    directory = pathlib.Path(directory)
    chief, replicas = is_chief(strategy), strategy.num_replicas_in_sync
    checkpoints = Checkpoints(directory, stage.networks, stage.optimizers, writes=chief)
    state = checkpoints.restore() or {"step": 0, "history": [], "sums": {}, "replicas": replicas}
    if state.get("replicas", replicas) != replicas:
        raise UserError(
            f"{directory}: this training began on {state['replicas']} replicas, now there are {replicas}; expected as many "
            "as before, or another --work_dir."
        )
    step, history, sums = state["step"], state["history"], state["sums"]
    epoch_steps = math.ceil(settings.samples_per_epoch / (settings.batch_size * replicas))

    reported = types.SimpleNamespace(
        stop_training=False, optimizer=next(iter(stage.optimizers.values()))
    )
    remembering = (
        [keras.callbacks.EarlyStopping("val_DSC", mode="max", patience=settings.patience)]
        if settings.patience
        else []
    )
    live = []
    if chief:
        directory.mkdir(parents=True, exist_ok=True)
        remembering.append(keras.callbacks.CSVLogger(directory / "history.csv"))
        live = [
            keras.callbacks.ProgbarLogger(),
            keras.callbacks.TensorBoard(directory / "tensorboard", write_graph=False),
        ]
    params = {"verbose": 1, "epochs": math.ceil(settings.steps / epoch_steps), "steps": epoch_steps}
    past = keras.callbacks.CallbackList(remembering, model=reported, **params)
    present = keras.callbacks.CallbackList(live, model=reported, **params)

    batches = iter(
        strategy.distribute_datasets_from_function(lambda context: stage.batches(step, context))
    )
    # XLA pays on one GPU, and only where no new shape makes it compile again; it cannot reach the variables of several
    # replicas, and on CPUs its 3D convolutions are far slower.
    shapes = [spec.shape for spec in tf.nest.flatten(batches.element_spec, expand_composites=True)]
    compile_ = (
        replicas == 1
        and tf.config.list_logical_devices("GPU")
        and all(s.is_fully_defined() for s in shapes)
    )

    # One graph for all shapes: tracing takes longer than many steps.
    @tf.function(
        input_signature=[batches.element_spec],
        jit_compile=True if compile_ else None,
        autograph=False,  # nothing here is Python's control flow on tensors, and conversion takes a sixth of the tracing
    )
    def train(batch):
        logs = strategy.run(stage.step, args=(batch,))
        return {name: strategy.reduce("MEAN", value, axis=None) for name, value in logs.items()}

    @tf.function(autograph=False)
    def mean_of_replicas(value):
        return strategy.reduce("MEAN", strategy.run(tf.identity, args=(value,)), axis=None)

    def agreed(value):
        """Mean over all processes: they must stop and choose alike, whatever their rounding."""
        return float(mean_of_replicas(tf.constant(value, tf.float64)))

    def diverged(what, at):
        return UserError(
            f"{directory}: {what} at step {at}; the last good checkpoint is kept. Try a lower --learning_rate or "
            "--precision=float32 in another --work_dir."
        )

    def save(best=False):
        # A gradient that is not finite shows in the weights before it shows in a loss.
        if not all(
            np.isfinite(array).all()
            for network in stage.networks.values()
            for array in network.get_weights()
        ):
            raise diverged("a weight was no longer finite", step)
        checkpoints.save(
            {"step": step, "history": history, "sums": sums, "replicas": replicas}, best=best
        )

    past.on_train_begin()
    for epoch, logs in enumerate(history):
        past.on_epoch_end(epoch, logs)
    present.on_train_begin()
    while step < settings.steps and not reported.stop_training:
        epoch = step // epoch_steps
        end = min((epoch + 1) * epoch_steps, settings.steps)
        present.on_epoch_begin(epoch)
        while step < end:
            begin = time.perf_counter()
            batch = next(batches)
            waited = time.perf_counter() - begin
            logs = {name: float(value) for name, value in train(batch).items()}
            if not math.isfinite(logs["loss"]):
                raise diverged(f"the loss became {logs['loss']}", step + 1)
            logs |= {
                "seconds_per_step": time.perf_counter() - begin,
                "seconds_waiting_for_data": waited,
            }
            sums = {name: sums.get(name, 0.0) + value for name, value in logs.items()}
            step += 1
            done = step - epoch * epoch_steps
            present.on_train_batch_end(done - 1, {"loss": sums["loss"] / done})
            if step % settings.checkpoint_steps == 0 and step < end:
                save()

        logs = {name: value / done for name, value in sums.items()}
        best = True
        if stage.validate:
            logs |= {f"val_{name}": agreed(value) for name, value in stage.validate().items()}
            best = stage.keeps_last or all(
                logs["val_DSC"] > past_logs["val_DSC"] for past_logs in history
            )
        history, sums = [*history, logs], {}
        save(best)
        past.on_epoch_end(epoch, logs)
        present.on_epoch_end(epoch, logs)
    past.on_train_end()
    present.on_train_end()
    agreed(0.0)  # The chief has saved before any process reads.
    checkpoints.restore_best()
    return history
