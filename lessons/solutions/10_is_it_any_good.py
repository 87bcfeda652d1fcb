"""Lesson 10, the hole filled. Where both are empty there is nothing to divide, and nothing wrong."""

import torch


def dice(found, asked):
    """(n, 1, H, W) each -> (n,)."""
    overlap, total = (found * asked).flatten(1).sum(1), (found + asked).flatten(1).sum(1)
    return torch.where(total > 0, 2 * overlap / total.clamp(min=1), 1.0)
