"""Models that come with the package, small ones that were trained on open data: a SavedModel each
in shipped_models/NAME, with its card, a real image, its true label and the licence of the data."""

from __future__ import annotations

import os
import pathlib

FOLDER = pathlib.Path(__file__).parent / "shipped_models"
EXAMPLE = "example.*"  # a real image of the kind that a model takes


def names() -> list[str]:
    """Of all models."""
    return sorted(path.parent.name for path in FOLDER.glob("*/saved_model.pb"))


def resolved(model: str | os.PathLike[str]) -> pathlib.Path:
    """The folder of a model that is named; any other path as it is, as is one of files that are
    there."""
    path = pathlib.Path(model)
    return FOLDER / path if not path.exists() and str(model) in names() else path


def example(name: str) -> pathlib.Path:
    """A real image, none of those that the model learnt from, to try it on.

    Raises:
      ValueError: no model of that name.
    """
    if name not in names():
        raise ValueError(f"{name}: expected one of {', '.join(names())}.")
    return next((FOLDER / name).glob(EXAMPLE))
