"""A fifth system from another package, `toy_system`, goes all the way without a change of ours."""

import ast
import csv
import json
import pathlib
import re
import shutil
import textwrap
import tomllib

import helpers
import keras
import numpy as np
import pytest
import rest_server
import running
from toy_system import command, system
from toy_system.configuration import DECLARATION, Toy

from tf_autoctx import configuration, errors, export, metrics
from tf_autoctx.commands import predict
from tf_autoctx.data import images
from tf_autoctx.report import tables
from tf_autoctx.systems.shared import prediction, registry
from tf_autoctx.systems.shared.stage import AdamStage, Stage
from tf_autoctx.systems.shared.system import System

HERE = pathlib.Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "adding_a_system.md"
SETTINGS = [
    "--precision=float32",
    "--strategy=single",
    "--base_filters=4",
    "--learning_rate=0.03",
    "--steps=60",
    "--samples_per_epoch=20",
    "--checkpoint_steps=7",
    "--phantom_size=20,18,22",
    "--phantom_cases=6,2",
    "--flips",
]


@pytest.fixture(scope="module", autouse=True)
def registered():
    """The toy is a system for this module alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_registered", {})
        patch.setattr(metrics, "METRICS", dict(metrics.METRICS))
        registry.register(DECLARATION)
        yield


def train(folder, *arguments):
    """Runs the toy's command in this process; the dtype policy comes back."""
    policy = keras.config.dtype_policy()
    try:
        words = running.last_of_each([f"--work_dir={folder}", *SETTINGS, *arguments])
        command.command.perform(words)
    finally:
        keras.config.set_dtype_policy(policy)


def weights(folder):
    return keras.models.load_model(folder / "segmentor" / "model.keras").get_weights()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run."""
    folder = tmp_path_factory.mktemp("runs") / "toy"
    train(folder)
    return folder


@pytest.fixture(scope="module")
def scan(run):
    """A held-out phantom: path, image, truth."""
    path = run / "phantoms" / "imagesTs" / "ball_006.nii.gz"
    truth = images.read(run / "phantoms" / "labelsTs" / path.name).array
    return path, images.read(path), truth


def test_it_learns_and_is_scored(run):
    rows = list(csv.DictReader((run / "evaluation" / "cases.csv").open()))
    about = [(row["system"], row["method"], row["case"], row["structure"]) for row in rows]
    assert about == [("toy", "toy", f"ball_00{number}", "object") for number in (6, 7)]
    assert min(float(row["DSC_percent"]) for row in rows) > 90
    names = {path.name for path in (run / "evaluation").iterdir()}
    assert {"scores.csv", "summary.json", "ball_006.png", "views"} <= names
    # What it measures itself is compared with the truth, and drawn.
    for row in rows:
        measured, true = float(row["reach_mm"]), float(row["truth_reach_mm"])
        assert 4 <= true <= 12 and float(row["reach_error_mm"]) == abs(measured - true) <= 2
    assert "agreement_reach_mm.png" in names and "agreement_reach_error_mm.png" not in names
    assert "agreement_truth_reach_mm.png" not in names
    config = json.loads((run / "config.json").read_text())
    assert config["system"] == "toy" and config["labels"] == {"1": "object"}
    assert {"base_filters", "threshold", "flips", "steps", "data_dir"} <= config["flags"].keys()


def test_its_own_metric_is_known_with_its_unit(run):
    column = metrics.column("reach_mm")
    assert (column.title, column.truth, column.is_score) == ("reach (mm)", "truth_reach_mm", False)
    assert not metrics.column("truth_reach_mm").is_score
    assert metrics.column("reach_error_mm").title == "reach error (mm)"
    rows = tables.read(run / "evaluation")
    assert "reach error (mm)" in tables.table(rows) and "truth reach" not in tables.table(rows)


def test_another_program_knows_its_metric_too(run, tmp_path):
    """Neither compare nor report has loaded the system; they ask the registry for it."""
    other = shutil.copytree(run, tmp_path / "other")
    folders = f"--evaluations={run / 'evaluation'},{other / 'evaluation'}"
    words = {
        "compare": [folders, f"--output={tmp_path / 'compared'}"],
        "report": [folders, f"--output={tmp_path / 'page.html'}"],
    }
    for name, arguments in words.items():
        script = (
            f"import sys; sys.path.insert(0, {str(HERE)!r})\n"
            "from tf_autoctx.systems.shared import registry\n"
            "from toy_system.configuration import DECLARATION\n"
            "registry.register(DECLARATION)\n"
            f"from tf_autoctx.commands.{name} import command\n"
            f"command.perform({arguments!r})"
        )
        done = running.script("-c", script)
        assert done.returncode == 0, done.stderr
    with open(tmp_path / "compared" / "comparison.csv", newline="") as file:
        compared = {row["metric"] for row in csv.DictReader(file)}
    assert "reach_error_mm" in compared and not {"reach_mm", "truth_reach_mm"} & compared
    assert "reach error (mm)" in (tmp_path / "page.html").read_text("utf-8")


def test_a_killed_run_ends_in_the_weights_of_an_unbroken_one(run, tmp_path, monkeypatch):
    validated = []

    def killed(self, graph, sample):
        validated.append(sample)
        if len(validated) > 1:  # after 40 steps; the last checkpoint is of 35
            raise KeyboardInterrupt
        return 0.5

    with monkeypatch.context() as patch:
        patch.setattr(system.ToyStage, "score", killed)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "run")
    last = sorted(path.name for path in (tmp_path / "run" / "segmentor" / "last").glob("*.index"))
    assert last == ["step-28.index", "step-35.index"]
    assert not (tmp_path / "run" / "segmentor" / "model.keras").exists()
    train(tmp_path / "run")
    for ours, theirs in zip(weights(tmp_path / "run"), weights(run), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_finished_run_goes_on_without_training_and_other_flags_are_refused(
    run, monkeypatch, capsys
):
    def losses(self, networks, batch):
        raise AssertionError("is trained already")

    monkeypatch.setattr(system.ToyStage, "losses", losses)
    train(run)
    assert "version 1 serves already" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        train(run, "--base_filters=5")
    assert "--base_filters 4 (now 5)" in capsys.readouterr().err


def test_help_is_made_of_the_configuration_without_keras(capsys):
    with pytest.raises(SystemExit) as ended:
        command.command.perform(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert ended.value.code == 0
    told = "Probability above which a voxel is the object's. Expected: a number from 0 to 1. "
    assert f"{told}Default: 0.5." in shown
    assert "(demo 200, standard 2000, paper 20000) Expected: a number of at least 1." in shown
    loaded = helpers.modules_after(
        f"import sys; sys.path.insert(0, {str(HERE)!r}); from toy_system.command import command\n"
        "assert 'threshold' in command.help()"
    )
    assert not loaded & {"keras", "tensorflow"}


def test_a_mistake_is_one_sentence(tmp_path, capsys):
    with pytest.raises(errors.FieldError, match=r"threshold=2: expected a number from 0 to 1"):
        configuration.configured(Toy, {"base_filters": 1, "threshold": 2})
    with pytest.raises(SystemExit):
        train(tmp_path, "--phantom_size=20,18")
    assert "--phantom_size" in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize("model", [".", "saved_model"])
def test_predict_takes_the_run_folder_and_the_export(run, scan, tmp_path, model):
    path, image, truth = scan
    running.call("predict", f"--model={run / model}", f"--input={path}", f"--output={tmp_path}")
    label = images.read(tmp_path / path.name)
    images.require_same_grid(label, image)
    assert helpers.dice(label.array == 1, truth == 1) > 0.8


def test_the_export_is_the_run(run, scan):
    _, image, _ = scan
    for voxels in (image.array.astype(np.float32), helpers.noise(9, 31, 12)):
        mine = prediction.load(run)(voxels, (1, 1, 1), probabilities=True)
        theirs = running.served(export.newest(run / "saved_model"), voxels[None, ..., None])
        probability = mine["probability"]["object"]
        assert probability.std() > 0
        np.testing.assert_allclose(theirs["probability"][0, ..., 0], probability, atol=1e-5)
        sure = np.abs(probability - 0.5) > 1e-4
        np.testing.assert_array_equal(theirs["label"][0, ..., 0][sure], mine["label"][sure])


def test_the_python_of_the_readme_takes_it(run, scan):
    path, image, truth = scan
    readme = (PAGE.parent.parent / "README.md").read_text("utf-8")
    block = re.search(r"^    import SimpleITK as sitk\n(?:    .*\n)+", readme, re.MULTILINE)[0]
    lines = textwrap.dedent(block).replace('tf_autoctx.example("hc18_head")', repr(str(path)))
    (call,) = re.findall(r"`(tf_autoctx\.score\(.*\))` is", readme)
    names = {"truth": truth, "spacing": image.spacing}
    exec(lines.replace('"hc18_head"', repr(str(run))), names)
    assert names["result"]["label"].shape == truth.shape
    assert eval(call, names)["label 1"]["DSC_percent"] > 90


def test_an_ensemble_with_mirror_images_tells_how_unsure_it_is(run, scan, tmp_path):
    _, image, _ = scan
    train(tmp_path / "other", "--seed=1", "--steps=5")
    both = [run, tmp_path / "other"]
    running.call("ensemble", *both, "--mirrors", f"--output={tmp_path / 'model'}")
    expected = [
        prediction.load(folder, mirrors=True)(image.array, probabilities=True) for folder in both
    ]
    mean = sum(result["probability"]["object"] for result in expected) / 2
    result = prediction.load(tmp_path / "model")(image.array, probabilities=True, uncertainty=True)
    np.testing.assert_allclose(result["probability"]["object"], mean, atol=1e-5)
    assert 0 < result["uncertainty"][result["label"] > 0].mean() < 1


def test_a_server_and_the_client(run, scan, tmp_path):
    path, _, _ = scan
    models = rest_server.Models({"toy": run / "saved_model"})
    with rest_server.Server(models) as server:
        running.call(
            "client",
            f"--server={server.address}",
            "--model=toy",
            f"--input={path}",
            f"--output={tmp_path}",
            "--probabilities",
        )
    models.close()
    mine = prediction.load(run)(images.read(path).array, probabilities=True)
    served = images.read(tmp_path / "probabilities" / path.name).array
    np.testing.assert_allclose(served, mine["probability"]["object"], rtol=2**-11, atol=1e-5)


def test_a_field_that_may_change_changes_the_next_version(run, tmp_path, capsys):
    run = shutil.copytree(run, tmp_path / "run")
    train(run, "--threshold=0.9")
    assert "version 2 serves" in capsys.readouterr().out
    voxels = helpers.noise(16, 16, 16)
    labels = [
        running.served(run / "saved_model" / version, voxels[None, ..., None])["label"]
        for version in "12"
    ]
    assert labels[0].sum() > labels[1].sum()


def test_another_packages_entry_point_is_found(tmp_path, monkeypatch):
    """The block of the page, installed: what pip writes of it is this folder."""
    (block,) = re.findall(r"```toml\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    project = tomllib.loads(block)["project"]
    (group,) = project["entry-points"]
    lines = [f"{name} = {value}" for name, value in project["entry-points"][group].items()]
    folder = tmp_path / f"{project['name']}-{project['version']}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    (folder / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines, ""]))
    monkeypatch.setattr(registry, "_registered", {})
    with pytest.raises(errors.UserError, match="here: a run of 'toy'; expected one of fetal_"):
        registry.find("toy", "here")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert registry.find("toy", "here") is DECLARATION
    (script,) = project["scripts"].values()
    module, _, name = script.partition(":")
    assert (module, getattr(command, name)) == ("toy_system.command", command.command)


def test_a_broken_package_is_a_warning_and_no_end(tmp_path, monkeypatch, caplog, capsys):
    """Of two packages the one cannot be imported and the other brings no declaration."""
    values = {"broken": "no_such_package_of_ours:DECLARATION", "nothing": "json:dumps"}
    for name, value in values.items():
        folder = tmp_path / f"{name}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (folder / "entry_points.txt").write_text(f"[{registry.GROUP}]\n{name} = {value}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        predict.command.perform(["--help"])
    assert not ended.value.code and "--tile_size" in capsys.readouterr().out
    assert caplog.text.count("the system 'broken' cannot be used") == 1
    assert caplog.text.count("the system 'nothing' cannot be used") == 1
    assert registry.find("embryo", "here").name == "embryo"
    with pytest.raises(errors.UserError, match=r"'broken' cannot be used \(ModuleNotFound"):
        registry.find("broken", "here")
    with pytest.raises(errors.UserError, match=r"it is of the type function\); expected a `Decl"):
        registry.find("nothing", "here")
    with pytest.raises(errors.UserError, match="a run of 'sliding_windows'; expected one of fetal"):
        registry.find("sliding_windows", "here")


def test_only_the_system_that_is_asked_for_is_imported():
    loaded = helpers.modules_after(
        "from tf_autoctx.systems.shared import registry; registry.find('renderer', 'here')"
    )
    assert "tf_autoctx.systems.renderer.configuration" in loaded
    assert "tf_autoctx.systems.embryo.configuration" not in loaded


def test_the_page_quotes_the_toy_and_names_every_method():
    page = PAGE.read_text("utf-8")
    files = [path.read_text() for path in sorted((HERE / "toy_system").glob("*.py"))]
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) >= 5
    for block in blocks:
        pieces = [piece for piece in re.split(r"^ *\.\.\.\n", block, flags=re.MULTILINE) if piece]
        assert all(any(piece in file for file in files) for piece in pieces), block
    for interface in (System, Stage, AdamStage):
        own = [n for n in {*vars(interface), *interface.__annotations__} if not n.startswith("_")]
        assert not [name for name in own if f"`{name}`" not in page]


def test_the_toy_takes_public_pieces_alone():
    for path in (HERE / "toy_system").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("tf_autoctx"):
                names = [*node.module.split("."), *(alias.name for alias in node.names)]
                assert not [name for name in names if name.startswith("_")]
            if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
                assert isinstance(node.value, ast.Name) and node.value.id == "self"
