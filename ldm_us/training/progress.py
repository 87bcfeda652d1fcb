"""What a run shows of itself while it trains: figures of held-out images, and pictures.

Images, noise and timesteps are the same every time, so that only the weights matter: the caller swaps the averaged ones
in. The loss is the plain mean squared error of the model's own target, eps or v. Neither --min-snr nor
--offset-noise enters it, so that runs with and without them can be compared; a loss in eps and one in v can not.
Guidance and control scale of the pictures are the model's own, as in sample.py.
"""

import copy
import dataclasses
from collections import ChainMap, Counter
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from PIL import Image
from torch import Tensor

from ldm_us.data.records import Record, shown_mask
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.diffusion.noise import decoder_noise, generators_of
from ldm_us.diffusion.sampling import Sampling, generate
from ldm_us.files.pictures import labelled_grid, to_picture
from ldm_us.networks.vae import posterior_from_moments
from ldm_us.training.batches import LatentBatch, stream_generator
from ldm_us.training.dataset import TrainingSet, to_signed
from ldm_us.training.optimizers import whole
from ldm_us.training.reconstruction import psnr, reconstruct
from ldm_us.training.stages import Stage

IMAGES = 32  # at most, spread over the held-out list
BANDS = 4  # equal parts of 0 .. T-1: the mean over all noise levels hides what each of them learns
SEED = 0  # of noise and timesteps, whatever the run's own, so that runs can be compared
COLUMNS = 4
ROWS = 6  # at most: a folder of captions may have one for each image
STEPS = 20  # DDIM steps: a preview, not a result
T = TypeVar("T")


def spread_out(records: list[Record]) -> list[Record]:
    """At most IMAGES of the held-out records, from all over the list."""
    index = torch.linspace(0, len(records) - 1, min(IMAGES, len(records))).round().long()
    return [records[i] for i in index.tolist()]


def held_out_stage(training: Stage, data: TrainingSet) -> Stage | None:
    """The stage on held-out images, with the plain loss; None where there are none."""
    if len(data) == 0:
        return None
    plain = dataclasses.replace(training.options, min_snr=None, offset_noise=0.0, augment=None)
    return Stage(training.model, data, plain, training.world)


@torch.no_grad()
def validate(held_out: Stage) -> dict[str, float]:
    """The figures of the stage on held-out images; the same weights always give the same."""
    if held_out.options.stage == "vae":
        with held_out.autocast():
            return reconstruction_figures(held_out)
    figures = denoising_figures(held_out)
    controlnet = held_out.model.controlnet
    if held_out.options.stage == "controlnet" and controlnet is not None:
        # How far each zero convolution has left 0: those of the skips from the finest on, then the middle's.
        for i, conv in enumerate([*controlnet.zero_convs, controlnet.zero_conv_middle]):
            figures[f"zero_conv_norm_{i:02d}"] = float(whole(conv.get_parameter("weight").detach().norm()))
    return figures


def reconstruction_figures(held_out: Stage) -> dict[str, float]:
    """PSNR in dB and L1 in [-1, 1] of images decoded from their posterior means."""
    data, at_once = held_out.data, held_out.options.images_at_once
    pixels, groups = data.pixels, [part for of_size in data.members.values() for part in of_size.split(at_once)]
    assert pixels is not None

    def figures(nth: int) -> list[tuple[float, float]]:
        x = to_signed(pixels[groups[nth]]).to(held_out.model.device)
        return [
            (
                psnr(image_hat.mean(dim=0) / 2 + 0.5, image.mean(dim=0) / 2 + 0.5),
                float((image_hat - image).abs().mean()),
            )
            for image, image_hat in zip(x, reconstruct(held_out.model, x), strict=True)
        ]

    every = shared_out(held_out, len(groups), figures)
    psnrs, distances = zip(*(both for some in every for both in some), strict=True)
    return {"val_psnr_db": sum(psnrs) / len(psnrs), "val_l1": sum(distances) / len(distances)}


def denoising_figures(held_out: Stage) -> dict[str, float]:
    """The loss in each band of t and its mean; of a ControlNet also with true, shuffled and empty masks.

    Masks are shuffled among images of one size.
    """
    timesteps = held_out.model.schedule.timesteps
    held_out.encode(range(len(held_out.data)))
    bands: dict[str, float] = {}
    sums: Counter[str] = Counter()
    shuffled = 0  # images whose masks were
    for data in held_out.data.of_each_size():
        part = copy.copy(held_out)  # the same networks and prompts
        part.data, lesion = data, data.drawn()
        masks = {"true": data.masks[lesion]} if lesion.any() else {}  # of the images with a lesion
        if held_out.options.stage == "controlnet" and int(lesion.sum()) >= 2:
            labels = [record.label for record, drawn in zip(data.records, lesion.tolist(), strict=True) if drawn]
            other = masks["true"][others_of_their_class(labels)]
            masks |= {"shuffled": other, "empty": torch.zeros_like(other)}
            shuffled += len(other)
        for band in range(BANDS):
            first, last = timesteps * band // BANDS, timesteps * (band + 1) // BANDS - 1
            batch = band_batch(part, band, first, last)
            with_lesion, without = take(batch, lesion), take(batch, ~lesion)
            losses = {kind: summed_loss(part, with_lesion._replace(mask=mask)) for kind, mask in masks.items()}
            whole = losses.get("true", 0.0) + summed_loss(part, without)
            name = f"val_loss_{first}_{last}"
            bands[name] = bands.get(name, 0.0) + whole / len(held_out.data)
            sums.update(losses if "shuffled" in losses else {})
    figures = {"val_loss": sum(bands.values()) / BANDS} | bands
    if shuffled:
        by_mask = {f"val_loss_{kind}_mask": total / (shuffled * BANDS) for kind, total in sums.items()}
        figures |= by_mask | {"control_gap": by_mask["val_loss_shuffled_mask"] - by_mask["val_loss_true_mask"]}
    return figures


def others_of_their_class(labels: Sequence[str]) -> Tensor:
    """For each of at least two images another one (n,), half its class away: lesions of two classes differ in size.

    An image that is alone in its class gets the next image of any.
    """
    others = torch.arange(len(labels))
    for label in set(labels):
        members = torch.tensor([i for i, other in enumerate(labels) if other == label])
        others[members] = members.roll(len(members) // 2)
    alone = others == torch.arange(len(labels))
    return torch.where(alone, (others + 1) % len(labels), others)


def band_batch(held_out: Stage, band: int, first: int, last: int) -> LatentBatch:
    """Every held-out image once, at timesteps spread evenly over first .. last, with noise that never changes."""
    data, n = held_out.data, len(held_out.data)
    generator = stream_generator(SEED, 2, band)
    moments = torch.stack([data.moments[i][0] for i in range(n)])
    z_0 = posterior_from_moments(moments, held_out.model.vae.scale).sample(generator)
    places = (torch.randperm(n, generator=generator) + torch.rand(n, generator=generator)) / n  # one in each n-th
    t = (first + (places * (last - first + 1)).long()).clamp(max=last)
    eps = torch.randn(z_0.shape, generator=generator)
    return LatentBatch(z_0, data.prompt_index, data.masks[:], t, eps)


def take(batch: LatentBatch, chosen: Tensor) -> LatentBatch:
    """The chosen images (n,) bool of a batch."""
    return LatentBatch(*(value[chosen] for value in batch))


def summed_loss(held_out: Stage, batch: LatentBatch) -> float:
    """The loss of every image of a batch of any size, added up; as many at a time as in training."""
    size = held_out.options.images_at_once

    def loss_of(nth: int) -> float:
        chunk = LatentBatch(*(value[nth * size : (nth + 1) * size] for value in batch))
        return len(chunk.t) * float(held_out.loss(chunk)[0])

    return sum(shared_out(held_out, -(-len(batch.t) // size), loss_of), 0.0)


def shared_out(stage: Stage, count: int, make: Callable[[int], T]) -> list[T]:
    """make(i) of each i < count: each process makes its share, but all where --shard splits the weights."""
    mine = {i: make(i) for i in range(count) if stage.options.shard or stage.world.takes(i)}
    made = ChainMap(*([mine] if stage.options.shard else stage.world.gathered(mine)))
    return [made[i] for i in range(count)]


@torch.no_grad()
def preview(training: Stage) -> Image.Image:
    """vae: images and their reconstructions. unet: four samples of a few prompts. controlnet: of their masks."""
    model, data, stage = training.model, training.data, training.options.stage
    if stage == "vae":
        with training.autocast():
            return reconstructions(model, data)
    prompts = [prompt for prompt in data.prompts if prompt]
    count = min(ROWS, len(prompts))
    prompts = [prompts[i * len(prompts) // count] for i in range(count)]  # from all over the list
    precision = training.options.precision
    common = next(iter(data.members)).size  # what most images have

    def row(nth: int) -> list[Image.Image | None]:
        prompt = prompts[nth]
        mask = data.masks[first_of(data, prompt)].float() if stage == "controlnet" else None
        masks = None if mask is None else mask.expand(COLUMNS, -1, -1, -1)
        size = common if mask is None else (mask.shape[1], mask.shape[2])
        sampling = Sampling(steps=STEPS, size=size, threads=None, exact=False, precision=precision)
        samples = generate(model, [prompt] * COLUMNS, seeds=range(COLUMNS), masks=masks, sampling=sampling)
        shown = [] if mask is None else [shown_mask(mask, model.config.control.hint)]
        return [to_picture(x) for x in (*shown, *samples)]

    rows = shared_out(training, count, row)
    labels = [prompt.removeprefix("Ultrasound image of a ") for prompt in prompts]
    return labelled_grid(rows, labels, () if stage == "unet" else ("mask", *[""] * COLUMNS))


def reconstructions(model: LatentDiffusion, data: TrainingSet) -> Image.Image:
    """Four images of the most common size, and what the autoencoder makes of them, with noise where it adds some."""
    data = data.of_each_size()[0]
    index = torch.linspace(0, len(data) - 1, COLUMNS).long()
    assert data.pixels is not None
    x = to_signed(data.pixels[index]).to(model.device)
    z_0 = model.vae.encode(x).mean
    x_hat = model.vae.decode(z_0, decoder_noise(model, z_0, generators_of(range(COLUMNS))))
    rows = [[to_picture(picture[:1] / 2 + 0.5) for picture in pictures] for pictures in (x, x_hat)]
    return labelled_grid(rows, ("image", "reconstruction"))


def first_of(data: TrainingSet, prompt: str) -> int:
    """The first image of a prompt that has a mask drawn, else the first."""
    of_prompt = (data.prompt_index == data.prompts.index(prompt)).nonzero().flatten().tolist()
    return next((i for i in of_prompt if bool(data.masks[i].any())), of_prompt[0])
