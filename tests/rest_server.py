"""A stand-in for TensorFlow Serving's REST API, for tests only: SavedModels in TensorFlow's own C++
loader behind a socket.

  python tests/rest_server.py --models=fetal_head=runs/fetal_head/saved_model --port=8501

Answers status, metadata and predict, and errors, in TensorFlow Serving's words and JSON (its
api_rest.md, json_tensor.cc, http_rest_api_util.cc). It serves the two latest versions of each
folder, looks for new ones at every request, and passes over what is no number or cannot be loaded.
"""

import base64
import contextlib
import http.server
import json
import pathlib
import re
import sys
import threading
import urllib.parse

import cpp_loader
import numpy as np
import tensorflow as tf
from absl import app, flags
from google.protobuf import json_format
from tensorflow.core.protobuf import meta_graph_pb2

PATH = r"/v1/models/(?P<name>[^/:]+)(/versions/(?P<version>\d+))?"
KEPT = 2  # versions, as serving/models.config has it


class Refused(Exception):
    """An answer other than 200: status and message."""


class Models:
    """Versions of models in watched folders; may be used from several threads at once.

    Args:
      folders: {name: folder that holds the versions}.
    """

    def __init__(self, folders):
        self.folders = {name: pathlib.Path(folder) for name, folder in folders.items()}
        # What left the folder stays loaded until `close`, for requests may be running.
        self.loaded = {}
        self.lock = threading.Lock()

    def versions(self, name):
        """{version: CppModel} of the versions that are served, the highest first; empty where there
        is no such model."""
        if name not in self.folders:
            return {}
        found = [path for path in self.folders[name].glob("[0-9]*") if path.name.isdecimal()]
        served = {}
        with self.lock:
            for path in sorted(found, key=lambda path: int(path.name), reverse=True):
                if path not in self.loaded:
                    with contextlib.suppress(OSError, RuntimeError, ValueError):  # half written
                        self.loaded[path] = cpp_loader.CppModel(path)
                if path in self.loaded:
                    served[int(path.name)] = self.loaded[path]
                if len(served) == KEPT:
                    break
        return served

    def find(self, name, version=None):
        """(version, CppModel), the highest where `version` is None.

        Raises:
          Refused: 404.
        """
        versions = self.versions(name)
        if version is None and versions:
            version = max(versions)
        if version not in versions:
            asked = f"Latest({name})" if version is None else f"Specific({name}, {version})"
            raise Refused(404, f"Servable not found for request: {asked}")
        return version, versions[version]

    def signature(self, model, name):
        """(name, SignatureDef), the default where the name is empty.

        Raises:
          Refused: 400.
        """
        name = name or "serving_default"
        if name not in model.signatures:
            raise Refused(400, f'Serving signature name: "{name}" not found in signature def')
        return name, model.signatures[name]

    def run(self, model, signature, inputs):
        """What the C++ session answers.

        Raises:
          Refused: 400, with TensorFlow's message.
        """
        try:
            return model(signature, inputs)
        except RuntimeError as error:
            raise Refused(400, str(error)) from None

    def close(self):
        for model in self.loaded.values():
            model.close()


def from_json(value, info):
    """A tensor of a signature's dtype from JSON's nested lists."""
    kind = tf.as_dtype(info.dtype)
    wrong = f"JSON Value: {json.dumps(value)} is not of expected type: {kind.name}"
    if kind == tf.string:
        value = _decoded(value, wrong)
    try:
        array = np.asarray(value, object if kind == tf.string else None)
    except ValueError:
        raise Refused(400, "Encountered list at unexpected size") from None
    if kind == tf.string:
        if any(not isinstance(element, bytes) for element in array.ravel()):
            raise Refused(400, "Encountered list at unexpected size")
        return array
    if array.dtype.kind not in ("fiu" if kind.is_floating else "iu") and array.size:
        raise Refused(400, wrong)
    return array.astype(kind.as_numpy_dtype)


def _decoded(value, wrong):
    if isinstance(value, list):
        return [_decoded(element, wrong) for element in value]
    if isinstance(value, str):
        return value.encode()
    if not _is_base64(value):
        raise Refused(400, wrong)
    try:
        return base64.b64decode(value["b64"], validate=True)
    except ValueError:
        raise Refused(400, "Unable to base64 decode") from None


def _is_base64(value):
    return isinstance(value, dict) and list(value) == ["b64"] and isinstance(value["b64"], str)


def to_json(name, array):
    """Nested lists; strings are base64 where the name ends in `_bytes`."""
    if array.dtype != object:
        return array.tolist()
    if array.ndim:
        return [to_json(name, np.asarray(element, object)) for element in array]
    if name.endswith("_bytes"):
        return {"b64": base64.b64encode(array.item()).decode()}
    return array.item().decode()


def columns(value, infos):
    """{name: tensor} of a request's "inputs"."""
    if not isinstance(value, dict) or _is_base64(value):
        if len(infos) > 1:
            raise Refused(
                400,
                "inputs is a plain value/list, but expecting an object as multiple input tensors "
                "required",
            )
        return {name: from_json(value, info) for name, info in infos.items()}
    for name in infos:
        if name not in value:
            raise Refused(400, f"Missing named input: {name} in 'inputs' object.")
    return {name: from_json(value[name], info) for name, info in infos.items()}


def rows(value, infos):
    """{name: tensor} of a request's "instances", stacked along the first axis."""
    if not isinstance(value, list) or not value:
        raise Refused(400, "Excepting 'instances' to be an list/array")
    if not isinstance(value[0], dict) or _is_base64(value[0]):
        if len(infos) > 1:
            raise Refused(
                400,
                "instances is a plain list, but expecting list of objects as multiple input "
                "tensors required",
            )
        return {name: from_json(value, info) for name, info in infos.items()}
    for number, row in enumerate(value):
        if not isinstance(row, dict) or set(row) != set(infos):
            keys = ",".join(sorted(infos))
            raise Refused(
                400,
                f"Failed to process element: {number} of 'instances' list. keys must be equal "
                f"to: {keys}",
            )
    return {name: from_json([row[name] for row in value], info) for name, info in infos.items()}


class Handler(http.server.BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.answer(self.get)

    def do_POST(self):
        self.answer(self.post)

    def answer(self, method):
        """Sends what `method` returns, or what it refuses."""
        try:
            status, content = 200, method()
        except Refused as refused:
            status, content = refused.args[0], {"error": refused.args[1]}
        body = json.dumps(content, indent=1).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def asked(self, pattern):
        match = re.fullmatch(PATH + pattern, self.path, re.IGNORECASE)
        if not match:
            raise Refused(400, f"Malformed request: {self.command} {self.path}")
        name, version = (
            urllib.parse.unquote(match["name"]),
            match["version"] and int(match["version"]),
        )
        return name, version, match["rest"]

    def get(self):
        name, version, rest = self.asked("(?P<rest>/metadata)?")
        if rest:
            version, model = self.server.models.find(name, version)
            signatures = meta_graph_pb2.MetaGraphDef(signature_def=model.signatures)
            signatures = json_format.MessageToDict(
                signatures,
                preserving_proto_field_name=True,
                always_print_fields_with_no_presence=True,
            )["signature_def"]
            specification = {"name": name, "signature_name": "", "version": str(version)}
            return {
                "model_spec": specification,
                "metadata": {"signature_def": {"signature_def": signatures}},
            }
        versions = self.server.models.versions(name)
        if not versions:
            raise Refused(404, f"Could not find any versions of model {name}")
        if version is not None and version not in versions:
            raise Refused(404, f"Could not find version {version} of model {name}")
        status = {"state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
        wanted = versions if version is None else [version]
        return {"model_version_status": [{"version": str(number), **status} for number in wanted]}

    def post(self):
        size = int(self.headers.get("Content-Length", 0))
        if self.server.max_bytes is not None and size > self.server.max_bytes:
            # Who closes before all is read may cut its own answer off.
            for start in range(0, size, 1 << 20):
                self.rfile.read(min(1 << 20, size - start))
            raise Refused(413, "Payload Too Large")
        body = self.rfile.read(size)
        name, version, _ = self.asked("(?P<rest>:predict)")
        try:
            request = json.loads(body)
        except ValueError as error:
            raise Refused(400, f"JSON Parse error: {error}") from None
        if not isinstance(request, dict):
            raise Refused(400, "JSON Value: Is not object")
        return self.predict(name, version, request)

    def predict(self, name, version, request):
        _, model = self.server.models.find(name, version)
        signature, definition = self.server.models.signature(model, request.get("signature_name"))
        formats = {"inputs", "instances"} & set(request)
        if not formats:
            raise Refused(400, "Missing 'inputs' or 'instances' key")
        if len(formats) > 1:
            raise Refused(
                400,
                "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to "
                "exist",
            )
        by_row = formats == {"instances"}
        inputs = (rows if by_row else columns)(request[formats.pop()], definition.inputs)
        outputs = self.server.models.run(model, signature, inputs)
        if not by_row:
            found = {output: to_json(output, array) for output, array in outputs.items()}
            return {"outputs": found if len(found) > 1 else next(iter(found.values()))}
        sizes = {output: len(array) if array.ndim else 0 for output, array in outputs.items()}
        if len(set(sizes.values())) > 1:
            raise Refused(
                400,
                f"Tensor names: {', '.join(sizes)} have inconsistent batch size: "
                f"{list(sizes.values())}",
            )
        found = [
            {
                output: to_json(output, np.asarray(array[k], array.dtype))
                for output, array in outputs.items()
            }
            for k in range(min(sizes.values()))
        ]
        return {
            "predictions": found
            if len(outputs) > 1
            else [next(iter(row.values())) for row in found]
        }

    def log_message(self, *arguments):
        """Tests and benchmarks have their own lines."""


class Server(http.server.ThreadingHTTPServer):
    """The stand-in at 127.0.0.1.

    Args:
      models: `Models`.
      port: 0: any free one.
      max_bytes: largest body; above it the answer is 413, as proxies give it (TensorFlow Serving
        has no limit).
      handler: `Handler`, or a class of it that fails on purpose.
    """

    def __init__(self, models, port=0, max_bytes=None, handler=Handler):
        super().__init__(("127.0.0.1", port), handler)
        self.models, self.max_bytes = models, max_bytes

    @property
    def address(self):
        return f"127.0.0.1:{self.server_address[1]}"

    def __enter__(self):
        threading.Thread(
            target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address):
        """A client that has gone away is no matter of the server's."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def main(_):
    folders = dict(pair.split("=", 1) for pair in flags.FLAGS.models)
    models = Models(folders)
    for name in folders:
        models.find(name)
    with Server(models, flags.FLAGS.port, flags.FLAGS.max_bytes) as server:
        print(server.address, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    flags.DEFINE_list(
        "models", None, "NAME=FOLDER of the versions, several separated by commas.", required=True
    )
    flags.DEFINE_integer("port", 0, "0: any free one.", 0)
    flags.DEFINE_integer("max_bytes", None, "Largest request; above it the answer is 413.", 1)
    app.run(main)
