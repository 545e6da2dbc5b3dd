"""Post-processing of segmentations by what is known of anatomy: one piece, and no holes."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk


def postprocess(
    label: np.ndarray, largest_component: bool = False, fill_holes: bool = False
) -> np.ndarray:
    """Every structure's largest connected component, and then its holes filled.

    Voxels are connected by a common face (in 2D, edge). A hole is background that a structure
    encloses; of structures inside each other, the inner one gets it. No voxel goes from one
    structure to another.

    Args:
      label: (depth, height, width) or (height, width); 0 is background, every other value a
        structure.
      largest_component: whether to keep the largest component alone (the first of equals).
      fill_holes: whether to fill holes.

    Returns:
      New array of the same shape and type.
    """
    label = label.copy()
    values = np.setdiff1d(label, 0)

    def mask(value: int) -> sitk.Image:
        return sitk.GetImageFromArray((label == value).astype(np.uint8))

    if largest_component:
        for value in values:
            components = sitk.RelabelComponent(sitk.ConnectedComponent(mask(value)))
            label[sitk.GetArrayViewFromImage(components) > 1] = 0  # 1 is the largest
    if fill_holes:
        filled = {
            value: sitk.GetArrayFromImage(sitk.BinaryFillhole(mask(value), foregroundValue=1))
            for value in values
        }
        for value in sorted(filled, key=lambda value: np.count_nonzero(filled[value])):
            label[(filled[value] == 1) & (label == 0)] = value
    return label
