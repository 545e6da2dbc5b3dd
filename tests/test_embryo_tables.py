"""Table 1 of the embryo system, from runs made by hand."""

import json
import re
import shutil

import numpy as np
import pytest
import running

from tf_autoctx import metrics
from tf_autoctx.commands import embryo_tables
from tf_autoctx.data import datasets, phantoms
from tf_autoctx.report import tables
from tf_autoctx.systems.embryo import sliding_windows
from tf_autoctx.systems.embryo.configuration import Embryo, SlidingWindows
from tf_autoctx.systems.embryo.segmentation import Refinement

LABELS = {"1": "body", "2": "ventricle"}
FIELDS = {
    "low_size": 8,
    "body_box": 16,
    "ventricle_box": 8,
    "base_filters": 2,
    "depth": 1,
    "kernel": 3,
}
BUILT = {"normalization": "instance", "initializer": "he"}
SPLIT = {"data_dir": "", "validation_fraction": 0.0}


def run_command(*arguments):
    running.call("embryo_tables", *arguments)


def shifted(shift):
    """A cube of 4 voxels; shifted by s, its DSC with the one at 0 is 1 - s / 4."""
    mask = np.zeros((4, 4, 12), bool)
    mask[:, :, 2 + shift : 6 + shift] = True
    return mask


def make(folder, system, flags_, fingerprint, networks, shifts):
    """A finished run: {stage: network} and, per method, by how much (body, ventricle) are shifted
    in each case."""
    config = {"system": system, "flags": flags_, "labels": LABELS, "data_fingerprint": fingerprint}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    for stage, network in networks.items():
        (folder / stage).mkdir()
        network.save(folder / stage / "model.keras")
    rows = [
        {
            "system": system,
            "method": method,
            "case": f"embryo_{case:03}",
            "group": "",
            "structure": structure,
        }
        | metrics.compare(shifted(shift), shifted(0), (1, 1, 1))
        for method, cases in shifts.items()
        for case, both in enumerate(cases, start=2)
        for structure, shift in zip(LABELS.values(), both)
    ]
    tables.write(folder / "evaluation", rows)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two embryo runs and a peer of the same phantoms, with random networks."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "context").mkdir()
    data = phantoms.write_embryos(folder / "context" / "phantoms", (20, 24, 20), 0.45, (2, 2), 0)
    fingerprint = datasets.fingerprint(datasets.load(data, 0, 0.0))
    peer = SlidingWindows(window=16, stride=3, base_filters=2, depth=1, kernel=3, **BUILT)
    for name, context, shifts in (
        (
            "context",
            True,
            {
                "initial": [(1, 2), (1, 4)],
                "refine": [(1, 1), (0, 2)],
                "end_to_end": [(0, 0), (0, 1)],
            },
        ),
        ("without", False, {"initial": [(1, 2), (1, 4)], "refine": [(1, 1), (1, 3)]}),
    ):
        given = {**FIELDS, **BUILT, **SPLIT, "auto_context": context, "seed": 0}
        if not context:
            given["data_dir"] = str(data)
        configuration = Embryo(auto_context=context, **FIELDS, **BUILT)
        refinement = Refinement(configuration, {1: "body", 2: "ventricle"})
        networks = {stage: refinement.network(stage) for stage in shifts}
        make(folder / name, "embryo", given, fingerprint, networks, shifts)
    networks = sliding_windows.new_networks(peer)
    shifts = {"sliding windows": [(2, 1), (2, 0)]}
    given = {**vars(peer), "seed": 0}
    make(folder / "peer", "sliding_windows", given, fingerprint, networks, shifts)
    return folder


@pytest.fixture
def runs_(made, tmp_path):
    shutil.copytree(made, tmp_path / "made")
    return tmp_path / "made"


def both(folder):
    return f"--runs={folder / 'without'},{folder / 'context'}"


def test_table_1(made, tmp_path, capsys):
    run_command(
        both(made),
        f"--sliding_windows={made / 'peer'}",
        f"--output={tmp_path}",
        "--volumes=2",
        "--fraction=0.5",
    )
    rows = tables.read(tmp_path)
    assert len(rows) == 5 * 2 * 2 and rows[0]["case"] == "seed 0/embryo_002"
    text = capsys.readouterr().out
    assert (tmp_path / "table.txt").read_text(encoding="utf-8") == text
    assert text.endswith(tables.dice_table(rows) + "\n")
    # Means and SD of 1 - shift / 4 in percent: the SD of two values is their difference / sqrt(2).
    expected = {
        "sliding windows": ("87.50 ± 17.68", "50.00 ± 0.00"),
        "initial": ("25.00 ± 35.36", "75.00 ± 0.00"),
        "without auto-context": ("50.00 ± 35.36", "75.00 ± 0.00"),
        "with auto-context": ("62.50 ± 17.68", "87.50 ± 17.68"),
        "end-to-end": ("87.50 ± 17.68", "100.00 ± 0.00"),
    }
    lines = [re.split(r"  +", line) for line in text.splitlines()[:7]]
    assert lines[0][1:] == ["n", "ventricle DSC (%)", "body DSC (%)", "s a volume", "times faster"]
    assert {line[0]: tuple(line[2:4]) for line in lines[2:]} == expected
    assert [line[0] for line in lines[2:]] == list(expected)
    assert {line[1] for line in lines[2:]} == {"2"}
    # (ventricle + body) / 2 of both cases: (100 + 100 + 75 + 100) / 4 - (75 + 75 + 50 + 100) / 4
    change = "Avg. +18.75 % [+12.50, +25.00], Wilcoxon over 2 cases"
    assert f"end-to-end against with auto-context: {change}\n" in text
    summary = json.loads((tmp_path / "summary.json").read_text())["methods"]
    assert summary["with auto-context"]["ventricle"]["metrics"]["DSC_percent"]["mean"] == 62.5

    timed = json.loads((tmp_path / "times.json").read_text())
    assert [volume["case"] for volume in timed] == ["embryo_002", "embryo_003"]
    for volume in timed:
        number = np.prod([max(n - 16, 0) // 3 + 1 for n in volume["size"]])
        assert volume["windows"] == number and volume["evaluated"] == max(1, round(0.5 * number))
        assert list(volume["seconds"]) == list(expected) and min(volume["seconds"].values()) > 0
    seconds = {
        method: np.mean([volume["seconds"][method] for volume in timed]) for method in expected
    }
    for line in lines[2:]:
        assert line[4] == f"{seconds[line[0]]:.3g}"
        assert line[5] == f"{seconds['sliding windows'] / seconds[line[0]]:.1f}"
    told = r"sliding windows: \d+ of \d+ windows \([\d.]+ %\) were timed, the rest extrapolated"
    assert re.search(told, text)


def test_without_the_peer_there_is_no_ratio(made, tmp_path, capsys):
    run_command(f"--runs={made / 'without'}", f"--output={tmp_path}")
    lines = [re.split(r"  +", line) for line in capsys.readouterr().out.splitlines()[:4]]
    assert lines[0][-1] == "s a volume" and [line[0] for line in lines[2:]] == [
        "initial",
        "without auto-context",
    ]
    (volume,) = json.loads((tmp_path / "times.json").read_text())
    assert set(volume) == {"case", "size", "seconds"}


def test_seeds_are_pooled(runs_, tmp_path, capsys, monkeypatch):
    still = {method: lambda voxels, spacing: None for method in embryo_tables.METHODS[1:]}
    monkeypatch.setattr(embryo_tables, "segments", lambda runs, chosen: still)
    shutil.copytree(runs_ / "without", runs_ / "other_seed")
    edit(runs_ / "other_seed", seed=1)
    run_command(f"{both(runs_)},{runs_ / 'other_seed'}", f"--output={tmp_path / 'out'}")
    cases = {(row["method"], row["case"]) for row in tables.read(tmp_path / "out")}
    for case in ("embryo_002", "embryo_003"):
        assert {method for method, name in cases if name == f"seed 1/{case}"} == {
            "initial",
            "without auto-context",
        }
    table = {
        words[0]: words[1]
        for words in (re.split(r"  +", line) for line in capsys.readouterr().out.splitlines()[2:6])
    }
    assert table == {
        "initial": "4",
        "without auto-context": "4",
        "with auto-context": "2",
        "end-to-end": "2",
    }


def test_five_seeds_are_tested_over_runs(runs_, tmp_path, capsys, monkeypatch):
    still = {method: lambda voxels, spacing: None for method in embryo_tables.METHODS[1:]}
    monkeypatch.setattr(embryo_tables, "segments", lambda runs, chosen: still)
    folders = [runs_ / "context"]
    for seed in (1, 2, 3, 4):
        folders.append(shutil.copytree(runs_ / "context", runs_ / f"context_{seed}"))
        edit(folders[-1], seed=seed)
    run_command(f"--runs={','.join(map(str, folders))}", f"--output={tmp_path / 'out'}")
    text = capsys.readouterr().out
    told = (
        "end-to-end against with auto-context: Avg. +18.75 % [+12.50, +25.00], paired t over 5 runs"
    )
    assert told in text  # of two cases that all runs share: both draws may be the same


def edit(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    for name, value in changes.items():
        (config if name in config else config["flags"])[name] = value
    (folder / "config.json").write_text(json.dumps(config))


def drop(folder, method):
    tables.write(folder, [row for row in tables.read(folder) if row["method"] != method])


@pytest.mark.parametrize(
    "damage, told",
    [
        (
            lambda made: edit(made / "without", system="fetal_head"),
            "without: a run of 'fetal_head'; expected one of 'embryo'",
        ),
        (
            lambda made: edit(made / "peer", system="embryo"),
            "peer: a run of 'embryo'; expected one of 'sliding_windows'",
        ),
        (
            lambda made: edit(made / "without", labels=None),
            "without/config.json: 'NoneType' object has no attribute 'items'",
        ),
        (lambda made: edit(made / "without", labels={"1": "a", "2": "b"}), "expected the same"),
        (
            lambda made: edit(made / "without", auto_context=True),
            "scores.csv: holds no case of 'end_to_end'",
        ),
        (
            lambda made: edit(made / "context", auto_context=False),
            "count cases twice; give one of the two",
        ),
        (
            lambda made: drop(made / "context" / "evaluation", "refine"),
            "scores.csv: holds no case of 'refine'",
        ),
        (
            lambda made: shutil.rmtree(made / "context" / "refine"),
            "refine/model.keras: this stage is not finished",
        ),
        (lambda made: shutil.rmtree(made / "peer" / "body"), "peer/body/model.keras: not finished"),
        (
            lambda made: shutil.rmtree(made / "peer" / "evaluation"),
            "peer/evaluation/scores.csv: no such file",
        ),
        (lambda made: edit(made / "peer", window=20), "window=20"),
        (
            lambda made: edit(made / "without", data_dir="/no/such"),
            "/no/such: no such file or folder",
        ),
        (lambda made: (made / "context" / "config.json").unlink(), "context: no config.json"),
    ],
)
def test_bad_runs_are_one_sentence(runs_, tmp_path, capsys, damage, told):
    damage(runs_)
    with pytest.raises(SystemExit) as ended:
        run_command(
            both(runs_), f"--sliding_windows={runs_ / 'peer'}", f"--output={tmp_path / 'out'}"
        )
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert ended.value.code == 1 and told in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("flag", ["--fraction=0.01", "--fraction=1.5", "--volumes=0", "--runs="])
def test_bad_flags(flag, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        run_command("--runs=a", flag, f"--output={tmp_path / 'out'}")
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 1 and line.startswith("error: ") and flag.split("=")[0] in line
