import csv

import numpy as np
import pytest

from tf_autoctx import metrics
from tf_autoctx.commands.compare import command
from tf_autoctx.report import tables

LABELS = ("method", "against", "structure", "metric")


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
    assert [dsc[name] for name in LABELS] == ["b, level 1", "a, level 1", "head", "DSC_percent"]
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
    assert line[:3] == ["DSC_percent", "8", "+4.500"] and line[-2:] == ["0.0078", "0.0234"]


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
