"""Tasks in PyTorch: the translated networks, and around them what a user of PyTorch would write."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import in_pytorch
import numpy as np
import torch
from in_pytorch import adversarial, hybrid, resized
from tasks import LEARNING_RATE, EmbryoTask, FetalHeadTask, MultiOrganTask, RendererTask, Task
from torch.nn import functional

Modules = dict[str, Any]  # {name: torch.nn.Module, compiled or not}
Batch = dict[str, Any]
Tensor = Any  # torch.Tensor, without which this module is read too


def modules(task: Task, names: Sequence[str] | None = None) -> Modules:
    """The networks of a task in PyTorch, with its weights, all or those of some names."""
    networks = task.networks()
    return {
        name: in_pytorch.Translated(network)
        for name, network in networks.items()
        if names is None or name in names
    }


def in_order(x: np.ndarray, device: str) -> Tensor:
    """(batch, *spatial, channels) as (batch, channels, *spatial) that lies in memory as before."""
    return torch.from_numpy(np.ascontiguousarray(x)).to(device).movedim(-1, 1)


# Inference


def fetal_head(task: FetalHeadTask, nets: Modules, image: Tensor) -> dict[str, Tensor]:
    """`Cascade.levels`, the last one."""
    size = [max(1, round(n * task.configuration.factor)) for n in image.shape[2:]]
    low, high = image.amin(), image.amax()
    x = resized((image - low) / (high - low), size)
    context = torch.zeros_like(x)
    for net in nets.values():
        logits = net(x + context)["logits"].float()
        context = torch.softmax(logits, dim=1)[:, 1:]
    probability = resized(context, image.shape[2:])
    return {"probability": probability, "label": (probability > 0.5).to(torch.uint8)}


def multi_organ(
    task: MultiOrganTask,
    nets: Modules,
    image: Tensor,
    probability: Callable[[Any, Tensor], Tensor] | None = None,
) -> dict[str, Tensor]:
    """`Pyramid.segment`; a network's probability of a whole level is by tiles that are blended as
    ours are, or by another function of network and level."""
    chosen = task.configuration
    window = (image.clamp(chosen.window_low, chosen.window_high) - chosen.window_low) / 100
    last = None
    for level, scale in enumerate(chosen.scales, start=1):
        x = resized(window, [max(1, (2 * n + scale) // (2 * scale)) for n in image.shape[2:]])
        if last is not None:
            x = torch.cat([x, resized(last, x.shape[2:])], dim=1)
        net = nets[f"level_{level}"]
        if probability:
            last = probability(net, x)
        else:
            last = tiled(net, x, chosen.tile_size, chosen.overlap)
    assert last is not None
    return {"label": label_of(last, image.shape[2:]), "probability": last}


def label_of(probability: Tensor, size: Sequence[int]) -> Tensor:
    """Class of every voxel on a finer grid, a slab of slices at a time."""
    depth, step = size[0], 16
    slabs = []
    for first in range(0, depth, step):
        z = torch.arange(first, min(first + step, depth), device=probability.device)
        at = ((z + 0.5) * probability.shape[2] / depth - 0.5).clamp(0, probability.shape[2] - 1)
        low = at.floor().long()
        high = (low + 1).clamp(max=probability.shape[2] - 1)
        part = (at - low)[:, None, None]
        slab = probability[:, :, low] * (1 - part) + probability[:, :, high] * part
        slabs.append(resized(slab, (len(z), *size[1:])).argmax(dim=1, keepdim=True))
    return torch.cat(slabs, dim=2).to(torch.uint8)


def tiled(net: Callable[[Tensor], Tensor], x: Tensor, tile: int, overlap: int) -> Tensor:
    """Class probabilities by overlapping tiles, blended by smooth ramps: `tiling.tiled`."""
    size = x.shape[2:]
    along = [_starts(n, tile, overlap) for n in size]
    edges = [n if len(starts) == 1 else starts[1] + overlap for n, starts in zip(size, along)]
    missing = [starts[-1] + edge - n for n, starts, edge in zip(size, along, edges)]
    # Beyond the high end a tile sees edge values.
    x = functional.pad(x, [n for m in reversed(missing) for n in (0, m)], mode="replicate")
    total = None
    for corner in itertools.product(*along):
        z, y, w = (slice(first, first + edge) for first, edge in zip(corner, edges))
        p = torch.softmax(net(x[:, :, z, y, w]).float(), dim=1)
        for axis, (first, edge, starts) in enumerate(zip(corner, edges, along), start=2):
            weights = _ramp(edge, overlap, first > 0, first < starts[-1], x)
            p = p * weights.reshape([-1 if i == axis else 1 for i in range(5)])
        total = x.new_zeros((1, p.shape[1], *x.shape[2:])) if total is None else total
        total[:, :, z, y, w] += p
    assert total is not None
    return total[:, :, : size[0], : size[1], : size[2]]


def _starts(n: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin along an axis of n voxels, at multiples of 8."""
    number = max(1, -(-(n - overlap) // (tile - overlap)))
    stride = max(-(-(n - overlap) // (number * 8)) * 8, overlap)
    return [i * stride for i in range(number)]


def _ramp(edge: int, overlap: int, rises: bool, falls: bool, like: Tensor) -> Tensor:
    """Weights of a tile along an axis; those of two neighbours add up to 1."""
    t = (torch.arange(overlap, device=like.device) + 0.5) / overlap
    rise, weights = t * t * (3 - 2 * t), torch.ones(edge, device=like.device)
    if rises:
        weights[:overlap] *= rise
    if falls:
        weights[edge - overlap :] *= 1 - rise
    return weights


def embryo(task: EmbryoTask, nets: Modules, image: Tensor) -> dict[str, Tensor]:
    """`Refinement.segment`."""
    outputs = nets["embryo"](image / image.square().mean().sqrt())
    body, ventricle = outputs["body"] > 0.5, outputs["ventricle"] > 0.5
    label = torch.where(ventricle, 2, body.int()).to(torch.uint8)
    return {"label": label, "probability": torch.cat([outputs["body"], outputs["ventricle"]], 1)}


INFERENCE: dict[str, Callable[..., dict[str, Tensor]]] = {
    "fetal_head": fetal_head,
    "multi_organ": multi_organ,
    "embryo": embryo,
}


# Training


def _first_level(nets: Modules, batch: Batch) -> Tensor:
    logits = nets["level_1"](batch["image"] + batch["context"])
    return in_pytorch.cross_entropy(logits, batch["label"])


def _pyramid(nets: Modules, batch: Batch) -> Tensor:
    names = sorted(name for name in batch if name.startswith("image_"))
    logits = nets["pyramid"](*(batch[name] for name in names))
    labels = {name.replace("level", "label"): x for name, x in logits.items()}
    losses = [in_pytorch.dice_of_logits(x, batch[name]) for name, x in labels.items()]
    return torch.stack(losses).sum()


def _cascade(nets: Modules, batch: Batch) -> Tensor:
    outputs, label = nets["embryo"](batch["image"]), batch["label"][:, None]
    dice = in_pytorch.squared_dice
    return dice(outputs["body"], label == 1) + dice(outputs["ventricle"], label == 2)


LOSSES: dict[str, Callable[[Modules, Batch], Tensor]] = {
    "fetal_head": _first_level,
    "multi_organ": _pyramid,
    "embryo": _cascade,
}


class SelfPlay:
    """An iteration of S2T, in training or online: `tasks.RendererTask`."""

    def __init__(self, task: RendererTask, nets: Modules, training: bool) -> None:
        self._nets, self._chosen, self._training = nets, task.objective, training
        for net in nets.values():
            net.train(training)
        judges = [name for name in nets if name.startswith("d_")]
        generators = ("renderer", "segmentor")
        self._optimizers = {
            "generators": adam([p for name in generators for p in nets[name].parameters()]),
            **{name: adam([*nets[name].parameters()]) for name in judges},
        }
        self._judges = judges

    def step(self, batch: Batch) -> list[float]:
        """Makes the updates, and returns the loss of every term."""
        told = []
        for _ in range(self._chosen.generator_updates - 1):
            loss, _ = self._generators(batch)
            told.append(self._updated({"generators": loss})[0])
        loss, seen = self._generators(batch)
        losses = {"generators": loss}
        for name in self._judges:
            fake = self._nets[name](seen[name].detach())
            real = self._nets[name](batch["real"][name])
            losses[name] = adversarial(real, True) + adversarial(fake, False)
        return told + self._updated(losses)

    def _generators(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        image, nets, chosen = batch["image"], self._nets, self._chosen
        rendered = nets["renderer"](image)
        logits = nets["segmentor"](rendered["rendered"])
        soft = torch.softmax(logits["logits"].float(), dim=1)[:, 1:]
        pair = torch.cat([rendered["rendered"], soft], dim=1)
        seen = {"d_app": rendered["rendered"], "d_struct": soft, "d_pair": pair}
        weights = {"rendered": chosen.rendering_weight, "aux": chosen.rendering_aux_weight}
        distances = [w * (image - rendered[name]).abs().mean() for name, w in weights.items()]
        total = torch.stack(distances).sum()
        if self._training:
            total = total + hybrid(logits, batch["label"], chosen.dice_weight)
        for name in self._judges:
            total = total + adversarial(nets[name](seen[name]), True)
        return total, seen

    def _updated(self, losses: Mapping[str, Tensor]) -> list[float]:
        """Takes every optimizer's step, all at the weights before."""
        gradients = {
            name: torch.autograd.grad(
                loss, _parameters(self._optimizers[name]), retain_graph=True, allow_unused=True
            )
            for name, loss in losses.items()
        }
        for name, of_term in gradients.items():
            for parameter, gradient in zip(_parameters(self._optimizers[name]), of_term):
                parameter.grad = gradient
            self._optimizers[name].step()
        return [float(loss.detach()) for loss in losses.values()]


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return list(optimizer.param_groups[0]["params"])


def adam(parameters: list[Any]) -> torch.optim.Optimizer:
    """Adam as Keras has it, in one kernel."""
    return torch.optim.Adam(parameters, LEARNING_RATE, eps=1e-7, fused=True)


def batch_of(task: Task, device: str) -> Batch:
    """A task's batch in PyTorch: images (batch, channels, *spatial), labels (batch, *spatial)."""
    return _moved(task.batch(), device)


def _moved(batch: Mapping[str, Any], device: str) -> Batch:
    moved: Batch = {}
    for name, x in batch.items():
        if isinstance(x, dict):
            moved[name] = _moved(x, device)
        elif name.startswith("label"):
            moved[name] = torch.from_numpy(x[..., 0].astype(np.int64)).to(device)
        else:
            moved[name] = in_order(x, device)
    return moved


# Programs


@dataclasses.dataclass(frozen=True)
class Program:
    """A pass or a step that is ready to be timed.

    Attributes:
      run: its answer: {"label", "probability"} as NumPy arrays (batch, *spatial, channels), or the
        loss of every term.
      step: waits for the device, returns nothing.
      parameters: of the networks.
    """

    run: Callable[[], Any]
    step: Callable[[], None]
    parameters: int


@dataclasses.dataclass(frozen=True)
class Way:
    """How PyTorch runs.

    Attributes:
      device: "cpu" or "cuda".
      bfloat16: whether autocast computes in it.
      channels_last: whether features lie in memory as in TensorFlow.
      compiled: whether torch.compile makes kernels of what lies between the convolutions.
    """

    device: str = "cpu"
    bfloat16: bool = False
    channels_last: bool = True
    compiled: bool = False

    def autocast(self) -> Any:
        """The precision, as a context."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.bfloat16)

    def placed(self, net: torch.nn.Module, flat: bool) -> Any:
        """A network, 2D or 3D, on the device."""
        net.to(self.device)
        if self.channels_last:
            net.to(memory_format=torch.channels_last if flat else torch.channels_last_3d)
        return torch.compile(net) if self.compiled else net

    def wait(self) -> None:
        """Until the device has done all."""
        if self.device == "cuda":
            torch.cuda.synchronize()


def program(task: Task, kind: str, way: Way) -> Program:
    """A pass ("inference", of the renderer an iteration online) or a training step of a task."""
    names = None if kind == "inference" else [*task.trained(task.networks())]
    nets = modules(task, names)
    if isinstance(task, MultiOrganTask) and kind == "inference":
        nets = levels(nets["pyramid"])
    count = sum(in_pytorch.parameters(net) for net in nets.values())
    nets = {name: way.placed(net, isinstance(task, RendererTask)) for name, net in nets.items()}
    if isinstance(task, RendererTask):
        run = _iteration(task, nets, kind, way)
    elif kind == "training":
        run = stepping(nets, batch_of(task, way.device), LOSSES[task.name], way)
    else:
        return _pass(task, nets, count, way)

    def step() -> None:
        run()
        way.wait()

    return Program(run, step, count)


def levels(pyramid: Any) -> Modules:
    """The U-Nets of a translated pyramid by name, level 1 first."""
    inner = [step for step in pyramid.steps if isinstance(step, in_pytorch.Translated)]
    return {f"level_{level}": net for level, net in enumerate(inner, start=1)}


def _pass(task: Task, nets: Modules, count: int, way: Way) -> Program:
    image = in_order(task.image(), way.device)
    for net in nets.values():
        net.eval()

    def output() -> dict[str, Tensor]:
        with torch.inference_mode(), way.autocast():
            return INFERENCE[task.name](task, nets, image)

    def run() -> dict[str, np.ndarray]:
        return {name: x.float().movedim(1, -1).cpu().numpy() for name, x in output().items()}

    def step() -> None:
        output()
        way.wait()

    return Program(run, step, count)


def stepping(
    nets: Modules, batch: Batch, loss_of: Callable[[Modules, Batch], Tensor], way: Way
) -> Callable[[], list[float]]:
    """A training step: the loss, its gradients, and Adam's update; it returns the loss."""
    for net in nets.values():
        net.train()
    optimizer = adam([p for net in nets.values() for p in net.parameters()])

    def run() -> list[float]:
        optimizer.zero_grad(set_to_none=True)
        with way.autocast():
            loss = loss_of(nets, batch)
        loss.backward()
        optimizer.step()
        return [float(loss.detach())]

    return run


def _iteration(task: RendererTask, nets: Modules, kind: str, way: Way) -> Callable[[], list[float]]:
    batch, play = batch_of(task, way.device), SelfPlay(task, nets, kind == "training")

    def run() -> list[float]:
        with way.autocast():
            return play.step(batch)

    return run
