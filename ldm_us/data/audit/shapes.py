"""Lesions taller than wide, a sign of malignancy (BI-RADS): as they are, squashed to a square, in a model's buckets."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ldm_us.config import US128
from ldm_us.data.framing import Framing
from ldm_us.data.records import Record, union_of_masks
from ldm_us.data.regions import height_over_width

KINDS = ("kept", "bucket", "squash")


def lesion_shapes(records: Sequence[Record]) -> dict[str, Any]:
    """By class: lesions, their median height over width, and how many are above 1, by each way to come into a size.

    A lesion is the largest region of the masks of an image. Heights and widths are those of the file, so that no
    rounding to the pixels of another size enters. Buckets are those of us128, which are those of SD 1.5 in shape.
    """
    of_class: dict[str, list[tuple[float, ...]]] = {}
    for record in records:
        union = union_of_masks(record.masks)
        if union is None or not (mask := np.asarray(union) > 0).any():
            continue
        kept, (width, height) = height_over_width(mask), union.size
        frame = Framing(US128.image_size, "bucket", US128.size_multiple).frame(width, height)
        bucket = 1.0 if frame.fit == "letterbox" else frame.height / frame.width * width / height
        of_class.setdefault(record.label, []).append((kept, kept * bucket, kept * width / height))
    return {label: summary(np.array(shapes)) for label, shapes in sorted(of_class.items())}


def summary(shapes: np.ndarray) -> dict[str, Any]:
    """The figures of lesions (n, 3), height over width of each by KINDS."""
    taller = {kind: int((shapes[:, i] > 1).sum()) for i, kind in enumerate(KINDS)}
    become = {kind: int(((shapes[:, 0] <= 1) & (shapes[:, i] > 1)).sum()) for i, kind in enumerate(KINDS) if i}
    median = {kind: round(float(np.median(shapes[:, i])), 3) for i, kind in enumerate(KINDS)}
    return {"lesions": len(shapes), "median": median, "taller_than_wide": taller, "become_taller": become}
