"""How finished runs are exported: as the next version of what a server watches, with a card of all
that is known."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from tf_autoctx import export
from tf_autoctx.data import regions
from tf_autoctx.systems.shared import cleaning, seen
from tf_autoctx.systems.shared.cleaning import Cleaning
from tf_autoctx.systems.shared.system import Networks, System
from tf_autoctx.training.runs import Run
from tf_autoctx.version import __version__

UNCERTAINTY = {
    "range": [0, 1],
    "units": "entropy of the mean probability in bits, divided by its largest value",
    "meaning": "0 where the model is sure, 1 where it is undecided",
}


GRID = "{} mm (z, y, x) where no spacing is given; any other where it is"
SPACING = {"units": "mm (z, y, x)", "meaning": "of the image, which is resampled to the grid"}


@dataclasses.dataclass(frozen=True)
class Served:
    """How networks are served.

    Attributes:
      precision: see `System.in_precision`; inputs and outputs are float32 in all of them.
      mirrors: axes along which images are mirrored too, see `averaging.mean`.
      cleaning: the steps of the post-processing that labels go through.
    """

    precision: str = "float32"
    mirrors: tuple[int, ...] = ()
    cleaning: Cleaning = cleaning.NOTHING


def export_run(
    system: System,
    run: Run,
    networks: Networks,
    precision: str = "float32",
    mirrors: Sequence[int] = (),
) -> pathlib.Path:
    """Writes the next version of the run's saved_model, unless the newest one is of the same
    weights, and says which serves. Labels go through what the run keeps of the post-processing.

    Args:
      system: of the run.
      run: finished.
      networks: of `System.finished`, float32.
      precision, mirrors: see `Served`.

    Returns:
      Folder of the version.
    """
    facts = {
        "spacing": run.spacing,
        # Of raw volumes, (z, y, x): x grows to the left, y to the back, z to the head.
        "orientation": run.facts.get("orientation"),
        "grid": run.facts.get("grid"),  # mm (z, y, x); null: images are seen as they are
        "extent": run.facts.get("extent"),  # mm (z, y, x), smallest and largest
        **_channels(run),
        **_made_from(run),
        "postprocessing": cleaning.record(run),
        "config": run.flags,
        **({"plan": run.facts["plan"]} if run.facts.get("plan") else {}),
        "initial_weights": run.facts.get("initial_weights"),
        **({seen.FACT: run.facts[seen.FACT]} if seen.FACT in run.facts else {}),
        "versions": {"tf_autoctx": __version__, **run.facts["versions"]},
        "git_revision": run.facts["git_revision"],
    }
    served = Served(precision, tuple(mirrors), cleaning.of_run(run))
    return _written(run.folder / "saved_model", system, [networks], served, facts)


def export_ensemble(
    directory: pathlib.Path,
    system: System,
    members: Sequence[tuple[Run, Networks]],
    served: Served,
) -> pathlib.Path:
    """Writes the next version of a model that takes the mean of several runs, likewise.

    Args:
      directory: of the versions.
      system: of all runs.
      members: the finished runs, each with its networks of `System.finished`, float32.
      served: how they are served.
    """
    runs = [run for run, _ in members]
    facts = {
        "spacing": _widest([run.spacing for run in runs if run.spacing]),
        "orientation": runs[0].facts.get("orientation"),
        "grid": runs[0].facts.get("grid"),
        "extent": _widest([run.facts["extent"] for run in runs if run.facts.get("extent")]),
        **_channels(runs[0]),
        "runs": [
            {
                "name": run.folder.resolve().name,
                **{name: run.flags.get(name) for name in ("seed", "folds", "fold")},
                **_made_from(run),
                "postprocessing": cleaning.record(run),
            }
            for run in runs
        ],
        # What all of them keep
        "postprocessing": dataclasses.asdict(served.cleaning) if served.cleaning else None,
        "config": [run.flags for run in runs],
        "versions": {"tf_autoctx": __version__},
    }
    return _written(directory, system, [networks for _, networks in members], served, facts)


def _written(
    directory: pathlib.Path,
    system: System,
    members: Sequence[Networks],
    served: Served,
    facts: dict[str, Any],
) -> pathlib.Path:
    """Writes the next version of a model, unless the newest one is of the same weights, and says
    which serves; `facts` are further ones of its card."""
    networks = [
        system.in_precision(system.served_networks(member), served.precision) for member in members
    ]
    functions = system.signatures(networks, served.mirrors)
    if len(members) == 1 and not served.mirrors:
        # Of one probability anybody can compute it.
        functions = {name: f for name, f in functions.items() if name != "uncertainty"}
    decided = {}
    if served.cleaning:
        functions = {
            name: served.cleaning.after(f, system.relabelled) for name, f in functions.items()
        }
        decided = {"postprocessing": dataclasses.asdict(served.cleaning)}
    before = export.newest(directory)
    described = {**system.served, "uncertainty": UNCERTAINTY}
    if system.any_voxels:
        described["image"] = {"units": "any", "rule": described["image"]["rule"]}
    spaced = None
    if system.grid:
        spacing = " x ".join(f"{mm:g}" for mm in system.grid.spacing)
        described["image"] = {**described["image"], "spacing": GRID.format(spacing)}
        described["spacing"] = SPACING
        resampling = {name: system.grid.resampling(f) for name, f in functions.items()}
        spaced = export.Spaced(resampling, system.grid.spacing)
    card = {
        "system": system.declaration.name,
        **({"any_voxels": True} if system.any_voxels else {}),
        "labels": system.labels,
        **regions.facts(system.regions, system.labels),
        "precision": served.precision,
        "mirrors": [export.AXES[system.spec.shape.rank][axis + 1] for axis in served.mirrors],
        **facts,
        "inputs": described,
        "outputs": described,
    }
    model = export.Exported(
        functions=functions,
        networks=_named(networks),
        spec=system.spec,
        spaced=spaced,
        card=card,
        # Another release may scale, pad or tile in another way.
        configuration={
            "tf_autoctx": __version__,
            "system": system.declaration.name,
            "precision": served.precision,
            "mirrors": served.mirrors,
            "grid": facts["grid"],
            "labels": system.labels,
            **decided,
            **dataclasses.asdict(system.configuration),
        },
    )
    version = export.write(directory, model)
    state = "serves already, with the same weights" if version == before else "serves"
    print(f"{directory}: version {version.name} {state} ({served.precision})")
    return version


def _named(members: Sequence[Networks]) -> Networks:
    """The networks by name; of several runs with its number before, from 1."""
    if len(members) == 1:
        return members[0]
    return {
        f"{number}/{name}": network
        for number, networks in enumerate(members, start=1)
        for name, network in networks.items()
    }


def _widest(spacings: Sequence[list[list[float]]]) -> list[list[float]]:
    """The range of several ranges; empty where there is none."""
    lowest, highest = (zip(*(edges[which] for edges in spacings)) for which in (0, 1))
    return [[*map(min, lowest)], [*map(max, highest)]] if spacings else []


def _channels(run: Run) -> dict[str, Any]:
    """Names of the channels of images, in their order, where there are several."""
    return {"channels": list(run.channels)} if len(run.channels) > 1 else {}


def _made_from(run: Run) -> dict[str, Any]:
    """What a run learnt from, and the scores of the last method of its evaluation, which is
    served."""
    summary = run.folder / "evaluation" / "summary.json"
    methods = json.loads(summary.read_text("utf-8"))["methods"] if summary.exists() else {}
    return {"data_fingerprint": run.fingerprint, "metrics": dict(list(methods.items())[-1:])}
