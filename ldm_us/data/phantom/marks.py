"""What sonographers leave in the picture: calipers across the lesion and a line of text. Off unless asked for."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

INK = (230, 230, 230)
SIDES, QUADRANTS = ("LT", "RT"), ("UOQ", "LOQ", "UIQ", "LIQ")


def draw_calipers(picture: Image.Image, mask: NDArray[np.bool_]) -> None:
    """Crosses at the ends of the widest row and the tallest column of a lesion, dotted lines between them."""
    rows, columns = np.nonzero(mask)
    if rows.size == 0:
        return
    row, column = int(np.argmax(mask.sum(axis=1))), int(np.argmax(mask.sum(axis=0)))
    across = columns[rows == row]
    down = rows[columns == column]
    draw = ImageDraw.Draw(picture)
    arm, gap = max(1, picture.width // 64), max(3, picture.width // 40)
    for ends in (((across.min(), row), (across.max(), row)), ((column, down.min()), (column, down.max()))):
        (x0, y0), (x1, y1) = ((int(x), int(y)) for x, y in ends)
        for x, y in ((x0, y0), (x1, y1)):
            draw.line((x - arm, y, x + arm, y), INK)
            draw.line((x, y - arm, x, y + arm), INK)
        dots = max(1, (x1 - x0 + y1 - y0) // gap)
        for k in range(1, dots):
            draw.point((x0 + (x1 - x0) * k // dots, y0 + (y1 - y0) * k // dots), INK)


def draw_text(picture: Image.Image, nth: int) -> None:
    """Side and quadrant near the lower edge, as on a scanner's screen."""
    text = f"{SIDES[nth % 2]} {QUADRANTS[nth // 2 % 4]}"
    size = max(8, picture.height // 16)
    draw = ImageDraw.Draw(picture)
    draw.text((picture.width * 0.08, picture.height * 0.9), text, INK, ImageFont.load_default(size), anchor="ls")
