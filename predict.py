"""Segments images with a finished run or a SavedModel, each on its own grid.

  python predict.py --model=runs/fetal_head --input=scan.nii.gz --output=results
  python predict.py --model=runs/fetal_head/saved_model/1 --input=folder_of_scans --output=results --probabilities

Writes NAME.nii.gz (label values), with --masks masks/NAME.nii.gz (0 and 1) and with --probabilities
probabilities/NAME.nii.gz; where there are several structures, masks/STRUCTURE/NAME.nii.gz and so on.
"""

import pathlib

import keras
import numpy as np
from absl import app, flags

from tf_autoctx import errors, flag_types
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
flags.DEFINE_bool("overwrite", False, "Replace results that are there already.")


def main(_):
    source, output = pathlib.Path(FLAGS.input), pathlib.Path(FLAGS.output)
    found = images.find(source) if source.is_dir() else {images.stem(source): source}
    segment = prediction.segmentor(FLAGS.model, FLAGS.tile_size)
    kinds = [kind for kind in ("masks", "probabilities") if FLAGS[kind].value]
    folders = {
        (kind, value): output / kind / (name if len(segment.labels) > 1 else "")
        for kind in kinds
        for value, name in segment.labels.items()
    }
    sources = {pathlib.Path(path).resolve() for path in found.values()}
    for path in (folder / f"{name}.nii.gz" for folder in (output, *folders.values()) for name in found):
        if path.resolve() in sources:
            raise errors.UserError(
                f"{path}: is an input image and would be replaced by its result; expected another --output."
            )
        if path.exists() and not FLAGS.overwrite:
            raise errors.UserError(f"{path}: is there already; give --overwrite to replace it, or another --output.")

    # One image shows its tiles, several show images.
    progress = keras.utils.Progbar(len(found), unit_name="image") if len(found) > 1 else None
    for folder in (output, *folders.values()):
        folder.mkdir(parents=True, exist_ok=True)
    for name, path in found.items():
        image = images.read(path)
        images.require_dimensions(path, image, 3)
        answer = segment(images.array(image), images.spacing(image), path, FLAGS.probabilities, not progress)
        images.write(images.like(answer["label"], image), output / f"{name}.nii.gz")
        for (kind, value), folder in folders.items():
            if kind == "masks":
                voxels = (answer["label"] == value).astype(np.uint8)
            else:
                voxels = answer["probability"][segment.labels[value]]
            images.write(images.like(voxels, image), folder / f"{name}.nii.gz")
        if progress:
            progress.add(1)


if __name__ == "__main__":
    app.run(errors.in_one_sentence(main))
