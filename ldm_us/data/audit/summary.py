"""Sum up a dataset as it was read: what there is, what was left out, what masks cover, which prompts are too long."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ldm_us.config import MASK, PICTURE
from ldm_us.data.decoded import Decoded
from ldm_us.data.mask_rule import looks_inverted
from ldm_us.data.organ import BREAST, UNKNOWN
from ldm_us.data.readers.datasets import Reading
from ldm_us.data.readers.left_out import describe_left_out, more_than_a_few
from ldm_us.data.records import Record, small_lesions
from ldm_us.networks.clip import token_words

LENGTH = 77  # tokens of a prompt that CLIP reads, with start and end of text
SHOWN = 8  # names in one list before it is cut
SIDE = 128  # pixels, of the smallest preset that is trained


@dataclass(frozen=True)
class Coverage:
    """What the masks of one image cover."""

    name: str  # of the image
    share: float  # of its pixels
    inverted: bool  # more than half of them, and all four corners: black may be meant as the lesion
    small: int  # lesions of which no pixel would be left at the model's size


def describe_reading(
    reading: Reading,
    size: int = SIDE,
    length: int = LENGTH,
    covered: Sequence[Coverage] | None = None,
    decoded: Decoded | None = None,
) -> list[str]:
    """Write what was read and what was not, one fact a line; what is as it should be takes no line.

    Opens every mask of an image that may show a lesion, unless `covered` says what they cover, or `decoded` keeps it.
    size: of the model's images, in pixels a side. length: tokens that the model reads, with start and end of text.
    """
    records, size = reading.records, size if decoded is None else decoded.framing.side
    counts = sorted(Counter(record.label for record in records).items())
    classes = ", ".join(f"{n} {label}" for label, n in counts)
    masks = sum(len(record.masks) for record in records)
    lines = [f"{reading.layout} in {reading.folder}: {len(records)} images ({classes}), {masks} masks"]
    lines += [f"left out, {line}" for line in describe_left_out(reading.left_out)]
    lines += reading.notes
    if single := [label for label, n in counts if n == 1 and label != UNKNOWN and len(records) > len(counts)]:
        lines.append(f"classes of one image, which is never held out: {', '.join(single)}")
    shown = showing_lesions(records, [record for record in records if record.masks])
    bare = [record.image.name for record in shown if not record.masks]
    if bare:
        lines.append(f"{named(shown)} without a mask: {format_names(bare)}")
    if covered is None:
        covered = coverages(records, decoded or Decoded(None, size))
    empty = [one.name for one in covered if one.share == 0]
    if empty:
        lines.append(f"{named(shown)} whose masks are all empty: {format_names(empty)}")
    lines += describe_masks(covered, size)
    lines += describe_sizes(records, decoded) if decoded is not None else []
    if names := describe_hint(records):
        lines.append(names)
    prompts = {record.prompt for record in records}
    long = sum(is_long(prompt, length) for prompt in prompts)
    if long:
        lines.append(
            f"prompts of more than {length - 2} tokens, of which the rest is not read: {long} of {len(prompts)}"
        )
    return lines


def describe_hint(records: Sequence[Record]) -> str:
    """Write what a ControlNet is shown, where that is not one mask of one structure."""
    hint = records[0].organ.hint if records else MASK
    if hint != MASK:
        return f"hint of a ControlNet: {'a picture' if hint == PICTURE else 'a channel for each of ' + ', '.join(hint)}"
    names = list(dict.fromkeys(name for record in records for name in record.structures))
    joined = f"structures joined to one mask, unless dataset.json lists them: {', '.join(names)}"
    return joined if len(names) > 1 else ""


def showing_lesions(records: Iterable[Record], masked: Iterable[Record]) -> list[Record]:
    """The images that a lesion is expected in; where no class says so too, if one of these has a mask."""
    unknown = any(record.shows is None for record in masked)
    return [record for record in records if record.shows or (unknown and record.shows is None)]


def named(shown: Sequence[Record]) -> str:
    """Such images, in words."""
    of_lesions = all(record.organ.classes == BREAST.classes for record in shown)
    kind = "lesion images" if of_lesions else "images of a class that shows a structure"
    return f"{kind} or images of unknown class" if any(record.shows is None for record in shown) else kind


def coverages(records: Sequence[Record], decoded: Decoded) -> list[Coverage]:
    """Measure the masks of images that may show a lesion and have some. ValueError: a mask cannot be read."""
    masked = [r for r in records if r.masks and r.shows is not False and not r.organ.hint_is_picture]
    table, at = decoded.mask_facts(masked)
    facts = table[["share", "inverted", "lost"]][at].tolist()
    return [Coverage(record.image.name, *of_record) for record, of_record in zip(masked, facts, strict=True)]


def measured(name: str, union: Image.Image, size: int) -> Coverage:
    """Measure a mask of 0 and 255."""
    return Coverage(name, float((np.asarray(union) > 0).mean()), looks_inverted(union), small_lesions(union, size))


def describe_masks(covered: Sequence[Coverage], size: int) -> list[str]:
    """Write the least, median and largest share that masks cover, and the images whose masks are doubtful."""
    if not covered:
        return []
    least, median, largest = np.quantile([one.share for one in covered], [0, 0.5, 1])
    lines = [f"share of the image that masks cover: least {least:.2%}, median {median:.2%}, largest {largest:.2%}"]
    inverted = [one.name for one in covered if one.inverted]
    if inverted:
        lines.append(f"masks that look inverted (white in all corners): {format_names(inverted)}")
    small = [one.name for one in covered if one.small]
    if small:
        lines.append(f"lesions smaller than a pixel at {size}x{size}, each kept as one pixel: {format_names(small)}")
    return lines


def describe_sizes(records: Sequence[Record], decoded: Decoded) -> list[str]:
    """Write how many images get which size, where not all get one, and how many of them black bars."""
    frames = decoded.frames_of(records)
    if len(set(frames)) <= 1:
        return []
    counts = Counter(str(frame) for frame in frames).most_common()
    bars = sum(frame.fit == "letterbox" for frame in frames)
    said = f"sizes: {', '.join(f'{size} ({n})' for size, n in counts)}"
    return [f"{said}; {bars} images with black bars" if bars else said]


def is_long(prompt: str, length: int = LENGTH) -> bool:
    """Say whether a prompt is cut. A token has one byte at least, so short ones need no tokenizer."""
    return len(prompt.encode()) > length - 2 and len(token_words(prompt)) > length - 2


def format_names(names: Sequence[str]) -> str:
    """Write a count and the first names: '9: a, b, ... and 1 more'."""
    if not names:
        return "0"
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{len(names)}: {', '.join(names[:SHOWN])}{more}"


def check_hints(records: Sequence[Record], drawn: Sequence[bool]) -> list[str]:
    """Note the lesion images without a drawn lesion: a ControlNet learns from them that an empty mask has one.

    ValueError: more than a few are so, or all images.
    """
    if not any(drawn):
        raise ValueError(
            f"--data: the masks of all {len(records)} training images are empty, so a ControlNet has nothing to learn "
            "from. Give images with drawn lesions."
        )
    has_lesion = {record for record, has in zip(records, drawn, strict=True) if has}
    lesions = showing_lesions(records, has_lesion)
    empty = [record.image.name for record in lesions if record not in has_lesion]
    if not empty:
        return []
    found = f"of {len(lesions)} {named(lesions)}, these have no lesion in their masks or no mask: {format_names(empty)}"
    if more_than_a_few(len(empty), len(lesions)):
        raise ValueError(
            f"--data: {found}. A ControlNet would learn to put a lesion where the mask has none. Draw their lesions, "
            "give them a class without any, such as normal, or remove them."
        )
    return [f"{found}."]


def cut_off_notes(records: Sequence[Record], decoded: Decoded) -> list[str]:
    """Name the images of which --aspect crop cuts a part of a lesion off. ValueError: more than a few are so."""
    table, at = decoded.mask_facts(records)
    cut = [record.image.name for record, share in zip(records, table["cut"][at].tolist(), strict=True) if share > 0]
    if not cut:
        return []
    found = f"--aspect crop cuts a part of the lesions off in {format_names(cut)} of {len(records)} images"
    if more_than_a_few(len(cut), len(records)):
        raise ValueError(f"{found}. Use --aspect bucket, which shows images whole.")
    return [f"{found}."]
