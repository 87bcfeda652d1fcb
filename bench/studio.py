"""The studio in a browser: pictures of its rooms for docs/studio.md, and how it carries twenty requests at once.

    python bench/studio.py --out docs/images --overwrite

Needs the extra `browser` and Chromium. It starts a studio of its own, with the bundled model; with --structures
instead with one whose ControlNet follows two (docs/own_data.md makes it), and takes the picture of that alone.
"""

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # bench is not installed

from ldm_us.runtime.command_line import answer_at_once, short_usage
from ldm_us.runtime.help_page import describe


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(prog="python bench/studio.py")
    about = "Take pictures of the studio in Chromium, and say how it carries requests of many tabs at once."
    describe(parser, about, "--out docs/images --overwrite")
    add = parser.add_argument
    add("--tabs", type=int, default=20, metavar="N", help="tabs that ask at once (%(default)s)")
    add("--device", default="cpu", help="of the model: cpu, cuda, cuda:1 (%(default)s)")
    add("--structures", type=Path, metavar="FILE", help="a model.safetensors whose ControlNet follows two structures")
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the pictures")
    add("--overwrite", action="store_true", help="replace the pictures in --out")
    return short_usage(parser)


answer_at_once(__name__, build_parser)

from PIL import Image

from bench.machine import machine
from ldm_us.runtime.checks import check_new_file
from ldm_us.runtime.entry import run_command

WIDE, PHONE = {"width": 1200, "height": 900}, {"width": 390, "height": 844}
PICTURES = ("studio_draw.png", "studio_change.png", "studio_how.png", "studio_phone.png", "studio_structures.png")
WAIT = 120_000  # ms


def main(argv: list[str] | None = None) -> int:
    """Start a studio, look at it, load it, print."""
    options = build_parser().parse_args(argv)
    for name in PICTURES[:4] if options.structures is None else PICTURES[4:]:
        check_new_file(options.out / name, options.overwrite)
    begun = time.monotonic()
    weights = [] if options.structures is None else ["--weights", str(options.structures)]
    words = ["--device", options.device, *weights]
    with tempfile.TemporaryDirectory() as temporary, served(words, temporary) as (open_page, server):
        if options.structures is None:
            look(open_page, options.out, begun)
            load(open_page, options.tabs, server, Path(temporary))
        else:
            two_structures(open_page(WIDE, "light"), options.out)
    print(machine(options.device))
    return 0


@contextmanager
def served(words: list[str], temporary: str) -> Iterator[tuple[Callable[..., Any], int]]:
    """A studio and a browser: what opens a tab, and the process of the server."""
    from playwright.sync_api import sync_playwright

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "ldm_us.studio", "--port", port, *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": temporary}
    server = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        server.stdout.readline()
        chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])

            def open_page(viewport: dict[str, int], scheme: str) -> Any:
                page = browser.new_context(viewport=viewport, color_scheme=scheme).new_page()
                page.goto(f"http://127.0.0.1:{port}/")
                page.wait_for_function("!!document.querySelector('#draw [data-tool]')?.onclick")
                return page

            yield open_page, server.pid
            browser.close()
    finally:
        server.terminate()
        server.wait()


def two_structures(page: Any, out: Path) -> None:
    """Draw with a model of two structures: one in the other, both followed."""
    ellipse(page, "draw", (0.1, 0.2), (0.9, 0.85))
    page.locator("#draw [data-do=keep]").check()
    page.locator("#draw [data-structure='1']").click()
    ellipse(page, "draw", (0.38, 0.34), (0.66, 0.66))
    page.get_by_text("Nodule: ").locator("visible=true").wait_for()
    press(page, "Follow the mask", 4)
    page.locator(".card >> visible=true").first.hover()
    page.wait_for_timeout(400)
    shoot(page, out / PICTURES[4])
    page.context.close()


def ellipse(page: Any, room: str, a: tuple[float, float], b: tuple[float, float]) -> None:
    """Draw an ellipse from one share of a canvas to another."""
    page.locator(f"#{room} [data-tool=ellipse]").click()
    page.locator(f"#{room} canvas").scroll_into_view_if_needed()
    box = page.locator(f"#{room} canvas").bounding_box()
    page.mouse.move(box["x"] + a[0] * box["width"], box["y"] + a[1] * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + b[0] * box["width"], box["y"] + b[1] * box["height"])
    page.mouse.up()
    page.get_by_text("% of the picture").locator("visible=true").wait_for()


def press(page: Any, button: str, count: int) -> None:
    """Press a button and wait for so many pictures, or parts of How."""
    page.get_by_role("button", name=button, exact=True).click()
    shown = "[...document.querySelectorAll('.card, .inside')].filter(one => one.offsetParent).length"
    page.wait_for_function(f"{shown} === {count}", timeout=WAIT)
    page.wait_for_timeout(500)


def shoot(page: Any, path: Path) -> Path:
    """The whole page, from its top."""
    page.evaluate("scrollTo(0, 0)")
    page.screenshot(path=path, full_page=True)
    return path


def look(open_page: Callable[..., Any], out: Path, begun: float) -> None:
    """The rooms, light and dark, wide and on a phone; and the time from the start of the server to four samples."""
    light, dark, phone = open_page(WIDE, "light"), open_page(WIDE, "dark"), open_page(PHONE, "light")
    ellipse(light, "draw", (0.34, 0.3), (0.72, 0.55))
    press(light, "Follow the mask", 4)
    print(f"four samples of a drawn lesion {time.monotonic() - begun:.1f} s after the start of the server")
    light.locator(".card >> visible=true").first.hover()
    light.wait_for_timeout(400)
    shoot(light, out / PICTURES[0])
    ellipse(dark, "draw", (0.3, 0.4), (0.6, 0.62))
    dark.get_by_label("number input for How many").locator("visible=true").fill("1")
    press(dark, "Follow the mask", 1)
    dark.get_by_role("tab", name="Change").click()
    dark.get_by_role("button", name="Take the last picture").click()
    dark.get_by_role("radio", name="Move or grow the lesion").check()
    dark.get_by_label("number input for Right, %").fill("22")
    dark.get_by_label("number input for Right, %").press("Enter")
    dark.wait_for_timeout(1000)
    press(dark, "Change the image", 1)
    shoot(dark, out / PICTURES[1])
    light.get_by_role("tab", name="How").click()
    press(light, "Look into the last picture", 1)
    light.get_by_label("Step", exact=True).fill("7")
    shoot(light, out / PICTURES[2])
    ellipse(phone, "draw", (0.3, 0.3), (0.7, 0.6))
    press(phone, "Follow the mask", 4)
    other = open_page(PHONE, "dark")
    ellipse(other, "draw", (0.3, 0.3), (0.7, 0.6))
    press(other, "Follow the mask", 4)
    with tempfile.TemporaryDirectory() as folder:
        paths = [shoot(page, Path(folder) / f"{i}.png") for i, page in enumerate((phone, other))]
        pair = [Image.open(path).convert("RGB") for path in paths]
        joined = Image.new("RGB", (sum(one.width for one in pair) + 20, max(one.height for one in pair)), "#808080")
        joined.paste(pair[0], (0, 0))
        joined.paste(pair[1], (pair[0].width + 20, 0))
        joined.save(out / PICTURES[3], optimize=True)
    for page in (light, dark, phone, other):
        page.context.close()


def load(open_page: Callable[..., Any], tabs: int, server: int, temporary: Path) -> None:
    """Ask from many tabs at once, twice; print the order of their ends and the memory of the server."""
    pages = [open_page(PHONE, "light") for _ in range(tabs)]
    for page in pages:
        page.get_by_role("tab", name="Make").click()
        page.get_by_label("number input for How many").locator("visible=true").fill("1")
        page.get_by_label("number input for Steps").locator("visible=true").fill("10")
    for turn in (1, 2):
        begun, seeds = time.monotonic(), range(1000 * turn, 1000 * turn + tabs)
        for page, seed in zip(pages, seeds, strict=True):
            page.get_by_label("Seed of the first").locator("visible=true").fill(str(seed))
            with page.expect_response("**/queue/join*"):  # the next one asks when this one is in the queue
                page.get_by_role("button", name="Draw samples", exact=True).click()
        for page, seed in zip(pages, seeds, strict=True):
            page.get_by_text(f"seed {seed}", exact=False).locator("visible=true").first.wait_for(timeout=WAIT)
        drawn = [next(temporary.glob(f"*/*/made/*/*_seed{seed}.png")).stat().st_mtime_ns for seed in seeds]
        order = "in order" if drawn == sorted(drawn) else f"out of order: {drawn}"
        text = Path(f"/proc/{server}/status").read_text(encoding="utf-8")
        memory = int(next(line for line in text.splitlines() if line.startswith("VmRSS")).split()[1])
        seconds = time.monotonic() - begun
        print(f"turn {turn}: {tabs} requests in {seconds:.1f} s, {order}; the server holds {memory / 1024:.0f} MiB")


if __name__ == "__main__":
    sys.exit(run_command(main))
