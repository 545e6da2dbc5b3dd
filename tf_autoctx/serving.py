"""A model behind TensorFlow Serving, by its REST or its gRPC interface.

Whatever a server sends is bounded in time and in size: `timeout` is a deadline for the whole answer
from the first byte that is sent, and no more bytes are read than the answer may have.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import pathlib
import re
import socket
import ssl
import threading
import urllib.parse
from collections.abc import Callable, Collection, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import numpy as np
import urllib3
from absl import logging
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    MaxRetryError,
    NewConnectionError,
    ReadTimeoutError,
    SSLError,
)

from tf_autoctx.errors import FieldError, UserError

T = TypeVar("T")
BACKOFF, LONGEST_WAIT = 0.5, 30.0  # seconds
CONNECT = 30.0  # seconds at most until somebody picks up
QUOTED = 400  # characters of a server's message: it may quote the whole request
MOST_BYTES = 2**31 - 1  # of an answer; gRPC has no larger messages
OTHER_BYTES = 1 << 24  # of an answer that is no image: signatures, the card
ERROR_BYTES = 1 << 16  # of a refusal that are read
PART = 1 << 20  # bytes that are read at once
# What the bytes signatures read; other pixel types travel as float32, which models compute with.
TYPES = ("uint8", "int8", "uint16", "int16", "int32", "float32", "float64")
CARD = "card"  # the signature that tells what a client should know
# Control sequences of terminals, so that nothing of them is left over as letters.
ANSI = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-_])|\x9b[0-?]*[ -/]*[@-~]"
)
NODES = re.compile(r"\s*\[\[\{\{.*?\}\}\]\]")  # where in a graph TensorFlow met an error
BEGUN_ERROR = re.compile(r'\s*\{\s*"error"\s*:\s*"((?:[^"\\]|\\[^u]|\\u[0-9a-fA-F]{4})*)')
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
# Bytes a value of the tensors that exports have; other tensors have up to `WIDEST`.
WIDTHS = {"DT_UINT8": 1, "DT_INT8": 1, "DT_BOOL": 1, "DT_HALF": 2, "DT_FLOAT": 4, "DT_INT32": 4}
WIDEST, MOST_CHANNELS = 8, 256  # channels are label values, which are of one byte


class Unavailable(Exception):
    """Nobody answers, or not now; the same request may succeed later.

    Attributes:
      wait: seconds that the server asks for; None: it does not say.
    """

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


class UnansweredError(UserError):
    """A server that does not answer: not in time, or is unavailable however often it is asked."""


def plain(text: str, longest: int = QUOTED) -> str:
    """Text of a server as it may be printed: one line, no codes that a terminal acts upon."""
    text = ANSI.sub(" ", text)
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text[:longest] + "..." * (len(text) > longest)


def refused(
    server: str, code: str, number: object, message: str, wait: float | None = None
) -> Exception:
    """The exception for a server's refusal.

    Args:
      server: its address.
      code: gRPC's name of it, of `EXPECTED` where something is known of it.
      number: the protocol's own name of the code.
      message: of the server.
      wait: seconds that it asks for.
    """
    message = plain(NODES.sub("", message).rstrip(" \n.")) or "no message"
    if code == "UNAVAILABLE":
        return Unavailable(f"{server}: {number}, {message}", wait)
    kind = UnansweredError if code == "DEADLINE_EXCEEDED" else UserError
    expected = EXPECTED.get(code, "an answer, see the server's log")
    return kind(f"{server}: answers {number}, {message}; expected {expected}.")


@dataclasses.dataclass(frozen=True)
class Signature:
    """What is known of a signature.

    Attributes:
      inputs: {input: number of its axes}.
      outputs: {output: bytes a voxel at most}, which strings do not tell.
    """

    inputs: Mapping[str, int]
    outputs: Mapping[str, int]


def most_bytes(signatures: Mapping[str, Signature], signature: str, voxels: int) -> int:
    """How many bytes an answer of a bytes signature for an image of so many voxels may have.

    Twice those of all outputs of its twin: an output may lie on another grid.
    """
    twin = "serving_default" if signature == "serving_bytes" else signature.removesuffix("_bytes")
    each = sum(signatures[twin].outputs.values()) if twin in signatures else 0
    return min(2 * voxels * each + PART, MOST_BYTES) if each else MOST_BYTES


def _bytes_a_voxel(width: int, sizes: Sequence[int]) -> int:
    """Of an output whose axes are known but for those of -1, the channel last."""
    channels = sizes[-1] if sizes and sizes[-1] > 0 else MOST_CHANNELS
    return width * channels


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """An image for a model.

    Attributes:
      signature: for bytes.
      voxels: of `TYPES`.
      outputs: names of those that are wanted.
      most: bytes that the answer may have, see `most_bytes`.
      spacing: mm along the axes, for a signature that takes it.
    """

    signature: str
    voxels: np.ndarray
    outputs: Collection[str]
    most: int = MOST_BYTES
    spacing: Sequence[float] | None = None


class Model(Protocol):
    """A model that a server holds."""

    def signatures(self) -> dict[str, Signature]:
        """{name: signature}.

        Raises:
          Unavailable: connection error or 503.
          UnansweredError: no answer in time.
          UserError: every other failure.
        """

    def predict(self, request: Request) -> dict[str, bytes]:
        """{output: bytes} of one image; raises as `signatures` does."""

    def card(self) -> str:
        """What the signature `CARD` tells; raises as `signatures` does."""

    def close(self) -> None:
        """Closes all connections."""


class _Deadline:
    """Cuts the connection of a request when its time is up, whatever it waits for at that moment.

    A socket's own timeout begins anew with every byte.

    Attributes:
      passed: whether the time was up.
      connection: of the request.
      sock: of the connection, which forgets it as soon as the server says that it will close.
    """

    running = threading.local()  # its `deadline` is that of the request of this thread

    def __init__(self, seconds: float) -> None:
        self.passed, self.connection, self.sock = False, None, None
        self._lock, self._over = threading.Lock(), False
        self._timer = threading.Timer(seconds, self._cut)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        self.running.deadline = self
        self._timer.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._lock:  # from now on the connection may be another request's
            self._over = True
        self._timer.cancel()
        self.running.deadline = None

    def _cut(self) -> None:
        with self._lock:
            if self._over:
                return
            self.passed = True
            sock = self.sock or getattr(self.connection, "sock", None)
            if sock is not None:
                with contextlib.suppress(OSError):  # closed meanwhile
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)


class _Watched:
    """A connection that tells the deadline of its request which socket to cut."""

    sock: Any
    timeout: Any

    def connect(self) -> None:
        """As `http.client` does."""
        deadline = _Deadline.running.deadline
        deadline.connection, deadline.sock = self, None
        super().connect()  # type: ignore[misc]
        deadline.sock = self.sock
        if deadline.passed:
            raise TimeoutError("no connection in time")

    def request(self, *arguments: Any, **options: Any) -> None:
        """As urllib3 does, but with no limit of time for what is sent but the deadline."""
        if self.sock is None:
            self.connect()
        self.timeout = None  # was that of connecting
        _Deadline.running.deadline.sock = self.sock
        super().request(*arguments, **options)  # type: ignore[misc]


class _Connection(_Watched, HTTPConnection):
    """Plain."""


class _SecureConnection(_Watched, HTTPSConnection):
    """TLS."""


class Rest:
    """A model behind TensorFlow Serving's REST API.

    Args:
      server: host:port, or https://host:port for TLS.
      model: its name.
      version: of it; None: the highest.
      timeout: seconds until an answer is there, from its first byte to its last.
      connections: that are kept open, one for each request at once.
    """

    def __init__(
        self,
        server: str,
        model: str,
        version: int | None,
        timeout: float,
        connections: int = 1,
    ) -> None:
        self.server, self.timeout = server, min(timeout, threading.TIMEOUT_MAX)  # 292 years
        self.path = f"/v1/models/{urllib.parse.quote(model, safe='')}"
        if version is not None:
            self.path += f"/versions/{version}"
        url = server if "://" in server else f"http://{server}"
        self.pool = urllib3.connection_from_url(url, maxsize=connections, retries=False)
        secure = isinstance(self.pool, urllib3.HTTPSConnectionPool)
        self.pool.ConnectionCls = _SecureConnection if secure else _Connection

    def signatures(self) -> dict[str, Signature]:
        reply = self._request("GET", "/metadata", OTHER_BYTES)
        try:
            definitions = reply["metadata"]["signature_def"]["signature_def"]
            return {
                name: Signature(
                    {key: len(_sizes(info)) for key, info in signature["inputs"].items()},
                    {
                        key: _bytes_a_voxel(WIDTHS.get(info["dtype"], WIDEST), _sizes(info))
                        for key, info in signature.get("outputs", {}).items()
                    },
                )
                for name, signature in definitions.items()
                if "inputs" in signature
            }
        except (KeyError, TypeError, AttributeError, ValueError):
            raise self._not_serving() from None

    def predict(self, request: Request) -> dict[str, bytes]:
        voxels = request.voxels
        inputs: dict[str, Any] = {
            "image_bytes": [{"b64": base64.b64encode(voxels.tobytes()).decode()}],
            "shape": [voxels.shape],
            "dtype": [voxels.dtype.name],
        }
        if request.spacing is not None:
            inputs["spacing"] = [list(request.spacing)]
        # Bytes are in base64.
        reply = self._ask(request.signature, inputs, request.most // 3 * 4 + PART)
        try:
            return {
                name: base64.b64decode(reply[name][0]["b64"], validate=True)
                for name in request.outputs
            }
        except (KeyError, TypeError, IndexError, ValueError):
            raise self._not_serving() from None

    def card(self) -> str:
        reply = self._ask(CARD, {"request": [0]}, OTHER_BYTES)
        # An output that is alone goes without its name.
        if isinstance(reply, list) and len(reply) == 1 and isinstance(reply[0], str):
            return reply[0]
        raise self._not_serving()

    def close(self) -> None:
        self.pool.close()

    def _ask(self, signature: str, inputs: Mapping[str, Any], most: int) -> Any:
        """The outputs of a signature."""
        body = json.dumps({"signature_name": signature, "inputs": inputs}).encode()
        return self._request("POST", ":predict", most, body).get("outputs")

    def _request(
        self, method: str, path: str, most: int, body: bytes | None = None
    ) -> dict[str, Any]:
        with _Deadline(self.timeout) as deadline:
            try:
                response, content = self._exchange(method, path, most, body)
            except (ConnectTimeoutError, NewConnectionError) as error:
                raise Unavailable(f"{self.server}: {_reason(error)}") from None
            except (HTTPError, OSError, ValueError) as error:
                if deadline.passed or isinstance(error, ReadTimeoutError):
                    raise self._too_late() from None
                raise self._broken(error) from None
            if deadline.passed:  # a body that ends where the server closes seems whole
                raise self._too_late()
        if response.status != 200:
            message = _message(content) or response.reason or ""
            code = CODES.get(response.status, "")
            raise refused(self.server, code, response.status, message, _wait(response))
        try:
            reply = json.loads(content)
        except (ValueError, RecursionError):  # not from TensorFlow Serving itself
            reply = None
        if not isinstance(reply, dict):
            raise self._not_serving()
        return reply

    def _exchange(
        self, method: str, path: str, most: int, body: bytes | None
    ) -> tuple[urllib3.BaseHTTPResponse, bytes]:
        """The response to a request, and its body, of a refusal no more than its begin."""
        response = self.pool.urlopen(
            method,
            self.path + path,
            body,
            {"Content-Type": "application/json"},
            redirect=False,
            timeout=urllib3.Timeout(connect=min(self.timeout, CONNECT), read=self.timeout),
            preload_content=False,
            decode_content=False,
        )
        is_refusal = response.status != 200
        limit, parts, held = ERROR_BYTES if is_refusal else most, [], 0
        promised = response.headers.get("Content-Length", "")
        try:
            if not is_refusal and promised.isdecimal() and int(promised) > limit:
                raise self._too_long(int(promised), limit)
            while held < limit + (not is_refusal):
                part = response.read(min(PART, limit + 1 - held), decode_content=False)
                if not part:
                    break
                parts.append(part)
                held += len(part)
            if not is_refusal and held > limit:
                raise self._too_long(held, limit)
        except BaseException:
            response.close()
            raise
        if is_refusal and held >= limit:
            response.close()  # there may be more
        return response, b"".join(parts)

    def _broken(self, error: Exception) -> Exception:
        """The exception for a connection that failed."""
        cause = error.args[0] if isinstance(error, SSLError) and error.args else error
        if isinstance(error, SSLError) and not isinstance(cause, ssl.SSLEOFError):
            return UserError(
                f"{self.server}: no secure connection ({plain(str(cause))}); expected TLS and a "
                "certificate that this machine trusts (SSL_CERT_FILE names others)."
            )
        return Unavailable(f"{self.server}: the connection broke ({plain(_reason(error))})")

    def _too_late(self) -> Exception:
        limit = f"within {self.timeout:g} s (`timeout`)"
        return refused(self.server, CODES[504], "nothing", limit)

    def _too_long(self, held: int, limit: int) -> UserError:
        return UserError(
            f"{self.server}: answers with {held} bytes or more; expected {limit} at most for this "
            "request."
        )

    def _not_serving(self) -> UserError:
        return UserError(
            f"{self.server}: answers, but not as TensorFlow Serving does; expected its REST port."
        )


def _sizes(info: Mapping[str, Any]) -> list[int]:
    """Along the axes of a tensor; -1: any."""
    return [int(axis.get("size", -1)) for axis in info["tensor_shape"].get("dim", ())]


def _reason(error: BaseException) -> str:
    """What the system says of a failed connection."""
    if isinstance(error, ConnectTimeoutError) and not isinstance(error, NewConnectionError):
        return "no connection in time"
    causes = [error.__cause__, *error.args]  # urllib3's own text names its objects
    for cause in causes:
        if isinstance(cause, Exception):
            return _reason(cause)
    return (isinstance(error, OSError) and error.strerror) or str(error)


def _wait(response: urllib3.BaseHTTPResponse) -> float | None:
    """Seconds until the next try, where the server names them (Retry-After)."""
    with contextlib.suppress(HTTPError, ValueError):
        return urllib3.Retry().get_retry_after(response)
    return None


def _message(content: bytes) -> str:
    """The "error" of a refusal's JSON, which may be cut off; empty where there is none."""
    with contextlib.suppress(ValueError, RecursionError):
        reply = json.loads(content)
        return str(reply.get("error", "")) if isinstance(reply, dict) else ""
    begun = BEGUN_ERROR.match(content.decode("utf-8", "replace"))
    with contextlib.suppress(ValueError):
        return json.loads(f'"{begun[1]}"', strict=False) if begun else ""
    return ""


class Grpc:
    """A model behind TensorFlow Serving's gRPC API; as `Rest`."""

    def __init__(
        self,
        server: str,
        model: str,
        version: int | None,
        timeout: float,
        connections: int = 1,
    ) -> None:
        try:
            import grpc
            import tensorflow as tf
            from google.protobuf.message import DecodeError
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
        self.grpc, self.tf, self.service = grpc, tf, prediction_service_pb2_grpc
        self.damaged = DecodeError
        self.messages, self.metadata = predict_pb2, get_model_metadata_pb2
        self.server, self.model, self.version, self.timeout = server, model, version, timeout
        self._lock = threading.Lock()
        self._channels: dict[int, Any] = {}

    def signatures(self) -> dict[str, Signature]:
        request = self._of_model(
            self.metadata.GetModelMetadataRequest(metadata_field=["signature_def"])
        )
        reply = self._call("GetModelMetadata", request, OTHER_BYTES)
        signatures = self.metadata.SignatureDefMap()
        try:
            held = reply.metadata["signature_def"].Unpack(signatures)
        except self.damaged:
            held = False
        if not held:
            raise self._not_ours("signatures")
        return {
            name: Signature(
                {key: len(info.tensor_shape.dim) for key, info in signature.inputs.items()},
                {
                    key: _bytes_a_voxel(
                        WIDTHS.get(_type(info), WIDEST),
                        [axis.size for axis in info.tensor_shape.dim],
                    )
                    for key, info in signature.outputs.items()
                },
            )
            for name, signature in signatures.signature_def.items()
        }

    def predict(self, request: Request) -> dict[str, bytes]:
        voxels, spacing, wanted = request.voxels, request.spacing, request.outputs
        edges = {} if spacing is None else {"spacing": ([list(spacing)], self.tf.float32)}
        # All outputs: a server that batches does so by the exact set of what is asked for.
        reply = self._ask(
            request.signature,
            request.most,
            image_bytes=([voxels.tobytes()], self.tf.string),
            shape=([voxels.shape], self.tf.int32),
            dtype=([voxels.dtype.name], self.tf.string),
            **edges,
        )
        if not all(name in reply.outputs and reply.outputs[name].string_val for name in wanted):
            raise self._not_ours(", ".join(wanted))
        return {name: reply.outputs[name].string_val[0] for name in wanted}

    def card(self) -> str:
        reply = self._ask(CARD, OTHER_BYTES, request=([0], self.tf.int32))
        if CARD not in reply.outputs or not reply.outputs[CARD].string_val:
            raise self._not_ours(CARD)
        return reply.outputs[CARD].string_val[0].decode("utf-8", "replace")

    def close(self) -> None:
        with self._lock:
            for channel in self._channels.values():
                channel.close()
            self._channels = {}

    def _ask(self, signature: str, most: int, **inputs: tuple[Any, Any]) -> Any:
        request = self._of_model(self.messages.PredictRequest())
        request.model_spec.signature_name = signature
        for name, (value, dtype) in inputs.items():
            request.inputs[name].CopyFrom(self.tf.make_tensor_proto(value, dtype))
        return self._call("Predict", request, most)

    def _of_model(self, request: Any) -> Any:
        request.model_spec.name = self.model
        if self.version is not None:
            request.model_spec.version.value = self.version
        return request

    def _call(self, method: str, request: Any, most: int) -> Any:
        limit = min(1 << most.bit_length(), MOST_BYTES)  # few limits: each has a channel
        stub = self.service.PredictionServiceStub(self._channel(limit))
        try:
            return getattr(stub, method)(request, timeout=self.timeout)
        except self.grpc.RpcError as error:
            code, details = error.code().name, error.details() or ""
            if code == "RESOURCE_EXHAUSTED" and re.search(rf"(?i)received .*\b{limit}\b", details):
                raise UserError(
                    f"{self.server}: {plain(details)}; expected {limit} bytes at most for this "
                    "request."
                ) from None
            raise refused(self.server, code, code, details) from None

    def _channel(self, limit: int) -> Any:
        """The channel for answers of so many bytes at most, which is its property."""
        with self._lock:
            if limit not in self._channels:
                options = {
                    "grpc.max_send_message_length": -1,  # the default is 4 MiB
                    "grpc.max_receive_message_length": limit,
                    "grpc.enable_http_proxy": 0,  # as with rest
                    "grpc.initial_reconnect_backoff_ms": 100,  # the waits are ours
                    "grpc.max_reconnect_backoff_ms": 1000,
                }
                self._channels[limit] = self._open(list(options.items()))
            return self._channels[limit]

    def _open(self, options: list[tuple[str, Any]]) -> Any:
        scheme, _, address = self.server.rpartition("://")
        if scheme != "https":
            return self.grpc.insecure_channel(address, options=options)
        trusted = ssl.get_default_verify_paths().cafile  # SSL_CERT_FILE, as with rest
        certificates = pathlib.Path(trusted).read_bytes() if trusted else None
        credentials = self.grpc.ssl_channel_credentials(certificates)
        return self.grpc.secure_channel(address, credentials, options=options)

    def _not_ours(self, lacks: str) -> UserError:
        return UserError(f"{self.server}: the reply lacks {lacks}; expected an export of ours.")


def _type(info: Any) -> str:
    """TensorFlow's name of the dtype of a `TensorInfo`."""
    names = info.DESCRIPTOR.fields_by_name["dtype"].enum_type.values_by_number
    return names[info.dtype].name if info.dtype in names else ""


def with_retries(call: Callable[[], T], retries: int, stop: threading.Event | None = None) -> T:
    """What `call()` returns; after `Unavailable` it is called again, after longer and longer waits.

    Args:
      call: a request.
      retries: how often it is repeated at most.
      stop: where it is set meanwhile, no more tries are made.

    Raises:
      UserError: of the call.
      UnansweredError: the server stays unavailable.
    """
    stop, made = stop or threading.Event(), 0
    # Jitter: clients that a restart cut off together do not come back together.
    tries = urllib3.Retry(
        total=retries, backoff_factor=BACKOFF, backoff_max=LONGEST_WAIT, backoff_jitter=BACKOFF
    )
    while True:
        made += 1
        try:
            return call()
        except Unavailable as error:
            given_up = UnansweredError(f"{error} ({made} tries); expected a server that answers.")
            try:
                tries = tries.increment(error=error)
            except MaxRetryError:
                raise given_up from None
            wait = min(error.wait or tries.get_backoff_time(), LONGEST_WAIT)
            logging.warning("%s; next try in %.1f s.", error, wait)
            if stop.wait(wait):
                raise given_up from None
