"""Audit a BUSI folder: what is in it, what cannot be used, and what a user should know before training on it."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from ldm_us.data.busi import BUSI_GROUP, families, list_busi
from ldm_us.data.records import LESION_CLASSES, Record, open_image, union_of_masks
from ldm_us.data.split import labels_of_groups

SHOWN = 8  # names in one list before it is cut


@dataclass
class BusiAudit:
    """Findings about one BUSI folder; the lists hold file names or one sentence a file."""

    folder: Path
    images: Counter[str] = field(default_factory=Counter)  # by class
    image_sizes: Counter[tuple[int, int]] = field(default_factory=Counter)  # (width, height)
    image_modes: Counter[str] = field(default_factory=Counter)
    mask_modes: Counter[str] = field(default_factory=Counter)
    # cannot be used
    unreadable: list[str] = field(default_factory=list)
    other_size: list[str] = field(default_factory=list)  # the mask's size is not its image's
    empty_classes: list[str] = field(default_factory=list)
    # can be used, but worth a look
    several_masks: list[str] = field(default_factory=list)
    lesion_without_mask: list[str] = field(default_factory=list)
    lesion_with_empty_mask: list[str] = field(default_factory=list)
    normal_with_lesion: list[str] = field(default_factory=list)
    orphan_masks: list[str] = field(default_factory=list)
    other_files: list[str] = field(default_factory=list)
    # near-duplicates
    family_sizes: list[int] = field(default_factory=list)  # families with at least two images here
    mixed_families: list[str] = field(default_factory=list)  # their images disagree about the class
    not_compared: list[str] = field(default_factory=list)  # images that the shipped list does not know

    @property
    def usable(self) -> bool:
        """Say whether every file can be used for training."""
        return not (self.unreadable or self.other_size or self.empty_classes)


def audit_busi(folder: Path) -> BusiAudit:
    """Open every file of a BUSI folder and collect the findings."""
    listing = list_busi(folder)
    audit = BusiAudit(Path(folder), empty_classes=listing.empty_classes)
    audit.orphan_masks = [path.name for path in listing.orphan_masks]
    audit.other_files = [f"{path.parent.name}/{path.name}" for path in listing.other_files]
    audit.images.update(dict.fromkeys(listing.empty_classes, 0))
    for record in listing.records:
        audit.images[record.label] += 1
        audit_files(record, audit)
    audit_families(listing.records, audit)
    return audit


def audit_files(record: Record, audit: BusiAudit) -> None:
    """Open one image and its masks, and note what is odd about them."""
    picture = open_or_note(record.image, audit)
    if picture is not None:
        audit.image_sizes[picture.size] += 1
        audit.image_modes[picture.mode] += 1
    masks = [(path, open_or_note(path, audit)) for path in record.masks]
    for path, mask in masks:
        if mask is not None:
            audit.mask_modes[mask.mode] += 1
        if mask is not None and picture is not None and mask.size != picture.size:
            sizes = f"{mask.width}x{mask.height}, image {picture.width}x{picture.height}"
            audit.other_size.append(f"{path.name} ({sizes})")
    if len(masks) > 1:
        audit.several_masks.append(f"{record.image.name} ({len(masks)})")
    if all(mask is not None for _, mask in masks):
        audit_mask_content(record, audit)


def open_or_note(path: Path, audit: BusiAudit) -> Image.Image | None:
    """Open an image file, or note why it does not open."""
    try:
        return open_image(path)
    except ValueError as error:
        audit.unreadable.append(str(error))
        return None


def audit_mask_content(record: Record, audit: BusiAudit) -> None:
    """Compare what the masks show with what the class says."""
    name = record.image.name
    if not record.masks:
        if record.label in LESION_CLASSES:
            audit.lesion_without_mask.append(name)
        return
    drawn = False
    for path in record.masks:  # one at a time: masks of different sizes are reported elsewhere
        try:
            union = union_of_masks([path])
        except ValueError as error:  # not empty, yet nothing above 127
            audit.unreadable.append(str(error))
            return
        drawn = drawn or (union is not None and union.getbbox() is not None)
    if record.label in LESION_CLASSES and not drawn:
        audit.lesion_with_empty_mask.append(name)
    if record.label not in LESION_CLASSES and drawn:
        audit.normal_with_lesion.append(name)


def audit_families(records: list[Record], audit: BusiAudit) -> None:
    """Count the near-duplicate families that have at least two images in the folder."""
    sizes = Counter(record.group for record in records)
    audit.family_sizes = [n for n in sizes.values() if n > 1]
    for group, labels in labels_of_groups(records).items():
        if len(labels) > 1:
            names = ", ".join(record.image.name for record in records if record.group == group)
            audit.mixed_families.append(f"[{names}]")
    of_busi = [record.image for record in records if record.group.startswith(BUSI_GROUP)]  # not phantoms
    audit.not_compared = [image.name for image in of_busi if image.stem not in families()]


def format_audit(audit: BusiAudit) -> str:
    """Write the findings as text, one finding a line."""
    labels = ", ".join(f"{n} {label}" for label, n in sorted(audit.images.items()))
    lines = [f"BUSI in {audit.folder}: {audit.images.total()} images ({labels})", format_sizes(audit.image_sizes)]
    lines.append("image modes: " + format_counts(audit.image_modes))
    lines.append("mask modes: " + format_counts(audit.mask_modes))
    n, held = len(audit.family_sizes), sum(audit.family_sizes)
    lines.append(f"near-duplicate families: {n}, holding {held} images ({held - n} surplus)")
    for what, names in (
        ("families with conflicting classes", audit.mixed_families),
        ("images not in the near-duplicate list", audit.not_compared),
        ("images with several masks (OR-ed)", audit.several_masks),
        ("lesion images without a mask", audit.lesion_without_mask),
        ("lesion images whose masks are all empty", audit.lesion_with_empty_mask),
        ("normal images with a non-empty mask", audit.normal_with_lesion),
        ("masks whose image is missing", audit.orphan_masks),
        ("other files, skipped", audit.other_files),
        ("CANNOT BE USED, class folders without an image", audit.empty_classes),
        ("CANNOT BE USED, mask size differs from the image", audit.other_size),
    ):
        lines.append(f"{what}: {format_names(names)}")
    lines.append(f"CANNOT BE USED, files that do not open: {len(audit.unreadable)}")
    lines.extend(f"  {sentence}" for sentence in audit.unreadable[:SHOWN])
    if len(audit.unreadable) > SHOWN:
        lines.append(f"  and {len(audit.unreadable) - SHOWN} more")
    return "\n".join(lines)


def format_sizes(sizes: Counter[tuple[int, int]]) -> str:
    """Write the range of widths and heights and the most common size."""
    if not sizes:
        return "image sizes: none"
    widths, heights = zip(*sizes, strict=True)
    (width, height), n = min(sizes.items(), key=lambda item: (-item[1], item[0]))
    return (
        f"image sizes (width x height): {min(widths)}-{max(widths)} x {min(heights)}-{max(heights)}, "
        f"most common {width}x{height} ({n} images)"
    )


def format_counts(counts: Counter[str]) -> str:
    """Write counts, largest first: 'L 538, RGB 79'."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{name} {n}" for name, n in ordered) or "none"


def format_names(names: list[str]) -> str:
    """Write a count and the first names: '9: a, b, ... and 1 more'."""
    if not names:
        return "0"
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{len(names)}: {', '.join(names[:SHOWN])}{more}"
