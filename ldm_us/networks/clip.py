"""CLIP's text encoder: prompt -> tokens -> one state per token.   Paper: arXiv 2103.00020 (CLIP), section 2.4."""

from functools import cache
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm_us.config import TextConfig
from ldm_us.networks.layers import Attention

START_OF_TEXT = 49406
END_OF_TEXT = 49407  # ends a prompt, and pads it: SD 1.5 was trained so
COMMON_TOKENS = range(512, 5512)  # the first merges that CLIP's encoding learned, so the most frequent; after 512 bytes


def tokenize(prompts: str | list[str], length: int = 77, chunks: int = 1) -> Tensor:
    """Prompts -> (b, chunks * length) int64: of each chunk start, byte pairs, end of text, padded with end of text.

    A longer prompt is cut and keeps its end of text (see `kept_text`). open_clip pads with 0 ("!"), not so here.
    """
    prompts, rows = [prompts] if isinstance(prompts, str) else list(prompts), []
    for prompt in prompts:
        words = _open_clip_tokenizer().encode(prompt)
        words = words[: words.index(END_OF_TEXT)] if END_OF_TEXT in words else words  # written out: it ends the text
        for first in range(0, chunks * (length - 2), length - 2):
            row = [START_OF_TEXT, *words[first : first + length - 2]]
            rows.append(row + [END_OF_TEXT] * (length - len(row)))
    return torch.tensor(rows, dtype=torch.int64).view(len(prompts), chunks * length)


def kept_text(prompt: str, length: int = 77) -> tuple[int, str]:
    """How many tokens a prompt has, start and end of text included, and its text as far as `length` of them go.

    Where they are more than `length`, that text is all that a model sees. Learned prompt tokens take their places off
    `length`. The text is that of the tokens: in small letters, with single spaces.
    """
    tokenizer = _open_clip_tokenizer()
    tokens = tokenizer.encode(prompt)
    return len(tokens) + 2, tokenizer.decode(tokens[: length - 2]).strip()


def token_words(prompt: str) -> list[str]:
    """The text of every token of a prompt, without start and end."""
    tokenizer = _open_clip_tokenizer()
    return [tokenizer.decoder[token].removesuffix("</w>") for token in tokenizer.encode(prompt)]


def byte_pair_encoding() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """CLIP's vocabulary, token -> id, and its merges, the first to be made first: the file that open_clip brings."""
    tokenizer = _open_clip_tokenizer()
    return dict(tokenizer.encoder), sorted(tokenizer.bpe_ranks, key=tokenizer.bpe_ranks.__getitem__)


@cache
def _open_clip_tokenizer() -> Any:
    """open_clip's tokenizer.py, run without the package around it, whose import takes seconds and needs torchvision."""
    try:
        package = find_spec("open_clip")
        if package is None or not package.submodule_search_locations:
            raise ImportError("no module named open_clip")
        path = Path(package.submodule_search_locations[0]) / "tokenizer.py"
        spec = spec_from_file_location("open_clip_tokenizer", path)
        assert spec is not None
        assert spec.loader is not None
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.SimpleTokenizer()
    except (ImportError, OSError, AttributeError) as error:
        raise ValueError(
            f"cannot read open_clip's tokenizer, which turns prompts into tokens: {error}. Install it again: "
            "`pip install open-clip-torch`."
        ) from error


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x): CLIP's activation, not the exact GELU (arXiv 1606.08415, section 2)."""

    def forward(self, features: Tensor) -> Tensor:
        """Any shape -> the same."""
        return features * torch.sigmoid(1.702 * features)


class TextBlock(nn.Module):
    """Causal self-attention and a two-layer perceptron, each pre-normed and residual."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.norm_1 = nn.LayerNorm(config.width)
        self.attention = Attention(config.width, config.heads, qkv_bias=True)
        self.norm_2 = nn.LayerNorm(config.width)
        self.mlp_in = nn.Linear(config.width, config.mlp_width)
        self.activation = QuickGELU()
        self.mlp_out = nn.Linear(config.mlp_width, config.width)

    def forward(self, states: Tensor) -> Tensor:
        """(b, n, d) -> (b, n, d)."""
        states = states + self.attention(self.norm_1(states), causal=True)
        return states + self.mlp_out(self.activation(self.mlp_in(self.norm_2(states))))


class TextEncoder(nn.Module):
    """tau_theta of LDM Eq. 3: the states of every token, after the final norm. Padding is not masked.

    With `prompt_tokens` N > 0, N learned vectors stand between the start of text and the words: prompt tuning (arXiv
    2104.08691), as vision transformers have it in their first layer alone (arXiv 2203.12119, VPT-shallow).
    """

    def __init__(self, config: TextConfig):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocabulary, config.width)
        self.position_embedding = nn.Embedding(config.length, config.width)
        self.blocks = nn.ModuleList(TextBlock(config) for _ in range(config.layers))
        self.norm_out = nn.LayerNorm(config.width)
        # CLIP's initial values. PyTorch's, of variance 1, drown what attention adds: a class word would be seen at its
        # own position only, instead of at every one after it.
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.position_embedding.weight, std=0.01)
        check_prompt_tokens(config, config.prompt_tokens)
        self.prompt: nn.Parameter | None = None
        if config.prompt_tokens:
            self.prompt = nn.Parameter(torch.zeros(config.prompt_tokens, config.width))

    def forward(self, tokens: Tensor) -> Tensor:
        """(b, k n) int64 -> (b, k n, d), each chunk of n by itself.

        Behind a learned prompt the last N tokens before the final one fall off.
        """
        chunks = tokens.reshape(-1, min(tokens.shape[1], self.config.length))  # (b, k n) -> (b k, n)
        embeddings = self.token_embedding(chunks)
        if self.prompt is not None:
            embeddings = insert_prompt(embeddings, self.prompt)
        states = embeddings + self.position_embedding.weight[: chunks.shape[1]]
        for block in self.blocks:
            states = block(states)
        return self.norm_out(states).reshape(*tokens.shape, -1)  # (b k, n, d) -> (b, k n, d)


def insert_prompt(embeddings: Tensor, prompt: Tensor) -> Tensor:
    """(b, n, d) of start, words, end of text and padding; (N, d) -> (b, n, d) of start, prompt, words, end, padding.

    The N tokens before the last one fall off. The last one is an end of text in every row of `tokenize`, so a prompt
    too long for what is left is cut and keeps its end of text, as if it had been tokenized at length n - N.
    """
    batch, n, _ = embeddings.shape
    assert n >= len(prompt) + 2, "no room for start and end of text"
    start, words, last = embeddings.split([1, n - 2, 1], dim=1)
    words = words[:, : n - 2 - len(prompt)]
    learned = prompt.to(embeddings.dtype).expand(batch, -1, -1)  # (N, d) -> (b, N, d)
    return torch.cat([start, learned, words, last], dim=1)  # VPT Eq. 4


def check_prompt_tokens(config: TextConfig, count: int) -> None:
    """Refuse more learned vectors than leave room for start, one word and end of text."""
    if count and config.chunks > 1:
        raise ValueError(f"{count} prompt tokens: they go with prompts of one chunk, not of {config.chunks}.")
    if not 0 <= count <= config.length - 3:
        raise ValueError(
            f"{count} prompt tokens: a prompt is {config.length} tokens long, start and end of text included. Use 0 to "
            f"{config.length - 3}."
        )


def common_embeddings(text: TextEncoder, count: int, generator: torch.Generator) -> Tensor:
    """The embeddings (count, d) of tokens drawn from the most common ones, as initial values of a learned prompt.

    Lester et al. (arXiv 2104.08691, section 3.2) start so, from sampled vocabulary: vectors that the frozen layers know
    how to read. It beat uniform noise for all but their largest model.
    """
    drawn = torch.randperm(len(COMMON_TOKENS), generator=generator)[:count] + COMMON_TOKENS.start
    weight = text.token_embedding.weight
    return weight[drawn.to(weight.device)].detach().clone()
