"""Segments images with a finished run or a SavedModel, each on its own grid.

  python predict.py --model=runs/fetal_head --input=scan.nii.gz --output=results
  python predict.py --model=runs/fetal_head/saved_model --input=folder_of_scans --output=results --probabilities
  python predict.py --model=runs/renderer --input=frame.png --output=results --every_iteration

--model is a run folder, a SavedModel, or a folder of its versions, of which the newest is taken. A folder is read with
all folders below it, and results lie in the same folders.

Writes NAME.nii.gz (label values), with --masks masks/NAME.nii.gz (0 and 1) and with --probabilities
probabilities/NAME.nii.gz; where there are several structures, masks/STRUCTURE/NAME.nii.gz and so on. Labels and masks of
PNG, JPEG and TIFF images are PNG images of 0 and 255. --output_format names another format; PNG cannot hold
probabilities, which stay NIfTI. Images that are rendered online get a strip of their iterations, strips/NAME.png, and
with --every_iteration each one's image and mask, iterations/NAME/.

Results that are there are never replaced without being told: --overwrite makes them anew, and --resume goes on with a
folder where it was stopped: it writes what is not there. Of what model and flags a result is no file tells: resume with
the same ones. If an image of a folder fails, the others are done all the same, and the exit code is 1.
"""

import pathlib
import sys

import keras
import numpy as np
from absl import app, flags

from tf_autoctx import errors, flag_types, plots
from tf_autoctx.data import images
from tf_autoctx.files import replacing
from tf_autoctx.systems import prediction

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "model",
    None,
    "Run folder of a training script, a SavedModel, or a folder of its versions.",
    required=True,
)
flags.DEFINE_string(
    "input", None, "Image file, DICOM series folder, or folder of folders of images.", required=True
)
flags.DEFINE_string("output", None, "Folder for the results; made if it is missing.", required=True)
flags.DEFINE_bool("masks", False, "Write a mask of each structure too.")
flags.DEFINE_bool("probabilities", False, "Write the probability too (float32).")
flag_types.define_edge(
    "tile_size",
    None,
    "Smaller tiles, less memory: of run folders of train_multi_organ.py.",
    multiple=8,
    least=16,
)
flags.DEFINE_integer(
    "iterations",
    None,
    "Of online rendering, with run folders of train_renderer.py; 0: none. Default: 25.",
    0,
)
flags.DEFINE_integer(
    "online_seed", None, "Of the source images that online rendering draws. Default: 0.", 0
)
flags.DEFINE_bool(
    "every_iteration", False, "Write rendering and mask of every iteration of online rendering."
)
flags.DEFINE_enum(
    "output_format",
    None,
    [suffix.removeprefix(".") for suffix in images.WRITABLE],
    "Of all images. Default: png for PNG, JPEG and TIFF images, else nii.gz.",
)
flags.DEFINE_bool("overwrite", False, "Replace results that are there already.")
flags.DEFINE_bool("resume", False, "Write the results that are not there yet.")


def main(_):
    source, output = pathlib.Path(FLAGS.input), pathlib.Path(FLAGS.output)
    if FLAGS.resume and FLAGS.overwrite:
        raise errors.UserError(
            "--resume and --overwrite: one keeps results, one replaces them; expected one of them."
        )
    segment = prediction.segmentor(
        FLAGS.model,
        tile_size=FLAGS.tile_size,
        iterations=FLAGS.iterations,
        online_seed=FLAGS.online_seed,
    )
    flat = segment.dimensions == 2
    if not flat and f".{FLAGS.output_format}" in images.PIXELS_ONLY:
        raise errors.UserError(
            f"--output_format={FLAGS.output_format}: cannot hold the grid of a volume; expected nii.gz, nii, nrrd or mha."
        )
    if FLAGS.every_iteration and not segment.iterations:
        raise errors.UserError(
            f"--every_iteration: {FLAGS.model} does not render online; expected a run that does."
        )
    if source.is_dir():
        found = images.find(source, series=not flat, below=True, without=output)
    else:
        found = {images.stem(source): source}
    kinds = [kind for kind in ("masks", "probabilities") if FLAGS[kind].value]

    def ending(path, kind="labels"):
        pixels = flat and str(path).lower().endswith(images.PIXELS_ONLY)
        chosen = f".{FLAGS.output_format or ('png' if pixels else 'nii.gz')}"
        return ".nii.gz" if kind == "probabilities" and chosen == ".png" else chosen

    def results(name, path):
        """{(kind, label value): file} of an image."""
        files = {("labels", None): output / f"{name}{ending(path)}"}
        for kind in kinds:
            for value, structure in segment.labels.items():
                folder = output / kind / (structure if len(segment.labels) > 1 else "")
                files[kind, value] = folder / f"{name}{ending(path, kind)}"
        if segment.iterations:
            files["strips", None] = output / "strips" / f"{name}.png"
        if FLAGS.every_iteration:
            files["iterations", None] = output / "iterations" / name
        return files

    wanted = {path: results(name, path) for name, path in found.items()}
    images.require_own_files({path: files.values() for path, files in wanted.items()})
    there = [file for files in wanted.values() for file in files.values() if file.exists()]
    if there and not FLAGS.overwrite and not FLAGS.resume:
        raise errors.UserError(
            f"{there[0]}: is there already; give --resume to go on with the others, --overwrite to replace it, or another "
            "--output."
        )
    if FLAGS.resume:
        wanted = {
            path: {key: file for key, file in files.items() if not file.exists()}
            for path, files in wanted.items()
        }
        found = {name: path for name, path in found.items() if wanted[path]}
        print(f"{len(wanted) - len(found)} of {len(wanted)} images are done already")

    def predict(path, progress):
        if flat:
            image = images.read_2d(path, grey_levels=True)
        else:
            image = images.read(path)
            images.require_dimensions(path, image, 3)
        answer = segment(
            images.array(image), images.spacing(image), path, FLAGS.probabilities, progress
        )

        def write(voxels, file, mask=True):
            file.parent.mkdir(parents=True, exist_ok=True)
            shown = mask and file.name.lower().endswith(images.PIXELS_ONLY)
            images.write(images.like(255 * voxels if shown else voxels, image), file)

        for (kind, value), file in wanted[path].items():
            if kind == "labels":
                write(answer["label"], file)
            elif kind == "masks":
                write((answer["label"] == value).astype(np.uint8), file)
            elif kind == "probabilities":
                write(answer["probability"][segment.labels[value]], file, mask=False)
            elif kind == "strips":
                pixels = images.array(image)
                plots.strip(file, pixels, answer["iterations"], answer["kept"], file.stem)
            else:
                with replacing(file) as folder:
                    folder.mkdir()
                    for number, iteration in enumerate(answer["iterations"]):
                        rendered = np.clip(np.rint(iteration["rendered"]), 0, 255).astype(np.uint8)
                        write(rendered, folder / f"{number:02d}_rendered{ending(path)}", mask=False)
                        write(iteration["label"], folder / f"{number:02d}_label{ending(path)}")

    # One image shows its tiles or iterations, several show images.
    if len(found) < 2:
        for path in found.values():
            predict(path, progress=True)
        return
    bar, failures = keras.utils.Progbar(len(found), unit_name="image"), []
    for path in found.values():
        try:
            predict(path, progress=False)
        except errors.UserError as error:
            failures.append(str(error))
        bar.add(1)
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    if failures:
        raise errors.UserError(
            f"{len(failures)} of {len(found)} images failed; --resume tries these once more."
        )


if __name__ == "__main__":
    app.run(errors.in_one_sentence(main))
