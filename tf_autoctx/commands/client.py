r"""Segments images with a model that TensorFlow Serving holds, each on its own grid.

  autoctx-client --model=fetal_head --input=scan.nii.gz --output=results
  autoctx-client --model=fetal_head --input=scans --output=results --probabilities \
      --requests_in_flight=4
  autoctx-client --model=renderer --input=frames --output=results --protocol=grpc --server=gpu7:8500

Writes NAME.nii.gz (label values; of PNG, JPEG and TIFF images NAME.png of 0 and 255) and with
--probabilities probabilities/NAME.nii.gz (float32, rounded to 3 digits so that it compresses; where
the model has several, in the order of its model_card.json, they are the values of one voxel). A
result appears whole or not at all, and images that have theirs are passed over, unless they or the
model have changed since, so that the same command goes on with a folder that was left half done. If
an image fails, the others are done all the same, and the exit code is 1.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from tf_autoctx import files
from tf_autoctx.commands.command_line import Command, Given
from tf_autoctx.configuration import check, field
from tf_autoctx.errors import FieldError

if TYPE_CHECKING:
    from tf_autoctx import serving


@dataclasses.dataclass(frozen=True, kw_only=True)
class Client:
    """Client: which server and model, and what is segmented."""

    model: str = field(..., "Name of the model on the server, see serving/models.config.")
    input: str = field(
        ...,
        "Image file, DICOM series folder, or folder of folders of images. Where a model takes "
        "several channels, files of one each: the first one, case_0000.nii.gz, or all of them, "
        "t1.nii.gz,t2.nii.gz.",
    )
    output: str = field(..., "Folder for the results; made if it is missing.")
    protocol: str = field(
        "rest",
        "Interface of the server; grpc needs the extra: pip install 'tf_autoctx[serving]'.",
        choices=("rest", "grpc"),
    )
    server: str | None = field(
        None,
        "Address, host:port, or https://host:port for TLS. By default localhost:8501 for rest, "
        "localhost:8500 for grpc.",
    )
    version: int | None = field(
        None, "Version of the model. By default the highest that the server holds.", least=0
    )
    probabilities: bool = field(
        False, "Write the probability too: float32, rounded to 3 digits so that it compresses."
    )
    requests_in_flight: int = field(1, "Images that are sent at once.", least=1)
    timeout: float = field(
        3600.0,
        "Seconds until the whole answer to one request is there, the server's queue included.",
        least=0.001,
    )
    retries: int = field(
        6,
        "Tries after connection errors and 503 (UNAVAILABLE): the first at once, the others after "
        "waits that double from 1 s. After 3 images in a row without an answer the client stops.",
        least=0,
    )
    series: str | None = field(
        None, "DICOM series of folders that hold several: its UID, or its number in their list."
    )
    overwrite: bool = field(False, "Replace results that are there already.")

    def __post_init__(self) -> None:
        check(self)
        scheme, _, address = self.address.rpartition("://")
        host, _, port = address.rpartition(":")
        known = scheme in ("", "http", "https")
        if not known or not host or set(host) & set("/?#@ ") or not port.isdecimal():
            raise FieldError("server", self.server, "not an address; expected host:port.")
        if int(port) > 65535:
            raise FieldError("server", self.server, "expected a port of 65535 at most.")

    @property
    def address(self) -> str:
        """The server's, host:port or https://host:port."""
        return self.server or f"localhost:{8501 if self.protocol == 'rest' else 8500}"


def main(given: Given) -> None:
    chosen = given.configured(Client)
    from tf_autoctx import serving
    from tf_autoctx.commands import sending, served_card
    from tf_autoctx.systems.shared import origins

    protocol = serving.Rest if chosen.protocol == "rest" else serving.Grpc
    model: serving.Model = protocol(
        chosen.address, chosen.model, chosen.version, chosen.timeout, chosen.requests_in_flight
    )
    with contextlib.closing(model):
        known = serving.with_retries(model.signatures, chosen.retries)
        signature = _signature(chosen, known)
        card = served_card.of_model(model, chosen.model, known, chosen.retries)
        output = pathlib.Path(chosen.output)
        of = f"{chosen.model} {card.digest} {chosen.series}"
        sender = sending.Sender(
            model,
            known,
            signature,
            card,
            output,
            origins.Origins(output, of),
            chosen.retries,
            chosen.overwrite,
            chosen.series,
        )
        jobs = sender.jobs(pathlib.Path(chosen.input), chosen.probabilities)
        if card.labels:
            print("labels:", ", ".join(f"{value} {name}" for value, name in card.labels.items()))
        files.own(output)
        sender.send_all(jobs, chosen.requests_in_flight)


def _signature(chosen: Client, known: Mapping[str, serving.Signature]) -> str:
    """The name of the signature to ask, of those that the model has."""
    from tf_autoctx import serving

    wanted = chosen.probabilities and "probabilities_bytes" in known
    name = "probabilities" if wanted else "serving"
    signature = f"{name}_spacing_bytes"  # of a model that sees images on a grid of its own
    if signature not in known:
        signature = f"{name}_bytes"
    default = known.get("serving_default")
    if signature not in known or default is None or "image" not in default.inputs:
        names = serving.plain(", ".join(sorted(known))) or "none"
        raise FieldError(
            "model",
            chosen.model,
            f"has the signatures {names}; expected {signature}, export it again.",
        )
    return signature


command = Command(main, (Client,), __doc__)
