"""Write the findings of an audit as text, one finding a line."""

from collections import Counter
from collections.abc import Sequence

from ldm_us.data.audit.findings import FINDINGS, Audit, Families, GroupAudit
from ldm_us.data.audit.summary import SHOWN, describe_reading, format_names


def format_audit(audit: Audit, groups: Families, all_families: bool = False) -> str:
    """Write the findings about one dataset; all_families lists every near-duplicate family and not the first alone."""
    lines = [*describe_reading(audit.reading, covered=audit.covered), format_sizes(audit.image_sizes)]
    lines.append("image modes: " + format_counts(audit.image_modes))
    lines.append("mask modes: " + format_counts(audit.mask_modes))
    lines.extend(format_families(groups, all_families))
    lines.extend(f"{what}: {format_names(audit.found[kind])}" for kind, what in FINDINGS.items())
    lines.append(f"CANNOT BE USED, files that cannot be read: {len(audit.unreadable)}")
    return "\n".join([*lines, *listed(audit.unreadable, False)])


def format_families(groups: Families, all_families: bool) -> list[str]:
    """Write the groups and the near-duplicate families of one dataset."""
    largest = max(groups.groups.values(), default=0)
    n, held = len(groups.families), sum(map(len, groups.families))
    lines = [
        f"groups (patients, cases or known families): {len(groups.groups)}, the largest of {largest} images",
        f"near-duplicate families: {n}, holding {held} images ({held - n} surplus)",
    ]
    names = [", ".join(record.image.name for record in family) for family in groups.families]
    lines.extend(listed(names, all_families, "; --families lists all"))
    families = zip(groups.families, names, strict=True)
    mixed = [f"[{name}]" for family, name in families if len({record.label for record in family}) > 1]
    lines.append(f"families with conflicting classes: {format_names(mixed)}")
    if groups.listed:
        lines.append(f"families of the shipped list: {groups.listed}, found again by comparing: {groups.found_again}")
    if groups.listed or groups.not_listed:
        lines.append(f"images not in the near-duplicate list: {format_names(groups.not_listed)}")
    return lines


def format_groups(audits: Sequence[Audit], groups: GroupAudit, held_out: float, all_families: bool = False) -> str:
    """Write what concerns all datasets together: families across them, and the split of train.py."""
    lines = []
    if len(audits) > 1:
        lines.append(f"near-duplicate families across datasets: {len(groups.crossing)}")
        names = [", ".join(str(record.image) for record in family) for family in groups.crossing]
        lines.extend(listed(names, all_families, "; --families lists all"))
    if not all(audit.usable for audit in audits):
        return "\n".join([*lines, "split: train.py would refuse what cannot be used"])
    if groups.mixed:
        lines.append(f"groups with images of several classes: {groups.mixed} (held out only where no other group is)")
    for side, counts in ((f"split with --held-out {held_out:g}: train", groups.train), ("held out", groups.held_out)):
        lines.append(f"{side} {counts.total()} images ({format_classes(counts) or 'none'})")
    return "\n".join(lines)


def listed(items: Sequence[str], all_items: bool, hint: str = "") -> list[str]:
    """One line for each of the first items, or for every one; the hint says how to see all."""
    shown = [f"  {item}" for item in (items if all_items else items[:SHOWN])]
    return shown if len(shown) == len(items) else [*shown, f"  and {len(items) - SHOWN} more{hint}"]


def format_classes(counts: Counter[str]) -> str:
    """Write the images of each class: '1 benign, 2 malignant'."""
    return ", ".join(f"{n} {label}" for label, n in sorted(counts.items()))


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
