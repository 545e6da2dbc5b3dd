"""One orientation: a scan stored in any of the 48 is trained on, segmented and scored alike.

Left and right organs look the same, and the models tell them apart by where they lie in the array:
whoever forgets to turn a scan, or to turn its label back, exchanges them.
"""

import functools
import itertools
import json
import logging
import re
import shutil

import numpy as np
import pytest
import rest_server
import running
import SimpleITK as sitk
import tensorflow as tf
from helpers import contents, plain_networks

from tf_autoctx import export
from tf_autoctx.data import datasets, images
from tf_autoctx.errors import UserError
from tf_autoctx.systems.multi_organ import configuration
from tf_autoctx.systems.multi_organ.system import MultiOrganSystem
from tf_autoctx.systems.shared import caching, checks, prediction
from tf_autoctx.training import runs

PAIRS = ("LR", "PA", "SI")
CODES = [
    "".join(letters)
    for pairs in itertools.permutations(PAIRS)
    for letters in itertools.product(*pairs)
]
LABELS = {1: "left", 2: "right"}


def scan(seed=0, size=(9, 12, 15)):
    """(image, label) in LPS, (z, y, x): two bright balls in noise, 1 on the left and 2 on the
    right, where x is large and small."""
    rng = np.random.default_rng(seed)
    voxels, label = rng.normal(-50, 20, size), np.zeros(size, np.uint8)
    grid = np.indices(size)
    for value, x in ((2, 4), (1, size[2] - 4)):
        centre = np.array([4 + seed % 2, 6, x])[:, None, None, None]
        label[((grid - centre) ** 2).sum(0) < 7] = value
    voxels[label > 0] += 400
    pair = []
    for array in (voxels.astype(np.int16), label):
        image = sitk.GetImageFromArray(array)
        image.SetSpacing((1.0, 1.5, 2.0))
        image.SetOrigin((-30.0, 12.5, 871.25))
        pair.append(image)
    return tuple(pair)


def stored(image, code):
    """The same image in another orientation, not resampled."""
    turned = sitk.DICOMOrient(image, code)
    assert (
        sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(turned.GetDirection())
        == code
    )
    return turned


def test_there_are_48_orientations():
    assert len(set(CODES)) == 48


def geometry(image):
    return image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection()


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_every_orientation_is_read_as_one_and_written_back(tmp_path, suffix):
    image, _ = scan()
    for code in CODES:
        path = tmp_path / f"a{suffix}"
        sitk.WriteImage(stored(image, code), str(path))
        read = images.read(path)
        assert read.orientation == code and read.millimetres == (2.0, 1.5, 1.0)
        np.testing.assert_array_equal(read.array, sitk.GetArrayFromImage(image))
        np.testing.assert_allclose(read.image.GetOrigin(), image.GetOrigin(), atol=1e-4)
        images.write(path.with_name(f"b{suffix}"), read.like(read.array))
        before, after = (sitk.ReadImage(str(tmp_path / f"{name}{suffix}")) for name in "ab")
        assert geometry(before) == geometry(after)
        np.testing.assert_array_equal(*map(sitk.GetArrayFromImage, (before, after)))


@pytest.mark.parametrize("seed", range(20))
def test_oblique_axes_go_to_the_nearest_permutation(tmp_path, seed):
    rng = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(np.eye(3) + 0.2 * rng.normal(size=(3, 3)))
    rotation *= np.sign(np.diag(rotation))
    rotation = rotation[:, rng.permutation(3)] * rng.choice([-1, 1], 3)
    image = sitk.GetImageFromArray(np.arange(60, dtype=np.float32).reshape(3, 4, 5))
    image.SetSpacing((1.0, 1.5, 2.0))
    image.SetDirection(rotation.ravel())
    sitk.WriteImage(image, str(tmp_path / "a.nrrd"))
    read = images.read(tmp_path / "a.nrrd")
    axes = np.reshape(read.image.GetDirection(), (3, 3))
    assert np.all(np.diag(axes) > 0.7)  # within 45 degrees
    # Every voxel lies where it lay.
    for index in np.ndindex(3, 4, 5):
        place = read.image.TransformIndexToPhysicalPoint(
            [int(i) for i in np.argwhere(read.array == 20 * index[0] + 5 * index[1] + index[2])[0]][
                ::-1
            ]
        )
        expected = image.TransformIndexToPhysicalPoint(index[::-1])
        np.testing.assert_allclose(place, expected, atol=1e-9)
    images.write(tmp_path / "b.nrrd", read.like(read.array))
    before, after = (sitk.ReadImage(str(tmp_path / f"{name}.nrrd")) for name in "ab")
    np.testing.assert_array_equal(*map(sitk.GetArrayFromImage, (before, after)))
    np.testing.assert_allclose(before.GetDirection(), after.GetDirection(), atol=1e-15)


def test_a_label_may_be_stored_in_another_orientation_than_its_image(tmp_path):
    image, label = scan()
    paths = []
    for name, volume, code in (("image", image, "RAS"), ("label", label, "SLP")):
        paths.append(tmp_path / f"{name}.nii.gz")
        sitk.WriteImage(stored(volume, code), str(paths[-1]))
    case = datasets.Case("a", *map(str, paths), "a")
    _, read = datasets.read_case(case, merge=False)
    np.testing.assert_array_equal(read, sitk.GetArrayFromImage(label))


# The two-organ recipe


def two_organs(image):
    """What is bright: 1 where x is large, 2 where it is small, as a network would learn it."""
    bright, x = image > 100, tf.range(tf.shape(image)[3])
    on_left = (2 * x >= tf.shape(image)[3])[None, None, None, :, None]
    label = tf.where(bright, tf.where(on_left, 1, 2), 0)
    probability = tf.concat([tf.cast(label == k, tf.float32) for k in range(3)], axis=-1)
    return {"label": tf.cast(label, tf.uint8), "probability": probability}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A SavedModel in a folder of versions."""
    directory = tmp_path_factory.mktemp("model") / "multi_organ"
    card = {"system": "multi_organ", "labels": LABELS, "orientation": "LPS", "spacing": []}
    export.write(directory, export.Exported({"serving_default": two_organs}, {}, card))
    return directory


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """A folder with one scan in all orientations, and its labels: (folder, {code: label})."""
    folder = tmp_path_factory.mktemp("scans")
    image, label = scan()
    for code in CODES:
        sitk.WriteImage(stored(image, code), str(folder / f"{code}.nii.gz"))
    return folder, {code: stored(label, code) for code in CODES}


def check(results, scans):
    """Both organs are found whole, on each side, in each file's own geometry."""
    folder, labels = scans
    for code, truth in labels.items():
        result = sitk.ReadImage(str(results / f"{code}.nii.gz"))
        assert geometry(result) == geometry(sitk.ReadImage(str(folder / f"{code}.nii.gz")))
        voxels, true_voxels = map(sitk.GetArrayFromImage, (result, truth))
        for value in LABELS:
            both = ((voxels == value) & (true_voxels == value)).sum()
            assert 2 * both / ((voxels == value).sum() + (true_voxels == value).sum()) == 1, code


def test_predict_tells_left_from_right_in_all_orientations(model, scans, tmp_path):
    running.call("predict", f"--model={model}", f"--input={scans[0]}", f"--output={tmp_path}")
    check(tmp_path, scans)


def test_masks_and_probabilities_are_turned_back_too(model, scans, tmp_path):
    path = scans[0] / "ASR.nii.gz"
    where = (f"--model={model}", f"--input={path}", f"--output={tmp_path}")
    running.call("predict", *where, "--masks", "--probabilities")
    truth = sitk.GetArrayFromImage(scans[1]["ASR"])
    for value, name in LABELS.items():
        for kind in ("masks", "probabilities"):
            result = sitk.ReadImage(str(tmp_path / kind / name / "ASR.nii.gz"))
            np.testing.assert_array_equal(sitk.GetArrayFromImage(result), truth == value)


def test_the_client_tells_left_from_right_in_all_orientations(model, scans, tmp_path):
    models = rest_server.Models({"multi_organ": model})
    try:
        with rest_server.Server(models) as server:
            where = (f"--server={server.address}", f"--input={scans[0]}", f"--output={tmp_path}")
            running.call("client", "--model=multi_organ", *where, "--requests_in_flight=2")
    finally:
        models.close()
    check(tmp_path, scans)


# Training


def write_data(folder, codes):
    """A data set of scans stored in the orientations."""
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for seed, code in enumerate(codes):
        for kind, volume in zip(("images", "labels"), scan(seed, (16, 20, 24))):
            sitk.WriteImage(stored(volume, code), str(folder / kind / f"case_{seed}.nii.gz"))


def test_the_cache_of_mixed_orientations_is_that_of_one(tmp_path):
    system = MultiOrganSystem(configuration.MultiOrgan(downsampling=(2, 1)), LABELS)
    made = []
    for name, codes in (("same", ["LPS"] * 48), ("mixed", CODES)):
        write_data(tmp_path / name, codes)
        cases = datasets.load(tmp_path / name, seed=0)
        read = system.reader(None, LABELS)
        cached = caching.cached(cases.train, tmp_path / "cache" / name, read, system)
        made.append([{key: contents(path) for key, path in e.items()} for e in cached])
    assert len(made[0]) == 38 and made[0] == made[1]


TINY = (
    "--base_filters=2",
    "--patch_size=16",
    "--tile_size=16",
    "--levels=1",
    "--downsampling=1",
    "--batch_size=2",
    "--steps=4",
    "--samples_per_epoch=4",
    "--precision=float32",
)
train = functools.partial(running.train, "multi_organ", *TINY)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Runs on one data set, stored in LPS and in mixed orientations: {name: folder}."""
    folder = tmp_path_factory.mktemp("trained")
    with running.unexported(), plain_networks():
        for name, codes in (("same", ["LPS"] * 6), ("mixed", CODES[3::8])):
            write_data(folder / f"data_{name}", codes)
            train(f"--data_dir={folder / f'data_{name}'}", f"--work_dir={folder / name}")
    return folder


def test_training_on_mixed_orientations_learns_and_scores_the_same(trained):
    weights, scores = [], []
    for name in ("same", "mixed"):
        (network,) = (
            MultiOrganSystem.of_run(runs.load(trained / name))
            .finished(runs.load(trained / name))
            .values()
        )
        weights.append(network.get_weights())
        scores.append((trained / name / "evaluation" / "scores.csv").read_text())
    for same, mixed in zip(*weights, strict=True):
        np.testing.assert_array_equal(same, mixed)
    assert scores[0] == scores[1]


def test_a_run_records_the_orientation(trained):
    assert json.loads((trained / "mixed" / "config.json").read_text())["orientation"] == "LPS"


@pytest.fixture
def before(trained, tmp_path):
    """Makes a run folder as it was before volumes were turned."""

    def make(name):
        path = trained / name / "config.json"
        facts = json.loads(path.read_text())
        del facts["orientation"]
        return runs.Run(trained / name, facts)

    return make


def test_a_run_of_before_gets_a_warning(before, caplog):
    with caplog.at_level(logging.WARNING):
        MultiOrganSystem.of_run(before("mixed"))
    assert caplog.text.count("made before volumes were brought to LPS") == 1


def test_an_export_of_before_gets_a_warning(tmp_path, caplog):
    for card, count in (({}, 1), ({"orientation": "LPS"}, 0)):
        card |= {"system": "multi_organ", "labels": LABELS}
        directory = tmp_path / str(count)
        export.write(directory, export.Exported({"serving_default": two_organs}, {}, card))
        caplog.clear()
        prediction.load(directory)
        assert caplog.text.count("made before volumes were brought to LPS") == count


def test_a_model_of_another_orientation_is_refused(tmp_path):
    card = {"system": "multi_organ", "labels": LABELS, "orientation": "RAS"}
    export.write(tmp_path, export.Exported({"serving_default": two_organs}, {}, card))
    with pytest.raises(UserError, match="in the orientation 'RAS'; expected LPS"):
        prediction.load(tmp_path)


def test_a_run_of_before_goes_on_where_turning_changes_nothing(trained, before):
    for name, refused in (("same", False), ("mixed", True)):
        cases, run = datasets.load(trained / f"data_{name}", seed=0), before(name)
        if refused:
            with pytest.raises(UserError, match=r"case_\d.nii.gz is stored as \w+; expected anoth"):
                checks.require_stored_so(run.folder, run.facts, cases)
        else:
            checks.require_stored_so(run.folder, run.facts, cases)
    checks.require_stored_so(trained, {"orientation": "LPS"}, cases)


def test_going_on_with_a_run_of_before_is_refused_by_its_command(trained, tmp_path, capsys):
    shutil.copytree(trained / "mixed", tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    facts = json.loads(path.read_text())
    del facts["orientation"]
    path.write_text(json.dumps(facts))
    with pytest.raises(SystemExit):
        train(f"--data_dir={trained / 'data_mixed'}", f"--work_dir={tmp_path / 'run'}")
    assert "this run was trained before volumes were brought to LPS" in capsys.readouterr().err


def test_the_readme_of_serving_turns_a_scan_and_its_label_back(tmp_path, monkeypatch):
    text = (running.ROOT / "serving" / "README.md").read_text("utf-8")
    (example,) = (code for code in re.findall(r"(?s)```python\n(.*?)```", text) if "LPS" in code)
    image, label = scan()
    sitk.WriteImage(stored(image, "PIR"), str(tmp_path / "scan.nii.gz"))
    assert example.count("volume * 0") == 1
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(example.replace("volume * 0", "(volume > 200).astype('uint8')"), names)
    np.testing.assert_array_equal(names["volume"], sitk.GetArrayFromImage(image))
    truth = sitk.GetArrayFromImage(stored(label, "PIR")) > 0
    np.testing.assert_array_equal(sitk.GetArrayFromImage(names["label"]), truth)
