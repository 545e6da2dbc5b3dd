"""The command of any system's training: its flags, its presets, and what they resolve to."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tf_autoctx import configuration, native
from tf_autoctx.commands.command_line import Command, Given
from tf_autoctx.data.configuration import Data
from tf_autoctx.errors import FieldError
from tf_autoctx.systems.shared.declaration import Declaration
from tf_autoctx.training.configuration import RunOptions, Settings

if TYPE_CHECKING:
    from tf_autoctx.systems.shared.opening import Opened


def kinds(declaration: Declaration) -> tuple[type, ...]:
    """The configurations whose fields are the flags of a system's training."""
    own = (declaration.configuration, *declaration.training, declaration.phantoms)
    return (Data, RunOptions, Settings, *own)


def filled(declaration: Declaration, given: Given) -> dict[str, Any]:
    """{flag: value} of a training, with the preset's values for flags that are not given.

    Args:
      declaration: of the system.
      given: what a command line says; flags that are not the training's are left out.

    Raises:
      FieldError: the system has no such preset.
    """
    names = [name for kind in kinds(declaration) for name in configuration.rules(kind)]
    values: dict[str, Any] = {name: given[name] for name in names}
    values["work_dir"] = values["work_dir"] or f"runs/{declaration.name}"
    preset = values["preset"] or ("standard" if values["data_dir"] else "demo")
    if (chosen := declaration.presets.get(preset)) is None:
        raise FieldError("preset", preset, f"expected one of {', '.join(declaration.presets)}.")
    return values | {name: value for name, value in chosen.items() if name not in given.typed}


def opened(declaration: Declaration, given: Given) -> Opened:
    """Opens the run that a command line asks for, see `opening.open_training`."""
    with native.without_noise():
        from tf_autoctx.systems.shared import opening

    of_training = kinds(declaration)
    return opening.open_training(
        declaration,
        filled(declaration, given),
        configuration.changeable(of_training),
        configuration.growing(of_training),
        configuration.earlier(of_training),
    )


def command(declaration: Declaration, main: Callable[[Given], None], doc: str | None) -> Command:
    """The command that trains a system."""
    return Command(main, kinds(declaration), doc, declaration.presets, declaration.aliases)
