"""The model that samples: a model file, another file's ControlNet in it, and any number of LoRAs merged into it."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from ldm_us.config import ModelConfig
from ldm_us.data.framing import Framing
from ldm_us.data.records import trained_framing
from ldm_us.data.words import Words, hint_in, words_of
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.files.atomic import sha256_file
from ldm_us.files.checkpoint import load_model, read_metadata
from ldm_us.files.lineage import read_lineage
from ldm_us.files.lora_file import PROMPT, UNKNOWN_BASE, apply_lora, load_lora
from ldm_us.networks.precision import HALF, cast_weights
from ldm_us.synthesis.fields import Fields


class ScaledLoRA(NamedTuple):
    """A LoRA file and the weight it is merged with."""

    path: Path
    scale: float = 1.0


class Source(NamedTuple):
    """The files that a sampling model is made of."""

    weights: Path
    controlnet: Path | None = None
    loras: Sequence[ScaledLoRA] = ()


def parse_lora(text: str) -> ScaledLoRA:
    """FILE or FILE:SCALE."""
    path, colon, scale = text.rpartition(":")
    try:
        return ScaledLoRA(Path(path), float(scale)) if colon else ScaledLoRA(Path(text))
    except ValueError:
        return ScaledLoRA(Path(text))  # a colon in the name of the file


def taught_words(source: Source) -> Words:
    """The words of the model, and those of the last stage of each file that is joined to it."""
    added = []
    if source.controlnet is not None:
        entries = read_lineage(read_metadata(source.controlnet)).entries
        added += [entry for entry in entries if entry.get("stage") == "controlnet"]
    for path, _ in source.loras:
        added += read_lineage(load_lora(path).metadata).entries[-1:]  # those before are of its base
    words = words_of(source.weights, added)
    hint = words.hint if source.controlnet is None else hint_in(read_metadata(source.controlnet))
    return dataclasses.replace(words, hint=hint)


def framing_of(source: Source, config: ModelConfig) -> Framing:
    """How the images of the last stage came into their sizes: of the model, or of a ControlNet or LoRA joined to it."""
    files = [read_metadata(path) for path in (source.weights, source.controlnet) if path is not None]
    files += [load_lora(path).metadata for path, _ in source.loras]
    trained_here = [metadata for metadata in files if read_lineage(metadata).entries]
    return trained_framing((trained_here or files)[-1], config)


def load_sampler(
    source: Source, device: str, warn: Callable[[str], None], precision: str = "fp32"
) -> tuple[LatentDiffusion, Fields]:
    """Read and join the files; -> the model, and its fields: SHA-256 of every file, scale of every LoRA.

    For bf16 and fp16 networks are cast once; of the autoencoder the decoder alone, as its encoder compares images too.
    LoRAs are merged in their order. Raise ValueError for files that do not fit together, and warn of a LoRA that was
    trained on other weights; one whose weights are not known, of another program, goes with any that it fits.
    """
    model = load_model(source.weights, device=device)
    fields: Fields = {"weights_sha256": sha256_file(source.weights)}
    bases = {fields["weights_sha256"]}
    if source.controlnet is not None:
        other = read_controlnet(source.controlnet, model, device, "--controlnet")
        model.controlnet = other.controlnet
        model.config = dataclasses.replace(
            model.config, control=other.config.control
        )  # the scale and guidance it suits
        fields["controlnet_sha256"] = sha256_file(source.controlnet)
        bases.add(fields["controlnet_sha256"])
    merged = []
    for path, scale in source.loras:
        lora = load_lora(path)
        if lora.base_sha256 not in (*bases, UNKNOWN_BASE):
            trained_on = f"{path}: trained on a model of SHA-256 {lora.base_sha256[:12]}"
            if lora.has_controlnet:
                raise ValueError(f"{trained_on}, whose ControlNet it holds, not on {source.weights}. Use its own base.")
            warn(f"{trained_on}, not on {source.weights}: its effect may differ.")
        if PROMPT in lora.tensors and model.text.prompt is not None:
            warn(f"{path}: its learned prompt takes the place of the one before it.")
        apply_lora(model, lora, scale)
        merged.append({"file": path.name, "sha256": sha256_file(path), "scale": scale})
    if merged:
        fields["loras"] = merged
    if precision in HALF:
        decoder = [] if precision == "fp16" else [model.vae.decoder]  # in float16 it may overflow: see without_float16
        for network in (model.text, model.unet, model.controlnet, *decoder):
            if network is not None:
                cast_weights(network, precision)
    return model, fields


def read_controlnet(path: Path, model: LatentDiffusion, device: str, option: str) -> LatentDiffusion:
    """Read a model file of which only the ControlNet is loaded. Raise ValueError where it does not fit `model`."""
    other = load_model(path, device=device, parts=("controlnet",), as_part="--controlnet")
    if other.controlnet is None:
        raise ValueError(f"{option} {path}: no ControlNet in it. Give what `train.py controlnet` wrote.")
    same = other.config.unet == model.config.unet
    if not same or other.config.vae.downsampling != model.config.vae.downsampling:
        raise ValueError(
            f"{option} {path}: made for a UNet of {other.config.name}, which is of another size than that of "
            f"{model.config.name}. Give one that was trained on such a model."
        )
    return other
