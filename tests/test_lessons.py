"""The lessons: each runs, its hole is checked by the project's own tests, and the book loads nothing from anywhere."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from lessons.cells import LESSONS, NAMES, run
from lessons.check import HOLES, main, verdict

ROOT = LESSONS.parent
WRONG = (  # for each lesson: a part of its solution, and what one might write instead
    ("generator=generator) for generator in generators", "generator=generators[0]) for _ in generators"),
    ("torch.exp(0.5 * logvar", "torch.exp(logvar"),
    ("alpha_bar.sqrt() * z_0 + (1 - alpha_bar).sqrt()", "alpha_bar * z_0 + (1 - alpha_bar)"),
    (" / alpha_bar.sqrt()", ""),
    (" - sigma**2", ""),
    ("return eps_u +", "return eps_c +"),
    ("[angles.cos(), angles.sin()]", "[angles.sin(), angles.cos()]"),
    ("- batch.eps).square()", "- batch.z_0).square()"),
    ("    nn.init.zeros_(conv.bias)\n", ""),
    ("2 * overlap", "overlap"),
)


@pytest.mark.parametrize("name", NAMES)
def test_a_lesson_runs_from_top_to_bottom_shows_pictures_and_leaves_a_hole(name):
    """What it asserts itself holds: lesson 5, that DDIM and DDPM by hand are those of the library."""
    path = LESSONS / f"{name}.py"
    text = path.read_text(encoding="utf-8")
    number = int(name[:2])
    assert text.startswith(f'"""Lesson {number}: ')
    assert len(text.splitlines()) <= 130
    assert f"`python -m lessons.check {number}`" in text
    outputs = [cell.output for cell in run(path, smallest=True)]
    assert any(isinstance(output, Figure) for output in outputs)
    assert str(outputs[0]).strip().startswith(f"# {number}. ")


def is_hole(node, number):
    return isinstance(node, ast.FunctionDef) and node.name == HOLES[number - 1].function


def arguments(path, number):
    return [ast.dump(node.args) for node in ast.parse(path.read_text()).body if is_hole(node, number)]


@pytest.mark.parametrize("name", NAMES)
def test_a_solution_takes_what_the_hole_takes(name):
    hole, solution = (arguments(folder / f"{name}.py", int(name[:2])) for folder in (LESSONS, LESSONS / "solutions"))
    assert len(hole) == 1
    assert re.sub("annotation=.*?\\)", "", str(hole)) == re.sub("annotation=.*?\\)", "", str(solution))


@pytest.fixture(scope="module")
def sentences(tmp_path_factory):
    """What `python -m lessons.check` says of empty holes, of the solutions and of wrong answers, ten sentences each."""
    folder = tmp_path_factory.mktemp("wrong")
    for name, (right, wrong) in zip(NAMES, WRONG, strict=True):
        text = (LESSONS / "solutions" / f"{name}.py").read_text()
        assert text.count(right) == 1
        (folder / f"{name}.py").write_text(text.replace(right, wrong))
    calls = [[], ["--folder", str(LESSONS / "solutions")], ["--folder", str(folder)]]
    code = f"from lessons.check import main\nfor call in {calls}: print('exit code', main(call))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *parts, rest = re.split(r"^exit code (\d)\n", done.stdout, flags=re.MULTILINE)
    assert (rest, parts[1::2]) == ("", ["1", "0", "1"])
    return [part.splitlines() for part in parts[::2]]


def test_an_empty_hole_is_told_what_is_to_be_done(sentences):
    for number, sentence in enumerate(sentences[0], 1):
        assert re.fullmatch(rf"Lesson {number}: the hole of lessons/\d\d_\w+\.py is empty: .+\.", sentence)


def test_every_solution_is_right_by_the_projects_own_tests(sentences):
    for number, (sentence, hole) in enumerate(zip(sentences[1], HOLES, strict=True), 1):
        assert sentence.startswith(f"Lesson {number}: right, for with your {hole.function} in place of the library's, ")


def test_a_plausible_wrong_answer_is_told_which_property_fails(sentences):
    for number, (sentence, hole) in enumerate(zip(sentences[2], HOLES, strict=True), 1):
        assert sentence.startswith(f'Lesson {number}: not yet, for "')
        assert any(test.replace("_", " ") in sentence for test in hole.tests)


def test_the_check_puts_the_library_back_and_names_what_it_cannot_read(tmp_path):
    (tmp_path / f"{NAMES[2]}.py").write_text("def q_sample(:\n")
    assert "cannot be read: SyntaxError" in verdict(3, tmp_path)[1]
    assert "cannot be read: FileNotFoundError" in verdict(4, tmp_path)[1]
    (tmp_path / f"{NAMES[4]}.py").write_text("step = 1\n")
    assert "has no ddim_step" in verdict(5, tmp_path)[1]
    with pytest.raises(ValueError, match="no lesson 11: use 1 to 10"):
        main(["11"])


def test_every_hole_is_a_function_of_the_library_and_its_tests_exist():
    for hole in HOLES:
        text = (ROOT / "ldm_us" / f"{hole.module.replace('.', '/')}.py").read_text()
        assert re.search(rf"^def {hole.function}\(", text, re.MULTILINE)
        tests = (ROOT / "tests" / hole.file).read_text()
        assert [test for test in hole.tests if f"def test_{test}(" not in tests] == []


def test_without_marimo_a_lesson_says_which_extra_is_missing():
    code = f"import sys, runpy; sys.modules['marimo'] = None; runpy.run_path({str(LESSONS / NAMES[4])!r} + '.py')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert 'python -m pip install -e ".[lessons]"' in done.stderr


def test_marimo_finds_no_fault_in_any_lesson():
    pytest.importorskip("marimo")
    command = [sys.executable, "-m", "marimo", "check", *(f"{name}.py" for name in NAMES)]
    done = subprocess.run(command, cwd=LESSONS, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stdout + done.stderr


def test_the_book_has_a_page_a_lesson_with_formulas_and_pictures_and_loads_nothing(tmp_path):
    pytest.importorskip("markdown")
    pytest.importorskip("pygments")
    from lessons.book import write_book

    write_book(tmp_path, NAMES[1:3], smallest=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [*(f"{name}.html" for name in NAMES[1:3]), "index.html"]
    page = (tmp_path / f"{NAMES[1]}.html").read_text()
    assert page.count('<svg class="formula"') > 3
    assert page.count('<svg class="display"') == 1
    assert "<table>" in page
    assert "$" not in re.sub(r"<pre>.*?</pre>|base64,[^\"]*", "", page, flags=re.DOTALL)
    loaded = re.findall(r'(?:src|href)="([^"]*)"', page)
    pages = {f"{NAMES[2]}.html", "index.html"}
    assert {link for link in loaded if not link.startswith(("data:image/png;base64,", "#"))} == pages
    assert "url(" not in page


def test_the_index_names_every_lesson_and_its_question():
    index = (LESSONS / "README.md").read_text(encoding="utf-8")
    for name in NAMES:
        question = ast.get_docstring(ast.parse((LESSONS / f"{name}.py").read_text())).split(": ", 1)[1]
        assert f"| [{int(name[:2])}]({name}.py) | {question} |" in index


def test_every_path_that_the_lessons_name_exists():
    texts = [(LESSONS / f"{name}.py").read_text() for name in NAMES]
    named = {path for text in texts for path in re.findall(r"\b(?:docs|ldm_us|examples|tests)/[\w/]+\.\w+", text)}
    assert [path for path in named if not Path(ROOT, path).is_file()] == []
