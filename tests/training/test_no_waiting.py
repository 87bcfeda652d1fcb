"""The loop waits for no device: the device meta has no numbers, so a step that reads one cannot be taken there."""

import itertools
from contextlib import nullcontext

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import train
from ldm_us.data.readers.datasets import read_dataset
from ldm_us.runtime.processes import ALONE, World
from ldm_us.training.command_line import parse_options
from ldm_us.training.dataset import load_training_set
from ldm_us.training.log import Log
from ldm_us.training.optimizers import EMA
from ldm_us.training.stages import Stage, StageLoss
from ldm_us.training.start import free_weights, random_model, trained_parameters

STEPS = 4
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class Copies(TorchDispatchMode):
    """What is copied from the CPU to the device meta, which stands for a GPU: bytes of each tensor."""

    def __init__(self):
        super().__init__()
        self.bytes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        tensors = [value for value in tree_leaves(args) if isinstance(value, torch.Tensor)]
        if func in COPIES and made.is_meta:
            self.bytes += [value.nbytes for value in tensors if not value.is_meta]
        return made


@pytest.fixture
def stage_of(micro, busi, tmp_path, monkeypatch):
    """A function: a Stage, all of whose tensors but the batches' are on the device meta."""

    def build(name, *flags, world=ALONE):
        words = ["--preset", "micro", "--data", busi, "--out", tmp_path, "--device", "cpu", "--sample-every", 0]
        words += ["--validate-every", 0, "--log-every", 1000, "--steps", STEPS, *flags]
        options, model = parse_options([name, *map(str, words)]), random_model("micro", 0)
        if name == "controlnet":
            model.add_controlnet()
        free_weights(model, options)
        data = load_training_set(read_dataset(busi), 16, name == "vae")
        data.moments |= {i: torch.zeros(2, 8, 4, 4) for i in range(len(data))}
        monkeypatch.setattr(Stage, "prompt_states", lambda _: {i: torch.zeros(77, 8) for i in range(len(data.prompts))})
        monkeypatch.setattr(Stage, "autocast", lambda _: nullcontext())  # there is none for meta
        stage = Stage(model, data, options, world)
        stage.model.to("meta")
        stage.device = torch.device("meta")
        stage.context = None if stage.context is None else stage.context.to("meta")
        return stage

    return build


def copies_of_steps(stage, folder, monkeypatch):
    """The bytes of the copies of each of STEPS steps by the loop of train.py."""
    parameters, copies, seen = trained_parameters(stage.model), Copies(), [0]
    monkeypatch.setattr(Log, "add", lambda *_: seen.append(len(copies.bytes)))
    monkeypatch.setattr(Log, "line", lambda _: {"loss": 0.0, "images_per_s": 0.0})  # of the last step
    monkeypatch.setattr(train, "save", lambda *_: None)
    optimizer, ema = torch.optim.AdamW(parameters.values()), EMA(parameters, 0.9)
    with copies:
        train.train(stage, StageLoss(stage), None, optimizer, ema, Log(folder, 0), range(1, 1 + STEPS))
    return [copies.bytes[first:end] for first, end in itertools.pairwise(seen)]


@pytest.mark.parametrize(
    ("name", "flags"),
    [("vae", ()), ("unet", ("--min-snr", 5)), ("unet", ("--objective", "v", "--accumulate", 2)), ("controlnet", ())],
)
def test_a_step_between_log_lines_reads_no_number_and_sends_its_batch_alone(
    stage_of, tmp_path, monkeypatch, name, flags
):
    """Of a batch of four: latents and noise, steps, prompts and, to a ControlNet, a bool a pixel."""
    latents, of_image = 4 * 4 * 4 * 4 * 4, 4 * 8
    sent = {
        "vae": [4 * 3 * 16 * 16 * 4, latents, 0],
        "unet": [latents, of_image, 0, of_image, latents],
        "controlnet": [latents, of_image, 4 * 16 * 16, of_image, latents],
    }[name]
    first, *later = copies_of_steps(stage_of(name, *flags), tmp_path, monkeypatch)
    parts = 2 if "--accumulate" in flags else 1
    assert later == [parts * sent] * (STEPS - 1)
    assert sum(first) <= parts * sum(sent) + 2 * 4000, "the first sends tables of 1000 numbers too, once"


def test_several_processes_on_gpus_ask_each_other_for_signals_at_steps_that_are_read_and_every_tenth_batch(stage_of):
    def heard(world, device, *flags):
        made = stage_of("unet", *flags, world=world)
        made.device = torch.device(device)
        return [step for step in range(1, 31) if made.hears(step)]

    assert heard(ALONE, "meta") == heard(World(0, 2), "cpu") == [*range(1, 31)]
    assert heard(World(0, 2), "meta") == [10, 20, 30]
    assert heard(World(0, 2), "meta", "--accumulate", 4) == [*range(2, 31, 2)]
    assert heard(World(0, 2), "meta", "--log-every", 7) == [7, 10, 14, 20, 21, 28, 30]
