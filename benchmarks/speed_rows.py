"""The rows of `speed.py`: what is timed beside what, at which size."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import command_sides
import harness
import our_sides
import peer_sides
from command_sides import command
from harness import Quiet, Side, SideFailed, Tolerance
from tasks import EmbryoTask, FetalHeadTask, MultiOrganTask, RendererTask, Task

from tf_autoctx.systems.renderer.configuration import ORDERS

PRECISIONS = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Row:
    """A row.

    Attributes:
      title: what is timed.
      sides: (folder for files, whether all is tiny) -> sides, ours first.
      rounds: that count, unless others are asked for.
      tolerance: of the answers.
      apart: where all processes would not fit into memory, how many sides of a precision live at
        once beside our own, which each such group has; None: all sides live at once.
    """

    title: str
    sides: Callable[[pathlib.Path, bool], list[Side]]
    rounds: int = 7
    tolerance: Tolerance = dataclasses.field(default_factory=Tolerance)
    apart: int | None = None

    def measured(self, folder: pathlib.Path, tiny: bool, quiet: Quiet) -> dict[str, Any]:
        """The result, see `harness.compared`."""
        told = [
            harness.compared(group, quiet, self.tolerance)
            for group in self._groups(self.sides(folder, tiny))
        ]
        # Of our own side the first group counts.
        sides = {name: side for part in reversed(told) for name, side in part["sides"].items()}
        return {
            **told[0],
            "rounds": min(part["rounds"] for part in told),
            "thrown_away": sum(part["thrown_away"] for part in told),
            "sides": sides,
            "left_out": {name: why for part in told for name, why in part["left_out"].items()},
        }

    def _groups(self, sides: list[Side]) -> list[list[Side]]:
        """The sides that live at once."""
        if self.apart is None:
            return [sides]
        groups = []
        for precision in PRECISIONS:
            own, *others = [side for side in sides if precision in side.name]
            starts = range(0, max(1, len(others)), self.apart)
            groups += [[own, *others[start : start + self.apart]] for start in starts]
        return groups


# Sides that several rows have


def both(name: str, factory: Callable[..., Any], **arguments: Any) -> list[Side]:
    """A side in each precision."""
    return [
        Side(f"{name}, {precision}", factory, {**arguments, "precision": precision})
        for precision in PRECISIONS
    ]


def in_pytorch(task: Task, kind: str) -> list[Side]:
    """The same network in PyTorch, in each precision and each of `peer_sides.WAYS`."""
    return [
        Side(
            f"PyTorch, {way}, {precision}",
            peer_sides.pytorch,
            {"task": task, "kind": kind, "precision": precision, "way": way},
            needs=("torch",),
            environment=peer_sides.ON_TORCH,
        )
        for precision in PRECISIONS
        for way in peer_sides.WAYS
    ]


def of_inference(task: Task) -> list[Side]:
    """Our export in both precisions, and the convolutions alone."""
    alone = both("convolutions alone", our_sides.inference_convolutions, task=task)
    return [*both("export", our_sides.exported, task=task), *alone]


def of_training(task: Task) -> list[Side]:
    """Our step in both precisions, the convolutions alone, and PyTorch."""
    alone = both("convolutions alone", our_sides.training_convolutions, task=task)
    step = both("step", our_sides.training, task=task)
    return [*step, *alone, *in_pytorch(task, "training")]


# The rows

GRID = (64, 48, 72)  # on the fetal head network's own grid


def usegnet(folder: pathlib.Path, tiny: bool) -> list[Side]:
    task = FetalHeadTask(tiny, levels=1, on_grid=GRID)
    peers = [
        Side(
            f"OpenVINO, {precision}",
            peer_sides.openvino,
            {"task": task, "precision": precision},
            needs=("torch", "openvino"),
            environment=peer_sides.ON_TORCH,
        )
        for precision in PRECISIONS
    ]
    own = both("run folder", our_sides.run_folder, task=task)
    return [*of_inference(task), *own, *in_pytorch(task, "inference"), *peers]


def usegnet_training(folder: pathlib.Path, tiny: bool) -> list[Side]:
    return of_training(FetalHeadTask(tiny, levels=1, on_grid=GRID))


def usegnet_volume(folder: pathlib.Path, tiny: bool) -> list[Side]:
    task = FetalHeadTask(tiny, levels=1, on_grid=(155, 103, 176))
    own = both("run folder", our_sides.run_folder, task=task)
    return [*both("export", our_sides.exported, task=task), *own]


def embryo(folder: pathlib.Path, tiny: bool) -> list[Side]:
    return of_inference(EmbryoTask(tiny))


def embryo_windows(folder: pathlib.Path, tiny: bool) -> list[Side]:
    chosen = {"fraction": 0.2, "window": 16} if tiny else {"fraction": 0.02, "window": 64}
    task = EmbryoTask(tiny)
    return both("sliding windows", our_sides.sliding_windows, task=task, batch=32, **chosen)


def ct(folder: pathlib.Path, tiny: bool) -> list[Side]:
    task = MultiOrganTask(tiny, size=(192, 192, 192))
    peers = [
        Side(
            f"MONAI's inferer, {precision}",
            peer_sides.monai_inferer,
            {"task": task, "precision": precision},
            needs=("torch", "monai"),
            environment=peer_sides.ON_TORCH,
        )
        for precision in PRECISIONS
    ]
    own = both("run folder", our_sides.run_folder, task=task)
    return [*both("export", our_sides.exported, task=task), *own, *peers]


def ct_whole(folder: pathlib.Path, tiny: bool) -> list[Side]:
    return both("export", our_sides.exported, task=MultiOrganTask(tiny))


def pyramid(batch_size: int) -> Callable[[pathlib.Path, bool], list[Side]]:
    """A training step of so many subvolumes."""

    def sides(folder: pathlib.Path, tiny: bool) -> list[Side]:
        task = MultiOrganTask(tiny, batch_size=batch_size)
        monai = [
            Side(
                f"MONAI's UNet, {way}, {precision}",
                peer_sides.monai_training,
                {"task": task, "precision": precision, "way": way},
                needs=("torch", "monai"),
                environment=peer_sides.ON_TORCH,
            )
            for precision in PRECISIONS
            for way in peer_sides.WAYS
        ]
        return [*of_training(task), *monai]

    return sides


def online(learning: bool) -> Callable[[pathlib.Path, bool], list[Side]]:
    """An iteration of online rendering, or of self-play."""

    def sides(folder: pathlib.Path, tiny: bool) -> list[Side]:
        sides = []
        for order in (*ORDERS, "one by one"):
            of_order = {"task": RendererTask(tiny), "learning": learning, "order": order}
            sides += both(order, our_sides.online, **of_order)
        return sides

    return sides


def scoring(folder: pathlib.Path, tiny: bool) -> list[Side]:
    pair = {"size": (40, 30, 45) if tiny else (388, 258, 440), "spacing": (0.38, 0.38, 0.38)}
    monai, surface = peer_sides.monai_scoring, peer_sides.surface_distance
    return [
        Side("ours", our_sides.scoring, pair),
        Side("MONAI", monai, pair, needs=("torch", "monai")),
        Side("surface-distance", surface, pair, needs=("surface-distance",)),
    ]


def scoring_command(folder: pathlib.Path, tiny: bool) -> list[Side]:
    pairs, size = (2, (40, 30, 45)) if tiny else (50, (155, 103, 176))
    harness.called(command_sides.write_pairs, folder, pairs, size)
    words = [f"--{kind}={folder / kind}" for kind in ("predictions", "labels")]
    words += [f"--output={folder / 'scores'}"]
    return [Side("eval/score.py", command, {"words": ["eval/score.py", *words]})]


def rigid_motion(folder: pathlib.Path, tiny: bool) -> list[Side]:
    size = {"size": (24, 28, 30) if tiny else (210, 281, 282)}
    return [
        Side("ours", our_sides.rigid_motion, size),
        Side("SimpleITK", peer_sides.simpleitk_motion, size),
    ]


def predict(folder: pathlib.Path, tiny: bool) -> list[Side]:
    """Of three scans, as reading and writing go on beside the networks."""
    task = FetalHeadTask(tiny)
    model = harness.called(command_sides.write_export, folder / "export", task)
    for number in range(3):
        scan = folder / "scans" / f"scan_{number}.nii.gz"
        harness.called(command_sides.write_scan, scan, task.size)
    given = ["predict.py", f"--model={model}", f"--input={folder / 'scans'}", "--overwrite"]
    flags = {
        "label": [],
        "label, probabilities": ["--probabilities"],
        "label, probabilities as they are": ["--probabilities", "--nocompressed"],
    }
    return [
        Side(name, command, {"words": [*given, f"--output={folder / name}", *more]})
        for name, more in flags.items()
    ]


def cold_start(folder: pathlib.Path, tiny: bool) -> list[Side]:
    task = FetalHeadTask(tiny, levels=1, on_grid=GRID)
    z, y, x = task.size
    run, scan = folder / "run", folder / "scans" / "scan.nii.gz"
    chosen = [f"--work_dir={run}", f"--phantom_size={z},{y},{x}", "--phantom_cases=3,1"]
    chosen += ["--level=1", "--scale=1", "--steps=1", "--samples_per_epoch=1"]
    chosen += [f"--base_filters={task.configuration.base_filters}", "--precision=float32"]
    command_sides.run(["train_fetal_head.py", *chosen])
    harness.called(command_sides.write_scan, scan, task.size)
    models = {"run folder": run, "export": run / "saved_model"}
    scripts = ("predict.py", "train_fetal_head.py", "eval/score.py", "serving/client.py")
    alone = ["-c", "import tensorflow"]  # which no prediction can do without
    return [
        *(
            Side(
                f"predict.py of one volume, {name}",
                command,
                {
                    "words": [
                        "predict.py",
                        f"--model={model}",
                        f"--input={scan}",
                        f"--output={folder / name}",
                        "--overwrite",
                    ]
                },
            )
            for name, model in models.items()
        ),
        *(Side(f"{name} --help", command, {"words": [name, "--help"]}) for name in scripts),
        Side("import tensorflow", command, {"words": alone}),
    ]


class Profiles(Row):
    """A training step of each system: where its time goes."""

    def measured(self, folder: pathlib.Path, tiny: bool, quiet: Quiet) -> dict[str, Any]:
        """{"profiles": {system: {precision: see `our_sides.training_profile`}}, "left_out",
        "thrown_away"}."""
        # At half the edges the embryo's step fits into the memory of small machines.
        chosen: Sequence[Task] = (
            FetalHeadTask(tiny, levels=1, on_grid=GRID),
            MultiOrganTask(tiny),
            EmbryoTask(tiny, shrunk=2),
            RendererTask(tiny),
        )
        profiles: dict[str, dict[str, Any]] = {task.name: {} for task in chosen}
        left_out: dict[str, str] = {}
        thrown = 0
        for task in chosen:
            for precision in PRECISIONS:
                name = f"{task.name}, {precision}"
                for _ in range(harness.TRIES):
                    try:
                        with harness.Meter() as meter:
                            told = harness.called(our_sides.training_profile, task, precision)
                    except SideFailed as error:
                        left_out[name] = str(error)
                        break
                    if meter.others <= quiet.most_others:
                        profiles[task.name][precision] = told
                        break
                    thrown += 1
                else:
                    left_out[name] = "no quiet moment"
        return {"profiles": profiles, "left_out": left_out, "thrown_away": thrown}


def none(folder: pathlib.Path, tiny: bool) -> list[Side]:
    return []


ROWS: dict[str, Row] = {
    "usegnet": Row("USegNet-DS-HAS, inference, 64x48x72", usegnet, tolerance=Tolerance(1e-3, 0.5)),
    "usegnet-training": Row("USegNet-DS-HAS, training step, 64x48x72", usegnet_training),
    "usegnet-volume": Row("USegNet-DS-HAS, inference, 155x103x176", usegnet_volume, rounds=3),
    "embryo": Row("embryo cascade, 210x281x282", embryo, rounds=3, apart=1),
    "embryo-windows": Row("sliding windows, 210x281x282, extrapolated", embryo_windows, rounds=1),
    "ct": Row("CT, 192x192x192", ct),
    "ct-whole": Row("CT, 600x512x512", ct_whole, rounds=1, apart=1),
    "pyramid-1": Row("pyramid, training step, 1 x 64x64x64", pyramid(1), apart=4),
    "pyramid-3": Row("pyramid, training step, 3 x 64x64x64", pyramid(3), rounds=5, apart=4),
    "online": Row("online rendering, iteration, 2 x 320x320", online(False), rounds=3),
    "self-play": Row("self-play, iteration, 2 x 320x320", online(True), rounds=3, apart=1),
    "scoring": Row("scoring of a pair, 388x258x440", scoring, tolerance=Tolerance(1.0)),
    "scoring-command": Row("scoring of 50 pairs, 155x103x176", scoring_command, rounds=3),
    "rigid-motion": Row("random rigid motion, 210x281x282", rigid_motion),
    "predict": Row("predict.py of three volumes, 388x258x440", predict, rounds=3),
    "cold-start": Row("cold start and --help", cold_start),
    "profiles": Profiles("training step by operation", none, rounds=1),
}
