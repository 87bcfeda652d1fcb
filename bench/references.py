"""What a docstring names, and where it lies: names between backticks, paths of files, commands.

A name is there if the code of the same file has it, if any module defines it, or if it can be imported (`torch.load`).
"""

import ast
import builtins
import importlib.util
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from itertools import groupby
from pathlib import Path
from textwrap import dedent
from typing import Any

from markupsafe import Markup, escape

import ldm_us

CODE = re.compile(r"`([^`\n]+)`")
PATH = re.compile(r"(?<![\w./])(?:[\w-]+/)*[\w-]+\.py\b")  # losses.py, ldm_us/training/losses.py
OURS = re.compile(r"(?<![\w./])(?:ldm_us|weights_convert|tests|bench|docs|lessons|examples)/[\w./-]*\w\.\w+\b")
NAME = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)(?:\(\))?")
MODULE = re.compile(r"python -m ([\w.]+)")
PAPER = re.compile(r"(?:arXiv )?\b(\d{4}\.\d{5})\b")
DATA = re.compile(r".+\.(?:png|csv|jsonl?|html|md|yaml|safetensors)")  # files that a user has, or will have
# Files of other projects that docstrings cite as their source.
ELSEWHERE = {
    "gradio_canny2image.py",
    "cldm.py",
    "comfy/controlnet.py",
    "loaders/lora_conversion_utils.py",
    "scripts/cldm.py",
    "tokenizer.py",
    "tuners/lora/config.py",
    "utils/state_dict_utils.py",
}


class Names:
    """Everything that can be named, and the page on which it stands."""

    def __init__(self, root: Path, pages: dict[str, Any]):
        self.root, self.pages = root, pages
        skipped = {".git", ".venv", "runs", "build"}
        paths = (path.relative_to(root) for path in root.rglob("*.py"))
        self.files = {path.as_posix() for path in paths if path.parts[0] not in skipped}
        self.texts = set().union(*(words_of(Path(page.obj.__file__))[1] for page in pages.values()))
        self.places: dict[str, list[tuple[str, str]]] = {}  # a name -> (module, qualified name) of all that bear it
        for module, page in pages.items():
            for qualname in qualified_names(Path(page.obj.__file__)):
                self.places.setdefault(qualname, []).append((module, qualname))
                if "." in qualname:  # a member, by its own name too
                    self.places.setdefault(qualname.rpartition(".")[2], []).append((module, qualname))

    def place(self, text: str, module: str, qualname: str) -> tuple[str, str] | None:
        """Where a name leads; ("", "") where it is there and has no place on a page; None: nowhere."""
        name = text.removesuffix("()")
        for page in (name, *(name[: dot.start()] for dot in re.finditer(r"\.", name))):  # named in full
            if page in self.pages:
                rest = name.removeprefix(page).lstrip(".")
                if (
                    not rest
                    or (page, rest) in self.places.get(rest, [])
                    or (page == "ldm_us" and rest in ldm_us.__all__)
                ):
                    return page, rest
        around = qualname
        while around:  # a member of the class around comes before a function of the module
            if (module, f"{around}.{name}") in self.places.get(f"{around}.{name}", []):
                return module, f"{around}.{name}"
            around = around.rpartition(".")[0]
        places = self.places.get(name, [])
        here = [place for place in places if place[0] == module]
        if len(here) == 1 or (not here and len(places) == 1):
            return (here or places)[0]
        own, texts = words_of(Path(self.pages[module].obj.__file__))
        if places or set(name.split(".")) <= own or name in self.texts | texts or hasattr(builtins, name):
            return "", ""
        return ("", "") if importable(name) or self.starts_with_a_name(name) else None

    def starts_with_a_name(self, name: str) -> bool:
        """Whether a dotted name is an attribute of something of ours: `model.vae.decode`."""
        first, _, rest = name.partition(".")
        return bool(rest) and all(part in self.places for part in rest.split(".")) and not importable(first)

    def file(self, path: str) -> str | None:
        """The file of ours that a path means, which may leave out the folders above it; None: there is none."""
        return next((file for file in sorted(self.files) if file == path or file.endswith(f"/{path}")), None)


@cache
def qualified_names(path: Path) -> list[str]:
    """The functions, classes, methods, fields and constants that a file defines."""
    return list(defined_in(ast.parse(path.read_text(encoding="utf-8")), ""))


def defined_in(node: ast.Module | ast.ClassDef, prefix: str) -> Iterator[str]:
    """The names that a module or class defines."""
    for child in node.body:
        if isinstance(child, ast.FunctionDef):
            yield prefix + child.name
        elif isinstance(child, ast.ClassDef):
            yield prefix + child.name
            yield from defined_in(child, f"{prefix}{child.name}.")
        elif isinstance(child, ast.Assign | ast.AnnAssign):
            yield from (prefix + name for name in targets_of(child))


def targets_of(node: ast.Assign | ast.AnnAssign) -> list[str]:
    """The names that an assignment sets."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return [part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)]


@cache
def words_of(path: Path) -> tuple[set[str], set[str]]:
    """Every name that the code of a file has, and every text in it that is one name, such as that of a field."""
    words, texts = set(), set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and NAME.fullmatch(node.value):
            texts.add(node.value)
        words |= {
            word for field in ("name", "id", "attr", "arg") if isinstance(word := getattr(node, field, None), str)
        }
    return words, texts


@cache
def importable(name: str) -> bool:
    """Whether a dotted name leads to something: a module, or what a module has."""
    parts = name.split(".")
    try:
        if importlib.util.find_spec(parts[0]) is None:
            return False
        value: Any = importlib.import_module(parts[0])
        for i, part in enumerate(parts[1:], 2):
            value = getattr(value, part, None) or importlib.import_module(".".join(parts[:i]))
    except (ImportError, ValueError):
        return False
    return True


@cache
def trailing_comments(path: Path) -> dict[str, str]:
    """The comment behind each field and constant of a file, by its qualified name."""
    source = path.read_text(encoding="utf-8")
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    alone = {number for number, line in enumerate(source.splitlines(), 1) if line.lstrip().startswith("#")}
    tree = ast.parse(source)
    classes = [(f"{node.name}.", node) for node in tree.body if isinstance(node, ast.ClassDef)]
    return {
        prefix + name: comments[line]
        for prefix, parent in [("", tree), *classes]
        for node in parent.body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for line in (node.end_lineno or 0, node.lineno)
        if line in comments and line not in alone
        for name in targets_of(node)
    }


def to_html(text: str, names: Names, module: str, page: str, qualname: str) -> tuple[str, list[str]]:
    """A docstring of a module, shown on a page -> paragraphs and indented blocks as HTML, and what leads nowhere."""
    blocks, broken = [], []
    for indented, lines in groupby(text.splitlines(), lambda line: line.startswith("    ")):
        block = dedent("\n".join(lines)).strip("\n")
        for part in [block] if indented else re.split(r"\n{2,}", block):
            html, missing = linked(part, names, module, page, qualname)
            if indented and blocks and blocks[-1].endswith("</pre>"):  # lines apart by an empty one
                blocks[-1] = blocks[-1].removesuffix("</pre>") + f"\n\n{html}</pre>"
            elif part:
                blocks.append(f"<pre>{html}</pre>" if indented else f"<p>{html}</p>".replace("\n- ", "<br>\n- "))
            broken += missing
    where = f"{module}.{qualname}".rstrip(".")
    return "\n".join(blocks), [f"{where}: the docstring names {what}, which is nowhere" for what in broken]


def linked(text: str, names: Names, module: str, page: str, qualname: str) -> tuple[str, list[str]]:
    """Escape a text and put its links: -> HTML, and what leads nowhere."""
    up, broken, html, last = "../" * page.count("."), [], Markup(""), 0
    for found in re.finditer(f"{CODE.pattern}|{OURS.pattern}|{PATH.pattern}|{PAPER.pattern}", text):
        html += escape(text[last : found.start()])
        last, said, code = found.end(), found[0], found[1]
        shown = Markup("<code>{}</code>").format(code) if code else escape(said)
        href: str | None = ""
        if PAPER.fullmatch(said):
            href = f"https://arxiv.org/abs/{said.rpartition(' ')[2]}"
        elif PATH.fullmatch(code or said) or OURS.fullmatch(code or said):
            href = href_of_file(code or said, names, up)
        elif NAME.fullmatch(code) and not DATA.fullmatch(code):
            place = names.place(code, module, qualname)
            href = None if place is None else href_of(*place, up)
        elif runs := MODULE.match(code):
            href = "" if importable(runs[1]) else None
        if href is None:
            broken.append(code or said)
        html += Markup('<a href="{}">{}</a>').format(href, shown) if href else shown
    return str(html + escape(text[last:])), broken


def href_of(module: str, qualname: str, up: str) -> str:
    """The address of a name; none for what is private, which has no place on a page."""
    if not module or any(part.startswith("_") and part != "__init__" for part in qualname.split(".")):
        return ""
    return f"{up}{module.replace('.', '/')}.html" + (f"#{qualname}" if qualname else "")


def href_of_file(path: str, names: Names, up: str) -> str | None:
    """The page of a file of ours, nothing for one that has no page, None where there is no such file."""
    if not path.endswith(".py"):
        return "" if (names.root / path).exists() else None
    file = names.file(path)
    if file is None:
        return "" if path in ELSEWHERE else None
    module = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    return href_of(module, "", up) if module in names.pages else ""
