"""How an ultrasound scanner shows what it hears.

Pixels change, geometry does not: nothing moves, turns or stretches.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from scipy import ndimage

from tf_autoctx.data.phantoms.pieces import speckle

# A scanner's pixels are those of an image this high; other sizes show the same look, finer or
# coarser.
ROWS = 320
SHOWN_RANGE = 60.0  # dB from black to white that `echoes` takes for granted


@dataclasses.dataclass(frozen=True)
class Scanner:
    """The knobs of a console.

    Untouched, it shows an echo of 1 white and an echo of -`dynamic_range` dB black, and no more.

    Attributes:
      gain: dB.
      time_gain: dB at depths evenly spaced from the first row to the last, linear in between.
      dynamic_range: dB from black to white.
      gamma: exponent of the grey values in [0, 1]; under 1 it lifts the dark ones.
      blur: standard deviation in pixels of a Gaussian over the grey values.
      speckle: 0 for none to 1 for fully developed speckle.
      grain: standard deviation in pixels (y, x) of the point spread function that makes the
        speckle.
      noise: dB of the receiver's noise, before any gain.
      overlay: whether text and a depth scale are burnt into the image.
    """

    gain: float = 0.0
    time_gain: tuple[float, ...] = (0.0,)
    dynamic_range: float = SHOWN_RANGE
    gamma: float = 1.0
    blur: float = 0.0
    speckle: float = 0.0
    grain: tuple[float, float] = (1.0, 1.0)
    noise: float = -np.inf
    overlay: bool = False

    def varied(self, rng: np.random.Generator) -> Scanner:
        """This scanner as set for one patient: the usual spread within a corpus."""
        return dataclasses.replace(
            self,
            gain=self.gain + rng.normal(0, 2),
            time_gain=tuple(self.time_gain + rng.normal(0, 1.5, len(self.time_gain))),
            dynamic_range=self.dynamic_range * np.exp(rng.normal(0, 0.04)),
            gamma=self.gamma * np.exp(rng.normal(0, 0.06)),
            blur=self.blur * np.exp(rng.normal(0, 0.1)),
            grain=tuple(np.multiply(self.grain, np.exp(rng.normal(0, 0.08)))),
            noise=self.noise + rng.normal(0, 2),
        )

    def show(self, echo: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Grey values uint8 (height, width) of echoes (height, width).

        Echoes are amplitudes from 0, where 1 is strong. Where the echo is exactly 0 nothing was
        scanned: black, and neither speckle nor noise.
        """
        pixel = echo.shape[0] / ROWS
        flat = np.ones(echo.shape, np.float32)
        grain = np.abs(speckle(rng, flat, np.maximum(np.multiply(self.grain, pixel), 0.5)))
        noise = np.abs(speckle(rng, flat, (0.5, 0.5)))
        sliders = np.linspace(0, echo.shape[0] - 1, len(self.time_gain))
        gain = self.gain + np.interp(np.arange(echo.shape[0]), sliders, self.time_gain)[:, None]

        signal = echo * (1 + self.speckle * (grain - 1)) + noise * 10 ** (self.noise / 20)
        db = 20 * np.log10(np.maximum(signal, 1e-9)) + gain
        grey = np.clip(1 + db / self.dynamic_range, 0, 1)
        scanned = echo > 0
        grey = scanned * ndimage.gaussian_filter(scanned * grey, self.blur * pixel) ** self.gamma
        if self.overlay:
            _burn_in(grey, rng)
        return np.rint(255 * grey).astype(np.uint8)


# Flat and bright, the near field turned down, coarse speckle. Its gamma is its strength: the lower,
# the flatter, and the more is lost by a network that has only seen images with the usual dark
# background.
ANOTHER = Scanner(
    gain=8.0,
    time_gain=(-20.0, -8.0, 3.0, 9.0, 11.0),
    dynamic_range=70.0,
    gamma=0.6,
    blur=1.5,
    speckle=1.0,
    grain=(1.8, 3.5),
    noise=-60.0,
)


def another_scanner(image: np.ndarray, seed: Any, scanner: Scanner = ANOTHER) -> np.ndarray:
    """An image as another scanner would show it: same anatomy, other grey values.

    Args:
      image: uint8 (height, width), depth downwards.
      seed: whatever `np.random.default_rng` takes. It fixes the speckle, the noise and how the
        scanner was set.
      scanner: `Scanner`; the seed varies it a little (`Scanner.varied`).

    Returns:
      uint8 (height, width); black where the image is black over a patch, as outside its sector.

    Raises:
      ValueError: another kind of array.
    """
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 2:
        raise ValueError(
            f"image is {image.dtype} of shape {image.shape}; expected uint8 (height, width)"
        )
    rng = np.random.default_rng(seed)
    return scanner.varied(rng).show(echoes(image), rng)


def echoes(image: np.ndarray) -> np.ndarray:
    """Echoes (height, width) that an untouched `Scanner` shows as this uint8 image.

    The log compression undone.
    """
    unseen = ndimage.binary_opening(image == 0, np.ones((9, 9)))
    grey = np.maximum(image, 0.25) / 255  # a dark pixel of tissue is no hole in it
    return np.where(unseen, 0, 10 ** ((grey - 1) * SHOWN_RANGE / 20)).astype(np.float32)


def _burn_in(grey: np.ndarray, rng: np.random.Generator) -> None:
    """Lines of text in two corners and a depth scale at the left edge, in place.

    Grey values are in [0, 1].
    """
    height, width = grey.shape
    dot = max(1, round(height / 160))
    lines, letters = round(0.14 * height) // (7 * dot), round(0.28 * width) // (4 * dot)
    for corner in (np.s_[2 * dot :, 2 * dot :], np.s_[-7 * lines * dot :, -4 * letters * dot :]):
        dots = rng.random((lines, 7, letters, 4)) < 0.55
        dots[:, 5:] = dots[..., 3] = False  # letters of 5 by 3 dots
        written = np.arange(letters) < rng.integers(letters // 2, letters + 1, (lines, 1))
        dots &= written[:, None, :, None]
        text = np.kron(dots.reshape(7 * lines, 4 * letters), np.ones((dot, dot), bool))
        grey[corner][: len(text), : text.shape[1]][text] = 0.95
    for number, row in enumerate(np.linspace(0.12, 0.88, 21) * height):
        grey[int(row) : int(row) + dot, : (8 if number % 5 == 0 else 4) * dot] = 0.95
