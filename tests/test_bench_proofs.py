"""The table of proofs in docs/audit.md: it names tests that are there, and is rewritten by what they say alone."""

import shlex
from pathlib import Path

import pytest

from bench import proofs

HEAD = "# Page\n\n| claim | command | result |\n|---|---|---|\n"
FOOT = "\nRun on nothing yet.\n"


@pytest.fixture
def page(tmp_path, monkeypatch):
    """A function: a page of these rows in place of docs/audit.md; -> its path."""

    def write(*rows):
        path = tmp_path / "audit.md"
        path.write_text(HEAD + "".join(f"| {claim} | `{command}` | not run |\n" for claim, command in rows) + FOOT)
        monkeypatch.setattr(proofs, "PAGE", path)
        return path

    return write


def test_every_row_of_the_table_is_read_and_names_tests_that_are_there():
    text = proofs.PAGE.read_text(encoding="utf-8")
    rows = list(proofs.rows_of(text))
    assert len(rows) == text.count("| `python -m pytest") > 10
    for row in rows:
        files = [word for word in shlex.split(row["command"]) if word.startswith("tests")]
        assert files
        for file in files:
            assert (proofs.ROOT / file).exists(), row["claim"]


def test_a_proof_that_holds_is_written_with_what_it_took_and_the_machine(page, capsys):
    path = page(("one", "python -c 'print(\"12 passed\")'"), ("two", "python --version"))
    assert proofs.main(["--write", "--only", "ONE"]) == 0
    text = path.read_text()
    assert "| `python -c 'print(\"12 passed\")'` | 12 tests, 0 s |" in text
    assert "| two | `python --version` | not run |" in text
    assert "nothing yet" not in text
    assert "1 of 1 hold" in capsys.readouterr().out


def test_where_one_proof_fails_nothing_is_written(page, capsys):
    path = page(("holds", "python --version"), ("fails", "python -c 'raise SystemExit(\"this is wrong\")'"))
    before = Path(path).read_text()
    assert proofs.main(["--write"]) == 1
    assert path.read_text() == before
    said = capsys.readouterr()
    assert "FAILS" in said.out
    assert "this is wrong" in said.err


def test_a_word_that_no_claim_has_is_an_error(page):
    page(("one", "python --version"))
    with pytest.raises(ValueError, match="no claim"):
        proofs.main(["--only", "unicorn"])
