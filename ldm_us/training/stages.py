"""One stage of training: the batch of any step, and its loss."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ldm_us.data.framing import Frame
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.files.checkpoint import loaded
from ldm_us.files.lineage import Lineage
from ldm_us.networks.clip import tokenize
from ldm_us.networks.precision import HALF
from ldm_us.networks.vae import posterior_from_moments
from ldm_us.runtime.entry import note
from ldm_us.runtime.processes import ALONE, World
from ldm_us.runtime.stopping import ignore_signals
from ldm_us.training.adversary import Adversary
from ldm_us.training.batches import (
    Batch,
    ImageBatch,
    LatentBatch,
    PixelBatch,
    image_batch,
    latent_batch,
    own_places,
    step_indices,
)
from ldm_us.training.cache import Cache, open_cache
from ldm_us.training.dataset import TrainingSet, image_moments
from ldm_us.training.losses import ddpm_loss, vae_loss
from ldm_us.training.options import TrainOptions
from ldm_us.training.perceptual import Features, Perceptual
from ldm_us.training.start import needed_parts

TOGETHER = 16  # values that are written at a time: to wait for the disk takes longer than to write
UNHEARD = 10  # batches on GPUs after which a signal to one of several processes is seen at the latest
ON_DEVICE = 1000  # prompts whose states, 0.24 MB each of SD 1.5, lie where the networks are


class Stage(Dataset):
    """Data and model of one run, ready to give the batches and the loss of any step."""

    def __init__(self, model: LatentDiffusion, data: TrainingSet, options: TrainOptions, world: World = ALONE):
        self.model = model
        self.data = data
        self.options = options
        self.world = world
        self.device = model.device
        self.origin: tuple[Lineage, str] | None = None  # where the weights come from, and SHA-256 of the data
        self.perceptual: Perceptual | None = None  # of the vae stage, where it learns from more than L1 and KL
        self.adversary: Adversary | None = None  # the same
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=options.precision == "fp16")  # else does nothing
        self.states: dict[int, Tensor] = {}  # (n, d) of each prompt, mapped, where the text encoder is frozen
        self.context: Tensor | None = None  # (prompts, n, d), where they are few
        if options.stage != "vae" and not options.trains_text:
            self.states = self.prompt_states()
            if len(self.states) <= ON_DEVICE:
                self.context = torch.stack(list(self.states.values())).to(self.device)

    def autocast(self) -> torch.autocast:
        """The half precision of the run, where it has one; see ldm_us/networks/precision.py."""
        precision = self.options.precision
        return torch.autocast(self.device.type, HALF.get(precision), enabled=precision in HALF)

    @cached_property
    def networks(self) -> nn.ModuleDict:
        """The parts of the model that a step computes with, by their names."""
        return nn.ModuleDict({part: self.model.get_submodule(part) for part in needed_parts(self.options)})

    @cached_property
    def tokens(self) -> Tensor:
        """The prompts (prompts, n)."""
        text = self.model.config.text
        return tokenize(self.data.prompts, text.length, text.chunks).to(self.device)

    def latent_shape(self, frame: Frame) -> tuple[int, int, int]:
        """Channels, height and width of the latents of images of this size."""
        config = self.model.config.vae
        return config.latent_channels, frame.height // config.downsampling, frame.width // config.downsampling

    def add_losses(self, features: Features | None) -> None:
        """Let the vae stage learn from what the options add to L1 and KL; features: those of --perceptual."""
        options = self.options
        if options.perceptual is not None:
            assert features is not None
            self.perceptual = Perceptual(options.perceptual, features)
        if options.adversarial is not None:
            width, start = self.model.config.vae.width, options.adversarial_start or 0
            self.adversary = Adversary(width, options.adversarial, start, options.seed, self.device, self.world)

    def prepare(self, steps: Iterable[int]) -> None:
        """Have the latents of all images that these steps see; each process encodes its share of those missing."""
        if self.options.stage == "vae" or self.options.variations:
            return
        seen: set[int] = set()
        for step in steps:
            seen.update(step_indices(self.data, self.options.seed, step, self.options.images_per_step).tolist())
            if len(seen) == len(self.data):
                break
        self.encode(seen)

    def encode(self, index: Iterable[int]) -> None:
        """Have the latents of these images, from the cache or from the autoencoder, which is loaded only if needed."""
        missing = set(index) - self.data.moments.keys()
        for frame, members in self.data.members.items():
            if images := sorted(missing & set(members.tolist())):
                self.encode_size(frame, images)

    def encode_size(self, frame: Frame, images: Sequence[int]) -> None:
        """Have the latents of images of one size, which lie in one file."""
        options, data, (channels, *sides) = self.options, self.data, self.latent_shape(frame)
        cache = open_cache(options.cache, "moments", self.model, options.weights, (2, 2 * channels, *sides))
        keys = [data.keys[i] for i in images]
        found = self.computed(cache, keys, "vae", lambda nth: image_moments(self.model, data, images[nth]))
        data.moments |= {images[nth]: moments for nth, moments in found.items()}

    def prompt_states(self) -> dict[int, Tensor]:
        """Text states (n, d) of each prompt, from the cache or from the text encoder."""
        prompts, config = self.data.prompts, self.model.config.text
        shape = (config.chunks * config.length, config.width)
        cache = open_cache(self.options.cache, "states", self.model, self.options.weights, shape)
        return self.computed(cache, prompts, "text", lambda i: self.model.text(self.tokens[i : i + 1])[0])

    @torch.no_grad()
    def computed(
        self, cache: Cache, keys: Sequence[str], part: str, compute: Callable[[int], Tensor]
    ) -> dict[int, Tensor]:
        """All values of a frozen network, mapped; each process computes its share of those that the cache lacks."""
        there = cache.read(keys)
        missing = [i for i in range(len(keys)) if i not in there]
        share = [i for i in missing if self.world.takes(i)]  # by number: others may have written some
        if share:
            with loaded(self.model, self.options.weights, part):
                shown = iter(tqdm(share, desc=f"cache of {part}", unit="value", delay=1, disable=not self.world.main))
                while some := list(islice(shown, TOGETHER)):
                    cache.write([keys[i] for i in some], torch.stack([compute(i) for i in some]))
        self.world.barrier()
        found = cache.read(keys) if missing else there  # with what the other processes have computed
        if cache.rows.refused is not None:
            note(
                f"--cache {self.options.cache} cannot be written ({cache.rows.refused.strerror}): kept in memory alone."
            )
        if len(found) < len(keys):
            raise ValueError(
                f"--cache {self.options.cache}: process {self.world.rank} does not see {len(keys) - len(found)} values "
                "that others wrote. Give a folder that all processes share."
            )
        return found

    def batches(self, step: int) -> list[Batch]:
        """This process's share of the global batch of a step, cut in --accumulate parts.

        The global batch is a function of (seed, step), whatever the number of processes.
        """
        options, size = self.options, self.options.batch * self.options.accumulate
        places = own_places(size, options.accumulate, self.world.rank, self.world.size)
        draw, own = (options.seed, step, size, options.flip), torch.cat(places)
        varied: tuple[Any, ...] = ()
        if options.stage == "vae" or options.augment:  # from pixels, of one size in a step
            first = int(step_indices(self.data, options.seed, step, size)[0])
            varied = options.variations, self.latent_shape(self.data.frame(first))
        batch: Batch
        if options.stage == "vae":
            variations, shape = varied
            batch = image_batch(self.data, shape, *draw, self.model.vae.noise_size(*shape[1:]), own, variations)
        else:
            scale, timesteps = self.model.vae.scale, self.model.config.schedule.timesteps
            learned = (options.caption_dropout, options.offset_noise, options.stage == "controlnet")
            batch = latent_batch(self.data, scale, timesteps, *draw, *learned, own, *varied)
        cut = zip(*(value.split([len(part) for part in places]) for value in batch), strict=True)
        return [type(batch)(*part) for part in cut]

    __getitem__ = batches  # as torch's DataLoader asks for them

    def hears(self, step: int) -> bool:
        """Whether a step ends with asking all processes for signals: on GPUs in few, as they wait for the answer."""
        alone = self.world.size == 1 or self.device.type == "cpu"
        return alone or self.options.reads(step) or step % max(1, UNHEARD // self.options.accumulate) == 0

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, and what else the log should hold."""
        context = None
        if not isinstance(batch, ImageBatch) and self.states and self.context is None:
            context = torch.stack([self.states[i] for i in batch.prompt_index.tolist()])
            context = context.to(self.device, non_blocking=True)
        batch = type(batch)(*(value.to(self.device, non_blocking=True) for value in batch))
        if isinstance(batch, PixelBatch):
            batch = self.encoded(batch)
        with self.autocast():
            if isinstance(batch, ImageBatch):
                return vae_loss(self.model, batch, self.perceptual, self.adversary)
            if self.context is not None:
                context = self.context[batch.prompt_index]
            elif context is None:
                context = self.model.text(self.tokens[batch.prompt_index])
            use_control = self.options.stage == "controlnet"
            return ddpm_loss(self.model, batch, context, use_control, self.options.min_snr)

    @torch.no_grad()
    def encoded(self, batch: PixelBatch) -> LatentBatch:
        """With latents, in float32 and each image by itself, as cached ones are made."""
        moments = torch.cat([self.model.vae.moments(x[None]).float() for x in batch.x])
        posterior = posterior_from_moments(moments, self.model.vae.scale)
        return LatentBatch(posterior.mean + posterior.std * batch.noise, *batch[2:])


class StageLoss(nn.Module):
    """Stage.loss as the forward of a module that owns the trained weights: what is distributed over processes."""

    def __init__(self, stage: Stage):
        super().__init__()
        self.stage = stage
        self.networks = stage.networks

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """A batch -> the loss, a scalar, and what else the log should hold."""
        return self.stage.loss(batch)


def stream(stage: Stage, steps: range, workers: int) -> Iterator[list[Batch]]:
    """The batches of the steps, where there are worker processes prepared by those, in pinned memory for a GPU."""
    if workers == 0:
        return map(stage.batches, steps)
    pinned = stage.device.type == "cuda"
    unused = torch.Generator()  # else the loader would draw from the global one
    settings: Any = {"num_workers": workers, "worker_init_fn": ignore_signals, "pin_memory": pinned}
    return iter(DataLoader(stage, None, sampler=steps, generator=unused, **settings))
