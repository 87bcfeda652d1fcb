"""Images as vectors, for distances between sets of them: which network made them is part of every result.

A network sees both sets the same way: every image was resized to the size at which the sets are compared, and is then
resized to what the network was made for. So a difference of sharpness between the files is not a difference of sets.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_us.data.records import Record
from ldm_us.evaluation.distribution.network_file import load_network, read_metadata_of
from ldm_us.evaluation.judge.file import load_judge, seen_in_training
from ldm_us.evaluation.sets.image_sets import stream
from ldm_us.files.atomic import sha256_file
from ldm_us.files.checkpoint import load_model

VAE = "vae"  # --features: the encoder of a model file
CELLS = 4  # along a side of the grid over which latents are averaged


@dataclass(frozen=True)
class Features:
    """A network that turns images into vectors, with what a result says of it."""

    about: dict[str, Any]  # kind, file, sha256, layer, image size, normalisation
    size: int  # pixels along one side of the images that it sees
    network: Callable[[Tensor], Tensor]  # (b, 1, size, size) in [0, 1] -> (b, d)
    trained_on: frozenset[str] = frozenset()  # digests of its training images, as far as its file tells


def load_features(
    source: str, weights: Path | None = None, network: str | None = None, device: str = "cpu"
) -> Features:
    """Load what --features names: `vae` (the encoder of `weights`), a judge's file, or weights of a timm network.

    `network` is the timm name of a weights file that does not carry one. Raise ValueError for a file that is missing,
    broken or of another kind, and for options that do not belong together.
    """
    if (source == VAE) != (weights is not None):
        problem = "needs --weights, a model file" if weights is None else "does not use --weights: leave it away"
        raise ValueError(f"--features {source}: {problem}. Or give --features vae and --weights together.")
    if source == VAE and weights is not None:
        if network is not None:
            raise ValueError("--network: belongs to a file of weights, not to --features vae. Leave it away.")
        return vae_features(weights, device)
    metadata = read_metadata_of(Path(source))
    if "judge" in metadata:
        return judge_features(Path(source), device)
    if "config" in metadata and "timm" not in metadata:
        raise ValueError(f"--features {source}: a model file. Give --features vae --weights {source}.")
    return network_features(Path(source), network, device)


def vae_features(weights: Path, device: str) -> Features:
    """The mean of the scaled latents over each cell of a 4x4 grid: 16 c numbers, 64 for the presets."""
    model = load_model(weights, device=device, parts=("vae",))

    def encode(images: Tensor) -> Tensor:
        z_0 = model.vae.encode(2 * images.expand(-1, 3, -1, -1) - 1).mean
        return F.adaptive_avg_pool2d(z_0, CELLS).flatten(1)  # (b, c, h, w) -> (b, 16 c)

    layer = f"mean of the scaled latents over each cell of a {CELLS}x{CELLS} grid"
    return Features(about_file("vae", weights, layer, model.config.image_size), model.config.image_size, encode)


def judge_features(path: Path, device: str) -> Features:
    """What the judge names the class from: mean and maximum over the image of its deepest channels."""
    network, training = load_judge(path)
    network.to(device)
    layer = "mean and maximum over the image of the deepest channels"
    about = about_file("judge", path, layer, network.config.size)
    return Features(about, network.config.size, lambda images: network.encode(images)[1], frozenset(training.images))


def network_features(path: Path, name: str | None, device: str) -> Features:
    """What a timm network pools before its classifier."""
    loaded = load_network(path, name, device)
    mean, std = (torch.tensor(values, device=device).view(-1, 1, 1) for values in (loaded.input.mean, loaded.input.std))

    def pooled(images: Tensor) -> Tensor:
        normalised = (images - mean) / std  # (b, 1, H, W) -> (b, channels, H, W)
        return loaded.model.forward_head(loaded.model.forward_features(normalised), pre_logits=True)

    about = about_file("network", path, "pooled, before the classifier", loaded.input.size)
    about["normalisation"] = {"mean": list(loaded.input.mean), "std": list(loaded.input.std)}
    return Features({"network": loaded.name} | about, loaded.input.size, pooled, loaded.trained_on)


def about_file(kind: str, path: Path, layer: str, size: int) -> dict[str, Any]:
    """What a result says of a network that sees pixels in [-1, 1]."""
    return {
        "kind": kind,
        "file": path.name,
        "sha256": sha256_file(path),
        "layer": layer,
        "image_size": size,
        "normalisation": {"mean": [0.5], "std": [0.5]},  # of pixels in [0, 1]
    }


@torch.no_grad()
def extract(
    features: Features,
    records: Sequence[Record],
    size: int,
    batch: int,
    device: str = "cpu",
    on_batch: Callable[[int], object] | None = None,
) -> Tensor:
    """Turn images, resized to `size` as both sets are, into vectors: (n, d) float64 on the CPU.

    One batch of pixels is in memory at a time, and 8 n d bytes of vectors. Raise ValueError for a vector that is not
    finite.
    """
    side, rows, done = (features.size, features.size), [], 0
    for pixels in stream(records, size, batch):
        images = pixels.to(device)
        if images.shape[-2:] != side:
            images = F.interpolate(images, side, mode="bilinear", antialias=True).clamp(0, 1)
        vectors = features.network(images).cpu().double()
        finite = vectors.isfinite().all(dim=1)
        if not finite.all():
            bad = records[done + int((~finite).nonzero()[0])].image
            raise ValueError(
                f"--features {features.about['file']}: gives nan or infinity for {bad}. Its weights are broken or "
                "belong to another network. Copy the file again, or give another."
            )
        rows.append(vectors)
        done += len(vectors)
        if on_batch is not None:
            on_batch(len(vectors))
    return torch.cat(rows)


def count_seen_in_training(features: Features, records: Sequence[Record]) -> int:
    """How many of the images are among those that the network was trained on, as far as it tells."""
    return len(seen_in_training(records, features.trained_on)) if features.trained_on else 0
