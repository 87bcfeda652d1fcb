"""What a training should know of its masks: lesions that nobody drew, and lesions that a crop cuts off."""

from collections.abc import Sequence

from ldm_us.data.audit.summary import format_names, named, showing_lesions
from ldm_us.data.decoded import Decoded
from ldm_us.data.readers.left_out import more_than_a_few
from ldm_us.data.records import Record


def check_hints(records: Sequence[Record], drawn: Sequence[bool]) -> list[str]:
    """Note the lesion images without a drawn lesion: a ControlNet learns from them that an empty mask has one.

    ValueError: more than a few are so, or all images.
    """
    if not any(drawn):
        raise ValueError(
            f"--data: the masks of all {len(records)} training images are empty, so a ControlNet has nothing to learn "
            "from. Give images with drawn lesions."
        )
    shown = showing_lesions(record for record, has_lesion in zip(records, drawn, strict=True) if has_lesion)
    lesions = [i for i, record in enumerate(records) if record.label in shown]
    empty = [records[i].image.name for i in lesions if not drawn[i]]
    if not empty:
        return []
    found = f"of {len(lesions)} {named(shown)}, these have no lesion in their masks or no mask: {format_names(empty)}"
    if more_than_a_few(len(empty), len(lesions)):
        raise ValueError(
            f"--data: {found}. A ControlNet would learn to put a lesion where the mask has none. Draw their lesions, "
            "give them the class normal, or remove them."
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
