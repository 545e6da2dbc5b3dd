"""Models that come with the package: each is loaded by its name, alone and as a start, and segments
its real image as well as it did when it was chosen."""

import csv
import json
import pathlib
import re

import cpp_loader
import numpy as np
import pytest
import running
import SimpleITK as sitk

import tf_autoctx
from tf_autoctx import biometry, errors, export, shipped
from tf_autoctx.commands import predict
from tf_autoctx.data import images
from tf_autoctx.models import layers
from tf_autoctx.systems.shared import initial, prediction, registry
from tf_autoctx.training import runs

ROOT = pathlib.Path(__file__).resolve().parent.parent
LARGEST = 3_000_000  # bytes of graph and weights
LICENCES = {"hc18_head": "CC BY 4.0", "head_neck": "MIT", "hippocampus": "CC BY-SA 4.0"}
# DSC (%) of the example, as it was when the model was trained.
SCORES = {
    "hc18_head": {"head": 98.08},
    "head_neck": {
        "brainstem": 81.14,
        "spinal cord": 61.65,
        "right parotid": 66.67,
        "left parotid": 65.08,
        "mandible": 82.96,
    },
    "hippocampus": {"head": 89.89},
}
NAMES = list(SCORES)
COMMON = ("--steps=1", "--samples_per_epoch=1", "--precision=float32", "--learning_rate=0")
# Trainings on tiny phantoms of networks such as those of the models.
TINY = {
    "renderer": ("--size=16", "--phantom_size=24,24", "--phantom_cases=4,1"),
    "fetal_head": ("--phantom_size=24,16,28", "--phantom_cases=3,1"),
    "multi_organ": (
        "--patch_size=16",
        "--tile_size=16",
        "--phantom_size=24,28,40",
        "--phantom_spacing=6",
        "--phantom_cases=3,1",
    ),
}


def folder(name):
    return shipped.FOLDER / name


def test_the_example_of_head_neck_lies_as_its_header_says():
    """In LPS the last axis counts to the left, the one before to the back, the first upwards."""
    label = images.read(example_label("head_neck")).array
    stem, cord, right, left, mandible = (np.argwhere(label == k).mean(0) for k in range(1, 6))
    assert stem[0] > cord[0] and mandible[1] < stem[1] < cord[1] and right[2] < left[2]


def example_label(name):
    (path,) = folder(name).glob("example_label.*")
    return path


def card(name):
    return json.loads((folder(name) / export.CARD).read_text())


@pytest.fixture(scope="module", params=NAMES)
def predicted(request, tmp_path_factory):
    """(name, folder of results) of a model on its example, by the command, from another folder."""
    results = tmp_path_factory.mktemp(request.param)
    given = f"--input={tf_autoctx.example(request.param)}", f"--output={results}"
    running.call("predict", f"--model={request.param}", *given, "--measurements", "--masks")
    return request.param, results


def test_the_models_are_those_that_help_and_documents_name():
    assert shipped.names() == sorted(NAMES)
    told = predict.command.flags()["model"].help
    page = (ROOT / "docs" / "shipped_models.md").read_text(encoding="utf-8")
    assert all(name in told and f"`{name}`" in page for name in NAMES)


def test_an_example_is_segmented_as_well_as_ever(predicted):
    name, results = predicted
    (file,) = results.glob("example.*")
    found, truth = images.read(file), images.read(example_label(name))
    labels = {int(value): structure for value, structure in card(name)["labels"].items()}
    scores = tf_autoctx.score(found.array, truth.array, truth.millimetres, labels)
    dice = {structure: score["DSC_percent"] for structure, score in scores.items()}
    assert dice == pytest.approx(SCORES[name], abs=0.3)


def test_measurements_are_in_mm(predicted):
    name, results = predicted
    truth = images.read(example_label(name))
    with open(results / "measurements.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    values = [int(value) for value in card(name)["labels"]]
    assert [line["structure"] for line in lines] == list(card(name)["labels"].values())
    for value, line in zip(values, lines, strict=True):
        mask = truth.array == value
        size = mask.sum() * np.prod(truth.millimetres)
        flat = mask.ndim == 2
        told = float(line["area_mm2" if flat else "volume_mL"])
        assert told == pytest.approx(size if flat else size / 1000, rel=0.04 if flat else 0.5)
    if name == "hc18_head":
        for key, mm in biometry.head(mask, truth.millimetres).items():
            assert 20 < mm < 400 and float(line[key]) == pytest.approx(mm, rel=0.03)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_small_whole_and_tells_where_it_comes_from(name):
    export.require_whole(folder(name))
    of_model = [folder(name) / export.GRAPH, *(folder(name) / "variables").iterdir()]
    assert sum(path.stat().st_size for path in of_model) <= LARGEST
    told = card(name)
    (method,) = told["metrics"].values()
    assert list(method) == list(told["labels"].values())  # held-out scores
    assert all(score["n"] >= 9 for score in method.values())
    licence = (folder(name) / "LICENSE").read_text()
    assert LICENCES[name] in licence and "https://" in licence and "example" in licence
    for path in folder(name).rglob("*"):
        if path.is_file():
            private = re.search(rb"/(tmp|work|root|home|Users)/", path.read_bytes())
            assert not private, f"{path}: {private}"
    paths = [told["config"][key] for key in ("data_dir", "work_dir", "initial_weights")]
    assert not any(pathlib.PurePath(path).is_absolute() for path in paths)


def test_they_tell_what_they_have_seen_and_how_large_it_was():
    """But hc18_head, whose files were converted, and which sees pixels."""
    assert not {"seen"} & card("hc18_head").keys()
    for name, learnt, validated in (("head_neck", 29, 7), ("hippocampus", 144, 16)):
        told = card(name)
        assert [len(told["seen"][kind]) for kind in ("learnt", "validated")] == [learnt, validated]
        example = images.read(tf_autoctx.example(name))
        extent = np.multiply(example.array.shape, example.millimetres)
        smallest, largest = np.array(told["extent"])
        assert (extent >= 0.7 * smallest).all() and (extent <= 1.3 * largest).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_server_can_run_it(name, tmp_path):
    """Every signature, in TensorFlow's C++ loader, which answers as `load` does."""
    size = (40, 36) if card(name)["system"] == "renderer" else (10, 14, 18)
    image = np.random.default_rng(0).integers(0, 255, (2, *size)).astype(np.uint8)
    running.check_export(folder(name), image, tmp_path)
    image = images.read(tf_autoctx.example(name))
    label = tf_autoctx.load(name)(image.array, image.millimetres)["label"]
    voxels = {"image": image.array[None, ..., None].astype(np.float32)}
    spacing = {"spacing": np.array([image.millimetres], np.float32)} if card(name)["grid"] else {}
    model = cpp_loader.CppModel(folder(name))
    served = model("serving_spacing" if spacing else "serving_default", {**voxels, **spacing})
    model.close()
    assert label.any()
    np.testing.assert_array_equal(served["label"][0, ..., 0], label)


@pytest.mark.parametrize("name", NAMES)
def test_a_training_starts_from_it(name, tmp_path, capsys, unexported):
    """What fits is the very weights of the model."""
    told = card(name)
    system, config = told["system"], told["config"]
    declaration = registry.find(system, name)
    like = {
        key: config[key]
        for key in ("variant", "base_filters", "level", "levels", "depth", "downsampling", "mode")
        if key in config
    }
    words = [
        f"--{key}={','.join(map(str, value)) if isinstance(value, list) else value}"
        for key, value in like.items()
    ]
    given = (f"--work_dir={tmp_path / 'run'}", f"--initial_weights={name}", *words)
    running.train(system, *given, *COMMON, *TINY[system])
    assert f"starts from {folder(name)}" in capsys.readouterr().out
    run = runs.load(tmp_path / "run")
    assert run.flags["initial_weights"] == name  # no path of this machine
    networks = declaration.load().of_run(run).finished(run)
    assert networks.keys() == told["weights"].keys()
    weights = initial.load(name, system)
    other_classes = system == "multi_organ"
    for network in networks:
        _, arrays = weights.of(network, network, alone=True)
        named = layers.named_weights(networks[network])
        kernels = [key for key in arrays if key.endswith("kernel")]
        fitting = [key for key in kernels if named[key].shape == arrays[key].shape]
        assert len(kernels) - len(fitting) == (3 if other_classes else 0)
        for key in fitting:
            np.testing.assert_array_equal(named[key].numpy(), arrays[key])


def test_the_lines_of_the_readme():
    """They say what they print."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"(?:^    .*\n)+", text[text.index("    import SimpleITK") :], re.M)[:1]
    code = re.sub(r"^    ", "", block, flags=re.MULTILINE)
    scope = {}
    exec(code, scope)
    label = scope["result"]["label"]
    truth = sitk.GetArrayFromImage(sitk.ReadImage(example_label("hc18_head")))
    assert tf_autoctx.score(label, truth)["label 1"]["DSC_percent"] > 95


def test_files_that_are_there_come_before_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shipped.resolved("hc18_head") == folder("hc18_head")
    (tmp_path / "hc18_head").mkdir()
    assert shipped.resolved("hc18_head") == pathlib.Path("hc18_head")
    with pytest.raises(errors.UserError, match=r"hc18_head: neither config\.json nor saved_model"):
        prediction.load("hc18_head")


def test_names_that_are_none(tmp_path):
    names = ", ".join(sorted(NAMES))
    with pytest.raises(ValueError, match=f"^hc19_head: expected one of {names}\\."):
        tf_autoctx.example("hc19_head")
    with pytest.raises(errors.FieldError, match=f"a SavedModel folder or one of {names}\\."):
        tf_autoctx.load("hc19_head")
    with pytest.raises(errors.FieldError, match=f"a SavedModel or one of {names}\\."):
        initial.load("hc19_head", "renderer")
    # A name is no path within the package.
    assert shipped.resolved("hc18_head/variables") == pathlib.Path("hc18_head/variables")
