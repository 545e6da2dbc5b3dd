"""The whole path of a user of nnU-Net, from his data set to what a server answers (from_nnunet.md).

Two channels that show the object only together, volumes of other spacings and orientations.
"""

import json
import re

import helpers
import numpy as np
import pytest
import rest_server
import running
import SimpleITK as sitk
from test_channels import write

from tf_autoctx.data import datasets
from tf_autoctx.errors import UserError
from tf_autoctx.report import tables
from tf_autoctx.systems.shared import ensembles
from tf_autoctx.training import runs

SPACINGS = ((1.0, 1.0, 2.0), (0.8, 0.8, 0.8), (1.5, 1.5, 1.5))  # (x, y, z), mm
ORIENTATIONS = ("LPS", "RAS", "PIR")
OBLIQUE = np.radians(6)
CASES = 6  # and two to test
FOLDS = 3

COMMON = (
    *("--preset=standard", "--spacing=auto", "--precision=float32", "--learning_rate=0.05"),
    *("--steps=40", "--samples_per_epoch=40", "--batch_size=1", "--base_filters=2"),
)
SYSTEMS = {
    "fetal_head": (
        *("--foreground=1", "--level=1", "--flips", "--loss=paper"),
        *("--shift=0", "--rotation=0", "--scaling=0"),
    ),
    "multi_organ": (
        *("--levels=1", "--downsampling=1", "--patch_size=16", "--tile_size=24"),
        *("--intensities=image", "--shift=0", "--rotation=0", "--elastic=0"),
    ),
}


def case(number):
    """((T2, ADC), label, spacing): 1 is bright in both, 2 in T2 alone, and a decoy in ADC alone."""
    rng = np.random.default_rng(number)
    spacing = np.array(SPACINGS[number % 3])
    size = np.round(np.array([22, 20, 24]) / spacing[::-1]).astype(int)  # (z, y, x)
    t2, adc = (rng.normal(100, 10, size) for _ in range(2))
    label = np.zeros(size, np.uint8)
    third = size[2] // 3
    order = rng.permutation(3)
    for place, kind in enumerate(order):
        box = np.s_[2:-2, 2:-2, place * third + 1 : (place + 1) * third - 1]
        t2[box] += 200 * (kind < 2)
        adc[box] += 200 * (kind != 1)
        label[box] = (1, 2, 0)[kind]
    return (t2.astype(np.int16), adc.astype(np.float32)), label, spacing


def image_of(voxels, number):
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(SPACINGS[number % 3])
    image.SetOrigin((5.0 * number, -20.0, 3.5))
    c, s = np.cos(OBLIQUE), np.sin(OBLIQUE)
    if number % 2:
        image.SetDirection((1, 0, 0, 0, c, -s, 0, s, c))
    return image


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Dataset007_Lesion, as nnU-Net 2 wants it."""
    folder = tmp_path_factory.mktemp("nnUNet_raw") / "Dataset007_Lesion"
    for number in range(CASES + 2):
        end, name = "Tr" if number < CASES else "Ts", f"site_{number:03d}"
        channels, label, _ = case(number)
        orientation = ORIENTATIONS[number % 3]
        for k, voxels in enumerate(channels):
            path = folder / f"images{end}" / f"{name}_{k:04d}.nii.gz"
            write(path, image_of(voxels, number), orientation)
        write(folder / f"labels{end}" / f"{name}.nii.gz", image_of(label, number), orientation)
    described = {
        "channel_names": {"0": "T2", "1": "ADC"},
        "labels": {"background": 0, "lesion": 1, "cyst": 2},
        "numTraining": CASES,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(described))
    return folder


def train(system, data, folder, *flags):
    with helpers.plain_networks(), running.unexported():
        words = f"--data_dir={data}", f"--work_dir={folder}", f"--folds={FOLDS}"
        running.train(system, *COMMON, *SYSTEMS[system], *words, *flags)
    return folder


@pytest.fixture(scope="module", params=SYSTEMS)
def folds(request, data, tmp_path_factory):
    """(system, the run of each fold)"""
    folder = tmp_path_factory.mktemp(request.param)
    numbers = range(1, FOLDS + 1)
    return request.param, [
        train(request.param, data, folder / f"fold_{k}", f"--fold={k}") for k in numbers
    ]


@pytest.fixture(scope="module")
def model(folds):
    """The folder of versions of one model of all folds."""
    system, of_folds = folds
    mirrors = ["--mirrors"] * (system == "fetal_head")
    output = of_folds[0].parent / "model"
    running.call("ensemble", *of_folds, f"--output={output}", *mirrors)
    return output


def test_every_case_is_scored_once_by_the_fold_that_never_saw_it(folds, tmp_path):
    _, of_folds = folds
    running.call("folds", *of_folds, f"--output={tmp_path / 'all'}")
    rows = tables.read(tmp_path / "all")
    names = [f"site_{number:03d}" for number in range(CASES)]
    methods = dict.fromkeys((row["method"], row["structure"]) for row in rows)
    for key in methods:
        of_key = [row["case"] for row in rows if (row["method"], row["structure"]) == key]
        assert of_key == names
    facts = [runs.load(run).facts for run in of_folds]
    assert all(fact["channels"] == ["T2", "ADC"] for fact in facts)
    # The median of all six, the same for each fold: (2 + 0.8 + 1.5 mm)
    assert [fact["grid"] for fact in facts] == [pytest.approx([1.5, 1.0, 1.0])] * FOLDS


def test_what_is_served_is_what_predict_writes(folds, model, data, tmp_path, caplog):
    """Voxel by voxel, on each file's own grid."""
    system, _ = folds
    scans = f"--input={data / 'imagesTs'}"
    running.call("predict", f"--model={model}", scans, f"--output={tmp_path / 'predicted'}")
    models = rest_server.Models({"lesion": model})
    with rest_server.Server(models) as server:
        where = f"--server={server.address}", "--model=lesion", scans
        running.call("client", *where, f"--output={tmp_path / 'served'}")
    assert "HU" not in caplog.text and "spacing" not in caplog.text
    _, served = models.find("lesion")
    seen = set()
    for number in range(CASES, CASES + 2):
        name = f"site_{number:03d}"
        files = [data / "imagesTs" / f"{name}_{k:04d}.nii.gz" for k in range(2)]
        ours, theirs = (
            sitk.ReadImage(str(tmp_path / of / f"{name}.nii.gz")) for of in ("predicted", "served")
        )
        first = sitk.ReadImage(str(files[0]))
        for result in (ours, theirs):
            assert result.GetSize() == first.GetSize()
            np.testing.assert_allclose(result.GetSpacing(), first.GetSpacing(), rtol=1e-6)
            np.testing.assert_allclose(result.GetOrigin(), first.GetOrigin(), atol=1e-4)
            np.testing.assert_allclose(result.GetDirection(), first.GetDirection(), atol=1e-5)
        label = sitk.GetArrayFromImage(ours)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(theirs), label)
        np.testing.assert_array_equal(by_hand(served, files), label)
        seen |= set(np.unique(label))
    models.close()
    assert seen == ({0, 1} if system == "fetal_head" else {0, 1, 2})


def by_hand(served, files):
    """The label of raw files, through nothing of ours but the graph."""
    channels = [sitk.ReadImage(str(file)) for file in files]
    own = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(channels[0].GetDirection())
    channels = [sitk.DICOMOrient(channel, "LPS") for channel in channels]
    voxels = np.stack([sitk.GetArrayFromImage(c).astype(np.float32) for c in channels], axis=-1)
    given = {"image_bytes": [voxels.tobytes()], "shape": np.array([voxels.shape], np.int32)}
    given["dtype"] = [b"float32"]
    given["spacing"] = np.array([channels[0].GetSpacing()[::-1]], np.float32)
    raw = served("serving_spacing_bytes", given)["label_bytes"][0]
    label = sitk.GetImageFromArray(np.frombuffer(raw, np.uint8).reshape(voxels.shape[:3]))
    label.CopyInformation(channels[0])
    return sitk.GetArrayFromImage(sitk.DICOMOrient(label, own))


def test_both_channels_are_looked_at_and_their_order_matters(folds, model, data, tmp_path):
    """What is bright in ADC alone is no lesion, and swapped channels are another image."""
    first, second = (data / "imagesTs" / f"site_006_{k:04d}.nii.gz" for k in range(2))
    answers = []
    for number, given in enumerate((f"{first},{second}", f"{second},{first}")):
        output = tmp_path / str(number)
        running.call("predict", f"--model={model}", f"--input={given}", f"--output={output}")
        (file,) = output.glob("*.nii.gz")
        answers.append(sitk.DICOMOrient(sitk.ReadImage(str(file)), "LPS"))
    ours, swapped = map(sitk.GetArrayFromImage, answers)
    truth = sitk.DICOMOrient(sitk.ReadImage(str(data / "labelsTs" / "site_006.nii.gz")), "LPS")
    truth = sitk.GetArrayFromImage(truth)
    assert helpers.dice(ours == 1, truth == 1) > 0.4
    if folds[0] == "multi_organ":
        assert helpers.dice(ours == 2, truth == 2) > 0.6 > helpers.dice(swapped == 2, truth == 2)


# What a user may get wrong


def test_folds_that_are_no_model_of_one_data_set(folds, data, tmp_path, capsys, caplog):
    _, of_folds = folds
    ensembles.load(of_folds[:2])
    assert "The model is the mean of 2 of 3 folds, without 3." in caplog.text
    with pytest.raises(SystemExit) as ended:
        running.call("folds", *of_folds[:2], f"--output={tmp_path / 'all'}")
    error = capsys.readouterr().err
    assert ended.value.code == 1 and "lacks 3 of the 3 folds; expected each" in error
    other = tmp_path / "other"
    other.mkdir()
    facts = json.loads((of_folds[2] / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(facts | {"cases_fingerprint": "another"}))
    for command, told in (
        ("ensemble", f"a fold of other cases than {of_folds[0]}; expected folds"),
        (
            "folds",
            f"made of other cases than {of_folds[0]}; expected runs that differ in fold alone",
        ),
    ):
        with pytest.raises(SystemExit) as ended:
            running.call(command, *of_folds[:2], other, f"--output={tmp_path / 'no'}")
        error = capsys.readouterr().err
        assert ended.value.code == 1 and error.startswith(f"error: {other}: {told}"), error


def test_runs_that_learnt_other_things_are_refused_or_told_of(folds, tmp_path, caplog):
    _, (first, second, _) = folds
    facts = json.loads((second / "config.json").read_text())

    def changed(**changes):
        (second / "config.json").write_text(json.dumps(facts | changes))
        caplog.clear()
        ensembles.load([first, second])

    try:
        changed(flags=facts["flags"] | {"seed": 7})
        told = "drawn in different ways: 3 folds of seed 0 and 3 folds of seed 7"
        assert told in caplog.text and "without" not in caplog.text
        alone = {"learnt": ["0123456789abcdef"]}
        changed(seen=alone)
        assert "in common" not in caplog.text  # as two folds of two have none
        changed(seen=alone, cases_fingerprint=None, data_fingerprint="another")
        assert f"{second} has no training case in common with {first}" in caplog.text
        before = json.loads((first / "config.json").read_text())
        of_one = before | {"flags": before["flags"] | {"foreground": [1]}}
        (first / "config.json").write_text(json.dumps(of_one))
        try:
            changed(flags=facts["flags"] | {"foreground": [1]})
            with pytest.raises(UserError, match=r"has the `foreground` .*2.*expected"):
                changed(flags=facts["flags"] | {"foreground": [2]})
        finally:
            (first / "config.json").write_text(json.dumps(before))
    finally:
        (second / "config.json").write_text(json.dumps(facts))


def test_channels_that_a_data_set_tells_in_another_order(tmp_path, caplog):
    images = tmp_path / "imagesTs"
    images.mkdir()
    for names in ({}, {"0": "T2", "1": "ADC"}):
        (tmp_path / "dataset.json").write_text(json.dumps({"channel_names": names}))
        datasets.require_channels(images, ("T2", "ADC"))
    assert not caplog.text
    (images / "dataset.json").write_text(json.dumps({"channel_names": {"0": "T1", "1": "ADC"}}))
    datasets.require_channels(images / "scan_0000.nii.gz", ("T2", "ADC"))
    assert "has the channels T1, ADC, and the model T2, ADC, in this order" in caplog.text
    (images / "dataset.json").write_text(json.dumps({"channel_names": {"0": "ADC", "1": "T2"}}))
    with pytest.raises(UserError, match=r"has the channels ADC, T2; expected the order T2, ADC"):
        datasets.require_channels(images, ("T2", "ADC"))
    datasets.require_channels(images, ("0",))


def test_another_number_of_channels_than_the_model_takes(folds, model, data, tmp_path, capsys):
    first, second = (data / "imagesTs" / f"site_006_{k:04d}.nii.gz" for k in range(2))
    alone = tmp_path / "site_006_0000.nii.gz"
    alone.write_bytes(first.read_bytes())
    for given, told in (
        (alone, r"site_006_0001.nii.gz: is missing; expected 2 channels, site_006_0000.nii.gz to"),
        (f"{first},{second},{first}", "has 3 channels; expected 2"),
    ):
        with pytest.raises(SystemExit) as ended:
            running.call("predict", f"--model={model}", f"--input={given}", f"--output={tmp_path}")
        error = capsys.readouterr().err
        assert ended.value.code == 1 and re.search(told, error) and error.count("error") == 1
