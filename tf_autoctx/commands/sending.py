"""How the client sends images to a server, and writes what comes back."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import pathlib
import sys
import time
from collections.abc import Sequence

import numpy as np

from tf_autoctx import serving
from tf_autoctx.data import images, names
from tf_autoctx.errors import FieldError, UserError, sentence


@dataclasses.dataclass(frozen=True)
class Job:
    """An image and the files of its results; `probability` is None where it is not wanted."""

    path: str
    label: pathlib.Path
    probability: pathlib.Path | None

    @property
    def results(self) -> dict[str, pathlib.Path]:
        """{output of the signature: file}."""
        probability = {"probability_bytes": self.probability} if self.probability else {}
        return {"label_bytes": self.label, **probability}


@dataclasses.dataclass(frozen=True)
class Sender:
    """Sends images to one signature of a model.

    Attributes:
      model: on a server.
      signature: its name.
      flat: whether it takes 2D images.
      output: folder of the results.
      retries: see `serving.with_retries`.
      overwrite: whether results that are there are replaced.
      series: which of several DICOM series of a folder, see `images.read`.
    """

    model: serving.Model
    signature: str
    flat: bool
    output: pathlib.Path
    retries: int
    overwrite: bool
    series: str | None = None

    def jobs(self, source: pathlib.Path, probabilities: bool) -> list[Job]:
        """The images of a file or folder that lack results.

          Raises:
            FieldError: a series is wanted and there is no DICOM folder.
        UserError: no image; a result would replace an image or another result.
        """
        if source.is_dir():
            sources = names.find(source, series=not self.flat, below=True, without=self.output)
        else:
            sources = {names.case_name(source): str(source)}
        wanted = self.series
        if wanted is not None and not any(pathlib.Path(p).is_dir() for p in sources.values()):
            raise FieldError("series", wanted, f"{source} holds no DICOM folder; expected one.")
        jobs = []
        for name, path in sources.items():
            pixels = self.flat and str(path).lower().endswith(images.PIXELS_ONLY)
            label = self.output / f"{name}{'.png' if pixels else '.nii.gz'}"
            probability = self.output / "probabilities" / f"{name}.nii.gz"
            jobs.append(Job(path, label, probability if probabilities else None))
        images.require_own_files({job.path: job.results.values() for job in jobs})
        if self.overwrite:
            return jobs
        left = [job for job in jobs if not all(file.exists() for file in job.results.values())]
        if len(left) < len(jobs):
            print(f"{len(jobs) - len(left)} of {len(jobs)} images have their results already.")
        return left

    def send(self, job: Job) -> None:
        """Sends one image and writes what it lacks.

        Raises:
          UserError: an unreadable image, a server that refuses, an answer of another size.
        """
        image = self._read(job.path)
        voxels = image.array
        voxels = voxels.astype(voxels.dtype if voxels.dtype.name in serving.TYPES else np.float32)
        voxels = np.ascontiguousarray(voxels, voxels.dtype.newbyteorder("<"))

        def ask() -> dict[str, bytes]:
            return self.model.predict(self.signature, voxels, list(job.results))

        try:
            reply = serving.with_retries(ask, self.retries)
        except UserError as error:
            raise UserError(f"{job.path}: {error}") from None
        outputs = {name: _decoded(job, name, reply[name], voxels.shape) for name in job.results}
        for name, file in job.results.items():
            if self.overwrite or not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                shown = 255 * outputs[name] if file.suffix == ".png" else outputs[name]
                images.write(file, image.like(shown))

    def _read(self, path: str) -> images.Image:
        if self.flat:
            return images.read_2d(path, grey_levels=True, series=self.series)
        image = images.read(path, self.series)
        images.require_dimensions(path, image, 3)
        return image

    def send_all(self, jobs: Sequence[Job], requests_in_flight: int) -> None:
        """Sends images, several at once; one that fails does not stop the others.

        Raises:
          UserError: an image failed.
        """
        failures, begin = [], time.monotonic()
        pool = concurrent.futures.ThreadPoolExecutor(requests_in_flight)
        try:
            running = [pool.submit(self.send, job) for job in jobs]
            for count, done in enumerate(concurrent.futures.as_completed(running), 1):
                error = done.exception()
                if error is not None and not isinstance(error, UserError):
                    raise error
                if error is not None:
                    failures.append(error)
                if len(jobs) > 1:
                    _show(count, len(jobs), time.monotonic() - begin)
        finally:
            pool.shutdown(cancel_futures=True)  # of an interrupt: what is sent is finished
        if len(jobs) == 1 and failures:
            raise failures[0]
        for failure in failures:
            print(f"error: {sentence(failure)}", file=sys.stderr)
        if failures:
            raise UserError(
                f"{len(failures)} of {len(jobs)} images failed; run again to send these once more."
            )


def _decoded(job: Job, name: str, raw: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """An output of a reply, of the image's shape or with a last axis of values."""
    dtype, voxels = np.dtype("u1" if name == "label_bytes" else "<f4"), int(np.prod(shape))
    values, rest = divmod(len(raw), voxels * dtype.itemsize)
    if rest or values < 1 or (name == "label_bytes" and values != 1):
        raise UserError(
            f"{job.path}: {name} of the answer has {len(raw)} bytes; expected {dtype.itemsize} for "
            f"each of {voxels} voxels."
        )
    return np.frombuffer(raw, dtype).reshape(shape + (values,) * (values > 1))


def _show(count: int, jobs: int, seconds: float) -> None:
    """The progress, on one line."""
    each, left = seconds / count, jobs - count
    told = f"{count} of {jobs} images, {each:.1f} s an image, {left * each:.0f} s to go"
    print(f"\r{told}  ", end="" if left else "\n", flush=True)
