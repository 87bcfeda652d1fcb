"""Where train.py and sample.py are, and the commands ldm-us-train and ldm-us-sample that run them.

They are recipes to be read and edited, at the top of a checkout. An installation has copies in ldm_us/scripts.
"""

from pathlib import Path
from runpy import run_path

PACKAGE = Path(__file__).resolve().parents[1]


def script_path(script: str) -> Path:
    """Find train.py or sample.py: in the installation, else in the checkout that this package lies in."""
    for folder in (PACKAGE / "scripts", PACKAGE.parent):
        if (folder / script).is_file():
            return folder / script
    raise ValueError(f"{script} is neither beside {PACKAGE} nor in its folder scripts. Install ldm_us again.")


def train() -> None:
    """The command ldm-us-train: what `python train.py` does, with the arguments of this process."""
    run_path(str(script_path("train.py")), run_name="__main__")


def sample() -> None:
    """The command ldm-us-sample, likewise."""
    run_path(str(script_path("sample.py")), run_name="__main__")
