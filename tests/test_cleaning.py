"""Largest components and filled holes in the graph, where they are kept, and that prediction,
evaluation and export then have the same labels."""

import functools
import json
import types

import cpp_loader
import numpy as np
import pytest
import running
import SimpleITK as sitk
from helpers import dice, plain_usegnet
from test_ensemble import ensemble, finished, image_of, system_of
from test_postprocessing import PARTS
from test_postprocessing import label as written
from test_precision import TINY

import tf_autoctx
from tf_autoctx import errors, export
from tf_autoctx.postprocessing import postprocess
from tf_autoctx.report import tables
from tf_autoctx.systems.fetal_head import segmentation
from tf_autoctx.systems.shared import cleaning, ensembles, exporting, opening, origins, stages
from tf_autoctx.systems.shared.cleaning import Cleaning, Decision
from tf_autoctx.training import runs

# In a graph


GRAPHS = {}


def cleaned(label, largest=(), holes=()):
    """What the graph makes of labels (*spatial)."""
    key = label.ndim, largest, holes
    if key not in GRAPHS:
        GRAPHS[key] = Cleaning(largest, holes).graph(label.ndim)
    return GRAPHS[key](label[None, ..., None].astype(np.uint8)).numpy()[0, ..., 0]


def check(label, values):
    """Compares every step with SimpleITK's answer."""
    for steps in ((True, False), (False, True), (True, True)):
        expected = postprocess(label, *steps)
        chosen = [values if wanted else () for wanted in steps]
        np.testing.assert_array_equal(cleaned(label, *chosen), expected)


def snake(n):
    """A line of one voxel that winds through a square, its neighbours a voxel apart."""
    square = np.zeros((n, n), np.uint8)
    square[::2] = 1
    square[1::4, -1] = square[3::4, 0] = 1
    return square


def spiral(n):
    """A line of one voxel that winds to the middle."""
    square, (y, x), (dy, dx), left = np.zeros((n, n), np.uint8), (0, 0), (0, 1), n
    while left > 0:
        for _ in range(2):
            for _ in range(left - 1):
                square[y, x] = 1
                y, x = y + dy, x + dx
            dy, dx = dx, -dy
        left -= 2
    return square


@pytest.mark.parametrize("size", [(17, 23), (9, 11, 8)])
@pytest.mark.parametrize("share", [0.2, 0.45, 0.6, 0.9])
@pytest.mark.parametrize("seed", range(3))
def test_random_masks_of_two_structures(size, share, seed):
    """Some hundred components and holes each, many of one size: the first of them is kept."""
    rng = np.random.default_rng(seed)
    label = np.where(rng.uniform(size=size) < share, rng.choice([1, 1, 1, 3], size), 0)
    check(label.astype(np.uint8), (1, 3))


@pytest.mark.parametrize("shape", [snake, spiral])
@pytest.mark.parametrize("axes", [(0, 1), (1, 0)])
def test_long_ways(shape, axes):
    """Both the line and what is between its windings, in 2D and 3D."""
    plane = shape(41).transpose(axes)
    for mask in (plane, plane[::-1], 1 - plane):
        check(np.ascontiguousarray(mask), (1,))
    volume = np.stack([plane, 0 * plane, plane, plane.T])
    check(np.ascontiguousarray(volume.transpose(1, 0, 2)), (1,))


@pytest.mark.parametrize(
    "text",
    [
        "0111110 1000101 1010111 1111110 0000010 0001100",
        "1111111 1000001 1022201 1020201 1022201 1000001 1111111",  # a ring in a ring
        "2222222 2000002 2011102 2010102 2011102 2000002 2222222",
        "1111000 1021000 1111000 0000022",  # what goes leaves a hole
        "1110222 1010202 1110222",  # as large as each other
        "1100011",
        "000 000",
        "111 111",
        "1",
        "0",
    ],
)
def test_by_hand(text):
    check(written(text), (1, 2))
    check(np.stack([written(text)] * 2), (1, 2))
    check(PARTS, (1, 2))


def test_a_cavity_of_a_volume_is_a_hole_and_a_tunnel_is_none():
    ball = np.full((5, 6, 7), 9, np.uint8)
    ball[2, 2:4, 2:5] = 0
    tunnel = ball.copy()
    tunnel[:, 2, 2] = 0
    assert (cleaned(ball, (), (9,)) == 9).all()
    np.testing.assert_array_equal(cleaned(tunnel, (), (9,)), tunnel)


def test_structures_that_are_not_chosen_stay():
    before = written("1011000 1110020 0000000 2220222 2020202 2220222")
    alone = written("1011000 1110000 0000000 2220000 2020000 2220000")
    np.testing.assert_array_equal(cleaned(before, (2,)), alone)
    full = written("1011000 1110020 0000000 2220222 2220222 2220222")
    np.testing.assert_array_equal(cleaned(before, (1,), (2,)), full)
    ring = written("1111 1001 1111")
    np.testing.assert_array_equal(cleaned(ring, (), (2,)), ring)


def test_images_of_a_batch_are_on_their_own():
    both = np.random.default_rng(0).integers(0, 2, (2, 6, 7, 8, 1)).astype(np.uint8)
    answer = Cleaning((1,), (1,)).graph(3)(both).numpy()
    for image, expected in zip(both, answer):
        np.testing.assert_array_equal(postprocess(image[..., 0], True, True), expected[..., 0])


# How it is decided


def case(*rows):
    """(predicted label, truth) of an image."""
    return tuple(map(written, rows))


# Of 1, the stray voxel is wrong; 2 has a hole, which is one in the third truth alone.
GAINS = [
    case("11010 11000 22200 20200 22200", "11000 11000 22200 22200 22200"),
    case("11010 11000 22200 20200 22200", "11000 11000 22200 22200 22200"),
    case("11010 11000 22200 20200 22200", "11000 11000 22200 20200 22200"),
]
# Of 1, the stray voxel is right; 2 is whole, so that nothing changes.
LOSES = [case("11010 11000 22200 22200 22200", "11010 11000 22200 22200 22200")]


def decided(pairs):
    """The decision on pairs of `case`."""

    def read(number):
        image = pairs[number][0].astype(np.float32)
        return types.SimpleNamespace(array=image, millimetres=None), pairs[number][1]

    def evaluator(voxels, spacing):
        return {"first": {"label": 0 * voxels}, "last": {"label": voxels.astype(np.uint8)}}

    return cleaning.decide(range(len(pairs)), read, evaluator, {1: "a", 2: "b"}, 2)


def test_what_gains_is_kept_structure_by_structure():
    decision = decided(GAINS)
    assert decision.cleaning == Cleaning((1,), (2,)) and decision.cases == 3
    plain, alone = decision.dice["a"]["largest_component"]
    assert (plain, alone) == (pytest.approx(100 * 8 / 9), 100)
    assert decision.dice["a"]["fill_holes"] == [100, 100]
    # 8 of 9 voxels, or all of them; where the hole is one, the other way round
    whole = 100 * 16 / 17
    before, after = decision.dice["b"]["fill_holes"]
    assert before == pytest.approx((2 * whole + 100) / 3)
    assert after == pytest.approx((200 + whole) / 3)
    words = decision.words()
    assert words == (
        "post-processing kept by 3 validation cases: largest component of a (DSC 88.89 to 100.00 "
        "%); filled holes of b (DSC 96.08 to 98.04 %)"
    )


def test_what_loses_or_changes_nothing_is_not_kept():
    decision = decided(LOSES)
    assert not decision.cleaning
    before, after = decision.dice["a"]["largest_component"]
    assert (before, after) == (100, pytest.approx(100 * 8 / 9))
    assert decision.dice["b"]["fill_holes"] == [100, 100]
    assert decision.words().endswith("largest component of none; filled holes of none")
    # The mean decides: 1 loses as much in one as it gains in another.
    assert not decided([LOSES[0], GAINS[1]]).cleaning.largest_component
    assert decided([LOSES[0], *GAINS]).cleaning.largest_component == (1,)


def test_holes_are_decided_of_the_largest_component():
    """Of two rings the smaller one is wrong, and goes with its hole."""
    ring = case("11110111 10010101 11110111", "11110000 11110000 11110000")
    assert decided([ring]).cleaning == Cleaning((1,), (1,))
    before, after = decided([ring]).dice["a"]["fill_holes"]
    assert before == pytest.approx(100 * 2 * 10 / 22) and after == 100


def test_voxels_to_be_ignored_decide_nothing():
    predicted, truth = LOSES[0]
    truth = truth.copy()
    truth[0, 3] = 255
    assert decided([(predicted, truth)]).dice["a"]["largest_component"] == [100, 100]


def test_a_structure_that_no_case_has_keeps_nothing():
    predicted, truth = GAINS[0]
    decision = decided([(predicted, np.where(truth == 1, 0, truth))])
    assert set(decision.dice) == {"b"} and not decision.cleaning.largest_component


def test_without_validation_cases_nothing_is_decided():
    decision = decided([])
    assert not decision.cleaning and "no validation case" in decision.words()


def test_an_ensemble_keeps_what_all_of_its_runs_keep():
    kept = [Cleaning((1, 2, 5), (2,)), Cleaning((5, 2), (1,)), Cleaning((2, 5), ())]
    assert cleaning.common(kept) == Cleaning((2, 5), ())
    assert not cleaning.common([*kept, Cleaning()])


# The record of a run


def test_the_record_of_a_run(tmp_path, caplog):
    facts = {"flags": {"postprocessing": "auto"}, "labels": {"1": "a", "2": "b"}}
    run = runs.Run(tmp_path, facts)
    assert not cleaning.of_run(run)
    assert "postprocessing.json: is not there" in caplog.text
    decision = decided(GAINS)
    cleaning.note(tmp_path, decision)
    assert cleaning.of_run(run) == decision.cleaning
    told = json.loads((tmp_path / "postprocessing.json").read_text())
    assert told["largest_component"] == [1] and told["validation"]["cases"] == 3
    none = runs.Run(tmp_path, {**facts, "flags": {"postprocessing": "none"}})
    assert not cleaning.of_run(none) and not cleaning.of_run(runs.Run(tmp_path, {"flags": {}}))
    model = origins.of_model(tmp_path, {})
    cleaning.forget(tmp_path)
    assert origins.of_model(tmp_path, {}) != model  # results of before are another model's


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"largest_component": [7], "fill_holes": []}', '{"a": 1}']
)
def test_a_damaged_record_is_refused(tmp_path, content):
    facts = {"flags": {"postprocessing": "auto"}, "labels": {"1": "a"}}
    (tmp_path / "postprocessing.json").write_text(content)
    with pytest.raises(errors.UserError, match=r"postprocessing\.json: .*which decides it anew\.$"):
        cleaning.of_run(runs.Run(tmp_path, facts))


def test_a_network_that_is_trained_anew_takes_the_record_away(tmp_path):
    cleaning.note(tmp_path, decided(GAINS))
    session = types.SimpleNamespace(folder=tmp_path, settings=types.SimpleNamespace(steps=1))
    network = plain_usegnet((None, None, None, 1))
    path = tmp_path / "a" / "model.keras"
    stages.save(path, network, types.SimpleNamespace(made_on=None), session)
    assert not (tmp_path / "postprocessing.json").exists()


# Prediction and export


# Of random weights whose label has stray parts or holes.
SEEDS = {"fetal_head": 0, "multi_organ": 2, "embryo": 0, "renderer": 4}


def keeping(folder, name, seed, steps):
    """The folder of a finished run that keeps steps of all its structures."""
    run = finished(folder, name, seed, "--postprocessing=auto")
    values = tuple(sorted(TINY[name][3]))
    kept = Cleaning(*(values if wanted else () for wanted in steps))
    cleaning.note(run, Decision(kept, 1, {}))
    return run


def exported(folder):
    """The version that is exported of a run."""
    run = runs.load(folder)
    run.facts["versions"], run.facts["git_revision"] = {}, None
    system = system_of(run)
    return exporting.export_run(system, run, system.finished(run))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """(system) -> a run that keeps both steps, one of the same weights that keeps none."""
    folder = tmp_path_factory.mktemp("runs")

    @functools.cache
    def pair(name):
        seed = SEEDS[name]
        plain = finished(folder / "none", name, seed)
        return keeping(folder, name, seed, (True, True)), plain

    return pair


@pytest.mark.parametrize("name", TINY)
def test_a_run_folder_has_the_label_of_the_steps(pairs, name):
    run, none = pairs(name)
    image, wanted = image_of(name), {"probabilities": True, "uncertainty": True}
    plain, mine = (tf_autoctx.load(folder, "float32")(image, **wanted) for folder in (none, run))
    expected = postprocess(plain["label"], largest_component=True, fill_holes=True)
    assert (expected != plain["label"]).any(), "the option changes nothing here"
    np.testing.assert_array_equal(mine["label"], expected)
    # Probabilities stay, and so does the uncertainty.
    np.testing.assert_array_equal(mine["uncertainty"], plain["uncertainty"])
    for structure, probability in plain["probability"].items():
        np.testing.assert_array_equal(mine["probability"][structure], probability)


@pytest.mark.parametrize("name", ["embryo", "renderer"])
def test_tensorflow_serving_runs_the_steps(pairs, tmp_path, name):
    run, none = pairs(name)
    version = exported(run)
    images = np.stack([image_of(name, seed) for seed in (0, 1)]).astype(np.uint8)
    running.check_export(version, images, tmp_path)
    plain = tf_autoctx.load(none, "float32")
    model = cpp_loader.CppModel(version)
    served = model("serving_default", {"image": images[..., None].astype(np.float32)})
    model.close()
    labels = [plain(image.astype(np.float32))["label"] for image in images]
    expected = [postprocess(label, largest_component=True, fill_holes=True) for label in labels]
    np.testing.assert_array_equal(served["label"][..., 0], expected)
    assert (served["label"][..., 0] != labels).any()
    card, values = export.read_card(version), sorted(TINY[name][3])
    assert card["postprocessing"]["largest_component"] == values
    assert card["postprocessing"]["validation"]["cases"] == 1
    if name == "embryo":  # its masks are those of its label
        for structure, value in (("body", 2), ("ventricle", 1)):
            np.testing.assert_array_equal(served[structure], served["label"] == value)


def test_an_export_without_steps_has_none_of_their_operations(tmp_path):
    versions = [
        exported(keeping(tmp_path / word, "renderer", 5, steps))
        for word, steps in (("none", (False, False)), ("kept", (True, False)))
    ]
    told = [b"UnsortedSegmentMin" in (path / "saved_model.pb").read_bytes() for path in versions]
    assert told == [False, True]
    prints = [export.read_card(path)["fingerprint"] for path in versions]
    assert prints[0] != prints[1]


def test_an_ensemble_has_the_steps_of_all(tmp_path):
    one, other, alone = (
        keeping(tmp_path / word, "fetal_head", 1, (True, holes))
        for word, holes in (("one", True), ("other", True), ("alone", False))
    )
    assert ensembles.load([one, other]).cleaning == Cleaning((1,), (1,))
    assert ensembles.load([one, alone]).cleaning == Cleaning((1,), ())
    version, image = ensemble(tmp_path / "model", one, other), image_of("fetal_head")
    card = export.read_card(version)
    assert card["postprocessing"] == {"largest_component": [1], "fill_holes": [1]}
    assert [run["postprocessing"]["fill_holes"] for run in card["runs"]] == [[1], [1]]
    answer = tf_autoctx.load(version)(image, probabilities=True)
    plain = (answer["probability"]["a"] > 0.5).astype(np.uint8)
    expected = postprocess(plain, largest_component=True, fill_holes=True)
    assert (expected != plain).any()
    np.testing.assert_array_equal(answer["label"], expected)


# A training


def balls(folder):
    """A data set of hollow bright balls, each with a bright speck that is not of it: 5 cases to
    train, 2 to validate, 2 to test, whose labels have the speck and the hollow."""
    lines, splits = ["image,label,split"], ["train"] * 5 + ["validation"] * 2 + ["test"] * 2
    size = 14, 16, 18
    grids = np.meshgrid(*map(np.arange, size), indexing="ij")
    for number, split in enumerate(splits):
        rng = np.random.default_rng(number)
        centre = [7, 8, 10] + rng.uniform(-0.5, 0.5, 3)
        distance = np.sqrt(sum((x - c) ** 2 for x, c in zip(grids, centre)))
        speck = np.zeros(size, bool)
        speck[1:4, 1:4, 1:4] = True
        ball, hollow = distance < 5.5, distance < 2
        seen = (ball & ~hollow) | speck
        truth = seen if split == "test" else ball
        image = 100 * seen + rng.normal(0, 2, size)
        for kind, array in (("image", image.astype(np.float32)), ("label", truth.astype("u1"))):
            path = folder / f"{kind}_{number}.nii.gz"
            sitk.WriteImage(sitk.GetImageFromArray(array), str(path))
        lines.append(f"image_{number}.nii.gz,label_{number}.nii.gz,{split}")
    (folder / "cases.csv").write_text("\n".join(lines) + "\n")
    return folder / "cases.csv"


FLAGS = (
    *("--level=1", "--scale=1", "--base_filters=2", "--precision=float32", "--noflips"),
    *("--erase_probability=0", "--intensity_jitter=0", "--steps=150", "--samples_per_epoch=75"),
    "--learning_rate=0.1",
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(data, run folder, names of the cases that decided)"""
    folder, seen = tmp_path_factory.mktemp("trained"), []
    (folder / "data").mkdir()
    data, decide = balls(folder / "data"), cleaning.decide

    def spied(cases, *arguments):
        seen.extend(case.name for case in cases)
        return decide(cases, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segmentation, "usegnet", plain_usegnet)
        patch.setattr(opening.cleaning, "decide", spied)
        running.train("fetal_head", f"--data_dir={data}", f"--work_dir={folder / 'run'}", *FLAGS)
    return data, folder / "run", seen


def methods(run):
    return list(dict.fromkeys(row["method"] for row in tables.read(run / "evaluation")))


def test_a_training_on_own_data_decides_by_its_validation_cases(trained):
    _, run, seen = trained
    assert sorted(seen) == ["image_5", "image_6"]
    record = json.loads((run / "postprocessing.json").read_text())
    assert record["largest_component"] == record["fill_holes"] == [1]
    assert record["validation"]["cases"] == 2
    for before, after in record["validation"]["DSC_percent"]["head"].values():
        assert after > before + 1


def test_the_test_cases_are_scored_with_it_and_without(trained):
    """Of these it takes what is right: they had no say."""
    _, run, _ = trained
    assert methods(run) == ["level 1", "level 1, postprocessed"]
    scores = {"level 1": [], "level 1, postprocessed": []}
    for row in tables.read(run / "evaluation"):
        scores[row["method"]].append(row["DSC_percent"])
    for plain, changed in zip(*scores.values(), strict=True):
        assert changed < plain - 1
    card = export.read_card(run / "saved_model" / "1")
    assert list(card["metrics"]) == ["level 1, postprocessed"]
    assert card["postprocessing"]["fill_holes"] == [1]


def test_predict_and_the_export_do_what_was_scored(trained, tmp_path):
    data, run, _ = trained
    image, truth = (data.parent / f"{kind}_5.nii.gz" for kind in ("image", "label"))
    for name, model in (("run", run), ("export", run / "saved_model")):
        words = f"--model={model}", f"--input={image}", f"--output={tmp_path / name}"
        running.call("predict", *words)
    mine, served = (
        sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / name / "image_5.nii.gz")))
        for name in ("run", "export")
    )
    np.testing.assert_array_equal(mine, served)
    np.testing.assert_array_equal(mine, postprocess(mine, True, True))
    true = sitk.GetArrayFromImage(sitk.ReadImage(str(truth)))
    told = json.loads((run / "postprocessing.json").read_text())["validation"]["DSC_percent"]
    before = told["head"]["largest_component"][0]
    assert 100 * dice(mine == 1, true == 1) > before + 1


def test_a_finished_run_takes_another_choice(trained, capsys):
    """Last: it changes the run."""
    data, run, _ = trained
    image = sitk.GetArrayFromImage(sitk.ReadImage(str(data.parent / "image_5.nii.gz")))
    before = tf_autoctx.load(run)(image)["label"]
    words = f"--data_dir={data}", f"--work_dir={run}", *FLAGS
    running.train("fetal_head", *words, "--postprocessing=none")
    assert methods(run) == ["level 1"] and not (run / "postprocessing.json").exists()
    assert "version 2 serves (float32)" in capsys.readouterr().out
    plain = tf_autoctx.load(run)(image)["label"]
    assert (postprocess(plain, True, True) == before).all() and (plain != before).any()
    np.testing.assert_array_equal(tf_autoctx.load(run / "saved_model")(image)["label"], plain)
