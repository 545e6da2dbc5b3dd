"""What commands print while they work, and what they leave for people to read."""

import os
import pty
import re
import subprocess
import sys
import types

import pytest
import running
from absl import logging as absl_logging

from tf_autoctx import logbook, native, progress
from tf_autoctx.systems.shared.session import Session
from tf_autoctx.training.callbacks import Callbacks, Place
from tf_autoctx.training.configuration import Settings

TINY = (
    "--base_filters=2",
    "--steps=2",
    "--samples_per_epoch=1",
    "--precision=float32",
    "--phantom_size=24,16,28",
    "--phantom_cases=3,1",
)
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still: `clock.now` is its time."""
    clock = types.SimpleNamespace(now=1000.0)
    monkeypatch.setattr("time.monotonic", lambda: clock.now)
    return clock


@pytest.mark.parametrize(
    "seconds, told",
    [(0.2, "0 s"), (59, "59 s"), (59.6, "1 min"), (580, "10 min"), (3599, "1 h 00 min")]
    + [(4800, "1 h 20 min"), (90000, "25 h 00 min")],
)
def test_a_time_to_wait_is_told_in_words(seconds, told):
    assert progress.duration(seconds) == told


def test_without_a_terminal_there_is_a_line_every_30_seconds(clock, capsys):
    bar = progress.bar(4, "case", "scored")
    for seconds in (20, 20, 20):
        clock.now += seconds
        bar.add(1)
    assert capsys.readouterr().out == "2 of 4 cases scored, about 40 s left\n"
    clock.now += 20
    bar.add(1)
    assert capsys.readouterr().out == "4 of 4 cases scored in 1 min\n"


def test_what_was_done_before_tells_nothing_of_the_time(clock, capsys):
    bar = progress.bar(100, "case", "prepared")
    bar.update(90)
    clock.now += 31
    bar.add(1)
    assert capsys.readouterr().out == "91 of 100 cases prepared, about 5 min left\n"


def test_work_of_no_time_gets_no_line(clock, capsys):
    bar = progress.bar(3, "case", "prepared")
    bar.update(3)
    assert capsys.readouterr().out == ""


def settings(steps):
    return Settings(
        steps=steps, samples_per_epoch=10, learning_rate=1e-3, learning_rate_decay="constant"
    )


def test_a_training_tells_the_time_that_the_whole_run_still_takes(clock, capsys, tmp_path):
    """10 s a step after the first, which is traced: 6 are left of this stage and 20 of later."""
    place = Place(tmp_path / "level_1", 0, 10, 20.0)
    shown = Callbacks(types.SimpleNamespace(learning_rate=1.0), settings(10), place, True)
    shown.begin([], 0)
    clock.now += 100
    for step in range(4):
        shown.present.on_train_batch_end(step, {"loss": 0.5})
        clock.now += 10
    told = "level_1: step 2 of 10, loss 0.5; about 5 min of training left\n"
    assert capsys.readouterr().out == told  # 28 steps
    clock.now += 20
    shown.present.on_epoch_end(0, {"loss": 0.5, "val_DSC": 0.75})
    told = "level_1: step 4 of 10, loss 0.5, validation DSC 0.7500; about 9 min of training left\n"
    assert capsys.readouterr().out == told  # 60 s for 3 steps: 20 s each for 26
    shown.end()
    told = "level_1: step 4 of 10, loss 0.5, validation DSC 0.7500; trained in 3 min\n"
    assert capsys.readouterr().out == told


def test_only_the_chief_tells_it(clock, capsys, tmp_path):
    place = Place(tmp_path / "level_1", 0, 10, 0.0)
    silent = Callbacks(types.SimpleNamespace(learning_rate=1.0), settings(10), place, False)
    silent.begin([], 0)
    clock.now += 40
    silent.present.on_train_batch_end(0, {"loss": 0.5})
    silent.end()
    assert capsys.readouterr().out == "" and not place.folder.exists()


def test_later_stages_count_by_what_their_steps_cost():
    session = Session(None, {}, None, settings(100), [], [])
    session = session.with_costs({"initial": 1.0, "refine": 3.0, "end_to_end": 4.0})
    names = "initial", "refine", "end_to_end", "other"
    later = [session.later(name) for name in names]
    assert later == pytest.approx([700, 400 / 3, 0, 0])


# log.txt


def lines(folder):
    """The lines of a log, without their times."""
    told = (folder / "log.txt").read_text(encoding="utf-8").splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d( |$)", line) for line in told)
    return [line[20:] for line in told]


def test_a_log_has_what_was_said_before_and_after_it_has_a_folder(tmp_path):
    with logbook.recording("train", ["--name=a b"]):
        print("before")
        print("warned", file=sys.stderr)
        logbook.keep_in(tmp_path)
        absl_logging.warning("of %s", "absl")
        print("a bar 1/2\b\b\b\r\x1b[1ma bar 2/2\x1b[0m")
        print("no end", end="")
    first, *others = lines(tmp_path)
    assert first.startswith("$ train '--name=a b'  # tf_autoctx ")
    assert others == ["before", "warned", "warning: of absl", "a bar 2/2"]


def test_a_log_grows_with_every_command_and_keeps_a_traceback(tmp_path):
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), logbook.recording("train", []):
            logbook.keep_in(tmp_path)
            print(1 / 0)
    told = lines(tmp_path)
    assert told.count("ZeroDivisionError: division by zero") == 2
    assert sum(line.startswith("$ train") for line in told) == 2


def test_nothing_is_kept_without_a_folder_and_streams_come_back(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before, handlers = (sys.stdout, sys.stderr), list(absl_logging.get_absl_logger().handlers)
    with logbook.recording("predict", []):
        assert sys.stdout is not before[0]
        print("said")
    assert (sys.stdout, sys.stderr) == before and not list(tmp_path.iterdir())
    assert absl_logging.get_absl_logger().handlers == handlers
    logbook.keep_in(tmp_path)  # no command runs
    assert not list(tmp_path.iterdir())


# What libraries say


NOISE = """WARNING: All log messages before absl::InitializeLog() is called are written to STDERR
I0000 00:00:1795812505.853706   16993 port.cc:153] oneDNN custom operations are on.
I0000 00:00:1795812505.854938   16993 cudart_stub.cc:31] Could not find cuda drivers
E0000 00:00:1795812507.385264   16993 cuda_platform.cc:52] failed call to cuInit: INTERNAL
"""


OTHER = "E0000 00:00:1.0 1 gpu_device.cc:1] Out of memory\n"


def test_words_of_gpus_that_are_not_there_are_left_out_and_others_pass(capfd, tmp_path):
    with native.without_noise(tmp_path):
        os.write(2, f"{NOISE}{OTHER}".encode())
    assert capfd.readouterr().err == OTHER


def test_where_there_is_a_driver_all_is_told(capfd, tmp_path):
    (tmp_path / "nvidia0").touch()
    with native.without_noise(tmp_path):
        os.write(2, NOISE.encode())
    assert capfd.readouterr().err == NOISE


@pytest.mark.parametrize("level, told", [("0", NOISE), ("1", NOISE), ("2", ""), ("3", "")])
def test_who_asks_for_more_is_told_all(capfd, tmp_path, monkeypatch, level, told):
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", level)
    with native.without_noise(tmp_path):
        os.write(2, NOISE.encode())
    assert capfd.readouterr().err == told


def test_without_grep_all_is_told(capfd, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with native.without_noise(tmp_path):
        os.write(2, NOISE.encode())
    assert capfd.readouterr().err == NOISE


@pytest.mark.parametrize("end, code", [("raise ImportError", 1), ("os.abort()", -6)])
def test_the_last_words_of_a_failed_import_come_out(end, code):
    program = "import os; from tf_autoctx import native\nwith native.without_noise():\n"
    program += f"    os.write(2, b'{NOISE.splitlines()[1]}\\nF0000 no AVX\\n')\n    {end}"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, encoding="utf-8")
    assert done.returncode == code
    assert done.stderr.startswith("F0000 no AVX\n") and "oneDNN" not in done.stderr


# A whole training


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a training by the script, and what it printed where nobody watches."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    flags = (f"--work_dir={folder}", "--level=2", *TINY, "--keep_cache=false")
    return folder, flags, running.script("train_fetal_head.py", *flags)


def test_a_training_prints_lines_alone_and_nothing_of_gpus(run):
    _, _, done = run
    assert done.returncode == 0 and done.stderr == ""
    assert not CONTROL.search(done.stdout) and len(done.stdout) < 4000
    assert re.search(r"^level_1: step 2 of 2, loss .*; trained in \d+ s$", done.stdout, re.M)


def test_a_training_ends_with_a_report_and_a_log(run):
    folder, _, done = run
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert "level 2" in report and f"{folder}/report.html: " in done.stdout
    assert lines(folder)[1:] == [line.rstrip() for line in done.stdout.splitlines()]


def test_no_cache_is_kept_where_none_is_wanted_and_it_is_made_again(run):
    folder, flags, _ = run
    kept = ["cache", "level_1/probability"]
    assert not any((folder / name).exists() for name in kept)
    scores = (folder / "evaluation" / "scores.csv").read_text()
    running.call("train_fetal_head", *flags, "--keep_cache=true")
    assert all((folder / name).exists() for name in kept)
    assert (folder / "evaluation" / "scores.csv").read_text() == scores


def test_a_mistake_within_a_run_is_in_its_log(run, capsys):
    folder, flags, _ = run
    (folder / "level_1" / "model.keras").write_bytes(b"damaged")
    with pytest.raises(SystemExit):
        running.call("train_fetal_head", *flags)
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("error: ") and lines(folder)[-1] == told


def test_a_terminal_shows_bars_which_the_log_has_once(tmp_path):
    ours, theirs = pty.openpty()
    command = [sys.executable, "train_fetal_head.py", f"--work_dir={tmp_path}/run", *TINY]
    environment = os.environ | {"TERM": "xterm"}
    with subprocess.Popen(
        [*command, "--level=1"], cwd=running.ROOT, stdout=theirs, stderr=theirs, env=environment
    ) as process:
        os.close(theirs)
        shown = bytearray()
        while True:
            try:
                part = os.read(ours, 4096)
            except OSError:  # it has ended
                break
            shown += part
            if not part:
                break
    os.close(ours)
    assert process.returncode == 0 and b"\x1b[" in shown and b"Epoch 2/2" in shown
    told = lines(tmp_path / "run")
    assert "Epoch 2/2" in told and not any(CONTROL.search(line) for line in told)
    assert sum("val_DSC" in line for line in told) == 2
