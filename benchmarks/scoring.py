"""Time of eval/score.py on 50 pairs of head masks at the size that the fetal head's network works
at.

  python benchmarks/scoring.py

A head is an ellipsoid of its own size and place; the prediction is a little larger and shifted by
two voxels.
"""

from __future__ import annotations

import dataclasses
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
import SimpleITK as sitk

from tf_autoctx.commands.command_line import Command, Given
from tf_autoctx.configuration import check, field
from tf_autoctx.data import images

ROOT = pathlib.Path(__file__).resolve().parent.parent
SPACING = (0.95, 0.95, 0.95)  # mm


@dataclasses.dataclass(frozen=True)
class Scored:
    """Benchmark: the masks, and who scores them"""

    pairs: int = field(50, "Predictions to score.", least=1)
    size: tuple[int, ...] = field(
        (155, 103, 176), "Voxels of a mask along z, y, x.", length=3, least=16
    )
    workers: int | None = field(None, "As of eval/score.py.", least=1)

    def __post_init__(self) -> None:
        check(self)


def write_pairs(folder: pathlib.Path, chosen: Scored) -> None:
    """Writes folder/labels and folder/predictions."""
    rng, size = np.random.default_rng(0), np.array(chosen.size)
    grid = np.moveaxis(np.indices(chosen.size, np.float32), 0, -1)
    for number in range(chosen.pairs):
        centre, radii = size * rng.uniform(0.45, 0.55, 3), size * rng.uniform(0.25, 0.4, 3)
        for kind, shift, factor in (("labels", 0, 1.0), ("predictions", 2, 1.03)):
            mask = (((grid - centre - shift) / (factor * radii)) ** 2).sum(axis=-1) <= 1
            path = folder / kind / f"head_{number:03d}.nii.gz"
            path.parent.mkdir(exist_ok=True)
            image = sitk.GetImageFromArray(mask.astype(np.uint8))
            image.SetSpacing(SPACING)
            images.write(path, image)


def main(given: Given) -> None:
    """Runs the benchmark."""
    chosen = given.configured(Scored)
    with tempfile.TemporaryDirectory() as folder:
        write_pairs(pathlib.Path(folder), chosen)
        words = [f"--{kind}={folder}/{kind}" for kind in ("predictions", "labels")]
        words += [f"--output={folder}/scores"]
        if chosen.workers:
            words.append(f"--workers={chosen.workers}")
        begin = time.perf_counter()
        script = str(ROOT / "eval" / "score.py")
        subprocess.run([sys.executable, script, *words], check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - begin
    print(f"{chosen.pairs} pairs of {'x'.join(map(str, chosen.size))} voxels: {seconds:.1f} s")


command = Command(main, (Scored,), __doc__)

if __name__ == "__main__":
    command()
