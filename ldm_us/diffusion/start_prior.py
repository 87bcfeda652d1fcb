"""The start prior: noise that still holds the mean of its image, as training sees it at the last timestep.

SD 1.5's schedule ends at sqrt(alpha_bar) = 0.068 and not at 0 (arXiv 2305.08891 calls this its flaw), so training sees
the blurred image in every z_T, and sampling from N(0, I) starts where training has never been: images of another
brightness and, in ultrasound, ones that hardly darken with depth. Here
z_T = sqrt(alpha_bar) (mu + L w) + sqrt(1 - alpha_bar) eps, with mu and L L^T the mean and a covariance of low rank of
the training latents, pooled to 8x8; those of a prompt's own images where it has enough of them, else those of all.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_us.diffusion.ddpm import Schedule, q_sample

POOLED = 8  # latents along one side of what is kept of them


class StartPrior(nn.Module):
    """Mean and covariance of the blurred training latents; the numbers are measured, not trained."""

    mean: Tensor  # (c, 8, 8)
    factor: Tensor  # (r, c, 8, 8), the columns of L

    def __init__(self, channels: int, rank: int, prompts: Sequence[str] = ()):
        super().__init__()
        self.prompts = tuple(prompts)
        self.own = nn.ModuleList(StartPrior(channels, rank) for _ in prompts)  # of the images of each alone
        self.register_buffer("mean", torch.zeros(channels, POOLED, POOLED))
        self.register_buffer("factor", torch.zeros(rank, channels, POOLED, POOLED))

    @property
    def rank(self) -> int:
        """How many numbers w one sample draws."""
        return len(self.factor)

    def of(self, prompt: str) -> "StartPrior":
        """That of a prompt's own images, where they were measured; else that of all."""
        own = self.own[self.prompts.index(prompt)] if prompt in self.prompts else self
        assert isinstance(own, StartPrior)
        return own


def estimate_prior(latents: Tensor, rank: int) -> StartPrior:
    """Latents (n, c, h, w) of training images -> their prior, by the first `rank` principal components.

    Raise ValueError for fewer images than it takes: the components would be those of a few images.
    """
    most = latents.shape[1] * POOLED**2
    if not 1 <= rank <= most:
        raise ValueError(f"a start prior of rank {rank}: use 1 to {most}, the numbers that are kept of an image.")
    if len(latents) <= rank:
        raise ValueError(
            f"a start prior of rank {rank} needs more than {rank} images, and there are {len(latents)}. Give more, or "
            "a smaller rank."
        )
    pooled = F.adaptive_avg_pool2d(latents.double(), POOLED)
    prior = StartPrior(pooled.shape[1], rank)
    mean = pooled.mean(dim=0)
    _, singular, components = torch.linalg.svd((pooled - mean).flatten(1), full_matrices=False)
    deviations = singular[:rank, None] / (len(latents) - 1) ** 0.5  # of the images along each component
    prior.mean.copy_(mean)
    prior.factor.copy_((deviations * components[:rank]).view_as(prior.factor))
    return prior


def estimate_priors(latents: Tensor, rank: int, members: Mapping[str, Sequence[int]]) -> StartPrior:
    """The prior of all latents (n, c, h, w), and within it one of its own for each prompt, of those that it names."""
    prior = estimate_prior(latents, rank)
    prior.prompts = tuple(members)
    prior.own = nn.ModuleList(estimate_prior(latents[list(index)], rank) for index in members.values())
    return prior


def start_latents(schedule: Schedule, prior: StartPrior, t: Tensor, eps: Tensor, w: Tensor) -> Tensor:
    """Start at timestep t: (b,), standard normal eps (b, c, h, w) and w (b, r) -> z_t (b, c, h, w)."""
    with torch.autocast(eps.device.type, enabled=False):
        blurred = prior.mean + torch.einsum("b r, r c h w -> b c h w", w.to(prior.factor), prior.factor)  # mu + L w
    z_0 = F.interpolate(blurred, size=eps.shape[-2:], mode="bilinear", align_corners=False).to(eps)
    return q_sample(schedule, z_0, t, eps)  # StartPrior Eq. 1: DDPM Eq. 4 of a blurred image
