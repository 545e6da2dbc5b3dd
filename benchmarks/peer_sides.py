"""Peers' sides of the rows of `speed.py`: PyTorch, MONAI, OpenVINO, SimpleITK, surface-distance.

Each function is called in the side's own process and returns a `harness.Ready`. In those of PyTorch
Keras runs on PyTorch too (`ON_TORCH`), only to say what the layers are: TensorFlow is not loaded.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tasks
from harness import Ready
from tasks import FetalHeadTask, MultiOrganTask, Task

ON_TORCH = {"KERAS_BACKEND": "torch"}
# Ways in which a user may run PyTorch on a CPU; the best of them is our peer.
WAYS: dict[str, dict[str, Any]] = {
    "channels last": {"channels_last": True},
    "compiled": {"channels_last": False, "compiled": True},
    "compiled, channels last": {"channels_last": True, "compiled": True},
}


def pytorch(task: Task, kind: str, precision: str, way: str) -> Ready:
    """The same network in PyTorch, in one of the `WAYS`.

    Args:
      kind: "inference" or "training".
    """
    import torch_tasks

    chosen = torch_tasks.Way(bfloat16=precision == "bfloat16", **WAYS[way])
    program = torch_tasks.program(task, kind, chosen)
    first = program.run()  # of the weights as they were

    def answer() -> np.ndarray:
        return first["probability"] if isinstance(first, dict) else np.array([first[0]])

    return Ready(program.step, answer, {"parameters": program.parameters})


def openvino(task: FetalHeadTask, precision: str) -> Ready:
    """One level on its own grid, converted from PyTorch."""
    import openvino as ov
    import torch
    import torch_tasks

    (net,) = torch_tasks.modules(task).values()
    image = task.image()
    scaled = (image - image.min()) / np.ptp(image)
    x = torch_tasks.in_order(scaled, "cpu").contiguous()
    converted = ov.convert_model(_of_logits(net), example_input=x)
    hint = {"float32": "f32", "bfloat16": "bf16"}[precision]
    settings = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
    request = ov.compile_model(converted, "CPU", settings).create_infer_request()
    given, last = x.numpy(), {}

    def step() -> None:
        last["logits"] = request.infer([given])[0]

    def answer() -> np.ndarray:
        p = torch.softmax(torch.from_numpy(last["logits"]), dim=1)
        return p[:, 1:].movedim(1, -1).numpy()

    return Ready(step, answer)


def _of_logits(net: Any) -> Any:
    """A module that returns the logits alone."""
    import torch

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.net(x)["logits"]
            return logits

    return Logits().eval()


# MONAI


def monai_inferer(task: MultiOrganTask, precision: str) -> Ready:
    """The same pyramid in PyTorch, with MONAI's sliding windows in place of our tiles."""
    import torch
    import torch_tasks
    from monai.inferers import sliding_window_inference

    way = torch_tasks.Way(bfloat16=precision == "bfloat16")
    (pyramid,) = torch_tasks.modules(task).values()
    nets = {name: way.placed(net, False) for name, net in torch_tasks.levels(pyramid).items()}
    chosen, image = task.configuration, torch_tasks.in_order(task.image(), "cpu")

    def windows(net: Any, x: torch.Tensor) -> torch.Tensor:
        edge = (chosen.tile_size,) * 3
        share = chosen.overlap / chosen.tile_size
        logits = sliding_window_inference(x, edge, 1, net, share, mode="gaussian")
        return torch.softmax(logits.float(), dim=1)

    def step() -> None:
        with torch.inference_mode(), way.autocast():
            torch_tasks.multi_organ(task, nets, image, windows)

    return Ready(step)


def monai_training(task: MultiOrganTask, precision: str, way: str) -> Ready:
    """MONAI's UNet at both levels of a pyramid, as wide as costs the same; a training step."""
    import torch
    import torch_tasks

    chosen = torch_tasks.Way(bfloat16=precision == "bfloat16", **WAYS[way])
    (ours,) = torch_tasks.modules(task).values()
    size, classes = task.configuration.patch_size, len(tasks.ORGANS) + 1
    wanted = operations(torch_tasks.levels(ours)["level_2"], 1 + classes, size)
    widths = range(2, 4 * task.configuration.base_filters + 2, 2)
    costs = {w: operations(monai_unet(1 + classes, classes, w), 1 + classes, size) for w in widths}
    width = min(widths, key=lambda w: abs(math.log(costs[w] / wanted)))
    nets = {
        f"level_{level}": chosen.placed(monai_unet(channels, classes, width), False)
        for level, channels in ((1, 1), (2, 1 + classes))
    }

    def loss_of(nets: Any, batch: Any) -> torch.Tensor:
        logits = nets["level_1"](batch["image_1"])
        total = torch_tasks.in_pytorch.dice_of_logits(logits, batch["label_1"])
        finer = torch_tasks.resized(torch.softmax(logits.float(), dim=1), (2 * size,) * 3)
        middle = slice(size // 2, size // 2 + size)
        x = torch.cat([batch["image_2"], finer[:, :, middle, middle, middle]], dim=1)
        logits = nets["level_2"](x)
        return total + torch_tasks.in_pytorch.dice_of_logits(logits, batch["label_2"])

    run = torch_tasks.stepping(nets, torch_tasks.batch_of(task, "cpu"), loss_of, chosen)

    def step() -> None:
        run()

    facts = {"channels": width, "operations_of_ours": costs[width] / wanted}
    return Ready(step, None, facts)


def monai_unet(channels: int, classes: int, width: int) -> Any:
    """MONAI's UNet of four resolutions with residual units, its own example's structure."""
    from monai.networks.nets import UNet

    widths = [width * 2**resolution for resolution in range(4)]
    return UNet(3, channels, classes, widths, (2, 2, 2), num_res_units=2, norm="batch")


def operations(net: Any, channels: int, size: int) -> float:
    """Multiplications and additions of a pass over a cube, counted without computing it."""
    import copy

    import torch
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        copy.deepcopy(net).to("meta").eval()(
            torch.empty(1, channels, size, size, size, device="meta")
        )
    return float(counter.get_total_flops())


# Around the networks


def monai_scoring(size: tuple[int, ...], spacing: tuple[float, ...]) -> Ready:
    """MONAI's Dice, average and Hausdorff distance of a pair."""
    import torch
    from monai.metrics import (
        compute_average_surface_distance,
        compute_dice,
        compute_hausdorff_distance,
    )
    from our_sides import pair

    prediction, truth = (torch.from_numpy(mask)[None, None].float() for mask in pair(size))

    def scores() -> np.ndarray:
        dice = compute_dice(prediction, truth, include_background=True)
        distances = {"include_background": True, "spacing": spacing}
        compute_average_surface_distance(prediction, truth, symmetric=True, **distances)
        hausdorff = compute_hausdorff_distance(prediction, truth, **distances)
        return np.array([float(dice), float(hausdorff)])

    def step() -> None:
        scores()

    return Ready(step, scores)


def surface_distance(size: tuple[int, ...], spacing: tuple[float, ...]) -> Ready:
    """Dice, average and Hausdorff distance by surface-distance, which weighs surface elements."""
    import surface_distance as library
    from our_sides import pair

    prediction, truth = pair(size)

    def scores() -> np.ndarray:
        distances = library.compute_surface_distances(truth, prediction, spacing)
        library.compute_average_surface_distance(distances)
        hausdorff = library.compute_robust_hausdorff(distances, 100)
        dice = library.compute_dice_coefficient(truth, prediction)
        return np.array([float(dice), float(hausdorff)])

    def step() -> None:
        scores()

    return Ready(step, scores)


def simpleitk_motion(size: tuple[int, ...]) -> Ready:
    """A rotation and translation of image and label by SimpleITK."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(tasks.smooth(size))
    label = sitk.GetImageFromArray(tasks.blobs(size, 3))
    centre = [(n - 1) / 2 for n in size[::-1]]
    rng = np.random.default_rng(0)

    def step() -> None:
        motion = sitk.Euler3DTransform(centre, *rng.uniform(-math.pi, math.pi, 3))
        motion.SetTranslation(rng.uniform(-30, 30, 3))
        for moving, kind in ((image, sitk.sitkLinear), (label, sitk.sitkNearestNeighbor)):
            moved = sitk.Resample(moving, image, motion, kind, 0.0, moving.GetPixelID())
            sitk.GetArrayViewFromImage(moved)

    return Ready(step, None, {"threads": sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()})
