"""How tests run scripts and exports: as a user, or a server, does."""

import contextlib
import importlib
import json
import pathlib
import subprocess
import sys

import cpp_loader
import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.python.framework import op_def_registry

from tf_autoctx import export
from tf_autoctx.systems.shared import opening, prediction

ROOT = pathlib.Path(__file__).resolve().parent.parent


def train(system, *arguments):
    """Runs the training command of a system in this process; the dtype policy comes back."""
    call(f"train_{system}", *arguments)


def call(command, *arguments):
    """Runs a command of the package in this process, as a user does; a mistake is SystemExit(1)."""
    module = importlib.import_module(f"tf_autoctx.commands.{command}")
    policy = keras.config.dtype_policy()
    try:
        module.command.perform([str(argument) for argument in arguments])
    finally:
        keras.config.set_dtype_policy(policy)


@contextlib.contextmanager
def unexported():
    """Trainings end without an export, which takes as long as a tiny training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opening, "export_run", lambda *_, **__: None)
        yield


def script(name, *arguments):
    """Runs a script in a process of its own."""
    command = [sys.executable, name, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", timeout=300)


def served(folder, image, signature="serving_default"):
    """What TensorFlow's C++ loader, and so TensorFlow Serving, answers for images (batch, *spatial, 1) float32."""
    model = cpp_loader.CppModel(folder)
    try:
        return model(signature, {"image": image})
    finally:
        model.close()


def check_export(version, image, folder):
    """Checks what is true of every export, by random images of uint8 (2 or more, *spatial); `folder` gets files.

    Every signature runs in TensorFlow's C++ loader; those for bytes answer as their twins, whose answers for one image
    do not depend on the others; all ops are stock; saved_model_cli shows and runs it; the card describes it.
    """
    card = json.loads((version / export.CARD).read_text())
    model = cpp_loader.CppModel(version)
    assert {name: (set(x.inputs), set(x.outputs)) for name, x in model.signatures.items()} == {
        name: (set(x["inputs"]), set(x["outputs"])) for name, x in card["signatures"].items()
    }
    plain = [name for name in card["signatures"] if not name.endswith("_bytes")]
    assert len(card["signatures"]) == 2 * len(plain) and "serving_default" in plain
    shape, raw = np.array(image.shape[1:], np.int32), [one.tobytes() for one in image]
    answers = {}
    for signature in plain:
        answer = answers[signature] = model(
            signature, {"image": image[..., None].astype(np.float32)}
        )
        given = {"image_bytes": raw, "shape": shape, "dtype": b"uint8"}
        of_bytes = model(export.twin(signature), given)
        np.testing.assert_array_equal(of_bytes["shape"], shape)
        for name, values in answer.items():
            described = card["outputs"][name]
            assert values.dtype == described["dtype"] and values.ndim == len(described["axes"])
            assert all(
                n in (None, m) for n, m in zip(described["shape"], values.shape, strict=True)
            )
            for one, many in zip(of_bytes[f"{name}_bytes"], values, strict=True):
                found = np.frombuffer(one, described["dtype"]).reshape(many.shape)
                np.testing.assert_allclose(found, many, rtol=1e-5, atol=1e-5)
    # Another spelling: a shape and a dtype for each image, here of other sizes and types.
    small, floats = image[1, :-3], image[0].astype(np.float64)
    given = {
        "image_bytes": [floats.tobytes(), small.tobytes()],
        "shape": np.array([floats.shape, small.shape], np.int32),
        "dtype": [b"float64", b"uint8"],
    }
    mixed = model("serving_bytes", given)["label_bytes"]
    assert (
        mixed[0] == answers["serving_default"]["label"][0].tobytes() and len(mixed[1]) == small.size
    )
    model.close()

    definition = saved_model_pb2.SavedModel.FromString(
        (version / "saved_model.pb").read_bytes()
    ).meta_graphs[0]
    nodes = [
        *definition.graph_def.node,
        *(n for f in definition.graph_def.library.function for n in f.node_def),
    ]
    functions = {f.signature.name for f in definition.graph_def.library.function}
    ops = {node.op for node in nodes} - functions
    assert {"Conv2D", "Conv3D"} & ops
    assert not ops - set(OPS.split()), (
        "an op that no export had: is it one that TensorFlow Serving runs?"
    )
    assert all(
        op_def_registry.get(op) for op in ops
    )  # no library of ours is loaded: these are TensorFlow's

    np.save(folder / "image.npy", image[..., None].astype(np.float32))
    done = script("-c", SAVED_MODEL_CLI, version, folder)
    assert done.returncode == 0, done.stderr
    assert all(f"signature_def['{name}']" in done.stdout for name in card["signatures"])
    np.testing.assert_array_equal(
        np.load(folder / "label.npy"), answers["serving_default"]["label"]
    )


def check_bfloat16(run, image):
    """Checks that the newest export of a run computes in bfloat16, and answers nearly as its float32 networks."""
    version = export.newest(run / "saved_model")
    assert json.loads((version / export.CARD).read_text())["precision"] == "bfloat16"
    found = served(version, image[None, ..., None].astype(np.float32))
    online = {"iterations": 0} if image.ndim == 2 else {}
    exact = prediction.load(run, **online).predictor(
        image[None, ..., None].astype(np.float32), True, False
    )
    assert found["label"].dtype == np.uint8
    if "probability" in found:
        assert found["probability"].dtype == np.float32
        assert 0 < np.abs(found["probability"] - exact["probability"]).mean() < 0.02
    definition = saved_model_pb2.SavedModel.FromString(
        (version / "saved_model.pb").read_bytes()
    ).meta_graphs[0]
    convolutions = [
        n
        for f in definition.graph_def.library.function
        for n in f.node_def
        if n.op in ("Conv2D", "Conv3D")
    ]
    low = [n for n in convolutions if n.attr["T"].type == tf.bfloat16.as_datatype_enum]
    assert len(low) > len(convolutions) / 2
    assert (found["label"] == exact["label"]).numpy().mean() > 0.9


# All that an export consists of: TensorFlow's own, none of XLA, none that calls Python.
OPS = """
Abs AddV2 All Any ArgMax Assert AssignVariableOp BiasAdd Bitcast BitwiseAnd BroadcastTo Cast ConcatV2 Const Conv2D
Conv2DBackpropInput Conv3D Conv3DBackpropInputV2 DecodeRaw DisableCopyOnRead Einsum Equal Fill Floor FloorDiv GatherV2
Greater GreaterEqual Identity If Less LogicalAnd MatMul Max MaxPool MaxPool3D Maximum Mean MergeV2Checkpoints Min
Minimum Mul Neg NoOp OnesLike Pack Pad Placeholder Prod Range ReadVariableOp RealDiv Relu Reshape RestoreV2 Rsqrt
SaveV2 Select SelectV2 SerializeTensor Shape ShardedFilename Sigmoid Size Softmax Split Square SquaredDifference
Squeeze StatefulPartitionedCall StatelessCase StatelessWhile StaticRegexFullMatch StopGradient StridedSlice StringJoin
StringLength Sub Substr Sum TensorListFromTensor TensorListGetItem TensorListReserve TensorListSetItem TensorListStack
Transpose VarHandleOp While ZerosLike
"""

# The two commands of saved_model_cli in one process.
SAVED_MODEL_CLI = """
import sys
from tensorflow.python.tools import saved_model_cli
_, version, folder = sys.argv
run = ["--tag_set=serve", "--signature_def=serving_default", f"--inputs=image={folder}/image.npy", f"--outdir={folder}"]
for command in (["show", "--all"], ["run", "--overwrite", *run]):
    sys.argv = ["saved_model_cli", *command, f"--dir={version}"]
    try:
        saved_model_cli.main()
    except SystemExit as ended:
        assert not ended.code
"""
