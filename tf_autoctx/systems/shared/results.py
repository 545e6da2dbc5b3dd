"""The files that a segmented image becomes, and how they are written.

Neither Keras nor TensorFlow is imported: the process that writes has no need of them.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import logging

from tf_autoctx import metrics, spreadsheets
from tf_autoctx.data import dicom_seg, images, names, segments
from tf_autoctx.errors import FieldError, UserError
from tf_autoctx.files import replacing
from tf_autoctx.report import figures
from tf_autoctx.systems.shared import annotating
from tf_autoctx.systems.shared.annotating import RANK, UNSURE

if TYPE_CHECKING:
    from tf_autoctx.systems.shared.origins import Origins
    from tf_autoctx.systems.shared.prediction import Segmentor

UNSURE_TABLE = f"{UNSURE}.csv"
MEASURED = "measurements"  # a kind of results, and their folder

Key = tuple[str, int | None]  # kind of a result, and the label value of its structure
Path = str | pathlib.Path
Made = Mapping[str, Mapping[Key, pathlib.Path]]  # {path of an image: its files}, see `Results`


@dataclasses.dataclass(frozen=True)
class Results:
    """Which results of an image are wanted, and where they lie.

    Attributes:
      segmentor: the model.
      output: folder of the results.
      masks, probabilities: whether each structure's are wanted.
      compressed: whether probabilities and uncertainty are compressed, which takes longer than all
        else.
      every_iteration: whether those of online rendering are.
      suffix: of images; None: .png for PNG, JPEG and TIFF images, else .nii.gz.
      series: which of several DICOM series of a folder, see `images.read`.
      uncertainty: whether it is wanted.
      measurements: whether they are.
      spacing: edges (y, x) in mm of the pixels of images whose files do not tell; empty: they are
        unknown.
      template: of DICOM segmentation objects, which labels become; None: images.
      segments: of segmentations of 3D Slicer, which labels become; none: images.
      rank: whether what makes images uncertain is wanted.
      tables: folder of the table of uncertainty, where it is of a part; None: that of the results.

    Raises:
      FieldError: a format that cannot hold a volume; a spacing of other axes than images have.
    """

    segmentor: Segmentor
    output: pathlib.Path
    masks: bool = False
    probabilities: bool = False
    compressed: bool = True
    every_iteration: bool = False
    suffix: str | None = None
    series: str | None = None
    uncertainty: bool = False
    measurements: bool = False
    spacing: tuple[float, ...] = ()
    template: dicom_seg.Template | None = None
    segments: tuple[segments.Segment, ...] = ()
    rank: bool = False
    tables: pathlib.Path | None = None

    def __post_init__(self) -> None:
        if not self._flat and self.suffix in images.PIXELS_ONLY:
            raise FieldError(
                "output_format",
                self.suffix.removeprefix("."),
                "cannot hold the grid of a volume; expected nii.gz, nii, nrrd, mha, "
                f"{segments.FORMAT} or {dicom_seg.FORMAT}.",
            )
        if self.spacing and not (self._flat and len(self.spacing) == 2):
            message = "expected two numbers of mm (y,x), of 2D images: the files of volumes tell."
            raise FieldError("spacing", ",".join(map(str, self.spacing)), message)

    @property
    def _flat(self) -> bool:
        return self.segmentor.dimensions == 2

    def files(self, name: str, path: Path) -> dict[Key, pathlib.Path]:
        """{(kind, label value): file} of the results of an image.

        Args:
          name: of the image, with the folders that it lies in.
          path: its file, which decides the format.

        Raises:
          UserError: it is no DICOM, and segmentation objects are wanted.
        """
        if self.template:
            dicom_seg.require_dicom(path)
        labels = self.segmentor.labels
        files: dict[Key, pathlib.Path] = {
            ("labels", None): self.output / f"{name}{self._ending(path)}"
        }
        wanted = {"masks": self.masks, "probabilities": self.probabilities}
        for kind in (kind for kind, is_wanted in wanted.items() if is_wanted):
            for value, structure in labels.items():
                folder = self.output / kind / (structure if len(labels) > 1 else "")
                files[kind, value] = folder / f"{name}{self._ending(path, kind)}"
        if self.uncertainty:
            file = self.output / UNSURE / f"{name}{self._ending(path, UNSURE)}"
            files[UNSURE, None] = file
        tables = {MEASURED: self.measurements, RANK: self.rank}
        for kind in (kind for kind, is_wanted in tables.items() if is_wanted):
            files[kind, None] = self.output / kind / f"{name}.csv"
        if self.segmentor.iterations:
            files["strips", None] = self.output / "strips" / f"{name}.png"
        if self.every_iteration:
            files["iterations", None] = self.output / "iterations" / name
        return files

    def _ending(self, path: Path, kind: str = "labels") -> str:
        pixels = self._flat and str(path).lower().endswith(images.PIXELS_ONLY)
        suffix = self.suffix or (".png" if pixels else ".nii.gz")
        if self.template or self.segments:
            of_labels = dicom_seg.SUFFIX if self.template else segments.SUFFIX
            suffix = of_labels if kind == "labels" else ".nii.gz"
        if kind not in ("probabilities", UNSURE):
            return suffix
        suffix = ".nii.gz" if suffix == ".png" else suffix
        return suffix if self.compressed else suffix.removesuffix(".gz")

    def segmented(
        self, path: Path, image: images.Image, files: Mapping[Key, pathlib.Path], progress: bool
    ) -> dict[pathlib.Path, Result]:
        """Segments an image: {file: what it is to hold}.

        Args:
          path: of the image.
          image: see `images.read_raw`.
          files: those of `files` that are wanted.
          progress: whether to show one.

        Raises:
          UserError: see `Segmentor.__call__`.
        """
        pixels, labels, spacing = image.array, self.segmentor.labels, image.millimetres
        if self.spacing and spacing is not None:
            told = " x ".join(f"{mm:g}" for mm in spacing)
            raise UserError(
                f"{path}: has a spacing of its own, {told} mm; expected none beside `spacing`."
            )
        spacing = spacing or self.spacing or None
        segmentation = self.segmentor(
            pixels,
            spacing,
            path,
            probabilities=self.probabilities,
            uncertainty=not files.keys().isdisjoint({(UNSURE, None), (RANK, None)}),
            progress=progress,
        )
        made = {}
        for (kind, value), file in files.items():
            voxels, online = segmentation["label"], kind in ("strips", "iterations")
            if kind == "probabilities" and value is not None:
                voxels = segmentation["probability"][labels[value]]
            table: Sequence[Mapping[str, Any]] = ()
            if kind in (MEASURED, RANK, UNSURE):
                ending = self._ending(path, kind) if kind == UNSURE else ".csv"
                name = file.relative_to(self.output / kind).as_posix().removesuffix(ending)
            if kind == MEASURED:
                table = self._measured(name, voxels, spacing)
            if kind == RANK:
                masks = dict(self._masks(voxels))
                unsure = annotating.line(voxels, segmentation[UNSURE], masks, image.frame)
                label = f"{name}{self._ending(path)}"
                table = [{"image": name, "file": label, **unsure}]
            if kind == UNSURE:
                voxels = segmentation[UNSURE]
                mean = annotating.of_object(voxels, segmentation["label"] > 0)
                note_uncertainty(self.tables or self.output, name, mean)
            made[file] = Result(
                image=path,
                kind=kind,
                values=[*self.segmentor.regions.get(value, (value,))] if value is not None else [],
                frame=image.frame,
                voxels=pixels if online else voxels,
                is_mask=len(labels) == 1,
                compressed=self.compressed,
                iterations=segmentation["iterations"] if online else (),
                kept=segmentation.get("kept", 0),
                ending=self._ending(path, "iterations"),
                table=table,
                template=self.template,
                segments=self.segments,
            )
        return made

    def _masks(self, label: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """Of every structure its name and voxels in a label."""
        for value, structure in self.segmentor.labels.items():
            yield structure, metrics.mask_of(label, value, self.segmentor.regions)

    def _measured(
        self, name: str, label: np.ndarray, spacing: Sequence[float] | None
    ) -> list[dict[str, Any]]:
        """A line for each structure of a segmented image."""
        lines = []
        if spacing is None and self.segmentor.declaration.measurement:
            logging.warning(
                "%s: its file gives no mm, so it is measured in pixels; give `spacing`.", name
            )
        for structure, mask in self._masks(label):
            line = {"image": name, "structure": structure, **metrics.extent_of(mask, spacing)}
            if spacing is not None:
                line |= self.segmentor.declaration.measured(mask, spacing)
            lines.append(line)
        return lines


@dataclasses.dataclass(frozen=True)
class Result:
    """What one file of a segmented image is to hold: no more than that is on its way at once.

    Attributes:
      image: path of the image.
      kind: of the result, see `Results.files`.
      values: label values of its structure, where it is of one.
      frame: of the image.
      voxels: of its shape: the label, uint8; of a probability or an uncertainty that, float32; of
        iterations the image itself.
      is_mask: whether the label has one structure alone.
      compressed: whether probabilities and uncertainty are.
      iterations, kept: see `Segmentor.__call__`.
      ending: of the names of images of iterations.
      table: the lines of measurements or of what makes it uncertain.
      template: of the segmentation object that a label becomes; None: an image.
      segments: of the segmentation of 3D Slicer that a label becomes; none: an image.
    """

    image: Path
    kind: str
    values: Sequence[int]
    frame: images.Frame
    voxels: np.ndarray
    is_mask: bool
    compressed: bool
    iterations: Sequence[Mapping[str, np.ndarray]]
    kept: int
    ending: str
    table: Sequence[Mapping[str, Any]] = ()
    template: dicom_seg.Template | None = None
    segments: Sequence[segments.Segment] = ()


def write(file: pathlib.Path, result: Result, made_from: Origins) -> None:
    """Writes a file, and notes at once what it was made from; another process may do so.

    Args:
      file: its path.
      result: what it is to hold.
      made_from: the record of its folder.

    Raises:
      UserError: it cannot be written.
    """
    voxels, frame = result.voxels, result.frame
    with made_from.noting(result.image, [file], may_change=result.kind == "labels"):
        match result.kind:
            case "labels" if result.template:
                label = frame.like(voxels.astype(np.uint8))
                dicom_seg.write(file, label, result.image, result.template, made_from.model)
            case "labels" if result.segments:
                file.parent.mkdir(parents=True, exist_ok=True)
                segments.write(file, frame.like(voxels.astype(np.uint8)), result.segments)
            case "labels":
                _write_label(file, voxels, frame, result.is_mask)
            case "masks":
                _write_label(file, np.isin(voxels, result.values), frame)
            case "probabilities" | "uncertainty":
                shown = images.rounded(voxels) if result.compressed else voxels
                _write(file, shown, frame, result.compressed)
            case "measurements" | "rank":
                columns = dict.fromkeys(name for line in result.table for name in line)
                spreadsheets.write(file, result.table, tuple(columns))
            case "strips":
                figures.strip(file, voxels, result.iterations, result.kept, file.stem)
            case "iterations":
                _write_iterations(file, result)


def note_uncertainty(folder: pathlib.Path, name: str, uncertainty: float) -> None:
    """Puts an image into `UNSURE_TABLE`, or in the place that it has there: first those to look at
    first, see `annotating.order`. It keeps the images of earlier commands, as these means lie
    nowhere else.

    Args:
      folder: of the table.
      name: of the image.
      uncertainty: mean of the voxels of the predicted object; NaN where there are none.

    Raises:
      UserError: the table cannot be read or written.
    """
    _write_uncertainties(folder, uncertainties(folder) | {name: uncertainty})


def _write_uncertainties(folder: pathlib.Path, known: Mapping[str, float]) -> None:
    """Writes `UNSURE_TABLE` of {image: mean uncertainty of its object}."""
    images = sorted(known, key=lambda image: (annotating.order(known[image]), image))
    told = [{"image": image, UNSURE: known[image]} for image in images]
    spreadsheets.write(folder / UNSURE_TABLE, told, ("image", UNSURE))


def join_uncertainties(folder: pathlib.Path, parts: Sequence[pathlib.Path]) -> None:
    """Makes `UNSURE_TABLE` of a folder of results of those of its parts.

    Raises:
      UserError: one cannot be read, or the table cannot be written.
    """
    joined: dict[str, float] = {}
    for part in parts:
        joined |= uncertainties(part)
    _write_uncertainties(folder, joined)


def uncertainties(folder: pathlib.Path) -> dict[str, float]:
    """{image: mean uncertainty of its object} of a folder of results; empty where none was asked
    for.

    Raises:
      UserError: the table cannot be read.
    """
    path = folder / UNSURE_TABLE
    lines = spreadsheets.read(path, ("image", UNSURE)) if path.exists() else []
    try:
        return {line["image"]: float(line[UNSURE]) for line in lines}
    except ValueError as error:
        raise UserError(f"{path}: {error}; expected numbers (delete it).") from None


def collect_measurements(wanted: Results, made: Made) -> None:
    """Makes measurements.csv of the tables of all images of the input.

    Args:
      wanted: the results.
      made: those of every image of the input.

    Raises:
      UserError: one cannot be read, or the table cannot be written.
    """
    lines = _tables(made, MEASURED, ("image", "structure"))
    columns = dict.fromkeys(name for line in lines for name in line)
    spreadsheets.write(wanted.output / f"{MEASURED}.csv", lines, tuple(columns))


def collect_rank(wanted: Results, made: Made) -> list[str]:
    """Makes the table of the order in which to correct the labels of all images of the input, and
    tells ITK-SNAP what they are called.

    Args:
      wanted: the results.
      made: those of every image of the input.

    Returns:
      The first images in words.

    Raises:
      UserError: a table cannot be read, or written.
    """
    folder, lines = wanted.output, _tables(made, RANK, annotating.OF_IMAGE)
    structures = annotating.segments(wanted.segmentor.labels)
    labels = [line["file"] for line in lines]
    annotating.write_descriptions(folder / annotating.DESCRIPTIONS, structures, labels)
    return annotating.rank(folder, lines)


def _tables(made: Made, kind: str, columns: Sequence[str]) -> list[dict[str, str]]:
    """The lines of the tables of all images that have one, in the order of their names."""
    paths = sorted(files[kind, None] for files in made.values())
    there = [path for path in paths if path.exists()]
    return [line for path in there for line in spreadsheets.read(path, columns)]


def sources(
    path: pathlib.Path,
    output: pathlib.Path,
    dimensions: int,
    series: str | None = None,
    channels: int = 1,
) -> dict[str, str]:
    """{name: path} of the image, or of those in a folder and below it.

    Args:
      path: of an image (see `names.given`), a DICOM series folder or a folder of folders of images.
      output: folder of the results, which is left out.
      dimensions: of the images.
      series: a DICOM series that is wanted, see `images.read`.
      channels: of the images.

    Raises:
      FieldError: a series is wanted and there is no DICOM folder.
      UserError: there is no image.
    """
    paths = names.given(path, dimensions == 3, output, channels)
    if series is not None and not any(pathlib.Path(file).is_dir() for file in paths.values()):
        raise FieldError("series", series, f"{path} holds no DICOM folder; expected one.")
    return paths


def _write(
    file: pathlib.Path, voxels: np.ndarray, frame: images.Frame, compressed: bool = True
) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    images.write(file, frame.like(voxels), compressed)


def _write_label(
    file: pathlib.Path, label: np.ndarray, frame: images.Frame, is_mask: bool = True
) -> None:
    """A label or a mask; a mask in formats that are looked at is of 0 and 255."""
    label = label.astype(np.uint8)
    shown = is_mask and file.name.lower().endswith(images.PIXELS_ONLY)
    _write(file, 255 * label if shown else label, frame)


def _write_iterations(folder: pathlib.Path, result: Result) -> None:
    """Rendering and label of every iteration, the folder whole or not at all."""
    frame, ending = result.frame, result.ending
    with replacing(folder) as partial:
        partial.mkdir()
        for number, iteration in enumerate(result.iterations):
            rendered = np.clip(np.rint(iteration["rendered"]), 0, 255).astype(np.uint8)
            _write(partial / f"{number:02d}_rendered{ending}", rendered, frame)
            _write_label(partial / f"{number:02d}_label{ending}", iteration["label"], frame)
