"""Our networks in PyTorch: the same layers with the same weights, for benchmarks.

A functional Keras model is walked node by node, and every layer becomes what a user of PyTorch
would write for it. So the two have equal parameters by construction, and with weights copied equal
answers, which the benchmarks check. Keras itself runs on PyTorch meanwhile (KERAS_BACKEND=torch),
and only to say what the layers are.

Tensors are (batch, channels, *spatial) here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import torch
from torch import nn
from torch.nn import functional

Module = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class _Read:
    """Stands in the arguments of a step for a value that is there by then."""

    index: int


class Translated(nn.Module):
    """A functional Keras model in PyTorch.

    call: its inputs, flat, (batch, channels, *spatial) each -> what the model returns.

    Raises:
      NotImplementedError: it has a layer that nobody has translated.
    """

    def __init__(self, model: keras.Model) -> None:
        super().__init__()
        indices: dict[int, int] = {id(x): i for i, x in enumerate(model.inputs)}

        def read(x: Any) -> Any:
            return _Read(indices[id(x)]) if isinstance(x, keras.KerasTensor) else x

        self._inputs = len(indices)
        steps, self._arguments, self._results = [], [], []
        shared: dict[int, nn.Module] = {}  # a layer that is called twice has its weights once
        for node in _nodes(model):
            operation = node.operation
            if id(operation) not in shared:
                shared[id(operation)] = translated(operation)
            steps.append(shared[id(operation)])
            self._arguments.append(keras.tree.map_structure(read, [*node.arguments.args]))
            for x in node.outputs:
                indices.setdefault(id(x), len(indices))
            self._results.append([indices[id(x)] for x in node.outputs])
        self.steps = nn.ModuleList(steps)
        self._output = keras.tree.map_structure(read, model.output)
        self._count = len(indices)

    def forward(self, *inputs: torch.Tensor) -> Any:
        values: list[Any] = [*inputs, *[None] * (self._count - self._inputs)]
        for step, arguments, results in zip(self.steps, self._arguments, self._results):
            output = step(*_filled(arguments, values))
            flat = _flat(output)
            for index, value in zip(results, flat):
                values[index] = value
        return _filled(self._output, values)


def _nodes(model: keras.Model) -> list[Any]:
    """The calls of a model's layers in an order in which they can be made."""
    by_depth = model._nodes_by_depth
    nodes = (node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth])
    return [node for node in nodes if not node.is_input]


def _filled(structure: Any, values: Sequence[Any]) -> Any:
    if isinstance(structure, _Read):
        return values[structure.index]
    if isinstance(structure, dict):
        return {key: _filled(item, values) for key, item in structure.items()}
    if isinstance(structure, list | tuple):
        return type(structure)(_filled(item, values) for item in structure)
    return structure


def _flat(output: Any) -> list[Any]:
    """Tensors of an output, those of a dict by their sorted names as Keras has them."""
    if isinstance(output, dict):
        return [x for name in sorted(output) for x in _flat(output[name])]
    if isinstance(output, list | tuple):
        return [x for item in output for x in _flat(item)]
    return [output]


# Layers


class _Call(nn.Module):
    """A function as a module."""

    def __init__(self, function: Module) -> None:
        super().__init__()
        self.function = function

    def forward(self, *arguments: Any) -> Any:
        return self.function(*arguments)


class _Deconvolution(nn.Module):
    """Transposed convolution of stride 2 with TensorFlow's `same` padding, in 2D or 3D."""

    def __init__(self, layer: Any, kernel: np.ndarray) -> None:
        super().__init__()
        edge, rank = layer.kernel_size[0], kernel.ndim - 2
        kind = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[rank]
        # The full result has edge - 2 pixels too many, of which TensorFlow cuts the smaller half
        # at the low end.
        self.padding, self.rank = (edge - 2) // 2, rank
        out, into = kernel.shape[-2:]
        self.inner = kind(into, out, edge, 2, self.padding, bias=layer.use_bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.inner(x)
        for axis in range(2, 2 + self.rank):
            y = y.narrow(axis, 0, 2 * x.shape[axis])
        return y


def translated(layer: Any) -> nn.Module:
    """A layer, or an operation of a functional model, in PyTorch, with its weights.

    Raises:
      NotImplementedError: nobody has translated it.
    """
    kind = type(layer).__name__
    if isinstance(layer, keras.Model):
        return Translated(layer)
    if kind in WITH_WEIGHTS:
        return WITH_WEIGHTS[kind](layer)
    if kind in WITHOUT_WEIGHTS:
        return WITHOUT_WEIGHTS[kind](layer)
    raise NotImplementedError(f"{kind} ({layer.name}) has no translation in in_pytorch.py")


def _loaded(module: nn.Module, **weights: np.ndarray) -> nn.Module:
    """A module with weights by their names."""
    with torch.no_grad():
        for name, value in weights.items():
            module.get_parameter(name).copy_(torch.from_numpy(np.array(value)))
    return module


def _weights(layer: Any) -> list[np.ndarray]:
    return [np.asarray(weight) for weight in layer.get_weights()]


def _bias(layer: Any, weights: Sequence[np.ndarray], name: str = "bias") -> dict[str, np.ndarray]:
    return {name: weights[1]} if layer.use_bias else {}


def _convolution(layer: Any) -> nn.Module:
    weights = _weights(layer)
    kernel = weights[0]
    rank, edge = kernel.ndim - 2, layer.kernel_size[0]
    kind = {2: nn.Conv2d, 3: nn.Conv3d}[rank]
    padding = edge // 2 if layer.padding == "same" else 0
    module = kind(*kernel.shape[-2:], edge, layer.strides[0], padding, bias=layer.use_bias)
    return _loaded(module, weight=np.moveaxis(kernel, (-1, -2), (0, 1)), **_bias(layer, weights))


def _deconvolution(layer: Any) -> nn.Module:
    weights = _weights(layer)
    module = _Deconvolution(layer, weights[0])
    kernel = np.moveaxis(weights[0], (-1, -2), (0, 1))
    return _loaded(module, **{"inner.weight": kernel}, **_bias(layer, weights, "inner.bias"))


def _instance_norm(layer: Any) -> nn.Module:
    gamma, beta = _weights(layer)
    kind = {4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}[len(layer.input.shape)]
    return _loaded(kind(len(gamma), layer.epsilon, affine=True), weight=gamma, bias=beta)


def _batch_norm(layer: Any) -> nn.Module:
    gamma, beta, mean, variance = _weights(layer)
    kind = {4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[len(layer.input.shape)]
    module = kind(len(gamma), layer.epsilon, 1 - layer.momentum)
    module.running_mean.copy_(torch.from_numpy(mean))
    module.running_var.copy_(torch.from_numpy(variance))
    return _loaded(module, weight=gamma, bias=beta)


def _prelu(layer: Any) -> nn.Module:
    (alpha,) = _weights(layer)
    return _loaded(nn.PReLU(alpha.size), weight=alpha.ravel())


def _dense(layer: Any) -> nn.Module:
    kernel, bias = _weights(layer)
    return _loaded(nn.Linear(*kernel.shape), weight=kernel.T, bias=bias)


WITH_WEIGHTS: dict[str, Callable[[Any], nn.Module]] = {
    "Conv2D": _convolution,
    "Conv3D": _convolution,
    "Conv2DTranspose": _deconvolution,
    "Conv3DTranspose": _deconvolution,
    "GroupNormalization": _instance_norm,
    "InstanceNormalization": _instance_norm,
    "BatchNormalization": _batch_norm,
    "PReLU": _prelu,
    "Dense": _dense,
}


def _pool(layer: Any) -> nn.Module:
    return {4: nn.MaxPool2d, 5: nn.MaxPool3d}[len(layer.input.shape)](2)


def _pad(layer: Any) -> nn.Module:
    def pad(x: torch.Tensor) -> torch.Tensor:
        missing = [-n % layer.multiple for n in reversed(x.shape[2:])]
        if not any(missing):
            return x
        return functional.pad(x, [n for m in missing for n in (0, m)], mode="replicate")

    return _Call(pad)


def _crop_like(layer: Any) -> nn.Module:
    def crop(inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        x, reference = inputs
        for axis in range(2, x.ndim):
            x = x.narrow(axis, 0, -(-reference.shape[axis] // layer.stride))
        return x.float()

    return _Call(crop)


def _concatenated(layer: Any) -> nn.Module:
    def concatenated(xs: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.cat([*xs], dim=1)

    return _Call(concatenated)


def _sum(layer: Any) -> nn.Module:
    def total(xs: Sequence[torch.Tensor]) -> torch.Tensor:
        return xs[0] + xs[1]

    return _Call(total)


def _product(layer: Any) -> nn.Module:
    def product(xs: Sequence[torch.Tensor]) -> torch.Tensor:
        return xs[0] * xs[1]

    return _Call(product)


def _activation(layer: Any) -> nn.Module:
    return {"sigmoid": nn.Sigmoid(), "relu": nn.ReLU()}[layer.activation.__name__]


def _flatten(layer: Any) -> nn.Module:
    def flat(x: torch.Tensor) -> torch.Tensor:
        return x.movedim(1, -1).reshape(len(x), -1)  # in the order of Keras

    return _Call(flat)


def _global_average(layer: Any) -> nn.Module:
    def average(x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=(2, 3))

    return _Call(average)


def _rescaling(layer: Any) -> nn.Module:
    def rescaled(x: torch.Tensor) -> torch.Tensor:
        return x.float() * layer.scale + layer.offset

    return _Call(rescaled)


def _stopped(operation: Any) -> nn.Module:
    return _Call(torch.Tensor.detach)


def _item(operation: Any) -> nn.Module:
    """Some of the channels, the one item of a tensor that our models take."""

    def item(x: torch.Tensor, key: Sequence[Any]) -> torch.Tensor:
        assert key[0] is Ellipsis
        return x[:, key[1]]

    return _Call(item)


# Geometry: see `models.layers.resize_linear` and `models.loc_con`


def resized(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Linear resampling, anti-aliased where it shrinks; (batch, channels, *spatial)."""
    modes = {4: "bilinear", 5: "trilinear"}
    if tuple(size) == tuple(x.shape[2:]):
        return x
    if all(new >= old for new, old in zip(size, x.shape[2:])):
        return functional.interpolate(x, size=tuple(size), mode=modes[x.ndim])
    for axis, new in enumerate(size, start=2):
        old = x.shape[axis]
        factor = old / new
        at = (torch.arange(new, device=x.device) + 0.5) * factor
        distance = (at[:, None] - _centres(old, x)).abs()
        x = _weighted(x, axis, 1 - distance / max(factor, 1.0))
    return x


def _centres(size: int, like: torch.Tensor) -> torch.Tensor:
    return torch.arange(size, device=like.device, dtype=torch.float32) + 0.5


def _weighted(x: torch.Tensor, axis: int, weights: torch.Tensor) -> torch.Tensor:
    weights = weights.clamp(min=0)
    weights = (weights / weights.sum(dim=1, keepdim=True)).to(x.dtype)
    return torch.tensordot(weights, x, dims=([1], [axis])).movedim(0, axis)


def _resize_to_cube(layer: Any) -> nn.Module:
    def cube(x: torch.Tensor) -> torch.Tensor:
        return resized(x, (layer.edge,) * (x.ndim - 2))

    return _Call(cube)


def _resize_like(layer: Any) -> nn.Module:
    def like(inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        return resized(inputs[0], inputs[1].shape[2:])

    return _Call(like)


def _resample_about_centre(layer: Any) -> nn.Module:
    def resample(inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        x, reference = inputs
        for axis in range(2, x.ndim):
            old, new = x.shape[axis], reference.shape[axis]
            at = (_centres(new, x) - new / 2) / layer.factor + old / 2
            distance = at.clamp(0.5, old - 0.5)[:, None] - _centres(old, x)
            x = _weighted(x, axis, 1 - distance.abs())
        return x

    return _Call(resample)


def _box_corner(layer: Any) -> nn.Module:
    def corner(probability: torch.Tensor) -> torch.Tensor:
        p = probability[:, layer.index].detach()
        weights = torch.where(p >= probability.detach().amax(dim=1), p, 0.0)
        total = weights.sum(dim=(1, 2, 3), keepdim=True)
        weights = torch.where(total > 0, weights, p)
        margins = [weights.sum(3).sum(2), weights.sum(3).sum(1), weights.sum(2).sum(1)]
        low = torch.stack([_centroid(margin) for margin in margins], dim=-1) - layer.box / 2
        return torch.floor(low + 0.5 + 1e-3).int()

    return _Call(corner)


def _centroid(margin: torch.Tensor) -> torch.Tensor:
    total = margin.sum(1)
    moment = (margin * _centres(margin.shape[1], margin)).sum(1)
    middle = torch.full_like(total, margin.shape[1] / 2)
    return torch.where(total > 0, moment / torch.where(total > 0, total, 1.0), middle)


def _moved(x: torch.Tensor, low: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Voxels low, low + 1, ... of every sample along each axis, 0 outside; low (batch, 3)."""
    samples = []
    for sample, first in zip(x, low):
        for axis, new in enumerate(size, start=1):
            old = sample.shape[axis]
            at = first[axis - 1] + torch.arange(new, device=x.device)
            shape = [-1 if i == axis else 1 for i in range(4)]
            inside = ((at >= 0) & (at < old)).to(x.dtype).reshape(shape)
            sample = sample.index_select(axis, at.clamp(0, old - 1)) * inside
        samples.append(sample)
    return torch.stack(samples)


def _crop(layer: Any) -> nn.Module:
    def crop(inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        x, corner = inputs
        return _moved(x, corner, (layer.box,) * 3)

    return _Call(crop)


def _uncrop(layer: Any) -> nn.Module:
    def uncrop(inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        x, corner, reference = inputs
        return _moved(x, -corner, reference.shape[2:])

    return _Call(uncrop)


def _relu(layer: Any) -> nn.Module:
    return nn.ReLU(inplace=True)


def _softmax(layer: Any) -> nn.Module:
    return nn.Softmax(dim=1)


WITHOUT_WEIGHTS: dict[str, Callable[[Any], nn.Module]] = {
    "Activation": _activation,
    "Add": _sum,
    "BoxCorner": _box_corner,
    "Concatenate": _concatenated,
    "Crop": _crop,
    "CropLike": _crop_like,
    "Flatten": _flatten,
    "GetItem": _item,
    "GlobalAveragePooling2D": _global_average,
    "MaxPooling2D": _pool,
    "MaxPooling3D": _pool,
    "Multiply": _product,
    "PadToMultiple": _pad,
    "ReLU": _relu,
    "ResampleAboutCentre": _resample_about_centre,
    "Rescaling": _rescaling,
    "ResizeLike": _resize_like,
    "ResizeToCube": _resize_to_cube,
    "Softmax": _softmax,
    "StopGradient": _stopped,
    "Uncrop": _uncrop,
}


def parameters(module: nn.Module) -> int:
    """How many a module has, moving averages left out."""
    return sum(parameter.numel() for parameter in module.parameters())


# Losses: see `tf_autoctx.losses`. Each returns a scalar, the mean over the batch.


def cross_entropy(logits: dict[str, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
    """Of the main output and of every side branch, `losses.DeepSupervisedLoss`."""
    strides = {"logits": 1, "logits_half": 2, "logits_quarter": 4}
    total = torch.zeros((), device=labels.device)
    for name, value in logits.items():
        every = (slice(None), *[slice(None, None, strides[name])] * (labels.ndim - 1))
        total = total + functional.cross_entropy(value.float(), labels[every])
    return total


def one_hot(labels: torch.Tensor, classes: int) -> torch.Tensor:
    """(batch, classes, *spatial) float32."""
    return functional.one_hot(labels, classes).movedim(-1, 1).float()


def dice(p: torch.Tensor, truth: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
    """Minus the mean soft Dice over samples and classes, `losses.DiceLoss` and `SquaredDiceLoss`.

    Args: p, truth, size: (batch, classes, *spatial); `size` stands for p below the line.
    """
    axes = tuple(range(2, p.ndim))
    above = 2 * (p * truth).sum(axes) + 1e-5
    return -(above / (size.sum(axes) + truth.sum(axes) + 1e-5)).mean()


def dice_of_logits(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """`losses.DiceLoss`."""
    p = torch.softmax(logits.float(), dim=1)
    return dice(p, one_hot(labels, logits.shape[1]), p)


def squared_dice(p: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """`losses.SquaredDiceLoss` of one channel: p (batch, 1, *spatial), truth likewise, bool."""
    return dice(p.float(), truth.float(), p.float().square())


def hybrid(
    logits: dict[str, torch.Tensor], labels: torch.Tensor, dice_weight: float
) -> torch.Tensor:
    """`losses.HybridLoss`."""
    dice_weights = {"logits": 1.0, "aux1": 0.4, "aux2": 0.8}
    entropy_weights = {"logits": 1.0, "aux1": 0.6, "aux2": 0.9}
    total = torch.zeros((), device=labels.device)
    for name, value in logits.items():
        classes = value.shape[1]
        p, truth = torch.softmax(value.float(), dim=1), one_hot(labels, classes)
        overlap = dice(p, truth, p.square()) * classes  # a sum over the classes there
        share = truth.mean(dim=(2, 3), keepdim=True)
        entropy = -(truth * torch.log_softmax(value.float(), dim=1) * (1 - share)).sum(1).mean()
        total = total + dice_weight * dice_weights[name] * overlap + entropy_weights[name] * entropy
    return total


def adversarial(logits: torch.Tensor, real: bool) -> torch.Tensor:
    """What is paid for logits of images that should pass for real, or for fake."""
    return functional.softplus(-logits.float() if real else logits.float()).mean()
