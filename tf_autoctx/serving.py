"""A model behind TensorFlow Serving, by its REST or its gRPC interface."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import random
import time
import urllib.parse
from collections.abc import Callable, Iterable
from typing import Any, Protocol, TypeVar

import numpy as np
from absl import logging

from tf_autoctx.errors import FieldError, UserError

T = TypeVar("T")
BACKOFF, LONGEST_WAIT = 0.5, 30.0  # seconds
QUOTED = 400  # characters of a server's message: it may quote the whole request
# What the bytes signatures read; other pixel types travel as float32, which models compute with.
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
    "NOT_FOUND": "a `model` and `version` that it holds",
    "RESOURCE_EXHAUSTED": "a smaller image, fewer requests at once, or higher limits of the server",
    "DEADLINE_EXCEEDED": "an answer in time, give the server a longer limit or fewer "
    "`requests_in_flight`",
}


class Unavailable(Exception):
    """Nobody answers, or not now; the same request may succeed later."""


def refused(server: str, code: str, number: object, message: str) -> Exception:
    """The exception for a server's refusal; `number` is the protocol's own name of the `code`."""
    message = " ".join(message.split())
    message = message[:QUOTED] + "..." * (len(message) > QUOTED)
    if code == "UNAVAILABLE":
        return Unavailable(f"{server}: {number}, {message or 'no message'}")
    expected = EXPECTED.get(code, "an answer, see the server's log")
    return UserError(f"{server}: answers {number}, {message or 'no message'}; expected {expected}.")


class Model(Protocol):
    """A model that a server holds."""

    def signatures(self) -> dict[str, dict[str, int]]:
        """{signature: {input: number of its axes}}.

        Raises:
          Unavailable: connection error or 503.
          UserError: every other failure.
        """

    def predict(
        self, signature: str, voxels: np.ndarray, outputs: Iterable[str]
    ) -> dict[str, bytes]:
        """{output: bytes} of one image; raises as `signatures` does."""


class Rest:
    """A model behind TensorFlow Serving's REST API.

    Args:
      server: host:port.
      model: its name.
      version: of it; None: the highest.
      timeout: seconds to wait for an answer.
    """

    def __init__(self, server: str, model: str, version: int | None, timeout: float) -> None:
        self.server, self.timeout = server, timeout
        self.path = f"/v1/models/{urllib.parse.quote(model, safe='')}"
        if version is not None:
            self.path += f"/versions/{version}"

    def signatures(self) -> dict[str, dict[str, int]]:
        reply = self._request("GET", "/metadata")
        try:
            return {
                name: {
                    key: len(info["tensor_shape"].get("dim", ()))
                    for key, info in signature["inputs"].items()
                }
                for name, signature in reply["metadata"]["signature_def"]["signature_def"].items()
                if "inputs" in signature
            }
        except (KeyError, TypeError, AttributeError):
            raise self._not_serving() from None

    def predict(
        self, signature: str, voxels: np.ndarray, outputs: Iterable[str]
    ) -> dict[str, bytes]:
        inputs = {
            "image_bytes": [{"b64": base64.b64encode(voxels.tobytes()).decode()}],
            "shape": [voxels.shape],
            "dtype": [voxels.dtype.name],
        }
        reply = self._request(
            "POST", ":predict", json.dumps({"signature_name": signature, "inputs": inputs})
        )
        try:
            return {name: base64.b64decode(reply["outputs"][name][0]["b64"]) for name in outputs}
        except (KeyError, TypeError, IndexError, ValueError):
            raise self._not_serving() from None

    def _request(self, method: str, path: str, body: str | None = None) -> dict[str, Any]:
        connection = http.client.HTTPConnection(self.server, timeout=self.timeout)
        try:
            status, reason, content = self._exchange(connection, method, path, body)
        finally:
            connection.close()
        try:
            reply = json.loads(content)
        except ValueError:  # not from TensorFlow Serving itself
            reply = None
        if status != 200:
            message = reply.get("error", reason) if isinstance(reply, dict) else reason
            raise refused(self.server, CODES.get(status, ""), status, str(message))
        if not isinstance(reply, dict):
            raise self._not_serving()
        return reply

    def _exchange(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: str | None
    ) -> tuple[int, str, bytes]:
        """Status, reason and content of the reply to a request."""
        try:
            connection.connect()
        except OSError as error:
            raise Unavailable(f"{self.server}: {error.strerror or error}") from None
        headers = {"Content-Type": "application/json"}
        try:
            # Who refuses a large request may reply before it is sent.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.request(method, self.path + path, body, headers)
            response = connection.getresponse()
            return response.status, response.reason, response.read()
        except TimeoutError:
            limit = f"within {self.timeout:g} s (`timeout`)"
            raise refused(self.server, CODES[504], "nothing", limit) from None
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(f"{self.server}: the connection broke ({error})") from None

    def _not_serving(self) -> UserError:
        return UserError(
            f"{self.server}: answers, but not as TensorFlow Serving does; expected its REST port."
        )


class Grpc:
    """A model behind TensorFlow Serving's gRPC API; as `Rest`."""

    def __init__(self, server: str, model: str, version: int | None, timeout: float) -> None:
        try:
            import grpc
            import tensorflow as tf
            from tensorflow_serving.apis import (
                get_model_metadata_pb2,
                predict_pb2,
                prediction_service_pb2_grpc,
            )
        except ImportError as error:
            raise FieldError(
                "protocol",
                "grpc",
                f"{error.name} is not installed; run pip install 'tf_autoctx[serving]', or use "
                "rest.",
            ) from None
        self.grpc, self.tf = grpc, tf
        self.messages, self.metadata = predict_pb2, get_model_metadata_pb2
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

    def signatures(self) -> dict[str, dict[str, int]]:
        request = self._of_model(
            self.metadata.GetModelMetadataRequest(metadata_field=["signature_def"])
        )
        reply = self._call(self.stub.GetModelMetadata, request)
        signatures = self.metadata.SignatureDefMap()
        reply.metadata["signature_def"].Unpack(signatures)
        return {
            name: {key: len(info.tensor_shape.dim) for key, info in signature.inputs.items()}
            for name, signature in signatures.signature_def.items()
        }

    def predict(
        self, signature: str, voxels: np.ndarray, outputs: Iterable[str]
    ) -> dict[str, bytes]:
        # All outputs: a server that batches does so by the exact set of what is asked for.
        request = self._of_model(self.messages.PredictRequest())
        request.model_spec.signature_name = signature
        for name, value, dtype in (
            ("image_bytes", [voxels.tobytes()], self.tf.string),
            ("shape", [voxels.shape], self.tf.int32),
            ("dtype", [voxels.dtype.name], self.tf.string),
        ):
            request.inputs[name].CopyFrom(self.tf.make_tensor_proto(value, dtype))
        reply = self._call(self.stub.Predict, request)
        if not all(name in reply.outputs and reply.outputs[name].string_val for name in outputs):
            raise UserError(
                f"{self.server}: the reply lacks {', '.join(outputs)}; expected an export of ours."
            )
        return {name: reply.outputs[name].string_val[0] for name in outputs}

    def _of_model(self, request: Any) -> Any:
        request.model_spec.name = self.model
        if self.version is not None:
            request.model_spec.version.value = self.version
        return request

    def _call(self, method: Callable[..., Any], request: Any) -> Any:
        try:
            return method(request, timeout=self.timeout)
        except self.grpc.RpcError as error:
            raise refused(
                self.server, error.code().name, error.code().name, error.details() or ""
            ) from None


def with_retries(call: Callable[[], T], retries: int) -> T:
    """What `call()` returns; after `Unavailable` it is called again, after longer and longer waits.

    Args:
      call: a request.
      retries: how often it is repeated at most.

    Raises:
      UserError: of the call; the server stays unavailable.
    """
    attempt = 0
    while True:
        try:
            return call()
        except Unavailable as error:
            if attempt == retries:
                raise UserError(
                    f"{error} ({attempt + 1} tries); expected a server that answers."
                ) from None
            # Jitter: clients that a restart cut off together do not come back together.
            wait = min(BACKOFF * 2**attempt, LONGEST_WAIT) * random.uniform(0.5, 1.5)
            logging.warning("%s; next try in %.1f s.", error, wait)
            time.sleep(wait)
            attempt += 1
