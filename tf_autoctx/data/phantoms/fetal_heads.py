"""A fetal head in 3D ultrasound.

Every length and position is in mm, counted from the volume's first corner.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from tf_autoctx.data.phantoms.pieces import (
    ellipsoid,
    grid,
    into_frame,
    smooth_field,
    smooth_union,
    speckle,
)

# (z, y, x) mm, the volumes of Yang et al. 2019, section 2.1
FETAL_HEAD_VIEW = np.array((388, 258, 440)) * 0.38
APEX = 28.0  # the beams meet this many mm above the first slice, so z is depth
# Half angles of the sweep (y) and of the 75 degree sector (x)
SLOPES = np.tan(np.radians((34.0, 37.5)))
# mm (range, y, x) in mid-volume: ultrasound is sharp along the beam, blurred across it
PSF = np.array((0.6, 2.2, 1.5))
DYNAMIC_RANGE = 60.0  # dB from black to white
# Of scans of one head: thirds of a turn about the diagonal bring the beam along three axes of the
# head in turn.
DIRECTIONS = Rotation.from_rotvec(
    np.outer((0, 1, 2), np.full(3, 2 * np.pi / 3 / np.sqrt(3)))
).as_matrix()


class _Head(NamedTuple):
    """Pose and size: axes are rows (front, left, crown), radii those of the skull along them."""

    centre: np.ndarray
    axes: np.ndarray
    radii: np.ndarray
    wave: np.ndarray  # (3,) 1/mm: a gentle dent-and-bulge, as no head is an exact ellipsoid


def fetal_head(
    size: Sequence[int] = (97, 64, 110), seed: Any = 0, direction: int | None = None
) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    """A fetus of 20-31 weeks under a 3D probe, its whole head as the truth.

    That is skull and face down to the neck. Shadows, drop-out at the skull's flanks, speckle and
    grey values shared with the surroundings hide much of the boundary; the truth is the geometry
    itself, also where nothing can be seen.

    Args:
      size: voxels along (z, y, x); the field of view is always `FETAL_HEAD_VIEW`.
      seed: whatever `np.random.default_rng` takes. It fixes the anatomy at every size, and the
        speckle at this size.
      direction: 0, 1 or 2 for scans of one head along its three axes, each with speckle of its own;
        their heads fit the field of view in every direction, and may be smaller than that of None,
        the only scan.

    Returns:
      image (z, y, x) float32 in [0, 255], label (z, y, x) uint8 with 1 for the head, spacing (z, y,
      x) in mm.
    """
    rng = np.random.default_rng(seed)
    spacing = FETAL_HEAD_VIEW / size
    head = _pose(rng, direction)
    echo = _echo(rng, head, size, direction)

    # Beams to voxels, a few slices at a time: the paper's size has 44 million voxels
    image, label = np.empty(size, np.float32), np.empty(size, np.uint8)
    for start in range(0, size[0], 8):
        slab = slice(start, start + 8)
        z, y, x = (np.arange(n, dtype=np.float32) for n in size)
        points = grid(z[slab], y, x)
        points = (points + np.float32(0.5)) * spacing.astype(np.float32)[:, None, None, None]
        label[slab] = _head_distance(into_frame(points, head.centre, head.axes), head) < 0
        image[slab] = ndimage.map_coordinates(echo, _to_beam(points, echo.shape), order=1, cval=0.0)
    return image, label, tuple(spacing.tolist())


def _skull_distance(q: np.ndarray, head: _Head) -> np.ndarray:
    """Distance to the skull for positions q (3, ...) in the head's frame."""
    ripple = np.sin(np.tensordot(head.wave.astype(np.float32), q, 1))
    return ellipsoid(q, (0, 0, 0), head.radii) + np.float32(1.2) * ripple


def _head_distance(q: np.ndarray, head: _Head, skull: np.ndarray | None = None) -> np.ndarray:
    """Distance to the whole head for positions q (3, ...) in the head's frame.

    It is skull, face and neck above a plane from the lower jaw to the cervical spine C2 (figure 1b
    of the paper).
    """
    r = head.radii
    skull = _skull_distance(q, head) if skull is None else skull
    face = ellipsoid(q, (0.5, 0, -0.72) * r, (0.46, 0.62, 0.62) * r)
    neck = ellipsoid(q, (-0.05, 0, -1.2) * r, (0.42, 0.5, 0.8) * r)
    body = smooth_union(smooth_union(skull, face, 12.0), neck, 8.0)
    jaw, c2 = np.array(((0.6, -1.3), (-0.3, -1.0)), np.float32) * r[[0, 2]]  # (front, crown)
    front, crown = ((jaw - c2) / np.linalg.norm(jaw - c2)).astype(np.float32)
    below = crown * (q[0] - c2[0]) - front * (q[2] - c2[1])
    return np.maximum(body, below)


def _pose(rng: np.random.Generator, direction: int | None) -> _Head:
    """A head of random age and orientation that fits the field of view.

    With a direction, also when it is turned to be scanned along the others.
    """
    age = rng.uniform()  # 0 at 20 weeks, 1 at 31: BPD 48-80 mm, OFD 62-100 mm
    ofd, bpd = (62, 48) + age * np.array((38, 32))
    radii = np.array((ofd, bpd, bpd * rng.uniform(0.98, 1.08))) / 2 * rng.uniform(0.97, 1.03, 3)
    radii = radii.astype(np.float32)
    head = _Head(
        np.zeros(3),
        Rotation.from_quat(rng.normal(size=4)).as_matrix(),
        radii,
        rng.uniform(-0.08, 0.08, 3),
    )
    box = grid(*(np.linspace(-1.6, 1.6, 40) * r for r in radii)).astype(np.float32)
    body = box[:, _head_distance(box, head) < 1]
    poses = [head.axes @ turn for turn in (DIRECTIONS if direction is not None else DIRECTIONS[:1])]
    reach = [axes.T @ body for axes in poses]
    fit = min(1.0, *(np.min(0.94 * FETAL_HEAD_VIEW / np.ptp(r, axis=1)) for r in reach))
    low, high = reach[direction or 0].min(1), reach[direction or 0].max(1)
    room = FETAL_HEAD_VIEW - fit * (high - low)
    centre = room * rng.uniform(0.3, 0.7, 3) - fit * low
    return head._replace(
        centre=centre, axes=poses[direction or 0], radii=(radii * fit).astype(np.float32)
    )


def _to_beam(points: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Fractional index (range, y slope, x slope) into an echo array for points (3, ...)."""
    z, y, x = points - np.array((-APEX, *FETAL_HEAD_VIEW[1:] / 2), np.float32)[:, None, None, None]
    depth = np.sqrt(z * z + y * y + x * x) - np.float32(APEX)
    unit = np.stack(
        (depth / FETAL_HEAD_VIEW[0], (y / z / SLOPES[0] + 1) / 2, (x / z / SLOPES[1] + 1) / 2)
    )
    return unit * (np.array(shape, np.float32) - 1)[:, None, None, None]


def _along_beams(shape: Sequence[int]) -> np.ndarray:
    """Positions (3, range, y slope, x slope) float32 of the beams' samples, inverts `_to_beam`."""
    depth = np.linspace(0, FETAL_HEAD_VIEW[0], shape[0], dtype=np.float32)
    r = depth[:, None, None] + np.float32(APEX)
    y = np.linspace(-SLOPES[0], SLOPES[0], shape[1], dtype=np.float32)[:, None]
    x = np.linspace(-SLOPES[1], SLOPES[1], shape[2], dtype=np.float32)
    z = r / np.sqrt(1 + y * y + x * x)
    return np.stack(
        (z - np.float32(APEX), z * y + FETAL_HEAD_VIEW[1] / 2, z * x + FETAL_HEAD_VIEW[2] / 2),
        dtype="f4",
    )


def _echo(
    rng: np.random.Generator, head: _Head, size: Sequence[int], direction: int | None
) -> np.ndarray:
    """What the scanner shows along its beams, float32 in [0, 255].

    Axes are (range, y slope, x slope).
    """
    at_middle = APEX + FETAL_HEAD_VIEW[0] / 2
    width = np.array((1, *(2 * SLOPES))) * (FETAL_HEAD_VIEW[0], at_middle, at_middle)
    # Finer sampling would show nothing more.
    shape = tuple(np.minimum(size, np.ceil(2 * width / PSF)).astype(int))
    pitch = width / (np.array(shape) - 1)
    step = float(pitch[0])
    q = into_frame(_along_beams(shape), head.centre, head.axes)
    around = _surroundings(rng, q, head.radii, step)
    skull = _skull_distance(q, head)
    whole = _head_distance(q, head, skull)
    db = _scatterers(q, head.radii, skull, whole, around)
    mirror, loss = _walls(rng, q, head.radii, skull, whole, around, step)

    # Sound weakens on its way; the time gain gives most of it back, except to shadows
    passed = np.cumsum(loss, 0) * np.float32(step) - loss * np.float32(step)
    passed += np.linspace(0, rng.uniform(5, 13), shape[0], dtype=np.float32)[:, None, None]
    psf = np.maximum(PSF / pitch, 0.5)
    if direction:
        jumped = rng.bit_generator.jumped(direction)  # type: ignore[attr-defined]
        rng = np.random.Generator(jumped)
    echo = np.abs(speckle(rng, 10 ** (db / 20), psf) + mirror) * 10 ** (-passed / 20)
    echo += np.float32(10 ** (-62 / 20))  # the receiver's noise
    return np.clip(255 * (1 + 20 * np.log10(echo) / DYNAMIC_RANGE), 0, 255).astype(np.float32)


def _facing(distance: np.ndarray, step: float) -> np.ndarray:
    """Cosine between beam and surface: a mirror-like wall echoes only where it is hit squarely."""
    return np.abs(np.gradient(distance, step, axis=0))


def _wall(distance: np.ndarray, width: float, step: float) -> tuple[np.ndarray, float]:
    """Soft sheet of a thickness that the sampling can hold, and its integral across."""
    width = max(width, 0.6 * step)
    return np.exp(-0.5 * (distance / np.float32(width)) ** 2), width * np.sqrt(2 * np.pi)


class _Surroundings(NamedTuple):
    """What lies around the head: scatterers, mirror-like echoes, distances to bones; brightness."""

    db: np.ndarray
    mirror: np.ndarray
    bones: list[np.ndarray]
    soft: float  # dB of the fetus' soft tissue
    brain: float  # and of its brain


def _surroundings(
    rng: np.random.Generator, q: np.ndarray, r: np.ndarray, step: float
) -> _Surroundings:
    """Tissue around a cavity of amniotic fluid, the fetus' torso and limbs in it."""
    shape = q.shape[1:]
    tissue, brain, soft = rng.uniform((-24, -31, -24), (-17, -23, -18))
    middle, radii = rng.uniform(-12, 12, 3), r * (1.2, 1.25, 1.3) + rng.uniform(0, 12, 3)
    cavity = ellipsoid(q, middle, radii)
    db = np.where(cavity < 0, np.float32(-50), np.float32(tissue)) + 4 * smooth_field(rng, shape, 9)
    torso = ellipsoid(q, (-0.2, 0, -2.35) * r, (0.75, 0.95, 1.15) * r)
    db[torso < 0] = soft
    mirror, _ = _wall(cavity, 0.8, step)
    mirror *= 0.25 * _facing(cavity, step)
    bones = [ellipsoid(q, (-0.5, 0, -2.2) * r, (0.1, 0.1, 1.2) * r)]  # spine
    for _ in range(2):  # limbs, near the head and on the probe's side as often as not
        turn = Rotation.from_quat(rng.normal(size=4)).as_matrix()
        away = rng.normal(size=3)
        centre = away / np.linalg.norm(away) * (r + 14)
        length = rng.uniform(18, 28)
        db[ellipsoid(q, centre, (8, 9, length), turn) < 0] = soft
        bones.append(ellipsoid(q, centre, (2, 2.5, length - 5), turn))
    return _Surroundings(db, mirror, bones, soft, brain)


def _scatterers(
    q: np.ndarray, r: np.ndarray, skull: np.ndarray, whole: np.ndarray, around: _Surroundings
) -> np.ndarray:
    """dB with the head in place of whatever it overlaps."""
    db, brain = around.db, around.brain
    sides = np.stack((q[0], np.abs(q[1]), q[2]))  # left and right in one go
    db[whole < 0] = around.soft - 2
    inside = skull < -1
    db[inside] = brain
    cerebellum = ellipsoid(q, (-0.5, 0, -0.5) * r, (0.3, 0.5, 0.25) * r)
    db[inside & (cerebellum < 0)] = brain + 6
    ventricles = ellipsoid(sides, (-0.1, 0.3, 0.15) * r, (0.5, 0.2, 0.24) * r)
    db[inside & (ventricles < 0)] = -48
    choroid_plexus = ellipsoid(sides, (-0.15, 0.28, 0.1) * r, (0.25, 0.09, 0.11) * r)
    db[inside & (choroid_plexus < 0)] = brain + 10
    eyes = ellipsoid(sides, (0.78, 0.36, -0.62) * r, (0.15, 0.2, 0.17) * r)
    db[eyes < 0] = -46
    return db


def _walls(
    rng: np.random.Generator,
    q: np.ndarray,
    r: np.ndarray,
    skull: np.ndarray,
    whole: np.ndarray,
    around: _Surroundings,
    step: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Mirror-like echoes and attenuation (dB/mm) of scalp, midline and bones.

    Bone is bright, and dark behind; sutures and fontanelles let sound through; there is no vault
    towards face and neck.
    """
    shape = q.shape[1:]
    loss = np.zeros(shape, np.float32)
    midline, _ = _wall(q[1], 0.7, step)
    scalp, _ = _wall(whole, 0.8, step)
    mirror = np.where(whole < 0, 0, around.mirror) + 0.12 * scalp * _facing(whole, step)
    mirror += 0.2 * midline * ((skull < -1) & (q[2] > -0.3 * r[2]))
    vault = 1 / (1 + np.exp(-8 * (q[2] / r[2] + 0.35 - 0.4 * q[0] / r[0])))
    density = np.clip(1 + 0.6 * smooth_field(rng, shape, 6), 0.1, 2) * vault
    shell, mass = _wall(skull + 1, 0.8, step)
    mirror += 1.2 * shell * density * _facing(skull, step) ** 2
    loss += shell * density * np.float32(15 / mass)
    jaws = ellipsoid(q, (0.6, 0, -0.85) * r, (0.22, 0.38, 0.2) * r)
    maxilla, mass = _wall(jaws, 1.2, step)
    mirror += 0.4 * maxilla * _facing(jaws, step)
    loss += maxilla * np.float32(6 / mass)
    for bone in around.bones:
        outside = (bone < 0) & (whole > 0)
        mirror += 0.8 * outside
        loss += 4.0 * outside
    return mirror, loss
