"""Network families in plain Keras: each a module whose function returns a functional `keras.Model`.

No TensorFlow in this room. A submodule is imported when it is first used, so that `options` can be
read without Keras; a function is found in its module, as `models.usegnet.usegnet`.
"""

from __future__ import annotations

import importlib
import types
import typing

if typing.TYPE_CHECKING:
    from tf_autoctx.models import (
        embryo,
        layers,
        loc_con,
        localiser,
        memory,
        options,
        rematerialization,
        renderer,
        tiling,
        unet3d,
        usegnet,
        vnet,
    )

__all__ = [
    "embryo",
    "layers",
    "loc_con",
    "localiser",
    "memory",
    "options",
    "rematerialization",
    "renderer",
    "tiling",
    "unet3d",
    "usegnet",
    "vnet",
]


def __getattr__(name: str) -> types.ModuleType:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
