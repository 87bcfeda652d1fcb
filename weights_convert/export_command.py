"""`python -m weights_convert export`: a model file of ours -> the files of another program, tensor by tensor.

compvis: one .safetensors with the names of v1-5-pruned-emaonly, the file that A1111, ComfyUI and Forge read: the UNet
under model.diffusion_model., the autoencoder under first_stage_model., the text encoder with its position_ids (int64)
under cond_stage_model.transformer.text_model.; at the size of SD 1.5 1,131 tensors. Nothing of training is in it: no
moving average, no noise schedule, no loss. Where prediction, schedule or the scale of the latents are not SD 1.5's, a
.yaml beside it, which these programs read, says so. A ControlNet is a file of its own (control_model.), here as there;
in the diffusers folder it is controlnet/, for ControlNetModel.from_pretrained. Of LoRAs see lora_export.py.

Every file of weights carries the metadata of the model file, config included, so that an import gets all of it back.
"""

import argparse
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path

import torch

from ldm_us.config import SD15, ModelConfig
from ldm_us.files.atomic import atomic_file, atomic_folder, full_disk_is_an_error_of_input, write_text
from ldm_us.files.checkpoint import MEASURED, NETWORKS, PARTS, LazyTensor, model_metadata, write_safetensors
from weights_convert.convert import DTYPES, Piece, Plan, lazy, plan_source, target_shapes
from weights_convert.detect import detect
from weights_convert.diffusers_folder import TOKENIZER_FILES, beta_schedule, fields_by_file, folder_texts
from weights_convert.expansion import rules_for
from weights_convert.file_settings import beside, marks, yaml_beside
from weights_convert.lora_export import export_lora
from weights_convert.result_place import check_result_file, check_result_folder
from weights_convert.rules import CONVOLUTIONAL, GAINS, Layout
from weights_convert.source_config import choose_config
from weights_convert.sources import COMPONENTS, Source, open_source
from weights_convert.summary import in_yaml, of_part, summary, unlike_sd15

NO_PLACE = "no place for it in this layout"
POSITION_IDS = "embeddings.position_ids"  # behind the prefix of the text encoder, in transformers' names

# A CompVis file of a whole model. A ControlNet is a file of its own.
COMPVIS = (
    Layout("unet", "compvis", "model.diffusion_model."),
    Layout("vae", "compvis", "first_stage_model."),
    Layout("text", "transformers", "cond_stage_model.transformer.text_model."),
)
COMPVIS_CONTROLNET = Layout("controlnet", "compvis", "control_model.")
DIFFUSERS = {  # component, a folder -> its tensors
    "unet": Layout("unet", "diffusers", ""),
    "vae": Layout("vae", "diffusers", ""),
    "text_encoder": Layout("text", "transformers", "text_model."),
    "controlnet": Layout("controlnet", "diffusers", ""),
}

FOLDER = (  # every file that an export can put into a diffusers folder
    "model_index.json",
    "scheduler/scheduler_config.json",
    *(f"tokenizer/{name}" for name in TOKENIZER_FILES),
    *(f"{component}/config.json" for component in DIFFUSERS),
    *(f"{component}/{COMPONENTS[component][0]}" for component in DIFFUSERS),
)


def run_export(args: argparse.Namespace) -> None:
    """Check everything, then write, then say what was done."""
    if (args.format == "lora") != (args.names is not None):
        raise ValueError(
            f"--format {args.format}: --names diffusers|kohya belongs to --format lora, and to that alone."
        )
    if args.format == "lora":
        export_lora(args.file, args.out, args.names, args.dtype, args.overwrite)
        return
    check_place(args)
    source = open_source(args.file)
    if any(layout.naming != "ours" for layout in detect(source)) or "config" not in source.metadata:
        raise ValueError(
            f"{source.path}: not a model file of ours. Make one of it with `python -m weights_convert import "
            f"{source.path} --out model.safetensors`, and export that."
        )
    config = choose_config(source, preset=None)
    plan = plan_source(source, config)
    layouts = layouts_by_file(args.format, plan)
    check_schedule(source, config, args.format)
    dtype = DTYPES.get(args.dtype)
    weights: dict[str, list[LazyTensor]] = {name: [] for name in layouts}
    for name, inside in layouts.items():
        for layout in inside:
            weights[name] += [lazy(piece, dtype) for piece in plan_export(source, config, layout)]
            weights[name] += position_ids(config, layout)
    if args.format == "compvis":
        weights[""] += marks(config.schedule)
    taken = {layout.part for inside in layouts.values() for layout in inside}
    metadata = {key: value for key, value in source.metadata.items() if key != "format"}
    plain = without_ours(config)
    if config != plain:
        metadata["config"] = model_metadata(plain)["config"]
    texts = folder_texts(config, "controlnet" in taken) if args.format == "diffusers" else {}
    place = atomic_folder(args.out) if args.format == "diffusers" else nullcontext(args.out)
    descriptions = yaml_beside(args.out, plain) if args.format == "compvis" else {}
    with full_disk_is_an_error_of_input(args.out), place as out, ExitStack() as both:
        for path, text in descriptions.items():  # takes its place with the file that it is about, or not at all
            both.enter_context(atomic_file(path)).write(text.encode())
        for name, text in texts.items():
            (out / name).parent.mkdir(exist_ok=True)
            write_text(out / name, text)
        for name, tensors in weights.items():  # "" is --out itself
            write_safetensors(out / name, tensors, metadata)
    pieces = [piece for part in taken for piece in of_part(part, plan.pieces) if piece.target in target_shapes(plain)]
    files = [*(args.out / name for name in weights), *descriptions]
    said = summary([plan], pieces, dtype, files, left_out(plan, taken), "text" in taken)
    print(said, *notes(args.out, args.format, plain, taken), sep="\n")


def check_place(args: argparse.Namespace) -> None:
    """Refuse a place that cannot be written to; a .yaml beside a CompVis file would be read with it, so that counts."""
    if args.format == "diffusers":
        check_result_folder(args.out, args.overwrite, FOLDER, [args.file])
    else:
        check_result_file(args.out, ".safetensors", args.overwrite, [args.file])
    if args.format == "compvis":
        check_result_file(beside(args.out), ".yaml", args.overwrite, [args.file])


def check_schedule(source: Source, config: ModelConfig, format: str) -> None:
    """Refuse a noise schedule that a layout has no word for; a ControlNet's file says nothing of any."""
    word = beta_schedule(config.schedule)
    if format != "controlnet" and (not word or (format == "compvis" and word != "scaled_linear")):
        raise ValueError(
            f"{source.path}: its noise schedule is not one of scaled linear betas, and --format {format} has no word "
            "for it: another program would sample noise. Sample with sample.py."
        )


def without_ours(config: ModelConfig) -> ModelConfig:
    """The config of a model without what no layout but ours holds: start prior, grain and gains of noise."""
    schedule = replace(config.schedule, start_prior=0, prior_prompts=())
    vae = replace(config.vae, grain=False, grain_bands=SD15.vae.grain_bands, noise_levels=0)
    return replace(config, schedule=schedule, vae=vae)


def left_out(plan: Plan, taken: set[str]) -> list[str]:
    """The parts of the model that are not in the files, and the gains of the decoder's noise."""
    lines = []
    for part in sorted({layout.part for layout in plan.layouts} - taken, key=PARTS.index):
        why = "--format controlnet writes it" if part == "controlnet" else "a ControlNet's file holds it alone"
        why = NO_PLACE if part in MEASURED else why
        lines.append(f"  left out {len(of_part(part, plan.pieces)):4}: {part}: {why}")
    gains = of_part(f"vae.{GAINS}", plan.pieces)
    if gains and "vae" in taken:
        lines.append(f"  left out {len(gains):4}: vae.{GAINS}: {NO_PLACE}")
    return lines


def notes(out: Path, format: str, config: ModelConfig, taken: set[str]) -> Iterator[str]:
    """What a file or folder leaves unsaid, and how a diffusers folder is loaded. One line each."""
    said = {"compvis": in_yaml, "diffusers": fields_by_file}.get(format, lambda config: None)
    different = [*unlike_sd15(config, taken, said)]
    if format == "controlnet" and beta_schedule(config.schedule) != "scaled_linear":
        different.append("the noise levels")
    if different:
        yield (
            f"note: not as in SD 1.5, and no place for it in this layout: {', '.join(different)}. A program that "
            "expects SD 1.5 will not load the file, or will sample wrongly. `weights_convert import` reads it."
        )
    if format != "diffusers":
        if chosen := [*unlike_sd15(config, taken, lambda config: None, sampling=True)]:
            yield f"note: samples best with {', '.join(chosen)}: no program reads that from the file."
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


def layouts_by_file(format: str, plan: Plan) -> dict[str, tuple[Layout, ...]]:
    """The files of weights in --out, and the parts in each; "" is --out itself."""
    parts = {layout.part for layout in plan.layouts}
    missing = [part for part in NETWORKS if part not in parts and (format == "controlnet") == (part == "controlnet")]
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


def plan_export(source: Source, config: ModelConfig, layout: Layout) -> list[Piece]:
    """One piece for every weight that `layout` has of its part; the source holds all tensors of the part in our names.

    Raise ValueError for a learned prompt, which no other program has a place for.
    """
    if config.text.prompt_tokens and layout.part == "text":
        raise ValueError(
            f"{source.path}: has a learned prompt of {config.text.prompt_tokens} tokens, and no other program's format "
            "has a place for it. Sample with sample.py, or export a model that was trained without one."
        )
    shapes = target_shapes(config)
    pieces = []
    for rule in rules_for(config, layout, shapes):
        (ours,) = rule.targets  # only open_clip, which is never written, joins tensors
        shape = original_shape(layout, shapes[ours])
        pieces.append(Piece(rule.source, shape, source.path, ours, source.entries[ours]))
    return pieces


def original_shape(layout: Layout, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape there of a tensor of ours: a matrix stays one or is a convolution of 1x1."""
    return (*shape, 1, 1) if len(shape) == 2 and (layout.part, layout.naming) in CONVOLUTIONAL else shape


def position_ids(config: ModelConfig, layout: Layout) -> list[LazyTensor]:
    """What a text encoder has beside its weights: the numbers 0 to n - 1, (1, n) int64 whatever the weights' type."""
    if layout.part != "text":
        return []
    n = config.text.length
    return [LazyTensor(layout.prefix + POSITION_IDS, (1, n), torch.int64, lambda: torch.arange(n).view(1, n))]
