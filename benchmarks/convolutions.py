"""The convolutions of a TensorFlow graph: each run alone, and their share of a step's time.

What a network's convolutions take when nothing else runs is the limit of any implementation that
computes them by the same library. The list is read off the traced graph, gradients included: it is
that of the code as it is.
"""

from __future__ import annotations

import collections
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

CONVOLUTIONS = (
    "Conv2D",
    "Conv2DBackpropInput",
    "Conv2DBackpropFilter",
    "Conv3D",
    "Conv3DBackpropInputV2",
    "Conv3DBackpropFilterV2",
)
# What an operation is in a graph that TensorFlow has rewritten, such as a convolution with its bias
PREFIXES = ("_MklNative", "_Mkl", "_Fused", "Fused")
BETWEEN = "between operations"
ATTRIBUTES = ("strides", "padding", "data_format", "dilations")
Key = tuple[Any, ...]


def listed(graph: Any) -> collections.Counter[Key]:
    """How often a graph runs each convolution: (type, (dtype, shape) of each input, attributes).

    Gradients that nobody asks for, such as that of the image, are in a traced graph and not run.

    Args:
      graph: of a concrete function.

    Raises:
      ValueError: a shape is not known in the graph; it must be traced for one size.
    """
    counts: collections.Counter[Key] = collections.Counter()
    for operation in _needed(graph):
        if operation.type not in CONVOLUTIONS:
            continue
        given = []
        for x in operation.inputs:
            is_size = x.dtype == tf.int32  # of the result, which the operation is told
            shape = operation.outputs[0].shape if is_size else x.shape
            if not shape.is_fully_defined():
                raise ValueError(f"{operation.name}: {shape}; expected known sizes")
            given.append((x.dtype, tuple(shape), is_size))
        attributes = []
        for name in ATTRIBUTES:
            value = operation.get_attr(name)
            value = value.decode() if isinstance(value, bytes) else value
            attributes.append((name, tuple(value) if isinstance(value, list) else value))
        counts[operation.type, tuple(given), tuple(attributes)] += 1
    return counts


def _needed(graph: Any) -> list[Any]:
    """The operations that a concrete function runs: those that its results and effects need."""
    waiting = [*(x.op for x in graph.outputs), *graph.control_outputs]
    seen: dict[str, Any] = {}
    while waiting:
        operation = waiting.pop()
        if operation.name not in seen:
            seen[operation.name] = operation
            waiting += [*(x.op for x in operation.inputs), *operation.control_inputs]
    return list(seen.values())


def alone(counts: collections.Counter[Key]) -> Callable[[], float]:
    """Runs every convolution of a list by itself, as often as it is there: -> seconds of all.

    What they are given is made anew each time and not timed: those of a large volume do not fit
    into the memory together.
    """
    programs = [(count, key[1], _program(key)) for key, count in counts.items()]

    def run() -> float:
        total = 0.0
        for count, given, program in programs:
            tensors = [(dtype, shape) for dtype, shape, is_size in given if not is_size]
            inputs = [tf.fill(shape, tf.cast(0.5, dtype)) for dtype, shape in tensors]
            begin = time.perf_counter()
            program(*inputs)
            total += count * (time.perf_counter() - begin)
        return total

    return run


def _program(key: Key) -> Callable[..., Any]:
    """A convolution as a graph of its tensors, traced."""
    kind, given, attributes = key
    names = [argument.name for argument in _definition(kind).input_arg]
    raw = getattr(tf.raw_ops, kind)

    def convolution(*tensors: Any) -> Any:
        rest = iter(tensors)
        inputs = {
            name: tf.constant(shape, tf.int32) if is_size else next(rest)
            for name, (_, shape, is_size) in zip(names, given)
        }
        return raw(**inputs, **{k: list(v) if isinstance(v, tuple) else v for k, v in attributes})

    specs = [tf.TensorSpec(shape, dtype) for dtype, shape, is_size in given if not is_size]
    return tf.function(convolution, input_signature=specs).get_concrete_function()


def _definition(kind: str) -> Any:
    from tensorflow.python.framework import op_def_registry

    return op_def_registry.get(kind)


# Profiles


def profiled(step: Callable[[], Any], steps: int = 2) -> dict[str, float]:
    """{operation: seconds a step}, the longest first, of a step by TensorFlow's profiler.

    The time of an operation is its own: what it calls counts there. With one thread between
    operations (`tf.config.threading`) what is left of the step is time between them, `BETWEEN`.
    """
    step()
    with tempfile.TemporaryDirectory() as folder:
        options = tf.profiler.experimental.ProfilerOptions(host_tracer_level=2)
        tf.profiler.experimental.start(folder, options)
        begin = time.perf_counter()
        for _ in range(steps):
            step()
        seconds = (time.perf_counter() - begin) / steps
        tf.profiler.experimental.stop()
        (path,) = pathlib.Path(folder).rglob("*.xplane.pb")
        totals: dict[str, float] = collections.defaultdict(float)
        for name, own in _own_times(path):
            totals[name] += own / steps
    totals[BETWEEN] = max(0.0, seconds - sum(totals.values()))
    return dict(sorted(totals.items(), key=lambda item: -item[1]))


def _own_times(path: pathlib.Path) -> Iterator[tuple[str, float]]:
    """(operation, its own seconds) of every event of a trace that is an operation."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    space = xplane_pb2.XSpace.FromString(path.read_bytes())
    for plane in space.planes:
        names = {number: metadata.name for number, metadata in plane.event_metadata.items()}
        for line in plane.lines:
            spans = []
            for event in line.events:
                end = event.offset_ps + event.duration_ps
                spans.append((event.offset_ps, end, _kind(names[event.metadata_id])))
            yield from _nested(span for span in spans if span[2])


def _kind(name: str) -> str:
    """The operation of an event called node:operation; "" for any other event."""
    _, colon, kind = name.rpartition(":")
    if not colon or not kind.replace("_", "").isalnum():
        return ""
    for prefix in PREFIXES:
        kind = kind.removeprefix(prefix)
    return kind if _definition(kind) is not None else ""


def _nested(spans: Iterator[tuple[int, int, str]]) -> Iterator[tuple[str, float]]:
    """Spans of one thread, each without those that lie in it: (kind, seconds)."""
    open_: list[list[Any]] = []  # [end, kind, own]
    for begin, end, kind in sorted(spans, key=lambda span: (span[0], -span[1])):
        while open_ and open_[-1][0] <= begin:
            _, done, own = open_.pop()
            yield done, own * 1e-12
        if open_:
            open_[-1][2] -= end - begin
        open_.append([end, kind, end - begin])
    for _, done, own in open_:
        yield done, own * 1e-12


def convolution_share(seconds: dict[str, float]) -> float:
    """Share of the convolutions in what `profiled` returns."""
    of_convolutions = sum(value for kind, value in seconds.items() if kind.startswith("Conv"))
    return of_convolutions / sum(seconds.values())
