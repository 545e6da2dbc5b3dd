"""Fetal head in 2D ultrasound across scanners: self-play on a source corpus (Yang et al. 2018).

  autoctx-train-renderer                                          # on phantoms
  autoctx-train-renderer --variant=S2T-p --corpus=my_scanner      # images/ and labels/
  autoctx-train-renderer --variant=Orig-S2T --work_dir=runs/orig  # a row of table 1
  autoctx-train-renderer --preset=paper --corpus=my_decathlon_folder  # with held-out images

A run that was stopped goes on where it was when the same command is given again. autoctx-predict
then renders images of other scanners online, and autoctx-renderer-tables scores a whole corpus.
"""

from __future__ import annotations

from tf_autoctx.commands import training
from tf_autoctx.commands.command_line import Given
from tf_autoctx.systems.renderer.configuration import DECLARATION


def main(given: Given) -> None:
    # Section 3: the source corpus S (for Orig-T2T, the target), prepared once
    run = training.opened(DECLARATION, given)
    # Section 2.3: self-play full training; then S is rendered once into S'
    networks = run.train()
    # Held-out cases of the same corpus, by the trained weights as they are, and the export
    run.finish(networks)


command = training.command(DECLARATION, main, __doc__)


if __name__ == "__main__":
    command()
