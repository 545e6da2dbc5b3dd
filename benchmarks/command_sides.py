"""Sides of the rows of `speed.py` that are commands, each run as a user does, in a new process."""

from __future__ import annotations

import pathlib
import subprocess
import sys
from typing import Any

import harness
import numpy as np
import tasks
from harness import Ready


def command(words: list[str]) -> Ready:
    """A script of ours with its flags, from the start of Python to its end.

    Raises:
      RuntimeError: it fails.
    """

    def step() -> None:
        run(words)

    return Ready(step)


def run(words: list[str]) -> None:
    """Runs a script once.

    Raises:
      RuntimeError: it fails; the message is its last line.
    """
    done = subprocess.run(
        [sys.executable, *words], cwd=harness.ROOT, capture_output=True, text=True
    )
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "nothing told").splitlines()[-1]
        raise RuntimeError(f"{' '.join(words[:2])}: exit code {done.returncode}, {last}")


def write_scan(path: pathlib.Path, size: tuple[int, ...]) -> None:
    """Writes a made-up scan of so many voxels of 0.38 mm."""
    import SimpleITK as sitk

    from tf_autoctx.data import images

    image = sitk.GetImageFromArray((255 * tasks.smooth(size)).astype(np.uint8))
    image.SetSpacing((0.38, 0.38, 0.38))
    path.parent.mkdir(parents=True, exist_ok=True)
    images.write(path, image)


def write_pairs(folder: pathlib.Path, pairs: int, size: tuple[int, ...]) -> None:
    """Writes folder/labels and folder/predictions: ellipsoids of their own size and place; the
    prediction is a little larger and shifted by two voxels."""
    import SimpleITK as sitk

    from tf_autoctx.data import images

    rng = np.random.default_rng(0)
    grid = np.moveaxis(np.indices(size, np.float32), 0, -1)
    for number in range(pairs):
        centre = rng.uniform(0.45, 0.55, 3) * size
        radii = rng.uniform(0.25, 0.4, 3) * size
        for kind, shift, factor in (("labels", 0, 1.0), ("predictions", 2, 1.03)):
            mask = (((grid - centre - shift) / (factor * radii)) ** 2).sum(axis=-1) <= 1
            path = folder / kind / f"head_{number:03d}.nii.gz"
            path.parent.mkdir(exist_ok=True)
            image = sitk.GetImageFromArray(mask.astype(np.uint8))
            image.SetSpacing((0.95, 0.95, 0.95))
            images.write(path, image)


def write_export(folder: pathlib.Path, task: tasks.Task) -> str:
    """Writes an export of a task's networks, as predict.py takes it, and returns its folder."""
    import our_sides

    from tf_autoctx import export

    system, networks = our_sides.system_of(task, "float32")
    signatures = system.signatures([networks])
    card: dict[str, Any] = {"system": task.name, "labels": our_sides.LABELS[task.name]}
    card |= {"spacing": [[0.38] * 3] * 2, "orientation": "LPS", "precision": "float32"}
    written = export.Exported(signatures, networks, card, system.spec)
    return str(export.write(folder, written))
