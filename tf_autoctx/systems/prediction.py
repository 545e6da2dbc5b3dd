"""A finished model, from a run folder or a SavedModel, as a function of one volume."""

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
from tf_autoctx.systems import caching, embryo, fetal_head, multi_organ, pyramids, refinement, stages
from tf_autoctx.training import runs


@dataclasses.dataclass(frozen=True)
class Segmentor:
    """A finished model.

    Attributes:
      labels: {label value: name} of its structures, in the order of the last channels of the answer's probability.
      spacing: [(z, y, x) smallest, (z, y, x) largest] spacing in mm of the cases it was trained on; empty if unknown.
      hounsfield: whether it takes CT in HU.
      answer: (raw voxels (1, depth, height, width, 1) float32, whether probabilities and whether a progress bar over
        tiles are wanted) -> {name: tensor}.
    """

    labels: dict[int, str]
    spacing: list
    hounsfield: bool
    answer: Callable

    def __call__(self, voxels, spacing, name="volume", probabilities=False, progress=False):
        """Segments a volume, with a warning where its voxels or its intensities are unlike the training's.

        Args:
          voxels: (depth, height, width), raw.
          spacing: (z, y, x) in mm.
          name: of the volume, for the warnings.
          probabilities: whether they are wanted.
          progress: whether a progress bar over the tiles is wanted, where there are tiles outside a graph.

        Returns:
          {"label": (depth, height, width) uint8, "probability", if wanted: {structure: (depth, height, width)
          float32}}.
        """
        voxels = np.asarray(voxels, np.float32)
        caching.warn_of_spacing(name, spacing, self.spacing)
        if self.hounsfield:
            pyramids.warn_unless_hu(name, voxels)
        answer = self.answer(voxels[None, ..., None], probabilities, progress)
        found = {"label": np.asarray(answer["label"])[0, ..., 0]}
        if probabilities:
            foreground = np.asarray(answer["probability"])[0, ..., -len(self.labels) :]
            found["probability"] = {name: foreground[..., k] for k, name in enumerate(self.labels.values())}
        return found


def segmentor(path, tile_size=None):
    """Loads a model.

    Args:
      path: a run folder, or a folder with a saved_model.pb.
      tile_size: another one than the run's, see `multi_organ.MultiOrgan`.

    Returns:
      `Segmentor`.

    Raises:
      UserError: neither; no level is finished; a damaged network; a tile size for a model whose tiles are not free.
    """
    path = pathlib.Path(path)
    if (path / "saved_model.pb").exists():
        if tile_size:
            raise UserError(
                f"--tile_size={tile_size}: the tiles of the SavedModel {path} are fixed; expected a run folder."
            )
        return _from_saved_model(path)
    if not (path / "config.json").exists():
        raise UserError(
            f"--model={path}: neither config.json nor saved_model.pb; expected a run folder or a SavedModel folder."
        )
    config = runs.load_config(path)
    if config["system"] not in SYSTEMS:
        raise UserError(f"{path}: a run of {config['system']!r}; expected one of {', '.join(SYSTEMS)}.")
    if tile_size:
        if "tile_size" not in config["flags"]:
            raise UserError(f"--tile_size={tile_size}: {path} is a run of {config['system']!r}, which has no tiles.")
        config["flags"]["tile_size"] = tile_size
    try:
        labels, answer = SYSTEMS[config["system"]](path, config)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path / 'config.json'}: {error} is missing or wrong; expected the flags of a run.") from error
    return Segmentor(labels, config.get("spacing", []), config["system"] == multi_organ.NAME, answer)


def _fetal_head(run, config):
    system = runs.configured(fetal_head.FetalHead, config["flags"])
    networks = _networks(run, config["flags"]["level"])
    answer = tf.function(lambda image: system.segment(networks, image), input_signature=[export.VOLUME])
    return {1: fetal_head.STRUCTURE}, lambda image, probabilities, progress: answer(image)


def _multi_organ(run, config):
    labels = dict(sorted(runs.labels(config).items()))
    system = runs.configured(multi_organ.MultiOrgan, config["flags"], labels=labels)
    network = stages.load(_finished(run / pyramids.stage(system, len(system.scales)) / "model.keras"))
    unets = pyramids.graphs(system, network)

    def answer(image, probabilities, progress):
        step = pyramids.progress(system, image.shape[1:4]) if progress else None
        return system.segment(unets, tf.constant(image), probabilities, step)

    return labels, answer


def _embryo(run, config):
    system = refinement.configured(config)
    network = stages.load(run / refinement.finished(run)[-1] / "model.keras")
    answer = tf.function(lambda image: system.segment(network, image), input_signature=[export.VOLUME])
    return system.labels, lambda image, probabilities, progress: answer(image)


SYSTEMS = {fetal_head.NAME: _fetal_head, multi_organ.NAME: _multi_organ, embryo.NAME: _embryo}


def _from_saved_model(path):
    try:
        loaded = tf.saved_model.load(str(path))
        card = json.loads((path / export.CARD).read_text())
        labels, spacing = runs.labels(card), card["spacing"]
        hounsfield = card["system"] == multi_organ.NAME
        signatures = {False: loaded.signatures["serving_default"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, tf.errors.OpError) as error:
        raise UserError(f"{path}: not a SavedModel of ours ({type(error).__name__}); export it again.") from error
    signatures[True] = loaded.signatures.get("probabilities", signatures[False])

    def answer(image, probabilities, progress):
        loaded  # owns the variables
        return signatures[probabilities](image=tf.constant(image))

    return Segmentor(labels, spacing, hounsfield, answer)


def _networks(run, level):
    """The networks of the finished levels of a run of `level` levels, level 1 first."""
    files = [run / f"level_{number}" / "model.keras" for number in range(1, level + 1)]
    finished = list(itertools.takewhile(pathlib.Path.exists, files))
    _finished(files[0])
    if len(finished) < level:
        logging.warning("%s: %d of %d levels are finished; these answer.", run, len(finished), level)
    return [stages.load(file) for file in finished]


def _finished(file):
    """The file of a network, if it is there."""
    if not file.exists():
        raise UserError(f"{file}: this level is not finished; run the training script with the same flags to go on.")
    return file
