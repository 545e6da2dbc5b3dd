"""Networks that see a grid of millimetres: volumes of any spacing go in, and results come back on
their own grid."""

import json

import cpp_loader
import numpy as np
import pytest
import running
import SimpleITK as sitk
import tensorflow as tf
from helpers import dice, grey, randomize
from test_ensemble import finished, system_of
from test_precision import TINY

import tf_autoctx
from tf_autoctx import errors, export
from tf_autoctx.data import datasets, images
from tf_autoctx.data.configuration import Resampling
from tf_autoctx.models import layers
from tf_autoctx.systems.shared import caching, exporting, grid
from tf_autoctx.training import runs

MM = (2.0, 1.0, 1.5)  # of the grid
FLAGS = {
    "head": ("fetal_head", ()),
    "head, own grid": ("fetal_head", ("--scale=1",)),
    "organ": ("multi_organ", ()),
    "embryo": ("embryo", ()),
    "embryo, refined": ("embryo", ()),
}

pytestmark = pytest.mark.usefixtures("plain_networks")


def sizes(size, spacing, mm=MM):
    return [int(n) for n in grid.Grid(mm).size(size, np.float32(spacing))]


def test_the_size_on_the_grid_is_the_extent_in_millimetres():
    assert sizes((10, 20, 30), MM) == [10, 20, 30]
    assert sizes((10, 20, 30), (4, 0.5, 1.5)) == [20, 10, 30]
    # 10 mm are 3.33 voxels of 3 mm, 10.5 mm are 3.5 and 0.1 mm are none, where there must be one.
    assert sizes((10, 21, 1), (1, 0.5, 0.1), (3, 3, 3)) == [3, 4, 1]
    # The same for an axis of any length: voxels of 0.38 mm stay themselves.
    for n in range(1, 600):
        assert sizes((n,), (0.38,), (0.38,)) == [n]


def test_an_image_keeps_its_place_and_a_label_its_values():
    on_grid = grid.Grid(MM)
    ramp = np.arange(12, dtype=np.float32)[None, :, None, None, None] + np.zeros((1, 12, 3, 3, 1))
    ramp = ramp.astype(np.float32)
    fine = np.asarray(on_grid.image(ramp, np.float32([4, 1, 1.5])))
    assert fine.shape == (1, 24, 3, 3, 1)
    # Voxel centres: those of the new ones lie a quarter of an old voxel off.
    np.testing.assert_allclose(fine[0, 1:-1, 0, 0, 0], np.arange(0.25, 11, 0.5), atol=1e-5)
    label = np.random.default_rng(0).choice([0, 3, 7], (1, 4, 5, 6, 1)).astype(np.uint8)
    twice = np.asarray(on_grid.label(label, np.float32([4, 1, 1.5])))
    np.testing.assert_array_equal(twice, np.repeat(label, 2, axis=1))


@pytest.mark.parametrize(
    ("spacing", "told"),
    [
        (None, "its spacing is unknown; expected mm, as this model sees voxels of 2 x 1 x 1.5 mm"),
        ((1, 1), "has a spacing of"),
        ((1, 0, 1), "has a spacing of"),
        ((1, float("nan"), 1), "has a spacing of"),
        ((1000, 1000, 1000), "its spacing of 1000 x 1000 x 1000 mm makes 3.3e.11 voxels"),
        ((1, 0.1, 1), "its spacing of 1 x 0.1 x 1 mm makes an axis of 1 voxels .* fewer than 2"),
    ],
)
def test_a_spacing_that_cannot_be(spacing, told):
    with pytest.raises(errors.UserError, match=f"^scan.nii: .*{told}"):
        grid.Grid(MM).required("scan.nii", (10, 10, 10), spacing)


@pytest.mark.parametrize("value", ["", "1,2", "1,2,3,4", "1,a,2", "1,0,1", "1,-1,1", "1,inf,1"])
def test_a_flag_that_is_no_spacing(value):
    with pytest.raises(errors.FieldError, match="expected three numbers of mm above 0"):
        Resampling(value)


def test_the_flag():
    assert Resampling("1,0.8,.8").edges == (1, 0.8, 0.8)
    assert Resampling("auto").edges is Resampling("none").edges is None


def test_the_median_of_each_axis():
    spacings = [(1, 5, 0.333333), (2, 4, 0.333333), (9, 3, 0.5)]
    assert grid.median(spacings).spacing == (2, 4, 0.3333)


@pytest.fixture(scope="module", params=FLAGS)
def pair(request, tmp_path_factory):
    """(system's name, the folder of a run on a grid, that of one without, of equal weights)"""
    name, flags = FLAGS[request.param]
    folder = tmp_path_factory.mktemp("runs")
    on_grid = finished(folder / "grid", name, 1, *flags, "--spacing=2,1,1.5")
    runs.load(on_grid).note(grid=MM)
    none = finished(folder / "none", name, 1, *flags)
    if request.param == "embryo, refined":
        for run in (on_grid, none):
            network = system_of(runs.load(run)).new_networks(["refine"])["refine"]
            (run / "refine").mkdir()
            randomize(network, 1).save(run / "refine" / "model.keras")
    return name, on_grid, none


def stacked(result):
    return np.stack(list(result["probability"].values()), axis=-1)


def image_of(name, seed=0):
    return 255 * grey(*TINY[name][-1], seed=seed)


def test_a_volume_on_the_grid_is_seen_as_it_is(pair):
    name, on_grid, none = pair
    image = image_of(name)
    seen, plain = (
        tf_autoctx.load(run, "float32")(image, MM, probabilities=True) for run in (on_grid, none)
    )
    np.testing.assert_allclose(stacked(seen), stacked(plain), atol=1e-5)
    assert (seen["label"] == plain["label"]).mean() > 0.999


def test_a_volume_of_another_spacing_is_resampled_and_comes_back(pair):
    name, on_grid, none = pair
    image, spacing = image_of(name), (4.0, 1.0, 3.0)  # every second voxel of the grid along z, x
    expected = on_own_grid(none, enlarged(image), image.shape)
    seen = tf_autoctx.load(on_grid, "float32")(image, spacing, probabilities=True)
    assert seen["label"].shape == image.shape
    np.testing.assert_allclose(stacked(seen), expected, atol=1e-4)
    # It is not what the volume comes to as it is.
    as_it_is = stacked(tf_autoctx.load(on_grid, "float32")(image, MM, probabilities=True))
    assert np.abs(as_it_is - expected).max() > 0.01


def on_own_grid(run, image, size):
    """The probability of a run for an image, on the grid of a size over the same extent."""
    run = runs.load(run)
    system = system_of(run)
    networks = system.served_networks(system.finished(run))

    @tf.function(autograph=False)
    def estimated(image):
        return system.estimate(networks, image)

    estimate = estimated(image[None, ..., None])
    (probability,) = estimate.values()
    if tuple(probability.shape[1:4]) == image.shape:
        return np.asarray(layers.resize_linear(probability, size))[0]
    return np.asarray(system.decide(estimate, size)["probability"])[0, ..., -len(system.labels) :]


def enlarged(image):
    """Twice as many voxels along z and x, by SimpleITK."""
    old = sitk.GetImageFromArray(image)
    old.SetSpacing((3.0, 1.0, 4.0))
    z, y, x = image.shape
    size, mm = (2 * x, y, 2 * z), (1.5, 1.0, 2.0)
    # Outer edges at the same place.
    origin = [(m - o) / 2 for m, o in zip(mm, old.GetSpacing())]
    new = sitk.Resample(
        *(old, size, sitk.Transform(), sitk.sitkLinear, origin, mm),
        *(old.GetDirection(), 0.0, sitk.sitkFloat32, True),  # the edge goes on
    )
    return sitk.GetArrayFromImage(new)


def test_the_spacing_must_be_known(pair):
    name, on_grid, none = pair
    with pytest.raises(errors.UserError, match=r"^a\.png: its spacing is unknown; expected mm"):
        tf_autoctx.load(on_grid)(image_of(name), name="a.png")
    tf_autoctx.load(none)(image_of(name))


@pytest.fixture(scope="module")
def exported(pair):
    """(system's name, the run on a grid, the version that is exported of it)"""
    name, on_grid, _ = pair
    run = runs.load(on_grid)
    run.facts["versions"], run.facts["git_revision"] = {}, None
    system = system_of(run)
    return name, on_grid, exporting.export_run(system, run, system.finished(run))


def test_the_export_resamples_in_its_graph(exported):
    name, run, version = exported
    image, spacing = image_of(name), (4.0, 1.0, 3.0)
    expected = tf_autoctx.load(run, "float32")(image, spacing, probabilities=True)
    loaded = tf_autoctx.load(version)
    seen = loaded(image, spacing, probabilities=True)
    np.testing.assert_allclose(stacked(seen), stacked(expected), atol=1e-4)
    with pytest.raises(errors.UserError, match="its spacing is unknown"):
        loaded(image)
    card = export.read_card(version)
    assert card["grid"] == [2, 1, 1.5] and card["inputs"]["spacing"]["units"] == "mm (z, y, x)"
    assert card["inputs"]["image"]["spacing"].startswith("2 x 1 x 1.5 mm")


def test_tensorflow_serving_takes_the_spacing(exported):
    name, run, version = exported
    images = np.stack([image_of(name, seed) for seed in (0, 1)]).astype(np.uint8)
    edges = np.float32([[4, 1, 3], [2, 1, 1.5]])
    model = cpp_loader.CppModel(version)
    loaded = tf_autoctx.load(run, "float32")
    expected = [loaded(i.astype(np.float32), mm)["label"] for i, mm in zip(images, edges)]
    batch = {"image": images[..., None].astype(np.float32), "spacing": edges}
    labels = model("serving_spacing", batch)["label"][..., 0]
    np.testing.assert_array_equal(labels, expected)
    raw = {
        "image_bytes": [voxels.tobytes() for voxels in images],
        "shape": np.int32(images.shape[1:]),
        "dtype": b"uint8",
    }
    in_bytes = model("serving_spacing_bytes", {**raw, "spacing": edges})["label_bytes"]
    assert list(in_bytes) == [label.tobytes() for label in expected]
    # One for all; and without, that of the grid
    one = model("serving_spacing_bytes", {**raw, "spacing": edges[1]})["label_bytes"]
    plain = model("serving_bytes", raw)["label_bytes"]
    assert list(one) == list(plain) and one[1] == in_bytes[1] and one[0] != in_bytes[0]
    for wrong in ([0, 1, 1], [np.nan, 1, 1]):
        with pytest.raises(RuntimeError, match="spacing: expected 3 numbers of mm above 0"):
            model("serving_spacing", {**batch, "spacing": np.float32(wrong)})
    with pytest.raises(RuntimeError, match=r"makes more than 2.1e\+09 voxels of 2 x 1 x 1.5 mm"):
        model("serving_spacing", {**batch, "spacing": np.float32([4000, 1000, 3000])})  # in µm
    with pytest.raises(RuntimeError, match="makes an axis of fewer than 2 voxels"):
        model("serving_spacing", {**batch, "spacing": np.float32([4e-3, 1e-3, 3e-3])})  # in m
    model.close()


def test_an_export_on_a_grid_is_what_a_server_needs(exported, tmp_path):
    name, _, version = exported
    if name == "multi_organ":  # with large probabilities
        card = export.read_card(version)
        assert {"probabilities_spacing", "probabilities_spacing_bytes"} <= set(card["signatures"])
        model = cpp_loader.CppModel(version)
        image = image_of(name)[None, ..., None]
        given = {"image": image, "spacing": np.float32([[4, 1, 3]])}
        both = [model(f"{kind}_spacing", given) for kind in ("serving", "probabilities")]
        np.testing.assert_array_equal(*(output["label"] for output in both))
        assert list(both[0]) == ["label"] and both[1]["probability"].shape[1:4] == image.shape[1:4]
        model.close()


def test_runs_of_other_grids_are_no_ensemble(tmp_path):
    both = [finished(tmp_path / str(k), "fetal_head", k) for k in (1, 2)]
    runs.load(both[0]).note(grid=MM)
    with pytest.raises(SystemExit):
        running.call("ensemble", *both, f"--output={tmp_path / 'model'}")


@pytest.mark.parametrize("name", ["fetal_head", "multi_organ", "embryo"])
def test_a_label_that_vanishes_on_the_grid_is_refused(tmp_path, name):
    """Nearest sampling misses it: nothing is left to learn from, or to validate on."""
    system = system_of(runs.load(finished(tmp_path, name, 1, "--spacing=8,8,8")))
    system.grid = grid.Grid((8.0, 8.0, 8.0))
    label = np.zeros((24, 24, 24), np.uint8)
    label[1:3, 1:3, 1:3] = 1
    image = sitk.GetImageFromArray(label)
    image = images.Image.of("a", image, image.GetSpacing())
    case = datasets.Case("a", "a.nii", "b.nii", "a")
    with pytest.raises(errors.UserError, match=r"b\.nii: all of its label vanishes on voxels of 8"):
        caching._prepare(case, tmp_path / "cache", (image, label), system)


def test_a_structure_of_several_that_vanishes_is_told_of(tmp_path, caplog):
    """And what is to be ignored is no structure."""
    system = system_of(runs.load(finished(tmp_path, "multi_organ", 1, "--spacing=8,8,8")))
    system.grid, system.labels = grid.Grid((8.0, 8.0, 8.0)), {1: "cyst", 2: "kidney"}
    label = np.zeros((24, 24, 24), np.uint8)
    label[1:3, 1:3, 1:3], label[8:16, 8:16, 8:16] = 1, 2
    image = sitk.GetImageFromArray(label)
    image = images.Image.of("a", image, image.GetSpacing())
    case = datasets.Case("a", "a.nii", "b.nii", "a")
    caching._prepare(case, tmp_path / "cache", (image, label), system)
    assert "b.nii: cyst vanishes on voxels of 8 x 8 x 8 mm" in caplog.text
    assert "kidney" not in caplog.text
    label[8:16, 8:16, 8:16] = 255
    with pytest.raises(errors.UserError, match="all of its label vanishes"):
        caching._prepare(case, tmp_path / "other", (image, label), system)


# From the command line


def balls(folder, spacings, edge=40.0):
    """A data set of bright balls of 10 to 14 mm radius in volumes of `edge` mm."""
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    for number, spacing in enumerate(spacings):
        size = [round(edge / mm) for mm in spacing]
        grids = np.meshgrid(
            *((np.arange(n) + 0.5) * mm for n, mm in zip(size, spacing)), indexing="ij"
        )
        distance = np.sqrt(sum((x - edge / 2) ** 2 for x in grids))
        label = (distance < 10 + number % 3 * 2).astype(np.uint8)
        noise = np.random.default_rng(number).normal(0, 5, label.shape)
        for kind, array in (
            ("images", (100 * label + noise).astype(np.float32)),
            ("labels", label),
        ):
            image = sitk.GetImageFromArray(array)
            image.SetSpacing(spacing[::-1])
            sitk.WriteImage(image, str(folder / kind / f"case_{number}.nii.gz"))
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(data, run folder) of a training on cases of three spacings, whose median is 2 x 2 x 2."""
    folder = tmp_path_factory.mktemp("trained")
    spacings = [(2, 2, 2), (1, 2, 2), (4, 2, 2.5), (2, 1, 2), (2, 2, 2), (2, 4, 1)]
    data = balls(folder / "data", spacings)
    flags = ("--level=1", "--variant=USegNet", "--base_filters=4", "--steps=240")
    running.train(
        "fetal_head",
        *(f"--data_dir={data}", f"--work_dir={folder / 'run'}", "--spacing=auto"),
        *(
            *flags,
            "--precision=float32",
            "--samples_per_epoch=120",
            "--erase_probability=0",
            "--learning_rate=0.01",
        ),
    )
    return data, folder / "run"


def test_auto_is_the_median_of_the_training_cases(trained):
    _, run = trained
    facts = json.loads((run / "config.json").read_text())
    assert facts["grid"] == [2, 2, 2] and facts["flags"]["spacing"] == "auto"
    assert facts["flags"]["scale"] == 1  # of a grid that is chosen nothing is shrunk
    # What is learnt from has voxels of the grid.
    assert facts["spacing"] == [[2, 2, 2], [2, 2, 2]]
    assert facts["extent"] == [[40, 40, 40], [40, 40, 40]]
    card = json.loads((run / "saved_model" / "1" / export.CARD).read_text())
    assert card["extent"] == facts["extent"]


@pytest.mark.parametrize("of", ["run folder", "SavedModel"])
def test_spacings_in_centimetres_are_told_of(trained, of, caplog):
    data, run = trained
    model = tf_autoctx.load(run if of == "run folder" else run / "saved_model")
    file = data / "images" / "case_0.nii.gz"
    voxels = sitk.GetArrayFromImage(sitk.ReadImage(str(file))).astype(np.float32)
    assert model(voxels, (2, 2, 2))["label"].any() and "mm large" not in caplog.text
    model(voxels, (0.2, 0.2, 0.2))
    assert "is 4 x 4 x 4 mm large (z, y, x); the model was trained on 40 x 40 x 40" in caplog.text


def test_a_grid_of_few_voxels_is_told_of(tmp_path, caplog, capsys, unfinished):
    data = balls(tmp_path / "data", [(2, 2, 2), (2, 2, 2)])
    flags = ("--level=1", "--variant=USegNet", "--base_filters=2", "--steps=1")
    where = (f"--data_dir={data}", f"--work_dir={tmp_path / 'run'}")
    running.train("fetal_head", *where, *flags, "--samples_per_epoch=1", "--spacing=8,2,2")
    assert "grid: 8 x 2 x 2 mm (z, y, x), of volumes of 40 x 40 x 40 to 40 x" in (
        capsys.readouterr().out
    )
    assert "the smallest volume has 5 voxels along an axis" in caplog.text


def test_heads_of_any_spacing_are_segmented(trained, tmp_path):
    """As a network of voxels would not: see the issue that asked for it."""
    _, run = trained
    balls(tmp_path / "new", [(2, 2, 2), (1, 1, 1), (4, 4, 4), (1, 3, 2)])
    running.call(
        "predict",
        *(f"--model={run / 'saved_model'}", f"--input={tmp_path / 'new' / 'images'}"),
        f"--output={tmp_path / 'out'}",
    )
    for file in sorted((tmp_path / "new" / "labels").iterdir()):
        truth, seen = sitk.ReadImage(str(file)), sitk.ReadImage(str(tmp_path / "out" / file.name))
        assert seen.GetSize() == truth.GetSize() and seen.GetSpacing() == truth.GetSpacing()
        masks = [sitk.GetArrayFromImage(x) == 1 for x in (truth, seen)]
        assert dice(*masks) > 0.8, file.name


def test_a_run_goes_on_with_its_grid_alone(trained, capsys):
    data, run = trained
    with pytest.raises(SystemExit):
        running.train("fetal_head", f"--data_dir={data}", f"--work_dir={run}", "--spacing=none")
    assert "--spacing" in capsys.readouterr().err
