"""The perceptual distance: how far two images are apart in a network's features.   Paper: arXiv 1801.03924 (LPIPS).

LDM's first stage learns with it (arXiv 2112.10752, appendix G). Its features are those of VGG, and LPIPS weighs their
channels by what people see; here the network is the caller's, and all channels count alike.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

NETWORKS = ("judge", "efficientnet_lite0")
EPS = 1e-10  # LPIPS's own: keeps features of length 0 from dividing by it

Features = Callable[[Tensor], list[Tensor]]  # images (b, 3, H, W) in [-1, 1] -> features (b, c, h, w) of some layers


@dataclass(frozen=True)
class Perceptual:
    """A term of the autoencoder's loss."""

    weight: float
    features: Features

    def distance(self, x_hat: Tensor, x: Tensor) -> Tensor:
        """Images (b, 3, H, W) in [-1, 1], twice -> the distance of each pair (b,)."""
        pairs = zip(self.features(x_hat), self.features(x), strict=True)
        by_layer = [(unit(f_hat) - unit(f)).square().sum(dim=1).mean(dim=(1, 2)) for f_hat, f in pairs]
        return sum(by_layer[1:], by_layer[0])  # LPIPS Eq. 1, every w_l = 1


def unit(features: Tensor) -> Tensor:
    """Features (b, c, h, w) whose c numbers at each place have length 1."""
    return F.normalize(features.float(), dim=1, eps=EPS)
