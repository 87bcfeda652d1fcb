"""One picture at a time: the file that sample.py writes for one command, and several of them as a dataset."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image
from torch import Tensor

from ldm_us.data.records import mask_file
from ldm_us.data.words import Words
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.synthesis.asked import Settled, grey_picture, plan_of, settle
from ldm_us.synthesis.drawing import Wanted, draw_samples
from ldm_us.synthesis.fields import Fields, subject_fields, unpack_mask
from ldm_us.synthesis.folder import COMMAND, finish, open_list, write_sample
from ldm_us.synthesis.inputs import asked_mask
from ldm_us.synthesis.options import SampleOptions
from ldm_us.synthesis.plan import Plan, Sample
from ldm_us.synthesis.recipe import Recipe


@dataclass(frozen=True)
class Made:
    """The file of one picture, and what was asked for."""

    path: Path
    sample: Sample
    recipe: Recipe  # at the size of the picture
    fields: Fields
    hint: tuple[str, ...]  # what its mask shows
    notes: list[str]

    @property
    def mask(self) -> Tensor | None:
        """The mask (1, H, W) that it followed, as the ControlNet saw it."""
        bits = self.fields.get("mask_bits")
        return None if bits is None else unpack_mask(bits, self.recipe.size)


def draw_one(options: SampleOptions, model: LatentDiffusion, weights_fields: Fields, words: Words, out: Path) -> Made:
    """Draw the one sample that the options ask for, and write the file that sample.py writes, into a new folder."""
    sample, one, settled = settle_one(options, model, weights_fields, words)
    plan, recipe, added, fields, _, notes = settled
    ((x, strips),) = draw_samples(model, [one], recipe, added, options.strips)
    fields = fields | subject_fields(sample.subject, sample.seed, one.mask)
    mask = None if one.mask is None else mask_file(one.mask, plan.hint)
    out.mkdir(parents=True)
    with open_list(out, 0) as done:
        write_sample(out, done, sample, grey_picture(x, options.watermark), mask, fields, strips)
    return Made(out / sample.file_name, sample, recipe, fields, plan.hint, notes)


def settle_one(
    options: SampleOptions, model: LatentDiffusion, weights_fields: Fields, words: Words
) -> tuple[Sample, Wanted, Settled]:
    """All that decides the one picture of the options, at its size. Raise ValueError for what does not fit."""
    settled = settle(options, plan_of(options, words), model, weights_fields, words)
    (sample,) = settled.plan
    mask = asked_mask(sample.subject, settled.recipe) if settled.plan.masked else None
    own = settled.recipe.at(sample.subject.size)
    settled = settled._replace(recipe=own, fields=settled.fields | {"settings": own.to_dict()})
    return sample, Wanted(sample.subject.prompt, sample.seed, mask), settled


def write_busi(made: Sequence[Made], out: Path) -> list[Made]:
    """Write pictures of several calls as --layout busi does; -> those that have no class to be filed under."""
    filed = [one for one in made if one.sample.subject.label]
    if not filed:
        raise ValueError("No picture here has a class to be filed under. Draw some by class first.")
    out.mkdir()
    (out / COMMAND).write_text(json.dumps(filed[0].fields, indent=1), encoding="utf-8")
    plan = Plan(tuple(one.sample.subject for one in filed), False, 0, n=1, layout="busi", hint=filed[0].hint)
    with open_list(out, 0) as done:
        for sample, one in zip(plan, filed, strict=True):
            mask = None if one.mask is None else mask_file(one.mask, one.hint)
            mask_name = sample.mask_name if mask is None else f"{sample.file_name.removesuffix('.png')}_mask.png"
            with Image.open(one.path) as picture:
                write_sample(out, done, replace(sample, mask_name=mask_name), picture.copy(), mask, one.fields, {})
    finish(out, plan)
    return [one for one in made if not one.sample.subject.label]
