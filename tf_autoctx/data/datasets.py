"""Which cases there are and which split each belongs to.

Decathlon and nnU-Net folders (1 and 2), images beside labels, CSV files. Label maps are {label
value: name}; a label that is called "ignore" marks voxels that are neither learnt from nor scored.
Labels of nnU-Net 2 that are lists of values are regions, see there.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import operator
import os
import pathlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from tf_autoctx import files, spreadsheets
from tf_autoctx.data import image_files, images, isolation, names
from tf_autoctx.data import labels as label_files
from tf_autoctx.data import regions as regions_of_labels
from tf_autoctx.data.regions import Region
from tf_autoctx.errors import Faults, FieldError, UserError

SPLITS = ("train", "validation", "test")
COLUMNS = ("image", "label", "split", "group", "series")  # of a CSV file
CHANNEL = "image_"  # begins the columns of channels, such as image_t1, where there is no `image`
NAME = "case"  # a column too where channels have columns
# What a CSV file may call them.
SPELLINGS = {
    "train": ("train", "training", "tr"),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing", "ts"),
}
# What data sets call the label 0.
BACKGROUNDS = (
    *("background", "backgroud", "back", "bg", "air", "clear", "clear label", "none", "0", ""),
    *("unlabeled", "unlabelled", "unknown", "void", "other", "others"),
)
Scans = dict[str, dict[str, list[str]]]  # {split: {name of a case: a mark of each of its channels}}
CLASS_ORDER = "regions_class_order"  # of a dataset.json: the value that each region is written as


@dataclasses.dataclass(frozen=True)
class Case:
    """An image with its label.

    Attributes:
      name: of the case, and of its results.
      image: path; of channels in files of their own, see `image_files`.
      label: path; None for a test image that nobody outlined.
      group: such as a patient; it stays in one split.
      series: of an image that is a DICOM folder: UID or number, see `images.read`; "": its only
        one.
      channels: that the image has.
    """

    name: str
    image: str
    label: str | None
    group: str
    series: str = ""
    channels: int = 1


@dataclasses.dataclass(frozen=True)
class Entry:
    """What a source says of a case.

    Attributes:
      where: it says so, for messages.
      split: one of `SPLITS`.
      images: files of the channels; one may hold all of them.
      label, series: as for `Case`.
      group: "": its own.
      name: that the source gives; "": that of the first file.
    """

    where: str
    split: str
    images: tuple[pathlib.Path, ...]
    label: pathlib.Path | None
    group: str = ""
    name: str = ""
    series: str = ""


# What a source says of its cases, {label value: name}, names of the channels, and regions
Told = tuple[list[Entry], dict[int, str], tuple[str, ...], tuple[Region, ...]]
BY_NAME = operator.attrgetter("name")


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Cases by split, each sorted by name.

    Attributes:
      name: of the source.
      train, validation, test: the cases.
      labels: {label value: name}, empty where the source names none; background and "ignore"
        are among them where it names them.
      channels: names of those that every image has, numbers from 0 where the source names none.
      regions: that the source tells, of the values of labels; mostly none.
    """

    name: str
    train: tuple[Case, ...]
    validation: tuple[Case, ...]
    test: tuple[Case, ...]
    labels: dict[int, str]
    channels: tuple[str, ...] = ("0",)
    regions: tuple[Region, ...] = ()


def load(
    source: str | os.PathLike[str],
    seed: int,
    validation_fraction: float = 0.2,
    training: bool = True,
    fold: tuple[int, int] | None = None,
    channels: int | None = None,
    test_fraction: float = 0.0,
) -> Dataset:
    """Lists the cases of a data set; no image is read.

    Args:
      source: a Medical Segmentation Decathlon folder, an nnU-Net folder (1 or 2), a folder with
        images/ and labels/ of the same names (see `names`; all of them training cases), a folder of
        imagesTr/ and labelsTr/, imagesTs/ and labelsTs/ likewise, whose dataset.json names label
        values alone, or a CSV file with the columns image, label, split (train, validation or val,
        test) and, if wanted, group and series (of a DICOM folder); its paths are relative to the
        CSV, and label may be empty for a test image; split may be missing where `fold` or
        `test_fraction` divides the cases. In place of image there may be a column for
        each channel, image_t1, image_t2 and so on, and case, its name. Semicolons or tabs in place
        of commas, capitals and blanks are read too.
      seed: decides which training cases validate, unless the CSV says so.
      validation_fraction: share of the groups (of the cases, where there are no groups) that
        validate, at least one; 0: none.
      training: whether there must be a training case.
      fold: (number, number of folds): all cases that train or validate are divided into so many
        `folds`, that one is the test cases, and of the rest `validation_fraction` validates; the
        source's own test cases are left out. None: the splits are the source's.
      channels: of every image, where the source does not tell; None: one.
      test_fraction: share of the groups of the training cases that become the test cases, at least
        one, before some of the others validate; test images without a label are left out. 0: the
        test cases are the source's.

    Returns:
      Dataset, the same for a seed wherever the files lie and in whatever order they are listed.

    Raises:
      UserError: the source is none of the four, is malformed, lists a missing file or a case twice,
        lacks a training case, tells other channels, has fewer groups than folds, or with
        `test_fraction` test cases of its own or a single group.
    """
    source = pathlib.Path(source)
    divided = fold is not None or test_fraction > 0
    entries, labels, told, regions = _read(source, divided, channels or 1)
    names_of_channels = _channels(source, told, channels)
    splits = _cases(entries, len(names_of_channels))
    splits = {split: sorted(cases, key=BY_NAME) for split, cases in splits.items()}
    if training and not splits["train"]:
        raise UserError(f"{source}: holds no training case; expected at least one.")
    _require_distinct(source, splits)
    if test_fraction:
        _require_divisible(source, splits, test_fraction)
    splits = _divided(splits, seed, validation_fraction, fold, test_fraction)
    return Dataset(
        source.resolve().stem,
        **{split: tuple(splits[split]) for split in SPLITS},
        labels=labels,
        channels=names_of_channels,
        regions=regions,
    )


def _divided(
    splits: Mapping[str, list[Case]],
    seed: int,
    validation_fraction: float,
    fold: tuple[int, int] | None,
    test_fraction: float,
) -> dict[str, list[Case]]:
    """{split: cases by name}, divided as `load` says: into test cases and others, into folds, and
    into cases that validate and others."""
    train, validation, test = (splits[split] for split in SPLITS)
    drawn_by = f"{seed}"
    if test_fraction:
        train, test = _split_off(train, f"{seed}, test", test_fraction)
    if fold is not None:
        number, count = fold
        parts = folds([*train, *validation], seed, count)
        test = sorted(parts.pop(number - 1), key=BY_NAME)
        train, validation = sorted((case for part in parts for case in part), key=BY_NAME), []
        # Others validate in each fold, or no run of an ensemble would have learnt from them.
        drawn_by = f"{seed}, fold {number}"
    if train and not validation and validation_fraction:
        train, validation = _split_off(train, drawn_by, validation_fraction)
    return dict(zip(SPLITS, (train, validation, test)))


def of_flags(source: str | os.PathLike[str], flags: Mapping[str, Any]) -> Dataset:
    """`load`, divided as a run of these flags is; one of before there were folds or random test
    cases has none."""
    return load(
        source,
        flags["seed"],
        flags["validation_fraction"],
        fold=(flags["fold"], flags["folds"]) if flags.get("folds") else None,
        channels=flags.get("channels"),
        test_fraction=flags.get("test_fraction", 0.0),
    )


def _channels(source: pathlib.Path, told: tuple[str, ...], channels: int | None) -> tuple[str, ...]:
    """Names of the channels of every image: those that the source tells, else so many numbers."""
    if told and channels not in (None, len(told)):
        raise FieldError(
            "channels",
            channels,
            f"{source} tells {len(told)}: {', '.join(told)}; leave the flag out.",
        )
    return told or tuple(map(str, range(channels or 1)))


def folds(cases: Sequence[Case], seed: int, count: int) -> list[list[Case]]:
    """Cases divided into parts: whole groups, and as many cases in each as these allow.

    Groups are dealt out, large ones first, each to the smallest part; those of one size by a hash,
    so that a part depends on seed and names alone.

    Raises:
      FieldError: there are fewer groups than parts.
    """
    groups: dict[str, list[Case]] = {}
    for case in cases:
        groups.setdefault(case.group, []).append(case)
    if len(groups) < count:
        raise FieldError(
            "folds",
            count,
            f"the cases that train or validate are of {len(groups)} group"
            f"{'s' * (len(groups) != 1)}; expected as many folds at most.",
        )

    def order(group: str) -> tuple[int, bytes]:
        return -len(groups[group]), _rank(str(seed), group)

    parts: list[list[Case]] = [[] for _ in range(count)]
    for group in sorted(groups, key=order):
        min(parts, key=len).extend(groups[group])
    return parts


def read_case(
    case: Case,
    foreground: Collection[int] | None = None,
    labels: Mapping[int, str] | Collection[int] | None = None,
    dimensions: int = 3,
    merge: bool = True,
) -> tuple[images.Image, np.ndarray | None]:
    """Reads a case and checks that it can be learnt from.

    Args:
      case: `Case`.
      foreground: the label values that make up the object or objects; None takes every value but 0.
      labels: the known label values, such as `Dataset.labels`; None or empty accepts any whole
        number.
      dimensions: of the images that the system takes.
      merge: one object of all values (1), or each value an object of its own.

    Returns:
      (image, uint8 array of its shape (z, y, x) with 1 or the values in the foreground,
      `labels.IGNORED` where the label says "ignore", and 0 elsewhere), or (image, None) without a
      label.

    Raises:
      UserError: unreadable file, image of other dimensions, constant image; a label that is none,
        see `labels.read`, on another grid or without the object.
    """
    image = images.read_raw(case.image, dimensions, case.series, case.channels)
    array = image.array
    for number in range(case.channels):
        voxels = array[..., number] if case.channels > 1 else array
        if voxels.min() == voxels.max():
            of_channel = f" of channel {number}" if case.channels > 1 else ""
            raise UserError(
                f"{case.image}: every voxel{of_channel} is {voxels.min()}; expected varying "
                "intensities."
            )
    if case.label is None:
        return image, None
    outlined, label = label_files.read(case.label, dimensions, labels, foreground, of=image)
    images.require_same_grid(outlined, image)
    return image, _learnt(case.label, label, foreground, labels, merge)


def _learnt(
    path: str,
    label: np.ndarray,
    foreground: Collection[int] | None,
    labels: Mapping[int, str] | Collection[int] | None,
    merge: bool,
) -> np.ndarray:
    """A label as `read_case` returns it."""
    out = label_files.ignored(labels) if isinstance(labels, Mapping) else None
    wanted = None if foreground is None else list(foreground)
    if out is not None and wanted and out in wanted:
        raise FieldError("foreground", wanted, f"the label {out} is to be ignored; leave it out.")
    mask = label != 0 if wanted is None else np.isin(label, wanted)
    ignored = np.zeros_like(mask) if out is None else label == label_files.IGNORED
    mask &= ~ignored
    values = np.unique(label)
    if not mask.any():
        expected = "a value other than 0" if wanted is None else f"one of {wanted}"
        raise UserError(
            f"{path}: the object is missing, the values are {values.tolist()}; expected {expected}."
        )
    if merge:
        kept = mask.astype(np.uint8)
    else:
        _require_bytes(path, values)
        kept = np.where(mask, label, 0).astype(np.uint8)
    kept[ignored] = label_files.IGNORED
    return kept


def structures(dataset: Dataset, foreground: Sequence[int] | None = None) -> dict[int, str]:
    """{label value: name} of the foreground.

    Where the source names no labels, these are the values of the training labels.

    Raises:
      FieldError: a value of `foreground` that no label has.
      UserError: values beyond 255, names that are no folder names or not distinct; no label, or an
        unreadable one.
    """
    named = known_values(dataset)
    unknown = sorted(set(foreground or []) - set(named))
    if unknown:
        raise FieldError(
            "foreground", foreground, f"no label is {unknown}; expected some of {sorted(named)}."
        )
    chosen = {value: named[value] for value in sorted(foreground or named)}
    words = list(chosen.values())
    bad = [
        name for name in words if words.count(name) > 1 or "/" in name or name in ("", ".", "..")
    ]
    if not chosen or max(chosen) > 255 or min(chosen) < 1 or bad:
        raise UserError(
            f"{dataset.name}: has the labels {chosen}; expected one at least, values from 1 to "
            "255, and names that differ and may be names of folders."
        )
    return chosen


def known_values(dataset: Dataset) -> dict[int, str]:
    """{label value: name} that the source names, or else that its training labels have, without
    background and "ignore".

    Raises:
      UserError: an unreadable label, or one of values beyond 255.
    """
    background = (0, label_files.ignored(dataset.labels))
    named = {value: name for value, name in dataset.labels.items() if value not in background}
    return named or {value: f"label {value}" for value in _label_values(dataset.train) if value}


def _label_values(cases: Sequence[Case]) -> list[int]:
    """The values of labels, which other processes read, sorted.

    Raises:
      UserError: labels that cannot be read, all of them, or values beyond 255.
    """
    tasks = {case.name: (case.label,) for case in cases}
    faults, values = Faults(), set()
    with isolation.Pool() as pool:
        for name, outcome in pool.map(_values_of, tasks.items()):
            with faults.collecting():
                if isinstance(outcome, UserError):
                    raise outcome
                _require_bytes(str(tasks[name][0]), outcome)
                values |= set(outcome.tolist())
    faults.require_none("faults in the labels")
    return sorted(values)


def _values_of(path: str) -> np.ndarray:
    _, label = label_files.read(path, None, truth=False)
    return np.unique(label)


def _require_bytes(path: str, values: np.ndarray) -> None:
    if values[0] < 0 or values[-1] > 255:
        raise UserError(
            f"{path}: has the label values {values[0]} to {values[-1]}; expected values from 0 to "
            "255."
        )


def fingerprint(dataset: Dataset) -> str:
    """SHA-256 (hex) of names, splits and bytes of the cases, wherever their files lie, and of the
    label that is to be ignored.

    Images of the same bytes in two splits get a warning: what was learnt by heart scores well.
    """
    return fingerprints(dataset)[0]


def fingerprints(dataset: Dataset) -> tuple[str, str, Scans]:
    """`fingerprint`, the same whatever split a case is in, which all folds of a data set share, and
    marks by which images are known again."""
    scans: Scans
    total, scans = hashlib.sha256(), {split: {} for split in SPLITS}
    lines: list[str] = []
    seen: dict[str, tuple[str, str]] = {}  # {digest and series of an image: (split, path)}
    for split in SPLITS:
        for case in getattr(dataset, split):
            channels = image_files.digests(case.image)
            scans[split][case.name] = _marks(channels, case.series)
            digests = {"image": " ".join(channels), "label": image_files.digest(case.label)}
            told = digests | ({"series": case.series} if case.series else {})
            for role, value in told.items():
                lines.append(f"{case.name}\t{role}\t{value}\n")
                total.update(f"{split}\t{lines[-1]}".encode())
            scan = f"{digests['image']} {case.series}"
            before, path = seen.setdefault(scan, (split, case.image))
            if before != split and path != case.image:
                logging.warning(
                    "%s in %s is the same scan as %s in %s: the scores flatter.",
                    case.image,
                    split,
                    path,
                    before,
                )
    whatever_split = hashlib.sha256("".join(sorted(lines)).encode())
    if (ignored := label_files.ignored(dataset.labels)) is not None:
        for digest in (total, whatever_split):
            digest.update(f"{label_files.IGNORE}\t{ignored}\n".encode())
    return total.hexdigest(), whatever_split.hexdigest(), scans


def marks(case: Case) -> list[str]:
    """By which its image is known again, wherever its files lie: 16 digits (hex) of each channel
    that lies in a file of its own."""
    return _marks(image_files.digests(case.image), case.series)


def _marks(channels: Iterable[str], series: str) -> list[str]:
    """`marks`, from the digests of the channels."""
    return [hashlib.sha256(f"{each} {series}".encode()).hexdigest()[:16] for each in channels]


def _read(source: pathlib.Path, divided: bool, channels: int) -> Told:
    """What a folder or CSV file says, see `_read_folder` and `_read_csv`."""
    if not source.exists():
        raise UserError(
            f"{source}: no such file or folder; expected a data set folder or a CSV file."
        )
    if not source.is_dir():
        entries, names_of_channels = _read_csv(source, divided)
        return entries, {}, names_of_channels, ()
    try:
        return _read_folder(source, channels)
    except (AttributeError, TypeError):
        raise UserError(
            f"{source / 'dataset.json'}: an entry is of another kind than the Decathlon's; "
            "expected lists of cases, and names by label value."
        ) from None


def _read_folder(folder: pathlib.Path, channels: int) -> Told:
    """What a folder says; `channels` are so many where it tells none."""
    path = folder / "dataset.json"
    if not path.is_file():
        if (folder / "images").is_dir():
            return _same_named(folder, ("images", "labels"), "train", channels), {}, (), ()
        raise UserError(
            f"{folder}: has no dataset.json; expected a Decathlon or nnU-Net folder, or a CSV file."
        )
    description = files.read_json(path, "a data set's description")
    if not isinstance(description, dict) or "labels" not in description:
        raise UserError(
            f"{path}: lacks the key 'labels'; expected the label values and their names."
        )
    lists = {"training", "channel_names", "dataset"} & description.keys()
    if not lists and ("test" in description or not (folder / "labelsTr").is_dir()):
        raise UserError(
            f"{path}: lacks 'training' (Decathlon) and 'channel_names' (nnU-Net); expected one of "
            "them, or imagesTr/ and labelsTr/ beside it."
        )
    told = _told_channels(path, description)
    count = len(told) or channels
    if not lists:
        entries = _same_named(folder, ("imagesTr", "labelsTr"), "train", count)
        if (folder / "labelsTs").is_dir():
            entries += _same_named(folder, ("imagesTs", "labelsTs"), "test", count)
    elif "training" in description:
        entries = _listed(path, description, count)
    elif "dataset" in description:
        entries = _told(path, description["dataset"], count)
        entries += _nnunet(path, description, "test", count)
    else:
        splits = (_nnunet(path, description, split, count) for split in ("train", "test"))
        entries = [entry for of_split in splits for entry in of_split]
    for entry in entries:
        if entry.label is None and entry.split == "train":
            raise UserError(
                f"{path}: training image {entry.images[0]} has no label; expected one in labelsTr."
            )
    regions = regions_in(path, description)
    labels = label_names(path, _single(description["labels"], regions))
    try:
        label_files.ignored(labels)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return entries, labels, told, regions


def _told_channels(path: pathlib.Path, description: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the channels of a dataset.json in their order; none where it tells none.

    Raises:
      UserError: names that have no numbers.
    """
    channels: Any = description.get("channel_names", description.get("modality", {}))
    if isinstance(channels, str):
        return (channels,)
    if not isinstance(channels, Mapping):
        return tuple(str(name) for name in channels)
    keys = sorted(channels, key=lambda key: (len(key), key))
    if "channel_names" in description and keys != [str(number) for number in range(len(keys))]:
        raise UserError(
            f"{path}: has the channels {dict(channels)}; expected a name for each number from 0, "
            'such as {"0": "T2", "1": "ADC"}.'
        )
    return tuple(str(channels[key]) for key in keys)


def require_channels(images: pathlib.Path, expected: Sequence[str]) -> None:
    """Compares the channels that a dataset.json beside images or above them tells, where there is
    one, with those that a model takes; warns of other names.

    Args:
      images: folder or file.
      expected: names of several channels in their order; of one all names will do.

    Raises:
      UserError: the same in another order.
    """
    images = images.absolute()
    folder = images if images.is_dir() else images.parent
    for path in (folder / "dataset.json", folder.parent / "dataset.json"):
        if len(expected) < 2 or not path.is_file():
            continue
        description = files.read_json(path, "a data set's description")
        told = _told_channels(path, description) if isinstance(description, dict) else ()
        if told and told != tuple(expected):
            found = f"{path}: has the channels {', '.join(told)}"
            if sorted(told) == sorted(expected):
                raise UserError(f"{found}; expected the order {', '.join(expected)} of the model.")
            logging.warning("%s, and the model %s, in this order.", found, ", ".join(expected))
        return


def _same_named(
    folder: pathlib.Path, parts: tuple[str, str], split: str, channels: int
) -> list[Entry]:
    """Cases of the two parts of a folder, such as images/ and labels/, of the same names, see
    `names.pairs`."""
    of_images, of_labels = (folder / part for part in parts)
    labels = names.find(of_labels, below=True)
    for series in (True, False):  # stills of one DICOM series are images of their own
        try:
            paths = names.find(of_images, series, below=True, channels=channels)
            pairs = names.pairs(paths, labels).values()
        except UserError:
            continue
        return [
            Entry(str(folder), split, tuple(image_files.channels(image)), pathlib.Path(label))
            for image, label in pairs
        ]
    paths = names.find(of_images, below=True, channels=channels)
    missing = sorted(paths.keys() ^ labels.keys())
    raise UserError(
        f"{folder}: {parts[0]}/ and {parts[1]}/ do not both have {missing[0]}; expected files of "
        "the same names."
    )


def _listed(path: pathlib.Path, description: Mapping[str, Any], channels: int) -> list[Entry]:
    """Cases of a dataset.json that lists files: the Decathlon's and nnU-Net 1's, which lists
    case.nii.gz where case_0000.nii.gz lies."""
    entries = []
    for key, split in (("training", "train"), ("test", "test")):
        for item in description.get(key, []):
            item = item if isinstance(item, dict) else {"image": item}
            image, label = item.get("image"), item.get("label")
            if not isinstance(image, str):
                raise UserError(
                    f"{path}: {key!r} lists {item}; expected a path or an image with its label."
                )
            listed = path.parent / image
            name = listed.name
            if label is None and split == "test" and (path.parent / "labelsTs" / name).exists():
                label = f"labelsTs/{name}"
            files = _channel_files(listed, channels)
            known = names.stem(listed) if files[0] != listed else ""
            label = path.parent / label if label else None
            entries.append(Entry(str(path), split, files, label, name=known))
    return entries


def _channel_files(image: pathlib.Path, channels: int) -> tuple[pathlib.Path, ...]:
    """case_0000.nii.gz and so on where a listed case.nii.gz is not there, or the first of them is
    listed; else the image itself.

    Raises:
      UserError: there are more channels or fewer.
    """
    case = names.stem(image)
    first = image.with_name(f"{case}_{names.FIRST}{image.name[len(case) :]}")
    if image.exists() or not first.exists():
        return tuple(names.of_case(image, channels))
    return tuple(names.channel_files(first, case, channels))


def _told(path: pathlib.Path, dataset: Any, channels: int) -> list[Entry]:
    """Training cases of the "dataset" of an nnU-Net 2 dataset.json: {case: {"images": [path],
    "label": path}}, or a list of the same without names."""
    named = dataset.items() if isinstance(dataset, Mapping) else (("", item) for item in dataset)
    entries = []
    for name, item in named:
        listed = item.get("images", item.get("image"))
        listed = [listed] if isinstance(listed, str) else listed
        if not isinstance(listed, list) or not all(isinstance(file, str) for file in listed):
            raise UserError(f"{path}: 'dataset' lists {item}; expected images and a label.")
        if len(listed) not in (1, channels):
            raise UserError(
                f"{path}: 'dataset' lists {len(listed)} channels of {name or item}; expected "
                f"{'one' if channels == 1 else channels}."
            )
        label = path.parent / item["label"] if item.get("label") else None
        if "/" in name:
            raise UserError(f"{path}: 'dataset' has the case {name!r}; expected a file's name.")
        files = tuple(path.parent / file for file in listed)
        entries.append(Entry(str(path), "train", files, label, name=name))
    return entries


def _nnunet(
    path: pathlib.Path, description: Mapping[str, Any], split: str, channels: int
) -> list[Entry]:
    """The cases of a split of an nnU-Net folder: imagesTr/case_0000.nii.gz, and so on for other
    channels, with labelsTr/case.nii.gz."""
    ending = description.get("file_ending", ".nii.gz")
    if not isinstance(ending, str) or not ending.startswith("."):
        raise UserError(
            f"{path}: has the file_ending {ending!r}; expected one that begins with a dot, such as "
            ".nii.gz."
        )
    source = f", as the channel_names of {path.name} tell"
    end = {"train": "Tr", "test": "Ts"}[split]
    cases: dict[str, None] = {}
    known = [f"{number:04d}" for number in range(channels)]
    for file in sorted((path.parent / f"images{end}").glob(f"[!.]*{ending}")):
        name, _, channel = file.name.removesuffix(ending).rpartition("_")
        if channel not in known:
            told = f"is not a first channel; expected one channel, named <case>_0000{ending}"
            if channels > 1:
                ends = f"<case>_0000{ending} to <case>_{known[-1]}{ending}"
                told = f"is none of {channels} channels; expected {ends}"
            raise UserError(f"{file}: {told}{source}.")
        cases[name] = None
    entries = []
    for name in cases:
        files = tuple(path.parent / f"images{end}" / f"{name}_{n}{ending}" for n in known)
        names.require_channels(files, source)
        label = path.parent / f"labels{end}" / f"{name}{ending}"
        there = label if label.exists() else None
        entries.append(Entry(str(path), split, files, there, name=name))
    folder = path.parent / f"images{end}"
    if split == "train" and not entries and any(folder.glob("[!.]*")):
        raise UserError(
            f"{folder}: holds no file that ends in {ending}; expected images, or another "
            f"file_ending in {path.name}."
        )
    taken = {entry.label for entry in entries}
    labels = (path.parent / f"labels{end}").glob(f"[!.]*{ending}")
    if alone := sorted(label for label in labels if label not in taken):
        logging.warning(
            "%s: belongs to no image of images%s; labels without an image are passed over: %d.",
            *(alone[0], end, len(alone)),
        )
    promised = description.get("numTraining", len(entries))
    if split == "train" and promised != len(entries):
        logging.warning(
            "%s: numTraining is %s; taken are the %d cases of imagesTr that end in %s.",
            *(path, promised, len(entries), ending),
        )
    return entries


def regions_in(path: pathlib.Path, description: Mapping[str, Any]) -> tuple[Region, ...]:
    """The regions of a dataset.json, in the order of its labels; none where these are values.

    In `CLASS_ORDER` stands the value that each is written as; without it, it is the first of its
    list.

    Raises:
      UserError: see `regions.parsed`; an order that has not a value of each.
    """
    labels = description["labels"]
    if not isinstance(labels, dict) or not any(isinstance(v, list) for v in labels.values()):
        return ()
    named = {name: v if isinstance(v, list) else [v] for name, v in labels.items()}
    named = {n: v for n, v in named.items() if v != [0] and n.casefold() != label_files.IGNORE}
    order = description.get(CLASS_ORDER, [values[0] if values else 0 for values in named.values()])
    fits = isinstance(order, list) and len(order) == len(named)
    if not fits or not all(first in values for first, values in zip(order, named.values())):
        raise UserError(
            f"{path}: has the {CLASS_ORDER} {order} for the regions {named}; expected a value of "
            "each."
        )
    made = [
        Region(name, (first, *(value for value in values if value != first)))
        for first, (name, values) in zip(order, named.items())
    ]
    try:
        return regions_of_labels.parsed(regions_of_labels.written(made))
    except FieldError as error:
        raise UserError(f"{path}: {error}") from None


def _single(labels: Any, regions: Sequence[Region]) -> Any:
    """The labels of a dataset.json, of regions each of their values in place of them."""
    if not regions:
        return labels
    kept = {n: v for n, v in labels.items() if v == 0 or n.casefold() == label_files.IGNORE}
    values = sorted({value for region in regions for value in region.values})
    return kept | {f"label {value}": value for value in values}


def label_names(path: pathlib.Path, labels: Any) -> dict[int, str]:
    """{value: name} from the Decathlon's {"1": "liver"} or nnU-Net's {"liver": 1}.

    Raises:
      UserError: other values than whole numbers, one of them twice, a background other than 0.
    """
    try:
        decathlon = all(key.isdecimal() for key in labels)
        pairs = [pair if decathlon else pair[::-1] for pair in labels.items()]
        named = {int(value): str(name) for value, name in pairs}
        whole = all(float(value).is_integer() for value, _ in pairs)
    except (AttributeError, TypeError, ValueError, OverflowError):
        whole = False
    if not whole:
        raise UserError(
            f"{path}: has the labels {labels}; expected a whole number and a name for each."
        )
    background = [v for v, name in named.items() if v and name.casefold() == "background"]
    if len(named) < len(pairs) or background:
        raise UserError(
            f"{path}: has the labels {labels}; expected each value once, and 0 for the background."
        )
    if named.get(0, BACKGROUNDS[0]).casefold() not in BACKGROUNDS:
        logging.warning(
            "%s: label 0 is called %r; it is taken for the background and not learnt.",
            path,
            named[0],
        )
    return named


def _read_csv(path: pathlib.Path, divided: bool) -> tuple[list[Entry], tuple[str, ...]]:
    """What a CSV file says of its cases, and names of channels that have a column each; where they
    are to be `divided`, it need not say a split."""
    spelled = {word: split for split, words in SPELLINGS.items() for word in words}
    split_of: dict[str, str] = {}
    entries = []
    columns, rows = _rows(path, divided)
    of_images = _image_columns(columns)
    for where, row in rows:
        label, word, group, series = (
            row.get(key, "") for key in ("label", "split", "group", "series")
        )
        missing = [column for column in of_images if not row.get(column)]
        split = spelled.get(word.casefold()) if "split" in columns else "train"
        if split is None:
            raise UserError(f"{where}: unknown split {word!r}; expected train, validation or test.")
        if missing or not (label or split == "test"):
            what = missing[0] if missing else "label"
            raise UserError(
                f"{where}: has no {what}; expected a path (only a test image may lack its label)."
            )
        if group and split_of.setdefault(group, split) != split:
            raise UserError(
                f"{where}: group {group!r} is in {split} and {split_of[group]}; expected it in one "
                "split."
            )
        files = tuple(_beside(path, row[column]) for column in of_images)
        label_file = _beside(path, label) if label else None
        if series and (len(files) > 1 or files[0].is_file()):
            what = "channels in columns" if len(files) > 1 else f"a file, {row[of_images[0]]}"
            raise UserError(
                f"{where}: has the series {series!r} of {what}; expected a DICOM folder."
            )
        name = row.get(NAME, "") if len(files) > 1 else ""
        if "/" in name:
            raise UserError(f"{where}: has the case {name!r}; expected a name without slashes.")
        entries.append(Entry(where, split, files, label_file, group, name, series))
    told = tuple(column.removeprefix(CHANNEL) for column in of_images)
    return entries, told if len(told) > 1 else ()


def _image_columns(columns: Sequence[str]) -> list[str]:
    """The columns of a CSV file that hold images: `image`, or one for each channel."""
    if "image" in columns:
        return ["image"]
    return [column for column in columns if column.startswith(CHANNEL)]


def _beside(table: pathlib.Path, file: str) -> pathlib.Path:
    """A path of a CSV file, which Windows may have written."""
    path = table.parent / file
    windows = table.parent / file.replace("\\", "/")
    return windows if windows.exists() and not path.exists() else path


def _rows(path: pathlib.Path, divided: bool) -> tuple[list[str], list[tuple[str, dict[str, str]]]]:
    """The columns of a CSV file, and (where it stands, {column: value}) of every row that holds
    something, see `spreadsheets.table`."""
    columns, rows = spreadsheets.table(path, "a CSV file in UTF-8 or a data set folder")
    of_images = _image_columns(columns)
    needed = ("label",) if divided else ("label", "split")
    missing = [column for column in needed if column not in columns]
    missing = missing if of_images else ["image", *missing]
    if missing:
        raise UserError(
            f"{path}: lacks {missing} among {columns}; expected "
            "image,label,split[,group,series] (of channels: image_NAME,image_NAME,...; `folds` or "
            "`test_fraction` divide cases without split)."
        )
    read = [*of_images, *COLUMNS[1:], *([NAME] if len(of_images) > 1 else [])]
    unread = [column for column in columns if column and column not in read]
    if unread:
        logging.warning(
            "%s: the columns %s are not read; those are %s, and group keeps cases of a patient "
            "in one split.",
            *(path, ", ".join(unread), ", ".join(read)),
        )
    return columns, rows


def _cases(entries: Sequence[Entry], channels: int) -> dict[str, list[Case]]:
    """{split: [Case]}, whose files exist; without a group, a case is a group of its own."""
    for entry in entries:
        for file in (*entry.images, entry.label):
            if file is not None and not file.exists():
                raise UserError(
                    f"{entry.where}: lists {file}, which does not exist; expected a file."
                )
    unnamed = [entry.images[0] for entry in entries if not entry.name]
    of_images = iter(names.of_data_set(unnamed, channels)) if unnamed else iter(())
    splits: dict[str, list[Case]] = {split: [] for split in SPLITS}
    for entry in entries:
        name = entry.name or next(of_images)
        label = str(entry.label) if entry.label else None
        image = image_files.joined(entry.images)
        case = Case(name, image, label, entry.group or name, entry.series, channels)
        splits[entry.split].append(case)
    return splits


def _require_distinct(source: pathlib.Path, splits: Mapping[str, Iterable[Case]]) -> None:
    """Raises a `UserError` where two cases share an image or a name.

    Results of the same name would overwrite each other.
    """
    seen: dict[tuple[str, str], str] = {}
    for split in SPLITS:
        for case in splits[split]:
            label = os.path.realpath(case.label) if case.label else None
            if label and (other := seen.setdefault(("the label", label), case.image)) != case.image:
                logging.warning(
                    "%s: %s and %s have one label, %s.", source, other, case.image, case.label
                )
            files = (os.path.realpath(file) for file in image_files.channels(case.image))
            for key in (*(("the image", file) for file in files), ("the name", case.name)):
                if key in seen:
                    raise UserError(
                        f"{source}: {case.image} in {split} has {key[0]} of {seen[key]}; expected "
                        "every case once, under a file name of its own."
                    )
                seen[key] = f"{case.image} in {split}"


def _require_divisible(
    source: pathlib.Path, splits: Mapping[str, Sequence[Case]], fraction: float
) -> None:
    """Raises a `FieldError` where no test cases can be drawn of the training cases."""
    own = [case.name for case in splits["test"] if case.label]
    groups = {case.group for case in splits["train"]}
    if own:
        told = f"{source} has {len(own)} test cases of its own, such as {own[0]}; leave it out."
    elif len(groups) < 2:
        told = (
            f"the training cases of {source} are one group, {groups.pop()}; expected two or more."
        )
    else:
        return
    raise FieldError("test_fraction", fraction, told)


def _rank(seed: str, group: str) -> bytes:
    """By which groups are drawn: it depends on seed and name alone."""
    return hashlib.sha256(f"{seed} {group}".encode()).digest()


def _split_off(cases: list[Case], seed: str, fraction: float) -> tuple[list[Case], list[Case]]:
    """(rest, drawn): whole groups, drawn by their `_rank`."""
    groups = sorted({case.group for case in cases}, key=functools.partial(_rank, seed))
    if len(groups) == 1:
        logging.warning(
            "All training cases are one group, %s, which also validates: the scores flatter.",
            groups[0],
        )
        return cases, cases
    chosen = groups[: min(max(1, round(fraction * len(groups))), len(groups) - 1)]
    train = [case for case in cases if case.group not in chosen]
    return train, [case for case in cases if case.group in chosen]
