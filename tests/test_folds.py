"""Folds: who is in which, what a run of one learns from, and the table of all."""

import csv
import dataclasses
import functools
import json
import re

import numpy as np
import pytest
import running
import SimpleITK as sitk
from test_datasets import table

from tf_autoctx import errors, files, metrics
from tf_autoctx.commands import train_fetal_head, train_multi_organ, training
from tf_autoctx.data import datasets
from tf_autoctx.data.configuration import Data
from tf_autoctx.report import calibration, tables
from tf_autoctx.systems.embryo.system import TrainedRun
from tf_autoctx.systems.fetal_head.configuration import DECLARATION
from tf_autoctx.training import runs

COMMON = ("--steps=1", "--samples_per_epoch=1", "--precision=float32", "--base_filters=2")
TINY = {
    "fetal_head": ("--phantom_size=24,16,28", "--phantom_cases=7,1", "--level=1"),
    "multi_organ": (
        "--patch_size=16",
        "--tile_size=16",
        "--downsampling=2,1",
        "--batch_size=1",
        "--phantom_size=24,28,40",
        "--phantom_spacing=6",
        "--phantom_cases=7,1",
        *("--shift=0", "--rotation=0", "--elastic=0"),
    ),
    "embryo": (
        *("--low_size=8", "--body_box=16", "--ventricle_box=8", "--depth=2", "--kernel=3"),
        *("--stage=initial", "--phantom_size=24,28,24", "--phantom_spacing=0.4"),
        "--phantom_cases=7,1",
        *("--noflips", "--shift=0", "--rotation=0"),
    ),
    "renderer": (
        *("--variant=Orig-S2T", "--size=16", "--batch_size=1"),
        *("--phantom_size=24,24", "--phantom_cases=7,1"),
    ),
}

# 20 cases of 9 patients, who have 1 to 4, one case that is told to validate, and two tests
PATIENTS = (4, 4, 3, 2, 2, 2, 1, 1, 1)
ROWS = [
    f"i{patient}{scan}.png,l{patient}{scan}.png,train,patient{patient}"
    for patient, count in enumerate(PATIENTS)
    for scan in range(count)
]
ROWS += ["v.png,vl.png,validation,", "t.png,tl.png,test,", "u.png,,test,"]


def names(cases):
    return [case.name for case in cases]


@pytest.fixture
def load(tmp_path):
    """Loads a fold, or the whole, of the table."""
    return functools.partial(datasets.load, table(tmp_path / "set", *ROWS))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("count", [2, 3, 5])
def test_every_case_is_held_out_once_and_groups_stay_whole(load, seed, count):
    folds = [load(seed, 0.3, fold=(k, count)) for k in range(1, count + 1)]
    held_out = [name for data in folds for name in names(data.test)]
    whole = load(seed)
    assert sorted(held_out) == sorted(names(whole.train + whole.validation))
    assert len(held_out) == 21
    for data in folds:
        groups = [
            {case.group for case in cases} for cases in (data.train, data.validation, data.test)
        ]
        assert all(groups) and len(set.union(*groups)) == sum(map(len, groups)) == 10
        assert len(groups[1]) == round(0.3 * (10 - len(groups[2])))
        assert names(data.train) == sorted(names(data.train))
    sizes = [len(data.test) for data in folds]
    assert max(sizes) - min(sizes) <= 1


def test_as_many_cases_in_each_as_whole_groups_allow(tmp_path):
    rows = [
        f"{g}{k}.png,{g}{k}l.png,train,{g}" for g, n in zip("abcd", (5, 3, 1, 1)) for k in range(n)
    ]
    parts = [datasets.load(table(tmp_path, *rows), 0, fold=(k, 2)).test for k in (1, 2)]
    assert [sorted({case.group for case in part}) for part in parts] == [["a"], ["b", "c", "d"]]


def test_a_fold_depends_on_seed_and_names_alone(load, tmp_path):
    here = load(3, fold=(2, 3))
    there = datasets.load(table(tmp_path / "elsewhere", *reversed(ROWS)), 3, fold=(2, 3))
    for split in datasets.SPLITS:
        assert names(getattr(here, split)) == names(getattr(there, split))
    others = {tuple(names(load(seed, fold=(2, 3)).test)) for seed in range(5)}
    assert len(others) > 1


def test_other_cases_validate_in_each_fold(tmp_path):
    """Or no network of an ensemble would have learnt from some of them."""
    source = table(tmp_path, *(f"i{k}.png,l{k}.png,train," for k in range(40)))
    folds = [datasets.load(source, 0, 0.25, fold=(k, 4)) for k in (1, 2, 3, 4)]
    assert [len(data.validation) for data in folds] == [round(0.25 * 30)] * 4
    often = [name for data in folds for name in names(data.validation)]
    assert len(set(often)) > 20  # the same 8 in all but what is held out would be 12 at most
    assert not datasets.load(source, 0, 0.0, fold=(1, 4)).validation


def test_all_folds_of_a_data_set_share_a_fingerprint(load, tmp_path):
    of_splits, of_cases, _ = zip(*(datasets.fingerprints(load(0, fold=(k, 3))) for k in (1, 2, 3)))
    assert len(set(of_splits)) == 3 and len(set(of_cases)) == 1
    whole = load(0)
    assert datasets.fingerprint(whole) == datasets.fingerprints(whole)[0]
    assert datasets.fingerprints(dataclasses.replace(whole, test=()))[1] == of_cases[0]
    (tmp_path / "set" / "i00.png").write_bytes(b"other")
    assert datasets.fingerprints(load(0, fold=(1, 3)))[1] != of_cases[0]


def test_fewer_groups_than_folds_are_refused(load):
    with pytest.raises(
        errors.FieldError, match=r"^folds=11: .* are of 10 groups; expected as many"
    ):
        load(0, fold=(1, 11))
    assert len(load(0, fold=(10, 10)).test) >= 1


@pytest.mark.parametrize(
    "flags, told",
    [
        ({"folds": 5}, r"`folds` and `fold`: one of them alone says nothing; expected both"),
        ({"fold": 1}, r"`folds` and `fold`: one of them alone"),
        ({"folds": 3, "fold": 4}, r"fold=4: expected a number from 1 to 3, the `folds`"),
        ({"folds": 1, "fold": 1}, r"folds=1: expected a number of at least 2"),
        ({"folds": 2, "fold": 0}, r"fold=0: expected a number of at least 1"),
    ],
)
def test_flags_that_name_no_fold(flags, told):
    with pytest.raises(errors.UserError, match=told):
        Data(**flags)


def test_a_flag_alone_is_refused_before_anything_is_made(tmp_path, capsys):
    with pytest.raises(SystemExit):
        running.train("fetal_head", f"--work_dir={tmp_path / 'run'}", "--folds=3")
    assert "error: --folds and --fold: one of them alone" in capsys.readouterr().err
    assert not (tmp_path / "run" / "config.json").exists()


# Runs


@pytest.mark.usefixtures("plain_networks")
@pytest.mark.parametrize("system", TINY)
def test_a_run_of_a_fold_sees_the_rest(system, tmp_path, capsys):
    flags = (*COMMON, *TINY[system], "--folds=3", f"--work_dir={tmp_path}")
    with running.unexported():
        running.train(system, *flags, "--fold=2")
    assert "held out: fold 2 of 3" in capsys.readouterr().out
    run = runs.load(tmp_path)
    scored = sorted({row["case"] for row in tables.read(tmp_path / "evaluation")})
    cached = {path.name for path in tmp_path.glob("cache/*/*") if path.is_dir()}
    assert len(scored) in (2, 3) and len(scored) + len(cached) == 7 and not set(scored) & cached
    assert (run.flags["folds"], run.flags["fold"]) == (3, 2)
    assert len(run.facts["cases_fingerprint"]) == 64
    sources = [path.parent for path in tmp_path.glob("phantoms/**/dataset.json")]
    assert scored in [names(datasets.of_flags(source, run.flags).test) for source in sources]
    if system == "embryo":
        assert names(TrainedRun.load(tmp_path).cases.test) == scored
    # It is bound to its fold.
    with pytest.raises(SystemExit), running.unexported():
        running.train(system, *flags, "--fold=3")
    assert "was made with --fold 2 (now 3)" in capsys.readouterr().err


def test_all_folds_have_the_structures_of_all_cases(tmp_path):
    """Where nobody names them: one of six cases has a second organ."""
    for kind in ("images", "labels"):
        (tmp_path / "set" / kind).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(6):
        label = np.zeros((24, 24, 24), np.uint8)
        label[4:20, 4:12, 4:20], label[8:16, 14:22, 8:16] = 3, 5 * (number == 2)
        image = rng.normal(50 * (label > 0), 20).astype(np.float32)
        for kind, voxels in (("images", image), ("labels", label)):
            path = tmp_path / "set" / kind / f"{number}.nii.gz"
            sitk.WriteImage(sitk.GetImageFromArray(voxels), str(path))
    for fold in ("1", "2", "3"):
        words = [*COMMON, *TINY["multi_organ"], "--folds=3", f"--fold={fold}"]
        words += [f"--data_dir={tmp_path / 'set'}", f"--work_dir={tmp_path / fold}"]
        given = train_multi_organ.command.parse(words)
        with files.owning():
            opened = training.opened(train_multi_organ.DECLARATION, given)
        assert opened.system.labels == {3: "label 3", 5: "label 5"}


# The table of all folds

SCORES = {"a": 90.0, "b": 80.0, "c": 70.0, "d": 60.0, "e": 50.0}
FOLDS = ({"a", "d"}, {"b"}, {"c", "e"})


def row(method, case):
    dsc = SCORES[case] + 5 * (method == "level 2")
    sizes = {"volume_mL": 1.0, "truth_volume_mL": 1.0}
    about = {"system": "fetal_head", "method": method, "case": case, "group": case}
    return {**about, "structure": "head", "DSC_percent": dsc, **sizes}


def made(folder, number, methods=("level 1", "level 2"), cases="cases", **flags):
    """A run folder of a fold with its evaluation."""
    words = ["--folds=3", f"--fold={number}", "--data_dir=somewhere"]
    values = training.filled(DECLARATION, train_fetal_head.command.parse(words)) | flags
    path = folder / f"fold_{number}"
    run = runs.open_run(path, runs.Making("fetal_head", values, f"data {number}"))
    run.note(labels={1: "head"}, cases_fingerprint=cases)
    rows = [row(method, case) for method in methods for case in sorted(FOLDS[number - 1])]
    tables.write(path / "evaluation", rows)
    (path / "evaluation" / "views").mkdir()
    for case in FOLDS[number - 1]:
        (path / "evaluation" / "views" / f"{case}.npz").write_bytes(case.encode())
    return path


@pytest.fixture
def folds(tmp_path):
    return [made(tmp_path, number) for number in (1, 2, 3)]


def test_a_fold_of_an_earlier_release_is_one_of_them(folds, tmp_path):
    """It has no flags that are later, such as `loss`."""
    path = folds[0] / "config.json"
    config = json.loads(path.read_text())
    config["flags"]["loss"] = "paper"
    for folder in folds[1:]:
        other = json.loads((folder / "config.json").read_text())
        other["flags"]["loss"] = "paper"
        (folder / "config.json").write_text(json.dumps(other))
    del config["flags"]["loss"]
    path.write_text(json.dumps(config))
    running.call("folds", *folds, f"--output={tmp_path / 'all'}")
    assert (tmp_path / "all" / "scores.csv").exists()


def test_calibration_is_that_of_all_folds(folds, tmp_path):
    """In the last bin of 0.95: one right of one, one of two, none of one."""
    for path, truth in zip(folds, ([1], [1, 0], [0])):
        rows = tables.read(path / "evaluation")
        bins = metrics.reliability([0.95] * len(truth), truth)
        curves = {(method, "head"): bins for method in ("level 1", "level 2")}
        tables.write(path / "evaluation", rows, curves=curves)
    running.call("folds", *folds, f"--output={tmp_path / 'all'}")
    curves = calibration.read(tmp_path / "all")
    assert list(curves) == [("level 1", "head"), ("level 2", "head")]
    np.testing.assert_allclose(curves["level 2", "head"][-1], [4, 4 * 0.95, 2])
    assert not curves["level 2", "head"][:-1].any()
    assert (tmp_path / "all" / "calibration.png").exists()
    # A fold that was scored by an earlier release has none.
    tables.write(folds[1] / "evaluation", tables.read(folds[1] / "evaluation"))
    running.call("folds", *folds, f"--output={tmp_path / 'all'}")
    assert not list((tmp_path / "all").glob("calibration.*"))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_the_table_of_all_folds_has_every_case_once(folds, tmp_path, capsys, order):
    running.call("folds", *(folds[k] for k in order), f"--output={tmp_path / 'all'}")
    rows = tables.read(tmp_path / "all")
    assert [(r["method"], r["case"]) for r in rows] == [
        (method, case) for method in ("level 1", "level 2") for case in "abcde"
    ]
    printed = capsys.readouterr().out
    summary = json.loads((tmp_path / "all" / "summary.json").read_text())
    metric = summary["methods"]["level 2"]["head"]["metrics"]["DSC_percent"]
    assert metric["n"] == 5 and metric["mean"] == pytest.approx(75)
    assert metric["sd"] == pytest.approx(np.std([95, 85, 75, 65, 55], ddof=1))
    assert re.search(rf"\[{metric['ci_low']:.2f}, {metric['ci_high']:.2f}\]", printed)
    assert "level 2 against level 1: DSC +5.00 %" in printed
    # Of two, one and two cases: fewer than five runs are told apart over their cases.
    assert "(Wilcoxon over 5 cases of 3 runs)" in printed
    views = {path.name: path.read_bytes() for path in (tmp_path / "all" / "views").iterdir()}
    assert views == {f"{case}.npz": case.encode() for case in "abcde"}
    with open(tmp_path / "all" / "cases.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 10


def test_run_folders_are_words_or_a_flag(folds, tmp_path):
    listed = ",".join(map(str, folds))
    running.call("folds", f"--runs={listed}", f"--output={tmp_path / 'all'}")
    assert len(tables.read(tmp_path / "all")) == 10


@pytest.mark.parametrize(
    "change, told",
    [
        ([1, 2], "lacks 3 of the 3 folds; expected each of them once"),
        ([2], "lacks 1, 3 of the 3 folds"),
        ([1, 2, 3, "copy"], "has one of them twice of the 3 folds"),
        ([1, 2, {"cases": "others"}], "made of other cases than"),
        ([1, 2, {"steps": 4}], r"made with --steps 4, unlike"),
        ([1, 2, {"seed": 4}], r"made with --seed 4, unlike"),
        ([1, 2, {"initial_weights": "fold_1"}], r"made with --initial_weights 'fold_1', unlike"),
        ([1, 2, {"folds": 4}], r"made with --folds 4, unlike"),
        ([1, 2, {"scale": 0.5}], r"made with --scale 0.5, unlike"),
        ([1, 2, {"methods": ["level 1"]}], "was scored by level 1, .* by level 1, level 2; expec"),
        ([1, 2, {"folds": None}], "a run of no fold; expected one that was made with --folds"),
        ([], "expected the run folders of all folds"),
    ],
)
def test_what_does_not_join_is_one_sentence(tmp_path, capsys, change, told):
    folders = []
    for part in change:
        if part == "copy":
            folders.append(made(tmp_path / "copy", 3))
        else:
            number, options = (part, {}) if isinstance(part, int) else (3, part)
            folders.append(made(tmp_path, number, **options))
    with pytest.raises(SystemExit):
        running.call("folds", *folders, f"--output={tmp_path / 'all'}")
    error = capsys.readouterr().err
    assert re.search(told, error) and error.count("\n") == 1, error
    assert not (tmp_path / "all").exists()


def test_where_and_how_long_a_fold_was_trained_do_not_matter(tmp_path):
    """A fold may be trained on another machine, from a copy of the data."""
    made(tmp_path, 1), made(tmp_path, 2)
    made(tmp_path, 3, data_dir="elsewhere", checkpoint_steps=7, precision="mixed_bfloat16")
    words = [tmp_path / f"fold_{number}" for number in (1, 2, 3)]
    running.call("folds", *words, f"--output={tmp_path / 'all'}")
    assert len(tables.read(tmp_path / "all")) == 10
