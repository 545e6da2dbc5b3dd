"""The renderer system: terms and what they update, orders of updates, online rendering."""

import dataclasses
import itertools
import subprocess
import sys
import textwrap
import types

import keras
import numpy as np
import pytest
import running
import tensorflow as tf
from held import held
from helpers import grey

from tf_autoctx import configuration as configurations
from tf_autoctx import losses
from tf_autoctx.data import pipeline
from tf_autoctx.errors import FieldError, UserError
from tf_autoctx.systems.renderer import online, source, terms, training
from tf_autoctx.systems.renderer.configuration import (
    DISCRIMINATORS,
    VARIANTS,
    Objective,
    Online,
    Renderer,
)
from tf_autoctx.systems.renderer.segmentation import Rendering
from tf_autoctx.systems.renderer.system import RendererSystem
from tf_autoctx.systems.shared.session import Session
from tf_autoctx.training.configuration import Settings
from tf_autoctx.training.runs import Run

SETTINGS = Settings(
    seed=0,
    steps=3,
    samples_per_epoch=4,
    checkpoint_steps=100,
    batch_size=2,
    learning_rate=1e-3,
    learning_rate_decay="constant",
    beta_1=0.5,
    patience=0,
)
OBJECTIVE = Objective(dice_weight=10.0, update_order="shared")
ONCE = dataclasses.replace(OBJECTIVE, generator_updates=1)
PUBLISHED = dataclasses.replace(OBJECTIVE, update_order="published")
BEFORE = configurations.configured(Online, {})  # as runs without these flags


def configuration(variant="S2T", **changes):
    return Renderer(
        **{"variant": variant, "size": 16, "base_filters": 2, "initializer": "he", **changes}
    )


def system(variant="S2T", **changes):
    return Rendering(configuration(variant, **changes))


def batch(names=DISCRIMINATORS, size=16):
    label = np.zeros((2, size, size, 1), np.uint8)
    label[:, 4:11, 3:13] = 1
    real = {
        name: grey(2, size, size, DISCRIMINATORS[name], seed=k)
        for k, name in enumerate(names, start=1)
    }
    return {
        "image": tf.constant(grey(2, size, size, 1)),
        "label": tf.constant(label),
        "real": real,
    }


def networks(variant="S2T", seed=0):
    keras.utils.set_random_seed(seed)
    return system(variant).networks()


def weights(networks):
    return {
        name: [w.numpy() for w in network.trainable_weights] for name, network in networks.items()
    }


def changed(before, after):
    return {
        name for name in before if any((a != b).any() for a, b in zip(before[name], after[name]))
    }


# Terms.


@pytest.mark.parametrize("online_", [False, True])
@pytest.mark.parametrize("term", terms.TRAINING)
def test_a_term_updates_what_the_table_says(term, online_):
    table = {
        "rendering": {"renderer"},
        "d_app_generator": {"renderer"},
        "segmentation": {"renderer", "segmentor"},
        "d_struct_generator": {"renderer", "segmentor"},
        "d_pair_generator": {"renderer"} if online_ else {"renderer", "segmentor"},
        "d_app": {"d_app"},
        "d_struct": {"d_struct"},
        "d_pair": {"d_pair"},
    }
    if online_ and term == "segmentation":
        assert term not in terms.ONLINE
        return
    trained = networks()
    optimizers, iteration = terms.updates(trained, [[term]], OBJECTIVE, SETTINGS, online_)
    before = weights(trained)
    iteration(batch())
    assert set(optimizers) == {term} and changed(before, weights(trained)) == table[term]


def test_every_loss_by_hand():
    trained, given = networks(), batch()
    outputs = terms.Outputs(trained, given, training=False)
    values = {term: outputs.losses(term, OBJECTIVE).numpy() for term in terms.TRAINING}
    image = given["image"].numpy()
    made = {name: x.numpy() for name, x in trained["renderer"](image).items()}
    logits = {name: x.numpy() for name, x in trained["segmentor"](made["rendered"]).items()}
    map_ = tf.nn.softmax(logits["logits"]).numpy()[..., 1:]
    fakes = {
        "d_app": made["rendered"],
        "d_struct": map_,
        "d_pair": np.concatenate([made["rendered"], map_], -1),
    }
    distance = sum(np.abs(image - made[name]).mean(axis=(1, 2, 3)) for name in ("rendered", "aux"))
    np.testing.assert_allclose(values["rendering"], distance, rtol=1e-5)
    expected = losses.HybridLoss(10.0)(given["label"], logits)
    np.testing.assert_allclose(values["segmentation"], expected, rtol=1e-5)
    for name, fake in fakes.items():
        p_fake = 1 / (1 + np.exp(-trained[name](fake).numpy()[:, 0]))
        p_real = 1 / (1 + np.exp(-trained[name](given["real"][name]).numpy()[:, 0]))
        np.testing.assert_allclose(values[f"{name}_generator"], -np.log(p_fake), rtol=1e-4)
        np.testing.assert_allclose(values[name], -np.log(p_real) - np.log(1 - p_fake), rtol=1e-4)


def test_weights_of_the_rendering_loss():
    outputs = terms.Outputs(networks(), batch(), training=False)
    both, main, aux = (
        outputs.losses("rendering", Objective(a, b)).numpy()
        for a, b in ((2.0, 3.0), (1.0, 0.0), (0.0, 1.0))
    )
    np.testing.assert_allclose(both, 2 * main + 3 * aux, rtol=1e-5)


def test_weights_of_what_generators_pay():
    outputs = terms.Outputs(networks(), batch(), training=False)
    weighted = {"app_weight": 2.0, "struct_weight": 3.0, "pair_weight": 4.0}
    for name, weight in zip(DISCRIMINATORS, weighted.values()):
        term = f"{name}_generator"
        plain, own, mean = (
            outputs.losses(term, Objective(**changes)).numpy()
            for changes in ({}, weighted, {"adversarial_mean": True})
        )
        np.testing.assert_allclose(own, weight * plain, rtol=1e-6)
        np.testing.assert_allclose(mean, plain / 3, rtol=1e-6)
        np.testing.assert_array_equal(  # the discriminators pay as before
            *(outputs.losses(name, objective) for objective in (Objective(), Objective(**weighted)))
        )
    alone = terms.Outputs(networks("S2T-sp"), batch(["d_app"]), training=False)
    one, mean = (
        alone.losses("d_app_generator", Objective(adversarial_mean=on)) for on in (False, True)
    )
    np.testing.assert_array_equal(one, mean)  # one discriminator


def test_mismatched_pairs_are_fakes_of_d_pair_by_hand():
    trained, given = networks(), batch()
    outputs = terms.Outputs(trained, given, training=False)
    plain, mixed = (
        outputs.losses("d_pair", Objective(mismatched_pairs=on)).numpy() for on in (False, True)
    )
    real = given["real"]["d_pair"]
    exchanged = np.concatenate([real[..., :1], real[::-1, ..., 1:]], axis=-1)
    logits = trained["d_pair"](exchanged).numpy()[:, 0]
    of_real = np.log1p(np.exp(-trained["d_pair"](real).numpy()[:, 0]))
    of_fake = plain - of_real
    np.testing.assert_allclose(mixed, of_real + (of_fake + np.log1p(np.exp(logits))) / 2, rtol=1e-4)
    others = [outputs.losses("d_app", Objective(mismatched_pairs=on)) for on in (False, True)]
    np.testing.assert_array_equal(*others)


def test_the_published_segmentation_loss_is_chosen():
    outputs = terms.Outputs(networks(), batch(), training=False)
    logits = networks()["segmentor"](networks()["renderer"](batch()["image"])["rendered"])
    chosen = outputs.losses("segmentation", Objective(segmentation_loss="published"))
    expected = losses.PublishedHybridLoss(100.0)(batch()["label"], logits)
    np.testing.assert_allclose(chosen, expected, rtol=1e-5)


# Orders.


def test_groups_of_an_iteration():
    generators = [
        "rendering",
        "d_app_generator",
        "segmentation",
        "d_struct_generator",
        "d_pair_generator",
    ]
    plan = terms.groups(VARIANTS["S2T"], OBJECTIVE)
    assert plan == [generators, list(terms.TRAINING)]
    assert terms.groups(VARIANTS["S2T"], PUBLISHED) == [[term] for term in terms.TRAINING]
    counted = [term for (term,) in terms.groups(VARIANTS["S2T"], PUBLISHED, online=True)]
    counts = {
        "rendering": 1,
        "d_app_generator": 2,
        "d_app": 1,
        "d_struct_generator": 3,
        "d_struct": 1,
    }
    assert {term: counted.count(term) for term in counted} == {
        **counts,
        "d_pair_generator": 2,
        "d_pair": 1,
    }
    without = terms.groups(VARIANTS["S2T-sp"], OBJECTIVE, online=True)
    assert without == [["rendering", "d_app_generator"], ["rendering", "d_app_generator", "d_app"]]
    assert terms.groups(VARIANTS["Orig-S2T"], OBJECTIVE) == [["segmentation"]] * 2
    assert terms.groups(VARIANTS["Orig-S2T"], OBJECTIVE, online=True) == [[], []]


def test_one_group_is_every_term_at_the_weights_before():
    """Sharing outputs changes nothing: each term alone, from the same weights, moves as much."""
    given, group = batch(), ["d_struct_generator", "d_app_generator", "d_app"]
    shared = networks()
    _, iteration = terms.updates(shared, [group], OBJECTIVE, SETTINGS, online=True)
    start = weights(shared)
    iteration(given)
    moved = {name: [np.zeros_like(w) for w in of_network] for name, of_network in start.items()}
    for term in group:
        alone = networks()
        _, iteration = terms.updates(alone, [[term]], OBJECTIVE, SETTINGS, online=True)
        iteration(given)
        for name, after in weights(alone).items():
            moved[name] = [m + (w - s) for m, w, s in zip(moved[name], after, start[name])]
    for name, after in weights(shared).items():
        for w, s, m in zip(after, start[name], moved[name]):
            np.testing.assert_allclose(w - s, m, atol=1e-6)
    assert changed(start, weights(shared)) == {"renderer", "segmentor", "d_app"}


def test_the_published_order_sees_what_the_term_before_left():
    given, ends = batch(), []
    for plan in ([["rendering"], ["d_app_generator"]], [["rendering", "d_app_generator"]]):
        trained = networks()
        terms.updates(trained, plan, OBJECTIVE, SETTINGS)[1](given)
        ends.append(weights(trained)["renderer"])
    assert any((a != b).any() for a, b in zip(*ends))


def test_the_sum_of_terms_has_one_optimizer():
    """By hand: Adam on the sum of all generator terms, of the networks that these update."""
    given, order = batch(), dataclasses.replace(ONCE, update_order="summed")
    trained, alone = networks(), networks()
    plan = terms.groups(trained, order, online=True)
    optimizers, iteration = terms.updates(trained, plan, order, SETTINGS, online=True)
    assert set(optimizers) == {"generators", *DISCRIMINATORS}
    seen = iteration(given)
    assert set(seen) == {*terms.ONLINE, "loss"}

    generators = [term for term in terms.ONLINE if term not in DISCRIMINATORS]
    segmentor = alone["segmentor"]
    main = keras.Model(
        segmentor.input, segmentor.output["logits"]
    ).trainable_variables  # no term reaches the others
    variables = [*alone["renderer"].trainable_variables, *main]
    with tf.GradientTape() as tape:
        outputs = terms.Outputs(alone, given, training=False)
        total = sum(tf.reduce_mean(outputs.losses(term, order)) for term in generators)
    gradients = tape.gradient(total, [variable.value for variable in variables])
    keras.optimizers.Adam(SETTINGS.learning_rate, beta_1=SETTINGS.beta_1).apply(
        gradients, variables
    )
    for name in ("renderer", "segmentor"):
        for mine, expected in zip(weights(trained)[name], weights(alone)[name]):
            np.testing.assert_allclose(mine, expected, atol=1e-5)
    assert float(seen["loss"]) == pytest.approx(
        sum(float(seen[term]) for term in terms.ONLINE), rel=1e-5
    )


def averages(networks):
    return [w.numpy() for n in networks.values() for w in n.weights if "moving" in w.path]


def test_batch_norm_has_moving_statistics_online():
    given = batch()
    for online_ in (False, True):
        trained = networks("S2T-sp")
        before = averages(trained)
        plan = terms.groups(trained, OBJECTIVE, online_)[1:]
        terms.updates(trained, plan, OBJECTIVE, SETTINGS, online_)[1](given)
        assert any((a != b).any() for a, b in zip(before, averages(trained))) != online_


@pytest.mark.parametrize(
    "plan", [["rendering", "segmentation"], ["d_app"], ["d_struct"], ["d_pair"]]
)
def test_losses_fall_on_a_fixed_batch(plan):
    trained, given = networks(), batch()
    _, update = terms.updates(trained, [plan], OBJECTIVE, SETTINGS)
    iteration = tf.function(update, autograph=False)
    seen = [{name: float(value) for name, value in iteration(given).items()} for _ in range(25)]
    for term in plan:
        assert seen[-1][term] < seen[0][term]
    assert seen[0]["loss"] == pytest.approx(sum(seen[0][term] for term in plan), rel=1e-5)


# Samples.


def corpus(tmp_path, cases=5, size=16):
    """Files of small cases: every pixel of image k is k / 10."""
    files = []
    for case in range(cases):
        label = np.zeros((size, size, 1), np.uint8)
        label[4:11, 3:13] = 1
        entry = {"image2d": np.full((size, size, 1), case / 10, np.float32), "label2d": label}
        entry |= {"spacing": np.float32([0.2, 0.2]), "pixel": np.float32([1, 1])}
        for name, tensor in entry.items():
            pipeline.store(tmp_path / f"case_{case}" / name, tensor)
        files.append({name: str(tmp_path / f"case_{case}" / name) for name in entry})
    return files


@pytest.mark.parametrize("workers", [1, 2])
def test_real_samples_are_never_of_the_step(tmp_path, workers):
    files = corpus(tmp_path)
    columns = {name: [entry[name] for entry in files] for name in files[0]}
    seen, reals = set(), set()
    for worker in range(workers):
        batches = pipeline.training(
            columns,
            lambda case, seed: {
                "fake": case["image2d"].whole()[0, 0, 0],
                "real": tf.stack([other["image2d"].whole()[0, 0, 0] for other in case["others"]]),
            },
            pipeline.Order(
                seed=3,
                steps=40,
                batch_size=2 // workers,
                replicas=workers,
                worker=worker,
                workers=workers,
                others=3,
            ),
            lambda drawn, seed: drawn,
        )
        steps = list(batches.as_numpy_iterator())
        assert len(steps) == 40 and steps[0]["real"].shape == (2 // workers, 3)
        seen |= {(step, float(fake)) for step, drawn in enumerate(steps) for fake in drawn["fake"]}
        reals |= {
            (step, float(real))
            for step, drawn in enumerate(steps)
            for real in drawn["real"].ravel()
        }
    assert not seen & reals
    assert all(len({fake for at, fake in seen if at == step}) == 2 for step in range(40))
    assert len({real for _, real in reals}) == 5


REPLICAS = textwrap.dedent("""
    import dataclasses, sys
    import numpy as np, tensorflow as tf
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    sys.path.insert(0, "tests")
    from tf_autoctx.training import devices
    import test_renderer as t
    strategy, given = devices.strategy("mirrored"), t.batch(["d_app"])
    with strategy.scope():
        trained = t.networks("S2T-sp")
        before = t.weights(trained)
        plan = [["rendering", "d_app_generator", "d_app"]]
        _, iteration = t.terms.updates(trained, plan, t.ONCE, t.SETTINGS)
    strategy.run(tf.function(iteration, autograph=False), args=(given,))
    print("CHANGED", *sorted(t.changed(before, t.weights(trained))))
    for network in trained.values():
        for variable in network.weights:
            copies = [copy.numpy() for copy in strategy.experimental_local_results(variable.value)]
            print("SAME", len(copies), np.array_equal(*copies), np.all(np.isfinite(copies)))
    """)


def test_replicas_stay_alike(tmp_path):
    """Synchronized batch norm makes replicas wait for each other while the graph is made: nothing
    may lock them out."""
    command = [sys.executable, "-c", REPLICAS]
    ended = subprocess.run(
        command, cwd=running.ROOT, capture_output=True, encoding="utf-8", timeout=300
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    lines = [line.split() for line in ended.stdout.splitlines()]
    assert ["CHANGED", "d_app", "renderer"] in lines
    same = [line[1:] for line in lines if line[:1] == ["SAME"]]
    assert len(same) > 100 and all(words == ["2", "True", "True"] for words in same)


# Online.


@pytest.fixture(scope="module")
def rendering(tmp_path_factory):
    files = corpus(tmp_path_factory.mktemp("source"))
    trained = networks("S2T-sp")
    return trained, online.OnlineRendering(system("S2T-sp"), ONCE, trained, files, SETTINGS, BEFORE)


def test_every_image_starts_from_the_trained_weights(rendering):
    trained, render = rendering
    before = {name: network.get_weights() for name, network in trained.items()}
    first, other, again = (render(tf.constant(grey(16, 16, 1, seed=seed))) for seed in (1, 2, 1))
    moved = weights(render._networks)
    assert changed(weights(trained), moved) == {
        "renderer",
        "d_app",
    }  # without D_struct nothing moves the segmentor
    assert len(first) == SETTINGS.steps + 1
    for a, b in zip(first, again):
        np.testing.assert_array_equal(a.rendered, b.rendered)
        np.testing.assert_array_equal(a.probability, b.probability)
        assert a.agreement == b.agreement
    assert (first[-1].rendered != other[-1].rendered).any()
    for name, network in trained.items():
        for a, b in zip(before[name], network.get_weights()):
            np.testing.assert_array_equal(a, b)


def test_iteration_0_is_of_the_trained_weights_and_later_ones_differ(rendering):
    trained, render = rendering
    image = grey(16, 16, 1, seed=1)
    expected = system("S2T-sp").outputs(trained, image[None])
    iterations = render(tf.constant(image))
    np.testing.assert_allclose(iterations[0].rendered, expected["rendered"][0], atol=1e-6)
    np.testing.assert_allclose(iterations[0].probability, expected["probability"][0], atol=1e-6)
    for a, b in itertools.pairwise(iterations):
        assert (a.rendered != b.rendered).any() and (a.probability != b.probability).any()


def test_the_kept_iteration_agrees_best_with_the_mirror_image():
    iterations = [online.Iteration(None, None, agreement) for agreement in (0.8, 0.95, 0.9, 0.95)]
    assert online.kept(iterations, "agreement") == 1 and online.kept(iterations, "last") == 3


def look(probability, mirror="left_right"):
    """What online rendering sees where the networks make this of an image and its mirror image."""
    outputs = {name: tf.constant(probability, tf.float32) for name in ("rendered", "probability")}
    networks = types.SimpleNamespace(_outputs=lambda batch: outputs)
    return online.OnlineRendering._look(networks, None, mirror)


@pytest.mark.parametrize("everywhere", [0.0, 1.0])
def test_a_mask_that_is_empty_or_everywhere_agrees_with_nothing(everywhere):
    assert look(np.full((2, 16, 16, 1), everywhere)).agreement == 0


def test_agreement_by_hand():
    probability = np.zeros((2, 16, 16, 1))
    probability[0, 4:8, 2:8] = 1  # 24 pixels
    probability[1, 4:8, 7:14] = 1  # 28, mirrored back columns 2 to 8
    assert look(probability).agreement == pytest.approx(2 * 24 / (24 + 28))
    assert look(probability, "up_down").agreement == 0  # rows 4 to 7 against 8 to 11
    turned = probability.transpose(0, 2, 1, 3)
    assert look(turned, "up_down").agreement == pytest.approx(2 * 24 / (24 + 28))


# The system.


def test_preprocess_and_postprocess_by_hand():
    rendering, image = system(size=8), np.zeros((1, 16, 24, 1), np.float32)
    image[:, :, 12:] = 255
    x = rendering.preprocess(image).numpy()
    assert x.shape == (1, 8, 8, 1)
    # Three pixels a new one: the anti-aliasing triangle is 3 pixels to each side, its weights 1/9,
    # 2/9, 3/9, 2/9, 1/9.
    expected = np.array([0, 0, 0, 1 / 9, 8 / 9, 1, 1, 1])
    np.testing.assert_allclose(x[0, :, :, 0], [expected] * 8, rtol=1e-5)
    output = rendering.postprocess({"rendered": x, "probability": x}, (16, 24))
    np.testing.assert_allclose(output["rendered"][:, :, 3:8], 0, atol=1e-4)
    np.testing.assert_allclose(output["rendered"][:, :, 16:], 255, rtol=1e-5)
    np.testing.assert_array_equal(output["label"], image > 0)
    assert output["label"].dtype == "uint8"
    np.testing.assert_array_equal(
        rendering.preprocess_label((image > 0).astype(np.uint8))[0, :, :, 0],
        [[0] * 4 + [1] * 4] * 8,
    )


def test_images_at_their_own_size():
    rendering = system(size=0, discriminator_head="pool")
    image = grey(2, 13, 22, 1) * 255
    np.testing.assert_array_equal(rendering.preprocess(image), image / np.float32(255))
    outputs = rendering.outputs(rendering.networks(), rendering.preprocess(image))
    output = rendering.postprocess(outputs, (13, 22))
    assert {name: tuple(x.shape) for name, x in output.items()} == dict.fromkeys(
        output, (2, 13, 22, 1)
    )


def test_segment_without_a_renderer_renders_nothing():
    rendering, image = system("Orig-S2T", size=16), np.round(grey(1, 16, 16, 1) * 255)
    outputs = rendering.outputs(rendering.networks(), rendering.preprocess(image))
    output = rendering.postprocess(outputs, (16, 16))
    np.testing.assert_allclose(output["rendered"], image, atol=1e-4)
    assert list(rendering.networks()) == ["segmentor"]


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"variant": "S2S"},
            "variant=S2S: expected one of S2T, S2T-p, S2T-sp, Orig-S2T, Orig-T2T",
        ),
        ({"size": 4}, "size=4: expected at least 8"),
        ({"size": 0}, "size=0: images of any size need `discriminator_head=pool`"),
        (
            {"discriminator_head": "max"},
            "discriminator_head=max: expected one of scaled, flatten, pool",
        ),
    ],
)
def test_bad_configurations(changes, message):
    with pytest.raises(ValueError, match=message):
        system(**changes)


def session(files, folder):
    """A training on cached cases, of which none validates."""
    values, run = dataclasses.asdict(OBJECTIVE), Run(folder, {})
    return Session(run, values, tf.distribute.get_strategy(), SETTINGS, files, [])


def test_images_of_several_sizes_do_not_stack(tmp_path):
    files = corpus(tmp_path / "a", 2, 16) + corpus(tmp_path / "b", 2, 24)
    rendering = system(size=0, discriminator_head="pool")
    with pytest.raises(FieldError, match="batch_size=2: training images have different sizes"):
        training.train(rendering, session(files, tmp_path))


def test_too_few_images_to_have_a_real_one(tmp_path):
    files = corpus(tmp_path, 2)
    with pytest.raises(FieldError, match="batch_size=2: all 2 training images are fakes at once"):
        training.train(system(), session(files, tmp_path / "run"))


def test_mismatched_pairs_need_another_mask(tmp_path):
    alone = session(corpus(tmp_path), tmp_path / "run")
    values = {**alone.values, "mismatched_pairs": True}
    alone = dataclasses.replace(alone, values=values).with_settings(batch_size=1)
    with pytest.raises(FieldError, match="batch_size=1: leaves no other mask"):
        training.train(system(), alone)


@pytest.mark.parametrize("variant", ["Orig-S2T", "S2T-sp"])
def test_the_appearance_of_fakes_alone_changes(tmp_path, variant):
    files = corpus(tmp_path)
    entry = {name: pipeline.stored(files[3][name], name) for name in files[3]}
    sample = {**entry, "others": (entry,)} if variant == "S2T-sp" else entry
    plain = session(files, tmp_path / "run")
    values = {**plain.values, "appearance_strength": 1.0}
    seen = []
    for given in (plain, dataclasses.replace(plain, values=values)):
        stage = training.SelfPlayStage(system(variant), given)
        seed = tf.constant([1, 2], tf.int64)
        seen.append(stage.augment(stage.read(held(sample), seed), seed))
    np.testing.assert_array_equal(seen[0]["image"], entry["image2d"])
    assert np.abs(seen[1]["image"] - entry["image2d"]).mean() > 0.01
    np.testing.assert_array_equal(seen[1]["label"], entry["label2d"])
    for name, real in seen[1]["real"].items():
        np.testing.assert_array_equal(real, seen[0]["real"][name])


def test_real_images_are_moved_as_fakes_are_each_by_itself_and_keep_their_grey(tmp_path):
    entry = {name: pipeline.stored(path, name) for name, path in corpus(tmp_path)[3].items()}
    entry["image2d"] = tf.constant(grey(16, 16, 1))
    plain = session(corpus(tmp_path), tmp_path / "run")
    values = {**plain.values, "flips": True, "intensity_jitter": 0.5}
    stage = training.SelfPlayStage(system("S2T"), dataclasses.replace(plain, values=values))
    sample = {**entry, "others": (entry,) * 3}
    image, mask = entry["image2d"].numpy(), entry["label2d"].numpy()
    mirrors = [np.flip(np.concatenate([image, mask], -1), axes) for axes in ((), 0, 1, (0, 1))]
    found = []
    for number in range(12):
        seed = tf.constant([1, number], tf.int64)
        real = stage.augment(stage.read(held(sample), seed), seed)["real"]
        app, struct, pair = (np.array(real[name]) for name in ("d_app", "d_struct", "d_pair"))
        found.append(
            tuple(
                next(n for n, mirror in enumerate(mirrors) if np.array_equal(x, mirror[..., part]))
                for x, part in ((app, [0]), (struct, [1]), (pair, [0, 1]))
            )
        )
    assert {which[0] for which in found} == {which[2] for which in found} == {0, 1, 2, 3}
    assert len(set(found)) > 6


def test_pixels_of_a_squeezed_image_are_known(tmp_path):
    """Of 12 by 40 pixels, brought to 16 by 16."""
    label = np.zeros((1, 12, 40, 1), np.uint8)
    label[:, 4:9, 10:30] = 1
    tensors = RendererSystem(configuration(), {1: "head"}).prepare(
        None, 255 * grey(1, 12, 40, 1), label
    )
    np.testing.assert_allclose(tensors["pixel"], [0.75, 2.5])
    whole = RendererSystem(
        configuration("Orig-S2T", size=0, discriminator_head="pool"), {1: "head"}
    ).prepare(None, 255 * grey(1, 12, 40, 1), label)
    np.testing.assert_allclose(whole["pixel"], [1, 1])


def test_changes_of_grey_levels_that_are_asked_for_twice_are_refused():
    losses = {"loss": "paper", "segmentation_loss": "hybrid"}
    values = {"appearance_strength": 0.5, "gamma": 0.5, **losses}
    with pytest.raises(FieldError, match=r"appearance_strength=0\.5: changes all that"):
        RendererSystem.implied(values)
    assert RendererSystem.implied({**values, "gamma": 0.0, "rotation": 10.0}) == {}


def test_rendered_images_of_an_earlier_release_are_read_as_far_as_they_are_whole(tmp_path):
    """Serialized tensors, each with its fingerprint behind it, in 0.1.0 alone."""
    path, image = tmp_path / "rendered" / "case_1" / "image2d", grey(6, 5)[..., None]
    path.parent.mkdir(parents=True)
    serialized = tf.io.serialize_tensor(image.astype(np.float32))
    content = serialized.numpy() + tf.fingerprint(serialized[None])[0].numpy().tobytes()
    for whole in (content, content[:-8]):
        path.write_bytes(whole)
        np.testing.assert_array_equal(source.read(str(path), "image2d"), image)
    flipped = content[:-20] + bytes([content[-20] ^ 1]) + content[-19:]
    for damaged in (flipped, content[:-1], content[:-9], content[:5], b""):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=f"^{path}: missing, cut short or damaged"):
            source.read(str(path), "image2d")


def test_an_unfinished_run_says_so(tmp_path):
    expected = "is not there; run the training command with the same flags"
    with pytest.raises(UserError, match=expected):
        training.finished(tmp_path, configuration())
    with pytest.raises(UserError, match=expected):
        source.rendered(tmp_path)
