"""`import --embedding`: a textual inversion -> a learned prompt: a LoRA file of ours that holds `text.prompt` alone.

    A1111's web UI    .pt with {"string_to_param": {"*": (N, d)}, "name": ...}, or .safetensors with emb_params (N, d)
    diffusers         learned_embeds.safetensors or .bin with {"<word>": (d,) or (N, d)}
There the vectors stand for a word, wherever a prompt has it. Here they stand before the words of every prompt, also of
the empty one that guidance steers away from. Paper: arXiv 2208.01618.
"""

from pathlib import Path
from typing import Any

from ldm_us.config import ModelConfig
from ldm_us.files.checkpoint import LazyTensor
from ldm_us.files.lora_file import PROMPT
from ldm_us.files.originals import EMBEDDING_FILES
from ldm_us.files.pickle_file import read_pickle_file
from ldm_us.files.stored_tensor import StoredTensor, shown
from ldm_us.networks.clip import check_prompt_tokens
from ldm_us.networks.lora import LoRAConfig
from ldm_us.runtime.entry import note
from weights_convert.convert import Piece, type_and_shape
from weights_convert.lora_import import config_of_base, write_lora
from weights_convert.lora_kinds import FOREIGN_CONTEXT_WIDTHS, XL
from weights_convert.sources import PICKLE_SUFFIXES, Source, open_source
from weights_convert.summary import written

OF_XL = ("clip_g", "clip_l")  # one tensor for each of its two text encoders


def import_embedding(path: Path, base: Path, out: Path, dtype: str | None = None, overwrite: bool = False) -> None:
    """Write the vectors of a textual inversion as a learned prompt for models of the size of `base`.

    Raise ValueError for a file of something else, of several words, or of another width than the text encoder's.
    """
    if path.is_dir():
        path = next((path / name for name in EMBEDDING_FILES if (path / name).is_file()), path)
    if path.is_dir():
        raise ValueError(f"{path}: no {EMBEDDING_FILES[0]} in this folder. Give the file of a textual inversion.")
    config = config_of_base(base, out, overwrite, path)
    source = open_embedding(path)
    word, vectors = word_and_vectors(source, config)
    piece = Piece(PROMPT, vectors, path, word, source.entries[word])
    write_lora(out, source, LoRAConfig(parts=(), full=(PROMPT,)), [piece], dtype)
    print(f"{path}: a textual inversion of {vectors[0]} vectors  sha256 {source.hashes[path]}")
    note(
        f"{path}: its vectors will stand before the words of every prompt, the empty or negative one of guidance "
        f"included; {shown(word)} in a prompt does nothing."
    )
    print(f"wrote {out}  {written(out)}\nuse   sample.py --lora {out}")


def open_embedding(path: Path) -> Source:
    """The tensors of a file of embeddings by the words that they stand for."""
    if path.suffix.lower() not in PICKLE_SUFFIXES:
        return open_source(path)
    content = read_pickle_file(path)
    words: Any = content.get("string_to_param", content) if isinstance(content, dict) else {}
    tensors = {
        str(word): LazyTensor(str(word), value.shape, value.storage.dtype, value.read)
        for word, value in (words.items() if isinstance(words, dict) else ())
        if isinstance(value, StoredTensor)
    }
    return Source(path, (path,), tensors)


def word_and_vectors(source: Source, config: ModelConfig) -> tuple[str, tuple[int, int]]:
    """The only word of a file, and the shape (N, d) of its vectors."""
    names, width = list(source.entries), config.text.width
    if set(names) & set(OF_XL):
        raise ValueError(f"{source.path}: a textual inversion of {XL}. Only those of Stable Diffusion 1.x fit.")
    if len(names) != 1:
        listed = ", ".join(map(shown, names[:3])) or "none at all"
        raise ValueError(
            f"{source.path}: {len(names)} tensors ({listed}), not the vectors of one word. Give a textual inversion of "
            "Stable Diffusion 1.x with one word in it."
        )
    entry = source.entries[names[0]]
    shape = entry.shape
    if not (len(shape) in (1, 2) and shape[-1] == width and 0 not in shape and entry.dtype.is_floating_point):
        family = FOREIGN_CONTEXT_WIDTHS.get(shape[-1] if shape else 0)
        found = f"{shown(names[0])} is {type_and_shape(entry)}{f', as in {family}' if family else ''}"
        raise ValueError(f"{source.path}: {found}. {config.name} needs numbers [N, {width}].")
    count = shape[0] if len(shape) == 2 else 1
    check_prompt_tokens(config.text, count)
    return names[0], (count, width)
