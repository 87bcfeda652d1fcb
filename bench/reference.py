"""The reference of every module as pages, by pdoc from the docstrings; what a docstring names must be there.

    make docs          # python -m bench.reference --out runs/docs --overwrite

Our docstrings are plain text, not Markdown: paragraphs, indented lines as they stand, `names` between backticks. Each
name becomes a link, as does each path of a module. A name or path that leads nowhere is an error, and so is whatever
pdoc warns of.
"""

import argparse
import inspect
import pkgutil
import sys
import types
import typing
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from markupsafe import Markup

import ldm_us
import weights_convert
from bench.references import Names, to_html, trailing_comments
from ldm_us.runtime.command_line import EXIT_CODES, short_usage
from ldm_us.runtime.entry import run_command
from ldm_us.runtime.help_page import describe

try:
    import pdoc.doc
    import pdoc.render
except ImportError:
    pdoc = None  # type: ignore[assignment]

ROOT = Path(__file__).resolve().parents[1]
# From the ground up, as in docs/tour.md; what is not named here comes after.
PARTS = (
    "config",
    "networks",
    "diffusion",
    "files",
    "runtime",
    "display",
    "data",
    "training",
    "synthesis",
    "evaluation",
)


def modules() -> list[str]:
    """Every module that has a page: those of both packages and the two recipes; a __main__ is a command line."""
    names = []
    for package in (ldm_us, weights_convert):
        inside = pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
        names += [package.__name__, *(module.name for module in inside if not module.name.endswith("__main__"))]
    return [*names, "train", "sample"]


def every_doc(namespace: Any) -> Iterator[Any]:
    """A module or class of pdoc, and all that it defines."""
    yield namespace
    for member in namespace.own_members:
        if member.kind == "class":
            yield from every_doc(member)
        else:
            yield member


def own_docstring(doc: Any, module: Any, pages: dict[str, Any]) -> str:
    """What the source says of a name: its docstring, or the comment on its line; nothing that is inherited."""
    if doc.kind != "variable":
        return inspect.cleandoc(getattr(doc.obj, "__doc__", None) or "")
    home = ldm_us._HOMES.get(doc.name) if module.modulename == "ldm_us" and "." not in doc.qualname else None
    module_name, name = (home, doc.name) if home else doc.taken_from
    text = trailing_comments(Path(pages[module_name].obj.__file__)).get(name, "") if module_name in pages else ""
    return text if text or doc.annotation_str or "." not in name else "@private"  # a part that __init__ sets


def set_signature(doc: Any) -> None:
    """A NamedTuple takes its fields; its __new__ has lost the module in which their types have a meaning."""
    fields = getattr(doc.obj, "_fields", None)
    if doc.kind != "class" or fields is None or "__init__" not in doc.members:
        return
    hints, defaults = typing.get_type_hints(doc.obj), doc.obj._field_defaults
    kind, empty = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.empty
    doc.members["__init__"].signature_without_self = inspect.Signature(
        [inspect.Parameter(name, kind, default=defaults.get(name, empty), annotation=hints[name]) for name in fields]
    )
    doc.members["__init__"].docstring = ""


def prepare(pages: dict[str, Any]) -> list[str]:
    """Put HTML for the docstrings of all modules: -> a sentence for each reference that leads nowhere."""
    names, broken = Names(ROOT, pages), []
    for page, module in pages.items():
        for doc in every_doc(module):
            set_signature(doc)
            home, name = doc.taken_from
            text = own_docstring(doc, module, pages)
            if text == "@private" or (doc.name == "__init__" and doc.docstring == ""):
                doc.docstring = text if text == "@private" else ""
            else:
                doc.docstring, missing = to_html(text, names, home if home in pages else page, page, name)
                broken += missing
    return sorted(set(broken))


def index(pages: dict[str, Any]) -> dict[str, Any]:
    """What the first page shows: the public names, and the modules by their part of the house."""
    surface = [pages["ldm_us"].members[name] for name in ldm_us.__all__]
    parts: dict[str, list[Any]] = {}
    for name, module in pages.items():
        top, _, rest = name.partition(".")
        part = top if top != "ldm_us" or not rest else f"ldm_us.{rest.partition('.')[0]}"
        parts.setdefault(part, []).append(module)
    order = [f"ldm_us.{part}" for part in PARTS]
    del parts["ldm_us"]
    by_part = sorted(parts, key=lambda part: order.index(part) if part in order else len(order))
    return {"surface": surface, "parts": [parts[part] for part in by_part]}


def first_sentence(doc: Any) -> Markup:
    """The first paragraph of what a docstring became, without links."""
    text = Markup(doc.docstring.partition("</p>")[0]).striptags()
    return Markup.escape(text)


def write_pages(out: Path, source: bool = True) -> list[str]:
    """Write a page a module, index.html and the search: -> what is broken, a sentence each."""
    pdoc.render.configure(
        search=True, show_source=source, template_directory=ROOT / "docs" / "reference", footer_text=ldm_us.__version__
    )
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", module=r"pdoc\.")
        # A class that only type checkers know as generic; pdoc evaluates what they read.
        argparse._SubParsersAction.__class_getitem__ = classmethod(types.GenericAlias)  # type: ignore[attr-defined]
        for name in ldm_us.__all__:
            getattr(ldm_us, name)  # pdoc looks at what is there, and these come when they are asked for
        try:
            pages = {name: pdoc.doc.Module.from_name(name) for name in modules()}
            broken = prepare(pages)
            pdoc.render.env.globals |= index(pages)
            pdoc.render.env.filters["first_sentence"] = first_sentence
            texts = {f"{name.replace('.', '/')}.html": pdoc.render.html_module(pages[name], pages) for name in pages}
            texts |= {"index.html": pdoc.render.html_index(pages), "search.js": pdoc.render.search_index(pages)}
        finally:
            del argparse._SubParsersAction.__class_getitem__  # type: ignore[attr-defined]
    for name, text in texts.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        text = text.replace(f"{ROOT}/", "").replace(str(ROOT), ".")  # paths as in the repository
        (out / name).write_text(text, encoding="utf-8")
    return broken + [f"pdoc: {warning.message}" for warning in told]


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.reference")
    codes = EXIT_CODES.replace("2 what", "1 a docstring names what is not there, 2 what")
    describe(parser, "The reference of every module as pages, from the docstrings.", "--out runs/docs", codes=codes)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the pages")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    return short_usage(parser)


def main(argv: list[str] | None = None) -> int:
    """Write the pages; 1 where a reference is broken."""
    options = build_parser().parse_args(argv)
    if pdoc is None:
        raise ValueError("the reference needs pdoc: python -m pip install -e '.[docs]'.")
    if options.out.exists() and not options.overwrite:
        raise ValueError(f"--out {options.out}: exists. Choose another name, or add --overwrite.")
    broken = write_pages(options.out)
    for sentence in broken:
        print(sentence, file=sys.stderr)
    print(f"{options.out / 'index.html'}: {len(modules())} modules, {len(broken)} broken references")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(run_command(main))
