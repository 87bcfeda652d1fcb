"""ldm_us/evaluation/masks/figures.py, and the picture: what is counted in which class, size and row."""

import json

import numpy as np
import pytest
import torch
from torch import Tensor

from ldm_us.evaluation.figures import wilson_interval
from ldm_us.evaluation.mask_errors import MaskErrors
from ldm_us.evaluation.masks.figures import Column, mask_figures, share_figure
from ldm_us.evaluation.masks.picture import FOUND, Shown, chosen, draw_mask_picture, outlines, shown

NAN = float("nan")


def column(dice: list[float], **changes: list) -> Column:
    n = len(dice)
    values = {"area_error": [0.0] * n, "offset": [1.0] * n, "asked_area": [100.0] * n} | changes
    labels = values.pop("labels", ["benign"] * n)
    groups = values.pop("groups", [str(i) for i in range(n)])
    return Column(MaskErrors(torch.tensor(dice), **{k: torch.tensor(v) for k, v in values.items()}), labels, groups)


def test_every_figure_is_over_all_and_over_each_class() -> None:
    labels = ["benign"] * 3 + ["malignant"]
    true = column([0.2, 0.4, 0.9, 0.5], area_error=[-1, 0.5, 0.25, 0], offset=[NAN, 4, 2, 8], labels=labels)
    figures = mask_figures({"true": true}, 1000)
    assert {label: one["mean"] for label, one in figures["dice"]["true"].items()} == {
        "all": 0.5,
        "benign": 0.5,
        "malignant": 0.5,
    }
    assert figures["area_error"]["true"]["benign"]["median"] == 0.25
    assert figures["absolute_area_error"]["true"]["benign"]["mean"] == pytest.approx(1.75 / 3, abs=5e-4)
    assert figures["centroid_offset_pixels"]["true"]["benign"]["median"] == 3, "of the two that were found"
    assert figures["nothing_found"]["true"]["benign"]["share"] == pytest.approx(1 / 3, abs=5e-4)
    assert figures["nothing_found"]["true"]["malignant"]["share"] == 0
    assert figures["images"]["true"]["malignant"] == {"n": 1, "groups": 1}
    assert figures["dice"]["true"]["malignant"]["low"] is None, "one group has no interval"


def test_nothing_found_at_all_is_null_and_not_the_nan_that_json_does_not_know() -> None:
    figures = mask_figures({"true": column([0.0, 0.0], area_error=[-1, -1], offset=[NAN, NAN])}, 1000)
    assert figures["centroid_offset_pixels"]["true"]["all"]["median"] is None
    json.dumps(figures, allow_nan=False)


def test_thirds_by_size_are_those_of_the_asked_masks_in_every_column() -> None:
    true = column([0.1, 0.2, 0.5, 0.6, 0.8, 1.0], asked_area=[10, 20, 30, 40, 50, 60])
    real = column([0.7, 0.9], asked_area=[12, 55])
    figures = mask_figures({"true": true, "real": real}, 1000)["dice_by_size"]
    assert {size: one["mean"] for size, one in figures["true"].items()} == pytest.approx(
        {"small": 0.15, "medium": 0.55, "large": 0.9}
    )
    assert {size: one["mean"] for size, one in figures["real"].items()} == pytest.approx({"small": 0.7, "large": 0.9})
    low, high = figures["bounds_as_share_of_image"]
    assert 0.02 < low < 0.03 < 0.04 < high < 0.05


def test_shares_have_the_interval_of_as_many_trials_as_groups() -> None:
    figure = share_figure(np.array([1, 1, 0, 0, 0, 0], bool), ["a", "a", "b", "b", "c", "c"])
    assert (figure["low"], figure["high"]) == pytest.approx(wilson_interval(1, 3), abs=5e-4)


def box(top: int, left: int, h: int, w: int) -> Tensor:
    mask = torch.zeros(1, 16, 16)
    mask[:, top : top + h, left : left + w] = 1
    return mask


def test_outlines_are_closed_one_for_each_lesion_and_hole_and_enclose_the_area() -> None:
    mask = (box(2, 2, 4, 6) + box(10, 9, 5, 5) - box(12, 11, 1, 1))[0].numpy() > 0
    loops = outlines(mask)
    assert len(loops) == 3
    assert all((loop[0] == loop[-1]).all() for loop in loops)
    areas = []
    for loop in loops:
        x, y = loop.T
        areas.append(float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2))  # shoelace formula
    assert sorted(areas) == [-0.5, 23.5, 24.5], "corners are cut by 1/8 each, and a hole turns the other way"
    assert outlines(np.zeros((4, 4), bool)) == []


def test_pixels_that_touch_at_a_corner_and_at_the_border_have_closed_outlines_too() -> None:
    mask = np.eye(5, dtype=bool)
    loops = outlines(mask)
    assert all((loop[0] == loop[-1]).all() for loop in loops)
    assert sum(len(loop) - 1 for loop in loops) == 4 * 5, "every pixel edge once"


def test_the_worst_the_median_and_the_best_of_each_class_are_shown() -> None:
    one = column([0.5, 0.1, 0.9, 0.3, 0.7, 0.6], labels=["benign"] * 5 + ["malignant"])
    index = chosen(one)
    assert index == [1, 0, 2, 5, 5, 5]
    images = torch.stack([box(2, 2, 5, 5)] * 6)
    rows = shown(one, index, images, images, find=lambda x: x * 0)
    assert [row.dice for row in rows["benign"]] == pytest.approx([0.1, 0.5, 0.9])
    assert not any(row.found.any() for row in rows["malignant"])


def test_the_picture_has_a_row_for_each_class_and_shows_what_was_found_in_its_colour() -> None:
    found, missed = (
        Shown(box(0, 0, 16, 16) * 0.2, box(2, 2, 5, 5), mask, 0.0) for mask in (box(3, 3, 6, 6), box(0, 0, 0, 0))
    )
    two = draw_mask_picture(*[{"benign": [found] * 3, "malignant": [found] * 3}] * 2, "judge")
    one, without = (draw_mask_picture({"benign": [x] * 3}, {"benign": [x] * 3}, "judge") for x in (found, missed))
    assert two.width == one.width
    assert two.height > one.height

    def coloured(picture):
        rgb = np.asarray(picture)[90:].astype(int)
        return int((np.abs(rgb - [int(FOUND[i : i + 2], 16) for i in (1, 3, 5)]).sum(axis=2) < 40).sum())

    assert coloured(one) > 500
    assert coloured(without) == 0
