"""What TensorFlow's C++ side says of a machine without a GPU, past Python's streams."""

from __future__ import annotations

import contextlib
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator

# Lines that it prints as it is loaded, and when it lists devices, on any such machine.
NO_GPU = (
    r"^WARNING: All log messages before absl::InitializeLog\(\)|"
    r"^[IWE][0-9]{4} .* (port|cudart_stub|cuda_platform|cuda_diagnostics)\.cc:[0-9]+\] "
)
DRIVER = "nvidia[0-9]*"  # in /dev, where there is one: what is said of it then, says what is wrong
WANTED = ("0", "1")  # levels of TF_CPP_MIN_LOG_LEVEL, 2 by default


@contextlib.contextmanager
def without_noise(devices: pathlib.Path = pathlib.Path("/dev")) -> Iterator[None]:
    """TensorFlow is imported in the block, and lists the devices, without a word of GPUs that are
    not there.

    grep filters standard error, as a process of its own: if this one crashes meanwhile, its last
    words come out.
    """
    wanted = os.environ.get("TF_CPP_MIN_LOG_LEVEL") in WANTED or any(devices.glob(DRIVER))
    with contextlib.nullcontext() if wanted else _without(NO_GPU):
        yield
        if "tensorflow" in sys.modules:
            sys.modules["tensorflow"].config.list_physical_devices()


@contextlib.contextmanager
def _without(lines: str) -> Iterator[None]:
    """Standard error without lines of an extended regular expression."""
    command = ["grep", "--text", "--line-buffered", "--invert-match", "--extended-regexp", lines]
    with contextlib.ExitStack() as stack:
        try:
            grep = stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=2))
        except OSError:  # no grep
            yield
            return
        assert grep.stdin is not None
        sys.stderr.flush()
        kept = os.dup(2)
        os.dup2(grep.stdin.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
