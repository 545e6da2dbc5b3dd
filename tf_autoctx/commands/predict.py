r"""Segments images with a finished run or a SavedModel, each on its own grid.

  autoctx-predict --model=runs/fetal_head --input=scan.nii.gz --output=results
  autoctx-predict --model=runs/fetal_head/saved_model --input=folder_of_scans --output=results \
      --probabilities
  autoctx-predict --model=runs/renderer --input=frame.png --output=results --every_iteration
  autoctx-predict --model=hc18_head --input=frame.png --output=results

--model is a run folder, a SavedModel, or a folder of its versions, of which the newest is taken, or
the name of a model that comes with the package. A folder is read with all folders below it, and
results lie in the same folders. A folder of DICOM slices is one image; where it holds several
series, --series chooses one. Where a model takes images of several channels, these are the values
of a file (or its fourth axis), or lie in files case_0000.nii.gz, case_0001.nii.gz and so on, or in
files of any names with commas between.

Writes NAME.nii.gz (label values), with --masks masks/NAME.nii.gz (0 and 1) and with --probabilities
probabilities/NAME.nii.gz; where there are several structures, masks/STRUCTURE/NAME.nii.gz and so
on. With --measurements it writes measurements.csv, a line a structure of an image, which comes from
measurements/NAME.csv. With --uncertainty it writes uncertainty/NAME.nii.gz (0 to 1), and
uncertainty.csv, a line an image. Labels and masks of PNG, JPEG and TIFF images are PNG images of 0
and 255. --output_format names another format; PNG cannot hold probabilities, which stay NIfTI.
--output_format=dicom_seg makes the label of a DICOM image a DICOM segmentation object, NAME.dcm,
with a segment for each structure; what each is, a table of organs or --segment_codes tells.
--output_format=seg_nrrd makes it a segmentation of 3D Slicer, NAME.seg.nrrd, with names and
colours. With --rank it writes in which order to correct labels, rank.csv, first the least sure
ones, and names and colours for ITK-SNAP, itk_snap_labels.txt.
Images that are rendered online get a strip of their iterations, strips/NAME.png, and with
--every_iteration each one's image and mask, iterations/NAME/.

Results that are there are never replaced without being told: --overwrite makes them anew, and
--resume goes on with a folder where it was stopped: it writes what is not there, and anew what is
of an image that has changed since or of another model, but for labels that somebody has corrected:
these are refused. rank.csv and measurements.csv are of the images of --input; uncertainty.csv keeps
others that lie in the folder. If an image of a folder fails, the others are done all the same, and
the exit code is 1.

Several processes share the images of a folder, as a job array does, where each is told its part:
  autoctx-predict --model=runs/fetal_head --input=scans --output=results --num_parts=8 --part_id=0
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from typing import TYPE_CHECKING, Any, TypeVar

from tf_autoctx import configuration, progress, shipped
from tf_autoctx.commands.command_line import Command, Given, quick_imports
from tf_autoctx.configuration import check, field
from tf_autoctx.data.configuration import edges_of
from tf_autoctx.errors import FieldError, UserError, sentence
from tf_autoctx.parts import Output, Parts
from tf_autoctx.systems.shared import registry
from tf_autoctx.training.configuration import POLICIES

if TYPE_CHECKING:
    from tf_autoctx.data.dicom_seg import Template
    from tf_autoctx.data.isolation import Pool
    from tf_autoctx.data.segment_codes import Codes
    from tf_autoctx.data.segments import Segment
    from tf_autoctx.systems.shared.origins import Origins
    from tf_autoctx.systems.shared.prediction import Segmentor
    from tf_autoctx.systems.shared.results import Key, Result, Results

    Files = Mapping[Key, pathlib.Path]

T = TypeVar("T")
DICOM_SEG, SEG_NRRD = "dicom_seg", "seg_nrrd"
FORMATS = ("nii.gz", "nii", "nrrd", "mha", "png", "tif", "tiff", SEG_NRRD, DICOM_SEG)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
    """Prediction: what is segmented by which model, and what is written."""

    model: str = field(
        ...,
        "Run folder of a training command, a SavedModel, a folder of its versions, or the name of "
        f"a model that comes with the package: {', '.join(shipped.names())}.",
    )
    input: str = field(
        ...,
        "Image file, DICOM series folder, or folder of folders of images. Where a model takes "
        "several channels, files of one each: the first one, case_0000.nii.gz, or all of them, "
        "t1.nii.gz,t2.nii.gz.",
    )
    output: str = field(..., "Folder for the results; made if it is missing.")
    masks: bool = field(False, "Write a mask of each structure too.")
    probabilities: bool = field(
        False, "Write the probability too: float32, rounded to 3 digits so that it compresses."
    )
    compressed: bool = field(
        True,
        "Compress probabilities and uncertainty; without, they are written several times as fast, "
        "not rounded, and .nii.gz becomes .nii.",
    )
    precision: str = field(
        "auto",
        "Precision that a run folder's networks compute in; auto is bfloat16 where it is "
        "faster and the run's own evaluation, of runs trained in bfloat16, found labels within "
        "0.5 % (DSC 0.995) of those of float32. A SavedModel has its own.",
        choices=("auto", *POLICIES),
    )
    mirrors: bool = field(
        False,
        "Take the mean of an image and its mirror images, along the axes that the training of a "
        "run folder mirrored. A SavedModel does so or not by itself.",
    )
    measurements: bool = field(
        False,
        "Write measurements.csv: the volume or area of each structure, and of heads BPD, OFD and "
        "HC, in mm where the image has them.",
    )
    uncertainty: bool = field(
        False,
        "Write how unsure the model is: a map from 0 to 1, the entropy of the probability, and "
        "uncertainty.csv, its mean over the object in every image, first those to look at first.",
    )
    rank: bool = field(
        False,
        "Write rank.csv, the order in which to correct the labels, and names and colours for "
        "ITK-SNAP; with uncertainty.",
    )
    every_iteration: bool = field(
        False, "Write rendering and mask of every iteration of online rendering."
    )
    output_format: str | None = field(
        None,
        "Format of all images. By default png for PNG, JPEG and TIFF images, else nii.gz. "
        "seg_nrrd writes labels as segmentations of 3D Slicer; dicom_seg writes DICOM segmentation "
        "objects and needs the extra: pip install 'tf_autoctx[dicom]'.",
        choices=FORMATS,
    )
    segment_codes: str | None = field(
        None,
        "JSON file of the codes of structures, for dicom_seg. By default segment_codes.json in the "
        "folder of the model, if it is there; common organs need none.",
    )
    series: str | None = field(
        None, "DICOM series of folders that hold several: its UID, or its number in their list."
    )
    spacing: str | None = field(
        None,
        "Edges in mm (y,x) of the pixels of images whose files do not tell, such as PNG; an image "
        "that tells its own is refused.",
    )
    overwrite: bool = field(False, "Replace results that are there already.")
    resume: bool = field(False, "Write the results that are not there yet.")

    def __post_init__(self) -> None:
        check(self)
        if self.spacing is not None and not edges_of(self.spacing):
            message = "expected numbers of mm above 0, such as 0.12,0.12 (y,x)."
            raise FieldError("spacing", self.spacing, message)
        if self.resume and self.overwrite:
            raise UserError(
                "`resume` and `overwrite`: one keeps results, one replaces them; expected one of "
                "them."
            )
        if not self.compressed and not (self.probabilities or self.uncertainty):
            raise UserError(
                "`nocompressed`: labels and masks are compressed all the same; expected "
                "`probabilities` or `uncertainty` with it."
            )
        if self.segment_codes and self.output_format != DICOM_SEG:
            raise UserError(
                f"`segment_codes`: images hold no codes; expected `output_format={DICOM_SEG}`."
            )
        if self.masks and self.output_format in (DICOM_SEG, SEG_NRRD):
            raise UserError(
                f"`masks`: of `output_format={self.output_format}` each structure is a segment "
                "already; expected one of them."
            )
        if self.rank and not self.uncertainty:
            raise UserError(
                "`rank`: the order follows from how unsure the model is; expected `uncertainty` "
                "with it."
            )


def option_kinds() -> list[type]:
    """The options of prediction that systems have."""
    return [d.prediction for d in registry.declarations().values() if d.prediction]


def main(given: Given) -> None:
    chosen, parts = given.configured(Prediction), given.configured(Parts)
    chosen = dataclasses.replace(chosen, model=str(shipped.resolved(chosen.model)))
    from tf_autoctx.data import isolation

    codes = _codes(chosen)
    names = [name for kind in option_kinds() for name in configuration.rules(kind)]
    options = {name: given[name] for name in names}
    writing = isolation.Pool(1, "wrote", "enough memory and disk space for it")
    with isolation.Pool(1) as readers, writing as writers:
        # They import what they need while TensorFlow is imported here.
        readers.start("tf_autoctx.data.images")
        writers.start("tf_autoctx.systems.shared.results")
        with quick_imports():
            from tf_autoctx.systems.shared import origins, prediction, results
        segmentor = prediction.load(chosen.model, chosen.precision, chosen.mirrors, **options)
        place = Output(chosen.output, "predict", parts)
        wanted = _wanted(chosen, segmentor, codes, place)
        paths, made_from = _opened(chosen, options, wanted, place)
        mine, how = parts.of(paths), {"overwrite": chosen.overwrite, "resume": chosen.resume}
        left = origins.still_wanted(mine, made_from, **how)
        if chosen.resume:
            print(f"{len(mine) - len(left)} of {len(mine)} images are done already")
        failures = write(wanted, left, made_from, readers, writers)
    with place.ended([made_from.model, _written(chosen), [*paths]]) as ended:
        if ended and chosen.measurements:
            results.collect_measurements(wanted, paths)
        if ended and chosen.uncertainty and wanted.tables:
            results.join_uncertainties(wanted.output, ended)
        if ended and chosen.rank:
            print("\n".join(results.collect_rank(wanted, paths)))
    if failures:
        raise UserError(
            f"{len(failures)} of {len(left)} images failed; `resume` tries these once more."
        )


def _written(chosen: Prediction) -> dict[str, Any]:
    """The flags that say what is written and how, which are alike in all parts."""
    where = {"model", "input", "output", "precision", "overwrite", "resume"}
    return {name: value for name, value in vars(chosen).items() if name not in where}


def _codes(chosen: Prediction) -> dict[str, Codes]:
    """{structure: codes} that the user tells, or else the folder of the model.

    Raises:
      UserError: the file is no such; highdicom is not installed.
    """
    if chosen.output_format != DICOM_SEG:
        return {}
    from tf_autoctx.data import dicom_seg, segment_codes

    dicom_seg.require_installed()
    of_model = pathlib.Path(chosen.model) / segment_codes.FILE
    file = chosen.segment_codes or (of_model if of_model.exists() else None)
    return segment_codes.read(file) if file else {}


def _template(
    chosen: Prediction, segmentor: Segmentor, codes: Mapping[str, Codes]
) -> Template | None:
    """What the segmentation objects have in common, which is said; None: images are written.

    Raises:
      UserError: a structure without a code, or of a name that DICOM cannot hold.
    """
    if chosen.output_format != DICOM_SEG:
        return None
    from tf_autoctx.data import dicom_seg, segment_codes

    labels, declaration = segmentor.labels, segmentor.declaration
    known = segment_codes.of_all(labels.values(), {**declaration.segment_codes, **codes})
    segments = [
        dicom_seg.Segment(name, (*segmentor.regions.get(value, (value,)),), known[name])
        for value, name in labels.items()
    ]
    print("segments:", "; ".join(f"{segment.name}: {segment.codes}" for segment in segments))
    return dicom_seg.Template(declaration.name, tuple(segments), chosen.series)


def _segments(chosen: Prediction, segmentor: Segmentor) -> tuple[Segment, ...]:
    """The segments of segmentations of 3D Slicer; none where labels become something else.

    Raises:
      FieldError: the structures are regions, of which a label shows one a voxel.
    """
    if chosen.output_format != SEG_NRRD:
        return ()
    from tf_autoctx.systems.shared import annotating

    if segmentor.regions:
        raise FieldError(
            "output_format",
            SEG_NRRD,
            f"the structures of {chosen.model} are regions, which overlap, and a segment has "
            "voxels of its own; expected another format, such as nii.gz.",
        )
    return annotating.segments(segmentor.labels)


def _wanted(
    chosen: Prediction, segmentor: Segmentor, codes: Mapping[str, Codes], place: Output
) -> Results:
    """What is written of each image.

    Raises:
      UserError: iterations or uncertainty of a model that has none; see `_template` and
        `_segments`.
    """
    from tf_autoctx.systems.shared import results

    if chosen.every_iteration and not segmentor.iterations:
        raise UserError(
            f"`every_iteration`: {chosen.model} does not render online; expected a run that does."
        )
    if chosen.uncertainty:
        segmentor.require_unsure()
    return results.Results(
        segmentor,
        output=place.folder,
        masks=chosen.masks,
        probabilities=chosen.probabilities,
        compressed=chosen.compressed,
        every_iteration=chosen.every_iteration,
        suffix=chosen.output_format and f".{chosen.output_format}",
        series=chosen.series,
        uncertainty=chosen.uncertainty,
        measurements=chosen.measurements,
        spacing=edges_of(chosen.spacing or ""),
        template=_template(chosen, segmentor, codes),
        segments=_segments(chosen, segmentor),
        rank=chosen.rank,
        tables=place.tables if place.divided else None,
    )


def _opened(
    chosen: Prediction, options: Mapping[str, Any], wanted: Results, place: Output
) -> tuple[Mapping[str, Files], Origins]:
    """Opens the folder of the results: {image: its results}, and the record of what results were
    made from.

    Raises:
      UserError: there is no image, or the folder is another process's or of other parts.
    """
    from tf_autoctx.data import datasets, images
    from tf_autoctx.systems.shared import origins, results

    output, segmentor = wanted.output, wanted.segmentor
    source = pathlib.Path(chosen.input)
    channels = len(segmentor.channels)
    datasets.require_channels(source, segmentor.channels)
    sources = results.sources(source, output, segmentor.dimensions, chosen.series, channels)
    paths = {path: wanted.files(name, path) for name, path in sources.items()}
    images.require_own_files({path: kinds.values() for path, kinds in paths.items()})
    if place.divided and (output / origins.NAME).exists():
        raise UserError(
            f"{output}: holds results of a run without `num_parts`; expected none, or another "
            "`output`."
        )
    place.begin()
    decisive = {**options, "series": chosen.series}
    if chosen.mirrors:
        decisive["mirrors"] = True
    if chosen.spacing is not None:
        decisive["spacing"] = chosen.spacing
    if wanted.template:
        decisive["template"] = dataclasses.asdict(wanted.template)
    if segmentor.precision != "float32":
        print(f"{chosen.model}: computes in {segmentor.precision}")
        decisive["precision"] = segmentor.precision
    model = origins.of_model(chosen.model, decisive)
    return paths, origins.Origins(output, model, place.tables)


def write(
    wanted: Results,
    left: Mapping[str, Files],
    made_from: Origins,
    readers: Pool,
    writers: Pool,
) -> dict[str, UserError]:
    """Segments the images and writes their results; one that fails does not stop the others.

    While one is segmented, another process reads the next, and one more writes the last, file by
    file, and notes each as soon as it is there.

    Returns:
      {image that failed: reason}, which has been told.

    Raises:
      UserError: the only image failed.
    """
    from tf_autoctx.data import dicom_seg, images
    from tf_autoctx.systems.shared import results

    # One image shows its tiles or iterations, several show images.
    alone = len(left) < 2 and wanted.tables is None
    failures: dict[str, UserError] = {}
    unwritten = {path: len(made) for path, made in left.items()}
    bar = None if alone else progress.bar(len(left), "image", "segmented")
    segmentor = wanted.segmentor
    of_model = segmentor.dimensions, wanted.series, len(segmentor.channels)
    tasks = [(path, (path, *of_model)) for path in left]
    read = dicom_seg.read_raw if wanted.template else images.read_raw

    def done(path: str, failure: UserError | None, files: int = 1) -> None:
        if failure and alone:
            raise failure
        if failure:
            failures.setdefault(path, failure)
        unwritten[path] -= files
        if bar and not unwritten[path]:
            bar.add(1)

    def segmented() -> Iterator[tuple[str, tuple[pathlib.Path, Result, Origins]]]:
        for path, image in readers.map(read, tasks):
            try:
                if isinstance(image, UserError):
                    raise image
                made = _heard(wanted.segmented, path, image, left[path], alone)
            except UserError as error:
                done(path, error, len(left[path]))
            else:
                for file in list(made):  # of which nothing is kept while the next is segmented
                    yield path, (file, made.pop(file), made_from)

    for path, failure in writers.map(results.write, segmented()):
        done(path, failure)
    for path in left:
        if path in failures:
            print(f"error: {sentence(failures[path])}", file=sys.stderr)
    return failures


def _heard(function: Callable[..., T], *arguments: Any) -> T:
    """What a function returns or raises, while Ctrl-C is heard: in the thread that runs a graph it
    would be heard at the end of that, after minutes perhaps."""
    outcome: futures.Future[T] = futures.Future()

    def run() -> None:
        try:
            outcome.set_result(function(*arguments))
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return outcome.result()


def kinds() -> list[type]:
    """The configurations whose fields are the flags."""
    return [Prediction, Parts, *option_kinds()]


command = Command(main, kinds, __doc__)
