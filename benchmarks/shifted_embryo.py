"""How well a trained embryo cascade's output moves with the volume, and what does not.

  python benchmarks/shifted_embryo.py --run=runs/embryo

Every held-out volume is moved by --shift voxels, its edge values coming in from outside. Prints the
mean DSC of the output for the moved volume with the moved output, where both see the same, for the
body and the ventricle; then the same with one part of the cascade after another kept as it was:

- without what leaves: the volume stays, and edge values stand for the planes that the motion takes
  out of it. Everything below is told against this output, as both miss the same planes.
- VNet I's map moved: VNets II and III see the map that moved exactly, and place their boxes by it.
- map moved, own boxes: as before, but boxes lie where the moved volume's own map places them.
- own map, boxes moved: the other way round.

VNet I alone: moved with the volume; and its shrunken volume, with room around, moved by 1 to
2^(depth - 1) of its own voxels along each axis, of which the last keeps the phase of every pooling.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence

import keras
import numpy as np
from keras import ops

from tf_autoctx import configuration, metrics
from tf_autoctx.commands.command_line import Command, Given
from tf_autoctx.configuration import field
from tf_autoctx.errors import FieldError
from tf_autoctx.models import layers
from tf_autoctx.models.embryo import CLASSES
from tf_autoctx.models.loc_con import BoxCorner, Crop, Uncrop
from tf_autoctx.systems.embryo import training
from tf_autoctx.systems.embryo.segmentation import Refinement
from tf_autoctx.systems.embryo.system import TrainedRun
from tf_autoctx.systems.shared import evaluation

NAMES = ("body", "ventricle")
Places = dict[str, np.ndarray]  # {object: low corner (1, 3) of its box}


@dataclasses.dataclass(frozen=True)
class ShiftedEmbryo:
    """Benchmark: which run, and how far its volumes are moved."""

    run: str = field(..., "Finished run folder of train_embryo.py.")
    shift: tuple[int, ...] = field((3, 4, 5), "Voxels along z, y, x.", length=3, least=0)

    def __post_init__(self) -> None:
        configuration.check(self)


class Cascade:
    """A trained cascade whose parts can be called alone. Volumes are (1, z, y, x, channels)."""

    def __init__(self, network: keras.Model, refinement: Refinement) -> None:
        self.refinement, chosen = refinement, refinement.configuration
        self.vnets = {name: network.get_layer(f"vnet_{k}") for k, name in enumerate(NAMES, 2)}
        self.vnet_1 = network.get_layer("vnet_1")
        self.boxes = {"body": chosen.body_box, "ventricle": chosen.ventricle_box}
        self.auto_context = chosen.auto_context

    def low(self, image: np.ndarray) -> np.ndarray:
        """The volume as VNet I sees it."""
        edge = self.refinement.configuration.low_size
        return np.asarray(layers.resize_linear(ops.convert_to_tensor(image), (edge,) * 3))

    def initial(self, low: np.ndarray) -> np.ndarray:
        """VNet I's map."""
        return np.asarray(ops.softmax(self.vnet_1(low, training=False)))

    def initial_classes(self, low: np.ndarray) -> np.ndarray:
        """VNet I's classes (z, y, x) on its own grid."""
        return np.argmax(self.initial(low)[0], axis=-1)

    def context(self, image: np.ndarray) -> np.ndarray:
        """VNet I's map on the volume's grid."""
        initial = ops.convert_to_tensor(self.initial(self.low(image)))
        return np.asarray(layers.resize_linear(initial, image.shape[1:4]))

    def places(self, context: np.ndarray) -> Places:
        """Where the boxes lie by a map."""
        corners = {n: BoxCorner(CLASSES.index(n), box)(context) for n, box in self.boxes.items()}
        return {name: np.asarray(corner) for name, corner in corners.items()}

    def label(self, image: np.ndarray, context: np.ndarray, places: Places) -> np.ndarray:
        """Classes (z, y, x) of the cascade with a map and boxes."""
        found = []
        for name, vnet in self.vnets.items():
            crop, k = Crop(self.boxes[name]), CLASSES.index(name)
            x = crop([image, places[name]])
            if self.auto_context:
                x = ops.concatenate([x, crop([context[..., k : k + 1], places[name]])], axis=-1)
            probability = ops.sigmoid(vnet(x, training=False))
            found.append(Uncrop()([probability, places[name], image]))
        return np.asarray(self.refinement.classes(ops.concatenate(found, axis=-1)))[0, ..., 0]


def stays(size: Sequence[int], shift: Sequence[int]) -> tuple[slice, ...]:
    """What a volume of a size (z, y, x) keeps where it is moved."""
    return tuple(slice(0, n - by) for n, by in zip(size, shift))


def moved(x: np.ndarray, shift: Sequence[int]) -> np.ndarray:
    """A volume (1, z, y, x, channels) moved, its edge values coming in from outside."""
    kept = x[:, *stays(x.shape[1:4], shift)]
    return np.pad(kept, [(0, 0), *((by, 0) for by in shift), (0, 0)], mode="edge")


def unmoved(x: np.ndarray, shift: Sequence[int]) -> np.ndarray:
    """The same volume at its own place: it ends where the moved one does."""
    kept = x[:, *stays(x.shape[1:4], shift)]
    return np.pad(kept, [(0, 0), *((0, by) for by in shift), (0, 0)], mode="edge")


def agreement(still: np.ndarray, back: np.ndarray, shift: Sequence[int]) -> dict[str, float]:
    """DSC of a label (z, y, x) with that of the moved volume, where both see the same."""
    return dice(still[stays(still.shape, shift)], back[tuple(slice(by, None) for by in shift)])


def dice(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    """{object: DSC} of two labels of one size."""
    return {name: metrics.dice(a == k, b == k) for k, name in enumerate(NAMES, 1)}


def rows(cascade: Cascade, image: np.ndarray, shift: Sequence[int]) -> dict[str, dict[str, float]]:
    """{row: {object: agreement}} of a preprocessed volume."""
    ended, there = unmoved(image, shift), moved(image, shift)
    labels, contexts, places = {}, {}, {}
    for name, volume in {"still": image, "ended": ended, "there": there}.items():
        contexts[name] = cascade.context(volume)
        places[name] = cascade.places(contexts[name])
        labels[name] = cascade.label(volume, contexts[name], places[name])
    inner = stays(labels["still"].shape, shift)
    exact = moved(contexts["ended"], shift)
    along = {name: corner + np.array(shift, np.int32) for name, corner in places["ended"].items()}
    parts = {
        "VNet I's map moved": cascade.label(there, exact, along),
        "map moved, own boxes": cascade.label(there, exact, places["there"]),
        "own map, boxes moved": cascade.label(there, contexts["there"], along),
    }
    found = {
        "moved": agreement(labels["still"], labels["there"], shift),
        "without what leaves": dice(labels["still"][inner], labels["ended"][inner]),
        "moved, without what leaves": agreement(labels["ended"], labels["there"], shift),
        **{name: agreement(labels["ended"], label, shift) for name, label in parts.items()},
    }
    classes = [np.argmax(contexts[name][0], axis=-1) for name in ("ended", "there")]
    found["VNet I, moved, the same"] = agreement(classes[0], classes[1], shift)
    period = 2 ** (cascade.refinement.configuration.depth - 1)
    low, around = cascade.low(image), [(0, 0), *[(0, period)] * 3, (0, 0)]
    room = np.pad(low, around, mode="edge")
    still = cascade.initial_classes(room)
    for by in range(1, period + 1):
        back = cascade.initial_classes(moved(room, (by,) * 3))
        found[f"VNet I, moved by {by} of its voxels"] = agreement(still, back, (by,) * 3)
    return found


def table(of_cases: Sequence[Mapping[str, Mapping[str, float]]]) -> str:
    """Mean and lowest agreement of every row."""
    values: dict[str, dict[str, list[float]]] = collections.defaultdict(dict)
    for found in of_cases:
        for row, of_row in found.items():
            for name, value in of_row.items():
                values[row].setdefault(name, []).append(100 * value)
    lines = [f"{'mean (lowest) DSC %':32}" + "".join(f"{name:>18}" for name in NAMES)]
    for row, of_objects in values.items():
        cells = [f"{np.nanmean(of):.2f} ({np.nanmin(of):.2f})" for of in of_objects.values()]
        lines.append(f"{row:32}" + "".join(f"{cell:>18}" for cell in cells))
    return "\n".join(lines)


def main(given: Given) -> None:
    """Runs the benchmark."""
    chosen = given.configured(ShiftedEmbryo)
    trained = TrainedRun.load(chosen.run)
    (network,) = training.last_finished(trained.run).values()
    if "body" not in network.output or trained.system.grid:
        raise FieldError("run", chosen.run, "expected a refined cascade on the volumes' own grid.")
    cascade, of_cases = Cascade(network, trained.system.refinement), []
    for case in evaluation.held_out(trained.cases, trained.read):
        image, _ = trained.read(case)
        voxels = image.array.reshape(*image.array.shape[:3], -1).astype(np.float32)
        voxels = np.asarray(trained.system.refinement.preprocess(voxels[None]))
        of_cases.append(rows(cascade, voxels, chosen.shift))
        told = (f"{name} {100 * v:.2f} %" for name, v in of_cases[-1]["moved"].items())
        print(case.name, *told, flush=True)
    print(table(of_cases))


if __name__ == "__main__":
    Command(main, (ShiftedEmbryo,), __doc__)()
