"""200 requests from 4 clients to the stand-in for TensorFlow Serving: all get a response, the same
as single requests do, and memory stays flat.

  python benchmarks/serving_requests.py --model=runs/fetal_head/saved_model --size=64,48,72

The server is tests/rest_server.py (TensorFlow's C++ loader) in a process of its own, the clients
are serving/client.py. Images are noise of three sizes. One client goes first, alone, and the
responses to all must be those to it, bit for bit. The server's memory is looked at after 20, 100
and 200 responses; what it grows by after the first 20 must stay under 5 % or 20 MB, whichever is
more. Responses a second are as good as the machine is quiet: what other processes took is printed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence

import numpy as np
import SimpleITK as sitk
from harness import Meter

from tf_autoctx.commands.command_line import Command, Given
from tf_autoctx.configuration import check, field
from tf_autoctx.data import images

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODEL = "model"
SHARES = (0.1, 0.5, 1.0)  # of all responses, after which memory is looked at
Client = subprocess.Popen[bytes]
Server = subprocess.Popen[str]


@dataclasses.dataclass(frozen=True)
class Requests:
    """Benchmark: the model, and who asks it for what"""

    model: str = field(..., "Folder of the versions of a SavedModel.")
    size: tuple[int, ...] = field(
        (64, 48, 72), "Of the largest image along z, y, x, or y, x.", least=8
    )
    requests: int = field(200, "In all.", least=10)
    clients: int = field(4, "Processes.", least=1)

    def __post_init__(self) -> None:
        check(self)


@dataclasses.dataclass(frozen=True)
class Mark:
    """A moment of the benchmark.

    Attributes:
      responses: how many there were.
      seconds: since the start of the clients.
      resident: MB of the server's memory.
    """

    responses: int
    seconds: float
    resident: float


def write_images(folder: pathlib.Path, chosen: Requests) -> None:
    """Writes folder/scans_0, scans_1, ...: the same images for every client."""
    random = np.random.default_rng(0)
    sizes = [tuple(round(part * edge) for edge in chosen.size) for part in (1, 0.75, 0.9)]
    for client in range(chosen.clients):
        (folder / f"scans_{client}").mkdir()
        for number in range(chosen.requests // chosen.clients):
            path = folder / f"scans_{client}" / f"{number:03d}.mha"
            if client:
                path.symlink_to(folder / "scans_0" / path.name)
            else:
                voxels = random.normal(100, 30, sizes[number % 3]).astype(np.int16)
                images.write(path, sitk.GetImageFromArray(voxels))


@contextlib.contextmanager
def serving(model: str) -> Iterator[tuple[Server, str]]:
    """A server of a model, in a process of its own, and its address."""
    words = ["tests/rest_server.py", f"--models={MODEL}={pathlib.Path(model).resolve()}"]
    server = subprocess.Popen(
        [sys.executable, *words], cwd=ROOT, stdout=subprocess.PIPE, encoding="utf-8"
    )
    try:
        assert server.stdout is not None
        yield server, server.stdout.readline().strip()
    finally:
        server.kill()
        server.wait()


def start(address: str, source: pathlib.Path, output: pathlib.Path) -> Client:
    """Starts a client on a folder of images."""
    words = [f"--model={MODEL}", "--probabilities", f"--server={address}"]
    words += [f"--input={source}", f"--output={output}"]
    script = [sys.executable, "serving/client.py"]
    return subprocess.Popen([*script, *words], cwd=ROOT, stdout=subprocess.DEVNULL)


def results(folder: pathlib.Path) -> dict[pathlib.Path, pathlib.Path]:
    """{name: path} of labels and probabilities that are whole."""
    return {
        path.relative_to(folder): path
        for path in folder.rglob("*.nii.gz")
        if not path.name.startswith(".")
    }


def resident(process: Server) -> float:
    """MB of a process."""
    return int(subprocess.check_output(["ps", "-o", "rss=", "-p", str(process.pid)])) / 1024


def wait(
    server: Server, clients: Sequence[Client], outputs: Sequence[pathlib.Path], total: int
) -> list[Mark]:
    """Waits for the clients to end; what was seen at the `SHARES` of all responses."""
    marks: list[Mark] = []
    begin = time.perf_counter()
    counts = [round(share * total) for share in SHARES]
    while len(marks) < len(counts):
        ended = all(client.poll() is not None for client in clients)
        count = counts[len(marks)]
        if sum(len(results(output)) // 2 for output in outputs) >= count:
            marks.append(Mark(count, time.perf_counter() - begin, resident(server)))
        elif ended:
            break
        time.sleep(0.05)
    assert [client.wait() for client in clients] == [0] * len(clients)
    return marks


def throughput(marks: Sequence[Mark]) -> float:
    """Responses a second; the first tenth, with the start of the clients, does not count."""
    first, last = marks[0], marks[-1]
    return (last.responses - first.responses) / (last.seconds - first.seconds)


def require_equal(outputs: Sequence[pathlib.Path], single: pathlib.Path, count: int) -> None:
    """Checks that all clients wrote what a single one did: labels and probabilities of `count`."""
    expected = results(single)
    assert len(expected) == 2 * count
    for output in outputs:
        written = results(output)
        assert written.keys() == expected.keys()
        for name, path in written.items():
            actual, wanted = (
                sitk.GetArrayFromImage(sitk.ReadImage(str(file))) for file in (path, expected[name])
            )
            np.testing.assert_array_equal(actual, wanted)


def main(given: Given) -> None:
    """Runs the benchmark."""
    chosen = given.configured(Requests)
    each = chosen.requests // chosen.clients
    total = each * chosen.clients
    with tempfile.TemporaryDirectory() as directory:
        folder = pathlib.Path(directory)
        write_images(folder, chosen)
        single = folder / "single"
        scans, outputs = (
            [folder / f"{kind}_{client}" for client in range(chosen.clients)]
            for kind in ("scans", "out")
        )
        with serving(chosen.model) as (server, address), Meter() as meter:
            alone = wait(server, [start(address, scans[0], single)], [single], each)
            clients = [start(address, *paths) for paths in zip(scans, outputs)]
            together = wait(server, clients, outputs, total)
        require_equal(outputs, single, each)
    memory = [mark.resident for mark in together]
    told = ", ".join(f"{mark.responses}: {mark.resident:.0f} MB" for mark in together)
    print(f"{total} requests of {chosen.clients} clients: all succeeded, equal to single requests")
    print(
        f"responses a second: {throughput(together):.2f}; "
        f"to one client alone: {throughput(alone):.2f}; others took {meter.others:.2f} CPU"
    )
    print(f"memory of the server after {told}")
    sys.exit(not max(memory) - memory[0] < max(0.05 * memory[0], 20))


command = Command(main, (Requests,), __doc__)

if __name__ == "__main__":
    command()
