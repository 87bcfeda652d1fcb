"""One chain of sizes for both kinds of images: a sharper, softer or larger kind would be known by that alone.

Real images are, as a rule, larger than generated ones. Enlarging one kind blurs it, so nothing is enlarged. Every image
is first brought to the smallest side that an image of either set has, as training does with real images, and then,
real or generated, to the side that is shown.
"""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor

from ldm_us.data.records import Record, image_tensor, open_image

NOT_HIDDEN = (
    "Text, calipers and marks that are burned into real images, and margins around the scan, tell them from generated "
    "ones: leave such images out of --real, or say in the study that they were shown."
)


def chain_of_sides(real: Sequence[Record], generated: Sequence[Record], size: int | None) -> tuple[int, ...]:
    """Return the sides, in pixels, of the squares that every image is resized to, one after the other.

    The last is shown: `size`, or the smallest side of all images. Raise ValueError for a `size` above that.
    """
    smallest, option, path = min(
        (_side(record.image), option, record.image)
        for option, records in (("--real", real), ("--generated", generated))
        for record in records
    )
    if size is not None and size > smallest:
        raise ValueError(
            f"--size {size}: {option} has an image of {smallest} pixels a side ({path.name}), which would be blurred "
            f"and known by that. Use {smallest} or less, or leave the small images out."
        )
    return (smallest,) if size in (None, smallest) else (smallest, size)


def _side(path: Path) -> int:
    with Image.open(path) as picture:  # the header alone: check_sets has decoded it
        return min(picture.size)


def prepared_sentence(sides: Sequence[int]) -> str:
    """What was done to the images."""
    squares = ", then to ".join(f"{side}x{side}" for side in sides)
    return f"Every image, real or generated, was made grey and resized whole to {squares}, and none was enlarged."


def prepare(path: Path, sides: Sequence[int]) -> Tensor:
    """Take an image through the chain: (1, size, size) in [0, 1]."""
    picture = open_image(path).convert("L")
    for side in sides[:-1]:
        picture = picture.resize((side, side), Image.Resampling.BICUBIC)
    return image_tensor(picture, sides[-1])[:1] / 2 + 0.5
