r"""Tables 1 and 2 of the fetal head system (Yang et al. 2019), trained where runs are missing.

  autoctx-fetal-head-tables --steps=2000 --phantom_size=96,96,96 --base_filters=8 --jobs=2 \
      --runs=runs/fetal_heads --output=runs/fetal_head_tables
  autoctx-fetal-head-tables --steps=4000 --data_dir=my_data \
      --variants=USegNet,USegNet-DS-HAS-Ctx ...

Flags of autoctx-train-fetal-head are flags of this command, and go to every training. --steps is
the budget of a variant: the levels of -Ctx share it, or with --steps_of=level have all of it each,
as in the paper. With --equal_voxels p- and 2D-USegNet see as many voxels a step as all others see:
several patches or slices. Without --data_dir every seed has phantoms of
its own, the same for all variants. With --folds alone every seed has a run on each fold. A finished
run folder RUNS/VARIANT_seed_SEED, or RUNS/VARIANT_seed_SEED_fold_FOLD, is taken as it is;
a training or a table that was stopped goes on when the same command is given again. Every row is
the last level, beside the paper's numbers. Tests pair the runs by seed and are over runs where
there are five or more; fewer are tested over the cases of all, which says nothing of other
trainings, and where the seeds share their test cases (--data_dir) or heads are scanned several
times (--phantom_scans) looks surer than it is. The table says which.

Writes scores.csv, cases.csv, summary.json, comparison.csv, times.json and table.txt, and how the
head volumes of USegNet-DS-HAS-Ctx, or without it of the last row, agree with the truth and repeat
(figures 8 and 9).
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tf_autoctx import configuration, native
from tf_autoctx.commands import planned_runs, train_fetal_head, training
from tf_autoctx.commands.command_line import Command, Given
from tf_autoctx.commands.planned_runs import Jobs, PlannedRun
from tf_autoctx.configuration import check, field
from tf_autoctx.data.configuration import AS_THEY_ARE
from tf_autoctx.errors import FieldError, UserError
from tf_autoctx.systems.fetal_head.configuration import DECLARATION, FetalHead, Phantoms
from tf_autoctx.systems.fetal_head.paper import CONCAT, METHODS, TABLES

if TYPE_CHECKING:
    from tf_autoctx.data import datasets

SET_HERE = ("work_dir", "variant", "join", "level", "seed")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FetalHeadTables:
    """Tables: which rows, of how many seeds, and where they lie."""

    variants: tuple[str, ...] = field(
        tuple(TABLES["Table 1: methods"]), f"Rows of the tables, some of {', '.join(METHODS)}."
    )
    seeds: tuple[int, ...] = field((0, 1, 2), "Seeds of the runs.", least=0)
    runs: str = field(..., "Folder of the run folders; what is missing is trained there.")
    output: str = field(..., "Folder for the tables.")
    steps_of: str = field(
        "variant",
        "What the steps are of: a variant, whose levels share them, or each of its levels.",
        choices=("variant", "level"),
    )
    equal_voxels: bool = field(
        False,
        "Give the variants that see patches or slices so many a step that they have the voxels "
        "that the others see of a volume.",
    )

    def __post_init__(self) -> None:
        check(self)
        planned_runs.require_some("variants", self.variants, METHODS)


def planned(chosen: FetalHeadTables, given: Given) -> list[PlannedRun]:
    """The runs that the flags ask for, seed by seed. Phantoms are written.

    Raises:
      UserError: a flag that is set here, steps missing or not to be shared; a run folder of other
        flags or data.
    """
    planned_runs.require_left(given, SET_HERE)
    shared = chosen.steps_of == "variant"
    if "steps" not in given.typed or (shared and given["steps"] % 2):
        raise UserError(
            "`steps`: expected an even number, the optimizer steps of a variant with all its "
            "levels."
            if shared
            else "`steps`: expected a number, the optimizer steps of a level."
        )
    values = training.filled(DECLARATION, given)
    if chosen.equal_voxels and values["spacing"] != AS_THEY_ARE:
        expected = f"`equal_voxels` counts voxels as they are; expected {AS_THEY_ARE}."
        raise FieldError("spacing", values["spacing"], expected)
    values["preset"] = given["preset"] or ("standard" if given["data_dir"] else "demo")
    return [
        run
        for name, part in planned_runs.parts(chosen.seeds, given)
        for run in _of_part(chosen, name, part, values | part | _data(chosen, values, part["seed"]))
    ]


def _data(chosen: FetalHeadTables, values: dict[str, Any], seed: int) -> dict[str, str]:
    """The data of a seed: the user's, or phantoms of its own."""
    from tf_autoctx.data import phantoms

    folder = pathlib.Path(chosen.runs) / f"phantoms_seed_{seed}"
    made = configuration.configured(Phantoms, values)
    size, cases, scans = made.phantom_size, made.phantom_cases, made.phantom_scans
    return {
        "data_dir": str(
            values["data_dir"] or phantoms.write_fetal_heads(folder, size, cases, seed, scans)
        )
    }


def _of_part(
    chosen: FetalHeadTables, name: str, part: Mapping[str, int], values: dict[str, Any]
) -> list[PlannedRun]:
    """The runs of one seed and fold, whose data are there."""
    from tf_autoctx.data import datasets

    cases, planned = datasets.of_flags(values["data_dir"], values), []
    for method in chosen.variants:
        variant = method.removesuffix(CONCAT)
        level = 2 if variant.endswith("-Ctx") else 1
        own = {
            **part,
            "variant": variant,
            "join": "concat" if method.endswith(CONCAT) else "sum",
            "level": level,
            "steps": values["steps"] // (level if chosen.steps_of == "variant" else 1),
            **(_batch_size(variant, values, cases) if chosen.equal_voxels else {}),
            **{flag: values[flag] for flag in ("data_dir", "preset", "precision")},
        }
        run = PlannedRun(method, pathlib.Path(chosen.runs) / f"{method}_{name}", own)
        planned_runs.require_alike(run, DECLARATION, values, cases)
        planned.append(run)
    return planned


def _batch_size(variant: str, values: Mapping[str, Any], cases: datasets.Dataset) -> dict[str, int]:
    """{"batch_size": passes of a variant that have the voxels of one over a whole volume}, of the
    size of the first training case."""
    from tf_autoctx.systems.fetal_head.segmentation import Cascade
    from tf_autoctx.systems.fetal_head.system import FetalHeadSystem
    from tf_autoctx.systems.shared.system import Reader

    image, _ = Reader(FetalHeadSystem, values["foreground"], cases.labels)(cases.train[0])
    voxels = []
    for name in ("USegNet", variant):
        scale, patch_size = values["scale"], values["patch_size"]
        cascade = Cascade(FetalHead(variant=name, scale=scale, patch_size=patch_size))
        size, is_whole = image.array.shape[:3], cascade.configuration.same_grid
        seen = cascade.training_shape(size if is_whole else cascade.network_size(size))
        voxels.append(math.prod(seen))
    return {"batch_size": values["batch_size"] * max(1, round(voxels[0] / voxels[1]))}


def main(given: Given) -> None:
    chosen = given.configured(FetalHeadTables)
    with native.without_noise():
        from tf_autoctx.commands import fetal_head_rows

    wanted = planned(chosen, given)
    trainings = planned_runs.Trainings(train_fetal_head.command, given, given["jobs"])
    with trainings.finished(wanted) as finished:
        fetal_head_rows.write(pathlib.Path(chosen.output), finished, given)


command = Command(
    main, (FetalHeadTables, Jobs, *training.kinds(DECLARATION)), __doc__, DECLARATION.presets
)
