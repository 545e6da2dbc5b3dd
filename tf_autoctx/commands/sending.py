"""How the client sends images to a server, and writes what comes back."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import math
import pathlib
import sys
import threading
import time
from collections.abc import Mapping, Sequence

import numpy as np

from tf_autoctx import serving
from tf_autoctx.commands.served_card import Card
from tf_autoctx.data import images, isolation, names
from tf_autoctx.errors import FieldError, UserError, sentence
from tf_autoctx.systems.shared import origins
from tf_autoctx.systems.shared.origins import Origins

UNANSWERED = 3  # images in a row without an answer, after which no more are sent
DTYPES = {"label_bytes": "u1", "probability_bytes": "<f4"}


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """An image and the results that it lacks: {output of the signature: file}."""

    path: str
    results: Mapping[str, pathlib.Path]


@dataclasses.dataclass(frozen=True)
class Sender:
    """Sends images to one signature of a model.

    Attributes:
      model: on a server.
      known: its signatures.
      signature: the name of the one that is asked.
      card: of the model.
      output: folder of the results.
      made_from: what those that are there were made from.
      retries: see `serving.with_retries`.
      overwrite: whether results that are there are replaced.
      series: which of several DICOM series of a folder, see `images.read`.
    """

    model: serving.Model
    known: Mapping[str, serving.Signature]
    signature: str
    card: Card
    output: pathlib.Path
    made_from: Origins
    retries: int
    overwrite: bool
    series: str | None = None

    @property
    def flat(self) -> bool:
        """Whether the model takes 2D images: batch, height, width, channel."""
        return self.known["serving_default"].inputs["image"] == 4

    def jobs(self, source: pathlib.Path, probabilities: bool) -> list[Job]:
        """The images of a file or folder that lack results, or whose image or model has changed.

        Raises:
          FieldError: a series is wanted and there is no DICOM folder.
          UserError: no image; a result would replace an image or another result.
        """
        sources = names.given(source, not self.flat, self.output, self.card.channels)
        series = self.series
        if series is not None and not any(pathlib.Path(p).is_dir() for p in sources.values()):
            raise FieldError("series", series, f"{source} holds no DICOM folder; expected one.")
        wanted = {}
        for name, path in sources.items():
            pixels = self.flat and str(path).lower().endswith(images.PIXELS_ONLY)
            label = self.output / f"{name}{'.png' if pixels else '.nii.gz'}"
            wanted[path] = {"label_bytes": label}
            if probabilities:
                probability = self.output / "probabilities" / f"{name}.nii.gz"
                wanted[path]["probability_bytes"] = probability
        images.require_own_files({path: results.values() for path, results in wanted.items()})
        resume = not self.overwrite
        left = origins.still_wanted(wanted, self.made_from, overwrite=self.overwrite, resume=resume)
        if len(left) < len(wanted):
            print(f"{len(wanted) - len(left)} of {len(wanted)} images have their results already.")
        return [Job(path, results) for path, results in left.items()]

    def send(self, job: Job, image: images.Image, stop: threading.Event) -> None:
        """Sends one image and writes what it lacks.

        Args:
          job: its files.
          image: see `images.read_raw`.
          stop: where it is set meanwhile, no more tries are made.

        Raises:
          UnansweredError: a server that does not answer.
          UserError: voxels that are not finite, an unknown spacing where it matters, a server that
            refuses, an answer of another size or that is not finite.
        """
        voxels = image.array
        self.card.warn(image, voxels)
        voxels = voxels.astype(voxels.dtype if voxels.dtype.name in serving.TYPES else np.float32)
        voxels = np.ascontiguousarray(voxels, voxels.dtype.newbyteorder("<"))
        # Whether it is finite tells of the label too.
        asked = set(job.results) | (set(DTYPES) & set(self.known[self.signature].outputs))
        shape = voxels.shape[: 2 if self.flat else 3]
        most = serving.most_bytes(self.known, self.signature, math.prod(shape))
        resamples = "spacing" in self.known[self.signature].inputs
        spacing = image.millimetres if resamples else None
        if resamples and spacing is None:
            raise UserError(
                f"{job.path}: its spacing is unknown; expected mm, as this model resamples images."
            )
        request = serving.Request(self.signature, voxels, asked, most, spacing)

        def ask() -> dict[str, bytes]:
            return self.model.predict(request)

        try:
            reply = serving.with_retries(ask, self.retries, stop)
        except UserError as error:
            raise type(error)(f"{job.path}: {error}") from None
        outputs = {name: _decoded(job, name, reply[name], shape) for name in asked}
        for name, file in job.results.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            shown = 255 * outputs[name] if file.suffix == ".png" else outputs[name]
            if name == "probability_bytes":
                shown = images.rounded(shown)
            with self.made_from.noting(job.path, [file], may_change=name == "label_bytes"):
                images.write(file, image.like(shown))

    def send_all(self, jobs: Sequence[Job], requests_in_flight: int) -> None:
        """Sends images, several at once; one that fails does not stop the others.

        They are read in processes of their own: see `isolation`.

        Raises:
          UserError: an image failed, or the server does not answer any more.
        """
        state = _State(len(jobs))
        senders = concurrent.futures.ThreadPoolExecutor(requests_in_flight)
        dimensions = 2 if self.flat else 3
        of_model = dimensions, self.series, self.card.channels
        tasks = {job: (job.path, *of_model) for job in jobs}
        running: set[concurrent.futures.Future[None]] = set()
        try:
            with isolation.Pool(min(requests_in_flight, isolation.cpus(), len(jobs))) as readers:
                for job, image in readers.map(images.read_raw, tasks.items()) if jobs else ():
                    if isinstance(image, UserError):
                        state.read_failed(image)
                        continue
                    running.add(senders.submit(self.send, job, image, state.stop))
                    if len(running) >= requests_in_flight:
                        running = state.first_done(running)
                    if state.stop.is_set():
                        break
            while running:
                running = state.first_done(running)
        except BaseException:
            state.stop.set()
            raise
        finally:
            senders.shutdown(cancel_futures=True)  # of an interrupt: what is sent is finished
        state.require_no_failure()


class _State:
    """How far the sending of images is.

    Attributes:
      stop: set when the server does not answer any more.
    """

    def __init__(self, images: int) -> None:
        self.stop = threading.Event()
        self._images, self._done, self._unanswered = images, 0, 0
        self._failures: list[UserError] = []
        self._begin = time.monotonic()

    def read_failed(self, error: UserError) -> None:
        """Notes an image that could not be read."""
        self._failures.append(error)
        self._one_more()

    def first_done(
        self, running: set[concurrent.futures.Future[None]]
    ) -> set[concurrent.futures.Future[None]]:
        """Waits until some images are sent; returns the others."""
        done, running = concurrent.futures.wait(
            running, return_when=concurrent.futures.FIRST_COMPLETED
        )
        for future in done:
            error = future.exception()
            if error is not None and not isinstance(error, UserError):
                raise error
            if error is not None:
                self._failures.append(error)
            is_unanswered = isinstance(error, serving.UnansweredError)
            self._unanswered = self._unanswered + 1 if is_unanswered else 0
            if self._unanswered >= UNANSWERED:
                self.stop.set()
            self._one_more()
        return running

    def require_no_failure(self) -> None:
        """Raises a `UserError` where an image failed, and prints which ones where there are several
        images."""
        if not self._failures:
            return
        if self._images == 1:
            raise self._failures[0]
        if self._done < self._images:
            print()
        for failure in self._failures:
            print(f"error: {sentence(failure)}", file=sys.stderr)
        told = f"{len(self._failures)} of {self._images} images failed"
        if self._done < self._images:
            raise UserError(
                f"{told} and {self._images - self._done} were not sent, since the server did not "
                f"answer {UNANSWERED} times in a row; run again to send them."
            )
        raise UserError(f"{told}; run again to send these once more.")

    def _one_more(self) -> None:
        self._done += 1
        if self._images > 1:
            _show(self._done, self._images, time.monotonic() - self._begin)


def _decoded(job: Job, name: str, raw: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """An output of a reply, of the image's shape or with a last axis of values."""
    dtype, voxels = np.dtype(DTYPES[name]), int(np.prod(shape))
    values, rest = divmod(len(raw), voxels * dtype.itemsize)
    if rest or values < 1 or (name == "label_bytes" and values != 1):
        raise UserError(
            f"{job.path}: {name} of the answer has {len(raw)} bytes; expected {dtype.itemsize} for "
            f"each of {voxels} voxels."
        )
    output = np.frombuffer(raw, dtype)
    unusable = output.size - np.count_nonzero(np.isfinite(output))
    if unusable:
        raise UserError(
            f"{job.path}: {unusable} of {output.size} values of {name} of the answer are NaN or "
            "infinite; expected numbers, nothing is written."
        )
    return output.reshape(shape + (values,) * (values > 1))


def _show(count: int, jobs: int, seconds: float) -> None:
    """The progress, on one line."""
    each, left = seconds / count, jobs - count
    told = f"{count} of {jobs} images, {each:.1f} s an image, {left * each:.0f} s to go"
    print(f"\r{told}  ", end="" if left else "\n", flush=True)
