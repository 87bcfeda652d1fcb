"""Draw a sample, or all that a manifest lists, again from the fields of the PNG: is every pixel the same?"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from ldm_us.data.opening import open_image
from ldm_us.data.records import load_mask
from ldm_us.data.structure import in_channels
from ldm_us.data.words import Words
from ldm_us.diffusion.controls import ControlTerm
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.diffusion.sampling import Sampling
from ldm_us.files.atomic import sha256_file
from ldm_us.files.pictures import to_picture
from ldm_us.runtime.entry import note
from ldm_us.runtime.machine import emulation_notes
from ldm_us.synthesis.claims import changed_since, mask_digests, other_files, recorded_loras, untrue_claims
from ldm_us.synthesis.drawing import Wanted, draw_samples
from ldm_us.synthesis.fields import DIGEST, SHOWS, Fields, as_text, mask_sha256, origin_fields, unpack_mask
from ldm_us.synthesis.folder import MANIFEST, ends_as_png, files_of, read_list
from ldm_us.synthesis.inputs import load_added
from ldm_us.synthesis.recipe import Given, Recipe, Region, read_recipe, settings_of
from ldm_us.synthesis.watermark import add_watermark, has_watermark, watermark_version
from ldm_us.synthesis.weights import ScaledLoRA, Source, load_sampler, taught_words

# Share of the pixels that rounding may move by one grey level. Measured with us128, a batch of four against one by one,
# on a CPU: at most 0.00006 in fp32 and 0.087 in bf16. Not measured on a GPU, where bf16 is usual: the larger one.
FINE, COARSE = 0.01, 0.25
NAMED = 5  # pictures of a folder that differ and are named
OF_FOLDER = ("number", "file_name", "mask_file", "strips", "pixels_sha256")  # in a line beside the fields


class Verdict(NamedTuple):
    """Whether a picture is what its fields say, and one sentence about it."""

    equal: bool
    sentence: str


def load_all(source: Source, device: str, recipe: Recipe) -> tuple[LatentDiffusion, list[ControlTerm]]:
    """The model, and the terms of these further ControlNets."""
    for sentence in emulation_notes(recipe.sampling.precision, device):
        note(sentence)
    model, _ = load_sampler(source, device, lambda sentence: None, recipe.sampling.precision)
    return model, load_added(recipe, model, device)


@dataclass(frozen=True)
class Means:
    """What there is to draw with, read once for all pictures of a folder."""

    source: Source  # the scales of its LoRAs are read from the fields
    device: str
    given: Given = field(default_factory=dict)  # the files of an edit
    mask: Path | None = None  # to be compared with that of the picture
    digest: Callable[[Path], str] = field(default_factory=lambda: cache(sha256_file))
    masks: Callable[..., set[str]] = field(default_factory=lambda: cache(mask_digests))
    load: Callable[..., tuple[LatentDiffusion, list[ControlTerm]]] = field(
        default_factory=lambda: lru_cache(maxsize=1)(load_all)
    )

    @cached_property
    def words(self) -> Words:
        """What the model was taught."""
        return taught_words(self.source)


def verify(path: Path, means: Means) -> Verdict:
    """Compare a sample with what its fields give on this machine, pixel by pixel.

    `means` names the files to draw with; everything else is read from the fields. Raise ValueError for a file that is
    no picture, and where the extra that a watermark needs is missing.
    """
    picture = open_image(path)
    text = fields_of(picture)
    if DIGEST not in text:
        return Verdict(False, f"{path}: no fields of sample.py in it, so nothing can be compared{_seen_mark(picture)}.")
    if SHOWS in text:
        return Verdict(False, f"{path}: it is no sample and shows {text[SHOWS]}. Verify the samples themselves.")
    recipe, size, unreadable = Recipe(), None, list[str]()
    try:
        recipe = read_recipe(text, means.given, means.digest)
        if picture.size != recipe.size.size[::-1]:
            said = recipe.size.width if isinstance(recipe.size.plain, int) else recipe.size
            raise ValueError(f"size {said}, but the picture is {picture.width}x{picture.height}")
        if None in (recipe.sampling.guidance, recipe.sampling.control_scale):
            raise ValueError("the field guidance or control_scale is missing")
        size = recipe.size
    except ValueError as error:
        unreadable.append(f"settings: {error}")
    problems = changed_since(picture, text, size) + untrue_claims(text, means.words)
    problems += other_files(text, means.source, means.digest) + unreadable
    if (
        not problems
        and means.mask is not None
        and text.get("mask_sha256") not in means.masks(means.mask, size, means.words.hint)
    ):
        problems.append(f"mask: made with {text.get('mask', 'none')}, which is not --mask {means.mask}")
    if problems:
        return Verdict(False, f"{path}: {'; '.join(problems)}.")
    if "watermark" in text:
        watermark_version()  # without the extra it cannot be drawn
    try:
        again = draw_again(text, recipe, means)
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        return Verdict(False, f"{path}: settings: {error}, so it cannot be drawn again.")
    return compare(path, picture, again, text, recipe, means.device)


def verify_folder(folder: Path, means: Means) -> Verdict:
    """Compare every listed sample as `verify` does. The summary names the first that differ, one a line.

    Raise ValueError where there is no manifest, or a damaged one.
    """
    if not (folder / MANIFEST).is_file():
        raise ValueError(
            f"--verify {folder}: no {MANIFEST} in it. Give a picture, or a folder that sample.py finished."
        )
    entries = list(read_list(folder / MANIFEST))
    shown = tqdm(entries, unit="image", desc="verifying", disable=not entries)
    differing = [problem for entry in shown if (problem := problem_of(folder, entry, means))]
    known = {name for entry in entries for name in files_of(entry)}
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")} - {"grid.png"}
    differing += [f"{folder / name}: {MANIFEST} does not list it." for name in sorted(found - known)]
    if not differing:
        return Verdict(bool(entries), f"{folder}: all {len(entries)} samples are what their fields say.")
    more = [f"and {len(differing) - NAMED} more."] if len(differing) > NAMED else []
    head = f"{folder}: {len(differing)} problem{'s' * (len(differing) > 1)} with {len(entries)} samples:"
    return Verdict(False, "\n".join([head, *differing[:NAMED], *more]))


def problem_of(folder: Path, entry: Fields, means: Means) -> str:
    """One sentence about a line and its files; empty where all is as it should be."""
    path = folder / entry["file_name"]
    if lacking := [name for name in files_of(entry) if not ends_as_png(folder / name)]:
        return f"{folder / lacking[0]}: missing or cut off."
    verdict = verify(path, means)
    if not verdict.equal:
        return verdict.sentence
    text = fields_of(open_image(path))
    line = as_text({key: value for key, value in entry.items() if key not in OF_FOLDER})
    if {key: value for key, value in text.items() if key not in (DIGEST, *OF_FOLDER)} | {DIGEST: line[DIGEST]} != line:
        return f"{path}: its line of {MANIFEST} says something else than the picture."
    if "mask_file" in entry:
        size, file = settings_of(text)["sampling"]["size"], folder / entry["mask_file"]
        masks = in_channels([file], (), means.words.hint)
        mask = load_mask(masks, tuple(size) if isinstance(size, list) else int(size))
        if text.get("mask_sha256", mask_sha256(mask * 0)) != mask_sha256(mask):
            return f"{folder / entry['mask_file']}: not the mask of {path.name}."
    return ""


def fields_of(picture: Image.Image) -> dict[str, str]:
    """The text fields of a PNG."""
    return {str(key): value for key, value in picture.info.items() if isinstance(value, str)}


def draw_again(text: Mapping[str, str], recipe: Recipe, means: Means) -> Image.Image:
    """The picture that the fields describe."""
    paths = {means.digest(lora.path): lora.path for lora in means.source.loras}
    loras = tuple(ScaledLoRA(paths[lora["sha256"]], float(lora["scale"])) for lora in recorded_loras(text))
    # Without further controls one model serves samples of every size.
    needed = recipe if recipe.controls else Recipe(Sampling(precision=recipe.sampling.precision))
    model, terms = means.load(means.source._replace(loras=loras), means.device, needed)
    mask = unpack_mask(text["mask_bits"], recipe.size) if "mask_bits" in text else None
    ((x, _),) = draw_samples(model, [Wanted(text["prompt"], int(text["seed"]), mask)], recipe, terms)
    again = to_picture(x.mean(dim=0, keepdim=True))
    return add_watermark(again) if "watermark" in text else again


def compare(
    path: Path, picture: Image.Image, again: Image.Image, text: Mapping[str, str], recipe: Recipe, device: str
) -> Verdict:
    """Pixel by pixel; where they differ, with what may be the reason."""
    if picture.size != again.size or picture.mode != again.mode:
        return Verdict(False, f"{path}: pixels: {picture.mode} {picture.size}, not {again.mode} {again.size}.")
    apart = np.abs(np.asarray(picture, dtype=int) - np.asarray(again, dtype=int))
    if not apart.any():
        return Verdict(True, f"{path}: all {apart.size} pixels are those of its {made_of(text, recipe)}.")
    differ = f"{int((apart > 0).sum())} of {apart.size} pixels differ, by up to {apart.max()}"
    sampling, on_cpu = recipe.sampling, text["device"].startswith("cpu")
    fine = sampling.precision == "fp32" and on_cpu
    rounded = bool(apart.max() <= 1 and (apart > 0).mean() <= (FINE if fine else COARSE))
    if not sampling.exact and rounded:
        return Verdict(True, f"{path}: {differ}: the rounding of a batch, for it was not drawn one by one.")
    if sampling.precision != "fp32" and not on_cpu and rounded:
        return Verdict(True, f"{path}: {differ}: the rounding of {sampling.precision} on a GPU.")
    return Verdict(False, f"{path}: {differ}: {reason(text, rounded, device)}.")


def made_of(text: Mapping[str, str], recipe: Recipe) -> str:
    """Name all that the pixels were drawn from."""
    begin = recipe.begin
    files = [
        f", --{name.replace('_', '-')} {file.name}" for name, file in vars(begin).items() if isinstance(file, Path)
    ]
    marked = ", with its watermark" if "watermark" in text else ""
    pasted = "; outside --inpaint they are those of --init" if isinstance(begin, Region) and begin.paste else ""
    return f"seed, settings and weights{''.join(files)}{marked}{pasted}"


def reason(text: Mapping[str, str], rounded: bool, device: str) -> str:
    """Why pixels may differ: what the fields say of another machine, else what they cannot tell."""
    here = origin_fields(device)
    if "watermark" in text:
        here["watermark"] = watermark_version()
    other = [f"{key} {text.get(key, 'none')}, here {here[key]}" for key in here if text.get(key) != here[key]]
    if other:
        return f"made with {'; '.join(other)}{', whose rounding is likely all there is to it' if rounded else ''}"
    unsaid = "the fields name no other machine or software"
    if rounded:
        likely = "the rounding of another processor or library, or else a change with a new digest"
        return f"{unsaid}, but so little is likely {likely}"
    return (
        f"{unsaid}. Either they are not what made these pixels, or something that they do not hold, as a driver, chose "
        "other kernels"
    )


def _seen_mark(picture: Image.Image) -> str:
    try:
        marked = has_watermark(picture)
    except ValueError:
        return " (the extra `watermark` would look for an invisible mark)"
    return ", but its watermark says that it is synthetic" if marked else ", and it has no watermark"
