"""How renderer, segmentor and discriminators are trained on the source corpus alone, or updated for one target image:
loss terms, which networks each updates, and in what order (Yang et al. 2018, sections 2.2-2.3).

An iteration is a list of groups of terms. The terms of a group see one evaluation of the networks and all have their
gradients at the same weights; then the optimizers take their steps, one a term or one for the sum of some.
"""

import dataclasses
import functools
import json
import pathlib
import shutil

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tf_autoctx import export, losses, metrics, plots
from tf_autoctx.data import pipeline
from tf_autoctx.errors import UserError
from tf_autoctx.files import replacing
from tf_autoctx.systems import caching, renderer, stages
from tf_autoctx.systems.renderer import DISCRIMINATORS
from tf_autoctx.training import loop, runs

ORDERS = ("summed", "shared", "published")

# {term: networks that it updates}, in the order of the authors' code. A term of a discriminator's name is the
# discriminator's own loss.
TRAINING = {
    "rendering": ("renderer",),
    "d_app_generator": ("renderer",),
    "d_app": ("d_app",),
    "segmentation": ("segmentor", "renderer"),
    "d_struct_generator": ("segmentor", "renderer"),
    "d_struct": ("d_struct",),
    "d_pair_generator": ("renderer", "segmentor"),
    "d_pair": ("d_pair",),
}
ONLINE = {name: networks for name, networks in TRAINING.items() if name != "segmentation"}
ONLINE["d_pair_generator"] = ("renderer",)
ANSWERS = {
    "renderer": ("rendered", "rendering"),
    "segmentor": ("logits", "segmentation"),
}  # main answer, own term
# How often the authors' code updates by each term in an iteration online; while training it is once.
PUBLISHED_ONLINE = {"d_app_generator": 2, "d_struct_generator": 3, "d_pair_generator": 2}


@dataclasses.dataclass(frozen=True)
class Objective:
    """How the terms are weighted and ordered: the flags of the same names.

    Attributes:
      rendering_weight, rendering_aux_weight: alpha of equation 1, main answer and side branch.
      dice_weight: see `losses.HybridLoss`.
      update_order: "summed": the networks are evaluated once for all terms of an update, and one optimizer takes the sum of
        those of renderer and segmentor (equation 5); "shared": the same evaluation, and an optimizer a term;
        "published": term after term, each at the weights that the one before left, as often as in the authors' code.
      generator_updates: updates of renderer and segmentor per update of the discriminators, unless "published".
    """

    rendering_weight: float
    rendering_aux_weight: float
    dice_weight: float
    update_order: str
    generator_updates: int


class Evaluation:
    """One evaluation of the networks on a batch: each runs once, when the first loss asks for it.

    The batch is {"image": (batch, height, width, 1), the fakes, "label": likewise, where there is a segmentation loss,
    "real": {discriminator: (batch, height, width, channels)}}.
    """

    def __init__(self, networks, batch, training):
        self._networks, self._batch, self._training = networks, batch, training
        self._answers = {}  # not `functools.cached_property`, whose lock would stop the replicas at each other

    def _once(self, name, image):
        if name not in self._answers:
            self._answers[name] = self._networks[name](image(), training=self._training)
        return self._answers[name]

    @property
    def rendering(self):
        """What the renderer answers."""
        return self._once("renderer", lambda: self._batch["image"])

    @property
    def segmentation(self):
        """What the segmentor answers to the rendered image; without a renderer, to the image."""
        rendered = "renderer" in self._networks
        return self._once(
            "segmentor", lambda: self.rendering["rendered"] if rendered else self._batch["image"]
        )

    def fake(self, name):
        """Logits of a discriminator for what renderer and segmentor made."""

        def made():
            image = self.rendering["rendered"] if name != "d_struct" else None
            map_ = (
                ops.softmax(self.segmentation["logits"], axis=-1)[..., 1:]
                if name != "d_app"
                else None
            )
            return seen_by(name, image, map_)

        return self._once(name, made)

    def real(self, name):
        """Logits of a discriminator for members of the source corpus."""
        return self._networks[name](self._batch["real"][name], training=self._training)

    def losses(self, term, objective):
        """(batch,) float32 of a term."""
        if term == "rendering":
            distance = lambda name: ops.mean(
                ops.abs(self._batch["image"] - self.rendering[name]), axis=(1, 2, 3)
            )
            return objective.rendering_weight * distance(
                "rendered"
            ) + objective.rendering_aux_weight * distance("aux")
        if term == "segmentation":
            return losses.HybridLoss(objective.dice_weight)(self._batch["label"], self.segmentation)
        if term.endswith("_generator"):
            return losses.generator_adversarial(self.fake(term.removesuffix("_generator")))
        return losses.discriminator_adversarial(self.real(term), self.fake(term))


def seen_by(discriminator, image, map_):
    """Input of a discriminator: the image, the map (a soft one of a fake, a mask of 0 and 1 of a real), or the pair."""
    if discriminator == "d_pair":
        return ops.concatenate([image, map_], axis=-1)
    return image if discriminator == "d_app" else map_


def groups(names, objective, online=False):
    """The groups of terms of one iteration.

    Args:
      names: of the networks; a term that needs another one is left out.
      objective: `Objective`.
      online: the terms and counts of online rendering, without segmentation loss, in place of those of training.

    Returns:
      [[term]].
    """
    terms = [term for term in (ONLINE if online else TRAINING) if _needed(term) in names]
    if objective.update_order == "published":
        return [
            [term] for term in terms for _ in range(PUBLISHED_ONLINE.get(term, 1) if online else 1)
        ]
    generators = [term for term in terms if term not in DISCRIMINATORS]
    return [generators] * (objective.generator_updates - 1) + [terms]


def updates(networks, plan, objective, settings, online=False):
    """The optimizers, and one iteration of updates.

    Args:
      networks: {name: network}.
      plan: of `groups`.
      objective: `Objective`.
      settings: `loop.Settings`.
      online: whether the networks are those of `ONLINE`, with moving statistics in batch norm.

    Returns:
      ({name: optimizer}, batch -> {term: mean loss at its last update, "loss": their sum}).
    """
    updated = ONLINE if online else TRAINING
    summed = objective.update_order == "summed"

    def optimizer_of(term):
        return "generators" if summed and term not in DISCRIMINATORS else term

    def reached(term, name):
        # Side branches learn from their own network's loss alone.
        network, (answer, own) = networks[name], ANSWERS.get(name, (None, term))
        network = network if term == own else keras.Model(network.input, network.output[answer])
        return network.trainable_variables

    variables = {}  # of every optimizer, each once: {name: {id: variable}}
    for term in (term for group in plan for term in group):
        found = [
            variable
            for name in updated[term]
            if name in networks
            for variable in reached(term, name)
        ]
        variables.setdefault(optimizer_of(term), {}).update(
            {id(variable): variable for variable in found}
        )
    variables = {name: list(found.values()) for name, found in variables.items()}
    optimizers = {name: loop.adam(settings, found) for name, found in variables.items()}

    def iteration(batch):
        seen = {}
        for group in plan:
            evaluation = Evaluation(networks, batch, training=not online)
            seen |= loop.minimize(
                {
                    term: (
                        optimizers[optimizer_of(term)],
                        variables[optimizer_of(term)],
                        functools.partial(evaluation.losses, term, objective),
                    )
                    for term in group
                }
            )
        return seen | {"loss": sum(seen.values())}

    return optimizers, iteration


def _needed(term):
    """Name of the network without which there is no such term."""
    return {"segmentation": "segmentor", "rendering": "renderer"}.get(
        term, term.removesuffix("_generator")
    )


def cached(cases, system, directory, read):
    """Image and label of every case at the size of training, prepared once, see `caching.cached`.

    Returns:
      [{"image2d", "label2d": path}], one a case.
    """

    def prepare(case, pixels, label):
        image, label = (
            system.preprocess(tf.constant(pixels)),
            system.preprocess_label(tf.constant(label)),
        )
        return {"image2d": image[0], "label2d": label[0]}

    files = caching.cached(cases, directory, read, prepare)
    return [{name: entry[name] for name in ("image2d", "label2d")} for entry in files]


def train(system, objective, training, validation, run, strategy, settings):
    """Self-play training: every image is a fake in turn, and the others are real. Or goes on with it, or finds it done.

    Validation shows how it goes and does not choose: the segmentor is soon at its best, the discriminators are not.

    Args:
      system: `renderer.Renderer`.
      objective: `Objective`.
      training, validation: files of `cached`; validation may be empty.
      run: folder of the run; gets the folder `networks` once all are finished.
      strategy, settings: see `stages.train_together`.

    Returns:
      {name: finished network in float32}.

    Raises:
      UserError: see `stages.train_together`; images that do not stack to a batch.
    """
    directory = pathlib.Path(run) / "networks"
    if all((directory / f"{name}.keras").exists() for name in renderer.VARIANTS[system.variant]):
        return finished(run)
    shapes = {tuple(pipeline.stored(entry["label2d"], "label2d").shape[:2]) for entry in training}
    pipeline.require_one_shape(shapes, settings.batch_size)
    fakes = settings.batch_size * strategy.num_replicas_in_sync
    if system.discriminators and len(training) <= fakes:
        raise UserError(
            f"--batch_size={settings.batch_size}: all {len(training)} training images are fakes at once; expected more "
            f"images than the {fakes} of a step, so that some are real."
        )

    def prepare(sample, seed):
        shape = (
            *[system.size or None] * 2,
            1,
        )  # sizes that are known let XLA compile the step on a GPU
        drawn = [
            [tf.ensure_shape(one[name], shape) for name in ("image2d", "label2d")]
            for one in (sample, *sample.get("others", ()))
        ]
        (image, label), *others = drawn
        real = {
            name: seen_by(name, other, tf.cast(mask, tf.float32))
            for name, (other, mask) in zip(system.discriminators, others)
        }
        return {"image": image, "label": label, "real": real}

    def score(networks):
        answer = graph(system, networks)
        return lambda sample: metrics.dice(
            answer(sample["image2d"][None])["probability"][0, ..., 0].numpy() > 0.5,
            sample["label2d"][..., 0].numpy(),
        )

    networks = stages.train_together(
        pathlib.Path(run) / "self_play",
        system.networks,
        lambda networks: updates(networks, groups(networks, objective), objective, settings),
        training,
        prepare,
        validation,
        score,
        seed=settings.seed,
        strategy=strategy,
        settings=settings,
        others=len(system.discriminators),
        keeps_last=True,
    )
    shutil.rmtree(pathlib.Path(run) / "rendered", ignore_errors=True)  # by other networks
    with replacing(directory) as partial:
        partial.mkdir()
        for name, network in networks.items():
            network.save(partial / f"{name}.keras")
    return networks


def graph(system, networks):
    """`Renderer.answer` of the networks for preprocessed images of any size."""
    return tf.function(lambda image: system.answer(networks, image), input_signature=[export.IMAGE])


def finished(run):
    """{name: network} of a finished run.

    Raises:
      UserError: it is not finished, or a network cannot be read.
    """
    directory = pathlib.Path(run) / "networks"
    if not directory.exists():
        raise UserError(
            f"{directory}: is not there; run the training script with the same flags to finish the run."
        )
    names = renderer.VARIANTS[runs.load_config(run)["flags"]["variant"]]
    return {name: stages.load(directory / f"{name}.keras") for name in names}


def render_source(system, networks, training, run):
    """Renders the source corpus S once into S', section 2.3, every image from 0 to 1, or finds it rendered.

    Args:
      training: files of `cached`.
      run: folder of the run; gets the folder `rendered`, see `rendered`, when all are.
    """
    directory = pathlib.Path(run) / "rendered"
    if directory.exists():
        return
    answer = graph(system, networks)
    progress = keras.utils.Progbar(len(training), unit_name="case")
    with replacing(directory, keep=True) as partial:
        for entry in training:
            sample, folder = pipeline.sample(entry), partial / _case(entry)
            image = answer(sample["image2d"][None])["rendered"][0]
            low, high = ops.min(image), ops.max(image)
            pipeline.store(folder / "image2d", (image - low) / ops.maximum(high - low, 1e-6))
            pipeline.store(folder / "label2d", sample["label2d"])
            progress.add(1)


def compare_source(training, run, shown=6):
    """Shows how much more alike the images of S' are than those of S (figure 4): source.png, source.json and two lines.

    Args:
      training: files of `cached`, S.
      run: folder of the run, with S'.
      shown: images in the picture.
    """
    images = {
        name: [pipeline.stored(entry["image2d"], "image2d").numpy()[..., 0] for entry in files]
        for name, files in (
            ("S", sorted(training, key=_case)),
            ("S'", sorted(rendered(run), key=_case)),
        )
    }
    # S' has every image from 0 to 1; the same of S, for a fair comparison
    images["S"] = [(image - image.min()) / max(np.ptp(image), 1e-6) for image in images["S"]]
    spread = {}
    for name, found in images.items():
        for what, value in (("mean", np.mean), ("SD", np.std)):
            values = [float(value(image)) for image in found]
            spread[f"{what} of {name}"] = {
                "mean": float(np.mean(values)),
                "sd": float(np.std(values)),
            }
        text = ", ".join(
            f"{what} {{mean:.3f}} ± {{sd:.3f}}".format_map(spread[f"{what} of {name}"])
            for what in ("mean", "SD")
        )
        print(f"intensities of {len(found)} images of {name}, from 0 to 1: {text}")
    with replacing(pathlib.Path(run) / "source.json") as path:
        path.write_text(json.dumps(spread, indent=1) + "\n")
    plots.before_and_after(
        pathlib.Path(run) / "source.png", list(zip(*images.values()))[:shown], "S above, S' below"
    )


def _case(entry):
    """Name of the case that files are of."""
    return pathlib.Path(entry["image2d"]).parent.name


def rendered(run):
    """The files of S' with the labels of S: [{"image2d", "label2d": path}], one a case.

    Raises:
      UserError: S has not been rendered yet.
    """
    folders = sorted((pathlib.Path(run) / "rendered").glob("[!.]*"))
    if not folders:
        raise UserError(
            f"{run}/rendered: is not there; run the training script with the same flags to finish the run."
        )
    return [{name: str(folder / name) for name in ("image2d", "label2d")} for folder in folders]
