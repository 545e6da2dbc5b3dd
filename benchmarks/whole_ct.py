"""Time and peak memory of one whole CT through the exported pyramid, raw volume in, label out, in a
fresh process.

  python benchmarks/whole_ct.py                   # 600x512x512 voxels, full width, factors 4 and 2
  python benchmarks/whole_ct.py --base_filters=8 --tile_size=96

The weights are random: time and memory do not depend on them.
"""

from __future__ import annotations

import dataclasses
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np
import tensorflow as tf

from tf_autoctx import export
from tf_autoctx.commands.command_line import Command, Given
from tf_autoctx.configuration import check, field
from tf_autoctx.systems.multi_organ.configuration import MultiOrgan
from tf_autoctx.systems.multi_organ.system import MultiOrganSystem


@dataclasses.dataclass(frozen=True)
class WholeCT:
    """Benchmark: the CT and the pyramid."""

    size: tuple[int, ...] = field(
        (600, 512, 512), "Voxels of the CT along z, y, x.", length=3, least=8
    )
    downsampling: tuple[int, ...] = field((4, 2), "Factors of the levels.", least=1)
    base_filters: int = field(32, "Channels of the first convolution.", least=1)
    tile_size: int = field(128, "Edge of a tile.", multiple=8, least=16)
    model: str = field(
        "", "Exported SavedModel to run. By default one is made, and run in another process."
    )

    def __post_init__(self) -> None:
        check(self)


def measure(model: str, size: tuple[int, ...]) -> None:
    """Prints the time of one CT of so many voxels, and the peak memory of this process."""
    voxels = np.random.default_rng(0).normal(0, 200, (1, *size, 1)).astype(np.float32)
    image = tf.constant(voxels)
    signature = tf.saved_model.load(model).signatures["serving_default"]
    begin = time.perf_counter()
    label = signature(image=image)["label"]
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    assert label.shape == image.shape
    print(f"{list(size)} voxels: {seconds:.0f} s, peak of the whole process {peak:.1f} GiB")


def exported(chosen: WholeCT, folder: str) -> str:
    """The SavedModel of a new pyramid for seven structures, in a folder."""
    configuration = MultiOrgan(
        levels=len(chosen.downsampling),
        downsampling=chosen.downsampling,
        base_filters=chosen.base_filters,
        tile_size=chosen.tile_size,
    )
    system = MultiOrganSystem(configuration, dict(enumerate("abcdefg", start=1)))
    networks = system.new_networks(["pyramid"])
    functions = {"serving_default": system.signatures(networks)["serving_default"]}
    return str(export.write(folder, export.Exported(functions, list(networks.values()), {})))


def main(given: Given) -> None:
    """Runs the benchmark."""
    chosen = given.configured(WholeCT)
    if chosen.model:
        measure(chosen.model, chosen.size)
        return
    with tempfile.TemporaryDirectory() as folder:
        model, size = exported(chosen, folder), ",".join(map(str, chosen.size))
        subprocess.run([sys.executable, __file__, f"--model={model}", f"--size={size}"], check=True)


command = Command(main, (WholeCT,), __doc__)

if __name__ == "__main__":
    command()
