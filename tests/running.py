"""How tests run commands and exports: as a user, or a server, does."""

import contextlib
import copy
import importlib
import io
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
from tensorflow.python.tools import saved_model_cli

from tf_autoctx import export
from tf_autoctx.data import phantoms
from tf_autoctx.report import figures
from tf_autoctx.systems.shared import opening, prediction
from tf_autoctx.systems.shared.system import Wanted

ROOT = pathlib.Path(__file__).resolve().parent.parent


def train(system, *arguments):
    """Runs the training command of a system in this process; the dtype policy comes back."""
    call(f"train_{system}", *arguments)


def call(command, *arguments):
    """Runs a command of the package in this process, as a user does; a mistake is SystemExit(1)."""
    module = importlib.import_module(f"tf_autoctx.commands.{command}")
    policy = keras.config.dtype_policy()
    try:
        with made_once("abdomen", "embryo", "fetal_head", "fetal_head_2d"), drawn_once():
            module.command.perform(last_of_each(arguments))
    finally:
        keras.config.set_dtype_policy(policy)


@contextlib.contextmanager
def made_once(*names):
    """A phantom that any command made is not made again; it takes longer than all around it."""

    def once(make):
        def case(*arguments):
            key = make, repr(arguments)
            if key not in _made:
                _made[key] = make(*arguments)
            return copy.deepcopy(_made[key])

        return case

    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setattr(phantoms, name, once(getattr(phantoms, name)))
        yield


_made = {}


@contextlib.contextmanager
def drawn_once():
    """The picture of a history is the first one's; to draw each takes as long as a tiny stage."""
    draw = figures.history

    def history(path, *arguments):
        if not _drawn:
            draw(path, *arguments)
            _drawn.append(path.read_bytes())
        path.write_bytes(_drawn[0])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "history", history)
        yield


_drawn = []


def last_of_each(arguments):
    """Words of a command line, of a flag that is given twice the last: tests change common ones."""
    words = [str(argument) for argument in arguments]
    return list({word.partition("=")[0]: word for word in words}.values())


@contextlib.contextmanager
def unexported():
    """Trainings end without an export, which takes as long as a tiny training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opening, "export_run", lambda *_, **__: None)
        yield


@contextlib.contextmanager
def unfinished():
    """Trainings end with their networks, neither scored nor exported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opening.Opened, "finish", lambda *_: None)
        yield


def script(name, *arguments):
    """Runs a script in a process of its own."""
    command = [sys.executable, name, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", timeout=300)


def served(folder, image, signature="serving_default"):
    """What TensorFlow's C++ loader, and so TensorFlow Serving, makes of images.

    Args:
      folder: of the SavedModel.
      image: (batch, *spatial, 1) float32.
      signature: its name.
    """
    model = cpp_loader.CppModel(folder)
    try:
        return model(signature, {"image": image})
    finally:
        model.close()


def check_export(version, image, folder):
    """Checks what is true of every export.

    Every signature runs in TensorFlow's C++ loader; those for bytes return what their twins do,
    whose outputs for one image do not depend on the others; all ops are stock; saved_model_cli
    shows and runs it; the card describes it.

    Args:
      version: folder of the export.
      image: random images of uint8 (2 or more, *spatial), of several channels with an axis more.
      folder: gets files.
    """
    card = json.loads((version / export.CARD).read_text())
    model = cpp_loader.CppModel(version)
    assert {name: (set(x.inputs), set(x.outputs)) for name, x in model.signatures.items()} == {
        name: (set(x["inputs"]), set(x["outputs"])) for name, x in card["signatures"].items()
    }
    of_images = [name for name in card["signatures"] if name != export.CARD_SIGNATURE]
    plain = [name for name in of_images if not name.endswith("_bytes")]
    assert len(of_images) == 2 * len(plain) and "serving_default" in plain
    (told,) = model(export.CARD_SIGNATURE, {"request": np.zeros(1, np.int32)})["card"]
    served = {key: value for key, value in card.items() if key not in export.UNSERVED}
    assert json.loads(told) == served and "labels" in served
    shape, raw = np.array(image.shape[1:], np.int32), [voxels.tobytes() for voxels in image]
    outputs = {}
    for signature in plain:
        spacing = spacing_for(card, signature)
        output = outputs[signature] = model(signature, {"image": batched(card, image), **spacing})
        given = {"image_bytes": raw, "shape": shape, "dtype": b"uint8", **spacing}
        of_bytes = model(export.twin(signature), given)
        np.testing.assert_array_equal(of_bytes["shape"], shape)
        for name, values in output.items():
            described = card["outputs"][name]
            assert values.dtype == described["dtype"] and values.ndim == len(described["axes"])
            assert all(
                n in (None, m) for n, m in zip(described["shape"], values.shape, strict=True)
            )
            for raw_value, value in zip(of_bytes[f"{name}_bytes"], values, strict=True):
                decoded = np.frombuffer(raw_value, described["dtype"]).reshape(value.shape)
                np.testing.assert_allclose(decoded, value, rtol=1e-5, atol=1e-5)
    check_nothing_but_finite(model, plain, card, image)
    # Another spelling: a shape and a dtype for each image, here of other sizes and types.
    small, floats = image[1, :-3], image[0].astype(np.float64)
    given = {
        "image_bytes": [floats.tobytes(), small.tobytes()],
        "shape": np.array([floats.shape, small.shape], np.int32),
        "dtype": [b"float64", b"uint8"],
    }
    mixed = model("serving_bytes", given)["label_bytes"]
    assert mixed[0] == outputs["serving_default"]["label"][0].tobytes()
    assert len(mixed[1]) == batched(card, small[None])[..., 0].size
    model.close()

    functions = {f.signature.name for f in _definition(version).graph_def.library.function}
    ops = {node.op for node in nodes(version)} - functions
    assert {"Conv2D", "Conv3D"} & ops
    assert not ops - set(OPS.split()), (
        "an op that no export had: is it one that TensorFlow Serving runs?"
    )
    # No library of ours is loaded: these are TensorFlow's.
    assert all(op_def_registry.get(op) for op in ops)

    np.save(folder / "image.npy", batched(card, image))
    shown = show_and_run(version, folder)
    assert all(f"signature_def['{name}']" in shown for name in card["signatures"])
    np.testing.assert_array_equal(
        np.load(folder / "label.npy"), outputs["serving_default"]["label"]
    )


def spacing_for(card, signature):
    """The spacing that a signature for images of any takes: that of the grid."""
    takes = "spacing" in card["signatures"][signature]["inputs"]
    return {"spacing": np.array([card["grid"]], np.float32)} if takes else {}


def batched(card, image):
    """Images as the signatures of numbers take them: (images, *spatial, channels) float32."""
    has_channels = card["inputs"]["image"]["shape"][-1] > 1
    return (image if has_channels else image[..., None]).astype(np.float32)


def show_and_run(version, folder):
    """What two commands of TensorFlow's saved_model_cli do, without a start of TensorFlow for each:

      show --all --dir=VERSION
      run --dir=VERSION --tag_set=serve --signature_def=serving_default
        --inputs=image=FOLDER/image.npy --outdir=FOLDER --overwrite

    Returns:
      What they print.
    """
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        saved_model_cli._show_all(str(version))
        given = saved_model_cli.load_inputs_from_input_arg_string(
            f"image={folder / 'image.npy'}", "", ""
        )
        saved_model_cli.run_saved_model_with_feed_dict(
            str(version), "serve", "serving_default", given, str(folder), overwrite_flag=True
        )
    return shown.getvalue()


def check_nothing_but_finite(model, plain, card, image):
    """Checks that a model stops at every voxel that is no finite float32, whatever is asked.

    Args:
      model: `CppModel`.
      plain: names of its signatures of numbers.
      card: its card.
      image: random images of uint8 (2 or more, *spatial).
    """
    voxels = image[:1].astype(np.float64)
    for value, dtype in ((np.nan, np.float32), (-np.inf, np.float32), (1e39, np.float64)):
        voxels[0].flat[[3, -1]] = value
        with np.errstate(over="ignore"):
            batch = {"image": batched(card, voxels)}
        given = {"image_bytes": [voxels.astype(dtype).tobytes()], "dtype": np.dtype(dtype).name}
        given |= {"dtype": given["dtype"].encode(), "shape": np.array(image.shape[1:], np.int32)}
        for signature in plain:
            for name, inputs in ((signature, batch), (export.twin(signature), given)):
                spacing = spacing_for(card, name)
                with pytest.raises(RuntimeError, match="image has 2 voxels that are NaN or inf"):
                    model(name, {**inputs, **spacing})


def _definition(version):
    """The graph of an export."""
    saved = saved_model_pb2.SavedModel.FromString((version / "saved_model.pb").read_bytes())
    return saved.meta_graphs[0]


def nodes(version):
    """Of the graph of an export, those of all its functions among them."""
    graph = _definition(version).graph_def
    return [*graph.node, *(node for f in graph.library.function for node in f.node_def)]


def check_bfloat16(run, image):
    """Checks that a run's newest export computes in bfloat16, nearly what its networks do."""
    version = export.newest(run / "saved_model")
    assert json.loads((version / export.CARD).read_text())["precision"] == "bfloat16"
    batch = image[None, ..., None].astype(np.float32)
    low, online = served(version, batch), {"iterations": 0} if image.ndim == 2 else {}
    exact = prediction.load(run, **online).predictor(batch, None, Wanted(probabilities=True))
    assert low["label"].dtype == np.uint8
    if "probability" in low:
        assert low["probability"].dtype == np.float32
        assert 0 < np.abs(low["probability"] - exact["probability"]).mean() < 0.02
    definition = _definition(version)
    convolutions = [
        n
        for f in definition.graph_def.library.function
        for n in f.node_def
        if n.op in ("Conv2D", "Conv3D")
    ]
    in_bfloat16 = [n for n in convolutions if n.attr["T"].type == tf.bfloat16.as_datatype_enum]
    assert len(in_bfloat16) > len(convolutions) / 2
    assert (low["label"] == exact["label"]).numpy().mean() > 0.9


# All that an export consists of: TensorFlow's own, none of XLA, none that calls Python.
OPS = """
Abs AddV2 All Any ArgMax AsString Assert AssignVariableOp BiasAdd Bitcast BitwiseAnd BitwiseXor
BroadcastTo Cast Ceil ConcatV2 Const Conv2D Conv2DBackpropInput Conv3D Conv3DBackpropInputV2 Cumsum
DecodeRaw DisableCopyOnRead Einsum Equal Fill Floor FloorDiv FusedBatchNormGradV3 FusedBatchNormV3
GatherV2 Greater GreaterEqual Identity IdentityN If IsFinite Less LessEqual Log LogicalAnd
LogicalNot LogicalOr MatMul Max MaxPool MaxPool3D Maximum Mean MergeV2Checkpoints Min Minimum Mul
MulNoNan Neg NoOp NotEqual OnesLike Pack Pad PartitionedCall Placeholder Prod Range ReadVariableOp
RealDiv Relu Reshape RestoreV2 ReverseV2 Rsqrt SaveV2 Select SelectV2 SerializeTensor Shape
ShardedFilename Sigmoid Size Slice Softmax Split Square SquaredDifference Squeeze
StatefulPartitionedCall StatelessCase StatelessWhile StaticRegexFullMatch StopGradient StridedSlice
StringJoin StringLength Sub Substr Sum TensorListFromTensor TensorListGetItem TensorListReserve
TensorListSetItem TensorListStack Tile Transpose Unpack UnsortedSegmentMax UnsortedSegmentMin
UnsortedSegmentSum VarHandleOp Where While ZerosLike
"""


HOLD = """
import sys, time
from tf_autoctx import files
files.own(sys.argv[1])
print("held", flush=True)
time.sleep(100)
"""


def holding(folder):
    """A process that owns a folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout.readline() == "held\n"
    return process
