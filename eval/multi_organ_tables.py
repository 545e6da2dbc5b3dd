"""Tables 1 and 2 of the multi-organ system (Roth et al. 2018) from finished runs: the three modes side by side.

  python eval/multi_organ_tables.py --runs=runs/end_to_end,runs/separate,runs/no_context --output=runs/tables
  python eval/multi_organ_tables.py --runs=runs/end_to_end --output=runs/unseen --data_dir=other --label_map=3:1,4:2

The first reads what the runs' evaluations wrote. The second lets their networks segment other data without
re-training. Both write scores.csv, cases.csv, summary.json and table.txt into the output folder and print the table.

Runs of one mode with other seeds are pooled. Where the seeds share their scans, a scan counts once a seed, and p values
and intervals look surer than they are.
"""

import pathlib

import keras
import numpy as np
from absl import app, flags, logging

from tf_autoctx import errors, files, flag_types, report
from tf_autoctx.data import datasets, images
from tf_autoctx.systems import evaluation, multi_organ, prediction, scored_runs

MODES = {
    "separate": "separate",
    "end_to_end": "end-to-end",
    "no_context": "without context",
}  # in the table's order

FLAGS = flags.FLAGS
flags.DEFINE_list("runs", None, "Finished run folders of train_multi_organ.py.", required=True)
flags.register_validator("runs", bool, "expected at least one run folder")
flags.DEFINE_string(
    "output", None, "Folder for scores.csv, cases.csv, summary.json and table.txt.", required=True
)
flags.DEFINE_string(
    "data_dir",
    "",
    "Other data to segment without training: a Decathlon or nnU-Net folder, or a CSV.",
)
flag_types.define_label_map(
    "label_map",
    "Label values of --data_dir and the runs' for them, such as 3:1,4:2; others are left out. Default: equal values.",
)


def load(folder):
    """`scored_runs.Run` of a folder; UserError unless it is a finished run of the system."""
    run = scored_runs.load(folder, multi_organ.NAME, lambda given: given["mode"])
    if run.mode not in MODES:
        raise errors.UserError(
            f"{folder}/config.json: unknown mode {run.mode!r}; expected one of {', '.join(MODES)}."
        )
    return run


def of_their_evaluations(found, prefixes):
    """Rows of table 1: every level of every mode."""
    return [
        row | {"method": f"{row['method']}, {MODES[run.mode]}", "case": f"{prefix}/{row['case']}"}
        for run, prefix in zip(found, prefixes)
        for row in run.rows
    ]


def other_data(data_dir, label_map, labels):
    """What there is to segment in another data set.

    Args:
      data_dir: see `datasets.load`.
      label_map: {its label value: the runs' value} or None for equal values.
      labels: {the runs' value: name}.

    Returns:
      (cases with labels, read, {name: value} of the structures to score); `read` is `datasets.read_case` with the truth
      in the runs' values.

    Raises:
      UserError: no case has a label; the map has values that the data or the runs lack; equal values have other names.
    """
    dataset = datasets.load(data_dir, seed=0, validation_fraction=0, training=False)
    cases = [case for case in dataset.test if case.label]
    if not cases:
        cases = [*dataset.train, *dataset.validation]
        if not cases:
            raise errors.UserError(f"{data_dir}: no case has a label; expected one to score.")
        logging.warning(
            "%s: no test case has a label; all %d labelled cases are segmented.",
            data_dir,
            len(cases),
        )

    # Each is read before the networks start; a CSV has no names, there the values that occur are the known ones.
    known = {value: name for value, name in dataset.labels.items() if value}
    occurring = set()
    for case in cases:
        occurring |= set(
            np.unique(datasets.read_case(case, labels=dataset.labels, merge=False)[1]).tolist()
        )
    theirs = set(known) or occurring - {0}
    if label_map is None:
        label_map = {value: value for value in sorted(theirs & set(labels))}
        for value in label_map:
            if known and known[value].casefold() != labels[value].casefold():
                raise errors.UserError(
                    f"{data_dir}: label {value} is {known[value]!r}, in the runs {labels[value]!r}; give --label_map."
                )
        if not label_map:
            raise errors.UserError(
                f"{data_dir}: has the label values {sorted(theirs)}, the runs {sorted(labels)}; give --label_map."
            )
    for side, values, expected in (
        ("data", label_map, theirs),
        ("runs", label_map.values(), set(labels)),
    ):
        if unknown := sorted(set(values) - expected):
            raise errors.UserError(
                f"--label_map: the {side} do not have the label values {unknown}; expected some of {sorted(expected)}."
            )

    def read(case):
        image, label = datasets.read_case(case, labels=dataset.labels, merge=False)
        truth = np.zeros_like(label)
        for old, new in label_map.items():
            truth[label == old] = new
        return image, truth

    return (
        cases,
        read,
        {name: value for value, name in labels.items() if value in label_map.values()},
    )


def of_other_data(found, prefixes, cases, read, structures):
    """Rows of table 2: the last level of every mode on data that no run has seen."""
    rows, progress = [], keras.utils.Progbar(len(found) * len(cases), unit_name="case")
    for run, prefix in zip(found, prefixes):
        segment = prediction.segmentor(run.folder)
        for case in cases:
            image, truth = read(case)
            spacing = images.spacing(image)
            label = segment(images.array(image), spacing, case.image)["label"]
            about = {
                "system": multi_organ.NAME,
                "method": f"{run.rows[-1]['method']}, {MODES[run.mode]}",
                "case": f"{prefix}/{case.name}",
                "group": case.group,
            }
            rows += [
                about | score for score in evaluation.scores(label, truth, spacing, structures)
            ]
            progress.add(1)
    return rows


def main(_):
    if FLAGS.label_map and not FLAGS.data_dir:
        raise errors.UserError(
            "--label_map: there is no --data_dir whose labels it could map; give both or neither."
        )
    found, prefixes = scored_runs.in_order(map(load, FLAGS.runs), MODES)
    if FLAGS.data_dir:
        other = other_data(FLAGS.data_dir, FLAGS.label_map, found[0].labels)
        rows = of_other_data(found, prefixes, *other)
    else:
        rows = of_their_evaluations(found, prefixes)
    # Columns in the order of labels, whatever the first case lacks.
    methods, structures = (
        list(dict.fromkeys(row["method"] for row in rows)),
        list(found[0].labels.values()),
    )
    rows.sort(key=lambda row: (methods.index(row["method"]), structures.index(row["structure"])))
    text = report.dice_table(rows)
    report.write(rows, FLAGS.output)
    with files.replacing(pathlib.Path(FLAGS.output) / "table.txt") as path:
        path.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    app.run(errors.in_one_sentence(main))
