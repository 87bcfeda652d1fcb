"""Where a run starts from, which parts of the model it needs, and which of its weights it trains."""

import dataclasses

import torch
from torch import nn

from ldm_us.atomic import sha256_file
from ldm_us.checkpoint import load_model, read_metadata
from ldm_us.config import PRESETS
from ldm_us.lineage import Lineage, read_lineage
from ldm_us.model import LatentDiffusion
from ldm_us.sampling import check_size
from ldm_us.training.options import TrainOptions
from ldm_us.vae import DECODER_PARTS


def start_model(options: TrainOptions) -> tuple[LatentDiffusion, Lineage]:
    """The model a run starts from, and where that came from. Parts that the stage does not need are not loaded."""
    if options.weights is not None:
        model = load_model(options.weights, options.device, parts=needed_parts(options))
        lineage, parent = read_lineage(read_metadata(options.weights)), sha256_file(options.weights)
    else:
        model = random_model(str(options.preset), options.seed).to(options.device)
        lineage, parent = Lineage(()), "random"
    if options.stage == "unet":
        model.controlnet = None  # it was a copy of another UNet; train it again on the new one
    if options.stage == "controlnet" and model.controlnet is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)  # of the hint network; the rest is a copy
            model.add_controlnet()
    check_size(model.config, training_size(model, options))
    return model, dataclasses.replace(lineage, parent=parent)


def random_model(preset: str, seed: int) -> LatentDiffusion:
    """PyTorch's default initial weights, from a seed of their own."""
    if preset not in PRESETS:
        raise ValueError(f"--preset {preset}: unknown. Use one of {', '.join(PRESETS)}.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LatentDiffusion(PRESETS[preset])


def training_size(model: LatentDiffusion, options: TrainOptions) -> int:
    """Pixels along one side of the training images."""
    return options.size or model.config.image_size


def needed_parts(options: TrainOptions) -> tuple[str, ...]:
    """The parts of the model that a step computes with; latents and text states come from the cache."""
    if options.stage == "vae":
        return ("vae",)
    return ("unet", *(["controlnet"] if options.stage == "controlnet" else []), *(["text"] * options.trains_text))


def trained_modules(options: TrainOptions) -> tuple[str, ...]:
    """The names of the modules whose weights the stage trains; all others are frozen."""
    if options.stage == "vae":
        return tuple(f"vae.{part}" for part in DECODER_PARTS) if options.decoder_only else ("vae",)
    if options.stage == "unet":
        return ("unet", "text") if options.train_text else ("unet",)
    return ("controlnet", "unet.decoder") if options.unlock_decoder else ("controlnet",)


def free_parameters(model: LatentDiffusion, options: TrainOptions) -> None:
    """Freeze the whole model, then free what the stage trains."""
    model.requires_grad_(False)
    for name in trained_modules(options):
        model.get_submodule(name).requires_grad_(True)


def trained_parameters(model: LatentDiffusion) -> dict[str, nn.Parameter]:
    """{full name: parameter} of those that are free."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
