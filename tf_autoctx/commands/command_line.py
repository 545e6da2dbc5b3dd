"""Flags from configuration dataclasses, and how a command starts and ends."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import inspect
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from absl import app, flags, logging

from tf_autoctx import configuration, errors, files, logbook, native

T = TypeVar("T")
Presets = Mapping[str, Mapping[str, Any]]
INTERRUPTED = 130  # exit code
UNWANTED = ("jax", "matplotlib", "scipy")  # see `quick_imports`
HELP = ("--help", "-h", "--helpfull", "--helpshort", "-help")


@contextlib.contextmanager
def quick_imports() -> Iterator[None]:
    """TensorFlow and Keras are imported in the block as quickly as may be.

    Keras tries to import Matplotlib, and TensorFlow SciPy and JAX, which they need for nothing that
    is done here: they find none of them. The garbage collector would look through hundreds of
    thousands of new objects again and again; once they are there, it never does. Where they are
    there already, nothing changes: what else a process has made would never be collected.

    What TensorFlow says of GPUs that are not there is left out, see `native.without_noise`.
    """
    if "keras" in sys.modules:
        yield
        return
    hidden = [name for name in UNWANTED if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # as Python marks them
    gc.disable()
    try:
        with native.without_noise():
            yield
    finally:
        for name in hidden:
            del sys.modules[name]
        gc.freeze()
        gc.enable()


class _Integers(flags.ArgumentParser):
    """Parses 1,2,3 (or a list of numbers) into a list of integers of 0 and more."""

    syntactic_help = "integers separated by commas, such as 1,2,3"

    def parse(self, argument: Any) -> list[int]:
        listed = argument.split(",") if isinstance(argument, str) else map(str, argument)
        words = list(listed)
        if not all(word.strip().isdecimal() for word in words):
            raise ValueError(f"expected {self.syntactic_help}")
        return [int(word) for word in words]

    def flag_type(self) -> str:
        return "comma separated integers"


class _LabelMap(flags.ArgumentParser):
    """Parses 3:1,4:2 into {3: 1, 4: 2}, positive integers."""

    syntactic_help = "pairs old:new of label values from 1, each old one once, such as 3:1,4:2"

    def parse(self, argument: Any) -> dict[int, int]:
        if isinstance(argument, dict):
            return argument
        pairs = [[word.strip() for word in pair.split(":")] for pair in argument.split(",")]
        good = all(len(pair) == 2 and all(w.isdecimal() and int(w) for w in pair) for pair in pairs)
        if not good or len({old for old, _ in pairs}) < len(pairs):
            raise ValueError(f"expected {self.syntactic_help}")
        return {int(old): int(new) for old, new in pairs}

    def flag_type(self) -> str:
        return "comma separated pairs of integers"


class _Commas(flags.ArgumentSerializer):
    """Writes a list or a label map as it is typed."""

    def serialize(self, value: Any) -> str:
        pairs = value.items() if isinstance(value, dict) else [(one,) for one in value]
        return ",".join(":".join(map(str, pair)) for pair in pairs)


def _in_our_words(error: flags.Error) -> str:
    """What absl says of a flag, without Python's names of types."""
    told = " ".join(str(error).split())
    told = re.sub(r"invalid literal for int\(\).*", "expected a whole number.", told)
    return re.sub(r"could not convert string to float.*", "expected a number.", told)


def _left_over(left: Sequence[str], arguments: Sequence[str], values: flags.FlagValues) -> str:
    """Why words belong to no flag, and how they may have been meant."""
    shown = " ".join(left[:3]) + (f" and {len(left) - 3} more" if len(left) > 3 else "")
    told = f"{shown}: belongs to no flag; expected flags alone, such as --name=value"
    place = list(arguments).index(left[0])
    first, second = ["", "", *arguments][place : place + 2]  # the two words before
    whole = second if second.startswith("-") else f"{first}={second}"  # --name value
    name, equals, _ = whole.lstrip("-").partition("=")
    if not whole.startswith("-") or name not in values:
        return f"{told}."
    if values[name].boolean:
        return f"{told}. Write --{name} or --no{name}, or --{name}={left[0]} in one word."
    if equals and os.path.exists(left[0]):
        return (
            f"{told}. Was a pattern such as * meant for --{name}? The shell makes several words of "
            "it: give the folder."
        )
    return f"{told}."


def _require_once(flag: flags.Flag[Any]) -> None:
    """Makes a flag refuse a second value, of which the first would be lost without a word."""
    parse = flag.parse

    def parse_once(argument: Any) -> None:
        before, is_second = flag.value, flag.present
        parse(argument)
        if is_second and flag.value != before:
            now = argument if isinstance(argument, str) else flag.value
            raise flags.IllegalFlagValueError(
                f"flag --{flag.name}={now}: given twice, before with another value; expected once."
            )

    flag.parse = parse_once  # type: ignore[method-assign]


class Given(dict[str, Any]):
    """{flag: value} of a command line.

    Attributes:
      typed: names of the flags that the user gave.
    """

    def __init__(self, values: Mapping[str, Any], typed: frozenset[str]) -> None:
        super().__init__(values)
        self.typed = typed

    def configured(self, kind: type[T]) -> T:
        """An instance of a configuration, each field from the flag of its name."""
        return configuration.configured(kind, self)


def define_flags(kind: type, values: flags.FlagValues, presets: Presets | None = None) -> None:
    """Defines a flag for every field of a configuration.

    Args:
      kind: the dataclass, whose fields are of `configuration.field`.
      values: what holds the flags.
      presets: {preset: {flag: value}}, shown behind the help.
    """
    types = configuration.types(kind)
    for field in dataclasses.fields(kind):
        rule: configuration.Rules = field.metadata["rules"]
        shown = {name: preset.get(field.name) for name, preset in (presets or {}).items()}
        text = rule.help
        if told := ", ".join(f"{k} {_shown(v)}" for k, v in shown.items() if v is not None):
            text = f"{text} ({told})"
        default = None if rule.required else field.default
        _define(field.name, types[field.name], default, text, rule, values)
        if rule.required and not any(field.name in preset for preset in (presets or {}).values()):
            flags.mark_flag_as_required(field.name, values)
        flags.register_validator(field.name, rule.allows, f"expected {rule.expected()}", values)


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _described(flag: flags.Flag[Any], rule: configuration.Rules) -> str:
    """What `--help` says of a flag: its help, the presets' values, what it takes, the default."""
    switch = f"--[no]{flag.name}" if flag.boolean else f"--{flag.name}"
    text = (flag.help or "").removeprefix(f"<{'|'.join(rule.choices)}>: ")  # absl's, for choices
    silent = ("may_change", "training_only", "required", "before")
    plain = {name: getattr(rule, name) for name in silent}
    if rule != configuration.Rules(rule.help, **plain):
        text += f" Expected: {rule.expected()}."
    default = (flag.default_as_str or "").strip("'")
    if default and flag.default is not None:
        text += f" Default: {default}."
    indent = " " * 6
    return textwrap.fill(
        f"  {switch}  {text}", 100, subsequent_indent=indent, break_on_hyphens=False
    )


def _define(
    name: str, kind: Any, default: Any, text: str, rule: configuration.Rules, values: Any
) -> None:
    """Defines one flag of the type of a field."""
    if rule.choices:
        flags.DEFINE_enum(name, default, list(rule.choices), text, values)
    elif kind is bool:
        flags.DEFINE_bool(name, default, text, values)
    elif kind is int:
        flags.DEFINE_integer(name, default, text, flag_values=values)
    elif kind is float:
        flags.DEFINE_float(name, default, text, flag_values=values)
    elif kind is str:
        flags.DEFINE_string(name, default, text, values)
    elif kind == tuple[str, ...]:
        flags.DEFINE_list(name, None if default is None else list(default), text, values)
    else:
        parser = _LabelMap() if kind == dict[int, int] else _Integers()
        listed = list(default) if isinstance(default, tuple) else default
        flags.DEFINE(parser, name, listed, text, flag_values=values, serializer=_Commas())


class Command:
    """A command; called, it runs as a program does, on sys.argv and with an exit code.

    Args:
      main: takes what the command line says.
      kinds: the configurations whose fields are its flags, in the order of `--help`; or what
        returns them, where other packages may bring some.
      doc: what `--help` shows first: the docstring of the command's module.
      presets: {preset: {flag: value}}, for the help texts.
      aliases: {another name: flag}.
      words: a flag of a list, which words that belong to no flag go to; "": there are none.
    """

    def __init__(
        self,
        main: Callable[[Given], None],
        kinds: Sequence[type] | Callable[[], Sequence[type]],
        doc: str | None,
        presets: Presets | None = None,
        aliases: Mapping[str, str] | None = None,
        words: str = "",
    ) -> None:
        self.main, self._kinds, self.doc = main, kinds, inspect.cleandoc(doc or "")
        self.presets, self.aliases, self._words = presets or {}, aliases or {}, words

    @property
    def kinds(self) -> tuple[type, ...]:
        """The configurations whose fields are its flags."""
        return tuple(self._kinds() if callable(self._kinds) else self._kinds)

    def __call__(self) -> None:
        app.run(self._program, flags_parser=self._parser)

    def _program(self, arguments: Sequence[str]) -> None:
        """`perform`; Ctrl-C is one sentence and exit code 130, as shells have it."""
        try:
            self.perform(arguments)
        except KeyboardInterrupt:
            print(f"\ninterrupted: {self._afterwards()}", file=sys.stderr)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(INTERRUPTED)  # at once: TensorFlow's threads may take their time to end

    def _afterwards(self) -> str:
        """What the same command does after an interruption."""
        names = {name for kind in self.kinds for name in configuration.rules(kind)}
        if "resume" in names:
            return "the same command with --resume goes on where it was."
        if names & {"work_dir", "jobs"}:
            return "the same command goes on where it was."
        return "the same command begins anew."

    def _parser(self, argv: list[str]) -> list[str]:
        flags.FLAGS(argv[:1])  # absl's own, at their defaults
        return argv[1:]

    def perform(self, arguments: Sequence[str]) -> None:
        """Runs the command; a user's mistake is one sentence and exit code 1."""
        if any(word in HELP for word in arguments):
            print(self.help())
            sys.exit(0)
        with logbook.recording(self.name, arguments):
            try:
                with files.owning():
                    self.main(self.parse(arguments))
            except Exception as error:
                told = errors.sentence(error)
                if told is None:
                    raise
                print(f"error: {told}", file=sys.stderr)
                sys.exit(1)

    def parse(self, arguments: Sequence[str]) -> Given:
        """What a command line says.

        Raises:
          UserError: a flag that is unknown, missing or out of range; words that belong to no flag.
        """
        values = self.flags()
        values.set_gnu_getopt(True)  # flags may follow a word that is none
        try:
            left = values([self.name, *arguments])[1:]
        except flags.Error as error:
            raise errors.UserError(_in_our_words(error)) from None
        if left and not self._words:
            raise errors.UserError(_left_over(left, arguments, values))
        if left:
            taking = values[self._words]
            taking.value, taking.present = [*(taking.value or []), *left], 1
        # TensorFlow's import turns on its own log of every step of a save.
        verbosity = values["verbosity"]
        level: Any = verbosity.value if verbosity.present else logging.WARNING
        logging.set_verbosity(level)
        names = [name for kind in self.kinds for name in configuration.rules(kind)]
        typed = frozenset(name for name in names if values[name].present)
        for name in typed:
            if values[name].value in ("", [], ()):  # such as of a variable that is not set
                raise errors.UserError(f"flag --{name}: is empty; expected a value.")
        return Given({name: values[name].value for name in names}, typed)

    @property
    def name(self) -> str:
        """What the user typed, or the module's name."""
        return self.main.__module__.rpartition(".")[2]

    def flags(self) -> flags.FlagValues:
        """The flags, apart from those of any other program."""
        values = flags.FlagValues()
        values["verbosity"] = flags.FLAGS["verbosity"]
        for kind in self.kinds:
            define_flags(kind, values, self.presets)
            for name in configuration.rules(kind):
                _require_once(values[name])
        for alias, name in self.aliases.items():
            flags.DEFINE_alias(alias, name, flag_values=values)
        return values

    def serialized(self, given: Given) -> list[str]:
        """Those of the flags that the user gave, here or to a command of more flags, as words of a
        command line."""
        values = self.flags()
        names = [name for name in given if name in given.typed and name in values]
        for name in names:
            values[name].value = given[name]
        return [values[name].serialize() for name in names]

    def help(self) -> str:
        """The docstring, and every flag with its help and default, group by group."""
        values, lines = self.flags(), [self.doc]
        for kind in self.kinds:
            lines.append(f"\n{(inspect.getdoc(kind) or kind.__name__).splitlines()[0]}")
            for name, rule in configuration.rules(kind).items():
                lines.append(_described(values[name], rule))
        for alias, name in self.aliases.items():
            lines.append(f"\n  --{alias}  is --{name} under another name.")
        return "\n".join(lines)
