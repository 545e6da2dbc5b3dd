"""Methods that were trained several times: the run is the unit."""

import re

import pytest

from tf_autoctx.report import repeated

SCORES = {
    "Orig-T2T": {seed: {"a": 98.0, "b": 96.0} for seed in range(5)},
    "Orig-S2T": {seed: {"a": 90.0 - 10 * seed, "b": 80.0 - 10 * seed} for seed in range(5)},
    "S2T": {seed: {"a": 95.0 - seed, "b": 95.0 - seed} for seed in range(1, 6)},
}


def test_a_column_for_every_seed():
    lines = repeated.table(SCORES).splitlines()
    cells = [re.split(r"\s{2,}", line) for line in lines if not line.startswith("-")]
    seeds = [f"seed {seed}" for seed in range(6)]
    assert cells[0] == ["DSC (%)", *seeds, "runs", "mean ± SD over runs"]
    assert cells[1] == ["Orig-T2T", *["97.00"] * 5, "-", "5", "97.00 ± 0.00"]
    # 65 with the SD of 10 times 0 to 4: sqrt(250).
    assert cells[2][-2:] == ["5", "65.00 ± 15.81"]
    assert cells[3][:3] == ["S2T", "-", "94.00"]


def test_pairs_are_by_seed():
    pairs = [("Orig-S2T", "Orig-T2T"), ("S2T", "Orig-S2T")]
    drop, gain = repeated.compare(SCORES, pairs, shared=True)
    assert (drop["n"], drop["mean_difference"]) == (5, -32)
    assert (gain["n"], gain["mean_difference"]) == (4, pytest.approx(92.5 - 60))
    told = repeated.sentences([drop, gain])
    assert re.fullmatch(
        r"Orig-S2T against Orig-T2T: DSC -32\.00 % \[.*\], p = 0\.0106 \(5 runs of each\)", told[0]
    )
    assert told[1].endswith("4 runs of each: no p of fewer than 5")


def test_few_runs_say_so():
    scores = {name: {0: {"a": value}} for name, value in (("x", 90.0), ("y", 80.0))}
    (test,) = repeated.compare(scores, [("x", "y")], shared=False)
    told = "x against y: DSC +10.00 %, one run of each: no interval, no p"
    assert repeated.sentences([test]) == [told]
    (test,) = repeated.compare({**scores, "z": {1: {"a": 3.0}}}, [("z", "y")], shared=False)
    assert repeated.sentences([test]) == ["z against y: no seed in common"]


def test_what_is_won_back_of_drops_that_count():
    """Seeds 1 to 4 drop by 22 to 52 points; S2T has 94 to 91 there, seed 0 has no S2T."""
    (told,) = repeated.won_back(SCORES, ["S2T"], "Orig-S2T", "Orig-T2T", least=25)
    # (93 - 65) / 32, (92 - 55) / 42, (91 - 45) / 52
    shares = "seed 2 88 %, seed 3 88 %, seed 4 88 %"
    assert told == f"S2T wins back of drops above 25 points: {shares}"
    (told,) = repeated.won_back(SCORES, ["S2T"], "Orig-S2T", "Orig-T2T", least=90)
    assert told.endswith("there are none")
