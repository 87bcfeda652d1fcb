"""The patch discriminator: a logit a patch, patches of 70 pixels, each image for itself."""

import pytest
import torch
from torch import nn

from ldm_us.networks.discriminator import SMALLEST, Discriminator


def make(width=16):
    torch.manual_seed(0)
    return Discriminator(width).requires_grad_(False)


def images(b, h, w):
    return torch.rand(b, 3, h, w, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize(("h", "w"), [(128, 128), (64, 96), (SMALLEST, SMALLEST)])
def test_there_is_one_logit_a_patch_and_an_eighth_as_many_a_side_less_two(h, w):
    assert make()(images(2, h, w)).shape == (2, 1, h // 8 - 2, w // 8 - 2)


def test_it_has_the_weights_of_five_convolutions_of_4_by_4_and_three_norms():
    """pix2pix section 6.1.2: C64-C128-C256-C512, and a convolution to one channel."""
    by_hand = 3 * 64 * 16 + 64 + (64 * 128 + 128 * 256 + 256 * 512) * 16 + 2 * (128 + 256 + 512) + 512 * 16 + 1
    assert sum(p.numel() for p in make(64).parameters()) == by_hand
    assert float(make(64).convs[1].weight.std()) == pytest.approx(0.02, rel=0.05), "pix2pix section 6.2"


def test_a_logit_sees_70_by_70_pixels():
    """Without the norms, which see the whole image."""
    discriminator = make()
    discriminator.norms = nn.ModuleList(nn.Identity() for _ in discriminator.norms)
    x = images(1, 128, 128).requires_grad_(True)
    discriminator(x)[0, 0, 7, 7].backward()
    seen = x.grad.abs().sum(dim=(0, 1)) > 0
    assert int(seen.any(dim=1).sum()) == int(seen.any(dim=0).sum()) == 70


def test_the_logits_of_an_image_do_not_depend_on_its_batch():
    x = images(3, 32, 32)
    torch.testing.assert_close(make()(x)[1:2], make()(x[1:2]), rtol=1e-4, atol=1e-6)
