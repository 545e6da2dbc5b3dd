"""The name of a case, by one rule for data sets, predictions, the client and scores.

- A file's name is that of the file without its image suffix: `a/case_1.nii.gz` is `case_1`. A DICOM
  folder's is that of the folder.
- Where all images of a folder end in `_0000`, they are nnU-Net's first channels, and their cases
  are called without it, as nnU-Net calls labels: `case_99_0000.nii.gz` is `case_99`. So they are
  where the data set's dataset.json names channels (nnU-Net 2). A file that is given alone has the
  name that it has in its folder.
- Where images have several channels, `case_0000.nii.gz`, `case_0001.nii.gz` and so on are those of
  the image `case`; any other file holds all channels of an image.
- Below a folder, names hold the folders between: `s0000/ct`. Results lie in the same folders.
- In a data set, where several cases would have one name, the folders that tell them apart are their
  names: `s0000/ct.nii.gz` and `s0001/ct.nii.gz` are the cases `s0000` and `s0001`.
"""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NoReturn

from absl import logging

from tf_autoctx import files
from tf_autoctx.data import dicom, dicom_files, image_files, segments
from tf_autoctx.data.dicom_files import SERIES
from tf_autoctx.data.images import PIXELS_ONLY, SUFFIXES
from tf_autoctx.errors import UserError

Path = str | os.PathLike[str]
# {(patient, series): (the first folder of its slices, where they lie)}
Homes = dict[tuple[str, str], tuple[pathlib.Path, set[str]]]

# Folders below the results of `predict` that hold no labels.
BESIDE_LABELS = ("masks", "probabilities", "uncertainty", "strips", "iterations")
UNREAD = re.compile(
    r".*\.(bmp|gif|webp|img|mgh|mgz|mnc|npy|npz|zip|tar|tar\.gz|tgz|rar|7z)", re.IGNORECASE
)
CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")  # of nnU-Net
FIRST = "0000"


def stem(path: Path) -> str:
    """The file name without its image suffix: `a/case_1.nii.gz` -> `case_1`."""
    name = pathlib.Path(path).name
    for suffix in (segments.SUFFIX, *SUFFIXES):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def case_name(path: Path) -> str:
    """The name of an image file, or of a DICOM folder, among the images beside it.

    Raises:
      UserError: a further channel of an nnU-Net case.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        return path.resolve().name
    beside = [path.name]
    if path.parent.is_dir():
        beside = [name for name in os.listdir(path.parent) if _is_image(name)] or beside
    return _name_of(path, _channels(path.parent, beside))


def of_data_set(paths: Sequence[Path], channels: int = 1) -> list[str]:
    """The names of the cases of a data set, one for each image, without folders.

    Images that have one name of `case_name` are told apart by their folders; only the same image
    twice, or two that differ in their suffix alone, still have one.

    Args:
      paths: of the images, of several channels those of the first ones.
      channels: of an image.
    """
    files = [pathlib.Path(os.path.abspath(path)) for path in paths]
    names = _names(files) if channels == 1 else [_without_channel(file.name) for file in files]
    if len(set(names)) == len(names):
        return names
    root = os.path.commonpath([file.parent for file in files])
    parts = [(*file.parent.relative_to(root).parts, name) for file, name in zip(files, names)]
    if len({len(of_file) for of_file in parts}) == 1:
        told = [len(set(column)) > 1 for column in zip(*parts)]
        parts = [
            tuple(part for part, tells in zip(of_file, told) if tells) or of_file[-1:]
            for of_file in parts
        ]
    return ["_".join(of_file) for of_file in parts]


def find(
    directory: Path,
    series: bool = True,
    below: bool = False,
    without: Path | None = None,
    skip: Collection[str] = (),
    channels: int = 1,
) -> dict[str, str]:
    """The images in a folder: {name: path}, sorted by name.

    Args:
      directory: path.
      series: whether the slices of DICOM series are one image, their folder, rather than one each.
      below: whether images in folders below it count too, under names such as `patient_1/case_1`;
        links to folders are followed, each folder once.
      without: the folder of the results, which does not count where it lies below.
      skip: folders right below that do not count, such as `BESIDE_LABELS`.
      channels: of an image, which may lie in a file each, see `of_case`.

    Raises:
      UserError: the folder is missing or has no image, or is `without` itself; two files have the
        same name; a further channel of an nnU-Net case, or one that is missing; slices of one
        series in two folders.
    """
    directory = pathlib.Path(directory)
    paths: dict[str, str] = {}
    homes: Homes = {}
    skipped = pathlib.Path(without).resolve() if without else None
    if not directory.is_dir():
        raise UserError(f"{directory}: no such folder; expected a folder of images.")
    if skipped == directory.resolve():
        raise UserError(
            f"{without}: is the folder of the input images; expected another one for the results."
        )

    walks, unread = {os.path.realpath(directory), str(skipped)}, []
    for walked, folders, names in os.walk(directory, onerror=_refuse_folder, followlinks=True):
        # A leading dot marks our own unfinished files and what macOS leaves behind.
        folder, names = pathlib.Path(walked), [name for name in names if not name.startswith(".")]
        inner = [name for name in folders if not name.startswith(".")]
        if folder == directory:
            inner = [name for name in inner if name not in skip]
        folders.clear()
        for name in sorted(inner, key=lambda name: (folder / name).is_symlink()) if below else ():
            if (place := os.path.realpath(folder / name)) not in walks:
                walks.add(place)
                folders.append(name)
        unread += [folder / name for name in names if UNREAD.fullmatch(name)]
        named = _images_in(folder, names, homes if series else None, channels)
        for file, name in named.items():
            full = _within(directory, folder, file, name)
            if full in paths:
                raise UserError(
                    f"{file}: has the same name as {paths[full]}; expected one image of each name."
                )
            paths[full] = image_files.joined(of_case(file, channels))
    if unread:
        logging.warning(
            "%s: %d files of formats that are not read are left out, such as %s.",
            *(directory, len(unread), unread[0]),
        )
    if not paths:
        raise UserError(
            f"{directory}: holds no image; expected files that end in {', '.join(SUFFIXES)}."
        )
    return dict(sorted(paths.items()))


def given(
    path: Path, series: bool = True, without: Path | None = None, channels: int = 1
) -> dict[str, str]:
    """The images that a user gives: those in a folder and below it, see `find`, or the one of a
    file, of its first channel or of all of them: {name: path}.

    Raises:
      UserError: see `find`.
    """
    if pathlib.Path(path).is_dir():
        return find(path, series, below=True, without=without, channels=channels)
    first, *others = image_files.channels(path)
    if channels == 1:
        return {case_name(first): os.fspath(path)}
    name = _without_channel(first.name) if first.is_file() else case_name(first)
    return {name: image_files.joined([first, *others] if others else of_case(first, channels))}


def of_case(file: pathlib.Path, channels: int) -> list[pathlib.Path]:
    """The files of an image of so many channels: of `case_0000.nii.gz` those of its other channels
    too, as nnU-Net has them; any other file holds all channels.

    Raises:
      UserError: a channel is missing, or there is one more.
    """
    match = CHANNEL.fullmatch(stem(file)) if channels > 1 and not file.is_dir() else None
    if not match or match["channel"] != FIRST:
        return [file]
    return channel_files(file, match["case"], channels)


def channel_files(file: pathlib.Path, case: str, channels: int) -> list[pathlib.Path]:
    """The files of the channels of a case beside a file, and in its format.

    Raises:
      UserError: a channel is missing, or there is one more.
    """
    ending = file.name[len(stem(file)) :]
    *files, further = (
        file.with_name(f"{case}_{number:04d}{ending}") for number in range(channels + 1)
    )
    require_channels(files)
    if further.exists():
        raise UserError(f"{further}: is a channel too many; {_expected_channels(files)}.")
    return files


def require_channels(files: Sequence[pathlib.Path], source: str = "") -> None:
    """Raises a `UserError` where a file of a channel is missing; `source` says who told of it."""
    for missing in (path for path in files if not path.exists()):
        raise UserError(f"{missing}: is missing; {_expected_channels(files)}{source}.")


def _expected_channels(files: Sequence[pathlib.Path]) -> str:
    if len(files) == 1:
        return f"expected one channel, {files[0].name}"
    return f"expected {len(files)} channels, {files[0].name} to {files[-1].name}"


def pairs(images: Mapping[str, str], labels: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Images and labels of the same names: {name: (image, label)}.

    Where names differ and every folder below holds one file, folders are compared in place of
    files: `s0000/ct` goes with `s0000/segmentation` and with `s0000`. The name is the image's.

    Args:
      images, labels: see `find`.

    Raises:
      UserError: one without the other.
    """
    keys = [{name: name for name in side} for side in (images, labels)]
    if images.keys() != labels.keys():
        keys = [_by_folder(side) or own for side, own in zip((images, labels), keys)]
    lonely = [
        paths[own[key]]
        for paths, own, other in ((images, *keys), (labels, *reversed(keys)))
        for key in own
        if key not in other
    ]
    if lonely:
        shown = ", ".join(lonely[:20])
        more = f" and {len(lonely) - 20} more" if len(lonely) > 20 else ""
        raise UserError(
            f"{shown}{more}: no image of the same name in the other folder; match the two."
        )
    return {name: (images[name], labels[keys[1][key]]) for key, name in keys[0].items()}


def _by_folder(names: Iterable[str]) -> dict[str, str] | None:
    """{folder, or a name without one: name}; None where a folder holds several files."""
    names = list(names)
    folders = {(name.rpartition("/")[0] or name): name for name in names}
    return folders if len(folders) == len(names) else None


def _names(files: Sequence[pathlib.Path]) -> list[str]:
    """`case_name` of every file; each folder is listed once."""
    channels: dict[pathlib.Path, bool] = {}
    names = []
    for file in files:
        if file.is_dir():
            names.append(file.name)
            continue
        if file.parent not in channels:
            beside = [name for name in os.listdir(file.parent) if _is_image(name)]
            channels[file.parent] = _channels(file.parent, beside or [file.name])
        names.append(_name_of(file, channels[file.parent]))
    return names


def _is_image(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(SUFFIXES)


def _channels(folder: pathlib.Path, names: Iterable[str]) -> bool:
    """Whether the images of these file names in a folder are named as nnU-Net's channels are."""
    matches = [CHANNEL.fullmatch(stem(name)) for name in names]
    if all(match and match["channel"] == FIRST for match in matches):
        return True
    if not any(matches):
        return False
    try:
        path = folder.resolve().parent / "dataset.json"
        description = files.read_json(path, "a data set's description")
    except (OSError, UserError):
        return False
    return isinstance(description, dict) and "channel_names" in description


def _name_of(file: pathlib.Path, channels: bool) -> str:
    name = stem(file)
    match = CHANNEL.fullmatch(name) if channels else None
    if not match:
        return name
    if match["channel"] != FIRST:
        raise UserError(f"{file}: is not a first channel; expected one channel, named <case>_0000.")
    return match["case"]


def _firsts(names: Iterable[str]) -> list[str]:
    """File names without those of channels whose first one is among them."""
    matches = {name: CHANNEL.fullmatch(stem(name)) for name in sorted(names)}
    cases = {match["case"] for match in matches.values() if match and match["channel"] == FIRST}
    return [
        name
        for name, match in matches.items()
        if not match or match["channel"] == FIRST or match["case"] not in cases
    ]


def _without_channel(name: str) -> str:
    """The name of an image of several channels by that of its file, or of the first one's."""
    match = CHANNEL.fullmatch(stem(name))
    return stem(name) if not match or match["channel"] != FIRST else match["case"]


def _refuse_folder(error: OSError) -> NoReturn:
    reason = (error.strerror or str(error)).lower()
    raise UserError(f"{error.filename}: {reason}; expected a folder that can be read.")


def _images_in(
    folder: pathlib.Path, names: list[str], homes: Homes | None, count: int
) -> dict[pathlib.Path, str]:
    """{image file: name} among the file names in a folder, of several channels the first one; the
    folder itself where its DICOM files are slices of series.

    Args:
      folder: of the files.
      names: of the files.
      homes: of the series of the folders before, to which this one's are added; None: slices are
        images of their own.
      count: of channels.

    Raises:
      UserError: slices of a series lie in another folder too; a further channel.
    """
    by_mark = {name for name in names if _may_be_dicom(folder / name)}
    known = list(dicom.series_in(folder).values()) if by_mark else []
    ours = {file.path.name for found in known for file in (*found.files, *found.faulty)}
    images = [name for name in names if name in ours or (_is_image(name) and name not in by_mark)]
    named = {}
    if homes is not None:
        _require_one_folder(folder, known, homes)
    if homes is not None and _are_slices(known):
        named[folder] = folder.resolve().name
        images = _beside_slices(folder, [name for name in images if name not in ours])
    if count > 1:
        return named | {folder / name: _without_channel(name) for name in _firsts(images)}
    channels = bool(images) and _channels(folder, images)
    return named | {folder / name: _name_of(folder / name, channels) for name in sorted(images)}


def _are_slices(known: Sequence[dicom.Series]) -> bool:
    """Whether the DICOM files of a folder are slices: several of one series or, by a mistake that
    is told when they are read, each of its own; or one of no suffix.

    A series of one file, such as a volume of many frames, is an image of its own.
    """
    files = [[*s.files, *(file for file in s.faulty if file.text(SERIES))] for s in known]
    every = [file for of_series in files for file in of_series]
    if len(every) == 1:
        return not _is_image(every[0].path.name)
    scattered = dicom.scattered(known)
    return any(len(of_series) > 1 for of_series in files) or 1 < len(scattered) == len(every)


def _require_one_folder(folder: pathlib.Path, known: Sequence[dicom.Series], homes: Homes) -> None:
    """Raises a `UserError` for a series of which another folder holds slices at other places.

    Copies of a series, and phases of one, lie at the same places: each folder is whole.
    """
    for of_one in known:
        slices = [file for file in of_one.files if file.is_slice]
        if not (of_one.uid and slices):
            continue
        places = {file.text(dicom_files.POSITION) for file in slices}
        patient = slices[0].text(dicom_files.PATIENT)
        other, others = homes.setdefault((patient, of_one.uid), (folder, places))
        if other != folder and places.isdisjoint(others):
            raise UserError(
                f"{folder}: holds slices of the DICOM series {of_one.uid}, as {other} does; "
                "expected all slices of a series in one folder."
            )


def _beside_slices(folder: pathlib.Path, names: list[str]) -> list[str]:
    """The images beside the slices of a DICOM folder, without pictures, which get a warning."""
    pictures = [name for name in names if name.lower().endswith(PIXELS_ONLY)]
    if pictures:
        logging.warning(
            "%s: %d pictures beside the DICOM slices are left out, such as %s.",
            folder,
            len(pictures),
            pictures[0],
        )
    return [name for name in names if name not in pictures]


def _may_be_dicom(file: pathlib.Path) -> bool:
    """By the suffix, or by how it begins where the suffix is no image's."""
    if file.suffix.lower() == ".dcm":
        return True
    return not _is_image(file.name) and dicom_files.is_dicom(file)


def _within(directory: pathlib.Path, folder: pathlib.Path, file: pathlib.Path, name: str) -> str:
    """A name with the folders that its image lies in, below a directory."""
    if file == directory:
        return name
    if file == folder:
        return file.relative_to(directory).as_posix()
    return (folder.relative_to(directory) / name).as_posix()
