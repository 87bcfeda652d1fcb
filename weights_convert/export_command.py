"""`python -m weights_convert export`: a model file of ours -> the files of another program, tensor by tensor.

compvis: one .safetensors with the names of v1-5-pruned-emaonly, the file that A1111, ComfyUI and Forge read: the UNet
under model.diffusion_model., the autoencoder under first_stage_model., the text encoder with its position_ids (int64)
under cond_stage_model.transformer.text_model.; at the size of SD 1.5 1,131 tensors. Nothing of training is in it: no
moving average, no noise schedule, no loss. A ControlNet is a file of its own there, as here:
controlnet: one .safetensors with the names of lllyasviel's files (control_model.).
diffusers: a folder for StableDiffusionPipeline.from_pretrained; a ControlNet is the folder controlnet/ in it, for
ControlNetModel.from_pretrained.
lora: one .safetensors; --names kohya is for A1111, ComfyUI and Forge, --names diffusers for load_lora_weights.

Every file of weights carries the metadata of the model file, config included, so that an import gets all of it back.
"""

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path

import torch

from ldm_us.config import SD15, ModelConfig
from ldm_us.files.atomic import atomic_file, atomic_folder, full_disk_is_an_error_of_input, sha256_file
from ldm_us.files.checkpoint import PARTS, LazyTensor, write_safetensors
from weights_convert.convert import Plan, plan_source
from weights_convert.detect import detect
from weights_convert.diffusers_folder import TOKENIZER_FILES, folder_texts
from weights_convert.export_plan import COMPVIS, COMPVIS_CONTROLNET, DIFFUSERS, plan_export, position_ids
from weights_convert.import_command import DTYPES, choose_config, lazy, part_line
from weights_convert.lora_command import NAMINGS, export_lora
from weights_convert.result_place import check_result_file, check_result_folder
from weights_convert.rules import Layout
from weights_convert.sources import COMPONENTS, Source, open_source

FORMATS = ("compvis", "diffusers", "controlnet", "lora")
FOLDER = (  # every file that an export can put into a diffusers folder
    "model_index.json",
    "scheduler/scheduler_config.json",
    *(f"tokenizer/{name}" for name in TOKENIZER_FILES),
    *(f"{component}/config.json" for component in DIFFUSERS),
    *(f"{component}/{COMPONENTS[component][0]}" for component in DIFFUSERS),
)

# Fields of a config that a sampler chooses anew; all others must be known to use the weights.
OF_SAMPLING = {
    "schedule": ("first_timestep", "guidance", "final_alpha_bar_one"),
    "control": ("scale", "guidance"),
}


def add_export_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the command line."""
    parser = commands.add_parser(
        "export",
        help="a model file -> files of other programs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "file", type=Path, metavar="FILE", help="a model file, of train.py or of import, or a LoRA of train.py"
    )
    parser.add_argument("--format", choices=FORMATS, required=True, help="whose files to write")
    parser.add_argument("--names", choices=NAMINGS, help="--format lora: whose names")
    parser.add_argument("--out", type=Path, required=True, metavar="DST", help="the .safetensors or folder to write")
    parser.add_argument("--dtype", choices=DTYPES, help="type of the numbers written (as in FILE)")
    parser.add_argument("--overwrite", action="store_true", help="replace DST if it exists")
    parser.set_defaults(run=run_export)


def run_export(args: argparse.Namespace) -> None:
    """Check everything, then write, then say what was done."""
    if (args.format == "lora") != (args.names is not None):
        raise ValueError(
            f"--format {args.format}: --names diffusers|kohya belongs to --format lora, and to that alone."
        )
    if args.format == "lora":
        export_lora(args.file, args.out, args.names, args.dtype, args.overwrite)
        return
    if args.format == "diffusers":
        check_result_folder(args.out, args.overwrite, FOLDER, [args.file])
    else:
        check_result_file(args.out, ".safetensors", args.overwrite, [args.file])
    source = open_source(args.file)
    config = own_config(source)
    plan = plan_source(source, config)
    layouts = layouts_by_file(args.format, plan)
    dtype = DTYPES.get(args.dtype)
    files = {name: tensors_of(source, config, inside, dtype) for name, inside in layouts.items()}

    metadata = {key: value for key, value in source.metadata.items() if key != "format"}
    with full_disk_is_an_error_of_input(args.out):
        if args.format == "diffusers":
            with atomic_folder(args.out) as folder:
                write_texts(folder, folder_texts(config, with_controlnet="controlnet" in parts_of(plan.layouts)))
                write_weights(folder, files, metadata)
        else:
            write_weights(args.out, files, metadata)
    taken = parts_of(layout for inside in layouts.values() for layout in inside)
    print(summary(args.out, plan, taken, dtype, files), *notes(args.out, args.format, config, taken), sep="\n")


def own_config(source: Source) -> ModelConfig:
    """The config of a model file of ours. Raise ValueError for other files, which an import reads first."""
    if any(layout.naming != "ours" for layout in detect(source)) or "config" not in source.metadata:
        raise ValueError(
            f"{source.path}: not a model file of ours. Make one of it with `python -m weights_convert import "
            f"{source.path} --out model.safetensors`, and export that."
        )
    return choose_config(source, preset=None)


def parts_of(layouts: Iterable[Layout]) -> set[str]:
    """The parts of a model that have these layouts."""
    return {layout.part for layout in layouts}


def layouts_by_file(format: str, plan: Plan) -> dict[str, tuple[Layout, ...]]:
    """The files of weights in --out, and the parts in each; "" is --out itself."""
    parts = parts_of(plan.layouts)
    missing = [part for part in PARTS if part not in parts and (format == "controlnet") == (part == "controlnet")]
    if missing:
        raise ValueError(
            f"{plan.source.path}: holds {', '.join(sorted(parts))}, but no {missing[0]}, which --format {format} "
            "writes. Give a model that has one."
        )
    if format == "compvis":
        return {"": COMPVIS}
    if format == "controlnet":
        return {"": (COMPVIS_CONTROLNET,)}
    own = {component: layout for component, layout in DIFFUSERS.items() if layout.part in parts}
    return {f"{component}/{COMPONENTS[component][0]}": (layout,) for component, layout in own.items()}


def tensors_of(
    source: Source, config: ModelConfig, layouts: Iterable[Layout], dtype: torch.dtype | None
) -> list[LazyTensor]:
    """The tensors of one file of weights, each read while it is written."""
    tensors = []
    for layout in layouts:
        tensors += [lazy(piece, dtype) for piece in plan_export(source, config, layout)]
        tensors += position_ids(config, layout)
    return tensors


def write_texts(folder: Path, texts: dict[str, str]) -> None:
    """Write files of text into a folder, and the folders in it that they need."""
    for name, text in texts.items():
        (folder / name).parent.mkdir(exist_ok=True)
        with atomic_file(folder / name) as file:
            file.write(text.encode())


def write_weights(out: Path, files: dict[str, list[LazyTensor]], metadata: dict[str, str]) -> None:
    """Write every file of weights, tensor by tensor."""
    for name, tensors in files.items():
        write_safetensors(out / name, tensors, metadata)


def summary(out: Path, plan: Plan, taken: set[str], dtype: torch.dtype | None, files: Iterable[str]) -> str:
    """What was found, taken, left out and written."""
    found = ", ".join(f"{layout.part} ({layout.naming})" for layout in plan.layouts)
    lines = [f"{plan.source.path}: {len(plan.source.entries)} tensors; {found}"]
    lines += [f"  read {file}  sha256 {sha256_file(file)}" for file in plan.source.files]
    pieces = {part: [p for p in plan.pieces if p.target.startswith(f"{part}.")] for part in PARTS}
    for part in PARTS:
        if pieces[part] and part not in taken:
            why = "--format controlnet writes it" if part == "controlnet" else "a ControlNet's file holds it alone"
            lines.append(f"  left out {len(pieces[part]):4}: {part}: {why}")
    for part in PARTS:
        if part in taken:
            lines.append(part_line(part, pieces[part], dtype) + ", position_ids int64" * (part == "text"))
    for path in (out / name for name in files):
        lines.append(f"wrote {path}  {path.stat().st_size:,} bytes  sha256 {sha256_file(path)}")
    return "\n".join(lines)


def notes(out: Path, format: str, config: ModelConfig, taken: set[str]) -> Iterator[str]:
    """How to load a diffusers folder; what a CompVis file leaves unsaid. One line each."""
    if format != "diffusers":
        different = [*unlike_sd15(config, taken)]
        if different:
            yield (
                f"note: not as in SD 1.5, and no place for it in this layout: {', '.join(different)}. A program that "
                "expects SD 1.5 will not load the file, or will sample wrongly. `weights_convert import` reads it."
            )
        return
    yield f'load StableDiffusionPipeline.from_pretrained("{out}"), guidance_scale={config.guidance(masked=False)}'
    if "controlnet" in taken:
        yield (
            f'load ControlNetModel.from_pretrained("{out / "controlnet"}"), '
            f"guidance_scale={config.guidance(masked=True)}, controlnet_conditioning_scale={config.control.scale}"
        )
    if config.schedule.first_timestep != SD15.schedule.first_timestep:
        yield (
            "note: the pipeline replaces the first timestep of the folder by SD 1.5's. After loading, "
            f"pipe.scheduler.register_to_config(steps_offset={config.schedule.first_timestep})."
        )


def unlike_sd15(config: ModelConfig, taken: set[str]) -> Iterator[str]:
    """The values of the parts taken that are not SD 1.5's: what a reader of a layout without a config takes for it."""
    tables = {"schedule", "unet", "control"} if "controlnet" in taken else {"schedule", *taken}
    for table in sorted(tables):
        for field in fields(getattr(config, table)):
            value, usual = (getattr(getattr(one, table), field.name) for one in (config, SD15))
            if value != usual and field.name not in OF_SAMPLING.get(table, ()):
                shown = f"{value:.5g}" if isinstance(value, float) else value
                yield f"{table}.{field.name} {shown}"
