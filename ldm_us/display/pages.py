"""HTML pages from templates: text is escaped, pictures and charts lie inside the file, nothing is loaded from anywhere.

A template has its path for a name, such as ldm_us/report/page.html. It extends ldm_us/display/base.html, and takes
tables, notes, pictures and charts from ldm_us/display/pieces.html.
"""

from __future__ import annotations

import base64
import io
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

import ldm_us
from ldm_us.display.charts import VARIABLES

if TYPE_CHECKING:
    from jinja2 import Environment

ROOT = Path(ldm_us.__file__).parents[1]  # where ldm_us and weights_convert lie


def render(template: str, **values: object) -> str:
    """A page in ASCII, which every browser and mail program reads the same way."""
    page = environment().get_template(template).render(values)
    return page.encode("ascii", "xmlcharrefreplace").decode("ascii")


@cache
def environment() -> Environment:
    """What all templates share: whatever is put in is escaped, and a name without a value is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(ROOT), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.globals |= {"version": ldm_us.__version__, "variables": VARIABLES}
    made.filters |= {"reduced": reduced, "base64_png": base64_png}
    return made


def reduced(picture: Image.Image, largest: int) -> Image.Image:
    """A picture of no more than `largest` pixels a side, so that the file can be sent."""
    picture = picture.copy()
    picture.thumbnail((largest, largest), Image.Resampling.LANCZOS)
    return picture


def base64_png(picture: Image.Image) -> str:
    """A picture as text."""
    file = io.BytesIO()
    picture.save(file, format="PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode("ascii")
