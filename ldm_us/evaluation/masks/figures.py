"""The figures of mask fidelity, by class: Dice, area error, centroid offset, nothing found, and Dice by lesion size.

Each has a 95 % interval that knows which values belong together: of whole groups, for shares Wilson's interval
of as many independent trials as there are groups, which is wide rather than narrow.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm_us.evaluation.figures import LEAST_GROUPS, by_class, grouped_interval, mean_and_spread, wilson_interval
from ldm_us.evaluation.mask_errors import MaskErrors

INTERVALS = f"95 %, over groups; null where the values weigh as much as fewer than {LEAST_GROUPS} groups of one size"
SIZES = ("small", "medium", "large")  # thirds of the asked lesions by area

Figure = Callable[[np.ndarray, Sequence[str]], dict[str, Any]]  # of values (n,) and their groups


@dataclass(frozen=True)
class Column:
    """One comparison of n pairs: samples with their own masks, with others' masks, or real images with theirs."""

    errors: MaskErrors
    labels: Sequence[str]  # class of each
    groups: Sequence[str]  # what each belongs to: values of one group are not independent

    def figure(self, figure: Figure, values: Tensor, members: Sequence[int]) -> dict[str, Any]:
        """A figure of some of the values (n,)."""
        return figure(values[members].double().numpy(), [self.groups[i] for i in members])

    def figure_by_class(self, figure: Figure, values: Tensor) -> dict[str, Any]:
        """A figure of all values (n,), and of those of each class."""
        return by_class(partial(self.figure, figure, values), range(len(self.labels)), self.labels)


def mask_figures(columns: Mapping[str, Column], pixels: int) -> dict[str, Any]:
    """All figures of all columns by class; `pixels` of an image make areas shares. The columns have the same names."""
    median = partial(centre_figure, "median")
    wanted: dict[str, tuple[Figure, Callable[[MaskErrors], Tensor]]] = {
        "images": (count_figure, lambda errors: errors.dice),
        "dice": (dice_figure, lambda errors: errors.dice),
        "area_error": (median, lambda errors: errors.area_error),
        "absolute_area_error": (partial(centre_figure, "mean"), lambda errors: errors.area_error.abs()),
        "centroid_offset_pixels": (median, lambda errors: errors.offset),
        "centroid_offset_diameters": (median, lambda errors: errors.offset_in_diameters),
        "nothing_found": (share_figure, lambda errors: errors.nothing_found),
    }
    figures: dict[str, Any] = {
        name: {key: column.figure_by_class(figure, values_of(column.errors)) for key, column in columns.items()}
        for name, (figure, values_of) in wanted.items()
    }
    return figures | {"dice_by_size": by_size(columns, pixels), "intervals": INTERVALS}


def by_size(columns: Mapping[str, Column], pixels: int) -> dict[str, Any]:
    """Dice of small, medium and large lesions: thirds of what the first column asks for, the same areas in each."""
    areas = next(iter(columns.values())).errors.asked_area.double()
    bounds = torch.quantile(areas, torch.tensor([1 / 3, 2 / 3], dtype=torch.float64))
    figures: dict[str, Any] = {"bounds_as_share_of_image": [round(float(bound) / pixels, 4) for bound in bounds]}
    for name, column in columns.items():
        third = torch.bucketize(column.errors.asked_area.double(), bounds)  # 0 up to and with the first bound
        members = {size: (third == i).nonzero()[:, 0].tolist() for i, size in enumerate(SIZES)}
        dice = column.errors.dice
        figures[name] = {size: column.figure(dice_figure, dice, index) for size, index in members.items() if index}
    return figures


def count_figure(values: np.ndarray, groups: Sequence[str]) -> dict[str, Any]:
    """How many values, and how many groups of them."""
    return {"n": len(values), "groups": len(set(groups))}


def dice_figure(values: np.ndarray, groups: Sequence[str]) -> dict[str, Any]:
    """Mean, its interval, median and spread."""
    ends = interval_of(values, groups, "mean")
    within = {name: None if end is None else min(max(end, 0.0), 1.0) for name, end in ends.items()}
    return mean_and_spread(values.tolist()) | within


def centre_figure(statistic: str, values: np.ndarray, groups: Sequence[str]) -> dict[str, Any]:
    """The "mean" or "median" with its interval, without those that have no value."""
    known = ~np.isnan(values)
    if not known.any():
        return {statistic: None, "low": None, "high": None}
    kept, of = values[known], [group for group, has in zip(groups, known, strict=True) if has]
    value = np.mean(kept) if statistic == "mean" else np.median(kept)
    return {statistic: round(float(value), 3)} | interval_of(kept, of, statistic)


def share_figure(values: np.ndarray, groups: Sequence[str]) -> dict[str, Any]:
    """The share of values that are 1, and its interval."""
    share, independent = float(values.mean()), len(set(groups))
    low, high = wilson_interval(share * independent, independent)
    return {name: round(value, 3) for name, value in {"share": share, "low": low, "high": high}.items()}


def interval_of(values: np.ndarray, groups: Sequence[str], statistic: str) -> dict[str, float | None]:
    """The 95 % interval of a statistic; null for values of few groups, which cannot tell."""
    interval = grouped_interval(values, groups, statistic)
    low, high = (None, None) if interval is None else (round(end, 3) for end in interval)
    return {"low": low, "high": high}
