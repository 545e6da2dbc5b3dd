"""What of a training is planned from its cases and the memory there is: patches, and how often
networks halve them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tf_autoctx.errors import FieldError
from tf_autoctx.models.memory import Cost
from tf_autoctx.systems.shared.patches import AUTO, FLAG, STRIDE, WHOLE, told

Edges = tuple[int, ...]  # (z, y, x)
Extent = tuple[Sequence[int], Sequence[float]]  # voxels of a case, and mm a voxel, (z, y, x)

LEAST = 4  # voxels an edge of the coarsest grid
DEPTHS = (2, 3, 4)  # resolutions; the papers have 4
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a plan comes to.

    Attributes:
      flags: {flag: value} of those that were left to it.
      reasons: sentences.
    """

    flags: Mapping[str, Any]
    reasons: Sequence[str]

    def keeping(self, flags: Mapping[str, Any], model: str) -> Plan:
        """The plan with flags that are those of the model that a training starts from."""
        reasons = [
            f"{name}={value}: that of {model}, whose weights the training starts from."
            for name, value in flags.items()
        ]
        return Plan({**self.flags, **flags}, [*self.reasons, *reasons])


@dataclasses.dataclass(frozen=True)
class Cases:
    """What a plan is made from.

    Attributes:
      sizes: (z, y, x) voxels of every training case, on the grid that networks see.
      spacing: (z, y, x), mm, the median of such voxels.
      memory: bytes that are free.
      samples: in a step of each replica.
      rematerialize: whether blocks of networks are computed again, see `models.memory.cost`.
    """

    sizes: tuple[Edges, ...]
    spacing: tuple[float, ...]
    memory: int
    samples: int = 1
    rematerialize: bool = False

    @property
    def budget(self) -> int:
        """Bytes that a step may take: half of those that are free, rounded down to a power of two,
        so that another run on this machine is planned alike."""
        return 2 ** int(math.log2(max(self.memory, 2) / 2))

    @property
    def median(self) -> Edges:
        """Voxels of the median case along each axis."""
        return tuple(int(n) for n in np.ceil(np.median(self.sizes, axis=0)))

    @property
    def largest(self) -> Edges:
        """The size of most voxels."""
        return max(self.sizes, key=math.prod)

    def on(self, shrunk: Callable[[Edges], Iterable[int]]) -> Cases:
        """The same cases on the grid to which a function of a size brings them."""
        sizes = tuple(tuple(int(n) for n in shrunk(size)) for size in self.sizes)
        on_grid = dataclasses.replace(self, sizes=sizes)
        factors = np.divide(self.median, on_grid.median)
        spacing = tuple(float(mm) for mm in np.multiply(self.spacing, factors))
        return dataclasses.replace(on_grid, spacing=spacing)


def whole_or_patch(cases: Cases, cost: Cost) -> tuple[Edges | None, str]:
    """`patch` where whole volumes do not fit, else None, with the reason.

    Raises:
      FieldError: see `patch`.
    """
    one_shape = len(set(cases.sizes)) == 1
    needed = cost.of(_padded(cases.largest), cases.samples)
    if needed <= cases.budget and (cases.samples == 1 or one_shape):
        return None, (
            f"{FLAG}={WHOLE}: whole volumes, as a step on the largest training case, "
            f"{_by(cases.largest)} voxels, takes about {_gib(needed)} ({_costs(cost)}) of "
            f"{_budget(cases)}."
        )
    most = cases.median
    if cases.samples > 1:  # of one shape: no volume may be smaller than the patch
        most = tuple(int(n) // STRIDE * STRIDE for n in np.min(cases.sizes, axis=0))
    return patch(cases, cost, most)


def patch(cases: Cases, cost: Cost, most: Sequence[int] | None = None) -> tuple[Edges, str]:
    """The largest patch that fits, of about the proportions of the median case, with the reason.

    Args:
      cases: on the grid of the patch.
      cost: of the networks.
      most: voxels along each axis that there is no need to exceed; None: of the median case.

    Raises:
      FieldError: not even the smallest one fits.
    """
    voxels = (cases.budget - cost.weights) / (cost.voxel * cases.samples)
    if voxels < STRIDE**3:
        raise FieldError(
            FLAG,
            AUTO,
            f"a step takes {_costs(cost)}, and there are {_budget(cases)}, too little for a patch "
            f"of {_by([STRIDE] * 3)} voxels; expected a smaller `batch_size` or fewer "
            "`base_filters`.",
        )
    edges = grown(cases.median, most or cases.median, voxels)
    mm = " x ".join(f"{n * edge:.3g}" for n, edge in zip(edges, cases.spacing))
    spacing = " x ".join(f"{edge:.3g}" for edge in cases.spacing)
    return edges, (
        f"{FLAG}={told(edges)}: {mm} mm, about the proportions of the median training case, "
        f"{_by(cases.median)} voxels of {spacing} mm, and as large as fits into {_budget(cases)}: "
        f"a step takes about {_gib(cost.of(edges, cases.samples))} ({_costs(cost)})."
    )


def grown(median: Sequence[int], most: Sequence[int], voxels: float) -> Edges:
    """Edges of a patch of so many voxels at most, multiples of `STRIDE`.

    It grows by `STRIDE` along the axis along which it shows the smallest part of the median case,
    up to `most` (and what is missing to a multiple), as long as it fits.
    """
    ends = _padded(most)
    edges: Edges = (STRIDE,) * 3
    while open_axes := [axis for axis in range(3) if edges[axis] < ends[axis]]:
        _, axis = min((edges[axis] / median[axis], axis) for axis in open_axes)
        larger = (*edges[:axis], edges[axis] + STRIDE, *edges[axis + 1 :])
        if math.prod(larger) > voxels:
            break
        edges = larger
    return edges


def depth(edges: Sequence[int]) -> tuple[int, str]:
    """As many resolutions, the papers' at most, as leave the coarsest grid of a patch `LEAST`
    voxels an edge, with the reason."""
    fitting = [depth for depth in DEPTHS if min(edges) >= LEAST * 2 ** (depth - 1)]
    chosen = fitting[-1] if fitting else DEPTHS[0]
    coarsest = coarsest_grid(edges, chosen)
    if chosen == DEPTHS[-1]:
        return chosen, f"depth={chosen}: the paper's; the coarsest grid has {coarsest} voxels."
    return chosen, (
        f"depth={chosen}: the coarsest grid has {coarsest} voxels, and one halving more would "
        f"leave an edge of fewer than {LEAST}."
    )


def coarsest_grid(edges: Sequence[int], depth: int) -> str:
    """Voxels of the coarsest of so many resolutions."""
    return _by([-(-n // 2 ** (depth - 1)) for n in edges])


def _padded(size: Sequence[int]) -> Edges:
    """Up to multiples of `STRIDE`, as networks do."""
    return tuple(max(1, -(-int(n) // STRIDE)) * STRIDE for n in size)


def _by(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))


def _gib(count: float) -> str:
    return f"{count / GIB:.3g} GiB"


def _costs(cost: Cost) -> str:
    return f"{_gib(cost.weights)} for weights and {cost.voxel / 1024:.3g} KiB a voxel"


def _budget(cases: Cases) -> str:
    return (
        f"{_gib(cases.budget)}, half of the {cases.memory / GIB:.3g} GiB that are free, rounded "
        "down to a power of two"
    )
