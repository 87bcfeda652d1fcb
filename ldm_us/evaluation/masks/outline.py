"""The outline of a mask as closed polylines, to be drawn over an image."""

from itertools import pairwise

import numpy as np

from ldm_us.display.axes import Point


def outlines(mask: np.ndarray) -> list[list[Point]]:
    """Return every boundary of a mask (H, W) of bools, lesions and holes, as closed polylines of (across, down).

    Pixel (row y, column x) covers [x, x + 1] by [y, y + 1]. The boundary runs along pixel edges; the polyline joins
    the middles of the edges, which cuts the corners of the staircase.
    """
    ends = pixel_edges(mask)
    loops = []
    while ends:
        start = next(iter(ends))
        corners = [start]
        while len(corners) == 1 or corners[-1] != start:
            after = ends[corners[-1]]
            corners.append(after.pop())
            if not after:
                del ends[corners[-2]]
        loops.append(middles(corners))
    return loops


def pixel_edges(mask: np.ndarray) -> dict[Point, list[Point]]:
    """The edges between a pixel inside and one outside, from corner to corner: {start: ends}, the inside at the right.

    As many edges end in a corner as start there, so whoever follows them comes back to where he began.
    """
    padded = np.pad(mask.astype(bool), 1)
    inside = padded[1:-1, 1:-1]
    sides = (  # where the neighbour lies; start and end of the edge to it, (across, down) from the pixel's corner
        (padded[:-2, 1:-1], (0, 0), (1, 0)),
        (padded[1:-1, 2:], (1, 0), (1, 1)),
        (padded[2:, 1:-1], (1, 1), (0, 1)),
        (padded[1:-1, :-2], (0, 1), (0, 0)),
    )
    ends: dict[Point, list[Point]] = {}
    for neighbour, start, end in sides:
        for y, x in np.argwhere(inside & ~neighbour).tolist():
            ends.setdefault((x + start[0], y + start[1]), []).append((x + end[0], y + end[1]))
    return ends


def middles(corners: list[Point]) -> list[Point]:
    """A closed polyline through the middles of the edges of another one."""
    found = [((a[0] + b[0]) / 2, (a[1] + b[1]) / 2) for a, b in pairwise(corners)]
    return [*found, found[0]]
