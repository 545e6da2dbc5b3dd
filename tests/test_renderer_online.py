"""Online rendering: rates, averaged weights, weights of the terms, mirrors; and all as before.

Networks are of one convolution each: what is tested is how they are updated and looked through.
"""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from helpers import grey
from test_renderer import BEFORE, ONCE, SETTINGS, corpus, networks, system, weights

from tf_autoctx.systems.renderer import online, terms, training
from tf_autoctx.systems.renderer.configuration import Objective

pytestmark = pytest.mark.usefixtures("plain_networks")


def rendered_with(tmp_path, chosen, variant="S2T-p", objective=ONCE, steps=1, image_seed=9):
    """The iterations of one image, and the networks after the last."""
    settings = dataclasses.replace(SETTINGS, steps=steps, learning_rate=online.LEARNING_RATE)
    render = online.OnlineRendering(
        system(variant), objective, networks(variant), corpus(tmp_path), settings, chosen
    )
    return render(tf.constant(grey(16, 16, 1, seed=image_seed))), render


def moved(render, variant="S2T-p"):
    """{network: mean distance of its weights from the trained ones}."""
    before, after = weights(networks(variant)), weights(render._networks)
    return {
        name: np.mean(
            np.concatenate([np.ravel(abs(a - b)) for a, b in zip(before[name], after[name])])
        )
        for name in before
    }


def test_discriminators_and_segmentor_have_their_own_rates_online(tmp_path):
    """Adam's first step is as long as the learning rate, whatever the gradient."""
    _, before = rendered_with(tmp_path, BEFORE)
    changes = {"online_discriminator_rate": 5e-4, "online_segmentor_step": 0.25}
    _, after = rendered_with(tmp_path, dataclasses.replace(BEFORE, **changes))
    factors = {name: moved(after)[name] / distance for name, distance in moved(before).items()}
    expected = {"renderer": 1, "segmentor": 0.25, "d_app": 5, "d_struct": 5}
    assert factors == pytest.approx(expected, rel=1e-2)
    frozen = dataclasses.replace(BEFORE, online_segmentor_step=0.0)
    assert moved(rendered_with(tmp_path, frozen)[1])["segmentor"] == 0


@pytest.mark.parametrize("order", ["summed", "shared", "published"])
def test_rates_hold_in_every_order(tmp_path, order):
    objective = dataclasses.replace(ONCE, update_order=order)
    half = dataclasses.replace(BEFORE, online_segmentor_step=0.5)
    distances = [
        moved(rendered_with(tmp_path, chosen, objective=objective)[1])["segmentor"]
        for chosen in (BEFORE, half)
    ]
    assert distances[1] == pytest.approx(distances[0] / 2, rel=0.05)


def test_the_answer_is_of_averaged_weights(tmp_path):
    """By hand: after one iteration, 0.8 of the trained weights and 0.2 of the present ones."""
    image = grey(1, 16, 16, 1, seed=9)
    plain, render = rendered_with(tmp_path, BEFORE)
    present, mean = render._networks, networks("S2T-p")
    for name in ("renderer", "segmentor"):
        both = zip(mean[name].get_weights(), present[name].get_weights())
        mean[name].set_weights([0.8 * a + 0.2 * b for a, b in both])
    expected = system("S2T-p").outputs(mean, image)
    averaged = dataclasses.replace(BEFORE, online_averaging=0.8)
    iterations, own = rendered_with(tmp_path, averaged)
    np.testing.assert_array_equal(iterations[0].probability, plain[0].probability)
    np.testing.assert_allclose(iterations[1].probability, expected["probability"][0], atol=1e-5)
    np.testing.assert_allclose(iterations[1].rendered, expected["rendered"][0], atol=1e-5)
    assert np.abs(iterations[1].rendered - plain[1].rendered).max() > 1e-5
    assert moved(own) == moved(render)  # what is updated is not what is averaged
    first = [iteration.probability for iteration in iterations]
    again = own(tf.constant(image[0]))
    for a, b in zip(first, again):
        np.testing.assert_array_equal(a, b.probability)  # and every image starts anew


def test_weights_go_back_to_the_best_iteration():
    variable = tf.Variable(0.0)
    best, seen = online._Best([variable], 0.5), []
    for number, agreement in enumerate([0.4, 0.6, 0.6, 0.5, 0.7, 0.1, 0.2, 0.3], start=1):
        variable.assign(number)
        best.look(agreement, 2)
        seen.append(float(variable))
    assert seen == [1, 2, 3, 2, 5, 6, 5, 8]  # twice not better than 0.6, than 0.7


def test_without_a_mask_there_is_nothing_to_go_back_to():
    variable = tf.Variable(0.0)
    best = online._Best([variable], 0.0)
    for _ in range(4):
        variable.assign_add(1.0)
        best.look(0.0, 1)
    assert float(variable) == 4


def test_renderer_and_segmentor_go_back_online_and_discriminators_learn_on(tmp_path, monkeypatch):
    averaged = dataclasses.replace(BEFORE, online_averaging=0.8)
    impatient = dataclasses.replace(averaged, online_patience=1)
    agreements = {id(chosen): iter([0.9, 0.8, 0.7, 0.6]) for chosen in (averaged, impatient)}
    look = online.OnlineRendering._look

    def fewer(self, batch, mirror):
        return look(self, batch, mirror)._replace(agreement=next(agreements[id(self.chosen)]))

    monkeypatch.setattr(online.OnlineRendering, "_look", fewer)
    gone, patient = rendered_with(tmp_path, averaged, steps=3)
    again, render = rendered_with(tmp_path, impatient, steps=3)
    distances = moved(render)
    assert distances["renderer"] == distances["segmentor"] == 0 < distances["d_app"]
    trained = weights(networks("S2T-p"))
    for name, averaged_weights in weights(render._averaged).items():
        np.testing.assert_equal(averaged_weights, trained[name])
    assert moved(patient)["renderer"] > 0 and render.kept(again) == 0
    np.testing.assert_array_equal(again[1].probability, gone[1].probability)
    assert np.any(again[2].probability != gone[2].probability)


def test_the_flags_of_before_give_the_answers_of_before(tmp_path):
    """Bit for bit, by the updates as they were: one rate, present weights, left to right."""
    image = tf.constant(grey(16, 16, 1, seed=9))
    iterations, render = rendered_with(tmp_path, BEFORE, "S2T", steps=2)
    settings = dataclasses.replace(SETTINGS, learning_rate=1e-4)
    trained, files = networks("S2T"), corpus(tmp_path)
    plan = terms.groups(trained, ONCE, online=True)
    update = tf.function(terms.updates(trained, plan, ONCE, settings, online=True)[1])
    outputs = training.graph(system("S2T"), trained)
    rng, given = np.random.default_rng(settings.seed), tf.stack([image, image[:, ::-1]])
    for iteration in iterations:
        made = outputs(given)
        np.testing.assert_array_equal(iteration.probability, made["probability"][0])
        np.testing.assert_array_equal(iteration.rendered, made["rendered"][0])
        update({"image": given, "real": render._real(rng)})
    assert len(files) == 5
    assert dataclasses.asdict(BEFORE) == {
        "online_discriminator_rate": 1e-4,
        "online_segmentor_step": 1.0,
        "online_averaging": 0.0,
        "online_patience": 0,
        "online_rendering_weight": 1.0,
        "online_app_weight": 1.0,
        "online_struct_weight": 1.0,
        "online_pair_weight": 1.0,
        "online_adversarial_mean": False,
        "online_mirror": "left_right",
        "online_keep": "agreement",
    }


def test_the_objective_online_is_that_of_the_flags(tmp_path, monkeypatch):
    """Weights tell in the losses of every term, see test_renderer.py."""
    seen, updates = [], terms.updates

    def recorded(networks, plan, objective, *arguments, **named):
        seen.append(objective)
        return updates(networks, plan, objective, *arguments, **named)

    monkeypatch.setattr(terms, "updates", recorded)
    chosen = dataclasses.replace(BEFORE, online_pair_weight=3.0)
    rendered_with(tmp_path, chosen, "S2T")
    assert seen == [dataclasses.replace(ONCE, pair_weight=3.0)]


def test_weights_online_are_factors_on_those_of_the_training():
    chosen = dataclasses.replace(BEFORE, online_rendering_weight=0.5, online_pair_weight=3.0)
    trained = Objective(rendering_weight=2.0, pair_weight=2.0, app_weight=0.5)
    online_ = chosen.objective(trained)
    expected = dataclasses.replace(
        trained, rendering_weight=1.0, rendering_aux_weight=0.5, pair_weight=6.0
    )
    assert online_ == expected and BEFORE.objective(trained) == trained
    both = dataclasses.replace(BEFORE, online_adversarial_mean=True).objective(trained)
    assert both == dataclasses.replace(trained, adversarial_mean=True)


def test_mirrored_either_way_by_the_image(tmp_path):
    _, render = rendered_with(
        tmp_path, dataclasses.replace(BEFORE, online_mirror="either"), steps=1
    )
    drawn = [render._mirror(grey(16, 16, 1, seed=seed), 0) for seed in range(20)]
    assert set(drawn) == {"left_right", "up_down"}
    assert drawn == [render._mirror(grey(16, 16, 1, seed=seed), 0) for seed in range(20)]
