"""The precision that a finished run segments in, and what its evaluation found of bfloat16."""

import dataclasses
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import grey, randomize

import tf_autoctx
from tf_autoctx import export
from tf_autoctx.commands import predict
from tf_autoctx.commands.train_embryo import command as embryo
from tf_autoctx.commands.train_fetal_head import command as fetal_head
from tf_autoctx.commands.train_multi_organ import command as multi_organ
from tf_autoctx.commands.train_renderer import command as renderer
from tf_autoctx.errors import FieldError
from tf_autoctx.systems.renderer import online
from tf_autoctx.systems.shared import opening, precision, registry, stages
from tf_autoctx.training import devices, runs

# Of a tiny network each: (command, flags, where its networks lie, labels, size of an image)
TINY = {
    "fetal_head": (
        fetal_head,
        ("--variant=3D-DeconvNet", "--scale=0.4"),
        "level_1/model",
        {1: "a"},
        (8, 9, 8),
    ),
    "multi_organ": (
        multi_organ,
        ("--levels=1", "--tile_size=16"),
        "pyramid/model",
        {3: "a"},
        (24,) * 3,
    ),
    "embryo": (
        embryo,
        ("--depth=1", "--kernel=3", "--low_size=8", "--body_box=8", "--ventricle_box=8"),
        "initial/model",
        {2: "a", 1: "b"},
        (9, 8, 10),
    ),
    "renderer": (
        renderer,
        ("--variant=Orig-S2T", "--size=16"),
        "networks/segmentor",
        {1: "a"},
        (20, 16),
    ),
}


def made(folder, name, *arguments):
    """The folder of a finished run of a tiny network."""
    command, flags, file, labels, _ = TINY[name]
    values = dict(command.parse(["--base_filters=2", *flags, *arguments]))
    values |= {"level": 1} if name == "fetal_head" else {}
    run = runs.open_run(folder, runs.Making(name, values, "data")).note(labels=labels)
    system = registry.find(name, "test").load().of_run(run)
    keras.utils.set_random_seed(0)
    stage, _, network = file.partition("/")
    name = network if stage == "networks" else stage
    path = folder / f"{file}.keras"
    path.parent.mkdir(parents=True, exist_ok=True)
    randomize(system.new_networks([name])[name]).save(path)
    return folder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TINY)
def test_a_run_computes_in_the_precision_that_is_asked_for(tmp_path, name, monkeypatch):
    run, size = made(tmp_path, name), TINY[name][-1]
    image = 255 * grey(*size)
    outputs = {}
    for kind in ("float32", "bfloat16"):
        model = tf_autoctx.load(run, kind)
        assert model.precision == kind
        outputs[kind] = model(image, probabilities=True)["probability"]
    for structure, exact in outputs["float32"].items():
        off = np.abs(outputs["bfloat16"][structure] - exact)
        assert exact.std() > 0.01 and 0 < off.mean() < 0.02
    # By itself, where its evaluation found it the same.
    monkeypatch.setattr(devices, "bfloat16_is_faster", lambda: True)
    assert tf_autoctx.load(run).precision == "float32"
    precision.note(run, 1.0)
    assert tf_autoctx.load(run).precision == "bfloat16"
    assert keras.config.dtype_policy().name == "float32"


def test_online_rendering_computes_in_the_precision_that_is_asked_for(tmp_path, monkeypatch):
    command, _, _, labels, _ = TINY["renderer"]
    values = dict(command.parse(["--base_filters=2", "--size=16"]))
    run = runs.open_run(tmp_path, runs.Making("renderer", values, "data")).note(labels=labels)
    system = registry.find("renderer", "test").load().of_run(run)
    policies = []

    def predictor(*_):
        policies.append(keras.config.dtype_policy().name)

    monkeypatch.setattr(online, "OnlinePredictor", predictor)
    for kind in ("float32", "bfloat16"):
        system.predictor(run, {"iterations": 1}, kind)
    assert policies == ["float32", "mixed_bfloat16"]
    assert not system.predicts_as_evaluated  # the evaluation renders nothing online


def test_a_saved_model_has_a_precision_of_its_own(tmp_path):
    def segment(image):
        return {"label": tf.cast(image > 1, tf.uint8)}

    card = {"system": "fetal_head", "labels": {1: "head"}, "precision": "bfloat16"}
    export.write(tmp_path, export.Exported({"serving_default": segment}, {}, card))
    assert tf_autoctx.load(tmp_path).precision == "bfloat16"
    with pytest.raises(
        FieldError, match=r"precision=float32: .* is a SavedModel, in which this is"
    ):
        tf_autoctx.load(tmp_path, "float32")
    with pytest.raises(FieldError, match="precision=float16: expected one of auto, float32, bfl"):
        tf_autoctx.load(tmp_path, "float16")
    assert predict.command.parse(["--model=a", "--input=b", "--output=c"])["precision"] == "auto"


# The record


@pytest.mark.parametrize(
    "least, hardware, asked, expected",
    [
        (0.995, True, "auto", "bfloat16"),
        (0.9949, True, "auto", "float32"),
        (1.0, False, "auto", "float32"),
        (None, True, "auto", "float32"),
        (1.0, True, "float32", "float32"),
        (0.0, False, "bfloat16", "bfloat16"),
    ],
)
def test_auto_is_bfloat16_where_it_is_there_and_was_the_same(
    tmp_path, monkeypatch, least, hardware, asked, expected
):
    monkeypatch.setattr(devices, "bfloat16_is_faster", lambda: hardware)
    if least is not None:
        precision.note(tmp_path, least)
    assert precision.chosen(runs.Run(tmp_path, {}), asked) == expected


@pytest.mark.parametrize(
    "told, low, expected",
    [
        ("flags: avx512f avx512_bf16", 0.5, True),
        ("flags: avx512f amx_bf16", 0.79, True),
        ("flags: avx512f avx512_bf16", 0.81, False),  # as of virtual machines without AMX
        ("flags: avx512f avx512_bf16", 1.7, False),
        ("flags: avx512f", 0.5, False),
    ],
)
def test_a_cpu_computes_in_bfloat16_where_a_trial_is_faster(monkeypatch, told, low, expected):
    monkeypatch.setattr(devices.tf.config, "list_physical_devices", lambda kind: [])
    monkeypatch.setattr(devices.pathlib.Path, "read_text", lambda path: told)
    monkeypatch.delenv("TF_CONFIG", raising=False)
    monkeypatch.setattr(
        devices,
        "_convolution_seconds",
        lambda dtypes: [{"float32": 1.0, "bfloat16": low}[dtype] for dtype in dtypes],
    )
    assert devices.bfloat16_is_faster.__wrapped__() == expected
    # Workers of a cluster must come to the same.
    monkeypatch.setenv("TF_CONFIG", "{...}")
    assert devices.bfloat16_is_faster.__wrapped__() == ("bf16" in told)


def test_the_trial_computes_in_the_precision_that_it_times(monkeypatch):
    seen, convolve = [], tf.nn.conv3d

    def noted(image, kernel, *arguments):
        seen.append((image.dtype, kernel.dtype))
        return convolve(image, kernel, *arguments)

    monkeypatch.setattr(devices.tf.nn, "conv3d", noted)
    assert min(devices._convolution_seconds(("bfloat16", "float32"))) > 0
    assert seen == [(tf.bfloat16, tf.bfloat16), (tf.float32, tf.float32)] * 6


@pytest.mark.parametrize("content", ["", "[]", '{"bfloat16": "a"}', "{}"])
def test_a_damaged_record_is_none(tmp_path, monkeypatch, content):
    monkeypatch.setattr(devices, "bfloat16_is_faster", lambda: True)
    precision.note(tmp_path, 1.0)
    (tmp_path / "evaluation" / "precision.json").write_text(content)
    assert precision.chosen(runs.Run(tmp_path, {}), "auto") == "float32"


def test_labels_of_the_last_method_are_compared_structure_by_structure():
    def evaluator(voxels, spacing):
        return {"level 1": {"label": 0 * voxels}, "level 2": {"label": voxels}}

    def low(image, spacing, wanted):
        assert spacing == (1, 2, 3)
        assert image.shape == (1, 2, 2, 3, 1)
        assert not wanted.probabilities and not wanted.progress
        return {"label": np.where(image == 9, 7, image)}

    compared = precision.Compared(evaluator, low, {1: "a", 7: "b"})
    label = np.zeros((2, 2, 3), np.float32)
    label[0], label[1, 0] = 1, 7
    assert compared(label, (1, 2, 3))["level 2"]["label"] is label and compared.least == 1
    label[1, 1, 0] = 9  # 4 voxels in place of 3
    compared(label, (1, 2, 3))
    assert compared.least == pytest.approx(2 * 3 / (3 + 4))
    compared(0 * label, (1, 2, 3))
    assert compared.least == pytest.approx(6 / 7)


def test_a_network_that_is_trained_anew_takes_the_record_away(tmp_path):
    precision.note(tmp_path, 1.0)
    image = keras.Input((2, 2, 2, 1))
    network = keras.Model(image, keras.layers.Conv3D(1, 1)(image))
    session = types.SimpleNamespace(folder=tmp_path, settings=types.SimpleNamespace(steps=1))
    stages.save(
        tmp_path / "a" / "model.keras", network, types.SimpleNamespace(made_on=None), session
    )
    assert not (tmp_path / "evaluation" / "precision.json").exists()


@pytest.mark.parametrize("trained, looks", [("mixed_bfloat16", True), ("float32", False)])
def test_a_run_that_was_trained_in_bfloat16_is_evaluated_in_both(
    tmp_path, monkeypatch, trained, looks
):
    run = runs.load(made(tmp_path, "fetal_head"))
    system = registry.find("fetal_head", "test").load().of_run(run)
    strategy = devices.strategy("single")
    session = types.SimpleNamespace(
        folder=tmp_path,
        strategy=strategy,
        values={
            "precision": trained,
            "export_precision": "",
            "mirrors": False,
            "postprocessing": "none",
            "surface_tolerance": None,
            "keep_cache": True,
        },
    )
    looked = []

    def evaluate(cases, read, evaluator, scoring, folder):
        looked.append(evaluator(255 * grey(8, 9, 8), (1, 1, 1)))

    monkeypatch.setattr(opening.evaluation, "evaluate", evaluate)
    monkeypatch.setattr(opening, "export_run", lambda *_: None)
    monkeypatch.setattr(opening.page, "write", lambda *_: None)
    opened = opening.Opened(system, session, [], None)
    opened.finish(system.finished(dataclasses.replace(run)))
    assert list(looked[0]) == ["level 1"]
    record = tmp_path / "evaluation" / "precision.json"
    assert record.exists() == looks
    if looks:
        monkeypatch.setattr(devices, "bfloat16_is_faster", lambda: True)
        monkeypatch.setattr(precision, "NEAR", 0.5)
        assert precision.chosen(run, "auto") == "bfloat16"
