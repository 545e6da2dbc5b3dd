"""Methods that were trained several times: the run is the unit."""

import json
import math
import re

import pytest

from tf_autoctx.errors import UserError
from tf_autoctx.report import repeatability, repeated, tables

HEADS = ("  p ", "  Ho")
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
    # Of -12, ..., -52: t = 32 / sqrt(250 / 5) = 4.53, of cases that were learnt from elsewhere
    # 32 / sqrt(250 * (1 / 5 + 1 / 4)) = 3.017, of 4 degrees of freedom.
    (dependent,) = repeated.compare(SCORES, pairs[:1], shared=True, overlap=0.25)
    assert (drop["p"], dependent["p"]) == (
        pytest.approx(0.0106, abs=5e-5),
        pytest.approx(0.0393, abs=5e-5),
    )
    assert (gain["n"], gain["mean_difference"]) == (4, pytest.approx(92.5 - 60))
    told = repeated.sentences([drop, gain])
    assert re.fullmatch(
        r"Orig-S2T against Orig-T2T: DSC -32\.00 % \[.*\], p = 0\.0106, Holm 0\.0106 "
        r"\(5 runs of each\)",
        told[0],
    )
    assert told[1].endswith("4 runs of each: no p of fewer than 5")


def test_all_tests_are_corrected_together():
    """Two tests of 5 runs: the smaller p counts twice; one of fewer has none and does not count."""
    pairs = [("Orig-S2T", "Orig-T2T"), ("Orig-T2T", "Orig-S2T"), ("S2T", "Orig-S2T")]
    first, second, few = repeated.compare(SCORES, pairs, shared=True)
    assert first["p"] == second["p"] and math.isnan(few["p"]) and math.isnan(few["p_holm"])
    assert first["p_holm"] == second["p_holm"] == pytest.approx(2 * first["p"])


def rows(cases, truths):
    """Rows of two methods, whose DSC differ so, of {run: {case: difference}} and {run: truth}."""
    about = {"system": "s", "group": "", "structure": "head"}
    return [
        repeated.named(run, {**about, "method": method, "case": case, "DSC_percent": dsc})
        | {"volume_mL": 1.0, "truth_volume_mL": truths[run]}
        for run, of_run in cases.items()
        for case, difference in of_run.items()
        for method, dsc in (("new", 50 + difference), ("old", 50))
    ]


def dsc(made, test):
    (pair,) = tables.summarize(made, [("new", "old")], test)["paired"]
    return pair["metrics"]["DSC_percent"]


def test_a_scan_by_two_networks_is_no_repeated_scan():
    """Two scans of a patient by two networks are two times two; c and d have no group."""
    about = {"system": "s", "method": "m", "structure": "head", "truth_volume_mL": 1.0}
    made = [
        repeated.named(run, about | {"case": case, "group": group, "volume_mL": volume})
        for run, volumes in (("seed 0", (4.0, 8.0, 1.0, 2.0)), ("seed 1", (5.0, 5.0, 1.0, 2.0)))
        for case, group, volume in zip("abcd", ("patient", "patient", "", ""), volumes)
    ]
    found, _ = repeatability.of_rows(made)
    assert found.groups == {
        "seed 0/patient": {"seed 0/a": 4.0, "seed 0/b": 8.0},
        "seed 1/patient": {"seed 1/a": 5.0, "seed 1/b": 5.0},
    }


def test_a_table_of_five_runs_is_tested_over_runs():
    """Gains of 1 to 5: t = 3 / sqrt(2.5 / 5) = 4.243, of folds 3 / sqrt(2.5 * 9 / 20) = 2.828; of
    four runs the eight cases have one sign, p = 2 / 2^8."""
    cases = {f"seed {n}": {"a": n - 0.25, "b": n + 0.25} for n in (1, 2, 3, 4, 5)}
    made = rows(cases, dict.fromkeys(cases, 7.0))
    for overlap, p in ((0, 0.0132), (1 / 4, 0.0474)):
        test = dsc(made, repeated.over_runs(made, overlap))
        assert (test["unit"], test["n"], test["runs"]) == ("runs", 5, 5)
        assert test["mean_difference"] == 3 and test["p"] == pytest.approx(p, abs=1e-4)
    assert tables.counted(test) == "5 runs"
    few = [row for row in made if not row["case"].startswith("seed 5")]
    test = dsc(few, repeated.over_runs(few))
    assert (test["unit"], test["n"], test["p"]) == ("cases", 8, pytest.approx(2 / 2**8))
    assert tables.counted(test) == "8 cases of 4 runs"


def test_a_folder_of_several_runs_tells_its_test(tmp_path):
    cases = {f"seed 0, fold {n}": {"a": n - 0.25, "b": n + 0.25} for n in (1, 2, 3, 4, 5)}
    made = rows(cases, dict.fromkeys(cases, 7.0))
    tables.write(tmp_path / "folds", made, test=repeated.over_runs(made, 1 / 4))
    test = dsc(made, repeated.test_of({str(tmp_path / "folds"): made}))
    assert (test["unit"], test["n"]) == ("runs", 5) and test["p"] == pytest.approx(0.0474, abs=1e-4)
    own = [{**row, "case": row["case"].replace("/", " ")} for row in made]
    tables.write(tmp_path / "own", own)
    assert repeated.test_of({str(tmp_path / "own"): own}) is None
    # One of several runs beside one of no more than one run, such as a model from elsewhere
    both = {str(tmp_path / "own"): own, str(tmp_path / "folds"): made}
    assert repeated.test_of(both).overlap == 1 / 4


def test_a_folder_that_does_not_tell_its_runs_is_refused(tmp_path):
    made = rows({"seed 0": {"a": 1.0}, "seed 1": {"a": 2.0}}, {"seed 0": 7.0, "seed 1": 7.0})
    tables.write(tmp_path, made)
    with pytest.raises(UserError, match=r"summary.json: does not tell which run .* seed 0/a; exp"):
        repeated.test_of({str(tmp_path): made})
    (tmp_path / "summary.json").unlink()
    with pytest.raises(UserError, match="does not tell which run"):
        repeated.test_of({str(tmp_path): made})


@pytest.mark.parametrize(
    "runs",
    ["x", {"overlap": 0.0}, {"of_case": {"seed 0/a": "seed 0"}}, {"overlap": 0, "of_case": {}}],
)
def test_a_summary_of_other_runs_is_one_sentence(tmp_path, runs):
    made = rows({"seed 0": {"a": 1.0}}, {"seed 0": 7.0})
    tables.write(tmp_path, made)
    (tmp_path / "summary.json").write_text(json.dumps({"runs": runs}))
    with pytest.raises(
        UserError, match=r"summary.json: `runs` does not tell all of its cases; exp"
    ):
        repeated.test_of({str(tmp_path): made})


def test_one_case_of_two_runs_is_refused(tmp_path):
    made = rows({"seed 0": {"a": 1.0}}, {"seed 0": 7.0})
    for name, run in (("first", "seed 0, fold 1"), ("second", "seed 1, fold 2")):
        test = repeated.over_runs(made, 1 / 4, {row["case"]: run for row in made})
        tables.write(tmp_path / name, made, test=test)
    with pytest.raises(UserError, match=r"by seed 1, fold 2, in another .* by seed 0, fold 1"):
        repeated.test_of({str(tmp_path / name): made for name in ("first", "second")})


def test_cases_of_one_truth_are_shared_and_others_are_not():
    """Every run gains 0 and 10 on its cases: whatever runs are drawn, both draws of cases that all
    share may be the same one; phantoms of other seeds have the same names alone."""
    cases = {f"seed {n}": {"a": 0.0, "b": 10.0} for n in range(6)}
    same = rows(cases, dict.fromkeys(cases, 7.0))
    other = rows(cases, {run: 7.0 + n for n, run in enumerate(cases)})
    shared, own = (dsc(made, repeated.over_runs(made)) for made in (same, other))
    assert (shared["ci_low"], shared["ci_high"]) == (0, 10)
    assert 0 < own["ci_low"] < own["ci_high"] < 10


def test_cases_of_folds_have_runs_by_their_names():
    cases = {f"seed 0, fold {n}": {f"case {n}": n} for n in (1, 2, 3, 4, 5)}
    made = [
        {**row, "case": row["case"].partition("/")[2]}
        for row in rows(cases, dict.fromkeys(cases, 7.0))
    ]
    run_of = {name: run for run, of_run in cases.items() for name in of_run}
    test = dsc(made, repeated.over_runs(made, 1 / 4, run_of))
    assert (test["unit"], test["n"]) == ("runs", 5) and test["p"] == pytest.approx(0.0474, abs=1e-4)


def test_a_structure_that_fewer_runs_have_is_not_told_over_runs():
    """The other has four runs, whose p over cases must not stand beside p over five runs."""
    cases = {f"seed {n}": {"a": n} for n in (1, 2, 3, 4, 5)}
    made = rows(cases, dict.fromkeys(cases, 7.0))
    face = [{**row, "structure": "face"} for row in made if not row["case"].startswith("seed 5")]
    text = tables.dice_table(made + face, repeated.over_runs(made + face))
    assert "old against new: Avg. -3.00 %" in text and "paired t over 5 runs" in text
    p, holm = (line.split() for line in text.splitlines() if line[:4] in HEADS)
    # Two tests of one p, that of a gain of 1 to 5.
    assert p == ["p", "0.0132", "-", "0.0132"] and holm == ["Holm", "0.0265", "-", "0.0265"]


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
