"""Finished runs on a corpus of another scanner: scores of every iteration of online rendering.

Each image is rendered from the trained weights. An image that was scored stays scored.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from tf_autoctx import biometry, files, metrics, progress
from tf_autoctx.data import datasets, image_files, phantoms
from tf_autoctx.data.configuration import Augmentation
from tf_autoctx.data.labels import left_out
from tf_autoctx.errors import UserError
from tf_autoctx.files import replacing
from tf_autoctx.report import figures
from tf_autoctx.systems.renderer import online, training
from tf_autoctx.systems.renderer.configuration import Appearance, Phantoms
from tf_autoctx.systems.renderer.online import Iteration
from tf_autoctx.systems.renderer.system import RendererSystem
from tf_autoctx.systems.shared import seen
from tf_autoctx.systems.shared.system import Reader
from tf_autoctx.training.runs import Run

Scores = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Choice:
    """Which images are scored, and how.

    Attributes:
      corpus: data set with labels; empty takes each run's own phantoms of a target.
      target: of the phantoms, "near" or "far"; None takes that of the run.
      foreground: label values that make up the head; None takes those of the run.
      cases: how many images are drawn at random; 0: all.
      seed: of the images that are drawn.
      iterations: of online rendering.
      options: {name: value} of `Online` in place of the run's.
      pixel_sizes: {case: mm}.
    """

    corpus: str
    target: str | None
    foreground: Sequence[int] | None
    cases: int
    seed: int
    iterations: int
    options: Mapping[str, Any]
    pixel_sizes: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class ScoredImage:
    """An image, with what every iteration made of it.

    Attributes:
      case, group: of the image.
      kept: number of the iteration that is kept.
      scores, agreement: of every iteration, from 0.
    """

    case: str
    group: str
    kept: int
    scores: list[Scores]
    agreement: list[float]


class Scorer:
    """A finished run that renders and scores images.

    Args:
      run: its folder.
      choice: which images, and how.

    Attributes:
      run: its folder.
      variant: of the run.
      augmented: whether it learnt from images that were changed at random.
      seed: of the run.

    Raises:
      UserError: the run is not finished, or config.json lacks something.
    """

    def __init__(self, run: Run, choice: Choice) -> None:
        self.run, self._choice = run, choice
        self._system = RendererSystem.of_run(run)
        configuration = self._system.configuration
        self.variant: str = configuration.variant
        changed = run.configured(Appearance).appearance_strength > 0
        self.augmented = changed or run.configured(Augmentation) != Augmentation()
        try:
            self.seed, self._foreground = run.flags["seed"], run.flags["foreground"]
        except KeyError as error:
            raise run.broken(error) from None
        self._before, self._after = training.of_raw(self._system.rendering)
        self._online: online.OnlineRendering | None = None
        if configuration.renders and choice.iterations:
            self._online = online.of_run(
                self._system.rendering, run, choice.iterations, options=choice.options
            )
        else:
            self._outputs = training.graph(self._system.rendering, self._system.finished(run))

    def _render(self, image: Any, seed: int) -> tuple[list[Iteration], int]:
        """A preprocessed image at every iteration, and the number of the kept one."""
        if self._online:
            iterations = self._online(image, seed=seed)
            return iterations, self._online.kept(iterations)
        outputs = self._outputs(image[None])
        rendered, probability = (outputs[key][0].numpy() for key in ("rendered", "probability"))
        return [Iteration(rendered, probability, 1.0)], 0

    def score(
        self, output: pathlib.Path, seeds: Sequence[int], compared: Sequence[Run]
    ) -> dict[int, list[ScoredImage]]:
        """Scores every image once and for all, unless something that decides it has changed.

        Args:
          output: gets cases/RUN/online_seed_SEED/CASE.json, strips/RUN/CASE.png of the first seed,
            and phantoms/RUN where the run has none of the target.
          seeds: of the source images of online rendering; a run that does not render has the first.
          compared: the runs that are scored on the same images, itself among them.

        Returns:
          {seed: images}.

        Raises:
          UserError: no image with a label that is new to the runs; an image cannot be read.
        """
        cases, read = self._corpus(output / "phantoms" / self.run.folder.name, compared)
        seeds = seeds if self._online else seeds[:1]
        scored: dict[int, list[ScoredImage]] = {seed: [] for seed in seeds}
        bar = progress.bar(len(cases) * len(seeds), "image", "rendered and scored")
        for seed in seeds:
            made_with = self._made_with(seed)
            for case in cases:
                name = f"{self.run.folder.name}/online_seed_{seed}/{case.name}.json"
                file = output / "cases" / name
                settings = made_with | {
                    "files": [image_files.digest(case.image), image_files.digest(case.label)],
                    "series": case.series,
                    "mm": self._choice.pixel_sizes.get(case.name),
                }
                if not file.exists() or json.loads(file.read_text())["settings"] != settings:
                    strip = output / "strips" / self.run.folder.name / f"{case.name}.png"
                    scores = self._score_case(case, read, seed, strip if seed == seeds[0] else None)
                    with replacing(file) as path:
                        path.write_text(json.dumps({"settings": settings, **scores}))
                entry = json.loads(file.read_text())
                values = (entry[name] for name in ("kept", "scores", "agreement"))
                scored[seed].append(ScoredImage(case.name, case.group, *values))
                bar.add(1)
        return scored

    def _made_with(self, seed: int) -> dict[str, Any]:
        """What decides the scores of an image, beside its files."""
        foreground = self._choice.foreground
        flags = {
            "iterations": self._choice.iterations,
            "online_seed": seed,
            "foreground": None if foreground is None else list(foreground),
        }
        if self._online:
            flags |= dataclasses.asdict(self._online.chosen)
        networks = sorted((self.run.folder / "networks").iterdir())
        return {"networks": [files.digest(path) for path in networks], "flags": flags}

    def _phantoms(self, folder: pathlib.Path) -> pathlib.Path:
        """The run's own phantoms of the target: in its folder, or in another one, where they are
        made.

        Raises:
          UserError: it was not trained on phantoms, or as a run of the target on another one.
        """
        chosen = self.run.configured(Phantoms)
        target, own = self._choice.target or chosen.phantom_target, self.run.folder / "phantoms"
        if not own.exists():
            raise UserError(
                f"{self.run.folder}: was not trained on phantoms; expected the `corpus` to score."
            )
        if self.variant == "Orig-T2T" and target != chosen.phantom_target:
            raise UserError(
                f"{self.run.folder}: was trained on the {chosen.phantom_target} scanner; expected "
                f"a run of {self.variant} that was trained with `phantom_target={target}`."
            )
        if (own / phantoms.HEADS_2D[target][0]).exists():
            folder = own
        size, cases = chosen.phantom_size, chosen.phantom_cases
        return phantoms.write_fetal_heads_2d(folder, target, size, cases, self.seed)

    def _corpus(
        self, own: pathlib.Path, compared: Sequence[Run]
    ) -> tuple[list[datasets.Case], Reader]:
        """The images to score and how they are read: test cases with a label, or all cases where
        there are none, that are new to the compared runs; `own` is for phantoms."""
        choice = self._choice
        source = choice.corpus or self._phantoms(own)
        corpus = datasets.load(source, choice.seed, validation_fraction=0, training=False)
        cases = [case for case in corpus.test if case.label]
        if unlabelled := len(corpus.test) - len(cases):
            logging.warning(
                "%s: %d test images have no label and are not scored.", source, unlabelled
            )
        cases = cases or [*corpus.train, *corpus.validation]
        if not cases:
            raise UserError(f"{source}: holds no image with a label; expected some to score.")
        cases = seen.unseen(str(source), cases, compared)
        if choice.cases and choice.cases < len(cases):
            rng = np.random.default_rng(choice.seed)
            drawn = rng.choice(len(cases), choice.cases, replace=False)
            cases = [cases[number] for number in sorted(drawn)]
        return cases, self._system.reader(choice.foreground or self._foreground, corpus.labels)

    def _score_case(
        self, case: datasets.Case, read: Reader, seed: int, strip: pathlib.Path | None
    ) -> dict[str, Any]:
        """{"kept", "scores", "agreement"} of a case, see `ScoredImage`; writes its strip."""
        image, label = read(case)
        assert label is not None, "only cases with a label are scored"
        truth = left_out(label, label)[1]
        pixels = image.array.astype(np.float32)
        iterations, kept = self._render(self._before(pixels[None, ..., None])[0], seed)
        shown = []
        for iteration in iterations:
            outputs = self._after(iteration.outputs(), pixels.shape)
            shown.append({name: np.asarray(x)[0, ..., 0] for name, x in outputs.items()})
        mm = self._choice.pixel_sizes.get(case.name)
        spacing = (mm, mm) if mm else image.millimetres
        if strip:
            figures.strip(strip, pixels, shown, kept, case.name, truth=truth)
        return {
            "kept": kept,
            "scores": [
                _scores(left_out(output["label"], label)[0], truth, spacing) for output in shown
            ],
            "agreement": [iteration.agreement for iteration in iterations],
        }


def _scores(label: np.ndarray, truth: np.ndarray, spacing: Sequence[float] | None) -> Scores:
    """Scores in pixels, and where the spacing is known, scores and biometry in mm too."""
    scores = metrics.compare(label, truth)
    if spacing:
        scores |= metrics.compare(label, truth, spacing) | biometry.compare(label, truth, spacing)
    return scores
