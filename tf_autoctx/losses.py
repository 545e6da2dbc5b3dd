"""Losses, from logits where nothing else is said.

One float32 value per sample, so that any number of replicas sums the same gradient; but where the
sums of a Dice are over the batch, they are over the share of it that a replica has.

Where a data set marks voxels to be ignored, losses take the value of their label, `ignored`, and
leave them out: sums and means are those of the other voxels. Without it, no operation is added.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import keras
from keras import ops

Tensor = Any  # of whichever backend

TERMS = ("dice", "cross_entropy")  # of what a loss can be the sum of


def cross_entropy(
    labels: Tensor,
    logits: Tensor,
    class_weights: Tensor | None = None,
    ignored: int | None = None,
) -> Tensor:
    """Mean voxel-wise cross entropy of each sample.

    Args:
      labels: (batch, *spatial, 1) integer, or shares of `shares`.
      logits: (batch, *spatial, classes).
      class_weights: (batch, classes), weight of a voxel by its true class; None: 1.
      ignored: label of voxels that do not count, none of the classes; None: all do.

    Returns:
      (batch,) float32; 0 where no voxel counts.
    """
    truth = one_hot(labels, logits)
    losses = -truth * ops.log_softmax(ops.cast(logits, "float32"), axis=-1)
    if class_weights is not None:
        losses = losses * _beside_voxels(class_weights, losses)
    losses = ops.sum(losses, axis=-1)
    if ignored is None:
        return ops.mean(losses, axis=_spatial(logits))
    return _mean(losses[..., None], labels, ignored)[..., 0]


def one_hot(labels: Tensor, logits: Tensor) -> Tensor:
    """Labels (batch, *spatial, 1) as float32 (batch, *spatial, classes of the logits); 0 in all
    channels for a label that is none of the classes. Shares of `shares` stay as they are."""
    if labels.shape[-1] == logits.shape[-1]:
        return labels
    return ops.one_hot(ops.cast(labels[..., 0], "int32"), logits.shape[-1], dtype="float32")


def shares(labels: Tensor, logits: Tensor, edge: int) -> Tensor:
    """How much of each cell of `edge` voxels every class covers; a cell that reaches beyond the
    volume's end is filled by its last voxel, as `layers.PadToMultiple` fills it.

    Args:
      labels: (batch, *spatial, 1) integer.
      logits: (batch, *ceil(spatial / edge), classes).
      edge: of a cell along every axis, in voxels; the first one begins at the first voxel.

    Returns:
      (batch, *ceil(spatial / edge), classes) float32, of which the sum over the classes is 1, less
      the share of the voxels to be ignored.
    """
    truth = one_hot(labels, logits)
    for axis in _spatial(truth):
        size = ops.shape(truth)[axis]
        first = edge * ops.arange((size + edge - 1) // edge)
        voxels = [ops.minimum(first + k, size - 1) for k in range(edge)]
        truth = sum(ops.take(truth, voxel, axis=axis) for voxel in voxels) / edge
    return truth


def counted(values: Tensor, labels: Tensor, ignored: int | None) -> Tensor:
    """Values (batch, *spatial, channels) with 0 where the labels (batch, *spatial, 1) are to be
    ignored: such voxels are left out of the sums of a Dice loss, as their truth is 0 too. A cell of
    `shares` weighs as much of it counts."""
    return values if ignored is None else values * ops.cast(_weights(labels, ignored), values.dtype)


def _weights(labels: Tensor, ignored: int) -> Tensor:
    """What each voxel counts, (batch, *spatial, 1) float32."""
    if labels.shape[-1] > 1:  # shares
        return ops.sum(labels, axis=-1, keepdims=True)
    return ops.cast(labels != ignored, "float32")


def l2(model: keras.Model) -> Tensor:
    """Sum of squared convolution kernels, the term after lambda in Yang et al. 2019, equation 2.

    A float32 scalar.
    """
    return sum(
        ops.sum(ops.square(ops.cast(w, "float32")))
        for w in model.trainable_weights
        if w.path.endswith("/kernel")
    )


class ClassLoss(keras.losses.Loss):
    """Soft Dice, cross entropy, or their sum with equal weights, as nnU-Net learns classes (Isensee
    et al. 2021), from logits.

    call: y_true (batch, *spatial, 1) integer, y_pred (batch, *spatial, classes) logits -> (batch,)
    float32.
    """

    def __init__(
        self,
        terms: Sequence[str] = TERMS,
        name: str = "classes",
        epsilon: float = 1e-5,
        ignored: int | None = None,
        batch_dice: bool = False,
    ) -> None:
        """Takes those of `TERMS` that are summed; the rest as `DiceLoss`."""
        super().__init__(name=name, reduction=None)
        self.terms, self.ignored = terms, ignored
        self._dice = DiceLoss(epsilon=epsilon, ignored=ignored, batch_dice=batch_dice)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        total = 0.0
        if "dice" in self.terms:
            total += self._dice(y_true, y_pred)
        if "cross_entropy" in self.terms:
            total += cross_entropy(y_true, y_pred, ignored=self.ignored)
        return total


class DeepSupervisedLoss(keras.losses.Loss):
    r"""`ClassLoss` of the main output and of every side branch: by default the cross entropy of
    Yang et al. 2019, equation 2.

    L = L(X, Y) + \sum_m L_m(X, S_m(Y)), where S_m shrinks the labels to 1/2 and 1/4 by one of
    `SIDE_LABELS`. A voxel of a side branch is a cell of 2 or 4 voxels along each axis; the scales
    stay aligned because padding is at the high ends only. The paper's L2 term is `l2`.

    "corner" takes the first voxel of a cell, half a voxel and one and a half off its centre along
    every axis. "majority" takes what most of the cell is, background where that is open: integers
    too, and centred, which no voxel of a cell with an even edge is. "soft" takes the share of each
    class: the loss is that of all voxels, each of which has the logits of its cell.

    call: y_true (batch, *spatial, 1) integer; y_pred {"logits": (batch, *spatial, classes), and,
    where supervised, "logits_half": (batch, *ceil(spatial / 2), classes), "logits_quarter":
    likewise} -> (batch,) float32.
    """

    STRIDES: ClassVar = {"logits": 1, "logits_half": 2, "logits_quarter": 4}

    def __init__(
        self,
        terms: Sequence[str] = ("cross_entropy",),
        name: str = "deep_supervised",
        ignored: int | None = None,
        side_labels: str = "corner",
    ) -> None:
        """Takes those of `TERMS` that are summed, and one of `options.SIDE_LABELS`."""
        super().__init__(name=name, reduction=None)
        self._loss, self.side_labels = ClassLoss(terms, ignored=ignored), side_labels

    def call(self, y_true: Tensor, y_pred: Mapping[str, Tensor]) -> Tensor:
        return sum(
            self._loss(self._shrunk(y_true, logits, self.STRIDES[name]), logits)
            for name, logits in y_pred.items()
        )

    def _shrunk(self, labels: Tensor, logits: Tensor, edge: int) -> Tensor:
        """Labels of the cells of so many voxels along each axis: integers, or `shares`."""
        if edge == 1:
            return labels
        if self.side_labels == "corner":
            return labels[(slice(None), *(slice(None, None, edge) for _ in _spatial(logits)))]
        covered = shares(labels, logits, edge)
        if self.side_labels == "soft":
            return covered
        most = ops.argmax(covered, axis=-1)[..., None]
        if self._loss.ignored is None:
            return most
        return ops.where(_weights(covered, self._loss.ignored) > 0, most, self._loss.ignored)


class DiceLoss(keras.losses.Loss):
    r"""Soft Dice averaged over classes (Roth et al. 2018, equation 1), from logits.

    L = -\frac{1}{K} \sum_k
        \frac{2 \sum_i p_{ik} l_{ik} + \epsilon}{\sum_i p_{ik} + \sum_i l_{ik} + \epsilon}

    A class absent from both prediction and truth counts as a perfect 1, not as 0/0. One that is
    absent from the truth alone has epsilon / (s + epsilon), s the sum of its probabilities: 1/2
    where these are worth epsilon voxels. With 1e-5 it is 0 unless all voxels are certain.

    call: y_true (batch, *spatial, 1) integer, y_pred (batch, *spatial, classes) logits -> (batch,)
    in [-1, 0], float32.
    """

    def __init__(
        self,
        name: str = "dice",
        epsilon: float = 1e-5,
        ignored: int | None = None,
        batch_dice: bool = False,
    ) -> None:
        """With `batch_dice` sums are over the voxels of all samples, whose losses are then equal;
        else over those of each sample."""
        super().__init__(name=name, reduction=None)
        self.epsilon, self.ignored, self.batch_dice = epsilon, ignored, batch_dice

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        p = ops.softmax(ops.cast(y_pred, "float32"), axis=-1)
        size = counted(p, y_true, self.ignored)
        truth = one_hot(y_true, y_pred)
        return -ops.mean(_dice(p, truth, size, self.epsilon, self.batch_dice), axis=-1)


class RegionLoss(keras.losses.Loss):
    r"""Soft Dice and cross entropy of regions, each of which is there or not, from logits.

    L = \frac{1}{R} \sum_r \left( C_r - \frac{2 \sum_i p_{ir} l_{ir} + \epsilon}
        {\sum_i p_{ir} + \sum_i l_{ir} + \epsilon} \right)

    with p the sigmoid of the logits and C_r the mean binary cross entropy over voxels, as nnU-Net
    learns regions (Isensee et al. 2021). A region is whatever has one of its labels, and a label
    may be in several. One absent from both prediction and truth has a Dice of 1.

    call: y_true (batch, *spatial, 1) integer, y_pred (batch, *spatial, regions) logits -> (batch,)
    from -1, float32.
    """

    def __init__(
        self,
        regions: Sequence[Sequence[int]],
        terms: Sequence[str] = TERMS,
        name: str = "regions",
        epsilon: float = 1e-5,
        ignored: int | None = None,
        batch_dice: bool = False,
    ) -> None:
        """Takes the labels of each region, and those of `TERMS` that are summed; the rest as
        `DiceLoss`."""
        super().__init__(name=name, reduction=None)
        self.regions, self.terms = regions, terms
        self.epsilon, self.ignored, self.batch_dice = epsilon, ignored, batch_dice

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        logits = ops.cast(y_pred, "float32")
        truth = ops.concatenate([_any_of(y_true, labels) for labels in self.regions], axis=-1)
        total = 0.0
        if "dice" in self.terms:
            p = counted(ops.sigmoid(logits), y_true, self.ignored)
            total -= _dice(p, truth, p, self.epsilon, self.batch_dice)
        if "cross_entropy" in self.terms:
            entropy = counted(ops.softplus(logits) - truth * logits, y_true, self.ignored)
            total += _mean(entropy, y_true, self.ignored)
        return ops.mean(total, axis=-1)


class SquaredDiceLoss(keras.losses.Loss):
    r"""Dice with squares below, averaged over channels, from probabilities.

    L = -\frac{1}{K} \sum_k
        \frac{2 \sum_i p_{ik} l_{ik} + \epsilon}{\sum_i p_{ik}^2 + \sum_i l_{ik}^2 + \epsilon}

    (Milletari et al. 2016, section 3.) Probabilities, because a refined prediction is 0 outside its
    box, which no logit is. A channel absent from both prediction and truth counts as a perfect 1,
    not as 0/0 (epsilon 1e-5). Voxels to be ignored are those of `counted`.

    call: y_true (batch, *spatial, channels) 0 or 1 of any dtype, y_pred (batch, *spatial, channels)
    probabilities -> (batch,) in [-1, 0], float32.
    """

    def __init__(self, name: str = "squared_dice", epsilon: float = 1e-5) -> None:
        super().__init__(name=name, reduction=None)
        self.epsilon = epsilon

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        p, truth = ops.cast(y_pred, "float32"), ops.cast(y_true, "float32")
        return -ops.mean(_dice(p, truth, ops.square(p), self.epsilon), axis=-1)


class ProbabilityLoss(keras.losses.Loss):
    """`SquaredDiceLoss`, cross entropy, or their sum with equal weights, from probabilities.

    The cross entropy is that of each channel being there or not, the mean over channels and voxels.
    Probabilities are kept `epsilon` from 0 and 1, so that a voxel outside a refined prediction's
    box, whose probability is 0, has a finite one, and no gradient. Voxels that `counted` has taken
    out add 0.

    call: as of `SquaredDiceLoss`, but for the range.
    """

    def __init__(
        self,
        terms: Sequence[str] = ("dice",),
        name: str = "probabilities",
        epsilon: float = 1e-7,
    ) -> None:
        """Takes those of `TERMS` that are summed."""
        super().__init__(name=name, reduction=None)
        self.terms, self.epsilon = terms, epsilon
        self._dice = SquaredDiceLoss()

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        total = 0.0
        if "dice" in self.terms:
            total += self._dice(y_true, y_pred)
        if "cross_entropy" in self.terms:
            p, truth = ops.cast(y_pred, "float32"), ops.cast(y_true, "float32")
            p = ops.clip(p, self.epsilon, 1 - self.epsilon)
            entropy = -truth * ops.log(p) - (1 - truth) * ops.log(1 - p)
            total += ops.mean(entropy, axis=tuple(range(1, len(p.shape))))
        return total


class HybridLoss(keras.losses.Loss):
    r"""Dice plus class-weighted cross entropy, deeply supervised: for the renderer's segmentor.

    L = w_D \sum_a d_a D(p_a, l) + \sum_a c_a C(p_a, l), over the main output and both side
    branches, where D = -\sum_k \frac{2 \sum_i p_{ik} l_{ik}}{\sum_i p_{ik}^2 + \sum_i l_{ik}^2} and
    C is the mean cross entropy with each voxel weighted by 1 - the share of its true class. (Yang
    et al. 2018, section 2.2; weights of the authors' code.)

    The authors clip probabilities at 0.005 before the log, which also stops the gradient of the
    worst voxels; the log softmax needs no clipping. An epsilon of 1e-5 keeps the Dice of an absent
    class finite (absent from both: 1).

    call: y_true (batch, *spatial, 1) integer; y_pred {"logits", "aux1", "aux2"}: logits (batch,
    *spatial, classes), all of the image's size -> (batch,) float32.
    """

    DICE_WEIGHTS: ClassVar = {"logits": 1.0, "aux1": 0.4, "aux2": 0.8}
    CROSS_ENTROPY_WEIGHTS: ClassVar = {"logits": 1.0, "aux1": 0.6, "aux2": 0.9}

    def __init__(
        self,
        dice_weight: float = 100.0,
        terms: Sequence[str] = TERMS,
        name: str = "hybrid",
        epsilon: float = 1e-5,
        ignored: int | None = None,
    ) -> None:
        """Takes w_D, and those of `TERMS` that are summed."""
        super().__init__(name=name, reduction=None)
        self.dice_weight, self.terms = dice_weight, terms
        self.epsilon, self.ignored = epsilon, ignored

    def call(self, y_true: Tensor, y_pred: Mapping[str, Tensor]) -> Tensor:
        total = 0.0
        for name, logits in y_pred.items():
            truth = one_hot(y_true, logits)
            if "dice" in self.terms:
                p = ops.softmax(ops.cast(logits, "float32"), axis=-1)
                p = counted(p, y_true, self.ignored)
                dice = ops.sum(_dice(p, truth, ops.square(p), self.epsilon), axis=-1)
                total += self.dice_weight * self.DICE_WEIGHTS[name] * -dice
            if "cross_entropy" in self.terms:
                share = _mean(truth, y_true, self.ignored)
                entropy = cross_entropy(y_true, logits, 1 - share, self.ignored)
                total += self.CROSS_ENTROPY_WEIGHTS[name] * entropy
        return total


class PublishedHybridLoss(keras.losses.Loss):
    r"""`HybridLoss` as the authors' code computes it (Yang et al. 2018).

    All sums and shares are over the batch. Their Dice terms take logits x for probabilities and a
    mean over the batch's N pixels in the numerator, D = -\sum_k \frac{2 \sum_i x_{ik} l_{ik} / N}
    {\sum_i x_{ik}^2 + \sum_i l_{ik}^2}, which makes them N times smaller; probabilities are clipped
    at 0.005 before the log, below which they have no gradient.

    call: as of `HybridLoss`; the batch's loss for each of its samples.
    """

    def __init__(
        self, dice_weight: float = 100.0, name: str = "published", ignored: int | None = None
    ) -> None:
        super().__init__(name=name, reduction=None)
        self.dice_weight, self.ignored = dice_weight, ignored

    def call(self, y_true: Tensor, y_pred: Mapping[str, Tensor]) -> Tensor:
        total = 0.0
        for name, logits in y_pred.items():
            truth = one_hot(y_true, logits)
            axes = tuple(range(len(truth.shape) - 1))  # all but the classes
            pixels = ops.maximum(ops.sum(truth), 1.0)  # those to be ignored have no class
            x = counted(ops.cast(logits, "float32"), y_true, self.ignored)
            size = ops.sum(ops.square(x), axis=axes) + ops.sum(truth, axis=axes)
            dice = ops.sum(2 * ops.sum(x * truth, axis=axes) / pixels / ops.maximum(size, 1e-5))
            weights = 1 - ops.sum(truth, axis=axes) / pixels
            p = ops.clip(ops.softmax(ops.cast(logits, "float32"), axis=-1), 0.005, 1.0)
            entropy = -ops.sum(weights * truth * ops.log(p)) / pixels
            total += self.dice_weight * HybridLoss.DICE_WEIGHTS[name] * -dice
            total += HybridLoss.CROSS_ENTROPY_WEIGHTS[name] * entropy
        return ops.broadcast_to(total, ops.shape(y_true)[:1])


def generator_adversarial(fake_logits: Tensor) -> Tensor:
    """What a generator pays for a fake that is recognised: sigmoid cross entropy against "real".

    Args: fake_logits (batch, 1), a discriminator's linear unit. Returns (batch,) float32.
    """
    return ops.softplus(-ops.cast(fake_logits, "float32"))[..., 0]


def discriminator_adversarial(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Sigmoid cross entropy of a discriminator: real wants 1, fake wants 0.

    Args: real_logits, fake_logits (batch, 1). Returns (batch,) float32.
    """
    return (
        ops.softplus(-ops.cast(real_logits, "float32"))[..., 0]
        + ops.softplus(ops.cast(fake_logits, "float32"))[..., 0]
    )


def _dice(
    p: Tensor, truth: Tensor, size: Tensor, epsilon: float, over_batch: bool = False
) -> Tensor:
    """Soft Dice of every class, (batch, classes); `over_batch`: the same in each sample.

    2 sum(p truth) + epsilon over sum(size) + sum(truth) + epsilon: a class absent from both has 1.
    p (batch, *spatial, classes) counts as `size` below, truth is 0 or 1.
    """
    axes = (0, *_spatial(p)) if over_batch else _spatial(p)
    overlap = 2 * ops.sum(p * truth, axis=axes) + epsilon
    dice = overlap / (ops.sum(size, axis=axes) + ops.sum(truth, axis=axes) + epsilon)
    return ops.broadcast_to(dice, (ops.shape(p)[0], p.shape[-1])) if over_batch else dice


def _any_of(labels: Tensor, values: Sequence[int]) -> Tensor:
    """1 where the label is one of some values, else 0, float32 of the labels' shape."""
    return sum(ops.cast(labels == value, "float32") for value in values)


def _mean(values: Tensor, labels: Tensor, ignored: int | None) -> Tensor:
    """Mean of values (batch, *spatial, channels), which are 0 at voxels to be ignored, over all
    other voxels: (batch, channels)."""
    if ignored is None:
        return ops.mean(values, axis=_spatial(values))
    voxels = ops.sum(_weights(labels, ignored), axis=_spatial(values))
    return ops.sum(values, axis=_spatial(values)) / ops.maximum(voxels, 1.0)


def _spatial(x: Tensor) -> tuple[int, ...]:
    """Spatial axes of a channels-last tensor."""
    return tuple(range(1, len(x.shape) - 1))


def _beside_voxels(per_class: Tensor, voxels: Tensor) -> Tensor:
    """(batch, classes) broadcast against (batch, *spatial, classes)."""
    for axis in _spatial(voxels):
        per_class = ops.expand_dims(per_class, axis)
    return per_class
