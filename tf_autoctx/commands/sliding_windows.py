"""The sliding-window peer of an embryo run (Xu et al. 2020, table 1, "Benchmark"), on its cases.

  autoctx-sliding-windows --run=runs/embryo --output=runs/sliding_windows
  autoctx-sliding-windows --run=runs/embryo --output=runs/sliding_windows --window=32
                                                             # for phantoms of 0.125 mm

A localiser, a small VNet for the ventricle and one for the body are trained one after the other;
what is not a flag here is as in the run. Where it was stopped, the same command goes on. It is put
beside the run by autoctx-embryo-tables.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tf_autoctx import configuration, files, native
from tf_autoctx.commands.command_line import Command, Given
from tf_autoctx.configuration import field
from tf_autoctx.data.configuration import Augmentation
from tf_autoctx.errors import FieldError
from tf_autoctx.systems.embryo.configuration import (
    SLIDING_WINDOWS,
    SlidingWindows,
    Windows,
    beside,
)
from tf_autoctx.training.configuration import Settings

if TYPE_CHECKING:
    import tensorflow as tf

    from tf_autoctx.systems.embryo.system import TrainedRun
    from tf_autoctx.systems.shared.session import Session


@dataclasses.dataclass(frozen=True)
class Peer:
    """Run: the embryo run, and the peer's own folder."""

    run: str = field(..., "Run folder of autoctx-train-embryo.")
    output: str = field(..., "Folder of the peer; what is there goes on.")
    steps: int | None = field(
        None,
        "Optimizer steps per network. By default those of all finished stages together.",
        least=1,
    )
    window_batch: int = field(32, "Windows in one pass of the localiser.", least=1)

    def __post_init__(self) -> None:
        configuration.check(self)


def opened(
    trained: TrainedRun,
    folder: str,
    values: Mapping[str, Any],
    strategy: tf.distribute.Strategy,
) -> Session:
    """Opens the peer's run folder, whose cases are those of the embryo run's own cache.

    Args:
      trained: the embryo run.
      folder: of the peer.
      values: {flag: value} that the peer is made with.
      strategy: `tf.distribute` strategy.

    Raises:
      UserError: a folder of another run.
    """
    from tf_autoctx.systems.shared import caching
    from tf_autoctx.systems.shared.session import Session
    from tf_autoctx.training import devices, runs

    kinds = (Settings, Augmentation, SlidingWindows)
    making = runs.Making(
        SLIDING_WINDOWS,
        values,
        trained.run.fingerprint,
        configuration.changeable(kinds),
        configuration.growing(kinds),
        configuration.earlier(kinds),
    )
    is_chief = devices.is_chief(strategy)
    if is_chief:
        files.own(folder)
    run = runs.open_run(folder, making, is_chief).note(labels=trained.system.labels)
    of_run = trained.run.folder, trained.system, trained.read.foreground, trained.run.fingerprint
    cache = caching.directory(*of_run)
    training, validation = (
        caching.cached(part, cache, trained.read, trained.system)
        for part in (trained.cases.train, trained.cases.validation)
    )
    settings = configuration.configured(Settings, values)
    ignored = trained.read.ignored
    return Session(run, values, strategy, settings, training, validation, ignored)


def main(given: Given) -> None:
    with native.without_noise():
        from tf_autoctx.systems.embryo import sliding_windows_training
    from tf_autoctx.systems.embryo import training as embryo_training
    from tf_autoctx.systems.embryo.sliding_windows import WindowedSegmentation
    from tf_autoctx.systems.embryo.system import TrainedRun
    from tf_autoctx.systems.shared import evaluation
    from tf_autoctx.systems.shared.image_checks import Trained
    from tf_autoctx.training import devices

    # What the embryo run was trained on and how
    chosen = given.configured(Peer)
    trained = TrainedRun.load(chosen.run)
    run, system = trained.run, trained.system
    if system.grid:
        raise FieldError(
            "run",
            chosen.run,
            "its networks see volumes on a grid of mm, and the peer as they are; expected a run of "
            "`spacing=none`.",
        )
    if system.channels > 1:
        raise FieldError(
            "run",
            chosen.run,
            f"its images have {system.channels} channels; expected one, as the peer sees no more.",
        )
    settings = run.configured(Settings)
    steps = chosen.steps or settings.steps * len(embryo_training.finished_stages(run))
    settings = dataclasses.replace(settings, steps=steps)
    augmentation = run.configured(Augmentation)
    peer = beside(system.configuration, given.configured(Windows))
    strategy = devices.strategy(run.flags["strategy"])
    precision = devices.set_up(run.flags["precision"], settings.seed)
    values = {"precision": precision, **vars(peer), **vars(settings), **vars(augmentation)}

    # The localiser, the ventricle's VNet and the body's, on the same volumes
    held_out = evaluation.held_out(trained.cases, trained.read)
    session = opened(trained, chosen.output, values, strategy)
    sliding_windows_training.warn_of_large(peer.window, session.training)
    networks = sliding_windows_training.train(peer, session)

    # Held-out cases on their original grid, all windows
    if not devices.is_chief(strategy):
        return
    segmentation = WindowedSegmentation(system.refinement, peer, networks, chosen.window_batch)
    scoring = evaluation.Scoring(SLIDING_WINDOWS, system.labels, Trained.of_facts(run.facts))
    folder = session.folder / "evaluation"
    evaluation.evaluate(held_out, trained.read, segmentation.methods, scoring, folder)


command = Command(main, (Peer, Windows), __doc__)
