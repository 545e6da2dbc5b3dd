"""How the cascade is trained: level after level, each frozen once it is finished (section 2.5)."""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Callable, Mapping

import keras
import tensorflow as tf

from tf_autoctx import losses, metrics, progress
from tf_autoctx.data import arrays, augment, labels, pipeline, subvolumes
from tf_autoctx.data.configuration import Augmentation
from tf_autoctx.systems.fetal_head.segmentation import Cascade
from tf_autoctx.systems.shared import stages
from tf_autoctx.systems.shared.caching import Files, case_of
from tf_autoctx.systems.shared.session import Session
from tf_autoctx.systems.shared.stage import AdamStage, Networks, Sample, Tensor

Level = Callable[[Tensor, Tensor], Tensor]  # image, context -> probability


class LevelStage(AdamStage):
    """One level of the cascade; its name is level_1, level_2, ...

    Args:
      level: 1 is the first.
      cascade: what the levels are.
      session: whose files have the last level's context.
    """

    columns: tuple[str, ...] = ("image", "label", "context", "spacing")

    def __init__(self, level: int, cascade: Cascade, session: Session) -> None:
        self.name, self._cascade = f"level_{level}", cascade
        if level > 1:
            below = session.folder / f"level_{level - 1}" / stages.NETWORK
            self.made_on = stages.recorded_digest(below)
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
        self._loss = losses.DeepSupervisedLoss(terms, ignored=session.ignored)

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
        return {"network": self._cascade.network()}

    def losses(self, networks: Networks, batch: Mapping[str, Tensor]) -> Tensor:
        network, l2 = networks["network"], self._cascade.configuration.l2
        x = self._cascade.joined(batch["image"], batch["context"])
        fit = self._loss(batch["label"], network(x, training=True))
        return fit + l2 * losses.l2(network) if l2 else fit

    def read(self, case: pipeline.Case, seed: Tensor) -> Sample:
        """All of a volume, a random patch or a random slice, with its spacing; or a patch that is
        deformed already."""
        configuration, share = self._cascade.configuration, self._cascade.share
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
        if self._deforms_patches:
            return augment.shown(sample, augment.own_seeds(seed), self._augmentation)
        return augment.augmented(sample, seed, self._augmentation)

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
        stage, folder = LevelStage(level, cascade, session), session.folder / f"level_{level}"
        if not stages.is_finished(stage, session, [folder / stages.NETWORK]):
            shutil.rmtree(folder / "probability", ignore_errors=True)  # of an earlier training
        network = stages.train_network(stage, session)
        networks[folder.name] = network
        if level < last:
            session = session.with_files(
                *(
                    with_context(files, cascade, network, folder / "probability")
                    for files in (session.training, session.validation)
                )
            )
    return networks


def with_context(
    files: Files, cascade: Cascade, network: keras.Model, directory: pathlib.Path
) -> Files:
    """The files with a level's probability as context, computed once by its network into
    `directory`."""
    level, changed = level_graph(cascade, network), []
    bar = progress.bar(len(files), "case", "segmented")
    for entry in files:
        path = directory / case_of(entry)
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
