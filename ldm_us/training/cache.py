"""What the frozen networks make of the data, computed once: the moments of the VAE and the states of the text encoder.

LDM trains on latents (arXiv 2112.10752, section 3.2), and neither network changes meanwhile. The values of a network
are the rows of one file (ldm_us/files/rows.py), mapped by every process, in a folder named after what made them: the
weights, their precision and the kind of device. A value is named after what it was made of, such as the very pixels
that the network is given: however they were decoded and resized, another value of a pixel has another name. The moments
are kept and not the latents, so that training still draws from the posterior.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from ldm_us.data.framing import Frame
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.files.checkpoint import open_model_file
from ldm_us.files.rows import Rows, as_tensor
from ldm_us.files.safetensors_header import open_safetensors

ENCODER = ("vae.encoder.", "vae.quant_conv.")  # what moments depend on: a decoder may be trained further
TEXT = ("text.",)
SHORT = 32  # hexadecimal digits of a hash in a name


class Cache:
    """The values of one network, float32 and of one shape."""

    def __init__(self, folder: Path, network: str, shape: Sequence[int]):
        """network: SHA-256 of the weights, their precision and the kind of device."""
        self.folder, self.shape = folder, tuple(shape)
        self.rows = Rows(folder / "x".join(map(str, shape)), 4 * math.prod(shape), network)

    def read(self, keys: Sequence[str]) -> dict[int, Tensor]:
        """The values that are there, mapped, to be read only: {place in keys: value}."""
        self.rows.load()
        if self.folder.is_dir():
            self.take_in_old([keys[i] for i in np.flatnonzero(self.rows.find(keys) < 0).tolist()])
        values = as_tensor(self.rows.rows.view(np.float32)).view(-1, *self.shape)
        return {i: values[row] for i, row in enumerate(self.rows.find(keys).tolist()) if row >= 0}

    def write(self, keys: Sequence[str], values: Tensor) -> None:
        """Keep values (n, ...)."""
        self.rows.add(keys, values.detach().float().cpu().reshape(len(keys), -1).view(torch.uint8).numpy())

    def take_in_old(self, keys: Sequence[str]) -> None:
        """Keep the values that an older version has left in files of their own, damaged ones left out."""
        there = {path.name for path in self.folder.glob("*.safetensors")}
        for key in keys if there else ():
            name = f"{hashlib.sha256(key.encode()).hexdigest()[:SHORT]}.safetensors"
            if name in there:
                with suppress(OSError, SafetensorError), open_safetensors(self.folder / name) as file:
                    self.write([key], file.get_tensor("value")[None])
        self.rows.load()


def open_cache(root: Path, values: str, model: LatentDiffusion, weights: Path | None, shape: Sequence[int]) -> Cache:
    """The "moments" of the model's VAE, whose keys are moments_key, or the "states" of its text encoder, of prompts."""
    part, prefixes = {"moments": (model.vae, ENCODER), "states": (model.text, TEXT)}[values]
    made_by = [weights_hash(model, weights, prefixes), str(next(part.parameters()).dtype), model.device.type]
    digest = hashlib.sha256(json.dumps(made_by).encode()).hexdigest()
    return Cache(root / f"{values}-{digest[:SHORT]}", digest, shape)


def moments_key(pixels: bytes, frame: Frame) -> str:
    """Name the moments of an image by the SHA-256 of its pixels (1, H, W) uint8, as the autoencoder is given them."""
    return json.dumps([pixels.hex(), *frame.size])


@torch.no_grad()
def weights_hash(model: LatentDiffusion, weights: Path | None, prefixes: Sequence[str]) -> str:
    """SHA-256 over names and float32 values of the weights with these prefixes, in memory or in the model's file."""
    digest = hashlib.sha256()
    chosen = {name: value for name, value in model.state_dict().items() if name.startswith(tuple(prefixes))}
    file = None if weights is None else open_model_file(weights)
    for name in sorted(chosen):
        value = chosen[name]
        if value.is_meta:
            assert file is not None, "only a model of a file can lack parts"
            value = file.get_tensor(name)
        digest.update(f"{name} {tuple(value.shape)}\n".encode())
        digest.update(value.float().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
