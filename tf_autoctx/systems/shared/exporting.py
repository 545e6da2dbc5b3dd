"""How a finished run is exported: as the next version of what a server watches, with a card of all
that is known."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

from tf_autoctx import export
from tf_autoctx.systems.shared.system import Networks, System
from tf_autoctx.training.runs import Run
from tf_autoctx.version import __version__


def export_run(
    system: System, run: Run, networks: Networks, precision: str = "float32"
) -> pathlib.Path:
    """Writes the next version of the run's saved_model, unless the newest one is of the same
    weights, and says which serves.

    Args:
      system: of the run.
      run: finished.
      networks: of `System.finished`, float32.
      precision: see `System.in_precision`; inputs and outputs are float32 in all of them.

    Returns:
      Folder of the version.
    """
    served = system.in_precision(system.served_networks(networks), precision)
    directory = run.folder / "saved_model"
    before = export.newest(directory)
    model = export.Exported(
        functions=system.signatures(served),
        networks=served,
        spec=system.spec,
        card=_card(system, run, precision),
        # Another release may scale, pad or tile in another way.
        configuration={
            "tf_autoctx": __version__,
            "system": run.system,
            "precision": precision,
            "labels": system.labels,
            **dataclasses.asdict(system.configuration),
        },
    )
    version = export.write(directory, model)
    state = "serves already, with the same weights" if version == before else "serves"
    print(f"{directory}: version {version.name} {state} ({precision})")
    return version


def _card(system: System, run: Run, precision: str) -> dict[str, Any]:
    """What a client should know, see `export.Exported`."""
    summary = run.folder / "evaluation" / "summary.json"
    methods = json.loads(summary.read_text("utf-8"))["methods"] if summary.exists() else {}
    return {
        "system": run.system,
        "labels": run.facts["labels"],
        "spacing": run.spacing,
        # Of raw volumes, (z, y, x): x grows to the left, y to the back, z to the head.
        "orientation": run.facts.get("orientation"),
        "precision": precision,
        "data_fingerprint": run.fingerprint,
        "metrics": dict(list(methods.items())[-1:]),  # of the last method, which is served
        "config": run.flags,
        "initial_weights": run.facts.get("initial_weights"),
        "versions": {"tf_autoctx": __version__, **run.facts["versions"]},
        "git_revision": run.facts["git_revision"],
        "inputs": system.served,
        "outputs": system.served,
    }
