"""Post-processing of segmentations by what is known of anatomy: a structure is one piece and has no holes."""

import numpy as np
import SimpleITK as sitk


def postprocess(label, largest_component=False, fill_holes=False):
    """Every structure's largest connected component, and then its holes filled.

    Voxels are connected by a common face (in 2D, edge). A hole is background that a structure encloses; of structures
    inside each other, the inner one gets it. No voxel goes from one structure to another.

    Args:
      label: (depth, height, width) or (height, width); 0 is background, every other value a structure.
      largest_component: whether to keep the largest component alone (the first of equals).
      fill_holes: whether to fill holes.

    Returns:
      New array of the same shape and type.
    """
    label = label.copy()
    values = np.setdiff1d(label, 0)
    mask = lambda value: sitk.GetImageFromArray((label == value).astype(np.uint8))
    if largest_component:
        for value in values:
            components = sitk.RelabelComponent(
                sitk.ConnectedComponent(mask(value))
            )  # 1 is the largest
            label[sitk.GetArrayViewFromImage(components) > 1] = 0
    if fill_holes:
        filled = [
            (value, sitk.GetArrayFromImage(sitk.BinaryFillhole(mask(value), foregroundValue=1)))
            for value in values
        ]
        for value, voxels in sorted(filled, key=lambda found: np.count_nonzero(found[1])):
            label[(voxels == 1) & (label == 0)] = value
    return label
