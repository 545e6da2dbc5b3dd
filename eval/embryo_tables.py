"""Table 1 of the embryo system (Xu et al. 2020) from finished runs: Dice scores, and times measured here and now.

  python eval/embryo_tables.py --runs=runs/embryo,runs/embryo_no_context --sliding_windows=runs/sliding_windows \
      --output=runs/embryo_tables

Scores are those of the runs' own evaluations; runs of one mode with other seeds are pooled, as in
multi_organ_tables.py. For the times, the first run of every mode segments the same held-out volumes in float32, as its
evaluation did. Writes scores.csv, cases.csv, summary.json, times.json and table.txt into the output folder and prints
the table.
"""

import functools
import json
import pathlib
import time

import numpy as np
from absl import app, flags

from tf_autoctx import errors, files, report
from tf_autoctx.data import datasets, images
from tf_autoctx.systems import embryo, evaluation, refinement, scored_runs, sliding_windows, stages
from tf_autoctx.training import runs

# {mode: {stage whose scores a row shows: its name in the table}}, in the table's order
MODES = {
    "sliding windows": {sliding_windows.METHOD: sliding_windows.METHOD},
    "without auto-context": {"initial": "initial", "refine": "without auto-context"},
    "with auto-context": {
        "initial": "initial",
        "refine": "with auto-context",
        "end_to_end": "end-to-end",
    },
}
METHODS = (
    sliding_windows.METHOD,
    "initial",
    "without auto-context",
    "with auto-context",
    "end-to-end",
)

FLAGS = flags.FLAGS
flags.DEFINE_list("runs", None, "Finished run folders of train_embryo.py.", required=True)
flags.register_validator("runs", bool, "expected at least one run folder")
flags.DEFINE_list("sliding_windows", [], "Folders of eval/sliding_windows.py, if there are any.")
flags.DEFINE_string("output", None, "Folder for the tables.", required=True)
flags.DEFINE_integer("volumes", 1, "Held-out volumes that are timed.", 1)
flags.DEFINE_float(
    "fraction",
    0.02,
    "Share of the localiser's windows that is timed; the rest is extrapolated.",
    0.02,
    1.0,
)
flags.DEFINE_integer("window_batch", 32, "Windows in one pass of the localiser.", 1)


def load(folder, system):
    """`scored_runs.Run` of a folder; UserError unless it is a run of the system, an `embryo` or its peer, with scores."""

    def mode(given):
        if system == sliding_windows.NAME:
            return "sliding windows"
        return "with auto-context" if given["auto_context"] else "without auto-context"

    run = scored_runs.load(folder, system, mode)
    scored = {row["method"] for row in run.rows}
    for stage in MODES[run.mode]:
        if stage not in scored:
            raise errors.UserError(
                f"{folder}/evaluation/scores.csv: holds no case of {stage!r}; finish this stage, which scores it."
            )
    return run


def scores(found, prefixes, structures):
    """Rows of all methods in the table's order. "initial" is that of the run with auto-context, where there is one."""
    rows = {}
    for run, prefix in zip(found, prefixes):
        for row in run.rows:
            if method := MODES[run.mode].get(row["method"]):
                row = row | {"method": method, "case": f"{prefix}/{row['case']}"}
                rows[method, row["structure"], row["case"]] = row
    order = lambda row: (METHODS.index(row["method"]), structures.index(row["structure"]))
    return sorted(rows.values(), key=order)


def segments(found):
    """{method: raw voxels (depth, height, width) -> segmentation} of the first run of every mode, one method a call."""
    methods, system = {}, None
    for mode, run in {run.mode: run for run in reversed(found)}.items():
        if mode != "sliding windows":
            _, system = refinement.run_of(run.folder)
            finished = refinement.finished(run.folder)
            for stage in MODES[mode]:
                if stage not in finished:
                    raise errors.UserError(
                        f"{run.folder}/{stage}/model.keras: this stage is not finished; train it."
                    )
                methods[MODES[mode][stage]] = refinement.every_stage(
                    system, {stage: stages.load(pathlib.Path(run.folder) / stage / "model.keras")}
                )
    for run in found[:1]:
        if run.mode == "sliding windows":
            try:
                peer = runs.configured(
                    sliding_windows.SlidingWindows, runs.load_config(run.folder)["flags"]
                )
            except (KeyError, ValueError) as error:
                raise errors.UserError(
                    f"{run.folder}/config.json: {error} is missing or wrong; expected the flags of a run."
                ) from None
            networks = sliding_windows.finished(run.folder)
            segment = sliding_windows.segmentor(system, peer, networks, FLAGS.window_batch)
            methods[sliding_windows.METHOD] = functools.partial(segment, fraction=FLAGS.fraction)
    return {method: methods[method] for method in METHODS if method in methods}


def times(found):
    """Seconds of every method for the same held-out volumes of an embryo run, each call after one to warm up.

    Returns:
      [{"case", "size": (depth, height, width), "windows", "evaluated": of the localiser, where there is one, "seconds":
      {method: s}}], a dict a volume; the sliding windows' are extrapolated to all windows.

    Raises:
      UserError: the run's data are gone; a network is not finished.
    """
    reference = next(run for run in found if run.mode != "sliding windows")
    cases = refinement.cases_of(reference.folder, runs.load_config(reference.folder))
    read = functools.partial(
        datasets.read_case, foreground=list(reference.labels), labels=cases.labels, merge=False
    )
    methods, timed = segments(found), []
    for case in evaluation.held_out(cases, read)[: FLAGS.volumes]:
        voxels = images.array(read(case)[0]).astype(np.float32)
        timed.append({"case": case.name, "size": voxels.shape, "seconds": {}})
        for method, segment in methods.items():
            segment(voxels)
            begin = time.perf_counter()
            answer = segment(voxels)
            seconds = time.perf_counter() - begin
            if method == sliding_windows.METHOD:
                _, localised = answer
                seconds = localised.extrapolated(seconds)
                timed[-1] |= {"windows": localised.total, "evaluated": localised.evaluated}
            timed[-1]["seconds"][method] = seconds
    return timed


def table_1(rows, timed, structures):
    """Table 1 as plain text: mean and SD of the Dice scores over cases, mean seconds a volume, and how many times
    faster than the sliding windows that is, where they are there."""
    summary = report.summarize(rows)["methods"]
    seconds = {
        method: np.mean([volume["seconds"][method] for volume in timed])
        for method in timed[0]["seconds"]
    }
    slowest = seconds.get(sliding_windows.METHOD)
    lines = [
        [
            "",
            "n",
            *(f"{name} DSC (%)" for name in structures),
            "s a volume",
            *["times faster"] * bool(slowest),
        ]
    ]
    for method, found in summary.items():
        dice = [
            found[name]["metrics"]["DSC_percent"] if name in found else {"n": 0}
            for name in structures
        ]
        means = [
            ("-", "{mean:.2f}", "{mean:.2f} ± {sd:.2f}")[min(d["n"], 2)].format_map(d) for d in dice
        ]
        ratio = [f"{slowest / seconds[method]:.1f}"] if slowest else []
        lines.append(
            [method, str(max(d["n"] for d in dice)), *means, f"{seconds[method]:.3g}", *ratio]
        )
    widths = [max(map(len, column)) for column in zip(*lines)]
    text = [
        "  ".join(
            [line[0].ljust(widths[0]), *(word.rjust(n) for word, n in zip(line[1:], widths[1:]))]
        )
        for line in lines
    ]
    rule = "-" * len(text[0])
    sizes = ", ".join(
        "{case} ({size[0]}x{size[1]}x{size[2]} voxels)".format_map(volume) for volume in timed
    )
    notes = ["mean ± SD over n cases; seconds: float32, after a call to warm up, mean over", sizes]
    if slowest:
        done, every = (sum(volume[name] for volume in timed) for name in ("evaluated", "windows"))
        notes.append(
            f"sliding windows: {done} of {every} windows ({100 * done / every:.1f} %) were timed, the rest extrapolated"
        )
    return "\n".join([text[0], rule, *text[1:], rule, *notes])


def main(_):
    loaded = [load(folder, embryo.NAME) for folder in FLAGS.runs]
    loaded += [load(folder, sliding_windows.NAME) for folder in FLAGS.sliding_windows]
    found, prefixes = scored_runs.in_order(loaded, MODES)
    body, ventricle = found[0].labels.values()
    structures = [ventricle, body]  # as in the paper
    rows = scores(found, prefixes, structures)
    timed = times(found)
    text = f"{table_1(rows, timed, structures)}\n\n{report.dice_table(rows)}"
    report.write(rows, FLAGS.output)
    for name, written in ("times.json", json.dumps(timed, indent=1)), ("table.txt", text):
        with files.replacing(pathlib.Path(FLAGS.output) / name) as path:
            path.write_text(written + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    app.run(errors.in_one_sentence(main))
