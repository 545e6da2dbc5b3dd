"""TensorFlow's own C++ loader of SavedModels, the one that TensorFlow Serving calls, from Python.

The tensorflow wheel's `libtensorflow_cc` exports the C interface to it:
`TF_LoadSessionFromSavedModel` calls `tensorflow::LoadSavedModel`. Unlike `tf.saved_model.load` it
knows nothing of Python: it reads graph and variables, runs what the signature names, and fails
where a server would.
"""

from __future__ import annotations

import ctypes
import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf  # First: it loads the library's parts, and registers the ops.
from tensorflow.core.protobuf import config_pb2, saved_model_pb2

LIBRARY = pathlib.Path(tf.__file__).parent / "libtensorflow_cc.so.2"
STRING_BYTES = 24  # of a TF_TString in a string tensor


class _Output(ctypes.Structure):
    _fields_ = [("operation", ctypes.c_void_p), ("index", ctypes.c_int)]


@functools.cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(LIBRARY))
    pointer, size, integer, text = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_char_p
    sizes = ctypes.POINTER(ctypes.c_int64)
    pointers, outputs = ctypes.POINTER(pointer), ctypes.POINTER(_Output)
    for name, result, *arguments in (
        ("NewStatus", pointer),
        ("DeleteStatus", None, pointer),
        ("GetCode", integer, pointer),
        ("Message", text, pointer),
        ("NewGraph", pointer),
        ("DeleteGraph", None, pointer),
        ("NewSessionOptions", pointer),
        ("SetConfig", None, pointer, text, size, pointer),
        ("DeleteSessionOptions", None, pointer),
        (
            "LoadSessionFromSavedModel",
            pointer,
            *(pointer, pointer, text, ctypes.POINTER(text), integer, pointer, pointer, pointer),
        ),
        ("CloseSession", None, pointer, pointer),
        ("DeleteSession", None, pointer, pointer),
        ("GraphOperationByName", pointer, pointer, text),
        (
            "SessionRun",
            None,
            *(pointer, pointer, outputs, pointers, integer, outputs, pointers, integer),
            *(pointers, integer, pointer, pointer),
        ),
        ("AllocateTensor", pointer, integer, sizes, integer, size),
        ("DeleteTensor", None, pointer),
        ("TensorData", pointer, pointer),
        ("TensorByteSize", size, pointer),
        ("TensorType", integer, pointer),
        ("NumDims", integer, pointer),
        ("Dim", ctypes.c_int64, pointer, integer),
        ("StringInit", None, pointer),
        ("StringCopy", None, pointer, text, size),
        ("StringDealloc", None, pointer),
        ("StringGetDataPointer", pointer, pointer),
        ("StringGetSize", size, pointer),
    ):
        function = getattr(library, f"TF_{name}")
        function.restype, function.argtypes = result, arguments
    return library


class CppModel:
    """A SavedModel in a C++ session; may be called from several threads at once.

    Args:
      folder: of one version, with a saved_model.pb.

    Attributes:
      signatures: {name: SignatureDef}.

    Raises:
      OSError: no such model, or no such library.
      RuntimeError: TensorFlow cannot load it; the message is TensorFlow's.
    """

    def __init__(self, folder: str | pathlib.Path) -> None:
        self.session = None
        definition = saved_model_pb2.SavedModel.FromString(
            (pathlib.Path(folder) / "saved_model.pb").read_bytes()
        )
        (meta_graph,) = definition.meta_graphs
        self.signatures = {
            name: signature
            for name, signature in meta_graph.signature_def.items()
            if name != "__saved_model_init_op"  # the loader's own
        }
        self.library = _library()
        self.graph = self.library.TF_NewGraph()
        options = self.library.TF_NewSessionOptions()
        # What Grappler makes of a graph is made anew for every signature and size, in longer than
        # tiny networks take.
        config = config_pb2.ConfigProto()
        config.graph_options.rewrite_options.disable_meta_optimizer = True
        proto = config.SerializeToString()
        self._checked("SetConfig", options, proto, len(proto))
        tags = (ctypes.c_char_p * 1)(b"serve")
        try:
            self.session = self._checked(
                "LoadSessionFromSavedModel",
                options,
                None,
                str(folder).encode(),
                tags,
                1,
                self.graph,
                None,
            )
        except RuntimeError:
            self.library.TF_DeleteGraph(self.graph)
            raise
        finally:
            self.library.TF_DeleteSessionOptions(options)

    def __call__(self, signature: str, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Runs one signature.

        Args:
          signature: its name.
          inputs: {name: array of the signature's dtype}; of strings: bytes, or nested lists or
            arrays of them.

        Returns:
          {name: array}; of strings: arrays of `object`, whose elements are bytes.

        Raises:
          KeyError: no such signature, an input too many or too few.
          RuntimeError: TensorFlow cannot run it; the message is TensorFlow's.
        """
        definition = self.signatures[signature]
        if inputs.keys() != definition.inputs.keys():
            raise KeyError(
                f"{signature}: inputs are {sorted(inputs)}; expected {sorted(definition.inputs)}"
            )
        feeds = [self._output(info) for info in definition.inputs.values()]
        names, fetches = (
            list(definition.outputs),
            [self._output(info) for info in definition.outputs.values()],
        )
        given, found = [], (ctypes.c_void_p * len(fetches))()
        try:
            for name, info in definition.inputs.items():
                given.append(self._tensor(inputs[name], info))
            self._checked(
                "SessionRun",
                self.session,
                None,
                (_Output * len(feeds))(*feeds),
                (ctypes.c_void_p * len(given))(*given),
                len(given),
                (_Output * len(fetches))(*fetches),
                found,
                len(fetches),
                None,
                0,
                None,
            )
            return {name: self._array(tensor) for name, tensor in zip(names, found)}
        finally:
            for tensor in found:
                if tensor:
                    self.library.TF_DeleteTensor(tensor)
            for tensor in given:
                self._delete_input(tensor)

    def close(self) -> None:
        """Frees session, variables and graph; the model cannot be called any more."""
        if self.session is not None:
            session, self.session = self.session, None
            self._checked("CloseSession", session)
            self._checked("DeleteSession", session)
            self.library.TF_DeleteGraph(self.graph)

    def _checked(self, function: str, *arguments: Any) -> Any:
        """Calls a function of the library whose last argument is a status."""
        status = self.library.TF_NewStatus()
        try:
            result = getattr(self.library, f"TF_{function}")(*arguments, status)
            if self.library.TF_GetCode(status):
                raise RuntimeError(self.library.TF_Message(status).decode(errors="replace"))
            return result
        finally:
            self.library.TF_DeleteStatus(status)

    def _output(self, info: Any) -> _Output:
        name, index = info.name.rsplit(":", 1)
        return _Output(self.library.TF_GraphOperationByName(self.graph, name.encode()), int(index))

    def _tensor(self, values: Any, info: Any) -> Any:
        """A new tensor with a copy of the values."""
        strings = tf.as_dtype(info.dtype) == tf.string
        array = np.asarray(values, object if strings else None)
        if not strings and array.dtype != tf.as_dtype(info.dtype).as_numpy_dtype:
            raise RuntimeError(
                f"{info.name}: dtype is {array.dtype}; expected {tf.as_dtype(info.dtype).name}"
            )
        size = array.size * STRING_BYTES if strings else array.nbytes
        tensor = self.library.TF_AllocateTensor(
            info.dtype, (ctypes.c_int64 * array.ndim)(*array.shape), array.ndim, size
        )
        data = self.library.TF_TensorData(tensor)
        if strings:
            for number, value in enumerate(array.ravel()):
                self.library.TF_StringInit(data + number * STRING_BYTES)
                self.library.TF_StringCopy(data + number * STRING_BYTES, value, len(value))
        elif size:
            ctypes.memmove(data, np.ascontiguousarray(array).ctypes.data, size)
        return tensor

    def _array(self, tensor: Any) -> np.ndarray:
        """A copy of a tensor's values."""
        shape = [
            self.library.TF_Dim(tensor, axis) for axis in range(self.library.TF_NumDims(tensor))
        ]
        kind, data = (
            tf.as_dtype(self.library.TF_TensorType(tensor)),
            self.library.TF_TensorData(tensor),
        )
        if kind != tf.string:
            array = np.empty(shape, kind.as_numpy_dtype)
            if array.nbytes:
                ctypes.memmove(array.ctypes.data, data, array.nbytes)
            return array
        array = np.empty(int(np.prod(shape)), object)
        for number in range(array.size):
            string = data + number * STRING_BYTES
            array[number] = ctypes.string_at(
                self.library.TF_StringGetDataPointer(string), self.library.TF_StringGetSize(string)
            )
        return array.reshape(shape)

    def _delete_input(self, tensor: Any) -> None:
        # A tensor of the C interface does not free the strings that were put into it.
        if tf.as_dtype(self.library.TF_TensorType(tensor)) == tf.string:
            data = self.library.TF_TensorData(tensor)
            for number in range(self.library.TF_TensorByteSize(tensor) // STRING_BYTES):
                self.library.TF_StringDealloc(data + number * STRING_BYTES)
        self.library.TF_DeleteTensor(tensor)
