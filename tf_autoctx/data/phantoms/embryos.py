"""A mouse embryo in high-frequency ultrasound, in utero.

Anatomy is written in mm as (front, left, crown) of an embryo of about 12 days, the origin between
head and rump; a fourth number is a radius. What is paired is written for the left side. The head
has an origin of its own, `HEAD`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import interpolate, spatial
from scipy.spatial.transform import Rotation

from tf_autoctx.data.phantoms.pieces import (
    ellipsoid,
    grid,
    into_frame,
    smooth_field,
    smooth_union,
    speckle,
)

LABELS = ("body", "ventricle")  # names of the label values 1 and on
BODY, VENTRICLE = 1, 2
SHARE = (0.075, 0.125)  # of the volume that the body takes; "around 10 %" in the paper
VENTRICLE_SHARE = (0.024, 0.034)  # of the body; the paper: under 0.5 % of the volume
SECOND_SHARE = (0.01, 0.06)  # of the volume that a partial second embryo takes
PSF = np.array((0.035, 0.06, 0.06))  # mm (range, slow scan, fast scan) in focus; 40 MHz
DYNAMIC_RANGE = 60.0  # dB from black to white

TRUNK = (  # down to the tail
    ((-1.0, 0, 1.5, 1.0), (-1.0, 0, 0.3, 1.35), (-0.6, 0, -1.1, 1.45), (0.2, 0, -2.3, 1.05))
    + ((1.1, 0, -2.9, 0.6), (1.9, 0, -2.8, 0.38), (2.4, 0, -2.2, 0.28), (2.5, 0.15, -1.5, 0.2))
)  # fmt: skip
FORELIMB = ((-0.3, 1.0, 0.3, 0.5), (0.4, 1.55, 0.05, 0.38), (1.0, 1.6, -0.15, 0.36))
HINDLIMB = ((0.3, 0.8, -2.1, 0.5), (0.9, 1.3, -1.9, 0.36), (1.45, 1.4, -1.6, 0.32))
AORTA = ((-1.4, 0, 1.0, 0.15), (-1.4, 0, 0, 0.18), (-1.15, 0, -1.2, 0.16), (-0.25, 0, -2.3, 0.12))
UMBILICAL_VEIN = ((0.95, 0, -1.4, 0.15), (0.5, 0.1, -1.0, 0.19), (0, 0.1, -0.5, 0.14))
SPINE = ((-1.55, 0, 1.3), (-1.9, 0, 0.3), (-1.65, 0, -1.3), (-0.45, 0, -2.75), (0.8, 0, -3.15))
CANAL = ((-1.6, 0, 1.2, 0.1), (-2.05, 0, 0.3, 0.12), (-1.8, 0, -1.4, 0.11), (-0.55, 0, -2.85, 0.08))

HEAD = np.array((0.1, 0, 2.7))
SKULL = (  # centres and radii: vault, hindbrain
    ((0.3, 0, 0.15), (1.65, 1.35, 1.25)),
    ((-1.0, 0, -0.35), (1.0, 1.1, 1.15)),
)
SNOUT = (1.75, 0, -0.85), (0.95, 0.8, 0.75)
LATERAL_VENTRICLE = ((0.75, 0, 0.2, 0.14), (0.85, 0.28, 0.35, 0.2), (0.85, 0.55, 0.5, 0.27)) + (
    ((0.45, 0.62, 0.65, 0.24), (0, 0.6, 0.55, 0.15))
)  # fmt: skip
MIDLINE_VENTRICLES = (  # third ventricle, aqueduct with the midbrain's vesicle, fourth ventricle
    ((0.75, 0, 0.2, 0.16), (0.3, 0, 0.05, 0.17), (-0.15, 0, 0.2, 0.15), (-0.5, 0, 0.42, 0.22))
    + ((-0.85, 0, 0.35, 0.19), (-1.25, 0, 0.05, 0.15), (-1.35, 0, -0.4, 0.24))
    + ((-1.3, 0, -0.85, 0.17), (-1.2, 0, -1.2, 0.1))
)  # fmt: skip
LATERAL_RECESS = ((-1.3, 0, -0.4, 0.2), (-1.2, 0.35, -0.4, 0.16), (-1.05, 0.6, -0.45, 0.11))
MOUTH = ((2.4, 0, -0.95, 0.08), (1.5, 0, -1.0, 0.14), (0.9, 0, -1.05, 0.1))
JAW = ((0.9, 0.35, -1.3, 0.09), (1.9, 0.25, -1.25, 0.08))
SKULL_BASE = ((0.9, 0, -0.5, 0.1), (-0.3, 0, -0.7, 0.1))


def embryo(
    size: Sequence[int] = (180, 220, 180), spacing: float = 0.05, seed: Any = 0
) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    """A mouse embryo of 10-14.5 days under a 40 MHz probe: body and brain ventricles as the truth.

    Amniotic fluid, vessels, the heart's chambers and pockets outside the uterus are as dark as the
    ventricles. In some volumes the mother breathes, which shifts slabs of slices in the image but
    not in the truth; in some a second embryo without a label reaches into the view.

    Args:
      size: voxels along (z, y, x): depth, slow scan, fast scan.
      spacing: mm per voxel, along every axis.
      seed: whatever `np.random.default_rng` takes. It fixes the anatomy at every size with the same
        field of view, and the speckle at this size. The embryo grows with the field of view and is
        complete in it; it is smaller than `SHARE` where it would not fit, in a field of view
        flatter than about 1 : 3.

    Returns:
      image (z, y, x) float32 in [0, 255], label (z, y, x) uint8 with 1 + the index in `LABELS`,
      spacing (z, y, x) in mm.
    """
    rng = np.random.default_rng(seed)
    scene = _draw(rng, np.multiply(size, spacing))
    image, label = _scan(rng, scene, tuple(int(n) for n in size), float(spacing))
    return image, label, (float(spacing),) * 3


class _Embryo:
    """What differs between embryos, and the distances in mm of an embryo at scale 1."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.head = rng.uniform(0.95, 1.1)  # the younger, the larger
        self.bend = rng.uniform(-0.03, 0.05)  # 1/mm
        waves = rng.normal(size=(3, 3))
        waves = waves / np.linalg.norm(waves, axis=1, keepdims=True)
        self.waves = waves * 2 * np.pi / rng.uniform(5, 9, (3, 1))
        self.phases = rng.uniform(0, 2 * np.pi, 3)
        self.shifts = rng.uniform(-0.22, 0.22, 3)
        self.swelling = 0.0  # of the ventricles

        step = 0.14
        points = _lattice((4.2, 2.6, 5.2), step).astype(np.float32)
        points = points[:, self.body(self.relaxed(points)) < 0]
        self.volume = points.shape[1] * step**3
        self.sample = points.T  # (n, 3), evenly spread
        self.hull = self.sample[spatial.ConvexHull(self.sample).vertices]

        step = 0.1
        points = _lattice((2.6, 1.7, 2.2), step) + HEAD[:, None, None, None]
        q = self.relaxed(points.astype(np.float32))
        wanted = int(rng.uniform(*VENTRICLE_SHARE) * self.volume / step**3)
        distances = self.ventricles(q, self.body(q))
        self.swelling = float(np.partition(distances, wanted, axis=None)[wanted])

    def relaxed(self, points: np.ndarray) -> np.ndarray:
        """Positions (3, ...) in the embryo that the module describes, for positions in this one.

        All parts move.
        """
        bent = np.tensordot(self.waves.astype(np.float32), points, 1)
        bent += self.phases.astype(np.float32).reshape(3, *[1] * (points.ndim - 1))
        np.sin(bent, out=bent)
        bent *= self.shifts.astype(np.float32).reshape(3, *[1] * (points.ndim - 1))
        bent += points
        bent[0] += np.float32(self.bend) * points[2] ** 2
        return bent

    def in_head(self, q: np.ndarray) -> np.ndarray:
        """Positions q (3, ...) in the head's own frame."""
        return into_frame(q, HEAD, np.eye(3) / self.head)

    def body(self, q: np.ndarray) -> np.ndarray:
        """Trunk, head and limbs in one skin, at relaxed positions q (3, ...)."""
        q_head, sides = self.in_head(q), _sides(q)
        skull = _skull(q_head)
        head = smooth_union(skull, ellipsoid(q_head, *SNOUT), 0.6) * np.float32(self.head)
        body = smooth_union(_tube(q, TRUNK), head, 0.6)
        return smooth_union(body, np.minimum(_tube(sides, FORELIMB), _tube(sides, HINDLIMB)), 0.3)

    def ventricles(self, q: np.ndarray, body: np.ndarray) -> np.ndarray:
        """Distance to a single system of fluid, with tissue between it and the skin."""
        head = self.in_head(q)
        slit = head * np.array((1, 1.2, 1), np.float32).reshape(3, *[1] * (q.ndim - 1))
        lateral = _tube(_sides(head), LATERAL_VENTRICLE)
        fluid = smooth_union(_tube(slit, MIDLINE_VENTRICLES), lateral, 0.1)
        fluid = smooth_union(fluid, _tube(_sides(head), LATERAL_RECESS), 0.1)
        swollen = fluid * np.float32(self.head) - np.float32(self.swelling)
        return np.maximum(swollen, body + np.float32(0.22))


class _Pose(NamedTuple):
    """Where an embryo lies and in which sac.

    Axes are rows (front, left, crown), the sac is an ellipsoid along them.
    """

    embryo: _Embryo
    centre: np.ndarray
    axes: np.ndarray
    scale: float
    sac_centre: np.ndarray
    sac_radii: np.ndarray

    def place(self, points: np.ndarray) -> np.ndarray:
        """Points (n, 3) of the embryo at scale 1 in the volume."""
        return self.scale * points @ self.axes + self.centre

    def distances(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Positions (3, ...) in the relaxed embryo, distances in mm to its skin and ventricles."""
        q = self.embryo.relaxed(into_frame(points, self.centre, self.axes / self.scale))
        body = self.embryo.body(q)
        ventricles = self.embryo.ventricles(q, body)
        return q, body * np.float32(self.scale), ventricles * np.float32(self.scale)

    def sac(self, points: np.ndarray) -> np.ndarray:
        """Distance in mm to the sac's wall."""
        return ellipsoid(points, self.sac_centre, self.sac_radii, self.axes)


class _Scene(NamedTuple):
    """All that is in the field of view, `view` mm large."""

    view: np.ndarray
    first: _Pose
    second: _Pose | None
    jumps: np.ndarray  # rows (start, stop, z, x) in mm along slow scan
    placenta: np.ndarray  # direction from the sac's middle
    pockets: list[tuple[np.ndarray, np.ndarray, np.ndarray]]  # of fluid: centre, radii, rotation
    vessels: list[np.ndarray]  # outside: courses (n, 4)
    db: dict[str, float]


def _draw(rng: np.random.Generator, view: np.ndarray) -> _Scene:
    """A scene for a field of view (3,) in mm; what is drawn does not depend on the voxels."""
    first = _complete(rng, view)
    second = _partial(rng, view, first) if rng.uniform() < 0.25 else None

    breaths = rng.integers(3, 8) if rng.uniform() < 0.3 else 0
    start = rng.uniform(0, view[1], breaths)
    shift = rng.uniform(0.12, 0.35, (breaths, 2)) * rng.choice((-1, 1), (breaths, 2))
    jumps = np.column_stack((start, start + rng.uniform(0.15, 0.6, breaths), shift))

    aside = rng.normal(size=3)
    turns = Rotation.from_quat(rng.normal(size=(7, 4))).as_matrix()
    pockets = [
        (rng.uniform(0, view), first.scale * rng.uniform(0.3, 1.3, 3), turn) for turn in turns
    ]
    vessels = [
        np.column_stack((
            rng.uniform(0, view) + first.scale * np.cumsum(rng.normal(0, 0.8, (4, 3)), 0),
            first.scale * rng.uniform(0.12, 0.3, 4),
        ))
        for _ in range(8)
    ]  # fmt: skip
    fluid = rng.uniform(-50, -42)
    db = {
        "fluid": fluid,
        "ventricle": fluid + rng.uniform(-2, 4),
        "blood": fluid + rng.uniform(0, 5),
        "outside": rng.uniform(-25, -18),
        "placenta": rng.uniform(-19, -14),
        "soft": rng.uniform(-25, -19),
        "brain": rng.uniform(-30, -24),
    }
    return _Scene(view, first, second, jumps, aside / np.linalg.norm(aside), pockets, vessels, db)


def _complete(rng: np.random.Generator, view: np.ndarray) -> _Pose:
    """An embryo in the first of many orientations in which it fits, or can be largest."""
    embryo = _Embryo(rng)
    scale = np.cbrt(rng.uniform(*SHARE) * view.prod() / embryo.volume)
    axes = Rotation.from_quat(rng.normal(size=(300, 4))).as_matrix()
    reach = embryo.hull @ axes  # (orientation, point, axis)
    low, high = reach.min(1), reach.max(1)
    fit = np.min(0.93 * view / (scale * (high - low)), axis=1)  # a margin of 3.5 % at either face
    best = np.argmax(np.minimum(fit, 1))
    scale *= min(1.0, fit[best])
    room = 0.93 * view - scale * (high - low)[best]
    centre = 0.035 * view + rng.uniform(0, 1, 3) * room - scale * low[best]
    return _in_sac(rng, embryo, centre, axes[best], scale)


def _partial(rng: np.random.Generator, view: np.ndarray, first: _Pose) -> _Pose | None:
    """A sibling cut by a face of the volume and clear of the first embryo; None without room."""
    embryo = _Embryo(rng)
    for _ in range(100):
        axes = Rotation.from_quat(rng.normal(size=4)).as_matrix()
        scale = first.scale * rng.uniform(0.9, 1.05)
        centre, face = rng.uniform(0, view), rng.integers(3)
        centre[face] = rng.choice((-1, 1)) * rng.uniform(0.5, 0.9) * view[face] + view[face] / 2
        pose = _in_sac(rng, embryo, centre, axes, scale)
        points = pose.place(embryo.sample)
        seen = points[((points > 0) & (points < view)).all(1)].T
        share = seen.shape[1] / len(points) * embryo.volume * scale**3 / view.prod()
        if not SECOND_SHARE[0] < share < SECOND_SHARE[1]:
            continue
        if first.distances(seen.astype(np.float32))[1].min() > 0.3:
            return pose
    return None


def _in_sac(
    rng: np.random.Generator, embryo: _Embryo, centre: np.ndarray, axes: np.ndarray, scale: float
) -> _Pose:
    """The pose with a sac so close around the embryo that parts of it touch the wall."""
    low, high = embryo.hull.min(0), embryo.hull.max(0)
    middle, radii = (low + high) / 2, (high - low) / 2
    farthest = np.linalg.norm((embryo.hull - middle) / radii, axis=1).max()
    radii = radii * farthest * rng.uniform(0.95, 1.1)
    return _Pose(embryo, centre, axes, scale, scale * middle @ axes + centre, scale * radii)


def _skull(head: np.ndarray) -> np.ndarray:
    """Distance to the skull at positions (3, ...) in the head's own frame."""
    vault, hindbrain = (ellipsoid(head, centre, radii) for centre, radii in SKULL)
    return smooth_union(vault, hindbrain, 0.5)


def _sides(q: np.ndarray) -> np.ndarray:
    """The right half folded onto the left."""
    return np.stack((q[0], np.abs(q[1]), q[2]))


def _lattice(reaches: Sequence[float], step: float) -> np.ndarray:
    """Positions (3, ...) a step apart, so far from the origin along each axis."""
    return grid(*(np.arange(-reach, reach, step) for reach in reaches))


def _tube(points: np.ndarray, course: ArrayLike) -> np.ndarray:
    """Distance in mm to a tube along a course (n, 4), smooth between its rows."""
    given = np.asarray(course, float)
    at = np.arange(len(given))
    finer = np.linspace(0, at[-1], 2 * at[-1] + 1)
    rows = interpolate.PchipInterpolator(at, given)(finer).astype(np.float32)
    pieces = itertools.pairwise(rows)
    nearest = _cone(points, *next(pieces))
    for piece in pieces:
        np.minimum(nearest, _cone(points, *piece), out=nearest)
    return nearest


def _cone(points: np.ndarray, first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Distance in mm to a piece of a tube between two rows (4,) of its course."""
    (*start, thick), (*stop, thin) = first, last
    way = np.subtract(stop, start)
    from_start = [axis - origin for axis, origin in zip(points, start)]
    along = sum(a * w for a, w in zip(from_start, way)) / (way @ way)
    np.clip(along, 0, 1, out=along)
    square = sum((a - along * w) ** 2 for a, w in zip(from_start, way))
    return np.sqrt(square) - (thick + along * (thin - thick))


def _scan(
    rng: np.random.Generator, scene: _Scene, size: tuple[int, ...], spacing: float
) -> tuple[np.ndarray, np.ndarray]:
    """Image and label of a scene.

    A few slices at a time: the paper's volumes have up to 17 million voxels.
    """
    texture, ripple = 3 * smooth_field(rng, size, 12), 0.2 * smooth_field(rng, size, 5)
    label = np.empty(size, np.uint8)
    amplitude, mirror = np.empty(size, np.float32), np.empty(size, np.float32)
    z, y, x = (((np.arange(n) + 0.5) * spacing).astype(np.float32) for n in size)
    for start in range(0, size[1], 4):
        slab = np.s_[:, start : start + 4]
        points = grid(z, y[slab[1]], x)
        looks = texture[slab], ripple[slab], spacing
        seen = _tissue(scene, points, *looks)
        label[slab] = seen.label
        shift = _motion(scene, y[slab[1]])
        if shift.any():  # in the image alone: the truth is the embryo at rest
            seen = _tissue(scene, points + shift[:, None, :, None], *looks)
        weakened = 10 ** (-np.cumsum(seen.loss, 0) * np.float32(spacing / 20))
        amplitude[slab] = 10 ** (seen.db / 20) * weakened
        mirror[slab] = seen.mirror * weakened
    return _shown(rng, scene, z, amplitude, mirror, spacing), label


def _shown(
    rng: np.random.Generator,
    scene: _Scene,
    z: np.ndarray,
    amplitude: np.ndarray,
    mirror: np.ndarray,
    spacing: float,
) -> np.ndarray:
    """Grey values of scatterers and mirror-like echoes.

    The array is focused at one depth: brightest and sharpest there.
    """
    focus = rng.uniform(0.35, 0.65) * scene.view[0]
    depth_of_field = rng.uniform(0.3, 0.45) * scene.view[0]
    sharp = np.exp(-0.5 * ((z - focus) / depth_of_field) ** 2).astype(np.float32)[:, None, None]
    psf = np.maximum(PSF / spacing, 0.5)
    echo = speckle(rng, amplitude * sharp, psf)
    wide = np.maximum(PSF * (1, 2.5, 2.5) / spacing, 0.5)
    echo += speckle(rng, amplitude * np.sqrt(1 - sharp**2), wide)
    echo = np.abs(echo + mirror) * (0.3 + 0.7 * sharp) * np.float32(10 ** (rng.uniform(0, 5) / 20))
    echo += np.float32(10 ** (-58 / 20))  # the receiver's noise
    return np.clip(255 * (1 + 20 * np.log10(echo) / DYNAMIC_RANGE), 0, 255).astype(np.float32)


def _motion(scene: _Scene, y: np.ndarray) -> np.ndarray:
    """Shift (3, n) in mm of what the slices at y (n,) show."""
    shift = np.zeros((3, len(y)), np.float32)
    for start, stop, *by in scene.jumps:
        shift[::2, (y >= start) & (y < stop)] = np.array(by)[:, None]
    return shift


class _Tissue:
    """What is at every voxel, filled in body after body.

    Attributes:
      label: truth.
      db: scatterers in dB.
      mirror: amplitude of mirror-like echoes.
      loss: attenuation in dB/mm.
    """

    def __init__(self, db: float, texture: np.ndarray, spacing: float) -> None:
        self.texture, self.spacing = texture, spacing
        self.label = np.zeros(texture.shape, np.uint8)
        self.db = db + 1.5 * texture
        self.mirror = np.zeros_like(texture)
        self.loss = np.ones_like(texture)

    def fill(self, distance: np.ndarray, db: float, loss: float = 0.0, rough: float = 0.0) -> None:
        """Edges are as soft as a voxel is large."""
        part = np.clip(np.float32(0.5) - distance / np.float32(self.spacing), 0, 1)
        self.db[:] += part * (db + rough * self.texture - self.db)
        self.loss[:] += part * (loss - self.loss)
        self.mirror[:] *= 1 - part

    def shine(self, distance: np.ndarray, strength: float, width: float = 0.04) -> None:
        """A boundary is bright where it is normal to the beam."""
        width = max(width, 0.6 * self.spacing)
        facing = np.abs(np.gradient(distance, axis=0)) / self.spacing
        line = strength * np.exp(-0.5 * (distance / width) ** 2)
        self.mirror[:] += line * np.minimum(facing, 1) ** 2


def _tissue(
    scene: _Scene, points: np.ndarray, texture: np.ndarray, ripple: np.ndarray, spacing: float
) -> _Tissue:
    """`_Tissue` at points (3, z, y, x), depth along the first axis."""
    seen = _Tissue(scene.db["outside"], texture, spacing)
    _surroundings(seen, scene, points, ripple)
    for pose in _poses(scene):
        q, body, ventricles = pose.distances(points)
        _cord(seen, scene, pose, points)
        seen.fill(body, scene.db["soft"], loss=1.2, rough=1.0)
        seen.shine(body, 0.3)
        _organs(seen, scene, pose, q, body)
        seen.fill(ventricles, scene.db["ventricle"])
        seen.shine(ventricles, 0.1)
    # Of the last pose, the first embryo: a second has no label.
    seen.label[body < 0] = BODY
    seen.label[ventricles < 0] = VENTRICLE
    return seen


def _poses(scene: _Scene) -> list[_Pose]:
    """The second embryo, where there is one, and the first."""
    return [pose for pose in (scene.second, scene.first) if pose]


def _surroundings(seen: _Tissue, scene: _Scene, points: np.ndarray, ripple: np.ndarray) -> None:
    """Around the embryos: decidua and placenta, vessels and pockets of fluid, the sacs."""
    sacs = [pose.sac(points) + ripple for pose in _poses(scene)]
    if scene.second:  # with a septum between the two
        half = (sacs[0] - sacs[1]) / 2
        sacs = [
            np.maximum(sacs[0], half + np.float32(0.08)),
            np.maximum(sacs[1], np.float32(0.08) - half),
        ]
    away = points - scene.first.sac_centre.astype(np.float32)[:, None, None, None]
    away /= np.sqrt((away**2).sum(0)) + np.float32(1e-6)
    attached = np.clip(4 * np.tensordot(scene.placenta.astype(np.float32), away, 1) - 2, 0, 1)
    seen.fill(sacs[-1] - 0.35 - 1.1 * attached, scene.db["placenta"], loss=1.0, rough=1.0)
    for course in scene.vessels:
        seen.fill(_tube(points, course), scene.db["blood"])
    for pocket in scene.pockets:
        distance = ellipsoid(points, *pocket) + ripple
        seen.fill(np.maximum(distance, 0.6 - sacs[-1]), scene.db["fluid"])
    for sac in sacs:
        seen.fill(sac, scene.db["fluid"])
        seen.shine(sac, 0.25)


def _cord(seen: _Tissue, scene: _Scene, pose: _Pose, points: np.ndarray) -> None:
    """The umbilical cord from the belly to the sac's wall on the placenta's side.

    It is no part of the body's truth.
    """
    navel = pose.place(np.array((0.9, 0, -1.4)))
    wall = pose.sac_centre + pose.axes.T @ (pose.sac_radii * (pose.axes @ scene.placenta))
    middle = (navel + wall) / 2 + 0.5 * pose.scale * pose.axes[1]
    for radius, name in ((0.28, "soft"), (0.13, "blood")):
        course = np.column_stack(((navel, middle, wall), np.full(3, radius * pose.scale)))
        seen.fill(_tube(points, course), scene.db[name])


def _organs(seen: _Tissue, scene: _Scene, pose: _Pose, q: np.ndarray, body: np.ndarray) -> None:
    """What is inside the body but for the ventricles, at positions q in the relaxed embryo."""
    head, sides_head = pose.embryo.in_head(q), pose.embryo.in_head(_sides(q))
    db, scale = scene.db, np.float32(pose.scale)
    bone = {"db": db["soft"] + 14, "loss": 8.0}

    def paint(distance: np.ndarray, **what: float) -> None:
        seen.fill(distance * scale, **what)

    skull = _skull(head) * np.float32(pose.embryo.head)
    brain = np.maximum(skull + np.float32(0.15), body / scale + np.float32(0.1))
    paint(brain, db=db["brain"], loss=0.8, rough=0.7)
    # Eyes, then the lenses
    paint(ellipsoid(sides_head, (1.05, 0.92, -0.3), (0.26, 0.19, 0.26)), db=db["fluid"] + 4)
    paint(ellipsoid(sides_head, (1.08, 0.98, -0.3), (0.12, 0.1, 0.12)), db=db["soft"] + 6)
    paint(_tube(head, MOUTH), db=db["fluid"])
    paint(_tube(sides_head, JAW), **bone)
    paint(_tube(head, SKULL_BASE), **bone)

    liver = ellipsoid(q, (0.1, 0, -0.75), (0.95, 1.0, 0.6))
    paint(liver, db=db["soft"] + 4, loss=1.4, rough=0.7)
    # The heart, then its chambers
    paint(ellipsoid(q, (-0.05, 0.05, 0.45), (0.65, 0.65, 0.55)), db=db["soft"] + 3, loss=1.2)
    paint(ellipsoid(q, (0.05, -0.22, 0.45), (0.42, 0.2, 0.36)), db=db["blood"])
    paint(ellipsoid(q, (-0.1, 0.32, 0.45), (0.38, 0.22, 0.32)), db=db["blood"])
    paint(ellipsoid(q, (0.75, 0, -2.15), (0.3, 0.28, 0.35)), db=db["fluid"])  # bladder
    paint(_tube(q, AORTA), db=db["blood"])
    paint(_tube(q, UMBILICAL_VEIN), db=db["blood"])
    paint(_tube(q, CANAL), db=db["fluid"] + 3)
    at = np.arange(len(SPINE))
    for vertebra in interpolate.PchipInterpolator(at, SPINE)(np.linspace(0, at[-1], 16)):
        paint(ellipsoid(q, vertebra, (0.13, 0.2, 0.13)), **bone)
