r"""Table 1 and figure 5b of online rendering (Yang et al. 2018): a whole corpus of another scanner.

  autoctx-renderer-tables --runs=runs/t2t,runs/orig,runs/s2t_sp,runs/s2t_p,runs/renderer \
      --output=tables
  autoctx-renderer-tables --runs=runs/orig,runs/renderer --corpus=my_other_scanner --cases=20 \
      --output=tables
  autoctx-renderer-tables --seeds=0,1,2,3,4 --variants=Orig-S2T,Orig-S2T-augmented,S2T \
      --data_dir=my_scanner --corpus=my_other_scanner --runs=runs/renderers --output=tables

The last trains what is missing: flags of autoctx-train-renderer are flags of this command and go to
every training, a finished run folder RUNS/VARIANT_seed_SEED is taken as it is, and what was stopped
goes on when the same command is given again.

Images that trained or validated a run are left out, of all runs of its seed, with a warning. Every
other one is rendered from the trained weights; the kept iteration, the first (the trained weights
as they are), the fifth, the last and the best one, which only the truth can tell, are rows of their
own. Runs of one variant with other seeds stand together, and are compared by seed: what differs is
tested over runs, not over images. With several --online_seed the spread over the source images that
online rendering draws is told too; all else is of the first. Flags of online rendering take the
place of those of the runs; --beside shows the curves of another folder of tables, such as those by
other flags. Images that were scored stay scored: the same command goes on where it was stopped.

Writes scores.csv, cases.csv, summary.json, runs.csv, iterations.csv, table.txt, curves.png, the
gains of every variant and a strip per image, and for several seeds over_runs.csv.
"""

from __future__ import annotations

import collections
import csv
import dataclasses
import operator
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tf_autoctx import configuration, errors, files, native, spreadsheets
from tf_autoctx.commands import command_line, planned_runs, train_renderer
from tf_autoctx.configuration import field
from tf_autoctx.systems.renderer.configuration import (
    DECLARATION,
    ITERATIONS,
    TARGETS,
    VARIANTS,
    Online,
)

if TYPE_CHECKING:
    from tf_autoctx.systems.renderer.scoring import ScoredImage, Scorer

COLUMNS = ("DSC", "Conf", "Adb", "Hdb", "Jacc", "precision", "recall")
AUGMENTED = ", augmented"  # what a user would do instead: a row of its own
ORDER = tuple(name for variant in reversed(VARIANTS) for name in (variant, variant + AUGMENTED))
# {variant as a flag has it: {flag: value} of its runs}
TRAINED: dict[str, planned_runs.Flags] = {
    **{variant: {"variant": variant} for variant in reversed(VARIANTS)},
    "Orig-S2T-augmented": {"variant": "Orig-S2T", "appearance_strength": 1.0},
}
SHOWN = 5  # the iteration by which most renderings settle (section 3)
OnlineChanges = configuration.optional(
    "OnlineChanges", __name__, "Online rendering, in place of what the runs have", Online
)
ONE_TRAINING = "one training of each variant: p is of its images, and says nothing of others"
ITERATION_COLUMNS = (
    "run",
    "variant",
    "case",
    "online_seed",
    "iteration",
    "DSC_percent",
    "agreement",
)


@dataclasses.dataclass(frozen=True)
class RendererTables:
    """What is scored, and how"""

    runs: tuple[str, ...] = field(
        ..., "Finished run folders of autoctx-train-renderer, or with seeds the folder of all."
    )
    output: str = field(..., "Folder for the tables; what is there goes on.")
    variants: tuple[str, ...] = field(
        tuple(TRAINED),
        f"Variants whose runs are trained with seeds, some of {', '.join(TRAINED)}.",
    )
    corpus: str = field(
        "", "Images of another scanner, with labels. Empty: each run's own phantoms."
    )
    phantom_target: str | None = field(
        None, "The other scanner of the phantoms. By default as in the run.", choices=TARGETS
    )
    foreground: tuple[int, ...] | None = field(
        None, "Label values that make up the head. By default as in the run.", least=1
    )
    cases: int = field(0, "Images to score, drawn at random; 0: all.", least=0)
    seed: int = field(0, "Seed of the images that are drawn.", least=0)
    online_seed: tuple[int, ...] = field(
        (0,), "Seeds of the source images that online rendering draws, such as 0,1,2.", least=0
    )
    iterations: int = field(ITERATIONS, "Iterations of online rendering.", least=0)
    pixel_sizes: str = field(
        "",
        "CSV file with the columns name,millimetres_per_pixel, for distances and biometry in mm "
        "too.",
    )
    beside: str = field("", "Folder of other tables, whose curves are drawn beside, dashed.")

    def __post_init__(self) -> None:
        configuration.check(self)
        planned_runs.require_some("variants", self.variants, TRAINED)
        if len({pathlib.Path(folder).name for folder in self.runs}) < len(self.runs):
            raise errors.FieldError("runs", self.runs, "expected folders of different names.")


@dataclasses.dataclass(frozen=True)
class ScoredRun:
    """A run and its images.

    Attributes:
      folder: of the run.
      method: its row in the table.
      seed: of the run.
      prefix: what makes names of its cases and groups unique among all runs, such as "seed 1/".
      scored: {online seed: images}.
    """

    folder: str
    method: str
    seed: int
    prefix: str
    scored: dict[int, list[ScoredImage]]

    @property
    def images(self) -> list[ScoredImage]:
        """Those of the first online seed."""
        return next(iter(self.scored.values()))


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


def scorers(
    settings: RendererTables, folders: Sequence[str], options: Mapping[str, Any]
) -> list[Scorer]:
    """The runs, each ready to score images.

    Raises:
      FieldError: two runs have the same variant and seed.
      UserError: a folder holds no finished run of the system.
    """
    with native.without_noise():
        from tf_autoctx.systems.renderer.scoring import Choice, Scorer
    from tf_autoctx.training import runs

    choice = Choice(
        corpus=settings.corpus,
        target=settings.phantom_target,
        foreground=settings.foreground,
        cases=settings.cases,
        seed=settings.seed,
        iterations=settings.iterations,
        options=options,
        pixel_sizes=pixel_sizes(settings.pixel_sizes),
    )
    opened = [runs.load_of(folder, DECLARATION.name) for folder in folders]
    ready = [Scorer(run, choice) for run in opened]
    if len({(method_of(scorer), scorer.seed) for scorer in ready}) < len(ready):
        message = "two have the same variant and seed; give one of them."
        raise errors.FieldError("runs", folders, message)
    return ready


def method_of(scorer: Scorer) -> str:
    """The row of a run in the table."""
    return scorer.variant + (AUGMENTED if scorer.augmented else "")


def score(ready: list[Scorer], settings: RendererTables) -> list[ScoredRun]:
    """Scores every image by every run, the runs in the order of the table.

    Raises:
      UserError: see `Scorer.score`.
    """
    several = len({scorer.seed for scorer in ready}) > 1
    runs = []
    for scorer in ready:
        folder = str(scorer.run.folder)
        print(folder)
        compared = [other.run for other in ready if other.seed == scorer.seed]
        scored = scorer.score(pathlib.Path(settings.output), settings.online_seed, compared)
        prefix = f"seed {scorer.seed}/" if several else ""
        runs.append(ScoredRun(folder, method_of(scorer), scorer.seed, prefix, scored))
    return sorted(runs, key=_place)


def _place(run: ScoredRun) -> tuple[int, int]:
    """Of a run in the table."""
    return ORDER.index(run.method), run.seed


def chosen_scores(method: str, image: ScoredImage) -> dict[str, dict[str, float]]:
    """{row of the table: scores} of an image: the kept iteration, and where there are several, some
    of a fixed number and the best one."""
    chosen, last = {method: image.scores[image.kept]}, len(image.scores) - 1
    if last:
        for number in sorted({0, min(SHOWN, last), last}):
            chosen[f"{method}, iteration {number}"] = image.scores[number]
        best = max(image.scores, key=operator.itemgetter("DSC_percent"))
        chosen[f"{method}, best iteration"] = best
    return chosen


def rows_of(run: ScoredRun) -> list[dict[str, Any]]:
    """Rows of `report.tables` of one run."""
    rows = []
    for image in run.images:
        names = {"case": run.prefix + image.case, "group": run.prefix + image.group}
        about = {**names, "structure": "head"}
        rows += [
            {"system": DECLARATION.name, "method": method, **about, **scores}
            for method, scores in chosen_scores(run.method, image).items()
        ]
    return rows


def pairs_of(methods: Sequence[str], iterations: int) -> list[tuple[str, str]]:
    """What is compared: every variant with those before it in the table, and, kept and at the last
    iteration, with its own iteration 0."""
    kept = [method for method in methods if method in ORDER]
    pairs = [(new, old) for i, new in enumerate(kept) for old in kept[:i]]
    for method in kept:
        first, last = (f"{method}, iteration {number}" for number in (0, iterations))
        if first in methods and iterations:
            pairs += [(method, first), (last, first)]
    return pairs


def by_seed(scored: Iterable[ScoredRun]) -> dict[str, dict[int, dict[str, float]]]:
    """Scores of `report.repeated`: {row of the table: {seed: {case: DSC}}}."""
    scores: dict[str, dict[int, dict[str, float]]] = {}
    for run in scored:
        for image in run.images:
            for method, of_image in chosen_scores(run.method, image).items():
                cases = scores.setdefault(method, {}).setdefault(run.seed, {})
                cases[image.case] = of_image["DSC_percent"]
    return scores


def spread_of_seeds(scored: Iterable[ScoredRun]) -> list[str]:
    """Sentences on how far the online seeds lie apart, one for each variant that has several."""
    import numpy as np

    of_method: dict[str, list[np.ndarray]] = collections.defaultdict(list)
    for run in scored:
        if len(run.scored) > 1:
            kept = [[i.scores[i.kept]["DSC_percent"] for i in of] for of in run.scored.values()]
            of_method[run.method].append(np.array(kept))  # (seeds, images)
    told = []
    for method, runs in of_method.items():
        of_run = [float(kept.mean(axis=1).std(ddof=1)) for kept in runs]
        of_image = float(np.mean([kept.std(axis=0, ddof=1).mean() for kept in runs]))
        told.append(
            f"{method}: SD over {len(runs[0])} online seeds {np.mean(of_run):.2f} points for the "
            f"mean of a run (at most {max(of_run):.2f}), {of_image:.2f} for an image"
        )
    return told


def iteration_lines(scored: Iterable[ScoredRun]) -> list[dict[str, Any]]:
    """Lines of iterations.csv: DSC and agreement of every iteration."""
    lines = []
    for run in scored:
        for seed, images in run.scored.items():
            for image in images:
                about = run.folder, run.method, run.prefix + image.case, seed
                for number, (scores, agreement) in enumerate(zip(image.scores, image.agreement)):
                    values = (*about, number, scores["DSC_percent"], agreement)
                    lines.append(dict(zip(ITERATION_COLUMNS, values)))
    return lines


def run_lines(scored: Iterable[ScoredRun]) -> list[dict[str, Any]]:
    """Lines of runs.csv: the mean DSC of every run, online seed and row of the table."""
    lines = []
    for run in scored:
        for seed, images in run.scored.items():
            totals: dict[str, float] = collections.defaultdict(float)
            for image in images:
                for method, scores in chosen_scores(run.method, image).items():
                    totals[method] += scores["DSC_percent"] / len(images)
            about = {"run": run.folder, "seed": run.seed, "online_seed": seed}
            lines += [
                {**about, "method": method, "images": len(images), "DSC_percent": mean}
                for method, mean in totals.items()
            ]
    return lines


def curves_of(lines: Iterable[Mapping[str, Any]]) -> dict[str, list[list[float]]]:
    """{variant: [mean DSC at every iteration, of every run]} of lines of iterations.csv, by the
    first online seed of each run."""
    first: dict[str, str] = {}
    values: dict[str, dict[str, dict[int, list[float]]]] = {}
    for line in lines:
        seed = str(line.get("online_seed"))
        if first.setdefault(line["run"], seed) == seed:
            of_run = values.setdefault(line["variant"], {}).setdefault(line["run"], {})
            of_run.setdefault(int(line["iteration"]), []).append(float(line["DSC_percent"]))
    return {
        method: [[sum(dsc) / len(dsc) for _, dsc in sorted(run.items())] for run in runs.values()]
        for method, runs in values.items()
    }


def read_iterations(folder: str) -> list[dict[str, str]]:
    """Lines of the iterations.csv of a folder of tables; none without a folder.

    Raises:
      FieldError: it has no such file.
    """
    if not folder:
        return []
    try:
        with open(
            pathlib.Path(folder) / "iterations.csv", newline="", encoding="utf-8-sig"
        ) as file:
            return [
                {column: spreadsheets.unescaped(cell) for column, cell in line.items()}
                for line in csv.DictReader(file)
            ]
    except OSError as error:
        message = f"has no iterations.csv ({error.strerror}); expected a folder of such tables."
        raise errors.FieldError("beside", folder, message) from None


def draw(directory: pathlib.Path, scored: Sequence[ScoredRun], beside: str) -> None:
    """Draws the curve of every variant in one picture, and for each that renders online the change
    of DSC of every image (figure 5b)."""
    from tf_autoctx.report import figures

    others = curves_of(read_iterations(beside))
    title = "online rendering of another scanner's images"
    own = curves_of(iteration_lines(scored))
    figures.curves(directory / "curves.png", own, others, title)
    images: dict[str, list[list[float]]] = {}
    for run in scored:
        if len(run.images[0].scores) > 1:
            images.setdefault(run.method, []).extend(
                [scores["DSC_percent"] for scores in image.scores] for image in run.images
            )
    for method, of_method in images.items():
        figures.gains(directory / f"gains_{method}.png", of_method, method)


def told_over_runs(
    scored: Sequence[ScoredRun], settings: RendererTables, overlap: float
) -> list[str]:
    """What the table tells below its rows where variants were trained several times, see
    `repeated.compare`; writes the comparisons as over_runs.csv too."""
    from tf_autoctx.report import repeated

    scores = by_seed(scored)
    pairs = pairs_of(list(scores), settings.iterations)
    tests = repeated.compare(scores, pairs, bool(settings.corpus), overlap)
    columns = ("method", "against", "mean_difference", "ci_low", "ci_high", "p", "p_holm", "n")
    spreadsheets.write(pathlib.Path(settings.output) / "over_runs.csv", tests, columns)
    told = ["", repeated.table(scores), repeated.NOTE, *repeated.sentences(tests)]
    if {"Orig-S2T", "Orig-T2T"} <= scores.keys():
        trained_on_source = (name for name in scores if name in ORDER and "T2T" not in name)
        rendered = [name for name in trained_on_source if name != "Orig-S2T"]
        told += repeated.won_back(scores, rendered, "Orig-S2T", "Orig-T2T")
    return told


def tabulate(settings: RendererTables, folders: Sequence[str], options: Mapping[str, Any]) -> None:
    """Scores finished runs, and writes and prints their table.

    Args:
      settings: of the table.
      folders: of the runs.
      options: {flag: value} of online rendering in place of what the runs have.
    """
    from tf_autoctx.report import repeated, tables
    from tf_autoctx.systems.shared import scored_runs

    output, ready = pathlib.Path(settings.output), scorers(settings, folders, options)
    files.own(output)
    scored = score(ready, settings)
    rows = [row for run in scored for row in rows_of(run)]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    rows = [row for method in methods for row in rows if row["method"] == method]
    # Images of several trainings are no independent pairs.
    several = len({run.seed for run in scored}) > 1
    pairs = [] if several else pairs_of(methods, settings.iterations)
    overlap = scored_runs.overlap_of(scorer.run for scorer in ready)
    tables.write(output, rows, pairs, test=repeated.over_runs(rows, overlap) if several else None)
    spreadsheets.write(output / "iterations.csv", iteration_lines(scored), ITERATION_COLUMNS)
    of_runs = run_lines(scored)
    spreadsheets.write(output / "runs.csv", of_runs, tuple(of_runs[0]))
    draw(output, scored, settings.beside)
    told = [tables.table(rows, COLUMNS, pairs), *spread_of_seeds(scored)]
    if several:
        told += told_over_runs(scored, settings, overlap)
    else:
        told.append(ONE_TRAINING)
    text = "\n".join(told)
    with files.replacing(output / "table.txt") as path:
        path.write_text(text + "\n", encoding="utf-8")
    print(text)


PLANNED = planned_runs.Methods(
    DECLARATION, train_renderer.command, (RendererTables, OnlineChanges), TRAINED
)


def main(given: command_line.Given) -> None:
    """Runs the command."""
    settings = given.configured(RendererTables)
    names = configuration.rules(OnlineChanges)
    options = {name: given[name] for name in names if given[name] is not None}
    read_iterations(settings.beside)
    if given["seeds"] is not None and given["folds"]:
        message = "runs are told apart by their seeds alone; expected `seeds` without folds."
        raise errors.FieldError("folds", given["folds"], message)
    with PLANNED.folders(given, settings.variants) as folders:
        tabulate(settings, folders, options)


command = command_line.Command(main, PLANNED.kinds, __doc__, DECLARATION.presets)
