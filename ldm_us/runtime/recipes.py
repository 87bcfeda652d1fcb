"""Where train.py and sample.py are, and the commands ldm-us-train and ldm-us-sample that run them.

They are scripts to be read and edited, at the top of a checkout. An installation has copies in ldm_us/recipes.
"""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from ldm_us.runtime.entry import run_command

PACKAGE = Path(__file__).resolve().parents[1]


def recipe(script: str) -> Path:
    """Find train.py or sample.py: in the installation, else in the checkout that this package lies in."""
    for folder in (PACKAGE / "recipes", PACKAGE.parent):
        if (folder / script).is_file():
            return folder / script
    raise ValueError(f"{script} is neither beside {PACKAGE} nor in its folder recipes. Install ldm_us again.")


def run_recipe(script: str) -> int:
    """Do what `python SCRIPT` does, with the arguments of this process; -> exit code."""
    path = recipe(script)
    spec = spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[path.stem] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return run_command(module.main)


def train() -> int:
    """The command ldm-us-train."""
    return run_recipe("train.py")


def sample() -> int:
    """The command ldm-us-sample."""
    return run_recipe("sample.py")
