"""A folder of phantoms in the form of a Medical Segmentation Decathlon task."""

import csv
import json
from pathlib import Path

import keras
import SimpleITK as sitk

from tf_autoctx.data import images
from tf_autoctx.errors import UserError
from tf_autoctx.files import replacing


def write(directory, make, prefix, about, labels, *, size, cases, seed, group=None, **further):
    """Writes the cases, or finds them written already; the folder appears under its name only when it is complete.

    `imagesTr`, `labelsTr`, `imagesTs`, `labelsTs` hold `<prefix>_000.nii.gz` and on, or files that end as `about` says.

    Args:
      directory: folder to make; its parents are made too.
      make: (size, (seed, number of a case)) -> image (z, y, x), label (z, y, x), spacing (z, y, x) in mm; all (y, x) for
        a size of two.
      prefix: of the cases' names.
      about: name, description, modality and, unless it is .nii.gz, file_ending in dataset.json.
      labels: {label value: name} without the background.
      size: voxels along (z, y, x) or (y, x).
      cases: number of (training, test) cases.
      seed: integer.
      group: number of a case -> its group; with it `cases.csv` lists the cases and their groups too.
      **further: what decides the content as well, such as the spacing; anything that JSON can hold.

    Returns:
      The folder, a `Path`.

    Raises:
      UserError: the folder exists and holds something else.
    """
    settings = {
        "size": [int(n) for n in size],
        **further,
        "cases": [int(n) for n in cases],
        "seed": int(seed),
    }
    settings = json.loads(json.dumps(settings))  # as they will be found: tuples become lists
    about = about | {
        "labels": {str(value): name for value, name in ({0: "background"} | labels).items()}
    }
    directory = Path(directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        found = _recorded_settings(directory)
        if found != settings:
            raise UserError(
                f"{directory}: holds {f'phantoms with {found}' if found else 'other files'}, asked for were phantoms "
                f"with {settings}; name another folder or remove this one."
            )
        return directory

    with replacing(directory, keep=True) as unfinished:
        unfinished.mkdir()
        _write_cases(unfinished, make, settings, prefix, about, group)
    return directory


def _write_cases(folder, make, settings, prefix, about, group):
    entries = {"Tr": [], "Ts": []}
    for part in entries:
        (folder / f"images{part}").mkdir()
        (folder / f"labels{part}").mkdir()
    train, test = settings["cases"]
    progress = keras.utils.Progbar(train + test, unit_name="phantom")
    for number in range(train + test):
        part = "Tr" if number < train else "Ts"
        name = f"{prefix}_{number:03d}{about.get('file_ending', '.nii.gz')}"
        image, label, spacing = make(settings["size"], (settings["seed"], number))
        for kind, voxels in (("images", image), ("labels", label)):
            volume = sitk.GetImageFromArray(voxels)
            volume.SetSpacing(spacing[::-1])  # SimpleITK counts (x, y, z) or (x, y)
            images.write(folder / f"{kind}{part}" / name, volume)
        entries[part].append(name)
        progress.add(1)
    task = {
        **about,
        "tensorImageSize": f"{len(settings['size'])}D",
        "numTraining": train,
        "numTest": test,
        "training": [
            {"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in entries["Tr"]
        ],
        "test": [f"./imagesTs/{name}" for name in entries["Ts"]],
        "phantom": settings,
    }
    (folder / "dataset.json").write_text(json.dumps(task, indent=2) + "\n")
    if group:
        parts = [("Tr", "train", name) for name in entries["Tr"]] + [
            ("Ts", "test", name) for name in entries["Ts"]
        ]
        lines = [
            (f"images{part}/{name}", f"labels{part}/{name}", split, group(number))
            for number, (part, split, name) in enumerate(parts)
        ]
        with open(folder / "cases.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows(
                [("image", "label", "split", "group"), *lines]
            )


def _recorded_settings(folder):
    try:
        return json.loads((folder / "dataset.json").read_text()).get("phantom")
    except (OSError, ValueError, AttributeError):
        return None
