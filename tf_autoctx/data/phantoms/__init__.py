"""Made-up volumes with an exactly known truth, for trials and tests where no patient data are at hand.

Arrays are (z, y, x). A folder of phantoms is a Medical Segmentation Decathlon task; a case's number is part of its
seed, so no test case repeats a training case.
"""

import math

import numpy as np

from tf_autoctx.data.phantoms import folder
from tf_autoctx.data.phantoms.abdomen import LABELS as ABDOMEN_LABELS
from tf_autoctx.data.phantoms.abdomen import abdomen
from tf_autoctx.data.phantoms.embryo import LABELS as EMBRYO_LABELS
from tf_autoctx.data.phantoms.embryo import embryo
from tf_autoctx.data.phantoms.fetal_head import FETAL_HEAD_VIEW, fetal_head
from tf_autoctx.data.phantoms.pieces import ellipsoid, smooth_field, speckle

__all__ = [
    "ABDOMEN_LABELS",
    "EMBRYO_LABELS",
    "FETAL_HEAD_VIEW",
    "abdomen",
    "ellipsoid",
    "embryo",
    "fetal_head",
    "smooth_field",
    "speckle",
    "write_abdomens",
    "write_embryos",
    "write_fetal_heads",
]


def write_fetal_heads(directory, size=(97, 64, 110), cases=(50, 50), seed=0):
    """Writes a folder of `fetal_head` volumes, `head_000.nii.gz` and on, or finds it written already.

    Args:
      directory: folder to make; its parents are made too.
      size: voxels along (z, y, x).
      cases: number of (training, test) cases; the paper has 50 and 50.
      seed: integer.

    Returns:
      The folder, a `Path`.

    Raises:
      UserError: the folder exists and holds something else.
    """
    settings = {"size": [int(n) for n in size], "cases": [int(n) for n in cases], "seed": int(seed)}

    def make(number):
        image, label, spacing = fetal_head(settings["size"], (settings["seed"], number))
        return np.rint(image).astype(np.uint8), label, spacing

    about = {
        "name": "fetal head phantoms",
        "description": "made-up 3D ultrasound of the whole fetal head, exact truth",
        "modality": {"0": "US"},
        "labels": {"0": "background", "1": "head"},
    }
    return folder.write(directory, make, settings, "head", about)


def write_abdomens(directory, size=(112, 128, 176), spacing=1.5, cases=(40, 10), seed=0):
    """Writes a folder of `abdomen` volumes, `abdomen_000.nii.gz` and on, or finds it written already.

    Args:
      directory: folder to make; its parents are made too.
      size: voxels along (z, y, x).
      spacing: mm per voxel, along every axis.
      cases: number of (training, test) cases.
      seed: integer.

    Returns:
      The folder, a `Path`.

    Raises:
      UserError: the folder exists and holds something else.
    """
    settings = {
        "size": [int(n) for n in size],
        "spacing": float(spacing),
        "cases": [int(n) for n in cases],
        "seed": int(seed),
    }

    def make(number):
        return abdomen(settings["size"], settings["spacing"], (settings["seed"], number))

    about = {
        "name": "abdomen phantoms",
        "description": "made-up CT of the abdomen in the portal venous phase, exact truth",
        "modality": {"0": "CT"},
        "labels": {str(n): name for n, name in enumerate(("background", *ABDOMEN_LABELS))},
    }
    return folder.write(directory, make, settings, "abdomen", about)


def write_embryos(directory, size=(72, 88, 72), spacing=0.125, cases=(40, 10), seed=0):
    """Writes a folder of `embryo` volumes, `embryo_000.nii.gz` and on, or finds it written already.

    Args:
      directory: folder to make; its parents are made too.
      size: most voxels along (z, y, x). Every case draws its own number along each axis, down to 150/210, 161/281 and
        81/282 of these, as in the paper; seed and number of the case decide.
      spacing: mm per voxel, along every axis.
      cases: number of (training, test) cases; the paper has 185 and 46.
      seed: integer.

    Returns:
      The folder, a `Path`.

    Raises:
      UserError: the folder exists and holds something else.
    """
    settings = {
        "size": [int(n) for n in size],
        "spacing": float(spacing),
        "cases": [int(n) for n in cases],
        "seed": int(seed),
    }

    def make(number):
        rng = np.random.default_rng((settings["seed"], number, 1))  # not the embryo's own
        own = [
            int(rng.integers(math.ceil(n * low), n + 1))
            for n, low in zip(settings["size"], (150 / 210, 161 / 281, 81 / 282))
        ]
        image, label, spacing = embryo(own, settings["spacing"], (settings["seed"], number))
        return np.rint(image).astype(np.uint8), label, spacing

    about = {
        "name": "embryo phantoms",
        "description": "made-up high-frequency ultrasound of mouse embryos in utero, exact truth",
        "modality": {"0": "US"},
        "labels": {str(n): name for n, name in enumerate(("background", *EMBRYO_LABELS))},
    }
    return folder.write(directory, make, settings, "embryo", about)
