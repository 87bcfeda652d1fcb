"""Teach a text encoder from random weights to tell prompts apart, with CLIP's contrastive loss (arXiv 2103.00020).

CLIP learned its text states against images before LDM used them. A text encoder that nothing was taught gives the
prompts of two classes nearly the same states, and the denoiser then takes thousands of steps to notice a class word.
Here two states of one prompt, taken at two positions after its end, stand for CLIP's pair of text and image.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_us.networks.clip import END_OF_TEXT, TextEncoder
from ldm_us.training.batches import stream_generator

LEARNING_RATE = 1e-3
TEMPERATURE = 0.07  # where CLIP's starts (section 2.5)
STREAM = 2  # of the run's seed


def warm_up_text(text: TextEncoder, tokens: Tensor, steps: int, seed: int) -> None:
    """Train `text` for so many steps on the distinct prompts `tokens` (p, n), in place."""
    optimizer = torch.optim.AdamW(text.parameters(), lr=LEARNING_RATE)
    generator = stream_generator(seed, STREAM)
    for _ in range(steps):
        loss = contrastive_loss(text(tokens), tokens, generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    text.zero_grad(set_to_none=True)


def contrastive_loss(states: Tensor, tokens: Tensor, generator: torch.Generator) -> Tensor:
    """InfoNCE of CLIP, figure 3: each prompt's state must be nearest to another state of the same prompt.

    states (p, n, d), tokens (p, n) -> scalar.
    """
    rows = torch.arange(len(tokens), device=tokens.device)
    first, second = (F.normalize(states[rows, after_end(tokens, generator)], dim=-1) for _ in range(2))  # (p, d) each
    similarity = first @ second.T / TEMPERATURE
    return (F.cross_entropy(similarity, rows) + F.cross_entropy(similarity.T, rows)) / 2


def after_end(tokens: Tensor, generator: torch.Generator) -> Tensor:
    """A random position (p,) of each prompt from its end of text on, padding included."""
    end = (tokens == END_OF_TEXT).int().argmax(dim=1)
    share = torch.rand(len(tokens), generator=generator).to(tokens.device)
    return end + (share * (tokens.shape[1] - end)).long()
