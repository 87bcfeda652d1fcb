"""A drawing of boxes, lines and words in pixels, which a template turns into SVG."""

from typing import Any


class Drawing:
    """What the template draws: boxes, lines, dots and texts, in pixels."""

    def __init__(self) -> None:
        self.boxes: list[dict[str, Any]] = []
        self.lines: list[dict[str, Any]] = []
        self.dots: list[dict[str, Any]] = []
        self.texts: list[dict[str, Any]] = []

    def box(self, x: float, y: float, width: float, height: float, kind: str, attention: bool = False) -> None:
        """A box, with the stripe of a transformer where there is one."""
        self.boxes.append({"x": x, "y": y, "w": width, "h": height, "kind": kind, "attention": attention})

    def line(self, *points: tuple[float, float], kind: str = "flow", arrow: bool = True) -> None:
        """A line through points."""
        self.lines.append({"points": " ".join(f"{x:g},{y:g}" for x, y in points), "kind": kind, "arrow": arrow})

    def dot(self, x: float, y: float, kind: str) -> None:
        """A zero convolution, or a sum."""
        self.dots.append({"x": x, "y": y, "kind": kind})

    def text(self, x: float, y: float, words: str, kind: str = "note", anchor: str = "middle") -> None:
        """Words on a line."""
        self.texts.append({"x": x, "y": y, "words": words, "kind": kind, "anchor": anchor})
