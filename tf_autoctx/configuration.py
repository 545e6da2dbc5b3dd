"""Configuration dataclasses, whose fields become flags of their names.

A field declares its help, range and default once. No module that declares one imports Keras or
TensorFlow, so that `--help` need not wait for them.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import types as types_of_python
import typing
from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeVar

from tf_autoctx.errors import FieldError

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Rules:
    """What a field allows, beside its type.

    Attributes:
      help: a sentence for `--help`.
      choices: the values allowed; empty: any.
      least, most: range of a number, or of every number of a list.
      multiple: of which a number must be a multiple.
      length: of a list; None: one value or more.
      may_change: whether a run goes on with another value.
      may_grow: whether a run goes on with a larger value.
      training_only: whether finished networks compute the same whatever it was.
      required: whether there is no default.
      before: value in runs that were made before there was the field, whose config.json lacks it;
        None: all have it.
    """

    help: str
    choices: tuple[str, ...] = ()
    least: float | None = None
    most: float | None = None
    multiple: int | None = None
    length: int | None = None
    may_change: bool = False
    may_grow: bool = False
    training_only: bool = False
    required: bool = False
    before: Any = None

    def expected(self) -> str:
        """The allowed values in words."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        least, most, several = self.least, self.most, self.length
        if (least, most, self.multiple, several) == (None,) * 4:
            return "at least one value"
        limits = ""
        if least is not None:
            limits = f" of at least {least:.10g}"
        if least is not None and most is not None:
            limits = f" from {least:.10g} to {most:.10g}"
        if several is not None:
            return f"{several} numbers{limits}, separated by commas"
        return (f"a multiple of {self.multiple}" if self.multiple else "a number") + limits

    def allows(self, value: object) -> bool:
        """Whether a value keeps to the rules; None, a value left open, does."""
        if value is None:
            return True
        if self.choices:
            return value in self.choices
        if isinstance(value, list | tuple):
            whole = self.length in (None, len(value)) and len(value) > 0
            return whole and all(map(self._allows_item, value))
        return self._allows_item(value)

    def _allows_item(self, value: object) -> bool:
        """Whether a number lies in the range; anything else does."""
        if not isinstance(value, int | float):
            return True
        if not math.isfinite(value) or (self.multiple and value % self.multiple):
            return False
        low, high = self.least, self.most
        return (low is None or value >= low) and (high is None or value <= high)


def field(default: Any, help: str, **rules: Any) -> Any:
    """A dataclass field with `Rules`; a default of `...` makes it required."""
    declared = Rules(help, required=default is ..., **rules)
    given = {} if default is ... else {"default": default}
    return dataclasses.field(metadata={"rules": declared}, **given)


def rules(kind: type) -> dict[str, Rules]:
    """{field: `Rules`} of a configuration."""
    return {field.name: field.metadata["rules"] for field in dataclasses.fields(kind)}


def types(kind: type) -> dict[str, Any]:
    """{field: type} of a configuration, without `| None`."""
    hints = typing.get_type_hints(kind)
    plain = {}
    for field in dataclasses.fields(kind):
        options = [kind for kind in typing.get_args(hints[field.name]) if kind is not type(None)]
        optional = type(None) in typing.get_args(hints[field.name])
        plain[field.name] = options[0] if optional else hints[field.name]
    return plain


def check(configuration: object) -> None:
    """Checks every field of a configuration against its rules; called in `__post_init__`.

    Raises:
      FieldError: a value of another type, or out of range.
    """
    hints = typing.get_type_hints(type(configuration))
    for name, rule in rules(type(configuration)).items():
        value = getattr(configuration, name)
        if not _fits(value, hints[name]):
            shown = str(getattr(hints[name], "__name__", hints[name]))
            raise FieldError(name, value, f"is of the type {type(value).__name__}, not {shown}.")
        if not rule.allows(value):
            raise FieldError(name, value, f"expected {rule.expected()}.")


def _fits(value: object, kind: Any) -> bool:
    """Whether a value is of a field's type; whole numbers are floats too, truth values no numbers.

    A list does for a tuple, whose items are looked at; those of other containers are not.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types_of_python.UnionType):
        return any(_fits(value, option) for option in arguments)
    if origin is tuple:
        return isinstance(value, list | tuple) and all(_fits(item, arguments[0]) for item in value)
    if kind is Any:
        return True
    if kind in (int, float):
        allowed = (numbers.Integral,) if kind is int else (numbers.Real,)
        return isinstance(value, allowed) and not isinstance(value, bool)
    return isinstance(value, origin or kind)


def configured(kind: type[T], values: Mapping[str, Any]) -> T:
    """An instance of a configuration from {name: value} of the flags or of config.json.

    Lists become tuples; a name that is missing has the value of before there was its field.

    Raises:
      KeyError: a name is missing that there always was.
      FieldError: a value out of range.
    """
    known = earlier([kind]) | dict(values)
    given = {name: known[name] for name in rules(kind)}
    return kind(**{n: tuple(v) if isinstance(v, list) else v for n, v in given.items()})


def optional(name: str, module: str, doc: str, *kinds: type) -> type:
    """A configuration of the fields of others, each of them None where it is not given: for options
    that a run has values of its own for.

    Args:
      name, module: of the variable that it becomes, by which it is pickled.
      doc: its docstring.
      kinds: whose fields it has.
    """
    fields: list[Any] = []
    for kind in kinds:
        for field in dataclasses.fields(kind):
            by_run = "" if field.default is None else " By default as in the run."
            rule: Rules = field.metadata["rules"]
            rule = dataclasses.replace(rule, help=rule.help + by_run, required=False, before=None)
            left_open = dataclasses.field(default=None, metadata={"rules": rule})
            fields.append((field.name, types(kind)[field.name] | None, left_open))
    namespace = {"__doc__": doc, "__module__": module, "__post_init__": check}
    return dataclasses.make_dataclass(name, fields, namespace=namespace, frozen=True)


def without(kind: type, names: Collection[str]) -> type:
    """A configuration of the fields of another that have none of the names; it checks nothing."""
    left: list[Any] = [
        (field.name, field.type, dataclasses.field(default=field.default, metadata=field.metadata))
        for field in dataclasses.fields(kind)
        if field.name not in names
    ]
    if len(left) == len(dataclasses.fields(kind)):
        return kind
    namespace = {"__doc__": kind.__doc__, "__module__": kind.__module__}
    return dataclasses.make_dataclass(
        kind.__name__, left, namespace=namespace, frozen=True, kw_only=True
    )


def changeable(kinds: Iterable[type]) -> frozenset[str]:
    """Names of the fields with which a run goes on whatever their value."""
    return frozenset(
        name for kind in kinds for name, rule in rules(kind).items() if rule.may_change
    )


def earlier(kinds: Iterable[type]) -> dict[str, Any]:
    """{field: value in runs that were made before there was the field}, for such fields."""
    return {
        name: rule.before
        for kind in kinds
        for name, rule in rules(kind).items()
        if rule.before is not None
    }


def growing(kinds: Iterable[type]) -> frozenset[str]:
    """Names of the fields with which a run goes on where their value is larger than before."""
    return frozenset(name for kind in kinds for name, rule in rules(kind).items() if rule.may_grow)
