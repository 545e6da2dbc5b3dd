"""The benchmarks' harness: what others took, sides in turn, rounds that are thrown away."""

import json
import os
import pathlib
import sys
import time

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "benchmarks"))
import harness
import made_up_sides as made_up
from harness import Quiet, Side, Tolerance

from tf_autoctx.errors import UserError

TICK = os.sysconf("SC_CLK_TCK")


@pytest.fixture
def proc(tmp_path, monkeypatch):
    """A made-up /proc: 9 is the parent of 10, which is that of 11; 12 is nobody's of them."""
    monkeypatch.setattr(harness, "PROC", tmp_path)
    # user nice system idle waiting irq softirq stolen guest guest_nice
    (tmp_path / "stat").write_text("cpu  100 20 30 999 999 4 5 6 7 8\ncpu0 1 1 1 1\n")
    for pid, name, parent, times in (
        (9, "python", 1, (10, 5, 3, 2)),
        (10, "a (b) c", 9, (100, 50, 0, 0)),
        (11, "x", 10, (1000, 0, 0, 0)),
        (12, "y", 1, (7777, 0, 0, 0)),
    ):
        (tmp_path / str(pid)).mkdir()
        fields = " ".join(["S", str(parent), *["0"] * 9, *map(str, times), "0"])
        (tmp_path / str(pid) / "stat").write_text(f"{pid} ({name}) {fields}\n")
    return tmp_path


def test_what_all_and_what_ours_took(proc):
    assert harness.busy_seconds() * TICK == 100 + 20 + 30 + 4 + 5 + 6
    assert harness.own_seconds(9) * TICK == 20 + 150 + 1000
    assert harness.own_seconds(12) * TICK == 7777


def test_what_others_took_is_the_rest(monkeypatch):
    monkeypatch.setattr(harness, "busy_seconds", iter([100.0, 103.0]).__next__)
    monkeypatch.setattr(harness, "own_seconds", iter([10.0, 12.0]).__next__)
    monkeypatch.setattr(harness.time, "perf_counter", iter([50.0, 54.0]).__next__)
    with harness.Meter() as meter:
        pass
    assert (meter.seconds, meter.others) == (4.0, 0.25)  # 3 s of all, of which 2 s are ours


def test_our_children_are_ours():
    before = harness.own_seconds()
    made_up.burn(0.3)
    assert harness.own_seconds() - before >= 0.28
    before = harness.own_seconds()
    harness.called(made_up.burn, 0.3)
    assert harness.own_seconds() - before >= 0.28  # the child's, which has ended


def test_a_step_is_repeated_until_it_has_lasted():
    calls = []
    seconds = harness.timed(lambda: calls.append(time.sleep(0.02)), least=0.1)
    assert len(calls) >= 3 and 0.02 <= seconds < 0.2
    assert harness.timed(lambda: 7.0, least=0.0) == 7.0  # it times itself


class Loud:
    """A meter of made-up noise."""

    def __init__(self, others):
        self._others = iter(others)

    def __call__(self):
        return self

    def __enter__(self):
        self.others = next(self._others)
        return self

    def __exit__(self, *_):
        pass


def sides(*names, **arguments):
    return [
        Side(name, made_up.constant, {"seconds": n, **arguments}) for n, name in enumerate(names, 1)
    ]


def test_loud_rounds_are_thrown_away(monkeypatch):
    # Two sides a round: quiet, loud in its second part, quiet, loud in its first.
    noise = [0.0, 0.1, 0.0, 0.2, 0.15, 0.1, 9.0, 0.0, 0.0, 0.0]
    monkeypatch.setattr(harness, "Meter", Loud(noise))
    told = harness.compared(sides("ours", "theirs"), Quiet(3, 0.15), Tolerance())
    assert (told["rounds"], told["thrown_away"], told["left_out"]) == (3, 2, {})
    assert told["sides"]["ours"]["seconds"] == [1.0] * 3
    assert told["sides"]["theirs"]["median"] == 2.0
    assert told["sides"]["theirs"]["peak_gib"] > 0
    shown = list(harness.lines(told))
    assert "theirs: 2.000 s (2.000 to 2.000), 2.00 times the first" in shown[1]
    assert "3 rounds count, 2 thrown away" in shown[-1]


def test_a_machine_that_is_never_quiet(monkeypatch):
    monkeypatch.setattr(harness, "Meter", Loud([1.0] * harness.TRIES))
    told = harness.compared(sides("ours"), Quiet(1, 0.15), Tolerance())
    assert (told["rounds"], told["thrown_away"]) == (0, harness.TRIES)
    assert told["sides"]["ours"]["median"] is None
    assert "ours: no quiet round" in next(harness.lines(told))


def test_sides_take_turns_and_turn_round(tmp_path):
    log = tmp_path / "log"
    chosen = [Side(name, made_up.logging, {"path": log, "name": name}) for name in "abc"]
    harness.compared(chosen, Quiet(2, 1e9), Tolerance())
    # Each is warmed up, then asked for rounds.
    assert log.read_text().split() == [*"abc", *"abc", *"cba"]


def test_a_side_that_dies_later_ends_the_row():
    chosen = [*sides("ours"), Side("killed", made_up.dying_later)]
    with pytest.raises(harness.SideFailed, match="killed: its process ended, exit code 3"):
        harness.compared(chosen, Quiet(1, 1e9), Tolerance())


def test_what_cannot_be_measured_is_named():
    chosen = [
        *sides("ours", answer=[0.0, 1.0], parameters=7),
        Side("missing", made_up.constant, {"seconds": 1}, needs=("no-such-distribution",)),
        Side("broken", made_up.broken),
        Side("dying", made_up.dying),
        Side("near", made_up.constant, {"seconds": 2, "answer": [0.0, 1.0005], "parameters": 7}),
        Side("far", made_up.constant, {"seconds": 2, "answer": [0.0, 1.1]}),
        Side("far, bfloat16", made_up.constant, {"seconds": 2, "answer": [0.0, 1.1]}),
        Side("longer", made_up.constant, {"seconds": 2, "answer": [0.0, 1.0, 2.0]}),
        Side("wider", made_up.constant, {"seconds": 2, "answer": [0.0, 1.0], "parameters": 8}),
        Side("set", made_up.environment, environment={"MADE_UP": "3"}),
    ]
    told = harness.compared(chosen, Quiet(1, 1e9), Tolerance(exact=1e-3, rounded=0.2))
    assert told["left_out"] == {
        "missing": "no-such-distribution is not installed",
        "broken": "ValueError: this side is broken",
        "dying": "its process ended, exit code 3",
        "far": "its answer is off by 0.1; expected at most 0.001",
        "longer": "its answer is off by inf; expected at most 0.001",
        "wider": "it has 8 parameters; expected 7",
    }
    assert list(told["sides"]) == ["ours", "near", "far, bfloat16", "set"]
    assert told["sides"]["near"]["difference"] == pytest.approx(5e-4)
    assert told["sides"]["set"]["median"] == 3.0
    assert any("missing: left out, no-such-distribution" in line for line in harness.lines(told))


def test_a_call_in_another_process():
    assert harness.called(made_up.pid_and, 3)[1] == 3
    assert harness.called(made_up.pid_and, 3)[0] != os.getpid()
    with pytest.raises(harness.SideFailed, match="this side is broken"):
        harness.called(made_up.broken)


def test_results_are_kept_row_by_row(tmp_path):
    path = tmp_path / "results.json"
    harness.write_record(path, "a", {"sides": {}, "seconds": [1.5, 2e-05]})
    harness.write_record(path, "b", {"sides": {}})
    harness.write_record(path, "b", {"sides": {"x": 1}})
    record = harness.read_record(path)
    assert list(record) == ["a", "b"] and record["b"]["sides"] == {"x": 1}
    assert record["a"]["seconds"] == [1.5, 2e-05]
    assert "[1.5, 2e-05]" in path.read_text()  # in one line
    told = record["a"]["machine"]
    assert told["versions"]["numpy"] == np.__version__ and told["cores"] >= 1
    path.write_text("{")
    with pytest.raises(UserError, match="is no JSON"):
        harness.read_record(path)


def test_json_is_that_of_the_standard_library():
    record = {"a": [1, 2.5, -3e-7], "b": {"c": ["x", 1], "d": []}, "e": None}
    assert json.loads(harness.as_json(record)) == record
