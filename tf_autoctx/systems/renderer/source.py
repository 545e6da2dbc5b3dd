"""The source corpus S as the trained renderer shows it, S': online rendering's real images (Yang et
al. 2018, section 2.3).

Files of a corpus are [{"image2d", "label2d": path}], one entry per case.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from keras import ops

from tf_autoctx import progress
from tf_autoctx.data import pipeline
from tf_autoctx.errors import UserError
from tf_autoctx.files import replacing
from tf_autoctx.report import figures
from tf_autoctx.systems.shared.caching import Files

COLUMNS = ("image2d", "label2d")
CHECKSUM = 8  # bytes behind a serialized tensor of 0.1.0
Graph = Callable[[Any], dict[str, Any]]


def render(graph: Graph, training: Files, folder: pathlib.Path) -> None:
    """Renders S once into S', every image from 0 to 1, or finds it rendered.

    Args:
      graph: of `training.graph`.
      training: files of S.
      folder: of the run; gets the folder rendered/ when all images are.
    """
    directory = folder / "rendered"
    if all((directory / _case_of(entry) / COLUMNS[-1]).exists() for entry in training):
        return
    shutil.rmtree(directory, ignore_errors=True)  # where a case was removed since
    bar = progress.bar(len(training), "case", "rendered")
    with replacing(directory, keep=True) as partial:
        for entry in training:
            image = graph(pipeline.stored(entry["image2d"], "image2d")[None])["rendered"][0]
            label = pipeline.stored(entry["label2d"], "label2d")
            low, high = ops.min(image), ops.max(image)
            case = partial / _case_of(entry)
            pipeline.store(case / "image2d", (image - low) / ops.maximum(high - low, 1e-6))
            pipeline.store(case / "label2d", label)
            bar.add(1)


def rendered(folder: pathlib.Path) -> Files:
    """The files of S', with the labels of S, of a run's folder.

    Raises:
      UserError: S has not been rendered yet.
    """
    directory = folder / "rendered"
    cases = sorted(directory.glob("[!.]*"))
    if not cases:
        raise UserError(
            f"{directory}: is not there; run the training command with the same flags to finish "
            "the run."
        )
    return [{name: str(case / name) for name in COLUMNS} for case in cases]


def read(path: str, name: str) -> np.ndarray:
    """A tensor of a corpus.

    In runs of before, S' lies in files of a serialized tensor each: in those of 0.1.0 alone, later
    with a checksum behind it.

    Args:
      path: of its file or folder.
      name: of `COLUMNS`.

    Raises:
      UserError: see `pipeline.stored`.
    """
    file = pathlib.Path(path)
    if not file.is_file():
        return np.array(pipeline.stored(path, name))
    content, dtype = file.read_bytes(), pipeline.spec(name).dtype
    serialized, checksum = content[:-CHECKSUM], content[-CHECKSUM:]
    if checksum == tf.fingerprint([serialized], "farmhash64")[0].numpy().tobytes():
        return np.array(tf.io.parse_tensor(serialized, dtype))
    with contextlib.suppress(tf.errors.OpError):
        tensor = tf.io.parse_tensor(content, dtype)
        if tf.io.serialize_tensor(tensor).numpy() == content:
            return np.array(tensor)
    raise pipeline.damaged(file)


def compare(training: Files, folder: pathlib.Path, shown: int = 6) -> None:
    """Shows how much more alike the images of S' are than those of S (figure 4).

    Writes source.png and source.json, and prints two lines.

    Args:
      training: files of S.
      folder: of the run, with S'.
      shown: images in the picture.
    """
    before, after = _images(training), _images(rendered(folder))
    # S' has every image from 0 to 1; the same of S, for a fair comparison.
    before = [(image - image.min()) / max(np.ptp(image), 1e-6) for image in before]
    spread: dict[str, dict[str, float]] = {}
    for name, images in (("S", before), ("S'", after)):
        of_corpus = {
            f"mean of {name}": _spread([float(image.mean()) for image in images]),
            f"SD of {name}": _spread([float(image.std()) for image in images]),
        }
        spread |= of_corpus
        text = ", ".join(
            f"{what.split()[0]} {values['mean']:.3f} ± {values['sd']:.3f}"
            for what, values in of_corpus.items()
        )
        print(f"intensities of {len(images)} images of {name}, from 0 to 1: {text}")
    with replacing(folder / "source.json") as path:
        path.write_text(json.dumps(spread, indent=1) + "\n")
    pairs = list(zip(before, after))[:shown]
    figures.before_and_after(folder / "source.png", pairs, "S above, S' below")


def _images(files: Files) -> list[np.ndarray]:
    """The images of a corpus, (height, width) each, by the names of their cases."""
    ordered = sorted(files, key=_case_of)
    return [read(entry["image2d"], "image2d")[..., 0] for entry in ordered]


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"mean": float(np.mean(values)), "sd": float(np.std(values))}


def _case_of(entry: dict[str, str]) -> str:
    """Name of the case that files are of."""
    return pathlib.Path(entry["image2d"]).parent.name
