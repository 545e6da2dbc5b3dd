"""The run folder: one folder per run, whose config.json says how it was made."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import pathlib
import platform
import subprocess
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from tf_autoctx import configuration
from tf_autoctx.errors import FieldError, UserError
from tf_autoctx.files import read_json, replacing

PACKAGES = ("tensorflow", "keras", "numpy", "scipy", "SimpleITK")
PACKAGE = pathlib.Path(__file__).parent.parent  # of tf_autoctx
PUT_BACK = "put back a copy of the file, or delete the folder and train again"

T = TypeVar("T")
Path = str | pathlib.Path


@dataclasses.dataclass(frozen=True)
class Making:
    """What a run is made from, and what its folder therefore binds.

    Attributes:
      system: name of the system.
      flags: {name: value} of every flag.
      fingerprint: of the data set, see `datasets.fingerprint`.
      changeable: names of the flags with which the run goes on whatever their value.
      growing: names of those with which it goes on where they are larger than before.
      earlier: {flag: value} of runs that were made before there was the flag.
    """

    system: str
    flags: Mapping[str, Any]
    fingerprint: str
    changeable: Collection[str] = ()
    growing: Collection[str] = ()
    earlier: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Run:
    """A run folder and what its config.json says.

    Attributes:
      folder: path.
      facts: config.json.
      writes: whether this process writes config.json.
    """

    folder: pathlib.Path
    facts: dict[str, Any]
    writes: bool = True

    @property
    def system(self) -> str:
        """Name of the system that made it."""
        return self.facts["system"]

    @property
    def flags(self) -> dict[str, Any]:
        """{name: value} of every flag."""
        return self.facts["flags"]

    def precision(self, asked: str) -> str:
        """The one that the run goes on in: where it is left to the machine, the one it began in."""
        return self.flags.get("precision", asked) if asked == "auto" else asked

    @property
    def fingerprint(self) -> str:
        """Of the data set that it was trained on."""
        return self.facts["data_fingerprint"]

    @property
    def spacing(self) -> list[list[float]]:
        """[(z, y, x) smallest, (z, y, x) largest] in mm of its training cases; empty if unknown."""
        return self.facts.get("spacing") or []

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of those of its images; where it tells none, there is one."""
        return tuple(self.facts.get("channels") or ("0",))

    @property
    def labels(self) -> dict[int, str]:
        """{label value: name} of the structures.

        Raises:
          UserError: config.json does not tell.
        """
        try:
            return labels(self.facts)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise self.broken(error) from None

    def configured(self, kind: type[T]) -> T:
        """An instance of a configuration from the run's flags.

        Raises:
          UserError: a flag is missing or has no value that it can have.
        """
        try:
            return configuration.configured(kind, self.flags)
        except (KeyError, TypeError, ValueError) as error:
            raise self.broken(error) from None

    def broken(self, error: Exception) -> UserError:
        """What to tell of a config.json that lacks something."""
        path = self.folder / "config.json"
        if isinstance(error, FieldError):
            return UserError(f"{path}: {error} Put back a copy of the file.")
        return UserError(f"{path}: {error} is missing or wrong; expected the flags of a run.")

    def note(self, **facts: Any) -> Run:
        """The run with facts added to its config.json, such as the names of its labels.

        Raises:
          UserError: a fact is another than before.
        """
        new = json.loads(json.dumps(facts))
        for name, value in new.items():
            before = self.facts.get(name, value)
            if before != value:
                raise UserError(
                    f"{self.folder}: this run folder was made with the {name} {before}, now they "
                    f"are {value}; expected the same, or another `work_dir`."
                )
        return dataclasses.replace(self, facts=self.facts | new)._written()

    def updated(self, name: str, fact: Any) -> Run:
        """The run with a fact of config.json in place of what it was."""
        return dataclasses.replace(self, facts=self.facts | {name: fact})._written()

    def _written(self) -> Run:
        """The run as it is read again, once config.json is written."""
        text = json.dumps(self.facts, indent=1) + "\n"
        if self.writes:
            with replacing(self.folder / "config.json") as path:
                path.write_text(text)
        return dataclasses.replace(self, facts=json.loads(text))


def open_run(folder: Path, making: Making, writes: bool = True) -> Run:
    """Opens a run folder, or makes it; config.json is written.

    A folder in which nothing was trained is made anew, whatever its config.json says.

    Args:
      folder: path.
      making: what the run is made from.
      writes: whether this process writes config.json, as one of several that train together does.

    Raises:
      UserError: see `check`.
    """
    folder = pathlib.Path(folder)
    flags = dict(making.flags)
    made_by = {
        "git_revision": _git_revision(),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
    }
    before = check(folder, making)
    if before is None:
        facts = {
            "system": making.system,
            "flags": flags,
            "data_fingerprint": making.fingerprint,
            "seed": flags["seed"],
        }
        for path in folder.glob("*/model.keras") if writes else ():
            path.unlink()  # taken over, perhaps from another run than now
        return Run(folder, facts | made_by, writes)._written()
    # What trained the first level stays on record.
    earlier = [{name: before.facts.get(name) for name in made_by}]
    earlier += before.facts.get("resumed") or []
    resumed = earlier[1:] if earlier[-1] == made_by else [*earlier[1:], made_by]
    facts = {**made_by, **before.facts, "flags": flags, "resumed": resumed}
    return Run(folder, facts, writes)._written()


def check(folder: Path, making: Making) -> Run | None:
    """The run of a folder, if something was trained in it; nothing is written.

    Raises:
      UserError: the folder holds a trained run of another system, other flags or other data, or
        one whose config.json is gone or damaged.
    """
    folder = pathlib.Path(folder)
    if not is_trained(folder):
        return None
    before = load(folder)
    if different := differences(before, making):
        raise UserError(
            f"{folder}: this run folder was made with {', '.join(different)}; give the same flags "
            "to go on with it, or another `work_dir`."
        )
    return before


def is_trained(folder: Path) -> bool:
    """Whether there is a checkpoint in a run folder, or a result: what its flags and data bind.

    A network that was taken over from another run is none.
    """
    folder = pathlib.Path(folder)
    made = (
        "*/last/step-*.index",
        "networks/*.keras",
        "saved_model/[0-9]*",
        "evaluation/scores.csv",
    )
    if any(any(folder.glob(pattern)) for pattern in made):
        return True
    finished = list(folder.glob("*/model.keras"))
    return bool(finished) and not load(folder).facts.get("initial_from")


def differences(run: Run, making: Making) -> list[str]:
    """What sets a run apart from one made so, in phrases such as "`scale` 0.4 (now 1.0)"."""
    if run.system != making.system:
        return [f"system {run.system} (now {making.system})"]
    flags, earlier = (json.loads(json.dumps(dict(of))) for of in (making.flags, making.earlier))
    before = {name: run.flags.get(name, earlier.get(name)) for name in flags}
    different = [
        f"`{name}` {before[name]!r} (now {value!r})"
        for name, value in flags.items()
        if name not in making.changeable and before[name] != value
        if name not in making.growing or not _is_larger(value, before[name])
    ]
    return different + ["other data"] * (run.fingerprint != making.fingerprint)


def _is_larger(value: Any, before: Any) -> bool:
    return isinstance(before, int) and value > before


def load(folder: Path) -> Run:
    """The run of a folder.

    Raises:
      UserError: no config.json, or not one of ours.
    """
    folder = pathlib.Path(folder)
    path = folder / "config.json"
    try:
        facts = read_json(path, f"a run's configuration; {PUT_BACK}")
    except FileNotFoundError as error:
        raise UserError(
            f"{folder}: no config.json; expected a run folder of a training command."
        ) from error
    if wrong := _wrong(facts):
        raise UserError(
            f"{path}: not a run's configuration, as {wrong} is missing or wrong; {PUT_BACK}."
        )
    return Run(folder, facts)


def _wrong(facts: Any) -> str | None:
    """Name of what config.json lacks or has in another form; None where all is well."""
    kinds = {"system": str, "flags": dict, "data_fingerprint": str}
    lists = dict.fromkeys(("channels", "spacing", "resumed"), list)
    further = {"labels": dict, "versions": dict, "plan": dict, **lists}
    if not isinstance(facts, dict):
        return "an object of JSON"
    for name, kind in kinds.items():
        if not isinstance(facts.get(name), kind):
            return name
    for name, kind in further.items():
        if facts.get(name) is not None and not isinstance(facts[name], kind):
            return name
    spacing = facts.get("spacing") or []
    number = (int, float)
    whole = all(isinstance(e, list) and all(isinstance(x, number) for x in e) for e in spacing)
    if not whole or len(spacing) not in (0, 2) or len({len(edges) for edges in spacing}) > 1:
        return "spacing"
    if not all(isinstance(name, str) for name in (facts.get("labels") or {}).values()):
        return "labels"
    if not all(isinstance(name, str) for name in facts.get("channels") or []):
        return "channels"
    entries = facts.get("resumed") or []
    return None if all(isinstance(entry, dict) for entry in entries) else "resumed"


def load_of(folder: Path, system: str) -> Run:
    """`load` of a run of one system.

    Raises:
      UserError: see `load`; a run of another system.
    """
    run = load(folder)
    if run.system != system:
        raise UserError(f"{folder}: a run of {run.system!r}; expected one of {system!r}.")
    return run


def labels(facts: Mapping[str, Any]) -> dict[int, str]:
    """{label value: name} of config.json or a model card, whose keys JSON made strings."""
    return {int(value): name for value, name in facts["labels"].items()}


def _git_revision() -> str | None:
    """Revision of the checkout that this package is the source of; None where it is installed."""
    git = ["git", "-C", str(PACKAGE)]
    try:
        # A repository around the environment does not track the package.
        for question in (["ls-files", "--error-unmatch", "__init__.py"], ["rev-parse", "HEAD"]):
            asked = subprocess.run([*git, *question], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return asked.stdout.strip()
