"""Which images the weights of a run have seen: none of them is held out again."""

import json
import re

import helpers
import pytest
import running
from test_channels import in_a_file_each, label, nnunet, volume, write
from test_folds import made
from test_initial_weights import COMMON

from tf_autoctx import errors, export
from tf_autoctx.data import datasets
from tf_autoctx.systems.shared import seen
from tf_autoctx.training import runs

TINY = (*COMMON, "--level=1", "--variant=USegNet", "--scale=0.5", "--batch_size=1")


def scans(train="", validation="", test=""):
    """Cases a, b and so on by split, each marked by its name."""
    given = {"train": train, "validation": validation, "test": test}
    return {split: {name: [name] for name in names} for split, names in given.items()}


def test_what_has_been_seen():
    first = seen.after(scans("abc", "de", "fg"))
    assert first == {"learnt": ["a", "b", "c"], "validated": ["d", "e"]}
    # What validated is learnt by now, and what was learnt stays that.
    second = seen.after(scans("dh", "ai", "j"), first)
    assert second == {"learnt": list("abcdh"), "validated": ["e", "i"]}


@pytest.mark.parametrize(
    "new, scored, told",
    [
        (scans("abc", "de", "fg"), "fg", None),  # the same splits
        (scans("abc", "hi", "fg"), "fg", None),
        (scans("xy", "de", ""), "de", None),  # scored as they were in the first run
        (scans("bc", "de", "afg"), "afg", r"seen 1 \(a\) of 3 cases that are scored here"),
        (scans("abc", "f", "dg"), "dg", r"seen 1 \(d\) of 2 cases"),  # chose checkpoints
        (scans("xy", "ad", ""), "ad", r"seen 1 \(a\) of 2 cases"),
        (scans("xy", "d", "abcg"), "abcg", r"seen 3 \(a, b, c\) of 4 cases"),
        (scans("xy", "d", "ag"), "g", None),  # a test image without a label is not scored
    ],
)
def test_what_was_seen_is_not_scored(new, scored, told, caplog):
    before = seen.after(scans("abc", "de", "fg"))
    flag = "initial_weights", "runs/first"
    if told is None:
        seen.require_new(flag, before, new, scored)
    else:
        with pytest.raises(errors.FieldError, match=f"^initial_weights=runs/first: .*{told}"):
            seen.require_new(flag, before, new, scored)
    assert not caplog.records


def test_what_was_learnt_and_validates_is_warned_of(caplog):
    before = seen.after(scans("abcdefg", "h", ""))
    seen.require_new(("initial_weights", "runs/first"), before, scans("h", "abcdefgx", "y"), "y")
    (record,) = caplog.records
    assert "runs/first: its weights have learnt from 7 (a, b, c, d, e, ...) of 8 cases that va" in (
        record.getMessage()
    )


def test_an_image_is_known_by_the_bytes_of_each_channel(tmp_path):
    """Wherever it lies, whatever it is called, and beside whichever other channel."""
    for case, folder in ((0, "a"), (1, "b")):
        in_a_file_each(tmp_path / folder / "images", case)
        write(tmp_path / folder / "labels" / f"case{case}.nii.gz", volume(label(case)))
    (tmp_path / "b/images/case1_0001.nii.gz").write_bytes(
        (tmp_path / "a/images/case0_0000.nii.gz").read_bytes()
    )
    of_a, of_b = (
        datasets.fingerprints(datasets.load(tmp_path / name, 0, channels=2))[2]["train"]
        for name in "ab"
    )
    assert [len(marks) for marks in (*of_a.values(), *of_b.values())] == [2, 2]
    assert set(of_a["case0"]) & set(of_b["case1"]) == {of_a["case0"][0]}


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """(data set of two channels, the finished run of its first fold of three)"""
    folder = tmp_path_factory.mktemp("seen")
    source = nnunet(folder / "set", count=6, tests=0)
    return source, train(source, folder / "first", "--fold=1")


def train(source, folder, *flags):
    words = (*TINY, "--folds=3", f"--data_dir={source}", f"--work_dir={folder}")
    with helpers.plain_networks():
        running.train("fetal_head", *words, *flags)
    return folder


def test_a_run_and_its_export_tell_what_they_have_seen(first):
    source, run = first
    data = datasets.of_flags(source, runs.load(run).flags)
    assert len(data.train) == 3 and len(data.validation) == 1
    fact = runs.load(run).facts["seen"]
    assert [len(fact[key]) for key in ("learnt", "validated")] == [2 * 3, 2 * 1]
    assert export.read_card(run / "saved_model" / "1")["seen"] == fact


@pytest.mark.parametrize("model", ["", "saved_model"])
def test_another_fold_does_not_start_from_it(first, tmp_path, capsys, model):
    source, run = first
    with pytest.raises(SystemExit) as ended:
        train(source, tmp_path / "run", "--fold=2", f"--initial_weights={run / model}")
    error = capsys.readouterr().err
    assert ended.value.code == 1 and error.count("error: ") == 1
    assert re.search(rf"--initial_weights={run / model}\S*: its weights have seen 2 \(case", error)
    assert "of 2 cases that are scored here" in error
    assert not (tmp_path / "run" / "config.json").exists()


def test_the_same_fold_does(first, tmp_path, unfinished):
    source, run = first
    again = train(source, tmp_path / "run", "--fold=1", f"--initial_weights={run}")
    assert runs.load(again).facts["seen"] == runs.load(run).facts["seen"]


def test_a_model_that_does_not_tell_is_warned_of(first, tmp_path, caplog, unfinished):
    source, run = first
    facts = json.loads((run / "config.json").read_text())
    old = tmp_path / "old"
    (old / "level_1").mkdir(parents=True)
    (old / "level_1" / "model.keras").write_bytes((run / "level_1" / "model.keras").read_bytes())
    (old / "config.json").write_text(json.dumps({k: v for k, v in facts.items() if k != "seen"}))
    for fold, warned in (("1", False), ("2", True)):
        caplog.clear()
        folder = train(source, tmp_path / fold, f"--fold={fold}", f"--initial_weights={old}")
        assert ("does not tell which cases its weights have learnt from" in caplog.text) == warned
        fact = runs.load(folder).facts["seen"]  # its own cases, and who did not tell
        assert len(fact["learnt"]) == 2 * 3 and fact.get("untold") == (
            [str(old)] if warned else None
        )
    # What the new run has learnt from is not held out; of the rest its own model is warned of.
    third = f"--initial_weights={tmp_path / '2'}"
    with pytest.raises(SystemExit):
        train(source, tmp_path / "after", "--fold=3", third)
    caplog.clear()
    train(source, tmp_path / "after", "--fold=2", third)
    assert f"{old}: does not tell" in caplog.text


def test_a_channel_that_stands_for_missing_ones_marks_no_case():
    filled = scans("ab", "c", "d")
    for split in filled.values():
        for marks in split.values():
            marks.append("zeros")
    fact = seen.after(filled)
    assert fact == {"learnt": ["a", "b"], "validated": ["c"]}
    seen.require_new(("initial_weights", "runs/first"), fact, filled, "d")


def test_weights_of_two_trainings_have_seen_what_both_have():
    one = seen.after(scans("ab", "c", ""))
    two = {**seen.after(scans("c", "de", "")), "untold": ["old"]}
    assert seen.joined(one, two) == {
        "learnt": ["a", "b", "c"],
        "validated": ["d", "e"],
        "untold": ["old"],
    }


def test_folds_may_each_start_from_a_run_that_has_not_seen_what_they_hold_out(tmp_path):
    for number in (1, 2, 3):
        path = made(tmp_path, number, initial_weights=f"first/fold_{number}")
        runs.load(path).note(seen={"learnt": [], "validated": []})
    words = [tmp_path / f"fold_{number}" for number in (1, 2, 3)]
    running.call("folds", *words, f"--output={tmp_path / 'all'}")
    assert (tmp_path / "all" / "scores.csv").exists()


def test_folds_that_start_from_a_run_and_folds_that_do_not_are_no_one_method(tmp_path, capsys):
    for number in (1, 2, 3):
        path = made(tmp_path, number, initial_weights="" if number == 1 else "first/fold")
        runs.load(path).note(seen={"learnt": [], "validated": []})
    words = [tmp_path / f"fold_{number}" for number in (1, 2, 3)]
    with pytest.raises(SystemExit):
        running.call("folds", *words, f"--output={tmp_path / 'all'}")
    assert "made with --initial_weights 'first/fold', unlike" in capsys.readouterr().err
