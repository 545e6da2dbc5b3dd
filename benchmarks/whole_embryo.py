"""Time and memory of one whole embryo through the cascade, and the time of the sliding windows.

  python benchmarks/whole_embryo.py                # 210x281x282 voxels and every width of the paper
  python benchmarks/whole_embryo.py --precision=mixed_bfloat16
  python benchmarks/whole_embryo.py --size=40,48,40 --low_size=32 --body_box=32 \\
      --ventricle_box=16 --base_filters=2 --kernel=3 --window=16

The weights are random: time and memory do not depend on them. Tracing is not timed, and the windows
warm up on a volume of one window. The localiser's seconds are extrapolated from a share of its
windows, those of the two VNets are measured.
"""

from __future__ import annotations

import dataclasses
import resource
import time
from typing import TYPE_CHECKING

from tf_autoctx import configuration
from tf_autoctx.commands.command_line import Command, Given
from tf_autoctx.configuration import field
from tf_autoctx.systems.embryo.configuration import Embryo, SlidingWindows, Windows, beside

if TYPE_CHECKING:
    import numpy as np

    from tf_autoctx.systems.embryo.segmentation import Refinement


@dataclasses.dataclass(frozen=True)
class WholeEmbryo:
    """Benchmark: the volume, and how much of the work is timed."""

    size: tuple[int, ...] = field(
        (210, 281, 282), "Voxels of the volume along z, y, x.", length=3, least=8
    )
    window_batch: int = field(32, "Windows in one pass of the localiser.", least=1)
    fraction: float = field(
        0.02, "Share of the localiser's windows that is timed.", least=0.02, most=1.0
    )
    precision: str = field("float32", "Of both methods.", choices=("float32", "mixed_bfloat16"))

    def __post_init__(self) -> None:
        configuration.check(self)


def peak() -> str:
    """The most memory so far, in words."""
    gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return f"peak of the whole process {gib:.1f} GiB"


def time_cascade(refinement: Refinement, voxels: np.ndarray) -> float:
    """Prints and returns the seconds of the cascade."""
    import tensorflow as tf

    from tf_autoctx import export

    network = refinement.network("end_to_end")

    @tf.function(input_signature=[export.VOLUME])
    def cascade(image: tf.Tensor) -> tf.Tensor:
        return refinement.segment(network, image)["label"]

    cascade.get_concrete_function()
    begin = time.perf_counter()
    label = cascade(tf.constant(voxels[None, ..., None])).numpy()
    seconds = time.perf_counter() - begin
    assert label.shape == (1, *voxels.shape, 1)
    print(f"cascade: {seconds:.1f} s, {peak()}", flush=True)
    return seconds


def time_windows(
    refinement: Refinement, peer: SlidingWindows, voxels: np.ndarray, benchmark: WholeEmbryo
) -> float:
    """Prints the seconds of the sliding windows, and returns those of all windows."""
    from tf_autoctx.systems.embryo.sliding_windows import WindowedSegmentation, new_networks

    networks = new_networks(peer)
    segment = WindowedSegmentation(refinement, peer, networks, benchmark.window_batch)
    segment(voxels[tuple(slice(peer.window) for _ in range(3))])
    begin = time.perf_counter()
    classes, localised = segment(voxels, benchmark.fraction)
    seconds = time.perf_counter() - begin
    assert classes.shape == voxels.shape
    share = 100 * localised.evaluated / localised.total
    print(
        f"localiser: {localised.seconds:.1f} s for {localised.evaluated} of {localised.total} "
        f"windows ({share:.1f} %)"
    )
    print(f"VNets for ventricle and body: {seconds - localised.seconds:.1f} s")
    return localised.extrapolated(seconds)


def main(given: Given) -> None:
    import keras
    import numpy as np

    from tf_autoctx.systems.embryo.segmentation import Refinement

    benchmark, embryo = given.configured(WholeEmbryo), given.configured(Embryo)
    keras.config.set_dtype_policy(benchmark.precision)
    refinement = Refinement(embryo, {1: "body", 2: "ventricle"})
    voxels = np.random.default_rng(0).uniform(0, 255, benchmark.size).astype(np.float32)
    print(f"{benchmark.precision}, {list(benchmark.size)} voxels", flush=True)

    cascade = time_cascade(refinement, voxels)
    peer = beside(embryo, given.configured(Windows))
    whole = time_windows(refinement, peer, voxels, benchmark)
    print(
        f"sliding windows, extrapolated: {whole:.0f} s, {whole / cascade:.1f} times the cascade; "
        f"{peak()}"
    )


if __name__ == "__main__":
    Command(main, (WholeEmbryo, Embryo, Windows), __doc__)()
