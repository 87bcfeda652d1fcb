"""The patch discriminator: is a patch of an image real?   Paper: arXiv 1611.07004 (pix2pix), section 3.2.2.

Its layers are those of LDM's NLayerDiscriminator, but for the norm: with LDM's BatchNorm the loss of an image depends
on the others of its batch. GroupNorm looks at each image alone, so that no loss depends on how a batch is cut into
parts or over processes.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from ldm_us.networks.layers import GroupNorm

GROUPS = 8
EPS = 1e-5  # PyTorch's own
SLOPE = 0.2  # of LeakyReLU
SMALLEST = 24  # pixels along one side: one patch
INITIAL_STD = 0.02  # pix2pix section 6.2; LDM starts from it too


class Discriminator(nn.Module):
    """Four convolutions of 4x4, the first three of stride 2, and a fifth to a logit a patch of 70x70 pixels."""

    def __init__(self, width: int):
        super().__init__()
        self.conv_in = nn.Conv2d(3, width, 4, stride=2, padding=1)
        widths = (width, 2 * width, 4 * width, 8 * width)
        strides = (2, 2, 1)
        self.convs = nn.ModuleList(
            nn.Conv2d(widths[i], widths[i + 1], 4, stride=strides[i], padding=1, bias=False) for i in range(3)
        )
        self.norms = nn.ModuleList(GroupNorm(GROUPS, c, eps=EPS) for c in widths[1:])
        self.conv_out = nn.Conv2d(widths[-1], 1, 4, padding=1)
        for conv in (self.conv_in, *self.convs, self.conv_out):
            nn.init.normal_(conv.weight, std=INITIAL_STD)

    def forward(self, x: Tensor) -> Tensor:
        """(b, 3, H, W) in [-1, 1] -> logits (b, 1, H/8 - 2, W/8 - 2), positive where a patch looks real."""
        features = F.leaky_relu(self.conv_in(x), SLOPE)  # (b, 3, H, W) -> (b, width, H/2, W/2)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            features = F.leaky_relu(norm(conv(features)), SLOPE)
        return self.conv_out(features)
