import csv
import json
import re

import numpy as np
import pytest

from tf_autoctx import metrics
from tf_autoctx.commands.compare import command
from tf_autoctx.report import repeated, tables

LABELS = ("method", "against", "structure", "metric", "unit")


def evaluation(folder, method="level 1", gain=0, cases=range(8), structures=("head",), truth=100.0):
    """Writes an evaluation of eight cases: DSC 80, 81, ... %, Hdb 10 mm, with a gain on both."""
    rows = []
    for structure in structures:
        for case in cases:
            row = {
                "system": "",
                "method": method,
                "case": f"case_{case}",
                "group": "",
                "structure": structure,
            }
            row |= {
                "DSC_percent": 80.0 + case + gain * (case + 1),
                "Hdb_mm": 10.0 - gain if case else np.inf,
            }
            rows.append(
                row
                | {
                    "volume_mL": truth + gain,
                    "truth_volume_mL": truth,
                    "volume_error_percent": abs(gain),
                }
            )
    tables.write(folder, rows)
    return folder


def compare(output, *folders):
    command.perform([f"--output={output}", f"--evaluations={','.join(map(str, folders))}"])


def read(folder):
    with open(folder / "comparison.csv", newline="") as file:
        return [
            {name: value if name in LABELS else float(value) for name, value in row.items()}
            for row in csv.DictReader(file)
        ]


def test_paired_differences(tmp_path, capsys):
    """Eight gains of 1 to 8 points: all signs alike, so p = 2 / 2^8.

    Of seven finite distances each is 1 mm better.
    """
    a = evaluation(tmp_path / "a" / "evaluation", cases=[*range(8), 20])
    b = evaluation(tmp_path / "b" / "evaluation", gain=1)
    compare(tmp_path / "out", a, b)
    dsc, hdb, volume = read(tmp_path / "out")
    told = ["b, level 1", "a, level 1", "head", "DSC_percent", "cases"]
    assert [dsc[name] for name in LABELS] == told
    assert (dsc["n"], dsc["mean_difference"], dsc["p"]) == (8, 4.5, pytest.approx(2 / 2**8))
    gains = metrics.summarize(np.arange(1, 9))
    assert (dsc["ci_low"], dsc["ci_high"]) == (gains["ci_low"], gains["ci_high"])
    assert (hdb["metric"], hdb["n"], hdb["mean_difference"]) == ("Hdb_mm", 7, -1)
    assert hdb["p"] == pytest.approx(2 / 2**7) and volume["p"] == pytest.approx(2 / 2**8)
    assert volume["metric"] == "volume_error_percent"  # volume_mL is no score
    # Three tests: 3 x 2 / 2^8, 2 x 2 / 2^8 (no less than the one before), 1 x 2 / 2^7 (likewise).
    assert [row["p_holm"] for row in (dsc, volume, hdb)] == pytest.approx([6 / 2**8] * 3)
    text = (tmp_path / "out" / "table.txt").read_text("utf-8")
    assert capsys.readouterr().out == text and "b, level 1 against a, level 1, head" in text
    (line,) = (line.split() for line in text.splitlines() if "DSC_percent" in line)
    assert line[:4] == ["DSC_percent", "8", "cases", "+4.500"]
    assert line[-2:] == ["0.0078", "0.0234"] and "says nothing of other trainings" in text


def test_all_pairs_of_evaluations(tmp_path):
    folders = [
        evaluation(tmp_path / name, name, gain, structures=("a", "b"))
        for name, gain in (("x", 0), ("y", 1), ("z", 2))
    ]
    rows = tables.read(folders[2])
    tables.write(folders[2], rows + [row | {"method": "z again"} for row in rows])
    compare(tmp_path / "out", *folders)
    pairs = [(row["method"], row["against"], row["structure"]) for row in read(tmp_path / "out")]
    expected = [("y", "x"), ("z", "x"), ("z again", "x"), ("z", "y"), ("z again", "y")]
    assert list(dict.fromkeys(pairs)) == [
        (*pair, structure) for pair in expected for structure in "ab"
    ]
    # Holm's correction is over the table: ten blocks of three metrics, the first the smallest p.
    first = read(tmp_path / "out")[0]
    assert first["p_holm"] == pytest.approx(30 * first["p"]) == pytest.approx(30 * 2 / 2**8)


@pytest.mark.parametrize(
    "others, told",
    [
        (["a"], "expected folders of runs with different names"),
        (["nowhere"], "nowhere/scores.csv: no such file"),
        (["apart"], "apart: no case in common"),
        (["seed"], "seed, case_0, head: truth_volume_mL is 120, in"),
        (["below/a"], "expected folders of runs with different names"),
        (["label"], "the structures are head and label 1; expected the same names, see --names"),
    ],
)
def test_bad_input_is_one_sentence(others, told, tmp_path, capsys):
    evaluation(tmp_path / "a")
    evaluation(tmp_path / "apart", cases=range(20, 28))
    evaluation(tmp_path / "seed", truth=120.0)
    evaluation(tmp_path / "below" / "a")
    evaluation(tmp_path / "label", structures=["label 1"])
    with pytest.raises(SystemExit, match="1"):
        compare(tmp_path / "out", tmp_path / "a", *(tmp_path / name for name in others))
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_is_not_in_all_is_said(tmp_path, capsys):
    a = evaluation(tmp_path / "a", structures=("head", "face"))
    b = evaluation(tmp_path / "b", cases=range(1, 30))
    compare(tmp_path / "out", a, b)
    assert {(row["structure"], row["n"]) for row in read(tmp_path / "out")} == {("head", 7)}
    notes = capsys.readouterr().out.splitlines()[-3:]
    assert notes[0] == f"structures not in all, in {a}: face"
    assert notes[1] == f"cases not in all, in {a}: case_0"
    assert notes[2].startswith(f"cases not in all, in {b}: case_8, case_9, ")
    assert notes[2].endswith("case_17 and 12 more")


def test_one_evaluation_is_none_to_compare(tmp_path, capsys):
    with pytest.raises(SystemExit, match="1"):
        compare(tmp_path / "out", evaluation(tmp_path / "a"))
    assert "at least two folders" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# Methods that were trained several times


def trained(folder, gain, cases=range(2), truth=100.0, system="fetal_head", **flags):
    """A run folder of these flags with its `evaluation`."""
    evaluation(folder / "evaluation", gain=gain, cases=cases, truth=truth)
    config = {"system": system, "flags": {"seed": 0, **flags}, "data_fingerprint": "d"}
    (folder / "config.json").write_text(json.dumps({**config, "labels": {"1": "head"}}))


def several(folder, names, gains, runs):
    """Runs of two methods and, as they stand in the flag, their patterns."""
    for name, of_method in zip(names, gains):
        for gain, flags in zip(of_method, runs):
            number = flags.get("fold", flags.get("seed"))
            trained(folder / f"{name}_{number}", gain, **flags)
    return [f"{folder}/{name}_*/evaluation" for name in names]


SEEDS = [{"seed": seed} for seed in range(5)]
FOLDS = [{"folds": 5, "fold": fold, "cases": [2 * fold, 2 * fold + 1]} for fold in range(1, 6)]


@pytest.mark.parametrize(
    "runs, p",
    [
        (SEEDS, 0.0132),  # t = 3 / sqrt(2.5 / 5) = 4.243 of 4 degrees of freedom
        ([{**run, "cases": range(8)} for run in SEEDS], 0.0132),  # more cases are no more runs
        ([{**run, "truth": 100.0 + n} for n, run in enumerate(SEEDS)], 0.0132),  # other phantoms
        (FOLDS, 0.0474),  # t = 3 / sqrt(2.5 * (1 / 5 + 1 / 4)) = 2.828
    ],
)
def test_five_runs_are_the_unit(tmp_path, capsys, runs, p):
    """Runs that gain 1 to 5 mm of Hdb over those of the same seed or fold."""
    patterns = several(tmp_path, "ab", ([0] * 5, [1, 2, 3, 4, 5]), runs)
    compare(tmp_path / "out", *patterns)
    lines = {line["metric"]: line for line in read(tmp_path / "out")}
    hdb = lines["Hdb_mm"]
    assert (hdb["unit"], hdb["n"], hdb["runs"], hdb["mean_difference"]) == ("runs", 5, 5, -3)
    assert hdb["p"] == pytest.approx(p, abs=1e-4) and hdb["p_holm"] == pytest.approx(3 * hdb["p"])
    assert -5 <= hdb["ci_low"] < -3.5 and -2.5 < hdb["ci_high"] <= -1
    assert hdb["method"] == f"{tmp_path}/b_*, level 1"
    text = capsys.readouterr().out
    assert re.search(r"Hdb_mm +5 runs +-3\.000", text) and "paired t test over runs" in text


@pytest.mark.parametrize("overlap, p", [(0.0, 0.0132), (1 / 4, 0.0474)])
def test_tables_of_several_runs_are_tested_over_runs(tmp_path, capsys, overlap, p):
    """As `test_five_runs_are_the_unit`, of two folders that hold the runs of a table each."""
    for name, gains in (("a", [0] * 5), ("b", [1, 2, 3, 4, 5])):
        rows = []
        for seed, gain in enumerate(gains):
            folder = evaluation(tmp_path / f"{name}_{seed}", gain=gain, cases=range(4))
            rows += [repeated.named(f"seed {seed}", row) for row in tables.read(folder)]
        tables.write(tmp_path / name, rows, test=repeated.over_runs(rows, overlap))
    single = evaluation(tmp_path / "single", gain=2, method="other")
    compare(tmp_path / "out", tmp_path / "a", tmp_path / "b")
    hdb = {line["metric"]: line for line in read(tmp_path / "out")}["Hdb_mm"]
    assert (hdb["unit"], hdb["n"], hdb["runs"], hdb["mean_difference"]) == ("runs", 5, 5, -3)
    assert hdb["p"] == pytest.approx(p, abs=1e-4)
    assert re.search(r"Hdb_mm +5 runs +-3\.000", capsys.readouterr().out)
    compare(tmp_path / "one", single, tmp_path / "a_0")  # each of one run
    assert {line["unit"] for line in read(tmp_path / "one")} == {"cases"}


def test_runs_pair_by_seed_in_whatever_order_and_fewer_are_tested_over_cases(tmp_path, capsys):
    """Seeds 1 to 4 are in both: 8 pairs of cases, whose gain in Hdb is their seed's."""
    old = [{"seed": seed} for seed in (4, 3, 2, 1, 0)]
    new = [{"seed": seed} for seed in (1, 2, 3, 4, 9)]
    for name, runs, gains in (("a", old, [0] * 5), ("b", new, [1, 2, 3, 4, 100])):
        several(tmp_path, [name], [gains], runs)
    compare(tmp_path / "out", f"{tmp_path}/a_?/evaluation", f"{tmp_path}/b_?/evaluation")
    (hdb,) = [line for line in read(tmp_path / "out") if line["metric"] == "Hdb_mm"]
    assert (hdb["unit"], hdb["n"], hdb["runs"]) == ("cases", 4, 4)  # case 0 has none
    assert hdb["mean_difference"] == -2.5 and hdb["p"] == pytest.approx(2 / 2**4)
    text = capsys.readouterr().out
    assert re.search(r"DSC_percent +8 cases of 4 runs ", text)
    assert f"cases not in all, in {tmp_path}/b_?/evaluation: seed 9/case_0" in text


def test_one_run_beside_several(tmp_path):
    patterns = several(tmp_path, "ab", ([0] * 5, [1] * 5), SEEDS)
    compare(tmp_path / "out", patterns[0], tmp_path / "b_3" / "evaluation")
    lines = read(tmp_path / "out")
    assert {(line["method"], line["runs"]) for line in lines} == {("b_3, level 1", 1)}


@pytest.mark.parametrize(
    "change, told",
    [
        ({"name": "b_9", "seed": 3}, "b_9: is seed 3, as .*b_3 is; expected another seed or fold."),
        (
            {"name": "b_9", "seed": 9, "scale": 0.5},
            "b_9: made with --scale 0.5, unlike .*b_0; expected runs that differ in seed and fold",
        ),
        ({"name": "b_9", "seed": 9, "system": "embryo"}, "b_9: a run of 'embryo', .* 'fetal_head'"),
        ({"name": "a_0", "seed": 0, "truth": 120.0}, "seed 0/case_0, head: truth_volume_mL is 100"),
        ({"name": "b_9"}, None),
        ({"pattern": "c_*"}, "c_.*: matches no folder; expected evaluations of runs."),
        ({"pattern": "[b]_[3]", "seeds": (0, 1)}, "have seed 0; seed 1 and seed 3; expected runs"),
    ],
)
def test_runs_of_no_method_are_one_sentence(tmp_path, capsys, change, told):
    runs = [{"seed": seed} for seed in change.pop("seeds", range(5))]
    several(tmp_path, "a", [[0] * 5], runs)
    several(tmp_path, "b", [[0] * 5], SEEDS)
    pattern = change.pop("pattern", "b_*")
    if told is None:  # the evaluation of no run
        evaluation(tmp_path / "b_9" / "evaluation")
        told = "b_9: no config.json; expected a run folder"
    elif change:
        trained(tmp_path / change.pop("name"), 0, **change)
    with pytest.raises(SystemExit, match="1"):
        compare(tmp_path / "out", f"{tmp_path}/a_*/evaluation", f"{tmp_path}/{pattern}/evaluation")
    error = capsys.readouterr().err
    assert re.search(told, error) and error.count("\n") == 1, error
    assert not (tmp_path / "out").exists()
