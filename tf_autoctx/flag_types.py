"""Kinds of absl flags that absl lacks."""

from absl import flags

flags.disclaim_key_flags()  # A flag belongs to the module that asks for it here.


class _Integers(flags.ArgumentParser):
    """Parses 1,2,3 (or a list of numbers) into a list of integers of 0 and more."""

    syntactic_help = "integers separated by commas, such as 1,2,3"

    def parse(self, argument):
        words = (
            argument.split(",") if isinstance(argument, str) else [str(word) for word in argument]
        )
        if not all(word.strip().isdecimal() for word in words):
            raise ValueError(f"expected {self.syntactic_help}")
        return [int(word) for word in words]

    def flag_type(self):
        return "comma separated integers"


class _LabelMap(flags.ArgumentParser):
    """Parses 3:1,4:2 into {3: 1, 4: 2}, positive integers."""

    syntactic_help = "pairs old:new of label values from 1, each old one once, such as 3:1,4:2"

    def parse(self, argument):
        pairs = [[word.strip() for word in pair.split(":")] for pair in argument.split(",")]
        if not all(
            len(pair) == 2 and all(word.isdecimal() and int(word) for word in pair)
            for pair in pairs
        ):
            raise ValueError(f"expected {self.syntactic_help}")
        values = {int(old): int(new) for old, new in pairs}
        if len(values) < len(pairs):
            raise ValueError(f"expected {self.syntactic_help}")
        return values

    def flag_type(self):
        return "comma separated pairs of integers"


class _Serializer(flags.ArgumentSerializer):
    def serialize(self, value):
        return ",".join(map(str, value))


class _LabelMapSerializer(flags.ArgumentSerializer):
    def serialize(self, value):
        return ",".join(f"{old}:{new}" for old, new in value.items())


def define_integers(name, default, help_text, length=None, least=0):
    """Defines a flag whose value is a list of integers of `least` and more, `length` of them if given."""
    flags.DEFINE(_Integers(), name, default, help_text, serializer=_Serializer())
    good = lambda values: (
        values is None
        or (length in (None, len(values)) and all(value >= least for value in values))
    )
    expected = f"expected {length or 'some'} integers of at least {least}, separated by commas"
    flags.register_validator(name, good, expected)


def define_edge(name, default, help_text, multiple, least=None):
    """Defines a flag whose value is an edge in voxels, a multiple of `multiple`, of `least` (`multiple`) and more, or None."""
    flags.DEFINE_integer(name, default, help_text, least or multiple)
    flags.register_validator(
        name, lambda edge: edge is None or edge % multiple == 0, f"must be a multiple of {multiple}"
    )


def define_label_map(name, help_text):
    """Defines a flag whose value is {old label value: new label value}, or None where it is not given."""
    flags.DEFINE(_LabelMap(), name, None, help_text, serializer=_LabelMapSerializer())
