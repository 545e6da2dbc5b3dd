"""Tables 1 and 2 of the fetal head system (Yang et al. 2019): variants and seeds, trained where they are missing.

  python eval/fetal_head_tables.py --steps=2000 --phantom_size=96,96,96 --base_filters=8 --jobs=2 \
      --runs=runs/fetal_heads --output=runs/fetal_head_tables
  python eval/fetal_head_tables.py --steps=4000 --data_dir=my_data --variants=USegNet,USegNet-DS-HAS-Ctx ...

Flags of train_fetal_head.py are flags of this script, and go to every training. --steps is the budget of a variant: the
levels of -Ctx share it. Without --data_dir every seed has phantoms of its own, the same for all variants. A finished run
folder RUNS/VARIANT_seed_SEED is taken as it is; a training or a table that was stopped goes on when the same command is
given again. Every row is the last level, beside the paper's numbers; tests are paired over cases and seeds. Where the
seeds share their test cases (--data_dir), or heads are scanned several times (--phantom_scans), p values and intervals
look surer than they are.

Writes scores.csv, cases.csv, summary.json, comparison.csv, times.json and table.txt, and how the head volumes of the
best variant agree with the truth and repeat (figures 8 and 9).
"""

import csv
import dataclasses
import fcntl
import functools
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import keras
import numpy as np
from absl import app, flags

from tf_autoctx import errors, files, flag_types, metrics, report
from tf_autoctx.data import datasets, images, phantoms
from tf_autoctx.systems import evaluation, fetal_head, prediction
from tf_autoctx.training import devices, runs
from tf_autoctx.training import flags as training_flags

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
import train_fetal_head  # noqa: E402  its flags are flags of this script

COLUMNS = ("DSC", "Conf", "Jacc", "Adb", "Hdb")
CONCAT = (
    "-concat"  # behind a variant: levels joined by concatenation, which the paper has no row for
)
# {table: {row: the paper's values, in the order of COLUMNS, and seconds a volume where it has them}}
PAPER = {
    "Table 1: methods": {
        "p-USegNet": (93.31, 85.53, 87.53, 0.8908, 7.839),
        "2D-USegNet": (94.31, 87.86, 89.27, 0.8023, 6.861),
        "3D-DeconvNet": (94.51, 88.31, 89.62, 0.6804, 6.334),
        "USegNet": (94.83, 89.06, 90.20, 0.6186, 5.400),
        "USegNet-DS": (94.95, 89.33, 90.42, 0.6225, 5.409),
        "USegNet-DS-UAM": (95.57, 90.70, 91.54, 0.5242, 4.785),
        "USegNet-DS-SAM": (95.63, 90.83, 91.64, 0.5362, 4.702),
        "USegNet-DS-HAS": (95.85, 91.30, 92.05, 0.5070, 4.876),
        "USegNet-DS-HAS-Ctx": (96.05, 91.74, 92.42, 0.4793, 4.609),
        "USegNet-DS-HAS-Ctx" + CONCAT: (),
    },
    "Table 2: number of SAM and UAM": {
        "USegNet-DS": (94.95, 89.33, 90.42, 0.6225, 5.409, 0.78),
        "USegNet-DS-SAM-1": (95.44, 90.42, 91.30, 0.5556, 4.939, 0.76),
        "USegNet-DS-SAM-12": (95.60, 90.75, 91.59, 0.5380, 5.149, 0.78),
        "USegNet-DS-SAM": (95.63, 90.83, 91.64, 0.5362, 4.702, 1.11),
        "USegNet-DS-UAM-1": (95.49, 90.51, 91.39, 0.5374, 4.832, 0.77),
        "USegNet-DS-UAM-12": (95.54, 90.62, 91.48, 0.5350, 5.024, 0.81),
        "USegNet-DS-UAM": (95.57, 90.70, 91.54, 0.5242, 4.785, 0.88),
    },
}
METHODS = tuple(dict.fromkeys(method for table in PAPER.values() for method in table))
# {method: those compared with it; () for all others}: Holm's correction runs over one line of these.
BASELINES = {
    "USegNet-DS": (),
    "USegNet": ("USegNet-DS-HAS-Ctx",),
    "USegNet-DS-HAS-Ctx" + CONCAT: ("USegNet-DS-HAS-Ctx",),
}
SET_HERE = ("work_dir", "variant", "join", "level", "seed")

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(train_fetal_head)
flags.DEFINE_list(
    "variants",
    list(PAPER["Table 1: methods"]),
    f"Rows of the tables, some of {', '.join(METHODS)}.",
)
flags.register_validator(
    "variants",
    lambda names: names and set(names) <= set(METHODS),
    f"expected some of {', '.join(METHODS)}",
)
flag_types.define_integers("seeds", [0, 1, 2], "Of the runs.")
flags.DEFINE_string(
    "runs", None, "Folder of the run folders; what is missing is trained there.", required=True
)
flags.DEFINE_string("output", None, "Folder for the tables.", required=True)
flags.DEFINE_integer(
    "jobs", 1, "Trainings at a time, of one thread each if there are several; 0: train nothing.", 0
)


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A run of the tables, finished or not: its row, its folder and the {flag: value} that set it apart."""

    method: str
    folder: pathlib.Path
    flags: dict

    @property
    def is_finished(self):
        written = (
            "evaluation/scores.csv",
            "saved_model/1",
        )  # the tables need the first; a training ends with the second
        return all((self.folder / name).exists() for name in written)


def planned():
    """The `Run`s that the flags ask for, seed by seed. Phantoms are written, and a run of another kind is refused.

    Raises:
      UserError: a flag that is set here, --steps missing or not to be shared; a run folder of other flags or data.
    """
    for name in SET_HERE:
        if FLAGS[name].present:
            raise errors.UserError(
                f"--{name}: the tables set this flag; expected --variants, --seeds and --runs alone."
            )
    if not FLAGS["steps"].present or FLAGS.steps % 2:
        raise errors.UserError(
            "--steps: expected an even number, the optimizer steps of a variant with all its levels."
        )
    if FLAGS.preset is None:
        FLAGS.preset = "standard" if FLAGS.data_dir else "demo"
    training_flags.fill_in(fetal_head.PRESETS[FLAGS.preset])
    FLAGS.precision = devices.set_up(FLAGS.precision, 0)
    common, found = training_flags.values(train_fetal_head), []
    for seed in FLAGS.seeds:
        folder = pathlib.Path(FLAGS.runs) / f"phantoms_seed_{seed}"
        data_dir = FLAGS.data_dir or phantoms.write_fetal_heads(
            folder, FLAGS.phantom_size, FLAGS.phantom_cases, seed, FLAGS.phantom_scans
        )
        fingerprint = datasets.fingerprint(datasets.load(data_dir, seed, FLAGS.validation_fraction))
        for method in FLAGS.variants:
            variant = method.removesuffix(CONCAT)
            level = 2 if variant.endswith("-Ctx") else 1
            own = {
                "variant": variant,
                "join": "concat" if method.endswith(CONCAT) else "sum",
                "level": level,
                "steps": FLAGS.steps // level,
                "seed": seed,
                "data_dir": str(data_dir),
                "preset": FLAGS.preset,
                "precision": FLAGS.precision,
            }
            run = Run(method, pathlib.Path(FLAGS.runs) / f"{method}_seed_{seed}", own)
            if (run.folder / "config.json").exists():
                config = runs.load_config(run.folder)
                differences = runs.differences(config, fetal_head.NAME, common | own, fingerprint)
                if not differences and config["flags"]["level"] != level:
                    differences = [f"--level {config['flags']['level']} (now {level})"]
                if differences:
                    raise errors.UserError(
                        f"{run.folder}: this run folder was made with {', '.join(differences)}; give the same flags, or "
                        "another --runs."
                    )
            found.append(run)
    return found


def start(run):
    """A process that trains a run, or goes on with it; None where one is at it already.

    Its log, training.log of the run folder, is locked for as long as it lives, also after the end of this script.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    given = [
        flag.serialize()
        for flag in FLAGS.get_key_flags_for_module(train_fetal_head)
        if flag.present
    ]
    own = [f"--{name}={value}" for name, value in run.flags.items()]
    command = [sys.executable, train_fetal_head.__file__, *given, *own, f"--work_dir={run.folder}"]
    threads = {"TF_NUM_INTRAOP_THREADS": "1"} if FLAGS.jobs > 1 else {}
    with open(run.folder / "training.log", "a", encoding="utf-8") as log:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the process inherits it
        except BlockingIOError:
            return None
        return subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | threads
        )


def train(missing):
    """Trains runs, --jobs at a time: {run: why it is not finished}."""
    if not FLAGS.jobs:
        return dict.fromkeys(missing, "is not finished")
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit("terminated")
    )  # so that the trainings end as well
    waiting, running, failed = list(missing), {}, {}
    progress = keras.utils.Progbar(len(missing), unit_name="run")
    try:
        while waiting or running:
            while waiting and len(running) < FLAGS.jobs:
                run = waiting.pop(0)
                if process := start(run):
                    running[run] = process
                else:
                    failed[run] = "is being trained by another process"
            time.sleep(0.2)
            for run in [run for run, process in running.items() if process.poll() is not None]:
                if code := running.pop(run).returncode:
                    lines = (
                        (run.folder / "training.log")
                        .read_text(encoding="utf-8", errors="replace")
                        .splitlines()
                    )
                    told = lines[-1] if lines else ""
                    failed[run] = (
                        told
                        if told.startswith("error: ")
                        else f"ended with exit code {code}, see its log"
                    )
                progress.add(1)
    finally:
        for process in running.values():
            process.terminate()
            process.wait()
    return failed


def rows_of(run):
    """Rows of `report` of a finished run: its last level, and those before it under names of their own."""
    prefix, last = f"seed {run.flags['seed']}/", run.flags["level"]
    return [
        row
        | {
            "method": run.method
            if row["method"] == f"level {last}"
            else f"{run.method}, {row['method']}",
            "case": prefix + row["case"],
            "group": prefix
            + row["group"],  # another seed's phantom of the same name is no repeated scan
        }
        for row in report.read(run.folder / "evaluation")
    ]


def seconds(finished):
    """What a volume takes: the first test case of the first run, median of three calls after one to warm up.

    Returns:
      ({method: s}, (depth, height, width) of the volume).
    """
    cases = datasets.load(
        finished[0].flags["data_dir"], finished[0].flags["seed"], FLAGS.validation_fraction
    )
    read = functools.partial(datasets.read_case, foreground=FLAGS.foreground, labels=cases.labels)
    case = evaluation.held_out(cases, read)[0]
    image, _ = read(case)
    voxels, spacing, found = images.array(image), images.spacing(image), {}
    for run in {run.method: run for run in reversed(finished)}.values():
        segment, times = prediction.segmentor(run.folder), []
        for _ in range(4):
            begin = time.perf_counter()
            segment(voxels, spacing, case.image)
            times.append(time.perf_counter() - begin)
        found[run.method] = float(np.median(times[1:]))
    return found, voxels.shape


def compared(rows, methods):
    """Tests of the methods against the `BASELINES` among them: a list of dicts {"method", "against", "structure",
    "metric", **`metrics.paired`, "p_holm"}, corrected for the number of methods against one baseline."""
    names, lines = report.headings(rows, COLUMNS), []
    for baseline, others in BASELINES.items():
        others = [
            method for method in others or methods if method in methods and method != baseline
        ]
        if baseline not in methods or not others:
            continue
        tests = report.summarize(rows, [(method, baseline) for method in others])["paired"]
        for name in names:
            corrected = metrics.holm([test["metrics"][name]["p"] for test in tests])
            for test, p in zip(tests, corrected):
                about = {key: test[key] for key in ("method", "against", "structure")}
                lines.append(about | {"metric": name, **test["metrics"][name], "p_holm": float(p)})
    return lines


def block(title, rows, paper, times):
    """Lines of a table: mean and SD of every method, the paper's values below, and where given seconds a volume.

    Args:
      rows: of `report`.
      paper: {method: values of the paper, or ()}; others are left out.
      times: {method: seconds a volume}, or {}.
    """
    names, summary = report.headings(rows, COLUMNS), report.summarize(rows, [])["methods"]
    lines = [[title, "n", "missed", *names.values(), *["s a volume"] * bool(times)]]
    for method, values in paper.items():
        if method in summary:
            cell = summary[method][fetal_head.STRUCTURE]
            means = [report.spread(cell["metrics"][name])[0] for name in names]
            lines.append([method, str(cell["n"]), str(cell["n_missed"]), *means])
            lines[-1] += [f"{times[method]:.3f}"] if times else []
            if values:
                words = [*map("{:.2f}".format, values[:3]), *map("{:g}".format, values[3:])]
                lines.append(["  paper", "50", "", *words, *[""] * (6 - len(words))])
    return lines


def comparison_blocks(lines, names):
    """Lines of a table for every baseline of `compared`: mean difference and Holm's p in brackets, metric by metric."""
    blocks = {}
    for line in lines:
        block = blocks.setdefault(line["against"], {})
        block.setdefault((line["method"], str(line["n"])), {})[line["metric"]] = (
            f"{line['mean_difference']:+.3f} ({report.p_value(line['p_holm'])})"
            if line["n"]
            else "-"
        )
    return [
        [[f"against {baseline}", "n", *names.values()]]
        + [[*key, *(cells[name] for name in names)] for key, cells in block.items()]
        for baseline, block in blocks.items()
    ]


def main(_):
    wanted = planned()
    failed = train([run for run in wanted if not run.is_finished])
    finished = [run for run in wanted if run not in failed]
    if not finished:
        raise errors.UserError(
            f"{wanted[0].folder}: {failed[wanted[0]]}; expected a finished run to tabulate."
        )

    every = [row for run in finished for row in rows_of(run)]
    methods = [method for method in METHODS if method in {run.method for run in finished}]
    rows = [row for method in methods for row in every if row["method"] == method]
    levels = [row for row in every if row["method"] not in methods]
    times, size = seconds(finished)
    lines, names = compared(rows, methods), report.headings(rows, COLUMNS)
    by_seed = [
        row | {"method": f"{row['method']}, {row['case'].partition('/')[0]}"} for row in rows
    ]

    blocks = [block(title, rows, paper, times) for title, paper in PAPER.items()]
    blocks += comparison_blocks(lines, names)
    for title, some in ("By seed", by_seed), ("Levels before the last", levels):
        blocks.append(block(title, some, dict.fromkeys(row["method"] for row in some), {}))
    notes = [
        f"mean ± SD over the cases of the seeds {', '.join(map(str, FLAGS.seeds))}, where the value is finite; missed: truth "
        "without prediction",
        f"{FLAGS.steps} optimizer steps a variant, which its levels share, trained in {FLAGS.precision}; paper: 50 test volumes",
        "s a volume: from raw voxels to the label in float32, here, median of 3 calls on one test volume of "
        f"{' x '.join(map(str, size))} voxels",
        "against: mean difference over the n cases of both, and in brackets p of Wilcoxon's signed-rank test, two-sided, "
        "corrected by Holm for the methods of the block",
    ]
    text = "\n\n".join(
        [*(report.aligned(block) for block in blocks if len(block) > 1), "\n".join(notes)]
    )

    output = pathlib.Path(FLAGS.output)
    report.write(
        rows + levels, output, [(line["method"], line["against"]) for line in lines[:: len(names)]]
    )
    with (
        files.replacing(output / "comparison.csv") as path,
        open(path, "w", newline="", encoding="utf-8") as file,
    ):
        table = csv.DictWriter(file, list(lines[0]) if lines else ["method"], lineterminator="\n")
        table.writeheader()
        table.writerows(lines)
    for name, written in ("times.json", json.dumps(times, indent=1)), ("table.txt", text):
        with files.replacing(output / name) as path:
            path.write_text(written + "\n", encoding="utf-8")
    print(text)
    mean = lambda method: np.mean([row["DSC_percent"] for row in rows if row["method"] == method])
    best = max(methods, key=mean)
    evaluation.draw_measurements({best: [row for row in rows if row["method"] == best]}, output)
    for run, reason in failed.items():
        print(f"{run.folder}: {reason}")
    if failed:
        run, reason = next(iter(failed.items()))
        raise errors.UserError(
            f"{run.folder}: {reason}; {len(failed)} of {len(wanted)} runs are not in the tables."
        )


if __name__ == "__main__":
    app.run(errors.in_one_sentence(main))
