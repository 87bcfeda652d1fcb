"""Read the cells of an .xlsx file with the standard library.   ECMA-376 (Office Open XML), part 1, section 18.

An .xlsx is a zip of XML: `xl/worksheets/sheet1.xml` holds rows of cells, and `xl/sharedStrings.xml` the texts that
cells point to. Formats are not read, so a date is a number here.
"""

import lzma
import struct
import zipfile
import zlib
from pathlib import Path
from xml.etree import ElementTree

SHEET = "xl/worksheets/sheet1.xml"
TEXTS = "xl/sharedStrings.xml"
UNREADABLE = (  # what zipfile and ElementTree raise on damaged and encrypted files
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, OSError, RuntimeError),
    *(ElementTree.ParseError, LookupError, ValueError),
)
LARGEST = 50_000_000  # bytes of one part when unpacked; tables of datasets have less than one million


def read_xlsx(path: Path) -> list[tuple[int, list[str]]]:
    """Read the first sheet: (row number, texts of its cells from column A on) of every row that is not empty."""
    try:
        with zipfile.ZipFile(path) as archive:
            texts = [text_of(item) for item in read_part(archive, TEXTS)] if TEXTS in archive.namelist() else []
            rows = [row for row in read_part(archive, SHEET).iter() if tag_of(row) == "row"]
        table = []
        for nth, row in enumerate(rows, start=1):
            cells = {}
            for place, cell in enumerate(row):
                cells[column_of(cell.get("r", ""), place)] = value_of(cell, texts)
            if cells:
                table.append((int(row.get("r", nth)), [cells.get(i, "") for i in range(max(cells) + 1)]))
        return table
    except UNREADABLE as error:
        raise ValueError(f"{path} cannot be read as a spreadsheet ({error}). Save its first sheet as CSV.") from error


def read_part(archive: zipfile.ZipFile, name: str) -> ElementTree.Element:
    """Parse one XML file of the archive."""
    if archive.getinfo(name).file_size > LARGEST:
        raise ValueError(f"{name} has more than {LARGEST:,} bytes")
    return ElementTree.fromstring(archive.read(name))


def tag_of(element: ElementTree.Element) -> str:
    """Name of an element without its namespace, which differs between two generations of the standard."""
    return element.tag.rpartition("}")[2]


def text_of(item: ElementTree.Element) -> str:
    """Join the runs of a text, without the phonetic readings (rPh) that may follow them."""
    parts = [item] if tag_of(item) == "t" else [child for child in item if tag_of(child) != "rPh"]
    return "".join(part.text or "" if tag_of(part) == "t" else text_of(part) for part in parts)


def column_of(reference: str, place: int) -> int:
    """'A7' -> 0, 'AB7' -> 27; a cell without a reference stands at its place in the row."""
    letters = reference.rstrip("0123456789")
    number = 0
    for letter in letters:
        number = 26 * number + ord(letter) - ord("A") + 1
    return number - 1 if letters else place


def value_of(cell: ElementTree.Element, texts: list[str]) -> str:
    """Text of a cell: a shared or an inline text, or the number as it is written."""
    value = next((child.text or "" for child in cell if tag_of(child) == "v"), "")
    if cell.get("t") == "s" and value:
        return texts[int(value)]
    if cell.get("t") == "inlineStr":
        return "".join(text_of(child) for child in cell if tag_of(child) == "is")
    return value
