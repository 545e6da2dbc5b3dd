"""Patches that networks see in place of whole volumes, as a flag tells. No Keras in this module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tf_autoctx.errors import FieldError

FLAG = "patch"
WHOLE, AUTO = "none", "auto"
STRIDE = 8  # of four resolutions; tiles begin at multiples of it, too


def edges(value: str) -> tuple[int, ...] | None:
    """Edges (z, y, x) in voxels that the flag gives; None: it gives none, or they are not planned
    yet.

    Raises:
      FieldError: it is neither edges nor one of the two words.
    """
    if value in (WHOLE, AUTO):
        return None
    words = [word.strip() for word in value.split(",")]
    if len(words) == 3 and all(word.isdecimal() for word in words):
        given = tuple(map(int, words))
        if all(n > 0 and n % STRIDE == 0 for n in given):
            return given
    raise FieldError(
        FLAG,
        value,
        f"expected three multiples of {STRIDE} (z,y,x), such as 64,48,64, {AUTO} or {WHOLE}.",
    )


def planned_before(facts: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """{flag: value} of what a run of such facts has planned already, where it is left to a plan
    again."""
    flags = facts.get("plan", {}).get("flags", {})
    return {name: value for name, value in flags.items() if values.get(name) in (None, AUTO)}


def told(edges: tuple[int, ...]) -> str:
    """The value of the flag that gives such edges."""
    return ",".join(map(str, edges))
