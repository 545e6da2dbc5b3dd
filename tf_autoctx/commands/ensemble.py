"""Makes ONE SavedModel of several finished runs: its probability is the mean of theirs.

  autoctx-ensemble runs/fold_1 runs/fold_2 runs/fold_3 --output=models/head
  autoctx-ensemble runs/fold_* --output=models/head --mirrors

The label follows from the mean by the system's own rule, and goes through the steps of the
post-processing that all runs keep. The runs, such as those of all folds or of
several seeds, must be of one system, one configuration and one set of labels; they are segmented
one after the other, in the memory of one. autoctx-predict, the client and TensorFlow Serving take
the model as any other. It has one signature more, `uncertainty`, and its card tells of every run.

A version is written only if the newest one in the folder is another.
"""

from __future__ import annotations

import dataclasses
import pathlib

from tf_autoctx import configuration, files
from tf_autoctx.commands.command_line import Command, Given, quick_imports
from tf_autoctx.configuration import field
from tf_autoctx.training.configuration import RunOptions

OF_RUNS = configuration.rules(RunOptions)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ensemble:
    """Ensemble: the runs, and the model that they become."""

    runs: tuple[str, ...] | None = field(
        None, "Finished run folders, two or more, separated by commas; or give them as words."
    )
    output: str = field(..., "Folder of the model's versions; the next one is written.")
    mirrors: bool = field(
        False,
        "Take the mean over mirror images too, along the axes that training mirrored. It takes 8 "
        "times as long in 3D.",
    )
    export_precision: str = field(
        "float32", OF_RUNS["export_precision"].help, choices=OF_RUNS["export_precision"].choices
    )

    def __post_init__(self) -> None:
        configuration.check(self)


def main(given: Given) -> None:
    chosen = given.configured(Ensemble)
    with quick_imports():
        from tf_autoctx.systems.shared import ensembles, exporting
    ensemble = ensembles.load(chosen.runs or (), chosen.mirrors)
    output = pathlib.Path(chosen.output)
    files.own(output)
    served = exporting.Served(chosen.export_precision, ensemble.mirrors, ensemble.cleaning)
    exporting.export_ensemble(output, ensemble.system, ensemble.members, served)


command = Command(main, (Ensemble,), __doc__, words="runs")
