"""How the embryo cascade is trained: VNet I, then VNets II and III on what it segments, then all
three (Xu et al. 2020, sections 2.1 to 2.4)."""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import ClassVar

import keras
import numpy as np
import tensorflow as tf

from tf_autoctx import losses, metrics
from tf_autoctx.data import augment, labels, pipeline
from tf_autoctx.data.configuration import Augmentation
from tf_autoctx.errors import UserError
from tf_autoctx.files import replacing
from tf_autoctx.systems.embryo.configuration import STAGES, Schedule
from tf_autoctx.systems.embryo.segmentation import Refinement
from tf_autoctx.systems.shared import seen, stages
from tf_autoctx.systems.shared.session import Session
from tf_autoctx.systems.shared.stage import AdamStage, Networks, Sample, Tensor, digest
from tf_autoctx.training import runs
from tf_autoctx.training.runs import Run

Graph = Callable[[Tensor], tuple[Tensor, Tensor]]  # image -> probability, classes


class CascadeStage(AdamStage):
    """A stage of the cascade: one network that takes VNets over from the stage before.

    Args:
      refinement: what the networks are.
      session: of the run.

    Attributes:
      frozen: those of the VNets taken over that stay as they are.
      cost: time of a step, relative to those of the other stages (measured on the demo).

    Raises:
      UserError: the stage before is not finished.
    """

    columns = ("image", "label", "spacing")
    frozen: ClassVar[tuple[str, ...]] = ()
    cost: ClassVar[float] = 1.0

    def __init__(self, refinement: Refinement, session: Session) -> None:
        number = STAGES.index(self.name)
        self.seed = session.settings.seed * 1000 + number
        self._refinement = refinement
        self._augmentation = session.configured(Augmentation)
        self._loss = losses.ProbabilityLoss(session.settings.terms(("dice",)))
        self._ignored = session.ignored
        self._weights = self._before(session.folder, STAGES[number - 1]) if number else {}
        if self._weights:
            weights = [array for of_vnet in self._weights.values() for array in of_vnet]
            self.made_on = digest(weights)

    def begin(self, session: Session) -> None:
        """See `Stage.begin`.

        Raises:
          FieldError: volumes that do not stack to a batch.
        """
        sizes = stages.sizes(session.training, "label")
        pipeline.require_one_shape(sizes, session.settings.batch_size)

    def _before(self, folder: pathlib.Path, stage: str) -> dict[str, list[np.ndarray]]:
        """{VNet that is taken over: its weights} of the stage before."""
        network = stages.finished(folder / stage)
        if network is None:
            raise UserError(
                f"{folder / stage / 'model.keras'}: this stage is not finished; run "
                f"`stage={stage}` (or all) before {self.name}."
            )
        return {name: network.get_layer(name).get_weights() for name in self.taken_over}

    @classmethod
    def own_session(cls, session: Session) -> Session:
        """The session with the settings of this stage."""
        return session

    def build(self) -> Networks:
        network = self._refinement.network(self.name)
        for name, weights in self._weights.items():
            network.get_layer(name).set_weights(weights)
        for name in self.frozen:
            network.get_layer(name).trainable = False
        return {"network": network}

    def augment(self, sample: Sample, seed: Tensor) -> Sample:
        return augment.augmented(sample, seed, self._augmentation)

    def graph(self, networks: Networks) -> Graph:
        return graph(self._refinement, networks["network"])

    def score(self, graph: Graph, sample: Sample) -> float:
        _, classes = graph(sample["image"][None])
        label = sample["label"][..., 0].numpy()
        return metrics.mean_dice(*labels.left_out(classes.numpy()[0, ..., 0], label))


class InitialStage(CascadeStage):
    """VNet I at low resolution (section 2.1)."""

    name = "initial"

    @classmethod
    def own_session(cls, session: Session) -> Session:
        factor = session.configured(Schedule).initial_factor
        return session.with_settings(steps=factor * session.settings.steps)

    def losses(self, networks: Networks, batch: Mapping[str, Tensor]) -> Tensor:
        """By default the Dice loss, averaged over the three classes on VNet I's grid."""
        initial = networks["network"](batch["image"], training=True)["initial"]
        low = self._refinement.low_label(batch["label"])
        counted = losses.counted(initial, low, self._ignored)
        return self._loss(losses.one_hot(low, initial), counted)


class RefineStage(CascadeStage):
    """VNets II and III, on what VNet I segments (section 2.3)."""

    name = "refine"
    taken_over: tuple[str, ...] = ("vnet_1",)
    frozen: ClassVar[tuple[str, ...]] = ("vnet_1",)
    cost: ClassVar[float] = 3.0

    def losses(self, networks: Networks, batch: Mapping[str, Tensor]) -> Tensor:
        """By default the Dice losses of body and ventricle on the original grid, summed."""
        outputs, label = networks["network"](batch["image"], training=True), batch["label"]
        body, ventricle = (
            losses.counted(outputs[name], label, self._ignored) for name in ("body", "ventricle")
        )
        return self._loss(label == 1, body) + self._loss(label == 2, ventricle)


class EndToEndStage(RefineStage):
    """All three VNets, at a learning rate of their own (section 2.4)."""

    name = "end_to_end"
    taken_over = ("vnet_1", "vnet_2", "vnet_3")
    frozen = ()
    cost = 4.0

    @classmethod
    def own_session(cls, session: Session) -> Session:
        learning_rate = session.configured(Schedule).end_to_end_learning_rate
        return session.with_settings(learning_rate=learning_rate)


KINDS = {kind.name: kind for kind in (InitialStage, RefineStage, EndToEndStage)}


def train(refinement: Refinement, session: Session) -> Networks:
    """Trains the stages that are wanted, each from the networks of the one before.

    Returns:
      See `finished`.

    Raises:
      FieldError, UserError: see `CascadeStage` and `stages.train`.
    """
    schedule = session.configured(Schedule)
    if schedule.initial_from:
        _take_over(initial_file(schedule.initial_from), session)
    names = schedule.stages(refinement.configuration.auto_context)
    sessions = {name: KINDS[name].own_session(session) for name in names}
    costs = {name: KINDS[name].cost * own.settings.steps for name, own in sessions.items()}
    for name, own in sessions.items():
        stages.train_network(KINDS[name](refinement, own), own.with_costs(costs))
    return finished(session.run)


def initial_file(folder: str | pathlib.Path) -> pathlib.Path:
    """VNet I's file in a run folder whose initial stage is finished."""
    return pathlib.Path(folder) / "initial" / "model.keras"


def _take_over(source: pathlib.Path, session: Session) -> None:
    """Takes over VNet I of another run, unless there is one, and notes where it comes from."""
    path = initial_file(session.folder)
    if path.exists():
        return
    facts = [run.facts.get(seen.FACT, {}) for run in (session.run, runs.load(source.parent.parent))]
    session.run.note(initial_from=str(source), **{seen.FACT: seen.joined(*facts)})
    with replacing(path) as partial:  # last: where it is, all is noted
        shutil.copyfile(source, partial)


def finished_stages(run: Run) -> list[str]:
    """Names of the finished stages of a run, in their order.

    Raises:
      UserError: there is none.
    """
    names = [name for name in STAGES if (run.folder / name / "model.keras").exists()]
    if not names:
        raise UserError(
            f"{run.folder}: no stage is finished; run the training command with the same flags to "
            "go on."
        )
    return names


def finished(run: Run) -> Networks:
    """{stage: network} of the finished stages of a run, in their order.

    Raises:
      UserError: there is none, or one cannot be read.
    """
    return {name: stages.load(run.folder / name / stages.NETWORK) for name in finished_stages(run)}


def last_finished(run: Run) -> Networks:
    """{stage: network} of the last stage that is finished; no other is read.

    Raises:
      UserError: see `finished`.
    """
    name = finished_stages(run)[-1]
    return {name: stages.load(run.folder / name / stages.NETWORK)}


def graph(refinement: Refinement, network: keras.Model) -> Graph:
    """`Refinement.prediction` of a network as a graph for one volume of any size."""

    image = tf.TensorSpec((1, None, None, None, refinement.channels))

    @tf.function(input_signature=[image], autograph=False)
    def prediction(image: Tensor) -> tuple[Tensor, Tensor]:
        return refinement.prediction(network, image)

    return prediction
