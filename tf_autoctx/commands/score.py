"""Scores a folder of label images against the ground truth of the same names, per structure.

  autoctx-score --predictions=results --labels=labels --output=scores
  autoctx-score --predictions=results --labels=labels --output=scores --names=runs/abdomen
  autoctx-score --predictions=results --labels=labels --output=scores --merge --fill_holes

Every label value but 0 is a structure of its own; --merge makes one object of all of them, or of
those of --foreground. Their names are those of --names: 1:liver,2:spleen, or a dataset.json, a
model_card.json, a run's config.json, or the folder of one. Without it, they are looked for in the
dataset.json in the folder of the labels or the one above, then in the model_card.json, config.json
or dataset.json in the folder of the predictions or the one above; else a value is "label 1". Voxels
that the names call "ignore" do not count. Where these files tell regions, of several label values
each, a region is scored on the voxels of all its values; those of a card or config.json come first.

Folders below are read too, and cases are called as those of a data set. Of what the predict command
writes, masks/, probabilities/, uncertainty/, strips/ and iterations/ are no predictions and are
left out.

The last example scores the predictions as they are and with their holes filled, side by side.
Several cases are scored at a time. Writes scores.csv (a line per method, case, structure and
metric), cases.csv and summary.json into the output folder, which compare and report take beside a
run's own evaluation, and prints the table. A case that cannot be scored is left out and listed,
with its reason, in failed.csv, and the exit code is 1. The files of an earlier scoring go.

Several processes share the cases, as a job array does, where each is told its part; the last one to
end writes the files, which are those of one process:
  autoctx-score --predictions=results --labels=labels --output=scores --num_parts=8 --part_id=0
"""

from __future__ import annotations

import dataclasses
import json
import math
import operator
import pathlib
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tf_autoctx import configuration, errors, files
from tf_autoctx.commands import command_line, structure_names
from tf_autoctx.configuration import field
from tf_autoctx.parts import Output, Parts

if TYPE_CHECKING:
    import numpy as np

    from tf_autoctx.commands.structure_names import StructureNames

MOST_VALUES = 1000  # of a label image; an atlas of the brain has some hundred
OBJECT = "object"  # what --merge makes, where no single name tells
OF_PART = "scored.json"  # the scores of a part


@dataclasses.dataclass(frozen=True)
class Score:
    """What is scored, and how"""

    predictions: str = field(..., "Folder of label images to score, with all folders below it.")
    labels: str = field(..., "Folder of ground-truth label images with the same names.")
    output: str = field(..., "Folder for scores.csv, cases.csv, summary.json and failed.csv.")
    names: str | None = field(
        None,
        "What label values are called: 1:liver,2:spleen, or a dataset.json, a model card, a run "
        "folder. Default: such a file beside the labels or the predictions.",
    )
    foreground: tuple[int, ...] | None = field(
        None, "Label values to score, such as 1,2. Default: every one but 0.", least=1
    )
    merge: bool = field(False, "Score the union of all these values as one object.")
    largest_component: bool = field(False, "Also score the largest component of every label value.")
    fill_holes: bool = field(False, "Also score the predictions with their holes filled.")
    surface_tolerance: float | None = field(
        None,
        "Also score the surface Dice (NSD): the share of both boundaries that lies at most so many "
        "mm from the other. Images without mm have none.",
        least=0.0,
    )
    workers: int | None = field(
        None, "Cases that are scored at a time. Default: one per CPU.", least=1
    )

    def __post_init__(self) -> None:
        configuration.check(self)

    @property
    def steps(self) -> dict[str, bool]:
        """Arguments of `postprocessing.postprocess`; empty for predictions as they are alone."""
        steps = {"largest_component": self.largest_component, "fill_holes": self.fill_holes}
        return {name: wanted for name, wanted in steps.items() if wanted}

    @property
    def methods(self) -> list[str]:
        """Names of what is scored, in the order of `score`."""
        name = pathlib.Path(self.predictions).resolve().name
        return [name, ", ".join([name, *self.steps]).replace("_", " ")] if self.steps else [name]


@dataclasses.dataclass(frozen=True)
class Scored:
    """The scores of a case.

    Attributes:
      methods: {label value: scores} of every method.
      is_mask: whether 255 stood for the object of a mask.
    """

    methods: list[dict[int, dict[str, Any]]]
    is_mask: bool


def score(prediction_path: str, label_path: str, settings: Score, names: StructureNames) -> Scored:
    """Scores of a prediction as it is, and post-processed.

    It runs in a process of its own.

    Args:
      prediction_path, label_path: of label images.
      settings: of the command; merged values have the value 1.
      names: of the label values.

    Raises:
      UserError: a file cannot be read or is no label image; the two do not lie on the same grid.
    """
    import numpy as np

    from tf_autoctx.report import tables

    pair = _read(prediction_path, label_path, settings, names)
    # Of what --merge makes one object there is one label value.
    regions = {} if settings.merge else names.regions
    outside = pair.truth == (names.ignored or -1)
    truth, *predictions = _labels(pair, settings)
    methods = []
    for prediction in predictions:
        prediction, known = (np.where(outside, 0, label) for label in (prediction, truth))
        values = regions or np.setdiff1d(np.union1d(prediction, known), 0).tolist()
        # What these are called is known once all cases are: until then, by their values.
        called = {value: str(value) for value in values}
        how = None, settings.surface_tolerance, regions
        rows = tables.scores(prediction, known, pair.spacing, called, *how)
        methods.append({int(row.pop("structure")): row for row in rows})
    return Scored(methods, pair.is_mask)


@dataclasses.dataclass(frozen=True)
class _Pair:
    """A prediction and its truth, labels of one shape.

    Attributes:
      prediction, truth: label values.
      spacing: in mm, in array order; None: unknown.
      is_mask: whether 255 stood for the object of a mask, which is now that of `names.single`.
    """

    prediction: np.ndarray
    truth: np.ndarray
    spacing: tuple[float, ...] | None
    is_mask: bool


def _read(prediction_path: str, label_path: str, settings: Score, names: StructureNames) -> _Pair:
    """Reads a case. The object of a mask may be 1 in one file and 255 in the other: see `score`."""
    import numpy as np

    from tf_autoctx.data import images, labels, segments

    single = names.single is not None and names.ignored is None
    called = dict(names.labels)
    if names.ignored is not None:
        called[names.ignored] = labels.IGNORE

    def read(path: str, of: images.Image | None = None) -> tuple[images.Image, np.ndarray]:
        # Values of the foreground stay as they are: both files together tell whether 255 is 1.
        image, label = labels.read(
            *(path, None),
            foreground=labels.MASKS,
            truth=path == label_path,
            single=single,
            names=called,
            of=of,
        )
        _require_labels(path, label, settings, names)
        return image, label

    # A segmentation may be of a part of the grid, which the other file tells.
    if segments.is_one(prediction_path) and not segments.is_one(label_path):
        theirs, truth = read(label_path)
        ours, prediction = read(prediction_path, theirs)
    else:
        ours, prediction = read(prediction_path)
        theirs, truth = read(label_path, ours)
    images.require_same_grid(ours, theirs)
    arrays = [prediction, truth]
    objects = [set(np.unique(label).tolist()) - {0} for label in arrays]
    spoken_for = {names.single, *(settings.foreground or ())}
    is_mask = (
        names.single in labels.MASKS
        and names.ignored is None
        and all(len(values) < 2 and values <= set(labels.MASKS) for values in objects)
        and not objects[0] | objects[1] <= spoken_for
    )
    if is_mask:
        arrays = [(label > 0) * np.uint8(names.single or 0) for label in arrays]
    prediction, truth = arrays
    return _Pair(prediction, truth, ours.millimetres or theirs.millimetres, is_mask)


def _labels(pair: _Pair, settings: Score) -> list[np.ndarray]:
    """The truth, and the prediction of every method: of the values that count, merged if wanted."""
    import numpy as np

    from tf_autoctx import postprocessing

    truth, prediction = pair.truth, pair.prediction
    if settings.foreground:
        truth, prediction = (
            np.where(np.isin(label, settings.foreground), label, 0) for label in (truth, prediction)
        )
    every = [truth, prediction]
    if settings.steps:
        every.append(postprocessing.postprocess(prediction, **settings.steps))
    return [(label != 0).astype(np.uint8) for label in every] if settings.merge else every


def _require_labels(path: str, label: np.ndarray, settings: Score, names: StructureNames) -> None:
    """Raises a `UserError` for a picture in place of labels, such as a mask with smooth edges.

    In 2D that is several values that nobody named; a volume is scored with all of its values,
    unless there are far too many.
    """
    import numpy as np

    values = np.setdiff1d(label, 0).tolist()
    if len(values) > MOST_VALUES:
        raise errors.UserError(
            f"{path}: has {len(values)} label values; expected a label image of {MOST_VALUES} at "
            "most."
        )
    known = {*names.values, names.ignored}
    unknown = [value for value in values if value not in known]
    if unknown and names.regions and not settings.merge:
        raise errors.UserError(
            f"{path}: has the label values {unknown[:5]}, which no region of {names.source} has; "
            "expected those of regions, or `merge`."
        )
    if label.ndim == 3 or len(values) < 2 or not unknown or settings.foreground:
        return
    shown = ", ".join(map(str, unknown[:5])) + ", ..." * (len(unknown) > 5)
    raise errors.UserError(
        f"{path}: has the label values {shown}, which nobody named; expected a mask, or give "
        "`names` such as 1:skull,2:brain, or `foreground`."
    )


def pairs(settings: Score) -> dict[str, tuple[str, str]]:
    """{name of a case: (path of the prediction, path of the label)}.

    Cases are called as those of a data set, as in the evaluation of a run.

    Raises:
      UserError: a folder cannot be read, or holds a file that the other does not.
    """
    from tf_autoctx.data import names

    predictions = names.find(settings.predictions, below=True, skip=names.BESIDE_LABELS)
    labels = names.find(settings.labels, below=True)
    paths = list(names.pairs(predictions, labels).values())
    cases = names.of_data_set([prediction for prediction, _ in paths])
    return dict(sorted(zip(cases, paths, strict=True)))


def labels_of(scored: Collection[Scored], names: StructureNames, settings: Score) -> dict[int, str]:
    """{label value: name} of what occurs in any case, ascending; what has no name gets a warning.

    Raises:
      UserError: nothing occurs at all, or no truth has a value of the foreground.
    """
    from absl import logging

    from tf_autoctx import metrics

    every = [item for case in scored for rows in case.methods for item in rows.items()]
    in_truth = {value for value, row in every if row[metrics.size_of(row).truth]}
    wanted = settings.foreground
    if not in_truth and wanted:
        listed = ",".join(map(str, wanted))
        raise errors.UserError(
            f"{settings.labels}: no voxel has a value of `foreground={listed}`; name one that "
            "occurs."
        )
    if not every:
        raise errors.UserError(
            f"{settings.labels}: every voxel is background, as in the predictions; expected a "
            "structure to score."
        )
    if settings.merge:
        single = list(names.labels.values())
        return {1: single[0] if len(single) == 1 else OBJECT}
    values = sorted({value for value, _ in every})
    if names.regions:
        return {value: name for value, name in names.labels.items() if value in values}
    if not names.labels and values != [1] and any(case.is_mask for case in scored):
        raise errors.UserError(
            f"{settings.labels}: 255 is the object of masks in some files, others have the values "
            f"{', '.join(map(str, values))}; expected one kind, or `names` of all values."
        )
    if nameless := [value for value in values if value not in names.labels and names.labels]:
        logging.warning(
            "%s names no label %s, which occurs and is scored as %s; --foreground leaves it out, "
            "--merge makes one object of all.",
            names.source,
            ", ".join(map(str, nameless)),
            ", ".join(map(names.of, nameless)),
        )
    return {value: names.of(value) for value in values}


def rows_of(
    scored: Mapping[str, Scored], labels: Mapping[int, str], system: str, methods: Sequence[str]
) -> list[dict[str, Any]]:
    """Rows of `report.tables`: method by method, structure by structure, case by case."""
    about = {"system": system, "group": ""}
    return [
        {
            **about,
            "method": method,
            "case": case,
            "structure": structure,
            **of_case.methods[number][value],
        }
        for number, method in enumerate(methods)
        for value, structure in labels.items()
        for case, of_case in scored.items()
        if value in of_case.methods[number]
    ]


def score_all(
    cases: Mapping[str, tuple[str, str]], settings: Score, names: StructureNames
) -> tuple[dict[str, Scored], dict[str, str]]:
    """Scores several cases at a time.

    Args:
      cases: see `pairs`.
      settings, names: see `score`.

    Returns:
      ({case: its scores}, {case that cannot be scored: reason}), both in the order of the cases.
    """
    from tf_autoctx.data import isolation

    scored: dict[str, Scored] = {}
    failed: dict[str, str] = {}
    tasks = {name: (*paths, settings, names) for name, paths in cases.items()}
    workers = min(settings.workers or isolation.cpus(), len(tasks))
    with isolation.Pool(workers) as pool:
        for number, (name, outcome) in enumerate(pool.map(score, tasks.items()), start=1):
            if isinstance(outcome, Scored):
                scored[name], told = outcome, _told(outcome.methods[-1])
            else:
                failed[name], told = str(errors.sentence(outcome)), "not scored"
            print(_printable(f"{number}/{len(tasks)} {name}: {told}"), flush=True)
    return _in_order(cases, scored, failed)


def _told(rows: Mapping[int, Mapping[str, Any]]) -> str:
    """The DSC of a case: of its structure, or the mean of those that its truth has."""
    import numpy as np

    dice = [row["DSC_percent"] for row in rows.values() if np.isfinite(row["DSC_percent"])]
    if not dice:
        return "no structure"
    return f"{'mean ' * (len(dice) > 1)}DSC {np.mean(dice):.2f} %"


def _printable(text: str) -> str:
    """Text with the bytes of names that are no text in letters."""
    return text.encode(errors="backslashreplace").decode()


def main(given: command_line.Given) -> None:
    """Runs the command."""
    settings, parts = given.configured(Score), given.configured(Parts)
    cases, place = pairs(settings), Output(settings.output, "score", parts)
    unsure = uncertainties(cases, settings)
    names = names_of(settings)
    place.begin()
    mine = parts.of(cases)
    scored, failed = score_all(mine, settings, names)
    if place.divided:
        note(place.tables, scored, failed)
    decisive = dataclasses.asdict(settings) | {"output": None, "workers": None}
    with place.ended([decisive, dataclasses.asdict(names), [*cases]]) as ended:
        if ended:
            if place.divided:
                mine = cases
                scored, failed = joined(cases, ended)
            write(place.folder, scored, failed, unsure, settings, names)
    if failed:
        for reason in failed.values():
            print(f"error: {reason}", file=sys.stderr)
        raise errors.UserError(
            f"{place.folder / 'failed.csv'}: {len(failed)} of {len(mine)} cases are not scored; "
            "expected readable label images on the grid of their truth."
        )


def write(
    output: pathlib.Path,
    scored: Mapping[str, Scored],
    failed: Mapping[str, str],
    unsure: Mapping[str, float],
    settings: Score,
    names: StructureNames,
) -> None:
    """Writes the tables of all cases, and prints them.

    Args:
      output: folder of the tables.
      scored, failed: see `score_all`.
      unsure: see `uncertainties`.
      settings, names: see `score`.
    """
    from tf_autoctx.report import tables

    rows = []
    if scored:
        labels = labels_of(scored.values(), names, settings)
        rows = rows_of(scored, labels, names.system, settings.methods)
        note_uncertainty(rows, unsure, settings)
    tables.write(output, rows, failures=failed)
    if rows:
        print("\n" + tables.table(rows))


def note(folder: pathlib.Path, scored: Mapping[str, Scored], failed: Mapping[str, str]) -> None:
    """Writes the scores of a part into its folder, numbers to the last digit."""
    of_cases = {
        case: {
            "methods": [[[value, row] for value, row in rows.items()] for rows in of_case.methods],
            "is_mask": of_case.is_mask,
        }
        for case, of_case in scored.items()
    }
    told = {"scored": of_cases, "failed": dict(failed)}
    with files.replacing(folder / OF_PART) as partial:
        partial.write_text(json.dumps(told, default=operator.methodcaller("item")))


def joined(
    cases: Collection[str], folders: Sequence[pathlib.Path]
) -> tuple[dict[str, Scored], dict[str, str]]:
    """What `score_all` would have made of all cases, of what parts noted in their folders."""
    scored: dict[str, Scored] = {}
    failed: dict[str, str] = {}
    for folder in folders:
        told = files.read_json(folder / OF_PART, "the scores of a part")
        failed |= told["failed"]
        for case, of_case in told["scored"].items():
            methods = [dict(rows) for rows in of_case["methods"]]
            scored[case] = Scored(methods, of_case["is_mask"])
    return _in_order(cases, scored, failed)


def _in_order(
    cases: Collection[str], scored: Mapping[str, Scored], failed: Mapping[str, str]
) -> tuple[dict[str, Scored], dict[str, str]]:
    """The scores and the failures, both in the order of the cases."""
    in_order = {name: scored[name] for name in cases if name in scored}
    return in_order, {name: failed[name] for name in cases if name in failed}


def uncertainties(cases: Mapping[str, tuple[str, str]], settings: Score) -> dict[str, float]:
    """{case: mean uncertainty of its object, in percent} that `autoctx-predict` left beside the
    predictions; empty where it left none.

    Raises:
      UserError: its table cannot be read.
    """
    from tf_autoctx.data import names
    from tf_autoctx.systems.shared import results

    folder = pathlib.Path(settings.predictions)
    known = results.uncertainties(folder)
    images = {
        case: (pathlib.Path(file).parent.relative_to(folder) / names.stem(file)).as_posix()
        for case, (file, _) in cases.items()
    }
    return {case: 100 * known.get(image, math.nan) for case, image in images.items() if known}


def note_uncertainty(
    rows: Sequence[dict[str, Any]], unsure: Mapping[str, float], settings: Score
) -> None:
    """Adds the uncertainty to the rows of predictions as they are, and says how it goes with the
    DSC. It is of all structures together: where there are several, of none of them."""
    from tf_autoctx import metrics

    as_predicted = [row for row in rows if row["method"] == settings.methods[0]]
    if not unsure or settings.foreground or len({row["structure"] for row in rows}) > 1:
        return
    for row in as_predicted:
        row["uncertainty_percent"] = unsure[row["case"]]
    columns = (
        [row[name] for row in as_predicted] for name in ("uncertainty_percent", "DSC_percent")
    )
    told = metrics.rank_correlation(*columns)
    if math.isfinite(told["rho"]):
        print(
            f"uncertainty and DSC: Spearman's rho {told['rho']:.2f}, p = {told['p']:.4f}, "
            f"n = {told['n']}"
        )


def names_of(settings: Score) -> StructureNames:
    """The names of the label values, see the command's help.

    Raises:
      UserError: see `structure_names`; regions, and label values that are wanted of them.
    """
    if settings.names:
        names = structure_names.given(settings.names)
    else:
        folders = pathlib.Path(settings.labels), pathlib.Path(settings.predictions)
        names = structure_names.beside(*folders)
        if names.source:
            print(f"names of structures: {names.source}")
    told = f"the structures of {names.source} are regions of several label values; leave it out."
    for name in ("foreground", "largest_component", "fill_holes"):
        if names.regions and not settings.merge and (value := getattr(settings, name)):
            raise errors.FieldError(name, value, told)
    return names


command = command_line.Command(main, (Score, Parts), __doc__)
