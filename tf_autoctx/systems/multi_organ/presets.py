"""Flag values by name; the command line wins.

"paper" holds every constant of the paper.
"""

import dataclasses
from typing import Any

from tf_autoctx.data.configuration import Augmentation

# Section 2.3, which gives no amounts; those of the elastic part are Cicek et al.'s.
DEFORMATION: dict[str, Any] = {"shift": 4, "rotation": 10.0, "elastic": 4.0, "elastic_spacing": 32}

PRESETS: dict[str, dict[str, Any]] = {
    "demo": {
        "base_filters": 8,
        # 72 mm at level 2: as much of the body's width as the paper's subvolumes show.
        "patch_size": 24,
        "batch_size": 3,
        "steps": 1500,
        "samples_per_epoch": 2250,
        "validation_fraction": 0.1,
        "learning_rate": 3e-3,
        "learning_rate_decay": "polynomial",
        "tile_size": 96,
        **DEFORMATION,
    },
    "standard": {
        "batch_size": 3,
        "steps": 10_000,
        "samples_per_epoch": 1500,
        "learning_rate": 1e-3,
        "learning_rate_decay": "polynomial",
        "postprocessing": "auto",
        **DEFORMATION,
    },
    "paper": {
        "mode": "end_to_end",
        "levels": 2,  # of which the factors 4 and 2 follow
        "patch_size": 64,
        "patch": "none",
        "depth": 4,
        "base_filters": 32,
        "normalization": "batch",
        "initializer": "he",  # not given
        "regions": "",
        "intensities": "hu",
        "batch_size": 3,
        "steps": 20_000,
        "samples_per_epoch": 1500,
        "validation_fraction": 0.0,
        "learning_rate": 1e-3,
        "loss": "paper",
        "dice_epsilon": 1e-5,  # not given; absent classes count as 1
        "learning_rate_decay": "constant",
        "beta_1": 0.9,
        **dataclasses.asdict(Augmentation(**DEFORMATION)),
        "patience": 0,
        "postprocessing": "none",
        "phantom_size": [460, 512, 512],  # the fewest slices, the mean of the voxels' edges
        "phantom_spacing": 0.8,
        "phantom_cases": [340, 37],
        "spacing": "none",
    },
}
