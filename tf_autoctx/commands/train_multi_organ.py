"""Organs and vessels in CT: trains a pyramid of 3D U-Nets with auto-context (Roth et al. 2018).

  autoctx-train-multi-organ --mode=end_to_end --levels=2          # on phantoms
  autoctx-train-multi-organ --data_dir=my_cts                     # CTs of 0.6 to 1 mm
  autoctx-train-multi-organ --data_dir=my_cts --downsampling=2,1  # data that is coarse already
  autoctx-train-multi-organ --preset=paper --data_dir=my_cts

A run that was stopped goes on where it was when the same command is given again.
"""

from __future__ import annotations

from tf_autoctx.commands import training
from tf_autoctx.commands.command_line import Given
from tf_autoctx.systems.multi_organ.configuration import DECLARATION


def main(given: Given) -> None:
    # Section 3: CTs, split, windowed and shrunk once to the grid of every level
    run = training.opened(DECLARATION, given)
    # Section 2.2: the levels, trained together or one after the other
    networks = run.train()
    # Section 3: held-out cases on their original grid, tile by tile, not post-processed; the export
    run.finish(networks)


command = training.command(DECLARATION, main, __doc__)


if __name__ == "__main__":
    command()
