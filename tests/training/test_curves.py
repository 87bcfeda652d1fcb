"""curves.png: a panel for what the log holds, every point inside it, and no log that breaks it."""

import json
import math

import numpy as np
import pytest
from PIL import Image, ImageColor

from ldm_us.display.charts import COLOURS
from ldm_us.training import curves
from ldm_us.training.curves import HEAD, HEIGHT, WIDTH, draw_curves, panels, write_curves
from ldm_us.training.log import read_lines

pytestmark = pytest.mark.usefixtures("drawn_curves")
NAN, INF = math.nan, math.inf
TRAINING = {"loss": 0.5, "grad_norm": 1.0, "lr": 1e-4, "images_per_s": 5.0}
BANDS = {"val_loss": 0.3, "val_loss_0_499": 0.5, "val_loss_500_999": 0.1}
MASKS = {f"val_loss_{kind}_mask": 0.1 * i for i, kind in enumerate(("true", "shuffled", "empty"), 1)}
CONTROL = {**BANDS, **MASKS, "control_gap": 0.1, **{f"zero_conv_norm_{i:02d}": 0.1 * i for i in range(13)}}
LOGS = {
    "vae": [TRAINING, {"val_psnr_db": 20.0, "val_l1": 0.1}],
    "unet": [TRAINING, BANDS],
    "controlnet": [TRAINING, CONTROL],
}


def log_of(values, steps=30):
    return [{"step": step} | {name: v * (1 + 0.3 * math.sin(step)) for name, v in values.items()}
            for step in range(steps)]  # fmt: skip


def opened(path):
    with Image.open(path) as picture:
        return picture.convert("RGB")


def near(picture, colour):
    """Where a picture has about this colour."""
    return np.abs(np.asarray(picture).astype(int) - ImageColor.getrgb(colour)).max(axis=-1) < 16


@pytest.mark.parametrize("stage", LOGS)
def test_there_is_one_panel_for_each_chart_of_the_log_in_two_columns(tmp_path, stage):
    lines = [line for values in LOGS[stage] for line in log_of(values)]
    draw_curves(lines, tmp_path / "curves.png")
    picture = opened(tmp_path / "curves.png")
    count = {"vae": 6, "unet": 5, "controlnet": 8}[stage]
    assert len(panels(lines)) == count
    assert picture.size == (2 * WIDTH, HEAD + math.ceil(count / 2) * HEIGHT)
    for i in range(math.ceil(count / 2) * 2):
        left, top = i % 2 * WIDTH, HEAD + i // 2 * HEIGHT
        strokes = near(picture.crop((left, top, left + WIDTH, top + HEIGHT)), COLOURS[0]).sum()
        assert (strokes > 100) == (i < count), "a panel has a blue line, and an empty place has none"


def test_a_line_of_the_log_is_drawn_where_its_value_is(tmp_path):
    draw_curves([{"step": 0, "lr": 1.0}, {"step": 50, "lr": 2.0}, {"step": 100, "lr": 1.5}], tmp_path / "curves.png")
    picture = opened(tmp_path / "curves.png")
    assert picture.size == (WIDTH, HEAD + HEIGHT), "one panel takes one column"
    rows, columns = np.nonzero(near(picture, COLOURS[0]))
    left, right = columns.min(), columns.max()
    peak = columns[rows == rows.min()].mean()
    assert peak == pytest.approx((left + right) / 2, abs=3)
    start, end = (rows[np.abs(columns - place) <= 2].mean() for place in (left + 3, right - 3))
    assert (start - end) / (start - rows.min()) == pytest.approx(0.5, abs=0.1)


def test_the_colours_of_the_bands_tell_them_apart_and_so_do_their_dashes(tmp_path):
    bands = {f"val_loss_{i * 250}_{i * 250 + 249}": 10.0**-i for i in range(4)}
    draw_curves([{"step": step} | bands for step in (0, 500, 1000)], tmp_path / "curves.png")
    inks = [near(opened(tmp_path / "curves.png"), colour).sum() for colour in COLOURS[:4]]
    assert all(ink > 200 for ink in inks)
    assert inks[1] < 0.9 * inks[0]
    assert inks[2] < 0.9 * inks[1]


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [{"step": 0}],
        [{"step": 1, "loss": 0.5}],
        [{"step": 1, "loss": NAN}],
        [{"step": 0, "loss": INF, "lr": 0.0, "val_loss_0_9": NAN}, {"step": 1, "loss": -INF}],
        [{"step": 5, **dict.fromkeys(TRAINING | CONTROL, NAN)}] * 3,
        [{"step": step, "loss": value} for step, value in enumerate([1e300, -1e300, 1e-300, 0, 0.1, NAN] * 9)],
        [{"step": 7, **TRAINING}, {"step": 7, **TRAINING}],
        [{"step": step, "loss": 0.2} for step in range(5000)],
        [{"step": 10**11, "loss": 0.2, "val_loss_0_9": 0.0}],
    ],
    ids=lambda lines: f"{len(lines)} lines, the first {lines[:1]}"[:60],
)
def test_no_log_breaks_the_drawing(tmp_path, lines):
    draw_curves(lines, tmp_path / "curves.png")
    assert opened(tmp_path / "curves.png").size[0] >= WIDTH


@pytest.mark.parametrize("name", ["$a_{$", "\\frac{", "\u4e2d\u6587", "\udcff\n"])
def test_no_name_of_a_run_breaks_the_drawing(tmp_path, name, recwarn):
    (tmp_path / name).mkdir()
    draw_curves(log_of(TRAINING), tmp_path / name / "curves.png")
    assert opened(tmp_path / name / "curves.png").size[0] == 2 * WIDTH
    assert not recwarn.list


def test_the_same_log_gives_the_same_bytes(tmp_path):
    for name in ("a.png", "b.png"):
        draw_curves(log_of(TRAINING | CONTROL), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_what_is_no_whole_line_of_numbers_is_left_out(tmp_path):
    log = tmp_path / "log.jsonl"
    assert read_lines(log) == []
    rows = ['{"step": 1, "loss": 0.5, "note": "x"}', '"text"', "5", '{"loss": 1}', '{"step": NaN, "loss": 1}', "\xff{"]
    log.write_bytes("\n".join([*rows, '{"step": 2, "loss": 0.4}', '{"step": 3, "lo']).encode("latin-1"))
    assert read_lines(log) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.4}]


def test_a_run_without_a_log_has_no_picture(tmp_path):
    write_curves(tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "log.jsonl").write_text(json.dumps({"step": 1, "loss": 0.5}) + "\n")
    write_curves(tmp_path)
    assert (tmp_path / "curves.png").exists()


@pytest.mark.parametrize(
    ("flags", "drawn"),
    [
        (("--validate-every", 2), 3),  # after steps 2 and 4, and at the end
        (("--validate-every", 0, "--save-every", 3), 2),  # after step 3, and at the end
        (("--validate-every", 0), 1),
    ],
)
def test_a_run_draws_its_curves_at_each_validation_at_each_state_and_at_the_end(
    run, chain, tmp_path, monkeypatch, flags, drawn
):
    pictures = []
    monkeypatch.setattr(curves, "save_png", lambda picture, path: pictures.append((picture, path)))
    run("unet", tmp_path / "run", "--steps", 5, *flags, weights=chain["vae"].path)
    assert len(pictures) == drawn
    assert {path for _, path in pictures} == {tmp_path / "run" / "curves.png"}
