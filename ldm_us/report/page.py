"""Pieces of a page: escaped text, tables, pictures inside the file, charts. Nothing is loaded from anywhere."""

import base64
import io
from collections.abc import Sequence
from html import escape

from PIL import Image

from ldm_us.report.figures import Figure
from ldm_us.report.style import STYLE

LARGEST_CELL, LARGEST_GRID = 256, 1200  # pixels; larger pictures are reduced, so that the file can be sent


def document(title: str, body: str, style: str = "") -> str:
    """A whole HTML page, in ASCII; `style` adds to the style of every report."""
    page = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}{style}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n"
        "</body>\n</html>\n"
    )
    return page.encode("ascii", "xmlcharrefreplace").decode("ascii")


def table(header: Sequence[str], rows: Sequence[Sequence[str]], marked: int | None = None) -> str:
    """Plain text in a table that scrolls in its own box; one row can be marked."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = ""
    for i, row in enumerate(rows):
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in row)
        body += f'<tr class="this">{cells}</tr>' if i == marked else f"<tr>{cells}</tr>"
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def image(picture: Image.Image, alt: str, largest: int) -> str:
    """A picture as base64 PNG, reduced to `largest` pixels a side where it is larger."""
    picture = picture.copy()
    picture.thumbnail((largest, largest), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, format="PNG", optimize=True)
    data = base64.b64encode(file.getvalue()).decode("ascii")
    size = f'width="{picture.width}" height="{picture.height}"'
    return f'<img src="data:image/png;base64,{data}" alt="{escape(alt)}" {size}>'


def picture_grid(figure: Figure) -> str:
    """A figure: pictures in a table, each row under its label."""
    count = len(figure.columns)
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in figure.columns)
    body = ""
    for label, cells in figure.rows:
        body += f'<tr><th scope="rowgroup" colspan="{count}">{escape(label)}</th></tr><tr>'
        for column, cell in zip(figure.columns, cells, strict=True):
            alt = f"{label}, {column}"
            body += f"<td>{'' if cell is None else image(cell, alt, LARGEST_CELL)}</td>"
        body += "</tr>"
    return (
        f'<figure class="pictures"><h4>{escape(figure.title)}</h4><div class="scroll">'
        f'<table style="min-width:{76 * count}px"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        f"<figcaption>{escape(figure.meaning)} <small>{escape(figure.settings)}</small></figcaption></figure>"
    )


def note(text: str) -> str:
    """Something that a reader should not overlook."""
    return f'<p class="note">{escape(text)}</p>'
