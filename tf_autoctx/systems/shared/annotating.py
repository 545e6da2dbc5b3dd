"""What helps to correct predicted labels: in which order, where to look, names and colours.

Neither Keras nor TensorFlow is imported: the process that writes has no need of them.
"""

from __future__ import annotations

import colorsys
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import SimpleITK as sitk

from tf_autoctx import spreadsheets
from tf_autoctx.data.images import PIXELS_ONLY, Frame
from tf_autoctx.data.segments import Segment
from tf_autoctx.errors import UserError
from tf_autoctx.files import replacing
from tf_autoctx.report.figures import PALETTE

UNSURE = "uncertainty"  # a kind of results, their folder, and a column of tables
RANK = "rank"  # likewise; its table, of all images, is RANK.csv
OF_IMAGE = ("image", "file", UNSURE, "least_sure_of", "slice", "not_found")
DESCRIPTIONS = "itk_snap_labels.txt"
SHOWN = 20  # images that are printed
MASK = 255  # the object of a mask in a format that is looked at
GOLDEN = (math.sqrt(5) - 1) / 2


def colour(number: int) -> tuple[int, int, int]:
    """Red, green and blue, 0 to 255, of a structure, counted from 0: those of our figures, then
    hues that differ from each other."""
    if number < len(PALETTE):
        red, green, blue = bytes.fromhex(PALETTE[number].removeprefix("#"))
        return red, green, blue
    parts = colorsys.hsv_to_rgb(number * GOLDEN % 1, 0.6, 0.95)
    red, green, blue = (round(255 * part) for part in parts)
    return red, green, blue


def segments(labels: Mapping[int, str]) -> tuple[Segment, ...]:
    """The structures with a colour each."""
    named = enumerate(labels.items())
    return tuple(Segment(name, value, colour(number)) for number, (value, name) in named)


def order(uncertainty: float) -> float:
    """By which images are sorted, those to look at first on top: where nothing was segmented (NaN),
    then the least sure ones."""
    return -math.inf if math.isnan(uncertainty) else -uncertainty


def of_object(uncertainty: np.ndarray, mask: np.ndarray) -> float:
    """Mean uncertainty of the voxels of an object; NaN where there are none."""
    return float(uncertainty[mask].mean()) if mask.any() else math.nan


def line(
    label: np.ndarray, uncertainty: np.ndarray, masks: Mapping[str, np.ndarray], frame: Frame
) -> dict[str, Any]:
    """What makes an image uncertain.

    Args:
      label: that is predicted.
      uncertainty: of its shape.
      masks: {structure: its voxels in the label}.
      frame: of the image.

    Returns:
      {`UNSURE`: the mean over the predicted object, "least_sure_of": the structure of which it is
      largest, "slice": along the third axis of the file, from 1, that in which the uncertainty of
      all voxels sums to the most; "" of a 2D image, "not_found": structures of which nothing is
      predicted, with semicolons between}.
    """
    of_each = {name: of_object(uncertainty, mask) for name, mask in masks.items()}
    found = {name: value for name, value in of_each.items() if not math.isnan(value)}
    where: int | str = ""
    if label.ndim == 3:
        as_stored = sitk.GetArrayFromImage(frame.like(uncertainty.astype(np.float32)))
        where = int(as_stored.sum(axis=(1, 2), dtype=np.float64).argmax()) + 1
    return {
        UNSURE: of_object(uncertainty, label > 0),
        "least_sure_of": max(found, key=lambda name: found[name], default=""),
        "slice": where,
        "not_found": "; ".join(name for name in masks if name not in found),
    }


def rank(folder: pathlib.Path, lines: Iterable[Mapping[str, str]]) -> list[str]:
    """Writes `RANK`.csv of the lines of all images of a folder of results: the order in which to
    correct them.

    Returns:
      The first lines in words.

    Raises:
      UserError: a line without a number, or the table cannot be written.
    """
    try:
        lines = sorted(lines, key=lambda told: (order(float(told[UNSURE])), told["image"]))
    except ValueError as error:
        raise UserError(f"{folder / RANK}: {error}; expected numbers (delete it).") from None
    table = [{"order": number, **told} for number, told in enumerate(lines, 1)]
    path = folder / f"{RANK}.csv"
    spreadsheets.write(path, table, ("order", *OF_IMAGE))
    return [f"{path}: in which order to correct {len(table)} image{'s' * (len(table) != 1)}"] + [
        f"{number:4d}. {_words(told)}" for number, told in enumerate(lines[:SHOWN], 1)
    ]


def _words(told: Mapping[str, str]) -> str:
    """An image and what makes it uncertain."""
    if not told["least_sure_of"]:
        return f"{told['image']}: nothing was segmented"
    words = [
        f"{told['image']}: uncertainty {float(told[UNSURE]):.3f}",
        f"least sure of {told['least_sure_of']}",
        f"slice {told['slice']}" if told["slice"] else "",
        f"not found: {told['not_found']}" if told["not_found"] else "",
    ]
    return ", ".join(filter(None, words))


def write_descriptions(
    path: pathlib.Path, structures: Sequence[Segment], files: Sequence[str]
) -> None:
    """Writes names and colours of label values as ITK-SNAP reads them.

    Args:
      path: of the file.
      structures: of the labels.
      files: of the labels; in pictures a single structure is 255.
    """
    values = [(s.value, s) for s in structures]
    if len(structures) == 1 and any(file.lower().endswith(PIXELS_ONLY) for file in files):
        values.append((MASK, structures[0]))
    lines = [
        "################################################",
        "# ITK-SnAP Label Description File",
        "# IDX   -R-  -G-  -B-  -A--  VIS MSH  LABEL",
        "################################################",
        '    0     0    0    0        0  0  0    "Clear Label"',
    ]
    for value, structure in values:
        red, green, blue = structure.colour
        name = structure.name.replace('"', "'")
        lines.append(f'{value:5d} {red:5d}{green:5d}{blue:5d}        1  1  1    "{name}"')
    with replacing(path) as partial:
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
