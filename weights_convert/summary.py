"""What an import or export says when it is done: what was read, taken, left out and written."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ldm_us.config import SD15, ModelConfig
from ldm_us.files.atomic import sha256_file
from ldm_us.files.checkpoint import PARTS
from ldm_us.networks.lora import Update
from weights_convert.convert import Piece, Plan
from weights_convert.sources import Source

# Fields of a config that a sampler chooses anew, and those that the .yaml and marks of an export say; `whitened` is
# read by training alone. All others must be known to use the weights.
OF_SAMPLING = {
    "schedule": ("first_timestep", "guidance", "final_alpha_bar_one", "spacing"),
    "control": ("scale", "guidance"),
}
IN_YAML = {"schedule": ("prediction", "timesteps", "beta_start", "beta_end", "zero_terminal_snr"), "vae": ("scale",)}

# {SHA-256: file, of, licence} of original files; two independent public lists agree on each digest.
KNOWN: dict[str, dict[str, str]] = {
    entry["sha256"]: entry for entry in json.loads(Path(__file__).with_name("known_files.json").read_text("utf-8"))
}


def summary(
    plans: Sequence[Plan],
    pieces: Sequence[Piece],
    dtype: torch.dtype | None,
    files: Iterable[Path],
    left_out: Sequence[str] = (),
    position_ids: bool = False,
) -> str:
    """Files read and names found in them, what was taken of each part of the model, files written.

    `left_out`: lines of what no plan says; `position_ids`: whether the text encoder has them besides its weights.
    """
    lines = []
    for plan in plans:
        tensors = len(plan.source.entries)
        lines.append(f"{plan.source.path}: {tensors} tensors; {layouts_of(plan) or 'nothing taken'}")
        lines += read_lines(plan.source)
        lines += [f"  ignored {count:4}: {reason}" for reason, count in Counter(plan.ignored.values()).items()]
    lines += left_out
    for part in PARTS:
        own = of_part(part, pieces)
        if own:
            parameters = sum(torch.Size(piece.shape).numel() for piece in own)
            types = ", ".join(sorted({str(dtype or piece.entry.dtype).removeprefix("torch.") for piece in own}))
            types += ", position_ids int64" * (position_ids and part == "text")
            lines.append(f"{part:10} {len(own):5} tensors {parameters:13,} parameters  {types}")
    return "\n".join([*lines, *(f"wrote {file}  {written(file)}" for file in files)])


def read_lines(source: Source, sizes: bool = False) -> list[str]:
    """What was read, a line each, and which original that is; `sizes`: with the bytes of each file."""
    lines = []
    for file, digest in source.hashes.items():
        size = f"{file.stat().st_size:,} bytes  " * sizes
        lines += [f"  read {file}  {size}sha256 {digest}", f"    {origin(source, digest)}"]
    return [line for line in lines if line.strip()]


def origin(source: Source, digest: str) -> str:
    """Which original a file of the source is, or that it is unknown; "" for a model file of ours: its lineage tells."""
    if digest in KNOWN:
        return "this is {file} of {of}; licence: {licence}".format_map(KNOWN[digest])
    if "config" in source.metadata:
        return ""
    return f"its SHA-256 is none of the {len(KNOWN)} originals listed in docs/use.md: where it is from is not known"


def layouts_of(plan: Plan) -> str:
    """The parts of a model in a file, and whose names they have."""
    return ", ".join(f"{layout.part} ({layout.naming}{', ema' if layout.ema else ''})" for layout in plan.layouts)


def of_part(part: str, pieces: Iterable[Piece]) -> list[Piece]:
    """The tensors of one part of our model."""
    return [piece for piece in pieces if piece.target.startswith(f"{part}.")]


def written(file: Path) -> str:
    """Size and SHA-256 of a result."""
    return f"{file.stat().st_size:,} bytes  sha256 {sha256_file(file)}"


def updates_of(updates: Iterable[Update]) -> str:
    """How many modules of which part, of which rank and alpha."""
    updates = list(updates)
    counts = Counter(update.module.split(".")[0] for update in updates)
    parts = ", ".join(f"{count} of {part}" for part, count in counts.items())
    ranks = [update.rank for update in updates]
    scales = [update.scale for update in updates]
    return f"{len(updates)} updates ({parts}), rank {_range(ranks)}, alpha / rank {_range(scales)}"


def _range(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def in_yaml(config: ModelConfig) -> list[Any]:
    """What the .yaml and the marks of an export say that counts."""
    return [getattr(getattr(config, table), name) for table, names in IN_YAML.items() for name in names]


def unlike_sd15(
    config: ModelConfig, taken: set[str], said: Callable[[ModelConfig], Any], sampling: bool = False
) -> Iterator[str]:
    """The values of the parts taken that are not SD 1.5's, but for those that `said`, what a layout says, depends on.

    sampling: those alone that a sampler chooses, else all others.
    """
    if sampling and config.image_size != SD15.image_size:
        yield f"size {config.image_size}"
    of_controlnet = {"unet", "control"} if "controlnet" in taken else set()
    for table in sorted({"schedule", *taken, *of_controlnet} - {"controlnet"}):
        part = getattr(config, table)
        for name, usual in vars(getattr(SD15, table)).items():
            value, chosen = getattr(part, name), name in OF_SAMPLING.get(table, ())
            if value == usual or chosen != sampling or name == "whitened":
                continue
            try:
                otherwise = said(replace(config, **{table: replace(part, **{name: usual})}))
            except ValueError:  # of a value that goes with another alone
                otherwise = None
            if said(config) == otherwise:
                yield f"{table}.{name} {f'{value:.5g}' if isinstance(value, float) else value}"
