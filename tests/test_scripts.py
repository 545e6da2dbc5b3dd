"""The fetal head system from outside: train, resume, predict, export, and a user's mistakes."""

import csv
import functools
import gc
import json
import os
import re
import shutil
import subprocess

import cpp_loader
import numpy as np
import pytest
import running
import SimpleITK as sitk
import tensorflow as tf
from helpers import plain_networks

import tf_autoctx
from tf_autoctx import errors
from tf_autoctx.data import images
from tf_autoctx.systems.shared import prediction, stages

TINY = (
    "--base_filters=2",
    "--steps=3",
    "--samples_per_epoch=2",
    "--precision=float32",
    "--phantom_size=24,16,28",
    "--phantom_cases=3,2",
)
train = functools.partial(running.train, "fetal_head")


@pytest.fixture
def refused(capsys):
    """Runs a training, which ends in one sentence that tells so."""

    def run(told, *arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            train(*arguments)
        last = capsys.readouterr().err.strip().splitlines()[-1]
        assert ended.value.code == 1 and last.startswith("error: ") and re.search(told, last), last

    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of two levels."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(f"--work_dir={folder}", "--level=2", *TINY)
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


def probability(segmentor, volume):
    """What prediction calls, for a volume of unit voxels."""
    output = segmentor(volume, (1, 1, 1), probabilities=True)
    return {"label": output["label"], "probability": output["probability"]["head"]}


def test_run_folder_is_complete(run):
    config = json.loads((run / "config.json").read_text())
    assert config["system"] == "fetal_head" and len(config["data_fingerprint"]) == 64
    assert config["flags"]["steps"] == 3 and config["flags"]["variant"] == "USegNet-DS-HAS-Ctx"
    assert {"learning_rate", "erase_probability", "phantom_size", "foreground"} <= config[
        "flags"
    ].keys()
    card = json.loads((run / "saved_model" / "1" / "assets.extra" / "model_card.json").read_text())
    for name in ("system", "labels", "spacing", "data_fingerprint", "git_revision"):
        assert card[name] == config[name]
    assert (
        card["labels"] == {"1": "head"}
        and card["precision"] == "float32"
        and card["config"] == config["flags"]
    )
    assert card["versions"] == {"tf_autoctx": tf_autoctx.__version__, **config["versions"]}
    assert card["inputs"]["image"]["axes"][1:4] == ["depth", "height", "width"]
    assert "0.5" in card["outputs"]["label"]["meaning"]
    assert config["spacing"] == [pytest.approx([147.44 / 24, 98.04 / 16, 167.2 / 28], abs=1e-4)] * 2
    assert config["versions"]["tensorflow"] == tf.__version__
    for level in (1, 2):
        names = {path.name for path in (run / f"level_{level}").iterdir()}
        kept = {"best", "last", "history.csv", "history.png", "model.keras", "tensorboard"}
        assert names == (kept | {"probability"} if level == 1 else kept)
    with open(run / "evaluation" / "cases.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["system"] for row in rows} == {"fetal_head"}
    assert [(row["method"], row["case"]) for row in rows] == [
        (f"level {level}", f"head_00{case}") for level in (1, 2) for case in (3, 4)
    ]
    summary = json.loads((run / "evaluation" / "summary.json").read_text())
    assert summary["paired"][0]["method"] == "level 2"
    assert card["metrics"] == {"level 2": summary["methods"]["level 2"]}
    assert len(list((run / "evaluation").glob("head_*.png"))) == 2


def test_export_equals_the_run_through_the_loader_of_tensorflow_serving(segment, served):
    random = np.random.default_rng(0)
    for size in ((24, 16, 28), (31, 17, 22)):
        volume = random.normal(100, 30, size).astype(np.float32)
        mine, theirs = (
            probability(segment, volume),
            served("serving_default", {"image": volume[None, ..., None]}),
        )
        assert mine["probability"].std() > 0
        np.testing.assert_allclose(theirs["probability"][0, ..., 0], mine["probability"], atol=1e-5)
        sure = np.abs(mine["probability"] - 0.5) > 1e-4
        np.testing.assert_array_equal(theirs["label"][0, ..., 0][sure], mine["label"][sure])
    pair = random.normal(size=(2, 16, 16, 16, 1)).astype(np.float32)
    both, first = (served("serving_default", {"image": images_}) for images_ in (pair, pair[:1]))
    np.testing.assert_allclose(both["probability"][:1], first["probability"], atol=1e-5)
    assert both["probability"].dtype == np.float32


def test_the_export_is_what_a_server_needs(run, tmp_path):
    images_ = np.random.default_rng(5).integers(0, 256, (2, 24, 16, 28)).astype(np.uint8)
    running.check_export(run / "saved_model" / "1", images_, tmp_path)


def test_level_2_matters(run, segment, tmp_path, caplog):
    """A run cut down to level 1 predicts otherwise; with a level missing it says so."""
    shutil.copytree(run, tmp_path / "one", ignore=shutil.ignore_patterns("level_2", "phantoms"))
    volume = np.random.default_rng(1).normal(size=(20, 20, 20)).astype(np.float32)
    partial = probability(prediction.load(tmp_path / "one"), volume)
    assert "1 of 2 levels are finished" in caplog.text
    config = json.loads((run / "config.json").read_text())
    config["flags"]["level"] = 1
    (tmp_path / "one" / "config.json").write_text(json.dumps(config))
    one, two = (
        probability(prediction.load(tmp_path / "one"), volume),
        probability(segment, volume),
    )
    assert np.abs(one["probability"] - two["probability"]).max() > 1e-4
    np.testing.assert_array_equal(one["probability"], partial["probability"])


def with_level_1_alone(run, folder):
    """A copy of a run as it was before its second level."""
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("level_2"))
    config = json.loads((run / "config.json").read_text())
    config["flags"]["level"] = 1
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_level_more_trains_that_level_alone_and_serves_next(run, tmp_path, capsys):
    copy = with_level_1_alone(run, tmp_path / "run")
    before = (copy / "level_1" / "model.keras").stat().st_mtime_ns
    train(f"--work_dir={copy}", "--level=2", "--export_precision=bfloat16", *TINY)
    assert (copy / "level_1" / "model.keras").stat().st_mtime_ns == before
    networks = (stages.load(of / "level_2" / "model.keras") for of in (run, copy))
    for a, b in zip(*(network.get_weights() for network in networks), strict=True):
        np.testing.assert_array_equal(a, b)
    printed = capsys.readouterr().out
    assert (
        "level 2 against level 1" in printed
        and "saved_model: version 2 serves (bfloat16)" in printed
    )
    running.check_bfloat16(copy, np.random.default_rng(6).normal(size=(24, 16, 28)))


def check_other_way(folder, *changes):
    train(f"--work_dir={folder}", *TINY, "--level=1", *changes)
    volume = np.random.default_rng(2).normal(size=(17, 16, 19)).astype(np.float32)
    np.testing.assert_allclose(
        running.served(folder / "saved_model" / "1", volume[None, ..., None])["probability"][
            0, ..., 0
        ],
        probability(prediction.load(folder), volume)["probability"],
        atol=1e-5,
    )


@pytest.mark.parametrize(
    "changes",
    [
        ("--variant=p-USegNet", "--patch_size=8", "--batch_size=2"),
        ("--variant=2D-USegNet",),
    ],
)
def test_other_ways_of_running(tmp_path, changes):
    with plain_networks():
        check_other_way(tmp_path, *changes)


def test_a_loss_is_chosen_from_the_command_line(tmp_path):
    with plain_networks(), running.unexported():
        train(f"--work_dir={tmp_path}", *TINY, "--level=1", "--loss=dice")
    with (tmp_path / "level_1" / "history.csv").open() as file:
        assert all(float(row["loss"]) < 0 for row in csv.DictReader(file))  # no cross entropy is


def test_the_paper_s_constants_are_a_preset_and_the_command_line_wins(tmp_path):
    others = ("--join=concat", "--l2=0.001", "--normalization=batch", "--shift=1")
    others += ("--validation_fraction=0", "--scale=0.5")
    check_other_way(tmp_path, "--preset=paper", *others)
    config = json.loads((tmp_path / "config.json").read_text())["flags"]
    assert {
        name: config[name]
        for name in ("learning_rate", "beta_1", "batch_size", "initializer", "flips")
    } == {
        "learning_rate": 1e-5,
        "beta_1": 0.5,
        "batch_size": 1,
        "initializer": "paper",
        "flips": True,
    }
    assert (
        config["erase_probability"] == pytest.approx(1512 / 2112)
        and config["learning_rate_decay"] == "constant"
    )
    assert (config["scale"], config["steps"], config["base_filters"]) == (0.5, 3, 2)


def test_predict_writes_labels_on_each_image_s_own_grid(run, tmp_path, capsys):
    folder = tmp_path / "scans"
    folder.mkdir()
    image = sitk.GetImageFromArray(
        np.random.default_rng(3).normal(size=(18, 20, 22)).astype(np.float32)
    )
    image.SetSpacing((0.5, 0.7, 1.1))
    image.SetOrigin((10, -20, 30))
    image.SetDirection((0, 1, 0, -1, 0, 0, 0, 0, 1))
    images.write(folder / "a.mha", image)
    images.write(folder / "b.nrrd", image)
    from_run = running.script(
        "predict.py",
        f"--model={run}",
        f"--input={folder}",
        f"--output={tmp_path / 'run'}",
        "--probabilities",
    )
    assert from_run.returncode == 0, from_run.stderr
    running.call(
        "predict",
        f"--model={run / 'saved_model' / '1'}",
        f"--input={folder / 'a.mha'}",
        f"--output={tmp_path / 'export'}",
    )
    written = sorted(
        str(path.relative_to(tmp_path / "run")) for path in (tmp_path / "run").rglob("[!.]*.*")
    )
    assert written == ["a.nii.gz", "b.nii.gz", "probabilities/a.nii.gz", "probabilities/b.nii.gz"]
    label = images.read(tmp_path / "run" / "a.nii.gz")
    probability = images.read(tmp_path / "run" / "probabilities" / "a.nii.gz")
    for result in (label, probability):
        images.require_same_grid(result, images.Image.of("image", image, image.GetSpacing()))
    assert label.array.dtype == np.uint8 and probability.array.dtype == np.float32
    np.testing.assert_array_equal(label.array, probability.array > 0.5)
    np.testing.assert_array_equal(label.array, images.read(tmp_path / "export" / "a.nii.gz").array)
    with pytest.raises(SystemExit) as again:
        running.call(
            "predict", f"--model={run}", f"--input={folder}", f"--output={tmp_path / 'run'}"
        )
    assert again.value.code == 1 and "--overwrite" in capsys.readouterr().err


@pytest.fixture()
def data(tmp_path):
    """A folder of four good cases that each test spoils."""
    random = np.random.default_rng(4)
    for folder in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    names = [f"c{i}.nii.gz" for i in range(4)]
    for i, name in enumerate(names):
        end = "Tr" if i < 3 else "Ts"
        label = np.zeros((16, 16, 16), np.uint8)
        label[4:12, 4:12, 4:12] = 1
        image = random.normal(size=label.shape).astype(np.float32)
        for kind, voxels in (("images", image), ("labels", label)):
            path = tmp_path / "data" / f"{kind}{end}" / name
            images.write(path, sitk.GetImageFromArray(voxels))
    describe(tmp_path / "data", names)
    return tmp_path / "data"


def describe(folder, names, **changes):
    (folder / "dataset.json").write_text(
        json.dumps(
            {
                "name": "tiny",
                "labels": {"0": "background", "1": "head"},
                "training": [
                    {"image": f"imagesTr/{name}", "label": f"labelsTr/{name}"} for name in names[:3]
                ],
                "test": [f"imagesTs/{name}" for name in names[3:]],
                **changes,
            }
        )
    )


def replace(path, change, spacing=None):
    """Rewrites an image with its voxels changed."""
    image = images.read(path)
    changed = sitk.GetImageFromArray(change(image.array), isVector=False)
    if spacing:
        changed.SetSpacing(spacing)
    sitk.WriteImage(changed, str(path))


def with_nan(voxels):
    voxels[0, 0, 0] = np.nan
    return voxels


SPOILED = {
    "missing file": (
        lambda d: (d / "imagesTr" / "c1.nii.gz").unlink(),
        r"c1\.nii\.gz.*does not exist",
    ),
    "not an image": (
        lambda d: (d / "imagesTr" / "c1.nii.gz").write_bytes(b"hello"),
        r"c1\.nii\.gz: not a readable image",
    ),
    "4D": (
        lambda d: replace(d / "imagesTr" / "c1.nii.gz", lambda v: np.stack([v, v])),
        r"c1\.nii\.gz.*(4|four)",
    ),
    "2D": (
        lambda d: [replace(d / f / "c1.nii.gz", lambda v: v[8]) for f in ("imagesTr", "labelsTr")],
        r"c1\.nii\.gz: has 2 dimensions",
    ),
    "NaN": (
        lambda d: replace(d / "imagesTr" / "c1.nii.gz", with_nan),
        r"c1\.nii\.gz: 1 of 4096 voxels are NaN",
    ),
    "constant": (
        lambda d: replace(d / "imagesTr" / "c1.nii.gz", np.zeros_like),
        r"c1\.nii\.gz: every voxel is 0",
    ),
    "geometry": (
        lambda d: replace(d / "labelsTr" / "c1.nii.gz", np.array, (2, 2, 2)),
        r"labelsTr/c1\.nii\.gz: spacing \(2\.0",
    ),
    "no object": (
        lambda d: replace(d / "labelsTr" / "c1.nii.gz", np.zeros_like),
        r"c1\.nii\.gz: the object is missing",
    ),
    "unknown label": (
        lambda d: replace(d / "labelsTr" / "c1.nii.gz", lambda v: v * 7),
        r"c1\.nii\.gz: has the label values \[7\]",
    ),
    "bad test label": (
        lambda d: replace(d / "labelsTs" / "c3.nii.gz", np.zeros_like),
        r"c3\.nii\.gz: the object is missing",
    ),
    "empty set": (lambda d: describe(d, [], training=[]), "no training case"),
    "case twice": (
        lambda d: describe(d, ["c0.nii.gz", "c0.nii.gz", "c1.nii.gz"]),
        r"c0\.nii\.gz.*every case once",
    ),
    "no dataset.json": (lambda d: (d / "dataset.json").unlink(), "has no dataset.json"),
    "wrong dataset.json": (
        lambda d: (d / "dataset.json").write_text("[1"),
        "dataset.json: is not JSON",
    ),
    "object too small": (
        lambda d: replace(
            d / "labelsTr" / "c1.nii.gz",
            lambda v: np.eye(4096)[0].reshape(v.shape).astype(np.uint8),
        ),
        "vanishes at --scale",
    ),
}


@pytest.mark.parametrize("what", SPOILED)
def test_bad_data_ends_in_one_sentence_before_training(data, tmp_path, refused, what):
    spoil, told = SPOILED[what]
    spoil(data)
    where = (f"--work_dir={tmp_path / 'run'}", f"--data_dir={data}")
    refused(told, *where, "--scale=0.5", *TINY)
    assert not (tmp_path / "run" / "level_1").exists()


@pytest.mark.usefixtures("unexported")
def test_good_data_trains(data, tmp_path, capsys):
    with plain_networks():
        train(
            f"--work_dir={tmp_path / 'run'}",
            f"--data_dir={data}",
            "--scale=0.5",
            *TINY,
            "--level=1",
        )
    assert "level 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--level=0"], "--level=0"),
        (["--variant=UNet"], "--variant=UNet"),
        (["--foreground=head"], "foreground"),
        (["--foreground=0"], "at least 1"),
        (["--phantom_size=1,1,1"], "at least 8"),
        (["--patience=2", "--validation_fraction=0"], "--patience=2: there is no validation case"),
        (["--patch_size=12"], "--patch_size=12"),
        (["--phantom_size=10"], "phantom_size"),
        (["--data_dir=/no/such/folder"], "/no/such/folder: no such file or folder"),
        (["--strategy=multi_worker"], "TF_CONFIG is not set"),
        (["--variant=p-USegNet", "--patch_size=64"], "--patch_size=64: a training volume has"),
    ],
)
def test_wrong_flags_are_named(tmp_path, refused, arguments, sentence):
    refused(re.escape(sentence), f"--work_dir={tmp_path}", *TINY, *arguments)


def test_wrong_flags_end_without_a_traceback():
    ended = running.script("train_fetal_head.py", "--level=0")
    assert ended.returncode == 1 and "--level=0" in ended.stderr and "Traceback" not in ended.stderr


def test_a_batch_of_volumes_of_different_sizes_is_refused(data, tmp_path, refused):
    for folder in ("imagesTr", "labelsTr"):
        replace(data / folder / "c1.nii.gz", lambda voxels: voxels[:14])
    several = ("--scale=1", "--validation_fraction=0", "--batch_size=2")
    told = "--batch_size=2: training images have different sizes"
    refused(told, f"--work_dir={tmp_path}", f"--data_dir={data}", *several, *TINY)


def test_a_run_folder_made_with_other_flags_is_refused(run, refused):
    told = r"--learning_rate 0.001 \(now 0.5\)"
    refused(told, f"--work_dir={run}", *TINY, "--learning_rate=0.5")


@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("mount"), reason="needs to mount a small disk"
)
def test_a_full_disk_is_one_sentence(tmp_path, refused):
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", small], capture_output=True
    ).returncode:
        pytest.skip("may not mount")
    try:
        refused("disk", f"--work_dir={small / 'run'}", "--level=1", *TINY, "--base_filters=8")
    finally:
        gc.collect()  # what the training left open
        subprocess.run(["umount", small], check=True)


def test_bad_models_for_prediction(run, tmp_path, capsys):
    image = tmp_path / "a.nii.gz"
    images.write(image, sitk.GetImageFromArray(np.zeros((8, 8, 8), np.float32)))
    with pytest.raises(
        errors.UserError, match="expected a run folder, a SavedModel folder or one of"
    ):
        prediction.load(tmp_path)
    (tmp_path / "config.json").write_text((run / "config.json").read_text())
    with pytest.raises(errors.UserError, match=r"level_1/model\.keras: this stage is not finished"):
        prediction.load(tmp_path)
    other = tmp_path / "other"
    tf.saved_model.save(tf.Module(), str(other))
    with pytest.raises(errors.UserError, match="not a SavedModel of ours"):
        prediction.load(other)
    with pytest.raises(SystemExit) as refused:
        running.call(
            "predict", f"--model={run}", f"--input={image}", f"--output={tmp_path}", "--overwrite"
        )
    assert refused.value.code == 1 and "is an input image" in capsys.readouterr().err
    nothing = (f"--input={tmp_path / 'b.nii.gz'}", f"--output={tmp_path / 'out'}")
    with pytest.raises(SystemExit) as refused:
        running.call("predict", f"--model={run}", *nothing)
    assert refused.value.code == 1 and "b.nii.gz" in capsys.readouterr().err
