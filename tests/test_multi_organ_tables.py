import json

import numpy as np
import pytest
import running
import SimpleITK as sitk

from tf_autoctx import metrics
from tf_autoctx.commands.multi_organ_tables import command
from tf_autoctx.data import datasets
from tf_autoctx.report import tables
from tf_autoctx.systems.shared import prediction

LABELS = {"1": "artery", "2": "liver"}


def perform(*arguments):
    command.perform([str(argument) for argument in arguments])


def volume(at, value, also=0):
    """Labels of 12 x 12 x 16 voxels: a cube of edge 4 at x = `at`, and one of the value `also`."""
    label = np.zeros((12, 12, 16), np.uint8)
    label[2:6, 2:6, at : at + 4] = value
    label[8:, 8:, :4] = also
    return label


def make_run(folder, mode, methods, seed=1, data="d" * 64):
    """A finished run of one case.

    `methods` has, for each method, by how many of its 4 voxels each structure is shifted.
    """
    rows = []
    for method, shifts in methods.items():
        for structure, shift in zip(LABELS.values(), shifts):
            about = {
                "system": "multi_organ",
                "method": method,
                "case": "abdomen_003",
                "group": "p3",
            }
            rows.append(
                about
                | {"structure": structure}
                | metrics.compare(volume(4 + shift, 1), volume(4, 1), (1, 1, 1))
            )
    config = {"system": "multi_organ", "flags": {"mode": mode, "seed": seed}, "labels": LABELS}
    tables.write(folder / "evaluation", rows)
    (folder / "config.json").write_text(json.dumps(config | {"data_fingerprint": data}))
    return folder


@pytest.fixture
def three(tmp_path):
    """Runs of the three modes, in another order than the table's."""
    return [
        make_run(tmp_path / "without", "no_context", {"level 2": (4, 2)}),
        make_run(tmp_path / "end", "end_to_end", {"level 1": (2, 2), "level 2": (0, 0)}),
        make_run(tmp_path / "separate", "separate", {"level 1": (3, 3), "level 2": (1, 0)}),
    ]


def joined(folders):
    return f"--runs={','.join(map(str, folders))}"


def refused(capsys, told, *arguments):
    with pytest.raises(SystemExit) as ended:
        perform(*arguments)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert ended.value.code == 1 and told in line


def edit(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def averages(rows):
    """[(method, case, mean Dice)] in the order of the rows."""
    scores = {}
    for row in rows:
        scores.setdefault((row["method"], row["case"]), []).append(row["DSC_percent"])
    return [(*key, np.mean(values)) for key, values in scores.items()]


def test_table_1(three, tmp_path):
    done = running.script(
        "eval/multi_organ_tables.py", joined(three), f"--output={tmp_path / 'out'}"
    )
    assert done.returncode == 0, done.stderr
    rows = tables.read(tmp_path / "out")
    assert averages(rows) == [
        ("level 1, separate", "seed 1/abdomen_003", 25),
        ("level 2, separate", "seed 1/abdomen_003", 87.5),
        ("level 1, end-to-end", "seed 1/abdomen_003", 50),
        ("level 2, end-to-end", "seed 1/abdomen_003", 100),
        ("level 2, without context", "seed 1/abdomen_003", 25),
    ]
    assert {row["group"] for row in rows} == {"seed 1/p3"}
    assert (
        (tmp_path / "out" / "table.txt").read_text()
        == done.stdout
        == tables.dice_table(rows) + "\n"
    )
    assert "Avg. +12.50 % [+12.50, +12.50], Wilcoxon over 1 case\n" in done.stdout
    assert "level 2, end-to-end against level 2, separate: Avg. +12.50 %" in done.stdout
    assert (tmp_path / "out" / "summary.json").exists()


def test_seeds_are_pooled_and_modes_pair_up(three, tmp_path, capsys):
    more = [
        make_run(
            tmp_path / "separate_2", "separate", {"level 1": (2, 2), "level 2": (2, 2)}, seed=2
        ),
        make_run(tmp_path / "end_2", "end_to_end", {"level 1": (3, 3), "level 2": (1, 1)}, seed=2),
        make_run(
            tmp_path / "end_other",
            "end_to_end",
            {"level 1": (3, 3), "level 2": (3, 3)},
            seed=2,
            data="e" * 64,
        ),
    ]
    perform(joined(three[1:] + more[:2]), f"--output={tmp_path / 'out'}")
    scores = {row[:2]: row[2] for row in averages(tables.read(tmp_path / "out"))}
    assert scores["level 2, end-to-end", "seed 2/abdomen_003"] == 75 and len(scores) == 8
    text = capsys.readouterr().out
    # end-to-end - separate: 100 - 87.5 for seed 1, 75 - 50 for seed 2
    change = "Avg. +18.75 % [+12.50, +25.00], Wilcoxon over 2 cases of 2 runs"
    assert f"level 2, end-to-end against level 2, separate: {change}" in text

    perform(joined(three[1:] + more), f"--output={tmp_path / 'other'}")
    assert {row["case"] for row in tables.read(tmp_path / "other")} == {
        "seed 1/abdomen_003",
        "seed 2, data dddddddd/abdomen_003",
        "seed 2, data eeeeeeee/abdomen_003",
    }


def test_five_seeds_or_folds_are_tested_over_runs(tmp_path, capsys):
    """Shifts of 0, 0, 1, 1, 2 against 2 of 4 voxels: gains of 50, 50, 25, 25 and 0 %, so that
    t = 30 / sqrt(437.5 / 5) = 3.207, and of five folds 30 / sqrt(437.5 * (1 / 5 + 1 / 4)) = 2.138,
    of 4 degrees of freedom. Holm: three tests of one p."""
    for kind, p, holm in (("seed", "0.0327", "0.0980"), ("fold", "0.0993", "0.2979")):
        folders = []
        for number, shift in enumerate((0, 0, 1, 1, 2), start=1):
            new, old = (tmp_path / f"{kind}_{name}_{number}" for name in ("new", "old"))
            make_run(new, "end_to_end", {"level 1": (shift, shift)}, data=f"{kind}{number}")
            make_run(old, "separate", {"level 1": (2, 2)}, data=f"{kind}{number}")
            flags = {"seed": number} if kind == "seed" else {"seed": 0, "folds": 5, "fold": number}
            for folder, mode in ((new, "end_to_end"), (old, "separate")):
                edit(folder, flags={"mode": mode, **flags})
            folders += [new, old]
        perform(joined(folders), f"--output={tmp_path / kind}")
        text = capsys.readouterr().out
        told = "level 1, end-to-end against level 1, separate: Avg. +30.00 % ["
        assert told in text and "], paired t over 5 runs\n" in text
        lines = [line.split() for line in text.splitlines()]
        assert ["p", p, p, p] in lines and ["Holm", holm, holm, holm] in lines
        (pair,) = json.loads((tmp_path / kind / "summary.json").read_text())["paired"][:1]
        test = pair["metrics"]["DSC_percent"]
        assert (test["unit"], test["runs"], test["n"]) == ("runs", 5, 5)
    cases = {row["case"] for row in tables.read(tmp_path / "fold")}
    assert "seed 0, fold 3/abdomen_003" in cases


@pytest.fixture
def other(tmp_path):
    """A Decathlon folder with the liver at 1, a kidney at 2 and the artery at 5.

    Its only test case has no label.
    """
    folder = tmp_path / "other"
    pairs = []
    for name, label in (("a", volume(4, 1, also=2)), ("b", volume(8, 1, also=5))):
        pairs.append({"image": f"imagesTr/{name}.nii.gz", "label": f"labelsTr/{name}.nii.gz"})
        for path, voxels in zip(pairs[-1].values(), (label.astype(np.float32), label)):
            image = sitk.GetImageFromArray(voxels)
            image.SetSpacing((1.0, 1.0, 3.0))
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            sitk.WriteImage(image, str(folder / path))
    labels = {"0": "background", "1": "Liver", "2": "kidney", "5": "aorta"}
    description = {"labels": labels, "modality": {"0": "CT"}, "training": pairs}
    description["test"] = ["imagesTs/c.nii.gz"]
    (folder / "imagesTs").mkdir()
    (folder / "imagesTs" / "c.nii.gz").write_bytes((folder / "imagesTr" / "a.nii.gz").read_bytes())
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


@pytest.fixture
def networks(monkeypatch):
    """Networks that find an artery (1) nowhere and half a liver (2).

    The run without context finds both everywhere.
    """

    def load(folder):
        def segment(voxels, spacing, name):
            assert spacing == (3.0, 1.0, 1.0) and name.endswith(".nii.gz")
            label = 2 * np.uint8(np.roll(voxels, 2, axis=2) == 1)
            if "without" in str(folder):
                label[8:, 8:, :4] = 1
            return {"label": label}

        return segment

    monkeypatch.setattr(prediction, "load", load)


def test_table_2(three, other, networks, tmp_path, capsys, caplog):
    perform(
        joined(three),
        f"--output={tmp_path / 'out'}",
        f"--other_data={other}",
        "--label_map=5:1,1:2",
    )
    rows = tables.read(tmp_path / "out")
    assert {row["method"] for row in rows} == {
        f"level 2, {mode}" for mode in ("separate", "end-to-end", "without context")
    }
    dice = {
        (row["method"][len("level 2, ") :], row["structure"], row["case"]): row["DSC_percent"]
        for row in rows
    }
    assert (
        dice["separate", "liver", "seed 1/a"] == 50 and dice["separate", "liver", "seed 1/b"] == 50
    )
    assert dice["separate", "artery", "seed 1/b"] == 0  # missed
    assert {row["group"] for row in rows} == {"seed 1/a", "seed 1/b"}
    assert ("separate", "artery", "seed 1/a") not in dice  # nothing there, nothing found
    assert np.isnan(
        dice["without context", "artery", "seed 1/a"]
    )  # nothing there, but found: false
    assert dice["without context", "artery", "seed 1/b"] == 100
    assert "no test case has a label; the 2 other labelled cases are taken" in caplog.text
    assert tables.dice_table(rows) in capsys.readouterr().out
    assert (tmp_path / "out" / "table.txt").exists()


def marked(source, *cases):
    """The fact of a run that has learnt from the first case and was chosen by the others."""
    data = datasets.load(source, 0, 0.0)
    marks = {case.name: datasets.marks(case) for case in data.train}
    first, *others = cases
    return {"learnt": marks[first], "validated": [mark for name in others for mark in marks[name]]}


def test_cases_that_a_run_has_seen_are_left_out_of_all_runs_of_its_seed(
    three, other, networks, tmp_path, capsys, caplog
):
    """The other seed was chosen by one case alone; the run without context does not tell."""
    without, end, separate = three
    later = make_run(tmp_path / "later", "separate", {"level 2": (0, 0)}, seed=2)
    edit(separate, seen=marked(other, "a"))
    edit(end, seen={"learnt": [], "validated": []})
    edit(later, seen={"learnt": [], "validated": marked(other, "b")["learnt"]})
    flags = f"--output={tmp_path / 'out'}", f"--other_data={other}", "--label_map=1:2"
    perform(joined([separate, end, later]), *flags)
    cases = {(row["method"], row["case"]) for row in tables.read(tmp_path / "out")}
    assert cases == {
        ("level 2, separate", "seed 1/b"),
        ("level 2, end-to-end", "seed 1/b"),
        ("level 2, separate", "seed 2/a"),
    }
    told = f"{other}: 1 of 2 cases with a label trained or validated {separate}, {end}, and are"
    assert told in caplog.text and "does not tell" not in caplog.text
    perform(joined([end, without, later]), *flags)
    assert f"{without}: does not tell which cases its weights have learnt from" in caplog.text
    edit(end, seen=marked(other, "a", "b"))
    told = f"{other}: all 2 cases with a label trained or validated {end}; expected some that did"
    refused(capsys, told, joined([end, later]), f"--output={tmp_path / 'none'}", *flags[1:])
    assert not (tmp_path / "none" / "scores.csv").exists()


def test_a_map_leaves_out_what_it_does_not_name(three, other, networks, tmp_path):
    words = f"--output={tmp_path / 'out'}", f"--other_data={other}", "--label_map=1:2"
    perform(joined(three), *words)
    assert {row["structure"] for row in tables.read(tmp_path / "out")} == {"liver"}


def test_equal_values_are_the_default(three, other, networks, tmp_path):
    description = json.loads((other / "dataset.json").read_text())
    description["labels"] = {"1": "Artery", "2": "liver", "5": "aorta"}
    (other / "dataset.json").write_text(json.dumps(description))
    perform(joined(three[1:2]), f"--output={tmp_path / 'out'}", f"--other_data={other}")
    dice = {
        (row["structure"], row["case"]): row["DSC_percent"] for row in tables.read(tmp_path / "out")
    }
    assert dice == {
        ("artery", "seed 1/a"): 0,
        ("artery", "seed 1/b"): 0,
        ("liver", "seed 1/a"): 0,
        ("liver", "seed 1/b"): pytest.approx(np.nan, nan_ok=True),
    }


def test_a_csv_whose_test_case_has_a_label(three, other, networks, tmp_path, caplog):
    lines = [f"imagesTr/{name}.nii.gz,labelsTr/{name}.nii.gz" for name in "ab"]
    (other / "cases.csv").write_text(f"image,label,split\n{lines[0]},train\n{lines[1]},test\n")
    flag = f"--other_data={other / 'cases.csv'}"
    perform(joined(three[1:2]), f"--output={tmp_path / 'out'}", flag, "--label_map=1:2")
    (row,) = tables.read(tmp_path / "out")
    assert (row["structure"], row["case"], row["DSC_percent"]) == ("liver", "seed 1/b", 50)
    assert "labelled cases" not in caplog.text


@pytest.mark.parametrize(
    "given, told",
    [
        (
            ["--label_map=1:2,3:1"],
            "--label_map: the data do not have the label values [3]; expected some of [1, 2, 5]",
        ),
        (
            ["--label_map=1:2,5:7"],
            "--label_map: the runs do not have the label values [7]; expected some of [1, 2].",
        ),
        ([], "label 1 is 'Liver', in the runs 'artery'; give --label_map."),
    ],
)
def test_a_bad_map_is_one_sentence(three, other, tmp_path, capsys, given, told):
    refused(
        capsys,
        told,
        joined(three),
        f"--output={tmp_path / 'out'}",
        f"--other_data={other}",
        *given,
    )


@pytest.mark.parametrize("value", ["1", "1:", "a:1", "1:2:3", "0:1", "1:0", "1:2,1:3", ""])
def test_a_malformed_map_is_refused(value, capsys):
    told = "expected pairs old:new of label values"
    refused(capsys, told, "--runs=a", "--output=b", "--other_data=c", f"--label_map={value}")


def test_a_map_is_written_as_it_was_read():
    given = command.parse(["--runs=a", "--output=b", "--other_data=c", "--label_map=5:1,1:2"])
    assert given["label_map"] == {5: 1, 1: 2}
    assert command.serialized(given)[-1] == "--label_map=5:1,1:2"


@pytest.mark.parametrize(
    "damage, told",
    [
        (
            lambda run: edit(run, system="fetal_head"),
            "end: a run of 'fetal_head'; expected one of 'multi_organ'.",
        ),
        (
            lambda run: edit(run, labels=None),
            "end/config.json: 'NoneType' object has no attribute 'items' is missing",
        ),
        (lambda run: edit(run, flags={"seed": 1}), "end/config.json: 'mode' is missing or wrong"),
        (
            lambda run: edit(run, flags={"seed": 1, "mode": "fast"}),
            "end/config.json: unknown mode 'fast'",
        ),
        (lambda run: edit(run, labels={"1": "liver", "2": "artery"}), "expected the same"),
        (
            lambda run: edit(run, flags={"seed": 1, "mode": "separate"}),
            "count cases twice; give one of the two",
        ),
        (lambda run: (run / "config.json").unlink(), "end: no config.json"),
        (
            lambda run: (run / "evaluation" / "scores.csv").unlink(),
            "end/evaluation/scores.csv: no such file",
        ),
        (
            lambda run: (run / "evaluation" / "scores.csv").write_text(
                ",".join(tables.LONG) + "\n"
            ),
            "scores.csv: holds no case",
        ),
    ],
)
def test_bad_runs_are_one_sentence(three, tmp_path, capsys, damage, told):
    damage(three[1])
    refused(capsys, told, joined(three), f"--output={tmp_path / 'out'}")
    assert not (tmp_path / "out").exists()


def test_bad_flags(three, tmp_path, capsys):
    told = "--label_map: there is no --other_data"
    refused(capsys, told, joined(three), f"--output={tmp_path / 'out'}", "--label_map=1:2")
    (tmp_path / "taken").write_text("")
    refused(capsys, "taken", joined(three), f"--output={tmp_path / 'taken'}")
    refused(capsys, "--runs", "--runs=", f"--output={tmp_path / 'out'}")
    refused(capsys, "--runs", f"--output={tmp_path / 'out'}")
