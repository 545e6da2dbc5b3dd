"""The interface of a system: all that commands, evaluation, prediction, export and serving know."""

from __future__ import annotations

import abc
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol, Self

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tf_autoctx import export
from tf_autoctx.data import datasets, images, labels
from tf_autoctx.errors import FieldError
from tf_autoctx.metrics import NO_REGIONS, Metric, Regions
from tf_autoctx.systems.shared import averaging, grid, patches, planning, reading
from tf_autoctx.systems.shared.averaging import Estimate
from tf_autoctx.systems.shared.caching import Files
from tf_autoctx.systems.shared.declaration import Declaration
from tf_autoctx.systems.shared.grid import Graph, Grid
from tf_autoctx.systems.shared.image_checks import warn_of_orientation
from tf_autoctx.systems.shared.session import Session
from tf_autoctx.training import devices
from tf_autoctx.training.configuration import POLICIES
from tf_autoctx.training.runs import Making, Run

Tensor = Any  # of whatever backend
Networks = dict[str, keras.Model]  # by name, in the order in which they run
Size = Sequence[Any]  # spatial size, integers or integer tensors
# Of one image, by method: {"label": integer labels of its shape, and where there are probabilities
# "probability": {structure: 0 to 1, on any grid over the same extent}}.
Segmentations = dict[str, dict[str, Any]]
Served = Mapping[str, Mapping[str, Any]]


class Function(Protocol):
    """One of the `System.signatures`."""

    def __call__(self, image: Tensor, size: Size | None = None) -> dict[str, Tensor]:
        """See `System.decide`."""


class Evaluator(Protocol):
    """The segmentation of a raw image by several methods."""

    def __call__(self, voxels: np.ndarray, spacing: Sequence[float] | None) -> Segmentations:
        """Segments voxels (*spatial) or (*spatial, channels) float32.

        Args:
          voxels: raw.
          spacing: (z, y, x) or (y, x), mm; None: unknown.
        """


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What is wanted of a `Predictor` beside the label.

    Attributes:
      probabilities: whether they are.
      uncertainty: whether it is, of one that `is_unsure`.
      progress: whether a progress bar over tiles or iterations is.
    """

    probabilities: bool = False
    uncertainty: bool = False
    progress: bool = False


class Predictor(Protocol):
    """A finished run as a function of one raw image.

    Attributes:
      iterations: of online rendering, for every image; 0: there is none.
      is_unsure: whether it can tell how unsure it is.
    """

    iterations: int
    is_unsure: bool

    def __call__(
        self, image: np.ndarray, spacing: Sequence[float] | None, wanted: Wanted
    ) -> dict[str, Any]:
        """Segments raw voxels (1, *spatial, channels) float32.

        Args:
          image: the voxels.
          spacing: (z, y, x), mm, which a system with a grid of its own needs; None: unknown.
          wanted: beside the label.

        Returns:
          {"label", "probability" (its last channels are those of the labels, in their order): as
          `System.segment`, "uncertainty": as `averaging.uncertainty`, "iterations", "kept": where
          it renders online}.
        """


class System(abc.ABC):
    """A published system: what its images are, how they are segmented, trained and exported.

    A subclass also sets `declaration`, `served` and, where they differ, `structure`, `measurements`
    and `window`. Everything that changes voxel values is in its `prepare`, `estimate` and `decide`,
    in Keras ops: training, prediction and the exported graph run the very same functions.

    Attributes:
      declaration: name, dimensions, flags and presets.
      served: {input or output of the export: JSON-like dict of its range, units and meaning}.
      structure: name of the one structure, of value 1, that all foreground label values are; None:
        each value is a structure of its own.
      measurements: the metrics of `measure`, which are drawn too, see `evaluation.evaluate`.
      window: range of raw intensities that pictures show.
      any_voxels: whether raw voxels may be any, whatever the declaration's check says of them.
      large_probabilities: whether they are much larger than the label, so that they are served by
        a signature of their own.
      configuration: an instance of the declaration's.
      labels: {label value: name} of the structures.
      grid: on which networks see volumes; None: as they are. `estimate` and `prepare` are given
        what is on it.
      channels: of the images.
      regions: {value of `labels`: the label values of its voxels} of structures of several; where
        there are any, all are of them, and `probability` has a channel for each, without one for
        the background.
    """

    declaration: ClassVar[Declaration]
    served: ClassVar[Served]
    structure: ClassVar[str | None] = None
    measurements: ClassVar[tuple[Metric, ...]] = ()
    window: tuple[float, float] = (-np.inf, np.inf)
    any_voxels: bool = False
    large_probabilities: ClassVar[bool] = False
    configuration: Any
    grid: Grid | None = None
    regions: Regions = NO_REGIONS

    def __init__(self, configuration: Any, labels: Mapping[int, str], channels: int = 1) -> None:
        self.configuration = configuration
        self.labels = dict(labels)
        self.channels = channels

    @classmethod
    def made(cls, configuration: Any, labels: Mapping[int, str], channels: int) -> Self:
        """An instance; one whose declaration has no `channels` takes images of one and is not told
        so."""
        several = (channels,) if cls.declaration.channels else ()
        return cls(configuration, labels, *several)

    @classmethod
    def of_run(cls, run: Run) -> Self:
        """The system of a run.

        Warns of a run that knows its volumes as they were stored, see `warn_of_orientation`.

        Raises:
          UserError: config.json lacks something.
        """
        warn_of_orientation(run.folder, run.facts, cls.declaration.dimensions)
        configuration: Any = run.configured(cls.declaration.configuration)
        try:
            system = cls.made(configuration, run.labels, len(run.channels))
            system.grid = grid.of_facts(run.facts.get("grid"))
        except (TypeError, ValueError) as error:
            raise run.broken(error) from None
        return system

    # What a user hands in

    @classmethod
    def implied(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Flags whose default follows from others: {name: value}, for those that are None.

        Raises:
          FieldError: flags that contradict each other.
        """
        return {}

    @classmethod
    def write_phantoms(cls, folder: pathlib.Path, values: Mapping[str, Any]) -> pathlib.Path:
        """Writes the data set that is learnt from where the user has none, unless it is there.

        Args:
          folder: of the phantoms.
          values: {flag: value}.

        Returns:
          What `datasets.load` takes.

        Raises:
          FieldError: the system has no phantoms.
        """
        raise FieldError("data_dir", "", "this system makes no phantoms; expected a data set.")

    @classmethod
    def structures(
        cls, cases: datasets.Dataset, foreground: Sequence[int] | None
    ) -> dict[int, str]:
        """{label value: name} of what is segmented in a data set; `foreground` picks values.

        Raises:
          UserError: values that the data set does not have.
        """
        if cls.structure is not None:
            return {1: cls.structure}
        return datasets.structures(cases, foreground)

    def check_run(self, making: Making) -> None:
        """Refuses what a run is about to be made from, before its folder is opened.

        Raises:
          UserError: it does not fit.
        """

    def check_cases(self, training: Files, validation: Files) -> None:
        """Warns of, or refuses, prepared cases that cannot be learnt from."""

    def reader(self, foreground: Sequence[int] | None, known: Mapping[int, str]) -> Reader:
        """Reads the cases of a data set as this system takes them.

        Args:
          foreground: label values of the object or objects; None: all but 0. A system of several
            structures reads those of its labels.
          known: {label value: name} of the data set.
        """
        values = list(self.labels) if self.structure is None else foreground
        if self.regions:
            values = sorted({value for of_region in self.regions.values() for value in of_region})
        return Reader(type(self), values, known, self.any_voxels)

    # Training

    def planned(self, cases: planning.Cases) -> planning.Plan:
        """What the flags that are `patches.AUTO` come to; asked of systems with such a flag alone.

        Raises:
          FieldError: nothing fits into the memory; here, as nothing is planned.
        """
        told = f"{self.declaration.name} plans none; expected edges."
        raise FieldError(patches.FLAG, patches.AUTO, told)

    @abc.abstractmethod
    def prepare(self, case: datasets.Case, voxels: Tensor, label: Tensor) -> dict[str, Tensor]:
        """What the cache holds of a case: as the networks see it, without random changes.

        Args:
          case: for messages.
          voxels: raw, (1, *spatial, channels) float32, on the `grid`.
          label: (1, *spatial, 1) uint8.

        Returns:
          {name: tensor without batch axis}, of `pipeline.KINDS`.
        """

    @property
    def chunk(self) -> tuple[int | None, ...]:
        """Edges of the chunks in which what `prepare` returns is stored, along its first axes, for
        stages whose `read` takes a part; None, and axes that are not named: whole."""
        return ()

    @abc.abstractmethod
    def train(self, session: Session) -> Networks:
        """Trains everything, stage by stage, or goes on with it; finished stages stay as they are.

        Returns:
          The finished networks in float32, as `finished`.
        """

    @abc.abstractmethod
    def finished(self, run: Run) -> Networks:
        """The networks of a run, as far as it is finished.

        Raises:
          UserError: nothing is finished, or a network cannot be read.
        """

    def starting(self, networks: Networks) -> Networks:
        """Those of the networks of `finished` that another training starts from."""
        return networks

    # Segmentation

    @abc.abstractmethod
    def estimate(self, networks: Networks, image: Tensor) -> Estimate:
        """What networks make of raw images, in Keras ops, at any size, before anything is decided:
        its mean is taken over several sets of networks, and over mirror images.

        Args:
          networks: of `served_networks`.
          image: (batch, *spatial, channels) float32, on the `grid`.

        Returns:
          {name: (batch, *grid, channels) float32}, such as probabilities, on any grids over the
          extent of the images.
        """

    @abc.abstractmethod
    def decide(self, estimate: Estimate, size: Size) -> dict[str, Tensor]:
        """What is served for raw images, in Keras ops.

        Args:
          estimate: of `estimate`, or the mean of several.
          size: spatial size of the images as they came; another than on the `grid`.

        Returns:
          {"label": (batch, *size, 1) uint8, label values; "probability": (batch, *size, channels)
          float32, the last channels those of the labels, and other outputs by name}.
        """

    def relabelled(self, outputs: Mapping[str, Tensor], label: Tensor) -> dict[str, Tensor]:
        """Outputs of `decide` with another label, and what follows from it in place of what was."""
        return {**outputs, "label": label}

    def segment(self, networks: Networks, image: Tensor) -> dict[str, Tensor]:
        """What one set of networks decides: `decide` of its `estimate`."""
        return self.decide(self.estimate(networks, image), ops.shape(image)[1:-1])

    def mirrors(self, flags: Mapping[str, Any]) -> tuple[int, ...]:
        """Axes of an image along which a training of these flags mirrored its samples at random; 0
        is the first, of volumes z."""
        return tuple(range(self.declaration.dimensions)) if flags.get("flips") else ()

    def required_mirrors(self, flags: Mapping[str, Any]) -> tuple[int, ...]:
        """`mirrors`, along which finished networks may see images too.

        Raises:
          FieldError: there are none.
        """
        if axes := self.mirrors(flags):
            return axes
        raise FieldError(
            "mirrors",
            True,
            "training mirrored no image, so that its networks know none (nor left from right in a "
            "mirror image); expected a training with flips.",
        )

    def evaluator(self, networks: Networks) -> Evaluator:
        """The segmentation by every level or stage, the served one last; here by the served one
        alone, a method of the system's name."""
        predictor, dimensions = self.graphs(networks), self.declaration.dimensions

        def segment(voxels: np.ndarray, spacing: Sequence[float] | None) -> Segmentations:
            segmentation = segmented(predictor, voxels, spacing, dimensions, self.labels)
            return {self.declaration.name: segmentation}

        return segment

    def graph_of_images(self, segment: Callable[[Tensor, Size], Segmentations]) -> Evaluator:
        """An evaluator that is one graph.

        Args:
          segment: images (1, *spatial, 1) on the `grid`, and the spatial size that they had before
            -> segmentations.
        """
        graph = Graph(segment, self.spec, self.grid)

        def evaluate(voxels: np.ndarray, spacing: Sequence[float] | None) -> Segmentations:
            return graph(images.batch(voxels, self.declaration.dimensions), spacing)

        return evaluate

    def measure(
        self, mask: np.ndarray, truth: np.ndarray, spacing: Sequence[float]
    ) -> dict[str, float]:
        """Scores of the one structure beside those of `metrics.compare`: columns of `measurements`.

        Args:
          mask, truth: bool masks of equal shape, (z, y, x) or (y, x); not both are empty.
          spacing: mm per axis in the array's order.
        """
        return {}

    def predictor(
        self,
        run: Run,
        options: Mapping[str, Any],
        precision: str = "float32",
        mirrors: Sequence[int] = (),
    ) -> Predictor:
        """A finished run as `predict` uses it.

        Args:
          run: its folder.
          options: {name: value} of the declaration's `prediction` that the user gives.
          precision: see `in_precision`.
          mirrors: axes along which images are mirrored too, see `averaging.mean`.

        Raises:
          UserError: see `finished`; an option that this run does not have.
        """
        return self.graphs(self.in_precision(self.finished(run), precision), mirrors)

    @property
    def predicts_as_evaluated(self) -> bool:
        """Whether a `predictor` without options segments as the `evaluator` does."""
        return True

    def graphs(self, networks: Networks, mirrors: Sequence[int] = ()) -> GraphPredictor:
        """The functions of the export of finished networks, as a predictor; for `mirrors` see
        `predictor`."""
        functions = self.signatures([self.served_networks(networks)], mirrors)
        return GraphPredictor(functions, self.spec, self.grid)

    # Export

    @property
    def spec(self) -> tf.TensorSpec:
        """Of the raw images that the export takes."""
        return export.spec_of(self.declaration.dimensions, self.channels)

    def served_networks(self, networks: Networks) -> Networks:
        """Those of the finished networks that `segment` needs."""
        return networks

    @abc.abstractmethod
    def new_networks(self, names: Sequence[str]) -> Networks:
        """New networks of the names of `finished`, under the current Keras dtype policy."""

    def in_precision(self, networks: Networks, precision: str) -> Networks:
        """Networks that compute in a precision, of the same weights in float32.

        Args:
          networks: of `finished`, float32, or some of them.
          precision: of `POLICIES`.
        """
        if precision == "float32":
            return networks
        with devices.policy(POLICIES[precision]):
            others = self.new_networks(list(networks))
        for name, network in others.items():
            network.set_weights(networks[name].get_weights())
        return others

    def signatures(
        self, members: Sequence[Networks], mirrors: Sequence[int] = ()
    ) -> dict[str, Function]:
        """{signature: function of `image`}, see `export`, on the `grid`; where the image came from
        another, its spatial `size` there is given too.

        Args:
          members: sets of networks of `served_networks`, over which the mean is taken.
          mirrors: axes along which images are mirrored too, see `averaging.mean`.

        Returns:
          "serving_default", "probabilities" where these are large, and "uncertainty", which has all
          outputs and that of `averaging.uncertainty`.
        """
        estimators = [functools.partial(self.estimate, networks) for networks in members]

        # One function that all signatures call: else each would hold the networks' graph anew.
        @tf.function(input_signature=[self.spec], autograph=False)
        def estimated(image: Tensor) -> Estimate:
            return averaging.mean(estimators, image, mirrors)

        def probabilities(image: Tensor, size: Size | None = None) -> dict[str, Tensor]:
            return self.decide(estimated(image), ops.shape(image)[1:-1] if size is None else size)

        def serving_default(image: Tensor, size: Size | None = None) -> dict[str, Tensor]:
            outputs = probabilities(image, size)
            if self.large_probabilities:
                del outputs["probability"]  # with all that a graph computes for it alone
            return outputs

        def uncertainty(image: Tensor, size: Size | None = None) -> dict[str, Tensor]:
            outputs = probabilities(image, size)
            unsure = averaging.uncertainty(outputs["probability"], len(self.labels))
            return {**outputs, "uncertainty": unsure}

        large = {"probabilities": probabilities} if self.large_probabilities else {}
        return {"serving_default": serving_default, **large, "uncertainty": uncertainty}


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reads the cases of a data set as a system takes them.

    Attributes:
      system: its class.
      foreground: label values of the object or objects; None: all but 0.
      known: {label value: name} of the data set; empty accepts any whole number.
      any_voxels: see `System`.
    """

    system: type[System]
    foreground: Sequence[int] | None
    known: Mapping[int, str]
    any_voxels: bool = False

    @property
    def ignored(self) -> int | None:
        """Label of voxels that are left out of losses and scores; None: the data set has none."""
        return None if labels.ignored(self.known) is None else labels.IGNORED

    @property
    def arguments(self) -> reading.Arguments:
        """What `reading.read_case` takes beside a case."""
        merge = self.system.structure is not None
        declaration = self.system.declaration.unchecked(self.any_voxels)
        return declaration, self.foreground, self.known, merge

    def __call__(self, case: datasets.Case) -> tuple[images.Image, np.ndarray]:
        """Image and labels of a case, see `datasets.read_case`, with the system's own warnings.

        Raises:
          UserError: no label, or a file that cannot be learnt from.
        """
        return reading.read_case(case, *self.arguments)


class GraphPredictor:
    """The functions of an export, each as one graph for images of any size: a `Predictor`.

    Args:
      functions: see `System.signatures`.
      spec: of their images, which here come one by one.
      grid: of the system.
    """

    iterations = 0
    is_unsure = True

    def __init__(
        self,
        functions: Mapping[str, Function],
        spec: tf.TensorSpec,
        grid: Grid | None = None,
    ) -> None:
        graphs = {name: Graph(function, spec, grid) for name, function in functions.items()}
        self._label, self._unsure = graphs["serving_default"], graphs["uncertainty"]
        self._all = graphs.get("probabilities", self._label)

    def __call__(
        self, image: np.ndarray, spacing: Sequence[float] | None, wanted: Wanted
    ) -> dict[str, Any]:
        with_label = self._all if wanted.probabilities else self._label
        return (self._unsure if wanted.uncertainty else with_label)(image, spacing)


def segmented(
    predictor: Predictor,
    voxels: np.ndarray,
    spacing: Sequence[float] | None,
    dimensions: int,
    labels: Mapping[int, str],
) -> dict[str, Any]:
    """What a predictor makes of a raw image (*spatial) or (*spatial, channels), of so many spatial
    dimensions, as one of the `Segmentations`."""
    image = images.batch(voxels, dimensions)
    output = predictor(image, spacing, Wanted(probabilities=True))
    label = np.asarray(output["label"])[0, ..., 0]
    return {"label": label, "probability": probabilities_of(output, labels)}


def probabilities_of(output: Mapping[str, Any], labels: Mapping[int, str]) -> dict[str, Any]:
    """{structure: probability of the image's shape} of what a predictor made of one image.

    Args:
      output: see `Predictor.__call__`.
      labels: {label value: name} of the last channels of its probability.
    """
    foreground = np.asarray(output["probability"])[0, ..., -len(labels) :]
    return {name: foreground[..., k] for k, name in enumerate(labels.values())}
