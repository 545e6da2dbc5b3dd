"""How renderer, segmentor and discriminators learn together from the source corpus alone (Yang et
al. 2018, section 2.3)."""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Callable, Collection, Mapping
from typing import Any

import keras
import tensorflow as tf

from tf_autoctx import export, metrics
from tf_autoctx.data import augment, labels, pipeline
from tf_autoctx.data.configuration import Augmentation
from tf_autoctx.errors import FieldError, UserError
from tf_autoctx.files import replacing
from tf_autoctx.systems.renderer import source, terms
from tf_autoctx.systems.renderer.configuration import Appearance, Objective, Renderer
from tf_autoctx.systems.renderer.segmentation import Rendering
from tf_autoctx.systems.shared import stages
from tf_autoctx.systems.shared.session import Session
from tf_autoctx.systems.shared.stage import Networks, Optimizers, Sample, Stage, Step, Tensor
from tf_autoctx.training import devices
from tf_autoctx.training.configuration import Settings

Graph = Callable[[Tensor], dict[str, Tensor]]


class SelfPlayStage(Stage):
    """Self-play training: every image is a fake in turn, and the others are real.

    Validation shows how it goes and does not choose: the segmentor is soon at its best, the
    discriminators are not.

    Args:
      rendering: what the networks are.
      session: of the training.
    """

    name = "self_play"
    columns = (*source.COLUMNS, "spacing", "pixel")
    keeps_last = True

    def __init__(self, rendering: Rendering, session: Session) -> None:
        self._rendering, self._objective = rendering, session.configured(Objective)
        self._augmentation = session.configured(Augmentation)
        self._strength = session.configured(Appearance).appearance_strength
        self._ignored = session.ignored
        self.seed, self.others = session.settings.seed, len(rendering.configuration.discriminators)

    def begin(self, session: Session) -> None:
        """See `Stage.begin`.

        Raises:
          FieldError: images that do not stack to a batch, or too few to have a real one.
        """
        batch_size, cases = session.settings.batch_size, len(session.training)
        pipeline.require_one_shape(stages.sizes(session.training, "label2d"), batch_size)
        fakes = batch_size * session.strategy.num_replicas_in_sync
        if self._objective.mismatched_pairs and batch_size < 2:
            raise FieldError(
                "batch_size",
                batch_size,
                "leaves no other mask for `mismatched_pairs`; expected 2 or more.",
            )
        if self.others and cases <= fakes:
            raise FieldError(
                "batch_size",
                batch_size,
                f"all {cases} training images are fakes at once; expected more images than the "
                f"{fakes} of a step, so that some are real.",
            )

    def build(self) -> Networks:
        return self._rendering.networks()

    def updates(self, networks: Networks, settings: Settings) -> tuple[Optimizers, Step]:
        plan = terms.groups(networks, self._objective)
        return terms.updates(networks, plan, self._objective, settings, ignored=self._ignored)

    def read(self, case: pipeline.Case, seed: Tensor) -> Sample:
        """The case, and for each discriminator another one.

        Returns:
          {"image", "label", "spacing": mm of a pixel, "real": {discriminator: likewise}}; labels
          of real images are 1 where the head is.
        """
        fake, *others = map(self._read, (case, *case.get("others", ())))
        real = dict(zip(self._rendering.configuration.discriminators, others))
        for other in real.values():
            other["label"] = tf.cast(other["label"] == 1, tf.float32)
        return {**fake, "real": real}

    def _read(self, case: pipeline.Case) -> Sample:
        """Image, label and the mm of a pixel of one case."""
        # Sizes that are known let XLA compile the step on a GPU.
        shape = [self._rendering.configuration.size or None] * 2 + [1]
        image, label = (tf.ensure_shape(case[name].whole(), shape) for name in source.COLUMNS)
        spacing = case["spacing"].whole() * case["pixel"].whole()
        return {"image": image, "label": label, "spacing": spacing}

    def augment(self, sample: Sample, seed: Tensor) -> Sample:
        """The fake after all changes, and the real ones after those that move pixels, each by
        itself: they stay what the source's scanner shows, but lie as the fakes do.

        Returns:
          A batch of `terms.Outputs`, without the batch axis.
        """
        real, fake = sample["real"], {name: x for name, x in sample.items() if name != "real"}
        fake = augment.augmented(fake, tf.random.fold_in(seed, augment.FAKES), self._augmentation)
        if self._strength:
            fake["image"] = augment.appearance(fake["image"], seed, self._strength)
        seen = {}
        for number, (name, other) in enumerate(real.items(), start=augment.REALS):
            placed = augment.placed(other, tf.random.fold_in(seed, number), self._augmentation)
            seen[name] = terms.seen_by(name, placed["image"], placed["label"])
        return {**fake, "real": seen}

    def graph(self, networks: Networks) -> Graph:
        return graph(self._rendering, networks)

    def score(self, graph: Graph, sample: Sample) -> float:
        head = graph(sample["image2d"][None])["probability"].numpy()[0, ..., 0] > 0.5
        return metrics.dice(*labels.left_out(head, sample["label2d"][..., 0].numpy()))


def train(rendering: Rendering, session: Session) -> Networks:
    """Trains all networks, or finds them finished; then S is rendered once into S', by the chief.

    The run folder gets networks/ once all are finished, and where there is a renderer rendered/,
    source.json and source.png.

    Raises:
      UserError: see `SelfPlayStage` and `stages.train`.
    """
    folder, chosen = session.folder, rendering.configuration
    stage = SelfPlayStage(rendering, session)
    if stages.is_finished(stage, session, _files(folder, chosen).values()):
        networks = finished(folder, chosen)
    else:
        networks = stages.train(stage, session)
        shutil.rmtree(folder / "rendered", ignore_errors=True)  # by other networks
        with replacing(folder / "networks") as partial:  # all or none
            for name, network in networks.items():
                stages.save(partial / f"{name}.keras", network, stage, session)
    if chosen.renders and devices.is_chief(session.strategy):
        source.render(graph(rendering, networks), session.training, folder)
        source.compare(session.training, folder)
    return networks


def finished(
    folder: pathlib.Path, configuration: Renderer, wanted: Collection[str] | None = None
) -> Networks:
    """The networks of a finished run.

    Args:
      folder: of the run.
      configuration: what the networks are.
      wanted: names of those that are read; None: all.

    Raises:
      UserError: it is not finished, or a network cannot be read.
    """
    directory = folder / "networks"
    if not directory.exists():
        raise UserError(
            f"{directory}: is not there; run the training command with the same flags to finish "
            "the run."
        )
    files = _files(folder, configuration)
    return {name: stages.load(files[name]) for name in files if wanted is None or name in wanted}


def graph(rendering: Rendering, networks: Mapping[str, keras.Model]) -> Graph:
    """`Rendering.outputs` of the networks as a graph for preprocessed images of any size."""

    @tf.function(input_signature=[export.IMAGE], autograph=False)
    def outputs(image: Tensor) -> dict[str, Tensor]:
        return rendering.outputs(networks, image)

    return outputs


def of_raw(
    rendering: Rendering,
) -> tuple[Callable[[Any], Tensor], Callable[[Any, Any], dict[str, Tensor]]]:
    """`Rendering.preprocess` and `Rendering.postprocess` as graphs, the latter of (outputs, (2,)
    size)."""
    image = tf.TensorSpec((None, None, None, 1))
    before = tf.function(rendering.preprocess, input_signature=[image], autograph=False)
    outputs = {"rendered": image, "probability": image}

    @tf.function(input_signature=[outputs, tf.TensorSpec([2], tf.int32)], autograph=False)
    def after(outputs: Mapping[str, Tensor], size: Tensor) -> dict[str, Tensor]:
        return rendering.postprocess(outputs, tf.unstack(size))

    return before, after


def _files(folder: pathlib.Path, configuration: Renderer) -> dict[str, pathlib.Path]:
    """{network: its file} of a run that is finished."""
    return {name: folder / "networks" / f"{name}.keras" for name in configuration.networks}
