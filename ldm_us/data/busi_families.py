"""The near-duplicate families of BUSI, as shipped.

BUSI holds many images twice or more. `busi_families.json` lists groups of near-duplicates,
found with the normalised cross-correlation of 96x96 high-passed images, shifts of +-2 pixels and a threshold of 0.5
(few values lie near it). A family of one is an image that was compared and has no duplicate. The list covers 617 of the
780 published images; an image that it does not know is its own group, and the audit counts those.
"""

import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files


@cache
def families() -> dict[str, str]:
    """Map the stem of every image that the shipped list knows to the stem of its family's first member."""
    listed = files("ldm_us.data.readers").joinpath("busi_families.json").read_text(encoding="utf-8")
    return first_of_family(json.loads(listed))


def first_of_family(lists: Sequence[Sequence[str]]) -> dict[str, str]:
    """Families of file names -> {stem: stem of the first of its family}."""
    return {name.removesuffix(".png"): names[0].removesuffix(".png") for names in lists for name in names}
