"""The masks of a plan: read one at a time, all checked before the first sample is drawn."""

import hashlib

from PIL import Image
from torch import Tensor

from ldm_us.data.records import LESION_CLASSES, Record, load_mask, load_pair, mask_tensor, union_of_masks
from ldm_us.files.pictures import to_picture
from ldm_us.synthesis.plan import Plan, Sample
from ldm_us.synthesis.subjects import Subject, check_mask


def check_masks(plan: Plan, size: int) -> tuple[str | None, list[str]]:
    """Read every mask of a plan; -> SHA-256 of all as the ControlNet sees them, in order, and notes for the user.

    Raise ValueError for one that does not fit.
    """
    if not plan.masked:
        lesions = [label for label in LESION_CLASSES if any(subject.label == label for subject in plan.subjects)]
        if plan.layout == "busi" and lesions:
            return None, [f"without --mask there are no mask files for {' and '.join(lesions)}."]
        return None, []
    digest, resized = hashlib.sha256(), []
    for subject in plan.subjects:
        union = union_of_masks(subject.masks)
        mask = mask_tensor(union, size)
        where = f"{subject.masks[0] if subject.masks else subject.name} at {size}x{size} pixels"
        check_mask(subject.label, bool(mask.any()), where)
        if union is not None and union.size != (size, size):
            resized.append(f"{subject.masks[0].name} of {union.width}x{union.height}")
        digest.update(bytes(mask.byte().numpy().data))
    if not resized:
        return digest.hexdigest(), []
    rest = f" and {len(resized) - 1} other masks" if len(resized) > 1 else ""
    return digest.hexdigest(), [f"{resized[0]}{rest} resized to {size}x{size}, each pixel from the nearest one."]


def mask_of(plan: Plan, sample: Sample, size: int) -> Tensor | None:
    """The mask of one sample, (1, size, size) in {0, 1}; None in a plan without masks."""
    return load_mask(sample.subject.masks, size) if plan.masked else None


def load_original(subject: Subject, size: int) -> Image.Image | None:
    """The image a mask was drawn on, for the grid; its size must be that of the mask."""
    if subject.original is None:
        return None
    x, _ = load_pair(Record(subject.original, subject.masks, subject.name, subject.prompt, subject.name), size)
    return to_picture(x[:1] / 2 + 0.5)
