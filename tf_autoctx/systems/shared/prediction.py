"""A finished model, from a run folder or a SavedModel, as a function of one volume or 2D image."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tf_autoctx import configuration, export, shipped
from tf_autoctx.data import images, regions
from tf_autoctx.errors import FieldError, UserError
from tf_autoctx.metrics import Regions
from tf_autoctx.systems.shared import averaging, cleaning, grid, image_checks, registry
from tf_autoctx.systems.shared import precision as precisions
from tf_autoctx.systems.shared.declaration import Declaration
from tf_autoctx.systems.shared.grid import Grid
from tf_autoctx.systems.shared.image_checks import Trained
from tf_autoctx.systems.shared.system import Predictor, Wanted, probabilities_of
from tf_autoctx.training import runs
from tf_autoctx.training.configuration import POLICIES
from tf_autoctx.training.runs import Run

DEFAULT = "serving_default"


@dataclasses.dataclass(frozen=True)
class Segmentor:
    """A finished model.

    Attributes:
      declaration: of its system.
      labels: {label value: name} of its structures, in the order of the last channels of the
        predictor's probability.
      trained: how large the volumes were that it was trained on.
      predictor: what segments.
      precision: that it computes in.
      grid: on which its networks see volumes; None: as they are.
      channels: names of those that an image has, in their order.
      regions: see `System.regions`.
    """

    declaration: Declaration
    labels: dict[int, str]
    trained: Trained
    predictor: Predictor
    precision: str = "float32"
    grid: Grid | None = None
    channels: tuple[str, ...] = ("0",)
    regions: Regions = dataclasses.field(default_factory=dict)

    @property
    def dimensions(self) -> int:
        """Of the images that it takes: 2 or 3."""
        return self.declaration.dimensions

    @property
    def iterations(self) -> int:
        """Of online rendering, for every image; 0: there is none."""
        return self.predictor.iterations

    def require_unsure(self) -> None:
        """Refuses an uncertainty of a model that cannot tell it.

        Raises:
          FieldError: this is one.
        """
        if not self.predictor.is_unsure:
            raise FieldError(
                "uncertainty",
                True,
                "this model tells none; expected a run folder without online rendering, or a "
                "SavedModel that returns a probability.",
            )

    def __call__(
        self,
        voxels: np.ndarray,
        spacing: Sequence[float] | None = None,
        name: str | pathlib.Path = "volume",
        *,
        probabilities: bool = False,
        uncertainty: bool = False,
        progress: bool = False,
    ) -> dict[str, Any]:
        """Segments an image, with a warning where it is unlike those of the training.

        Args:
          voxels: (depth, height, width), raw; or (height, width), grey levels from 0 to 255; of
            several channels (depth, height, width, channels).
          spacing: (z, y, x) in mm, or (y, x); None: unknown, where there is no `grid`.
          name: of the image, for the warnings.
          probabilities: whether they are wanted.
          uncertainty: whether it is wanted, see `averaging.uncertainty`.
          progress: whether a progress bar over tiles or iterations is wanted, where there are some
            outside a graph.

        Returns:
          {"label": of the image's grid, uint8, "probability", if wanted: {structure: likewise,
          float32}, "uncertainty", if wanted: likewise, float32, and where the image was rendered
          online "iterations": [{"rendered", "probability": likewise, float32, "label": uint8}], one
          more than there were, and "kept": the number of the one that is returned}.

        Raises:
          UserError: another number of axes or channels, voxels that are not finite, or of which
            nothing finite can be computed; see `require_unsure` and `Grid.required`.
        """
        if uncertainty:
            self.require_unsure()
        self._require_shape(name, np.shape(voxels))
        voxels = images.require_finite(name, voxels)
        image_checks.warn_of_unlike(name, voxels, spacing, self.declaration, self.trained)
        if self.grid:
            self.grid.required(name, voxels.shape[: self.dimensions], spacing)
        wanted = Wanted(probabilities, uncertainty, progress)
        output = self._output(name, images.batch(voxels, self.dimensions), spacing, wanted)
        segmentation: dict[str, Any] = {"label": np.asarray(output["label"])[0, ..., 0]}
        if probabilities:
            segmentation["probability"] = probabilities_of(output, self.labels)
        if uncertainty:
            segmentation["uncertainty"] = np.asarray(output["uncertainty"])[0, ..., 0]
        if "iterations" in output:
            segmentation["kept"] = output["kept"]
            segmentation["iterations"] = [
                {key: np.asarray(x)[0, ..., 0] for key, x in iteration.items()}
                for iteration in output["iterations"]
            ]
        return segmentation

    def _require_shape(self, name: str | pathlib.Path, shape: tuple[int, ...]) -> None:
        """Raises a `UserError` for raw voxels of other axes or channels than the model takes."""
        last = (len(self.channels),) if len(self.channels) > 1 else ()
        if len(shape) == self.dimensions + len(last) and shape[self.dimensions :] == last:
            return
        axes = ("depth", "height", "width")[-self.dimensions :]
        named = f", its channels {', '.join(self.channels)} last" if last else ""
        expected = f"({', '.join(map(str, (*axes, *last)))}){named}"
        raise UserError(f"{name}: has voxels of the shape {shape}; expected {expected}.")

    def _output(
        self,
        name: str | pathlib.Path,
        image: np.ndarray,
        spacing: Sequence[float] | None,
        wanted: Wanted,
    ) -> dict[str, Any]:
        """What the predictor returns; a NaN of its probability would be background."""
        try:
            output = self.predictor(image, spacing, wanted)
        except tf.errors.InvalidArgumentError as error:  # of the checks in a SavedModel
            refusal = re.search(r"assertion failed: \[(.*?)\.?\]", error.message)
            if refusal is None:
                raise
            raise UserError(f"{name}: {refusal[1]}.") from None
        if "probability" in output:
            values = np.asarray(output["probability"])
            unusable = values.size - np.count_nonzero(np.isfinite(values))
            if unusable:
                raise UserError(
                    f"{name}: probability has {unusable} values that are NaN or infinite; expected "
                    "an image such as those of the training."
                )
        return output


def load(
    path: str | pathlib.Path, precision: str = "auto", mirrors: bool = False, **options: Any
) -> Segmentor:
    """Loads a finished model.

    Args:
      path: a run folder, a folder with a saved_model.pb, or a folder of such versions, of which the
        highest counts; or the name of a model of `shipped`.
      precision: of a run folder, see `precision.chosen`; a SavedModel has its own.
      mirrors: whether a run folder takes the mean over an image and its mirror images, see
        `System.mirrors`; in a SavedModel it is fixed.
      **options: of the `prediction` of the system's declaration, for run folders; None leaves the
        choice to the system.

    Raises:
      UserError: neither; nothing is finished; a damaged network; an option that the model does not
        have.
    """
    path = shipped.resolved(path)
    if precision not in ("auto", *POLICIES):
        raise FieldError("precision", precision, f"expected one of auto, {', '.join(POLICIES)}.")
    given = {name: value for name, value in options.items() if value is not None}
    if not (path / "saved_model.pb").exists() and not (path / "config.json").exists():
        path = export.newest(path) or path
    if (path / "saved_model.pb").exists():
        fixed = given if precision == "auto" else {"precision": precision, **given}
        fixed = {**fixed, "mirrors": mirrors} if mirrors else fixed
        for name, value in fixed.items():
            raise FieldError(
                name,
                value,
                f"{path} is a SavedModel, in which this is fixed; expected a run folder.",
            )
        return _of_saved_model(path)
    if not (path / "config.json").exists():
        raise FieldError(
            "model",
            path,
            "neither config.json nor saved_model.pb; expected a run folder, a SavedModel folder or "
            f"one of {', '.join(shipped.names())}.",
        )
    return _of_run(runs.load(path), given, precision, mirrors)


def _of_run(run: Run, options: Mapping[str, Any], precision: str, mirrors: bool) -> Segmentor:
    declaration = registry.find(run.system, str(run.folder))
    kind = declaration.prediction
    known = configuration.rules(kind) if kind else {}
    for name, value in options.items():
        if name not in known:
            having = [
                other.name
                for other in registry.declarations().values()
                if other.prediction and name in configuration.rules(other.prediction)
            ]
            raise FieldError(
                name,
                value,
                f"{run.folder} is a run of {run.system!r}; expected one of "
                f"{', '.join(map(repr, having))}.",
            )
    system = declaration.load().of_run(run)
    precision = precisions.chosen(run, precision)
    axes = system.required_mirrors(run.flags) if mirrors else ()
    predictor = system.predictor(run, options, precision, axes)
    if steps := cleaning.of_run(run):
        how = system.relabelled, declaration.dimensions
        predictor = cleaning.Cleaned(predictor, steps, *how)
    trained = Trained.of_facts(run.facts)
    of_run = declaration.unchecked(system.any_voxels), system.labels, trained
    seen = system.grid, run.channels
    return Segmentor(*of_run, predictor, precision, *seen, system.regions)


class _SavedModelPredictor:
    """A SavedModel of ours: a `Predictor`."""

    iterations = 0

    def __init__(self, path: pathlib.Path, structures: int) -> None:
        self._model = tf.saved_model.load(str(path))  # owns the variables
        self._functions: Mapping[str, Any] = self._model.signatures
        self._structures = structures
        self._all = "probabilities" if "probabilities" in self._functions else DEFAULT
        told = self._functions[self._all].structured_outputs
        self.is_unsure = "uncertainty" in self._functions or "probability" in told
        weights = [variable.numpy() for variable in self._functions[DEFAULT].variables]
        self.is_finite = all(np.isfinite(array).all() for array in weights)

    def __call__(
        self, image: np.ndarray, spacing: Sequence[float] | None, wanted: Wanted
    ) -> dict[str, Any]:
        name = self._all if wanted.probabilities or wanted.uncertainty else DEFAULT
        if wanted.uncertainty and "uncertainty" in self._functions:
            name = "uncertainty"
        inputs = {"image": tf.constant(image)}
        if (spaced := export.spaced(name)) in self._functions:
            name, inputs["spacing"] = spaced, tf.constant([spacing], tf.float32)
        output = self._functions[name](**inputs)
        if wanted.uncertainty and "uncertainty" not in output:  # of one network
            unsure = averaging.uncertainty(output["probability"], self._structures)
            output = {**output, "uncertainty": unsure}
        return output


def _of_saved_model(path: pathlib.Path) -> Segmentor:
    """The model of a SavedModel.

    Raises:
      UserError: it is none of ours, or damaged, or its weights are no numbers.
    """
    export.require_whole(path)
    try:
        card = export.read_card(path)
        labels, name = runs.labels(card), card["system"]
        predictor = _SavedModelPredictor(path, len(labels))
        trained = Trained.of_facts(card)
        on_grid = grid.of_facts(card.get("grid"))
        channels = tuple(map(str, card.get("channels") or ("0",)))
        of_labels = regions.of_facts(card)
    except Exception as error:  # TensorFlow's reader raises whatever comes next
        raise UserError(
            f"{path}: not a SavedModel of ours ({type(error).__name__}); delete the folder and "
            "export it again, which the training command does when it is run again."
        ) from error
    if not predictor.is_finite:
        raise UserError(
            f"{path}: has weights that are not finite; delete the folder and export it again, from "
            "a run whose networks are whole."
        )
    declaration = registry.find(name, str(path))
    image_checks.warn_of_orientation(path, card, declaration.dimensions)
    precision = card.get("precision", "float32")
    known = declaration.unchecked(card.get("any_voxels")), labels, trained
    return Segmentor(*known, predictor, precision, on_grid, channels, of_labels)
