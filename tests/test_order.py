"""What comes before decides what comes after: every stage learns from the stage before it, and a
run that is killed at any write goes on to what an unbroken one comes to."""

import dataclasses
import pathlib

import keras
import numpy as np
import pytest
import SimpleITK as sitk
import tensorflow as tf
import test_embryo
import test_multi_organ
import test_renderer
import test_sliding_windows
import test_training
from held import held
from helpers import contents, plain_networks, randomize

from tf_autoctx import export, files, metrics
from tf_autoctx.data import datasets, images, pipeline
from tf_autoctx.data.configuration import Augmentation
from tf_autoctx.data.phantoms import folder as phantom_folder
from tf_autoctx.models import embryo as networks
from tf_autoctx.models import layers, vnet
from tf_autoctx.report import figures, tables
from tf_autoctx.systems.embryo import sliding_windows_training
from tf_autoctx.systems.embryo import training as embryo_training
from tf_autoctx.systems.embryo.configuration import STAGES
from tf_autoctx.systems.fetal_head import training as fetal_head
from tf_autoctx.systems.fetal_head.configuration import FetalHead
from tf_autoctx.systems.fetal_head.segmentation import Cascade
from tf_autoctx.systems.multi_organ import training as multi_organ
from tf_autoctx.systems.renderer import online, source
from tf_autoctx.systems.renderer import training as renderer
from tf_autoctx.systems.shared import caching, stages
from tf_autoctx.systems.shared.session import Session
from tf_autoctx.training import checkpoints, devices, loop
from tf_autoctx.training.configuration import Settings
from tf_autoctx.training.runs import Run

SETTINGS = Settings(
    seed=1,
    steps=3,
    samples_per_epoch=2,
    learning_rate=1e-2,
    learning_rate_decay="constant",
)


def flat(weights):
    return np.concatenate([np.ravel(array) for array in weights])


def differ(a, b):
    return np.abs(flat(a) - flat(b)).max() > 1e-5


@pytest.fixture(scope="module", autouse=True)
def plain():
    """What is tested is in which order they are joined and trained."""
    with plain_networks(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "history", lambda *_: None)
        patch.setattr(figures, "before_and_after", lambda *_: None)
        yield


class Killed(BaseException):
    """In place of the end of a process."""


@pytest.fixture
def killed(monkeypatch):
    """(name, after) -> kills this process when a file of that name, or in a folder of that name,
    takes its place: before it does, or right after."""

    def set_up(name, after):
        replace, done = files.os.replace, []

        def kills(partial, path):
            hit = not done and name in (path.name, path.parent.name)
            if hit:
                done.append(path)
            if not hit or after:
                replace(partial, path)
            if hit:
                raise Killed(path)

        monkeypatch.setattr(files.os, "replace", kills)

    return set_up


# The fetal head's levels


def cascade(levels):
    return Cascade(FetalHead(level=levels, variant="USegNet", base_filters=1, scale=1.0))


def heads(folder, count=2):
    """Cached cases of a box in noise, for level 1."""
    entries = []
    for number in range(count):
        label = np.zeros((8, 8, 8, 1), np.uint8)
        label[2:6, 2:6, 2 + number : 6 + number] = 1
        noise = np.random.default_rng(number).uniform(0, 0.5, label.shape)
        tensors = {"image": (noise + 0.5 * label).astype(np.float32), "label": label}
        tensors["spacing"] = np.ones(3, np.float32)
        paths = {name: folder / "cache" / f"case_{number}" / name for name in tensors}
        for name, tensor in tensors.items():
            pipeline.store(paths[name], tensor)
        entries.append({**{name: str(path) for name, path in paths.items()}, "context": ""})
    return entries


def head_session(folder, steps=SETTINGS.steps):
    """Without a validation case: all steps tell in the weights."""
    values = vars(Augmentation())
    entries = heads(folder)
    strategy = tf.distribute.get_strategy()
    settings = Settings(**{**vars(SETTINGS), "steps": steps})
    return Session(Run(folder, {}), values, strategy, settings, entries, [])


def finish(folder, network):
    """A finished stage, as taken over."""
    folder.mkdir(parents=True)
    network.save(folder / stages.NETWORK)


@pytest.fixture(scope="module")
def after_levels(tmp_path_factory):
    """(seeds of the finished levels) -> what the next level learns."""
    learnt = {}

    def next_level(*seeds):
        if seeds not in learnt:
            folder = tmp_path_factory.mktemp("heads")
            system = cascade(len(seeds) + 1)
            for level, seed in enumerate(seeds, start=1):
                finish(folder / f"level_{level}", randomize(system.network(), seed))
            networks = fetal_head.train(system, head_session(folder))
            learnt[seeds] = networks[f"level_{len(seeds) + 1}"].get_weights()
        return learnt[seeds]

    return next_level


def test_level_2_learns_from_the_map_of_level_1(after_levels):
    assert differ(after_levels(1), after_levels(2))


@pytest.mark.parametrize("changed", [(3, 2), (1, 3)])
def test_level_3_learns_from_the_map_of_level_2_which_saw_that_of_level_1(after_levels, changed):
    assert differ(after_levels(1, 2), after_levels(*changed))


def test_what_a_level_learns_depends_on_nothing_else(after_levels, tmp_path):
    system = cascade(2)
    finish(tmp_path / "level_1", randomize(system.network(), 1))
    again = fetal_head.train(system, head_session(tmp_path))["level_2"].get_weights()
    np.testing.assert_array_equal(flat(after_levels(1)), flat(again))


def test_a_level_is_validated_with_the_map_of_the_level_before(tmp_path):
    session, system = head_session(tmp_path), cascade(1)
    stage, seen = fetal_head.LevelStage(1, system, session), []

    def level(image, context):
        seen.append(float(tf.reduce_mean(context)))
        return context

    sample = pipeline.sample({name: session.training[0][name] for name in ("image", "label")})
    truth = tf.cast(sample["label"], tf.float32)
    assert stage.score(level, {**sample, "context": truth}) == 1
    assert stage.score(level, {**sample, "context": 1 - truth}) == 0 and len(set(seen)) == 2


def test_the_maps_of_a_level_that_is_trained_anew_are_made_anew(tmp_path):
    """More steps than before: level 2 sees what level 1 is now."""
    system = cascade(2)
    before = fetal_head.train(system, head_session(tmp_path / "once", steps=2))
    grown = fetal_head.train(system, head_session(tmp_path / "once", steps=4))
    whole = fetal_head.train(system, head_session(tmp_path / "whole", steps=4))
    for name, network in whole.items():
        np.testing.assert_array_equal(flat(network.get_weights()), flat(grown[name].get_weights()))
        assert differ(network.get_weights(), before[name].get_weights())
    maps = [tmp_path / run / "level_1" / "probability" for run in ("once", "whole")]
    assert contents(maps[0]) == contents(maps[1])


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Weights of two levels, and the history of the second, of a run that nobody killed."""
    folder = tmp_path_factory.mktemp("unbroken")
    networks = fetal_head.train(cascade(2), head_session(folder))
    return networks["level_2"].get_weights(), history(folder / "level_2")


def history(folder):
    """history.csv without its clock."""
    lines = [line.split(",") for line in (folder / "history.csv").read_text().splitlines()]
    kept = [n for n, name in enumerate(lines[0]) if not name.startswith("seconds")]
    return [[line[n] for n in kept] for line in lines]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("name", ["history.csv", "model.keras", "probability"])
def test_a_run_killed_at_any_write_goes_on_to_the_same(
    unbroken, tmp_path, killed, monkeypatch, name, after
):
    with monkeypatch.context():
        killed(name, after)
        with pytest.raises(Killed):
            fetal_head.train(cascade(2), head_session(tmp_path))
        networks = fetal_head.train(cascade(2), head_session(tmp_path))
    np.testing.assert_array_equal(flat(unbroken[0]), flat(networks["level_2"].get_weights()))
    assert history(tmp_path / "level_2") == unbroken[1]


# The multi-organ system's levels


@pytest.fixture(scope="module")
def after_pyramid(tmp_path_factory):
    """(seeds of the finished levels) -> what the U-Net of the next level learns."""
    learnt = {}

    def next_level(*seeds):
        if seeds not in learnt:
            folder = tmp_path_factory.mktemp("organs")
            system = test_multi_organ.pyramid("separate", downsampling=(3, 2, 1)[: len(seeds) + 1])
            below = system.network(len(seeds))
            for level, seed in enumerate(seeds, start=1):
                randomize(below.get_layer(f"level_{level}"), seed)
            for count in range(1, len(seeds) + 1):
                finish(folder / f"level_{count}", below)  # the last of them is built upon
            session = test_multi_organ.session(
                folder, test_multi_organ.cases(folder, system), steps=3, batch_size=1
            )
            (network,) = multi_organ.train(system, session).values()
            learnt[seeds] = network.get_layer(f"level_{len(seeds) + 1}").get_weights()
        return learnt[seeds]

    return next_level


def test_level_2_of_a_pyramid_learns_from_level_1(after_pyramid):
    assert differ(after_pyramid(1), after_pyramid(2))


@pytest.mark.parametrize("changed", [(3, 2), (1, 3)])
def test_level_3_of_a_pyramid_learns_from_level_2_which_saw_level_1(after_pyramid, changed):
    assert differ(after_pyramid(1, 2), after_pyramid(*changed))


@pytest.mark.parametrize("changed", [1, 2])
def test_level_3_of_a_pyramid_segments_with_the_map_of_level_2(changed):
    """On whole volumes, where tiles run one after the other outside the network."""
    system = test_multi_organ.pyramid("separate", downsampling=(4, 2, 1))
    network = randomize(system.network(), 0)
    x, unets = test_multi_organ.raw(16, 12, 9), system.unets(network)
    before = system.cascade(unets, x)
    size = before[1].shape[1:4]
    assert all(n > 1 for n in size)
    # Level 3 by hand, from level 2 alone.
    context = keras.ops.softmax(unets[1](_with(system.preprocess(x, 2), before[0])))
    third = keras.ops.softmax(unets[2](_with(system.preprocess(x, 1), context)))
    np.testing.assert_allclose(before[2], third, atol=1e-4)
    randomize(network.get_layer(f"level_{changed}"), 5)
    assert np.abs(np.array(before[2]) - np.array(system.cascade(unets, x)[2])).max() > 1e-3


def _with(image, probability):
    context = layers.resize_linear(probability, image.shape[1:4])
    return keras.ops.concatenate([image, context], axis=-1)


def test_a_pyramid_is_validated_by_its_last_level(tmp_path):
    system = test_multi_organ.pyramid("separate")
    session = test_multi_organ.session(tmp_path, test_multi_organ.cases(tmp_path, system))
    stage = multi_organ.PyramidStage(2, None, system, session)
    network = randomize(system.network(), 1)
    sample = pipeline.sample({name: session.training[1][name] for name in stage.columns})
    images = [sample[f"image_{level}"][None] for level in (1, 2)]
    size = sample["label"].shape[:3]
    levels = system.probabilities(system.unets(network), images)
    first, last = (system.classes(system.label(p, size))[0, ..., 0] for p in levels)
    classes = stage.graph({"network": network})(images, size)
    np.testing.assert_array_equal(classes, last)
    assert np.any(classes != first)


# The embryo's stages


@pytest.fixture(scope="module")
def after_stage(tmp_path_factory):
    """(stage, VNet of the stage before that is another, or None) -> {VNet: what it learns}."""
    learnt = {}

    def next_stage(stage, changed=None):
        if (stage, changed) not in learnt:
            folder, embryo = tmp_path_factory.mktemp("embryo"), test_embryo.system(depth=1)
            entries = test_embryo.cases(folder, embryo, sizes=[(18, 20, 22)] * 2)
            before = {"refine": "initial", "end_to_end": "refine"}[stage]
            network = randomize(embryo.refinement.network(before), 0)
            if changed:
                randomize(network.get_layer(changed), 1)
            finish(folder / "run" / before, network)
            trained = test_embryo.train(stage, embryo, entries, folder / "run", steps=3)
            names = ("vnet_1", "vnet_2", "vnet_3")
            learnt[stage, changed] = {n: trained.get_layer(n).get_weights() for n in names}
        return learnt[stage, changed]

    return next_stage


@pytest.mark.parametrize(
    "stage, changed",
    [("refine", "vnet_1"), *(("end_to_end", name) for name in ("vnet_1", "vnet_2", "vnet_3"))],
)
def test_a_stage_of_the_embryo_learns_from_the_stage_before(after_stage, stage, changed):
    before, after = after_stage(stage), after_stage(stage, changed)
    assert all(differ(before[name], after[name]) for name in before)


def test_the_refinement_learns_from_the_map_and_not_only_from_its_box(tmp_path):
    """The kernel of the map's channel moves: without the map nothing would reach it."""
    embryo = test_embryo.system(depth=1)
    entries = test_embryo.cases(tmp_path, embryo, sizes=[(18, 20, 22)] * 2)
    finish(tmp_path / "run" / "initial", randomize(embryo.refinement.network("initial"), 0))
    session = test_embryo.session(entries, tmp_path / "run", "refine", steps=2)
    keras.utils.set_random_seed(session.settings.seed * 1000 + 1)
    first = embryo.refinement.network("refine")
    trained = embryo.train(session)["refine"]
    for name in ("vnet_2", "vnet_3"):
        new, old = (
            next(
                w for w in network.get_layer(name).get_weights() if w.ndim == 5 and w.shape[3] == 2
            )
            for network in (trained, first)
        )
        assert all(np.abs(new - old)[..., channel, :].max() > 1e-4 for channel in (0, 1))


def test_the_refinement_leaves_vnet_1_alone_with_its_moving_averages(tmp_path, monkeypatch):
    monkeypatch.setattr(networks, "vnet", vnet.vnet)
    embryo = test_embryo.system(depth=1, normalization="batch")
    entries = test_embryo.cases(tmp_path, embryo, sizes=[(18, 20, 22)] * 2)
    initial = randomize(embryo.refinement.network("initial"))
    finish(tmp_path / "run" / "initial", initial)
    refined = test_embryo.train("refine", embryo, entries, tmp_path / "run")
    before, after = (
        {w.path.split("/", 1)[-1]: w.numpy() for w in network.get_layer("vnet_1").weights}
        for network in (initial, refined)
    )
    assert any("moving_mean" in path for path in before)
    for a, b in zip(before.values(), after.values(), strict=True):
        np.testing.assert_array_equal(a, b)
    moved = [w.numpy() for w in refined.get_layer("vnet_2").weights if "moving_mean" in w.path]
    assert all(np.any(array) for array in moved)


# The renderer


def render_session(folder, entries, steps=2):
    values = {**vars(test_renderer.OBJECTIVE)}
    settings = Settings(**{**vars(test_renderer.SETTINGS), "steps": steps})
    strategy = tf.distribute.get_strategy()
    return Session(Run(folder, {}), values, strategy, settings, entries, [])


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("name", ["networks", "rendered"])
def test_the_rendered_source_is_by_the_networks_that_are_there(
    tmp_path, killed, monkeypatch, name, after
):
    """Whenever a run that goes on with more steps is killed."""
    system = test_renderer.system("S2T-sp")
    entries = test_renderer.corpus(tmp_path / "source", cases=4)
    run = tmp_path / "run"
    renderer.train(system, render_session(run, entries, steps=1))
    old = contents(run / "rendered" / "case_3" / "image2d")
    with monkeypatch.context():
        killed(name, after)
        with pytest.raises(Killed):
            renderer.train(system, render_session(run, entries))
        networks = renderer.train(system, render_session(run, entries))
    for entry in entries:
        case = pathlib.Path(entry["image2d"]).parent.name
        image = pipeline.stored(entry["image2d"], "image2d")[None]
        expected = np.array(system.outputs(networks, image)["rendered"])[0]
        expected = (expected - expected.min()) / max(np.ptp(expected), 1e-6)
        rendered = pipeline.stored(str(run / "rendered" / case / "image2d"), "image2d")
        np.testing.assert_allclose(rendered, expected, atol=1e-4)
    assert contents(run / "rendered" / "case_3" / "image2d") != old


def test_another_process_s_rendered_source_stays(tmp_path, monkeypatch):
    entries = test_renderer.corpus(tmp_path / "source", cases=2)
    theirs = tmp_path / "run" / "rendered" / "theirs"

    def graph(image):
        theirs.mkdir(parents=True, exist_ok=True)
        return {"rendered": image}

    source.render(graph, entries, tmp_path / "run")
    assert [path.name for path in theirs.parent.iterdir()] == ["theirs"]


@pytest.mark.parametrize("changed", ["corpus", "renderer", "segmentor", "d_app", "d_pair"])
def test_online_rendering_depends_on_the_source_and_on_every_trained_network(tmp_path, changed):
    entries = test_renderer.corpus(tmp_path / "a")
    others = test_renderer.corpus(tmp_path / "b")
    for number, entry in enumerate(others):
        noise = test_renderer.grey(16, 16, 1, seed=number)
        pipeline.store(entry["image2d"], noise)
    trained, image = test_renderer.networks(), tf.constant(test_renderer.grey(16, 16, 1, seed=9))
    settings = Settings(**{**vars(test_renderer.SETTINGS), "steps": 4})

    def rendered(corpus):
        made = online.OnlineRendering(
            test_renderer.system(),
            test_renderer.ONCE,
            trained,
            corpus,
            settings,
            test_renderer.BEFORE,
        )
        return made(image)[-1]

    before = rendered(entries)
    if changed in trained:
        randomize(trained[changed], 1)
    after = rendered(others if changed == "corpus" else entries)
    assert np.abs(before.rendered - after.rendered).max() > 1e-6
    assert np.abs(before.probability - after.probability).max() > 1e-6


# What every stage sees of a case


def of_heads(folder):
    changes = Augmentation(
        flips=True,
        shift=1,
        rotation=20.0,
        intensity_jitter=0.2,
        noise=0.1,
        erase_probability=0.5,
    )
    session = dataclasses.replace(head_session(folder), values=vars(changes))
    return fetal_head.LevelStage(1, cascade(1), session), session


def of_organs(folder):
    system = test_multi_organ.pyramid(downsampling=(2, 1))
    session = test_multi_organ.session(folder, test_multi_organ.cases(folder, system))
    return multi_organ.PyramidStage(2, None, system, session), session


def of_embryos(name):
    def made(folder):
        embryo = test_embryo.system(depth=1)
        session = test_embryo.session(test_embryo.cases(folder, embryo), folder)
        before = STAGES[STAGES.index(name) - 1]
        if name != "initial":
            finish(folder / before, randomize(embryo.refinement.network(before)))
        turned = vars(Augmentation(rotation=40.0))
        session = dataclasses.replace(session, values={**session.values, **turned})
        return embryo_training.KINDS[name](embryo.refinement, session), session

    return made


def of_peer(kind):
    def made(folder):
        _, session = of_embryos("initial")(folder)
        return kind(test_sliding_windows.PEER, session), session

    return made


def of_renderer(folder):
    session = render_session(folder, test_renderer.corpus(folder))
    changes = {"appearance_strength": 0.5, "rotation": 20.0}
    session = dataclasses.replace(session, values={**session.values, **changes})
    return renderer.SelfPlayStage(test_renderer.system("S2T-sp"), session), session


STAGE_OF = {
    "level": of_heads,
    "pyramid": of_organs,
    **{name: of_embryos(name) for name in STAGES},
    **{f"peer's {kind.name}": of_peer(kind) for kind in sliding_windows_training.KINDS},
    "self_play": of_renderer,
}
COLUMNS = {
    "level": ("image", "label", "context", "spacing"),
    "pyramid": ("label", "places", "spacing", "image_1", "image_2"),
    "self_play": ("image2d", "label2d", "spacing", "pixel", "others"),
}


def gradients(stage, sample, settings):
    """What a first step learns from a sample: what it leaves in the optimizers."""
    seed = tf.constant([3, 4], tf.int64)
    seen = stage.augment(stage.read(held(sample), seed), seed)
    batch = tf.nest.map_structure(lambda tensor: tf.convert_to_tensor(tensor)[None], seen)
    keras.utils.set_random_seed(0)
    optimizers, step = stage.updates(stage.build(), settings)
    step(batch)
    return [w.numpy() for adam in optimizers.values() for w in adam.variables]


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """name -> (stage, its session, a sample as it sees it, what it learns from it: twice alike)"""
    made = {}

    def of(name):
        if name not in made:
            stage, session = STAGE_OF[name](tmp_path_factory.mktemp("stage"))
            stage.begin(session)
            sample = pipeline.sample({key: session.training[1][key] for key in stage.columns})
            if stage.others:
                others = [pipeline.sample(entry) for entry in session.training[2:]]
                sample["others"] = tuple(others[: stage.others])
            once, again = (gradients(stage, sample, session.settings) for _ in range(2))
            np.testing.assert_array_equal(flat(once), flat(again))
            made[name] = stage, session, sample, once
        return made[name]

    return of


def another(name, tensor):
    """A tensor in place of one of a case."""
    if name == "others":
        return tuple({**of_case, "image2d": of_case["image2d"] + 1} for of_case in tensor)
    if name in ("spacing", "pixel"):
        return tensor * [1.0, 2.0, 4.0][: len(tensor)]
    if name == "places":
        return tensor + 3
    if name.startswith("label"):
        return tf.zeros_like(tensor)
    return tensor + tf.random.stateless_uniform(tensor.shape, [1, 2])


@pytest.mark.parametrize(
    "name, column",
    [
        (name, column)
        for name in STAGE_OF
        for column in COLUMNS.get(name, ("image", "label", "spacing"))
    ],
)
def test_a_stage_learns_from_all_that_it_sees_of_a_case(seen, name, column):
    stage, session, sample, learnt = seen(name)
    assert set(sample) == set(COLUMNS.get(name, ("image", "label", "spacing")))
    changed = {**sample, column: another(column, sample[column])}
    assert differ(learnt, gradients(stage, changed, session.settings))


# Where random changes are made


def same(batches, others, atol=0.0):
    """Whether batches are, labels to the last."""
    for batch, other in zip(batches, others, strict=True):
        tf.nest.assert_same_structure(batch, other)
        for a, b in zip(tf.nest.flatten(batch), tf.nest.flatten(other), strict=True):
            if a.dtype != b.dtype or np.any(np.abs(np.subtract(a, b, dtype=float)) > atol):
                return False
    return True


@pytest.mark.parametrize("name", STAGE_OF)
def test_a_step_on_an_accelerator_sees_what_one_on_a_cpu_sees(seen, name):
    """After the changes that it makes itself; resumed, and with other workers, too."""
    stage, session = seen(name)[:2]
    files_ = {key: [entry[key] for entry in session.training] for key in stage.columns}
    later = tf.function(
        lambda drawn, seeds: pipeline.augmented((drawn, seeds), stage.augment), autograph=False
    )

    def batches(augment, **order):
        drawn = pipeline.Order(seed=3, steps=4, replicas=2, others=stage.others, **order)
        return list(pipeline.training(files_, stage.read, drawn, augment))

    unchanged = batches(None)
    alone = [later(*drawn) for drawn in unchanged]
    assert len(alone) == 8 and same(batches(stage.augment), alone, atol=1e-5)
    if "peer" not in name:  # it sees windows of what is changed
        grids = [key for key in alone[0] if key != "real"]
        before, after = (
            [{key: drawn[key] for key in grids} for drawn in batches_]
            for batches_ in ((drawn for drawn, _ in unchanged), alone)
        )
        assert same(before, after) == (name == "pyramid")
    assert same([later(*drawn) for drawn in batches(None, first_step=2)], alone[4:])
    for worker in range(2):
        of_worker = batches(None, workers=2, worker=worker)
        assert same([later(*drawn) for drawn in of_worker], alone[worker::2])


def test_a_training_with_changes_on_the_device_ends_in_the_same_weights(tmp_path, monkeypatch):
    changes = Augmentation(flips=True, shift=1, intensity_jitter=0.2, erase_probability=0.5)
    weights, called, augmented = {}, [], pipeline.augmented

    def counted(batch, augment):
        called.append(batch)
        return augmented(batch, augment)

    monkeypatch.setattr(pipeline, "augmented", counted)
    for augments in (False, True):
        monkeypatch.setattr(devices, "augments", lambda augments=augments: augments)
        session = dataclasses.replace(head_session(tmp_path / str(augments)), values=vars(changes))
        made = fetal_head.train(cascade(2), session)
        weights[augments] = flat([w for network in made.values() for w in network.get_weights()])
        assert bool(called) == augments
    np.testing.assert_allclose(weights[True], weights[False], rtol=0, atol=1e-6)


# The cache


class Preparing:
    """Prepares cases as a system does."""

    configuration, labels, chunk, grid = None, {1: "head"}, (2, None, 3), None

    def prepare(self, case, voxels, label):
        return {"image": voxels[0], "label": label[0]}


def read_case(case):
    voxels = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    image = images.Image.of(case.image, sitk.GetImageFromArray(voxels), (1.0, 1.0, 1.0))
    return image, (voxels > 10).astype(np.uint8)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("name", ["image", "label", "extent", "spacing"])
def test_a_case_is_cached_once_all_of_it_is_there(tmp_path, killed, monkeypatch, name, after):
    cases = [datasets.Case(f"case_{n}", "image.nii", "label.nii", "") for n in range(2)]
    whole = caching.cached(cases, tmp_path / "whole", read_case, Preparing())
    with monkeypatch.context():
        killed(name, after)
        with pytest.raises(Killed):
            caching.cached(cases, tmp_path / "cache", read_case, Preparing())
        files_ = caching.cached(cases, tmp_path / "cache", read_case, Preparing())
    for entry, expected in zip(files_, whole, strict=True):
        assert list(entry) == list(expected) == ["extent", "image", "label", "spacing"]
        for kind, path in entry.items():
            assert contents(path) == contents(expected[kind])


# Checkpoints


class Scored(test_training.Line):
    """A line with a score for each step at which it is validated."""

    def __init__(self, settings, scores):
        super().__init__(settings)
        self.by_step = scores

    def validate(self):
        return {"DSC": self.by_step[int(self.adam.iterations)]}


def fit(directory, scores, made_on=None):
    settings = Settings(**{**test_training.SETTINGS, "learning_rate_decay": "constant"})
    keras.utils.set_random_seed(0)
    task = Scored(settings, scores)
    past = loop.fit(task, directory, tf.distribute.get_strategy(), settings, made_on)
    best = tf.train.latest_checkpoint(directory / "best")
    return flat(task.network.get_weights()), [logs["val_DSC"] for logs in past], best[-2:]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("number", range(9))
def test_a_training_killed_at_any_checkpoint_ends_in_the_same_weights(
    tmp_path, monkeypatch, number, after
):
    """Epochs end at steps 4, 8, 12, checkpoints within them lie at 3, 6, 9; the best is of 8."""
    scores = {4: 0.5, 8: 0.9, 12: 0.1}
    whole = fit(tmp_path / "whole", scores)
    saves, save = [], tf.train.CheckpointManager.save

    def killed(self, checkpoint_number):
        saves.append(checkpoint_number)
        hit = len(saves) == number + 1
        path = save(self, checkpoint_number=checkpoint_number) if after or not hit else None
        if hit:
            raise Killed
        return path

    with monkeypatch.context() as patch:
        patch.setattr(tf.train.CheckpointManager, "save", killed)
        if number < 8:  # of 6 checkpoints, 2 of which are the best too
            with pytest.raises(Killed):
                fit(tmp_path / "broken", scores)
        else:
            fit(tmp_path / "broken", scores)
            assert len(saves) == 8
    again = fit(tmp_path / "broken", scores)
    np.testing.assert_array_equal(whole[0], again[0])
    assert whole[1:] == again[1:] == ([0.5, 0.9, 0.1], "-8")


def test_the_first_of_equal_epochs_is_the_best(tmp_path):
    first, _, best = fit(tmp_path / "equal", {4: 0.5, 8: 0.5, 12: 0.5})
    alone, *_ = fit(tmp_path / "first", {4: 0.5, 8: 0.4, 12: 0.3})
    assert best == "-4"
    np.testing.assert_array_equal(first, alone)


@pytest.mark.parametrize("kept", [1, 2])
def test_a_checkpoint_whose_removal_is_cut_short_is_none(tmp_path, monkeypatch, kept):
    """Of what was made on something else: half of it would be a damaged one."""
    scores = {4: 0.5, 8: 0.9, 12: 0.1}
    whole = fit(tmp_path / "whole", scores, "new")
    fit(tmp_path / "run", scores, "old")
    unlink, gone = pathlib.Path.unlink, []

    def killed(self, missing_ok=False):
        if self.name.startswith("step-"):
            if len(gone) == kept:
                raise Killed
            gone.append(self)
        unlink(self, missing_ok=missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "unlink", killed)
        with pytest.raises(Killed):
            fit(tmp_path / "run", scores, "new")
    again = fit(tmp_path / "run", scores, "new")
    np.testing.assert_array_equal(whole[0], again[0])
    assert whole[1:] == again[1:]


def test_two_checkpoints_are_kept_and_the_best(tmp_path):
    fit(tmp_path, {4: 0.5, 8: 0.9, 12: 0.1})
    kept = {
        folder: sorted(path.stem for path in (tmp_path / folder).glob("*.index"))
        for folder in ("last", "best")
    }
    assert kept == {"last": ["step-12", "step-9"], "best": ["step-8"]}
    assert (checkpoints.LAST, checkpoints.BEST) == (2, 1)


# Names that are not yet there, and versions that are


def test_a_temporary_name_is_hidden_and_nobody_else_s(tmp_path):
    path = tmp_path / "results" / "case.nii.gz"
    with files.replacing(path) as first, files.replacing(path) as second:
        for partial in (first, second):
            assert partial.parent == path.parent and partial.name.startswith(".")
            assert partial.name.endswith(".nii.gz") and files.LEFT_OVER.fullmatch(partial.name)
            partial.write_text(partial.name)
        assert first != second
        assert not list(path.parent.glob("[!.]*"))  # whoever lists the folder meanwhile
    assert path.read_text() == first.name and [*path.parent.iterdir()] == [path]


@pytest.mark.parametrize("keep", [False, True])
def test_a_folder_of_another_process_stays_where_it_is_to_be_kept(tmp_path, keep):
    path = tmp_path / "version"
    with files.replacing(path, keep=keep) as partial:
        partial.mkdir()
        (partial / "mine").touch()
        path.mkdir()
        (path / "theirs").touch()
    assert [file.name for file in path.iterdir()] == ["theirs" if keep else "mine"]
    assert [*tmp_path.iterdir()] == [path]


def test_an_export_leaves_another_process_s_version_alone(tmp_path, monkeypatch):
    network = keras.Sequential([keras.Input((None, None, None, 1)), keras.layers.Conv3D(1, 1)])
    save = tf.saved_model.save

    def slow(module, folder, signatures):
        save(module, folder, signatures=signatures)
        (tmp_path / "1").mkdir()
        (tmp_path / "1" / "theirs").touch()

    def label(image):
        return {"label": tf.cast(network(image) > 0, tf.uint8)}

    monkeypatch.setattr(tf.saved_model, "save", slow)
    export.write(tmp_path, export.Exported({"serving_default": label}, {"network": network}, {}))
    assert [path.name for path in tmp_path.rglob("*")] == ["1", "theirs"]


def test_phantoms_of_another_process_stay(tmp_path):
    directory = tmp_path / "phantoms"

    def make(size, seed):
        (directory / "theirs").mkdir(parents=True, exist_ok=True)
        return np.zeros(size, np.uint8), np.ones(size, np.uint8), (1.0, 1.0)

    mine = phantom_folder.Phantoms(
        make=make,
        prefix="a",
        about={"file_ending": ".png"},
        labels={1: "b"},
        size=(4, 4),
        cases=(1, 1),
        seed=0,
    )
    phantom_folder.write(directory, mine)
    assert [path.name for path in directory.rglob("*")] == ["theirs"]


# Tables


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("name", tables.FILES)
def test_tables_killed_at_any_file_are_written_whole_the_next_time(tmp_path, killed, name, after):
    rows = [
        {
            **dict(zip(tables.LABELS, ("made up", "method", case, case, "head"))),
            **metrics.compare(np.eye(4) > 0, np.eye(4) + np.eye(4, k=number) > 0, (1, 1)),
        }
        for number, case in enumerate("ab")
    ]
    new, old = (
        {"failures": {case: "cut short"}, "curves": {("method", "head"): bins}}
        for case, bins in (("c", np.ones((10, 3))), ("d", np.zeros((10, 3))))
    )
    tables.write(tmp_path / "whole", rows, **new)
    tables.write(tmp_path / "run", rows[:1], **old)
    killed(name, after)
    with pytest.raises(Killed):
        tables.write(tmp_path / "run", rows, **new)
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert "scores.csv" not in left or left == set(tables.FILES)
    tables.write(tmp_path / "run", rows, **new)
    for file in tables.FILES:
        assert (tmp_path / "run" / file).read_text() == (tmp_path / "whole" / file).read_text()


# How many validate


@pytest.mark.parametrize(
    "cases, fraction, expected", [(8, 0.2, 2), (7, 0.2, 1), (5, 0.35, 2), (9, 0.3, 3), (2, 0.9, 1)]
)
def test_the_share_of_cases_that_validate_is_rounded(tmp_path, cases, fraction, expected):
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
        for number in range(cases):
            (tmp_path / folder / f"{number}.png").touch()
    data = datasets.load(tmp_path, 0, fraction)
    assert (len(data.train), len(data.validation)) == (cases - expected, expected)
