"""Write what a model's autoencoder makes of images as a folder of samples, with the model's texture or without it."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from ldm_us.data.framing import Framing
from ldm_us.data.records import Record, framed, load_image
from ldm_us.diffusion.editing import encode_images
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.diffusion.noise import generators_of
from ldm_us.diffusion.sampling import Sampling, finished
from ldm_us.files.atomic import write_text
from ldm_us.files.pictures import save_png, to_picture
from ldm_us.synthesis.folder import MANIFEST


@torch.no_grad()
def write_reconstructions(
    model: LatentDiffusion, records: Sequence[Record], out: Path, framing: Framing, grain: bool, seed: int = 0
) -> None:
    """Write every image after encoding and decoding, image i with noise and grain of seed + i, and last the list.

    A file keeps its name, in a folder numbered as that of its image is among all: names may repeat across folders.
    """
    folders = sorted({record.image.parent for record in records})
    textured = model.grain is not None or model.config.vae.noise_levels > 0
    fields = {"synthetic": "made by a generative model, not for diagnosis", "grain": str(grain and textured)}
    lines = []
    for i, record in enumerate(tqdm(records, unit="image", desc="writing reconstructions", delay=0.1)):
        z_0 = encode_images(model, load_image(record.image, framed(record.image, framing))[None])
        x_hat = finished(model, z_0, Sampling(grain=grain), generators_of([seed + i]))[0].mean(dim=0, keepdim=True)
        name = f"{folders.index(record.image.parent)}/{record.image.stem}.png"
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        save_png(to_picture(x_hat), out / name, fields)
        lines.append(json.dumps({"number": i, "file_name": name, "class": record.label, "prompt": record.prompt}))
    write_text(out / MANIFEST, "\n".join(lines) + "\n")
