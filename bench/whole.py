"""The figure of the whole: a drawing of Stable Diffusion 1.5 with the shapes that its modules give.

No shape is written here: each box of docs/images/whole.svg is what a hook saw (whole_shapes.py).
"""

import math
from collections.abc import Sequence

from bench.drawing import Drawing
from bench.whole_shapes import Seen, Shape, encoder_rows, levels_of, one, shapes_of
from ldm_us.config import SD15, ModelConfig
from ldm_us.display.charts import COLOURS, GRID, INK, MUTED
from ldm_us.display.pages import render

STEP, BOX, ROW = 50, 40, 118  # pixels from box to box, of a box, from row to row
LEFT, CONTROL, RIGHT, TOP = 66, 250, 1174, 366  # where the first rows of encoder, ControlNet and decoder begin (or end)
LANE = 10  # pixels between two skips
PIXELS, LATENTS = (92, 96), (80, 46)  # pixels of the boxes of images and of latents


def shown(shape: Shape) -> str:
    """(4, 64, 64)."""
    return f"({', '.join(map(str, shape))})"


def height_of(shape: Shape) -> float:
    """Pixels for a feature map: each halving of its side takes a bit off."""
    return 13 + 8 * math.log2(shape[-1])


def draw_arm(drawing: Drawing, rows: list[list[tuple[Seen, bool]]], x: float, kind: str) -> None:
    """An encoder: a stair that goes down to the right, a row for each resolution."""
    for r, row in enumerate(rows):
        y = TOP + r * ROW
        for i, (call, attention) in enumerate(row):
            at, height = x + ((len(row) - 1) * r + i) * STEP, height_of(call.gave)
            drawing.box(at, y, BOX, height, kind, attention)
            drawing.text(at + BOX / 2, y + height / 2 + (1 if attention else 5), str(call.gave[0]), "number")
            if i:
                drawing.line((at - STEP + BOX, y + height / 2), (at, y + height / 2))
        if r:
            start = x + (len(row) - 1) * r * STEP + 10
            drawing.line((start, y - ROW + height_of(rows[r - 1][0][0].gave)), (start, y))


def draw_decoder(drawing: Drawing, rows: list[list[tuple[Seen, bool]]]) -> None:
    """The decoder: the same stair, up to the right; each box says how many channels it takes, skip included."""
    for r, row in enumerate(reversed(rows)):
        y = TOP + r * ROW
        for i, (call, attention) in enumerate(row):
            at, height = RIGHT - ((len(row) - 1) * (r + 1) - i) * STEP, height_of(call.gave)
            middle = y + height / 2 + (-3 if attention else 1)
            drawing.box(at, y, BOX, height, "unet", attention)
            drawing.text(at + BOX / 2, middle - 3, str(call.took[0]), "taken")
            drawing.text(at + BOX / 2, middle + 12, str(call.gave[0]), "number")
            if i:
                drawing.line((at - STEP + BOX, y + height / 2), (at, y + height / 2))
        if r:
            end = RIGHT - (len(row) - 1) * r * STEP + BOX - 10
            above = rows[len(rows) - r][0][0].gave
            drawing.line((end, y), (end, y - ROW + height_of(above)))


def draw_skips(drawing: Drawing, rows: list[list[tuple[Seen, bool]]]) -> int:
    """The skips of every row, from the encoder to the decoder, and the ControlNet's residuals on them: how many."""
    count = 0
    for r, row in enumerate(rows):
        y, last = TOP + r * ROW, len(row) - 1
        for i in range(len(row)):
            lane = y - 16 - LANE * (last - i)
            start = LEFT + (last * r + i) * STEP + BOX - 10
            end = RIGHT - (last * r + i) * STEP + 10
            drawing.line((start, y), (start, lane), (end, lane), (end, y), kind="skip")
            tap = CONTROL + (last * r + i) * STEP + BOX - 10
            drawing.line((tap, y), (tap, lane), kind="control", arrow=False)
            drawing.dot(tap, lane, "sum")
            drawing.dot(tap, y - 3, "zero")
            count += 1
    return count


def draw_middle(drawing: Drawing, seen: dict[str, list[Seen]], rows: list[list[tuple[Seen, bool]]]) -> None:
    """The bottom of the UNet and of the ControlNet, and the way up into the decoder."""
    r, last = len(rows), len(rows[0]) - 1
    y, above = TOP + r * ROW, height_of(rows[-1][-1][0].gave)
    height = height_of(one(seen, "unet.middle.res_2").gave)
    for x, kind, part in ((LEFT, "unet", "unet"), (CONTROL, "control", "controlnet")):
        at = x + last * r * STEP
        drawing.box(at, y, BOX, height, kind, attention=True)
        drawing.text(at + BOX / 2, y + height / 2 + 1, str(one(seen, f"{part}.middle").gave[0]), "number")
        drawing.line((at + 10, y - ROW + above), (at + 10, y))
    lane, start, end = y - 16, LEFT + last * r * STEP + BOX - 10, RIGHT - last * r * STEP + BOX / 2
    drawing.line((start, y), (start, lane), (end, lane), (end, y - ROW + above))
    tap = CONTROL + last * r * STEP + BOX - 10
    drawing.line((tap, y), (tap, lane), kind="control", arrow=False)
    drawing.dot(tap, lane, "sum")
    drawing.dot(tap, y - 3, "zero")


def draw_bars(drawing: Drawing, calls: Sequence[Shape], x: float, y: float, kind: str) -> float:
    """Feature maps side by side around a middle line, the number of channels below: -> where they end."""
    for shape in calls:
        height = height_of(shape) + 10
        drawing.box(x, y - height / 2, 26, height, kind)
        drawing.text(x + 13, y + 64, str(shape[0]), "channels")
        drawing.text(x + 13, y + 79, str(shape[-1]), "side")
        x += 32
    return x - 6


def draw_tensor(drawing: Drawing, x: float, y: float, size: Shape, symbol: str, shape: Shape, kind: str) -> None:
    """A tensor as a box around (x, y), with its name and its shape."""
    drawing.box(x - size[0] / 2, y - size[1] / 2, *size, kind)
    drawing.text(x, y - 3, symbol, "symbol")
    drawing.text(x, y + 15, shown(shape), "side")


def draw_autoencoder(drawing: Drawing, seen: dict[str, list[Seen]], config: ModelConfig) -> None:
    """Pixels to latents on the left, latents to pixels on the right."""
    levels = range(len(config.vae.multipliers))
    down = [one(seen, f"vae.encoder.levels.{i}").gave for i in levels]
    up = [one(seen, f"vae.decoder.levels.{i}").gave for i in levels]
    y, edge = 104.0, RIGHT + BOX + 46

    draw_tensor(drawing, 20 + PIXELS[0] / 2, y, PIXELS, "x", one(seen, "vae.encoder").took, "pixels")
    begin = 20 + PIXELS[0] + 20
    drawing.line((begin - 20, y), (begin, y))
    drawing.text(begin, y - 60, "VAE encoder", "title vae", "start")
    end = draw_bars(drawing, down, begin, y, "vae")
    drawing.line((end, y), (end + 24, y))
    z = end + 24 + LATENTS[0] / 2
    draw_tensor(drawing, z, y, LATENTS, "z_0", one(seen, "unet").took, "latents")
    drawing.text(z + 8, y + 44, f"x {config.vae.scale}", "side", "start")
    drawing.line((z, y + LATENTS[1] / 2), (z, 222), (LEFT + BOX / 2, 222), (LEFT + BOX / 2, 244))
    drawing.text(z - 10, 215, "noised to step t", "note", "end")

    draw_tensor(drawing, edge - PIXELS[0] / 2, y, PIXELS, "x_hat", one(seen, "vae.decoder").gave, "pixels")
    begin = edge - PIXELS[0] - 20 - (32 * len(up) - 6)
    end = draw_bars(drawing, up, begin, y, "vae")
    drawing.text(begin, y - 60, "VAE decoder", "title vae", "start")
    drawing.line((end, y), (end + 20, y))
    z = begin - 24 - LATENTS[0] / 2
    drawing.line((z + LATENTS[0] / 2, y), (begin, y))
    draw_tensor(drawing, z, y, LATENTS, "z_0", one(seen, "vae.decoder").took, "latents")
    drawing.line((RIGHT + BOX / 2, 244), (RIGHT + BOX / 2, 222), (z, 222), (z, y + LATENTS[1] / 2))
    drawing.text(z + 10, 215, "S steps back", "note", "start")


def draw_latents(drawing: Drawing, seen: dict[str, list[Seen]]) -> None:
    """z_t into UNet and ControlNet, eps_hat out of the UNet."""
    y, half = 244 + LATENTS[1] / 2, LATENTS[1] / 2
    draw_tensor(drawing, LEFT + BOX / 2, y, LATENTS, "z_t", one(seen, "unet").took, "latents")
    draw_tensor(drawing, RIGHT + BOX / 2, y, LATENTS, "eps_hat", one(seen, "unet").gave, "latents")
    drawing.line((LEFT + 10, y + half), (LEFT + 10, TOP))
    drawing.line((RIGHT + BOX - 10, TOP), (RIGHT + BOX - 10, y + half))
    turn = CONTROL - 24
    drawing.line((LEFT + BOX / 2 + LATENTS[0] / 2, y), (turn, y), (turn, TOP + 22), (CONTROL, TOP + 22))


def draw_hint(drawing: Drawing, seen: dict[str, list[Seen]], config: ModelConfig) -> None:
    """The mask, from the right to the left, into the ControlNet."""
    count = 2 * len(config.control.hint_channels) - 1
    convs = [one(seen, f"controlnet.hint_network.convs.{i}").gave for i in range(0, count, 2)]
    y, x = 222.0, 560.0
    end = draw_bars(drawing, list(reversed(convs)), x, y, "control")
    took = one(seen, "controlnet.hint_network").took
    draw_tensor(drawing, end + 24 + PIXELS[0] / 2, y, PIXELS, "mask", took, "pixels")
    drawing.line((end + 24, y), (end, y), kind="control")
    drawing.text(x, y - 60, "hint network", "title control", "start")
    turn, lane = CONTROL - 12, y + 24
    drawing.line(
        (x, y), (x - 60, y), (x - 60, lane), (turn, lane), (turn, TOP + 42), (CONTROL, TOP + 42), kind="control"
    )
    drawing.dot(x - 22, y, "zero")
    drawing.text(x - 70, lane - 7, f"hint features {shown(one(seen, 'controlnet.hint_network').gave)}", "note", "end")


def draw_text(drawing: Drawing, seen: dict[str, list[Seen]], config: ModelConfig) -> None:
    """The prompt, as tokens and as text states."""
    call, y = one(seen, "text"), 76.0
    for x, width, kind, words, below in (
        (392, 110, "pixels", "prompt", f"{call.took[0]} tokens"),
        (536, 150, "text", "text encoder", f"{config.text.layers} layers"),
        (720, 130, "context", "context", shown(call.gave)),
    ):
        drawing.box(x, y - 26, width, 52, kind)
        drawing.text(x + width / 2, y - 3, words, "symbol")
        drawing.text(x + width / 2, y + 15, below)
        if x != 720:
            drawing.line((x + width, y), (x + width + 34, y))


def draw_legend(drawing: Drawing, seen: dict[str, list[Seen]]) -> None:
    """What the signs mean."""
    x, y = 424.0, TOP + 8
    drawing.box(x, y, 22, 22, "unet")
    drawing.text(x + 32, y + 15, f"residual block; adds t as {shown(one(seen, 'unet.time').gave)}", anchor="start")
    drawing.box(x, y + 34, 22, 22, "unet", attention=True)
    drawing.text(x + 32, y + 49, "and a transformer, which looks at the context", anchor="start")
    x = 784.0
    drawing.dot(x + 11, y + 11, "zero")
    drawing.text(x + 32, y + 15, f"zero convolution, {zero_convs(seen)} of them", anchor="start")
    drawing.line((x - 4, y + 45), (x + 26, y + 45), kind="skip", arrow=False)
    drawing.dot(x + 11, y + 45, "sum")
    drawing.text(x + 32, y + 49, "skip, with a residual added", anchor="start")


def zero_convs(seen: dict[str, list[Seen]]) -> int:
    """How many residuals a ControlNet gives."""
    return sum(name.startswith("controlnet.zero_conv") for name in seen)


def draw_whole(config: ModelConfig = SD15) -> str:
    """The figure as SVG."""
    seen, drawing = shapes_of(config), Drawing()
    rows = encoder_rows(seen, "unet.encoder")
    draw_skips(drawing, rows)
    draw_middle(drawing, seen, rows)
    draw_arm(drawing, rows, LEFT, "unet")
    draw_arm(drawing, encoder_rows(seen, "controlnet.encoder"), CONTROL, "control")
    draw_decoder(drawing, levels_of(seen, "unet.decoder"))
    draw_autoencoder(drawing, seen, config)
    draw_latents(drawing, seen)
    draw_hint(drawing, seen, config)
    draw_text(drawing, seen, config)
    draw_legend(drawing, seen)
    for r, row in enumerate(rows):
        side, y, stair = row[0][0].gave[-1], TOP + r * ROW, (len(row) - 1) * r * STEP
        drawing.text(LEFT + stair - 10, y + 26, f"{side} x {side}", "side", "end")
        drawing.text(RIGHT - stair + BOX + 10, y + 26, f"{side} x {side}", "side", "start")
    bottom, stair = TOP + len(rows) * ROW, (len(rows[0]) - 1) * len(rows) * STEP
    drawing.text(20, TOP + 2.2 * ROW, "UNet, encoder", "title unet", "start")
    drawing.text(RIGHT + BOX + 46, TOP + 2.2 * ROW, "UNet, decoder", "title unet", "end")
    drawing.text(LEFT + stair - 12, bottom + 22, "UNet, middle", "title unet", "end")
    drawing.text(CONTROL + stair + BOX + 14, bottom + 22, "ControlNet, a trained copy", "title control", "start")
    colours = {"ink": INK, "muted": MUTED, "grid": GRID, "c": COLOURS}
    return render("bench/whole.svg.jinja", drawing=drawing, width=1280, height=bottom + 58, name=config.name, **colours)
