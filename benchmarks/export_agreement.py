"""Whether exports answer as the checkpoints that they were made of: predict.py's networks against TensorFlow's C++ loader.

  python benchmarks/export_agreement.py --runs=runs/fetal_head,runs/multi_organ,runs/embryo,runs/renderer
  python benchmarks/export_agreement.py --runs=runs/fetal_head --images=3

The newest version of every run is compared on a noise image and on held-out phantoms of the run. Both sides are float32
for a float32 export: the table has the largest difference in probability, and how many labels differ where no probability
is within 1e-4 of what decides. For a bfloat16 export the DSC of both counts, all structures in one. The exit code is 1
where a float32 export is off by 1e-4 or more, a clear label differs, or a bfloat16 export has a DSC of 0.995 or less. The renderer's
networks are taken as they are trained (--iterations=0 of predict.py).
"""

import json
import pathlib
import sys

import numpy as np
from absl import app, flags

from tf_autoctx import export, metrics
from tf_autoctx.data import images
from tf_autoctx.systems import multi_organ, prediction, renderer

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests"))
import cpp_loader  # noqa: E402

FLAGS = flags.FLAGS
flags.DEFINE_list(
    "runs", None, "Finished run folders of training scripts on phantoms.", required=True
)
flags.DEFINE_integer("images", 2, "Held-out phantoms of each run.", 0)

MARGIN = 1e-4


def undecided(probability, system):
    """Where a rounding may turn the label: (batch, *spatial) bool, of probabilities (batch, *spatial, channels)."""
    if system == multi_organ.NAME:
        first, second = -np.partition(-probability, 1, axis=-1)[..., :2].transpose(
            -1, *range(probability.ndim - 1)
        )
        return first - second < 2 * MARGIN
    return (np.abs(probability - 0.5) < MARGIN).any(axis=-1)


def main(_):
    good = True
    print(
        "run, version, precision, image: probability off by at most; labels that differ, clear ones among them; DSC"
    )
    for run in map(pathlib.Path, FLAGS.runs):
        version = export.newest(run / "saved_model")
        precision = json.loads((version / export.CARD).read_text())["precision"]
        loaded = prediction.segmentor(run)
        segment = (
            prediction.segmentor(run, iterations=0) if loaded.system == renderer.NAME else loaded
        )
        model = cpp_loader.CppModel(version)
        folder = run / "phantoms" / "target" if loaded.system == renderer.NAME else run / "phantoms"
        phantoms = images.find(folder / "imagesTs") if FLAGS.images else {}
        found = {
            name: images.array(images.read(path))
            for name, path in list(phantoms.items())[: FLAGS.images]
        }
        size = next((voxels.shape for voxels in found.values()), (41, 37, 43)[-loaded.dimensions :])
        found["noise"] = np.random.default_rng(0).uniform(0, 255, size)
        for name, voxels in found.items():
            image = voxels[None, ..., None].astype(np.float32)
            mine = {key: np.asarray(x) for key, x in segment.answer(image, True, False).items()}
            theirs = model("serving_default", {"image": image})
            if "probability" not in theirs:
                theirs |= model("probabilities", {"image": image})
            off = np.abs(mine["probability"] - theirs["probability"]).max()
            differ = (mine["label"] != theirs["label"])[..., 0]
            clear = differ & ~undecided(mine["probability"], loaded.system)
            dice = metrics.dice(mine["label"][0, ..., 0] > 0, theirs["label"][0, ..., 0] > 0)
            good &= off < MARGIN and not clear.any() if precision == "float32" else dice > 0.995
            print(
                f"{run}, {version.name}, {precision}, {name}: {off:.1e}; {differ.sum()}, {clear.sum()}; {dice:.5f}"
            )
        model.close()
    sys.exit(not good)


if __name__ == "__main__":
    app.run(main)
