"""The command kept: of each model that a run kept on its way, the validation loss and how many samples are copies.

So one can take the model of the last step before it copies. Every model draws the same samples: prompts, masks of a
ControlNet and seeds are those of training images from all over the data, where copies are to be expected first.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from ldm_us.data.records import followed, load_mask
from ldm_us.diffusion.ddim import check_steps
from ldm_us.diffusion.sampling import Sampling
from ldm_us.evaluation.figures import share_of
from ldm_us.evaluation.memorisation.command import BATCH, Audit, calibrated, shown
from ldm_us.evaluation.memorisation.thresholds import (
    FALSE_ALARMS,
    calibration_fields,
    check_enough_images,
    count_copied,
    difference_of_shares,
)
from ldm_us.evaluation.results import check_out
from ldm_us.evaluation.samples import draw_samples
from ldm_us.evaluation.sets.evaluated_images import lineage_split
from ldm_us.files.atomic import write_text
from ldm_us.files.checkpoint import load_model
from ldm_us.runtime.checks import check_extra, check_finite
from ldm_us.training.log import read_lines
from ldm_us.training.result import KEPT

REPORT = "kept.json"


def run_kept(options: argparse.Namespace) -> int:
    """Measure every model in RUN/kept by the thresholds of one calibration, and print a line of each."""
    check_extra("eval", "scipy")
    check_finite({"guidance": options.guidance})
    check_out(options.out, (REPORT,), options.overwrite)
    paths = sorted((options.run / KEPT).glob("step_*.safetensors"))
    if not paths:
        raise ValueError(f"{options.run}: has no models in {KEPT}. Give a run that was trained with --keep-every N.")
    if options.n < 1:
        raise ValueError(f"--n {options.n}: use 1 or more.")
    training, held_out = lineage_split(paths[-1], options.data)
    check_enough_images(training, held_out, FALSE_ALARMS)
    model = load_model(paths[0], device=options.device, parts=("vae",))
    check_steps(model.schedule, options.steps)
    # One calibration for all: the stages that keep models leave the autoencoder as it is.
    audit = calibrated(training, model, model.config.image_size, FALSE_ALARMS)
    unknown = audit.nearest(shown(held_out, audit.size, "held-out images"))
    alarms = audit.thresholds.flags(unknown).any(dim=0).tolist()
    losses = {line["step"]: line["val_loss"] for line in read_lines(options.run / "log.jsonl") if "val_loss" in line}
    rows = []
    for path in paths:
        step = int(path.stem.removeprefix("step_"))
        rows.append({"step": step, "val_loss": losses.get(step)} | copies_of(path, audit, alarms, options))
    report = {
        "samples": options.n,
        "held_out": {"images": len(held_out), "false_alarms": share_of(alarms)},
        "kept": rows,
        "copies_from_step": copies_from(rows),
        "calibration": calibration_fields(audit.thresholds),
    }
    print(table_of(report))
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        write_text(options.out / REPORT, json.dumps(report, indent=2) + "\n")
    return 0


def copies_of(path: Path, audit: Audit, alarms: list[bool], options: argparse.Namespace) -> dict[str, Any]:
    """Draw samples of a model, and count those that are flagged, also beyond the false alarms on held-out images."""
    model, training = load_model(path, device=options.device), audit.training
    hint = model.config.control.hint
    asked = [followed(training[i * len(training) // options.n], hint) for i in range(options.n)]
    masks = None if model.controlnet is None else torch.stack([load_mask(one.masks, audit.size) for one in asked])
    sampling = Sampling(steps=options.steps, guidance=options.guidance, threads=None, exact=False)
    samples = draw_samples(model, [one.prompt for one in asked], sampling, options.seed, options.batch, masks)
    found = audit.nearest(((samples * 255).round() / 255).split(BATCH))  # as files would hold them
    flags = audit.thresholds.flags(found).any(dim=0).tolist()
    return {
        "flagged": share_of(flags),
        "flagged_beyond_false_alarms": difference_of_shares(flags, alarms),
        "training_images_copied": count_copied(training, found, audit.thresholds),
    }


def copies_from(rows: list[dict[str, Any]]) -> int | None:
    """The first step whose samples are flagged more often than held-out images, with the 95 % interval above 0."""
    return next((row["step"] for row in rows if row["flagged_beyond_false_alarms"]["low"] > 0), None)


def table_of(report: dict[str, Any]) -> str:
    """A line of each model, and where the copying starts."""
    lines = [f"{'step':>8}{'validation loss':>17}{'flagged':>9}{'95 % interval':>15}{'images copied':>15}"]
    for row in report["kept"]:
        loss, flagged = row["val_loss"], row["flagged"]
        interval = f"{flagged['low']:.0%} to {flagged['high']:.0%}"
        numbers = f"{'-' if loss is None else f'{loss:.4f}':>17}{flagged['share']:>9.0%}{interval:>15}"
        lines.append(f"{row['step']:8}{numbers}{row['training_images_copied']:15}")
    held_out, first = report["held_out"], report["copies_from_step"]
    lines.append(
        f"of {held_out['images']} held-out images {held_out['false_alarms']['share']:.0%} are flagged, falsely"
    )
    if first is None:
        lines.append(f"with {report['samples']} samples of each no model is shown to copy more than that")
    else:
        lines.append(f"copying starts at step {first} at the latest: choose among the models before it")
    return "\n".join(lines)
