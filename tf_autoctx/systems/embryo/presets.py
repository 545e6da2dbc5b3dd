"""Flag values by name; the command line wins.

"paper" holds every constant of the paper, and widths that it does not give; "paper_small" has those
that the paper's own seconds and memory allow (benchmarks/paper_sizes.py).
"""

import dataclasses
from typing import Any

from tf_autoctx.data.configuration import Augmentation

PRESETS: dict[str, dict[str, Any]] = {
    "demo": {
        "low_size": 48,
        "body_box": 64,
        "ventricle_box": 32,
        "base_filters": 8,
        "depth": 4,
        "kernel": 3,
        # VNet I finds the ventricle or the others look in the wrong place; its steps cost least.
        "initial_factor": 3,
        "steps": 300,
        "samples_per_epoch": 100,
        "validation_fraction": 0.1,
        "learning_rate": 1e-2,
        "learning_rate_decay": "polynomial",
        "rotation": 30.0,  # phantoms lie every way already
        "shift": 6,
        "flips": True,
        "phantom_cases": [120, 10],
    },
    "standard": {
        "steps": 10_000,
        "samples_per_epoch": 500,
        "learning_rate": 1e-2,
        "learning_rate_decay": "polynomial",
        "rotation": 180.0,
        "shift": 30,
        "flips": True,
        "postprocessing": "auto",
    },
    "paper": {
        "low_size": 160,
        "body_box": 256,
        "ventricle_box": 160,
        "auto_context": True,
        "base_filters": 16,
        "depth": 5,
        "kernel": 5,
        "normalization": "instance",
        "initializer": "he",  # not given
        "initial_factor": 1,  # not given
        "steps": 37_000,  # not given: 200 epochs of 185 volumes
        "samples_per_epoch": 185,
        "validation_fraction": 0.0,
        "batch_size": 1,
        "learning_rate": 1e-2,
        "end_to_end_learning_rate": 1e-3,
        "loss": "paper",
        "learning_rate_decay": "constant",
        "beta_1": 0.9,
        **dataclasses.asdict(Augmentation(rotation=180.0, shift=30, flips=True)),
        "patience": 0,
        "postprocessing": "none",
        "phantom_size": [210, 281, 282],  # the largest, of 50 micrometres
        "phantom_spacing": 0.05,
        "phantom_cases": [185, 46],
        "spacing": "none",
    },
}
PRESETS["paper_small"] = {**PRESETS["paper"], "base_filters": 8, "kernel": 3}
