"""What each side does in processes of its own, in turn: training, epochs, start-up, memory, conversion."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

from bench.machine import free_memory, unix_time
from bench.parity import export
from bench.speed.measuring import Rates, bytes_of, flops_of, measured_rates
from bench.speed.settings import Settings
from bench.speed.table import Row
from bench.speed.whole import sample_name
from ldm_us.files.checkpoint import load_model

ROOT = Path(__file__).parents[2]
SIDES = ("ours", "theirs")
GUIDED = 2  # a guided step calls the networks with two of each sample
GIB = 2**30
STATES = 4  # of a trained weight, each as large: itself, its gradient, two moments
UPDATED = 7  # AdamW reads those four and writes all but the gradient
# Measured for SD 1.5 at 512x512 in float32, one image; they grow with the weights, the pixels and the batch.
ACTIVATIONS, OF_WEIGHTS, OF_PIXELS = 5.5 * GIB, 859_520_964, 512**2


class PartError(Exception):
    """A side that gave nothing, and why."""


def child(part: str, settings: Settings) -> Any:
    """Run a part in a process of its own and return what it gives. Raise PartError where it ends without."""
    command = [sys.executable, "-m", "bench.speed.part", part, settings.to_json()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        print(done.stderr, file=sys.stderr)
        raise PartError(f"{part} ended with code {done.returncode}: {last}")
    return json.loads(done.stdout.splitlines()[-1])


def in_turn(part: str, settings: Settings) -> list[tuple[Any, Any]]:
    """What both sides give, as many times as there are turns; who begins changes from turn to turn."""
    turns = []
    for i in range(settings.turns):
        found = {side: child(f"{part}:{side}", settings) for side in (SIDES if i % 2 == 0 else SIDES[::-1])}
        turns.append((found["ours"], found["theirs"]))
    return turns


def measured_here(part: str, settings: Settings) -> Iterator[Row]:
    """The rows of a part that holds both sides."""
    yield from (Row(**values) for values in child(part, settings))


def training_rows(settings: Settings) -> Iterator[Row]:
    """A step of the UNet, of a ControlNet, of a LoRA, and the most memory that each took."""
    for stage in ("UNet", "ControlNet", "LoRA"):
        batches = tuple(batch for batch in settings.training_batches if stage == "UNet" or batch == 1)
        notes = {batch: too_large(settings, stage, batch) for batch in batches}
        fitting = tuple(batch for batch in batches if not notes[batch])
        rates, turns = measured_rates(settings), []
        if fitting:
            try:
                turns = in_turn(stage, replace(settings, training_batches=fitting))
            except PartError as error:
                notes |= dict.fromkeys(fitting, str(error))
        for batch in batches:
            yield training_row(settings, rates, stage, batch, turns, notes[batch])
        peaks = [[side["peak"] / GIB for side in turn] for turn in turns]
        of = f"training step of the {stage}" + (f" up to batch {max(fitting)}" if fitting else "")
        yield memory_row(settings, of, peaks, next(filter(None, notes.values()), ""))


def training_row(
    settings: Settings, rates: Rates, stage: str, batch: int, turns: list[tuple[Any, Any]], note: str
) -> Row:
    """The steps of one batch size, of all turns; the floor is that of a batch's FLOP or of the optimizer's bytes."""
    what = f"training step, {stage}, batch {batch}"
    if note:
        return Row(what, settings.dtype, note=note, compiled=settings.compiled)
    ours, theirs = ([s for turn in turns for s in turn[side]["seconds"][str(batch)]] for side in (0, 1))
    flops = turns[0][0]["flops"].get(str(batch), 0)
    floor = rates.floor(flops, UPDATED * turns[0][0]["weights"]) if flops else None
    return Row(what, settings.dtype, ours, theirs, floor=floor, compiled=settings.compiled)


def too_large(settings: Settings, stage: str, batch: int) -> str:
    """Why a step would not fit into the memory that is free; "" where it does, or where nobody knows."""
    free = None if settings.device.startswith("cuda") else free_memory()
    needed = needed_memory(settings, stage, batch)
    if free is None or needed <= free:
        return ""
    return f"it needs about {needed / GIB:.0f} GiB, and {free / GIB:.0f} GiB are free"


def needed_memory(settings: Settings, stage: str, batch: int) -> float:
    """Bytes of weights, gradients, moments and activations of a training step, in float32 or under autocast."""
    model = load_model(settings.weights, parts=())
    unet, controlnet = bytes_of([model.unet]), bytes_of([] if model.controlnet is None else [model.controlnet])
    weights = {"UNet": STATES * unet, "ControlNet": unet + STATES * controlnet, "LoRA": unet}[stage]
    activations = ACTIVATIONS * unet / 4 / OF_WEIGHTS * settings.size**2 / OF_PIXELS * batch
    return weights + activations * (1.4 if stage == "ControlNet" else 1.0)


def memory_row(settings: Settings, of: str, peaks: list[list[float]], note: str = "") -> Row:
    """The most memory of each process, in GiB."""
    ours, theirs = ([peak[side] for peak in peaks] for side in (0, 1))
    return Row(f"peak memory, {of}", settings.dtype, ours, theirs, "GiB", compiled=settings.compiled, note=note)


def epoch_rows(settings: Settings) -> Iterator[Row]:
    """The first epoch, in which ours fills its cache, and the mean of the paper's 100."""
    note = too_large(settings, "UNet", settings.epoch_batch)
    turns = []
    if not note:
        try:
            turns = in_turn("epoch", settings)
        except PartError as error:
            note = str(error)
    theirs = [turn[1]["epoch"] for turn in turns]
    for name, epochs in (("first of", 1), ("mean of 100 of", 100)):
        ours = [turn[0]["epoch"] + turn[0]["cache"] / epochs for turn in turns]
        family = "epoch" if epochs > 1 else "first epoch"
        what = f"{family}, {name} {settings.images} images, batch {settings.epoch_batch}"
        yield Row(what.replace("first epoch, first of", "first epoch,"), settings.dtype, ours, theirs, note=note)


def sample_rows(settings: Settings) -> Iterator[Row]:
    """Whole guided samples, from the prompt to the picture, and the most memory that they took, loading included."""
    rates = measured_rates(settings)
    turns = in_turn("samples", settings)
    for masked, steps in product((False, True), settings.steps):
        what = sample_name(steps, masked)
        ours, theirs = ([s for turn in turns for s in turn[side]["seconds"][what]] for side in (0, 1))
        floor = rates.floor(sample_flops(settings, steps, masked), 0)
        yield Row(what, settings.dtype, ours, theirs, floor=floor, compiled=settings.compiled)
    yield memory_row(settings, "samples", [[side["peak"] / GIB for side in turn] for turn in turns])


def sample_flops(settings: Settings, steps: int, masked: bool) -> int:
    """FLOP of a guided sample, counted on weights and inputs that have shapes alone; text and hint are left out."""
    model = load_model(settings.weights, parts=())
    side, text = settings.size // model.config.vae.downsampling, model.config.text.length
    with torch.device("meta"):
        z_t = torch.empty(GUIDED, model.config.vae.latent_channels, side, side)
        t, context = torch.empty(GUIDED), torch.empty(GUIDED, text, model.config.unet.context_width)
        features = torch.empty(GUIDED, model.config.unet.width, side, side)
    _, flops = flops_of(lambda: model.unet(z_t, t, context))
    if masked and model.controlnet is not None:
        flops += flops_of(lambda: model.controlnet(z_t, t, context, hint_features=features))[1]
    return steps * flops + flops_of(lambda: model.vae.decode(z_t[:1]))[1]


def start_rows(settings: Settings) -> Iterator[Row]:
    """Seconds from the start of Python to the end of the first denoising step; the files are in the page cache."""
    yield ended_row("start-up, first import to first step", "start", settings)


def conversion_rows(settings: Settings) -> Iterator[Row]:
    """Seconds to turn the single file of the original code into what each side loads; floor: read and write it once."""
    source = settings.scratch / "compvis.safetensors"
    if not source.exists():
        export(settings.weights, source, "compvis")
    size = source.stat().st_size
    floor = 2 * size / measured_rates(replace(settings, device="cpu")).copy
    yield replace(ended_row(f"conversion, a file of {size / 1e9:.1f} GB", "convert", settings), floor=floor)


def ended_row(what: str, part: str, settings: Settings) -> Row:
    """Seconds until each side said that it was done, one for each turn after one that reads the files first."""
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    for i in range(settings.turns + 1):
        for side in SIDES if i % 2 == 0 else SIDES[::-1]:
            started = unix_time()
            found = child(f"{part}:{side}", settings)
            seconds[side].append(found["cpu"] if settings.clock == "cpu" else found["ended"] - started)
            remove(settings.scratch / f"converted_{side}")
    return Row(what, settings.dtype, seconds["ours"][1:], seconds["theirs"][1:])


def remove(out: Path) -> None:
    """Delete what a conversion wrote: a file or a folder of gigabytes."""
    out.with_suffix(".safetensors").unlink(missing_ok=True)
    shutil.rmtree(out, ignore_errors=True)
