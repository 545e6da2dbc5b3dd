"""Whole fetal head in 3D ultrasound: trains USegNet-DS-HAS-Ctx (Yang et al. 2019) level by level.

  autoctx-train-fetal-head --level=2                     # on phantoms
  autoctx-train-fetal-head --level=2 --data_dir=my_data  # a Decathlon or nnU-Net folder, a CSV
  autoctx-train-fetal-head --preset=paper --data_dir=my_data

A run that was stopped goes on where it was when the same command is given again.
"""

from __future__ import annotations

from tf_autoctx.commands import training
from tf_autoctx.commands.command_line import Given
from tf_autoctx.systems.fetal_head.configuration import DECLARATION


def main(given: Given) -> None:
    # Section 2.1: volumes, split, prepared once
    run = training.opened(DECLARATION, given)
    # Section 2.5: level k is trained after level k - 1 is finished, and sees its probability
    networks = run.train()
    # Section 3: held-out cases on their original grid, and the export
    run.finish(networks)


command = training.command(DECLARATION, main, __doc__)

if __name__ == "__main__":
    command()
