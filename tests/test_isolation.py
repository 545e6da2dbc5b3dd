"""Processes that work on files: what comes back, what ends, and what ends with them."""

import functools
import os
import pathlib
import signal
import subprocess
import sys
import time
import weakref

import helpers
import isolated
import numpy as np
import pytest
import SimpleITK as sitk
from absl import logging

from tf_autoctx import errors
from tf_autoctx.data import datasets, images, isolation
from tf_autoctx.errors import UserError
from tf_autoctx.systems.shared import reading

pytestmark = pytest.mark.usefixtures("own_processes")
ROOT = pathlib.Path(__file__).parents[1]


def outcomes(*tasks, workers=1):
    with isolation.Pool(workers) as pool:
        return dict(pool.map(isolated.work, [(task, (f"{task}.mha", task)) for task in tasks]))


@pytest.mark.parametrize(
    "what, told",
    [
        ("abort", "abort: ended the process that read it, where a library gave up; expected"),
        ("segmentation fault", "ended the process that read it, where a library read beyond its"),
        ("kill", "kill: ended the process that read it, for lack of memory perhaps; expected an"),
        ("exit", "exit: ended the process that read it, exit code 3; expected an intact file"),
        ("memory", "memory: needs more memory than there is; expected a smaller image."),
        ("mistake", "mistake.mha: is bad; expected good."),
        ("forbidden", "forbidden.mha: permission denied; expected"),
    ],
)
@pytest.mark.parametrize("workers", [1, 2])
def test_one_bad_file_is_one_error_that_names_it(what, told, workers):
    done = outcomes("one", what, "two", "three", workers=workers)
    assert {name: done[name] for name in ("one", "two", "three")} == {
        name: name for name in ("one", "two", "three")
    }
    assert isinstance(done[what], UserError) and told in str(done[what])
    assert f"{what}.mha" in str(done[what]) or what == "field"
    assert "\n" not in str(done[what])


def test_a_field_is_shown_as_its_flag():
    assert errors.sentence(outcomes("field")["field"]) == "--patch_size=64: too large; expected 32."


def test_a_process_is_used_again_and_replaced_once_it_has_ended():
    with isolation.Pool(1) as pool:
        (first,), (second,) = (
            dict(pool.map(isolated.work, [("a", ("a", "process"))])).values() for _ in range(2)
        )
        assert first == second != os.getpid()
        dict(pool.map(isolated.work, [("a", ("a", "abort"))]))
        ((_, third),) = pool.map(isolated.work, [("a", ("a", "process"))])
        assert third != first
    for process in (first, third):
        assert not alive(process)


def test_a_process_that_ended_while_it_waited_takes_no_file_with_it():
    with isolation.Pool(1) as pool:
        ((_, process),) = pool.map(isolated.work, [("a", ("a", "process"))])
        os.kill(process, signal.SIGKILL)
        os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)
        assert dict(pool.map(isolated.work, [("b", ("b", "fine"))])) == {"b": "fine"}


def test_a_fault_of_ours_is_raised_and_not_a_case():
    with pytest.raises(ValueError, match="a bug"):
        outcomes("one", "bug")
    with pytest.raises(RuntimeError, match="pickle"):
        outcomes("no pickle")


def test_warnings_are_told_here_and_noise_is_not(caplog, capfd):
    outcomes("warning", "print")
    assert caplog.messages == ["warning.mha: is odd."]
    assert capfd.readouterr() == ("", "")


def test_warnings_that_are_not_wanted_are_not_told(caplog):
    verbosity = logging.get_verbosity()
    try:
        logging.set_verbosity(logging.ERROR)
        outcomes("warning")
        assert not caplog.messages
    finally:
        logging.set_verbosity(verbosity)


def test_a_large_result_comes_whole():
    np.testing.assert_array_equal(outcomes("large")["large"], np.arange(3_000_000))


def test_what_is_sent_keeps_its_memory_until_then():
    """Such as an image of SimpleITK, whose voxels are sent as they lie there."""
    assert outcomes("lent")["lent"] == np.arange(1000).tobytes()


def test_the_next_task_is_made_while_the_process_is_at_work(tmp_path):
    """The first ends once the second was made, and is told before the third is."""
    made, told = [], []

    def tasks():
        for number in range(4):
            (tmp_path / str(number)).touch()
            made.append(number)
            assert len(told) >= number - 1
            yield number, (str(tmp_path / str(min(number + 1, 3))), "wait")

    with isolation.Pool(1) as pool:
        for number, _ in pool.map(isolated.work, tasks()):
            told.append(number)
            assert len(made) <= number + 2
    assert told == [0, 1, 2, 3]


def test_what_was_sent_is_not_kept_while_the_next_is_made():
    sent = []

    def tasks():
        for name in "abc":
            voxels = np.zeros(5)
            sent.append(weakref.ref(voxels))
            yield name, (voxels,)
            del voxels
            assert sent[-1]() is None

    with isolation.Pool(1) as pool:
        assert list(pool.map(len, tasks())) == [("a", 5), ("b", 5), ("c", 5)]


def test_a_process_that_is_started_early_has_its_module(tmp_path):
    with isolation.Pool(1, "wrote", "disk space") as pool:
        pool.start("wave")  # whatever is not imported anyway
        (worker,) = pool._idle
        ((_, process),) = pool.map(isolated.work, [("a", ("a", "process"))])
        assert process == worker._process.pid
        ((_, modules),) = pool.map(isolated.work, [("a", ("a", "modules"))])
        assert "wave" in modules
        ((_, error),) = pool.map(isolated.work, [("a", ("a.nii", "exit"))])
        expected = "a.nii, exit: ended the process that wrote it, exit code 3; expected disk space."
        assert str(error) == expected


def test_no_tasks_start_nothing(monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", None)
    assert outcomes() == {}


def test_a_script_without_a_main_guard_can_read(tmp_path):
    """`multiprocessing` would run it once more in each process."""
    script = tmp_path / "script.py"
    script.write_text(
        "from tf_autoctx.data import isolation\n"
        "with isolation.Pool(2) as pool:\n"
        "    print(sorted(pool.map(max, [('a', (1, 2)), ('b', (3, 4))])))\n"
    )
    done = subprocess.run(
        [sys.executable, script], env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.stdout == "[('a', 2), ('b', 4)]\n", done.stderr


# Ends


def alive(process):
    """Whether a process runs; one that has ended and waits to be noticed does not."""
    try:
        return pathlib.Path(f"/proc/{process}/stat").read_text().rsplit(")")[-1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_processes_end_with_their_parent(tmp_path, end):
    script = (
        f"import sys; sys.path[:] = {sys.path!r}\n"
        "from tf_autoctx.data import isolation\n"
        "import isolated\n"
        "with isolation.Pool(2) as pool:\n"
        f"    list(pool.map(isolated.busy, [(k, ({str(tmp_path)!r} + k,)) for k in 'ab']))\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script],
        stderr=subprocess.DEVNULL,
        preexec_fn=helpers.heed_interrupts,
    )
    files = [pathlib.Path(f"{tmp_path}{name}") for name in "ab"]
    await_(lambda: all(file.exists() and file.read_text() for file in files))
    workers = [int(file.read_text()) for file in files]
    assert all(alive(worker) for worker in workers)
    parent.send_signal(end)
    parent.wait(20)
    await_(lambda: not any(alive(worker) for worker in workers))


def await_(condition, seconds=30):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


# Commands


def volume(path, seed=0, label=False):
    voxels = np.random.default_rng(seed).integers(0, 200, (8, 9, 10)).astype(np.int16)
    if label:
        voxels = (voxels > 100).astype(np.int16)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(path))


@pytest.fixture
def abort_at(monkeypatch):
    """Whatever other processes read of a name with these letters aborts them."""
    return functools.partial(helpers.in_other_processes, monkeypatch, "abort_at")


def test_predict_goes_on_after_a_file_that_aborts(tmp_path, abort_at, capsys):
    import running
    import tensorflow as tf

    from tf_autoctx import export

    def segment(image):
        return {"label": tf.cast(image > 100, tf.uint8)}

    card = {"system": "fetal_head", "labels": {1: "head"}, "orientation": images.ORIENTATION}
    export.write(tmp_path / "model", export.Exported({"serving_default": segment}, {}, card))
    for seed, name in enumerate(("a.mha", "bad.mha", "c.nii.gz")):
        volume(tmp_path / "in" / name, seed)
    abort_at("bad")
    where = (f"--model={tmp_path}/model", f"--input={tmp_path}/in", f"--output={tmp_path}/out")
    with pytest.raises(SystemExit) as ended:
        running.call("predict", *where)
    told = capsys.readouterr().err
    assert ended.value.code == 1
    assert f"error: {tmp_path}/in/bad.mha: ended the process that read it, where a library" in told
    assert "1 of 3 images failed; --resume tries" in told
    for name in ("a.mha", "c.nii.gz"):
        result = sitk.ReadImage(str(tmp_path / "out" / f"{name.split('.')[0]}.nii.gz"))
        expected = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "in" / name))) > 100
        np.testing.assert_array_equal(sitk.GetArrayFromImage(result), expected)
    assert not (tmp_path / "out" / "bad.nii.gz").exists()


def test_cases_are_read_elsewhere_and_one_that_aborts_is_one_fault(tmp_path, abort_at):
    from tf_autoctx.systems.fetal_head.configuration import DECLARATION

    cases = []
    for seed, name in enumerate(("a", "bad", "c")):
        paths = [tmp_path / kind / f"{name}.nrrd" for kind in ("images", "labels")]
        volume(paths[0], seed)
        volume(paths[1], seed, label=True)
        cases.append(datasets.Case(name, *map(str, paths), name))

    class Reader:
        arguments = (DECLARATION, None, {}, True)

        def __call__(self, case):
            return reading.read_case(case, *self.arguments)

    abort_at("images/bad")
    read = Reader()
    done = {case.name: outcome for case, outcome in reading.each(cases, read, isolated=True)}
    assert str(done["bad"]).startswith(
        f"{tmp_path}/images/bad.nrrd, {tmp_path}/labels/bad.nrrd: en"
    )
    for case in (cases[0], cases[2]):
        (image, label), (here, truth) = done[case.name], read(case)
        np.testing.assert_array_equal(image.array, here.array)
        np.testing.assert_array_equal(label, truth)
        assert image.millimetres == here.millimetres
    checked = {c.name: o for c, o in reading.each(cases, read, isolated=True, kept=False)}
    assert checked["a"] is checked["c"] is None and isinstance(checked["bad"], UserError)
    assert {c.name: o[1].max() for c, o in reading.each(cases, read)} == {"a": 1, "bad": 1, "c": 1}
