"""Segments images with a model that TensorFlow Serving holds, each on its own grid.

  python serving/client.py --model=fetal_head --input=scan.nii.gz --output=results
  python serving/client.py --model=fetal_head --input=scans --output=results --probabilities --requests_in_flight=4
  python serving/client.py --model=renderer --input=frames --output=results --protocol=grpc --server=gpu7:8500

Writes NAME.nii.gz (label values; of PNG, JPEG and TIFF images NAME.png of 0 and 255) and with --probabilities
probabilities/NAME.nii.gz (float32; where the model has several, in the order of its model_card.json, they are the values
of one voxel). A result appears whole or not at all, and images that have theirs are passed over, so that the same command
goes on with a folder that was left half done. If an image fails, the others are done all the same, and the exit code is 1.
"""

import base64
import concurrent.futures
import http.client
import json
import pathlib
import random
import sys
import time
import urllib.parse

import numpy as np
from absl import app, flags, logging

from tf_autoctx import errors
from tf_autoctx.data import images

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "model", None, "Its name on the server, see serving/models.config.", required=True
)
flags.DEFINE_string(
    "input", None, "Image file, DICOM series folder, or folder of folders of images.", required=True
)
flags.DEFINE_string("output", None, "Folder for the results; made if it is missing.", required=True)
flags.DEFINE_enum(
    "protocol", "rest", ["rest", "grpc"], "grpc needs the extra: pip install 'tf_autoctx[serving]'."
)
flags.DEFINE_string(
    "server", None, "host:port. Default: localhost:8501 for rest, localhost:8500 for grpc."
)
flags.DEFINE_integer(
    "version", None, "Of the model. Default: the highest that the server holds.", 0
)
flags.DEFINE_bool("probabilities", False, "Write the probability too (float32).")
flags.DEFINE_integer("requests_in_flight", 1, "Images that are sent at once.", 1)
flags.DEFINE_float(
    "timeout",
    3600,
    "Seconds to wait for the answer to one request, the server's queue included.",
    0.001,
)
flags.DEFINE_integer(
    "retries", 6, "After connection errors and 503 (UNAVAILABLE); the waits double from 0.5 s.", 0
)
flags.DEFINE_bool("overwrite", False, "Replace results that are there already.")

BACKOFF, LONGEST_WAIT = 0.5, 30.0  # seconds
QUOTED = 400  # characters of a server's message: it may quote the whole request
# What the bytes signatures can read; other pixel types travel as float32, which is what the models compute with.
TYPES = ("uint8", "int8", "uint16", "int16", "int32", "float32", "float64")
# Codes of both protocols, and what a user can do.
CODES = {
    400: "INVALID_ARGUMENT",
    404: "NOT_FOUND",
    413: "RESOURCE_EXHAUSTED",
    429: "RESOURCE_EXHAUSTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
EXPECTED = {
    "INVALID_ARGUMENT": "an image that this model takes, see its model_card.json",
    "NOT_FOUND": "a --model and --version that it holds",
    "RESOURCE_EXHAUSTED": "a smaller image, fewer requests at once, or higher limits of the server",
    "DEADLINE_EXCEEDED": "an answer in time, give the server a longer limit or fewer --requests_in_flight",
}


class Unavailable(Exception):
    """Nobody answers, or not now; the same request may succeed later."""


def refused(server, code, number, message):
    """The exception for a server's refusal; `number` is the protocol's own name of the `code`."""
    message = " ".join(message.split())
    message = message[:QUOTED] + "..." * (len(message) > QUOTED)
    if code == "UNAVAILABLE":
        return Unavailable(f"{server}: {number}, {message or 'no message'}")
    expected = EXPECTED.get(code, "an answer, see the server's log")
    return errors.UserError(
        f"{server}: answers {number}, {message or 'no message'}; expected {expected}."
    )


class Rest:
    """A model behind TensorFlow Serving's REST API.

    Args:
      server: host:port.
      model: its name.
      version: of it; None: the highest.
      timeout: seconds to wait for an answer.
    """

    def __init__(self, server, model, version, timeout):
        self.server, self.timeout = server, timeout
        self.path = f"/v1/models/{urllib.parse.quote(model, safe='')}"
        if version is not None:
            self.path += f"/versions/{version}"

    def signatures(self):
        """{signature: {input: number of its axes}}.

        Raises:
          Unavailable: connection error or 503.
          UserError: every other failure.
        """
        answer = self._request("GET", "/metadata")
        try:
            return {
                name: {
                    key: len(info["tensor_shape"].get("dim", ()))
                    for key, info in signature["inputs"].items()
                }
                for name, signature in answer["metadata"]["signature_def"]["signature_def"].items()
                if "inputs" in signature
            }
        except (KeyError, TypeError, AttributeError):
            raise self._not_serving() from None

    def predict(self, signature, voxels, outputs):
        """{output: bytes} of one image. Raises as `signatures` does."""
        inputs = {
            "image_bytes": [{"b64": base64.b64encode(voxels.tobytes()).decode()}],
            "shape": [voxels.shape],
            "dtype": [voxels.dtype.name],
        }
        answer = self._request(
            "POST", ":predict", json.dumps({"signature_name": signature, "inputs": inputs})
        )
        try:
            return {name: base64.b64decode(answer["outputs"][name][0]["b64"]) for name in outputs}
        except (KeyError, TypeError, IndexError, ValueError):
            raise self._not_serving() from None

    def _request(self, method, path, body=None):
        connection = http.client.HTTPConnection(self.server, timeout=self.timeout)
        try:
            try:
                connection.connect()
            except OSError as error:
                raise Unavailable(f"{self.server}: {error.strerror or error}") from None
            try:
                try:
                    connection.request(
                        method, self.path + path, body, {"Content-Type": "application/json"}
                    )
                except (BrokenPipeError, ConnectionResetError):
                    pass  # who refuses a large request may answer before it is sent
                response = connection.getresponse()
                status, reason, content = response.status, response.reason, response.read()
            except TimeoutError:
                raise refused(
                    self.server, CODES[504], "nothing", f"within {self.timeout:g} s (--timeout)"
                ) from None
            except (OSError, http.client.HTTPException) as error:
                raise Unavailable(f"{self.server}: the connection broke ({error})") from None
        finally:
            connection.close()
        try:
            answer = json.loads(content)
        except ValueError:  # not from TensorFlow Serving itself
            answer = None
        if status != 200:
            message = answer.get("error", reason) if isinstance(answer, dict) else reason
            raise refused(self.server, CODES.get(status, ""), status, str(message))
        if not isinstance(answer, dict):
            raise self._not_serving()
        return answer

    def _not_serving(self):
        return errors.UserError(
            f"{self.server}: answers, but not as TensorFlow Serving does; expected its REST port."
        )


class Grpc:
    """A model behind TensorFlow Serving's gRPC API; as `Rest`."""

    def __init__(self, server, model, version, timeout):
        try:
            import grpc
            import tensorflow as tf
            from tensorflow_serving.apis import (
                get_model_metadata_pb2,
                predict_pb2,
                prediction_service_pb2_grpc,
            )
        except ImportError as error:
            raise errors.UserError(
                f"--protocol=grpc: {error.name} is not installed; run pip install 'tf_autoctx[serving]', or use rest."
            ) from None
        self.grpc, self.tf, self.messages, self.metadata = (
            grpc,
            tf,
            predict_pb2,
            get_model_metadata_pb2,
        )
        options = {
            "grpc.max_send_message_length": -1,  # the default is 4 MiB
            "grpc.max_receive_message_length": -1,
            "grpc.enable_http_proxy": 0,  # as with rest
            "grpc.initial_reconnect_backoff_ms": 100,  # the waits are ours
            "grpc.max_reconnect_backoff_ms": 1000,
        }
        self.stub = prediction_service_pb2_grpc.PredictionServiceStub(
            grpc.insecure_channel(server, options=list(options.items()))
        )
        self.server, self.model, self.version, self.timeout = server, model, version, timeout

    def signatures(self):
        request = self._of_model(
            self.metadata.GetModelMetadataRequest(metadata_field=["signature_def"])
        )
        answer = self._call(self.stub.GetModelMetadata, request)
        signatures = self.metadata.SignatureDefMap()
        answer.metadata["signature_def"].Unpack(signatures)
        return {
            name: {key: len(info.tensor_shape.dim) for key, info in signature.inputs.items()}
            for name, signature in signatures.signature_def.items()
        }

    def predict(self, signature, voxels, outputs):
        # All outputs: a server that batches does so by the exact set of what is asked for.
        request = self._of_model(self.messages.PredictRequest())
        request.model_spec.signature_name = signature
        for name, value, dtype in (
            ("image_bytes", [voxels.tobytes()], self.tf.string),
            ("shape", [voxels.shape], self.tf.int32),
            ("dtype", [voxels.dtype.name], self.tf.string),
        ):
            request.inputs[name].CopyFrom(self.tf.make_tensor_proto(value, dtype))
        answer = self._call(self.stub.Predict, request)
        if not all(name in answer.outputs and answer.outputs[name].string_val for name in outputs):
            raise errors.UserError(
                f"{self.server}: the answer lacks {', '.join(outputs)}; expected an export of ours."
            )
        return {name: answer.outputs[name].string_val[0] for name in outputs}

    def _of_model(self, request):
        request.model_spec.name = self.model
        if self.version is not None:
            request.model_spec.version.value = self.version
        return request

    def _call(self, method, request):
        try:
            return method(request, timeout=self.timeout)
        except self.grpc.RpcError as error:
            raise refused(
                self.server, error.code().name, error.code().name, error.details() or ""
            ) from None


def with_retries(call, retries):
    """What `call()` returns; after `Unavailable` it is called again, `retries` times at most, after longer and longer waits.

    Raises:
      UserError: of the call; the server stays unavailable.
    """
    for attempt in range(retries + 1):
        try:
            return call()
        except Unavailable as error:
            if attempt == retries:
                raise errors.UserError(
                    f"{error} ({attempt + 1} tries); expected a server that answers."
                ) from None
            # Jitter: clients that a restart cut off together do not come back together.
            wait = min(BACKOFF * 2**attempt, LONGEST_WAIT) * random.uniform(0.5, 1.5)
            logging.warning("%s; next try in %.1f s.", error, wait)
            time.sleep(wait)


def segment(path, label, probability, model, signature, flat, overwrite, retries):
    """Sends one image and writes what it lacks.

    Args:
      path: of the image.
      label, probability: paths of the results; None where it is not wanted.
      model: `Rest` or `Grpc`.
      signature: its name.
      flat: whether the model takes 2D images.
      overwrite: whether results that are there are replaced.
      retries: see `with_retries`.

    Raises:
      UserError: see `images.read`, `with_retries`; an answer of another size.
    """
    if flat:
        image = images.read_2d(path, grey_levels=True)
    else:
        image = images.read(path)
        images.require_dimensions(path, image, 3)
    voxels = images.array(image)
    voxels = voxels.astype(voxels.dtype if voxels.dtype.name in TYPES else np.float32)
    voxels = np.ascontiguousarray(voxels, voxels.dtype.newbyteorder("<"))
    wanted = {"label_bytes": label} | ({"probability_bytes": probability} if probability else {})
    try:
        answer = with_retries(lambda: model.predict(signature, voxels, list(wanted)), retries)
    except errors.UserError as error:
        raise errors.UserError(f"{path}: {error}") from None
    for name, result in wanted.items():
        dtype = np.dtype("u1" if name == "label_bytes" else "<f4")
        values, rest = divmod(len(answer[name]), voxels.size * dtype.itemsize)
        if rest or values < 1 or (name == "label_bytes" and values != 1):
            raise errors.UserError(
                f"{path}: {name} of the answer has {len(answer[name])} bytes; expected {dtype.itemsize} for each of "
                f"{voxels.size} voxels."
            )
        found = np.frombuffer(answer[name], dtype).reshape(voxels.shape + (values,) * (values > 1))
        if overwrite or not result.exists():
            result.parent.mkdir(parents=True, exist_ok=True)
            images.write(
                images.like(255 * found if result.suffix == ".png" else found, image), result
            )


def main(_):
    source, output = pathlib.Path(FLAGS.input), pathlib.Path(FLAGS.output)
    protocol, port = {"rest": (Rest, 8501), "grpc": (Grpc, 8500)}[FLAGS.protocol]
    server = FLAGS.server or f"localhost:{port}"
    host, _, port = server.rpartition(":")
    if not host or "/" in host or not port.isdecimal() or int(port) > 65535:
        raise errors.UserError(f"--server={server}: not an address; expected host:port.")
    model = protocol(server, FLAGS.model, FLAGS.version, FLAGS.timeout)
    signatures = with_retries(model.signatures, FLAGS.retries)
    signature = (
        "probabilities_bytes"
        if FLAGS.probabilities and "probabilities_bytes" in signatures
        else "serving_bytes"
    )
    if signature not in signatures or "image" not in signatures.get("serving_default", ()):
        found = ", ".join(sorted(signatures))
        raise errors.UserError(
            f"--model={FLAGS.model}: has the signatures {found}; expected {signature}, export it again."
        )
    flat = signatures["serving_default"]["image"] == 4  # batch, height, width, channel

    if source.is_dir():
        found = images.find(source, series=not flat, below=True, without=output)
    else:
        found = {images.stem(source): source}
    jobs = []  # image, label, probability
    for name, path in found.items():
        pixels = flat and str(path).lower().endswith(images.PIXELS_ONLY)
        probability = output / "probabilities" / f"{name}.nii.gz" if FLAGS.probabilities else None
        jobs.append((path, output / f"{name}{'.png' if pixels else '.nii.gz'}", probability))
    images.require_own_files(
        {path: [result for result in results if result] for path, *results in jobs}
    )
    if not FLAGS.overwrite:
        jobs = [job for job in jobs if not all(result.exists() for result in job[1:] if result)]
        if len(jobs) < len(found):
            print(f"{len(found) - len(jobs)} of {len(found)} images have their results already.")

    failures, begin = [], time.monotonic()
    pool = concurrent.futures.ThreadPoolExecutor(FLAGS.requests_in_flight)
    try:
        running = [
            pool.submit(segment, *job, model, signature, flat, FLAGS.overwrite, FLAGS.retries)
            for job in jobs
        ]
        for count, done in enumerate(concurrent.futures.as_completed(running), 1):
            if isinstance(done.exception(), errors.UserError):
                failures.append(str(done.exception()))
            else:
                done.result()
            if len(jobs) > 1:
                seconds, left = (time.monotonic() - begin) / count, len(jobs) - count
                told = f"{count} of {len(jobs)} images, {seconds:.1f} s an image, {left * seconds:.0f} s to go"
                print(f"\r{told}  ", end="" if left else "\n", flush=True)
    finally:
        pool.shutdown(
            cancel_futures=True
        )  # of an interrupt: what is sent is finished, the rest is left
    if len(found) == 1 and failures:
        raise errors.UserError(failures[0])
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    if failures:
        raise errors.UserError(
            f"{len(failures)} of {len(found)} images failed; run again to send these once more."
        )


if __name__ == "__main__":
    app.run(errors.in_one_sentence(main))
