"""Strokes and text on a canvas: where they land, how wide they are, and how dashes cut a line."""

import math
from itertools import pairwise

import numpy as np
import pytest

from ldm_us.display.canvas import Canvas, dashed, faded, length_of


def pixels(canvas):
    return np.asarray(canvas.picture()).astype(int)


def length(piece):
    return sum(math.dist(a, b) for a, b in pairwise(piece))


def test_an_empty_canvas_is_white_and_of_the_size_asked_for():
    assert pixels(Canvas(30, 20)).shape == (20, 30, 3)
    assert (pixels(Canvas(30, 20)) == 255).all()


@pytest.mark.parametrize("width", [1, 2, 4])
def test_a_line_covers_its_length_times_its_width(width):
    canvas = Canvas(60, 40)
    canvas.line([(10, 20), (50, 20)], "#000000", width)
    ink = (255 - pixels(canvas)[..., 0]) / 255
    assert ink.sum() == pytest.approx(40 * width, rel=0.1)
    assert set(np.nonzero(ink.sum(axis=1))[0]) <= set(range(20 - width, 20 + width + 1))


def test_a_dot_is_a_disc_around_its_centre():
    canvas = Canvas(40, 40)
    canvas.dot((20, 20), 6, "#ff0000")
    ink = (255 - pixels(canvas)[..., 1]) / 255
    assert ink.sum() == pytest.approx(math.pi * 36, rel=0.1)
    assert tuple(pixels(canvas)[20, 20]) == (255, 0, 0)


def test_text_lies_over_strokes_that_are_drawn_after_it():
    canvas = Canvas(60, 40)
    canvas.text((5, 30), "MMM", 20, "#000000")
    canvas.line([(0, 24), (60, 24)], "#ffffff", 40)
    assert pixels(canvas).min() == 0
    assert 20 < length_of("MMM", 20) < 60


@pytest.mark.parametrize("lengths", [(5.0, 3.0), (4.0, 1.0, 2.0, 1.0), (7.5, 7.5), (1000.0, 1.0)])
@pytest.mark.parametrize(
    "points", [[(0, 0), (100, 0)], [(0, 0), (3, 4), (3, 40), (50, 2)], [(0, 0), (0, 0), (8, 0)], [(0, 0), (10, 0)]]
)
def test_dashes_lie_on_the_line_at_the_lengths_asked_for(points, lengths):
    """Against a pen that is asked at every thousandth of the line whether it is down."""
    total, pieces = length(points), list(dashed(points, lengths))
    down = sum(
        total / 10_000
        for i in range(10_000)
        if sum(1 for edge in np.cumsum(lengths) if (i + 0.5) / 10_000 * total % sum(lengths) >= edge) % 2 == 0
    )
    assert sum(map(length, pieces)) == pytest.approx(down, abs=0.02)
    assert all(length(piece) <= max(lengths) + 1e-9 for piece in pieces)
    assert pieces[0][0] == points[0]


def test_without_dashes_a_line_is_one_piece():
    assert list(dashed([(0, 0), (1, 1)], [])) == [[(0, 0), (1, 1)]]


def test_a_faded_colour_lies_between_itself_and_white():
    assert [faded("#204060", opacity) for opacity in (1.0, 0.5, 0.0)] == ["#204060", "#90a0b0", "#ffffff"]
