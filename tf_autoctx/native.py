"""What libraries in C and C++ print, past Python's streams."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator

# What TensorFlow says, as it is loaded and lists devices, of any machine without an NVIDIA GPU.
NO_GPU = re.compile(
    r"WARNING: All log messages before absl::InitializeLog\(\)|"
    r"[IWE]\d{4} .* (port|cudart_stub|cuda_platform|cuda_diagnostics)\.cc:\d+\] "
)
_lock = threading.Lock()


class Lines(list[str]):
    """Lines that were printed, empty until the block of `caught` ends."""


@contextlib.contextmanager
def caught() -> Iterator[Lines]:
    """Catches what is printed to standard output and standard error, one thread at a time.

    Yields:
      The lines, once the block has ended.
    """
    lines, library = Lines(), ctypes.CDLL(None)
    with _lock, tempfile.TemporaryFile() as file:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(AttributeError, OSError, ValueError):  # none, or closed
                stream.flush()
        library.fflush(None)
        kept = [os.dup(number) for number in (1, 2)]
        for number in (1, 2):
            os.dup2(file.fileno(), number)
        try:
            yield lines
        finally:
            library.fflush(None)
            for number, descriptor in zip((1, 2), kept):
                os.dup2(descriptor, number)
                os.close(descriptor)
            file.seek(0)
            lines.extend(file.read().decode(errors="backslashreplace").splitlines())


@contextlib.contextmanager
def without_noise() -> Iterator[None]:
    """TensorFlow is imported in the block, and lists the devices, without a word of GPUs that are
    not there; whatever else is printed comes at its end."""
    lines = Lines()
    try:
        with caught() as lines:
            yield
            if "tensorflow" in sys.modules:
                sys.modules["tensorflow"].config.list_physical_devices()
    finally:
        for line in lines:
            if not NO_GPU.match(line):
                print(line, file=sys.stderr)
