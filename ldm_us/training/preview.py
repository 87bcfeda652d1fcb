"""Pictures of a run in progress, always of the same images, masks and seeds, made with the averaged weights.

Guidance and control scale are the model's own, as in sample.py.
"""

import torch
from PIL import Image

from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.diffusion.sampling import Sampling, generate
from ldm_us.files.pictures import labelled_grid, to_picture
from ldm_us.training.dataset import TrainingSet, to_signed

COLUMNS = 4
ROWS = 6  # at most: a folder of captions may have one for each image
STEPS = 20  # DDIM steps: a preview, not a result


@torch.no_grad()
def preview(model: LatentDiffusion, data: TrainingSet, stage: str) -> Image.Image:
    """vae: images and their reconstructions. unet: four samples of a few prompts. controlnet: of their masks."""
    if stage == "vae":
        return reconstructions(model, data)
    prompts = [prompt for prompt in data.prompts if prompt]
    count = min(ROWS, len(prompts))
    prompts = [prompts[i * len(prompts) // count] for i in range(count)]  # from all over the list
    sampling = Sampling(steps=STEPS, size=data.size, threads=None, exact=False)
    rows: list[list[Image.Image | None]] = []
    for prompt in prompts:
        mask = data.masks[first_of(data, prompt)].float() if stage == "controlnet" else None
        masks = None if mask is None else mask.expand(COLUMNS, -1, -1, -1)
        samples = generate(model, [prompt] * COLUMNS, seeds=range(COLUMNS), masks=masks, sampling=sampling)
        rows.append([to_picture(x) for x in ([] if mask is None else [mask]) + [*samples]])
    labels = [prompt.removeprefix("Ultrasound image of a ") for prompt in prompts]
    return labelled_grid(rows, labels, () if stage == "unet" else ("mask", *[""] * COLUMNS))


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
