"""The standard plane of a fetal head in 2D ultrasound, and two scanners that show it differently.

Lengths and positions are in mm, counted from the image's first corner. Positions are (0, y, x): a plane of the space
that `pieces` works in.
"""

from typing import NamedTuple

import numpy as np
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
# Bright and flat, the near field turned down: the skull stands out less; coarse speckle, a noisy depth, text burnt in.
# How far from SOURCE is a matter of gamma above all: the lower, the further.
TARGET = Scanner(
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


class _Head(NamedTuple):
    """Pose and size: axes are rows (out of the plane, side, front), radii those of the outer skull along them."""

    centre: np.ndarray
    axes: np.ndarray
    radii: np.ndarray


class _Probe(NamedTuple):
    """A convex probe: beams leave an arc around the apex (y, x) at `radius` mm and reach `depth` mm further."""

    apex: np.ndarray
    radius: float
    depth: float
    angle: float  # half of the sector, in radians


def fetal_head_2d(size=(320, 320), seed=0, scanner=SOURCE):
    """The plane in which the head's circumference is measured: skull, midline and what lies around, under a probe.

    Sutures, shadows and walls along the beam interrupt the skull; the truth is the ellipse along its outer edge, also
    where nothing can be seen.

    Args:
      size: pixels along (y, x); the field of view is always `VIEW`.
      seed: whatever `np.random.default_rng` takes. It alone fixes the anatomy, at every size and for every scanner, and
        beyond that the scanner's settings for this patient, speckle and noise at this size.
      scanner: `Scanner`, such as `SOURCE` and `TARGET`.

    Returns:
      image (height, width) uint8, label (height, width) uint8 with 1 for the head, spacing (y, x) in mm.
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


def _pose(rng):
    """A head of the third trimester near the middle of the image, facing either way, clear of the image's edges."""
    length = rng.uniform(82, 104)
    radii = length / 2 * np.array((1, rng.uniform(0.74, 0.86), 1))
    turn = np.radians(np.clip(rng.normal(0, 14), -40, 40))
    side, front = (0, np.cos(turn), -np.sin(turn)), (0, np.sin(turn), np.cos(turn))
    axes = np.array(((1, 0, 0), side, np.multiply(front, rng.choice((-1, 1)))))
    return _Head(np.array((0, *(VIEW / 2 + rng.uniform(-5, 5, 2)))), axes, radii)


def _probe(rng):
    """A probe above the head, its surface in the image or just outside; the sector may cut the head's flanks."""
    surface, bottom = rng.uniform(-12, 14), rng.uniform(118, 150)
    radius = rng.uniform(35, 60)
    apex = np.array((surface - radius, VIEW[1] / 2 + rng.uniform(-12, 12)))
    return _Probe(apex, radius, bottom - surface, np.radians(rng.uniform(30, 42)))


def _plane(y, x):
    """Positions (3, ...) float32 for coordinates that broadcast."""
    return np.stack(np.broadcast_arrays(0, y, x)).astype(np.float32)


def _to_beam(points, probe, shape):
    """Fractional index (range, angle) into an array of beams for positions (3, ...)."""
    y, x = points[1] - probe.apex[0], points[2] - probe.apex[1]
    unit = np.stack(
        ((np.hypot(y, x) - probe.radius) / probe.depth, (np.arctan2(x, y) / probe.angle + 1) / 2)
    )
    return unit * np.subtract(shape, 1).reshape(2, *[1] * y.ndim)


def _along_beams(probe, shape):
    """Positions (3, range, angle) of the samples of every beam: the inverse of `_to_beam`."""
    r = probe.radius + np.linspace(0, probe.depth, shape[0])[:, None]
    angle = np.linspace(-probe.angle, probe.angle, shape[1])
    return _plane(probe.apex[0] + r * np.cos(angle), probe.apex[1] + r * np.sin(angle))


def _echo(rng, head, probe, shape):
    """Amplitudes (range, angle) float32 that come back along the beams, 1 for bone; every scanner hears the same."""
    step = probe.depth / (shape[0] - 1)
    depth = np.linspace(0, probe.depth, shape[0])[:, None]
    angle = np.linspace(-1, 1, shape[1])
    points = _along_beams(probe, shape)
    q = into_frame(points, head.centre, head.axes)
    coarse, texture, fine = (smooth_field(rng, shape, waves) for waves in (5, 12, 40))
    bent = q + 2.5 * np.stack(
        (np.zeros(shape), smooth_field(rng, shape, 6), smooth_field(rng, shape, 6))
    )
    sides = np.stack((bent[0], np.abs(bent[1]), bent[2]))  # left and right in one go
    mirror, loss = np.zeros(shape), np.zeros(shape)  # amplitude; dB/mm

    def part(centre, radii, q=sides):
        """Distance to an ellipse given in shares (side, front) of the head's radii."""
        return ellipsoid(q, (0, *centre) * head.radii, (1, *radii) * head.radii)

    def facing(distance):
        """Cosine between beam and surface, squared: a mirror-like wall answers where the beam meets it squarely."""
        return np.minimum(np.gradient(distance, step, axis=0) ** 2, 1)

    def line(distance, width):
        """Soft line around a boundary, of a width in mm that the sampling can hold."""
        return np.exp(-0.5 * (distance / np.maximum(width, 0.6 * step)) ** 2)

    # Mother: layers under the probe, womb with fluid, now wide, now narrow
    db = rng.uniform(-32, -22) + 4 * texture + 2 * fine
    db += 5 * np.exp(-depth / 20) * np.sin(2 * np.pi * (depth + 2 * coarse) / rng.uniform(4, 8))
    womb = part(rng.uniform(-0.15, 0.15, 2), rng.uniform(0.98, 1.35, 2), q) + 3 * coarse
    db[womb < 0] = rng.uniform(-56, -46)
    mirror += 0.15 * line(womb, 0.8) * facing(womb)
    for _ in range(2):  # limbs: bright, a shadow behind
        away = rng.normal(size=2)
        limb = part(1.35 * away / np.linalg.norm(away), rng.uniform((0.06, 0.06), (0.14, 0.5)), q)
        mirror += 0.6 * line(limb, 1) * facing(limb)
        loss += 1.5 * (limb < 0)

    # Head: what it overlaps makes way for it
    skull = part((0, 0), (1, 1), q)
    scalp = rng.uniform(1, 4)
    inside = skull < 0
    mirror[skull < scalp] = loss[skull < scalp] = 0
    db[skull < scalp] = rng.uniform(-36, -28)
    brain = rng.uniform(-46, -36)
    near = (
        into_frame(points, head.centre, np.eye(3))[1] / head.radii[1]
    )  # -1 at the wall under the probe
    haze = rng.uniform(2, 9) / (
        1 + np.exp(6 * near)
    )  # echoes back and forth between that wall and the probe
    db = np.where(inside, brain + 2.5 * texture + 2 * fine + haze, db)
    db[part((0.15, -0.05), (0.13, 0.2)) < 0] -= 5  # thalami
    for reach, strength in ((0.62, 0.12), (0.8, 0.05)):  # insula, gyri
        gyrus = part((0, 0.05), (reach, reach))
        mirror += strength * line(gyrus, 0.6) * facing(gyrus) * np.clip(texture, 0, 2)
    ventricle = part((0.4, -0.4), (0.13, 0.3))
    db[ventricle < 0] = brain - 8
    mirror += 0.1 * line(ventricle, 0.5) * facing(ventricle)
    db[part((0.4, -0.42), (0.09, 0.17)) < 0] = brain + rng.uniform(6, 14)  # choroid plexus
    falx = (
        line(bent[1], 0.5)
        * np.clip(0.7 + 0.6 * texture, 0, 1.5)
        * (np.abs(q[2]) < 0.85 * head.radii[2])
    )
    cavum = part((0, 0.45), (0.07, 0.14))
    falx[cavum < 0] = 0
    db[cavum < 0] = brain - 8
    mirror += (
        rng.uniform(0.1, 0.3) * inside * (falx + line(cavum, 0.5)) * (0.2 + 0.8 * facing(bent[1]))
    )

    # Skull: bright where hit squarely, dark behind, thick and thin, open at sutures
    thick = rng.uniform(1.8, 3.4) * np.clip(1 + 0.35 * texture, 0.4, 1.8)
    around = np.arctan2(q[1], q[2])
    bone = inside * line(skull + thick / 2, thick / 2.5)
    for at, width in zip(rng.uniform(-np.pi, np.pi, 4), rng.uniform(0.04, 0.16, 4)):
        bone *= 1 - np.exp(-0.5 * ((np.angle(np.exp(1j * (around - at)))) / width) ** 2)
    mirror += (
        rng.uniform(0.5, 1.2)
        * bone
        * (0.12 + 0.88 * facing(skull))
        * np.clip(1 + 0.4 * coarse, 0.2, 2)
    )
    loss += bone * rng.uniform(1, 3)

    # Sound weakens on its way, more in some beams: poor contact, gas
    passed = np.cumsum(loss, 0) * step + depth * rng.uniform(0.04, 0.12)
    passed += rng.uniform(0, 16) * np.exp(
        -0.5 * ((angle - rng.uniform(-1, 1)) / rng.uniform(0.05, 0.15)) ** 2
    )
    return ((10 ** (db / 20) + mirror) * 10 ** (-passed / 20)).astype(np.float32)
