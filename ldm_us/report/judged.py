"""What a judge says of samples before and after a run: classes named as asked, and Dice with the masks asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ldm_us.data.records import of_structure, trained_framing
from ldm_us.data.words import Words, words_of
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.diffusion.sampling import Sampling
from ldm_us.evaluation.figures import accuracy
from ldm_us.evaluation.judge.file import asked_classes, check_judged, load_judge
from ldm_us.evaluation.judge.network import Judge, judge
from ldm_us.evaluation.mask_errors import mask_errors
from ldm_us.evaluation.masks.fidelity import load_batch
from ldm_us.evaluation.samples import draw_for_records, draw_samples
from ldm_us.evaluation.sets.evaluated_images import check_unseen_by_judge
from ldm_us.files.checkpoint import load_model, read_metadata
from ldm_us.report.run_folder import Run
from ldm_us.training.dataset import split_data

PER_CLASS = 12  # samples
MASKS = 16  # of held-out lesions
BATCH = 12  # samples at a time


@dataclass(frozen=True)
class Judged:
    """A figure before and after the run."""

    name: str
    reading: str
    before: str
    after: str


def judged(
    run: Run, path: Path, folders: Sequence[Path], sampling: Sampling, seed: int, device: str
) -> tuple[list[Judged], list[str]]:
    """The judge's figures of a finished run, and notes on those that are missing. An autoencoder has none.

    Raise ValueError for a file that is no judge's.
    """
    network, training = load_judge(path)
    try:
        model = load_model(run.path / "model.safetensors", device=device)
        if run.stage == "unet":
            words = words_of(run.path / "model.safetensors")
            start, before = run.config.get("weights"), "none: random weights"
            if start is not None:
                before = named(network, load_model(start, device), words, sampling, seed)
            reading = f"{PER_CLASS} samples a class, by the judge; 1 in {len(network.classes)} by chance"
            return [Judged("classes named as asked", reading, before, named(network, model, words, sampling, seed))], []
        if run.stage == "controlnet":
            _, held_out = split_data(folders, float(run.config["held_out"]))
            lesions = [record for record in held_out if record.masks and record.shows is not False][:MASKS]
            if not lesions:
                raise ValueError("no held-out image has a lesion mask.")
            check_judged(network, [record.label for record in lesions], "--data")
            check_unseen_by_judge(path, training, lesions)
            sought = of_structure(lesions, training.structure)  # what the judge finds; the samples follow all
            images, masks = load_batch(sought, model.config.image_size)
            prompts = [record.prompt for record in lesions]
            framing = trained_framing(read_metadata(run.path / "model.safetensors"), model.config)
            drawn = (
                draw_samples(model, prompts, sampling, seed, BATCH),
                draw_for_records(model, lesions, sampling, framing, seed, BATCH),
            )
            dice = [f"{follows(network, samples, masks):.2f}" for samples in drawn]
            real = follows(network, images, masks)
            reading = f"{len(lesions)} held-out masks, before: without the ControlNet; of the real images {real:.2f}"
            return [Judged("Dice with the mask asked for", reading, *dice)], []
    except (ValueError, OSError, RuntimeError) as error:
        return [], [f"The judge's figures are missing: {error}"]
    return [], []


def named(network: Judge, model: LatentDiffusion, words: Words, sampling: Sampling, seed: int) -> str:
    """How often the judge names the class that a sample was asked for, with its 95 % interval."""
    asked, prompts = asked_classes(words, network, PER_CLASS)
    samples = draw_samples(model, prompts, sampling, seed, BATCH)
    share = accuracy(asked, judge(network, samples).labels)["all"]
    return f"{share['share']:.0%} ({share['low']:.0%} to {share['high']:.0%})"


def follows(network: Judge, images: Tensor, masks: Tensor) -> float:
    """The mean Dice of the lesions that the judge finds in images (n, 1, H, W) with masks (n, 1, H, W)."""
    return float(mask_errors(judge(network, images).masks, masks).dice.mean())
