"""A flat folder of sample.py, read from its manifest: records, those of one mask or one --init in one group.

Samples of one mask share their lesion, samples of one --init the whole scene: no independent images. The empty mask of
the class normal makes no family, as in the layout of BUSI.
"""

import json
from pathlib import Path
from typing import Any

from ldm_us.data.near_duplicates import join
from ldm_us.data.records import UNKNOWN, Record
from ldm_us.synthesis.folder import MANIFEST


def read_samples(folder: Path) -> list[Record]:
    """List the samples of a manifest. Raise ValueError, naming file and line, for what sample.py did not write."""
    manifest, records, sources = folder / MANIFEST, [], []
    try:
        lines = manifest.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{manifest}: not a manifest of sample.py ({error}). Sample again.") from error
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            image, label, prompt = folder / entry["file_name"], entry.get("class") or UNKNOWN, entry.get("prompt", "")
            if not isinstance(label, str) or not isinstance(prompt, str):
                raise TypeError("class or prompt is not a text")
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{manifest}, line {number}: not a line of sample.py ({error}). Sample again.") from error
        sources.append(sources_of(entry, image, label))
        records.append((image, label, prompt))
    names = join(
        {name for own in sources for name in own}, [(own[0], other) for own in sources for other in own[1:]]
    )  # transitive: two masks of one --init are one group
    return [
        Record(image, (), label, prompt, names[own[0]])
        for (image, label, prompt), own in zip(records, sources, strict=True)
    ]


def sources_of(entry: dict[str, Any], image: Path, label: str) -> list[str]:
    """What a sample was made from: its --init and its mask, whichever it has; without either, itself."""
    fields = ["init_sha256", *(["mask_sha256"] if label != "normal" else [])]
    return [f"sample {field} {entry[field]}" for field in fields if entry.get(field)] or [str(image)]
