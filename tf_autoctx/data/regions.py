"""Regions: structures that are sets of label values, so that they lie in each other or overlap.

As nnU-Net has them: a tumour is whatever is necrosis, oedema or enhancing, its core two of these.
Networks tell of each region whether it is there; the label is composed of what they say.

  whole=1+2+3,core=2+3

names two. The first value of a region is the one that is written where the region is the last of
those that are there: 1 where there is the whole alone, 2 in the core. No Keras in this module.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from tf_autoctx.errors import FieldError
from tf_autoctx.metrics import Regions

FLAG = "regions"
MOST = 12  # regions: a label is looked up in a table of all combinations
LARGEST = 254  # label value; 255 marks voxels that are to be ignored


@dataclasses.dataclass(frozen=True)
class Region:
    """A structure of several label values.

    Attributes:
      name: of the structure.
      values: label values of its voxels; the first is written for it.
    """

    name: str
    values: tuple[int, ...]


def parsed(text: str) -> tuple[Region, ...]:
    """The regions of a flag, in their order; none of "".

    Raises:
      FieldError: no regions; a name twice, or none that a folder can have; a value twice in a
        region, or first in two; a value that no label has.
    """
    if not text:
        return ()
    regions = []
    for word in text.split(","):
        name, _, values = word.rpartition("=")
        numbers = values.split("+")
        if not name.strip() or not all(number.strip().isdecimal() for number in numbers):
            raise FieldError(FLAG, text, "expected name=value+value, such as whole=1+2+3,core=2+3.")
        regions.append(Region(name.strip(), tuple(map(int, numbers))))
    names, firsts = [r.name for r in regions], [r.values[0] for r in regions]
    if len(regions) > MOST:
        raise FieldError(FLAG, text, f"are {len(regions)}; expected {MOST} at most.")
    if len(set(names)) < len(names) or any("/" in name or name in (".", "..") for name in names):
        raise FieldError(FLAG, text, "expected names that differ and may be names of folders.")
    if len(set(firsts)) < len(firsts) or any(len({*r.values}) < len(r.values) for r in regions):
        raise FieldError(
            FLAG,
            text,
            "expected each value of a region once, and first one that is first in no other: it is "
            "written for the region.",
        )
    if not all(0 < value <= LARGEST for region in regions for value in region.values):
        raise FieldError(FLAG, text, f"expected label values from 1 to {LARGEST}.")
    return tuple(regions)


def written(regions: Sequence[Region]) -> str:
    """The flag of which `parsed` makes these regions."""
    return ",".join(f"{r.name}={'+'.join(map(str, r.values))}" for r in regions)


def by_value(regions: Sequence[Region]) -> dict[int, tuple[int, ...]]:
    """{the value that is written for a region: its label values}, in their order."""
    return {region.values[0]: region.values for region in regions}


def facts(regions: Regions, labels: Mapping[int, str]) -> dict[str, Any]:
    """What config.json and model cards tell of regions, as nnU-Net's dataset.json does: {"regions":
    {name: label values}}; nothing where there are none."""
    told = {labels[value]: [*values] for value, values in regions.items()}
    return {FLAG: told} if told else {}


def of_facts(told: Mapping[str, Any]) -> dict[int, tuple[int, ...]]:
    """`by_value` of what `facts` tell; empty where there are none.

    Raises:
      TypeError, ValueError, AttributeError, IndexError: they are none.
    """
    every = [tuple(map(int, values)) for values in (told.get(FLAG) or {}).values()]
    return {values[0]: values for values in every}


def composition(regions: Regions) -> list[int]:
    """The label value of every combination of regions: at the sum of 2^k over the k-th regions that
    are there.

    It is the first value of the last of them, as nnU-Net composes labels. Where that is not in just
    these regions and another value is, it is that one: the label then tells all of them.
    """
    every = [tuple(values) for values in regions.values()]

    def where(value: int) -> int:
        return sum(2**k for k, values in enumerate(every) if value in values)

    known = {where(value): value for value in sorted({*sum(every, ())}, reverse=True)}
    table = [0]
    for combination in range(1, 2 ** len(every)):
        first = every[combination.bit_length() - 1][0]
        exact = first if where(first) == combination else known.get(combination, first)
        table.append(exact)
    return table
