"""What is said of the cases that a model is trained on, and of how they lay."""

from __future__ import annotations

import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from tf_autoctx.data import datasets, images, pipeline, regions
from tf_autoctx.errors import FieldError, UserError
from tf_autoctx.systems.shared.caching import Files
from tf_autoctx.systems.shared.declaration import Declaration
from tf_autoctx.systems.shared.image_checks import by
from tf_autoctx.systems.shared.system import System

FEW = 8  # voxels along an axis of a volume on its grid


def spacing_range(files: Files) -> list[list[float]]:
    """[(z, y, x) smallest, (z, y, x) largest] spacing in mm of cached cases."""
    return _range(files, "spacing")


def extent_range(files: Files) -> list[list[float]]:
    """[(z, y, x) smallest, (z, y, x) largest] extent in mm of cached cases, each axis by itself."""
    return _range(files, "extent")


def told_grid(grid: Sequence[float], extent: Sequence[Sequence[float]]) -> str:
    """The grid of a training in words; warns where a volume has few voxels on it.

    Args:
      grid: (z, y, x), mm.
      extent: see `extent_range`.
    """
    fewest = min(round(mm / edge) for mm, edge in zip(extent[0], grid))
    if fewest < FEW:
        logging.warning(
            "On voxels of %s mm the smallest volume has %d voxels along an axis: is `spacing` in "
            "mm?",
            by(grid),
            fewest,
        )
    return f"\ngrid: {by(grid)} mm (z, y, x), of volumes of {' to '.join(map(by, extent))} mm"


def _range(files: Files, name: str) -> list[list[float]]:
    stored = np.stack([pipeline.stored(entry[name], name) for entry in files])
    stored = stored.astype(np.float64)
    return [np.round(stored.min(0), 4).tolist(), np.round(stored.max(0), 4).tolist()]


def warn_of_missing(labels: Mapping[int, str], present: Collection[int]) -> None:
    """Warns of the structures, {label value: name}, whose value no training case has."""
    for value, name in labels.items():
        if value not in present:
            logging.warning("No training case has %s (label %d): it cannot be learnt.", name, value)


def require_channels(
    declaration: Declaration, source: str | pathlib.Path, cases: datasets.Dataset
) -> None:
    """Raises a `UserError` for images of several channels, where a system takes one."""
    count = len(cases.channels)
    if count > 1 and not declaration.channels:
        raise UserError(
            f"{source}: its images have {count} channels ({', '.join(cases.channels)}); expected "
            f"one, as {declaration.name} takes no more."
        )


def told_regions(
    declaration: Declaration, source: str | pathlib.Path, cases: datasets.Dataset
) -> str:
    """The regions that a data set tells, as the flag tells them; "": it tells none.

    Raises:
      UserError: it does, and the system takes none.
    """
    if cases.regions and not declaration.regions:
        names = ", ".join(region.name for region in cases.regions)
        raise UserError(
            f"{source}: its labels are regions ({names}); expected one value for each label, as "
            f"{declaration.name} takes no regions."
        )
    return regions.written(cases.regions)


def structures(
    kind: type[System], cases: datasets.Dataset, values: Mapping[str, Any]
) -> dict[int, str]:
    """{label value: name} of what is segmented in a data set; a region by the value that is written
    for it.

    Args:
      kind: the class of the system.
      cases: of the data set.
      values: {flag: value}.

    Raises:
      UserError: see `System.structures`; regions of values that no label has, or `foreground`
        beside them.
    """
    wanted, foreground = regions.parsed(values.get(regions.FLAG) or ""), values["foreground"]
    if not wanted:
        return kind.structures(cases, foreground)
    if foreground:
        raise FieldError(
            "foreground", foreground, f"the `{regions.FLAG}` name their values; leave it out."
        )
    known = set(datasets.known_values(cases))
    if unknown := sorted({value for region in wanted for value in region.values} - known):
        raise FieldError(
            regions.FLAG,
            values[regions.FLAG],
            f"no label is {unknown}; expected some of {sorted(known)}.",
        )
    return {region.values[0]: region.name for region in wanted}


def require_stored_so(
    folder: pathlib.Path, facts: Mapping[str, Any], cases: datasets.Dataset
) -> None:
    """Refuses to go on with a run of volumes that were not brought to one orientation, unless they
    are all stored in it, where it makes no difference.

    Raises:
      UserError: one is not; it cannot be read.
    """
    if "orientation" in facts:
        return
    for case in (*cases.train, *cases.validation, *cases.test):
        if (stored := images.read(case.image, case.series).orientation) != images.ORIENTATION:
            raise UserError(
                f"{folder}: this run was trained before volumes were brought to "
                f"{images.ORIENTATION}, and {case.image} is stored as {stored}; expected another "
                "`work_dir`."
            )
