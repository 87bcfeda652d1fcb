"""Charts and curves of the report: every point has its place in the picture, and every curve its values in the log."""

import math
import re
from xml.etree import ElementTree

import pytest

from ldm_us.display.pages import environment
from ldm_us.report.curves import ABOVE, BOTTOM, HEIGHT, LEFT, RIGHT, WIDTH, curves, draw
from ldm_us.training.curves import MOST_POINTS, Panel, Series, smoothed, thinned

NAN, INF = math.nan, math.inf
MEANINGS = environment().get_template("ldm_us/report/meanings.html").module


class Drawing:
    """The shapes of a chart, those of its series apart from those of its legend."""

    def __init__(self, svg):
        self.root = ElementTree.fromstring(svg)
        _, _, self.width, self.height = map(float, self.root.get("viewBox").split())
        self.series = [group for group in self.root.iter("g") if group.get("class", "").startswith("series")]

    def of(self, tag):
        return [element.attrib for element in self.root.iter(tag)]

    def lines(self):
        """The points of every unbroken piece of every series."""
        paths = [path for series in self.series for path in series.findall("path")]
        pieces = [piece for path in paths for piece in path.get("d", "").split("M")[1:] if "L" in piece]
        return [[tuple(map(float, point.split())) for point in piece.split("L")] for piece in pieces]

    def dots(self):
        return [(float(dot.get("x")), float(dot.get("y"))) for series in self.series for dot in series.iter("use")]


def points_of(values):
    return [(float(step), value) for step, value in enumerate(values)]


def drawn(*series, name="name", unit="unit", log_scale=False):
    return draw(Panel("title", unit, series, log_scale), name)


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
def test_every_point_lies_inside_the_axes_and_what_is_no_number_is_left_out(values, log_scale):
    drawing = Drawing(drawn(Series("a", points_of(values)), log_scale=log_scale))
    assert not re.search(r"\bnan\b|\binf\b", ElementTree.tostring(drawing.root, encoding="unicode"))
    placed = [point for line in drawing.lines() for point in line] + drawing.dots()
    for x, y in placed:
        assert LEFT - 0.1 <= x <= WIDTH - RIGHT + 0.1
        assert 0 <= y <= drawing.height - BOTTOM + 0.1
    finite = [value for value in values if abs(value) < 1e30 and (value > 0 or not log_scale)]
    assert len(drawing.dots()) == len(finite)


def test_a_line_breaks_where_a_value_is_missing():
    drawing = Drawing(drawn(Series("a", points_of([1, 2, NAN, 4, NAN, 6, 7, 8]))))
    assert [len(line) for line in drawing.lines()] == [2, 3]
    assert len(drawing.dots()) == 6, "the lonely 4 is a dot"


def test_without_any_number_a_chart_says_so():
    svg = drawn(Series("a", [(0, NAN)]))
    assert "no finite value" in svg
    assert len(re.findall("<text", svg)) == 2, "no axes: the unit and the sentence"


def test_steps_go_right_and_large_values_up_in_proportion():
    ((a, b, c),) = Drawing(drawn(Series("a", [(0, 0.0), (50, 1.0), (100, 2.0)]))).lines()
    assert a[0] == LEFT
    assert c[0] == WIDTH - RIGHT
    assert b == pytest.approx(((a[0] + c[0]) / 2, (a[1] + c[1]) / 2), abs=0.11)
    assert c[1] < b[1] < a[1]


def test_on_a_log_scale_equal_factors_are_equal_distances():
    ((a, b, c),) = Drawing(drawn(Series("a", points_of([0.01, 0.1, 1.0])), log_scale=True)).lines()
    assert b[1] == pytest.approx((a[1] + c[1]) / 2, abs=0.11)


def test_a_constant_is_seen_in_the_middle():
    (line,) = Drawing(drawn(Series("a", points_of([2.0, 2.0, 2.0])))).lines()
    above, below = line[0][1] - ABOVE, HEIGHT - BOTTOM - line[0][1]
    assert above == pytest.approx(below, abs=0.1)


def test_several_series_have_a_legend_that_stays_inside_and_one_alone_has_none():
    series = [Series(f"a series with a name {i}", points_of([i, i + 1])) for i in range(5)]
    svg = drawn(*series, Series("hidden", [(0, 1)], in_legend=False))
    drawing = Drawing(svg)
    assert all(f"a name {i}</text>" in svg for i in range(5))
    assert "hidden</text>" not in svg
    assert all(
        0 <= float(text["x"]) <= WIDTH and 0 <= float(text["y"]) <= drawing.height for text in drawing.of("text")
    )
    assert "a name 0</text>" not in drawn(series[0])


def test_names_and_units_are_escaped_and_dots_tell_their_value():
    svg = drawn(Series('<a> & "b"', [(3, 0.125)]), Series("c", []), name='"name"<', unit="<unit>")
    assert "<unit>" not in svg
    assert "&lt;unit&gt;" in svg
    assert 'aria-label="&quot;name&quot;&lt;"' in svg
    assert '<title>&lt;a&gt; &amp; "b", step 3: 0.125</title>' in svg


CURVES = {
    "Training loss": {"loss": 0.5},
    "Validation loss by timestep": {"val_loss": 0.5, "val_loss_0_249": 0.8, "val_loss_250_499": 0.2},
    "Does the mask help?": {"val_loss_true_mask": 0.1, "val_loss_shuffled_mask": 0.2, "val_loss_empty_mask": 0.3},
    "Control gap": {"control_gap": 0.1},
    "Zero convolutions": {f"zero_conv_norm_{i:02d}": 0.1 * i for i in range(13)},
    "PSNR of held-out images": {"val_psnr_db": 20.0},
    "L1 of held-out images": {"val_l1": 0.1},
    "Perceptual distance": {"perceptual": 0.3},
    "Adversarial loss": {"adversarial": -0.2},
    "Adaptive weight": {"lambda": 2.0},
    "Discriminator's loss": {"discriminator": 0.9},
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
        assert curve.panel.title == title
        assert MEANINGS.curve(stage, curve.panel).endswith(".")
        assert all(len(line) == 2 for line in Drawing(curve.svg).lines())
        assert {curve.panel.title for curve in curves(stage, [{"step": 0} | without])} == CURVES.keys() - {title}
    assert {curve.panel.title for curve in curves("unet", [{"step": 0} | everything])} == CURVES.keys()


def test_bands_are_in_the_order_of_t_whatever_the_number_of_timesteps():
    line = {
        "val_loss_75_99": 0.1,
        "val_loss_0_24": 0.2,
        "val_loss_25_74": 0.3,
        "val_loss": 0.2,
        "val_loss_true_mask": 9,
    }
    (svg,) = [curve.svg for curve in curves("unet", [{"step": 0} | line]) if curve.panel.title.startswith("Validation")]
    assert svg.index("t 0-24<") < svg.index("t 25-74<") < svg.index("t 75-99<") < svg.index("mean<")


def test_all_zero_convolutions_are_drawn_and_three_are_named():
    lines = [{"step": step} | CURVES["Zero convolutions"] for step in (0, 5)]
    (curve,) = curves("controlnet", lines)
    assert len(Drawing(curve.svg).lines()) == 13
    assert [name for name in ("first skip", "halfway", "middle block") if f"{name}</text>" in curve.svg] != []
    assert "13 convolutions" in MEANINGS.curve("controlnet", curve.panel)


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
