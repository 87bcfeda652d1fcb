"""Spreadsheets: the cells of an .xlsx come out as Excel shows them, and a damaged one is one clear sentence."""

import contextlib
import io
import itertools
import zipfile
from pathlib import Path
from xml.sax.saxutils import escape

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openpyxl import Workbook

from ldm_us.data.readers.datasets import read_dataset
from ldm_us.data.readers.tables import read_xlsx
from tests.data.readers.test_datasets import breast, dataset_b

MAIN = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'


SHARED = (
    '<Override PartName="/xl/sharedStrings.xml" '
    'ContentType="application/vnd.openxmlformats-officedocument.spreadsheetml.sharedStrings+xml"/></Types>'
)


def write_parts(path: Path, sheet: str, texts: str = "", prolog: str = "") -> Path:
    """Write a spreadsheet whose rows and shared texts are this XML."""
    whole = io.BytesIO()
    Workbook().save(whole)  # what else belongs into one
    with zipfile.ZipFile(whole) as given, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        parts = {name: given.read(name).decode() for name in given.namelist()}
        parts["[Content_Types].xml"] = parts["[Content_Types].xml"].replace("</Types>", SHARED)
        parts["xl/sharedStrings.xml"] = f"<sst {MAIN}>{texts}</sst>"
        parts["xl/worksheets/sheet1.xml"] = f"{prolog}<worksheet {MAIN}><sheetData>{sheet}</sheetData></worksheet>"
        for name, part in parts.items():
            archive.writestr(name, part)
    return path


def write_xlsx(path: Path, rows: list[list[str]]) -> Path:
    """Write rows as Excel does: numbers in their cells, texts shared, empty cells and empty rows left out."""
    texts: list[str] = []
    sheet = ""
    for nth, row in enumerate(rows, start=1):
        cells = ""
        for column, value in zip("ABCDEFGH", row, strict=False):
            if value.isdecimal() and value.isascii():
                cells += f'<c r="{column}{nth}"><v>{value}</v></c>'
            elif value:
                texts.append(value)
                cells += f'<c r="{column}{nth}" s="1" t="s"><v>{len(texts) - 1}</v></c>'
        sheet += f'<row r="{nth}" spans="1:8">{cells}</row>' if cells else ""
    return write_parts(path, sheet, "".join(f'<si><t xml:space="preserve">{escape(t)}</t></si>' for t in texts))


CELLS = st.lists(st.lists(st.text("ab <&>7.\u00e9", max_size=4), max_size=6), max_size=5)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(CELLS)
def test_the_cells_come_back_at_their_places(tmp_path, rows):
    expected = []
    for nth, row in enumerate(rows, start=1):
        while row and not row[-1]:
            row = row[:-1]
        if row:
            expected.append((nth, row))
    assert read_xlsx(write_xlsx(tmp_path / "t.xlsx", rows)) == expected


def test_runs_inline_texts_and_formulas_are_read_and_phonetic_readings_are_not(tmp_path):
    texts = "<si><r><t>ma</t></r><r><rPr><b/></rPr><t>lignant</t></r><rPh sb='0' eb='1'><t>x</t></rPh></si><si/>"
    sheet = (
        '<row><c t="s"><v>0</v></c><c t="inlineStr"><is><t>benign</t></is></c>'
        '<c t="str"><f>A1</f><v>normal</v></c><c/><c t="s"><v>1</v></c><c><v>4.5</v></c></row>'
    )
    assert read_xlsx(write_parts(tmp_path / "t.xlsx", sheet, texts)) == [
        (1, ["malignant", "benign", "normal", "", "", "4.5"])
    ]


@pytest.mark.parametrize(("reference", "column"), [("A1", 0), ("Z1", 25), ("AA1", 26), ("AB1", 27), ("BA1", 52)])
def test_letters_name_columns_in_base_26(tmp_path, reference, column):
    sheet = f'<row r="1"><c r="{reference}"><v>1</v></c></row>'
    assert read_xlsx(write_parts(tmp_path / "t.xlsx", sheet)) == [(1, [""] * column + ["1"])]


@pytest.mark.parametrize("make", [breast, dataset_b])
def test_the_published_spreadsheet_reads_like_its_csv(tmp_path, make):
    root = make(tmp_path)
    expected = read_dataset(root)
    (table,) = root.glob("*.csv")
    separator = ";" if make is breast else ","
    write_xlsx(root / "published.xlsx", [line.split(separator) for line in table.read_text().splitlines()])
    assert read_dataset(root) == expected, "the CSV counts where both are there"
    table.unlink()
    assert read_dataset(root) == expected


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"PK no zip", "not a zip"),
        (b"", "not a zip"),
    ],
)
def test_what_is_no_spreadsheet_is_one_sentence_that_says_what_to_do(tmp_path, content, problem):
    path = tmp_path / "t.xlsx"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"t\.xlsx cannot be read .*{problem}.*\. Save its first sheet as CSV\."):
        read_xlsx(path)


def test_a_missing_sheet_and_a_text_that_is_not_there_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "t.xlsx", "w") as archive:
        archive.writestr("other.xml", "<a/>")
    with pytest.raises(ValueError, match="cannot be read as a spreadsheet"):
        read_xlsx(tmp_path / "t.xlsx")
    with pytest.raises(ValueError, match="cannot be read as a spreadsheet"):
        read_xlsx(write_parts(tmp_path / "t.xlsx", '<row><c t="s"><v>3</v></c></row>', "<si><t>a</t></si>"))


def test_a_part_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("ldm_us.data.readers.tables.LARGEST", 50)
    with pytest.raises(ValueError, match="more than 50 bytes"):
        read_xlsx(write_xlsx(tmp_path / "t.xlsx", [["a"]]))


def test_a_sheet_that_names_rows_beyond_all_sheets_is_refused_and_not_counted_through(tmp_path):
    sheet = '<row r="1"><c r="A1"><v>1</v></c></row><row r="999999999999"><c r="A999999999999"><v>2</v></c></row>'
    with pytest.raises(ValueError, match=r"more than 1,048,576 rows\)\. Save its first sheet as CSV\.$"):
        read_xlsx(write_parts(tmp_path / "t.xlsx", sheet))


def test_entities_that_grow_are_refused(tmp_path):
    """XML's own bomb: every entity is ten of the one before."""
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">' + "".join(
        f'<!ENTITY {name} "{f"&{before};" * 10}">' for before, name in itertools.pairwise("abcdefghij")
    )
    sheet = '<row r="1"><c r="A1" t="inlineStr"><is><t>&j;</t></is></c></row>'
    path = write_parts(tmp_path / "t.xlsx", sheet, prolog=f"{bomb}]>")
    with pytest.raises(ValueError, match="cannot be read as a spreadsheet"):
        read_xlsx(path)


def test_without_openpyxl_the_sentence_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr("ldm_us.runtime.checks.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"openpyxl is not installed\. Install the extra spreadsheets: "):
        read_xlsx(write_xlsx(tmp_path / "t.xlsx", [["a"]]))


def sheet_bytes() -> bytes:
    """A spreadsheet of one cell in as few parts as openpyxl reads."""
    whole = io.BytesIO()
    book = Workbook()
    book.active.cell(1, 1, 1)
    book.save(whole)
    buffer = io.BytesIO()
    with zipfile.ZipFile(whole) as given, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in given.namelist():
            if not name.startswith(("docProps", "xl/theme")):
                archive.writestr(name, given.read(name))
    return buffer.getvalue()


WHOLE = sheet_bytes()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, len(WHOLE)), st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), max_size=4))
def test_a_damaged_spreadsheet_reads_or_raises_value_error_and_nothing_else(tmp_path, length, changes):
    content = bytearray(WHOLE)
    for place, value in changes:
        content[place] = value
    (tmp_path / "t.xlsx").write_bytes(content[:length] if length > len(WHOLE) // 2 else content)
    with contextlib.suppress(ValueError):
        assert isinstance(read_xlsx(tmp_path / "t.xlsx"), list)
