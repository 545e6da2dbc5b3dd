"""Configurations: what fields allow, and how values of flags and of config.json become them."""

import dataclasses
import pickle

import helpers
import pytest

from tf_autoctx import configuration
from tf_autoctx.commands import training
from tf_autoctx.commands.command_line import Command
from tf_autoctx.configuration import Rules, check, field
from tf_autoctx.errors import FieldError
from tf_autoctx.systems.renderer.configuration import Online
from tf_autoctx.systems.shared import registry


@dataclasses.dataclass(frozen=True, kw_only=True)
class Toy:
    """Toy: some fields."""

    name: str = field(..., "Its name.")
    edge: int = field(16, "Of a box.", multiple=8, least=8, most=64)
    size: tuple[int, ...] = field((4, 5, 6), "Along z, y, x.", length=3, least=4)
    level: int | None = field(None, "Left open.", least=1, may_change=True)
    flips: bool = field(True, "Whether.", may_change=True)

    def __post_init__(self):
        check(self)


@dataclasses.dataclass(frozen=True)
class Other:
    """Other: one field."""

    level: int = field(1, "Fixed here.")
    folder: str = field("", "Where.", may_change=True)


@pytest.mark.parametrize(
    "rules, allowed, refused",
    [
        ({}, [0, -1.5, "a", True, (1, 2), None, {}], [float("nan"), float("inf"), ()]),
        ({"least": 1}, [1, 2.5, 10**9, None, (1, 2)], [0, 0.999, -1, (1, 0), [0]]),
        ({"most": 0.5}, [0.5, -3], [0.6, 1]),
        ({"least": 0, "most": 1}, [0, 1, 0.5, (0, 1)], [-0.1, 1.1, (0, 2)]),
        ({"multiple": 8}, [0, 8, 16], [4, 12, 8.5]),
        ({"multiple": 8, "least": 8}, [8, 64], [0, -8]),
        ({"length": 2}, [(1, 2), [0, 0]], [(1,), (1, 2, 3), ()]),
        ({"length": 2, "least": 8}, [(8, 9)], [(8, 7), (8,)]),
        ({"choices": ("a", "b")}, ["a", "b", None], ["c", "", 1, ("a",)]),
    ],
)
def test_what_rules_allow(rules, allowed, refused):
    tested = Rules("Help.", **rules)
    assert [tested.allows(value) for value in allowed] == [True] * len(allowed)
    assert [tested.allows(value) for value in refused] == [False] * len(refused)


@pytest.mark.parametrize(
    "rules, words",
    [
        ({"least": 1}, "a number of at least 1"),
        ({"least": 0, "most": 0.5}, "a number from 0 to 0.5"),
        ({"multiple": 8, "least": 16}, "a multiple of 8 of at least 16"),
        ({"choices": ("a", "b")}, "one of a, b"),
    ],
)
def test_what_rules_expect_in_words(rules, words):
    assert Rules("Help.", **rules).expected() == words


def test_a_configuration_checks_itself():
    toy = Toy(name="n", edge=24, size=(8, 8, 8), level=2)
    assert (toy.name, toy.edge, toy.level, toy.flips) == ("n", 24, 2, True)
    with pytest.raises(FieldError, match=r"^edge=12: expected a multiple of 8 from 8 to 64.$"):
        Toy(name="n", edge=12)
    with pytest.raises(FieldError, match=r"^size=4,5: expected 3 numbers"):
        Toy(name="n", size=(4, 5))
    with pytest.raises(FieldError, match=r"^level=0: expected a number of at least 1.$") as refused:
        dataclasses.replace(toy, level=0)
    assert refused.value.field == "level" and isinstance(refused.value, ValueError)
    with pytest.raises(TypeError, match="name"):
        Toy()


def test_rules_and_types():
    assert list(configuration.rules(Toy)) == ["name", "edge", "size", "level", "flips"]
    required = [name for name, rule in configuration.rules(Toy).items() if rule.required]
    assert required == ["name"] and configuration.rules(Toy)["edge"].multiple == 8
    types = {"name": str, "edge": int, "size": tuple[int, ...], "level": int, "flips": bool}
    assert configuration.types(Toy) == types


def test_configured_takes_its_own_of_many_values():
    values = {"name": "n", "edge": 8, "size": [4, 4, 4], "level": None, "flips": False, "more": 1}
    toy = configuration.configured(Toy, values)
    assert toy == Toy(name="n", edge=8, size=(4, 4, 4), flips=False)
    assert hash(toy) == hash(dataclasses.replace(toy))  # a list of config.json is a tuple
    with pytest.raises(FieldError, match="edge=9"):
        configuration.configured(Toy, values | {"edge": 9})
    del values["flips"]
    with pytest.raises(KeyError, match="flips"):
        configuration.configured(Toy, values)


@dataclasses.dataclass(frozen=True)
class Younger:
    """Younger: fields that runs of before lack."""

    rate: float = field(0.5, "How fast.", least=0.0, before=0.1)
    marked: bool = field(True, "Whether.", before=False)
    old: int = field(3, "From the beginning.")

    def __post_init__(self):
        check(self)


def test_a_run_of_before_there_was_a_field_has_the_value_of_then():
    assert configuration.configured(Younger, {"old": 4}) == Younger(0.1, False, 4)
    assert configuration.configured(Younger, {"old": 4, "rate": 0.2}) == Younger(0.2, False, 4)
    with pytest.raises(KeyError, match="old"):
        configuration.configured(Younger, {"rate": 0.2})
    assert configuration.earlier([Younger, Toy]) == {"rate": 0.1, "marked": False}


Options = configuration.optional("Options", __name__, "Options: of both.", Younger, Toy)


def test_options_are_left_open_unless_they_are_given():
    kind = pickle.loads(pickle.dumps(Options))  # as an isolated process gets them
    assert kind is Options and kind.__doc__ == "Options: of both."
    assert dataclasses.asdict(kind()) == dict.fromkeys(
        [*configuration.rules(Younger), *configuration.rules(Toy)]
    )
    assert kind(rate=0.2, flips=False).rate == 0.2
    assert configuration.types(kind) == configuration.types(Younger) | configuration.types(Toy)
    told = {name: rule.help for name, rule in configuration.rules(kind).items()}
    assert told["rate"] == "How fast. By default as in the run."
    assert told["level"] == "Left open." and not configuration.rules(kind)["name"].required
    with pytest.raises(FieldError, match="rate=-1"):
        kind(rate=-1.0)


def test_changeable_names_every_field_that_may_change():
    assert configuration.changeable([Toy, Other]) == {"level", "flips", "folder"}
    assert configuration.changeable([]) == frozenset()


# As all runs before had it: what binds a run is part of its format.
CHANGEABLE = {
    "work_dir",
    "data_dir",
    "strategy",
    "checkpoint_steps",
    "preset",
    "export_precision",
    "mirrors",
    "keep_cache",
    "postprocessing",
    "rematerialize",
    "surface_tolerance",
}
OF_SYSTEM = {
    "fetal_head": {"level", "phantom_scans"},
    "multi_organ": {"tile_size"},
    "embryo": {"stage", "initial_from"},
    "renderer": {"phantom_target", *configuration.rules(Online)},
}


@pytest.mark.parametrize("name", registry.OURS)
def test_what_binds_a_run(name):
    kinds = training.kinds(registry.find(name, "here"))
    flags = {field for kind in kinds for field in configuration.rules(kind)}
    assert configuration.changeable(kinds) == CHANGEABLE | OF_SYSTEM[name]
    assert len(flags) == sum(len(configuration.rules(kind)) for kind in kinds)  # none twice


@pytest.mark.parametrize("name", registry.OURS)
def test_presets_are_values_of_flags(name):
    declaration = registry.find(name, "here")
    kinds = {
        field: kind for kind in training.kinds(declaration) for field in configuration.rules(kind)
    }
    small = {"paper_small"} if name == "embryo" else set()
    assert set(declaration.presets) == {"demo", "standard", "paper"} | small
    for preset in declaration.presets.values():
        for flag, value in preset.items():
            assert configuration.rules(kinds[flag])[flag].allows(value), flag


def test_every_paper_fixes_the_same_kinds_of_flags():
    """What one system's preset `paper` fixes, that of each which has the flag does."""
    papers = {name: registry.find(name, "here").presets["paper"] for name in registry.OURS}
    fixed = {flag for paper in papers.values() for flag in paper}
    assert {"validation_fraction", "phantom_size", "phantom_cases", "beta_1"} <= fixed
    for name, paper in papers.items():
        kinds = training.kinds(registry.find(name, "here"))
        flags = {flag for kind in kinds for flag in configuration.rules(kind)}
        assert not (fixed & flags) - paper.keys(), name
        assert paper["validation_fraction"] == 0, name  # none of them names validation cases


def test_every_paper_fixes_what_other_presets_of_its_system_set():
    for name in registry.OURS:
        presets = registry.find(name, "here").presets
        others = {flag for preset in presets.values() for flag in preset}
        assert others - presets["paper"].keys() <= {"tile_size"}, name  # memory's, not the paper's


def test_the_small_network_of_the_embryo_differs_from_the_large_one_in_its_width_alone():
    presets = registry.find("embryo", "here").presets
    small = {**presets["paper_small"]}
    assert (small.pop("base_filters"), small.pop("kernel")) == (8, 3)
    paper = {**presets["paper"]}
    assert (paper.pop("base_filters"), paper.pop("kernel")) == (16, 5)
    assert small == paper


@pytest.mark.parametrize(
    "name, preset, known",
    [
        ("fetal_head", "paper_small", "demo, standard, paper."),
        ("embryo", "papers", "demo, standard, paper, paper_small."),
    ],
)
def test_a_system_names_its_presets(name, preset, known):
    declaration = registry.find(name, "here")
    command = Command(print, training.kinds(declaration), "", declaration.presets)
    with pytest.raises(FieldError, match=rf"^preset='?{preset}'?: expected one of {known}$"):
        training.filled(declaration, command.parse([f"--preset={preset}"]))


def test_configurations_need_neither_keras_nor_tensorflow():
    code = "from tf_autoctx.systems.shared import registry; assert len(registry.declarations()) > 3"
    assert not {"keras", "tensorflow"} & helpers.modules_after(code)
