"""How the cascade is trained: level after level, each frozen once it is finished (section 2.5)."""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tf_autoctx import losses, metrics, progress
from tf_autoctx.data import arrays, augment, labels, pipeline, subvolumes
from tf_autoctx.data.configuration import Augmentation
from tf_autoctx.systems.fetal_head.segmentation import Cascade
from tf_autoctx.systems.shared import stages
from tf_autoctx.systems.shared.caching import Files, case_of
from tf_autoctx.systems.shared.session import Session
from tf_autoctx.systems.shared.stage import (
    AdamStage,
    Networks,
    Optimizers,
    Sample,
    Step,
    Tensor,
    digest,
)
from tf_autoctx.training.configuration import Settings

Level = Callable[[Tensor, Tensor], Tensor]  # image, context -> probability


class LevelStage(AdamStage):
    """One level of the cascade; its name is level_1, level_2, ...

    Args:
      level: 1 is the first.
      cascade: what the levels are.
      session: whose files have the last level's context.
      below: the finished levels before it, level 1 first.
    """

    columns: tuple[str, ...] = ("image", "label", "context", "spacing")

    def __init__(
        self, level: int, cascade: Cascade, session: Session, below: Sequence[keras.Model] = ()
    ) -> None:
        self.name, self._cascade, self._below = f"level_{level}", cascade, below
        if below:
            self.made_on = digest(below[-1].get_weights())
        self._computes_context = bool(below) and cascade.configuration.context == "augmented"
        self._dropout = cascade.configuration.context_dropout if level > 1 else 0.0
        self._frozen: Sequence[keras.Model] = ()
        # Each level has its own seed, so that it does not matter which levels were trained in the
        # same process.
        self.seed = session.settings.seed * 1000 + level
        if cascade.share:
            self.columns = (*self.columns, "places")
        self._augmentation = session.configured(Augmentation)
        # A patch that turns shows what lies around it, not its own edges.
        self._deforms_patches = (
            cascade.configuration.view == "patches" and self._augmentation.resamples
        )
        terms = session.settings.terms(("cross_entropy",))
        side_labels = cascade.configuration.side_labels
        self._loss = losses.DeepSupervisedLoss(
            terms, ignored=session.ignored, side_labels=side_labels
        )

    def begin(self, session: Session) -> None:
        """See `Stage.begin`.

        Raises:
          FieldError: samples that do not stack to a batch; a patch that is too large.
        """
        sizes = stages.sizes(session.training, "image")
        shapes = {self._cascade.training_shape(size) for size in sizes}
        pipeline.require_one_shape(shapes, session.settings.batch_size)
        # Sizes that are known let XLA compile the step on a GPU.
        unknown = [None] * len(next(iter(shapes)))
        self._shape = [*(next(iter(shapes)) if len(shapes) == 1 else unknown)]

    def build(self) -> Networks:
        network = self._cascade.network()
        if self._below and self._cascade.configuration.warm_start:
            weights = self._below[-1].get_weights()
            if self._cascade.configuration.join == "concat":
                # The context's channel is new: the level before saw another map, or none.
                image, own = weights[0][..., :-1, :], network.get_weights()[0][..., -1:, :]
                weights[0] = np.concatenate([image, own], axis=-2)
            network.set_weights(weights)
        return {"network": network}

    def updates(self, networks: Networks, settings: Settings) -> tuple[Optimizers, Step]:
        """See `Stage.updates`; every replica has its own copies of the levels before."""
        if self._computes_context:
            self._frozen = [self._cascade.network() for _ in self._below]
            for copy, network in zip(self._frozen, self._below):
                copy.set_weights(network.get_weights())
        return super().updates(networks, settings)

    def losses(self, networks: Networks, batch: Mapping[str, Tensor]) -> Tensor:
        network, l2 = networks["network"], self._cascade.configuration.l2
        x = self._cascade.joined(batch["image"], self._context(batch))
        fit = self._loss(batch["label"], network(x, training=True))
        return fit + l2 * losses.l2(network) if l2 else fit

    def _context(self, batch: Mapping[str, Tensor]) -> Tensor:
        """What the level sees of the level before, (batch, *spatial, 1)."""
        image = batch["image"]
        context = ops.zeros_like(image[..., :1]) if self._frozen else batch["context"]
        for network in self._frozen:
            context = self._cascade.head(network, self._cascade.joined(image, context))
        context = ops.stop_gradient(context)
        if self._dropout:
            context *= ops.reshape(batch["kept"], (-1, *(1,) * (len(context.shape) - 1)))
        return context

    def read(self, case: pipeline.Case, seed: Tensor) -> Sample:
        """All of a volume, a random patch or a random slice, with its spacing; or a patch that is
        deformed already."""
        configuration, share = self._cascade.configuration, self._cascade.share
        if self._computes_context:
            case = {name: array for name, array in case.items() if name != "context"}
        if self._deforms_patches and configuration.edges:
            how = configuration.edges, self._augmentation, share
            return self._known(subvolumes.patch(case, seed, *how))
        seen = pipeline.random_patch(case, seed, self._cascade.training_patch(), share)
        if configuration.view == "slices":
            seen = {name: tensor[0] for name, tensor in seen.items()}
        return self._known(seen) | {"spacing": case["spacing"].whole()}

    def _known(self, seen: Sample) -> Sample:
        """What a pass sees, of the shape that is known."""
        return {
            name: tf.ensure_shape(tensor, [*self._shape, tensor.shape[-1]])
            for name, tensor in seen.items()
        }

    def augment(self, sample: Sample, seed: Tensor) -> Sample:
        """The sample after random changes; "kept" is 0 where its context is dropped, else 1."""
        if self._deforms_patches:
            changed = augment.shown(sample, augment.own_seeds(seed), self._augmentation)
        else:
            changed = augment.augmented(sample, seed, self._augmentation)
        if not self._dropout:
            return changed
        chance = tf.random.stateless_uniform([], tf.random.fold_in(seed, augment.CONTEXT))
        return changed | {"kept": tf.cast(chance >= self._dropout, tf.float32)}

    def graph(self, networks: Networks) -> Level:
        return level_graph(self._cascade, networks["network"])

    def score(self, graph: Level, sample: Sample) -> float:
        probability = graph(sample["image"][None], sample["context"][None]).numpy()
        label = sample["label"][..., 0].numpy()
        return metrics.dice(*labels.left_out(probability[0, ..., 0] > 0.5, label))


def train(cascade: Cascade, session: Session) -> Networks:
    """Trains level k after level k - 1 is finished, on its probability: {level_k: network}."""
    networks: Networks = {}
    last = cascade.configuration.levels
    session = session.with_costs({f"level_{level}": 1.0 for level in range(1, last + 1)})
    for level in range(1, last + 1):
        stage = LevelStage(level, cascade, session, list(networks.values()))
        folder = session.folder / stage.name
        maps = folder / "probability"
        if not stages.is_finished(stage, session, [folder / stages.NETWORK]):
            shutil.rmtree(maps, ignore_errors=True)  # of an earlier training
        network = stages.train_network(stage, session)
        networks[stage.name] = network
        if level < last:
            training, validation = session.training, session.validation
            if cascade.configuration.context == "cached":
                training = with_context(training, cascade, network, maps)
            validation = with_context(validation, cascade, network, maps)
            session = session.with_files(training, validation)
    return networks


def with_context(
    files: Files, cascade: Cascade, network: keras.Model, directory: pathlib.Path
) -> Files:
    """The files with a level's probability as context, computed once by its network into
    `directory`, under names that tell the network."""
    level, changed, made_by = level_graph(cascade, network), [], digest(network.get_weights())[:16]
    bar = progress.bar(len(files), "case", "segmented")
    for entry in files:
        path = directory / f"{case_of(entry)}_{made_by}"
        if not path.exists():
            columns = {name: entry[name] for name in LevelStage.columns}
            sample = pipeline.sample(columns, cascade.channels)
            probability = level(sample["image"][None], sample["context"][None])[0]
            pipeline.store(path, probability, chunk(cascade))
        changed.append({**entry, "context": str(path)})
        bar.add(1)
    return changed


def chunk(cascade: Cascade) -> tuple[int | None, ...]:
    """See `System.chunk`: of a volume a pass reads its own patch or slice."""
    chunks: dict[str, tuple[int | None, ...]] = {"patches": arrays.CUBES, "slices": (1,)}
    return chunks.get(cascade.configuration.view, ())


def level_graph(cascade: Cascade, network: keras.Model) -> Level:
    """`Cascade.probability` of one network as a graph for one volume of any size."""

    image, context = (
        tf.TensorSpec((1, None, None, None, channels)) for channels in (cascade.channels, 1)
    )

    @tf.function(input_signature=[image, context], autograph=False)
    def probability(image: Tensor, context: Tensor) -> Tensor:
        return cascade.probability(network, image, context)

    return probability
