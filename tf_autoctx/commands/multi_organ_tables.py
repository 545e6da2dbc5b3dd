"""Tables 1 and 2 of the multi-organ system (Roth et al. 2018): the three modes side by side.

  autoctx-multi-organ-tables --runs=runs/end_to_end,runs/separate,runs/no_context \\
      --output=runs/tables
  autoctx-multi-organ-tables --runs=runs/end_to_end --output=runs/unseen \\
      --other_data=other --label_map=3:1,4:2
  autoctx-multi-organ-tables --seeds=0 --folds=5 --data_dir=my_data --steps=1500 \\
      --runs=runs/organs --output=runs/tables

The first reads what the evaluations of finished runs wrote. The second lets their networks segment
other data without re-training. The third trains what is missing: flags of autoctx-train-multi-organ
are flags of this command and go to every training, a finished run folder RUNS/MODE_seed_SEED, or
with --folds RUNS/MODE_seed_SEED_fold_FOLD, is taken as it is, and what was stopped goes on when the
same command is given again. All write scores.csv, cases.csv, summary.json and table.txt into the
output folder and print the table.

Runs of one mode with other seeds or folds stand together. Five pairs of runs or more are tested
over runs; fewer over the cases of all, which says nothing of other trainings: the table says which.
Cases of other data that trained or validated a run are left out, of all runs of its seed and fold,
with a warning.
"""

from __future__ import annotations

import dataclasses
import operator
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tf_autoctx import native, progress
from tf_autoctx.commands import command_line, planned_runs, train_multi_organ
from tf_autoctx.configuration import check, field
from tf_autoctx.errors import UserError
from tf_autoctx.systems.multi_organ.configuration import DECLARATION

if TYPE_CHECKING:
    import numpy as np

    from tf_autoctx.data import images
    from tf_autoctx.data.datasets import Case, Dataset
    from tf_autoctx.report.tables import Row
    from tf_autoctx.systems.shared.scored_runs import ScoredRun

# Words of a mode, in the table's order.
MODES = {
    "separate": "separate",
    "end_to_end": "end-to-end",
    "no_context": "without context",
}


@dataclasses.dataclass(frozen=True)
class Tables:
    """Tables: which runs are compared, and on which data."""

    runs: tuple[str, ...] = field(
        ..., "Finished run folders of autoctx-train-multi-organ, or with seeds the folder of all."
    )
    output: str = field(..., "Folder for scores.csv, cases.csv, summary.json and table.txt.")
    modes: tuple[str, ...] = field(
        tuple(MODES), f"Modes whose runs are trained with seeds, some of {', '.join(MODES)}."
    )
    other_data: str = field(
        "",
        "Other data to segment without training: a Decathlon or nnU-Net folder, or a CSV file.",
    )
    label_map: dict[int, int] | None = field(
        None,
        "Label values of other_data and the runs' for them, such as 3:1,4:2; others are left out. "
        "By default equal values.",
    )

    def __post_init__(self) -> None:
        check(self)
        planned_runs.require_some("modes", self.modes, MODES)
        if self.label_map and not self.other_data:
            raise UserError(
                "`label_map`: there is no `other_data` whose labels it could map; give both or "
                "neither."
            )


def load(folder: str) -> ScoredRun:
    """The scored run of a folder.

    Raises:
      UserError: it is no finished run of the system.
    """
    from tf_autoctx.systems.shared import scored_runs

    run = scored_runs.load(folder, DECLARATION.name, operator.itemgetter("mode"))
    if run.mode not in MODES:
        raise UserError(
            f"{folder}/config.json: unknown mode {run.mode!r}; expected one of {', '.join(MODES)}."
        )
    return run


# Table 1


def of_their_evaluations(runs: Sequence[ScoredRun], prefixes: Sequence[str]) -> list[Row]:
    """Rows of table 1: every level of every mode.

    Args:
      runs, prefixes: of `scored_runs.in_order`.
    """
    from tf_autoctx.report import repeated

    return [
        repeated.named(prefix, row) | {"method": f"{row['method']}, {MODES[run.mode]}"}
        for run, prefix in zip(runs, prefixes)
        for row in run.rows
    ]


# Table 2


@dataclasses.dataclass(frozen=True)
class OtherData:
    """Labelled cases of another data set, with its labels in the runs' values.

    Attributes:
      source: see `datasets.load`.
      cases: with labels.
      known: {its label value: name}; empty accepts any.
      label_map: {its label value: the runs' value}; other values are background.
    """

    source: str
    cases: Sequence[Case]
    known: Mapping[int, str]
    label_map: Mapping[int, int]

    def read(self, case: Case) -> tuple[images.Image, np.ndarray]:
        """Image, and truth in the runs' values.

        Raises:
          UserError: see `datasets.read_case`.
        """
        import numpy as np

        from tf_autoctx.data import datasets, labels

        image, label = datasets.read_case(case, labels=self.known, merge=False)
        truth = np.zeros_like(label)
        for old, new in self.label_map.items():
            truth[label == old] = new
        if labels.ignored(self.known) is not None:
            truth[label == labels.IGNORED] = labels.IGNORED
        return image, truth


def other_data(
    data_dir: str, label_map: Mapping[int, int] | None, labels: Mapping[int, str]
) -> OtherData:
    """What is segmented of another data set.

    Args:
      data_dir: see `datasets.load`.
      label_map: {its label value: the runs' value}; None: equal values.
      labels: {the runs' value: name}.

    Raises:
      UserError: no case has a label; the map has values that the data or the runs lack; equal
        values have other names.
    """
    from tf_autoctx.data import datasets
    from tf_autoctx.data import labels as label_files

    dataset = datasets.load(data_dir, seed=0, validation_fraction=0, training=False)
    cases = labelled(dataset, data_dir)
    # Each is read before the networks start; a CSV file has no names, there the values that occur
    # are the known ones.
    occurring = values_of(cases, dataset.labels)
    background = (0, label_files.ignored(dataset.labels))
    known = {value: name for value, name in dataset.labels.items() if value not in background}
    theirs = set(known) or occurring
    if label_map is None:
        label_map = equal_values(data_dir, theirs, known, labels)
    sides = (("data", label_map, theirs), ("runs", label_map.values(), set(labels)))
    for side, values, expected in sides:
        if unknown := sorted(set(values) - expected):
            raise UserError(
                f"`label_map`: the {side} do not have the label values {unknown}; expected some of "
                f"{sorted(expected)}."
            )
    return OtherData(data_dir, cases, dataset.labels, label_map)


def labelled(dataset: Dataset, data_dir: str) -> list[Case]:
    """The test cases with a label; where there is none, all other cases, with a warning.

    Raises:
      UserError: no case has a label.
    """
    from absl import logging

    if cases := [case for case in dataset.test if case.label]:
        return cases
    cases = [*dataset.train, *dataset.validation]
    if not cases:
        raise UserError(f"{data_dir}: no case has a label; expected one to score.")
    logging.warning(
        "%s: no test case has a label; the %d other labelled cases are taken.", data_dir, len(cases)
    )
    return cases


def values_of(cases: Sequence[Case], known: Mapping[int, str]) -> set[int]:
    """Label values of the structures that occur in the cases.

    Args:
      cases: with labels.
      known: {label value: name}; empty accepts any.

    Raises:
      UserError: see `datasets.read_case`.
    """
    import numpy as np

    from tf_autoctx.data import datasets, labels

    occurring: set[int] = set()
    for case in cases:
        _, label = datasets.read_case(case, labels=known, merge=False)
        if label is not None:
            occurring |= set(np.unique(label).tolist())
    return occurring - ({0} if labels.ignored(known) is None else {0, labels.IGNORED})


def equal_values(
    data_dir: str, theirs: set[int], known: Mapping[int, str], labels: Mapping[int, str]
) -> dict[int, int]:
    """The label map of values that both have.

    Args:
      data_dir: for messages.
      theirs: label values of the other data.
      known: {such a value: name}; empty where they have no names.
      labels: {the runs' value: name}.

    Raises:
      UserError: there is none, or one with another name.
    """
    both = sorted(theirs & set(labels))
    for value in both:
        if known and known[value].casefold() != labels[value].casefold():
            raise UserError(
                f"{data_dir}: label {value} is {known[value]!r}, in the runs {labels[value]!r}; "
                "give `label_map`."
            )
    if not both:
        raise UserError(
            f"{data_dir}: has the label values {sorted(theirs)}, the runs {sorted(labels)}; give "
            "`label_map`."
        )
    return {value: value for value in both}


def of_other_data(
    runs: Sequence[ScoredRun], prefixes: Sequence[str], other: OtherData
) -> list[Row]:
    """Rows of table 2: the last level of every mode on data that no run of its prefix has seen.

    Args:
      runs, prefixes: of `scored_runs.in_order`.
      other: what is segmented.

    Raises:
      UserError: they have seen all of it; a network or case cannot be read.
    """
    from tf_autoctx.data.labels import left_out
    from tf_autoctx.report import repeated, tables
    from tf_autoctx.systems.shared import seen

    with native.without_noise():
        from tf_autoctx.systems.shared import prediction

    scored = set(other.label_map.values())
    labels = {value: name for value, name in runs[0].run.labels.items() if value in scored}
    unseen: dict[str, list[Case]] = {}
    for name in dict.fromkeys(prefixes):
        compared = [run.run for run, prefix in zip(runs, prefixes) if prefix == name]
        unseen[name] = seen.unseen(other.source, other.cases, compared)
    bar = progress.bar(sum(len(unseen[prefix]) for prefix in prefixes), "case", "scored")
    rows: list[Row] = []
    for run, prefix in zip(runs, prefixes):
        segmentor = prediction.load(run.folder)
        for case in unseen[prefix]:
            image, truth = other.read(case)
            spacing = image.spacing
            label = segmentor(image.array, spacing, case.image)["label"]
            about: dict[str, Any] = {
                "system": DECLARATION.name,
                "method": f"{run.rows[-1]['method']}, {MODES[run.mode]}",
                "case": case.name,
                "group": case.group,
            }
            about, sides = repeated.named(prefix, about), left_out(label, truth, labels)
            rows += [about | score for score in tables.scores(*sides, spacing, labels)]
            bar.add(1)
    return rows


def _require_label_values(runs: Sequence[ScoredRun]) -> None:
    """Raises a `UserError` for runs of regions, which no map of label values joins to other data's
    structures."""
    for run in runs:
        if of_labels := run.run.facts.get("regions"):
            raise UserError(
                f"{run.folder}: its structures are regions ({', '.join(of_labels)}); expected runs "
                "of label values, or predict the other data and use autoctx-score."
            )


def tabulate(settings: Tables, folders: Sequence[str]) -> None:
    """Writes and prints the table of finished runs."""
    from tf_autoctx import files
    from tf_autoctx.report import repeated, tables
    from tf_autoctx.systems.shared import scored_runs

    runs, prefixes = scored_runs.in_order(map(load, folders), MODES)
    files.own(settings.output)
    labels = runs[0].run.labels
    if settings.other_data:
        _require_label_values(runs)
        other = other_data(settings.other_data, settings.label_map, labels)
        rows = of_other_data(runs, prefixes, other)
    else:
        rows = of_their_evaluations(runs, prefixes)
    # Columns in the order of labels, whatever the first case lacks.
    methods, structures = list(dict.fromkeys(row["method"] for row in rows)), list(labels.values())

    def place(row: Row) -> tuple[int, int]:
        return methods.index(row["method"]), structures.index(row["structure"])

    rows.sort(key=place)
    test = repeated.over_runs(rows, scored_runs.overlap_of(run.run for run in runs))
    text = tables.dice_table(rows, test)
    tables.write(settings.output, rows, test=test)
    with files.replacing(pathlib.Path(settings.output) / "table.txt") as path:
        path.write_text(text + "\n", encoding="utf-8")
    print(text)


PLANNED = planned_runs.Methods(
    DECLARATION, train_multi_organ.command, (Tables,), {mode: {"mode": mode} for mode in MODES}
)


def main(given: command_line.Given) -> None:
    """Runs the command."""
    settings = given.configured(Tables)
    with PLANNED.folders(given, settings.modes) as folders:
        tabulate(settings, folders)


command = command_line.Command(main, PLANNED.kinds, __doc__, DECLARATION.presets)
