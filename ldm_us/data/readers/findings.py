"""Captions that say what radiologists noted: BI-RADS words from the tables of BUS-BRA and BrEaST, behind the prompt.

"Ultrasound image of a malignant breast, from BUS-BRA, BI-RADS category 4, invasive ductal carcinoma, GE Logiq 7".
Only what a cell says is said: BUS-BRA has category, histology and device; BrEaST has the descriptors of the lexicon
(ACR BI-RADS Atlas, 5th edition) but for the orientation, which is read where a table has it. The side is not said:
--flip would make it wrong.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ldm_us.data.readers.datasets import Reading
from ldm_us.data.readers.tabled import BUSBRA_TABLE
from ldm_us.data.readers.tables import find_table, plain, read_table
from ldm_us.data.records import Record

WORDS = {  # column, its name in small letters alone -> the words for its cell, in the order of a caption
    "shape": "{} shape",
    "orientation": "{} orientation",
    "margin": "{} margin",
    "echogenicity": "{}",
    "echopattern": "{}",
    "posteriorfeatures": "posterior {}",
    "halo": "{} halo",
    "calcifications": "calcifications {}",
    "skinthickening": "skin thickening",
    "birads": "BI-RADS category {}",
    "histology": "{}",
    "device": "{}",
}
PLACES = {"BUS-BRA": ("ID", "Images/{}.png"), "BrEaST": ("Image_filename", "{}")}  # the column that names an image
NOTHING = {"", "-", "nan", "none", "unknown", "notapplicable", "notavailable", "indefinable", "nobirads"}
YES = {"yes", "present", "true"}


def captioned(readings: Sequence[Reading], captions: str | None) -> tuple[list[Reading], list[str]]:
    """The same datasets, with findings in their prompts where `captions` asks for them; and notes.

    ValueError: none of them has a table with findings.
    """
    if captions is None:
        return list(readings), []
    found, notes = [], []
    for reading in readings:
        said = findings_of(reading) if reading.layout in PLACES else {}
        records = [with_findings(record, said.get(record.image, [])) for record in reading.records]
        changed = sum(new != old for new, old in zip(records, reading.records, strict=True))
        notes.append(f"{reading.folder}: {changed} of {len(records)} captions say findings.")
        found.append(replace(reading, records=records))
    if all(new.records == old.records for new, old in zip(found, readings, strict=True)):
        raise ValueError("--captions findings: no table of --data has any. BUS-BRA and BrEaST have.")
    return found, notes


def with_findings(record: Record, words: Sequence[str]) -> Record:
    """A record whose prompt says these words too."""
    return replace(record, prompt=", ".join([record.prompt, *words]))


def findings_of(reading: Reading) -> dict[Path, list[str]]:
    """{image: the words for what its row says} of a dataset with a table."""
    column, place = PLACES[reading.layout]
    table = reading.root / BUSBRA_TABLE if reading.layout == "BUS-BRA" else find_table(reading.root)
    return {reading.root / place.format(cells[column]): words_of(cells) for _, cells in read_table(table, (column,))}


def words_of(cells: dict[str, str]) -> list[str]:
    """The words for the cells of a row, in the order of WORDS; what a cell leaves open is not said."""
    by_name = {plain(name): value for name, value in cells.items()}
    return [word for name, form in WORDS.items() if (word := said(form, by_name.get(name, "")))]


def said(form: str, cell: str) -> str:
    """One finding in words: "not circumscribed - angular&indistinct" is read as a radiologist says it."""
    text = re.sub(r"\s*@.*", "", cell.strip())  # the frequencies of BUS-BRA's devices
    text = " and ".join(part.strip() for part in text.split("&"))
    text = re.sub(r"\s+-\s+|\s*;\s*", ", ", text)
    if plain(text) in NOTHING:
        return ""
    if plain(text) == "no":
        return f"no {form.format('features' if form == WORDS['posteriorfeatures'] else '')}".strip().replace("  ", " ")
    return form.format("" if plain(text) in YES else text).strip()
