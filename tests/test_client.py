"""The client of TensorFlow Serving from outside, over a socket.

Toy exports are behind the stand-ins for REST and gRPC.
"""

import base64
import contextlib
import gzip
import json
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.request

import grpc_server
import helpers
import numpy as np
import pytest
import rest_server
import running
import SimpleITK as sitk
import tensorflow as tf
from google.protobuf import text_format
from tensorflow_serving.apis import prediction_log_pb2
from tensorflow_serving.config import model_server_config_pb2

from tf_autoctx import errors, export, serving
from tf_autoctx.data import images


def bright(threshold):
    """A toy of the fetal head's signatures: brighter than `threshold`."""

    def segment(image):
        # Like a network, it cannot take everything: here, a single slice.
        with tf.control_dependencies(
            [tf.debugging.Assert(tf.shape(image)[1] > 1, ["a volume has several slices"])]
        ):
            probability = tf.sigmoid((image - threshold) / 10)
        return {"label": tf.cast(probability > 0.5, tf.uint8), "probability": probability}

    return {"serving_default": segment}


def classes(image):
    """A toy of the CT's signature `probabilities`: three classes, background first."""
    probability = tf.nn.softmax(tf.concat([-image, image, 0.5 * image], axis=-1) / 100)
    return {
        "label": tf.cast(tf.argmax(probability, -1)[..., None], tf.uint8),
        "probability": probability,
    }


def classes_label(image):
    return {"label": classes(image)["label"]}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """{name: folder of versions} of the toys."""
    root = tmp_path_factory.mktemp("models")

    for name, configuration, functions, spec in (
        ("fetal_head", 100, bright(100.0), export.VOLUME),
        ("fetal_head", 120, bright(120.0), export.VOLUME),
        (
            *("multi_organ", None),
            {"serving_default": classes_label, "probabilities": classes},
            export.VOLUME,
        ),
        ("renderer", 128, bright(128.0), export.IMAGE),
    ):
        model = export.Exported(functions, {}, {"system": name}, spec, configuration)
        export.write(root / name, model)
    return {name: root / name for name in ("fetal_head", "multi_organ", "renderer")}


@pytest.fixture(scope="module")
def models(folders):
    models = rest_server.Models(folders)
    yield models
    models.close()


class Handler(rest_server.Handler):
    """Counts the images that are sent; those that a test has a fault for run it first."""

    lock = threading.Lock()

    def predict(self, name, version, request):
        if request["signature_name"] == export.CARD_SIGNATURE:
            return super().predict(name, version, request)
        with self.lock:
            self.server.asked.append(request["signature_name"])
            fault = self.server.faults.pop(0) if self.server.faults else None
        if fault:
            fault(self)
        return super().predict(name, version, request)


class Server(rest_server.Server):
    """The stand-in with faults: functions of a handler, each for one request."""

    def __init__(self, models, faults=(), **options):
        super().__init__(models, handler=Handler, **options)
        self.asked, self.faults, self.connections = [], list(faults), set()

    def process_request(self, request, client_address):
        self.connections.add(request)
        super().process_request(request, client_address)

    def kill(self):
        """Ends as a process that is killed: nobody listens, no connection is left."""
        self.shutdown()
        self.server_close()
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


def unavailable(handler):
    raise rest_server.Refused(
        503, "The batch scheduling queue to which this task was submitted is full"
    )


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(serving, "BACKOFF", 0.02)


def send(server, source, output, *arguments, model="fetal_head"):
    """Runs the client."""
    where = [f"--server={server}", f"--model={model}", f"--input={source}", f"--output={output}"]
    running.call("client", *where, *arguments)


@pytest.fixture
def refused(capsys):
    """Runs the client, which ends in one sentence: that, and all that it printed to stderr."""

    def run(told, *arguments, model="fetal_head"):
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            send(*arguments, model=model)
        error = capsys.readouterr().err
        last = error.splitlines()[-1]
        assert ended.value.code == 1 and last.startswith("error: ") and re.search(told, last), last
        return error

    return run


def volume(path, seed=0, dtype=np.int16, shape=(5, 6, 7)):
    """Writes noise around 110 on a turned grid; returns the image."""
    voxels = np.random.default_rng(seed).normal(110, 30, shape).clip(0, 255).astype(dtype)
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing((0.5, 0.75, 1.25))
    image.SetOrigin((10, -20, 30))
    image.SetDirection((0, 1, 0, -1, 0, 0, 0, 0, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    images.write(path, image)
    return image


def array(image):
    """The voxels of an image, or of a file, as they lie there."""
    return sitk.GetArrayFromImage(
        image if isinstance(image, sitk.Image) else sitk.ReadImage(str(image))
    )


def written(folder):
    names = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in names if name != ".made_from")


@contextlib.contextmanager
def served(protocol, models):
    if protocol == "grpc":
        with grpc_server.serving(grpc_server.Service(models)) as address:
            yield address
    else:
        with Server(models) as server:
            yield server.address


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_labels_lie_on_each_image_s_own_grid(models, tmp_path, protocol):
    scans = {
        "a": volume(tmp_path / "scans" / "a.mha"),
        "b": volume(tmp_path / "scans" / "b.nrrd", 1, np.uint8, (2, 9, 4)),
        "c": volume(tmp_path / "scans" / "c.nii.gz", 2, np.float64),
        "d": volume(tmp_path / "scans" / "d.mha", 3, np.uint32),  # no dtype of the signature
    }
    with served(protocol, models) as address:
        send(
            address,
            tmp_path / "scans",
            tmp_path / "out",
            f"--protocol={protocol}",
            "--probabilities",
        )
    names = [f"{name}.nii.gz" for name in scans]
    assert written(tmp_path / "out") == names + [f"probabilities/{name}" for name in names]
    for name, image in scans.items():
        files = [tmp_path / "out" / f"{name}.nii.gz"]
        files.append(tmp_path / "out" / "probabilities" / f"{name}.nii.gz")
        for file in files:
            images.require_same_grid(images.read(file), images.Image.of("image", image, (1, 1, 1)))
        (label, probability), voxels = map(array, files), array(image)
        assert label.dtype == np.uint8 and 0 < label.mean() < 1
        np.testing.assert_array_equal(label, voxels > 120)
        expected = 1 / (1 + np.exp((120 - voxels.astype(float)) / 10))
        np.testing.assert_allclose(probability, expected, 5e-4)


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_probabilities_of_several_classes_are_values_of_a_voxel(models, tmp_path, protocol):
    image = volume(tmp_path / "ct.mha")
    with served(protocol, models) as address:
        for output, wanted in (("label", "--noprobabilities"), ("both", "--probabilities")):
            arguments = (tmp_path / output, f"--protocol={protocol}", wanted)
            send(address, tmp_path / "ct.mha", *arguments, model="multi_organ")
    assert written(tmp_path / "label") == ["ct.nii.gz"]
    assert written(tmp_path / "both") == ["ct.nii.gz", "probabilities/ct.nii.gz"]
    expected = classes(array(image).astype(np.float32)[None, ..., None])
    file = tmp_path / "both" / "probabilities" / "ct.nii.gz"
    assert sitk.ReadImage(file).GetNumberOfComponentsPerPixel() == 3
    np.testing.assert_allclose(array(file), expected["probability"][0], 5e-4)
    for output in ("label", "both"):
        label = array(tmp_path / output / "ct.nii.gz")
        np.testing.assert_array_equal(label, expected["label"][0, ..., 0])


def test_a_label_of_a_png_is_a_png(models, tmp_path, refused):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 8), np.uint8)
    (tmp_path / "frames").mkdir()
    images.write(tmp_path / "frames" / "a.png", sitk.GetImageFromArray(pixels))
    with Server(models) as server:
        send(
            server.address,
            tmp_path / "frames",
            tmp_path / "out",
            "--probabilities",
            model="renderer",
        )
        volume(tmp_path / "scan.mha")
        refused(
            r"scan.mha: has 3 dimensions.*expected 2",
            server.address,
            tmp_path / "scan.mha",
            tmp_path / "out",
            model="renderer",
        )
    assert written(tmp_path / "out") == ["a.png", "probabilities/a.nii.gz"]
    np.testing.assert_array_equal(array(tmp_path / "out" / "a.png"), 255 * (pixels > 128))


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_versions(models, tmp_path, protocol, refused):
    image = volume(tmp_path / "a.mha")
    with served(protocol, models) as address:
        for version, threshold in ((None, 120), (1, 100), (2, 120)):
            output = tmp_path / f"version_{version}"
            asked = [] if version is None else [f"--version={version}"]
            send(address, tmp_path / "a.mha", output, f"--protocol={protocol}", *asked)
            np.testing.assert_array_equal(array(output / "a.nii.gz"), array(image) > threshold)
        refused(
            r"(404|NOT_FOUND), .*Specific\(fetal_head, 3\); expected a --model",
            address,
            tmp_path / "a.mha",
            tmp_path / "out",
            f"--protocol={protocol}",
            "--version=3",
        )
        refused(
            r"(404|NOT_FOUND), .*Latest\(embryo\); expected a --model",
            address,
            tmp_path / "a.mha",
            tmp_path / "out",
            f"--protocol={protocol}",
            model="embryo",
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_what_a_server_refuses_is_one_sentence(models, tmp_path, protocol, refused):
    volume(tmp_path / "scans" / "a.mha")
    volume(tmp_path / "scans" / "flat.mha", shape=(1, 6, 7))
    volume(tmp_path / "scans" / "z.mha")
    code = {"rest": "400", "grpc": "INVALID_ARGUMENT"}[protocol]
    with served(protocol, models) as address:
        scans = (tmp_path / "scans", tmp_path / "out", f"--protocol={protocol}")
        told = refused("1 of 3 images failed; run again", address, *scans)
        assert (
            f"scans/flat.mha: {address}: answers {code}, " in told
            and "a volume has several slices" in told
        )
        assert "expected an image that this model takes" in told and len(told) < 800
        assert written(tmp_path / "out") == ["a.nii.gz", "z.nii.gz"]
        kind = {"rest": serving.Rest, "grpc": serving.Grpc}[protocol]
        model = kind(address, "fetal_head", None, 60)
        voxels = np.zeros((2, 3, 4), np.int16)
        with pytest.raises(
            errors.UserError, match=rf'{code}, Serving signature name: "nonsense" not found'
        ):
            model.predict(serving.Request("nonsense", voxels, ["label_bytes"]))
        with pytest.raises(
            errors.UserError, match=rf"{code}, (.*Missing named input: image|input size)"
        ):
            model.predict(serving.Request("serving_default", voxels, ["label_bytes"]))
        with pytest.raises(errors.UserError, match=rf"(?s){code}, .*dtype is"):
            request = serving.Request("serving_bytes", voxels.astype(np.int64), ["label_bytes"])
            model.predict(request)


def test_too_large_for_the_server(models, tmp_path, refused):
    volume(tmp_path / "a.mha")
    expected = "Payload Too Large; expected a smaller image"
    with Server(models, max_bytes=300) as server:
        told = f"a.mha: .* 413, {expected}"
        refused(told, server.address, tmp_path / "a.mha", tmp_path / "out")
    with grpc_server.serving(grpc_server.Service(models), max_bytes=300) as address:
        refused(
            "a.mha: .*RESOURCE_EXHAUSTED, .*larger than max.*; expected a smaller",
            address,
            tmp_path / "a.mha",
            tmp_path / "out",
            "--protocol=grpc",
        )


def test_busy_servers_are_asked_again(models, tmp_path, refused):
    volume(tmp_path / "a.mha")
    with Server(models, [unavailable] * 2) as server:
        send(server.address, tmp_path / "a.mha", tmp_path / "out", "--retries=2")
        assert len(server.asked) == 3 and written(tmp_path / "out") == ["a.nii.gz"]
        server.faults = [unavailable] * 3
        refused(
            r"503, The batch scheduling queue .* full \(3 tries\); expected a server",
            server.address,
            tmp_path / "a.mha",
            tmp_path / "other",
            "--retries=2",
        )

    class Busy(grpc_server.Service):
        asked = 0

        def Predict(self, request, context):
            self.asked += 1
            if self.asked <= 2:
                context.abort(grpc_server.CODES[503], "full")
            return super().Predict(request, context)

    with grpc_server.serving(Busy(models)) as address:
        send(address, tmp_path / "a.mha", tmp_path / "grpc", "--protocol=grpc", "--retries=2")
    assert written(tmp_path / "grpc") == ["a.nii.gz"]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_nobody_listens(tmp_path, protocol, refused):
    volume(tmp_path / "a.mha")
    refused(
        r"127.0.0.1:\d+: .*\(2 tries\); expected a server that answers",
        f"127.0.0.1:{free_port()}",
        tmp_path / "a.mha",
        tmp_path / "out",
        f"--protocol={protocol}",
        "--retries=1",
    )
    refused(
        "--server=gpu7: not an address; expected host:port",
        "gpu7",
        tmp_path / "a.mha",
        tmp_path / "out",
        f"--protocol={protocol}",
    )


def test_a_server_that_comes_up_late(models, tmp_path):
    volume(tmp_path / "a.mha")
    port = free_port()
    with contextlib.ExitStack() as stack:
        timer = threading.Timer(0.3, lambda: stack.enter_context(Server(models, port=port)))
        timer.start()
        send(f"127.0.0.1:{port}", tmp_path / "a.mha", tmp_path / "out")
        timer.join()
    assert written(tmp_path / "out") == ["a.nii.gz"]


def test_no_answer_in_time(models, tmp_path, refused):
    volume(tmp_path / "a.mha")
    gone = threading.Event()
    with Server(models, [lambda handler: gone.wait(5)]) as server:
        begin = time.monotonic()
        refused(
            r"a.mha: .*nothing, within 0.2 s \(--timeout\); expected an answer in time",
            server.address,
            tmp_path / "a.mha",
            tmp_path / "out",
            "--timeout=0.2",
        )
        assert time.monotonic() - begin < 2
        assert len(server.asked) == 1  # a busy server does not get the same work once more
        gone.set()

    class Slow(grpc_server.Service):
        def Predict(self, request, context):
            time.sleep(0.6)
            return super().Predict(request, context)

    with grpc_server.serving(Slow(models)) as address:
        refused(
            "DEADLINE_EXCEEDED, .*; expected an answer in time",
            address,
            tmp_path / "a.mha",
            tmp_path / "out",
            "--protocol=grpc",
            "--timeout=0.2",
        )
    assert written(tmp_path / "out") == []


def in_pieces(begin, rest, pause=0.05):
    """A fault: an answer that comes one byte at a time, from its `begin` on."""

    def fault(handler):
        handler.wfile.write(begin)
        for _ in range(400):
            handler.wfile.write(rest)
            handler.wfile.flush()
            time.sleep(pause)

    return fault


OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    "begin, rest",
    [
        (b"", b"H"),
        (OK + b"X-Slow: ", b"x"),
        (OK, b"A: b\r\n"),
        (OK + b"Content-Length: 300\r\n\r\n", b" "),
        (OK + b"Connection: close\r\n\r\n", b" "),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"0"),
        (b"HTTP/1.1 500 Oh\r\nContent-Length: 9000\r\n\r\n", b" "),
    ],
)
def test_the_deadline_is_for_the_whole_answer(models, tmp_path, refused, begin, rest):
    """No pause is longer than the limit."""
    volume(tmp_path / "a.mha")
    with Server(models, [in_pieces(begin, rest)]) as server:
        start = time.monotonic()
        told = r"a.mha: .*nothing, within 0.5 s \(--timeout\); expected an answer in time"
        refused(told, server.address, tmp_path / "a.mha", tmp_path / "out", "--timeout=0.5")
        assert time.monotonic() - start < 4  # with the start of a process that reads
    assert len(server.asked) == 1 and written(tmp_path) == ["a.mha"]


def endless(begin, part):
    def fault(handler):
        handler.wfile.write(begin)
        while True:
            handler.wfile.write(part)

    return fault


@pytest.mark.parametrize(
    "begin, part, told",
    [
        (OK + b"Content-Length: 999999999999\r\n\r\n", b" ", r"answers with 999999999999 bytes"),
        (OK + b"Connection: close\r\n\r\n", b" " * 9999, r"answers with \d{7} bytes or more"),
        (
            OK + b"Transfer-Encoding: chunked\r\n\r\n",
            b"ffff\r\n" + b"1" * 65535 + b"\r\n",
            r"answers with \d{7} bytes or more; expected \d{7} at most for this request",
        ),
        (
            b'HTTP/1.1 400 Bad\r\nConnection: close\r\n\r\n{"error": "no \\"image\\" ',
            b"of mine ",
            r'answers 400, no "image" of mine .{381}\.\.\.; expected an image',
        ),
        (
            b"HTTP/1.1 500 Oh no\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"ffff\r\n" + b"1" * 65535 + b"\r\n",
            r"answers 500, Oh no; expected an answer",
        ),
    ],
)
def test_no_more_is_read_than_an_answer_may_have(models, tmp_path, refused, begin, part, told):
    volume(tmp_path / "a.mha")
    with Server(models, [endless(begin, part)]) as server:
        refused(told, server.address, tmp_path / "a.mha", tmp_path / "out", "--timeout=60")
    assert len(server.asked) == 1 and written(tmp_path) == ["a.mha"]


def test_what_no_tensorflow_serving_answers(models, tmp_path, refused):
    """Compressed bytes that would become gigabytes, JSON that is nested, no JSON."""
    volume(tmp_path / "a.mha")
    bodies = {
        b"Content-Encoding: gzip\r\n": gzip.compress(b" " * 10_000_000),
        b"X: nested\r\n": b"[" * 100_000,
        b"X: long\r\n": b"9" * 100_000,
        b"X: text\r\n": b"<html>",
        b"X: other\r\n": b'{"outputs": {"label_bytes": [{"b64": "\u00e9"}]}}',
    }
    faults = [
        endless_once(OK + header + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        for header, body in bodies.items()
    ]
    with Server(models, faults) as server:
        for _ in bodies:
            told = "a.mha: .*answers, but not as TensorFlow Serving does; expected its REST port"
            refused(told, server.address, tmp_path / "a.mha", tmp_path / "out")


def endless_once(answer):
    """A fault: an answer, after which the connection ends."""

    def fault(handler):
        handler.wfile.write(answer)
        handler.wfile.flush()
        handler.close_connection = True
        handler.connection.shutdown(socket.SHUT_WR)

    return fault


def test_an_answer_that_is_cut_off_is_asked_for_again(models, tmp_path):
    volume(tmp_path / "a.mha")
    half = endless_once(OK + b"Content-Length: 3000\r\n\r\n{")
    with Server(models, [half, half]) as server:
        send(server.address, tmp_path / "a.mha", tmp_path / "out")
        assert len(server.asked) == 3
    assert written(tmp_path / "out") == ["a.nii.gz"]


def says(message):
    def fault(handler):
        raise rest_server.Refused(400, message)

    return fault


EVIL = "no \x1b[2J\x1b]0;title\x07\x9b31m\u202egnp.exe\ud800\u200b\r\nerror: \x1b[31mfine\x00"


def test_what_a_server_says_is_printed_without_escape_codes(models, tmp_path, refused, monkeypatch):
    volume(tmp_path / "a.mha")
    with Server(models, [says(EVIL)]) as server:
        told = "answers 400, no gnp.exe error: fine; expected an image"
        error = refused(told, server.address, tmp_path / "a.mha", tmp_path / "out")
        assert error.isprintable() or error.strip().isprintable()

        def metadata(model):
            return {EVIL: serving.Signature({}, {})}

        monkeypatch.setattr(serving.Rest, "signatures", metadata)
        told = "has the signatures no gnp.exe error: fine; expected serving_bytes"
        refused(told, server.address, tmp_path / "a.mha", tmp_path / "out")


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_no_images_are_sent_to_a_server_that_does_not_answer(models, tmp_path, protocol, refused):
    """One after another each would be tried for half a minute, or for the whole timeout."""
    for k in range(20):
        volume(tmp_path / "scans" / f"{k:02d}.mha")

    class Busy(grpc_server.Service):
        asked = 0

        def Predict(self, request, context):
            if request.model_spec.signature_name == export.CARD_SIGNATURE:
                return super().Predict(request, context)
            Busy.asked += 1
            if Busy.asked not in (1, 2, 5):
                context.abort(grpc_server.CODES[503], "full")
            return super().Predict(request, context)

    def fine(handler):
        pass

    faults = [fine, fine, *[unavailable] * 2, fine, *[unavailable] * 50]
    arguments = (tmp_path / "scans", tmp_path / "out", "--retries=0", f"--protocol={protocol}")
    told = "5 of 20 images failed and 12 were not sent, since the server did not answer 3 times"
    if protocol == "rest":
        with Server(models, faults) as server:
            error = refused(told, server.address, *arguments)
            assert len(server.asked) <= 9
    else:
        with grpc_server.serving(Busy(models)) as address:
            error = refused(told, address, *arguments)
    assert error.count("full (1 tries); expected a server that answers") == 5
    assert len(written(tmp_path / "out")) == 3


def test_no_images_are_sent_to_a_server_that_hangs(models, tmp_path, refused):
    for k in range(20):
        volume(tmp_path / "scans" / f"{k:02d}.mha")
    gone = threading.Event()
    with Server(models, [lambda handler: gone.wait(20)] * 20) as server:
        told = "images failed and 1[0-9] were not sent, since the server did not answer 3 times"
        arguments = ("--timeout=0.3", "--requests_in_flight=2")
        refused(told, server.address, tmp_path / "scans", tmp_path / "out", *arguments)
        gone.set()


def test_connections_are_kept(models, tmp_path):
    for k in range(8):
        volume(tmp_path / "scans" / f"{k}.mha")
    with Server(models) as server:
        arguments = (tmp_path / "scans", tmp_path / "out", "--requests_in_flight=2")
        send(server.address, *arguments)
        assert len(server.asked) == 8 and 1 <= len(server.connections) <= 2


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_a_voxel_that_is_no_number_is_refused_by_the_graph(models, tmp_path, protocol, refused):
    """Float64 holds what float32, of which models compute, does not."""
    image = sitk.Cast(volume(tmp_path / "fine.mha"), sitk.sitkFloat64)
    image[1, 2, 3] = image[0, 0, 0] = 1e39
    images.write(tmp_path / "a.mha", image)
    with served(protocol, models) as address:
        arguments = (address, tmp_path / "a.mha", tmp_path / "out", f"--protocol={protocol}")
        error = refused(
            r"a.mha: 2 of 210 voxels are NaN, infinite or beyond 3.4e\+38; expected", *arguments
        )
        kind = serving.Rest if protocol == "rest" else serving.Grpc
        told = (
            r"image has 2 voxels that are NaN or infinite as float32; expected finite numbers\.\]"
            ".*; expected an image that this model takes"
        )
        model = contextlib.closing(kind(address, "fetal_head", None, 60))
        with model as held, pytest.raises(errors.UserError, match=told):
            held.predict(serving.Request("serving_bytes", array(image), ["label_bytes"]))
    assert error.count("\n") == 1 and written(tmp_path / "out") == []


def test_probabilities_that_are_no_numbers_are_named(models, tmp_path, refused, monkeypatch):
    """Those of an export of before; the label is of no use then."""
    volume(tmp_path / "a.mha")
    predict = serving.Rest.predict

    def damaged(self, request):
        assert request.most < 5_000_000
        reply = predict(self, request)
        values = np.frombuffer(reply["probability_bytes"], np.float32).copy()
        values[[3, 9]] = np.nan
        return reply | {"probability_bytes": values.tobytes()}

    monkeypatch.setattr(serving.Rest, "predict", damaged)
    with Server(models) as server:
        for wanted in ("--probabilities", "--noprobabilities"):
            told = "a.mha: 2 of 210 values of probability_bytes .* are NaN or infinite; expected"
            refused(told, server.address, tmp_path / "a.mha", tmp_path / "out", wanted)
    assert written(tmp_path) == ["a.mha"]


@pytest.fixture(scope="module")
def told_models(tmp_path_factory):
    """Models that tell what they were trained on, and some that tell it wrongly."""
    root = tmp_path_factory.mktemp("told")
    card = {
        "system": "multi_organ",
        "labels": {1: "liver", 2: "spleen \x1b[31m"},
        "spacing": [[1.2, 0.7, 0.5], [1.3, 0.8, 0.6]],
        "orientation": "LPS",
    }
    cards = {
        "ct": card,
        "unknown": card | {"system": "of_another_package"},
        "turned": card | {"orientation": "RAS"},
        "damaged": card | {"spacing": [[1, 2]]},
    }
    for name, content in cards.items():
        toy = export.Exported(bright(100.0), {}, content)
        export.write(root / name, toy)
    models = rest_server.Models({name: root / name for name in cards})
    yield models
    models.close()


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_the_client_warns_as_predict_does(told_models, tmp_path, protocol, caplog, capsys, refused):
    scans = {
        "ct": sitk.GetImageFromArray(np.linspace(-1000, 1500, 210).reshape(5, 6, 7)),
        "grey": sitk.GetImageFromArray(np.linspace(0, 255, 210).reshape(5, 6, 7)),
        "empty": sitk.GetImageFromArray(np.full((5, 6, 7), 40, np.int16)),
        "thick": sitk.GetImageFromArray(np.linspace(-1000, 1500, 210).reshape(5, 6, 7)),
    }
    (tmp_path / "scans").mkdir()
    for name, image in scans.items():
        image.SetSpacing((0.5, 0.75, 4 if name == "thick" else 1.25))
        images.write(tmp_path / "scans" / f"{name}.mha", image)
    with served(protocol, told_models) as address:

        def warnings(model):
            caplog.clear()
            output = tmp_path / model
            send(address, tmp_path / "scans", output, f"--protocol={protocol}", model=model)
            lines = [line for line in caplog.messages if "scans" in line]
            return sorted(line.rpartition("scans/")[2] for line in lines)

        thick = "thick.mha: voxels of 4 x 0.75 x 0.5 mm (z, y, x); the model was trained on"
        empty = "empty.mha: all voxels are 40, there is nothing to be seen in it"
        grey = "grey.mha: intensities from 0 to 255 do not look like a CT in HU"
        told = warnings("ct")
        assert [line[: len(t)] for line, t in zip(told, (empty, grey, thick))] == [
            *(empty, grey, thick)
        ]
        assert len(told) == 3 and "labels: 1 liver, 2 spleen\n" in capsys.readouterr().out
        assert [line[:5] for line in warnings("unknown")] == ["empty", "thick"]
        arguments = (address, tmp_path / "scans", tmp_path / "out", f"--protocol={protocol}")
        told = "turned: a model of volumes in the orientation 'RAS'; expected LPS"
        refused(told, *arguments, model="turned")
        refused("its card cannot be read; expected one of ours", *arguments, model="damaged")


@pytest.fixture(scope="module")
def models_of_millimetres(tmp_path_factory):
    """A toy that sees volumes on a grid of 2 x 1 x 1 mm: brighter than 10 mm times the voxel's."""
    root = tmp_path_factory.mktemp("millimetres") / "head"

    def of_spacing(image, spacing):
        return bright(10.0 * tf.reduce_prod(spacing))["serving_default"](image)

    card = {"system": "fetal_head", "labels": {1: "head"}, "spacing": [[2, 1, 1]] * 2}
    card |= {"orientation": "LPS", "grid": [2, 1, 1]}
    spaced = export.Spaced({"serving_default": of_spacing}, (2, 1, 1))
    export.write(root, export.Exported(bright(20.0), {}, card, spaced=spaced))
    models = rest_server.Models({"head": root})
    yield models
    models.close()


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_the_client_sends_the_spacing_of_each_image(
    models_of_millimetres, tmp_path, protocol, caplog
):
    (tmp_path / "scans").mkdir()
    voxels = np.arange(210, dtype=np.uint8).reshape(5, 6, 7)
    for name, spacing in ("fine", (0.5, 1, 2)), ("coarse", (2, 3, 2.5)):
        image = sitk.GetImageFromArray(voxels)
        image.SetSpacing(spacing)
        images.write(tmp_path / "scans" / f"{name}.mha", image)
    with served(protocol, models_of_millimetres) as address:
        words = f"--protocol={protocol}", "--probabilities"
        send(address, tmp_path / "scans", tmp_path / "out", *words, model="head")
    for name, threshold in ("fine", 10), ("coarse", 150):
        label = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out" / f"{name}.nii.gz")))
        np.testing.assert_array_equal(label, voxels > threshold)
    assert "the model was trained on" not in caplog.text  # any spacing will do


def test_a_model_without_a_card_is_served_with_a_warning(models, tmp_path, caplog, monkeypatch):
    signatures = serving.Rest.signatures

    def of_before(self):
        return {name: x for name, x in signatures(self).items() if name != "card"}

    monkeypatch.setattr(serving.Rest, "signatures", of_before)
    volume(tmp_path / "a.mha")
    with Server(models) as server:
        send(server.address, tmp_path / "a.mha", tmp_path / "out")
    assert "fetal_head: this export tells nothing of its training" in caplog.text
    assert written(tmp_path / "out") == ["a.nii.gz"]


def test_the_client_needs_no_tensorflow():
    modules = helpers.modules_after(
        "from tf_autoctx import serving\n"
        "from tf_autoctx.commands import client, sending, served_card\n"
        "from tf_autoctx.systems.shared import registry\n"
        "import numpy\n"
        "registry.declarations()['multi_organ'].check_voxels('a', numpy.zeros(2))\n"
    )
    assert not {"tensorflow", "keras", "scipy", "matplotlib"} & modules


def test_grpc_answers_are_bounded(models, tmp_path, refused):
    class Long(grpc_server.Service):
        def Predict(self, request, context):
            answer = super().Predict(request, context)
            if "label_bytes" in answer.outputs:
                answer.outputs["label_bytes"].string_val[0] = b"1" * 5_000_000
            return answer

    volume(tmp_path / "a.mha")
    with grpc_server.serving(Long(models)) as address:
        arguments = (address, tmp_path / "a.mha", tmp_path / "out", "--protocol=grpc")
        refused(r"larger than max.*; expected \d{7} bytes at most for this request", *arguments)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """Files of a certificate of 127.0.0.1 that nobody signed, and its key."""
    if not shutil.which("openssl"):
        pytest.skip("there is no openssl")
    folder = tmp_path_factory.mktemp("tls")
    files = folder / "certificate.pem", folder / "key.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1"
    command += " -addext subjectAltName=IP:127.0.0.1 -out certificate.pem -keyout key.pem"
    subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    return files


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_tls(models, tmp_path, certificate, monkeypatch, refused, protocol):
    volume(tmp_path / "a.mha")
    with contextlib.ExitStack() as stack:
        if protocol == "rest":
            server = Server(models)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
            address = stack.enter_context(server).address
            server.handle_error = lambda *_: None  # of handshakes
        else:
            service = grpc_server.serving(grpc_server.Service(models), certificate=certificate)
            address = stack.enter_context(service)
        where = (f"https://{address}", tmp_path / "a.mha", tmp_path / "out")
        arguments = (*where, f"--protocol={protocol}", "--retries=0")
        refused("no secure connection .*certificate|UNAVAILABLE, .*CERTIFICATE_VERIFY", *arguments)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
        send(*arguments)
    assert written(tmp_path / "out") == ["a.nii.gz"]


def test_a_restart_of_the_server_loses_and_doubles_nothing(models, tmp_path, monkeypatch):
    scans = {
        f"case_{k:02d}": volume(tmp_path / "scans" / f"case_{k:02d}.mha", k) for k in range(12)
    }
    results, write = [], images.write

    def noted(path, image):
        results.append(path.name)
        write(path, image)

    monkeypatch.setattr(images, "write", noted)
    first, second = Server(models), None

    def die(handler):
        nonlocal second
        first.kill()
        time.sleep(0.15)
        second = Server(models, port=first.server_address[1])
        second.__enter__()

    first.faults = [lambda handler: None] * 4 + [die]
    with first:
        send(first.address, tmp_path / "scans", tmp_path / "out", "--requests_in_flight=3")
    with second:
        assert 4 < len(first.asked) < 12 and len(second.asked) >= 12 - len(first.asked)
    assert sorted(results) == written(tmp_path / "out") == [f"{name}.nii.gz" for name in scans]
    for name, image in scans.items():
        label = array(tmp_path / "out" / f"{name}.nii.gz")
        np.testing.assert_array_equal(label, array(image) > 120)


def test_several_requests_are_in_flight(models, tmp_path):
    for k in range(6):
        volume(tmp_path / "scans" / f"{k}.mha", k)
    together = threading.Barrier(3)  # passed by three requests at once
    with Server(models, [lambda handler: together.wait(20)] * 6) as server:
        send(server.address, tmp_path / "scans", tmp_path / "out", "--requests_in_flight=3")
    assert len(written(tmp_path / "out")) == len(server.asked) == 6 and not together.broken


def test_a_half_done_folder_goes_on(models, tmp_path, capsys, refused):
    for name in "abc":
        volume(tmp_path / "scans" / f"{name}.mha")
    with Server(models) as server:
        send(server.address, tmp_path / "scans" / "a.mha", tmp_path / "out")
        before = (tmp_path / "out" / "a.nii.gz").stat().st_mtime_ns
        send(server.address, tmp_path / "scans", tmp_path / "out")
        assert (
            len(server.asked) == 3
            and "1 of 3 images have their results already" in capsys.readouterr().out
        )
        send(
            server.address, tmp_path / "scans", tmp_path / "out", "--probabilities"
        )  # these are missing
        assert len(server.asked) == 6 and len(written(tmp_path / "out")) == 6
        assert (tmp_path / "out" / "a.nii.gz").stat().st_mtime_ns == before
        send(
            server.address,
            tmp_path / "scans",
            tmp_path / "out",
            "--version=1",
            "--overwrite",
        )
        assert (
            len(server.asked) == 9 and (tmp_path / "out" / "a.nii.gz").stat().st_mtime_ns > before
        )
        volume(tmp_path / "scans" / "d.nii.gz")
        refused(
            "d.nii.gz: is an input image and would be replaced",
            server.address,
            tmp_path / "scans" / "d.nii.gz",
            tmp_path / "scans",
        )


def test_results_of_an_image_or_a_model_that_has_changed_are_made_anew(models, tmp_path, capsys):
    for name in "ab":
        volume(tmp_path / "scans" / f"{name}.mha")
    with Server(models) as server:
        arguments = (server.address, tmp_path / "scans", tmp_path / "out")
        send(*arguments)
        image = volume(tmp_path / "scans" / "b.mha", seed=1)
        send(*arguments)
        assert "1 of 2 results are of images that have changed since" in capsys.readouterr().out
        assert len(server.asked) == 3
        np.testing.assert_array_equal(array(tmp_path / "out" / "b.nii.gz"), array(image) > 120)
        send(*arguments, "--version=1")  # its threshold is another one
        assert len(server.asked) == 5
        send(*arguments, "--version=1")
        assert len(server.asked) == 5


def test_the_folder_of_the_results_is_the_clients_own(models, tmp_path, refused):
    volume(tmp_path / "a.mha")
    process = running.holding(tmp_path / "out")
    try:
        with Server(models) as server:
            told = f"another process .{process.pid} on .* is at work in it"
            refused(told, server.address, tmp_path / "a.mha", tmp_path / "out")
        assert server.asked == []
    finally:
        process.kill()
        process.wait()


def test_a_folder_of_folders(models, tmp_path, refused):
    for name in ("one/a.mha", "two/a.nrrd"):
        volume(tmp_path / "in" / name, seed=len(name))
    with Server(models) as server:
        for _ in range(2):  # results are no images
            send(server.address, tmp_path / "in", tmp_path / "in" / "out", "--probabilities")
        assert len(server.asked) == 2
        for name in ("one/a.mha", "two/a.nrrd"):
            label = array((tmp_path / "in" / "out" / name).with_suffix(".nii.gz"))
            np.testing.assert_array_equal(label, array(tmp_path / "in" / name) > 120)
        refused(
            "is the folder of the input images", server.address, tmp_path / "in", tmp_path / "in"
        )
        volume(tmp_path / "in" / "probabilities" / "one" / "a.mha")
        refused(
            "is a result of both",
            server.address,
            tmp_path / "in",
            tmp_path / "out",
            "--probabilities",
        )


def test_the_client_is_a_script(models, tmp_path):
    volume(tmp_path / "a.mha")
    with Server(models) as server:
        where = [
            f"--server={server.address}",
            f"--input={tmp_path / 'a.mha'}",
            f"--output={tmp_path / 'out'}",
        ]
        done = running.script("serving/client.py", "--model=fetal_head", *where)
        assert done.returncode == 0 and written(tmp_path / "out") == ["a.nii.gz"], done.stderr
        failed = running.script("serving/client.py", "--model=heart", *where)
    assert failed.returncode == 1 and failed.stderr.count("\n") == 1
    assert failed.stderr.startswith("error: 127.0.0.1")


def ask(server, path, request=None):
    """(status, JSON) of the stand-in."""
    data = None if request is None else json.dumps(request).encode()
    try:
        with urllib.request.urlopen(f"http://{server.address}{path}", data, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_the_stand_in_has_both_formats_of_rest(models):
    image = np.random.default_rng(0).normal(110, 30, (2, 3, 4, 5, 1)).astype(np.float32)
    predict = "/v1/models/fetal_head:predict"
    with Server(models) as server:
        server.faults = []
        _, columns = ask(
            server,
            predict,
            {"signature_name": "serving_default", "inputs": {"image": image.tolist()}},
        )
        _, alone = ask(server, predict, {"signature_name": "", "inputs": image.tolist()})
        _, rows = ask(server, predict, {"signature_name": "", "instances": image.tolist()})
        _, named = ask(
            server,
            predict,
            {"signature_name": "", "instances": [{"image": x.tolist()} for x in image]},
        )
        np.testing.assert_array_equal(columns["outputs"]["label"], image > 120)
        assert columns == alone and rows == named
        for k in range(2):
            assert rows["predictions"][k]["label"] == columns["outputs"]["label"][k]
        only = {"signature_name": "", "instances": image.tolist()}
        _, one = ask(server, "/v1/models/multi_organ:predict", only)
        assert (
            np.shape(one["predictions"]) == image.shape
        )  # an output without others goes without its name
        for request, message in (
            (
                {"signature_name": "x", "inputs": [1]},
                'Serving signature name: "x" not found in signature def',
            ),
            (
                {"signature_name": "", "inputs": {"volume": 1}},
                "Missing named input: image in 'inputs' object.",
            ),
            ({"signature_name": ""}, "Missing 'inputs' or 'instances' key"),
            ({"signature_name": "", "inputs": [["a"]]}, "is not of expected type: float"),
            (
                {"signature_name": "", "inputs": [[1, 2], [3]]},
                "Encountered list at unexpected size",
            ),
            ({"signature_name": "", "inputs": [1], "instances": [1]}, "only one of"),
        ):
            status, answer = ask(server, predict, request)
            assert status == 400 and message in answer["error"]
        assert (
            ask(server, "/v1/models/heart:predict", {"signature_name": "", "inputs": [1]})[0] == 404
        )
        assert ask(server, "/v1/models/fetal_head:regret", {})[0] == 400


def test_the_stand_in_watches_its_folder(folders, tmp_path):
    folder = tmp_path / "fetal_head"
    shutil.copytree(folders["fetal_head"] / "1", folder / "1")
    models = rest_server.Models({"fetal_head": folder})
    with Server(models) as server:

        def versions():
            _, status = ask(server, "/v1/models/fetal_head")
            assert {version["state"] for version in status["model_version_status"]} == {"AVAILABLE"}
            return [version["version"] for version in status["model_version_status"]]

        assert versions() == ["1"]
        (folder / "3").mkdir()  # half written
        shutil.copytree(folders["fetal_head"] / "2", folder / ".partial-2")
        assert versions() == ["1"]
        (folder / ".partial-2").rename(folder / "2")
        assert versions() == ["2", "1"]
        assert ask(server, "/v1/models/fetal_head/metadata")[1]["model_spec"]["version"] == "2"
        assert ask(server, "/v1/models/fetal_head/versions/3")[0] == 404
        shutil.copytree(folders["fetal_head"] / "1", folder / "4")
        assert versions() == ["4", "2"]  # the two latest
    models.close()


def readme(language):
    """The examples of serving/README.md in a language."""
    return re.findall(
        rf"(?s)```{language}\n(.*?)```", (running.ROOT / "serving" / "README.md").read_text("utf-8")
    )


def test_python_examples_of_the_readme(models):
    rest, grpc = readme("python")[-2:]  # the first turns a file, see test_orientation.py
    with Server(models) as server, grpc_server.serving(grpc_server.Service(models)) as address:
        for example, written_for, here in (
            (rest, "localhost:8501", server.address),
            (grpc, "localhost:8500", address),
        ):
            assert written_for in example
            names = {}
            exec(example.replace(written_for, here), names)
            np.testing.assert_array_equal(names["label"], names["volume"] > 120)


@pytest.mark.skipif(not shutil.which("curl"), reason="there is no curl")
def test_curl_examples_of_the_readme_and_the_health_check(folders):
    server = "tests/rest_server.py --models=fetal_head=runs/fetal_head/saved_model --port=8501"
    assert f"python {server}" in (running.ROOT / "serving" / "README.md").read_text("utf-8")
    command = (
        server.replace("runs/fetal_head/saved_model", str(folders["fetal_head"]))
        .replace("8501", "0")
        .split()
    )
    stand_in = subprocess.Popen(
        [sys.executable, *command],
        cwd=running.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
    )
    try:
        address = stand_in.stdout.readline().strip()

        def bash(script):
            script = re.sub(
                "localhost:8501|127.0.0.1/8501", lambda at: address.replace(":", at[0][-5]), script
            )
            return subprocess.run(
                ["bash", "-c", script], capture_output=True, encoding="utf-8", timeout=60
            )

        state, predict, card = (bash(example).stdout for example in readme("bash"))
        assert json.loads(json.loads(card)["predictions"][0])["system"] == "fetal_head"
        assert state.count('"AVAILABLE"') == 3 and "serving_bytes" in state
        label = np.frombuffer(
            base64.b64decode(json.loads(predict)["outputs"]["label_bytes"][0]["b64"]), np.uint8
        )
        assert label.size == 24 * 32 * 40 and 0 < label.mean() < 1
        compose = (running.ROOT / "serving" / "docker-compose.yml").read_text()
        check = json.loads(re.search(r'bash, -c, (".*")\]', compose)[1])  # YAML's quotes are JSON's
        assert bash(check).returncode == 0
        assert bash(check.replace("fetal_head", "embryo")).returncode == 1
    finally:
        stand_in.kill()
        stand_in.wait()
    assert bash(check).returncode == 1


def test_warm_up_requests_can_be_batched(folders, models):
    """As batching.config has it; a server does not load a model whose warm-up fails."""
    for name, signatures in (("multi_organ", 5), ("renderer", 3)):
        version, model = models.find(name)
        records = list(tf.data.TFRecordDataset(str(folders[name] / str(version) / export.WARM_UP)))
        assert len(records) == signatures == len(model.signatures)
        for record in records:
            request = prediction_log_pb2.PredictionLog.FromString(
                record.numpy()
            ).predict_log.request
            inputs = {key: tf.make_ndarray(tensor) for key, tensor in request.inputs.items()}
            assert {value.shape[:1] for value in inputs.values()} == {(1,)}
            answer = models.run(model, request.model_spec.signature_name, inputs)
            assert {value.shape[:1] for value in answer.values()} == {(1,)}


def test_the_configuration_is_tensorflow_serving_s():
    serving = running.ROOT / "serving"
    config = text_format.Parse(
        (serving / "models.config").read_text(), model_server_config_pb2.ModelServerConfig()
    )
    compose = (serving / "docker-compose.yml").read_text()
    names = [model.name for model in config.model_config_list.config]
    assert names == ["fetal_head", "multi_organ", "embryo", "renderer"]
    for model in config.model_config_list.config:
        assert model.model_version_policy.latest.num_versions == rest_server.KEPT
        assert model.base_path == f"/runs/{model.name}/saved_model"
    assert "runs}:/runs:ro" in compose
    for name in ("models.config", "batching.config"):
        assert f"/serving/{name}" in compose and (serving / name).exists()
    readme = (serving / "README.md").read_text("utf-8")
    (policy,) = re.findall("    model_version_policy.*\n    version_labels.*", readme)
    pinned = text_format.Parse(policy, model_server_config_pb2.ModelConfig())
    assert (
        list(pinned.model_version_policy.specific.versions) == [1, 2]
        and pinned.version_labels["stable"] == 1
    )
