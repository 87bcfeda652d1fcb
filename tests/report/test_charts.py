"""Charts and curves of the report: every point has its place in the picture, and every curve its values in the log."""

import math
import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from ldm_us.display.axes import Series, log_ticks, nice_ticks, number, padded
from ldm_us.report.charts import BOTTOM, LEFT, RIGHT, WIDTH, line_chart
from ldm_us.report.curves import curves
from ldm_us.training.panels import MOST_POINTS, smoothed, thinned

NAN, INF = math.nan, math.inf


class Drawing(HTMLParser):
    """The shapes of a chart."""

    def __init__(self, svg):
        super().__init__()
        self.shapes = []
        self.feed(svg)
        (box,) = [attributes["viewbox"] for tag, attributes in self.shapes if tag == "svg"]
        _, _, self.width, self.height = map(float, box.split())

    def handle_starttag(self, tag, attrs):
        self.shapes.append((tag, dict(attrs)))

    def of(self, tag):
        return [attributes for name, attributes in self.shapes if name == tag]

    def lines(self):
        return [[tuple(map(float, p.split(","))) for p in line["points"].split()] for line in self.of("polyline")]

    def dots(self):
        return [(float(dot["cx"]), float(dot["cy"])) for dot in self.of("circle")]


def points_of(values):
    return [(float(step), value) for step, value in enumerate(values)]


@pytest.mark.parametrize("log_scale", [False, True])
@pytest.mark.parametrize(
    "values",
    [
        [1.0, 0.5, 0.25],
        [3.0],
        [0.0],
        [2.0, 2.0, 2.0],
        [0.0, 0.0],
        [-1.0, 1.0],
        [1e-12, 1e12],
        [1.0, 1.0 + 1e-15],
        [NAN, 1.0, NAN, 2.0, 3.0, INF, 4.0, 5.0],
        [NAN, NAN],
        [INF],
        [-INF, 1e300, 1.0],
        [],
    ],
    ids=str,
)
def test_every_point_lies_inside_the_view_box_and_what_is_no_number_is_left_out(values, log_scale):
    drawing = Drawing(line_chart([Series("a", points_of(values))], "name", "unit", log_scale))
    assert not re.search(r"\bnan\b|\binf\b", str(drawing.shapes))
    placed = [point for line in drawing.lines() for point in line] + drawing.dots()
    for x, y in placed:
        assert LEFT - 0.1 <= x <= WIDTH - RIGHT + 0.1
        assert 0 <= y <= drawing.height - BOTTOM + 0.1
    finite = [value for value in values if abs(value) < 1e30 and (value > 0 or not log_scale)]
    assert len(drawing.dots()) == len(finite)


def test_a_line_breaks_where_a_value_is_missing():
    drawing = Drawing(line_chart([Series("a", points_of([1, 2, NAN, 4, NAN, 6, 7, 8]))], "name", "unit"))
    assert [len(line) for line in drawing.lines()] == [2, 3]
    assert len(drawing.dots()) == 6, "the lonely 4 is a dot"


def test_without_any_number_a_chart_says_so():
    assert "no finite value" in line_chart([Series("a", [(0, NAN)])], "name", "unit")


def test_steps_go_right_and_large_values_up_in_proportion():
    ((a, b, c),) = Drawing(line_chart([Series("a", [(0, 0.0), (50, 1.0), (100, 2.0)])], "n", "u")).lines()
    assert a[0] == LEFT
    assert c[0] == WIDTH - RIGHT
    assert b == pytest.approx(((a[0] + c[0]) / 2, (a[1] + c[1]) / 2), abs=0.11)
    assert c[1] < b[1] < a[1]


def test_on_a_log_scale_equal_factors_are_equal_distances():
    ((a, b, c),) = Drawing(line_chart([Series("a", points_of([0.01, 0.1, 1.0]))], "n", "u", log_scale=True)).lines()
    assert b[1] == pytest.approx((a[1] + c[1]) / 2, abs=0.11)


def test_several_series_have_a_legend_that_stays_inside_and_one_alone_has_none():
    series = [Series(f"a series with a long name {i}", points_of([i, i + 1])) for i in range(5)]
    svg = line_chart([*series, Series("hidden", [(0, 1)], in_legend=False)], "name", "unit")
    drawing = Drawing(svg)
    assert all(f"long name {i}</text>" in svg for i in range(5))
    assert "hidden</text>" not in svg
    assert all(
        0 <= float(text["x"]) <= WIDTH and 0 <= float(text["y"]) <= drawing.height for text in drawing.of("text")
    )
    assert "long name 0</text>" not in line_chart(series[:1], "name", "unit")


def test_names_and_units_are_escaped_and_dots_tell_their_value():
    svg = line_chart([Series('<a> & "b"', [(3, 0.125)]), Series("c", [])], '"name"<', "<unit>")
    assert "<unit>" not in svg
    assert "&lt;unit&gt;" in svg
    assert 'aria-label="&quot;name&quot;&lt;"' in svg
    assert "<title>&lt;a&gt; &amp; &quot;b&quot;, step 3: 0.125</title>" in svg


@pytest.mark.parametrize("low", [-3.0, 0.0, 0.1, 977.0])
@pytest.mark.parametrize("span", [1e-4, 0.3, 1.0, 7.0, 12345.0])
def test_ticks_are_few_round_and_inside(low, span):
    ticks = nice_ticks(low, low + span, 5)
    assert 2 <= len(ticks) <= 6
    distance = ticks[1] - ticks[0]
    assert all(low - 1e-6 * span <= tick <= low + span * (1 + 1e-6) for tick in ticks)
    assert [b - a for a, b in pairwise(ticks)] == pytest.approx([distance] * (len(ticks) - 1))
    assert f"{distance:.0e}"[0] in "125"


@pytest.mark.parametrize(("low", "high"), [(-4.0, 2.0), (-2.1, -0.3), (0.0, 0.9), (0.30, 0.34), (-12.5, 12.5)])
def test_log_ticks_are_inside(low, high):
    ticks = log_ticks(low, high)
    assert len(ticks) >= 2
    assert ticks == sorted(ticks)
    assert all(low - 1e-6 <= math.log10(tick) <= high + 1e-6 for tick in ticks)


def test_a_constant_gets_room_on_both_sides():
    for value in (0.0, 5.0, -5.0, 1e-9):
        low, high = padded(value, value)
        assert low < value < high


def test_numbers_are_short():
    assert [number(v) for v in (0.1 + 0.2, 500.0, 15_000, 0.0, 1e-5)] == ["0.3", "500", "15k", "0", "1e-05"]


CURVES = {
    "Training loss": {"loss": 0.5},
    "Validation loss by timestep": {"val_loss": 0.5, "val_loss_0_249": 0.8, "val_loss_250_499": 0.2},
    "Does the mask help?": {"val_loss_true_mask": 0.1, "val_loss_shuffled_mask": 0.2, "val_loss_empty_mask": 0.3},
    "Control gap": {"control_gap": 0.1},
    "Zero convolutions": {f"zero_conv_norm_{i:02d}": 0.1 * i for i in range(13)},
    "PSNR of held-out images": {"val_psnr_db": 20.0},
    "L1 of held-out images": {"val_l1": 0.1},
    "Gradient norm": {"grad_norm": 1.0},
    "Learning rate": {"lr": 1e-4},
    "Speed": {"images_per_s": 5.0},
}


@pytest.mark.parametrize("title", CURVES)
def test_a_curve_is_drawn_when_its_values_are_in_the_log_and_not_otherwise(title):
    everything = {name: value for values in CURVES.values() for name, value in values.items()}
    without = {name: value for name, value in everything.items() if name not in CURVES[title]}
    for stage in ("vae", "unet", "controlnet"):
        (curve,) = curves(stage, [{"step": 0} | CURVES[title], {"step": 5} | CURVES[title]])
        assert curve.title == title
        assert curve.meaning.endswith(".")
        assert [line["points"] for line in Drawing(curve.svg).of("polyline")]
        assert {curve.title for curve in curves(stage, [{"step": 0} | without])} == CURVES.keys() - {title}
    assert {curve.title for curve in curves("unet", [{"step": 0} | everything])} == CURVES.keys()


def test_bands_are_in_the_order_of_t_whatever_the_number_of_timesteps():
    line = {"step": 0, "val_loss_75_99": 0.1, "val_loss_0_24": 0.2, "val_loss_25_74": 0.3, "val_loss_true_mask": 9.0}
    (svg,) = [curve.svg for curve in curves("unet", [line]) if curve.title.startswith("Validation")]
    assert svg.index("t 0-24<") < svg.index("t 25-74<") < svg.index("t 75-99<") < svg.index("mean<")


def test_all_zero_convolutions_are_drawn_and_three_are_named():
    lines = [{"step": step} | CURVES["Zero convolutions"] for step in (0, 5)]
    (curve,) = curves("controlnet", lines)
    assert len(Drawing(curve.svg).of("polyline")) == 13
    assert [name for name in ("first skip", "halfway", "middle block") if f"{name}</text>" in curve.svg] != []
    assert "13 convolutions" in curve.meaning


def test_a_running_mean_keeps_a_line_and_leaves_out_what_is_no_number():
    line = [(float(i), 2.0 * i) for i in range(20)]
    assert smoothed(line, 5)[2:-2] == line[2:-2]
    assert smoothed([(0, 1.0), (1, NAN), (2, 3.0)], 3) == [(0, 1.0), (1, 2.0), (2, 3.0)]
    assert math.isnan(smoothed([(0, NAN)], 3)[0][1])


@pytest.mark.parametrize("n", [0, 1, 5, MOST_POINTS, MOST_POINTS + 1, 5 * MOST_POINTS + 3])
def test_thinning_keeps_the_first_and_the_last_point_and_few_between(n):
    line = [(float(i), 0.0) for i in range(n)]
    thin = thinned(line)
    assert len(thin) <= MOST_POINTS + 1
    assert thin[:1] == line[:1]
    assert thin[-1:] == line[-1:]
    assert thin == sorted(set(thin))
