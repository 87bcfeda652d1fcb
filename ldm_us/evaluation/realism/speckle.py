"""Speckle of a B-mode image: Nakagami m and SNR of the envelope in homogeneous blocks, and the width of its grains.

A B-mode image shows the logarithm of the envelope, over a dynamic range that its file does not tell; 60 dB is assumed,
and what an image of another range gives is another m and SNR. So do the scanner's filters and a smaller image, which
averages speckle: 1 and 1.91 belong to raw, fully developed speckle. What two sets measured alike show is a difference
of the pictures; it is one of the speckle only where it holds at every range that the display may have had.
Nakagami m: Shankar, IEEE Trans. UFFC 47(3) (2000) 727-736. SNR: Wagner et al., IEEE Trans. Sonics and Ultrasonics
30(3) (1983) 156-163.
"""

import math
from itertools import pairwise

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from ldm_us.data.audit.statistics import autocorrelation, side_of

DYNAMIC_RANGE = 60.0  # dB from grey 0 to grey 255, assumed
BLOCKS_A_SIDE = 8  # a block is an eighth of the image high and wide, and they overlap by half
SMALLEST_SIZE = 64  # pixels of a side: a smaller block than 8x8 holds too few grains
CUT_OFF = (2, 253)  # grey levels at and beyond which the display has cut the speckle off
MOST_CUT_OFF = 0.01  # share of such pixels in a block
DARKEST = 20.0  # mean grey of a block: in the dark below there is noise and no speckle
CHOSEN = 0.5  # share of the blocks, the most homogeneous ones
LONGEST = 8  # part of the image's side up to which the width of a grain is looked for
SMALLEST_CORRELATION = 0.01  # its logarithm is taken

Block = tuple[slice, slice]  # rows, columns


def envelope(grey: np.ndarray, dynamic_range: float = DYNAMIC_RANGE) -> np.ndarray:
    """Undo the log compression: grey levels 0..255 -> amplitudes, 1 at 255 and -dynamic_range dB at 0."""
    return 10 ** ((grey / 255 - 1) * dynamic_range / 20)


def nakagami_m(amplitude: np.ndarray) -> float:
    """The shape m = E[I]^2 / Var[I] of the intensity I, the squared amplitude: 1 for Rayleigh speckle.   Shankar."""
    intensity = amplitude**2
    return float(intensity.mean() ** 2 / intensity.var())


def envelope_snr(amplitude: np.ndarray) -> float:
    """Mean over standard deviation of the amplitude: sqrt(pi / (4 - pi)) = 1.91 for Rayleigh.   Wagner et al. 1983."""
    return float(amplitude.mean() / amplitude.std())


def homogeneous_blocks(grey: np.ndarray, lesion: np.ndarray | None = None) -> list[Block]:
    """Choose the blocks of an image (h, w) where speckle can be measured: none may be left.

    A block touches no lesion and is neither dark, flat nor cut off by the display. Of these the half is taken whose
    four quarters have the most equal means: that sees edges and layers, and hardly the speckle's own spread.
    """
    side = int(side_of(grey)) // BLOCKS_A_SIDE
    step = half = side // 2
    tops, lefts = (range(0, length - side + 1, step) for length in grey.shape)
    windows = sliding_window_view(grey, (side, side))[::step, ::step].reshape(-1, side, side)  # (blocks, side, side)
    cut_off = ((windows <= CUT_OFF[0]) | (windows >= CUT_OFF[1])).mean(axis=(1, 2))
    usable = (cut_off <= MOST_CUT_OFF) & (windows.mean(axis=(1, 2)) >= DARKEST) & (np.ptp(windows, axis=(1, 2)) > 0)
    if lesion is not None:
        touched = sliding_window_view(lesion, (side, side))[::step, ::step].any(axis=(2, 3))
        usable &= ~touched.ravel()
    parts = (slice(None, half), slice(half, None))
    quarters = [windows[:, rows, columns].mean(axis=(1, 2)) for rows in parts for columns in parts]
    order = [i for i in np.argsort(np.ptp(quarters, axis=0), kind="stable").tolist() if usable[i]]
    blocks = [(slice(top, top + side), slice(left, left + side)) for top in tops for left in lefts]
    return [blocks[i] for i in order[: math.ceil(len(order) * CHOSEN)]]


def without_slope(block: np.ndarray) -> np.ndarray:
    """Take the plane that fits best off a block (h, w), but keep its mean: attenuation and gain are no speckle."""
    rows = np.arange(block.shape[0])[:, None] - (block.shape[0] - 1) / 2
    columns = np.arange(block.shape[1])[None] - (block.shape[1] - 1) / 2
    level = block.astype(np.float64)
    for axis in (rows, columns):  # orthogonal to each other and to a constant
        level = level - axis * (level * axis).sum() / (axis**2 * np.ones_like(level)).sum()
    return level


def speckle_figures(grey: np.ndarray, blocks: list[Block], dynamic_range: float = DYNAMIC_RANGE) -> tuple[float, float]:
    """Nakagami m and SNR of an image (h, h), each the median over the blocks that are not flat; NaN without any."""
    levels = [without_slope(grey[block]) for block in blocks if np.ptp(grey[block]) > 0]
    if not levels:
        return math.nan, math.nan
    amplitudes = [envelope(level, dynamic_range) for level in levels]
    return (
        float(np.median([nakagami_m(amplitude) for amplitude in amplitudes])),
        float(np.median([envelope_snr(amplitude) for amplitude in amplitudes])),
    )


def widest(side: int) -> float:
    """The width, in pixels, up to which correlation_width measures: that of a correlation of one half at the last lag.

    An image that has this width, or more, is known to have no less, and nothing else.
    """
    return 2.0 * (side // LONGEST)


def correlation_width(detail: np.ndarray, side: int | None = None) -> float:
    """Full width at half maximum, in pixels, of the autocorrelation of a high-passed image (h, w) down its rows.

    Between two lags a Gaussian is assumed, whose logarithm is linear in the squared lag. NaN for a flat image; a lower
    bound, that of `widest`, where the correlation is still above one half at an eighth of the side: that of a square of
    the image's area, or its own height.
    """
    side = side or len(detail)
    if not detail.any():
        return math.nan
    lags = range(1, side // LONGEST + 1)
    for lag, (above, below) in enumerate(pairwise((1.0, *autocorrelation(detail, lags)))):
        if below <= 0.5:
            share = math.log(above / 0.5) / math.log(above / max(below, SMALLEST_CORRELATION))
            return 2 * math.sqrt(lag**2 + share * ((lag + 1) ** 2 - lag**2))
    return widest(side)
