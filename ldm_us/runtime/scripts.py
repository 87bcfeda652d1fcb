"""Where train.py and sample.py are, and the commands ldm-us-train and ldm-us-sample that run them.

They are recipes to be read and edited, at the top of a checkout. An installation has copies in ldm_us/scripts.
"""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from ldm_us.runtime.entry import run_command

PACKAGE = Path(__file__).resolve().parents[1]


def script_path(script: str) -> Path:
    """Find train.py or sample.py: in the installation, else in the checkout that this package lies in."""
    for folder in (PACKAGE / "scripts", PACKAGE.parent):
        if (folder / script).is_file():
            return folder / script
    raise ValueError(f"{script} is neither beside {PACKAGE} nor in its folder scripts. Install ldm_us again.")


def run_script(script: str) -> int:
    """Do what `python SCRIPT` does, with the arguments of this process; -> exit code."""
    path = script_path(script)
    spec = spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[path.stem] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return run_command(module.main)


def train() -> int:
    """The command ldm-us-train."""
    return run_script("train.py")


def sample() -> int:
    """The command ldm-us-sample."""
    return run_script("sample.py")
