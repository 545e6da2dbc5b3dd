import csv
import importlib
import json
import pathlib
import sys
import types

import numpy as np
import pytest
import running
from absl import flags

from tf_autoctx import errors, report

TINY = "--base_filters=2 --scale=1 --samples_per_epoch=2 --precision=float32 --phantom_size=16,16,16".split()
DATA = ("--seeds=0", "--phantom_cases=2,2", "--phantom_scans=2")
BOTH = "--variants=USegNet,USegNet-DS-HAS-Ctx"


@pytest.fixture(scope="module")
def tables():
    running.load("train_fetal_head")
    before = set(flags.FLAGS)
    yield importlib.import_module("eval.fetal_head_tables")
    del sys.modules["eval.fetal_head_tables"]
    for flag in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, flag)


class InProcess:
    """Trains here, which saves the start of a process."""

    commands, killed = [], 0

    def __init__(self, command, stdout, stderr, env):
        InProcess.commands.append(command)
        if InProcess.killed and len(InProcess.commands) == InProcess.killed:
            raise KeyboardInterrupt
        with running.unchanged(), running.unexported():
            flags.FLAGS(command[1:])
            sys.modules["train_fetal_head"].main([])
        (pathlib.Path(value(command, "work_dir")) / "saved_model" / "1").mkdir(parents=True)
        self.returncode = 0

    def poll(self):
        return self.returncode


@pytest.fixture(scope="module")
def run_script(tables):
    def run(folder, *arguments, steps=2):
        with running.unchanged():
            to = (f"--runs={folder / 'runs'}", f"--output={folder / 'out'}", f"--steps={steps}")
            flags.FLAGS(["fetal_head_tables.py", *to, *TINY, *DATA, *map(str, arguments)])
            errors.in_one_sentence(tables.main)([])

    return run


@pytest.fixture(scope="module")
def made(tables, run_script, tmp_path_factory):
    """Tables of two variants, killed after the first training and started again."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "subprocess", types.SimpleNamespace(Popen=InProcess, STDOUT=None))
        InProcess.killed = 2
        with pytest.raises(KeyboardInterrupt):
            run_script(folder, BOTH)
        assert [path.name for path in (folder / "runs").glob("*/saved_model")] == ["saved_model"]
        run_script(folder, BOTH)
    return folder


def refused(run_script, capsys, told, *arguments, **steps):
    with pytest.raises(SystemExit) as ended:
        run_script(*arguments, **steps)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert ended.value.code == 1 and told in line
    return line


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
    rows = report.read(made / "out")
    assert [(row["method"], row["case"], row["group"]) for row in rows] == [
        (method, f"seed 0/head_00{case}", f"seed 0/fetus 00{2 + (case > 3)}")
        for method in ("USegNet", "USegNet-DS-HAS-Ctx", "USegNet-DS-HAS-Ctx, level 1")
        for case in (2, 3, 4, 5)
    ]
    own = report.read(made / "runs" / "USegNet-DS-HAS-Ctx_seed_0" / "evaluation")
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
    dsc = [row["DSC_percent"] for row in report.read(made / "out")]
    spread = [f"{np.mean(dsc[:4]):.2f}", "±", f"{np.std(dsc[:4], ddof=1):.2f}"]
    assert lines[2].split()[:2] == ["USegNet", "4"] and lines[2].split()[3:6] == spread
    assert lines[3].split() == ["paper", "50", "94.83", "89.06", "90.20", "0.6186", "5.4"]
    assert lines[5].split() == ["paper", "50", "96.05", "91.74", "92.42", "0.4793", "4.609"]
    above = [
        line.split("  ")[0] for line, below in zip(lines, lines[1:]) if below.startswith("---")
    ]
    assert above[::2] == [
        "Table 1: methods",
        "against USegNet",
        "By seed",
        "Levels before the last",
    ]
    assert "nan" not in " ".join(lines)


def test_more_seeds_or_another_table_of_what_is_finished(made, run_script, tmp_path, capsys):
    arguments = (f"--runs={made / 'runs'}", "--jobs=0", "--variants=USegNet,USegNet-DS")
    told = "USegNet-DS_seed_0: is not finished; 1 of 2 runs are not in the tables"
    refused(run_script, capsys, told, tmp_path, *arguments)
    assert {row["method"] for row in report.read(tmp_path / "out")} == {"USegNet"}
    refused(
        run_script,
        capsys,
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
def test_what_cannot_be_tabulated_is_one_sentence(made, run_script, capsys, arguments, steps, told):
    refused(run_script, capsys, told, made, BOTH, *arguments, steps=steps)


def test_a_run_of_more_levels_is_refused(made, run_script, capsys):
    path = made / "runs" / "USegNet_seed_0" / "config.json"
    text = path.read_text()
    path.write_text(text.replace('"level": 1', '"level": 2'))
    refused(
        run_script,
        capsys,
        "USegNet_seed_0: this run folder was made with --level 2 (now 1)",
        made,
        BOTH,
    )
    path.write_text(text)


def test_a_run_is_finished_when_scores_and_export_are_there(tables, tmp_path):
    run, there = tables.Run("USegNet", tmp_path, {}), []
    for name in ("saved_model/1", "evaluation/scores.csv"):
        there.append(run.is_finished)
        (tmp_path / name).mkdir(parents=True)
    assert there == [False, False] and run.is_finished


def test_a_training_that_fails_is_told(tables, made, run_script, tmp_path, monkeypatch, capsys):
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys; sys.exit(f'error: bad luck on {os.environ[\"TF_NUM_INTRAOP_THREADS\"]} thread')"
    )
    monkeypatch.setattr(tables.train_fetal_head, "__file__", str(script))
    arguments = (f"--runs={made / 'runs'}", "--jobs=2", "--variants=USegNet,2D-USegNet")
    told = "2D-USegNet_seed_0: error: bad luck on 1 thread; 1 of 2 runs are not in the tables."
    refused(run_script, capsys, told, tmp_path, *arguments)
    assert {row["method"] for row in report.read(tmp_path / "out")} == {"USegNet"}


def test_one_training_at_a_time_in_a_folder(tables, tmp_path, monkeypatch):
    (tmp_path / "script.py").write_text("import time; time.sleep(60)")
    monkeypatch.setattr(tables.train_fetal_head, "__file__", str(tmp_path / "script.py"))
    run = tables.Run("USegNet", tmp_path / "run", {})
    with running.unchanged():
        flags.FLAGS(["fetal_head_tables.py", "--runs=a", "--output=b"])
        first = tables.start(run)
        try:
            assert tables.start(run) is None
        finally:
            first.kill()
            first.wait()
        again = tables.start(run)
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


def test_p_values_by_hand(tables):
    """Of 2 ** 6 signs of six differences, one has no negative rank, two at most rank 1: p = 2/64 and 4/64."""
    rows = [
        *scores("USegNet", [1, 2, 3, 4, 5, 6]),
        *scores("USegNet-DS", [0] * 6),
        *scores("USegNet-DS-HAS", [-1, 2, 3, 4, 5, 6]),
        *scores("USegNet-DS-HAS-Ctx", [0] * 6),
    ]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    found = {(line["against"], line["method"]): line for line in tables.compared(rows, methods)}
    p = {key: (line["p"], line["p_holm"]) for key, line in found.items()}
    assert p == {
        ("USegNet-DS", "USegNet"): pytest.approx((0.03125, 3 * 0.03125)),
        ("USegNet-DS", "USegNet-DS-HAS"): pytest.approx((0.0625, 2 * 0.0625)),
        ("USegNet-DS", "USegNet-DS-HAS-Ctx"): (1, 1),
        ("USegNet", "USegNet-DS-HAS-Ctx"): pytest.approx((0.03125, 0.03125)),
    }
    assert found["USegNet-DS", "USegNet-DS-HAS"]["mean_difference"] == pytest.approx(19 / 6)
    (against, *lines), _ = tables.comparison_blocks(
        list(found.values()), {"DSC_percent": "DSC (%)"}
    )
    assert against == ["against USegNet-DS", "n", "DSC (%)"]
    assert lines[1] == ["USegNet-DS-HAS", "6", "+3.167 (0.1250)"]
