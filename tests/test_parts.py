"""Parts of a job array: together they write what one process does, whenever each runs."""

import errno
import json
import pathlib
import subprocess
import sys

import helpers
import numpy as np
import pytest
import running
import SimpleITK as sitk
import tensorflow as tf

from tf_autoctx import export, files
from tf_autoctx.commands import score as score_command
from tf_autoctx.data import images
from tf_autoctx.errors import FieldError, UserError
from tf_autoctx.parts import Output, Parts
from tf_autoctx.report import tables
from tf_autoctx.systems.shared import origins

TABLES = ("uncertainty.csv", "measurements.csv")
SCORES = ("scores.csv", "cases.csv", "summary.json", "failed.csv")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A SavedModel: a voxel above 100 is the head, and is the surer the brighter it is."""
    folder = tmp_path_factory.mktemp("model")

    def segment(image):
        return {"label": tf.cast(image > 100, tf.uint8), "probability": image / 200}

    def unsure(image):
        return {**segment(image), "uncertainty": 1 - image / 200}

    card = {"system": "fetal_head", "labels": {1: "head"}}
    signatures = {"serving_default": segment, "uncertainty": unsure}
    export.write(folder, export.Exported(signatures, {}, card))
    return folder


@pytest.fixture
def scans(tmp_path):
    """Five volumes, a.nii.gz to e.nii.gz."""
    (tmp_path / "in").mkdir()
    for seed, name in enumerate("abcde"):
        voxels = np.random.default_rng(seed).integers(0, 200, (5, 6, 7)).astype(np.uint8)
        images.write(tmp_path / "in" / f"{name}.nii.gz", sitk.GetImageFromArray(voxels))
    return tmp_path / "in"


@pytest.fixture
def predict(model, scans):
    """Runs the command on the five volumes."""

    def run(output, *flags):
        where = (f"--model={model}", f"--input={scans}", f"--output={output}")
        running.call("predict", *where, "--uncertainty", "--measurements", *flags)

    return run


def part(number, of=2):
    return f"--num_parts={of}", f"--part_id={number}"


def visible(folder):
    """{name: bytes} of all files but hidden ones, and those in hidden folders."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    names = {path.relative_to(folder): path for path in paths}
    shown = {n: p for n, p in names.items() if not any(part[0] == "." for part in n.parts)}
    return {name.as_posix(): path.read_bytes() for name, path in shown.items()}


def refused(capsys, call, *arguments):
    """The sentence that a command ends with."""
    capsys.readouterr()
    with pytest.raises(SystemExit, match="1"):
        call(*arguments)
    return capsys.readouterr().err.splitlines()[-1]


# What a part takes


def test_cases_are_dealt_out_in_turn():
    cases = dict(zip("abcde", range(5)))
    assert Parts(num_parts=2, part_id=0).of(cases) == {"a": 0, "c": 2, "e": 4}
    assert Parts(num_parts=2, part_id=1).of(cases) == {"b": 1, "d": 3}
    assert Parts(num_parts=9, part_id=8).of(cases) == {} and Parts().of(cases) == cases


def test_parts_that_cannot_be_are_one_sentence():
    with pytest.raises(FieldError, match=r"part_id=3: expected a number below `num_parts=3`"):
        Parts(num_parts=3, part_id=3)
    for alone in ({"num_parts": 3}, {"part_id": 0}):
        with pytest.raises(UserError, match="is given alone; expected both or neither"):
            Parts(**alone)
    for wrong in ({"num_parts": 0, "part_id": 0}, {"num_parts": 2, "part_id": -1}):
        with pytest.raises(FieldError, match="expected a number of at least"):
            Parts(**wrong)


# Prediction


def test_parts_predict_what_one_process_does_byte_for_byte(predict, tmp_path, capsys):
    predict(tmp_path / "whole")
    out = tmp_path / "parts"
    predict(out, *part(1))
    assert sorted(path.name for path in out.glob("[!.]*.*")) == ["b.nii.gz", "d.nii.gz"]
    assert "part 1 has ended; 1 of 2 have not" in capsys.readouterr().out
    predict(out, *part(0))
    assert "part 0 has ended, the last of 2: the tables are joined" in capsys.readouterr().out
    made = visible(out)
    assert made == visible(tmp_path / "whole") and set(TABLES) <= set(made)


def test_a_part_goes_on_and_joins_again(predict, tmp_path, capsys):
    out = tmp_path / "out"
    for number in (0, 1):
        predict(out, *part(number))
    before = visible(out)
    for table in TABLES:
        (out / table).unlink()
    (out / "d.nii.gz").unlink()
    capsys.readouterr()
    predict(out, *part(1), "--resume")
    assert "1 of 2 images are done already" in capsys.readouterr().out
    assert visible(out) == before


def test_a_part_of_another_model_is_not_joined(predict, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    predict(out, *part(0))
    monkeypatch.setattr(origins, "of_model", lambda *_: "another")
    predict(out, *part(1))
    told = capsys.readouterr().out
    assert "the tables are not joined: part 0 was made with another model" in told
    assert not set(TABLES) & set(visible(out))
    predict(out, *part(0), "--resume")
    assert "0 of 3 images are done already" in capsys.readouterr().out
    assert set(TABLES) <= set(visible(out))


@pytest.mark.parametrize(
    "flag", ["--masks", "--probabilities", "--nocompressed", "--output_format=nrrd"]
)
def test_a_part_that_was_written_otherwise_is_not_joined(predict, tmp_path, capsys, flag):
    predict(tmp_path, *part(0))
    predict(tmp_path, *part(1), flag)
    assert "the tables are not joined: part 0 was made with" in capsys.readouterr().out
    assert not set(TABLES) & set(visible(tmp_path))


def test_a_part_with_a_bad_image_has_ended_all_the_same(predict, scans, tmp_path, capsys):
    (scans / "b.nii.gz").write_bytes(b"no image")
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert "1 of 5 images failed" in refused(capsys, predict, whole)
    assert "1 of 1 images failed" in refused(capsys, predict, out, *part(1, of=5))
    for number in (0, 2, 3, 4):
        predict(out, *part(number, of=5))
    assert visible(out) == visible(whole)


def test_a_folder_is_of_one_number_of_parts(predict, tmp_path, capsys):
    whole, out = tmp_path / "whole", tmp_path / "out"
    predict(whole)
    predict(out, *part(0))
    told = refused(capsys, predict, out, *part(0, of=3), "--resume")
    assert (
        f"{out}: holds the results of 2 parts, and --num_parts is 3; expected --num_parts=2" in told
    )
    told = refused(capsys, predict, out, "--resume")
    assert "holds the results of 2 parts, and --num_parts is not given" in told
    told = refused(capsys, predict, whole, *part(0), "--resume")
    assert f"{whole}: holds results of a run without --num_parts; expected none" in told
    assert not (whole / ".predict_parts").exists()


# Scoring


@pytest.fixture
def labels(tmp_path):
    """Predictions and truths of five cases: cubes of two structures, off by the case's number of
    voxels; a surface distance is no number of few digits."""
    for folder in ("truth", "ours"):
        (tmp_path / folder).mkdir()
    for shift, name in enumerate("abcde"):
        for folder, moved in (("truth", 0), ("ours", shift)):
            label = np.zeros((8, 12, 14), np.uint8)
            label[2:6, 1 + moved : 5 + moved, 1:5] = 1
            label[2:7, 3:7, 6 + moved : 9 + moved] = 2
            image = sitk.GetImageFromArray(label)
            image.SetSpacing((0.3, 0.7, 1.1))
            images.write(tmp_path / folder / f"{name}.nii.gz", image)
    return tmp_path


def score(folder, output, *flags):
    where = (f"--predictions={folder / 'ours'}", f"--labels={folder / 'truth'}")
    words = [
        *where,
        f"--output={folder / output}",
        "--workers=1",
        "--surface_tolerance=0.5",
        *flags,
    ]
    score_command.command.perform(words)


def test_parts_score_what_one_process_does_byte_for_byte(labels, capsys):
    score(labels, "whole", "--fill_holes")
    whole = capsys.readouterr().out
    score(labels, "parts", "--fill_holes", *part(1))
    assert not visible(labels / "parts")
    score(labels, "parts", "--fill_holes", *part(0))
    made = visible(labels / "parts")
    assert made == visible(labels / "whole") and set(made) == set(SCORES)
    assert len(tables.read(labels / "parts")) == 5 * 2 * 2
    table = whole[whole.index("\nmethod") :]
    assert table in capsys.readouterr().out


def test_failures_of_all_parts_are_told_by_the_last(labels, capsys):
    (labels / "ours" / "c.nii.gz").write_bytes(b"no image")
    assert "failed.csv: 1 of 5 cases" in refused(capsys, score, labels, "whole")
    assert "failed.csv: 1 of 3 cases" in refused(capsys, score, labels, "parts", *part(0))
    assert "failed.csv: 1 of 5 cases" in refused(capsys, score, labels, "parts", *part(1))
    assert visible(labels / "parts") == visible(labels / "whole")


def test_parts_that_were_scored_otherwise_are_not_joined(labels, capsys):
    score(labels, "out", *part(0))
    score(labels, "out", *part(1), "--merge")
    assert "part 0 was made with another model, other flags" in capsys.readouterr().out
    assert not visible(labels / "out")
    score(labels, "out", *part(1))
    assert set(visible(labels / "out")) == set(SCORES)


# At the same time


def begun(folder, number, of=2):
    output = Output(folder, "work", Parts(num_parts=of, part_id=number))
    output.begin()
    return output


def test_a_part_is_of_one_process_and_the_whole_of_none_meanwhile(tmp_path):
    process = running.holding(tmp_path / ".work_parts" / "1")
    try:
        with files.owning():
            begun(tmp_path, 0)
            with pytest.raises(UserError, match=rf"another process \({process.pid} on"):
                begun(tmp_path, 1)
            with pytest.raises(UserError, match="holds the results of 2 parts"):
                Output(tmp_path, "work", Parts()).begin()
    finally:
        process.kill()
        process.wait()


def test_no_part_begins_while_one_process_has_the_whole_folder(tmp_path):
    process = running.holding(tmp_path)
    try:
        with files.owning(), pytest.raises(UserError, match="another process"):
            begun(tmp_path, 0)
    finally:
        process.kill()
        process.wait()
    with files.owning():  # nothing was noted
        Output(tmp_path, "work", Parts()).begin()


def test_unfinished_files_of_other_parts_stay_until_all_have_ended(tmp_path):
    unfinished = tmp_path / f".{'0' * 32}-a.nii.gz"
    unfinished.write_text("")
    with files.owning():
        for number in (0, 1):
            with begun(tmp_path, number).ended("made from"):
                assert unfinished.exists() is (number == 0)


def test_a_part_that_begins_again_has_not_ended(tmp_path):
    with files.owning():
        first, second = (begun(tmp_path, number) for number in (0, 1))
        with first.ended("a") as folders:
            assert folders == []
        first.begin()
        with second.ended("a") as folders:
            assert folders == []
        with first.ended("a") as folders:
            assert folders == [first.tables, second.tables]


RACE = """
import sys
from tf_autoctx.parts import Output, Parts
for turn in range(20):
    output = Output(f"{sys.argv[1]}/{turn}", "work", Parts(num_parts=4, part_id=int(sys.argv[2])))
    output.begin()
    with output.ended("alike") as folders:
        if folders:
            with open(f"{sys.argv[1]}/{turn}/joined", "a") as file:
                file.write(f"{len(folders)} ")
"""


def test_of_parts_that_end_at_once_exactly_one_joins(tmp_path):
    """Four processes, twenty folders."""
    command = [sys.executable, "-c", RACE, str(tmp_path)]
    processes = [subprocess.Popen([*command, str(number)], cwd=running.ROOT) for number in range(4)]
    assert [process.wait(timeout=60) for process in processes] == [0] * 4
    assert [(tmp_path / str(turn) / "joined").read_text() for turn in range(20)] == ["4 "] * 20


def test_a_kill_between_end_and_join_leaves_the_join_to_the_next(tmp_path):
    with files.owning():
        first, second = (begun(tmp_path, number) for number in (0, 1))
        with first.ended("a"):
            pass
        with pytest.raises(KeyboardInterrupt), second.ended("a"):
            raise KeyboardInterrupt
        state = json.loads((tmp_path / ".work_parts" / "state.json").read_text())
        assert state["num_parts"] == 2 and all(state["ended"].values())
        first.begin()
        with first.ended("a") as folders:
            assert len(folders) == 2


@pytest.mark.parametrize("text", ['{"num_parts": 2, "end', "", "[]", '{"num_parts": 2}'])
def test_a_state_that_is_damaged_is_one_sentence(tmp_path, text):
    path = tmp_path / ".work_parts" / "state.json"
    with files.owning():
        first = begun(tmp_path, 0)
        path.write_text(text)
        for call in (
            first.begin,
            first.ended("a").__enter__,
            Output(tmp_path, "work", Parts()).begin,
        ):
            with pytest.raises(
                UserError, match=rf"^{path}: .* expected the state of parts: delete"
            ):
                call()
    assert path.read_text() == text


def test_a_state_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    def full(path, text):
        path.write_bytes(text.encode()[:5])
        raise OSError(errno.ENOSPC, "no space")

    path = tmp_path / ".work_parts" / "state.json"
    with files.owning():
        first = begun(tmp_path, 0)
        before = path.read_text()
        monkeypatch.setattr(pathlib.Path, "write_text", full)
        with pytest.raises(UserError, match=f"^{path}: "), first.ended("a"):
            pass
        assert path.read_text() == before


def test_nothing_heavy_is_imported():
    assert not {"tensorflow", "keras", "numpy"} & helpers.modules_after("import tf_autoctx.parts")
