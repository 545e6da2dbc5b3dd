"""Trainings that start from another model: run folders and SavedModels, what fits and what does
not."""

import contextlib
import json
import shutil
import types

import helpers
import keras
import numpy as np
import pytest
import running

from tf_autoctx import export
from tf_autoctx.errors import FieldError
from tf_autoctx.models import embryo, layers, localiser, options, renderer, unet3d, usegnet
from tf_autoctx.systems.shared import grid, initial, stages
from tf_autoctx.training import runs

COMMON = ("--steps=2", "--samples_per_epoch=2", "--precision=float32", "--base_filters=2")
TINY = {
    "fetal_head": ("--phantom_size=24,16,28", "--phantom_cases=3,1", "--level=2"),
    "multi_organ": (
        "--patch_size=16",
        "--tile_size=16",
        "--downsampling=2,1",
        "--batch_size=1",
        "--phantom_size=24,28,40",
        "--phantom_spacing=6",
        "--phantom_cases=3,1",
        *("--shift=0", "--rotation=0", "--elastic=0"),
    ),
    "embryo": (
        "--low_size=8",
        "--body_box=16",
        "--ventricle_box=8",
        "--depth=2",
        "--kernel=3",
        "--phantom_size=24,28,24",
        "--phantom_spacing=0.4",
        "--phantom_cases=3,1",
        *("--noflips", "--shift=0", "--rotation=0"),
    ),
    "renderer": ("--size=16", "--phantom_size=24,24", "--phantom_cases=4,1", "--batch_size=1"),
}
STILL = "--learning_rate=0"  # what a training starts from is what it ends with


@contextlib.contextmanager
def two_convolutions(width=2):
    """New networks of two: where the head does not fit, the first may."""

    def network(*, channels, classes, name, spatial=3):
        convolution = keras.layers.Conv3D if spatial == 3 else keras.layers.Conv2D
        image = keras.Input((*spatial * (None,), channels))
        x = convolution(width, 3, padding="same", activation="relu", name="first")(image)
        return keras.Model(image, convolution(classes, 1, name="head")(x), name=name)

    with helpers.plain_networks(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(helpers, "plain", network)
        yield


def train(system, folder, *more, width=2):
    with two_convolutions(width):
        running.train(system, f"--work_dir={folder}", *COMMON, *TINY[system], *more)
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A finished run of the fetal head, two levels, and its export."""
    return train("fetal_head", tmp_path_factory.mktemp("runs") / "source", "--learning_rate=0.01")


def network(folder, stage="level_1"):
    return stages.load(folder / stage / "model.keras")


def same(one, other):
    return all(
        np.array_equal(a, b) for a, b in zip(one.get_weights(), other.get_weights(), strict=True)
    )


NETWORKS = {
    "USegNet-DS-HAS": lambda: usegnet.usegnet(base_filters=2),
    "2D": lambda: usegnet.usegnet((None, None, 1), "3D-DeconvNet", base_filters=2),
    "batch": lambda: usegnet.usegnet(base_filters=2, normalization="batch"),
    "pyramid": lambda: unet3d.pyramid((4, 2), 3, base_filters=2),
    "embryo": lambda: embryo.embryo(vnets=options.VNetOptions(base_filters=2, depth=3, kernel=3)),
    "renderer": lambda: renderer.renderer(base_filters=2),
    "segmentor": lambda: renderer.segmentor2d(base_filters=2),
    "discriminator": lambda: renderer.discriminator(2, 8, base_filters=2),
    "localiser": lambda: localiser.localiser(32, filters=2),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_layers_have_fixed_names(name):
    """However many networks there were before, and none of them is Keras' own."""
    first, second = (layers.named_weights(NETWORKS[name]()) for _ in range(2))
    assert list(first) == list(second)
    expected = NETWORKS[name]().weights
    assert [w.shape for w in first.values()] == [w.shape for w in expected]
    assert len(first) == len(expected)
    for key in first:
        layer = key.split("/")[-2]
        assert not layer.startswith(("conv", "instance", "batch", "dense", "p_re_lu", "group"))


def test_names_tell_the_networks_within():
    names = list(layers.named_weights(NETWORKS["pyramid"]()))
    assert names[0] == "level_1/analysis_1_1/kernel" and names[-1] == "level_2/head/bias"
    assert "vnet_3/up_1_in/kernel" in layers.named_weights(NETWORKS["embryo"]())


@pytest.mark.parametrize("kind", ["run", "versions", "version"])
def test_a_training_starts_from_a_model(source, tmp_path, capsys, unfinished, kind):
    """From level k each level k."""
    model = {"run": source, "versions": source / "saved_model"}.get(kind)
    model = model or source / "saved_model" / "1"
    changed = ("--seed=7", STILL, f"--initial_weights={model}")
    folder = train("fetal_head", tmp_path / "run", *changed)
    for level in ("level_1", "level_2"):
        assert same(network(folder, level), network(source, level))
    assert not same(network(folder, "level_1"), network(folder, "level_2"))
    told = capsys.readouterr().out
    assert f"level_1: network starts from {model}" in told and "new: none" in told
    facts = runs.load(folder).facts
    assert facts["flags"]["initial_weights"] == str(model)
    taken = facts["initial_weights"]["level_2"]["network"]
    assert taken["from"] == "level_2" and taken["new"] == []
    assert taken["taken"] == list(layers.named_weights(network(source)))
    assert len(facts["initial_weights_digest"]) == 64


def test_it_learns_on(source, tmp_path, unfinished):
    """And so does every level of a training that has more of them."""
    given = ("--level=3", f"--initial_weights={source}", "--learning_rate=0.01")
    folder = train("fetal_head", tmp_path / "run", *given)
    assert not same(network(folder), network(source))
    assert runs.load(folder).facts["initial_weights"]["level_3"]["network"]["from"] == "level_2"


def test_what_does_not_fit_starts_anew(source, tmp_path, capsys, unfinished):
    """A second channel."""
    given = ("--join=concat", "--level=1", STILL)
    folder = train("fetal_head", tmp_path / "run", *given, f"--initial_weights={source}")
    mine, theirs = (layers.named_weights(network(f)) for f in (folder, source))
    assert "new: first/kernel" in capsys.readouterr().out
    different = [k for k in mine if k not in theirs or not np.array_equal(mine[k], theirs[k])]
    assert different == ["first/kernel"]
    told = runs.load(folder).facts["initial_weights"]["level_1"]["network"]
    assert told["new"] == different and len(told["taken"]) == len(mine) - 1


def test_other_classes_get_a_new_head(tmp_path, unfinished):
    first = train("multi_organ", tmp_path / "first")
    given = ("--foreground=3,4", STILL, f"--initial_weights={first}")
    second = train("multi_organ", tmp_path / "second", *given)
    told = runs.load(second).facts["initial_weights"]["pyramid"]["network"]
    assert told["new"] == [
        "level_1/head/kernel",
        "level_1/head/bias",
        "level_2/first/kernel",  # the context's channels
        "level_2/head/kernel",
        "level_2/head/bias",
    ]
    mine, theirs = (layers.named_weights(network(folder, "pyramid")) for folder in (second, first))
    for name in told["taken"]:
        if "moving" not in name:
            np.testing.assert_array_equal(mine[name], theirs[name])


def test_as_many_other_classes_get_a_new_head(tmp_path, unfinished):
    """And the same ones keep it, as one structure of another name does."""
    first = train("multi_organ", tmp_path / "first", "--foreground=1,2")
    given = (STILL, f"--initial_weights={first}")
    new = {}
    for values in ("1,2", "3,4"):
        run = train("multi_organ", tmp_path / values, f"--foreground={values}", *given)
        new[values] = runs.load(run).facts["initial_weights"]["pyramid"]["network"]["new"]
    assert new["1,2"] == []
    assert new["3,4"] == [f"level_{n}/head/{w}" for n in (1, 2) for w in ("kernel", "bias")]


@pytest.mark.parametrize(
    "theirs, ours, same",
    [
        ({"labels": {"1": "liver"}}, {"labels": {"1": "head"}}, True),
        ({"labels": {"1": "Liver", "2": "a"}}, {"labels": {"3": "liver", "4": "A"}}, True),
        ({"labels": {"1": "a", "2": "b"}}, {"labels": {"1": "b", "2": "a"}}, False),
        ({"labels": {"1": "a"}}, {"labels": {"1": "a"}, "regions": {"1": [1, 2]}}, False),
    ],
)
def test_classes_are_the_same_names_in_the_same_order(theirs, ours, same):
    weights = initial.Weights("model", {}, theirs, {})
    session = types.SimpleNamespace(run=types.SimpleNamespace(facts=ours))
    assert initial._same_classes(weights, session) == same


def test_a_model_of_other_inputs_is_told_of(caplog):
    facts, flags = {"channels": ["T2", "ADC"]}, {"scale": 1.0, "intensities": "hu"}
    weights = initial.Weights("model", {}, facts, flags)
    initial.compare_inputs(weights, ("T2", "ADC"), None, flags)
    assert not caplog.text
    now = {"scale": 0.4, "intensities": "image"}
    initial.compare_inputs(weights, ("T1",), grid.Grid((2.0, 1.0, 1.0)), now)
    for told in (
        "channels T2, ADC, and now T1",
        "voxels any mm, and now 2 x 1 x 1 mm",
        "scale 1.0, and now 0.4",
        "intensities hu, and now image",
    ):
        assert told in caplog.text
    with pytest.raises(FieldError, match="has the channels T2, ADC, and the data ADC, T2"):
        initial.compare_inputs(weights, ("ADC", "T2"), None, flags)
    # One channel has any name, and of before there were the flags nothing is known.
    caplog.clear()
    initial.compare_inputs(initial.Weights("model", {}, {}, {}), ("0",), None, now)
    assert not caplog.text
    initial.compare_inputs(initial.Weights("model", {}, {}, {}), ("raw", "smooth"), None, now)
    assert "channels raw, and now raw, smooth" in caplog.text


def test_a_pyramid_starts_from_levels_that_were_trained_one_by_one(tmp_path, unfinished):
    """And the levels before are not overwritten by those of the model."""
    first = train("multi_organ", tmp_path / "first", "--mode=separate", "--learning_rate=0.01")
    given = ("--mode=separate", f"--initial_weights={first}", "--learning_rate=0.01")
    second = train("multi_organ", tmp_path / "second", *given)
    taken = runs.load(second).facts["initial_weights"]
    assert {name.split("/")[0] for name in taken["level_2"]["network"]["taken"]} == {"level_2"}
    before, after = (
        network(second, stage).get_layer("level_1") for stage in ("level_1", "level_2")
    )
    assert same(before, after)
    assert not same(after, network(first, "level_2").get_layer("level_1"))


def test_every_vnet_starts_from_the_last_stage(tmp_path, unfinished):
    first = train("embryo", tmp_path / "first", "--learning_rate=0.01")
    given = (STILL, "--end_to_end_learning_rate=0", f"--initial_weights={first}", "--seed=5")
    second = train("embryo", tmp_path / "second", *given)
    taken = runs.load(second).facts["initial_weights"]
    assert taken["initial"]["network"]["from"] == "end_to_end"
    assert {name.split("/")[0] for name in taken["refine"]["network"]["taken"]} == {
        "vnet_2",
        "vnet_3",
    }
    mine, theirs = (
        layers.named_weights(network(folder, "end_to_end")) for folder in (second, first)
    )
    for name, weight in mine.items():
        if "moving" not in name:
            np.testing.assert_array_equal(weight, theirs[name], err_msg=name)


@pytest.mark.parametrize("served", [False, True])
def test_the_renderer_s_networks_start_from_those_of_their_names(tmp_path, served):
    """A SavedModel has no discriminators: they start anew."""
    first = train("renderer", tmp_path / "first", "--learning_rate=0.01")
    model = first / "saved_model" if served else first
    with running.unfinished():
        given = STILL, "--seed=5", f"--initial_weights={model}"
        second = train("renderer", tmp_path / "second", *given)
    taken = runs.load(second).facts["initial_weights"]["self_play"]
    anew = {name for name, told in taken.items() if not told["taken"]}
    assert anew == ({name for name in taken if name.startswith("d_")} if served else set())
    for name in set(taken) - anew:
        mine, theirs = (
            keras.models.load_model(folder / "networks" / f"{name}.keras")
            for folder in (second, first)
        )
        theirs = layers.named_weights(theirs)
        for key, weight in layers.named_weights(mine).items():
            if "moving" not in key:
                np.testing.assert_array_equal(weight, theirs[key])


def test_a_network_starts_from_the_one_of_its_name_or_alone_from_the_last():
    """A renderer of the right width fits parts of a segmentor, which mean something else."""
    networks = {"level_1": {"a": np.ones(1)}, "segmentor": {"b": np.ones(2)}}
    weights = initial.Weights("model", networks, {}, {})
    assert weights.of("renderer", "self_play", alone=False) == ("", {})
    assert weights.of("segmentor", "self_play", alone=False)[0] == "segmentor"
    assert weights.of("network", "level_1", alone=True)[0] == "level_1"
    assert weights.of("network", "level_2", alone=True)[0] == "segmentor"


def test_a_network_that_a_model_lacks_starts_anew(tmp_path, capsys, unfinished):
    """Not from another one of like shapes."""
    first = train("renderer", tmp_path / "first", "--variant=Orig-S2T")
    second = train("renderer", tmp_path / "second", f"--initial_weights={first}", "--variant=S2T")
    taken = runs.load(second).facts["initial_weights"]["self_play"]
    assert [name for name, told in taken.items() if told["taken"]] == ["segmentor"]
    assert "self_play: renderer is new" in capsys.readouterr().out


def test_layers_of_earlier_releases_had_other_names(source, tmp_path, unfinished, monkeypatch):
    """Their weights are taken over in their order."""
    old = shutil.copytree(source, tmp_path / "old")
    path = old / "level_1" / "model.keras"
    model = stages.load(path)
    config = json.dumps(model.get_config())
    for number, layer in enumerate(model.layers[1:]):
        config = config.replace(f'"{layer.name}"', f'"conv3d_{number}"')
    renamed = keras.Model.from_config(json.loads(config))
    renamed.set_weights(model.get_weights())
    assert list(layers.named_weights(renamed)) != list(layers.named_weights(model))
    load = stages.load
    monkeypatch.setattr(stages, "load", lambda p: renamed if p == path else load(p))
    folder = train("fetal_head", tmp_path / "run", STILL, "--seed=3", f"--initial_weights={old}")
    monkeypatch.undo()
    assert same(network(folder), model)


def test_a_killed_run_goes_on_without_starting_again(source, tmp_path, capsys, unfinished):
    given = (f"--initial_weights={source}", "--learning_rate=0.01", "--level=1")
    whole = train("fetal_head", tmp_path / "whole", *given, "--steps=4")
    part = train("fetal_head", tmp_path / "part", *given, "--steps=4")
    (part / "level_1" / "model.keras").unlink()
    capsys.readouterr()
    train("fetal_head", part, *given, "--steps=4")
    assert "starts from" not in capsys.readouterr().out
    assert same(network(part), network(whole))


def test_a_stage_of_other_weights_is_refused(source, tmp_path, capsys, unfinished):
    """All stages of a run start from the same weights."""
    moved = shutil.copytree(source, tmp_path / "moved")
    given = (f"--initial_weights={moved}", "--learning_rate=0.01")
    folder = train("fetal_head", tmp_path / "run", *given, "--level=1")
    shutil.copyfile(moved / "level_1" / "model.keras", moved / "level_2" / "model.keras")
    with pytest.raises(SystemExit):
        train("fetal_head", folder, *given, "--level=2")
    assert "initial_weights_digest" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda folder, source: folder / "gone", "neither config.json nor saved_model.pb"),
        (lambda folder, source: unfinished(folder, source), "not finished"),
        (lambda folder, source: other_system(folder, source), "a model of 'embryo'; expected one"),
        (lambda folder, source: without_names(folder, source), "its card lists no weights"),
        (lambda folder, source: damaged(folder, source), "cut short, damaged or missing"),
    ],
)
def test_what_is_no_model_is_refused_before_anything_is_made(source, tmp_path, capsys, make, told):
    model = make(tmp_path / "model", source)
    with pytest.raises(SystemExit):
        train("fetal_head", tmp_path / "run", f"--initial_weights={model}")
    error = capsys.readouterr().err
    assert told in error and str(model) in error and "Traceback" not in error
    assert not (tmp_path / "run" / "config.json").exists()


def unfinished(folder, source):
    shutil.copytree(source, folder)
    (folder / "level_1" / "model.keras").unlink()
    return folder


def other_system(folder, source):
    shutil.copytree(source, folder)
    text = (folder / "config.json").read_text().replace('"fetal_head"', '"embryo"')
    (folder / "config.json").write_text(text)
    return folder


def without_names(folder, source):
    shutil.copytree(source / "saved_model" / "1", folder)
    card = json.loads((folder / export.CARD).read_text())
    del card["weights"]
    (folder / export.CARD).write_text(json.dumps(card))
    return folder


def damaged(folder, source):
    shutil.copytree(source / "saved_model" / "1", folder)
    for path in (folder / "variables").glob("*.data-*"):
        path.write_bytes(path.read_bytes()[:-100])
    return folder


def test_a_model_of_which_nothing_fits_is_refused(source, tmp_path, capsys):
    model = source / "saved_model"
    with pytest.raises(SystemExit):
        train("fetal_head", tmp_path / "run", f"--initial_weights={model}", width=3)
    assert "2.2 % of the weights of level_1 fit by name and shape" in capsys.readouterr().err


def test_a_model_of_another_width_is_refused(tmp_path, capsys):
    """The networks themselves: convolutions that make structures larger have no width."""
    phantoms = ("--phantom_size=24,24", "--phantom_cases=4,1", "--size=16", "--batch_size=1")
    given = ("--variant=Orig-S2T", *phantoms, "--initial_weights=hc18_head")
    with pytest.raises(SystemExit):
        running.train("renderer", f"--work_dir={tmp_path / 'run'}", *given, "--base_filters=32")
    told = capsys.readouterr().err
    assert "of the weights of self_play fit" in told
    assert "--base_filters is 12 there, 32 here" in told and "--size is" in told


def test_an_export_lists_its_weights(source):
    version = source / "saved_model" / "1"
    card, read = export.read_card(version), export.read_weights(version)
    assert list(read) == list(card["weights"]) == ["level_1", "level_2"]
    for level, arrays in read.items():
        named = layers.named_weights(network(source, level))
        assert list(arrays) == list(named)
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, named[name])
            assert card["weights"][level][name] == list(array.shape)
    with two_convolutions():
        of_run = initial.load(source, "fetal_head")
    assert of_run.digest == initial.load(version, "fetal_head").digest


def test_a_card_tells_what_a_model_started_from(source, tmp_path):
    given = ("--level=1", STILL, f"--initial_weights={source}")
    folder = train("fetal_head", tmp_path / "run", *given)
    card = export.read_card(folder / "saved_model" / "1")
    assert card["initial_weights"] == runs.load(folder).facts["initial_weights"]
    assert card["config"]["initial_weights"] == str(source)
