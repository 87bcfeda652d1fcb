"""ldm_us/evaluation/mask_errors.py against closed forms."""

import math

import pytest
import torch
from torch import Tensor

from ldm_us.evaluation.mask_errors import dice, joined, mask_errors

SIDE = 64


def boxes(*places: tuple[int, int, int, int]) -> Tensor:
    """A mask (1, 1, SIDE, SIDE) of boxes (top, left, height, width)."""
    mask = torch.zeros(1, 1, SIDE, SIDE)
    for top, left, h, w in places:
        mask[..., top : top + h, left : left + w] = 1
    return mask


def test_a_perfect_finder_has_a_dice_of_1_and_no_errors() -> None:
    mask = boxes((10, 20, 8, 12), (40, 5, 3, 3))
    errors = mask_errors(mask, mask)
    assert (errors.dice.item(), errors.area_error.item(), errors.offset.item()) == (1, 0, 0)
    assert not errors.nothing_found.item()


@pytest.mark.parametrize(("down", "across"), [(3, 4), (0, -5), (-6, 8)])
def test_a_shifted_lesion_is_off_by_its_shift_and_has_the_area_asked_for(down: int, across: int) -> None:
    errors = mask_errors(boxes((20 + down, 20 + across, 10, 16)), boxes((20, 20, 10, 16)))
    assert errors.offset.item() == pytest.approx(math.hypot(down, across), abs=1e-5)
    assert errors.offset_in_diameters.item() == pytest.approx(
        math.hypot(down, across) / (2 * math.sqrt(160 / math.pi)), rel=1e-5
    )
    assert errors.area_error.item() == 0
    overlap = (10 - abs(down)) * (16 - abs(across))
    assert errors.dice.item() == pytest.approx(2 * overlap / 320)


@pytest.mark.parametrize("growth", [2, 3])
def test_a_lesion_grown_about_its_centre_has_the_area_error_of_its_factor_and_no_offset(growth: int) -> None:
    h, w = 6, 10
    grown = boxes((30 - h * growth // 2, 30 - w * growth // 2, h * growth, w * growth))
    asked = boxes((30 - h // 2, 30 - w // 2, h, w))
    errors = mask_errors(grown, asked)
    assert errors.area_error.item() == pytest.approx(growth**2 - 1)
    assert errors.offset.item() == pytest.approx(0, abs=1e-5)
    assert errors.dice.item() == pytest.approx(2 / (1 + growth**2))
    assert mask_errors(asked, grown).area_error.item() == pytest.approx(1 / growth**2 - 1)


def test_where_nothing_is_found_the_area_is_missing_and_there_is_no_offset() -> None:
    errors = mask_errors(torch.zeros(1, 1, SIDE, SIDE), boxes((3, 3, 4, 4)))
    assert (errors.dice.item(), errors.area_error.item(), errors.nothing_found.item()) == (0, -1, True)
    assert math.isnan(errors.offset.item())


def test_several_lesions_count_as_their_union() -> None:
    """One of two equal lesions found: half the area, and half of the way between them off."""
    errors = mask_errors(boxes((10, 10, 6, 6)), boxes((10, 10, 6, 6), (10, 40, 6, 6)))
    assert errors.dice.item() == pytest.approx(2 * 36 / (36 + 72))
    assert errors.area_error.item() == -0.5
    assert errors.offset.item() == pytest.approx(15)


def test_disjoint_masks_have_a_dice_of_0_and_two_empty_ones_of_1() -> None:
    assert dice(boxes((0, 0, 5, 5)), boxes((20, 20, 5, 5))).item() == 0
    assert dice(boxes(), boxes()).item() == 1


def test_pairs_are_measured_each_for_itself_and_batches_joined_in_order() -> None:
    found = torch.cat([boxes((0, 0, 5, 5)), boxes((9, 9, 5, 7)), boxes((2, 2, 5, 5))])
    asked = torch.cat([boxes((0, 0, 5, 6)), boxes((9, 12, 5, 7)), boxes((30, 30, 9, 9))])
    whole = mask_errors(found, asked)
    parts = joined([mask_errors(found[:1], asked[:1]), mask_errors(found[1:], asked[1:])])
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))
    assert whole.dice.tolist() == pytest.approx([50 / 55, 2 * 20 / 70, 0])
