"""`python -m weights_convert import`: original weights -> one model file of ours, tensor by tensor."""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ldm_us.config import ModelConfig
from ldm_us.files.atomic import full_disk_is_an_error_of_input
from ldm_us.files.checkpoint import PARTS, LazyTensor, model_metadata, write_safetensors
from ldm_us.files.lineage import imported_files
from ldm_us.runtime.entry import note
from weights_convert.convert import DTYPES, LARGEST, Piece, Plan, lazy, load_piece, plan_source
from weights_convert.embedding import import_embedding
from weights_convert.lora_import import import_lora
from weights_convert.result_place import check_result_file
from weights_convert.rules import SPOILT_POSITIONS
from weights_convert.source_config import choose_config, with_metadata_of_export
from weights_convert.sources import Source, open_source
from weights_convert.summary import of_part, summary

REQUIRED = ("vae", "text", "unet")
DIFFERENCE = "difference"  # a tensor of this name marks a ControlNet that was saved as its difference from a UNet
OURS_ONLY = ("format", "config", "ldm_us")  # metadata that is written anew, not carried over from a model file of ours


def run_import(args: argparse.Namespace) -> None:
    """Check everything, then write, then say what was done."""
    given = [name for name in ("src", "lora", "embedding") if getattr(args, name) is not None]
    if len(given) != 1 or (args.src is None) != (args.base is not None):
        raise ValueError("import: give SRC, or --lora LORA or --embedding EMB together with --base MODEL.")
    if args.src is None:
        unused = [name for name in ("preset", "ema", "controlnet", "text", "vae", "prediction") if getattr(args, name)]
        if unused:
            raise ValueError(f"--{unused[0]} does nothing with --{given[0]}: leave it out.")
        write = import_lora if args.embedding is None else import_embedding
        write(args.lora or args.embedding, args.base, args.out, args.dtype, args.overwrite)
        return
    replaceable = {"controlnet": args.controlnet, "text": args.text, "vae": args.vae}
    replaced = {part: path for part, path in replaceable.items() if path is not None}
    check_result_file(args.out, ".safetensors", args.overwrite, [args.src, *replaced.values()])
    src = with_metadata_of_export(open_source(args.src))
    config = choose_config(src, args.preset, args.prediction, replaced)
    plans = plan_import(src, config, replaced, args.ema)
    for plan in plans:
        if SPOILT_POSITIONS in plan.ignored.values():
            note(f"{plan.source.path}: {SPOILT_POSITIONS}.")
    pieces = [piece for part in PARTS for plan in plans for piece in of_part(part, plan.pieces)]
    dtype = DTYPES.get(args.dtype)
    metadata = model_metadata(config) | provenance(plans, args.ema)
    with full_disk_is_an_error_of_input(args.out):
        large: list[str] = []
        write_safetensors(args.out, [watched(lazy(piece, dtype), piece.key, large) for piece in pieces], metadata)
    if large:
        note(
            f"{args.out}: {len(large)} tensors hold numbers beyond {LARGEST:g}, the largest of fp16 "
            f"({', '.join(large[:3])}): a merge or a training may have gone wrong, and samples may be noise or refused."
        )
    print(summary(plans, pieces, dtype, [args.out]))


def plan_import(src: Source, config: ModelConfig, replaced: Mapping[str, Path], ema: bool) -> list[Plan]:
    """What each file gives; those of `replaced`, part -> path, win over SRC. Raise ValueError if a part is nowhere."""
    measured = config.vae.grain or config.vae.whitened or config.schedule.start_prior
    if "vae" in replaced and measured:
        raise ValueError(
            f"--vae: {src.path} was trained or measured with its own autoencoder (whitened latents, start prior or "
            "grain), and with another one it would sample wrongly. Give a SRC without these."
        )
    plans = [plan_source(src, config, [part for part in PARTS if part not in replaced], ema, "taken from another file")]
    for part, path in replaced.items():
        plan = plan_source(open_source(path), config, [part], reason=f"only the {part} is taken from this file")
        if not plan.layouts:
            raise ValueError(f"{path}: holds no {part}. Give a file that does with --{part}.")
        plans.append(plan)
    found = {layout.part for plan in plans for layout in plan.layouts}
    lacking = [part for part in REQUIRED if part not in found]
    if lacking:
        parts = [layout.part for layout in plans[0].layouts]
        held = ", ".join(parts) or "nothing that is asked for"
        how = f", and this file with --{parts[0]}" if len(parts) == 1 and parts[0] != "unet" else ""
        raise ValueError(
            f"{src.path}: holds {held}, but no {' and no '.join(lacking)}. Give a whole Stable Diffusion 1.x model as "
            f"SRC{how}; --controlnet, --text and --vae add to it."
        )
    unet = {piece.target: piece for plan in plans for piece in of_part("unet", plan.pieces)}
    return [add_unet(plan, unet) for plan in plans]


def add_unet(plan: Plan, unet: Mapping[str, Piece]) -> Plan:
    """The plan of a file that may be a ControlNet's difference, with the UNet added. `unet`: its pieces by target.

    Of what a ControlNet copies from a UNet (time embedding, encoder, middle) such a file holds W - W_unet; its hint
    network and zero convolutions are as they are. Sources: load_controlnet in comfy/controlnet.py of ComfyUI,
    scripts/cldm.py of sd-webui-controlnet.
    """
    if DIFFERENCE not in plan.ignored:
        return plan
    copied = {name.replace("unet.", "controlnet.", 1): piece for name, piece in unet.items()}
    pieces = (sum_of(piece, copied[piece.target]) if piece.target in copied else piece for piece in plan.pieces)
    return replace(plan, pieces=tuple(pieces))


def sum_of(piece: Piece, other: Piece) -> Piece:
    """The sum of two tensors of one shape, in the finer of their types."""
    dtype = torch.promote_types(piece.entry.dtype, other.entry.dtype)

    def load() -> torch.Tensor:
        return load_piece(piece).to(dtype) + load_piece(other).to(dtype)

    return replace(piece, entry=LazyTensor(piece.key, piece.shape, dtype, load), index=0, count=1)


def watched(tensor: LazyTensor, key: str, large: list[str]) -> LazyTensor:
    """The same tensor; when it is read, `large` gets its `key` if a number in it is beyond LARGEST."""

    def load() -> torch.Tensor:
        values = tensor.load()
        if bool((values > LARGEST).any() or (values < -LARGEST).any()):
            large.append(key)
        return values

    return tensor._replace(load=load)


def provenance(plans: Sequence[Plan], ema: bool) -> dict[str, str]:
    """Where the weights come from, as metadata; that of a model file of ours is carried on."""
    carried = {key: value for key, value in plans[0].source.metadata.items() if key not in OURS_ONLY}
    if "config" not in plans[0].source.metadata:
        carried = {"stage": "import"}
    sources = [
        {"file": file.name, "sha256": digest, "parts": [layout.part for layout in plan.layouts], "ema": ema}
        for plan in plans
        for file, digest in plan.source.hashes.items()
    ]
    return carried | {"sources": json.dumps(imported_files(carried) + sources)}
