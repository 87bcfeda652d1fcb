"""The editing options of sample.py: each reaches its function, and what does not fit is one clear sentence."""

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm_us.data.records import class_prompt, load_image, load_mask
from ldm_us.diffusion.conditions import Conditions
from ldm_us.diffusion.controls import ControlTerm, mask_hint
from ldm_us.diffusion.editing import image_to_image
from ldm_us.diffusion.guidance import Guidance
from ldm_us.diffusion.inpainting import inpaint
from ldm_us.diffusion.inversion import edit_by_inversion
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.diffusion.sampling import Walk, generate
from ldm_us.synthesis.drawing import Settings, Wanted
from ldm_us.synthesis.edit_options import add_edit_options, check_edit_options, edit_fields, walked_steps
from ldm_us.synthesis.edits import draw_edit, source_conditions

SIZE = 16
PROMPTS = [class_prompt("benign")]
SETTINGS = Settings(SIZE, guidance=2.0, control_scale=1.5, steps=4)


@pytest.fixture(scope="module")
def model(micro):
    torch.manual_seed(0)
    model = LatentDiffusion(micro)
    controlnet = model.add_controlnet()
    for conv in [*controlnet.zero_convs, controlnet.zero_conv_middle, controlnet.hint_network.conv_out]:
        torch.nn.init.normal_(conv.weight, std=0.3)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """An image, two masks, an empty one, and images that cannot be edited."""
    folder = tmp_path_factory.mktemp("files")
    grey = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE), dtype=np.uint8)
    Image.fromarray(grey).save(folder / "image.png")
    Image.fromarray(grey).resize((24, 16)).save(folder / "wide.png")
    Image.fromarray(grey).convert("RGBA").save(folder / "alpha.png")
    for name, at in (("left", 2), ("right", 9)):
        mask = np.zeros((SIZE, SIZE), np.uint8)
        mask[4:10, at : at + 5] = 255
        Image.fromarray(mask).save(folder / f"{name}.png")
    Image.new("L", (SIZE, SIZE)).save(folder / "empty.png")
    return folder


@pytest.fixture
def options(files, monkeypatch):
    """A function of flags: the options of sample.py that a sample needs."""
    monkeypatch.chdir(files)

    def parse(*flags: str) -> argparse.Namespace:
        parser = argparse.ArgumentParser()
        add_edit_options(parser)
        parser.set_defaults(weights=Path("w"), sampler="ddim", steps=4, eta=0.0)
        parsed = parser.parse_args(flags)
        check_edit_options(parsed, SIZE)
        return parsed

    return parse


@pytest.fixture
def drawn(model, options):
    """A function of flags, and perhaps a mask: an image (1, 3, H, W) and its strips."""

    def sample(*flags: str, mask: torch.Tensor | None = None) -> tuple[torch.Tensor, dict[str, Image.Image]]:
        x, strips = draw_edit(options(*flags), model, Wanted(PROMPTS[0], 3, mask), SETTINGS)
        return x[None], strips

    return sample


def one(path):
    return load_mask([Path(path)], SIZE)


def image():
    return load_image(Path("image.png"), SIZE)[None]


def test_without_options_a_batch_is_that_of_generate_and_has_no_further_field(model, drawn, options):
    images, pictures = drawn(mask=None)
    assert torch.equal(images, generate(model, PROMPTS, seeds=[3], size=SIZE, steps=4, guidance=2.0))
    assert pictures == {}
    assert edit_fields(options()) == {}


def test_a_mask_is_followed_as_generate_does_it(model, drawn):
    images, _ = drawn(mask=one("left.png"))
    plain = {"seeds": [3], "steps": 4, "guidance": 2.0}
    assert torch.equal(images, generate(model, PROMPTS, masks=one("left.png")[None], control_scale=1.5, **plain))


def test_guidance_and_control_options_reach_the_sampler(model, drawn):
    flags = ["--guidance-rescale", "0.7", "--guidance-interval", "0.5", "4"]
    flags += ["--control-start", "0.25", "--control-end", "0.75", "--guess"]
    images, _ = drawn(*flags, mask=one("left.png"))
    controls = [ControlTerm(model.controlnet, mask_hint(one("left.png")[None]), 1.5, 0.25, 0.75, guess=True)]
    guidance = Guidance(2.0, 0.7, (0.5, 4.0))
    assert torch.equal(images, generate(model, PROMPTS, seeds=[3], steps=4, guidance=guidance, controls=controls))


def test_init_is_image_to_image_with_its_strength(model, drawn):
    images, _ = drawn("--init", "image.png", "--strength", "0.5")
    conditions = Conditions(PROMPTS, "", Guidance(2.0))
    walk = Walk(steps=4)
    assert torch.equal(images, image_to_image(model, image(), conditions, strength=0.5, seeds=[3], walk=walk))


@pytest.mark.parametrize("flags", [[], ["--no-paste", "--resample", "2"]])
def test_inpaint_draws_a_region_of_init_anew(model, drawn, flags):
    images, _ = drawn("--init", "image.png", "--inpaint", "left.png", *flags)
    conditions, extra = Conditions(PROMPTS, "", Guidance(2.0)), {"resample": 2, "paste": False} if flags else {}
    expected = inpaint(model, image(), one("left.png")[None], conditions, seeds=[3], walk=Walk(steps=4), **extra)
    assert torch.equal(images, expected)


def test_invert_goes_from_the_source_to_what_the_sample_is_to_show(model, drawn):
    source = ["--source-class", "malignant", "--source-mask", "left.png"]
    images, _ = drawn("--init", "image.png", "--invert", *source, mask=one("right.png"))
    before, after = (
        Conditions(prompts, "", Guidance(s), [ControlTerm(model.controlnet, mask_hint(one(mask)[None]), 1.5)])
        for prompts, s, mask in (([class_prompt("malignant")], 1.0, "left.png"), (PROMPTS, 2.0, "right.png"))
    )
    assert torch.equal(images, edit_by_inversion(model, image(), before, after, steps=4))


def test_a_strip_and_an_explanation_come_with_the_same_images(drawn):
    plain, _ = drawn(mask=one("left.png"))
    images, pictures = drawn("--trajectory", "--explain", mask=one("left.png"))
    assert torch.equal(images, plain)
    assert set(pictures) == {"attention", "trajectory", "control"}


def test_the_fields_hold_every_option_that_was_used_and_the_hash_of_every_file(options):
    fields = edit_fields(options("--init", "image.png", "--strength", "0.5", "--guidance-interval", "0.5", "4"))
    assert fields.pop("init_sha256").isalnum()
    assert fields == {"init": "image.png", "strength": 0.5, "guidance_interval": "0.5 4.0"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--init", "image.png", "--strength", "1.5"], r"strength 1\.5: use 0"),
        (["--init", "wide.png"], r"--init wide\.png is 24x16, but the samples are 16x16"),
        (["--init", "alpha.png"], r"--init alpha\.png has mode RGBA"),
        (["--init", "nowhere.png"], r"nowhere\.png does not exist"),
        (["--init", "image.png", "--inpaint", "empty.png"], "inpainting region 0 is empty"),
        (["--init", "image.png", "--inpaint", "left.png", "--strength", "0.5"], "--strength and --inpaint"),
        (["--init", "image.png", "--inpaint", "left.png", "--invert"], "--invert and --inpaint are two ways"),
        (["--strength", "0.5"], "--strength does nothing without --init"),
        (["--init", "image.png", "--no-paste"], "--no-paste does nothing without --inpaint"),
        (["--init", "image.png", "--source-class", "benign"], "--source-class does nothing without --invert"),
        (["--init", "image.png", "--strength", "0", "--trajectory"], "--strength 0 takes no step that --trajectory"),
        (["--init", "image.png", "--invert", "--explain"], "--explain follows the way from noise to image"),
        (["--init", "image.png", "--invert", "--source-class", "benign", "--source-prompt", "a"], "give one of them"),
        (["--init", "image.png", "--invert", "--iterations", "-1"], "--iterations -1: use 0 or more"),
        (["--guidance-interval", "4", "0.5"], r"guidance interval 4\.0 to 0\.5: give the smaller noise level first"),
        (["--guidance-rescale", "2"], r"guidance rescale 2\.0"),
        (["--control-start", "0.8", "--control-end", "0.2"], r"control starts at 0\.8 of the steps, after its end"),
    ],
)
def test_what_does_not_fit_is_refused_before_a_model_is_loaded(options, flags, message):
    with pytest.raises(ValueError, match=message):
        options(*flags)


def test_a_source_mask_for_the_class_normal_is_refused(model, options):
    parsed = options("--init", "image.png", "--invert", "--source-class", "normal", "--source-mask", "left.png")
    with pytest.raises(ValueError, match=r"--source-mask left\.png: a lesion mask for the class normal"):
        source_conditions(parsed, model, PROMPTS[0], SETTINGS)


def test_a_mask_without_a_controlnet_is_refused(micro, options):
    torch.manual_seed(0)
    plain = LatentDiffusion(micro).eval().requires_grad_(False)
    with pytest.raises(ValueError, match="no ControlNet in it to follow a mask"):
        draw_edit(options(), plain, Wanted(PROMPTS[0], 3, one("left.png")), SETTINGS)


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--init", "image.png"],
        ["--init", "image.png", "--strength", "0.3"],
        ["--init", "image.png", "--strength", "0"],
        ["--init", "image.png", "--inpaint", "left.png", "--resample", "3"],
        ["--init", "image.png", "--invert"],
        ["--init", "image.png", "--invert", "--strength", "0.5"],
    ],
)
def test_the_progress_bar_knows_how_many_steps_a_sample_reports(model, options, flags):
    seen = []
    draw_edit(options(*flags), model, Wanted(PROMPTS[0], 3, None), SETTINGS, on_step=seen.append)
    assert len(seen) == walked_steps(options(*flags), SETTINGS.steps)
