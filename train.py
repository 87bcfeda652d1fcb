"""Train one stage of latent diffusion on ultrasound images: the autoencoder, the denoiser, or a ControlNet.

    python train.py unet --weights sd15.safetensors --data Dataset_BUSI_with_GT --steps 15000 --out runs/unet

Follow one batch: Stage.batches (ldm_us/training/batches.py) -> Stage.loss (losses.py) -> the loop below.
"""

import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ldm_us.checkpoint import save_model
from ldm_us.entry import run_command
from ldm_us.lineage import Lineage
from ldm_us.model import LatentDiffusion
from ldm_us.pictures import save_png
from ldm_us.training.curves import write_curves
from ldm_us.training.dataset import data_hash, load_training_set, split_data
from ldm_us.training.ema import EMA
from ldm_us.training.options import TrainOptions, parse_options
from ldm_us.training.preview import preview
from ldm_us.training.run import Log, open_run, resume, total_steps
from ldm_us.training.stages import (
    Stage,
    measure_latent_scale,
    result_metadata,
    start_model,
    trained_parameters,
    training_size,
)
from ldm_us.training.state import save_state, trim_log
from ldm_us.training.tensorboard import mirrored_log
from ldm_us.training.text_warmup import warm_up_text
from ldm_us.training.validation import held_out_stage, log_validation


def main(argv: list[str] | None = None) -> int:
    """Parse, build, loop, save."""
    options = parse_options(argv)
    model, lineage = start_model(options)
    parameters = trained_parameters(model, options)
    records, held_out = split_data(options.data, options.held_out)
    steps = total_steps(options, len(records))
    print_summary(options, model, parameters, len(records), len(held_out), steps)
    if options.dry_run:
        return 0

    digest = data_hash(records)
    data = load_training_set(records, training_size(model, options))
    validation = held_out_stage(model, held_out, options)
    open_run(options, digest, lineage.parent)
    stage = Stage(model, data, options)
    if options.text_warmup:
        warm_up_text(model.text, stage.tokens, options.text_warmup, options.seed)
    optimizer = torch.optim.AdamW(
        parameters.values(), lr=options.learning_rate, betas=(0.9, 0.999), weight_decay=options.weight_decay, fused=True
    )
    ema = EMA(parameters, options.ema)
    first_step = resume(options.out, parameters, ema, optimizer)
    if first_step > steps:
        raise ValueError(f"{options.out} is at step {first_step}, beyond the {steps} asked for. Ask for more steps.")
    with mirrored_log(options.out, options.tensorboard) as follow_log:
        train(options, stage, validation, optimizer, ema, first_step, steps, follow_log)
    write_curves(options.out)
    save_result(options, stage, ema, lineage, steps, digest)
    return 0


def train(
    options: TrainOptions,
    stage: Stage,
    validation: Stage | None,
    optimizer: torch.optim.Optimizer,
    ema: EMA,
    first_step: int,
    steps: int,
    follow_log: Callable[[], None],
) -> None:
    """The training loop: step n sees batch n - 1, whatever happened before."""
    log = Log(options.out, first_step)
    if first_step == 0:
        show_start(options, stage, validation, ema)
    with tqdm(total=steps, initial=first_step, unit="step", desc=options.stage) as bar:
        for step in range(first_step + 1, steps + 1):
            started = time.perf_counter()
            learning_rate = options.learning_rate * min(1.0, step / max(1, options.warmup))
            for group in optimizer.param_groups:
                group["lr"] = learning_rate

            values = {"loss": 0.0}
            for batch in stage.batches(step - 1):
                loss, extra = stage.loss(batch)
                (loss / options.accumulate).backward()
                for name, value in {"loss": loss, **extra}.items():
                    values[name] = values.get(name, 0.0) + float(value.detach()) / options.accumulate
            norm = torch.nn.utils.clip_grad_norm_(ema.parameters.values(), options.clip)
            check_finite(options.out, f"step {step}", {"loss": values["loss"], "gradient norm": float(norm)})
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            ema.update()

            seconds = time.perf_counter() - started
            speed = {"lr": learning_rate, "images_per_s": options.images_per_step / seconds}
            line = log.add(step, values | {"grad_norm": float(norm)} | speed, every=options.log_every)
            bar.update()
            bar.set_postfix(loss=f"{line['loss']:.4f}", images_per_s=f"{speed['images_per_s']:.1f}")
            if validation is not None and (step % options.validate_every == 0 or step == steps):
                log_validation(options.out, validation, ema, step)  # before the state: none is without its line,
            if options.sample_every and (step % options.sample_every == 0 or step == steps):
                save_preview(options, stage, ema, step)  # nor without its picture
            if step % options.save_every == 0 or step == steps:
                check_next_loss(options, stage, step)
                log.flush()
                save_state(options.out, step, resumable_state(optimizer, ema))
            if step < steps and any(n and step % n == 0 for n in (options.validate_every, options.save_every)):
                write_curves(options.out)
            follow_log()


def resumable_state(optimizer: torch.optim.Optimizer, ema: EMA) -> dict[str, Any]:
    """Everything that the next step depends on: weights, their average, the optimiser's moments."""
    trained = {name: parameter.detach() for name, parameter in ema.parameters.items()}
    return {"trained": trained, "ema": ema.state_dict(), "optimizer": optimizer.state_dict()}


def show_start(options: TrainOptions, stage: Stage, validation: Stage | None, ema: EMA) -> None:
    """Validation figures and pictures of the weights that a run starts from: its before."""
    trim_log(options.out / "log.jsonl", -1)  # those of a run that was killed before its first state
    if validation is not None:
        log_validation(options.out, validation, ema, 0)
    if options.sample_every:
        save_preview(options, stage, ema, 0)


def save_preview(options: TrainOptions, stage: Stage, ema: EMA, step: int) -> None:
    """RUN/samples/step_N.png, made with the averaged weights."""
    with ema.swapped_in():
        picture = preview(stage.model, stage.data, options.stage)
    save_png(picture, options.out / "samples" / f"step_{step:08d}.png")


def check_finite(run: Path, where: str, values: dict[str, float]) -> None:
    """Stop at the first loss or gradient that is not a number, before it reaches the weights or the result."""
    if not all(math.isfinite(value) for value in values.values()):
        found = " and ".join(f"the {name} is {value}" for name, value in values.items())
        raise ValueError(
            f"{where}: {found}. The last saved states are in {run / 'state'}. Try a lower --lr in a new --out folder."
        )


@torch.no_grad()
def check_next_loss(options: TrainOptions, stage: Stage, step: int) -> None:
    """Keep what the last update broke from being saved: the first batch of the next step must still have a loss."""
    loss, _ = stage.loss(stage.batches(step)[0])
    check_finite(options.out, f"after step {step}", {"loss": float(loss)})


def save_result(options: TrainOptions, stage: Stage, ema: EMA, lineage: Lineage, steps: int, digest: str) -> None:
    """RUN/model.safetensors: the averaged weights, the frozen ones, and where they came from."""
    with ema.swapped_in():
        check_next_loss(options, stage, steps)  # no step has seen the average
        if options.stage == "vae" and options.weights is None:  # else the UNet that came with it fits the old scale
            stage.model.set_latent_scale(measure_latent_scale(stage.model, stage.data))
        path = options.out / "model.safetensors"
        objective = stage.model.config.schedule.prediction
        save_model(stage.model, path, result_metadata(options, lineage, steps, digest, objective))
    print(f"wrote {path}")


def print_summary(
    options: TrainOptions,
    model: LatentDiffusion,
    parameters: dict[str, torch.nn.Parameter],
    images: int,
    held_out: int,
    steps: int,
) -> None:
    """The resolved configuration and what it amounts to."""
    resolved = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    resolved |= {"data": [str(folder) for folder in options.data], "lr": options.learning_rate, "steps": steps}
    print(json.dumps({"run": resolved, "model": dataclasses.asdict(model.config)}, indent=2))
    total = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in parameters.values())
    print(f"{images} training images, {held_out} held out; {trained:,} of {total:,} parameters trained; {steps} steps")


if __name__ == "__main__":
    sys.exit(run_command(main))
