"""New plausible masks: the phantom's outline, fitted to given masks by class.

Outline, as in `ldm_us/data/phantom/lesion.py`: an ellipse times R(theta) = 1 + sum_k a_k cos(k theta + phi_k). What is
fitted: area, aspect, tilt, the a_k (irregularity), place, and how many lesions a mask holds. Given R near 1, the k-th
Fourier coefficient of R is the mean of exp(-i k theta) over the pixels inside, so no contour has to be traced.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ldm_us.data.regions import Mask, label_regions

Values = NDArray[np.float64]

ORDERS = np.arange(2, 12)  # k of the outline
LEAST_PIXELS = 20  # of a lesion; smaller ones have no outline to speak of
ATTEMPTS = 50
GAP = 2  # pixels between two lesions, and between a lesion and the edge


@dataclass(frozen=True)
class Shape:
    """One lesion. Places and the area are shares of the image, angles in rad, down and to the right."""

    area: float
    aspect: float  # height / width
    tilt: float  # of the width
    row: float  # centre
    column: float
    amplitudes: Values  # a_k, one per order


@dataclass(frozen=True)
class ShapeModel:
    """How the lesions of a class are distributed: normally in log area, log aspect, tilt, row and column."""

    mean: Values  # (5,)
    covariance: Values  # (5, 5): large lesions lie deeper, for one
    areas: tuple[float, float]  # least and largest
    amplitudes: Values  # root mean square of each a_k, large lesions counting more
    counts: tuple[int, ...]  # lesions in each mask that was fitted


def fit_shapes(masks: Sequence[Mask]) -> ShapeModel:
    """Fit masks of one class, each with one or several lesions. Raise ValueError where fewer than 2 lesions remain."""
    lesions = [[one for one in components(mask) if one.sum() >= LEAST_PIXELS] for mask in masks]
    shapes = [measure_shape(one) for of_mask in lesions for one in of_mask]
    if len(shapes) < 2:
        raise ValueError(f"{len(shapes)} lesions of {LEAST_PIXELS} pixels or more: a shape model needs at least 2.")
    features = np.array([[np.log(s.area), np.log(s.aspect), s.tilt, s.row, s.column] for s in shapes])
    areas = [shape.area for shape in shapes]
    # Weighted by area, because what is irregular in the outline of a small lesion are its pixels.
    amplitudes = np.sqrt(np.average([shape.amplitudes**2 for shape in shapes], axis=0, weights=areas))
    counts = tuple(len(of_mask) for of_mask in lesions if of_mask)
    return ShapeModel(features.mean(axis=0), np.cov(features.T), (min(areas), max(areas)), amplitudes, counts)


def measure_shape(mask: Mask) -> Shape:
    """The ellipse of a lesion's first and second moments, and its Fourier amplitudes around that ellipse."""
    rows, columns = np.nonzero(mask)
    down, right = rows - rows.mean(), columns - columns.mean()
    # 1/12: a pixel is a square, not a point.
    spread, axes = np.linalg.eigh(np.cov(np.stack([right, down]), bias=True) + np.eye(2) / 12)
    across = int(np.argmax(np.abs(axes[0])))  # the axis that lies nearest to the horizontal is the width
    tilt = float(np.arctan(axes[1, across] / axes[0, across]))
    width, height = np.sqrt(spread[across]), np.sqrt(spread[1 - across])
    u = (right * np.cos(tilt) + down * np.sin(tilt)) / width
    v = (down * np.cos(tilt) - right * np.sin(tilt)) / height
    theta = np.arctan2(v, u)
    # The area within d theta is R^2 / 2 = 1 / 2 + sum_k a_k cos(k theta + phi_k), to first order in the a_k.
    amplitudes = np.abs(np.exp(-1j * ORDERS[:, None] * theta[None]).mean(axis=1))
    size_down, size_right = mask.shape
    centre = (rows.mean() + 0.5) / size_down, (columns.mean() + 0.5) / size_right
    return Shape(mask.mean().item(), float(height / width), tilt, *centre, amplitudes)


def draw_mask(rng: np.random.Generator, model: ShapeModel, size: int) -> Mask:
    """A new mask (size, size) with as many lesions as one of the fitted masks, inside the image and apart.

    A lesion that finds no place in ATTEMPTS draws is left out. Raise ValueError where none finds one.
    """
    mask = np.zeros((size, size), bool)
    for _ in range(int(rng.choice(model.counts))):
        for _attempt in range(ATTEMPTS):
            lesion = place_inside(draw_shape(rng, model), rng, size)
            if lesion is not None and not (grown(lesion) & mask).any():
                mask |= lesion
                break
    if not mask.any():
        raise ValueError(f"no lesion of this shape model fits into {size}x{size} pixels. Use a larger size.")
    return mask


def draw_shape(rng: np.random.Generator, model: ShapeModel) -> Shape:
    """A lesion of the model's distribution; its area stays between the least and the largest that were fitted."""
    log_area, log_aspect, tilt, row, column = rng.multivariate_normal(model.mean, model.covariance, method="eigh")
    amplitudes = np.abs(rng.normal(0, model.amplitudes))
    return Shape(
        float(np.clip(np.exp(log_area), *model.areas)), float(np.exp(log_aspect)), tilt, row, column, amplitudes
    )


def place_inside(shape: Shape, rng: np.random.Generator, size: int) -> Mask | None:
    """Draw a shape with random phases, moved just so far that it lies inside; None where it cannot or falls apart."""
    phases = rng.uniform(0, 2 * np.pi, ORDERS.size)
    offsets: Values = np.arange(0.5 - size, size)  # twice as large as the image, the lesion in its middle
    lesion = outline(shape, phases, size**2, offsets[:, None], offsets[None, :])
    rows, columns = np.nonzero(lesion)
    if rows.size < LEAST_PIXELS or len(components(lesion)) != 1:
        return None
    corner = []
    for places, centre in ((rows, shape.row), (columns, shape.column)):
        first, last = int(places.min()), int(places.max())
        # Where in this canvas an image may start that holds the lesion.
        low, high = max(0, last + 1 + GAP - size), min(size, first - GAP)
        if low > high:
            return None
        corner.append(int(np.clip(round(size - centre * size), low, high)))
    top, left = corner
    return lesion[top : top + size, left : left + size]


def outline(shape: Shape, phases: Values, pixels: int, down: Values, right: Values) -> Mask:
    """Where R(theta) reaches, at offsets in pixels from the centre."""
    radius_squared = shape.area * pixels / np.pi / (1 + 0.5 * np.sum(shape.amplitudes**2))  # keeps the area
    width, height = np.sqrt(radius_squared / shape.aspect), np.sqrt(radius_squared * shape.aspect)
    u = (right * np.cos(shape.tilt) + down * np.sin(shape.tilt)) / width
    v = (down * np.cos(shape.tilt) - right * np.sin(shape.tilt)) / height
    theta = np.arctan2(v, u)
    radius = np.ones_like(theta)
    for order, amplitude, phase in zip(ORDERS, shape.amplitudes, phases, strict=True):
        radius += amplitude * np.cos(order * theta + phase)
    return np.hypot(u, v) < np.maximum(radius, 0.3)


def components(mask: Mask) -> list[Mask]:
    """The 8-connected regions of a mask, from the top down."""
    labels = label_regions(mask)
    return [labels == region for region in range(1, int(labels.max()) + 1)]


def grown(mask: Mask, pixels: int = GAP) -> Mask:
    """Every pixel within so many of the mask, diagonals included."""
    for _ in range(pixels):
        padded = np.pad(mask, 1)
        rows = padded[:-2] | padded[1:-1] | padded[2:]
        mask = rows[:, :-2] | rows[:, 1:-1] | rows[:, 2:]
    return mask
