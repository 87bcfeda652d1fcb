"""docs/changing.md, change 2: the cosine schedule, in training, in files and in exports."""

import json
import math
from dataclasses import replace

import pytest
import torch

from ldm_us.config import BUNDLED, PRESETS, SD15
from ldm_us.diffusion.ddpm import make_schedule
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.files.checkpoint import load_model, save_model
from tests.conftest import MICRO

COSINE = replace(MICRO, name="cosine", schedule=replace(MICRO.schedule, cosine=True))


@pytest.fixture(scope="module")
def trained(run, tmp_path_factory):
    """A denoiser of two steps on the autoencoder and the text encoder of a model with SD 1.5's betas."""
    folder = tmp_path_factory.mktemp("cosine")
    save_model(LatentDiffusion(MICRO), folder / "base.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "cosine", COSINE)
        return run("unet", folder / "run", "--preset", "cosine", weights=folder / "base.safetensors")


def test_alpha_bar_is_the_squared_cosine_of_the_paper():
    """Improved DDPM Eq. 17; from where a beta would exceed 0.999, it is 0.999."""

    def f(t):
        return math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2

    schedule = make_schedule(COSINE.schedule)
    expected = [f(t + 1) / f(0) for t in range(1000)]
    assert schedule.alpha_bar[:999].tolist() == pytest.approx(expected[:999], rel=1e-9)
    assert float(schedule.beta[-1]) == pytest.approx(0.999)


def test_a_file_of_before_keeps_its_betas():
    model = load_model(BUNDLED, parts=())
    assert torch.equal(model.schedule.alpha_bar, make_schedule(SD15.schedule).alpha_bar)


def test_what_is_trained_says_so_and_a_diffusers_folder_brings_all_of_it_back(trained, export, convert, tmp_path):
    assert load_model(trained.path).config == COSINE
    assert export(trained.path, "--format", "diffusers", "--out", tmp_path / "out")[0] == 0
    said = json.loads((tmp_path / "out" / "scheduler" / "scheduler_config.json").read_text())
    assert said["beta_schedule"] == "squaredcos_cap_v2"
    assert convert(tmp_path / "out", "--out", tmp_path / "back.safetensors", preset=None)[0] == 0
    assert load_model(tmp_path / "back.safetensors").config == COSINE


def test_a_layout_without_a_word_for_it_is_refused(trained, export, tmp_path):
    code, _, error = export(trained.path, "--format", "compvis", "--out", tmp_path / "out.safetensors")
    assert code == 2
    assert "its noise schedule is not one of scaled linear betas, and --format compvis has no word for it" in error
    assert not list(tmp_path.iterdir())


def test_the_betas_are_those_of_diffusers():
    schedulers = pytest.importorskip("diffusers.schedulers", reason="the extra `bench` is not installed")
    theirs = schedulers.DDIMScheduler(beta_schedule="squaredcos_cap_v2").betas.double()
    torch.testing.assert_close(make_schedule(COSINE.schedule).beta, theirs, rtol=1e-5, atol=1e-8)
