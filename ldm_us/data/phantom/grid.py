"""The grid every phantom is computed on, and smooth random fields over it."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

PIXELS = 256  # of one side, whatever the size asked for: the same seed then gives the same anatomy at every size


@dataclass(frozen=True)
class Grid:
    """A square field of view. Axis 0 is depth z from the transducer, axis 1 is lateral position x."""

    side: float  # mm

    @property
    def pitch(self) -> float:
        """Size of a pixel in mm."""
        return self.side / PIXELS

    @cached_property
    def z(self) -> Array:
        """Depth of every row in mm: (PIXELS, 1)."""
        return centres(PIXELS, self.side)[:, None]

    @cached_property
    def x(self) -> Array:
        """Lateral position of every column in mm: (1, PIXELS)."""
        return centres(PIXELS, self.side)[None, :]


def centres(pixels: int, side: float) -> Array:
    """Positions in mm of the centres of `pixels` pixels over `side` mm."""
    return ((np.arange(pixels) + 0.5) * (side / pixels)).astype(np.float32)


def smooth_field(rng: np.random.Generator, grid: Grid, cell_z: float, cell_x: float) -> Array:
    """A Gaussian field (PIXELS, PIXELS), mean 0 and variance 1, that varies over `cell` mm along each axis."""
    along_z, along_x = bumps(grid, cell_z), bumps(grid, cell_x)
    nodes = rng.standard_normal((along_z.shape[1], along_x.shape[1]), dtype=np.float32)
    return along_z @ nodes @ along_x.T


def smooth_curve(rng: np.random.Generator, grid: Grid, cell: float) -> Array:
    """A Gaussian curve (1, PIXELS) over x, mean 0 and variance 1, that varies over `cell` mm."""
    along_x = bumps(grid, cell)
    return (along_x @ rng.standard_normal(along_x.shape[1], dtype=np.float32))[None, :]


def bumps(grid: Grid, cell: float) -> Array:
    """Gaussian bumps every `cell` mm, beyond both edges too, each row of unit length: (PIXELS, nodes)."""
    nodes = np.arange(-2, np.ceil(grid.side / cell) + 3, dtype=np.float32) * cell
    basis = np.exp(-0.5 * ((grid.z - nodes[None, :]) / (0.6 * cell)) ** 2)
    return (basis / np.linalg.norm(basis, axis=1, keepdims=True)).astype(np.float32)


def strands(field: Array, width: float) -> Array:
    """Thin curved lines, 0 to 1: the zero crossings of a smooth field, `width` of its standard deviations wide."""
    return np.exp(-np.square(field / width))


def step(signed: Array, width: float) -> Array:
    """From 0 where `signed` (mm) is negative to 1 where it is positive, over `width` mm."""
    return 0.5 + 0.5 * np.tanh(signed / width)


def warp(image: Array, rows: Array, columns: Array) -> Array:
    """image (..., PIXELS, PIXELS) read at fractional rows and columns, bilinearly, its edges repeated."""
    rows, columns = (np.clip(at, 0, np.float32(PIXELS - 1.001)) for at in (rows, columns))
    i, j = rows.astype(np.int32), columns.astype(np.int32)
    u, v = rows - i, columns - j
    corner = i * PIXELS + j
    flat = image.reshape(*image.shape[:-2], -1)
    above = flat.take(corner, axis=-1) * (1 - v) + flat.take(corner + 1, axis=-1) * v
    below = flat.take(corner + PIXELS, axis=-1) * (1 - v) + flat.take(corner + PIXELS + 1, axis=-1) * v
    return above * (1 - u) + below * u
