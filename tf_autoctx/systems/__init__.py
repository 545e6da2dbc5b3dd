"""One module per published system: the only room that knows a paper."""

import importlib

NAMES = ("fetal_head",)


def by_name(name):
    """The module of a system, whose `load(run)` returns (function of raw voxels, names of its outputs)."""
    return importlib.import_module(f"tf_autoctx.systems.{name}")
