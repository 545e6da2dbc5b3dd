"""A finished model, from a run folder or a SavedModel, as a function of one volume or 2D image."""

import dataclasses
import itertools
import json
import pathlib
from collections.abc import Callable

import numpy as np
import tensorflow as tf
from absl import logging

from tf_autoctx import export
from tf_autoctx.errors import UserError
from tf_autoctx.systems import (
    caching,
    embryo,
    fetal_head,
    multi_organ,
    online,
    pyramids,
    refinement,
    renderer,
    self_play,
    stages,
)
from tf_autoctx.training import runs


@dataclasses.dataclass(frozen=True)
class Segmentor:
    """A finished model.

    Attributes:
      labels: {label value: name} of its structures, in the order of the last channels of the answer's probability.
      answer: (raw voxels (1, depth, height, width, 1) or pixels (1, height, width, 1), float32, whether probabilities and
        whether a progress bar over tiles or iterations are wanted) -> {name: tensor}.
      spacing: [(z, y, x) smallest, (z, y, x) largest] spacing in mm of the cases it was trained on; empty if unknown.
      system: name of the system that it is of.
      iterations: of online rendering, for every image; 0: there is none.
    """

    labels: dict[int, str]
    answer: Callable
    spacing: list
    system: str
    iterations: int = 0

    @property
    def dimensions(self):
        """Of the images that it takes: 2 or 3."""
        return 2 if self.system == renderer.NAME else 3

    def __call__(self, voxels, spacing, name="volume", probabilities=False, progress=False):
        """Segments a volume, with a warning where its voxels or its intensities are unlike the training's.

        Args:
          voxels: (depth, height, width), raw; or (height, width), grey levels from 0 to 255.
          spacing: (z, y, x) in mm, or (y, x).
          name: of the volume, for the warnings.
          probabilities: whether they are wanted.
          progress: whether a progress bar over tiles or iterations is wanted, where there are some outside a graph.

        Returns:
          {"label": of the voxels' shape, uint8, "probability", if wanted: {structure: likewise, float32}, and where the
          image was rendered online "iterations": [{"rendered", "probability": likewise, float32, "label": uint8}], one
          more than there were, and "kept": the number of the one that is the answer}.
        """
        voxels = np.asarray(voxels, np.float32)
        caching.warn_of_spacing(name, spacing, self.spacing)
        if self.system == multi_organ.NAME:
            pyramids.warn_unless_hu(name, voxels)
        answer = self.answer(voxels[None, ..., None], probabilities, progress)
        found = {"label": np.asarray(answer["label"])[0, ..., 0]}
        if probabilities:
            foreground = np.asarray(answer["probability"])[0, ..., -len(self.labels) :]
            found["probability"] = {
                name: foreground[..., k] for k, name in enumerate(self.labels.values())
            }
        if "iterations" in answer:
            found["kept"] = answer["kept"]
            found["iterations"] = [
                {name: np.asarray(x)[0, ..., 0] for name, x in iteration.items()}
                for iteration in answer["iterations"]
            ]
        return found


def segmentor(path, **options):
    """Loads a model.

    Args:
      path: a run folder, a folder with a saved_model.pb, or a folder of such versions, of which the highest counts.
      **options: of `OPTIONS`, for run folders of the system that has them; those that are None do not count.

    Returns:
      `Segmentor`.

    Raises:
      UserError: neither; no level is finished; a damaged network; an option that the model does not have.
    """
    path, options = (
        pathlib.Path(path),
        {name: value for name, value in options.items() if value is not None},
    )
    if not (path / "saved_model.pb").exists() and not (path / "config.json").exists():
        path = export.newest(path) or path
    if (path / "saved_model.pb").exists():
        for name, value in options.items():
            raise UserError(
                f"--{name}={value}: {path} is a SavedModel, in which this is fixed; expected a run folder."
            )
        return _from_saved_model(path)
    if not (path / "config.json").exists():
        raise UserError(
            f"--model={path}: neither config.json nor saved_model.pb; expected a run folder or a SavedModel folder."
        )
    config = runs.load_config(path)
    if config["system"] not in SYSTEMS:
        raise UserError(
            f"{path}: a run of {config['system']!r}; expected one of {', '.join(SYSTEMS)}."
        )
    for name, value in options.items():
        if OPTIONS[name] != config["system"]:
            raise UserError(
                f"--{name}={value}: {path} is a run of {config['system']!r}; expected one of {OPTIONS[name]!r}."
            )
    try:
        made = SYSTEMS[config["system"]](path, config, **options)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path / 'config.json'}: {error} is missing or wrong; expected the flags of a run."
        ) from error
    return Segmentor(**made, spacing=config.get("spacing", []), system=config["system"])


def _fetal_head(run, config):
    system = runs.configured(fetal_head.FetalHead, config["flags"])
    networks = _networks(run, config["flags"]["level"])
    answer = tf.function(
        lambda image: system.segment(networks, image), input_signature=[export.VOLUME]
    )
    return {
        "labels": {1: fetal_head.STRUCTURE},
        "answer": lambda image, probabilities, progress: answer(image),
    }


def _multi_organ(run, config, **options):
    labels = dict(sorted(runs.labels(config).items()))
    system = runs.configured(multi_organ.MultiOrgan, config["flags"] | options, labels=labels)
    network = stages.load(
        _finished(run / pyramids.stage(system, len(system.scales)) / "model.keras")
    )
    unets = pyramids.graphs(system, network)

    def answer(image, probabilities, progress):
        step = pyramids.progress(system, image.shape[1:4]) if progress else None
        return system.segment(unets, tf.constant(image), probabilities, step)

    return {"labels": labels, "answer": answer}


def _embryo(run, config):
    system = refinement.configured(config)
    network = stages.load(run / refinement.finished(run)[-1] / "model.keras")
    answer = tf.function(
        lambda image: system.segment(network, image), input_signature=[export.VOLUME]
    )
    return {"labels": system.labels, "answer": lambda image, probabilities, progress: answer(image)}


def _renderer(run, config, iterations=None, online_seed=0):
    system = runs.configured(renderer.Renderer, config["flags"])
    if iterations is None:
        iterations = online.ITERATIONS if system.renders else 0
    if iterations:
        render = online.of_run(run, system, config["flags"], iterations, online_seed)
    else:
        networks = self_play.finished(run)
        segment = tf.function(
            lambda image: system.segment(networks, image), input_signature=[export.IMAGE]
        )

    def answer(image, probabilities, progress):
        if not iterations:
            return segment(image)
        found = render(system.preprocess(image)[0], progress)
        passes = [system.postprocess(one.answer(), image.shape[1:3]) for one in found]
        kept = online.kept(found)
        return {**passes[kept], "kept": kept, "iterations": passes}

    return {"labels": runs.labels(config), "answer": answer, "iterations": iterations}


SYSTEMS = {
    fetal_head.NAME: _fetal_head,
    multi_organ.NAME: _multi_organ,
    embryo.NAME: _embryo,
    renderer.NAME: _renderer,
}
OPTIONS = {"tile_size": multi_organ.NAME, "iterations": renderer.NAME, "online_seed": renderer.NAME}


def _from_saved_model(path):
    try:
        loaded = tf.saved_model.load(str(path))
        card = json.loads((path / export.CARD).read_text())
        labels, spacing = runs.labels(card), card.get("spacing", [])
        signatures = {False: loaded.signatures["serving_default"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, tf.errors.OpError) as error:
        raise UserError(
            f"{path}: not a SavedModel of ours ({type(error).__name__}); export it again."
        ) from error
    signatures[True] = loaded.signatures.get("probabilities", signatures[False])

    def answer(image, probabilities, progress):
        loaded  # owns the variables
        return signatures[probabilities](image=tf.constant(image))

    return Segmentor(labels, answer, spacing, card["system"])


def _networks(run, level):
    """The networks of the finished levels of a run of `level` levels, level 1 first."""
    files = [run / f"level_{number}" / "model.keras" for number in range(1, level + 1)]
    finished = list(itertools.takewhile(pathlib.Path.exists, files))
    _finished(files[0])
    if len(finished) < level:
        logging.warning(
            "%s: %d of %d levels are finished; these answer.", run, len(finished), level
        )
    return [stages.load(file) for file in finished]


def _finished(file):
    """The file of a network, if it is there."""
    if not file.exists():
        raise UserError(
            f"{file}: this level is not finished; run the training script with the same flags to go on."
        )
    return file
