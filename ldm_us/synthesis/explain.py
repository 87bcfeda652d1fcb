"""How a sample came about: its steps as a strip, attention to each word, what a ControlNet added at each level.

    with record(model) as seen:
        x = generate(model, [prompt], ...)[0]
    attention_picture(seen, x, prompt).save("attention.png")

Maps as in DAAM (arXiv 2210.04885): cross-attention, averaged over heads, levels and steps. Recording computes them
beside the sample, from the same inputs; it changes no bit of the sample and ends with the block.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.diffusion.sampling import Step, decode
from ldm_us.files.pictures import labelled_grid, to_picture
from ldm_us.networks.clip import token_words
from ldm_us.networks.layers import Attention
from ldm_us.networks.transformer import TransformerBlock
from ldm_us.networks.unet import Control

CELL = 56, 28  # pixels of a number in the table of control
COLUMNS = 8


@dataclass
class Recording:
    """What was seen of one sample; under guidance, of the half with the prompt."""

    learned: int  # learned vectors before the words of the prompt
    latent_size: tuple[int, int] = (0, 0)  # h, w
    attention: Tensor | None = None  # sum of the maps, (1, m, h, w)
    layers: int = 0  # maps in that sum
    control: list[tuple[int, dict[str, float]]] = field(default_factory=list)  # t, and root mean squares by level

    def maps(self) -> Tensor:
        """Attention of every place to every token, (1, m, h, w); the tokens sum to 1."""
        if self.attention is None:
            raise ValueError("nothing was recorded: sample within the block of `record`.")
        return self.attention / self.layers


@contextmanager
def record(model: LatentDiffusion) -> Iterator[Recording]:
    """Collect attention and control of every call of the UNet in the block, of the last of each batch."""
    seen = Recording(0 if model.text.prompt is None else len(model.text.prompt))

    def see_call(_: Any, args: tuple[Any, ...]) -> None:
        z_t, t, _context, *control = args
        seen.latent_size = tuple(z_t.shape[-2:])
        if control and control[0] is not None:
            seen.control.append((int(t[-1]), control_levels(control[0])))

    def see_attention(attention: Any, args: tuple[Any, ...]) -> None:
        tokens, context = (values[-1:].detach() for values in args)
        maps = attention_maps(attention, tokens, context, seen.latent_size)
        seen.attention = maps if seen.attention is None else seen.attention + maps
        seen.layers += 1

    with ExitStack() as hooks:  # each removes itself on leaving
        hooks.enter_context(model.unet.register_forward_pre_hook(see_call))
        for module in model.unet.modules():
            if isinstance(module, TransformerBlock):
                hooks.enter_context(module.cross_attention.register_forward_pre_hook(see_attention))
        yield seen


@torch.no_grad()
def attention_maps(attention: Attention, tokens: Tensor, context: Tensor, latent_size: tuple[int, int]) -> Tensor:
    """(b, n, width), (b, m, d) -> weights averaged over the heads, as maps (b, m, h, w) of the latents' size."""
    q = rearrange(attention.to_q(tokens), "b n (k d) -> b k n d", k=attention.heads).float()
    k = rearrange(attention.to_k(context), "b m (k d) -> b k m d", k=attention.heads).float()
    weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(dim=-1).mean(dim=1)  # Attention Eq. 1: (b, n, m)
    h, w = latent_size
    shrunk = round((h * w / tokens.shape[1]) ** 0.5)  # of the level, along one side
    maps = rearrange(weights, "b (h w) m -> b m h w", h=h // shrunk)
    return F.interpolate(maps, size=latent_size, mode="bilinear", align_corners=False)


def control_levels(control: Control) -> dict[str, float]:
    """Root mean square of the residuals of each level: by the size of its feature maps, the middle last."""
    levels: dict[str, list[Tensor]] = {}
    for residual in control.skips:
        levels.setdefault(f"{residual.shape[-2]}x{residual.shape[-1]}", []).append(residual)
    levels["middle"] = [control.middle]
    squares = {
        name: torch.stack([each[-1:].detach().float().square().mean(dim=(1, 2, 3)) for each in residuals])
        for name, residuals in levels.items()
    }
    return {name: float(of_level.mean(dim=0).sqrt()) for name, of_level in squares.items()}


def attention_picture(seen: Recording, x: Tensor, prompt: str) -> Image.Image:
    """An image (3, H, W) in [0, 1], and beside it a map per word of its prompt.

    Each map is upsampled to the image, black at its least and white at its most. A word of several tokens has several.
    """
    chosen = word_maps(seen, (x.shape[-2], x.shape[-1]), prompt)
    row = [to_picture(x.mean(dim=0, keepdim=True)), *(to_picture(cell[None]) for _, cell in chosen)]
    return labelled_grid([row], [""], ["image", *(word for word, _ in chosen)])


def word_maps(seen: Recording, size: tuple[int, int], prompt: str) -> list[tuple[str, Tensor]]:
    """Each word of a prompt with its map (h, w) of this size, 0 at its least and 1 at its most."""
    (maps,) = F.interpolate(seen.maps().cpu(), size=size, mode="bilinear", align_corners=False)
    words = token_words(prompt)[: len(maps) - seen.learned - 2]  # between the start, the learned vectors and the end
    chosen = maps[1 + seen.learned : 1 + seen.learned + len(words)]
    cells = [(one - one.min()) / (one.max() - one.min()).clamp(min=1e-12) for one in chosen]
    return list(zip(words, cells, strict=True))


def control_picture(seen: Recording) -> Image.Image:
    """A table: root mean square of the control by level and timestep, a cell the lighter the larger the number."""
    if not seen.control:
        raise ValueError("no ControlNet acted in the recorded samples: give a mask.")
    chosen = [seen.control[i] for i in spread(len(seen.control))]
    names = list(chosen[0][1])
    table = [[levels[name] for _, levels in chosen] for name in names]
    largest = max(max(row) for row in table) or 1.0
    rows = [[number_cell(value, value / largest) for value in row] for row in table]
    return labelled_grid(rows, names, [f"t {t}" for t, _ in chosen])


def number_cell(value: float, share: float) -> Image.Image:
    """A number on a grey that says how large it is."""
    grey = round(70 + 170 * share)
    cell = Image.new("L", CELL, grey)
    ink = 0 if grey > 140 else 255
    place = CELL[0] / 2, CELL[1] / 2
    ImageDraw.Draw(cell).text(place, f"{value:.3g}", ink, ImageFont.load_default(12), anchor="mm")
    return cell


def spread(count: int) -> list[int]:
    """COLUMNS of the indices 0..count - 1, or all where they are fewer, evenly, the first and the last included."""
    return torch.linspace(0, count - 1, min(COLUMNS, count)).round().long().tolist()


def decoded(model: LatentDiffusion, latents: Tensor) -> list[Image.Image]:
    """Latents (b, c, h, w), each as a grey picture."""
    return [to_picture(x.mean(dim=0, keepdim=True)) for x in decode(model, latents)]


def trajectory(model: LatentDiffusion, steps: Sequence[Step]) -> Image.Image:
    """Draw the steps of one sample: above, z after the step at t; below, z_0 as predicted at t."""
    if not steps:
        raise ValueError("a trajectory needs at least one step.")
    chosen = [steps[i] for i in spread(len(steps))]
    rows = [decoded(model, torch.cat(row)) for row in ([step.z for step in chosen], [step.z_0_hat for step in chosen])]
    return labelled_grid(rows, ("z after step t", "predicted z_0"), [f"t = {step.t}" for step in chosen])
