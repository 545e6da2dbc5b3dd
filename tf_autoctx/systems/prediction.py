"""A finished model, from a run folder or a SavedModel, as a function of one volume."""

import dataclasses
import itertools
import pathlib

import numpy as np
import tensorflow as tf
from absl import logging

from tf_autoctx.errors import UserError
from tf_autoctx.systems import fetal_head, levels
from tf_autoctx.training import runs

SYSTEMS = {fetal_head.NAME: fetal_head.FetalHead}


def segmentor(path):
    """Loads a model.

    Args:
      path: a run folder, or a folder with a saved_model.pb.

    Returns:
      Function: raw voxels (depth, height, width) -> {"probability": float32, "label": uint8} of the same shape.

    Raises:
      UserError: neither; no level is finished; a damaged network.
    """
    path = pathlib.Path(path)
    if (path / "saved_model.pb").exists():
        try:
            loaded = tf.saved_model.load(str(path))
        except (OSError, ValueError, tf.errors.OpError) as error:
            raise UserError(
                f"{path}: not a SavedModel that can be read ({type(error).__name__}); export it again."
            ) from error
        signature = loaded.signatures.get("serving_default")
        inputs = signature.structured_input_signature[1] if signature else {}
        if list(inputs) != ["image"] or not {"probability", "label"} <= set(signature.structured_outputs):
            raise UserError(
                f"{path}: a SavedModel of something else; expected the signature serving_default from image to probability "
                "and label."
            )
        run = lambda image: loaded.signatures["serving_default"](image=image)  # `loaded` owns the variables
    elif (path / "config.json").exists():
        config = runs.load_config(path)
        if config["system"] not in SYSTEMS:
            raise UserError(f"{path}: a run of {config['system']!r}; expected one of {', '.join(SYSTEMS)}.")
        kind = SYSTEMS[config["system"]]
        try:
            system = kind(**{field.name: config["flags"][field.name] for field in dataclasses.fields(kind)})
            networks = _networks(path, config["flags"]["level"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path / 'config.json'}: {error} is missing or wrong; expected the flags of a run."
            ) from error
        volume = tf.TensorSpec((None, None, None, None, 1))
        run = tf.function(lambda image: system.segment(networks, image), input_signature=[volume])
    else:
        raise UserError(
            f"--model={path}: neither config.json nor saved_model.pb; expected a run folder or a SavedModel folder."
        )

    def segment(voxels):
        answer = run(tf.constant(voxels[None, ..., None], tf.float32))
        return {name: np.asarray(answer[name])[0, ..., 0] for name in ("probability", "label")}

    return segment


def _networks(run, level):
    """The networks of the finished levels of a run of `level` levels, level 1 first."""
    files = [run / f"level_{number}" / "model.keras" for number in range(1, level + 1)]
    finished = list(itertools.takewhile(pathlib.Path.exists, files))
    if not finished:
        raise UserError(
            f"{files[0]}: this level is not finished; run the training script with the same flags to go on."
        )
    if len(finished) < level:
        logging.warning("%s: %d of %d levels are finished; these answer.", run, len(finished), level)
    return [levels.load(file) for file in finished]
