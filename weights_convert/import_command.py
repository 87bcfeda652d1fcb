"""`python -m weights_convert import`: original weights -> one model file of ours, tensor by tensor."""

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ldm_us.config import PRESETS, ModelConfig, config_from_dict
from ldm_us.files.atomic import full_disk_is_an_error_of_input, sha256_file
from ldm_us.files.checkpoint import PARTS, LazyTensor, model_metadata, read_metadata, write_safetensors
from ldm_us.files.safetensors_header import parse_json
from ldm_us.files.stored_tensor import shown
from weights_convert.convert import Piece, Plan, load_piece, plan_source, target_shapes
from weights_convert.folder_config import with_folder_config
from weights_convert.result_place import check_result_file
from weights_convert.sources import Source, open_source

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
REQUIRED = ("vae", "text", "unet")
OURS_ONLY = ("format", "config", "ldm_us")  # metadata that is written anew, not carried over from a model file of ours


def add_import_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the command line."""
    parser = commands.add_parser("import", help="original weights -> a model file", description=__doc__)
    parser.add_argument(
        "src", type=Path, nargs="?", metavar="SRC", help=".ckpt/.pt/.pth/.bin, .safetensors or a diffusers folder"
    )
    parser.add_argument("--lora", type=Path, metavar="LORA", help="in place of SRC: a LoRA of kohya's or diffusers'")
    parser.add_argument("--base", type=Path, metavar="MODEL", help="--lora: a model file of the sizes that it is for")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the .safetensors file to write")
    parser.add_argument("--preset", choices=PRESETS, help="sizes of the model (sd15; a model file brings its own)")
    parser.add_argument("--ema", action="store_true", help="take the moving average of the UNet (model_ema.*)")
    parser.add_argument("--controlnet", type=Path, metavar="SRC2", help="take the ControlNet from here")
    parser.add_argument("--text", type=Path, metavar="SRC3", help="take the text encoder from here")
    parser.add_argument("--dtype", choices=DTYPES, help="type of the numbers written (as in the file)")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    parser.set_defaults(run=run_import)


def run_import(args: argparse.Namespace) -> None:
    """Check everything, then write, then say what was done."""
    if (args.src is None) == (args.lora is None) or (args.lora is None) != (args.base is None):
        raise ValueError("import: give SRC, or --lora LORA together with --base MODEL.")
    if args.lora is not None:
        unused = [name for name in ("preset", "ema", "controlnet", "text") if getattr(args, name)]
        if unused:
            raise ValueError(f"--{unused[0]} does nothing with --lora: leave it out.")
        from weights_convert.lora_command import import_lora  # which imports the plan of an import from here

        import_lora(args.lora, args.base, args.out, args.dtype, args.overwrite)
        return
    inputs = [path for path in (args.src, args.controlnet, args.text) if path is not None]
    check_result_file(args.out, ".safetensors", args.overwrite, inputs)
    src = with_metadata_of_export(open_source(args.src))
    config = choose_config(src, args.preset)
    plans = plan_import(src, config, args.controlnet, args.text, args.ema)
    pieces = [piece for part in PARTS for plan in plans for piece in plan.pieces if piece.target.startswith(f"{part}.")]
    dtype = DTYPES.get(args.dtype)

    hashes = {file: sha256_file(file) for plan in plans for file in plan.source.files}
    metadata = model_metadata(config) | provenance(plans, hashes, args.ema)
    with full_disk_is_an_error_of_input(args.out):
        write_safetensors(args.out, [lazy(piece, dtype) for piece in pieces], metadata)
    print(summary(plans, pieces, dtype, hashes, args.out))


def with_metadata_of_export(src: Source) -> Source:
    """A diffusers folder that an export wrote, with the metadata that each of its files has; else the source as it is.

    Where the files do not agree, or some have none, somebody has exchanged or trained parts since.
    """
    if not src.path.is_dir() or any(file.suffix != ".safetensors" for file in src.files):
        return src
    first, *others = metadata = [read_metadata(file) for file in src.files]
    if "config" in first and all(other == first for other in others):
        return replace(src, metadata=first)
    if any("config" in each for each in metadata):
        print("note: files of this folder were exchanged since it was exported: sizes are those of --preset.")
    return src


def choose_config(src: Source, preset: str | None) -> ModelConfig:
    """The config that a model file of ours carries, else the preset; of a folder, what its .json files say on top."""
    folder = src.path if src.path.is_dir() else None
    if "config" not in src.metadata:
        config = PRESETS[preset or "sd15"]
        return config if folder is None else with_folder_config(config, folder)
    try:
        config = config_from_dict(parse_json(src.metadata["config"]))
        target_shapes(config)
    except (ValueError, TypeError, RuntimeError, ArithmeticError) as error:  # the last three: of a width of -1
        raise ValueError(f"{src.path}: the config in its metadata cannot be read ({shown(str(error))}).") from error
    if preset not in (None, config.name):
        raise ValueError(f"{src.path}: carries its own config, {config.name}. Leave --preset {preset} out.")
    return config if folder is None else with_folder_config(config, folder)


def plan_import(src: Source, config: ModelConfig, controlnet: Path | None, text: Path | None, ema: bool) -> list[Plan]:
    """What each file gives; --controlnet and --text win over SRC. Raise ValueError if a part is nowhere."""
    replaced = {"controlnet": controlnet, "text": text}
    plans = [plan_source(src, config, [p for p in PARTS if replaced.get(p) is None], ema, "taken from another file")]
    for part, path in replaced.items():
        if path is None:
            continue
        plan = plan_source(open_source(path), config, [part], reason=f"only the {part} is taken from this file")
        if not plan.layouts:
            raise ValueError(f"{path}: holds no {part}. Give a file that does with --{part}.")
        plans.append(plan)
    found = {layout.part for plan in plans for layout in plan.layouts}
    lacking = [part for part in REQUIRED if part not in found]
    if lacking:
        held = ", ".join(layout.part for layout in plans[0].layouts) or "nothing that is asked for"
        raise ValueError(
            f"{src.path}: holds {held}, but no {' and no '.join(lacking)}. Give a whole Stable Diffusion 1.x model as "
            "SRC; --controlnet and --text add to it."
        )
    return plans


def lazy(piece: Piece, dtype: torch.dtype | None) -> LazyTensor:
    """A tensor of the result, read while it is written."""
    return LazyTensor(piece.target, piece.shape, dtype or piece.entry.dtype, lambda: load_piece(piece, dtype))


def provenance(plans: Sequence[Plan], hashes: dict[Path, str], ema: bool) -> dict[str, str]:
    """Where the weights come from, as metadata; that of a model file of ours is carried on."""
    carried = {key: value for key, value in plans[0].source.metadata.items() if key not in OURS_ONLY}
    if "config" not in plans[0].source.metadata:
        carried = {"stage": "import"}
    sources = [
        {"file": file.name, "sha256": hashes[file], "parts": [layout.part for layout in plan.layouts], "ema": ema}
        for plan in plans
        for file in plan.source.files
    ]
    return carried | {"sources": json.dumps(earlier_sources(carried) + sources)}


def earlier_sources(metadata: dict[str, str]) -> list[object]:
    """The files that a model file of ours was once made of, so that their hashes are not lost."""
    try:
        listed = json.loads(metadata.get("sources", "[]"))
    except ValueError:
        return []
    return listed if isinstance(listed, list) else []


def summary(
    plans: Sequence[Plan], pieces: Sequence[Piece], dtype: torch.dtype | None, hashes: dict[Path, str], out: Path
) -> str:
    """What was found, taken, left out and written."""
    lines = []
    for plan in plans:
        found = ", ".join(f"{layout.part} ({layout.naming}{', ema' if layout.ema else ''})" for layout in plan.layouts)
        lines.append(f"{plan.source.path}: {len(plan.source.entries)} tensors; {found or 'nothing taken'}")
        lines += [f"  read {file}  sha256 {hashes[file]}" for file in plan.source.files]
        lines += [f"  ignored {count:4}: {reason}" for reason, count in Counter(plan.ignored.values()).items()]
    for part in PARTS:
        own = [piece for piece in pieces if piece.target.startswith(f"{part}.")]
        if own:
            lines.append(part_line(part, own, dtype))
    lines.append(f"wrote {out}  {out.stat().st_size:,} bytes  sha256 {sha256_file(out)}")
    return "\n".join(lines)


def part_line(part: str, pieces: Sequence[Piece], dtype: torch.dtype | None) -> str:
    """How much of a part was written, in which type."""
    parameters = sum(torch.Size(piece.shape).numel() for piece in pieces)
    types = sorted({str(dtype or piece.entry.dtype).removeprefix("torch.") for piece in pieces})
    return f"{part:10} {len(pieces):5} tensors {parameters:13,} parameters  {', '.join(types)}"
