"""The table of a dataset (CSV, or the first sheet of an .xlsx): its rows, and the classes and files that they name."""

import csv
import re
import warnings
import zipfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import MappingProxyType

from ldm_us.runtime.checks import check_extra

LARGEST = 50_000_000  # bytes of a spreadsheet when unpacked; tables of datasets have less than one million
LAST_ROW = 2**20  # of a sheet in Excel; a file that names a later one would keep us counting
Row = tuple[str, dict[str, str]]  # "PATH line N", for sentences about it; the text of its cells by column name


def find_table(folder: Path) -> Path:
    """Find the one table of a folder: its only .csv, else its only .xlsx."""
    files = [path for path in sorted(folder.iterdir()) if not path.name.startswith((".", "~"))]  # ~: open in Excel
    for suffix in (".csv", ".xlsx"):
        tables = [path for path in files if path.suffix.lower() == suffix]
        if len(tables) == 1:
            return tables[0]
        if tables:
            names = ", ".join(path.name for path in tables)
            raise ValueError(f"{folder} holds several tables ({names}). Keep the one with the classes.")
    raise ValueError(f"{folder} holds no table with the classes. Put the dataset's spreadsheet there, saved as CSV.")


def read_table(
    path: Path, needed: Sequence[str], also: Mapping[str, Sequence[str]] = MappingProxyType({})
) -> list[Row]:
    """Read a table whose first row names the columns, of which `needed` must be there; empty rows are left out.

    A needed column may be named in other letters (`image name` for Image_name), or as `also` has it, and gets the name
    that was asked for.
    """
    rows = read_xlsx(path) if path.suffix.lower() == ".xlsx" else read_csv(path)
    if not rows:
        raise ValueError(f"{path} is empty. Its first row must name the columns {', '.join(needed)}.")
    (_, header), *body = rows
    columns = [name.strip() for name in header]
    for column in needed:
        if column not in columns:
            names = [plain(name) for name in (column, *also.get(column, ()))]
            fitting = sorted((names.index(plain(name)), i) for i, name in enumerate(columns) if plain(name) in names)
            if fitting:
                columns[fitting[0][1]] = column
        if columns.count(column) != 1:
            problem = "has no column" if column not in columns else "has more than one column"
            raise ValueError(f"{path} {problem} {column}, only {', '.join(columns)}. Name it in the first row.")
    table = []
    for line, values in body:
        if any(value.strip() for value in values[len(columns) :]):
            raise ValueError(f"{path} line {line} has more cells than the first row has names. Quote commas in a text.")
        cells = {name: value.strip() for name, value in zip(columns, values, strict=False)}
        if any(cells.values()):
            table.append((f"{path} line {line}", dict.fromkeys(columns, "") | cells))
    if not table:
        raise ValueError(f"{path} has no row below the names of its columns. Add one a line for each image.")
    return table


def plain(name: str) -> str:
    """Write the name of a column in small letters alone: 'Patient ID', patient_id and PatientID are patientid."""
    return re.sub(r"[\s_-]+", "", name.lower())


def note_unread(path: Path, filled: Iterable[str], used: Collection[str], notes: list[str]) -> None:
    """Note the columns that hold something and were not used."""
    unread = sorted({name for name in filled if name and name not in used})
    if unread:
        notes.append(f"columns of {path.name} that are not read: {', '.join(unread)}")


def read_csv(path: Path) -> list[tuple[int, list[str]]]:
    """Read the rows of a CSV with their line numbers; separated by commas, or by semicolons as Excel does in Europe."""
    text = read_text(path)
    first = text.split("\n", 1)[0]
    lines = csv.reader(text.splitlines(keepends=True), delimiter=";" if first.count(";") > first.count(",") else ",")
    try:
        return [(lines.line_num, values) for values in lines if values]
    except csv.Error as error:
        raise ValueError(f"{path} line {lines.line_num} is not CSV ({error}). Save the table as CSV again.") from error


def read_xlsx(path: Path) -> list[tuple[int, list[str]]]:
    """Read the first sheet of an .xlsx: (row number, texts of its cells from column A on) of every row with a text.

    Within bounds on what a small file can unpack to.
    """
    check_extra("spreadsheets", "openpyxl")
    from openpyxl import load_workbook

    rows = []
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(part.file_size for part in archive.infolist()) > LARGEST:
                raise ValueError(f"it unpacks to more than {LARGEST:,} bytes")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of styles and menus, which say nothing about the cells
            with closing(load_workbook(path, read_only=True, data_only=True)) as book:
                for nth, row in enumerate(book.worksheets[0].iter_rows(values_only=True), start=1):
                    if nth > LAST_ROW:
                        raise ValueError(f"it has more than {LAST_ROW:,} rows")
                    cells = ["" if value is None else str(value) for value in row]
                    while cells and not cells[-1]:
                        cells.pop()
                    if cells:
                        rows.append((nth, cells))
    except Exception as error:  # whatever openpyxl stumbles over in a damaged file
        raise ValueError(f"{path} cannot be read as a spreadsheet ({error}). Save its first sheet as CSV.") from error
    return rows


def read_text(path: Path) -> str:
    """Read a text file in UTF-8, with or without a byte order mark."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}). Save it with the encoding UTF-8.") from error


def file_in(folder: Path, name: str, where: str) -> Path:
    """Find the file that a cell names, which must lie in the folder or below it."""
    path = PurePosixPath(name)
    if path.is_absolute() or PureWindowsPath(name).is_absolute() or ".." in path.parts:
        raise ValueError(f"{where}: {name!r} is outside {folder}. Put the file there, and name it from that folder.")
    if not name or not (folder / path).is_file():
        raise ValueError(f"{where}: {name!r} is not a file in {folder}. Add the file, or leave it out.")
    return folder / path


def check_once(named: Sequence[tuple[str, str]]) -> None:
    """Refuse a file that two lines name; each name comes with where it stands."""
    first: dict[str, str] = {}
    for name, where in named:
        if name in first:
            raise ValueError(f"{where}: {name!r} is named by {first[name]} already. Remove one of the two.")
        first[name] = where
