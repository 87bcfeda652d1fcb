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
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path

from ldm_us.config import SD15, ModelConfig
from ldm_us.files.atomic import atomic_folder, full_disk_is_an_error_of_input, write_text
from ldm_us.files.checkpoint import PARTS, write_safetensors
from weights_convert.convert import DTYPES, Plan, plan_source
from weights_convert.detect import detect
from weights_convert.diffusers_folder import TOKENIZER_FILES, folder_texts
from weights_convert.export_plan import DIFFUSERS, layouts_by_file, tensors_of
from weights_convert.lora_export import NAMINGS, export_lora
from weights_convert.result_place import check_result_file, check_result_folder
from weights_convert.source_config import choose_config
from weights_convert.sources import COMPONENTS, open_source
from weights_convert.summary import of_part, summary

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
    if any(layout.naming != "ours" for layout in detect(source)) or "config" not in source.metadata:
        raise ValueError(
            f"{source.path}: not a model file of ours. Make one of it with `python -m weights_convert import "
            f"{source.path} --out model.safetensors`, and export that."
        )
    config = choose_config(source, preset=None)
    plan = plan_source(source, config)
    layouts = layouts_by_file(args.format, plan)
    dtype = DTYPES.get(args.dtype)
    weights = {name: tensors_of(source, config, inside, dtype) for name, inside in layouts.items()}
    taken = {layout.part for inside in layouts.values() for layout in inside}
    metadata = {key: value for key, value in source.metadata.items() if key != "format"}
    texts = folder_texts(config, "controlnet" in taken) if args.format == "diffusers" else {}
    place = atomic_folder(args.out) if args.format == "diffusers" else nullcontext(args.out)
    with full_disk_is_an_error_of_input(args.out), place as out:
        for name, text in texts.items():
            (out / name).parent.mkdir(exist_ok=True)
            write_text(out / name, text)
        for name, tensors in weights.items():  # "" is --out itself
            write_safetensors(out / name, tensors, metadata)
    pieces = [piece for part in taken for piece in of_part(part, plan.pieces)]
    said = summary([plan], pieces, dtype, [args.out / name for name in weights], left_out(plan, taken), "text" in taken)
    print(said, *notes(args.out, args.format, config, taken), sep="\n")


def left_out(plan: Plan, taken: set[str]) -> list[str]:
    """The parts of the model that are not in the files."""
    lines = []
    for part in sorted({layout.part for layout in plan.layouts} - taken, key=PARTS.index):
        why = "--format controlnet writes it" if part == "controlnet" else "a ControlNet's file holds it alone"
        lines.append(f"  left out {len(of_part(part, plan.pieces)):4}: {part}: {why}")
    return lines


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
