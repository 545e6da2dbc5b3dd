"""Online rendering: renderer, segmentor and discriminators are updated for one image of another
scanner, from the trained weights, until it looks like the source corpus (Yang et al. 2018, section
2.3)."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tf_autoctx import configuration, metrics, progress
from tf_autoctx.errors import FieldError
from tf_autoctx.systems.renderer import source, terms, training
from tf_autoctx.systems.renderer.configuration import DISCRIMINATORS, Objective, Online
from tf_autoctx.systems.renderer.segmentation import Networks, Rendering, Tensor
from tf_autoctx.systems.shared.caching import Files
from tf_autoctx.systems.shared.system import Wanted
from tf_autoctx.training.configuration import Settings
from tf_autoctx.training.runs import Run

LEARNING_RATE = 1e-4  # section 3
SHOWN = ("renderer", "segmentor")  # the networks that an image is rendered and segmented by
MIRRORED = {"left_right": 2, "up_down": 1}  # axis of a batch


class Iteration(NamedTuple):
    """What an iteration made of an image, at the size of training.

    Attributes:
      rendered, probability: (height, width, 1) float32.
      agreement: DSC of the mask with that of the mirror image, mirrored back, in [0, 1]; 0 where it
        is empty or everywhere.
    """

    rendered: np.ndarray
    probability: np.ndarray
    agreement: float

    def outputs(self) -> dict[str, np.ndarray]:
        """As of `Rendering.outputs`, a batch of one."""
        return {"rendered": self.rendered[None], "probability": self.probability[None]}


def kept(iterations: Sequence[Iteration], rule: str) -> int:
    """Number of the iteration that is kept, by one of `KEEPING`, without truth.

    By agreement it is the one whose mask agrees best with the mirror image's, the first of several.
    """
    if rule == "last":
        return len(iterations) - 1
    return int(np.argmax([iteration.agreement for iteration in iterations]))


def of_run(
    rendering: Rendering,
    run: Run,
    iterations: int,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
) -> OnlineRendering:
    """The online rendering of a finished run, under the current dtype policy.

    Args:
      rendering: of the run.
      run: its folder.
      iterations: for every image.
      seed: of the source images that are drawn.
      options: {name: value} of `Online` in place of the run's; a run of before there were such
        flags has the values of then.

    Raises:
      FieldError: the run has no renderer; an option out of range.
      UserError: it is not finished, or config.json lacks something.
    """
    chosen = rendering.configuration
    if not chosen.renders:
        raise FieldError(
            "iterations",
            iterations,
            f"{run.folder} is a run of the variant {chosen.variant}, without a renderer; expected "
            "`iterations=0`.",
        )
    settings = dataclasses.replace(
        run.configured(Settings),
        steps=iterations,
        seed=seed,
        learning_rate=LEARNING_RATE,
        learning_rate_decay="constant",
    )
    own = {
        name: value
        for name, value in (options or {}).items()
        if name in configuration.rules(Online)
    }
    return OnlineRendering(
        rendering,
        run.configured(Objective),
        training.finished(run.folder, chosen),
        source.rendered(run.folder),
        settings,
        dataclasses.replace(run.configured(Online), **own),
    )


class OnlineRendering:
    """Renders images one by one, each from the trained weights, with random members of S' as the
    real ones.

    Args:
      rendering: what the networks are.
      objective: how the terms are weighted and ordered.
      networks: {name: trained network}; they stay as they are.
      corpus: files of S', see `source.rendered`.
      settings: steps are iterations; the seed is that of the source images that are drawn, the same
        ones for every image.
      chosen: how they are rendered.

    Attributes:
      chosen: how they are rendered.
    """

    def __init__(
        self,
        rendering: Rendering,
        objective: Objective,
        networks: Networks,
        corpus: Files,
        settings: Settings,
        chosen: Online,
    ) -> None:
        self._discriminators = rendering.configuration.discriminators
        self._settings, self.chosen = settings, chosen
        self._networks = rendering.networks()  # copies, under the current dtype policy
        for name, network in self._networks.items():
            network.set_weights(networks[name].get_weights())
        self._images, self._labels = (
            [source.read(entry[name], name) for entry in corpus] for name in source.COLUMNS
        )
        objective = chosen.objective(objective)
        rates = dict.fromkeys(DISCRIMINATORS, chosen.online_discriminator_rate / LEARNING_RATE)
        rates["segmentor"] = chosen.online_segmentor_step
        plan = terms.groups(self._networks, objective, online=True)
        optimizers, update = terms.updates(
            self._networks, plan, objective, settings, online=True, rates=rates
        )
        self._update = tf.function(update, reduce_retracing=True, autograph=False)
        self._averaged = {}
        if chosen.online_averaging:
            for name in SHOWN:
                self._averaged[name] = keras.models.clone_model(self._networks[name])
                self._averaged[name].set_weights(self._networks[name].get_weights())
        self._outputs = training.graph(rendering, self._averaged or self._networks)
        self._average = tf.function(self._take_average, autograph=False)
        changing = [*self._networks.values(), *self._averaged.values(), *optimizers.values()]
        self._variables = [variable for owner in changing for variable in owner.variables]
        self._trained = [variable.numpy() for variable in self._variables]
        shown = [*(self._networks[name] for name in SHOWN), *self._averaged.values()]
        self._shown = [variable for network in shown for variable in network.trainable_variables]

    def __call__(
        self, image: Tensor, shown: bool = False, seed: int | None = None
    ) -> list[Iteration]:
        """Renders one image.

        Args:
          image: (height, width, 1) float32 of `Rendering.preprocess`.
          shown: whether to show a progress bar over the iterations.
          seed: of the source images that are drawn; None: that of the settings.

        Returns:
          The first is of the trained weights as they are, then one per iteration.
        """
        for variable, value in zip(self._variables, self._trained):
            variable.assign(value)
        seed = self._settings.seed if seed is None else seed
        rng, mirror = np.random.default_rng(seed), self._mirror(image, seed)
        batch = tf.stack([image, tf.reverse(image, [MIRRORED[mirror] - 1])])
        steps = self._settings.steps
        bar = progress.bar(steps, "iteration", "rendered") if shown else None
        iterations = [self._look(batch, mirror)]
        best = _Best(self._shown, iterations[0].agreement)
        for _ in range(self._settings.steps):
            self._update({"image": batch, "real": self._real(rng)})
            if self._averaged:
                self._average()
            iterations.append(self._look(batch, mirror))
            best.look(iterations[-1].agreement, self.chosen.online_patience)
            if bar:
                bar.add(1)
        return iterations

    def kept(self, iterations: Sequence[Iteration]) -> int:
        """Number of the iteration that is kept."""
        return kept(iterations, self.chosen.online_keep)

    def _mirror(self, image: Tensor, seed: int) -> str:
        """How the image beside this one is mirrored; where it is drawn, by the image itself."""
        if self.chosen.online_mirror == "left_right":
            return "left_right"
        drawn = zlib.crc32(np.asarray(image).tobytes()), seed
        return str(np.random.default_rng(drawn).choice(list(MIRRORED)))

    def _take_average(self) -> None:
        """Moves the averaged weights towards the present ones."""
        decay = self.chosen.online_averaging
        for name, averaged in self._averaged.items():
            present = self._networks[name].trainable_variables
            for mean, variable in zip(averaged.trainable_variables, present):
                mean.assign(decay * mean + (1 - decay) * variable)

    def _real(self, rng: np.random.Generator) -> dict[str, Tensor]:
        """{discriminator: two random members of S', of one size}, drawn independently."""
        real = {}
        for name in self._discriminators:
            first = rng.integers(len(self._images))
            shape = self._images[first].shape
            stack = [i for i, image in enumerate(self._images) if image.shape == shape]
            pair = first, rng.choice([i for i in stack if i != first] or stack)
            image = np.stack([self._images[i] for i in pair])
            label = np.stack([self._labels[i] for i in pair])
            real[name] = terms.seen_by(name, image, (label == 1).astype(np.float32))
        return real

    def _look(self, batch: Tensor, mirror: str) -> Iteration:
        """What the networks make now of an image and its mirror image."""
        outputs = {name: x.numpy() for name, x in self._outputs(batch).items()}
        mask, mirrored = outputs["probability"] > 0.5
        partly = 0 < mask.mean() < 1
        back = np.flip(mirrored, MIRRORED[mirror] - 1)
        agreement = metrics.dice(mask[..., 0], back[..., 0]) if partly else 0.0
        return Iteration(outputs["rendered"][0], outputs["probability"][0], agreement)


class _Best:
    """The weights of the iteration with the best agreement so far.

    Args:
      variables: what goes back.
      agreement: of iteration 0.
    """

    def __init__(self, variables: Sequence[keras.Variable], agreement: float) -> None:
        self._variables, self._agreement = variables, agreement
        self._weights, self._since = [variable.numpy() for variable in variables], 0

    def look(self, agreement: float, patience: int) -> None:
        """Remembers an iteration that is better; after `patience` that are not, the weights go
        back, unless none had a mask yet."""
        self._since += 1
        if agreement > self._agreement:
            self._agreement, self._since = agreement, 0
            self._weights = [variable.numpy() for variable in self._variables]
        elif self._agreement and self._since == patience:
            self._since = 0
            for variable, weights in zip(self._variables, self._weights):
                variable.assign(weights)


class OnlinePredictor:
    """Online rendering of raw images: a `system.Predictor`.

    Args:
      rendering: of the run.
      run: its folder.
      iterations: for every image, one or more.
      seed: of the source images that are drawn.
      options: of `Online`, see `of_run`.

    Raises:
      UserError: see `of_run`.
    """

    def __init__(
        self,
        rendering: Rendering,
        run: Run,
        iterations: int,
        seed: int,
        options: Mapping[str, Any],
    ) -> None:
        self.iterations = iterations
        self._before, self._after = training.of_raw(rendering)
        self._render = of_run(rendering, run, iterations, seed, options)

    is_unsure = False  # its iterations differ, but by what they learnt

    def __call__(
        self, image: np.ndarray, spacing: Sequence[float] | None, wanted: Wanted
    ) -> dict[str, Any]:
        iterations = self._render(self._before(image)[0], wanted.progress)
        outputs = [self._after(x.outputs(), image.shape[1:3]) for x in iterations]
        number = self._render.kept(iterations)
        return {**outputs[number], "kept": number, "iterations": outputs}
