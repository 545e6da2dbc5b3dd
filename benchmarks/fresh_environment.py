"""Loads and runs exports in a new virtual environment that holds TensorFlow alone.

  python benchmarks/fresh_environment.py --models=runs/fetal_head/saved_model/1,runs/renderer/saved_model/1

Every signature gets noise; shapes of the answers and the largest memory of the process are printed, one process a model.
"""

import pathlib
import subprocess
import sys
import tempfile

from absl import app, flags

from tf_autoctx import flag_types

FLAGS = flags.FLAGS
flags.DEFINE_list("models", None, "SavedModel folders, of one version each.", required=True)
flag_types.define_integers(
    "size", [64, 48, 72], "Of the image along z, y, x; 2D: the last two.", length=3, least=8
)
flags.DEFINE_string("tensorflow", "tensorflow", "What pip installs, such as tensorflow==2.20.0.")

RUN = """
import importlib.util, os, resource, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import numpy as np, tensorflow as tf
folder, size = sys.argv[1], [int(edge) for edge in sys.argv[2].split(",")]
assert importlib.util.find_spec("tf_autoctx") is None
print(f"{folder}: TensorFlow {tf.__version__}, no tf_autoctx")
model = tf.saved_model.load(folder)
size = size[-(model.signatures["serving_default"].structured_input_signature[1]["image"].shape.rank - 2):]
image = np.random.default_rng(0).normal(100, 30, size).astype("<f4")
raw = {"image_bytes": [image.tobytes()], "shape": np.int32([size]), "dtype": ["float32"]}
for name, signature in sorted(model.signatures.items()):
    inputs = signature.structured_input_signature[1]
    given = {"image": image[None, ..., None]} if "image" in inputs else raw
    answer = signature(**{key: tf.constant(value) for key, value in given.items()})
    for output, value in sorted(answer.items()):
        told = f"{len(value.numpy()[0])} bytes" if value.dtype == tf.string else value.dtype.name
        print(f"  {name}: {output} {tuple(value.shape)} {told}")
print(f"  largest memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")
"""


def main(_):
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        python = pathlib.Path(folder) / "bin" / "python"
        subprocess.run([python, "-m", "pip", "install", "--quiet", FLAGS.tensorflow], check=True)
        for model in FLAGS.models:
            # Isolated: neither this folder nor PYTHONPATH is searched.
            command = [
                python,
                "-I",
                "-c",
                RUN,
                pathlib.Path(model).resolve(),
                ",".join(map(str, FLAGS.size)),
            ]
            subprocess.run(command, check=True, cwd=folder)


if __name__ == "__main__":
    app.run(main)
