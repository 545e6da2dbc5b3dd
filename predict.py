"""Segments images with a finished run or a SavedModel, each on its own grid.

  python predict.py --model=runs/fetal_head --input=scan.nii.gz --output=results
  python predict.py --model=runs/fetal_head/saved_model/1 --input=folder_of_scans --output=results --probabilities
  python predict.py --model=runs/renderer --input=frame.png --output=results --every_iteration

Writes NAME.nii.gz (label values), with --masks masks/NAME.nii.gz (0 and 1) and with --probabilities
probabilities/NAME.nii.gz; where there are several structures, masks/STRUCTURE/NAME.nii.gz and so on. Labels and masks of
PNG, JPEG and TIFF images are PNG images of 0 and 255. Images that are rendered online get a strip of their iterations,
strips/NAME.png, and with --every_iteration each one's image and mask, iterations/NAME/.
"""

import pathlib

import keras
import numpy as np
from absl import app, flags

from tf_autoctx import errors, files, flag_types, report
from tf_autoctx.data import images
from tf_autoctx.systems import prediction

FLAGS = flags.FLAGS
flags.DEFINE_string("model", None, "Run folder of a training script, or a SavedModel folder.", required=True)
flags.DEFINE_string("input", None, "Image file, DICOM series folder, or folder of images.", required=True)
flags.DEFINE_string("output", None, "Folder for the results; made if it is missing.", required=True)
flags.DEFINE_bool("masks", False, "Write a mask of each structure too.")
flags.DEFINE_bool("probabilities", False, "Write the probability too (float32).")
flag_types.define_edge(
    "tile_size", None, "Smaller tiles, less memory: of run folders of train_multi_organ.py.", multiple=8, least=16
)
flags.DEFINE_integer(
    "iterations", None, "Of online rendering, with run folders of train_renderer.py; 0: none. Default: 25.", 0
)
flags.DEFINE_integer("online_seed", None, "Of the source images that online rendering draws. Default: 0.", 0)
flags.DEFINE_bool("every_iteration", False, "Write rendering and mask of every iteration of online rendering.")
flags.DEFINE_bool("overwrite", False, "Replace results that are there already.")


def main(_):
    source, output = pathlib.Path(FLAGS.input), pathlib.Path(FLAGS.output)
    segment = prediction.segmentor(
        FLAGS.model, tile_size=FLAGS.tile_size, iterations=FLAGS.iterations, online_seed=FLAGS.online_seed
    )
    flat = segment.dimensions == 2
    found = images.find(source, series=not flat) if source.is_dir() else {images.stem(source): source}
    if FLAGS.every_iteration and not segment.iterations:
        raise errors.UserError(f"--every_iteration: {FLAGS.model} does not render online; expected a run that does.")
    kinds = [kind for kind in ("masks", "probabilities") if FLAGS[kind].value]
    folders = {
        (kind, value): output / kind / (name if len(segment.labels) > 1 else "")
        for kind in kinds
        for value, name in segment.labels.items()
    }

    def ending(path, kind="labels"):
        pixels = flat and kind != "probabilities"
        return ".png" if pixels and str(path).lower().endswith(images.PIXELS_ONLY) else ".nii.gz"

    sources = {pathlib.Path(path).resolve() for path in found.values()}
    results = [output / f"{name}{ending(path)}" for name, path in found.items()]
    for (kind, _), folder in folders.items():
        results += [folder / f"{name}{ending(path, kind)}" for name, path in found.items()]
    if segment.iterations:
        results += [output / "strips" / f"{name}.png" for name in found]
    if FLAGS.every_iteration:
        results += [output / "iterations" / name for name in found]
    for path in results:
        if path.resolve() in sources:
            raise errors.UserError(
                f"{path}: is an input image and would be replaced by its result; expected another --output."
            )
        if path.exists() and not FLAGS.overwrite:
            raise errors.UserError(f"{path}: is there already; give --overwrite to replace it, or another --output.")

    # One image shows its tiles or iterations, several show images.
    progress = keras.utils.Progbar(len(found), unit_name="image") if len(found) > 1 else None
    for folder in (output, *folders.values()):
        folder.mkdir(parents=True, exist_ok=True)
    for name, path in found.items():
        if flat:
            image = images.read_2d(path, grey_levels=True)
        else:
            image = images.read(path)
            images.require_dimensions(path, image, 3)
        answer = segment(images.array(image), images.spacing(image), path, FLAGS.probabilities, not progress)

        def write(voxels, path, mask=True):
            images.write(images.like(255 * voxels if mask and path.suffix == ".png" else voxels, image), path)

        write(answer["label"], output / f"{name}{ending(path)}")
        for (kind, value), folder in folders.items():
            if kind == "masks":
                voxels = (answer["label"] == value).astype(np.uint8)
            else:
                voxels = answer["probability"][segment.labels[value]]
            write(voxels, folder / f"{name}{ending(path, kind)}")
        if segment.iterations:
            pixels = images.array(image)
            report.strip(output / "strips" / f"{name}.png", pixels, answer["iterations"], answer["kept"], name)
        if FLAGS.every_iteration:
            with files.replacing(output / "iterations" / name) as folder:
                folder.mkdir()
                for number, iteration in enumerate(answer["iterations"]):
                    rendered = np.clip(np.rint(iteration["rendered"]), 0, 255).astype(np.uint8)
                    write(rendered, folder / f"{number:02d}_rendered{ending(path)}", mask=False)
                    write(iteration["label"], folder / f"{number:02d}_label{ending(path)}")
        if progress:
            progress.add(1)


if __name__ == "__main__":
    app.run(errors.in_one_sentence(main))
