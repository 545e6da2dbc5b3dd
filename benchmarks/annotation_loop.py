r"""The annotation loop: cases corrected in the order of `--rank` against cases at random.

  python benchmarks/annotation_loop.py --data_dir=hippocampus --work_dir=runs/annotation_loop

Of the training cases of a Decathlon folder some are drawn, which are annotated, and a network
learns from them. It predicts all others with `--uncertainty --rank`; the first ones of rank.csv get
their true labels, as if they had been corrected, and a network that starts from the last one learns
from all that are annotated by then. A round more does the same. Beside it runs a loop in which as
many cases are drawn at random, from the same first network, by the same flags and steps. All
networks are scored on the test cases of the data set, by which nothing is chosen.

A seed is a whole repetition: the first cases, those drawn at random and the weights are its own.
The same command goes on where it was stopped.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import pages

from tf_autoctx import configuration, errors, files, spreadsheets
from tf_autoctx.commands import train_fetal_head
from tf_autoctx.commands.command_line import Command, Given
from tf_autoctx.commands.planned_runs import PlannedRun, Trainings
from tf_autoctx.configuration import field

PREDICT = pathlib.Path(__file__).resolve().parent.parent / "predict.py"
WORDS = (
    "--preset=standard",
    "--level=1",
    "--variant=USegNet-DS",
    "--base_filters=8",
    "--spacing=1,1,1",
    "--validation_fraction=0",
    "--precision=float32",
)
TRAININGS = Trainings(train_fetal_head.command, train_fetal_head.command.parse(WORDS), jobs=1)
LEVEL, STRUCTURE = "level 1", "head"  # what the system calls the network, and the hippocampus
RANKED, DRAWN = "by rank", "at random"
COLUMNS = ("order", "seed", "annotated", "DSC_percent")


@dataclasses.dataclass(frozen=True)
class AnnotationLoop:
    """Benchmark: what is annotated and trained."""

    data_dir: str = field(..., "Decathlon folder, whose training cases are annotated bit by bit.")
    work_dir: str = field(..., "Folder of data sets, runs and predictions; what is there is kept.")
    seeds: tuple[int, ...] = field((0, 1, 2), "A whole repetition each.", least=0)
    first: int = field(10, "Cases that are annotated at the beginning.", least=1)
    corrected: int = field(10, "Cases that are corrected in each round.", least=1)
    rounds: int = field(2, "Times that cases are corrected.", least=1)
    steps: int = field(600, "Steps of every training.", least=1)
    learning_rate: float = field(1e-3, "Of all trainings, at their start.", least=0.0)

    def __post_init__(self) -> None:
        configuration.check(self)


@dataclasses.dataclass(frozen=True)
class Source:
    """The cases of a data set.

    Attributes:
      training: {name: {"image": its path, "label": its path}}.
      test: likewise, a list.
      labels: of its dataset.json.
    """

    training: dict[str, dict[str, str]]
    test: list[dict[str, str]]
    labels: dict[str, Any]

    @classmethod
    def of(cls, folder: pathlib.Path) -> Source:
        """That of a Decathlon folder."""
        folder = folder.resolve()

        def cases(part: str) -> dict[str, dict[str, str]]:
            images = sorted((folder / f"images{part}").glob("[!.]*.nii.gz"))
            return {
                path.name.removesuffix(".nii.gz"): {
                    "image": str(path),
                    "label": str(folder / f"labels{part}" / path.name),
                }
                for path in images
            }

        description = json.loads((folder / "dataset.json").read_text("utf-8"))
        return cls(cases("Tr"), [*cases("Ts").values()], description["labels"])

    def annotated(self, folder: pathlib.Path, names: Sequence[str]) -> pathlib.Path:
        """A data set of the training cases of these names and of all test cases."""
        folder.mkdir(parents=True, exist_ok=True)
        told = {
            "labels": self.labels,
            "modality": {"0": "MRI"},
            "training": [self.training[name] for name in sorted(names)],
            "test": self.test,
        }
        with files.replacing(folder / "dataset.json") as partial:
            partial.write_text(json.dumps(told, indent=1), "utf-8")
        return folder

    def others(self, folder: pathlib.Path, names: Sequence[str]) -> pathlib.Path:
        """A folder of links to the images of all other training cases."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, case in self.training.items():
            link = folder / pathlib.Path(case["image"]).name
            if name not in names and not link.is_symlink():
                link.symlink_to(case["image"])
        return folder


def least_sure(
    source: Source, run: PlannedRun, names: Sequence[str], folder: pathlib.Path
) -> list[str]:
    """The other cases in the order of rank.csv, which a run's network predicts.

    Raises:
      UserError: the prediction failed.
    """
    output = folder / "predicted"
    words = [f"--model={run.folder}", f"--input={source.others(folder / 'images', names)}"]
    words += [f"--output={output}", "--uncertainty", "--rank", "--resume"]
    command = [sys.executable, str(PREDICT), *words]
    with open(folder / "predict.log", "a", encoding="utf-8") as log:
        done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        raise errors.UserError(f"{log.name}: the prediction failed; expected what it says there.")
    return [row["image"] for row in spreadsheets.read(output / "rank.csv", ("order", "image"))]


def trained(run: PlannedRun) -> float:
    """Mean DSC in percent of a run, which is trained unless it is finished, on the test cases.

    Raises:
      UserError: the training failed.
    """
    if not run.is_finished and (failed := TRAININGS.train([run])):
        raise errors.UserError(f"{run.folder}: {failed[run]}.")
    summary = json.loads((run.folder / "evaluation" / "summary.json").read_text("utf-8"))
    return float(summary["methods"][LEVEL][STRUCTURE]["metrics"]["DSC_percent"]["mean"])


def loops(source: Source, chosen: AnnotationLoop, seed: int) -> Iterator[dict[str, Any]]:
    """Rows of `COLUMNS` of both loops of a seed, as their networks are finished."""
    folder = pathlib.Path(chosen.work_dir) / f"seed_{seed}"
    drawn = random.Random(seed).sample(sorted(source.training), len(source.training))
    common = {
        "seed": seed,
        "steps": chosen.steps,
        "samples_per_epoch": chosen.steps,
        "learning_rate": chosen.learning_rate,
    }

    def run(name: str, names: Sequence[str], **flags: object) -> PlannedRun:
        data = source.annotated(folder / "data" / name, names)
        return PlannedRun(name, folder / "runs" / name, {**common, "data_dir": data, **flags})

    first = run("first", drawn[: chosen.first])
    score = trained(first)
    for order in (RANKED, DRAWN):
        row = {"order": order, "seed": seed}
        yield {**row, "annotated": chosen.first, "DSC_percent": score}
        names, last = drawn[: chosen.first], first
        for number in range(1, chosen.rounds + 1):
            name = f"{order.replace(' ', '_')}_{number}"
            candidates = drawn[len(names) :]
            if order == RANKED:
                (folder / name).mkdir(parents=True, exist_ok=True)
                candidates = least_sure(source, last, names, folder / name)
            names = [*names, *candidates[: chosen.corrected]]
            last = run(name, names, initial_weights=last.folder)
            yield {**row, "annotated": len(names), "DSC_percent": trained(last)}


def table(rows: Sequence[dict[str, Any]], seeds: Sequence[int]) -> str:
    """A line for each order and number of cases: mean, smallest and largest over seeds, and every
    seed; then the paired differences, by rank less at random."""
    scores: dict[tuple[int, str], dict[int, float]] = {}
    for row in rows:
        scores.setdefault((row["annotated"], row["order"]), {})[row["seed"]] = row["DSC_percent"]
    counts = sorted({count for count, _ in scores})
    lines = {}
    for count in counts[:1]:  # of both loops it is the same network
        lines[f"{count} cases"] = scores[count, RANKED], ""
    for count in counts[1:]:
        for order in (RANKED, DRAWN):
            lines[f"{count} cases, {order}"] = scores[count, order], ""
    for count in counts[1:]:
        ranked, at_random = (scores[count, order] for order in (RANKED, DRAWN))
        gain = {seed: ranked[seed] - at_random[seed] for seed in seeds}
        lines[f"{count} cases, {RANKED} - {DRAWN}"] = gain, "+"
    head = ["DSC (%)", "mean", "range", *(f"seed {seed}" for seed in seeds)]
    told = []
    for name, (of_seeds, sign) in lines.items():
        values = [of_seeds[seed] for seed in seeds]
        mean = sum(values) / len(values)
        spread = f"{min(values):{sign}.2f} to {max(values):{sign}.2f}"
        told.append([name, f"{mean:{sign}.2f}", spread, *(f"{v:{sign}.2f}" for v in values)])
    return pages.table(head, told)


def main(given: Given) -> None:
    """Runs the benchmark."""
    chosen = given.configured(AnnotationLoop)
    source, folder = Source.of(pathlib.Path(chosen.data_dir)), pathlib.Path(chosen.work_dir)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for seed in chosen.seeds:
        for row in loops(source, chosen, seed):
            rows.append(row)
            print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
            spreadsheets.write(folder / "scores.csv", rows, COLUMNS)
    text = table(rows, chosen.seeds)
    with files.replacing(folder / "table.md") as partial:
        partial.write_text(f"{text}\n", "utf-8")
    print(text)


command = Command(main, (AnnotationLoop,), __doc__)

if __name__ == "__main__":
    command()
