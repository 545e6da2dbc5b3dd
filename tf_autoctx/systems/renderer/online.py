"""Online rendering: renderer, segmentor and discriminators are updated for one image of another scanner, from the
trained weights, until it looks like the source corpus (Yang et al. 2018, section 2.3)."""

import dataclasses
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tf_autoctx import metrics
from tf_autoctx.data import pipeline
from tf_autoctx.errors import UserError
from tf_autoctx.systems import self_play
from tf_autoctx.training import loop, runs

# Section 3
ITERATIONS = 25
LEARNING_RATE = 1e-4


class Iteration(NamedTuple):
    """What an iteration made of an image, at the size of training.

    Attributes:
      rendered, probability: (height, width, 1) float32.
      agreement: DSC of the mask with that of the mirror image, mirrored back, in [0, 1]; 0 where it is
        empty or everywhere.
    """

    rendered: np.ndarray
    probability: np.ndarray
    agreement: float

    def answer(self):
        """As of `Renderer.answer`, a batch of one."""
        return {"rendered": self.rendered[None], "probability": self.probability[None]}


def kept(iterations):
    """Number of the iteration that is kept, a rule without truth: the one whose mask agrees best with the mirror image's,
    the first of several."""
    return int(np.argmax([iteration.agreement for iteration in iterations]))


def of_run(run, system, given, iterations, seed):
    """`OnlineRendering` of a finished run of `train_renderer.py`, in the precision of today.

    Args:
      run: folder.
      system, given: its `renderer.Renderer` and {name: value} of its flags.
      iterations: see `OnlineRendering`.
      seed: of the source images that are drawn.

    Raises:
      UserError: the run is not finished, or has no renderer.
      KeyError, TypeError, ValueError: a flag is missing or wrong.
    """
    if not system.renders:
        raise UserError(
            f"{run}: a run of the variant {system.variant}, without a renderer; expected --iterations=0."
        )
    settings = dataclasses.replace(
        runs.configured(loop.Settings, given),
        steps=iterations,
        seed=seed,
        learning_rate=LEARNING_RATE,
        learning_rate_decay="constant",
    )
    objective = runs.configured(self_play.Objective, given)
    return OnlineRendering(
        system, objective, self_play.finished(run), self_play.rendered(run), settings
    )


class OnlineRendering:
    """Renders images one by one, each from the trained weights, with random members of S' as the real ones."""

    def __init__(self, system, objective, networks, source, settings):
        """
        Args:
          system: `renderer.Renderer`.
          objective: `self_play.Objective`.
          networks: {name: trained network}; they stay as they are.
          source: files of `self_play.render_source`.
          settings: `loop.Settings`: steps are iterations, the seed is that of the source images that are drawn, the
            same ones for every image.
        """
        self._system, self._settings = system, settings
        self._networks = system.networks()  # copies, in the precision of today
        for name, network in self._networks.items():
            network.set_weights(networks[name].get_weights())
        self._images, self._labels = (
            [pipeline.stored(entry[kind], kind).numpy() for entry in source]
            for kind in ("image2d", "label2d")
        )
        plan = self_play.groups(self._networks, objective, online=True)
        optimizers, update = self_play.updates(
            self._networks, plan, objective, settings, online=True
        )
        self._update = tf.function(update, reduce_retracing=True, autograph=False)
        self._answer = self_play.graph(system, self._networks)
        changing = [*self._networks.values(), *optimizers.values()]
        self._variables = [variable for owner in changing for variable in owner.variables]
        self._trained = [variable.numpy() for variable in self._variables]

    def __call__(self, image, progress=False):
        """Renders one image.

        Args:
          image: (height, width, 1) float32 of `Renderer.preprocess`.
          progress: whether to show a progress bar over the iterations.

        Returns:
          [`Iteration`], the first of the trained weights as they are, then one an iteration.
        """
        for variable, value in zip(self._variables, self._trained):
            variable.assign(value)
        rng = np.random.default_rng(self._settings.seed)
        batch = tf.stack([image, image[:, ::-1]])
        bar = keras.utils.Progbar(self._settings.steps, unit_name="iteration") if progress else None
        found = [self._look(batch)]
        for _ in range(self._settings.steps):
            self._update({"image": batch, "real": self._real(rng)})
            found.append(self._look(batch))
            if bar:
                bar.add(1)
        return found

    def _real(self, rng):
        """{discriminator: two random members of S', of one size}, drawn independently."""
        real = {}
        for name in self._system.discriminators:
            first = rng.integers(len(self._images))
            stack = [
                i
                for i, image in enumerate(self._images)
                if image.shape == self._images[first].shape
            ]
            pair = first, rng.choice([i for i in stack if i != first] or stack)
            image, label = (
                np.stack([found[i] for i in pair]) for found in (self._images, self._labels)
            )
            real[name] = self_play.seen_by(name, image, label.astype(np.float32))
        return real

    def _look(self, batch):
        answer = {name: x.numpy() for name, x in self._answer(batch).items()}
        mask, mirrored = answer["probability"] > 0.5
        agreement = metrics.dice(mask[..., 0], mirrored[:, ::-1, 0]) if 0 < mask.mean() < 1 else 0.0
        return Iteration(answer["rendered"][0], answer["probability"][0], agreement)
