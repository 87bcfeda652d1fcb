"""The reference (`make docs`) and the documents: what they name is there, and no page loads anything from anywhere."""

import importlib
import re
import subprocess
from html import unescape
from pathlib import Path
from types import SimpleNamespace

import pytest

import ldm_us
from bench.reference import main, modules, write_pages
from bench.references import ELSEWHERE, OURS, Names, qualified_names, to_html, trailing_comments, words_of

ROOT = Path(__file__).resolve().parents[1]
HISTORY = {"CHANGELOG.md", "docs/LOG.md"}  # they name what was there then
ATTRIBUTE = re.compile(r'\b(?:href|src)="([^"]+)"')


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """All pages, without the source; nothing in them is broken."""
    folder = tmp_path_factory.mktemp("docs")
    assert write_pages(folder, source=False) == [], "mend the docstring, or what it names; `make docs` says the same"
    return folder


@pytest.fixture(scope="module")
def names():
    return Names(ROOT, {name: SimpleNamespace(obj=importlib.import_module(name)) for name in modules()})


def told(names, text, module="ldm_us.training.losses", qualname="ddpm_loss"):
    """A docstring as HTML, and what of it leads nowhere."""
    html, broken = to_html(text, names, module, module, qualname)
    return html, [sentence.split(" names ")[1].split(",")[0] for sentence in broken]


def test_every_module_has_a_page_and_the_first_page_begins_with_the_public_names(out):
    pages = {path.relative_to(out).with_suffix("").as_posix().replace("/", ".") for path in out.rglob("*.html")}
    assert pages == {*modules(), "index"}
    sources = {*ROOT.glob("ldm_us/**/*.py"), *ROOT.glob("weights_convert/**/*.py")}
    assert len(modules()) == len([path for path in sources if path.name != "__main__.py"]) + 2, "train.py and sample.py"
    links = re.findall(r'<dt><a href="([^"]+)">', (out / "index.html").read_text())
    assert links[: len(ldm_us.__all__)] == [f"ldm_us.html#{name}" for name in ldm_us.__all__]


def test_every_link_of_every_page_leads_to_a_page_and_a_place_that_is_there(out):
    script = re.compile(r"<script.*?</script>", re.DOTALL)
    pages = {path: script.sub("", path.read_text()) for path in out.rglob("*.html")}
    places = {path: set(re.findall(r'\bid="([^"]+)"', text)) for path, text in pages.items()}
    count = 0
    for path, text in pages.items():
        for link in {link for link in ATTRIBUTE.findall(text) if ":" not in link}:
            file, _, anchor = link.partition("#")
            target = (path.parent / file).resolve() if file else path
            assert target in pages or target.name == "search.js", f"{path.name}: {link}"
            assert not anchor or anchor in places[target], f"{path.relative_to(out)}: {link}"
            count += 1
    assert count > 3000


def test_the_pages_load_nothing_from_elsewhere_and_know_nothing_of_this_machine(out):
    for path in (path for path in out.rglob("*") if path.is_file()):
        text = path.read_text()
        assert re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\W?(?:https?:)?//", text) == [], path.name
        assert re.findall(r"(?:url\(|@import)\W*(?:https?:)?//", text) == [], path.name
        assert str(ROOT) not in text
        assert str(Path.home()) not in text


def test_a_page_shows_what_the_source_says_docstrings_and_the_comments_of_fields(out):
    text = unescape(re.sub(r"<[^>]+>", "", (out / "ldm_us" / "config.html").read_text()))
    assert "the square roots of the betas are linear in t" in text
    text = unescape(re.sub(r"<[^>]+>", "", (out / "ldm_us" / "networks" / "unet.html").read_text()))
    assert "(b, 4, h, w), (b,) int64, (b, m, d) -> eps_hat (b, 4, h, w)." in text
    assert "Alias for field number" not in text, "NamedTuple says so, we do not"
    assert "Initialize internal Module state" not in text, "torch says so, we do not"


def test_plain_text_stays_what_it_is():
    text = "a_b_c, z_t * x_t * y, 0*1*2, <b>, [x](y), # 1\n\n    z = x * y  # as it *stands*\n\n    b\n"
    text += "or\n- c\n\n-> the end"
    html, broken = to_html(text, Names(ROOT, {}), "m", "m", "f")
    assert broken == []
    assert html == (
        "<p>a_b_c, z_t * x_t * y, 0*1*2, &lt;b&gt;, [x](y), # 1</p>\n"
        "<pre>z = x * y  # as it *stands*\n\nb</pre>\n<p>or<br>\n- c</p>\n<p>-&gt; the end</p>"
    )


@pytest.mark.parametrize(
    "text",
    [
        "`q_sampel`",
        "`ddpm_loss.nothing`",
        "`torch.lod`",
        "`Stage.prepar`",
        "ldm_us/diffusion/ddmp.py",
        "`losess.py`",
        "losess.py",
        "tests/golden/nothing.npz",
        "`python -m ldm_us.evaluations realism`",
    ],
)
def test_a_reference_that_leads_nowhere_is_found(names, text):
    assert told(names, f"See {text}.")[1] == [text.strip("`")]


@pytest.mark.parametrize(
    ("text", "href"),
    [
        ("`min_snr_weight`", "../../ldm_us/training/losses.html#min_snr_weight"),
        ("`q_sample`", "../../ldm_us/diffusion/ddpm.html#q_sample"),
        ("`Stage.prepare`", "../../ldm_us/training/stages.html#Stage.prepare"),
        ("ldm_us/diffusion/ddpm.py", "../../ldm_us/diffusion/ddpm.html"),
        ("networks/lora.py", "../../ldm_us/networks/lora.html"),
        ("`sample.py`", "../../sample.html"),
        ("`ldm_us.generate`", "../../ldm_us.html#generate"),
        ("arXiv 2006.11239", "https://arxiv.org/abs/2006.11239"),
        ("`torch.load`", None),
        ("`use_control`", None),
        ("`python -m ldm_us.evaluation realism`", None),
        ("`metadata.jsonl`", None),
        ("tests/golden/fill.py", None),
    ],
)
def test_a_reference_leads_to_its_page_and_one_that_has_none_is_let_be(names, text, href):
    html, broken = told(names, f"See {text}.")
    assert broken == []
    assert re.findall(r'href="([^"]+)"', html) == ([href] if href else [])


def test_a_name_leads_to_the_member_of_its_own_class_before_anything_else(names):
    html, _ = told(names, "`forward`", "ldm_us.networks.unet", "Level.block")
    assert 'href="../../ldm_us/networks/unet.html#Level.forward"' in html


def test_files_of_other_projects_that_are_excepted_are_still_cited():
    files = [*ROOT.glob("ldm_us/**/*.py"), *ROOT.glob("weights_convert/**/*.py")]
    text = "\n".join(path.read_text() for path in files)
    assert {path for path in ELSEWHERE if path not in text} == set()


def test_a_comment_belongs_to_the_field_on_whose_line_it_ends(tmp_path):
    path = tmp_path / "a.py"
    path.write_text(
        'A = 1  # one\n# alone\nB = (\n    2,\n)  # two\n\n\nclass C:\n    x: int = 3  # "three"\n    y: int\n'
    )
    assert trailing_comments(path) == {"A": "one", "B": "two", "C.x": '"three"'}
    assert qualified_names(path) == ["A", "B", "C", "C.x", "C.y"]


def test_make_docs_runs_what_these_tests_name_and_says_what_is_broken(tmp_path, monkeypatch, capsys):
    plan = subprocess.run(["make", "-n", "docs"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "bench.reference --out runs/docs" in plan
    monkeypatch.setattr("bench.reference.write_pages", lambda out: ["a: the docstring names b, which is nowhere"])
    with pytest.raises(ValueError, match="--overwrite"):
        main(["--out", str(tmp_path)])
    assert main(["--out", str(tmp_path), "--overwrite"]) == 1
    assert capsys.readouterr().err == "a: the docstring names b, which is nowhere\n"
    monkeypatch.setattr("bench.reference.pdoc", None)
    with pytest.raises(ValueError, match=r"python -m pip install -e '\.\[docs\]'"):
        main(["--out", str(tmp_path)])


def documents():
    """Every Markdown file of the repository."""
    skipped = {".venv", "runs", "build", ".git"}
    found = (path for path in sorted(ROOT.rglob("*.md")) if path.relative_to(ROOT).parts[0] not in skipped)
    return [path for path in found if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)]


def anchors(path):
    """The places of a Markdown file that a link can name, as GitHub writes them."""
    titles = re.findall(r"^#+ (.+?)\s*$", path.read_text(), re.MULTILINE)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)|`", r"\1", title).lower() for title in titles]
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in plain}


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_link_of_a_document_leads_to_a_file_and_a_place_that_are_there(path):
    text = re.sub(r"^    .*$|```.*?```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(<?([^)\s>]+)>?\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), f"{path.name}: {link}"
        if line := re.fullmatch(r"L(\d+)", anchor):
            assert int(line[1]) <= len(target.read_text().splitlines()), f"{path.name}: {link}"
        elif anchor:
            assert anchor in anchors(target), f"{path.name}: {link}"


def test_every_file_of_ours_that_a_document_names_exists():
    for path in documents():
        if path.relative_to(ROOT).as_posix() not in HISTORY:
            text = path.read_text()
            new = re.findall(r"^\+\+\+ b/(\S+)$", text, re.MULTILINE)  # files that a diff of the page adds
            missing = [name for name in OURS.findall(text) if not (ROOT / name).exists() and name not in new]
            assert missing == [], path.name


def test_every_name_between_backticks_in_the_tour_is_one_of_the_code(names):
    text = (ROOT / "docs" / "tour.md").read_text()
    tests = {name for path in ROOT.glob("tests/**/test_*.py") for name in qualified_names(path)}
    words = set().union(*(words_of(Path(page.obj.__file__))[0] for page in names.pages.values())) | names.texts
    for code in set(re.findall(r"`([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)`", text)) - tests:
        if code.endswith(".py"):
            assert names.file(code), code
        else:
            assert code in names.places or set(code.split(".")) <= words, code
