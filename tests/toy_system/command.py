"""Bright objects: trains the toy system.

  python -m toy_system.command                        # on phantoms
  python -m toy_system.command --data_dir=my_data

A run that was stopped goes on where it was when the same command is given again.
"""

from __future__ import annotations

from tf_autoctx.commands import training
from tf_autoctx.commands.command_line import Given
from toy_system.configuration import DECLARATION


def main(given: Given) -> None:
    # Volumes, split, and prepared once
    run = training.opened(DECLARATION, given)
    # All stages
    networks = run.train()
    # Held-out cases on their original grid, and the export
    run.finish(networks)


command = training.command(DECLARATION, main, __doc__)

if __name__ == "__main__":
    command()
