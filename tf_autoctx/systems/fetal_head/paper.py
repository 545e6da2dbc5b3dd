"""What the paper reports: tables 1 and 2 of Yang et al. 2019. No Keras in this module."""

from __future__ import annotations

COLUMNS = ("DSC", "Conf", "Jacc", "Adb", "Hdb")
# Behind a variant: levels joined by concatenation, which the paper has no row for.
CONCAT = "-concat"
# {table: {row: values in the order of COLUMNS, and seconds a volume where it has them}}
TABLES: dict[str, dict[str, tuple[float, ...]]] = {
    "Table 1: methods": {
        "p-USegNet": (93.31, 85.53, 87.53, 0.8908, 7.839),
        "2D-USegNet": (94.31, 87.86, 89.27, 0.8023, 6.861),
        "3D-DeconvNet": (94.51, 88.31, 89.62, 0.6804, 6.334),
        "USegNet": (94.83, 89.06, 90.20, 0.6186, 5.400),
        "USegNet-DS": (94.95, 89.33, 90.42, 0.6225, 5.409),
        "USegNet-DS-UAM": (95.57, 90.70, 91.54, 0.5242, 4.785),
        "USegNet-DS-SAM": (95.63, 90.83, 91.64, 0.5362, 4.702),
        "USegNet-DS-HAS": (95.85, 91.30, 92.05, 0.5070, 4.876),
        "USegNet-DS-HAS-Ctx": (96.05, 91.74, 92.42, 0.4793, 4.609),
        "USegNet-DS-HAS-Ctx" + CONCAT: (),
    },
    "Table 2: number of SAM and UAM": {
        "USegNet-DS": (94.95, 89.33, 90.42, 0.6225, 5.409, 0.78),
        "USegNet-DS-SAM-1": (95.44, 90.42, 91.30, 0.5556, 4.939, 0.76),
        "USegNet-DS-SAM-12": (95.60, 90.75, 91.59, 0.5380, 5.149, 0.78),
        "USegNet-DS-SAM": (95.63, 90.83, 91.64, 0.5362, 4.702, 1.11),
        "USegNet-DS-UAM-1": (95.49, 90.51, 91.39, 0.5374, 4.832, 0.77),
        "USegNet-DS-UAM-12": (95.54, 90.62, 91.48, 0.5350, 5.024, 0.81),
        "USegNet-DS-UAM": (95.57, 90.70, 91.54, 0.5242, 4.785, 0.88),
    },
}
PROPOSED = "USegNet-DS-HAS-Ctx"  # the method in the paper's title; figures 8 and 9 are of it
METHODS = tuple(dict.fromkeys(method for table in TABLES.values() for method in table))
