"""The editing options of sample.py: each reaches its function, and what does not fit is one clear sentence."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tqdm import tqdm

from ldm_us.data.organ import BREAST
from ldm_us.data.records import load_image, load_mask
from ldm_us.data.words import words_in
from ldm_us.diffusion.controls import ControlTerm
from ldm_us.diffusion.editing import image_to_image
from ldm_us.diffusion.guidance import Guidance, prepare_conditions
from ldm_us.diffusion.inpainting import composed, inpaint
from ldm_us.diffusion.inversion import edit_by_inversion
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.diffusion.noise import generators_of
from ldm_us.diffusion.sampling import Sampling, computing, decode, generate
from ldm_us.files.atomic import sha256_file
from ldm_us.synthesis.drawing import Wanted, draw_samples
from ldm_us.synthesis.inputs import check_files
from ldm_us.synthesis.options import parse_options
from ldm_us.synthesis.recipe import FromNoise, Recipe, read_recipe
from ldm_us.synthesis.subjects import with_source
from tests.synthesis.conftest import trained

SIZE = 16
OLD_WORDS = words_in("m", {})  # of a file of before there was a record
PROMPTS = [BREAST.prompt("benign")]
SETTINGS = ("--steps", "4", "--guidance", "2", "--size", f"{SIZE}")
DDIM = Sampling("ddim", steps=4, guidance=2.0)
STEPS = Sampling("dpm", steps=4, guidance=2.0)  # what sample.py takes unless told otherwise


@pytest.fixture(scope="module")
def model(micro):
    torch.manual_seed(0)
    return trained(LatentDiffusion(micro))


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
def recipe_of(files, monkeypatch):
    """A function of flags: the recipe that they are parsed to, its control scale 1.5."""
    monkeypatch.chdir(files)

    def parse(*flags: str) -> Recipe:
        options = parse_options([*SETTINGS, *flags])
        begin = with_source(options.recipe.begin, options.source_class, OLD_WORDS)
        return replace(options.recipe, sampling=replace(options.recipe.sampling, control_scale=1.5), begin=begin)

    return parse


@pytest.fixture
def drawn(model, recipe_of):
    """A function of flags, and perhaps a mask: an image (1, 3, H, W) and its strips."""

    def sample(*flags: str, mask: torch.Tensor | None = None) -> tuple[torch.Tensor, dict[str, Image.Image]]:
        strips = [name for name in ("trajectory", "explain") if f"--{name}" in flags]
        masked = () if mask is None else ("--mask", "left.png")  # which no flag of a control may be without
        recipe = recipe_of(*flags, *masked)
        ((x, pictures),) = draw_samples(model, [Wanted(PROMPTS[0], 3, mask)], recipe, strips=strips)
        return x[None], pictures

    return sample


def one(path):
    return load_mask([Path(path)], SIZE)


def image():
    return load_image(Path("image.png"), SIZE)[None]


def shown(model, prompts=PROMPTS, scale=2.0, mask=None):
    """Conditions of one sample."""
    controls = [] if mask is None else [ControlTerm(model.controlnet, model.controlnet.hint_of(one(mask)[None]), 1.5)]
    return prepare_conditions(model, prompts, "", Guidance(scale), controls, steps=4)


def last_of(steps):
    *_, last = steps
    return last.z


def test_without_options_a_sample_is_that_of_generate_and_begins_from_noise(model, drawn, recipe_of):
    images, pictures = drawn(mask=None)
    assert torch.equal(images, generate(model, PROMPTS, seeds=[3], sampling=STEPS))
    assert pictures == {}
    assert recipe_of().begin == FromNoise()


def test_a_mask_is_followed_as_generate_does_it(model, drawn):
    images, _ = drawn(mask=one("left.png"))
    sampling = replace(STEPS, control_scale=1.5)
    assert torch.equal(images, generate(model, PROMPTS, seeds=[3], masks=one("left.png")[None], sampling=sampling))


def test_guidance_and_control_options_reach_the_sampler(model, drawn):
    flags = ["--guidance-rescale", "0.7", "--guidance-interval", "0.5", "4"]
    flags += ["--control-start", "0.25", "--control-end", "0.75", "--guess"]
    images, _ = drawn(*flags, mask=one("left.png"))
    hint = model.controlnet.hint_of(one("left.png")[None])
    controls = [ControlTerm(model.controlnet, hint, 1.5, 0.25, 0.75, guess=True)]
    sampling = replace(STEPS, guidance_rescale=0.7, guidance_interval=(0.5, 4.0))
    assert torch.equal(images, generate(model, PROMPTS, seeds=[3], controls=controls, sampling=sampling))


def test_init_is_image_to_image_with_its_strength(model, drawn):
    images, _ = drawn("--init", "image.png", "--strength", "0.5")
    with computing(model, STEPS) as computed:
        steps = image_to_image(computed, image(), shown(model), generators_of([3]), STEPS, 0.5)
        assert torch.equal(images, decode(model, last_of(steps)))


@pytest.mark.parametrize("flags", [[], ["--no-paste", "--resample", "2"]])
def test_inpaint_draws_a_region_of_init_anew(model, drawn, flags):
    images, _ = drawn("--init", "image.png", "--inpaint", "left.png", *flags)
    region, resample = one("left.png")[None], 2 if flags else 1
    steps = inpaint(model, image(), region, shown(model), generators_of([3]), DDIM, resample)
    assert torch.equal(images, composed(model, last_of(steps), image(), region, DDIM, [], paste=not flags))


def test_invert_goes_from_the_source_to_what_the_sample_is_to_show(model, drawn):
    source = ["--source-class", "malignant", "--source-mask", "left.png"]
    images, _ = drawn("--init", "image.png", "--invert", *source, mask=one("right.png"))
    before = shown(model, [BREAST.prompt("malignant")], 1.0, "left.png")
    steps = edit_by_inversion(model, image(), before, shown(model, mask="right.png"), DDIM)
    assert torch.equal(images, decode(model, last_of(steps)))


def test_a_strip_and_an_explanation_come_with_the_same_images(drawn):
    plain, _ = drawn(mask=one("left.png"))
    images, pictures = drawn("--trajectory", "--explain", mask=one("left.png"))
    assert torch.equal(images, plain)
    assert set(pictures) == {"attention", "trajectory", "control"}


RECIPES = {
    "plain": [],
    "noise": ["--sampler", "ddpm", "--negative-prompt", "5", "--precision", "bf16", "--fast", "--threads", "3"],
    "limits": ["--guidance-rescale", "0.7", "--guidance-interval", "0.5", "4", "--eta", "0.3"],
    "image": ["--init", "image.png", "--strength", "0.25"],
    "region": ["--init", "image.png", "--inpaint", "left.png", "--resample", "3", "--no-paste"],
    "inversion": ["--init", "image.png", "--invert", "--iterations", "0", "--source-prompt", "a"],
    "lesion": ["--init", "image.png", "--invert", "--source-class", "benign", "--source-mask", "left.png"],
    "controls": ["--also-control", "model.pt", "right.png", "0.5", "--also-control", "model.pt", "left.png", "1"],
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_survives_json_and_finds_its_files_wherever_they_lie(recipe_of, files, tmp_path, name):
    """What a PNG holds, read back by the constructors themselves."""
    (files / "model.pt").write_bytes(b"weights")
    recipe = recipe_of(*RECIPES[name])
    text = json.dumps(recipe.to_dict())
    given = parse_options([*SETTINGS, *RECIPES[name]]).given
    assert read_recipe({"settings": text}, given) == recipe
    assert str(files) not in text
    if recipe.begin != FromNoise() or recipe.controls:
        with pytest.raises(ValueError, match=r"made with --.* give that file with --"):
            read_recipe({"settings": text}, {})


def test_the_json_of_a_recipe_names_and_hashes_every_file(recipe_of, files):
    begin = recipe_of("--init", "image.png", "--strength", "0.5").to_dict()["begin"]
    sha256 = sha256_file(files / "image.png")
    assert begin == {"from": "image", "init": {"file": "image.png", "sha256": sha256}, "strength": 0.5}


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
        (
            ["--control-start", "0.8", "--control-end", "0.2", "--mask", "left.png"],
            r"control starts at 0\.8 of the steps, after its end",
        ),
    ],
)
def test_what_does_not_fit_is_refused(model, recipe_of, flags, message):
    with pytest.raises(ValueError, match=message):
        check_files(recipe_of(*flags), model, PROMPTS, OLD_WORDS)


def test_a_source_mask_for_the_class_normal_is_refused(model, recipe_of):
    recipe = recipe_of("--init", "image.png", "--invert", "--source-class", "normal", "--source-mask", "left.png")
    with pytest.raises(ValueError, match=r"--source-mask left\.png: a lesion mask for the class normal"):
        check_files(recipe, model, PROMPTS, OLD_WORDS)


def test_a_mask_without_a_controlnet_is_refused(micro, recipe_of):
    torch.manual_seed(0)
    plain = LatentDiffusion(micro).eval().requires_grad_(False)
    with pytest.raises(ValueError, match="masks need a model with a ControlNet"):
        draw_samples(plain, [Wanted(PROMPTS[0], 3, one("left.png"))], recipe_of())
    source = recipe_of("--init", "image.png", "--invert", "--source-mask", "left.png")
    with pytest.raises(ValueError, match="--source-mask: no ControlNet in the weights"):
        check_files(source, plain, PROMPTS, OLD_WORDS)


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
def test_the_progress_bar_knows_how_many_steps_a_sample_reports(model, recipe_of, flags):
    recipe = recipe_of(*flags)
    with tqdm(disable=False, file=io.StringIO()) as bar:
        draw_samples(model, [Wanted(PROMPTS[0], 3, None)], recipe, progress=bar)
    assert bar.n == recipe.walked_steps
