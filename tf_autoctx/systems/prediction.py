"""A finished model, from a run folder or a SavedModel, as a function of one volume."""

import dataclasses
import pathlib

import numpy as np
import tensorflow as tf

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
      UserError: neither; a level that is not finished; a damaged network.
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
        if signature is None or list(signature.structured_input_signature[1]) != ["image"]:
            raise UserError(
                f"{path}: a SavedModel of something else; expected the signature serving_default with one input, image."
            )
        run = lambda image: signature(image=image)
    elif (path / "config.json").exists():
        config = runs.load_config(path)
        if config["system"] not in SYSTEMS:
            raise UserError(f"{path}: a run of {config['system']!r}; expected one of {', '.join(SYSTEMS)}.")
        kind = SYSTEMS[config["system"]]
        system = kind(**{field.name: config["flags"][field.name] for field in dataclasses.fields(kind)})
        networks = _networks(path, config["flags"]["level"])
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
    """The networks of all levels of a finished run, level 1 first."""
    files = [run / f"level_{number}" / "model.keras" for number in range(1, level + 1)]
    for file in files:
        if not file.exists():
            raise UserError(
                f"{file}: this level is not finished; run the training script with the same flags to go on."
            )
    return [levels.load(file) for file in files]
