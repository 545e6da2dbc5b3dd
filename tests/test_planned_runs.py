"""Tables that train what is missing: which runs they plan, and which they refuse."""

import importlib
import json
import pathlib
import subprocess
import sys
import types

import numpy as np
import pytest
import running

from tf_autoctx import metrics
from tf_autoctx.commands import planned_runs, train_multi_organ, training
from tf_autoctx.report import tables

PATCHES = {
    "multi_organ": ("--steps=2", "--phantom_size=16,16,16", "--phantom_cases=2,1"),
    "embryo": ("--steps=2",),
    "renderer": ("--steps=2",),
    "fetal_head": ("--steps=2", "--phantom_size=16,16,16", "--phantom_cases=5,1"),
}


@pytest.fixture
def asked(monkeypatch, tmp_path, capsys):
    """Asks a table's command for runs, of which none is there: the runs, and a sentence."""

    def ask(system, *arguments):
        wanted = []

        def train(self, missing):
            wanted.extend(missing)
            return dict.fromkeys(missing, "is not finished")

        monkeypatch.setattr(planned_runs.Trainings, "train", train)
        places = f"--runs={tmp_path / 'runs'}", f"--output={tmp_path / 'out'}"
        with pytest.raises(SystemExit):
            running.call(f"{system}_tables", *places, *PATCHES[system], *arguments)
        (told,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
        return wanted, told

    return ask


def named(runs):
    return [run.folder.name for run in runs]


def test_every_mode_of_every_seed_is_planned(asked, tmp_path):
    runs, told = asked("multi_organ", "--seeds=3,5", "--modes=no_context,separate")
    assert named(runs) == [
        "separate_seed_3",
        "no_context_seed_3",
        "separate_seed_5",
        "no_context_seed_5",
    ]
    assert [run.flags for run in runs[:2]] == [
        {"mode": "separate", "seed": 3},
        {"mode": "no_context", "seed": 3},
    ]
    first = tmp_path / "runs" / "separate_seed_3"
    assert told == f"error: {first}: is not finished; expected a finished run to tabulate."


@pytest.mark.parametrize("system", ["multi_organ", "embryo", "fetal_head"])
def test_folds_alone_are_all_folds_and_with_a_fold_it_is_one(asked, system):
    methods = {"embryo": "--modes=auto_context", "multi_organ": "--modes=separate"}
    chosen = methods.get(system, "--variants=USegNet")
    runs, _ = asked(system, chosen, "--seeds=1,2", "--folds=2")
    assert [(run.flags["seed"], run.flags["fold"]) for run in runs] == [
        (1, 1),
        (1, 2),
        (2, 1),
        (2, 2),
    ]
    assert named(runs)[1].endswith("_seed_1_fold_2")
    runs, _ = asked(system, chosen, "--seeds=1", "--folds=2", "--fold=2")
    assert named(runs) == [named(runs)[0]] and named(runs)[0].endswith("_seed_1_fold_2")


def test_refinement_without_context_starts_from_the_initial_stage_of_its_seed(asked, tmp_path):
    (first, second, *_), _ = asked("embryo", "--seeds=0,1")
    assert first.flags == {"auto_context": True, "seed": 0} and first.after is None
    initial = str(tmp_path / "runs" / "auto_context_seed_0")
    assert second.flags == {"auto_context": False, "seed": 0, "initial_from": initial}
    assert second.after is first
    (alone,), _ = asked("embryo", "--seeds=0", "--modes=no_auto_context")
    assert alone.flags == {"auto_context": False, "seed": 0} and alone.after is None


def test_rows_of_the_renderer_are_variants_and_what_a_user_would_do(asked):
    runs, _ = asked("renderer", "--seeds=0", "--variants=S2T,Orig-S2T-augmented")
    assert [run.flags for run in runs] == [
        {"variant": "S2T", "seed": 0},
        {"variant": "Orig-S2T", "appearance_strength": 1.0, "seed": 0},
    ]


@pytest.mark.parametrize(
    "system, arguments, told",
    [
        ("multi_organ", ("--seeds=0", "--mode=separate"), "--mode: the tables set this flag"),
        ("multi_organ", ("--seeds=0", "--work_dir=a"), "--work_dir: the tables set this flag"),
        ("embryo", ("--seeds=0", "--noauto_context"), "--auto_context: the tables set this flag"),
        ("multi_organ", (), "--steps: a flag of trainings; expected --seeds beside it."),
        ("embryo", (), "--steps: a flag of trainings; expected --seeds beside it."),
        ("renderer", (), "--steps: a flag of trainings; expected --seeds beside it."),
        ("multi_organ", ("--seeds=0", "--runs=a,b"), "--runs=a,b: expected one folder"),
        ("multi_organ", ("--seeds=0", "--modes=all"), "--modes=all: expected some of separate, "),
        ("embryo", ("--seeds=0", "--modes=all"), "--modes=all: expected some of auto_context, "),
        ("renderer", ("--seeds=0", "--variants=T"), "--variants=T: expected some of Orig-T2T, "),
        ("renderer", ("--seeds=0", "--folds=2"), "--folds=2: runs are told apart by their seeds"),
        ("multi_organ", ("--seeds=0,1,0",), "--seeds=0,1,0: one is given twice; expected each"),
        ("fetal_head", ("--seeds=1,1",), "--seeds=1,1: one is given twice; expected each once."),
        ("fetal_head", ("--variants=USegNet,USegNet",), "--variants=USegNet,USegNet: expected"),
        ("embryo", ("--seeds=0", "--modes=auto_context,auto_context"), "--modes=auto_context,auto"),
    ],
)
def test_what_cannot_be_planned_is_one_sentence(asked, system, arguments, told):
    runs, sentence = asked(system, *arguments)
    assert not runs and sentence.startswith(f"error: {told}"), sentence


@pytest.mark.parametrize("system", ["multi_organ", "embryo", "renderer"])
def test_flags_of_a_training_are_flags_of_its_table(system):
    trains, makes = (
        importlib.import_module(f"tf_autoctx.commands.{name}").command
        for name in (f"train_{system}", f"{system}_tables")
    )
    aliases = {"corpus", "verbosity"}  # of the renderer, to whose tables it is another corpus
    assert set(trains.flags()) - aliases <= set(makes.flags())


def folder_of(command):
    """The run folder of a training's command line."""
    (word,) = [word for word in command if word.startswith("--work_dir=")]
    return pathlib.Path(word.partition("=")[2])


class Process:
    """A training that ends when it is told."""

    started, waiting, leaves = [], [], ("evaluation/scores.csv", "saved_model/1")

    def __init__(self, command, **_):
        self.folder, self.returncode = folder_of(command), 0
        self.name = self.folder.name
        Process.started.append(self.name)

    def poll(self):
        if self.name in Process.waiting:
            return None
        for name in Process.leaves:
            (self.folder / name).mkdir(parents=True)
        return 0


def test_a_run_waits_for_the_one_that_it_starts_from(tmp_path, monkeypatch):
    """Of two trainings at a time, the one in the middle begins when the first has ended."""
    monkeypatch.setattr(planned_runs, "subprocess", types.SimpleNamespace(Popen=Process, STDOUT=0))
    first = planned_runs.PlannedRun("a", tmp_path / "first", {})
    after = planned_runs.PlannedRun("b", tmp_path / "after", {}, first)
    other = planned_runs.PlannedRun("a", tmp_path / "other", {})
    Process.started, Process.waiting = [], ["first"]

    def sleep(_):
        seen.append(list(Process.started))
        if len(seen) == 2:
            Process.waiting = []

    seen = []
    monkeypatch.setattr(planned_runs.time, "sleep", sleep)
    module = importlib.import_module("tf_autoctx.commands.train_embryo")
    given = module.command.parse(["--steps=3", "--noauto_context"])
    trainings = planned_runs.Trainings(module.command, given, 2)
    assert trainings.train([first, after, other]) == {}
    assert seen == [["first", "other"], ["first", "other"], ["first", "other", "after"]]


def test_a_training_that_ends_without_a_finished_run_has_failed(tmp_path, monkeypatch):
    monkeypatch.setattr(planned_runs, "subprocess", types.SimpleNamespace(Popen=Process, STDOUT=0))
    monkeypatch.setattr(planned_runs.time, "sleep", lambda _: None)
    monkeypatch.setattr(Process, "leaves", ("evaluation/scores.csv",))
    monkeypatch.setattr(Process, "waiting", [])
    module = importlib.import_module("tf_autoctx.commands.train_embryo")
    run = planned_runs.PlannedRun("a", tmp_path, {})
    given = module.command.parse(["--steps=3"])
    failed = planned_runs.Trainings(module.command, given, 1).train([run])
    assert failed == {run: "ended with exit code 0, see its log"}


@pytest.mark.parametrize("system", ["fetal_head", "multi_organ", "embryo", "renderer"])
def test_a_training_runs_as_a_module(system):
    """As `Trainings` calls it."""
    module = f"tf_autoctx.commands.train_{system}"
    done = subprocess.run([sys.executable, "-m", module, "--steps=0"], capture_output=True)
    assert done.returncode == 1 and b"--steps" in done.stderr


def test_a_run_s_own_value_of_a_flag_takes_the_place_of_the_given_one(tmp_path, monkeypatch):
    monkeypatch.setattr(
        planned_runs,
        "subprocess",
        types.SimpleNamespace(Popen=lambda command, **_: command, STDOUT=0),
    )
    module = importlib.import_module("tf_autoctx.commands.train_embryo")
    given = module.command.parse(["--steps=6", "--noauto_context"])
    run = planned_runs.PlannedRun("a", tmp_path, {"steps": 3, "seed": 2})
    command = planned_runs.Trainings(module.command, given, 1).start(run)
    assert sorted(command[3:]) == [
        "--noauto_context",
        "--seed=2",
        "--steps=3",
        f"--work_dir={tmp_path}",
    ]


class Trained:
    """A training that leaves a finished run at once: that of seed s has s of 4 voxels wrong."""

    folders, returncode = [], 0

    def __init__(self, command, **_):
        declaration = train_multi_organ.DECLARATION
        flags = training.filled(declaration, train_multi_organ.command.parse(command[3:]))
        flags |= declaration.load().implied(flags)
        folder, shift = folder_of(command), flags["seed"]
        mask, truth = (np.zeros((4, 4, 12), bool) for _ in range(2))
        mask[:, :, 2 + shift : 6 + shift], truth[:, :, 2:6] = True, True
        about = {"system": "multi_organ", "method": "level 2", "case": "c", "group": ""}
        row = about | {"structure": "liver"} | metrics.compare(mask, truth, (1, 1, 1))
        tables.write(folder / "evaluation", [row])
        facts = {"system": "multi_organ", "flags": flags, "labels": {"3": "liver"}}
        (folder / "config.json").write_text(json.dumps(facts | {"data_fingerprint": "a" * 64}))
        (folder / "saved_model" / "1").mkdir(parents=True)
        Trained.folders.append(folder.name)

    def poll(self):
        return 0


def test_what_is_missing_is_trained_and_what_is_finished_is_read(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(planned_runs, "subprocess", types.SimpleNamespace(Popen=Trained, STDOUT=0))
    monkeypatch.setattr(planned_runs.time, "sleep", lambda _: None)
    Trained.folders = []
    places = f"--runs={tmp_path / 'runs'}", f"--output={tmp_path / 'out'}"
    words = (*places, "--modes=no_context", "--steps=3", "--base_filters=2")
    running.call("multi_organ_tables", *words, "--seeds=0,2")
    running.call("multi_organ_tables", *words, "--seeds=0,1,2")
    names = [f"no_context_seed_{seed}" for seed in (0, 2, 1)]
    assert Trained.folders == names
    rows = tables.read(tmp_path / "out")
    assert {row["method"] for row in rows} == {"level 2, without context"}
    dice = {row["case"]: row["DSC_percent"] for row in rows}
    assert dice == {"seed 0/c": 100, "seed 1/c": 75, "seed 2/c": 50}
    capsys.readouterr()
    with pytest.raises(SystemExit):
        running.call("multi_organ_tables", *words, "--seeds=0", "--base_filters=4")
    told = "this run folder was made with --base_filters 2 (now 4); give the same flags"
    assert told in capsys.readouterr().err
