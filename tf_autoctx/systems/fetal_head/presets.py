"""Flag values by name; the command line wins.

"paper" holds every constant of the paper and of the authors' code. "standard" was chosen by scores
of training cases that were left out, of real volumes (docs/results.md).
"""

import dataclasses
from typing import Any

from tf_autoctx.data.configuration import Augmentation

PRESETS: dict[str, dict[str, Any]] = {
    "demo": {
        "base_filters": 16,
        "patch_size": 32,
        "steps": 900,
        "samples_per_epoch": 180,
        "validation_fraction": 0.1,
        "learning_rate": 1e-3,
        "learning_rate_decay": "polynomial",
        # A phantom's probe is always above the head: mirrored shadows would only have to be
        # unlearnt.
        "flips": False,
        "erase_probability": 0.3,
    },
    "standard": {
        "loss": "dice_cross_entropy",
        "steps": 3000,
        "samples_per_epoch": 500,
        "learning_rate": 1e-3,
        "learning_rate_decay": "polynomial",
        "shift": 4,
        "rotation": 15.0,
        "scaling": 0.15,
        "intensity_jitter": 0.1,
        "gamma": 0.3,
        "noise": 0.03,
        "postprocessing": "auto",
    },
    "paper": {
        "variant": "USegNet-DS-HAS-Ctx",
        "level": 2,
        "join": "sum",
        "scale": 0.4,
        "normalization": "instance",
        "attention_kernel": "paper",
        # As the authors' code; what the paper says otherwise: docs/fetal_head_paper.md.
        "attention_norm": "none",
        "plain_decoder": "conv",
        "side_labels": "corner",
        "warm_start": False,
        "context": "cached",
        "context_dropout": 0.0,
        "initializer": "paper",
        "base_filters": 32,
        "patch_size": 64,
        "patch": "none",
        "batch_size": 1,
        "steps": 30 * 2112,
        "samples_per_epoch": 2112,
        "validation_fraction": 0.0,  # section 2.1: 50 volumes to train, 50 to test, no others
        "learning_rate": 1e-5,
        "learning_rate_decay": "constant",
        "loss": "paper",
        "beta_1": 0.5,
        "l2": 0.0,
        # 600 volumes of flips and half-turns became 2112 by erasing, so 1512 of 2112 are erased.
        **dataclasses.asdict(Augmentation(flips=True, erase_probability=1512 / 2112)),
        "patience": 0,
        "postprocessing": "none",
        "phantom_size": [388, 258, 440],
        "phantom_cases": [50, 50],
        "spacing": "none",
    },
}
