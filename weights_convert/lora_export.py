"""`export --format lora`: a LoRA file of ours in the names of another program.

diffusers' names are for `pipe.load_lora_weights(DIR)`, which expects the file DIR/pytorch_lora_weights.safetensors and
reads an alpha that is not the rank since version 0.34; kohya's are for AUTOMATIC1111's web UI, Forge and ComfyUI.
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from ldm_us.files.atomic import full_disk_is_an_error_of_input
from ldm_us.files.checkpoint import LazyTensor, write_safetensors
from ldm_us.files.lora_file import LoRA, load_lora
from ldm_us.networks.lora import Update, is_update
from weights_convert.convert import DTYPES, Piece, lazy
from weights_convert.lora_names import ENDS, HEADER, LORA_PARTS, names_of
from weights_convert.result_place import check_result_file
from weights_convert.sources import open_source
from weights_convert.summary import updates_of, written

NAMINGS = tuple(ENDS)


def export_lora(path: Path, out: Path, names: str, dtype: str | None = None, overwrite: bool = False) -> None:
    """Write a LoRA file of ours in the names "diffusers" or "kohya"; dtype one of DTYPES, None: as in the file.

    Raise ValueError for a LoRA that those names have no place for, before anything is written.
    """
    check_result_file(out, ".safetensors", overwrite, [path])
    lora = load_lora(path)
    refuse_ours_only(lora, names)
    check_pairs(lora)
    theirs = names_of((update.module for update in lora.updates), names)
    source, number = open_source(path), DTYPES.get(dtype or "")
    tensors: list[LazyTensor] = []
    for update in lora.updates:
        for matrix in ("down", "up"):
            entry = source.entries[key := f"{update.module}.lora_{matrix}.weight"]
            target = f"{theirs[update.module]}{ENDS[names][matrix]}"
            tensors.append(lazy(Piece(target, entry.shape, path, key, entry), number))
        if names == "kohya":
            tensors.append(alpha_tensor(f"{theirs[update.module]}{ENDS[names]['alpha']}", update.alpha))
    carried = {key: value for key, value in lora.metadata.items() if key not in ("lora", "format")}
    if names == "diffusers":
        settings = {HEADER: json.dumps(diffusers_settings(lora.updates, theirs))}
    else:  # what kohya's scripts note in the header; nothing is computed from it
        settings = {"ss_network_module": "networks.lora"}
        if len({update[1:] for update in lora.updates}) == 1:
            update = lora.updates[0]
            settings |= {"ss_network_dim": str(update.rank), "ss_network_alpha": str(update.alpha)}
    with full_disk_is_an_error_of_input(out):
        write_safetensors(out, tensors, carried | settings)
    print(f"{path}: {updates_of(lora.updates)}\nwrote {out} in the names of {names}  {written(out)}")
    print(f"note: for its base alone (SHA-256 {lora.base_sha256[:12]}), whose sizes and schedule no name here tells.")


def refuse_ours_only(lora: LoRA, names: str) -> None:
    """Raise ValueError for what the LoRAs of other programs do not have, naming it."""
    parts = [name for name in lora.config.parts if name not in LORA_PARTS]
    whole = [name for name in lora.tensors if not is_update(name)]
    found = [f"updates of the {part}" for part in parts]
    if whole:
        found.append(f"{len(whole)} tensors trained whole ({', '.join(whole[:3])})")
    if found:
        raise ValueError(
            f"{lora.name}: holds {' and '.join(found)}, which the names of {names} have no place for. Export the whole "
            "model that train.py wrote beside it."
        )


def check_pairs(lora: LoRA) -> None:
    """Raise ValueError unless every update has both matrices, of the rank that the settings say."""
    shapes = {name: tuple(tensor.shape) for name, tensor in lora.tensors.items()}
    for name in shapes:
        module = name.removesuffix(".weight").rpartition(".")[0]
        (update,) = lora.config.updates([module])
        down, up = (shapes.get(f"{module}.{other}.weight", ()) for other in ("lora_down", "lora_up"))
        if len(down) < 2 or len(up) < 2 or not down[0] == up[1] == update.rank:
            raise ValueError(
                f"{lora.name}: {name} is not one of two matrices of rank {update.rank}. Copy the LoRA again."
            )


def alpha_tensor(name: str, alpha: float) -> LazyTensor:
    """Alpha as kohya's names keep it: in float32, or float64 if only that holds it exactly."""
    single = torch.tensor(alpha, dtype=torch.float32)
    value = single if single.item() == alpha else torch.tensor(alpha, dtype=torch.float64)
    return LazyTensor(name, (), value.dtype, lambda: value)


def diffusers_settings(updates: Sequence[Update], theirs: dict[str, str]) -> dict[str, object]:
    """The header from which diffusers makes PEFT's LoraConfig of each part: without it every alpha is the rank.

    PEFT takes the end of a name for the name, so it goes without the text_model that transformers 5 no longer has.
    """
    settings: dict[str, object] = {}
    for part, start in LORA_PARTS.items():
        own = {
            theirs[update.module].removeprefix(start).removeprefix("text_model."): update
            for update in updates
            if update.module.startswith(f"{part}.")
        }
        if not own:
            continue
        rank = Counter(update.rank for update in own.values()).most_common(1)[0][0]
        alpha = Counter(update.alpha for update in own.values()).most_common(1)[0][0]
        settings |= {
            f"{start}r": rank,
            f"{start}lora_alpha": alpha,
            f"{start}target_modules": list(own),
            f"{start}rank_pattern": {name: update.rank for name, update in own.items() if update.rank != rank},
            f"{start}alpha_pattern": {name: update.alpha for name, update in own.items() if update.alpha != alpha},
        }
    return settings
