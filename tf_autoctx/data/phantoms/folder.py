"""A folder of phantoms in the form of a Medical Segmentation Decathlon task."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from tf_autoctx import progress, spreadsheets
from tf_autoctx.data import images
from tf_autoctx.errors import UserError
from tf_autoctx.files import read_json, replacing

# Of a size and (seed, number of a case): image, label, spacing in mm, all in the order of the size.
Make = Callable[[Sequence[int], tuple[int, int]], tuple[np.ndarray, np.ndarray, tuple[float, ...]]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phantoms:
    """What is in a folder of phantoms.

    Attributes:
      make: (size, (seed, number of a case)) -> image (z, y, x), label (z, y, x), spacing (z, y, x)
        in mm; all (y, x) for a size of two.
      prefix: of the cases' names.
      about: name, description, modality and, unless it is .nii.gz, file_ending in dataset.json.
      labels: {label value: name} without the background.
      size: voxels along (z, y, x) or (y, x).
      cases: number of (training, test) cases.
      seed: integer.
      further: what decides the content as well, such as {"spacing": 1.5}; anything that JSON can
        hold.
      group: number of a case -> its group; with it `cases.csv` lists the cases and their groups
        too.
    """

    make: Make
    prefix: str
    about: Mapping[str, Any]
    labels: Mapping[int, str]
    size: Sequence[int]
    cases: tuple[int, int]
    seed: int
    further: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    group: Callable[[int], str] | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides the content, as it is read from dataset.json."""
        size, cases = ([int(n) for n in numbers] for numbers in (self.size, self.cases))
        settings = {"size": size, **self.further, "cases": cases, "seed": int(self.seed)}
        return json.loads(json.dumps(settings))  # tuples become lists


def write(directory: str | os.PathLike[str], phantoms: Phantoms) -> Path:
    """Writes the cases, or finds them written already.

    The folder appears under its name only when it is complete. `imagesTr`, `labelsTr`, `imagesTs`,
    `labelsTs` hold `<prefix>_000.nii.gz` and on, or files that end as `about` says.

    Args:
      directory: folder to make; its parents are made too.
      phantoms: what is in it.

    Returns:
      The folder, a `Path`.

    Raises:
      UserError: the folder exists and holds something else.
    """
    directory, settings = Path(directory), phantoms.settings
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        recorded = _recorded_settings(directory)
        if recorded != settings:
            content = f"phantoms with {recorded}" if recorded else "other files"
            raise UserError(
                f"{directory}: holds {content}, asked for were phantoms with {settings}; name "
                "another folder or remove this one."
            )
        return directory

    with replacing(directory, keep=True) as unfinished:
        unfinished.mkdir()
        entries = _write_images(unfinished, phantoms)
        _describe(unfinished, phantoms, entries)
        if phantoms.group:
            _write_groups(unfinished, entries, phantoms.group)
    return directory


def _write_images(folder: Path, phantoms: Phantoms) -> dict[str, list[str]]:
    """Writes images and labels; {"Tr", "Ts": names of the files}."""
    entries: dict[str, list[str]] = {"Tr": [], "Ts": []}
    for part in entries:
        (folder / f"images{part}").mkdir()
        (folder / f"labels{part}").mkdir()
    settings = phantoms.settings
    train, test = settings["cases"]
    bar = progress.bar(train + test, "phantom", "made")
    for number in range(train + test):
        part = "Tr" if number < train else "Ts"
        name = f"{phantoms.prefix}_{number:03d}{phantoms.about.get('file_ending', '.nii.gz')}"
        image, label, spacing = phantoms.make(settings["size"], (settings["seed"], number))
        for kind, voxels in (("images", image), ("labels", label)):
            volume = sitk.GetImageFromArray(voxels)
            volume.SetSpacing(spacing[::-1])  # SimpleITK counts (x, y, z) or (x, y)
            images.write(folder / f"{kind}{part}" / name, volume)
        entries[part].append(name)
        bar.add(1)
    return entries


def _describe(folder: Path, phantoms: Phantoms, entries: Mapping[str, list[str]]) -> None:
    """Writes dataset.json."""
    settings = phantoms.settings
    train, test = settings["cases"]
    named = {str(value): name for value, name in phantoms.labels.items()}
    task = {
        **phantoms.about,
        "labels": {"0": "background"} | named,
        "tensorImageSize": f"{len(settings['size'])}D",
        "numTraining": train,
        "numTest": test,
        "training": [
            {"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in entries["Tr"]
        ],
        "test": [f"./imagesTs/{name}" for name in entries["Ts"]],
        "phantom": settings,
    }
    (folder / "dataset.json").write_text(json.dumps(task, indent=2) + "\n")


def _write_groups(
    folder: Path, entries: Mapping[str, list[str]], group: Callable[[int], str]
) -> None:
    """Writes cases.csv: the cases, their splits and their groups."""
    splits = {"Tr": "train", "Ts": "test"}
    parts = [(part, name) for part in splits for name in entries[part]]
    columns = ("image", "label", "split", "group")
    rows = [
        (f"images{part}/{name}", f"labels{part}/{name}", splits[part], group(number))
        for number, (part, name) in enumerate(parts)
    ]
    spreadsheets.write(folder / "cases.csv", (dict(zip(columns, row)) for row in rows), columns)


def is_made(directory: str | os.PathLike[str]) -> bool:
    """Whether all data sets in a folder, or in those below it, are phantoms of `write`."""
    descriptions = list(Path(directory).rglob("dataset.json"))
    return bool(descriptions) and all(_recorded_settings(file.parent) for file in descriptions)


def _recorded_settings(folder: Path) -> Any:
    """The settings of the phantoms in a folder; None where it holds something else."""
    try:
        return read_json(folder / "dataset.json", "a data set").get("phantom")
    except (OSError, UserError, AttributeError):
        return None
