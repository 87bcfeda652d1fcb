"""The three stages: where a run starts from, which weights it trains, what a batch is and what it costs."""

import dataclasses
from pathlib import Path

import torch
from torch import Tensor, nn

from ldm_us.atomic import sha256_file
from ldm_us.checkpoint import load_model, read_metadata
from ldm_us.clip import tokenize
from ldm_us.config import PRESETS
from ldm_us.lineage import Lineage, read_lineage
from ldm_us.model import LatentDiffusion
from ldm_us.sampling import check_size
from ldm_us.training.batches import ImageBatch, LatentBatch, batch_indices, image_batch, latent_batch
from ldm_us.training.dataset import TrainingSet, encode_images, to_signed
from ldm_us.training.losses import ddpm_loss, vae_loss
from ldm_us.training.options import TrainOptions
from ldm_us.vae import posterior_from_moments


def start_model(options: TrainOptions) -> tuple[LatentDiffusion, Lineage]:
    """The model a run starts from, and where that came from."""
    if options.weights is not None:
        model, lineage = load_model(options.weights), read_lineage(read_metadata(options.weights))
        check_objective(options, model, lineage)
        parent = sha256_file(options.weights)
    else:
        model, lineage, parent = random_model(str(options.preset), options.seed), Lineage(()), "random"
    model.set_prediction(options.objective or model.config.schedule.prediction)
    if options.stage == "unet":
        model.controlnet = None  # it was a copy of another UNet; train it again on the new one
    if options.stage == "controlnet" and model.controlnet is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)  # of the hint network; the rest is a copy
            model.add_controlnet()
    check_size(model.config, training_size(model, options))
    return model.to(options.device), dataclasses.replace(lineage, parent=parent)


def check_objective(options: TrainOptions, model: LatentDiffusion, lineage: Lineage) -> None:
    """Refuse to change what a trained denoiser's output means. One that only its autoencoder came with is random."""
    prediction = model.config.schedule.prediction
    stages = [entry.get("stage") for entry in lineage.entries]
    untrained = set(stages) == {"vae"} and lineage.entries[0].get("parent_sha256") == "random"
    if options.objective not in (None, prediction) and not untrained:
        raise ValueError(
            f"--objective {options.objective}: the denoiser of {options.weights} was trained to predict {prediction}, "
            "and training cannot change what its output means. Leave the option out, or start from a --preset."
        )


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


def trained_parameters(model: LatentDiffusion, options: TrainOptions) -> dict[str, nn.Parameter]:
    """Freeze the whole model, then free the parts of this stage: {full name: parameter}."""
    parts = {"vae": ["vae"], "unet": ["unet", "text"] if options.train_text else ["unet"], "controlnet": ["controlnet"]}
    model.requires_grad_(False)
    for part in parts[options.stage]:
        model.get_submodule(part).requires_grad_(True)
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


class Stage:
    """Data and model of one run, ready to give the batch and the loss of any step."""

    def __init__(self, model: LatentDiffusion, data: TrainingSet, options: TrainOptions):
        self.model = model
        self.data = data
        self.options = options
        self.context: Tensor | None = None  # (prompts, n, d), computed once where the text encoder is frozen
        if options.stage != "vae":
            self.tokens = tokenize(data.prompts, model.config.text.length).to(model.device)  # (prompts, n)
            if not options.train_text:
                with torch.no_grad():
                    self.context = model.text(self.tokens)

    def batches(self, step: int) -> list[ImageBatch] | list[LatentBatch]:
        """The global batch of a step, cut in --accumulate parts. All of it is a function of (seed, step)."""
        options, config = self.options, self.model.config
        size = options.images_per_step
        if options.stage == "vae":
            side = training_size(self.model, options) // config.vae.downsampling
            shape = (config.vae.latent_channels, side, side)
            images = image_batch(self.data, shape, options.seed, step, size, options.flip)
            return [ImageBatch(*part) for part in split(images, options.accumulate)]
        encode_images(self.model, self.data, batch_indices(len(self.data), options.seed, step, size))
        latents = latent_batch(
            self.data,
            self.model.vae.scale,
            self.model.schedule.timesteps,
            options.seed,
            step,
            size,
            options.flip,
            options.caption_dropout,
            options.offset_noise,
        )
        return [LatentBatch(*part) for part in split(latents, options.accumulate)]

    def loss(self, batch: ImageBatch | LatentBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, and what else the log should hold."""
        device = self.model.device
        with torch.autocast(device.type, torch.bfloat16, enabled=self.options.precision == "bf16"):
            if isinstance(batch, ImageBatch):
                return vae_loss(self.model, ImageBatch(*(value.to(device) for value in batch)))
            batch = LatentBatch(*(value.to(device) for value in batch))
            if self.context is None:
                context = self.model.text(self.tokens[batch.prompt_index])
            else:
                context = self.context[batch.prompt_index]
            use_control = self.options.stage == "controlnet"
            return ddpm_loss(self.model, batch, context, use_control, self.options.min_snr)


def split(batch: tuple[Tensor, ...], parts: int) -> list[tuple[Tensor, ...]]:
    """Cut every tensor of a batch in equal parts along its first axis."""
    return list(zip(*(value.chunk(parts) for value in batch), strict=True))


@torch.no_grad()
def measure_latent_scale(model: LatentDiffusion, data: TrainingSet, images: int = 64) -> float:
    """1 / std of the unscaled latents (LDM appendix G, "rescaled to unit standard deviation")."""
    count = min(images, len(data))
    index = torch.linspace(0, len(data) - 1, count).long()
    images_alone = (to_signed(data.pixels[i : i + 1]).to(model.device) for i in index.tolist())
    latents = [posterior_from_moments(model.vae.moments(x).float(), scale=1.0) for x in images_alone]
    means = torch.cat([latent.mean for latent in latents])
    stds = torch.cat([latent.std for latent in latents])
    variance = means.var() + (stds**2).mean()  # law of total variance
    return float(variance.rsqrt())


def result_metadata(
    options: TrainOptions, lineage: Lineage, step: int, data_sha256: str, objective: str
) -> dict[str, str]:
    """What a result says of how it was made, its ancestors included."""
    entry = {
        "stage": options.stage,
        "steps": step,
        "images_per_step": options.images_per_step,
        "learning_rate": options.learning_rate,
        "seed": options.seed,
        "held_out": options.held_out,
        "caption_dropout": options.caption_dropout,
        "objective": objective,
        "min_snr": options.min_snr,
        "offset_noise": options.offset_noise,
        "train_text": options.train_text,
        "text_warmup": options.text_warmup,
        "data": [Path(folder).name for folder in options.data],
        "data_sha256": data_sha256,
        "parent_sha256": lineage.parent,
    }
    return lineage.extended(entry).metadata()
