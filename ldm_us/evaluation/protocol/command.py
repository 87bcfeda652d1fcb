"""The command protocol: all stages in order. The same command goes on where it stopped, and repeats nothing."""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import torch
from tqdm import tqdm

from ldm_us.evaluation.protocol.arms import REAL, Arm, check_enough_generated, plan_arms, read_generated, training_data
from ldm_us.evaluation.protocol.configuration import ProtocolConfig, as_json, differing, read_configuration
from ldm_us.evaluation.protocol.page import write_report
from ldm_us.evaluation.protocol.splits import Split, check_lineage, check_start, split_images
from ldm_us.evaluation.protocol.stages import (
    Run,
    Stage,
    check_stages,
    finish_stage,
    plan_stages,
    read_done,
    run_script,
    wanted_samples,
    write_training_masks,
)
from ldm_us.evaluation.protocol.units import ImagePool, Result, Unit, finish_unit
from ldm_us.evaluation.results import read_json
from ldm_us.files.atomic import write_text
from ldm_us.files.locks import locked
from ldm_us.runtime.checks import check_extra

CONFIG = "protocol.json"
Say = Callable[[str], None]


def run_protocol_command(options: argparse.Namespace) -> int:
    """Run a protocol from the command line."""
    try:
        run_protocol(read_configuration(options.config), options.out, run_script, print, options.until)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt("interrupted: the same command again goes on from there") from stop
    return 0


def run_protocol(config: ProtocolConfig, out: Path, run: Run, say: Say, until: str | None = None) -> None:
    """Split, train and sample the generators, train and test the classifiers, report."""
    check_extra("eval", "sklearn", "scipy", "matplotlib")  # now, not after hours
    stages = plan_stages(config, out)
    check_stages(stages)
    if until is not None and until not in [stage.name for stage in stages]:
        raise ValueError(f"--until {until}: no such stage. Use {', '.join(stage.name for stage in stages)}.")
    split = split_images(config)
    for note in split.notes:
        say(f"note: {note}")
    check_starts(config, split, stages)
    with begun(out, config, split):
        before = finished(out)
        for stage in stages:
            if stage.script == "sample.py" and "--mask" in stage.arguments and stage.name not in read_done(out):
                count = write_training_masks(split.train, out / "controlnet" / "model.safetensors", out / "masks")
                say(f"masks: {count} lesions of training images")
            say(f"{stage.name}: {'done' if finish_stage(stage, out, run) else 'finished before'}")
            if stage.script == "train.py":
                check_lineage(stage.product, [Path(f) for f in config.data], digest_of(stage, split))
            if stage.name == until:
                break
        else:
            arms = plan_arms(config)
            results = classify(config, out, split, arms, say)
            write_report(config, out, split, arms, results)
            say(f"results.csv, results.md, auc_by_ratio.png, roc.png and report.html are in {out}")
        if finished(out) == before:
            say("all there already: nothing was left to train or to sample")


def finished(out: Path) -> int:
    """How many stages and classifiers are done."""
    return len(read_done(out)) + len(list(out.glob("classifiers/*/*/result.json")))


def check_starts(config: ProtocolConfig, split: Split, stages: Sequence[Stage]) -> None:
    """Refuse, before any training, weights that know images to test on, and samples that will be too few."""
    wanted = {stage.name: wanted_samples(stage, split.labels) for stage in stages if stage.script == "sample.py"}
    check_enough_generated(config, split, sum(wanted["generated"]))
    for stage in stages:
        if stage.script == "train.py" and "--weights" in stage.arguments:
            weights = Path(stage.arguments[stage.arguments.index("--weights") + 1])
            if weights not in [other.product for other in stages]:
                check_start(weights, config, split, digest_of(stage, split))


def digest_of(stage: Stage, split: Split) -> str:
    """The hash of the images that a stage of train.py is trained on."""
    return split.digests["small train" if stage.name.endswith("_small") else "train"]


@contextmanager
def begun(out: Path, config: ProtocolConfig, split: Split) -> Iterator[None]:
    """Hold the folder, new or of this very protocol. Raise ValueError, naming what differs, for another one."""
    asked = as_json(config) | {"data_sha256": split.digests}
    out.mkdir(parents=True, exist_ok=True)
    with locked(out, f"{out}: another process runs a protocol in it. Wait for it, or stop it."):
        before = read_json(out / CONFIG, "Start in a new --out.") if read_done(out) else None
        changes = [] if before is None else differing(before, asked)  # else nothing was made that could differ
        if changes:
            raise ValueError(
                f"{out} was begun with another configuration or other data ({'; '.join(changes)}). Use those again, or "
                "another --out."
            )
        write_text(out / CONFIG, json.dumps(asked, indent=1) + "\n")
        yield


def classify(
    config: ProtocolConfig, out: Path, split: Split, arms: Sequence[Arm], say: Say
) -> dict[tuple[str, int], Result]:
    """Train and test every classifier that is not there yet."""
    threads = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    pool = ImagePool(config.classifier.size)
    generated = {name: read_generated(out / name) if name else [] for name in {arm.generated for arm in arms}}
    units, reference = [], None
    for seed, arm in product(config.seeds, arms):  # whole seeds first: figures of all arms early
        train, validation = training_data(arm, config, split, generated[arm.generated], seed)
        if arm.name == REAL and config.classifier.equal_steps:  # the first of a seed
            reference = len(train)
        tests = {name: split.tests[name] for name in arm.tests}
        units.append(Unit(arm, seed, train, validation, tests, reference))
    results = {}
    with tqdm(total=len(units), unit="classifier", desc="classifiers", delay=0.5) as bar:
        for unit in units:
            results[unit.arm.name, unit.seed] = finish_unit(unit, config, pool, out, bar.set_postfix_str)
            bar.update()
    torch.set_num_threads(threads)
    say(f"classifiers: {len(units)}")
    return {(arm.name, seed): results[arm.name, seed] for arm, seed in product(arms, config.seeds)}
