import csv
import itertools
import json
import pathlib
import types

import numpy as np
import pytest
import running
from helpers import plain_usegnet

from tf_autoctx.commands import (
    command_line,
    fetal_head_rows,
    fetal_head_tables,
    planned_runs,
    train_fetal_head,
)
from tf_autoctx.report import histories, repeated, tables
from tf_autoctx.systems.fetal_head import segmentation
from tf_autoctx.systems.fetal_head.paper import PROPOSED

TINY = (
    "--base_filters=2",
    "--scale=1",
    "--samples_per_epoch=2",
    "--precision=float32",
    "--phantom_size=16,16,16",
)
DATA = ("--seeds=0", "--phantom_cases=2,2", "--phantom_scans=2")
BOTH = "--variants=USegNet,USegNet-DS-HAS-Ctx"


def bright(*arguments, **_):
    """A network of one convolution in place of `usegnet`, that finds what is bright."""
    network = plain_usegnet(*arguments)
    kernel, _ = network.get_weights()
    share = np.broadcast_to(np.float32([-0.5, 0.5]) / 27, kernel.shape)
    network.set_weights([share, np.float32([0.15, -0.15])])
    return network


class InProcess:
    """Trains here, which saves the start of a process."""

    commands, killed = [], 0

    def __init__(self, command, stdout, stderr, env):
        InProcess.commands.append(command)
        if InProcess.killed and len(InProcess.commands) == InProcess.killed:
            raise KeyboardInterrupt
        assert command[1:3] == ["-m", "tf_autoctx.commands.train_fetal_head"]
        with running.unexported():
            running.train("fetal_head", *command[3:])
        (pathlib.Path(value(command, "work_dir")) / "saved_model" / "1").mkdir(parents=True)
        self.returncode = 0

    def poll(self):
        return self.returncode


def tabulate(folder, *arguments, steps=2):
    to = (f"--runs={folder / 'runs'}", f"--output={folder / 'out'}", f"--steps={steps}")
    running.call("fetal_head_tables", *to, *TINY, *DATA, *arguments)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Tables of two variants, killed after the first training and started again."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segmentation, "usegnet", bright)
        patch.setattr(
            planned_runs, "subprocess", types.SimpleNamespace(Popen=InProcess, STDOUT=None)
        )
        InProcess.killed = 2
        with pytest.raises(KeyboardInterrupt):
            tabulate(folder, BOTH)
        assert [path.name for path in (folder / "runs").glob("*/saved_model")] == ["saved_model"]
        tabulate(folder, BOTH)
    return folder


@pytest.fixture
def refused(capsys):
    """Makes tables, which ends in one sentence that tells so."""

    def run(told, *arguments, **steps):
        with pytest.raises(SystemExit) as ended:
            tabulate(*arguments, **steps)
        printed = capsys.readouterr().err.splitlines()
        (line,) = [line for line in printed if line.startswith("error: ")]
        assert ended.value.code == 1 and told in line

    return run


def value(command, flag):
    """What a flag is on a command line: the last one counts."""
    return [word.partition("=")[2] for word in command if word.startswith(f"--{flag}=")][-1]


def test_a_killed_table_goes_on(made):
    first, killed, again = InProcess.commands
    assert (value(first, "variant"), value(first, "steps"), value(first, "level")) == (
        "USegNet",
        "2",
        "1",
    )
    assert killed == again  # and the first is not trained again
    assert (value(again, "variant"), value(again, "steps"), value(again, "level")) == (
        "USegNet-DS-HAS-Ctx",
        "1",
        "2",
    )
    assert (
        value(first, "data_dir") == value(again, "data_dir") and value(again, "base_filters") == "2"
    )
    config = json.loads((made / "runs" / "USegNet-DS-HAS-Ctx_seed_0" / "config.json").read_text())
    assert config["flags"]["preset"] == "demo" and config["flags"]["erase_probability"] == 0.3


def test_files(made):
    rows = tables.read(made / "out")
    assert [(row["method"], row["case"], row["group"]) for row in rows] == [
        (method, f"seed 0/head_00{case}", f"seed 0/fetus 00{2 + (case > 3)}")
        for method in ("USegNet", "USegNet-DS-HAS-Ctx", "USegNet-DS-HAS-Ctx, level 1")
        for case in (2, 3, 4, 5)
    ]
    own = tables.read(made / "runs" / "USegNet-DS-HAS-Ctx_seed_0" / "evaluation")
    last = [row["DSC_percent"] for row in own if row["method"] == "level 2"]
    assert [row["DSC_percent"] for row in rows[4:8]] == last
    times = json.loads((made / "out" / "times.json").read_text())
    assert set(times) == {"USegNet", "USegNet-DS-HAS-Ctx"} and all(
        0 < seconds < 10 for seconds in times.values()
    )
    names = {path.name for path in (made / "out").iterdir()}
    assert {"agreement_volume_mL.png", "repeatability_volume_mL.png", "summary.json"} <= names
    with open(made / "out" / "comparison.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert {(line["method"], line["against"], line["n"]) for line in lines} == {
        ("USegNet-DS-HAS-Ctx", "USegNet", "4")
    }
    assert [line["metric"] for line in lines] == [
        "DSC_percent",
        "Conf_percent",
        "Jacc_percent",
        "Adb_mm",
        "Hdb_mm",
    ]


def test_table(made):
    lines = (made / "out" / "table.txt").read_text().splitlines()
    title = "Table 1: methods n missed DSC (%) Conf (%) Jacc (%) Adb (mm) Hdb (mm) s a volume"
    assert " ".join(lines[0].split()) == title
    dsc = [row["DSC_percent"] for row in tables.read(made / "out")]
    spread = [f"{np.mean(dsc[:4]):.2f}", "±", f"{np.std(dsc[:4], ddof=1):.2f}"]
    assert lines[2].split()[:2] == ["USegNet", "4"] and lines[2].split()[3:6] == spread
    assert lines[3].split() == ["paper", "50", "94.83", "89.06", "90.20", "0.6186", "5.4"]
    assert lines[5].split() == ["paper", "50", "96.05", "91.74", "92.42", "0.4793", "4.609"]
    above = [
        line.split("  ")[0] for line, below in itertools.pairwise(lines) if below.startswith("---")
    ]
    assert above[::2] == [
        "Table 1: methods",
        "against USegNet",
        "By seed",
        "Levels before the last",
        "Validation DSC (%)",
    ]
    assert "nan" not in " ".join(lines)
    begin = next(n for n, line in enumerate(lines) if line.startswith("Validation DSC"))
    last = lines[begin + 3].split()  # of four epochs of one step, of one run
    history = histories.read(made / "runs" / "USegNet-DS-HAS-Ctx_seed_0/level_2/history.csv")
    before, after = histories.last_quarter(history)
    assert last == [PROPOSED, "1", f"{before:.2f}", f"{after:.2f}", f"{after - before:+.2f}"]
    (against,) = [line for line in lines if "4 cases" in line]  # one seed, whose runs are no pairs
    assert "USegNet-DS-HAS-Ctx" in against and "of 1 run" not in against


@pytest.mark.parametrize(
    "variants, drawn",
    [
        ("USegNet,USegNet-DS-HAS-Ctx", "USegNet-DS-HAS-Ctx"),
        ("USegNet-DS-HAS-Ctx,USegNet", "USegNet-DS-HAS-Ctx"),
        ("USegNet", "USegNet"),
    ],
)
def test_figure_8_is_of_the_named_method_however_it_scores(
    made, tmp_path, monkeypatch, capsys, variants, drawn
):
    """Here the other one is the best on the test cases."""
    rows_of, pictures = fetal_head_rows.rows_of, []

    def flattered(run):
        dice = 99.0 if run.method == "USegNet" else 10.0
        return [{**row, "DSC_percent": dice} for row in rows_of(run)]

    monkeypatch.setattr(fetal_head_rows, "rows_of", flattered)
    monkeypatch.setattr(
        fetal_head_rows.evaluation, "draw_measurements", lambda _, rows: pictures.append([*rows])
    )
    tabulate(tmp_path, f"--runs={made / 'runs'}", "--jobs=0", f"--variants={variants}")
    assert pictures == [[drawn]]
    assert f"agreement and repeatability of head volumes: {drawn}\n" in capsys.readouterr().out


def test_more_seeds_or_another_table_of_what_is_finished(made, tmp_path, refused):
    arguments = (f"--runs={made / 'runs'}", "--jobs=0", "--variants=USegNet,USegNet-DS")
    told = "USegNet-DS_seed_0: is not finished; 1 of 2 runs are not in the tables"
    refused(told, tmp_path, *arguments)
    assert {row["method"] for row in tables.read(tmp_path / "out")} == {"USegNet"}
    refused(
        "expected a finished run",
        tmp_path,
        *arguments[:2],
        "--variants=p-USegNet",
    )


@pytest.mark.parametrize(
    "arguments, steps, told",
    [
        (
            ("--learning_rate=0.1",),
            2,
            "USegNet_seed_0: this run folder was made with --learning_rate 0.001 (now 0.1)",
        ),
        (
            (),
            4,
            "USegNet_seed_0: this run folder was made with --steps 2 (now 4); give the same flags",
        ),
        (("--phantom_cases=3,2",), 2, "phantoms_seed_0: holds phantoms with"),
        (("--validation_fraction=0",), 2, "(now 0.0), other data; give"),
        (("--seed=1",), 2, "--seed: the tables set this flag"),
        ((), 3, "--steps: expected an even number"),
    ],
)
def test_what_cannot_be_tabulated_is_one_sentence(made, refused, arguments, steps, told):
    refused(told, made, BOTH, *arguments, steps=steps)


@pytest.mark.parametrize(
    "scale, patches, slices",
    [("1", 8, 16), ("0.5", 1, 2)],  # 16^3 or 8^3 voxels, of 8^3 a patch and 16^2 a slice
)
def test_every_row_sees_as_many_voxels_a_step(
    tmp_path, refused, monkeypatch, scale, patches, slices
):
    wanted = []
    monkeypatch.setattr(
        planned_runs.Trainings,
        "train",
        lambda _, missing: wanted.extend(missing) or dict.fromkeys(missing, "is not finished"),
    )
    variants = "--variants=USegNet,p-USegNet,2D-USegNet,USegNet-DS-HAS-Ctx"
    arguments = (variants, "--patch_size=8", f"--scale={scale}", "--steps_of=level")
    refused("is not finished", tmp_path, *arguments, "--equal_voxels", steps=3)
    assert [run.flags["batch_size"] for run in wanted] == [1, patches, slices, 1]
    assert [run.flags["steps"] for run in wanted] == [3, 3, 3, 3]
    refused("is not finished", tmp_path, *arguments, steps=3)
    assert not any("batch_size" in run.flags for run in wanted[4:])
    told = "--spacing=1,1,1: --equal_voxels counts voxels as they are; expected none."
    refused(told, tmp_path, *arguments, "--equal_voxels", "--spacing=1,1,1")


def test_a_run_of_more_levels_is_refused(made, refused):
    path = made / "runs" / "USegNet_seed_0" / "config.json"
    text = path.read_text()
    path.write_text(text.replace('"level": 1', '"level": 2'))
    refused(
        "USegNet_seed_0: this run folder was made with --level 2 (now 1)",
        made,
        BOTH,
    )
    path.write_text(text)


def test_a_run_is_finished_when_scores_and_export_are_there(tmp_path):
    run, there = planned_runs.PlannedRun("USegNet", tmp_path, {}), []
    for name in ("saved_model/1", "evaluation/scores.csv"):
        there.append(run.is_finished)
        (tmp_path / name).mkdir(parents=True)
    assert there == [False, False] and run.is_finished


def another_training():
    """A command of the module `another_training`."""

    def main(_):
        raise AssertionError("is called in a process of its own alone")

    main.__module__ = "another_training"
    return command_line.Command(main, train_fetal_head.command.kinds, "")


UNLUCKY = """
import os, sys
sys.exit(f"error: bad luck on {os.environ['TF_NUM_INTRAOP_THREADS']} thread")
"""


def test_a_training_that_fails_is_told(made, tmp_path, monkeypatch, refused):
    (tmp_path / "another_training.py").write_text(UNLUCKY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(fetal_head_tables.train_fetal_head, "command", another_training())
    arguments = (f"--runs={made / 'runs'}", "--jobs=2", "--variants=USegNet,2D-USegNet")
    told = "2D-USegNet_seed_0: error: bad luck on 1 thread; 1 of 2 runs are not in the tables."
    refused(told, tmp_path, *arguments)
    assert {row["method"] for row in tables.read(tmp_path / "out")} == {"USegNet"}


def test_one_training_at_a_time_in_a_folder(tmp_path, monkeypatch):
    (tmp_path / "another_training.py").write_text("import time; time.sleep(60)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    trainings = planned_runs.Trainings(another_training(), command_line.Given({}, frozenset()), 1)
    run = planned_runs.PlannedRun("USegNet", tmp_path / "run", {})
    first = trainings.start(run)
    try:
        assert trainings.start(run) is None
    finally:
        first.kill()
        first.wait()
    again = trainings.start(run)
    again.kill()
    again.wait()


def scores(method, gains):
    """Rows of six cases whose DSC is 80 % and so much more."""
    about = {
        "system": "fetal_head",
        "group": "",
        "structure": "head",
        "volume_mL": 1.0,
        "truth_volume_mL": 1.0,
    }
    return [
        {"method": method, "case": f"c{case}", "DSC_percent": 80.0 + case + gain} | about
        for case, gain in enumerate(gains)
    ]


def test_p_values_by_hand():
    """Of 2 ** 6 signs of six differences, one has no negative rank, two at most rank 1.

    So p is 2/64 and 4/64.
    """
    rows = [
        *scores("USegNet", [1, 2, 3, 4, 5, 6]),
        *scores("USegNet-DS", [0] * 6),
        *scores("USegNet-DS-HAS", [-1, 2, 3, 4, 5, 6]),
        *scores("USegNet-DS-HAS-Ctx", [0] * 6),
    ]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    lines = fetal_head_rows.compared(rows, methods, tables.over_cases)
    tests = {(line["against"], line["method"]): line for line in lines}
    p = {key: (line["p"], line["p_holm"]) for key, line in tests.items()}
    assert p == {
        ("USegNet-DS", "USegNet"): pytest.approx((0.03125, 3 * 0.03125)),
        ("USegNet-DS", "USegNet-DS-HAS"): pytest.approx((0.0625, 2 * 0.0625)),
        ("USegNet-DS", "USegNet-DS-HAS-Ctx"): (1, 1),
        ("USegNet", "USegNet-DS-HAS-Ctx"): pytest.approx((0.03125, 0.03125)),
    }
    assert tests["USegNet-DS", "USegNet-DS-HAS"]["mean_difference"] == pytest.approx(19 / 6)
    names = {"DSC_percent": "DSC (%)"}
    (against, *cells), _ = fetal_head_rows.comparison_blocks(lines, names)
    assert against == ["against USegNet-DS", "over", "DSC (%)"]
    assert cells[1] == ["USegNet-DS-HAS", "6 cases", "+3.167 (0.1250)"]


def test_five_seeds_are_tested_over_runs():
    """Gains of 1 to 5 points by seed, each on six cases: t = 3 / sqrt(2.5 / 5) = 4.243."""
    rows = [
        repeated.named(f"seed {seed}", row)
        for method, gain in (("USegNet", 1), ("USegNet-DS", 0))
        for seed in (1, 2, 3, 4, 5)
        for row in scores(method, [gain * seed] * 6)
    ]
    methods = ["USegNet", "USegNet-DS"]
    lines = fetal_head_rows.compared(rows, methods, repeated.over_runs(rows))
    assert [(line["unit"], line["n"]) for line in lines] == [("runs", 5)]
    ((_, cells),) = fetal_head_rows.comparison_blocks(lines, {"DSC_percent": "DSC (%)"})
    assert cells == ["USegNet", "5 runs", "+3.000 (0.0132)"]


def test_a_metric_that_fewer_cases_have_has_a_line_of_its_own():
    line = {"against": "A", "method": "B", "mean_difference": 1.0, "p_holm": 0.5}
    line |= {"unit": "cases", "runs": 1}
    lines = [line | {"metric": "DSC_percent", "n": 3}, line | {"metric": "Conf_percent", "n": 2}]
    names = {"DSC_percent": "DSC", "Conf_percent": "Conf"}
    (block,) = fetal_head_rows.comparison_blocks(lines, names)
    p = tables.p_value(0.5)
    assert block == [
        ["against A", "over", "DSC", "Conf"],
        ["B", "3 cases", f"+1.000 ({p})", "-"],
        ["B", "2 cases", "-", f"+1.000 ({p})"],
    ]
