"""The standard plane of a fetal head in 2D ultrasound, and scanners that show it differently.

Lengths and positions are in mm, counted from the image's first corner. Positions are (0, y, x): a
plane of the space that `pieces` works in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import ndimage

from tf_autoctx.data.phantoms.pieces import ellipsoid, into_frame, smooth_field
from tf_autoctx.data.phantoms.scanner import Scanner

VIEW = np.array((130.0, 130.0))  # (y, x) mm: a crop that a head of 82-104 mm nearly fills

# Dark, crisp and rich in contrast, as most of the images in HC18
SOURCE = Scanner(
    gain=0.0,
    time_gain=(-4.0, 0.0, 4.0, 8.0),
    dynamic_range=52.0,
    gamma=1.2,
    blur=0.6,
    speckle=0.6,
    grain=(0.8, 1.2),
    noise=-62.0,
)
# Bright and flat, the near field turned down: the skull stands out less; coarse speckle, a noisy
# depth, text burnt in. How far from SOURCE is a matter of gamma above all: the lower, the further.
FAR = Scanner(
    gain=6.0,
    time_gain=(-14.0, -4.0, 6.0, 12.0),
    dynamic_range=65.0,
    gamma=0.6,
    blur=1.5,
    speckle=0.9,
    grain=(1.5, 3.0),
    noise=-58.0,
    overlay=True,
)

# At 0.4 of the way from SOURCE to FAR: two scanners of one clinic. On it, a segmentor that was
# trained on SOURCE loses as much as the paper's on its other scanner (Yang et al. 2018, table 1: 9
# points).
NEAR = Scanner(
    gain=2.4,
    time_gain=(-8.0, -1.6, 4.8, 9.6),
    dynamic_range=57.2,
    gamma=0.96,
    blur=0.96,
    speckle=0.72,
    grain=(1.08, 1.92),
    noise=-60.4,
    overlay=True,
)


class _Head(NamedTuple):
    """Pose and size: axes are rows (out of the plane, side, front), radii the outer skull's."""

    centre: np.ndarray
    axes: np.ndarray
    radii: np.ndarray


class _Probe(NamedTuple):
    """A convex probe: beams leave an arc around the apex (y, x) at `radius` mm, `depth` mm long."""

    apex: np.ndarray
    radius: float
    depth: float
    angle: float  # half of the sector, in radians


def fetal_head_2d(
    size: Sequence[int] = (320, 320), seed: Any = 0, scanner: Scanner = SOURCE
) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    """The plane in which the head's circumference is measured, under a probe.

    Skull, midline and what lies around. Sutures, shadows and walls along the beam interrupt the
    skull; the truth is the ellipse along its outer edge, also where nothing can be seen.

    Args:
      size: pixels along (y, x); the field of view is always `VIEW`.
      seed: whatever `np.random.default_rng` takes. It alone fixes the anatomy, at every size and
        for every scanner, and beyond that the scanner's settings for this patient, speckle and
        noise at this size.
      scanner: `Scanner`, such as `SOURCE`, `NEAR` and `FAR`.

    Returns:
      image (height, width) uint8, label (height, width) uint8 with 1 for the head, spacing (y, x)
      in mm.
    """
    rng = np.random.default_rng(seed)
    spacing = VIEW / size
    head, probe = _pose(rng), _probe(rng)
    y, x = ((np.arange(n) + 0.5) * edge for n, edge in zip(size, spacing))
    points = _plane(y[:, None], x)
    label = ellipsoid(points, head.centre, head.radii, head.axes) < 0
    beams = _echo(rng, head, probe, size)
    echo = ndimage.map_coordinates(beams, _to_beam(points, probe, beams.shape), order=1, cval=0.0)
    # The scanner draws last, so that it has no say in the anatomy
    return scanner.varied(rng).show(echo, rng), label.astype(np.uint8), tuple(spacing.tolist())


def _pose(rng: np.random.Generator) -> _Head:
    """A head of the third trimester near the middle, facing either way, clear of the edges."""
    length = rng.uniform(82, 104)
    radii = length / 2 * np.array((1, rng.uniform(0.74, 0.86), 1))
    turn = np.radians(np.clip(rng.normal(0, 14), -40, 40))
    side, front = (0, np.cos(turn), -np.sin(turn)), (0, np.sin(turn), np.cos(turn))
    axes = np.array(((1, 0, 0), side, np.multiply(front, rng.choice((-1, 1)))))
    return _Head(np.array((0, *(VIEW / 2 + rng.uniform(-5, 5, 2)))), axes, radii)


def _probe(rng: np.random.Generator) -> _Probe:
    """A probe above the head, its surface in the image or just outside.

    The sector may cut the head's flanks.
    """
    surface, bottom = rng.uniform(-12, 14), rng.uniform(118, 150)
    radius = rng.uniform(35, 60)
    apex = np.array((surface - radius, VIEW[1] / 2 + rng.uniform(-12, 12)))
    return _Probe(apex, radius, bottom - surface, np.radians(rng.uniform(30, 42)))


def _plane(y: ArrayLike, x: ArrayLike) -> np.ndarray:
    """Positions (3, ...) float32 for coordinates that broadcast."""
    return np.stack(np.broadcast_arrays(0, y, x)).astype(np.float32)


def _to_beam(points: np.ndarray, probe: _Probe, shape: Sequence[int]) -> np.ndarray:
    """Fractional index (range, angle) into an array of beams for positions (3, ...)."""
    y, x = points[1] - probe.apex[0], points[2] - probe.apex[1]
    unit = np.stack(
        ((np.hypot(y, x) - probe.radius) / probe.depth, (np.arctan2(x, y) / probe.angle + 1) / 2)
    )
    return unit * np.subtract(shape, 1).reshape(2, *[1] * y.ndim)


def _along_beams(probe: _Probe, shape: Sequence[int]) -> np.ndarray:
    """Positions (3, range, angle) of the samples of every beam: the inverse of `_to_beam`."""
    r = probe.radius + np.linspace(0, probe.depth, shape[0])[:, None]
    angle = np.linspace(-probe.angle, probe.angle, shape[1])
    return _plane(probe.apex[0] + r * np.cos(angle), probe.apex[1] + r * np.sin(angle))


class _Beams:
    """The samples of all beams, (range, angle), and what sound meets there.

    Attributes:
      step: mm from a sample to the next along a beam.
      depth: (range, 1) mm from the probe.
      points: positions, (3, range, angle).
      q: positions in the head's frame; bent: the same, a little wavy; sides: left and right in one.
      coarse, texture, fine: random fields.
      db: scatterers; mirror: amplitude of mirror-like echoes; loss: attenuation in dB/mm.
    """

    def __init__(
        self, rng: np.random.Generator, head: _Head, probe: _Probe, shape: Sequence[int]
    ) -> None:
        self.head = head
        self.step = probe.depth / (shape[0] - 1)
        self.depth = np.linspace(0, probe.depth, shape[0])[:, None]
        self.points = _along_beams(probe, shape)
        self.q = into_frame(self.points, head.centre, head.axes)
        self.coarse, self.texture, self.fine = (
            smooth_field(rng, shape, waves) for waves in (5, 12, 40)
        )
        waves = np.zeros(shape), smooth_field(rng, shape, 6), smooth_field(rng, shape, 6)
        self.bent = self.q + 2.5 * np.stack(waves)
        self.sides = np.stack((self.bent[0], np.abs(self.bent[1]), self.bent[2]))
        self.db, self.mirror, self.loss = np.zeros(shape), np.zeros(shape), np.zeros(shape)

    def part(self, centre: ArrayLike, radii: ArrayLike, q: np.ndarray | None = None) -> np.ndarray:
        """Distance to an ellipse given in shares (side, front) of the head's radii.

        Positions q are `sides` where nothing else is said.
        """
        middle, edges = (0, *np.asarray(centre)), (1, *np.asarray(radii))
        at = self.sides if q is None else q
        return ellipsoid(at, middle * self.head.radii, edges * self.head.radii)

    def facing(self, distance: np.ndarray) -> np.ndarray:
        """Cosine between beam and surface, squared: a mirror-like wall echoes if hit squarely."""
        return np.minimum(np.gradient(distance, self.step, axis=0) ** 2, 1)

    def line(self, distance: np.ndarray, width: ArrayLike) -> np.ndarray:
        """Soft line around a boundary, of a width in mm that the sampling can hold."""
        return np.exp(-0.5 * (distance / np.maximum(width, 0.6 * self.step)) ** 2)


def _echo(rng: np.random.Generator, head: _Head, probe: _Probe, shape: Sequence[int]) -> np.ndarray:
    """Amplitudes (range, angle) float32 that come back along the beams, 1 for bone.

    Every scanner hears the same.
    """
    beams = _Beams(rng, head, probe, shape)
    _mother(rng, beams)
    _brain(rng, beams)
    _skull(rng, beams)
    # Sound weakens on its way, more in some beams: poor contact, gas
    angle = np.linspace(-1, 1, shape[1])
    passed = np.cumsum(beams.loss, 0) * beams.step + beams.depth * rng.uniform(0.04, 0.12)
    passed += rng.uniform(0, 16) * np.exp(
        -0.5 * ((angle - rng.uniform(-1, 1)) / rng.uniform(0.05, 0.15)) ** 2
    )
    echo = (10 ** (beams.db / 20) + beams.mirror) * 10 ** (-passed / 20)
    return echo.astype(np.float32)


def _mother(rng: np.random.Generator, beams: _Beams) -> None:
    """Layers under the probe, womb with fluid, now wide, now narrow, and limbs in it."""
    depth, coarse = beams.depth, beams.coarse
    db = rng.uniform(-32, -22) + 4 * beams.texture + 2 * beams.fine
    db += 5 * np.exp(-depth / 20) * np.sin(2 * np.pi * (depth + 2 * coarse) / rng.uniform(4, 8))
    middle, radii = rng.uniform(-0.15, 0.15, 2), rng.uniform(0.98, 1.35, 2)
    womb = beams.part(middle, radii, beams.q) + 3 * coarse
    db[womb < 0] = rng.uniform(-56, -46)
    beams.db = db
    beams.mirror += 0.15 * beams.line(womb, 0.8) * beams.facing(womb)
    for _ in range(2):  # limbs: bright, a shadow behind
        away = rng.normal(size=2)
        radii = rng.uniform((0.06, 0.06), (0.14, 0.5))
        limb = beams.part(1.35 * away / np.linalg.norm(away), radii, beams.q)
        beams.mirror += 0.6 * beams.line(limb, 1) * beams.facing(limb)
        beams.loss += 1.5 * (limb < 0)


def _brain(rng: np.random.Generator, beams: _Beams) -> None:
    """The head but for its bone; what it overlaps makes way for it."""
    head, texture, part, line = beams.head, beams.texture, beams.part, beams.line
    skull = part((0, 0), (1, 1), beams.q)
    scalp = rng.uniform(1, 4)
    inside = skull < 0
    beams.mirror[skull < scalp] = beams.loss[skull < scalp] = 0
    beams.db[skull < scalp] = rng.uniform(-36, -28)
    brain = rng.uniform(-46, -36)
    # -1 at the wall under the probe; echoes go back and forth between that wall and the probe
    near = into_frame(beams.points, head.centre, np.eye(3))[1] / head.radii[1]
    haze = rng.uniform(2, 9) / (1 + np.exp(6 * near))
    db = np.where(inside, brain + 2.5 * texture + 2 * beams.fine + haze, beams.db)
    db[part((0.15, -0.05), (0.13, 0.2)) < 0] -= 5  # thalami
    for reach, strength in ((0.62, 0.12), (0.8, 0.05)):  # insula, gyri
        gyrus = part((0, 0.05), (reach, reach))
        folds = np.clip(texture, 0, 2)
        beams.mirror += strength * line(gyrus, 0.6) * beams.facing(gyrus) * folds
    ventricle = part((0.4, -0.4), (0.13, 0.3))
    db[ventricle < 0] = brain - 8
    beams.mirror += 0.1 * line(ventricle, 0.5) * beams.facing(ventricle)
    db[part((0.4, -0.42), (0.09, 0.17)) < 0] = brain + rng.uniform(6, 14)  # choroid plexus
    patches = np.clip(0.7 + 0.6 * texture, 0, 1.5)
    falx = line(beams.bent[1], 0.5) * patches * (np.abs(beams.q[2]) < 0.85 * head.radii[2])
    cavum = part((0, 0.45), (0.07, 0.14))
    falx[cavum < 0] = 0
    db[cavum < 0] = brain - 8
    seen = 0.2 + 0.8 * beams.facing(beams.bent[1])
    beams.mirror += rng.uniform(0.1, 0.3) * inside * (falx + line(cavum, 0.5)) * seen
    beams.db = db


def _skull(rng: np.random.Generator, beams: _Beams) -> None:
    """Bright where hit squarely, dark behind, thick and thin, open at sutures."""
    skull = beams.part((0, 0), (1, 1), beams.q)
    thick = rng.uniform(1.8, 3.4) * np.clip(1 + 0.35 * beams.texture, 0.4, 1.8)
    around = np.arctan2(beams.q[1], beams.q[2])
    bone = (skull < 0) * beams.line(skull + thick / 2, thick / 2.5)
    for at, width in zip(rng.uniform(-np.pi, np.pi, 4), rng.uniform(0.04, 0.16, 4)):
        bone *= 1 - np.exp(-0.5 * ((np.angle(np.exp(1j * (around - at)))) / width) ** 2)
    squarely = 0.12 + 0.88 * beams.facing(skull)
    uneven = np.clip(1 + 0.4 * beams.coarse, 0.2, 2)
    beams.mirror += rng.uniform(0.5, 1.2) * bone * squarely * uneven
    beams.loss += bone * rng.uniform(1, 3)
