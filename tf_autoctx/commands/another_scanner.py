r"""2D ultrasound as a made-up scanner would show it: a target corpus whose truth is known.

  autoctx-another-scanner --data_dir=my_scanner --output=other_scanner
  autoctx-renderer-tables --runs=runs/renderer --corpus=other_scanner/cases.csv --output=tables

Grey values change (gamma, time-gain curve, dynamic range, blur, speckle), geometry does not. Writes
images/ and labels/ (PNG) and cases.csv with the splits of the source.
"""

from __future__ import annotations

import dataclasses
import pathlib
import zlib
from typing import TYPE_CHECKING

from tf_autoctx import configuration, errors, files, progress, spreadsheets
from tf_autoctx.commands import command_line
from tf_autoctx.configuration import field

if TYPE_CHECKING:
    from tf_autoctx.data import datasets


@dataclasses.dataclass(frozen=True)
class AnotherScanner:
    """What is shown anew"""

    data_dir: str = field(..., "Corpus with labels, in any form that autoctx-train-renderer reads.")
    output: str = field(..., "New folder.")
    seed: int = field(
        0, "Seed of speckle, noise and the scanner's setting for each image.", least=0
    )

    def __post_init__(self) -> None:
        configuration.check(self)


def show(
    case: datasets.Case, labels: dict[int, str], seed: int, folder: pathlib.Path
) -> dict[str, str]:
    """Writes a case as the other scanner shows it, with its label.

    Args:
      case: of the source corpus.
      labels: {label value: name} of the corpus.
      seed: of the command.
      folder: of the new corpus.

    Returns:
      {"image", "label"}: its files, relative to the folder.

    Raises:
      UserError: the case cannot be read.
    """
    import numpy as np

    from tf_autoctx.data import datasets, images, phantoms

    image, label = datasets.read_case(case, labels=labels, dimensions=2)
    pixels = np.rint(image.array).astype(np.uint8)
    seen = phantoms.another_scanner(pixels, (seed, zlib.crc32(case.name.encode())))
    assert label is not None, "only cases with a label are shown"
    if label.max() > 1:
        raise errors.UserError(
            f"{case.label}: has voxels that are to be ignored, which a mask of this corpus cannot "
            "say; leave the case out."
        )
    names = {"image": f"images/{case.name}.png", "label": f"labels/{case.name}.png"}
    images.write(folder / names["image"], image.like(seen))
    images.write(folder / names["label"], image.like(255 * label))
    return names


def main(given: command_line.Given) -> None:
    """Runs the command."""
    settings = given.configured(AnotherScanner)
    from tf_autoctx.data import datasets

    corpus = datasets.load(settings.data_dir, settings.seed, validation_fraction=0, training=False)
    cases = [
        (split, case) for split in datasets.SPLITS for case in getattr(corpus, split) if case.label
    ]
    if pathlib.Path(settings.output).exists():
        message = "is there already; expected the name of a new folder."
        raise errors.FieldError("output", settings.output, message)
    rows, bar = [], progress.bar(len(cases), "image", "made")
    with files.replacing(settings.output) as folder:
        for kind in ("images", "labels"):
            (folder / kind).mkdir(parents=True)
        for split, case in cases:
            names = show(case, corpus.labels, settings.seed, folder)
            rows.append({**names, "split": split, "group": case.group})
            bar.add(1)
        spreadsheets.write(folder / "cases.csv", rows, ("image", "label", "split", "group"))


command = command_line.Command(main, (AnotherScanner,), __doc__)
