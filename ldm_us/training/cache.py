"""What the frozen networks make of the data, computed once: the moments of the VAE and the states of the text encoder.

LDM trains on latents (arXiv 2112.10752, section 3.2), and neither network changes meanwhile. Each value is a small file
in a folder named after what made it, the weights, their precision and the kind of device, and a file is named after
what it was made of, such as the very pixels that the network is given: however they were decoded and resized, another
value of a pixel has another file. The moments are kept and not the latents, so that training still draws from the
posterior.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.files.checkpoint import lazy_tensors, open_model_file, write_safetensors
from ldm_us.files.safetensors_header import open_safetensors

ENCODER = ("vae.encoder.", "vae.quant_conv.")  # what moments depend on: a decoder may be trained further
TEXT = ("text.",)
SHORT = 32  # hexadecimal digits of a hash in a name


@dataclass(frozen=True)
class Cache:
    """The values of one network, a file each. Values are float32."""

    folder: Path
    network: str  # SHA-256 of the weights, their precision and the kind of device

    def read(self, key: str) -> Tensor | None:
        """The value of `key`; None where there is none, or only a damaged file, which is then written again.

        Raise ValueError for a value of another network: somebody has renamed its folder.
        """
        try:
            with open_safetensors(self.path(key)) as file:
                made_by = (file.metadata() or {}).get("network")
                value = file.get_tensor("value")
        except (OSError, SafetensorError):
            return None
        if made_by != self.network:
            raise ValueError(
                f"{self.folder}: holds values of other weights than its name says. Delete the folder; they "
                "are computed again."
            )
        return value

    def write(self, key: str, value: Tensor) -> None:
        """Keep a value; the file is whole or not there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        value = value.detach().float().cpu()
        write_safetensors(self.path(key), lazy_tensors({"value": value}), {"network": self.network})

    def path(self, key: str) -> Path:
        """The file of `key`."""
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:SHORT]}.safetensors"


def open_cache(root: Path, values: str, model: LatentDiffusion, weights: Path | None) -> Cache:
    """The "moments" of the model's VAE, whose keys are moments_key, or the "states" of its text encoder, of prompts."""
    part, prefixes = {"moments": (model.vae, ENCODER), "states": (model.text, TEXT)}[values]
    made_by = [weights_hash(model, weights, prefixes), str(next(part.parameters()).dtype), model.device.type]
    digest = hashlib.sha256(json.dumps(made_by).encode()).hexdigest()
    return Cache(root / f"{values}-{digest[:SHORT]}", digest)


def moments_key(pixels: Tensor) -> str:
    """Name the moments of an image by its pixels (1, H, W) uint8, as the autoencoder is given them."""
    return json.dumps([hashlib.sha256(pixels.numpy().tobytes()).hexdigest(), *pixels.shape[1:]])


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
