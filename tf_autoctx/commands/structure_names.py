"""What label values are called: typed, or as a data set, a model card or a run folder tells."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Mapping, Sequence

from absl import logging

from tf_autoctx import files
from tf_autoctx.errors import FieldError, UserError

DATA_SET, CARD, RUN = "dataset.json", "model_card.json", "config.json"
INLINE = re.compile(r"\s*\d+\s*:")


@dataclasses.dataclass(frozen=True)
class StructureNames:
    """What label values are called.

    Attributes:
      source: where this stands; "" where nothing tells.
      labels: {label value: name} of the structures.
      system: that made the predictions; "" where unknown.
      ignored: label value whose voxels in the truth do not count; None: all do.
      regions: {a value of `labels`: the label values of its voxels} where structures are regions.
    """

    source: str = ""
    labels: Mapping[int, str] = dataclasses.field(default_factory=dict)
    system: str = ""
    ignored: int | None = None
    regions: Mapping[int, Sequence[int]] = dataclasses.field(default_factory=dict)

    @property
    def values(self) -> set[int]:
        """All label values of the structures."""
        return {*self.labels}.union(*self.regions.values())

    @property
    def single(self) -> int | None:
        """Label value of the only structure, 1 where nothing is known; None: there are several."""
        values = list(self.values) or [1]
        return values[0] if len(values) == 1 else None

    def of(self, value: int) -> str:
        """Name of a label value."""
        return self.labels.get(value, f"label {value}")


def given(text: str) -> StructureNames:
    """The names of a flag.

    Args:
      text: 1:liver,2:spleen; or path of a dataset.json, a model_card.json or a config.json; or of
        a folder that holds one: a run, a SavedModel or its versions, a data set.

    Raises:
      UserError: neither; a file that does not name its labels; a name or a value twice.
    """
    if INLINE.match(text):
        return _named("names", _typed(text))
    path = pathlib.Path(text)
    if not path.is_dir():
        return read(path)
    for file in _in_folder(path):
        if file.is_file():
            return read(file)
    raise FieldError(
        "names",
        text,
        f"holds neither {CARD} nor {RUN} nor {DATA_SET}; expected one, or 1:liver,2:spleen.",
    )


def beside(labels: pathlib.Path, predictions: pathlib.Path) -> StructureNames:
    """The names where nobody gives any.

    They are those of the dataset.json in the folder of the labels or the one above, else of the
    model_card.json, config.json or dataset.json (nnU-Net leaves one) in the folder of the
    predictions or the one above. A card or config.json there tells the system in any case, and wins
    where its structures are regions: of their label values the data set has other names.

    Raises:
      UserError: such a file does not name its labels, or two of them give a name to different
        values.
    """
    of_truth = [folder / DATA_SET for folder in _upwards(labels)]
    of_model = [folder / name for folder in _upwards(predictions) for name in (CARD, RUN)]
    of_peer = [folder / DATA_SET for folder in _upwards(predictions)]
    files = [*of_truth, *filter(_is_ours, of_model), *of_peer]
    try:
        told = [read(file) for file in files if file.is_file()]
    except UserError as error:
        message = str(error).removesuffix(".")
        raise UserError(f"{message}, or `names` such as 1:liver,2:spleen.") from None
    if not told:
        return StructureNames()
    names = next((names for names in told if names.system and names.regions), told[0])
    for other in told:
        if names is told[0] or other.regions:  # else the regions have names of their own
            _require_agreement(names, other)
    system = next((names.system for names in told if names.system), "")
    ignored = next((names.ignored for names in told if names.ignored is not None), None)
    if ignored is not None and ignored in names.labels:
        raise UserError(
            f"{names.source}: {ignored} is {names.labels[ignored]}, but voxels to be ignored in "
            "another file beside the labels or predictions; expected the same, or `names` such as "
            "1:liver,2:spleen."
        )
    return dataclasses.replace(names, system=system, ignored=ignored)


def _require_agreement(ours: StructureNames, theirs: StructureNames) -> None:
    """Raises a `UserError` where a name stands for different values; warns where a value of several
    has different names."""
    values = {name: value for value, name in theirs.labels.items()}
    for value, name in ours.labels.items():
        if values.get(name, value) != value:
            raise UserError(
                f"{theirs.source}: {name} is {values[name]}, but {value} in {ours.source}; "
                "expected the same, or `names` such as 1:liver,2:spleen."
            )
        other = theirs.labels.get(value, name)
        # Of a single structure a system may have a name of its own.
        if len(ours.labels) > 1 and other.casefold() != name.casefold():
            logging.warning(
                "%s: %d is %s, but %s in %s; it is scored as %s. `names` tells what it is.",
                *(theirs.source, value, other, name, ours.source, name),
            )


def read(path: pathlib.Path) -> StructureNames:
    """The names of a dataset.json, a model card or a run's config.json.

    Raises:
      UserError: no such file, or it does not name its labels.
    """
    from tf_autoctx.data import datasets, regions
    from tf_autoctx.data.labels import IGNORE

    try:
        told = files.read_json(path, "label values and names")
        told["labels"].keys()
        of_labels = regions.of_facts(told) if "system" in told else {}
    except OSError as error:
        raise UserError(
            f"{path}: {(error.strerror or str(error)).lower()}; expected {DATA_SET}, {CARD} or "
            f"{RUN}, or names such as 1:liver,2:spleen."
        ) from None
    except (KeyError, TypeError, AttributeError, ValueError, IndexError):
        raise UserError(f"{path}: names no labels; expected label values and names.") from None
    labels = told["labels"]
    if in_data_set := datasets.regions_in(path, told):
        of_labels = regions.by_value(in_data_set)
        kept = {name: v for name, v in labels.items() if name.casefold() == IGNORE}
        labels = kept | {region.name: region.values[0] for region in in_data_set}
    names = _named(str(path), datasets.label_names(path, labels))
    system = told.get("system", "")
    told_by = system if isinstance(system, str) else ""
    return dataclasses.replace(names, system=told_by, regions=of_labels)


def _is_ours(file: pathlib.Path) -> bool:
    """Whether a file is a model card or a run's config.json; others use such names too."""
    try:
        told = files.read_json(file, "labels")
    except (OSError, UserError):
        return False
    return isinstance(told, dict) and {"system", "labels", "data_fingerprint"} <= told.keys()


def _named(source: str, labels: Mapping[int, str]) -> StructureNames:
    """The names of {label value: name}, without background and ignored voxels.

    Raises:
      UserError: two values of one name, or a name without a letter.
    """
    from tf_autoctx.data.labels import IGNORE

    structures = {value: name for value, name in labels.items() if value}
    ignored = [value for value, name in structures.items() if name.casefold() == IGNORE]
    structures = {value: name for value, name in structures.items() if value not in ignored}
    names = list(structures.values())
    if len(set(names)) < len(names) or "" in names or len(ignored) > 1:
        raise UserError(f"{source}: has the labels {dict(labels)}; expected names that differ.")
    return StructureNames(source, structures, ignored=ignored[0] if ignored else None)


def _typed(text: str) -> dict[int, str]:
    pairs = [pair.partition(":") for pair in text.split(",")]
    values = [value.strip() for value, _, _ in pairs]
    whole = all(value.isdecimal() and name.strip() for value, (_, _, name) in zip(values, pairs))
    if not whole or len(set(map(int, values))) < len(values):
        raise FieldError("names", text, "expected value:name, each value once: 1:liver,2:spleen.")
    return {int(value): name.strip() for value, (_, _, name) in zip(values, pairs)}


def _in_folder(folder: pathlib.Path) -> list[pathlib.Path]:
    """Where a folder that `given` takes may tell names: of versions, the newest does."""
    versions = [path for path in folder.iterdir() if path.name.isdecimal() and path.is_dir()]
    newest = [max(versions, key=lambda path: int(path.name))] if versions else []
    extra = "assets.extra"
    cards = [inside / name / CARD for inside in (folder, *newest) for name in ("", extra)]
    return [*cards, folder / RUN, folder / DATA_SET]


def _upwards(folder: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """A folder and the one above it."""
    return folder, folder.resolve().parent
