"""200 requests from 4 clients to the stand-in for TensorFlow Serving: all answered, as single requests are, memory flat.

  python benchmarks/serving_requests.py --model=runs/fetal_head/saved_model --size=64,48,72

The server is tests/rest_server.py (TensorFlow's C++ loader) in a process of its own, the clients are serving/client.py.
Images are noise of three sizes. One client goes first, alone, and the answers of all must be its answers, bit for bit. The
server's memory is looked at after 20, 100 and 200 answers; what it grows by after the first 20 must stay under 5 % or
20 MB, whichever is more.
"""

import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
import SimpleITK as sitk
from absl import app, flags

from tf_autoctx import flag_types
from tf_autoctx.data import images

FLAGS = flags.FLAGS
flags.DEFINE_string("model", None, "Folder of the versions of a SavedModel.", required=True)
flag_types.define_integers(
    "size", [64, 48, 72], "Of the largest image along z, y, x, or y, x.", least=8
)
flags.DEFINE_integer("requests", 200, "In all.", 10)
flags.DEFINE_integer("clients", 4, "Processes.", 1)

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODEL = "model"


def start(address, source, output):
    command = [
        sys.executable,
        "serving/client.py",
        f"--model={MODEL}",
        "--probabilities",
        f"--server={address}",
    ]
    command += [f"--input={source}", f"--output={output}"]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)


def results(folder):
    """{name: path} of labels and probabilities that are whole."""
    return {
        path.relative_to(folder): path
        for path in folder.rglob("*.nii.gz")
        if not path.name.startswith(".")
    }


def answered(server, clients, outputs, total):
    """Waits for the clients; [(answers, seconds, MB of the server)] after a tenth, half and all of the answers."""
    found, marks, begin = [], [round(share * total) for share in (0.1, 0.5, 1)], time.perf_counter()
    while len(found) < len(marks):
        ended = all(client.poll() is not None for client in clients)
        if sum(len(results(output)) // 2 for output in outputs) >= marks[len(found)]:
            resident = (
                int(subprocess.check_output(["ps", "-o", "rss=", "-p", str(server.pid)])) / 1024
            )
            found.append((marks[len(found)], time.perf_counter() - begin, resident))
        elif ended:
            break
        time.sleep(0.05)
    assert [client.wait() for client in clients] == [0] * len(clients)
    return found


def throughput(found):
    """Answers a second; the first tenth, with the start of the clients, does not count."""
    (first, begin, _), *_, (last, end, _) = found
    return (last - first) / (end - begin)


def main(_):
    random = np.random.default_rng(0)
    each = FLAGS.requests // FLAGS.clients
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        sizes = [tuple(round(part * edge) for edge in FLAGS.size) for part in (1, 0.75, 0.9)]
        for client in range(FLAGS.clients):
            (folder / f"scans_{client}").mkdir()
            for number in range(each):
                path = folder / f"scans_{client}" / f"{number:03d}.mha"
                if client:  # all clients have the same images
                    path.symlink_to(folder / "scans_0" / path.name)
                else:
                    voxels = random.normal(100, 30, sizes[number % 3]).astype(np.int16)
                    images.write(sitk.GetImageFromArray(voxels), path)
        server = subprocess.Popen(
            [
                sys.executable,
                "tests/rest_server.py",
                f"--models={MODEL}={pathlib.Path(FLAGS.model).resolve()}",
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )
        try:
            address = server.stdout.readline().strip()
            single = folder / "single"
            alone = answered(server, [start(address, folder / "scans_0", single)], [single], each)
            outputs = [folder / f"out_{client}" for client in range(FLAGS.clients)]
            clients = [
                start(address, folder / f"scans_{k}", output) for k, output in enumerate(outputs)
            ]
            together = answered(server, clients, outputs, FLAGS.clients * each)
        finally:
            server.kill()
            server.wait()
        expected = results(single)
        assert len(expected) == 2 * each
        for output in outputs:
            answers = results(output)
            assert answers.keys() == expected.keys()
            for name, path in answers.items():
                one, other = (
                    sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
                    for file in (path, expected[name])
                )
                np.testing.assert_array_equal(one, other)
    resident = [mb for *_, mb in together]
    print(
        f"{FLAGS.clients * each} requests of {FLAGS.clients} clients: all answered, equal to single requests"
    )
    print(
        f"answers a second: {throughput(together):.2f}; of one client alone: {throughput(alone):.2f}"
    )
    print(
        "memory of the server after "
        + ", ".join(f"{count}: {mb:.0f} MB" for count, _, mb in together)
    )
    sys.exit(not max(resident) - resident[0] < max(0.05 * resident[0], 20))


if __name__ == "__main__":
    app.run(main)
