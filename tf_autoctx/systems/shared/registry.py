"""Which systems there are: ours, and those that other packages bring.

A package of its own adds a system by an entry point of the group `tf_autoctx.systems`, a program
by `register`; see docs/adding_a_system.md. This is the one place of `shared` that names the wings.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata

from absl import logging

from tf_autoctx.errors import UserError
from tf_autoctx.systems.shared.declaration import Declaration

GROUP = "tf_autoctx.systems"
OURS = ("fetal_head", "multi_organ", "embryo", "renderer")
_registered: dict[str, Declaration] = {}


def register(declaration: Declaration) -> None:
    """Adds a system for as long as the program runs; one of the same name gives way."""
    _registered[declaration.name] = declaration


def names() -> list[str]:
    """Names of every system: ours, then others'; no package of theirs is imported."""
    return list(dict.fromkeys([*OURS, *_entries(), *_registered]))


def declarations() -> dict[str, Declaration]:
    """{name: declaration} of every system, with a warning for each that cannot be imported."""
    known = {}
    for name in names():
        try:
            known[name] = _declaration(name)
        except UserError as error:
            _warn(str(error))
    return known


@functools.cache
def _warn(told: str) -> None:
    """Warns, once in a program: a command asks for its flags several times."""
    logging.warning("%s", told)


def find(name: str, where: str) -> Declaration:
    """The declaration of a system; no other one is imported.

    Args:
      name: of the system.
      where: the file or folder that names it, for the message.

    Raises:
      UserError: no such system (the message lists those there are), or one that cannot be imported.
    """
    if name not in names():
        raise UserError(
            f"{where}: a run of {name!r}; expected one of {', '.join(names())}, or another system "
            "whose package is installed."
        )
    return _declaration(name)


def _entries() -> dict[str, importlib.metadata.EntryPoint]:
    """{name of a system: where another package declares it}."""
    return {entry.name: entry for entry in importlib.metadata.entry_points(group=GROUP)}


def _declaration(name: str) -> Declaration:
    """The declaration of a system of `names`.

    Raises:
      UserError: another package's cannot be imported, or is none.
    """
    if name in _registered:
        return _registered[name]
    if name in OURS:
        module = importlib.import_module(f"tf_autoctx.systems.{name}.configuration")
        return module.DECLARATION
    entry = _entries()[name]
    try:
        declaration = entry.load()
    except Exception as error:  # whatever another package does
        raise _unusable(entry, f"{type(error).__name__}: {error}") from error
    if not isinstance(declaration, Declaration):
        raise _unusable(entry, f"it is of the type {type(declaration).__name__}")
    return declaration


def _unusable(entry: importlib.metadata.EntryPoint, reason: str) -> UserError:
    """What to tell of an entry point that brings no declaration, in one line."""
    package = f" of {entry.dist.name}" if entry.dist else ""
    return UserError(
        f"{entry.value}{package}: the system {entry.name!r} cannot be used "
        f"({' '.join(reason.split())}); expected a `Declaration`."
    )
