"""Finished runs and what their evaluations found, to stand side by side in a table."""

import collections
import dataclasses
import pathlib

from tf_autoctx import report
from tf_autoctx.errors import UserError
from tf_autoctx.training import runs


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run: its folder, mode, config.json's seed, data fingerprint and labels, and the evaluation's rows."""

    folder: str
    mode: str
    seed: int
    data: str
    labels: dict[int, str]
    rows: list[dict]


def load(folder, system, mode):
    """The run of a folder.

    Args:
      folder: path.
      system: name of the system that it must be of.
      mode: {name: value} of the run's flags -> its mode.

    Returns:
      `Run`.

    Raises:
      UserError: no finished run of the system.
    """
    config = runs.load_config(folder)
    if config["system"] != system:
        raise UserError(f"{folder}: a run of {config['system']!r}; expected one of {system!r}.")
    try:
        chosen, seed = mode(config["flags"]), config["flags"]["seed"]
        labels = runs.labels(config)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder}/config.json: {error} is missing or wrong; expected the flags and labels of a finished run."
        ) from None
    rows = report.read(pathlib.Path(folder) / "evaluation")
    if not rows:
        raise UserError(
            f"{folder}/evaluation/scores.csv: holds no case; expected the results of a finished run."
        )
    return Run(str(folder), chosen, seed, config["data_fingerprint"], labels, rows)


def in_order(found, modes):
    """Runs in the order of their modes, and for each the folder that makes its case names unique, such as "seed 1".

    Args:
      found: list of `Run`.
      modes: all modes, in the table's order.

    Returns:
      (list of `Run`, list of str).

    Raises:
      UserError: two runs have the same mode, seed and data, or runs have other labels.
    """
    found = sorted(found, key=lambda run: list(modes).index(run.mode))
    seen = {}
    for run in found:
        first = seen.setdefault((run.mode, run.seed, run.data), run)
        if first is not run:
            raise UserError(
                f"{run.folder}: has the mode, seed and data of {first.folder}, so that {run.mode!r} would count cases "
                "twice; give one of the two."
            )
        if run.labels != found[0].labels:
            raise UserError(
                f"{run.folder}: has the labels {run.labels}, {found[0].folder} {found[0].labels}; expected the same."
            )
    sets = collections.Counter(seed for seed, _ in {(run.seed, run.data) for run in found})
    return found, [
        f"seed {run.seed}" + f", data {run.data[:8]}" * (sets[run.seed] > 1) for run in found
    ]
