"""Cases as networks see them, prepared once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from absl import logging

from tf_autoctx import configuration, progress
from tf_autoctx.data import datasets, images, pipeline
from tf_autoctx.data.labels import IGNORED
from tf_autoctx.errors import Faults, UserError
from tf_autoctx.systems.shared import reading
from tf_autoctx.systems.shared.grid import Grid
from tf_autoctx.systems.shared.reading import Read
from tf_autoctx.version import __version__

Files = list[dict[str, str]]  # {name of a tensor: path} of each case


class Prepares(Protocol):
    """A system, as far as the cache knows it.

    Attributes:
      configuration: of the system.
      labels: {label value: name}.
      grid: see `System.grid`.
      chunk: see `System.chunk`.
    """

    configuration: Any
    labels: dict[int, str]
    grid: Grid | None

    @property
    def chunk(self) -> tuple[int | None, ...]:
        """See `System.chunk`."""

    def prepare(self, case: datasets.Case, voxels: Any, label: Any) -> dict[str, Any]:
        """See `System.prepare`."""


def directory(
    folder: pathlib.Path,
    system: Prepares,
    foreground: Sequence[int] | None,
    fingerprint: str,
) -> pathlib.Path:
    """Where the cache of a run folder lies; cases that are made from something else lie elsewhere.

    Args:
      folder: of the run.
      system: prepares the cases.
      foreground: label values that are read, see `Reader`.
      fingerprint: of the data set.
    """
    kind = type(system.configuration)
    free = configuration.changeable([kind])
    options = {name: v for name, v in vars(system.configuration).items() if name not in free}
    layout = f"{__version__} {pipeline.LAYOUT}"
    made_from: list[Any] = [kind.__name__, options, system.labels, foreground, fingerprint, layout]
    made_from += [system.grid.spacing] if system.grid else []
    told = json.dumps(made_from, sort_keys=True)
    return folder / "cache" / hashlib.sha256(told.encode()).hexdigest()[:16]


def forget_others(folder: pathlib.Path, cache: pathlib.Path) -> None:
    """Removes the caches of a run folder that are made from something else, and what was made from
    them in turn: what levels see of each other, which a finished network makes anew."""
    if cache.exists() or not cache.parent.exists():
        return
    shutil.rmtree(folder / "rendered", ignore_errors=True)
    forget(folder)


def forget(folder: pathlib.Path) -> None:
    """Removes the caches of a run folder, which the same command makes anew: what networks see of
    the cases, and what levels see of each other."""
    for derived in (*folder.glob("*/probability"), folder / "cache"):
        shutil.rmtree(derived, ignore_errors=True)


def cached(
    cases: Sequence[datasets.Case],
    directory: pathlib.Path,
    read: Read,
    system: Prepares,
    faults: Faults | None = None,
    isolated: bool = False,
) -> Files:
    """Prepares cases once, each in a folder of its own; what is there already is kept.

    Args:
      cases: with labels.
      directory: of the cache, see `directory`.
      read: see `system.Reader`.
      system: prepares a case.
      faults: takes those of the cases, which are left out.
      isolated: see `reading.each`.

    Returns:
      {name: path} of each case; "spacing" (z, y, x) or (y, x), mm of what is prepared, and
        "extent", mm of the whole image, are among them.

    Raises:
      UserError: a case that cannot be used, unless `faults` takes it.
    """
    folders = {case.name: directory / case.name for case in cases}
    left = [case for case in cases if not _is_whole(folders[case.name])]
    bar = progress.bar(len(cases), "case", "prepared")
    bar.update(len(cases) - len(left))
    for case, outcome in reading.each(left, read, isolated):
        with faults.collecting() if faults else contextlib.nullcontext():
            if isinstance(outcome, UserError):
                raise outcome
            _prepare(case, folders[case.name], outcome, system)
        bar.add(1)
    return [
        {path.name: str(path) for path in sorted(folder.glob("[!.]*"))}
        for folder in folders.values()
        if _is_whole(folder)
    ]


def _is_whole(folder: pathlib.Path) -> bool:
    return (folder / "spacing").exists()


def _prepare(
    case: datasets.Case,
    folder: pathlib.Path,
    pair: tuple[images.Image, np.ndarray],
    system: Prepares,
) -> None:
    """Fills the folder of a case, of which image and label were read."""
    image, label = pair
    voxels, labels = images.batch(image.array, label.ndim), label[None, ..., None]
    spacing = np.array(image.spacing)
    if system.grid:
        mm = system.grid.required(case.label, label.shape, image.spacing)
        voxels = np.asarray(system.grid.image(voxels, mm))
        labels = np.asarray(system.grid.label(labels, mm))
        _require_left(case, label, labels, system)
        spacing = spacing * np.divide(label.shape, labels.shape[1:-1])
    tensors = system.prepare(case, voxels, labels)
    for name, tensor in tensors.items():
        pipeline.store(folder / name, tensor, system.chunk)
    extent = np.multiply(label.shape, image.spacing)
    pipeline.store(folder / "extent", extent.astype(np.float32))
    pipeline.store(folder / "spacing", spacing.astype(np.float32))  # last: all is there


def _require_left(
    case: datasets.Case, label: np.ndarray, resampled: np.ndarray, system: Prepares
) -> None:
    """Raises a `UserError` where a case has no voxel of any structure left on the grid; warns where
    it has none left of some."""
    before, after = (set(np.unique(array)) - {0, IGNORED} for array in (label, resampled))
    if before and not after:
        raise UserError(
            f"{case.label}: all of its label vanishes on voxels of {system.grid}; expected a "
            "smaller `spacing`."
        )
    if lost := sorted(before - after):
        logging.warning(
            "%s: %s vanishes on voxels of %s and is learnt as background; a smaller `spacing` "
            "keeps it.",
            case.label,
            ", ".join(str(system.labels.get(int(value), int(value))) for value in lost),
            system.grid,
        )


def case_of(entry: dict[str, str]) -> str:
    """Name of the case that the files of a `cached` entry are of."""
    return pathlib.Path(entry["spacing"]).parent.name
