"""An abdomen in portal-venous CT.

Anatomy is written in mm as (up, back, left), which is (z, y, x) of an upright array; the origin is
in front of the first lumbar vertebra. Rows of a course add the radius there. Lengths are those of a
slim adult.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import interpolate, ndimage
from scipy.spatial.transform import Rotation

from tf_autoctx.data.phantoms.pieces import ellipsoid, grid, into_frame, smooth_union

Box = tuple[slice, ...]  # of voxels

# Names of the label values 1 and on
LABELS = ("artery", "portal vein", "liver", "spleen", "stomach", "gallbladder", "pancreas")
ARTERY, PORTAL_VEIN, LIVER, SPLEEN, STOMACH, GALLBLADDER, PANCREAS = range(1, 8)

AORTA = (
    ((170, 27, 16, 10.3), (100, 24, 16, 10.2), (60, 20, 14, 10.1), (20, 17, 11, 10))
    + ((-20, 16, 9, 9.9), (-60, 17, 8, 9.8), (-170, 18, 7, 9.7))
)  # fmt: skip
COELIAC = (  # trunk, and from it to spleen, liver and stomach
    ((8, 14, 10, 4.8), (12, -2, 9, 4.3), (13, -9, 7, 3.8)),
    (
        (13, -9, 7, 3.2),
        (17, -6, 22, 3),
        (16, 5, 42, 2.8),
        (24, 16, 60, 2.6),
        (23, 30, 78, 2.3),
        (30, 37, 90, 2),
    ),
    (
        (13, -9, 7, 3),
        (11, -16, -8, 2.8),
        (16, -20, -22, 2.5),
        (29, -21, -34, 2.2),
        (37, -18, -48, 2),
    ),
    ((13, -9, 7, 2.5), (24, -16, 14, 2.2), (36, -20, 26, 2)),
)
SUPERIOR_MESENTERIC_ARTERY = (
    ((-5, 14, 9, 4.4), (-9, 1, 7, 4.2), (-20, -9, 5, 3.9))
    + ((-45, -17, 3, 3.4), (-75, -21, -2, 2.8), (-110, -23, -14, 2))
)  # fmt: skip
PORTAL_VEIN_TREE = (
    ((-6, -8, -9, 5.7), (8, -7, -18, 6), (22, -9, -30, 6), (33, -11, -40, 5.8)),  # trunk
    ((33, -11, -40, 4.8), (38, -8, -55, 4.4), (40, -6, -66, 4)),  # right
    ((40, -6, -66, 3.4), (50, -20, -78, 2.8), (62, -30, -86, 2)),
    ((44, -12, -71, 2.8), (24, -30, -82, 2.4), (8, -38, -90, 2)),
    ((40, -6, -66, 3.4), (36, 12, -82, 2.8), (28, 28, -95, 2)),
    ((38, 4, -76, 2.8), (18, 10, -90, 2.4), (0, 12, -98, 2)),
    ((33, -11, -40, 4.4), (42, -22, -30, 3.9), (46, -36, -20, 3.4), (44, -50, -14, 2.6)),  # left
    ((46, -40, -18, 2.8), (52, -46, 4, 2.4), (52, -48, 20, 2)),
    ((45, -46, -16, 2.6), (36, -54, -30, 2.3), (28, -58, -38, 2)),
)
SUPERIOR_MESENTERIC_VEIN = (
    (-110, -21, -24, 3.2),
    (-75, -18, -17, 4.2),
    (-45, -15, -12, 5),
    (-6, -8, -9, 5.7),
)
SPLENIC_VEIN = (
    ((30, 38, 88, 2.2), (20, 30, 76, 3.2), (12, 16, 56, 4))
    + ((6, 3, 34, 4.4), (1, -5, 12, 4.6), (-4, -8, -7, 4.9))
)  # fmt: skip
VENA_CAVA = (
    ((-170, 20, -18, 10.2), (-60, 19, -18, 10.4), (-20, 18, -18, 10.6), (20, 14, -20, 11))
    + ((50, 8, -24, 11.5), (70, 4, -26, 12), (100, -2, -20, 12))
)  # fmt: skip
HEPATIC_VEINS = (
    ((64, 6, -32, 4.5), (56, 14, -60, 3.8), (40, 20, -90, 2.6), (25, 22, -102, 2)),
    ((66, 0, -28, 4.2), (56, -18, -42, 3.5), (38, -36, -54, 2.6), (22, -44, -58, 2)),
    ((66, -2, -22, 4), (62, -22, -8, 3.2), (54, -40, 8, 2)),
)
RENAL_VEINS = (
    (
        (-14, 44, 46, 4.5),
        (-15, 20, 28, 4.5),
        (-16, 3, 10, 4.2),
        (-15, 8, -8, 4.8),
        (-14, 15, -16, 5),
    ),
    ((-24, 42, -46, 4.5), (-22, 30, -32, 4.5), (-20, 20, -20, 4.5)),
)
RENAL_ARTERIES = (
    ((-18, 18, 12, 3), (-20, 28, 26, 2.8), (-17, 44, 46, 2.4)),
    ((-18, 20, 6, 3), (-20, 29, -12, 2.8), (-25, 42, -46, 2.4)),
)
STOMACH_AXIS = (
    ((52, 14, 50, 22), (42, 5, 58, 28), (24, -16, 62, 27), (6, -40, 48, 22))
    + ((-6, -50, 24, 18), (-8, -51, 0, 14), (-6, -46, -16, 8))
)  # fmt: skip
PANCREAS_AXIS = (
    ((-34, -8, -28, 10), (-18, -9, -28, 14), (-6, -17, -14, 10), (0, -20, -4, 8), (6, -17, 16, 9.5))
    + ((9, -8, 36, 9.5), (13, 6, 56, 9.5), (18, 21, 74, 8), (22, 28, 82, 6))
)  # fmt: skip
DUODENUM = (
    ((-6, -44, -20, 9), (-2, -32, -36, 11), (-10, -14, -48, 12), (-35, -6, -48, 12))
    + ((-50, -4, -32, 11), (-50, -4, 0, 9), (-44, -4, 28, 10), (-34, -16, 42, 11))
)  # fmt: skip
JEJUNUM = (  # against the pancreas: below its tail, in front of its body
    (
        (-34, -16, 42, 11),
        (-14, -22, 56, 12),
        (-4, -8, 72, 12),
        (-12, 12, 84, 11),
        (-36, 10, 78, 12),
    ),
    ((-30, -44, 70, 12), (-16, -30, 44, 11), (-18, -34, 18, 12), (-36, -40, 6, 11)),
)
COLON = (
    ((-170, 10, -92, 18), (-80, 8, -92, 18), (-50, -18, -82, 17), (-46, -52, -50, 15))
    + ((-52, -60, 0, 14), (-38, -56, 45, 15), (-12, -26, 86, 15), (-2, 2, 98, 14))
    + ((-40, 20, 98, 13), (-170, 25, 96, 13))
)  # fmt: skip
OESOPHAGUS = ((170, 14, 2, 8), (90, 10, 6, 8), (62, -2, 20, 8), (50, 0, 40, 9))
CRUS = ((70, 18, 27, 4), (40, 16, 25, 5), (10, 20, 24, 4), (-30, 26, 22, 3))  # beside the aorta
PSOAS = ((-170, 50, 50, 24), (-60, 50, 42, 19), (-10, 46, 31, 12), (15, 44, 25, 6))
ERECTOR = ((-170, 77, 30, 19), (170, 77, 28, 17))

WALL = 10.0  # of muscle
CAVITY = np.array((78.0, 117.0))  # half (depth, width) inside the abdominal wall
DOMES = (  # diaphragm: right, left, under the heart; width
    (78, 0, -60, 45),
    (66, 0, 60, 45),
    (70, -25, 5, 70),
)
# Name -> HU in the middle and how far a patient may differ; there is no telling the vessels apart
# by these.
ATTENUATION = {
    "artery": (150, 12), "portal vein": (160, 12), "vena cava": (137, 10),
    "hepatic vein": (148, 10), "liver": (105, 9), "spleen": (117, 9), "pancreas": (92, 8),
    "bowel wall": (86, 8), "bowel": (60, 28),
    "stomach": (38, 20), "gallbladder": (10, 6), "cortex": (185, 20), "medulla": (135, 15),
    "muscle": (55, 6), "fat": (-100, 8), "marrow": (330, 30), "bone": (600, 80),
}  # fmt: skip


def abdomen(
    size: Sequence[int] = (112, 128, 176), spacing: float = 1.5, seed: Any = 0
) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    """An upper abdomen with seven organs, and around them what looks like them.

    The vena cava, the hepatic, renal and mesenteric vessels, the duodenum and the bowel have no
    label although their grey values are those of labelled neighbours: position tells them apart.
    Hepatic veins count as liver inside it.

    Args:
      size: voxels along (z, y, x): upwards, to the back, to the patient's left.
      spacing: mm per voxel, along every axis.
      seed: whatever `np.random.default_rng` takes. It fixes the anatomy in mm, centred in the field
        of view at any size and spacing, and the noise at these.

    Returns:
      image (z, y, x) int16 in HU, label (z, y, x) uint8 with 1 + the index in `LABELS`, spacing (z,
      y, x) in mm.
    """
    rng = np.random.default_rng(seed)
    subject = _Subject(rng)
    canvas = _Canvas(rng, size, spacing, subject)
    _trunk(canvas, subject)
    _bowel(canvas, subject, rng)
    _organs(_Painter(canvas, subject, rng))
    _skeleton(canvas, subject)
    _vessels(canvas, subject, rng)

    blur = np.sqrt(1.0 + spacing**2 / 12) / spacing  # a scanner's 1 mm and a voxel's own width
    image = ndimage.gaussian_filter(canvas.hu, blur, mode="nearest", truncate=3)
    noise = rng.standard_normal(canvas.hu.shape, np.float32)
    noise = ndimage.gaussian_filter(noise, 0.5, truncate=3)
    image += noise * np.float32(rng.uniform(15, 20) / noise.std())
    image = np.rint(np.clip(image, -1024, 3071)).astype(np.int16)
    return image, canvas.label, (float(spacing),) * 3


class _Subject:
    """What differs between patients: pose, proportions, where landmarks are, HU."""

    def __init__(self, rng: np.random.Generator) -> None:
        turn = np.radians(rng.uniform(-8, 8, 3) / (1, 2, 1))
        self.axes = Rotation.from_rotvec(turn).as_matrix()
        self.centre = rng.uniform(-6, 6, 3)
        self.scale = rng.uniform(0.95, 1.06, 3)
        self.cavity = CAVITY * self.scale[1:]
        self.fat = rng.uniform(5, 14)  # under the skin
        waves = rng.normal(size=(4, 3))
        lengths = rng.uniform(180, 340, (4, 1))
        self.waves = waves / np.linalg.norm(waves, axis=1, keepdims=True) * 2 * np.pi / lengths
        self.phases = rng.uniform(0, 2 * np.pi, 4)
        self.shifts = rng.normal(size=(4, 3)) * (4, 4, 4.5)
        timing = rng.uniform(-0.5, 0.5)  # of the contrast agent: brighter or darker all at once
        self.hu = {
            name: middle
            + spread * (rng.uniform(-1, 1) if middle < 80 else timing + rng.uniform(-0.5, 0.5))
            for name, (middle, spread) in ATTENUATION.items()
        }
        self.domes = [(self.place(dome[:3]) + rng.uniform(-3, 3, 3), dome[3]) for dome in DOMES]

    def place(self, landmarks: ArrayLike) -> np.ndarray:
        """Landmarks (..., 3) of the atlas at this patient's positions: neighbours move together."""
        atlas = np.asarray(landmarks, float)
        return atlas * self.scale + np.cos(atlas @ self.waves.T + self.phases) @ self.shifts

    def course(
        self, rows: ArrayLike, wobble: np.ndarray | None = None, width: float = 1.0
    ) -> np.ndarray:
        """A tube's rows (n, 4) at this patient's positions; `wobble` (n, 3) moves them further."""
        placed = np.array(rows, float)
        placed[:, :3] = self.place(placed[:, :3]) + (0 if wobble is None else wobble)
        placed[:, 3] *= width
        return placed


class _Canvas:
    """The voxels, in the scanner's and in the patient's frame, and what is painted on them.

    The later is on top.
    """

    def __init__(
        self, rng: np.random.Generator, size: Sequence[int], spacing: float, subject: _Subject
    ) -> None:
        self.spacing, self.subject = spacing, subject
        self.ticks = [((np.arange(n) + 0.5 - n / 2) * spacing).astype(np.float32) for n in size]
        self.points = into_frame(grid(*self.ticks), subject.centre, subject.axes)
        self.hu = np.full(tuple(size), -1000, np.float32)
        self.label = np.zeros(tuple(size), np.uint8)
        self.cavity = _outline(self.points, subject.cavity)  # distance in mm, negative inside
        z, y, x = self.points
        tops = [
            top[0] - (y - top[1]) ** 2 / 80 - (x - top[2]) ** 2 / width
            for top, width in subject.domes
        ]
        self.above = (z - np.max(tops, 0)).astype(np.float32)  # mm above the diaphragm
        self.fine = _texture(rng, self.ticks, 6)
        self.coarse = _texture(rng, self.ticks, 20)

    def bounds(self, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """Indices (2, ..., 3) of the first voxels and after the last between two corners.

        Corners (..., 3) are in the scanner's frame.
        """
        middle = np.array(self.label.shape) / 2
        start = np.ceil(np.divide(low, self.spacing) + middle - 0.5)
        stop = np.floor(np.divide(high, self.spacing) + middle + 0.5)
        return np.clip((start, stop), 0, self.label.shape).astype(int)

    def box(self, centre: ArrayLike, radii: ArrayLike, rotation: np.ndarray | None = None) -> Box:
        """Box of voxels around an ellipsoid, or around a block along the patient's axes."""
        axes = self.subject.axes if rotation is None else rotation @ self.subject.axes
        middle = np.asarray(centre) @ self.subject.axes + self.subject.centre
        reach = np.abs(axes.T) @ np.asarray(radii)
        return _slices(*self.bounds(middle - reach, middle + reach))

    def blob(
        self,
        centre: ArrayLike,
        radii: ArrayLike,
        rotation: np.ndarray | None = None,
        ripple: float = 0.0,
        margin: float = 6.0,
    ) -> tuple[Box, np.ndarray]:
        """Box of voxels and distance in mm there to an ellipsoid with an uneven surface."""
        box = self.box(centre, np.asarray(radii) + margin, rotation)
        smooth = ellipsoid(self.points[:, *box], centre, radii, rotation)
        return box, smooth + ripple * self.coarse[box]

    def tube(
        self, course: np.ndarray, ripple: float = 0.0, margin: float = 1.5
    ) -> tuple[Box, np.ndarray]:
        """Box of voxels and distance in mm there to a tube along a course (n, 4).

        The distance is at most `margin`.
        """
        lengths = np.linalg.norm(np.diff(course[:, :3], axis=0), axis=1)
        along = np.concatenate(((0,), np.cumsum(lengths)))
        # Balls this close leave no beads.
        t = np.linspace(0, along[-1], 2 + int(3 * along[-1] / course[:, 3].min()))
        slopes = np.gradient(course, along, axis=0)
        course = interpolate.CubicHermiteSpline(along, course, slopes)(t)
        middles, radii = course[:, :3] @ self.subject.axes + self.subject.centre, course[:, 3:]
        starts, stops = self.bounds(middles - radii - margin, middles + radii + margin)
        first = starts.min(0)
        box = _slices(first, stops.max(0))
        distance = np.full(self.label[box].shape, margin, np.float32)
        for start, stop, middle, radius in zip(
            starts, stops, middles.astype("f4"), radii.astype("f4")
        ):
            z, y, x = (
                (tick[a:b] - m) ** 2 for tick, a, b, m in zip(self.ticks, start, stop, middle)
            )
            near = distance[_slices(start - first, stop - first)]
            np.minimum(near, np.sqrt(z[:, None, None] + y[:, None] + x) - radius, out=near)
        return box, distance + ripple * self.coarse[box] if ripple else distance

    def paint(
        self,
        box: Box,
        inside: np.ndarray,
        hu: float | np.ndarray,
        label: int | None = 0,
        rough: float = 0.0,
    ) -> None:
        """Fills the voxels of a box that are inside.

        HU vary by a deviation of `rough`, a few mm wide.
        """
        self.hu[box][inside] = hu + rough * self.fine[box][inside] if rough else hu
        if label is not None:
            self.label[box][inside] = label


def _slices(start: np.ndarray, stop: np.ndarray) -> Box:
    return tuple(map(slice, start, stop))


def _texture(rng: np.random.Generator, ticks: Iterable[np.ndarray], pitch: int) -> np.ndarray:
    """Random float32 field of deviation 1, smooth over about `pitch` mm.

    A spline, the same at any spacing.
    """
    knots = 512 // pitch  # then it repeats
    field = rng.standard_normal((knots,) * 3, np.float32)
    for tick in ticks:
        away = np.abs(
            (tick[:, None] / np.float32(pitch) - np.arange(knots) + knots / 2) % knots - knots / 2
        )
        weight = np.where(away < 1, 2 / 3 - away**2 + away**3 / 2, np.maximum(2 - away, 0) ** 3 / 6)
        field = np.tensordot(field, weight.astype(np.float32), (0, 1))
    # Mean square of a cubic spline's weights, three axes
    return field / np.float32((151 / 315) ** 1.5)


def _outline(points: np.ndarray, half: np.ndarray) -> np.ndarray:
    """Distance in mm, about, to a cylinder along z of half (depth, width), its section rounded."""
    _, y, x = points
    norm = (
        (np.abs(y) / np.float32(half[0])) ** 2.4 + (np.abs(x) / np.float32(half[1])) ** 2.4
    ) ** np.float32(1 / 2.4)
    return np.sqrt(y * y + x * x) * (1 - 1 / np.maximum(norm, 1e-6))


def _cap(distance: np.ndarray, limit: np.ndarray) -> np.ndarray:
    """A body cut off where limit > 0, the rim rounded."""
    return -smooth_union(-distance, -limit, 6.0)


def _trunk(canvas: _Canvas, subject: _Subject) -> None:
    """Skin to abdominal fat, muscles, lung bases and the heart."""
    everything = (slice(None),) * 3
    hu, cavity, above = subject.hu, canvas.cavity, canvas.above
    canvas.paint(everything, cavity < WALL + subject.fat + 2 * canvas.coarse, hu["fat"], rough=8)
    canvas.paint(everything, cavity < WALL, hu["muscle"], rough=8)
    canvas.paint(everything, cavity < 0, hu["fat"], rough=10)
    canvas.paint(everything, (above > 0) & (cavity < -1), -850, rough=30)
    diaphragm = (np.abs(above + 3) < 3) & (cavity < 0)
    canvas.paint(everything, diaphragm, hu["muscle"], rough=8)
    heart = subject.place((112, -22, 18))
    box, distance = canvas.blob(heart, (32, 38, 50), ripple=2)
    canvas.paint(box, (distance < 0) & (canvas.above[box] > -2), 105, rough=8)
    box, distance = canvas.blob(heart, (24, 28, 38))
    canvas.paint(box, (distance < 0) & (canvas.above[box] > 4), hu["artery"])

    for mirror in (1, -1):
        for rows in (PSOAS, ERECTOR):
            course = subject.course(np.multiply(rows, (1, 1, mirror, 1)))
            box, distance = canvas.tube(course, ripple=1, margin=4.0)
            distance = np.maximum(distance, canvas.cavity[box] - WALL - 0.6 * subject.fat)
            canvas.paint(box, distance < 0, hu["muscle"], rough=10)
    for crus in (CRUS, np.multiply(CRUS, (1, 1, 0, 1)) + (0, 4, -6, 0)):
        box, distance = canvas.tube(subject.course(crus))
        canvas.paint(box, distance < 0, hu["muscle"])


def _bowel(canvas: _Canvas, subject: _Subject, rng: np.random.Generator) -> None:
    """Tubes without a label: oesophagus, colon with stool and gas, small bowel.

    The small bowel is about as dense as the pancreas.
    """
    hu = subject.hu
    box, distance = canvas.tube(subject.course(OESOPHAGUS))
    canvas.paint(box, distance < 0, hu["muscle"] + 5)

    course = subject.course(COLON, rng.uniform(-7, 7, (len(COLON), 3)))
    box, distance = canvas.tube(course, ripple=2, margin=6.0)
    distance = np.maximum(distance, canvas.cavity[box] + 2)
    canvas.paint(box, distance < 0, hu["bowel wall"], rough=8)
    canvas.paint(box, distance < -2.5, 40 + 25 * canvas.fine[box][distance < -2.5])
    canvas.paint(box, (distance < -3) & (canvas.coarse[box] > 0.3), -850, rough=60)

    loops = [
        (rng.uniform((-115, -62, -62), (-28, 14, 82), (9, 3)), rng.uniform(9, 14, 9))
        for _ in range(6)
    ]
    courses = [subject.course(np.column_stack(loop)) for loop in loops]
    courses += [
        subject.course(rows, rng.uniform(-5, 5, (len(rows), 3))) for rows in (*JEJUNUM, DUODENUM)
    ]
    for course in courses:
        wall, content = hu["bowel wall"] + rng.uniform(-8, 8), hu["bowel"] + rng.uniform(-15, 15)
        box, distance = canvas.tube(course, ripple=1.5, margin=5.0)
        distance = np.maximum(distance, canvas.cavity[box] + 2)
        canvas.paint(box, distance < 1, hu["fat"])
        canvas.paint(box, distance < 0, wall, rough=10)
        canvas.paint(box, distance < -3, content, rough=12)


class _Painter(NamedTuple):
    """Who paints organs: the canvas, the patient, and the chance in shape and place."""

    canvas: _Canvas
    subject: _Subject
    rng: np.random.Generator

    def inside(self, box: Box, distance: np.ndarray) -> np.ndarray:
        """Kept clear of the abdominal wall and below the diaphragm."""
        canvas = self.canvas
        return _cap(distance, np.maximum(canvas.cavity[box] + 2, 0.7 * (canvas.above[box] + 6)))

    def tilted(self, degrees: ArrayLike, spread: float = 8) -> np.ndarray:
        """A rotation by about so many degrees about each axis."""
        angles = np.add(degrees, self.rng.uniform(-spread, spread, 3))
        return Rotation.from_euler("xyz", angles, degrees=True).as_matrix()

    def shape(self, radii: ArrayLike, spread: float = 0.1) -> np.ndarray:
        """About these radii."""
        factors = self.rng.uniform(1 - spread, 1 + spread, 3) * self.rng.uniform(0.95, 1.05)
        return np.multiply(radii, factors)

    def at(self, landmark: ArrayLike, spread: float = 4.0) -> np.ndarray:
        """A place near the landmark."""
        return self.subject.place(landmark) + self.rng.uniform(-spread, spread, 3)


def _organs(painter: _Painter) -> None:
    """What has a label but for the vessels, and the kidneys."""
    _stomach(painter)
    _spleen(painter)
    _liver(painter)
    for landmark, mirror in (((-24, 47, -58), 1), ((-8, 47, 60), -1)):
        _kidney(painter, landmark, mirror)
    _gallbladder(painter)
    _pancreas(painter)


def _stomach(painter: _Painter) -> None:
    """Wall, then what was eaten, gas on top of it: the patient lies on the back."""
    canvas, subject, rng = painter
    hu = subject.hu
    course = subject.course(STOMACH_AXIS, rng.uniform(-5, 5, (len(STOMACH_AXIS), 3)))
    course[:4, 3] *= rng.uniform(0.75, 1.1)
    box, distance = canvas.tube(course, ripple=1.5, margin=6.0)
    distance = painter.inside(box, distance)
    canvas.paint(box, distance < 1, hu["fat"])
    canvas.paint(box, distance < 0, hu["bowel wall"], STOMACH, rough=8)
    canvas.paint(box, distance < -3.5, hu["stomach"], STOMACH, rough=12)
    level = course[:, 1].min() - course[3, 3] * rng.uniform(0.1, 0.8) + 6
    canvas.paint(box, (distance < -3.5) & (canvas.points[1][box] < level), -950, STOMACH)


def _spleen(painter: _Painter) -> None:
    canvas, subject, _ = painter
    centre, radii = painter.at((30, 30, 87)), painter.shape((50, 38, 24), 0.15)
    box, distance = canvas.blob(centre, radii, painter.tilted((12, 0, 0)), ripple=1.5)
    distance = painter.inside(box, distance)
    canvas.paint(box, distance < 1, subject.hu["fat"])
    canvas.paint(box, distance < 0, subject.hu["spleen"], SPLEEN, rough=4)


def _liver(painter: _Painter) -> None:
    """Right lobe with its slanted lower face, left lobe, caudate lobe."""
    canvas, subject, rng = painter
    centre, radii = painter.at((26, 3, -68)), painter.shape((74, 68, 51), 0.07)
    box = canvas.box(centre + (0, 0, 40), radii + (20, 20, 60))
    points = canvas.points[:, *box]
    slant = np.array((-0.62, rng.uniform(-0.1, 0.2), 0.78), np.float32)
    lobe = ellipsoid(points, centre, radii)
    right = _cap(lobe, np.tensordot(slant, points, 1) - slant @ painter.at((-15, 0, -52)))
    centre, radii = painter.at((44, -46, -12), 3), painter.shape((34, 26, 56), 0.18)
    left = ellipsoid(points, centre, radii, painter.tilted((-8, 0, 0)))
    caudate = ellipsoid(points, painter.at((40, 6, -14), 3), painter.shape((20, 13, 14)))
    lobes = smooth_union(smooth_union(right, left, 10.0), caudate, 6.0)
    distance = painter.inside(box, lobes + 1.5 * canvas.coarse[box])
    canvas.paint(box, distance < 0, subject.hu["liver"], LIVER, rough=5)


def _kidney(painter: _Painter, landmark: ArrayLike, mirror: int) -> None:
    """In its fat: cortex, medulla, and the sinus on the side that `mirror` tells."""
    canvas, hu = painter.canvas, painter.subject.hu
    centre, radii = painter.at(landmark), painter.shape((50, 23, 25))
    rotation = painter.tilted((0, 0, 0))
    box, distance = canvas.blob(centre, radii, rotation, ripple=0.8)
    distance = np.maximum(distance, canvas.cavity[box] + 3)
    canvas.paint(box, distance < 3, hu["fat"], rough=10)
    canvas.paint(box, distance < 0, hu["cortex"], rough=6)
    canvas.paint(box, (distance < -6) & (canvas.coarse[box] > -0.3), hu["medulla"], rough=6)
    sinus = centre + (0, -4, 9 * mirror)
    box, distance = canvas.blob(sinus, radii * (0.5, 0.45, 0.6), rotation)
    canvas.paint(box, distance < 0, hu["fat"], rough=15)
    box, distance = canvas.blob(sinus, radii * (0.3, 0.2, 0.3), rotation)
    canvas.paint(box, distance < 0, 15)


def _gallbladder(painter: _Painter) -> None:
    """In the liver's lower face."""
    canvas, subject, _ = painter
    centre, radii = painter.at((-10, -42, -54), 3), painter.shape((26, 13, 13), 0.15)
    box, distance = canvas.blob(centre, radii, painter.tilted((-25, 20, 0), 12))
    canvas.paint(box, distance < 1.5, 60)
    canvas.paint(box, distance < 0, subject.hu["gallbladder"], GALLBLADDER, rough=3)


def _pancreas(painter: _Painter) -> None:
    """Lobules with fat between them."""
    canvas, subject, rng = painter
    wobble = rng.uniform(-2, 2, (len(PANCREAS_AXIS), 3))
    course = subject.course(PANCREAS_AXIS, wobble, rng.uniform(0.92, 1.18))
    box, distance = canvas.tube(course, ripple=1.2, margin=4.0)
    canvas.paint(box, distance < 1, subject.hu["fat"])
    canvas.paint(box, distance < 0, subject.hu["pancreas"], PANCREAS, rough=13)


def _skeleton(canvas: _Canvas, subject: _Subject) -> None:
    """Vertebrae with discs between them, arches behind the canal, and slanted ribs in the wall."""
    hu = subject.hu
    up = np.arange(-240, 241, 20)
    line = subject.place(np.stack((up, np.full_like(up, 45), np.zeros_like(up)), 1))
    box = canvas.box((0, 62, 0), (300, 50, 60))
    z, y, x = canvas.points[:, *box]
    y, x = y - np.interp(z, line[:, 0], line[:, 1]), x - np.interp(z, line[:, 0], line[:, 2])
    body = (np.sqrt((y / 17) ** 2 + (x / 21) ** 2) - 1) * 18
    phase = z % 34
    disc = phase < 8
    canvas.paint(box, (body < 0) & disc, 85)
    canvas.paint(box, (body < 0) & ~disc, hu["bone"])
    canvas.paint(box, (body < -2) & (phase > 10) & (phase < 32), hu["marrow"], rough=40)
    arch = np.abs(np.hypot(y - 25, x) - 11.5) < 2.5
    process = (np.abs(x) < 3.5) & (y > 35) & (y < 50) & (phase > 10) & (phase < 28)
    wing = (
        (np.abs(y - 27 - np.abs(x) / 8) < 4)
        & (np.abs(x) < 38)
        & (np.abs(x) > 12)
        & (np.abs(phase - 20) < 6)
    )
    canvas.paint(box, (arch & ~disc) | process | wing, hu["bone"] * 0.85)
    canvas.paint(box, np.hypot(y - 25, x) < 9, 25)

    z, y, x = canvas.points
    rib = ((np.abs((z - 0.4 * y) % 30 - 15) / 5.5) ** 2 + ((canvas.cavity - 5) / 3.5) ** 2) - 1
    rib[(z < 12 - 0.6 * y) | (np.abs(x) < 25)] = 1
    everything = (slice(None),) * 3
    canvas.paint(everything, rib < 0, hu["bone"] * 0.85)
    canvas.paint(everything, rib < -0.6, hu["marrow"])


def _vessels(canvas: _Canvas, subject: _Subject, rng: np.random.Generator) -> None:
    """Unlabelled ones first, so that a branch begins at the surface of its labelled trunk."""
    hu = subject.hu

    def draw(
        courses: Iterable[ArrayLike],
        name: str,
        label: int | None = 0,
        wobble: float = 1.5,
        width: float = 1.0,
        great: bool = False,
    ) -> None:
        for rows in courses:
            shift = rng.uniform(-wobble, wobble, (np.shape(rows)[0], 3))
            shift[[0, -1]] = 0  # where others join
            box, distance = canvas.tube(subject.course(rows, shift, width))
            # Only the great ones go on into the chest.
            within = (canvas.above[box] < -6) & (canvas.cavity[box] < -2) | great
            canvas.paint(box, (distance < 0) & within, hu[name], label, rough=2)

    branches = []  # to and from the bowel
    for _ in range(10):
        start = rng.uniform((-115, -24, -24), (-52, -14, 4))
        way = rng.uniform((-25, -20, 14), (5, 16, 34)) * (1, 1, rng.choice((-1, 1)))
        branches.append(np.column_stack((start + np.outer((0, 0.5, 1), way), (2.7, 2.3, 1.7))))
    draw(branches[:5], "artery")
    draw(branches[5:], "portal vein")
    draw(HEPATIC_VEINS, "hepatic vein", None)
    draw(RENAL_ARTERIES, "artery")
    draw(RENAL_VEINS, "vena cava")
    draw((VENA_CAVA,), "vena cava", width=rng.uniform(0.85, 1.05), great=True)
    veins = (*PORTAL_VEIN_TREE, SUPERIOR_MESENTERIC_VEIN, SPLENIC_VEIN)
    draw(veins, "portal vein", PORTAL_VEIN, wobble=2, width=rng.uniform(0.97, 1.05))
    draw((*COELIAC, SUPERIOR_MESENTERIC_ARTERY), "artery", ARTERY, wobble=2.5)
    draw((AORTA,), "artery", ARTERY, width=rng.uniform(0.93, 1.06), great=True)
