"""The page: what is where, and which room of rooms.py answers which button. It holds no logic of its own."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from threading import Event
from typing import Any

from ldm_us.data.masks.shape import COLOURS
from ldm_us.display.data_urls import MOST_BYTES
from ldm_us.display.pages import render
from ldm_us.runtime.local_server import HOST, Guard
from ldm_us.studio.rooms import Rooms
from ldm_us.studio.said import message
from ldm_us.synthesis.serving.commands import MOST_PICTURES

with suppress(ImportError):  # the extra ui: python -m ldm_us.studio says so
    import gradio as gr
    from starlette.middleware import Middleware

HERE = Path(__file__).parent
PLAIN: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
MODEL: dict[str, Any] = PLAIN | {"concurrency_id": "model", "concurrency_limit": 1}  # one after the other, in order
MANY = {"trigger_mode": "multiple"}  # a press counts while another is answered
LAST = {"trigger_mode": "always_last"}  # what is drawn last is what is told
QUICK: dict[str, Any] = PLAIN | {"concurrency_id": "quick", "concurrency_limit": 8}
# What the page needs of Gradio. Its routes for files, uploads and other servers are not among them.
STATIC = ("/assets/", "/static/", "/theme.css", "/favicon.ico", "/config", "/gradio_api/startup-events")
LIVE = ("/gradio_api/queue/", "/gradio_api/heartbeat/", "/gradio_api/cancel", "/gradio_api/run/", "/gradio_api/reset")
EVENTS = "studio.canvas(element, {stroke: () => trigger('stroke'), open: () => trigger('open')})"
UNDRAWN = "Nothing is drawn yet. Use the brush, or drag an ellipse from corner to corner."
WAYS = [("Draw a region anew", "region"), ("Move or grow the lesion", "move"), ("Change the whole picture", "class")]


def of_tab(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of Rooms with the tab that asks."""

    def answer(request: gr.Request, *values: Any) -> Any:
        return method(request.session_hash, *values)

    return answer


def drawing(rooms: Rooms, method: Callable[..., Iterator[tuple[str, str | None]]]) -> Callable[..., Any]:
    """The same of one that yields; pictures that are as they were are not sent again."""

    def answer(request: gr.Request, stops: Any, *values: Any) -> Iterator[Any]:
        yield gr.skip(), gr.skip()  # of a request that is not wanted any more this is all
        for said, pictures in rooms.pressed(str(request.session_hash), stops, method(request.session_hash, *values)):
            yield said, gr.skip() if pictures is None else pictures

    return answer


def build(rooms: Rooms) -> Any:
    """The page with its four rooms."""
    with gr.Blocks(title="ldm_us studio", analytics_enabled=False) as page:
        gr.HTML(render("ldm_us/studio/head.html", model=Path(rooms.engine.words.name).name, size=rooms.engine.size))
        for name, room in (("Draw", draw_room), ("Make", make_room), ("Change", change_room), ("How", how_room)):
            with gr.Tab(name):
                room(rooms)
        with gr.Accordion("All pictures of this tab", open=False):
            save, link = gr.Button("Make a dataset of them"), gr.HTML()
            save.click(of_tab(rooms.dataset), None, link, **QUICK)
        page.unload(of_tab(rooms.close))
    return page


def common(rooms: Rooms, steps: int) -> list[Any]:
    """What every room asks, in the order of `asked`."""
    classes = rooms.engine.words.classes
    label = gr.Radio([*((one, one) for one in classes), ("another text", "")], value=(*classes, "")[0], label="Class")
    known = [*rooms.engine.words.prompts[:50], ""]  # the model's own, most frequent first; or any other
    prompt = gr.Dropdown(known, value=known[0], allow_custom_value=True, label="Text to draw", visible=not classes)
    label.change(lambda chosen: gr.update(visible=not chosen), label, prompt, **QUICK)
    with gr.Row():
        n = gr.Slider(1, MOST_PICTURES, 4, step=1, label="How many", min_width=120)
        walked = gr.Slider(1, 100, steps, step=1, label="Steps", min_width=120)
    with gr.Row():
        seed = gr.Number(0, precision=0, minimum=0, label="Seed of the first", min_width=120)
        watermark = gr.Checkbox(label="Invisible watermark", min_width=120)
    return [label, prompt, n, seed, walked, watermark]


def buttons(rooms: Rooms, method: Callable[..., Any], text: str, inputs: list[Any], board: str = "") -> Any:
    """The button that draws, the one that stops, what is said; -> the pictures, to be placed.

    The page counts stops itself, and Gradio cancels nothing: it would end by the name of the button, and so a request
    with it that is sent while the one before ends.
    """
    pictures, stops = gr.HTML(render=False), gr.Number(visible="hidden")
    with gr.Row():
        start, stop = gr.Button(text, variant="primary", min_width=120), gr.Button("Stop", min_width=80)
    said = gr.HTML(message("Ready."))
    js = f"(_, ...values) => [studio.press('{text}'), ...studio.filled('{board}', values)]"
    event = start.click(drawing(rooms, method), [stops, *inputs], [said, pictures], js=js, **MODEL | MANY)
    event.then(None, None, None, js=f"() => {{ studio.done('{text}'); return [] }}", **PLAIN)
    stop.click(of_tab(rooms.stop), stops, said, js="() => [studio.stop()]", queue=False, **PLAIN | MANY)
    return pictures


def timed(rooms: Rooms, asked: list[Any], pictures: Any, *size: Any) -> None:
    """The estimated time, anew with every number and every picture."""
    time, of = gr.HTML(lambda: rooms.estimate(asked[2].value, asked[4].value)), [asked[2], asked[4], *size]
    gr.on([one.change for one in (*of, pictures)], rooms.estimate, of, time, **QUICK)


def canvas(rooms: Rooms, name: str, label: str, files: list[tuple[str, str]], move: list[Any]) -> Any:
    """A canvas with what is said of it; -> a component that carries what it holds once the page has filled it."""
    size = None if move else sizes(rooms, "Size of the canvas")
    about = {"name": name, "label": label, "files": files, "most": MOST_BYTES, "size": rooms.engine.size}
    about |= {"structures": list(zip(rooms.engine.labels or ("region",), COLOURS, strict=False))}
    board = gr.HTML(render("ldm_us/studio/canvas.html", **about), js_on_load=EVENTS)
    said, seen = gr.HTML(message(UNDRAWN)), gr.HTML()  # of the mask; of what was opened
    sent, told = gr.Textbox(visible="hidden"), gr.Textbox(visible="hidden")
    read = f"(...values) => studio.filled('{name}', values)"
    write = f"(text) => {{ studio.write('{name}', text); return [] }}"
    events = [board.stroke(rooms.stroke, [sent, *move], [said, told], js=read, **QUICK | LAST)]
    events += [board.open(of_tab(rooms.open), sent, [seen, told], js=read, **QUICK)]
    if move:
        events += [gr.Button("Take the last picture").click(of_tab(rooms.take), None, [seen, told], **QUICK)]
        events += [
            gr.on([one.change for one in move], rooms.stroke, [sent, *move], [said, told], js=read, **QUICK | LAST)
        ]
    if size is not None:
        events += [size.input(rooms.shaped, size, [seen, told], **QUICK)]
    for event in events:
        event.then(None, told, None, js=write, **PLAIN)
    return sent


def sizes(rooms: Rooms, label: str) -> Any:
    """The choice of a size: those that the model was trained with, or any other."""
    known = rooms.engine.sizes
    return gr.Dropdown(known, value=known[0], allow_custom_value=True, label=f"{label}, width x height", min_width=120)


def make_room(rooms: Rooms) -> None:
    """Samples by class or prompt."""
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            asked = common(rooms, 20)
            size = sizes(rooms, "Size")
            pictures = buttons(rooms, rooms.make, "Draw samples", [size, *asked])
            timed(rooms, asked, pictures, size)
        with gr.Column(scale=3, min_width=300):
            pictures.render()


def draw_room(rooms: Rooms) -> None:
    """A mask that samples follow."""
    if not rooms.engine.labels:
        gr.HTML(rooms.unmasked())
        return
    with gr.Row():
        with gr.Column(min_width=300):
            files = [("mask", "Open a mask"), ("image", "Open an image behind it")]
            sent = canvas(rooms, "draw", f"Canvas for the {' and the '.join(rooms.engine.labels)}", files, [])
        with gr.Column(min_width=300):
            asked = common(rooms, 20)
            scale = gr.Slider(0, 4, rooms.engine.model.config.control.scale, step=0.1, label="Weight of the mask")
            pictures = buttons(rooms, rooms.draw, "Follow the mask", [sent, scale, *asked], "draw")
            timed(rooms, asked, pictures)
    pictures.render()


def change_room(rooms: Rooms) -> None:
    """An image, changed."""
    with gr.Row():
        with gr.Column(min_width=300):
            way = gr.Radio(WAYS, value="region", label="What to change")
            with gr.Row(visible=False) as moves:
                right = gr.Slider(-50, 50, 0, step=1, label="Right, %", min_width=100)
                down = gr.Slider(-50, 50, 0, step=1, label="Down, %", min_width=100)
                factor = gr.Slider(50, 200, 100, step=5, label="Size, %", min_width=100)
            files = [("image", "Open an image"), ("mask", "Open a mask")]
            move = [way, right, down, factor]
            sent = canvas(rooms, "change", "Canvas for the region or the lesion", files, move)
        with gr.Column(min_width=300):
            asked = common(rooms, 50)
            strength = gr.Slider(0, 1, 0.5, step=0.05, label="Strength: 0 as it is, 1 all anew", visible=False)
            pictures = buttons(rooms, rooms.change, "Change the image", [sent, *move, strength, *asked], "change")
            timed(rooms, asked, pictures)
    pictures.render()
    seen = {"region": (False, False, 0.5), "move": (True, True, 1.0), "class": (False, True, 0.5)}
    shown = {key: [gr.update(visible=a), gr.update(visible=b, value=x)] for key, (a, b, x) in seen.items()}
    way.change(lambda chosen: shown[chosen], way, [moves, strength], **QUICK)


def how_room(rooms: Rooms) -> None:
    """How the last picture came about."""
    buttons(rooms, rooms.look, "Look into the last picture", []).render()
    buttons(rooms, rooms.compare, "Compare guidance and weight of the mask", []).render()


def serve(rooms: Rooms, port: int) -> None:
    """Serve the page until a signal ends it."""
    theme = gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    theme.set(body_text_color_subdued="#4b5563", body_text_color_subdued_dark="#b4bcc8")  # to be read by all
    look = {"theme": theme, "css": (HERE / "page.css").read_text("utf-8")}
    look["head"] = f"<script>{(HERE / 'page.js').read_text('utf-8')}</script>"
    guard = Middleware(Guard, paths=(*STATIC, *LIVE), most_bytes=32 << 20)  # a picture of 16 MB as text, and room
    about: dict[str, Any] = {"share": False, "quiet": True, "ssr_mode": False, "prevent_thread_lock": True}
    page = build(rooms).queue(max_size=100, api_open=False)
    page.launch(server_name=HOST, server_port=port, app_kwargs={"middleware": [guard]}, **about, **look)
    print(f"the studio is at http://{HOST}:{port}; Ctrl-C ends it", flush=True)
    try:
        Event().wait()
    finally:
        rooms.close(*rooms.sessions)
