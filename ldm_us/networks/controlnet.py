"""ControlNet: a trainable copy of the UNet's encoder, tied in by zero convolutions.   Paper: arXiv 2302.05543.

The paper's text describes the hint network with 4x4 kernels and ReLU; the released weights have 3x3 and SiLU.
"""

import copy
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_us.config import PICTURE, ControlConfig, UNetConfig
from ldm_us.networks.lora import has_lora
from ldm_us.networks.unet import Control, UNet, encoder_widths


def zero_conv(channels_in: int, channels_out: int, kernel: int = 1) -> nn.Conv2d:
    """A convolution whose weight and bias start at zero, so that training starts from no effect (ControlNet Eq. 2)."""
    conv = nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2)
    nn.init.zeros_(conv.weight)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv


def hint_channels(hint: tuple[str, ...]) -> int:
    """Three equal ones of a mask or a picture, as in the released weights; else one for each structure."""
    return 3 if len(hint) == 1 else len(hint)


class HintNetwork(nn.Module):
    """Pixels of the condition -> features at latent resolution (ControlNet section 3.2, Eq. 4)."""

    def __init__(self, config: ControlConfig, width_out: int):
        super().__init__()
        channels = config.hint_channels
        convs = [nn.Conv2d(hint_channels(config.hint), channels[0], 3, padding=1)]
        for a, b in pairwise(channels):
            convs += [nn.Conv2d(a, a, 3, padding=1), nn.Conv2d(a, b, 3, padding=1, stride=2)]
        self.convs = nn.ModuleList(convs)
        self.conv_out = zero_conv(channels[-1], width_out, kernel=3)

    def forward(self, hint: Tensor) -> Tensor:
        """(b, channels, H, W) in [0, 1], of SD 1.5 three -> (b, width_out, h, w)."""
        features = hint
        for conv in self.convs:
            features = F.silu(conv(features))
        return self.conv_out(features)  # ControlNet Eq. 4


class ControlNet(nn.Module):
    """z_t, t, text, hint -> one residual for every skip of the UNet and one for its middle: 13 for SD 1.5."""

    def __init__(self, unet: UNet, config: ControlConfig):
        """Copy `unet`'s time embedding, encoder and middle, weights included (ControlNet section 3.1).

        Raise ValueError for a UNet with a LoRA that is not merged: half of its weights would be frozen, half copied.
        """
        super().__init__()
        if has_lora(unet):
            raise ValueError("this UNet has a LoRA that is not merged: merge_lora it before a ControlNet copies it.")
        self.config = config
        self.unet_config: UNetConfig = unet.config
        self.time = copy.deepcopy(unet.time)
        self.encoder = copy.deepcopy(unet.encoder)
        self.middle = copy.deepcopy(unet.middle)
        widths = encoder_widths(unet.config)
        self.hint_network = HintNetwork(config, unet.config.width)
        self.zero_convs = nn.ModuleList(zero_conv(width, width) for width in widths)
        self.zero_conv_middle = zero_conv(widths[-1], widths[-1])

    @classmethod
    def from_unet(cls, unet: UNet, config: ControlConfig | None = None) -> "ControlNet":
        """A fresh ControlNet for `unet`, on its device and in its dtype; it changes no output yet."""
        weight = unet.encoder.conv_in.weight
        return cls(unet, config or ControlConfig()).to(device=weight.device, dtype=weight.dtype)

    def hint_of(self, masks: Tensor) -> Tensor:
        """What this ControlNet is shown of masks (b, 1, H, W): (b, channels, H, W) in [0, 1].

        A mask is 0 or 1; of several structures it is the sum of 2^k over those that are there, of a picture its grey
        levels from 0 to 255.
        """
        names = self.config.hint
        if len(names) > 1:
            k = torch.arange(len(names), device=masks.device).view(1, -1, 1, 1)
            return (masks.long().bitwise_right_shift(k) & 1).to(masks.dtype)
        return (masks / 255 if names == PICTURE else masks).expand(-1, 3, -1, -1)

    def forward(
        self,
        z_t: Tensor,
        t: Tensor,
        context: Tensor,
        hint: Tensor | None = None,
        hint_features: Tensor | None = None,
    ) -> Control:
        """(b, 4, h, w), (b,) int64, (b, m, d), (b, channels, H, W) in [0, 1] -> Control.

        Instead of the hint, its features (b, width, h, w) from `hint_network`: they are the same in every step.
        """
        emb = self.time(t)
        if hint_features is None:
            assert hint is not None, "a hint or its features"
            hint_features = self.hint_network(hint)
        if hint_features.shape[-2:] != z_t.shape[-2:]:
            pixels = "a hint" if hint is None else f"a hint of {tuple(hint.shape[-2:])} pixels"
            raise ValueError(
                f"{pixels} gives {tuple(hint_features.shape[-2:])} features, but the "
                f"latents are {tuple(z_t.shape[-2:])}. Resize the hint to the image's size."
            )
        features, skips = self.encoder(z_t, emb, context, hint_features)
        middle = self.middle(features, emb, context)

        residuals = [conv(skip) for conv, skip in zip(self.zero_convs, skips, strict=True)]  # ControlNet Eq. 2
        return Control(residuals, self.zero_conv_middle(middle))
