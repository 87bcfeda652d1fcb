"""Weights of words in a prompt, as A1111 has them: (word:1.3), (word) is 1.1, [word] is 1 / 1.1, \\( is a parenthesis.

Source: prompt parser and text encoder of AUTOMATIC1111's stable-diffusion-webui: the states of a word's
tokens are multiplied by its weight, then all states of the chunk of 77 by one number that restores their mean. There
the mean is over a batch, here over one prompt, so that no sample depends on another.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ldm_us.config import TextConfig
from ldm_us.diffusion.guidance import Conditions
from ldm_us.networks.clip import token_words

ROUND, SQUARE = 1.1, 1 / 1.1
TOKEN = re.compile(r"\\.?|[(\[]|:\s*([+-]?[\d.]+)\s*\)|[)\]]|[^\\()\[\]:]+|:", re.DOTALL)

Part = tuple[str, float]  # a text, and its weight


def parse_weights(prompt: str) -> list[Part]:
    """The texts of a prompt and their weights; brackets multiply, and one that is not closed acts to the end.

    ValueError: a weight that is no number.
    """
    texts, weights = list[str](), list[float]()
    opened: dict[str, list[int]] = {"(": [], "[": []}  # the texts before each bracket that is open

    def close(bracket: str, factor: float) -> None:
        for i in range(opened[bracket].pop(), len(texts)):
            weights[i] *= factor

    for match in TOKEN.finditer(prompt):
        text, number = match[0], match[1]
        if text in opened:
            opened[text].append(len(texts))
        elif number is not None and opened["("]:
            close("(", weight_of(number, prompt))
        elif text == ")" and opened["("]:
            close("(", ROUND)
        elif text == "]" and opened["["]:
            close("[", SQUARE)
        else:
            texts.append(text.removeprefix("\\") if len(text) > 1 else text.replace("\\", ""))
            weights.append(1.0)
    for bracket, factor in (("(", ROUND), ("[", SQUARE)):
        while opened[bracket]:
            close(bracket, factor)
    return merged(texts, weights)


def weight_of(number: str, prompt: str) -> float:
    """A weight. Raise ValueError for what is none."""
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not abs(weight) <= 100:
        raise ValueError(f"--prompt-weights: {number} in {prompt!r} is no weight. Use a number such as 1.3.")
    return weight


def merged(texts: Sequence[str], weights: Sequence[float]) -> list[Part]:
    """Texts one after the other with one weight, as one."""
    parts: list[Part] = []
    for text, weight in zip(texts, weights, strict=True):
        before = parts[-1][0] if parts and parts[-1][1] == weight else None
        parts = [*parts[:-1], (before + text, weight)] if before is not None else [*parts, (text, weight)]
    return parts


def plain_text(prompt: str) -> str:
    """A prompt without weights. A word that is cut by a weight becomes two, for each part is tokenized by itself."""
    text = ""
    for part, _ in parse_weights(prompt):
        text += " " * (text[-1:].isalnum() and part[:1].isalnum()) + part
    return text


def token_weights(prompt: str, config: TextConfig) -> Tensor:
    """The weight of every token of a prompt (k n,), in k chunks of n; start, end, padding and learned vectors: 1."""
    of_words = [weight for text, weight in parse_weights(prompt) for _ in token_words(text)]
    weights = torch.ones(config.chunks, config.length)
    room, first = config.length - 2 - config.prompt_tokens, 1 + config.prompt_tokens
    for chunk, start in zip(weights, range(0, len(of_words), room), strict=False):
        own = of_words[start : start + room]
        chunk[first : first + len(own)] = torch.tensor(own)
    return weights.flatten()


def weigh(states: Tensor, weights: Tensor, length: int) -> Tensor:
    """Text states (b, k n, d) and weights of their tokens (b, k n) -> (b, k n, d); each chunk of n keeps its mean."""
    chunks = states.float().unflatten(1, (-1, length))  # (b, k n, d) -> (b, k, n, d)
    weighted = chunks * weights.to(chunks).unflatten(1, (-1, length))[..., None]
    mean, changed = (each.mean(dim=(2, 3), keepdim=True) for each in (chunks, weighted))
    return (weighted * (mean / changed)).flatten(1, 2).to(states.dtype)


def weigh_conditions(conditions: Conditions, prompts: Sequence[str], negative: str, config: TextConfig) -> Conditions:
    """Conditions of plain_text, with the weights that are written in `prompts` and in the one negative prompt."""
    weights = torch.stack([token_weights(prompt, config) for prompt in prompts])
    weights_negative = token_weights(negative, config).expand(len(prompts), -1)
    if conditions.guidance.scale == 1.0:  # the same states as of the prompts, and not used
        weights_negative = weights
    return replace(
        conditions,
        context=weigh(conditions.context, weights, config.length),
        context_negative=weigh(conditions.context_negative, weights_negative, config.length),
    )
