"""RUN/model.safetensors: the averaged weights, the frozen ones as they were, and where all of them came from."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from ldm_us.data.words import record_words
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.files.checkpoint import LazyTensor, model_metadata, open_model_file, write_safetensors
from ldm_us.files.half_precision import check_unchanged, restore_frozen
from ldm_us.files.lora_file import save_lora
from ldm_us.networks.lora import LoRALinear, add_update, is_update, merge_lora
from ldm_us.networks.precision import HALF
from ldm_us.networks.vae import posterior_from_moments
from ldm_us.training.dataset import TrainingSet, to_signed
from ldm_us.training.distributed import gathered_weights
from ldm_us.training.measured import set_measured, shown_to_prior
from ldm_us.training.options import FIRST_STAGE
from ldm_us.training.stages import Stage
from ldm_us.training.start import denoiser_is_random

KEPT = "kept"  # folder in that of a run, with models of --keep-every
RECORDED = (  # of the options, in the lineage
    *("stage", "images_per_step", "learning_rate", "seed", "held_out", "caption_dropout", "min_snr", "offset_noise"),
    *("train_text", "text_warmup", "prompt_tokens", "decoder_only", "unlock_decoder", "optimizer", "precision"),
    *FIRST_STAGE,
    *("preset", "processes", "aspect", "class_weights", "lr_schedule", "text_lr", "captions", "augment"),
)


def save_result(stage: Stage, steps: int) -> None:
    """Write RUN/model.safetensors, and before it the LoRA that was trained; every process must call this.

    Parts that were not loaded come from --weights. A LoRA is merged for good. Raise ValueError where the file that the
    run started from is no longer there.
    """
    model, options = stage.model, stage.options
    assert stage.origin is not None
    lineage = stage.origin[0]
    restore_frozen(model, options.weights, lineage.parent)
    # A trained denoiser fits the old scale, and --decoder-only keeps the latents.
    if options.stage == "vae" and not options.decoder_only and denoiser_is_random(options, lineage):
        set_latents(model, stage.data)
    for note in measure(stage):
        if stage.world.main:
            print(f"note: {note}")
    if options.adapter is not None:
        if stage.world.main:
            path = options.out / "lora.safetensors"
            save_lora(path, model, options.adapter, lineage.parent, result_metadata(stage, steps))
            print(f"wrote {path}")
        merge_lora(model)
    path = options.out / "model.safetensors"
    write_model(stage, path, steps)
    if stage.world.main:
        print(f"wrote {path}")


def keep_model(stage: Stage, step: int) -> None:
    """Write RUN/kept/step_N.safetensors, whole as the result would be now; the run is left as it was, bit for bit."""
    model = stage.model
    before = model.prior, model.config, model.schedule
    measure(stage)
    write_model(stage, stage.options.out / KEPT / f"step_{step:08d}.safetensors", step)
    model.prior, model.config, model.schedule = before


def measure(stage: Stage) -> list[str]:
    """Measure on the data what sampling needs; -> notes. A LoRA on its base is the whole result: the base keeps its."""
    model, options = stage.model, stage.options
    if options.adapter is not None:
        return []
    if options.stage == "unet" and not model.schedule.ends_in_noise:
        stage.encode(shown_to_prior(len(stage.data)))  # whatever of them these steps have seen
    return set_measured(model, stage.data, options.stage, options.decoder_only, options.flip)


def write_model(stage: Stage, path: Path, steps: int) -> None:
    """Write the model as it is; what this run has not loaded, or holds in half precision, comes from --weights."""
    options, state, base = stage.options, stage.model.state_dict(), None
    if options.weights is not None and any(map(is_lacking, state.values())):
        assert stage.origin is not None
        check_unchanged(options.weights, stage.origin[0].parent)
        base = open_model_file(options.weights)  # once: its header is read and checked whole
    if options.shard:
        state |= gathered_weights(stage.networks)
    if stage.world.main:
        updates = {f"{name}.weight": m for name, m in stage.model.named_modules() if isinstance(m, LoRALinear)}
        tensors = [lazy_tensor(name, value, base, updates) for name, value in state.items() if not is_update(name)]
        path.parent.mkdir(exist_ok=True)
        write_safetensors(path, tensors, model_metadata(stage.model.config) | result_metadata(stage, steps))
    stage.world.barrier()


def is_lacking(value: Tensor) -> bool:
    """Whether a weight is not here as it is in the file that the run started from."""
    return value.is_meta or value.dtype in HALF.values()


def lazy_tensor(
    name: str, value: Tensor, base: safe_open | None, updates: Mapping[str, LoRALinear] | None = None
) -> LazyTensor:
    """A tensor of the result, with its update by a LoRA where it has one."""

    def load() -> Tensor:
        weight = value.detach()
        if is_lacking(value):
            assert base is not None
            weight = base.get_tensor(name).float()
        if layer := (updates or {}).get(name):
            weight = weight.clone()
            add_update(weight, layer.lora_down.weight, layer.lora_up.weight, layer.scale)
        return weight

    return LazyTensor(name, tuple(value.shape), torch.float32 if is_lacking(value) else value.dtype, load)


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
    """Means and standard deviations (n, c, h, w) of the unscaled latents of some training images.

    (1, c, places of all, 1) where their sizes differ.
    """
    count = min(images, len(data))
    index = torch.linspace(0, len(data) - 1, count).long()
    assert data.pixels is not None
    images_alone = (to_signed(data.pixels[i : i + 1]).to(model.device) for i in index.tolist())
    latents = [posterior_from_moments(model.vae.moments(x).float(), scale=1.0) for x in images_alone]
    return joined([latent.mean for latent in latents]), joined([latent.std for latent in latents])


def joined(latents: Sequence[Tensor]) -> Tensor:
    """Latents (1, c, h, w) of several images as one tensor; of several sizes place after place."""
    if len({one.shape for one in latents}) == 1:
        return torch.cat(list(latents))
    return torch.cat([one.flatten(2)[..., None] for one in latents], dim=2)


def result_metadata(stage: Stage, steps: int) -> dict[str, str]:
    """What a result says of how it was made, its ancestors included."""
    assert stage.origin is not None
    options, (lineage, data_sha256) = stage.options, stage.origin
    entry = {name: getattr(options, name) for name in RECORDED} | {
        "sizes": stage.data.sizes(),
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
