"""How a finished run is exported: as the next version of what a server watches, with a card of all that is known."""

import dataclasses
import json
import pathlib

import tf_autoctx
from tf_autoctx import export
from tf_autoctx.training import devices, runs

# Values of --export_precision and the Keras dtype policies of their networks.
POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16"}


def export_run(
    run, system, networks, build, functions, served, precision="float32", spec=export.VOLUME
):
    """Writes the next version of `run/saved_model`, unless the newest one is of the same weights, and says which serves.

    Args:
      run: folder of the run.
      system: its configuration, a dataclass.
      networks: the finished networks that are served, float32.
      build: () -> as many new networks, under the current dtype policy.
      functions: networks -> {signature: function}, see `export.saved_model`.
      served: {name of an input or output: JSON-like dict of its range and meaning}.
      precision: of `POLICIES`; weights, inputs and outputs are float32 in all of them.
      spec: see `export.saved_model`.

    Returns:
      pathlib.Path of the version.
    """
    run, config = pathlib.Path(run), runs.load_config(run)
    if precision != "float32":
        trained = networks
        with devices.policy(POLICIES[precision]):
            networks = build()
        for network, weights in zip(networks, trained, strict=True):
            network.set_weights(weights.get_weights())
    before = export.newest(run / "saved_model")
    version = export.saved_model(
        functions(networks),
        networks,
        run / "saved_model",
        _card(run, config, precision) | {"inputs": served, "outputs": served},
        spec,
        # Another release may scale, pad or tile in another way.
        {"tf_autoctx": tf_autoctx.__version__, "system": config["system"], "precision": precision}
        | dataclasses.asdict(system),
    )
    state = "serves already, with the same weights" if version == before else "serves"
    print(f"{run / 'saved_model'}: version {version.name} {state} ({precision})")
    return version


def _card(run, config, precision):
    summary = run / "evaluation" / "summary.json"
    metrics = json.loads(summary.read_text(encoding="utf-8"))["methods"] if summary.exists() else {}
    return {
        "system": config["system"],
        "labels": config["labels"],
        "spacing": config.get("spacing", []),
        "precision": precision,
        "data_fingerprint": config["data_fingerprint"],
        "metrics": dict(list(metrics.items())[-1:]),  # of the last method: the one that is served
        "config": config["flags"],
        "versions": {"tf_autoctx": tf_autoctx.__version__, **config["versions"]},
        "git_revision": config["git_revision"],
    }
