"""The figures of mask fidelity, by class: Dice, area error, centroid offset, nothing found, and Dice by lesion size.

Each has a 95 % interval that knows which values belong together: a bootstrap over groups, for shares Wilson's interval
of as many independent trials as there are groups, which is wide rather than narrow.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm_us.evaluation.figures import grouped_interval, mean_and_spread, wilson_interval
from ldm_us.evaluation.masks.errors import MaskErrors

SIZES = ("small", "medium", "large")  # thirds of the asked lesions by area


@dataclass(frozen=True)
class Column:
    """One comparison of n pairs: samples with their own masks, with others' masks, or real images with theirs."""

    errors: MaskErrors
    labels: Sequence[str]  # class of each
    groups: Sequence[str]  # what each belongs to: values of one group are not independent


Choose = Callable[[MaskErrors], Tensor]


def mask_figures(columns: Mapping[str, Column], pixels: int) -> dict[str, Any]:
    """All figures of all columns by class; `pixels` of an image make areas shares. The columns have the same names."""

    def table(figure: Callable[[np.ndarray, Sequence[str]], dict[str, Any]], choose: Choose) -> dict[str, Any]:
        return {name: by_class_of(column, figure, choose(column.errors)) for name, column in columns.items()}

    return {
        "images": table(count_figure, lambda errors: errors.dice),
        "dice": table(dice_figure, lambda errors: errors.dice),
        "area_error": table(median_figure, lambda errors: errors.area_error),
        "absolute_area_error": table(mean_figure, lambda errors: errors.area_error.abs()),
        "centroid_offset_pixels": table(median_figure, lambda errors: errors.offset),
        "centroid_offset_diameters": table(median_figure, lambda errors: errors.offset_in_diameters),
        "nothing_found": table(share_figure, lambda errors: errors.nothing_found),
        "dice_by_size": by_size(columns, pixels),
    }


def by_class_of(
    column: Column, figure: Callable[[np.ndarray, Sequence[str]], dict[str, Any]], values: Tensor
) -> dict[str, Any]:
    """A figure of all values (n,), and of those of each class."""
    kept = {"all": list(range(len(column.labels)))}
    for label in sorted(set(column.labels)):
        kept[label] = [i for i, other in enumerate(column.labels) if other == label]
    return {
        label: figure(values[index].double().numpy(), [column.groups[i] for i in index])
        for label, index in kept.items()
    }


def by_size(columns: Mapping[str, Column], pixels: int) -> dict[str, Any]:
    """Dice of small, medium and large lesions: thirds of what the first column asks for, the same areas in each."""
    areas = next(iter(columns.values())).errors.asked_area.double()
    bounds = torch.quantile(areas, torch.tensor([1 / 3, 2 / 3], dtype=torch.float64))
    figures: dict[str, Any] = {"bounds_as_share_of_image": [round(float(bound) / pixels, 4) for bound in bounds]}
    for name, column in columns.items():
        third = torch.bucketize(column.errors.asked_area.double(), bounds)  # 0 up to and with the first bound
        figures[name] = {}
        for i, size in enumerate(SIZES):
            index = (third == i).nonzero()[:, 0].tolist()
            if index:
                figures[name][size] = dice_figure(
                    column.errors.dice[index].double().numpy(), [column.groups[j] for j in index]
                )
    return figures


def count_figure(values: np.ndarray, groups: Sequence[str]) -> dict[str, Any]:
    """How many values, and how many groups of them."""
    return {"n": len(values), "groups": len(set(groups))}


def dice_figure(values: np.ndarray, groups: Sequence[str]) -> dict[str, Any]:
    """Mean, its interval, median and spread."""
    return mean_and_spread(values.tolist()) | interval_of(values, groups, "mean")


def mean_figure(values: np.ndarray, groups: Sequence[str]) -> dict[str, Any]:
    """Mean and its interval."""
    return {"mean": round(float(values.mean()), 3)} | interval_of(values, groups, "mean")


def median_figure(values: np.ndarray, groups: Sequence[str]) -> dict[str, Any]:
    """Median and its interval, without those that have no value."""
    there = ~np.isnan(values)
    if not there.any():
        return {"median": None, "low": None, "high": None}
    kept, of = values[there], [group for group, has in zip(groups, there, strict=True) if has]
    return {"median": round(float(np.median(kept)), 3)} | interval_of(kept, of, "median")


def share_figure(values: np.ndarray, groups: Sequence[str]) -> dict[str, Any]:
    """The share of values that are 1, and its interval."""
    share, independent = float(values.mean()), len(set(groups))
    low, high = wilson_interval(share * independent, independent)
    return {name: round(value, 3) for name, value in {"share": share, "low": low, "high": high}.items()}


def interval_of(values: np.ndarray, groups: Sequence[str], statistic: str) -> dict[str, float | None]:
    """The 95 % interval of a statistic; null for values of one group, which cannot tell."""
    interval = grouped_interval(values, groups, statistic)
    low, high = (None, None) if interval is None else (round(end, 3) for end in interval)
    return {"low": low, "high": high}
