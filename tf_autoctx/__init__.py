"""Auto-context segmentation of medical images: four published systems in TensorFlow and Keras.

    import tf_autoctx

    model = tf_autoctx.load("hc18_head")  # comes with the package; or a run folder, a SavedModel
    result = model(voxels, spacing)  # (z, y, x) array and mm; {"label": likewise}
    tf_autoctx.score(result["label"], truth, spacing)

`tf_autoctx.models`, `losses` and `metrics` are plain Keras and NumPy. Whatever is heavy is imported
when it is first used.
"""

from __future__ import annotations

import importlib
import os
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tf_autoctx.version import __version__

if TYPE_CHECKING:
    import numpy as np

    from tf_autoctx import losses, metrics, models
    from tf_autoctx.systems.shared.prediction import Segmentor

# What TensorFlow's C++ side reports on start-up helps nobody who did not ask for it.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

__all__ = ["__version__", "example", "load", "losses", "metrics", "models", "score"]


def __getattr__(name: str) -> Any:
    if name in ("losses", "metrics", "models"):
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def example(name: str) -> pathlib.Path:
    """The path of a real image to try a model that comes with the package on, none of those that it
    learnt from; its true label lies beside it, as `example_label`.

    Raises:
      ValueError: no model of that name.
    """
    from tf_autoctx import shipped

    return shipped.example(name)


def load(
    path: str | pathlib.Path, precision: str = "auto", mirrors: bool = False, **options: Any
) -> Segmentor:
    """Loads a finished model.

    Args:
      path: a run folder, a SavedModel of ours, the folder of its versions, or the name of a model
        that comes with the package, such as "hc18_head".
      precision: of run folders: "float32", "bfloat16" or "auto", which is bfloat16 where it is
        faster here and the run's own evaluation, of runs trained in bfloat16, found labels
        within 0.5 % (DSC 0.995) of those of float32.
      mirrors: of run folders: whether the mean is taken over an image and its mirror images, along
        the axes that training mirrored.
      **options: of run folders of the system that has them: `tile_size` (organs), `iterations` and
        `online_seed` (renderer).

    Returns:
      A callable, (voxels, spacing) -> {"label": ...}, see `Segmentor.__call__`.

    Raises:
      tf_autoctx.errors.UserError: no model, or one that is not finished or damaged.
    """
    from tf_autoctx.systems.shared import prediction

    return prediction.load(path, precision, mirrors, **options)


def score(
    prediction: np.ndarray,
    truth: np.ndarray,
    spacing: Sequence[float] | None = None,
    labels: Mapping[int, str] | None = None,
    regions: Mapping[int, Collection[int]] | None = None,
) -> dict[str, dict[str, float]]:
    """Scores every structure of a segmentation against its ground truth.

    Args:
      prediction, truth: integer labels of equal shape, (z, y, x) or (y, x); 0 is background.
      spacing: mm per axis in the arrays' order; None measures in pixels.
      labels: {label value: name}; None: every value of the two, called "label 1" and so on.
      regions: {value of `labels`: the label values of its voxels} of structures of several, such as
        those of a model, `Segmentor.regions`.

    Returns:
      {structure: {metric: value}} as of `metrics.compare`, for structures that one of the two has.

    Raises:
      ValueError: shapes differ, or spacing does not have one value per axis.
    """
    import numpy as np

    from tf_autoctx import metrics

    values = np.setdiff1d(np.union1d(prediction, truth), 0).tolist()
    named = labels or {int(value): f"label {int(value)}" for value in values}
    scores = {}
    for value, name in named.items():
        mask, true_mask = (metrics.mask_of(x, value, regions or {}) for x in (prediction, truth))
        if mask.any() or true_mask.any():
            scores[name] = metrics.compare(mask, true_mask, spacing)
    return scores
