"""Flags from configurations, and how a command starts and ends."""

import dataclasses
import importlib
import os
import pkgutil
import subprocess
import sys

import helpers
import pytest
from absl import flags

import tf_autoctx
from tf_autoctx import commands
from tf_autoctx.commands.command_line import Command
from tf_autoctx.configuration import check, field, rules
from tf_autoctx.errors import FieldError, UserError
from tf_autoctx.systems.shared import registry

MODULES = [module.name for module in pkgutil.iter_modules(commands.__path__)]
COMMANDS = [
    name
    for name in MODULES
    if hasattr(importlib.import_module(f"{commands.__name__}.{name}"), "command")
    and name != "training"  # a function that makes one
]
TRAININGS = [f"train_{name}" for name in registry.OURS]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Toy:
    """Toy: every kind of field.

    A second paragraph, which is not shown.
    """

    name: str = field(..., "Its name.")
    count: int = field(2, "How many.", least=1, most=9)
    edge: int = field(16, "Of a box.", multiple=8, least=8)
    rate: float = field(..., "How fast.", least=0.0)
    method: str = field("sum", "Of joining.", choices=("sum", "concat"))
    flips: bool = field(True, "Whether.")
    size: tuple[int, ...] = field((4, 5, 6), "Along z, y, x.", length=3, least=4)
    values: tuple[int, ...] | None = field(None, "Some values.", least=1)
    words: tuple[str, ...] = field(("a", "b"), "Some words.")
    mapping: dict[int, int] | None = field(None, "From old to new.")
    level: int | None = field(None, "Left open.", least=1, may_change=True)

    def __post_init__(self):
        check(self)


@dataclasses.dataclass(frozen=True)
class More:
    """More: a second group."""

    other: str = field("", "Another.")


class Spy:
    """A main that keeps what it is given."""

    given = None

    def __call__(self, given):
        self.given = given


PRESETS = {"demo": {"rate": 0.5, "flips": False}, "paper": {"rate": 1e-5, "size": [7, 8, 9]}}
WHOLE = ("--name=n", "--rate=0.25")


@pytest.fixture
def spy():
    return Spy()


def command_of(main, **options):
    main.__dict__["__module__"] = "somewhere.toy"
    return Command(main, (Toy, More), "A toy.\n\n  toy --name=n\n\nMore.", **options)


@pytest.fixture
def toy(spy):
    return command_of(spy, presets=PRESETS, aliases={"pace": "rate"})


def refused(command, capsys, *words):
    """The one sentence in which a command ends."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        command.perform(words)
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 1 and line.startswith("error: ")
    return line


def test_fields_become_flags_of_their_types(toy, spy):
    toy.perform(
        (
            *WHOLE,
            "--count=3",
            "--method=concat",
            "--noflips",
            "--size=5,6,7",
            "--values=1,2",
            "--words=x,y,z",
            "--mapping=3:1, 4:2",
            "--other=o",
        )
    )
    assert spy.given.configured(Toy) == Toy(
        name="n",
        count=3,
        rate=0.25,
        method="concat",
        flips=False,
        size=(5, 6, 7),
        values=(1, 2),
        words=("x", "y", "z"),
        mapping={3: 1, 4: 2},
    )
    assert spy.given.configured(More) == More("o")
    given = {"name", "rate", "count", "method", "flips", "size", "values", "words", "mapping"}
    assert spy.given.typed == given | {"other"}


def test_flags_that_are_not_given_have_the_defaults(toy, spy):
    toy.perform(WHOLE)
    assert spy.given.configured(Toy) == Toy(name="n", rate=0.25)
    assert spy.given.typed == {"name", "rate"}


def test_another_name_of_a_flag(toy, spy):
    toy.perform(("--name=n", "--pace=0.75"))
    assert spy.given["rate"] == 0.75 and spy.given.typed == {"name", "rate"}
    assert "pace" not in spy.given


@pytest.mark.parametrize(
    "word, told",
    [
        ("--count=0", "--count=0: expected a number from 1 to 9"),
        ("--count=10", "--count=10: expected a number from 1 to 9"),
        ("--count=1.5", "--count=1.5: expected a whole number."),
        ("--rate=fast", "--rate=fast: expected a number."),
        ("--edge=12", "--edge=12: expected a multiple of 8 of at least 8"),
        ("--edge=0", "--edge=0: expected a multiple of 8"),
        ("--rate=-1", "--rate=-1.0: expected a number of at least 0"),
        ("--rate=nan", "--rate=nan: expected a number"),
        ("--rate=inf", "--rate=inf: expected a number"),
        ("--method=mean", "--method=mean: value should be one of <sum|concat>"),
        ("--size=4,5", "expected 3 numbers"),
        ("--size=4,5,3", "of at least 4"),
        ("--size=4,5,x", "expected integers separated by commas, such as 1,2,3"),
        ("--size=", "expected integers separated by commas"),
        ("--values=0", "of at least 1"),
        ("--values=-1", "expected integers separated by commas"),
        ("--mapping=3", "expected pairs old:new of label values from 1"),
        ("--mapping=3:0", "expected pairs old:new"),
        ("--mapping=3:1,3:2", "expected pairs old:new"),
        ("--level=0", "of at least 1"),
        ("--levle=1", "'levle'"),
        ("--name=", "flag --name: is empty; expected a value"),  # of a variable that is not set
        ("--words=", "expected at least one value"),
    ],
)
def test_what_a_flag_cannot_be_is_one_sentence(toy, spy, capsys, word, told):
    flag = word.partition("=")[0]
    others = [given for given in WHOLE if not given.startswith(flag)]
    assert told in refused(toy, capsys, *others, word)
    assert spy.given is None


def test_words_that_belong_to_no_flag(toy, capsys):
    told = "error: scan.nii.gz more: belongs to no flag; expected flags alone"
    assert refused(toy, capsys, *WHOLE, "scan.nii.gz", "more").startswith(told)


def test_a_flag_that_is_missing(toy, spy, capsys):
    assert "--name" in refused(toy, capsys, "--rate=1")
    toy.perform(("--name=n",))  # presets have a rate
    assert spy.given["rate"] is None
    assert "--rate" in refused(command_of(spy), capsys, "--name=n")


def test_mistakes_of_the_user_alone_are_sentences(toy, spy, capsys):
    def ends_in(error):
        def main(given):
            raise error

        return command_of(main)

    mistake = FieldError("size", (1, 2), "too small; expected more than `edge`.")
    told = "error: --size=1,2: too small; expected more than --edge."
    assert refused(ends_in(mistake), capsys, *WHOLE) == told
    assert refused(ends_in(UserError("`a=1`: b.")), capsys, *WHOLE) == "error: --a=1: b."
    for fault in (ValueError("ours"), KeyboardInterrupt(), OSError("ours")):
        with pytest.raises(type(fault)):
            ends_in(fault).perform(WHOLE)


@pytest.mark.parametrize("word", ["--help", "-h", "--helpfull"])
def test_help(toy, spy, capsys, word):
    with pytest.raises(SystemExit) as ended:
        toy.perform([word, "--count=99"])
    told = capsys.readouterr().out
    assert ended.value.code == 0 and spy.given is None
    assert all(len(line) <= 100 for line in told.splitlines())
    assert told.startswith("A toy.\n\n  toy --name=n\n\nMore.\n")
    toys, more = told.split("\nToy: every kind of field.\n")[1].split("\nMore: a second group.\n")
    assert "second paragraph" not in told and "--pace  is --rate under another name." in more
    size = rules(Toy)["size"].expected()
    shown = [" ".join(text.split()) for text in toys.split("\n  --")]
    assert shown[0].removeprefix("--") == "name Its name."
    assert shown[1:] == [
        "count How many. Expected: a number from 1 to 9. Default: 2.",
        "edge Of a box. Expected: a multiple of 8 of at least 8. Default: 16.",
        "rate How fast. (demo 0.5, paper 1e-05) Expected: a number of at least 0.",
        "method Of joining. Expected: one of sum, concat. Default: sum.",
        "[no]flips Whether. (demo false) Default: true.",
        f"size Along z, y, x. (paper 7,8,9) Expected: {size}. Default: 4,5,6.",
        "values Some values. Expected: a number of at least 1.",
        "words Some words. Default: a,b.",
        "mapping From old to new.",
        "level Left open. Expected: a number of at least 1.",
    ]


def test_what_was_given_becomes_words_again(toy, spy):
    words = (
        *WHOLE,
        "--noflips",
        "--size=5,6,7",
        "--words=x,y",
        "--mapping=3:1,4:2",
        "--method=concat",
        "--level=2",
        "--other=with space",
    )
    toy.perform(words)
    given = spy.given
    assert sorted(toy.serialized(given)) == sorted(words)
    toy.perform(toy.serialized(given))
    assert spy.given == given and spy.given.typed == given.typed


def test_a_command_of_fewer_flags_takes_its_own_alone(toy, spy):
    toy.perform((*WHOLE, "--other=o"))
    assert Command(spy, (More,), "").serialized(spy.given) == ["--other=o"]


def test_kinds_may_be_found_when_they_are_needed(spy):
    kinds = [Toy]
    late = Command(spy, lambda: kinds, "")
    kinds.append(More)
    late.perform(WHOLE)
    assert late.kinds == (Toy, More) and "other" in spy.given


def test_commands_do_not_share_flags(toy, spy):
    """Nothing of one command line is left for the next."""
    toy.perform((*WHOLE, "--count=5"))
    toy.perform(WHOLE)
    assert spy.given["count"] == 2 and "count" not in flags.FLAGS


@pytest.mark.parametrize("name", TRAININGS)
def test_groups_of_a_training(name):
    told = importlib.import_module(f"{commands.__name__}.{name}").command.help()
    groups = ("Data:", "Run:", "Training:", "System:", "Phantoms:")
    places = [told.index(f"\n{group}") for group in groups]
    assert places == sorted(places)
    steps = told[told.index("--steps") :]
    assert all(f"{preset} " in steps[:200] for preset in ("demo", "standard", "paper"))


FRESH = """
import importlib, pkgutil
from absl import flags
import tf_autoctx
names = [module.name for module in pkgutil.walk_packages(tf_autoctx.__path__, "tf_autoctx.")]
for name in names:
    importlib.import_module(name)
print(len(names), *flags.FLAGS.flags_by_module_dict())
"""


def test_no_module_defines_a_flag():
    command = [sys.executable, "-c", FRESH]
    done = subprocess.run(command, check=True, capture_output=True, encoding="utf-8")
    count, *defining = done.stdout.split()
    assert int(count) > 70 and "absl.app" in defining
    assert not [name for name in defining if not name.startswith(("absl.", "tensorflow."))]


HELP = """
import importlib, sys, time
sys.argv = [sys.argv[1], "--help"]
command = importlib.import_module(f"tf_autoctx.commands.{sys.argv[0]}").command
code = None
try:
    command()
except SystemExit as ended:
    code = ended.code
print("\\n", code, time.process_time(), *sys.modules)
"""


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command_is_there_at_once(name):
    """It waits for neither Keras nor TensorFlow; the time is the processor's, so that what else
    runs does not matter."""
    command = [sys.executable, "-c", HELP, name]
    done = subprocess.run(command, check=True, capture_output=True, encoding="utf-8")
    *told, last = done.stdout.splitlines()
    code, seconds, *modules = last.split()
    assert (code, done.stderr) == ("0", "") and float(seconds) < 1
    assert not {"keras", "tensorflow"} & set(modules)
    module = importlib.import_module(f"{commands.__name__}.{name}")
    assert told[0] == module.__doc__.splitlines()[0]


def test_every_command_is_a_program():
    """The package's own programs are its commands."""
    root = os.path.dirname(os.path.dirname(tf_autoctx.__file__))
    with open(os.path.join(root, "setup.cfg")) as file:
        programs = [line.split(" = ")[1].strip() for line in file if "autoctx-" in line]
    assert sorted(programs) == sorted(f"{commands.__name__}.{name}:command" for name in COMMANDS)


QUICK = """
import sys
from tf_autoctx.commands.command_line import quick_imports
with quick_imports():
    from tf_autoctx.systems.shared import prediction, registry
    for declaration in registry.declarations().values():
        declaration.load()
print(*sys.modules)
import jax, matplotlib.figure, scipy.ndimage
"""


def test_a_prediction_waits_for_nothing_that_it_does_not_need():
    """Keras and TensorFlow would import these libraries, which can be imported afterwards."""
    command = [sys.executable, "-c", QUICK]
    done = subprocess.run(command, check=True, capture_output=True, encoding="utf-8")
    modules = set(done.stdout.split())
    assert {"keras", "tensorflow", "tf_autoctx.systems.embryo.system"} <= modules
    assert not {"jax", "matplotlib", "scipy", "skimage", "plotly"} & modules
    writing = helpers.modules_after("import tf_autoctx.systems.shared.results")
    assert not {"keras", "tensorflow", "matplotlib", "scipy"} & writing
