r"""Few cases of a new site: a network from scratch against one that starts from another site's.

  python benchmarks/few_cases.py --output=few_cases

Sites are made-up scanners of 2D ultrasound (source and far of the phantoms), each with heads of its
own. A network learns from 120 images of the first. On the other site two learn from the same few
images, by the same flags and as many steps: one from scratch, one from the first site's weights.
All are scored on 20 further images of the other site, by which nothing is chosen. A seed is a whole
repetition, with images of its own. The same command goes on where it was stopped.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Sequence

from tf_autoctx import configuration, errors, spreadsheets
from tf_autoctx.commands import train_renderer
from tf_autoctx.commands.command_line import Command, Given
from tf_autoctx.commands.planned_runs import PlannedRun, Trainings
from tf_autoctx.configuration import field

WORDS = (
    "--preset=standard",
    "--variant=Orig-S2T",
    "--size=64",
    "--base_filters=8",
    "--precision=float32",
    "--validation_fraction=0",
    "--batch_size=4",
    "--beta_1=0.9",
    "--dice_weight=10",
    "--learning_rate_decay=polynomial",
    "--flips",
    "--rotation=20",
    "--scaling=0.15",
    "--shift=4",
    "--appearance_strength=0.3",
)
TRAININGS = Trainings(train_renderer.command, train_renderer.command.parse(WORDS), jobs=1)
SIZE, HELD_OUT = (64, 64), 20
FIRST = "first site's network, on the first site"
AS_IT_IS = "first site's network as it is, no training"


@dataclasses.dataclass(frozen=True)
class FewCases:
    """Benchmark: what is trained."""

    output: str = field(..., "Folder of images and runs; what is there is kept.")
    seeds: tuple[int, ...] = field((0, 1, 2), "A whole repetition each.", least=0)
    cases: tuple[int, ...] = field((5, 10), "Images of the new site to learn from.", least=1)
    first_cases: int = field(120, "Images of the first site.", least=1)
    first_steps: int = field(600, "Steps on the first site.", least=1)
    steps: int = field(400, "Steps on the new site.", least=1)
    learning_rate: float = field(1e-3, "Of all trainings, at their start.", least=0.0)

    def __post_init__(self) -> None:
        configuration.check(self)


def few(site: pathlib.Path, cases: int) -> pathlib.Path:
    """A CSV file of the first training cases of a site and of all that are held out."""
    rows = []
    for part, split, most in (("Tr", "train", cases), ("Ts", "test", None)):
        for path in sorted((site / f"images{part}").iterdir())[:most]:
            files = {"image": f"images{part}/{path.name}", "label": f"labels{part}/{path.name}"}
            rows.append({**files, "split": split})
    spreadsheets.write(site / f"few_{cases}.csv", rows, ("image", "label", "split"))
    return site / f"few_{cases}.csv"


def planned(
    sites: Sequence[pathlib.Path], folder: pathlib.Path, seed: int, chosen: FewCases
) -> list[PlannedRun]:
    """The runs of a seed, the first site's first."""

    def run(method: str, name: str, steps: int, **flags: object) -> PlannedRun:
        flags = {"seed": seed, "steps": steps, "samples_per_epoch": 4 * steps, **flags}
        return PlannedRun(method, folder / name, {**flags, "learning_rate": chosen.learning_rate})

    runs = [run(FIRST, "first_site", chosen.first_steps, data_dir=sites[0])]
    for cases in chosen.cases:
        data = few(sites[1], cases)
        for name, more in (("scratch", {}), ("tuned", {"initial_weights": runs[0].folder})):
            method = f"{cases} cases, {name}"
            runs.append(run(method, f"{name}_{cases}", chosen.steps, data_dir=data, **more))
    return runs


def train(runs: Sequence[PlannedRun]) -> None:
    """Trains what is not finished, in turn: later ones start from the first.

    Raises:
      UserError: a training failed.
    """
    for run in runs:
        if not run.is_finished and (failed := TRAININGS.train([run])):
            raise errors.UserError(f"{run.folder}: {failed[run]}.")


def scored(run: PlannedRun) -> float:
    """Mean DSC in percent of a run's held-out cases."""
    summary = json.loads((run.folder / "evaluation" / "summary.json").read_text())
    return float(summary["methods"]["Orig-S2T"]["head"]["metrics"]["DSC_percent"]["mean"])


def scored_elsewhere(run: PlannedRun, site: pathlib.Path) -> float:
    """Mean DSC in percent of a run's network on the held-out cases of another site."""
    import numpy as np

    import tf_autoctx
    from tf_autoctx import metrics
    from tf_autoctx.data import images

    segment, dice = tf_autoctx.load(run.folder), []
    for path in sorted((site / "imagesTs").iterdir()):
        image, label = (images.read_2d(p).array for p in (path, site / "labelsTs" / path.name))
        dice.append(metrics.dice(segment(image)["label"] > 0, label > 0))
    return 100 * float(np.mean(dice))


def table(scores: dict[str, list[float]], chosen: FewCases) -> list[str]:
    """Lines of a table: every row's mean over seeds and its value in each, and the differences of
    tuned and scratch by seed."""
    rows = dict(scores)
    for cases in chosen.cases:
        pairs = zip(scores[f"{cases} cases, tuned"], scores[f"{cases} cases, scratch"])
        rows[f"{cases} cases, tuned - scratch"] = [tuned - scratch for tuned, scratch in pairs]
    lines = [f"| DSC (%) | mean | {' | '.join(f'seed {seed}' for seed in chosen.seeds)} |"]
    lines.append("|---" * (len(chosen.seeds) + 2) + "|")
    for name, values in rows.items():
        sign = "+" if name.endswith("- scratch") else ""
        told = [f"{value:{sign}.2f}" for value in (sum(values) / len(values), *values)]
        lines.append(f"| {name} | {' | '.join(told)} |")
    return lines


def main(given: Given) -> None:
    """Runs the benchmark."""
    from tf_autoctx.data import phantoms

    chosen = given.configured(FewCases)
    scores: dict[str, list[float]] = {}
    for seed in chosen.seeds:
        folder = pathlib.Path(chosen.output) / f"seed_{seed}"
        sites = [
            phantoms.write_fetal_heads_2d(folder, scanner, SIZE, (cases, HELD_OUT), seed)
            for scanner, cases in (("source", chosen.first_cases), ("far", max(chosen.cases)))
        ]
        runs = planned(sites, folder, seed, chosen)
        train(runs)
        scores.setdefault(FIRST, []).append(scored(runs[0]))
        scores.setdefault(AS_IT_IS, []).append(scored_elsewhere(runs[0], sites[1]))
        for run in runs[1:]:
            scores.setdefault(run.method, []).append(scored(run))
        print({name: round(values[-1], 2) for name, values in scores.items()}, flush=True)
    print("\n".join(table(scores, chosen)))


command = Command(main, (FewCases,), __doc__)

if __name__ == "__main__":
    command()
