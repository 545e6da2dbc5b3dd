"""The multi-organ system from outside: train, resume, predict, export, and a user's mistakes."""

import csv
import functools
import json
import re
import shutil

import cpp_loader
import numpy as np
import pytest
import running
import SimpleITK as sitk
from helpers import noise, plain_networks

from tf_autoctx import errors
from tf_autoctx.data import datasets, images
from tf_autoctx.models import unet3d
from tf_autoctx.systems.multi_organ.presets import PRESETS
from tf_autoctx.systems.shared import prediction, stages

TINY = (
    "--base_filters=2",
    "--patch_size=16",
    "--tile_size=16",
    "--downsampling=2,1",
    "--batch_size=2",
    "--steps=4",
    "--samples_per_epoch=4",
    "--precision=float32",
    "--phantom_size=24,28,40",
    "--phantom_spacing=6",
    "--phantom_cases=3,2",
)
ONE = ("--levels=1", "--downsampling=2")
NAMES = ["artery", "portal vein", "liver", "spleen", "stomach", "gallbladder", "pancreas"]

train = functools.partial(running.train, "multi_organ")


@pytest.fixture(scope="module", autouse=True)
def two_resolutions():
    """Twice as many prove no more here, and take twice as long to trace."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unet3d, "RESOLUTIONS", 2)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run, end to end."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(f"--work_dir={folder}", *TINY)
    return folder


@pytest.fixture(scope="module")
def segment(run):
    """The run as predict has it; its graphs are traced once."""
    return prediction.load(run)


@pytest.fixture(scope="module")
def served(run):
    """The run's export in TensorFlow's C++ loader."""
    model = cpp_loader.CppModel(run / "saved_model" / "1")
    yield model
    model.close()


def ct(*size, seed=0):
    """Noise in HU."""
    return 200 * noise(*size, seed=seed)


def cases_of(run):
    """Rows of a run's cases.csv."""
    with open(run / "evaluation" / "cases.csv") as file:
        return list(csv.DictReader(file))


def test_run_folder_is_complete(run):
    config = json.loads((run / "config.json").read_text())
    assert config["system"] == "multi_organ" and config["flags"]["mode"] == "end_to_end"
    assert config["flags"]["downsampling"] == [2, 1] and config["flags"]["window_low"] == -160
    assert config["labels"] == {str(value): name for value, name in enumerate(NAMES, start=1)}
    assert config["spacing"] == [[6.0, 6.0, 6.0]] * 2
    kept = {"best", "last", "history.csv", "history.png", "model.keras", "tensorboard"}
    assert {path.name for path in (run / "pyramid").iterdir()} == kept
    rows = cases_of(run)
    assert {row["system"] for row in rows} == {"multi_organ"}
    assert {(row["method"], row["case"]) for row in rows} == {
        (f"level {level}", f"abdomen_00{case}") for level in (1, 2) for case in (3, 4)
    }
    assert {row["structure"] for row in rows} <= set(NAMES)
    assert len(list((run / "evaluation").glob("abdomen_*.png"))) == 2


@pytest.mark.usefixtures("unexported")
def test_without_context_there_is_the_last_level_alone(segment, tmp_path):
    train(f"--work_dir={tmp_path}", *TINY, "--mode=no_context")
    assert (tmp_path / "level_2" / "model.keras").exists() and not (tmp_path / "level_1").exists()
    assert {row["method"] for row in cases_of(tmp_path)} == {"level 2"}
    volume = ct(20, 24, 28)
    a, b = (
        of(volume, (6, 6, 6), probabilities=True)["probability"]["liver"]
        for of in (segment, prediction.load(tmp_path))
    )
    assert np.abs(a - b).max() > 1e-3


@pytest.mark.parametrize("size", [(24, 28, 40), (31, 17, 22)])
def test_export_equals_the_run_through_the_loader_of_tensorflow_serving(segment, served, size):
    volume = ct(*size)
    mine = segment(volume, (6, 6, 6), probabilities=True)
    theirs = served("probabilities", {"image": volume[None, ..., None]})
    assert (
        theirs["probability"].shape == (1, *size, 8) and theirs["probability"].dtype == np.float32
    )
    for k, name in enumerate(NAMES, start=1):
        np.testing.assert_allclose(
            theirs["probability"][0, ..., k], mine["probability"][name], atol=1e-4
        )
    label = served("serving_default", {"image": volume[None, ..., None]})
    assert list(label) == ["label"] and label["label"].dtype == np.uint8
    best = np.sort(theirs["probability"][0], axis=-1)
    sure = best[..., -1] - best[..., -2] > 2e-4
    assert sure.mean() > 0.5 and len(np.unique(mine["label"])) > 1
    np.testing.assert_array_equal(label["label"][0, ..., 0][sure], mine["label"][sure])
    np.testing.assert_array_equal(theirs["probability"][0].argmax(-1)[sure], mine["label"][sure])


def test_the_export_is_what_a_server_needs(run, tmp_path):
    cts = np.random.default_rng(5).integers(0, 256, (2, 16, 13, 11)).astype(np.uint8)
    running.check_export(run / "saved_model" / "1", cts, tmp_path)


def test_predict_writes_label_values_and_a_probability_a_structure(run, tmp_path, capsys, caplog):
    image = sitk.GetImageFromArray(np.rint(ct(22, 26, 30)).astype(np.int16))
    image.SetSpacing((6, 6, 6))
    image.SetOrigin((10, -20, 30))
    image.SetDirection((0, 1, 0, -1, 0, 0, 0, 0, 1))
    images.write(tmp_path / "ct.nii.gz", image)
    arguments = [f"--input={tmp_path / 'ct.nii.gz'}", "--probabilities"]
    for name, model in (("run", run), ("export", run / "saved_model" / "1")):
        running.call("predict", f"--model={model}", f"--output={tmp_path / name}", *arguments)
        told = capsys.readouterr()
        for text in (told.err, caplog.text):
            assert "HU" not in text and "trained on" not in text
        assert ("tile" in told.out) == (name == "run")  # a graph has no progress to show
    results = {name: tmp_path / name / "ct.nii.gz" for name in ("run", "export")}
    labels = {name: images.read(path) for name, path in results.items()}
    images.require_same_grid(labels["run"], images.Image.of("image", image, image.GetSpacing()))
    np.testing.assert_array_equal(*(label.array for label in labels.values()))
    structures = {
        path.parent.name for path in (tmp_path / "run" / "probabilities").rglob("ct.nii.gz")
    }
    assert structures == set(NAMES)


def test_a_killed_run_goes_on_to_the_same_weights(tmp_path):
    """With the checkpoints of an earlier step alone, as after a kill; one level is enough.

    The export may be another.
    """
    once = (f"--work_dir={tmp_path}", *TINY, *ONE, "--checkpoint_steps=1", "--samples_per_epoch=8")
    with running.unexported(), plain_networks():
        train(*once)
    finished = tmp_path / "pyramid" / "model.keras"
    whole = stages.load(finished).get_weights()
    finished.unlink()
    shutil.rmtree(tmp_path / "pyramid" / "best")
    for path in (tmp_path / "pyramid" / "last").glob("step-4*"):
        path.unlink()
    with plain_networks():
        train(*once, "--export_precision=bfloat16")
    for a, b in zip(stages.load(finished).get_weights(), whole):
        np.testing.assert_array_equal(a, b)
    running.check_bfloat16(tmp_path, ct(24, 28, 40))
    assert {row["method"] for row in cases_of(tmp_path)} == {"level 1"}


def test_the_paper_s_constants_are_a_preset_and_the_command_line_wins(tmp_path, capsys):
    """Ended before training by --patience, as the preset has no validation case.

    config.json is there already.
    """
    with pytest.raises(SystemExit):
        train(
            f"--work_dir={tmp_path}", *TINY, "--preset=paper", "--downsampling=4,2", "--patience=2"
        )
    assert "--patience=2: there is no validation case" in capsys.readouterr().err
    config = json.loads((tmp_path / "config.json").read_text())["flags"]
    expected = {
        "mode": "end_to_end",
        "levels": 2,
        "downsampling": [4, 2],
        "normalization": "batch",
        "shift": 4,
    }
    assert {name: config[name] for name in expected} == expected
    assert (config["base_filters"], config["steps"], config["learning_rate_decay"]) == (
        2,
        4,
        "constant",
    )


@pytest.mark.parametrize(
    "preset, levels, downsampling",
    [("paper", 2, [4, 2]), ("paper", 3, [8, 4, 2]), ("demo", 1, [2])],
)
def test_presets_at_other_numbers_of_levels(tmp_path, capsys, preset, levels, downsampling):
    """Ended before training, as above."""
    tiny = [flag for flag in TINY if not flag.startswith("--downsampling")]
    given = [] if levels == PRESETS[preset].get("levels") else [f"--levels={levels}"]
    with pytest.raises(SystemExit):
        train(
            f"--work_dir={tmp_path}",
            *tiny,
            f"--preset={preset}",
            *given,
            "--patience=2",
            "--validation_fraction=0",
        )
    assert "--patience=2: there is no validation case" in capsys.readouterr().err
    config = json.loads((tmp_path / "config.json").read_text())["flags"]
    assert (config["preset"], config["levels"], config["downsampling"]) == (
        preset,
        levels,
        downsampling,
    )
    assert config["learning_rate"] == PRESETS[preset]["learning_rate"]
    assert not (tmp_path / "pyramid").exists()


def test_the_paper_preset_untouched():
    paper = PRESETS["paper"]
    assert {
        k: paper[k] for k in ("steps", "batch_size", "patch_size", "base_filters", "levels")
    } == {
        "steps": 20_000,
        "batch_size": 3,
        "patch_size": 64,
        "base_filters": 32,
        "levels": 2,
    }


# Another command on a run that is there


@pytest.mark.parametrize(
    "flag, sentence",
    [
        ("--window_low=-200", "--window_low -160.0 (now -200.0)"),
        ("--downsampling=3,1", "--downsampling [2, 1] (now [3, 1])"),
        ("--foreground=1,2", "--foreground None (now [1, 2])"),
        ("--mode=separate", "--mode 'end_to_end' (now 'separate')"),
    ],
)
def test_a_run_of_other_flags_is_refused(run, capsys, flag, sentence):
    before = (run / "config.json").read_bytes()
    with pytest.raises(SystemExit):
        train(f"--work_dir={run}", *TINY, flag)
    assert f"{run}: this run folder was made with {sentence};" in capsys.readouterr().err
    assert (run / "config.json").read_bytes() == before


@pytest.mark.parametrize(
    "change",
    [{"3": "hepar"}, {"3": "spleen", "4": "liver"}],
    ids=["another name", "names exchanged"],
)
def test_a_run_of_other_labels_is_refused(run, tmp_path, capsys, change):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    dataset = json.loads((copy / "phantoms" / "dataset.json").read_text())
    dataset["labels"] |= change
    (copy / "phantoms" / "dataset.json").write_text(json.dumps(dataset))
    with pytest.raises(SystemExit):
        train(f"--work_dir={copy}", *TINY)
    assert f"{copy}: this run folder was made with the labels" in capsys.readouterr().err
    assert json.loads((copy / "config.json").read_text())["labels"]["3"] == "liver"


def test_the_tile_size_of_a_run_is_free(run, segment, tmp_path):
    volume = ct(30, 28, 40)
    larger = (prediction.load(run, tile_size=tile_size) for tile_size in (32, 48))
    small, large, whole = (
        of(volume, (6, 6, 6), probabilities=True)["probability"]["liver"]
        for of in (segment, *larger)
    )
    assert small.shape == large.shape == volume.shape
    assert np.abs(small - large).max() > 1e-4 and np.abs(large - whole).max() > 1e-4
    with pytest.raises(
        errors.UserError,
        match=r"^tile_size=32: .* is a SavedModel, in which this is fixed; expected a run",
    ):
        prediction.load(run / "saved_model" / "1", tile_size=32)
    other = {"system": "fetal_head", "flags": {"level": 2}, "data_fingerprint": ""}
    (tmp_path / "config.json").write_text(json.dumps(other))
    with pytest.raises(
        errors.UserError,
        match=r"^tile_size=32: .* is a run of 'fetal_head'; expected one of 'multi_organ'",
    ):
        prediction.load(tmp_path, tile_size=32)


# The user's own data


@pytest.fixture()
def data(tmp_path):
    """A CSV of four small CTs with the label values 2 and 5, and no names for them."""
    folder = tmp_path / "data"
    folder.mkdir()
    lines = ["image,label,split"]
    for case in range(4):
        label = np.zeros((18, 20, 22), np.uint8)
        label[4:10, 4:12, 4:12] = 2
        label[12:16, 6:14, 6:14] = 5
        image = np.rint(ct(*label.shape, seed=case) + 100 * label).astype(np.int16)
        for kind, voxels in (("image", image), ("label", label)):
            volume = sitk.GetImageFromArray(voxels)
            volume.SetSpacing((1.0, 1.5, 2.0))
            images.write(folder / f"{kind}_{case}.nii.gz", volume)
        lines.append(f"image_{case}.nii.gz,label_{case}.nii.gz,{'test' if case == 3 else 'train'}")
    (folder / "cases.csv").write_text("\n".join(lines) + "\n")
    return folder


def rewrite(path, change):
    image = images.read(path)
    changed = sitk.GetImageFromArray(change(image.array))
    changed.SetSpacing(image.grid.spacing)
    sitk.WriteImage(changed, str(path))


@pytest.mark.usefixtures("unexported")
def test_label_values_come_back_and_warnings_name_what_is_odd(data, tmp_path, caplog):
    rewrite(data / "image_1.nii.gz", lambda voxels: np.clip(voxels + 1024, 0, 4095))
    for case in (0, 1, 2):
        rewrite(
            data / f"label_{case}.nii.gz",
            lambda label: np.where(label == 5, 0, label).astype(np.uint8),
        )
    (data / "dataset.json").write_text(
        json.dumps(
            {
                "labels": {"background": 0, "liver": 2, "spleen": 5},
                "training": [
                    {"image": f"image_{i}.nii.gz", "label": f"label_{i}.nii.gz"} for i in range(3)
                ],
                "test": [{"image": "image_3.nii.gz", "label": "label_3.nii.gz"}],
            }
        )
    )
    with plain_networks():
        train(f"--work_dir={tmp_path / 'run'}", f"--data_dir={data}", *TINY, *ONE, "--steps=2")
    assert re.search(
        r"image_1\.nii\.gz: intensities from \d+ to \d+ do not look like a CT in HU", caplog.text
    )
    assert "image_0.nii.gz: intensities" not in caplog.text
    assert "No training case has spleen (label 5)" in caplog.text
    caplog.clear()
    segment = prediction.load(tmp_path / "run")
    assert segment.labels == {2: "liver", 5: "spleen"}
    output = segment(ct(18, 20, 22), (2.0, 1.5, 1.0))
    assert set(np.unique(output["label"])) <= {0, 2, 5} and not caplog.text
    segment(ct(18, 20, 22) + 5000, (2.0, 1.5, 1.3), "other.nii.gz")
    told = "voxels of 2 x 1.5 x 1.3 mm (z, y, x); the model was trained on 2 x 1.5 x 1 to"
    assert f"other.nii.gz: {told}" in caplog.text
    assert "other.nii.gz: intensities from" in caplog.text


def test_without_names_the_values_name_themselves_and_foreground_chooses(data):
    cases = datasets.load(data / "cases.csv", seed=0)
    assert datasets.structures(cases) == {2: "label 2", 5: "label 5"}
    assert datasets.structures(cases, [5]) == {5: "label 5"}
    assert list(datasets.structures(cases, [5, 2])) == [2, 5]  # the order of the network's channels
    with pytest.raises(
        errors.UserError, match=r"foreground=5,7: no label is \[7\]; expected some of \[2, 5\]"
    ):
        datasets.structures(cases, [5, 7])


@pytest.mark.usefixtures("unexported")
def test_one_case_trains_and_validates_on_itself(data, tmp_path, caplog):
    (data / "cases.csv").write_text("image,label,split\nimage_0.nii.gz,label_0.nii.gz,train\n")
    flags = f"--work_dir={tmp_path / 'run'}", f"--data_dir={data / 'cases.csv'}", "--foreground=5"
    with plain_networks():
        train(*flags, *TINY, *ONE)
    assert "which also validates" in caplog.text
    rows = cases_of(tmp_path / "run")
    assert {(row["case"], row["structure"]) for row in rows} == {("image_0", "label 5")}


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--levels=0"], "--levels=0"),
        (["--mode=both"], "--mode=both"),
        (
            ["--downsampling=1,2"],
            "--downsampling=1,2: expected factors that fall from level to level",
        ),
        (["--downsampling=4"], "--downsampling=4: has 1 factors; expected --levels=2"),
        (["--downsampling=2,0"], "at least 1"),
        (["--patch_size=20"], "a multiple of 8 of at least 8"),
        (["--tile_size=20"], "a multiple of 8 of at least 16"),
        (["--window_low=300"], "--window_low=300.0: expected less than --window_high=240.0"),
        (["--foreground=9"], "--foreground=9: no label is [9]"),
        (["--data_dir=/no/such/folder"], "/no/such/folder: no such file or folder"),
    ],
)
def test_wrong_flags_are_named(tmp_path, capsys, arguments, sentence):
    with pytest.raises(SystemExit) as ended:
        train(f"--work_dir={tmp_path}", *TINY, *arguments)
    assert ended.value.code == 1 and sentence in capsys.readouterr().err


SPOILED = {
    "not an image": (
        lambda d: (d / "image_1.nii.gz").write_bytes(b"hello"),
        r"image_1\.nii\.gz: not a readable image",
    ),
    "no organ": (
        lambda d: rewrite(d / "label_1.nii.gz", np.zeros_like),
        r"label_1\.nii\.gz: the object is missing",
    ),
    "test label": (
        lambda d: rewrite(d / "label_3.nii.gz", np.zeros_like),
        r"label_3\.nii\.gz: the object is missing",
    ),
    "grid": (lambda d: rewrite(d / "label_1.nii.gz", lambda v: v[1:]), r"label_1\.nii\.gz: size"),
    "value": (
        lambda d: rewrite(d / "label_0.nii.gz", lambda v: v.astype(np.int16) * 100),
        r"label_0\.nii\.gz: has the label values 0 to 500; expected values from 0 to 255",
    ),
}


@pytest.mark.parametrize("what", SPOILED)
def test_bad_data_ends_in_one_sentence_before_training(data, tmp_path, capsys, what):
    spoil, sentence = SPOILED[what]
    spoil(data)
    with pytest.raises(SystemExit) as ended:
        train(f"--work_dir={tmp_path / 'run'}", f"--data_dir={data / 'cases.csv'}", *TINY)
    assert ended.value.code == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("error: ") and re.search(sentence, message), message
    assert not (tmp_path / "run" / "pyramid").exists()
