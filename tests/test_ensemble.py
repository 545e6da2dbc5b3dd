"""Several runs as one SavedModel, mirror images, and how unsure they are: from outside."""

import csv
import functools
import json
import re
import shutil

import keras
import numpy as np
import pytest
import running
import SimpleITK as sitk
from helpers import grey, randomize
from test_precision import TINY

import tf_autoctx
from tf_autoctx import errors, export
from tf_autoctx.report import tables
from tf_autoctx.systems.renderer import online
from tf_autoctx.systems.shared import initial, registry, results
from tf_autoctx.training import runs

LABELS = {name: labels for name, (_, _, _, labels, _) in TINY.items()}


# What is joined are their answers.
pytestmark = pytest.mark.usefixtures("plain_networks")


def finished(folder, name, seed, *arguments):
    """The folder of a finished run of a tiny network with the weights of a seed."""
    command, flags, file, labels, _ = TINY[name]
    mirrored = name in ("fetal_head", "embryo") and "--noflips" not in (*flags, *arguments)
    flips = ["--flips"] * mirrored
    words = running.last_of_each(["--base_filters=2", *flips, *flags, *arguments])
    values = dict(command.parse(words)) | ({"level": 1} if name == "fetal_head" else {})
    folder = folder / f"{name}_{seed}"
    run = runs.open_run(folder, runs.Making(name, values, "data")).note(labels=labels)
    run = run.note(orientation="LPS") if name != "renderer" else run
    (network,) = system_of(run).new_networks([file.split("/")[name == "renderer"]]).values()
    path = folder / f"{file}.keras"
    path.parent.mkdir(parents=True, exist_ok=True)
    randomize(network, seed + 1).save(path)  # a head of 1 finds nothing
    return folder


def system_of(run):
    return registry.find(run.system, "test").load().of_run(run)


def ensemble(folder, *words):
    """Folder of the newest version."""
    running.call("ensemble", *words, f"--output={folder}")
    return export.newest(folder)


def image_of(name, seed=0):
    return 255 * grey(*TINY[name][-1], seed=seed)


@pytest.fixture(scope="module", params=TINY)
def pair(request, tmp_path_factory):
    """(system, two runs, the version of their ensemble)"""
    folder, name = tmp_path_factory.mktemp("runs"), request.param
    both = [finished(folder, name, seed) for seed in (1, 3)]
    return name, both, ensemble(folder / "model", *both)


def stacked(result):
    return np.stack(list(result["probability"].values()), axis=-1)


def test_the_probability_is_the_mean_and_the_label_follows(pair):
    name, both, version = pair
    image = image_of(name)
    singles = [tf_autoctx.load(run, "float32")(image, probabilities=True) for run in both]
    first, second = map(stacked, singles)
    assert np.abs(first - second).mean() > 0.01
    mean, served = (first + second) / 2, tf_autoctx.load(version)(image, probabilities=True)
    np.testing.assert_allclose(stacked(served), mean, atol=1e-5)
    values = np.array([0, *LABELS[name]])
    if name in ("multi_organ", "embryo"):  # the most probable, here of VNet I
        classes = np.concatenate([1 - mean.sum(axis=-1, keepdims=True), mean], axis=-1)
        margin = np.diff(np.sort(classes, axis=-1)[..., -2:], axis=-1)[..., 0]
        expected = values[classes.argmax(axis=-1)]
    else:
        margin, expected = np.abs(mean[..., 0] - 0.5), values[(mean[..., 0] > 0.5).astype(int)]
    sure = margin > 1e-4
    assert sure.mean() > 0.9
    np.testing.assert_array_equal(served["label"][sure], expected[sure])
    # None of the two alone
    assert not all(np.array_equal(served["label"], single["label"]) for single in singles)


def test_the_uncertainty_is_the_entropy_of_the_mean(pair):
    name, both, version = pair
    model, image = tf_autoctx.load(version), image_of(name)
    served = model(image, uncertainty=True, probabilities=True)
    p = stacked(served).astype(float)
    np.testing.assert_array_equal(p, stacked(model(image, probabilities=True)))
    if name == "multi_organ":
        p = np.concatenate([1 - p.sum(axis=-1, keepdims=True), p], axis=-1)
        expected = -(p * np.log2(np.maximum(p, 1e-30))).sum(axis=-1) / np.log2(p.shape[-1])
    else:
        expected = (-p * np.log2(p) - (1 - p) * np.log2(1 - p)).max(axis=-1)
    assert served["uncertainty"].shape == image.shape
    assert served["uncertainty"].dtype == np.float32 and expected.std() > 0.001
    np.testing.assert_allclose(served["uncertainty"], expected, atol=1e-4)
    # A run folder tells its own; its export leaves it out, as anybody can compute it.
    alone = tf_autoctx.load(both[0], "float32")(image, uncertainty=True)
    assert set(alone) == {"label", "uncertainty"}
    assert np.abs(alone["uncertainty"] - served["uncertainty"]).max() > 1e-3


def test_the_export_is_what_a_server_needs(pair, tmp_path):
    """That of a fetal head is tested below, with mirror images."""
    name, _, version = pair
    if name in ("multi_organ", "renderer"):
        images = np.random.default_rng(5).integers(0, 256, (2, *TINY[name][-1])).astype(np.uint8)
        running.check_export(version, images, tmp_path)


def test_the_card_tells_of_every_run(pair):
    name, both, version = pair
    card = export.read_card(version)
    assert [run["name"] for run in card["runs"]] == [run.name for run in both]
    assert card["labels"] == {str(value): word for value, word in LABELS[name].items()}
    assert card["system"] == name and card["mirrors"] == []
    networks = {key.partition("/")[0] for key in card["weights"]}
    assert networks == {"1", "2"} and len(card["config"]) == 2
    assert set(card["signatures"]) >= {"uncertainty", "uncertainty_bytes", "card"}
    assert "entropy" in card["outputs"]["uncertainty"]["units"]


def test_scores_folds_and_spacing_of_every_run_are_in_the_card(tmp_path):
    both = []
    for number, dsc in ((1, 90.0), (2, 80.0)):
        run = finished(tmp_path, "fetal_head", number, "--folds=2", f"--fold={number}")
        about = {"system": "fetal_head", "method": "level 1", "case": "a", "group": "a"}
        scores = {"DSC_percent": dsc, "volume_mL": 1.0, "truth_volume_mL": 1.0}
        tables.write(run / "evaluation", [{**about, "structure": "a", **scores}])
        runs.load(run).note(spacing=[[1, 2, number], [3, 3, 3 + number]])
        both.append(run)
    card = export.read_card(ensemble(tmp_path / "model", *both))
    assert [(run["folds"], run["fold"], run["seed"]) for run in card["runs"]] == [
        (2, 1, 0),
        (2, 2, 0),
    ]
    scored = [run["metrics"]["level 1"]["a"]["metrics"]["DSC_percent"] for run in card["runs"]]
    assert [score["mean"] for score in scored] == [90, 80]
    assert card["spacing"] == [[1, 2, 1], [3, 3, 5]] and card["orientation"] == "LPS"


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """(seed, flags) -> a finished run of the fetal head."""
    folder = tmp_path_factory.mktemp("heads")

    @functools.cache
    def run(seed, *flags):
        return finished(folder / "_".join(["run", *flags]), "fetal_head", seed, *flags)

    return run


def test_runs_by_words_or_by_a_flag_are_one_version(head, tmp_path, capsys):
    three = [head(seed) for seed in (1, 2, 3)]
    version = ensemble(tmp_path / "model", *three)
    assert "version 1 serves (float32)" in capsys.readouterr().out
    assert ensemble(tmp_path / "model", f"--runs={','.join(map(str, three))}") == version
    assert "version 1 serves already" in capsys.readouterr().out
    assert ensemble(tmp_path / "model", *three[:2]).name == "2"
    assert ensemble(tmp_path / "model", *three[:2], "--mirrors").name == "3"
    image = image_of("fetal_head")
    mean = np.mean(
        [stacked(tf_autoctx.load(run)(image, probabilities=True)) for run in three], axis=0
    )
    served = tf_autoctx.load(version)(image, probabilities=True)
    np.testing.assert_allclose(stacked(served), mean, atol=1e-5)


def test_an_ensemble_in_bfloat16(head, tmp_path):
    both = [head(1), head(2)]
    version = ensemble(tmp_path / "model", *both, "--export_precision=bfloat16")
    low, image = tf_autoctx.load(version), image_of("fetal_head")
    assert low.precision == "bfloat16"
    exact = [tf_autoctx.load(run, "float32")(image, probabilities=True) for run in both]
    off = stacked(low(image, probabilities=True)) - np.mean([*map(stacked, exact)], axis=0)
    assert 0 < np.abs(off).mean() < 0.02


def test_fields_that_matter_in_training_alone_may_differ(head, tmp_path):
    both = head(1, "--initializer=paper", "--l2=0.1", "--steps=7"), head(2)
    assert ensemble(tmp_path / "model", *both).name == "1"


@pytest.mark.parametrize(
    "flags, told",
    [
        (["--scale=0.5"], r"has the --scale 0\.5, .*_1 0\.4; expected runs that segment in the"),
        (["--join=concat"], "has the --join concat, .* sum; expected runs that segment"),
        (["--base_filters=3"], "has the --base_filters 3, .* 2; expected runs"),
    ],
)
def test_runs_that_segment_in_other_ways_are_refused(head, tmp_path, capsys, flags, told):
    refused(capsys, told, head(1), head(2, *flags), f"--output={tmp_path / 'model'}")
    assert not (tmp_path / "model").exists()


def refused(capsys, told, *words):
    with pytest.raises(SystemExit) as ended:
        running.call("ensemble", *words)
    error = capsys.readouterr().err
    assert ended.value.code == 1 and re.search(told, error) and "Traceback" not in error, error


def test_what_is_no_ensemble_is_refused(head, tmp_path, capsys):
    run, output = head(1), f"--output={tmp_path / 'model'}"
    refused(capsys, "--runs=.*: expected two run folders or more, each once", run, output)
    refused(capsys, "expected two run folders or more, each once", run, run, output)
    refused(capsys, "--runs=: expected two run folders or more", output)
    refused(capsys, "nowhere: no config.json; expected a run folder", run, "nowhere", output)
    other = finished(tmp_path, "multi_organ", 1)
    refused(
        capsys, "has the system multi_organ, .* fetal_head; expected runs that", run, other, output
    )
    named = shutil.copytree(head(2), tmp_path / "named")
    facts = json.loads((named / "config.json").read_text()) | {"labels": {"1": "skull"}}
    (named / "config.json").write_text(json.dumps(facts))
    refused(capsys, "named: has the labels 1 skull, .* 1 a; expected runs", run, named, output)
    unfinished = shutil.copytree(head(2), tmp_path / "unfinished")
    (unfinished / "level_1" / "model.keras").unlink()
    refused(capsys, "this stage is not finished", run, unfinished, output)
    two = shutil.copytree(head(2), tmp_path / "two")
    shutil.copytree(two / "level_1", two / "level_2")
    facts = json.loads((two / "config.json").read_text())
    facts["flags"]["level"] = 2
    (two / "config.json").write_text(json.dumps(facts))
    refused(capsys, "two: has the .*level.* expected runs that segment", run, two, output)


def test_the_order_of_labels_is_that_of_the_channels(tmp_path, capsys):
    """Body and ventricle exchanged"""
    both = [finished(tmp_path, "embryo", seed) for seed in (1, 2)]
    facts = json.loads((both[1] / "config.json").read_text())
    facts["labels"] = dict(reversed(facts["labels"].items()))
    (both[1] / "config.json").write_text(json.dumps(facts))
    refused(capsys, "has the labels 1 b, 2 a, .* 2 a, 1 b", *both, f"--output={tmp_path / 'm'}")


def test_no_training_starts_from_an_ensemble(head, tmp_path):
    version = ensemble(tmp_path / "model", head(1), head(2))
    for model in (version, tmp_path / "model"):
        with pytest.raises(
            errors.FieldError, match="an ensemble of 2 runs; expected one of its run"
        ):
            initial.load(model, "fetal_head")


# Mirror images


@pytest.mark.parametrize(
    "flags, axes",
    [
        ((), (0, 1, 2)),
        (("--variant=2D-USegNet",), (1, 2)),  # slices were never mirrored across
    ],
)
def test_the_mean_of_mirror_images_by_hand(head, flags, axes):
    run, image = head(1, *flags), image_of("fetal_head")
    plain, mirrored = tf_autoctx.load(run), tf_autoctx.load(run, mirrors=True)
    mean, number = 0, 0
    for which in np.ndindex(*(2,) * len(axes)):
        turned = [axis for axis, is_turned in zip(axes, which) if is_turned]
        answer = plain(np.flip(image, turned), probabilities=True)["probability"]["a"]
        mean, number = mean + np.flip(answer, turned), number + 1
    answer = mirrored(image, probabilities=True, uncertainty=True)
    np.testing.assert_allclose(answer["probability"]["a"], mean / number, atol=1e-5)
    assert (
        np.abs(
            answer["probability"]["a"] - plain(image, probabilities=True)["probability"]["a"]
        ).max()
        > 1e-3
    )
    # It is the same mirrored.
    other = mirrored(np.flip(image, axes).copy(), probabilities=True)["probability"]["a"]
    np.testing.assert_allclose(np.flip(other, axes), answer["probability"]["a"], atol=1e-5)


def test_an_embryo_is_mirrored_along_every_axis(tmp_path):
    run, image = finished(tmp_path, "embryo", 1), image_of("embryo")
    mirrored = tf_autoctx.load(run, mirrors=True)
    here = stacked(mirrored(image, probabilities=True))
    for axis in range(3):
        there = stacked(mirrored(np.flip(image, axis).copy(), probabilities=True))
        np.testing.assert_allclose(np.flip(there, axis), here, atol=1e-5)
    assert np.abs(stacked(tf_autoctx.load(run)(image, probabilities=True)) - here).max() > 1e-4


@pytest.mark.parametrize(
    "name, flags", [("multi_organ", ()), ("renderer", ()), ("fetal_head", ("--noflips",))]
)
def test_mirrors_are_refused_where_training_mirrored_nothing(tmp_path, capsys, name, flags):
    both = [finished(tmp_path, name, seed, *flags) for seed in (1, 2)]
    told = "mirrors=True: training mirrored no image, so that its networks know none"
    with pytest.raises(errors.FieldError, match=told):
        tf_autoctx.load(both[0], mirrors=True)
    refused(capsys, "--" + told, *both, "--mirrors", f"--output={tmp_path / 'model'}")


def test_runs_that_mirrored_different_axes_are_refused_with_mirrors_alone(head, tmp_path, capsys):
    both = head(1), head(2, "--noflips")
    refused(capsys, "training mirrored no image", *both, "--mirrors", f"--output={tmp_path / 'm'}")
    assert ensemble(tmp_path / "m", *both).name == "1"


def test_mirrors_of_an_ensemble_are_the_mean_of_all(head, tmp_path):
    both, image = [head(1), head(2)], image_of("fetal_head")
    version = ensemble(tmp_path / "model", *both, "--mirrors")
    singles = [tf_autoctx.load(run, mirrors=True)(image, probabilities=True) for run in both]
    served = tf_autoctx.load(version)(image, probabilities=True)
    np.testing.assert_allclose(
        stacked(served), np.mean([*map(stacked, singles)], axis=0), atol=1e-5
    )
    card = export.read_card(version)
    assert card["mirrors"] == ["depth", "height", "width"]
    images = np.random.default_rng(5).integers(0, 256, (2, *image.shape)).astype(np.uint8)
    running.check_export(version, images, tmp_path)
    with pytest.raises(
        errors.FieldError, match=r"^mirrors=True: .* is a SavedModel, in which this"
    ):
        tf_autoctx.load(version, mirrors=True)


def test_a_training_exports_and_scores_mirror_images(tmp_path, capsys):
    flags = (
        *("--base_filters=2", "--steps=1", "--samples_per_epoch=1", "--precision=float32"),
        *("--phantom_size=24,16,28", "--phantom_cases=3,1", "--level=1", f"--work_dir={tmp_path}"),
        "--flips",
    )
    running.train("fetal_head", *flags)
    assert list(export.read_card(tmp_path / "saved_model" / "1")["metrics"]) == ["level 1"]
    running.train("fetal_head", *flags, "--mirrors")
    assert "version 2 serves (float32)" in capsys.readouterr().out
    card = export.read_card(tmp_path / "saved_model" / "2")
    rows = tables.read(tmp_path / "evaluation")
    assert [row["method"] for row in rows] == ["level 1", "level 1, mirrored"]
    assert list(card["metrics"]) == ["level 1, mirrored"]
    assert card["mirrors"] == ["depth", "height", "width"] and "uncertainty" in card["signatures"]
    image = 255 * grey(24, 16, 28)
    mine = tf_autoctx.load(tmp_path, mirrors=True)(image, probabilities=True)
    served = tf_autoctx.load(tmp_path / "saved_model")(image, probabilities=True)
    np.testing.assert_allclose(stacked(served), stacked(mine), atol=1e-5)


def test_a_training_that_mirrors_nothing_refuses_them_at_once(tmp_path, capsys):
    with pytest.raises(SystemExit):
        running.train(
            "fetal_head",
            "--noflips",
            "--mirrors",
            f"--work_dir={tmp_path / 'run'}",
            "--phantom_size=24,16,28",
            "--phantom_cases=3,1",
        )
    assert "error: --mirrors=True: training mirrored no image" in capsys.readouterr().err
    assert not (tmp_path / "run" / "config.json").exists()


# Prediction


@pytest.fixture
def scans(tmp_path):
    folder = tmp_path / "scans"
    (folder / "below").mkdir(parents=True)
    for seed, name in enumerate(["b", "a", "below/c"]):
        image = sitk.GetImageFromArray(image_of("fetal_head", seed))
        sitk.WriteImage(image, str(folder / f"{name}.nii.gz"))
    return folder


def table_of(folder):
    with open(folder / "uncertainty.csv", newline="") as file:
        return [(line["image"], float(line["uncertainty"])) for line in csv.DictReader(file)]


def test_predict_writes_maps_and_the_images_to_look_at_first(head, scans, tmp_path, capsys):
    run, output = head(1), tmp_path / "out"
    words = (f"--model={run}", f"--output={output}", "--uncertainty")
    running.call("predict", *words, f"--input={scans}")
    expected = {}
    for name in ("a", "b", "below/c"):
        image = sitk.GetArrayFromImage(sitk.ReadImage(str(scans / f"{name}.nii.gz")))
        answer = tf_autoctx.load(run)(image, uncertainty=True)
        path = output / "uncertainty" / f"{name}.nii.gz"
        written = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        np.testing.assert_allclose(written, answer["uncertainty"], rtol=2**-10, atol=1e-6)
        expected[name] = answer["uncertainty"][answer["label"] > 0].mean()
    told = table_of(output)
    assert [name for name, _ in told] == sorted(expected, key=expected.get, reverse=True)
    assert dict(told) == pytest.approx(expected, rel=1e-5)
    # What is done stays, and what is missing comes back.
    (output / "uncertainty" / "a.nii.gz").unlink()
    (output / "uncertainty.csv").write_text("image,uncertainty\nb,0.5\nbelow/c,0.25\n")
    running.call("predict", *words, f"--input={scans}", "--resume")
    assert dict(table_of(output)) == pytest.approx({"b": 0.5, "below/c": 0.25, "a": expected["a"]})
    # Mirror images are another model.
    capsys.readouterr()
    running.call("predict", *words, f"--input={scans}", "--resume", "--mirrors")
    assert (
        "6 of 6 results are of images that have changed since, or of another model"
        in capsys.readouterr().out
    )
    assert dict(table_of(output)) != pytest.approx(expected, rel=1e-3)


def test_an_ensemble_predicts_maps_uncompressed_as_its_masks(head, scans, tmp_path):
    model = ensemble(tmp_path / "model", head(1), head(2)).parent
    running.call(
        "predict",
        *(f"--model={model}", f"--input={scans / 'a.nii.gz'}", f"--output={tmp_path / 'out'}"),
        *("--uncertainty", "--masks", "--probabilities", "--nocompressed"),
    )
    files = {
        path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")
    }
    assert files >= {
        "a.nii.gz",
        "masks/a.nii.gz",
        "probabilities/a.nii",
        "uncertainty/a.nii",
        "uncertainty.csv",
    }


def test_a_model_that_tells_no_uncertainty_is_refused(scans, tmp_path, capsys):
    card = {"system": "fetal_head", "labels": {1: "head"}, "orientation": "LPS"}

    def segment(image):
        return {"label": keras.ops.cast(image > 1, "uint8")}

    export.write(tmp_path / "model", export.Exported({"serving_default": segment}, {}, card))
    told = "uncertainty=True: this model tells none; expected a run folder without online"
    with pytest.raises(errors.FieldError, match=told):
        tf_autoctx.load(tmp_path / "model")(image_of("fetal_head"), uncertainty=True)
    with pytest.raises(SystemExit):
        running.call(
            "predict",
            f"--model={tmp_path / 'model'}",
            f"--input={scans}",
            f"--output={tmp_path / 'out'}",
            "--uncertainty",
        )
    assert f"error: --{told}" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert not online.OnlinePredictor.is_unsure


def test_the_images_to_look_at_first(tmp_path):
    """Those of which nothing was segmented, then the least sure ones; the last value counts."""
    for name, mean in (
        ("sure", 0.2),
        ("unsure", 0.5),
        ("nothing", np.nan),
        ("=name", 0.3),
        ("sure", 0.1),
        ("nothing at all", np.nan),
    ):
        results.note_uncertainty(tmp_path, name, mean)
    told = table_of(tmp_path)
    assert [name for name, _ in told] == ["nothing", "nothing at all", "unsure", "'=name", "sure"]
    np.testing.assert_allclose(
        [value for _, value in told], [np.nan, np.nan, 0.5, 0.3, 0.1], rtol=1e-6
    )
    (tmp_path / "uncertainty.csv").write_text("a,b\n1,2\n")
    with pytest.raises(
        errors.UserError, match=r"uncertainty.csv: has the columns a,b; expected the col"
    ):
        results.note_uncertainty(tmp_path, "a", 1.0)
