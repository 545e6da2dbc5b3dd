r"""Table 1 and figure 5b of online rendering (Yang et al. 2018): a whole corpus of another scanner.

  autoctx-renderer-tables --runs=runs/t2t,runs/orig,runs/s2t_sp,runs/s2t_p,runs/renderer \
      --output=tables
  autoctx-renderer-tables --runs=runs/orig,runs/renderer --corpus=my_other_scanner --cases=20 \
      --output=tables

Runs of one variant with other seeds are pooled. Every image is rendered from the trained weights;
the kept iteration, the first (the trained weights as they are) and the best one, which only the
truth can tell, are rows of their own. Images that were scored stay scored: the same command goes on
where it was stopped. Writes scores.csv, cases.csv, summary.json, iterations.csv, table.txt, a curve
per variant and a strip per image.
"""

from __future__ import annotations

import csv
import dataclasses
import operator
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tf_autoctx import configuration, errors, files, spreadsheets
from tf_autoctx.commands import command_line
from tf_autoctx.configuration import field
from tf_autoctx.systems.renderer.configuration import DECLARATION, ITERATIONS, VARIANTS

if TYPE_CHECKING:
    from tf_autoctx.systems.renderer.scoring import ScoredImage, Scorer

COLUMNS = ("DSC", "Conf", "Adb", "Hdb", "Jacc", "precision", "recall")
ORDER = tuple(reversed(VARIANTS))


@dataclasses.dataclass(frozen=True)
class RendererTables:
    """What is scored, and how"""

    runs: tuple[str, ...] = field(..., "Finished run folders of autoctx-train-renderer.")
    output: str = field(..., "Folder for the tables; what is there goes on.")
    corpus: str = field(
        "", "Images of another scanner, with labels. Empty: each run's own phantoms."
    )
    foreground: tuple[int, ...] | None = field(
        None, "Label values that make up the head. By default as in the run.", least=1
    )
    cases: int = field(0, "Images to score, drawn at random; 0: all.", least=0)
    seed: int = field(
        0,
        "Seed of the images that are drawn, and of the source images of online rendering.",
        least=0,
    )
    iterations: int = field(ITERATIONS, "Iterations of online rendering.", least=0)
    pixel_sizes: str = field(
        "",
        "CSV file with the columns name,millimetres_per_pixel, for distances and biometry in mm "
        "too.",
    )

    def __post_init__(self) -> None:
        configuration.check(self)
        if len({pathlib.Path(folder).name for folder in self.runs}) < len(self.runs):
            raise errors.FieldError("runs", self.runs, "expected folders of different names.")


@dataclasses.dataclass(frozen=True)
class ScoredRun:
    """A run and its images.

    Attributes:
      folder: of the run.
      variant: of the run.
      prefix: what makes the names of its cases unique among all runs, such as "seed 1/".
      images: scored.
    """

    folder: str
    variant: str
    prefix: str
    images: list[ScoredImage]


def pixel_sizes(path: str) -> dict[str, float]:
    """{case: mm} of a CSV file; a row without a value says nothing.

    Raises:
      UserError: not such a file.
    """
    if not path:
        return {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = [(row["name"], row["millimetres_per_pixel"]) for row in csv.DictReader(file)]
        return {spreadsheets.unescaped(name): float(mm) for name, mm in rows if mm.strip()}
    except (OSError, KeyError, AttributeError, ValueError) as error:
        raise errors.UserError(
            f"{path}: {error}; expected a CSV file with name,millimetres_per_pixel."
        ) from None


def scorers(settings: RendererTables) -> list[Scorer]:
    """The runs, each ready to score images.

    Raises:
      FieldError: two runs have the same variant and seed.
      UserError: a folder holds no finished run of the system.
    """
    from tf_autoctx.systems.renderer.scoring import Choice, Scorer
    from tf_autoctx.training import runs

    choice = Choice(
        settings.corpus,
        settings.foreground,
        settings.cases,
        settings.seed,
        settings.iterations,
        pixel_sizes(settings.pixel_sizes),
    )
    opened = [runs.load_of(folder, DECLARATION.name) for folder in settings.runs]
    ready = [Scorer(run, choice) for run in opened]
    if len({(scorer.variant, scorer.seed) for scorer in ready}) < len(ready):
        message = "two have the same variant and seed; give one of them."
        raise errors.FieldError("runs", settings.runs, message)
    return ready


def score(ready: list[Scorer], settings: RendererTables) -> list[ScoredRun]:
    """Scores every image by every run, the runs in the order of the table.

    Raises:
      UserError: see `Scorer.score`.
    """
    several = len({scorer.seed for scorer in ready}) > 1
    scored = []
    for folder, scorer in zip(settings.runs, ready):
        print(folder)
        images = scorer.score(pathlib.Path(settings.output))
        prefix = f"seed {scorer.seed}/" if several else ""
        scored.append(ScoredRun(folder, scorer.variant, prefix, images))
    return sorted(scored, key=_place)


def _place(run: ScoredRun) -> int:
    """Of the variant in the table."""
    return ORDER.index(run.variant)


def rows_of(run: ScoredRun) -> list[dict[str, Any]]:
    """Rows of `report.tables` of one run: the kept iteration, and where there are several, the
    first and the best one."""
    rows = []
    for image in run.images:
        chosen = {run.variant: image.scores[image.kept]}
        if len(image.scores) > 1:
            chosen[f"{run.variant}, iteration 0"] = image.scores[0]
            chosen[f"{run.variant}, best iteration"] = max(
                image.scores, key=operator.itemgetter("DSC_percent")
            )
        about = {"case": run.prefix + image.case, "group": image.group, "structure": "head"}
        rows += [
            {"system": DECLARATION.name, "method": method, **about, **scores}
            for method, scores in chosen.items()
        ]
    return rows


def pairs_of(methods: Sequence[str]) -> list[tuple[str, str]]:
    """What is compared: every variant with those before it in the table, and with its own
    iteration 0."""
    kept = [method for method in methods if method in ORDER]
    pairs = [(new, old) for i, new in enumerate(kept) for old in kept[:i]]
    first = {method: f"{method}, iteration 0" for method in kept}
    return pairs + [(method, first[method]) for method in kept if first[method] in methods]


def write_iterations(path: pathlib.Path, scored: Iterable[ScoredRun]) -> None:
    """Writes DSC and agreement of every iteration as a CSV file."""
    columns = ("run", "variant", "case", "iteration", "DSC_percent", "agreement")
    lines = []
    for run in scored:
        for image in run.images:
            about = run.folder, run.variant, run.prefix + image.case
            for number, (scores, agreement) in enumerate(zip(image.scores, image.agreement)):
                values = (*about, number, scores["DSC_percent"], agreement)
                lines.append(dict(zip(columns, values)))
    spreadsheets.write(path, lines, columns)


def draw_gains(directory: pathlib.Path, scored: Sequence[ScoredRun]) -> None:
    """Draws the change of DSC over the iterations, a figure per variant that renders online (figure
    5b)."""
    from tf_autoctx.report import figures

    curves: Mapping[str, list[list[float]]] = {run.variant: [] for run in scored}
    for run in scored:
        if len(run.images[0].scores) > 1:
            curves[run.variant].extend(
                [scores["DSC_percent"] for scores in image.scores] for image in run.images
            )
    for variant, of_variant in curves.items():
        if of_variant:
            figures.gains(directory / f"gains_{variant}.png", of_variant, variant)


def main(given: command_line.Given) -> None:
    """Runs the command."""
    settings = given.configured(RendererTables)
    from tf_autoctx.report import tables

    output, ready = pathlib.Path(settings.output), scorers(settings)
    files.own(output)
    scored = score(ready, settings)
    rows = [row for run in scored for row in rows_of(run)]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    rows = [row for method in methods for row in rows if row["method"] == method]
    pairs = pairs_of(methods)
    tables.write(output, rows, pairs)
    write_iterations(output / "iterations.csv", scored)
    draw_gains(output, scored)
    text = tables.table(rows, COLUMNS, pairs)
    with files.replacing(output / "table.txt") as path:
        path.write_text(text + "\n", encoding="utf-8")
    print(text)


command = command_line.Command(main, (RendererTables,), __doc__)
