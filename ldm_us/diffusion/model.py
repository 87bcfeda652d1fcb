"""A latent diffusion model: autoencoder, text encoder, denoiser and, once added, a ControlNet.   Paper: 2112.10752."""

import dataclasses

import torch
from torch import Tensor, nn

from ldm_us.config import ModelConfig, VAEConfig
from ldm_us.diffusion.ddpm import Schedule, make_schedule
from ldm_us.diffusion.grain import Grain
from ldm_us.diffusion.start_prior import StartPrior
from ldm_us.networks.clip import TextEncoder, check_prompt_tokens, common_embeddings, tokenize
from ldm_us.networks.controlnet import ControlNet
from ldm_us.networks.unet import UNet
from ldm_us.networks.vae import INITIAL_GAIN, VAE, Decoder


class LatentDiffusion(nn.Module):
    """The parts and nothing else; training and sampling are functions of it."""

    controlnet: ControlNet | None
    prior: StartPrior | None  # measured, where the denoiser's training latents were at hand
    grain: Grain | None  # measured, where the autoencoder's training images were

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.schedule: Schedule = make_schedule(config.schedule)
        self.vae = VAE(config.vae)
        self.text = TextEncoder(config.text)
        self.unet = UNet(config.unet)
        self.controlnet = None
        self.tile: int | None = None  # pixels of a side, see tiles.py
        rank, prompts = config.schedule.start_prior, config.schedule.prior_prompts
        self.prior = StartPrior(config.vae.latent_channels, rank, prompts) if rank else None
        self.grain = Grain(config.vae.grain_bands) if config.vae.grain else None

    def add_controlnet(self, hint: tuple[str, ...] | None = None) -> ControlNet:
        """Make the ControlNet a fresh copy of this UNet; until it is trained it changes no output.

        hint: what it is to follow, as a ControlConfig has it; None: what the config says.
        """
        if hint is not None:
            self.config = dataclasses.replace(self.config, control=dataclasses.replace(self.config.control, hint=hint))
        self.controlnet = ControlNet.from_unet(self.unet, self.config.control)
        return self.controlnet

    def add_prompt_tokens(self, count: int, generator: torch.Generator) -> nn.Parameter:
        """Put `count` learned vectors before the words of every prompt, starting as the embeddings of common words.

        -> the new parameter `text.prompt` (count, d). Outputs change at once: there is no prompt without effect.
        Raise ValueError where there is a learned prompt already, or no room for this one.
        """
        if self.text.prompt is not None:
            raise ValueError(
                f"this model has {len(self.text.prompt)} prompt tokens already: go on training those, or start from a "
                "model without."
            )
        if count < 1:
            raise ValueError(f"{count} prompt tokens: use 1 or more.")
        check_prompt_tokens(self.config.text, count)
        self.text.prompt = nn.Parameter(common_embeddings(self.text, count, generator))
        self.config = dataclasses.replace(self.config, text=dataclasses.replace(self.config.text, prompt_tokens=count))
        self.text.config = self.config.text
        return self.text.prompt

    def set_latent_scale(self, scale: float) -> None:
        """Set 1 / std of the latents, after the autoencoder was trained."""
        self.vae.scale = scale
        self.config = dataclasses.replace(self.config, vae=dataclasses.replace(self.config.vae, scale=scale))
        self.vae.config = self.config.vae

    def set_prior(self, prior: StartPrior | None) -> None:
        """Let sampling start from this prior; None: from N(0, I)."""
        self.prior = None if prior is None else prior.to(self.device)
        rank, prompts = (0, ()) if prior is None else (prior.rank, prior.prompts)
        schedule = dataclasses.replace(self.config.schedule, start_prior=rank, prior_prompts=prompts)
        self.config = dataclasses.replace(self.config, schedule=schedule)
        self.schedule = make_schedule(schedule)

    def set_grain(self, grain: Grain | None) -> None:
        """Let samples have this grain; None: what the decoder gives."""
        self.grain = None if grain is None else grain.to(self.device)
        bands = VAEConfig.grain_bands if grain is None else len(grain.taps)
        vae = dataclasses.replace(self.config.vae, grain=grain is not None, grain_bands=bands)
        self.config = dataclasses.replace(self.config, vae=vae)
        self.vae.config = vae

    def add_decoder_noise(self, levels: int) -> None:
        """Let the finest levels of the decoder add noise of a learned gain; without noise, no output changes.

        Raise ValueError where another number of levels adds noise already, or the decoder has fewer.
        """
        before = self.config.vae.noise_levels
        if before not in (0, levels):
            raise ValueError(f"{before} levels of this decoder add noise already: go on with those, not with {levels}.")
        vae = dataclasses.replace(self.config.vae, noise_levels=levels)
        if before == 0:
            with torch.device("meta"):
                shapes = Decoder(vae).noise_gains
            gains = (torch.full(gain.shape, INITIAL_GAIN, device=self.device) for gain in shapes)
            self.vae.decoder.noise_gains = nn.ParameterList(gains)
        self.config = dataclasses.replace(self.config, vae=vae)
        self.vae.config = vae

    def set_prediction(self, prediction: str) -> None:
        """Say what the denoiser's output means: "eps" or "v". Only before it is trained."""
        schedule = dataclasses.replace(self.config.schedule, prediction=prediction)
        self.config = dataclasses.replace(self.config, schedule=schedule)
        self.schedule = make_schedule(schedule)

    def encode_prompts(self, prompts: str | list[str]) -> Tensor:
        """Prompts -> text states (b, 77, d), or (b, 77 k, d) of k chunks."""
        return self.text(tokenize(prompts, self.config.text.length, self.config.text.chunks).to(self.device))

    def set_chunks(self, chunks: int) -> None:
        """Let prompts be read in so many chunks of 75 tokens. Raise ValueError beside learned prompt tokens."""
        text = dataclasses.replace(self.config.text, chunks=chunks)
        check_prompt_tokens(text, text.prompt_tokens)
        self.config = dataclasses.replace(self.config, text=text)

    @property
    def device(self) -> torch.device:
        """Where the weights are; parts on the meta device are not loaded and do not count."""
        return next(parameter.device for parameter in self.parameters() if not parameter.is_meta)


def pixels_of(model: LatentDiffusion, z: Tensor) -> tuple[int, int]:
    """Height and width of the image of latents (b, c, h, w)."""
    f = model.config.vae.downsampling
    return z.shape[2] * f, z.shape[3] * f


def sides(size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width of a size, which is these or the side of a square."""
    return (size, size) if isinstance(size, int) else size


def check_size(config: ModelConfig, size: int | tuple[int, int]) -> None:
    """Refuse an image size that the networks cannot halve often enough."""
    if min(sides(size)) < 1 or any(side % config.size_multiple for side in sides(size)):
        shown = size if isinstance(size, int) else f"{size[1]}x{size[0]}"
        raise ValueError(f"image size {shown}: {config.name} needs a multiple of {config.size_multiple} pixels.")
