"""What the processes of `test_isolation` do; it imports little, as they all import it."""

import ctypes
import os
import pathlib
import pickle
import signal
import sys
import threading
import time

import numpy as np
from absl import logging

from tf_autoctx.errors import FieldError, UserError


def work(path, what):
    """What a library might do to a file's process."""
    match what:
        case "abort":
            os.abort()
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "segmentation fault":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "exit":
            os._exit(3)
        case "memory":
            bytearray(1 << 60)
        case "mistake":
            raise UserError(f"{path}: is bad; expected good.")
        case "field":
            raise FieldError("patch_size", 64, "too large; expected 32.")
        case "forbidden":
            raise PermissionError(13, "Permission denied", path)
        case "warning":
            logging.warning("%s: is odd.", path)
        case "bug":
            raise ValueError("a bug")
        case "no pickle":
            return threading.Lock()
        case "process":
            return os.getpid()
        case "print":
            print("noise")
            os.write(2, b"noise")
        case "wait":
            until = time.monotonic() + 60
            while not os.path.exists(path):
                assert time.monotonic() < until
                time.sleep(0.01)
        case "modules":
            return list(sys.modules)
        case "large":
            return np.arange(3_000_000)
        case "lent":
            return Lent()
    return what


class Lent:
    """An object of a library that is sent by its memory, and takes that back when it ends."""

    def __init__(self):
        self.memory = np.arange(1000)

    def __reduce_ex__(self, protocol):
        return bytes, (pickle.PickleBuffer(self.memory),)

    def __del__(self):
        self.memory[:] = 0


def busy(path):
    """Writes its process's number and holds the interpreter's lock, as a library would."""
    pathlib.Path(path).write_text(str(os.getpid()))
    ctypes.PyDLL(None).sleep(60)


def refuse_at(letters):
    """Lets nothing be written to files of a name with these letters."""
    from tf_autoctx.data import images

    write = images.write

    def refuse(path, *arguments):
        if letters in str(path):
            raise UserError(f"{path}: refused; expected another.")
        write(path, *arguments)

    images.write = refuse


def end_at(letters):
    """Lets the process be killed that writes files of a name with these letters."""
    from tf_autoctx.data import images

    write = images.write

    def end(path, *arguments):
        if letters in str(path):
            os.kill(os.getpid(), signal.SIGKILL)
        write(path, *arguments)

    images.write = end


def abort_at(letters):
    """Lets ITK abort on files of a name with these letters."""
    from tf_autoctx.data import integrity

    whole = integrity.check

    def check(path):
        if letters in str(path):
            os.abort()
        whole(path)

    integrity.check = check
