"""Table 1 of the embryo system (Xu et al. 2020) from finished runs: Dice scores, and times.

  autoctx-embryo-tables --runs=runs/embryo,runs/embryo_no_context \\
      --sliding_windows=runs/sliding_windows --output=runs/embryo_tables
  autoctx-embryo-tables --seeds=0,1,2,3,4 --runs=runs/embryos --output=runs/embryo_tables

The second trains what is missing, without auto-context from the initial stage of the run with it:
flags of autoctx-train-embryo are flags of this command and go to every training, a finished run
folder RUNS/MODE_seed_SEED, or with --folds RUNS/MODE_seed_SEED_fold_FOLD, is taken as it is, and
what was stopped goes on when the same command is given again.

Scores are those of the runs' own evaluations; runs of one mode with other seeds or folds stand
together. Five pairs of runs or more are tested over runs; fewer over the cases of all, which says
nothing of other trainings: the table says which. For the times, which are measured here and now,
the first run of every mode segments the same held-out volumes in float32, as its evaluation did.
Writes scores.csv, cases.csv, summary.json, times.json and table.txt into the output folder and
prints the table.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tf_autoctx import configuration, files, native
from tf_autoctx.commands import planned_runs, train_embryo
from tf_autoctx.commands.command_line import Command, Given
from tf_autoctx.configuration import field
from tf_autoctx.errors import UserError
from tf_autoctx.files import replacing
from tf_autoctx.systems.embryo.configuration import (
    DECLARATION,
    METHOD,
    SLIDING_WINDOWS,
    SlidingWindows,
)

if TYPE_CHECKING:
    import numpy as np

    from tf_autoctx.systems.shared.scored_runs import ScoredRun

Row = dict[str, Any]
# Raw voxels (depth, height, width) -> a segmentation, of whatever kind
Segment = Callable[["np.ndarray", Sequence[float]], Any]

PEER = "sliding windows"  # a mode
# {mode: {stage whose scores a row shows: its name in the table}}, in the table's order
MODES = {
    PEER: {METHOD: METHOD},
    "without auto-context": {"initial": "initial", "refine": "without auto-context"},
    "with auto-context": {
        "initial": "initial",
        "refine": "with auto-context",
        "end_to_end": "end-to-end",
    },
}
METHODS = (METHOD, "initial", "without auto-context", "with auto-context", "end-to-end")
# {mode as a flag has it: {flag: value} of its runs}
TRAINED = {"auto_context": {"auto_context": True}, "no_auto_context": {"auto_context": False}}


@dataclasses.dataclass(frozen=True)
class EmbryoTables:
    """Tables: which runs they are of, and how times are measured."""

    runs: tuple[str, ...] = field(
        ..., "Finished run folders of autoctx-train-embryo, or with seeds the folder of all."
    )
    output: str = field(..., "Folder for the tables.")
    modes: tuple[str, ...] = field(
        tuple(TRAINED), f"Modes whose runs are trained with seeds, some of {', '.join(TRAINED)}."
    )
    sliding_windows: tuple[str, ...] | None = field(
        None, "Folders of autoctx-sliding-windows, if there are any."
    )
    volumes: int = field(1, "Held-out volumes that are timed.", least=1)
    fraction: float = field(
        0.02,
        "Share of the localiser's windows that is timed; the rest is extrapolated.",
        least=0.02,
        most=1.0,
    )
    window_batch: int = field(32, "Windows in one pass of the localiser.", least=1)

    def __post_init__(self) -> None:
        configuration.check(self)
        planned_runs.require_some("modes", self.modes, TRAINED)


def mode_of(flags: Mapping[str, Any]) -> str:
    """The mode of a run of the cascade."""
    return "with auto-context" if flags["auto_context"] else "without auto-context"


def mode_of_peer(flags: Mapping[str, Any]) -> str:
    """The mode of a run of the peer."""
    return PEER


def load(folder: str, system: str, mode_of: Callable[[dict[str, Any]], str]) -> ScoredRun:
    """The scored run of a folder.

    Args:
      folder: path.
      system: the embryo system's name, or its peer's.
      mode_of: {flag: value} -> its mode.

    Raises:
      UserError: no run of the system; one without scores of every stage of its mode.
    """
    from tf_autoctx.systems.shared import scored_runs

    run = scored_runs.load(folder, system, mode_of)
    scored = {row["method"] for row in run.rows}
    for stage in MODES[run.mode]:
        if stage not in scored:
            raise UserError(
                f"{folder}/evaluation/scores.csv: holds no case of {stage!r}; finish this stage, "
                "which scores it."
            )
    return run


def scores(
    runs: Sequence[ScoredRun], prefixes: Sequence[str], structures: Sequence[str]
) -> list[Row]:
    """Rows of all methods in the table's order. "initial" is that of the run with auto-context,
    where there is one."""
    from tf_autoctx.report import repeated

    rows: dict[tuple[str, str, str], Row] = {}
    for run, prefix in zip(runs, prefixes):
        for row in run.rows:
            if method := MODES[run.mode].get(row["method"]):
                row = repeated.named(prefix, row) | {"method": method}
                rows[method, row["structure"], row["case"]] = row

    def place(row: Row) -> tuple[int, int]:
        return METHODS.index(row["method"]), structures.index(row["structure"])

    return sorted(rows.values(), key=place)


def segments(runs: Sequence[ScoredRun], chosen: EmbryoTables) -> dict[str, Segment]:
    """{method: its segmentation} by the first run of every mode, one method a call.

    Raises:
      UserError: a config.json lacks something; a network is not finished or cannot be read.
    """
    with native.without_noise():
        from tf_autoctx.systems.embryo import sliding_windows_training
    from tf_autoctx.systems.embryo.sliding_windows import WindowedSegmentation
    from tf_autoctx.systems.embryo.system import EmbryoSystem
    from tf_autoctx.systems.shared import stages

    methods: dict[str, Segment] = {}
    first = {run.mode: run for run in reversed(runs)}
    peer = first.pop(PEER, None)
    systems = {mode: EmbryoSystem.of_run(run.run) for mode, run in first.items()}
    for mode, run in first.items():
        for stage, method in MODES[mode].items():
            network = stages.finished(run.folder / stage)
            if network is None:
                raise UserError(
                    f"{run.folder}/{stage}/model.keras: this stage is not finished; train it."
                )
            methods[method] = systems[mode].evaluator({stage: network})
    if peer:
        configured = peer.run.configured(SlidingWindows)
        networks = sliding_windows_training.finished(peer.run)
        refinement = next(iter(systems.values())).refinement  # all prepare a volume alike
        segment = WindowedSegmentation(refinement, configured, networks, chosen.window_batch)

        def windowed(voxels: np.ndarray, spacing: Sequence[float]) -> Any:
            return segment(voxels, chosen.fraction)

        methods[METHOD] = windowed
    return {method: methods[method] for method in METHODS if method in methods}


def times(runs: Sequence[ScoredRun], chosen: EmbryoTables) -> list[dict[str, Any]]:
    """Seconds of every method for the same held-out volumes of an embryo run, each call after one
    to warm up.

    Returns:
      [{"case", "size": (depth, height, width), "windows", "evaluated": of the localiser, where
      there is one, "seconds": {method: s}}], a dict a volume; the sliding windows' are extrapolated
      to all windows.

    Raises:
      UserError: the run's data are gone; see `segments`.
    """
    import numpy as np

    with native.without_noise():
        from tf_autoctx.systems.embryo.system import TrainedRun
    from tf_autoctx.systems.shared import evaluation

    reference = next(run for run in runs if run.mode != PEER)
    trained = TrainedRun.load(reference.folder)
    methods = segments(runs, chosen)
    timed: list[dict[str, Any]] = []
    for case in evaluation.held_out(trained.cases, trained.read)[: chosen.volumes]:
        image, _ = trained.read(case)
        voxels = image.array.astype(np.float32)
        volume: dict[str, Any] = {"case": case.name, "size": voxels.shape, "seconds": {}}
        for method, segment in methods.items():
            segment(voxels, image.spacing)
            begin = time.perf_counter()
            segmentation = segment(voxels, image.spacing)
            seconds = time.perf_counter() - begin
            if method == METHOD:
                _, localised = segmentation
                seconds = localised.extrapolated(seconds)
                volume |= {"windows": localised.total, "evaluated": localised.evaluated}
            volume["seconds"][method] = seconds
        timed.append(volume)
    return timed


def table_1(
    rows: Sequence[Row], timed: Sequence[Mapping[str, Any]], structures: Sequence[str]
) -> str:
    """Table 1 as plain text: mean and SD of the Dice scores over cases, mean seconds a volume, and
    how many times faster than the sliding windows that is, where they are there."""
    import numpy as np

    from tf_autoctx.report import tables

    seconds = {
        method: float(np.mean([volume["seconds"][method] for volume in timed]))
        for method in timed[0]["seconds"]
    }
    slowest = seconds.get(METHOD)
    titles = [f"{name} DSC (%)" for name in structures]
    lines = [["", "n", *titles, "s a volume", *["times faster"] * bool(slowest)]]
    for method, cells in tables.summarize(rows, [])["methods"].items():
        dice = [
            cells[name]["metrics"]["DSC_percent"] if name in cells else {"n": 0}
            for name in structures
        ]
        means = [tables.spread(values)[0] for values in dice]
        ratio = [f"{slowest / seconds[method]:.1f}"] if slowest else []
        n = max(values["n"] for values in dice)
        lines.append([method, str(n), *means, f"{seconds[method]:.3g}", *ratio])
    return "\n".join([tables.aligned(lines), *_notes(timed, bool(slowest))])


def _notes(timed: Sequence[Mapping[str, Any]], peer: bool) -> list[str]:
    """What stands below table 1."""
    sizes = ", ".join(
        "{case} ({size[0]}x{size[1]}x{size[2]} voxels)".format_map(volume) for volume in timed
    )
    notes = ["mean ± SD over n cases; seconds: float32, after a call to warm up, mean over", sizes]
    if peer:
        done, every = (sum(volume[name] for volume in timed) for name in ("evaluated", "windows"))
        notes.append(
            f"sliding windows: {done} of {every} windows ({100 * done / every:.1f} %) were timed, "
            "the rest extrapolated"
        )
    return notes


def tabulate(chosen: EmbryoTables, folders: Sequence[str]) -> None:
    """Writes and prints the table of finished runs."""
    from tf_autoctx.report import repeated, tables
    from tf_autoctx.systems.shared import scored_runs

    loaded = [load(folder, DECLARATION.name, mode_of) for folder in folders]
    peers = chosen.sliding_windows or ()
    loaded += [load(folder, SLIDING_WINDOWS, mode_of_peer) for folder in peers]
    runs, prefixes = scored_runs.in_order(loaded, MODES)

    body, ventricle = runs[0].run.labels.values()
    structures = [ventricle, body]  # as in the paper
    rows = scores(runs, prefixes, structures)
    timed = times(runs, chosen)
    test = repeated.over_runs(rows, scored_runs.overlap_of(run.run for run in runs))
    text = f"{table_1(rows, timed, structures)}\n\n{tables.dice_table(rows, test)}"

    output = pathlib.Path(chosen.output)
    files.own(output)
    tables.write(output, rows, test=test)
    for name, written in ("times.json", json.dumps(timed, indent=1)), ("table.txt", text):
        with replacing(output / name) as path:
            path.write_text(written + "\n", encoding="utf-8")
    print(text)


PLANNED = planned_runs.Methods(
    DECLARATION,
    train_embryo.command,
    (EmbryoTables,),
    TRAINED,
    {"no_auto_context": ("initial_from", "auto_context")},
)


def main(given: Given) -> None:
    chosen = given.configured(EmbryoTables)
    with PLANNED.folders(given, chosen.modes) as folders:
        tabulate(chosen, folders)


command = Command(main, PLANNED.kinds, __doc__, DECLARATION.presets)
