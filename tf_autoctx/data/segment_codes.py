"""Codes of structures: of what category and type a DICOM segment is.

The tables have codes that DICOM lists for segments (PS3.16, CID 7150 and 7151), all of SNOMED CT
(the scheme SCT). What they lack, a file tells:

  {"tumour": {"category": {"value": "49755003", "scheme": "SCT",
                           "meaning": "Morphologically Abnormal Structure"},
              "type": {"value": "108369006", "scheme": "SCT", "meaning": "Neoplasm"}}}

A "modifier" beside them, such as a side, may be left out. Neither Keras nor SimpleITK is imported.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from tf_autoctx import errors, files
from tf_autoctx.errors import UserError

FILE = "segment_codes.json"  # in the folder of a model
PARTS = {"value": 64, "scheme": 16, "meaning": 64}  # of a code, and how long each may be


class Code(NamedTuple):
    """A concept of a coding scheme."""

    value: str
    scheme: str
    meaning: str


ANATOMY = Code("91723000", "SCT", "Anatomical Structure")
SIDES = {"left": Code("7771000", "SCT", "Left"), "right": Code("24028007", "SCT", "Right")}


@dataclasses.dataclass(frozen=True)
class Codes:
    """What a structure is.

    Attributes:
      type: such as liver.
      category: of the type, such as anatomical structure.
      modifier: of the type, such as left; None: there is none.
    """

    type: Code
    category: Code = ANATOMY
    modifier: Code | None = None

    def __str__(self) -> str:
        parts = [self.type, *filter(None, [self.modifier])]
        return ", ".join(f"{code.meaning} ({code.scheme} {code.value})" for code in parts)


# Values of SNOMED CT by meaning. A structure has the name of its meaning, or one of `OTHER_NAMES`.
ANATOMICAL = {
    # Abdomen
    "Adrenal gland": "23451007",
    "Aorta": "15825003",
    "Artery": "51114001",
    "Bladder": "89837001",
    "Duodenum": "38848004",
    "Esophagus": "32849002",
    "Gallbladder": "28231008",
    "Inferior vena cava": "64131007",
    "Kidney": "64033007",
    "Liver": "10200004",
    "Pancreas": "15776009",
    "Portal vein": "32764006",
    "Spleen": "78961009",
    "Stomach": "69695003",
    # Head and neck
    "Brain Stem": "119238007",
    "Hippocampus": "5366008",
    "Mandible": "91609006",
    "Parotid gland": "45289007",
    "Spinal cord": "2748008",
}
OTHER_NAMES = {
    "brainstem": "brain stem",
    "gall bladder": "gallbladder",
    "oesophagus": "esophagus",
    "parotid": "parotid gland",
    "urinary bladder": "bladder",
}
PAIRED = ("adrenal gland", "hippocampus", "kidney", "parotid gland")  # left and right


def anatomical(value: str, meaning: str) -> Codes:
    """An anatomical structure of SNOMED CT."""
    return Codes(Code(value, "SCT", meaning))


FETAL_HEAD = anatomical("54527006", "Fetal head structure")  # which CID 7151 lacks


def known(name: str) -> Codes | None:
    """What a structure of a name is, "liver", "left kidney", "kidney_left"; None: not known."""
    words = re.sub(r"[\W_]+", " ", name.casefold()).split()
    sides = [word for word in words if word in SIDES]
    rest = " ".join(word for word in words if word not in SIDES)
    rest = OTHER_NAMES.get(rest, rest)
    found = {meaning.casefold(): meaning for meaning in ANATOMICAL}.get(rest)
    if found is None or len(sides) > (rest in PAIRED):
        return None
    codes = anatomical(ANATOMICAL[found], found)
    return dataclasses.replace(codes, modifier=SIDES[sides[0]]) if sides else codes


def of_all(names: Iterable[str], told: Mapping[str, Codes]) -> dict[str, Codes]:
    """{name: codes} of structures, as they are told or as `known`.

    Raises:
      UserError: nothing is known of one.
    """
    found = {name: told.get(name) or known(name) for name in names}
    unknown = [name for name, codes in found.items() if codes is None]
    if unknown:
        raise UserError(
            f"`segment_codes`: no code is known for {', '.join(unknown)}; expected a JSON file of "
            "category and type of each."
        )
    return {name: codes for name, codes in found.items() if codes is not None}


def read(path: str | pathlib.Path) -> dict[str, Codes]:
    """{structure: codes} of a file.

    Raises:
      UserError: it cannot be read, or is something else.
    """
    try:
        told = files.read_json(path, "codes of structures")
    except OSError as error:
        raise UserError(f"{path}: {errors.reason(error, 'a JSON file of codes')}.") from None
    if not isinstance(told, dict):
        raise UserError(f"{path}: holds no structures; expected a JSON object of them by name.")
    return {name: _of_structure(path, name, entry) for name, entry in told.items()}


def _of_structure(path: str | pathlib.Path, name: str, entry: Any) -> Codes:
    """Raises a `UserError` for an entry of other parts than category, type and modifier."""
    parts = set(entry) if isinstance(entry, dict) else set()
    if parts - {"modifier"} != {"category", "type"}:
        raise UserError(
            f"{path}: {name} has {', '.join(sorted(parts)) or 'no parts'}; expected category and "
            "type, and modifier if there is one."
        )
    return Codes(**{part: _code(path, f"{part} of {name}", entry[part]) for part in parts})


def _code(path: str | pathlib.Path, what: str, entry: Any) -> Code:
    """Raises a `UserError` for a code that DICOM cannot hold."""
    if (
        isinstance(entry, dict)
        and entry.keys() == PARTS.keys()
        and all(isinstance(text, str) and fits(text, PARTS[part]) for part, text in entry.items())
    ):
        return Code(**entry)
    longest = ", ".join(f"{part} ({length})" for part, length in PARTS.items())
    raise UserError(
        f"{path}: {what} is {entry!r}; expected an object of {longest}, each a text of at most so "
        "many letters without a backslash."
    )


def fits(text: str, length: int) -> bool:
    """Whether DICOM holds a text as one value of so many letters at most."""
    return bool(text.strip()) and len(text) <= length and text.isprintable() and "\\" not in text
