"""Flag values by name; the command line wins.

"paper" holds every constant of the paper and of the authors' code.
"""

from typing import Any

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
    },
    "paper": {
        "size": 320,
        "base_filters": 32,
        "discriminator_head": "flatten",
        "initializer": "truncated_normal",
        "steps": 6000,
        "samples_per_epoch": 900,
        "validation_fraction": 0.0,
        "batch_size": 2,
        "learning_rate": 1e-3,
        "learning_rate_decay": "constant",
        "beta_1": 0.5,
        "generator_updates": 2,
        "dice_weight": 100.0,
        "patience": 0,
    },
}
