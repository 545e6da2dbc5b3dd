import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import special

from tf_autoctx import losses

LOG2, LOG3 = np.log(2), np.log(3)
# Two voxels: the odds of class 1 are 3 to 1 in the first and 1 to 1 in the second.
LABEL = np.reshape([1, 0], (1, 2, 1)).astype(np.uint8)
LOGITS = np.reshape([[0, LOG3], [0, 0]], (1, 2, 2)).astype(np.float32)


def random_case(*spatial, classes=3, batch=2, seed=0):
    draw = np.random.default_rng(seed)
    label = draw.integers(0, classes, (batch, *spatial, 1)).astype(np.uint8)
    return label, draw.normal(0, 3, (batch, *spatial, classes)).astype(np.float32)


def with_gradient(loss, label, logits):
    """(values, gradient of their sum)."""
    logits = tf.nest.map_structure(tf.constant, logits)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        values = loss(label, logits)
    return np.array(values), tf.nest.map_structure(np.array, tape.gradient(values, logits))


# In NumPy, one voxel at a time.


def voxels(label, logits):
    """[(class, probabilities), ...] of one sample."""
    p = special.softmax(logits.astype(np.float64), axis=-1)
    return list(zip(np.ravel(label), p.reshape(-1, p.shape[-1])))


def cross_entropy(label, logits, weights=None):
    return np.mean(
        [-np.log(p[k]) * (1 if weights is None else weights[k]) for k, p in voxels(label, logits)]
    )


def overlaps(label, logits, power):
    """2 sum(p l) / (sum(p^power) + sum(l)) of each class of one sample."""
    pairs = voxels(label, logits)
    return [
        2
        * sum(p[k] for truth, p in pairs if truth == k)
        / sum(p[k] ** power + (truth == k) for truth, p in pairs)
        for k in range(logits.shape[-1])
    ]


# Cross entropy.


def test_cross_entropy_of_two_voxels():
    # -log(3/4) and -log(1/2), half of each.
    np.testing.assert_allclose(
        losses.cross_entropy(LABEL, LOGITS), [(np.log(4 / 3) + LOG2) / 2], rtol=1e-5
    )
    # Class 1 weighs 5, class 0 weighs 2.
    weighted = losses.cross_entropy(LABEL, LOGITS, np.array([[2, 5]], np.float32))
    np.testing.assert_allclose(weighted, [(5 * np.log(4 / 3) + 2 * LOG2) / 2], rtol=1e-5)


@pytest.mark.parametrize("spatial", [(5, 6), (5, 9, 7)])
def test_deep_supervision_takes_every_2nd_and_4th_label(spatial):
    label, main = random_case(*spatial)
    half = random_case(*(-(-n // 2) for n in spatial), seed=1)[1]
    quarter = random_case(*(-(-n // 4) for n in spatial), seed=2)[1]
    few, fewer = [(slice(None), *(slice(None, None, n) for _ in spatial)) for n in (2, 4)]
    loss = losses.DeepSupervisedLoss()
    values = loss(label, {"logits": main, "logits_half": half, "logits_quarter": quarter})
    scales = [(label, main), (label[few], half), (label[fewer], quarter)]
    expected = [
        sum(cross_entropy(truth[i], logits[i]) for truth, logits in scales) for i in range(2)
    ]
    np.testing.assert_allclose(values, expected, rtol=1e-5)
    alone = [cross_entropy(label[i], main[i]) for i in range(2)]
    np.testing.assert_allclose(loss(label, {"logits": main}), alone, rtol=1e-5)


def test_the_gradient_lives_where_the_probability_is_0():
    # p of the true class is exp(-200), 0 in float32: the clipped logarithm would stop here.
    loss = losses.DeepSupervisedLoss()
    values, gradient = with_gradient(loss, LABEL[:, :1], {"logits": np.float32([[[200, 0]]])})
    np.testing.assert_allclose(values, [200])
    np.testing.assert_allclose(gradient["logits"], [[[1, -1]]])


# Dice.


def test_dice_of_two_voxels():
    # Class 0: p = 1/4, 1/2, truth 0, 1; class 1: p = 3/4, 1/2, truth 1, 0.
    expected = -(2 * 0.5 / (0.75 + 1) + 2 * 0.75 / (1.25 + 1)) / 2
    np.testing.assert_allclose(losses.DiceLoss()(LABEL, LOGITS), [expected], atol=1e-5)


@pytest.mark.parametrize("spatial", [(6, 7), (4, 5, 6)])
def test_dice_equals_the_formula(spatial):
    label, logits = random_case(*spatial)
    expected = [-np.mean(overlaps(label[i], logits[i], power=1)) for i in range(2)]
    np.testing.assert_allclose(losses.DiceLoss()(label, logits), expected, rtol=1e-4)


@pytest.mark.parametrize("found, expected", [([0, 1, 1, 0], -1), ([1, 0, 0, 1], -1 / 3)])
def test_dice_of_extreme_logits(found, expected):
    # Right or wrong everywhere; class 2, absent from both, counts as perfect.
    label = np.reshape([0, 1, 1, 0], (1, 4, 1)).astype(np.uint8)
    logits = np.float32([[[1e4 if k == truth else -1e4 for k in range(3)] for truth in found]])
    values, gradient = with_gradient(losses.DiceLoss(), label, logits)
    np.testing.assert_allclose(values, [expected], atol=1e-4)
    assert np.all(np.isfinite(gradient))


def test_an_absent_class_counts_as_perfect():
    label, logits = np.zeros((1, 4, 1), np.uint8), np.tile(np.float32([50, 0]), (1, 4, 1))
    np.testing.assert_allclose(losses.DiceLoss()(label, logits), [-1], atol=1e-5)


def test_a_missed_class_counts_as_0():
    # Class 0 found in 3 of 4 voxels with one false: 2 * 3 / (4 + 3); class 1 missed.
    label, logits = (
        np.reshape([0, 0, 0, 1], (1, 4, 1)).astype(np.uint8),
        np.tile(np.float32([50, 0]), (1, 4, 1)),
    )
    np.testing.assert_allclose(losses.DiceLoss()(label, logits), [-(6 / 7 + 0) / 2], atol=1e-5)


def test_dice_over_the_batch():
    # A second sample of class 0, with p = 3/4 at both voxels. Class 0: 2 * (1/2 + 3/2) of
    # (1/4 + 1/2 + 3/2) + 3; class 1: 2 * 3/4 of (3/4 + 1/2 + 1/2) + 1.
    label = np.concatenate([LABEL, np.zeros_like(LABEL)])
    logits = np.concatenate([LOGITS, np.log(np.float32([[[3, 1], [3, 1]]]))])
    expected = -(4 / 5.25 + 1.5 / 2.75) / 2
    found = losses.DiceLoss(batch_dice=True)(label, logits)
    np.testing.assert_allclose(found, [expected] * 2, rtol=1e-5)
    by_sample = losses.DiceLoss()(label, logits)
    assert abs(np.mean(by_sample) - expected) > 0.05
    # With another term, and the same of regions: class 1 alone, by its sigmoid.
    both = losses.ClassLoss(batch_dice=True)(label, logits)
    np.testing.assert_allclose(both - found, losses.cross_entropy(label, logits), rtol=1e-4)
    region = np.float32([[[3], [1]], [[1 / 3], [1 / 3]]])
    of_region = losses.RegionLoss(((1,),), ("dice",), batch_dice=True)(label, np.log(region))
    np.testing.assert_allclose(of_region, [-1.5 / 2.75] * 2, rtol=1e-5)
    # One sample is a batch.
    alone = losses.DiceLoss(batch_dice=True)(LABEL, LOGITS)
    np.testing.assert_array_equal(alone, losses.DiceLoss()(LABEL, LOGITS))


@pytest.mark.parametrize(
    "epsilon, first, second", [(1e-5, 6 / 7, 0), (1, 7 / 8, 1 / 2), (9, 15 / 16, 9 / 10)]
)
def test_what_epsilon_makes_of_a_class_that_is_not_there(epsilon, first, second):
    # Class 0 at all of 4 voxels, p = 3/4: (2 * 3 + e) / (3 + 4 + e); class 1, p = 1/4, is worth one
    # voxel: e / (1 + e).
    label = np.zeros((1, 4, 1), np.uint8)
    logits = np.tile(np.log(np.float32([3, 1])), (1, 4, 1))
    found = losses.DiceLoss(epsilon=epsilon)(label, logits)
    np.testing.assert_allclose(found, [-(first + second) / 2], atol=2e-5)
    region = np.tile(np.log(np.float32([1 / 3])), (1, 4, 1))
    found = losses.RegionLoss(((1,),), ("dice",), epsilon=epsilon)(label, region)
    np.testing.assert_allclose(found, [-second], atol=2e-5)


def test_certainty_beyond_reason_is_rewarded_where_epsilon_is_small():
    """What a class of 32^3 voxels that is not there gains from p = 1e-4, then 1e-9 a voxel, to
    1e-12: 3.3 voxels, then none. By an epsilon of 100 voxels nothing but the former is worth
    learning."""
    label = np.zeros((1, 32768, 1), np.uint8)

    def dice(p, epsilon):
        logits = np.tile(np.float32([0, np.log(p)]), (1, 32768, 1))
        return -2 * losses.DiceLoss(epsilon=epsilon)(label, logits)[0] - 1

    tiny, organ = ([float(dice(p, e)) for p in (1e-4, 1e-9, 1e-12)] for e in (1e-5, 100.0))
    np.testing.assert_allclose(tiny, [0, 1e-5 / (3.3e-5 + 1e-5), 1], atol=2e-2)
    np.testing.assert_allclose(organ, [100 / 103.3, 1, 1], atol=1e-3)


# Dice with squares, from probabilities.


def squared_dice(label, logits):
    truth = np.ravel(label)[..., None] == np.arange(logits.shape[-1])
    return losses.SquaredDiceLoss()(truth.reshape(logits.shape), tf.nn.softmax(logits))


def test_squared_dice_of_two_voxels():
    p, truth = np.float32([[[0.25], [0.5]]]), np.float32([[[1], [0]]])
    expected = -2 * 0.25 / (0.0625 + 0.25 + 1)
    np.testing.assert_allclose(losses.SquaredDiceLoss()(truth, p), [expected], atol=1e-5)
    # The complement beside it: p = 3/4, 1/2 and truth 0, 1.
    both = losses.SquaredDiceLoss()(
        np.concatenate([truth, 1 - truth], -1), np.concatenate([p, 1 - p], -1)
    )
    np.testing.assert_allclose(both, [(expected - 2 * 0.5 / (0.5625 + 0.25 + 1)) / 2], atol=1e-5)


@pytest.mark.parametrize("spatial", [(6, 7), (4, 5, 6)])
def test_squared_dice_equals_the_formula(spatial):
    label, logits = random_case(*spatial)
    expected = [-np.mean(overlaps(label[i], logits[i], power=2)) for i in range(2)]
    np.testing.assert_allclose(squared_dice(label, logits), expected, rtol=1e-4)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float32])
@pytest.mark.parametrize(
    "found, expected", [([0, 1, 1, 0], -1), ([1, 0, 0, 1], 0), ([1, 1, 1, 1], -2 / 3)]
)
def test_squared_dice_of_sure_answers(found, expected, dtype):
    truth, p = (
        np.reshape([0, 1, 1, 0], (1, 4, 1)).astype(dtype),
        np.reshape(found, (1, 4, 1)).astype(np.float32),
    )
    values, gradient = with_gradient(losses.SquaredDiceLoss(), truth, p)
    np.testing.assert_allclose(values, [expected], atol=1e-4)
    assert np.all(np.isfinite(gradient))


def test_squared_dice_of_a_channel_absent_from_both_is_perfect():
    nothing = np.zeros((1, 4, 5, 6, 1), np.float32)
    values, gradient = with_gradient(losses.SquaredDiceLoss(), nothing, nothing)
    np.testing.assert_allclose(values, [-1])
    assert np.all(np.isfinite(gradient))


# Hybrid.


def test_hybrid_of_two_voxels():
    # Class 0: p = 1/4, 1/2 and truth 0, 1; class 1: p = 3/4, 1/2 and truth 1, 0; both classes weigh
    # 1 - 1/2.
    dice = -(2 * 0.5 / (0.0625 + 0.25 + 1) + 2 * 0.75 / (0.5625 + 0.25 + 1))
    entropy = 0.5 * (np.log(4 / 3) + LOG2) / 2
    loss = losses.HybridLoss(dice_weight=10)
    np.testing.assert_allclose(loss(LABEL, {"logits": LOGITS}), [10 * dice + entropy], rtol=1e-4)
    np.testing.assert_allclose(
        loss(LABEL, {"aux1": LOGITS}), [10 * 0.4 * dice + 0.6 * entropy], rtol=1e-4
    )
    np.testing.assert_allclose(
        loss(LABEL, {"aux2": LOGITS}), [10 * 0.8 * dice + 0.9 * entropy], rtol=1e-4
    )


def test_hybrid_equals_the_formula():
    label, main = random_case(4, 5, 6)
    answers = {
        "logits": main,
        "aux1": random_case(4, 5, 6, seed=1)[1],
        "aux2": random_case(4, 5, 6, seed=2)[1],
    }
    expected = np.zeros(2)
    for name, of_dice, of_entropy in (("logits", 1, 1), ("aux1", 0.4, 0.6), ("aux2", 0.8, 0.9)):
        for i in range(2):
            rarity = [1 - np.mean(label[i] == k) for k in range(3)]
            expected[i] += 100 * of_dice * -np.sum(overlaps(label[i], answers[name][i], power=2))
            expected[i] += of_entropy * cross_entropy(label[i], answers[name][i], rarity)
    np.testing.assert_allclose(losses.HybridLoss()(label, answers), expected, rtol=1e-4)


def test_published_hybrid_by_hand():
    """Logits x for probabilities, a mean above, all over the batch; shares of the batch."""
    label, x = np.array([[[1], [1]], [[0], [1]]]), np.zeros((2, 2, 2), np.float32)
    x[0, :, 1] = 2.0  # four pixels of two samples, three of class 1
    size = [0 + 1, 4 + 4 + 3]  # squares of logits and pixels of the class
    dice = -(2 * 0 / 4 / size[0] + 2 * (2 + 2 + 0) / 4 / size[1])
    inside = -np.log(np.exp(2) / (1 + np.exp(2)))
    entropy = (0.25 * (2 * inside + LOG2) + 0.75 * LOG2) / 4
    loss = losses.PublishedHybridLoss(dice_weight=10)
    np.testing.assert_allclose(loss(label, {"logits": x}), [10 * dice + entropy] * 2, rtol=1e-5)
    of_aux = [10 * 0.4 * dice + 0.6 * entropy] * 2
    np.testing.assert_allclose(loss(label, {"aux1": x}), of_aux, rtol=1e-5)


def test_published_hybrid_has_no_gradient_below_its_clip():
    label, x = np.ones((1, 2, 1), np.uint8), np.zeros((1, 2, 2), np.float32)
    x[0, 0, 1] = -9.0  # a probability of 0.0001 where the truth is
    values, gradient = with_gradient(losses.PublishedHybridLoss(0.0), label, {"logits": x})
    assert values == pytest.approx([0.0])  # the one class of the batch weighs 1 - 1
    label[0, 1] = 0
    values, gradient = with_gradient(losses.PublishedHybridLoss(0.0), label, {"logits": x})
    assert values == pytest.approx([(-0.5 * np.log(0.005) + 0.5 * LOG2) / 2], rel=1e-5)
    assert not gradient["logits"][0, 0].any() and gradient["logits"][0, 1].all()


def test_hybrid_of_a_volume_of_one_class_is_finite():
    label, logits = np.zeros((1, 4, 1), np.uint8), np.tile(np.float32([1e4, -1e4]), (1, 4, 1))
    values, gradient = with_gradient(losses.HybridLoss(), label, {"logits": logits})
    # Both classes perfect, and the only class weighs 1 - 1.
    np.testing.assert_allclose(values, [-200], rtol=1e-5)
    assert np.all(np.isfinite(gradient["logits"]))


# What all share.

ALL = {
    "cross entropy": lambda label, logits: losses.cross_entropy(label, logits),
    "deep supervision": lambda label, logits: losses.DeepSupervisedLoss()(
        label, {"logits": logits}
    ),
    "dice": losses.DiceLoss(),
    "squared dice": squared_dice,
    "hybrid": lambda label, logits: losses.HybridLoss()(label, {"logits": logits}),
}


@pytest.fixture(params=["float32", "mixed_bfloat16", "mixed_float16"])
def policy(request):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_dtype_policy(before)


@pytest.mark.parametrize("name", ALL)
def test_one_float32_value_a_sample_under_any_policy(name, policy):
    label, logits = random_case(4, 5, 6, batch=3)
    values = ALL[name](label, logits)
    assert values.shape == (3,) and values.dtype == "float32"
    # A sample's loss is its own.
    np.testing.assert_allclose(values[1:2], ALL[name](label[1:2], logits[1:2]), rtol=1e-6)
    half = ALL[name](label, tf.cast(logits, "bfloat16"))
    assert half.dtype == "float32"
    np.testing.assert_allclose(half, values, rtol=0.02)


@pytest.mark.parametrize("name", ALL)
def test_adding_to_all_logits_changes_nothing(name):
    label, logits = random_case(4, 5, 6)
    np.testing.assert_allclose(ALL[name](label, logits + 7), ALL[name](label, logits), rtol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_a_step_down_the_gradient_lowers_the_loss(name):
    label, logits = random_case(4, 5, 6)
    values, gradient = with_gradient(ALL[name], label, logits)
    slope = np.sum(gradient**2, axis=(1, 2, 3, 4))
    step = 1e-2 / np.sqrt(slope)
    lower = np.array(ALL[name](label, logits - step[:, None, None, None, None] * gradient))
    np.testing.assert_allclose(values - lower, step * slope, rtol=0.05)


# The L2 and the adversarial terms.


def test_l2_is_the_sum_of_squared_kernels():
    image = keras.Input((4, 4, 1))
    x = keras.layers.Conv2D(
        1, 2, kernel_initializer=keras.initializers.Constant(3), bias_initializer="ones"
    )(image)
    x = keras.layers.GroupNormalization(groups=-1)(x)
    x = keras.layers.Conv2DTranspose(2, 1, kernel_initializer=keras.initializers.Constant(0.5))(x)
    # Four weights of 3 and two of 1/2; no bias, no norm.
    assert float(losses.l2(keras.Model(image, x))) == pytest.approx(4 * 9 + 2 * 0.25)


def test_adversarial_terms_by_hand():
    zero, three = np.zeros((2, 1), np.float32), np.full((1, 1), LOG3, np.float32)
    np.testing.assert_allclose(losses.generator_adversarial(zero), [LOG2, LOG2], rtol=1e-5)
    np.testing.assert_allclose(
        losses.discriminator_adversarial(zero, zero), [2 * LOG2, 2 * LOG2], rtol=1e-5
    )
    # A logit of log 3 means real with 3/4.
    np.testing.assert_allclose(losses.generator_adversarial(three), [np.log(4 / 3)], rtol=1e-5)
    np.testing.assert_allclose(
        losses.discriminator_adversarial(three, -three), [2 * np.log(4 / 3)], rtol=1e-5
    )
    np.testing.assert_allclose(
        losses.discriminator_adversarial(-three, three), [2 * np.log(4)], rtol=1e-5
    )


def test_adversarial_terms_mirror_each_other():
    real, fake = np.random.default_rng(0).normal(0, 4, (2, 5, 1)).astype(np.float32)
    # Swapping real and fake is changing the sign; the generator wants what the discriminator wants
    # of a real one.
    straight, mirrored = (
        losses.discriminator_adversarial(real, fake),
        losses.discriminator_adversarial(-fake, -real),
    )
    np.testing.assert_allclose(straight, mirrored, rtol=1e-6)
    both = losses.generator_adversarial(real) + losses.generator_adversarial(-fake)
    np.testing.assert_allclose(straight, both, rtol=1e-6)
    assert straight.shape == (5,)


def test_adversarial_gradients_of_a_sure_discriminator():
    far = tf.constant([[-1e4], [1e4]])
    with tf.GradientTape() as tape:
        tape.watch(far)
        values = losses.generator_adversarial(far)
    np.testing.assert_allclose(values, [1e4, 0])
    np.testing.assert_allclose(tape.gradient(values, far), [[-1], [0]])
    assert losses.generator_adversarial(tf.cast(far, "bfloat16")).dtype == "float32"


# Voxels to be ignored: everything is as if they were not there.

IGNORED = 255


def with_others(label, logits, seed=1):
    """The case with further voxels at the end of the first axis, to be ignored, of wild logits."""
    more = np.random.default_rng(seed).normal(0, 9, (*logits.shape[:1], 2, *logits.shape[2:]))
    others = np.full((*label.shape[:1], 2, *label.shape[2:]), IGNORED, np.uint8)
    return np.concatenate([label, others], 1), np.concatenate([logits, more.astype(np.float32)], 1)


def two_scales(label, logits):
    return {"logits": logits, "logits_half": logits[:, ::2, ::2]}


def branches(label, logits):
    return {"logits": logits, "aux1": 2 * logits, "aux2": -logits}


@pytest.mark.parametrize(
    "loss, outputs",
    [
        (losses.DiceLoss, lambda label, logits: logits),
        (losses.DeepSupervisedLoss, two_scales),
        (losses.HybridLoss, branches),
        (losses.PublishedHybridLoss, branches),
    ],
)
def test_ignored_voxels_change_no_loss_and_get_no_gradient(loss, outputs):
    label, logits = random_case(4, 4)
    more_label, more_logits = with_others(label, logits)
    plain, ignoring = loss(), loss(ignored=IGNORED)
    expected, gradient = with_gradient(plain, label, outputs(label, logits))
    values, more_gradient = with_gradient(ignoring, more_label, outputs(more_label, more_logits))
    np.testing.assert_allclose(values, expected, rtol=1e-6)
    for name, full in zip(tf.nest.flatten(gradient), tf.nest.flatten(more_gradient)):
        kept = name.shape[1]
        np.testing.assert_allclose(full[:, :kept], name, rtol=1e-4, atol=1e-9)
        assert not full[:, kept:].any()
    again = with_gradient(ignoring, label, outputs(label, logits))[0]
    np.testing.assert_allclose(again, expected, rtol=1e-6)  # none is to be ignored
    assert not np.allclose(
        with_gradient(plain, more_label, outputs(more_label, more_logits))[0], expected
    )


def test_cross_entropy_is_the_mean_of_the_voxels_that_count():
    label, logits = np.array(LABEL), np.array(LOGITS)
    label[0, 1] = IGNORED
    value = losses.cross_entropy(label, logits, ignored=IGNORED)
    np.testing.assert_allclose(value, [-np.log(3 / 4)], rtol=1e-6)
    label[0, 0] = IGNORED
    assert np.array(losses.cross_entropy(label, logits, ignored=IGNORED)).tolist() == [0]


def test_dice_of_the_voxels_that_count():
    # Class 1: 2 * 3/4 / (3/4 + 1); class 0: 0 / (1/4 + 0).
    label, logits = np.array(LABEL), np.array(LOGITS)
    label[0, 1] = IGNORED
    value = losses.DiceLoss(ignored=IGNORED)(label, logits)
    np.testing.assert_allclose(value, [-(6 / 7 + 0) / 2], rtol=1e-4)


def test_squared_dice_of_what_is_counted():
    # 2 * 3/4 / (9/16 + 1): the second voxel has neither probability nor truth.
    label = np.array([[[1], [IGNORED]]], np.uint8)
    p = np.array([[[0.75], [0.9]]], np.float32)
    counted = losses.counted(p, label, IGNORED)
    np.testing.assert_allclose(counted[0, :, 0], [0.75, 0])
    np.testing.assert_allclose(losses.SquaredDiceLoss()(label == 1, counted), [-0.96], rtol=1e-4)
    assert losses.counted(p, label, None) is p


def test_the_hybrid_loss_weighs_classes_by_their_share_of_what_counts():
    # Of the one voxel that counts, all are class 1: its weight 1 - 1 is 0, which leaves the Dice:
    # 2 * 3/4 / (9/16 + 1) of class 1 and 0 of class 0.
    label, logits = np.array(LABEL), np.array(LOGITS)
    label[0, 1] = IGNORED
    value = losses.HybridLoss(1.0, ignored=IGNORED)(label, {"logits": logits})
    np.testing.assert_allclose(value, [-0.96], rtol=1e-3)
