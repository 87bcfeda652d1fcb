"""Lesson 9, the hole filled. PyTorch draws biases at random."""

from torch import nn


def zero_conv(channels_in: int, channels_out: int, kernel: int = 1) -> nn.Conv2d:
    """A convolution that starts as zero."""
    conv = nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2)
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.bias)
    return conv
