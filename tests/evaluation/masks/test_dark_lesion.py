"""The rule that finds a dark lesion, and the Dice and PSNR that are made of it."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_fill_holes, label

from ldm_us.evaluation.judge.training import gaussian_blur
from ldm_us.evaluation.mask_errors import dice
from ldm_us.evaluation.masks.dark_lesion import ALL_8, dark_lesion
from ldm_us.training.reconstruction import psnr


def ellipse(size, centre, radii):
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    inside = ((y - centre[0]) / radii[0]) ** 2 + ((x - centre[1]) / radii[1]) ** 2 <= 1
    return inside.float()[None]


def speckled(mask, contrast, seed=0):
    noise = torch.randn(mask.shape, generator=torch.Generator().manual_seed(seed))
    return (0.5 - contrast * mask + 0.08 * noise).clamp(0, 1)


@pytest.mark.parametrize("centre", [(45, 64), (60, 40), (40, 90)])
def test_a_dark_ellipse_in_speckle_is_found_where_it_is(centre):
    mask = ellipse(128, centre, (14, 20))
    assert dice(dark_lesion(speckled(mask, 0.3))[None], mask[None]) > 0.75


def test_what_is_found_follows_the_image_and_not_a_fixed_place():
    left, right = ellipse(128, (50, 40), (14, 16)), ellipse(128, (50, 92), (14, 16))
    assert dice(dark_lesion(speckled(left, 0.3))[None], right[None]) < 0.05


def test_a_bright_ellipse_is_not_taken_for_a_dark_lesion():
    mask = ellipse(128, (50, 64), (14, 20))
    assert dice(dark_lesion(speckled(mask, -0.3))[None], mask[None]) < 0.2


def test_a_flat_image_has_no_lesion():
    assert dark_lesion(torch.full((1, 64, 64), 0.5)).sum() == 0


def test_regions_are_8_connected_and_get_one_label_each():
    binary = np.array([[1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 0, 0], [1, 1, 0, 1]], bool)
    labels, _ = label(binary, ALL_8)
    assert labels[0, 0] == labels[1, 1] > 0
    assert labels[0, 3] == labels[1, 3] > 0
    assert len(np.unique(labels)) == 5  # background and four regions
    assert ((labels > 0) == binary).all()


def test_holes_are_filled_and_bays_are_not():
    ring = (ellipse(32, (16, 16), (10, 10)) - ellipse(32, (16, 16), (5, 5)))[0].numpy()
    assert (binary_fill_holes(ring, ALL_8) == ellipse(32, (16, 16), (10, 10))[0].numpy()).all()
    bay = ring.copy()
    bay[14:18, :16] = 0
    assert (binary_fill_holes(bay, ALL_8) == bay).all()


def test_blur_keeps_a_constant_and_has_the_variance_asked_for():
    assert torch.allclose(gaussian_blur(torch.full((1, 1, 16, 16), 0.3), 2.0), torch.full((1, 1, 16, 16), 0.3))
    impulse = torch.zeros(1, 1, 41, 41)
    impulse[0, 0, 20, 20] = 1
    spread = gaussian_blur(impulse, 3.0)[0, 0]
    offsets = torch.arange(41) - 20.0
    assert float((spread.sum(0) * offsets**2).sum()) == pytest.approx(9.0, rel=0.05)


def test_dice_has_its_closed_form_values():
    a = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 0], [1, 0, 0, 0]]).float().view(4, 1, 1, 4)
    b = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [0, 1, 1, 1], [0, 0, 0, 1]]).float().view(4, 1, 1, 4)
    assert dice(a, b).tolist() == pytest.approx([1.0, 1.0, 2 / 3, 0.0])


def test_psnr_of_a_known_error():
    x = torch.full((1, 8, 8), 0.5)
    assert psnr(x + 0.1, x) == pytest.approx(20.0, abs=1e-4)
    assert psnr(x + 0.01, x) == pytest.approx(20 * math.log10(100), abs=1e-3)
