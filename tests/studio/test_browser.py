"""The page in a real browser, Chromium of the distribution: every test fails on an error in its console or a request
to another host.
"""

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from functools import partial
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sample
from ldm_us.runtime.entry import run_command

pytest.importorskip("gradio", reason="gradio is not installed: pip install -e '.[browser]'")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install -e '.[browser]'")

ROOT = Path(__file__).parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine: apt install chromium")
LONG = "Donaudampfschifffahrtsgesellschaftskapitaensmuetzenabzeichenverleihungsurkunde"
WAIT = 60_000  # ms
WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 375, "height": 720}


def free_port():
    with socket.socket() as tried:
        tried.bind(("127.0.0.1", 0))
        return tried.getsockname()[1]


WATCHED = """
import runpy, sys
def see(event, about):
    if event in ("socket.getaddrinfo", "socket.connect"):
        name = about[0] if event == "socket.getaddrinfo" else about[1]
        if str(name[0] if isinstance(name, tuple) else name) not in ("127.0.0.1", "localhost", "None"):
            print("outside:", event, name, file=sys.stderr, flush=True)
sys.addaudithook(see)
runpy.run_module("ldm_us.studio", run_name="__main__")
"""


def served(tmp_path_factory, *more):
    """A studio: its address and the folder of what is temporary, which it leaves empty."""
    temporary, log, port = tmp_path_factory.mktemp("temporary"), tmp_path_factory.mktemp("log") / "stderr", free_port()
    command = [sys.executable, "-c", WATCHED, "--port", str(port), "--device", "cpu", *more]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"}
    with log.open("w") as said:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=said, text=True)
    try:
        assert f"http://127.0.0.1:{port}" in process.stdout.readline()
        yield f"http://127.0.0.1:{port}/", temporary
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 143
        assert list(temporary.iterdir()) == []
        assert log.read_text() == "terminated\n", "no error, and no call of another host"
    finally:
        process.kill()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The studio with the bundled model."""
    yield from served(tmp_path_factory)


@pytest.fixture(scope="module")
def structures(tmp_path_factory, two_weights):
    """The studio with a model of two structures."""
    yield from served(tmp_path_factory, "--weights", str(two_weights))


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        one = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield one
        one.close()


@pytest.fixture
def open_page(server, browser):
    """A function: a tab with the studio; what goes wrong in any of them fails the test at its end."""
    yield from tabs(server, browser)


@pytest.fixture
def open_structures(structures, browser):
    """The same of the studio with a model of two structures."""
    yield from tabs(structures, browser)


def tabs(server, browser):
    """A function that opens tabs, and the end of them."""
    wrong, contexts = [], []
    url, temporary = server

    def guard(route):
        if route.request.url.startswith((url, "data:", "blob:")):
            route.continue_()
        else:
            wrong.append(f"a request to {route.request.url}")
            route.abort()

    def build(viewport=WIDE, **options):
        context = browser.new_context(viewport=viewport, **options)
        contexts.append(context)
        context.route("**/*", guard)
        page = context.new_page()
        page.on("console", lambda told: wrong.append(told.text) if told.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("response", lambda response: wrong.append(response.url) if response.status >= 400 else None)
        page.goto(url)
        page.locator("#draw canvas").wait_for()
        page.wait_for_function("!!document.querySelector('#draw [data-tool]').onclick")
        return page

    yield build
    for context in contexts:
        for page in context.pages:
            text = page.content()
            wrong += [f"the page names {folder}" for folder in (temporary, ROOT) if str(folder) in text]
        context.close()
    assert wrong == []


def drag(page, room, a, b):
    """Draw on a canvas from one share of it to another."""
    canvas = page.locator(f"#{room} canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    for i, (x, y) in enumerate((a, ((a[0] + b[0]) / 2, (a[1] + b[1]) / 2), b)):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
        if i == 0:
            page.mouse.down()
    page.mouse.up()


def ellipse(page, room="draw", a=(0.35, 0.35), b=(0.7, 0.6)):
    page.locator(f"#{room} [data-tool=ellipse]").click()
    drag(page, room, a, b)
    page.locator("text=/Lesion: [0-9.]+ %/ >> visible=true").wait_for()


def numbers(page, **values):
    """Fill in numbers of the room that is shown."""
    for label, value in values.items():
        field = page.get_by_label(f"number input for {label.replace('_', ' ')}").locator("visible=true")
        field.fill(str(value))
        field.press("Enter")


def cards(page, count, wait=WAIT):
    """Wait for as many pictures in the room that is shown."""
    shown = "[...document.querySelectorAll('.card')].filter(one => one.offsetParent).length"
    page.wait_for_function(f"{shown} === {count}", timeout=wait)
    return page.locator(".card >> visible=true")


def download(page, link, folder):
    with page.expect_download() as found:
        link.click()
    path = folder / found.value.suggested_filename
    found.value.save_as(path)
    return path


def area(page):
    """What is said of the mask, as a number."""
    page.wait_for_timeout(300)
    text = page.locator(".said >> visible=true").all_inner_texts()
    found = [re.search(r"Lesion: ([\d.]+) %", one) for one in text]
    return next((float(one[1]) for one in found if one), 0.0)


def test_four_samples_follow_an_ellipse_and_the_command_line_verifies_one(open_page, tmp_path, monkeypatch):
    page = open_page()
    ellipse(page)
    assert 6 < area(page) < 8
    numbers(page, Steps=4)
    page.get_by_role("button", name="Follow the mask").click()
    first = cards(page, 4).nth(1)
    assert first.locator(".outline").evaluate("one => getComputedStyle(one).opacity") == "0"
    first.hover()
    page.wait_for_function(
        "one => getComputedStyle(one).opacity === '1'", arg=first.locator(".outline").element_handle()
    )
    picture = download(page, first.get_by_role("link", name="Download PNG"), tmp_path)
    download(page, page.get_by_role("link", name="Save mask").locator("visible=true"), tmp_path)
    (tmp_path / "mask.png").rename(tmp_path / "mask_1.png")
    command = first.locator("code").inner_text()
    monkeypatch.chdir(tmp_path)
    assert run_command(partial(sample.main, ["--verify", str(picture)])) == 0
    assert run_command(partial(sample.main, [*shlex.split(command)[2:], "--out", "again"])) == 0
    assert (tmp_path / "again" / picture.name).read_bytes() == picture.read_bytes()


def test_a_stop_ends_within_a_step_and_the_next_request_is_drawn(open_page):
    page = open_page()
    page.get_by_role("tab", name="Make").click()
    numbers(page, How_many=16, Steps=100)
    page.get_by_role("button", name="Draw samples", exact=True).click()
    page.locator("progress >> visible=true").wait_for(timeout=WAIT)
    page.get_by_role("button", name="Stop").locator("visible=true").click()
    page.get_by_text("Stopped. What is done stays.").locator("visible=true").wait_for()
    numbers(page, How_many=1, Steps=2)
    page.get_by_role("button", name="Draw samples", exact=True).click()
    cards(page, 1)


def test_a_press_right_after_a_stop_is_drawn_once(open_page):
    page = open_page()
    page.get_by_role("tab", name="Make").click()
    numbers(page, How_many=3, Steps=100)
    page.get_by_role("button", name="Draw samples", exact=True).click()
    page.locator("progress >> visible=true").wait_for(timeout=WAIT)
    numbers(page, Steps=2)
    shown = "[...document.querySelectorAll('button')].filter(one => one.offsetParent)"
    for name in ("Stop", "Draw samples", "Draw samples"):  # with no time between
        page.evaluate(f"{shown}.find(one => one.innerText === '{name}').click()")
    cards(page, 3)
    page.wait_for_timeout(1500)
    page.get_by_text("Done.").locator("visible=true").wait_for()
    assert "seed 2" in cards(page, 3).nth(2).inner_text()


def test_a_tab_that_is_closed_frees_the_model_for_another(open_page, server):
    left, other = open_page(), open_page()
    for page, n, steps in ((left, 16, 100), (other, 1, 2)):
        page.get_by_role("tab", name="Make").click()
        numbers(page, How_many=n, Steps=steps)
        page.get_by_role("button", name="Draw samples", exact=True).click()
        page.wait_for_timeout(500)
    left.locator("progress >> visible=true").wait_for(timeout=WAIT)
    root = next(server[1].glob("ldm_us_studio_*"))
    (folder,) = root.glob("tmp*")
    left.close()
    cards(other, 1)
    assert not folder.exists(), "its files are gone, too"


def test_brush_eraser_undo_and_clear_change_the_mask(open_page):
    page = open_page()
    ellipse(page)
    drawn = area(page)
    page.locator("#draw [data-tool=eraser]").click()
    drag(page, "draw", (0.3, 0.5), (0.75, 0.5))
    assert 0 < area(page) < drawn
    page.get_by_text("2 pieces").locator("visible=true").wait_for()
    page.locator("#draw [data-do=undo]").click()
    assert area(page) == drawn
    page.locator("#draw [data-tool=brush]").click()
    drag(page, "draw", (0.1, 0.9), (0.9, 0.9))
    assert area(page) > drawn
    page.locator("#draw [data-do=clear]").click()
    page.get_by_text("No lesion drawn yet.").locator("visible=true").wait_for()


def test_two_strokes_without_a_pause_are_both_told(open_page):
    page = open_page()
    page.locator("#draw [data-tool=ellipse]").click()
    drag(page, "draw", (0.1, 0.1), (0.3, 0.3))
    drag(page, "draw", (0.6, 0.6), (0.8, 0.8))
    page.get_by_text("2 pieces").locator("visible=true").wait_for()


def test_a_canvas_of_another_size_keeps_what_is_drawn_and_pictures_have_its_size(open_page, tmp_path):
    page = open_page()
    ellipse(page)
    size = page.get_by_label("Size of the canvas").locator("visible=true")
    size.fill("160x96")
    size.press("Enter")
    page.wait_for_function("document.querySelector('#draw canvas').width === 160")
    box = page.locator("#draw .board").bounding_box()
    assert abs(box["width"] / box["height"] - 160 / 96) < 0.02
    assert 6 < area(page) < 8
    numbers(page, How_many=1, Steps=2)
    page.get_by_role("button", name="Follow the mask").click()
    card = cards(page, 1)
    assert "--size 160x96" in card.locator("code").inner_text()
    picture = download(page, card.get_by_role("link", name="Download PNG"), tmp_path)
    assert Image.open(picture).size == (160, 96)
    assert run_command(partial(sample.main, ["--verify", str(picture)])) == 0


def test_two_structures_are_drawn_over_each_other_saved_opened_and_followed(open_structures, tmp_path, two_weights):
    page = open_structures()
    page.locator("#draw [data-tool=ellipse]").click()
    drag(page, "draw", (0.1, 0.1), (0.9, 0.9))
    page.get_by_role("radio", name="nodule").locator("visible=true").click()
    drag(page, "draw", (0.3, 0.3), (0.6, 0.6))
    page.get_by_text("Nodule:").locator("visible=true").wait_for()
    link = page.get_by_role("link", name="Save mask").locator("visible=true")
    replaced = np.asarray(Image.open(download(page, link, tmp_path)))
    assert set(np.unique(replaced)) == {0, 1, 2}
    page.locator("#draw [data-do=undo]").click()
    page.locator("#draw [data-do=keep]").check()
    drag(page, "draw", (0.3, 0.3), (0.6, 0.6))
    page.wait_for_timeout(500)
    saved = download(page, link, tmp_path)
    assert set(np.unique(np.asarray(Image.open(saved)))) == {0, 1, 3}, "3 is where both are"
    page.locator("#draw [data-do=clear]").click()
    page.get_by_text("No lobe or nodule drawn yet.").locator("visible=true").wait_for()
    page.locator("#draw [data-open=mask]").set_input_files(saved)
    page.get_by_text("Nodule:").locator("visible=true").wait_for()
    numbers(page, How_many=1, Steps=2)
    page.get_by_role("button", name="Follow the mask").click()
    card = cards(page, 1)
    picture = download(page, card.get_by_role("link", name="Download PNG"), tmp_path)
    saved.rename(tmp_path / "mask_1.png")
    weights = ["--weights", str(two_weights)]
    assert run_command(partial(sample.main, [*weights, "--verify", str(picture)])) == 0
    words = [*shlex.split(card.locator("code").inner_text())[2:], *weights, "--out", str(tmp_path / "again")]
    words[words.index("--mask") + 1] = str(tmp_path / "mask_1.png")
    assert run_command(partial(sample.main, words)) == 0
    assert (tmp_path / "again" / picture.name).read_bytes() == picture.read_bytes()


def test_a_lesion_is_drawn_with_the_keyboard_alone(open_page):
    page = open_page()
    page.locator("#draw [data-tool=ellipse]").focus()
    page.keyboard.press("Enter")
    page.locator("#draw canvas").focus()
    page.keyboard.press("Space")
    for _ in range(3):
        page.keyboard.press("Shift+ArrowRight")
        page.keyboard.press("Shift+ArrowDown")
    page.keyboard.press("Space")
    assert abs(area(page) - 100 * np.pi / 4 * 24**2 / 128**2) < 0.5
    page.keyboard.press("Control+z")
    page.get_by_text("No lesion drawn yet.").locator("visible=true").wait_for()


def test_an_opened_image_is_changed_in_a_region_and_nowhere_else(open_page, tmp_path):
    page = open_page()
    page.get_by_role("tab", name="Change").click()
    grey = np.random.default_rng(0).integers(60, 120, (128, 128), np.uint8)
    Image.fromarray(grey).save(tmp_path / "scan.png")
    page.locator("#change [data-open=image]").set_input_files(tmp_path / "scan.png")
    page.get_by_text("Opened.").locator("visible=true").wait_for()
    ellipse(page, "change")
    numbers(page, How_many=1, Steps=4)
    page.get_by_role("button", name="Change the image").click()
    card = cards(page, 1)
    after = np.asarray(Image.open(download(page, card.get_by_role("link", name="Download PNG"), tmp_path)))
    mask = np.asarray(Image.open(download(page, page.locator("a[download='mask.png'] >> visible=true"), tmp_path)))
    assert (after == grey)[mask == 0].all()
    assert (after != grey)[mask > 0].mean() > 0.5
    slider = card.get_by_label("Before and after")
    slider.fill("100")
    assert "inset(0px 0% 0px 0px)" in card.locator(".before").evaluate("one => getComputedStyle(one).clipPath")


def test_what_is_no_picture_or_too_large_is_a_sentence_in_the_page(open_page, tmp_path):
    page = open_page()
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "large.png").write_bytes(bytes(17 << 20))
    Image.new("L", (60, 40)).save(tmp_path / "other.png")
    said = {
        "text.png": "text.png is not an image that Pillow can read",
        "large.png": "large.png is larger than 16 MB",
        "other.png": "other.png of 60x40 was resized to 128x128",
    }
    for name, sentence in said.items():
        page.locator("#draw [data-open=mask]").set_input_files(tmp_path / name)
        page.get_by_text(sentence).locator("visible=true").wait_for()
    page.wait_for_timeout(1000)
    page.get_by_text(sentence).locator("visible=true").wait_for()  # it stays when the area of the mask is told
    page.get_by_role("button", name="Follow the mask").click()
    page.get_by_text("an empty mask for the class benign").locator("visible=true").wait_for(timeout=WAIT)


def test_how_shows_every_step_and_the_gallery_becomes_a_dataset(open_page, tmp_path):
    page = open_page()
    ellipse(page)
    numbers(page, How_many=1, Steps=4)
    page.get_by_role("button", name="Follow the mask").click()
    cards(page, 1)
    page.get_by_role("tab", name="How").click()
    page.get_by_role("button", name="Look into the last picture").click()
    page.get_by_label("Step", exact=True).wait_for(timeout=WAIT)
    page.get_by_label("Step", exact=True).fill("1")
    assert page.locator(".frames img >> visible=true").count() == 2
    assert page.locator("output.t").inner_text() == "999"
    page.get_by_role("button", name="All pictures of this tab").click()
    page.get_by_role("button", name="Make a dataset").click()
    path = download(page, page.get_by_role("link", name="Download dataset.zip"), tmp_path)
    shutil.unpack_archive(path, tmp_path / "zip")
    assert run_command(partial(sample.main, ["--verify", str(tmp_path / "zip" / "dataset")])) == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [WIDE, PHONE], ids=["wide", "phone"])
def test_every_room_fits_its_screen_and_its_text_can_be_read(open_page, scheme, viewport):
    page = open_page(viewport=viewport, color_scheme=scheme)
    for room in ("Draw", "Make", "Change", "How"):
        tab = page.get_by_role("tab", name=room, exact=True)
        tab.click()
        page.evaluate(
            "text => document.querySelectorAll('.said span').forEach(one => { one.textContent = text })", LONG
        )
        page.locator("label span >> visible=true").evaluate_all(
            f"every => every.forEach(one => {{ if (!one.children.length) one.textContent = '{LONG}' }})"
        )
        widths = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert widths[0] <= widths[1], f"{room}: {widths}"
        assert page.evaluate(CONTRAST) == [], room
        assert page.get_by_text("not for diagnosis").locator("visible=true").count() >= 1


CONTRAST = """() => {
  const parse = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  const light = (rgb) => [0.2126, 0.7152, 0.0722].reduce((sum, part, i) => sum + part * linear(rgb[i] / 255), 0);
  const ground = (one) => {
    for (let at = one; at; at = at.parentElement) {
      const rgb = parse(getComputedStyle(at).backgroundColor);
      if (rgb.length === 3 || rgb[3] === 1) return rgb;
    }
    return [255, 255, 255];
  };
  const poor = [];
  for (const one of document.querySelectorAll("h1, p, b, label, span, button, a, code, figcaption, th, td")) {
    const words = [...one.childNodes].filter((node) => node.nodeType === 3 && node.textContent.trim());
    if (!words.length || !one.offsetParent || getComputedStyle(one).visibility === "hidden") continue;
    const [a, b] = [light(parse(getComputedStyle(one).color)), light(ground(one))].sort((x, y) => y - x);
    const contrast = (a + 0.05) / (b + 0.05);
    if (contrast < 4.5) poor.push(`${words[0].textContent.trim().slice(0, 30)}: ${contrast.toFixed(2)}`);
  }
  return poor;
}"""


@pytest.mark.parametrize(
    "path",
    [
        *("/file=/etc/passwd", "/gradio_api/file=/etc/passwd", "/gradio_api/file=../../etc/passwd", "/file/etc/passwd"),
        *(
            "/assets/../../../../etc/passwd",
            "/assets/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
            "/static/..%2f..%2f..%2fetc/passwd",
        ),
        *("/static//etc/passwd", "/assets//etc/passwd", "/gradio_api/proxy=http://127.0.0.1/", "/gradio_api/upload"),
        *(
            "/gradio_api/stream/x/y/z/playlist-file",
            "/monitoring",
            "/gradio_api/component_server",
            "/docs",
            "/openapi.json",
        ),
    ],
)
def test_no_path_leads_to_a_file_of_the_server(server, path):
    connection = HTTPConnection(server[0].removeprefix("http://").rstrip("/"), timeout=30)
    for method, headers in (("GET", {}), ("POST", {"Content-Length": "0"})):
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        content = answer.read()
        assert answer.status in {403, 404, 405, 422}, f"{method} {path}: {answer.status}"
        assert b"root:" not in content
        assert str(ROOT).encode() not in content
        connection.close()


def test_another_name_of_the_host_and_a_large_request_are_refused(server):
    connection = HTTPConnection(server[0].removeprefix("http://").rstrip("/"), timeout=30)
    connection.request("GET", "/", headers={"Host": "example.org"})
    assert connection.getresponse().status == 403
    connection.close()
    connection.request("POST", "/gradio_api/queue/join", headers={"Content-Length": str(1 << 30)})
    assert connection.getresponse().status == 413
    connection.close()


def test_a_port_in_use_is_a_sentence(server, tmp_path):
    port = server[0].rstrip("/").rpartition(":")[2]
    command = [sys.executable, "-m", "ldm_us.studio", "--port", port]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: --port {port}: not free here")
