"""Test cases that are drawn at random, of data that come without."""

import functools
import json
import shutil

import numpy as np
import pytest
import running
import SimpleITK as sitk
from test_datasets import decathlon, describe, names, nnunet, table, write_image, write_label
from test_folds import COMMON, ROWS, TINY

from tf_autoctx import errors, files
from tf_autoctx.commands import training
from tf_autoctx.commands.command_line import Command
from tf_autoctx.data import datasets
from tf_autoctx.data.configuration import Data
from tf_autoctx.report import tables
from tf_autoctx.systems.embryo.system import TrainedRun
from tf_autoctx.systems.shared import registry, scored_runs
from tf_autoctx.training import runs

TRAINING_ROWS = [row for row in ROWS if not row.startswith(("t.", "v."))]  # 20 of 9 patients


@pytest.fixture
def load(tmp_path):
    """Loads the table, divided by seed and fraction."""
    source = table(tmp_path / "set", *TRAINING_ROWS)
    return functools.partial(_load, source)


def _load(source, seed, fraction, validation=0.2):
    return datasets.load(source, seed, validation, test_fraction=fraction)


def groups(cases):
    return {case.group for case in cases}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("fraction, drawn", [(0.05, 1), (0.3, 3), (0.5, 4), (0.9, 8)])
def test_whole_groups_are_drawn_and_no_case_is_in_two_splits(load, seed, fraction, drawn):
    data = load(seed, fraction)
    assert len(groups(data.test)) == drawn  # of 9 patients; 4.5 is 4
    if drawn < 8:  # a single group that is left validates too
        assert groups(data.train).isdisjoint(groups(data.validation)) and data.validation
    assert groups(data.test).isdisjoint(groups(data.train) | groups(data.validation))
    every = {*names(data.train), *names(data.validation), *names(data.test)}
    assert len(every) == 20 and all(case.label for case in data.test)


def test_it_depends_on_seed_and_names_alone(load, tmp_path):
    elsewhere = table(tmp_path / "elsewhere", *reversed(TRAINING_ROWS))
    drawn = [names(load(seed, 0.3).test) for seed in range(5)]
    assert drawn == [names(_load(elsewhere, seed, 0.3).test) for seed in range(5)]
    assert len(set(map(tuple, drawn))) == 5
    # What validates says nothing of what is tested, and the other way round.
    assert names(load(0, 0.3, 0.0).test) == drawn[0] and not load(0, 0.3, 0.0).validation
    assert not set(drawn[0]) <= set(names(load(0, 0.0, 0.3).validation))


def test_a_table_without_splits_is_divided(tmp_path):
    rows = [f"i{number}.png,l{number}.png" for number in range(10)]
    source = table(tmp_path / "set", *rows, header="image,label")
    data = _load(source, 0, 0.2)
    assert (len(data.train), len(data.validation), len(data.test)) == (6, 2, 2)
    assert len(datasets.load(source, 0, fold=(1, 5)).test) == 2
    told = r"lacks \['split'\] among \['image', 'label'\]; .* `folds` or `test_fraction` divide"
    with pytest.raises(errors.UserError, match=told):
        datasets.load(source, 0)


def test_cases_that_are_told_to_validate_do(tmp_path):
    rows = [*TRAINING_ROWS, "v.png,vl.png,validation,"]
    data = _load(table(tmp_path, *rows), 0, 0.4)
    assert names(data.validation) == ["v"] and len(groups(data.test)) == 4


@pytest.mark.parametrize("make", [decathlon, nnunet])
def test_folders_without_labelled_tests_are_divided(tmp_path, make):
    """Images of a challenge that nobody outlined are no test cases."""
    folder = make(tmp_path / "set")
    with pytest.raises(
        errors.FieldError,
        match=r"^test_fraction=0.4: .*set has 1 test cases of its own, such as d; leave it out",
    ):
        _load(folder, 0, 0.4)
    shutil.rmtree(folder / "labelsTs")
    data = _load(folder, 0, 0.4)
    assert len(data.test) == 1 and set(names(data.test)) < set("abc")
    assert (len(data.train), len(data.validation)) == (1, 1)


def test_training_images_alone_are_divided(tmp_path):
    for name in "abcde":
        write_image(tmp_path / f"imagesTr/{name}.nii.gz")
        write_label(tmp_path / f"labelsTr/{name}.nii.gz")
    data = _load(describe(tmp_path, {"labels": {"left": 1, "right": 2}}), 0, 0.4)
    assert (len(data.train), len(data.validation), len(data.test)) == (2, 1, 2)


def test_one_group_cannot_be_divided(tmp_path):
    source = table(tmp_path, "a.png,al.png,train,p", "b.png,bl.png,train,p")
    with pytest.raises(errors.FieldError, match=r"are one group, p; expected two or more"):
        _load(source, 0, 0.5)


@pytest.mark.parametrize(
    "flags, told",
    [
        (
            {"test_fraction": 0.2, "folds": 5, "fold": 1},
            "`test_fraction` and `folds`: each says which cases are scored at the end; expected",
        ),
        ({"test_fraction": 0.95}, "test_fraction=0.95: expected a number from 0 to 0.9"),
    ],
)
def test_flags_that_contradict(flags, told):
    with pytest.raises(errors.UserError, match=told):
        Data(**flags)


def test_runs_of_random_tests_share_training_cases(tmp_path):
    """n_test / n_train of Nadeau and Bengio: 0.2 / 0.8, 1 of 5 folds to 4, the larger of both; of
    runs that tell their cases 1 / 4, whatever the flag."""

    def overlap(*flags, **facts):
        about = {"system": "s", "data_fingerprint": "", **facts}
        return scored_runs.overlap_of(runs.Run(tmp_path, about | {"flags": own}) for own in flags)

    fraction, fold = {"test_fraction": 0.2}, {"folds": 5, "test_fraction": 0.0}
    assert overlap(fraction) == overlap(fold) == overlap({"folds": 5}) == pytest.approx(0.25)
    assert overlap(fold, {"test_fraction": 0.5}) == 1 and overlap({}, {"folds": None}) == 0
    told = {"test_cases": ["a"], "training_cases": 4}
    assert overlap({"test_fraction": 0.05}, **told) == overlap(fold, **told) == 0.25
    assert overlap({"test_fraction": 0.05}) == pytest.approx(0.05 / 0.95)


# Runs


def parsed(system, words):
    """A declaration and its flags."""
    declaration = registry.find(system, "here")
    command = Command(print, training.kinds(declaration), "", declaration.presets)
    return declaration, command.parse([*words])


@pytest.fixture
def data(tmp_path):
    """Writes phantoms of a system without test cases, seven of them."""

    def made(system):
        declaration, given = parsed(system, [*COMMON, *TINY[system], f"--work_dir={tmp_path}"])
        values = training.filled(declaration, given)
        folder = declaration.load().write_phantoms(tmp_path / "phantoms", values)
        described = json.loads((folder / "dataset.json").read_text())
        (folder / "dataset.json").write_text(json.dumps(described | {"test": []}))
        return folder

    return made


def flags_of(system, source, folder, *more):
    return *COMMON, *TINY[system], f"--data_dir={source}", f"--work_dir={folder}", *more


@pytest.mark.parametrize("system", TINY)
def test_every_system_holds_them_out(system, data, tmp_path):
    source, folder = data(system), tmp_path / "run"
    words = flags_of(system, source, folder, "--test_fraction=0.4", "--seed=5")
    with files.owning():
        opened = training.opened(*parsed(system, words))
    held_out, run = names(opened.held_out), runs.load(folder)
    learnt = {path.name for path in folder.glob("cache/*/*") if path.is_dir()}
    assert len(held_out) == 3 and len(learnt) == 4 and not set(held_out) & learnt
    assert held_out == run.facts["test_cases"] == names(datasets.of_flags(source, run.flags).test)
    assert held_out == names(_load(source, 5, 0.4).test)  # the same for every method of the seed
    assert run.flags["test_fraction"] == 0.4 and run.facts["training_cases"] == 4
    assert scored_runs.overlap_of([run]) == 3 / 4
    if system == "embryo":
        assert names(TrainedRun.load(folder).cases.test) == held_out


def test_structures_are_those_of_all_cases_whatever_the_seed(tmp_path):
    """A CSV file names none; one value is that of a single case, which one of the seeds tests."""
    lines, rng = ["image,label"], np.random.default_rng(0)
    for number in range(4):
        label = np.zeros((24, 28, 40), np.uint8)
        for place, value in enumerate((1, 2, 5) if number == 3 else (1, 2)):
            label[4:20, 4:24, 10 * place : 10 * place + 8] = value
        for name, voxels in ((f"i{number}", rng.normal(100 * label, 9)), (f"l{number}", label)):
            image = sitk.GetImageFromArray(voxels.astype(label.dtype if name[0] == "l" else "f4"))
            sitk.WriteImage(image, str(tmp_path / f"{name}.nii.gz"))
        lines.append(f"i{number}.nii.gz,l{number}.nii.gz")
    source = tmp_path / "cases.csv"
    source.write_text("\n".join(lines))
    tested = {seed: names(_load(source, seed, 0.3).test) == ["i3"] for seed in range(9)}
    for seed in (list(tested.values()).index(drawn) for drawn in (True, False)):
        flags = "--test_fraction=0.3", f"--seed={seed}"
        words = flags_of("multi_organ", source, tmp_path / f"run_{seed}", *flags)
        with files.owning():
            opened = training.opened(*parsed("multi_organ", words))
        assert (names(opened.held_out) == ["i3"]) == tested[seed]
        assert set(opened.system.labels) == {1, 2, 5}


@pytest.mark.usefixtures("plain_networks")
def test_a_run_scores_them_and_goes_on_with_no_others(data, tmp_path, capsys):
    source, folder = data("fetal_head"), tmp_path / "run"
    flags = flags_of("fetal_head", source, folder, "--seed=5")

    def train(*more):
        with running.unexported():
            running.train("fetal_head", *flags, *more)
        return sorted({row["case"] for row in tables.read(folder / "evaluation")})

    scored = train("--test_fraction=0.4")
    assert "3 held out: drawn by seed 5" in capsys.readouterr().out
    assert scored == names(_load(source, 5, 0.4).test)
    assert train("--test_fraction=0.4") == scored
    capsys.readouterr()
    for other in (), ("--test_fraction=0.3",):
        with pytest.raises(SystemExit):
            train(*other)
        assert "was made with --test_fraction 0.4 (now" in capsys.readouterr().err


def test_phantoms_have_test_cases_of_their_own(tmp_path, capsys):
    words = *COMMON, *TINY["fetal_head"], f"--work_dir={tmp_path / 'run'}", "--test_fraction=0.5"
    with pytest.raises(SystemExit):
        running.train("fetal_head", *words)
    assert "phantoms has 1 test cases of its own" in capsys.readouterr().err
    assert not (tmp_path / "run" / "config.json").exists()
