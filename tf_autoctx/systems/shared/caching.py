"""Cases as networks see them, prepared once."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import keras
import numpy as np
import SimpleITK as sitk

from tf_autoctx.data import datasets, images, pipeline

Files = list[dict[str, str]]  # {name of a tensor: path} of each case
Read = Callable[[datasets.Case], tuple[sitk.Image, np.ndarray]]


class Prepares(Protocol):
    """A system, as far as the cache knows it."""

    def prepare(self, case: datasets.Case, voxels: Any, label: Any) -> dict[str, Any]:
        """See `System.prepare`."""


def cached(
    cases: Sequence[datasets.Case], directory: pathlib.Path, read: Read, system: Prepares
) -> Files:
    """Prepares cases once, each in a folder of its own; what is there already is kept.

    Args:
      cases: with labels.
      directory: of the cache.
      read: see `session.Reader`.
      system: prepares a case.

    Returns:
      {name: path} of each case; "spacing" (z, y, x) or (y, x), mm, is among them.
    """
    files, progress = [], keras.utils.Progbar(len(cases), unit_name="case")
    for case in cases:
        folder = directory / case.name
        if not (folder / "spacing").exists():
            image, label = read(case)
            voxels = images.array(image).astype(np.float32)
            tensors = system.prepare(case, voxels[None, ..., None], label[None, ..., None])
            for name, tensor in tensors.items():
                pipeline.store(folder / name, tensor)
            spacing = np.array(images.spacing(image), np.float32)
            pipeline.store(folder / "spacing", spacing)  # last: all is there
        files.append({path.name: str(path) for path in sorted(folder.glob("[!.]*"))})
        progress.add(1)
    return files


def case_of(entry: dict[str, str]) -> str:
    """Name of the case that the files of a `cached` entry are of."""
    return pathlib.Path(entry["spacing"]).parent.name
