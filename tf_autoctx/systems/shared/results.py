"""The files that a segmented image becomes, and how they are written."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from tf_autoctx.data import images, names
from tf_autoctx.errors import FieldError
from tf_autoctx.files import replacing
from tf_autoctx.report import figures
from tf_autoctx.systems.shared.prediction import Segmentor

Key = tuple[str, int | None]  # kind of a result, and the label value of its structure
Path = str | pathlib.Path


@dataclasses.dataclass(frozen=True)
class Results:
    """Which results of an image are wanted, and where they lie.

    Attributes:
      segmentor: the model.
      output: folder of the results.
      masks, probabilities: whether each structure's are wanted.
      every_iteration: whether those of online rendering are.
      suffix: of images; None: .png for PNG, JPEG and TIFF images, else .nii.gz.
      series: which of several DICOM series of a folder, see `images.read`.

    Raises:
      FieldError: a format that cannot hold a volume; iterations of a model that has none.
    """

    segmentor: Segmentor
    output: pathlib.Path
    masks: bool = False
    probabilities: bool = False
    every_iteration: bool = False
    suffix: str | None = None
    series: str | None = None

    def __post_init__(self) -> None:
        if not self._flat and self.suffix in images.PIXELS_ONLY:
            raise FieldError(
                "output_format",
                self.suffix.removeprefix("."),
                "cannot hold the grid of a volume; expected nii.gz, nii, nrrd or mha.",
            )

    @property
    def _flat(self) -> bool:
        return self.segmentor.dimensions == 2

    def files(self, name: str, path: Path) -> dict[Key, pathlib.Path]:
        """{(kind, label value): file} of the results of an image.

        Args:
          name: of the image, with the folders that it lies in.
          path: its file, which decides the format.
        """
        labels = self.segmentor.labels
        files: dict[Key, pathlib.Path] = {
            ("labels", None): self.output / f"{name}{self._ending(path)}"
        }
        wanted = {"masks": self.masks, "probabilities": self.probabilities}
        for kind in (kind for kind, is_wanted in wanted.items() if is_wanted):
            for value, structure in labels.items():
                folder = self.output / kind / (structure if len(labels) > 1 else "")
                files[kind, value] = folder / f"{name}{self._ending(path, kind)}"
        if self.segmentor.iterations:
            files["strips", None] = self.output / "strips" / f"{name}.png"
        if self.every_iteration:
            files["iterations", None] = self.output / "iterations" / name
        return files

    def _ending(self, path: Path, kind: str = "labels") -> str:
        pixels = self._flat and str(path).lower().endswith(images.PIXELS_ONLY)
        suffix = self.suffix or (".png" if pixels else ".nii.gz")
        return ".nii.gz" if kind == "probabilities" and suffix == ".png" else suffix

    def write(
        self, path: Path, image: images.Image, files: Mapping[Key, pathlib.Path], progress: bool
    ) -> None:
        """Segments an image and writes its results.

        Args:
          path: of the image.
          image: see `images.read_raw`.
          files: those of `files` that are wanted.
          progress: whether to show one.

        Raises:
          UserError: a result cannot be written.
        """
        segmentation = self.segmentor(
            image.array,
            image.millimetres,
            path,
            probabilities=self.probabilities,
            progress=progress,
        )
        label = segmentation["label"]
        for (kind, value), file in files.items():
            match kind:
                case "labels":
                    _write_label(file, label, image, is_mask=len(self.segmentor.labels) == 1)
                case "masks":
                    _write_label(file, label == value, image)
                case "probabilities":
                    structure = self.segmentor.labels[value or 0]
                    _write(file, segmentation["probability"][structure], image)
                case "strips":
                    _write_strip(file, segmentation, image)
                case "iterations":
                    _write_iterations(file, segmentation["iterations"], image, self._ending(path))


def sources(
    path: pathlib.Path, output: pathlib.Path, dimensions: int, series: str | None = None
) -> dict[str, str]:
    """{name: path} of the image, or of those in a folder and below it.

    Args:
      path: of an image, a DICOM series folder or a folder of folders of images.
      output: folder of the results, which is left out.
      dimensions: of the images.
      series: a DICOM series that is wanted, see `images.read`.

    Raises:
      FieldError: a series is wanted and there is no DICOM folder.
      UserError: there is no image.
    """
    if path.is_dir():
        paths = names.find(path, series=dimensions == 3, below=True, without=output)
    else:
        paths = {names.case_name(path): str(path)}
    if series is not None and not any(pathlib.Path(file).is_dir() for file in paths.values()):
        raise FieldError("series", series, f"{path} holds no DICOM folder; expected one.")
    return paths


def _write(file: pathlib.Path, voxels: np.ndarray, image: images.Image) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    images.write(file, image.like(voxels))


def _write_label(
    file: pathlib.Path, label: np.ndarray, image: images.Image, is_mask: bool = True
) -> None:
    """A label or a mask; a mask in formats that are looked at is of 0 and 255."""
    label = label.astype(np.uint8)
    shown = is_mask and file.name.lower().endswith(images.PIXELS_ONLY)
    _write(file, 255 * label if shown else label, image)


def _write_strip(file: pathlib.Path, segmentation: dict[str, Any], image: images.Image) -> None:
    pixels = image.array
    figures.strip(file, pixels, segmentation["iterations"], segmentation["kept"], file.stem)


def _write_iterations(
    folder: pathlib.Path, iterations: list[dict[str, Any]], image: images.Image, ending: str
) -> None:
    """Rendering and label of every iteration, the folder whole or not at all."""
    with replacing(folder) as partial:
        partial.mkdir()
        for number, iteration in enumerate(iterations):
            rendered = np.clip(np.rint(iteration["rendered"]), 0, 255).astype(np.uint8)
            _write(partial / f"{number:02d}_rendered{ending}", rendered, image)
            _write_label(partial / f"{number:02d}_label{ending}", iteration["label"], image)
