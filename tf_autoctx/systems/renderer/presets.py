"""Flag values by name; the command line wins.

"paper" is the authors' published system as a whole: every constant of the paper and of their code.
What works best is in "standard", with the defaults of all flags.
"""

import dataclasses
from typing import Any

from tf_autoctx.data.configuration import Augmentation

PRESETS: dict[str, dict[str, Any]] = {
    "demo": {
        "size": 96,
        "base_filters": 8,
        "steps": 600,
        "samples_per_epoch": 200,
        "batch_size": 2,
        "beta_1": 0.5,
        "learning_rate": 1e-3,
        "learning_rate_decay": "constant",
        "validation_fraction": 0.1,
        "dice_weight": 10.0,
    },
    "standard": {
        "steps": 6000,
        "samples_per_epoch": 1000,
        "batch_size": 2,
        "beta_1": 0.5,
        "learning_rate": 1e-3,
        "learning_rate_decay": "constant",
        "postprocessing": "auto",
    },
    "paper": {
        "variant": "S2T",
        "size": 320,
        "base_filters": 32,
        "discriminator_head": "flatten",
        "initializer": "authors",
        "steps": 6000,
        "samples_per_epoch": 900,
        "validation_fraction": 0.0,
        "batch_size": 2,
        "learning_rate": 1e-3,
        "learning_rate_decay": "constant",
        "loss": "paper",
        "beta_1": 0.5,
        "update_order": "published",
        "segmentation_loss": "published",
        "dice_weight": 100.0,
        **dataclasses.asdict(Augmentation()),
        "appearance_strength": 0.0,
        "patience": 0,
        "postprocessing": "none",
        "phantom_size": [320, 320],
        "phantom_cases": [900, 427],
        "online_discriminator_rate": 1e-4,
        "online_segmentor_step": 1.0,
        "online_averaging": 0.0,
        "online_patience": 0,
        "online_rendering_weight": 0.5,
        "online_mirror": "either",
        "online_keep": "last",
    },
}
