"""Train one stage of latent diffusion on ultrasound images: the autoencoder, the denoiser, or a ControlNet.

    python train.py unet --weights sd15.safetensors --data Dataset_BUSI_with_GT --steps 15000 --out runs/unet
    torchrun --nproc-per-node 4 train.py unet ... --device cuda                       # the same on four GPUs

Follow one batch: Stage.batches (ldm_us/training/stages.py) -> Stage.loss (losses.py) -> the loop below.
"""

import signal
import sys
import time
from collections.abc import Sequence
from contextlib import closing

from ldm_us.runtime.command_line import answer_at_once
from ldm_us.training.command_line import build_parser, parse_options

answer_at_once(__name__, build_parser)  # before the imports that take seconds

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

from ldm_us.config import BUNDLED, MASK
from ldm_us.data.audit.summary import check_hints, describe_reading
from ldm_us.data.readers.datasets import read_folders, records_of
from ldm_us.data.readers.findings import captioned
from ldm_us.data.records import followed
from ldm_us.evaluation.judge.file import load_judge
from ldm_us.files.atomic import sha256_file
from ldm_us.files.checkpoint import loaded
from ldm_us.files.pictures import save_png
from ldm_us.runtime.entry import note, run_command
from ldm_us.runtime.processes import World, joined
from ldm_us.runtime.stopping import Stopped
from ldm_us.training.curves import write_curves
from ldm_us.training.dataset import load_training_set, mix_folders, run_hashes, split_records
from ldm_us.training.distributed import average_gradients, distribute, gathered_state
from ldm_us.training.log import Log, check_finite
from ldm_us.training.losses import warm_up_text
from ldm_us.training.memory.fitting import fitted
from ldm_us.training.memory.layout import speed_up
from ldm_us.training.optimizers import (
    EMA,
    check_scale,
    end_of_schedule,
    groups_of,
    make_optimizer,
    set_rates,
    update_weights,
    whole_state,
)
from ldm_us.training.options import TrainOptions
from ldm_us.training.perceptual import Features, efficientnet_features
from ldm_us.training.progress import held_out_stage, preview, spread_out, validate
from ldm_us.training.result import keep_model, save_result
from ldm_us.training.run import opened_run, resume, save_state
from ldm_us.training.stages import Stage, StageLoss, stream
from ldm_us.training.start import (
    decoded_of,
    free_weights,
    notes_on_data,
    start_model,
    summary,
    trained_parameters,
)


def main(argv: list[str] | None = None) -> int:
    """Parse the command line, join the other processes if there are some, and run."""
    options = parse_options(argv)
    with joined(options.device) as world:
        return run(options, world)


def run(options: TrainOptions, world: World) -> int:
    """Start from a model and data that are all right, hold the folder of the run, and fit."""
    readings, said = captioned(read_folders(options.data), options.captions)
    model, lineage, notes = start_model(options, readings)
    free_weights(model, options)
    options, memory = fitted(model, options)
    hint = model.config.control.hint if options.stage == "controlnet" else MASK
    every, share = [followed(record, hint) for record in records_of(readings)], options.held_out
    decoded = decoded_of(options, model.config)
    records, held_out = world.first_here(lambda: split_records(every, share, decoded, options.device))
    steps = options.total_steps(len(records))
    if world.main:
        for reading in readings:
            print(*describe_reading(reading, length=model.config.text.read, decoded=decoded), sep="\n")
        print(summary(options, model, len(records), len(held_out), steps, memory))
    tell([*notes, *said, *notes_on_data(options, records, held_out, decoded)], world)
    if options.dry_run:
        return 0

    features, of_features = perceptual_features(options)
    data = world.first_here(lambda: load_training_set(records, decoded))
    mix_folders(data, options.data, options.data_weights, options.class_weights)
    tell(check_hints(records, data.drawn().tolist()) if options.stage == "controlnet" else [], world)
    shown = load_training_set(spread_out(held_out) if options.validate_every else [], decoded)
    hashes = run_hashes(data, decoded, options.stage == "controlnet") | of_features | {"parent_sha256": lineage.parent}
    hashes |= end_of_schedule(options, steps)
    with opened_run(options, hashes, world) as notes:
        tell(notes, world)
        stage = Stage(model, data, options, world)
        stage.add_losses(features)
        stage.origin = lineage, hashes["data_sha256"]
        ema = fit(stage, held_out_stage(stage, shown), steps)
        with ema.swapped_in():
            check_next_loss(stage, steps)  # no step has seen the average
            save_result(stage, steps)
    return 0


def fit(stage: Stage, validation: Stage | None, steps: int) -> EMA:
    """Make the optimiser, resume where there is a state, and train to the end."""
    model, options, world = stage.model, stage.options, stage.world
    if options.text_warmup:
        warm_up_text(model.text, stage.tokens, options.text_warmup, options.seed)
    speed_up(model, options)
    loss_of = distribute(StageLoss(stage), stage.networks, world, options.shard)
    parameters = trained_parameters(model)
    groups = groups_of(parameters, options.text_lr)
    optimizer = make_optimizer(options.optimizer, groups, options.learning_rate, options.weight_decay)
    ema = EMA(parameters, options.ema)
    first_step = resume(stage, optimizer, ema, steps)
    if first_step == steps and world.main:
        print(f"{options.out}: {steps} steps are there already; the result is written anew. More --steps train on.")
    stage.prepare(range(first_step, steps + 1))
    with closing(Log(options.out, first_step, world, options.tensorboard)) as log, world.signals.holding():
        train(stage, loss_of, validation, optimizer, ema, log, range(first_step, steps))
    if world.main:
        write_curves(options.out)
    return ema


def train(
    stage: Stage, loss_of: nn.Module, validation: Stage | None, optimizer: Optimizer, ema: EMA, log: Log, steps: range
) -> None:
    """The training loop: step n sees batch n - 1, whatever happened before. A signal ends it after a whole step."""
    options, world = stage.options, stage.world
    if steps.start == 0:
        show(stage, validation, ema, log, step=0)  # what the run starts from
    with tqdm(total=steps.stop, initial=steps.start, unit="step", desc=options.stage, disable=not world.main) as bar:
        ended = time.perf_counter()
        for step, batches in enumerate(stream(stage, steps, options.workers), steps.start + 1):
            waited = time.perf_counter() - ended  # for data
            values: dict[str, Tensor | float] = {}
            for i, batch in enumerate(batches):
                if world.size > 1:
                    average_gradients(loss_of, now=i + 1 == options.accumulate)
                loss, extra = loss_of(batch)
                stage.scaler.scale(loss / options.accumulate).backward()  # scaled with fp16 alone
                for name, value in {"loss": loss, **extra}.items():
                    values[name] = values.get(name, 0.0) + value.detach() / options.accumulate
            learning_rate = set_rates(optimizer, options, step, steps.stop)
            values |= update_weights(optimizer, ema, stage.scaler, options.clip)
            if stage.adversary is not None:
                values |= stage.adversary.update(learning_rate)

            stopping = stage.hears(step) and world.mean({"stop": float(world.signals.asked > 0)})["stop"] > 0
            last = stopping or step == steps.stop
            log.add(step, values | {"lr": learning_rate}, options.images_per_step, ended, waited)
            bar.update()
            if last or options.reads(step):  # else nothing waits for the device
                line = log.line()
                check_finite(options.out, f"{'' if options.log_every == 1 else 'up to '}step {step}", line)
                check_scale(stage.scaler)
                log.write(line)
                bar.set_postfix(loss=f"{line['loss']:.4f}", images_per_s=f"{line['images_per_s']:.1f}")
            show(stage, validation, ema, log, step, last=step == steps.stop)
            save(stage, optimizer, ema, step, last)
            if stopping:
                end_early(stage, step)
            ended = time.perf_counter()


def end_early(stage: Stage, step: int) -> None:
    """End the command after a step whose state is saved; one process says so."""
    number = stage.world.signals.asked or signal.SIGTERM
    stage.world.barrier()  # torchrun ends the others as soon as one has ended
    if not stage.world.main:
        sys.exit(128 + number)
    raise Stopped(f"stopped: {stage.options.out} is saved at step {step}{stage.world.signals.then}", number)


def show(stage: Stage, validation: Stage | None, ema: EMA, log: Log, step: int, last: bool = False) -> None:
    """Every so many steps: validation figures, pictures and a model of the averaged weights."""
    options = stage.options
    kept = options.keep_every > 0 and step > 0 and step % options.keep_every == 0
    if validation is not None and (step % options.validate_every == 0 or last or kept):
        with ema.swapped_in():
            log.write({"step": step} | validate(validation))
    if options.sample_every and (step % options.sample_every == 0 or last):
        parts = ("vae",) if options.stage == "vae" else ("vae", "text")
        with ema.swapped_in(), loaded(stage.model, options.weights, *parts):
            picture = preview(stage)
        if stage.world.main:
            save_png(picture, options.out / "samples" / f"step_{step:08d}.png")
    if kept:
        with ema.swapped_in():
            keep_model(stage, step)


def save(stage: Stage, optimizer: Optimizer, ema: EMA, step: int, last: bool) -> None:
    """Every so many steps: a state, after the figures and pictures so far, so that none lacks them; and the curves.

    The state is everything that the next step depends on: weights, their average, the optimiser's moments.
    """
    options = stage.options
    if step % options.save_every == 0 or last:
        check_next_loss(stage, step)
        state = gathered_state(stage.networks, optimizer, ema) if options.shard else whole_state(optimizer, ema)
        if stage.adversary is not None:
            state["adversary"] = stage.adversary.state_dict()
        if stage.scaler.is_enabled():
            state["scaler"] = stage.scaler.state_dict()
        save_state(options.out, step, state, stage.world, wait=last)
    if stage.world.main and not last and any(n and step % n == 0 for n in (options.validate_every, options.save_every)):
        write_curves(options.out)


def perceptual_features(options: TrainOptions) -> tuple[Features | None, dict[str, str]]:
    """What --perceptual compares, where it is given, and its hash for config.json; of the judge, its first level."""
    if options.perceptual is None:
        return None, {}
    if options.perceptual_network == "efficientnet_lite0":
        return efficientnet_features(options.device), {}
    path = BUNDLED.with_name("judge.safetensors")
    network = load_judge(path)[0].to(options.device)
    first = nn.Sequential(network.stem, network.encoder[0])
    return lambda x: [first(x.mean(dim=1, keepdim=True))], {"judge_sha256": sha256_file(path)}  # grey, in [-1, 1]


@torch.no_grad()
def check_next_loss(stage: Stage, step: int) -> None:
    """Keep what the last update broke from being saved: the first batch of the next step must still have a loss."""
    loss, _ = stage.loss(stage.batches(step)[0])
    check_finite(stage.options.out, f"after step {step}", stage.world.mean({"loss": float(loss)}))


def tell(notes: Sequence[str], world: World) -> None:
    """Say, once, what stops nothing."""
    for sentence in notes if world.main else ():
        note(sentence)


if __name__ == "__main__":
    sys.exit(run_command(main))
