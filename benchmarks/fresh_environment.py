"""Loads and runs exports in a new virtual environment that holds TensorFlow alone.

  python benchmarks/fresh_environment.py --models=runs/fetal_head/saved_model/1

Every signature gets noise; shapes of the outputs and the largest memory of the process are printed,
one process a model.
"""

from __future__ import annotations

import dataclasses
import pathlib
import subprocess
import sys
import tempfile

from tf_autoctx.commands.command_line import Command, Given
from tf_autoctx.configuration import check, field


@dataclasses.dataclass(frozen=True)
class Environment:
    """Benchmark: the exports, and what runs them"""

    models: tuple[str, ...] = field(..., "SavedModel folders, of one version each.")
    size: tuple[int, ...] = field(
        (64, 48, 72), "Of the image along z, y, x; 2D: the last two.", length=3, least=8
    )
    tensorflow: str = field("tensorflow", "What pip installs, such as tensorflow==2.20.0.")

    def __post_init__(self) -> None:
        check(self)


RUN = """
import importlib.util, os, resource, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import numpy as np, tensorflow as tf
folder, size = sys.argv[1], [int(edge) for edge in sys.argv[2].split(",")]
assert importlib.util.find_spec("tf_autoctx") is None
print(f"{folder}: TensorFlow {tf.__version__}, no tf_autoctx")
model = tf.saved_model.load(folder)
spec = model.signatures["serving_default"].structured_input_signature[1]["image"]
size = size[-(spec.shape.rank - 2):]
image = np.random.default_rng(0).normal(100, 30, size).astype("<f4")
raw = {"image_bytes": [image.tobytes()], "shape": np.int32([size]), "dtype": ["float32"]}
for name, signature in sorted(model.signatures.items()):
    inputs = signature.structured_input_signature[1]
    plain = {"image": image[None, ..., None], "request": np.int32([0])}
    given = raw if "image_bytes" in inputs else {key: plain[key] for key in inputs}
    outputs = signature(**{key: tf.constant(value) for key, value in given.items()})
    for output, value in sorted(outputs.items()):
        told = f"{len(value.numpy()[0])} bytes" if value.dtype == tf.string else value.dtype.name
        print(f"  {name}: {output} {tuple(value.shape)} {told}")
print(f"  largest memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")
"""


def main(given: Given) -> None:
    """Runs the benchmark."""
    chosen = given.configured(Environment)
    size = ",".join(map(str, chosen.size))
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        python = str(pathlib.Path(folder) / "bin" / "python")
        subprocess.run([python, "-m", "pip", "install", "--quiet", chosen.tensorflow], check=True)
        for model in chosen.models:
            # Isolated: neither this folder nor PYTHONPATH is searched.
            words = [python, "-I", "-c", RUN, str(pathlib.Path(model).resolve()), size]
            subprocess.run(words, check=True, cwd=folder)


command = Command(main, (Environment,), __doc__)

if __name__ == "__main__":
    command()
