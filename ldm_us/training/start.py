"""Where a run starts from, which parts of the model it needs, and which of its weights it trains."""

import dataclasses
import json
import re
from collections.abc import Sequence

import torch
from torch import nn

from ldm_us.config import MASK, PICTURE, PRESETS, ModelConfig
from ldm_us.data.audit.summary import cut_off_notes
from ldm_us.data.decoded import Decoded
from ldm_us.data.framing import Framing
from ldm_us.data.readers.datasets import Reading, hint_shown
from ldm_us.data.records import Record
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.diffusion.noise import torch_seed
from ldm_us.diffusion.sampling import check_size
from ldm_us.files.atomic import sha256_file
from ldm_us.files.checkpoint import load_model, read_metadata
from ldm_us.files.lineage import Lineage, read_lineage
from ldm_us.networks.discriminator import SMALLEST
from ldm_us.networks.lora import add_lora
from ldm_us.networks.vae import DECODER_PARTS
from ldm_us.runtime.machine import emulation_notes
from ldm_us.training.batches import stream_generator
from ldm_us.training.options import TrainOptions

ADAPTER = 4  # stream of the run's seed that the initial values of a LoRA come from
BROUGHT = {  # the fields of each table of a config that come with trained weights, whatever --preset says
    "vae": ("scale", "whitened", "grain", "grain_bands", "noise_levels"),
    "text": ("prompt_tokens", "chunks"),
    "unet": (),
    "schedule": ("start_prior", "prior_prompts", "prediction"),
}
SIDE = re.compile(r"\b(left|right)\b|o'clock", re.IGNORECASE)


def start_model(options: TrainOptions, readings: Sequence[Reading]) -> tuple[LatentDiffusion, Lineage, list[str]]:
    """The model a run starts from, where that came from, and notes. A new ControlNet follows what the datasets show."""
    renewed: list[str] = []
    if options.weights is not None:
        parts = {*needed_parts(options), *(["vae"] * bool(options.variations))}
        model = load_model(options.weights, options.device, parts=parts)
        lineage, parent = read_lineage(read_metadata(options.weights)), sha256_file(options.weights)
        if options.preset is not None:
            model, renewed = with_new_part(options, model)
        check_objective(options, model, lineage)
    else:
        model = random_model(str(options.preset), options.seed).to(options.device)
        lineage, parent = Lineage(()), "random"
    model.set_prediction(options.objective or model.config.schedule.prediction)
    model.set_chunks(options.long_prompts or model.config.text.chunks)
    notes = renewed + notes_on_start(options, model, denoiser_is_random(options, lineage))
    if options.stage == "unet":
        model.controlnet = None  # it was a copy of another UNet; train it again on the new one
    if options.stage == "controlnet":
        notes += with_controlnet(model, options, hint_shown(readings))
    check_size(model.config, framing_of(options, model.config).side)
    return model, dataclasses.replace(lineage, parent=parent), notes


def with_controlnet(model: LatentDiffusion, options: TrainOptions, hint: tuple[str, ...]) -> list[str]:
    """Give a model that has none a new ControlNet. Raise ValueError for one that follows something else; -> notes."""
    if model.controlnet is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch_seed(options.seed))  # of the hint network; the rest is a copy
            model.add_controlnet(hint)
        return []
    own, shown = model.config.control.hint, ", ".join(hint)
    if own == hint:
        return []
    if own == MASK and hint != PICTURE:
        return [f"the ControlNet of {options.weights} follows one mask: {shown} are joined."]
    raise ValueError(
        f"--weights {options.weights}: its ControlNet has channels for {', '.join(own)}, and --data shows {shown}. "
        "Describe the data so in dataset.json, or train a new one on the model of the stage unet."
    )


def framing_of(options: TrainOptions, config: ModelConfig) -> Framing:
    """How the images of a run get their sizes."""
    return Framing(options.size or config.image_size, options.aspect, config.size_multiple)


def decoded_of(options: TrainOptions, config: ModelConfig) -> Decoded:
    """What the files of a run decode to; a --dry-run makes no folder for it."""
    folder = None if options.dry_run and not options.cache.is_dir() else options.cache
    levels = options.stage == "controlnet" and config.control.hint != MASK
    return Decoded(folder, framing_of(options, config), options.stage == "vae" or bool(options.variations), levels)


def with_new_part(options: TrainOptions, start: LatentDiffusion) -> tuple[LatentDiffusion, list[str]]:
    """The start with the part of the stage new, of --preset's size: a denoiser or a ControlNet; -> it, and a note.

    A new denoiser has the preset's schedule and, where that fits, the text encoder of the start, else a new one. With
    the autoencoder comes what was measured of its latents. Raise ValueError where what must stay is of another size.
    """
    model = random_model(str(options.preset), options.seed).to(options.device)
    own, preset, name = start.config, model.config, options.preset
    kept = ("vae",) if options.stage == "unet" else tuple(BROUGHT)
    if found := [line for part in kept for line in differing(own, preset, part)]:
        raise ValueError(
            f"--weights {options.weights} with --preset {name}: {', '.join(found[:3])}. What is kept of a model "
            f"must be as in the preset: {', '.join(kept)}."
        )
    if options.stage == "controlnet":
        start.controlnet = None
        start.config = dataclasses.replace(own, name=preset.name, image_size=preset.image_size, control=preset.control)
        return start, [f"the ControlNet is new, as {name} has it; all else is that of {options.weights}."]
    taken = ["vae"] if differing(own, preset, "text") else ["vae", "text"]
    for part in taken:
        setattr(model, part, getattr(start, part))
    model.config = dataclasses.replace(preset, **{part: getattr(own, part) for part in taken})
    model.grain = start.grain
    model.set_prior(None if model.schedule.ends_in_noise else start.prior)
    new = "denoiser" if "text" in taken else "denoiser and text encoder (--train-text teaches it)"
    return model, [f"from {options.weights}: {', '.join(taken)}; new, of random weights as {name} has them: {new}."]


def differing(own: ModelConfig, other: ModelConfig, part: str) -> list[str]:
    """In which fields a part of two models differs, but for those that its weights bring along."""
    mine, theirs = getattr(own, part), getattr(other, part)
    names = [field.name for field in dataclasses.fields(mine) if field.name not in BROUGHT[part]]
    values = [(f"{part}.{name}", getattr(mine, name), getattr(theirs, name)) for name in names]
    return [f"{name} is {a}, in the preset {b}" for name, a, b in values if a != b]


def summary(options: TrainOptions, model: LatentDiffusion, images: int, held_out: int, steps: int, memory: str) -> str:
    """What the run amounts to, in a few lines; with --dry-run the whole configuration too, as config.json keeps it."""
    total = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in trained_parameters(model).values())
    size, start = options.size or model.config.image_size, options.weights or f"random weights ({options.preset})"
    lines = [
        f"stage {options.stage} of {model.config.name} at {size}x{size} pixels, from {start}, into {options.out}",
        f"{images} training images, {held_out} held out; {trained:,} of {total:,} parameters trained; {steps} steps",
        f"{options.images_per_step} images a step, learning rate {options.learning_rate:g}, EMA {options.ema:g}, "
        f"seed {options.seed}, {options.precision} on {options.device}{memory and f', {memory}'}",
    ]
    if options.dry_run:
        run = vars(options) | {"lr": options.learning_rate, "steps": steps}
        lines.insert(0, json.dumps({"run": run, "model": dataclasses.asdict(model.config)}, indent=2, default=str))
    return "\n".join(lines)


def notes_on_start(options: TrainOptions, model: LatentDiffusion, random_denoiser: bool) -> list[str]:
    """What a stage does to the other parts of its start, or lacks in them, that nobody may have meant."""
    notes = emulation_notes(options.precision, options.device)
    if options.stage == "unet" and model.controlnet is not None:
        notes.append(
            f"the ControlNet of {options.weights} fits the old denoiser alone: the result has none. Train it again."
        )
    if options.stage == "unet" and options.weights is None:
        notes.append("the autoencoder is random: its latents mean nothing. Train the stage vae first.")
    if options.stage == "controlnet" and random_denoiser:
        notes.append("the denoiser is random: a ControlNet on it learns nothing of use. Train the stage unet first.")
    if options.stage == "vae" and not options.decoder_only and not random_denoiser:
        notes.append(
            f"the denoiser of {options.weights} fits the old latents: train it again, or keep them: --decoder-only."
        )
    return notes


def notes_on_data(
    options: TrainOptions, records: Sequence[Record], held_out: Sequence[Record], decoded: Decoded
) -> list[str]:
    """Nothing held out; lesions that a crop cuts; captions that name a side, which --flip makes wrong half the times.

    ValueError: a crop cuts more than a few; the discriminator of --adversarial has too little to see.
    """
    smallest = min(min(frame.size) for frame in decoded.frames_of(records)) if options.adversarial else SMALLEST
    if smallest < SMALLEST:
        raise ValueError(f"--adversarial: the discriminator needs images of {SMALLEST} pixels or more, not {smallest}.")
    notes = cut_off_notes(records, decoded) if options.aspect == "crop" else []
    if options.held_out and not held_out:
        notes.append(
            f"--held-out {options.held_out} holds no image out: all are of one patient, case or family. None is left "
            "to validate and to measure on."
        )
    sided = [record.prompt for record in records if SIDE.search(record.prompt)]
    if sided and options.flip and options.stage != "vae":
        notes.append(
            f"{len(sided)} of {len(records)} captions name a side ({sided[0]!r}), and --flip mirrors their images: "
            "--no-flip keeps them true."
        )
    return notes


def check_objective(options: TrainOptions, model: LatentDiffusion, lineage: Lineage) -> None:
    """Refuse to change what a trained denoiser's output means. One that only its autoencoder came with is random."""
    prediction = model.config.schedule.prediction
    if options.objective not in (None, prediction) and not denoiser_is_random(options, lineage):
        raise ValueError(
            f"--objective {options.objective}: the denoiser of {options.weights} was trained to predict {prediction}, "
            "and training cannot change what its output means. Leave the option out, or add a --preset."
        )


def denoiser_is_random(options: TrainOptions, lineage: Lineage) -> bool:
    """Whether the denoiser that a run starts from was never trained: it then fits any latents and any objective."""
    if options.weights is None or (options.preset is not None and options.stage == "unet"):
        return True
    stages = {entry.get("stage") for entry in lineage.entries}
    return stages == {"vae"} and lineage.entries[0].get("parent_sha256") == "random"


def random_model(preset: str, seed: int) -> LatentDiffusion:
    """PyTorch's default initial weights, from a seed of their own."""
    if preset not in PRESETS:
        raise ValueError(f"--preset {preset}: unknown. Use one of {', '.join(PRESETS)}.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(seed))
        return LatentDiffusion(PRESETS[preset])


def needed_parts(options: TrainOptions) -> tuple[str, ...]:
    """The parts of the model that a step computes with; latents and text states come from the cache."""
    if options.stage == "vae":
        return ("vae",)
    return ("unet", *(["controlnet"] if options.stage == "controlnet" else []), *(["text"] * options.trains_text))


def free_weights(model: LatentDiffusion, options: TrainOptions) -> None:
    """Freeze the whole model, then free what the stage trains: whole modules, or a LoRA and learned vectors instead."""
    generator = stream_generator(options.seed, ADAPTER)
    learned = model.text.prompt
    if options.prompt_tokens and (learned is None or len(learned) != options.prompt_tokens):  # else it goes on
        model.add_prompt_tokens(options.prompt_tokens, generator)
    if options.noise_levels is not None:
        model.add_decoder_noise(options.noise_levels)
    if options.adapter is not None:
        add_lora(model, options.adapter, generator)
        return
    model.requires_grad_(False)
    if options.stage == "vae":
        names = [f"vae.{part}" for part in DECODER_PARTS] if options.decoder_only else ["vae"]
    elif options.stage == "unet":
        names = ["unet", "text"] if options.train_text else ["unet"]
    else:
        names = ["controlnet", "unet.decoder"] if options.unlock_decoder else ["controlnet"]
    for name in names:
        model.get_submodule(name).requires_grad_(True)


def trained_parameters(model: LatentDiffusion) -> dict[str, nn.Parameter]:
    """{full name: parameter} of those that are free."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
