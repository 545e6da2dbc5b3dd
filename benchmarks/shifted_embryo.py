"""How well a trained embryo cascade's answer moves with the volume.

  python benchmarks/shifted_embryo.py --run=runs/embryo

Every held-out volume is moved by --shift voxels, its edge values coming in from outside. Prints the DSC of the answer
to the moved volume with the moved answer, where both see the same, for the body and the ventricle.
"""

import functools

import numpy as np
from absl import app, flags

from tf_autoctx import errors, flag_types, metrics
from tf_autoctx.data import datasets, images
from tf_autoctx.systems import evaluation, prediction, refinement

FLAGS = flags.FLAGS
flags.DEFINE_string("run", None, "Finished run folder of train_embryo.py.", required=True)
flag_types.define_integers("shift", [3, 4, 5], "Voxels along z, y, x.", length=3)


def main(_):
    config, system = refinement.run_of(FLAGS.run)
    cases = refinement.cases_of(FLAGS.run, config)
    read = functools.partial(
        datasets.read_case, foreground=list(system.labels), labels=cases.labels, merge=False
    )
    segment = prediction.segmentor(FLAGS.run)
    found = {name: [] for name in system.labels.values()}
    for case in evaluation.held_out(cases, read):
        image, _ = read(case)
        voxels = images.array(image)
        answer = segment(voxels, images.spacing(image), case.image)["label"]
        inner = tuple(slice(0, n - by) for n, by in zip(voxels.shape, FLAGS.shift))
        moved = np.pad(voxels[inner], [(by, 0) for by in FLAGS.shift], mode="edge")
        again = segment(moved, images.spacing(image), case.image)["label"]
        back = again[tuple(slice(by, None) for by in FLAGS.shift)]
        for value, name in system.labels.items():
            found[name].append(metrics.dice(answer[inner] == value, back == value))
        print(
            case.name,
            ", ".join(f"{name} {100 * dice[-1]:.2f} %" for name, dice in found.items()),
            flush=True,
        )
    for name, dice in found.items():
        print(
            f"{name}: mean DSC {100 * np.mean(dice):.2f} %, lowest {100 * min(dice):.2f} % of {len(dice)} volumes"
        )


if __name__ == "__main__":
    app.run(errors.in_one_sentence(main))
