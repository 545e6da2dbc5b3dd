"""What all systems share, one promise a test: seeds, the cache, export, prediction, presets."""

import dataclasses
import json
import os
import pathlib
import pickle
import subprocess
import sys
import types

import helpers
import keras
import numpy as np
import pytest
import SimpleITK as sitk
import tensorflow as tf
import test_order

from tf_autoctx import configuration, export, files, metrics
from tf_autoctx.commands import training as training_command
from tf_autoctx.commands.command_line import Given
from tf_autoctx.data import images
from tf_autoctx.errors import UserError
from tf_autoctx.systems.embryo.configuration import STAGES
from tf_autoctx.systems.embryo.sliding_windows_training import KINDS
from tf_autoctx.systems.fetal_head import training as fetal_head
from tf_autoctx.systems.fetal_head.configuration import DECLARATION, FetalHead
from tf_autoctx.systems.multi_organ import training as multi_organ
from tf_autoctx.systems.multi_organ.configuration import DECLARATION as MULTI_ORGAN
from tf_autoctx.systems.shared import (
    caching,
    exporting,
    origins,
    registry,
    results,
    stages,
)
from tf_autoctx.systems.shared.image_checks import Trained
from tf_autoctx.systems.shared.prediction import Segmentor
from tf_autoctx.systems.shared.system import System
from tf_autoctx.training import devices, loop, runs
from tf_autoctx.training.configuration import POLICIES

# Seeds and validation


def test_stages_of_a_run_have_seeds_of_their_own(tmp_path):
    seeds = {}
    heads = test_order.head_session(tmp_path / "heads")
    for level in (1, 2, 3):
        stage = fetal_head.LevelStage(level, test_order.cascade(3), heads)
        seeds[f"level {level}"] = stage.seed
    assert len(set(seeds.values())) == 3
    system = test_order.test_multi_organ.pyramid("separate", downsampling=(3, 2, 1))
    organs = test_order.test_multi_organ.session(tmp_path / "organs", [])
    levels = [multi_organ.PyramidStage(count, None, system, organs).seed for count in (1, 2, 3)]
    assert len(set(levels)) == 3
    # The peer is trained on the cases of the cascade.
    made = [*map(test_order.of_embryos, STAGES), *map(test_order.of_peer, KINDS)]
    of_embryo = [make(tmp_path / str(number))[0].seed for number, make in enumerate(made)]
    assert len(set(of_embryo)) == 6


def test_a_stage_is_validated_on_the_validation_cases_alone(tmp_path, monkeypatch):
    session, system = test_order.head_session(tmp_path), test_order.cascade(1)
    session = session.with_files(session.training[:1], session.training[1:])
    stage, seen = fetal_head.LevelStage(1, system, session), []
    stage.begin(session)
    monkeypatch.setattr(
        stage, "build", lambda: {"network": helpers.plain_usegnet((None, None, None, 1))}
    )
    monkeypatch.setattr(stage, "score", lambda _, sample: seen.append(sample["image"]) or 0.25)
    assert stages._StageTask(stage, session).validate() == {"DSC": 0.25}
    (image,) = seen
    np.testing.assert_array_equal(image, stored(session.validation[0], "image"))


def stored(entry, name):
    return test_order.pipeline.stored(entry[name], name)


@pytest.mark.parametrize("replicas", [1, 2, 4])
def test_replicas_take_the_mean_of_their_gradients(monkeypatch, replicas):
    """Keras sums them; Adam would not show whether each is a part of the mean."""

    class Taking:
        def scale_loss(self, loss):
            return loss

        def apply(self, gradients, variables):
            (self.gradient,) = gradients

    strategy = types.SimpleNamespace(num_replicas_in_sync=replicas)
    monkeypatch.setattr(tf.distribute, "get_strategy", lambda: strategy)
    variable, optimizer = keras.Variable(3.0), Taking()
    term = loop.Term(optimizer, [variable], lambda: variable.value * tf.constant([1.0, 5.0]))
    assert float(loop.minimize({"loss": term})["loss"]) == 9
    assert float(optimizer.gradient) == pytest.approx(3 / replicas)


# Who writes, and in which precision


@pytest.mark.parametrize("is_chief", [True, False])
def test_the_chief_alone_writes(tmp_path, is_chief):
    strategy = types.SimpleNamespace(extended=types.SimpleNamespace(should_checkpoint=is_chief))
    assert devices.is_chief(strategy) == is_chief
    network = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    checkpoints = test_order.checkpoints.Checkpoints(
        tmp_path, {"network": network}, {}, writes=devices.is_chief(strategy)
    )
    checkpoints.save({"step": 1}, best=True)
    runs.Run(tmp_path, {"flags": {}}, writes=devices.is_chief(strategy)).note(labels={1: "head"})
    written = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert ("config.json" in written) == ("step-1.index" in written) == is_chief


def test_a_dtype_policy_is_for_the_networks_that_are_made_meanwhile():
    before = keras.config.dtype_policy().name
    with pytest.raises(KeyError), devices.policy("mixed_bfloat16"):
        assert keras.config.dtype_policy().name == "mixed_bfloat16"
        raise KeyError
    assert keras.config.dtype_policy().name == before == "float32"


# The cache


@dataclasses.dataclass(frozen=True)
class Options:
    """Of a made-up system."""

    size: int = configuration.field(8, "That decides what is prepared.")
    tile: int = configuration.field(8, "That does not.", may_change=True)


def lies_at(folder, *, options=None, labels=None, foreground=None, fingerprint="data"):
    system = types.SimpleNamespace(
        configuration=options or Options(), labels=labels or {1: "head"}, prepare=None, grid=None
    )
    return caching.directory(folder, system, foreground, fingerprint)


def test_a_cache_of_other_data_or_options_lies_elsewhere(tmp_path):
    here = lies_at(tmp_path)
    assert here == lies_at(tmp_path, options=Options(tile=16)) and here.parent.parent == tmp_path
    others = [
        lies_at(tmp_path, **changed)
        for changed in (
            {"options": Options(size=16)},
            {"labels": {1: "liver"}},
            {"foreground": [1]},
            {"fingerprint": "others"},
        )
    ]
    assert len({here, *others}) == 5


def test_what_is_made_from_another_cache_goes_with_it(tmp_path):
    kept = [tmp_path / "level_1" / "model.keras", tmp_path / "config.json"]
    made = [tmp_path / "level_1" / "probability" / "a", tmp_path / "rendered" / "a" / "image2d"]
    here, other = lies_at(tmp_path), lies_at(tmp_path, fingerprint="others")
    for path in (*kept, *made, here / "a" / "spacing"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    caching.forget_others(tmp_path, here)
    assert all(path.exists() for path in (*kept, *made, here))
    caching.forget_others(tmp_path, other)
    assert all(path.exists() for path in kept)
    assert not any(path.exists() for path in (*made, here, tmp_path / "cache"))


# Export and prediction


class Exportable:
    """As much of a system as an export needs."""

    labels, spec, served, grid, regions = {1: "head"}, export.VOLUME, {}, None, {}
    any_voxels = False
    declaration = types.SimpleNamespace(name="made up")
    configuration = Options()
    in_precision = System.in_precision

    def served_networks(self, networks):
        return {"second": networks["second"]}

    def new_networks(self, names):
        return {name: helpers.plain(channels=1, classes=1, name=name) for name in names}

    def signatures(self, members, mirrors):
        return {}


@pytest.fixture
def exported(tmp_path, monkeypatch):
    """(precision) -> what is exported of a run of two networks, and these."""
    methods = {"level 1": {"head": 1}, "level 2": {"head": 2}}
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "summary.json").write_text(json.dumps({"methods": methods}))
    facts = {"labels": {"1": "head"}, "versions": {}, "git_revision": None, "flags": {}}
    run = runs.Run(tmp_path, {**facts, "system": "made up", "data_fingerprint": "data"})
    written = []

    def write(directory, model):
        written.append(model)
        return directory / "1"

    def made(precision):
        networks = Exportable().new_networks(["first", "second"])
        monkeypatch.setattr(export, "write", write)
        exporting.export_run(Exportable(), run, networks, precision)
        return written[-1], networks

    return made


@pytest.mark.parametrize("precision", POLICIES)
def test_an_export_of_any_precision_has_the_weights_of_the_run(exported, precision):
    model, networks = exported(precision)
    (network,) = model.networks.values()
    assert network.get_layer("head").compute_dtype == precision
    for new, own in zip(network.get_weights(), networks["second"].get_weights(), strict=True):
        np.testing.assert_array_equal(new, own)
    assert model.configuration["precision"] == model.card["precision"] == precision
    assert keras.config.dtype_policy().name == "float32"


def test_the_card_has_the_scores_of_what_is_served(exported):
    assert exported("float32")[0].card["metrics"] == {"level 2": {"head": 2}}


@pytest.mark.parametrize("background", [0, 1])
def test_probabilities_have_the_names_of_their_channels(background):
    """Those of the structures are the last; a background may be the first."""

    def predictor(image, spacing, wanted):
        channels = np.arange(1.0, 4.0)[-2 - background :]
        probability = image / image + channels
        return {"label": np.zeros(image.shape, np.uint8), "probability": probability}

    segmentor = Segmentor(MULTI_ORGAN, {2: "liver", 5: "spleen"}, Trained(), predictor)
    voxels = np.linspace(-1000, 1000, 24, dtype=np.float32).reshape(2, 3, 4)
    output = segmentor(voxels, (1, 1, 1), probabilities=True)["probability"]
    assert {name: array.mean() for name, array in output.items()} == {"liver": 3, "spleen": 4}


@pytest.mark.parametrize(
    "spacing, warns",
    [((0.81, 1, 2.3), False), ((0.79, 1, 2), True), ((1, 1, 2.5), True), ((2, 1, 1), True)],
)
def test_a_spacing_that_is_off_by_a_fifth_gets_a_warning(caplog, spacing, warns):
    Trained(spacing=[[1, 1, 1], [1, 1, 2]]).warn("ct.nii", (9, 9, 9), spacing)
    assert ("ct.nii: voxels of" in caplog.text) == warns


@pytest.mark.parametrize(
    "millimetres, warns", [(1.0, False), (0.34, False), (0.1, True), (2.9, False), (3.1, True)]
)
def test_a_volume_of_another_extent_than_all_of_the_training_gets_a_warning(
    caplog, millimetres, warns
):
    """Spacing in cm or in metres: networks that see millimetres take any other."""
    trained = Trained.of_facts({"grid": [1, 1, 1], "extent": [[30, 40, 50]] * 2, "spacing": []})
    trained.warn("mr.nii", (30, 40, 50), 3 * (millimetres,))
    assert ("mr.nii: is" in caplog.text and "mm large" in caplog.text) == warns


def test_a_system_that_a_program_registers_comes_before_ours(monkeypatch):
    mine = dataclasses.replace(DECLARATION, dimensions=2)
    monkeypatch.setattr(registry, "_registered", {})
    registry.register(mine)
    assert registry.find("fetal_head", "run") is mine
    assert registry.declarations()["fetal_head"] is mine


def test_a_result_never_takes_an_image_s_place_whatever_the_way_to_it(tmp_path):
    (tmp_path / "scans").mkdir()
    image = tmp_path / "scans" / "a.nii.gz"
    image.touch()
    (tmp_path / "link").symlink_to(tmp_path / "scans")
    images.require_own_files({str(image): [tmp_path / "out" / "a.nii.gz"]})
    for folder in (tmp_path / "scans", tmp_path / "link", tmp_path / "scans" / ".." / "scans"):
        with pytest.raises(UserError, match="is an input image and would be replaced"):
            images.require_own_files({str(image): [folder / "a.nii.gz"]})


@pytest.mark.parametrize("size", [(4, 5), (3, 4, 5)])
def test_a_mask_is_of_its_own_value(tmp_path, size):
    """Also where larger values lie beside it."""
    label = np.zeros(size, np.uint8)
    label[..., 1], label[..., 2], label[..., 3] = 2, 5, 7
    found = {"label": label, "probability": {"liver": label / 10, "spleen": 1 - label / 10}}

    class Segmenting:
        labels, dimensions, iterations = {2: "liver", 5: "spleen"}, len(size), 0
        regions = metrics.NO_REGIONS

        def __call__(self, *_, **__):
            return found

    image = images.Image.of("image.mha", sitk.GetImageFromArray(label * 1.0), (1.0, 1.0, 1.0))
    path = tmp_path / "image.mha"
    images.write(path, image.image)
    wanted = results.Results(Segmenting(), tmp_path, masks=True, suffix=".nrrd")
    made = wanted.segmented(path, image, wanted.files("a", path), progress=False)
    for file, result in made.items():
        results.write(file, result, origins.Origins(tmp_path, "model"))
    for name, value in (("liver", 2), ("spleen", 5)):
        file = sitk.ReadImage(str(tmp_path / "masks" / name / "a.nrrd"))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(file), label == value)


def test_one_probability_at_once_goes_to_the_process_that_writes():
    probability = {
        name: np.zeros((20, 30, 40), np.float32) for name in ("liver", "spleen", "aorta")
    }

    class Segmenting:
        labels, dimensions, iterations = dict(enumerate(probability, start=1)), 3, 0
        regions = metrics.NO_REGIONS

        def __call__(self, *_, **__):
            return {"label": np.zeros((20, 30, 40), np.uint8), "probability": probability}

    image = images.Image.of("a.mha", sitk.Image(40, 30, 20, sitk.sitkFloat32), (1.0, 1.0, 1.0))
    wanted = results.Results(Segmenting(), pathlib.Path("out"), True, True)
    made = wanted.segmented("a.mha", image, wanted.files("a", "a.mha"), progress=False)
    assert len(made) == 1 + 3 + 3
    for file, result in made.items():
        bytes_a_voxel = 4 if "probabilities" in file.parts else 1
        assert 0 < len(pickle.dumps(result)) - bytes_a_voxel * 20 * 30 * 40 < 2000


def test_results_are_of_an_image_as_it_is_and_of_a_model(tmp_path):
    image, result = tmp_path / "a.nii", tmp_path / "out" / "a.nii"
    result.parent.mkdir()
    for path in (image, result):
        path.write_bytes(b"abc")
    made_from, record = origins.Origins(result.parent, "model"), result.parent / origins.NAME
    with pytest.raises(UserError), made_from.noting(image, [result]):
        raise UserError("disk full")
    with pickle.loads(pickle.dumps(made_from)).noting(image, [result]):  # in another process
        assert not record.exists()
    assert record.exists()
    assert origins.Origins(result.parent, "model").is_of(result, image)
    assert not origins.Origins(result.parent, "another").is_of(result, image)
    copied = tmp_path / "copy.nii"
    copied.write_bytes(b"abc")
    assert origins.Origins(result.parent, "model").is_of(result, copied)
    os.utime(image, ns=(0, 0))
    assert origins.Origins(result.parent, "model").is_of(result, image)
    image.write_bytes(b"abd")
    assert not origins.Origins(result.parent, "model").is_of(result, image)


# What goes on


def at_stage(folder, steps, made_on, facts=()):
    """A stage level_2 and the session of a run folder."""
    settings = types.SimpleNamespace(steps=steps)
    run = runs.Run(folder, dict(facts))
    session = types.SimpleNamespace(folder=folder, settings=settings, run=run)
    return types.SimpleNamespace(name="level_2", made_on=made_on), session


@pytest.mark.parametrize(
    "steps, made_on, expected",
    [(3, "a", True), (2, "a", True), (4, "a", False), (3, "b", False), (3, None, True)],
)
def test_a_network_is_finished_for_as_many_steps_on_the_same_level(
    tmp_path, steps, made_on, expected
):
    path = tmp_path / "level_2" / stages.NETWORK
    assert not stages.is_finished(*at_stage(tmp_path, 3, "a"), [path])
    stages.save(path, helpers.plain(channels=1, classes=1, name="a"), *at_stage(tmp_path, 3, "a"))
    assert stages.is_finished(*at_stage(tmp_path, steps, made_on), [path]) == expected
    (tmp_path / "level_2" / "last").mkdir()  # whether its checkpoints are there or not
    assert stages.is_finished(*at_stage(tmp_path, steps, made_on), [path]) == expected


def test_a_network_of_another_run_is_finished_whatever_its_steps(tmp_path):
    path, network = (
        tmp_path / "level_2" / stages.NETWORK,
        helpers.plain(channels=1, classes=1, name="a"),
    )
    stages.save(path, network, *at_stage(tmp_path, 3, None))
    taken_over = {"initial_from": "another run"}
    assert stages.is_finished(*at_stage(tmp_path, 4, None, taken_over), [path])
    assert not stages.is_finished(*at_stage(tmp_path, 4, None), [path])
    (tmp_path / "level_2" / "last").mkdir()  # trained here after all
    assert not stages.is_finished(*at_stage(tmp_path, 4, None, taken_over), [path])


@pytest.mark.parametrize("steps, told", [(5, []), (6, []), (4, ["`steps` 5 (now 4)"])])
def test_steps_may_grow_and_never_shrink(tmp_path, steps, told):
    facts = {"system": "a", "flags": {"steps": 5, "name": "b"}, "data_fingerprint": "c"}
    making = runs.Making("a", {"steps": steps, "name": "d"}, "c", {"name"}, {"steps"})
    assert runs.differences(runs.Run(tmp_path, facts), making) == told


@pytest.mark.parametrize("value, told", [(1.0, []), (2.0, ["`weight` 1.0 (now 2.0)"])])
def test_a_run_of_before_there_was_a_flag_goes_on_with_what_it_did(tmp_path, value, told):
    facts = {"system": "a", "flags": {"name": "b"}, "data_fingerprint": "c"}
    flags = {"weight": value, "name": "b"}
    making = runs.Making("a", flags, "c", earlier={"weight": 1.0})
    assert runs.differences(runs.Run(tmp_path, facts), making) == told


def test_the_last_stage_of_the_embryo_has_its_own_learning_rate(tmp_path):
    _, session = test_order.of_embryos("initial")(tmp_path)
    session = dataclasses.replace(
        session, values={**session.values, "end_to_end_learning_rate": 0.5}
    )
    rates = {
        name: kind.own_session(session).settings.learning_rate
        for name, kind in test_order.embryo_training.KINDS.items()
    }
    own = session.settings.learning_rate
    assert rates == {"initial": own, "refine": own, "end_to_end": 0.5} and own != 0.5


def test_the_first_stage_of_the_embryo_has_its_own_steps(tmp_path):
    _, session = test_order.of_embryos("initial")(tmp_path)
    steps = []
    for factor in (1, 3):
        given = dataclasses.replace(session, values={**session.values, "initial_factor": factor})
        kinds = test_order.embryo_training.KINDS.items()
        steps.append({name: kind.own_session(given).settings.steps for name, kind in kinds})
    own = session.settings.steps
    same = {"initial": own, "refine": own, "end_to_end": own}
    assert steps == [same, same | {"initial": 3 * own}]


def test_a_folder_has_one_owner(tmp_path):
    code = f"from tf_autoctx import files; files.own({str(tmp_path)!r})"

    def another():
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr

    with files.owning():
        files.own(tmp_path)
        files.own(tmp_path)
        assert f"{tmp_path}: another process ({os.getpid()} on " in another()
    assert not another() and not list(tmp_path.iterdir())


# Presets


def test_a_flag_that_is_given_wins_over_the_preset():
    kinds = training_command.kinds(DECLARATION)
    values = {name: None for kind in kinds for name in configuration.rules(kind)}
    defaults = {field.name: field.default for field in dataclasses.fields(FetalHead)}
    values |= defaults | {"data_dir": "", "work_dir": "", "preset": "paper", "steps": 7}
    filled = training_command.filled(DECLARATION, Given(values, frozenset(["steps", "preset"])))
    assert filled["steps"] == 7
    assert filled["learning_rate"] == DECLARATION.presets["paper"]["learning_rate"] == 1e-5
    assert filled["work_dir"] == "runs/fetal_head"
