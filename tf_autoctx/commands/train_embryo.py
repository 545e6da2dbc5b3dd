"""Mouse embryo body and ventricle in 3D ultrasound: trains the refinement of Xu et al. 2020.

  autoctx-train-embryo                                         # on phantoms, all stages
  autoctx-train-embryo --data_dir=my_embryos --foreground=1,2  # the body's label value, then the
                                                               # ventricle's
  autoctx-train-embryo --stage=initial && autoctx-train-embryo --stage=refine
  autoctx-train-embryo --noauto_context --initial_from=runs/embryo \\
      --work_dir=runs/embryo_no_context
  autoctx-train-embryo --preset=paper --data_dir=my_embryos

A run that was stopped goes on where it was when the same command is given again.
"""

from __future__ import annotations

from tf_autoctx.commands import training
from tf_autoctx.commands.command_line import Given
from tf_autoctx.systems.embryo.configuration import DECLARATION


def main(given: Given) -> None:
    # Section 3.1: volumes, split, prepared once
    run = training.opened(DECLARATION, given)
    # Section 2.1: VNet I; 2.3: VNets II and III; 2.4: all three
    networks = run.train()
    # Section 3.2: held-out cases on their original grid, and the export
    run.finish(networks)


command = training.command(DECLARATION, main, __doc__)


if __name__ == "__main__":
    command()
