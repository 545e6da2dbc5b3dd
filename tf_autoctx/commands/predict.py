r"""Segments images with a finished run or a SavedModel, each on its own grid.

  autoctx-predict --model=runs/fetal_head --input=scan.nii.gz --output=results
  autoctx-predict --model=runs/fetal_head/saved_model --input=folder_of_scans --output=results \
      --probabilities
  autoctx-predict --model=runs/renderer --input=frame.png --output=results --every_iteration

--model is a run folder, a SavedModel, or a folder of its versions, of which the newest is taken. A
folder is read with all folders below it, and results lie in the same folders. A folder of DICOM
slices is one image; where it holds several series, --series chooses one.

Writes NAME.nii.gz (label values), with --masks masks/NAME.nii.gz (0 and 1) and with --probabilities
probabilities/NAME.nii.gz; where there are several structures, masks/STRUCTURE/NAME.nii.gz and so
on. Labels and masks of PNG, JPEG and TIFF images are PNG images of 0 and 255. --output_format names
another format; PNG cannot hold probabilities, which stay NIfTI. Images that are rendered online get
a strip of their iterations, strips/NAME.png, and with --every_iteration each one's image and mask,
iterations/NAME/.

Results that are there are never replaced without being told: --overwrite makes them anew, and
--resume goes on with a folder where it was stopped: it writes what is not there, and anew what is
of an image that has changed since or of another model. If an image of a folder fails, the others
are done all the same, and the exit code is 1.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tf_autoctx import configuration, files
from tf_autoctx.commands.command_line import Command, Given
from tf_autoctx.configuration import check, field
from tf_autoctx.errors import UserError, sentence
from tf_autoctx.systems.shared import registry

if TYPE_CHECKING:
    from tf_autoctx.systems.shared.origins import Origins
    from tf_autoctx.systems.shared.results import Results

FORMATS = ("nii.gz", "nii", "nrrd", "mha", "png", "tif", "tiff")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
    """Prediction: what is segmented by which model, and what is written."""

    model: str = field(
        ..., "Run folder of a training command, a SavedModel, or a folder of its versions."
    )
    input: str = field(..., "Image file, DICOM series folder, or folder of folders of images.")
    output: str = field(..., "Folder for the results; made if it is missing.")
    masks: bool = field(False, "Write a mask of each structure too.")
    probabilities: bool = field(False, "Write the probability too (float32).")
    every_iteration: bool = field(
        False, "Write rendering and mask of every iteration of online rendering."
    )
    output_format: str | None = field(
        None,
        "Format of all images. By default png for PNG, JPEG and TIFF images, else nii.gz.",
        choices=FORMATS,
    )
    series: str | None = field(
        None, "DICOM series of folders that hold several: its UID, or its number in their list."
    )
    overwrite: bool = field(False, "Replace results that are there already.")
    resume: bool = field(False, "Write the results that are not there yet.")

    def __post_init__(self) -> None:
        check(self)
        if self.resume and self.overwrite:
            raise UserError(
                "`resume` and `overwrite`: one keeps results, one replaces them; expected one of "
                "them."
            )


def option_kinds() -> list[type]:
    """The options of prediction that systems have."""
    return [d.prediction for d in registry.declarations().values() if d.prediction]


def main(given: Given) -> None:
    chosen = given.configured(Prediction)
    from tf_autoctx.data import images
    from tf_autoctx.systems.shared import origins, prediction, results

    names = [name for kind in option_kinds() for name in configuration.rules(kind)]
    options = {name: given[name] for name in names}
    segmentor = prediction.load(chosen.model, **options)
    if chosen.every_iteration and not segmentor.iterations:
        raise UserError(
            f"`every_iteration`: {chosen.model} does not render online; expected a run that does."
        )
    source, output = pathlib.Path(chosen.input), pathlib.Path(chosen.output)
    wanted = results.Results(
        segmentor,
        output,
        chosen.masks,
        chosen.probabilities,
        chosen.every_iteration,
        chosen.output_format and f".{chosen.output_format}",
        chosen.series,
    )
    sources = results.sources(source, output, segmentor.dimensions, chosen.series)
    paths = {path: wanted.files(name, path) for name, path in sources.items()}
    images.require_own_files({path: kinds.values() for path, kinds in paths.items()})
    files.own(output)
    model = origins.of_model(chosen.model, {**options, "series": chosen.series})
    made_from = origins.Origins(output, model)
    left = origins.still_wanted(paths, made_from, overwrite=chosen.overwrite, resume=chosen.resume)
    if chosen.resume:
        print(f"{len(paths) - len(left)} of {len(paths)} images are done already")
    write(wanted, left, made_from)


def write(wanted: Results, left: Mapping[Any, Any], made_from: Origins) -> None:
    """Segments the images and writes their results; one that fails does not stop the others.

    Another process reads them, the next one while one is segmented.
    """
    import keras

    from tf_autoctx.data import images, isolation

    # One image shows its tiles or iterations, several show images.
    alone, failures = len(left) < 2, []
    bar = keras.utils.Progbar(len(left), unit_name="image", verbose=not alone)
    tasks = {path: (path, wanted.segmentor.dimensions, wanted.series) for path in left}
    with isolation.Pool(1) as pool:
        for path, image in pool.map(images.read_raw, tasks):
            try:
                if isinstance(image, UserError):
                    raise image
                wanted.write(path, image, left[path], progress=alone)
                made_from.note(path, left[path].values())
            except UserError as error:
                if alone:
                    raise
                failures.append(sentence(error))
            bar.add(1)
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    if failures:
        raise UserError(
            f"{len(failures)} of {len(left)} images failed; `resume` tries these once more."
        )


def kinds() -> list[type]:
    """The configurations whose fields are the flags."""
    return [Prediction, *option_kinds()]


command = Command(main, kinds, __doc__)
