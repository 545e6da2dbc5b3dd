"""What a run folder binds, who may write it, and what becomes of damage and of leftovers."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile

import helpers
import keras
import numpy as np
import pytest
import running
import SimpleITK as sitk
import tensorflow as tf
from helpers import contents

from tf_autoctx import errors, export, files
from tf_autoctx.data import pipeline
from tf_autoctx.systems.fetal_head.training import LevelStage
from tf_autoctx.systems.shared import evaluation, opening, origins, prediction, stages
from tf_autoctx.systems.shared.stage import digest
from tf_autoctx.training import checkpoints, runs

ROOT = pathlib.Path(__file__).resolve().parent.parent
TINY = (
    "--base_filters=2",
    "--steps=2",
    "--samples_per_epoch=2",
    "--precision=float32",
    "--phantom_size=24,16,28",
    "--phantom_cases=3,1",
    "--learning_rate_decay=constant",
    "--level=1",
)


def train(folder, *arguments):
    running.train("fetal_head", f"--work_dir={folder}", *TINY, *arguments)


def outcome(capsys, command, *arguments):
    """What a command ends in: None, or what it tells of a mistake; anything else fails the test."""
    capsys.readouterr()
    try:
        running.call(command, *arguments)
    except SystemExit as ended:
        told = capsys.readouterr().err
        assert ended.code == 1 and "error: " in told and "Traceback" not in told, told
        return told[told.rindex("error: ") :].strip()
    return None


def trained(capsys, folder, *arguments):
    words = running.last_of_each([f"--work_dir={folder}", *TINY, *arguments])
    return outcome(capsys, "train_fetal_head", *words)


# Files and folders are what is tested, in many trainings.
pytestmark = pytest.mark.usefixtures("plain_networks")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of one level, with its export."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(folder)
    return folder


@pytest.fixture
def copy(run, tmp_path):
    """A copy of the run that a test may spoil."""
    return shutil.copytree(run, tmp_path / "copy")


@pytest.fixture
def bare(monkeypatch):
    """Trainings end without scores and export."""
    monkeypatch.setattr(evaluation, "evaluate", lambda *_, **__: None)
    monkeypatch.setattr(opening, "export_run", lambda *_, **__: None)
    monkeypatch.setattr(opening.page, "write", lambda *_: None)


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    path = tmp_path_factory.mktemp("scans") / "a.nii.gz"
    voxels = np.random.default_rng(0).normal(size=(16, 18, 20)).astype(np.float32)
    image = sitk.GetImageFromArray(voxels)
    sitk.WriteImage(image, str(path))
    return path


def weights(folder):
    return stages.load(folder / "level_1" / "model.keras").get_weights()


# What binds


@pytest.mark.usefixtures("bare")
def test_a_folder_in_which_nothing_was_trained_opens_with_any_flags(tmp_path, capsys):
    told = trained(capsys, tmp_path / "run", "--variant=p-USegNet", "--patch_size=64")
    assert "--patch_size=64: a training volume has" in told
    # As the sentence advises, and with other phantoms, filters and seed
    changed = ("--variant=p-USegNet", "--patch_size=8", "--seed=3", "--phantom_size=20,16,28")
    assert trained(capsys, tmp_path / "run", *changed) is None
    flags = runs.load(tmp_path / "run").flags
    assert (flags["patch_size"], flags["seed"]) == (8, 3)
    shape = pipeline.stored(
        str(next((tmp_path / "run" / "cache").glob("*/head_000/image"))), "image"
    ).shape
    assert len(list((tmp_path / "run" / "cache").iterdir())) == 1 and shape[0] < 24
    # Now it is bound
    told = trained(capsys, tmp_path / "run", *changed, "--learning_rate=1")
    assert "--learning_rate 0.001 (now 1.0)" in told


@pytest.fixture
def data(run, tmp_path):
    """A data set that a test may spoil."""
    return shutil.copytree(run / "phantoms", tmp_path / "data")


@pytest.mark.usefixtures("bare")
def test_all_faults_are_told_together_and_nothing_is_bound(data, tmp_path, capsys):
    spoiled = ["imagesTr/head_000.nii.gz", "labelsTr/head_002.nii.gz", "imagesTs/head_003.nii.gz"]
    whole = {name: (data / name).read_bytes() for name in spoiled}
    for name in spoiled:
        (data / name).write_bytes(b"hello")
    told = trained(capsys, tmp_path / "run", f"--data_dir={data}")
    assert told.startswith("error: 3 faults in the cases; expected none:")
    assert all(f"{data / name}: " in told for name in spoiled)
    assert not (tmp_path / "run" / "config.json").exists()
    for name, content in whole.items():
        (data / name).write_bytes(content)
    assert trained(capsys, tmp_path / "run", f"--data_dir={data}") is None
    assert (tmp_path / "run" / "config.json").exists()


def test_of_many_faults_the_first_twenty_are_told():
    faults = errors.Faults()
    for number in range(25):
        for _ in range(2):  # told once
            with faults.collecting():
                raise errors.FieldError("size", number, "too small.")
    with pytest.raises(errors.UserError) as refused:
        faults.require_none("faults")
    lines = str(refused.value).splitlines()
    assert lines[0] == "25 faults; expected none:" and len(lines) == 22
    assert lines[1] == "  --size=0: too small." and lines[-1] == "  and 5 more"


# More steps


@pytest.fixture
def likeness(monkeypatch):
    """A score that every step changes: the network of one convolution finds no head yet."""

    def score(_, level, sample):
        probability = level(sample["image"][None], sample["context"][None])[0]
        return 1 - float(np.abs(probability.numpy() - sample["label"].numpy()).mean())

    monkeypatch.setattr(LevelStage, "score", score)


@pytest.mark.usefixtures("bare", "likeness")
def test_more_steps_end_in_the_weights_of_an_unbroken_run(copy, tmp_path, capsys):
    before = weights(copy)
    assert trained(capsys, copy, "--steps=6") is None
    train(tmp_path / "whole", "--steps=6")
    more, whole = weights(copy), weights(tmp_path / "whole")
    assert any((a != b).any() for a, b in zip(before, more))
    for ours, theirs in zip(more, whole, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert len((copy / "level_1" / "history.csv").read_text().splitlines()) == 4
    assert "--steps 6 (now 5)" in trained(capsys, copy, "--steps=5")
    path = copy / "level_1" / "model.keras"
    stamp = path.stat().st_mtime_ns
    assert trained(capsys, copy, "--steps=6") is None and path.stat().st_mtime_ns == stamp


@pytest.mark.usefixtures("bare")
def test_a_level_on_another_level_is_trained_anew(copy, capsys, caplog):
    assert trained(capsys, copy, "--level=2") is None
    second = copy / "level_2" / "model.keras"
    stamp = second.stat().st_mtime_ns
    assert trained(capsys, copy, "--level=2") is None and second.stat().st_mtime_ns == stamp
    # Another level 1, of a longer training say
    first = copy / "level_1" / "model.keras"
    network = keras.models.load_model(first, compile=False)
    network.set_weights([array + 0.125 for array in network.get_weights()])
    network.save(first)
    with zipfile.ZipFile(first, "a") as archive:
        checksum = digest(network.get_weights())
        archive.writestr(stages.RECORD, json.dumps({"steps": 2, "digest": checksum}))
    shutil.rmtree(copy / "level_1" / "probability")
    trained(capsys, copy, "--level=2")
    assert "is trained anew" in caplog.text and second.stat().st_mtime_ns != stamp


@pytest.mark.usefixtures("bare", "likeness")
def test_more_steps_are_told_and_levels_above_are_trained_anew(copy, capsys, caplog):
    train(copy, "--level=2")
    second = copy / "level_2" / "model.keras"
    stamp = second.stat().st_mtime_ns
    capsys.readouterr()
    train(copy, "--level=2", "--steps=6")
    told = (
        f"{copy / 'level_1'}: goes on from step 2 to 6; its learning rate begins again, and what "
        "is made on it is trained anew if its weights change\n"
    )
    out = capsys.readouterr().out
    assert told in out and out.count("goes on from step") == 1
    assert f"{copy / 'level_2'}" in caplog.text and "part is trained anew" in caplog.text
    assert second.stat().st_mtime_ns != stamp
    assert len((copy / "level_2" / "history.csv").read_text().splitlines()) == 4


# One process


def test_a_folder_is_of_one_process_at_a_time(run, scan, tmp_path, capsys):
    process = running.holding(tmp_path / "here")
    try:
        where = f"{tmp_path / 'here'}: another process ({process.pid} on "
        assert where in trained(capsys, tmp_path / "here")
        words = (f"--model={run}", f"--input={scan}", f"--output={tmp_path / 'here'}")
        assert where in outcome(capsys, "predict", *words)
        assert not (tmp_path / "here" / "config.json").exists()
    finally:
        process.kill()
        process.wait()
    # The lock of a process that is gone counts for nothing.
    assert (tmp_path / "here" / files.LOCK).exists()
    assert outcome(capsys, "predict", *words) is None
    assert not (tmp_path / "here" / files.LOCK).exists()


def test_a_folder_of_which_nothing_came_goes_again(tmp_path):
    (tmp_path / "before").mkdir()
    with files.owning():
        for name in ("before", "empty", "full"):
            files.own(tmp_path / name)
        (tmp_path / "full" / "result").touch()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["before", "full", "result"]


def test_what_a_killed_process_left_is_swept(tmp_path):
    left = [
        f".{'0' * 32}-model.keras",
        f"cache/case/.{'a' * 32}-image",
        f".{'b' * 32}-rendered/case/image",
        "level_1/last/step-12_temp/part-00000-of-00001.index",
        "level_1/best/checkpoint.tmp0123",
    ]
    kept = [
        "level_1/last/step-12.index",
        "level_1/model.keras",
        ".hidden",
        f"cache/{'0' * 32}-image",
        f"predictions/.{'c' * 32}-a.nii.gz",  # another process's own
    ]
    for name in left + kept:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    process = running.holding(tmp_path / "predictions")
    (tmp_path / kept[-1]).write_text("")
    try:
        with files.owning():
            files.own(tmp_path)
            there = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    finally:
        process.kill()
        process.wait()
    assert there == {*kept, ".lock", "predictions/.lock"}


def test_what_is_younger_than_the_training_is_left(tmp_path):
    """Processes that train together have begun when the first sweeps."""
    began = time.time()
    young, old = tmp_path / f".{'0' * 32}-young", tmp_path / f".{'0' * 32}-old"
    young.write_text("")
    old.write_text("")
    os.utime(young, (began + 1, began + 1))
    os.utime(old, (began - 1, began - 1))
    with files.owning():
        files.own(tmp_path, began)
    assert young.exists() and not old.exists()


TRAIN = """
import sys, time
from tf_autoctx.commands import train_fetal_head
from tf_autoctx.training import loop
def slow(self, train, batches, epoch):
    print("training", flush=True)
    time.sleep(100)
loop._Fit._train_step = slow
sys.argv[0] = "train_fetal_head"
train_fetal_head.command()
"""


def test_ctrl_c_is_one_sentence_and_exit_code_130(tmp_path):
    words = running.last_of_each([f"--work_dir={tmp_path / 'run'}", *TINY])
    process = subprocess.Popen(
        [sys.executable, "-c", TRAIN, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",  # of the progress bar, whatever the locale
        cwd=ROOT,
        env={**os.environ, "TF_CONFIG": ""},  # none
        preexec_fn=helpers.heed_interrupts,
    )
    while "training" not in (line := process.stdout.readline()):
        assert line, process.stderr.read()
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in told
    last = told.strip().splitlines()[-1]
    assert last == "interrupted: the same command goes on where it was."
    assert not list((tmp_path / "run").rglob(".*"))


# Checkpoints and history


def test_a_checkpoint_that_no_list_knows_is_removed_in_its_turn(tmp_path):
    """It was written just before a kill."""
    network = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    kept = checkpoints.Checkpoints(tmp_path, {"network": network}, {})
    for step in (1, 2, 3):
        kept.save({"step": step})
    for file in (tmp_path / "last").glob("step-3.*"):
        shutil.copy(file, file.with_name(file.name.replace("step-3", "step-4")))
    again = checkpoints.Checkpoints(tmp_path, {"network": network}, {})
    again.save({"step": 5})
    again.save({"step": 6})
    assert {p.stem for p in (tmp_path / "last").glob("*.index")} == {"step-5", "step-6"}


def test_checkpoints_on_something_else_are_passed_over(tmp_path):
    network = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    checkpoints.Checkpoints(tmp_path, {"network": network}, {}, "a").save({"step": 9}, best=True)
    for made_on, there in (("a", True), (None, True), ("b", False), ("a", False)):
        store = checkpoints.Checkpoints(tmp_path, {"network": network}, {}, made_on)
        assert (store.restore() is not None) is there
    assert not list((tmp_path / "last").glob("step*"))


# Whole or named


def damages(content):
    """{kind: damaged bytes}: cut, and a byte changed."""
    middle = len(content) // 2
    changed = bytes([content[middle] ^ 0x15]) if content else b"a"
    return {
        "halved": content[:middle],
        "changed": content[:middle] + changed + content[middle + 1 :],
    }


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("which", ["run", "saved_model"])
def test_prediction_by_a_damaged_model_is_right_or_one_sentence(
    run, copy, scan, tmp_path, capsys, which
):
    out = tmp_path / "out"
    model = copy if which == "run" else copy / "saved_model"

    def predicted():
        shutil.rmtree(out, ignore_errors=True)
        told = outcome(capsys, "predict", f"--model={model}", f"--input={scan}", f"--output={out}")
        if told is None:
            return sitk.GetArrayFromImage(sitk.ReadImage(str(out / "a.nii.gz")))
        return told

    truth = predicted()
    unread = ("phantoms", "cache", "evaluation", "/last/", "/best/", "tensorboard", "history")
    others = "saved_model" if which == "run" else "level_1"
    for path in files_of(copy):
        name = path.relative_to(copy).as_posix()
        if name.startswith(others) or any(part in name for part in unread):
            continue
        content = path.read_bytes()
        for kind, damaged in damages(content).items():
            path.write_bytes(damaged)
            result = predicted()
            if isinstance(result, str):
                assert str(copy) in result, (name, kind, result)
            else:
                np.testing.assert_array_equal(result, truth, f"{name} {kind}")
        path.write_bytes(content)


@pytest.mark.usefixtures("bare")
def test_training_goes_on_with_a_damaged_folder_or_ends_in_one_sentence(copy, tmp_path, capsys):
    (copy / "level_1" / "model.keras").unlink()  # it goes on from the checkpoints
    shutil.rmtree(copy / "saved_model")
    spoiled, told = tmp_path / "spoiled", {}
    alike = ("phantoms/", "evaluation/", "level_1/tensorboard/", "level_1/history")
    for number, path in enumerate(files_of(copy)):
        name = path.relative_to(copy).as_posix()
        kinds = damages(path.read_bytes())
        if (
            name.startswith(alike) or path.name == "zarr.json"
        ):  # one kind each, as it takes its time
            kinds.pop(("halved", "changed")[number % 2])
        for kind, damaged in kinds.items():
            shutil.rmtree(spoiled, ignore_errors=True)
            shutil.copytree(copy, spoiled)
            (spoiled / name).write_bytes(damaged)
            if result := trained(capsys, spoiled):
                assert str(spoiled) in result, (name, kind, result)
                told[name, kind] = result
            else:
                assert weights(spoiled)
    named = {name for name, _ in told}
    cached = {name for name in named if re.fullmatch("cache/.*/image/zarr.json", name)}
    assert "config.json" in named and len(cached) == 2  # of the cases that train


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize("name", ["image", "label"])
def test_a_damaged_cache_is_named_and_made_anew(copy, capsys, name):
    for part in ("level_1", "saved_model", "evaluation"):
        shutil.rmtree(copy / part)
    (path,) = (copy / "cache").glob(f"*/head_001/{name}")
    before, file = contents(path), path / "c/0/0/0/0"
    whole = file.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:40] + b"\x07" + whole[41:], b""):
        file.write_bytes(damaged)
        told = trained(capsys, copy)
        assert f"{path}: missing, cut short or damaged; delete the folder {path.parent}" in told
    shutil.rmtree(path.parent)
    assert trained(capsys, copy) is None and contents(path) == before


def test_a_damaged_network_is_named_and_trained_to_the_same_weights(run, copy, capsys):
    file = copy / "level_1" / "model.keras"
    file.write_bytes(file.read_bytes()[:1000])
    assert "level_1/model.keras: not a network that can be read" in trained(capsys, copy)
    file.unlink()  # as the sentence says
    assert trained(capsys, copy) is None
    served = "saved_model: version 1 serves already, with the same weights (float32)"
    assert served in capsys.readouterr().out
    assert [path.name for path in (copy / "saved_model").iterdir()] == ["1"]
    for ours, theirs in zip(weights(copy), weights(run), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_weights_that_are_not_finite_are_named(copy, scan, tmp_path, capsys):
    path = copy / "level_1" / "model.keras"
    network = keras.models.load_model(path, compile=False)
    network.set_weights([array * np.nan for array in network.get_weights()])
    network.save(path)
    told = outcome(
        capsys, "predict", f"--model={copy}", f"--input={scan}", f"--output={tmp_path / 'out'}"
    )
    assert f"{path}: not a network that can be read (weights that are not finite)" in told


def test_an_empty_version_is_passed_over(copy, scan, tmp_path, capsys, caplog):
    (copy / "saved_model" / "2").mkdir()
    words = (f"--model={copy / 'saved_model'}", f"--input={scan}", f"--output={tmp_path / 'out'}")
    assert outcome(capsys, "predict", *words) is None
    assert f"{copy / 'saved_model' / '2'}: no SavedModel" in caplog.text
    assert export.newest(copy / "saved_model").name == "1"
    assert trained(capsys, copy, "--export_precision=bfloat16") is None
    assert export.newest(copy / "saved_model").name == "3"


def test_a_damaged_export_is_written_anew(copy, capsys):
    path = copy / "saved_model" / "1" / "saved_model.pb"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(errors.UserError, match=r"1/saved_model.pb: cut short, damaged or missing"):
        prediction.load(copy / "saved_model")
    assert trained(capsys, copy) is None
    assert export.newest(copy / "saved_model").name == "2"
    prediction.load(copy / "saved_model")


@pytest.mark.parametrize(
    "change, told",
    [
        ({"level": 0}, "level=0: expected a number of at least 1"),
        ({"level": "two"}, "level=two: is of the type str"),
        ({"base_filters": True}, "base_filters=True: is of the type bool"),
        ({"scale": 2}, "scale=2: expected a number from 0.01 to 1"),
    ],
)
def test_a_config_that_cannot_be_is_named(copy, change, told):
    path = copy / "config.json"
    facts = json.loads(path.read_text())
    facts["flags"] |= change
    path.write_text(json.dumps(facts))
    with pytest.raises(errors.UserError) as refused:
        prediction.load(copy)
    assert str(path) in str(refused.value) and told in str(refused.value)


def test_a_config_that_is_no_json_is_named(tmp_path):
    path = tmp_path / "config.json"
    for text, reason in (("[" * 200_000, "nested too deeply"), ('{"a": 1, "a": 2}', "it has the")):
        path.write_text(text)
        with pytest.raises(errors.UserError) as refused:
            runs.load(tmp_path)
        assert str(refused.value).startswith(f"{path}: is not JSON ({reason}")
        assert str(refused.value).endswith(
            "put back a copy of the file, or delete the folder and train again."
        )


def test_a_path_that_is_too_long_is_one_sentence(run, scan, tmp_path, capsys):
    long = tmp_path / ("x" * 256)
    told = trained(capsys, long / "run")
    assert "file name too long; expected a shorter path" in told
    words = (f"--model={run}", f"--input={scan}", f"--output={long}")
    assert "file name too long; expected a shorter path" in outcome(capsys, "predict", *words)


def test_a_name_may_be_as_long_as_the_file_system_has_it(tmp_path):
    for letter in ("a", "ä"):
        name = letter * (251 // len(letter.encode())) + ".txt"
        with files.replacing(tmp_path / name) as partial:
            assert partial.name.startswith(".") and partial.suffix == ".txt"
            partial.write_text("all")
        assert (tmp_path / name).read_text() == "all"
    long = files.replacing(tmp_path / ("a" * 256))
    with pytest.raises(errors.UserError, match="too long; expected a shorter path"), long:
        raise AssertionError("known before")


@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("mount"), reason="needs to mount a small disk"
)
def test_a_folder_that_cannot_be_written_is_one_sentence(run, scan, tmp_path, capsys):
    fixed = tmp_path / "fixed"
    fixed.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", fixed]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("may not mount")
    try:
        shutil.copytree(run, fixed / "run")
        subprocess.run(["mount", "-o", "remount,ro", fixed], check=True)
        told = trained(capsys, fixed / "run")
        assert "read-only file system; expected a folder that can be written" in told
        words = (f"--model={fixed / 'run'}", f"--input={scan}")
        assert outcome(capsys, "predict", *words, f"--output={tmp_path / 'out'}") is None
        assert "read-only" in outcome(capsys, "predict", *words, f"--output={fixed / 'out'}")
    finally:
        subprocess.run(["umount", fixed], check=True)


# Prediction that goes on


def test_resume_makes_anew_what_is_of_another_image_or_model(copy, tmp_path, capsys):
    rng, scans, out = np.random.default_rng(1), tmp_path / "scans", tmp_path / "out"
    scans.mkdir()

    def write(name):
        image = sitk.GetImageFromArray(rng.normal(size=(16, 18, 20)).astype(np.float32))
        sitk.WriteImage(image, str(scans / f"{name}.nii.gz"))

    def made(*arguments):
        """Names of the results that a command makes."""
        before = {path: path.stat().st_mtime_ns for path in out.glob("*.nii.gz")}
        words = (f"--model={copy}", f"--input={scans}", f"--output={out}", *arguments)
        assert outcome(capsys, "predict", *words) is None
        after = {path: path.stat().st_mtime_ns for path in out.glob("*.nii.gz")}
        return {path.name[0] for path in after if after[path] != before.get(path)}

    for name in "abc":
        write(name)
    assert made() == {"a", "b", "c"} and made("--resume") == set()
    os.utime(scans / "a.nii.gz")  # the same bytes
    stat = (scans / "b.nii.gz").stat()
    write("b")
    os.utime(scans / "b.nii.gz", ns=(stat.st_atime_ns, stat.st_mtime_ns - 10**12))  # an older one
    (out / "c.nii.gz").unlink()
    assert made("--resume") == {"b", "c"} and made("--resume") == set()
    record = out / ".made_from"
    record.write_text(record.read_text()[:-30])  # the last line was cut short by a kill
    assert made("--resume") == set()  # it was noted before
    lines = record.read_text().splitlines()
    record.write_text("\n".join(line for line in lines if "c.nii.gz" not in line))
    assert made("--resume") == {"c"}  # of what it was made is not known
    record.unlink()
    os.utime(scans / "c.nii.gz", (time.time() + 9, time.time() + 9))
    assert made("--resume") == {"a", "c"}  # whose files are younger than their results
    # Another model
    network = keras.models.load_model(copy / "level_1" / "model.keras", compile=False)
    network.set_weights([-array for array in network.get_weights()])
    network.save(copy / "level_1" / "model.keras")
    assert "c" in made("--resume")


def test_a_result_is_of_the_voxels_beside_a_header(tmp_path):
    scan, voxels, result = (tmp_path / name for name in ("a.mhd", "voxels.raw", "a.nii.gz"))
    header = "NDims = 1\nDimSize = 4\nElementType = MET_UCHAR\nElementDataFile = voxels.raw\n"
    scan.write_text(header)
    voxels.write_bytes(b"1234")
    result.touch()
    made_from = origins.Origins(tmp_path, "model")
    with made_from.noting(scan, [result]):
        pass
    (tmp_path / "a.txt").touch()  # is none of it
    os.utime(voxels)  # the same bytes
    assert made_from.is_of(result, scan)
    voxels.write_bytes(b"4321")
    assert not made_from.is_of(result, scan)


def test_the_level_before_is_what_a_level_is_made_on(run):
    """And so is a digest of its weights in the file of its network."""
    path = run / "level_1" / "model.keras"
    assert stages.recorded_digest(path) == digest(weights(run))
    assert LevelStage.made_on is None and tf.io.gfile.exists(str(path))
