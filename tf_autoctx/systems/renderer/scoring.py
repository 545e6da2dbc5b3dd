"""Finished runs on a corpus of another scanner: scores of every iteration of online rendering.

Each image is rendered from the trained weights. An image that was scored stays scored.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from absl import logging

from tf_autoctx import biometry, files, metrics
from tf_autoctx.data import datasets, image_files
from tf_autoctx.data.labels import left_out
from tf_autoctx.errors import UserError
from tf_autoctx.files import replacing
from tf_autoctx.report import figures
from tf_autoctx.systems.renderer import online, training
from tf_autoctx.systems.renderer.online import Iteration
from tf_autoctx.systems.renderer.system import RendererSystem
from tf_autoctx.systems.shared.system import Reader
from tf_autoctx.training.runs import Run

Scores = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Choice:
    """Which images are scored, and how.

    Attributes:
      corpus: data set with labels; empty takes each run's own phantoms of the target.
      foreground: label values that make up the head; None takes those of the run.
      cases: how many images are drawn at random; 0: all.
      seed: of the images that are drawn, and of the source images of online rendering.
      iterations: of online rendering.
      pixel_sizes: {case: mm}.
    """

    corpus: str
    foreground: Sequence[int] | None
    cases: int
    seed: int
    iterations: int
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
      seed: of the run.

    Raises:
      UserError: the run is not finished, or config.json lacks something.
    """

    def __init__(self, run: Run, choice: Choice) -> None:
        self.run, self._choice = run, choice
        self._system = RendererSystem.of_run(run)
        configuration = self._system.configuration
        self.variant: str = configuration.variant
        try:
            self.seed, self._foreground = run.flags["seed"], run.flags["foreground"]
        except KeyError as error:
            raise run.broken(error) from None
        self._before, self._after = training.of_raw(self._system.rendering)
        self._render: Callable[[Any], list[Iteration]]
        if configuration.renders and choice.iterations:
            self._render = online.of_run(
                self._system.rendering, run, choice.iterations, choice.seed
            )
        else:
            self._render = self._once
            self._outputs = training.graph(self._system.rendering, self._system.finished(run))

    def _once(self, image: Any) -> list[Iteration]:
        """A preprocessed image by the trained weights as they are."""
        outputs = self._outputs(image[None])
        return [Iteration(outputs["rendered"][0].numpy(), outputs["probability"][0].numpy(), 1.0)]

    def score(self, output: pathlib.Path) -> list[ScoredImage]:
        """Scores every image once and for all, unless something that decides it has changed.

        Args:
          output: gets cases/RUN/CASE.json and strips/RUN/CASE.png.

        Raises:
          UserError: no image with a label; an image cannot be read.
        """
        cases, read = self._corpus()
        networks = sorted((self.run.folder / "networks").iterdir())
        foreground = self._choice.foreground
        made_with = {
            "networks": [files.digest(path) for path in networks],
            "flags": {
                "iterations": self._choice.iterations,
                "seed": self._choice.seed,
                "foreground": None if foreground is None else list(foreground),
            },
        }
        scored, progress = [], keras.utils.Progbar(len(cases), unit_name="image")
        for case in cases:
            file = output / "cases" / self.run.folder.name / f"{case.name}.json"
            settings = made_with | {
                "files": [image_files.digest(case.image), image_files.digest(case.label)],
                "series": case.series,
                "mm": self._choice.pixel_sizes.get(case.name),
            }
            if not file.exists() or json.loads(file.read_text())["settings"] != settings:
                strip = output / "strips" / self.run.folder.name / f"{case.name}.png"
                entry = {"settings": settings, **self._score_case(case, read, strip)}
                with replacing(file) as path:
                    path.write_text(json.dumps(entry))
            entry = json.loads(file.read_text())
            values = (entry[name] for name in ("kept", "scores", "agreement"))
            scored.append(ScoredImage(case.name, case.group, *values))
            progress.add(1)
        return scored

    def _corpus(self) -> tuple[list[datasets.Case], Reader]:
        """The images to score and how they are read: test cases with a label, or all cases where
        there are none."""
        choice = self._choice
        source = choice.corpus or self.run.folder / "phantoms" / "target"
        corpus = datasets.load(source, choice.seed, validation_fraction=0, training=False)
        cases = [case for case in corpus.test if case.label]
        if unlabelled := len(corpus.test) - len(cases):
            logging.warning(
                "%s: %d test images have no label and are not scored.", source, unlabelled
            )
        if not cases:
            cases = [*corpus.train, *corpus.validation]
            if datasets.fingerprint(corpus) == self.run.fingerprint:
                logging.warning(
                    "%s: these images trained %s; the scores flatter.", source, self.run.folder
                )
        if not cases:
            raise UserError(f"{source}: holds no image with a label; expected some to score.")
        if choice.cases and choice.cases < len(cases):
            rng = np.random.default_rng(choice.seed)
            drawn = rng.choice(len(cases), choice.cases, replace=False)
            cases = [cases[number] for number in sorted(drawn)]
        return cases, self._system.reader(choice.foreground or self._foreground, corpus.labels)

    def _score_case(self, case: datasets.Case, read: Reader, strip: pathlib.Path) -> dict[str, Any]:
        """{"kept", "scores", "agreement"} of a case, see `ScoredImage`; writes its strip."""
        image, label = read(case)
        assert label is not None, "only cases with a label are scored"
        truth = left_out(label, label)[1]
        pixels = image.array.astype(np.float32)
        iterations = self._render(self._before(pixels[None, ..., None])[0])
        kept = online.kept(iterations)
        shown = []
        for iteration in iterations:
            outputs = self._after(iteration.outputs(), pixels.shape)
            shown.append({name: np.asarray(x)[0, ..., 0] for name, x in outputs.items()})
        mm = self._choice.pixel_sizes.get(case.name)
        spacing = (mm, mm) if mm else image.millimetres
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
