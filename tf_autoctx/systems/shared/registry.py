"""Which systems there are: ours, and those that other packages bring.

A package of its own adds a system by an entry point of the group `tf_autoctx.systems`, a program
by `register`; see docs/adding_a_system.md.
"""

from __future__ import annotations

import importlib
import importlib.metadata

from tf_autoctx.errors import UserError
from tf_autoctx.systems.shared.declaration import Declaration

GROUP = "tf_autoctx.systems"
OURS = ("fetal_head", "multi_organ", "embryo", "renderer")
_registered: dict[str, Declaration] = {}


def register(declaration: Declaration) -> None:
    """Adds a system for as long as the program runs; one of the same name gives way."""
    _registered[declaration.name] = declaration


def declarations() -> dict[str, Declaration]:
    """{name: declaration} of every system: ours, then others'."""
    modules = {name: f"tf_autoctx.systems.{name}.configuration" for name in OURS}
    known = {name: importlib.import_module(module).DECLARATION for name, module in modules.items()}
    for entry in importlib.metadata.entry_points(group=GROUP):
        known.setdefault(entry.name, entry.load())
    return known | _registered


def find(name: str, where: str) -> Declaration:
    """The declaration of a system.

    Args:
      name: of the system.
      where: the file or folder that names it, for the message.

    Raises:
      UserError: no such system (the message lists those there are).
    """
    known = declarations()
    if name not in known:
        raise UserError(
            f"{where}: of the system {name!r}, which is not installed; expected one of "
            f"{', '.join(known)}."
        )
    return known[name]
