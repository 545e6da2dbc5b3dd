"""Volumes as a network sees them, prepared once."""

import pathlib

import keras
import numpy as np
from absl import logging

from tf_autoctx.data import images, pipeline


def cached(cases, directory, read, prepare):
    """Prepares cases once, each in a folder of its own; what is there already is kept.

    Args:
      cases: `datasets.Case`s with labels.
      directory: of the cache.
      read: case -> (sitk.Image, label array), see `datasets.read_case`.
      prepare: (case, voxels (1, depth, height, width, 1) float32, label likewise, uint8) -> {name: tensor}.

    Returns:
      [{name: path}], one a case; "spacing" (z, y, x), mm, is among them.
    """
    files, progress = [], keras.utils.Progbar(len(cases), unit_name="case")
    for case in cases:
        folder = pathlib.Path(directory) / case.name
        if not (folder / "spacing").exists():
            image, label = read(case)
            tensors = prepare(
                case,
                images.array(image).astype(np.float32)[None, ..., None],
                label[None, ..., None],
            )
            for name, tensor in tensors.items():
                pipeline.store(folder / name, tensor)
            pipeline.store(
                folder / "spacing", np.array(images.spacing(image), np.float32)
            )  # last: all is there
        files.append({path.name: str(path) for path in sorted(folder.glob("[!.]*"))})
        progress.add(1)
    return files


def spacing_range(files):
    """[(z, y, x) smallest, (z, y, x) largest] spacing in mm of cached cases."""
    paths = [str(pathlib.Path(entry["label"]).with_name("spacing")) for entry in files]
    spacings = np.stack([pipeline.stored(path, "spacing") for path in paths]).astype(np.float64)
    return [np.round(spacings.min(0), 4).tolist(), np.round(spacings.max(0), 4).tolist()]


def warn_of_missing(labels, found):
    """Warns of the structures of `labels`, {label value: name}, that are not among those `found` in training cases."""
    for value, name in labels.items():
        if value not in found:
            logging.warning("No training case has %s (label %d): it cannot be learnt.", name, value)


def warn_of_spacing(name, spacing, trained):
    """Warns of a volume whose spacing (z, y, x) is off that of all training cases by more than 20 % along an axis."""
    if trained and any(s < 0.8 * low or s > 1.2 * high for s, low, high in zip(spacing, *trained)):
        logging.warning(
            "%s: voxels of %s mm (z, y, x); the model was trained on %s to %s mm and knows voxels, not mm. Resample it.",
            name,
            *(" x ".join(f"{s:.4g}" for s in values) for values in (spacing, *trained)),
        )
