"""Whether exports agree with the checkpoints that they were made of: the networks of predict.py
against TensorFlow's C++ loader.

  python benchmarks/export_agreement.py --runs=runs/fetal_head,runs/multi_organ,runs/embryo
  python benchmarks/export_agreement.py --runs=runs/renderer --images=3

The newest version of every run is compared on an image of noise and on held-out phantoms of the
run. For a float32 export both sides are float32: the table has the largest difference in
probability, and how many labels differ where no probability is within 1e-4 of what decides. For a
bfloat16 export the DSC of both counts, all structures as one. The exit code is 1 where a float32
export is off by 1e-4 or more, a clear label differs, or a bfloat16 export has a DSC of 0.995 or
less. The renderer's networks are taken as they are trained (--iterations=0 of predict.py).
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys

import numpy as np

from tf_autoctx import configuration, export, metrics
from tf_autoctx.commands.command_line import Command, Given
from tf_autoctx.configuration import field
from tf_autoctx.data import images, names
from tf_autoctx.errors import UserError
from tf_autoctx.systems.multi_organ.configuration import DECLARATION as MULTI_ORGAN
from tf_autoctx.systems.renderer.configuration import DECLARATION as RENDERER
from tf_autoctx.systems.shared import prediction
from tf_autoctx.systems.shared.prediction import Segmentor
from tf_autoctx.systems.shared.system import Wanted

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests"))
import cpp_loader

MARGIN = 1e-4
LEAST_DSC = 0.995
NOISE_SIZE = (41, 37, 43)  # where there are no phantoms to take the size of


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Benchmark: the runs, and the images they are compared on"""

    runs: tuple[str, ...] = field(..., "Finished run folders of training commands on phantoms.")
    images: int = field(2, "Held-out phantoms of each run.", least=0)

    def __post_init__(self) -> None:
        configuration.check(self)


def undecided(probability: np.ndarray, system: str) -> np.ndarray:
    """Where a rounding may turn the label.

    Args:
      probability: (batch, *spatial, channels).
      system: its name.

    Returns:
      (batch, *spatial) bool.
    """
    if system == MULTI_ORGAN.name:
        highest = -np.partition(-probability, 1, axis=-1)
        return highest[..., 0] - highest[..., 1] < 2 * MARGIN
    return np.any(np.abs(probability - 0.5) < MARGIN, axis=-1)


def loaded(run: pathlib.Path) -> Segmentor:
    """The segmentor of a run's own networks; the export has no online rendering."""
    segmentor = prediction.load(run)
    if segmentor.declaration.name == RENDERER.name:
        return prediction.load(run, iterations=0)
    return segmentor


def compared_images(run: pathlib.Path, segmentor: Segmentor, count: int) -> dict[str, np.ndarray]:
    """{name: voxels} of held-out phantoms and of noise as large as they are."""
    folder = run / "phantoms"
    if segmentor.declaration.name == RENDERER.name:
        folder /= "target"
    phantoms = names.find(folder / "imagesTs") if count else {}
    voxels = {name: images.read(path).array for name, path in [*phantoms.items()][:count]}
    size = next((x.shape for x in voxels.values()), NOISE_SIZE[-segmentor.dimensions :])
    voxels["noise"] = np.random.default_rng(0).uniform(0, 255, size)
    return voxels


def agrees(run: pathlib.Path, count: int) -> bool:
    """Prints a row for every image of a run, and returns whether all of them agree."""
    version = export.newest(run / "saved_model")
    if version is None:
        raise UserError(f"{run}: holds no saved_model; expected a finished run.")
    precision = json.loads((version / export.CARD).read_text())["precision"]
    segmentor, model, good = loaded(run), cpp_loader.CppModel(version), True
    for name, voxels in compared_images(run, segmentor, count).items():
        image = voxels[None, ..., None].astype(np.float32)
        output = segmentor.predictor(image, None, Wanted(probabilities=True))
        label, probability = (np.asarray(output[key]) for key in ("label", "probability"))
        served = model("serving_default", {"image": image})
        if "probability" not in served:
            served |= model("probabilities", {"image": image})
        off = np.abs(probability - served["probability"]).max()
        differ = (label != served["label"])[..., 0]
        clear = differ & ~undecided(probability, segmentor.declaration.name)
        dice = metrics.dice(label[0, ..., 0] > 0, served["label"][0, ..., 0] > 0)
        exact = off < MARGIN and not clear.any()
        good &= bool(exact if precision == "float32" else dice > LEAST_DSC)
        numbers = f"{off:.1e}; {differ.sum()}, {clear.sum()}; {dice:.5f}"
        print(f"{run}, {version.name}, {precision}, {name}: {numbers}")
    model.close()
    return good


def main(given: Given) -> None:
    """Runs the benchmark."""
    chosen = given.configured(Agreement)
    print(
        "run, version, precision, image: probability off by at most; labels that differ, clear "
        "ones among them; DSC"
    )
    agreed = [agrees(pathlib.Path(run), chosen.images) for run in chosen.runs]
    sys.exit(not all(agreed))


command = Command(main, (Agreement,), __doc__)

if __name__ == "__main__":
    command()
