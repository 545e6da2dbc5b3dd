"""The run folder: one folder a run, whose config.json says how it was made."""

import dataclasses
import importlib.metadata
import json
import pathlib
import platform
import subprocess

from tf_autoctx.errors import UserError
from tf_autoctx.files import replacing

# A run folder may be opened again with other values of these. (A strategy with other replicas is refused by the loop.)
FREE = (
    "work_dir",
    "data_dir",
    "level",
    "strategy",
    "checkpoint_steps",
    "preset",
    "tile_size",
    "stage",
    "initial_from",
    "corpus",
    "phantom_scans",  # the fingerprint of the data tells
    "export_precision",
)
PACKAGES = ("tensorflow", "keras", "numpy", "scipy", "SimpleITK")


def open_run(directory, system, flags, fingerprint):
    """Opens the run folder `directory`, or makes it.

    Args:
      directory: path.
      system: name of a module of `tf_autoctx.systems`.
      flags: {name: value} of every flag.
      fingerprint: of the data set.

    Returns:
      pathlib.Path of the folder; config.json is written.

    Raises:
      UserError: the folder holds a run of another system, other flags or other data (those of `FREE` may differ).
    """
    run = pathlib.Path(directory)
    config = {
        "system": system,
        "flags": flags,
        "data_fingerprint": fingerprint,
        "seed": flags["seed"],
        "git_revision": _git_revision(),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
    }
    if (run / "config.json").exists():
        before = load_config(run)
        if found := differences(before, system, flags, fingerprint):
            raise UserError(
                f"{run}: this run folder was made with {', '.join(found)}; give the same flags to go on with it, or "
                "another --work_dir."
            )
        # What trained the first level stays on record.
        now = {name: config[name] for name in ("git_revision", "versions")}
        earlier = [{name: before.get(name) for name in now}, *before.get("resumed", [])]
        config = {
            **before,
            "flags": flags,
            "resumed": earlier[1:] if earlier[-1] == now else [*earlier[1:], now],
        }
    _write(run, config)
    return run


def differences(config, system, flags, fingerprint):
    """What sets the run of a config.json apart from one of this system, with these flags, on these data: a list of
    phrases, such as "--scale 0.4 (now 1.0)"; those of `FREE` do not count. Arguments are those of `open_run`."""
    if config["system"] != system:
        return [f"system {config['system']} (now {system})"]
    found = [
        f"--{name} {config['flags'].get(name)!r} (now {value!r})"
        for name, value in json.loads(json.dumps(flags)).items()
        if name not in FREE and config["flags"].get(name) != value
    ]
    return found + ["other data"] * (config["data_fingerprint"] != fingerprint)


def note(run, **facts):
    """Adds facts to config.json of a run folder, such as the names of its labels.

    Raises:
      UserError: a fact is another than before.
    """
    config, facts = load_config(run), json.loads(json.dumps(facts))
    for name, value in facts.items():
        if config.get(name, value) != value:
            raise UserError(
                f"{run}: this run folder was made with the {name} {config[name]}, now they are {value}; expected the same, or "
                "another --work_dir."
            )
    _write(run, config | facts)


def _write(run, config):
    with replacing(run / "config.json") as path:
        path.write_text(json.dumps(config, indent=1) + "\n")


def configured(kind, values, **others):
    """An instance of the dataclass `kind`, each field but `others` from {name: value} of the flags or of config.json."""
    names = [field.name for field in dataclasses.fields(kind) if field.name not in others]
    return kind(**{name: values[name] for name in names}, **others)


def labels(facts):
    """{label value: name} of config.json or a model card, whose keys JSON made strings."""
    return {int(value): name for value, name in facts["labels"].items()}


def load_config(directory):
    """config.json of a run folder.

    Raises:
      UserError: no such file, or not one of ours.
    """
    path = pathlib.Path(directory) / "config.json"
    try:
        config = json.loads(path.read_text())
        config["system"], config["flags"], config["data_fingerprint"]
    except FileNotFoundError as error:
        raise UserError(
            f"{directory}: no config.json; expected a run folder of a training script."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: not a run's configuration; expected JSON with system, flags and data_fingerprint."
        ) from error
    return config


def _git_revision():
    """Revision of the source tree, None outside git."""
    here = pathlib.Path(__file__).parent
    git = ["git", "-C", str(here), "rev-parse", "HEAD"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
