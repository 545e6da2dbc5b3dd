"""MONAI's DynUNet in PyTorch, set up as nnU-Net would: cases in, labels of a volume out.

What is nnU-Net's (Isensee et al. 2021): patches of the median size of the training images, less
where their voxels are more than a step's time allows, in edges that every pooling halves; two of
them a step, drawn such that small structures are in them; two convolutions a resolution, instance
normalization, leaky ReLU; Dice and cross entropy, deeply supervised; a learning rate that falls by
a power of 0.9; overlapping windows, weighed by a Gaussian. What is not, as minutes on a CPU are no
days on a GPU: half the channels, and AdamW.

Volumes are (channels, depth, height, width) here.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import monai
import numpy as np
import torch
from monai import transforms
from monai.inferers import sliding_window_inference
from monai.losses import DeepSupervisionLoss, DiceCELoss
from monai.networks.nets import DynUNet
from torch.utils.data import DataLoader, IterableDataset

FILTERS = (16, 32, 64, 128)
POOLED = 2 ** (len(FILTERS) - 1)  # edges are multiples of it
LEAST_EDGE = 2 * POOLED  # a single voxel of the coarsest grid could not be normalized
MOST_VOXELS = 48**3  # of a patch
BATCH = 2
LEARNING_RATE, POWER = 1e-3, 0.9
ROOM = 1.25  # how much larger a patch is until it is rotated
PLACES = 10_000  # of a class in a case, about which patches are drawn
BOTH = ("image", "label")

Case = Mapping[str, Any]  # {"image": (channels, z, y, x) float32, "label": (1, z, y, x) classes}


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a network is for, and how long it is trained.

    Attributes:
      edges: (z, y, x) of a patch, in voxels.
      channels: of an image.
      classes: of a label, background among them.
      mirrored: whether patches are mirrored from left to right.
      seconds: of training.
      threads: of training and segmentation.
      seed: of the weights and of all patches.
    """

    edges: tuple[int, ...]
    channels: int
    classes: int
    mirrored: bool
    seconds: float
    threads: int
    seed: int


def edges_for(sizes: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """(z, y, x) of a patch: the median size of images, in multiples of what is pooled, of which the
    largest edge gives way until there are at most `MOST_VOXELS`."""
    edges = [
        max(LEAST_EDGE, POOLED * math.ceil(median / POOLED)) for median in np.median(sizes, axis=0)
    ]
    while math.prod(edges) > MOST_VOXELS:
        edges[edges.index(max(edges))] -= POOLED
    return tuple(edges)


def network(plan: Plan) -> DynUNet:
    """A new network, whose weights are drawn by PyTorch's common seed."""
    kernels, strides = [3] * len(FILTERS), [2] * (len(FILTERS) - 1)
    return DynUNet(
        3,
        plan.channels,
        plan.classes,
        kernels,
        [1, *strides],
        strides,
        FILTERS,
        norm_name=("INSTANCE", {"affine": True}),
        deep_supervision=True,
        deep_supr_num=len(FILTERS) - 2,
    )


# Patches


def _room(edges: Sequence[int]) -> tuple[int, ...]:
    """Edges of what patches are cut from once it is rotated."""
    return tuple(math.ceil(ROOM * edge) for edge in edges)


def prepared(case: Case, plan: Plan) -> dict[str, Any]:
    """A case that patches can be drawn from: at least as large as one with its room, and the places
    of each of its classes."""
    steps = [
        transforms.SpatialPadd(BOTH, _room(plan.edges)),
        transforms.ClassesToIndicesd(
            "label", num_classes=plan.classes, max_samples_per_class=PLACES
        ),
    ]
    return dict(transforms.Compose(steps)(dict(case)))


def changes(plan: Plan) -> transforms.Compose:
    """A random patch of a `prepared` case: about a voxel of each class as often as of another,
    rotated, scaled, noisy, blurred, and of other intensities."""
    image, angle = "image", math.radians(15)
    mirrors = [transforms.RandFlipd(BOTH, 0.5, spatial_axis=2)] if plan.mirrored else []
    return transforms.Compose(
        [
            transforms.RandCropByLabelClassesd(
                BOTH,
                "label",
                _room(plan.edges),
                ratios=[1] * plan.classes,
                num_classes=plan.classes,
                indices_key="label_cls_indices",
                warn=False,
            ),
            transforms.RandAffined(
                BOTH,
                prob=0.5,
                rotate_range=[angle] * 3,
                scale_range=[0.2] * 3,
                mode=("bilinear", "nearest"),
                padding_mode="zeros",
            ),
            transforms.RandSpatialCropd(BOTH, plan.edges, random_size=False),
            *mirrors,
            transforms.RandGaussianNoised(image, 0.15, std=0.1),
            transforms.RandGaussianSmoothd(image, (0.5, 1), (0.5, 1), (0.5, 1), prob=0.2),
            transforms.RandScaleIntensityd(image, 0.25, prob=0.3),
            transforms.RandShiftIntensityd(image, 0.1, prob=0.3),
            transforms.RandAdjustContrastd(image, 0.3, (0.7, 1.5)),
        ]
    )


class Patches(IterableDataset):
    """Random patches of cases in random order, without end: the same for a seed."""

    def __init__(self, cases: Sequence[Case], plan: Plan) -> None:
        self._cases = [prepared(case, plan) for case in cases]
        self._changes, self._seed = changes(plan), plan.seed

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        order = np.random.default_rng(self._seed)
        self._changes.set_random_state(self._seed)
        while True:
            for number in order.permutation(len(self._cases)):
                (patch,) = self._changes(self._cases[number])
                yield {name: torch.as_tensor(patch[name]) for name in BOTH}


# Training and segmentation


@dataclasses.dataclass(frozen=True)
class Trained:
    """A network, and how many steps it was trained."""

    network: DynUNet
    steps: int

    def segment(self, image: np.ndarray, plan: Plan) -> np.ndarray:
        """Classes (z, y, x) uint8 of an image."""
        self.network.eval()
        with torch.inference_mode():
            x = torch.from_numpy(image)[None]
            windows = {"overlap": 0.5, "mode": "gaussian"}
            logits = sliding_window_inference(x, plan.edges, 1, self.network, **windows)
        return logits[0].argmax(dim=0).numpy().astype(np.uint8)


def trained(cases: Sequence[Case], plan: Plan, told: Callable[[float], None]) -> Trained:
    """A network, trained for the seconds of the plan, of which reading and preparing the cases is
    no part; patches are drawn meanwhile by a process beside it, as by our input pipeline.

    Args:
      cases: to learn from.
      plan: how.
      told: takes the seconds so far, after each step.
    """
    monai.data.set_track_meta(False)
    monai.utils.set_determinism(plan.seed)
    torch.set_num_threads(plan.threads)
    net = network(plan)
    loss_of = DeepSupervisionLoss(
        DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
    )
    optimizer = torch.optim.AdamW(net.parameters(), LEARNING_RATE)
    # Forked: a process that was spawned spawns others, which would import all of this anew.
    beside = {"num_workers": 1, "multiprocessing_context": "fork"}
    batches = iter(DataLoader(Patches(cases, plan), BATCH, **beside))
    begin, steps = time.perf_counter(), 0
    while (seconds := time.perf_counter() - begin) < plan.seconds:
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * (1 - seconds / plan.seconds) ** POWER
        batch = next(batches)
        optimizer.zero_grad()
        # The output and each side branch, at the size of the patch.
        outputs = list(torch.unbind(net(batch["image"]), dim=1))
        loss = loss_of(outputs, batch["label"])
        loss.backward()
        optimizer.step()
        steps += 1
        told(seconds)
    return Trained(net, steps)
