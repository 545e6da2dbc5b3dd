"""What can be said of a system without Keras: its name, its flags and their presets."""

from __future__ import annotations

import dataclasses
import importlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from tf_autoctx.data.segment_codes import Codes

if TYPE_CHECKING:
    import numpy as np


@dataclasses.dataclass(frozen=True)
class Declaration:
    """A system as the registry and the command line know it, importable without Keras.

    Attributes:
      name: in config.json, tables and model cards; the default run folder is runs/NAME.
      dimensions: of the images that it takes, 2 or 3.
      configuration: the dataclass that the system is made of, one field a flag.
      training: further dataclasses of flags that its training takes, such as the augmentation.
      phantoms: dataclass of flags for the phantoms that are made where there are no data.
      presets: {preset: {flag: value}}, for flags that the user does not give.
      implementation: "module:class" of the `System`.
      prediction: dataclass of options that prediction by a run folder takes, each a field with the
        default None, which leaves the choice to the system.
      aliases: {another name of a flag: flag}.
      measurement: "module:function" of what is measured of a mask beside its size, (mask, spacing)
        -> {column: value}; the module imports neither Keras nor TensorFlow. None: nothing.
      voxel_check: "module:function" of what `check_voxels` calls; the module imports neither Keras
        nor TensorFlow. None: any image will do.
      channels: whether images may have several; its `System` is told how many then.
      regions: whether structures may be sets of label values; its configuration has a field
        `regions` of what `regions.parsed` takes then.
      segment_codes: {structure: codes} of those that the system names itself, for DICOM.
    """

    name: str
    dimensions: int
    configuration: type
    training: tuple[type, ...]
    phantoms: type
    presets: Mapping[str, Mapping[str, Any]]
    implementation: str
    prediction: type | None = None
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    measurement: str | None = None
    voxel_check: str | None = None
    channels: bool = False
    regions: bool = False
    segment_codes: Mapping[str, Codes] = dataclasses.field(default_factory=dict)

    def load(self) -> Any:
        """The class of the system, a `System`, whose own metrics are known from then on; imports
        Keras."""
        from tf_autoctx import metrics

        kind = _imported(self.implementation)
        metrics.register(*kind.measurements)
        return kind

    def measured(self, mask: np.ndarray, spacing: Sequence[float]) -> dict[str, float]:
        """What is measured of a mask of a spacing (z, y, x) or (y, x), mm, beside its size."""
        return _imported(self.measurement)(mask, spacing) if self.measurement else {}

    def unchecked(self, any_voxels: object) -> Self:
        """The declaration of a system that is made so that it takes any voxels; itself where it is
        not."""
        return dataclasses.replace(self, voxel_check=None) if any_voxels else self

    def check_voxels(self, path: str | pathlib.Path, voxels: np.ndarray) -> None:
        """Warns of a raw image that is none of this system's, such as a CT that is not in HU.

        Args:
          path: of the image, for the message.
          voxels: raw, (depth, height, width) or (height, width), with an axis more where there are
            several channels.
        """
        if self.voxel_check is None:
            return
        check = _imported(self.voxel_check)
        if voxels.ndim == self.dimensions:
            check(path, voxels)
            return
        for number in range(voxels.shape[-1]):
            check(f"{path}, channel {number}", voxels[..., number])


def _imported(name: str) -> Any:
    """What "module:name" stands for."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)
