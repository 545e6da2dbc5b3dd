"""The peer of the tables of real data: what it has in common with our runs, and that it learns."""

import json
import pathlib
import sys

import made_up_peers
import numpy as np
import pytest
import SimpleITK as sitk

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "benchmarks"))
import harness
import peer_training

from tf_autoctx.data import datasets, images
from tf_autoctx.errors import UserError
from tf_autoctx.report import tables
from tf_autoctx.training import runs

WANTED = pytest.mark.skipif(
    None in map(harness.version, peer_training.PACKAGES), reason="wants PyTorch and MONAI"
)
FLAGS = {
    "seed": 3,
    "folds": 2,
    "fold": 2,
    "validation_fraction": 0.0,
    "foreground": None,
    "steps": 5,
    "samples_per_epoch": 6,
    "batch_size": 2,
    "surface_tolerance": 1.0,
}
SIZE = 16


WINDOW = {"intensities": "hu", "window_low": -10.0, "window_high": 60.0}
SIDES = {1: "left", 2: "right"}


def write_data(folder, values=(1,)):
    """Four volumes whose bright cube is 1, or left one 1 and right one 2."""
    rng = np.random.default_rng(0)
    for case in "abcd":
        volume, label = rng.normal(0, 20, (SIZE,) * 3), np.zeros((SIZE,) * 3, np.uint8)
        for value, x in zip(values, (2, 9)):
            label[4:10, 5:11, x : x + 5] = value
        for kind, voxels in (("images", volume + 100 * (label > 0)), ("labels", label)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            voxels = voxels.astype(np.float32 if kind == "images" else np.uint8)
            sitk.WriteImage(sitk.GetImageFromArray(voxels), folder / kind / f"{case}.nii.gz")
    return folder


def make_run(source, method="ours", system="fetal_head", labels=None, facts=None, **flags):
    """A finished run, as its folder beside the data tells of it: two levels, of 2 and of 5 s."""
    flags = {**FLAGS, "data_dir": str(source), **flags}
    cases = datasets.of_flags(source, flags)
    name = f"{method}_seed_{flags['seed']}_fold_{flags['fold']}"
    making = runs.Making(system, flags, datasets.fingerprint(cases))
    run = runs.open_run(source.parent / "runs" / name, making)
    run = run.note(labels=labels or {1: "head"}, **(facts or {}))
    write_scores(run.folder / "evaluation", system, [case.name for case in cases.test])
    (run.folder / "saved_model" / "1").mkdir(parents=True)
    for level, seconds in ((1, (0.5, 0.25)), (2, (1.0, 1.0))):
        lines = [f"{epoch},0.1,{of_step}" for epoch, of_step in enumerate(seconds)]
        text = "\n".join(["epoch,loss,seconds_per_step", *lines, ""])
        (run.folder / f"level_{level}").mkdir()
        (run.folder / f"level_{level}" / "history.csv").write_text(text)
    return run, cases


def write_scores(folder, system, cases):
    about = {"system": system, "method": "DynUNet", "group": "", "structure": "head"}
    sizes = {"DSC_percent": 90.0, "volume_mL": 0.2, "truth_volume_mL": 0.18}
    tables.write(folder, [{**about, "case": case, **sizes} for case in cases])


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path / "heads")


@pytest.fixture
def command(tmp_path):
    """Runs the command on all runs of the method `ours`: the rows of its table."""

    def call(*words):
        given = (f"--runs={tmp_path / 'runs'}", "--method=ours", f"--output={tmp_path / 'out'}")
        peer_training.main(peer_training.command.parse([*given, *words]))
        return tables.read(tmp_path / "out")

    return call


@pytest.fixture
def trained(monkeypatch):
    """Peers are said to be trained: [(name, threads)], in order."""
    calls = []

    def called(function, run_folder, folder, threads):
        assert function is peer_training.train
        run, folder = runs.load(run_folder), pathlib.Path(folder)
        calls.append((folder.name, threads))
        names = [row["case"] for row in tables.read(run.folder / "evaluation")]
        write_scores(folder, run.system, names)
        shared = peer_training.Peer(run, folder).shared
        (folder / "training.json").write_text(json.dumps(shared))

    monkeypatch.setattr(harness, "called", called)
    monkeypatch.setattr(harness, "version", lambda name: "1.0")
    return calls


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """Of `made_up_peers`, and the folders of two peers that it trained."""
    folder = tmp_path_factory.mktemp("peers")
    heads, _ = make_run(write_data(folder / "heads"), "heads")
    organs = write_data(folder / "organs", (1, 2))
    organs, _ = make_run(organs, "organs", "multi_organ", SIDES, **WINDOW)
    pairs = [(str(run.folder), str(folder / run.folder.name)) for run in (heads, organs)]
    found = harness.called(made_up_peers.answers, pairs)
    return {**found, "heads": pairs[0], "organs": pairs[1]}


# In common with our run


def test_the_seconds_are_those_of_all_levels(data):
    """Epochs of 3 and of 2 steps: 3 x 0.5 + 2 x 0.25 + 5 x 1."""
    run, _ = make_run(data)
    assert peer_training.seconds_of(run) == 7.0


@WANTED
def test_a_peer_learns_from_the_run_s_cases_and_is_scored_on_its_others(data, command, tmp_path):
    """In a process of its own, as a user has it."""
    run, cases = make_run(data)
    for history in run.folder.glob("*/history.csv"):
        history.write_text("epoch,loss,seconds_per_step\n0,1,0.2\n")  # of 3 steps: 1.2 s in all
    rows = command("--jobs=2")
    assert [row["case"] for row in rows] == [f"seed 3, fold 2/{case.name}" for case in cases.test]
    for row in rows:
        assert row["method"] == "DynUNet" and row["structure"] == "head"
        assert row["truth_volume_mL"] == pytest.approx(0.18)  # of 6 x 6 x 5 mm
        assert {"DSC_percent", "Hdb_mm", "NSD_percent"} <= row.keys()
    told = json.loads((tmp_path / "out" / run.folder.name / "training.json").read_text())
    assert told["cases"] == [case.name for case in cases.train] and len(told["cases"]) == 2
    assert told["seconds"] == pytest.approx(1.2) and told["steps"] >= 1
    assert (told["threads"], told["seed"], told["edges"]) == (1, 3, [16, 16, 16])


@WANTED
def test_a_peer_is_trained_for_the_seconds_of_the_run(answers):
    """A step a second: 7 s, of which one goes by before the first."""
    for kind in ("heads", "organs"):
        told = json.loads((pathlib.Path(answers[kind][1]) / "training.json").read_text())
        assert (told["seconds"], told["steps"]) == (7.0, 6)
        assert told["mirrored"] == (kind == "heads")


@WANTED
def test_several_structures_are_scored_by_name(answers):
    rows = tables.read(answers["organs"][1])
    assert [row["structure"] for row in rows] == ["left", "right"] * 2
    assert {row["system"] for row in rows} == {"multi_organ"}
    assert [row["truth_volume_mL"] for row in rows] == pytest.approx([0.18] * 4)


def test_what_is_read_of_a_label_is_what_the_run_reads(tmp_path):
    source = write_data(tmp_path / "organs", (1, 2))
    heads, cases = make_run(source)
    one, _ = make_run(source, "one", foreground=[2])
    organs, _ = make_run(source, "organs", "multi_organ", SIDES)
    for run, values in ((heads, [0, 1]), (one, [0, 1]), (organs, [0, 1, 2])):
        _, label = peer_training.read(cases.train[0], run, {})
        assert np.unique(label).tolist() == values
        assert (label > 0).sum() == (180 if run is one else 360)


def test_a_ct_has_the_window_of_the_run_and_other_images_mean_0_and_sd_1(data):
    ct, cases = make_run(data, "ct", "multi_organ", **WINDOW)
    image = images.read_raw(cases.train[0].image, 3)
    voxels = peer_training.normalized(image, ct)
    expected = (np.clip(image.array, -10, 60) + 10) / 100
    np.testing.assert_allclose(voxels, expected[None], atol=1e-6)
    assert voxels.min() == 0 and voxels.max() == pytest.approx(0.7)
    voxels = peer_training.normalized(image, make_run(data)[0])
    assert voxels.shape == (1, SIZE, SIZE, SIZE) and voxels.dtype == np.float32
    assert voxels.mean() == pytest.approx(0, abs=1e-5) and voxels.std() == pytest.approx(1, 1e-4)


# The network


@WANTED
def test_a_patch_is_as_large_as_images_and_time_allow(answers):
    assert answers["edges"] == made_up_peers.EDGES


@WANTED
def test_what_is_learnt_depends_on_seed_and_cases_alone(answers):
    steps, told, first = answers["first"]
    assert steps == 3 and told == [1, 2, 3]  # of 4 s, of which one goes by before the first step
    assert np.array_equal(answers["same"][2], first)
    for changed in ("other case", "other seed"):
        assert answers[changed][0] == 3
        assert not np.array_equal(answers[changed][2], first)


@WANTED
def test_it_learns(answers):
    found, truth = answers["found"]
    assert found.shape == truth.shape and found.dtype == np.uint8
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.8


@WANTED
def test_left_and_right_change_places_only_where_patches_are_mirrored(answers):
    """The left half of the volume is the brighter one."""
    for mirrored, expected in ((False, {True}), (True, {False, True})):
        voxels = [patch["image"] for patch in answers["patches"][mirrored]]
        assert {image.shape for image in voxels} == {(1, 16, 16, 16)}
        brighter = {bool(v[..., :6].mean() > v[..., -6:].mean()) for v in voxels}
        assert brighter == expected


@WANTED
def test_a_small_structure_is_in_every_other_patch(answers):
    """By chance a patch of 16^3 has a part of 8 voxels in 64^3 once in 24 times or less."""
    assert 12 <= answers["small"] <= 35


# All of them, and what cannot be


def test_what_is_finished_is_not_trained_again(data, command, trained):
    make_run(data)
    rows = command("--jobs=2")
    assert trained == [("ours_seed_3_fold_2", 1)]  # several at a time have a thread each
    make_run(data, fold=1)
    more = command()
    assert trained[1:] == [("ours_seed_3_fold_1", harness.machine()["cores"])]
    assert len(rows) == 2 and len(more) == 4 and all(row in more for row in rows)
    assert command("--jobs=0") == more and len(trained) == 2


def test_without_jobs_nothing_is_trained(data, command, trained, tmp_path):
    make_run(data)
    with pytest.raises(UserError, match=r"out/ours_seed_3_fold_2: is not finished"):
        command("--jobs=0")
    assert trained == [] and not (tmp_path / "out" / "scores.csv").exists()


def test_a_run_that_is_not_finished_is_told_beside_those_that_are(data, command, trained, tmp_path):
    make_run(data)
    other, _ = make_run(data, fold=1)
    (other.folder / "saved_model" / "1").rmdir()
    with pytest.raises(UserError, match=r"ours_seed_3_fold_1: is not finished; 1 of the runs"):
        command()
    assert len(tables.read(tmp_path / "out")) == 2 and len(trained) == 1


@pytest.mark.parametrize("missing", ["torch", "monai"])
def test_a_package_that_is_missing_is_named(missing, data, command, trained, monkeypatch):
    make_run(data)
    monkeypatch.setattr(harness, "version", lambda name: None if name == missing else "1.0")
    told = rf"^{missing} is not installed; run pip install -e '.\[benchmarks\]'.$"
    with pytest.raises(UserError, match=told):
        command()
    assert trained == []


def test_there_must_be_runs_of_the_method(command):
    with pytest.raises(UserError, match=r"holds no folder ours_seed_...; expected finished runs"):
        command()


def test_data_must_be_those_of_the_run(data, command, trained):
    make_run(data)
    label = data / "labels" / "a.nii.gz"
    before = label.read_bytes()
    sitk.WriteImage(sitk.GetImageFromArray(np.ones((SIZE,) * 3, np.uint8)), label)
    with pytest.raises(UserError, match="heads: other data than those of"):
        command()
    label.write_bytes(before)
    data.rename(data.with_name("elsewhere"))
    with pytest.raises(UserError, match="heads: no such file or folder"):
        command()
    assert trained == []


@pytest.mark.parametrize(
    "changed, told",
    [
        ({"system": "embryo"}, "a run of 'embryo'; expected one of 'fetal_head' or 'multi_organ'"),
        ({"facts": {"grid": [1.0, 1.0, 1.0]}}, "has grid; expected a run on the images' own grid"),
        ({"facts": {"regions": {"whole": [1]}}}, "has regions; expected"),
    ],
)
def test_other_runs_have_no_peer(changed, told, data, command, trained):
    make_run(data, **changed)
    with pytest.raises(UserError, match=told):
        command()
    assert trained == []


def test_voxels_to_be_ignored_are_refused(data, command, trained):
    listed = [{"image": f"images/{c}.nii.gz", "label": f"labels/{c}.nii.gz"} for c in "abcd"]
    labels = {"0": "background", "1": "head", "2": "ignore"}
    text = json.dumps({"labels": labels, "training": listed, "test": []})
    (data / "dataset.json").write_text(text)
    make_run(data)
    with pytest.raises(UserError, match="has voxels to be ignored; expected a run"):
        command()


def test_a_run_without_a_history_has_no_seconds(data):
    run, _ = make_run(data)
    for history in run.folder.glob("*/history.csv"):
        history.unlink()
    with pytest.raises(UserError, match=r"no history\.csv tells what a level took"):
        peer_training.seconds_of(run)


def test_a_training_that_fails_is_one_sentence(data, command, trained, monkeypatch):
    def called(*arguments):
        raise harness.SideFailed("UserError: a.nii.gz: is none.")

    make_run(data)
    monkeypatch.setattr(harness, "called", called)
    with pytest.raises(UserError, match=r"ours_seed_3_fold_2: is not trained \(UserError: a\.nii"):
        command()


def test_the_peer_of_another_run_is_not_taken_for_that_of_this_one(data, command, trained):
    run, _ = make_run(data)
    command()
    (run.folder / "level_2" / "history.csv").unlink()  # 2 s are left of 7
    with pytest.raises(UserError, match=r"had other seconds than .*; expected the peer of this"):
        command()
