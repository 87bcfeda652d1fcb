"""Pictures: tensors as 8-bit PNG with text fields, and labelled grids like the paper's Figures 3 and 4."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin
from torch import Tensor

from ldm_us.files.atomic import atomic_file

INK, PAPER = 20, 255
GAP = 4  # pixels between cells


def to_picture(x: Tensor) -> Image.Image:
    """(3, H, W) or (1, H, W) in [0, 1] -> 8-bit picture, rounded (not cut) to the nearest grey."""
    values = np.rint(x.detach().float().clamp(0, 1).cpu().numpy() * 255).astype(np.uint8)
    if len(values) == 1:
        return Image.fromarray(values[0])
    return Image.fromarray(np.ascontiguousarray(rearrange(values, "c h w -> h w c")))


def save_png(picture: Image.Image, path: Path, fields: dict[str, str] | None = None) -> None:
    """Write a PNG atomically, with `fields` as its tEXt chunks."""
    info = PngImagePlugin.PngInfo()
    for key, value in (fields or {}).items():
        info.add_text(key, value)
    with atomic_file(path) as file:
        picture.save(file, format="PNG", pnginfo=info)


def labelled_grid(
    rows: Sequence[Sequence[Image.Image | None]], row_labels: Sequence[str], column_labels: Sequence[str] = ()
) -> Image.Image:
    """Pictures in rows, with a label left of each row and above each column; smaller ones in the middle of their cells.

    None leaves a cell empty.
    """
    cells = [cell for row in rows for cell in row if cell is not None]
    width, height = max(cell.width for cell in cells), max(cell.height for cell in cells)
    columns = max(len(row) for row in rows)
    font_size = max(11, height // 12)
    font = ImageFont.load_default(font_size)
    left = GAP * 2 + int(max((font.getlength(label) for label in row_labels), default=0))
    top = GAP * 2 + font_size if column_labels else GAP

    grid = Image.new("L", (left + columns * (width + GAP), top + len(rows) * (height + GAP)), PAPER)
    draw = ImageDraw.Draw(grid)
    for i, (label, row) in enumerate(zip(row_labels, rows, strict=True)):
        y = top + i * (height + GAP)
        draw.text((GAP, y + height / 2), label, fill=INK, font=font, anchor="lm")
        for j, cell in enumerate(row):
            if cell is not None:
                inset = (width - cell.width) // 2, (height - cell.height) // 2
                grid.paste(cell.convert("L"), (left + j * (width + GAP) + inset[0], y + inset[1]))
    for j, label in enumerate(column_labels):
        draw.text((left + j * (width + GAP) + width / 2, top - GAP - font_size // 4), label, INK, font, anchor="ms")
    return grid
