"""Pictures of a run in progress, always of the same images, masks and seeds, made with the averaged weights.

Guidance and control scale are the model's own, as in sample.py.
"""

import torch
from PIL import Image
from torch import Tensor

from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.diffusion.sampling import Sampling, generate
from ldm_us.files.pictures import labelled_grid, to_picture
from ldm_us.training.dataset import TrainingSet, to_signed

COLUMNS = 4
ROWS = 6  # at most: a folder of captions may have one for each image
STEPS = 20  # DDIM steps: a preview, not a result


@torch.no_grad()
def preview(model: LatentDiffusion, data: TrainingSet, stage: str) -> Image.Image:
    """vae: images and their reconstructions. unet: samples of a few prompts. controlnet: of their masks."""
    if stage == "vae":
        return reconstructions(model, data)
    prompts = spread([prompt for prompt in data.prompts if prompt])
    masks: list[Tensor | None] = [None] * len(prompts)
    if stage == "controlnet":
        masks = [data.masks[first_of(data, prompt)].float() for prompt in prompts]
    rows: list[list[Image.Image | None]] = []
    for prompt, mask in zip(prompts, masks, strict=True):
        rows.append([] if mask is None else [to_picture(mask)])
        rows[-1] += [to_picture(x) for x in sample_row(model, data, prompt, mask)]
    labels = [prompt.removeprefix("Ultrasound image of a ") for prompt in prompts]
    return labelled_grid(rows, labels, () if stage == "unet" else ("mask", *[""] * COLUMNS))


def spread(prompts: list[str]) -> list[str]:
    """At most ROWS of the prompts, from all over the list."""
    rows = min(ROWS, len(prompts))
    return [prompts[i * len(prompts) // rows] for i in range(rows)]


def sample_row(model: LatentDiffusion, data: TrainingSet, prompt: str, mask: Tensor | None) -> Tensor:
    """Four samples of a prompt, with a mask or without, at the training size; every row has the same seeds."""
    masks = None if mask is None else mask.expand(COLUMNS, -1, -1, -1)
    sampling = Sampling(steps=STEPS, size=data.size, threads=None, exact=False)
    return generate(model, [prompt] * COLUMNS, seeds=range(COLUMNS), masks=masks, sampling=sampling)


def reconstructions(model: LatentDiffusion, data: TrainingSet) -> Image.Image:
    """Four images, and what the autoencoder makes of them."""
    index = torch.linspace(0, len(data) - 1, COLUMNS).long()
    assert data.pixels is not None
    x = to_signed(data.pixels[index]).to(model.device)
    x_hat = model.vae.decode(model.vae.encode(x).mean)
    rows = [[to_picture(picture[:1] / 2 + 0.5) for picture in pictures] for pictures in (x, x_hat)]
    return labelled_grid(rows, ("image", "reconstruction"))


def first_of(data: TrainingSet, prompt: str) -> int:
    """The first image of a prompt that has a mask drawn, else the first."""
    of_prompt = (data.prompt_index == data.prompts.index(prompt)).nonzero().flatten().tolist()
    return next((i for i in of_prompt if bool(data.masks[i].any())), of_prompt[0])
