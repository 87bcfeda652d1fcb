"""Regions of a mask: told apart as by a flood of each, none lost at another size, outlines filled."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from ldm_us.data.records import mask_tensor, small_lesions
from ldm_us.data.regions import fill_outlines, label_regions, lost_regions, nearest_pixels, resize_mask


def flooded(mask, corners):
    """Number the regions one pixel at a time."""
    labels, found = np.zeros(mask.shape, int), 0
    for start in zip(*np.nonzero(mask), strict=True):
        if labels[start]:
            continue
        found, left = found + 1, [start]
        while left:
            i, j = left.pop()
            if 0 <= i < mask.shape[0] and 0 <= j < mask.shape[1] and mask[i, j] and not labels[i, j]:
                labels[i, j] = found
                steps = [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1) if corners or not (a and b)]
                left += [(i + a, j + b) for a, b in steps]
    return labels


@pytest.mark.parametrize("corners", [True, False])
@pytest.mark.parametrize("density", [0.0, 0.2, 0.45, 0.6, 1.0])
def test_regions_are_those_that_a_flood_finds(corners, density):
    mask = np.random.default_rng(3).random((23, 31)) < density
    assert (label_regions(mask, corners) == flooded(mask, corners)).all()


def test_a_lesion_of_16_pixels_in_1000x800_is_there_at_128():
    mask = np.zeros((800, 1000), bool)
    mask[404:408, 500:504] = True
    assert nearest_pixels(mask.astype(np.int32), 128).sum() == 0
    assert np.argwhere(resize_mask(mask, 128)).tolist() == [[406 * 128 // 800, 500 * 128 // 1000]]
    union = Image.fromarray(mask).convert("L")
    assert small_lesions(union, 128) == 1
    assert mask_tensor(union, 128).sum() == 1


def test_no_lesion_vanishes_beside_others_and_all_that_is_there_stays():
    rng = np.random.default_rng(0)
    mask = np.zeros((300, 420), bool)
    for row, column in zip(rng.integers(0, 295, 60), rng.integers(0, 415, 60), strict=True):
        mask[row : row + 3, column : column + 3] = True
    labels = label_regions(mask)
    before, after = nearest_pixels(labels, 32) > 0, resize_mask(mask, 32)
    lost = lost_regions(labels, 32)
    assert len(lost) > 20
    assert after[before].all()
    for region in lost:
        rows, columns = np.nonzero(labels == region)
        assert after[rows * 32 // 300, columns * 32 // 420].any()
    assert after.sum() <= before.sum() + len(lost)


def test_a_mask_that_loses_nothing_is_resized_by_its_nearest_pixels_to_the_bit():
    picture = Image.new("L", (300, 200))
    ImageDraw.Draw(picture).ellipse((40, 50, 160, 120), fill=255)
    ImageDraw.Draw(picture).ellipse((240, 150, 260, 170), fill=255)
    nearest = np.asarray(picture.resize((48, 48), Image.Resampling.NEAREST)) > 0
    assert (resize_mask(np.asarray(picture) > 0, 48) == nearest).all()


def test_a_slip_of_a_few_pixels_beside_a_lesion_is_lost_as_ever_but_not_a_lesion_of_a_few_pixels():
    mask = np.zeros((400, 400), bool)
    mask[1, 1:5] = True
    assert resize_mask(mask, 16).sum() == 1
    assert resize_mask(mask, 16, keep_small=False).sum() == 0
    mask[100:300, 100:300] = True
    assert lost_regions(label_regions(mask), 16) == []
    assert not resize_mask(mask, 16)[0, 0]


def test_a_closed_outline_is_filled_and_an_open_one_is_not():
    mask = Image.new("L", (60, 50))
    ImageDraw.Draw(mask).ellipse((10, 10, 40, 40), outline=255)
    ImageDraw.Draw(mask).line((45, 0, 45, 30, 59, 30), fill=255)  # closed by the edge of the picture alone
    outline = np.asarray(mask) > 0
    filled = Image.new("L", (60, 50))
    ImageDraw.Draw(filled).ellipse((10, 10, 40, 40), fill=255)
    assert (fill_outlines(outline) == (outline | (np.asarray(filled) > 0))).all()
