"""Variations of images and masks: identity without a deviate, places by hand, and what a scanner never makes."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ldm_us.config import AUGMENTATIONS
from ldm_us.data.augment import DEVIATES, GAIN, SHIFT, TURN, augmented

KEYS, PLACES = ("gain", "gamma", "tgc"), ("zoom", "shift", "turn")
NONE = torch.zeros(2, 1, 48, 48, dtype=torch.bool)


def deviates(**values):
    """Deviates (2, 7) of all 0 but these, by the names of their columns."""
    columns = ("gain", "gamma", "tgc", "zoom", "down", "right", "turn")
    return torch.tensor([[values.get(name, 0.0) for name in columns]] * 2)


def image(size=(48, 48), seed=0):
    return torch.rand(2, 1, *size, generator=torch.Generator().manual_seed(seed))


def drawn(seed):
    return 2 * torch.rand(2, DEVIATES, generator=torch.Generator().manual_seed(seed)) - 1


@pytest.mark.parametrize("names", [KEYS, ("shift", "turn"), ("shift",)])
def test_deviates_of_0_change_nothing(names):
    x, masks = augmented(image(), image() > 0.5, torch.zeros(2, DEVIATES), names)
    assert torch.allclose(x, image(), atol=1e-5)
    assert torch.equal(masks, image() > 0.5)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_a_variation_that_is_not_asked_for_is_not_made(name):
    u = drawn(1)
    others = [one for one in AUGMENTATIONS if one != name]
    assert not torch.allclose(augmented(image(), NONE, u, AUGMENTATIONS)[0], augmented(image(), NONE, u, others)[0])
    columns = {"gain": [0], "gamma": [1], "tgc": [2], "zoom": [3], "shift": [4, 5], "turn": [6]}
    alone = u * torch.tensor([i in columns[name] for i in range(DEVIATES)])
    for a, b in zip(augmented(image(), NONE, u, [name]), augmented(image(), NONE, alone, [name]), strict=True):
        assert torch.equal(a, b)


@given(st.integers(0, 2**20))
def test_keys_of_the_scanner_leave_masks_and_black_as_they_are_and_stay_within_the_grey_scale(seed):
    x = image(seed=seed)
    x[:, :, :10, :10] = 0
    found, masks = augmented(x, x > 0.5, drawn(seed), KEYS)
    assert torch.equal(masks, x > 0.5)
    assert (found[:, :, :10, :10] == 0).all()
    assert 0 <= found.min() <= found.max() <= 1


def test_gain_gamma_and_slope_are_the_formula_by_a_loop():
    x = 0.3 + 0.4 * image()
    found, _ = augmented(x, NONE, deviates(gain=0.5, gamma=-0.6, tgc=0.8), KEYS)
    for i in range(0, 48, 7):
        for j in range(0, 48, 5):
            depth = i / 47 - 0.5
            expected = float(x[0, 0, i, j]) ** math.exp(-0.25 * 0.6) + GAIN * 0.5 + 0.12 * 0.8 * depth
            assert float(found[0, 0, i, j]) == pytest.approx(expected, abs=1e-5)


def source_of(i, j, size, zoom, down, right, turn):
    """Where pixel (i, j) of the result comes from, in pixels, written out."""
    h, w = size
    angle = math.radians(TURN) * turn
    c, s = math.cos(angle), math.sin(angle)
    needed = max(
        (c + abs(s) * w / h) / (1 - 2 * SHIFT * abs(down)), (c + abs(s) * h / w) / (1 - 2 * SHIFT * abs(right))
    )
    z = max(math.exp(math.log(1.2) * (zoom + 1) / 2), needed)
    y, x = i - (h - 1) / 2, j - (w - 1) / 2
    return (
        (s * x + c * y) / z + SHIFT * down * h + (h - 1) / 2,
        (c * x - s * y) / z + SHIFT * right * w + (w - 1) / 2,
    )


@pytest.mark.parametrize("size", [(48, 48), (40, 64)])
@pytest.mark.parametrize("values", [(-1, 1, -0.5, 0), (0.4, 0, 0, 1), (-1, -0.7, 1, -1), (1, 0.2, 0.3, 0.5)])
def test_every_pixel_comes_from_the_place_that_is_written_out(size, values):
    """The value of a plane says where a pixel is from; bicubic interpolation gives it back to a tenth of a pixel."""
    zoom, down, right, turn = values
    rows, columns = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    plane = (0.2 + 0.005 * rows + 0.004 * columns).expand(2, 1, -1, -1)
    u = deviates(zoom=zoom, down=down, right=right, turn=turn)
    found, _ = augmented(plane, torch.zeros_like(plane, dtype=torch.bool), u, PLACES)
    for i in range(4, size[0] - 4, 6):
        for j in range(4, size[1] - 4, 6):
            y, x = source_of(i, j, size, *values)
            if 2 <= y <= size[0] - 3 and 2 <= x <= size[1] - 3:
                assert float(found[1, 0, i, j]) == pytest.approx(
                    0.2 + 0.005 * y + 0.004 * x, abs=5e-4
                )  # a tenth of a pixel


@given(st.integers(0, 2**20), st.sampled_from([(48, 48), (40, 64)]))
def test_nothing_from_beyond_the_edges_is_shown(seed, size):
    h, w = size
    zoom, down, right, turn = drawn(seed)[0, 3:].tolist()
    for i, j in ((0, 0), (0, w - 1), (h - 1, 0), (h - 1, w - 1)):
        y, x = source_of(i, j, size, zoom, down, right, turn)
        assert -0.51 <= y <= h - 0.49
        assert -0.51 <= x <= w - 0.49


@given(st.integers(0, 2**20))
def test_a_mask_moves_with_its_image(seed):
    masks = torch.zeros(2, 1, 48, 48, dtype=torch.bool)
    masks[:, :, 14:30, 18:36] = True
    moved, found = augmented(masks.float(), masks, drawn(seed), PLACES)
    inside = (moved > 0.5) & found
    assert inside.sum() >= 0.93 * ((moved > 0.5) | found).sum()
    assert found.any()
