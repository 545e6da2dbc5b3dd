"""Where and how a run trains. No TensorFlow in this module."""

from __future__ import annotations

import dataclasses

from tf_autoctx.configuration import check, field

# {value of the flag `loss`: terms of the loss, of `losses.TERMS`}; PAPER leaves a system its own.
PAPER = "paper"
LOSSES = {
    "dice": ("dice",),
    "cross_entropy": ("cross_entropy",),
    "dice_cross_entropy": ("dice", "cross_entropy"),
}

PRECISIONS = ("auto", "float32", "mixed_bfloat16", "mixed_float16")  # of training
# Those of finished networks, and the Keras dtype policies that they are made under.
POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Run: its folder, devices and precision."""

    work_dir: str = field(
        "",
        "Run folder; a run that is there goes on. By default runs/ and the name of the system.",
        may_change=True,
    )
    preset: str | None = field(
        None,
        "Values of the flags that are not given: demo, standard, paper or another of the system, "
        "see the flags. By default demo on phantoms, standard on your data.",
        may_change=True,
    )
    initial_weights: str = field(
        "",
        "Run folder or SavedModel of this system to start from, or the name of a model that comes "
        "with the package: weights that fit by name and shape are taken over, all others start "
        "anew.",
        before="",
    )
    strategy: str = field(
        "auto",
        "The tf.distribute strategy; auto takes all GPUs, or the cluster that TF_CONFIG, Slurm or "
        "Kubernetes tell of.",
        choices=("auto", "single", "mirrored", "multi_worker"),
        may_change=True,
    )
    precision: str = field(
        "auto",
        "Precision that training computes in; auto is bfloat16 where it is faster.",
        choices=PRECISIONS,
    )
    rematerialize: bool = field(
        False,
        "Compute the blocks of the networks again when their gradient is taken, and keep nothing "
        "within them meanwhile: a step takes about half of the memory, and more time.",
        may_change=True,
        before=False,
    )
    export_precision: str = field(
        "float32",
        "Precision that the SavedModel computes in; its inputs and outputs are float32. bfloat16 "
        "is faster where the server has it.",
        choices=tuple(POLICIES),
        may_change=True,
    )
    surface_tolerance: float | None = field(
        None,
        "Also score the surface Dice (NSD) of the held-out cases: the share of both boundaries "
        "that lies at most so many mm from the other. Images without mm have none.",
        least=0.0,
        may_change=True,
    )
    mirrors: bool = field(
        False,
        "Take the mean of an image and its mirror images in the SavedModel, and score that too; "
        "along the axes that training mirrors. It takes 8 times as long in 3D.",
        may_change=True,
        before=False,
    )
    keep_cache: bool = field(
        True,
        "Keep what networks see of the cases, in cache/ of the run folder, when all is done; the "
        "same command makes it anew.",
        may_change=True,
        before=True,
    )
    postprocessing: str = field(
        "none",
        "auto keeps the largest component of a structure, and fills its holes, where the mean DSC "
        "of the validation cases is larger with it; prediction, evaluation and the SavedModel do "
        "so then.",
        choices=("auto", "none"),
        may_change=True,
        before="none",
    )

    def __post_init__(self) -> None:
        check(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Training: how long, how fast, and from which seed."""

    seed: int = field(
        0,
        "Seed of splits, phantoms, weights, sample order and augmentation.",
        least=0,
        most=4_000_000,
    )
    steps: int = field(
        ...,
        "Optimizer steps per level or stage. A run goes on with more of them, never with fewer.",
        least=1,
        may_grow=True,
    )
    samples_per_epoch: int = field(
        ...,
        "Samples that make an epoch, after which the networks are validated and saved.",
        least=1,
    )
    checkpoint_steps: int = field(
        100, "Steps between two checkpoints within an epoch.", least=1, may_change=True
    )
    batch_size: int = field(1, "Samples in a step of each replica, such as a GPU.", least=1)
    learning_rate: float = field(..., "Learning rate of Adam at the start.", least=0.0)
    learning_rate_decay: str = field(
        ...,
        "How the learning rate changes; polynomial falls to 0 at the last step.",
        choices=("constant", "polynomial"),
    )
    loss: str = field(
        PAPER,
        "What a segmentation is learnt by: paper, the system's own loss, soft Dice, cross entropy, "
        "or the sum of both.",
        choices=(PAPER, *LOSSES),
        before=PAPER,
    )
    beta_1: float = field(0.9, "Momentum of Adam, its beta 1.", least=0.0, most=0.9999)
    patience: int = field(
        0,
        "Epochs without a better validation score after which training stops; 0 never stops early.",
        least=0,
    )

    def __post_init__(self) -> None:
        check(self)

    def terms(self, paper: tuple[str, ...]) -> tuple[str, ...]:
        """Terms of the loss, of `losses.TERMS`: those of `loss`, or the paper's."""
        return LOSSES.get(self.loss, paper)
