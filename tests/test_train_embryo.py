"""The embryo system from outside: train, resume, predict, export, and a user's mistakes."""

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

from tf_autoctx import errors
from tf_autoctx.data import images
from tf_autoctx.systems.embryo import training
from tf_autoctx.systems.embryo.configuration import STAGES, Embryo
from tf_autoctx.systems.embryo.segmentation import Refinement
from tf_autoctx.systems.shared import prediction, stages
from tf_autoctx.training import runs

TINY = [
    "--low_size=8",
    "--body_box=16",
    "--ventricle_box=8",
    "--base_filters=2",
    "--depth=1",
    "--kernel=3",
    "--steps=3",
    "--initial_factor=1",
    "--samples_per_epoch=3",
    "--precision=float32",
    "--phantom_size=24,28,24",
    "--phantom_spacing=0.4",
    "--phantom_cases=3,2",
]

NETWORK = {
    "low_size": 8,
    "body_box": 16,
    "ventricle_box": 8,
    "base_filters": 2,
    "depth": 1,
    "kernel": 3,
}

# A checkpoint a step, and an epoch that is cut short: what is trained is the same.
STEPWISE = [*TINY, "--checkpoint_steps=1", "--samples_per_epoch=9"]

train = functools.partial(running.train, "embryo")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of all stages."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(f"--work_dir={folder}", *TINY)
    return folder


@pytest.fixture(scope="module")
def initial(tmp_path_factory):
    """A run of the first stage alone, without an export."""
    folder = tmp_path_factory.mktemp("runs") / "initial"
    with running.unexported():
        train(f"--work_dir={folder}", *STEPWISE, "--stage=initial")
    return folder


@pytest.fixture(scope="module")
def segment(run):
    """The run as predict has it; its graphs are traced once."""
    return prediction.load(run)


def noise(*size, seed=0):
    return np.random.default_rng(seed).uniform(0, 255, size).astype(np.float32)


def methods(run):
    return list(dict.fromkeys(row["method"] for row in rows_of(run)))


def rows_of(run):
    with open(run / "evaluation" / "cases.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_run_folder_is_complete(run):
    config = json.loads((run / "config.json").read_text())
    assert config["system"] == "embryo" and config["flags"]["body_box"] == 16
    assert config["labels"] == {"1": "body", "2": "ventricle"}
    assert config["spacing"] == [[0.4, 0.4, 0.4]] * 2
    kept = {"best", "last", "history.csv", "history.png", "model.keras", "tensorboard"}
    for stage in STAGES:
        assert {path.name for path in (run / stage).iterdir()} == kept
    assert methods(run) == list(STAGES)
    rows = rows_of(run)
    assert {row["system"] for row in rows} == {"embryo"}
    assert {row["structure"] for row in rows} == {"body", "ventricle"}
    assert {row["case"] for row in rows} == {"embryo_003", "embryo_004"}
    assert len(list((run / "evaluation").glob("embryo_*.png"))) == 2
    card = json.loads((run / "saved_model" / "1" / "assets.extra" / "model_card.json").read_text())
    assert card["system"] == "embryo" and card["labels"] == config["labels"]


def test_stages_one_by_one_are_all_stages(run, initial, segment, tmp_path):
    refined = shutil.copytree(initial, tmp_path / "run")
    train(f"--work_dir={refined}", *STEPWISE, "--stage=refine")
    for folder, stage in ((initial, "initial"), (refined, "refine")):
        assert methods(folder) == list(STAGES[: STAGES.index(stage) + 1])
        mine, theirs = (
            stages.load(of / stage / "model.keras").get_weights() for of in (folder, run)
        )
        for a, b in zip(mine, theirs, strict=True):
            np.testing.assert_array_equal(a, b)
    last, export = prediction.load(refined), prediction.load(refined / "saved_model")
    volume = noise(16, 17, 18)
    a, b = (of(volume, (0.4,) * 3, probabilities=True) for of in (last, export))
    np.testing.assert_allclose(a["probability"]["body"], b["probability"]["body"], atol=1e-5)
    c = segment(volume, (0.4,) * 3, probabilities=True)
    of_last_stage = c["probability"]["body"]
    assert np.abs(a["probability"]["body"] - of_last_stage).max() > 1e-4


def test_predict_reads_the_last_stage_alone(run, segment, tmp_path, monkeypatch):
    folder, volume = shutil.copytree(run, tmp_path / "run"), noise(16, 17, 18)
    (folder / "initial" / "model.keras").write_bytes(b"damaged")
    read, load = [], stages.load

    def noted(path):
        read.append(path.parent.name)
        return load(path)

    monkeypatch.setattr(stages, "load", noted)
    label = prediction.load(folder)(volume)["label"]
    assert read == ["end_to_end"]
    np.testing.assert_array_equal(label, segment(volume)["label"])
    (folder / "end_to_end" / "model.keras").write_bytes(b"damaged")
    with pytest.raises(errors.UserError, match=r"end_to_end/model.keras: not a network"):
        prediction.load(folder)


def test_a_stage_without_the_one_before_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        train(f"--work_dir={tmp_path}", *TINY, "--stage=refine")
    assert (
        "initial/model.keras: this stage is not finished; run --stage=initial"
        in capsys.readouterr().err
    )


@pytest.mark.usefixtures("unexported")
def test_without_auto_context_the_same_vnet_1_and_another_refinement(
    run, tmp_path, capsys, monkeypatch
):
    def interrupted(*_):
        raise OSError("the disk is full")

    words = (f"--work_dir={tmp_path}", *TINY, "--noauto_context", f"--initial_from={run}")
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(shutil, "copyfile", interrupted)
        train(*words)
    assert not (tmp_path / "initial" / "model.keras").exists()
    train(*words)  # goes on, and knows where VNet I is from
    assert methods(tmp_path) == ["initial", "refine"]
    assert not (tmp_path / "initial" / "history.csv").exists()  # it was not trained here
    mine, theirs = (stages.load(folder / "refine" / "model.keras") for folder in (tmp_path, run))
    weights = (network.get_layer("vnet_1").get_weights() for network in (mine, theirs))
    for a, b in zip(*weights):
        np.testing.assert_array_equal(a, b)
    assert mine.get_layer("vnet_2").input_shape[-1] == 1
    assert theirs.get_layer("vnet_2").input_shape[-1] == 2
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["initial_from"] == str(run / "initial" / "model.keras")
    with pytest.raises(SystemExit):
        train(f"--work_dir={tmp_path}", *TINY, "--noauto_context", "--stage=end_to_end")
    told = "--stage=end_to_end --noauto_context: no gradient reaches VNet I"
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda run: ["--low_size=16"], "made with --low_size=8, now 16"),
        (lambda run: ["--seed=1"], "a run of another system or other data"),
        (
            lambda run: shutil.rmtree(run / "initial") or [],
            "initial/model.keras: this stage is not finished",
        ),
    ],
    ids=["network", "data", "unfinished"],
)
def test_an_initial_stage_that_does_not_fit_is_refused(run, tmp_path, capsys, change, sentence):
    source = tmp_path / "source"
    shutil.copytree(run, source)
    with pytest.raises(SystemExit):
        train(f"--work_dir={tmp_path / 'run'}", *TINY, f"--initial_from={source}", *change(source))
    assert sentence in capsys.readouterr().err
    # The corrected command may have this folder.
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize("size", [(24, 28, 20), (13, 31, 9)])
def test_export_equals_the_run_through_the_loader_of_tensorflow_serving(run, segment, size):
    volume = noise(*size)
    mine = segment(volume, (0.4,) * 3, probabilities=True)
    theirs = running.served(run / "saved_model" / "1", volume[None, ..., None])
    assert {name: (array.shape, array.dtype) for name, array in theirs.items()} == {
        "label": ((1, *size, 1), np.uint8),
        "body": ((1, *size, 1), np.uint8),
        "ventricle": ((1, *size, 1), np.uint8),
        "probability": ((1, *size, 2), np.float32),
    }
    for k, name in enumerate(("body", "ventricle")):
        np.testing.assert_allclose(
            theirs["probability"][0, ..., k], mine["probability"][name], atol=1e-4
        )
    sure = np.abs(theirs["probability"][0] - 0.5).min(axis=-1) > 2e-4
    assert sure.mean() > 0.5
    np.testing.assert_array_equal(theirs["label"][0, ..., 0][sure], mine["label"][sure])
    np.testing.assert_array_equal(theirs["body"], theirs["label"] == 1)
    np.testing.assert_array_equal(theirs["ventricle"], theirs["label"] == 2)


def test_the_export_is_what_a_server_needs(run, tmp_path):
    embryos = np.random.default_rng(5).integers(0, 256, (2, 24, 17, 20)).astype(np.uint8)
    running.check_export(run / "saved_model" / "1", embryos, tmp_path)


def test_predict_from_the_run_and_from_the_export(run, tmp_path):
    image = sitk.GetImageFromArray(np.rint(noise(22, 26, 20)).astype(np.uint8))
    image.SetSpacing((0.4, 0.4, 0.4))
    image.SetOrigin((1, -2, 3))
    image.SetDirection((0, 1, 0, -1, 0, 0, 0, 0, 1))
    images.write(tmp_path / "embryo.nii.gz", image)
    arguments = [f"--input={tmp_path / 'embryo.nii.gz'}", "--probabilities", "--masks"]
    for name, model in (("run", run), ("export", run / "saved_model" / "1")):
        running.call("predict", f"--model={model}", f"--output={tmp_path / name}", *arguments)
    labels = {name: images.read(tmp_path / name / "embryo.nii.gz") for name in ("run", "export")}
    images.require_same_grid(labels["run"], images.Image.of("image", image, image.GetSpacing()))
    np.testing.assert_array_equal(*(label.array for label in labels.values()))
    written = (tmp_path / "run" / "probabilities").rglob("embryo.nii.gz")
    assert {path.parent.name for path in written} == {"body", "ventricle"}
    for value, name in enumerate(("body", "ventricle"), start=1):
        mask = images.read(tmp_path / "run" / "masks" / name / "embryo.nii.gz")
        np.testing.assert_array_equal(mask.array, labels["run"].array == value)


def test_a_killed_stage_goes_on_to_the_same_weights(initial, tmp_path):
    """With the checkpoints of an earlier step alone, as after a kill."""
    folder = shutil.copytree(initial, tmp_path / "run")
    finished = folder / "initial" / "model.keras"
    whole = stages.load(finished).get_weights()
    finished.unlink()
    shutil.rmtree(folder / "initial" / "best")
    for path in (folder / "initial" / "last").glob("step-3*"):
        path.unlink()
    train(f"--work_dir={folder}", *STEPWISE, "--stage=initial", "--export_precision=bfloat16")
    for a, b in zip(stages.load(finished).get_weights(), whole, strict=True):
        np.testing.assert_array_equal(a, b)
    running.check_bfloat16(folder, noise(24, 28, 24))


def test_the_paper_s_constants_are_a_preset(tmp_path, capsys):
    """Ended before training by --patience, as the preset has no validation case; config.json is
    there already."""
    phantoms = [flag for flag in TINY if "phantom" in flag]
    with pytest.raises(SystemExit):
        train(f"--work_dir={tmp_path}", *phantoms, "--preset=paper", "--patience=2")
    assert "--patience=2: there is no validation case" in capsys.readouterr().err
    config = json.loads((tmp_path / "config.json").read_text())["flags"]
    expected = {
        "low_size": 160,  # section 2.1
        "body_box": 256,  # section 2.2
        "ventricle_box": 160,
        "auto_context": True,
        "base_filters": 16,  # Milletari et al. 2016
        "depth": 5,
        "kernel": 5,
        "learning_rate": 1e-2,  # section 3.1
        "end_to_end_learning_rate": 1e-3,
        "learning_rate_decay": "constant",
        "rotation": 180.0,
        "shift": 30,
        "flips": True,
        "batch_size": 1,
    }
    assert {name: config[name] for name in expected} == expected


def test_the_last_stage_has_a_learning_rate_of_its_own(run):
    """Three steps of Adam move no weight by much more than three times the learning rate."""
    flags = json.loads((run / "config.json").read_text())["flags"]
    assert flags["learning_rate"] == 1e-2 and flags["end_to_end_learning_rate"] == 1e-3
    initial, refined, whole = (stages.load(run / stage / "model.keras") for stage in STAGES)

    def farthest(a, b):
        return max(np.abs(x - y).max() for x, y in zip(a.get_weights(), b.get_weights()))

    assert 1e-4 < farthest(refined, whole) < 4e-3
    keras.utils.set_random_seed(0)  # the seed of the first stage: 1000 times 0 and its number
    first = Refinement(Embryo(**NETWORK), {1: "body", 2: "ventricle"}).network("initial")
    assert 4e-3 < farthest(first, initial) < 4e-2


# The user's own data


@pytest.fixture()
def data(tmp_path):
    """A CSV of four small volumes with the label values 3 (body) and 1 (ventricle), unnamed."""
    folder = tmp_path / "data"
    folder.mkdir()
    lines = ["image,label,split"]
    for case in range(4):
        label = np.zeros((14, 16, 18 + case), np.uint8)
        label[3:11, 3:12, 3:12] = 3
        label[5:8, 5:8, 5:9] = 1
        for kind, voxels in (
            ("image", np.rint(noise(*label.shape, seed=case) / 2 + 40 * label)),
            ("label", label),
        ):
            volume = sitk.GetImageFromArray(voxels.astype(np.uint8))
            volume.SetSpacing((0.1, 0.1, 0.1))
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
def test_foreground_says_which_is_the_body_and_a_missing_ventricle_is_named(data, tmp_path, caplog):
    for case in (0, 1, 2):
        rewrite(
            data / f"label_{case}.nii.gz",
            lambda label: np.where(label == 1, 3, label).astype(np.uint8),
        )
    (data / "dataset.json").write_text(
        json.dumps(
            {
                "labels": {"background": 0, "ventricle": 1, "body": 3},
                "training": [
                    {"image": f"image_{i}.nii.gz", "label": f"label_{i}.nii.gz"} for i in range(3)
                ],
                "test": [{"image": "image_3.nii.gz", "label": "label_3.nii.gz"}],
            }
        )
    )
    train(
        f"--work_dir={tmp_path / 'run'}",
        f"--data_dir={data}",
        *TINY,
        "--stage=initial",
        "--foreground=3,1",
    )
    assert "No training case has ventricle (label 1)" in caplog.text
    segment = prediction.load(tmp_path / "run")
    assert list(segment.labels.items()) == [(3, "body"), (1, "ventricle")]
    assert set(np.unique(segment(noise(14, 16, 18), (0.1,) * 3)["label"])) <= {0, 1, 3}
    caplog.clear()
    segment(noise(14, 16, 18), (0.1, 0.1, 0.2), "other.nii.gz")
    assert "other.nii.gz: voxels of 0.1 x 0.1 x 0.2 mm" in caplog.text


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--stage=last"], "--stage=last"),
        (["--low_size=4"], "--low_size=4"),
        (["--depth=0"], "--depth=0"),
        (
            ["--foreground=1"],
            "--foreground: labels are {1: 'body'}; expected the body's value and then the "
            "ventricle's",
        ),
        (["--foreground=1,9"], "--foreground=1,9: no label is [9]"),
        (["--batch_size=2"], "--batch_size=2: training images have different sizes"),
        (["--initial_from=/no/run"], "/no/run: no config.json"),
        (["--data_dir=/no/such/folder"], "/no/such/folder: no such file or folder"),
    ],
)
def test_wrong_flags_are_named(tmp_path, capsys, arguments, sentence):
    with pytest.raises(SystemExit) as ended:
        train(f"--work_dir={tmp_path}", *TINY, *arguments)
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert ended.value.code == 1 and line.startswith("error: ") and sentence in line


SPOILED = {
    "not an image": (
        lambda d: (d / "image_1.nii.gz").write_bytes(b"hello"),
        r"image_1\.nii\.gz: not a readable image",
    ),
    "no object": (
        lambda d: rewrite(d / "label_1.nii.gz", np.zeros_like),
        r"label_1\.nii\.gz: the object is missing",
    ),
    "grid": (lambda d: rewrite(d / "label_3.nii.gz", lambda v: v[1:]), r"label_3\.nii\.gz: size"),
}


@pytest.mark.parametrize("what", SPOILED)
def test_bad_data_ends_in_one_sentence_before_training(data, tmp_path, capsys, what):
    spoil, sentence = SPOILED[what]
    spoil(data)
    with pytest.raises(SystemExit) as ended:
        train(
            f"--work_dir={tmp_path / 'run'}",
            f"--data_dir={data / 'cases.csv'}",
            *TINY,
            "--foreground=3,1",
        )
    assert ended.value.code == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("error: ") and re.search(sentence, message), message
    assert not (tmp_path / "run" / "initial").exists()


def test_a_run_that_is_there_may_train_another_stage_but_with_no_other_network(run, capsys):
    with pytest.raises(SystemExit):
        train(f"--work_dir={run}", *TINY, "--noauto_context")
    assert "--auto_context True (now False)" in capsys.readouterr().err
    assert training.finished_stages(runs.load(run)) == list(STAGES)
