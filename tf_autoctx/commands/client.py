r"""Segments images with a model that TensorFlow Serving holds, each on its own grid.

  autoctx-client --model=fetal_head --input=scan.nii.gz --output=results
  autoctx-client --model=fetal_head --input=scans --output=results --probabilities \
      --requests_in_flight=4
  autoctx-client --model=renderer --input=frames --output=results --protocol=grpc --server=gpu7:8500

Writes NAME.nii.gz (label values; of PNG, JPEG and TIFF images NAME.png of 0 and 255) and with
--probabilities probabilities/NAME.nii.gz (float32; where the model has several, in the order of its
model_card.json, they are the values of one voxel). A result appears whole or not at all, and images
that have theirs are passed over, so that the same command goes on with a folder that was left half
done. If an image fails, the others are done all the same, and the exit code is 1.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import TYPE_CHECKING

from tf_autoctx.commands.command_line import Command, Given
from tf_autoctx.configuration import check, field
from tf_autoctx.errors import FieldError

if TYPE_CHECKING:
    from tf_autoctx import serving


@dataclasses.dataclass(frozen=True, kw_only=True)
class Client:
    """Client: which server and model, and what is segmented."""

    model: str = field(..., "Name of the model on the server, see serving/models.config.")
    input: str = field(..., "Image file, DICOM series folder, or folder of folders of images.")
    output: str = field(..., "Folder for the results; made if it is missing.")
    protocol: str = field(
        "rest",
        "How the server is spoken to; grpc needs the extra: pip install 'tf_autoctx[serving]'.",
        choices=("rest", "grpc"),
    )
    server: str | None = field(
        None, "Address, host:port. By default localhost:8501 for rest, localhost:8500 for grpc."
    )
    version: int | None = field(
        None, "Version of the model. By default the highest that the server holds.", least=0
    )
    probabilities: bool = field(False, "Write the probability too (float32).")
    requests_in_flight: int = field(1, "Images that are sent at once.", least=1)
    timeout: float = field(
        3600.0,
        "Seconds to wait for the answer to one request, the server's queue included.",
        least=0.001,
    )
    retries: int = field(
        6,
        "Tries after connection errors and 503 (UNAVAILABLE); the waits double from 0.5 s.",
        least=0,
    )
    series: str | None = field(
        None, "DICOM series of a folder that holds several: its UID, or its number in their list."
    )
    overwrite: bool = field(False, "Replace results that are there already.")

    def __post_init__(self) -> None:
        check(self)
        host, _, port = self.address.rpartition(":")
        if not host or "/" in host or not port.isdecimal() or int(port) > 65535:
            raise FieldError("server", self.server, "not an address; expected host:port.")

    @property
    def address(self) -> str:
        """The server's, host:port."""
        return self.server or f"localhost:{8501 if self.protocol == 'rest' else 8500}"


def main(given: Given) -> None:
    chosen = given.configured(Client)
    from tf_autoctx import serving
    from tf_autoctx.commands import sending

    protocol = serving.Rest if chosen.protocol == "rest" else serving.Grpc
    model: serving.Model = protocol(chosen.address, chosen.model, chosen.version, chosen.timeout)
    signature, flat = _signature(chosen, model)
    sender = sending.Sender(
        model,
        signature,
        flat,
        pathlib.Path(chosen.output),
        chosen.retries,
        chosen.overwrite,
        chosen.series,
    )
    jobs = sender.jobs(pathlib.Path(chosen.input), chosen.probabilities)
    sender.send_all(jobs, chosen.requests_in_flight)


def _signature(chosen: Client, model: serving.Model) -> tuple[str, bool]:
    """The signature to ask, and whether it takes 2D images."""
    from tf_autoctx import serving

    known = serving.with_retries(model.signatures, chosen.retries)
    wanted = chosen.probabilities and "probabilities_bytes" in known
    signature = "probabilities_bytes" if wanted else "serving_bytes"
    if signature not in known or "image" not in known.get("serving_default", ()):
        raise FieldError(
            "model",
            chosen.model,
            f"has the signatures {', '.join(sorted(known))}; expected {signature}, export it "
            "again.",
        )
    return signature, known["serving_default"]["image"] == 4  # batch, height, width, channel


command = Command(main, (Client,), __doc__)
