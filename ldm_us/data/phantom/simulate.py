"""One phantom: a seed, a number and a class give an image and its exact lesion masks, at any size."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ldm_us.data.phantom.anatomy import draw_anatomy
from ldm_us.data.phantom.bmode import Scanner, depth_gain, draw_scanner, scan
from ldm_us.data.phantom.grid import Array, Grid, centres
from ldm_us.data.phantom.lesion import Lesion, draw_lesion

ANATOMY, SPECKLE = 0, 1  # random streams
FIELD = (30.0, 42.0)  # mm, least and largest side of the field of view
Scan = Callable[[np.random.Generator, Grid, Array, Array, Scanner], Array]


@dataclass(frozen=True)
class Phantom:
    """An image and what is in it."""

    image: NDArray[np.uint8]  # (size, size) grey
    masks: list[NDArray[np.bool_]]  # one (size, size) a lesion; none for the class normal
    lesions: list[Lesion]
    side: float  # of the field of view in mm


def simulate(
    seed: int, number: int, label: str, size: int, *, lesions: int = 1, rescan: int = 0, scan: Scan = scan
) -> Phantom:
    """Phantom `number` of `seed`, with so many lesions unless it is normal.

    Anatomy and scanner have a random stream of their own, and so has the speckle: both are the same at every size. A
    `rescan` is another scan of the same breast: its speckle and noise differ, and nothing else. `scan` is the
    scanner: that of bmode.py or of must.py.
    """
    rng = np.random.default_rng([seed, number, ANATOMY])
    grid = Grid(side=rng.uniform(*FIELD))
    scanner = draw_scanner(rng)
    drawn = draw_lesions(rng, label, grid.side, lesions)
    echo, attenuation = draw_anatomy(rng, grid, drawn)
    gain = depth_gain(rng, grid, attenuation, scanner)
    shown = scan(np.random.default_rng([seed, number, SPECKLE, rescan]), grid, echo, gain, scanner)
    picture = Image.fromarray(np.rint(shown * 255).astype(np.uint8))
    image = np.asarray(picture.resize((size, size), Image.Resampling.LANCZOS))
    at = centres(size, grid.side)
    masks = [lesion.ratio(at[:, None], at[None, :]) < 1 for lesion in drawn]
    return Phantom(image, masks, drawn, grid.side)


def draw_lesions(rng: np.random.Generator, label: str, side: float, wanted: int) -> list[Lesion]:
    """No lesion for the class normal, else one or several beside each other; the next is left out where none fits."""
    lesions: list[Lesion] = []
    for _ in range(wanted if label != "normal" else 0):
        for _attempt in range(50):
            lesion = draw_lesion(rng, label, side, share=1 / wanted**1.5)
            if all(abs(lesion.x - other.x) > 1.3 * (lesion.width + other.width) for other in lesions):
                lesions.append(lesion)
                break
    return lesions
