"""The renderer system: loss terms and what they update, orders of updates, online rendering."""

import dataclasses
import subprocess
import sys
import textwrap
import types

import keras
import numpy as np
import pytest
import running
import tensorflow as tf

from tf_autoctx import losses
from tf_autoctx.data import pipeline
from tf_autoctx.errors import UserError
from tf_autoctx.systems import online, renderer, self_play
from tf_autoctx.training import loop

SETTINGS = loop.Settings(
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
OBJECTIVE = self_play.Objective(
    rendering_weight=1.0,
    rendering_aux_weight=1.0,
    dice_weight=10.0,
    update_order="shared",
    generator_updates=2,
)
ONCE = dataclasses.replace(OBJECTIVE, generator_updates=1)
PUBLISHED = self_play.Objective(1.0, 1.0, 10.0, "published", 2)


def system(variant="S2T", **changes):
    given = {"size": 16, "base_filters": 2, "initializer": "he", **changes}
    return renderer.Renderer(variant, **given)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).uniform(0, 1, shape).astype(np.float32)


def batch(names=renderer.DISCRIMINATORS, size=16):
    label = np.zeros((2, size, size, 1), np.uint8)
    label[:, 4:11, 3:13] = 1
    real = {
        name: noise(2, size, size, renderer.DISCRIMINATORS[name], seed=k)
        for k, name in enumerate(names, start=1)
    }
    return {
        "image": tf.constant(noise(2, size, size, 1)),
        "label": tf.constant(label),
        "real": real,
    }


def networks(variant="S2T", seed=0):
    keras.utils.set_random_seed(seed)
    return system(variant).networks()


def weights(found):
    return {name: [w.numpy() for w in network.trainable_weights] for name, network in found.items()}


def changed(before, after):
    return {
        name for name in before if any((a != b).any() for a, b in zip(before[name], after[name]))
    }


# Terms.


@pytest.mark.parametrize("online_", [False, True])
@pytest.mark.parametrize("term", self_play.TRAINING)
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
        assert term not in self_play.ONLINE
        return
    found = networks()
    optimizers, iteration = self_play.updates(found, [[term]], OBJECTIVE, SETTINGS, online_)
    before = weights(found)
    iteration(batch())
    assert set(optimizers) == {term} and changed(before, weights(found)) == table[term]


def test_every_loss_by_hand():
    found, given = networks(), batch()
    evaluation = self_play.Evaluation(found, given, training=False)
    values = {term: evaluation.losses(term, OBJECTIVE).numpy() for term in self_play.TRAINING}
    image = given["image"].numpy()
    made = {name: x.numpy() for name, x in found["renderer"](image).items()}
    logits = {name: x.numpy() for name, x in found["segmentor"](made["rendered"]).items()}
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
        p_fake = 1 / (1 + np.exp(-found[name](fake).numpy()[:, 0]))
        p_real = 1 / (1 + np.exp(-found[name](given["real"][name]).numpy()[:, 0]))
        np.testing.assert_allclose(values[f"{name}_generator"], -np.log(p_fake), rtol=1e-4)
        np.testing.assert_allclose(values[name], -np.log(p_real) - np.log(1 - p_fake), rtol=1e-4)


def test_weights_of_the_rendering_loss():
    evaluation = self_play.Evaluation(networks(), batch(), training=False)
    both, main, aux = (
        evaluation.losses("rendering", self_play.Objective(a, b, 1.0, "shared", 1)).numpy()
        for a, b in ((2.0, 3.0), (1.0, 0.0), (0.0, 1.0))
    )
    np.testing.assert_allclose(both, 2 * main + 3 * aux, rtol=1e-5)


# Orders.


def test_groups_of_an_iteration():
    generators = [
        "rendering",
        "d_app_generator",
        "segmentation",
        "d_struct_generator",
        "d_pair_generator",
    ]
    found = self_play.groups(renderer.VARIANTS["S2T"], OBJECTIVE)
    assert found == [generators, list(self_play.TRAINING)]
    assert self_play.groups(renderer.VARIANTS["S2T"], PUBLISHED) == [
        [term] for term in self_play.TRAINING
    ]
    counted = [
        term for (term,) in self_play.groups(renderer.VARIANTS["S2T"], PUBLISHED, online=True)
    ]
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
    without = self_play.groups(renderer.VARIANTS["S2T-sp"], OBJECTIVE, online=True)
    assert without == [["rendering", "d_app_generator"], ["rendering", "d_app_generator", "d_app"]]
    assert self_play.groups(renderer.VARIANTS["Orig-S2T"], OBJECTIVE) == [["segmentation"]] * 2
    assert self_play.groups(renderer.VARIANTS["Orig-S2T"], OBJECTIVE, online=True) == [[], []]


def test_one_group_is_every_term_at_the_weights_before():
    """Sharing an evaluation changes nothing: each term alone, from the same weights, moves its networks as much."""
    given, terms = batch(), ["d_struct_generator", "d_app_generator", "d_app"]
    shared = networks()
    _, iteration = self_play.updates(shared, [terms], OBJECTIVE, SETTINGS, online=True)
    start = weights(shared)
    iteration(given)
    moved = {name: [np.zeros_like(w) for w in found] for name, found in start.items()}
    for term in terms:
        alone = networks()
        _, iteration = self_play.updates(alone, [[term]], OBJECTIVE, SETTINGS, online=True)
        iteration(given)
        for name, found in weights(alone).items():
            moved[name] = [m + (w - s) for m, w, s in zip(moved[name], found, start[name])]
    for name, found in weights(shared).items():
        for w, s, m in zip(found, start[name], moved[name]):
            np.testing.assert_allclose(w - s, m, atol=1e-6)
    assert changed(start, weights(shared)) == {"renderer", "segmentor", "d_app"}


def test_the_published_order_sees_what_the_term_before_left():
    given, ends = batch(), []
    for plan in ([["rendering"], ["d_app_generator"]], [["rendering", "d_app_generator"]]):
        found = networks()
        self_play.updates(found, plan, OBJECTIVE, SETTINGS)[1](given)
        ends.append(weights(found)["renderer"])
    assert any((a != b).any() for a, b in zip(*ends))


def test_the_sum_of_terms_has_one_optimizer():
    """By hand: Adam on the sum of all generator terms, of the networks that they update between them."""
    given, order = batch(), dataclasses.replace(ONCE, update_order="summed")
    found, alone = networks(), networks()
    plan = self_play.groups(found, order, online=True)
    optimizers, iteration = self_play.updates(found, plan, order, SETTINGS, online=True)
    assert set(optimizers) == {"generators", *renderer.DISCRIMINATORS}
    seen = iteration(given)
    assert set(seen) == {*self_play.ONLINE, "loss"}

    generators = [term for term in self_play.ONLINE if term not in renderer.DISCRIMINATORS]
    segmentor = alone["segmentor"]
    main = keras.Model(
        segmentor.input, segmentor.output["logits"]
    ).trainable_variables  # no term reaches the others
    variables = [*alone["renderer"].trainable_variables, *main]
    with tf.GradientTape() as tape:
        evaluation = self_play.Evaluation(alone, given, training=False)
        total = sum(tf.reduce_mean(evaluation.losses(term, order)) for term in generators)
    gradients = tape.gradient(total, [variable.value for variable in variables])
    keras.optimizers.Adam(SETTINGS.learning_rate, beta_1=SETTINGS.beta_1).apply(
        gradients, variables
    )
    for name in ("renderer", "segmentor"):
        for mine, expected in zip(weights(found)[name], weights(alone)[name]):
            np.testing.assert_allclose(mine, expected, atol=1e-5)
    assert float(seen["loss"]) == pytest.approx(
        sum(float(seen[term]) for term in self_play.ONLINE), rel=1e-5
    )


def test_batch_norm_has_moving_statistics_online():
    given = batch()
    for online_ in (False, True):
        found = networks("S2T-sp")
        averages = lambda: [
            w.numpy() for n in found.values() for w in n.weights if "moving" in w.path
        ]
        before = averages()
        plan = self_play.groups(found, OBJECTIVE, online_)[1:]
        self_play.updates(found, plan, OBJECTIVE, SETTINGS, online_)[1](given)
        assert any((a != b).any() for a, b in zip(before, averages())) != online_


@pytest.mark.parametrize(
    "plan", [["rendering", "segmentation"], ["d_app"], ["d_struct"], ["d_pair"]]
)
def test_losses_fall_on_a_fixed_batch(plan):
    found, given = networks(), batch()
    iteration = tf.function(self_play.updates(found, [plan], OBJECTIVE, SETTINGS)[1])
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
            lambda sample, seed: {
                "fake": sample["image2d"][0, 0, 0],
                "real": tf.stack([other["image2d"][0, 0, 0] for other in sample["others"]]),
            },
            seed=3,
            first_step=0,
            steps=40,
            batch_size=2 // workers,
            replicas=workers,
            worker=worker,
            workers=workers,
            others=3,
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
        found = t.networks("S2T-sp")
        before = t.weights(found)
        _, iteration = t.self_play.updates(found, [["rendering", "d_app_generator", "d_app"]], t.ONCE, t.SETTINGS)
    strategy.run(tf.function(iteration), args=(given,))
    print("CHANGED", *sorted(t.changed(before, t.weights(found))))
    for network in found.values():
        for variable in network.weights:
            copies = [copy.numpy() for copy in strategy.experimental_local_results(variable.value)]
            print("SAME", len(copies), np.array_equal(*copies), np.all(np.isfinite(copies)))
    """)


def test_replicas_stay_alike(tmp_path):
    """Synchronized batch norm makes replicas wait for each other while the graph is made: nothing may lock them out."""
    command = [sys.executable, "-c", REPLICAS]
    ended = subprocess.run(
        command, cwd=running.ROOT, capture_output=True, encoding="utf-8", timeout=300
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    lines = [line.split() for line in ended.stdout.splitlines()]
    assert ["CHANGED", "d_app", "renderer"] in lines
    same = [line[1:] for line in lines if line[:1] == ["SAME"]]
    assert len(same) > 100 and all(found == ["2", "True", "True"] for found in same)


# Online.


@pytest.fixture(scope="module")
def rendering(tmp_path_factory):
    files = corpus(tmp_path_factory.mktemp("source"))
    found = networks("S2T-sp")
    return found, online.OnlineRendering(system("S2T-sp"), ONCE, found, files, SETTINGS)


def test_every_image_starts_from_the_trained_weights(rendering):
    found, render = rendering
    before = {name: network.get_weights() for name, network in found.items()}
    first, other, again = (render(tf.constant(noise(16, 16, 1, seed=seed))) for seed in (1, 2, 1))
    moved = weights(render._networks)
    assert changed(weights(found), moved) == {
        "renderer",
        "d_app",
    }  # without D_struct nothing moves the segmentor
    assert len(first) == SETTINGS.steps + 1
    for a, b in zip(first, again):
        np.testing.assert_array_equal(a.rendered, b.rendered)
        np.testing.assert_array_equal(a.probability, b.probability)
        assert a.agreement == b.agreement
    assert (first[-1].rendered != other[-1].rendered).any()
    for name, network in found.items():
        for a, b in zip(before[name], network.get_weights()):
            np.testing.assert_array_equal(a, b)


def test_iteration_0_is_the_trained_answer_and_later_ones_differ(rendering):
    found, render = rendering
    image = noise(16, 16, 1, seed=1)
    answer = system("S2T-sp").answer(found, image[None])
    passes = render(tf.constant(image))
    np.testing.assert_allclose(passes[0].rendered, answer["rendered"][0], atol=1e-6)
    np.testing.assert_allclose(passes[0].probability, answer["probability"][0], atol=1e-6)
    for a, b in zip(passes, passes[1:]):
        assert (a.rendered != b.rendered).any() and (a.probability != b.probability).any()


def test_the_kept_iteration_agrees_best_with_the_mirror_image():
    passes = [online.Iteration(None, None, agreement) for agreement in (0.8, 0.95, 0.9, 0.95)]
    assert online.kept(passes) == 1


def look(probability):
    """What online rendering sees where the networks answer this for an image and its mirror image."""
    answer = {name: tf.constant(probability, tf.float32) for name in ("rendered", "probability")}
    return online.OnlineRendering._look(types.SimpleNamespace(_answer=lambda batch: answer), None)


@pytest.mark.parametrize("everywhere", [0.0, 1.0])
def test_a_mask_that_is_empty_or_everywhere_agrees_with_nothing(everywhere):
    assert look(np.full((2, 16, 16, 1), everywhere)).agreement == 0


def test_agreement_by_hand():
    probability = np.zeros((2, 16, 16, 1))
    probability[0, 4:8, 2:8] = 1  # 24 pixels
    probability[1, 4:8, 7:14] = 1  # 28, mirrored back columns 2 to 8
    assert look(probability).agreement == pytest.approx(2 * 24 / (24 + 28))


# The system.


def test_preprocess_and_postprocess_by_hand():
    one, image = system(size=8), np.zeros((1, 16, 24, 1), np.float32)
    image[:, :, 12:] = 255
    x = one.preprocess(image).numpy()
    assert x.shape == (1, 8, 8, 1)
    # Three pixels a new one: the anti-aliasing triangle is 3 pixels to each side, its weights 1/9, 2/9, 3/9, 2/9, 1/9.
    expected = np.array([0, 0, 0, 1 / 9, 8 / 9, 1, 1, 1])
    np.testing.assert_allclose(x[0, :, :, 0], [expected] * 8, rtol=1e-5)
    answer = one.postprocess({"rendered": x, "probability": x}, (16, 24))
    np.testing.assert_allclose(answer["rendered"][:, :, 3:8], 0, atol=1e-4)
    np.testing.assert_allclose(answer["rendered"][:, :, 16:], 255, rtol=1e-5)
    np.testing.assert_array_equal(answer["label"], image > 0)
    assert answer["label"].dtype == "uint8"
    np.testing.assert_array_equal(
        one.preprocess_label((image > 0).astype(np.uint8))[0, :, :, 0], [[0] * 4 + [1] * 4] * 8
    )


def test_images_at_their_own_size():
    one = system(size=0, discriminator_head="pool")
    image = noise(2, 13, 22, 1) * 255
    np.testing.assert_array_equal(one.preprocess(image), image / np.float32(255))
    answer = one.segment(one.networks(), image)
    assert {name: tuple(x.shape) for name, x in answer.items()} == dict.fromkeys(
        answer, (2, 13, 22, 1)
    )


def test_segment_without_a_renderer_renders_nothing():
    one, image = system("Orig-S2T", size=16), np.round(noise(1, 16, 16, 1) * 255)
    np.testing.assert_allclose(one.segment(one.networks(), image)["rendered"], image, atol=1e-4)
    assert list(one.networks()) == ["segmentor"]


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"variant": "S2S"},
            "variant='S2S': expected one of S2T, S2T-p, S2T-sp, Orig-S2T, Orig-T2T",
        ),
        ({"size": 4}, "size=4: expected at least 8"),
        ({"size": 0}, "size=0: images of any size need discriminator_head=pool"),
        (
            {"discriminator_head": "max"},
            "discriminator_head='max': expected one of scaled, flatten, pool",
        ),
    ],
)
def test_bad_configurations(changes, message):
    with pytest.raises(ValueError, match=message):
        system(**changes)


def test_images_of_several_sizes_do_not_stack(tmp_path):
    files = corpus(tmp_path / "a", 2, 16) + corpus(tmp_path / "b", 2, 24)
    one = system(size=0, discriminator_head="pool")
    with pytest.raises(UserError, match=r"--batch_size=2: training images have different sizes"):
        self_play.train(one, OBJECTIVE, files, [], tmp_path, tf.distribute.get_strategy(), SETTINGS)


def test_too_few_images_to_have_a_real_one(tmp_path):
    with pytest.raises(UserError, match="all 2 training images are fakes at once"):
        self_play.train(
            system(),
            OBJECTIVE,
            corpus(tmp_path, 2),
            [],
            tmp_path / "run",
            tf.distribute.get_strategy(),
            SETTINGS,
        )


def test_an_unfinished_run_says_so(tmp_path):
    for read in (self_play.finished, self_play.rendered):
        with pytest.raises(UserError, match="run the training script with the same flags"):
            read(tmp_path)
