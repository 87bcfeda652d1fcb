"""ldm_us as a library: its names are there without torch, lead to one object each, and make a picture in five lines."""

import ast
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from PIL import Image

import ldm_us
import ldm_us.__main__

ROOT = Path(__file__).resolve().parents[1]
IN_THE_README = """
    import ldm_us

    model = ldm_us.load_model(ldm_us.BUNDLED)
    mask = ldm_us.load_mask(["docs/masks/benign (1)_mask.png"], model.config.image_size)  # (1, H, W)
    x = ldm_us.generate(model, ["Ultrasound image of a benign breast"], seeds=[1], masks=mask[None])
    ldm_us.to_picture(x[0]).save("benign.png")
"""
DESIGNED = {"load_model", "save_model", "tokenize", "generate", "LatentDiffusion", "ControlNet", "PRESETS", "Sampling"}


def fresh(code: str, *options: str) -> list[str]:
    """What an interpreter that has imported nothing yet prints, in words."""
    command = [sys.executable, *options, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_importing_the_package_imports_neither_torch_nor_anything_else_that_takes_time():
    loaded = fresh("import ldm_us, sys; dir(ldm_us); print(*sys.modules)")
    assert {"torch", "numpy", "PIL", "open_clip", "ldm_us.config"} & set(loaded) == set()


def test_a_name_imports_its_own_floor_and_not_those_above():
    loaded = fresh("import ldm_us, sys; ldm_us.PRESETS; print(*sys.modules)")
    assert "ldm_us.config" in loaded
    assert "torch" not in loaded


@pytest.mark.parametrize("name", ldm_us.__all__)
def test_every_public_name_is_offered_and_is_the_one_that_its_module_defines(name):
    value = getattr(ldm_us, name)
    assert value is getattr(sys.modules[ldm_us._HOMES[name]], name)
    assert name in dir(ldm_us)
    assert getattr(ldm_us, name) is value
    if isinstance(value, type) or callable(value):
        assert value.__module__ == ldm_us._HOMES[name], "a name's home is where it is defined"


def test_the_public_names_are_those_of_the_design_and_what_goes_with_them():
    assert set(ldm_us.__all__) >= DESIGNED
    assert sorted(ldm_us.__all__, key=lambda name: (not name.isupper(), name)) == ldm_us.__all__


def test_editors_and_type_checkers_see_the_same_names_from_the_same_modules():
    (typed,) = (node for node in ast.parse(Path(ldm_us.__file__).read_text()).body if isinstance(node, ast.If))
    imported = {alias.asname: node.module for node in typed.body for alias in node.names}
    assert imported == ldm_us._HOMES
    assert (Path(ldm_us.__file__).parent / "py.typed").is_file()


def test_a_name_that_there_is_not_is_the_usual_error_and_sub_packages_import_as_usual():
    with pytest.raises(AttributeError, match=r"^module 'ldm_us' has no attribute 'generat'$"):
        _ = ldm_us.generat
    assert fresh("from ldm_us import files, load_model; print(load_model.__module__)") == ["ldm_us.files.checkpoint"]


def test_the_overview_names_every_command_the_recipes_and_the_model(capsys):
    assert ldm_us.__main__.main([]) == 0
    said = capsys.readouterr().out
    packages = {path.parent for path in [*ROOT.glob("ldm_us/*/__main__.py"), *ROOT.glob("weights_convert/__main__.py")]}
    modules = {".".join(package.relative_to(ROOT).parts) for package in packages}
    listed = {line.split("  ")[1].strip() for line in said.splitlines() if line.startswith("  ")}
    assert {f"python -m {module}" for module in modules} == {name for name in listed if name.startswith("python -m")}
    assert {"ldm-us-train", "ldm-us-sample", str(ROOT / "train.py"), str(ROOT / "sample.py")} <= listed
    assert str(ldm_us.BUNDLED) in listed
    assert ldm_us.BUNDLED.is_file()
    assert ldm_us.__version__ in said


def test_the_overview_has_no_arguments(capsys):
    with pytest.raises(SystemExit) as end:
        ldm_us.__main__.main(["train"])
    assert end.value.code == 2
    assert "unrecognized arguments: train" in capsys.readouterr().err


def test_the_lines_of_the_readme_make_a_picture(tmp_path, monkeypatch):
    blocks = re.findall(r"(?:^(?: {4}.*)?\n)+", (ROOT / "README.md").read_text(), re.MULTILINE)
    code = next((block for block in blocks if "    import ldm_us\n" in block), IN_THE_README)
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    monkeypatch.chdir(tmp_path)
    exec(textwrap.dedent(code), {})
    (drawn,) = tmp_path.glob("*.png")
    with Image.open(drawn) as picture:
        assert (picture.mode, picture.size) == ("RGB", (128, 128))
        low, high = picture.convert("L").getextrema()
    assert high - low > 100, "not a grey square"
