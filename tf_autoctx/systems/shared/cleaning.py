"""Which steps of the post-processing a finished run keeps, and how they are applied: the largest
component and filled holes, for each structure where the run's validation cases gain by it.

The rule is nnU-Net's (Isensee et al. 2021) for every structure by itself; filled holes are ours.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from tf_autoctx import metrics, progress
from tf_autoctx.data import datasets
from tf_autoctx.data.labels import left_out
from tf_autoctx.errors import UserError
from tf_autoctx.files import read_json, replacing
from tf_autoctx.systems.shared import components
from tf_autoctx.systems.shared.reading import Read
from tf_autoctx.systems.shared.system import Evaluator, Function, Predictor, Size, Wanted
from tf_autoctx.training.runs import Run

Tensor = Any
Relabel = Callable[[dict[str, Any], Tensor], dict[str, Any]]  # see `System.relabelled`
FLAG, AUTO, FILE = "postprocessing", "auto", "postprocessing.json"
ANEW = "run the training command again, which decides it anew"
STEPS = {"largest_component": "largest component", "fill_holes": "filled holes"}


@dataclasses.dataclass(frozen=True)
class Cleaning:
    """The steps of the post-processing that labels go through, the first one first.

    Attributes:
      largest_component: label values of the structures of which the largest component alone is
        kept.
      fill_holes: those of the structures whose holes are filled.
    """

    largest_component: tuple[int, ...] = ()
    fill_holes: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.largest_component or self.fill_holes)

    def label(self, label: Tensor) -> Tensor:
        """A label (batch, *spatial, 1) uint8 that went through the steps."""
        return components.postprocess(label, self.largest_component, self.fill_holes)

    def graph(self, dimensions: int) -> Callable[[Tensor], Tensor]:
        """`label` as one graph for images of so many spatial axes and of any size."""
        spec = tf.TensorSpec((None,) * (dimensions + 1) + (1,), tf.uint8)
        return tf.function(self.label, input_signature=[spec], autograph=False)

    def after(self, function: Function, relabel: Relabel) -> Function:
        """A function of images, see `System.signatures`, whose label goes through the steps."""

        def cleaned(image: Tensor, size: Size | None = None) -> dict[str, Tensor]:
            outputs = function(image, size)
            return relabel(outputs, self.label(outputs["label"]))

        return cleaned


NOTHING = Cleaning()


def common(cleanings: Sequence[Cleaning]) -> Cleaning:
    """What several runs keep, all of them."""

    def of_all(step: str) -> tuple[int, ...]:
        kept = (set(getattr(cleaning, step)) for cleaning in cleanings)
        return tuple(sorted(set.intersection(*kept)))

    return Cleaning(**{step: of_all(step) for step in STEPS})


# How it is applied


class Cleaned:
    """A `Predictor` whose labels go through the steps, those of iterations too.

    Args:
      predictor: of a system.
      cleaning: the steps.
      relabel: see `System.relabelled`.
      dimensions: of the images.
    """

    def __init__(
        self, predictor: Predictor, cleaning: Cleaning, relabel: Relabel, dimensions: int
    ) -> None:
        self.iterations, self.is_unsure = predictor.iterations, predictor.is_unsure
        self._predictor, self._relabel = predictor, relabel
        self._clean = cleaning.graph(dimensions)

    def __call__(
        self, image: np.ndarray, spacing: Sequence[float] | None, wanted: Wanted
    ) -> dict[str, Any]:
        output = self._predictor(image, spacing, wanted)
        cleaned = self._cleaned(output)
        if "iterations" in output:
            cleaned["iterations"] = [self._cleaned(each) for each in output["iterations"]]
        return cleaned

    def _cleaned(self, output: dict[str, Any]) -> dict[str, Any]:
        return self._relabel(output, self._clean(output["label"]))


class CleanedToo:
    """An evaluator with one method more, the last, which is served: the label of the last one that
    went through the steps.

    Args:
      evaluator: of the networks as they are.
      cleaning: the steps.
      dimensions: of the images.
    """

    def __init__(self, evaluator: Evaluator, cleaning: Cleaning, dimensions: int) -> None:
        self._evaluator, self._clean = evaluator, _of_array(cleaning, dimensions)

    def __call__(
        self, voxels: np.ndarray, spacing: Sequence[float] | None
    ) -> dict[str, dict[str, Any]]:
        segmentations = self._evaluator(voxels, spacing)
        name, last = list(segmentations.items())[-1]
        label = self._clean(np.asarray(last["label"]))
        return {**segmentations, f"{name}, postprocessed": {**last, "label": label}}


def _of_array(cleaning: Cleaning, dimensions: int) -> Callable[[np.ndarray], np.ndarray]:
    """The steps for a label (*spatial) uint8."""
    graph = cleaning.graph(dimensions)

    def clean(label: np.ndarray) -> np.ndarray:
        return graph(label[None, ..., None]).numpy()[0, ..., 0]

    return clean


# How it is decided


@dataclasses.dataclass(frozen=True)
class Decision:
    """What the validation cases of a run say.

    Attributes:
      cleaning: the steps that are kept.
      cases: how many there were.
      dice: {structure: {step: [mean DSC in percent without it, with it]}}, over the cases whose
        truth has the structure; one that none of them has is not there, and keeps no step.
    """

    cleaning: Cleaning
    cases: int
    dice: Mapping[str, Mapping[str, Sequence[float]]]

    def words(self) -> str:
        """What is kept, and what it gains."""
        if not self.cases:
            return "no validation case decides the post-processing; labels stay as they are made"
        told = []
        for step, called in STEPS.items():
            gains = [
                f"{name} (DSC {before:.2f} to {after:.2f} %)"
                for name, steps in self.dice.items()
                for before, after in [steps[step]]
                if after > before
            ]
            told.append(f"{called} of {', '.join(gains) or 'none'}")
        cases = f"{self.cases} validation case{'s' * (self.cases > 1)}"
        return f"post-processing kept by {cases}: {'; '.join(told)}"


def decide(
    cases: Sequence[datasets.Case],
    read: Read,
    evaluator: Evaluator,
    labels: Mapping[int, str],
    dimensions: int,
) -> Decision:
    """Keeps each step of each structure where the mean DSC of some cases is larger with it.

    The largest component is decided first; filled holes are, of the label that it leaves. Holes of
    all structures are filled together meanwhile: where one lies inside another, the inner one gets
    them.

    Args:
      cases: that validate, with labels.
      read: reads one.
      evaluator: segments it; the last of its methods counts.
      labels: {label value: name} of the structures.
      dimensions: of the images.

    Raises:
      UserError: whatever `read` raises.
    """
    scores: dict[int, list[list[float]]] = {value: [] for value in labels}
    values = tuple(labels)
    largest = _of_array(Cleaning(values), dimensions)
    filled = _of_array(Cleaning((), values), dimensions)
    bar = progress.bar(len(cases), "case", "post-processed")
    for case in cases:
        image, truth = read(case)
        segmentations = evaluator(image.array.astype(np.float32), image.millimetres)
        label = np.asarray(list(segmentations.values())[-1]["label"])
        alone = largest(label)
        variants = [label, alone, filled(label), filled(alone)]
        for value, dice in _dice(variants, truth, labels).items():
            scores[value].append(dice)
        bar.add(1)
    return _kept(scores, labels, len(cases))


def _dice(
    variants: Sequence[np.ndarray], truth: np.ndarray, labels: Mapping[int, str]
) -> dict[int, list[float]]:
    """{value of a structure that the truth has: DSC of each variant of a label}."""
    counted = [left_out(variant, truth, labels) for variant in variants]
    return {
        value: [metrics.dice(mask == value, true == value) for mask, true in counted]
        for value in labels
        if (counted[0][1] == value).any()
    }


def _kept(
    scores: Mapping[int, Sequence[Sequence[float]]], labels: Mapping[int, str], cases: int
) -> Decision:
    """What the scores of `_dice` decide: {structure: for each case that of the label as it is, of
    its largest components, with its holes filled, with both}."""
    kept: dict[str, list[int]] = {step: [] for step in STEPS}
    dice = {}
    for value, of_cases in scores.items():
        if not of_cases:
            continue
        plain, largest, filled, both = (float(x) for x in 100 * np.mean(of_cases, axis=0))
        pairs = {
            "largest_component": [plain, largest],
            "fill_holes": [largest, both] if largest > plain else [plain, filled],
        }
        for step, (before, after) in pairs.items():
            kept[step] += [value] * (after > before)
        dice[labels[value]] = pairs
    cleaning = Cleaning(**{step: tuple(sorted(values)) for step, values in kept.items()})
    return Decision(cleaning, cases, dice)


# What a run folder keeps of it


def of_run(run: Run) -> Cleaning:
    """The steps that a run keeps; none where it was trained without, and with a warning where it
    has not been decided yet.

    Raises:
      UserError: the record is damaged.
    """
    told = record(run)
    if told is None:
        return NOTHING
    try:
        kept = {step: tuple(map(int, told[step])) for step in STEPS}
        if not {value for values in kept.values() for value in values} <= set(run.labels):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"{run.folder / FILE}: not a record of the post-processing; {ANEW}."
        ) from None
    return Cleaning(**kept)


def record(run: Run) -> dict[str, Any] | None:
    """The record of the decision, as `note` writes it; None: there is none.

    Raises:
      UserError: it is no JSON.
    """
    if run.flags.get(FLAG) != AUTO or run.facts.get("regions"):
        return None  # of regions, of which a label shows one a voxel, nothing is decided
    path = run.folder / FILE
    try:
        told = read_json(path, f"a record of the post-processing; {ANEW}")
    except FileNotFoundError:
        logging.warning(
            "%s: is not there, so that labels are those of the networks; %s.",
            path,
            ANEW,
        )
        return None
    return dict(told) if isinstance(told, dict) else {}


def note(folder: pathlib.Path, decision: Decision) -> None:
    """Records a decision in a run folder."""
    facts = {
        **dataclasses.asdict(decision.cleaning),
        "validation": {"cases": decision.cases, "DSC_percent": decision.dice},
    }
    with replacing(folder / FILE) as path:
        path.write_text(json.dumps(facts, indent=1) + "\n")


def forget(folder: pathlib.Path) -> None:
    """Removes the record of a run folder, as one of its networks is another from now on."""
    (folder / FILE).unlink(missing_ok=True)
