"""An audit of a LoRA: whose names it has, ranks, alphas, what it updates and how much, and what is wrong with it."""

import math
from collections import Counter
from collections.abc import Mapping

from torch import Tensor

from ldm_us.config import ModelConfig
from ldm_us.files.lora_file import read_settings
from ldm_us.networks.lora import Update, is_within, update_shapes
from weights_convert.audit.numbers import numbers_of
from weights_convert.audit.text import LISTED, printable
from weights_convert.lora_import import kind_of, piece, read_update, sort_keys
from weights_convert.lora_kinds import bundled_words, refuse_kinds
from weights_convert.lora_names import layers, spellings, split_name
from weights_convert.lora_peft import alphas_of
from weights_convert.sources import Source
from weights_convert.summary import updates_of

LARGEST = 5  # updates that are listed
Keys = dict[str, dict[str, str]]  # our module -> "down", "up" or "alpha" -> name in the file


def is_lora(source: Source) -> bool:
    """Whether a file is a LoRA, of ours or of another program, or another adapter in the names of kohya's scripts."""
    kinds = ((split_name(name) or ("", ""))[1] for name in source.entries)
    return "lora" in source.metadata or "down" in kinds or any(name.startswith("lora_") for name in source.entries)


def audit_lora(source: Source, config: ModelConfig) -> tuple[str, bool]:
    """What the terminal shows, and whether nothing is wrong. `config`: the sizes that other programs' LoRAs must fit.

    Raise ValueError for adapters of another kind, or of another family of models.
    """
    naming, keys, alphas, whole, unknown = sorted_names(source, config)
    shapes = {} if naming == "ours" else layers(config)  # one of ours does not say which model it is for
    sizes: dict[Update, float] = {}
    problems = [f"unknown: {printable(name)}" for name in unknown]
    for module, key in keys.items():
        try:
            update = read_update(source, module, key, alphas.get(module))
            down, up = (source.entries[key[kind]] for kind in ("down", "up"))
            weight = shapes.get(module, (*up.shape[:1], *down.shape[1:]))
            for kind, (target, shape) in zip(("down", "up"), update_shapes(update, weight).items(), strict=True):
                piece(source, key[kind], target, shape)
        except ValueError as error:
            problems.append(str(error).removeprefix(f"{source.path}: "))
            continue
        sizes[update] = size_of(update, down.load(), up.load())
    if naming == "ours":
        settings = read_settings(source.path, source.metadata)
        said = [update for update in settings.updates(update.module for update in sizes) if update not in sizes]
        problems += [f"{update.module}: not of rank {update.rank}, as its settings say" for update in said]
    for name, entry in source.entries.items():
        numbers = numbers_of(entry.load())
        problems += [] if numbers.is_finite else [f"not finite: {printable(name)}: {numbers.flag}"]
    lines = [f"{source.path}: {len(source.entries):,} tensors; a LoRA in the names of {naming}"]
    for file, digest in source.hashes.items():
        lines.append(f"  read {file}  {file.stat().st_size:,} bytes  sha256 {digest}")
    lines += update_lines(sizes) if sizes else []
    for what, names in (("trained whole", whole), ("bundled embeddings, not imported", bundled_words(source))):
        lines += [f"{len(names)} {what}: {', '.join(map(printable, names[:LISTED]))}"] if names else []
    verdict = f"Not clean: {len(problems)} problems." if problems else "Clean: all has its place and is finite."
    more = [f"and {len(problems) - LISTED:,} more"] * (len(problems) > LISTED)
    return "\n".join([*lines, verdict, *(f"  {line}" for line in problems[:LISTED] + more)]), not problems


def sorted_names(source: Source, config: ModelConfig) -> tuple[str, Keys, dict[str, float], list[str], list[str]]:
    """Whose names they are, the names by module, alphas, and the names of what is trained whole and of the unknown."""
    if "lora" in source.metadata:
        settings = read_settings(source.path, source.metadata)
        modules = {module: module for module, _ in filter(None, map(split_name, source.entries))}
        keys, rest = sort_keys(source, modules)
        whole = [name for name in rest if any(is_within(name, part) for part in settings.whole)]
        alphas = {update.module: update.alpha for update in settings.updates(keys)}
        return "ours", keys, alphas, whole, [name for name in rest if name not in whole]
    refuse_kinds(source, config.unet.context_width)
    keys, unknown = sort_keys(source, spellings(config))
    kohya = any(name.startswith("lora_") for name in source.entries)
    naming = "PEFT" if source.path.is_dir() else "kohya" if kohya else "diffusers"
    return naming, keys, alphas_of(source, keys), [], unknown


def size_of(update: Update, down: Tensor, up: Tensor) -> float:
    """The Frobenius norm of alpha / r B A, from the small products: tr(B' B A A') is the sum of its squares."""
    a, b = (matrix.double().flatten(1) for matrix in (down, up))
    return update.scale * float(((b.T @ b) * (a @ a.T)).sum().clamp(min=0).sqrt())


def update_lines(sizes: Mapping[Update, float]) -> list[str]:
    """Ranks and alphas, targets by part, and the norms of the updates."""
    lines = [updates_of(sizes)]
    targets = Counter((u.module.split(".")[0], kind_of(u.module) or u.module.rpartition(".")[2]) for u in sizes)
    for part in dict.fromkeys(part for part, _ in targets):
        own = ", ".join(f"{kind} {count}" for (of, kind), count in sorted(targets.items()) if of == part)
        lines.append(f"  {part}: {own}")
    ordered = sorted(((size, u.module) for u, size in sizes.items() if math.isfinite(size)), reverse=True)
    if ordered:
        ends = f"{ordered[-1][0]:.3g} to {ordered[0][0]:.3g}, median {ordered[len(ordered) // 2][0]:.3g}"
        zeros = sum(not size for size, _ in ordered)
        lines.append(f"Frobenius norm of alpha / r B A: {ends}; {zeros} are 0; the largest:")
    return lines + [f"  {size:9.3g}  {module}" for size, module in ordered[:LARGEST]]
