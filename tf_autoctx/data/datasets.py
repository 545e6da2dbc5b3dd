"""Which cases there are and which split each belongs to.

Decathlon and nnU-Net folders, images beside labels, CSV files. Label maps are {label value: name}.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import operator
import os
import pathlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import SimpleITK as sitk
from absl import logging

from tf_autoctx.data import images
from tf_autoctx.errors import FieldError, UserError

SPLITS = ("train", "validation", "test")

Pair = tuple[str, str, str | None]  # (name, image, label or None), paths within a folder


@dataclasses.dataclass(frozen=True)
class Case:
    """An image with its label.

    Attributes:
      name: of the case, and of its results.
      image: path.
      label: path; None for a test image that nobody outlined.
      group: such as a patient; it stays in one split.
    """

    name: str
    image: str
    label: str | None
    group: str


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Cases by split, each sorted by name.

    Attributes:
      name: of the source.
      train, validation, test: the cases.
      labels: {label value: name}, empty where the source names none.
    """

    name: str
    train: tuple[Case, ...]
    validation: tuple[Case, ...]
    test: tuple[Case, ...]
    labels: dict[int, str]


def load(
    source: str | os.PathLike[str],
    seed: int,
    validation_fraction: float = 0.2,
    training: bool = True,
) -> Dataset:
    """Lists the cases of a data set; no image is read.

    Args:
      source: a Medical Segmentation Decathlon folder, an nnU-Net v2 folder (one channel), a folder
        with images/ and labels/ of the same file names (all of them training cases), or a CSV file
        with the columns image, label, split (train, validation or test) and, if wanted, group; its
        paths are relative to the CSV, and label may be empty for a test image.
      seed: decides which training cases validate, unless the CSV says so.
      validation_fraction: share of the groups (of the cases, where there are no groups) that
        validate, at least one; 0: none.
      training: whether there must be a training case.

    Returns:
      Dataset, the same for a seed wherever the files lie and in whatever order they are listed.

    Raises:
      UserError: the source is none of the four, is malformed, lists a missing file or a case twice,
        or lacks a training case.
    """
    source = pathlib.Path(source)
    if source.is_dir():
        try:
            splits, labels = _read_folder(source)
        except (AttributeError, TypeError):
            raise UserError(
                f"{source / 'dataset.json'}: an entry is of another kind than the Decathlon's; "
                "expected lists of cases, and names by label value."
            ) from None
    elif not source.exists():
        raise UserError(
            f"{source}: no such file or folder; expected a data set folder or a CSV file."
        )
    else:
        splits, labels = _read_csv(source), {}
    by_name = operator.attrgetter("name")
    splits = {split: sorted(cases, key=by_name) for split, cases in splits.items()}
    if training and not splits["train"]:
        raise UserError(f"{source}: holds no training case; expected at least one.")
    _require_distinct(source, splits)
    if splits["train"] and not splits["validation"] and validation_fraction:
        parts = _split_off(splits["train"], seed, validation_fraction)
        splits["train"], splits["validation"] = parts
    return Dataset(
        source.resolve().stem, **{split: tuple(splits[split]) for split in SPLITS}, labels=labels
    )


def read_case(
    case: Case,
    foreground: Collection[int] | None = None,
    labels: Collection[int] | None = None,
    dimensions: int = 3,
    merge: bool = True,
) -> tuple[sitk.Image, np.ndarray | None]:
    """Reads a case and checks that it can be learnt from.

    Args:
      case: `Case`.
      foreground: the label values that make up the object or objects; None takes every value but 0.
      labels: the known label values, such as `Dataset.labels`; None or empty accepts any whole
        number.
      dimensions: of the images that the system takes.
      merge: one object of all values (1), or each value an object of its own.

    Returns:
      (sitk.Image, uint8 array of its shape (z, y, x) with 1 or the values in the foreground and 0
      elsewhere), or (sitk.Image, None) without a label.

    Raises:
      UserError: unreadable file, image of other dimensions, constant image, label on another grid,
        of unknown values, without the object or in JPEG.
    """
    flat = dimensions == 2
    image = images.read_2d(case.image, grey_levels=True) if flat else images.read(case.image)
    images.require_dimensions(case.image, image, dimensions)
    voxels = images.array(image)
    if voxels.min() == voxels.max():
        raise UserError(
            f"{case.image}: every voxel is {voxels.min()}; expected varying intensities."
        )
    if case.label is None:
        return image, None
    if case.label.lower().endswith((".jpg", ".jpeg")):
        raise UserError(
            f"{case.label}: JPEG changes label values; expected a lossless format such as PNG."
        )
    outlined = images.read_2d(case.label) if flat else images.read(case.label)
    images.require_same_grid(case.label, outlined, case.image, image)
    label = images.array(outlined)
    values = np.unique(label)
    _require_known(case.label, values, labels)
    wanted = None if foreground is None else list(foreground)
    mask = label != 0 if wanted is None else np.isin(label, wanted)
    if not mask.any():
        expected = "a value other than 0" if wanted is None else f"one of {wanted}"
        raise UserError(
            f"{case.label}: the object is missing, the values are {values.tolist()}; "
            f"expected {expected}."
        )
    if merge:
        return image, mask.astype(np.uint8)
    _require_bytes(case.label, values)
    return image, np.where(mask, label, 0).astype(np.uint8)


def _require_known(path: str, values: np.ndarray, labels: Collection[int] | None) -> None:
    """Raises a `UserError` for values that are not among the known labels, or no whole numbers."""
    known = np.union1d(list(labels), 0) if labels else np.round(values)
    unknown = np.setdiff1d(values, known)
    if unknown.size:
        expected = f"one of {known.tolist()}" if labels else "whole numbers"
        raise UserError(
            f"{path}: has the label values {unknown[:5].tolist()}; expected {expected}."
        )


def structures(dataset: Dataset, foreground: Sequence[int] | None = None) -> dict[int, str]:
    """{label value: name} of the foreground.

    Where the source names no labels, these are the values of the training labels.

    Raises:
      FieldError: a value of `foreground` that no label has.
      UserError: values beyond 255, names that are no folder names or not distinct; no label, or an
        unreadable one.
    """
    named = {value: name for value, name in dataset.labels.items() if value}
    if not named:
        for case in dataset.train:
            assert case.label is not None  # training cases have one
            values = np.unique(images.array(images.read(case.label)))
            _require_bytes(case.label, values)
            named |= {int(value): f"label {int(value)}" for value in values if value}
    unknown = sorted(set(foreground or []) - set(named))
    if unknown:
        raise FieldError(
            "foreground", foreground, f"no label is {unknown}; expected some of {sorted(named)}."
        )
    chosen = {value: named[value] for value in sorted(foreground or named)}
    names = list(chosen.values())
    bad = [
        name for name in names if names.count(name) > 1 or "/" in name or name in ("", ".", "..")
    ]
    if not chosen or max(chosen) > 255 or min(chosen) < 1 or bad:
        raise UserError(
            f"{dataset.name}: has the labels {chosen}; expected one at least, values from 1 to "
            "255, and names that differ and may be names of folders."
        )
    return chosen


def _require_bytes(path: str, values: np.ndarray) -> None:
    if values[0] < 0 or values[-1] > 255:
        raise UserError(
            f"{path}: has the label values {values[0]} to {values[-1]}; expected values from 0 to "
            "255."
        )


def fingerprint(dataset: Dataset) -> str:
    """SHA-256 (hex) of names, splits and bytes of the cases, wherever their files lie."""
    total = hashlib.sha256()
    for split in SPLITS:
        for case in getattr(dataset, split):
            for role, path in (("image", case.image), ("label", case.label)):
                total.update(f"{split}\t{case.name}\t{role}\t{digest(path)}\n".encode())
    return total.hexdigest()


def digest(path: str | os.PathLike[str] | None) -> str:
    """SHA-256 (hex) of a file, of every file of a folder, or "" of None."""
    if path is None:
        return ""
    path = pathlib.Path(path)
    if path.is_dir():  # DICOM slices
        return " ".join(digest(file) for file in sorted(path.iterdir()) if file.is_file())
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_folder(folder: pathlib.Path) -> tuple[dict[str, list[Case]], dict[int, str]]:
    """({split: [Case]}, {label value: name}) of a Decathlon or nnU-Net folder."""
    path = folder / "dataset.json"
    if not path.is_file():
        if (folder / "images").is_dir():
            return {"train": _same_named(folder), "validation": [], "test": []}, {}
        raise UserError(
            f"{folder}: has no dataset.json; expected a Decathlon or nnU-Net folder, or a CSV file."
        )
    try:
        description = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(
            f"{path}: is not JSON ({error}); expected a data set's description."
        ) from None
    if not isinstance(description, dict) or "labels" not in description:
        raise UserError(
            f"{path}: lacks the key 'labels'; expected the label values and their names."
        )
    if "training" not in description and "channel_names" not in description:
        raise UserError(
            f"{path}: lacks 'training' (Decathlon) and 'channel_names' (nnU-Net); expected one of "
            "them."
        )
    channels: Any = description.get("channel_names", description.get("modality", {}))
    if len(channels) > 1:
        raise UserError(f"{path}: describes {len(channels)} channels per image; expected one.")
    pairs = _listed(path, description) if "training" in description else _nnunet(path, description)
    cases = {
        split: [_case(path, folder, *pair) for pair in pairs[split]] for split in ("train", "test")
    }
    for case in cases["train"]:
        if case.label is None:
            raise UserError(
                f"{path}: training image {case.image} has no label; expected one in labelsTr."
            )
    return cases | {"validation": []}, _labels(path, description["labels"])


def _same_named(folder: pathlib.Path) -> list[Case]:
    """Cases of a folder with images/ and labels/, of the same names but for the suffix."""
    paths, labels = (images.find(folder / kind) for kind in ("images", "labels"))
    missing = sorted(paths.keys() ^ labels.keys())
    if missing:
        raise UserError(
            f"{folder}: images/ and labels/ do not both have {missing[0]}; expected files of the "
            "same names."
        )
    return [Case(name, image, labels[name], name) for name, image in paths.items()]


def _listed(path: pathlib.Path, description: Mapping[str, Any]) -> dict[str, list[Pair]]:
    """{split: [(name, image, label or None)]} of a Decathlon dataset.json, which lists files."""
    pairs: dict[str, list[Pair]] = {}
    for key, split in (("training", "train"), ("test", "test")):
        pairs[split] = []
        for item in description.get(key, []):
            item = item if isinstance(item, dict) else {"image": item}
            image, label = item.get("image"), item.get("label")
            if not isinstance(image, str):
                raise UserError(
                    f"{path}: {key!r} lists {item}; expected a path or an image with its label."
                )
            name = pathlib.PurePosixPath(image).name
            if label is None and split == "test" and (path.parent / "labelsTs" / name).exists():
                label = f"labelsTs/{name}"
            pairs[split].append((images.stem(name), image, label))
    return pairs


def _nnunet(path: pathlib.Path, description: Mapping[str, Any]) -> dict[str, list[Pair]]:
    """The same of an nnU-Net folder: imagesTr/case_0000.nii.gz with labelsTr/case.nii.gz."""
    ending = description.get("file_ending", ".nii.gz")
    pairs: dict[str, list[Pair]] = {}
    for split, end in (("train", "Tr"), ("test", "Ts")):
        pairs[split] = []
        for file in sorted((path.parent / f"images{end}").glob(f"[!.]*{ending}")):
            name, _, channel = file.name.removesuffix(ending).rpartition("_")
            if channel != "0000":
                raise UserError(
                    f"{file}: is not a first channel; expected one channel, named "
                    f"<case>_0000{ending}."
                )
            label = f"labels{end}/{name}{ending}"
            there = (path.parent / label).exists()
            pairs[split].append((name, f"images{end}/{file.name}", label if there else None))
    return pairs


def _labels(path: pathlib.Path, labels: Any) -> dict[int, str]:
    """{value: name} from the Decathlon's {"1": "liver"} or nnU-Net's {"liver": 1}."""
    try:
        if all(key.isdecimal() for key in labels):
            return {int(value): str(name) for value, name in labels.items()}
        return {int(value): name for name, value in labels.items()}
    except (AttributeError, TypeError, ValueError):
        raise UserError(
            f"{path}: has the labels {labels}; expected a whole number and a name for each."
        ) from None


def _read_csv(path: pathlib.Path) -> dict[str, list[Case]]:
    """{split: [Case]} of a CSV file."""
    splits: dict[str, list[Case]] = {split: [] for split in SPLITS}
    split_of: dict[str, str] = {}
    for where, row in _rows(path):
        image, label, split, group = (
            (row.get(key) or "").strip() for key in ("image", "label", "split", "group")
        )
        if split not in SPLITS:
            raise UserError(
                f"{where}: unknown split {split!r}; expected train, validation or test."
            )
        if not image or not (label or split == "test"):
            what = "label" if image else "image"
            raise UserError(
                f"{where}: has no {what}; expected a path (only a test image may lack its label)."
            )
        if group and split_of.setdefault(group, split) != split:
            raise UserError(
                f"{where}: group {group!r} is in {split} and {split_of[group]}; expected it in one "
                "split."
            )
        name = images.stem(image)
        splits[split].append(_case(where, path.parent, name, image, label or None, group))
    return splits


def _rows(path: pathlib.Path) -> list[tuple[str, dict[str, str | None]]]:
    """(where it stands, {column: value}) of every row of a CSV file."""
    try:
        # Excel begins a file with a byte order mark.
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            missing = [column for column in ("image", "label", "split") if column not in columns]
            if missing:
                raise UserError(
                    f"{path}: lacks {missing} among {columns}; expected image,label,split[,group]."
                )
            return [(f"{path}, line {reader.line_num}", row) for row in reader]
    except (UnicodeDecodeError, csv.Error):
        raise UserError(
            f"{path}: is not a text file; expected a CSV file or a data set folder."
        ) from None


def _case(
    where: object,
    folder: pathlib.Path,
    name: str,
    image: str,
    label: str | None,
    group: str = "",
) -> Case:
    """A `Case` whose files exist; without a group it is a group of its own."""
    paths = folder / image, folder / label if label else None
    for file in paths:
        if file is not None and not file.exists():
            raise UserError(f"{where}: lists {file}, which does not exist; expected a file.")
    return Case(name, str(paths[0]), str(paths[1]) if label else None, group or name)


def _require_distinct(source: pathlib.Path, splits: Mapping[str, Iterable[Case]]) -> None:
    """Raises a `UserError` where two cases share an image or a name.

    Results of the same name would overwrite each other.
    """
    seen: dict[tuple[str, str], str] = {}
    for split in SPLITS:
        for case in splits[split]:
            for key in (("the image", os.path.realpath(case.image)), ("the name", case.name)):
                if key in seen:
                    raise UserError(
                        f"{source}: {case.image} in {split} has {key[0]} of {seen[key]}; expected "
                        "every case once, under a file name of its own."
                    )
                seen[key] = f"{case.image} in {split}"


def _split_off(cases: list[Case], seed: int, fraction: float) -> tuple[list[Case], list[Case]]:
    """(train, validation): whole groups.

    They are chosen by a hash, so that the choice depends on seed and names alone.
    """

    def rank(group: str) -> bytes:
        return hashlib.sha256(f"{seed} {group}".encode()).digest()

    groups = sorted({case.group for case in cases}, key=rank)
    if len(groups) == 1:
        logging.warning(
            "All training cases are one group, %s, which also validates: the scores flatter.",
            groups[0],
        )
        return cases, cases
    chosen = groups[: min(max(1, round(fraction * len(groups))), len(groups) - 1)]
    train = [case for case in cases if case.group not in chosen]
    return train, [case for case in cases if case.group in chosen]
