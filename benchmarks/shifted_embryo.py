"""How well a trained embryo cascade's output moves with the volume.

  python benchmarks/shifted_embryo.py --run=runs/embryo

Every held-out volume is moved by --shift voxels, its edge values coming in from outside. Prints the
DSC of the output for the moved volume with the moved output, where both see the same, for the body
and the ventricle.
"""

from __future__ import annotations

import dataclasses

from tf_autoctx import configuration
from tf_autoctx.commands.command_line import Command, Given
from tf_autoctx.configuration import field


@dataclasses.dataclass(frozen=True)
class ShiftedEmbryo:
    """Benchmark: which run, and how far its volumes are moved."""

    run: str = field(..., "Finished run folder of train_embryo.py.")
    shift: tuple[int, ...] = field((3, 4, 5), "Voxels along z, y, x.", length=3, least=0)

    def __post_init__(self) -> None:
        configuration.check(self)


def main(given: Given) -> None:
    import numpy as np

    from tf_autoctx import metrics
    from tf_autoctx.systems.embryo.system import TrainedRun
    from tf_autoctx.systems.shared import evaluation, prediction

    chosen = given.configured(ShiftedEmbryo)
    trained = TrainedRun.load(chosen.run)
    labels = trained.system.labels
    segment = prediction.load(chosen.run)
    dice: dict[str, list[float]] = {name: [] for name in labels.values()}
    for case in evaluation.held_out(trained.cases, trained.read):
        image, _ = trained.read(case)
        voxels, spacing = image.array, image.spacing
        still = segment(voxels, spacing, case.image)["label"]
        inner = tuple(slice(0, n - by) for n, by in zip(voxels.shape, chosen.shift))
        moved = np.pad(voxels[inner], [(by, 0) for by in chosen.shift], mode="edge")
        back = segment(moved, spacing, case.image)["label"]
        back = back[tuple(slice(by, None) for by in chosen.shift)]
        for value, name in labels.items():
            dice[name].append(metrics.dice(still[inner] == value, back == value))
        last = ", ".join(f"{name} {100 * values[-1]:.2f} %" for name, values in dice.items())
        print(case.name, last, flush=True)
    for name, values in dice.items():
        print(
            f"{name}: mean DSC {100 * np.mean(values):.2f} %, lowest {100 * min(values):.2f} % of "
            f"{len(values)} volumes"
        )


if __name__ == "__main__":
    Command(main, (ShiftedEmbryo,), __doc__)()
