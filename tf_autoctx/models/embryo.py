"""Auto-context refinement of a mouse embryo's body and ventricles, one network (Xu et al. 2020)."""

from __future__ import annotations

import keras
from keras import ops

from tf_autoctx.models import layers
from tf_autoctx.models.loc_con import ResizeLike, ResizeToCube, Uncrop, loc_con
from tf_autoctx.models.options import PAPER_VNET, VNetOptions
from tf_autoctx.models.vnet import vnet

# Channels of the initial segmentation.
CLASSES = ("background", "body", "ventricle")


def embryo(
    *,
    input_shape: layers.Shape = (None, None, None),
    low_size: int = 160,
    body_box: int = 256,
    ventricle_box: int = 160,
    channels: int = 1,
    auto_context: bool = True,
    end_to_end: bool = True,
    vnets: VNetOptions = PAPER_VNET,
) -> keras.Model:
    """Initial segmentation of the shrunken volume, refined in a box per object (figure 2).

    VNet I sees the whole volume at low_size^3 voxels, whatever its aspect. VNet II (body) and III
    (ventricle) see a box about their object at full resolution, in the image and in the object's
    upsampled probability.

    Args:
      input_shape: (depth, height, width) of the image; None leaves an axis free.
      low_size: edge of the volume that VNet I sees; the paper has 160.
      body_box, ventricle_box: edges of the boxes in voxels of the image; the paper has 256 and 160.
      channels: of the image.
      auto_context: whether VNet II and III see the probability; without it, it only places their
        boxes (table 1) and nothing flows back.
      end_to_end: whether their gradient flows through the probability into VNet I. A box's place is
        a constant anyway.
      vnets: what all three are made of.

    Returns:
      Functional model: image (batch, depth, height, width, channels) -> float32 probabilities
        {"initial": (batch, low_size, low_size, low_size, 3), the `CLASSES`; "body", "ventricle":
        (batch, depth, height, width, 1), zero outside their boxes}. `get_layer` finds "vnet_1"
        (initial), "vnet_2" (body) and "vnet_3" (ventricle), which return logits.

    Raises:
      ValueError: an edge below 1, or options that `vnet` refuses.
    """
    edges = {"low_size": low_size, "body_box": body_box, "ventricle_box": ventricle_box}
    for name, edge in edges.items():
        if edge < 1:
            raise ValueError(f"{name}={edge}: expected at least 1 voxel.")
    image = keras.Input((*input_shape, channels), name="image")

    # Initial segmentation (section 2.1)
    low = ResizeToCube(low_size, dtype="float32")(image)
    free = (None, None, None)
    logits = vnet((*free, channels), len(CLASSES), vnets, name="vnet_1")(low)
    initial = keras.layers.Softmax(dtype="float32")(logits)

    # Refinement (sections 2.2 and 2.3)
    seen = initial if end_to_end else ops.stop_gradient(initial)
    context = ResizeLike(dtype="float32")([seen, image])
    outputs = {"initial": initial}
    for name, network, box in (
        ("body", "vnet_2", body_box),
        ("ventricle", "vnet_3", ventricle_box),
    ):
        x, corner = loc_con(image, context, CLASSES.index(name), box, auto_context)
        logits = vnet((*free, x.shape[-1]), 1, vnets, name=network)(x)
        probability = keras.layers.Activation("sigmoid", dtype="float32")(logits)
        outputs[name] = Uncrop(dtype="float32")([probability, corner, image])
    return keras.Model(image, outputs, name="embryo")
