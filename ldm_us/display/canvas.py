"""Smooth strokes and sharp text with Pillow alone: strokes are drawn large and made small, text at its final size."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from PIL import Image, ImageColor, ImageDraw, ImageFont

from ldm_us.display.axes import Box, Point

SCALE = 2  # of the strokes, before they are made small


@dataclass(frozen=True)
class Text:
    """A string to be written."""

    place: Point
    string: str
    size: int  # pixels
    colour: str
    anchor: str  # as in Pillow: "ls" left and baseline, "rm" right and middle


@dataclass
class Canvas:
    """A white picture of so many pixels, on which to draw in its own coordinates."""

    width: int
    height: int
    texts: list[Text] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.strokes = Image.new("RGB", (self.width * SCALE, self.height * SCALE), "white")
        self.draw = ImageDraw.Draw(self.strokes)

    def line(self, points: Sequence[Point], colour: str, width: float, dashes: str = "") -> None:
        """A polyline with round joints, or dashes of it: lengths on and off, such as "7 3"."""
        for piece in dashed(points, [float(length) for length in dashes.split()]):
            large = [(x * SCALE, y * SCALE) for x, y in piece]
            self.draw.line(large, fill=colour, width=max(1, round(width * SCALE)), joint="curve")

    def area(self, points: Sequence[Point], colour: str) -> None:
        """A filled polygon; it hides what was drawn before."""
        self.draw.polygon([(x * SCALE, y * SCALE) for x, y in points], fill=colour)

    def dot(self, centre: Point, radius: float, colour: str) -> None:
        """A filled circle."""
        x, y = (value * SCALE for value in centre)
        self.draw.ellipse((x - radius * SCALE, y - radius * SCALE, x + radius * SCALE, y + radius * SCALE), fill=colour)

    def image(self, box: Box, picture: Image.Image) -> None:
        """A picture that fills a box, over the strokes so far and under those to come."""
        left, top, right, bottom = (round(value * SCALE) for value in box)
        large = picture.convert("RGB").resize((right - left, bottom - top), Image.Resampling.BICUBIC)
        self.strokes.paste(large, (left, top))

    def text(self, place: Point, string: str, size: int, colour: str, anchor: str = "ls") -> None:
        """A string; it is written on top of every stroke."""
        self.texts.append(Text(place, string, size, colour, anchor))

    def picture(self) -> Image.Image:
        """What was drawn."""
        picture = self.strokes.reduce(SCALE)
        draw = ImageDraw.Draw(picture)
        for text in self.texts:
            draw.text(text.place, text.string, text.colour, ImageFont.load_default(text.size), text.anchor)
        return picture


def length_of(string: str, size: int) -> float:
    """Pixels that a string takes."""
    return float(ImageFont.load_default(size).getlength(string))


def faded(colour: str, opacity: float) -> str:
    """A colour as it looks on white at this opacity."""
    channels = (round(255 + opacity * (channel - 255)) for channel in ImageColor.getrgb(colour)[:3])
    return "#{:02x}{:02x}{:02x}".format(*channels)


def dashed(points: Sequence[Point], lengths: Sequence[float]) -> Iterator[list[Point]]:
    """The pieces of a polyline that are drawn, when the pen is down and up for `lengths` in turn."""
    if not lengths:
        yield list(points)
        return
    turn, left, piece = 0, lengths[0], [points[0]]
    for start, end in pairwise(points):
        length, done = math.dist(start, end), 0.0
        while length - done > left:
            done += left
            share = done / length
            cut = (start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1]))
            if turn % 2 == 0:
                yield [*piece, cut]
            turn += 1
            piece, left = [cut], lengths[turn % len(lengths)]
        left -= length - done
        piece.append(end)
    if turn % 2 == 0 and len(piece) > 1:
        yield piece
