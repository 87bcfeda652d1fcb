"""Command line of the studio: python -m ldm_us.studio serves one page on this machine, to draw lesions and samples."""

import argparse
import os
import sys
import tempfile
from pathlib import Path

from ldm_us.config import BUNDLED
from ldm_us.runtime.command_line import answer_at_once, short_usage
from ldm_us.runtime.help_page import describe


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(prog="python -m ldm_us.studio")
    about = "Serve a page on this machine: draw a lesion and see samples that follow it. Extra: ui."
    describe(parser, about, "", "--weights runs/controlnet/model.safetensors --port 8000")
    add = parser.add_argument
    add("--weights", type=Path, default=BUNDLED, metavar="FILE", help="a model.safetensors (the bundled us128)")
    add("--port", type=int, default=7860, metavar="N", help="of 127.0.0.1 (%(default)s)")
    add("--device", default="auto", help="cpu, cuda, cuda:1 (a GPU where there is one)")
    return short_usage(parser)


answer_at_once(__name__, build_parser)

from ldm_us.runtime.checks import check_extra
from ldm_us.runtime.entry import run_command
from ldm_us.runtime.local_server import check_port
from ldm_us.runtime.stopping import caught_signals
from ldm_us.studio.rooms import Rooms
from ldm_us.synthesis.serving.engine import Engine


def main(argv: list[str] | None = None) -> int:
    """Parse, check, load, serve until Ctrl-C."""
    options = build_parser().parse_args(argv)
    check_extra("ui", "gradio")
    check_port(options.port)
    with caught_signals(), tempfile.TemporaryDirectory(prefix="ldm_us_studio_") as root:
        tempfile.tempdir = root  # all that is written lies in here, and goes with it
        os.environ |= {"GRADIO_TEMP_DIR": root, "GRADIO_ANALYTICS_ENABLED": "False"}  # before it is imported
        from ldm_us.studio.page import serve

        engine = Engine(options.weights, options.device)
        engine.warm_up(Path(root))
        serve(Rooms(engine, Path(root)), options.port)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
