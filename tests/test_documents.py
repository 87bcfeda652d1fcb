"""Every command of the documents is read by its own parser, those of a project are run, every link leads somewhere.

A document is a Markdown file, or the docstring at the top of a module. The changelog and the log tell of the past, and
are none. A command is read by what reads it in use: its script runs up to the moment at which argparse has answered.
"""

import argparse
import ast
import configparser
import re
import runpy
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import ldm_us
import sample
import train

ROOT = Path(__file__).resolve().parents[1]
PAST = {"CHANGELOG.md", "LOG.md"}
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "lessons/*.md", "ldm_us/**/*.md", "tests/*/*.md")
    for path in ROOT.glob(pattern)
    if path.name not in PAST
)
MODULES = sorted(
    path
    for pattern in (
        "*.py",
        "bench/**/*.py",
        "examples/*.py",
        "lessons/*.py",
        "ldm_us/**/*.py",
        "weights_convert/**/*.py",
    )
    for path in ROOT.glob(pattern)
)
ELSEWHERE = {"pip", "venv", "source", "git", "cd", "marimo", "pre-commit", "apt", "apt-get"}
OURS = {"python", "python3", "torchrun", "make", "pytest", "ldm-us-train", "ldm-us-sample", ".ci/run"}
WITHOUT_OPTIONS = ("examples/", "lessons/", "tests.golden.filled_checkpoint")


class Read(BaseException):
    """argparse has answered: the command is one that there is."""

    def __init__(self, parser: argparse.ArgumentParser, values: argparse.Namespace | None = None):
        self.parser, self.values = parser, values


# What the documents hold


def blocks_of(text: str) -> Iterator[list[str]]:
    """The indented blocks and the fenced ones that name no other language, as lines without their indent."""
    fence, block, before = None, [], ""
    for line in [*text.splitlines(), ""]:
        if line.startswith("```"):
            yield block
            fence, block = (line[3:].strip() or "sh") if fence is None else None, []
        elif fence is not None:
            block += [line] * (fence in {"sh", "bash", "shell", "console"})
        elif line.startswith("    ") and (block or not before.strip()):
            block.append(line[4:])
        elif line.strip():
            yield block
            block = []
        before = line
    yield block


def commands_in(text: str) -> Iterator[list[str]]:
    """The words of every command line: continued lines joined, comments and settings of variables left out."""
    for block in blocks_of(text):
        lines = [line for line in re.sub(r"\\\n\s*", "", "\n".join(block)).splitlines() if line.strip()]
        words = [split(line) for line in lines if not line.lstrip().startswith("#")]
        if words and words[0] and name_of(words[0]) in OURS | ELSEWHERE:
            yield from (one for line in words for one in line_of(line))


def split(line: str) -> list[str]:
    try:
        return shlex.split(line, comments=True)
    except ValueError:  # an apostrophe in a text that is no command
        return []


def line_of(words: list[str]) -> Iterator[list[str]]:
    """The commands of a line, which && divides."""
    first = 0
    for i, word in enumerate([*words, "&&"]):
        if word == "&&":
            yield [word for j, word in enumerate(words[first:i]) if "=" not in word or j]
            first = i + 1


def name_of(words: list[str]) -> str:
    return words[0].removeprefix("$ ").removeprefix(".venv/bin/").removeprefix("../")


def documents() -> dict[str, str]:
    """Name -> text, of all pages and docstrings that hold a command."""
    texts = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in PAGES}
    for path in MODULES:
        texts[path.relative_to(ROOT).as_posix()] = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    return texts


DOCUMENTS = documents()
FOUND = [  # a docstring may leave out with ... what the line above it has
    (page, words)
    for page, text in DOCUMENTS.items()
    for words in commands_in(text)
    if not (page.endswith(".py") and "..." in words)
]
SPANS = [(page, span) for page, text in DOCUMENTS.items() for span in re.findall(r"`([^`\n]+)`", text)]


# How a command is read


def script_of(words: list[str]) -> tuple[Path | None, list[str]]:
    """What python runs, None where that is not ours, and its arguments."""
    if words[0] == "-m":
        path = ROOT / words[1].replace(".", "/")
        path = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
        return (None if words[1] in {"pip", "venv", "pytest"} else path), words[2:]
    return (None if words[0] == "-c" else ROOT / words[0]), words[1:]


def answer(script: Path, arguments: list[str], look: bool = False) -> Read:
    """Run a script until argparse has read its arguments; look: until there is a parser."""

    def parse_args(parser, args=None, namespace=None):
        args = sys.argv[1:] if args is None else args
        if look:
            raise Read(parser)
        values, unknown = parser.parse_known_args(args, namespace)
        if unknown:
            parser.error(f"unrecognized arguments: {' '.join(unknown)}")
        raise Read(parser, values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
        try:
            execute(script, arguments)
        except Read as read:
            return read
    raise AssertionError(f"{script} has no parser")


def execute(script: Path, arguments: list[str]) -> None:
    """Run a script as if it were called by its name."""
    handler = signal.getsignal(signal.SIGINT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(script), *arguments])
        patch.setattr(sys, "path", [str(ROOT), *sys.path])
        try:
            runpy.run_path(str(script), run_name="__main__")
        finally:
            signal.signal(signal.SIGINT, handler)


def check(words: list[str]) -> None:
    """Fail unless every program, script, target, option and extra of a command is one that there is."""
    name, arguments = name_of(words), words[1:]
    if name in {"python", "python3"}:
        check_python(arguments)
    elif name == "torchrun":
        from torch.distributed.run import get_args_parser

        values = get_args_parser().parse_args(arguments)
        check_python([values.training_script, *values.training_script_args])
    elif name == "make":
        check_make(arguments)
    elif name == "pytest":
        check_tests(arguments)
    elif name == "pip":
        check_pip(arguments)
    elif name.startswith("ldm-us-"):
        check_python([f"{name.removeprefix('ldm-us-')}.py", *arguments])
    elif name == ".ci/run":
        assert (ROOT / name).is_file()
    else:
        assert name in ELSEWHERE, f"no test knows the command {name}"


def check_python(words: list[str]) -> None:
    script, arguments = script_of(words)
    if words[:2] == ["-m", "pip"]:
        check_pip(arguments)
    elif words[:2] == ["-m", "pytest"]:
        check_tests(arguments)
    elif script is not None:
        assert script.is_file(), f"{script} does not exist"
        if " ".join(words).removeprefix("-m ").startswith(WITHOUT_OPTIONS) and "-m lessons" not in " ".join(words):
            assert [word for word in arguments if word.startswith("-")] == []
            return
        answer(script, arguments)
        if script.name in {"train.py", "sample.py"} and script.parent == ROOT:  # what does not go together is refused
            of_cpu = ["cpu" if word.startswith("cuda") else word for word in arguments]
            (train if script.name == "train.py" else sample).parse_options(of_cpu)


def check_make(words: list[str]) -> None:
    targets = [word for word in words if "=" not in word and not word.startswith("-")]
    assert set(targets) <= set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    passed = [word.removeprefix("ARGS=") for word in words if word.startswith("ARGS=")]
    scripts = {"parity": ROOT / "bench" / "parity.py", "bench": ROOT / "bench" / "speed" / "__main__.py"}
    for script in (scripts[target] for target in targets if target in scripts):
        answer(script, [each for word in passed for each in word.split()])


def check_tests(words: list[str]) -> None:
    assert [word for word in words if word.startswith("tests/") and not (ROOT / word.split("::")[0]).exists()] == []


def check_pip(words: list[str]) -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    named = {extra for word in words for extra in re.findall(r"^\.\[(.*)\]$", word) for extra in extra.split(",")}
    assert named <= set(setup["options.extras_require"])


@pytest.mark.parametrize("page", sorted({page for page, _ in FOUND}))
def test_every_command_of_a_document_is_one_that_its_program_takes(page, capsys):
    for words in [words for of, words in FOUND if of == page]:
        try:
            check(words)
        except (SystemExit, ValueError, AssertionError) as error:
            wrong = f"{page}: {shlex.join(words)}\n{error}\n{capsys.readouterr().err}"
        else:
            continue
        pytest.fail(wrong)


def test_the_documents_that_a_user_reads_hold_commands():
    holding = {page for page, _ in FOUND}
    assert {"README.md", "CONTRIBUTING.md", "docs/use.md", "docs/results.md", "docs/benchmarks.md"} <= holding
    assert {"lessons/README.md", "examples/by_hand.py", "train.py", "sample.py", "bench/parity.py"} <= holding
    assert len(FOUND) > 120


@pytest.mark.parametrize(
    "line",
    [
        "python train.py unet --weights A --data B --steps 3 --out C --no-such-option",
        "python sample.py --controll-scale 2",
        "python sample.py --control-scale 2",  # does nothing without a mask
        "torchrun --nproc-per-nodes 2 -- sample.py --out A",
        "torchrun --nproc-per-node 2 -- sample.py --outt A",
        "python -m ldm_us.data phantoms --out A",
        "python -m ldm_us.gone",
        "python -m weights_convert export A --format compviz --out B",
        "python examples/gone.py",
        "python -m pytest tests/test_gone.py",
        "make demonstration",
        "make parity ARGS='--stepz 3'",
        "pip install -e '.[evaluation]'",
        "pyhton sample.py",
    ],
)
def test_a_command_that_there_is_not_is_noticed(line):
    (words,) = line_of(split(line))
    with pytest.raises((SystemExit, ValueError, AssertionError)):
        check(words)


def test_every_python_in_the_pages_is_python():
    code = [block for page in PAGES for block in blocks_of(page.read_text("utf-8")) if "import ldm_us" in block[:1]]
    assert len(code) >= 2
    for block in code:
        ast.parse("\n".join(block))


# What is named within the text


def all_options(parser: argparse.ArgumentParser) -> set[str]:
    """The options of a parser and of its subcommands."""
    found = set()
    for action in parser._actions:
        found |= set(action.option_strings)
        if isinstance(action, argparse._SubParsersAction):
            found |= {option for each in action.choices.values() for option in all_options(each)}
    return found


@cache
def subcommands(script: Path) -> set[str]:
    """The subcommands of a script, with those of other programs that take none."""
    if not script.is_file() or "golden" in script.parts:
        return set()
    actions = answer(script, [], look=True).parser._actions
    return {name for action in actions if isinstance(action, argparse._SubParsersAction) for name in action.choices}


@cache
def options_there_are() -> set[str]:
    scripts = [ROOT / "train.py", ROOT / "sample.py", ROOT / "lessons" / "check.py", ROOT / "lessons" / "book.py"]
    scripts += [*ROOT.glob("ldm_us/**/__main__.py"), *ROOT.glob("weights_convert/**/__main__.py")]
    scripts += [path for path in ROOT.glob("bench/*.py") if "parse_args" in path.read_text(encoding="utf-8")]
    return {option for script in scripts for option in all_options(answer(script, [], look=True).parser)}


def test_every_option_that_a_text_names_is_one_of_some_command():
    elsewhere = {"--nproc-per-node", "--standalone", "--index-url", "--help"}
    named = {(page, option) for page, span in SPANS for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*\w", span)}
    unknown = {(page, option) for page, option in named if option not in options_there_are() | elsewhere}
    assert len(named) > 100
    assert unknown == set()


def test_every_module_target_and_script_that_a_text_names_exists():
    gone = set()
    for page, span in SPANS:
        for module, words in re.findall(
            r"python -m ((?:ldm_us|weights_convert|lessons|tests)[\w.]*) ?([a-z|-]*)", span
        ):
            script = script_of(["-m", module])[0]
            gone |= (
                set() if script.is_file() and set(words.split("|")) <= {"", *subcommands(script)} else {(page, span)}
            )
        if target := re.match(r"make ([a-z]+)", span):
            gone |= set() if f"\n{target[1]}: " in (ROOT / "Makefile").read_text() else {(page, span)}
        for script in re.findall(r"^python ((?:\w+/)*\w+\.py)", span):
            gone |= set() if (ROOT / script).is_file() else {(page, span)}
    assert gone == set()


# Links


def anchors_of(path: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_link_of_a_page_leads_to_a_file_and_a_heading(page):
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        file, _, anchor = link.partition("#")
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        target = (page.parent / file).resolve() if file else page
        there = target.exists() and (not anchor or target.suffix != ".md" or anchor in anchors_of(target))
        broken += [] if there else [link]
    assert broken == []


# The project of docs/use.md, from its first command to its last, at a size of seconds

SMALL = {  # what stands for the files that nobody has here
    "v1-5-pruned-emaonly.safetensors": str(ldm_us.BUNDLED),
    "control_sd15_seg.safetensors": str(ldm_us.BUNDLED),
    "MODEL": "runs/controlnet/model.safetensors",
    "Dataset_BUSI_with_GT": "phantoms",
    "MASKS": "docs/masks",
    "mask.png": "phantoms/benign/benign (1)_mask.png",
    "IMAGE": "phantoms/benign/benign (1).png",
    "MASK": "phantoms/benign/benign (1)_mask.png",
    "REGION": "phantoms/benign/benign (1)_mask.png",
    "NEW": "docs/masks/benign (2)_mask.png",
    "cuda": "cpu",
    "bf16": "fp32",
}
NUMBERS = {"--steps": "1", "--accumulate": "1", "--resample": "1", "--n": "1"}
FEW = {
    "train.py": {"--batch": "2", "--warmup": "0", "--sample-every": "0", "--validate-every": "0"},
    "sample.py": {"--steps": "1", "--n": "1"},
}
NOT_RUN = (  # tests of their own run them, on data that suit them; or they want a file that is nowhere
    *(
        "pip",
        "venv",
        "ldm_us.evaluation",
        "ldm_us.training",
        "ldm_us.report",
        "us128",
        "runs/vae",
        "--nproc-per-node 4",
    ),
    *("--lora", "lora.safetensors", "--against", "BUSBRA", "vae-ft-mse-840000.safetensors", "textual_inversion.pt"),
)


def made_small(words: list[str]) -> list[str]:
    """The script, or -m and the module, with few steps and few pictures, on files that are here."""
    words = words[words.index("--") + 1 :] if "torchrun" in words else words[1:]
    numbers = NUMBERS | ({"--n": "6"} if "ldm_us.data" in words else {"--n": "3"} if "--balance" in words else {})
    small = [numbers.get(before, SMALL.get(word, word)) for before, word in zip(["", *words], words, strict=False)]
    few = {} if {"--info", "--verify"} & set(words) else FEW.get(words[0], {})
    return small + [word for option, value in few.items() if option not in words for word in (option, value)]


def test_the_commands_of_a_project_work_one_after_the_other(tmp_path, monkeypatch, capsys):
    shutil.copytree(ROOT / "docs" / "masks", tmp_path / "docs" / "masks")
    monkeypatch.chdir(tmp_path)
    lines = [words for words in commands_in(DOCUMENTS["docs/use.md"]) if name_of(words) in {"python", "torchrun"}]
    lines = [made_small(words) for words in lines if not any(part in " ".join(words) for part in NOT_RUN)]
    assert len(lines) > 20
    for words in lines:
        with pytest.raises(SystemExit) as end:
            execute(*script_of(words))
        assert end.value.code == 0, f"{shlex.join(words)}\n{capsys.readouterr().err}"
