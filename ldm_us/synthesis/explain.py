"""How a sample came about: its steps as a strip, attention to each word, what a ControlNet added at each level.

    with record(model, samples=len(prompts)) as seen:
        images = generate(model, prompts, ...)
    attention_picture(seen, images, prompts).save("attention.png")

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
    """What was seen of `samples` samples; under guidance, of the half with the prompt."""

    samples: int
    learned: int  # learned vectors before the words of the prompt
    latent_size: tuple[int, int] = (0, 0)  # h, w
    attention: Tensor | None = None  # sum of the maps, (b, m, h, w)
    layers: int = 0  # maps in that sum
    control: list[tuple[int, dict[str, Tensor]]] = field(default_factory=list)  # t, and root mean squares (b,) by level

    def maps(self) -> Tensor:
        """Attention of every place to every token, (b, m, h, w); the tokens sum to 1."""
        if self.attention is None:
            raise ValueError("nothing was recorded: sample within the block of `record`.")
        return self.attention / self.layers


@contextmanager
def record(model: LatentDiffusion, samples: int) -> Iterator[Recording]:
    """Collect attention and control of every call of the UNet in the block, of the last `samples` of each batch."""
    seen = Recording(samples, 0 if model.text.prompt is None else len(model.text.prompt))

    def see_call(_: Any, args: tuple[Any, ...]) -> None:
        z_t, t, _context, *control = args
        seen.latent_size = tuple(z_t.shape[-2:])
        if control and control[0] is not None:
            seen.control.append((int(t[-1]), control_levels(control[0], samples)))

    def see_attention(attention: Any, args: tuple[Any, ...]) -> None:
        tokens, context = (values[-samples:].detach() for values in args)
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


def control_levels(control: Control, samples: int) -> dict[str, Tensor]:
    """Root mean square of the residuals of each level, (b,): by the size of its feature maps, the middle last."""
    levels: dict[str, list[Tensor]] = {}
    for residual in control.skips:
        levels.setdefault(f"{residual.shape[-2]}x{residual.shape[-1]}", []).append(residual)
    levels["middle"] = [control.middle]
    squares = {
        name: torch.stack([each[-samples:].detach().float().square().mean(dim=(1, 2, 3)) for each in residuals])
        for name, residuals in levels.items()
    }
    return {name: of_level.mean(dim=0).sqrt() for name, of_level in squares.items()}


def attention_picture(seen: Recording, images: Tensor, prompts: Sequence[str]) -> Image.Image:
    """Images (b, 3, H, W) in [0, 1], and beside each a map per word of its prompt.

    Each map is upsampled to the image, black at its least and white at its most. A word of several tokens has several.
    """
    maps = F.interpolate(seen.maps().cpu(), size=images.shape[-2:], mode="bilinear", align_corners=False)
    rows: list[list[Image.Image | None]] = []
    for image, of_sample, prompt in zip(images, maps, prompts, strict=True):
        words = range(1 + seen.learned, 1 + seen.learned + len(token_words(prompt)))
        chosen = [of_sample[i] for i in words if i < len(of_sample) - 1]
        cells = [(one - one.min()) / (one.max() - one.min()).clamp(min=1e-12) for one in chosen]
        rows.append([to_picture(image.mean(dim=0, keepdim=True)), *(to_picture(cell[None]) for cell in cells)])
    same = len(set(prompts)) == 1
    columns = token_words(prompts[0]) if same else [f"word {i}" for i in range(1, max(map(len, rows)))]
    return labelled_grid(rows, ["" if same else prompt for prompt in prompts], ["image", *columns[: len(rows[0]) - 1]])


def control_picture(seen: Recording, *, sample: int = 0, columns: int = COLUMNS) -> Image.Image:
    """A table: root mean square of the control by level and timestep, a cell the lighter the larger the number."""
    if not seen.control:
        raise ValueError("no ControlNet acted in the recorded samples: give a mask.")
    chosen = torch.linspace(0, len(seen.control) - 1, min(columns, len(seen.control))).round().long().tolist()
    names = list(seen.control[0][1])
    table = [[float(seen.control[i][1][name][sample]) for i in chosen] for name in names]
    largest = max(max(row) for row in table) or 1.0
    rows = [[number_cell(value, value / largest) for value in row] for row in table]
    return labelled_grid(rows, names, [f"t {seen.control[i][0]}" for i in chosen])


def number_cell(value: float, share: float) -> Image.Image:
    """A number on a grey that says how large it is."""
    grey = round(70 + 170 * share)
    cell = Image.new("L", CELL, grey)
    ink = 0 if grey > 140 else 255
    place = CELL[0] / 2, CELL[1] / 2
    ImageDraw.Draw(cell).text(place, f"{value:.3g}", ink, ImageFont.load_default(12), anchor="mm")
    return cell


def moments(steps: Sequence[Step], columns: int = COLUMNS) -> list[int]:
    """The indices of a few steps, spread evenly, the first and the last included. Raise ValueError without steps."""
    if not steps:
        raise ValueError("a trajectory needs at least one step.")
    return torch.linspace(0, len(steps) - 1, min(columns, len(steps))).round().long().tolist()


def decoded(model: LatentDiffusion, latents: Tensor) -> list[Image.Image]:
    """Latents (b, c, h, w), each as a grey picture."""
    return [to_picture(x.mean(dim=0, keepdim=True)) for x in decode(model, latents)]


def trajectory(
    model: LatentDiffusion, steps: Sequence[Step], *, sample: int = 0, columns: int = COLUMNS
) -> Image.Image:
    """Draw the steps of one sample of a batch: above, z after the step at t; below, z_0 as predicted at t."""
    chosen = [steps[i] for i in moments(steps, columns)]
    latents = [step.z[sample] for step in chosen], [step.z_0_hat[sample] for step in chosen]
    rows = [decoded(model, torch.stack(row)) for row in latents]
    return labelled_grid(rows, ("z after step t", "predicted z_0"), [f"t = {step.t}" for step in chosen])
