"""What there is: python -m ldm_us lists the commands, and says where the recipes and the bundled model lie."""

import argparse
import sys
from collections.abc import Sequence

import ldm_us
from ldm_us.runtime.entry import run_command
from ldm_us.runtime.scripts import script_path

COMMANDS = {
    "ldm-us-train": "train a stage: vae, unet or controlnet; in a checkout also `python train.py`",
    "ldm-us-sample": "sample by class, prompt or mask, edit images; in a checkout also `python sample.py`",
    "python -m weights_convert": "Stable Diffusion 1.5 weights in and out, and an audit of them",
    "python -m ldm_us.data": "audit a dataset, make phantoms and masks, grey-level statistics",
    "python -m ldm_us.training": "measure the start prior or the grain of a model that has none",
    "python -m ldm_us.evaluation": "is what the model makes any good?",
    "python -m ldm_us.report": "one HTML page of training runs",
    "python -m ldm_us.studio": "a page on this machine: draw a lesion, see samples that follow it",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Print the overview; there is nothing else to ask for than the version."""
    parser = argparse.ArgumentParser(prog="python -m ldm_us", description="Say what there is.")
    parser.add_argument("--version", action="version", version=ldm_us.__version__)
    parser.parse_args(argv)
    width = max(map(len, COMMANDS))
    print(f"ldm_us {ldm_us.__version__}: Stable Diffusion 1.5 and ControlNet by hand, for ultrasound\n")
    for command, purpose in COMMANDS.items():
        print(f"  {command:{width}}  {purpose}")
    print("\nEach has --help. The recipes, to read and change; the bundled model; and what `import ldm_us` offers:\n")
    for place in (script_path("train.py"), script_path("sample.py"), ldm_us.BUNDLED, ", ".join(ldm_us.__all__)):
        print(f"  {place}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
