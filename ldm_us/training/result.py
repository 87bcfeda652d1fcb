"""RUN/model.safetensors: the averaged weights, the frozen ones as they were, and where all of them came from."""

import dataclasses
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from ldm_us.data.words import record_words
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.files.checkpoint import LazyTensor, model_metadata, open_model_file, write_safetensors
from ldm_us.files.half_precision import check_unchanged, restore_frozen
from ldm_us.files.lineage import Lineage
from ldm_us.files.lora_file import save_lora
from ldm_us.networks.lora import merge_lora
from ldm_us.networks.vae import posterior_from_moments
from ldm_us.training.dataset import TrainingSet, to_signed
from ldm_us.training.distributed import gathered_weights
from ldm_us.training.measured import set_measured, shown_to_prior
from ldm_us.training.options import FIRST_STAGE
from ldm_us.training.stages import Stage
from ldm_us.training.start import denoiser_is_random

RECORDED = (  # of the options, in the lineage
    *("stage", "images_per_step", "learning_rate", "seed", "held_out", "caption_dropout", "min_snr", "offset_noise"),
    *("train_text", "text_warmup", "prompt_tokens", "decoder_only", "unlock_decoder", "optimizer", "precision"),
    *FIRST_STAGE,
    "preset",
    "processes",
)


def save_result(stage: Stage, lineage: Lineage, steps: int, data_sha256: str) -> None:
    """Write RUN/model.safetensors, and before it the LoRA that was trained; every process must call this.

    Parts that were not loaded come from --weights. A LoRA is merged for good. Raise ValueError where the file that the
    run started from is no longer there.
    """
    model, options = stage.model, stage.options
    restore_frozen(model, options.weights, lineage.parent)
    # A trained denoiser fits the old scale, and --decoder-only keeps the latents.
    if options.stage == "vae" and not options.decoder_only and denoiser_is_random(options, lineage):
        set_latents(model, stage.data)
    if options.adapter is None:  # a LoRA on its base is the whole result, and a base keeps its prior
        if options.stage == "unet" and not model.schedule.ends_in_noise:
            stage.encode(shown_to_prior(len(stage.data)))  # whatever of them these steps have seen
        for note in set_measured(model, stage.data, options.stage, options.decoder_only, options.flip):
            if stage.world.main:
                print(f"note: {note}")
    metadata = result_metadata(stage, lineage, steps, data_sha256)
    if options.adapter is not None:
        if stage.world.main:
            path = options.out / "lora.safetensors"
            save_lora(path, model, options.adapter, lineage.parent, metadata)
            print(f"wrote {path}")
        merge_lora(model)
    state, base = model.state_dict(), None
    if options.weights is not None and any(value.is_meta for value in state.values()):
        check_unchanged(options.weights, lineage.parent)
        base = open_model_file(options.weights)  # once: its header is read and checked whole
    if options.shard:
        state |= gathered_weights(stage.networks)
    if stage.world.main:
        path = options.out / "model.safetensors"
        tensors = [lazy_tensor(name, value, base) for name, value in state.items()]
        write_safetensors(path, tensors, model_metadata(model.config) | metadata)
        print(f"wrote {path}")
    stage.world.barrier()


def lazy_tensor(name: str, value: Tensor, base: safe_open | None) -> LazyTensor:
    """A tensor of the result; where this run has not loaded it, read from the file that the run started from."""
    if not value.is_meta:
        return LazyTensor(name, tuple(value.shape), value.dtype, lambda: value)
    assert base is not None
    return LazyTensor(name, tuple(value.shape), torch.float32, lambda: base.get_tensor(name).float())


def set_latents(model: LatentDiffusion, data: TrainingSet) -> None:
    """Give the latents a standard deviation of 1: all together by the scale, or where they are whitened, by channel.

    LDM appendix G, "rescaled to unit standard deviation"; variances by the law of total variance.
    """
    means, stds = measure_latents(model, data)
    if model.config.vae.whitened:
        places = (0, 2, 3)
        variance = means.var(dim=places) + (stds**2).mean(dim=places)
        model.vae.whiten(means.mean(dim=places), variance.sqrt().clamp(min=1e-6))
        model.set_latent_scale(1.0)
    else:
        model.set_latent_scale(float((means.var() + (stds**2).mean()).rsqrt()))


@torch.no_grad()
def measure_latents(model: LatentDiffusion, data: TrainingSet, images: int = 64) -> tuple[Tensor, Tensor]:
    """Means and standard deviations (n, c, h, w) of the unscaled latents of some training images."""
    count = min(images, len(data))
    index = torch.linspace(0, len(data) - 1, count).long()
    assert data.pixels is not None
    images_alone = (to_signed(data.pixels[i : i + 1]).to(model.device) for i in index.tolist())
    latents = [posterior_from_moments(model.vae.moments(x).float(), scale=1.0) for x in images_alone]
    means = torch.cat([latent.mean for latent in latents])
    stds = torch.cat([latent.std for latent in latents])
    return means, stds


def result_metadata(stage: Stage, lineage: Lineage, steps: int, data_sha256: str) -> dict[str, str]:
    """What a result says of how it was made, its ancestors included."""
    options = stage.options
    entry = {name: getattr(options, name) for name in RECORDED} | {
        "steps": steps,
        "objective": stage.model.config.schedule.prediction,
        "lora": None if options.adapter is None else dataclasses.asdict(options.adapter),
        "data": [Path(folder).name for folder in options.data],
        "data_weights": options.data_weights,
        "data_sha256": data_sha256,
        "parent_sha256": lineage.parent,
    }
    if options.stage != "vae":
        entry |= record_words(stage.data.records, options.caption_dropout, lineage)
    return lineage.extended(entry, stage.data.images).metadata()
