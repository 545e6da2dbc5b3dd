"""Voxels of the structures of a case, about which patches are drawn."""

from __future__ import annotations

import pathlib
import zlib
from collections.abc import Iterable

import numpy as np

from tf_autoctx.data import pipeline, subvolumes
from tf_autoctx.systems.shared.caching import Files, case_of


def with_places(files: Files, classes: Iterable[int], seed: int) -> Files:
    """The files with voxels of every structure: drawn once for each case, and kept beside its
    label.

    Args:
      files: of cached cases.
      classes: values of the structures in the cached labels.
      seed: of the run.
    """
    changed, classes = [], list(classes)
    for entry in files:
        path = pathlib.Path(entry["label"]).with_name("places")
        if not path.exists():
            rng = np.random.default_rng([seed, zlib.crc32(case_of(entry).encode())])
            label = pipeline.stored(entry["label"], "label")[..., 0].numpy()
            pipeline.store(path, subvolumes.places(label, classes, rng))
        changed.append({**entry, "places": str(path)})
    return changed
