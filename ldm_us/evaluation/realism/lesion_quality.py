"""How well a lesion stands out, whatever the grey curve of the display: gCNR.

Rodriguez-Molares et al., "The generalized contrast-to-noise ratio", IEEE Trans. UFFC 67(4) (2020) 745-759.
"""

import math

import numpy as np

BINS = 32  # of 8 grey levels: a small lesion has too few pixels to fill 256


def gcnr(inside: np.ndarray, outside: np.ndarray) -> float:
    """1 less the overlap of two histograms of grey levels 0..255: 0 for the same, 1 for disjoint ones; NaN if empty.

    It is the share of pixels, less that by chance, that the best threshold tells apart, so log compression and gain
    hardly change it. Few pixels fill the bins by chance: below about 200 it comes out too high.
    """
    if inside.size == 0 or outside.size == 0:
        return math.nan
    shares = [np.histogram(values, BINS, (0, 256))[0] / values.size for values in (inside, outside)]
    return float(1 - np.minimum(*shares).sum())
